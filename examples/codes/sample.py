"""A photograph with labels on it, and the picture of what was found there."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import zxingcpp
from PIL import Image, ImageDraw, ImageFont
from skimage import data

__all__ = ["LABELS", "marked", "sample_picture"]

# Kind, text, pixels of the narrowest bar, left, top, degrees that it is turned by.
LABELS = (
    ("QRCode", "Meet at the pier", 6, 60, 50, 8),
    ("Code128", "FP-2026-11-30", 2, 480, 90, -4),
    ("QRCode", "lot 7, shelf 3", 5, 110, 420, -10),
    ("EAN13", "4006381333931", 3, 470, 380, 6),
)


def sample_picture() -> bytes:
    """Return a JPEG of 960 x 720: a wall of bricks, with ``LABELS``."""
    bricks: Any = data.brick  # it has no annotations
    picture = Image.fromarray(bricks()).convert("RGB").resize((960, 720))
    for kind, text, scale, left, top, degrees in LABELS:
        code = zxingcpp.create_barcode(text, getattr(zxingcpp.BarcodeFormat, kind))
        bars = Image.fromarray(np.array(zxingcpp.write_barcode_to_image(code, scale=scale)))
        label = Image.new("RGB", (bars.width + 20, bars.height + 50), (250, 248, 240))
        label.paste(bars, (10, 10))
        turned = label.convert("RGBA").rotate(degrees, Image.Resampling.BICUBIC, expand=True)
        picture.paste(turned, (left, top), turned)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


def marked(picture: bytes, answer: dict[str, Any]) -> Image.Image:
    """Return the picture with a frame around each code, and its text below."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    draw = ImageDraw.Draw(image)
    for (left, top, right, bottom), text in zip(answer["box"].tolist(), answer["result"], strict=True):
        draw.rectangle((left, top, right, bottom), outline=(214, 39, 40), width=4)
        style: dict[str, Any] = {"fill": (214, 39, 40), "stroke_width": 4, "stroke_fill": "white"}  # also on bars
        draw.text((left, bottom + 8), text, font=ImageFont.load_default(size=24), **style)
    return image
