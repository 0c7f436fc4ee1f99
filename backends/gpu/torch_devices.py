"""The GPU of a backend, as torch counts them."""

from __future__ import annotations

import torch

from fastpipe.errors import ConfigError

from .devices import gpus_of_torch

__all__ = ["torch_gpu"]


def torch_gpu(backend: str, number: int) -> torch.device:
    """Return a GPU as torch's device.

    Raises:
        ConfigError: if there is no such GPU.
    """
    count = gpus_of_torch()
    if number >= count:
        raise ConfigError(f"{backend}: there is no GPU {number}; torch sees {count}")
    return torch.device("cuda", number)
