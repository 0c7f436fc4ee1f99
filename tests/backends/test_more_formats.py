"""TIFF, GIF, JPEG 2000 and AVIF where DecodeMat takes them, and JPEGs that are cut: against Pillow and OpenCV."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="the image backends need OpenCV")
Image = pytest.importorskip("PIL.Image", reason="the tests of images need Pillow")

import image_corpus as corpus  # noqa: E402
import image_fuzzer as fuzzer  # noqa: E402
from PIL import ImageOps, TiffImagePlugin, features  # noqa: E402

import fastpipe  # noqa: E402
from fastpipe.backends.image import heif  # noqa: E402
from fastpipe.backends.image import tiff as tiff_reader  # noqa: E402
from fastpipe.backends.image.av1 import largest_frame  # noqa: E402
from fastpipe.backends.image.codec import DecodeMat  # noqa: E402
from fastpipe.errors import ConfigError, DecodeError, ItemErrors, MissingExtra  # noqa: E402

IMAGES = dict(corpus.more_images())
FORMATS: list[Any] = sorted({name.split()[0] for name in IMAGES})
BYTES_PER_PIXEL = 32  # what docs/images.md promises for these, the result included, beside two times the file
needs_jpeg2000 = pytest.mark.skipif("jpeg2000" not in FORMATS, reason="this Pillow has no JPEG 2000")
needs_avif = pytest.mark.skipif("avif" not in FORMATS, reason="this Pillow has no AVIF")


def decoder(**parameters: Any) -> DecodeMat:
    return DecodeMat(**{"more_formats": FORMATS, **parameters})


def run(content: Any, *, page: Any = None, **parameters: Any) -> dict[str, Any]:
    request: dict[str, Any] = {"data": content, "result": "of an earlier node"}
    if page is not None:
        request["page"] = page
    decoder(**parameters).run(request)
    return request


def tiff_of(pixels: Any, compression: int = 1) -> bytes:
    """Return a TIFF by OpenCV, which writes 16 bits."""
    return bytes(cv2.imencode(".tiff", pixels, [cv2.IMWRITE_TIFF_COMPRESSION, compression])[1])


def written_tiff(
    pixels: Any,
    order: str,
    *,
    rows: int = 19,
    tile: int = 0,
    is_planar: bool = False,
    extra: int | None = None,
    fill_order: int = 1,
) -> bytes:
    """Return a TIFF, not compressed, of pixels (height, width, channels), cut up as Pillow writes none."""
    height, width, channels = pixels.shape
    planes = [pixels[..., channel, None] for channel in range(channels)] if is_planar else [pixels]
    steps = (tile, tile) if tile else (rows, width)
    whole = (-(-height // tile) * tile, -(-width // tile) * tile) if tile else (height, width)
    padding = ((0, whole[0] - height), (0, whole[1] - width), (0, 0))
    pieces = [
        np.pad(plane, padding)[top : top + steps[0], left : left + steps[1]]
        .astype(f"{order}u{pixels.itemsize}")
        .tobytes()
        for plane in planes
        for top in range(0, whole[0], steps[0])
        for left in range(0, whole[1], steps[1])
    ]
    lengths = [len(piece) for piece in pieces]
    offsets = [8 + sum(lengths[:number]) for number in range(len(lengths))]
    tags: dict[int, list[int]] = {256: [width], 257: [height], 258: [8 * pixels.itemsize] * channels, 259: [1]}
    tags |= {262: [2 if channels > 1 else 1], 277: [channels], 284: [2 if is_planar else 1]}
    tags |= (
        {322: [tile], 323: [tile], 324: offsets, 325: lengths} if tile else {273: offsets, 278: [rows], 279: lengths}
    )
    tags |= {} if extra is None else {338: [extra]}
    tags |= {} if fill_order == 1 else {266: [fill_order]}
    at = 8 + sum(lengths)
    data_at, entries, data = at + 2 + 12 * len(tags) + 4, b"", b""
    for tag, numbers in sorted(tags.items()):
        kind, letter = (4, "I") if tag in (273, 279, 324, 325) else (3, "H")
        packed = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        place = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(f"{order}I", data_at + len(data))
        data += packed if len(packed) > 4 else b""
        entries += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + place
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", at)
    return start + b"".join(pieces) + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + data


def with_tag(content: bytes, tag: int, **changes: int) -> bytes:
    """Return a TIFF of little-endian order whose first directory has another kind, count or value under a tag."""
    changed = bytearray(content)
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        if struct.unpack_from("<H", content, entry)[0] == tag:
            for name, (layout, offset) in {"kind": ("<H", 2), "count": ("<I", 4), "value": ("<I", 8)}.items():
                if name in changes:
                    struct.pack_into(layout, changed, entry + offset, changes[name])
            return bytes(changed)
    raise AssertionError(f"no tag {tag}")


# ---- whole images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_a_whole_image_is_what_pillow_makes_of_it(name: str) -> None:
    """BGR, alpha dropped, upright; of its own memory, from any kind of bytes."""
    with Image.open(io.BytesIO(IMAGES[name])) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[..., ::-1]
    for data in (IMAGES[name], bytearray(IMAGES[name]), np.frombuffer(IMAGES[name], np.uint8)):
        request = run(data)
        np.testing.assert_array_equal(request["result"], expected)
        assert request["color"] == "bgr"
        assert request["result"].flags.writeable
        assert request["result"].flags.c_contiguous


@pytest.mark.parametrize("name", IMAGES)
def test_nothing_of_it_is_decoded_unless_it_is_asked_for(name: str) -> None:
    """By default, and where the others are asked for: each decoder is open only to those who want it."""
    others = [kind for kind in FORMATS if kind != name.split()[0]]
    assert run(IMAGES[name], more_formats=others) == run(IMAGES[name], more_formats=[]) == {"data": IMAGES[name]}


def test_the_four_formats_come_first_and_stay_what_they_are() -> None:
    for content in (corpus.by_pillow(Image.fromarray(corpus.picture()), kind) for kind in ("jpeg", "png", "webp")):
        expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(run(content)["result"], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_tiff_is_obeyed(orientation: int) -> None:
    """All eight, once: Pillow and OpenCV would turn it themselves if they were told of it."""
    content = corpus.by_pillow(Image.fromarray(corpus.picture()), "tiff", exif=corpus.exif_of(orientation))
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))[..., ::-1]
    np.testing.assert_array_equal(run(content)["result"], expected)


def test_of_an_animation_the_first_frame_is_the_result() -> None:
    """And of its file, nothing behind that frame is read."""
    content = IMAGES["gif animated"]
    first = run(content)["result"]
    np.testing.assert_array_equal(run(content[: len(content) // 2])["result"], first)


def test_the_result_goes_on_through_a_pipe() -> None:
    """The parameters come from a configuration as they come from Python."""
    keys = {"more_formats": "tiff, gif", "resize_h": 10, "resize_w": 12}
    with fastpipe.Pipe(backend="S[DecodeMat,ResizeMat]", **keys) as pipe:
        assert pipe({"data": IMAGES["gif"]})["result"].shape == (10, 12, 3)
        answer = pipe({"data": IMAGES["tiff RGB"]})
        expected = cv2.resize(corpus.picture()[..., ::-1], (12, 10))
        np.testing.assert_array_equal(answer["result"], expected)


# ---- TIFF ------------------------------------------------------------------------------------------------------------


def test_a_page_is_chosen_by_number() -> None:
    """By the parameter, or by the request, which comes first; a page that is not there is an error, in words."""
    pages = [Image.fromarray(corpus.picture(seed=seed)) for seed in range(3)]
    content = corpus.by_pillow(pages[0], "tiff", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    for page in range(3):
        expected = corpus.picture(seed=page)[..., ::-1]
        np.testing.assert_array_equal(run(content, page=page)["result"], expected)
        np.testing.assert_array_equal(decoded_page(content, page), expected)
    with pytest.raises(DecodeError, match="DecodeMat: the TIFF has 3 pages, so there is no page 3"):
        run(content, page=3)
    for wrong in (-1, 1.5, True, "1", 65_536):
        with pytest.raises(ValueError, match="DecodeMat: page must be a whole number from 0 to 65535"):
            run(content, page=wrong)


def decoded_page(content: bytes, page: int) -> Any:
    request = {"data": content}
    decoder(page=page).run(request)
    return request["result"]


@pytest.mark.parametrize("compression", [1, 5, 8])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_of_a_tiff_are_never_cut_silently(channels: int, compression: int) -> None:
    """They are refused, kept to the bit, or cut where that is asked for. (Of RGB, Pillow alone would make 8 bits.)"""
    wide = np.random.default_rng(2).integers(0, 65536, (19, 26, channels), dtype=np.uint16)
    content = tiff_of(wide, compression)
    expected = np.repeat(wide, 3, axis=2) if channels == 1 else wide[..., :3]
    with pytest.raises(DecodeError, match="16 bits a channel; tiff_16_bit = 'reduce' makes 8 of them"):
        run(content)
    np.testing.assert_array_equal(run(content, tiff_16_bit="keep")["result"], expected)
    reduced = run(content, tiff_16_bit="reduce")["result"]
    assert reduced.dtype == np.uint8
    np.testing.assert_array_equal(reduced, expected >> 8)


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
def test_a_tiff_may_be_cut_up_in_any_way(order: str) -> None:
    """Strips, tiles, channels apart; 8 and 16 bits; the pixels are the ones that were written."""
    pixels = corpus.picture()
    wide = np.random.default_rng(3).integers(0, 65536, pixels.shape, dtype=np.uint16)
    for options in ({"rows": 19}, {"rows": 4}, {"tile": 16}, {"rows": 4, "is_planar": True}):
        content = written_tiff(pixels, order, **options)
        np.testing.assert_array_equal(run(content)["result"], pixels[..., ::-1])
        gray = written_tiff(pixels[..., :1], order, **options)
        np.testing.assert_array_equal(run(gray)["result"], np.repeat(pixels[..., :1], 3, axis=2))
        if "is_planar" not in options:
            content = written_tiff(wide, order, **options)
            np.testing.assert_array_equal(run(content, tiff_16_bit="keep")["result"], wide[..., ::-1])
    with pytest.raises(DecodeError, match="16 bits whose channels are apart"):
        run(written_tiff(wide, order, is_planar=True))


def test_alpha_of_a_tiff_is_dropped() -> None:
    """And not multiplied with, as OpenCV does; colors multiplied by it are divided, with 16 bits refused."""
    pixels = np.dstack([corpus.picture() // 2, np.full((19, 26), 128, np.uint8)])
    np.testing.assert_array_equal(run(written_tiff(pixels, "<", extra=2))["result"], pixels[..., 2::-1])
    divided = run(written_tiff(pixels, "<", extra=1))["result"].astype(int)
    assert np.abs(divided - pixels[..., 2::-1] * (255 / 128)).max() <= 1
    with pytest.raises(DecodeError, match="16 bits whose colors are multiplied by alpha"):
        run(written_tiff(pixels.astype(np.uint16), "<", extra=1))


RGB = corpus.by_pillow(Image.fromarray(corpus.picture()), "tiff")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (with_tag(RGB, tiff_reader.COMPRESSION, value=34_712), "a TIFF of compression 34712 is not decoded"),
        (with_tag(RGB, tiff_reader.PHOTOMETRIC, value=8), "a TIFF of photometric interpretation 8 and 3 channels"),
        (with_tag(RGB, tiff_reader.BITS, count=1, value=32), r"3 channels and \[32\] bits is not decoded"),
        (with_tag(tiff_of(np.zeros((9, 9), np.float32)), 262, value=1), "signed or floating point"),
    ],
    ids=["compression", "Lab", "32 bits", "float"],
)
def test_kinds_of_tiff_that_are_not_decoded_are_refused_in_words(content: bytes, words: str) -> None:
    with pytest.raises(DecodeError, match=words):
        run(content)


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((9, 19, 26), {"photometric": "minisblack", "planarconfig": "separate"}, "interpretation 1 and 9 channels"),
        ((19, 26, 20), {"photometric": "minisblack", "planarconfig": "contig"}, "interpretation 1 and 20 channels"),
        ((2, 19, 26), {"photometric": "minisblack", "planarconfig": "separate"}, "gray with alpha whose channels are"),
        ((3, 19, 26), {"photometric": "ycbcr", "planarconfig": "separate"}, "YCbCr whose channels are apart"),
        (
            (19, 26),
            {"photometric": "palette", "dtype": "uint16", "colormap": np.zeros((3, 65_536), np.uint16)},
            r"interpretation 3, 1 channels and \[16\] bits is not decoded",
        ),
        (
            (19, 26, 2),
            {"photometric": "minisblack", "planarconfig": "contig", "dtype": "bool"},
            r"interpretation 1, 2 channels and \[1\] bits is not decoded",
        ),
    ],
    ids=["9 channels", "20 channels", "gray with alpha", "YCbCr", "palette of 16 bits", "bits with alpha"],
)
def test_what_tifffile_writes_is_decoded_or_refused_in_words(shape: Any, options: Any, words: str) -> None:
    """What Pillow cannot read, or would read wrongly, is no damaged file."""
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    buffer = io.BytesIO()
    options = dict(options)
    pixels = np.zeros(shape, options.pop("dtype", "uint8"))
    tifffile.imwrite(buffer, pixels, metadata=None, **options)
    with pytest.raises(DecodeError, match=words):
        run(buffer.getvalue(), tiff_16_bit="keep")


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_bigtiff_is_decoded_as_a_tiff(dtype: Any, compression: Any, order: Any) -> None:
    """Pages, strips and tiles, channels apart, 16 bits: what tifffile wrote; its decoder sees no BigTIFF."""
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    pages = np.random.default_rng(4).integers(0, np.iinfo(dtype).max, (2, 40, 50, 3)).astype(dtype)
    cut: list[dict[str, Any]] = [{"rowsperstrip": 7}, {"tile": (16, 32)}]
    cut += [{"planarconfig": "separate", "rowsperstrip": 9}] if dtype == "uint8" else []
    for options in cut:
        is_separate = "planarconfig" in options
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer, bigtiff=True, byteorder=order) as writer:
            for page in pages:
                written = np.moveaxis(page, 2, 0) if is_separate else page
                writer.write(written, photometric="rgb", compression=compression, metadata=None, **options)
        content = buffer.getvalue()
        assert b"+" in content[:4]
        header = tiff_reader.read_tiff(memoryview(content), 0, 10**6)
        assert header is not None
        assert bytes(header.pieces[0][:4]) in (b"II*\0", b"MM\0*")
        for number in range(2):
            result = run(content, page=number, tiff_16_bit="keep")["result"]
            np.testing.assert_array_equal(result, pages[number][..., ::-1])
        with pytest.raises(DecodeError, match="the TIFF has 2 pages, so there is no page 2"):
            run(content, page=2)
        for at in (4, 8, 12):  # its header: sizes of numbers, where the directory is
            damaged = content[:at] + b"\xff" * 4 + content[at + 4 :]
            assert run(damaged) == {"data": damaged}
        for length in range(0, len(content) - 1, 997):
            assert "result" not in run(content[:length], page=1)


def test_a_bigtiff_of_more_strips_than_its_pixels_need_is_not_read_number_by_number() -> None:
    """A list as long as the file, in a picture of 64 x 64: it is given up before it takes five times its bytes."""
    count = 200_000
    entries = [(256, 3, 1, 64), (257, 3, 1, 64), (273, 16, count, 200), (279, 16, count, 200)]
    directory = b"".join(struct.pack("<HHQQ", *entry) for entry in entries)
    start = b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, len(entries)) + directory + bytes(8)
    content = memoryview(start.ljust(200, b"\0") + struct.pack("<Q", 1000) * count)
    tracemalloc.start()
    header = tiff_reader.read_tiff(content, 0, 10**6)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert header is not None
    assert (header.width, header.height, header.is_complete) == (64, 64, False)
    assert peak_bytes < 3 * len(content)


def test_a_tiff_in_pieces_that_are_not_there_or_not_measured_is_refused_in_words() -> None:
    """Sparse, as geographers' programs write; and without the lengths that the specification demands."""
    with pytest.raises(DecodeError, match="strips or tiles that are not there"):
        run(with_tag(RGB, tiff_reader.STRIP_BYTES, value=0))
    unmeasured = RGB.replace(struct.pack("<H", tiff_reader.STRIP_BYTES), struct.pack("<H", 65_000))
    with pytest.raises(DecodeError, match="does not say how long its strips or tiles are"):
        run(unmeasured)


