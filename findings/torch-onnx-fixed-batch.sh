#!/usr/bin/env bash
# torch.onnx.export is asked for an open batch axis, and writes a fixed one where the model has fixed it, without a word.
#
# The batch is Dim("batch"), and the model reshapes to two rows, as many as the example has. torch.export.export refuses
# that: "you marked batch as dynamic but your code specialized it to be a constant". torch 2.13.0's torch.onnx.export
# with dynamo=True does not: it raises nothing and warns of nothing, and the input in the file has the shape (2, 5). ONNX
# Runtime then refuses all other batches. Who has not looked finds out when it is served.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 onnx==1.23.2 \
    onnxscript==0.7.2
"$folder/venv/bin/python" - <<'PY'
import warnings

import onnxscript
import torch


class TwoRows(torch.nn.Module):
    """Reshapes to as many rows as the example has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 2).reshape(2, 5)


print(f"torch {torch.__version__}, onnxscript {onnxscript.__version__}:")
example, axes = (torch.ones(2, 5),), ({0: torch.export.Dim("batch")},)
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always", UserWarning)
    program = torch.onnx.export(TwoRows(), example, dynamic_shapes=axes, dynamo=True, verbose=False)
said = [str(warning.message) for warning in warned if "batch" in str(warning.message)]
(given,) = program.model_proto.graph.input
shape = [axis.dim_param or axis.dim_value for axis in given.type.tensor_type.shape.dim]
print(f"  torch.onnx.export: the input has the shape {shape}, and it warned: {said or 'of nothing'}")
assert (shape, said) == ([2, 5], []), "the behaviour has changed"
try:
    torch.export.export(TwoRows(), example, dynamic_shapes=axes)
except Exception as error:
    print(f"  torch.export.export: {type(error).__name__}: {str(error).splitlines()[0][:80]}")
else:
    raise SystemExit("torch.export.export no longer refuses it")
PY
