"""Decoded images on their way from one step of a Sequential to the next: numbers, where tensors would cost too much.

A torch tensor gives up the GIL when it is dropped. One for each image of a batch would mean as many chances for another
thread to take it, and to keep it for Python's switch interval: beside a thread that computes, that cost more than
decoding did. So a step whose results only the next step sees may hand over ``Pixels``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastpipe.kernels import cuda

__all__ = ["Pixels"]


class Pixels(NamedTuple):
    """An image on a GPU, uint8 in rows of (width, 3), that nobody but the next step sees."""

    row: tuple[int, ...]
    """What ``fastpipe.kernels.cuda`` wants to know of it: a row of ``IMAGE``."""
    color: cuda.Color
    memory: Any
    """A tensor that keeps its memory, and that of its neighbours."""
    data: Any
    """What the request had as ``data`` before; the step that takes the pixels puts it back."""
