"""Forms of data on a GPU, which any step of a Sequential may offer and take in the place of tensors.

A torch tensor gives up the GIL when it is dropped. One for each image of a batch would mean as many chances for another
thread to take it, and to keep it for Python's switch interval: beside a thread that computes, that cost more than
decoding did. See ``Backend.takes_forms``.
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


class Row(NamedTuple):
    """A row of a tensor that was made for a batch."""

    whole: Any
    number: int

    @property
    def tensor(self) -> Any:
        """The row as a tensor of its own, with a batch axis of 1."""
        return self.whole[self.number : self.number + 1]
