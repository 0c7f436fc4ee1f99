"""The page that ``fastpipe compare`` writes: numbers, and the worst inputs as pictures, in one HTML file."""

from __future__ import annotations

import base64
from html import escape
from typing import Any

from fastpipe.models.comparing import Comparison, Difference

__all__ = ["page_of", "summary_of"]

SIDE = 200
LONGEST_NAME = 60
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .2rem 1.2rem .2rem 0; text-align: left; vertical-align: top; }
td:last-child { font-variant-numeric: tabular-nums; }
.worst { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 1rem; }
figure { margin: 0; padding: .7rem; border: 1px solid #8884; border-radius: .5rem; }
figure.other { border-color: #d33; }
img, .none { display: block; width: 100%; height: 200px; object-fit: contain; background: #8882; }
.none { display: grid; place-items: center; color: #888; }
figcaption { margin-top: .5rem; font-size: .85rem; overflow-wrap: anywhere; }
figcaption b { font-weight: 600; }
"""


def summary_of(found: Comparison) -> list[tuple[str, str]]:
    """Return what is to be said of a comparison, as pairs of a name and a value."""
    rows = [("samples", f"{found.count}" + (f", {len(found.failed)} failed" if found.failed else ""))]
    if found.has_classes:
        share = f"{found.agreement:.2%}"
        rows.append(("same top class", f"{found.agreed_count} of {found.count} ({share})"))
    rows.append(("largest difference", f"{found.largest:.4g}"))
    quantiles = ", ".join(f"{found.percentile(percent):.2%}" for percent in (50, 99, 100))
    rows.append(("of the largest number: median, p99, most", quantiles))
    return rows


def page_of(found: Comparison) -> str:
    """Return the page: it refers to nothing outside of itself."""
    one, other = (escape(name) for name in found.names)
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
        for name, value in [("first", found.names[0]), ("second", found.names[1]), *summary_of(found)]
    )
    figures = "\n".join(_figure(difference) for difference in found.worst)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{one} and {other}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>\n'
        f"<h1>{one} and {other}</h1>\n<table>{rows}</table>\n"
        f"<h2>The worst {len(found.worst)}</h2>\n<p>Those with another top class first, framed in red; then by the "
        f'largest difference, of the largest number.</p>\n<div class="worst">\n{figures}\n</div>\n</html>\n'
    )


def _figure(difference: Difference) -> str:
    name = difference.name if len(difference.name) <= LONGEST_NAME else f"...{difference.name[-LONGEST_NAME:]}"
    picture = _picture(difference.given.get("data"))
    shown = f'<img src="data:image/png;base64,{picture}" alt="">' if picture else '<div class="none">no picture</div>'
    lines = [f"<b>{escape(name)}</b>", f"difference {difference.relative:.2%}"]
    if difference.classes is not None:
        (one, other), (score, other_score) = difference.classes, difference.scores
        lines.append(
            f"class {one} ({score:.3g}) &rarr; {other} ({other_score:.3g}); next to it by {difference.gap:.3g}"
        )
    kind = "" if difference.agrees else ' class="other"'
    return f"<figure{kind}>{shown}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def _picture(data: Any) -> str:
    """Return the bytes of an image as a small PNG in Base64; empty if it is none, or OpenCV is not installed.

    It is decoded as ``DecodeMat`` decodes: no more than so many pixels, and turned as EXIF says.
    """
    if not isinstance(data, bytes):
        return ""
    try:
        import cv2

        from fastpipe.backends.image.codec import DecodeMat
    except ImportError:
        return ""
    request = {"data": data}
    try:
        DecodeMat().forward([request])
    except Exception:  # it is no picture for this page, whatever the reason
        return ""
    pixels: Any = request.get("result")
    if pixels is None:
        return ""
    scale = min(SIDE / max(pixels.shape[:2]), 4.0)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    height, width = (max(round(side * scale), 1) for side in pixels.shape[:2])
    small = cv2.resize(pixels, (width, height), interpolation=way)
    return base64.b64encode(cv2.imencode(".png", small)[1].tobytes()).decode()
