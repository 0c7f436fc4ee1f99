"""Requests for models that take or give sequences, maps or what may be missing: each runs alone, as it comes.

What Python has for each kind of value is in ``kinds``. ONNX Runtime converts nothing within a list: numbers of
another type are an error there, and those of another byte order are read wrongly, so all of that is done here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastpipe.contract import Request
from fastpipe.errors import ConfigError, KernelError
from fastpipe.summaries import summarize

from ...kinds import TEXT, as_text, dtype_name, from_torch, is_narrow, largest_of, may_become, tensor_of
from ...odd_arrays import oddity
from ...ranges import may_overflow, overflow, overflow_error
from ..heads.postprocessors import is_built_in
from ..reader import Fit, Sample
from ..shapes import Profile
from .kinds import axes_of, dtype_of, has_rows

__all__ = ["ValueInputs", "check_postprocessor", "tensors_of", "values_of"]

_FIT = Fit(Profile(1, 1, ()), (), (), ("values", ()), ())
_KEYS = {"string": (str, "text"), "int64": (int, "whole numbers")}


def values_of(
    model: str, suffix: str, inputs: Sequence[Any], outputs: Sequence[Any], max: int | str | None
) -> ValueInputs | None:
    """Return what reads requests, if the values of a model are such that no batch can be made of them; None: it can.

    Args:
        model: what messages call it.
        suffix: what was put behind the names of inputs; requests have those without it.
        inputs: with name, type and shape, as ONNX Runtime has them.
        outputs: the same, of those that are handed on.
        max: of the node.

    Raises:
        ConfigError: if a value is of a kind that is not taken, or ``max`` asks for a batch.
    """
    others = [("input", value) for value in inputs if not value.type.startswith("tensor(")]
    others += [("output", value) for value in outputs if not has_rows(value.type)]
    if not others:
        return None
    what, first = others[0]
    if str(max or 1) != "1":
        raise ConfigError(
            f"{what} {first.name!r} is a {first.type}, which has no row for each request: expected max=1, which runs "
            f"one request at a time as it comes, got max={max!r}"
        )
    for value in outputs:
        _check_kind("output", value.name, value.type)
    return ValueInputs(model, [value.name.removesuffix(suffix) for value in inputs], inputs)


def check_postprocessor(postprocessor: Any, outputs: Sequence[Any]) -> None:
    """Check that a postprocessor of ours is not given what has no numbers.

    Raises:
        ConfigError: if it is.
    """
    if not is_built_in(postprocessor) or postprocessor in ("split", "cpu"):
        return
    for value in outputs:
        if value.type == "tensor(string)" or not value.type.startswith("tensor("):
            raise ConfigError(
                f"postprocessor={postprocessor!r} needs numbers, but output {value.name!r} is a {value.type}: take "
                f"split, or leave that output out by outputs"
            )


def _check_kind(what: str, name: str, kind: str) -> None:
    inner = _inner(kind)
    if inner is not None:
        _check_kind(what, name, inner)
    elif not kind.startswith("map("):
        dtype = dtype_of(what, name, kind)
        if is_narrow(dtype):
            raise ConfigError(
                f"{what} {name!r} has a {kind} within another value, which is not taken: cast in the graph"
            )


def _inner(kind: str) -> str | None:
    """Return the kind of what is in a sequence, or may be missing; None: it is something else."""
    for outer in ("seq(", "optional("):
        if kind.startswith(outer):
            return kind[len(outer) : -1]
    return None


class ValueInputs:
    """Reads requests as the values that ONNX Runtime takes; all are fresh, but arrays that fit already.

    Args:
        model: what messages call it.
        names: of the inputs.
        inputs: with type and shape.

    Raises:
        ConfigError: if an input is of a kind that is not taken.

    Thread-safety: any thread may call it.
    """

    takes_many_rows = False

    def __init__(self, model: str, names: Sequence[str], inputs: Sequence[Any]) -> None:
        self._model = model
        self._names = list(names)
        self._inputs = list(inputs)
        for name, value in zip(names, inputs, strict=True):
            _check_kind("input", name, value.type)

    def read(self, request: Request) -> Sample:
        """Return a value for each input.

        Raises:
            KernelError: if the model cannot take what the request has; the message has input, expected and got.
        """
        if "data" not in request:
            raise KernelError(f"{self._model}: the request has no 'data'")
        values, is_torch = [], False
        for name, declared, value in zip(self._names, self._inputs, self._in_order(request["data"]), strict=True):
            reading = _Reading(f"{self._model}, input {name!r}", declared)
            values.append(reading.value(value, declared.type))
            is_torch |= reading.is_torch
        return Sample(tuple(values), _FIT, is_torch)

    def _in_order(self, data: Any) -> list[Any]:
        """Return what a request has for each input: by name, in the model's order, or as the only one's own value."""
        names = self._names
        if isinstance(data, Mapping) and self._is_by_name(data):
            return [data.get(name) for name in names]
        if len(names) == 1:
            return [data]
        if not isinstance(data, list | tuple) or len(data) != len(names):
            got = summarize(list(data)) if isinstance(data, Mapping) else summarize(data)
            raise KernelError(
                f"{self._model}: expected a value for each of the inputs {names}, in a list or by name, got {got}"
            )
        return list(data)

    def _is_by_name(self, data: Mapping[Any, Any]) -> bool:
        """Say whether a mapping has values by the inputs' names; it may also be the value of an only one."""
        kinds = dict(zip(self._names, [value.type for value in self._inputs], strict=True))
        if not set(data) <= set(kinds):
            return False
        if any(kind.startswith("map(") and not isinstance(data.get(name), Mapping) for name, kind in kinds.items()):
            return False
        return all(name in data or kind.startswith("optional(") for name, kind in kinds.items())


