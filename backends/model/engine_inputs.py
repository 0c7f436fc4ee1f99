"""What goes into an engine of TensorRT: a request's data as torch tensors, where they are, in types that NumPy has."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from ..tensor.arrays import Unreadable, as_tensor, overflow_in
from .axes import moved
from .inputs import ModelInputs
from .reader import Fit, Signature
from .shapes import InputSpec, Profile
from .tensorrt_api import Context, Engine

__all__ = ["EngineInputs", "Slot", "fill", "torch_dtype"]


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's type of that name."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


_NUMPY_DTYPES = {
    torch_dtype(name): np.dtype(name)
    for name in (
        "bool",
        "uint8",
        "uint16",
        "uint32",
        *("int8", "int16", "int32", "int64"),
        "float16",
        "float32",
        "float64",
    )
}


class EngineInputs(ModelInputs):
    """Reads requests as torch tensors, where they are."""

    def _takes_rows(self, spec: InputSpec, count: int) -> bool:
        """Say whether a request may bring so many rows: an engine for one request takes one, or a fixed number."""
        return self.takes_many_rows or (isinstance(spec.shape[0], int) and count == spec.shape[0])

    def _arrays(self, data: Any) -> tuple[tuple[Any, ...], bool]:
        return tuple([self._to_tensor(index, value) for index, value in enumerate(self._in_order(data))]), True

    def _signature(self, arrays: tuple[Any, ...]) -> Signature:
        return tuple([(tuple(tensor.shape), _NUMPY_DTYPES[tensor.dtype]) for tensor in arrays])

    def _lost(self, fit: Fit, index: int, given: Sequence[Any], joined: Any) -> Iterable[float | None]:
        return [overflow_in(row, torch_dtype(fit.dtypes[index].name)) for row in given]

    def _to_tensor(self, index: int, value: Any) -> torch.Tensor:
        if self._is_plain_number(index, value):
            return torch.from_numpy(self._of_number(index, value))
        try:
            tensor = as_tensor(value)
        except Unreadable as error:
            raise self._unusable(index, str(error)) from error
        if tensor.dtype not in _NUMPY_DTYPES:
            raise self._unusable(index, f"a tensor of {tensor.dtype}")
        return tensor


def fill(spec: InputSpec, batch: torch.Tensor, rows: Sequence[torch.Tensor], *, is_whole: bool) -> None:
    """Copy rows of any number into a batch, converted if need be; what is behind them becomes zeros.

    ``is_whole``: the only one is the batch as it is; so is the first of what all share.
    """
    if is_whole or spec.axis is None:
        batch.copy_(rows[0].reshape(batch.shape), non_blocking=True)
        return
    target = moved(batch, spec.axis, 0)
    given = [moved(row, spec.axis, 0) if row.ndim == batch.ndim else row[None] for row in rows]
    on_device = [row.to(batch.device, non_blocking=True) for row in given]
    count = sum(map(len, on_device))
    if len(rows) == 1:
        target[:count].copy_(on_device[0])
    elif spec.axis:
        target[:count].copy_(torch.cat(on_device))
    else:
        torch.cat(on_device, out=target[:count])
    if count < len(target):
        target[count:].zero_()


class Slot:
    """What an instance has for one profile: a context, and memory for its inputs, whose address never changes."""

    def __init__(
        self, engine: Engine, index: int, profile: Profile, specs: Sequence[InputSpec], device: torch.device
    ) -> None:
        self.context: Context = engine.context(index)
        rows = profile.batch_sizes()[0]
        self.specs = specs
        self.inputs = [
            torch.empty(math.prod(spec.full(item, rows)), dtype=torch_dtype(spec.dtype.name), device=device)
            for spec, item in zip(specs, profile.largest_items() or (), strict=True)
        ]
        self.addresses = [buffer.data_ptr() for buffer in self.inputs]
        self.output_dtypes = [torch_dtype(info.dtype) for info in engine.outputs]
