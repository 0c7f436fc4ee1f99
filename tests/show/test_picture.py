"""The picture of a graph: what is in it, that other tools read it, and that nothing in it covers anything else."""

from __future__ import annotations

import html
import random
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import fastpipe
from fastpipe.config.reading import load
from fastpipe.config.sub_graphs import jumps_of
from fastpipe.config.wiring import compile_graph
from fastpipe.show.layout import Layout, Line, Size, lay_out
from fastpipe.show.picture import Picture

SVG = "{http://www.w3.org/2000/svg}"

VISION = {
    "decode": {"backend": "S[Identity,(run)ThrowIfNoResult]", "instance_num": 4, "next": "resize,thumb"},
    "resize": {"backend": "S[Identity,Pow]", "instance_num": 2, "next": "detect,classify"},
    "thumb": {"backend": "Identity", "next": "hash"},
    "hash": {"backend": "Pow", "next": "join"},
    "detect": {"backend": "Identity", "max": 8, "next": "crop", "bucket": "shape"},
    "crop": {"backend": "MapReduce", "jump": "face", "next": "join", "filter": "or"},
    "classify": {"backend": "Identity", "max": 16, "batching": "timeout", "next": "join"},
    "join": {
        "backend": "Identity",
        "map": "crop[result:faces],classify[result:label,score:score],hash[result:data],decode[result:image]",
        "next": "answer",
    },
    "answer": {"backend": "Identity"},
    "face": {"backend": "Identity", "max": 32, "instance_num": 3, "next": "embed"},
    "embed": {"backend": "Pow"},
}
ODD_NAMES = [
    *('a"b', "it's", "<b>", "&amp;", "a&b", "#35;", "`md`", "a;b", "a¦b", "{x}", "(y)", "\\", "\\n", "%%c", "-->"),
    *("$$", "end", "graph", "subgraph", "style", "click", "digraph", "node", "ünï", "日本語", "🙂"),
    *("\x07", "\x1b-31m", "\u202e"),
]


def picture_of(nodes: dict[str, Any]) -> Picture:
    """Return the picture of nodes that are not built."""
    configs = load(nodes, {}).nodes
    return Picture(configs, compile_graph(configs, jumps_of(configs)))


def texts_in(svg: str) -> list[str]:
    """Return all text that is drawn."""
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


# ---- text ------------------------------------------------------------------------------------------------------


def test_ten_nodes_with_branches_as_text() -> None:
    """As a person would read it: rails join at a join, a sub-graph hangs on dots."""
    assert str(picture_of(VISION)).splitlines() == [
        "▼       decode    S[Identity,(Run)ThrowIfNoResult]  ×4",
        "├─╮",
        "● │     resize    S[Identity,Pow]  ×2",
        "├─│─╮",
        "● │ │   detect    Identity  ×1 · batch 1–8 · bucket shape",
        "● │ │   crop      MapReduce  filter or",
        "├┄│┄│┄╮",
        "│ │ │ ● face      Identity  ×3 · batch 1–32",
        "│ │ │ ■ embed     Pow  ×1",
        "│ │ ●   classify  Identity  ×1 · batch 1–16 · batching timeout",
        "│ ● │   thumb     Identity  ×1",
        "│ ● │   hash      Pow  ×1",
        "├─┴─╯",
        "●       join      Identity  ×1",
        "│                 takes hash: result → data; crop: result → faces; classify: result → label, score;",
        "│                 decode: result → image",
        "■       answer    Identity  ×1",
    ]


def test_roots_logical_nodes_proxies_and_restarts_as_text() -> None:
    """A root does not look as if it followed the leaf above it."""
    nodes = {
        "a": {"backend": "Identity", "next": "b"},
        "b": {"backend": "Identity", "restart": "a"},
        "b.2": {},
        "c": {"backend": "S[Pow,Proxy]", "proxy": "a"},
    }
    assert str(picture_of(nodes)).splitlines() == [
        "▼ a    Identity  ×1",
        "■ b    Identity  ×1",
        "       ↺ restart at a",
        "",
        "■ b.2  shares b",
        "",
        "■ c    S[Pow,Proxy]  ×1",
        "       runs a",
    ]


