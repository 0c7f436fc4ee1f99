"""On which axis of each input and output a model has the requests, and which inputs a whole batch shares.

What a node says (``batch_axis``, ``shared``) counts first, then what the model's file says by the names of its axes,
then the custom: the first axis. All of it is a guess until ``row_proof`` has tried it.

Within fastpipe, arrays of several requests have them on the first axis, whatever the model wants; ``Axes`` moves them
there and back. An array that a whole batch shares has no axis for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from fastpipe.errors import ConfigError, nearest

from .shapes import InputSpec

__all__ = [
    "Axes",
    "Declared",
    "Wishes",
    "checked_axis",
    "in_place",
    "input_axes",
    "moved",
    "read_wishes",
    "settled",
    "with_axes",
]

Declared = tuple[str, tuple[int | str, ...]]
"""An output as the model declares it: its name, and its axes, a size, a name, or "?"; ``()``: nothing is known."""

# What exporters and people call the axis of the requests. A name is no proof: it decides what is tried.
_BATCH_NAMES = {"n", "b", "bs", "bsz"}

# An open axis of which the file says nothing, and one that got a number from torch's exporter, as nobody had named it.
_NO_NAME = re.compile(r"\?|.*_dynamic_axes_\d+", re.DOTALL)


class Said(NamedTuple):
    """The keys of a node about axes, as they were written."""

    batch_axis: Mapping[str, Any] | None
    shared: Sequence[str] | Mapping[str, Any] | None
    split_by: Mapping[str, Any] | None


@dataclass(frozen=True)
class Wishes:
    """What a node says of its model's axes.

    Args:
        axes: of inputs and outputs, by name; None: it has no axis for requests.
        columns: of outputs that have the rows of all requests together, the column with the request's number.
        inputs: names of the model's inputs; what it speaks of else are outputs.
        examples: values of inputs that the batch shares, with which the model is tried.
    """

    axes: Mapping[str, int | None]
    columns: Mapping[str, int]
    inputs: Sequence[str] = ()
    examples: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Axes:
    """Where a model has the requests.

    Args:
        inputs: of each the axis; None: the batch shares it.
        outputs: of those that do not have them in front, by name, the axis; None: the output is one for all.
        columns: of outputs that have the rows of all requests together, the column with the request's number.
    """

    inputs: tuple[int | None, ...]
    outputs: Mapping[str, int | None]
    columns: Mapping[str, int]

    @cached_property
    def is_plain(self) -> bool:
        """Whether all have them in front, as nearly every model."""
        return not any(axis != 0 for axis in self.inputs) and not self.outputs and not self.columns

    def has_rows(self, name: str) -> bool:
        """Say whether an output has a row for each request, once it is as ``to_rows`` makes it."""
        return name not in self.columns and self.outputs.get(name, 0) is not None

    def to_model(self, arrays: Sequence[Any]) -> list[Any]:
        """Return inputs as the model takes them, given with the requests in front; views."""
        return [moved(array, 0, axis) for array, axis in zip(arrays, self.inputs, strict=True)]

    def to_rows(self, names: Sequence[str], outputs: Sequence[Any]) -> list[Any]:
        """Return outputs of the model with the requests in front, where they are on an axis; views.

        One that has not so many axes stays as it is: whoever counts the rows finds it.
        """
        axes = [self.outputs.get(name, 0) if self.has_rows(name) else None for name in names]
        return [
            moved(output, axis, 0) if axis is not None and axis < output.ndim else output
            for output, axis in zip(outputs, axes, strict=True)
        ]

    def without_padding(self, names: Sequence[str], outputs: Sequence[Any], total: int) -> list[Any]:
        """Return outputs, as ``to_rows`` makes them, without the rows that were filled up."""
        return [output[:total] if self.has_rows(name) else output for name, output in zip(names, outputs, strict=True)]

    def row_shapes(self, declared: Sequence[Declared]) -> list[tuple[int | str, ...]]:
        """Return the shapes of outputs as postprocessors get them; ``()`` of what has no row for each request."""
        return [
            _with_first(shape, self.outputs.get(name) or 0) if self.has_rows(name) else () for name, shape in declared
        ]


def in_place(shape: Sequence[Any], axis: int | None) -> tuple[Any, ...]:
    """Return the shape of an output that ``to_rows`` has changed, as the model has it."""
    if not axis or axis >= len(shape):
        return tuple(shape)
    return (*shape[1 : axis + 1], shape[0], *shape[axis + 1 :])


def moved(array: Any, source: int | None, target: int | None) -> Any:
    """Return a view of an array, of NumPy or torch, with one axis at another place; None: there is no such axis."""
    if source == target or source is None or target is None:
        return array
    return np.moveaxis(array, source, target) if isinstance(array, np.ndarray) else array.movedim(source, target)


def read_wishes(
    batch_axis: Mapping[str, Any] | None,
    shared: Sequence[str] | Mapping[str, Any] | None,
    split_by: Mapping[str, Any] | None,
    inputs: Sequence[str] | None,
    outputs: Sequence[str] | None,
) -> Wishes:
    """Return what a node says, checked against the names that its model has (None: it does not say them).

    Raises:
        ConfigError: if there is no such name, a value is no axis, or two keys contradict each other.
    """
    known = None if inputs is None or outputs is None else [*inputs, *outputs]
    axes: dict[str, int | None] = {}
    for name, value in (batch_axis or {}).items():
        _check_name("batch_axis", "input or output", name, known)
        axes[name] = _axis_of(name, value)
    for name in shared or ():
        _check_name("shared", "input", name, inputs)
        if axes.setdefault(name, None) is not None:
            raise ConfigError(
                f"input {name!r}, axis {axes[name]}: shared says that it has no axis for requests, batch_axis that it "
                f"has one; leave one of them out"
            )
    columns = {}
    for name, column in (split_by or {}).items():
        _check_name("split_by", "output", name, outputs)
        if isinstance(column, bool) or not isinstance(column, int) or column < 0:
            raise ConfigError(
                f"output {name!r}, split_by: expected the number of the column that has the request's number, such as "
                f"0, got {column!r}"
            )
        if name in axes:
            raise ConfigError(f"output {name!r}: split_by and batch_axis contradict each other; leave one of them out")
        columns[name] = column
    examples = shared if isinstance(shared, Mapping) else {}
    return Wishes(axes, columns, tuple(inputs or ()), examples)


def input_axes(specs: Sequence[InputSpec], wishes: Wishes) -> tuple[list[int | None], str]:
    """Return the axis of each input, and the name that the batch has in the file, "" if it has none.

    Args:
        specs: with their axes in the model's order.
        wishes: of the node.

    Raises:
        ConfigError: if an input has no axis of that number.
    """
    said = {spec.name: _within(spec, wishes.axes[spec.name]) for spec in specs if spec.name in wishes.axes}
    batch = _batch_name(specs, said)
    others = {name for spec in specs if batch in spec.shape for name in spec.shape if isinstance(name, str)} - {batch}
    is_open = any(
        isinstance(spec.shape[axis], str)
        for spec in specs
        if (axis := said.get(spec.name, 0)) is not None and axis < len(spec.shape)
    )
    fixed = {spec.shape[0] for spec in specs if spec.name not in said and isinstance((*spec.shape, "?")[0], int)}
    axes = [
        said[spec.name]
        if spec.name in said
        else _guess(spec.shape, batch, others - {"?"}, is_open=is_open or bool(batch), is_one=len(fixed) == 1)
        for spec in specs
    ]
    return axes, batch


def with_axes(specs: Sequence[InputSpec], axes: Sequence[int | None], wishes: Wishes) -> list[InputSpec]:
    """Return inputs whose ``shape`` begins with the batch, given with their axes in the model's order."""
    found = []
    for spec, axis in zip(specs, axes, strict=True):
        if axis is None:
            ranges = ((1, None), *spec.ranges) if spec.ranges else ()
            example = wishes.examples.get(spec.name)
            is_said = spec.name in wishes.axes
            found.append(
                replace(spec, shape=("?", *spec.shape), ranges=ranges, axis=None, example=example, is_said=is_said)
            )
        else:
            shape, ranges = _with_first(spec.shape, axis), _with_first(spec.ranges, axis)
            found.append(replace(spec, shape=shape, ranges=ranges, axis=axis))
    return found


