"""A pipe's numbers, second by second, while somebody looks: what the live page and ``fastpipe live`` show.

    viewer ── points_after(7) ──► waits ◄── notified ── a thread: stats() once a second ──► the last minute, as JSON

However many look, there is one snapshot a second; and none once nobody has asked for some seconds.
"""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

from fastpipe._core import Slowest
from fastpipe.measures import Distribution, NodeStats, RequestStats, Stats, between
from fastpipe.pipe import Pipe
from fastpipe.show.parts import visible

__all__ = ["EVERY_S", "KEPT", "WINDOW_S", "Sampler", "point_of"]

EVERY_S = 1.0
KEPT = 60
"""So many points are kept: a minute."""
WINDOW_S = 10.0
"""The numbers that people read are of so long: those of one second flicker too much."""
MOST_SLOW = 8
"""So many of the slowest requests of the last minute are shown."""
LINGERS_S = 5.0
"""It goes on for so long after somebody has asked: a page asks each second."""


class _SlowRequests:
    """The slowest requests of a pipe's last minute, for all who show them. Knows no pipe. Thread-safety: any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # All under the lock.
        self._slowest = Slowest()
        self._shown_by: set[Sampler] = set()
        self._recent: list[dict[str, Any]] = []

    def show(self, pipe: Pipe, sampler: Sampler) -> None:
        """Have requests noted from now on, for one more; idempotent."""
        with self._lock:
            self._shown_by.add(sampler)
            pipe.slowest = self._slowest

    def hide(self, pipe: Pipe, sampler: Sampler) -> None:
        """One needs them no more; once nobody does, none is noted."""
        with self._lock:
            self._shown_by.discard(sampler)
            if not self._shown_by:
                pipe.slowest = None

    def now(self) -> list[dict[str, Any]]:
        """Return them, the slowest first."""
        with self._lock:
            since = time.time() - time.monotonic()
            recent = [request for request in self._recent if request["time"] > time.time() - KEPT * EVERY_S]
            recent += [_request(*told, since) for told in self._slowest.take()]
            recent.sort(key=lambda request: request["took_s"], reverse=True)
            self._recent = recent[:MOST_SLOW]
            return self._recent


_slow_requests: weakref.WeakKeyDictionary[Pipe, _SlowRequests] = weakref.WeakKeyDictionary()
_slow_requests_lock = threading.Lock()


def _slow_requests_of(pipe: Pipe) -> _SlowRequests:
    with _slow_requests_lock:
        return _slow_requests.setdefault(pipe, _SlowRequests())


class Sampler:
    """Points of one pipe. It does not keep the pipe alive.

    Args:
        pipe: whose.
        names: of the nodes, in the order of the points.

    Thread-safety: any thread.
    """

    def __init__(self, pipe: Pipe, names: Sequence[str]) -> None:
        self._pipe = weakref.ref(pipe)
        self._names = tuple(names)
        self._changed = threading.Condition()
        # All of these under the condition.
        self._points: deque[tuple[int, str]] = deque(maxlen=KEPT)
        self._asked_s = 0.0
        self._is_running = False
        self._is_closed = False
        # Of the thread alone; it hands them on to the next one.
        self._snapshots: deque[Stats] = deque()

    def state(self) -> str:
        """Return "open", "closed" (also once nobody has the pipe any more), or "forked"."""
        pipe = self._pipe()
        if pipe is None or self._is_closed:
            return "closed"
        problems = pipe.health()["problems"]
        if any("os.fork()" in problem for problem in problems):
            return "forked"
        return "closed" if pipe.closing else "open"

    def points_after(self, number: int, wait_s: float) -> list[str]:
        """Return the points of the last minute that came after one, as JSON; wait for the next one if there is none."""
        deadline_s = time.monotonic() + wait_s
        with self._changed:
            while True:
                self._asked_s = time.monotonic()
                found = [point for own, point in self._points if own > number]
                remaining_s = deadline_s - self._asked_s
                if found or remaining_s <= 0 or self.state() != "open":
                    return found
                self._start()
                self._changed.wait(min(remaining_s, EVERY_S))

    def close(self) -> None:
        """End the waits of all who ask, and the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if not self._is_running:
            self._is_running = True
            threading.Thread(target=self._run, name="fastpipe live sampler", daemon=True).start()

    def _run(self) -> None:
        due_s = time.monotonic()
        try:
            while self._is_wanted():
                if not self._sample():
                    return
                due_s += EVERY_S
                now_s = time.monotonic()
                if due_s < now_s:  # a busy machine: what was missed is not made up for
                    due_s = now_s
                with self._changed:
                    if not self._is_closed:
                        self._changed.wait_for(lambda: self._is_closed, due_s - now_s)
        finally:
            pipe = self._pipe()
            if pipe is not None:
                _slow_requests_of(pipe).hide(pipe, self)
            with self._changed:
                self._is_running = False
                self._changed.notify_all()

    def _is_wanted(self) -> bool:
        with self._changed:
            return not self._is_closed and time.monotonic() - self._asked_s < LINGERS_S

    def _sample(self) -> bool:
        """Add a point; return whether there will be another one."""
        pipe = self._pipe()
        if pipe is None or self.state() == "forked":
            return False
        slow = _slow_requests_of(pipe)
        slow.show(pipe, self)
        latest = pipe.stats()
        while self._snapshots and latest["time_s"] - self._snapshots[0]["time_s"] > WINDOW_S + EVERY_S / 2:
            self._snapshots.popleft()
        if self._snapshots:
            problems = pipe.health()["problems"]
            point = point_of(self._snapshots[-1], self._snapshots[0], latest, self._names, problems)
            point["slowest"] = slow.now()
            with self._changed:
                number = self._points[-1][0] + 1 if self._points else 1
                written = json.dumps({"number": number, **point}, separators=(",", ":"), allow_nan=False)
                self._points.append((number, written))
                self._changed.notify_all()
        self._snapshots.append(latest)
        return not pipe.closing


