"""What values of a request contain: for the result cache, as bytes to be digested, as copies, and in bytes of memory.

The engine reads Python's own types itself (``engine/contents.pxi``); here are those of libraries. Nothing is imported
for it: a value of NumPy's or torch's types comes from whoever has imported them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from fastpipe.snapshots import are_fixed, copy_values

__all__ = ["are_fixed", "copy_values", "library_content", "size_bytes_of"]

_OF_A_SMALL_OBJECT = 64
"""Bytes that are taken for an object which does not say how large it is."""


def library_content(value: Any) -> tuple[bytes, Any] | None:
    """Return what an array, a tensor or a number of NumPy's contains: a header, and a contiguous buffer.

    The header has the type, the dtype with its byte order, and the shape; values of equal headers and equal buffers are
    equal, bit by bit (so that -0.0 is not 0.0, and a NaN is itself). How an array lies in memory makes no difference.

    Returns:
        None: it is of another type, or has something that bytes do not show: objects, gradients, a device.
    """
    kind = type(value)
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        is_number = isinstance(value, numpy.generic) and kind.__module__ == "numpy"
        if is_number or kind is numpy.ndarray:
            return _numpy_content(numpy, value)
    if torch is not None and kind is torch.Tensor:
        return _torch_content(torch, value)
    return None


def _numpy_content(numpy: Any, value: Any) -> tuple[bytes, Any] | None:
    dtype = value.dtype
    if dtype.hasobject:
        return None
    # The text of a dtype says its byte order and the fields of a structured one; a dtype that is not NumPy's own may
    # have the text of another one, and is known by its scalars' class.
    name = dtype.str if dtype.isbuiltin == 1 or dtype.kind in "SU" else f"{dtype!r} {dtype.type!r} {dtype.metadata!r}"
    header = f"{type(value).__name__} {name} {value.shape}".encode()
    if dtype.kind in "?biuf" and type(value) is numpy.ndarray and value.flags.c_contiguous:
        return header, value
    return header, value.tobytes()


def _torch_content(torch: Any, value: Any) -> tuple[bytes, Any] | None:
    if value.device.type != "cpu" or value.layout is not torch.strided or value.is_quantized:
        return None
    if value.grad_fn is not None or value.grad is not None:
        return None
    header = f"tensor {value.dtype} {tuple(value.shape)} {value.requires_grad}".encode()
    plain = value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return header, plain.view(torch.uint8).numpy() if plain.numel() else b""


def size_bytes_of(values: Mapping[Any, Any]) -> int:
    """Return about how much memory a dict takes with all that is in it; what is in it twice counts once."""
    size_bytes = 0
    seen: set[int] = set()
    unseen: list[Any] = [values]
    while unseen:
        value = unseen.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        size_bytes += _own_size_bytes(value)
        if isinstance(value, dict):
            unseen.extend(value)
            unseen.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            unseen.extend(value)
        elif hasattr(value, "__dict__") and not callable(value):
            unseen.append(value.__dict__)
    return size_bytes


def _own_size_bytes(value: Any) -> int:
    size_bytes = sys.getsizeof(value, _OF_A_SMALL_OBJECT)
    data_bytes = getattr(value, "nbytes", 0)  # of a view, or a tensor, what it shows is not in its own size
    if isinstance(data_bytes, int) and size_bytes < data_bytes:
        size_bytes += data_bytes
    images = sys.modules.get("PIL.Image")
    if images is not None and type(value) is images.Image:
        size_bytes += value.width * value.height * len(value.getbands())
    return size_bytes
