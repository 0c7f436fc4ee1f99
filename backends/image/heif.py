"""What an AVIF or HEIC says about itself: files of boxes, with items such as a picture, its tiles, alpha and EXIF data.

The decoders take their memory by what the coded frames say of themselves, so those are asked, too. Metadata such as
EXIF never reaches a decoder: it may be damaged, compressed, or made to be walked through, and says nothing that counts,
since these files say in boxes ("irot", "imir") how a picture is turned.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from .av1 import largest_frame
from .boxes import Box, boxes_of
from .header import ImageHeader
from .hevc import MOST_CONFIGURATION_BYTES, Frame, is_picture, largest_hevc_frame

__all__ = ["read_avif", "read_heic"]

FULL_BOX = 4  # bytes: version and flags
MOST_AVIF_ITEMS = 64  # a picture with alpha, EXIF and XMP has four; one of a grid has more
MOST_HEIC_ITEMS = 900  # a picture of 48 million pixels has some two hundred tiles; libheif takes a thousand
MOST_BRANDS = 64  # real files have less than ten
MOST_EXTENTS, MOST_PARTS = 4096, 4096  # of all items together; usual is one a tile
MOST_PROPERTIES, MOST_ASSOCIATIONS = 1024, 16_384
NOTHING = b"skip"  # a kind of item that decoders pass over

HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis"})
METADATA = frozenset({b"Exif", b"mime", b"uri "})
# What an HEIC may have beside its picture: metadata, and a recipe for the brightness of other screens.
PASSED_OVER = METADATA | {b"tmap"}
# Frames are coded in blocks of up to 64 x 64; tiles may reach beyond the picture.
BLOCK = 64
FEW_TILE_PIXELS, MOST_COVERED = 1 << 22, 4


class _Items(NamedTuple):
    """What the box "meta" says: the picture's number; of each item its kind, its bytes, its properties."""

    primary: int
    kinds: dict[int, bytes]
    extents: dict[int, list[memoryview]]
    properties: list[Box]
    of_item: dict[int, list[int]]
    parts: dict[int, list[int]]
    """Of a grid, the items it is put together of."""
    metadata_at: list[int]
    """Where in the file it is said that an item has metadata."""

    def content(self, number: int) -> bytes:
        return b"".join(self.extents.get(number, []))

    def property_of(self, number: int, kind: bytes) -> memoryview | None:
        """Return an item's property; of several, none."""
        found = [self.properties[index].content for index in self.of_item.get(number, ()) if self._is(index, kind)]
        return found[0] if len(found) == 1 else None

    def size_of(self, number: int) -> tuple[int, int]:
        """Return width and height of an item, as its box says it; IndexError if none does."""
        extent = self.property_of(number, b"ispe")
        if extent is None:
            raise IndexError
        width, height = struct.unpack_from(">II", extent, FULL_BOX)
        return width, height

    def _is(self, index: int, kind: bytes) -> bool:
        return 0 <= index < len(self.properties) and self.properties[index].kind == kind


def read_avif(encoded: memoryview, most_pixels: int) -> ImageHeader | None:
    """Read a still AVIF: one item, perhaps with alpha. None for a relative such as HEIC, and for a damaged one."""
    brands = _brands(encoded)
    if b"avif" not in brands:
        return None
    if brands[0] == b"avis":
        return ImageHeader(0, 0, kind="avif", refusal="an animated AVIF is not decoded")
    items = _items_of(encoded, MOST_AVIF_ITEMS)
    sizes = [struct.unpack_from(">II", box.content, FULL_BOX) for box in items.properties if box.kind == b"ispe"]
    if not sizes:
        return None
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
    header = ImageHeader(width, height, kind="avif", pieces=_without_metadata(encoded, items))
    for box in items.properties:
        if box.kind == b"av1C" and box.content[2] & 0x40:
            header = header._replace(bits=12 if box.content[2] & 0x20 else 10)
    if width * height > most_pixels:
        return header
    if items.kinds.get(items.primary) != b"av01" or len(set(sizes)) != 1:
        return header._replace(refusal="an AVIF that is put together of several (a grid, layers) is not decoded")
    if header.bits != 8:
        return header._replace(refusal=f"an AVIF of {header.bits} bits a channel is not decoded; 8 bits are")
    for number, kind in items.kinds.items():
        if kind == b"av01":
            frame = largest_frame(items.content(number))
            if frame is None or frame[0] > width or frame[1] > height:
                return header._replace(is_complete=False)
    return header


