#!/usr/bin/env bash
# onnxscript's rule for a hard swish writes HardSwish into models whose operators are older than that one.
#
# HardSwish came with version 14 of ONNX's operators. onnxscript 0.7.2's fuse_hardswish_rules() put it into a model of
# version 12 as well, without raising the version or an error; onnx's checker and ONNX Runtime 1.32.0 then refuse the
# model. Of version 14, the same model is rewritten and runs.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    onnxscript==0.7.2 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxscript import rewriter
from onnxscript.rewriter.rules.common import fuse_hardswish_rules


def rewritten(operators: int) -> onnx.ModelProto:
    """x * clip(x + 3, 0, 6) / 6, rewritten."""
    nodes = [
        helper.make_node("Add", ["x", "three"], ["shifted"]),
        helper.make_node("Clip", ["shifted", "zero", "six"], ["clipped"]),
        helper.make_node("Mul", ["x", "clipped"], ["product"]),
        helper.make_node("Div", ["product", "six"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    constants = [("three", 3), ("zero", 0), ("six", 6)]
    initializers = [numpy_helper.from_array(np.float32(value), name) for name, value in constants]
    graph = helper.make_graph(nodes, "hard_swish", [x], [y], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", operators)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return rewriter.rewrite(model, pattern_rewrite_rules=fuse_hardswish_rules())


print(", ".join(f"{name} {version(name)}" for name in ("onnxscript", "onnx", "onnxruntime")))
for operators, is_refused in ((12, True), (14, False)):
    model = rewritten(operators)
    kinds = [node.op_type for node in model.graph.node if node.op_type != "Constant"]
    declared = model.opset_import[0].version
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        seen = session.run(None, {"x": np.float32([-4, -1, 1, 4])})[0].tolist()
        refused = False
    except Exception as error:
        seen, refused = str(error).strip().splitlines()[-1][-90:], True
    print(f"  of version {operators}: {kinds}, declared as version {declared}: {seen}")
    assert (kinds, declared, refused) == (["HardSwish"], operators, is_refused), "the behaviour has changed"
PY
