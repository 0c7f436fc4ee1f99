"""What the nodes of the cases do, and what would be ideal: how long a batch takes, and requests/s without a pause."""

from __future__ import annotations

import threading
import time

__all__ = [
    "INSTANCES",
    "LARGEST_BATCH",
    "batch_cost_s",
    "ideal_of_batches",
    "ideal_of_device",
    "ideal_of_instances",
    "sleep_3_ms",
    "sleep_5_ms",
    "sleep_by_size",
    "sleep_by_size_on_one_device",
]

LARGEST_BATCH = 8
INSTANCES = 2

_device = threading.Lock()


def sleep_5_ms(_: int) -> None:
    """Wait as long as a small model would compute, with the GIL released."""
    time.sleep(0.005)


def sleep_3_ms(_: int) -> None:
    """Wait as long as a model on a GPU would compute, whatever the size of the batch."""
    time.sleep(0.003)


def ideal_of_batches(instances: int, _: int) -> float:
    """Return requests/s of full batches of 64 that follow each other without a pause."""
    return instances * 64 / 0.003


def batch_cost_s(size: float) -> float:
    """Return what a batch costs in the cases with a load: 2 ms, and 0.25 ms for each request."""
    return 0.002 + 0.00025 * size


def sleep_by_size(size: int) -> None:
    """Wait as long as a model would compute that likes batches."""
    time.sleep(batch_cost_s(size))


def sleep_by_size_on_one_device(size: int) -> None:
    """The same if the instances share one device, which does one thing at a time."""
    with _device:
        time.sleep(batch_cost_s(size))


def ideal_of_instances(clients: int) -> float:
    """Return requests/s if every batch were as full as the clients allow, and every instance always busy."""
    instances = min(INSTANCES, clients)
    size = min(LARGEST_BATCH, clients / instances)
    return instances * size / batch_cost_s(size)


def ideal_of_device(_: int) -> float:
    """Return requests/s of one instance with full batches."""
    return LARGEST_BATCH / batch_cost_s(LARGEST_BATCH)
