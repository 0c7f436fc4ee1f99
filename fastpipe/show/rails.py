"""A graph as text, as ``git log --graph`` draws history: a line per node, and rails beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fastpipe.show.parts import Kind, PictureEdge, PictureNode, below_name, columns, wrapped

__all__ = ["Rails"]

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


class Rails:
    """Text as ``git log --graph`` draws it: a line per node, in an order in which requests may pass them.

    A rail is a column of the drawing on which an edge runs down to a node. Sub-graphs have dotted rails.
    """

    def __init__(self, nodes: Sequence[PictureNode], edges: Sequence[PictureEdge]) -> None:
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
        names = max((columns(node.name) for node in self.nodes), default=0) + 2
        room = max(TEXT_COLUMNS - rails - names, LEAST_TEXT_COLUMNS)
        for each in drawn:
            yield from ((row.rstrip(), "", "") for row in each.before)
            name = self.nodes[each.index].name
            first, *more = self._beside(each.index, room)
            yield f"{each.own:<{rails}}", name, (" " * (names - columns(name)) + first).rstrip()
            for number in range(max(len(each.behind), len(more))):
                row = each.behind[number] if number < len(each.behind) else each.passing
                if number < len(more):
                    yield f"{row:<{rails}}", "", " " * names + more[number]
                else:
                    yield row.rstrip(), "", ""

    def _draw(self, index: int) -> _Drawn:
        own = [column for column, rail in enumerate(self.rails) if rail is not None and rail[0] == index]
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
        for column in range(start, len(self.rails)):
            if self.rails[column] is None:
                return column
        self.rails.append(None)
        return len(self.rails) - 1

    def _joined(self, here: int, others: Sequence[int]) -> str:
        """Lead the rails ``others``, all to the right, into the one at ``here``."""
        marks = {here: "├", **dict.fromkeys(others[:-1], "┴"), others[-1]: "╯"}
        row = self._drawn(marks, across=(here, others[-1]))
        for column in others:
            self.rails[column] = None
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
        """One row: ``marks`` in their columns, a line from one column to another, and the rails that pass."""
        row = ""
        for column, rail in enumerate(self.rails):
            passing = "│" if rail is None or rail[1] == "next" else "┊"
            empty = line if across[0] <= column <= across[1] else " "
            row += marks.get(column, empty if rail is None else passing)
            row += line if across[0] <= column < across[1] else " "
        return row

    def _beside(self, index: int, room: int) -> list[str]:
        """Return what stands beside the name and, as far as there is no room for it, below."""
        node = self.nodes[index]
        takes = [f"{self.nodes[edge.source].name}: {edge.label}" for edge in self._labelled(index)]
        rows = [""]
        for part in below_name(node):
            for line in wrapped(part, room):
                if rows[-1] and columns(rows[-1]) + 2 + columns(line) > room:
                    rows.append(line)
                else:
                    rows[-1] += ("  " if rows[-1] else "") + line
        if takes:
            rows += wrapped(f"takes {'; '.join(takes)}", room)
        words = {"proxy": "runs", "restart": "↺ restart at"}
        for edge in self.edges:
            if edge.source == index and edge.kind in words:
                rows.append(f"{words[edge.kind]} {self.nodes[edge.target].name}")
        return rows

    def _labelled(self, index: int) -> Iterator[PictureEdge]:
        return (edge for edge in self.edges if edge.target == index and edge.label and edge.kind in ("next", "map"))
