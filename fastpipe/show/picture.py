"""The picture of a graph: text for a terminal, SVG for a notebook, Mermaid and DOT for other tools, a page of HTML.

It is drawn from what was written and checked (:class:`NodeConfig`, :class:`Graph`), so a file can be drawn without
building any of its models. A pipe that is built adds what only its backends know: the size of the batches.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from fastpipe import filters
from fastpipe.config.described import NodeConfig
from fastpipe.config.graph import Graph, Source
from fastpipe.config.plan import StepPlan
from fastpipe.config.sub_graphs import entry_of, is_sub_graph
from fastpipe.show.layout import Line, Size, lay_out

__all__ = ["Picture"]

Kind = Literal["next", "map", "jump", "proxy", "restart"]


@dataclass(frozen=True)
class _Node:
    name: str
    backend: str
    details: tuple[str, ...]
    is_root: bool  # requests that name no node enter here
    is_leaf: bool
    is_part: bool  # only parts of requests come here, from a Jump or MapReduce


@dataclass(frozen=True)
class _Edge:
    source: int
    target: int
    kind: Kind
    label: str = ""


class Picture:
    """The nodes of a pipe and what leads from where to where.

    ``str(picture)`` is text, ``svg()``, ``mermaid()``, ``dot()`` and ``html()`` are strings in those languages, and a
    notebook shows the SVG. Solid: ``next``. Dashed: what a ``map`` takes from a node that is no parent. Dotted: a
    sub-graph, entered by a Jump or MapReduce, or the node that a Proxy runs. Dash-dotted: ``restart``. A label says
    which keys a ``map`` takes; "choice 1 of 2" is read if it has run, else the next one is.

    Args:
        configs: checked nodes.
        graph: of the same nodes.
        max_batches: by name, how many requests an instance of the built node takes at once.

    Thread-safety: immutable.
    """

    def __init__(
        self, configs: Sequence[NodeConfig], graph: Graph, max_batches: Mapping[str, int] | None = None
    ) -> None:
        followers = [node.next for node in graph.nodes]
        parts = _reached((target for node in graph.nodes for target in node.jumps), followers)
        whole = _reached(graph.roots, followers)
        # Hidden nodes are how proxies enter another one; they are drawn as edges.
        shown = [index for index, config in enumerate(configs) if not config.is_hidden]
        place = {index: number for number, index in enumerate(shown)}
        for index, config in enumerate(configs):
            if config.is_hidden:
                place[index] = next(place[other] for other in shown if configs[other].name == config.shares)
        self._nodes = tuple(
            _Node(
                name=_visible(configs[index].name),
                backend=_expression(configs[index]),
                details=tuple(_visible(detail) for detail in _details(configs[index], max_batches or {})),
                is_root=index in graph.roots,
                is_leaf=not followers[index],
                is_part=index in parts and index not in whole,
            )
            for index in shown
        )
        self._edges = tuple(
            replace(edge, source=place[edge.source], target=place[edge.target]) for edge in _edges(configs, graph)
        )

    def __str__(self) -> str:
        return "\n".join(f"{rails}{name}{rest}" for rails, name, rest in self.rows())

    def __repr__(self) -> str:
        return f"<fastpipe picture of {', '.join(node.name for node in self._nodes)}>"

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield the lines of the text as (lines of the drawing, a node's name or nothing, the rest)."""
        return _Rails(self._nodes, self._edges).rows()

    # ---- for other tools ---------------------------------------------------------------------------------------

    def mermaid(self) -> str:
        """Return the graph as a Mermaid flowchart."""
        lines = ["flowchart TD"]
        for index, node in enumerate(self._nodes):
            text = "<br>".join(filter(None, (f"<b>{_mermaid(node.name)}</b>", *map(_mermaid, _below_name(node)))))
            opening, closing = ("([", "])") if node.is_root or node.is_leaf else ("[", "]")
            lines.append(f'    n{index}{opening}"{text}"{closing}')
        for edge in self._edges:
            arrow = "-->" if edge.kind == "next" else "-.->"
            label = f'|"{_mermaid(edge.label)}"|' if edge.label else ""
            lines.append(f"    n{edge.source} {arrow}{label} n{edge.target}")
        for number, edge in enumerate(self._edges):
            if edge.kind != "next":
                style = f"stroke:{_COLOURS[edge.kind]},stroke-dasharray:{_DASHES[edge.kind]}"
                lines.append(f"    linkStyle {number} {style}")
        return "\n".join(lines) + "\n"

    def dot(self) -> str:
        """Return the graph in Graphviz's language."""
        lines = [
            "digraph fastpipe {",
            '    node [shape=box, style="rounded,filled", fillcolor="#f6f8fa", fontname="Helvetica", fontsize=11];',
            '    edge [fontname="Helvetica", fontsize=10, color="#7d8590"];',
        ]
        for index, node in enumerate(self._nodes):
            text = "\\n".join(map(_dot, (node.name, *_below_name(node))))
            outline = ", penwidth=2" if node.is_root else ", peripheries=2" if node.is_leaf else ""
            lines.append(f'    n{index} [label="{text}"{outline}];')
        for edge in self._edges:
            attributes = [f'label="{_dot(edge.label)}"'] if edge.label else []
            if edge.kind != "next":
                attributes += [f"style={_DOT_STYLES[edge.kind]}", f'color="{_COLOURS[edge.kind]}"']
            if edge.kind in ("proxy", "restart"):
                attributes.append("constraint=false")
            written = f" [{', '.join(attributes)}]" if attributes else ""
            lines.append(f"    n{edge.source} -> n{edge.target}{written};")
        return "\n".join([*lines, "}"]) + "\n"

    def svg(self) -> str:
        """Return the drawing as SVG, without a background: everything in it can be read on light and on dark."""
        return _Drawing(self._nodes, self._edges).svg()

    def _repr_svg_(self) -> str:
        return self.svg()

    def html(self, title: str = "fastpipe") -> str:
        """Return a page that needs no other file: the drawing, and a table of the nodes."""
        rows = []
        for index, node in enumerate(self._nodes):
            takes = "; ".join(self._takes(index))
            cells = (node.name, node.backend, " · ".join(node.details), takes, ", ".join(self._leads_to(index)))
            rows.append("<tr>" + "".join(f"<td>{_html(cell)}</td>" for cell in cells) + "</tr>")
        return _PAGE.format(title=_html(_visible(title)), svg=self.svg(), rows="\n".join(rows))

    def _takes(self, index: int) -> Iterator[str]:
        for edge in self._edges:
            if edge.target == index and edge.kind in ("next", "map") and edge.label:
                yield f"{self._nodes[edge.source].name}: {edge.label}"

    def _leads_to(self, index: int) -> Iterator[str]:
        words = {"next": "", "jump": "parts: ", "proxy": "proxy: ", "restart": "restart: "}
        for edge in self._edges:
            if edge.source == index and edge.kind in words:
                yield words[edge.kind] + self._nodes[edge.target].name


