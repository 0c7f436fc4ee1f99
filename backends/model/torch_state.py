"""What a torch model carries from run to run, on the model's device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fastpipe.errors import ConfigError

from .axes import Axes, Declared
from .inputs import Array
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

    # Of a module nobody says how large its inputs are but max, which has to be right of what is kept.
    largest = inputs.profiles[0].largest_items() if specs is not None else None
    specs = [
        replace(
            spec,
            shape=tuple([high if size == "?" else size for size, high in zip(spec.shape, ("?", *item), strict=True)]),
        )
        for spec, item in zip(specs or (), largest or [spec.shape[1:] for spec in specs or ()], strict=True)
    ]

    def placed(array: Array) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    shapes = (
        {} if declared is None else dict(zip([each for each, _ in declared], axes.row_shapes(declared), strict=True))
    )
    check_state(states, specs, {wish.output: (None, shapes.get(wish.output, ())) for wish in states})
    return ModelState(name, states, specs, shares_runs=not inputs.runs_alone, placed=placed)
