"""What goes into a torch model: a request's data as tensors, checked against the model, and what may share a batch."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fastpipe.contract import Request
from fastpipe.errors import ConfigError, KernelError

from ..gpu.handed_on import Row
from ..tensor.arrays import Unreadable, as_tensor, is_ordinary, overflow_in
from .axes import Wishes, checked_axis, input_axes, read_wishes, with_axes
from .inputs import to_array, zeros
from .reader import Fit, RequestReader, Sample, Signature
from .shapes import InputSpec, Profile, make_profiles, ranks_of
from .state import StateWish, with_states
from .torch_files import Loaded

__all__ = ["TorchInputs", "is_image", "wishes_of"]

# Torch holds the wider unsigned types but hardly computes in them: a model that does not ask for one gets these, which
# hold the same numbers. Nothing does for uint64.
_COMPUTES_IN = {torch.uint16: torch.int32, torch.uint32: torch.int64}
_WHOLE = {torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64}


class TorchInputs(RequestReader):
    """Reads requests as tensors of torch, where they are.

    Args:
        name: what messages call the model.
        loaded: the model.
        max, min: of the node; they may declare the shapes of a model that does not.
        floats: the type in which the model computes; what comes as another float, or as uint8, becomes that.
        dtypes: of the inputs, if they are known.
        channels: of images that are normalised; 0: none are. Those become float32.
        wishes: what the node says of axes.

    Attributes:
        axes: where each input has the requests; None: the batch shares it. ``()``: nobody knows its inputs.
        batch: what the batch is called in an exported program.
        shared: the inputs that the batch shares.

    Raises:
        ConfigError: if ``max`` and ``min`` do not fit the model.

    Thread-safety: any thread may call ``read``.
    """

    noun = "tensor"

    def __init__(
        self,
        name: str,
        loaded: Loaded,
        max: int | str | None,
        min: int | str | None,
        floats: torch.dtype,
        dtypes: Sequence[torch.dtype] | None,
        channels: int,
        wishes: Wishes,
    ) -> None:
        self.batch = ""
        self._is_declared = bool(loaded.specs)
        if loaded.specs:
            axes, self.batch = input_axes(loaded.specs, wishes)
            specs: list[InputSpec] | None = with_axes(loaded.specs, axes, wishes)
        else:
            specs = _specs_of(max, min, loaded, wishes)
        self.axes = tuple([spec.axis for spec in specs or ()])
        self.shared = frozenset([index for index, axis in enumerate(self.axes) if axis is None])
        self._floats, self._dtypes, self._channels = floats, dtypes, channels
        if specs is None:
            self.profiles = make_profiles([InputSpec("input", np.dtype(np.float32), ("batch",))], max, min)
            super().__init__(name, loaded.names, loaded.required, None, self.profiles)
        else:
            self.profiles = make_profiles(specs, max, min)
            super().__init__(name, loaded.names, len(specs), specs, self.profiles)
        rules = loaded.rules.with_specs(specs) if loaded.rules is not None and specs is not None else None
        self._misfit_of = rules.misfit if rules is not None else lambda items: None
        if rules is not None and not self.runs_alone and (reason := rules.batch_problem()):
            raise ConfigError(reason)
        for profile in self.profiles:
            items = profile.largest_items()
            if items is not None and (problem := self._misfit_of(items)) is not None:
                raise ConfigError(f"max: input {self._name_of(problem[0])!r} must have {problem[1]}")
        if dtypes is not None and specs is not None and len(dtypes) != len(specs):
            raise ConfigError(f"there are {len(dtypes)} dtypes for {len(specs)} inputs")
        self._single_fits: dict[Hashable, Fit] = {}  # of data that is one tensor

    def with_states(self, wishes: Wishes, states: Sequence[StateWish]) -> Wishes:
        """Have an output that is a state on the axis on which it is an input, unless the node says otherwise."""
        if not states or not self.axes:
            return wishes
        return with_states(wishes, states, dict(zip(self._names or (), self.axes, strict=False)))

    def asked(self, states: Sequence[StateWish]) -> list[InputSpec]:
        """Return the inputs that requests bring, as an exported program declares them; none of what declares none."""
        kept = [wish.input for wish in states]
        return [spec for spec in self.trial_specs() or () if self._is_declared and spec.name not in kept]

    def largest(self, profile: Profile) -> tuple[list[tuple[int, ...]], list[torch.dtype]] | None:
        """Return the largest item of each input, and the types; None if they are not known."""
        items = profile.largest_items() if self._specs is not None else None
        if items is None:
            return None
        return items, self.targets(items)

    def zeros(
        self, items: Sequence[tuple[int, ...]], dtypes: Sequence[torch.dtype], row_count: int
    ) -> list[torch.Tensor]:
        """Return inputs of zeros, with the requests in front; of what they share, the example, if there is one."""
        arrays = zeros(self.trial_specs() or (), items, row_count)
        return [torch.from_numpy(array).to(dtype) for array, dtype in zip(arrays, dtypes, strict=True)]

    def targets(self, items: Sequence[tuple[int, ...]]) -> list[torch.dtype]:
        """Return the types in which the model gets its inputs, for items of these shapes."""
        return [self._target(index, self._declared(index), item) for index, item in enumerate(items)]

    def trial_specs(self) -> list[InputSpec] | None:
        """Return the inputs with the types in which NumPy can make data for them; None if no shapes are known."""
        if self._specs is None:
            return None
        dtypes = [self._declared(index) for index in range(len(self._specs))]
        arrays = [to_array(torch.empty(0, dtype=dtype)) for dtype in dtypes]
        return [replace(spec, dtype=array.dtype) for spec, array in zip(self._specs, arrays, strict=True)]

    def paddable_specs(self) -> list[InputSpec] | None:
        """Return the same with the axes of 1 that ``max`` says: a mask or a length may have such beside its own."""
        specs = self.trial_specs()
        if specs is None:
            return None
        known = []
        for index, spec in enumerate(specs):
            by_axis = zip(*[profile.limits[index] for profile in self.profiles], strict=True)
            are_one = [all(limits == (1, 1) for limits in each) for each in by_axis]
            sizes = [1 if is_one else size for is_one, size in zip(are_one, spec.shape[1:], strict=True)]
            known.append(replace(spec, shape=(spec.shape[0], *sizes)))
        return known

    def read(self, request: Request) -> Sample:
        """Return the data of a request, checked; nothing is copied that torch can read.

        Raises:
            KernelError: if the model cannot take it; the message has the model, the input, expected and got.
        """
        data: Any = request.get("data")
        # What nearly all are; this takes a microsecond.
        if self._completed is None and type(data) is torch.Tensor and not data.requires_grad and is_ordinary(data):
            found = self._single_fits.get((data.shape, data.dtype, data.device))
            if found is not None:
                return Sample((data,), found, True)
        return super().read(request)

    def _arrays(self, data: Any) -> tuple[tuple[Any, ...], bool]:
        if type(data) is Row:
            data = data.tensor
        values = self._in_order((data,) if isinstance(data, torch.Tensor | np.ndarray) else data)
        return tuple([self._to_tensor(index, value) for index, value in enumerate(values)]), True

    def _signature(self, arrays: tuple[Any, ...]) -> Signature:
        return tuple([(tensor.shape, tensor.dtype, tensor.device) for tensor in arrays])

    def _remember(self, signature: Signature, fit: Fit) -> None:
        super()._remember(signature, fit)
        if len(self.fits) == 1:  # all others have been forgotten
            self._single_fits.clear()
        if len(signature) == 1:
            self._single_fits[signature[0]] = fit

    def _to_tensor(self, index: int, value: Any) -> torch.Tensor:
        if self._is_plain_number(index, value):
            return torch.from_numpy(np.asarray(value))
        try:
            return as_tensor(value)
        except Unreadable as error:
            raise self._unusable(index, str(error)) from error

    def _check_items(
        self, items: tuple[tuple[int, ...], ...], rows: Sequence[int | None], targets: Sequence[Any]
    ) -> None:
        if (problem := self._misfit_of(items)) is not None:
            raise KernelError(f"{self._model}, input {self._name_of(problem[0])!r}: expected {problem[1]}")
        if self._channels and not any(
            is_image((1, *shape), target, self._channels) for shape, target in zip(items, targets, strict=True)
        ):
            raise KernelError(f"{self._model}: no input is an image of {self._channels} channels for mean and std")

    def _may_become(self, given: Any, wanted: Any) -> bool:
        return _may_become(given, wanted)

    def _may_overflow(self, given: Any, wanted: Any) -> bool:
        if not wanted.is_floating_point or given.is_complex or given == torch.bool:
            return False
        largest = torch.finfo(given).max if given.is_floating_point else torch.iinfo(given).max
        return bool(largest > torch.finfo(wanted).max)

    def _lost(self, fit: Fit, index: int, given: Sequence[Any], joined: Any) -> Iterable[float | None]:
        return [overflow_in(tensor, fit.dtypes[index]) for tensor in given]

    def _range_of(self, dtype: Any) -> tuple[str, float]:
        return str(dtype).removeprefix("torch."), torch.finfo(dtype).max

    def _expected_dtype(self, index: int) -> str:
        return str(self._dtypes[index]) if self._dtypes is not None else ""

    def _declared(self, index: int) -> torch.dtype:
        return self._dtypes[index] if self._dtypes is not None else self._floats

    def _target(self, index: int, given: torch.dtype, item: tuple[int, ...]) -> torch.dtype:
        """Return the type in which the model gets an input."""
        wanted = given
        if self._dtypes is not None and index < len(self._dtypes):
            wanted = self._dtypes[index]
        elif given.is_floating_point or given == torch.uint8:
            wanted = self._floats
        else:
            wanted = _COMPUTES_IN.get(given, given)
        if wanted == torch.uint64 and self._dtypes is None:
            raise self._unusable(
                index, f"{given} of shape {item}, in which torch hardly computes: make it int64, or name it in dtypes"
            )
        return torch.float32 if self._channels and is_image((1, *item), wanted, self._channels) else wanted


def wishes_of(
    loaded: Loaded,
    batch_axis: Mapping[str, Any] | None,
    shared: Sequence[str] | Mapping[str, Any] | None,
    split_by: Mapping[str, Any] | None,
) -> Wishes:
    """Return what the node says of axes; the outputs' names are known of exported programs only."""
    outputs = None if loaded.outputs is None else [str(output.name) for output in loaded.outputs]
    return read_wishes(batch_axis, shared, split_by, loaded.names, outputs)


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