def read_heic(encoded: memoryview, most_pixels: int) -> ImageHeader | None:
    """Read a still HEIC: one item, or a grid of them, perhaps with alpha. None for another kind or a damaged one."""
    brands = _brands(encoded)
    if not HEIC_BRANDS & set(brands) and (b"mif1" not in brands or b"avif" in brands):
        return None
    if brands[0] in (b"hevc", b"hevx", b"msf1"):
        return ImageHeader(0, 0, kind="heic", refusal="an animated HEIC is not decoded")
    items = _items_of(encoded, MOST_HEIC_ITEMS)
    width, height = items.size_of(items.primary)
    if not width or not height:
        return None
    header = ImageHeader(width, height, kind="heic", pieces=_without_metadata(encoded, items))
    if width * height > most_pixels:
        return header
    if items.kinds.get(items.primary) not in (b"hvc1", b"grid"):
        return header._replace(refusal="a HEIC whose picture is no HEVC is not decoded")
    if others := set(items.kinds.values()) - PASSED_OVER - {b"hvc1", b"grid"}:
        names = ", ".join(sorted(ascii(kind.decode("latin-1")) for kind in others))
        return header._replace(refusal=f"a HEIC with items of other kinds ({names}) is not decoded")
    frames = _frames(items)
    if frames is None:
        return header._replace(is_complete=False)
    for number, kind in items.kinds.items():
        own = [frames[number]] if kind == b"hvc1" else _tiles(items, number, frames) if kind == b"grid" else []
        if own is None or not _are_fitting(items, number, kind, own, width * height):
            return header._replace(is_complete=False)
    bits = max(frame.bits for frame in frames.values())
    if bits != 8:
        return header._replace(bits=bits, refusal=f"a HEIC of {bits} bits a channel is not decoded; 8 bits are")
    return header


def _frames(items: _Items) -> dict[int, Frame] | None:
    """Return the frames of all items that are one; None: one cannot be said."""
    frames: dict[int, Frame] = {}
    known: dict[bytes, Frame | None] = {}  # tiles share a configuration
    for number, kind in items.kinds.items():
        if kind != b"hvc1":
            continue
        configuration = items.property_of(number, b"hvcC")
        if configuration is None or len(configuration) > MOST_CONFIGURATION_BYTES:
            return None
        key = bytes(configuration)
        if key not in known:
            known[key] = largest_hevc_frame(key)
        frame = known[key]
        if frame is None or not is_picture(items.content(number), key):
            return None
        frames[number] = frame
    return frames or None


def _tiles(items: _Items, number: int, frames: dict[int, Frame]) -> list[Frame] | None:
    """Return the frames that a grid is put together of; None: it is not what it says."""
    content = items.content(number)
    size_layout = ">II" if content[1] & 1 else ">HH"
    tiles = items.parts.get(number, [])
    is_right = len(tiles) == (content[2] + 1) * (content[3] + 1) and set(tiles) <= set(frames)
    if not is_right or struct.unpack_from(size_layout, content, 4) != items.size_of(number):
        return None
    return [frames[tile] for tile in tiles]


def _are_fitting(items: _Items, number: int, kind: bytes, frames: list[Frame], most_pixels: int) -> bool:
    """Say whether frames are no larger than an item says, and that is no larger than the picture."""
    if not frames:
        return True
    width, height = items.size_of(number)
    covered = sum(frame.width * frame.height for frame in frames)
    if kind == b"grid":
        return width * height <= most_pixels and covered <= MOST_COVERED * most_pixels + FEW_TILE_PIXELS
    are_small = frames[0].width < width + BLOCK and frames[0].height < height + BLOCK
    return are_small and width * height <= max(most_pixels, FEW_TILE_PIXELS)


# ---- boxes -----------------------------------------------------------------------------------------------------------


