"""What a picture of a graph consists of, and what all its forms share: colours, and text that fits."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "COLOURS", "DASHES", "Kind", "PictureEdge", "PictureNode", "as_html", "below_name", "columns", "visible", "wrapped",
]  # fmt: skip

Kind = Literal["next", "map", "jump", "proxy", "restart"]


@dataclass(frozen=True)
class PictureNode:
    """A node as it is drawn."""

    name: str
    backend: str
    details: tuple[str, ...]
    is_root: bool  # requests that name no node enter here
    is_leaf: bool
    is_part: bool  # only parts of requests come here, from a Jump or MapReduce


@dataclass(frozen=True)
class PictureEdge:
    """What leads from one node to another, both as numbers."""

    source: int
    target: int
    kind: Kind
    label: str = ""


COLOURS: dict[Kind, str] = {
    "next": "#7d8590",
    "map": "#3f86d4",
    "jump": "#a06cd5",
    "proxy": "#a06cd5",
    "restart": "#d9822b",
}
DASHES: dict[Kind, str] = {"next": "none", "map": "6 4", "jump": "2 4", "proxy": "2 4", "restart": "8 3 2 3"}


def below_name(node: PictureNode) -> Iterator[str]:
    """Yield what stands below a node's name."""
    if node.backend:
        yield node.backend
    if node.details:
        yield " · ".join(node.details)


def visible(text: str) -> str:
    """Return ``text`` with what cannot be printed written out: a name must neither steer a terminal nor break XML."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def as_html(text: str) -> str:
    """Return text as HTML, or XML."""
    return html.escape(text)


def columns(text: str) -> int:
    """Return how many columns of a terminal, or of a font of fixed width, ``text`` takes."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def wrapped(text: str, width: int) -> list[str]:
    """Break ``text`` behind commas, brackets and spaces where that is possible, anywhere where it is not."""
    lines, line = [], ""
    for word in _words(text, width):
        if line and columns(line + word.rstrip()) > width:
            lines.append(line.rstrip())
            line = ""
        line += word
    return [*lines, line.rstrip()] if line else lines


def _words(text: str, width: int) -> Iterator[str]:
    word = ""
    for character in text:
        if word and columns(word + character) > width:
            yield word
            word = ""
        word += character
        if character in ", [·":
            yield word
            word = ""
    if word:
        yield word