def test_a_predictor_is_for_lzw_and_deflate_alone() -> None:
    """With PackBits, libtiff leaves it out and tifffile obeys it: neither is known to be meant."""
    packed = corpus.by_pillow(Image.fromarray(corpus.picture()), "tiff", compression="packbits")
    predicted = packed.replace(struct.pack("<H", 284), struct.pack("<H", 317), 1)  # PLANAR, which is 1
    assert "result" in run(predicted)
    with pytest.raises(DecodeError, match="a TIFF of compression 32773 with a predictor is not decoded"):
        run(with_tag(predicted, 317, value=2))


def test_bytes_with_their_lowest_bit_first_are_turned_or_refused_in_words() -> None:
    """Gray and RGB, as Pillow reads them; with alpha it cannot."""
    pixels = corpus.picture()
    turned = np.packbits(np.unpackbits(pixels, bitorder="little").reshape(-1, 8)).reshape(pixels.shape)
    np.testing.assert_array_equal(run(written_tiff(turned, "<", fill_order=2))["result"], pixels[..., ::-1])
    gray = run(written_tiff(turned[..., :1], "<", fill_order=2))["result"]
    np.testing.assert_array_equal(gray, np.repeat(pixels[..., :1], 3, axis=2))
    with pytest.raises(DecodeError, match=r"4 channels and 8 bits in the other order \(fill order 2\) is not decoded"):
        run(written_tiff(np.dstack([turned, turned[..., :1]]), "<", extra=2, fill_order=2))
    with pytest.raises(DecodeError, match="3 channels that are apart and 8 bits in the other order"):
        run(written_tiff(turned, "<", fill_order=2, is_planar=True))


