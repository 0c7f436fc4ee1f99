"""How it is measured: clients in a closed loop, windows that take turns, medians and their spread.

One *window* is a warm-up and a measured stretch of one contestant under one load. Windows of the contestants take
turns (A B C, B C A, ...), so that a machine that gets slower or faster in the meantime does so for all of them.
"""

from __future__ import annotations

import os
import resource
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

__all__ = ["BatchCounter", "BusyThread", "Numbers", "Spread", "Window", "WrongAnswer", "closed_loop", "rss_bytes"]

Numbers = dict[str, float]
"""What one window has shown; the unit is in each key's name."""

# A client that has not come back this long after the window is stuck.
CLIENT_ENDS_WITHIN_S = 30.0


class WrongAnswer(Exception):
    """A contestant returned something else than it was asked for; its speed is of no interest."""


@dataclass(frozen=True)
class Window:
    """How long a load is applied before and while it is measured."""

    warm_up_s: float
    measured_s: float


@dataclass(frozen=True)
class Spread:
    """One figure over all windows."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summarise at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    @classmethod
    def of_ratio(cls, values: Sequence[float], others: Sequence[float]) -> Self:
        """Return the ratio of the medians, with the least and greatest ratio of windows that stood side by side."""
        ratios = [value / other for value, other in zip(values, others, strict=True)]
        return cls(statistics.median(values) / statistics.median(others), min(ratios), max(ratios))


class BatchCounter:
    """How many requests each batch had. Any thread may add: ``list.append`` is atomic."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def add(self, size: int) -> None:
        """Count one batch."""
        self.sizes.append(size)

    def clear(self) -> None:
        """Forget what was counted."""
        self.sizes = []

    def mean(self) -> float:
        """Return the mean batch, 0 if there was none."""
        return statistics.fmean(self.sizes) if self.sizes else 0.0


class BusyThread:
    """A thread that runs pure Python all the time, as a service's own code might: everybody else waits for the GIL."""

    def __enter__(self) -> Self:
        self._is_wanted = True
        self._thread = threading.Thread(target=self._run, name="busy", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_wanted = False
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while self._is_wanted:
            number = (number * 1103515245 + 12345) % 2147483648


def cpu_seconds() -> float:
    """Return the CPU time of this process so far, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def rss_bytes() -> int:
    """Return how much memory of this process is resident."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def closed_loop(
    client: Callable[[int], Callable[[], object]], clients: int, window: Window, batches: BatchCounter | None = None
) -> Numbers:
    """Let client threads call as fast as they get answers, and say how fast that was.

    Args:
        client: called once in each thread, with the thread's number; returns what the thread then calls in a loop.
        clients: how many threads.
        window: how long.
        batches: what the contestant counts its batches with; cleared when measuring begins.

    Returns:
        requests_per_s, p50_us, p99_us, max_us (of one call, in its own thread), cpu_us (of the process, for each
        request), and mean_batch if batches are counted.

    Raises:
        Exception: what the first call that failed has raised.
        TimeoutError: if a client did not come back.
    """
    now_ns = time.perf_counter_ns
    is_warming_up = is_measuring = True
    latencies_ns: list[list[int]] = [[] for _ in range(clients)]
    errors: list[BaseException] = []
    barrier = threading.Barrier(clients + 1)

    def loop(number: int) -> None:
        record = latencies_ns[number].append
        try:
            call = client(number)
            barrier.wait()
            while is_warming_up:
                call()
            while is_measuring:
                start_ns = now_ns()
                call()
                record(now_ns() - start_ns)
        except BaseException as error:
            errors.append(error)
            barrier.abort()  # nobody waits for a thread that never gets there

    threads = [threading.Thread(target=loop, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        barrier.wait()
    except threading.BrokenBarrierError:
        raise errors[0] from None
    time.sleep(window.warm_up_s)
    if batches is not None:
        batches.clear()
    cpu_start_s, start_s = cpu_seconds(), time.perf_counter()
    is_warming_up = False
    time.sleep(window.measured_s)
    is_measuring = False
    wall_s, cpu_s = time.perf_counter() - start_s, cpu_seconds() - cpu_start_s
    for thread in threads:
        thread.join(CLIENT_ENDS_WITHIN_S)
        if thread.is_alive():
            raise TimeoutError(f"a client did not come back within {CLIENT_ENDS_WITHIN_S:.0f} s")
    if errors:
        raise errors[0]
    numbers = summary_of([ns for mine in latencies_ns for ns in mine], wall_s, cpu_s)
    if batches is not None:
        numbers["mean_batch"] = batches.mean()
    return numbers


def summary_of(latencies_ns: Sequence[int], wall_s: float, cpu_s: float) -> Numbers:
    """Return rate, percentiles and CPU time of the requests that ended within a window."""
    ordered = sorted(latencies_ns)
    count = len(ordered)
    if count == 0:
        raise TimeoutError("no request ended within the window: it is too short for this load")

    def percentile_us(share: float) -> float:
        return ordered[min(count - 1, int(share * count))] / 1e3

    return {
        "requests_per_s": count / wall_s,
        "p50_us": percentile_us(0.50),
        "p99_us": percentile_us(0.99),
        "max_us": ordered[-1] / 1e3,
        "cpu_us": cpu_s / count * 1e6,
    }
