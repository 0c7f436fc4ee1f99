"""Load for a pipe, and what comes of it: clients in a closed loop, or arrivals that wait for no answer (open loop).

A *window* is a warm-up and a measured stretch under one load. In an open loop a latency counts from when the request
was to arrive, not from when it was sent: while the pipe, or this process, is late, the requests that should have come
meanwhile wait, and are seen to wait (no coordinated omission).
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from fastpipe.contract import Request
from fastpipe.errors import PipeError
from fastpipe.pipe import Pipe

__all__ = ["Load", "NodeLoad", "Sample", "Target", "Window", "measure"]

Floats = np.ndarray[Any, np.dtype[np.float64]]

# A look at whether all are done: short beside the windows, and Ctrl-C is served in between.
LOOK_S = 0.2
# How long the requests that are under way at the end of an open loop may take, as a multiple of the measured time.
DRAIN = 1.0
LEAST_DRAIN_S = 1.0
# Of what arrives within a window some is answered behind it, and Poisson's arrivals come in crowds.
KEPT_UP = 0.9
_CHUNK = 1024
_DONE, _FAILED, _UNFINISHED = 0, 1, 2


@dataclass(frozen=True)
class Load:
    """So many clients, each of which sends its next request when it has its answer; or so many arrivals a second."""

    clients: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g}/s"
        return f"{self.clients} client{'s' if self.clients != 1 else ''}"


@dataclass(frozen=True)
class Target:
    """What is sent, over and over again, and where to."""

    pipe: Pipe
    """Of which nobody else makes requests meanwhile."""
    requests: Sequence[Request]
    """Each is sent as a new dict with the same values."""
    timeout_s: float | None = None
    """Of each request."""
    node: str | None = None
    """Where requests enter; None: at the root."""


@dataclass(frozen=True)
class Window:
    """How long a load is applied before and while it is measured."""

    warm_up_s: float
    measured_s: float


@dataclass(frozen=True)
class NodeLoad:
    """What a node has done within a window."""

    busy_share: float
    """The time in its backends, as a share of what all of its instances had."""
    mean_batch: float
    requests_per_s: float


@dataclass(frozen=True)
class Sample:
    """What one window has shown."""

    load: Load
    measured_s: float
    latencies_s: Floats
    """Ascending, of the requests that were answered; in an open loop also of those that were not answered in time, with
    how long they had waited when that was given up."""
    done: int
    failed: int
    unfinished: int
    """Requests of an open loop that had no answer when its end had been waited for."""
    arrived: int
    """Requests that were to be answered: of an open loop, those that were to arrive within the window."""
    late_p99_s: float | None = None
    """How late the open loop itself sent a request, for 99 of 100 of them at most."""
    error: BaseException | None = None
    """What the first request that failed has raised."""
    nodes: dict[str, NodeLoad] = field(default_factory=dict)

    @property
    def requests_per_s(self) -> float:
        """How many were answered within the window."""
        return self.done / self.measured_s

    @property
    def kept_up(self) -> bool:
        """False: more has come in this open loop than was answered, so that its latencies say how long it lasted."""
        return self.load.rate is None or (self.unfinished == 0 and self.done >= KEPT_UP * self.arrived)

    def quantile_s(self, share: float) -> float:
        """Return the latency that a share of the requests does not exceed."""
        count = len(self.latencies_s)
        return float(self.latencies_s[min(count - 1, int(share * count))])


def measure(target: Target, load: Load, window: Window, seed: int = 0) -> Sample:
    """Apply a load for one window.

    Args:
        target: to which it is applied.
        load: what is applied.
        window: how long.
        seed: of the times at which requests arrive in an open loop (Poisson).

    Raises:
        PipeError: no request was answered within the window; the cause is what the first one has raised.
    """
    log = _Log(target.pipe)
    if load.rate is None:
        _closed_loop(target, load.clients or 1, window, log)
        late_p99_s = None
    else:
        late_p99_s = _open_loop(target, load.rate, window, seed, log)
    sample = log.sample(load, window, late_p99_s)
    if not sample.done:
        raise _nothing_done(sample, window)
    return sample


def _nothing_done(sample: Sample, window: Window) -> PipeError:
    if sample.error is None:
        return PipeError(
            f"{sample.load}: no request was answered within {window.measured_s:g} s; --seconds is too short"
        )
    error = PipeError(
        f"{sample.load}: all requests failed; the first with {type(sample.error).__name__}: {sample.error}"
    )
    error.__cause__ = sample.error
    return error


class _Log:
    """When each request was to begin, when it ended, and how; any thread may add, appending is atomic under the GIL."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._ended: list[tuple[int, int, int]] = []
        self._parts: list[array[int]] = []
        self.error: BaseException | None = None
        self._begun_ns = 0
        self._before: dict[str, Any] = {}
        self._after: dict[str, Any] = {}
        self._elapsed_s = 1.0
        self._is_over = False

    def begin(self) -> None:
        """Say that the warm-up is over."""
        self._before = self._pipe.stats()["nodes"]
        self._begun_ns = time.perf_counter_ns()

    def end(self) -> None:
        """Say that the measured stretch is over."""
        self._elapsed_s = (time.perf_counter_ns() - self._begun_ns) / 1e9
        self._after = self._pipe.stats()["nodes"]

    def part(self) -> array[int]:
        """Return a list of one thread's own: start, end and outcome of each request, one behind the other."""
        part = array("q")
        self._parts.append(part)
        return part

    def note(self, start_ns: int, outcome: int, error: BaseException | None = None) -> None:
        """Add a request that has ended just now."""
        if self._is_over:
            return
        self._ended.append((start_ns, time.perf_counter_ns(), outcome))
        if error is not None and self.error is None:
            self.error = error

    def give_up(self, waiting: dict[Future[Request], int]) -> None:
        """Cancel the requests that have not ended, note them as unfinished, and nothing any more."""
        self._is_over = True
        for future, due_ns in list(waiting.items()):
            future.cancel()
            self._ended.append((due_ns, time.perf_counter_ns(), _UNFINISHED))

    def sample(self, load: Load, window: Window, late_p99_s: float | None) -> Sample:
        """Return what the measured stretch has shown.

        A closed loop counts what ended in it. An open loop's latencies are those of what was to arrive in it, whenever
        that ended.
        """
        parts = [np.frombuffer(part, dtype=np.int64).reshape(-1, 3) for part in self._parts if part]
        if self._ended:
            parts.append(np.array(self._ended, dtype=np.int64))
        rows = np.concatenate(parts) if parts else np.empty((0, 3), np.int64)
        end_ns = self._begun_ns + int(self._elapsed_s * 1e9)
        start, stop, outcome = rows.T
        ended_inside = (stop >= self._begun_ns) & (stop < end_ns)
        mine = ended_inside if load.rate is None else (start >= self._begun_ns) & (start < end_ns)
        latencies_s = np.sort((stop - start)[mine & (outcome != _FAILED)] / 1e9)
        return Sample(
            load,
            self._elapsed_s,
            latencies_s,
            done=int((ended_inside & (outcome == _DONE)).sum()),
            failed=int((mine & (outcome == _FAILED)).sum()),
            unfinished=int((mine & (outcome == _UNFINISHED)).sum()),
            arrived=int(mine.sum()),
            late_p99_s=late_p99_s,
            error=self.error,
            nodes=self._nodes(),
        )

    def _nodes(self) -> dict[str, NodeLoad]:
        instances: dict[str, int] = {}
        for station in self._pipe.stations:
            instances[station.name] = instances.get(station.name, 0) + station.instance_count
        found = {}
        for name, after in self._after.items():
            before = self._before[name]
            batches, requests = (after[key] - before[key] for key in ("batches", "requests"))
            busy_share = (after["busy_s"] - before["busy_s"]) / self._elapsed_s / instances.get(name, 1)
            found[name] = NodeLoad(busy_share, requests / batches if batches else 0.0, requests / self._elapsed_s)
        return found