def test_one_channel_cannot_be_apart_from_others() -> None:
    """A planar configuration of 2 says nothing of it; Pillow would take 0 for black then, though it is white."""
    gray = corpus.picture()[..., :1]
    for options in ({"rows": 7}, {"tile": 16}):
        white_is_zero = with_tag(written_tiff(gray, "<", is_planar=True, **options), 262, value=0)
        np.testing.assert_array_equal(run(white_is_zero)["result"], np.repeat(255 - gray, 3, axis=2))


@pytest.mark.parametrize("options", [{"rows": 4}, {"tile": 16}, {"rows": 4, "is_planar": True}], ids=str)
def test_strips_that_are_shorter_than_their_pixels_give_no_result(options: Any) -> None:
    """A decoder would show what is behind them in the file: other bytes of it."""
    content = written_tiff(corpus.picture(), "<", **options)
    tag = tiff_reader.TILE_BYTES if "tile" in options else tiff_reader.STRIP_BYTES
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    entries = [struct.unpack_from("<HHII", content, at + 2 + 12 * number) for number in range(count)]
    (lengths_at,) = (value for number, _, _, value in entries if number == tag)
    assert "result" in run(content)
    shorter = bytearray(content)
    struct.pack_into("<I", shorter, lengths_at, struct.unpack_from("<I", content, lengths_at)[0] - 1)
    assert run(bytes(shorter)) == {"data": bytes(shorter)}


