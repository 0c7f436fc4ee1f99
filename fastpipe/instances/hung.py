"""What becomes of instances whose backends hang: others replace them, as long as that makes sense."""

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
from fastpipe.instances.logbook import Line, Logbook
from fastpipe.instances.one import build_backend, connect, thread_name
from fastpipe.instances.owned import Instances
from fastpipe.instances.threads import Slot, Worker, serve_and_close, serve_shared

if TYPE_CHECKING:
    from fastpipe.config.described import NodeConfig, PipeConfig
    from fastpipe.config.plan import StepPlan
    from fastpipe.contract import Backend

__all__ = ["Keeper", "WeakKeeper"]

# So many threads of a node may be stuck in a backend at once, at one place, before its instances are not replaced any
# more.
MOST_STUCK_THREADS = 4


class Keeper:
    """The engine's keeper (``_core._Keeper``): it knows which instances were given up, and has them built again.

    Thread-safety: the watchdog's thread, threads that come back, threads that build a replacement, and those that close
    the pipe or ask for its health call it.
    """

    def __init__(self, engine: _core.Engine, instances: Instances, logbook: Logbook) -> None:
        self._engine = weakref.ref(engine)  # which owns this
        self._instances = instances
        self._logbook = logbook
        # Guards the books below, and what changes who serves: a replacement, a switch. Never held while a backend is
        # built. Told when an instance is in service again.
        self._changed = threading.Condition()
        # By station, that is by node, or where its instances are at several places by node and place.
        self._stuck: Counter[_core.Station] = Counter()  # threads that hang in its backend
        # Then by token: who builds the instance anew, or None. Those that are not named are in service, or retired.
        self._absent: defaultdict[_core.Station, dict[int, Worker | None]] = defaultdict(dict)
        self._why: dict[_core.Station, str] = {}  # why the last replacement could not be built

    # ---- what the engine asks ----------------------------------------------------------------------------------

    def start_clock(self, clock: _core.Clock) -> None:
        """See ``Instances.start_clock``."""
        self._instances.start_clock(clock)

    def give_up(self, station: _core.Station, index: int) -> None:
        """Give an instance up, on a thread of its own, as callbacks of futures run there."""
        try:
            Worker("fastpipe hung", station.give_up, index).start()
        except (PipeError, RuntimeError):  # there can be no more threads
            station.give_up(index)

    def replace(self, station: _core.Station, index: int, instance: _core.Instance, thread: threading.Thread) -> None:
        """Forget an instance that hangs, and the thread in it, and have it built again."""
        self._instances.disown(instance.backend)
        with self._changed:
            self._stuck[station] += 1
            if not _is_retired(station, index):
                self._absent[station][index] = None
                self._count(station)
        late_s = station.given_up_after_ns / 1e9
        self._say("hung", station, index, f"its backend has not returned for {late_s:.3g} s, and is given up")
        self._fill(station)
        self._instances.forget_thread(thread)

    def note_refusals(self, gate: _core.Station) -> None:
        """See ``Logbook.note_refusals``."""
        self._logbook.note_refusals(gate)

    def note_loss(self, station: _core.Station, index: int) -> None:
        """Have it said that a node has lost its device."""
        lost = cast("BaseException", station.lost)
        self._say(
            "device_lost", station, index, f"the device of the node is lost: {type(lost).__name__}: {text_of(lost)}"
        )

    # ---- what others ask and tell ------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """Return a sentence for each node that has lost its device, and for each that lacks instances."""
        engine = self._engine()
        said = [
            f"{station.title} has lost its device: {type(station.lost).__name__}: {text_of(station.lost)}"
            for station in (() if engine is None else engine.stations)
            if station.lost is not None and not isinstance(station.lost, BackendHung)
        ]
        with self._changed:
            for station, absent in self._absent.items():
                if not absent:
                    continue
                why = self._why.get(station, f"{self._stuck[station]} threads are stuck in its backend")
                if any(absent.values()):
                    why = "being built again"
                said.append(f"{station.title} lacks {len(absent)} instance{'s'[: len(absent) != 1]}: {why}")
        return said

    def came_back(self, station: _core.Station) -> None:
        """A thread that had been given up has left the backend."""
        with self._changed:
            self._stuck[station] -= 1
        self._fill(station)

    def worker_died(self, station: _core.Station, index: int, error: BaseException) -> None:
        """A worker has met an error of its own, and is set to work again."""
        said = f"its worker met {type(error).__name__}: {text_of(error)}; it is set to work again"
        self._say("worker_died", station, index, said)

    def could_not_replace(
        self, station: _core.Station, index: int, thread: threading.Thread, error: BaseException
    ) -> None:
        """A replacement could not be built, which ``thread`` was to do."""
        why = f"its backend could not be built again: {type(error).__name__}: {text_of(error)}"
        with self._changed:
            if not self._is_awaited(station, index, thread):
                return
            self._why[station] = why
            self._absent[station][index] = None
            self._changed.notify_all()
        self._say("not_replaced", station, index, why)
        self._lose(station, why)

    def put_in_service(self, engine: _core.Engine, station: _core.Station, index: int, backend: Backend) -> int | None:
        """A replacement is built: have it run, and wait for its worker from now on when closing.

        Returns how ``Station.serve`` knows that worker. None: it comes too late, as the node has been given other
        instances meanwhile.
        """
        instance = _core.Instance(backend, index)
        with self._changed:
            if not self._is_awaited(station, index, threading.current_thread()):
                return None
            worker = cast("Worker", self._absent[station].pop(index))
            for node in engine.nodes:
                for twin in (node,) if node.twins is None else node.twins:
                    if twin.station is station:
                        twin.instances[index] = instance
            self._instances.workers.append(worker)
            if station.thread_bound:
                worker.served = Slot.now(station, index)
                number = index
            else:
                number = station.add_sharing()
                self._instances.own(backend, station, index)
            station.replaced += 1
            self._why.pop(station, None)
            self._count(station)
            if type(station.lost) is BackendHung:
                station.recover()
            self._changed.notify_all()
        self._say("replaced", station, index, "it is built again, and in service")
        return number

    def missing(self, station: _core.Station) -> frozenset[int]:
        """Return the tokens of instances that hung, and are not in service again yet."""
        with self._changed:
            return frozenset(self._absent[station])

    def switch(self, engine: _core.Engine, switches: tuple[_core.Switch, ...], made_of: PipeConfig) -> None:
        """Have other instances serve, see ``Engine._switch``, and miss those no longer that serve no longer."""
        with self._changed:
            try:
                engine._switch(switches, made_of)
            finally:
                for switch in switches:
                    absent = self._absent[switch.station]
                    for index in [index for index in absent if _is_retired(switch.station, index)]:
                        del absent[index]
                    self._count(switch.station)
                self._changed.notify_all()

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
        engine = self._engine()
        if engine is None:
            return
        bucket = _config_of(engine, station).bucket
        for node in engine.nodes:
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
        station = cast("_core.Station", twin.station)
        absent = self._absent.get(station, ())
        return [
            instance.backend
            for index, instance in enumerate(twin.instances)
            if instance is not None and index not in absent and not _is_retired(station, index)
        ]

    def _is_awaited(self, station: _core.Station, index: int, thread: threading.Thread) -> bool:
        """Whether an instance is missing, and that thread is the one that is to build it again."""
        worker = self._absent[station].get(index)
        return worker is not None and worker.thread is thread

    def _has_none(self, station: _core.Station) -> bool:
        return len(self._absent[station]) == station.instance_count

    def _fill(self, station: _core.Station) -> None:
        """Start building what is missing, if that is still worth a try."""
        engine = self._engine()
        workers = {}
        with self._changed:
            absent = self._absent[station]
            if engine is not None and not engine.closing and self._stuck[station] <= MOST_STUCK_THREADS:
                for index in [index for index, worker in absent.items() if worker is None]:
                    name = thread_name(station.name, station.numbers[index])
                    workers[index] = absent[index] = Worker(name, _rebuild, weakref.ref(self), station, index)
        for index, worker in workers.items():
            try:
                worker.start()
            except (PipeError, RuntimeError) as error:  # there can be no more threads
                self.could_not_replace(station, index, worker.thread, error)
        self._lose(station, self._why.get(station, "all of them hung, and are not replaced any more"))

    def _lose(self, station: _core.Station, why: str, *, also_if_being_built: bool = False) -> None:
        """Fail what waits for a node, and what comes, if it has no instance and none is being built."""
        lost = BackendHung(why)
        with self._changed:
            if not self._has_none(station) or station.lost is not None:
                return
            if any(self._absent[station].values()) and not also_if_being_built:
                return
            station.lose(lost)  # under the lock: put_in_service() takes it back
        self._say("lost", station, None, f"it has no instance left: {why}")
        station.fail_queued(None, lost)

    def _say(self, kind: str, station: _core.Station, index: int | None, text: str) -> None:
        """Have a warning written about a node, or an instance of it."""
        number = None if index is None else station.numbers[index]
        where = station.title if number is None else f"{station.title}, instance {number}"
        self._logbook.say(Line(kind, f"{where}: {text}", station.name, number))

    def build(self, engine: _core.Engine, station: _core.Station, index: int) -> Backend:
        """Build an instance again, where it was, with its sub-graphs connected.

        Raises:
            ConfigError: it would be at another place.
            BaseException: whatever its constructor raises.
        """
        plan = cast("StepPlan", _config_of(engine, station).plan)  # only what has an instance can hang
        backend = build_backend(plan, station.name, station.numbers[index], station.place)
        try:
            if backend.place != station.place:
                raise ConfigError(f"it was to be at {station.place}, as the one that hung, and is at {backend.place}")
            connect(engine, engine._made_of.nodes, backend)
        except BaseException:
            close_all([backend])
            raise
        return backend

    def close_idle_backends(self) -> None:
        """Close what is free; what is busy is ``close()``'s, or nobody's."""
        self._instances.close_backends(time.monotonic())


