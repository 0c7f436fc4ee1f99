"""When a stream has worked, by the clock of the host, while somebody looks: what a timeline shows of GPUs.

A CUDA event before the work and one behind it say how long it took, and nothing of when: the GPU has a clock of its
own. What the host knows is a span: the first was recorded at ``h0`` or later, the second was done at ``h1`` or before.
A stream that had nothing else to do begins within microseconds of ``h0``, so of the stays of the last second or two
that one says how the clocks differ whose work began soonest.

Without a watcher it costs one look at an empty dict; nothing is recorded, and nothing kept.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Protocol

__all__ = ["Recorder", "Stay", "StreamClock", "Watcher", "unwatch", "watch", "watchers"]

RENEWED_AFTER_NS = 1_000_000_000
"""The clocks drift apart by some 10 us a second, and CUDA tells times as 32-bit floats: both start anew after this."""


class Watcher(Protocol):
    """Who is told when a stream has worked, on the thread that has waited for it. What it raises is dropped."""

    def ran(self, stream: int, device_number: int, begun_ns: int, ended_ns: int) -> None:
        """A stream has worked, in nanoseconds of ``time.monotonic_ns()``.

        ``stream`` is its number: no other of this process has it. Its stays never overlap.
        """


class Recorder(Protocol):
    """A stream as a library sees it."""

    def mark(self) -> Any:
        """Record, behind what is queued, an event that knows when it was reached."""

    def milliseconds(self, first: Any, second: Any) -> float:
        """Return how long after one event another was reached; both were."""


watchers: dict[int, Watcher] = {}
"""By identity. Without a lock: one may be taken out by the garbage collector, in the middle of anything."""


def watch(watcher: Watcher) -> None:
    """Have streams tell one more watcher, from when they are entered next."""
    watchers[id(watcher)] = watcher


def unwatch(watcher: Watcher) -> None:
    """Tell it no more. Idempotent."""
    watchers.pop(id(watcher), None)


class StreamClock:
    """How the clock of a stream's GPU goes by the host's. Thread-safety: one thread at a time, as for the stream."""

    def __init__(self, stream: int, device_number: int) -> None:
        self.stream = stream
        self.device_number = device_number
        self._zero: Any = None  # the event from which the GPU's times are counted
        self._begun_ns = 0
        # By the host's time, when that event was reached at the earliest: as stays since then say, and those before.
        self._least_ns = 0
        self._least_before_ns = 0

    def placed(self, recorder: Recorder, first: Any, second: Any, earliest_ns: int, latest_ns: int) -> tuple[int, int]:
        """Return when two events were reached, both within what the host knows."""
        took_ns = int(recorder.milliseconds(first, second) * 1e6)
        gpu_ns = 0 if self._zero is None else int(recorder.milliseconds(self._zero, first) * 1e6)
        if self._zero is None or earliest_ns - self._begun_ns > RENEWED_AFTER_NS:
            is_old = earliest_ns - self._begun_ns > 3 * RENEWED_AFTER_NS  # or nothing: the clocks have drifted apart
            self._least_before_ns = 0 if is_old else self._least_ns + gpu_ns
            self._zero, self._begun_ns, self._least_ns = first, earliest_ns, earliest_ns
            gpu_ns = 0
        self._least_ns = max(self._least_ns, earliest_ns - gpu_ns)
        zero_ns = max(self._least_ns, self._least_before_ns)
        begun_ns = max(min(zero_ns + gpu_ns, latest_ns - took_ns), earliest_ns)
        return begun_ns, min(begun_ns + took_ns, latest_ns)


class Stay:
    """One stay of a thread in a stream: made, the work, ``finish``; once it is done, ``tell``. None of it raises."""

    def __init__(self, clock: StreamClock, recorder: Recorder) -> None:
        self._clock = clock
        self._recorder = recorder
        self._first: Any = None
        self._second: Any = None
        self._earliest_ns = time.monotonic_ns()
        with contextlib.suppress(Exception):  # of a device that has failed, say: whoever works on it meets that too
            self._first = recorder.mark()

    def finish(self) -> None:
        """Mark the end of the work, before it is waited for."""
        with contextlib.suppress(Exception):
            self._second = self._recorder.mark()

    def tell(self) -> None:
        """Tell the watchers, now that the work is done."""
        latest_ns = time.monotonic_ns()
        if self._first is None or self._second is None:
            return
        with contextlib.suppress(Exception):
            marks = self._first, self._second
            begun_ns, ended_ns = self._clock.placed(self._recorder, *marks, self._earliest_ns, latest_ns)
            for watcher in list(watchers.values()):
                watcher.ran(self._clock.stream, self._clock.device_number, begun_ns, ended_ns)
