"""The kernels for NumPy arrays, compiled when the package was built; bit-equal to ``reference``.

    batch = normalize(images, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], target="rgb")

The loops themselves are in ``loops.hpp``, in one form for each kind of vector unit: the CPU decides which of them runs.

Thread-safety: every function is reentrant. The GIL is released once per call, and not at all for few pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _loops, reference
from ._arguments import Array, Color, check_conversion, check_normalization, check_resize, documented_as
from .reference import BLUE, GREEN, RED, taps

__all__ = ["Color", "convert_color", "normalize", "resize"]

# A thread that gives up the GIL beside one that runs Python waits 5 ms to have it back; a loop over so few pixels is
# done in 0.01 to 0.3 ms. Kept against released, JPEG to 224 x 224 tensor from two threads beside such a third:
# 105 against 73 images/s (517 x 606), 71 against 56 (720p); without the third, no difference that could be measured.
GIL_KEPT_BELOW_PIXELS = 65_536


@documented_as(reference.convert_color)
def convert_color(image: Array, source: Color, target: Color, *, out: Array | None = None) -> Array:
    """What ``reference.convert_color`` does, compiled."""
    out = check_conversion(image, source, target, out)
    if source == target:
        out[...] = image
        return out
    _loops.convert(image, _gray_weights(source, target), out, image.shape[0] * image.shape[1] < GIL_KEPT_BELOW_PIXELS)
    return out


@documented_as(reference.normalize)
def normalize(
    images: Array | Sequence[Array],
    *,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    source: Color = "bgr",
    target: Color = "bgr",
    dtype: npt.DTypeLike | None = None,
    out: Array | None = None,
) -> Array:
    """What ``reference.normalize`` does, compiled, in one pass."""
    checked = check_normalization(images, mean, std, source, target, dtype, out)
    out = checked.batch_nchw
    _loops.normalize(
        checked.images,
        _gray_weights(source, target),
        source != target,
        _levels(checked.mean.tobytes(), checked.std.tobytes(), out.dtype),
        out,
        out.size // out.shape[1] < GIL_KEPT_BELOW_PIXELS,
    )
    return checked.out


@documented_as(reference.resize)
def resize(image: Array, height: int, width: int, *, out: Array | None = None) -> Array:
    """What ``reference.resize`` does, compiled."""
    out = check_resize(image, height, width, out)
    _loops.resize(
        image,
        _taps(image.shape[0], out.shape[0], cut_at_edges=False),
        _taps(image.shape[1], out.shape[1], cut_at_edges=True),
        out,
        out.shape[0] * out.shape[1] < GIL_KEPT_BELOW_PIXELS,
    )
    return out


def _gray_weights(source: Color, target: Color) -> Array | None:
    """Return the weight of each channel of ``source`` in gray; None if gray is not wanted, or there already."""
    if source == "gray" or target != "gray":
        return None
    return _GRAY_FROM_BGR if source == "bgr" else _GRAY_FROM_RGB


_GRAY_FROM_BGR = np.array([BLUE, GREEN, RED], np.int32)
_GRAY_FROM_RGB = np.array([RED, GREEN, BLUE], np.int32)


_taps = functools.lru_cache(maxsize=1024)(taps)


@functools.lru_cache(maxsize=256)
def _levels(mean: bytes, std: bytes, dtype: np.dtype[Any]) -> Array:
    """Return what makes a value of a byte in each plane.

    Args:
        mean: float32 numbers, one per plane, as bytes, so that they can be looked up here.
        std: the same.
        dtype: of the values.

    Returns:
        float32 (planes, 2), mean and std, for float32. For float16, which not every CPU computes in, what each of the
        256 bytes becomes: float16 (planes, 256).
    """
    levels = np.stack([np.frombuffer(mean, np.float32), np.frombuffer(std, np.float32)], axis=1)
    if dtype != np.float16:
        return levels
    with np.errstate(over="ignore"):  # infinity is the answer
        return ((np.arange(256, dtype=np.float32) - levels[:, :1]) / levels[:, 1:]).astype(np.float16)