class WeakKeeper:
    """A keeper as its workers know it (``threads.WorkersKeeper``). Weak: threads keep no pipe's backends alive."""

    def __init__(self, keeper: weakref.ref[Keeper]) -> None:
        self.keeper = keeper

    def came_back(self, station: _core.Station) -> None:
        keeper = self.keeper()
        if keeper is not None:
            keeper.came_back(station)

    def worker_died(self, station: _core.Station, index: int, error: BaseException) -> None:
        keeper = self.keeper()
        if keeper is not None:
            keeper.worker_died(station, index, error)


def _config_of(engine: _core.Engine, station: _core.Station) -> NodeConfig:
    """Return what the node of a station is made of now."""
    return next(config for config in engine._made_of.nodes if config.name == station.name)


def _is_retired(station: _core.Station, index: int) -> bool:
    return station.is_retired(index, station.life_of(index))


def _rebuild(keeper_ref: weakref.ref[Keeper], station: _core.Station, index: int) -> None:
    """The life of a worker that begins by building the instance it serves."""
    keeper = keeper_ref()
    engine = None if keeper is None else keeper._engine()
    if keeper is None or engine is None:
        return
    try:
        backend = keeper.build(engine, station, index)
    except BaseException as error:
        keeper.could_not_replace(station, index, threading.current_thread(), error)
        return
    if station.is_closed:
        close_all([backend])
        return
    number = keeper.put_in_service(engine, station, index, backend)
    if number is None:
        close_all([backend])
        return
    station.open_instance(index)
    del keeper, engine  # while it serves, it keeps no pipe alive
    if number >= 0:
        serve_and_close(station, index, backend, WeakKeeper(keeper_ref))
        return
    serve_shared(station, index, number, WeakKeeper(keeper_ref))
    keeper = keeper_ref()
    if keeper is not None and station.is_closed:
        # close() may have looked for backends before this one was there. This thread must not wait for an instance that
        # hangs.
        keeper.close_idle_backends()
