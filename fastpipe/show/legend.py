"""What the colours and lines of a drawing mean: below it, in as many rows as its width asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from fastpipe.show.paint import BAR_PX, COLUMN_PER_PX, LABEL_PX, Scheme, filled, painted, ring
from fastpipe.show.parts import (
    COLOURS,
    DASHES,
    EDGE_WORDS,
    NODE_COLOURS,
    NODE_WORDS,
    PictureEdge,
    PictureNode,
    as_html,
    columns,
)

__all__ = ["Legend"]

Mark = Callable[[float, float], str]
"""Draws what stands in front of a word, at a place."""

ABOVE_PX = 20  # between the graph and its legend
ROW_PX = 18
MARK_PX = 26  # for the mark in front of a word
GAP_PX = 22
LEAST_PX = 430  # a legend is never broken into narrower rows than this


class Legend:
    """The kinds of nodes and edges that are there, but the plainest; nothing where there are no others.

    Args:
        nodes: of the drawing.
        edges: of the drawing.
        width: of the drawing, in pixels.
        scheme: for pages of which colours.
    """

    def __init__(
        self, nodes: Sequence[PictureNode], edges: Sequence[PictureEdge], width: float, scheme: Scheme
    ) -> None:
        self.scheme = scheme
        kinds = [kind for kind in NODE_COLOURS if any(node.kind == kind for node in nodes)]
        lines = [kind for kind in EDGE_WORDS if any(edge.kind == kind for edge in edges)]
        entries: list[tuple[Mark, str]] = []
        if (kinds and len(nodes) > 1) or lines:
            entries = [(partial(_bar, NODE_COLOURS[kind]), NODE_WORDS[kind]) for kind in kinds]
            entries += [(partial(_dashes, COLOURS[kind], DASHES[kind]), EDGE_WORDS[kind]) for kind in lines]
            entries += [(_root, "requests enter"), (_leaf, "requests end")]
        self._entries = entries
        self._rows: list[list[tuple[float, Mark, str]]] = []
        self.width = 0.0
        room, x = max(width, LEAST_PX), 0.0
        for mark, words in entries:
            taken = MARK_PX + columns(words) * LABEL_PX * COLUMN_PER_PX
            if not self._rows or x + taken > room:
                self._rows.append([])
                x = 0.0
            self._rows[-1].append((x, mark, words))
            self.width = max(self.width, x + taken)
            x += taken + GAP_PX

    @property
    def height(self) -> float:
        """In pixels, with the room above it."""
        return ABOVE_PX + len(self._rows) * ROW_PX if self._rows else 0.0

    def entries(self) -> list[tuple[str, str]]:
        """Return (a mark as an SVG of its own, its words), for a page that shows the legend beside the drawing."""
        size = f'width="{MARK_PX}" height="{ROW_PX}" viewBox="0 {-ROW_PX // 2} {MARK_PX} {ROW_PX}"'
        opening = f'<svg xmlns="http://www.w3.org/2000/svg" {size} aria-hidden="true">'
        return [(f"{opening}{mark(0, 0)}</svg>", words) for mark, words in self._entries]

    def svg(self, left: float, top: float) -> Iterator[str]:
        """Yield the elements, below a graph that ends at ``top``."""
        attributes = f'font-size="{LABEL_PX}" {painted(self.scheme, fill="muted")}'
        for number, row in enumerate(self._rows):
            y = top + ABOVE_PX + (number + 0.5) * ROW_PX
            for x, mark, words in row:
                yield mark(left + x, y)
                place = f'x="{left + x + MARK_PX:.1f}" y="{y + LABEL_PX / 3:.1f}"'
                yield f"<text {place} {attributes}>{as_html(words)}</text>"


def _bar(colour: str, x: float, y: float) -> str:
    return f'<rect x="{x + 12:.1f}" y="{y - 7:.1f}" width="{BAR_PX + 2}" height="14" rx="2" fill="{colour}"/>'


def _dashes(colour: str, dashes: str, x: float, y: float) -> str:
    return f'<path d="M{x:.1f},{y:.1f} h22" stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dashes}"/>'


def _root(x: float, y: float) -> str:
    return filled(x + 15, y, COLOURS["next"])


def _leaf(x: float, y: float) -> str:
    return ring(x + 15, y, COLOURS["next"])
