"""The image backends for the CPU: against OpenCV and Pillow called directly, and arithmetic by hand."""

from __future__ import annotations

import io
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="the image backends need OpenCV")
Image = pytest.importorskip("PIL.Image", reason="the tests of images need Pillow")

import fastpipe  # noqa: E402
from fastpipe.backends.image import codec  # noqa: E402
from fastpipe.backends.image import color as image_color  # noqa: E402
from fastpipe.backends.image import geometry as image_geometry  # noqa: E402
from fastpipe.backends.image.header import read_header  # noqa: E402
from fastpipe.errors import ConfigError, DecodeError, ItemErrors, KernelError, NoResult  # noqa: E402

simplejpeg_or_opencv = pytest.mark.parametrize("has_simplejpeg", [True, False], ids=["simplejpeg", "OpenCV alone"])


def picture(height: int = 61, width: int = 83, seed: int = 0) -> Any:
    """Return smooth BGR noise, as photos are."""
    rng = np.random.default_rng(seed)
    few = rng.integers(0, 256, (height // 7 + 1, width // 7 + 1, 3), dtype=np.uint8)
    return cv2.resize(few, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(pixels: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def decoder(*, has_simplejpeg: bool = True, **parameters: Any) -> codec.DecodeMat:
    backend = codec.DecodeMat(**parameters)
    if not has_simplejpeg:
        backend._decode_jpeg = None
    elif backend._decode_jpeg is None:
        pytest.skip("simplejpeg is not installed")
    return backend


def run(backend: fastpipe.Backend, data: Any, **keys: Any) -> dict[str, Any]:
    request = {"data": data, **keys}
    backend.forward([request])
    return request


# ---- DecodeMat -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "bmp"])
def test_four_formats_are_decoded_as_opencv_does(kind: str) -> None:
    """From any kind of bytes; the result is BGR, of its own memory, and may be written to."""
    content = encoded(picture(), kind)
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    for data in (content, bytearray(content), memoryview(content), np.frombuffer(content, np.uint8)):
        request = run(decoder(), data)
        np.testing.assert_array_equal(request["result"], expected)
        assert request["color"] == "bgr"
        assert request["result"].flags.writeable
        assert request["result"].flags.c_contiguous


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGB kept"])
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
def test_simplejpeg_and_opencv_give_the_same_bits(mode: str, progressive: bool) -> None:
    """Odd sizes, 4:4:4, 4:2:2 and 4:2:0, gray, CMYK, RGB that was never YCbCr, restart markers, low quality."""
    backend = decoder()
    for number, (height, width) in enumerate([(1, 1), (1, 40), (7, 9), (16, 16), (17, 31), (64, 65), (123, 77)]):
        options: dict[str, Any] = {"quality": 30 + 10 * number, "progressive": progressive}
        if mode == "RGB":
            options["subsampling"] = number % 3
        if mode == "RGB kept":
            options["keep_rgb"] = True
        if number % 2:
            options["restart_marker_blocks"] = number
        buffer = io.BytesIO()
        Image.fromarray(picture(height, width, number)).convert(mode[:4].rstrip()).save(buffer, "jpeg", **options)
        content = buffer.getvalue()
        header = read_header(memoryview(content))
        assert header is not None
        assert (header.height, header.width, header.is_plain_jpeg) == (height, width, mode != "CMYK")
        assert header.is_for_engines == (mode in ("RGB", "L") and not progressive)
        expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(run(backend, content)["result"], expected)


@pytest.mark.parametrize("factor", ["411", "420", "422", "440", "444"])
def test_every_way_of_sampling_gives_opencvs_bits(factor: str) -> None:
    """4:1:1 and 4:4:0 too, which Pillow does not write."""
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{factor}")]
    for height, width in [(1, 3), (33, 34), (61, 83)]:
        _, content = cv2.imencode(".jpg", picture(height, width), sampling)
        np.testing.assert_array_equal(run(decoder(), content)["result"], cv2.imdecode(content, cv2.IMREAD_COLOR))


@simplejpeg_or_opencv
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(orientation: int, has_simplejpeg: bool) -> None:
    """All eight, as OpenCV does; 5 to 8 exchange height and width."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "a tag in front of it"
    pixels = picture(40, 64)
    request = run(decoder(has_simplejpeg=has_simplejpeg), encoded(pixels, "jpeg", exif=exif, quality=95))
    assert request["result"].shape == ((40, 64, 3) if orientation < 5 else (64, 40, 3))
    upright = cv2.imdecode(np.frombuffer(encoded(pixels, "jpeg", quality=95), np.uint8), cv2.IMREAD_COLOR)
    back = Image.fromarray(request["result"])
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose
    restored = np.asarray(back.transpose(undo[orientation]) if orientation > 1 else back)
    np.testing.assert_array_equal(restored, upright)


@simplejpeg_or_opencv
@pytest.mark.parametrize(
    "content", [b"", b"x", b"not an image at all" * 9, b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM"]
)
def test_what_is_no_image_gives_no_result(content: bytes, has_simplejpeg: bool) -> None:
    """No exception either: the filter of the next step decides. An older result is not taken for the answer."""
    request = run(decoder(has_simplejpeg=has_simplejpeg), content, result="of an earlier node")
    assert request == {"data": content}


@simplejpeg_or_opencv
@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png", "webp", "bmp"])
def test_a_truncated_image_gives_no_result(kind: str, has_simplejpeg: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """Cut anywhere: in the header, in the pixels, and one byte before the end."""
    options = {"jpeg": {}, "progressive": {"progressive": True}}.get(kind, {})
    content = encoded(picture(), "jpeg" if kind == "progressive" else kind, **options)
    backend = decoder(has_simplejpeg=has_simplejpeg)
    lengths = {*range(0, len(content), len(content) // 60), len(content) - 1}
    assert not [length for length in lengths if "result" in run(backend, content[:length])]
    capfd.readouterr()  # what libpng has to say about it


@simplejpeg_or_opencv
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "bmp"])
def test_a_damaged_image_is_never_a_crash(kind: str, has_simplejpeg: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """Flipped bits give what OpenCV makes of them, no result, or DecodeError for a size that became too large."""
    content = encoded(picture(), kind)
    backend = decoder(has_simplejpeg=has_simplejpeg, max_pixels=1_000_000)
    rng = np.random.default_rng(0)
    for number in range(150):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content) if number % 2 else 600, 2):
            damaged[place] ^= 1 << int(rng.integers(8))
        try:
            request = run(backend, damaged)
        except DecodeError:
            continue
        if "result" in request:
            as_opencv = cv2.imdecode(np.frombuffer(damaged, np.uint8), cv2.IMREAD_COLOR)
            np.testing.assert_array_equal(request["result"], as_opencv)
    capfd.readouterr()


def test_bytes_after_the_end_do_no_harm() -> None:
    """Some cameras write their own data behind the picture; a thumbnail's end is not the picture's."""
    content = encoded(picture(), "jpeg")
    expected = run(decoder(), content)["result"]
    np.testing.assert_array_equal(run(decoder(), content + b"\0\xffappendix")["result"], expected)
    thumbnail = encoded(picture(8, 8), "jpeg")
    segment = b"\xff\xe2" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    with_thumbnail = content[:2] + segment + content[2:]
    np.testing.assert_array_equal(run(decoder(), with_thumbnail)["result"], expected)
    assert "result" not in run(decoder(), with_thumbnail[: len(with_thumbnail) - 9])


@pytest.mark.parametrize(
    "content",
    [
        encoded(picture(8, 8), "jpeg").replace(b"\x00\x11\x08\x00\x08\x00\x08", b"\x00\x11\x08\xff\xff\xff\xff"),
        encoded(picture(8, 8), "png").replace(struct.pack(">II", 8, 8), struct.pack(">II", 100_000, 100_000)),
        b"RIFF\xff\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\xff" * 2 + bytes(50),
        b"RIFF\xff\0\0\0WEBPVP8L\xff\0\0\0\x2f" + b"\xff" * 4 + bytes(50),
        b"RIFF\xff\0\0\0WEBPVP8 \xff\0\0\0\0\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(50),
        b"BM" + bytes(12) + struct.pack("<Iii", 40, 60_000, -60_000) + bytes(50),
    ],
    ids=["jpeg", "png", "webp extended", "webp lossless", "webp lossy", "bmp"],
)
def test_too_many_pixels_are_refused_by_the_header(content: bytes) -> None:
    """A few bytes that claim more than the default 179 million pixels allocate nothing."""
    with pytest.raises(DecodeError, match="more than max_pixels = 178956970"):
        run(decoder(), content)


def test_max_pixels_is_a_limit_not_a_step() -> None:
    """As many as allowed are decoded; with one less allowed, that request fails, and its neighbours do not."""
    content, small = encoded(picture(20, 30), "png"), encoded(picture(20, 29), "png")
    assert run(decoder(max_pixels=600), content)["result"].shape == (20, 30, 3)
    batch = [{"data": small}, {"data": content}, {"data": small}]
    with pytest.raises(ItemErrors) as caught:
        decoder(max_pixels=599).forward(batch)
    assert [type(error) for error in caught.value.errors.values()] == [DecodeError]
    assert list(caught.value.errors) == [1]
    assert ["result" in request for request in batch] == [True, False, True]


def test_a_header_made_to_be_walked_through_for_minutes_is_none() -> None:
    """Millions of empty segments, or of bytes that belong to nothing, end the search early."""
    for filler in (b"\xff\xe0\x00\x02", b"\xff\xff", b"ab"):
        assert read_header(memoryview(b"\xff\xd8\xff\xe0\x00\x02" + filler * 1_000_000)) is None


@pytest.mark.parametrize("data", ["text", None, np.zeros(4, np.float32), [1, 2]], ids=str)
def test_what_is_not_bytes_is_a_type_error(data: Any) -> None:
    """A mistake in the program, not in the image."""
    with pytest.raises(TypeError, match="DecodeMat: expected"):
        run(decoder(), data)


def test_gray_alpha_and_sixteen_bits_become_bgr() -> None:
    """Three channels of 8 bits, whatever the file has."""
    gray = picture()[..., 0]
    for pixels in (gray, np.dstack([picture(), gray]), gray.astype(np.uint16) * 257):
        request = run(decoder(), encoded(pixels, "png"))
        assert (request["result"].shape, request["result"].dtype) == ((61, 83, 3), np.uint8)
    np.testing.assert_array_equal(request["result"], np.dstack([gray] * 3))


# ---- color and normalisation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 7), (300, 301)], ids=str)
def test_color_is_converted_only_if_it_differs(size: tuple[int, int]) -> None:
    """BGR is assumed where nothing is said; what is right already is handed on, the same array."""
    pixels = picture(*size)
    to_rgb = image_color.CvtColorMat(color="rgb")
    for keys in ({}, {"color": "bgr"}):
        request = run(to_rgb, pixels, **keys)
        np.testing.assert_array_equal(request["result"], cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
        assert request["result"].flags.c_contiguous
        assert request["color"] == "rgb"
    assert run(to_rgb, pixels, color="rgb")["result"] is pixels
    assert run(image_color.CvtColorMat(color="bgr"), pixels)["result"] is pixels


@pytest.mark.parametrize("pixels", [picture()[..., 0], picture()[..., :1], np.zeros((4, 4, 4), np.uint8)], ids=str)
def test_color_wants_three_channels(pixels: Any) -> None:
    """Also where nothing would have to be converted."""
    with pytest.raises(KernelError, match=r"CvtColorMat: expected a uint8 array of shape \(height, width, 3\), got"):
        run(image_color.CvtColorMat(color="bgr"), pixels)


def test_an_unknown_color_in_the_request_is_an_error() -> None:
    """It cannot be converted from."""
    with pytest.raises(KernelError, match="got 'gray'"):
        run(image_color.CvtColorMat(color="rgb"), picture(), color="gray")


def test_normalize_converts_color_and_axes_in_one_step() -> None:
    """Mean and std are in the order of the color that comes out."""
    pixels = picture()
    backend = image_color.NormalizeMat(color="rgb", mean=[1, 2, 3], std=[4, 5, 6])
    request = run(backend, pixels)
    expected = ((pixels[..., ::-1].astype(np.float32) - np.float32([1, 2, 3])) / np.float32([4, 5, 6])).transpose(
        2, 0, 1
    )
    np.testing.assert_array_equal(request["result"], expected)
    assert request["color"] == "rgb"
    np.testing.assert_array_equal(run(image_color.NormalizeMat(), pixels)["result"], pixels.transpose(2, 0, 1))
    assert run(image_color.NormalizeMat(), pixels, color="rgb")["color"] == "rgb"
    half = run(image_color.NormalizeMat(dtype="float16", color="gray", mean=[128], std=[64]), pixels)["result"]
    gray = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY).astype(np.float32)
    np.testing.assert_array_equal(half, ((gray - 128) / 64).astype(np.float16)[np.newaxis])


def test_normalize_computes_a_batch_as_its_images_one_by_one() -> None:
    """Mixed sizes, colors and channels, and a wrong one, which fails alone; equals share one block of memory."""
    backend = image_color.NormalizeMat(color="rgb", mean=[10.0], std=[2.0])
    a, b, c = picture(seed=1), picture(seed=2), picture(9, 9)
    batch: list[dict[str, Any]] = [
        {"data": a},
        {"data": c},
        {"data": b},
        {"data": b, "color": "rgb"},
        {"data": "no image"},
        {"data": a[..., 0]},
        {"data": a[..., :1]},
    ]
    with pytest.raises(ItemErrors) as caught:
        backend.forward(batch)
    assert {index: type(error) for index, error in caught.value.errors.items()} == {4: KernelError}
    for index, request in enumerate(batch):
        if index != 4:
            alone = {key: value for key, value in request.items() if key not in ("result", "color")}
            alone |= {"color": "rgb"} if index == 3 else {}
            backend.forward([alone])
            np.testing.assert_array_equal(request["result"], alone["result"])
    assert batch[0]["result"].base is batch[2]["result"].base
    with pytest.raises(KernelError, match="NormalizeMat: expected a uint8 array"):
        backend.forward([{"data": "no image"}])


# ---- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_resize_is_opencvs_bilinear(channels: int | None) -> None:
    """The channels stay as they are, one included."""
    pixels = np.random.default_rng(0).integers(0, 256, (31, 17, channels or 1), dtype=np.uint8)
    pixels = pixels[..., 0] if channels is None else pixels
    result = run(image_geometry.ResizeMat(resize_h=40, resize_w=9), pixels)["result"]
    assert result.shape == (40, 9, *pixels.shape[2:])
    np.testing.assert_array_equal(np.squeeze(result), cv2.resize(pixels, (9, 40), interpolation=cv2.INTER_LINEAR))
    dynamic = run(image_geometry.DynamicResizeMat(), pixels, resize_h=40, resize_w=np.int64(9))["result"]
    np.testing.assert_array_equal(dynamic, result)


def test_resize_keeps_the_gil_for_a_while_after_it_had_to_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By OpenCV; once that took too long, by the kernel; when the while is over, by OpenCV."""
    backend = image_geometry.ResizeMat(resize_h=40, resize_w=31)
    backend._has_substitute = True  # wherever this runs
    resized_by = []

    def watch(module: Any, function_name: str, by: str) -> None:
        original = getattr(module, function_name)

        def watched(*arguments: Any) -> Any:
            resized_by.append(by)
            return original(*arguments)

        monkeypatch.setattr(module, function_name, watched)

    watch(image_geometry, "_resized", "OpenCV")
    watch(image_geometry.cpu, "resize", "kernel")
    clock_s = iter([0.0, 0.001, 1.0, 1.01, 1.02, 1.9, 2.1, 2.101, 2.2, 2.201])  # before and after, or before
    monkeypatch.setattr(image_geometry, "monotonic", lambda: next(clock_s))
    results = [run(backend, picture())["result"] for _ in range(6)]
    assert resized_by == ["OpenCV", "OpenCV", "kernel", "kernel", "OpenCV", "OpenCV"]
    for result in results:
        np.testing.assert_allclose(result.astype(int), results[0], rtol=0, atol=1)
    run(backend, picture()[..., :1])  # the kernel does not know gray
    assert resized_by[-1] == "OpenCV"


def test_resize_has_no_substitute_that_differs_from_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried out when the instance is built; nor for many pixels, where it would keep the GIL for long."""
    assert not image_geometry.ResizeMat(resize_h=300, resize_w=300)._has_substitute
    monkeypatch.setattr(
        image_geometry.cpu, "resize", lambda pixels, height, width: np.zeros((height, width, 3), np.uint8)
    )
    assert not image_geometry.ResizeMat(resize_h=30, resize_w=30)._has_substitute


@pytest.mark.parametrize("side", [0, -1, 1_048_577, 2.0, "7", True, None], ids=repr)
def test_a_request_with_an_impossible_size_fails(side: Any) -> None:
    """A whole number from 1 to 1048576."""
    with pytest.raises(ValueError, match="DynamicResizeMat: resize_w must be a whole number from 1 to 1048576"):
        run(image_geometry.DynamicResizeMat(), picture(), resize_h=5, resize_w=side)


LARGE_REQUESTS: list[tuple[Any, dict[str, Any]]] = [
    (image_geometry.DynamicResizeMat(), {"resize_h": 13_378, "resize_w": 13_378}),
    (image_geometry.DynamicResizeMat(), {"resize_h": 1_048_576, "resize_w": 1_048_576}),
    (image_geometry.DynamicResizeMat(max_pixels=99), {"resize_h": 10, "resize_w": 10}),
    (image_geometry.PerspectiveTransformMat(), {"quad": [(0, 0), (20_000, 0), (20_000, 20_000), (0, 20_000)]}),
    (image_geometry.PerspectiveTransformMat(max_pixels=99), {"quad": [(0, 0), (10, 0), (10, 10), (0, 10)]}),
]


@pytest.mark.parametrize(("backend", "keys"), LARGE_REQUESTS)
def test_a_request_for_too_many_pixels_fails_alone_before_anything_is_made(
    backend: Any, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few bytes that ask for gigabytes; the neighbours in the batch have their results."""
    good = {"data": picture(), "resize_h": 3, "resize_w": 4, "quad": [(0, 0), (4, 0), (4, 3), (0, 3)]}
    batch = [dict(good), {"data": picture(), **keys}, dict(good)]
    with pytest.raises(ItemErrors) as caught:
        backend.forward(batch)
    assert list(caught.value.errors) == [1]
    assert f"expected a result of at most max_pixels = {backend.max_pixels}, got " in str(caught.value.errors[1])
    assert [request["result"].shape if "result" in request else None for request in batch] == [
        (3, 4, 3), None, (3, 4, 3)
    ]  # fmt: skip
    monkeypatch.setattr(image_geometry, "cv2", None)  # nothing of it is called
    with pytest.raises(KernelError, match="max_pixels"):
        run(backend, picture(), **keys)


@pytest.mark.parametrize(
    "backend",
    [
        image_geometry.ResizeMat(resize_h=400, resize_w=400, max_pixels=200_000),
        image_geometry.CropResizeMat(resize_h=400, resize_w=400, max_pixels=200_000),
        image_geometry.ResizePadMat(max_h=400, max_w=400, max_pixels=200_000),
        image_geometry.LetterBoxMat(max_h=400, max_w=400, max_pixels=200_000),
    ],
    ids=lambda backend: type(backend).__name__,
)
def test_many_channels_count_as_many_pixels(backend: Any) -> None:
    """An image of one pixel and five channels becomes no larger than one of four may; four are as good as three."""
    run(backend, np.zeros((1, 1, 4), np.uint8), box=(0, 0, 1, 1))
    with pytest.raises(KernelError, match="max_pixels = 200000, got 400 x 400 pixels of 5 channels"):
        run(backend, np.zeros((1, 1, 5), np.uint8), box=(0, 0, 1, 1))


def test_pillow_resize_is_pillows_bit_for_bit() -> None:
    """Up, down, one side only, to and from single pixels; BGR is as good as RGB, gray as color."""
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (1, 9), (9, 1), (40, 30), (31, 47), (100, 3)]
    for height, width in sizes:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for new_height, new_width in sizes:
            backend = image_geometry.PillowResizeMat(resize_h=new_height, resize_w=new_width)
            as_rgb = Image.fromarray(pixels[..., ::-1].copy())
            expected = np.asarray(as_rgb.resize((new_width, new_height), Image.Resampling.BILINEAR))[..., ::-1]
            result = run(backend, pixels)["result"]
            np.testing.assert_array_equal(result, expected)
            assert result.flags.writeable
            np.testing.assert_array_equal(run(backend, pixels[..., :1])["result"], expected[..., :1])
            np.testing.assert_array_equal(run(backend, pixels[..., 0])["result"], expected[..., 0])
    with pytest.raises(KernelError, match=r"expected 1 or 3 channels, got shape \(4, 4, 4\)"):
        run(backend, np.zeros((4, 4, 4), np.uint8))


# (height, width) of the image, (max_h, max_w) -> size of the image inside, (top, left) if it is centred
FITS = [
    ((10, 20), (40, 40), (20, 40), (10, 0)),
    ((20, 10), (40, 40), (40, 20), (0, 10)),
    ((10, 10), (7, 9), (7, 7), (0, 1)),
    ((3, 200), (50, 20), (1, 20), (24, 0)),  # never less than one pixel
    ((4, 8), (100, 5), (3, 5), (48, 0)),  # 2.5: halves up
    ((40, 40), (40, 40), (40, 40), (0, 0)),
    ((333, 500), (640, 640), (426, 640), (107, 0)),
]


@pytest.mark.parametrize(("size", "limit", "inner", "offset"), FITS, ids=str)
@pytest.mark.parametrize("name", ["ResizePadMat", "LetterBoxMat"])
def test_padding_keeps_the_ratio_and_knows_the_way_back(
    name: str, size: tuple[int, int], limit: tuple[int, int], inner: tuple[int, int], offset: tuple[int, int]
) -> None:
    """The picture is where it is said to be, the rest is padding, and inverse_trans leads from corner to corner."""
    pixels = np.maximum(picture(*size), 1)
    backend = getattr(image_geometry, name)(max_h=limit[0], max_w=limit[1], pad_value=[7])
    request = run(backend, pixels)
    top, left = offset if name == "LetterBoxMat" else (0, 0)
    expected = np.full((*limit, 3), 7, np.uint8)
    expected[top : top + inner[0], left : left + inner[1]] = cv2.resize(pixels, inner[::-1])
    np.testing.assert_array_equal(request["result"], expected)
    inverse = request["inverse_trans"]
    assert inverse(left, top) == (0, 0)
    assert inverse(left + inner[1], top + inner[0]) == pytest.approx((size[1], size[0]))
    xs, _ = inverse(np.array([left, left + inner[1] / 2]), np.zeros(2))
    np.testing.assert_allclose(xs, [0, size[1] / 2])


def test_padding_has_a_value_per_channel_if_so_wished() -> None:
    """One value fills all channels; of gray, too."""
    pixels = picture(10, 20)
    in_color = run(image_geometry.ResizePadMat(resize_h=20, resize_w=20, pad_value=[1, 2, 3]), pixels)["result"]
    np.testing.assert_array_equal(in_color[15, 15], [1, 2, 3])
    one = image_geometry.LetterBoxMat(max_h=20, max_w=20, pad_value=[114])
    np.testing.assert_array_equal(run(one, pixels)["result"][0, 0], [114] * 3)
    assert run(one, pixels[..., :1])["result"].shape == (20, 20, 1)
    with pytest.raises(KernelError, match="expected 3 channels, as pad_value has, got 1"):
        run(image_geometry.ResizePadMat(max_h=20, max_w=20, pad_value=[1, 2, 3]), pixels[..., 0])


def test_align_sets_one_width_for_a_batch() -> None:
    """That of the widest, rounded up and limited; the data is handed on as it is."""
    backend = image_geometry.AlignMat(resize_h=48, max_w=320)
    narrow, wide, widest = np.zeros((10, 10, 3), np.uint8), np.zeros((10, 21, 3), np.uint8), np.zeros((1, 90), np.uint8)
    for images, width in [([narrow], 64), ([narrow, wide], 128), ([wide, widest, narrow], 320)]:
        batch: list[dict[str, Any]] = [{"data": one} for one in images]
        backend.forward(batch)
        for request, one in zip(batch, images, strict=True):
            assert request["result"] is one
            assert (request["resize_h"], request["resize_w"]) == (48, width)
    batch = [{"data": narrow}, {"data": None}]
    with pytest.raises(ItemErrors):
        backend.forward(batch)
    assert batch[0]["resize_w"] == 64


# ---- parts of an image -----------------------------------------------------------------------------------------------


def test_crop_is_a_copy_of_the_inside_of_the_box() -> None:
    """Left, top, right, bottom, the latter two not included; fractions are rounded."""
    pixels = picture()
    for box in ([3, 5, 20, 9], (2.6, 5.4, 20.1, 8.9), np.array([3, 5, 20, 9])):
        result = run(image_geometry.CropMat(), pixels, box=box)["result"]
        np.testing.assert_array_equal(result, pixels[5:9, 3:20])
        assert not np.shares_memory(result, pixels)
    resized = run(image_geometry.CropResizeMat(resize_h=7, resize_w=11), pixels, box=[3, 5, 20, 9])["result"]
    np.testing.assert_array_equal(resized, cv2.resize(pixels[5:9, 3:20], (11, 7)))


@pytest.mark.parametrize(
    "box",
    [
        *([5, 5, 5, 9], [9, 5, 3, 9], [-1, 0, 5, 5], [0, 0, 84, 61], [0, 0, 5], "abcd", 7),
        *("0189", b"\0\1\x08\x09", {0, 1, 8, 9}, dict.fromkeys("0189", 5)),  # letters and keys that are numbers
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", [image_geometry.CropMat(), image_geometry.CropResizeMat(resize_h=2, resize_w=2)])
def test_a_box_that_is_not_inside_the_image_fails(backend: fastpipe.Backend, box: Any) -> None:
    """Empty, reversed, outside, or no box at all."""
    with pytest.raises(ValueError, match="expected a box"):
        run(backend, picture(), box=box)


def test_unwarp_of_an_upright_quad_is_a_crop() -> None:
    """Whole pixels, no rotation: nothing is interpolated."""
    pixels = picture()
    for key in ("quad", "box"):
        quad = [[10, 20], [50, 20], [50, 35], [10, 35]]
        request = run(image_geometry.PerspectiveTransformMat(), pixels, **{key: quad})
        np.testing.assert_array_equal(request["result"], pixels[20:35, 10:50])


def test_unwarp_takes_the_longer_edges_and_repeats_what_lies_outside() -> None:
    """The same pixels as OpenCV, asked directly."""
    pixels = picture()
    quad = np.float32([[-5, 3], [60.5, 8], [58, 30], [2, 22]])
    request = run(image_geometry.PerspectiveTransformMat(), pixels, quad=quad)
    width, height = 65, 22  # 65.69 and 22.14, cut off
    matrix = cv2.getPerspectiveTransform(quad, np.float32([[0, 0], [width, 0], [width, height], [0, height]]))
    options = {"flags": cv2.INTER_CUBIC, "borderMode": cv2.BORDER_REPLICATE}
    np.testing.assert_array_equal(request["result"], cv2.warpPerspective(pixels, matrix, (width, height), **options))


def test_a_tall_line_is_turned_only_if_so_wished() -> None:
    """From 1.5 times as high as wide on, anticlockwise."""
    pixels = picture()
    tall = [[10, 10], [20, 10], [20, 25], [10, 25]]
    less = [[10, 10], [20, 10], [20, 24], [10, 24]]
    turning, straight = (
        image_geometry.PerspectiveTransformMat(rotate_tall=True),
        image_geometry.PerspectiveTransformMat(),
    )
    turned = run(turning, pixels, quad=tall)["result"]
    np.testing.assert_array_equal(turned, np.rot90(pixels[10:25, 10:20]))
    assert turned.flags.c_contiguous
    assert run(turning, pixels, quad=less)["result"].shape == (14, 10, 3)
    assert run(straight, pixels, quad=tall)["result"].shape == (15, 10, 3)


@pytest.mark.parametrize(
    "quad",
    [
        [[1, 1]] * 4,
        [[0, 0], [5, 0], [5, 5]],
        [[0, 0], [float("nan"), 0], [5, 5], [0, 5]],
        [[0, 0], [0.5, 0], [0.5, 9], [0, 9]],
        [[0, 0], [1e9, 0], [1e9, 9], [0, 9]],
    ],
    ids=["a point", "three", "nan", "thin", "huge"],
)
def test_a_quad_without_an_area_fails(quad: Any) -> None:
    """So does one that is no quad, or larger than any image."""
    with pytest.raises(ValueError, match="PerspectiveTransformMat: expected"):
        run(image_geometry.PerspectiveTransformMat(), picture(), quad=quad)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_an_image_of_no_known_color_is_not_saved(tmp_path: Path) -> None:
    """It would be taken for BGR."""
    with pytest.raises(KernelError, match="color 'RGB'"):
        run(codec.SaveMat(save_dir=tmp_path), picture(), color="RGB")
    assert list(tmp_path.iterdir()) == []


def test_save_writes_each_image_to_a_file_of_its_own(tmp_path: Path) -> None:
    """RGB is written as RGB, gray as gray; from two instances at once, no name is used twice."""
    folder = tmp_path / "made" / "here"
    instances = [codec.SaveMat(save_dir=folder) for _ in range(2)]
    pixels = picture()
    assert run(instances[0], pixels, color="rgb")["result"] is pixels
    (path,) = folder.glob("*.png")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels)
    path.unlink()

    def work(instance: fastpipe.Backend) -> None:
        instance.forward([{"data": pixels} for _ in range(20)])

    threads = [threading.Thread(target=work, args=(instance,)) for instance in instances]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(folder.glob("*.png"))) == 40
    np.testing.assert_array_equal(cv2.imread(str(next(folder.glob("*.png")))), pixels)


# ---- all of them -----------------------------------------------------------------------------------------------------

TAKE_PIXELS = [
    image_color.CvtColorMat(color="rgb"),
    image_color.NormalizeMat(),
    image_geometry.ResizeMat(resize_h=3, resize_w=3),
    image_geometry.PillowResizeMat(resize_h=3, resize_w=3),
    image_geometry.ResizePadMat(max_h=3, max_w=3),
    image_geometry.LetterBoxMat(max_h=3, max_w=3),
    image_geometry.DynamicResizeMat(),
    image_geometry.AlignMat(resize_h=32, max_w=32),
    image_geometry.CropMat(),
    image_geometry.CropResizeMat(resize_h=3, resize_w=3),
    image_geometry.PerspectiveTransformMat(),
]
BESIDES = {"resize_h": 3, "resize_w": 3, "box": [0, 0, 2, 2], "quad": [[0, 0], [4, 0], [4, 4], [0, 4]]}
each_backend = pytest.mark.parametrize("backend", TAKE_PIXELS, ids=lambda backend: type(backend).__name__)


@each_backend
@pytest.mark.parametrize(
    "data", [b"bytes", np.zeros((4, 4, 3), np.float32), np.zeros(4, np.uint8), np.zeros((0, 4, 3), np.uint8)], ids=str
)
def test_wrong_pixels_are_refused_with_expected_and_got(backend: fastpipe.Backend, data: Any) -> None:
    """Not NumPy, not uint8, not an image, empty: KernelError, which names the backend."""
    with pytest.raises(KernelError, match=f"{type(backend).__name__}: expected a uint8 array of shape .* got "):
        run(backend, data, **BESIDES)


@each_backend
def test_views_are_as_good_as_copies_and_nothing_is_changed(backend: fastpipe.Backend) -> None:
    """A mirrored crop with its channels reversed, read-only."""
    pixels = picture()
    before = pixels.copy()
    view = pixels[5:50, 60:10:-1, ::-1]
    view.flags.writeable = False
    from_view, from_copy = run(backend, view, **BESIDES), run(backend, view.copy(), **BESIDES)
    np.testing.assert_array_equal(from_view["result"], from_copy["result"])
    np.testing.assert_array_equal(pixels, before)


@each_backend
def test_one_bad_request_fails_alone(backend: fastpipe.Backend) -> None:
    """The others of its batch have their results."""
    batch = [{"data": data, **BESIDES} for data in (picture(), None, picture(9, 9))]
    with pytest.raises(ItemErrors) as caught:
        backend.forward(batch)
    assert {index: type(error) for index, error in caught.value.errors.items()} == {1: KernelError}
    assert ["result" in request for request in batch] == [True, False, True]


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"backend": "ResizeMat", "resize_h": 0, "resize_w": 5}, "resize_h.*between 1 and 1048576"),
    ({"backend": "ResizeMat", "resize_h": 5}, "resize_w"),
    ({"backend": "PillowResizeMat", "resize_h": 5, "resize_w": 1_048_577}, "resize_w.*between 1 and 1048576"),
    ({"backend": "CvtColorMat", "color": "hsv"}, "color.*'rgb' or 'bgr'"),
    ({"backend": "LetterBoxMat", "max_h": 5}, r"LetterBoxMat: max_w \(or resize_w\) is missing"),
    ({"backend": "ResizePadMat", "max_h": 5, "max_w": 5, "pad_value": 256}, "pad_value.*between 0 and 255"),
    ({"backend": "ResizePadMat", "max_h": 5, "max_w": 5, "pad_value": "1,2,3,4,5"}, "pad_value must have 1 to 4"),
    ({"backend": "AlignMat", "resize_h": 48, "max_w": 100}, "max_w must be a multiple of align = 32, got 100"),
    ({"backend": "NormalizeMat", "mean": "1, 2"}, "mean must have 1 or 3 numbers"),
    ({"backend": "NormalizeMat", "std": "1, 0, 1"}, "NormalizeMat: std must not have a zero in float32, got"),
    ({"backend": "NormalizeMat", "std": "1e-60"}, "NormalizeMat: std must not have a zero in float32, got"),
    ({"backend": "NormalizeMat", "std": "inf"}, "NormalizeMat: std must have finite numbers of float32, got"),
    (
        {"backend": "NormalizeMat", "std": "1, 0.001, 1", "dtype": "float16"},
        "NormalizeMat: mean and std make numbers of up to 255000, which float16 has not",
    ),
    ({"backend": "NormalizeMat", "mean": "1, 1e39, 3"}, "NormalizeMat: mean must have finite numbers of float32, got"),
    *(
        (
            {"backend": name, "resize_h": 20_000, "resize_w": 10_000},
            f"{name}: a result of 20000 x 10000 pixels has more",
        )
        for name in ("ResizeMat", "PillowResizeMat", "CropResizeMat", "ResizePadMat", "LetterBoxMat")
    ),
    ({"backend": "ResizeMat", "resize_h": 2, "resize_w": 2, "max_pixels": 3}, "more than max_pixels = 3; a larger"),
    ({"backend": "DynamicResizeMat", "max_pixels": 1 << 31}, "max_pixels.*between 1 and"),
    ({"backend": "NormalizeMat", "dtype": "float64"}, "dtype.*'float32' or 'float16'"),
    ({"backend": "DecodeMat", "max_pixels": 0}, "max_pixels.*between 1 and"),
]


