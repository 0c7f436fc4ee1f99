"""HEIC: what its boxes and frames say, read without any library; the pixels of pillow-heif, where that is installed."""

from __future__ import annotations

import io
import struct
import sys
from typing import Any

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="the image backends need OpenCV")
Image = pytest.importorskip("PIL.Image", reason="the tests of images need Pillow")

import image_corpus as corpus  # noqa: E402

import fastpipe  # noqa: E402
from fastpipe.backends.image import heif  # noqa: E402
from fastpipe.backends.image.codec import DecodeMat  # noqa: E402
from fastpipe.backends.image.header import ImageHeader  # noqa: E402
from fastpipe.backends.image.hevc import Frame, is_picture, largest_hevc_frame  # noqa: E402
from fastpipe.backends.image.more_headers import read_more  # noqa: E402
from fastpipe.errors import ConfigError, DecodeError  # noqa: E402

PICTURE = b"\0\0\0\x04\x28\1\x80\0"  # a NAL unit with the first slice of a picture, which has no sizes in it
SLICE = b"\0\0\0\x04\x28\1\0\0"  # with a further one


def header_of(content: bytes, most_pixels: int = 10**6) -> ImageHeader | None:
    return read_more(memoryview(content), frozenset({"heic"}), 0, most_pixels=most_pixels)


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def golomb(number: int) -> str:
    code = f"{number + 1:b}"
    return "0" * (len(code) - 1) + code


