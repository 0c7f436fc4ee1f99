"""From SVG to PNG, by resvg: a library without a display, a browser or anything of the system but its fonts."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module

from fastpipe.errors import MissingExtra, PipeError
from fastpipe.show.paint import FONT, PAINTS

__all__ = ["png_of"]

LARGEST_PX = 16_384  # of a side: what browsers and viewers of images still show


def png_of(svg: str, *, dark: bool, scale: float) -> bytes:
    """Return a drawing as PNG, with a background; see ``Picture.png``."""
    try:
        import_module("resvg_py")
    except ImportError as error:
        raise MissingExtra("a picture as PNG", "picture", error) from error
    if not _has_fonts():
        raise PipeError(f"a PNG needs one of the fonts {FONT}: install one, such as Debian's fonts-dejavu-core")
    width, height = (int(found) for found in re.findall(r'(?:width|height)="(\d+)"', svg)[:2])
    if not scale > 0 or max(width, height) * scale > LARGEST_PX:
        raise PipeError(
            f"a PNG of {width} x {height} at scale {scale} would have a side of more than {LARGEST_PX} pixels, or none:"
            f" scale may be up to {LARGEST_PX / max(width, height):.2g} here; SVG has no limit"
        )
    return _drawn(svg, scale, PAINTS["page"][dark])


@cache
def _has_fonts() -> bool:
    """Whether text can be drawn: where no font of a list is there, resvg leaves text out and says nothing."""
    with_text, without = (
        _drawn(f'<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20" font-family="{FONT}">{text}</svg>')
        for text in ('<text x="2" y="16" font-size="16">M</text>', "")
    )
    return with_text != without


def _drawn(svg: str, zoom: float = 1.0, background: str | None = None) -> bytes:
    import resvg_py

    return resvg_py.svg_to_bytes(svg_string=svg, zoom=zoom, background=background)
