"""OpenCV's ``resize``, of whole images and of those that a decoder has made smaller."""

from __future__ import annotations

import cv2
import numpy as np

from fastpipe.errors import KernelError

from .bases import Interpolation
from .requests import Pixels

__all__ = ["resized_by_opencv"]

_OPENCV_NAMES: dict[Interpolation, int] = {
    "linear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "cubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
}


def resized_by_opencv(
    pixels: Pixels,
    height: int,
    width: int,
    interpolation: Interpolation,
    extent: tuple[float, float] | None = None,
) -> Pixels:
    """Return pixels at another size, of as many axes.

    Args:
        pixels: of the image.
        height: of the result.
        width: of the result.
        interpolation: how.
        extent: how many of its rows and columns are resized; None: all.

    Raises:
        KernelError: if OpenCV cannot: of more than four channels it takes no areas, and never more than 128.
    """
    try:
        return _resized(pixels, height, width, _OPENCV_NAMES[interpolation], extent)
    except cv2.error as error:
        said = f"interpolation = {interpolation!r}: OpenCV cannot resize an image of shape {pixels.shape} to "
        raise KernelError(f"{said}{height} x {width}: {error}") from error


def _resized(pixels: Pixels, height: int, width: int, way: int, extent: tuple[float, float] | None) -> Pixels:
    if extent is None or extent == pixels.shape[:2]:
        resized = cv2.resize(pixels, (width, height), interpolation=way)
    else:  # only by factors can OpenCV be told of a part of a pixel; what it makes of the rest may be one row too many
        factor_y, factor_x = height / extent[0], width / extent[1]
        larger = cv2.resize(pixels, None, fx=factor_x, fy=factor_y, interpolation=way)
        resized = np.ascontiguousarray(larger[:height, :width])
    return resized.reshape(height, width, *pixels.shape[2:])  # OpenCV drops an axis of one channel
