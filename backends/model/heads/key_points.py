"""Postprocessors of detectors that find the key points of what is in a box, such as the joints of a person.

Beside what ``detector`` says, each sets ``key_points``: float32 of shape (boxes, points, 3): x and y in pixels of the
picture, cut off at its edges as the boxes are, and from 0 to 1 how sure it is that the point can be seen. Where a model
does not tell, that is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from fastpipe.contract import Between, Request
from fastpipe.errors import KernelError

from .boxes import Placement, as_corners
from .detector import LARGEST_PROBABILITY, Found, Suppressing, unless
from .head import Floats

__all__ = ["YoloV8Pose"]

Array = npt.NDArray[Any]

BOX_NUMBERS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class YoloV8Pose(Suppressing):
    """YOLOv8 and v11 for poses: one output (batch, 4 + classes + 3 * points, boxes).

    A box has x and y of its centre, width, height, in pixels of the input, a score for each class, and for each point x
    and y, in pixels of the input, and how visible it is, from 0 to 1.

    Args:
        class_count: how many classes the model has, which its output does not tell.
        visibility: whether a point has three numbers; false: x and y alone.
    """

    class_count: Annotated[int, Between(1, 1_000_000)] = 1
    visibility: bool = True

    @property
    def _point_numbers(self) -> int:
        return 3 if self.visibility else 2

    def problem(self, shapes: Sequence[Sequence[Any]]) -> str:
        expected = (
            f"one output of shape (batch, 4 + class_count + {self._point_numbers} * points, boxes) "
            f"with class_count = {self.class_count}"
        )
        is_right = len(shapes) == 1 and len(shapes[0]) == 3
        if is_right and isinstance(size := shapes[0][1], int):
            points, rest = divmod(size - BOX_NUMBERS - self.class_count, self._point_numbers)
            is_right = points > 0 and rest == 0
        return unless(expected, shapes, is_right)

    def detect(self, rows: list[Floats]) -> Found:
        (row,) = rows
        end = BOX_NUMBERS + self.class_count
        row = row[:, (row[BOX_NUMBERS:end] > self.score_threshold).any(axis=0)]
        scores = row[BOX_NUMBERS:end]
        return self.chosen(as_corners(row[:4].T, "cxcywh"), scores.max(axis=0), scores.argmax(axis=0), row[end:].T)

    def further(
        self, request: Request, rows: list[Floats], placement: Placement, boxes: Array, extras: Array
    ) -> dict[str, Any]:
        points = extras.reshape(len(boxes), extras.shape[1] // self._point_numbers, self._point_numbers)
        x, y = placement.points(points[..., 0].astype(np.float64), points[..., 1].astype(np.float64))
        if placement.size is not None:
            x, y = x.clip(0, placement.size[1]), y.clip(0, placement.size[0])
        visible = points[..., 2] if self.visibility else np.ones_like(x)
        if visible.size and not (visible.min() >= 0 and visible.max() <= LARGEST_PROBABILITY):
            wrong = visible.min() if visible.min() < 0 else visible.max()
            raise KernelError(
                f"postprocessor {type(self).__name__}: expected points that are visible from 0 to 1, got {wrong:g}; "
                "is class_count wrong, or the output without its last sigmoid?"
            )
        return {"key_points": np.stack([x, y, visible], axis=-1).astype(np.float32)}
