"""Raw tensors in and out of serialized messages, past protobuf, which would copy each of them twice.

A serialized message is a row of fields: a tag, which has the field's number and kind, and what it holds. Fields may stand
in any order, and two messages one after the other are one message with the fields of both. So raw contents, which are
fields of the outermost message, are cut out of a request before protobuf reads the rest, and put behind what
protobuf wrote of an answer.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["ANSWER_IN_STREAM", "RAW_INPUT", "RAW_OUTPUT", "field", "without_raw"]

WITH_LENGTH = 2
"""The kind of field that says its length first: bytes, texts, messages."""

RAW_INPUT = 7 << 3 | WITH_LENGTH
"""The tag of ``ModelInferRequest.raw_input_contents``."""
RAW_OUTPUT = 6 << 3 | WITH_LENGTH
"""The tag of ``ModelInferResponse.raw_output_contents``."""
ANSWER_IN_STREAM = 2 << 3 | WITH_LENGTH
"""The tag of ``ModelStreamInferResponse.infer_response``."""

MOST_LENGTH_BYTES = 5
"""Of a length; no message of gRPC is longer than 4 GiB."""


def without_raw(body: bytes) -> tuple[bytes, list[memoryview]] | None:
    """Cut the raw contents out of a serialized ``ModelInferRequest``.

    Returns:
        what is left, for protobuf to read, and the raw contents, as views of ``body``. None: the body has something at
        its outermost level that no ``ModelInferRequest`` of the protocol has, or is damaged: protobuf shall read
        it, or say what is wrong.
    """
    size = len(body)
    view = memoryview(body)
    raw: list[memoryview] = []
    kept: list[memoryview] = []
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
        if tag == RAW_INPUT:
            raw.append(view[at:end])
            if begin > kept_from:
                kept.append(view[kept_from:begin])
            kept_from = end
        at = end
    if kept_from < size:
        kept.append(view[kept_from:])
    return b"".join(kept), raw


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
