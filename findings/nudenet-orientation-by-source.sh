#!/usr/bin/env bash
# nudenet turns a photograph as its EXIF data say if it gets the file's path, and not if it gets the same file's bytes.
#
# `_read_image` (nudenet/nudenet.py) reads a path by `cv2.imread`, which turns, and bytes or an open file by
# `cv2.imdecode(..., -1)`, which is IMREAD_UNCHANGED and does not. So the boxes of a photograph taken with the camera held
# upright are in the upright picture for the path, and in the one lying on its side for the bytes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
${PYTHON:-python3} -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    numpy==2.2.6 opencv-python-headless==4.12.0.88 onnxruntime==1.23.2 pillow==12.0.0 scikit-image==0.26.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps nudenet==3.4.2
"$folder/venv/bin/python" - "$folder/photo.jpg" <<'PY'
import sys
from importlib.metadata import version
from pathlib import Path

import skimage.data
from nudenet.nudenet import NudeDetector
from PIL import Image

path = sys.argv[1]
exif = Image.Exif()
exif[0x0112] = 6  # to be turned to the right
lying = Image.fromarray(skimage.data.astronaut()).transpose(Image.Transpose.ROTATE_90)
lying.save(path, quality=95, exif=exif)
detector = NudeDetector()
(by_path,), (by_bytes,) = detector.detect(path), detector.detect(Path(path).read_bytes())
with open(path, "rb") as file:
    (by_file,) = detector.detect(file)
print(f"nudenet {version('nudenet')}: the box of a face is {by_path['box']} by the path, {by_bytes['box']} by the bytes, ", end="")
print(f"{by_file['box']} by an open file")
distance = max(abs(one - other) for one, other in zip(by_path["box"], by_bytes["box"], strict=True))
if by_bytes["box"] != by_file["box"] or distance < 50:
    sys.exit("the behaviour has changed")
PY
