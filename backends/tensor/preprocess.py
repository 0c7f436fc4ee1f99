"""ResizeNormalizeTensor: images on a GPU, of different sizes, to what a model takes, in one launch for a batch."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch

from fastpipe.contract import Backend, Between, Request, raise_failed, run_each
from fastpipe.errors import ConfigError, KernelError
from fastpipe.kernels import cuda
from fastpipe.kernels._arguments import check_levels
from fastpipe.kernels._images import hand_rows, rows_of_pixels
from fastpipe.summaries import summarize

from ..gpu.devices import DeviceId, OnGpu
from ..gpu.handed_on import Pixels, Row
from ..gpu.streams import InstanceStream, hand_over
from ..odd_arrays import oddity
from ..presets import Preset, levels_of
from ..ranges import MOST_PIXELS, MaxPixels, check_results, check_size

__all__ = ["ResizeNormalizeTensor"]


_ROW = struct.Struct("<Qq8i")  # cuda.IMAGE; NumPy takes three times as long to make an array of rows


class _Image(NamedTuple):
    """An image of a batch that fits."""

    request: Request
    row: tuple[int, ...]  # of cuda.IMAGE
    pixels: torch.Tensor | Pixels  # that the row is about


class ResizeNormalizeTensor(OnGpu):
    """uint8 images on a GPU, each of its own size -> ``(pixels - mean) / std``, resized, of shape (1, channels, h, w).

    Resizing, color, arithmetic and the change of axes are one launch for the whole batch (one for each color that the
    requests come with); see ``fastpipe.kernels.cuda``, and ``NormalizeMat`` for the same without resizing on the CPU.

    **In**: torch tensors of shape (1, channels, height, width), or without the 1, with three channels or one, of any
    strides: those of ``DecodeTensor`` are read as they are. The request's ``color`` says what three channels are,
    "bgr" (which is also meant if it is not there) or "rgb".

    **Out**: a row of an array made for this batch; it keeps the batch's other rows in memory. A torch tensor gives up
    the GIL when it is dropped, which beside a thread that computes may take 5 ms to get back: ``array = "cupy"`` makes
    CuPy's arrays, which do not. (Finish with those, or synchronise, before you drop them: only torch keeps their
    memory for another stream.)

    Args:
        resize_h: height of the results.
        resize_w: width of the results.
        filter: "opencv": bilinear, as ``ResizeMat``. "pillow12" (or "pillow"): with antialiasing, as
            ``PillowResizeMat`` up to Pillow 12. "pillow13": as Pillow 13, which does the height first where that is
            quicker.
        color: what the channels are to be, "rgb", "bgr" or "gray"; by default what they are. Set in the request.
        mean: a number or one per channel of the result, in its order, on the scale 0-255; without it, 0.
        std: the same, none zero; without it, 1.
        preset: in place of both, the numbers of "imagenet", "clip" or "yolo"; see ``NormalizeMat``.
        dtype: of the result; computed in float32 and rounded once.
        array: whose the result is, "torch" or "cupy", which has no bfloat16.
        device_id: which GPU.
        device: the same in words: ``"cuda:1"``, several of them, or ``"all"``: each instance goes to the one that has
            the fewest. With neither, where the instance's other steps are, otherwise the first.
        max: the most images of a batch.
        max_pixels: a larger size is a ConfigError.

    Raises:
        ConfigError: if there is no such GPU, or mean and std do not fit the colors.
        MissingExtra: if CuPy is not installed.
        KernelError: for requests whose data is no such tensor.
    """

    keeps_input = True
    takes_forms = (Pixels,)
    offers_forms: tuple[type, ...] = (Row,)

    def __init__(
        self,
        *,
        resize_h: Annotated[int, Between(1, 32_768)],
        resize_w: Annotated[int, Between(1, 32_768)],
        filter: Literal["opencv", "pillow", "pillow12", "pillow13"] = "opencv",
        color: Literal["rgb", "bgr", "gray"] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        preset: Preset | None = None,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        array: Literal["torch", "cupy"] = "torch",
        device_id: DeviceId = None,
        device: list[str] | None = None,
        max: Annotated[int, Between(1, 4096)] = 64,
        max_pixels: MaxPixels = MOST_PIXELS,
    ) -> None:
        check_size(self, resize_h, resize_w, max_pixels)
        mean, std, color = levels_of("ResizeNormalizeTensor", preset, color, mean, std)
        self.max_batch = max
        self.height, self.width = resize_h, resize_w
        self.filter: cuda.Filter = "pillow" if filter == "pillow12" else filter
        self.color: cuda.Color | None = color
        # One number is that of every channel, also where gray comes between.
        self.mean: float | tuple[float, ...] = mean[0] if len(mean) == 1 else tuple(mean)
        self.std: float | tuple[float, ...] = std[0] if len(std) == 1 else tuple(std)
        try:
            check_levels(self.mean, self.std, color or "bgr", color or "bgr")
            check_results(mean, std, dtype)
        except (KernelError, ConfigError) as error:
            raise ConfigError(f"ResizeNormalizeTensor: {error}") from None
        if (array, dtype) == ("cupy", "bfloat16"):
            raise ConfigError("ResizeNormalizeTensor: CuPy has no bfloat16; take array = 'torch'")
        self.dtype = dtype
        self.array = array
        self._gives_rows = False  # see hand_on()
        if array != "torch":
            self.offers_forms = ()
        device_id = self._claim_gpu(device, device_id)
        self._stream = InstanceStream(device_id)
        self._workspace = cuda.Workspace(device_id, max_batch=max)
        self._workspace.prepare((dtype,))

    def forward(self, batch: list[Request]) -> None:
        """Launch the kernel for a batch.

        Raises:
            ItemErrors: for the requests that do not fit.
            RuntimeError: if the GPU fails.
        """
        pixels = rows_of_pixels(batch)
        if pixels is not None:
            rows, color = pixels
            with self._stream.entered() as current:
                out = self._run(color, batch, np.frombuffer(rows, cuda.IMAGE), current.handle)
                if current.is_outermost:
                    hand_over([out])
            return
        groups: dict[cuda.Color, list[_Image]] = {}

        def sort(request: Request) -> None:
            source, image = self._image(request)
            groups.setdefault(source, []).append(image)

        failed = run_each(batch, sort)
        if groups:
            with self._stream.entered() as current:
                made = []
                for source, images in groups.items():
                    packed = b"".join([_ROW.pack(*image.row) for image in images])
                    requests = [image.request for image in images]
                    made.append(self._run(source, requests, np.frombuffer(packed, cuda.IMAGE), current.handle))
                if current.is_outermost:
                    hand_over(made)
        raise_failed(failed, batch)

    def hand_on(self, form: type, taker: Backend) -> None:
        """Give the results of a batch as rows of one tensor."""
        self._gives_rows = True

    def close(self) -> None:
        """Let go of the kernels' memory; results stay valid."""
        super().close()
        del self._workspace

    def _image(self, request: Request) -> tuple[cuda.Color, _Image]:
        """Return a request's image, and what its channels are."""
        tensor = request["data"]
        if type(tensor) is Pixels:
            return tensor.color, _Image(request, tensor.row, tensor)
        odd = oddity(tensor)
        if odd or not isinstance(tensor, torch.Tensor):
            got = odd or f"a {type(tensor).__name__}"
            raise KernelError(f"ResizeNormalizeTensor: expected a torch tensor, got {got}")
        shape, strides = tensor.shape[-3:], tensor.stride()[-3:]
        color: cuda.Color = request.get("color", "bgr") if shape[:1] == (3,) else "gray"
        if (
            tensor.dtype != torch.uint8
            or tensor.device != self.device
            or (tensor.ndim != 3 and (tensor.ndim != 4 or tensor.shape[0] != 1))
            or shape[0] not in (1, 3)
            or 0 in shape
        ):
            raise KernelError(
                "ResizeNormalizeTensor: expected a uint8 tensor of shape (1, 3 or 1, height, width), or without the 1, "
                f"not empty, on {self.device}, got {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
            )
        if color not in ("rgb", "bgr", "gray"):
            got = str(summarize(color))
            raise KernelError(f"ResizeNormalizeTensor: expected a request whose color is 'rgb' or 'bgr', got {got}")
        _, height, width = shape
        channel_stride, row_stride, column_stride = strides if shape[0] == 3 else (0, *strides[1:])
        row = (tensor.data_ptr(), row_stride, height, width, column_stride, channel_stride, 0, 0, 0, 0)
        return color, _Image(request, row, tensor)

    def _empty(self, shape: tuple[int, ...]) -> Any:
        if self.array == "torch":
            return torch.empty(shape, dtype=getattr(torch, self.dtype), device=self.device)
        import cupy

        return cupy.empty(shape, self.dtype)  # on the stream's GPU, which is the current one

    def _run(self, source: cuda.Color, requests: list[Request], rows: Any, stream: int) -> Any:
        """Fill in the requests whose images, of which these are the rows, have one color; return their memory."""
        target = self.color or source
        channels = 1 if target == "gray" else 3
        out = self._empty((len(requests), channels, self.height, self.width))
        self._workspace.resize_normalize(
            rows,
            self.height,
            self.width,
            filter=self.filter,
            mean=self.mean,
            std=self.std,
            source=source,
            target=target,
            out=out,
            stream=stream,
        )
        if self._gives_rows:
            hand_rows(requests, out, target)
            return out
        # In one call, as a slice of torch's takes microseconds.
        views = out.split(1) if self.array == "torch" else [out[each : each + 1] for each in range(len(requests))]
        for request, view in zip(requests, views, strict=True):
            request["result"] = view
            request["color"] = target
        return out
