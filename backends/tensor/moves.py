"""The way of tensors between devices, and to files and back: see ``requests`` for what all tensor backends do."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import torch

from fastpipe.contract import Request
from fastpipe.errors import ConfigError, KernelError

from ..basic import without_long_names
from ..gpu.devices import DeviceId, OnGpu
from .requests import PerTensor, tensor_of

__all__ = ["CpuTensor", "GpuTensor", "LoadTensor", "SaveTensor"]


class GpuTensor(PerTensor, OnGpu):
    """A tensor of any shape, or a NumPy array, on a GPU; what is there already is handed on, the same object.

    Args:
        device_id: which GPU.
        device: the same in words: ``"cuda:1"``, several of them, or ``"all"``: each instance goes to the one that has
            the fewest. With neither, where the instance's other steps are, otherwise the first.

    Raises:
        ConfigError: if there is no such GPU.
    """

    keeps_input = True

    def __init__(self, *, device_id: DeviceId = None, device: list[str] | None = None) -> None:
        super().__init__()
        self._claim_gpu(device, device_id)

    def gpu_of(self, request: Request) -> int | None:
        number: int = self.device.index
        return number

    def run(self, request: Request) -> None:
        request["result"] = tensor_of(request, self).to(self.device, non_blocking=True)


class CpuTensor(PerTensor):
    """A tensor of any shape, or a NumPy array, as a tensor on the CPU; what is there already is handed on."""

    keeps_input = True

    def run(self, request: Request) -> None:
        request["result"] = tensor_of(request, self).cpu()


class SaveTensor(PerTensor):
    """Writes each tensor to a file of its own in ``save_dir``, under a name nobody else has; the result is the data.

    ``torch.load`` reads it, and so does ``LoadTensor``.

    Args:
        save_dir: a folder; made if it is not there.

    Raises:
        OSError: if the file cannot be written.
    """

    keeps_input = True

    def __init__(self, *, save_dir: Path) -> None:
        super().__init__()
        self.save_dir = Path(save_dir)
        self.save_dir.mkdir(parents=True, exist_ok=True)

    def run(self, request: Request) -> None:
        tensor = tensor_of(request, self)
        # A copy, since a view is saved with all of the memory that it is a view of.
        with open(self.save_dir / f"{uuid.uuid4().hex}.pt", "xb") as file:
            torch.save(tensor.detach().cpu().clone(), file)
        request["result"] = request["data"]


class LoadTensor(PerTensor):
    """The tensor in a file that ``SaveTensor`` or ``torch.save`` wrote, on the CPU; no code in a file is run.

    Args:
        path: of the file, which is read once; without it, each request's ``data`` is the path of its own.

    Raises:
        ConfigError: if ``path`` holds no tensor.
        KernelError: if a request's file holds none.
        OSError: if a request's file cannot be read.
    """

    keeps_input = True

    def __init__(self, *, path: Path | None = None) -> None:
        super().__init__()
        self._tensor: torch.Tensor | None = None
        if path is not None:
            try:
                self._tensor = self._load(path)
            except (KernelError, OSError) as error:
                raise ConfigError(str(error)) from error

    def run(self, request: Request) -> None:
        if self._tensor is not None:
            request["result"] = self._tensor.clone()
            return
        try:
            request["result"] = self._load(request["data"])
        except OSError as error:
            raise without_long_names(error) from None

    def _load(self, path: Any) -> torch.Tensor:
        if not isinstance(path, str | Path):
            raise KernelError(f"LoadTensor: expected the path of a file, got a {type(path).__name__}")
        with open(path, "rb") as file:
            try:
                loaded = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # whatever torch makes of a file that is none of its own
                raise KernelError(f"LoadTensor: '{path}' holds no tensor: {error}") from error
        if not isinstance(loaded, torch.Tensor):
            raise KernelError(f"LoadTensor: '{path}' holds a {type(loaded).__name__}, no tensor")
        return loaded
