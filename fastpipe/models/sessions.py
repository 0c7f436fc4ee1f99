"""ONNX Runtime for tools: quiet sessions, and what a model says of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpipe.cpus import usable_cpu_count
from fastpipe.errors import MissingExtra, PipeError

__all__ = ["Array", "axes_in_words", "dtype_of", "gap_between", "open_session", "run_session", "tools_missing"]

Array = npt.NDArray[Any]
_ERRORS_ONLY = 3


def open_session(model: Path | bytes) -> Any:
    """Return a session on the CPU that logs errors only.

    Raises:
        PipeError: ONNX Runtime cannot load it.
        MissingExtra: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise tools_missing(error) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = usable_cpu_count()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        raise PipeError(f"ONNX Runtime cannot load the model: {str(error).strip()}") from error


def run_session(session: Any, arrays: Sequence[Array]) -> list[Array]:
    """Return the outputs of one run, in the model's order."""
    feeds = {value.name: array for value, array in zip(session.get_inputs(), arrays, strict=True)}
    return [np.asarray(output) for output in session.run(None, feeds)]


def dtype_of(value: Any) -> np.dtype[Any]:
    """Return the NumPy type of an input or output of a session."""
    name = str(value.type).removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))


def axes_in_words(values: Sequence[Any]) -> str:
    """Return names and axes, as in ``images (batch, 3, 56, 56)``."""
    return ", ".join(f"{value.name} ({', '.join(str(axis or '?') for axis in value.shape)})" for value in values)


def gap_between(output: Array, wanted: Array) -> tuple[float, float]:
    """Return the largest difference of two arrays, and what it is of the largest number in ``wanted``.

    Both are infinite where only one of the two is a number.
    """
    one, other = output.astype(np.float64), wanted.astype(np.float64)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        gap = float(np.where(same, 0.0, np.abs(one - other)).max(initial=0.0))
    if not np.isfinite(gap):
        return np.inf, np.inf
    largest = float(np.abs(other[np.isfinite(other)]).max(initial=0.0))
    return gap, gap / (largest or 1.0)


def tools_missing(error: ImportError) -> MissingExtra:
    """Return the error that names the extra with what these tools need."""
    return MissingExtra("this command", "models", error)
