"""Turns a checked configuration and its graph into the engine's nodes, stations and threads."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from fastpipe import _core
from fastpipe._workers import Worker, serve_shared, serve_thread_bound
from fastpipe.backend import Backend, Request
from fastpipe.backends.control import SubGraph
from fastpipe.config import NodeConfig, StepPlan
from fastpipe.errors import ConfigError, PipeClosed
from fastpipe.filters import run, swap
from fastpipe.graph import Graph

if TYPE_CHECKING:
    from concurrent.futures import Future

    from fastpipe.pipe import Pipe

__all__ = ["Builder", "build_backend", "connect", "jumps_of", "thread_name"]


class Builder:
    """Turns a checked configuration and its graph into the engine's nodes, stations and threads."""

    def __init__(self, pipe: Pipe, configs: tuple[NodeConfig, ...], graph: Graph, *, aborts_when_hung: bool) -> None:
        self.pipe = pipe
        self.aborts_when_hung = aborts_when_hung
        self.configs = configs
        self.graph = graph
        self.capacity = 0
        self.stations: dict[str, _core.Station] = {}
        self.instances: dict[str, list[_core.Instance]] = {}
        self.backends: dict[str, Backend] = {}  # the first instance of each node: sizes, buckets, splits
        self.waiting: list[Future[_core.Station | None]] = []  # threads that have built their instance
        self.came_back = CameBack(pipe)

    def build(self) -> None:
        try:
            self._build_all()
        finally:  # a thread that still waits for its station has none to serve
            for station in self.waiting:
                if not station.done():
                    station.set_result(None)

    def _build_all(self) -> None:
        for config in self.configs:
            if config.plan is not None:
                self._build_node(config, config.plan)
        nodes = [self._node(index) for index in range(len(self.configs))]
        for index, config in enumerate(self.configs):
            if config.name in self.stations:
                self.stations[config.name].set_upstream(self._upstream(index))
        root_names = [nodes[root].name for root in self.graph.roots]
        hidden = tuple(config.name for config in self.configs if config.is_hidden)
        self.pipe._open(self.graph, nodes, list(self.stations.values()), root_names, hidden)
        for index, node in enumerate(nodes):
            self._connect_jumps(index, node)
        self._watch()
        for config in self.configs:  # only now: workers read what was set above without a lock
            if config.name in self.stations:
                self._open_instances(config, self.stations[config.name])

    def _watch(self) -> None:
        guarded = [
            self.stations[config.name]  # a Jump or MapReduce has none: its nodes do the work
            for config in self.configs
            if config.hang_timeout_s is not None and config.name in self.stations
        ]
        if guarded:
            watchdog = _core.Watchdog(guarded, self.aborts_when_hung)
            for station in guarded:
                station.watch(watchdog)
            self.pipe._watchdog = watchdog
            self.pipe._watchdog_worker = Worker("fastpipe watchdog", watchdog.serve)
            self.pipe._watchdog_worker.thread.start()

    def _physical(self, config: NodeConfig) -> str:
        return config.name if config.shares is None else config.shares

    def _build_node(self, config: NodeConfig, plan: StepPlan) -> None:
        if _is_sub_graph(plan):
            backend = build_backend(plan, config.name, 0)
            self.pipe._own(backend, None, 0)
            self.backends[config.name] = backend
            return
        if plan.thread_bound:
            self._build_on_threads(config, plan)
            return
        backends: list[Backend] = []
        try:
            for index in range(config.instance_num):
                backends.append(build_backend(plan, config.name, index))
            station = self._open_station(config, backends, thread_bound=False)
        except BaseException:
            for backend in backends:
                self.pipe._own(backend, None, 0)
            raise
        for index, backend in enumerate(backends):
            self.pipe._own(backend, station, index)

    def _open_instances(self, config: NodeConfig, station: _core.Station) -> None:
        for index in range(config.instance_num):
            if station.thread_bound:
                self.waiting.pop(0).set_result(station)
            else:
                name = thread_name(config.name, index)
                self._start(Worker(name, serve_shared, station, index, self.came_back))
            station.open_instance(index)

    def _build_on_threads(self, config: NodeConfig, plan: StepPlan) -> None:
        """Build each instance on the thread that will run it, and let the thread wait for its station."""
        from concurrent.futures import Future  # here, as importing it takes longer than all of fastpipe

        backends: list[Backend] = []
        for index in range(config.instance_num):
            built: Future[Backend] = Future()
            station: Future[_core.Station | None] = Future()
            self.waiting.append(station)
            build = functools.partial(build_backend, plan, config.name, index)
            name = thread_name(config.name, index)
            self._start(Worker(name, serve_thread_bound, build, index, built, station, self.came_back))
            backends.append(built.result())
        self._open_station(config, backends, thread_bound=True)

    def _start(self, worker: Worker) -> None:
        worker.thread.start()
        self.pipe._workers.append(worker)

    def _open_station(self, config: NodeConfig, backends: list[Backend], *, thread_bound: bool) -> _core.Station:
        first = backends[0]
        max_batch = _max_batch(config, first)
        self.capacity += config.instance_num * max_batch
        station = _core.Station(
            config.name,
            config.instance_num,
            max_batch,
            thread_bound,
            config.batching,
            config.preferred_batch_sizes,
            config.batching_timeout_ms,
            config.bucket is not None or first.bucket is not None,
            config.max_queue or 0,
            config.max_queue_bytes or 0,
            config.when_full,
            config.hang_timeout_s or 0.0,
        )
        self.stations[config.name] = station
        self.instances[config.name] = [_core.Instance(backend, index) for index, backend in enumerate(backends)]
        self.backends[config.name] = first
        # Closing finds it from now on, also if the next node cannot be built.
        self.pipe.stations.append(station)
        return station

    def _node(self, index: int) -> _core.Node:
        config = self.configs[index]
        physical = self._physical(config)
        backend = self.backends[physical]
        owner = next(other for other in self.configs if other.name == physical)
        place = self.graph.nodes[index]
        return _core.Node(
            config.name,
            index,
            self.stations.get(physical),
            self.instances.get(physical, []),
            type(backend).__name__ if owner.plan is None else owner.plan.name,
            retry_alone=backend.retry_alone,
            filter=config.filter,
            filter_kind=_filter_kind(config.filter),
            bucket=owner.bucket if owner.bucket is not None else backend.bucket,
            weigh=backend.weigh,
            subgraph=backend if isinstance(backend, SubGraph) else None,
            sources=_engine_sources(place.sources),
            parent_count=len(place.parents),
            restart_limit=config.restart_limit,
        )

    def _connect_jumps(self, index: int, node: _core.Node) -> None:
        if node.station is None:
            (target,) = self.graph.nodes[index].jumps
            node.set_jump(self.pipe._entry_at(target))
            return
        for instance in node.instances:
            connect(self.pipe, self.configs, instance.backend)

    def _upstream(self, index: int) -> tuple[_core.Station, ...]:
        own = self.configs[index].name
        sharing = (place for place, config in enumerate(self.configs) if self._physical(config) == own)
        upstream = sorted(frozenset().union(*(self.graph.nodes[place].upstream for place in sharing)))
        names = (self._physical(self.configs[other]) for other in upstream)
        return tuple(self.stations[name] for name in dict.fromkeys(names) if name in self.stations and name != own)


