"""``DecodeMat`` with scale = "auto": how much of a JPEG is decoded, that nobody else sees it, and what is refused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="the image backends need OpenCV")
Image = pytest.importorskip("PIL.Image", reason="the tests of images need Pillow")

import fastpipe  # noqa: E402
from fastpipe.backends.flow.sequential import Sequential  # noqa: E402
from fastpipe.backends.image.codec import DecodeMat  # noqa: E402
from fastpipe.backends.image.geometry import (  # noqa: E402
    DynamicResizeMat,
    LetterBoxMat,
    PillowResizeMat,
    ResizeMat,
    ResizePadMat,
)
from fastpipe.backends.image.requests import ScaledImage  # noqa: E402
from fastpipe.contract import Child  # noqa: E402
from fastpipe.errors import ConfigError, DecodeError, NoResult  # noqa: E402

simplejpeg_or_opencv = pytest.mark.parametrize("has_simplejpeg", [True, False], ids=["simplejpeg", "OpenCV alone"])

REDUCED = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
REDUCED[8] = cv2.IMREAD_REDUCED_COLOR_8


class Sees(fastpipe.Backend):
    """A step that takes scaled images; what it sees is the result."""

    takes_forms = (ScaledImage,)

    def __init__(self, height: int = 1, width: int = 1) -> None:
        self.least = height, width
        self.asked: list[tuple[int, int]] = []

    def least_size(self, request: fastpipe.Request, height: int, width: int) -> tuple[int, int]:
        self.asked.append((height, width))
        return self.least

    def forward(self, batch: list[fastpipe.Request]) -> None:
        for request in batch:
            request["result"] = request["data"]


def picture(height: int, width: int) -> Any:
    """Return smooth BGR noise, as photos are."""
    few = np.random.default_rng(0).integers(0, 256, (height // 7 + 1, width // 7 + 1, 3), dtype=np.uint8)
    return cv2.resize(few, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(height: int, width: int, kind: str = "jpeg", mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(height, width)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(height: int, width: int, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(height, width, exif=exif)


def reduced(content: bytes, denominator: int) -> Any:
    """Return what OpenCV makes of a JPEG at a half, a quarter or an eighth, without turning it."""
    flags = REDUCED[denominator] | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(content, np.uint8), flags)


def scaling(taker: fastpipe.Backend, *, has_simplejpeg: bool = True, **parameters: Any) -> Sequential:
    """Return a decoder that scales, and the step behind it, as one."""
    decoder = DecodeMat(scale="auto", **parameters)
    if not has_simplejpeg:
        decoder._decode_jpeg = None
    elif decoder._decode_jpeg is None:
        pytest.skip("simplejpeg is not installed")
    return Sequential([Child("decode", decoder), Child("taker", taker)])


def run(backend: fastpipe.Backend, data: Any, **keys: Any) -> dict[str, Any]:
    request = {"data": data, **keys}
    backend.forward([request])
    return request


# ---- how much is decoded ---------------------------------------------------------------------------------------------


@simplejpeg_or_opencv
@pytest.mark.parametrize(
    ("size", "least", "denominator"),
    [
        ((720, 1280), (224, 224), 2),
        ((606, 517), (224, 224), 2),
        ((160, 240), (20, 30), 8),
        ((160, 240), (21, 30), 4),
        ((160, 240), (20, 31), 4),
        ((160, 240), (40, 60), 4),
        ((160, 240), (80, 120), 2),
        ((160, 240), (80, 121), 1),
        ((160, 240), (400, 600), 1),
        ((160, 240), (20, 400), 1),
        ((161, 83), (20, 10), 8),
        ((161, 83), (21, 10), 4),  # an eighth has 21 rows, but the last shows an eighth of a row
        ((161, 83), (80, 41), 2),
        ((161, 83), (80, 42), 1),
        ((9, 300), (1, 2), 8),
        ((4, 7), (1, 1), 1),  # so small that nothing is gained
    ],
)
def test_the_smallest_of_four_scales_is_decoded_that_is_not_too_small(
    size: tuple[int, int], least: tuple[int, int], denominator: int, has_simplejpeg: bool
) -> None:
    """Both decoders make the same bits of it: those of OpenCV's reduced decoding."""
    content = encoded(*size)
    taker = Sees(*least)
    seen = run(scaling(taker, has_simplejpeg=has_simplejpeg), content)["result"]
    np.testing.assert_array_equal(seen.pixels, reduced(content, denominator))
    assert taker.asked == [size]
    assert seen[1:] == (*size, 1 / denominator)


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"mode": "L"}])
def test_any_plain_jpeg_is_scaled(options: dict[str, Any]) -> None:
    """Whatever its sampling; progressive and gray ones, too. Both decoders agree."""
    content = encoded(123, 77, **options)
    for has_simplejpeg in (True, False):
        seen = run(scaling(Sees(30, 19), has_simplejpeg=has_simplejpeg), content)["result"]
        np.testing.assert_array_equal(seen.pixels, reduced(content, 4))


