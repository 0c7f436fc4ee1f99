#!/usr/bin/env bash
# OpenCV's NMSBoxesRotated takes a box that lies inside another for a copy of it, however small it is.
#
# A box of 4 x 2 in the middle of one of 40 x 40 has an intersection over union of 8 / 1600 = 0.005. opencv-python-headless
# 5.0.0.93 and 4.14.0.94 suppress it at every threshold below 1 (rotatedRectIOU returns 1 for INTERSECT_FULL, in
# modules/dnn/src/nms.cpp), while NMSBoxes keeps it, of the same boxes upright.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
for version in 5.0.0.93 4.14.0.94; do
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "opencv-python-headless==$version" numpy==2.4.6
    "$folder/venv/bin/python" - <<'PY'
import cv2

large, small = ((50.0, 50.0), (40.0, 40.0), 0.0), ((50.0, 50.0), (4.0, 2.0), 0.0)
rotated = list(map(int, cv2.dnn.NMSBoxesRotated([large, small], [0.9, 0.8], 0.0, 0.99)))
upright = list(map(int, cv2.dnn.NMSBoxes([[30, 30, 40, 40], [48, 49, 4, 2]], [0.9, 0.8], 0.0, 0.01)))
print(f"OpenCV {cv2.__version__}: NMSBoxesRotated at 0.99 keeps {rotated}, NMSBoxes at 0.01 keeps {upright}")
assert (rotated, upright) == ([0], [0, 1]), "the behaviour has changed"
PY
done
