"""What an ONNX file says about batches: the names of its axes, and which outputs its batch axis is carried to."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..axes import Axes
from ..row_proof import COARSE, FINE, Output

if TYPE_CHECKING:
    import onnx

__all__ = ["Graph", "declared_axes", "known_outputs", "read_graph", "read_once"]

# Two sizes of a batch that no other axis has; what follows both is the batch.
_BATCH_SIZES = (7919, 6007)
_REMEMBERED = 256  # models
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
    outputs: list[Output]  # in the model's order; ``is_carried``: to the first axis
    carried: Mapping[str, int]  # outputs to which the batch axis is carried -> on which axis it is there
    is_proof: bool  # the inputs call the axis the same; otherwise ``carried`` is only likely
    tolerance: float  # of the precision in which it computes: ``FINE`` or ``COARSE``


def read_graph(model: Path | bytes, axes: Mapping[str, int | None] | None = None) -> Graph | None:
    """Return what a model says, or None if nothing can be read, as without the package onnx.

    Args:
        model: an ONNX file, or the content of one; weights beside the file are not read.
        axes: on which axis its inputs have the batch, by their names; None: they share it. Without it, the first.
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
        batched = {
            name: axis
            for name, axis in (dict.fromkeys(inputs, 0) if axes is None else axes).items()
            if axis is not None and inputs.get(name)
        }
        carried = _carried(loaded, batched)
        is_proof = _is_one_axis([inputs[name][axis] for name, axis in batched.items()])
    except Exception:  # whatever protobuf makes of a file that only the runtime can read
        return None
    names = [value.name for value in loaded.graph.output]
    outputs = [
        Output(name, is_proof and carried.get(name) == 0, counted.get(name, ""), scaled.get(name, "")) for name in names
    ]
    return Graph(inputs, outputs, carried, is_proof, tolerance)


def known_outputs(graph: Graph | None, axes: Axes, names: Sequence[str]) -> list[Output]:
    """Return what is known of a model's outputs before anything is run, for the proof of their rows.

    Args:
        graph: as it was read with the axes of the inputs; None: nothing is known.
        axes: where the requests are.
        names: of the outputs that are handed on, in their order.
    """
    known = {} if graph is None else {str(output.name): output for output in graph.outputs}
    outputs = []
    for name in names:
        output = known.get(name, Output(name))
        is_followed = graph is not None and graph.is_proof and axes.has_rows(name)
        is_carried = graph is not None and is_followed and graph.carried.get(name) == axes.outputs.get(name, 0)
        # Of rows that are given back by their numbers there may be any number.
        counted_by = "" if name in axes.columns else output.counted_by
        outputs.append(output._replace(is_carried=is_carried, counted_by=counted_by))
    return outputs


_read: dict[Hashable, Graph | None] = {}


def read_once(key: Hashable, model: Path | bytes, axes: Mapping[str, int | None]) -> Graph | None:
    """Return what ``read_graph`` does, remembered for the instances of a node, which have equal keys."""
    key = key, tuple(axes.items())
    if key not in _read:
        if len(_read) >= _REMEMBERED:
            _read.clear()
        _read[key] = read_graph(model, axes)
    return _read[key]


def declared_axes(model: Path | bytes) -> dict[str, tuple[int | str, ...]]:
    """Return the axes of inputs and outputs as a file has them, by name; nothing if it cannot be read."""
    try:
        loaded = _load(model)
        return {value.name: _axes(value) for value in (*loaded.graph.input, *loaded.graph.output)}
    except Exception:  # of the import, or whatever protobuf makes of the file
        return {}


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


def _is_one_axis(batches: Sequence[int | str]) -> bool:
    """Say whether the batch axes of all inputs have one name, or size: otherwise they may be different ones."""
    return len(set(batches)) == 1 and (len(batches) == 1 or batches[0] != "?")


def _carried(model: onnx.ModelProto, batched: Mapping[str, int]) -> dict[str, int]:
    """Return the outputs that have the inputs' batch axis, as shape inference follows it -> on which axis they have it.

    What the file declares of other values than the inputs counts for nothing: a name is no proof. The model is changed.

    Args:
        model: with those inputs.
        batched: inputs -> on which axis they have the batch.
    """
    graph = model.graph
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    _forget_weights(graph)
    first, second = [_sizes(model, batched, size) for size in _BATCH_SIZES]
    carried = {}
    for name, sizes in first.items():
        found = [axis for axis, pair in enumerate(zip(sizes, second[name], strict=False)) if pair == _BATCH_SIZES]
        if found and (found[0] == 0 or len(found) == 1):
            carried[name] = found[0]
    return carried


def _sizes(model: onnx.ModelProto, batched: Mapping[str, int], size: int) -> dict[str, list[int]]:
    """Return the sizes of each output's axes, 0 where one is not known, if the batch has that size."""
    import onnx

    for value in model.graph.input:
        if value.name in batched:
            axis = value.type.tensor_type.shape.dim[batched[value.name]]
            axis.Clear()
            axis.dim_value = size
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in inferred.graph.output
    }


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