# ---- closed loop -----------------------------------------------------------------------------------------------


def _closed_loop(target: Target, clients: int, window: Window, log: _Log) -> None:
    """Let threads call as fast as they get answers."""
    pipe, requests = target.pipe, target.requests
    stops = threading.Event()
    is_stopped = stops.is_set

    def client(number: int, part: array[int]) -> None:
        now_ns, note = time.perf_counter_ns, part.extend
        turn = number
        while not is_stopped():
            request = dict(requests[turn % len(requests)])
            turn += clients
            outcome = _DONE
            start_ns = now_ns()
            try:
                pipe(request, timeout=target.timeout_s, entry=target.node)
            except BaseException as error:  # whatever a backend raises is counted
                outcome = _FAILED
                log.error = log.error or error
            note((start_ns, now_ns(), outcome))

    # Daemons: a request that never ends must not keep the command from it.
    threads = [threading.Thread(target=client, args=(i, log.part()), daemon=True) for i in range(clients)]
    try:
        for thread in threads:
            thread.start()
        time.sleep(window.warm_up_s)
        log.begin()
        time.sleep(window.measured_s)
        log.end()
    finally:
        stops.set()
    for thread in threads:
        while thread.is_alive():
            thread.join(LOOK_S)


# ---- open loop -------------------------------------------------------------------------------------------------


