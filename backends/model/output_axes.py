"""On which axis an output has the requests, where nothing says it: by two runs of different sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from .axes import Axes, Declared, Wishes
from .inputs import Array
from .row_proof import pseudo_random
from .shapes import InputSpec, Profile
from .trial_shapes import items_to_try

__all__ = ["looked_up", "unsaid_outputs"]

# Sizes of a batch that few other axes have.
_SIZES = (5, 3, 7, 2)


def unsaid_outputs(
    outputs: Sequence[Declared], wishes: Wishes, axes: Axes, batch: str, carried: Mapping[str, int]
) -> list[str]:
    """Return the outputs of which neither the node nor the file says where they have the requests.

    Where all inputs have them in front and none is shared, that is the custom for the outputs, too: none is returned.
    """
    if not any(axis != 0 for axis in axes.inputs):
        return []
    said = {*wishes.axes, *wishes.columns, *carried}
    return [name for name, shape in outputs if name not in said and not (batch and shape.count(batch) == 1)]


def looked_up(
    run: Callable[[list[Array]], list[Array]],
    specs: Sequence[InputSpec],
    profiles: Sequence[Profile],
    axes: Axes,
    names: Sequence[str],
    unsaid: Sequence[str],
) -> Axes:
    """Return axes with those of more outputs, as far as two runs tell: the one that has the size of the batch.

    It is a guess, as all axes are, until the rows are proved.

    Args:
        run: the model, on inputs as it takes them.
        specs: its inputs.
        profiles: what it takes of them.
        axes: what is known.
        names: of all outputs that ``run`` gives.
        unsaid: those to be found.
    """
    several = [profile for profile in profiles if profile.batch_sizes()[0] > 1]
    if not unsaid or not several:
        return axes
    profile = several[0]
    sizes = [size for size in (*_SIZES, *profile.batch_sizes()) if size in profile.batch_sizes()][:2]
    for items in items_to_try(profile, specs):
        try:
            runs = [run(axes.to_model(pseudo_random(specs, items, size))) for size in sizes]
        except Exception:  # of any library, about data that the model cannot take
            continue
        found = dict(axes.outputs)
        for name in unsaid:
            shapes = [outputs[list(names).index(name)].shape for outputs in runs]
            found_axes = [
                axis for axis, size in enumerate(zip(*shapes, strict=False)) if list(size) == sizes[: len(shapes)]
            ]
            if len(found_axes) == 1 and found_axes[0]:
                found[name] = found_axes[0]
        return replace(axes, outputs=found)
    return axes
