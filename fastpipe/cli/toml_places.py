"""Where keys and their values stand in a TOML file, in bytes: tree-sitter reads it, if it is installed (``cli``)."""

from __future__ import annotations

import bisect
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

__all__ = ["Places", "Spot", "character_at", "places_in"]

_WORDS = re.compile(r"[\w.:-]+")
_CONTINUED = bytes(range(0x80, 0xC0))  # of UTF-8: those with which no character begins
_BLOCK_BYTES = 4096
_JOINED_LINES = re.compile(r"\\[ \t]*\r?\n\s*")
_ESCAPE = re.compile(r"\\(?:u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)")


@dataclass(frozen=True)
class Spot:
    """Where a key or a table's header is, and a key's value: bytes from and to."""

    key: tuple[int, int]
    value: tuple[int, int] | None


class Places:
    """Where everything stands in one file. A question costs as much in a long file as in a short one."""

    def __init__(self, source: bytes, spots: dict[tuple[str, ...], Spot]) -> None:
        self.source = source
        self.spots = spots
        """By the path of a key from the top."""
        self._keys: dict[tuple[tuple[str, ...], str], list[str]] = {}
        for *table, name in spots:
            parts = name.split("::")
            meant = {"::".join(parts[first:]) for first in range(len(parts))}
            if "_" not in name:
                meant.add("_".join(parts))
            for key in meant:
                self._keys.setdefault((tuple(table), key), []).append(name)
        self._line_starts = [0, *(found.end() for found in re.finditer(b"\n", source))]
        blocks = (source[start : start + _BLOCK_BYTES] for start in range(0, len(source), _BLOCK_BYTES))
        self._characters = [0, *accumulate(map(_character_count, blocks))]  # before each block
        self._words: dict[tuple[int, int], dict[str, int]] = {}

    def names_of(self, table: tuple[str, ...], key: str) -> list[str]:
        """Return the names in a table, as written, that may mean a key: also ``S::key``, and ``a::b`` for ``a_b``."""
        return self._keys.get((table, key), [])

    def line_and_column(self, at: int) -> tuple[int, int]:
        """Return where a byte is, for people: both from 1, the column in characters."""
        line = bisect.bisect(self._line_starts, at)
        return line, self._characters_before(at) - self._characters_before(self._line_starts[line - 1]) + 1

    def _characters_before(self, at: int) -> int:
        block = at // _BLOCK_BYTES
        return self._characters[block] + _character_count(self.source[block * _BLOCK_BYTES : at])

    def word_in(self, word: str, start: int, end: int) -> tuple[int, int] | None:
        """Return where a word is in a value that stands from ``start`` to ``end``; None: it is not there as it is."""
        if _WORDS.fullmatch(word):
            first = self._words_of(start, end).get(word)
        else:
            value = self.source[start:end].decode()
            found = re.search(rf"(?<![\w.:-]){re.escape(word)}(?![\w.:-])", value)
            first = None if found is None else start + len(value[: found.start()].encode())
        return None if first is None else (first, first + len(word.encode()))

    def _words_of(self, start: int, end: int) -> dict[str, int]:
        words = self._words.get((start, end))
        if words is None:
            words = self._words[start, end] = {}
            value, before = self.source[start:end].decode(), 0
            for found in _WORDS.finditer(value):
                start += len(value[before : found.start()].encode())
                before = found.start()
                words.setdefault(found.group(), start)
        return words


def _character_count(utf8: bytes) -> int:
    return len(utf8.translate(None, _CONTINUED))


def places_in(source: bytes) -> Places | None:
    """Return where everything stands in a TOML file; None without tree-sitter."""
    try:
        import tree_sitter
        import tree_sitter_toml
    except ModuleNotFoundError:
        return None
    tree = tree_sitter.Parser(tree_sitter.Language(tree_sitter_toml.language())).parse(source)
    spots: dict[tuple[str, ...], Spot] = {}
    for path, spot in _pairs(tree.root_node, (), source):
        spots.setdefault(path, spot)
    return Places(source, spots)


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
            for depth in range(len(path) - 1, len(inside), -1):  # a.b = 1 is where a is, too
                yield path[:depth], Spot((key.start_byte, key.end_byte), None)
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
