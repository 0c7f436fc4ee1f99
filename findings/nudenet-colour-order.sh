#!/usr/bin/env bash
# nudenet gives its network blue, green, red, although it asks OpenCV to swap them: they are swapped twice.
#
# `_read_image` (nudenet/nudenet.py) converts what it has read, which is BGR, by cv2.COLOR_RGBA2BGR, which swaps the first
# and the third channel; then `blobFromImage(..., swapRB=True)` swaps them back. The face in scikit-image's astronaut has a
# higher score with red, green, blue (swapped beforehand by the caller).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
${PYTHON:-python3} -m venv "$folder"
"$folder/bin/pip" install --quiet numpy==2.2.6 opencv-python-headless==4.12.0.88 onnxruntime==1.23.2 scikit-image==0.26.0
"$folder/bin/pip" install --quiet --no-deps nudenet==3.4.2
"$folder/bin/python" - <<'PY'
import sys
from importlib.metadata import version

import numpy as np
import skimage.data
from nudenet.nudenet import NudeDetector, _read_image

blue = np.zeros((8, 8, 3), np.uint8)
blue[..., 0] = 255  # as OpenCV has it
first_channel, *_, last_channel = _read_image(blue)[0][0].reshape(3, -1).mean(axis=1)
detector = NudeDetector()
picture = skimage.data.astronaut()[..., ::-1].copy()  # BGR
(as_it_is,), (swapped,) = detector.detect(picture), detector.detect(picture[..., ::-1].copy())
print(f"nudenet {version('nudenet')}: blue becomes channel 0 = {first_channel:g}, channel 2 = {last_channel:g}; ", end="")
print(f"{as_it_is['class']} {as_it_is['score']:.2f}, with red and blue swapped by the caller {swapped['score']:.2f}")
if (first_channel, last_channel) != (1, 0) or not as_it_is["score"] < swapped["score"]:
    sys.exit("the behaviour has changed")
PY
