"""Which shapes a model is tried with, where nobody says how large its inputs are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from .shapes import InputSpec, Profile

__all__ = ["items_to_try"]

# What is tried for axes without a largest size: most networks take the first, sequences the second.
_GUESSES = (64, 8, 224, 3, 1)
_LARGEST_GUESS = 1 << 22  # numbers in an item


def items_to_try(profile: Profile, specs: Sequence[InputSpec]) -> Iterator[list[tuple[int, ...]]]:
    """Yield the shapes of each input's item: the largest, or guesses for the axes that have no largest size."""
    items = profile.largest_items()
    if items is not None:
        yield items
        return
    for guess in _GUESSES:
        items = [
            tuple(
                high if high is not None else _within(guess, low, spec, axis) for axis, (low, high) in enumerate(limits)
            )
            for limits, spec in zip(profile.limits, specs, strict=True)
        ]
        if all(math.prod(item) <= _LARGEST_GUESS for item in items):
            yield items


def _within(guess: int, least: int, spec: InputSpec, axis: int) -> int:
    """Return the nearest size that an axis of an item may have, as far as the model says."""
    low, high = spec.ranges[axis + 1] if spec.ranges else (least, None)
    size = max(guess, least, low)
    return size if high is None else min(size, high)
