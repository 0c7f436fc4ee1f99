"""Models whose requests have lengths: what of their answers depends on padding, and what does not; needs onnx.

And what tests ask of them, which needs ONNX Runtime, too.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from onnx_models import make_model

INT64 = TensorProto.INT64
WORDS, NUMBERS = 40, 8


def embedder(*, is_masked=True, symbol="seq", output_symbol=None, mask_name="attention_mask"):
    """Return a model of attention over tokens: ids, and a mask if it has one, to tokens (n, seq, 8) and mean (n, 8).

    Without a mask, padding is attended to, and is part of the mean.
    """
    chance = np.random.default_rng(7)
    constants = {
        "words": chance.standard_normal((WORDS, NUMBERS)).astype(np.float32),
        "key": chance.standard_normal((NUMBERS, NUMBERS)).astype(np.float32),
        "value": chance.standard_normal((NUMBERS, NUMBERS)).astype(np.float32),
        "one": np.float32(1),
        "far": np.float32(-1e4),
        "at_1": np.array([1]),
        "at_2": np.array([2]),
    }
    node = helper.make_node
    nodes = [
        node("Gather", ["words", "input_ids"], ["x"]),
        node("MatMul", ["x", "key"], ["keys"]),
        node("Transpose", ["keys"], ["across"], perm=[0, 2, 1]),
        node("MatMul", ["x", "across"], ["scores"]),
        node("MatMul", ["x", "value"], ["values"]),
        node("Softmax", ["masked"], ["attention"], axis=-1),
        node("MatMul", ["attention", "values"], ["context"]),
        node("Add", ["x", "context"], ["tokens"]),
    ]
    inputs = {"input_ids": (INT64, ["n", symbol])}
    if is_masked:
        inputs[mask_name] = (INT64, ["n", symbol])
        nodes[5:5] = [
            node("Cast", [mask_name], ["counts"], to=TensorProto.FLOAT),
            node("Sub", ["one", "counts"], ["ignored"]),
            node("Mul", ["ignored", "far"], ["distant"]),
            node("Unsqueeze", ["distant", "at_1"], ["bias"]),
            node("Add", ["scores", "bias"], ["masked"]),
        ]
        nodes += [
            node("Unsqueeze", ["counts", "at_2"], ["weights"]),
            node("Mul", ["tokens", "weights"], ["weighted"]),
            node("ReduceSum", ["weighted", "at_1"], ["sum"], keepdims=0),
            node("ReduceSum", ["counts", "at_1"], ["count"], keepdims=1),
            node("Div", ["sum", "count"], ["mean"]),
        ]
    else:
        nodes.insert(5, node("Identity", ["scores"], ["masked"]))
        nodes.append(node("ReduceMean", ["tokens"], ["mean"], axes=[1], keepdims=0))
    axis = symbol if output_symbol is None else output_symbol
    return make_model(nodes, inputs, {"tokens": ["n", axis, NUMBERS], "mean": ["n", NUMBERS]}, constants)


def elementwise():
    """Return a model of floats (n, t, 3) that treats each step alone: the same and doubled, transposed (n, 3, t)."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["doubled"]),
        helper.make_node("Transpose", ["doubled"], ["turned"], perm=[0, 2, 1]),
    ]
    return make_model(nodes, {"x": ["n", "t", 3]}, {"doubled": ["n", "t", 3], "turned": ["n", 3, "t"]})


def time_major(batch="batch"):
    """Return a model of floats (t, batch, 3): doubled in the same shape, and turned, (3, t, batch)."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["doubled"]),
        helper.make_node("Transpose", ["doubled"], ["turned"], perm=[2, 0, 1]),
    ]
    return make_model(nodes, {"x": ["t", batch, 3]}, {"doubled": ["t", batch, 3], "turned": [3, "t", batch]})


def convolution(bias):
    """Return a convolution of width 3 over time behind a bias, (n, 1, t) to (n, 1, t): at its edge padding may leak."""
    nodes = [
        helper.make_node("Add", ["x", "bias"], ["moved"]),
        helper.make_node("Conv", ["moved", "weights"], ["y"], kernel_shape=[3], pads=[1, 1]),
    ]
    constants = {"bias": np.float32(bias), "weights": np.ones((1, 1, 3), np.float32)}
    return make_model(nodes, {"x": ["n", 1, "t"]}, {"y": ["n", 1, "t"]}, constants)


def with_length():
    """Return a sum over the first steps, of x (n, t) and their number `lengths` (n,): (n,)."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["size"]),
        helper.make_node("Range", ["zero", "size", "one"], ["steps"]),
        helper.make_node("Unsqueeze", ["lengths", "at_1"], ["ends"]),
        helper.make_node("Less", ["steps", "ends"], ["counts"]),
        helper.make_node("Cast", ["counts"], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "at_1"], ["sum"], keepdims=0),
    ]
    constants = {"zero": np.int64(0), "one": np.int64(1), "at_1": np.array([1])}
    return make_model(nodes, {"x": ["n", "t"], "lengths": (INT64, ["n"])}, {"sum": ["n"]}, constants)


def pooled(width, stride):
    """Return a maximum of some steps (n, 1, t), which moves by a stride: (n, 1, (t - width) // stride + 1)."""
    nodes = [helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[width], strides=[stride])]
    return make_model(nodes, {"x": ["n", 1, "t"]}, {"y": ["n", 1, "steps"]})