def tensors_of(value: Any) -> Any:
    """Return an output with torch tensors in place of its arrays, over the same memory, as far as torch has them."""
    if isinstance(value, list):
        return [tensors_of(each) for each in value]
    return tensor_of(value) if type(value) is np.ndarray else value


class _Reading:
    """Reads the value of one input of a request."""

    def __init__(self, where: str, declared: Any) -> None:
        self._where = where
        self._axes = axes_of(declared)
        self.is_torch = False

    def value(self, given: Any, kind: str) -> Any:
        """Return what ONNX Runtime takes for a value of that kind."""
        if kind.startswith("optional("):
            return None if given is None else self.value(given, kind[len("optional(") : -1])
        if kind.startswith("seq("):
            if not isinstance(given, list | tuple):
                raise self._unfit(f"a list, each of it a {kind[4:-1]}", f"a {type(given).__name__}")
            return [self.value(each, kind[4:-1]) for each in given]
        if kind.startswith("map("):
            return self._map(given, kind)
        array = self._array(given, dtype_of("input", "", kind))
        return self._shaped(array) if self._axes and kind.startswith("tensor(") else array

    def _map(self, given: Any, kind: str) -> dict[Any, Any]:
        key_name, _, inner = kind[len("map(") : -1].partition(",")
        key_type, in_words = _KEYS.get(key_name, (int, "whole numbers"))
        wanted = dtype_of("input", "", inner)
        if not isinstance(given, Mapping):
            raise self._unfit(f"a mapping from {in_words} to {dtype_name(wanted)}", f"a {type(given).__name__}")
        found = {}
        for key, number in given.items():
            if not isinstance(key, key_type) or isinstance(key, bool):
                raise self._unfit(f"{in_words} as keys", f"a {type(key).__name__}")
            item = self._array(number if isinstance(number, str) else np.asarray(number), wanted)
            if item.ndim:
                raise self._unfit(f"one {dtype_name(wanted)} for each key", f"an array of shape {item.shape}")
            found[key] = item.item()
        return found

    def _array(self, given: Any, dtype: np.dtype[Any]) -> Any:
        if odd := oddity(given):
            raise self._unfit(dtype_name(dtype), odd)
        try:
            array = self._over_the_same_memory(given, dtype)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise self._unfit(dtype_name(dtype), str(error)) from error
        if not may_become(array.dtype, dtype):
            raise self._unfit(dtype_name(dtype), f"{dtype_name(array.dtype)} of shape {array.shape}")
        with np.errstate(over="ignore"):
            converted = np.ascontiguousarray(array if array.dtype == dtype else array.astype(dtype))
        converted = converted.reshape(array.shape)  # which makes at least one axis
        if may_overflow(array.dtype, dtype) and (lost := overflow(array, converted)) is not None:
            raise overflow_error(self._where, lost, dtype_name(dtype), largest_of(dtype))
        return converted

    def _over_the_same_memory(self, given: Any, dtype: np.dtype[Any]) -> Any:
        if dtype == TEXT and (text := as_text(given)) is not None:
            return text
        torch: Any = sys.modules.get("torch")  # who has a tensor has imported it
        if torch is not None and isinstance(given, torch.Tensor):
            self.is_torch = True
            narrow = from_torch(given, dtype) if is_narrow(dtype) else None
            return given.detach().numpy() if narrow is None else narrow
        if isinstance(given, np.ndarray | np.generic | bool | int | float):
            return np.asarray(given)
        if hasattr(given, "__dlpack__"):
            return np.from_dlpack(given)
        raise TypeError(f"a {type(given).__name__}, which is no array")

    def _shaped(self, array: Any) -> Any:
        """Return an array as the model declares it; a batch axis of 1 in front may have been left out."""
        axes = self._axes
        if array.ndim == len(axes) - 1 and (isinstance(axes[0], str) or axes[0] == 1):
            array = array[np.newaxis]
        fits = array.ndim == len(axes) and all(
            isinstance(size, str) or size == given for size, given in zip(axes, array.shape, strict=True)
        )
        if not fits:
            raise self._unfit(f"the shape ({', '.join(map(str, axes))})", str(array.shape))
        return array

    def _unfit(self, expected: str, got: str) -> KernelError:
        return KernelError(f"{self._where}: expected {expected}, got {got}")
