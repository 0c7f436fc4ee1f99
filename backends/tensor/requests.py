"""What the tensor backends share: work on one request at a time, on its GPU's stream, and its tensor, checked.

An image is a tensor of shape (1, channels, height, width). A request's ``color`` says what three channels are, "bgr"
(which is also meant if it is not there) or "rgb". Every step takes batches of any size, request by request: one that
fails, fails alone, with KernelError if its tensor is none such. None changes the tensor under ``data``; some hand it on
as it is, where there is nothing to do. A result is on the device of its data, and complete: on a GPU a step is queued
on a stream of its instance and awaited, once a batch, or with the other steps in a Sequential with ``SyncTensor``.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import torch

from fastpipe.contract import Backend, PerRequest, Request, raise_failed, run_each
from fastpipe.errors import KernelError

from ..gpu.streams import InstanceStream, hand_over
from ..odd_arrays import oddity
from .arrays import Unreadable, from_numpy

__all__ = ["PerTensor", "image_of", "tensor_of"]


class PerTensor(PerRequest):
    """Base: a request at a time, on the GPU's stream if its tensor is on one."""

    retry_alone = True  # of what its streams raise, nobody knows whose it is

    def __init__(self) -> None:
        self._streams: dict[int, InstanceStream] = {}

    def forward(self, batch: list[Request]) -> None:
        numbers = {number for request in batch if (number := self.gpu_of(request)) is not None}
        with ExitStack() as entered:
            currents = [
                entered.enter_context(self._streams.setdefault(number, InstanceStream(number)).entered())
                for number in numbers
            ]
            failed = run_each(batch, self.run)
            if any(current.is_outermost for current in currents):
                hand_over([request.get("result") for request in batch])
        raise_failed(failed, batch)

    def gpu_of(self, request: Request) -> int | None:
        """Return the number of the GPU on which a request is worked on; None: on the CPU."""
        data = request.get("data")
        return data.get_device() if isinstance(data, torch.Tensor) and data.is_cuda else None


def tensor_of(request: Request, backend: Backend) -> torch.Tensor:
    """Return the request's tensor; of an array of NumPy, a copy as one."""
    data = request["data"]
    if isinstance(data, np.ndarray):
        if odd := oddity(data):
            raise KernelError(f"{type(backend).__name__}: expected an array or a torch tensor, got {odd}")
        try:
            return from_numpy(data, copy=True)
        except Unreadable as error:
            raise KernelError(f"{type(backend).__name__}: expected a dtype that torch has, got {data.dtype}") from error
    if not isinstance(data, torch.Tensor):
        raise KernelError(f"{type(backend).__name__}: expected a torch tensor, got a {type(data).__name__}")
    return data


def image_of(request: Request, backend: Backend, *, channels: int | None = None) -> torch.Tensor:
    """Return the request's image, checked."""
    data = request["data"]
    expected = f"a tensor of shape (1, {channels or 'channels'}, height, width)"
    odd = oddity(data)
    if odd or not isinstance(data, torch.Tensor):
        raise KernelError(f"{type(backend).__name__}: expected {expected}, got {odd or f'a {type(data).__name__}'}")
    is_one = data.ndim == 4 and data.shape[0] == 1 and data.numel() > 0 and not data.is_complex()
    if not is_one or (channels is not None and data.shape[1] != channels):
        raise KernelError(
            f"{type(backend).__name__}: expected {expected}, got {data.dtype} of shape {tuple(data.shape)}"
        )
    return data.detach() if data.requires_grad else data
