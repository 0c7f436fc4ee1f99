"""Changes to an ONNX graph before it is run: half precision, fusions, and the normalisation of images put in front."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from fastpipe.errors import ConfigError, MissingExtra

from ...ranges import check_levels
from .files import is_ort_format
from .fusions import fuse
from .weights import graphs_in, serialized, with_types

if TYPE_CHECKING:
    import onnx

__all__ = ["HALF_INPUTS", "LARGEST_HALF", "LOG_SEVERITY", "RAW_SUFFIX", "prepare"]

LOG_SEVERITY = 4
"""Fatal only: at "error", ONNX Runtime writes to stderr what it also raises."""

RAW_SUFFIX = "::raw"
"""Put behind the name of an input whose values are normalised in the graph: the name itself is then the normalised
tensor's, so that whoever reads it, also in the body of a loop, need not be changed."""

HALF_INPUTS = "fastpipe.float16_inputs"
"""The entry of a model's metadata with the names, as JSON, of the inputs whose values become float16 as they are."""

LARGEST_HALF = 65504.0
"""What float16 cannot exceed."""


def prepare(
    model: Path | bytes,
    *,
    half: bool,
    mean: list[float] | None,
    std: list[float] | None,
    fuses: bool = False,
    choose_float32: Callable[[list[str]], list[str]] | None = None,
    custom_ops: Sequence[Path] = (),
    folder: Path | None = None,
) -> Path | bytes:
    """Return the model with the changes, as the bytes of an ONNX file, or as one in ``folder`` where it is too large.

    Args:
        model: a file, or its content. Weights in files of their own are taken in.
        half: compute in float16. Inputs and outputs keep their types; constants that float16 cannot hold are clipped.
            Operators that take float32 only (trees, those of quantised graphs) stay in it, and what they read is not
            rounded on its way to them.
        mean: subtracted from every image input: one number, or one for each channel.
        std: then divides it; the same form, none zero.
        fuses: put together what ONNX Runtime does not; see ``fusions``.
        choose_float32: gets the names of all nodes and returns those that ``half`` leaves alone; without it, none.
        custom_ops: libraries with operators of the model.
        folder: for a changed model of 2 GB or more, and its weights; None: there must be none.

    Raises:
        ConfigError: if it is no ONNX model, no input is an image with so many channels, ``mean`` and ``std`` do not
            fit each other, or the changed model is larger than 2 GB and there is no folder.
        MissingExtra: if the package onnx is not installed.
    """
    _check_normalization(mean, std)
    if is_ort_format(model):
        raise ConfigError(
            "it is in ONNX Runtime's own format, which cannot be changed for mean, std, fuse or precision: "
            "take the .onnx file that it was made of"
        )
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingExtra("OnnxTensor with mean, std, fuse or precision='fp16'", "cpu", error) from error
    try:
        changed = _changed(model, half, mean, std, fuses, choose_float32 or (lambda names: []), custom_ops)
        return serialized(changed, folder)
    except (ConfigError, MissingExtra):
        raise
    except Exception as error:  # whatever protobuf, onnx and the converter make of a bad file
        raise ConfigError(f"its graph cannot be changed for mean, std, fuse or precision: {error}") from error


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
    fuses: bool,
    choose_float32: Callable[[list[str]], list[str]],
    custom_ops: Sequence[Path],
) -> onnx.ModelProto:
    import onnx

    if half:
        loaded = _folded(model, custom_ops)
    elif isinstance(model, bytes):
        loaded = onnx.load_from_string(model)
    else:
        loaded = onnx.load(model)
    if fuses:
        fuse(loaded)
    if half:
        loaded = _halved(loaded, choose_float32)
    if mean is not None or std is not None:
        # After the conversion, so that the normalisation is in the input's own precision.
        _normalize_images(loaded, mean, std)
    if half:
        _note_half_inputs(loaded)
    return loaded


