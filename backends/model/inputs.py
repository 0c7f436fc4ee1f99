"""What goes into a model that takes NumPy's arrays: a request's data, and several of them as one batch."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpipe.errors import ConfigError, KernelError

from ..kinds import TEXT, as_text, blank, dtype_name, from_torch, is_narrow, largest_of, may_become, tensor_of
from ..odd_arrays import oddity
from ..ranges import may_overflow, overflow
from .reader import Fit, RequestReader, Signature
from .shapes import InputSpec, Profile, SharedAxes

__all__ = ["Array", "ModelInputs", "as_it_comes", "example_of", "gather", "to_array", "to_torch", "zeros"]

Array = npt.NDArray[Any]


class ModelInputs(RequestReader):
    """Reads requests as arrays of NumPy, over the memory that they come in.

    Args:
        model: what messages call the model.
        specs: its inputs, in its order.
        profiles: what it takes of them; at least one.
        device: where torch tensors are taken as they lie, in torch's words; None: nowhere.

    Thread-safety: any thread may call it.
    """

    def __init__(
        self, model: str, specs: Sequence[InputSpec], profiles: Sequence[Profile], device: str | None = None
    ) -> None:
        super().__init__(model, [spec.name for spec in specs], len(specs), specs, profiles)
        self._dtypes = [spec.dtype for spec in specs]
        self._has_text = TEXT in self._dtypes
        self._device = device
        self._axis_names = SharedAxes(specs)
        self.names = [spec.name for spec in specs]
        self.takes_plain_arrays = device is None and not self._has_text
        """Whether it takes nothing but arrays of NumPy, and what is made one."""

    def _arrays(self, data: Any) -> tuple[tuple[Any, ...], bool]:
        if type(data) is np.ndarray and not self._has_text:
            return self._in_order((data,)), False
        values = self._in_order(data)
        are_arrays = not self._has_text and all([type(each) is np.ndarray for each in values])  # noqa: C419 - half the time
        if are_arrays:
            return values, False
        pairs = [self._to_array(index, value) for index, value in enumerate(values)]
        return tuple([array for array, _ in pairs]), any(from_torch for _, from_torch in pairs)

    def _signature(self, arrays: tuple[Any, ...]) -> Signature:
        if self._device is None:
            return tuple([(array.shape, array.dtype) for array in arrays])
        # Where they are, too: what is on a GPU shares no run with what is not.
        return tuple(
            [
                (array.shape, array.dtype, "")
                if isinstance(array, np.ndarray)
                else (tuple(array.shape), self._dtypes[index], self._device)
                for index, array in enumerate(arrays)
            ]
        )

    def _to_array(self, index: int, value: Any) -> tuple[Array, bool]:
        """Return ``value`` as a NumPy array over the same memory, and whether it is a torch tensor."""
        if self._is_plain_number(index, value):
            return self._of_number(index, value), False
        if odd := oddity(value):
            raise self._unusable(index, odd)
        # Who sends a tensor has imported torch; this module never does.
        is_torch = isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))
        dtype = self._dtypes[index]
        if is_torch and self._device is not None and str(value.device) == self._device:
            return self._on_device(index, value), True
        try:
            if dtype == TEXT and (text := as_text(value)) is not None:
                return (text if text.ndim else self._item_of_one(index, text)), False
            if is_torch and is_narrow(dtype) and (narrow := from_torch(value, dtype)) is not None:
                return narrow, True
            if is_torch:
                return value.detach().numpy(), True
            if isinstance(value, np.ndarray | np.generic):
                return np.asarray(value), False
            if hasattr(value, "__dlpack__"):
                return np.from_dlpack(value), False
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            if dtype == TEXT:
                raise self._unusable(index, str(error)) from None
            # It is on another device, or of a type that NumPy lacks (bfloat16). Moving and converting it is left to a
            # step of the pipe, where its cost can be seen.
            advice = "; a step before has to make one of it on the CPU, of a type that NumPy has, such as float32"
            raise self._unusable(index, f"a {type(value).__name__} that NumPy cannot read: {error}{advice}") from error
        raise self._unusable(index, f"a {type(value).__name__}, which is no array")

    def _on_device(self, index: int, tensor: Any) -> Any:
        """Return a tensor on the model's GPU as it is; nothing is converted there."""
        if str(tensor.dtype) != f"torch.{self._dtypes[index].name}":
            got = f"{tensor.dtype} on {self._device}, where nothing is converted: a step before has to"
            raise self._unusable(index, got)
        return tensor.detach()

    def _item_of_one(self, index: int, text: Array) -> Array:
        """Return a single text as an item that has no more elements, where the model may have such."""
        assert self._specs is not None  # noqa: S101 - see the constructor
        sizes = self._specs[index].shape[1:]
        return text.reshape((1,) * len(sizes)) if all(size == 1 or isinstance(size, str) for size in sizes) else text

    def _of_number(self, index: int, value: bool | float) -> Array:
        """Return a number as an array: a whole one in the type that the model wants, if that holds it."""
        dtype = self._dtypes[index]
        if not isinstance(value, int) or dtype.kind not in "iu":
            return np.asarray(value)
        limits = np.iinfo(dtype)
        if not limits.min <= value <= limits.max:
            raise self._unusable(index, f"the number {value}")
        return np.asarray(value, dtype)

    def _target(self, index: int, given: Any, item: tuple[int, ...]) -> np.dtype[Any]:
        return self._dtypes[index]

    def _may_become(self, given: Any, wanted: Any) -> bool:
        return may_become(given, wanted)

    def _may_overflow(self, given: Any, wanted: Any) -> bool:
        return may_overflow(given, wanted)

    def _lost(self, fit: Fit, index: int, given: Sequence[Any], joined: Any) -> Iterable[float | None]:
        if np.isfinite(joined).all():  # one look where there is none
            return ()
        # Of each as it came, since there may be any number of rows, on any axis, and zeros behind them.
        return [overflow(array, _converted(array, self._dtypes[index])) for array in given]

    def _range_of(self, dtype: Any) -> tuple[str, float]:
        return dtype.name, largest_of(dtype)

    def _expected_dtype(self, index: int) -> str:
        return dtype_name(self._dtypes[index])

    def _shown(self, dtype: Any) -> str:
        return dtype_name(dtype)

    def _check_items(
        self, items: tuple[tuple[int, ...], ...], rows: Sequence[int | None], targets: Sequence[Any]
    ) -> None:
        if conflict := self._axis_names.conflict(self._full_shapes(items, rows)):
            raise KernelError(f"{self._model}: {conflict}")


