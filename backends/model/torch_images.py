"""``mean`` and ``std`` of a torch model: in front of its image inputs, within what is captured as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastpipe.errors import ConfigError

from ..ranges import check_levels
from .torch_inputs import TorchInputs, is_image

__all__ = ["channels_of", "check_images", "column_of", "normalized"]


def normalized(
    module: Any,
    channels: int,
    mean_and_std: tuple[torch.Tensor | None, torch.Tensor | None],
    dtypes: Sequence[torch.dtype] | None,
    floats: torch.dtype,
) -> Callable[..., Any]:
    """Return a model with mean and std, tensors of shape (1, channels, 1, 1) or None, in front of its image inputs."""
    mean, std = mean_and_std

    def run(*inputs: torch.Tensor) -> Any:
        given = []
        for index, tensor in enumerate(inputs):
            if is_image(tensor.shape, tensor.dtype, channels):
                if mean is not None:
                    tensor = tensor - mean
                if std is not None:
                    tensor = tensor / std
                tensor = tensor.to(floats if dtypes is None else dtypes[index])
            given.append(tensor)
        return module(*given)

    return run


def channels_of(mean: list[float] | None, std: list[float] | None) -> int:
    """Return how many channels images have that are normalised; 0: there is no normalisation."""
    counts = {len(values) for values in (mean, std) if values is not None}
    if len(counts - {1}) > 1 or 0 in counts:
        raise ConfigError(f"mean and std need one number, or one for each channel, got {mean} and {std}")
    check_levels(mean, std)
    return max(counts, default=0)


def column_of(values: list[float] | None, device: torch.device) -> torch.Tensor | None:
    """Return ``mean`` or ``std`` as a tensor of shape (1, channels, 1, 1)."""
    return None if values is None else torch.tensor(values, dtype=torch.float32, device=device).reshape(1, -1, 1, 1)


def check_images(inputs: TorchInputs, mean: Any, std: Any, channels: int) -> None:
    """Raise ConfigError if no input, as far as its shape is known, is an image for ``mean`` and ``std``."""
    for profile in inputs.profiles if channels else ():
        known = inputs.largest(profile)
        if known is not None and not any(
            is_image((1, *item), dtype, channels) for item, dtype in zip(*known, strict=True)
        ):
            raise ConfigError(
                f"mean and std with {channels} channels fit no input: expected floats of shape (batch, {channels}, "
                f"height, width), the model has {', '.join(map(str, known[0]))} in a batch"
            )