def parameters(width: int, height: int, *, bits: int = 8, sub_layers: int = 0, is_cut: bool = False) -> bytes:
    """A sequence parameter set, as far as it is read, with the bytes in it that keep start codes from appearing."""
    text = "0000" + f"{sub_layers:03b}" + "1" + "0" * 88 + "00011110"
    if sub_layers:
        text += "11" * sub_layers + "00" * (8 - sub_layers) + ("0" * 88 + "00011110") * sub_layers
    text += golomb(0) + golomb(1) + golomb(width) + golomb(height)
    text += ("1" + golomb(0) + golomb(3) + golomb(0) + golomb(1)) if is_cut else "0"
    text += golomb(bits - 8) + golomb(0)
    data = int(text.ljust(-(-len(text) // 8) * 8, "1"), 2).to_bytes(-(-len(text) // 8), "big")
    escaped = bytearray()
    for byte in data:
        if byte <= 3 and escaped[-2:] == b"\0\0":
            escaped.append(3)
        escaped.append(byte)
    return b"\x42\1" + bytes(escaped)


def configuration(*units: bytes, length_bytes: int = 4) -> bytes:
    arrays = b"".join(struct.pack(">BHH", 0x80 | unit[0] >> 1, 1, len(unit)) + unit for unit in units)
    return bytes(21) + bytes([length_bytes - 1]) + bytes([len(units)]) + arrays


def heic(
    items: list[tuple[bytes, bytes, list[int]]],
    properties: list[bytes],
    *,
    brands: bytes = b"heic\0\0\0\0mif1heic",
    primary: int = 1,
    references: bytes = b"",
) -> bytes:
    """A file of items, numbered from 1: (kind, bytes, numbers of their properties, from 1)."""
    start = box(b"ftyp", brands)
    infos = b"".join(
        box(b"infe", b"\2\0\0\0" + struct.pack(">HH4sx", number, 0, kind))
        for number, (kind, _, _) in enumerate(items, 1)
    )
    owned = b"".join(struct.pack(">HB", number, len(own)) + bytes(own) for number, (_, _, own) in enumerate(items, 1))
    fixed = box(b"hdlr", bytes(8) + b"pict" + bytes(13)) + box(b"pitm", struct.pack(">IH", 0, primary))
    fixed += box(b"iinf", struct.pack(">IH", 0, len(items)) + infos)
    fixed += box(
        b"iprp",
        box(b"ipco", b"".join(properties)) + box(b"ipma", struct.pack(">II", 0, len(items)) + owned),
    )
    fixed += box(b"iref", bytes(4) + references) if references else b""
    data_at = len(start) + 12 + len(fixed) + 16 + 14 * len(items) + 8
    places, data = b"", b""
    for number, (_, content, _) in enumerate(items, 1):
        places += struct.pack(">HHHII", number, 0, 1, data_at + len(data), len(content))
        data += content
    fixed += box(b"iloc", b"\0\0\0\0\x44\0" + struct.pack(">H", len(items)) + places)
    return start + box(b"meta", bytes(4) + fixed) + box(b"mdat", data)


def extent(width: int, height: int) -> bytes:
    return box(b"ispe", struct.pack(">III", 0, width, height))


def single(width: int, height: int, unit: bytes, *, stream: bytes = PICTURE, **options: Any) -> bytes:
    properties = [extent(width, height), box(b"hvcC", configuration(unit))]
    return heic([(b"hvc1", stream, [1, 2])], properties, **options)


def grid(rows: int, columns: int, width: int, height: int, tile: int, tiles: list[int] | None = None) -> bytes:
    """A grid of tiles, all of which are item 2."""
    parts = [2] * (rows * columns) if tiles is None else tiles
    content = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height)
    properties = [extent(width, height), extent(tile, tile), box(b"hvcC", configuration(parameters(tile, tile)))]
    references = box(b"dimg", struct.pack(f">HH{len(parts)}H", 1, len(parts), *parts))
    return heic([(b"grid", content, [1]), (b"hvc1", PICTURE, [2, 3])], properties, references=references)


# ---- headers ---------------------------------------------------------------------------------------------------------


def test_the_header_of_a_real_file() -> None:
    """Only if HEIC is asked for; by its size, before anything else is looked at."""
    header = header_of(corpus.SMALL_HEIC)
    assert header is not None
    assert (header.width, header.height, header.bits, header.kind, header.is_complete) == (64, 64, 8, "heic", True)
    assert b"".join(header.pieces) == corpus.SMALL_HEIC
    assert read_more(memoryview(corpus.SMALL_HEIC), frozenset({"avif", "tiff"}), 0) is None
    request = {"data": corpus.SMALL_HEIC}
    DecodeMat(more_formats=["tiff", "gif"]).run(request)
    assert "result" not in request


@pytest.mark.parametrize("sub_layers", [0, 2])
@pytest.mark.parametrize("is_cut", [False, True])
def test_the_size_of_a_frame_is_read_from_its_parameters(sub_layers: int, is_cut: bool) -> None:
    """The largest of a configuration; damaged pieces are none, and so are more than anybody needs."""
    unit = parameters(4032, 3024, sub_layers=sub_layers, is_cut=is_cut)
    other = parameters(64, 8192, bits=10)
    assert largest_hevc_frame(configuration(unit)) == Frame(4032, 3024, 8)
    assert largest_hevc_frame(configuration(PICTURE[4:], unit, other)) == Frame(4032, 8192, 10)
    assert largest_hevc_frame(configuration()) is None
    assert largest_hevc_frame(configuration(unit[:12])) is None
    assert largest_hevc_frame(configuration(unit)[:-1]) is None
    assert largest_hevc_frame(configuration(*[unit] * 17)) is None
    assert largest_hevc_frame(configuration(unit) + bytes(65_536)) is None
    assert largest_hevc_frame(b"") is None


def test_an_item_is_one_picture_without_parameters_of_its_own() -> None:
    """They could say anything; nor is it damaged, in a thousand pieces, or many pictures for the price of one."""
    setting, unit = configuration(parameters(64, 64)), parameters(9000, 9000)
    end = struct.pack(">I", 2) + b"\x48\1"
    for stream in (PICTURE, PICTURE + SLICE * 1022, PICTURE + SLICE + end):
        assert is_picture(stream, setting)
    hidden = struct.pack(">I", len(unit)) + unit
    for stream in (PICTURE + hidden, PICTURE[:-1], PICTURE + SLICE * 1023, bytes(4), b"", SLICE, PICTURE * 2):
        assert not is_picture(stream, setting)
    # By lengths of two bytes, a slice; by those of four, which libheif reads whatever is said, it begins with a size.
    for length_bytes in (1, 2, 4):
        setting = configuration(parameters(64, 64), length_bytes=length_bytes)
        stream = (4).to_bytes(length_bytes, "big") + PICTURE[4:]
        assert is_picture(stream, setting) == (length_bytes == 4)


def test_zeros_of_a_header_count_for_the_byte_that_keeps_start_codes_from_appearing() -> None:
    """Decoders take it out of the whole unit, so that all bits behind it are elsewhere."""
    unit = parameters(304, 200)
    assert largest_hevc_frame(configuration(unit[:1] + b"\0\0\3" + unit[3:])) == Frame(304, 200, 8)


def test_a_frame_that_is_larger_than_its_picture_gives_no_result() -> None:
    """The decoder takes its memory by the frame: in the configuration, or in the stream."""
    fine = single(300, 200, parameters(304, 200))
    assert header_of(fine) == ImageHeader(300, 200, kind="heic", pieces=(fine,))
    bomb = parameters(16_384, 16_384)
    assert header_of(single(300, 200, bomb)) == ImageHeader(
        300, 200, kind="heic", pieces=(), is_complete=False
    )._replace(pieces=(single(300, 200, bomb),))
    hidden = struct.pack(">I", len(bomb)) + bomb + PICTURE
    for content in (single(300, 200, bomb), single(300, 200, parameters(304, 200), stream=hidden)):
        header = header_of(content)
        assert header is not None
        assert not header.is_complete


def test_tiles_may_not_be_much_more_than_their_picture() -> None:
    """A grid of 8 x 6 is a photo; the same tile a thousand times over a small picture is none."""
    photo = header_of(grid(6, 8, 4032, 3024, 512), 10**8)
    assert photo is not None
    assert (photo.is_complete, photo.width, photo.height) == (True, 4032, 3024)
    for content in (
        grid(30, 30, 500, 500, 512),  # 236 million pixels to decode
        grid(2, 2, 1000, 1000, 512, tiles=[2, 2, 2]),  # one is missing
        grid(2, 2, 1000, 1000, 512, tiles=[2, 2, 2, 1]),  # the grid in itself
    ):
        header = header_of(content, 10**9)
        assert header is not None
        assert not header.is_complete
    assert header_of(grid(40, 40, 20_000, 20_000, 512), 10**9) is None  # more tiles than are looked at


def test_no_item_is_larger_than_the_picture() -> None:
    """As a mask of a gigabyte beside a small picture."""
    properties = [
        extent(300, 200),
        box(b"hvcC", configuration(parameters(304, 200))),
        extent(16_384, 16_384),
        box(b"hvcC", configuration(parameters(16_384, 16_384))),
    ]
    header = header_of(heic([(b"hvc1", PICTURE, [1, 2]), (b"hvc1", PICTURE, [3, 4])], properties))
    assert header is not None
    assert not header.is_complete


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (single(300, 200, parameters(304, 200, bits=10)), "a HEIC of 10 bits a channel is not decoded; 8 bits are"),
        (single(300, 200, PICTURE[4:], brands=b"hevc\0\0\0\0heic"), "an animated HEIC is not decoded"),
        (heic([(b"av01", PICTURE, [1])], [extent(9, 9)]), "a HEIC whose picture is no HEVC is not decoded"),
        (
            heic(
                [(b"hvc1", PICTURE, [1, 2]), (b"unci", PICTURE, [])],
                [extent(64, 64), box(b"hvcC", configuration(parameters(64, 64)))],
            ),
            r"a HEIC with items of other kinds \('unci'\) is not decoded",
        ),
    ],
    ids=["bits", "animation", "AV1", "another item"],
)
def test_kinds_of_heic_that_are_not_decoded_are_refused_in_words(content: bytes, words: str) -> None:
    header = header_of(content)
    assert header is not None
    with pytest.raises(DecodeError, match=f"DecodeMat: {words}"):
        DecodeMat()._check(header)


