"""Size and parts of images as torch tensors, on the CPU or a GPU alike: see ``requests`` for what an image is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch

from fastpipe.contract import Backend, Between, Request
from fastpipe.errors import ConfigError, KernelError
from fastpipe.summaries import summarize

from ..image.bases import PillowFilter, PillowResize, Sized, box_within, fitted, padded_size, side_of
from ..image.requests import LARGEST_SIDE, Side
from ..ranges import MOST_PIXELS, MaxPixels, check_pixels, check_size, fits, numbers_of
from .requests import PerTensor, image_of

__all__ = [
    "CopyMakeBorderTensor",
    "CropTensor",
    "PillowResizeTensor",
    "ResizePadTensor",
    "ResizeTensor",
    "WarpAffineTensor",
]

PIXELS_AT_A_TIME = 1 << 20  # of a result whose positions are computed one by one: 100 MB of them at most


# ---- size ------------------------------------------------------------------------------------------------------------


class ResizeTensor(Sized, PerTensor):
    """An image of another size, bilinear, as ``torch.nn.functional.interpolate`` without antialiasing: floats.

    Pixel centers are where OpenCV, Pillow and torch (``align_corners=False``) have them. Float16 and bfloat16 stay what
    they are; all else becomes float32, and nothing is rounded.

    Args:
        resize_h: height of the results.
        resize_w: width of the results.
        max_pixels: what is larger is not made: a ConfigError, or for an image of more than four channels a KernelError.
    """

    keeps_input = True

    def run(self, request: Request) -> None:
        image = image_of(request, self)
        check_pixels(self, *self.size, image.shape[1], self.max_pixels)
        request["result"] = _resized(_floats(image), self.size)


class PillowResizeTensor(PillowResize, PerTensor):
    """A uint8 image of another size, equal to Pillow's ``resize(..., BILINEAR)``, which smooths what becomes smaller.

    On the CPU Pillow does it, channel by channel, so that BGR is as good as RGB; on a GPU ``fastpipe.kernels.cuda``
    does, with the same bits.

    Args:
        resize_h: height of the results.
        resize_w: width of the results.
        filter: "pillow", "pillow12" or "pillow13", as of ``PillowResizeMat``.
        max_pixels: a larger size is a ConfigError.

    Raises:
        KernelError: if the tensor is not uint8, or there are neither one nor three channels.
        MissingExtra: if Pillow is not installed; for a request on a GPU, if CuPy is not.
    """

    keeps_input = True

    def __init__(
        self,
        *,
        resize_h: Side,
        resize_w: Side,
        filter: PillowFilter = "pillow",
        max_pixels: MaxPixels = MOST_PIXELS,
    ) -> None:
        super().__init__(resize_h=resize_h, resize_w=resize_w, filter=filter, max_pixels=max_pixels)
        self._workspaces: dict[int, Any] = {}  # of the GPUs that images came on

    def run(self, request: Request) -> None:
        image = image_of(request, self)
        channels = image.shape[1]
        if image.dtype != torch.uint8 or channels not in (1, 3):
            raise KernelError(
                f"PillowResizeTensor: expected uint8 of shape (1, 1 or 3, height, width), got {image.dtype} "
                f"of shape {tuple(image.shape)}"
            )
        if image.is_cuda:
            request["result"] = self._on_gpu(image)
            return
        pixels = np.ascontiguousarray(image[0].permute(1, 2, 0).numpy())
        planes = self.resized(pixels).transpose(2, 0, 1)
        request["result"] = torch.from_numpy(np.array(planes[np.newaxis], order="C"))

    def _on_gpu(self, image: torch.Tensor) -> torch.Tensor:
        from fastpipe.kernels import cuda

        pixels = image[0].permute(1, 2, 0)
        is_gray = pixels.shape[2] == 1
        given = pixels[..., 0] if is_gray else pixels
        color: Literal["gray", "bgr"] = "gray" if is_gray else "bgr"  # which of the two three channels are is all one
        number = image.get_device()
        if number not in self._workspaces:
            self._workspaces[number] = cuda.Workspace(number)
        workspace = self._workspaces[number]
        way: Literal["pillow", "pillow13"] = "pillow13" if self._pillow.filter == "pillow13" else "pillow"
        whole: torch.Tensor = workspace.resize_normalize(
            [given], *self.size, filter=way, source=color, target=color, dtype="float32"
        )
        return whole.to(torch.uint8)  # exact: the kernel has rounded


class ResizePadTensor(PerTensor):
    """An image resized as by ``ResizeTensor`` to fit into ``max_h`` x ``max_w``, ratio kept, and padded to that size.

    The padding is at the right and bottom, as ``ResizePadMat`` has it, with the same sizes. Sets ``inverse_trans``: a
    callable, (x, y) of the result -> (x, y) of this step's input.

    Args:
        max_h: height of the result.
        max_w: width of the result.
        resize_h: another name for ``max_h``.
        resize_w: another name for ``max_w``.
        pad_value: of the padding, one number or one per channel, within the range of the result's dtype.
        max_pixels: what is larger is not made: a ConfigError, or for an image of more than four channels a KernelError.
    """

    keeps_input = True

    def __init__(
        self,
        *,
        max_h: Side | None = None,
        max_w: Side | None = None,
        resize_h: Side | None = None,
        resize_w: Side | None = None,
        pad_value: Sequence[float] = (0.0,),
        max_pixels: MaxPixels = MOST_PIXELS,
    ) -> None:
        super().__init__()
        problems = _pad_value_problems(self, pad_value)
        self.size = padded_size(self, (max_h, resize_h), (max_w, resize_w), problems, max_pixels)
        self.max_pixels = max_pixels
        self.pad_value = tuple(pad_value)

    def run(self, request: Request) -> None:
        image = _floats(image_of(request, self))
        height, width = image.shape[2:]
        new_height, new_width = fitted(height, width, *self.size)
        result = _filled(image, self.size, self.pad_value, self)
        result[..., :new_height, :new_width] = _resized(image, (new_height, new_width))
        request["result"] = result
        request["inverse_trans"] = _Scaled(width / new_width, height / new_height, (height, width))


class _Scaled:
    """Where a point of a resized image was in the source; see ``InverseTransform`` of the CPU's images."""

    def __init__(self, scale_x: float, scale_y: float, source_size: tuple[int, int]) -> None:
        self.scale_x, self.scale_y, self.source_size = scale_x, scale_y, source_size

    def __call__(self, x: Any, y: Any) -> tuple[Any, Any]:
        return x * self.scale_x, y * self.scale_y


