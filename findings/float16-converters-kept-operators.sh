#!/usr/bin/env bash
# Converters to float16 round what operators that are "kept in float32" hand to each other, and hand out.
#
# A value of 1,000,000 between a Mul and a Div that are both on the block list comes out of the Div as infinity. That
# of onnxruntime 1.32.0 (transformers.float16) puts a pair of casts between any two of them. That of
# onnxconverter-common 1.16.0 takes the pair away again if the value has one reader, and leaves it if it has two. A
# result beyond 65504 of a kept operator is infinite with both, also with keep_io_types=True, and with
# onnxconverter-common the output is then of type float16 in spite of that option, although not one operator of the
# model was to be converted.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    onnx==1.23.2 onnxruntime==1.32.0 onnxconverter-common==1.16.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxconverter_common import float16 as by_common
from onnxruntime.transformers import float16 as by_runtime

KEPT = ["Mul", "Div", "Sub", "Add"]
MODELS = {
    "one operator, x * 1000": [("Mul", "x c", "y")],
    "a chain, (x * 1000) / 1000": [("Mul", "x c", "t"), ("Div", "t c", "u"), ("Neg", "u", "v"), ("Neg", "v", "y")],
    "two readers, t / 1000 + (t - t) with t = x * 1000": [
        ("Mul", "x c", "t"),
        ("Div", "t c", "u"),
        ("Sub", "t t", "z"),
        ("Add", "u z", "v"),
        ("Neg", "v", "w"),
        ("Neg", "w", "y"),
    ],
}
# For each model: the exact result of x = 1000, and what the converted models give, with the type of the output.
EXPECTED = {
    "one operator, x * 1000": (1e6, ("inf", "float16"), ("inf", "float32")),
    "a chain, (x * 1000) / 1000": (1000.0, ("1000.0", "float32"), ("inf", "float32")),
    "two readers, t / 1000 + (t - t) with t = x * 1000": (1000.0, ("nan", "float32"), ("nan", "float32")),
}


def model(operators: list[tuple[str, str, str]]) -> onnx.ModelProto:
    """A model from x to y, both float32 of one element, with the constant c = 1000."""
    nodes = [helper.make_node(kind, read.split(), [made], name=f"{kind}_{made}") for kind, read, made in operators]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph(nodes, "kept", [x], [y], [helper.make_tensor("c", TensorProto.FLOAT, [1], [1000.0])])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def run(converted: onnx.ModelProto) -> tuple[str, str]:
    """The result of x = 1000 and its type."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(converted.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result = session.run(None, {"x": np.array([1000], np.float32)})[0]
    return str(float(result[0])), str(result.dtype)


print(f"onnxruntime {onnxruntime.__version__}, onnxconverter-common {version('onnxconverter-common')}, x = 1000:")
for name, operators in MODELS.items():
    exact, common, runtime = EXPECTED[name]
    assert run(model(operators)) == (str(exact), "float32"), "the model itself is wrong"
    seen = [
        run(converter.convert_float_to_float16(model(operators), keep_io_types=True, op_block_list=KEPT))
        for converter in (by_common, by_runtime)
    ]
    print(f"  {name} = {exact}:\n    onnxconverter-common {' '.join(seen[0])}, onnxruntime {' '.join(seen[1])}")
    assert seen == [common, runtime], f"the behaviour has changed: {seen}"
PY
