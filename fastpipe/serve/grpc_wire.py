"""Raw tensors, and ids, in and out of serialized messages, past protobuf, which would copy each tensor twice.

A serialized message is a row of fields: a tag, which has the field's number and kind, and what it holds. Fields may
stand in any order, and two messages one after the other are one message with the fields of both. So raw contents, which
are fields of the outermost message, are cut out of a request before protobuf reads the rest, and put behind what
protobuf wrote of an answer. With its id cut out, too, the rest of a request is the same bytes as that of the client's
request before, and need not be read again.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

__all__ = ["ANSWER_IN_STREAM", "RAW_OUTPUT", "REQUEST_ID", "Cut", "cut", "field_head"]

WITH_LENGTH = 2
"""The kind of field that says its length first: bytes, texts, messages."""

REQUEST_ID = 3 << 3 | WITH_LENGTH
"""The tag of ``id``, in ``ModelInferRequest`` and in ``ModelInferResponse``."""
RAW_INPUT = 7 << 3 | WITH_LENGTH
"""The tag of ``ModelInferRequest.raw_input_contents``."""
RAW_OUTPUT = 6 << 3 | WITH_LENGTH
"""The tag of ``ModelInferResponse.raw_output_contents``."""
ANSWER_IN_STREAM = 2 << 3 | WITH_LENGTH
"""The tag of ``ModelStreamInferResponse.infer_response``."""

MOST_LENGTH_BYTES = 5
"""Of a length; no message of gRPC is longer than 4 GiB."""
MOST_HEADS = 256


class Cut(NamedTuple):
    """A serialized ``ModelInferRequest``, taken apart."""

    head: bytes
    """What is left, for protobuf to read."""
    id: bytes
    """In UTF-8, or not: nobody has looked."""
    raw: list[memoryview]
    """The raw contents, as views of the request."""


def cut(body: bytes) -> Cut | None:
    """Take a serialized ``ModelInferRequest`` apart.

    Returns:
        None: the body has something at its outermost level that no ``ModelInferRequest`` of the protocol has, or is
        damaged: protobuf shall read all of it, or say what is wrong.
    """
    view = memoryview(body)
    raw: list[memoryview] = []
    kept: list[bytes] = []
    id = b""
    kept_from = at = 0
    size = len(body)
    try:
        while at < size:
            begin, tag, length = at, body[at], body[at + 1]
            if tag & 7 != WITH_LENGTH or tag > 0x7F:
                return None
            at += 2
            if length > 0x7F:
                length, at = _long_length(body, at - 1)
            at += length
            if tag == RAW_INPUT:
                raw.append(view[at - length : at])
            elif tag == REQUEST_ID:
                id = body[at - length : at]  # of several, protobuf takes the last
            else:
                continue
            if begin > kept_from:
                kept.append(body[kept_from:begin])
            kept_from = at
    except IndexError:
        return None
    if at != size:
        return None
    if kept_from < size:
        kept.append(body[kept_from:])
    return Cut(kept[0] if len(kept) == 1 else b"".join(kept), id, raw)


def _long_length(body: bytes, at: int) -> tuple[int, int]:
    """Return a length of several bytes that begins there, and where it ends.

    Raises:
        IndexError: it does not end.
    """
    length = 0
    for shift in range(0, 7 * MOST_LENGTH_BYTES, 7):
        byte = body[at]
        at += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return length, at
    raise IndexError(at)


@lru_cache(MOST_HEADS)
def field_head(tag: int, length: int) -> bytes:
    """Return what stands in front of a field's content of so many bytes."""
    head = bytearray((tag,))
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head)
