"""Postprocessors of detectors that tell which pixels of a box belong to what is in it: instance segmentation.

Beside what ``detector`` says, each sets ``masks``: a list with a bool array for each box, True where a pixel belongs to
it. It has the height and width of what ``CropMat`` cuts out of the picture at that box, and lies on that.

The network gives a few prototypes, (prototypes, height, width), smaller than its input, and for each box a factor for
each of them. Their sum is a logit for each pixel of the prototypes. That is interpolated where the pixels of the
picture are (bilinear; centres are where OpenCV and torch's ``align_corners=False`` have them), and compared with the
threshold. Only what lies under a box is ever made, a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from fastpipe.contract import Between, Request
from fastpipe.errors import KernelError

from ...image.requests import LARGEST_SIDE
from ...ranges import MOST_PIXELS, MaxPixels, box_of
from .boxes import Placement, as_corners, input_size
from .detector import Found, Suppressing, unless
from .head import Floats

__all__ = ["YoloV5Seg", "YoloV8Seg"]

Array = npt.NDArray[Any]

# Of a mask, so many pixels are interpolated at a time: a megabyte of float32, whatever the size of the picture.
PIXELS_AT_A_TIME = 1 << 18


@dataclass(frozen=True, kw_only=True, eq=False)
class _Masked(Suppressing):
    """Base: of the two outputs, the one of four axes has the prototypes.

    Args:
        mask_threshold: a pixel belongs to what is in its box if its probability is higher.
        max_pixels: of all masks of a request together, a byte each; a request that needs more fails.
    """

    mask_threshold: Annotated[float, Between(0, 1)] = 0.5
    max_pixels: MaxPixels = MOST_PIXELS

    def split(self, rows: list[Floats]) -> tuple[Floats, Floats]:
        """Return the row that has the boxes, and the prototypes."""
        return (rows[0], rows[1]) if rows[1].ndim == 3 else (rows[1], rows[0])

    def problem_of(self, expected: str, shapes: Sequence[Sequence[Any]], axis: int, least: int) -> str:
        """Return what is wrong with shapes, if along an axis boxes have more than ``least`` numbers beside factors."""
        is_right = len(shapes) == 2 and sorted(map(len, shapes)) == [3, 4]
        if is_right:
            boxes, prototypes = sorted(shapes, key=len)
            known = [size for size in (boxes[axis], prototypes[1]) if isinstance(size, int)]
            is_right = 0 not in prototypes[1:] and (len(known) < 2 or known[0] > least + known[1])
        return unless(f"two outputs, {expected} and (batch, factors, height, width)", shapes, is_right)

    def further(
        self, request: Request, rows: list[Floats], placement: Placement, boxes: Array, extras: Array
    ) -> dict[str, Any]:
        if not len(boxes):
            return {"masks": []}
        spans = [_span(box) for box in boxes]
        total = sum((y.stop - y.start) * (x.stop - x.start) for y, x in spans)  # more than len() can say, perhaps
        if total > self.max_pixels:
            raise KernelError(
                f"postprocessor {type(self).__name__}: expected masks of at most max_pixels = {self.max_pixels} "
                f"together, got {len(boxes)} of {total} pixels; a larger max_pixels allows them"
            )
        longest = max(span.stop - span.start for both in spans for span in both)
        if longest > LARGEST_SIDE:  # a few numbers for each row and column are kept while a mask is made
            raise KernelError(
                f"postprocessor {type(self).__name__}: expected boxes of at most {LARGEST_SIDE} pixels a side, for the "
                f"masks, got one of {longest}"
            )
        _, prototypes = self.split(rows)
        height, width = input_size(request)
        (scale_x, first_x), (scale_y, first_y) = _axes(placement, height, width)
        per_y, per_x = prototypes.shape[1] / height / scale_y, prototypes.shape[2] / width / scale_x
        limit = np.log(self.mask_threshold) - np.log1p(-self.mask_threshold)  # the threshold's logit
        masks = []
        for factors, (y, x) in zip(extras.astype(np.float32), spans, strict=True):
            # Where the centres of the picture's pixels are among those of the prototypes.
            at_y = (np.arange(y.start, y.stop) + 0.5 - first_y) * per_y - 0.5
            at_x = (np.arange(x.start, x.stop) + 0.5 - first_x) * per_x - 0.5
            masks.append(self._mask(factors, prototypes, at_y, at_x, limit))
        return {"masks": masks}

    def _mask(self, factors: Array, prototypes: Array, at_y: Array, at_x: Array, limit: float) -> Array:
        """Return the mask at the crossings of positions on the two axes of the prototypes; beyond them, their edge."""
        mask = np.zeros((len(at_y), len(at_x)), bool)
        if not mask.size:
            return mask
        at_y, at_x = at_y.clip(0, prototypes.shape[1] - 1), at_x.clip(0, prototypes.shape[2] - 1)
        top, left = int(at_y[0]), int(at_x[0])
        part = prototypes[:, top : int(at_y[-1]) + 2, left : int(at_x[-1]) + 2]
        logits = np.tensordot(factors, part, 1)
        if not np.isfinite(logits).all():
            raise KernelError(
                f"postprocessor {type(self).__name__}: expected finite prototypes, got others; has the model "
                "overflowed in half precision?"
            )
        upper, lower, weights = _taps(at_y - top, len(logits))
        first, second, across = _taps(at_x - left, logits.shape[1])
        rows_at_a_time = max(1, PIXELS_AT_A_TIME // len(at_x))
        for start in range(0, len(at_y), rows_at_a_time):
            rows = slice(start, start + rows_at_a_time)
            down = weights[rows, np.newaxis]
            lines = logits[upper[rows]] * (1 - down) + logits[lower[rows]] * down
            mask[rows] = lines[:, first] * (1 - across) + lines[:, second] * across > limit
        return mask


class YoloV8Seg(_Masked):
    """YOLOv8, v9 and v11 for segmentation: (batch, 4 + classes + factors, boxes) and (batch, factors, height, width).

    The first as of ``YoloV8``, with a factor for each prototype behind the classes; the second has the prototypes.
    """

    def problem(self, shapes: Sequence[Sequence[Any]]) -> str:
        return self.problem_of("(batch, 4 + classes + factors, boxes)", shapes, 1, 4)

    def detect(self, rows: list[Floats]) -> Found:
        row, prototypes = self.split(rows)
        end = len(row) - len(prototypes)
        row = row[:, (row[4:end] > self.score_threshold).any(axis=0)]
        scores = row[4:end]
        return self.chosen(as_corners(row[:4].T, "cxcywh"), scores.max(axis=0), scores.argmax(axis=0), row[end:].T)


class YoloV5Seg(_Masked):
    """YOLOv5 and v7 for segmentation: (batch, boxes, 5 + classes + factors) and (batch, factors, height, width).

    The first as of ``YoloV5``, with a factor for each prototype behind the classes; the second has the prototypes.
    """

    def problem(self, shapes: Sequence[Sequence[Any]]) -> str:
        return self.problem_of("(batch, boxes, 5 + classes + factors)", shapes, 2, 5)

    def detect(self, rows: list[Floats]) -> Found:
        row, prototypes = self.split(rows)
        end = row.shape[1] - len(prototypes)
        row = row[row[:, 4] > self.score_threshold]  # a product of two probabilities is no larger than either
        classes = row[:, 5:end].argmax(axis=1)
        scores = row[:, 4] * row[np.arange(len(row)), 5 + classes]
        return self.chosen(as_corners(row[:, :4], "cxcywh"), scores, classes, row[:, end:])


def _span(box: Array) -> tuple[range, range]:
    """Return the rows and columns of the picture that ``CropMat`` takes at a box."""
    left, top, right, bottom = box_of(box.tolist()) or (0, 0, 0, 0)
    return range(top, bottom), range(left, right)


def _axes(placement: Placement, height: int, width: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return, for x and for y, how many pixels of the picture one of the input is, and where the input begins.

    Raises:
        KernelError: if the picture was not only resized, cut and padded: an ``inverse_trans`` of somebody's own may
            turn.
    """
    corners_x, corners_y = np.array([0.0, width, 0.0, width]), np.array([0.0, 0.0, height, height])
    x, y = (np.asarray(given, np.float64) for given in placement.points(corners_x, corners_y))
    scale_x, scale_y = (x[1] - x[0]) / width, (y[2] - y[0]) / height
    straight = np.stack([x[0] + corners_x * scale_x, y[0] + corners_y * scale_y])
    if not (scale_x > 0 and scale_y > 0) or not np.allclose(straight, (x, y), rtol=1e-6, atol=1e-3):
        raise KernelError(
            "expected an inverse_trans that resizes and moves, for the masks, got one that turns or bends"
        )
    return (float(scale_x), float(x[0])), (float(scale_y), float(y[0]))


def _taps(positions: Array, length: int) -> tuple[Array, Array, Array]:
    """Return the two neighbours of each position on an axis, and the weight of the second."""
    first = positions.astype(np.int64)
    return first, np.minimum(first + 1, length - 1), (positions - first).astype(np.float32)