# ---- parts of an image -----------------------------------------------------------------------------------------------


class CropTensor(PerTensor):
    """The part of the image inside the request's ``box``: left, top, right, bottom, in pixels; a copy.

    Right and bottom are not included; numbers with a fraction are rounded.

    Raises:
        KeyError: if a request has no ``box``.
        ValueError: if a box is empty, or not inside the image.
    """

    keeps_input = True

    def run(self, request: Request) -> None:
        image = image_of(request, self)
        rows, columns = box_within(request, self, *image.shape[2:])
        request["result"] = image[..., rows, columns].clone()


class CopyMakeBorderTensor(PerTensor):
    """An image with a border of one color around it, same dtype.

    Args:
        top: rows above; the request's own ``top`` has precedence, and so for the others.
        bottom: rows below.
        left: columns to the left.
        right: columns to the right.
        pad_value: one number, or one for each channel, within the range of the tensor's dtype; rounded for integers.
        max_pixels: a request for a larger image fails before anything is allocated for it.

    Raises:
        ValueError: if a request's own number is no whole number from 0 to 1048576.
        KernelError: if ``pad_value`` is no number of the tensor's dtype, or the result has more than ``max_pixels``.
    """

    keeps_input = True

    def __init__(
        self,
        *,
        top: Annotated[int, Between(0, LARGEST_SIDE)] = 0,
        bottom: Annotated[int, Between(0, LARGEST_SIDE)] = 0,
        left: Annotated[int, Between(0, LARGEST_SIDE)] = 0,
        right: Annotated[int, Between(0, LARGEST_SIDE)] = 0,
        pad_value: Sequence[float] = (0.0,),
        max_pixels: MaxPixels = MOST_PIXELS,
    ) -> None:
        super().__init__()
        if problems := _pad_value_problems(self, pad_value):
            raise ConfigError(*problems)
        check_size(self, 1 + top + bottom, 1 + left + right, max_pixels)
        self.max_pixels = max_pixels
        self.border = {"top": top, "bottom": bottom, "left": left, "right": right}
        self.pad_value = tuple(pad_value)

    def run(self, request: Request) -> None:
        image = image_of(request, self)
        border = {side: side_of(self, side, request.get(side, size), 0) for side, size in self.border.items()}
        height, width = image.shape[2:]
        size = (height + border["top"] + border["bottom"], width + border["left"] + border["right"])
        result = _filled(image, size, self.pad_value, self)
        result[..., border["top"] : border["top"] + height, border["left"] : border["left"] + width] = image
        request["result"] = result


