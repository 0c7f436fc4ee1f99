"""Size and parts of images on the CPU: see ``requests`` for what an image is.

OpenCV's own pool of threads is left as the process has it. It takes part only in large images, where one instance
alone gains from it; a program whose instances keep all CPUs busy is better off with ``cv2.setNumThreads(1)``, once, at
its start: that is the program's to say, since it holds for the whole process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Annotated, Any

import cv2
import numpy as np

from fastpipe.contract import Backend, Between, PerRequest, Request, raise_failed, run_each
from fastpipe.errors import ConfigError, KernelError
from fastpipe.kernels import cpu
from fastpipe.summaries import summarize

from ..ranges import MOST_PIXELS, MaxPixels, check_pixels, fits, numbers_of
from .bases import Interpolation, PillowResize, Sized, box_within, fitted, padded_size, side_of
from .opencv_resize import resized_by_opencv
from .opencv_warp import WarpWay, warped_by_opencv
from .requests import LARGEST_SIDE, Pixels, ScaledImage, Side, channels_of, extent_of, pixels_of, source_size_of

__all__ = [
    "AlignMat",
    "CropMat",
    "CropResizeMat",
    "DynamicResizeMat",
    "InverseTransform",
    "LetterBoxMat",
    "PerspectiveTransformMat",
    "PillowResizeMat",
    "ResizeMat",
    "ResizePadMat",
]

# A thread that waits for the GIL asks for it after 5 ms (sys.getswitchinterval); no small cv2.resize takes so long by
# itself. A wrong guess, because something else held the thread up, costs 0.1 ms per image; the question asked again
# once a second, one wait in 200 images or so.
LOST_GIL_S = 0.004
SUBSTITUTE_FOR_S = 1.0

# ---- size ------------------------------------------------------------------------------------------------------------


class ResizeMat(Sized):
    """Pixels of another size, as ``cv2.resize`` makes them (which smooths what it makes smaller only by area).

    Beside a thread that runs Python all the time, ``cv2.resize`` takes 0.2 ms and then waits 5 ms for the GIL that it
    had released. Where that is noticed, ``fastpipe.kernels.cpu.resize`` takes over for a while: slower, but it keeps
    the GIL, and its results are the same. (That is tried out when the instance is built; otherwise OpenCV does it all,
    as it does all that is not linear.)

    Args:
        resize_h: height of the results.
        resize_w: width of the results.
        interpolation: "linear", "area", "cubic" or "lanczos": OpenCV's INTER_LINEAR, _AREA, _CUBIC and _LANCZOS4.
        max_pixels: what is larger is not made: a ConfigError, or for an image of more than four channels a KernelError.
    """

    keeps_input = True
    takes_forms = (ScaledImage,)

    def __init__(
        self,
        *,
        resize_h: Side,
        resize_w: Side,
        interpolation: Interpolation = "linear",
        max_pixels: MaxPixels = MOST_PIXELS,
    ) -> None:
        super().__init__(resize_h=resize_h, resize_w=resize_w, max_pixels=max_pixels)
        self.interpolation: Interpolation = interpolation
        may_have_one = interpolation == "linear" and resize_h * resize_w < cpu.GIL_KEPT_BELOW_PIXELS
        self._has_substitute = may_have_one and self._agrees_with_opencv()
        self._use_substitute_until_s = 0.0

    def run(self, request: Request) -> None:
        pixels = pixels_of(request, self)
        extent = extent_of(request, pixels)
        if not self._has_substitute or pixels.shape[2:] != (3,) or extent != pixels.shape[:2]:
            request["result"] = _resized(self, pixels, *self.size, extent)
            return
        started_s = monotonic()
        if started_s < self._use_substitute_until_s:
            request["result"] = cpu.resize(pixels, *self.size)
            return
        request["result"] = _resized(self, pixels, *self.size)
        ended_s = monotonic()
        if ended_s - started_s > LOST_GIL_S:
            self._use_substitute_until_s = ended_s + SUBSTITUTE_FOR_S

    def _agrees_with_opencv(self) -> bool:
        """Say whether the substitute is one: builds of OpenCV for other processors may round differently."""
        rng = np.random.default_rng(0)
        resize_h, resize_w = self.size
        for height, width in ((181, 243), (resize_h, 3 * resize_w), (2 * resize_h, 2 * resize_w)):
            noise = rng.integers(0, 256, (min(height, 1000), min(width, 1000), 3), dtype=np.uint8)
            expected = _resized(self, noise, *self.size)
            if not np.array_equal(cpu.resize(noise, *self.size), expected):
                return False
        return True


class DynamicResizeMat(PerRequest):
    """``ResizeMat`` to the request's own ``resize_h`` and ``resize_w``.

    Args:
        interpolation: as of ``ResizeMat``.
        max_pixels: a request for a larger image fails before anything is allocated for it.

    Raises:
        KeyError: if a request has not both.
        ValueError: if they are not whole numbers from 1 to 1048576.
        KernelError: if together they are more than ``max_pixels``.
    """

    keeps_input = True
    takes_forms = (ScaledImage,)

    def __init__(self, *, interpolation: Interpolation = "linear", max_pixels: MaxPixels = MOST_PIXELS) -> None:
        self.interpolation: Interpolation = interpolation
        self.max_pixels = max_pixels

    def run(self, request: Request) -> None:
        pixels = pixels_of(request, self)
        request["result"] = _resized(self, pixels, *self._size_of(request), extent_of(request, pixels))

    def least_size(self, request: Request, height: int, width: int) -> tuple[int, int]:
        """Return the size that the request wants; raise as ``run`` does if it says none."""
        return self._size_of(request)

    def _size_of(self, request: Request) -> tuple[int, int]:
        return side_of(self, "resize_h", request["resize_h"], 1), side_of(self, "resize_w", request["resize_w"], 1)


class PillowResizeMat(PillowResize):
    """Pixels of another size, equal to Pillow's ``resize``, which smooths what it makes smaller.

    Pillow does it, channel by channel, so that BGR is as good as RGB.

    Args:
        resize_h: height of the results.
        resize_w: width of the results.
        interpolation: "linear", "area", "cubic" or "lanczos": Pillow's BILINEAR, BOX, BICUBIC and LANCZOS.
        filter: "pillow": the bytes of the Pillow that is installed. "pillow12" or "pillow13": those of that version,
            whichever is installed; portraits that become smaller differ.
        max_pixels: a larger size is a ConfigError.

    Raises:
        KernelError: if there are neither one nor three channels, or the image between the passes would be too large.
    """

    keeps_input = True
    takes_forms = (ScaledImage,)

    def run(self, request: Request) -> None:
        pixels = pixels_of(request, self)
        if pixels.ndim == 3 and pixels.shape[2] not in (1, 3):
            raise KernelError(f"PillowResizeMat: expected 1 or 3 channels, got shape {pixels.shape}")
        resized = self.resized(pixels, extent_of(request, pixels))
        request["result"] = np.array(resized)  # a copy, which can be written to


@dataclass(frozen=True)
class InverseTransform:
    """Where a point of a resized and padded image was in the source: ``source_x, source_y = inverse_trans(x, y)``.

    Coordinates count from the image's left top corner, so that a box around all of one image becomes a box around all
    of the other. ``x`` and ``y`` are numbers or arrays; points in the padding come out outside of the source.
    """

    scale_x: float
    scale_y: float
    left: int = 0
    top: int = 0
    source_size: tuple[int, int] | None = None
    """Height and width of the source, in pixels, if known."""

    def __call__(self, x: Any, y: Any) -> tuple[Any, Any]:
        return (x - self.left) * self.scale_x, (y - self.top) * self.scale_y


class ResizePadMat(PerRequest):
    """Pixels resized to fit into ``max_h`` x ``max_w``, ratio kept, and padded to that size at the right and bottom.

    The side that limits becomes exactly its maximum; the other is rounded to the nearest whole number (halves up), at
    least 1. What is smaller is enlarged. Sets ``inverse_trans``, an InverseTransform back to this step's input; where
    ``DecodeMat`` has made that smaller, back to the whole image.

    Args:
        max_h: height of the result.
        max_w: width of the result.
        resize_h: another name for ``max_h``.
        resize_w: another name for ``max_w``.
        pad_value: of the padding, one number or one per channel, from 0 to 255.
        interpolation: as of ``ResizeMat``.
        max_pixels: a larger size is a ConfigError.
    """

    keeps_input = True
    takes_forms: tuple[type, ...] = (ScaledImage,)

    def __init__(
        self,
        *,
        max_h: Side | None = None,
        max_w: Side | None = None,
        resize_h: Side | None = None,
        resize_w: Side | None = None,
        pad_value: Annotated[Sequence[int], Between(0, 255)] = (0,),
        interpolation: Interpolation = "linear",
        max_pixels: MaxPixels = MOST_PIXELS,
    ) -> None:
        problems = []
        if not 1 <= len(pad_value) <= 4:
            problems.append(f"{type(self).__name__}: pad_value must have 1 to 4 numbers, got {pad_value}")
        if not all(fits(number, 0, 255) for number in pad_value):
            problems.append(f"{type(self).__name__}: pad_value must be between 0 and 255, got {pad_value}")
        self.max_h, self.max_w = padded_size(self, (max_h, resize_h), (max_w, resize_w), problems, max_pixels)
        self.interpolation: Interpolation = interpolation
        self.max_pixels = max_pixels
        self.pad_value = tuple(pad_value)

    def run(self, request: Request) -> None:
        pixels = pixels_of(request, self)
        channels = channels_of(pixels)
        if len(self.pad_value) not in (1, channels):
            raise KernelError(
                f"{type(self).__name__}: expected {len(self.pad_value)} channels, as pad_value has, got {channels}"
            )
        height, width = source_size_of(request, pixels)
        new_height, new_width = fitted(height, width, self.max_h, self.max_w)
        top, left = self.offsets(self.max_h - new_height, self.max_w - new_width)
        check_pixels(self, self.max_h, self.max_w, channels, self.max_pixels)
        resized = _resized(self, pixels, new_height, new_width, extent_of(request, pixels))
        padded = cv2.copyMakeBorder(
            resized,
            top,
            self.max_h - new_height - top,
            left,
            self.max_w - new_width - left,
            cv2.BORDER_CONSTANT,
            value=self.pad_value * (4 // len(self.pad_value)),
        )
        request["result"] = padded.reshape(padded.shape[:2] + pixels.shape[2:])
        request["inverse_trans"] = InverseTransform(width / new_width, height / new_height, left, top, (height, width))

    def least_size(self, request: Request, height: int, width: int) -> tuple[int, int]:
        """Return the size of an image of ``height`` x ``width`` within the padding."""
        return fitted(height, width, self.max_h, self.max_w)

    def offsets(self, spare_height: int, spare_width: int) -> tuple[int, int]:
        """Return how much of the padding is above and to the left."""
        return 0, 0


class LetterBoxMat(ResizePadMat):
    """``ResizePadMat`` with the image in the middle; of an odd padding, the larger half is at the right or bottom."""

    keeps_input = True
    takes_forms = (ScaledImage,)

    def offsets(self, spare_height: int, spare_width: int) -> tuple[int, int]:
        return spare_height // 2, spare_width // 2


class AlignMat(Backend):
    """Hands the data on and sets ``resize_h`` and ``resize_w``, one size for all requests of a batch.

    The height is ``resize_h``; the width is that of the widest image when resized to it, ratio kept, rounded up to a
    multiple of ``align``, at most ``max_w``. DynamicResizeMat then makes images of it that can be stacked. Since a
    narrow image is stretched to the width of the others, use ``bucket`` or ``max`` 1 where an answer must not depend
    on the company.

    Args:
        resize_h: the height to come.
        max_w: the greatest width, a multiple of ``align``.
        align: what the width is a multiple of.
    """

    keeps_input = True

    def __init__(self, *, resize_h: Side, max_w: Side, align: Side = 32) -> None:
        if max_w % align:
            raise ConfigError(f"AlignMat: max_w must be a multiple of align = {align}, got {max_w}")
        self.resize_h = resize_h
        self.max_w = max_w
        self.align = align

    def forward(self, batch: list[Request]) -> None:
        widths = [self.align]

        def measure(request: Request) -> None:
            height, width = pixels_of(request, self).shape[:2]
            steps = -(-self.resize_h * width // (height * self.align))
            widths.append(min(steps * self.align, self.max_w))

        def hand_on(request: Request) -> None:
            request.update(result=request["data"], resize_h=self.resize_h, resize_w=max(widths))

        raise_failed(run_each(batch, hand_on, run_each(batch, measure)), batch)


# ---- parts of an image -----------------------------------------------------------------------------------------------


class CropMat(PerRequest):
    """The part of the image inside the request's ``box``: left, top, right, bottom, in pixels; a copy.

    Right and bottom are not included; numbers with a fraction are rounded.

    Raises:
        KeyError: if a request has no ``box``.
        ValueError: if a box is empty, or not inside the image.
    """

    keeps_input = True

    def run(self, request: Request) -> None:
        request["result"] = _cropped(request, self).copy()
        request.pop("source_size", None)  # coordinates in the result are no longer those in that


class CropResizeMat(Sized):
    """``CropMat``, then ``ResizeMat``.

    Args:
        resize_h: height of the results.
        resize_w: width of the results.
        interpolation: as of ``ResizeMat``.
        max_pixels: a larger size is a ConfigError.
    """

    keeps_input = True

    def __init__(
        self,
        *,
        resize_h: Side,
        resize_w: Side,
        interpolation: Interpolation = "linear",
        max_pixels: MaxPixels = MOST_PIXELS,
    ) -> None:
        super().__init__(resize_h=resize_h, resize_w=resize_w, max_pixels=max_pixels)
        self.interpolation: Interpolation = interpolation

    def run(self, request: Request) -> None:
        request["result"] = _resized(self, _cropped(request, self), *self.size)
        request.pop("source_size", None)


class PerspectiveTransformMat(PerRequest):
    """The part of the image inside a quadrilateral, as an upright rectangle: what OCR does with a line of text.

    The request's ``quad`` (or ``box``) has four points (x, y), clockwise from the left top corner of the text; they may
    lie outside of the image, whose edge is then repeated. The result is as wide and high as the longer of the two
    edges, cut off to whole pixels; cubic interpolation.

    Args:
        rotate_tall: turn a result that is at least 1.5 times as high as wide by 90 degrees, anticlockwise: upright
            text, as PP-OCR does.
        warp: "opencv": as the OpenCV that is installed. "opencv4" and "opencv5": as that version, which differ by some
            levels; the one that is not installed takes much longer. See docs/images.md.
        max_pixels: a request for a larger image fails before anything is allocated for it.

    Raises:
        KeyError: if a request has neither ``quad`` nor ``box``.
        ValueError: if it is not four points, or they do not span an area.
        KernelError: if they span more than ``max_pixels``.
    """

    keeps_input = True

    def __init__(
        self, *, rotate_tall: bool = False, warp: WarpWay = "opencv", max_pixels: MaxPixels = MOST_PIXELS
    ) -> None:
        self.rotate_tall = rotate_tall
        self.warp: WarpWay = warp
        self.max_pixels = max_pixels

    def run(self, request: Request) -> None:
        pixels = pixels_of(request, self)
        given = request["quad"] if "quad" in request else request["box"]
        quad = numbers_of(given, np.float32)
        if quad is None or quad.shape != (4, 2) or not np.isfinite(quad).all():
            raise ValueError(f"PerspectiveTransformMat: expected four points (x, y), got {summarize(given)}")
        top, right, bottom, left = (float(np.linalg.norm(quad[(i + 1) % 4] - quad[i])) for i in range(4))
        width, height = int(max(top, bottom)), int(max(left, right))
        if not (1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE):
            raise ValueError(f"PerspectiveTransformMat: expected sides of 1 to {LARGEST_SIDE}, got {quad.tolist()}")
        check_pixels(self, height, width, channels_of(pixels), self.max_pixels)
        corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
        matrix = cv2.getPerspectiveTransform(quad, corners)
        result = warped_by_opencv(pixels, matrix, height, width, self.warp)
        if self.rotate_tall and height >= 1.5 * width:
            result = cv2.rotate(result, cv2.ROTATE_90_COUNTERCLOCKWISE)
        request["result"] = result.reshape(result.shape[:2] + pixels.shape[2:])


# ---- shared ----------------------------------------------------------------------------------------------------------


def _resized(
    backend: ResizeMat | CropResizeMat | DynamicResizeMat | ResizePadMat,
    pixels: Pixels,
    height: int,
    width: int,
    extent: tuple[float, float] | None = None,
) -> Pixels:
    check_pixels(backend, height, width, channels_of(pixels), backend.max_pixels)
    return resized_by_opencv(pixels, height, width, backend.interpolation, extent)


def _cropped(request: Request, backend: Backend) -> Pixels:
    """Return the part inside the request's box, as a view."""
    pixels = pixels_of(request, backend)
    return pixels[box_within(request, backend, *pixels.shape[:2])]
