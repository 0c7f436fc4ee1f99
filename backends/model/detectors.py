"""Postprocessors of detectors: from what the network gives to boxes in the picture, with scores and classes.

    {"backend": "S[LetterBoxMat,NormalizeMat,OnnxTensor]", "postprocessor": {"name": "YoloV8", "score_threshold": 0.4}}

Each sets, best score first:

* ``result``: the boxes, float32 of shape (boxes, 4): left, top, right, bottom, in pixels; (0, 4) if there are none;
* ``scores``: float32 of shape (boxes,), from 0 to 1;
* ``classes``: int64 of shape (boxes,).

**Pixels of which picture.** Of the one before ``LetterBoxMat``, ``ResizePadMat`` or ``ResizePadTensor``, which leave
``inverse_trans`` in the request; the boxes are cut off at its edges. Without that, ``source_size`` in the request
(height, width; ``DecodeMat`` sets it where ``scale`` is auto) says how large the picture was before it was stretched to
the model's input. Without either, they are pixels of the model's input.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from fastpipe.contract import Between, Request
from fastpipe.errors import KernelError
from fastpipe.summaries import summarize

from ..ranges import numbers_of
from .head import Floats, Head, may_be
from .suppression import SoftMethod, soften, suppress

__all__ = ["Detr", "Nms", "RtDetr", "YoloV5", "YoloV8", "YoloV10"]

Array = npt.NDArray[Any]
Form = Literal["xyxy", "xywh", "cxcywh"]

# What rounding, in half precision too, may add to a probability of 1.
LARGEST_PROBABILITY = 1.01


@dataclass(frozen=True, kw_only=True, eq=False)
class Detector(Head):
    """Base: a network whose outputs are boxes with scores.

    Args:
        score_threshold: only boxes with a higher score count.
        max_detections: the best so many are given.
        min_size: boxes that are not wider and higher than this, in pixels of the picture, are left out before any are
            suppressed or counted: of one pixel or less there is nothing to crop.
    """

    score_threshold: Annotated[float, Between(0, 1)] = 0.25
    max_detections: Annotated[int, Between(1, 1_000_000)] = 300
    min_size: Annotated[float, Between(0, 1_048_576)] = 1.0

    @abstractmethod
    def detect(self, rows: list[Floats]) -> tuple[Array, Array, Array]:
        """Return corners, scores and classes of boxes, in any order, given a request's row of each output."""

    def keep(self, boxes: Array, scores: Array, classes: Array) -> tuple[Array, Array]:
        """Return the indices of the boxes that are given, and their scores, best first; of equal scores, the first."""
        kept = np.argsort(-scores, kind="stable")[: self.max_detections]
        return kept, scores[kept]

    @property
    def are_normalized(self) -> bool:
        """Whether the network's boxes are parts of its input's width and height, from 0 to 1."""
        return False

    def fill(self, request: Request, rows: list[Floats]) -> None:
        corners, scores, classes = self.detect(rows)
        # In float32 before they are measured: what is given must be as large as was asked for.
        boxes = in_picture(corners, request, are_normalized=self.are_normalized).astype(np.float32)
        # Before the limit: what is not given must not take the place of what could be.
        is_large = ((boxes[:, 2:] - boxes[:, :2]) > self.min_size).all(axis=1)
        classes = classes[is_large]
        kept, scores = self.keep(corners[is_large], scores[is_large], classes)
        request["result"] = boxes[is_large][kept]
        request["scores"] = scores.astype(np.float32)
        request["classes"] = classes[kept].astype(np.int64)

    def chosen(self, boxes: Array, form: Form, scores: Array, classes: Array) -> tuple[Array, Array, Array]:
        """Return what has a score above the threshold, and is a box with a class, as left, top, right, bottom.

        Raises:
            KernelError: if a score is no probability.
        """
        is_chosen = (scores > self.score_threshold) & np.isfinite(boxes).all(axis=1) & np.isfinite(classes)
        scores = scores[is_chosen]
        if len(scores) and scores.max() > LARGEST_PROBABILITY:
            raise KernelError(
                f"postprocessor {type(self).__name__}: expected scores from 0 to 1, got {float(scores.max()):g}; are "
                f"the output's axes in another order, or is it without its last sigmoid?"
            )
        return as_corners(boxes[is_chosen].astype(np.float64), form), scores, classes[is_chosen]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Suppressing(Detector):
    """Base: of boxes that overlap, the best has to be chosen.

    Args:
        iou_threshold: what overlaps a better box by more (intersection over union) is suppressed.
        class_agnostic: also boxes of different classes suppress each other.
        soft: ``linear`` or ``gaussian``: lower the scores of what overlaps instead (soft-NMS).
        sigma: of ``gaussian``.
    """

    iou_threshold: Annotated[float, Between(0, 1)] = 0.45
    class_agnostic: bool = False
    soft: SoftMethod | None = None
    sigma: Annotated[float, Between(1e-6, 1e6)] = 0.5

    def keep(self, boxes: Array, scores: Array, classes: Array) -> tuple[Array, Array]:
        groups = None if self.class_agnostic else classes
        if self.soft is None:
            kept = suppress(boxes, scores, groups, iou_threshold=self.iou_threshold, most=self.max_detections)
            return kept, scores[kept]
        return soften(
            boxes,
            scores,
            groups,
            method=self.soft,
            iou_threshold=self.iou_threshold,
            sigma=self.sigma,
            score_threshold=self.score_threshold,
            most=self.max_detections,
        )


