"""What a TIFF says about one of its pages, and a TIFF of that page alone, for decoders: nothing is decoded here.

A TIFF is a chain of directories, one a page, with texts, color profiles and further directories hanging on each. What
goes on to a decoder is the file with one new directory at its end, which has what makes the pixels of the page and
nothing else. So no decoder follows chains or reads metadata, and all decoders agree on which page is meant. A BigTIFF,
whose numbers have 64 bits, goes on as a TIFF of 32: no decoder has to know that kind.
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
MOST_ENTRIES = 65_535  # as many as a TIFF can say; a BigTIFF can say more

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION = 256, 257, 258, 259, 262, 274
STRIP_OFFSETS, CHANNELS, ROWS_PER_STRIP, STRIP_BYTES, PLANAR = 273, 277, 278, 279, 284
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, SAMPLE_FORMAT = 322, 323, 324, 325, 339
FILL_ORDER, FAX3_OPTIONS, FAX4_OPTIONS, PREDICTOR, COLOR_MAP, EXTRA_SAMPLES = 266, 292, 293, 317, 320, 338
JPEG_TABLES, YCBCR_WEIGHTS, YCBCR_SAMPLING, YCBCR_POSITION, BLACK_AND_WHITE = 347, 529, 530, 531, 532

# Of what has no fixed number of values, how many there may be; of channels as many as can be, so that it is said in
# words which are too many.
_MOST_VALUES = {JPEG_TABLES: 65_536, COLOR_MAP: 3 << 16, **dict.fromkeys((BITS, SAMPLE_FORMAT, EXTRA_SAMPLES), 65_535)}
_DATA_TAGS = frozenset({STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES})
_KEPT = frozenset(
    {WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, CHANNELS, ROWS_PER_STRIP, PLANAR, TILE_WIDTH, TILE_HEIGHT}
    | {FILL_ORDER, FAX3_OPTIONS, FAX4_OPTIONS, PREDICTOR, COLOR_MAP, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES}
    | {YCBCR_WEIGHTS, YCBCR_SAMPLING, YCBCR_POSITION, BLACK_AND_WHITE}
    | _DATA_TAGS
)
_LETTERS = {1: "B", 3: "H", 4: "I"}  # the types of numbers -> struct's
_TYPE_BYTES = {1: 1, 3: 2, 4: 4, 5: 8, 7: 1, 16: 8}
_LONG, _LONG_8 = 4, 16
ASSOCIATED_ALPHA = 1  # of EXTRA_SAMPLES

_NOT_COMPRESSED, _JPEG = 1, 7
_PREDICTED = frozenset({5, 8, 32_946})  # LZW, deflate: what a predictor is meant for
_COMPRESSIONS = frozenset({_NOT_COMPRESSED, 3, 4, _JPEG, 32_773}) | _PREDICTED  # fax, PackBits
SEPARATE = 2  # of PLANAR: each channel has strips of its own
LOWEST_BIT_FIRST = 2  # of FILL_ORDER
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


class _Kind(NamedTuple):
    """How the numbers of a file are written: of a TIFF, or of a BigTIFF."""

    order: str
    entry_count: str
    """struct's letters, as of the next."""
    offset: str
    entry_bytes: int
    inline_bytes: int
    first_at: int
    """Where it is said where the first directory is."""


def _kind_of(encoded: memoryview) -> _Kind:
    order = "<" if encoded[0] == ord("I") else ">"
    if 43 not in bytes(encoded[2:4]):
        return _Kind(order, "H", "I", ENTRY_BYTES, INLINE_BYTES, 4)
    if struct.unpack_from(f"{order}HH", encoded, 4) != (8, 0):  # bytes of an offset, and nothing
        raise _Damaged
    return _Kind(order, "Q", "Q", 20, 8, 8)


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
    width = height = 0
    try:
        kind = _kind_of(encoded)
        order = kind.order
        if len(encoded) > MOST_FILE_BYTES:
            raise _Refused("a TIFF of 4 GB is not decoded")
        values = _directory(encoded, kind, _directory_at(encoded, kind, page))
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
    except (struct.error, OverflowError):  # it ends inside of its header, or leads to where no file ends
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


