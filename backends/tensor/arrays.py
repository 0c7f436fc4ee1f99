"""Arrays of others as torch tensors: the one place where torch is handed memory that it did not make.

Torch believes what an array says of itself. Of some layouts it makes an error, of some a wrong tensor, and of some the
end of the process; so an array is looked at first, and what is odd about it is copied by NumPy, or refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils import dlpack

from ..odd_arrays import oddity
from ..ranges import overflow

__all__ = ["Unreadable", "all_finite", "as_tensor", "from_numpy", "is_ordinary", "overflow_in"]

_KINDS = "biufc"
# DLPack's numbers: memory of the host, also if page-locked for CUDA; CUDA's own, and what it shares with the host.
_ON_HOST = (1, 3)
_ON_CUDA = (2, 13)


class Unreadable(TypeError):
    """Torch cannot have what was given; the message says what that is, and why."""


def as_tensor(value: Any) -> torch.Tensor:
    """Return an array as a tensor, over the same memory where torch can have that as it is, otherwise a copy.

    Args:
        value: a tensor (it is detached), an array of NumPy, or whatever has ``__dlpack__``. Not modified.

    Returns:
        A tensor that is only to be read: it may be memory of the caller's.

    Raises:
        Unreadable: if it is no array, or torch cannot have it.
    """
    if odd := oddity(value):
        raise Unreadable(odd)
    if isinstance(value, torch.Tensor):
        return value.detach() if value.requires_grad else value
    if isinstance(value, np.ndarray | np.generic):
        return from_numpy(np.asarray(value))
    name = type(value).__name__
    if not hasattr(value, "__dlpack__"):
        raise Unreadable(f"a {name}, which is no array")
    if not hasattr(value, "__dlpack_device__"):
        raise Unreadable(f"a {name} that does not say on which device it is (__dlpack_device__)")
    try:
        kind = int(value.__dlpack_device__()[0])
        if kind in _ON_HOST:
            # NumPy reads it first: it refuses what it does not know, and what it takes can be looked at.
            return from_numpy(np.from_dlpack(value))
        if kind not in _ON_CUDA:
            raise Unreadable(f"a {name} on a device that torch is not asked to read (DLPack's number {kind})")
        _check_cuda_array(value)
        tensor: torch.Tensor = dlpack.from_dlpack(value)
        return tensor
    except Unreadable:
        raise
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        raise Unreadable(f"a {name} that torch cannot read: {error}") from error


def from_numpy(array: npt.NDArray[Any], *, copy: bool = False) -> torch.Tensor:
    """Return an array as a tensor over the same memory, or a copy of it, which it is where torch could not have that.

    Args:
        array: of any layout and byte order. Not modified.
        copy: whether it is a copy in any case, C-contiguous.

    Raises:
        Unreadable: if torch has no such type, or it is a masked array.
    """
    if odd := oddity(array):
        raise Unreadable(odd)
    dtype = array.dtype
    if dtype.kind not in _KINDS or dtype.itemsize > (16 if dtype.kind == "c" else 8):
        raise Unreadable(f"an array of {dtype}, a type that torch does not have")
    if copy or not _is_plain(array):
        array = np.array(array, dtype.newbyteorder("="), order="C", subok=False)
    return torch.from_numpy(array)


def is_ordinary(tensor: torch.Tensor) -> bool:
    """Say whether a tensor is strided, and so may be told by shape, dtype and device; quicker than ``oddity``."""
    return not tensor.is_nested and tensor.layout is torch.strided


def overflow_in(row: torch.Tensor, dtype: torch.dtype) -> float | None:
    """Return a number of a tensor that is finite, but not in another type; None: there is none."""
    converted = row.to(dtype)
    return overflow(row, converted if dtype.itemsize > 1 else converted.float())


def all_finite(tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return whether all numbers of some tensors are finite, as a tensor where they are; None: there are no tensors.

    On a GPU this is queued on the current stream, so that whoever asks for it before it is needed waits for nothing.
    """
    answer: torch.Tensor | None = None
    for tensor in tensors:
        # Floats of 8 bits have no isfinite of their own.
        found = (tensor if tensor.dtype.itemsize > 1 else tensor.float()).isfinite().all()
        answer = found if answer is None else answer & found
    return answer


def _is_plain(array: npt.NDArray[Any]) -> bool:
    """Say whether torch can have an array's own memory: native, aligned, writable, and every step a whole element."""
    return bool(
        array.dtype.isnative
        and array.flags.aligned
        and array.flags.writeable
        and array.size
        and _are_plain(array.strides, array.itemsize)
    )


def _are_plain(strides: tuple[int, ...], itemsize: int) -> bool:
    return all(stride >= 0 and stride % itemsize == 0 for stride in strides)


def _check_cuda_array(value: Any) -> None:
    """Raise Unreadable for an array on a GPU that torch must not see, as far as it says how it lies there."""
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is None:
        return
    dtype, strides = np.dtype(interface["typestr"]), interface.get("strides")
    if dtype.kind not in (*_KINDS, "V") or not dtype.isnative:  # V: what NumPy has no name for, bfloat16 among them
        raise Unreadable(f"an array of {dtype}, a type that torch does not have")
    if strides is not None and not _are_plain(tuple(strides), dtype.itemsize):
        raise Unreadable(
            f"an array with the strides {tuple(strides)}, which torch cannot have: make it contiguous first"
        )
