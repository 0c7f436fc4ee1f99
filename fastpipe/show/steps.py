"""What a node's steps say about it: its kind, and the files of its models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastpipe.config.plan import StepPlan
from fastpipe.config.sub_graphs import is_sub_graph
from fastpipe.config.values import constructor_parameters, names_existing
from fastpipe.show.parts import NodeKind

__all__ = ["files_of", "kind_of"]

# By the module of the step's class; of several steps, the first of these that one of them is.
_ROOMS: dict[NodeKind, str] = {
    "model": "fastpipe.backends.model.",
    "tensor": "fastpipe.backends.tensor.",
    "image": "fastpipe.backends.image.",
}


def kind_of(plan: StepPlan | None) -> NodeKind:
    """Return what a node is, by that of its steps which says most about it; None: a logical node."""
    if plan is None:
        return "basic"
    steps = list(plan.steps())
    if any(is_sub_graph(step) for step in steps):
        return "sub-graph"
    modules = [step.kind.__module__ for step in steps]
    for kind, room in _ROOMS.items():
        if any(module.startswith(room) for module in modules):
            return kind
    return "basic" if all(module.startswith("fastpipe.") for module in modules) else "own"


def files_of(plan: StepPlan | None) -> Iterator[str]:
    """Yield the names of the files that a node's steps read when they are built, without their folders."""
    for step in () if plan is None else plan.steps():
        if not isinstance(step.backend, type):
            continue
        annotations = constructor_parameters(step.backend)
        for key, value in step.parameters.items():
            if isinstance(value, Path) and key in annotations and names_existing(annotations[key].annotation):
                yield value.name
