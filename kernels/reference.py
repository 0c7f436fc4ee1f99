"""The kernels in plain NumPy: slow, obvious, and the judge of the others, which must give the same bits.

    batch = normalize(images, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], target="rgb")

Thread-safety: every function is reentrant; none keeps anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastpipe.errors import KernelError

from ._arguments import (
    CHANNELS,
    Array,
    Color,
    check_conversion,
    check_fill,
    check_levels,
    check_normalization,
    check_resize,
)

__all__ = [
    "Color",
    "convert_color",
    "normalize",
    "perspective",
    "resize",
    "resize_normalize",
    "resize_pillow",
    "taps",
    "warp",
]

# The weights of red, green and blue in gray (ITU-R BT.601) as OpenCV rounds them, in units of 1 / 2**15.
RED, GREEN, BLUE = 9798, 19235, 3735


def convert_color(image: Array, source: Color, target: Color, *, out: Array | None = None) -> Array:
    """Return the image with its channels in another order, as gray, or as three equal channels made of gray.

    Args:
        image: uint8, (h, w, 3), or (h, w) if ``source`` is gray; any strides. Not modified.
        source: what the channels of ``image`` are: "bgr", "rgb" or "gray".
        target: what they are to be. Gray is OpenCV's, bit for bit.
        out: where to write; C-contiguous, of the result's shape and dtype, sharing no memory with ``image``.

    Returns:
        ``out``, or a new C-contiguous uint8 array, (h, w, 3), or (h, w) if ``target`` is gray.

    Raises:
        KernelError: if shape, dtype or layout differ; the message has both, expected and got.
    """
    out = check_conversion(image, source, target, out)
    out[...] = _converted(image, source, target)
    return out


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
    """Return ``(image - mean) / std`` with the channels converted and moved to the front.

    The conversion is that of ``convert_color``; the rest is computed in float32 and rounded once if float16 is
    asked for (what is too large for it becomes infinity).

    Args:
        images: uint8, not modified, any strides: one image (h, w, 3), a batch (n, h, w, 3), or a list of images of
            one size, which is a batch too. Without the last axis if ``source`` is gray.
        mean: a number, or one for each channel of ``target``, in its order, on the scale 0-255.
        std: the same, none zero.
        source: what the channels of ``images`` are: "bgr", "rgb" or "gray".
        target: what they are to be.
        dtype: float32 or float16; by default that of ``out``, else float32.
        out: where to write; C-contiguous, of the result's shape and dtype.

    Returns:
        ``out``, or a new C-contiguous array: (c, h, w) for one image, (n, c, h, w) for a batch; c is 1 for gray.

    Raises:
        KernelError: if shape, dtype or layout differ, or a std is zero; the message has both, expected and got.
    """
    checked = check_normalization(images, mean, std, source, target, dtype, out)
    for image, image_chw in zip(checked.images, checked.batch_nchw, strict=True):
        converted = _converted(image, source, target)
        converted_chw = converted[np.newaxis] if converted.ndim == 2 else converted.transpose(2, 0, 1)
        for channel, plane in enumerate(converted_chw):
            with np.errstate(over="ignore"):  # infinity is the answer
                image_chw[channel] = (plane.astype(np.float32) - checked.mean[channel]) / checked.std[channel]
    return checked.out


def resize(image: Array, height: int, width: int, *, out: Array | None = None) -> Array:
    """Return the image at another size, bilinear, without smoothing what becomes smaller.

    In OpenCV's fixed-point arithmetic: on x86-64, ``cv2.resize`` gives the same bits; elsewhere it may differ by 1.

    Args:
        image: uint8, (h, w, 3), not empty; any strides. Not modified.
        height: of the result, at least 1.
        width: of the result, at least 1.
        out: where to write; C-contiguous, of the result's shape and dtype, sharing no memory with ``image``.

    Returns:
        ``out``, or a new C-contiguous uint8 array (height, width, 3).

    Raises:
        KernelError: if shape, dtype or layout differ; the message has both, expected and got.
    """
    out = check_resize(image, height, width, out)
    height, width = out.shape[:2]
    left, right, left_weight, right_weight = taps(image.shape[1], width, cut_at_edges=True)
    blended = image[:, left] * left_weight[:, np.newaxis] + image[:, right] * right_weight[:, np.newaxis]
    top, bottom, top_weight, bottom_weight = taps(image.shape[0], height, cut_at_edges=False)
    upper = ((blended[top] >> 4) * top_weight[:, np.newaxis, np.newaxis]) >> 16
    lower = ((blended[bottom] >> 4) * bottom_weight[:, np.newaxis, np.newaxis]) >> 16
    out[...] = (upper + lower + 2) >> 2
    return out


def taps(side: int, new_side: int, *, cut_at_edges: bool) -> Array:
    """Return which two of ``side`` pixels each of ``new_side`` pixels is made of, and the weight of each, times 2**11.

    Args:
        side: of the image.
        new_side: of the result.
        cut_at_edges: give all the weight to one pixel where the other would lie outside. The sum is the same, but not
            how it is rounded; OpenCV does it for columns, and repeats the pixel for rows.

    Returns:
        int64 of shape (4, new_side): first, second, weight of the first, weight of the second.
    """
    scale = 1 / (new_side / side)  # as OpenCV computes it; side / new_side may differ in the last bit
    position = ((np.arange(new_side) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(position)
    fraction = position - first
    if cut_at_edges:
        fraction[(first < 0) | (first >= side - 1)] = 0
        first = np.clip(first, 0, side - 1)
    weights = np.rint(np.stack([1 - fraction, fraction]) * np.float32(2**11))
    return np.stack([*np.clip([first, first + 1], 0, side - 1), *weights]).astype(np.int64)


def resize_pillow(image: Array, height: int, width: int, *, as_pillow_13: bool = False) -> Array:
    """Return the image at another size, bilinear, smoothing what becomes smaller: the bits of Pillow's BILINEAR.

    Pillow's arithmetic, from src/libImaging/Resample.c: weights in double, divided by their sum, rounded to 22 bits
    after the point; along rows first, rounded to bytes, then along columns. (Pillow for another processor than x86-64
    may round a weight differently.)

    Args:
        image: uint8, (h, w, 3) or (h, w), not empty; any strides. Not modified.
        height: of the result, at least 1.
        width: of the result, at least 1.
        as_pillow_13: along columns first where the height shrinks by more than twice as many pixels as the width, as
            Pillow does from 13 on.

    Returns:
        A new uint8 array (height, width, 3) or (height, width).

    Raises:
        KernelError: if shape or dtype differ; the message has both, expected and got.
    """
    seen = np.repeat(image[..., np.newaxis], 3, axis=2) if isinstance(image, np.ndarray) and image.ndim == 2 else image
    check_resize(seen, height, width, None)
    less_high, less_wide = seen.shape[0] - height, seen.shape[1] - width
    if as_pillow_13 and less_high > 0 and less_high > 2 * less_wide:
        resized = _resampled(_resampled(seen, height).transpose(1, 0, 2), width).transpose(1, 0, 2)
    else:
        resized = _resampled(_resampled(seen.transpose(1, 0, 2), width).transpose(1, 0, 2), height)
    return np.ascontiguousarray(resized[..., 0] if image.ndim == 2 else resized)


def _resampled(lines: Array, new_side: int) -> Array:
    """Return the first axis of a uint8 array at another length, as Pillow does."""
    side = len(lines)
    scale = side / new_side
    support = max(scale, 1.0)
    result = np.empty((new_side, *lines.shape[1:]), np.uint8)
    for at in range(new_side):
        center = (at + 0.5) * scale
        first = max(int(center - support + 0.5), 0)
        stop = min(int(center + support + 0.5), side)
        distance = np.abs((np.arange(first, stop) - center + 0.5) * (1.0 / support))
        weights = np.where(distance < 1.0, 1.0 - distance, 0.0)
        total = 0.0
        for weight in weights.tolist():  # in this order, which np.sum does not promise
            total += weight
        if total != 0.0:
            weights = weights / total
        fixed = (0.5 + weights * (1 << 22)).astype(np.int64)
        result[at] = np.minimum((np.tensordot(fixed, lines[first:stop].astype(np.int64), 1) + (1 << 21)) >> 22, 255)
    return result


def warp(
    image: Array,
    matrix: Array,
    height: int,
    width: int,
    *,
    border: str = "fill",
    fill: int | Sequence[int] = 0,
    as_opencv_4: bool = False,
) -> Array:
    """Return a part of an image that is seen through a perspective matrix, as an upright rectangle, bilinear.

    Positions are computed in float64 and weights rounded to 11 bits after the point. OpenCV 5 has float32 for both, so
    that its results differ by 1 here and there. OpenCV 4 rounds positions to 5 bits, which is more where the image is
    steep.

    Args:
        image: uint8, (h, w, 3), not empty; any strides. Not modified.
        matrix: (3, 3): from (x, y, 1) of the result to where that is in the image, times its third number.
        height: of the result, at least 1.
        width: of the result, at least 1.
        border: what lies outside of the image: "fill", or the pixel of its edge that is nearest, "repeat".
        fill: a byte, or one for each channel.
        as_opencv_4: round positions as ``cv2.warpPerspective`` up to 4 does: on x86-64, its bits.

    Returns:
        A new uint8 array (height, width, 3).

    Raises:
        KernelError: if shape or dtype differ; the message has both, expected and got.
    """
    out = check_resize(image, height, width, None)
    m = np.asarray(matrix, np.float64)
    y, x = np.indices((height, width)).astype(np.float64)
    with np.errstate(all="ignore"):  # a position may be infinite, or none at all
        if as_opencv_4:  # it adds up from the start of a block of columns on
            start = x - x % min(1024 // min(16, height), width)
            columns, rows, depth = (m[i, 0] * start + m[i, 1] * y + m[i, 2] + m[i, 0] * (x - start) for i in range(3))
            scale = np.where(depth != 0, 32 / depth, 0)
            columns, rows = np.rint(columns * scale) / 32, np.rint(rows * scale) / 32
        else:
            depth = m[2, 0] * x + m[2, 1] * y + m[2, 2]
            columns = (m[0, 0] * x + m[0, 1] * y + m[0, 2]) / depth
            rows = (m[1, 0] * x + m[1, 1] * y + m[1, 2]) / depth
    sides = image.shape[:2]
    first, weight = [], []
    for position, side in ((rows, sides[0]), (columns, sides[1])):
        inside = np.fmin(np.fmax(position, -1.0), float(side))
        first.append(np.floor(inside).astype(np.int64))
        weight.append(np.rint((inside - np.floor(inside)) * 2048).astype(np.int64)[..., np.newaxis])
    framed = np.empty((sides[0] + 3, sides[1] + 3, 3), np.int64)  # one before, two behind
    framed[:] = check_fill(fill, 3)
    framed[1:-2, 1:-2] = image
    if border == "repeat":
        framed = np.pad(image, ((1, 2), (1, 2), (0, 0)), mode="edge").astype(np.int64)
    top, left = first[0] + 1, first[1] + 1
    upper = framed[top, left] * (2048 - weight[1]) + framed[top, left + 1] * weight[1]
    lower = framed[top + 1, left] * (2048 - weight[1]) + framed[top + 1, left + 1] * weight[1]
    out[...] = (upper * (2048 - weight[0]) + lower * weight[0] + (1 << 21)) >> 22
    return out


def perspective(corners: npt.ArrayLike, height: int, width: int) -> Array:
    """Return the matrices of ``warp`` for quadrilaterals.

    Args:
        corners: (n, 4, 2): x and y of what becomes the left top, right top, right bottom and left bottom corner.
        height: of the results.
        width: of the results.

    Returns:
        float64 of shape (n, 3, 3). The corners of the result are (0, 0), (width, 0) and so on, as in OpenCV's examples.

    Raises:
        KernelError: if corners are not of that shape, or three of them lie on a line.
    """
    wanted = np.asarray(corners, np.float64)
    if wanted.ndim != 3 or wanted.shape[1:] != (4, 2):
        raise KernelError(f"corners: expected shape (n, 4, 2), got {wanted.shape}")
    system = np.zeros((len(wanted), 8, 8))
    for number, (x, y) in enumerate(((0, 0), (width, 0), (width, height), (0, height))):
        for axis in range(2):
            row = system[:, 2 * number + axis]
            row[:, 3 * axis : 3 * axis + 3] = (x, y, 1)
            row[:, 6] = -wanted[:, number, axis] * x
            row[:, 7] = -wanted[:, number, axis] * y
    try:
        solved = np.linalg.solve(system, wanted.reshape(-1, 8, 1))[..., 0]
    except np.linalg.LinAlgError:
        raise KernelError("corners: expected four that span an area") from None
    return np.concatenate([solved, np.ones((len(wanted), 1))], axis=1).reshape(-1, 3, 3)


def resize_normalize(
    images: Sequence[Array],
    height: int,
    width: int,
    *,
    filter: str,
    places: npt.ArrayLike | None = None,
    fill: int | Sequence[int] = 0,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    source: Color = "bgr",
    target: Color = "bgr",
    dtype: npt.DTypeLike | None = None,
) -> Array:
    """Resize images of any sizes to one, convert their colors and normalise, one after the other.

    Args:
        images: uint8, each (h, w, 3), or (h, w) if ``source`` is gray, none empty; any strides. Not modified.
        height: of the results.
        width: of the results.
        filter: "opencv", as ``resize``; "pillow" or "pillow13", as ``resize_pillow``.
        places: int array (n, 4): top, left, height and width of where each image goes; by default all of the result.
        fill: a byte, or one for each channel of ``target``: what is where no image is, before mean and std.
        mean: as for ``normalize``; so are all others.
        std: see there.
        source: see there.
        target: see there.
        dtype: see there.

    Returns:
        A new array (n, c, height, width).

    Raises:
        KernelError: if shape, dtype or layout differ; the message has both, expected and got.
    """
    whole = np.broadcast_to([0, 0, height, width], (len(images), 4)) if places is None else np.asarray(places)
    check_levels(mean, std, source, target)  # before the images are made, and the colors with it
    fills = check_fill(fill, CHANNELS[target])
    canvases = []
    for image, (top, left, new_height, new_width) in zip(images, whole.tolist(), strict=True):
        in_color = np.repeat(image[..., np.newaxis], 3, axis=2) if image.ndim == 2 else image
        if filter == "opencv":
            made = resize(in_color, new_height, new_width)
        else:
            made = resize_pillow(in_color, new_height, new_width, as_pillow_13=filter == "pillow13")
        converted = convert_color(made[..., 0] if image.ndim == 2 else made, source, target)
        canvas = np.empty((height, width, *converted.shape[2:]), np.uint8)
        canvas[...] = fills
        canvas[top : top + new_height, left : left + new_width] = converted
        canvases.append(canvas)
    return normalize(canvases, mean=mean, std=std, source=target, target=target, dtype=dtype)


def _converted(image: Array, source: Color, target: Color) -> Array:
    if source == target:
        return image
    if source == "gray":
        return np.repeat(image[..., np.newaxis], 3, axis=2)
    if target == "gray":
        blue, green, red = np.moveaxis((image if source == "bgr" else image[..., ::-1]).astype(np.int64), 2, 0)
        gray: Array = ((RED * red + GREEN * green + BLUE * blue + 2**14) >> 15).astype(np.uint8)
        return gray
    return image[..., ::-1]
