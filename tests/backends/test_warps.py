"""Warps as OpenCV 4 and as OpenCV 5, whichever is installed: what each of them really made, and itself where it is."""

from __future__ import annotations

import platform
from typing import Any
from zlib import crc32

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="the image backends need OpenCV")

import fastpipe  # noqa: E402
from fastpipe.backends.image import opencv_warp  # noqa: E402
from fastpipe.backends.image.geometry import PerspectiveTransformMat  # noqa: E402
from fastpipe.errors import ConfigError  # noqa: E402
from fastpipe.kernels import reference  # noqa: E402

INSTALLED = f"opencv{cv2.__version__.partition('.')[0]}"
only_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="OpenCV may round otherwise")

# What OpenCV 4.14.0 and 5.0.0 for x86-64 made of the picture below and the quadrilateral (4.10.0 as 4.14.0).
QUAD = np.array([[3.5, 2.25], [44, 6.5], [47.75, 55], [-2, 50.5]], np.float32)
SIZE = (44, 48)  # width and height
CUBIC = {"opencv4": 241027215, "opencv5": 1733815952}  # checksums
LINEAR_OF_4 = {"fill": 3546817155, "repeat": 2662874338}
AFFINE = np.array([[0.9, 0.2, 3.3], [-0.15, 1.1, -2.7]])
AFFINE_OF = {
    "opencv4": [7.0, 7.0, 52.056640625, 164.21484375, 119.9453125],  # row 20, from column 5 on
    "opencv5": [7.0, 7.0, 52.857120513916016, 163.44590759277344, 118.60797882080078],
}


def picture() -> Any:
    y, x, channel = np.indices((60, 50, 3))
    return ((x * x * 7 + y * y * 13 + x * y * 5 + channel * 97) % 256).astype(np.uint8)


