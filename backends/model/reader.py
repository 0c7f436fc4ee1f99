"""Reads requests for a model: their data in the model's order, checked against what it takes; a library's part is left.

``ModelInputs`` reads NumPy's arrays, ``TorchInputs`` and ``EngineInputs`` torch's tensors.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastpipe.contract import Request
from fastpipe.errors import KernelError
from fastpipe.summaries import summarize

from ..ranges import overflow_error
from .shapes import InputSpec, Limits, Profile, advice_on_empty, is_within

__all__ = ["Fit", "RequestReader", "Sample", "Signature", "UnfitError"]

# The values of what a batch shares are compared up to so many bytes; a request with more of them runs alone.
_LARGEST_COMPARED_BYTES = 1 << 16

# How many combinations of shapes and dtypes are remembered as checked; a model fed with more starts anew. Each takes
# about half a kilobyte.
_REMEMBERED_FITS = 1024

Signature = tuple[tuple[Any, ...], ...]
"""Of each array its shape, its dtype, and whatever else must be equal within a batch."""


class Fit(NamedTuple):
    """What was found out about arrays of certain shapes and dtypes."""

    profile: Profile
    item_shapes: tuple[tuple[int, ...], ...]  # of each input, without the batch axis
    dtypes: tuple[Any, ...]  # what the model gets
    key: tuple[Hashable, Hashable]  # equal for all that may share a batch, with or without a batch axis
    narrowed: tuple[int, ...]  # the inputs whose numbers may become infinite in the type that the model gets
    rows: int = 1  # so many rows of a batch are this request's
    as_it_comes: tuple[tuple[int, ...], ...] | None = None  # what the model gets instead, alone: the request's shapes
    whole: tuple[tuple[int, ...], ...] | None = None  # of a request that is one row, and could be a batch: its shapes


class Sample(NamedTuple):
    """The data of one request."""

    arrays: tuple[Any, ...]  # one for each input, as they came; often the caller's own memory
    fit: Fit
    is_torch: bool  # some of it came as torch tensors, so that is how the result leaves
    shared: Hashable = None  # the values of the inputs that a batch shares

    @property
    def key(self) -> Hashable:
        """Equal keys may share a batch."""
        return self.fit.key, self.is_torch, self.shared


class UnfitError(Exception):
    """Some requests of a group cannot be run after all, and nobody has a result; the others can be, without them.

    Args:
        errors: of those requests, by their index in the group; at least one.
    """

    def __init__(self, errors: Mapping[int, KernelError]) -> None:
        super().__init__(f"{len(errors)} requests")
        self.errors = dict(errors)


class RequestReader(ABC):
    """Reads requests for one model; what depends on whose arrays they are, a subclass says.

    Args:
        model: what messages call the model.
        names: of its inputs, in its order; None: it names none, and takes any number.
        required: so many of them have to be given.
        specs: what it says of its inputs; None: nothing.
        profiles: what it takes of them; at least one.

    Thread-safety: any thread may call it.
    """

    noun = "array"
    """What messages call one of the things that a request has."""

    takes_many_rows: bool
    """Whether a request may bring any number of rows."""

    runs_alone: bool
    """Whether every request has a run for itself, and may so have any shape that the model takes."""

    fits: dict[Hashable, Fit]
    """What was found out, by the signatures of arrays. For reading only."""

    def __init__(
        self,
        model: str,
        names: Sequence[str] | None,
        required: int,
        specs: Sequence[InputSpec] | None,
        profiles: Sequence[Profile],
    ) -> None:
        self._model = model
        self._names = None if names is None else list(names)
        self._required = required
        self._specs = None if specs is None else tuple(specs)
        self._most = len(specs) if specs is not None else len(names) if names is not None else None
        self._shared = [index for index, spec in enumerate(self._specs or ()) if spec.is_shared]
        self.takes_many_rows = False
        self._completed: Callable[[Request], Any] | None = None
        self._unpadded = ""  # why a request of fewer rows than a model's fixed batch is not filled up
        # Where several profiles take a request, it goes where it can share a run with the most others.
        self._profiles = sorted(profiles, key=lambda profile: -profile.max_batch)
        self.max_batch = self._profiles[0].max_batch
        self.runs_alone = self.max_batch == 1
        # Checking costs 4 us, looking up what was checked before a tenth of that. Filled by any thread; two that find
        # out the same thing at the same time do no harm.
        self.fits = {}

    def read(self, request: Request) -> Sample:
        """Return the data of a request, checked; nothing is copied.

        Raises:
            KernelError: if the model cannot take it; the message has the model, the input, expected and got.
        """
        if "data" not in request:
            raise KernelError(f"{self._model}: the request has no 'data'")
        arrays, is_torch = self._arrays(request["data"] if self._completed is None else self._completed(request))
        signature = self._signature(arrays)
        fit = self.fits.get(signature) or self._find_fit(signature)
        if self._shared and not self.runs_alone:
            return Sample(arrays, fit, is_torch, tuple([_value_of(arrays[index]) for index in self._shared]))
        return Sample(arrays, fit, is_torch)

    def complete(self, data_of: Callable[[Request], Any]) -> None:
        """From now on what a request has for all inputs is not its data alone, but what this function returns."""
        self._completed = data_of

    def take_many_rows(self) -> None:
        """From now on a request may bring any number of rows, also none."""
        self.takes_many_rows = True

    def refuse_padding(self, reason: str) -> None:
        """From now on a request has to bring all rows of the model's fixed batch, for this reason."""
        self._unpadded = reason

    def key_apart_from(self, sample: Sample, axes: Sequence[tuple[int, ...]]) -> Hashable:
        """Return what is equal for all that may share a batch once some axes of each input are padded.

        Args:
            sample: of a request.
            axes: of each input, without the batch.
        """
        items = tuple(
            [
                tuple([size for axis, size in enumerate(item) if axis not in padded])
                for item, padded in zip(sample.fit.item_shapes, axes, strict=True)
            ]
        )
        _, others = sample.fit.key
        return items, others, sample.is_torch, sample.shared

    def refuse_overflow(self, fit: Fit, by_input: Sequence[Sequence[Any]], joined: Sequence[Any] | None = None) -> None:
        """Look for requests that have a number which is infinite in the type that the model gets.

        Args:
            fit: of all of them.
            by_input: of each input, the arrays of the requests, or one with a row for each.
            joined: the inputs as the model gets them, where that makes looking quicker.

        Raises:
            UnfitError: for those requests; the message has the input, the range and the number.
        """
        errors: dict[int, KernelError] = {}
        for index in fit.narrowed:
            lost_numbers = self._lost(fit, index, by_input[index], None if joined is None else joined[index])
            for number, lost in enumerate(lost_numbers):
                if lost is not None:
                    where = f"{self._model}, input {self._name_of(index)!r}"
                    errors.setdefault(number, overflow_error(where, lost, *self._range_of(fit.dtypes[index])))
        if errors:
            raise UnfitError(errors)

    def one_row(self, request: Request, sample: Sample, number: int) -> Request:
        """Return a request with one of the rows that another has brought; what else it has is the same."""
        arrays = []
        for index, array in enumerate(sample.arrays):
            axis = self._specs[index].axis if self._specs is not None else 0
            has_rows = axis is not None and array.ndim == len(sample.fit.item_shapes[index]) + 1
            arrays.append(array[(slice(None),) * (axis or 0) + (slice(number, number + 1),)] if has_rows else array)
        data = request["data"]
        if isinstance(data, Mapping):
            row: Any = dict(zip([name for name in self._names or () if name in data], arrays, strict=True))
        else:
            row = arrays if isinstance(data, list | tuple) else arrays[0]
        return {**request, "data": row}

    # ---- what a subclass says ----

    @abstractmethod
    def _arrays(self, data: Any) -> tuple[tuple[Any, ...], bool]:
        """Return what is in a request's data, and whether it came as torch tensors."""

    @abstractmethod
    def _signature(self, arrays: tuple[Any, ...]) -> Signature:
        """Return what has to be known of the arrays."""

    @abstractmethod
    def _target(self, index: int, given: Any, item: tuple[int, ...]) -> Any:
        """Return the type in which the model gets an input that comes in the type ``given``."""

    @abstractmethod
    def _may_become(self, given: Any, wanted: Any) -> bool:
        """Say whether values may be converted: rounded to a float, but never wrapped around, nor without a fraction."""

    @abstractmethod
    def _may_overflow(self, given: Any, wanted: Any) -> bool:
        """Say whether a finite number of one type may be infinite in the other."""

    @abstractmethod
    def _lost(self, fit: Fit, index: int, given: Sequence[Any], joined: Any) -> Iterable[float | None]:
        """Return for each request a number of an input that was finite and is not any more; None: it has none."""

    @abstractmethod
    def _range_of(self, dtype: Any) -> tuple[str, float]:
        """Return the name of a type, and its largest number."""

    @abstractmethod
    def _expected_dtype(self, index: int) -> str:
        """Return the type that the model expects of an input, in words; "": any."""

    def _shown(self, dtype: Any) -> str:
        return str(dtype)

    def _check_items(  # noqa: B027 - most models have nothing to add
        self, items: tuple[tuple[int, ...], ...], rows: Sequence[int | None], targets: Sequence[Any]
    ) -> None:
        """Raise KernelError for inputs each of which the model takes, but not together."""

    # ---- reading ----

    def _in_order(self, data: Any) -> tuple[Any, ...]:
        """Return the values of the inputs, in the model's order."""
        names = self._names
        if isinstance(data, list | tuple):
            values = tuple(data)
        elif not isinstance(data, Mapping):
            values = (data,)
        elif names is None:
            raise KernelError(
                f"{self._model}: it does not name its inputs; expected a list, got {summarize(list(data))}"
            )
        else:
            given = [name for name in names if name in data]
            if not self._required <= len(given) == len(data) or given != names[: len(given)]:
                raise KernelError(f"{self._model}: expected data for the inputs {names}, got {summarize(list(data))}")
            values = tuple([data[name] for name in given])
        if len(values) < self._required or (self._most is not None and len(values) > self._most):
            advice = ""
            if isinstance(data, list | tuple) and data and all(isinstance(each, int | float) for each in data):
                advice = " numbers; a list has an array for each input: np.array(data) makes one of numbers"
            raise KernelError(f"{self._model}: expected {self._expected_count()}, got {len(values)}{advice}")
        return values

    def _expected_count(self) -> str:
        least, most = self._required, self._most
        count = f"{least} or more" if most is None else str(least) if least == most else f"{least} to {most}"
        names = f", for {', '.join(self._names)}" if self._names else ""
        return f"{count} {self.noun}{'' if count == '1' else 's'}{names}"

    def _is_plain_number(self, index: int, value: Any) -> bool:
        """Say whether a value is a number of Python's, for an input without axes."""
        if not isinstance(value, bool | int | float) or self._specs is None:
            return False
        return self._specs[index].is_shared and len(self._specs[index].shape) == 1

    def _find_fit(self, signature: Signature) -> Fit:
        """Return what is true of arrays with this signature, and remember it."""
        items, rows, targets = [], [], []
        for index, (size, dtype, *_) in enumerate(signature):
            item, count = self._item_of(index, dtype, tuple(size))
            target = self._target(index, dtype, item)
            if not self._may_become(dtype, target):
                raise self._misfit(index, dtype, item)
            items.append(item)
            rows.append(count)
            targets.append(target)
        item_shapes = tuple(items)
        self._check_items(item_shapes, rows, targets)
        narrowed = [
            index
            for index, ((_, dtype, *_), target) in enumerate(zip(signature, targets, strict=True))
            if self._may_overflow(dtype, target)
        ]
        key = item_shapes, tuple([each[1:] for each in signature])
        profile = self._profile_of(signature, item_shapes)
        fit = Fit(profile, item_shapes, tuple(targets), key, tuple(narrowed), self._rows_of(rows, profile))
        if self.runs_alone and not self.takes_many_rows and not self._is_one_row(signature, rows):
            self._check_fixed(signature, rows)
            fit = fit._replace(as_it_comes=self._full_shapes(item_shapes, rows))
        elif self._specs is not None and not self.takes_many_rows and profile.pad_to <= 1:
            fit = fit._replace(whole=self._full_shapes(item_shapes, rows))
        self._remember(signature, fit)
        return fit

    def _remember(self, signature: Signature, fit: Fit) -> None:
        if len(self.fits) >= _REMEMBERED_FITS:
            self.fits.clear()
        self.fits[signature] = fit

    def _item_of(self, index: int, dtype: Any, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int | None]:
        """Return the shape of one item, without the batch axis, and how many there are; None: it has no such axis.

        The batch axis may be missing where the model says its axes.
        """
        takes_any = self.runs_alone or self.takes_many_rows
        if self._specs is None:
            if shape[:1] == (1,) or (takes_any and shape):
                return shape[1:], shape[0]
            if self.runs_alone:
                return (), None
            raise self._misfit(index, dtype, shape)
        spec = self._specs[index]
        rank = len(spec.shape)
        if spec.axis is None:
            # Without axes it is a scalar, or something of which the model does not say how many it has; but several
            # requests cannot share that, as each could have a row of it.
            if len(shape) == rank - 1 or (rank == 1 and self.runs_alone):
                return shape, None
            if len(shape) == rank - 2 and spec.shape[1] == 1:
                return (1, *shape), None
        elif len(shape) == rank and (shape[spec.axis] == 1 or (takes_any and self._takes_rows(spec, shape[spec.axis]))):
            return (*shape[: spec.axis], *shape[spec.axis + 1 :]), shape[spec.axis]
        elif len(shape) == rank - 1:
            return shape, 1
        raise self._misfit(index, dtype, shape)

    def _takes_rows(self, spec: InputSpec, count: int) -> bool:
        """Say whether a request may bring so many rows of an input."""
        if self.takes_many_rows:
            return True
        if isinstance(spec.shape[0], int):
            return count == spec.shape[0]
        low, high = spec.ranges[0] if spec.ranges else (0, None)
        return low <= count and (high is None or count <= high)

    def _is_one_row(self, signature: Signature, rows: Sequence[int | None]) -> bool:
        """Say whether a request is one row of every input, to be filled up if the model's batch is fixed.

        Raises:
            KernelError: if it is, and that cannot be done.
        """
        counts = {count for count in rows if count is not None}
        if counts != {1} or (None in rows and self._specs is None):
            return False
        if self._unpadded and self._profiles[0].pad_to > 1:
            index = next(index for index, count in enumerate(rows) if count == 1)
            raise self._misfit(index, signature[index][1], tuple(signature[index][0]))
        return True

    def _check_fixed(self, signature: Signature, rows: Sequence[int | None]) -> None:
        """Raise KernelError for an input that has one row where the model's batch is fixed, and others have all."""
        for index, (spec, count) in enumerate(zip(self._specs or (), rows, strict=False)):
            if count is not None and isinstance(spec.shape[0], int) and count != spec.shape[0]:
                raise self._misfit(index, signature[index][1], tuple(signature[index][0]))

    def _rows_of(self, rows: Sequence[int | None], profile: Profile) -> int:
        """Return how many rows a request has.

        Raises:
            KernelError: if its inputs do not agree on that, or they are too many, unless it is run as it comes.
        """
        counts = {count: index for index, count in reversed(list(enumerate(rows))) if count is not None}
        if not self.takes_many_rows or not counts:
            return 1
        if len(counts) > 1:
            first, second = sorted(counts.values())[:2]
            raise KernelError(
                f"{self._model}, input {self._name_of(second)!r}: expected {rows[first]} rows, as input "
                f"{self._name_of(first)!r} has, got {rows[second]}"
            )
        ((count, index),) = counts.items()
        if count > profile.max_batch:
            raise KernelError(
                f"{self._model}, input {self._name_of(index)!r}: expected up to {profile.max_batch} rows (max), got "
                f"{count}; send them as several requests, or raise max"
            )
        return count

    def _full_shapes(self, items: Sequence[tuple[int, ...]], rows: Sequence[int | None]) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of inputs as the model has them."""
        if self._specs is None:
            return tuple([item if count is None else (count, *item) for item, count in zip(items, rows, strict=True)])
        return tuple([spec.full(item, count) for spec, item, count in zip(self._specs, items, rows, strict=True)])

    def _profile_of(self, signature: Signature, items: tuple[tuple[int, ...], ...]) -> Profile:
        if self._specs is None:
            return self._profiles[0]
        for profile in self._profiles:
            if profile.takes(items):
                return profile
        for index, shape in enumerate(items):
            if not any(is_within(shape, profile.limits[index]) for profile in self._profiles):
                raise self._misfit(index, signature[index][1], shape)
        got = ", ".join(f"{shape} in {self._name_of(index)!r}" for index, shape in enumerate(items))
        raise KernelError(f"{self._model}: each input fits in a profile, but not all in the same one: got {got}")

    # ---- what is said ----

    def _name_of(self, index: int) -> str:
        return self._names[index] if self._names is not None and index < len(self._names) else f"number {index + 1}"

    def _misfit(self, index: int, dtype: Any, shape: tuple[int, ...]) -> KernelError:
        advice = "" if self._specs is None else advice_on_empty(self._specs, index, shape, self._profiles)
        spec = None if self._specs is None else self._specs[index]
        if spec is not None and not spec.is_shared and shape == spec.full_shape and not self.runs_alone:
            advice = f"; axis {spec.axis} counts as the batch, as the model fixes it: max=1 takes it as a whole"
        return self._unusable(index, f"{self._shown(dtype)} of shape {shape}{advice}")

    def _unusable(self, index: int, got: str) -> KernelError:
        if self._specs is None:
            expected = (
                f"a {self.noun} with a batch axis of 1 in front (max='8x3x224x224' would say which shapes it may have)"
            )
        else:
            spec = self._specs[index]
            items = dict.fromkeys(_describe_item(spec, profile.limits[index]) for profile in self._profiles)
            dtype = self._expected_dtype(index)
            expected = f"{dtype}{' ' if dtype else ''}of shape {' or '.join(items)}{self._batch_in_words(spec)}"
        return KernelError(f"{self._model}, input {self._name_of(index)!r}: expected {expected}, got {got}")

    def _batch_in_words(self, spec: InputSpec) -> str:
        """Return what a request may have beside an item's axes."""
        if spec.axis is None:
            return ""
        where = f"as axis {spec.axis}" if spec.axis else "in front"
        if self.takes_many_rows:
            return f", with a batch axis {where}"
        if self._unpadded:
            return f", with a batch axis of {spec.shape[0]} {where} ({self._unpadded})"
        return f", with or without a batch axis of 1 {where}"


def _describe_item(spec: InputSpec, limits: Limits) -> str:
    """Return the shape of an item in words, as in ``(3, 48, 1..320)``."""
    sizes = []
    for declared, (low, high) in zip(spec.shape[1:], limits, strict=True):
        if low == high:
            sizes.append(str(low))
        elif high is None:
            sizes.append(str(declared) if low <= 1 else f"{low}..")
        else:
            sizes.append(f"{low}..{high}")
    return f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"


def _value_of(array: Any) -> Hashable:
    """Return what is equal for arrays of equal values, shape and dtype apart; of large ones, and on a GPU, for none."""
    if array.nbytes > _LARGEST_COMPARED_BYTES:
        return object()
    if isinstance(array, np.ndarray):
        return array.tobytes()
    if array.device.type != "cpu":
        return object()
    whole = array.detach().contiguous().reshape(-1)
    content: bytes = whole.view(sys.modules["torch"].uint8).numpy().tobytes()
    return content
