"""Postprocessors of detectors that give boxes; see ``detector`` for what they set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from fastpipe.contract import Between

from .boxes import Form, as_corners
from .detector import Detector, Found, Suppressing, is_above, unless
from .head import Floats, may_be

__all__ = ["Detr", "Nms", "RtDetr", "YoloV5", "YoloV8", "YoloV10"]


class YoloV5(Suppressing):
    """YOLOv5, v6 and v7: one output (batch, boxes, 5 + classes).

    A box has x and y of its centre, width, height, in pixels of the input, objectness, and a number for each class. Its
    score is the objectness times the number of the best class.
    """

    def problem(self, shapes: Sequence[Sequence[Any]]) -> str:
        expected = "one output of shape (batch, boxes, 5 + classes)"
        return unless(expected, shapes, len(shapes) == 1 and len(shapes[0]) == 3 and is_above(shapes[0][2], 5))

    def detect(self, rows: list[Floats]) -> Found:
        (row,) = rows
        row = row[row[:, 4] > self.score_threshold]  # a product of two probabilities is no larger than either
        classes = row[:, 5:].argmax(axis=1)
        scores = row[:, 4] * row[np.arange(len(row)), 5 + classes]
        return self.chosen(as_corners(row[:, :4], "cxcywh"), scores, classes)


class YoloV8(Suppressing):
    """YOLOv8, v9 and v11: one output (batch, 4 + classes, boxes).

    A box has x and y of its centre, width, height, in pixels of the input, and a score for each class.
    """

    def problem(self, shapes: Sequence[Sequence[Any]]) -> str:
        expected = "one output of shape (batch, 4 + classes, boxes)"
        return unless(expected, shapes, len(shapes) == 1 and len(shapes[0]) == 3 and is_above(shapes[0][1], 4))

    def detect(self, rows: list[Floats]) -> Found:
        (row,) = rows
        row = row[:, (row[4:] > self.score_threshold).any(axis=0)]
        return self.chosen(as_corners(row[:4].T, "cxcywh"), row[4:].max(axis=0), row[4:].argmax(axis=0))


class YoloV10(Detector):
    """YOLOv10, and other YOLO exported with their NMS: one output (batch, boxes, 6): corners, score, class."""

    def problem(self, shapes: Sequence[Sequence[Any]]) -> str:
        expected = "one output of shape (batch, boxes, 6)"
        return unless(expected, shapes, len(shapes) == 1 and len(shapes[0]) == 3 and may_be(shapes[0][2], 6))

    def detect(self, rows: list[Floats]) -> Found:
        (row,) = rows
        return self.chosen(as_corners(row[:, :4], "xyxy"), row[:, 4], row[:, 5])


@dataclass(frozen=True, kw_only=True, eq=False)
class Nms(Suppressing):
    """Boxes (batch, boxes, 4) and their scores, (batch, boxes, classes) or (batch, boxes), in two outputs, any order.

    Args:
        boxes: the corners (``xyxy``), the left top corner and the size (``xywh``), or the centre and the size
            (``cxcywh``).
        normalized: the boxes are parts of the input's width and height, from 0 to 1.
        background: a class that stands for "nothing here"; the others keep their numbers.
    """

    boxes: Form = "xyxy"
    normalized: bool = False
    background: Annotated[int, Between(0, 1_000_000)] | None = None

    @property
    def are_normalized(self) -> bool:
        return self.normalized

    def problem(self, shapes: Sequence[Sequence[Any]]) -> str:
        expected = "two outputs, (batch, boxes, 4) and (batch, boxes, classes), at least 1 class, or (batch, boxes)"
        return unless(expected, shapes, len(shapes) == 2 and _are_boxes_and_scores(shapes, (2, 3), least_classes=1))

    def detect(self, rows: list[Floats]) -> Found:
        boxes, scores = rows if _has_boxes_first([row.shape for row in rows]) else rows[::-1]
        if scores.ndim == 1:
            return self.chosen(as_corners(boxes, self.boxes), scores, np.zeros(len(scores), np.int64))
        if self.background is not None and self.background < scores.shape[1]:
            scores = scores.copy()
            scores[:, self.background] = -np.inf
        return self.chosen(as_corners(boxes, self.boxes), scores.max(axis=1), scores.argmax(axis=1))


@dataclass(frozen=True, kw_only=True, eq=False)
class RtDetr(Detector):
    """RT-DETR: logits (batch, queries, classes) and boxes (batch, queries, 4) in two outputs, any order.

    Of the sigmoids of all queries and classes, the best so many are taken as there are queries. Or one output (batch,
    queries, 4 + classes), as Ultralytics exports it, with probabilities: a query then has its best class. Boxes are x,
    y of the centre, width and height, as parts of the input's width and height.
    """

    score_threshold: Annotated[float, Between(0, 1)] = 0.5

    @property
    def are_normalized(self) -> bool:
        return True

    def problem(self, shapes: Sequence[Sequence[Any]]) -> str:
        expected = (
            "outputs of shapes (batch, queries, classes) and (batch, queries, 4), or (batch, queries, 4 + classes), "
            "with at least 1 class"
        )
        is_one = len(shapes) == 1 and len(shapes[0]) == 3 and is_above(shapes[0][2], 4)
        is_two = len(shapes) == 2 and _are_boxes_and_scores(shapes, (3,), least_classes=1)
        return unless(expected, shapes, is_one or is_two)

    def detect(self, rows: list[Floats]) -> Found:
        if len(rows) == 1:
            boxes, scores = rows[0][:, :4], rows[0][:, 4:]
            return self.chosen(as_corners(boxes, "cxcywh"), scores.max(1), scores.argmax(1))
        boxes, logits = _boxes_and_logits(rows)
        scores = 1 / (1 + np.exp(-logits)).ravel()
        queries, classes = np.divmod(np.arange(scores.size), logits.shape[1])
        best = np.argsort(-scores, kind="stable")[: len(boxes)]
        return self.chosen(as_corners(boxes[queries[best]], "cxcywh"), scores[best], classes[best])


@dataclass(frozen=True, kw_only=True, eq=False)
class Detr(Detector):
    """DETR: logits (batch, queries, classes + 1) and boxes (batch, queries, 4) in two outputs, any order.

    The last class is "no object"; scores are the softmax over all. Boxes are those of ``RtDetr``.
    """

    score_threshold: Annotated[float, Between(0, 1)] = 0.5

    @property
    def are_normalized(self) -> bool:
        return True

    def problem(self, shapes: Sequence[Sequence[Any]]) -> str:
        expected = "two outputs, (batch, queries, classes + 1), at least 2, and (batch, queries, 4)"
        return unless(expected, shapes, len(shapes) == 2 and _are_boxes_and_scores(shapes, (3,), least_classes=2))

    def detect(self, rows: list[Floats]) -> Found:
        boxes, logits = _boxes_and_logits(rows)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = (exponentials / exponentials.sum(axis=1, keepdims=True))[:, :-1]
        return self.chosen(as_corners(boxes, "cxcywh"), scores.max(1), scores.argmax(1))


# ---- shapes ----------------------------------------------------------------------------------------------------------


def _has_boxes_first(shapes: Sequence[Sequence[Any]]) -> bool:
    """Say of shapes of two outputs (or of rows) whether the first has the boxes; with four classes, so it is said."""
    first, second = (shape[-1] == 4 and len(shape) == max(map(len, shapes)) for shape in shapes)
    return first or not second


def _are_boxes_and_scores(shapes: Sequence[Sequence[Any]], axis_counts: tuple[int, ...], *, least_classes: int) -> bool:
    for boxes, scores in (shapes, shapes[::-1]):
        are_boxes = len(boxes) == 3 and may_be(boxes[2], 4)
        are_scores = len(scores) in axis_counts and all(is_above(size, least_classes - 1) for size in scores[2:])
        if are_boxes and are_scores and may_be(scores[1], boxes[1]):
            return True
    return False


def _boxes_and_logits(rows: list[Floats]) -> tuple[Floats, Floats]:
    """Return boxes and logits; with four classes, both may be either, and logits come first, as they are exported."""
    return (rows[1], rows[0]) if rows[1].shape[1] == 4 else (rows[0], rows[1])
