"""float32 -> INT8: ONNX Runtime's static quantisation, calibrated by what the pipe's own nodes make of real data."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastpipe.errors import PipeError
from fastpipe.models.inputs import Model, Samples, Source, model_of
from fastpipe.models.sessions import Array, dtype_of, open_session, tools_missing

__all__ = ["METHODS", "Quantized", "quantize"]

Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile")
"""How the range of each tensor is chosen from what calibration saw; what ``method`` of ``quantize`` may be."""

_METHOD_NAMES = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


@dataclass(frozen=True)
class Quantized:
    """What was written."""

    path: Path
    model: Path
    """What was quantized."""
    used_count: int
    """Of the samples, how many ranges were taken from."""
    failed: list[str]
    """Samples that the nodes refused, and why."""
    size_bytes: int
    size_before_bytes: int
    quantized_count: int
    """Operators that compute in INT8."""


def quantize(
    source: str | Path | Mapping[str, Any],
    samples: Source,
    path: Path,
    *,
    node: str | None = None,
    most: int = 200,
    method: Method = "minmax",
    per_channel: bool = True,
) -> Quantized:
    """Write the model of a pipe in INT8, with the ranges that its activations have on real data.

    The data goes through the nodes in front of the model, as it does while they serve; where the model's node has
    ``mean`` and ``std``, these are applied, and the node keeps them for the new file, too. Weights and activations are
    signed, between pairs of QuantizeLinear and DequantizeLinear. Inputs and outputs stay as they are.

    Args:
        source: the configuration.
        samples: names, and what reads a request of each.
        path: where the new ONNX file goes.
        node: the node of the model; None: the first that runs one.
        most: so many samples are used.
        method: how ranges are chosen: the least and greatest, or those that lose least ("entropy", "percentile", which
            keep all activations of the samples in memory).
        per_channel: a range for each channel of a weight.

    Raises:
        PipeError: the pipe has no ONNX file, no sample could be used, or ONNX Runtime refuses the model.
        MissingExtra: onnx or onnxruntime is not installed.
    """
    model = model_of(source, node)
    file = model.path
    prepared = Samples(model.transform, samples)
    reader = _Reader(model, prepared, most)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "made.onnx")
        with _quiet():
            _quantized(file, made, Path(folder), reader, _METHOD_NAMES[method], per_channel)
        _check(model, made)
        shutil.copyfile(made, path)
    return Quantized(
        path,
        file,
        reader.count,
        prepared.failed,
        path.stat().st_size,
        file.stat().st_size,
        _count_of_quantized(path),
    )


def _check(model: Model, made: Path) -> None:
    """Raise what building the model's step with the new file raises: its rows have to be the requests', as before."""
    from fastpipe.backends.model.onnx import OnnxTensor

    if issubclass(model.plan.kind, OnnxTensor):
        model.with_parameters(model=made).build().close()
    else:
        open_session(made)


class _Reader:
    """Gives ONNX Runtime one sample after the other, as a batch of one; for its ``CalibrationDataReader``."""

    def __init__(self, model: Model, samples: Samples, most: int) -> None:
        session = open_session(model.path)
        self.names = [value.name for value in session.get_inputs()]
        self._shapes = [value.shape for value in session.get_inputs()]
        self._dtypes = [dtype_of(value) for value in session.get_inputs()]
        if any(isinstance(shape[0], int) and shape[0] > 1 for shape in self._shapes if shape):
            raise PipeError(f"{model.path}: its batch is fixed, and data comes one by one: export it with an open one")
        self._model, self._samples = model, samples
        self._source: Iterator[Any] = islice(iter(samples), most)
        self.count = 0

    def get_next(self) -> dict[str, Array] | None:
        """Return the next sample's arrays by the names of the inputs; None: there are no more."""
        sample = next(self._source, None)
        if sample is None:
            if not self.count:
                first = f": {self._samples.failed[0]}" if self._samples.failed else ", the data is empty"
                raise PipeError(f"no sample could be used to calibrate{first}")
            return None
        self.count += 1
        data = sample.prepared["data"]
        if isinstance(data, Mapping):
            arrays = [data[name] for name in self.names]
        else:
            arrays = list(data) if isinstance(data, list | tuple) else [data]
        if len(arrays) != len(self.names):
            raise PipeError(f"{sample.name}: {len(arrays)} arrays for {len(self.names)} inputs")
        return {
            name: self._batch_of_one(sample.name, np.asarray(array), shape, dtype)
            for name, array, shape, dtype in zip(self.names, arrays, self._shapes, self._dtypes, strict=True)
        }

    def _batch_of_one(self, name: str, array: Array, shape: list[Any], dtype: np.dtype[Any]) -> Array:
        item = array[0] if array.ndim == len(shape) else array
        if item.ndim != len(shape) - 1:
            raise PipeError(f"{name}: the nodes give an array of shape {array.shape}, the model takes {shape}")
        if item.ndim == 3 and dtype.kind == "f":
            item = self._model.normalized(item)
        return np.ascontiguousarray(item[None], dtype)


def _quantized(file: Path, path: Path, folder: Path, reader: _Reader, method: str, per_channel: bool) -> None:
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise tools_missing(error) from error
    ready = folder / "ready.onnx"
    try:
        # Symbolic shape inference would need SymPy, and is for transformers only.
        quant_pre_process(file, ready, skip_symbolic_shape=True)
        quantization.quantize_static(
            ready,
            path,
            reader,
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=per_channel,
            calibrate_method=quantization.CalibrationMethod[method],
        )
    except PipeError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        raise PipeError(f"ONNX Runtime cannot quantize {file}: {type(error).__name__}: {str(error).strip()}") from error


def _count_of_quantized(path: Path) -> int:
    """Return how many operators read what a DequantizeLinear gives, and give what a QuantizeLinear reads."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    around = ("DequantizeLinear", "QuantizeLinear")
    return sum(node.op_type not in around and bool(dequantized.intersection(node.input)) for node in graph.node)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Have ONNX Runtime's tools log errors only: they use the root logger."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
