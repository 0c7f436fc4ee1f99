"""The kernels for NumPy arrays, compiled by Numba at their first call, or by ``prepare``; bit-equal to ``reference``.

    batch = normalize(images, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], target="rgb")

Compiling takes seconds, once: the machine code is kept beside the source, or in the user's cache folder where that
cannot be written to, or, if neither can, in this process only. Numba itself is imported by the first call too. Where
``NUMBA_DISABLE_JIT`` forbids it to compile, ``reference`` does the work: the same bits, much slower.

Thread-safety: every function is reentrant. The GIL is released once per call, and not at all for few pixels.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpipe.errors import MissingExtra

from . import reference
from ._arguments import CHANNELS, Array, Color, check_conversion, check_normalization, check_resize, documented_as
from .reference import BLUE, GREEN, RED, taps

__all__ = ["Color", "convert_color", "normalize", "prepare", "resize"]

# A thread that gives up the GIL beside one that runs Python waits 5 ms to have it back; a loop over so few pixels is
# done in 0.01 to 0.3 ms. Kept against released, JPEG to 224 x 224 tensor from two threads beside such a third:
# 105 against 73 images/s (517 x 606), 71 against 56 (720p); without the third, no difference that could be measured.
GIL_KEPT_BELOW_PIXELS = 65_536


@documented_as(reference.convert_color)
def convert_color(image: Array, source: Color, target: Color, *, out: Array | None = None) -> Array:
    """What ``reference.convert_color`` does, compiled.

    Raises:
        MissingExtra: if Numba is not installed.
    """
    out = check_conversion(image, source, target, out)
    if source == target:
        out[...] = image
        return out
    height, width = image.shape[:2]
    loops = _loops()
    if loops is None:
        return reference.convert_color(image, source, target, out=out)
    run = loops.convert if height * width < GIL_KEPT_BELOW_PIXELS else loops.convert_nogil
    run(
        _described([image], [(*image.strides, 1)[:3]]),
        height,
        width,
        CHANNELS[source],
        _gray_weights(source, target),
        out.reshape(height, width * CHANNELS[target]),
    )
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
    """What ``reference.normalize`` does, compiled, in one pass.

    Raises:
        MissingExtra: if Numba is not installed.
    """
    checked = check_normalization(images, mean, std, source, target, dtype, out)
    loops = _loops()
    if loops is None:
        return reference.normalize(images, mean=mean, std=std, source=source, target=target, out=checked.out)
    count, planes, height, width = checked.batch_nchw.shape
    channels = CHANNELS[source]
    if all(image.flags.c_contiguous for image in checked.images):
        strides: list[tuple[int, ...]] = [(0, channels, 1)] * count
        height, width = 1, height * width  # one long row
    else:
        strides = [(*image.strides, 1)[:3] for image in checked.images]
    out = checked.batch_nchw
    levels = _levels(checked.mean.tobytes(), checked.std.tobytes(), out.dtype)
    if out.dtype == np.float16:
        out = out.view(np.uint16)  # Numba cannot compute in float16, but it can copy the bits
    run = loops.normalize if count * height * width < GIL_KEPT_BELOW_PIXELS else loops.normalize_nogil
    run(
        _described(checked.images, strides),
        height,
        width,
        channels,
        _gray_weights(source, target),
        levels,
        _SAME_ORDER if source == target else _OPPOSITE_ORDER,
        out.reshape(count, planes, height * width),
    )
    return checked.out


@documented_as(reference.resize)
def resize(image: Array, height: int, width: int, *, out: Array | None = None) -> Array:
    """What ``reference.resize`` does, compiled.

    Raises:
        MissingExtra: if Numba is not installed.
    """
    out = check_resize(image, height, width, out)
    loops = _loops()
    if loops is None:
        return reference.resize(image, height, width, out=out)
    run = loops.resize if height * width < GIL_KEPT_BELOW_PIXELS else loops.resize_nogil
    run(
        _described([image], [image.strides]),
        image.shape[1],
        _taps(image.shape[0], height, cut_at_edges=False),
        _taps(image.shape[1], width, cut_at_edges=True),
        out.reshape(height, width * 3),
    )
    return out


def prepare() -> None:
    """Import Numba and compile every loop, or load it from disk, so that no later call has to.

    Raises:
        MissingExtra: if Numba is not installed.
    """
    pixel = np.zeros((1, 1, 3), np.uint8)
    many = np.zeros((256, GIL_KEPT_BELOW_PIXELS // 256, 3), np.uint8)
    for image in (pixel, many):
        convert_color(image, "bgr", "rgb")
        resize(pixel, *image.shape[:2])
        for dtype in (np.float32, np.float16):
            normalize(image, dtype=dtype)


@functools.cache
def _loops() -> ModuleType | None:
    """Return the module of loops; None: Numba must not compile them, and they cannot run as they are written."""
    try:
        from . import _loops as loops
    except ImportError as error:
        raise MissingExtra("fastpipe.kernels.cpu", "cpu", error) from error
    return loops if loops.ARE_COMPILED else None


def _described(images: list[Array], strides: list[tuple[int, ...]]) -> Array:
    """Return the rows by which a loop sees the images: address and strides."""
    if len(images) == 1:
        rows = np.array((_address(images[0]), *strides[0]), np.int64)
    else:
        rows = np.array([(_address(image), *s) for image, s in zip(images, strides, strict=True)], np.int64)
    return rows.reshape(len(images), 4)


def _address(image: Array) -> int:
    buffer: Any = image  # annotated as one from Python 3.12 on
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    except (TypeError, ValueError):  # read-only, empty or with gaps; this way takes four times as long
        return image.ctypes.data


def _gray_weights(source: Color, target: Color) -> Array:
    """Return the weight of each channel of ``source`` in gray; zeros if gray is not wanted, or there already."""
    if source == "gray" or target != "gray":
        return _NO_GRAY
    return _GRAY_FROM_BGR if source == "bgr" else _GRAY_FROM_RGB


_NO_GRAY = np.zeros(3, np.int64)
_GRAY_FROM_BGR = np.array([BLUE, GREEN, RED])
_GRAY_FROM_RGB = np.array([RED, GREEN, BLUE])
_SAME_ORDER = np.array([0, 1, 2])
_OPPOSITE_ORDER = np.array([2, 1, 0])


_taps = functools.lru_cache(maxsize=1024)(taps)


@functools.lru_cache(maxsize=256)
def _levels(mean: bytes, std: bytes, dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """Return what makes a value of a byte in each of three planes; a single plane's comes three times.

    Args:
        mean: float32 numbers, one per plane, as bytes, so that they can be looked up here.
        std: the same.
        dtype: float32: then it is mean and std. float16: a table of the bits that each of the 256 bytes becomes.
    """
    levels: list[Any] = list(zip(np.frombuffer(mean, np.float32), np.frombuffer(std, np.float32), strict=True))
    if dtype == np.float16:
        with np.errstate(over="ignore"):  # infinity is the answer
            tables = [(np.arange(256, dtype=np.float32) - m) / s for m, s in levels]
            levels = [table.astype(np.float16).view(np.uint16) for table in tables]
    return tuple(levels * (3 // len(levels)))
