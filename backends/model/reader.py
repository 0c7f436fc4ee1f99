"""Reads requests for a model: their data in the model's order, checked against what it takes; a library's part is left.

``ModelInputs`` reads NumPy's arrays, ``TorchInputs`` and ``EngineInputs`` torch's tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fastpipe.contract import Request
from fastpipe.errors import KernelError
from fastpipe.summaries import summarize

from ..ranges import overflow_error
from .shapes import InputSpec, Limits, Profile, advice_on_empty, is_within

__all__ = ["Fit", "RequestReader", "Sample", "Signature", "UnfitError"]

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


class Sample(NamedTuple):
    """The data of one request."""

    arrays: tuple[Any, ...]  # one for each input, as they came; often the caller's own memory
    fit: Fit
    is_torch: bool  # some of it came as torch tensors, so that is how the result leaves

    @property
    def key(self) -> Hashable:
        """Equal keys may share a batch."""
        return self.fit.key, self.is_torch


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
        # Where several profiles take a request, it goes where it can share a run with the most others.
        self._profiles = sorted(profiles, key=lambda profile: -profile.max_batch)
        self.max_batch = self._profiles[0].max_batch
        # Checking costs 4 us, looking up what was checked before a tenth of that. Filled by any thread; two that find
        # out the same thing at the same time do no harm.
        self._fits: dict[Hashable, Fit] = {}

    def read(self, request: Request) -> Sample:
        """Return the data of a request, checked; nothing is copied.

        Raises:
            KernelError: if the model cannot take it; the message has the model, the input, expected and got.
        """
        if "data" not in request:
            raise KernelError(f"{self._model}: the request has no 'data'")
        arrays, is_torch = self._arrays(request["data"])
        signature = self._signature(arrays)
        return Sample(arrays, self._fits.get(signature) or self._find_fit(signature), is_torch)

    def key_apart_from(self, sample: Sample, axes: Sequence[int | None]) -> Hashable:
        """Return what is equal for all that may share a batch once one axis of each input is padded; None: it is not.

        Args:
            sample: of a request.
            axes: of each input, without the batch.
        """
        items = tuple(
            [
                item if axis is None else item[:axis] + item[axis + 1 :]
                for item, axis in zip(sample.fit.item_shapes, axes, strict=True)
            ]
        )
        _, others = sample.fit.key
        return items, others, sample.is_torch

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
        self, items: tuple[tuple[int, ...], ...], targets: Sequence[Any]
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
            raise KernelError(f"{self._model}: expected {self._expected_count()}, got {len(values)}")
        return values

    def _expected_count(self) -> str:
        least, most = self._required, self._most
        count = f"{least} or more" if most is None else str(least) if least == most else f"{least} to {most}"
        names = f", for {', '.join(self._names)}" if self._names else ""
        return f"{count} {self.noun}{'' if count == '1' else 's'}{names}"

    def _find_fit(self, signature: Signature) -> Fit:
        """Return what is true of arrays with this signature, and remember it."""
        items, targets = [], []
        for index, (size, dtype, *_) in enumerate(signature):
            item = self._item_of(index, dtype, tuple(size))
            target = self._target(index, dtype, item)
            if not self._may_become(dtype, target):
                raise self._misfit(index, dtype, item)
            items.append(item)
            targets.append(target)
        item_shapes = tuple(items)
        self._check_items(item_shapes, targets)
        narrowed = [
            index
            for index, ((_, dtype, *_), target) in enumerate(zip(signature, targets, strict=True))
            if self._may_overflow(dtype, target)
        ]
        key = item_shapes, tuple([each[1:] for each in signature])
        fit = Fit(self._profile_of(signature, item_shapes), item_shapes, tuple(targets), key, tuple(narrowed))
        self._remember(signature, fit)
        return fit

    def _remember(self, signature: Signature, fit: Fit) -> None:
        if len(self._fits) >= _REMEMBERED_FITS:
            self._fits.clear()
        self._fits[signature] = fit

    def _item_of(self, index: int, dtype: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one item, without the batch axis, which may be missing where the model says its axes."""
        if self._specs is None:
            if shape[:1] == (1,):
                return shape[1:]
        elif len(shape) == len(self._specs[index].shape) and shape[0] == 1:
            return shape[1:]
        elif len(shape) == len(self._specs[index].shape) - 1:
            return shape
        raise self._misfit(index, dtype, shape)

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
            expected = (
                f"{dtype}{' ' if dtype else ''}of shape {' or '.join(items)}, "
                "with or without a batch axis of 1 in front"
            )
        return KernelError(f"{self._model}, input {self._name_of(index)!r}: expected {expected}, got {got}")


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
