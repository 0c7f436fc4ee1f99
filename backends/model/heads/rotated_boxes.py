"""Postprocessors of detectors whose boxes are turned, as those of aerial pictures and of text.

Beside ``scores`` and ``classes`` (see ``detector``), each sets, best score first:

* ``result``: float32 of shape (boxes, 5): x and y of the centre, width and height in pixels of the picture, and by how
  much the box is turned, in radians, clockwise as it is seen (y points down): the direction of its upper edge;
* ``quads``: float32 of shape (boxes, 4, 2): x and y of its corners, clockwise, from the one that is left and top before
  the box is turned. ``PerspectiveTransformMat`` cuts one out. They may lie outside of the picture.

Where a picture was stretched on its way to the network, a turned box is no rectangle in it any more. ``quads`` has the
exact corners; ``result`` has their centre, the lengths of the upper and the left edge, and the direction of the upper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from fastpipe.contract import Between, Request

from .boxes import Placement
from .detector import Found, Suppressing, is_above, unless
from .head import Floats, may_be

__all__ = ["NmsRotated", "YoloV8Obb", "corners_of", "rotated_overlaps"]

Array = npt.NDArray[Any]

BOX_NUMBERS = 5
# Signs of half the width and half the height, from the centre to the corners, clockwise from the left top.
CORNERS = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) / 2


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rotated(Suppressing):
    """Base: the boxes of ``Found`` have a centre, width, height and angle, as ``result`` has them.

    Args:
        max_candidates: as of upright boxes, but fewer: the overlap of turned boxes takes much longer.
    """

    max_candidates: Annotated[int, Between(1, 1_000_000)] = 5_000

    def overlaps(self, box: Array, boxes: Array) -> Array:
        return rotated_overlaps(box, boxes)

    def placed(self, boxes: Array, placement: Placement) -> tuple[Array, Array]:
        quads = _quads(boxes, placement)
        upper, left = quads[:, 1] - quads[:, 0], quads[:, 3] - quads[:, 0]
        sizes = np.stack([np.hypot(*upper.T), np.hypot(*left.T)], axis=1) * np.sign(boxes[:, 2:4])
        angles = np.arctan2(upper[:, 1], upper[:, 0])
        placed = np.concatenate([quads.mean(axis=1), sizes, angles[:, np.newaxis]], axis=1).astype(np.float32)
        sizes = placed[:, 2:4]
        if placement.size is not None:  # what is outside of the picture is not there, whatever its size
            inside = quads.clip(0, placement.size[::-1])
            sizes = np.minimum(sizes, inside.max(axis=1) - inside.min(axis=1))
        return placed, sizes

    def chosen(self, boxes: Array, scores: Array, classes: Array, extras: Array | None = None) -> Found:
        found = super().chosen(boxes, scores, classes)
        return found._replace(extras=found.boxes)  # of which the corners are made

    def further(
        self, request: Request, rows: list[Floats], placement: Placement, boxes: Array, extras: Array
    ) -> dict[str, Any]:
        return {"quads": _quads(extras, placement).astype(np.float32)}


class YoloV8Obb(_Rotated):
    """YOLOv8 and v11 for oriented boxes: one output (batch, 4 + classes + 1, boxes).

    A box has x and y of its centre, width, height, in pixels of the input, a score for each class, and its angle in
    radians, clockwise. (Ultralytics suppresses by an overlap of two normal distributions, "probiou"; here the overlap
    is that of the rectangles, as OpenCV has it.)
    """

    def problem(self, shapes: Sequence[Sequence[Any]]) -> str:
        expected = "one output of shape (batch, 4 + classes + 1, boxes)"
        is_right = len(shapes) == 1 and len(shapes[0]) == 3 and is_above(shapes[0][1], BOX_NUMBERS)
        return unless(expected, shapes, is_right)

    def detect(self, rows: list[Floats]) -> Found:
        (row,) = rows
        row = row[:, (row[4:-1] > self.score_threshold).any(axis=0)]
        boxes = np.concatenate([row[:4], row[-1:]]).T
        return self.chosen(boxes, row[4:-1].max(axis=0), row[4:-1].argmax(axis=0))


@dataclass(frozen=True, kw_only=True, eq=False)
class NmsRotated(_Rotated):
    """Turned boxes (batch, boxes, 5) and their scores, (batch, boxes, classes) or (batch, boxes), in this order.

    A box has x and y of its centre, width, height, in pixels of the input, and an angle, clockwise as it is seen.

    Args:
        angle: what angles are in.
    """

    angle: Literal["radians", "degrees"] = "radians"

    def problem(self, shapes: Sequence[Sequence[Any]]) -> str:
        expected = "two outputs, (batch, boxes, 5) and (batch, boxes, classes), at least 1 class, or (batch, boxes)"
        is_right = len(shapes) == 2 and len(shapes[0]) == 3 and len(shapes[1]) in (2, 3)
        is_right = is_right and may_be(shapes[0][2], BOX_NUMBERS) and may_be(shapes[1][1], shapes[0][1])
        return unless(expected, shapes, is_right and all(is_above(size, 0) for size in shapes[1][2:]))

    def detect(self, rows: list[Floats]) -> Found:
        boxes, scores = rows[0].astype(np.float64), rows[1]
        if self.angle == "degrees":
            boxes[:, 4] = np.radians(boxes[:, 4])
        if scores.ndim == 1:
            return self.chosen(boxes, scores, np.zeros(len(scores), np.int64))
        return self.chosen(boxes, scores.max(axis=1), scores.argmax(axis=1))


def corners_of(boxes: Array) -> Array:
    """Return the corners of turned boxes, float64 of shape (n, 4, 2), in the order of ``quads``."""
    return _turned(boxes[:, np.newaxis, 2:4] * CORNERS, boxes[:, 4]) + boxes[:, np.newaxis, :2]


def rotated_overlaps(box: Array, boxes: Array) -> Array:
    """Return the intersection over union of one turned box with each of the others; 0 where both are empty.

    Args:
        box: x and y of its centre, width, height, angle in radians.
        boxes: the others, (n, 5).
    """
    found = np.zeros(len(boxes))
    distances = np.hypot(boxes[:, 0] - box[0], boxes[:, 1] - box[1])
    reach = (np.hypot(boxes[:, 2], boxes[:, 3]) + np.hypot(box[2], box[3])) / 2
    is_near = distances < reach  # of the others, nothing is in common
    near = boxes[is_near]
    common = _common_areas(box, near)
    union = max(box[2], 0) * max(box[3], 0) + near[:, 2].clip(0) * near[:, 3].clip(0) - common
    found[is_near] = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return found


def _common_areas(box: Array, boxes: Array) -> Array:
    """Return the area that each of the boxes has in common with one.

    Seen from that box, which is upright there, the others are cut off at its four sides: along an edge, a point is put
    where it crosses a side, and then all that is outside of a side is moved onto it. What runs along a side has no area
    on its outer side, so what the points go around is what is in common. No case is special, and nothing is divided
    that could be nearly parallel.
    """
    points = _turned(corners_of(boxes) - box[:2], np.full(len(boxes), -box[4]))
    for axis in range(2):
        half = max(box[2 + axis], 0) / 2
        steps = np.roll(points, -1, axis=1) - points
        crossings = np.stack([-half - points[..., axis], half - points[..., axis]], axis=2)
        with np.errstate(all="ignore"):  # an edge along a side crosses it nowhere
            parts = crossings / steps[..., axis, np.newaxis]
        parts = np.sort(np.nan_to_num(parts, nan=0.0).clip(0, 1), axis=2)
        crossed = points[:, :, np.newaxis] + parts[..., np.newaxis] * steps[:, :, np.newaxis]
        points = np.concatenate([points[:, :, np.newaxis], crossed], axis=2).reshape(
            len(points), 3 * points.shape[1], 2
        )
        points[..., axis] = points[..., axis].clip(-half, half)
    after = np.roll(points, -1, axis=1)
    areas: Array = np.abs((points[..., 0] * after[..., 1] - points[..., 1] * after[..., 0]).sum(axis=1)) / 2
    return np.where((boxes[:, 2:4] > 0).all(axis=1), areas, 0)


def _turned(points: Array, angles: Array) -> Array:
    """Return points (n, any, 2) turned around 0, those of each row by its angle."""
    cosines, sines = np.cos(angles)[:, np.newaxis], np.sin(angles)[:, np.newaxis]
    x, y = points[..., 0], points[..., 1]
    return np.stack([x * cosines - y * sines, x * sines + y * cosines], axis=-1)


def _quads(boxes: Array, placement: Placement) -> Array:
    corners = corners_of(boxes)
    return np.stack(placement.points(corners[..., 0], corners[..., 1]), axis=-1)
