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
    ]
    more = {  # nodes, in no model that does not need them
        "obb": [helper.make_node("Add", ["nothing", "angle"], ["angles"])],
        "pose": [helper.make_node("Slice", ["placed", "first", "third", "rows"], ["points"])],
        "seg": [
            helper.make_node("AveragePool", ["image"], ["small"], kernel_shape=[4, 4], strides=[4, 4]),
            helper.make_node("Sub", ["small", "dark"], ["prototypes"]),
        ],
    }
    nodes += more.get(kind, [])
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


def speech_model(batch="batch", state_batch="batch", *, declares=True):
    """Return what a detector of speech is like: audio [batch, 6], state [2, batch, 3], a scalar rate.

    It gives a score for each row, [batch, 3], and a new state.
    """
    nodes = [
        helper.make_node("MatMul", ["audio", "weights"], ["heard"]),  # (batch, 3)
        helper.make_node("Cast", ["rate"], ["rate_float"], to=FLOAT),
        helper.make_node("Div", ["heard", "rate_float"], ["scaled"]),
        helper.make_node("Add", ["state", "scaled"], ["added"]),  # (2, batch, 3)
        helper.make_node("Tanh", ["added"], ["new_state"]),
        helper.make_node("ReduceSum", ["new_state", "axes"], ["score"], keepdims=0),
    ]
    weights = np.random.default_rng(3).standard_normal((6, 3)).astype(np.float32)
    inputs = {"audio": [batch, 6], "state": [2, state_batch, 3], "rate": (TensorProto.INT64, [])}
    outputs = {"score": [batch, 3] if declares else None, "new_state": [2, state_batch, 3] if declares else None}
    return make_model(nodes, inputs, outputs, {"weights": weights, "axes": np.array([0])})


def places_model():
    """Return a detector for pictures (4, 4): "boxes", (picture, row, column) of each place above a half, and "mean"."""
    nodes = [
        helper.make_node("Greater", ["x", "half"], ["above"]),
        helper.make_node("NonZero", ["above"], ["places"]),
        helper.make_node("Transpose", ["places"], ["boxes"], perm=[1, 0]),
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2], keepdims=0),
    ]
    outputs = {"boxes": (TensorProto.INT64, ["boxes", 3]), "mean": ["n"]}
    return make_model(nodes, {"x": ["n", 4, 4]}, outputs, {"half": np.float32(0.5)})
