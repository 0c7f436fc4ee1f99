#!/usr/bin/env bash
# An EXIF orientation that is stored as LONG, big-endian, is obeyed by Pillow and not by OpenCV; little-endian both obey it.
#
# opencv-python-headless 5.0.0.93 behaves as if it read two bytes of the value field whatever its type says: the first two
# are zero in a big-endian LONG. It also obeys BYTE, little-endian, which Pillow 13.0.0 does not. EXIF itself says SHORT, so a
# file with another type is turned or not by which library opens it.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    opencv-python-headless==5.0.0.93 pillow==13.0.0 "numpy>=2"
"$folder/venv/bin/python" - <<'PY'
import io
import struct

import cv2
import numpy as np
import PIL
from PIL import Image, ImageOps

SHAPES = {(40, 20): "turned", (20, 40): "not turned"}
FORMS = {"BYTE": (1, "B"), "SHORT": (3, "H"), "LONG": (4, "I"), "SLONG": (9, "i")}


def jpeg(order: str, kind: int, code: str) -> bytes:
    """A JPEG of 40 x 20 whose EXIF has one entry: orientation 6, a quarter turn."""
    value = struct.pack(order + code, 6).ljust(4, b"\0")
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
    exif = head + struct.pack(order + "HHHI", 1, 0x112, kind, 1) + value + bytes(4)
    content = cv2.imencode(".jpg", np.zeros((20, 40, 3), np.uint8))[1].tobytes()
    segment = b"Exif\0\0" + exif
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:]


print(f"OpenCV {cv2.__version__}, Pillow {PIL.__version__}, orientation 6:")
seen = {}
for name, (kind, code) in FORMS.items():
    for order, word in (("<", "little"), (">", "big")):
        content = jpeg(order, kind, code)
        by_opencv = SHAPES[cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape[:2]]
        by_pillow = SHAPES[np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content)))).shape[:2]]
        seen[name, word] = by_opencv, by_pillow
        print(f"  {name:5} {word:6}-endian: OpenCV {by_opencv}, Pillow {by_pillow}")

both, neither = ("turned", "turned"), ("not turned", "not turned")
expected = {
    ("BYTE", "little"): ("turned", "not turned"),
    ("BYTE", "big"): neither,
    ("SHORT", "little"): both,
    ("SHORT", "big"): both,
    ("LONG", "little"): both,
    ("LONG", "big"): ("not turned", "turned"),
    ("SLONG", "little"): both,
    ("SLONG", "big"): ("not turned", "turned"),
}
assert seen == expected, f"the behaviour has changed: {seen}"
PY