_COLOURS: dict[Kind, str] = {
    "next": "#7d8590",
    "map": "#3f86d4",
    "jump": "#a06cd5",
    "proxy": "#a06cd5",
    "restart": "#d9822b",
}
_DASHES: dict[Kind, str] = {"next": "none", "map": "6 4", "jump": "2 4", "proxy": "2 4", "restart": "8 3 2 3"}
_DOT_STYLES: dict[Kind, str] = {"map": "dashed", "jump": "dotted", "proxy": "dotted", "restart": "dashed"}

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 14px/1.5 system-ui, sans-serif; margin: 2rem; }}
.drawing {{ overflow-x: auto; margin-bottom: 2rem; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid #8888; }}
td:first-child {{ font-weight: 600; }}
</style>
</head>
<body>
<h1>{title}</h1>
<div class="drawing">
{svg}
</div>
<table>
<tr><th>node</th><th>backend</th><th></th><th>takes</th><th>leads to</th></tr>
{rows}
</table>
</body>
</html>
"""


# ---- what is shown ---------------------------------------------------------------------------------------------


def _reached(starts: Any, followers: Sequence[tuple[int, ...]]) -> set[int]:
    reached: set[int] = set()
    todo = list(starts)
    while todo:
        index = todo.pop()
        if index not in reached:
            reached.add(index)
            todo.extend(followers[index])
    return reached


def _edges(configs: Sequence[NodeConfig], graph: Graph) -> Iterator[_Edge]:
    """Yield every edge, those that requests take first."""
    for node in graph.nodes:
        for target in node.next:
            sources = graph.nodes[target].sources or ()
            label = "; ".join(_keys(source, node.index) for source in sources if node.index in source.indices)
            yield _Edge(node.index, target, "next", label)
    for node, config in zip(graph.nodes, configs, strict=True):
        for target in dict.fromkeys(node.jumps):
            jumper = "" if config.plan is None else _jumper(config.plan, configs[target].name)
            kind: Kind = "proxy" if configs[target].is_hidden else "jump"
            yield _Edge(node.index, target, kind, "" if jumper == _expression(config) else jumper)
    for node in graph.nodes:
        for source in node.sources or ():
            for index in source.indices:
                if index not in node.parents:
                    yield _Edge(index, node.index, "map", _keys(source, index))
    for node in graph.nodes:
        if node.restart is not None:
            yield _Edge(node.index, node.restart, "restart", "restart")


def _keys(source: Source, index: int) -> str:
    """Return what is taken from the node ``index``; where it is one of several of which one is read, also its place."""
    keys = ", ".join(_visible(there if there == here else f"{there} → {here}") for there, here in source.keys)
    count = len(source.indices)
    return keys if count == 1 else f"choice {source.indices.index(index) + 1} of {count}: {keys}"


def _jumper(plan: StepPlan, target: str) -> str:
    """Return the name of the step that leads to ``target``."""
    if entry_of(plan) == target:
        return _visible(plan.name.rpartition(":")[2])
    return next(filter(None, (_jumper(child, target) for child in plan.children)), "")


def _expression(config: NodeConfig) -> str:
    if config.plan is None:
        return f"shares {config.shares}" if config.shares else ""
    return _visible(_written(config.plan))


def _written(plan: StepPlan) -> str:
    """The notation again, with an imported object's name only."""
    filter = "" if plan.filter is None else f"({_filter_name(plan.filter)})"
    children = f"[{','.join(map(_written, plan.children))}]" if plan.children else ""
    return f"{filter}{plan.name.rpartition(':')[2]}{children}"


def _filter_name(filter: Callable[..., Any]) -> str:
    registered = (name for name, known in filters._FILTERS.items() if known is filter)
    return next(registered, None) or getattr(filter, "__name__", None) or type(filter).__name__


def _details(config: NodeConfig, max_batches: Mapping[str, int]) -> Iterator[str]:
    plan = config.plan
    if plan is not None and not is_sub_graph(plan):  # the engine sends parts on, without instances
        yield f"×{config.instance_num}"
        declared = config.max or plan.backend.max_batch
        size = max_batches.get(config.name, declared if isinstance(declared, int) else None)
        if size is not None:
            yield "batch 1" if size == 1 else f"batch 1–{size}"
        if isinstance(config.batching, str):
            if config.batching != "adaptive":
                yield f"batching {config.batching}"
        else:
            yield f"batching {type(config.batching).__name__}"
    if config.filter is not None:
        yield f"filter {(config.filter_name or _filter_name(config.filter)).rpartition(':')[2]}"
    if config.bucket is not None:
        yield f"bucket {config.bucket if isinstance(config.bucket, str) else _filter_name(config.bucket)}"


def _below_name(node: _Node) -> Iterator[str]:
    if node.backend:
        yield node.backend
    if node.details:
        yield " · ".join(node.details)


# ---- text of other languages -----------------------------------------------------------------------------------


def _visible(text: str) -> str:
    """Return ``text`` with what cannot be printed written out: a name must neither steer a terminal nor break XML."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _html(text: str) -> str:
    return html.escape(text)


def _mermaid(text: str) -> str:
    return "".join(c if c.isalnum() or c in " .,:-_×–→·" else f"#{ord(c)};" for c in text)


def _dot(text: str) -> str:
    # Labels may hold entities, which Graphviz replaces.
    return text.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')


def _columns(text: str) -> int:
    """Return how many columns of a terminal, or of a font of fixed width, ``text`` takes."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def _wrapped(text: str, width: int) -> list[str]:
    """Break ``text`` behind commas, brackets and spaces where that is possible, anywhere where it is not."""
    lines, line = [], ""
    for word in _words(text, width):
        if line and _columns(line + word.rstrip()) > width:
            lines.append(line.rstrip())
            line = ""
        line += word
    return [*lines, line.rstrip()] if line else lines


def _words(text: str, width: int) -> Iterator[str]:
    word = ""
    for character in text:
        if word and _columns(word + character) > width:
            yield word
            word = ""
        word += character
        if character in ", [·":
            yield word
            word = ""
    if word:
        yield word


# ---- the drawing -----------------------------------------------------------------------------------------------

FONT = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, 'Liberation Mono', monospace"
NAME_PX, TEXT_PX, LABEL_PX = 13, 12, 11
COLUMN_PER_PX = 0.625  # the widest of these fonts has 0.61 of its size
LINE_PX = 16
PADDING_PX = 12
STUB_PX = 20  # the short line above a root and below a leaf
LOOP_PX = 86  # beside a box that restarts at itself
MARGIN_PX = 10
BOX_COLUMNS, LABEL_COLUMNS = 34, 26


class _Drawing:
    """The SVG: sizes of boxes and labels, then a layout, then elements."""

    def __init__(self, nodes: Sequence[_Node], edges: Sequence[_Edge]) -> None:
        self.nodes = nodes
        self.loops = {edge.source for edge in edges if edge.source == edge.target}
        self.edges = [edge for edge in edges if edge.source != edge.target]
        self.texts = [self._text(node) for node in nodes]
        self.labels = [_wrapped(edge.label, LABEL_COLUMNS) for edge in self.edges]
        self.sizes = [self._size(index) for index in range(len(nodes))]
        lines = [
            Line(edge.source, edge.target, *self._label_size(label))
            for edge, label in zip(self.edges, self.labels, strict=True)
        ]
        stubs = [(STUB_PX if node.is_root else 0, STUB_PX if node.is_leaf else 0) for node in nodes]
        self.layout = lay_out(
            [
                Size(width + (2 * LOOP_PX if index in self.loops else 0), height / 2 + above, height / 2 + below)
                for index, ((width, height), (above, below)) in enumerate(zip(self.sizes, stubs, strict=True))
            ],
            lines,
        )

    def _text(self, node: _Node) -> list[tuple[str, str]]:
        """Return the lines in a box, each with its attributes."""
        lines = [
            (line, f'font-size="{NAME_PX}" font-weight="bold" fill="#1f2328"')
            for line in _wrapped(node.name, BOX_COLUMNS)
        ]
        for text, colour in ((node.backend, "#1f2328"), (" · ".join(node.details), "#57606a")):
            attributes = f'font-size="{TEXT_PX}" fill="{colour}"'
            lines += [(line, attributes) for line in _wrapped(text, BOX_COLUMNS)]
        return lines

    def _size(self, index: int) -> tuple[float, float]:
        text = self.texts[index]
        widest = max(_columns(line) for line, _ in text)
        return max(widest * NAME_PX * COLUMN_PER_PX + 2 * PADDING_PX, 60.0), len(text) * LINE_PX + PADDING_PX

    def _label_size(self, label: Sequence[str]) -> tuple[float, float]:
        if not label:
            return 0.0, 0.0
        return max(map(_columns, label)) * LABEL_PX * COLUMN_PER_PX + 14, len(label) * (LABEL_PX + 3) + 4.0

    def svg(self) -> str:
        width, height = (round(side + 2 * MARGIN_PX) for side in (self.layout.width, self.layout.height))
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="{-MARGIN_PX} {-MARGIN_PX} {width} {height}" role="img" font-family="{FONT}">',
            f"<title>{_html(', '.join(node.name for node in self.nodes))}</title>",
        ]
        for edge, points in zip(self.edges, self.layout.lines, strict=True):
            parts.append(_line(points, edge.kind))
        for edge, label, centre in zip(self.edges, self.labels, self.layout.labels, strict=True):
            if label:
                parts.append(self._label(edge, label, centre))
        parts += [self._box(index) for index in range(len(self.nodes))]
        return "\n".join([*parts, "</svg>"])

    def _label(self, edge: _Edge, label: Sequence[str], centre: tuple[float, float]) -> str:
        width, height = self._label_size(label)
        left, top = centre[0] - width / 2, centre[1] - height / 2
        colour = _COLOURS[edge.kind]
        rectangle = (
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="4" '
            f'fill="#ffffff" stroke="{colour}" stroke-width="0.75"/>'
        )
        attributes = f'font-size="{LABEL_PX}" fill="#424a53"'
        return rectangle + _lines_of_text(
            [(line, attributes) for line in label], centre[0], top + LABEL_PX + 1, LABEL_PX + 3
        )

    def _box(self, index: int) -> str:
        node, (x, y), (width, height) = self.nodes[index], self.layout.boxes[index], self.sizes[index]
        left, top = x - width / 2, y - height / 2
        parts = [f"<g><title>{_html(' · '.join((node.name, *_below_name(node))))}</title>"]
        if node.is_root:
            parts.append(f'<circle cx="{x:.1f}" cy="{top - STUB_PX + 5:.1f}" r="4.5" fill="{_COLOURS["next"]}"/>')
            parts.append(_line(((x, top - STUB_PX + 5), (x, top)), "next"))
        if node.is_leaf:
            kind: Kind = "jump" if node.is_part else "next"
            end, colour = top + height + STUB_PX - 5, _COLOURS[kind]
            parts.append(f'<path d="M{x:.1f},{top + height:.1f} V{end - 5:.1f}" stroke="{colour}" stroke-width="1.5"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{end:.1f}" r="4.5" fill="none" stroke="{colour}"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{end:.1f}" r="2.5" fill="{colour}"/>')
        if index in self.loops:
            parts.append(self._loop(left + width, y))
        outline = 'stroke="#a06cd5" stroke-dasharray="2 2"' if node.is_part else 'stroke="#8c959f"'
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="7" fill="#f6f8fa" '
            f"{outline}/>"
        )
        parts.append(_lines_of_text(self.texts[index], x, top + PADDING_PX / 2 + NAME_PX - 1, LINE_PX))
        return "".join([*parts, "</g>"])

    def _loop(self, x: float, y: float) -> str:
        colour = _COLOURS["restart"]
        return (
            f'<path d="M{x:.1f},{y + 8:.1f} h14 a8,8 0 0 0 0,-16 H{x + 7:.1f}" fill="none" stroke="{colour}" '
            f'stroke-width="1.5" stroke-dasharray="{_DASHES["restart"]}"/>'
            f'<path d="M{x:.1f},{y - 8:.1f} l8,-4 v8 z" fill="{colour}"/>'
            f'<rect x="{x + 25:.1f}" y="{y - 9:.1f}" width="58" height="18" rx="4" fill="#ffffff" stroke="{colour}" '
            f'stroke-width="0.75"/>'
        ) + _lines_of_text([("restart", f'font-size="{LABEL_PX}" fill="#424a53"')], x + 54, y + 4, 0)


