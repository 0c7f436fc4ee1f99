"""Changes to an ONNX graph before it is run: half precision, and the normalisation of images put in front."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from fastpipe.errors import ConfigError, MissingExtra

from ._numbers import check_levels

if TYPE_CHECKING:
    import onnx

__all__ = ["LOG_SEVERITY", "RAW_SUFFIX", "prepare"]

LOG_SEVERITY = 4
"""Fatal only: at "error", ONNX Runtime writes to stderr what it also raises."""

RAW_SUFFIX = "::raw"
"""Put behind the name of an input whose values are normalised in the graph: the name itself is then the normalised
tensor's, so that whoever reads it, also in the body of a loop, need not be changed."""


def prepare(
    model: Path | bytes,
    *,
    half: bool,
    mean: list[float] | None,
    std: list[float] | None,
    choose_float32: Callable[[list[str]], list[str]] | None = None,
) -> bytes:
    """Return the model with the changes, as the bytes of an ONNX file.

    Args:
        model: a file, or its content. Weights in files of their own are taken in.
        half: compute in float16. Inputs and outputs keep their types; values that float16 cannot hold are clipped.
        mean: subtracted from every image input: one number, or one for each channel.
        std: then divides it; the same form, none zero.
        choose_float32: gets the names of all nodes and returns those that ``half`` leaves alone; without it, none.

    Raises:
        ConfigError: if it is no ONNX model, no input is an image with so many channels, ``mean`` and ``std`` do not
            fit each other, or the changed model is larger than 2 GB.
        MissingExtra: if the package onnx is not installed.
    """
    _check_normalization(mean, std)
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingExtra("OnnxTensor with mean, std or precision='fp16'", "cpu", error) from error
    try:
        return _changed(model, half, mean, std, choose_float32 or (lambda names: []))
    except (ConfigError, MissingExtra):
        raise
    except Exception as error:  # whatever protobuf, onnx and the converter make of a bad file
        raise ConfigError(f"its graph cannot be changed for mean, std or precision: {error}") from error


def _check_normalization(mean: list[float] | None, std: list[float] | None) -> None:
    counts = {len(values) for values in (mean, std) if values is not None} - {1}
    if len(counts) > 1 or 0 in counts:
        raise ConfigError(f"mean and std need one number, or one for each channel, got {mean} and {std}")
    check_levels(mean, std)


def _changed(
    model: Path | bytes,
    half: bool,
    mean: list[float] | None,
    std: list[float] | None,
    choose_float32: Callable[[list[str]], list[str]],
) -> bytes:
    import onnx

    if half:
        folded = _folded(model)
        names = choose_float32([node.name for node in folded.graph.node])
        loaded = _float16_converter().convert_float_to_float16(folded, keep_io_types=True, node_block_list=names)
    else:
        loaded = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)
    if mean is not None or std is not None:
        # After the conversion, so that the normalisation is in the input's own precision.
        _normalize_images(loaded, mean, std)
    try:
        changed: bytes = loaded.SerializeToString()
    except ValueError as error:
        raise ConfigError(f"with mean, std or precision='fp16' a model must be smaller than 2 GB: {error}") from error
    return changed


def _folded(model: Path | bytes) -> onnx.ModelProto:
    """Return the model with constants computed and batch normalisations merged into the convolutions before them.

    Half precision needs it: a variance may be far beyond float16's 65504 where the weights it is merged into are small.
    (The text detector of PP-OCRv4 has one of 1e8: converted as it is, a tenth of its pixels change sides.)
    """
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="fastpipe-") as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = LOG_SEVERITY
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        options.intra_op_num_threads = 1
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def _float16_converter() -> ModuleType:
    """Return ONNX Runtime's module for the conversion.

    It is loaded from its file, since importing its package would put a folder with modules of common names at the
    end of ``sys.path``, for the whole process.
    """
    package = importlib.util.find_spec("onnxruntime")
    folder = Path((package.submodule_search_locations or [""])[0]) if package is not None else Path()
    spec = importlib.util.spec_from_file_location("_fastpipe_float16", folder / "transformers" / "float16.py")
    if spec is None or spec.loader is None or not Path(spec.origin or "").is_file():
        raise ConfigError("precision='fp16' needs an onnxruntime package that has transformers/float16.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _normalize_images(model: onnx.ModelProto, mean: list[float] | None, std: list[float] | None) -> None:
    graph = model.graph
    channel_count = max(len(values) for values in (mean, std) if values is not None)
    weights = {initializer.name for initializer in graph.initializer}  # old files list them among the inputs, too
    inputs = [value for value in graph.input if value.name not in weights]
    axes = [(value, _channel_axis(value, channel_count)) for value in inputs]
    images = [(value, axis) for value, axis in axes if axis is not None]
    if not images:
        shapes = ", ".join(f"{value.name!r} {tuple(_declared_shape(value))}" for value in inputs)
        raise ConfigError(
            f"mean and std with {channel_count} channels fit no input: expected floats of shape (batch, "
            f"{channel_count}, height, width) or (batch, height, width, {channel_count}), the model has {shapes}"
        )
    nodes = []
    for value, axis in images:
        nodes += _normalization(value, axis, graph, mean, std)
    old_nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *old_nodes])


def _channel_axis(value: onnx.ValueInfoProto, channel_count: int) -> int | None:
    """Return the axis of the channels, from the end so that it broadcasts, or None if this is no such image."""
    from onnx import TensorProto

    shape = _declared_shape(value)
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    if len(shape) != 4 or value.type.tensor_type.elem_type not in floats:
        return None
    if channel_count == 1 or shape[1] == channel_count:
        return -3
    if shape[3] == channel_count:
        return -1
    return -3 if shape[1] is None else None


def _declared_shape(value: onnx.ValueInfoProto) -> list[int | None]:
    dimensions = value.type.tensor_type.shape.dim
    return [dimension.dim_value if dimension.dim_value > 0 else None for dimension in dimensions]


def _normalization(
    value: onnx.ValueInfoProto, axis: int, graph: onnx.GraphProto, mean: list[float] | None, std: list[float] | None
) -> list[Any]:
    """Rename an input, add the constants to the graph and return the nodes that make the old name of the new one."""
    from onnx import helper, numpy_helper

    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    check_levels(mean, std, dtype)
    steps = [(kind, numbers) for kind, numbers in (("Sub", mean), ("Div", std)) if numbers is not None]
    normalized, value.name = value.name, value.name + RAW_SUFFIX
    current = value.name
    nodes = []
    for kind, numbers in steps:
        constant = np.asarray(numbers, dtype).reshape(-1, *[1] * (-axis - 1))
        graph.initializer.append(numpy_helper.from_array(constant, f"{normalized}::{kind}"))
        output = normalized if kind == steps[-1][0] else f"{normalized}::{kind}::output"
        nodes.append(helper.make_node(kind, [current, f"{normalized}::{kind}"], [output]))
        current = output
    return nodes
