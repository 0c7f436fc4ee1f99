"""One stream and one synchronisation for a chain of steps on a GPU: SyncTensor (StreamGuard, TensorSync) and Torch.

    "S[CvtColorTensor,TorchTensor,SyncTensor]"
    "Torch(device_id=1)[CvtColorTensor,TorchTensor]"

Steps on a GPU that stand alone each wait until their work is done. Within one of these, the whole chain is queued on a
stream that the instance owns, and awaited once, at its end.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

from fastpipe.backend import Backend, Between, Child, Request
from fastpipe.errors import ConfigError, MissingExtra

from ._streams import InstanceStream, gpu_count, hand_over
from .containers import Sequential

__all__ = ["SyncTensor", "Torch"]


class SyncTensor(Backend):
    """Have the Sequential it is a step of run on one stream, synchronised once; its own result is the data.

    Wherever it stands in the Sequential, all steps are on that stream, which belongs to the instance. Where the
    Sequential is itself inside one with a SyncTensor, the outer one's stream is used and awaited. As the last step it
    also hands the results over: their memory is not used again before the thread that ran the instance could.

    Where no GPU is at hand, or neither torch nor CuPy has been imported, so that nothing can be on one, it does
    nothing.

    Args:
        device_id: the GPU whose stream it is; steps on another have, and await, one of their own.
    """

    def __init__(self, *, device_id: Annotated[int, Between(0, 1023)] = 0) -> None:
        self._stream = InstanceStream(device_id)
        self._is_there = False

    def surround(self) -> AbstractContextManager[Any]:
        """Return the context for a batch of the Sequential."""
        # Asked again until there is one: a step may import torch with its first batch.
        if not self._is_there and gpu_count() <= self._stream.device_number:
            return nullcontext()
        self._is_there = True
        return self._stream.entered()

    def forward(self, batch: list[Request]) -> None:
        hand_over([request["data"] for request in batch])
        for request in batch:
            request["result"] = request["data"]


class Torch(Sequential):
    """Run children like a Sequential with a SyncTensor, on one GPU: tensors in ``data`` are moved there first.

    Torch tensors, also those in a list, a tuple or a dict; whatever else ``data`` is goes in as it is. In a node of
    several GPUs each copy of the chain is a node of its own.

    Args:
        children: at least one.
        device_id: which GPU, as torch counts.

    Raises:
        ConfigError: if there is no such GPU.
        MissingExtra: if torch is not installed.
    """

    def __init__(self, children: list[Child], *, device_id: Annotated[int, Between(0, 1023)] = 0) -> None:
        try:
            import torch
        except ImportError as error:
            raise MissingExtra("Torch", "torch", error) from error
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device_id >= count:
            raise ConfigError(f"Torch: there is no GPU {device_id}; torch sees {count}")
        super().__init__(children)
        self._device = torch.device("cuda", device_id)
        self._stream = InstanceStream(device_id)

    def forward(self, batch: list[Request]) -> None:
        with self._stream.entered():
            for request in batch:
                request["data"] = moved(request["data"], self._device)
            super().forward(batch)
            hand_over([request.get("result") for request in batch])


def moved(value: Any, device: Any) -> Any:
    """Return ``value`` with the torch tensors in it on ``device``; what is there already is the same object."""
    if isinstance(value, sys.modules["torch"].Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, list | tuple):
        parts = [moved(part, device) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    if isinstance(value, dict):
        return {key: moved(part, device) for key, part in value.items()}
    return value