def _directory_at(encoded: memoryview, kind: _Kind, page: int) -> int:
    """Return where the directory of a page is."""
    offset, count = f"{kind.order}{kind.offset}", struct.Struct(f"{kind.order}{kind.entry_count}")
    (at,) = struct.unpack_from(offset, encoded, kind.first_at)
    seen: set[int] = set()
    for number in range(page):
        seen.add(at)
        (entry_count,) = count.unpack_from(encoded, at)
        (at,) = struct.unpack_from(offset, encoded, at + count.size + kind.entry_bytes * entry_count)
        if at == 0:
            raise _Refused(f"the TIFF has {number + 1} page{'s' if number else ''}, so there is no page {page}")
        if at in seen:
            raise _Damaged
    return int(at)


def _directory(encoded: memoryview, kind: _Kind, at: int) -> dict[int, _Value]:
    """Return what is needed of a directory, as a TIFF has it: the first of a tag counts."""
    order, entry_bytes = kind.order, kind.entry_bytes
    count_layout, entry_layout = struct.Struct(f"{order}{kind.entry_count}"), struct.Struct(f"{order}HH{kind.offset}")
    (entry_count,) = count_layout.unpack_from(encoded, at)
    if entry_count > MOST_ENTRIES:
        raise _Damaged
    values: dict[int, _Value] = {}
    first_at = at + count_layout.size
    for entry_at in range(first_at, first_at + entry_bytes * entry_count, entry_bytes):
        tag, type_number, count = entry_layout.unpack_from(encoded, entry_at)
        if (tag not in _KEPT and tag != ORIENTATION) or tag in values:
            continue
        size_bytes = _TYPE_BYTES.get(type_number, 0) * count
        value_at = entry_at + entry_layout.size
        if size_bytes > kind.inline_bytes:
            (value_at,) = struct.unpack_from(f"{order}{kind.offset}", encoded, value_at)
        is_too_long = tag not in _DATA_TAGS and count > _MOST_VALUES.get(tag, 16)
        if size_bytes == 0 or value_at + size_bytes > len(encoded) or is_too_long:
            raise _Damaged
        value = _Value(type_number, count, bytes(encoded[value_at : value_at + size_bytes]))
        # Those of strips and tiles only once it is clear that there are not more of them than the size asks for.
        values[tag] = value if tag in _DATA_TAGS else _of_32_bits(order, value)
    if values.get(ORIENTATION, _Value(0, 0, b"")).kind not in _LETTERS:
        values[ORIENTATION] = _Value(3, 1, struct.pack(f"{order}H", 1))
    return values


def _of_32_bits(order: str, value: _Value) -> _Value:
    """Return numbers of 64 bits as such of 32, in which no file is as long as they can say; others as they are."""
    if value.kind != _LONG_8:
        return value
    numbers = struct.unpack(f"{order}{value.length}Q", value.data)
    try:
        return _Value(_LONG, value.length, struct.pack(f"{order}{value.length}I", *numbers))
    except struct.error:
        raise _Damaged from None


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
    is_separate = channels > 1 and _number(values, order, PLANAR, 1) == SEPARATE
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
    if len(bits) != 1 or not bits <= set(_BITS_OF[photometric]) or (channels == 2 and bits != {8}):
        raise _Refused(
            f"a TIFF of photometric interpretation {photometric}, {channels} channels and {sorted(bits)} bits is not "
            "decoded; 8 bits are, and 16 of gray (black is 0) or RGB"
        )
    if is_separate and (bits == {16} or channels == 2 or photometric == YCBCR):
        words = "16 bits" if bits == {16} else "YCbCr" if photometric == YCBCR else "gray with alpha"
        raise _Refused(f"a TIFF of {words} whose channels are apart (planar configuration 2) is not decoded")
    if bits == {16} and compression == _JPEG:
        raise _Refused("a TIFF of 16 bits in JPEG is not decoded")
    if _number(values, order, FILL_ORDER, 1) == LOWEST_BIT_FIRST and not _is_turned_by_pillow(
        photometric, channels, max(bits), is_compressed=compression != _NOT_COMPRESSED, is_separate=is_separate
    ):
        words = " that are apart" if is_separate else ""
        raise _Refused(
            f"a TIFF of photometric interpretation {photometric}, {channels} channels{words} and {max(bits)} bits in "
            "the other order (fill order 2) is not decoded"
        )
    if _number(values, order, PREDICTOR, 1) != 1 and compression not in _PREDICTED:
        raise _Refused(f"a TIFF of compression {compression} with a predictor is not decoded")  # readers disagree
    if bits == {16} and ASSOCIATED_ALPHA in _numbers(values, order, EXTRA_SAMPLES):
        raise _Refused("a TIFF of 16 bits whose colors are multiplied by alpha is not decoded")
    if photometric == PALETTE and COLOR_MAP in values and values[COLOR_MAP].length > 3 * 256:
        raise _Damaged
    is_subsampled = _numbers(values, order, YCBCR_SAMPLING) != (1, 1)
    if photometric == YCBCR and compression == _NOT_COMPRESSED and is_subsampled:
        raise _Refused("a TIFF of YCbCr that is subsampled and not compressed is not decoded")  # Pillow misreads it
    return bits.pop()