def test_a_damaged_tiff_gives_no_result() -> None:
    """Strips beyond the end, as many as there should not be, a tile of a terabyte, a directory nowhere or in a ring."""
    in_a_ring = bytearray(RGB)
    (at,) = struct.unpack_from("<I", RGB, 4)
    (count,) = struct.unpack_from("<H", RGB, at)
    struct.pack_into("<I", in_a_ring, at + 2 + 12 * count, at)
    assert "result" in run(bytes(in_a_ring))
    assert "result" not in run(bytes(in_a_ring), page=1)
    tiled = with_tag(with_tag(RGB, tiff_reader.ROWS_PER_STRIP, value=1 << 20), tiff_reader.PLANAR, value=1 << 20)
    tiled = tiled.replace(struct.pack("<H", tiff_reader.ROWS_PER_STRIP), struct.pack("<H", tiff_reader.TILE_WIDTH))
    tiled = tiled.replace(struct.pack("<H", tiff_reader.PLANAR), struct.pack("<H", tiff_reader.TILE_HEIGHT))
    for content in (
        with_tag(RGB, tiff_reader.STRIP_BYTES, value=len(RGB)),
        with_tag(RGB, tiff_reader.STRIP_OFFSETS, value=0xFFFF_FFFF),
        with_tag(RGB, tiff_reader.ROWS_PER_STRIP, value=1),
        with_tag(RGB, tiff_reader.HEIGHT, value=0),
        RGB[:4] + b"\xff\xff\xff\x7f" + RGB[8:],
        tiled,
    ):
        assert run(content) == {"data": content}