def test_a_list_of_items_that_two_readers_could_read_differently_gives_no_result() -> None:
    """An item twice, too many, a property twice, none at all; every beginning of a file."""
    unit = parameters(64, 64)
    properties = [extent(64, 64), box(b"hvcC", configuration(unit)), extent(9000, 9000)]
    item = (b"hvc1", PICTURE, [1, 2])
    assert header_of(heic([item, (b"Exif", b"abcd", [])], properties)) is not None
    twice = heic([item, (b"hvc1", PICTURE, [1, 2])], properties).replace(b"infe\2\0\0\0\0\2", b"infe\2\0\0\0\0\1")
    for content in (
        twice,
        heic([item] * 901, properties),
        heic([(b"hvc1", PICTURE, [1, 2, 3])], properties),
        heic([(b"hvc1", PICTURE, [])], properties),
        heic([item], properties, primary=5),
        heic([item], [extent(0, 64), *properties[1:]]),
        heic([(b"hvc1", PICTURE, [1] * 255)] * 80, properties),
        heic([item], properties, brands=b"heic\0\0\0\0" + b"heic" * 64),
        heic([item], properties) + box(b"mini", b"another list"),
    ):
        assert header_of(content) is None
    whole = single(64, 64, unit)
    for length in range(len(whole) - len(PICTURE)):
        header = header_of(whole[:length])
        assert header is None or not header.is_complete