class YoloV5(_Suppressing):
    """YOLOv5, v6 and v7: one output (batch, boxes, 5 + classes).

    A box has x and y of its centre, width, height, in pixels of the input, objectness, and a number for each class. Its
    score is the objectness times the number of the best class.
    """

    def problem(self, shapes: Sequence[Sequence[Any]]) -> str:
        expected = "one output of shape (batch, boxes, 5 + classes)"
        return _unless(expected, shapes, len(shapes) == 1 and len(shapes[0]) == 3 and _is_above(shapes[0][2], 5))

    def detect(self, rows: list[Floats]) -> tuple[Array, Array, Array]:
        (row,) = rows
        row = row[row[:, 4] > self.score_threshold]  # a product of two probabilities is no larger than either
        classes = row[:, 5:].argmax(axis=1)
        scores = row[:, 4] * row[np.arange(len(row)), 5 + classes]
        return self.chosen(row[:, :4], "cxcywh", scores, classes)


class YoloV8(_Suppressing):
    """YOLOv8, v9 and v11: one output (batch, 4 + classes, boxes).

    A box has x and y of its centre, width, height, in pixels of the input, and a score for each class.
    """

    def problem(self, shapes: Sequence[Sequence[Any]]) -> str:
        expected = "one output of shape (batch, 4 + classes, boxes)"
        return _unless(expected, shapes, len(shapes) == 1 and len(shapes[0]) == 3 and _is_above(shapes[0][1], 4))

    def detect(self, rows: list[Floats]) -> tuple[Array, Array, Array]:
        (row,) = rows
        row = row[:, (row[4:] > self.score_threshold).any(axis=0)]
        return self.chosen(row[:4].T, "cxcywh", row[4:].max(axis=0), row[4:].argmax(axis=0))


class YoloV10(Detector):
    """YOLOv10, and other YOLO exported with their NMS: one output (batch, boxes, 6): corners, score, class."""

    def problem(self, shapes: Sequence[Sequence[Any]]) -> str:
        expected = "one output of shape (batch, boxes, 6)"
        return _unless(expected, shapes, len(shapes) == 1 and len(shapes[0]) == 3 and may_be(shapes[0][2], 6))

    def detect(self, rows: list[Floats]) -> tuple[Array, Array, Array]:
        (row,) = rows
        return self.chosen(row[:, :4], "xyxy", row[:, 4], row[:, 5])


@dataclass(frozen=True, kw_only=True, eq=False)
class Nms(_Suppressing):
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
        return _unless(expected, shapes, len(shapes) == 2 and _are_boxes_and_scores(shapes, (2, 3), least_classes=1))

    def detect(self, rows: list[Floats]) -> tuple[Array, Array, Array]:
        boxes, scores = rows if _has_boxes_first([row.shape for row in rows]) else rows[::-1]
        if scores.ndim == 1:
            return self.chosen(boxes, self.boxes, scores, np.zeros(len(scores), np.int64))
        if self.background is not None and self.background < scores.shape[1]:
            scores = scores.copy()
            scores[:, self.background] = -np.inf
        return self.chosen(boxes, self.boxes, scores.max(axis=1), scores.argmax(axis=1))


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
        is_one = len(shapes) == 1 and len(shapes[0]) == 3 and _is_above(shapes[0][2], 4)
        is_two = len(shapes) == 2 and _are_boxes_and_scores(shapes, (3,), least_classes=1)
        return _unless(expected, shapes, is_one or is_two)

    def detect(self, rows: list[Floats]) -> tuple[Array, Array, Array]:
        if len(rows) == 1:
            boxes, scores = rows[0][:, :4], rows[0][:, 4:]
            return self.chosen(boxes, "cxcywh", scores.max(1), scores.argmax(1))
        boxes, logits = _boxes_and_logits(rows)
        scores = 1 / (1 + np.exp(-logits)).ravel()
        queries, classes = np.divmod(np.arange(scores.size), logits.shape[1])
        best = np.argsort(-scores, kind="stable")[: len(boxes)]
        return self.chosen(boxes[queries[best]], "cxcywh", scores[best], classes[best])


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
        return _unless(expected, shapes, len(shapes) == 2 and _are_boxes_and_scores(shapes, (3,), least_classes=2))

    def detect(self, rows: list[Floats]) -> tuple[Array, Array, Array]:
        boxes, logits = _boxes_and_logits(rows)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = (exponentials / exponentials.sum(axis=1, keepdims=True))[:, :-1]
        return self.chosen(boxes, "cxcywh", scores.max(1), scores.argmax(1))


