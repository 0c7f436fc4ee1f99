#!/usr/bin/env bash
# What magika says of a file depends on whether it is asked for another file in the same call.
#
# ONNX Runtime's ReduceSum over the middle axis of three adds up a batch of one in another order than a larger batch: the
# sums differ by some 1e-6 of their size. magika's model has a variance of the form E[x^2] - E[x]^2, of which next to
# nothing is left in a file of few different bytes, and its reciprocal root makes scores of it that differ by 0.02. So
# for files of the letters 0 and 1 the score, and for some the label, is another one for the file alone than beside a
# second file. (With two files or more it does not matter which or how many.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
${PYTHON:-python3} -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    magika==1.0.3 onnxruntime==1.32.0 numpy==2.4.6 click==8.5.1 python-dotenv==1.2.2
"$folder/venv/bin/python" - "$folder" <<'PY'
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from magika import Magika

magika = Magika()
random = np.random.default_rng(1)
files = [Path(sys.argv[1], str(number)) for number in range(40)]
for file in files:
    file.write_bytes(bytes(random.integers(48, 50, 3000).astype(np.uint8)))
alone = [magika.identify_path(file) for file in files]
together = magika.identify_paths(files)
farthest = max(abs(one.score - other.score) for one, other in zip(alone, together, strict=True))
others = [(f"{a.output.label} {a.score:.3f}", f"{b.output.label} {b.score:.3f}")
          for a, b in zip(alone, together, strict=True) if a.output.label != b.output.label]
print(f"magika {version('magika')}, onnxruntime {version('onnxruntime')}: 40 files of 0 and 1, asked for alone and together:")
print(f"  scores differ by up to {farthest:.4f}; another label: " + ", ".join(f"{a} alone, {b} together" for a, b in others))
if farthest < 0.005 or not others:
    sys.exit("the behaviour has changed")
PY
