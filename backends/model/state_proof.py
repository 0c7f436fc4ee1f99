"""Whether an output of a model can be its input of the next run: tried before a sequence depends on it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastpipe.errors import ConfigError

from ..kinds import may_become
from .inputs import Array
from .row_proof import pseudo_random
from .shapes import InputSpec, Profile
from .state import StateWish
from .trial_shapes import items_to_try

__all__ = ["check_state", "prove_state"]

# So many second runs are tried before a model is taken of which they do not tell; with up to five open axes, all are.
_MOST_RUNS = 32

Run = Callable[[list[Array]], list[Array]]


def check_state(
    states: Sequence[StateWish],
    specs: Sequence[InputSpec],
    outputs: Mapping[str, tuple[np.dtype[Any] | None, Sequence[Any]]],
) -> None:
    """Raise ConfigError for an output that, as it is declared, is not what the input takes.

    Args:
        states: of the node.
        specs: the model's inputs, with the batch in front.
        outputs: by name, dtype (None: not known) and shape with the requests in front; ``()``: not known.
    """
    by_name = {spec.name: spec for spec in specs}
    for wish in states:
        spec, (dtype, shape) = by_name[wish.input], outputs[wish.output]
        if dtype is not None and not may_become(dtype, spec.dtype):
            raise _refusal(wish, f"expected an output of {spec.dtype.name}, as the input is, got {dtype.name}")
        own, given = (spec.full_shape, shape) if spec.axis is None else (spec.shape[1:], shape[1:])
        is_same = len(own) == len(given) and all(
            wanted == got for wanted, got in zip(own, given, strict=True) if isinstance(wanted, int) and _is_known(got)
        )
        if shape and not is_same:
            what = "of shape" if spec.axis is None else "with, of one request, the shape"
            raise _refusal(wish, f"expected an output {what} {_shown(own)}, as the input has it, got {_shown(given)}")


def prove_state(
    run: Run,
    states: Sequence[StateWish],
    initial: Mapping[str, Array],
    specs: Sequence[InputSpec],
    profiles: Sequence[Profile],
) -> None:
    """Raise ConfigError if the model gives what it does not take: two runs of pseudo-random data, one behind the other.

    Where a state may grow, as a cache of what was read, other inputs may have to grow with it, and that is tried, too.
    A model that takes no such data at all cannot be tried, and is taken.

    Args:
        run: the model, on arrays with the requests in front; its last outputs are the states, in their order.
        states: of the node; none: there is nothing to try.
        initial: what a sequence begins with, by input, of one request.
        specs: the model's inputs, with the batch in front.
        profiles: what it takes of them.
    """
    if not states:
        return
    size = profiles[0].batch_sizes()[-1]
    for items in items_to_try(profiles[0], specs):
        begun = [_rows(initial[spec.name], spec, size) if spec.name in initial else None for spec in specs]
        try:
            outputs = run(_with(pseudo_random(specs, items, size), begun))
        except Exception as error:  # of any library, about data that the model cannot take
            if isinstance(error.__cause__, ConfigError):  # or of its outputs, which are not those that the node names
                raise error.__cause__ from error
            continue
        left = dict(zip([wish.input for wish in states], outputs[-len(states) :], strict=True))
        by_name = {spec.name: spec for spec in specs}
        for wish in states:
            _check_left(wish, by_name[wish.input], left[wish.input], size)
        failure: Exception | None = None
        growths = {
            after - before
            for index, spec in enumerate(specs)
            if (array := begun[index]) is not None
            for before, after in zip(array.shape, left[spec.name].shape, strict=True)
        }
        for number, other in enumerate(_grown(specs, items, growths - {0}, initial)):
            if number == _MOST_RUNS:
                return
            next_states = [left[spec.name].astype(spec.dtype) if spec.name in left else None for spec in specs]
            try:
                run(_with(pseudo_random(specs, other, size), next_states))
                return
            except Exception as error:  # of any library, about the state, as the other data are of the same kind
                failure = failure or error
        given = ", ".join(f"{left[wish.input].shape} for {wish.input!r}" for wish in states)
        raise _refusal(states[0], f"expected what a run gives to be taken by the next, got {given}: {failure}")


def _check_left(wish: StateWish, spec: InputSpec, left: Array, size: int) -> None:
    """Raise ConfigError if what a run has left is not of the input's kind and shape."""
    if not may_become(left.dtype, spec.dtype):
        raise _refusal(wish, f"expected an output of {spec.dtype.name}, as the input is, got {left.dtype.name}")
    wanted = spec.shape[1:] if spec.axis is None else (size, *spec.shape[1:])
    if len(left.shape) != len(wanted) or any(
        known != got for known, got in zip(wanted, left.shape, strict=True) if isinstance(known, int)
    ):
        raise _refusal(wish, f"expected an output of shape {_shown(wanted)}, as the input has it, got {left.shape}")


def _rows(array: Array, spec: InputSpec, size: int) -> Array:
    """Return a state of one request, with the batch axis or without it, for so many, with the requests in front."""
    if spec.axis is None:
        return array.reshape(array.shape[-(len(spec.shape) - 1) :]) if len(spec.shape) > 1 else array
    one = array if array.ndim < len(spec.shape) else np.moveaxis(array, spec.axis, 0)[0]
    return np.repeat(one[np.newaxis], size, axis=0)


def _with(arrays: Sequence[Array], states: Sequence[Array | None]) -> list[Array]:
    return [array if state is None else state for array, state in zip(arrays, states, strict=True)]


def _grown(
    specs: Sequence[InputSpec], items: list[tuple[int, ...]], growths: set[int], states: Mapping[str, Any]
) -> Iterator[list[tuple[int, ...]]]:
    """Yield shapes for the second run: the same, and with open axes of other inputs that have grown as a state has.

    First one axis, then several; those with one name grow together.
    """
    yield items
    places: dict[Hashable, list[tuple[int, int]]] = {}
    for index, spec in enumerate(specs):
        for axis, size in enumerate(spec.shape[1:]):
            if isinstance(size, str) and spec.name not in states:
                places.setdefault((index, axis) if size == "?" else size, []).append((index, axis))
    for count in range(1, len(places) + 1):
        for growth, chosen in itertools.product(growths, itertools.combinations(places.values(), count)):
            grown = [list(item) for item in items]
            for index, axis in itertools.chain(*chosen):
                grown[index][axis] += growth
            if all(grown[index][axis] > 0 for index, axis in itertools.chain(*chosen)):
                yield [tuple(item) for item in grown]


def _is_known(size: Any) -> bool:
    return isinstance(size, int)


def _shown(shape: Sequence[Any]) -> str:
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"


def _refusal(wish: StateWish, expected_and_got: str) -> ConfigError:
    return ConfigError(
        f"state, input {wish.input!r}, output {wish.output!r}: {expected_and_got}; name the output that the model "
        f"means as this input of the next run"
    )