def noise(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def perspective(pixels: Any, quad: Any, way: Any = "opencv") -> Any:
    request = {"data": pixels, "quad": quad}
    PerspectiveTransformMat(warp=way).run(request)
    return request["result"]


@pytest.fixture
def as_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have both versions computed by ourselves."""
    monkeypatch.setattr(opencv_warp.cv2, "__version__", "0.0")


@only_x86
def test_a_perspective_as_opencv_4_is_what_that_made(as_of_another_version: None) -> None:
    """Bit for bit, on OpenCV 4 and 5 alike."""
    result = perspective(picture(), QUAD, "opencv4")
    assert result.shape == (48, 49, 3)
    assert crc32(result.tobytes()) == CUBIC["opencv4"]


@only_x86
def test_by_default_and_by_its_name_it_is_the_installed_one() -> None:
    for way in ("opencv", INSTALLED):
        assert crc32(perspective(picture(), QUAD, way).tobytes()) == CUBIC[INSTALLED]


def test_by_ourselves_it_is_as_the_installed_one(as_of_another_version: None) -> None:
    """Of any size, gray and with alpha, beyond the edges; OpenCV 4 to the bit, 5 but for its last ones."""
    rng = np.random.default_rng(1)
    differing = total = 0
    for number in range(40):
        height, width = rng.integers(1, 120, 2)
        pixels = noise(number, height, width, *[(), (1,), (3,), (4,)][number % 4])
        quad = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
        quad += rng.normal(0, min(height, width) / 12, (4, 2)).astype(np.float32)
        ours, theirs = (perspective(pixels, quad, way).astype(int) for way in (INSTALLED, "opencv"))
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= (0 if INSTALLED == "opencv4" else 1)
        differing, total = differing + int((ours != theirs).sum()), total + ours.size
    assert differing < total / 1000


def test_the_two_differ_only_where_the_picture_is_steep(as_of_another_version: None) -> None:
    """So that neither is of another picture; and a large result is made in parts."""
    smooth = cv2.GaussianBlur(noise(2, 300, 300, 3), (0, 0), 4)
    quad = np.array([[3, 5], [290, 20], [295, 285], [10, 290]], np.float32)
    large = quad * 2 - 150
    for corners in (quad, large):
        old, new = (perspective(smooth, corners, way).astype(int) for way in ("opencv4", "opencv5"))
        assert old.shape[0] * old.shape[1] > opencv_warp.PIXELS_AT_A_TIME
        assert np.abs(old - new).max() <= 1


def test_a_version_is_one_of_three_words() -> None:
    with pytest.raises(ConfigError, match="'opencv', 'opencv4' or 'opencv5', got 'opencv3'"):
        fastpipe.Pipe(backend="PerspectiveTransformMat", warp="opencv3")


@only_x86
@pytest.mark.parametrize("border", ["fill", "repeat"])
def test_the_reference_of_the_kernels_is_opencv_4_to_the_bit(border: str) -> None:
    """Of a linear warp by the same matrix."""
    corners = np.array([(0, 0), (44, 0), (44, 48), (0, 48)], np.float32)
    _, inverse = cv2.invert(cv2.getPerspectiveTransform(QUAD, corners))
    ours = reference.warp(picture(), inverse, 48, 44, border=border, fill=[9, 8, 7], as_opencv_4=True)
    assert crc32(ours.tobytes()) == LINEAR_OF_4[border]
    if INSTALLED == "opencv4":
        mode = {"fill": cv2.BORDER_CONSTANT, "repeat": cv2.BORDER_REPLICATE}[border]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        for number, (height, width) in enumerate([(48, 320), (7, 900), (1, 1), (130, 70)]):
            pixels = noise(number, 200, 300, 3)
            matrix = reference.perspective([[[20, 30], [250, 10], [280, 170], [-10, 190]]], height, width)[0]
            theirs = cv2.warpPerspective(
                pixels, matrix, (width, height), flags=flags, borderMode=mode, borderValue=(9, 8, 7)
            )
            ours = reference.warp(pixels, matrix, height, width, border=border, fill=[9, 8, 7], as_opencv_4=True)
            np.testing.assert_array_equal(ours, theirs)


# ---- tensors ---------------------------------------------------------------------------------------------------------


def affine(plane: Any, way: Any, matrix: Any = AFFINE, size: tuple[int, int] = SIZE) -> Any:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed (extra torch)")
    geometry: Any = pytest.importorskip("fastpipe.backends.tensor.geometry")
    request = {"data": torch.from_numpy(plane)[None, None], "affine_matrix": matrix}
    backend = geometry.WarpAffineTensor(target_w=size[0], target_h=size[1], pad_value=7.0, warp=way)
    backend.forward([request])
    return request["result"][0, 0].numpy()


@pytest.mark.parametrize(("way", "tolerance"), [("opencv4", 1e-3), ("opencv5", 0.1)])
def test_a_tensor_is_warped_as_either_version_made_it(way: str, tolerance: float) -> None:
    """The numbers of the real ones; where one is installed, of any size and matrix."""
    plane = picture()[..., 0].astype(np.float32)
    np.testing.assert_allclose(affine(plane, way)[20, 5:10], AFFINE_OF[way], rtol=0, atol=tolerance)
    if way != INSTALLED:
        return
    rng = np.random.default_rng(3)
    for _ in range(20):
        plane = rng.uniform(0, 255, rng.integers(1, 120, 2)).astype(np.float32)
        size = tuple(int(side) for side in rng.integers(1, 200, 2))
        matrix = np.array([[rng.uniform(0.3, 2), 0.3, rng.normal(0, 9)], [-0.4, rng.uniform(0.3, 2), rng.normal(0, 9)]])
        theirs = cv2.warpAffine(plane, matrix, size, flags=cv2.INTER_LINEAR, borderValue=7.0)
        np.testing.assert_allclose(affine(plane, way, matrix, size), theirs, rtol=0, atol=tolerance)


def test_a_warp_as_opencv_4_of_whole_pixels_is_exact_and_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved by (2, 1); what is outside is the padding."""
    plane = noise(4, 30, 40).astype(np.float32)
    geometry: Any = pytest.importorskip("fastpipe.backends.tensor.geometry", reason="torch is not installed")
    monkeypatch.setattr(geometry, "PIXELS_AT_A_TIME", 100)
    result = affine(plane, "opencv4", np.array([[1.0, 0, 2], [0, 1, 1]]), (45, 33))
    expected = np.full((33, 45), 7, np.float32)
    expected[1:31, 2:42] = plane
    np.testing.assert_array_equal(result, expected)
