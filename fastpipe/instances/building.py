"""Turns a checked configuration and its graph into the engine's nodes, stations and threads."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Hashable
from typing import Any, cast

from fastpipe import _core
from fastpipe.announcing import Interface
from fastpipe.config.described import NodeConfig
from fastpipe.config.graph import Graph
from fastpipe.config.keys import station_settings
from fastpipe.config.plan import StepPlan
from fastpipe.config.sub_graphs import is_sub_graph
from fastpipe.contract import Backend, Container, SubGraph
from fastpipe.errors import ConfigError, Mistake
from fastpipe.filters import run, swap
from fastpipe.instances.one import build_backend, connect, thread_name
from fastpipe.instances.owned import Instances
from fastpipe.instances.threads import Desk, Slot, Worker, WorkersKeeper, serve_shared, serve_thread_bound

__all__ = ["Builder", "ThreadBound", "check_streams_alone", "max_batch_of"]


class Builder:
    """Turns a checked configuration and its graph into the engine's nodes, stations and threads."""

    def __init__(
        self,
        engine: _core.Engine,
        instances: Instances,
        keeper: WorkersKeeper,
        configs: tuple[NodeConfig, ...],
        graph: Graph,
        *,
        aborts_when_hung: bool,
    ) -> None:
        self.engine = engine
        self.owned = instances
        self.keeper = keeper
        self.aborts_when_hung = aborts_when_hung
        self.configs = configs
        self.graph = graph
        # By node: one for each place at which its instances are, mostly one.
        self.stations: dict[str, list[_core.Station]] = {}
        self.instances: dict[_core.Station, list[_core.Instance]] = {}
        self.backends: dict[str, Backend] = {}  # the first instance of each node: sizes, buckets, splits
        # Threads that have built their instance, by node, in order: each waits for its station and token.
        self.waiting: dict[str, list[ThreadBound]] = {}

    def build(self) -> None:
        try:
            self._build_all()
        finally:  # a thread that still waits for its station has none to serve
            for bound in itertools.chain(*self.waiting.values()):
                bound.dismiss()

    def _build_all(self) -> None:
        for config in self.configs:
            if config.plan is not None:
                self._build_node(config, config.plan)
        nodes = [self._node(index) for index in range(len(self.configs))]
        for index, config in enumerate(self.configs):
            for station in self.stations.get(config.name, ()):
                station.set_upstream(self._upstream(index, station))
        root_names = [nodes[root].name for root in self.graph.roots]
        hidden = tuple(config.name for config in self.configs if config.is_hidden)
        self.engine._open(self.graph, nodes, list(itertools.chain(*self.stations.values())), root_names, hidden)
        for index, node in enumerate(nodes):
            self._connect_jumps(index, node)
        self._watch()
        for config in self.configs:  # only now: workers read what was set above without a lock
            for station in self.stations.get(config.name, ()):
                self._open_instances(config, station)

    def interface(self, written: Interface) -> Interface:
        """Return what the pipe takes and gives: what is written, else what the backends at its only ends say."""
        inputs, outputs = written.inputs, written.outputs
        roots, leaves = self.graph.roots, [node.index for node in self.graph.nodes if not node.next]
        if inputs is None and len(roots) == 1:
            inputs = self.backends[self._physical(self.configs[roots[0]])].announced_inputs
        if outputs is None and len(leaves) == 1:
            outputs = self.backends[self._physical(self.configs[leaves[0]])].announced_outputs
        return Interface(inputs, outputs, written.max_batch_size)

    def _watch(self) -> None:
        guarded = [
            station
            for config in self.configs
            if config.hang_timeout_s is not None
            for station in self.stations.get(config.name, ())  # a Jump or MapReduce has none: its nodes do the work
        ]
        if guarded:
            watchdog = _core.Watchdog(guarded, self.aborts_when_hung)
            for station in guarded:
                station.watch(watchdog)
            self.owned.start_watchdog(watchdog)

    def _physical(self, config: NodeConfig) -> str:
        return config.name if config.shares is None else config.shares

    def _build_node(self, config: NodeConfig, plan: StepPlan) -> None:
        if is_sub_graph(plan):
            backend = build_backend(plan, config.name, 0)
            self.owned.own(backend, None, 0)
            self.backends[config.name] = backend
            return
        if plan.thread_bound:
            self._build_on_threads(config, plan)
            return
        backends: list[Backend] = []
        try:
            for index in range(config.instance_num):
                backends.append(build_backend(plan, config.name, index))
            stations = self._open_stations(config, backends, thread_bound=False)
        except BaseException:
            for backend in backends:
                self.owned.own(backend, None, 0)
            raise
        for station in stations:
            for index, number in enumerate(station.numbers):
                self.owned.own(backends[number], station, index)

    def _open_instances(self, config: NodeConfig, station: _core.Station) -> None:
        for index, number in enumerate(station.numbers):
            if station.thread_bound:
                self.waiting[config.name][number].serve(station, index)
            else:
                name = thread_name(config.name, number)
                worker = station.add_sharing()
                self.owned.start(Worker(name, serve_shared, station, index, worker, self.keeper))
            station.open_instance(index)

    def _build_on_threads(self, config: NodeConfig, plan: StepPlan) -> None:
        """Build each instance on the thread that will run it, and let the thread wait for its station."""
        backends: list[Backend] = []
        bound = self.waiting[config.name] = []
        for index in range(config.instance_num):
            bound.append(ThreadBound(functools.partial(build_backend, plan, config.name, index), self.keeper))
            backends.append(bound[-1].build(thread_name(config.name, index), self.owned))
        self._open_stations(config, backends, thread_bound=True)

    def _open_stations(self, config: NodeConfig, backends: list[Backend], *, thread_bound: bool) -> list[_core.Station]:
        """Open a station for each place at which some of a node's instances are."""
        stations = []
        for numbers in _by_place(config.name, backends):
            those = [backends[number] for number in numbers]
            station = self._open_station(config, those, numbers, thread_bound=thread_bound)
            stations.append(station)
            self.instances[station] = [_core.Instance(backend, index) for index, backend in enumerate(those)]
        stations[0].join(tuple(stations[1:]))
        stations[0].cache = self._cache_of(config, backends[0])
        self.stations[config.name] = stations
        self.backends[config.name] = backends[0]
        return stations

    def _open_station(
        self, config: NodeConfig, backends: list[Backend], numbers: list[int], *, thread_bound: bool
    ) -> _core.Station:
        first = backends[0]
        station = _core.Station(
            config.name,
            len(backends),
            max_batch_of(config, first),
            thread_bound,
            has_buckets=config.bucket is not None or first.bucket is not None,
            place=first.place,
            numbers=tuple(numbers),
            **station_settings(config.settings),
        )
        station.bound_by(first)
        if any(backend.streams for backend in backends):
            if isinstance(first, Container):
                check_streams_alone(station.name, station.max_batch)
            station.may_stream()
        # Closing finds it from now on, also if the next node cannot be built.
        self.engine.stations.append(station)
        return station

    def _cache_of(self, config: NodeConfig, backend: Backend) -> _core.ResultCache | None:
        budget_bytes, ttl_s, choice = (config.settings[key] for key in ("cache", "cache_ttl", "cache_key"))
        if budget_bytes is None:
            return None
        if getattr(backend, "streams", False):
            text = "the backend answers in parts, which are not kept: take the cache out"
            raise ConfigError(Mistake(text, config.name, "cache"))
        return _core.ResultCache(budget_bytes, ttl_s, choice, self._is_data_read(config.name))

    def _is_data_read(self, name: str) -> bool:
        """Whether somebody may read ``data`` of a request that has run here; else it need not be kept.

        In a Sequential it is what the last step was given, and often a hundred times what that has answered.
        """
        nodes = self.graph.nodes
        if any(node.jumps or node.restart is not None for node in nodes):  # a part is answered with all of its keys
            return True
        own = {index for index, config in enumerate(self.configs) if self._physical(config) == name}
        sources = (source for node in nodes for source in node.sources or () if own.intersection(source.indices))
        if any(key_there == "data" for source in sources for key_there, _ in source.keys):
            return True
        following = {index for node in own for index in nodes[node].next if nodes[index].sources is None}
        return any(self.configs[index].filter not in (None, swap) for index in following)

    def _node(self, index: int) -> _core.Node:
        """Make a node; of one whose instances are at several places, also a twin for each, with its own station."""
        physical = self._physical(self.configs[index])
        stations = self.stations.get(physical)
        if stations is None:
            return self._node_at(index, None)
        node = self._node_at(index, stations[0])
        if len(stations) > 1:
            twins = tuple([self._node_at(index, station) for station in stations])
            node.set_twins(twins, self.backends[physical].place_of)
        return node

    def _node_at(self, index: int, station: _core.Station | None) -> _core.Node:
        config = self.configs[index]
        physical = self._physical(config)
        instances = [] if station is None else self.instances[station]
        backend = self.backends[physical] if station is None else instances[0].backend
        owner = next(other for other in self.configs if other.name == physical)
        met = self.graph.nodes[index]
        return _core.Node(
            config.name,
            index,
            station,
            instances,
            type(backend).__name__ if owner.plan is None else owner.plan.name,
            filter=config.filter,
            filter_kind=_filter_kind(config.filter),
            bucket=owner.bucket if owner.bucket is not None else backend.bucket,
            weigh=backend.weigh,
            length_of=backend.length_of,
            subgraph=backend if isinstance(backend, SubGraph) else None,
            sources=_engine_sources(met.sources),
            parent_count=len(met.parents),
            restart_limit=config.restart_limit,
        )

    def _connect_jumps(self, index: int, node: _core.Node) -> None:
        if node.station is None:
            (target,) = self.graph.nodes[index].jumps
            node.set_jump(self.engine._entry_at(target))
            backend = self.backends[self._physical(self.configs[index])]
            backend.ignored_keys = self.engine.ignored_keys  # type: ignore[attr-defined]  # a SubGraph, as it has no station
            return
        for twin in (node,) if node.twins is None else node.twins:
            for instance in twin.instances:
                if instance is not None:
                    connect(self.engine, self.configs, instance.backend)
        if self._emits_behind(index):  # parts that a step sends there: it waits for them, and so for those who read
            for station in self.stations[self._physical(self.configs[index])]:
                check_streams_alone(station.name, station.max_batch)
                station.may_stream()

    def _emits_behind(self, index: int) -> bool:
        """Whether a node streams to which parts of a node's requests come."""
        nodes = self.graph.nodes
        behind, seen = list(nodes[index].jumps), set[int]()
        while behind:
            here = nodes[behind.pop()]
            if here.index in seen:
                continue
            seen.add(here.index)
            backend = self.backends.get(self._physical(self.configs[here.index]))
            if backend is not None and backend.streams:
                return True
            behind += [*here.next, *here.jumps, *(() if here.restart is None else [here.restart])]
        return False

    def _upstream(self, index: int, station: _core.Station) -> tuple[_core.Station, ...]:
        """Return the stations whose requests may still come to one: not those from places that have another."""
        own = self.configs[index].name
        sharing = (number for number, config in enumerate(self.configs) if self._physical(config) == own)
        upstream = sorted(frozenset().union(*(self.graph.nodes[number].upstream for number in sharing)))
        names = (self._physical(self.configs[other]) for other in upstream)
        elsewhere = {twin.place for twin in self.stations[own]} - {station.place, None}
        return tuple(
            other
            for name in dict.fromkeys(names)
            if name != own
            for other in self.stations.get(name, ())
            if other.place not in elsewhere
        )


