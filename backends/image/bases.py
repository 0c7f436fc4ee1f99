"""What image backends for NumPy's arrays share with those for torch's tensors: options for sizes, boxes, Pillow."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from fastpipe.contract import Backend, PerRequest, Request
from fastpipe.errors import ConfigError, KernelError, MissingExtra
from fastpipe.summaries import summarize

from ..ranges import MOST_PIXELS, MaxPixels, box_of, check_size
from .requests import LARGEST_SIDE, Pixels, Side

__all__ = [
    "Interpolation",
    "Pillow",
    "PillowFilter",
    "PillowResize",
    "Sized",
    "box_within",
    "fitted",
    "padded_size",
    "side_of",
]


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


PillowFilter = Literal["pillow", "pillow12", "pillow13"]

TALL = 100  # times as high as wide: what Pillow 12.2 and 12.3, and no other, resize along columns first


class Pillow:
    """Pillow's ``resize``.

    Pillow resizes along one axis, rounds to bytes, and then along the other. Up to 12, the first is along rows; from 13
    on along columns where the height shrinks by more than twice as many pixels as the width, which gives other bytes.
    (12.2 and 12.3 have an order of their own for images more than a hundred times as high as wide.)

    Args:
        backend: whose name an error has.
        interpolation: how.
        filter: "pillow": as the Pillow that is installed. "pillow12" and "pillow13": as Pillow up to 12.1, and as
            13, whichever is installed, by its own passes in the other order.

    Raises:
        MissingExtra: if Pillow is not installed.
    """

    def __init__(self, backend: Backend, interpolation: Interpolation, filter: PillowFilter = "pillow") -> None:
        try:
            import PIL.Image
        except ImportError as error:
            raise MissingExtra(type(backend).__name__, "cpu", error) from error
        self._backend = type(backend).__name__
        self._image = PIL.Image
        self._way = PIL.Image.Resampling[_PILLOW_NAMES[interpolation]]
        version, minor = (int(number) for number in PIL.__version__.split(".")[:2])
        installed: PillowFilter = "pillow13" if version >= 13 else "pillow12"
        self.filter: PillowFilter = installed if filter == "pillow" else filter
        """Of the two, the one whose bytes are given."""
        # Which order a later version takes was not tried.
        self._is_direct = filter == "pillow" or (filter == installed and version <= 13)
        self._is_direct_if_tall = self._is_direct and (filter == "pillow" or version != 12 or minor < 2)

    def resized(self, pixels: Pixels, height: int, width: int, extent: tuple[float, float] | None = None) -> Pixels:
        """Return pixels of one or three channels at another size; perhaps read-only.

        Args:
            pixels: of the image.
            height: of the result.
            width: of the result.
            extent: how many of its rows and columns are resized; None: all.

        Raises:
            KernelError: if Pillow would have to make too large an image on the way, in an order that is not its own.
        """
        image = self._image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
        rows, columns = extent or pixels.shape[:2]
        if self._is_direct_if_tall if image.height > TALL * image.width else self._is_direct:
            resized = image.resize((width, height), self._way, None if extent is None else (0, 0, columns, rows))
        elif self._goes_down_first(image.height - height, image.width - width):
            self._check_pixels(height, image.width)
            between = image.resize((image.width, height), self._way, (0, 0, image.width, rows))
            resized = between.resize((width, height), self._way, (0, 0, columns, height))
        else:
            self._check_pixels(image.height, width)
            between = image.resize((width, image.height), self._way, (0, 0, columns, image.height))
            resized = between.resize((width, height), self._way, (0, 0, width, rows))
        return np.asarray(resized).reshape(height, width, *pixels.shape[2:])

    def _goes_down_first(self, less_high: int, less_wide: int) -> bool:
        """Say whether columns come first, given by how many pixels each side shrinks: ImagingResampleInner's rule."""
        return self.filter == "pillow13" and less_high > 0 and less_high > 2 * less_wide

    def _check_pixels(self, height: int, width: int) -> None:
        if height * width > MOST_PIXELS:
            raise KernelError(
                f"{self._backend}: filter = {self.filter!r} would make an image of {height} x {width} pixels on the "
                f"way, more than {MOST_PIXELS}"
            )


class PillowResize(Sized):
    """Base: images get their size from Pillow."""

    def __init__(
        self,
        *,
        resize_h: Side,
        resize_w: Side,
        interpolation: Interpolation = "linear",
        filter: PillowFilter = "pillow",
        max_pixels: MaxPixels = MOST_PIXELS,
    ) -> None:
        super().__init__(resize_h=resize_h, resize_w=resize_w, max_pixels=max_pixels)
        self._pillow = Pillow(self, interpolation, filter)

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