class CameBack:
    """Tells a pipe that a thread which was given up has come back. Weak: threads must not keep their pipe alive."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = weakref.ref(pipe)

    def __call__(self, station: _core.Station) -> None:
        pipe = self.pipe()
        if pipe is not None:
            pipe._hung.came_back(station)


class _PartsRunner:
    """Runs parts for a Jump or MapReduce that is a step of a Sequential."""

    def __init__(self, pipe: weakref.ref[Pipe], entry: _core.Entry) -> None:
        self.pipe = pipe
        self.entry = entry

    def __call__(self, splits: list[list[Request]], keeps_failures: bool) -> list[list[Any]]:
        pipe = self.pipe()
        if pipe is None:  # a backend that outlives its pipe and is called by hand
            raise PipeClosed("the pipe of this Jump is gone")
        return pipe._run_parts(self.entry, splits, keeps_failures)


def connect(pipe: Pipe, configs: tuple[NodeConfig, ...], backend: Backend) -> None:
    """Tell the Jumps and MapReduces that are steps of a backend where their parts enter."""
    index_of = {config.name: index for index, config in enumerate(configs)}
    weak_pipe = weakref.ref(pipe)  # the backend must not keep its own pipe alive
    for sub_graph in _sub_graphs_in(backend):
        sub_graph.connect(_PartsRunner(weak_pipe, pipe._entry_at(index_of[sub_graph.jump])))


def jumps_of(configs: Iterable[NodeConfig]) -> dict[str, tuple[str, ...]]:
    """The nodes at which parts of a node's requests enter, for the nodes that have such; also for logical ones."""
    configs = tuple(configs)
    plans = {config.name: config.plan for config in configs}
    jumps = {}
    for config in configs:
        plan = plans.get(config.name if config.shares is None else config.shares)
        targets = () if plan is None else tuple(_jump_targets(plan))
        if targets:
            jumps[config.name] = targets
    return jumps


def _is_sub_graph(plan: StepPlan) -> bool:
    kind = plan.backend if isinstance(plan.backend, type) else type(plan.backend)
    return issubclass(kind, SubGraph)


def _jump_targets(plan: StepPlan) -> Iterator[str]:
    if _is_sub_graph(plan):
        kind: Any = plan.backend
        yield kind.jump if isinstance(kind, SubGraph) else kind.entry_node(plan.parameters)
    for child in plan.children:
        yield from _jump_targets(child)


def _sub_graphs_in(backend: Backend) -> Iterator[SubGraph]:
    if isinstance(backend, SubGraph):
        yield backend
    for child in getattr(backend, "children", ()):
        yield from _sub_graphs_in(child.backend)


def thread_name(node: str, index: int) -> str:
    """What the thread is called that serves an instance."""
    return f"fastpipe {node}#{index}"


def build_backend(plan: StepPlan, node: str, index: int) -> Backend:
    """Build an instance; what goes wrong is raised with a note that names it."""
    try:
        backend = plan.build()
        if not callable(getattr(backend, "forward", None)):
            raise ConfigError(f"{type(backend).__name__} has no forward(batch)")
    except BaseException as error:
        with contextlib.suppress(Exception):
            error.add_note(f"fastpipe: while building node {node!r}, backend {plan.name}, instance {index}")
        raise
    return backend


def _max_batch(config: NodeConfig, backend: Backend) -> int:
    """What the node says; else what the backend says; else 1."""
    if config.max is not None and backend.max_batch is not None:
        return min(config.max, backend.max_batch)
    return config.max or backend.max_batch or 1


def _filter_kind(chosen: Any) -> str:
    if chosen is None:
        return "default"
    if chosen is run:
        return "run"
    return "swap" if chosen is swap else "call"


def _engine_sources(sources: Any) -> Any:
    if sources is None:
        return None
    return tuple((source.index, source.name, source.keys, source.names_context) for source in sources)
