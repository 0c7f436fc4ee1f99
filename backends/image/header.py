"""What an encoded image says about itself, and which of its bytes a decoder should see: nothing is decoded here.

Decoders read more than pixels: texts, color profiles and EXIF data, compressed or nested. Those are where a small file
keeps libpng or OpenCV busy for minutes, and what most of their complaints on stderr are about. So orientation is read
here, and metadata of PNG and WebP is left out of what goes on to the decoder.
"""

from __future__ import annotations

import struct
from typing import Literal, NamedTuple
from zlib import crc32

from fastpipe.kernels._images import read_jpeg, read_orientation

__all__ = ["ImageHeader", "MoreFormat", "read_header"]

MoreFormat = Literal[
    "tiff", "gif", "jpeg2000", "avif", "heic"
]  # what is decoded only where it is asked for; see more_headers


class ImageHeader(NamedTuple):
    """Size of an encoded image, what decides who decodes it, and what is to be decoded."""

    width: int
    height: int
    is_complete: bool = True  # False: it is cut, or damaged, as far as that can be seen from outside
    is_jpeg: bool = False
    is_plain_jpeg: bool = False  # 8 bits, gray or three channels, Huffman coded
    is_for_engines: bool = False  # such a JPEG that is baseline, too, and gray or YCbCr: a GPU's JPEG engines take it
    orientation: int = 1  # EXIF's: 1 is upright, 2 to 8 are the other ways to hold and to mirror
    scans: int = 1  # of a JPEG: how often the decoder goes over all of its pixels
    pieces: tuple[bytes | memoryview, ...] = ()  # joined, what the decoder should see; empty: all of it
    kind: str = ""  # one of MoreFormat; empty: what read_header() reads
    bits: int = 8  # of a channel; only TIFF's and those beyond 8 of JPEG 2000, AVIF and HEIC are told
    refusal: str = ""  # why it is not decoded, if that is neither its size nor damage


def read_header(encoded: memoryview) -> ImageHeader | None:
    """Return the header of a JPEG, PNG, WebP or BMP; None for anything else, and for a header that is damaged.

    Args:
        encoded: the file's bytes, of format "B"; the header refers to parts of them.
    """
    start = bytes(encoded[:32])
    try:
        if start.startswith(b"\xff\xd8\xff"):
            return _read_jpeg(encoded)
        if start.startswith(b"\x89PNG\r\n\x1a\n") and start[12:16] == b"IHDR":
            return _read_png(encoded)
        if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
            return _read_webp(encoded, start)
        if start.startswith(b"BM"):
            return _read_bmp(encoded)
    except (struct.error, IndexError):  # it ends inside of its header
        return None
    return None


# ---- EXIF ------------------------------------------------------------------------------------------------------------

MOST_EXIF_BYTES = 65_536  # as many as a JPEG can have; a directory further behind is not looked for
MOST_STEPS = 4096  # a real header has less than 300; one made to be walked through for minutes is none


# ---- JPEG ------------------------------------------------------------------------------------------------------------

JPEG_END = b"\xff\xd9"


def _read_jpeg(encoded: memoryview) -> ImageHeader | None:
    found = read_jpeg(encoded)
    if found is None:
        return None
    width, height, is_complete, is_plain, is_for_engines, orientation, scans = found
    return ImageHeader(
        width,
        height,
        is_complete,
        is_jpeg=True,
        is_plain_jpeg=is_plain,
        is_for_engines=is_for_engines,
        orientation=orientation,
        scans=scans,
    )


# ---- PNG -------------------------------------------------------------------------------------------------------------

CHUNK = struct.Struct(">I4s")  # length of the data, kind; the data and a checksum follow
PNG_HEADER = struct.Struct(">IIBBBBB")  # width, height, bits, color, compression, filtering, interlacing
BITS_OF_COLOR = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}
CHANNELS_OF_COLOR = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PALETTE_COLOR = 3
LARGEST_PNG_SIDE = 1_000_000  # libpng's
MOST_CHUNKS = 65_536  # enough for 512 MB in libpng's pieces; more would be walked through for long
CHECKSUM_STEP = 4096  # from 5 KiB on, crc32 releases the GIL, and getting it back may take longer than all the rest


