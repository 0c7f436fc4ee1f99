"""The kinds of values that go into an ONNX model and come out of it, and what Python has for each.

- ``tensor(float)`` and so on: an array.
- ``tensor(string)``: an array of dtype object, of ``str``.
- ``tensor(bfloat16)``, ``tensor(float8e5m2)`` and so on: an array of a dtype of ml_dtypes.
- ``seq(map(string,tensor(float)))``, as an output: an array of dicts, a row for each, as ZipMap makes them.
- ``seq(...)``, ``map(...)``, ``optional(...)``: a list, a dict, or None, of models that run one request at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpipe.errors import ConfigError

from ...kinds import TEXT, as_float32, narrow_dtype
from ..axes import Axes, Declared
from ..shapes import InputSpec

__all__ = [
    "ELEMENT_NUMBERS",
    "Rows",
    "axes_of",
    "comparable",
    "described",
    "dtype_of",
    "dtypes_of",
    "has_rows",
    "input_spec",
    "is_narrow_kind",
    "plain",
    "rows_of",
]

_DTYPES = {
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(string)": TEXT,
    **{f"tensor({name})": np.dtype(name) for name in ("int8", "int16", "int32", "int64")},
    **{f"tensor({name})": np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")},
}
_NARROW = {
    "tensor(bfloat16)": "bfloat16",
    "tensor(float8e4m3fn)": "float8_e4m3fn",
    "tensor(float8e4m3fnuz)": "float8_e4m3fnuz",
    "tensor(float8e5m2)": "float8_e5m2",
    "tensor(float8e5m2fnuz)": "float8_e5m2fnuz",
}
ELEMENT_NUMBERS = {
    "bfloat16": 16,
    "float8_e4m3fn": 17,
    "float8_e4m3fnuz": 18,
    "float8_e5m2": 19,
    "float8_e5m2fnuz": 20,
}
"""Of the dtypes that NumPy lacks, the numbers that ONNX has for them."""


class Rows(np.ndarray[Any, Any]):
    """An array of dtype object that has a dict for each row: so rows of maps are counted and cut as all others are."""


def rows_of(maps: Sequence[dict[Any, float]]) -> Rows:
    """Return a list of dicts as an array with a row for each."""
    rows = np.empty(len(maps), np.object_)
    rows[:] = maps
    return rows.view(Rows)


def plain(result: Any) -> Any:
    """Return a result without ``Rows``: of one row the dict, of several a list of them."""
    if isinstance(result, Rows):
        return result[0] if len(result) == 1 else result.tolist()
    if isinstance(result, list):
        return [plain(each) for each in result]
    return {name: plain(each) for name, each in result.items()} if isinstance(result, dict) else result


def comparable(output: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an output as numbers or text that can be held against those of another run, row by row."""
    if not isinstance(output, Rows):
        return as_float32(output)
    if not len(output):
        return np.zeros((0, 0))
    keys = sorted(output[0], key=str)
    if any(sorted(row, key=str) != keys for row in output):
        return np.array([[repr(row)] for row in output], np.object_)
    return np.array([[row[key] for key in keys] for row in output], np.float64)


def is_narrow_kind(kind: str) -> bool:
    """Say whether a kind, in ONNX Runtime's words, is an array of a dtype that NumPy lacks."""
    return kind in _NARROW


def has_rows(kind: str) -> bool:
    """Say whether values of a kind, in ONNX Runtime's words, can have a row for each request."""
    return kind.startswith(("tensor(", "seq(map("))


def input_spec(value: Any, added_suffix: str) -> InputSpec:
    """Return an input of a session as the model declares it, under its name without a suffix that was put behind it."""
    return InputSpec(value.name.removesuffix(added_suffix), dtype_of("input", value.name, value.type), axes_of(value))


def axes_of(value: Any) -> tuple[int | str, ...]:
    """Return the axes of an input or output of a session: each a size, a name, or "?"."""
    return tuple(size if isinstance(size, int) else str(size or "?") for size in value.shape)


def dtype_of(what: str, name: str, kind: str) -> np.dtype[Any]:
    """Return the dtype of an input or output of a kind, in ONNX Runtime's words.

    Raises:
        ConfigError: if there is none.
        MissingExtra: if it is one of ml_dtypes, which is not installed.
    """
    if kind in _DTYPES:
        return _DTYPES[kind]
    if kind in _NARROW:
        return narrow_dtype(_NARROW[kind], f"a model whose {what} {name!r} is a {kind}")
    if what == "output" and kind.startswith("seq(map("):
        return TEXT
    raise ConfigError(
        f"{what} {name!r} is a {kind}, which is not taken: export it with float32 there, cast in the graph"
    )


def dtypes_of(values: Sequence[Any]) -> dict[str, str]:
    """Return the dtypes of outputs by their names, in NumPy's words."""
    return {value.name: dtype_of("output", value.name, value.type).name for value in values}


def described(
    values: Sequence[Any], declared: Sequence[Declared], axes: Axes
) -> dict[str, tuple[np.dtype[Any], Sequence[int | str]]]:
    """Return what a file says of outputs: by name the dtype, and the shape with the requests in front; ``()``: unknown.

    Args:
        values: all outputs of the model, in ONNX Runtime's words.
        declared: those that count.
        axes: where they have the requests.
    """
    kinds = {value.name: value.type for value in values}
    shapes = axes.row_shapes(declared)
    return {
        name: (dtype_of("output", name, kinds[name]), shape) for (name, _), shape in zip(declared, shapes, strict=True)
    }
