"""What do the kernels take, against the same in NumPy and in OpenCV?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastpipe.kernels import cpu, reference

cv2 = pytest.importorskip("cv2")

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
COUNT = 8


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Let OpenCV use one thread, as the kernels do."""
    cv2.setNumThreads(1)


@pytest.fixture
def images() -> np.ndarray:
    """Return a batch of 224 x 224, the same each time."""
    return np.random.default_rng(0).integers(0, 256, (COUNT, 224, 224, 3), np.uint8)


def normalize_by_opencv(image: Any) -> Any:
    """Return what one would write with OpenCV and NumPy for one image."""
    rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return np.ascontiguousarray(((rgb - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1), dtype=np.float32)


@pytest.mark.benchmark(group="BGR uint8 HWC -> normalised RGB float32 CHW, one image")
@pytest.mark.parametrize("way", ["kernel", "kernel into a buffer", "reference", "OpenCV"])
def test_normalize_one(benchmark: Any, images: Any, way: str) -> None:
    """One image of 224 x 224."""
    out = np.empty((3, 224, 224), np.float32)
    colors: dict[str, Any] = {"mean": MEAN, "std": STD, "source": "bgr", "target": "rgb"}
    ways: dict[str, Callable[[], Any]] = {
        "kernel": lambda: cpu.normalize(images[0], **colors),
        "kernel into a buffer": lambda: cpu.normalize(images[0], **colors, out=out),
        "reference": lambda: reference.normalize(images[0], **colors),
        "OpenCV": lambda: normalize_by_opencv(images[0]),
    }
    expected = reference.normalize(images[0], **colors)
    np.testing.assert_allclose(ways[way](), expected, atol=1e-5)
    benchmark(ways[way])


@pytest.mark.benchmark(group=f"the same, {COUNT} images")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("way", ["one call", "a call each", "reference"])
def test_normalize_batch(benchmark: Any, images: Any, way: str, dtype: str) -> None:
    """A batch in one call, and in one for each image."""
    colors: dict[str, Any] = {"mean": MEAN, "std": STD, "source": "bgr", "target": "rgb", "dtype": dtype}
    ways: dict[str, Callable[[], Any]] = {
        "one call": lambda: cpu.normalize(images, **colors),
        "a call each": lambda: np.stack([cpu.normalize(image, **colors) for image in images]),
        "reference": lambda: reference.normalize(images, **colors),
    }
    np.testing.assert_array_equal(ways[way](), reference.normalize(images, **colors))
    benchmark(ways[way])


@pytest.mark.benchmark(group="BGR -> gray, 720p")
@pytest.mark.parametrize("way", ["kernel", "OpenCV"])
def test_gray(benchmark: Any, way: str) -> None:
    """A picture of 1280 x 720."""
    image = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)
    ways: dict[str, Callable[[], Any]] = {
        "kernel": lambda: cpu.convert_color(image, "bgr", "gray"),
        "OpenCV": lambda: cv2.cvtColor(image, cv2.COLOR_BGR2GRAY),
    }
    np.testing.assert_array_equal(ways[way](), ways["OpenCV"]())
    benchmark(ways[way])
