#!/usr/bin/env bash
# Of a gray TIFF whose white is 0, Pillow gives the negative where the planar configuration is 2.
#
# TIFF 6.0 has that tag say how several channels are stored; of one channel it says nothing, and OpenCV and tifffile do
# not look at it there. Pillow 13.0.0 takes the first letter of its raw mode "L;I" for each plane, and so forgets that the
# numbers are inverted.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    pillow==13.0.0 opencv-python-headless==5.0.0.93 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import io
import struct

import cv2
import numpy as np
import PIL
from PIL import Image

pixels = np.tile(np.arange(8, dtype=np.uint8), (8, 1))  # 0 is white: nearly white


def written(planar: int) -> bytes:
    """Return a TIFF of one strip."""
    tags = {256: 8, 257: 8, 258: 8, 259: 1, 262: 0, 273: 8, 277: 1, 278: 8, 279: 64, 284: planar}
    entries = b"".join(struct.pack("<HHIHxx", tag, 3, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHI", b"II", 42, 72) + pixels.tobytes() + struct.pack("<H", len(tags)) + entries + bytes(4)


for planar, expected in ((1, [255, 254, 253]), (2, [0, 1, 2])):
    content = written(planar)
    by_pillow = np.asarray(Image.open(io.BytesIO(content)))[0, :3].tolist()
    by_opencv = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)[0, :3].tolist()
    print(f"planar {planar}: Pillow {PIL.__version__} {by_pillow}, OpenCV {cv2.__version__} {by_opencv}")
    assert by_opencv == [255, 254, 253]
    assert by_pillow == expected, "the behaviour has changed"
PY
