"""The GPU of a backend, as torch counts them."""

from __future__ import annotations

import torch

from fastpipe.errors import ConfigError

__all__ = ["torch_gpu"]


def torch_gpu(backend: str, number: int) -> torch.device:
    """Return a GPU as torch's device.

    Raises:
        ConfigError: if there is no such GPU.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number >= count:
        raise ConfigError(f"{backend}: there is no GPU {number}; torch sees {count}")
    return torch.device("cuda", number)
