"""What goes into a model: a request's data as arrays, checked against the model, and several of them as one batch."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastpipe.contract import Request
from fastpipe.errors import KernelError
from fastpipe.summaries import summarize

from ..odd_arrays import oddity
from ..ranges import may_overflow, overflow, overflow_error
from .shapes import InputSpec, Limits, Profile, SharedAxes, advice_on_empty, is_within

__all__ = ["Array", "ModelInputs", "Sample", "UnfitError", "gather", "to_array", "to_torch"]

Array = npt.NDArray[Any]


# How many combinations of shapes and dtypes are remembered as checked; a model fed with more starts anew. Each takes
# about half a kilobyte.
_REMEMBERED_FITS = 1024


class Fit(NamedTuple):
    """What was found out about arrays of certain shapes and dtypes."""

    profile: Profile
    item_shapes: tuple[tuple[int, ...], ...]  # of each input, without the batch axis
    key: Hashable  # equal for all that may share a batch, with or without a batch axis
    narrowed: tuple[int, ...]  # the inputs whose numbers may become infinite in the model's type


class UnfitError(Exception):
    """Some requests of a group cannot be run after all, and nobody has a result; the others can be, without them.

    Args:
        errors: of those requests, by their place in the group; at least one.
    """

    def __init__(self, errors: Mapping[int, KernelError]) -> None:
        super().__init__(f"{len(errors)} requests")
        self.errors = dict(errors)


class Sample(NamedTuple):
    """The data of one request."""

    arrays: tuple[Array, ...]  # one for each input, as they came; often the caller's own memory
    fit: Fit
    is_torch: bool  # some of it came as torch tensors, so that is how the result leaves

    @property
    def key(self) -> Hashable:
        """Equal keys may share a batch."""
        return self.fit.key, self.is_torch


class ModelInputs:
    """Reads requests for one model.

    Args:
        model: what messages call the model.
        specs: its inputs, in its order.
        profiles: what it takes of them; at least one.

    Thread-safety: any thread may call it.
    """

    def __init__(self, model: str, specs: Sequence[InputSpec], profiles: Sequence[Profile]) -> None:
        self._model = model
        self._specs = tuple(specs)
        self._names = [spec.name for spec in specs]
        self._shared = SharedAxes(specs)
        # Where several profiles take a request, it goes where it can have the most company.
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
        data = request["data"]
        is_torch = False
        arrays: tuple[Array, ...]
        if type(data) is np.ndarray:
            arrays = self._in_order((data,))
        else:
            pairs = [self._to_array(*pair) for pair in zip(self._specs, self._in_order(data), strict=True)]
            arrays = tuple([array for array, _ in pairs])
            is_torch = any(from_torch for _, from_torch in pairs)
        signature = tuple([(array.shape, array.dtype) for array in arrays])
        return Sample(arrays, self._fits.get(signature) or self._find_fit(signature), is_torch)

    def refuse_overflow(self, fit: Fit, by_input: Sequence[Sequence[Array]], inputs: Sequence[Array]) -> None:
        """Look for requests that have a number which is infinite in the model's type; one look where there is none.

        Args:
            fit: of all of them.
            by_input: of each input, the arrays of the requests.
            inputs: the same as ``gather`` has joined and converted them.

        Raises:
            UnfitError: for those requests; the message has the input, the range and the number.
        """
        errors: dict[int, KernelError] = {}
        for place in fit.narrowed:
            if np.isfinite(inputs[place]).all():
                continue
            spec = self._specs[place]
            for number, (given, row) in enumerate(zip(by_input[place], inputs[place], strict=False)):  # rows of zeros
                lost = overflow(given.reshape(row.shape), row)
                if lost is not None:
                    where, largest = f"{self._model}, input {spec.name!r}", float(np.finfo(spec.dtype).max)
                    errors.setdefault(number, overflow_error(where, lost, spec.dtype.name, largest))
        if errors:
            raise UnfitError(errors)

    def _in_order(self, data: Any) -> tuple[Any, ...]:
        """Return the values of the inputs, in the model's order."""
        if isinstance(data, list | tuple):
            values = tuple(data)
        elif isinstance(data, Mapping):
            if data.keys() != set(self._names):
                raise KernelError(
                    f"{self._model}: expected data for the inputs {self._names}, got {summarize(list(data))}"
                )
            values = tuple([data[name] for name in self._names])
        else:
            values = (data,)
        if len(values) != len(self._names):
            expected = f"{len(self._names)} array{'s'[: len(self._names) != 1]}, for {', '.join(self._names)}"
            raise KernelError(f"{self._model}: expected {expected}, got {len(values)}")
        return values

    def _to_array(self, spec: InputSpec, value: Any) -> tuple[Array, bool]:
        """Return ``value`` as a NumPy array over the same memory, and whether it is a torch tensor."""
        if odd := oddity(value):
            raise self._unusable(spec, odd)
        # Who sends a tensor has imported torch; this module never does.
        is_torch = isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))
        try:
            if is_torch:
                return value.detach().numpy(), True
            if isinstance(value, np.ndarray | np.generic):
                return np.asarray(value), False
            if hasattr(value, "__dlpack__"):
                return np.from_dlpack(value), False
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            # It is on another device, or of a type that NumPy lacks (bfloat16). Moving and converting it is left to a
            # step of the pipe, where its cost can be seen.
            advice = "; a step before has to make one of it on the CPU, of a type that NumPy has, such as float32"
            raise self._unusable(spec, f"a {type(value).__name__} that NumPy cannot read: {error}{advice}") from error
        raise self._unusable(spec, f"a {type(value).__name__}, which is no array")

    def _find_fit(self, signature: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]) -> Fit:
        """Return what is true of arrays with these shapes and dtypes, and remember it."""
        item_shapes = []
        for spec, (shape, dtype) in zip(self._specs, signature, strict=True):
            if dtype != spec.dtype and not _may_become(dtype, spec.dtype):
                raise self._misfit(spec, dtype, shape)
            if len(shape) == len(spec.shape) and shape[0] == 1:
                shape = shape[1:]
            if len(shape) != len(spec.shape) - 1:
                raise self._misfit(spec, dtype, shape)
            item_shapes.append(shape)
        conflict = self._shared.conflict(item_shapes)
        if conflict:
            raise KernelError(f"{self._model}: {conflict}")
        key = tuple(item_shapes), tuple([dtype for _, dtype in signature])
        for profile in self._profiles:
            if profile.takes(key[0]):
                if len(self._fits) >= _REMEMBERED_FITS:
                    self._fits.clear()
                narrowed = [
                    place
                    for place, (spec, dtype) in enumerate(zip(self._specs, key[1], strict=True))
                    if may_overflow(dtype, spec.dtype)
                ]
                self._fits[signature] = fit = Fit(profile, key[0], key, tuple(narrowed))
                return fit
        for number, (spec, shape, dtype) in enumerate(zip(self._specs, *key, strict=True)):
            if not any(is_within(shape, profile.limits[number]) for profile in self._profiles):
                raise self._misfit(spec, dtype, shape)
        got = ", ".join(f"{shape} in {name!r}" for name, shape in zip(self._names, item_shapes, strict=True))
        raise KernelError(f"{self._model}: each input fits in a profile, but not all in the same one: got {got}")

    def _misfit(self, spec: InputSpec, dtype: np.dtype[Any], shape: tuple[int, ...]) -> KernelError:
        advice = advice_on_empty(self._specs, self._specs.index(spec), shape, self._profiles)
        return self._unusable(spec, f"{dtype.name} of shape {shape}{advice}")

    def _unusable(self, spec: InputSpec, got: str) -> KernelError:
        number = self._specs.index(spec)
        items = dict.fromkeys(_describe_item(spec, profile.limits[number]) for profile in self._profiles)
        return KernelError(
            f"{self._model}, input {spec.name!r}: expected {spec.dtype.name} of shape {' or '.join(items)}, "
            f"with or without a batch axis of 1 in front, got {got}"
        )


