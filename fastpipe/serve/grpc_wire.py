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

from fastpipe.serve.statuses import InvalidRequest

__all__ = ["ANSWER_IN_STREAM", "RAW_OUTPUT", "REQUEST_ID", "Cut", "cut", "field_head"]

WITH_LENGTH = 2
"""The kind of field that says its length first: bytes, texts, messages."""
NUMBER = 0
FIXED_BYTES = {1: 8, 5: 4}
"""The size of fields of other kinds, which no request of the protocol has at its outermost level."""

REQUEST_ID = 3 << 3 | WITH_LENGTH
"""The tag of ``id``, in ``ModelInferRequest`` and in ``ModelInferResponse``."""
RAW_INPUT = 7 << 3 | WITH_LENGTH
"""The tag of ``ModelInferRequest.raw_input_contents``."""
RAW_OUTPUT = 6 << 3 | WITH_LENGTH
"""The tag of ``ModelInferResponse.raw_output_contents``."""
ANSWER_IN_STREAM = 2 << 3 | WITH_LENGTH
"""The tag of ``ModelStreamInferResponse.infer_response``."""

MOST_NUMBER_BYTES = 10
"""Of a tag, a length, a number: 64 bits."""
MOST_FIELDS = 4096
"""Of a request, at its outermost level; one with 500 inputs has 1000, and some."""
MOST_HEADS = 256


class Cut(NamedTuple):
    """A serialized ``ModelInferRequest``, taken apart."""

    head: bytes
    """What is left, for protobuf to read."""
    id: bytes
    """In UTF-8."""
    raw: list[memoryview]
    """The raw contents, as views of the request."""


def cut(body: bytes) -> Cut:
    """Take a serialized ``ModelInferRequest`` apart; fields that the protocol does not know stay in the head.

    Raises:
        InvalidRequest: it is damaged, or has more fields than any request needs: each costs time and memory.
    """
    view = memoryview(body)
    raw: list[memoryview] = []
    kept: list[bytes] = []
    id = b""
    kept_from = at = 0
    size = len(body)
    room = MOST_FIELDS
    try:
        while at < size:
            begin, tag, length = at, body[at], body[at + 1]
            room -= 1
            at += 2
            if tag > 0x7F or tag & 7 != WITH_LENGTH or not room:
                at = _behind_unknown(body, begin, room)
                continue
            if length > 0x7F:
                length, at = _number(body, at - 1)
            at += length
            if tag == RAW_INPUT:
                raw.append(view[at - length : at])
            elif tag == REQUEST_ID:
                _check_text(id)
                id = body[at - length : at]  # of several, protobuf takes the last
            else:
                continue
            if begin > kept_from:
                kept.append(body[kept_from:begin])
            kept_from = at
    except IndexError:
        at = -1
    if at != size:
        raise InvalidRequest("the request is no ModelInferRequest: it is damaged, or cut short")
    _check_text(id)
    if kept_from < size:
        kept.append(body[kept_from:])
    return Cut(kept[0] if len(kept) == 1 else b"".join(kept), id, raw)


def _check_text(id: bytes) -> None:
    if id.isascii():
        return
    try:
        id.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("the request is no ModelInferRequest: its id is no UTF-8") from None


def _behind_unknown(body: bytes, at: int, room: int) -> int:
    """Return where a field ends that the protocol does not have.

    Raises:
        IndexError: it does not end.
        InvalidRequest: it is of a kind that has no end of its own, or there is no room for more fields.
    """
    if not room:
        raise InvalidRequest(f"the request has more than {MOST_FIELDS} inputs, outputs, parameters and raw contents")
    tag, at = _number(body, at)
    if tag < 0x80 and body[at - 1] != tag:
        raise InvalidRequest("the request is no ModelInferRequest: a field's number is written in too many bytes")
    kind = tag & 7
    if kind == WITH_LENGTH:
        length, at = _number(body, at)
        return at + length
    if kind == NUMBER:
        return _number(body, at)[1]
    if kind not in FIXED_BYTES:
        raise InvalidRequest(f"the request is no ModelInferRequest: it has a field of kind {kind}")
    return at + FIXED_BYTES[kind]


def _number(body: bytes, at: int) -> tuple[int, int]:
    """Return a number that begins there, seven bits in each byte, and where it ends.

    Raises:
        IndexError: it does not end.
    """
    number = 0
    for shift in range(0, 7 * MOST_NUMBER_BYTES, 7):
        byte = body[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
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