@pytest.mark.parametrize("value", [-1, 256, float("nan")])
def test_a_padding_that_is_no_byte_is_refused_although_nobody_coerced_it(value: Any) -> None:
    """A backend built by hand is as strict as one of a pipe."""
    with pytest.raises(ConfigError, match="LetterBoxMat: pad_value must be between 0 and 255"):
        image_geometry.LetterBoxMat(max_h=3, max_w=3, pad_value=[value])


@pytest.mark.parametrize(("node", "message"), MISTAKES, ids=[f"{m[0]['backend']} {m[1][:12]}" for m in MISTAKES])
def test_a_wrong_parameter_is_found_when_the_pipe_is_built(node: dict[str, Any], message: str) -> None:
    """ConfigError, before any request."""
    with pytest.raises(ConfigError, match=message):
        fastpipe.Pipe(node)


@pytest.mark.parametrize("instance_num", [1, 2])
def test_from_jpeg_to_tensor_from_four_threads(instance_num: int) -> None:
    """The chain of the quick start, in a pipe, gives what OpenCV and NumPy give by hand; text is fine for numbers."""
    images = [picture(90 + seed, 140, seed) for seed in range(4)]
    contents = [encoded(one, "jpeg") for one in images]
    expected = []
    for content in contents:
        pixels = cv2.resize(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), (64, 48))
        expected.append(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).transpose(2, 0, 1).astype(np.float32) / np.float32(255))
    wrong = []
    with fastpipe.Pipe(
        backend="S[DecodeMat,ResizeMat,cvtColorMat,NormalizeMat]",
        resize_h="48",
        resize_w=64,
        color="rgb",
        std="255",
        instance_num=instance_num,
    ) as pipe:

        def work(number: int) -> None:
            for _ in range(10):
                request: dict[str, Any] = {"data": contents[number]}
                pipe(request)
                if request["color"] != "rgb" or not np.array_equal(request["result"], expected[number]):
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        broken: dict[str, Any] = {"data": contents[0][:100]}
        with pytest.raises(NoResult, match="node 'main': step DecodeMat gave no result"):
            pipe(broken)
    assert not wrong
    assert "result" not in broken
