"""The kinds of values that go into an ONNX model and come out of it, and what NumPy has for each."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastpipe.errors import ConfigError

from .shapes import InputSpec

__all__ = ["axes_of", "dtype_of", "input_spec"]

_DTYPES = {
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    **{f"tensor({name})": np.dtype(name) for name in ("int8", "int16", "int32", "int64")},
    **{f"tensor({name})": np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")},
}


def input_spec(value: Any, added_suffix: str) -> InputSpec:
    """Return an input of a session as the model declares it, under its name without a suffix that was put behind it."""
    return InputSpec(value.name.removesuffix(added_suffix), dtype_of("input", value), axes_of(value))


def axes_of(value: Any) -> tuple[int | str, ...]:
    """Return the axes of an input or output of a session: each a size, a name, or "?"."""
    return tuple(size if isinstance(size, int) else str(size or "?") for size in value.shape)


def dtype_of(what: str, value: Any) -> np.dtype[Any]:
    """Return NumPy's type for an input or output of a session.

    Raises:
        ConfigError: if there is none.
    """
    if value.type not in _DTYPES:
        raise ConfigError(
            f"{what} {value.name!r} is a {value.type}, which has no form in NumPy that could be batched: "
            f"{_advice(what, value.type)}"
        )
    return _DTYPES[value.type]


def _advice(what: str, kind: str) -> str:
    """Return what to do about an input or output of a type that is not taken."""
    if kind == "tensor(string)":
        how = "turns text into numbers" if what == "input" else "turns numbers into text"
        return f"leave out of the file what takes or gives text, and write a step of the pipe that {how}"
    if kind.startswith(("seq(", "map(", "optional(")):
        return (
            "export it so that every output is a tensor; of a classifier of scikit-learn, without its ZipMap: "
            "convert_sklearn(..., options={'zipmap': False})"
        )
    return "export it with float32 there, cast within the graph"
