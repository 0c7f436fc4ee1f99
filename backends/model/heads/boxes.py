"""Where boxes and points of a network are in the picture that it was given.

A network sees the picture at another size, and perhaps with a border: see ``detector`` for how a request says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fastpipe.contract import Request
from fastpipe.errors import KernelError
from fastpipe.summaries import summarize

from ...gpu.handed_on import Row
from ...ranges import numbers_of

__all__ = ["Form", "Placement", "as_corners", "input_size", "placement_of"]

Array = npt.NDArray[Any]
Form = Literal["xyxy", "xywh", "cxcywh"]


def as_corners(boxes: Array, form: Form) -> Array:
    """Return boxes as left, top, right, bottom, in float64."""
    boxes = boxes.astype(np.float64)
    if form == "xyxy":
        return boxes
    starts = boxes[:, :2] if form == "xywh" else boxes[:, :2] - boxes[:, 2:] / 2
    return np.concatenate([starts, starts + boxes[:, 2:]], axis=1)


class Placement(NamedTuple):
    """How positions that a network gives lead to pixels of the picture."""

    scale_x: float
    scale_y: float
    inverse: Callable[[Any, Any], tuple[Any, Any]] | None
    """From the scaled positions on; None: those are it."""
    size: tuple[float, float] | None
    """Height and width of the picture, if they are known."""

    def points(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return x and y of points in the picture; new arrays."""
        x, y = x * self.scale_x, y * self.scale_y
        return (x, y) if self.inverse is None else self.inverse(x, y)

    def boxes(self, boxes: Array) -> Array:
        """Return boxes, left, top, right, bottom, in the picture, cut off at its edges; a new array."""
        x, y = self.points(boxes[:, 0::2], boxes[:, 1::2])
        placed = np.stack([x, y], axis=2).reshape(len(boxes), 4)
        if self.size is None:
            return placed
        return placed.clip(0, (self.size[1], self.size[0], self.size[1], self.size[0]))


def placement_of(request: Request, *, are_normalized: bool) -> Placement:
    """Return how a request's positions lead to its picture.

    Args:
        request: that the model has answered.
        are_normalized: positions are parts of the input's width and height, from 0 to 1, and not its pixels.

    Raises:
        KernelError: if ``inverse_trans`` or ``source_size`` is none, or the size of the input is needed and not known.
    """
    inverse = request.get("inverse_trans")
    given = getattr(inverse, "source_size", None)
    size = _size(request.get("source_size") if given is None else given)
    scale_x = scale_y = 1.0
    if are_normalized or (inverse is None and size is not None):
        height, width = input_size(request)
        if are_normalized:
            scale_x, scale_y = width, height
        if inverse is None:
            size = size or (height, width)
            scale_x, scale_y = scale_x * size[1] / width, scale_y * size[0] / height
    if inverse is not None and not callable(inverse):
        raise KernelError(f"inverse_trans must be callable with x and y, got {summarize(inverse)}")
    return Placement(scale_x, scale_y, inverse, size)


def input_size(request: Request) -> tuple[int, int]:
    """Return height and width of the image that the model was given: its last axes, or those before the channels."""
    data = request["data"]
    if isinstance(data, Row):  # which steps on a GPU hand on; its tensor has the same size
        data = data.whole
    arrays = data.values() if isinstance(data, Mapping) else data if isinstance(data, list | tuple) else [data]
    for array in arrays:
        shape = tuple(getattr(array, "shape", ()))
        if len(shape) >= 3:
            has_channels_last = shape[-1] in (1, 3, 4) and shape[-3] not in (1, 3, 4)
            height, width = shape[-3:-1] if has_channels_last else shape[-2:]
            return int(height), int(width)
    raise KernelError(
        "expected an image of three axes or more in the data, from whose size the boxes are computed, got "
        f"{summarize(data)}"
    )


def _size(given: Any) -> tuple[float, float] | None:
    if given is None:
        return None
    numbers = numbers_of(given, np.float64)
    if numbers is None or numbers.shape != (2,) or not ((numbers > 0) & np.isfinite(numbers)).all():
        raise KernelError(f"source_size must be height and width of the picture, got {summarize(given)}")
    return float(numbers[0]), float(numbers[1])
