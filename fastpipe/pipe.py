"""Pipe: a description of nodes, built, and called from any number of threads, tasks and futures."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from fastpipe import _core, process
from fastpipe._maps import amap_in_order, map_in_order, window_of
from fastpipe._streams import StreamingCalls, as_given
from fastpipe.config.reading import load
from fastpipe.config.sub_graphs import jumps_of
from fastpipe.config.wiring import add_mistakes_of_the_graph, compile_graph
from fastpipe.contract import Request
from fastpipe.errors import PipeError
from fastpipe.instances.building import Builder
from fastpipe.instances.hung import Keeper, WeakKeeper
from fastpipe.instances.logbook import Logbook
from fastpipe.instances.owned import LEAST_JOIN_S, Instances, time_to_close
from fastpipe.instances.swapping import Swappable, Swapper
from fastpipe.instances.threads import Worker, check_threads, run_on_thread
from fastpipe.measures import Stats, between, stats_of

if TYPE_CHECKING:
    from concurrent.futures import Future

    from fastpipe.debug.debugger import Debugger
    from fastpipe.debug.description import Description
    from fastpipe.debug.recorder import Recording
    from fastpipe.observe.timeline import Timeline
    from fastpipe.show.picture import Picture

__all__ = ["Pipe"]


class Pipe(Swappable, StreamingCalls):
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

    _keeper: Keeper

    def __init__(self, source: str | Path | Mapping[str, Any] | None = None, /, **keywords: Any) -> None:
        if hasattr(self, "_logbook"):
            raise PipeError(f"{self!r} is built already; its threads would be left behind: make another Pipe")
        self._logbook, self._instances = Logbook(), Instances()
        config = load(source, keywords, add_mistakes_of_the_graph)
        self._compiled = compile_graph(config.nodes, jumps_of(config.nodes))
        check_threads()
        process.set_up()
        self._id = os.urandom(8).hex()
        self._made_of = config
        self._debuggers: weakref.WeakSet[Debugger] = weakref.WeakSet()
        self._keeper = Keeper(self, self._instances, self._logbook)
        # Reentrant: closing runs user code (backends, callbacks, signal handlers), which may close.
        self._close_lock = threading.RLock()
        if config.request_timeout_s is not None:
            self._set_timeout(config.request_timeout_s)
        if config.max_in_flight is not None:
            self._set_gate(config.max_in_flight, config.when_overloaded)
        self._obey(config.obey_request_keys)
        if config.without_result == "end":
            self._let_go()
        process.living_pipes.add(self)
        keeper = WeakKeeper(weakref.ref(self._keeper))
        aborts = config.when_hung == "abort"
        builder = Builder(self, self._instances, keeper, config.nodes, self._compiled, aborts_when_hung=aborts)
        self._swapper = Swapper(self._instances, self._keeper, keeper, self._logbook, self._debuggers)
        try:
            builder.build()
        except BaseException as error:
            if self._is_forked():  # a backend's constructor did, and this is the child: all of it is the parent's
                raise
            self._close_stations()
            self._instances.close_what_was_built(error)
            raise
        self.interface = builder.interface(config.interface)
        """What goes in and comes out, for servers: what the key ``serve`` says, else the backends at both ends."""
        process.open_pipes.add(self)
        self._logbook.pipe_built(builder.instances)

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
        return self._submit(request, timeout, priority, entry)

    def acall(
        self, request: Request, *, timeout: float | None = None, priority: float = 0, entry: str | None = None
    ) -> Coroutine[Any, Any, Request]:
        """Run a request without blocking the event loop; return it. Cancelling the task cancels the request.

        What is changed in the dict after this has been called, even before it is awaited, is not seen by any backend.
        ``timeout``, ``priority`` and ``entry``: as of a call.
        """
        return self._acall(request, as_given(request), timeout, priority, entry)

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
            look_ahead: default twice ``capacity``.
            return_exceptions: yield a failed request's exception instead of raising it; its
                ``failed_request`` is the request. Also if the request was not let in (it is no dict, there was no room
                within its time). What is raised ends the iteration, and cancels the requests taken ahead: without
                ``return_exceptions`` each failure; always an exception of ``requests`` itself, and PipeClosed or
                ForkedPipe of a pipe that takes no more requests.
            timeout: seconds that each request may take, from when it is taken.
            priority: as of a call.
            entry: as of a call.
        """
        window = window_of(look_ahead, self.capacity * 2)
        self._terms(timeout, priority)  # what is wrong with them is said now
        # No function of Python's: a signal could raise behind its call, and nobody would cancel what was started.
        start = partial(self._start, timeout=timeout, priority=priority, name=entry, is_patient=True)
        return map_in_order(start, iter(requests), window, return_exceptions)

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

        ``requests`` may be an asynchronous iterable; while its next is awaited, answers go on being yielded. The other
        arguments are those of ``map``.

        Whoever leaves the loop early cancels what was taken ahead, and a request that was being awaited: with
        ``aclosing``, before the block ends; without, as soon as the event loop gets to it.
        """
        window = window_of(look_ahead, self.capacity * 2)
        self._terms(timeout, priority)  # what is wrong with them is said now

        def call(request: Request) -> Coroutine[Any, Any, Request]:
            return self._acall(request, as_given(request), timeout, priority, entry, is_patient=True)

        return amap_in_order(call, self, requests, window, return_exceptions)

    def __repr__(self) -> str:
        state = "closed" if self.closing else f"{self.in_flight} in flight"
        names = ", ".join(config.name for config in self._made_of.nodes if not config.is_hidden)
        return f"<fastpipe.Pipe of {names}: {state}>"

    # ---- watching ----------------------------------------------------------------------------------------------

    def stats(self, since: Stats | None = None) -> Stats:
        """What the pipe has done since it was built, or since an earlier ``stats()``.

        ``requests`` counts outcomes: accepted = in_flight + done + failed + cancelled; refused were never accepted.
        (The parts of a Jump or MapReduce that is a step of a Sequential are requests, too.)
        ``failures`` counts the failed ones by reason: "timeout", "queue full", "closed", "hung", "worker died", "device
        lost", "no result"; "error" for all else.
        ``copies`` counts the dicts that were copied because several nodes read them.
        ``latency_s`` is the distribution of the times from call to answer.
        ``nodes`` has, by name, what each node has counted: ``fastpipe.NodeStats`` says what. Where the instances of a
        node are at several places (GPUs), ``places`` has the same for each place.

        All of it is counted at one moment. Thread-safe; no request waits for it.

        Args:
            since: what an earlier ``stats()`` of this pipe returned, itself without ``since``: counters and
                distributions are those of the time since then. What is a state (in_flight, queued, running, oldest_s,
                instances) is the one of now.

        Raises:
            TypeError, ValueError: ``since`` is something else, or another pipe's.
        """
        now = stats_of(self._id, self._measures())
        return now if since is None else between(now, since)

    def graph(self, *, stats: bool | Stats = False) -> Picture:
        """Return the picture of the pipe: to print, to show in a notebook, or as SVG, PNG, Mermaid, DOT or HTML.

        Args:
            stats: True: each node has numbers on it, since the pipe was built: requests, failures, queue, batches, and
                the p99 of the times in its queue and in its backend. What ``stats(since=earlier)`` returned: the same
                of that interval, with a rate.
        """
        from fastpipe.show.numbers import lines_of
        from fastpipe.show.picture import Picture

        largest = {station.name: station.max_batch for station in reversed(self.stations)}  # at its first place
        picture = Picture(self._made_of.nodes, self._compiled, largest)
        numbers = self.stats() if stats is True else stats
        return picture.with_numbers(lines_of(numbers, is_interval=numbers is stats)) if numbers else picture

    def health(self) -> dict[str, Any]:
        """Whether the pipe can do its work: for a service's health check.

        ``healthy`` is False once the pipe is closed, or a node has lost its device (``fastpipe.DeviceLost``), or all of
        its instances to ``hang_timeout``: then every request that comes there fails at once, and only a new process, as
        a rule, can do better. Also while a node lacks some instances. ``problems`` has all reasons. Cheap; thread-safe.
        """
        if self._is_forked():
            return {"healthy": False, "problems": ["the pipe was built before os.fork()"]}
        problems = ["the pipe is closed"] if self.closing else []
        problems += self._keeper.problems()
        return {"healthy": not problems, "problems": problems}

    def debug(self, request: Request | None = None, *, entry: str | None = None) -> Debugger:
        """Return a debugger, which takes one request through the pipe node by node, on the thread that uses it.

            with pipe.debug({"data": 3}) as debugger:
                print(debugger.step())

        Without ``request``, ``debugger.start(request)`` gives it one. ``entry``: as of a call. More: ``Debugger``.
        """
        from fastpipe.debug.debugger import Debugger

        debugger = Debugger(self, self._made_of.nodes, self._description().secrets(), request, entry=entry)
        self._debuggers.add(debugger)
        return debugger

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
        from fastpipe.debug.recorder import Recording

        return Recording(
            self,
            self._description(),
            self._logbook,
            path,
            sample=sample,
            failures=failures,
            limit=limit,
            copy_below_bytes=copy_below_bytes,
            pickle=pickle,
        )

    def timeline(self, path: str | Path) -> Timeline:
        """Write to a file from now on what the pipe does, thread by thread and batch by batch; ``stop()`` ends it.

            with pipe.timeline("run.pftrace"): ...

        For https://ui.perfetto.dev, which draws it. What it costs, and raises: ``Timeline``.
        """
        from fastpipe.observe.timeline import Timeline

        return Timeline(self, path)

    def _description(self) -> Description:
        """Return what it was made from."""
        from fastpipe.debug.description import Description

        return Description.of(self._made_of)

    @property
    def capacity(self) -> int:
        """How many requests all instances of all nodes hold, in full batches; ``map`` takes twice that ahead."""
        return sum(station.instance_count * station.max_batch for station in self.stations)

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
        timeout = time_to_close(timeout)
        if self._is_forked():
            return
        self._refuse_new()
        if self._is_inside():
            Worker("fastpipe closer", self.close, timeout).start()
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        self._tell_debuggers()
        self._keeper.pipe_closes(deadline)
        self._wait_drained(-1.0 if timeout is None else max(timeout, 0.0))
        with self._close_lock:
            process.open_pipes.discard(self)
            # Also if nothing is in flight: requests that were cancelled may still be queued, and keep workers.
            self._fail_rest("the pipe was closed before the request ended")
            try:
                self._close_stations()
                self._instances.join_threads(deadline)
            finally:
                self._instances.close_backends(deadline)
        if self.recorder is not None:
            self.recorder.stop(None if deadline is None else max(deadline - time.monotonic(), LEAST_JOIN_S))
        self._logbook.pipe_closed(self._counts())

    async def aclose(self, timeout: float | None = None) -> None:
        """Close the pipe without blocking the event loop; see ``close``.

        Requests whose tasks run in this loop go on meanwhile. Cancelling the task ends the waiting, not the closing,
        which goes on on a thread of its own.
        """
        import asyncio  # a caller that has a running loop has imported it

        time_to_close(timeout)
        if not self._is_forked():
            self._leave_streams(asyncio.current_task())
            await run_on_thread("fastpipe closer", self.close, timeout)

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
        # argument, and what runs at exit has closed what could be closed.
        if is_finalizing():
            return
        # Dropped without close: no request is in flight, as each holds its pipe. Threads are told to leave, not
        # awaited: this may run on one of them.
        if hasattr(self, "_instances") and not self._is_forked():
            self._refuse_new()
            self._close_stations()
            self._instances.stop_watchdog()
            self._instances.close_backends(time.monotonic())

    def _tell_debuggers(self) -> None:
        # Not in close(), whose frame would keep the last one, and its request, alive while it waits for that.
        for debugger in list(self._debuggers):
            debugger._pipe_closes()
