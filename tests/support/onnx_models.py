"""ONNX models of a few nodes, as the tests of what runs them write them down; needs the package onnx."""

from __future__ import annotations

import numpy as np
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


def detector_model(side=64, kind=""):
    """Return a detector with a head as YOLOv8's, for images (3, side, side) from 0 to 1: (batch, 4 + 3, 16).

    Each of 4 x 4 cells is a box; its class scores are its mean red, green and blue. The kind "seg" has its scores again
    as factors of prototypes, (batch, 3, side / 4, side / 4): red, green and blue, less 0.3. "obb" turns each box by a
    quarter, and "pose" has its centre as a key point, visible as it is bright.
    """
    cell = side // 4
    places = [(column, row) for row in range(4) for column in range(4)]
    centres = np.array(places, np.float32).T * cell + cell / 2
    nodes = [
        helper.make_node("AveragePool", ["image"], ["cells"], kernel_shape=[cell, cell], strides=[cell, cell]),
        helper.make_node("Reshape", ["cells", "shape"], ["scores"]),
        helper.make_node("ReduceMax", ["scores"], ["highest"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["highest", "zero"], ["nothing"]),  # a row for each image, of which the boxes are made
        helper.make_node("Add", ["nothing", "boxes"], ["placed"]),
        helper.make_node("Add", ["nothing", "angle"], ["angles"]),
        helper.make_node("Slice", ["placed", "first", "third", "rows"], ["points"]),
        helper.make_node("AveragePool", ["image"], ["small"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Sub", ["small", "dark"], ["prototypes"]),
    ]
    parts = {"seg": ["scores"], "obb": ["angles"], "pose": ["points", "highest"]}.get(kind, [])
    numbers = {"seg": 3, "obb": 1, "pose": 3}.get(kind, 0)
    nodes.append(helper.make_node("Concat", ["placed", "scores", *parts], ["detections"], axis=1))
    constants = {
        "shape": np.array([0, 3, 16]),
        "zero": np.zeros(1, np.float32),
        "boxes": np.concatenate([centres, np.full((2, 16), cell, np.float32)])[None],
        "angle": np.full((1, 1, 16), np.pi / 2, np.float32),
        "dark": np.full(1, 0.3, np.float32),
        "first": np.array([0]),
        "third": np.array([2]),
        "rows": np.array([1]),
    }
    outputs = {"detections": ["n", 7 + numbers, 16]}
    if kind == "seg":
        outputs["prototypes"] = ["n", 3, side // 4, side // 4]
    return make_model(nodes, {"image": ["n", 3, side, side]}, outputs, constants)


def color_model():
    """Return a classifier for images (3, 8, 8): three logits, their means of red, green and blue."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["means"]),
        helper.make_node("Flatten", ["means"], ["logits"]),
    ]
    return make_model(nodes, {"image": ["n", 3, 8, 8]}, {"logits": ["n", 3]})
