"""What a torch model carries from run to run, on the model's device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fastpipe.errors import ConfigError

from .axes import Axes, Declared
from .inputs import Array
from .shapes import InputSpec
from .state import ModelState, StateWish
from .state_proof import check_state
from .torch_inputs import TorchInputs

__all__ = ["state_of"]


def state_of(
    name: str,
    inputs: TorchInputs,
    states: Sequence[StateWish],
    declared: Sequence[Declared] | None,
    axes: Axes,
    device: torch.device,
) -> ModelState:
    """Return what keeps a model's state.

    Args:
        name: what messages call the model.
        inputs: reads its requests.
        states: what the node says.
        declared: the outputs of an exported program; None: nothing is known of them.
        axes: where the model has the requests.
        device: where it computes.

    Raises:
        ConfigError: if the shapes of its inputs are not known, or an output is not what the input takes.
    """
    specs = inputs.trial_specs()
    if states and specs is None:
        raise ConfigError("state: expected shapes in max, such as '8x512,8x128', which say how large it is, got none")

    largest = inputs.profiles[0].largest_items() if specs is not None else None
    known = [_sized(spec, item) for spec, item in zip(specs or (), largest, strict=True)] if largest else specs or []

    def placed(array: Array) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    shapes = (
        {} if declared is None else dict(zip([each for each, _ in declared], axes.row_shapes(declared), strict=True))
    )
    check_state(states, known, {wish.output: (None, shapes.get(wish.output, ())) for wish in states})
    return ModelState(name, states, known, shares_runs=not inputs.runs_alone, placed=placed)


def _sized(spec: InputSpec, largest: tuple[int, ...]) -> InputSpec:
    """Return an input of a module: how large it is, only ``max`` says, and of a state that has to be right."""
    sizes = zip(spec.shape[1:], largest, strict=True)
    return replace(spec, shape=(spec.shape[0], *[high if size == "?" else size for size, high in sizes]))