def test_texts_and_profiles_of_a_tiff_never_reach_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    content = corpus.by_pillow(Image.fromarray(corpus.picture()), "tiff", description="x" * 9999, icc_profile=bytes(99))
    header = tiff_reader.read_tiff(memoryview(content), 0, 10**6)
    assert header is not None
    with Image.open(io.BytesIO(b"".join(header.pieces))) as image:
        assert not {270, 34675} & set(image.tag_v2)
        np.testing.assert_array_equal(np.asarray(image), corpus.picture())


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_max_pixels_holds_by_the_header(name: str) -> None:
    """As many as allowed are decoded; with one less allowed, that request fails alone."""
    pixels = corpus.HEIGHT * corpus.WIDTH
    assert "result" in run(IMAGES[name], max_pixels=pixels)
    good = corpus.by_pillow(Image.fromarray(corpus.picture(8, 8)), "png")
    batch = [{"data": good}, {"data": IMAGES[name]}, {"data": good}]
    with pytest.raises(ItemErrors) as caught:
        decoder(max_pixels=pixels - 1).forward(batch)
    assert list(caught.value.errors) == [1]
    assert "more than max_pixels = 493" in str(caught.value.errors[1])
    assert ["result" in request for request in batch] == [True, False, True]


def test_a_tiff_in_many_tiny_pieces_is_refused() -> None:
    """A decoder keeps a record of each, larger than the pixels."""
    with pytest.raises(DecodeError, match="a TIFF of 1100 pixels in 1100 strips or tiles is not decoded"):
        run(written_tiff(np.zeros((1100, 1, 1), np.uint8), "<", rows=1))
    assert "result" in run(written_tiff(np.zeros((1000, 1, 1), np.uint8), "<", rows=1))


