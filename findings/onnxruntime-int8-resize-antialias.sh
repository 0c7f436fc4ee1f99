#!/usr/bin/env bash
# ONNX Runtime's Resize with antialias=1 makes every negative int8 value 0, whatever the sizes; it raises nothing.
#
# onnxruntime 1.32.0 on the CPU clips the result to 0 .. 255 as for uint8, so half of a quantised tensor's range is
# lost: a plane of -50 becomes one of 0. Values from 0 to 127 are right, and so is everything without antialias, in
# uint8, int32 and float32. The reference evaluator of onnx 1.23.2 gives -50.
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


def both(kind: type, value: int, mode: str, antialias: int) -> tuple[list[int], list[int]]:
    """The values found in a plane of one value that is halved, by ONNX Runtime and by onnx's own evaluator."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode=mode, antialias=antialias)
    graph = helper.make_graph(
        [node],
        "resize",
        [helper.make_tensor_value_info("x", element, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("y", element, [1, 1, 4, 4])],
        [helper.make_tensor("sizes", TensorProto.INT64, [4], [1, 1, 4, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    feed = {"x": np.full((1, 1, 8, 8), value, kind)}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, feed)[0], ReferenceEvaluator(model).run(None, feed)[0]
    return tuple(np.unique(np.round(array).astype(int)).tolist() for array in found)


print(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}, a plane of one value, halved:")
for kind, mode, antialias, value, expected in (
    (np.int8, "linear", 1, -128, 0),
    (np.int8, "linear", 1, -50, 0),
    (np.int8, "linear", 1, -1, 0),
    (np.int8, "linear", 1, 100, 100),
    (np.int8, "cubic", 1, -50, 0),
    (np.int8, "linear", 0, -50, -50),
    (np.int32, "linear", 1, -50, -50),
    (np.float32, "linear", 1, -50, -50),
    (np.uint8, "linear", 1, 200, 200),
):
    by_runtime, by_reference = both(kind, value, mode, antialias)
    case = f"{kind.__name__:7} {mode:6} antialias={antialias} {value:4}"
    print(f"  {case}: ONNX Runtime {by_runtime}, reference {by_reference}")
    assert by_runtime == [expected], "the behaviour has changed"
    assert by_reference == [value], "the reference has changed"
PY
