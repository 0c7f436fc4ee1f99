"""What becomes of instances whose backends hang: others are put in their places, as long as that makes sense."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, cast

from fastpipe import _core
from fastpipe.contract import close_all
from fastpipe.errors import BackendHung, ConfigError, PipeError
from fastpipe.faults import text_of
from fastpipe.instances.building import CameBack, build_backend, connect, thread_name
from fastpipe.instances.threads import Worker, serve_and_close, serve_shared

if TYPE_CHECKING:
    from fastpipe.config.plan import StepPlan
    from fastpipe.contract import Backend
    from fastpipe.pipe import Pipe

__all__ = ["HungInstances"]

# So many threads of a node may be stuck in a backend at once, at one place, before its instances are not replaced any
# more.
MOST_STUCK_THREADS = 4


class HungInstances:
    """The instances of a pipe that were given up.

    Thread-safety: the watchdog's thread, threads that come back, threads that build a replacement, and those that close
    the pipe or ask for its health call it.
    """

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = weakref.ref(pipe)
        # Guards the books below; never held while a backend is built. Told when an instance is in service again.
        self._changed = threading.Condition()
        # By station, that is by node, or where its instances are at several places by node and place.
        self._stuck: Counter[_core.Station] = Counter()  # threads that hang in its backend
        # Then by instance: who builds it anew, or None. Those that are not named are in service.
        self._absent: defaultdict[_core.Station, dict[int, Worker | None]] = defaultdict(dict)
        self._why: dict[_core.Station, str] = {}  # why the last replacement could not be built

    def problems(self) -> list[str]:
        """Return a sentence for each node that lacks instances."""
        said = []
        with self._changed:
            for station, absent in self._absent.items():
                if not absent:
                    continue
                why = self._why.get(station, f"{self._stuck[station]} threads are stuck in its backend")
                if any(absent.values()):
                    why = "being built again"
                said.append(f"{station.title} lacks {len(absent)} instance{'s'[: len(absent) != 1]}: {why}")
        return said

    def give_up(self, station: _core.Station, index: int) -> None:
        """An instance hangs, and a thread with it: have it replaced."""
        with self._changed:
            self._stuck[station] += 1
            self._absent[station][index] = None
            self._count(station)
        self._fill(station)

    def came_back(self, station: _core.Station) -> None:
        """A thread that had been given up has left the backend."""
        with self._changed:
            self._stuck[station] -= 1
        self._fill(station)

    def could_not_replace(self, station: _core.Station, index: int, error: BaseException) -> None:
        """A replacement could not be built."""
        with self._changed:
            self._why[station] = f"its backend could not be built again: {type(error).__name__}: {text_of(error)}"
            self._absent[station][index] = None
            self._changed.notify_all()
        self._lose(station, self._why.get(station, text_of(error)))

    def is_in_service(self, station: _core.Station, index: int) -> Worker:
        """A replacement is built; return the worker that has done it."""
        with self._changed:
            worker = self._absent[station].pop(index)
            self._why.pop(station, None)
            self._count(station)
            if type(station.lost) is BackendHung:
                station.recover()
            self._changed.notify_all()
        return cast("Worker", worker)

    def pipe_closes(self, deadline: float | None) -> None:
        """Wait for replacements without which a node cannot drain, but for no longer than a batch may run."""
        for station in list(self._absent):
            until = time.monotonic() + station.hang_timeout_s
            until = until if deadline is None else min(until, deadline)
            with self._changed:
                while self._has_none(station) and any(self._absent[station].values()) and time.monotonic() < until:
                    self._changed.wait(max(until - time.monotonic(), 0.0))
            self._lose(station, "the pipe closes, and they are not built again yet", also_if_being_built=True)

    def _count(self, station: _core.Station) -> None:
        """Count what is in service, and have nothing else be asked: what hung may be closed at any time."""
        station.in_service = station.instance_count - len(self._absent[station])
        pipe = self._pipe()
        if pipe is None:
            return
        bucket = next(config.bucket for config in pipe._configs if config.name == station.name)
        for node in pipe.nodes:
            if node.station is None or node.station.name != station.name:
                continue
            twins = node.twins or (node,)
            serving = [self._serving(twin) for twin in twins]
            anywhere = next(itertools.chain(*serving), None)
            if anywhere is None:
                continue  # the next replacement is asked
            for twin, here in zip(twins, serving, strict=True):
                twin.ask(here[0] if here else anywhere, bucket)
            if node.twins is not None:
                node.ask(anywhere, bucket)

    def _serving(self, twin: _core.Node) -> list[Backend]:
        absent = self._absent.get(cast("_core.Station", twin.station), ())
        return [instance.backend for index, instance in enumerate(twin.instances) if index not in absent]

    def _has_none(self, station: _core.Station) -> bool:
        return len(self._absent[station]) == station.instance_count

    def _fill(self, station: _core.Station) -> None:
        """Start building what is missing, if that is still worth a try."""
        pipe = self._pipe()
        workers = {}
        with self._changed:
            absent = self._absent[station]
            if pipe is not None and not pipe.closing and self._stuck[station] <= MOST_STUCK_THREADS:
                for index in [index for index, worker in absent.items() if worker is None]:
                    name = thread_name(station.name, station.numbers[index])
                    workers[index] = absent[index] = Worker(name, _replace, self._pipe, self, station, index)
        for index, worker in workers.items():
            try:
                worker.start()
            except (PipeError, RuntimeError) as error:  # there can be no more threads
                self.could_not_replace(station, index, error)
        self._lose(station, self._why.get(station, "all of them hung, and are not replaced any more"))

    def _lose(self, station: _core.Station, why: str, *, also_if_being_built: bool = False) -> None:
        """Fail what waits for a node, and what comes, if it has no instance and none is being built."""
        lost = BackendHung(why)
        with self._changed:
            if not self._has_none(station) or station.lost is not None:
                return
            if any(self._absent[station].values()) and not also_if_being_built:
                return
            station.lose(lost)  # under the lock: is_in_service() takes it back
        station.fail_queued(None, lost)


def _replace(pipe_ref: weakref.ref[Pipe], hung: HungInstances, station: _core.Station, index: int) -> None:
    """The life of a worker that begins by building the instance it serves."""
    pipe = pipe_ref()
    if pipe is None:
        return
    plan = next(config.plan for config in pipe._configs if config.name == station.name)
    came_back = CameBack(pipe)
    try:
        # Only what has an instance can hang.
        backend = build_backend(cast("StepPlan", plan), station.name, station.numbers[index], station.place)
        try:
            if backend.place != station.place:
                raise ConfigError(f"it was to be at {station.place}, as the one that hung, and is at {backend.place}")
            connect(pipe, pipe._configs, backend)
        except BaseException:
            close_all([backend])
            raise
    except BaseException as error:
        hung.could_not_replace(station, index, error)
        return
    if station.is_closed:
        close_all([backend])
        return
    pipe._put_in_place(station, index, backend)
    station.open_instance(index)
    del pipe, hung
    if station.thread_bound:
        serve_and_close(station, index, backend, came_back)
        return
    serve_shared(station, index, came_back)
    pipe = pipe_ref()
    if pipe is not None and station.is_closed:
        # close() may have looked for backends before this one was there. What is busy is close()'s, or nobody's: this
        # thread must not wait for an instance that hangs.
        pipe._close_backends(time.monotonic())