def test_every_rail_leads_from_a_node_to_its_next() -> None:
    """Followed line by line, the rails of random graphs are exactly their edges."""
    for seed in range(40):
        nodes = random_nodes(seed)
        assert rails_of(str(picture_of(nodes))) == {
            (name, target) for name, node in nodes.items() for target in node.get("next", ())
        }


def test_long_lines_are_continued_below() -> None:
    """Nothing is cut off, and lines stay within what a terminal shows."""
    tree = f"S[{','.join(['Identity'] * 40)}]"
    lines = str(picture_of({"a": {"backend": tree}})).splitlines()
    assert max(map(len, lines)) <= 100
    assert re.sub(r"\s", "", "".join(lines)) == f"■a{tree}×1"


# ---- languages -------------------------------------------------------------------------------------------------


def test_a_notebook_shows_the_svg() -> None:
    """With every name, backend and key, and of a size that is said."""
    picture = picture_of(VISION)
    svg = picture._repr_svg_()
    root = ElementTree.fromstring(svg)
    assert (root.tag, float(root.attrib["width"]) > 100) == (f"{SVG}svg", True)
    texts = texts_in(svg)
    for text in (*VISION, "MapReduce", "×3 · batch 1–32", "result → label, score", "filter or"):
        assert text in texts
    assert "<style" not in svg  # it would change the page around it
    assert "id=" not in svg  # two pictures in one page must not share any
    assert repr(picture).startswith("<fastpipe picture of decode, ")


def test_text_stays_inside_its_box() -> None:
    """By the widest usual font of fixed width, in every box and label."""
    widths = []
    for group in ElementTree.fromstring(picture_of(VISION).svg()).iter(f"{SVG}g"):
        box = next(group.iter(f"{SVG}rect"))
        left, width = float(box.attrib["x"]), float(box.attrib["width"])
        for text in group.iter(f"{SVG}text"):
            half = len(text.text or "") * float(text.attrib["font-size"]) * 0.61 / 2
            assert left < float(text.attrib["x"]) - half
            assert float(text.attrib["x"]) + half < left + width
            widths.append(half)
    assert len(widths) > 25


def test_mermaid() -> None:
    """Nodes, edges with what maps take, and dashes for what is no ``next``."""
    lines = picture_of(VISION).mermaid().splitlines()
    assert lines[0] == "flowchart TD"
    assert '    n0(["<b>decode</b><br>S#91;Identity,#40;Run#41;ThrowIfNoResult#93;<br>×4"])' in lines
    assert "    n0 --> n1" in lines
    assert '    n6 -->|"result → label, score"| n7' in lines
    assert '    n0 -.->|"result → image"| n7' in lines
    assert "    n5 -.-> n9" in lines
    assert sum(line.startswith("    linkStyle") for line in lines) == 2


def test_dot_reads_the_dot() -> None:
    """Graphviz finds the same nodes and edges, and has nothing to complain about."""
    found = plain_dot(picture_of(VISION).dot())
    assert [line.split()[0] for line in found].count("node") == len(VISION)
    assert [line.split()[0] for line in found].count("edge") == 13


