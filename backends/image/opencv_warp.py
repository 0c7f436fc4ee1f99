"""OpenCV's ``warpPerspective``, cubic, of the version that is installed and of the two that differ.

OpenCV 4 rounds where a pixel comes from to 1/32 of a pixel, and its weights to 15 bits; OpenCV 5 has float32 for both.
So each gives other bytes, by up to 7 on noise. Whichever is not installed is computed here, in NumPy, much slower: for
those who have to give the same answers as before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from .requests import Pixels

__all__ = ["WarpWay", "warped_by_opencv"]

WarpWay = Literal["opencv", "opencv4", "opencv5"]

Array = npt.NDArray[Any]
Warp = Callable[[Pixels, Array, range, int, int], Pixels]

TAPS = 4  # along each axis
SHARPNESS = np.float32(-0.75)  # OpenCV's "A"
STEPS = 32  # of a pixel, that OpenCV 4 tells apart
WEIGHT_BITS = 15
BLOCK_PIXELS, BLOCK_ROWS = 1024, 16  # from whose first column OpenCV 4 adds up
PIXELS_AT_A_TIME = 1 << 16  # whatever the size of the result, a few megabytes on the way
FAR = 1 << 30  # beyond the edge of every image


def warped_by_opencv(pixels: Pixels, matrix: Array, height: int, width: int, way: WarpWay) -> Pixels:
    """Return an image seen through a perspective matrix, its edge repeated; of OpenCV's axes.

    Args:
        pixels: uint8, (height, width) or (height, width, channels), not empty.
        matrix: float64 (3, 3): from the image to the result.
        height: of the result.
        width: of the result.
        way: "opencv": as the OpenCV that is installed. "opencv4": bit for bit as OpenCV 4 for x86-64. "opencv5": as
            OpenCV 5, but for 1 of 255 in one number of 5000, since its last bits depend on the processor.
    """
    installed = f"opencv{cv2.__version__.partition('.')[0]}"
    if way in ("opencv", installed):
        return cv2.warpPerspective(
            pixels, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )
    _, inverse = cv2.invert(matrix)
    warp = _rows_as_opencv_4 if way == "opencv4" else _rows_as_opencv_5
    result = np.empty((height, width, *pixels.shape[2:]), np.uint8)
    seen = pixels.reshape(*pixels.shape[:2], -1)
    step = max(1, PIXELS_AT_A_TIME // width)
    with np.errstate(all="ignore"):  # of a position without a depth, that is infinite or none, nothing is expected
        for start in range(0, height, step):
            rows = range(start, min(start + step, height))
            result[start : rows.stop] = warp(seen, inverse, rows, height, width).reshape(
                len(rows), width, *pixels.shape[2:]
            )
    return result


def _rows_as_opencv_4(pixels: Pixels, inverse: Array, rows: range, height: int, width: int) -> Pixels:
    y, x = np.arange(rows.start, rows.stop, dtype=np.float64)[:, np.newaxis], np.arange(width, dtype=np.float64)
    behind = x % min(BLOCK_PIXELS // min(BLOCK_ROWS, height), width)
    at_x, at_y, depth = ((m[0] * (x - behind) + m[1] * y + m[2]) + m[0] * behind for m in inverse)
    scale = np.where(depth != 0, STEPS / depth, 0)
    lowest, highest = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    columns, lines = (np.rint(np.nan_to_num(at * scale).clip(lowest, highest)).astype(np.int64) for at in (at_x, at_y))
    weights = _weights_of_opencv_4()[lines % STEPS, columns % STEPS]
    total = np.zeros((*columns.shape, pixels.shape[2]), np.int64)
    for number, taken in enumerate(_taps(pixels, lines // STEPS, columns // STEPS)):
        total += taken * weights[..., number, np.newaxis]
    return ((total + (1 << WEIGHT_BITS - 1)) >> WEIGHT_BITS).clip(0, 255).astype(np.uint8)


def _rows_as_opencv_5(pixels: Pixels, inverse: Array, rows: range, height: int, width: int) -> Pixels:
    y, x = np.arange(rows.start, rows.stop, dtype=np.float32)[:, np.newaxis], np.arange(width, dtype=np.float32)
    at_x, at_y, depth = (x * m[0] + (y * m[1] + m[2]) for m in inverse.astype(np.float32))
    at_x, at_y = (np.nan_to_num(at / depth).clip(-FAR, FAR) for at in (at_x, at_y))
    left, top = np.floor(at_x), np.floor(at_y)
    across, down = _cubic(at_x - left), _cubic(at_y - top)
    taps = iter(_taps(pixels, top.astype(np.int64), left.astype(np.int64)))
    total = np.zeros((*left.shape, pixels.shape[2]), np.float32)
    for line in range(TAPS):
        along = np.zeros_like(total)
        for column in range(TAPS):
            along += next(taps) * across[..., column, np.newaxis]
        total += along * down[..., line, np.newaxis]
    return np.rint(total).clip(0, 255).astype(np.uint8)


def _taps(pixels: Pixels, top: Array, left: Array) -> Any:
    """Yield the pixels around positions: four lines of four, from one before the position on; beyond the edge, its."""
    height, width = pixels.shape[:2]
    for line in range(TAPS):
        rows = (top + (line - 1)).clip(0, height - 1)
        for column in range(TAPS):
            yield pixels[rows, (left + (column - 1)).clip(0, width - 1)]


def _cubic(parts: Array) -> Array:
    """Return the four weights of positions between two pixels, as OpenCV's ``interpolateCubic`` computes them."""
    one = np.float32(1)
    before, rest = parts + one, one - parts
    first = ((SHARPNESS * before - 5 * SHARPNESS) * before + 8 * SHARPNESS) * before - 4 * SHARPNESS
    second = ((SHARPNESS + 2) * parts - (SHARPNESS + 3)) * parts * parts + one
    third = ((SHARPNESS + 2) * rest - (SHARPNESS + 3)) * rest * rest + one
    return np.stack([first, second, third, one - first - second - third], axis=-1)


@cache
def _weights_of_opencv_4() -> Array:
    """Return the weights of 4 x 4 pixels, (steps down, steps across, 16), which add up to 2**15: ``initInterTab2D``.

    What rounding has added or taken is put right at the largest of the four in the middle, or the smallest.
    """
    along = _cubic(np.arange(STEPS, dtype=np.float32) / np.float32(STEPS))
    both = along[:, np.newaxis, :, np.newaxis] * along[np.newaxis, :, np.newaxis, :]
    weights = np.rint(both * np.float32(1 << WEIGHT_BITS)).clip(-32768, 32767).astype(np.int64)
    middle = [(2, 2), (2, 3), (3, 2), (3, 3)]  # as OpenCV counts it, one too far
    for table in weights.reshape(-1, TAPS, TAPS):
        excess = table.sum() - (1 << WEIGHT_BITS)
        chosen = max if excess < 0 else min
        table[chosen(middle, key=lambda at: table[at])] -= excess
    return weights.reshape(STEPS, STEPS, TAPS * TAPS)
