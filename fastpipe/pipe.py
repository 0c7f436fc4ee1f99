"""Pipe: a description of nodes, built, and called from any number of threads, tasks and futures."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable, Iterator, Mapping
from numbers import Number
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from fastpipe import _core
from fastpipe._async_map import async_map
from fastpipe._building import Builder, jumps_of
from fastpipe._cpus import usable_cpu_count
from fastpipe._faults import text_of
from fastpipe._forks import ProcessLock
from fastpipe._hung import HungInstances
from fastpipe._results import with_request
from fastpipe._values import own_copy
from fastpipe._wiring import add_mistakes_of_the_graph
from fastpipe._workers import Worker, check_threads
from fastpipe.backend import Backend, Request, close_all
from fastpipe.config import load
from fastpipe.errors import BackendHung, ForkedPipe, PipeClosed, PipeError
from fastpipe.graph import compile_graph

if TYPE_CHECKING:
    from concurrent.futures import Future

    from fastpipe.debugger import Debugger
    from fastpipe.picture import Picture
    from fastpipe.recorder import Recording

__all__ = ["Pipe"]

# At the end of the process, open pipes are closed; requests still in flight get so long to end.
EXIT_DRAIN_S = 5.0
# Waiting threads spin for so long before they sleep, where there are cores to spare for it.
SPIN_NS = 2_000
# Threads that were told to leave do so at once; this bounds the wait for one that hangs in a backend.
LEAST_JOIN_S = 0.2

_open_pipes: weakref.WeakSet[Pipe] = weakref.WeakSet()
_living_pipes: weakref.WeakSet[Pipe] = weakref.WeakSet()  # closed ones, and those that are being built, too
_process_is_set_up = False
_set_up_lock = ProcessLock()


class Pipe(_core.Engine):
    """A graph of nodes as one thread-safe function: ``pipe(request)``.

    A request is a dict: input under ``"data"``, output under ``"result"``, anything else under its own key. It is
    copied (the dict, not the values) when the pipe is called, and written to once, when it succeeds: the result, and
    the keys that backends have set. While it is in flight, and if it fails, the caller's dict stays as it was (but for
    a ``"result"`` of an earlier call, which a failure removes).

    Args:
        source: the path of a TOML file, or a mapping of node names to nodes, or of one node's keys.
        keywords: nodes, or one node's keys; they win over ``source``.

    Raises:
        ConfigError: all mistakes of the description that show before anything is built, those of the graph included,
            each with node and key; or what a backend's constructor refused. Nothing goes on running.
        MissingExtra: a backend needs a library that is not installed.
        PipeError: gevent or eventlet has made greenlets of all threads.
        Exception: whatever a backend's constructor raised, with a note that names node and instance.

    Thread-safety: everything but construction may be called from any thread, ``close`` too.
    """

    def __init__(self, source: str | Path | Mapping[str, Any] | None = None, /, **keywords: Any) -> None:
        if hasattr(self, "_configs"):
            raise PipeError(f"{self!r} is built already; its threads would be left behind: make another Pipe")
        config = load(source, keywords, add_mistakes_of_the_graph)
        configs = config.nodes
        graph = compile_graph(configs, jumps_of(configs))
        check_threads()
        _set_up_process()
        self._written = own_copy(source if source is None or isinstance(source, str | Path) else dict(source)), keywords
        self._configs = configs
        self._compiled = graph
        self._debuggers: weakref.WeakSet[Debugger] = weakref.WeakSet()
        self._workers: list[Worker] = []
        self._watchdog: _core.Watchdog | None = None
        self._watchdog_worker: Worker | None = None
        self._hung = HungInstances(self)
        # What has to be closed by whoever closes the pipe: thread-bound backends are closed by their threads. By id(),
        # as several threads may take something out at the same time.
        self._backends: dict[int, tuple[Backend, _core.Station | None, int, int]] = {}
        # Reentrant: closing runs user code (backends, callbacks, signal handlers), which may close.
        self._close_lock = threading.RLock()
        if config.request_timeout_s is not None:
            self._set_timeout(config.request_timeout_s)
        if config.max_in_flight is not None:
            self._set_gate(config.max_in_flight, config.when_overloaded)
        self._obey(config.obey_request_keys)
        if config.without_result == "end":
            self._let_go()
        _living_pipes.add(self)
        builder = Builder(self, configs, graph, aborts_when_hung=config.when_hung == "abort")
        try:
            builder.build()
        except BaseException as error:
            if self._is_forked():  # a backend's constructor did, and this is the child: all of it is the parent's
                raise
            self._stop_workers(None)
            # Nothing runs, whether or not its instance was opened.
            self._backends = {key: (backend, None, 0, 0) for key, (backend, *_) in self._backends.items()}
            try:
                self._close_backends(None)
            except Exception as close_error:  # the reason for closing is what the user must see
                error.add_note(f"fastpipe: closing what was built raised {type(close_error).__name__}: {close_error}")
            raise
        self._capacity = builder.capacity
        _open_pipes.add(self)

    # ---- calling -----------------------------------------------------------------------------------------------

    def submit(
        self, request: Request, *, timeout: float | None = None, priority: float = 0, entry: str | None = None
    ) -> Future[Request]:
        """Start a request and return a future of it; the future's result is the request.

        What is changed in the dict after this returns is not seen by any backend.

        Cancelling the future before a backend has begun drops the request. No backend runs on this thread; but where
        a node's queue is full, and ``when_full`` is "block", it waits for room.
        ``timeout``, ``priority`` and ``entry``: as in a call.
        """
        from fastpipe._future import RequestFuture  # loaded by _set_up_process

        future = RequestFuture()
        self._submit(request, future, timeout, priority, entry)
        return future

    def acall(
        self, request: Request, *, timeout: float | None = None, priority: float = 0, entry: str | None = None
    ) -> Coroutine[Any, Any, Request]:
        """Run a request without blocking the event loop; return it. Cancelling the task cancels the request.

        What is changed in the dict after this has been called, even before it is awaited, is not seen by any backend.
        ``timeout``, ``priority`` and ``entry``: as of a call.
        """
        given = dict.copy(request) if isinstance(request, dict) else request
        return self._acall(request, given, timeout, priority, entry)

    async def _acall(
        self,
        request: Request,
        given: Request,
        timeout: float | None,
        priority: float,
        entry: str | None,
        is_patient: bool = False,
    ) -> Request:
        import asyncio  # a caller that has a running loop has imported it

        loop = asyncio.get_running_loop()
        future = loop.create_future()
        terms = self._terms(timeout, priority)
        started = self._start_async(request, loop, future, terms, entry, given, is_patient)
        limit = None
        try:
            if isinstance(started, _core.Waiter):  # for room; once it is let in, the pipe's clock sees to its limit
                remaining_s = self._remaining_s(terms)
                limit = None if remaining_s is None else loop.call_later(remaining_s, started.expire)
            await future
        except BaseException:  # cancelled, or the coroutine was closed, or there is no memory for the limit
            started.cancel()
            raise
        finally:
            if limit is not None:
                limit.cancel()
        return request

    @overload
    def map(
        self,
        requests: Iterable[Request],
        *,
        look_ahead: int | None = ...,
        return_exceptions: Literal[False] = ...,
        timeout: float | None = ...,
        priority: float = ...,
        entry: str | None = ...,
    ) -> Iterator[Request]: ...
    @overload
    def map(
        self,
        requests: Iterable[Request],
        *,
        look_ahead: int | None = ...,
        return_exceptions: bool,
        timeout: float | None = ...,
        priority: float = ...,
        entry: str | None = ...,
    ) -> Iterator[Request | BaseException]: ...
    def map(
        self,
        requests: Iterable[Request],
        *,
        look_ahead: int | None = None,
        return_exceptions: bool = False,
        timeout: float | None = None,
        priority: float = 0,
        entry: str | None = None,
    ) -> Iterator[Any]:
        """Run requests concurrently and yield them in order.

        It sets its own pace: where there is no room for a request it waits, whatever ``when_full`` says, so that no
        request of its own is refused or shed because of another.

        Args:
            requests: may be endless: only ``look_ahead`` requests are taken ahead of the one to be yielded next.
            look_ahead: default twice what all instances of all nodes can hold.
            return_exceptions: yield a failed request's exception in its place instead of raising it; its
                ``failed_request`` is the request. Also if the request was not let in (it is no dict, there was no room
                within its time). What is raised ends the iteration, and cancels the requests taken ahead: without
                ``return_exceptions`` each failure; always an exception of ``requests`` itself, and PipeClosed or
                ForkedPipe of a pipe that takes no more requests.
            timeout: seconds that each request may take, from when it is taken.
            priority: as of a call.
            entry: as of a call.
        """
        window = self._window(look_ahead)
        self._terms(timeout, priority)  # what is wrong with them is said now
        return self._map(iter(requests), window, return_exceptions, timeout, priority, entry)

    def _map(
        self,
        requests: Iterator[Request],
        window: int,
        return_exceptions: bool,
        timeout: float | None,
        priority: float,
        entry: str | None,
    ) -> Iterator[Any]:
        started: deque[tuple[_core.Walk | Exception, Request]] = deque()
        failure: Exception | None = None
        try:
            while True:
                try:
                    request = next(requests)
                except StopIteration:
                    break
                except Exception as error:  # of the iterable: in its place, behind what has begun
                    failure = error
                    break
                try:
                    started.append((self._start(request, timeout, priority, entry, True), request))
                except (PipeClosed, ForkedPipe) as error:
                    failure = error
                    break
                except Exception as error:  # it was not let in
                    started.append((error.with_traceback(None), request))
                    if not return_exceptions:
                        break
                if len(started) >= window:
                    yield self._next_of(started, return_exceptions)
            while started:
                yield self._next_of(started, return_exceptions)
            if failure is not None:
                raise failure
        finally:
            failure = None  # see _next_of
            for walk, _ in started:
                if isinstance(walk, _core.Walk):
                    walk.cancel()

    @staticmethod
    def _next_of(started: deque[tuple[_core.Walk | Exception, Request]], return_exceptions: bool) -> Any:
        walk, request = started[0]
        error = walk.wait() if isinstance(walk, _core.Walk) else walk
        started.popleft()
        if error is None:
            return request
        if return_exceptions:
            return with_request(error, request)
        try:
            raise _core._as_raised(error)
        finally:
            del error, walk  # the traceback holds this frame: without this, a cycle would keep the request and its pipe

    @overload
    def amap(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        look_ahead: int | None = ...,
        return_exceptions: Literal[False] = ...,
        timeout: float | None = ...,
        priority: float = ...,
        entry: str | None = ...,
    ) -> AsyncGenerator[Request, None]: ...
    @overload
    def amap(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        look_ahead: int | None = ...,
        return_exceptions: bool,
        timeout: float | None = ...,
        priority: float = ...,
        entry: str | None = ...,
    ) -> AsyncGenerator[Request | BaseException, None]: ...
    def amap(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        look_ahead: int | None = None,
        return_exceptions: bool = False,
        timeout: float | None = None,
        priority: float = 0,
        entry: str | None = None,
    ) -> AsyncGenerator[Any, None]:
        """Run requests concurrently and yield them in order, without blocking the event loop.

            async with contextlib.aclosing(pipe.amap(requests)) as answers:
                async for answer in answers: ...

        Args:
            requests: also an asynchronous iterable. While the next request is awaited, answers go on being yielded.
            look_ahead: as of ``map``.
            return_exceptions: as of ``map``.
            timeout: as of ``map``.
            priority: as of a call.
            entry: as of a call.

        Whoever leaves the loop early cancels what was taken ahead, and a request that was being awaited: with
        ``aclosing``, before the block ends; without, as soon as the event loop gets to it.
        """
        window = self._window(look_ahead)
        self._terms(timeout, priority)  # what is wrong with them is said now
        return async_map(self, requests, window, return_exceptions, timeout, priority, entry)

    def _window(self, look_ahead: int | None) -> int:
        """Return how many requests a map takes ahead."""
        if look_ahead is None:
            return self._capacity * 2
        if not isinstance(look_ahead, int) or isinstance(look_ahead, bool):
            raise TypeError(f"look_ahead must be a whole number of requests, at least 1; got {look_ahead!r}")
        if look_ahead < 1:
            raise ValueError(f"look_ahead must be at least 1, got {look_ahead}")
        return look_ahead

    def __repr__(self) -> str:
        state = "closed" if self.closing else f"{self.in_flight} in flight"
        names = ", ".join(config.name for config in self._configs if not config.is_hidden)
        return f"<fastpipe.Pipe of {names}: {state}>"

    # ---- watching ----------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Counters since the pipe was built.

        ``requests`` counts outcomes: accepted = in_flight + done + failed + cancelled; refused were never accepted.
        (The parts of a Jump or MapReduce that is a step of a Sequential are requests, too.)
        ``failures`` counts the failed ones by reason: "timeout", "queue full", "closed", "hung", "worker died", "device
        lost", "no result"; "error" for all else.
        ``copies`` counts the dicts that were copied because several nodes read them.
        ``nodes`` has, by name: batches and requests run (a retried request counts each time), mean_batch, failed,
        run_by_caller (requests that ran on their caller's thread), gil_acquires (by workers), busy_s (time in
        backends, summed over instances), queued and running now, why batches left the queue, batches that hung, and
        how often a worker died and was set to work again. Where the instances of a node are at several places (GPUs),
        ``places`` has the same for each place.
        """
        stations: dict[str, list[_core.Station]] = {}
        for station in self.stations:
            stations.setdefault(station.name, []).append(station)
        return {
            "requests": self._counts(),
            "failures": dict(self.failures),
            "copies": self.copies,
            "nodes": {name: _stats_of(each) for name, each in stations.items()},
        }

    def graph(self) -> Picture:
        """Return the picture of the pipe: to print, to show in a notebook, or as SVG, Mermaid, DOT or HTML."""
        from fastpipe.picture import Picture

        largest = {station.name: station.max_batch for station in reversed(self.stations)}  # at its first place
        return Picture(self._configs, self._compiled, largest)

    def health(self) -> dict[str, Any]:
        """Whether the pipe can do its work: for a service's health check.

        ``healthy`` is False once the pipe is closed, or a node has lost its device (``fastpipe.DeviceLost``), or all of
        its instances to ``hang_timeout``: then every request that comes there fails at once, and only a new process, as
        a rule, can do better. Also while a node lacks some instances. ``problems`` has a sentence for each reason.
        Cheap; from any thread.
        """
        if self._is_forked():
            return {"healthy": False, "problems": ["the pipe was built before os.fork()"]}
        problems = ["the pipe is closed"] if self.closing else []
        for station in self.stations:
            if station.lost is not None and not isinstance(station.lost, BackendHung):
                kind = type(station.lost).__name__
                problems.append(f"{station.title} has lost its device: {kind}: {text_of(station.lost)}")
        problems += self._hung.problems()
        return {"healthy": not problems, "problems": problems}

    def debug(self, request: Request | None = None, *, entry: str | None = None) -> Debugger:
        """Return a debugger, which takes one request through the pipe node by node, on the thread that uses it.

            with pipe.debug({"data": 3}) as debugger:
                print(debugger.step())

        Without ``request``, ``debugger.start(request)`` gives it one. ``entry``: as of a call. See
        :mod:`fastpipe.debugger`.
        """
        from fastpipe.debugger import Debugger

        return Debugger(self, request, entry=entry)

    def record(
        self,
        path: str | Path,
        *,
        sample: float = 0.0,
        failures: bool = True,
        limit: int = 100,
        copy_below_bytes: int = 8 << 20,
        pickle: bool = False,
    ) -> Recording:
        """Keep requests with their inputs in a directory from now on, a file each; ``fastpipe replay`` runs them again.

            with pipe.record("records", sample=0.001):
                serve(pipe)

        A thread of its own writes. The pipe never waits for it and never fails with it: what is too much is dropped.
        Files are their owner's alone. Values under keys that look like those of secrets are left out.

        Args:
            path: the directory; it is made if it is not there, for its owner alone.
            sample: the share of all requests, 0 to 1, that are kept with their answers.
            failures: keep all requests that fail.
            limit: of files in the directory; the oldest go.
            copy_below_bytes: arrays of fewer bytes are copied when a request comes: what a backend changes in place is
                recorded as it was. Of larger ones, what is there when the request has ended is recorded.
            pickle: keep values of types of yours, too, as pickles; who replays must say so, too. Loading a pickle runs
                what is in it: only for records that nobody else can write.

        Returns:
            a handle: ``stop()`` ends it, also at the end of a ``with`` block; ``written``, ``dropped``, ``last_error``.

        Raises:
            OSError: the directory cannot be made or written to.
            PipeError: the pipe is recording already.
        """
        from fastpipe.recorder import Recording

        return Recording(
            self, path, sample=sample, failures=failures, limit=limit, copy_below_bytes=copy_below_bytes, pickle=pickle
        )

    # ---- life --------------------------------------------------------------------------------------------------

    def close(self, timeout: float | None = None) -> None:
        """Refuse new requests, let those in flight end, and stop all threads.

        Args:
            timeout: seconds for the requests in flight; those that have not ended then fail with PipeClosed.
                None: however long it takes. A backend that does not return cannot be interrupted: its thread is
                left behind and ends with it, and its instance is not closed (but by another close() after that). Where
                a node has a ``hang_timeout``, nobody waits for longer than that.

        Idempotent; may be called from any thread; does nothing in the child of a fork. Called from inside one of the
        pipe's own backends it returns at once, and the rest happens as soon as that backend is done.
        """
        timeout = _time_to_close(timeout)
        if self._is_forked():
            return
        self._refuse_new()
        if self._is_inside():
            Worker("fastpipe closer", self.close, timeout).start()
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        self._tell_debuggers()
        self._hung.pipe_closes(deadline)
        self._wait_drained(-1.0 if timeout is None else max(timeout, 0.0))
        with self._close_lock:
            _open_pipes.discard(self)
            # Also if nothing is in flight: requests that were cancelled may still be queued, and keep workers.
            self._fail_rest("the pipe was closed before the request ended")
            try:
                self._stop_workers(deadline)
            finally:
                self._close_backends(deadline)
        if self.recorder is not None:
            self.recorder.stop(None if deadline is None else max(deadline - time.monotonic(), LEAST_JOIN_S))

    async def aclose(self, timeout: float | None = None) -> None:
        """Close the pipe without blocking the event loop; see ``close``.

        Requests whose tasks run in this loop go on meanwhile. Cancelling the task ends the waiting, not the closing,
        which goes on on a thread of its own.
        """
        import asyncio  # a caller that has a running loop has imported it

        _time_to_close(timeout)
        loop = asyncio.get_running_loop()
        closed = loop.create_future()

        def settle(error: BaseException | None) -> None:
            if closed.done():  # cancelled
                return
            if error is None:
                closed.set_result(None)
            else:
                closed.set_exception(error)

        def close() -> None:
            failure = None
            try:
                self.close(timeout)
            except BaseException as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle, failure)

        if not self._is_forked():
            Worker("fastpipe closer", close).start()
            await closed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # While the interpreter is taken down, the names of this module may be gone, which is why the function is an
        # argument, and _close_at_exit has closed what could be closed.
        if is_finalizing():
            return
        # Dropped without close: no request is in flight, as each holds its pipe. Threads are told to leave, not
        # awaited: this may run on one of them.
        if hasattr(self, "_backends") and not self._is_forked():
            self._refuse_new()
            self._close_stations()
            if self._watchdog is not None:
                self._watchdog.stop()
            self._close_backends(time.monotonic())

    def _tell_debuggers(self) -> None:
        # Not in close(), whose frame would keep the last one, and its request, alive while it waits for that.
        for debugger in list(self._debuggers):
            debugger._pipe_closes()

    def _stop_workers(self, deadline: float | None) -> None:
        self._close_stations()
        if deadline is not None:
            deadline = max(deadline, time.monotonic() + LEAST_JOIN_S)
        for worker in list(self._workers):
            if worker.thread is not threading.current_thread():
                worker.join(None if deadline is None else max(deadline - time.monotonic(), 0.0))
        if self._watchdog is not None and self._watchdog_worker is not None:  # only now: a worker may hang until here
            self._watchdog.stop()
            if self._watchdog_worker.thread is not threading.current_thread() and not self._has_left_behind():
                self._watchdog_worker.join(LEAST_JOIN_S)

    def _has_left_behind(self) -> bool:
        """True if some worker has not left in time: it may hang."""
        return any(worker.is_left_behind for worker in list(self._workers))

    def _start_clock(self, clock: _core.Clock) -> None:
        worker = Worker("fastpipe clock", clock.serve)
        self._workers.append(worker)
        try:
            worker.start()
        except BaseException:  # a signal or no memory; its thread may have begun, and close() then waits for its end
            clock.stop()
            if worker.is_over:
                self._workers.remove(worker)
            raise

    def _own(self, backend: Backend, station: _core.Station | None, index: int) -> None:
        """Close a backend with the pipe, once its instance is free; ``station`` None: at any time."""
        life = 0 if station is None else station.life_of(index)
        self._backends[id(backend)] = backend, station, index, life

    def _close_backends(self, deadline: float | None) -> None:
        idle: list[Backend] = []
        busy = []
        try:
            for key in list(self._backends):
                # One at a time off the books: a signal handler may close the pipe while this waits.
                each = self._backends.pop(key, None)
                if each is None:
                    continue
                backend, station, index, life = each
                # A branch of a request that has failed may still run on its caller's thread.
                left_s = -1.0 if deadline is None else max(deadline - time.monotonic(), 0.0)
                busy.append(each)
                is_ours = True if station is None else station.retire(index, life, left_s)
                if is_ours is not False:
                    busy.pop()
                if is_ours:  # else it was given up, and whoever hangs in it closes it, if ever
                    idle.append(backend)
        except BaseException:
            for backend in idle:
                self._own(backend, None, 0)
            raise
        finally:
            for each in busy:
                self._backends[id(each[0])] = each
        close_all(idle)

    # ---- instances that hang -----------------------------------------------------------------------------------

    def _give_up(self, station: _core.Station, index: int) -> None:
        """Called by the watchdog: give an instance up, on a thread of its own, as callbacks of futures run there."""
        try:
            Worker("fastpipe hung", station.give_up, index).start()
        except (PipeError, RuntimeError):  # there can be no more threads
            station.give_up(index)

    def _replace_hung(
        self, station: _core.Station, index: int, instance: _core.Instance, thread: threading.Thread
    ) -> None:
        """Forget an instance that hangs, and the thread in it, and have it replaced."""
        self._backends.pop(id(instance.backend), None)  # whoever hangs in it closes it, if ever
        self._hung.give_up(station, index)
        for worker in list(self._workers):
            if worker.thread is thread:
                self._workers.remove(worker)
                worker.give_up()

    def _put_in_place(self, station: _core.Station, index: int, backend: Backend) -> None:
        """Give an instance a new backend, and wait for its worker from now on when closing."""
        instance = _core.Instance(backend, index)
        for node in self.nodes:
            for twin in (node,) if node.twins is None else node.twins:
                if twin.station is station:
                    twin.instances[index] = instance
        self._workers.append(self._hung.is_in_service(station, index))
        if not station.thread_bound:
            self._own(backend, station, index)


