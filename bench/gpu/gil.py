"""How often does a batch on the GPU take the GIL back, and how often do its results when they are dropped?

    python bench/gpu/gil.py [--images FOLDER]

A list of 64 JPEGs goes through ``S[DecodeTensor,ResizeNormalizeTensor,SyncTensor]`` beside a thread that computes, with
a switch interval so long that what a call lasts is the number of times that it had to wait for one. It counts the
waits, not the times: what takes the GIL back before the other thread is awake does not wait. The numbers vary by a few.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import callers
from common import BusyThread

INTERVAL_S = 0.05
COUNT = 64


def waits(work: Callable[[], Any]) -> float:
    """Return for how many switch intervals something waits."""
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(INTERVAL_S)
    try:
        with BusyThread():
            start_s = time.perf_counter()
            work()
            return (time.perf_counter() - start_s) / INTERVAL_S
    finally:
        sys.setswitchinterval(usual_s)


def count(pipe: Any, data: bytes) -> tuple[float, float]:
    """Return the waits of a list, and of dropping it with its results."""
    for _ in range(3):
        pipe([{"data": data} for _ in range(COUNT)])
    requests = [{"data": data} for _ in range(COUNT)]
    return waits(lambda: pipe(requests)), waits(requests.clear)


def main() -> None:
    """Count and print."""
    import decode

    arguments = callers.arguments_of(__doc__)
    arguments.instances = 1
    data = next(iter(decode.images(arguments.images).values()))
    for array in ("torch", "cupy"):
        with decode.new_pipe(arguments, array=array) as pipe:
            called, dropped = count(pipe, data)
        print(f"results of {array:6} {called:5.1f} waits in the call, {dropped:5.1f} when the results are dropped")


if __name__ == "__main__":
    main()
