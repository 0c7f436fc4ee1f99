"""Which shapes an engine of TensorRT is built for, and where its network has the requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastpipe.errors import ConfigError

from .axes import Said, Wishes, input_axes, read_wishes, with_axes
from .onnx_runtime.rows import Graph, read_graph
from .shapes import InputSpec, Profile
from .tensorrt_api import ProfileShapes, TensorInfo

__all__ = ["EngineAxes", "open_shape", "profile_shapes"]


class EngineAxes(NamedTuple):
    """What is known of the axes of a network before it is built."""

    model: Path | bytes
    graph: Graph | None  # as its file has it
    added_suffix: str  # of the names of inputs that are normalised
    said: Said

    def description(self) -> dict[str, str]:
        """Return what an engine depends on."""
        said = (self.said.batch_axis, list(self.said.shared or ()))
        return {"axes": str(said)} if any(said) else {}

    def specs(self, inputs: Sequence[TensorInfo], outputs: Sequence[str] | None) -> tuple[list[InputSpec], Wishes, str]:
        """Return the inputs, what the node says of axes, and what the file calls the batch, as ``input_axes`` does.

        Args:
            inputs: of the network.
            outputs: names of its outputs; None: they are not known yet.
        """
        specs = _named(_specs(inputs), self.graph, self.added_suffix)
        wishes = read_wishes(*self.said, [spec.name for spec in specs], outputs)
        axes, batch = input_axes(specs, wishes)
        return with_axes(specs, axes, wishes), wishes, batch

    def graph_of(self, specs: Sequence[InputSpec]) -> Graph | None:
        """Return what the file says where the inputs have the batch on these axes; None: nothing can be read."""
        if self.graph is None or all(spec.axis == 0 for spec in specs):
            return self.graph
        axes = {spec.name: spec.axis for spec in specs}
        given = {name: axes.get(name.removesuffix(self.added_suffix)) for name in self.graph.inputs}
        return read_graph(self.model, given)


def _specs(inputs: Sequence[TensorInfo]) -> list[InputSpec]:
    for info in inputs:
        if info.dtype == "bfloat16":
            raise ConfigError(f"input {info.name!r} is bfloat16, which no request can be checked for; make it float32")
    return [InputSpec(info.name, np.dtype(info.dtype), open_shape(info.shape)) for info in inputs]


def open_shape(shape: Sequence[int]) -> tuple[int | str, ...]:
    """Return a shape of an engine with "?" for its open axes."""
    return tuple(size if size >= 0 else "?" for size in shape)


def _named(specs: Sequence[InputSpec], graph: Graph | None, added_suffix: str) -> list[InputSpec]:
    """Return inputs with the names that the file has for their open axes, and without what normalisation put there."""
    named = []
    for spec in specs:
        axes = graph.inputs.get(spec.name, spec.shape) if graph is not None else spec.shape
        shape = tuple(name if size == "?" else size for size, name in zip(spec.shape, axes, strict=True))
        named.append(InputSpec(spec.name.removesuffix(added_suffix), spec.dtype, shape))
    return named


def profile_shapes(names: Sequence[str], specs: Sequence[InputSpec], profile: Profile) -> ProfileShapes:
    """Return the smallest, the usual and the largest shapes of a profile, by the names that the network has.

    Raises:
        ConfigError: if an axis has no largest size.
    """
    largest = profile.largest_items()
    if largest is None:
        open_inputs = [
            f"{spec.name!r} {('batch', *spec.shape[1:])}"
            for spec, limits in zip(specs, profile.limits, strict=True)
            if any(high is None for _, high in limits)
        ]
        raise ConfigError(
            f"max must say the largest size of every axis that the model leaves open, as in '8x3x224x224': "
            f"{', '.join(open_inputs)}"
        )
    sizes = profile.batch_sizes()
    most, least = sizes[0], sizes[-1]
    return {
        name: (spec.full([low for low, _ in limits], least), spec.full(item, most), spec.full(item, most))
        for name, spec, limits, item in zip(names, specs, profile.limits, largest, strict=True)
    }
