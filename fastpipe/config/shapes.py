"""``max`` and ``min`` as shapes: ``4``, ``"4x3x224x224"``, ``"8x3x48x320,8x10;1x3x960x960,1x10"``, one for each child.

Inputs of a model (``,``) share the batch size, which comes first; profiles (``;``) widen it; children of a Sequential
(``|``) narrow it.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastpipe.config.values import BadValue, coerce
from fastpipe.contract import Between

__all__ = ["SHAPE_FORM", "Shape", "batch_alone", "largest_batch", "profiles_of", "smallest_batch"]

Shape = tuple[str, ...]
"""The sizes of the axes as they are written, the batch first."""

_LARGEST = 1 << 20
_BATCH_SIZE = Annotated[int, Between(1, _LARGEST)]

SHAPE_FORM = {
    "anyOf": [
        {"type": "integer", "minimum": 1, "maximum": _LARGEST},
        {"type": "string", "pattern": r"^[\s|]*\d[\d\sxX,;|&]*$"},
    ]
}
"""The JSON schema of what is read here."""


def profiles_of(written: int | str) -> list[list[Shape]]:
    """Return the shapes of each profile, one for each input; a number alone is the shape of a batch."""
    return [
        [tuple(size.strip() for size in shape.lower().split("x")) for shape in profile.split(",")]
        for profile in str(written).split(";")
    ]


def batch_alone(written: int | str | None) -> int | None:
    """Return the batch size where it is all that is written; None: nothing is, or shapes are."""
    if written is None or isinstance(written, int):
        return written
    return int(written) if written.strip().isdecimal() else None


def largest_batch(written: Any) -> int:
    """Return the batch size in ``max``.

    Raises:
        BadValue: it is neither a number nor a shape.
    """
    return min(max(sizes) for sizes in _batch_sizes(written))


def smallest_batch(written: Any) -> int:
    """Return the batch size in ``min``.

    Raises:
        BadValue: it is neither a number nor a shape.
    """
    return max(min(sizes) for sizes in _batch_sizes(written))


def _batch_sizes(written: Any) -> list[list[int]]:
    """Return, for each child that has a share, the batch size of each profile."""
    try:
        if not isinstance(written, str):
            return [[int(coerce(written, _BATCH_SIZE))]]
        shares = [share for share in written.split("|") if share.strip()] or [written]
        return [[int(coerce(shapes[0][0], _BATCH_SIZE)) for shapes in profiles_of(share)] for share in shares]
    except BadValue:
        raise BadValue(f"a number between 1 and {_LARGEST}, or a shape such as '4x3x224x224'", written) from None
