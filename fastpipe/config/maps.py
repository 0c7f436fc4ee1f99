"""The key ``map``, in each of the forms that it may have: which keys of whose request become which keys here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastpipe.config.values import BadValue
from fastpipe.errors import ConfigError, Mistake

__all__ = ["MapEntry", "read_map"]

# Single characters are not given back ("*+"), so that spaces are gone over once. Groups would be ("(?:...)*"), at no
# cost: with "*+" behind a group, Python before 3.11.5 matches what does not.
_MAP_ENTRY = re.compile(r"\s*+([^\s,\[\]|]*+(?:\s*+\|\s*+[^\s,\[\]|]++)*)\s*+(?:\[([^\[\]]*+)\])?\s*+(?:,|$)")


@dataclass(frozen=True)
class MapEntry:
    """One entry of ``map``: which keys of which ancestor's request become which keys here."""

    sources: tuple[str, ...]
    """The ancestor's name; of several, the first that has run is read. Empty: the only parent."""
    keys: tuple[tuple[str, str], ...]
    """Pairs of key there, key here."""


def read_map(written: Any) -> tuple[MapEntry, ...]:
    """Read text such as ``"B[result:x],C[result:data]"``, a list of such, or a mapping of mappings.

    Raises:
        ConfigError: with the column, in text; or a key here is written twice.
    """
    if isinstance(written, list | tuple) and all(isinstance(part, str) for part in written):
        written = ",".join(written)
    if isinstance(written, str):
        entries = _read_text(written)
    elif isinstance(written, Mapping):
        entries = _read_table(written)
    else:
        raise ConfigError(str(BadValue("text such as 'B[result:x],C[result:data]'", written)))
    twice = list(_written_twice(entries))
    if twice:
        raise ConfigError(*twice)
    return entries


def _written_twice(entries: tuple[MapEntry, ...]) -> Iterator[Mistake]:
    written: set[str] = set()
    for entry in entries:
        for _, here in entry.keys:
            if here in written:
                yield Mistake(f"{here!r} is written twice", part=here)
            written.add(here)


def _read_text(text: str) -> tuple[MapEntry, ...]:
    """Read ``"B[result:x,color:color],C,[result:data]"``, and ``"light|heavy[result:data]"``."""
    entries: list[MapEntry] = []
    position = 0
    while position < len(text) or not entries:
        match = _MAP_ENTRY.match(text, position)
        if match is None or not (match.group(1) or match.group(2)):
            problem = f"expected 'node[key there:key here]', in {text!r}"
            raise ConfigError(Mistake(problem, part=position + 1))
        written, inside = match.groups()
        keys = [("result", "data")] if inside is None else [_read_pair(pair, text) for pair in inside.split(",")]
        entries.append(MapEntry(_read_sources(written, text), tuple(keys)))
        position = match.end()
    return tuple(entries)


def _read_sources(written: str, text: object) -> tuple[str, ...]:
    """Read ``light|heavy``: nodes of which one is read."""
    sources = tuple(name.strip() for name in written.split("|")) if written else ()
    if not all(sources) or len(set(sources)) < len(sources):
        raise ConfigError(f"expected the names of different nodes around '|', got {written!r} in {text!r}")
    return sources


def _read_pair(pair: str, text: str) -> tuple[str, str]:
    there, colon, here = (part.strip() for part in pair.partition(":"))
    if not (there and colon and here) or ":" in here:
        raise ConfigError(f"expected 'key there:key here', got {pair.strip()!r} in {text!r}")
    return there, here


def _read_table(table: Mapping[Any, Any]) -> tuple[MapEntry, ...]:
    """Read ``{"B": {"result": "x"}, "C": {"result": "data"}}``."""
    if not table:
        raise ConfigError("expected {node: {key there: key here}}, got {}; without the key, nothing is mapped")
    entries: list[MapEntry] = []
    for source, keys in table.items():
        pairs = tuple(keys.items()) if isinstance(keys, Mapping) else ()
        names = [key for pair in pairs for key in pair]
        if not isinstance(source, str) or not names or not all(isinstance(name, str) and name for name in names):
            raise ConfigError(f"expected {{node: {{key there: key here}}}}, got {dict(table)!r}")
        entries.append(MapEntry(_read_sources(source, dict(table)), pairs))
    return tuple(entries)
