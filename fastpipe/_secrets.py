"""Which keys have values that nobody but their owner should see: the one list of them, for records and summaries.

A key is judged by its name alone, whatever its case and however its words are joined: ``API-Key``, ``apiKey`` and
``api_key`` are the same. Text that holds a secret under another name is not noticed.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = [
    "LEFT_OUT",
    "is_secret_pair",
    "lines_without",
    "looks_secret",
    "own_copy_without",
    "secret_texts",
    "text_without",
]

LEFT_OUT = "left out, as its key looks like that of a secret"

# Of a key in lower case, without what joins its words. "token" only at the end: "tokens", "token_ids" and "tokenizer"
# are what language models are given.
_SECRET = re.compile(
    r"passw(or)?d|passphrase|pwd$|secret|authorization|cookie|credential|bearer|jwt$|token$"
    r"|(api|access|auth|private|secret|model|encryption|decryption|signing|ssh|shared)key"
)
_NOT_IN_WORDS = re.compile(r"[^a-z0-9]+")
# A parameter in the bracket notation, as in "OnnxTensor(model_key=...)".
_WRITTEN_PARAMETER = re.compile(r"([A-Za-z_][\w:-]*)\s*=")
# A text that is shorter may be a part of any other.
_SHORTEST_SCRUBBED = 4
# How deep in a request secrets are looked for, which is as deep as a record goes.
DEEPEST = 64
# One of these, misspelt, is a secret all the same.
_NAMES = (
    "api_key",
    "authorization",
    "credentials",
    "model_key",
    "passphrase",
    "password",
    "private_key",
    "secret",
    "token",
)


def looks_secret(key: Any) -> bool:
    """Say whether a key, text or bytes, is named like that of a secret."""
    if isinstance(key, bytes):
        key = bytes.decode(key, "latin-1")
    return isinstance(key, str) and _SECRET.search(_NOT_IN_WORDS.sub("", str.lower(key))) is not None


def is_secret_pair(value: Any) -> bool:
    """Say whether a value is a key like that with what belongs to it, as headers are: ``("Authorization", ...)``."""
    return type(value) in (tuple, list) and len(value) == 2 and looks_secret(value[0])


def own_copy_without(written: Any, left_out: list[str], where: str = "") -> Any:
    """Return a configuration without the values of such keys; ``left_out`` gets the places where they were.

    A text in bracket notation that has such a parameter is left out as a whole.
    """
    if isinstance(written, Mapping):
        kept = {}
        for key, inner in written.items():
            place = f"{where}[{key!r}]"
            is_secret = looks_secret(key) and not (not where and _is_node(inner))
            if is_secret or (isinstance(inner, str) and _has_secret_parameter(inner)):
                left_out.append(place)
            else:
                kept[key] = own_copy_without(inner, left_out, place)
        return kept
    if is_secret_pair(written):
        left_out.append(f"{where}[1]")
        return [written[0]]
    if isinstance(written, list | tuple):
        return [own_copy_without(inner, left_out, f"{where}[{index}]") for index, inner in enumerate(written)]
    return written


def _is_node(value: Any) -> bool:
    """Say whether the value of a name is a node, whatever the node is called."""
    return isinstance(value, Mapping) and not {"backend", "filter", "next", "map"}.isdisjoint(value)


def _has_secret_parameter(text: str) -> bool:
    return any(looks_secret(name) for name in _WRITTEN_PARAMETER.findall(text))


def secret_texts(value: Any, depth: int = DEEPEST) -> Iterator[str]:
    """Yield the texts under such keys, at any depth up to ``depth``, as an error may repeat them: also escaped."""
    if not depth:
        return
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif type(value) in (list, tuple):
        pairs = [value] if is_secret_pair(value) else [(None, item) for item in value]
    else:
        return
    for key, inner in pairs:
        if not looks_secret(key):
            yield from secret_texts(inner, depth - 1)
        elif isinstance(inner, str | bytes) and len(inner) >= _SHORTEST_SCRUBBED:
            text = inner if isinstance(inner, str) else inner.decode("latin-1")
            yield from (text, repr(inner).removeprefix("b")[1:-1], json.dumps(text)[1:-1])


# A key of a file, or a parameter of the bracket notation, with what assigns to it.
_ASSIGNED = re.compile(r"([A-Za-z_][\w:.-]*)[\"']?\s*=")


def text_without(text: str) -> str:
    """Return a line that was written for a configuration, up to the first value that nobody should see."""
    for found in _ASSIGNED.finditer(text):
        if looks_secret(found[1]) or difflib.get_close_matches(found[1].lower(), _NAMES, n=1, cutoff=0.8):
            return f"{text[: found.end()]} ..."
    return text


def lines_without(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a configuration file, those of a value that nobody should see as dots, however many it has."""
    closing = ""
    for line in lines:
        shown = text_without(line)
        if closing:
            yield "..."
            closing = "" if closing in line else closing
            continue
        if shown != line:
            hidden = line[len(shown.removesuffix(" ...")) :]
            closing = next((mark for mark in ('"""', "'''") if hidden.count(mark) == 1), "")
        yield shown
