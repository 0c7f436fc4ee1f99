"""What user code must return for a batch, or for the parts of a request: one of each, in an order to be relied on."""

from __future__ import annotations

from collections import UserString
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from fastpipe.errors import BackendError

__all__ = ["checked_parts", "checked_results"]

_TEXTS = (str, bytes, bytearray, memoryview, UserString)


def checked_results(results: Any, count: int, who: str) -> list[Any]:
    """Return the results of a batch as a list, one for each request.

    That there are as many as requests says little: a dict has its keys, a set no order, and a text its letters.

    Args:
        results: a list, a tuple or another sequence; or an array (of NumPy, PyTorch, CuPy) with a row for each request.
        count: of the items, which are the data of requests.
        who: what returned it, for the message.

    Raises:
        BackendError: if it is anything else, or of another length.
    """
    if _is_list_of_results(results):
        listed = list(results)
        if len(listed) == count:
            return listed
        got = f"{len(listed)} in a {type(results).__name__}"
    else:
        got = _in_words(results)
    raise BackendError(f"{who} must return a list with one result for each of {count} items; got {got}")


def checked_parts(parts: Any, who: str) -> list[dict[str, Any]]:
    """Return what a ``split()`` made of a request, as a list.

    Raises:
        BackendError: it is no list (or another sequence), or not of dicts.
    """
    if not isinstance(parts, Sequence) or isinstance(parts, _TEXTS):
        raise BackendError(f"{who} must return a list of dicts, one for each part; got {_in_words(parts)}")
    for index, part in enumerate(parts):
        if not isinstance(part, dict):
            raise BackendError(f"{who} must give dicts; part {index} is {type(part).__name__}")
    return list(parts)


def _is_list_of_results(results: Any) -> bool:
    if isinstance(results, Sequence):
        # A named tuple is one answer with several fields.
        return not isinstance(results, _TEXTS) and not hasattr(results, "_fields")
    kind = type(results)
    is_array = hasattr(kind, "__dlpack__") or hasattr(
        kind, "__array_interface__"
    )  # of which a table of pandas has none
    return is_array and hasattr(kind, "__len__") and len(getattr(results, "shape", ())) > 0


def _in_words(got: Any) -> str:
    kind = type(got).__name__
    if isinstance(got, Iterator):
        return f"{kind}: return list(...) of it"
    if isinstance(got, Mapping | Set):
        return f"{kind}, whose order is its own: return a list"
    return "None" if got is None else kind
