"""``OnnxTensor`` with ``fuse``: which operators become one, that numbers stay, and what is left alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="a changed graph needs the package onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx_models import make_model  # noqa: E402

from fastpipe.backends.model.onnx import OnnxTensor  # noqa: E402
from fastpipe.backends.model.onnx_runtime.graph import prepare  # noqa: E402
from fastpipe.errors import ConfigError  # noqa: E402

node = helper.make_node
RNG = np.random.default_rng(0)
IMAGE = ["n", 4, "h", "w"]


def floats(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


CONSTANTS = {
    "weights": floats(6, 4, 3, 3),
    "point": floats(6, 4, 1, 1),
    "depth": floats(4, 1, 3, 3),
    "bias": floats(6),
    "six_more": floats(6, 6, 1, 1),
    "s": np.float32([1.5]),
    "b": np.float32(-0.75),
    "zero": np.float32(0),
    "huge": np.float32(3e38),
    "each": floats(1, 6, 1, 1),
    "three": np.float32(3),
    "six": np.float32(6),
    "sixth": np.float32(1 / 6),
    "five": np.float32(5),
}


def model(nodes: list[Any], outputs: tuple[str, ...] = ("y",), constants: dict[str, Any] | None = None) -> bytes:
    """Return a model from ``x`` to ``y``, with those of the constants that its nodes read."""
    read = {name for each in nodes for name in each.input}
    chosen = {name: array for name, array in (CONSTANTS | (constants or {})).items() if name in read}
    return make_model(nodes, {"x": IMAGE}, {name: ["n", "c", "oh", "ow"] for name in outputs}, chosen)


def fused(content: bytes) -> bytes:
    changed = prepare(content, half=False, mean=None, std=None, fuses=True)
    onnx.checker.check_model(onnx.load_from_string(changed), full_check=True)
    return changed


def kinds(content: bytes) -> dict[str, int]:
    return dict(
        Counter(each.op_type for each in onnx.load_from_string(content).graph.node if each.op_type != "Constant")
    )


def answers(content: bytes) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    image = 4 * np.random.default_rng(1).standard_normal((2, 4, 7, 9)).astype(np.float32)  # both ends of a clip, too
    return list(session.run(None, {"x": image}))


def hard_swish(source: str, target: str, *, last: str = "Div", swapped: bool = False) -> list[Any]:
    product = ["clipped", source] if swapped else [source, "clipped"]
    return [
        node("Add", ["three", source] if swapped else [source, "three"], ["shifted"]),
        node("Clip", ["shifted", "zero", "six"], ["clipped"]),
        node("Mul", product, ["product"]),
        node(last, ["product", "six" if last == "Div" else "sixth"], [target]),
    ]


PADDED = {"pads": [1, 1, 1, 1]}
FUSED = {
    "scalars behind a convolution": (
        [
            node("Conv", ["x", "weights", "bias"], ["c"], **PADDED),
            node("Mul", ["c", "s"], ["m"]),
            node("Add", ["b", "m"], ["y"]),
        ],
        {"Conv": 1},
    ),
    "behind one without a bias": (
        [node("Conv", ["x", "weights"], ["c"]), node("Add", ["c", "b"], ["a"]), node("Mul", ["a", "s"], ["y"])],
        {"Conv": 1},
    ),
    "a hard swish": (hard_swish("x", "y"), {"HardSigmoid": 1, "Mul": 1}),
    "a hard swish with a factor": (hard_swish("x", "y", last="Mul", swapped=True), {"HardSigmoid": 1, "Mul": 1}),
    "a hard sigmoid": (
        [
            node("Add", ["x", "three"], ["a"]),
            node("Clip", ["a", "zero", "six"], ["c"]),
            node("Div", ["c", "six"], ["y"]),
        ],
        {"HardSigmoid": 1},
    ),
    "scalars in front of a convolution that does not pad": (
        [
            node("Mul", ["x", "s"], ["m"]),
            node("Add", ["m", "b"], ["a"]),
            node("Conv", ["a", "weights", "bias"], ["y"]),
        ],
        {"Conv": 1},
    ),
    "in front of one that pads": (
        [
            node("Mul", ["x", "s"], ["m"]),
            node("Add", ["m", "b"], ["a"]),
            node("Conv", ["a", "weights"], ["y"], **PADDED),
        ],
        {"Add": 1, "Conv": 1},
    ),
    "in front of one that pads by itself": (
        [
            node("Mul", ["s", "x"], ["m"]),
            node("Add", ["b", "m"], ["a"]),
            node("Conv", ["a", "depth"], ["y"], group=4, auto_pad="SAME_UPPER"),
        ],
        {"Add": 1, "Conv": 1},
    ),
    "a factor in front of one that pads": (
        [node("Mul", ["x", "s"], ["m"]), node("Conv", ["m", "depth"], ["y"], group=4, **PADDED)],
        {"Conv": 1},
    ),
    "in front of two": (
        [
            node("Mul", ["x", "s"], ["m"]),
            node("Add", ["m", "b"], ["a"]),
            node("Conv", ["a", "point"], ["one"]),
            node("Conv", ["a", "weights", "bias"], ["two"], **PADDED),
            node("Add", ["one", "two"], ["y"]),
        ],
        {"Add": 2, "Conv": 2},
    ),
    "a block of PP-LCNet": (
        [
            node("Conv", ["x", "weights"], ["c"], **PADDED),
            node("Mul", ["c", "s"], ["m"]),
            node("Add", ["m", "b"], ["a"]),
            *hard_swish("a", "h"),
            node("Mul", ["h", "s"], ["hm"]),
            node("Add", ["hm", "b"], ["ha"]),
            node("Conv", ["ha", "six_more"], ["y"]),
        ],
        {"Conv": 2, "HardSigmoid": 1, "Mul": 1},
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_what_becomes_one_gives_the_same_numbers(name: str) -> None:
    """All but rounding; also where the constants are nodes, as Paddle writes them."""
    nodes, expected = FUSED[name]
    content = model(nodes)
    changed = fused(content)
    assert kinds(changed) == expected
    expected_numbers = answers(content)[0]
    np.testing.assert_allclose(answers(changed)[0], expected_numbers, atol=2e-6 * np.abs(expected_numbers).max())
    loaded = onnx.load_from_string(content)
    for initializer in list(loaded.graph.initializer):
        loaded.graph.node.insert(0, node("Constant", [], [initializer.name], value=initializer))
    del loaded.graph.initializer[:]
    assert answers(fused(loaded.SerializeToString()))[0].tobytes() == answers(changed)[0].tobytes()


LEFT = {
    "a value that is an output": (
        [node("Conv", ["x", "weights"], ["c"]), node("Mul", ["c", "s"], ["y"])],
        ("y", "c"),
    ),
    "a value that two read": (
        [node("Conv", ["x", "weights"], ["c"]), node("Mul", ["c", "s"], ["m"]), node("Add", ["c", "m"], ["y"])],
        ("y",),
    ),
    "numbers that are none any more": (
        [node("Conv", ["x", "weights"], ["c"]), node("Mul", ["c", "huge"], ["y"])],
        ("y",),
    ),
    "one number for each channel": (
        [node("Conv", ["x", "weights"], ["c"]), node("Mul", ["c", "each"], ["y"])],
        ("y",),
    ),
    "an offset alone in front": ([node("Add", ["x", "b"], ["a"]), node("Conv", ["a", "point"], ["y"])], ("y",)),
    "a factor of zero in front": (
        [node("Mul", ["x", "zero"], ["m"]), node("Conv", ["m", "point"], ["y"])],
        ("y",),
    ),
    "something else that reads it, too": (
        [
            node("Mul", ["x", "s"], ["m"]),
            node("Conv", ["m", "point"], ["c"]),
            node("Relu", ["m"], ["r"]),
            node("Conv", ["r", "point"], ["d"]),
            node("Add", ["c", "d"], ["y"]),
        ],
        ("y",),
    ),
    "another clip": (
        [
            node("Add", ["x", "three"], ["a"]),
            node("Clip", ["a", "zero", "five"], ["c"]),
            node("Mul", ["x", "c"], ["p"]),
            node("Div", ["p", "six"], ["y"]),
        ],
        ("y",),
    ),
    "another divisor": (
        [
            node("Add", ["x", "three"], ["a"]),
            node("Clip", ["a", "zero", "six"], ["c"]),
            node("Div", ["c", "five"], ["y"]),
        ],
        ("y",),
    ),
    "a quotient the other way round": (
        [
            node("Add", ["x", "three"], ["a"]),
            node("Clip", ["a", "zero", "six"], ["c"]),
            node("Mul", ["x", "c"], ["p"]),
            node("Div", ["six", "p"], ["y"]),
        ],
        ("y",),
    ),
    "a clip that is an output": (hard_swish("x", "y"), ("y", "clipped")),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_would_not_be_the_same_is_left_alone(name: str) -> None:
    nodes, outputs = LEFT[name]
    content = model(nodes, outputs)
    changed = fused(content)
    assert kinds(changed) == kinds(content)
    for one, other in zip(answers(changed), answers(content), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_constant_that_a_run_may_replace_is_left_alone() -> None:
    """An initializer that is also an input is only a default."""
    loaded = onnx.load_from_string(model([node("Conv", ["x", "weights"], ["c"]), node("Mul", ["c", "s"], ["y"])]))
    loaded.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [1]))
    assert kinds(fused(loaded.SerializeToString())) == {"Conv": 1, "Mul": 1}


def test_a_value_that_a_branch_reads_is_left_alone() -> None:
    """What stands in a body is not changed, and what it reads stays."""
    shape = helper.make_tensor_value_info("then", TensorProto.FLOAT, None)
    body = helper.make_graph([node("Identity", ["c"], ["then"])], "body", [], [shape])
    other = helper.make_tensor_value_info("else", TensorProto.FLOAT, None)
    orelse = helper.make_graph([node("Identity", ["m"], ["else"])], "orelse", [], [other])
    nodes = [
        node("Conv", ["x", "weights"], ["c"]),
        node("Mul", ["c", "s"], ["m"]),
        node("If", ["yes"], ["y"], then_branch=body, else_branch=orelse),
    ]
    content = model(nodes, constants={"yes": np.array(True)})
    changed = fused(content)
    assert kinds(changed) == {"Conv": 1, "Mul": 1, "If": 1}
    np.testing.assert_array_equal(answers(changed)[0], answers(content)[0])


@pytest.mark.parametrize("kind", [np.float64, np.float16])
def test_other_types_than_float32_are_left_alone(kind: type[Any]) -> None:
    numbers = {"weights": floats(6, 4, 1, 1).astype(kind), "s": np.array([2], kind)}
    tensor_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [node("Conv", ["x", "weights"], ["c"]), node("Mul", ["c", "s"], ["y"])]
    content = make_model(nodes, {"x": (tensor_type, IMAGE)}, {"y": (tensor_type, ["n", 6, "h", "w"])}, numbers)
    assert kinds(fused(content)) == {"Conv": 1, "Mul": 1}


def test_a_number_without_axes_keeps_its_shape() -> None:
    """A constant in a list of one gives it an axis, as long as it is added, and none once it is an attribute."""
    nodes = [
        node("ReduceMax", ["x"], ["z"], keepdims=0),
        node("Add", ["z", "three_in_a_list"], ["a"]),
        node("Clip", ["a", "zero", "six"], ["c"]),
        node("Mul", ["c", "z"], ["m"]),
        node("Div", ["m", "six"], ["y"]),
    ]
    content = make_model(nodes, {"x": IMAGE}, {"y": [1]}, {**_of("zero", "six"), "three_in_a_list": np.float32([3])})
    assert kinds(fused(content)) == kinds(content)
    alone = make_model(
        [*nodes[:1], node("Add", ["z", "three"], ["a"]), *nodes[2:]],
        {"x": IMAGE},
        {"y": []},
        _of("zero", "six", "three"),
    )
    assert kinds(fused(alone)) == {"ReduceMax": 1, "HardSigmoid": 1, "Mul": 1}
    assert answers(fused(alone))[0] == pytest.approx(answers(alone)[0], rel=1e-6)


def _of(*names: str) -> dict[str, Any]:
    return {name: CONSTANTS[name] for name in names}


def test_initializers_among_the_inputs_are_constants_before_version_4() -> None:
    content = onnx.load_from_string(model([node("Conv", ["x", "point"], ["h"]), node("Mul", ["h", "s"], ["y"])]))
    for name in ("point", "s"):
        content.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, CONSTANTS[name].shape))
    content.ir_version = 3
    old = content.SerializeToString()
    assert kinds(prepare(old, half=False, mean=None, std=None, fuses=True)) == {"Conv": 1}


def test_the_format_of_onnx_runtime_is_refused_in_words() -> None:
    with pytest.raises(
        ConfigError, match=r"ONNX Runtime's own format, which cannot be changed .* take the \.onnx file"
    ):
        prepare(b"\0\0\0\0ORTM" + bytes(64), half=False, mean=None, std=None, fuses=True)


def test_a_clip_may_have_its_limits_as_attributes() -> None:
    """Before version 11 of the operators."""
    nodes = [
        node("Add", ["x", "three"], ["a"]),
        node("Clip", ["a"], ["c"], min=0.0, max=6.0),
        node("Mul", ["x", "c"], ["p"]),
        node("Div", ["p", "six"], ["y"]),
    ]
    initializers = [numpy_helper.from_array(CONSTANTS[name], name) for name in ("three", "six")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, IMAGE) for name in "xy"]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], initializers)
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=4).SerializeToString()
    changed = fused(content)
    assert kinds(changed) == {"HardSigmoid": 1, "Mul": 1}
    np.testing.assert_allclose(answers(changed)[0], answers(content)[0], rtol=1e-5, atol=1e-6)


def test_a_backend_runs_the_fused_model_and_proves_its_rows() -> None:
    """With ``mean`` and ``std`` in front, in batches, and in half precision."""
    content = model(FUSED["a block of PP-LCNet"][0])
    image = 4 * floats(4, 7, 9)
    keys: dict[str, Any] = {"mean": [0.5], "std": [2.0], "max": "4x4x7x9"}
    plain = {"data": image}
    OnnxTensor(model=content, **keys).forward([plain])
    for precision, tolerance in (("fp32", 1e-5), ("fp16", 2e-2)):
        requests: list[dict[str, Any]] = [{"data": image}, {"data": -image}]
        OnnxTensor(model=content, fuse=True, precision=precision, **keys).forward(requests)  # type: ignore[arg-type]
        scale = np.abs(plain["result"]).max()
        np.testing.assert_allclose(requests[0]["result"], plain["result"], atol=tolerance * scale)
