"""The size of AV1 frames, from their sequence headers: what a decoder takes its memory by."""

from __future__ import annotations

__all__ = ["largest_frame"]

SEQUENCE_HEADER = 1  # a kind of OBU, the pieces of which AV1's streams consist
MOST_OBUS = 256  # a still picture has about three
SIZE_BITS = 4  # in which a sequence header says how many bits a side has


def largest_frame(stream: bytes) -> tuple[int, int] | None:
    """Return the greatest width and height that sequence headers of a stream allow; None: none can be read.

    Args:
        stream: OBUs, one after the other, as an AVIF has them.
    """
    width = height = 0
    at = 0
    try:
        for _ in range(MOST_OBUS):
            if at == len(stream):
                return (width, height) if width and height else None
            kind, has_extension, has_size = stream[at] >> 3 & 15, stream[at] & 4, stream[at] & 2
            at += 2 if has_extension else 1
            size_bytes = len(stream) - at
            if has_size:
                size_bytes, at = _leb128(stream, at)
            if at + size_bytes > len(stream):
                return None
            if kind == SEQUENCE_HEADER:
                frame = _frame_of(stream[at : at + size_bytes])
                width, height = max(width, frame[0]), max(height, frame[1])
            at += size_bytes
    except IndexError:
        return None
    return None


def _leb128(stream: bytes, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, and where it ends."""
    number = 0
    for position in range(8):
        byte = stream[at + position]
        number |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return number, at + position + 1
    raise IndexError


class _Bits:
    """Reads numbers of some bits, the highest first; IndexError at the end."""

    def __init__(self, data: bytes) -> None:
        self._text = "".join(f"{byte:08b}" for byte in data[:256])  # of a header, which has some twenty
        self._at = 0

    def __call__(self, count: int) -> int:
        taken = self._text[self._at : self._at + count]
        if len(taken) != count:
            raise IndexError
        self._at += count
        return int(taken, 2) if taken else 0


def _frame_of(header: bytes) -> tuple[int, int]:
    """Return the greatest width and height of frames behind a sequence header, as AV1's specification has it (5.5)."""
    take = _Bits(header)
    take(3 + 1)  # the profile; whether it is a still picture
    if take(1):  # the reduced header of still pictures
        take(5)
    elif take(1):
        raise IndexError  # with times of frames: a film
    else:
        take(1)  # whether there are delays for display
        for _ in range(take(5) + 1):  # operating points
            take(12)
            if take(5) > 7:
                take(1)
    width_bits, height_bits = take(SIZE_BITS) + 1, take(SIZE_BITS) + 1
    return take(width_bits) + 1, take(height_bits) + 1
