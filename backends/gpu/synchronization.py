"""One stream and one synchronisation for a chain of steps on a GPU: SyncTensor (StreamGuard, TensorSync) and Torch.

    "S[CvtColorTensor,TorchTensor,SyncTensor]"
    "Torch(device_id=1)[CvtColorTensor,TorchTensor]"

Steps on a GPU that stand alone each wait until their work is done. Within one of these, the whole chain is queued on a
stream that the instance owns, and awaited once, at its end.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from fastpipe.contract import Backend, Child, Request
from fastpipe.errors import ConfigError, MissingExtra

from ..flow.sequential import Sequential
from .devices import DeviceId, Follower, claim_gpu, gpus_of_torch, place_of
from .streams import InstanceStream, gpu_count, hand_over

__all__ = ["SyncTensor", "Torch"]


class SyncTensor(Backend):
    """Have the Sequential it is a step of run on one stream, synchronised once; its own result is the data.

    Wherever it stands in the Sequential, all steps are on that stream, which belongs to the instance. Where the
    Sequential is itself inside one with a SyncTensor, the outer one's stream is used and awaited. As the last step it
    also hands the results over: their memory is not used again before the thread that ran the instance could.

    Where no GPU is at hand, or neither torch nor CuPy has been imported, so that nothing can be on one, it does
    nothing.

    Args:
        device_id: the GPU whose stream it is; without it, that of the other steps, and if none is on one, the first.
            Steps on another have, and await, a stream of their own.
        device: the same in words, as for the other steps: ``"cuda:1"``; of several, the one on which those are.
    """

    keeps_input = True

    def __init__(self, *, device_id: DeviceId = None, device: list[str] | None = None) -> None:
        self._gpu = Follower("SyncTensor", device, device_id)
        self._stream: InstanceStream | None = None
        self._is_there = False

    def surround(self) -> AbstractContextManager[Any]:
        """Return the context for a batch of the Sequential."""
        if self._stream is None:  # only now: the other steps are built after this one
            number = self._gpu.number()
            if number is None:
                return nullcontext()
            self._stream = InstanceStream(number)
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
        device: the same in words: ``"cuda:1"``, several of them, or ``"all"``: each instance goes to the one that has
            the fewest. With neither, where the children are, otherwise the first.

    Raises:
        ConfigError: if there is no such GPU, or the children are on another one.
        MissingExtra: if torch is not installed.
    """

    def __init__(self, children: list[Child], *, device_id: DeviceId = None, device: list[str] | None = None) -> None:
        try:
            import torch
        except ImportError as error:
            raise MissingExtra("Torch", "torch", error) from error
        super().__init__(children)
        self.keeps_input = all(child.backend.keeps_input for child in children)
        self._claim = claim_gpu("Torch", device, device_id)
        number = self._claim.number
        count = gpus_of_torch()
        if number >= count:
            raise ConfigError(f"Torch: there is no GPU {number}; torch sees {count}")
        if self.place not in (None, self._claim.place):
            raise ConfigError(f"Torch: it is to be at {self._claim.place}, and its children are at {self.place}")
        self.place, self.place_of = self._claim.place, place_of
        self._device = torch.device("cuda", number)
        self._stream = InstanceStream(number)

    def forward(self, batch: list[Request]) -> None:
        with self._stream.entered():
            for request in batch:
                request["data"] = moved(request["data"], self._device)
            super().forward(batch)
            hand_over([request.get("result") for request in batch])

    def close(self) -> None:
        """Close the children."""
        self._claim.release()
        super().close()


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