def test_a_tile_much_larger_than_the_picture_gives_no_result() -> None:
    """Each of its sides is no longer than it may be, but both are."""
    whole = written_tiff(np.zeros((1024, 1024, 1), np.uint8), "<", tile=1024)
    assert "result" in run(with_tag(whole, 257, value=1))
    wider = written_tiff(np.zeros((1040, 1040, 1), np.uint8), "<", tile=1040)
    assert "result" not in run(with_tag(with_tag(wider, 257, value=1), 323, value=1024))


def test_strips_that_share_their_bytes_are_counted_each_time() -> None:
    """Each is gone over by the decoder, however short the file is."""
    whole = written_tiff(np.zeros((400, 4, 1), np.uint8), "<", rows=1)
    assert "result" in run(whole)
    at, count = 8 + 400 * 4, 10  # the directory; its entries
    changed = bytearray(whole)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, _, length, place = struct.unpack_from("<HHII", changed, entry)
        if tag in (273, 279):
            for number in range(length):
                struct.pack_into("<I", changed, place + 4 * number, 8 if tag == 273 else 1000)
    assert "result" not in run(bytes(changed))


def test_a_tiff_of_ycbcr_that_pillow_would_misread_is_refused() -> None:
    content = with_tag(written_tiff(np.zeros((8, 8, 3), np.uint8), "<"), 262, value=6)
    with pytest.raises(DecodeError, match="YCbCr that is subsampled and not compressed is not decoded"):
        run(content)


def test_a_page_is_asked_for_only_of_a_tiff() -> None:
    assert "result" in run(IMAGES["gif"], page="A4")
    with pytest.raises(ValueError, match="page must be a whole number"):
        run(tiff_of(corpus.picture()), page="A4")


def test_parts_of_an_avif_that_share_their_bytes_are_counted_each_time() -> None:
    """Each is put together and looked at; so together they are no more than the file."""
    file = memoryview(bytes(1000))

    def locations(*lengths: int) -> memoryview:
        items = b"".join(struct.pack(">HHHII", number, 0, 1, 0, length) for number, length in enumerate(lengths))
        return memoryview(bytes(4) + b"\x44\0" + struct.pack(">H", len(lengths)) + items)

    found = heif._extents(locations(400, 600), file, file[:0], 64)
    assert {number: [len(part) for part in parts] for number, parts in found.items()} == {0: [400], 1: [600]}
    with pytest.raises(IndexError):
        heif._extents(locations(400, 601), file, file[:0], 64)


def test_a_gif_that_claims_much_is_refused_by_its_header() -> None:
    """And one whose frame is not inside of its picture gives no result."""
    content = bytearray(IMAGES["gif"])
    struct.pack_into("<HH", content, 6, 65_535, 65_535)
    with pytest.raises(DecodeError, match="65535 x 65535 pixels, more than max_pixels"):
        run(bytes(content))
    struct.pack_into("<HH", content, 6, 25, 19)
    assert "result" not in run(bytes(content))


@needs_jpeg2000
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precinct_size": (16, 16)}, "precincts below 32 x 32"),
        ({"codeblock_size": (8, 8)}, "code blocks below 16 x 16"),
        ({"tile_size": (4, 4)}, "a JPEG 2000 of 36864 pixels in 2304 tiles"),
    ],
    ids=["precincts", "blocks", "tiles"],
)
def test_a_jpeg_2000_in_tiny_pieces_is_refused(options: dict[str, Any], words: str) -> None:
    """A decoder keeps kilobytes for each of them."""
    content = corpus.by_pillow(Image.new("L", (192, 192)), "jpeg2000", **options)
    with pytest.raises(DecodeError, match=words):
        run(content)