class WarpAffineTensor(PerTensor):
    """An image seen through the request's ``affine_matrix``, bilinear: floats, as for ``ResizeTensor``.

    The matrix is 2 x 3, and maps (x, y, 1) of the image to (x, y) of the result, as for ``cv2.warpAffine``. Where no
    image is, there is ``pad_value``; at the edge the two are blended, as OpenCV does.

    Args:
        target_h: height of the result.
        target_w: width of the result.
        pad_value: one number for all channels, within the range of the result's dtype.
        warp: "opencv5": as OpenCV 5, which computes with float32; of 255, the results differ by at most 0.1. "opencv4":
            as OpenCV 4, which rounds where a pixel comes from to 1/32 of a pixel; by at most 0.001.
        max_pixels: what is larger is not made: a ConfigError, or for an image of more than four channels a KernelError.

    Raises:
        KeyError: if a request has no ``affine_matrix``.
        ValueError: if it is not 2 x 3, or cannot be inverted.
        KernelError: if ``pad_value`` is no number of the result's dtype.
    """

    keeps_input = True

    def __init__(
        self,
        *,
        target_h: Side,
        target_w: Side,
        pad_value: float = 0.0,
        warp: Literal["opencv5", "opencv4"] = "opencv5",
        max_pixels: MaxPixels = MOST_PIXELS,
    ) -> None:
        super().__init__()
        if problems := _pad_value_problems(self, [pad_value]):
            raise ConfigError(*problems)
        check_size(self, target_h, target_w, max_pixels)
        self.max_pixels = max_pixels
        self.size = (target_h, target_w)
        self.pad_value = pad_value
        self.warp = warp

    def run(self, request: Request) -> None:
        image = _floats(image_of(request, self))
        check_pixels(self, *self.size, image.shape[1], self.max_pixels)
        _as(self.pad_value, image, self)
        given = request["affine_matrix"]
        matrix = numbers_of(given.cpu() if isinstance(given, torch.Tensor) else given, np.float64)
        if (
            matrix is None
            or matrix.shape != (2, 3)
            or not np.isfinite(matrix).all()
            or abs(np.linalg.det(matrix[:, :2])) < 1e-12
        ):
            raise ValueError(
                f"WarpAffineTensor: expected a matrix of 2 x 3 that has an inverse, got {summarize(given)}"
            )
        warped = self._as_opencv_4(image, matrix) if self.warp == "opencv4" else self._finely(image, matrix)
        request["result"] = warped.to(image.dtype)

    def _finely(self, image: torch.Tensor, matrix: Any) -> torch.Tensor:
        (height, width), (new_height, new_width) = image.shape[2:], self.size
        # From pixels of the result to pixels of the image, and both to the scale from -1 to 1 that grid_sample has,
        # whose ends are the outer edges of the outermost pixels.
        inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
        scaled = np.linalg.inv(_to_pixels(width, height)) @ inverse @ _to_pixels(new_width, new_height)
        theta = torch.tensor(scaled[np.newaxis, :2], dtype=torch.float32).to(image.device, non_blocking=True)
        grid = torch.nn.functional.affine_grid(theta, [1, 1, new_height, new_width], align_corners=False)
        warped = torch.nn.functional.grid_sample(
            image.float() - self.pad_value, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        return warped + self.pad_value

    def _as_opencv_4(self, image: torch.Tensor, matrix: Any) -> torch.Tensor:
        height, width = image.shape[2:]
        new_height, new_width = self.size
        pixels = image[0].float()
        result = torch.zeros((image.shape[1], *self.size), device=image.device)
        step = max(1, PIXELS_AT_A_TIME // new_width)
        for start in range(0, new_height, step):
            rows = range(start, min(start + step, new_height))
            y, x = _sources_of_opencv_4(matrix, rows, new_width)
            top, down, is_line = _taps(y, height, image.device)
            left, across, is_column = _taps(x, width, image.device)
            for line in range(2):
                for column in range(2):
                    is_inside = is_line[line] & is_column[column]
                    found = torch.where(is_inside, pixels[:, top[line], left[column]], self.pad_value)
                    result[:, start : rows.stop] += found * (down[line] * across[column])
        return result[None]


# ---- shared ----------------------------------------------------------------------------------------------------------


def _floats(image: torch.Tensor) -> torch.Tensor:
    return image if image.dtype in (torch.float32, torch.float16, torch.bfloat16) else image.float()


def _resized(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return torch.nn.functional.interpolate(image, size, mode="bilinear", align_corners=False)


def _filled(
    image: torch.Tensor,
    size: tuple[int, int],
    value: tuple[float, ...],
    backend: ResizePadTensor | CopyMakeBorderTensor,
) -> torch.Tensor:
    """Return a new image of one color."""
    channels = image.shape[1]
    check_pixels(backend, *size, channels, backend.max_pixels)
    if len(value) not in (1, channels):
        raise KernelError(f"{type(backend).__name__}: expected {len(value)} channels, as pad_value has, got {channels}")
    if len(value) == 1:
        return image.new_full((1, channels, *size), _as(value[0], image, backend))
    filled = image.new_empty((1, channels, *size))
    for channel, number in enumerate(value):
        filled[:, channel] = _as(number, image, backend)
    return filled


def _as(number: float, image: torch.Tensor, backend: Backend) -> float | int:
    """Return a padding's number as one of the image's dtype, which torch would wrap around, or make infinite."""
    lowest: float
    highest: float
    if image.dtype == torch.bool:
        lowest, highest = 0, 1
    else:
        limits = torch.finfo(image.dtype) if image.is_floating_point() else torch.iinfo(image.dtype)
        lowest, highest = limits.min, limits.max
    rounded = number if image.is_floating_point() or not math.isfinite(number) else math.floor(number + 0.5)
    if not fits(rounded, lowest, highest):
        raise KernelError(
            f"{type(backend).__name__}: pad_value must be between {lowest} and {highest} for {image.dtype}, "
            f"got {number}"
        )
    return rounded


def _pad_value_problems(backend: Backend, pad_value: Sequence[float]) -> list[str]:
    if not pad_value:
        return [f"{type(backend).__name__}: pad_value must have a number, or one for each channel"]
    if not all(map(math.isfinite, pad_value)):
        return [f"{type(backend).__name__}: pad_value must be finite, got {pad_value}"]
    return []


def _to_pixels(width: int, height: int) -> Any:
    """Return the matrix from the scale -1 to 1 to the positions of pixels, whole numbers at their centers."""
    return np.array([[width / 2, 0, (width - 1) / 2], [0, height / 2, (height - 1) / 2], [0, 0, 1]])


def _sources_of_opencv_4(matrix: Any, rows: range, width: int) -> tuple[Any, Any]:
    """Return from which y and x of an image each pixel of some rows comes, in 32nds of a pixel: int64, (rows, width).

    OpenCV rounds what a column adds, and where a row begins, to 1/1024 of a pixel, and then their sum.
    """
    (a, b, c), (d, e, f) = matrix.tolist()
    determinant = a * e - b * d
    a, b, d, e = e / determinant, -b / determinant, -d / determinant, a / determinant
    x, y = np.arange(width), np.arange(rows.start, rows.stop)[:, np.newaxis]
    limits = np.iinfo(np.int32)

    def whole(numbers: Any) -> Any:
        return np.rint(numbers * 1024).clip(limits.min, limits.max).astype(np.int64)

    at_y = whole(e * y - d * c - e * f) + whole(d * x)
    at_x = whole(b * y - a * c - b * f) + whole(a * x)
    return (at_y + 16) >> 5, (at_x + 16) >> 5


def _taps(source: Any, side: int, device: torch.device) -> tuple[list[Any], list[Any], list[Any]]:
    """Return, for positions in 32nds of a pixel, the two pixels beside each, their weights, and which are inside."""
    positions = torch.from_numpy(source).to(device, non_blocking=True)
    part = (positions % 32).float() / 32
    beside = [positions // 32, positions // 32 + 1]
    is_inside = [(number >= 0) & (number < side) for number in beside]
    return [number.clamp(0, side - 1) for number in beside], [1 - part, part], is_inside