def _time_to_close(timeout: float | None) -> float | None:
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


def _stats_of(stations: list[_core.Station]) -> dict[str, Any]:
    """Return the counters of a node: those of its stations together, and at each place if there are several."""
    places = {station.place: station.stats() for station in stations}
    first, *others = places.values()
    if not others:
        return first
    total = {**first, "why_batches_left": dict(first["why_batches_left"])}
    for other in others:
        for key, value in other.items():
            if key == "why_batches_left":
                for reason, count in value.items():
                    total[key][reason] = total[key].get(reason, 0) + count
            else:
                total[key] += value
    total["mean_batch"] = total["requests"] / total["batches"] if total["batches"] else 0.0
    return {**total, "places": places}


def _set_up_process() -> None:
    """Do, once, what concerns the process: signals, fork, exit. Not at import, but when the first pipe is built."""
    global _process_is_set_up
    # Not once: it may be imported at any time, by another library, too.
    getcurrent = getattr(sys.modules.get("greenlet"), "getcurrent", None)
    if getcurrent is not None:
        _core.know_greenlets(getcurrent)
    if _process_is_set_up:
        return
    with _set_up_lock.of_this_process:
        if _process_is_set_up:
            return
        # Futures, and what tells where threads hang: they take longer to import than all of fastpipe, but when the
        # first is needed, there may be no file descriptor left to open a module with.
        import traceback  # noqa: F401

        import fastpipe._future  # noqa: F401

        _configure()
        os.register_at_fork(after_in_child=_after_fork_in_child)
        # Runs after the program's own threads have been joined (they may call pipes until then); ours are daemons.
        atexit.register(_close_at_exit)
        # Last: the child of a fork in the middle does it again, and twice does no harm.
        _process_is_set_up = True


def _configure() -> None:
    main = threading.main_thread().ident
    # On one or two cores a spinning waiter occupies the core on which what it waits for would run.
    _core.configure_process(0 if main is None else main, SPIN_NS if usable_cpu_count() > 2 else 0)


def _after_fork_in_child() -> None:
    _core.note_fork_in_child()
    _open_pipes.clear()
    # Libraries have threads, locks and devices that are the parent's: what frees a model may wait for them for ever, or
    # crash. So the child frees nothing of what the parent has built, neither when it drops it nor when it ends.
    _core.abandon_in_child(list(_living_pipes))
    _living_pipes.clear()
    _configure()


def _close_at_exit() -> None:
    deadline = time.monotonic() + EXIT_DRAIN_S
    for pipe in list(_open_pipes):
        pipe.close(timeout=max(deadline - time.monotonic(), 0.0))
    # Workers that an earlier close(timeout) left behind in a backend: native code that is still running when the
    # interpreter goes may abort the process.
    for thread in threading.enumerate():
        if thread.name.startswith("fastpipe "):
            thread.join(max(deadline - time.monotonic(), 0.0))