def _read_png(encoded: memoryview) -> ImageHeader:
    """Read a PNG: what makes its pixels goes on to the decoder if all of it is there and undamaged, the rest never."""
    width, height, bits, color, *methods = PNG_HEADER.unpack_from(encoded, 16)
    damaged = ImageHeader(width, height, is_complete=False)
    if (
        bits not in BITS_OF_COLOR.get(color, ())
        or methods not in ([0, 0, 0], [0, 0, 1])
        or not 1 <= width <= LARGEST_PNG_SIDE
        or not 1 <= height <= LARGEST_PNG_SIDE
    ):
        return damaged
    # Interlacing and the poorest compressor fit into twice as many bytes. What is more would be inflated for nothing,
    # to a thousand times its size.
    row_bytes = (width * bits * CHANNELS_OF_COLOR[color] + 7) // 8 + 1
    most_bytes = 2 * height * row_bytes + 1024
    spans = [(0, 8)]  # to keep; neighbours become one
    orientation = None
    previous = b""  # the kind of the critical chunk before this one
    is_between_pixels = False
    at = 8
    for _ in range(MOST_CHUNKS):
        if at + 12 > len(encoded):
            return damaged
        length, kind = CHUNK.unpack_from(encoded, at)
        end = at + 12 + length
        if end > len(encoded):
            return damaged
        if kind == b"eXIf" and orientation is None:
            orientation = read_orientation(encoded[at + 8 : end - 4])
        is_critical = not kind[0] & 0x20
        if is_critical:
            if (
                not _is_in_place(kind, previous, length, color)
                or (kind == b"IDAT" and is_between_pixels)
                or not _has_right_checksum(encoded, at, end)
            ):
                return damaged
            previous = kind
        if kind == b"IDAT":
            most_bytes -= length
            if most_bytes < 0:
                return damaged
        is_between_pixels = previous == b"IDAT" and not is_critical
        if is_critical and (kind != b"PLTE" or color == PALETTE_COLOR):  # that of others is a suggestion
            spans[-1:] = [(spans[-1][0], end)] if spans[-1][1] == at else [spans[-1], (at, end)]
        at = end
        if kind == b"IEND":
            pieces = () if spans == [(0, len(encoded))] else tuple(encoded[start:stop] for start, stop in spans)
            return ImageHeader(width, height, orientation=orientation or 1, pieces=pieces)
    return damaged


def _is_in_place(kind: bytes, previous: bytes, length: int, color: int) -> bool:
    """Say whether a critical chunk may follow the critical chunk before it."""
    if kind == b"IHDR":
        return previous == b"" and length == PNG_HEADER.size
    if kind == b"PLTE":
        return previous == b"IHDR" and length % 3 == 0 and 3 <= length <= 768
    if kind == b"IDAT":
        return previous in (b"PLTE", b"IDAT") or (previous == b"IHDR" and color != PALETTE_COLOR)
    return kind == b"IEND" and previous == b"IDAT"


def _has_right_checksum(encoded: memoryview, at: int, end: int) -> bool:
    checksum = 0
    for start in range(at + 4, end - 4, CHECKSUM_STEP):
        checksum = crc32(encoded[start : min(start + CHECKSUM_STEP, end - 4)], checksum)
    return bytes(encoded[end - 4 : end]) == checksum.to_bytes(4, "big")


# ---- WebP ------------------------------------------------------------------------------------------------------------

SMALLEST_WEBP = 32  # what OpenCV reads of it before it looks
WEBP_ALPHA = 0x10
SEEN_BY_DECODER = frozenset({b"VP8X", b"ALPH", b"VP8 ", b"VP8L"})  # codespell:ignore alph