class ThreadBound:
    """An instance that is built on the thread that will run it; the thread then waits for its station."""

    def __init__(self, build: Callable[[], Backend], keeper: WorkersKeeper) -> None:
        self._built, self._desk = Desk(), Desk()
        self._work = build, self._built, self._desk, keeper
        self._worker: Worker | None = None

    def build(self, thread: str, owned: Instances) -> Backend:
        """Start the thread, which ``owned`` awaits from now on; return what it has built, or raise what that raised."""
        self._worker = Worker(thread, serve_thread_bound, *self._work)
        owned.start(self._worker)
        built = self._built.wait_for(self._worker)
        if isinstance(built, BaseException):
            raise built
        return cast("Backend", built)

    def serve(self, station: _core.Station, index: int) -> None:
        """Have the thread serve with its instance."""
        if self._worker is not None:
            self._worker.served = Slot.now(station, index)
        self._desk.tell((station, index))

    def dismiss(self) -> None:
        """Have the thread close its instance, and end, unless it serves."""
        self._desk.tell(None)


def _by_place(node: str, backends: list[Backend]) -> list[list[int]]:
    """Return the numbers of the instances at each place, in the order of the first at each."""
    numbers: dict[Hashable, list[int]] = {}
    for number, backend in enumerate(backends):
        try:
            numbers.setdefault(backend.place, []).append(number)
        except TypeError as error:
            text = f"the place of an instance must be hashable: {error}"
            raise ConfigError(Mistake(text, node)) from error
    return list(numbers.values())


def max_batch_of(config: NodeConfig, backend: Backend) -> int:
    """What the node says; else what the backend says; else 1."""
    if config.max is not None and backend.max_batch is not None:
        return min(config.max, backend.max_batch)
    return config.max or backend.max_batch or 1


def check_streams_alone(node: str, max_batch: int) -> None:
    """Refuse batches whose requests would all wait until the last of them has been read.

    Raises:
        ConfigError: where a step of a container streams, and it takes several requests at once.
    """
    if max_batch > 1:
        text = (
            f"a step of it streams: it takes one request at a time, and max is {max_batch}. Say max = 1, or "
            "make the step a node of its own: that takes batches"
        )
        raise ConfigError(Mistake(text, node))


def _filter_kind(chosen: Any) -> str:
    if chosen is None:
        return "default"
    if chosen is run:
        return "run"
    return "swap" if chosen is swap else "call"


def _engine_sources(sources: Any) -> Any:
    if sources is None:
        return None
    return tuple((source.indices, source.name, source.keys, source.names_context) for source in sources)