def test_both_decoders_agree_on_small_pictures() -> None:
    """Where several scales round to one size, they choose the same."""
    for height, width in [(1, 1), (3, 3), (5, 5), (7, 7), (1, 8), (8, 8), (9, 3), (3, 17), (16, 15)]:
        content = encoded(height, width)
        for least in [(1, 1), (2, 2), (3, 1), (4, 4)]:
            one, other = (
                run(scaling(Sees(*least), has_simplejpeg=has_simplejpeg), content)["result"].pixels
                for has_simplejpeg in (True, False)
            )
            np.testing.assert_array_equal(one, other)
            assert one.shape[0] >= min(least[0], height)
            assert one.shape[1] >= min(least[1], width)


@simplejpeg_or_opencv
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
def test_a_damaged_picture_is_what_opencv_makes_of_it(
    progressive: bool, has_simplejpeg: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """Or no result, or DecodeError for a size that became too large; never a crash."""
    content = encoded(61, 83, progressive=progressive)
    backend = scaling(Sees(10, 10), has_simplejpeg=has_simplejpeg, max_pixels=1_000_000)
    rng = np.random.default_rng(0)
    scales = set()
    for number in range(100):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content) if number % 2 else 600, 2):
            damaged[place] ^= 1 << int(rng.integers(8))
        try:
            seen = run(backend, damaged).get("result")
        except (DecodeError, fastpipe.ItemErrors):
            continue
        if isinstance(seen, ScaledImage):
            scales.add(seen.scale)
            np.testing.assert_array_equal(seen.pixels, reduced(bytes(damaged), round(1 / seen.scale)))
    capfd.readouterr()
    assert 1 / 4 in scales


@pytest.mark.parametrize(("kind", "mode"), [("png", "RGB"), ("webp", "RGB"), ("bmp", "RGB"), ("jpeg", "CMYK")])
def test_what_cannot_be_scaled_is_decoded_whole(kind: str, mode: str) -> None:
    content = encoded(64, 96, kind, mode)
    seen = run(scaling(Sees()), content)["result"]
    np.testing.assert_array_equal(seen.pixels, cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR))


