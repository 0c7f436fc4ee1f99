"""What a GIF or JPEG 2000 says about itself, as ``header`` does for the formats that are always decoded.

These are decoded only where ``DecodeMat`` is told to, as are those of ``tiff`` and ``heif``. Their headers can promise
a decoder much more than a size: tiles by the ten thousand, precincts of one pixel. Each of these limits is here.
"""

from __future__ import annotations

import struct

from ..ranges import MOST_PIXELS
from .boxes import boxes_of
from .header import MOST_STEPS, ImageHeader
from .heif import read_avif, read_heic
from .tiff import is_tiff, read_tiff

__all__ = ["read_more"]


def read_more(
    encoded: memoryview, formats: frozenset[str], page: int, *, most_pixels: int = MOST_PIXELS
) -> ImageHeader | None:
    """Return the header of a TIFF, GIF, JPEG 2000, AVIF or HEIC; None for anything else, and for one that is damaged.

    Args:
        encoded: the file's bytes, of format "B"; the header refers to parts of them.
        formats: which of them are wanted.
        page: which of a TIFF's pages.
        most_pixels: of a TIFF, AVIF or HEIC with more, only the size is looked at.
    """
    start = bytes(encoded[:12])
    try:
        if "tiff" in formats and is_tiff(encoded):
            return read_tiff(encoded, page, most_pixels)
        if "gif" in formats and start[:6] in (b"GIF87a", b"GIF89a"):
            return _read_gif(encoded)
        if "jpeg2000" in formats and (start.startswith(CODESTREAM_START) or start == JP2_START):
            return _read_jpeg2000(encoded)
        if start[4:8] == b"ftyp":
            header = read_avif(encoded, most_pixels) if "avif" in formats else None
            return read_heic(encoded, most_pixels) if header is None and "heic" in formats else header
    except (struct.error, IndexError):  # it ends inside of its header
        return None
    return None


# ---- GIF -------------------------------------------------------------------------------------------------------------

GIF_SCREEN_END = 13
GIF_FRAME = struct.Struct("<HHHHB")  # left, top, width, height, flags
EXTENSION, FRAME, GRAPHIC_CONTROL = 0x21, 0x2C, 0xF9
HAS_TABLE, TABLE_SIZE = 0x80, 0x07  # of the flags of screen and frame
GIF_END = b";"
MOST_FRAME_BLOCKS = 1 << 20  # of usually 255 bytes each
# Before the first frame: loops, texts, a profile. What is made to be walked through for minutes has more.
MOST_EXTENSIONS, MOST_EXTENSION_BLOCKS = 256, 4096


def _table_bytes(flags: int) -> int:
    return 3 * (2 << (flags & TABLE_SIZE)) if flags & HAS_TABLE else 0


def _behind_blocks(encoded: memoryview, at: int, most: int) -> int:
    """Return where a run of at most so many blocks ends: each has its length in front; the last has none."""
    for _ in range(most):
        length = encoded[at]
        at += 1 + length
        if length == 0:
            return at
    raise IndexError


def _read_gif(encoded: memoryview) -> ImageHeader:
    """Read a GIF up to the end of its first frame, which alone goes on to the decoder, with what makes it transparent.

    Nothing is decoded of a frame that reaches beyond the picture: decoders disagree about what is meant.
    """
    width, height, flags = struct.unpack_from("<HHB", encoded, 6)
    damaged = ImageHeader(width, height, is_complete=False)
    at = GIF_SCREEN_END + _table_bytes(flags)
    screen: bytes | memoryview = encoded[:at]
    control: bytes | memoryview = b""
    try:
        for _ in range(MOST_EXTENSIONS):
            if encoded[at] == FRAME:
                left, top, frame_width, frame_height, frame_flags = GIF_FRAME.unpack_from(encoded, at + 1)
                is_inside = left + frame_width <= width and top + frame_height <= height
                if not is_inside or not frame_width or not frame_height:
                    return damaged
                code_size_at = at + 1 + GIF_FRAME.size + _table_bytes(frame_flags)
                end = _behind_blocks(encoded, code_size_at + 1, MOST_FRAME_BLOCKS)
                return ImageHeader(width, height, pieces=(screen, control, encoded[at:end], GIF_END), kind="gif")
            if encoded[at] != EXTENSION:
                return damaged
            end = _behind_blocks(encoded, at + 2, MOST_EXTENSION_BLOCKS)
            if encoded[at + 1] == GRAPHIC_CONTROL:
                control = encoded[at:end]
            at = end
    except (struct.error, IndexError):
        pass
    return damaged


# ---- JPEG 2000 -------------------------------------------------------------------------------------------------------

CODESTREAM_START = b"\xff\x4f\xff\x51"  # the marker of its sizes follows
JP2_START = b"\0\0\0\x0cjP  \r\n\x87\n"
SIZE_LAYOUT = struct.Struct(">HHIIIIIIIIH")  # length, capabilities, size, offset, tile's size, its offset, channels
COD_MARKER, COC_MARKER, POC_MARKER, START_OF_TILE, START_OF_DATA = 0xFF52, 0xFF53, 0xFF5F, 0xFF90, 0xFF93
PPM_MARKER, PPT_MARKER = 0xFF60, 0xFF61
CODESTREAM_END = b"\xff\xd9"
MOST_CHANNELS = 4
MOST_LAYERS = 1024
FEW_TILES, LEAST_TILE_PIXELS = 1024, 4096  # the library keeps 6 kB for each tile, however small
LEAST_BLOCK_EXPONENT = 4  # blocks of 16 x 16 and more; usual are 32 x 32 and 64 x 64
LEAST_PRECINCT_EXPONENT = 5  # 32 x 32; of one pixel each, a kilobyte would fill the memory
MOST_TILE_PARTS = 16_384
MOST_TILE_SEGMENTS = 32  # in the header of each