def _line(points: Sequence[tuple[float, float]], kind: Kind) -> str:
    """An edge with its arrow; it swings between points, is vertical in each, and ends at the arrow's foot."""
    x, y = points[-1]
    down = 1 if y > points[0][1] else -1
    points = [*points[:-1], (x, y - 7 * down)]
    path = f"M{points[0][0]:.1f},{points[0][1]:.1f}"
    for (x1, y1), (x2, y2) in pairwise(points):
        middle = (y1 + y2) / 2
        swings = abs(x1 - x2) > 0.05
        path += f" C{x1:.1f},{middle:.1f} {x2:.1f},{middle:.1f} {x2:.1f},{y2:.1f}" if swings else f" V{y2:.1f}"
    dashes = "" if kind == "next" else f' stroke-dasharray="{_DASHES[kind]}"'
    colour = _COLOURS[kind]
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>'
        f'<path d="M{x:.1f},{y:.1f} l-4,{-8 * down} h8 z" fill="{colour}"/>'
    )


def _lines_of_text(lines: Sequence[tuple[str, str]], x: float, y: float, step: float) -> str:
    return "".join(
        f'<text x="{x:.1f}" y="{y + number * step:.1f}" text-anchor="middle" {attributes}>{_html(line)}</text>'
        for number, (line, attributes) in enumerate(lines)
    )