def _request(
    took_ns: int, number: int, ended_ns: int, why: str | None, stops: list[tuple[str, int, int, int]], since: float
) -> dict[str, Any]:
    """Return what is shown of a request: its stops, each as node, when it was queued, began and ended there.

    Args:
        took_ns: from its call to its end.
        number: tells it from others.
        ended_ns: when that was, of the monotonic clock.
        why: it has failed; None: it was answered.
        stops: by the same clock.
        since: when that clock began, by the one that people read.
    """
    entered_ns = ended_ns - took_ns
    return {
        "number": number,
        "took_s": took_ns / 1e9,
        "time": since + ended_ns / 1e9,
        "why": why,
        "stops": [
            [visible(name), *((each - entered_ns) / 1e9 for each in (queued, begun, ended))]
            for name, queued, begun, ended in stops
        ],
    }


def point_of(
    before: Stats, earlier: Stats, latest: Stats, names: Sequence[str], problems: Sequence[str]
) -> dict[str, Any]:
    """Return what is shown of a pipe at one moment.

    Args:
        before: the snapshot of about a second ago: what the curves go on with.
        earlier: the one at the beginning of the window that the numbers are about; may be ``before``.
        latest: the one of now.
        names: of nodes.
        problems: as ``Pipe.health`` tells them.
    """
    window, second = between(latest, earlier), between(latest, before)
    requests = window["requests"]
    return {
        "time": time.time(),
        "problems": list(problems),
        "window_s": window["interval_s"],
        "in_flight": requests["in_flight"],
        "rate": _rate(requests["done"], window),
        "bad_rate": _rate(_bad(requests), window),
        "latency": _quantiles(window["latency_s"]),
        "failures": {reason: count for reason, count in window["failures"].items() if count},
        "refused": requests["refused"],
        "cancelled": requests["cancelled"],
        "totals": {**latest["requests"]},
        "curve": [
            _rate(second["requests"]["done"], second),
            second["latency_s"]["p99"],
            second["requests"]["in_flight"],
            _rate(_bad(second["requests"]), second),
        ],
        "nodes": [
            _node(window["nodes"][name], window, second["nodes"][name], second) if name in window["nodes"] else None
            for name in names
        ],
    }


def _bad(requests: RequestStats) -> int:
    return requests["failed"] + requests["refused"]


def _node(node: NodeStats, window: Stats, last: NodeStats, second: Stats) -> dict[str, Any]:
    return {
        "rate": _rate(node["requests"], window),
        "cached_rate": _rate(_cached(node), window),
        "busy": _busy(node, window),
        "queued": node["queued"],
        "running": node["running"],
        "oldest_s": node["oldest_s"],
        "batch": node["mean_batch"] if node["batches"] else None,
        "max": node["max"],
        "queue_p99": node["queue_s"]["p99"],
        "run_p99": node["run_s"]["p99"],
        "run_mean": node["run_s"]["mean"],
        "bad_rate": _rate(_bad_here(node), window),
        "failures": {
            **{reason: count for reason, count in node["failures"].items() if count},
            **({"refused": node["refused"]} if node["refused"] else {}),
        },
        "left": {reason: count for reason, count in node["why_batches_left"].items() if count},
        "instances": [node["instances"]["in_service"], node["instances"]["count"]],
        "curve": [_rate(last["requests"], second), last["queued"], last["run_s"]["p99"], _busy(last, second)],
    }


def _cached(node: NodeStats) -> int:
    """Requests that need not run: an answer was kept, or on its way."""
    return node["cache"]["hits"] + node["cache"]["coalesced"] if "cache" in node else 0


def _bad_here(node: NodeStats) -> int:
    return sum(node["failures"].values()) + node["refused"]


def _rate(count: int, stats: Stats) -> float:
    return count / stats["interval_s"] if stats["interval_s"] > 0 else 0.0


def _busy(node: NodeStats, stats: Stats) -> float | None:
    """The share of their time for which instances were in the backend; None: nobody knows before a batch has ended."""
    if node["running"] and not node["batches"]:
        return None
    time_s = stats["interval_s"] * node["instances"]["count"]
    return min(node["busy_s"] / time_s, 1.0) if time_s > 0 else 0.0


def _quantiles(distribution: Distribution) -> dict[str, float | None]:
    return {key: distribution[key] for key in ("mean", "p50", "p99", "max")}
