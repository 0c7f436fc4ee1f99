"""The drawing of a graph as SVG: sizes of boxes and labels, then a layout, a legend, and elements."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from fastpipe.show.layout import Line, Size, lay_out
from fastpipe.show.legend import Legend
from fastpipe.show.paint import BAR_PX, COLUMN_PER_PX, FONT, LABEL_PX, Scheme, filled, painted, ring
from fastpipe.show.parts import (
    COLOURS,
    DASHES,
    NODE_COLOURS,
    Kind,
    PictureEdge,
    PictureNode,
    as_html,
    below_name,
    columns,
    wrapped,
)

__all__ = ["Drawing"]

NAME_PX, TEXT_PX = 13, 12
LINE_PX = 16
PADDING_PX = 12
STUB_PX = 20  # the short line above a root and below a leaf
LOOP_PX = 86  # beside a box that restarts at itself
MARGIN_PX = 10
BOX_COLUMNS, LABEL_COLUMNS = 34, 26


class Drawing:
    """The SVG.

    Args:
        nodes: what is drawn.
        edges: between them, by their numbers.
        scheme: for pages of which colours.
        least_columns: how many characters each box has room for, at least.
        is_brief: a box with numbers has its name and these.
        has_legend: it is below the graph.
    """

    def __init__(
        self,
        nodes: Sequence[PictureNode],
        edges: Sequence[PictureEdge],
        scheme: Scheme = "both",
        least_columns: int = 0,
        *,
        is_brief: bool = False,
        has_legend: bool = True,
    ) -> None:
        self.nodes = nodes
        self.scheme = scheme
        self.is_brief = is_brief
        self.least_px = max(least_columns * TEXT_PX * COLUMN_PER_PX + 2 * PADDING_PX, 60.0)
        self.loops = {edge.source for edge in edges if edge.source == edge.target}
        self.edges = [edge for edge in edges if edge.source != edge.target]
        self.texts = [self._text(node) for node in nodes]
        self.labels = [wrapped(edge.label, LABEL_COLUMNS) for edge in self.edges]
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
        self.legend = Legend(nodes if has_legend else (), edges if has_legend else (), self.layout.width, scheme)

    def _text(self, node: PictureNode) -> list[tuple[str, str]]:
        """Return the lines in a box, each with its attributes."""
        attributes = f'font-size="{NAME_PX}" font-weight="bold" {painted(self.scheme, fill="name")}'
        lines = [(line, attributes) for line in wrapped(node.name, BOX_COLUMNS)]
        texts = [(node.backend, "text"), *((file, "file") for file in node.files), (" · ".join(node.details), "muted")]
        numbers = [(number, "number") for number in node.numbers]
        for text, colour in numbers if numbers and self.is_brief else (*texts, *numbers):
            attributes = f'font-size="{TEXT_PX}" {painted(self.scheme, fill=colour)}'
            behind = "_-. " if colour == "file" else ", [·"
            lines += [(line, attributes) for line in wrapped(text, BOX_COLUMNS, behind)]
        return lines

    def _size(self, index: int) -> tuple[float, float]:
        text = self.texts[index]
        widest = max(columns(line) for line, _ in text)
        return max(widest * NAME_PX * COLUMN_PER_PX + 2 * PADDING_PX, self.least_px), len(text) * LINE_PX + PADDING_PX

    def _label_size(self, label: Sequence[str]) -> tuple[float, float]:
        if not label:
            return 0.0, 0.0
        return max(map(columns, label)) * LABEL_PX * COLUMN_PER_PX + 14, len(label) * (LABEL_PX + 3) + 4.0

    def svg(self) -> str:
        width = round(max(self.layout.width, self.legend.width) + 2 * MARGIN_PX)
        height = round(self.layout.height + self.legend.height + 2 * MARGIN_PX)
        # Beside a narrow graph its legend may be wider: the graph stays in the middle.
        left = -MARGIN_PX - max(self.legend.width - self.layout.width, 0.0) / 2
        adapts = ' style="color-scheme:light dark"' if self.scheme == "both" else ""
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="{left:.1f} {-MARGIN_PX} {width} {height}" role="img" font-family="{FONT}"{adapts}>',
            f"<title>{as_html(', '.join(node.name for node in self.nodes))}</title>",
        ]
        for edge, points in zip(self.edges, self.layout.lines, strict=True):
            parts.append(_line(points, edge.kind))
        for edge, label, centre in zip(self.edges, self.labels, self.layout.labels, strict=True):
            if label:
                parts.append(self._label(edge, label, centre))
        parts += [self._box(index) for index in range(len(self.nodes))]
        parts += self.legend.svg(left + MARGIN_PX, self.layout.height)
        return "\n".join([*parts, "</svg>"])

    def _label(self, edge: PictureEdge, label: Sequence[str], centre: tuple[float, float]) -> str:
        width, height = self._label_size(label)
        left, top = centre[0] - width / 2, centre[1] - height / 2
        rectangle = (
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="4" '
            f'{painted(self.scheme, fill="label")} stroke="{COLOURS[edge.kind]}" stroke-width="0.75"/>'
        )
        attributes = f'font-size="{LABEL_PX}" {painted(self.scheme, fill="label text")}'
        return rectangle + _lines_of_text(
            [(line, attributes) for line in label], centre[0], top + LABEL_PX + 1, LABEL_PX + 3
        )

    def _box(self, index: int) -> str:
        node, (x, y), (width, height) = self.nodes[index], self.layout.boxes[index], self.sizes[index]
        left, top = x - width / 2, y - height / 2
        title = as_html(" · ".join((node.name, *below_name(node))))
        parts = [f'<g data-node="{index}"><title>{title}</title>']
        if node.is_root:
            parts.append(filled(x, top - STUB_PX + 5, COLOURS["next"]))
            parts.append(_line(((x, top - STUB_PX + 5), (x, top)), "next"))
        if node.is_leaf:
            kind: Kind = "jump" if node.is_part else "next"
            end, colour = top + height + STUB_PX - 5, COLOURS[kind]
            parts.append(f'<path d="M{x:.1f},{top + height:.1f} V{end - 5:.1f}" stroke="{colour}" stroke-width="1.5"/>')
            parts.append(ring(x, end, colour))
        if index in self.loops:
            parts.append(self._loop(left + width, y))
        outline = f'stroke="{COLOURS["jump"]}" stroke-dasharray="2 2"' if node.is_part else ""
        paint = painted(self.scheme, fill="box", stroke="" if node.is_part else "outline")
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="7" {paint}{outline}/>'
        )
        if node.kind in NODE_COLOURS:
            parts.append(
                f'<rect x="{left + 4:.1f}" y="{top + 5:.1f}" width="{BAR_PX}" height="{height - 10:.1f}" rx="2" '
                f'fill="{NODE_COLOURS[node.kind]}"/>'
            )
        parts.append(_lines_of_text(self.texts[index], x, top + PADDING_PX / 2 + NAME_PX - 1, LINE_PX))
        return "".join([*parts, "</g>"])

    def _loop(self, x: float, y: float) -> str:
        colour = COLOURS["restart"]
        return (
            f'<path d="M{x:.1f},{y + 8:.1f} h14 a8,8 0 0 0 0,-16 H{x + 7:.1f}" fill="none" stroke="{colour}" '
            f'stroke-width="1.5" stroke-dasharray="{DASHES["restart"]}"/>'
            f'<path d="M{x:.1f},{y - 8:.1f} l8,-4 v8 z" fill="{colour}"/>'
            f'<rect x="{x + 25:.1f}" y="{y - 9:.1f}" width="58" height="18" rx="4" '
            f'{painted(self.scheme, fill="label")} stroke="{colour}" stroke-width="0.75"/>'
        ) + _lines_of_text(
            [("restart", f'font-size="{LABEL_PX}" {painted(self.scheme, fill="label text")}')], x + 54, y + 4, 0
        )


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
    dashes = "" if kind == "next" else f' stroke-dasharray="{DASHES[kind]}"'
    colour = COLOURS[kind]
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>'
        f'<path d="M{x:.1f},{y:.1f} l-4,{-8 * down} h8 z" fill="{colour}"/>'
    )


def _lines_of_text(lines: Sequence[tuple[str, str]], x: float, y: float, step: float) -> str:
    return "".join(
        f'<text x="{x:.1f}" y="{y + number * step:.1f}" text-anchor="middle" {attributes}>{as_html(line)}</text>'
        for number, (line, attributes) in enumerate(lines)
    )
