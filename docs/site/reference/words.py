"""Types and limits in words."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from fastpipe.contract import Between

__all__ = ["default_in_words", "form_in_words", "limits_in_words", "number_in_words", "type_in_words"]

_PLAIN = {
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    str: "text",
    bytes: "bytes",
    Path: "path",
    dict: "table",
    Mapping: "table",
    Callable: "function",
    Any: "anything",
    type(None): "none",
}
_FORMS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "`true` or `false`",
    "array": "list",
    "object": "table",
}


def type_in_words(annotation: Any) -> str:
    """Return what values an annotation admits: ``list of whole numbers``; limits are ``limits_in_words``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_in_words(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_in_words(each) for each in arguments if each is not type(None)))
    if origin is Literal:
        return _one_of(arguments)
    kind = origin or annotation
    if isinstance(kind, type) and kind is not str and issubclass(kind, list | tuple | Sequence):
        return _list_in_words(arguments)
    return _PLAIN.get(kind, f"`{getattr(kind, '__name__', kind)}`")


def _list_in_words(arguments: tuple[Any, ...]) -> str:
    items = tuple(each for each in arguments if each is not Ellipsis)
    if not items:
        return "list"
    if len(items) == len(arguments) and len(items) > 1:
        return f"{len(items)} values: " + ", ".join(map(type_in_words, items))
    inner = type_in_words(items[0])
    return f"list of {_many(inner)}"


def _many(words: str) -> str:
    """Return the plural of a type, or the choices as they are."""
    return f"{words}s" if words in ("whole number", "number", "text", "path", "table") else words


def _one_of(choices: Sequence[Any]) -> str:
    return " or ".join(f"`{json.dumps(choice)}`" for choice in choices)


def limits_in_words(annotation: Any, unit: str = "") -> str:
    """Return the limits of numbers, ``1 to 4096``, anywhere in an annotation; an empty text where there are none."""
    if get_origin(annotation) is Annotated:
        for extra in annotation.__metadata__:
            if isinstance(extra, Between):
                return f"{number_in_words(extra.low)} to {number_in_words(extra.high)}{unit}"
    inner = (limits_in_words(each, unit) for each in get_args(annotation) if get_origin(annotation) is not Literal)
    return next(filter(None, inner), "")


def number_in_words(number: float) -> str:
    """Return a number with commas between thousands, or as a power of two where it is one above a million."""
    if isinstance(number, int) and number > 1_000_000 and number & (number - 1) == 0:
        return f"2^{number.bit_length() - 1}"
    return f"{number:,}" if isinstance(number, int) else f"{number:,.10f}".rstrip("0").rstrip(".")


def form_in_words(form: Mapping[str, Any]) -> str:
    """Return what values a JSON schema admits."""
    if "anyOf" in form:
        choices = dict.fromkeys(form_in_words(each) for each in form["anyOf"])
        return " or ".join(each for each in choices if not any(other.startswith(f"{each} of") for other in choices))
    kinds = form["type"] if isinstance(form["type"], list) else [form["type"]]
    words = []
    for kind in kinds:
        if kind == "object" and form.get("properties"):
            words.append("table of " + ", ".join(f"`{name}`" for name in form["properties"]))
        elif kind == "array" and "items" in form:
            words.append(f"list of {_many(form_in_words(form['items']))}")
        else:
            words.append(_FORMS[kind])
    return " or ".join(words)


def default_in_words(default: Any) -> str:
    """Return a default as a configuration has it: ``2`` for 2.0, nothing for None."""
    if default is None:
        return ""
    if isinstance(default, float):
        return f"`{number_in_words(default)}`"
    if isinstance(default, str | bool | int):
        return f"`{json.dumps(default)}`"
    if isinstance(default, list | tuple):
        return f"`{json.dumps(list(default))}`"
    return f"`{default}`"
