"""Which keys have values that nobody but their owner should see: the one list of them, for records and summaries.

A key is judged by its name alone, whatever its case and however its words are joined: ``API-Key``, ``apiKey`` and
``api_key`` are the same. Text that holds a secret under another name is not noticed.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import re
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = [
    "IN_ITS_PLACE",
    "LEFT_OUT",
    "Secrets",
    "attributes_of",
    "is_secret_pair",
    "lines_without",
    "looks_secret",
    "names_of_items",
    "own_copy_without",
    "secret_texts",
    "text_without",
]

LEFT_OUT = "left out, as its key looks like that of a secret"
# What stands in a text for a value that nobody should see.
IN_ITS_PLACE = "<secret>"

# Of a key in lower case, without what joins its words. "token" only at the end: "tokens", "token_ids" and "tokenizer"
# are what language models are given.
_SECRET = re.compile(
    r"passw(or)?d|passphrase|pwd$|secret|authorization|cookie|credential|bearer|jwt$|token$"
    r"|(api|access|auth|private|secret|model|encryption|decryption|signing|ssh|shared)key"
)
_NOT_IN_WORDS = re.compile(r"[^a-z0-9]+")
# A word, and whether something is assigned to it, as to a parameter in "OnnxTensor(model_key=...)". Words are matched
# whole ("++"): a long one, such as base64, would be gone over once from each of its letters, under the GIL.
_WRITTEN_PARAMETER = re.compile(r"([\w:-]++)(\s*+=)?")
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
    if isinstance(value, tuple):  # its own methods, not those of a subclass
        return tuple.__len__(value) == 2 and looks_secret(tuple.__getitem__(value, 0))
    return isinstance(value, list) and list.__len__(value) == 2 and looks_secret(list.__getitem__(value, 0))


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
    return any(found[2] is not None and looks_secret(found[1]) for found in _WRITTEN_PARAMETER.finditer(text))


def names_of_items(value: tuple[Any, ...]) -> tuple[str, ...]:
    """Return the names of a named tuple's items, read without asking its class; empty: the items have no names."""
    for base in type(value).__mro__:
        names = vars(base).get("_fields")
        if names is not None:
            are_names = type(names) is tuple and all(type(name) is str for name in names)
            return names if are_names and len(names) == tuple.__len__(value) else ()
    return ()


def attributes_of(value: Any) -> dict[str, Any]:
    """An object's attributes, read without asking the object."""
    try:
        found = object.__getattribute__(value, "__dict__")
        return dict.copy(found) if isinstance(found, dict) else {}
    except AttributeError:
        attributes = {}
        for name, member in vars(type(value)).items():
            if type(member) is types.MemberDescriptorType:
                try:
                    attributes[name] = member.__get__(value)
                except AttributeError:  # a slot that is not filled
                    continue
        return attributes


def secret_texts(value: Any) -> Iterator[str]:
    """Yield the texts under such keys and in such fields, at any depth, as an error may repeat them: also escaped.

    Of an error, its attributes, its arguments and what led to it are looked at; of any other object, its attributes,
    but not what is inside of those. What cannot be looked into is passed over.
    """
    seen: dict[int, Any] = {}  # by id, which is its own while it is alive
    level = [value]
    for _ in range(DEEPEST):
        inside: list[Any] = []
        for each in level:
            if id(each) in seen:  # a cycle, or one object in many places
                continue
            seen[id(each)] = each
            try:
                children = list(_named(each))
            except Exception:  # a mapping of the user's that raises, or is changed meanwhile
                continue
            for key, inner in children:
                if key is not None and looks_secret(key):
                    yield from _forms_of(inner)
                elif type(inner) not in _LEAVES:
                    inside.append(inner)
        level = inside


def _forms_of(secret: Any) -> Iterator[str]:
    """Yield what an error may repeat of what stands under a secret's key; nothing of short texts and other values."""
    if isinstance(secret, str | bytes) and len(secret) >= _SHORTEST_SCRUBBED:
        yield from _as_written(secret)


_LEAVES = frozenset({type(None), bool, int, float, complex, str, bytes})
_OF_ITEMS: tuple[Any, ...] = (set, frozenset, deque)


def _named(value: Any) -> Iterable[tuple[Any, Any]]:
    """What is inside of a value, each with its key, the name of its field, or None."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list | tuple):
        items = tuple.__iter__(value) if isinstance(value, tuple) else list.__iter__(value)
        if is_secret_pair(value):
            key, inner = items
            return [(key, inner)]
        names = names_of_items(value) if isinstance(value, tuple) else ()
        return zip(names or itertools.repeat(None), items, strict=False)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(each.name, object.__getattribute__(value, each.name)) for each in dataclasses.fields(value)]
    if isinstance(value, BaseException):
        attributes = object.__getattribute__(value, "__dict__")
        return [*attributes.items(), *((None, each) for each in (value.args, value.__cause__, value.__context__))]
    for kind in _OF_ITEMS:
        if isinstance(value, kind):
            return [(None, each) for each in kind.__iter__(value)]
    bases = map(vars, type(value).__mro__)
    if any("__dict__" in base or "__slots__" in base for base in bases):  # numbers of NumPy, say, have no attributes
        return [(name, each) for name, each in attributes_of(value).items() if looks_secret(name)]
    return ()


def _as_written(secret: str | bytes) -> tuple[str, str, str]:
    """A text as it is, as ``repr()`` writes it, and as JSON does."""
    text = secret if isinstance(secret, str) else secret.decode("latin-1")
    return text, repr(secret).removeprefix("b")[1:-1], json.dumps(text)[1:-1]


class Secrets:
    """Texts that nobody should see, of configurations and requests, to be left out of what an error says.

    Immutable.
    """

    def __init__(self, *values: Any) -> None:
        found = {text for value in values for text in secret_texts(value)}
        self._texts = tuple(sorted(found, key=len, reverse=True))  # one may be a part of another

    def and_of(self, *values: Any) -> Secrets:
        """Return these with those of more values."""
        more = Secrets(*values)
        more._texts = tuple(sorted({*self._texts, *more._texts}, key=len, reverse=True))
        return more

    def left_out_of(self, text: str) -> str:
        """Return the text with something else in the place of each."""
        for secret in self._texts:
            text = text.replace(secret, IN_ITS_PLACE)
        return text


# The same of a line of a file, where a key may be quoted.
_ASSIGNED = re.compile(r"([\w:.-]++)([\"']?+\s*+=)?")


def text_without(text: str) -> str:
    """Return a line that was written for a configuration, up to the first value that nobody should see."""
    for found in _ASSIGNED.finditer(text):
        if found[2] is None:
            continue
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
