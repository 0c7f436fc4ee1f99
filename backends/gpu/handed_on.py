"""Forms of data on a GPU, which any step of a Sequential may offer and take in the place of tensors.

A torch tensor gives up the GIL when it is dropped. One for each image of a batch would mean as many chances for another
thread to take it, and to keep it for Python's switch interval: beside a thread that computes, that cost more than
decoding did. See ``Backend.takes_forms``. Both are made, and read, in C: see ``fastpipe.kernels._images``.
"""

from __future__ import annotations

from fastpipe.kernels._images import Pixels, Row

__all__ = ["Pixels", "Row"]