def gather(
    arrays: Sequence[Array], item_shape: tuple[int, ...], row_count: int, dtype: np.dtype[Any], axis: int | None = 0
) -> Array:
    """Return the arrays of one batch as one, C-contiguous, of shape ``(row_count, *item_shape)``.

    Args:
        arrays: at least one, of equal dtype, each of shape ``item_shape`` or with a batch axis beside it, of any
            number of rows; not modified.
        item_shape: of one row.
        row_count: at least as many as the arrays have; the rows behind the last are zeros.
        dtype: of the answer.
        axis: where the arrays that have one have their batch axis. None: the batch shares the first of them, which is
            returned with the shape ``item_shape``.

    Returns:
        Fresh memory, perhaps read-only; but an array that is the whole batch already is not copied.
    """
    first = arrays[0]
    if not isinstance(first, np.ndarray):
        return _gather_tensors(arrays, item_shape, row_count, axis)
    if axis is None:
        return np.ascontiguousarray(_converted(first, dtype)).reshape(item_shape)
    shape = (row_count, *item_shape)
    if axis:
        arrays = [np.moveaxis(each, axis, 0) if each.ndim == len(shape) else each for each in arrays]
    if len(arrays) == 1 and first.size == math.prod(shape):
        return np.ascontiguousarray(_converted(arrays[0], dtype)).reshape(shape)
    if dtype.hasobject:
        rows = [each if each.ndim == len(shape) else each[np.newaxis] for each in arrays]
        missing_rows = row_count - sum([len(each) for each in rows])
        return np.concatenate([*rows, blank((missing_rows, *item_shape), dtype)])
    # bytes.join copies under one hold of the GIL, while np.concatenate gives it up for every array of more than a few
    # kilobytes and may wait 5 ms to get it back from a thread that runs Python. It is no slower, and the memory is
    # fresh for each batch, so nothing here can be overwritten while somebody still reads it.
    parts: list[Any] = [array if array.flags.c_contiguous else np.ascontiguousarray(array) for array in arrays]
    missing = math.prod(shape) * first.itemsize - sum([part.nbytes for part in parts])
    if missing:
        parts.append(bytes(missing))
    batch: Array = np.ndarray(shape, first.dtype, b"".join(parts))
    return _converted(batch, dtype)


