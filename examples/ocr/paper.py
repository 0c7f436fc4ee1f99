"""Paper to write on, with fonts that come inside packages, and what a scanner or a camera makes of it."""

from __future__ import annotations

import functools
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["Paper", "encoded", "photographed"]

# Of matplotlib, which is looked for and not imported. Without it, everything is in the one font that Pillow has.
FONT_FILES = {
    "sans": "DejaVuSans.ttf",
    "sans bold": "DejaVuSans-Bold.ttf",
    "serif": "STIXGeneral.ttf",
    "serif bold": "STIXGeneralBol.ttf",
    "serif italic": "STIXGeneralItalic.ttf",
    "mono": "DejaVuSansMono.ttf",
    "mono bold": "DejaVuSansMono-Bold.ttf",
}
TABLE_TOP = (96, 74, 58)  # what a page that was photographed lies on
LINE_SPACING = 1.42


@functools.cache
def _font(name: str, size: float) -> Any:
    package = importlib.util.find_spec("matplotlib")
    for folder in (package.submodule_search_locations or []) if package else []:
        path = Path(folder, "mpl-data", "fonts", "ttf", FONT_FILES[name])
        if path.is_file():
            return ImageFont.truetype(path, round(size))
    return ImageFont.load_default(size=size)


class Paper:
    """A page that is written from top to bottom; ``top`` is where the next line goes, in pixels.

    Args:
        width: of the page, in pixels.
        height: likewise.
        margin: on its left and its right.
        font: that of the text, a key of ``FONT_FILES``.
        size: that of the text, in pixels.
        ink: the color of the text, as red, green and blue; so is ``color``, that of the paper.
    """

    def __init__(
        self,
        width: int,
        height: int,
        margin: int,
        font: str,
        size: float,
        *,
        ink: tuple[int, int, int] = (28, 28, 34),
        color: tuple[int, int, int] = (252, 251, 247),
    ) -> None:
        self.image = Image.new("RGB", (width, height), color)
        self.left, self.right = margin, width - margin
        self.top = float(margin)
        self._draw = ImageDraw.Draw(self.image)
        self._font, self._size, self._ink = font, size, ink

    def write(
        self,
        *texts: str,
        at: Sequence[int] = (),
        align: str = "",
        font: str = "",
        size: float = 0,
        ink: tuple[int, int, int] | None = None,
    ) -> None:
        """Write one line of a text, or of several beside each other.

        Args:
            texts: what is written.
            at: where each text goes from left to right; without it, at the margin.
            align: for each text ``l``, ``m`` or ``r``: it begins there, has its middle there, or ends there.
            font: another one than the page's; likewise the ``size`` and the ``ink``.
            size: in pixels.
            ink: as red, green and blue.
        """
        name, size = font or self._font, size or self._size
        for text, x, anchor in zip(texts, at or (self.left,), align or "l" * len(texts), strict=True):
            self._draw.text((x, self.top), text, font=_font(name, size), fill=ink or self._ink, anchor=f"{anchor}a")
        self.top += size * LINE_SPACING

    def paragraph(self, text: str) -> None:
        """Write a text over as many lines as it needs, and leave some room below."""
        line = ""
        for word in text.split():
            longer = f"{line} {word}".strip()
            if self._draw.textlength(longer, font=_font(self._font, self._size)) > self.right - self.left:
                self.write(line)
                longer = word
            line = longer
        self.write(line)
        self.skip(0.6)

    def skip(self, line_count: float) -> None:
        """Leave the room of so many lines."""
        self.top += line_count * self._size * LINE_SPACING

    def rule(self, *, dashed: bool = False) -> None:
        """Draw a line from margin to margin."""
        y = self.top + 2
        step = 12 if dashed else self.right - self.left
        for x in range(self.left, self.right, step):
            self._draw.line((x, y, min(x + step * (0.6 if dashed else 1), self.right), y), fill=self._ink, width=1)
        self.top += 12

    def stamp(self, text: str, box: tuple[int, int, int, int], *, angle: float) -> None:
        """Press a rubber stamp onto a place of the page, turned by so many degrees."""
        width, height = box[2] - box[0], box[3] - box[1]
        ink = (150, 40, 48)
        stamp = Image.new("RGBA", (width, height), (0, 0, 0, 0))
        draw = ImageDraw.Draw(stamp)
        draw.rounded_rectangle((2, 2, width - 3, height - 3), radius=8, outline=ink, width=3)
        draw.text((width / 2, height / 2), text, font=_font("sans bold", height * 0.4), fill=ink, anchor="mm")
        turned = stamp.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        self.image.paste(turned, box[:2], turned)


def photographed(image: Image.Image, *, angle: float, border: int) -> Image.Image:
    """Return the page as a camera sees it: on a table, turned by so many degrees, lit from one side."""
    width, height = image.width + 2 * border, image.height + 2 * border
    table = Image.new("RGB", (width, height), TABLE_TOP)
    page = image.convert("RGBA").rotate(angle, Image.Resampling.BICUBIC, expand=True)
    table.paste(page, ((width - page.width) // 2, (height - page.height) // 2), page)
    light = np.add.outer(np.linspace(0.0, 0.08, height), np.linspace(0.84, 0.92, width))[..., None]
    return Image.fromarray((np.asarray(table) * light).astype(np.uint8))


def encoded(image: Image.Image) -> bytes:
    """Return the image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, icc_profile=None)
    return buffer.getvalue()
