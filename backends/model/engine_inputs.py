"""What goes into an engine of TensorRT: a request's data as torch tensors, where they are, in types that NumPy has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from ..tensor.arrays import Unreadable, as_tensor, overflow_in
from .inputs import ModelInputs
from .reader import Fit, Signature

__all__ = ["EngineInputs", "torch_dtype"]


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

    runs_alone = False

    def _arrays(self, data: Any) -> tuple[tuple[Any, ...], bool]:
        return tuple([self._to_tensor(index, value) for index, value in enumerate(self._in_order(data))]), True

    def _signature(self, arrays: tuple[Any, ...]) -> Signature:
        return tuple([(tuple(tensor.shape), _NUMPY_DTYPES[tensor.dtype]) for tensor in arrays])

    def _lost(self, fit: Fit, index: int, given: Sequence[Any], joined: Any) -> Iterable[float | None]:
        return [overflow_in(row, torch_dtype(fit.dtypes[index].name)) for row in given]

    def _to_tensor(self, index: int, value: Any) -> torch.Tensor:
        try:
            tensor = as_tensor(value)
        except Unreadable as error:
            raise self._unusable(index, str(error)) from error
        if tensor.dtype not in _NUMPY_DTYPES:
            raise self._unusable(index, f"a tensor of {tensor.dtype}")
        return tensor
