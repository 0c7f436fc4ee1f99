"""Other instances for a node while it serves: built beside the old ones, and switched to between two batches.

What the engine does at that moment is in ``engine/switching.pxi``. A switch that has been made is not taken back; until
then, whatever is raised leaves the node as it was.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import time
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from fastpipe import _core
from fastpipe.config.keys import NODE_KEYS, station_settings
from fastpipe.config.reading import load_changed
from fastpipe.config.sub_graphs import is_sub_graph, jumps_of
from fastpipe.contract import Backend, Container, close_all
from fastpipe.errors import AT_KEY, ConfigError, Mistake, PipeError, UnknownNode, nearest
from fastpipe.faults import text_of
from fastpipe.instances.building import ThreadBound, check_streams_alone, max_batch_of
from fastpipe.instances.logbook import Line, Logbook
from fastpipe.instances.one import build_backend, connect, thread_name, warm_ups_in
from fastpipe.instances.owned import Instances, time_to_drain
from fastpipe.instances.states import check_stateful
from fastpipe.instances.threads import Desk, Worker, WorkersKeeper, serve_once_told

if TYPE_CHECKING:
    from fastpipe.config.described import NodeConfig, PipeConfig
    from fastpipe.config.plan import StepPlan
    from fastpipe.instances.hung import Keeper

__all__ = ["Swappable", "Swapper"]


class Looker(Protocol):
    """Who has to know what the pipe is made of."""

    def note_change(self, made_of: PipeConfig) -> None:
        """It is made of something else now."""


@dataclass
class _Built:
    """An instance that is built, and serves nothing yet."""

    backend: Backend
    number: int
    bound: ThreadBound | None
    """Its thread, if it has one of its own."""


@dataclass
class _Change:
    """What is to become of a node, and what has been made for it so far."""

    made_of: PipeConfig
    config: NodeConfig
    plan: StepPlan
    is_rebuilt: bool
    """All instances are built anew; else only those that are missing."""
    asks_again: bool
    """What waits is to be weighed, and given its bucket, once more."""
    built: list[_Built] = field(default_factory=list)
    kept: list[tuple[_core.Station, int]] = field(default_factory=list)
    """Tokens for what is built."""
    desk: Desk = field(default_factory=Desk)
    """Where threads wait that are to run in any instance: do they serve?"""


class Swapper:
    """Swaps and resizes the nodes of a pipe, one change at a time.

    Thread-safety: any thread.
    """

    def __init__(
        self,
        instances: Instances,
        keeper: Keeper,
        workers_keeper: WorkersKeeper,
        logbook: Logbook,
        lookers: Collection[Looker],
    ) -> None:
        self._instances = instances
        self._keeper = keeper
        self._workers_keeper = workers_keeper
        self._logbook = logbook
        self._lookers = lookers
        self._lock = threading.Lock()

    def change(
        self, engine: _core.Engine, node: str, keys: Mapping[str, Any], timeout: float | None, *, rebuilds: bool
    ) -> None:
        """Have a node serve as it would if these keys had been written; return once the old instances are closed.

        Args:
            engine: the pipe.
            node: its name.
            keys: what is to be in the place of what is written.
            timeout: seconds for batches that run in old instances.
            rebuilds: False: instances stay that would be built from the same parameters.
        """
        limit_s = time_to_drain(timeout)
        engine._check_may_switch()
        with self._lock:
            engine._check_may_switch()
            began_s = time.monotonic()
            change = _planned(engine._made_of, node, keys, rebuilds=rebuilds)
            stations = [station for station in engine.stations if station.name == node]
            try:
                retired = self._switch(engine, change, stations)
            except BaseException as error:
                if engine._made_of is change.made_of:  # it is made: a signal has come in the middle
                    self._start_to_drain(engine, stations)
                    raise
                while True:
                    try:
                        self._undo(change, error)
                        break
                    except MemoryError:  # somebody may free some
                        continue
                self._say(node, "not_switched", f"it goes on as it was: {type(error).__name__}: {text_of(error)}")
                raise
            draining = self._start_to_drain(engine, stations)
            self._tell_lookers(engine, change.made_of)
            self._drain(draining, node, limit_s)
        self._say_done(change, retired, time.monotonic() - began_s)

    # ---- until the switch --------------------------------------------------------------------------------------

    def _switch(self, engine: _core.Engine, change: _Change, stations: list[_core.Station]) -> int:
        """Build what is missing, and have it serve; return how many instances do so no longer."""
        for station in stations:  # what an earlier change did not wait for
            self._instances.close_backends(time.monotonic(), station)
        serving = {station: _serving(station) for station in stations}
        count = change.config.instance_num
        if count < len(stations):
            text = f"must be at least {len(stations)}, as its instances are at so many places, got {count}"
            raise ConfigError(Mistake(text, change.config.name, "instance_num"))
        retired = serving if change.is_rebuilt else self._surplus(serving, count)
        places = _places(serving, count) if change.is_rebuilt else _places_for_more(serving, count)
        self._build(engine, change, places, may_move=change.is_rebuilt and len(stations) == 1)
        switches = [self._prepared(engine, change, station, retired[station]) for station in stations]
        self._start_sharing(change)
        try:
            self._keeper.switch(engine, tuple(switches), change.made_of)
        finally:
            if engine._made_of is change.made_of:
                change.desk.tell(True)
        return sum(map(len, retired.values()))

    def _surplus(self, serving: Mapping[_core.Station, list[int]], count: int) -> dict[_core.Station, list[int]]:
        """Return the tokens of instances that are too many: first those that are missing anyhow, then the last ones."""
        left = {station: list(tokens) for station, tokens in serving.items()}
        retired: dict[_core.Station, list[int]] = {station: [] for station in serving}
        for _ in range(sum(map(len, serving.values())) - count):
            station = max(left, key=lambda each: len(left[each]))
            missing = self._keeper.missing(station)
            token = max(left[station], key=lambda each: (each in missing, station.numbers[each]))
            left[station].remove(token)
            retired[station].append(token)
        return retired

    def _build(self, engine: _core.Engine, change: _Change, places: list[Hashable], *, may_move: bool) -> None:
        """Build an instance for each of the places; ``may_move``: they may all turn out to be at another one."""
        numbers = self._free_numbers(engine, change.config.name)
        for place, number in zip(places, numbers, strict=False):
            first = change.built[0].backend.place if may_move and change.built else place
            built = self._build_one(change, number, first)
            if may_move and built.backend.place != place and place is not None and not change.built:
                self._discard(built)  # its keys send it elsewhere: all of its parts have to know
                built = self._build_one(change, number, None)
            change.built.append(built)
            if built.backend.place != first and not (may_move and len(change.built) == 1):
                text = f"its instances stay where they are while it serves; one was to be at {first}, and is at "
                raise ConfigError(Mistake(f"{text}{built.backend.place}", change.config.name))
            connect(engine, change.made_of.nodes, built.backend)

    def _build_one(self, change: _Change, number: int, place: Hashable) -> _Built:
        build = functools.partial(build_backend, change.plan, change.config.name, number, place)
        if not change.plan.thread_bound:
            built = _Built(build(), number, None)
            self._instances.own(built.backend, None, 0)
            return built
        bound = ThreadBound(build, self._workers_keeper)
        try:
            return _Built(bound.build(thread_name(change.config.name, number), self._instances), number, bound)
        except BaseException:
            bound.dismiss()
            raise

    def _free_numbers(self, engine: _core.Engine, node: str) -> Iterator[int]:
        """Yield the lowest numbers that no instance of a node has, nor one that is still to be closed."""
        stations = [station for station in engine.stations if station.name == node]
        taken = {station.numbers[token] for station in stations for token in _tokens(station)}
        taken -= {station.numbers[token] for station in stations for token in self._vacant(station)}
        return (number for number in itertools.count() if number not in taken)

    def _vacant(self, station: _core.Station) -> tuple[int, ...]:
        """Return the tokens of instances that are gone."""
        tokens = _tokens(station)
        return tuple(t for t in tokens if station.has_left(t) and not self._instances.uses(station, t))

    def _prepared(
        self, engine: _core.Engine, change: _Change, station: _core.Station, retired: list[int]
    ) -> _core.Switch:
        """Give what is built for a station its tokens and threads, and return what the station is to become."""
        instances = _instances_of(engine, station)
        alone = len([other for other in engine.stations if other.name == station.name]) == 1
        own = [built for built in change.built if alone or built.backend.place == station.place]
        gone = {*retired, *self._keeper.missing(station)}
        stays = next((token for token in _serving(station) if token not in gone), None)
        asked = own[0].backend if own else instances[_serving(station)[0] if stays is None else stays].backend
        max_batch = max_batch_of(change.config, asked)
        self._check_streams(change, station, asked, max_batch)
        check_stateful(change.config.name, asked, is_expected=station.states is not None)
        tokens = station.make_room(tuple(built.number for built in own), self._vacant(station), max_batch)
        change.kept.extend((station, token) for token in tokens)
        instances.extend([None] * (len(station.numbers) - len(instances)))
        for built, token in zip(own, tokens, strict=True):
            if built.bound is None:
                self._instances.own(built.backend, station, token)
            else:
                built.bound.serve(station, token)
        settings = station_settings(change.config.settings)
        return _core.Switch(
            station,
            opened=tuple(_core.Instance(built.backend, token) for built, token in zip(own, tokens, strict=True)),
            retired=tuple(retired),
            backend=asked,
            backend_name=change.plan.name,
            bucket=change.config.bucket,
            max_batch=max_batch,
            thread_bound=change.plan.thread_bound,
            rule=_core.Rule(settings["rule"], settings["preferred"], settings["timeout_ms"]),
            replaces_all=change.is_rebuilt,
            asks_again=change.asks_again or max_batch != station.max_batch,
        )

    def _check_streams(self, change: _Change, station: _core.Station, backend: Backend, max_batch: int) -> None:
        """Refuse what would answer in parts where nobody reads them, and batches whose requests wait for each other."""
        name = change.config.name
        if backend.streams and not station.streams:
            raise ConfigError(
                Mistake("answers in parts, and what it serves with now does not: build another pipe", name)
            )
        if station.streams and isinstance(backend, Container):
            check_streams_alone(name, max_batch)

    def _start_sharing(self, change: _Change) -> None:
        """Start a thread for each instance that any thread runs; they serve once these do."""
        if change.plan.thread_bound:
            return
        for station, token in change.kept:
            name = thread_name(station.name, station.numbers[token])
            number = station.next_sharing(change.is_rebuilt)
            work = serve_once_told, change.desk, station, token, number, self._workers_keeper
            self._instances.start(Worker(name, *work))

    def _undo(self, change: _Change, error: BaseException) -> None:
        """Close what was built in vain, because of ``error``; what is done already is not done again."""
        change.desk.tell(False)
        for station, token in change.kept:
            station.retire(token, station.life_of(token), 0.0)
        for built in change.built:
            try:
                self._discard(built)
            except Exception as close_error:  # the reason for closing is what the user must see
                error.add_note(f"fastpipe: closing what was built raised {type(close_error).__name__}: {close_error}")

    def _discard(self, built: _Built) -> None:
        if built.bound is not None:
            built.bound.dismiss()
        elif self._instances.disown(built.backend):  # else the pipe has been closed meanwhile, and all of it
            close_all([built.backend])

    # ---- after the switch --------------------------------------------------------------------------------------

    def _start_to_drain(
        self, engine: _core.Engine, stations: list[_core.Station]
    ) -> tuple[Worker, list[BaseException]]:
        """Have a thread close the old instances, whether or not the caller waits; the list gets what that raises."""
        raised: list[BaseException] = []
        lists = {station: _instances_of(engine, station) for station in stations}
        worker = Worker("fastpipe swap", self._close_retired, lists, raised)
        try:
            self._instances.start(worker)
        except (PipeError, RuntimeError):  # there can be no more threads
            self._close_retired(lists, raised)
        return worker, raised

    def _drain(self, draining: tuple[Worker, list[BaseException]], node: str, limit_s: float | None) -> None:
        """Wait until the old instances are closed.

        Raises:
            TimeoutError: not within the limit.
            Exception: what closing them raised.
        """
        worker, raised = draining
        worker.join(limit_s)
        if not worker.is_over:
            raise TimeoutError(
                f"node {node!r} serves with other instances, but batches of old ones still run after {limit_s:g} s: "
                "these are closed when they return"
            )
        if worker in self._instances.workers:
            self._instances.workers.remove(worker)
        if raised:
            raise raised[0]

    def _close_retired(
        self, lists: Mapping[_core.Station, list[_core.Instance | None]], raised: list[BaseException]
    ) -> None:
        """Wait for the last batches of instances that serve no longer, close these, and forget them."""
        for station, instances in lists.items():
            try:
                self._instances.close_backends(None, station)
            except BaseException as error:
                text = f"{station.title} serves with other instances; this is what closing an old one raised"
                error.add_note(f"fastpipe: {text}")
                raised.append(error)
            self._instances.join_retired(station)
            for token in self._vacant(station):
                instances[token] = None

    def _tell_lookers(self, engine: _core.Engine, made_of: PipeConfig) -> None:
        while True:
            with contextlib.suppress(RuntimeError):  # another thread has just added one
                lookers = list(self._lookers)
                break
        for looker in (*lookers, *(() if engine.recorder is None else (engine.recorder,))):
            looker.note_change(made_of)

    def _say_done(self, change: _Change, retired: int, took_s: float) -> None:
        warm = warm_ups_in(change.built[0].backend) if change.built else []
        text = (
            f"it serves with other instances, after {took_s:.3f} s: {len(change.built)} built, {retired} closed; "
            f"warmed up: {', '.join(warm) or 'nothing'}"
        )
        fields = {"seconds": took_s, "built": len(change.built), "closed": retired, "warmed_up": warm}
        self._say(change.config.name, "switched", text, fields, is_warning=False)

    def _say(
        self, node: str, kind: str, text: str, fields: dict[str, Any] | None = None, *, is_warning: bool = True
    ) -> None:
        line = Line(kind, f"node {node!r}: {text}", node, fields=fields or {}, is_warning=is_warning)
        if is_warning:
            self._logbook.say(line)
        else:
            self._logbook.say_of_life(line)


class Swappable(_core.Engine):
    """The part of a pipe that changes its nodes while it serves."""

    _swapper: Swapper

    def swap(
        self, node: str, keys: Mapping[str, Any] | None = None, /, *, timeout: float | None = None, **keywords: Any
    ) -> None:
        """Give a node new instances, built with changed keys, while it serves; return once the old ones are closed.

            pipe.swap("classify", model="better.onnx")

        They are built beside the old ones, warmed up as ever, and take over between two batches. No request fails or
        waits for that; each batch runs wholly in an old or a new instance. See docs/calling.md.

        Args:
            node: its name; of a pipe of one node, ``"main"``.
            keys: as in the configuration, for names that are no keywords, such as ``"A::key"``. None, and no keywords:
                the node is built again as it is, from a model file that has changed, say.
            timeout: seconds for batches that run in the old instances. None: however long.
            keywords: more keys; they win.

        Raises:
            ConfigError, MissingExtra: as of the constructor; or what is asked for cannot be while the pipe serves.
            UnknownNode: no node has that name.
            TypeError, ValueError: ``keys`` is no mapping, or ``timeout`` no number of seconds, at least 0.
            Exception: what a backend's constructor raised. Up to here, nothing has changed.
            TimeoutError, Exception: the node is swapped; but batches of old instances run for longer than ``timeout``,
                or this is what closing one raised.
            PipeError: called inside a backend or a callback of the pipe.
            PipeClosed, ForkedPipe: as of a call.

        Thread-safe: one change after the other.
        """
        if keys is not None and not isinstance(keys, Mapping):
            raise TypeError(f"keys must be a mapping of keys of the node to values, got {keys!r}")
        self._swapper.change(self, node, {**(keys or {}), **keywords}, timeout, rebuilds=True)

    def resize(
        self, node: str, *, instance_num: int | None = None, max: int | str | None = None, timeout: float | None = None
    ) -> None:
        """Change how many instances a node has, and how many requests a batch, while it serves.

        Those that stay are not built again, unless their backend takes one of the two as a parameter: then as by
        ``swap``, with the same arguments and errors. Fewer: those that go finish their batches, and are closed.
        """
        keys = {"instance_num": instance_num, "max": max}
        given = {key: value for key, value in keys.items() if value is not None}
        if not given:
            raise TypeError("resize() needs instance_num, max, or both")
        self._swapper.change(self, node, given, timeout, rebuilds=False)


# ---- what is to be -----------------------------------------------------------------------------------------------


def _planned(made_of: PipeConfig, node: str, keys: Mapping[str, Any], *, rebuilds: bool) -> _Change:
    """Check what is asked for, as a configuration is checked.

    Raises:
        UnknownNode: no node has that name.
        ConfigError: it has no instances of its own, or what the keys say is wrong, or cannot be while the pipe serves.
    """
    old = _with_instances(made_of, node)
    for key in keys:
        if key in NODE_KEYS and not NODE_KEYS[key].is_switched:
            text = f"{key!r} stays as it is while the pipe serves: build another pipe"
            raise ConfigError(Mistake(text, node, key, AT_KEY))
    made = load_changed(made_of, node, keys)
    new = next(config for config in made.nodes if config.name == node)
    if old.plan is None or new.plan is None:
        raise ConfigError(Mistake("it has no backend", node))
    if jumps_of(made.nodes) != jumps_of(made_of.nodes) or is_sub_graph(new.plan):
        text = "where its Jumps, MapReduces and Proxies lead stays as it is while the pipe serves: build another pipe"
        raise ConfigError(Mistake(text, node, "backend"))
    is_rebuilt = rebuilds or not _is_same(old.plan, new.plan)
    if is_rebuilt:
        objects = {id(step.backend) for step in old.plan.steps() if isinstance(step.backend, Backend)}
        for step in new.plan.steps():
            if id(step.backend) in objects:
                text = f"{step.name} is an object, which cannot be in the old and the new instance: give another one"
                raise ConfigError(Mistake(text, node, "backend"))
    return _Change(made, new, new.plan, is_rebuilt, asks_again=is_rebuilt or old.bucket is not new.bucket)


def _with_instances(made_of: PipeConfig, node: str) -> NodeConfig:
    configs = {config.name: config for config in made_of.nodes if not config.is_hidden}
    config = configs.get(node) if isinstance(node, str) else None
    if config is None:
        raise UnknownNode(f"no node is named {node!r}; they are {list(configs)}{nearest(node, configs)}")
    if config.shares is not None:
        raise ConfigError(Mistake(f"it shares the instances of {config.shares!r}: change those", node))
    if config.plan is not None and is_sub_graph(config.plan):
        raise ConfigError(Mistake(f"it is a {config.plan.name}, which has no instances of its own", node))
    return config


def _is_same(plan: StepPlan, other: StepPlan) -> bool:
    """Whether two plans have the same steps with the same parameters, as far as these can be compared."""
    try:
        return bool(plan == other)
    except Exception:  # arrays, for instance
        return False


# ---- tokens and places -------------------------------------------------------------------------------------------


def _tokens(station: _core.Station) -> range:
    return range(len(station.numbers))


def _serving(station: _core.Station) -> list[int]:
    """Return the tokens of the instances that serve, or should."""
    return [token for token in _tokens(station) if not station.is_retired(token, station.life_of(token))]


def _instances_of(engine: _core.Engine, station: _core.Station) -> list[Any]:
    """Return the list, shared by all nodes of a station, in which its instances are."""
    twins = (twin for node in engine.nodes for twin in node.twins or (node,))
    return next(twin.instances for twin in twins if twin.station is station)


def _places(serving: Mapping[_core.Station, list[int]], count: int) -> list[Hashable]:
    """Return where so many new instances are to be: at the places of the old ones in turn."""
    return [station.place for station, _ in zip(itertools.cycle(serving), range(count), strict=False)]


def _places_for_more(serving: Mapping[_core.Station, list[int]], count: int) -> list[Hashable]:
    """Return where others are to be until there are so many: where the fewest are."""
    counts = {station: len(tokens) for station, tokens in serving.items()}
    places: list[Hashable] = []
    for _ in range(count - sum(counts.values())):
        station = min(counts, key=lambda each: counts[each])
        counts[station] += 1
        places.append(station.place)
    return places