def test_the_parts_of_a_grid_are_said_once() -> None:
    """Decoders take the first list, whatever a second says: tiles of a gigabyte behind small ones, or the reverse."""
    content = grid(2, 2, 100, 100, 64)
    header = header_of(content)
    assert header is not None
    assert header.is_complete
    parts = struct.pack(">HH4H", 1, 4, 2, 2, 2, 2)
    layout = struct.pack(">BBBBHH", 0, 0, 1, 1, 100, 100)
    properties = [extent(100, 100), extent(64, 64), box(b"hvcC", configuration(parameters(64, 64)))]
    items = [(b"grid", layout, [1]), (b"hvc1", PICTURE, [2, 3])]
    assert heic(items, properties, references=box(b"dimg", parts)) == content
    assert header_of(heic(items, properties, references=box(b"dimg", parts) * 2)) is None


def test_lists_that_are_made_to_be_walked_through_give_no_result() -> None:
    """Of parts of items, and of parts of grids: a few hundred in each are many in all."""
    unit = parameters(64, 64)
    properties = [extent(64, 64), box(b"hvcC", configuration(unit))]
    item = (b"hvc1", PICTURE, [1, 2])
    for grids, is_read in ((4, True), (5, False)):
        references = b"".join(box(b"dimg", struct.pack(">HH900H", number, 900, *[1] * 900)) for number in range(grids))
        assert (header_of(heic([item], properties, references=references)) is not None) == is_read
    for items in (4, 5):
        locations = b"\0\0\0\0\x44\0" + struct.pack(">H", items)
        for number in range(items):
            locations += struct.pack(">HHH", number, 0, 900) + struct.pack(">II", 0, 1) * 900
        arguments = (memoryview(locations), memoryview(bytes(9000)), memoryview(b""), 900)
        if items == 4:
            assert [len(parts) for parts in heif._extents(*arguments).values()] == [900] * items
        else:
            with pytest.raises(IndexError):
                heif._extents(*arguments)


def test_metadata_never_reaches_the_decoder() -> None:
    """It is called something else on the way, with nothing moved: it may be damaged, or compressed a thousandfold."""
    content = heic(
        [(b"hvc1", PICTURE, [1, 2]), (b"Exif", b"\0\0\0\0MM damaged", []), (b"mime", b"x", []), (b"uri ", b"x", [])],
        [extent(64, 64), box(b"hvcC", configuration(parameters(64, 64)))],
    )
    header = header_of(content)
    assert header is not None
    assert b"".join(header.pieces) == content.replace(b"Exif", b"skip").replace(b"mime", b"skip").replace(
        b"uri ", b"skip"
    )