@needs_jpeg2000
def test_a_jpeg_2000_of_more_bits_or_without_its_end() -> None:
    """Pillow would make white of 16 bits black; so they are refused. Cut, there is no result."""
    _, wide = cv2.imencode(".jp2", np.full((64, 64, 3), 65_535, np.uint16))
    with pytest.raises(DecodeError, match="a JPEG 2000 of 16 bits a channel is not decoded; 8 bits are"):
        run(wide)
    content = IMAGES["jpeg2000 RGB"]
    assert not [cut for cut in (1, 2, 50, 500) if "result" in run(content[:-cut])]


@needs_avif
def test_an_avif_whose_frames_are_larger_than_it_says_gives_no_result() -> None:
    """The decoder would take memory for the frame; so the frame is asked, too."""
    content = bytearray(corpus.by_pillow(Image.new("RGB", (640, 400)), "avif"))
    assert "result" in run(bytes(content))
    struct.pack_into(">II", content, content.index(b"ispe") + 8, 16, 16)
    assert "result" not in run(bytes(content))


@needs_avif
def test_kinds_of_avif_that_are_not_decoded_are_refused_in_words() -> None:
    """Animations, and more bits."""
    frames = [Image.fromarray(corpus.picture(seed=seed)) for seed in (1, 2)]
    with pytest.raises(DecodeError, match="an animated AVIF is not decoded"):
        run(corpus.by_pillow(frames[0], "avif", save_all=True, append_images=frames[1:]))
    wide = bytearray(IMAGES["avif 420"])
    wide[wide.index(b"av1C") + 6] |= 0x40
    with pytest.raises(DecodeError, match="an AVIF of 10 bits a channel is not decoded; 8 bits are"):
        run(bytes(wide))
    assert "result" not in run(IMAGES["avif 420"].replace(b"avif", b"heic"))


@needs_avif
@pytest.mark.parametrize("orientation", [1, 6])
def test_exif_data_of_an_avif_may_be_anything(orientation: int) -> None:
    """Damaged, or of a megabyte: it is left out, and the picture is turned as its boxes say."""
    exif = corpus.exif_of(orientation)
    exif[0x010F] = "x" * 1_000_000
    whole = corpus.by_pillow(Image.fromarray(corpus.picture()), "avif", exif=exif)
    expected = run(whole)["result"]
    assert expected.shape == ((26, 19, 3) if orientation == 6 else (19, 26, 3))
    start = whole.index(b"II*\0" if b"II*\0" in whole else b"MM\0*")
    for damage in (b"\0\0\0\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"):
        damaged = whole[:start] + damage + whole[start + len(damage) :]
        np.testing.assert_array_equal(run(damaged)["result"], expected)


@needs_avif
def test_an_avif_that_could_hide_a_frame_gives_no_result() -> None:
    """Two boxes that say where frames are, more parts than are looked at, a part without an end."""
    content = bytearray(IMAGES["avif 420"])
    assert "result" in run(bytes(content))
    at = content.index(b"iloc")  # version 0, sizes of numbers, one item: its number, its file, parts: one, of 8 bytes
    if content[at + 4 : at + 12] != b"\0\0\0\0\x44\0\0\1":
        pytest.skip("this libavif writes where its frames are in another way")
    changes = {b"free": content.replace(b"hdlr", b"iloc"), b"parts": bytearray(content), b"length": bytearray(content)}
    changes[b"parts"][at + 16 : at + 18] = struct.pack(">H", 65)
    changes[b"length"][at + 22 : at + 26] = bytes(4)
    for changed in changes.values():
        assert changed != content
        assert "result" not in run(bytes(changed))
    (length,) = struct.unpack_from(">I", content, content.index(b"meta") - 4)
    meta = content[content.index(b"meta") - 4 :][:length]
    assert "result" not in run(bytes(content + meta))


@pytest.mark.parametrize("pattern", [b"\x21\xfe" + b"\1a" * 5000 + b"\0", b"\x21\xfe\0" * 300], ids=["blocks", "texts"])
def test_a_gif_made_to_be_walked_through_gives_no_result(pattern: bytes) -> None:
    """More blocks in a text, or more texts, before its first frame than any that is meant to be seen."""
    content = IMAGES["gif"]
    at = 13 + 3 * (2 << (content[10] & 7))
    assert "result" in run(content[:at] + b"\x21\xfe\1a\0" + content[at:])
    assert "result" not in run(content[:at] + pattern + content[at:])