def gather(arrays: Sequence[Array], item_shape: tuple[int, ...], row_count: int, dtype: np.dtype[Any]) -> Array:
    """Return the arrays of one batch as one, C-contiguous, of shape ``(row_count, *item_shape)``.

    Args:
        arrays: at least one, of equal dtype, each of shape ``item_shape`` or with a batch axis of 1 in front of it;
            not modified.
        item_shape: of one row.
        row_count: at least ``len(arrays)``; the rows behind the last array are zeros.
        dtype: of the answer.

    Returns:
        Fresh memory, perhaps read-only; but an array that is the whole batch already is not copied.
    """
    shape = (row_count, *item_shape)
    first = arrays[0]
    if row_count == 1:
        return np.ascontiguousarray(_converted(first, dtype)).reshape(shape)
    # bytes.join copies under one hold of the GIL, while np.concatenate gives it up for every array of more than a few
    # kilobytes and may wait 5 ms to get it back from a thread that runs Python. It is no slower, and the memory is
    # fresh for each batch, so nothing here can be overwritten while somebody still reads it.
    parts: list[Any] = [array if array.flags.c_contiguous else np.ascontiguousarray(array) for array in arrays]
    if row_count > len(arrays):
        parts.append(bytes((row_count - len(arrays)) * first.nbytes))
    batch: Array = np.ndarray(shape, first.dtype, b"".join(parts))
    return _converted(batch, dtype)


def _converted(array: Array, dtype: np.dtype[Any]) -> Array:
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):  # ModelInputs.refuse_overflow looks for what that has made infinite
        return array.astype(dtype)


def to_torch(arrays: Sequence[Array]) -> list[Any]:
    """Return arrays as torch tensors over the same memory; for requests that brought tensors, so torch is there."""
    from_numpy = sys.modules["torch"].from_numpy
    return [from_numpy(array) for array in arrays]


def to_array(tensor: Any) -> Array:
    """Return a torch tensor as an array; bfloat16 and floats of 8 bits, which NumPy lacks, become float32."""
    torch = sys.modules["torch"]
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.float()
    array: Array = tensor.detach().cpu().numpy()
    return array


def _may_become(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Say whether values may be converted: they may be rounded to a float, but never wrap around or lose a fraction."""
    if wanted.kind == "f":
        return given.kind in "biuf"
    return np.can_cast(given, wanted, "safe")


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
