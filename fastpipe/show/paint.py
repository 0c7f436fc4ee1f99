"""Colours that suit light and dark pages, and the marks that a drawing and its legend share."""

from __future__ import annotations

from typing import Literal

__all__ = ["BAR_PX", "COLUMN_PER_PX", "FONT", "LABEL_PX", "PAINTS", "Scheme", "filled", "painted", "ring"]

Scheme = Literal["both", "light", "dark"]
"""Of a page; "both": whoever shows the drawing decides, as the style sheets of pages do."""

FONT = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, 'Liberation Mono', monospace"
COLUMN_PER_PX = 0.625  # the widest of these fonts has 0.61 of its size
LABEL_PX = 11
BAR_PX = 4  # the colour at the left edge of a box

PAINTS: dict[str, tuple[str, str]] = {
    # On light pages, on dark ones.
    "page": ("#ffffff", "#0d1117"),
    "box": ("#f6f8fa", "#161b22"),
    "outline": ("#8c959f", "#5b6470"),
    "name": ("#1f2328", "#f0f6fc"),
    "text": ("#1f2328", "#d1d7e0"),
    "file": ("#6e3a73", "#e2a9cb"),
    "muted": ("#57606a", "#9198a1"),
    "number": ("#0550ae", "#79c0ff"),
    "label": ("#ffffff", "#0d1117"),
    "label text": ("#424a53", "#b7bdc8"),
}


def painted(scheme: Scheme, *, fill: str = "", stroke: str = "") -> str:
    """Return attributes that paint an element, each with a name of ``PAINTS``.

    For "both" that is ``light-dark()`` in a style of the element's own: a style sheet inside the SVG would change the
    page around it. Who does not know ``light-dark()`` leaves it out, and has the attribute: that of a light page.
    """
    wanted = {"fill": fill, "stroke": stroke}
    pairs = {attribute: PAINTS[name] for attribute, name in wanted.items() if name}
    written = "".join(f'{attribute}="{pair[scheme == "dark"]}" ' for attribute, pair in pairs.items())
    if scheme != "both":
        return written
    style = ";".join(f"{attribute}:light-dark({light},{dark})" for attribute, (light, dark) in pairs.items())
    return f'{written}style="{style}" '


def filled(x: float, y: float, colour: str) -> str:
    """The mark of a root."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>'


def ring(x: float, y: float, colour: str) -> str:
    """The mark of a leaf."""
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="none" stroke="{colour}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>'
    )
