"""What an ONNX file says about batches: the names of its axes, and which outputs its batch axis is carried to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .row_proof import COARSE, FINE, Output

if TYPE_CHECKING:
    import onnx

__all__ = ["Graph", "read_graph"]

# Two sizes of a batch that no other axis has; what follows both is the batch.
_BATCH_SIZES = (7919, 6007)
# Constants with more numbers than that are weights: shape inference needs their shapes alone.
_LARGEST_SHAPE = 1024

_COUNTING = {"Compress", "NonMaxSuppression", "NonZero", "Unique"}
# Operators that round numbers by a scale which they find in the whole of an input.
_SCALING = {"DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul"}
"""Operators whose output has as many elements as the data have it."""

_SHAPES = {"Shape", "Size"}
"""Operators whose output does not depend on the data, but on its shape."""


class Graph(NamedTuple):
    """What was read."""

    inputs: Mapping[str, tuple[int | str, ...]]  # of each, its axes: a size, a name, or "?"
    outputs: list[Output]
    tolerance: float  # of the precision in which it computes: ``FINE`` or ``COARSE``


def read_graph(model: Path | bytes) -> Graph | None:
    """Return what a model says, or None if nothing can be read, as without the package onnx.

    Args:
        model: an ONNX file, or the content of one; weights beside the file are not read.
    """
    try:
        import onnx  # noqa: F401
    except ImportError:
        return None
    try:
        loaded = _load(model)
        weights = {tensor.name for tensor in loaded.graph.initializer}
        inputs = {value.name: _axes(value) for value in loaded.graph.input if value.name not in weights}
        tolerance = _tolerance(loaded)
        counted, scaled = _caused_by(_COUNTING, loaded), _caused_by(_SCALING, loaded)
        carried = _carried(loaded, inputs)
    except Exception:  # whatever protobuf makes of a file that only the runtime can read
        return None
    names = [value.name for value in loaded.graph.output]
    outputs = [Output(name, name in carried, counted.get(name, ""), scaled.get(name, "")) for name in names]
    return Graph(inputs, outputs, tolerance)


def _load(model: Path | bytes) -> onnx.ModelProto:
    import onnx

    return onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model, load_external_data=False)


def _axes(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    axes = value.type.tensor_type.shape.dim
    return tuple(axis.dim_value if axis.dim_value > 0 else axis.dim_param or "?" for axis in axes)


def _tolerance(model: onnx.ModelProto) -> float:
    from onnx import TensorProto

    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    return COARSE if any(tensor.data_type in halves for tensor in model.graph.initializer) else FINE


def _carried(model: onnx.ModelProto, inputs: Mapping[str, tuple[int | str, ...]]) -> set[str]:
    """Return the outputs whose first axis is the one that all inputs have in front, as shape inference follows it.

    Nothing is followed where the inputs' first axes have different names, or sizes. What the file declares of other
    values than the inputs counts for nothing: a name is no proof. The model is changed.
    """
    firsts = {axes[:1] for axes in inputs.values()}
    if len(firsts) != 1 or not next(iter(firsts)) or (len(inputs) > 1 and firsts == {("?",)}):
        return set()
    graph = model.graph
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    _forget_weights(graph)
    first, second = [_first_sizes(model, inputs, size) for size in _BATCH_SIZES]
    return {name for name in first if (first[name], second[name]) == _BATCH_SIZES}


def _first_sizes(model: onnx.ModelProto, inputs: Mapping[str, Any], size: int) -> dict[str, int]:
    """Return the size of each output's first axis, 0 if it is not known, if the batch has that size."""
    import onnx

    for value in model.graph.input:
        if value.name in inputs:
            axis = value.type.tensor_type.shape.dim[0]
            axis.Clear()
            axis.dim_value = size
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    axes = {value.name: value.type.tensor_type.shape.dim for value in inferred.graph.output}
    return {name: dimensions[0].dim_value if dimensions else 0 for name, dimensions in axes.items()}


def _forget_weights(graph: onnx.GraphProto) -> None:
    """Make inputs of the weights, which are copied several times over otherwise."""
    from onnx import helper

    given = {value.name for value in graph.input}
    for index in reversed(range(len(graph.initializer))):
        tensor = graph.initializer[index]
        if math.prod(tensor.dims) > _LARGEST_SHAPE:
            if tensor.name not in given:
                graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
            del graph.initializer[index]


def _caused_by(kinds: set[str], model: onnx.ModelProto) -> dict[str, str]:
    """Return values that depend on the data through operators of these kinds -> the operator."""
    functions = {function.name: function for function in model.functions}
    weights = {tensor.name for tensor in model.graph.initializer}
    of_data = {value.name for value in model.graph.input} - weights
    caused: dict[str, str] = {}
    for node in model.graph.node:
        reads = {name for inner in _nested(node, functions) for name in inner.input}
        if node.op_type in _SHAPES or not reads & of_data:
            continue
        of_data.update(node.output)
        operators = [f"the operator {inner.op_type}" for inner in _nested(node, functions) if inner.op_type in kinds]
        causes = operators or [caused[name] for name in sorted(reads) if name in caused]
        if causes:
            caused.update(dict.fromkeys(node.output, causes[0]))
    return caused


def _nested(node: onnx.NodeProto, functions: Mapping[str, onnx.FunctionProto]) -> Iterator[onnx.NodeProto]:
    """Yield a node, and all those in the graphs and the function that it is made of."""
    yield node
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _nested(inner, functions)
    if node.op_type in functions:
        for inner in functions[node.op_type].node:
            yield from _nested(inner, functions)