def _is_turned_by_pillow(photometric: int, channels: int, bits: int, *, is_compressed: bool, is_separate: bool) -> bool:
    """Say whether Pillow knows pixels whose bytes have their lowest bit first."""
    if channels not in (1, 3):
        return False
    is_palette_of_bytes = photometric == PALETTE and bits == 8
    is_inverted_bits = photometric == WHITE_IS_ZERO and bits < 8
    if is_compressed or is_separate:
        return is_compressed
    return photometric in (BLACK_IS_ZERO, RGB) or is_palette_of_bytes or is_inverted_bits


def _check_data(values: dict[int, _Value], order: str, encoded: memoryview) -> None:
    """Check that all strips or tiles are there, and none is much larger than the image."""
    width, height = _number(values, order, WIDTH), _number(values, order, HEIGHT)
    channels = _number(values, order, CHANNELS, 1)
    if channels == 1:
        values.pop(PLANAR, None)  # it says nothing then; Pillow forgets by it that white is 0
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
    if _number(values, order, PLANAR, 1) == SEPARATE:
        count *= channels
    if offsets in values and sizes not in values:
        raise _Refused("a TIFF that does not say how long its strips or tiles are is not decoded")
    if not values.get(offsets, _Value(0, 0, b"")).length == values.get(sizes, _Value(0, 0, b"")).length == count:
        raise _Damaged
    values.update({tag: _of_32_bits(order, values[tag]) for tag in (offsets, sizes)})
    piece_sizes = _numbers(values, order, sizes)
    if not all(piece_sizes):
        raise _Refused("a TIFF with strips or tiles that are not there (a sparse one) is not decoded")
    pairs = zip(_numbers(values, order, offsets), piece_sizes, strict=True)
    if not all(start + size <= len(encoded) for start, size in pairs):
        raise _Damaged
    if _number(values, order, COMPRESSION, _NOT_COMPRESSED) == _NOT_COMPRESSED:
        _check_sizes(values, order, piece_sizes)
    # Pieces may share their bytes, and each is gone over again: together they are no more than the file and its pixels.
    bits = max(_numbers(values, order, BITS) or (1,))
    if sum(piece_sizes) > 2 * (len(encoded) + width * height * channels * max(bits, 8) // 8):
        raise _Damaged


def _check_sizes(values: dict[int, _Value], order: str, piece_sizes: tuple[int, ...]) -> None:
    """Check that what is not compressed is as long as its pixels: decoders would read on behind it, or not at all."""
    height, channels = _number(values, order, HEIGHT), _number(values, order, CHANNELS, 1)
    bits = max(_numbers(values, order, BITS) or (1,))
    if channels > 1 and _number(values, order, PLANAR, 1) == SEPARATE:
        channels = 1
    is_tiled = TILE_WIDTH in values
    width = _number(values, order, TILE_WIDTH if is_tiled else WIDTH)
    rows = _number(values, order, TILE_HEIGHT if is_tiled else ROWS_PER_STRIP)
    row_bytes = (width * channels * bits + 7) // 8
    pieces_down = -(-height // rows)  # of strips, the last of each channel may have fewer rows
    last_rows = rows if is_tiled else height - rows * (pieces_down - 1)
    for number, size_bytes in enumerate(piece_sizes):
        is_last = not is_tiled and number % pieces_down == pieces_down - 1
        if size_bytes < row_bytes * (last_rows if is_last else rows):
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
    start = struct.pack(f"{order}2sHI", bytes(encoded[:2]), 42, directory_at)
    directory = struct.pack(f"{order}H", len(values)) + bytes(entries) + bytes(DIRECTORY_END) + bytes(data)
    return (start, encoded[len(start) :], padding, directory)