def settled(
    outputs: Sequence[Declared] | None,
    wishes: Wishes,
    axes: Sequence[int | None],
    batch: str = "",
    carried: Mapping[str, int] | None = None,
) -> Axes:
    """Return where a model has the requests.

    Args:
        outputs: as the model declares them; None: it does not, and what the node says of them is all that is known.
        wishes: of the node.
        axes: of the inputs.
        batch: what the batch is called in the file; "": nothing.
        carried: of outputs to which the batch axis was followed through the graph, the axis.

    Raises:
        ConfigError: if an output has no axis of that number.
    """
    if outputs is None:
        said = {name: axis for name, axis in wishes.axes.items() if axis != 0}
        for name, axis in said.items():
            if axis is not None and axis < 0 and name not in wishes.inputs:
                raise ConfigError(
                    f"output {name!r}, batch_axis: expected an axis counted from 0, as the model does not say how many "
                    f"it has, got {axis}"
                )
        return Axes(tuple(axes), said, wishes.columns)
    return Axes(tuple(axes), _output_axes(outputs, wishes, batch, carried or {}), wishes.columns)


def _output_axes(
    outputs: Sequence[Declared], wishes: Wishes, batch: str, carried: Mapping[str, int]
) -> dict[str, int | None]:
    """Return the axis of each output that does not have the requests in front."""
    axes: dict[str, int | None] = {}
    for name, shape in outputs:
        if name in wishes.columns:
            continue
        if name in wishes.axes:
            axes[name] = checked_axis("output", name, wishes.axes[name], shape)
        elif name in carried:
            axes[name] = carried[name]
        elif batch and shape.count(batch) == 1:
            axes[name] = shape.index(batch)
    return {name: axis for name, axis in axes.items() if axis != 0}