def _read_webp(encoded: memoryview, start: bytes) -> ImageHeader | None:
    kind = start[12:16]
    if len(start) < SMALLEST_WEBP:
        return None
    if kind == b"VP8X":  # 24 bits each, less one
        width, height = (int.from_bytes(start[at : at + 3], "little") + 1 for at in (24, 27))
        return _without_metadata(encoded, ImageHeader(width, height))
    if kind == b"VP8L":  # 14 bits each, less one
        (bits,) = struct.unpack_from("<I", start, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":  # 14 bits each, and 2 for scaling
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", start, 26))
    else:
        return None
    return ImageHeader(width, height)


def _without_metadata(encoded: memoryview, header: ImageHeader) -> ImageHeader:
    """Return the header of an extended WebP with its orientation, and one image alone to be decoded."""
    damaged = header._replace(is_complete=False)
    file_end = 8 + struct.unpack_from("<I", encoded, 4)[0]
    if file_end > len(encoded):
        return damaged
    orientation = None
    still: list[memoryview] = []
    frame: list[memoryview] | None = None
    at = 12
    for _ in range(MOST_CHUNKS):
        if at + 8 > file_end:
            break
        kind, length = struct.unpack_from("<4sI", encoded, at)
        end = at + 8 + length
        if end > file_end:
            return damaged
        if kind in SEEN_BY_DECODER:
            still.append(encoded[at : end + length % 2])
        elif kind == b"EXIF" and orientation is None:
            orientation = read_orientation(encoded[at + 8 : end])
        elif kind == b"ANMF" and frame is None:
            frame = _read_frame(encoded[at + 8 : end], header)
        at = end + length % 2
    else:
        return damaged
    if frame is not None:
        still = still[:1] + frame
    if len(still) < 2 or (frame is None and any(bytes(part[:4]) == b"VP8X" for part in still[1:])):
        return damaged
    extended = bytearray(still[0])
    extended[8] &= WEBP_ALPHA  # of the flags, which say what else there is, the only one that is still true
    parts: tuple[bytes | memoryview, ...] = (bytes(extended), *still[1:])
    riff = struct.pack("<4sI4s", b"RIFF", 4 + sum(map(len, parts)), b"WEBP")
    return header._replace(orientation=orientation or 1, pieces=(riff, *parts))


def _read_frame(frame: memoryview, header: ImageHeader) -> list[memoryview]:
    """Return the chunks that make the pixels of a frame of an animation; none if it is smaller than the whole."""
    left, top, width, height = (int.from_bytes(frame[at : at + 3], "little") for at in (0, 3, 6, 9))
    if (left, top, width + 1, height + 1) != (0, 0, header.width, header.height):
        return []
    parts: list[memoryview] = []
    at = 16
    while at + 8 <= len(frame) and len(parts) < 2:
        kind, length = struct.unpack_from("<4sI", frame, at)
        end = at + 8 + length + length % 2
        if kind not in SEEN_BY_DECODER or end > len(frame):
            return []
        parts.append(frame[at:end])
        at = end
    return parts


# ---- BMP -------------------------------------------------------------------------------------------------------------

BMP_BITS = frozenset({1, 4, 8, 16, 24, 32})
NOT_COMPRESSED = frozenset({0, 3})  # 3: with masks that say where the colors are
RUN_LENGTHS = frozenset({1, 2})


def _read_bmp(encoded: memoryview) -> ImageHeader | None:
    pixels_at, header_size = struct.unpack_from("<II", encoded, 10)
    compression = 0
    if header_size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", encoded, 18)
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", encoded, 18)
    header = ImageHeader(abs(width), abs(height))  # a negative height means that rows go down
    if width <= 0 or height == 0 or bits not in BMP_BITS:
        return header._replace(is_complete=False)
    if compression in NOT_COMPRESSED:
        row_bytes = (width * bits + 31) // 32 * 4
        return header._replace(is_complete=pixels_at + row_bytes * abs(height) <= len(encoded))
    return header._replace(is_complete=compression in RUN_LENGTHS and pixels_at < len(encoded))
