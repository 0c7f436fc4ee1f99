"""What image backends for NumPy's arrays share with those for torch's tensors: options for sizes, boxes, Pillow."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from fastpipe.contract import Backend, PerRequest, Request
from fastpipe.errors import ConfigError, MissingExtra
from fastpipe.summaries import summarize

from ..ranges import MOST_PIXELS, MaxPixels, box_of, check_size
from .requests import LARGEST_SIDE, Pixels, Side

__all__ = ["Interpolation", "Pillow", "PillowResize", "Sized", "box_within", "fitted", "padded_size", "side_of"]


_Choice = tuple[int | None, int | None]


class Sized(PerRequest):
    """Base: results have one size, ``resize_h`` x ``resize_w``."""

    def __init__(self, *, resize_h: Side, resize_w: Side, max_pixels: MaxPixels = MOST_PIXELS) -> None:
        super().__init__()
        check_size(self, resize_h, resize_w, max_pixels)
        self.size = (resize_h, resize_w)
        self.max_pixels = max_pixels

    def least_size(self, request: Request, height: int, width: int) -> tuple[int, int]:
        """Return how high and wide an image of ``height`` x ``width`` has to be, at least, when it comes here."""
        return self.size


Interpolation = Literal["linear", "area", "cubic", "lanczos"]

# By Pillow's names. Its box filter is the mean over the area of each pixel.
_PILLOW_NAMES: dict[Interpolation, str] = {
    "linear": "BILINEAR",
    "area": "BOX",
    "cubic": "BICUBIC",
    "lanczos": "LANCZOS",
}


class Pillow:
    """Pillow's ``resize``.

    Args:
        backend: whose name an error has.
        interpolation: how.

    Raises:
        MissingExtra: if Pillow is not installed.
    """

    def __init__(self, backend: Backend, interpolation: Interpolation) -> None:
        try:
            import PIL.Image
        except ImportError as error:
            raise MissingExtra(type(backend).__name__, "cpu", error) from error
        self._image = PIL.Image
        self._filter = PIL.Image.Resampling[_PILLOW_NAMES[interpolation]]
        self.version = int(PIL.__version__.partition(".")[0])

    def resized(self, pixels: Pixels, height: int, width: int, extent: tuple[float, float] | None = None) -> Pixels:
        """Return pixels of one or three channels at another size; perhaps read-only.

        Args:
            pixels: of the image.
            height: of the result.
            width: of the result.
            extent: how many of its rows and columns are resized; None: all.
        """
        image = self._image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
        box = None if extent is None else (0, 0, extent[1], extent[0])
        resized = image.resize((width, height), self._filter, box)
        return np.asarray(resized).reshape(height, width, *pixels.shape[2:])


class PillowResize(Sized):
    """Base: images get their size from Pillow."""

    def __init__(
        self,
        *,
        resize_h: Side,
        resize_w: Side,
        interpolation: Interpolation = "linear",
        max_pixels: MaxPixels = MOST_PIXELS,
    ) -> None:
        super().__init__(resize_h=resize_h, resize_w=resize_w, max_pixels=max_pixels)
        self._pillow = Pillow(self, interpolation)

    def resized(self, pixels: Pixels, extent: tuple[float, float] | None = None) -> Pixels:
        """Return pixels of one or three channels at the wanted size; perhaps read-only; see ``Pillow.resized``."""
        return self._pillow.resized(pixels, *self.size, extent)


def padded_size(
    backend: Backend, heights: _Choice, widths: _Choice, pad_problems: list[str], max_pixels: int
) -> tuple[int, int]:
    """Return what ``max_h`` and ``max_w`` say, or else ``resize_h`` and ``resize_w``; raise all that is wrong."""
    height, width = (wanted if wanted is not None else other for wanted, other in (heights, widths))
    problems = [
        f"{type(backend).__name__}: max_{side} (or resize_{side}) is missing"
        for side, value in (("h", height), ("w", width))
        if value is None
    ] + pad_problems
    if height is None or width is None or problems:
        raise ConfigError(*problems)
    check_size(backend, height, width, max_pixels)
    return height, width


def side_of(backend: Backend, name: str, value: Any, lowest: int) -> int:
    """Return a number of pixels that a request says, or raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not lowest <= value <= LARGEST_SIDE:
        expected = f"a whole number from {lowest} to {LARGEST_SIDE}"
        raise ValueError(f"{type(backend).__name__}: {name} must be {expected}, got {summarize(value)}")
    return int(value)


def box_within(request: Request, backend: Backend, height: int, width: int) -> tuple[slice, slice]:
    """Return the rows and columns that a request's ``box`` says, which has to be inside of its image."""
    box = request["box"]
    sides = box_of(box)
    if sides is None:
        raise ValueError(f"{type(backend).__name__}: expected a box of four numbers, got {summarize(box)}")
    left, top, right, bottom = sides
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(
            f"{type(backend).__name__}: expected a box (left, top, right, bottom) inside {width} x {height} pixels, "
            f"got {summarize(box)}"
        )
    return slice(top, bottom), slice(left, right)


def fitted(height: int, width: int, max_h: int, max_w: int) -> tuple[int, int]:
    """Return the size of an image of ``height`` x ``width``, made as large as it can be within ``max_h`` x ``max_w``.

    The side that limits becomes exactly its maximum; the other is rounded to the nearest whole number (halves up), at
    least 1. In whole numbers, so that no rounding of the ratio can move a size.
    """
    if max_h * width <= max_w * height:
        return max_h, max(1, (2 * width * max_h + height) // (2 * height))
    return max(1, (2 * height * max_w + width) // (2 * width)), max_w
