"""What goes into a torch model: a request's data as tensors, checked against the model, and what may share a batch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from fastpipe.config.shapes import profiles_of
from fastpipe.contract import Request
from fastpipe.errors import ConfigError, KernelError
from fastpipe.summaries import summarize

from ..ranges import overflow_error
from ..tensor.arrays import Unreadable, as_tensor, is_ordinary, overflow_in
from .inputs import UnfitError, _describe_item, to_array
from .shapes import InputSpec, Profile, advice_on_empty, is_within, make_profiles
from .torch_files import Loaded

__all__ = ["Fit", "Sample", "TorchInputs", "is_image"]

# How many combinations of shapes, dtypes and devices are remembered as checked; a model fed with more starts anew.
_REMEMBERED_FITS = 1024
# Torch holds the wider unsigned types but hardly computes in them: a model that does not ask for one gets these, which
# hold the same numbers. Nothing does for uint64.
_COMPUTES_IN = {torch.uint16: torch.int32, torch.uint32: torch.int64}
_WHOLE = {torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64}


class Fit(NamedTuple):
    """What was found out about tensors of certain shapes, dtypes and devices."""

    profile: Profile
    item_shapes: tuple[tuple[int, ...], ...]  # of each input, without the batch axis
    dtypes: tuple[torch.dtype, ...]  # what the model gets
    key: Hashable  # equal for all that may share a batch, with or without a batch axis
    narrowed: tuple[int, ...]  # the inputs whose numbers may become infinite in the type that the model gets


class Sample(NamedTuple):
    """The data of one request."""

    tensors: tuple[torch.Tensor, ...]  # one for each input, as they came; often the caller's own memory
    fit: Fit

    @property
    def key(self) -> Hashable:
        """Equal keys may share a batch."""
        return self.fit.key


class TorchInputs:
    """Reads requests for one model.

    Args:
        name: what messages call the model.
        loaded: the model.
        max, min: of the node; they may declare the shapes of a model that does not.
        floats: the type in which the model computes; what comes as another float, or as uint8, becomes that.
        dtypes: of the inputs, if they are known.
        channels: of images that are normalised; 0: none are. Those become float32.

    Raises:
        ConfigError: if ``max`` and ``min`` do not fit the model.

    Thread-safety: any thread may call ``read``.
    """

    def __init__(
        self,
        name: str,
        loaded: Loaded,
        max: int | str | None,
        min: int | str | None,
        floats: torch.dtype,
        dtypes: Sequence[torch.dtype] | None,
        channels: int,
    ) -> None:
        self._model = name
        self._names = loaded.names
        self._specs = loaded.specs or _specs_of(max, min, loaded)
        self._floats, self._dtypes, self._channels = floats, dtypes, channels
        if self._specs is None:
            self._counts = (loaded.required, len(loaded.names) if loaded.names is not None else None)
            self.profiles = make_profiles([InputSpec("input", np.dtype(np.float32), ("batch",))], max, min)
        else:
            self._counts = (len(self._specs), len(self._specs))
            self.profiles = make_profiles(self._specs, max, min)
        self._misfit = loaded.rules.misfit if loaded.rules is not None else lambda items: None
        for profile in self.profiles:
            items = profile.largest_items()
            if items is not None and (problem := self._misfit(items)) is not None:
                raise ConfigError(f"max: input {self._name_of(problem[0])!r} must have {problem[1]}")
        if dtypes is not None and self._specs is not None and len(dtypes) != len(self._specs):
            raise ConfigError(f"there are {len(dtypes)} dtypes for {len(self._specs)} inputs")
        # Where several profiles take a request, it goes where it can have the most company.
        self._ordered = sorted(self.profiles, key=lambda profile: -profile.max_batch)
        self.max_batch = self._ordered[0].max_batch
        self._fits: dict[Hashable, Fit] = {}  # filled by any thread; finding out the same thing twice does no harm
        self._single_fits: dict[Hashable, Fit] = {}  # the same, of data that is one tensor

    def largest(self, profile: Profile) -> tuple[list[tuple[int, ...]], list[torch.dtype]] | None:
        """Return the largest item of each input, and the types; None if they are not known."""
        items = profile.largest_items() if self._specs is not None else None
        if items is None:
            return None
        return items, self.targets(items)

    def targets(self, items: Sequence[tuple[int, ...]]) -> list[torch.dtype]:
        """Return the types in which the model gets its inputs, for items of these shapes."""
        return [self._target(place, self._declared(place), item) for place, item in enumerate(items)]

    def trial_specs(self) -> list[InputSpec] | None:
        """Return the inputs with the types in which NumPy can make data for them; None if no shapes are known."""
        if self._specs is None:
            return None
        dtypes = [self._declared(place) for place in range(len(self._specs))]
        arrays = [to_array(torch.empty(0, dtype=dtype)) for dtype in dtypes]
        return [replace(spec, dtype=array.dtype) for spec, array in zip(self._specs, arrays, strict=True)]

    def read(self, request: Request) -> Sample:
        """Return the data of a request, checked; nothing is copied that torch can read.

        Raises:
            KernelError: if the model cannot take it; the message has the model, the input, expected and got.
        """
        if "data" not in request:
            raise KernelError(f"{self._model}: the request has no 'data'")
        data = request["data"]
        # What nearly all are; this takes a microsecond.
        if type(data) is torch.Tensor and not data.requires_grad and is_ordinary(data):
            found = self._single_fits.get((data.shape, data.dtype, data.device))
            if found is not None:
                return Sample((data,), found)
        values = (data,) if isinstance(data, torch.Tensor | np.ndarray) else self._in_order(data)
        tensors = tuple([self._to_tensor(place, value) for place, value in enumerate(values)])
        signature = tuple([(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors])
        return Sample(tensors, self._fits.get(signature) or self._find_fit(signature))

    def refuse_overflow(self, fit: Fit, by_input: Sequence[Sequence[torch.Tensor]]) -> None:
        """Look for requests that have a number which is infinite in the type that the model gets.

        Args:
            fit: of all of them.
            by_input: of each input, the tensors of the requests, or one with a row for each.

        Raises:
            UnfitError: for those requests; the message has the input, the range and the number.
        """
        errors: dict[int, KernelError] = {}
        for place in fit.narrowed:
            dtype = fit.dtypes[place]
            rank = len(fit.item_shapes[place]) + 1
            rows = [row for tensor in by_input[place] for row in (tensor if tensor.ndim == rank else tensor[None])]
            for number, row in enumerate(rows):
                lost = overflow_in(row, dtype)
                if lost is not None:
                    where = f"{self._model}, input {self._name_of(place)!r}"
                    name = str(dtype).removeprefix("torch.")
                    errors.setdefault(number, overflow_error(where, lost, name, torch.finfo(dtype).max))
        if errors:
            raise UnfitError(errors)

    def _in_order(self, data: Any) -> tuple[Any, ...]:
        if isinstance(data, list | tuple):
            return tuple(data)
        if not isinstance(data, Mapping):
            return (data,)
        names = self._names
        if names is None:
            raise KernelError(
                f"{self._model}: it does not name its inputs; expected a list, got {summarize(list(data))}"
            )
        given = [name for name in names if name in data]
        if len(given) < len(data) or given != names[: len(given)]:
            raise KernelError(f"{self._model}: expected data for the inputs {names}, got {summarize(list(data))}")
        return tuple([data[name] for name in given])

    def _to_tensor(self, place: int, value: Any) -> torch.Tensor:
        try:
            return as_tensor(value)
        except Unreadable as error:
            raise self._unusable(place, str(error)) from error

    def _find_fit(self, signature: tuple[tuple[torch.Size, torch.dtype, torch.device], ...]) -> Fit:
        """Return what is true of tensors with these shapes, dtypes and devices, and remember it."""
        low, high = self._counts
        if len(signature) < low or (high is not None and len(signature) > high):
            names = f", for {', '.join(self._names)}" if self._names else ""
            many = str(low) if low == high else f"{low} or more" if high is None else f"{low} to {high}"
            raise KernelError(f"{self._model}: expected {many} tensors{names}, got {len(signature)}")
        shapes, targets = [], []
        for place, (size, dtype, _) in enumerate(signature):
            shape = tuple(size)
            if self._specs is None:
                if shape[:1] != (1,):
                    raise self._unusable(place, f"{dtype} of shape {shape}")
                shape = shape[1:]
            elif len(shape) == len(self._specs[place].shape) and shape[0] == 1:
                shape = shape[1:]
            elif len(shape) != len(self._specs[place].shape) - 1:
                raise self._unusable(place, f"{dtype} of shape {shape}")
            target = self._target(place, dtype, shape)
            if target == torch.uint64 and self._dtypes is None:
                raise self._unusable(
                    place,
                    f"{dtype} of shape {shape}, in which torch hardly computes: make it int64, or name it in dtypes",
                )
            if not _may_become(dtype, target):
                raise self._unusable(place, f"{dtype} of shape {shape}")
            shapes.append(shape)
            targets.append(target)
        items = tuple(shapes)
        if (problem := self._misfit(items)) is not None:
            raise KernelError(f"{self._model}, input {self._name_of(problem[0])!r}: expected {problem[1]}")
        if self._channels and not any(
            is_image((1, *shape), target, self._channels) for shape, target in zip(items, targets, strict=True)
        ):
            raise KernelError(f"{self._model}: no input is an image of {self._channels} channels for mean and std")
        key = items, tuple([(dtype, device) for _, dtype, device in signature])
        narrowed = [
            place
            for place, ((_, dtype, _), target) in enumerate(zip(signature, targets, strict=True))
            if _may_overflow(dtype, target)
        ]
        fit = Fit(self._profile_of(signature, items), items, tuple(targets), key, tuple(narrowed))
        if len(self._fits) >= _REMEMBERED_FITS:
            self._fits.clear()
            self._single_fits.clear()
        self._fits[signature] = fit
        if len(signature) == 1:
            self._single_fits[signature[0]] = fit
        return fit

    def _profile_of(self, signature: Sequence[tuple[Any, ...]], items: tuple[tuple[int, ...], ...]) -> Profile:
        if self._specs is None:
            return self._ordered[0]
        for profile in self._ordered:
            if profile.takes(items):
                return profile
        for place, shape in enumerate(items):
            if not any(is_within(shape, profile.limits[place]) for profile in self._ordered):
                advice = advice_on_empty(self._specs, place, shape, self._ordered)
                raise self._unusable(place, f"{signature[place][1]} of shape {shape}{advice}")
        raise KernelError(f"{self._model}: each input fits in a profile, but not all in the same one: got {items}")

    def _declared(self, place: int) -> torch.dtype:
        return self._dtypes[place] if self._dtypes is not None else self._floats

    def _target(self, place: int, given: torch.dtype, item: tuple[int, ...]) -> torch.dtype:
        """Return the type in which the model gets an input."""
        wanted = given
        if self._dtypes is not None and place < len(self._dtypes):
            wanted = self._dtypes[place]
        elif given.is_floating_point or given == torch.uint8:
            wanted = self._floats
        else:
            wanted = _COMPUTES_IN.get(given, given)
        return torch.float32 if self._channels and is_image((1, *item), wanted, self._channels) else wanted

    def _unusable(self, place: int, got: str) -> KernelError:
        if self._specs is None:
            expected = "a tensor with a batch axis of 1 in front (max='8x3x224x224' would say which shapes it may have)"
        else:
            place = min(place, len(self._specs) - 1)
            items = dict.fromkeys(
                _describe_item(self._specs[place], profile.limits[place]) for profile in self._ordered
            )
            dtype = f"{self._dtypes[place]} " if self._dtypes is not None else ""
            expected = f"{dtype}of shape {' or '.join(items)}, with or without a batch axis of 1 in front"
        return KernelError(f"{self._model}, input {self._name_of(place)!r}: expected {expected}, got {got}")

    def _name_of(self, place: int) -> str:
        return self._names[place] if self._names is not None and place < len(self._names) else f"number {place + 1}"


def is_image(shape: Sequence[int], dtype: torch.dtype, channels: int) -> bool:
    """Say whether a batch of this shape is one of images that ``mean`` and ``std`` are for: (n, channels, h, w)."""
    return len(shape) == 4 and dtype.is_floating_point and channels in (1, shape[1])


def _may_become(given: torch.dtype, wanted: torch.dtype) -> bool:
    """Say whether values may be converted: they may be rounded to a float, but never wrap around or lose a fraction."""
    if wanted.is_floating_point:
        return not given.is_complex
    if given in _WHOLE and wanted in _WHOLE:  # torch has no common type for the wider unsigned ones
        low, high = torch.iinfo(wanted).min, torch.iinfo(wanted).max
        return bool(low <= torch.iinfo(given).min and torch.iinfo(given).max <= high)
    try:
        return bool(given == wanted or torch.promote_types(given, wanted) == wanted)
    except RuntimeError:  # nor one with floats of 8 bits
        return False


def _may_overflow(given: torch.dtype, wanted: torch.dtype) -> bool:
    """Say whether a finite number of one type may be infinite in the other."""
    if not wanted.is_floating_point or given.is_complex or given == torch.bool:
        return False
    largest = torch.finfo(given).max if given.is_floating_point else torch.iinfo(given).max
    return bool(largest > torch.finfo(wanted).max)


def _specs_of(max: int | str | None, min: int | str | None, loaded: Loaded) -> list[InputSpec] | None:
    """Return the inputs as ``max`` or ``min`` have them; None if they only say how many requests there are."""
    for text in (max, min):
        if isinstance(text, str) and "x" in text:
            ranks = [len(shape) for shape in profiles_of(text)[0]]
            names = loaded.names or []
            count = len(loaded.names) if loaded.names is not None else None
            if len(ranks) < loaded.required or (count is not None and len(ranks) > count):
                raise ConfigError(
                    f"max or min has shapes of {len(ranks)} inputs, but the model takes "
                    f"{loaded.required if count in (None, loaded.required) else f'{loaded.required} to {count}'}"
                )
            axes = [["batch", *["?"] * (rank - 1)] for rank in ranks]
            return [
                InputSpec(names[place] if place < len(names) else f"{place}", np.dtype(np.float32), tuple(shape))
                for place, shape in enumerate(axes)
            ]
    return None
