"""What one step of a Sequential hands to the next in the place of tensors, where nobody else sees it.

A torch tensor gives up the GIL when it is dropped. One for each image of a batch would mean as many chances for another
thread to take it, and to keep it for Python's switch interval: beside a thread that computes, that cost more than
decoding did. See ``Backend.feed``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastpipe.kernels import cuda

__all__ = ["Pixels", "Row"]


class Pixels(NamedTuple):
    """A decoded image on a GPU: uint8, in rows of (width, 3)."""

    row: tuple[int, ...]
    """What ``fastpipe.kernels.cuda`` wants to know of it: a row of ``IMAGE``."""
    color: cuda.Color
    memory: Any
    """What keeps its memory, and that of its neighbours."""
    data: Any
    """What the request had as ``data`` before; the step that takes the pixels puts it back, whatever happens there."""


class Row(NamedTuple):
    """A row of a tensor that was made for a batch."""

    whole: Any
    number: int
    data: Any
    """As of ``Pixels``."""

    @property
    def tensor(self) -> Any:
        """The row as a tensor of its own, with a batch axis of 1."""
        return self.whole[self.number : self.number + 1]
