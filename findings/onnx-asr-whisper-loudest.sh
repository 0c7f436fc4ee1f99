#!/usr/bin/env bash
# onnx-asr's features for Whisper cut a recording off at 8 below the loudest of all recordings in the batch.
#
# Whisper's features are limited to 8 (80 dB) below their maximum. OpenAI's code does so with one recording at a time, and
# transformers with the maximum of each. In onnx-asr 0.12.0 both preprocessors, the one in NumPy (the default on a CPU) and
# the ONNX file, take the maximum over the whole batch. So a quiet recording that shares a call with a loud one gets other
# features than alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
${PYTHON:-python3} -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check onnx-asr==0.12.0 onnxruntime==1.32.0 numpy==2.4.6
"$folder/bin/python" - <<'PY'
import sys
from importlib.metadata import version

import numpy as np
from onnx_asr.preprocessors.numpy_preprocessor import WhisperPreprocessorNumpy
from onnx_asr.preprocessors.preprocessor import OnnxPreprocessor

random = np.random.default_rng(0)
loud = 0.3 * random.standard_normal(32000).astype(np.float32)
quiet = 0.0005 * np.sin(np.arange(32000) / 5).astype(np.float32)  # a tone, 56 dB below
lengths = np.array([32000, 32000])
print(f"onnx-asr {version('onnx-asr')}, onnxruntime {version('onnxruntime')}: features of a quiet tone, from -1 to 1.5,")
for name, preprocessor in (
    ("NumPy", WhisperPreprocessorNumpy("whisper80")),
    ("ONNX", OnnxPreprocessor("whisper80", {"providers": ["CPUExecutionProvider"]})),
):
    alone = preprocessor(quiet[None], lengths[:1])[0][0]
    beside_itself = preprocessor(np.stack([quiet, quiet]), lengths)[0][0]
    beside_loud = preprocessor(np.stack([quiet, loud]), lengths)[0][0]
    assert np.array_equal(alone, beside_itself)
    farthest, share = np.abs(alone - beside_loud).max(), (alone != beside_loud).mean()
    print(f"  {name}: beside a loud recording {share:.0%} of them are others, by up to {farthest:.2f}")
    if farthest < 0.2:
        sys.exit("the behaviour has changed")
PY
