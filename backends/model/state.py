"""A model's state: outputs of a run that are inputs of the next run of the same sequence (the node's ``state_of``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fastpipe.contract import Request
from fastpipe.errors import ConfigError, KernelError, nearest
from fastpipe.summaries import summarize

from .answers import chosen_outputs
from .axes import Axes, Wishes
from .inputs import Array
from .shapes import InputSpec

__all__ = ["ModelState", "StateWish", "handed_on", "read_state", "with_states"]


class StateWish(NamedTuple):
    """What a node says of one input that is a state."""

    input: str
    output: str
    initial: Any  # a number, or an array of one request's


def read_state(
    written: Mapping[str, Any] | None,
    inputs: Sequence[str] | None,
    outputs: Sequence[str] | None,
    *,
    many_rows: bool,
    is_padded: bool,
) -> list[StateWish]:
    """Return what a node says of its model's state, checked against the names that the model has.

    Args:
        written: of the node.
        inputs: names of the model's inputs; None: it names none.
        outputs: names of its outputs; None: they are not known before it has run.
        many_rows: requests may bring several rows.
        is_padded: requests of different lengths are padded.

    Raises:
        ConfigError: if there is no such input or output, or one output is to be several inputs, or a state does not go
            with what else the node says.
    """
    if written and many_rows:
        raise ConfigError("state and many_rows: a request of several rows would need several states; send each alone")
    if written and is_padded:
        raise ConfigError(
            "state and pad: a state would have gone through the padding, too; leave one of the two out, without pad "
            "requests of equal length share runs"
        )
    if written and inputs is None:
        raise ConfigError("state: expected a model that names its inputs, got one that takes any number of them")
    inputs = inputs or ()
    there_are = "" if outputs is None else f"; it has {list(outputs)}"
    wishes = []
    for name, value in (written or {}).items():
        table = value if isinstance(value, Mapping) else {"output": value}
        if name not in inputs:
            raise ConfigError(f"state: the model has no input {name!r}{nearest(name, inputs)}; it has {list(inputs)}")
        if unknown := table.keys() - {"output", "initial"}:
            raise ConfigError(f"state, input {name!r}: expected output and initial, got {sorted(unknown)[0]!r}")
        if "output" not in table:
            raise ConfigError(
                f"state, input {name!r}: expected output, the name of the output that is this input of the next run, "
                f"got only {', '.join(map(repr, table)) or 'an empty table'}{there_are}"
            )
        output = table["output"]
        if outputs is not None and output not in outputs:
            near = nearest(str(output), outputs)
            raise ConfigError(f"state, input {name!r}: the model has no output {output!r}{near}{there_are}")
        wishes.append(StateWish(name, str(output), table.get("initial", 0)))
    if len({wish.output for wish in wishes}) < len(wishes):
        raise ConfigError("state: each input needs an output of its own")
    if wishes and len(wishes) == len(inputs):
        raise ConfigError("state: at least one input has to be the request's data")
    return wishes


def handed_on(wanted: Sequence[str] | None, known: Sequence[str] | None, states: Sequence[str]) -> list[str]:
    """Return the names of the outputs that a run gives: those that are wanted, else all others, and then the states.

    Args:
        wanted: by the node; None: all.
        known: the model's outputs; None: they are not known, and some are wanted.
        states: those that are kept for the next run.

    Raises:
        ConfigError: if the model has no such output, or one that is wanted is a state.
    """
    answered = list(wanted or ()) if known is None else chosen_outputs(wanted, known)
    if both := [name for name in answered if wanted is not None and name in states]:
        raise ConfigError(f"outputs: {both[0]!r} is a state: take it out of one of the two")
    own = [name for name in answered if name not in states]
    if not own:
        raise ConfigError("state: at least one output has to be the request's answer")
    return [*own, *states]


def with_states(wishes: Wishes, states: Sequence[StateWish], axes: Mapping[str, int | None]) -> Wishes:
    """Have an output that is a state, of which the node says nothing else, on the axis on which it is an input."""
    same = {wish.output: axis for wish in states if (axis := axes[wish.input]) is not None}
    return replace(wishes, axes={**same, **wishes.axes})


class ModelState:
    """Adds a sequence's state to a request's data, and keeps what a run makes of it.

    A state is a dict, by the inputs' names, of arrays: of one request each, with or without the batch axis.

    Args:
        model: what messages call the model.
        wishes: of the node; none: the model has no state.
        specs: the model's inputs, with the batch in front (``with_axes``).
        shares_runs: whether requests share runs of the model.
        placed: puts what a sequence begins with where the model's inputs are; without it, it stays on the CPU.

    Raises:
        ConfigError: if an input has no axis for requests and they share runs, or nobody says how large it is.

    Thread-safety: any thread may call it.
    """

    def __init__(
        self,
        model: str,
        wishes: Sequence[StateWish],
        specs: Sequence[InputSpec],
        *,
        shares_runs: bool,
        placed: Callable[[Array], Any] | None = None,
    ) -> None:
        self._model = model
        self._wishes = list(wishes)
        self.inputs = [wish.input for wish in wishes]
        self.outputs = [wish.output for wish in wishes]
        self._order = [spec.name for spec in specs]
        self._free = [name for name in self._order if name not in self.inputs]
        by_name = {spec.name: spec for spec in specs}
        self.initial = {wish.input: _initial(wish, by_name[wish.input], shares_runs) for wish in wishes}
        """With what a sequence begins, by the inputs' names, in the order of ``outputs``."""
        self.initial_arrays = self.initial
        """The same where it was written, as arrays of NumPy."""
        if placed is not None:
            self.initial = {name: placed(array) for name, array in self.initial.items()}

    def __bool__(self) -> bool:
        return bool(self._wishes)

    def data_of(self, request: Request) -> list[Any]:
        """Return a request's data in the model's order, with its state.

        Raises:
            KernelError: if the data is not what the other inputs take.
        """
        data = request["data"]
        if isinstance(data, Mapping):
            values = dict(data)
        else:
            given = list(data) if isinstance(data, list | tuple) else [data]
            values = dict(zip(self._free, given, strict=False)) if len(given) == len(self._free) else {}
        if values.keys() != set(self._free):
            got = summarize(list(data)) if isinstance(data, Mapping) else f"{len(given)} of them"
            raise KernelError(
                f"{self._model}: expected data for the inputs {self._free} ({', '.join(self.inputs)} is what the pipe "
                f"keeps), got {got}"
            )
        values |= request.get("state") or self.initial
        return [values[name] for name in self._order]

    def keep_whole(self, outputs: list[Any], request: Request) -> None:
        """Keep what the run of one request has left."""
        request["state"] = dict(zip(self.inputs, outputs, strict=True))

    def keep(self, axes: Axes, outputs: Sequence[Any], requests: Sequence[Request]) -> None:
        """Keep what a run has left, its outputs with the requests in front: copies, so that no batch stays for one."""
        if not self._wishes:
            return
        kept: list[dict[str, Any]] = [{} for _ in requests]
        for wish, output in zip(self._wishes, outputs, strict=True):
            has_rows = axes.has_rows(wish.output) and len(output) == len(requests)
            for number, state in enumerate(kept):
                state[wish.input] = _copied(output[number] if has_rows else output)
        for request, state in zip(requests, kept, strict=True):
            request["state"] = state