# ---- shapes ----------------------------------------------------------------------------------------------------------


def _unless(expected: str, shapes: Sequence[Sequence[Any]], is_right: bool) -> str:
    return "" if is_right else f"expected {expected}, got {', '.join(str(tuple(shape)) for shape in shapes)}"


def _is_above(size: Any, least: int) -> bool:
    return not isinstance(size, int) or size > least


def _has_boxes_first(shapes: Sequence[Sequence[Any]]) -> bool:
    """Say of shapes of two outputs (or of rows) whether the first has the boxes; with four classes, so it is said."""
    first, second = (shape[-1] == 4 and len(shape) == max(map(len, shapes)) for shape in shapes)
    return first or not second


def _are_boxes_and_scores(shapes: Sequence[Sequence[Any]], axis_counts: tuple[int, ...], *, least_classes: int) -> bool:
    for boxes, scores in (shapes, shapes[::-1]):
        are_boxes = len(boxes) == 3 and may_be(boxes[2], 4)
        are_scores = len(scores) in axis_counts and all(_is_above(size, least_classes - 1) for size in scores[2:])
        if are_boxes and are_scores and may_be(scores[1], boxes[1]):
            return True
    return False


def _boxes_and_logits(rows: list[Floats]) -> tuple[Floats, Floats]:
    """Return boxes and logits; with four classes, both may be either, and logits come first, as they are exported."""
    return (rows[1], rows[0]) if rows[1].shape[1] == 4 else (rows[0], rows[1])


# ---- boxes -----------------------------------------------------------------------------------------------------------


def as_corners(boxes: Array, form: Form) -> Array:
    """Return boxes as left, top, right, bottom."""
    if form == "xyxy":
        return boxes
    starts = boxes[:, :2] if form == "xywh" else boxes[:, :2] - boxes[:, 2:] / 2
    return np.concatenate([starts, starts + boxes[:, 2:]], axis=1)


def in_picture(boxes: Array, request: Request, *, are_normalized: bool) -> Array:
    """Return a network's boxes in pixels of the picture, see above; a new array.

    Raises:
        KernelError: if ``inverse_trans`` or ``source_size`` is none, or the size of the input is needed and not known.
    """
    inverse = request.get("inverse_trans")
    given = getattr(inverse, "source_size", None)
    size = _size(request.get("source_size") if given is None else given)
    if are_normalized or (inverse is None and size is not None):
        height, width = _input_size(request)
        if are_normalized:
            boxes = boxes * (width, height, width, height)
        if inverse is None:
            size = size or (height, width)
            boxes = boxes * ((size[1] / width, size[0] / height) * 2)
    if inverse is not None:
        if not callable(inverse):
            raise KernelError(f"inverse_trans must be callable with x and y, got {summarize(inverse)}")
        x, y = inverse(boxes[:, 0::2], boxes[:, 1::2])
        boxes = np.stack([x, y], axis=2).reshape(len(boxes), 4)
    if size is None:
        return boxes
    return boxes.clip(0, (size[1], size[0], size[1], size[0]))


def _size(given: Any) -> tuple[float, float] | None:
    if given is None:
        return None
    numbers = numbers_of(given, np.float64)
    if numbers is None or numbers.shape != (2,) or not ((numbers > 0) & np.isfinite(numbers)).all():
        raise KernelError(f"source_size must be height and width of the picture, got {summarize(given)}")
    return float(numbers[0]), float(numbers[1])


def _input_size(request: Request) -> tuple[int, int]:
    """Return height and width of the image that the model was given: its last axes, or those before the channels."""
    data = request["data"]
    if isinstance(data, tuple) and hasattr(data, "tensor"):  # a Row, which steps on a GPU hand on
        data = data.tensor
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
