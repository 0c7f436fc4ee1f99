"""The picture of a graph: text for a terminal, SVG and PNG, Mermaid and DOT for other tools, a page of HTML.

It is drawn from what was written and checked (:class:`NodeConfig`, :class:`Graph`), so a file can be drawn without
building any of its models. A pipe that is built adds what only its backends know, the size of the batches, and, if
asked, what its nodes have done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from fastpipe import filters
from fastpipe.config.described import NodeConfig
from fastpipe.config.graph import Graph, Source
from fastpipe.config.plan import StepPlan
from fastpipe.config.sub_graphs import entry_of, is_sub_graph
from fastpipe.show.drawing import Drawing
from fastpipe.show.legend import Legend
from fastpipe.show.paint import Scheme
from fastpipe.show.parts import (
    COLOURS,
    DASHES,
    NODE_COLOURS,
    Kind,
    PictureEdge,
    PictureNode,
    as_html,
    below_name,
    visible,
)
from fastpipe.show.rails import Rails
from fastpipe.show.raster import png_of
from fastpipe.show.steps import files_of, kind_of

__all__ = ["Picture"]


class Picture:
    """The nodes of a pipe and what leads from where to where.

    ``str(picture)`` is text, ``svg()``, ``mermaid()``, ``dot()`` and ``html()`` are strings in those languages,
    ``png()`` is bytes, and a notebook shows the SVG. Solid: ``next``. Dashed: what a ``map`` takes from a node that is
    no parent. Dotted: a sub-graph, entered by a Jump or MapReduce, or the node that a Proxy runs. Dash-dotted:
    ``restart``. A label says which keys a ``map`` takes; "choice 1 of 2" is read if it has run, else the next one is.
    The bar of a box has the colour of its kind (model, image, tensor, sub-graph, code of your own), which a legend
    explains.

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
        number_of = {index: number for number, index in enumerate(shown)}
        for index, config in enumerate(configs):
            if config.is_hidden:
                number_of[index] = next(number_of[other] for other in shown if configs[other].name == config.shares)
        self._nodes = tuple(
            PictureNode(
                name=visible(configs[index].name),
                backend=_expression(configs[index]),
                details=tuple(visible(detail) for detail in _details(configs[index], max_batches or {})),
                is_root=index in graph.roots,
                is_leaf=not followers[index],
                is_part=index in parts and index not in whole,
                kind=kind_of(configs[index].plan),
                files=tuple(visible(file) for file in files_of(configs[index].plan)),
            )
            for index in shown
        )
        self.names = tuple(configs[index].name for index in shown)
        """The names of the nodes that are drawn, as they were written; in the SVG, ``data-node`` is an index of it."""
        self._edges = tuple(
            replace(edge, source=number_of[edge.source], target=number_of[edge.target])
            for edge in _edges(configs, graph)
        )

    def __str__(self) -> str:
        return "\n".join(f"{rails}{name}{rest}" for rails, name, rest in self.rows())

    def __repr__(self) -> str:
        return f"<fastpipe picture of {', '.join(node.name for node in self._nodes)}>"

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield the lines of the text as (lines of the drawing, a node's name or nothing, the rest)."""
        return Rails(self._nodes, self._edges).rows()

    def with_numbers(self, numbers: Mapping[str, Sequence[str]]) -> Picture:
        """Return the picture with lines of text below what a node is, by its name."""
        other = copy(self)
        other._nodes = tuple(
            replace(node, numbers=tuple(visible(line) for line in numbers.get(name, ())))
            for name, node in zip(self.names, self._nodes, strict=True)
        )
        return other

    # ---- for other tools ---------------------------------------------------------------------------------------

    def mermaid(self) -> str:
        """Return the graph as a Mermaid flowchart."""
        lines = ["flowchart TD"]
        for index, node in enumerate(self._nodes):
            text = "<br>".join(filter(None, (f"<b>{_mermaid(node.name)}</b>", *map(_mermaid, below_name(node)))))
            opening, closing = ("([", "])") if node.is_root or node.is_leaf else ("[", "]")
            lines.append(f'    n{index}{opening}"{text}"{closing}')
            if node.kind in NODE_COLOURS:
                lines.append(f"    style n{index} stroke:{NODE_COLOURS[node.kind]}")
        for edge in self._edges:
            arrow = "-->" if edge.kind == "next" else "-.->"
            label = f'|"{_mermaid(edge.label)}"|' if edge.label else ""
            lines.append(f"    n{edge.source} {arrow}{label} n{edge.target}")
        for number, edge in enumerate(self._edges):
            if edge.kind != "next":
                style = f"stroke:{COLOURS[edge.kind]},stroke-dasharray:{DASHES[edge.kind]}"
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
            text = "\\n".join(map(_dot, (node.name, *below_name(node))))
            outline = f', color="{NODE_COLOURS[node.kind]}"' if node.kind in NODE_COLOURS else ""
            outline += ", penwidth=2" if node.is_root else ", peripheries=2" if node.is_leaf else ""
            lines.append(f'    n{index} [label="{text}"{outline}];')
        for edge in self._edges:
            attributes = [f'label="{_dot(edge.label)}"'] if edge.label else []
            if edge.kind != "next":
                attributes += [f"style={_DOT_STYLES[edge.kind]}", f'color="{COLOURS[edge.kind]}"']
            if edge.kind in ("proxy", "restart"):
                attributes.append("constraint=false")
            written = f" [{', '.join(attributes)}]" if attributes else ""
            lines.append(f"    n{edge.source} -> n{edge.target}{written};")
        return "\n".join([*lines, "}"]) + "\n"

    def svg(
        self,
        *,
        dark: bool | None = None,
        least_columns: int = 0,
        is_brief: bool = False,
        has_legend: bool = True,
    ) -> str:
        """Return the drawing as SVG, without a background.

        Args:
            dark: for a dark page; None: whoever shows it decides, as for ``prefers-color-scheme`` of a style sheet.
            least_columns: how many characters each box has room for, at least.
            is_brief: a box with numbers has its name and these; what its node is shows where the pointer rests.
            has_legend: it is below the graph.
        """
        scheme: Scheme = "both" if dark is None else "dark" if dark else "light"
        drawing = Drawing(self._nodes, self._edges, scheme, least_columns, is_brief=is_brief, has_legend=has_legend)
        return drawing.svg()

    def legend(self) -> list[tuple[str, str]]:
        """Return (a mark as an SVG of its own, what it means) of all that ``svg`` explains below the graph."""
        return Legend(self._nodes, self._edges, 0.0, "both").entries()

    def png(self, *, dark: bool = False, scale: float = 2.0) -> bytes:
        """Return the drawing as PNG, on white or on dark.

        Args:
            dark: light text on dark.
            scale: pixels of the image for each of the SVG.

        Raises:
            MissingExtra: resvg-py is not installed (extra ``picture``).
            PipeError: this machine has no font, or the image would be larger than anything can show.
        """
        return png_of(self.svg(dark=dark), dark=dark, scale=scale)

    def _repr_svg_(self) -> str:
        return self.svg()

    def html(self, title: str = "fastpipe") -> str:
        """Return a page that needs no other file: the drawing, and a table of the nodes."""
        rows = []
        for index, node in enumerate(self._nodes):
            takes = "; ".join(self._takes(index))
            is_like = " · ".join((*node.files, *node.details, *node.numbers))
            cells = (node.name, node.backend, is_like, takes, ", ".join(self._leads_to(index)))
            rows.append("<tr>" + "".join(f"<td>{as_html(cell)}</td>" for cell in cells) + "</tr>")
        return _PAGE.format(title=as_html(visible(title)), svg=self.svg(), rows="\n".join(rows))

    def _takes(self, index: int) -> Iterator[str]:
        for edge in self._edges:
            if edge.target == index and edge.kind in ("next", "map") and edge.label:
                yield f"{self._nodes[edge.source].name}: {edge.label}"

    def _leads_to(self, index: int) -> Iterator[str]:
        words = {"next": "", "jump": "parts: ", "proxy": "proxy: ", "restart": "restart: "}
        for edge in self._edges:
            if edge.source == index and edge.kind in words:
                yield words[edge.kind] + self._nodes[edge.target].name


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


def _edges(configs: Sequence[NodeConfig], graph: Graph) -> Iterator[PictureEdge]:
    """Yield every edge, those that requests take first."""
    for node in graph.nodes:
        for target in node.next:
            sources = graph.nodes[target].sources or ()
            label = "; ".join(_keys(source, node.index) for source in sources if node.index in source.indices)
            yield PictureEdge(node.index, target, "next", label)
    for node, config in zip(graph.nodes, configs, strict=True):
        for target in dict.fromkeys(node.jumps):
            jumper = "" if config.plan is None else _jumper(config.plan, configs[target].name)
            kind: Kind = "proxy" if configs[target].is_hidden else "jump"
            yield PictureEdge(node.index, target, kind, "" if jumper == _expression(config) else jumper)
    for node in graph.nodes:
        for source in node.sources or ():
            for index in source.indices:
                if index not in node.parents:
                    yield PictureEdge(index, node.index, "map", _keys(source, index))
    for node in graph.nodes:
        if node.restart is not None:
            yield PictureEdge(node.index, node.restart, "restart", "restart")


def _keys(source: Source, index: int) -> str:
    """Return what is taken from the node ``index``; where it is one of several of which one is read, also which."""
    keys = ", ".join(visible(there if there == here else f"{there} → {here}") for there, here in source.keys)
    count = len(source.indices)
    return keys if count == 1 else f"choice {source.indices.index(index) + 1} of {count}: {keys}"


def _jumper(plan: StepPlan, target: str) -> str:
    """Return the name of the step that leads to ``target``."""
    if entry_of(plan) == target:
        return visible(plan.name.rpartition(":")[2])
    return next(filter(None, (_jumper(child, target) for child in plan.children)), "")


def _expression(config: NodeConfig) -> str:
    if config.plan is None:
        return f"shares {config.shares}" if config.shares else ""
    return visible(_written(config.plan))


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


# ---- text of other languages -----------------------------------------------------------------------------------


def _mermaid(text: str) -> str:
    return "".join(c if c.isalnum() or c in " .,:-_×–→·" else f"#{ord(c)};" for c in text)


def _dot(text: str) -> str:
    # Labels may hold entities, which Graphviz replaces.
    return text.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
