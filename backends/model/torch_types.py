"""The types in which a torch model computes, and those of its inputs."""

from __future__ import annotations

import torch

from fastpipe.errors import ConfigError

from .torch_files import Loaded

__all__ = ["input_dtypes", "set_precision"]

_PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def set_precision(loaded: Loaded, precision: str | None) -> torch.dtype:
    """Give the model its type, and return it."""
    tensors = [*loaded.module.parameters(), *loaded.module.buffers()]
    own = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)
    wanted = own if precision is None else _PRECISIONS[precision]
    if wanted == own:
        return own
    if loaded.is_exported:
        raise ConfigError(f"precision: an exported program computes as it was exported, in {own}; got {precision}")
    loaded.module.to(wanted)
    return wanted


def input_dtypes(loaded: Loaded, names: list[str] | None) -> list[torch.dtype] | None:
    """Return the types of a model's inputs, as it or the node's ``dtypes`` has them; None: nobody says.

    Raises:
        ConfigError: if torch has no such type, or an exported program takes another.
    """
    if names is None:
        return loaded.dtypes
    found = [getattr(torch, name, None) for name in names]
    for name, dtype in zip(names, found, strict=True):
        if not isinstance(dtype, torch.dtype):
            raise ConfigError(f"dtypes: torch has no type {name!r}")
    dtypes = [dtype for dtype in found if isinstance(dtype, torch.dtype)]
    if loaded.dtypes is not None and dtypes != loaded.dtypes:
        raise ConfigError(
            f"dtypes: an exported program takes what it was exported with, {', '.join(map(str, loaded.dtypes))}"
        )
    return dtypes
