#!/usr/bin/env bash
# OpenCV multiplies the colours of an 8-bit TIFF by their alpha, also with IMREAD_UNCHANGED; those of a PNG not.
#
# The TIFF says that its alpha is unassociated (ExtraSamples 2, what Pillow writes for RGBA), so its colours are as
# stored, and Pillow 13.0.0 and tifffile 2026.3.3 give them. opencv-python-headless 5.0.0.93 gives 200 as 100 where
# alpha is 128, and black where it is 0: what "drops the alpha" for a PNG darkens the same picture as a TIFF. With 16
# bits the colours are as stored with IMREAD_UNCHANGED, and multiplied with IMREAD_COLOR.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    opencv-python-headless==5.0.0.93 pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import io

import cv2
import numpy as np
import PIL
import tifffile
from PIL import Image

ALPHAS = [255, 128, 10, 0]
PIXELS = np.array([[(200, 100, 50, alpha) for alpha in ALPHAS]], np.uint8)


def by_pillow(kind: str) -> bytes:
    """The pixels as a file that Pillow wrote."""
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, kind)
    return stream.getvalue()


def by_tifffile(bits: int) -> bytes:
    """The pixels as a TIFF with unassociated alpha that tifffile wrote."""
    stream = io.BytesIO()
    pixels = PIXELS if bits == 8 else PIXELS.astype(np.uint16) * 257
    tifffile.imwrite(stream, pixels, photometric="rgb", extrasamples=["UNASSALPHA"])
    return stream.getvalue()


def reds(content: bytes, flag: int) -> list[int]:
    """The red of each pixel by OpenCV, on the scale to 255."""
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    return [int(red) for red in (image if image.dtype == np.uint8 else image >> 8)[0, :, 2]]


stored, multiplied = [200, 200, 200, 200], [200, 100, 8, 0]
files = {
    "PNG by Pillow": (by_pillow("PNG"), stored, stored),
    "TIFF by Pillow": (by_pillow("TIFF"), multiplied, multiplied),
    "TIFF by tifffile": (by_tifffile(8), multiplied, multiplied),
    "TIFF, 16 bits": (by_tifffile(16), stored, multiplied),
}
print(f"OpenCV {cv2.__version__}, Pillow {PIL.__version__}, tifffile {tifffile.__version__}, red 200, alpha {ALPHAS}:")
for name, (content, unchanged, colour) in files.items():
    seen = reds(content, cv2.IMREAD_UNCHANGED), reds(content, cv2.IMREAD_COLOR)
    print(f"  {name:16}: IMREAD_UNCHANGED {seen[0]}, IMREAD_COLOR {seen[1]}")
    assert seen == (unchanged, colour), f"the behaviour has changed: {name}"
    if "16" not in name:
        assert np.asarray(Image.open(io.BytesIO(content)))[0, :, 0].tolist() == stored, "Pillow has changed"
    if "TIFF" in name:
        read = tifffile.imread(io.BytesIO(content))[0, :, 0]
        assert (read == (200 if read.dtype == np.uint8 else 51400)).all(), "tifffile has changed"
print("  Pillow and tifffile: red 200 everywhere")
PY
