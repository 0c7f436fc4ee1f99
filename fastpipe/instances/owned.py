"""What a pipe owns: the backends of its instances, its threads, its watchdog; and how each of them ends."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from numbers import Number

from fastpipe import _core
from fastpipe.contract import Backend, close_all
from fastpipe.instances.threads import Slot, Worker

__all__ = ["LEAST_JOIN_S", "Instances", "time_to_close", "time_to_drain"]

# Threads that were told to leave do so at once; this bounds the wait for one that hangs in a backend.
LEAST_JOIN_S = 0.2


@dataclass(frozen=True, eq=False)
class _Owned:
    """A backend to be closed, and the instance that it is: it is closed once that is free."""

    backend: Backend
    slot: Slot | None
    """None: it may be closed at any time."""

    def is_retired(self, station: _core.Station) -> bool:
        """Whether it has served that station, and does no longer."""
        return self.slot is not None and self.slot.is_retired(station)


class Instances:
    """Backends and threads of one pipe. It knows no engine, so that a thread which holds it keeps no pipe alive.

    Thread-safety: any thread, several at a time; but one at a time stops threads, see ``Pipe.close``.
    """

    def __init__(self) -> None:
        self.workers: list[Worker] = []
        # What has to be closed by whoever closes the pipe: thread-bound backends are closed by their threads. By id(),
        # as several threads may take something out at the same time.
        self._backends: dict[int, _Owned] = {}
        self._watchdog: _core.Watchdog | None = None
        self._watchdog_worker: Worker | None = None

    # ---- threads -----------------------------------------------------------------------------------------------

    def start(self, worker: Worker) -> None:
        """Start a thread, and wait for its end when the pipe closes.

        Raises:
            PipeError, RuntimeError, MemoryError, KeyboardInterrupt: see ``Worker.start``; if the thread has begun all
                the same, its end is awaited.
        """
        self.workers.append(worker)
        try:
            worker.start()
        except BaseException:
            if not worker.has_begun and worker in self.workers:  # also if it was raised before anything was tried
                self.workers.remove(worker)
            raise

    def join_retired(self, station: _core.Station) -> None:
        """Wait for the ends of threads whose instances serve a station no longer; forget all that have ended."""
        for worker in list(self.workers):
            if worker.served is not None and worker.served.is_retired(station):
                worker.join(None)
            if worker.is_over and worker in self.workers:
                self.workers.remove(worker)

    def uses(self, station: _core.Station, index: int) -> bool:
        """Whether a backend is to be closed, or a thread awaited that is bound to one, which had or has that token."""
        backends = [owned.slot for owned in list(self._backends.values())]
        return any(
            slot is not None and slot.station is station and slot.index == index
            for slot in (*backends, *(worker.served for worker in list(self.workers)))
        )

    def start_watchdog(self, watchdog: _core.Watchdog) -> None:
        """Start the thread of the watchdog; it is stopped when all others have left."""
        self._watchdog = watchdog
        worker = self._watchdog_worker = Worker("fastpipe watchdog", watchdog.serve)
        try:
            worker.start()
        except BaseException:
            if not worker.has_begun:
                self._watchdog_worker = None
            raise

    def start_clock(self, clock: _core.Clock) -> None:
        """Start the thread of a clock.

        Raises:
            PipeError, RuntimeError, MemoryError, KeyboardInterrupt: see ``Worker.start``; the clock was stopped.
        """
        try:
            self.start(Worker("fastpipe clock", clock.serve))
        except BaseException:  # a signal or no memory; its thread may have begun, and close() then waits for its end
            clock.stop()
            raise

    def forget_thread(self, thread: threading.Thread) -> None:
        """Wait no more for a thread that hangs."""
        for worker in list(self.workers):
            if worker.thread is thread:
                self.workers.remove(worker)
                worker.give_up()

    def stop_watchdog(self) -> None:
        """Tell the watchdog to leave, without waiting for it."""
        if self._watchdog is not None:
            self._watchdog.stop()

    def join_threads(self, deadline: float | None) -> None:
        """Wait until all threads have left, whose stations are closed, and stop the watchdog; None: for ever."""
        if deadline is not None:
            deadline = max(deadline, time.monotonic() + LEAST_JOIN_S)
        for worker in list(self.workers):
            if worker.thread is not threading.current_thread():
                worker.join(None if deadline is None else max(deadline - time.monotonic(), 0.0))
        if self._watchdog_worker is not None:  # only now: a worker may hang until here
            self.stop_watchdog()
            if self._watchdog_worker.thread is not threading.current_thread() and not self._has_left_behind():
                self._watchdog_worker.join(LEAST_JOIN_S)

    def _has_left_behind(self) -> bool:
        """True if some worker has not left in time: it may hang."""
        return any(worker.is_left_behind for worker in list(self.workers))

    # ---- backends ----------------------------------------------------------------------------------------------

    def own(self, backend: Backend, station: _core.Station | None, index: int) -> None:
        """Close a backend with the pipe, once its instance is free; ``station`` None: at any time."""
        self._backends[id(backend)] = _Owned(backend, None if station is None else Slot.now(station, index))

    def disown(self, backend: Backend) -> bool:
        """Close it no more: who calls this does, or whoever hangs in it, if ever. False: it is closed, or soon."""
        return self._backends.pop(id(backend), None) is not None

    def nothing_runs(self) -> None:
        """Have each backend closed at any time: the pipe could not be built, whether or not its instance was opened."""
        self._backends = {key: _Owned(owned.backend, None) for key, owned in self._backends.items()}

    def close_what_was_built(self, error: BaseException) -> None:
        """Close all of it, as the rest could not be built, because of ``error``. The stations are closed."""
        self.join_threads(None)
        self.nothing_runs()
        try:
            self.close_backends(None)
        except Exception as close_error:  # the reason for closing is what the user must see
            error.add_note(f"fastpipe: closing what was built raised {type(close_error).__name__}: {close_error}")

    def close_backends(self, deadline: float | None, retired: _core.Station | None = None) -> None:
        """Close the backends whose instances are free, or get free in time; None: however long that takes.

        Args:
            deadline: in seconds of ``time.monotonic()``.
            retired: only those that serve this station no longer.

        Raises:
            Exception: what their ``close()`` raised; all others are closed nevertheless.
        """
        idle: list[Backend] = []
        busy: list[_Owned] = []
        try:
            for key in list(self._backends):
                owned = self._backends.get(key)
                if owned is None or (retired is not None and not owned.is_retired(retired)):
                    continue
                # One at a time off the books: another thread, or a signal handler, may close the pipe while this waits.
                owned = self._backends.pop(key, None)
                if owned is None:
                    continue
                # A branch of a request that has failed may still run on its caller's thread.
                left_s = -1.0 if deadline is None else max(deadline - time.monotonic(), 0.0)
                busy.append(owned)
                is_ours = True if owned.slot is None else owned.slot.retire(left_s)
                if is_ours is not False:
                    busy.pop()
                if is_ours:  # else it was given up, and whoever hangs in it closes it, if ever
                    idle.append(owned.backend)
        except BaseException:
            for backend in idle:
                self.own(backend, None, 0)
            raise
        finally:
            for owned in busy:
                self._backends[id(owned.backend)] = owned
        close_all(idle)


def time_to_close(timeout: float | None) -> float | None:
    """Return the seconds that close() has, or None for no limit.

    Raises:
        TypeError, ValueError: it is no number.
    """
    if timeout is None:
        return None
    if not isinstance(timeout, Number) or isinstance(timeout, bool):
        raise TypeError(f"timeout must be a number of seconds, or None for no limit; got {timeout!r}")
    if timeout != timeout:
        raise ValueError("timeout must be a number of seconds, or None for no limit; got nan")
    return None if timeout >= threading.TIMEOUT_MAX else float(timeout)


def time_to_drain(timeout: float | None) -> float | None:
    """Return the seconds that swap() waits for old instances, or None for no limit.

    Less than nothing is refused here, and only here: close() must close, also if the caller's deadline has passed.

    Raises:
        TypeError, ValueError: it is no number, or less than nothing.
    """
    limit_s = time_to_close(timeout)
    if limit_s is not None and limit_s < 0:
        raise ValueError(f"timeout must be at least 0 seconds, or None for no limit; got {timeout!r}")
    return limit_s