def _copied(array: Any) -> Any:
    return array.copy() if isinstance(array, np.ndarray) else array.clone()


def _initial(wish: StateWish, spec: InputSpec, shares_runs: bool) -> Array:
    """Return what a sequence begins with."""
    if spec.axis is None and shares_runs:
        raise ConfigError(
            f"state, input {wish.input!r}: expected an axis for requests, which have a state each, got none; "
            f"batch_axis says which one it is, and a model that cannot be batched needs max=1"
        )
    try:
        given = np.asarray(wish.initial, spec.dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"state, input {wish.input!r}: initial is no {spec.dtype.name}: {error}") from error
    shape = spec.shape[1:]
    if given.ndim:
        _check_shape(wish, spec, given.shape)
        return given
    if any(isinstance(size, str) for size in shape):
        raise ConfigError(
            f"state, input {wish.input!r}: the model leaves open how large it is, {spec.shape}: say what a sequence "
            f'begins with, {wish.input} = {{ output = "{wish.output}", initial = [...] }}'
        )
    return np.full([int(size) for size in shape], given, spec.dtype)


def _check_shape(wish: StateWish, spec: InputSpec, shape: tuple[int, ...]) -> None:
    """Raise ConfigError if a sequence begins with what is not of one request's shape; the batch axis may be missing."""
    wanted, given = spec.shape[1:], list(shape)
    if spec.axis is not None and len(given) == len(wanted) + 1 and given[spec.axis] == 1:
        del given[spec.axis]
    whole = (spec.shape[0], *wanted) if spec.axis is None else None
    fits = any(
        len(each) == len(given)
        and all(isinstance(size, str) or size == got for size, got in zip(each, given, strict=True))
        for each in (wanted, whole)
        if each is not None
    )
    if not fits:
        text = ", ".join(map(str, wanted)) + "," * (len(wanted) == 1)
        raise ConfigError(
            f"state, input {wish.input!r}, initial: expected one request's, of shape ({text}), or one number, which "
            f"fills it, got shape {shape}"
        )
