"""JSON, read and written: by orjson, and by Python's own where orjson will not."""

from __future__ import annotations

import json
from typing import Any

from fastpipe.errors import MissingExtra
from fastpipe.serve.statuses import InvalidRequest

try:
    import orjson
except ImportError as missing:
    raise MissingExtra("fastpipe.serve", "serve", missing) from missing

__all__ = ["dumps", "loads", "numbers"]

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def loads(text: bytes | memoryview) -> Any:
    """Return what a document says.

    The words NaN, Infinity and -Infinity are numbers, too, as real clients write them: only Python's own reader takes
    them, so it has a second look at what orjson refuses.

    Raises:
        InvalidRequest: it is no JSON, or nested too deeply.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as refused:
        try:
            return json.loads(bytes(text))
        except (ValueError, RecursionError):
            raise InvalidRequest(f"the JSON cannot be read: {refused}") from None


def dumps(value: Any) -> bytes:
    """Return a document; NumPy's arrays are lists. NaN, and what is infinite, is null.

    Raises:
        TypeError: something in it has no form in JSON, such as bytes.
    """
    return orjson.dumps(value, _as_plain, _OPTIONS)


def numbers(values: list[Any]) -> orjson.Fragment:
    """Return a list of numbers for a document in which infinity stays itself: ``Infinity``, which is no strict JSON."""
    return orjson.Fragment(json.dumps(values))


def _as_plain(value: Any) -> Any:
    """Return what orjson asks for: an array that is not contiguous, or of an odd dtype; whatever has ``tolist``."""
    as_list = getattr(value, "tolist", None)
    if callable(as_list):
        return as_list()
    raise TypeError(f"a {type(value).__name__} has no form in JSON")
