r"""What the command line writes: the one way to the terminal, on which no text of others can do more than be read.

Records, requests, names of files and errors may hold whatever a stranger has sent: control characters that move the
cursor, set the window's title, or let a line look like another. Here they are shown as Python writes them: ``\x1b``.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fastpipe.cli.paths import writing

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment

__all__ = [
    "Escaping",
    "blank",
    "column_count",
    "complain",
    "escaped",
    "escaped_line",
    "progress_console",
    "put",
    "say",
    "show",
]

Part = tuple[str, str]
"""Text, and its style as rich calls it."""

_ASCII = str.maketrans("│┊─┄├┤┬┴┼╮╭╯╰●■▼×–·↺→", "|:--+++++++++*#vx-;@>")


def escaped(text: str) -> str:
    """Return text with everything escaped that is no visible character, blank, tab or end of a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in text)


def escaped_line(text: str) -> str:
    """Return text as one line, so that nobody's text can pass for a line of ours."""
    return escaped(text).replace("\n", "\\n")


def show(shown: Any) -> None:
    """Write something to the standard output: with rich in a terminal, if it is installed; otherwise as text."""
    console = _console()
    if console is None:
        _write(str(shown))
    else:
        _print_rich(console, shown)


def say(*parts: Part) -> None:
    """Write a line of several styles to the standard output, as ``show``; a terminal breaks it where it likes."""
    console = _console(soft_wrap=True)
    if console is None:
        _write("".join(text for text, _ in parts))
    else:
        from rich.text import Text

        _print_rich(console, Text.assemble(*parts))


def put(text: str, path: Path | None) -> None:
    """Write text to a file; None: to the standard output."""
    if path is None:
        say((text.removesuffix("\n"), ""))
    else:
        with writing(path):
            path.write_text(text, encoding="utf-8")


def _console(*, soft_wrap: bool = False) -> Console | None:
    """Return rich's way to the terminal, if the standard output is one and rich is installed."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(soft_wrap=soft_wrap)


def _write(text: str) -> None:
    """Write lines to the standard output: in ASCII, if need be."""
    text = escaped(text)
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def progress_console() -> Console | None:
    """Return rich's way to the standard error output, if that is a terminal and rich is installed.

    What is drawn there is not escaped: it may show fixed words and numbers, and no text of others.
    """
    stream = sys.stderr.stream if isinstance(sys.stderr, Escaping) else sys.stderr
    if not stream.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=stream)


def column_count(text: str) -> int:
    """Return how many columns a terminal gives to text, at least one."""
    return max(sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text), 1)


def blank(text: str) -> str:
    """Return blanks as wide as ``text``; tabs stay, however wide they are."""
    return "".join(c if c == "\t" else " " * column_count(c) for c in text)


def complain(text: str) -> None:
    """Write a line to the standard error output."""
    sys.stderr.write(f"{escaped(text)}\n")


def _print_rich(console: Console, shown: Any) -> None:
    """Print what rich can draw, or text; what is rich's own, colours and the like, is as it was."""
    console.print(_Escaped(shown), highlight=False, markup=False)


@dataclass(frozen=True)
class _Escaped:
    """Something that rich draws, with its text escaped."""

    drawn: Any

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        from rich.segment import Segment

        drawn = escaped(self.drawn) if isinstance(self.drawn, str) else self.drawn
        for text, style, control in console.render(drawn, options.update(highlight=False, markup=False)):
            yield Segment(text if control else escaped(text), style, control)


class Escaping:
    """A text stream in front of another, which escapes what is written: for others that write, such as ``logging``.

    It says that it is no terminal, so that nobody writes colours to it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(escaped(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
