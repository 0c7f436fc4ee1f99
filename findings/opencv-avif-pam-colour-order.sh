#!/usr/bin/env bash
# OpenCV's IMREAD_COLOR_RGB gives blue, green, red for an AVIF with alpha, and IMREAD_COLOR red first for a PAM.
#
# opencv-python-headless 5.0.0.93 gives red, green, blue for an AVIF without alpha, and for PNG and WebP with and
# without, but as soon as the AVIF has an alpha channel the flag is without effect. In a PAM of TUPLTYPE RGB the red
# comes first, as the format has it, and IMREAD_COLOR passes it on as blue. Nothing is said, shape and type are right,
# and red is blue.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    opencv-python-headless==5.0.0.93 pillow==13.0.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import io

import cv2
import numpy as np
import PIL
from PIL import Image

REDDISH = (200, 100, 50)


def saved(kind: str, alpha: bool) -> bytes:
    """A picture of 16 x 16 in one colour, half transparent if it has alpha, without loss where the format can."""
    image = Image.new("RGBA", (16, 16), (*REDDISH, 128)) if alpha else Image.new("RGB", (16, 16), REDDISH)
    stream = io.BytesIO()
    options = {"AVIF": {"quality": 100, "subsampling": "4:4:4"}, "WEBP": {"lossless": True, "exact": True}, "PNG": {}}
    image.save(stream, kind, **options[kind])
    return stream.getvalue()


def order(content: bytes, flag: int) -> str:
    """The order in which the channels come: that of the largest first, or the other way round."""
    pixel = cv2.imdecode(np.frombuffer(content, np.uint8), flag)[8, 8].astype(int)
    for name, colour in (("RGB", REDDISH), ("BGR", REDDISH[::-1])):
        if np.abs(pixel - colour).max() <= 3:
            return name
    return f"neither: {pixel.tolist()}"


files = {(kind, alpha): saved(kind, alpha) for kind in ("PNG", "WEBP", "AVIF") for alpha in (False, True)}
header = b"P7\nWIDTH 16\nHEIGHT 16\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n"
files["PAM", False] = header + bytes(REDDISH) * 256
print(f"OpenCV {cv2.__version__}, Pillow {PIL.__version__}:")
seen = {}
for (kind, alpha), content in files.items():
    seen[kind, alpha] = order(content, cv2.IMREAD_COLOR), order(content, cv2.IMREAD_COLOR_RGB)
    print(
        f"  {kind:4} {'with' if alpha else 'without':7} alpha: IMREAD_COLOR {seen[kind, alpha][0]}, "
        f"IMREAD_COLOR_RGB {seen[kind, alpha][1]}"
    )

expected = dict.fromkeys(files, ("BGR", "RGB")) | {("AVIF", True): ("BGR", "BGR"), ("PAM", False): ("RGB", "RGB")}
assert seen == expected, f"the behaviour has changed: {seen}"
PY
