"""The model that every server serves: it sleeps, and tells what it was called with.

A request is a whole number: how many milliseconds it takes, times ``SCALE``, plus a number to know it by. ``BAD`` makes
the whole call raise. An answer is ``[number, size of its batch, process]``. Where it is measured, every call costs
``BATCH_US`` and ``ITEM_US`` for each request besides.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Sequence
from pathlib import Path

SCALE = 10_000
BAD = 13
REFUSED = 14
"""Refused by the service's own code, in the way that its library has for it; never given to ``run``."""
CRASHES = 15
"""Ends the model's process, as a mistake in native code does."""

MAX_BATCH = int(os.environ.get("COMPARISON_MAX_BATCH", "8"))
WAIT_MS = int(os.environ.get("COMPARISON_WAIT_MS", "300"))
INSTANCES = int(os.environ.get("COMPARISON_INSTANCES", "1"))
WORKERS = int(os.environ.get("COMPARISON_WORKERS", "1"))
"""Processes, where a library has both."""
TIMEOUT_MS = int(os.environ.get("COMPARISON_TIMEOUT_MS", "0"))
ROOM = int(os.environ.get("COMPARISON_ROOM", "0"))
BATCH_US = int(os.environ.get("COMPARISON_BATCH_US", "0"))
ITEM_US = int(os.environ.get("COMPARISON_ITEM_US", "0"))


def run(numbers: Sequence[int]) -> list[list[int]]:
    """Run a batch."""
    path = os.environ.get("COMPARISON_LOG")
    if path:
        with Path(path).open("a") as log:
            log.write(" ".join(map(str, numbers)) + "\n")
    time.sleep(max(number // SCALE for number in numbers) / 1e3 + (BATCH_US + ITEM_US * len(numbers)) / 1e6)
    if CRASHES in numbers:
        ctypes.string_at(0)
    if BAD in numbers:
        raise ValueError("13 is a bad number")
    return [[number, len(numbers), os.getpid()] for number in numbers]