def _gather_tensors(tensors: Sequence[Any], item_shape: tuple[int, ...], row_count: int, axis: int | None) -> Any:
    """Do as ``gather`` with torch tensors of the model's own dtype, on their device, on torch's current stream."""
    if axis is None:
        return tensors[0].reshape(item_shape).contiguous()
    rank = len(item_shape) + 1
    rows = [each.movedim(axis, 0) if each.ndim == rank else each.unsqueeze(0) for each in tensors]
    missing = row_count - sum([len(each) for each in rows])
    if missing:
        rows.append(tensors[0].new_zeros((missing, *item_shape)))
    return rows[0].contiguous() if len(rows) == 1 else sys.modules["torch"].cat(rows)


def as_it_comes(array: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return a request's array as a model gets it that runs one request at a time."""
    if not isinstance(array, np.ndarray):
        return array.reshape(shape).contiguous()
    return np.ascontiguousarray(_converted(array, dtype)).reshape(shape)


def zeros(specs: Sequence[InputSpec], items: Sequence[tuple[int, ...]], row_count: int) -> list[Array]:
    """Return inputs of zeros, or of empty text, with the requests in front; of what they share, the example, if any.

    Raises:
        ConfigError: if an example has not the shape of its input.
    """
    arrays = []
    for spec, item in zip(specs, items, strict=True):
        example = example_of(spec, item)
        shape = item if spec.is_shared else (row_count, *item)
        arrays.append(blank(shape, spec.dtype) if example is None else example)
    return arrays


def example_of(spec: InputSpec, item: tuple[int, ...]) -> Array | None:
    """Return the example of an input that a batch shares, for an item of this shape; None: there is none.

    Raises:
        ConfigError: if it has another shape, and is not one number for all.
    """
    if spec.example is None:
        return None
    try:
        return np.broadcast_to(np.asarray(spec.example, spec.dtype), item).copy()
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"input {spec.name!r}, shared: expected an example of {spec.dtype.name} of shape {item}, or one number, "
            f"got {spec.example!r}"
        ) from error


def _converted(array: Array, dtype: np.dtype[Any]) -> Array:
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):  # ModelInputs.refuse_overflow looks for what that has made infinite
        return array.astype(dtype)


def to_torch(arrays: Sequence[Array]) -> list[Any]:
    """Return arrays as torch tensors over the same memory; for requests that brought tensors, so torch is there."""
    return [tensor_of(array) if isinstance(array, np.ndarray) else array for array in arrays]


def to_array(tensor: Any) -> Array:
    """Return a torch tensor as an array; bfloat16 and floats of 8 bits, which NumPy lacks, become float32."""
    torch = sys.modules["torch"]
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.float()
    array: Array = tensor.detach().cpu().numpy()
    return array