# ---- text ------------------------------------------------------------------------------------------------------

TEXT_COLUMNS = 100
LEAST_TEXT_COLUMNS = 40  # for what stands beside a name, however wide the drawing is


@dataclass(frozen=True)
class _Drawn:
    """A node's part of the drawing."""

    index: int
    before: tuple[str, ...]  # rails that join above it
    own: str
    behind: tuple[str, ...]  # rails that open below it
    passing: str  # the rails further down


class _Rails:
    """Text as ``git log --graph`` draws it: a line per node, in an order in which requests may pass them.

    A rail is a column of the drawing on which an edge runs down to a node. Sub-graphs have dotted rails.
    """

    def __init__(self, nodes: Sequence[_Node], edges: Sequence[_Edge]) -> None:
        self.nodes = nodes
        self.edges = edges
        # Sub-graphs first: they come before what follows the whole.
        self.down = [[e for e in edges if e.source == index and e.kind == "jump"] for index in range(len(nodes))]
        for index, own in enumerate(self.down):
            own += [edge for edge in edges if edge.source == index and edge.kind == "next"]
        self.rails: list[tuple[int, Kind] | None] = []  # where each leads, and how
        self.ended = False  # the node above is a leaf

    def rows(self) -> Iterator[tuple[str, str, str]]:
        drawn = [self._draw(index) for index in self._order()]
        rails = max((len(row) for each in drawn for row in (each.own, *each.behind)), default=0)
        names = max((_columns(node.name) for node in self.nodes), default=0) + 2
        room = max(TEXT_COLUMNS - rails - names, LEAST_TEXT_COLUMNS)
        for each in drawn:
            yield from ((row.rstrip(), "", "") for row in each.before)
            name = self.nodes[each.index].name
            first, *more = self._beside(each.index, room)
            yield f"{each.own:<{rails}}", name, (" " * (names - _columns(name)) + first).rstrip()
            for number in range(max(len(each.behind), len(more))):
                row = each.behind[number] if number < len(each.behind) else each.passing
                if number < len(more):
                    yield f"{row:<{rails}}", "", " " * names + more[number]
                else:
                    yield row.rstrip(), "", ""

    def _draw(self, index: int) -> _Drawn:
        own = [place for place, rail in enumerate(self.rails) if rail is not None and rail[0] == index]
        before = []
        if not own and self.ended:  # a root must not look as if it followed the leaf above it
            before.append(self._drawn({}))
        here = own[0] if own else self._free()
        if len(own) > 1:
            before.append(self._joined(here, own[1:]))
        node = self.nodes[index]
        self.rails[here] = (index, "next")
        marked = self._drawn({here: "■" if node.is_leaf else "▼" if node.is_root else "●"})
        self.rails[here] = None
        behind = [row for kind in ("jump", "next") for row in self._opened(index, here, kind)]
        self.ended = node.is_leaf
        return _Drawn(index, tuple(before), marked, tuple(behind), self._drawn({}))

    def _order(self) -> Iterator[int]:
        """Yield every node behind all that lead to it, and chains in one piece."""
        waiting = [0] * len(self.nodes)
        for own in self.down:
            for edge in own:
                waiting[edge.target] += 1
        ready = [index for index in reversed(range(len(self.nodes))) if waiting[index] == 0]
        while ready:
            index = ready.pop()
            yield index
            for edge in reversed(self.down[index]):
                waiting[edge.target] -= 1
                if waiting[edge.target] == 0:
                    ready.append(edge.target)

    def _free(self, start: int = 0) -> int:
        for place in range(start, len(self.rails)):
            if self.rails[place] is None:
                return place
        self.rails.append(None)
        return len(self.rails) - 1

    def _joined(self, here: int, others: Sequence[int]) -> str:
        """Lead the rails ``others``, all to the right, into the one at ``here``."""
        marks = {here: "├", **dict.fromkeys(others[:-1], "┴"), others[-1]: "╯"}
        row = self._drawn(marks, across=(here, others[-1]))
        for place in others:
            self.rails[place] = None
        return row

    def _opened(self, index: int, here: int, kind: str) -> Iterator[str]:
        """Give every edge that leaves the node at ``here`` a rail: the first one that of the node, others new ones.

        An edge never joins a rail that leads to the same node already: nobody could tell which way to read that.
        """
        opened = []
        goes_on = any(edge.kind == "next" for edge in self.down[index])
        for edge in self.down[index]:
            if edge.kind != kind:
                continue
            if self.rails[here] is None and (kind == "next" or not goes_on):
                self.rails[here] = (edge.target, edge.kind)
            else:
                opened.append(self._free(here + 1))
                self.rails[opened[-1]] = (edge.target, edge.kind)
        if opened:
            marks = {here: "├", **dict.fromkeys(opened, "┬"), opened[-1]: "╮"}
            yield self._drawn(marks, across=(here, opened[-1]), line="┄" if kind == "jump" else "─")

    def _drawn(self, marks: Mapping[int, str], across: tuple[int, int] = (0, -1), line: str = "─") -> str:
        """One row: ``marks`` at their places, a line from one place to another, and the rails that pass."""
        row = ""
        for place, rail in enumerate(self.rails):
            passing = "│" if rail is None or rail[1] == "next" else "┊"
            empty = line if across[0] <= place <= across[1] else " "
            row += marks.get(place, empty if rail is None else passing)
            row += line if across[0] <= place < across[1] else " "
        return row

    def _beside(self, index: int, room: int) -> list[str]:
        """Return what stands beside the name and, as far as there is no room for it, below."""
        node = self.nodes[index]
        takes = [f"{self.nodes[edge.source].name}: {edge.label}" for edge in self._labelled(index)]
        rows = [""]
        for part in _below_name(node):
            for line in _wrapped(part, room):
                if rows[-1] and _columns(rows[-1]) + 2 + _columns(line) > room:
                    rows.append(line)
                else:
                    rows[-1] += ("  " if rows[-1] else "") + line
        if takes:
            rows += _wrapped(f"takes {'; '.join(takes)}", room)
        words = {"proxy": "runs", "restart": "↺ restart at"}
        for edge in self.edges:
            if edge.source == index and edge.kind in words:
                rows.append(f"{words[edge.kind]} {self.nodes[edge.target].name}")
        return rows

    def _labelled(self, index: int) -> Iterator[_Edge]:
        return (edge for edge in self.edges if edge.target == index and edge.label and edge.kind in ("next", "map"))