def test_without_pillow_heif_the_licence_is_said_when_the_pipe_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """No extra brings it: whoever wants it has to have read this."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(
        ConfigError, match=r"DecodeMat: more_formats has heic, .*pillow-heif.*x265 and so are under the GPL"
    ):
        fastpipe.Pipe(backend="DecodeMat", more_formats=["heic"])


# ---- pixels ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pillow_heif() -> Any:
    return pytest.importorskip("pillow_heif", reason="pillow-heif is not installed (no extra brings it)")


def run(content: bytes, **parameters: Any) -> dict[str, Any]:
    request: dict[str, Any] = {"data": content, "result": "of an earlier node"}
    DecodeMat(more_formats=["heic"], **parameters).run(request)
    return request


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_whole_picture_is_what_pillow_heif_makes_of_it(pillow_heif: Any, mode: str) -> None:
    """BGR, alpha dropped, gray repeated."""
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(corpus.picture(120, 90)).convert(mode)).save(buffer)
    with pillow_heif.HeifImageFile(io.BytesIO(buffer.getvalue())) as image:
        expected = np.asarray(image.convert("RGB"))[..., ::-1]
    request = run(buffer.getvalue())
    np.testing.assert_array_equal(request["result"], expected)
    assert (request["color"], request["result"].shape) == ("bgr", (120, 90, 3))


def test_tiles_are_put_together(pillow_heif: Any) -> None:
    """As a telephone writes its photos: four tiles of a picture that ends inside of them."""
    tiles = [corpus.picture(64, 64, seed=seed) for seed in range(4)]
    contents, settings = [], set()
    for tile in tiles:
        buffer = io.BytesIO()
        pillow_heif.from_pillow(Image.fromarray(tile)).save(buffer, quality=90)
        items = heif._items_of(memoryview(buffer.getvalue()), 9)
        contents.append(items.content(items.primary))
        settings.add(bytes(items.property_of(items.primary, b"hvcC") or b""))
    (setting,) = settings
    properties = [extent(120, 100), extent(64, 64), box(b"hvcC", setting)]
    references = box(b"dimg", struct.pack(">HH4H", 1, 4, 2, 3, 4, 5))
    layout = struct.pack(">BBBBHH", 0, 0, 1, 1, 120, 100)
    parts = [(b"hvc1", content, [2, 3]) for content in contents]
    result = run(heic([(b"grid", layout, [1]), *parts], properties, references=references))["result"]
    expected = np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])])[:100, :120, ::-1]
    assert result.shape == (100, 120, 3)
    assert np.abs(result.astype(int) - expected).mean() < 12


def test_boxes_turn_and_cut_a_picture(pillow_heif: Any) -> None:
    """ "clap" of the small file, and "irot" put into it: the size is that of what is seen."""
    upright = run(corpus.SMALL_HEIC)["result"]
    assert upright.shape == (19, 26, 3)
    assert np.abs(upright.astype(int) - corpus.picture()[..., ::-1]).mean() < 20
    turned = _with_property(corpus.SMALL_HEIC, box(b"irot", b"\1"))
    np.testing.assert_array_equal(run(turned)["result"], np.rot90(upright))
    request = {"data": turned}
    keys: dict[str, Any] = {"more_formats": ["heic"], "scale": "auto", "resize_h": 13, "resize_w": 9}
    with fastpipe.Pipe(backend="S[DecodeMat,ResizeMat]", **keys) as pipe:
        pipe(request)
    assert (request["source_size"], request["result"].shape) == ((26, 19), (13, 9, 3))  # type: ignore[attr-defined]


def _with_property(content: bytes, added: bytes) -> bytes:
    """Return the small file with one more property of its item, and all that counts bytes changed."""
    changed = bytearray(content)
    associations = changed.index(b"ipma") + 4 + 4 + 4 + 2
    changed[associations] += 1
    changed[associations + 1 + 5 : associations + 1 + 5] = b"\x86"
    end = changed.index(b"ipma") - 4
    changed[end:end] = added
    for kind, more in ((b"ipma", 1), (b"ipco", len(added)), (b"iprp", len(added) + 1), (b"meta", len(added) + 1)):
        at = changed.index(kind) - 4
        struct.pack_into(">I", changed, at, struct.unpack_from(">I", changed, at)[0] + more)
    at = changed.index(b"iloc") + 4 + 4 + 2 + 2 + 2 + 2  # version, sizes, items, number, file: from where to count
    struct.pack_into(">I", changed, at, struct.unpack_from(">I", changed, at)[0] + len(added) + 1)
    return bytes(changed)


def test_damaged_files_give_no_result_and_no_error_but_words(pillow_heif: Any) -> None:
    """All beginnings, and flipped bits."""
    rng = np.random.default_rng(1)
    cut = [corpus.SMALL_HEIC[:length] for length in range(0, len(corpus.SMALL_HEIC), 5)]
    for content in cut:
        assert "result" not in run(content)
    for _ in range(300):
        damaged = bytearray(corpus.SMALL_HEIC)
        for place in rng.integers(0, len(damaged), 1 << int(rng.integers(4))):
            damaged[place] ^= 1 << int(rng.integers(8))
        try:
            request = run(bytes(damaged), max_pixels=100_000)
        except DecodeError:
            continue
        if "result" in request:
            assert request["result"].dtype == np.uint8
            assert request["result"].shape[2:] == (3,)
