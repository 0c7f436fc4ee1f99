"""How an image is made to fit into a rectangle, its ratio kept."""

from __future__ import annotations

__all__ = ["fitted"]


def fitted(height: int, width: int, max_h: int, max_w: int) -> tuple[int, int]:
    """Return the size of an image of ``height`` x ``width``, made as large as it can be within ``max_h`` x ``max_w``.

    The side that limits becomes exactly its maximum; the other is rounded to the nearest whole number (halves up), at
    least 1. In whole numbers, so that no rounding of the ratio can move a size.
    """
    if max_h * width <= max_w * height:
        return max_h, max(1, (2 * width * max_h + height) // (2 * height))
    return max(1, (2 * height * max_w + width) // (2 * width)), max_w