def _specs_of(max: int | str | None, min: int | str | None, loaded: Loaded, wishes: Wishes) -> list[InputSpec] | None:
    """Return the inputs as ``max`` or ``min`` have them; None if they only say how many requests there are."""
    ranks = ranks_of(max) or ranks_of(min)
    if ranks is None:
        if said := [name for name in wishes.axes if name in wishes.inputs]:
            raise ConfigError(
                f"input {said[0]!r}, batch_axis or shared: expected shapes in max, as in '8x3x224x224', as the model "
                f"does not say how many axes its inputs have, got max={max!r}"
            )
        return None
    names = loaded.names or []
    count = len(loaded.names) if loaded.names is not None else None
    if len(ranks) < loaded.required or (count is not None and len(ranks) > count):
        raise ConfigError(
            f"max or min has shapes of {len(ranks)} inputs, but the model takes "
            f"{loaded.required if count in (None, loaded.required) else f'{loaded.required} to {count}'}"
        )
    specs = []
    for index, rank in enumerate(ranks):
        name = names[index] if index < len(names) else f"{index}"
        # In max the batch comes first, wherever the model has it; of what has none, the number in front is no axis.
        axis = checked_axis("input", name, wishes.axes.get(name, 0), ("?",) * rank)
        shape = ("batch", *["?"] * (rank - 1))
        specs.append(InputSpec(name, np.dtype(np.float32), shape, axis=axis, example=wishes.examples.get(name)))
    return specs
