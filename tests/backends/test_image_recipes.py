"""What models are evaluated with: interpolations, the shorter side and the middle, mean and std by name."""

from __future__ import annotations

import platform
from typing import Any
from zlib import crc32

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="the image backends need OpenCV")
Image = pytest.importorskip("PIL.Image", reason="the tests of images need Pillow")

import PIL  # noqa: E402

import fastpipe  # noqa: E402
from fastpipe.backends.image.bases import Pillow  # noqa: E402
from fastpipe.backends.image.codec import DecodeMat  # noqa: E402
from fastpipe.backends.image.color import NormalizeMat  # noqa: E402
from fastpipe.backends.image.evaluation import CenterCropMat, ResizeShorterMat  # noqa: E402
from fastpipe.backends.image.geometry import (  # noqa: E402
    CropResizeMat,
    DynamicResizeMat,
    LetterBoxMat,
    PillowResizeMat,
    ResizeMat,
    ResizePadMat,
)
from fastpipe.errors import ConfigError, KernelError, MissingExtra  # noqa: E402
from fastpipe.kernels import reference  # noqa: E402

INTERPOLATIONS: list[Any] = ["linear", "area", "cubic", "lanczos"]
BY_OPENCV = {
    "linear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "cubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
}
BY_PILLOW = {
    "linear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "cubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
SIZES = [(61, 83), (7, 200), (300, 5), (1, 1), (90, 120)]
each_interpolation = pytest.mark.parametrize("interpolation", INTERPOLATIONS)


def noise(height: int, width: int, channels: int = 3) -> Any:
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(height).integers(0, 256, shape, dtype=np.uint8)


def run(backend: fastpipe.Backend, data: Any, **keys: Any) -> Any:
    request = {"data": data, **keys}
    backend.forward([request])
    return request["result"]


# ---- interpolations --------------------------------------------------------------------------------------------------


@each_interpolation
@pytest.mark.parametrize("channels", [0, 1, 3, 4])
def test_resize_is_opencvs(interpolation: Any, channels: int) -> None:
    """Larger and smaller, of any number of channels; the axis of one channel stays."""
    backend = ResizeMat(resize_h=45, resize_w=60, interpolation=interpolation)
    for height, width in SIZES:
        pixels = noise(height, width, channels)
        expected = cv2.resize(pixels, (60, 45), interpolation=BY_OPENCV[interpolation])
        np.testing.assert_array_equal(run(backend, pixels), expected.reshape(45, 60, *pixels.shape[2:]))


@each_interpolation
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_pillow_resize_is_pillows(interpolation: Any, channels: int) -> None:
    backend = PillowResizeMat(resize_h=45, resize_w=60, interpolation=interpolation)
    for height, width in SIZES:
        pixels = noise(height, width, channels)
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        expected = np.asarray(image.resize((60, 45), BY_PILLOW[interpolation]))
        np.testing.assert_array_equal(run(backend, pixels), expected.reshape(45, 60, *pixels.shape[2:]))


@each_interpolation
def test_the_other_steps_that_resize_do_it_the_same_way(interpolation: Any) -> None:
    """To the request's own size, of a part, and with a border."""
    pixels = noise(61, 83)
    way = BY_OPENCV[interpolation]
    dynamic = run(DynamicResizeMat(interpolation=interpolation), pixels, resize_h=20, resize_w=30)
    np.testing.assert_array_equal(dynamic, cv2.resize(pixels, (30, 20), interpolation=way))
    part = run(CropResizeMat(resize_h=20, resize_w=30, interpolation=interpolation), pixels, box=[5, 6, 70, 50])
    np.testing.assert_array_equal(part, cv2.resize(pixels[6:50, 5:70].copy(), (30, 20), interpolation=way))
    fitting = cv2.resize(pixels, (54, 40), interpolation=way)
    padded = run(ResizePadMat(max_h=40, max_w=60, interpolation=interpolation), pixels)
    np.testing.assert_array_equal(padded, np.pad(fitting, ((0, 0), (0, 6), (0, 0))))
    boxed = run(LetterBoxMat(max_h=40, max_w=60, interpolation=interpolation), pixels)
    np.testing.assert_array_equal(boxed, np.pad(fitting, ((0, 0), (3, 3), (0, 0))))


def test_an_unknown_interpolation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'linear', 'area', 'cubic' or 'lanczos'"):
        fastpipe.Pipe(backend="ResizeMat", resize_h=4, resize_w=4, interpolation="bicubic")


# Of the image below, made 40 x 23 by Pillow 12.3.0 and by 13.0.0 for x86-64: the checksums of the bytes.
OF_A_PORTRAIT = {
    "linear": {"pillow12": 3090498068, "pillow13": 785943999},
    "area": {"pillow12": 1614923453, "pillow13": 159494097},
    "cubic": {"pillow12": 3904470761, "pillow13": 2082276913},
    "lanczos": {"pillow12": 2341267646, "pillow13": 2105443005},
}


def portrait() -> Any:
    y, x, channel = np.indices((90, 31, 3))
    return ((x * x * 7 + y * y * 13 + x * y * 5 + channel * 97) % 256).astype(np.uint8)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Pillow may round a weight differently")
@each_interpolation
@pytest.mark.parametrize("filter", ["pillow12", "pillow13"])
def test_two_versions_of_pillow_are_told_apart_by_name(interpolation: Any, filter: Any) -> None:
    """Whichever is installed: the bytes are those that each of the two really made."""
    backend = PillowResizeMat(resize_h=40, resize_w=23, interpolation=interpolation, filter=filter)
    assert crc32(run(backend, portrait()).tobytes()) == OF_A_PORTRAIT[interpolation][filter]


@each_interpolation
def test_the_installed_pillow_is_one_of_the_two(interpolation: Any) -> None:
    """By name, the same bytes as by Pillow itself, of any shape and of a part of an image; and without a name."""
    installed: Any = "pillow13" if int(PIL.__version__.partition(".")[0]) >= 13 else "pillow12"
    for height, width in [*SIZES, (300, 200), (200, 61)]:
        pixels = noise(height, width)
        for extent in (None, (height - 0.75, width - 0.25)):
            box = None if extent is None else (0, 0, extent[1], extent[0])
            expected = np.asarray(Image.fromarray(pixels).resize((60, 45), BY_PILLOW[interpolation], box))
            for filter in (installed, "pillow"):
                pillow = Pillow(PillowResizeMat(resize_h=1, resize_w=1), interpolation, filter)
                pillow._is_direct = filter == "pillow"  # by name, in two passes also where one would do
                np.testing.assert_array_equal(pillow.resized(pixels, 45, 60, extent), expected)


@pytest.mark.parametrize("filter", ["pillow12", "pillow13"])
def test_each_order_is_that_of_the_reference(filter: Any) -> None:
    """Bilinear, against Pillow's arithmetic in plain NumPy; of PillowResizeMat and ResizeShorterMat; tall ones, too."""
    for height, width in [*SIZES, (300, 200), (200, 61), (365, 3), (371, 2)]:
        pixels = noise(height, width)
        expected = reference.resize_pillow(pixels, 45, 60, as_pillow_13=filter == "pillow13")
        np.testing.assert_array_equal(run(PillowResizeMat(resize_h=45, resize_w=60, filter=filter), pixels), expected)
    pixels = noise(200, 61)
    expected = reference.resize_pillow(pixels, 98, 30, as_pillow_13=filter == "pillow13")
    np.testing.assert_array_equal(run(ResizeShorterMat(shorter_side=30, filter=filter), pixels), expected)


def test_an_order_that_needs_a_huge_image_on_the_way_is_refused() -> None:
    """Rows of a tall strip first would be a row of the result for each of its own."""
    other: Any = "pillow12" if int(PIL.__version__.partition(".")[0]) >= 13 else "pillow13"
    pixels = np.zeros((1_000_000, 1) if other == "pillow12" else (1000, 300_000), np.uint8)
    keys = {"resize_h": 1, "resize_w": 1000} if other == "pillow12" else {"resize_h": 900, "resize_w": 299_999}
    with pytest.raises(KernelError, match=f"PillowResizeMat: filter = '{other}' would make an image of"):
        run(PillowResizeMat(filter=other, max_pixels=1 << 30, **keys), pixels)


# ---- shorter side, middle --------------------------------------------------------------------------------------------


def as_torchvision(pixels: Any, side: int, crop: tuple[int, int], interpolation: str) -> Any:
    """Return what ``Compose([Resize(side, interpolation), CenterCrop(crop)])`` makes of Pillow's image, by Pillow.

    It is torchvision 0.28's transforms/functional.py, written out; that the two agree was tried with torchvision on 298
    images.
    """
    image = Image.fromarray(pixels)
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = side, int(side * long / short)
    width, height = (new_short, new_long) if width <= height else (new_long, new_short)
    image = image.resize((width, height), BY_PILLOW[interpolation])
    crop_height, crop_width = crop
    if crop_width > width or crop_height > height:
        left = (crop_width - width) // 2 if crop_width > width else 0
        top = (crop_height - height) // 2 if crop_height > height else 0
        larger = Image.new(image.mode, (max(width, crop_width), max(height, crop_height)))
        larger.paste(image, (left, top))
        image, (width, height) = larger, larger.size
    top = round((height - crop_height) / 2.0)
    left = round((width - crop_width) / 2.0)
    return np.asarray(image.crop((left, top, left + crop_width, top + crop_height)))


@each_interpolation
@pytest.mark.parametrize("size", [(427, 640), (640, 427), (300, 300), (33, 500), (1, 7), (45, 40)], ids=str)
def test_the_evaluation_of_classifiers_is_torchvisions(size: tuple[int, int], interpolation: Any) -> None:
    """Bit for bit: sides cut off, halves rounded to even, black where a crop is larger; color and gray."""
    for side, crop in ((256, (224, 224)), (32, (31, 29)), (20, (33, 24)), (17, (1, 60))):
        resize = ResizeShorterMat(shorter_side=side, interpolation=interpolation)
        middle = CenterCropMat(crop_h=crop[0], crop_w=crop[1])
        for pixels in (noise(*size), noise(*size, 0)):
            result = run(middle, run(resize, pixels))
            np.testing.assert_array_equal(result, as_torchvision(pixels, side, crop, interpolation))
            assert result.flags.writeable


def test_the_longer_side_is_cut_off_not_rounded() -> None:
    """256 makes 383 of 640 x 427, as with torchvision, where DALI has 384; lying or standing."""
    backend = ResizeShorterMat(shorter_side=256)
    assert run(backend, noise(427, 640)).shape == (256, 383, 3)
    assert run(backend, noise(640, 427)).shape == (383, 256, 3)
    assert run(backend, noise(5, 5)).shape == (256, 256, 3)


@each_interpolation
def test_the_shorter_side_may_be_opencvs(interpolation: Any) -> None:
    """With any number of channels, too."""
    backend = ResizeShorterMat(shorter_side=30, filter="opencv", interpolation=interpolation)
    for channels in (0, 1, 3, 4):
        pixels = noise(61, 83, channels)
        expected = cv2.resize(pixels, (40, 30), interpolation=BY_OPENCV[interpolation])
        np.testing.assert_array_equal(run(backend, pixels), expected.reshape(30, 40, *pixels.shape[2:]))


def test_a_long_strip_does_not_become_a_large_image() -> None:
    """256 rows of a strip of a million pixels were 256 million columns; and a size above the limit builds no pipe."""
    with pytest.raises(KernelError, match="ResizeShorterMat: expected a result of at most max_pixels"):
        run(ResizeShorterMat(shorter_side=256), np.zeros((1, 1_000_000), np.uint8))
    with pytest.raises(KernelError, match="ResizeShorterMat: expected 1 or 3 channels"):
        run(ResizeShorterMat(shorter_side=256), noise(9, 9, 4))
    for name, keys in {"ResizeShorterMat": {"shorter_side": 60}, "CenterCropMat": {"crop_h": 60, "crop_w": 60}}.items():
        with pytest.raises(ConfigError, match=f"{name}: a result of 60 x 60 pixels has more than max_pixels = 3599"):
            fastpipe.Pipe(backend=name, max_pixels=3599, **keys)
    with pytest.raises(KernelError, match="CenterCropMat: expected a result of at most max_pixels"):
        run(CenterCropMat(crop_h=60, crop_w=60, max_pixels=3600), noise(9, 9, 5))


def test_what_opencv_cannot_resize_is_said_in_words() -> None:
    five = np.zeros((40, 60, 5), np.uint8)
    with pytest.raises(KernelError, match=r"'area': OpenCV cannot resize an image of shape \(40, 60, 5\) to 25 x 33"):
        run(ResizeMat(resize_h=25, resize_w=33, interpolation="area"), five)
    assert run(ResizeMat(resize_h=25, resize_w=33), five).shape == (25, 33, 5)


def test_the_filter_of_a_step_is_written_with_its_name() -> None:
    """``filter`` alone is the node's own key."""
    pixels = noise(40, 60)
    with fastpipe.Pipe(backend="ResizeShorterMat", shorter_side=16, **{"ResizeShorterMat::filter": "opencv"}) as pipe:
        result = pipe({"data": pixels})["result"]
    np.testing.assert_array_equal(result, cv2.resize(pixels, (24, 16)))


def test_a_jpeg_is_decoded_no_larger_than_the_shorter_side_needs() -> None:
    """1/4 of 960 x 1280 has 240 rows; the size is that of the whole image resized, and the pixels are near."""
    smooth = cv2.resize(noise(12, 16), (1280, 960), interpolation=cv2.INTER_CUBIC)
    content = cv2.imencode(".jpg", smooth)[1].tobytes()
    keys: dict[str, Any] = {"shorter_side": 200, "crop_h": 180, "crop_w": 180}
    backend = "S[DecodeMat,ResizeShorterMat,CenterCropMat]"
    with (
        fastpipe.Pipe(backend=backend, scale="auto", **keys) as scaled,
        fastpipe.Pipe(backend=backend, **keys) as whole,
    ):
        small, expected = scaled({"data": content}), whole({"data": content})
    assert "source_size" not in small  # it is no longer that of what is left
    assert small["result"].shape == expected["result"].shape == (180, 180, 3)
    assert np.abs(small["result"].astype(int) - expected["result"]).mean() < 2
    decoder = DecodeMat(scale="auto")
    decoder.hand_on(object, ResizeShorterMat(shorter_side=200))
    request = {"data": content}
    decoder.run(request)
    assert request["result"].pixels.shape == (240, 320, 3)


def test_without_pillow_the_shorter_side_needs_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(MissingExtra, match=r"ResizeShorterMat needs PIL.*fastpipe-engine\[cpu\]"):
        ResizeShorterMat(shorter_side=9)
    assert run(ResizeShorterMat(shorter_side=9, filter="opencv"), noise(20, 20)).shape == (9, 9, 3)


# ---- mean and std by name --------------------------------------------------------------------------------------------

PRESETS: dict[Any, tuple[list[float], list[float]]] = {
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "yolo": ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_what_models_were_trained_with(preset: Any) -> None:
    """RGB by default, within float32's rounding of ``(pixels / 255 - mean) / std``; BGR has the numbers exchanged."""
    mean, std = (np.array(numbers, np.float64) for numbers in PRESETS[preset])
    bgr = noise(20, 30)
    expected = ((bgr[..., ::-1] / 255 - mean) / std).transpose(2, 0, 1)
    request: dict[str, Any] = {"data": bgr}
    NormalizeMat(preset=preset).forward([request])
    assert request["color"] == "rgb"
    np.testing.assert_allclose(request["result"], expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(run(NormalizeMat(preset=preset, color="bgr"), bgr), expected[::-1], rtol=0, atol=2e-6)
    plain = NormalizeMat(color="rgb", mean=list(mean * 255), std=list(std * 255))
    np.testing.assert_array_equal(run(plain, bgr), request["result"])


def test_a_preset_that_contradicts_something_is_refused() -> None:
    """Mean or std beside it, even if they are the same; gray, which has one channel, and the preset three."""
    for keys in ({"mean": [0.0]}, {"std": [255.0]}, {"mean": [1.0, 2.0, 3.0], "std": [1.0]}):
        with pytest.raises(ConfigError, match="NormalizeMat: preset = 'clip' has a mean and std of its own"):
            fastpipe.Pipe(backend="NormalizeMat", preset="clip", **keys)
    with pytest.raises(ConfigError, match="preset = 'imagenet' is of three channels, color = 'gray' of one"):
        NormalizeMat(preset="imagenet", color="gray")
    assert run(NormalizeMat(preset="yolo", color="gray"), np.full((2, 2), 255, np.uint8)).max() == 1.0
    with pytest.raises(ConfigError, match="'imagenet', 'clip' or 'yolo'"):
        fastpipe.Pipe(backend="NormalizeMat", preset="imgnet")