def _brands(encoded: memoryview) -> list[bytes]:
    """Return what a file says it is, the first of it first."""
    first = next(boxes_of(encoded), None)
    if first is None:
        return []
    _few(len(first.content) // 4, MOST_BRANDS)
    return [bytes(first.content[at : at + 4]) for at in (0, *range(8, len(first.content), 4))]


def _items_of(encoded: memoryview, most_items: int) -> _Items:
    """Return the items of a file; IndexError if it has not exactly one list of them, or too many."""
    metas = [box for box in boxes_of(encoded) if box.kind in (b"meta", b"mini")]
    if len(metas) != 1 or metas[0].kind != b"meta":  # a short list, "mini", would count instead
        raise IndexError
    meta = metas[0].content[FULL_BOX:]
    boxes: dict[bytes, Box] = {}
    for box in boxes_of(meta):
        if box.kind in boxes:
            raise IndexError  # a decoder might take the other one
        boxes[box.kind] = box
    if not {b"pitm", b"iinf", b"iloc", b"iprp"} <= set(boxes):
        raise IndexError
    primary_box, information = boxes[b"pitm"].content, boxes[b"iinf"].content
    (primary,) = struct.unpack_from(">H" if primary_box[0] == 0 else ">I", primary_box, FULL_BOX)
    first_at = FULL_BOX + (2 if information[0] == 0 else 4)
    kinds: dict[int, bytes] = {}
    metadata_at = []
    for box in boxes_of(information[first_at:]):
        number_bytes = {2: 2, 3: 4}.get(box.content[0])
        if box.kind != b"infe" or number_bytes is None or len(kinds) >= most_items:
            raise IndexError
        number = int.from_bytes(box.content[4 : 4 + number_bytes], "big")
        if number in kinds:
            raise IndexError
        kinds[number] = bytes(box.content[6 + number_bytes : 10 + number_bytes])
        if kinds[number] in METADATA:
            inner = boxes[b"iinf"].content_at + first_at + box.content_at + 6 + number_bytes
            metadata_at.append(metas[0].content_at + FULL_BOX + inner)
    inside = boxes[b"idat"].content if b"idat" in boxes else encoded[:0]
    extents = _extents(boxes[b"iloc"].content, encoded, inside, most_items)
    properties, of_item = _properties(boxes[b"iprp"].content)
    parts = _parts(boxes[b"iref"].content) if b"iref" in boxes else {}
    return _Items(primary, kinds, extents, properties, of_item, parts, metadata_at)


def _without_metadata(encoded: memoryview, items: _Items) -> tuple[memoryview | bytes, ...]:
    """Return the file with its metadata called something that decoders pass over."""
    pieces: list[memoryview | bytes] = []
    start = 0
    for at in sorted(items.metadata_at):
        pieces += [encoded[start:at], NOTHING]
        start = at + len(NOTHING)
    return (*pieces, encoded[start:])


def _extents(
    locations: memoryview, encoded: memoryview, inside: memoryview, most_items: int
) -> dict[int, list[memoryview]]:
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
    total = extent_count = 0  # of all: items may share bytes of the file, and each is looked at
    for _ in range(_few(take(number_bytes), most_items)):
        number = take(number_bytes)
        if number in result:
            raise IndexError
        result[number] = []
        method = take(2) & 15 if version else 0
        take(2)  # the file it is in: this one
        base = take(base_bytes)
        source = {0: encoded, 1: inside}.get(method, encoded[:0])
        count = take(2)
        extent_count = _few(extent_count + count, MOST_EXTENTS)
        for _ in range(count):
            take(index_bytes)
            start = base + take(offset_bytes)
            end = start + take(length_bytes)
            total += end - start
            if start == end or end > len(source) or total > len(encoded):
                raise IndexError
            result[number].append(source[start:end])
    return result


def _few(count: int, most: int) -> int:
    """Return a number of items, or of parts of one; IndexError if they are too many to look at: none may be hidden."""
    if count > most:
        raise IndexError
    return count


def _properties(content: memoryview) -> tuple[list[Box], dict[int, list[int]]]:
    """Return all properties, and by item the places of its own among them."""
    properties: list[Box] = []
    of_item: dict[int, list[int]] = {}
    total = 0
    for box in boxes_of(content):
        if box.kind == b"ipco":
            if properties:
                raise IndexError  # a decoder might take the other one
            properties += boxes_of(box.content)
        elif box.kind == b"ipma":
            for number, places in _associations(box.content):
                total = _few(total + 1 + len(places), MOST_ASSOCIATIONS)
                of_item.setdefault(number, []).extend(places)
    return properties, of_item


def _associations(content: memoryview) -> Iterator[tuple[int, list[int]]]:
    """Yield items with the places of their properties, from 0; -1 is none."""
    number_layout = struct.Struct(">H" if content[0] == 0 else ">I")
    place_layout = struct.Struct(">H" if content[3] & 1 else ">B")
    without_flag = (1 << 8 * place_layout.size - 1) - 1
    (count,) = struct.unpack_from(">I", content, FULL_BOX)
    at = FULL_BOX + 4
    for _ in range(_few(count, MOST_PROPERTIES)):
        (number,) = number_layout.unpack_from(content, at)
        at += number_layout.size + 1
        end = at + content[at - 1] * place_layout.size
        if end > len(content):
            raise IndexError
        yield number, [(place & without_flag) - 1 for (place,) in place_layout.iter_unpack(content[at:end])]
        at = end


def _parts(references: memoryview) -> dict[int, list[int]]:
    """Return by item what it is put together of."""
    layout = struct.Struct(">H" if references[0] == 0 else ">I")
    parts: dict[int, list[int]] = {}
    total = 0
    for box in boxes_of(references[FULL_BOX:]):
        if box.kind == b"dimg":
            (number,) = layout.unpack_from(box.content)
            if number in parts:
                raise IndexError  # a decoder might take the other one
            (count,) = struct.unpack_from(">H", box.content, layout.size)
            total = _few(total + _few(count, MOST_HEIC_ITEMS), MOST_PARTS)
            numbers = box.content[layout.size + 2 :]
            parts[number] = [layout.unpack_from(numbers, layout.size * at)[0] for at in range(count)]
    return parts
