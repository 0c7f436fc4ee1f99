"""The command ``fastpipe``: what it says about files, and its exit status."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from fastpipe import Pipe
from fastpipe.cli.check import check
from fastpipe.cli.main import main
from fastpipe.cli.terminal import Escaping
from fastpipe.errors import AT_KEY, ConfigError, Mistake

GOOD = '[a]\nbackend = "Identity"\nnext = "b"\n\n[b]\nbackend = "Pow"\n'


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's folder is the working directory, and the search path is put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def checked(text: str, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, list[str]]:
    """Check a file with this text; return the exit status and what is said, line by line."""
    Path("pipe.toml").write_text(text, encoding="utf-8")
    status = main(["check", "pipe.toml", *options])
    said = capsys.readouterr()
    assert said.err == ""
    return status, said.out.splitlines()


# ---- check -----------------------------------------------------------------------------------------------------


def test_a_file_without_mistakes(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Is said to have none, and how many nodes."""
    assert checked(GOOD, capsys) == (0, ["pipe.toml: no mistakes, 2 nodes"])


@pytest.mark.parametrize(
    ("text", "said", "caret"),
    [
        pytest.param(
            '[a]\nbackend = "S[Identity,Pov]"\n',
            "2:23: node 'a': backend: no backend is named 'Pov'; did you mean 'Pow'?",
            "                      ^~~",
            id="a backend among several",
        ),
        pytest.param(
            '[a]\nbackend = "Pov"  # a comment\n',
            "2:12: node 'a': backend: no backend is named 'Pov'; did you mean 'Pow'?",
            "           ^~~",
            id="a comment behind the value",
        ),
        pytest.param(
            '# one\u2028line\n[a]\nbackend = "Pov"\n',
            "3:12: node 'a': backend: no backend is named 'Pov'; did you mean 'Pow'?",
            "           ^~~",
            id="a separator that ends no line of TOML",
        ),
        pytest.param(
            '[a]\nbackend = "S[Pow[,Add]"\n',
            "2:18: node 'a': backend: expected the name of a backend, found ',' in 'S[Pow[,Add]'",
            "                 ^",
            id="a column inside the brackets is one of the file",
        ),
        pytest.param(
            '[a]\nbackend = "S[\\u0041dd(key=\\"k\\",value=1),Pow[]"\n',
            "2:46: node 'a': backend: expected the name of a backend, found ']' in 'S[Add(key=\"k\",value=1),Pow[]'",
            "                                             ^",
            id="escapes are longer than what they stand for",
        ),
        pytest.param(
            '[a]\nbackend = "S"\n"S::backend" = "Pow["\n',
            "3:21: node 'a': backend: expected the name of a backend, found the end in 'Pow['",
            "                    ^",
            id="brackets under a scoped key",
        ),
        pytest.param(
            '[a]\nbackend = "S"\n"S::backend" = "Pov"\n',
            "3:17: node 'a': backend: no backend is named 'Pov'; did you mean 'Pow'?",
            "                ^~~",
            id="a backend under a scoped key",
        ),
        pytest.param(
            '[a]\nbackend = "Identity"\nnext = "b,labels"\n[b]\nbackend = "Pow"\n[label]\nbackend = "Pow"\n',
            "3:11: node 'a': next: no node is named 'labels'; did you mean 'label'?",
            "          ^~~~~~",
            id="one name of several",
        ),
        pytest.param(
            '[a]\nbackend = "Identity"\nnext = [ "b", "ü" ]\n[b]\nbackend = "Pow"\n',
            "3:16: node 'a': next: no node is named 'ü'",
            "               ^",
            id="one name of a list",
        ),
        pytest.param(
            '[a]\nbackend = "Pow"\n\tmx = 3\n',
            "3:2: node 'a': nobody takes 'mx'; did you mean 'max'?",
            "\t^~",
            id="a key, behind a tab",
        ),
        pytest.param(
            '[a]\nbackend = "Pow"\nmax = 0\n',
            "3:7: node 'a': max: must be a number between 1 and 1048576, or a shape such as '4x3x224x224', got 0",
            "      ^",
            id="a value",
        ),
        pytest.param(
            '"ü" = {backend = "Pow", filter = "日本語"}\n',
            "1:35: node 'ü': no filter is named '日本語'",
            "                                  ^~~~~~",
            id="an inline table, and wide characters",
        ),
        pytest.param(
            '[a]\nbackend = "Sleep"\n"Sleep::time" = "long"\n',
            "3:18: node 'a': Sleep::time: must be",
            "                 ^~~~",
            id="a scoped key",
        ),
        pytest.param('[m]\nbackend = "Jump"\n', "1:2: node 'm': jump: Jump needs it", " ^", id="a key that is missing"),
        pytest.param(
            "[a]\nnext = 'b'\n[b]\nbackend = 'Pow'\n", "1:2: node 'a': it has no backend", " ^", id="no backend"
        ),
        pytest.param(
            'max = "x"\n[a]\nbackend = "Pow"\n[b]\nbackend = "Pow"\n',
            "1:8: defaults: max: must be",
            "       ^",
            id="a default is said once",
        ),
        pytest.param(
            'bogus = 1\n[a]\nbackend = "Pow"\n',
            "1:1: defaults: no node takes 'bogus'",
            "^~~~~",
            id="a default that nobody takes",
        ),
        pytest.param(
            '[global]\nmin = "x"\n[a]\nbackend = "Pow"\n',
            "2:8: defaults: min: must be",
            "       ^",
            id="the table global",
        ),
        pytest.param(
            'backend = "Pow"\nmax = "x"\n', "2:8: node 'main': max: must be", "       ^", id="one node without a table"
        ),
        pytest.param(
            '[a]\nbackend = "Pow"\n[a.2]\nfilter = "nope"\n',
            "4:11: node 'a.2': no filter is named 'nope'",
            "          ^~~~",
            id="a logical node without quotes",
        ),
        pytest.param('["a b"]\nbackend = "Pow"\n', "1:2: node 'a b': no name for a node", " ^~~~~", id="a name"),
        pytest.param('[a]\nbackend = "Pow\n', "2:15: not TOML: Illegal character '\\n'", " " * 14 + "^", id="no TOML"),
        pytest.param("[a]\nbackend =", "2:10: not TOML: Invalid value", " " * 9 + "^", id="no TOML, at the end"),
        pytest.param(
            '[a]\nbackend = "Pow"\nnext = "b"\n[b]\nbackend = "Pow"\nnext = "a"\n[c]\nbackend = "Pow"\n',
            "6:8: the graph has a cycle: a -> b -> a",
            "       ^~~",
            id="a cycle",
        ),
        pytest.param(
            '[a]\nbackend = "Pow"\n[b]\nbackend = "Pow"\nmap = "a[result:data]"\n',
            "5:8: node 'b': map: 'a' does not come before 'b'",
            "       ^",
            id="a map",
        ),
        pytest.param(
            '[a]\nbackend = """\nS[Pow,\nPov]"""\n',
            "4:1: node 'a': backend: no backend is named 'Pov'",
            "^~~",
            id="a string of several lines",
        ),
        pytest.param(
            '[a]\nbackend = """\nS[Pow, \\\n  Pow[]"""\n',
            "4:7: node 'a': backend: expected the name of a backend, found ']' in 'S[Pow, Pow[]'",
            "      ^",
            id="a column in a string of several lines",
        ),
    ],
)
def test_a_mistake_has_its_place(
    text: str, said: str, caret: str, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """File, line, column, the message, the line, and a caret below what is meant."""
    pytest.importorskip("tree_sitter_toml", reason="without tree-sitter there are no places")
    status, lines = checked(text, capsys)
    assert status == 1
    assert lines[0].startswith(f"pipe.toml:{said}"), lines[0]
    line = int(said.partition(":")[0])
    assert lines[1] == f"{line:>5} | {text.split(chr(10))[line - 1]}"
    assert lines[2] == f"      | {caret}"
    assert lines[3:] == ["pipe.toml: 1 mistake"]


def test_a_byte_order_mark_is_not_looked_at(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As Windows editors write it, with their ends of lines: neither to check a file nor to build a pipe from it."""
    pytest.importorskip("tree_sitter_toml", reason="without tree-sitter there are no places")
    Path("good.toml").write_bytes(b'\xef\xbb\xbf[a]\r\nbackend = "Pow"\r\n')
    Path("bad.toml").write_bytes(b'\xef\xbb\xbf[a]\r\nbackend = "Pow"\r\nnext = "b"\r\n')
    assert main(["check", "good.toml"]) == 0
    with Pipe("good.toml") as pipe:
        assert pipe({"data": 3})["result"] == 9
    capsys.readouterr()
    assert main(["check", "bad.toml"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "bad.toml:3:9: node 'a': next: no node is named 'b'",
        '    3 | next = "b"',
        "      |         ^",
        "bad.toml: 1 mistake",
    ]


def test_all_mistakes_in_the_order_of_the_file(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of nodes and those of the graph together, and warnings between them."""
    pytest.importorskip("tree_sitter_toml", reason="without tree-sitter there are no places")
    text = (
        '[a]\nbackend = "Identity"\nmax = 0\nnext = "b,c"\n[b]\nbackend = "Pow"\nnext = "d"\n'
        '[c]\nbackend = "Pow"\nnext = "d"\n["c.2"]\nmax = 3\n[d]\nbackend = "Add"\n'
    )
    status, lines = checked(text, capsys)
    places = [line.split(" ")[0] for line in lines if line.startswith("pipe.toml:")]
    assert (status, places) == (
        1,
        [*(f"pipe.toml:{place}:" for place in ("3:7", "12:1", "13:2", "13:2", "13:2")), "pipe.toml:"],
    )
    text = "\n".join(lines)
    assert "12:1: warning: node 'c.2': it shares the instances of 'c'; its own 'max' is ignored" in text
    assert "node 'd' joins 'b', 'c': it needs a map" in text
    assert "node 'd': key: Add needs it" in text
    assert lines[-1] == "pipe.toml: 4 mistakes, 1 warning"


def test_all_mistakes_of_the_table_for_servers(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each at its own key, whichever way of TOML that is written; ``fastpipe serve`` says the same."""
    pytest.importorskip("tree_sitter_toml", reason="without tree-sitter there are no places")
    text = (
        '[a]\nbackend = "Identity"\n'
        "[serve]\nmax_batch_size = -1\nbatch = 3\n"
        '[serve.inputs]\nx = { datatype = "float", labells = [], shape = [-2] }\nz.datatype = "BYTES"\n'
        '[serve.inputs.y]\nshape = 3\nkey = "z"\n'
        '[serve.outputs.o]\ndatatype = "FP32"\ntext = true\nshape = [1]\n'
    )
    status, lines = checked(text, capsys)
    assert status == 1
    says = [line for line in lines if line.startswith("pipe.toml:")]
    begins = (
        "pipe.toml:4:18: configuration: serve.max_batch_size: must be a whole number from 0 to 1048576, got -1",
        "pipe.toml:5:1: configuration: serve: 'batch' is none of max_batch_size, inputs, outputs",
        "pipe.toml:7:18: configuration: serve.inputs.x.datatype: must be one of BOOL, ",
        "pipe.toml:7:27: configuration: serve.inputs.x: 'labells' is none of datatype, ",
        "pipe.toml:7:49: configuration: serve.inputs.x.shape: must be a list: the size of each axis of one request, ",
        "pipe.toml:8:1: configuration: serve.inputs.z: it has no shape",
        "pipe.toml:9:2: configuration: serve.inputs.y: it has no datatype",
        "pipe.toml:10:9: configuration: serve.inputs.y.shape: must be a list: the size of each axis of one request, ",
        "pipe.toml:11:7: configuration: serve.inputs.y.key: 'z' is the key of 'z' already: one would overwrite",
        "pipe.toml:14:8: configuration: serve.outputs.o.text: must be true or false, and true only of BYTES, got True",
        "pipe.toml: 10 mistakes",
    )
    assert [said[: len(begin)] for said, begin in zip(says, begins, strict=True)] == list(begins)
    pytest.importorskip("uvicorn", reason="the extra serve is not installed here")
    assert main(["serve", "pipe.toml", "--http", "127.0.0.1:0", "--grpc", "none"]) == 1
    captured = capsys.readouterr()
    assert [line for line in captured.err.splitlines() if line.startswith("pipe.toml:")] == says


def test_a_mistake_is_where_its_table_begins(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where a node is written with dots only."""
    pytest.importorskip("tree_sitter_toml", reason="without tree-sitter there are no places")
    status, lines = checked('b.backend = "Pow"\na.max = 2\na.min = 1\n', capsys)
    assert (status, lines[:2]) == (1, ["pipe.toml:2:1: node 'a': it has no backend", "    2 | a.max = 2"])


def test_wiring_that_cannot_be_read_gives_no_further_mistakes(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A join whose map cannot be read is not said to have none."""
    text = '[a]\nbackend = "Pow"\nnext = "c"\n[b]\nbackend = "Pow"\nnext = "c"\n[c]\nbackend = "Pow"\nmap = "a["\n'
    status, lines = checked(text, capsys)
    assert status == 1
    assert "pipe.toml: 1 mistake" in lines
    assert "node 'c': map: " in lines[0]
    assert "expected 'node[key there:key here]'" in lines[0]


def test_warnings_fail_only_where_that_is_asked_for(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For CI that wants none."""
    text = GOOD + '["b.2"]\nmax = 2\n'
    assert checked(text, capsys)[0] == 0
    status, lines = checked(text, capsys, "--strict")
    assert status == 1
    assert "pipe.toml: 1 warning" in lines


def test_a_library_that_is_missing(
    in_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is a mistake with the name of what to install, and no traceback."""
    for name in [name for name in sys.modules if name.startswith("fastpipe.backends.model.onnx")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    status, lines = checked('[a]\nbackend = "OnnxTensor"\nmodel = "m.onnx"\n', capsys)
    assert status == 1
    assert "node 'a': backend: OnnxTensor needs " in lines[0]
    assert "pip install 'fastpipe-engine[cpu]'" in lines[0]


def test_without_tree_sitter(
    in_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same mistakes without their places, and how to get these; a mistake of TOML itself has its place anyway."""
    monkeypatch.setitem(sys.modules, "tree_sitter", None)
    assert checked('[a]\nbackend = "Pov"\n', capsys) == (
        1,
        [
            "pipe.toml: node 'a': backend: no backend is named 'Pov'; did you mean 'Pow'?",
            "pipe.toml: 1 mistake",
            "lines and columns are known with: pip install 'fastpipe-engine[cli]'",
        ],
    )
    assert checked("[a\n", capsys)[1][0].startswith("pipe.toml:1:3: not TOML: ")
    assert checked(GOOD, capsys) == (0, ["pipe.toml: no mistakes, 2 nodes"])


def test_a_model_file_that_is_not_there(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Paths that have to be there are looked at, in every step, beside the file; without `max` there is a warning."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tree_sitter_toml", reason="without tree-sitter there are no places")
    text = '[a]\nbackend = "S[Pow,OnnxTensor]"\nmodel = "there.onnx"\n'
    text += '[b]\nbackend = "OnnxTensor"\nmodel = "m.onnx"\nmax = 4\n'
    Path("there.onnx").write_bytes(b"x")
    status, lines = checked(text + '[c]\nbackend = "SaveMat"\nsave_dir = "later"\n', capsys)
    said = [line for line in lines if line.startswith("pipe.toml:")]
    assert status == 1
    assert said[0].startswith("pipe.toml:1:2: warning: node 'a': max: it is not set, so OnnxTensor runs one request")
    assert "pipe.toml:6:9: node 'b': model: OnnxTensor needs it, and there is no file" in said[1]
    assert said[2] == "pipe.toml: 1 mistake, 1 warning"


def test_modules_beside_the_file_are_found(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever the command is run from; `sys.path` is as before afterwards."""
    folder = in_folder / "elsewhere"
    folder.mkdir()
    (folder / "lies_beside_it.py").write_text("def half(data):\n    return data / 2\n")
    (folder / "pipe.toml").write_text('[a]\nbackend = "lies_beside_it:half"\n')
    before = list(sys.path)
    assert main(["check", "elsewhere/pipe.toml"]) == 0
    assert "no mistakes, 1 node" in capsys.readouterr().out
    assert [path for path in sys.path if path not in before] in ([], [os.getcwd()])


@pytest.mark.parametrize(
    "words", [["graph"], ["run", "--data", "8"], ["debug", "--data", "8"]], ids=lambda words: words[0]
)
def test_every_command_finds_modules_beside_its_file(
    words: list[str], in_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `check` does, behind all others; also those that are imported only when a request runs."""
    name, later = f"beside_for_{words[0]}", f"later_for_{words[0]}"
    folder = in_folder / "elsewhere"
    folder.mkdir()
    (folder / f"{name}.py").write_text(
        f"def half(data):\n    import {later}\n    return int(data) / {later}.TWO\n",
    )
    (folder / f"{later}.py").write_text("TWO = 2\n")
    (folder / "pipe.toml").write_text(f'[a]\nbackend = "{name}:half"\n')
    monkeypatch.setattr("sys.stdin", io.StringIO("run\nprint result\n"))
    assert main([words[0], "elsewhere/pipe.toml", *words[1:]]) == 0
    assert sys.path[-1] == str(folder)
    said = capsys.readouterr().out
    assert ("half" if words[0] == "graph" else "4.0") in said


def test_building_it_as_well(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What only a constructor can refuse is a mistake with `--build`, and not without."""
    Path("refuses.py").write_text(
        "import fastpipe\n\nclass Refuses(fastpipe.Backend):\n    def __init__(self, *, size: int = 1):\n"
        "        if size > 3:\n            raise ValueError(f'{size} is too large')\n"
        "    def forward(self, batch): ...\n"
    )
    text = '[a]\nbackend = "refuses:Refuses"\nsize = 4\n'
    assert checked(text, capsys)[0] == 0
    status, lines = checked(text, capsys, "--build")
    assert status == 1
    assert "ValueError: 4 is too large" in lines[0]
    assert "node 'a'" in lines[0]
    assert checked(text.replace("4", "3"), capsys, "--build")[0] == 0


def test_several_files_one_of_which_is_not_there(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are checked all the same."""
    Path("good.toml").write_text(GOOD)
    Path("latin.toml").write_bytes(b'a = "\xe9"\n')
    assert main(["check", "nowhere.toml", "good.toml", "latin.toml"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("nowhere.toml: cannot be read: ")
    assert "good.toml: no mistakes, 2 nodes" in lines
    assert lines[-2].startswith("latin.toml: cannot be read: 'utf-8' codec")


def test_modules_beside_which_the_command_is_run(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Are found, as with ``python -m``; one that raises is a mistake, not a traceback."""
    Path("our_backends.py").write_text("def double(x):\n    return 2 * x\n")
    Path("our_broken.py").write_text("1 / 0\n")
    assert checked('[a]\nbackend = "our_backends:double"\n', capsys)[0] == 0
    status, lines = checked('[a]\nbackend = "our_broken:double"\n', capsys)
    assert (status, lines[0]) == (
        1,
        "pipe.toml: importing what it names raised ZeroDivisionError: division by zero",
    )


def test_a_mistake_knows_its_node_and_key() -> None:
    """Also where the caller of ``Pipe`` wants to know."""
    joins = "node 'a' joins 'b', 'c': it needs a map"
    for mistake, sentence in (
        (Mistake("must be", "a", "max"), "node 'a': max: must be"),
        (Mistake("must be", "it's", "A::key", "x"), 'node "it\'s": A::key: must be'),
        (Mistake("expected ']'", "a", "backend", 3), "node 'a': backend: column 3: expected ']'"),
        (Mistake("nobody takes 'mx'", "a", "mx", AT_KEY), "node 'a': nobody takes 'mx'"),
        (Mistake("it needs a map", "a", sentence=joins), joins),
        (Mistake("configuration: names are text"), "configuration: names are text"),
    ):
        assert mistake == sentence
        again = Mistake(mistake)
        assert (again, again.text) == (mistake, mistake.text)
        assert (again.node, again.key, again.part) == (mistake.node, mistake.key, mistake.part)
    told = Mistake("nobody takes 'mx'", "a", "mx", AT_KEY)
    assert [(each.node, each.key) for each in ConfigError("x", told).problems] == [(None, None), ("a", "mx")]
    with pytest.raises(ConfigError) as raised:
        Pipe(backend="Pow", max=0, mx=1)
    assert [(each.node, each.key) for each in raised.value.problems] == [("main", "max"), ("main", "mx")]


# ---- graph -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("out.txt", "▼ a"),
        ("out.svg", "<svg "),
        ("out.html", "<!DOCTYPE html>"),
        ("out.mmd", "flowchart TD"),
        ("out.dot", "digraph "),
        ("out.gv", "digraph "),
    ],
)
def test_a_picture_in_a_file(name: str, begins: str, in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it is follows from how the file's name ends; ``--format`` says it for any name."""
    Path("pipe.toml").write_text(GOOD)
    assert main(["graph", "pipe.toml", "-o", name]) == 0
    drawn = Path(name).read_text(encoding="utf-8")
    assert drawn.startswith(begins)
    kind = {"gv": "dot"}.get(name[4:], name[4:])
    assert main(["graph", "pipe.toml", "-o", "out", "--format", kind]) == 0
    assert Path("out").read_text(encoding="utf-8") == drawn
    assert capsys.readouterr() == ("", "")


def test_a_picture_in_the_terminal(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As text."""
    Path("pipe.toml").write_text(GOOD + '["b.2"]\nmax = 2\n')
    assert main(["graph", "pipe.toml"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[:2] == ["▼ a    Identity  ×1", "■ b    Pow  ×1"]
    assert said.err == ""


def test_a_terminal_that_knows_ascii_only(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines and marks have a stand-in there."""
    Path("pipe.toml").write_text(GOOD + '[c]\nbackend = "Jump"\njump = "d"\n[d]\nbackend = "Pow"\n')
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["graph", "pipe.toml"]) == 0
    assert raw.getvalue().decode().splitlines()[:2] == ["v a  Identity  x1", "# b  Pow  x1"]


def test_colours_where_there_is_a_terminal(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If rich is installed; brackets in messages are not taken for its markup."""
    pytest.importorskip("rich", reason="colours come from rich")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    Path("pipe.toml").write_text('[a]\nbackend = "S[red]"\n')
    raw = io.StringIO()
    raw.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", raw)
    assert main(["check", "pipe.toml"]) == 1
    assert "\x1b[" in raw.getvalue()
    assert "no backend is named 'red'" in raw.getvalue()


def test_a_picture_of_a_file_with_mistakes(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Says what is wrong, and which command says where."""
    Path("pipe.toml").write_text('[a]\nbackend = "Pov"\n')
    assert main(["graph", "pipe.toml"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "fastpipe graph: pipe.toml: node 'a': backend: no backend is named 'Pov'" in said.err
    assert "`fastpipe check pipe.toml` says where" in said.err


def test_a_place_that_cannot_be_written_to(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Is said in a line."""
    Path("pipe.toml").write_text(GOOD)
    assert main(["graph", "pipe.toml", "-o", "nowhere/out.svg"]) == 1
    assert capsys.readouterr().err.startswith("fastpipe: --output ")


def test_a_png_goes_to_a_file(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A terminal cannot show it; and a size that nothing can show is an error."""
    Path("pipe.toml").write_text(GOOD)
    with pytest.raises(SystemExit):
        main(["graph", "pipe.toml", "--format", "png"])
    assert "a PNG needs a file: -o graph.png" in capsys.readouterr().err
    pytest.importorskip("resvg_py", reason="PNGs need resvg-py")
    if main(["graph", "pipe.toml", "-o", "out.png", "--dark", "--scale", "1"]) == 1:
        pytest.skip(capsys.readouterr().err)
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")
    assert main(["graph", "pipe.toml", "-o", "out.png", "--scale", "1e9"]) == 1
    assert "scale may be up to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["draw"], "invalid choice: 'draw'"),
        (["check", "pipe.toml", "--biuld"], "check: error: unrecognized arguments: --biuld; did you mean '--build'?"),
        (["check"], "the following arguments are required: FILE"),
        (["graph", "pipe.toml", "-o", "out.pdf"], "'out.pdf' ends with none of .txt, .svg, .html, .htm, .png"),
        (["graph", "pipe.toml", "--format", "pdf"], "invalid choice: 'pdf'"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit status is 2."""
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert said in capsys.readouterr().err


CONTROL = "\x1b]0;title\x07\x9b2J\r\u202e"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_no_raw_control_character_of_a_file_reaches_the_terminal(
    is_terminal: bool, in_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its name, its text, its keys and what errors say of them, by every command."""
    if is_terminal:
        console = pytest.importorskip("rich.console", reason="colours come from rich")
        real = console.Console
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        # Without colours, all escapes that are left would be the file's.
        monkeypatch.setattr(
            console, "Console", lambda **_: real(file=sys.stdout, no_color=True, color_system=None, soft_wrap=True)
        )
    told = CONTROL.encode("unicode_escape").decode("ascii")
    in_toml = "".join(c if c == "\u202e" else f"\\u{ord(c):04x}" for c in CONTROL)
    bad, good = Path(f"bad{CONTROL}\nforged.toml"), Path(f"good{CONTROL}.toml")
    bad.write_text(f'["a{in_toml}"]\nbackend = "\u202eno{in_toml}"\nnext = "{in_toml}"\n# \x9b')
    good.write_text(f'["{in_toml}"]\nbackend = "Logger"\nmessage = "{in_toml}"\nmax = "x{in_toml}"\n')
    module = Path("our_raising_module.py")
    module.write_text(f"raise ValueError({CONTROL!r})")
    Path("raises.toml").write_text('[a]\nbackend = "our_raising_module:x"\n')
    fine = Path("fine.toml")
    fine.write_text('[a]\nbackend = "Identity"\n')
    monkeypatch.setattr("sys.stdin", io.StringIO(f"step{CONTROL}\nstep\nprint data\nbreak {CONTROL}\nrun\n"))
    for words in (
        ["check", str(bad), str(good), "raises.toml", f"absent{CONTROL}"],
        ["graph", str(bad)],
        ["graph", str(good)],
        ["graph", "fine.toml"],
        ["debug", str(good), "--data", "x"],
        ["debug", "raises.toml", "--data", "x"],
        ["debug", "fine.toml", "--data", CONTROL],
        ["debug", "fine.toml", "--data", f"@absent{CONTROL}"],
        ["debug", "fine.toml", "--data", "x", "--break", CONTROL],
        ["replay", f"absent{CONTROL}"],
    ):
        main(words)
        said = capsys.readouterr()
        written = said.out + said.err
        assert [c for c in written if not c.isprintable() and c not in "\n\t"] == [], words
        assert told in written or words == ["graph", "fine.toml"], words
        assert "\nforged" not in written


LOUD = f"""
import logging, sys, threading, warnings
import fastpipe

logging.getLogger("ours").warning({CONTROL!r})
warnings.warn({CONTROL!r})
sys.stderr.write({CONTROL!r})
thread = threading.Thread(target=lambda: [][{CONTROL!r}])
thread.start()
thread.join()

@fastpipe.backend
def raises(data):
    logging.getLogger("ours").error(data)
    raise ValueError(data)

def left():
    sys.exit({CONTROL!r})

def odd():
    raise GeneratorExit({CONTROL!r})

configuration = {{"backend": raises}}
"""


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["replay", "records", "--config", "loud.toml"], 0),
        (["replay", "records", "--pipe", "our_loud:configuration"], 0),
        (["replay", "records", "--trust"], 0),
        (["replay", "records", "--pipe", "our_loud:left"], 1),
        (["replay", "records", "--pipe", "our_loud:odd"], 1),
        (["replay", "records", "--pipe", f"our_loud:no{CONTROL}"], 1),
        (["debug", "loud.toml", "--data", CONTROL], 1),
        (["check", "loud.toml", "--build"], 0),
        (["check", "loud.toml", f"--{CONTROL}"], 2),
    ],
)
def test_no_raw_control_character_of_what_is_run_reaches_the_terminal(
    words: list[str], status: int, in_folder: Path
) -> None:
    """From what it logs, warns of, writes to stderr and raises, also in threads and to leave."""
    Path("our_loud.py").write_text(LOUD)
    Path("loud.toml").write_text('[a]\nbackend = "our_loud:raises"\n')
    command = [sys.executable, "-m", "fastpipe"]
    record = (
        "import fastpipe\n"
        "with fastpipe.Pipe('loud.toml') as pipe, pipe.record('records'):\n"
        f"    pipe.submit({{'data': {CONTROL!r}}}).exception(30)\n"
    )
    subprocess.run([sys.executable, "-c", record], check=True, capture_output=True, timeout=60)
    ran = subprocess.run(
        [*command, *words], input=f"print data\nstep{CONTROL}\nstep\n", capture_output=True, text=True, timeout=60
    )
    written = ran.stdout + ran.stderr
    assert [c for c in written if not c.isprintable() and c not in "\n\t"] == []
    assert CONTROL.encode("unicode_escape").decode("ascii") in written
    assert ran.returncode == status, written


def test_what_writes_to_an_escaped_stream_is_told_that_it_is_no_terminal() -> None:
    """It would write colours, of which only the escapes would be seen; lines are escaped as text is."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Escaping(Terminal())
    stream.writelines(["one\x1b[1m\n", "two\x07"])
    assert not stream.isatty()
    assert stream.getvalue() == "one\\x1b[1m\ntwo\\x07"


def test_as_a_process(tmp_path: Path) -> None:
    """``python -m fastpipe``: the exit status is the process's, and it survives a reader that leaves."""
    (tmp_path / "pipe.toml").write_text('[a]\nbackend = "Pov"\n')
    command = [sys.executable, "-m", "fastpipe", "check", "pipe.toml"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stderr) == (1, "")
    assert "did you mean 'Pow'?" in ran.stdout
    left = subprocess.run(
        f"'{sys.executable}' -m fastpipe schema | true", shell=True, cwd=tmp_path, capture_output=True, timeout=60
    )
    assert left.stderr == b""


def steps_of_checking(text: str) -> int:
    """Return how many of Python's instructions in fastpipe it takes to check a file: as many on any machine."""
    Path("pipe.toml").write_text(text, encoding="utf-8")
    count = 0

    def counted(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if not frame.f_globals["__name__"].startswith("fastpipe."):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return counted

    before = sys.gettrace()
    sys.settrace(counted)
    try:
        check(Path("pipe.toml"))
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    ("head", "name"),
    [
        pytest.param('[a]\nbackend = "Identity"\n', "zzqq{} = 1\n", id="keys of a node"),
        pytest.param("", '["zzqq{}.1"]\nfilter = "Run"\n', id="nodes to share instances with"),
    ],
)
def test_a_file_with_twice_as_many_unknown_names_takes_about_twice_as_long(
    head: str, name: str, in_folder: Path
) -> None:
    """Four times, if each mistake were looked for in the whole file. Counted, not timed."""
    check(Path("pipe.toml"))  # what is done once in a process
    few, many = (
        steps_of_checking(head + "".join(name.format(number) for number in range(1000, 1000 + count)))
        for count in (200, 400)
    )
    assert many < 3 * few


def test_one_long_line_is_shown_around_what_is_wrong(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not as a whole under each of its mistakes."""
    pytest.importorskip("tree_sitter_toml", reason="without tree-sitter there are no places")
    names = ",".join(f"zzqq{number}" for number in range(1000))
    status, lines = checked(f'[a]\nbackend = "Identity"\nnext = "é,{names}"\n', capsys)
    assert status == 1
    place = len('next = "é,') + names.index("zzqq500") + 1
    assert lines[3 * 501].startswith(f"pipe.toml:3:{place}: node 'a': next: no node is named 'zzqq500'")
    shown, caret = lines[3 * 501 + 1 : 3 * 501 + 3]
    assert len(shown) < 500
    assert shown[caret.index("^") : caret.index("^") + caret.count("^") + caret.count("~")] == "zzqq500"


def test_the_checker_leaves_nothing_running(in_folder: Path) -> None:
    """No backend is built: a constructor that raises does not matter."""
    Path("our_raising.py").write_text(
        "import fastpipe\n\n\nclass Never(fastpipe.Backend):\n    def __init__(self):\n        raise OSError\n\n"
        "    def forward(self, batch):\n        pass\n"
    )
    sys.path.insert(0, str(in_folder))
    Path("pipe.toml").write_text('[a]\nbackend = "our_raising:Never"\n')
    assert check(Path("pipe.toml")).findings == ()
