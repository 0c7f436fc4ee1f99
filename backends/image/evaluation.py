"""What classifiers are evaluated with: the shorter side made one length, and the middle cut out.

    {"backend": "S[DecodeMat,ResizeShorterMat,CenterCropMat,NormalizeMat]", "shorter_side": 256,
     "crop_h": 224, "crop_w": 224, "preset": "imagenet"}

These are the numbers of torchvision's ``Resize(256)``, ``CenterCrop(224)`` on Pillow's images, bit for bit.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from fastpipe.contract import PerRequest, Request
from fastpipe.errors import KernelError

from ..ranges import MOST_PIXELS, MaxPixels, check_pixels, check_size
from .bases import Interpolation, Pillow
from .opencv_resize import resized_by_opencv
from .requests import ScaledImage, Side, channels_of, extent_of, pixels_of, source_size_of

__all__ = ["CenterCropMat", "ResizeShorterMat"]


class ResizeShorterMat(PerRequest):
    """Pixels whose shorter side is ``shorter_side``, ratio kept.

    The longer side is ``int(shorter_side * longer / shorter)``, as torchvision has it: cut off, not rounded, so that
    256 makes 383 of 640 x 427.

    Args:
        shorter_side: of the results.
        filter: "pillow": as Pillow resizes, which smooths what it makes smaller, and as torchvision does with Pillow's
            images. "pillow12" and "pillow13": as that version, see ``PillowResizeMat``. "opencv": as ``ResizeMat``.
        interpolation: "linear", "area", "cubic" or "lanczos", as of ``PillowResizeMat`` and ``ResizeMat``.
        max_pixels: a request for a larger image fails before anything is allocated for it.

    Raises:
        MissingExtra: if Pillow is not installed, and filter is not "opencv".
        KernelError: if the result has more than ``max_pixels``, or for Pillow neither one nor three channels.
    """

    keeps_input = True
    takes_forms = (ScaledImage,)

    def __init__(
        self,
        *,
        shorter_side: Side,
        filter: Literal["pillow", "pillow12", "pillow13", "opencv"] = "pillow",
        interpolation: Interpolation = "linear",
        max_pixels: MaxPixels = MOST_PIXELS,
    ) -> None:
        check_size(self, shorter_side, shorter_side, max_pixels)
        self.shorter_side = shorter_side
        self.interpolation: Interpolation = interpolation
        self.max_pixels = max_pixels
        self._pillow = None if filter == "opencv" else Pillow(self, interpolation, filter)

    def run(self, request: Request) -> None:
        pixels = pixels_of(request, self)
        channels = channels_of(pixels)
        if self._pillow is not None and channels not in (1, 3):
            raise KernelError(f"ResizeShorterMat: expected 1 or 3 channels, got shape {pixels.shape}")
        height, width = self._size_of(*source_size_of(request, pixels))
        check_pixels(self, height, width, channels, self.max_pixels)
        extent = extent_of(request, pixels)
        if self._pillow is None:
            request["result"] = resized_by_opencv(pixels, height, width, self.interpolation, extent)
        else:
            request["result"] = np.array(self._pillow.resized(pixels, height, width, extent))  # can be written to

    def least_size(self, request: Request, height: int, width: int) -> tuple[int, int]:
        """Return the size that an image of ``height`` x ``width`` gets."""
        return self._size_of(height, width)

    def _size_of(self, height: int, width: int) -> tuple[int, int]:
        longer_side = int(self.shorter_side * max(height, width) / min(height, width))
        return (longer_side, self.shorter_side) if width <= height else (self.shorter_side, longer_side)


class CenterCropMat(PerRequest):
    """The middle of an image, a copy; black around an image that is smaller.

    Where it cannot be the exact middle, it is where torchvision's ``CenterCrop`` has it: half of what is left over,
    rounded to the even number.

    Args:
        crop_h: height of the results.
        crop_w: width of the results.
        max_pixels: what is larger is not made: a ConfigError, or for an image of more than four channels a KernelError.
    """

    keeps_input = True

    def __init__(self, *, crop_h: Side, crop_w: Side, max_pixels: MaxPixels = MOST_PIXELS) -> None:
        check_size(self, crop_h, crop_w, max_pixels)
        self.crop_h, self.crop_w = crop_h, crop_w
        self.max_pixels = max_pixels

    def run(self, request: Request) -> None:
        pixels = pixels_of(request, self)
        check_pixels(self, self.crop_h, self.crop_w, channels_of(pixels), self.max_pixels)
        request.pop("source_size", None)  # coordinates in the result are no longer those in that
        height, width = pixels.shape[:2]
        rows, target_rows = _middle(height, self.crop_h)
        columns, target_columns = _middle(width, self.crop_w)
        if height >= self.crop_h and width >= self.crop_w:
            request["result"] = pixels[rows, columns].copy()
            return
        result = np.zeros((self.crop_h, self.crop_w, *pixels.shape[2:]), pixels.dtype)
        result[target_rows, target_columns] = pixels[rows, columns]
        request["result"] = result


def _middle(length: int, wanted: int) -> tuple[slice, slice]:
    """Return which rows of an image are taken, and where in the result they are."""
    if length >= wanted:
        start = round((length - wanted) / 2)
        return slice(start, start + wanted), slice(None)
    start = (wanted - length) // 2
    return slice(None), slice(start, start + length)
