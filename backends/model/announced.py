"""What servers tell of a model's inputs and outputs: see ``fastpipe.announcing``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from fastpipe.announcing import Announced, announced_array

from .axes import Axes, Declared
from .padded_axes import PaddedAxes
from .shapes import InputSpec

__all__ = ["announced_inputs", "announced_outputs", "with_padding"]


def announced_inputs(specs: Sequence[InputSpec], *, are_whole: bool = False) -> tuple[Announced, ...] | None:
    """Return the inputs that requests bring; None: the protocol has no datatype for one of them.

    Args:
        specs: of those inputs, with the batch in front.
        are_whole: a request has to bring all rows of the model's fixed batch.
    """
    found = []
    for spec in specs:
        shape = spec.full_shape if are_whole else spec.shape[1:]
        announced = announced_array(spec.name, spec.dtype.name, shape, "data")
        if announced is None:
            return None
        found.append(announced if len(specs) == 1 else replace(announced, item=spec.name))
    return tuple(found) or None


def announced_outputs(
    declared: Sequence[Declared],
    dtypes: Mapping[str, str],
    axes: Axes,
    batches: Collection[int | str] | None,
    *,
    as_dict: bool,
    padded: PaddedAxes | None,
) -> tuple[Announced, ...] | None:
    """Return the outputs that are handed out as they are; None: the protocol has no datatype for one of them.

    Args:
        declared: those outputs, with their axes.
        dtypes: of each, by name, in NumPy's words.
        axes: where the model has the requests.
        batches: what the axis of the requests is called, or may be, in an output that has one; None: it is known of
            all outputs where it is.
        as_dict: results are dicts by the outputs' names.
        padded: what is padded, and cut.
    """
    found = []
    for number, (name, shape) in enumerate(declared):
        axis = axes.outputs.get(name, 0)
        is_row = name not in axes.columns and axis is not None and axis < len(shape)
        is_row = is_row and (batches is None or shape[axis or 0] in batches)
        sizes: list[int | str] = list(shape)
        for each in () if padded is None else padded.of_outputs:
            for cut in each[number] or ():
                sizes[cut.axis if cut.axis > (axis or 0) else cut.axis - 1] = "cut"
        if name in axes.columns and sizes:
            sizes[0] = "rows"
        if is_row and axis is not None:
            del sizes[axis]
        announced = announced_array(name, dtypes[name], sizes, "result")
        if announced is None:
            return None
        item = name if as_dict else number if len(declared) > 1 else None
        found.append(replace(announced, item=item, sample_axis=axis if is_row else None))
    return tuple(found)


def with_padding(announced: Sequence[Announced] | None, padded: PaddedAxes) -> tuple[Announced, ...] | None:
    """Return inputs as they are where requests are padded: of any length, and without what is made for them."""
    if announced is None:
        return None
    found = []
    for each in announced:
        index = padded.names.index(each.name)
        shape = [-1 if axis in padded.item_axes[index] else size for axis, size in enumerate(each.shape)]
        found.append(replace(each, shape=tuple(shape), is_optional=index in padded.made_inputs))
    return tuple(found)
