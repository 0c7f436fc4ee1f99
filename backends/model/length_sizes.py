"""How long an output is for a request of some length: the same, or as strides, windows and upsampling make it.

A convolution or a pooling with a stride gives ``(length + a) // b``, and so do several of them one behind the other; an
upsampling gives ``m * length + a``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["LENGTHS_TO_FIT", "Cut", "fitting"]

_LARGEST_STRIDE = 16
LENGTHS_TO_FIT = 2 * _LARGEST_STRIDE + 1
"""So many lengths in a row tell every such rule from all others."""


class Cut(NamedTuple):
    """An axis of an output that depends on the length of the request."""

    axis: int  # with the batch
    multiply: int = 1
    add: int = 0
    divide: int = 1

    def size(self, length: int) -> int:
        """Return how long the output is for a request of that length."""
        return max(0, (self.multiply * length + self.add) // self.divide)


def fitting(axis: int, lengths: Sequence[int], sizes: Sequence[int]) -> Cut | None:
    """Return the only rule by which these lengths give these sizes; None: there is none, or there are several."""
    span = max(lengths) - min(lengths)
    growth = sizes[lengths.index(max(lengths))] - sizes[lengths.index(min(lengths))]
    found = []
    if span and growth > 0 and growth % span == 0:
        found.append(Cut(axis, growth // span, sizes[0] - growth // span * lengths[0]))
    for stride in range(2, _LARGEST_STRIDE + 1):
        offsets = [stride * size - length for length, size in zip(lengths, sizes, strict=True)]
        # The same number is added for all of them: from the greatest offset to the least plus what floors away.
        found += [Cut(axis, 1, add, stride) for add in range(max(offsets), min(offsets) + stride)]
    right = [cut for cut in found if all(cut.size(each) == size for each, size in zip(lengths, sizes, strict=True))]
    return right[0] if len(right) == 1 else None
