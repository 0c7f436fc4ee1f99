"""What a picture of a graph consists of, and what all its forms share: kinds, colours, and text that fits."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "COLOURS",
    "DASHES",
    "EDGE_WORDS",
    "NODE_COLOURS",
    "NODE_WORDS",
    "Kind",
    "NodeKind",
    "PictureEdge",
    "PictureNode",
    "as_html",
    "below_name",
    "columns",
    "visible",
    "wrapped",
]

Kind = Literal["next", "map", "jump", "proxy", "restart"]
NodeKind = Literal["model", "image", "tensor", "sub-graph", "own", "basic"]


@dataclass(frozen=True)
class PictureNode:
    """A node as it is drawn."""

    name: str
    backend: str
    details: tuple[str, ...]
    is_root: bool  # requests that name no node enter here
    is_leaf: bool
    is_part: bool  # only parts of requests come here, from a Jump or MapReduce
    kind: NodeKind = "basic"
    files: tuple[str, ...] = ()  # its models, by the names of their files
    numbers: tuple[str, ...] = ()  # what it did, a line each


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
EDGE_WORDS: dict[Kind, str] = {
    "map": "read by a map",
    "jump": "runs a sub-graph",
    "proxy": "runs another node",
    "restart": "enters again",
}
# A basic step has none. Of medium lightness, so that each shows on white and on black, and told apart without red or
# green.
NODE_COLOURS: dict[NodeKind, str] = {
    "model": "#cc5a8f",
    "image": "#1f9aa5",
    "tensor": "#4c9f48",
    "sub-graph": "#a06cd5",
    "own": "#6277d9",
}
NODE_WORDS: dict[NodeKind, str] = {
    "model": "model",
    "image": "image",
    "tensor": "tensor",
    "sub-graph": "sub-graph",
    "own": "code of your own",
}


def below_name(node: PictureNode) -> Iterator[str]:
    """Yield what stands below a node's name."""
    if node.backend:
        yield node.backend
    yield from node.files
    if node.details:
        yield " · ".join(node.details)
    yield from node.numbers


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


def wrapped(text: str, width: int, behind: str = ", [·") -> list[str]:
    """Break ``text`` behind commas, brackets and the like where that is possible, anywhere where it is not."""
    lines, line = [], ""
    for word in _words(text, width, behind):
        if line and columns(line + word.rstrip()) > width:
            lines.append(line.rstrip())
            line = ""
        line += word
    return [*lines, line.rstrip()] if line else lines


def _words(text: str, width: int, behind: str) -> Iterator[str]:
    word = ""
    for character in text:
        if word and columns(word + character) > width:
            yield word
            word = ""
        word += character
        if character in behind:
            yield word
            word = ""
    if word:
        yield word
