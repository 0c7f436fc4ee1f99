"""What a TIFF says about one of its pages, and a TIFF of that page alone, for decoders: nothing is decoded here.

A TIFF is a chain of directories, one a page, with texts, color profiles and further directories hanging on each. What
goes on to a decoder is the file with one new directory at its end, which has what makes the pixels of the page and
nothing else. So no decoder follows chains or reads metadata, and all decoders agree on which page is meant.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .header import ImageHeader

__all__ = ["MOST_PAGES", "is_tiff", "read_tiff"]

MOST_PAGES = 65_536
MOST_FILE_BYTES = 0xFFFF_0000  # offsets have 32 bits; the new directory must be within their reach, too
# A decoder keeps a record of each strip or tile: of many tiny ones that is more than the pixels.
FEW_PIECES, LEAST_PIECE_PIXELS = 1024, 16
LARGEST_TILE_SIDE = 1024  # of an image that is smaller; a decoder makes room for whole tiles
ENTRY_BYTES = 12
INLINE_BYTES = 4  # of an entry: a value of so many bytes stands in its place, a longer one elsewhere
DIRECTORY_END = 4  # bytes: where the next directory is

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION = 256, 257, 258, 259, 262, 274
STRIP_OFFSETS, CHANNELS, ROWS_PER_STRIP, STRIP_BYTES, PLANAR = 273, 277, 278, 279, 284
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, SAMPLE_FORMAT = 322, 323, 324, 325, 339
FILL_ORDER, FAX3_OPTIONS, FAX4_OPTIONS, PREDICTOR, COLOR_MAP, EXTRA_SAMPLES = 266, 292, 293, 317, 320, 338
JPEG_TABLES, YCBCR_WEIGHTS, YCBCR_SAMPLING, YCBCR_POSITION, BLACK_AND_WHITE = 347, 529, 530, 531, 532

# Of what has no fixed number of values, how many there may be.
_MOST_VALUES = {JPEG_TABLES: 65_536, COLOR_MAP: 3 * 256, BITS: 8, SAMPLE_FORMAT: 8, EXTRA_SAMPLES: 8}
_DATA_TAGS = frozenset({STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES})
_KEPT = frozenset(
    {WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, CHANNELS, ROWS_PER_STRIP, PLANAR, TILE_WIDTH, TILE_HEIGHT}
    | {FILL_ORDER, FAX3_OPTIONS, FAX4_OPTIONS, PREDICTOR, COLOR_MAP, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES}
    | {YCBCR_WEIGHTS, YCBCR_SAMPLING, YCBCR_POSITION, BLACK_AND_WHITE}
    | _DATA_TAGS
)
_LETTERS = {1: "B", 3: "H", 4: "I"}  # the types of numbers -> struct's
_TYPE_BYTES = {1: 1, 3: 2, 4: 4, 5: 8, 7: 1}
_LONG = 4
ASSOCIATED_ALPHA = 1  # of EXTRA_SAMPLES

_NOT_COMPRESSED, _JPEG = 1, 7
_COMPRESSIONS = frozenset({_NOT_COMPRESSED, 3, 4, 5, _JPEG, 8, 32_773, 32_946})  # fax, LZW, deflate, PackBits
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
# What the channels may be -> how many of them there may be; one more than the colors need is alpha.
_CHANNELS_OF = {WHITE_IS_ZERO: (1,), BLACK_IS_ZERO: (1, 2), RGB: (3, 4), PALETTE: (1,), CMYK: (4,), YCBCR: (3,)}
_BITS_OF = {
    WHITE_IS_ZERO: (1, 2, 4, 8),
    BLACK_IS_ZERO: (1, 2, 4, 8, 16),
    RGB: (8, 16),
    PALETTE: (1, 2, 4, 8),
    CMYK: (8,),
    YCBCR: (8,),
}


class _Value(NamedTuple):
    """What a directory has under a tag."""

    kind: int
    length: int
    data: bytes


class _Refused(Exception):
    """A page that is as the specification says, and of a kind that is not decoded."""


class _Damaged(Exception):
    """A page that is not as the specification says, or not all there."""


def is_tiff(encoded: memoryview) -> bool:
    """Say whether the bytes begin as a TIFF or BigTIFF."""
    return bytes(encoded[:4]) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_tiff(encoded: memoryview, page: int, most_pixels: int) -> ImageHeader | None:
    """Return the header of a page, whose ``pieces`` are a TIFF of it alone; None if it is damaged.

    Args:
        encoded: the file's bytes, of format "B", for which ``is_tiff`` holds.
        page: its number in the chain of directories, from 0.
        most_pixels: of what has more, only the size is looked at.
    """
    if 43 in bytes(encoded[2:4]):
        return ImageHeader(0, 0, kind="tiff", refusal="a BigTIFF is not decoded; save it as TIFF")
    order = "<" if encoded[0] == ord("I") else ">"
    width = height = 0
    try:
        if len(encoded) > MOST_FILE_BYTES:
            raise _Refused("a TIFF of 4 GB is not decoded")
        values = _directory(encoded, order, _directory_at(encoded, order, page))
        width, height = _number(values, order, WIDTH), _number(values, order, HEIGHT)
        if not width or not height:
            return None
        if width * height > most_pixels:
            return ImageHeader(width, height, kind="tiff")
        bits = _check_kind(values, order)
        _check_data(values, order, encoded)
        orientation = _number(values, order, ORIENTATION)
    except _Refused as refused:
        return ImageHeader(width, height, kind="tiff", refusal=str(refused))
    except _Damaged:
        return ImageHeader(width, height, is_complete=False)
    except struct.error:  # it ends inside of its header
        return None
    del values[ORIENTATION]
    return ImageHeader(
        width,
        height,
        orientation=orientation if 1 <= orientation <= 8 else 1,
        pieces=_alone(encoded, order, values),
        kind="tiff",
        bits=bits,
    )


def _directory_at(encoded: memoryview, order: str, page: int) -> int:
    """Return where the directory of a page is."""
    (at,) = struct.unpack_from(f"{order}I", encoded, 4)
    seen: set[int] = set()
    for number in range(page):
        seen.add(at)
        (entry_count,) = struct.unpack_from(f"{order}H", encoded, at)
        (at,) = struct.unpack_from(f"{order}I", encoded, at + 2 + ENTRY_BYTES * entry_count)
        if at == 0:
            raise _Refused(f"the TIFF has {number + 1} page{'s' if number else ''}, so there is no page {page}")
        if at in seen:
            raise _Damaged
    return int(at)


def _directory(encoded: memoryview, order: str, at: int) -> dict[int, _Value]:
    """Return what is needed of a directory: the first of a tag counts."""
    (entry_count,) = struct.unpack_from(f"{order}H", encoded, at)
    values: dict[int, _Value] = {}
    for entry_at in range(at + 2, at + 2 + ENTRY_BYTES * entry_count, ENTRY_BYTES):
        tag, kind, count = struct.unpack_from(f"{order}HHI", encoded, entry_at)
        if (tag not in _KEPT and tag != ORIENTATION) or tag in values:
            continue
        size_bytes = _TYPE_BYTES.get(kind, 0) * count
        value_at = entry_at + 8
        if size_bytes > INLINE_BYTES:
            (value_at,) = struct.unpack_from(f"{order}I", encoded, value_at)
        is_too_long = tag not in _DATA_TAGS and count > _MOST_VALUES.get(tag, 16)
        if size_bytes == 0 or value_at + size_bytes > len(encoded) or is_too_long:
            raise _Damaged
        values[tag] = _Value(kind, count, bytes(encoded[value_at : value_at + size_bytes]))
    if values.get(ORIENTATION, _Value(0, 0, b"")).kind not in _LETTERS:
        values[ORIENTATION] = _Value(3, 1, struct.pack(f"{order}H", 1))
    return values


def _numbers(values: dict[int, _Value], order: str, tag: int) -> tuple[int, ...]:
    value = values.get(tag)
    if value is None:
        return ()
    if value.kind not in _LETTERS:
        raise _Damaged
    return struct.unpack(f"{order}{value.length}{_LETTERS[value.kind]}", value.data)


def _number(values: dict[int, _Value], order: str, tag: int, default: int = 0) -> int:
    return (_numbers(values, order, tag) or (default,))[0]


def _check_kind(values: dict[int, _Value], order: str) -> int:
    """Return how many bits a channel has; refuse what would not be decoded, or decoded to other numbers."""
    compression = _number(values, order, COMPRESSION, _NOT_COMPRESSED)
    photometric = _number(values, order, PHOTOMETRIC, BLACK_IS_ZERO)
    channels = _number(values, order, CHANNELS, 1)
    bits = set(_numbers(values, order, BITS) or (1,))
    if compression not in _COMPRESSIONS:
        raise _Refused(
            f"a TIFF of compression {compression} is not decoded; none, fax (3, 4), LZW, JPEG (7), deflate and "
            "PackBits are"
        )
    if channels not in _CHANNELS_OF.get(photometric, ()):
        raise _Refused(
            f"a TIFF of photometric interpretation {photometric} and {channels} channels is not decoded; gray, RGB "
            "(both also with alpha), palettes, CMYK and YCbCr are"
        )
    if set(_numbers(values, order, SAMPLE_FORMAT)) - {1, 4}:
        raise _Refused("a TIFF of signed or floating point numbers is not decoded")
    if len(bits) != 1 or not bits <= set(_BITS_OF[photometric]) or (bits == {16} and channels == 2):
        raise _Refused(
            f"a TIFF of photometric interpretation {photometric}, {channels} channels and {sorted(bits)} bits is not "
            "decoded; 8 bits are, and 16 of gray (black is 0) or RGB"
        )
    if bits == {16} and channels > 1 and _number(values, order, PLANAR, 1) != 1:
        raise _Refused("a TIFF of 16 bits whose channels are apart (planar configuration 2) is not decoded")
    if bits == {16} and ASSOCIATED_ALPHA in _numbers(values, order, EXTRA_SAMPLES):
        raise _Refused("a TIFF of 16 bits whose colors are multiplied by alpha is not decoded")
    is_subsampled = _numbers(values, order, YCBCR_SAMPLING) != (1, 1)
    if photometric == YCBCR and compression == _NOT_COMPRESSED and is_subsampled:
        raise _Refused("a TIFF of YCbCr that is subsampled and not compressed is not decoded")  # Pillow misreads it
    return bits.pop()


def _check_data(values: dict[int, _Value], order: str, encoded: memoryview) -> None:
    """Check that all strips or tiles are there, and none is much larger than the image."""
    width, height = _number(values, order, WIDTH), _number(values, order, HEIGHT)
    channels = _number(values, order, CHANNELS, 1)
    if TILE_WIDTH in values or TILE_HEIGHT in values:
        tile_width, tile_height = _number(values, order, TILE_WIDTH), _number(values, order, TILE_HEIGHT)
        if not (1 <= tile_width < max(width + 16, LARGEST_TILE_SIDE + 1)) or not (
            1 <= tile_height < max(height + 16, LARGEST_TILE_SIDE + 1)
        ):
            raise _Damaged
        if tile_width * tile_height > max(LARGEST_TILE_SIDE**2, (width + 15) * (height + 15)):
            raise _Damaged
        count = -(-width // tile_width) * -(-height // tile_height)
        offsets, sizes = TILE_OFFSETS, TILE_BYTES
    else:
        rows = min(_number(values, order, ROWS_PER_STRIP, height), height)
        if rows < 1:
            raise _Damaged
        values[ROWS_PER_STRIP] = _Value(_LONG, 1, struct.pack(f"{order}I", rows))
        count = -(-height // rows)
        offsets, sizes = STRIP_OFFSETS, STRIP_BYTES
    if count > max(FEW_PIECES, width * height // LEAST_PIECE_PIXELS):
        raise _Refused(f"a TIFF of {width * height} pixels in {count} strips or tiles is not decoded")
    for tag in _DATA_TAGS - {offsets, sizes}:
        values.pop(tag, None)
    if _number(values, order, PLANAR, 1) == 2:
        count *= channels
    if not values.get(offsets, _Value(0, 0, b"")).length == values.get(sizes, _Value(0, 0, b"")).length == count:
        raise _Damaged
    piece_sizes = _numbers(values, order, sizes)
    pairs = zip(_numbers(values, order, offsets), piece_sizes, strict=True)
    if not all(size and start + size <= len(encoded) for start, size in pairs):
        raise _Damaged
    # Pieces may share their bytes, and each is gone over again: together they are no more than the file and its pixels.
    bits = max(_numbers(values, order, BITS) or (1,))
    if sum(piece_sizes) > 2 * (len(encoded) + width * height * channels * max(bits, 8) // 8):
        raise _Damaged


def _alone(encoded: memoryview, order: str, values: dict[int, _Value]) -> tuple[bytes | memoryview, ...]:
    """Return the file with a directory of these values at its end, to which its beginning points."""
    padding = bytes(len(encoded) % 2)
    directory_at = len(encoded) + len(padding)
    data_at = directory_at + 2 + ENTRY_BYTES * len(values) + DIRECTORY_END
    entries, data = bytearray(), bytearray()
    for tag, value in sorted(values.items()):
        entries += struct.pack(f"{order}HHI", tag, value.kind, value.length)
        if len(value.data) <= INLINE_BYTES:
            entries += value.data.ljust(INLINE_BYTES, b"\0")
        else:
            entries += struct.pack(f"{order}I", data_at + len(data))
            data += value.data + bytes(len(value.data) % 2)
    start = bytes(encoded[:4]) + struct.pack(f"{order}I", directory_at)
    directory = struct.pack(f"{order}H", len(values)) + bytes(entries) + bytes(DIRECTORY_END) + bytes(data)
    return (start, encoded[len(start) :], padding, directory)
