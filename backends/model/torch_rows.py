"""What an exported program says of the rows of its outputs: the exporter has followed every axis, by a symbol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .row_proof import Output
from .shapes import InputSpec

__all__ = ["outputs_of"]


def outputs_of(program: Any, specs: Sequence[InputSpec]) -> list[Output]:
    """Return the outputs of an exported program whose inputs are these.

    One whose first axis is the symbol that all inputs have in front has the requests' rows. A symbol that is "unbacked"
    stands for a number that only the data tell.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    firsts = {spec.shape[0] for spec in specs if spec.shape}
    outputs = []
    for index, name in enumerate(program.graph_signature.user_outputs):
        shape: Sequence[Any] = getattr(values.get(name), "shape", ())
        first = shape[0] if len(shape) else None
        is_carried = isinstance(first, torch.SymInt) and firsts == {str(first)}
        counted = "" if not isinstance(first, torch.SymInt) or first.node.has_hint() else f"the program, by {first},"
        outputs.append(Output(index, is_carried, counted))
    return outputs