def repeated(times):
    """Return every step (n, 1, t) so often: (n, 1, times * t)."""
    nodes = [
        helper.make_node(
            "Resize",
            ["x", "", "scales"],
            ["y"],
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        )
    ]
    constants = {"scales": np.array([1, 1, times], np.float32)}
    return make_model(nodes, {"x": ["n", 1, "t"]}, {"y": ["n", 1, "steps"]}, constants)


def outer():
    """Return the products of all pairs of steps (n, t), in a row: (n, t * t), which is no rule of strides."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "at_1"], ["rows"]),
        helper.make_node("Unsqueeze", ["x", "at_2"], ["columns"]),
        helper.make_node("Mul", ["rows", "columns"], ["pairs"]),
        helper.make_node("Flatten", ["pairs"], ["y"]),
    ]
    constants = {"at_1": np.array([1]), "at_2": np.array([2])}
    return make_model(nodes, {"x": ["n", "t"]}, {"y": ["n", "pairs"]}, constants)


def fixed():
    """Return `embedder` with the one length 16."""
    return embedder(symbol=16)


def translator(mask="attention_mask", lengths=("source_length", "target_length")):
    """Return a model of two lengths: words of a source (n, source) with a mask, and of a target (n, target).

    Each word of the target attends to the source: (n, target, 8). A second output has the mean of the source, (n, 8).
    """
    chance = np.random.default_rng(5)
    node = helper.make_node
    nodes = [
        node("Gather", ["words", "input_ids"], ["source"]),
        node("Gather", ["words", "decoder_input_ids"], ["target"]),
        node("Transpose", ["source"], ["across"], perm=[0, 2, 1]),
        node("MatMul", ["target", "across"], ["scores"]),
        node("Cast", [mask], ["counts"], to=TensorProto.FLOAT),
        node("Sub", ["one", "counts"], ["ignored"]),
        node("Mul", ["ignored", "far"], ["distant"]),
        node("Unsqueeze", ["distant", "at_1"], ["bias"]),
        node("Add", ["scores", "bias"], ["masked"]),
        node("Softmax", ["masked"], ["attention"], axis=-1),
        node("MatMul", ["attention", "source"], ["context"]),
        node("Add", ["target", "context"], ["tokens"]),
        node("Unsqueeze", ["counts", "at_2"], ["weights"]),
        node("Mul", ["source", "weights"], ["weighted"]),
        node("ReduceSum", ["weighted", "at_1"], ["mean"], keepdims=0),
    ]
    inputs = {
        "input_ids": (INT64, ["n", lengths[0]]),
        mask: (INT64, ["n", lengths[0]]),
        "decoder_input_ids": (INT64, ["n", lengths[1]]),
    }
    constants = {
        "words": chance.standard_normal((WORDS, NUMBERS)).astype(np.float32),
        "one": np.float32(1),
        "far": np.float32(-1e4),
        "at_1": np.array([1]),
        "at_2": np.array([2]),
    }
    return make_model(nodes, inputs, {"tokens": ["n", lengths[1], NUMBERS], "mean": ["n", NUMBERS]}, constants)


def pictures(*, has_mask=True):
    """Return a model of pictures (n, 1, height, width), and a mask of them, (n, height, width), if it has one.

    It gives each pixel, doubled; the largest of each 2 x 2, (n, 1, height / 2, width / 2); and with a mask the sum of
    the pixels that count, plus 1 for each, (n, 1).
    """
    node = helper.make_node
    nodes = [
        node("Add", ["pixels", "pixels"], ["doubled"]),
        node("MaxPool", ["pixels"], ["halved"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    inputs = {"pixels": ["n", 1, "height", "width"]}
    outputs = {"doubled": ["n", 1, "height", "width"], "halved": ["n", 1, "rows", "columns"]}
    if has_mask:
        nodes += [
            node("Cast", ["pixel_mask"], ["counts"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["counts", "at_1"], ["weights"]),
            node("Add", ["pixels", "one"], ["brighter"]),
            node("Mul", ["brighter", "weights"], ["weighted"]),
            node("ReduceSum", ["weighted", "last"], ["sum"], keepdims=0),
        ]
        inputs["pixel_mask"] = (INT64, ["n", "height", "width"])
        outputs["sum"] = ["n", 1]
    constants = {"at_1": np.array([1]), "one": np.float32(1), "last": np.array([2, 3])} if has_mask else {}
    return make_model(nodes, inputs, outputs, constants)


# ---- requests --------------------------------------------------------------------------------------------------------


def ids_of(*lengths, seed=0):
    """Return token ids of so many tokens each."""
    chance = np.random.default_rng(seed)
    return [chance.integers(0, WORDS, length) for length in lengths]


def alone(model, *inputs):
    """Return what ONNX Runtime gives for one request, as it is."""
    session = onnxruntime.InferenceSession(model)
    names = [value.name for value in session.get_inputs()]
    return list(session.run(None, {name: array[None] for name, array in zip(names, inputs, strict=True)}))


def embedded(ids):
    return alone(embedder(), ids, np.ones(len(ids), np.int64))


def results(backend, *data, **keys):
    """Run the data as one batch, and return the results."""
    batch = [{"data": item, **keys} for item in data]
    backend.forward(batch)
    return [request["result"] for request in batch]


def assert_equal(found, expected):
    """Two lists of arrays, of one shape and nearly the same numbers."""
    assert [array.shape for array in found] == [array.shape for array in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(one), other, rtol=1e-4, atol=1e-5)