class _Refused(Exception):
    """A picture of a kind that is not decoded."""


def _read_jpeg2000(encoded: memoryview) -> ImageHeader:
    parts: list[memoryview] = [encoded]
    said = None  # width and height, by the file around the codestream
    codestream = encoded
    if bytes(encoded[:4]) != CODESTREAM_START:
        parts, codestream = [], encoded[:0]
        for box in boxes_of(encoded):
            if box.kind in (b"jP  ", b"ftyp", b"jp2h", b"jp2c"):
                parts.append(box.whole)
            if box.kind == b"jp2h":
                inner = next(boxes_of(box.content), None)  # the first there has to be
                if inner is None or inner.kind != b"ihdr":
                    raise IndexError
                height, width = struct.unpack_from(">II", inner.content)
                said = (width, height)
            if box.kind == b"jp2c":
                codestream = box.content
                break
        if bytes(codestream[:4]) != CODESTREAM_START or said is None:
            raise IndexError
    _, _, right, bottom, left, top, *tile, channels = SIZE_LAYOUT.unpack_from(codestream, 4)
    width, height = right - left, bottom - top
    damaged = ImageHeader(max(width, 0), max(height, 0), is_complete=False)
    if width < 1 or height < 1 or said not in (None, (width, height)) or not 1 <= channels <= MOST_CHANNELS:
        return damaged
    depths = [codestream[4 + SIZE_LAYOUT.size + 3 * channel] for channel in range(channels)]
    kind = ImageHeader(width, height, pieces=tuple(parts), kind="jpeg2000", bits=max(depths) % 128 + 1)
    if set(depths) != {7}:
        words = "signed numbers" if max(depths) > 127 else f"{max(depths) + 1} bits a channel"
        return kind._replace(refusal=f"a JPEG 2000 of {words} is not decoded; 8 bits are")
    try:
        _check_tiles(right, bottom, tile, width * height)
        is_complete = _follow(codestream)
    except _Refused as refused:
        return kind._replace(refusal=str(refused))
    return kind._replace(is_complete=is_complete)


def _check_tiles(right: int, bottom: int, tile: list[int], pixels: int) -> None:
    tile_width, tile_height, tiles_left, tiles_top = tile
    if not tile_width or not tile_height or tiles_left >= right or tiles_top >= bottom:
        raise IndexError
    count = -(-(right - tiles_left) // tile_width) * -(-(bottom - tiles_top) // tile_height)
    if count > max(FEW_TILES, pixels // LEAST_TILE_PIXELS):
        raise _Refused(f"a JPEG 2000 of {pixels} pixels in {count} tiles is not decoded")


def _follow(codestream: memoryview) -> bool:
    """Check all that says how pixels are cut up, to the end of the codestream; False: it is not all there."""
    at = _behind_header(codestream, 2, START_OF_TILE, MOST_STEPS)
    for _ in range(MOST_TILE_PARTS):
        if bytes(codestream[at : at + 2]) == CODESTREAM_END:
            return True
        if struct.unpack_from(">H", codestream, at)[0] != START_OF_TILE:
            return False
        (length,) = struct.unpack_from(">I", codestream, at + 6)
        _behind_header(codestream, at + 12, START_OF_DATA, MOST_TILE_SEGMENTS)
        if length == 0:  # up to the end
            return bytes(codestream[-2:]) == CODESTREAM_END
        if length < 14:
            return False
        at += length
        if at + 2 > len(codestream):
            return False
    return False


def _behind_header(codestream: memoryview, at: int, end_marker: int, most: int) -> int:
    """Return where the marker is that ends a header of at most so many segments, each of which is checked."""
    for _ in range(most):
        marker, length = struct.unpack_from(">HH", codestream, at)
        if marker == end_marker:
            return at
        if marker < 0xFF00 or length < 2:
            raise IndexError
        segment = codestream[at + 4 : at + 2 + length]
        if marker == COD_MARKER:
            _check_coding(segment[0], segment[5:])
            if not 1 <= struct.unpack_from(">H", segment, 2)[0] <= MOST_LAYERS:
                raise _Refused(f"a JPEG 2000 of more than {MOST_LAYERS} layers is not decoded")
        elif marker == COC_MARKER:
            _check_coding(segment[1], segment[2:])
        elif marker in (POC_MARKER, PPM_MARKER, PPT_MARKER):
            raise _Refused(f"a JPEG 2000 with a marker {marker:#x} (order or headers of packets) is not decoded")
        at += 2 + length
    raise IndexError


def _check_coding(style: int, coding: memoryview) -> None:
    """Check the blocks and precincts; ``coding`` begins with the number of levels."""
    levels, block_width, block_height = coding[0], coding[1], coding[2]
    if min(block_width, block_height) + 2 < LEAST_BLOCK_EXPONENT:
        raise _Refused("a JPEG 2000 of code blocks below 16 x 16 is not decoded")
    precincts = bytes(coding[5 : 6 + levels]) if style & 1 else b""
    if any(min(sizes & 15, sizes >> 4) < LEAST_PRECINCT_EXPONENT for sizes in precincts):
        raise _Refused("a JPEG 2000 of precincts below 32 x 32 is not decoded")
