"""ONNX models of a few nodes, as the tests of what runs them write them down; needs the package onnx."""

from __future__ import annotations

from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def make_model(nodes, inputs, outputs, constants=None):
    """Return the bytes of a model; inputs and outputs are name -> shape, or name -> (type, shape)."""

    def values(table):
        typed = {name: entry if isinstance(entry, tuple) else (FLOAT, entry) for name, entry in table.items()}
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in typed.items()]

    initializers = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "graph", values(inputs), values(outputs), initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
