"""Raw tensors, and ids, in and out of serialized messages, past protobuf, which would copy each tensor twice.

A serialized message is a row of fields: a tag, which has the field's number and kind, and what it holds. Fields may
stand in any order, and two messages one after the other are one message with the fields of both. So raw contents, which
are fields of the outermost message, are cut out of a request before protobuf reads the rest, and put behind what
protobuf wrote of an answer. With its id cut out, too, the rest of a request is the same bytes as that of the client's
request before, and need not be read again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["ANSWER_IN_STREAM", "RAW_OUTPUT", "REQUEST_ID", "Cut", "cut", "field"]

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
    size = len(body)
    view = memoryview(body)
    raw: list[memoryview] = []
    kept: list[memoryview] = []
    id = b""
    kept_from = at = 0
    while at < size:
        begin, tag = at, body[at]
        if tag & 7 != WITH_LENGTH or tag > 0x7F:
            return None
        at += 1
        length = shift = 0
        while True:
            if at >= size or shift >= 7 * MOST_LENGTH_BYTES:
                return None
            byte = body[at]
            at += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        end = at + length
        if end > size:
            return None
        if tag in (RAW_INPUT, REQUEST_ID):
            if tag == RAW_INPUT:
                raw.append(view[at:end])
            else:
                id = body[at:end]  # of several, protobuf takes the last
            if begin > kept_from:
                kept.append(view[kept_from:begin])
            kept_from = end
        at = end
    if kept_from < size:
        kept.append(view[kept_from:])
    return Cut(b"".join(kept), id, raw)


def field(tag: int, content: Iterable[bytes | memoryview]) -> list[bytes | memoryview]:
    """Return the pieces of a field of bytes: its head, and ``content``, which is not copied."""
    pieces = list(content)
    length = sum(map(_size_bytes, pieces))
    head = bytearray((tag,))
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return [bytes(head), *pieces]


def _size_bytes(piece: bytes | memoryview) -> int:
    return piece.nbytes if isinstance(piece, memoryview) else len(piece)
