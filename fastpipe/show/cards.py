"""Whatever is shown, in the same words everywhere: as plain text, in a terminal (by rich), in a notebook (as HTML).

What is to be shown derives from :class:`Shown`, and says of which pieces it consists: cards, tables and lines. No piece
looks at a value; who makes it has put that into words.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table as RichTable

__all__ = ["Card", "Note", "Row", "Shown", "Styled", "Table", "Words", "limited", "seconds"]

MOST_ROWS = 40

Note = tuple[str, str]
"""A word, and a sentence about it, which may have several lines."""
Row = tuple[str, str, str, str]
"""A mark, a key, its value, and what became of that: "" if it stayed."""
Styled = tuple[str, str]
"""Text, and a style as rich calls it."""

_STYLES = {"+": "green", "~": "yellow", "-": "red", " ": ""}
_COLOURS = {"+": "#1a7f37", "~": "#9a6700", "-": "#cf222e", " ": "inherit"}


def seconds(elapsed_s: float) -> str:
    """Return a duration as people say it."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if elapsed_s * factor >= 1:
            return f"{elapsed_s * factor:.3g} {unit}"
    return f"{elapsed_s * 1e6:.3g} us"


def limited(rows: list[Row]) -> list[Row]:
    """Return so many rows as anybody reads, and how many more there are."""
    if len(rows) <= MOST_ROWS:
        return rows
    return [*rows[:MOST_ROWS], (" ", f"... {len(rows) - MOST_ROWS} more keys", "", "")]


class Shown:
    """What prints as text, and is drawn by rich and in notebooks. A subclass says of which pieces it consists."""

    __slots__ = ()

    def _pieces(self) -> Sequence[Card | Table | Words]:
        raise NotImplementedError  # abstract

    def __str__(self) -> str:
        return "\n".join(text for piece in self._pieces() if (text := piece.text()) is not None)

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        drawn = [part for piece in self._pieces() if (part := piece.drawn()) is not None]
        return drawn[0] if len(drawn) == 1 else Group(*drawn)

    def _repr_html_(self) -> str:
        return "".join(piece.html() for piece in self._pieces())


@dataclass(frozen=True)
class Words:
    """A line between other pieces, as text, in a terminal, or in both; a notebook goes without."""

    written: str | None = None
    in_terminal: str | None = None
    style: str = ""

    def text(self) -> str | None:
        return self.written

    def drawn(self) -> RenderableType | None:
        from rich.text import Text

        return None if self.in_terminal is None else Text(self.in_terminal, style=self.style)

    def html(self) -> str:
        return ""


@dataclass(frozen=True)
class Card:
    """A title, notes, and rows."""

    line: str
    """The title as text."""
    title: Sequence[Styled]
    """The title in a terminal."""
    heading: tuple[str, str]
    """The title in a notebook: what is bold, and the rest."""
    notes: Sequence[Note] = ()
    rows: Sequence[Row] = ()
    border: str = "blue"

    def text(self) -> str | None:
        lines = [self.line]
        for word, sentence in self.notes:
            first, *more = sentence.split("\n")
            lines.append(f"  {word:8}{first}")
            lines += [f"          {line}" for line in more]
        width = max((len(key) for _, key, _, _ in self.rows), default=0)
        for mark, key, value, became in self.rows:
            lines.append(f"  {mark} {key:{width}}  {value}".rstrip())
            if became:
                lines.append(f"    {'':{width}}  -> {became}")
        return "\n".join(lines)

    def drawn(self) -> RenderableType | None:
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        grids = [grid for grid in (self._notes_drawn(), self._rows_drawn()) if grid.row_count]
        spaced = [part for grid in grids for part in ("", grid)][1:]  # an empty line between them
        return Panel(Group(*spaced), title=Text.assemble(*self.title), title_align="left", border_style=self.border)

    def _notes_drawn(self) -> RichTable:
        from rich.table import Table as RichTable
        from rich.text import Text

        grid = RichTable.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for word, sentence in self.notes:
            grid.add_row(word, Text(sentence, style="red" if word == "error" else ""))
        return grid

    def _rows_drawn(self) -> RichTable:
        from rich.table import Table as RichTable
        from rich.text import Text

        grid = RichTable.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for mark, key, value, became in self.rows:
            style = _STYLES[mark]
            value_style = "dim" if mark == "-" or became else ""
            grid.add_row(
                Text(mark, style=style), Text(key, style=f"bold {style}".strip()), Text(value, style=value_style)
            )
            if became:
                grid.add_row("", "", Text(f"→ {became}", style=style))
        return grid

    def html(self) -> str:
        bold, rest = map(html.escape, self.heading)
        told = "".join(
            f"<tr><td>{word}</td><td style='text-align:left;white-space:pre-wrap'>{html.escape(sentence)}</td></tr>"
            for word, sentence in self.notes
        )
        keys = "".join(map(_row_html, self.rows))
        return f"<div><b>{bold}</b>{f' {rest}' if rest else ''}<table>{told}</table><table>{keys}</table></div>"


def _row_html(row: Row) -> str:
    mark, key, value, became = row
    told = html.escape(value) + (f"<br>→ {html.escape(became)}" if became else "")
    return (
        f"<tr style='color:{_COLOURS[mark]}'><td>{mark}</td><td><b>{html.escape(key)}</b></td>"
        f"<td style='text-align:left'>{told}</td></tr>"
    )


@dataclass(frozen=True)
class Table:
    """Lines of cells under headings. The first column has numbers; the last one, words that begin with marks."""

    headings: Sequence[str]
    lines: Sequence[Sequence[Styled]]
    instead: str
    """The text if there are no lines."""
    is_drawn_empty: bool = True
    """Whether a terminal then has the headings."""

    def text(self) -> str | None:
        if not self.lines:
            return self.instead
        cells = [[text for text, _ in line] for line in self.lines]
        widths = [max(map(len, column)) for column in list(zip(*cells, strict=True))[:-1]]
        rows = []
        for number, *middle, last in cells:
            padded = [f"{text:{width}}" for text, width in zip(middle, widths[1:], strict=True)]
            rows.append("  ".join([f"{number:>{widths[0]}}", *padded, last]).rstrip())
        return "\n".join(rows)

    def drawn(self) -> RenderableType | None:
        from rich.table import Table as RichTable
        from rich.text import Text

        if not self.lines and not self.is_drawn_empty:
            return None
        table = RichTable(box=None, pad_edge=False)
        for heading in self.headings:
            table.add_column(heading, justify="right" if heading in ("#", "took") else "left")
        for line in self.lines:
            *cells, (last, style) = line
            words = [(f"{word} ", _STYLES.get(word[:1], "")) for word in last.split(" ")]
            marked = Text(last, style=style) if style else Text.assemble(*words)
            table.add_row(*(Text(text, style=style) for text, style in cells), marked)
        return table

    def html(self) -> str:
        heads = "".join(f"<th>{'' if heading == '#' else heading}</th>" for heading in self.headings)
        cells = ("".join(f"<td style='text-align:left'>{html.escape(text)}</td>" for text, _ in x) for x in self.lines)
        return f"<table><tr>{heads}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
