"""The size of HEVC frames, from their sequence parameter sets: what a decoder takes its memory by."""

from __future__ import annotations

import struct
from typing import NamedTuple

__all__ = ["MOST_CONFIGURATION_BYTES", "Frame", "is_picture", "largest_hevc_frame"]

SEQUENCE_PARAMETERS = 33  # a kind of NAL unit, the pieces of which HEVC's streams consist
FIRST_OTHER_UNIT = 32  # units of a lower kind are slices of a picture
FIRST_SLICE = 0x80  # of the first byte behind the header: with this slice a picture begins
NAL_HEADER = 2  # bytes
LENGTH_BYTES = 4  # libheif reads so many whatever the configuration says, so no others are read here
MOST_UNITS = 1024  # of an item; a picture has a few
MOST_SETS = 16  # of a configuration; usual are three, one of them with sizes
MOST_CONFIGURATION_BYTES = 65_536
CONFIGURATION_HEADER = 22  # bytes of "hvcC" before the parameter sets
MOST_PARAMETER_BYTES = 256  # of a set, which has some fifty; what is needed comes first
PROFILE_BITS, LEVEL_BITS = 88, 8
MOST_GOLOMB_ZEROS = 20  # no number that is needed has more bits


class Frame(NamedTuple):
    """What decides how much memory a frame takes."""

    width: int
    height: int
    bits: int


def largest_hevc_frame(configuration: bytes | memoryview) -> Frame | None:
    """Return the greatest sides and bits that parameter sets allow; None: none can be read, or a piece is damaged.

    Args:
        configuration: the content of the box "hvcC".
    """
    if len(configuration) > MOST_CONFIGURATION_BYTES:
        return None
    frames = []
    try:
        for unit in _sets_of(bytes(configuration)):
            if unit[0] >> 1 & 63 == SEQUENCE_PARAMETERS:
                frames.append(_frame_of(unit))
    except (IndexError, struct.error):
        return None
    if not frames:
        return None
    return Frame(*(max(numbers) for numbers in zip(*frames, strict=True)))


def is_picture(stream: bytes, configuration: bytes | memoryview) -> bool:
    """Say whether a stream is one picture, whole, without parameter sets of its own, which an item must not have.

    Args:
        stream: NAL units, each behind its length.
        configuration: the content of the box "hvcC", which says in how many bytes lengths are.
    """
    if configuration[21] & 3 != LENGTH_BYTES - 1:
        return False
    at = pictures = 0
    for _ in range(MOST_UNITS):
        if at == len(stream):
            return pictures == 1
        length = int.from_bytes(stream[at : at + LENGTH_BYTES], "big")
        at += LENGTH_BYTES
        if length < NAL_HEADER or at + length > len(stream):
            return False
        kind = stream[at] >> 1 & 63
        if kind == SEQUENCE_PARAMETERS:
            return False
        if kind < FIRST_OTHER_UNIT and (length == NAL_HEADER or stream[at + NAL_HEADER] & FIRST_SLICE):
            pictures += 1
        at += length
    return False


def _sets_of(configuration: bytes) -> list[bytes]:
    units: list[bytes] = []
    at = CONFIGURATION_HEADER + 1
    for _ in range(configuration[CONFIGURATION_HEADER]):
        (count,) = struct.unpack_from(">H", configuration, at + 1)
        at += 3
        for _ in range(count):
            (length,) = struct.unpack_from(">H", configuration, at)
            at += 2
            if not NAL_HEADER < length <= len(configuration) - at or len(units) == MOST_SETS:
                raise IndexError
            units.append(configuration[at : at + min(length, MOST_PARAMETER_BYTES)])
            at += length
    return units


class _Bits:
    """Reads numbers of some bits, the highest first, and Exp-Golomb codes; IndexError at the end."""

    def __init__(self, data: bytes) -> None:
        self._text = "".join(f"{byte:08b}" for byte in data)
        self._at = 0

    def __call__(self, count: int) -> int:
        taken = self._text[self._at : self._at + count]
        if len(taken) != count:
            raise IndexError
        self._at += count
        return int(taken, 2) if taken else 0

    def golomb(self) -> int:
        zeros = 0
        while not self(1):
            zeros += 1
            if zeros > MOST_GOLOMB_ZEROS:
                raise IndexError
        return (1 << zeros) - 1 + self(zeros)


def _frame_of(unit: bytes) -> Frame:
    """Return the size in a sequence parameter set, as HEVC's specification has it (7.3.2.2)."""
    # Without each 3 that keeps start codes from appearing; where the header ends in zeros, they count, too.
    take = _Bits(unit.replace(b"\0\0\3", b"\0\0")[NAL_HEADER:])
    take(4)
    sub_layers = take(3)
    take(1 + PROFILE_BITS + LEVEL_BITS)
    present = [(take(1), take(1)) for _ in range(8 if sub_layers else 0)][:sub_layers]
    for has_profile, has_level in present:
        take(PROFILE_BITS * has_profile + LEVEL_BITS * has_level)
    take.golomb()
    if take.golomb() == 3:  # chroma of full size
        take(1)
    width, height = take.golomb(), take.golomb()
    if take(1):  # a part of the frame is the picture
        for _ in range(4):
            take.golomb()
    return Frame(width, height, 8 + max(take.golomb(), take.golomb()))
