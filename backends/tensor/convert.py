"""From NumPy images to torch tensors and back.

An image is an array of shape (height, width, channels), or (height, width) for gray; as a tensor it is 1CHW. No result
shares memory with what came in, so that either may be written to. Copies to and from a GPU go through the current
stream and are awaited, so that a result may be used on any.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastpipe.contract import Backend, PerRequest, Request
from fastpipe.errors import KernelError

from ..gpu.devices import DeviceId, OnGpu, claim_gpu, place_of, torch_gpu
from ..odd_arrays import oddity
from .arrays import Unreadable, from_numpy

__all__ = ["Mat2CpuTensor", "Mat2GpuTensor", "Mat2Tensor", "Tensor2Mat", "Tensor2Vector"]

_WITHOUT_CLAMP = (torch.int8, torch.uint16, torch.uint32)  # 255 is no int8, and for the others torch computes little


class Mat2Tensor(PerRequest, OnGpu):
    """An image -> a tensor of shape (1, channels, height, width), same dtype, contiguous; a deep copy.

    Args:
        device: "cpu"; "gpu" (also called "cuda"), "cuda:1", several of them, or "all": each instance goes to the one
            that has the fewest.
        device_id: which GPU, beside "gpu" or "cuda".

    Raises:
        ConfigError: if there is no such GPU.
        KernelError: if the data is no NumPy array of two or three axes and a dtype that torch has.
    """

    keeps_input = True

    def __init__(self, *, device: list[str] | None = None, device_id: DeviceId = None) -> None:
        name = type(self).__name__
        kinds = [each.lower() for each in device or ["cpu"]]
        if kinds in (["gpu"], ["cuda"]):  # then device_id may say which, as in torchpipe's files
            device, device_id = None, device_id or 0
        elif kinds == ["cpu"]:
            device, device_id = ["cpu"], None
        self._claim = claim_gpu(name, device, device_id, or_cpu=True)
        self.place = self._claim.place
        on_cpu = self.place is None
        self.device = torch.device("cpu") if on_cpu else torch_gpu(name, self._claim.number)
        self.place_of = None if on_cpu else place_of

    def run(self, request: Request) -> None:
        data = request["data"]
        odd = oddity(data)
        if odd or not isinstance(data, np.ndarray) or data.ndim not in (2, 3):
            expected = "an array of shape (height, width, channels) or (height, width)"
            got = odd or (f"shape {data.shape}" if isinstance(data, np.ndarray) else f"a {type(data).__name__}")
            raise KernelError(f"{type(self).__name__}: expected {expected}, got {got}")
        planes = data[np.newaxis] if data.ndim == 2 else data.transpose(2, 0, 1)
        try:
            request["result"] = from_numpy(planes[np.newaxis], copy=True).to(self.device)
        except Unreadable as error:
            raise KernelError(f"{type(self).__name__}: expected a dtype that torch has, got {data.dtype}") from error


class Mat2CpuTensor(Mat2Tensor):
    """``Mat2Tensor`` to the CPU."""

    keeps_input = True

    def __init__(self) -> None:
        super().__init__(device=["cpu"])


class Mat2GpuTensor(Mat2Tensor):
    """``Mat2Tensor`` to a GPU.

    Args:
        device_id: which one.
        device: the same in words: ``"cuda:1"``, several of them, or ``"all"``: each instance goes to the one that has
            the fewest. With neither, where the instance's other steps are, otherwise the first.
    """

    keeps_input = True

    def __init__(self, *, device_id: DeviceId = None, device: list[str] | None = None) -> None:
        self._claim_gpu(device, device_id)


class Tensor2Mat(PerRequest):
    """A tensor of shape (1, channels, height, width), or without the 1 -> a uint8 image (height, width, channels).

    Floats are expected on the scale 0-255: rounded (halves to even), and cut off at its ends; not-a-number becomes 0.
    From any device; a deep copy.

    Raises:
        KernelError: if the data is no such tensor.
    """

    keeps_input = True

    def run(self, request: Request) -> None:
        data = request["data"]
        _check_tensor(self, data)
        image_chw = data.detach()
        if image_chw.ndim == 4 and image_chw.shape[0] == 1:
            image_chw = image_chw[0]
        if image_chw.ndim != 3:
            raise KernelError(
                f"Tensor2Mat: expected shape (1, channels, height, width) or without the 1, got {tuple(data.shape)}"
            )
        if image_chw.dtype != torch.uint8:
            if image_chw.is_complex() or image_chw.dtype == torch.bool:
                raise KernelError(f"Tensor2Mat: expected numbers of a real dtype, got {image_chw.dtype}")
            if image_chw.is_floating_point():
                # Float16 has no clamp on every CPU; what lies in 0..255 is the same in float32.
                image_chw = torch.nan_to_num(image_chw.float(), nan=0.0).round()
            elif image_chw.dtype == torch.uint64:  # for which torch has no arithmetic, nor a type that is wider
                image_chw = image_chw.view(torch.int64).where(image_chw.view(torch.int64) >= 0, 255)
            elif image_chw.dtype in _WITHOUT_CLAMP:
                image_chw = image_chw.long()
            image_chw = image_chw.clamp(0, 255).to(torch.uint8)
        request["result"] = np.array(image_chw.permute(1, 2, 0).cpu().numpy(), order="C")


class Tensor2Vector(PerRequest):
    """A tensor of any shape and device -> a flat list of its numbers, as Python's, last axis first.

    Raises:
        KernelError: if the data is no tensor.
    """

    keeps_input = True

    def run(self, request: Request) -> None:
        data = request["data"]
        _check_tensor(self, data)
        request["result"] = data.detach().flatten().tolist()


def _check_tensor(backend: Backend, data: Any) -> None:
    odd = oddity(data)
    if odd or not isinstance(data, torch.Tensor):
        got = odd or f"a {type(data).__name__}"
        raise KernelError(f"{type(backend).__name__}: expected a torch tensor, got {got}")
