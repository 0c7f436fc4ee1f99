"""What a GIF, JPEG 2000 or AVIF says about itself, as ``header`` does for the formats that are always decoded.

These are decoded only where ``DecodeMat`` is told to. Their headers can promise a decoder much more than a size: tiles
by the ten thousand, precincts of one pixel, a frame that is larger than the picture. Each of these limits is here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ..ranges import MOST_PIXELS
from .av1 import largest_frame
from .header import MOST_EXIF_BYTES, MOST_STEPS, ImageHeader
from .tiff import is_tiff, read_tiff

__all__ = ["read_more"]


def read_more(
    encoded: memoryview, formats: frozenset[str], page: int, *, most_pixels: int = MOST_PIXELS
) -> ImageHeader | None:
    """Return the header of a TIFF, GIF, JPEG 2000 or AVIF; None for anything else, and for one that is damaged.

    Args:
        encoded: the file's bytes, of format "B"; the header refers to parts of them.
        formats: which of them are wanted.
        page: which of a TIFF's pages.
        most_pixels: of a TIFF or AVIF with more, only the size is looked at.
    """
    start = bytes(encoded[:12])
    try:
        if "tiff" in formats and is_tiff(encoded):
            return read_tiff(encoded, page, most_pixels)
        if "gif" in formats and start[:6] in (b"GIF87a", b"GIF89a"):
            return _read_gif(encoded)
        if "jpeg2000" in formats and (start.startswith(CODESTREAM_START) or start == JP2_START):
            return _read_jpeg2000(encoded)
        if "avif" in formats and start[4:8] == b"ftyp":
            return _read_avif(encoded, most_pixels)
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


# ---- boxes, of which JPEG 2000 and AVIF consist ----------------------------------------------------------------------


class _Box(NamedTuple):
    kind: bytes
    whole: memoryview
    content: memoryview


def _boxes(data: memoryview) -> Iterator[_Box]:
    """Yield the boxes of a file or of a box; IndexError if one is damaged or reaches beyond the end."""
    at = 0
    for _ in range(MOST_STEPS):
        if at == len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        content_at = at + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, content_at)
            content_at += 8
        elif length == 0:
            length = len(data) - at
        end = at + length
        if not content_at <= end <= len(data):
            raise IndexError
        yield _Box(kind, data[at:end], data[content_at:end])
        at = end
    raise IndexError


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
        for box in _boxes(encoded):
            if box.kind in (b"jP  ", b"ftyp", b"jp2h", b"jp2c"):
                parts.append(box.whole)
            if box.kind == b"jp2h":
                inner = next(_boxes(box.content), None)  # the first there has to be
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


# ---- AVIF ------------------------------------------------------------------------------------------------------------

MOST_ITEMS = 64  # a picture with alpha, EXIF and XMP has four; one of a grid has more
FULL_BOX = 4  # bytes: version and flags


class _Items(NamedTuple):
    """What the box "meta" says: the picture's number, kinds and sizes of items, and where their bytes are."""

    primary: int
    kinds: dict[int, bytes]
    extents: dict[int, list[memoryview]]
    sizes: list[tuple[int, int]]
    bits: int


def _read_avif(encoded: memoryview, most_pixels: int) -> ImageHeader | None:
    """Read a still AVIF: one item, perhaps with alpha. None for a relative such as HEIC.

    The decoder takes its memory by what the coded frames say of themselves, so those are asked, too.
    """
    first = next(_boxes(encoded), None)
    if first is None or b"avif" not in [
        bytes(first.content[at : at + 4]) for at in (0, *range(8, len(first.content), 4))
    ]:
        return None
    if bytes(first.content[:4]) == b"avis":
        return ImageHeader(0, 0, kind="avif", refusal="an animated AVIF is not decoded")
    metas = [box.content for box in _boxes(encoded) if box.kind == b"meta"]
    if len(metas) != 1:
        return None
    items = _read_items(metas[0][FULL_BOX:], encoded)
    if items is None or not items.sizes:
        return None
    width, height = max(size[0] for size in items.sizes), max(size[1] for size in items.sizes)
    header = ImageHeader(width, height, kind="avif", bits=items.bits)
    if width * height > most_pixels:
        return header
    if items.kinds.get(items.primary) != b"av01" or len(set(items.sizes)) != 1:
        return header._replace(refusal="an AVIF that is put together of several (a grid, layers) is not decoded")
    if items.bits != 8:
        return header._replace(refusal=f"an AVIF of {items.bits} bits a channel is not decoded; 8 bits are")
    for number, kind in items.kinds.items():
        if kind == b"Exif" and sum(map(len, items.extents.get(number, []))) > MOST_EXIF_BYTES:
            return header._replace(
                refusal=f"an AVIF with more than {MOST_EXIF_BYTES} bytes of EXIF data is not decoded"
            )
        if kind == b"av01":
            frame = largest_frame(b"".join(items.extents.get(number, [])))
            if frame is None or frame[0] > width or frame[1] > height:
                return header._replace(is_complete=False)
    return header


