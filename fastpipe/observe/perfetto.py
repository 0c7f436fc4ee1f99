"""The head and the end of a trace in Perfetto's protobuf format; the engine writes its events (engine/events.pxi)."""

from __future__ import annotations

__all__ = ["instant", "row"]

# Numbers of fields, of perfetto/protos/perfetto/trace/trace.proto and what it includes.
_PACKET = 1
_TIMESTAMP, _SEQUENCE, _TRACK_EVENT, _TRACK_DESCRIPTOR = 8, 10, 11, 60
_UUID, _NAME, _PARENT, _COUNTER, _ORDERING, _RANK = 1, 2, 5, 8, 11, 12
_EVENT_TYPE, _EVENT_TRACK, _EVENT_NAME = 9, 11, 23
_INSTANT = 3
_BY_RANK = 3


def row(track: int, name: str, *, parent: int = 0, rank: int = 0, is_counter: bool = False) -> bytes:
    """Return the packet that describes a row, to be written before what is in it.

    Args:
        track: its number; 0 is none.
        name: what stands beside it.
        parent: the row below which it stands; 0: none.
        rank: its place among those.
        is_counter: its events are numbers.
    """
    descriptor = _number(_UUID, track) + _bytes(_NAME, name.encode(errors="replace"))
    if parent:
        descriptor += _number(_PARENT, parent)
    if is_counter:
        descriptor += _bytes(_COUNTER, b"")
    descriptor += _number(_ORDERING, _BY_RANK) + _number(_RANK, rank)
    return _packet(_bytes(_TRACK_DESCRIPTOR, descriptor))


def instant(time_ns: int, track: int, name: str) -> bytes:
    """Return the packet of an event without an extent."""
    event = _number(_EVENT_TYPE, _INSTANT) + _number(_EVENT_TRACK, track) + _bytes(_EVENT_NAME, name.encode())
    return _packet(_number(_TIMESTAMP, time_ns) + _bytes(_TRACK_EVENT, event))


def _packet(content: bytes) -> bytes:
    return _bytes(_PACKET, _number(_SEQUENCE, 1) + content)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
