"""The drawing of a graph as SVG: sizes of boxes and labels, then a layout, then elements."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from fastpipe.show.layout import Line, Size, lay_out
from fastpipe.show.parts import COLOURS, DASHES, Kind, PictureEdge, PictureNode, as_html, below_name, columns, wrapped

__all__ = ["Drawing"]

FONT = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, 'Liberation Mono', monospace"
NAME_PX, TEXT_PX, LABEL_PX = 13, 12, 11
COLUMN_PER_PX = 0.625  # the widest of these fonts has 0.61 of its size
LINE_PX = 16
PADDING_PX = 12
STUB_PX = 20  # the short line above a root and below a leaf
LOOP_PX = 86  # beside a box that restarts at itself
MARGIN_PX = 10
BOX_COLUMNS, LABEL_COLUMNS = 34, 26


class Drawing:
    """The SVG: sizes of boxes and labels, then a layout, then elements."""

    def __init__(self, nodes: Sequence[PictureNode], edges: Sequence[PictureEdge]) -> None:
        self.nodes = nodes
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

    def _text(self, node: PictureNode) -> list[tuple[str, str]]:
        """Return the lines in a box, each with its attributes."""
        lines = [
            (line, f'font-size="{NAME_PX}" font-weight="bold" fill="#1f2328"')
            for line in wrapped(node.name, BOX_COLUMNS)
        ]
        for text, colour in ((node.backend, "#1f2328"), (" · ".join(node.details), "#57606a")):
            attributes = f'font-size="{TEXT_PX}" fill="{colour}"'
            lines += [(line, attributes) for line in wrapped(text, BOX_COLUMNS)]
        return lines

    def _size(self, index: int) -> tuple[float, float]:
        text = self.texts[index]
        widest = max(columns(line) for line, _ in text)
        return max(widest * NAME_PX * COLUMN_PER_PX + 2 * PADDING_PX, 60.0), len(text) * LINE_PX + PADDING_PX

    def _label_size(self, label: Sequence[str]) -> tuple[float, float]:
        if not label:
            return 0.0, 0.0
        return max(map(columns, label)) * LABEL_PX * COLUMN_PER_PX + 14, len(label) * (LABEL_PX + 3) + 4.0

    def svg(self) -> str:
        width, height = (round(side + 2 * MARGIN_PX) for side in (self.layout.width, self.layout.height))
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="{-MARGIN_PX} {-MARGIN_PX} {width} {height}" role="img" font-family="{FONT}">',
            f"<title>{as_html(', '.join(node.name for node in self.nodes))}</title>",
        ]
        for edge, points in zip(self.edges, self.layout.lines, strict=True):
            parts.append(_line(points, edge.kind))
        for edge, label, centre in zip(self.edges, self.labels, self.layout.labels, strict=True):
            if label:
                parts.append(self._label(edge, label, centre))
        parts += [self._box(index) for index in range(len(self.nodes))]
        return "\n".join([*parts, "</svg>"])

    def _label(self, edge: PictureEdge, label: Sequence[str], centre: tuple[float, float]) -> str:
        width, height = self._label_size(label)
        left, top = centre[0] - width / 2, centre[1] - height / 2
        colour = COLOURS[edge.kind]
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
        parts = [f"<g><title>{as_html(' · '.join((node.name, *below_name(node))))}</title>"]
        if node.is_root:
            parts.append(f'<circle cx="{x:.1f}" cy="{top - STUB_PX + 5:.1f}" r="4.5" fill="{COLOURS["next"]}"/>')
            parts.append(_line(((x, top - STUB_PX + 5), (x, top)), "next"))
        if node.is_leaf:
            kind: Kind = "jump" if node.is_part else "next"
            end, colour = top + height + STUB_PX - 5, COLOURS[kind]
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
        colour = COLOURS["restart"]
        return (
            f'<path d="M{x:.1f},{y + 8:.1f} h14 a8,8 0 0 0 0,-16 H{x + 7:.1f}" fill="none" stroke="{colour}" '
            f'stroke-width="1.5" stroke-dasharray="{DASHES["restart"]}"/>'
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
