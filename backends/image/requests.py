"""What the image backends share: the pixels of a request, checked.

Images are NumPy arrays, uint8, (height, width, channels), or (height, width) for gray. A request's ``color`` says what
its three channels are, "bgr" (which is also meant if it is not there) or "rgb". Every image backend takes batches of
any size, request by request: one that fails, fails alone. None changes the array under ``data``; some hand it on as it
is, where there is nothing to do. Wrong pixels (not NumPy, not uint8, wrong number of channels) raise KernelError, with
what was expected and got.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastpipe.contract import Backend, Between, Request
from fastpipe.errors import KernelError
from fastpipe.kernels import cpu
from fastpipe.summaries import summarize

from ..odd_arrays import oddity

__all__ = [
    "LARGEST_SIDE",
    "Pixels",
    "ScaledImage",
    "Side",
    "channels_of",
    "color_of",
    "extent_of",
    "pixels_of",
    "source_size_of",
]

LARGEST_SIDE = 1_048_576
Side = Annotated[int, Between(1, LARGEST_SIDE)]
Pixels = npt.NDArray[Any]  # uint8, which OpenCV's annotations do not promise


class ScaledImage(NamedTuple):
    """An image that a decoder may have made smaller than it is in its file: a form of data, see ``takes_forms``.

    A step that takes it has a method ``least_size(request, height, width)``: how high and wide an image of that size
    has to be, at least, when it comes to the step with this request. It is decoded no smaller than that.
    """

    pixels: Pixels
    source_height: int
    """Of the whole image, upright."""
    source_width: int
    scale: float = 1.0
    """Height and width of the whole image times this, not rounded, are what the pixels show, from the left top corner.

    What there is beyond, at the right and bottom, less than a row and a column, shows nothing. Whoever takes it for a
    part of the image moves all the others.
    """


def pixels_of(request: Request, backend: Backend, *, channels: int | None = None) -> Pixels:
    """Return the request's pixels, checked."""
    pixels = request["data"]
    if type(pixels) is ScaledImage:
        pixels = pixels.pixels
    expected = f"(height, width, {channels or 'channels'})" + ("" if channels else " or (height, width)")
    odd = oddity(pixels)
    if odd or not isinstance(pixels, np.ndarray):
        got = odd or f"a {type(pixels).__name__}"
        raise KernelError(f"{type(backend).__name__}: expected a uint8 array of shape {expected}, got {got}")
    has_channels = pixels.ndim == 3 and (channels is None or pixels.shape[2] == channels)
    if pixels.dtype != np.uint8 or pixels.size == 0 or not (has_channels or (pixels.ndim == 2 and channels is None)):
        raise KernelError(
            f"{type(backend).__name__}: expected a uint8 array of shape {expected}, "
            f"got {pixels.dtype} of shape {pixels.shape}"
        )
    return pixels


def channels_of(pixels: Pixels) -> int:
    """Return how many channels there are; an image without the axis has one."""
    return pixels.shape[2] if pixels.ndim == 3 else 1


def source_size_of(request: Request, pixels: Pixels) -> tuple[int, int]:
    """Return height and width of the request's image as it was before a decoder made it smaller."""
    data = request["data"]
    if type(data) is ScaledImage:
        return data.source_height, data.source_width
    height, width = pixels.shape[:2]
    return height, width


def extent_of(request: Request, pixels: Pixels) -> tuple[float, float]:
    """Return how much of the request's pixels is image, in rows and columns; see ``ScaledImage.scale``."""
    data = request["data"]
    if type(data) is ScaledImage:
        return data.source_height * data.scale, data.source_width * data.scale
    height, width = pixels.shape[:2]
    return height, width


def color_of(request: Request, pixels: Pixels, backend: Backend) -> cpu.Color:
    """Return what the channels of a request are."""
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if channels == 1:
        return "gray"
    color = request.get("color", "bgr")
    if channels != 3 or color not in ("bgr", "rgb"):
        raise KernelError(
            f"{type(backend).__name__}: expected gray, or three channels in a request whose color is 'rgb' or 'bgr', "
            f"got shape {pixels.shape} and color {summarize(color)}"
        )
    return "bgr" if color == "bgr" else "rgb"
