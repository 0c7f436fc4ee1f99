#!/usr/bin/env bash
# Halving a picture by OpenCV's resize rounds ties up with 1, 3 or 4 channels and to even with 2 or more than 4.
#
# Where four pixels have a mean of 6.5, opencv-python-headless 5.0.0.93 gives 7 for an image of three channels and 6
# for one of two, five or eight that holds the same plane, with INTER_LINEAR and INTER_AREA. INTER_LINEAR_EXACT, whose
# documentation says "bit exact", does so too beyond four channels. So frames that are resized as the channels of one
# array differ by 1 from frames that are resized alone.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    opencv-python-headless==5.0.0.93 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import cv2
import numpy as np

CHANNELS = (1, 2, 3, 4, 5, 8)
EXPECTED = {
    "INTER_LINEAR": dict(zip(CHANNELS, ("up", "even", "up", "up", "even", "even"), strict=True)),
    "INTER_AREA": dict(zip(CHANNELS, ("up", "even", "up", "up", "even", "even"), strict=True)),
    "INTER_LINEAR_EXACT": dict(zip(CHANNELS, ("up", "up", "up", "up", "even", "even"), strict=True)),
}


def halved(low: int, channels: int, flag: int) -> int:
    """What becomes of rows that are `low` and `low + 1` in turn; every pixel must be the same."""
    image = np.full((64, 48, channels), low, np.uint8)
    image[1::2] += 1
    values = np.unique(cv2.resize(image, (24, 32), interpolation=flag))
    assert len(values) == 1, "the pixels differ"
    return int(values[0])


ROUNDINGS = {(7, 8): "up", (6, 8): "even", (6, 7): "down"}
print(f"OpenCV {cv2.__version__}, a mean of 6.5 and of 7.5 is rounded:")
for name, expected in EXPECTED.items():
    flag = getattr(cv2, name)
    seen = {count: ROUNDINGS[halved(6, count, flag), halved(7, count, flag)] for count in CHANNELS}
    print(f"  {name:18}: " + ", ".join(f"{count} channels {rounding}" for count, rounding in seen.items()))
    assert seen == expected, f"the behaviour has changed: {seen}"
PY
