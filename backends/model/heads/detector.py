"""Base of the detectors' postprocessors: from what the network gives to boxes in the picture, with scores and classes.

    {"backend": "S[LetterBoxMat,NormalizeMat,OnnxTensor]", "postprocessor": {"name": "YoloV8", "score_threshold": 0.4}}

Each sets, best score first:

* ``result``: the boxes, float32 of shape (boxes, 4): left, top, right, bottom, in pixels; (0, 4) if there are none;
* ``scores``: float32 of shape (boxes,), from 0 to 1;
* ``classes``: int64 of shape (boxes,).

``rotated_boxes``, ``instance_masks`` and ``key_points`` have what some models tell of a box beside these.

**Pixels of which picture.** Of the one before ``LetterBoxMat``, ``ResizePadMat`` or ``ResizePadTensor``, which leave
``inverse_trans`` in the request; the boxes are cut off at its edges. Without that, ``source_size`` in the request
(height, width; ``DecodeMat`` sets it where ``scale`` is auto) says how large the picture was before it was stretched to
the model's input. Without either, they are pixels of the model's input.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastpipe.contract import Between, Request
from fastpipe.errors import KernelError

from .boxes import Placement, placement_of
from .head import Floats, Head
from .suppression import SoftMethod, overlaps, soften, suppress

__all__ = ["Detector", "Found", "Suppressing", "is_above", "unless"]

Array = npt.NDArray[Any]

# What rounding, in half precision too, may add to a probability of 1.
LARGEST_PROBABILITY = 1.01


class Found(NamedTuple):
    """What a network has found: n boxes, in any order."""

    boxes: Array
    """Float64, (n, 4): left, top, right, bottom, as the network has them."""
    scores: Array
    classes: Array
    extras: Array
    """Numbers of each box that say more, (n, any)."""


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
    def detect(self, rows: list[Floats]) -> Found:
        """Return what is found, given a request's row of each output."""

    def keep(self, boxes: Array, scores: Array, classes: Array) -> tuple[Array, Array]:
        """Return the indices of the boxes that are given, and their scores, best first; of equal scores, the first."""
        kept = np.argsort(-scores, kind="stable")[: self.max_detections]
        return kept, scores[kept]

    @property
    def are_normalized(self) -> bool:
        """Whether the network's boxes are parts of its input's width and height, from 0 to 1."""
        return False

    def placed(self, boxes: Array, placement: Placement) -> tuple[Array, Array]:
        """Return boxes in the picture, as they are given, and the width and height by which they are measured."""
        # In float32 before they are measured: what is given must be as large as was asked for.
        placed = placement.boxes(boxes).astype(np.float32)
        return placed, placed[:, 2:] - placed[:, :2]

    def further(
        self, request: Request, rows: list[Floats], placement: Placement, boxes: Array, extras: Array
    ) -> dict[str, Any]:
        """Return what else is set in the request, given the boxes of its result, and the extras of each."""
        return {}

    def fill(self, request: Request, rows: list[Floats]) -> None:
        found = self.detect(rows)
        placement = placement_of(request, are_normalized=self.are_normalized)
        boxes, sizes = self.placed(found.boxes, placement)
        # Before the limit: what is not given must not take the place of what could be.
        is_large = (sizes > self.min_size).all(axis=1)
        classes = found.classes[is_large]
        kept, scores = self.keep(found.boxes[is_large], found.scores[is_large], classes)
        boxes = boxes[is_large][kept]
        further = self.further(request, rows, placement, boxes, found.extras[is_large][kept])
        request["result"] = boxes
        request["scores"] = scores.astype(np.float32)
        request["classes"] = classes[kept].astype(np.int64)
        request.update(further)

    def chosen(self, boxes: Array, scores: Array, classes: Array, extras: Array | None = None) -> Found:
        """Return what has a score above the threshold, and whose numbers are all finite.

        Raises:
            KernelError: if a score is no probability.
        """
        is_chosen = (scores > self.score_threshold) & np.isfinite(boxes).all(axis=1) & np.isfinite(classes)
        if extras is None:
            extras = np.empty((len(scores), 0))
        else:
            is_chosen &= np.isfinite(extras).all(axis=1)
        scores = scores[is_chosen]
        if len(scores) and scores.max() > LARGEST_PROBABILITY:
            raise KernelError(
                f"postprocessor {type(self).__name__}: expected scores from 0 to 1, got {float(scores.max()):g}; are "
                f"the output's axes in another order, or is it without its last sigmoid?"
            )
        return Found(boxes[is_chosen].astype(np.float64), scores, classes[is_chosen], extras[is_chosen])


@dataclass(frozen=True, kw_only=True, eq=False)
class Suppressing(Detector):
    """Base: of boxes that overlap, the best has to be chosen.

    Args:
        iou_threshold: what overlaps a better box by more (intersection over union) is suppressed.
        class_agnostic: also boxes of different classes suppress each other.
        soft: ``linear`` or ``gaussian``: lower the scores of what overlaps instead (soft-NMS).
        sigma: of ``gaussian``.
        max_candidates: only the best so many are looked at, which bounds the time that a picture can take.
    """

    iou_threshold: Annotated[float, Between(0, 1)] = 0.45
    class_agnostic: bool = False
    soft: SoftMethod | None = None
    sigma: Annotated[float, Between(1e-6, 1e6)] = 0.5
    max_candidates: Annotated[int, Between(1, 1_000_000)] = 30_000

    def overlaps(self, box: Array, boxes: Array) -> Array:
        """Return the intersection over union of one box with each of the others."""
        return overlaps(box, boxes)

    def keep(self, boxes: Array, scores: Array, classes: Array) -> tuple[Array, Array]:
        if len(scores) <= self.max_candidates:
            return self._keep(boxes, scores, classes)
        best = np.argsort(-scores, kind="stable")[: self.max_candidates]
        kept, new_scores = self._keep(boxes[best], scores[best], classes[best])
        return best[kept], new_scores

    def _keep(self, boxes: Array, scores: Array, classes: Array) -> tuple[Array, Array]:
        groups = None if self.class_agnostic else classes
        if self.soft is None:
            kept = suppress(
                boxes,
                scores,
                groups,
                iou_threshold=self.iou_threshold,
                most=self.max_detections,
                overlaps=self.overlaps,
            )
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
            overlaps=self.overlaps,
        )


def unless(expected: str, shapes: Sequence[Sequence[Any]], is_right: bool) -> str:
    """Return the words for outputs of other shapes than expected; nothing if they are right."""
    return "" if is_right else f"expected {expected}, got {', '.join(str(tuple(shape)) for shape in shapes)}"


def is_above(size: Any, least: int) -> bool:
    """Say whether a size of a shape is above a number, or may be."""
    return not isinstance(size, int) or size > least