def _arrivals_s(rate: float, until_s: float, seed: int) -> Iterator[float]:
    """Yield the seconds at which requests arrive, independently of each other, ``rate`` of them a second on average."""
    generator = np.random.default_rng(seed)
    at_s = 0.0
    while True:
        for gap_s in generator.exponential(1 / rate, _CHUNK).tolist():
            at_s += gap_s
            if at_s >= until_s:
                return
            yield at_s


def _open_loop(target: Target, rate: float, window: Window, seed: int, log: _Log) -> float:
    """Submit requests when they are due, and wait for the last ones; return how late they were sent."""
    waiting: dict[Future[Request], int] = {}
    lateness_ns = array("q")
    stops = threading.Event()
    now_ns = time.perf_counter_ns
    start_ns = now_ns()

    def send() -> None:
        for turn, at_s in enumerate(_arrivals_s(rate, window.warm_up_s + window.measured_s, seed)):
            due_ns = start_ns + int(at_s * 1e9)
            _sleep_until(due_ns)
            if stops.is_set():  # so late that its time is over
                log.note(due_ns, _UNFINISHED)
                continue
            lateness_ns.append(now_ns() - due_ns)
            _send(target, turn, due_ns, log, waiting)

    sender = threading.Thread(target=send, daemon=True)
    try:
        sender.start()
        time.sleep(window.warm_up_s)
        log.begin()
        time.sleep(window.measured_s)
        log.end()
        limit_s = time.monotonic() + max(window.measured_s * DRAIN, LEAST_DRAIN_S)
        while (sender.is_alive() or waiting) and time.monotonic() < limit_s:
            time.sleep(min(LOOK_S, window.measured_s / 10))
    finally:
        stops.set()
    while sender.is_alive():  # in a full queue, perhaps
        sender.join(LOOK_S)
    log.give_up(waiting)
    if not lateness_ns:
        raise PipeError(f"{rate:g}/s: no request arrives within {window.measured_s:g} s; --seconds is too short")
    late_ns = np.sort(np.frombuffer(lateness_ns, dtype=np.int64))
    return float(late_ns[int(0.99 * len(late_ns))]) / 1e9


def _send(target: Target, turn: int, due_ns: int, log: _Log, waiting: dict[Future[Request], int]) -> None:
    request = dict(target.requests[turn % len(target.requests)])
    try:
        future = target.pipe.submit(request, timeout=target.timeout_s, entry=target.node)
    except PipeError as error:  # refused
        log.note(due_ns, _FAILED, error)
        return
    waiting[future] = due_ns
    future.add_done_callback(partial(_ended, log, waiting))


def _ended(log: _Log, waiting: dict[Future[Request], int], future: Future[Request]) -> None:
    """Note what has become of a request; on the thread that has ended it, so it takes no lock and does little."""
    due_ns = waiting[future]
    if not future.cancelled():
        error = future.exception()
        log.note(due_ns, _DONE if error is None else _FAILED, error)
    waiting.pop(future, None)


def _sleep_until(due_ns: int) -> None:
    remaining_ns = due_ns - time.perf_counter_ns()
    if remaining_ns > 0:
        time.sleep(remaining_ns / 1e9)