def _guess(shape: tuple[int | str, ...], batch: str, others: set[str], *, is_open: bool, is_one: bool) -> int | None:
    """Return the axis on which an input has the requests, as far as its shape tells."""
    if not shape:
        return None
    if batch and shape.count(batch) == 1:
        return shape.index(batch)
    first = shape[0]
    if isinstance(first, str):
        return None if first in others else 0
    if first == 0:
        return None
    if not is_open:
        # Nothing is open: a batch of that size, where all agree on it.
        return 0 if is_one or first == 1 else None
    # Beside inputs whose batch is open, what is fixed in front is none: layers of a state, whose open axis is the
    # batch, or numbers for all.
    unnamed = [axis for axis, size in enumerate(shape) if isinstance(size, str) and _NO_NAME.fullmatch(size)]
    return unnamed[0] if len(unnamed) == 1 else None


def _batch_name(specs: Sequence[InputSpec], said: Mapping[str, int | None]) -> str:
    """Return what the inputs call the batch; "": they do not say, or contradict each other."""
    for spec in specs:
        axis = said.get(spec.name)
        if axis is not None and isinstance(spec.shape[axis], str) and spec.shape[axis] != "?":
            return str(spec.shape[axis])
    shapes = [spec.shape for spec in specs if spec.name not in said and spec.shape]
    names = {name for shape in shapes for name in shape if isinstance(name, str) and name != "?"}
    ranks = sorted([_rank(name, shapes) for name in names], reverse=True)
    if not ranks or (len(ranks) > 1 and ranks[0][:2] == ranks[1][:2]):
        return ""
    return ranks[0][-1] if ranks[0][0] or ranks[0][1] > 0 else ""


def _rank(name: str, shapes: Sequence[tuple[int | str, ...]]) -> tuple[bool, int, str]:
    """Return how likely a name is the batch's: by the word, then by how many inputs have it in front.

    One that says nothing may be elsewhere only behind a number of layers; a letter has to be in front of some input, as
    it may stand for points or boxes as well.
    """
    once = [shape for shape in shapes if shape.count(name) == 1]
    elsewhere = [shape[0] for shape in once if shape[0] != name]
    is_word = "batch" in name.lower() or (name.lower() in _BATCH_NAMES and len(elsewhere) < len(once))
    if not is_word and not all(isinstance(first, int) and first > 1 for first in elsewhere):
        return False, 0, name
    return is_word and bool(once), len(once) - len(elsewhere), name


def _with_first(parts: tuple[Any, ...], axis: int) -> tuple[Any, ...]:
    return (parts[axis], *parts[:axis], *parts[axis + 1 :]) if parts else parts


def _within(spec: InputSpec, axis: int | None) -> int | None:
    return checked_axis("input", spec.name, axis, spec.shape)


def checked_axis(what: str, name: str, axis: int | None, shape: tuple[int | str, ...]) -> int | None:
    """Return an axis that a node has named, from 0, for an input or output of this shape.

    Raises:
        ConfigError: if it has no such axis.
    """
    if axis is None or not shape:
        if axis is not None and what == "input":
            raise ConfigError(
                f"input {name!r}, batch_axis: expected 'none', as it has no axes, got {axis}; the whole batch shares it"
            )
        return axis
    if not -len(shape) <= axis < len(shape):
        raise ConfigError(
            f"{what} {name!r}, batch_axis: expected an axis from 0 to {len(shape) - 1}, or 'none', got {axis}; its "
            f"axes are {shape}"
        )
    return axis % len(shape)


def _axis_of(name: str, value: Any) -> int | None:
    if value is None or (isinstance(value, str) and value.lower() == "none"):
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(
            f"{name!r}, batch_axis: expected the number of an axis, or 'none' where it has none for requests, got "
            f"{value!r}"
        )
    return value


def _check_name(key: str, what: str, name: Any, known: Sequence[str] | None) -> None:
    if known is not None and name not in known:
        raise ConfigError(f"{key}: the model has no {what} {name!r}{nearest(str(name), known)}; it has {list(known)}")
