"""Requests that come when they come: an open loop with random gaps (a Poisson process), and how long each answer took.

A closed loop, whose clients wait for an answer before they ask again, slows down with what it measures, and its slow
moments go uncounted ("coordinated omission"). Here a latency counts from the moment at which the request was due,
also where the sender itself was late.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Offer", "Window"]

Result = TypeVar("Result")
# Often enough for an eye, and too seldom to be felt.
TICK_S = 0.25
# What is computed for a request that was given up is not stopped, and would be in the next window's way.
SETTLING_S = 0.1
FEWEST_REQUESTS = 100  # in a window: with fewer, a 99th percentile is the slowest of them


@dataclass(frozen=True)
class Window:
    """What came of some seconds of load.

    Attributes:
        rate_per_s: requests that were due in a second, on average.
        latencies_s: of each, from when it was due to its answer; infinite: it was given up.
        wall_s: from the first that was due to the last answer.
    """

    rate_per_s: float
    latencies_s: NDArray[np.float64]
    wall_s: float

    @property
    def answered_per_s(self) -> float:
        return float(np.isfinite(self.latencies_s).sum() / self.wall_s) if self.wall_s else 0.0

    def percentile_s(self, percent: float) -> float:
        """Return the latency that so many of a hundred requests did not exceed; infinite, if they were given up."""
        return float(np.percentile(self.latencies_s, percent, method="higher")) if self.latencies_s.size else np.inf


class Offer(Generic[Result]):
    """A window of load, while it goes on.

    The request that has waited longest without an answer tells that the load is not held: from then on no more are
    sent, and those that wait are cancelled.

    Args:
        submit: sends a request and does not wait.
        requests: what is sent, from the first again after the last.
        rate_per_s: how many, on average.
        seconds: for how long; longer, if too few would come.
        patience_s: how long the last ones are waited for, and how long any may take.
        random: makes the gaps.
    """

    def __init__(
        self,
        submit: Callable[[str], Future[Result]],
        requests: Sequence[str],
        rate_per_s: float,
        seconds: float,
        patience_s: float,
        random: np.random.Generator,
    ) -> None:
        count = max(FEWEST_REQUESTS, round(rate_per_s * seconds))
        self.rate_per_s = rate_per_s
        self._submit, self._requests, self._patience_s = submit, requests, patience_s
        self.due_s = np.cumsum(random.exponential(1 / rate_per_s, count))
        self._done_s = np.full(count, np.inf)
        self._futures: list[Future[Result]] = []
        self._ends, self._ended_count = threading.Semaphore(0), 0
        self._start_s = 0.0

    @property
    def answers(self) -> list[tuple[str, Result]]:
        """Each request that was answered, with its answer.

        Raises:
            Exception: what the first request that failed has raised.
        """
        return [
            (self._requests[number % len(self._requests)], future.result())
            for number, future in enumerate(self._futures)
            if not future.cancelled()
        ]

    def run(self, on_tick: Callable[[], None] = lambda: None) -> Window:
        """Send all, wait for the answers, and return what came of it."""
        self._start_s = time.perf_counter()
        next_tick_s = TICK_S
        oldest = 0
        try:
            for number, due_s in enumerate(self.due_s):
                now_s = self._now_s()
                if due_s > now_s:
                    time.sleep(due_s - now_s)
                self._send(number)
                while oldest < number and np.isfinite(self._done_s[oldest]):
                    oldest += 1
                if self._now_s() - self.due_s[oldest] > self._patience_s:
                    break  # nothing is held that keeps a request waiting for so long
                if due_s > next_tick_s:
                    next_tick_s = due_s + TICK_S
                    on_tick()
            self._await(self._patience_s)
        finally:
            for future in self._futures:
                future.cancel()
        if self._ended_count < len(self._futures):
            self._await(None)
            time.sleep(SETTLING_S)
        return self._window()

    def so_far(self) -> Window:
        """Return what has come of it by now; what has no answer yet is left out."""
        window = self._window()
        return Window(self.rate_per_s, window.latencies_s[np.isfinite(window.latencies_s)], window.wall_s)

    def _window(self) -> Window:
        count = len(self._futures)
        done_s = self._done_s[:count].copy()
        finished_s = done_s[np.isfinite(done_s)]
        return Window(
            self.rate_per_s, done_s - self.due_s[:count], float(finished_s.max()) if finished_s.size else self._now_s()
        )

    def _now_s(self) -> float:
        return time.perf_counter() - self._start_s

    def _send(self, number: int) -> None:
        def note(future: Future[Any]) -> None:
            if not future.cancelled():
                self._done_s[number] = self._now_s()
            self._ends.release()

        future = self._submit(self._requests[number % len(self._requests)])
        self._futures.append(future)
        future.add_done_callback(note)

    def _await(self, timeout_s: float | None) -> None:
        """Wait until all that were sent have ended, or for so long."""
        until_s = None if timeout_s is None else self._now_s() + timeout_s
        while self._ended_count < len(self._futures):
            if not self._ends.acquire(timeout=None if until_s is None else max(0.0, until_s - self._now_s())):
                return
            self._ended_count += 1
