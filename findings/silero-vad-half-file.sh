#!/usr/bin/env bash
# silero-vad's file "half" is neither in half precision nor half as large: it is another network.
#
# `silero_vad_half.onnx` in silero-vad 6.2.3 has float32 weights of the same shapes as `silero_vad_16k_op15.onnx`, and the
# same size. But the weights are not the same ones rounded: they have nothing to do with them (correlations below 0.2),
# and on ten seconds of a voice its probabilities differ by up to 0.9. The four other files for 16 kHz agree within 1e-6.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
${PYTHON:-python3} -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps silero-vad==6.2.3 useful-moonshine-onnx==20251121
"$folder/bin/python" - <<'PY'
import sys
import wave
from importlib.metadata import distribution, version

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

onnxruntime.set_default_logger_severity(3)
with wave.open(str(distribution("useful-moonshine-onnx").locate_file("moonshine_onnx/assets/beckett.wav"))) as file:
    voice = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
voice = np.concatenate([np.zeros(64, np.float32), voice])  # each frame comes with the 64 samples before it


def path(name):
    return str(distribution("silero-vad").locate_file(f"silero_vad/data/{name}.onnx"))


def probabilities(name):
    session = onnxruntime.InferenceSession(path(name), providers=["CPUExecutionProvider"])
    state, found = np.zeros((2, 1, 128), np.float32), []
    names = {value.name for value in session.get_inputs()}
    for start in range(0, len(voice) - 576, 512):
        inputs = {"input": voice[None, start : start + 576], "state": state, "sr": np.array(16000)}
        output, state = session.run(None, {key: value for key, value in inputs.items() if key in names})
        found.append(output[0, 0])
    return np.array(found)


def weights(name):
    return {each.name.removeprefix("model."): numpy_helper.to_array(each) for each in onnx.load(path(name)).graph.initializer}


usual, half = weights("silero_vad_16k_op15"), weights("silero_vad_half")
large = [name for name in half if half[name].size > 10000 and "basis" not in name]
assert all(half[name].dtype == np.float32 and half[name].shape == usual[name].shape for name in large)
likeness = max(abs(np.corrcoef(half[name].ravel(), usual[name].ravel())[0, 1]) for name in large)
reference = probabilities("silero_vad")
print(f"silero-vad {version('silero-vad')}: weights of half are float32, of the same shapes; correlation {likeness:.3f}")
farthest = {}
for name in ("silero_vad_16k_op15", "silero_vad_op18_ifless", "silero_vad_openvino_16k", "silero_vad_half"):
    found = probabilities(name)
    farthest[name] = float(np.abs(found - reference).max())
    others = int(((found > 0.5) != (reference > 0.5)).sum())
    print(f"  {name}: probabilities within {farthest[name]:.1e}; on another side of 0.5: {others} of {len(found)}")
*agreeing, last = farthest.values()
if max(agreeing) > 1e-5 or last < 0.1 or likeness > 0.5:
    sys.exit("the behaviour has changed")
PY