def test_the_size_of_an_av1_frame_is_read_from_its_sequence_header() -> None:
    """By hand: reduced (16 x 8, of 4 and 3 bits), and with one operating point; anything else is none."""
    reduced = "000" + "1" + "1" + "00000" + "0011" + "0010" + "1111" + "111"
    whole = "000" + "0" + "0" + "0" + "0" + "00000" + "0" * 12 + "01000" + "1" + "0011" + "0010" + "1111" + "111"
    for bits in (reduced, whole):
        header = int(bits.ljust(48, "0"), 2).to_bytes(6, "big")
        assert largest_frame(b"\x12\x00" + b"\x0a\x06" + header) == (16, 8)
        assert largest_frame(b"\x12\x00" + b"\x0a\x07" + header) is None
    assert largest_frame(b"") is None
    assert largest_frame(b"\x12\x00" * 1000) is None


def test_pillows_own_limit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the process's; whoever lowers it gets an error that names it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)

    def load(image: Any) -> None:
        Image._decompression_bomb_check(image.size)  # as Pillow 13 does for a TIFF, and others for other formats

    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", load)
    with pytest.raises(DecodeError, match=r"26 x 19 pixels, more than Pillow's own limit, PIL.Image.MAX_IMAGE_PIXELS"):
        run(IMAGES["tiff RGB lzw"])


def test_what_the_installed_pillow_lacks_is_said_when_the_pipe_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """A format, or all of Pillow."""
    monkeypatch.setattr(features, "check_codec", lambda name: False)
    with pytest.raises(ConfigError, match="DecodeMat: more_formats has jpeg2000, tiff, which the installed Pillow"):
        DecodeMat(more_formats=["tiff", "gif", "jpeg2000"])
    monkeypatch.setitem(sys.modules, "PIL.features", None)
    with pytest.raises(MissingExtra, match=r"DecodeMat with more_formats needs PIL.*fastpipe-engine\[cpu\]"):
        DecodeMat(more_formats=["gif"])
    assert "result" in run(corpus.by_pillow(Image.fromarray(corpus.picture()), "png"), more_formats=[])


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode", [["more-truncations"], ["more-flips", "2500", "1"], ["more-large"]], ids=lambda m: m[0]
)
def test_damaged_files_end_in_one_of_three_ways(mode: list[str], tmp_path: Path) -> None:
    """In a process that may crash, hang or grow: an image, no result, or DecodeError, in bounded memory."""
    command = [sys.executable, str(fuzzer.__file__), str(tmp_path / "current"), *mode]
    with open(tmp_path / "stderr.txt", "w") as stderr:
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, check=False)
    assert ran.returncode == 0, (tmp_path / "stderr.txt").read_text()[-2000:]
    report = json.loads(ran.stdout)
    assert not report["problems"]
    assert report["slowest_s"] < 10
    if mode[0] == "more-large":
        assert {row["outcome"] for row in report["rows"]} == {"image"}
    else:
        assert {key.split(": ")[0] for key in report["outcomes"]} == set(FORMATS)
        assert report["grown_mb"] < 128
    for row in report["rows"]:
        height, width = row["shape"][:2]
        assert row["peak_mb"] < (BYTES_PER_PIXEL * height * width + 2 * row["bytes"]) / 1e6 + 8, row["name"]


# ---- a JPEG without its last bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
def test_a_cut_jpeg_is_kept_where_that_is_asked_for(progressive: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """As far as it goes: the pixels are those of the file with an end put to it; and the request says so."""
    content = corpus.by_pillow(Image.fromarray(corpus.picture(120, 90)), "jpeg", progressive=progressive)
    whole = run(content, truncated="keep")
    assert "truncated" not in whole
    for length in (len(content) - 1, len(content) - 2, len(content) * 2 // 3, len(content) // 2):
        assert run(content[:length]) == {"data": content[:length]}
        request = run(content[:length], truncated="keep")
        assert request["truncated"] is True
        with Image.open(io.BytesIO(content[:length] + b"\xff\xd9")) as image:
            np.testing.assert_array_equal(request["result"], np.asarray(image)[..., ::-1])
    assert not np.array_equal(request["result"], whole["result"])
    assert run(content[:100], truncated="keep") == {"data": content[:100]}
    capfd.readouterr()  # libjpeg says what is missing


def test_that_an_older_picture_was_cut_is_forgotten() -> None:
    request = {"data": cv2.imencode(".jpg", corpus.picture())[1].tobytes(), "truncated": True}
    decoder(truncated="keep").run(request)
    assert "truncated" not in request


def test_only_a_jpeg_is_kept() -> None:
    """Of a PNG that is cut nothing is known to be right."""
    content = corpus.by_pillow(Image.fromarray(corpus.picture()), "png")
    assert run(content[:-20], truncated="keep") == {"data": content[:-20]}