@simplejpeg_or_opencv
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_of_the_upright_picture(orientation: int, has_simplejpeg: bool) -> None:
    """A picture that lies in its file is scaled by its height as it is seen."""
    content = turned(80, 160, orientation)
    is_lying = orientation >= 5
    upright = (160, 80) if is_lying else (80, 160)
    taker = Sees(40, 20) if is_lying else Sees(20, 40)
    request = run(scaling(taker, has_simplejpeg=has_simplejpeg), content)
    assert request["source_size"] == taker.asked[0] == request["result"][1:3] == upright
    assert request["result"].pixels.shape[:2] == (upright[0] // 4, upright[1] // 4)
    whole = run(DecodeMat(), content)["result"]
    np.testing.assert_allclose(  # turned the right way
        cv2.resize(request["result"].pixels, (2, 2), interpolation=cv2.INTER_AREA),
        cv2.resize(whole, (2, 2), interpolation=cv2.INTER_AREA),
        atol=2,
    )


@pytest.mark.parametrize(("orientation", "denominator"), [(1, 8), (2, 2), (3, 2), (6, 2)])
def test_a_turned_picture_has_nothing_left_over(orientation: int, denominator: int) -> None:
    """What a scale rounds up would be at another side than ``ScaledImage`` says."""
    seen = run(scaling(Sees(8, 8)), turned(82, 162, orientation))["result"]
    assert seen.scale == 1 / denominator


def test_the_whole_picture_counts_towards_max_pixels() -> None:
    """A progressive JPEG takes that much memory, whatever its scale."""
    with pytest.raises(DecodeError, match="80 x 80 pixels, more than max_pixels = 6399"):
        run(scaling(Sees(), max_pixels=6399), encoded(80, 80))


# ---- with the steps that resize --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ResizeMat, PillowResizeMat])
def test_resizing_starts_from_the_scaled_picture(kind: type[ResizeMat] | type[PillowResizeMat]) -> None:
    """The result is that of the step for the picture at a quarter; ``data`` is the bytes again behind it."""
    content = encoded(320, 504)
    resize = kind(resize_h=70, resize_w=100)
    request = run(scaling(resize), content)
    expected = run(kind(resize_h=70, resize_w=100), reduced(content, 4))["result"]
    np.testing.assert_array_equal(request["result"], expected)
    assert request["data"] is content
    assert (request["source_size"], request["color"]) == ((320, 504), "bgr")
    assert resize.size == (70, 100)


def test_what_a_scale_rounds_up_does_not_move_the_picture() -> None:
    """Half of an odd number of columns ends within the last one, for OpenCV's resizing and for Pillow's."""
    content = encoded(121, 201)
    half = reduced(content, 2)
    assert half.shape == (61, 101, 3)
    keys: dict[str, Any] = {"resize_h": 50, "resize_w": 90}
    in_pillow = Image.fromarray(half).resize((90, 50), Image.Resampling.BILINEAR, box=(0, 0, 100.5, 60.5))
    np.testing.assert_array_equal(run(scaling(PillowResizeMat(**keys)), content)["result"], np.asarray(in_pillow))
    rows, columns = ((np.arange(count) + 0.5) * extent / count - 0.5 for count, extent in ((50, 60.5), (90, 100.5)))
    expected = cv2.remap(half, *np.meshgrid(columns.astype(np.float32), rows.astype(np.float32)), cv2.INTER_LINEAR)
    by_request = run(scaling(DynamicResizeMat()), content, **keys)["result"]
    for result in (run(scaling(ResizeMat(**keys)), content)["result"], by_request):
        assert result.flags.c_contiguous
        np.testing.assert_allclose(result, expected, atol=3)  # OpenCV 4 remaps in steps of 1/32 pixel


@pytest.mark.parametrize("kind", [ResizePadMat, LetterBoxMat])
@pytest.mark.parametrize("size", [(333, 501), (501, 333)])
def test_a_padded_picture_has_place_and_coordinates_as_if_it_were_decoded_whole(
    kind: type[ResizePadMat], size: tuple[int, int]
) -> None:
    """Boxes go back to the whole picture, not to the smaller one."""
    content = encoded(*size)
    scaled = run(scaling(kind(max_h=60, max_w=60)), content)
    whole = run(kind(max_h=60, max_w=60), run(DecodeMat(), content)["result"])
    assert scaled["inverse_trans"] == whole["inverse_trans"]
    for other_axes in ((1, 2), (0, 2)):  # the padding is where it was
        is_padding = scaled["result"].max(axis=other_axes) == 0
        assert is_padding.sum() in (0, 20)
        np.testing.assert_array_equal(is_padding, whole["result"].max(axis=other_axes) == 0)
    assert scaled["inverse_trans"](60, 60)[size[0] > size[1]] == pytest.approx(max(size))


def test_each_request_may_have_its_own_size() -> None:
    """``DynamicResizeMat`` reads it from the request; one that says nonsense fails alone."""
    content = encoded(160, 240)
    sizes: list[Any] = [(20, 30), (60, 60), -1]
    batch: list[fastpipe.Request] = [
        {"data": content, "resize_h": size if size == -1 else size[0], "resize_w": 60} for size in sizes
    ]
    with pytest.raises(fastpipe.ItemErrors) as caught:
        scaling(DynamicResizeMat()).forward(batch)
    (index, error), *others = caught.value.by_position(batch, batch).items()
    assert (index, others) == (2, [])
    assert str(error) == "DynamicResizeMat: resize_h must be a whole number from 1 to 1048576, got -1"
    for request, denominator in zip(batch, (4, 2), strict=False):
        size = (request["resize_w"], request["resize_h"])
        np.testing.assert_array_equal(request["result"], cv2.resize(reduced(content, denominator), size))


def test_the_difference_to_the_whole_picture_resized_is_small() -> None:
    """Of a smooth picture: nothing is shifted, or of another color."""
    smooth = cv2.resize(picture(64, 128), (901, 449), interpolation=cv2.INTER_CUBIC)
    content = cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    scaled = run(scaling(PillowResizeMat(resize_h=112, resize_w=224)), content)["result"].astype(int)
    whole = run(PillowResizeMat(resize_h=112, resize_w=224), run(DecodeMat(), content)["result"])["result"].astype(int)
    assert np.abs(scaled - whole).mean() < 1
    assert np.abs(scaled[:, 2:] - whole[:, :-2]).mean() > 10  # what a shift by two pixels would make


def test_what_is_no_picture_has_no_result_of_the_decoder() -> None:
    """The error names it, as without scaling."""
    with (
        fastpipe.Pipe(backend="S[DecodeMat,ResizeMat]", scale="auto", resize_h=8, resize_w=8) as pipe,
        pytest.raises(NoResult, match="DecodeMat"),
    ):
        pipe({"data": b"no picture"})


def test_requests_of_a_pipe_get_the_scaled_result() -> None:
    """From a configuration, by ``DecodeMat::scale`` of one node."""
    content = encoded(160, 240)
    steps = "S[DecodeMat,ResizeMat,NormalizeMat]"
    node = {"backend": steps, "DecodeMat::scale": "auto", "resize_h": 20, "resize_w": 30}
    with fastpipe.Pipe({"pre": node}) as pipe:
        answer = pipe({"data": content})
    np.testing.assert_array_equal(answer["result"], reduced(content, 8).transpose(2, 0, 1).astype(np.float32))
    assert answer["data"] is content
    assert answer["source_size"] == (160, 240)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "backend",
    [
        "DecodeMat",
        "S[Identity,DecodeMat]",
        "S[DecodeMat,CropMat,ResizeMat]",
        "S[DecodeMat,(or)ResizeMat]",
        "S[HasKey(key)[DecodeMat,ResizeMat]]",
        "S[S[DecodeMat],ResizeMat]",
    ],
)
def test_it_is_refused_while_the_pipe_is_built_where_nobody_says_what_is_needed(backend: str) -> None:
    """A step between that needs the whole picture, a filter, another branch, or nothing behind it."""
    node = {"backend": backend, "DecodeMat::scale": "auto", "next": "b"}
    if "ResizeMat" in backend:
        node |= {"resize_h": 8, "resize_w": 8}
    reason = r"node 'pre': DecodeMat: scale = 'auto' needs a step that resizes .* right behind it"
    with pytest.raises(ConfigError, match=reason):
        fastpipe.Pipe({"pre": node, "b": {"backend": "Identity"}})


def test_another_scale_is_an_error() -> None:
    with pytest.raises(ConfigError, match="scale"):
        fastpipe.Pipe(backend="S[DecodeMat,ResizeMat]", scale="half", resize_h=8, resize_w=8)


def test_steps_that_were_built_are_closed_if_one_finds_no_neighbour() -> None:
    """Nothing of an instance that is refused stays behind, and an error in closing does not hide the reason."""
    closed = []

    class Closes(fastpipe.Backend):
        def forward(self, batch: list[fastpipe.Request]) -> None:
            raise NotImplementedError

        def close(self) -> None:
            closed.append(self)
            raise OSError("cannot be closed")

    with pytest.raises(ConfigError, match="scale = 'auto'"):
        fastpipe.Pipe(backend=fastpipe.Sequential(fastpipe.Step("DecodeMat", scale="auto"), Closes))
    assert len(closed) == 1
