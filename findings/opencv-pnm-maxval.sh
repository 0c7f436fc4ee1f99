#!/usr/bin/env bash
# OpenCV scales a PGM or PPM to 255 by its maximal value if the numbers are text, and not if they are binary.
#
# In these formats the header's last number is white. With a maximum of 100, opencv-python-headless 5.0.0.93 gives
# white as 255 for P2 and P3 and as 100 for P5 and P6, a picture that is less than half as bright. Above 255 neither
# is scaled: white of a 12-bit P6 is 15 of 255 with IMREAD_COLOR. Pillow 13.0.0 gives 255 for all of them.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    opencv-python-headless==5.0.0.93 pillow==13.0.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import io
import struct

import cv2
import numpy as np
import PIL
from PIL import Image


def pixmap(kind: str, maximum: int) -> bytes:
    """Two pixels, black and white, as a portable graymap (P2, P5) or pixmap (P3, P6)."""
    values = [value for value in (0, maximum) for _ in range(1 if kind in ("P2", "P5") else 3)]
    header = f"{kind}\n2 1\n{maximum}\n".encode()
    if kind in ("P2", "P3"):
        return header + " ".join(map(str, values)).encode() + b"\n"
    return header + struct.pack(f">{len(values)}{'B' if maximum < 256 else 'H'}", *values)


print(f"OpenCV {cv2.__version__}, Pillow {PIL.__version__}, what white becomes:")
expected = {
    100: {"P2": 255, "P3": 255, "P5": 100, "P6": 100},
    255: dict.fromkeys(("P2", "P3", "P5", "P6"), 255),
    4095: dict.fromkeys(("P2", "P3", "P5", "P6"), 15),
}
for maximum, whites in expected.items():
    for kind, white in whites.items():
        content = pixmap(kind, maximum)
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert image[0, 0].tolist() == [0, 0, 0], "black is not black"
        by_pillow = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))[0, 1].tolist()
        print(f"  {kind}, maximum {maximum:4}: OpenCV {image[0, 1].tolist()}, Pillow {by_pillow}")
        assert image[0, 1].tolist() == [white] * 3, f"the behaviour has changed: {kind}, {maximum}"
        assert by_pillow == [255] * 3, "Pillow has changed"
PY
