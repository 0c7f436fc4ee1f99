"""What does a batch pay for being able to run again: the copies that are made of its values before it runs?

python bench/snapshots.py                a table
python bench/snapshots.py --quick        fewer repetitions
python bench/snapshots.py --json         one JSON object

Each row is 64 requests, as a batch of a backend that does not say ``keeps_input``. Where it does, only the dicts are
copied: the last row. It does not show what the memory costs that is held meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastpipe.snapshots import take

COUNT = 64
CASES: dict[str, Callable[[], Any]] = {
    "bytes of 100 kB": lambda: bytes(100_000),
    "images of 224 x 224 x 3": lambda: np.zeros((224, 224, 3), np.uint8),
    "images of 640 x 640 x 3": lambda: np.zeros((640, 640, 3), np.uint8),
    "float32 of 3 x 224 x 224": lambda: np.zeros((3, 224, 224), np.float32),
    "lists of 1000 numbers": lambda: [float(number) for number in range(1000)],
}


def median_us(action: Callable[[], Any], repetitions: int) -> float:
    """Return the median duration of ``action``, in microseconds."""
    durations = []
    for _ in range(repetitions):
        started = time.perf_counter()
        action()
        durations.append(time.perf_counter() - started)
    return statistics.median(durations) * 1e6


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    repetitions = 20 if arguments.quick else 300
    found = {}
    for name, make in CASES.items():
        batch = [{"data": make(), "id": number} for number in range(COUNT)]
        found[name] = median_us(lambda batch=batch: take(batch), repetitions)  # type: ignore[misc]
    images = [np.ones((224, 224, 3), np.uint8) for _ in range(COUNT)]
    found["(64 plain copies of 224s)"] = median_us(lambda: [image.copy() for image in images], repetitions)
    found["any, with keeps_input"] = median_us(lambda: [request.copy() for request in batch], repetitions)
    if arguments.json:
        print(json.dumps({name: round(microseconds, 1) for name, microseconds in found.items()}))
        return
    print(f"{'64 requests with':28}{'us a batch':>12}{'us a request':>14}")
    for name, microseconds in found.items():
        print(f"{name:28}{microseconds:12.0f}{microseconds / COUNT:14.2f}")


if __name__ == "__main__":
    main()
