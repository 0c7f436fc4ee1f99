"""Non-maximum suppression: of boxes that overlap, the one with the best score stays.

Boxes are float64, (n, 4): left, top, right, bottom. ``classes`` are n numbers: boxes of different classes do not
suppress each other; None: they do. The results are what OpenCV's ``NMSBoxes``, ``NMSBoxesBatched`` and ``softNMSBoxes``
give, in NumPy alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["Overlaps", "SoftMethod", "overlaps", "soften", "suppress"]

Array = npt.NDArray[Any]
SoftMethod = Literal["linear", "gaussian"]
Overlaps = Callable[[Array, Array], Array]  # of one box with each of the others


def overlaps(box: Array, boxes: Array) -> Array:
    """Return the intersection over union of one box with each of the others; 0 where both are empty."""
    left, top, right, bottom = boxes.T
    widths = np.minimum(box[2], right) - np.maximum(box[0], left)
    heights = np.minimum(box[3], bottom) - np.maximum(box[1], top)
    common = np.maximum(widths, 0) * np.maximum(heights, 0)
    own = max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
    union = own + np.maximum(right - left, 0) * np.maximum(bottom - top, 0) - common
    found: Array = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return found


def suppress(
    boxes: Array,
    scores: Array,
    classes: Array | None,
    *,
    iou_threshold: float,
    most: int,
    overlaps: Overlaps = overlaps,
) -> Array:
    """Return the indices of the boxes that stay, best score first; of equal scores, the first.

    Args:
        boxes: see above.
        scores: a number for each box.
        classes: see above.
        iou_threshold: what overlaps a better one by more is suppressed.
        most: so many stay at most.
        overlaps: what says by how much boxes overlap, where they are of another form.
    """
    remaining = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(remaining) and len(kept) < most:
        best, rest = remaining[0], remaining[1:]
        kept.append(int(best))
        is_suppressed = _rivals(best, rest, classes)  # only of those, overlaps are computed: they may be costly
        is_suppressed[is_suppressed] = overlaps(boxes[best], boxes[rest[is_suppressed]]) > iou_threshold
        remaining = rest[~is_suppressed]
    return np.array(kept, np.int64)


def soften(
    boxes: Array,
    scores: Array,
    classes: Array | None,
    *,
    method: SoftMethod,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    most: int,
    overlaps: Overlaps = overlaps,
) -> tuple[Array, Array]:
    """Return the indices of the boxes that stay, and their new scores, best first: soft-NMS (Bodla et al., 2017).

    A box that overlaps a better one is not dropped: its score becomes lower, with each such box again.

    Args:
        boxes: see above.
        scores: a number for each box.
        classes: see above.
        method: ``linear``: times 1 - overlap, if that is above ``iou_threshold``; ``gaussian``: times
            exp(-overlap * overlap / sigma).
        iou_threshold: see ``method``.
        sigma: see ``method``.
        score_threshold: boxes whose score is not above it any more are dropped.
        most: so many stay at most.
        overlaps: see ``suppress``.
    """
    current = scores.astype(np.float64)
    remaining = np.arange(len(current))
    kept: list[int] = []
    while len(kept) < most:
        remaining = remaining[current[remaining] > score_threshold]
        if not len(remaining):
            break
        place = int(current[remaining].argmax())
        best = int(remaining[place])
        kept.append(best)
        remaining = np.delete(remaining, place)
        rivals = remaining[_rivals(best, remaining, classes)]
        overlap = overlaps(boxes[best], boxes[rivals])
        if method == "linear":
            factors = np.where(overlap > iou_threshold, 1 - overlap, 1.0)
        else:
            factors = np.exp(-overlap * overlap / sigma)
        current[rivals] *= factors
    indices = np.array(kept, np.int64)
    return indices, current[indices]


def _rivals(best: int, others: Array, classes: Array | None) -> Array:
    """Return which of the others a box may suppress."""
    return np.ones(len(others), bool) if classes is None else classes[others] == classes[best]
