"""Where a torch model has the requests: what an exported program says of its outputs, and a model called by rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fastpipe.errors import BackendError, ConfigError, nearest

from .answers import chosen_outputs
from .axes import Axes, Declared, Wishes
from .row_proof import Output
from .shapes import InputSpec
from .state import handed_on

__all__ = ["FLAT_OUTPUTS", "ModelByRows", "ProgramOutput", "described", "known_outputs", "outputs_of"]

FLAT_OUTPUTS = (
    "a model may give a tensor, a list or tuple of tensors, or a dict of tensors, whose values are taken in their "
    "order; one that gives more than that needs a module around it which gives them flat"
)
"""What to do about a model whose outputs are nested, or no tensors."""


class ProgramOutput(NamedTuple):
    """What an exported program says of an output: the exporter has followed every axis, by a symbol."""

    name: int | str  # its number, where it has no name
    shape: tuple[int | str, ...]
    counted_by: str  # what makes as many rows as the data have it, where something does
    dtype: str  # in NumPy's words

    @property
    def declared(self) -> Declared:
        """Its name and shape."""
        return str(self.name), self.shape


def outputs_of(program: Any, names: Sequence[int | str]) -> list[ProgramOutput]:
    """Return the outputs of an exported program.

    A symbol that is "unbacked" stands for a number that only the data tell.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    outputs = []
    for name, node in zip(names, program.graph_signature.user_outputs, strict=True):
        sizes: Sequence[Any] = getattr(values.get(node), "shape", ())
        first = sizes[0] if len(sizes) else None
        counted = "" if not isinstance(first, torch.SymInt) or first.node.has_hint() else f"the program, by {first},"
        shape = tuple([size if isinstance(size, int) else str(size) for size in sizes])
        dtype = str(getattr(values.get(node), "dtype", "")).removeprefix("torch.")
        outputs.append(ProgramOutput(name, shape, counted, dtype))
    return outputs


def described(
    outputs: Sequence[ProgramOutput] | None, handed_on: Sequence[str] | None, states: Sequence[str]
) -> tuple[list[Declared], dict[str, str]]:
    """Return the outputs that answers have, as an exported program declares them, and their dtypes by name.

    Args:
        outputs: of the program; None: the model is none, and there are none.
        handed_on: the names of those that a run gives, in their order.
        states: those of them that are kept for the next run.
    """
    known = {str(output.name): output for output in outputs or ()}
    answered = [name for name in handed_on or () if name in known and name not in states]
    return [known[name].declared for name in answered], {name: known[name].dtype for name in answered}


def known_outputs(
    outputs: Sequence[ProgramOutput] | None,
    axes: Axes,
    specs: Sequence[InputSpec] | None,
    chosen: Sequence[str] | None,
) -> list[Output] | None:
    """Return what is known of a model's outputs before anything is run, for the proof of their rows.

    One that has the symbol that all inputs have on their batch axes, has the requests' rows there.

    Args:
        outputs: of an exported program; None: nothing is known.
        axes: where the requests are.
        specs: its inputs.
        chosen: names of the outputs that are handed on, in their order; None: all of them.
    """
    if outputs is None:
        return None
    batches = {spec.shape[0] for spec in specs or () if not spec.is_shared}
    known = []
    by_name = {str(output.name): output for output in outputs}
    for name in by_name if chosen is None else chosen:
        output = by_name[name]
        axis = axes.outputs.get(name, 0)
        is_carried = (
            axes.has_rows(name) and axis is not None and axis < len(output.shape) and {output.shape[axis]} == batches
        )
        is_named = isinstance(output.shape[axis or 0], str) if output.shape else False
        counted = "" if name in axes.columns else output.counted_by
        known.append(Output(output.name, is_carried and is_named, counted))
    return known


class ModelByRows:
    """A model of torch that takes and gives tensors with the requests in front, wherever it has them itself.

    Args:
        module: is called with tensors, as it takes them.
        axes: where it has the requests; ``inputs`` ``()``: in front of all.
        wishes: of the node; those about outputs are held against their names when it has given some.
        wanted: names of the outputs that are handed on; None: all.
        name: what messages call the model.
        states: names of outputs that are kept for the next run: they are behind the others, also in ``wanted``.

    Attributes:
        names: of the outputs that are handed on, as the last run gave them.
        chosen: the names that were asked for; None: all are handed on.

    Thread-safety: one thread at a time.
    """

    def __init__(
        self,
        module: Callable[..., Any],
        axes: Axes,
        wishes: Wishes,
        wanted: Sequence[str] | None,
        name: str,
        states: Sequence[str] = (),
    ) -> None:
        self._module, self._axes, self.chosen, self._name = module, axes, wanted, name
        self._states = states
        self._named = [each for each in (*wishes.axes, *wishes.columns) if each not in wishes.inputs]
        self.names: list[int | str] = []

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Run the model on tensors with the requests in front.

        Raises:
            BackendError: if it gives what are no tensors, or not the outputs that the node speaks of.
        """
        given = self.as_it_is(*(self._axes.to_model(inputs) if self._axes.inputs else inputs))
        return given if self._axes.is_plain else self._axes.to_rows([str(each) for each in self.names], given)

    def as_it_is(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Run the model on tensors as it takes them, and return its outputs as they are."""
        named = self._by_name(self._module(*inputs))
        self.names = list(named)
        return list(named.values())

    def _by_name(self, given: Any) -> Mapping[int | str, torch.Tensor]:
        listed = list(given) if isinstance(given, list | tuple) else [given]
        outputs = given if isinstance(given, dict) else dict(enumerate(listed))
        for name, output in outputs.items():
            if not isinstance(output, torch.Tensor):
                raise BackendError(
                    f"{self._name}, output {name!r}: expected a tensor, got a {type(output).__name__}: {FLAT_OUTPUTS}"
                )
        if self.chosen is None and not self._named and not self._states:
            return outputs
        by_text = {str(name): name for name in outputs}
        try:
            if missing := [name for name in self._states if name not in by_text]:
                near = nearest(missing[0], list(by_text))
                raise ConfigError(f"state: the model has no output {missing[0]!r}{near}; it has {list(by_text)}")
            names = self.chosen or handed_on(None, list(by_text), self._states)
            chosen = [by_text[name] for name in chosen_outputs(names, list(by_text))]
            if self._named:
                chosen_outputs(list(dict.fromkeys(self._named)), list(by_text))
        except ConfigError as error:
            raise BackendError(f"{self._name}, {error}") from error
        return {name: outputs[name] for name in chosen}