def _read_items(meta: memoryview, encoded: memoryview) -> _Items | None:
    boxes: dict[bytes, memoryview] = {}
    for box in _boxes(meta):
        if box.kind in boxes:
            return None  # a decoder might take the other one
        boxes[box.kind] = box.content
    if not {b"pitm", b"iinf", b"iloc", b"iprp"} <= set(boxes):
        return None
    primary_layout = ">H" if boxes[b"pitm"][0] == 0 else ">I"
    (primary,) = struct.unpack_from(primary_layout, boxes[b"pitm"], FULL_BOX)
    information = boxes[b"iinf"]
    kinds: dict[int, bytes] = {}
    for box in _boxes(information[FULL_BOX + (2 if information[0] == 0 else 4) :]):
        number_bytes = {2: 2, 3: 4}.get(box.content[0])
        if box.kind != b"infe" or number_bytes is None or len(kinds) >= MOST_ITEMS:
            return None
        number = int.from_bytes(box.content[4 : 4 + number_bytes], "big")
        kinds[number] = bytes(box.content[6 + number_bytes : 10 + number_bytes])
    sizes, bits = [], 8
    properties = next((box.content for box in _boxes(boxes[b"iprp"]) if box.kind == b"ipco"), encoded[:0])
    for box in _boxes(properties):
        if box.kind == b"ispe":
            sizes.append(struct.unpack_from(">II", box.content, FULL_BOX))
        elif box.kind == b"av1C" and box.content[2] & 0x40:
            bits = 12 if box.content[2] & 0x20 else 10
    extents = _extents(boxes[b"iloc"], encoded, boxes.get(b"idat", encoded[:0]))
    return _Items(primary, kinds, extents, sizes, bits)


def _extents(locations: memoryview, encoded: memoryview, inside: memoryview) -> dict[int, list[memoryview]]:
    """Return the bytes of each item: parts of the file, or of the box "idat"."""
    version = locations[0]
    offset_bytes, length_bytes = locations[4] >> 4, locations[4] & 15
    base_bytes, index_bytes = locations[5] >> 4, locations[5] & 15 if version else 0
    number_bytes = 2 if version < 2 else 4
    at = 6

    def take(size_bytes: int) -> int:
        nonlocal at
        at += size_bytes
        if at > len(locations):
            raise IndexError
        return int.from_bytes(locations[at - size_bytes : at], "big")

    result: dict[int, list[memoryview]] = {}
    total = 0  # of all: items may share bytes of the file, and each is looked at
    for _ in range(_few(take(number_bytes))):
        number = take(number_bytes)
        method = take(2) & 15 if version else 0
        take(2)  # the file it is in: this one
        base = take(base_bytes)
        source = {0: encoded, 1: inside}.get(method, encoded[:0])
        for _ in range(_few(take(2))):
            take(index_bytes)
            start = base + take(offset_bytes)
            end = start + take(length_bytes)
            total += end - start
            if start == end or end > len(source) or total > len(encoded):
                raise IndexError
            result.setdefault(number, []).append(source[start:end])
    return result


def _few(count: int) -> int:
    """Return a number of items, or of parts of one; IndexError if they are too many to look at: none may be hidden."""
    if count > MOST_ITEMS:
        raise IndexError
    return count
