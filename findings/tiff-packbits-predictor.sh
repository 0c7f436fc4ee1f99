#!/usr/bin/env bash
# A TIFF of PackBits with a predictor has other pixels for tifffile than for Pillow and OpenCV, and nobody warns.
#
# TIFF 6.0 speaks of the tag Predictor for LZW only. tifffile 2026.3.3 writes it with PackBits, too, and undoes it when it
# reads; libtiff, in Pillow 13.0.0, ignores it there, so that each row comes out as its differences.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    tifffile==2026.3.3 imagecodecs==2026.3.6 pillow==13.0.0 opencv-python-headless==5.0.0.93 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import io

import cv2
import numpy as np
import PIL
import tifffile
from PIL import Image

pixels = np.tile(np.arange(10, 74, dtype=np.uint8), (64, 1))
buffer = io.BytesIO()
tifffile.imwrite(buffer, pixels, compression="packbits", predictor=True, metadata=None)
content = buffer.getvalue()
by_tifffile = tifffile.imread(io.BytesIO(content))[0, :4].tolist()
by_pillow = np.asarray(Image.open(io.BytesIO(content)))[0, :4].tolist()
by_opencv = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)[0, :4].tolist()
print(
    f"tifffile {tifffile.__version__}: {by_tifffile}, Pillow {PIL.__version__}: {by_pillow}, "
    f"OpenCV {cv2.__version__}: {by_opencv}"
)
assert by_tifffile == [10, 11, 12, 13]
assert by_pillow == by_opencv == [10, 1, 1, 1], "the behaviour has changed"
PY
