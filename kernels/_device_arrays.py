"""Arrays on a GPU, by library: where their pixels lie, new ones for results, and the stream their owner works on.

CuPy's and torch's are read directly, in C, which takes less than a third of a microsecond each; what else has
``__dlpack__`` or ``__cuda_array_interface__`` (Numba's, JAX's, a decoder's) is seen as CuPy's first, without a copy.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol

from fastpipe.errors import KernelError

from ._launches import rows_by_dlpack, rows_of_cupy

__all__ = ["Arrays", "CupyArrays", "TorchArrays", "arrays_of", "device_of", "stream_handle"]


class Arrays(Protocol):
    """What ``fastpipe.kernels.cuda`` asks of an array library."""

    def describe(self, images: Sequence[Any], channels: int, device: int) -> bytearray:
        """Return the images' rows, as ``_launches`` has them.

        Raises:
            KernelError: if one is not uint8, (h, w, 3) or, with one channel, (h, w), not empty, on the device.
        """

    def describe_batch(self, images: Any, channels: int, device: int) -> tuple[int, int, bytearray]:
        """Return how many images an array has, the bytes from one to the next, and the first one's row."""

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        """Return a new C-contiguous array on the device."""

    def address(self, out: Any, shape: tuple[int, ...], dtype: str, device: int) -> int:
        """Return where ``out`` lies.

        Raises:
            KernelError: if it is not C-contiguous, or of another shape, dtype or device.
        """

    def stream(self, device: int) -> int:
        """Return the handle of the library's current stream in this thread."""


class CupyArrays:
    """CuPy's arrays."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._uint8 = cupy.dtype("uint8")
        self._dtypes = {name: cupy.dtype(name) for name in ("float32", "float16")}
        self._current_stream = cupy.cuda.get_current_stream

    def describe(self, images: Sequence[Any], channels: int, device: int) -> bytearray:
        return _right(rows_of_cupy(images, channels, device, self._uint8), images, channels, device)

    def describe_batch(self, images: Any, channels: int, device: int) -> tuple[int, int, bytearray]:
        return images.shape[0], images.strides[0], self.describe([images[0]], channels, device)

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        if dtype == "bfloat16":
            raise KernelError("dtype: CuPy has no bfloat16; give torch tensors, or one as out")
        with self._cupy.cuda.Device(device):
            return self._cupy.empty(shape, dtype)

    def address(self, out: Any, shape: tuple[int, ...], dtype: str, device: int) -> int:
        memory = out.data
        is_right = out.shape == shape and out.dtype == self._dtypes.get(dtype) and out.flags.c_contiguous
        if not is_right or memory.device_id != device:
            raise wrong_out(out, shape, dtype, device)
        address: int = memory.ptr
        return address

    def stream(self, device: int) -> int:
        handle: int = self._current_stream().ptr
        return handle


class TorchArrays:
    """Torch's tensors."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def describe(self, images: Sequence[Any], channels: int, device: int) -> bytearray:
        return _right(rows_by_dlpack(images, channels, device), images, channels, device)

    def describe_batch(self, images: Any, channels: int, device: int) -> tuple[int, int, bytearray]:
        return images.shape[0], images.stride(0), self.describe([images[0]], channels, device)

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        return self._torch.empty(shape, dtype=getattr(self._torch, dtype), device=f"cuda:{device}")

    def address(self, out: Any, shape: tuple[int, ...], dtype: str, device: int) -> int:
        if (
            tuple(out.shape) != shape
            or out.dtype is not getattr(self._torch, dtype)
            or not out.is_contiguous()
            or out.get_device() != device
        ):
            raise wrong_out(out, shape, dtype, device)
        address: int = out.data_ptr()
        return address

    def stream(self, device: int) -> int:
        handle: int = self._torch.cuda.current_stream(device).cuda_stream
        return handle


_known: dict[type, Arrays] = {}


def arrays_of(array: Any, cupy: Any) -> tuple[Arrays | None, Any]:
    """Return the library of an array, and the array as that library's; no library if it is none on a GPU."""
    if (known := _known.get(type(array))) is not None:
        return known, array
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return _known.setdefault(type(array), TorchArrays(torch)), array
    if isinstance(array, cupy.ndarray):
        return _known.setdefault(type(array), CupyArrays(cupy)), array
    if hasattr(array, "__cuda_array_interface__"):
        return arrays_of(cupy.asarray(array), cupy)
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__") and array.__dlpack_device__()[0] == 2:
        return arrays_of(cupy.from_dlpack(array), cupy)
    return None, array


def device_of(array: Any) -> int:
    """Return the number of the GPU on which a CuPy array or a torch tensor is; -1 if it is on none."""
    number: int = array.get_device() if hasattr(array, "get_device") else array.data.device_id
    return number


def stream_handle(stream: Any) -> int:
    """Return the handle of what somebody calls a stream: a number, or an object of CuPy, torch, Numba or others.

    Raises:
        KernelError: if it is none of these.
    """
    if isinstance(stream, int):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1] or 0)
    for name in ("ptr", "cuda_stream", "handle"):
        if isinstance(handle := getattr(stream, name, None), int):
            return handle
    raise KernelError(f"stream: expected a CUDA stream or its handle, got a {type(stream).__name__}")


def _right(rows: bytearray | int, images: Sequence[Any], channels: int, device: int) -> bytearray:
    """Return the rows, unless they are the number of an image that is wrong."""
    if isinstance(rows, int):
        raise wrong_image(images[rows], channels, device)
    return rows


def wrong_image(image: Any, channels: int, device: int) -> KernelError:
    """Return the error for an image that cannot be taken."""
    axes = "(height, width, 3)" if channels == 3 else "(height, width)"
    where = "" if device_of(image) == device else f" on {f'GPU {device_of(image)}' if device_of(image) >= 0 else 'CPU'}"
    expected = f"expected a uint8 array of shape {axes}, not empty, on GPU {device}"
    return KernelError(f"images: {expected}, got {_dtype_name(image)} of shape {tuple(image.shape)}{where}")


def wrong_out(out: Any, shape: tuple[int, ...], dtype: str, device: int) -> KernelError:
    """Return the error for an ``out`` that cannot be written to."""
    got = f"{_dtype_name(out)} of shape {tuple(out.shape)}, or one with gaps, on GPU {device_of(out)}"
    return KernelError(f"out: expected a C-contiguous {dtype} array of shape {shape} on GPU {device}, got {got}")


def _dtype_name(array: Any) -> str:
    return str(array.dtype).rpartition(".")[2]
