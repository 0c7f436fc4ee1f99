"""Where keys and their values stand in a TOML file, in bytes: tree-sitter reads it, if it is installed (``cli``)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Spot", "Spots", "character_at", "spots_of"]

_JOINED_LINES = re.compile(r"\\[ \t]*\r?\n\s*")
_ESCAPE = re.compile(r"\\(?:u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)")


@dataclass(frozen=True)
class Spot:
    """Where a key or a table's header is, and a key's value: bytes from and to."""

    key: tuple[int, int]
    value: tuple[int, int] | None


Spots = dict[tuple[str, ...], Spot]


def spots_of(source: bytes) -> Spots | None:
    """Return where every key is, by its path from the top; None without tree-sitter."""
    try:
        import tree_sitter
        import tree_sitter_toml
    except ModuleNotFoundError:
        return None
    tree = tree_sitter.Parser(tree_sitter.Language(tree_sitter_toml.language())).parse(source)
    spots: Spots = {}
    for path, spot in _pairs(tree.root_node, (), source):
        spots.setdefault(path, spot)
    return spots


def _pairs(parent: Any, inside: tuple[str, ...], source: bytes) -> Iterator[tuple[tuple[str, ...], Spot]]:
    for node in parent.children:
        if node.type in ("table", "table_array_element"):
            header = node.named_children[0]
            path = _key_path(source[header.start_byte : header.end_byte])
            for depth in range(len(path), 0, -1):  # [a.b] is where a is, too, unless it has a header of its own
                yield path[:depth], Spot((header.start_byte, header.end_byte), None)
            yield from _pairs(node, path, source)
        elif node.type == "pair":
            key, value = [child for child in node.named_children if child.type != "comment"]
            path = (*inside, *_key_path(source[key.start_byte : key.end_byte]))
            yield path, Spot((key.start_byte, key.end_byte), (value.start_byte, value.end_byte))
            if value.type == "inline_table":
                yield from _pairs(value, path, source)


def _key_path(key: bytes) -> tuple[str, ...]:
    path = []
    table: Any = tomllib.loads(f"{key.decode()} = 0")
    while isinstance(table, dict):
        ((name, table),) = table.items()
        path.append(name)
    return tuple(path)


def character_at(source: bytes, start: int, end: int, index: int) -> int:
    """Return the byte at which a character of a string is, from how the string is written."""
    token = source[start:end].decode()
    position = 1
    if token.startswith(('"""', "'''")):
        position = 5 if token.startswith("\r\n", 3) else 4 if token.startswith("\n", 3) else 3
    for left in range(index, -1, -1):
        if token[0] == '"' and (joined := _JOINED_LINES.match(token, position)):
            position = joined.end()
        if left > 0:
            escape = _ESCAPE.match(token, position) if token[0] == '"' else None
            position = position + 1 if escape is None else escape.end()
    return start + len(token[:position].encode())
