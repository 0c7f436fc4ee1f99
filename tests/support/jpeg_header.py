"""What the header of a JPEG says, read in Python: what ``fastpipe.kernels._images`` reads in C is compared with it.

It is written for being read, not for speed; nothing but tests uses it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Found", "read_jpeg", "read_orientation"]


class Found(NamedTuple):
    """As ``_images.read_jpeg`` returns it."""

    width: int
    height: int
    is_complete: bool
    is_plain: bool
    is_for_engines: bool
    orientation: int
    scans: int


def read_jpeg(content: bytes) -> Found | None:
    """Return what a header says; None for anything else than a JPEG, and for a header that is damaged."""
    if not content.startswith(b"\xff\xd8\xff"):
        return None
    try:
        return _read_jpeg(memoryview(content))
    except (struct.error, IndexError):  # it ends inside of its header
        return None


# ---- EXIF ------------------------------------------------------------------------------------------------------------

EXIF_PREFIX = b"Exif\0\0"  # part of JPEG's segment; in PNG and WebP some programs write it too
MOST_EXIF_BYTES = 65_536  # as many as a JPEG can have; a directory further behind is not looked for
ORIENTATION_TAG = 0x0112
# How a number may be stored that OpenCV and Pillow both take for the orientation: EXIF's type -> struct's letter, and
# how many of them fit into an entry. Standard is SHORT, the first. OpenCV looks at two bytes whatever the type, so that
# it misses big-endian numbers of another width; Pillow reads them, and the file says what it says.
ORIENTATION_TYPES = {3: ("H", 2), 4: ("I", 1), 6: ("b", 1), 8: ("h", 2), 9: ("i", 1), 13: ("I", 1)}


def read_orientation(exif: memoryview | bytes) -> int:
    """Return the orientation that EXIF data asks for; 1 if it asks for none, or is damaged."""
    exif = memoryview(exif)[:MOST_EXIF_BYTES]
    if bytes(exif[:6]) == EXIF_PREFIX:
        exif = exif[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(exif[:4]))
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, directory)
        entry_layout = struct.Struct(f"{order}HHI")
        for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, count = entry_layout.unpack_from(exif, entry)
            if tag == ORIENTATION_TAG:
                letter, most = ORIENTATION_TYPES.get(kind, ("H", 0))
                (value,) = struct.unpack_from(f"{order}{letter}", exif, entry + 8)
                return int(value) if 1 <= count <= most and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


# ---- JPEG ------------------------------------------------------------------------------------------------------------

SEGMENT = struct.Struct(">BBH")  # 0xFF, marker, length including its own two bytes
FRAME = struct.Struct(">BHHB")  # bits, height, width, channels
START_OF_SCAN = 0xDA
END_OF_IMAGE = 0xD9
BASELINE_FRAME = 0xC0
JFIF_SEGMENT, EXIF_SEGMENT, ADOBE_SEGMENT = 0xE0, 0xE1, 0xEE
JFIF_PREFIX, ADOBE_PREFIX = b"JFIF\0", b"Adobe"
ADOBE_TRANSFORM_AT = 11  # behind the segment's length
RGB_NUMBERS = b"RGB"  # of channels: some programs say by them what the pixels are
START_OF_FRAME = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # those three are tables and a reserved one
HUFFMAN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive
PROGRESSIVE_FRAMES = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
MOST_STEPS = 4096  # a real header has less than 300; one made to be walked through for minutes is none
NO_SEGMENT = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xD8)})  # no marker, or one that stands alone
# Tables, texts.
PASSED_OVER = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)} - {JFIF_SEGMENT, EXIF_SEGMENT, ADOBE_SEGMENT})
JPEG_END = b"\xff\xd9"
SCAN_START = b"\xff\xda"
SEARCH_STEP = 1 << 20  # bytes of the file that are copied at a time


def _read_jpeg(encoded: memoryview) -> Found | None:
    at = 2
    frame_at = frame_marker = 0
    exif: memoryview | None = None  # the first, if there are several
    is_jfif, adobe_transform = False, None
    segment = SEGMENT.unpack_from
    for _ in range(MOST_STEPS):
        prefix, marker, length = segment(encoded, at)
        if marker in PASSED_OVER and prefix == 0xFF:
            at += 2 + length if length > 2 else 4
            continue
        if prefix != 0xFF or marker in NO_SEGMENT:
            at += 1 if prefix != 0xFF or marker == 0xFF else 2  # passed over, as libjpeg does
            continue
        if marker == START_OF_SCAN:
            break
        if marker == END_OF_IMAGE:
            return None
        if marker in START_OF_FRAME:
            if frame_at:
                return None  # libjpeg refuses it too; the first must not speak for the second
            frame_at, frame_marker = at, marker
        elif marker == EXIF_SEGMENT and exif is None and bytes(encoded[at + 4 : at + 10]) == EXIF_PREFIX:
            exif = encoded[at + 10 : at + 2 + length]
        elif marker == JFIF_SEGMENT:
            is_jfif = is_jfif or bytes(encoded[at + 4 : at + 9]) == JFIF_PREFIX
        elif marker == ADOBE_SEGMENT and bytes(encoded[at + 4 : at + 9]) == ADOBE_PREFIX:
            adobe_transform = encoded[at + 4 + ADOBE_TRANSFORM_AT] if length > 2 + ADOBE_TRANSFORM_AT else None
        at += 2 + max(length, 2)
    else:
        return None
    if not frame_at:
        return None
    bits, height, width, channels = FRAME.unpack_from(encoded, frame_at + 4)
    has_several_scans = frame_marker in PROGRESSIVE_FRAMES or encoded[at + 4] < channels
    is_plain = frame_marker in HUFFMAN_FRAMES and bits == 8 and channels in (1, 3)
    is_baseline = is_plain and frame_marker == BASELINE_FRAME and not has_several_scans
    return Found(
        width,
        height,
        # Nearly always it is the very end. Some programs add to it; then it is looked for.
        is_complete=bytes(encoded[max(at, len(encoded) - 2) :]) == JPEG_END or any(_counts(JPEG_END, encoded, at)),
        is_plain=is_plain,
        is_for_engines=is_baseline and not _holds_rgb(encoded, frame_at, channels, is_jfif, adobe_transform),
        orientation=1 if exif is None else read_orientation(exif),
        scans=sum(_counts(SCAN_START, encoded, at)) if has_several_scans else 1,
    )


def _holds_rgb(encoded: memoryview, frame_at: int, channels: int, is_jfif: bool, adobe_transform: int | None) -> bool:
    """Say whether a JPEG of three channels holds RGB instead of YCbCr, by the same signs as libjpeg."""
    if channels != len(RGB_NUMBERS) or is_jfif:
        return False
    if adobe_transform is not None:
        return adobe_transform == 0
    components = encoded[frame_at + 10 : frame_at + 10 + 3 * channels]
    return bytes(components[::3]) == RGB_NUMBERS


def _counts(marker: bytes, encoded: memoryview, start: int) -> Iterator[int]:
    """Yield how often a marker of two bytes, which coded pixels never contain, is in each part after ``start``."""
    for at in range(start, len(encoded), SEARCH_STEP):
        yield bytes(encoded[at : at + SEARCH_STEP + 1]).count(marker)  # the last byte may begin one