def plain_dot(source: str) -> list[str]:
    """Return what Graphviz has read, line by line."""
    dot = shutil.which("dot")
    if dot is None:
        pytest.skip("Graphviz's dot is not installed here")
    ran = subprocess.run([dot, "-Tplain"], input=source, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.splitlines()


def test_odd_names_are_escaped_everywhere() -> None:
    """Quotes, tags, entities, key words, wide and unprintable characters: as text, in each language."""
    nodes = {name: {"backend": "Identity", "next": [after]} for name, after in pairwise(ODD_NAMES)}
    picture = picture_of({**nodes, ODD_NAMES[-1]: {"backend": "Identity"}})
    shown = [name.encode("unicode_escape").decode() if not name.isprintable() else name for name in ODD_NAMES]
    assert all(character.isprintable() or character == "\n" for character in str(picture))
    assert [line.split()[1] for line in str(picture).splitlines()] == shown
    assert [text for text in texts_in(picture.svg()) if text not in ("Identity", "×1")] == shown
    cells = re.findall(r"<tr><td>(.*?)</td>", picture.html())
    assert [html.unescape(cell) for cell in cells] == shown
    for line in picture.mermaid().splitlines()[1:]:
        assert re.fullmatch(r'    n\d+(\(\[|\[)"[^"`<\\$]*(</?b(r)?>[^"`<\\$]*)+"(\]\)|\])|    n\d+ --> n\d+', line), (
            line
        )
    labels = [line for line in plain_dot(picture.dot()) if line.startswith("node")]
    assert len(labels) == len(ODD_NAMES)


def test_a_page_needs_nothing_else() -> None:
    """The drawing and a table; no script, no other address."""
    page = picture_of(VISION).html("<vision>")
    assert page.startswith("<!DOCTYPE html>")
    assert "<title>&lt;vision&gt;</title>" in page
    assert page.count("<svg") == 1
    assert page.count("<tr><td>") == len(VISION)
    assert "<td>crop: result → faces; classify: result → label, score; hash: result → data" not in page  # file order
    assert "hash: result → data" in page
    assert "parts: face" in page
    assert not re.search(r"<script|src=|href=|url\(", page)


# ---- what only a built pipe knows ------------------------------------------------------------------------------


class Eight(fastpipe.Backend):
    """Says only once it is built how much it takes."""

    def __init__(self) -> None:
        self.max_batch = 8

    def forward(self, batch: list[dict[str, Any]]) -> None:
        for request in batch:
            request["result"] = request["data"]


def test_a_built_pipe_knows_the_sizes_of_batches() -> None:
    """Which a backend may only say once it is built."""
    with fastpipe.Pipe({"a": {"backend": Eight, "next": "b"}, "b": {"backend": "Pow"}}) as pipe:
        assert str(pipe.graph()).splitlines() == ["▼ a  Eight  ×1 · batch 1–8", "■ b  Pow  ×1 · batch 1"]
    assert str(picture_of({"a": {"backend": Eight}})) == "■ a  Eight  ×1"


def test_the_demo_can_be_drawn_without_its_models(repository_root: Path) -> None:
    """The files it names need not be there."""
    pytest.importorskip("cv2", reason="the demo's backends need OpenCV")
    pytest.importorskip("onnxruntime", reason="the demo's backends need ONNX Runtime")
    pytest.importorskip("pyclipper", reason="the demo's backends need pyclipper")
    configs = load(repository_root / "examples" / "ocr" / "ocr.toml", {}).nodes
    text = str(Picture(configs, compile_graph(configs, jumps_of(configs))))
    assert "● │ recognise" not in text
    assert "│ ■ recognise" in text


# ---- geometry --------------------------------------------------------------------------------------------------


def random_nodes(seed: int, count: int = 14) -> dict[str, dict[str, Any]]:
    """Return nodes that make a graph, with joins."""
    choose = random.Random(seed)
    names = [f"n{index}" for index in range(choose.randint(2, count))]
    parents = {
        name: [other for other in names[max(0, index - 5) : index] if choose.random() < 0.35]
        for index, name in enumerate(names)
    }
    nodes: dict[str, dict[str, Any]] = {}
    for name in names:
        node: dict[str, Any] = {"backend": "Identity", "next": [other for other in names if name in parents[other]]}
        if len(parents[name]) > 1:
            first, *rest = parents[name]
            node["map"] = {first: {"result": "data"}, **{other: {"result": other} for other in rest}}
        nodes[name] = node
    return nodes


def rails_of(text: str) -> set[tuple[str, str]]:
    """Follow the rails down and return which node leads to which."""
    up, down, left, right = "│┊├┤┴┼╯╰", "│┊├┤┬┼╮╭", "─┄┤┬┴┼╮╯", "─┄├┬┴┼╭╰"
    edges: set[tuple[str, str]] = set()
    above: dict[int, set[str]] = {}
    for line in text.splitlines():
        marks = re.match(r"[│┊├┤┬┴┼╮╭╯╰─┄●■▼ ]*", line)
        drawn = "" if marks is None else marks[0]
        node = re.search(r"[●■▼]", drawn)
        below: dict[int, set[str]] = {}
        if node is not None:
            name = line[marks.end() :].split()[0] if marks else ""
            edges |= {(source, name) for source in above.get(node.start(), ())}
            below = {column: sources for column, sources in above.items() if column != node.start()}
            below[node.start()] = {name}
        else:
            for piece in horizontal_pieces(drawn, left, right):
                arriving = set().union(*(above.get(column, set()) for column in piece if drawn[column] in up))
                for column in piece:
                    if drawn[column] in down:
                        below[column] = arriving if len(piece) > 1 else above.get(column, set())
            # A rail that passes keeps what runs on it.
            for column, mark in enumerate(drawn):
                if mark in "│┊":
                    below[column] = above.get(column, set())
        above = {column: sources for column, sources in below.items() if sources}
    return edges


def horizontal_pieces(drawn: str, left: str, right: str) -> Iterator[list[int]]:
    """Yield the columns that a horizontal line connects; rails that it passes under are none of them."""
    piece: list[int] = []
    for column, mark in enumerate(drawn):
        if mark in "│┊":
            continue
        if mark in left and piece:
            piece.append(column)
        elif mark in left + right:
            piece = [column]
        if piece and mark not in right:
            yield piece
            piece = []


def test_the_rails_can_be_followed() -> None:
    """The helper of the test above, on a drawing made by hand."""
    drawing = "▼ a\n├─╮\n● │ b\n├─│─╮\n│ ● │ c\n├─╯ │\n│   ■ d\n■ e"
    assert rails_of(drawing) == {("a", "b"), ("a", "c"), ("b", "d"), ("b", "e"), ("c", "e")}


def random_drawing(seed: int) -> tuple[list[Size], list[Line], Layout]:
    """Lay out a random graph, circles included, with labels at every second line."""
    choose = random.Random(seed)
    count = choose.randint(1, 25)
    sizes = [Size(choose.uniform(40, 250), choose.uniform(15, 60), choose.uniform(15, 60)) for _ in range(count)]
    lines = []
    for index in range(count):
        for other in range(count):
            if index != other and choose.random() < (0.12 if index < other <= index + 6 else 0.008):
                label = (choose.uniform(30, 160), choose.uniform(14, 40)) if choose.random() < 0.5 else (0.0, 0.0)
                lines.append(Line(index, other, *label))
    return sizes, lines, lay_out(sizes, lines)


def points_on(points: tuple[tuple[float, float], ...]) -> Iterator[tuple[float, float]]:
    """Yield points of a line as it is drawn: it swings between those given, and is vertical in each."""
    for (x1, y1), (x2, y2) in pairwise(points):
        middle = (y1 + y2) / 2
        for step in range(13):
            t = step / 12
            a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
            yield (a + b) * x1 + (c + d) * x2, a * y1 + (b + c) * middle + d * y2


@pytest.mark.parametrize("seed", range(60))
def test_nothing_covers_anything_else(seed: int) -> None:
    """No two boxes or labels overlap, and no line runs through a box or another line's label."""
    sizes, lines, layout = random_drawing(seed)
    boxes = [
        (x - size.width / 2, y - size.above, x + size.width / 2, y + size.below)
        for size, (x, y) in zip(sizes, layout.boxes, strict=True)
    ]
    labels = {
        number: (
            x - line.label_width / 2,
            y - line.label_height / 2,
            x + line.label_width / 2,
            y + line.label_height / 2,
        )
        for number, (line, (x, y)) in enumerate(zip(lines, layout.labels, strict=True))
        if line.label_height
    }
    everything = [*boxes, *labels.values()]
    for index, (left, top, right, bottom) in enumerate(everything):
        assert left >= -0.01
        assert right <= layout.width + 0.01
        assert top >= -0.01
        assert bottom <= layout.height + 0.01
        for other in everything[:index]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
    for number, (line, points) in enumerate(zip(lines, layout.lines, strict=True)):
        for index, end in ((line.source, points[0]), (line.target, points[-1])):
            left, top, right, bottom = boxes[index]
            assert left < end[0] < right
            assert min(abs(end[1] - top), abs(end[1] - bottom)) < 0.01
        others = [*boxes, *(label for which, label in labels.items() if which != number)]
        for x, y in points_on(points):
            for left, top, right, bottom in others:
                assert not (left + 0.01 < x < right - 0.01 and top + 0.01 < y < bottom - 0.01)


def test_the_same_graph_always_looks_the_same() -> None:
    """A drawing in a repository changes only when the graph does."""
    assert picture_of(random_nodes(3)).svg() == picture_of(random_nodes(3)).svg()


def test_a_node_that_restarts_at_itself() -> None:
    """A loop beside its box."""
    svg = picture_of({"a": {"backend": "Identity", "restart": "a", "filter": "or"}}).svg()
    assert texts_in(svg).count("restart") == 1


# ---- kinds, files, numbers ---------------------------------------------------------------------------------------


def test_the_legend_has_the_kinds_that_are_there_and_no_others() -> None:
    """A graph of basic steps, each followed by the next, needs none."""
    nodes = {
        "crop": {"backend": "S[Identity,CropMat]", "next": "parts"},
        "parts": {"backend": "MapReduce", "jump": "own"},
        "own": {"backend": Eight},
    }
    legend = ["image", "sub-graph", "code of your own", "runs a sub-graph", "requests enter", "requests end"]
    pytest.importorskip("cv2", reason="CropMat needs OpenCV")
    assert texts_in(picture_of(nodes).svg())[-len(legend) :] == legend
    assert "requests enter" not in texts_in(picture_of(random_nodes(3)).svg())
    assert "stroke:#1f9aa5" in picture_of(nodes).mermaid()
    assert 'color="#1f9aa5"' in picture_of(nodes).dot()


def test_a_model_has_the_name_of_its_file(tmp_path: Path) -> None:
    """In the text, the drawing and the page; without the folders, which are nobody else's business."""
    pytest.importorskip("onnxruntime", reason="OnnxTensor needs ONNX Runtime")
    model = tmp_path / "a <very> long_name_of_a_model-with-2.0_versions.onnx"
    model.touch()
    picture = picture_of({"model": {"backend": "S[Identity,OnnxTensor]", "model": str(model)}})
    assert f"  {model.name}  " in str(picture)
    assert "".join(texts_in(picture.svg())).count(model.name.replace(" ", "")) == 0  # it breaks at blanks
    assert model.name in " ".join(texts_in(picture.svg())).replace("- ", "-").replace("_ ", "_")
    assert html.escape(model.name) in picture.html()
    assert str(tmp_path) not in picture.html() + picture.dot() + picture.mermaid() + str(picture)


def test_numbers_stand_in_the_nodes() -> None:
    """Of what the pipe has done since it was built, or in an interval; where nothing has run, that alone."""
    with fastpipe.Pipe({"a": {"backend": "Identity", "max": 4, "next": "b"}, "b": {"backend": "Pow"}}) as pipe:
        assert "0 requests" in texts_in(pipe.graph(stats=True).svg())
        for value in range(5):
            pipe({"data": value})
        earlier = pipe.stats()
        with pytest.raises(TypeError):
            pipe({"data": "no number"})
        lines = texts_in(pipe.graph(stats=True).svg())
        assert "6 requests" in lines
        assert "6 requests · 1 failed" in lines
        assert "queue 0 · batch 1 of 4" in lines
        assert sum(line.startswith("p99 ") and line.endswith(" run") for line in lines) == 2
        assert any("/s · 1 failed" in line for line in texts_in(pipe.graph(stats=pipe.stats(since=earlier)).svg()))
        brief = texts_in(pipe.graph(stats=True).svg(is_brief=True))
        assert "Pow" not in brief
        assert "6 requests · 1 failed" in brief
        assert "requests" not in str(pipe.graph())


# ---- light and dark, PNG -----------------------------------------------------------------------------------------


def test_a_drawing_follows_its_page_or_is_for_one() -> None:
    """Each element says both colours itself; who knows none of it has those of a light page."""
    picture = picture_of(VISION)
    both, light, dark = picture.svg(), picture.svg(dark=False), picture.svg(dark=True)
    assert 'fill="#f6f8fa" stroke="#8c959f" style="fill:light-dark(#f6f8fa,#161b22);stroke:light-dark(' in both
    assert 'style="color-scheme:light dark"' in both
    assert "style" not in light + dark
    assert 'fill="#161b22"' in dark
    assert 'fill="#161b22"' not in light


def test_a_png_is_as_large_as_asked_for_and_has_text() -> None:
    """On white, or on dark."""
    pytest.importorskip("resvg_py", reason="PNGs need resvg-py")
    picture = picture_of(VISION)
    root = ElementTree.fromstring(picture.svg())
    sizes = []
    for scale, dark in ((1.0, False), (2.0, True)):
        try:
            png = picture.png(scale=scale, dark=dark)
        except fastpipe.PipeError as error:
            pytest.skip(f"{error}")
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        sizes.append((int.from_bytes(png[16:20]), int.from_bytes(png[20:24])))
    width, height = (float(root.attrib[side]) for side in ("width", "height"))
    assert sizes == [(width, height), (2 * width, 2 * height)]
    for scale in (0.0, -1.0, float("nan"), 1e6):
        with pytest.raises(fastpipe.PipeError, match="scale may be up to"):
            picture.png(scale=scale)


def test_a_png_without_the_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of the extra."""
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(fastpipe.MissingExtra, match=r"pip install 'fastpipe-engine\[picture\]'"):
        picture_of(VISION).png()


# ---- what is too wide --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 20, 90])
def test_a_wide_level_is_wrapped(count: int) -> None:
    """A fan-out of any width gives a picture that a screen shows, with its labels; a narrow one stays as it is."""
    names = [f"head_{index}" for index in range(count)]
    takes = {name: {"result": name} for name in names[1:]}
    nodes = {
        "in": {"backend": "Identity", "next": names},
        **{name: {"backend": "Pow", "next": "join"} for name in names},
        "join": {"backend": "Identity", "map": {names[0]: {"result": "data"}, **takes}},
    }
    root = ElementTree.fromstring(picture_of(nodes).svg())
    assert float(root.attrib["width"]) < (2000 if count <= 20 else 6000)
    rows = {
        group.find(f"{SVG}rect").attrib["y"]  # type: ignore[union-attr]
        for group in root.iter(f"{SVG}g")
        if (group.findtext(f"{SVG}text") or "").startswith("head_")
    }
    assert len(rows) == {3: 1, 20: 2, 90: 7}[count]


def test_graphs_beside_each_other_are_wrapped() -> None:
    """Many small ones are not one long row."""
    root = ElementTree.fromstring(picture_of({f"node_{index}": {"backend": "Pow"} for index in range(60)}).svg())
    assert float(root.attrib["width"]) < 1600
    assert float(root.attrib["height"]) > 300
