#!/usr/bin/env bash
# ONNX Runtime's Gather of strings copies the first element of each slice and leaves the others empty; it raises nothing.
#
# onnxruntime 1.32.0 (and 1.18.1) on the CPU: Gather of [["a", "b"], ["c", "d"]] along axis 0 with the index 1 gives
# [["c", ""]]. Where a slice is a single string (a vector, or the last axis) the result is right, and so are numbers of
# any shape. The reference evaluator of onnx 1.23.2 gives [["c", "d"]].
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator


def both(x: np.ndarray, axis: int) -> tuple[list, list]:
    """What element 1 along an axis is, by ONNX Runtime and by onnx's own evaluator."""
    kind = TensorProto.STRING if x.dtype == object else TensorProto.INT64
    graph = helper.make_graph(
        [helper.make_node("Gather", ["x", "index"], ["y"], axis=axis)],
        "gather",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [helper.make_tensor("index", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0].tolist(), ReferenceEvaluator(model).run(None, {"x": x})[0].tolist()


print(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}, Gather of element 1:")
words = np.array([["a", "b"], ["c", "d"]], object)
for name, x, axis, expected in (
    ("strings, axis 0", words, 0, [["c", ""]]),
    ("strings, axis 1", words, 1, [["b"], ["d"]]),
    ("vector", words[0], 0, ["b"]),
    ("numbers, axis 0", np.array([[1, 2], [3, 4]]), 0, [[3, 4]]),
):
    by_runtime, by_reference = both(x, axis)
    print(f"  {name}: ONNX Runtime {by_runtime}, reference {by_reference}")
    assert by_runtime == expected, "the behaviour has changed"
    assert by_reference == x.take([1], axis).tolist(), "the reference has changed"
PY