def _folded(model: Path | bytes, custom_ops: Sequence[Path]) -> onnx.ModelProto:
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
        # All of them, whatever their size: weights beside the model would otherwise be looked for beside this file.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "folded.data")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "0")
        options.intra_op_num_threads = 1
        for library in custom_ops:
            options.register_custom_ops_library(str(library))
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def _halved(model: onnx.ModelProto, choose_float32: Callable[[list[str]], list[str]]) -> onnx.ModelProto:
    converter = _float16_converter()
    chosen = choose_float32([node.name for node in model.graph.node])
    nodes = [node for graph in graphs_in(model.graph) for node in graph.node]
    taken = {node.name for node in nodes}
    for number, node in enumerate(nodes):  # they are chosen by name, and converted nodes are told from new ones by it
        if not node.name:
            node.name = next(
                name for name in (f"{node.op_type}_{number}{'_' * more}" for more in range(99)) if name not in taken
            )
            taken.add(node.name)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    always = converter.ALWAYS_FLOAT_INPUTS  # whose inputs the converter knows by number
    kept = [node.name for node in nodes if node.op_type not in always and not _takes_float16(node, versions)]
    halved: onnx.ModelProto = converter.convert_float_to_float16(
        with_types(model), keep_io_types=True, disable_shape_infer=True, node_block_list=[*chosen, *kept]
    )
    _drop_detours(halved, taken)
    return halved


def _takes_float16(node: onnx.NodeProto, versions: Mapping[str, int]) -> bool:
    """Say whether an operator that takes or gives float32 could have float16 in its place; of one unknown: no."""
    import onnx

    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        schema = onnx.defs.get_schema(node.op_type, versions.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return False
    allowed = {each.type_param_str: each.allowed_type_strs for each in schema.type_constraints}
    for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for name, formal in zip(names, formals, strict=False):
            types = allowed.get(formal.type_str, [formal.type_str])
            if name and "tensor(float)" in types and "tensor(float16)" not in types:
                return False
    return True


def _drop_detours(model: onnx.ModelProto, old_names: set[str]) -> None:
    """Lead what went from float32 to float16 and back, for the converter's sake alone, past float16."""
    from onnx import TensorProto

    for graph in graphs_in(model.graph):
        casts = {
            node.output[0]: (node, next(each.i for each in node.attribute if each.name == "to"))
            for node in graph.node
            if node.op_type == "Cast" and node.name not in old_names
        }
        for node, kind in casts.values():
            source, kind_there = casts.get(node.input[0], (None, None))
            if source is not None and (kind_there, kind) == (TensorProto.FLOAT16, TensorProto.FLOAT):
                node.op_type = "Identity"
                del node.attribute[:]
                node.input[0] = source.input[0]
        read = {name for each in graphs_in(graph) for node in each.node for name in node.input}
        read |= {value.name for each in graphs_in(graph) for value in each.output}
        for source, _ in casts.values():
            if source.op_type == "Cast" and source.output[0] not in read:
                graph.node.remove(source)


def _note_half_inputs(model: onnx.ModelProto) -> None:
    """Write down which inputs become float16 as they are: what is larger than that can hold would become infinite."""
    from onnx import TensorProto, helper

    read = {name for graph in graphs_in(model.graph) for node in graph.node for name in node.input}
    read |= {value.name for value in model.graph.output}
    floats = {value.name for value in model.graph.input if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    halves = {
        node.input[0]
        for node in model.graph.node
        if node.op_type == "Cast"
        and node.output[0] in read
        and any(each.name == "to" and each.i == TensorProto.FLOAT16 for each in node.attribute)
    }
    helper.set_model_props(model, {HALF_INPUTS: json.dumps(sorted(floats & halves))})


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
    if taken := [value.name for value in inputs if value.name.endswith(RAW_SUFFIX)]:
        raise ConfigError(f"with mean or std, no input may be called {taken[0]!r}: {RAW_SUFFIX!r} is added to names")
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
