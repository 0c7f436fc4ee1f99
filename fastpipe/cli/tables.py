"""A table of figures: aligned text, or drawn by rich in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastpipe.cli.terminal import column_count, escaped_line

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Figures"]


@dataclass(frozen=True)
class Figures:
    """Rows, at least one, under headings or none; columns of words are aligned to the left, figures to the right.

    Args:
        headings: one for each column.
        rows: as many cells as headings.
        words: how many columns, from the left, have words.
        bold: the numbers of rows that matter most.
        last_words: the last column has words, too.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    bold: frozenset[int] = field(default_factory=frozenset)
    last_words: bool = False

    def _is_left(self, column: int) -> bool:
        return column < self.words or (self.last_words and column == len(self.headings) - 1)

    def __str__(self) -> str:
        headings = [list(self.headings)] if any(self.headings) else []
        lines = [*headings, *([escaped_line(cell) for cell in row] for row in self.rows)]
        widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                f"{cell}{' ' * (width - _width(cell))}" if self._is_left(i) else f"{' ' * (width - _width(cell))}{cell}"
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def __rich__(self) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, show_header=any(self.headings))
        for column, heading in enumerate(self.headings):
            table.add_column(heading, justify="left" if self._is_left(column) else "right", overflow="fold")
        for number, row in enumerate(self.rows):
            style = "bold" if number in self.bold else ""
            table.add_row(*(Text(escaped_line(cell), style=style) for cell in row))
        return table


def _width(text: str) -> int:
    return column_count(text) if text else 0
