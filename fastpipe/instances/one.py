"""One instance of a backend: how it is built, what its thread is called, how the sub-graphs in it find their nodes."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Hashable, Iterator
from typing import Any

from fastpipe import _core
from fastpipe.config.described import NodeConfig
from fastpipe.config.plan import StepPlan
from fastpipe.config.sub_graphs import entry_of_object
from fastpipe.contract import Backend, Child, Container, Request, Site, SubGraph, close_all
from fastpipe.errors import ConfigError, Mistake, PipeClosed
from fastpipe.sites import building

__all__ = ["build_backend", "connect", "thread_name", "warm_ups_in"]


def thread_name(node: str, index: int) -> str:
    """Return the name of the thread that serves an instance."""
    return f"fastpipe {node}#{index}"


def build_backend(plan: StepPlan, node: str, index: int, place: Hashable = None) -> Backend:
    """Build an instance, at ``place`` if that is given; what goes wrong is raised with a note that names it."""
    try:
        with building(Site(place)):
            backend = _built(plan, node)
        if not callable(getattr(backend, "forward", None)):
            raise ConfigError(f"{type(backend).__name__} has no forward(batch)")
        if unmet := _unmet_in(backend):
            try:
                close_all([backend])
            except Exception as error:  # the context of the one that the user has to see
                raise ConfigError(*_at(node, unmet)) from error
            raise ConfigError(*_at(node, unmet))
    except BaseException as error:
        with contextlib.suppress(Exception):
            error.add_note(f"fastpipe: while building node {node!r}, backend {plan.name}, instance {index}")
        raise
    return backend


def _built(plan: StepPlan, node: str) -> Backend:
    try:
        return plan.build()
    except ConfigError as error:
        if type(error) is not ConfigError or any(problem.node is not None for problem in error.problems):
            raise
        # Backends do not know at which node they are; a reader of "model 'x'" with two nodes of it has to.
        told = ConfigError(*_at(node, list(error.problems))).with_traceback(error.__traceback__)
        for note in getattr(error, "__notes__", ()):
            told.add_note(note)
        raise told from error.__cause__


def _at(node: str, unmet: list[str]) -> list[Mistake]:
    return [Mistake(str(sentence), node) for sentence in unmet]


def connect(engine: _core.Engine, configs: tuple[NodeConfig, ...], backend: Backend) -> None:
    """Tell the Jumps and MapReduces that are steps of a backend where their parts enter."""
    index_of = {config.name: index for index, config in enumerate(configs)}
    weak_engine = weakref.ref(engine)  # the backend must not keep its own pipe alive
    for sub_graph in _sub_graphs_in(backend):
        sub_graph.ignored_keys = engine.ignored_keys
        sub_graph.connect(_PartsRunner(weak_engine, engine._entry_at(index_of[entry_of_object(sub_graph)])))


class _PartsRunner:
    """Runs parts for a Jump or MapReduce that is a step of a Sequential."""

    def __init__(self, engine: weakref.ref[_core.Engine], entry: _core.Entry) -> None:
        self.engine = engine
        self.entry = entry
        # Of the last call, for each request: which step left its parts without a result; "": a filter; None: none did.
        self.reasons: list[str | None] = []

    def __call__(self, splits: list[list[Request]], keeps_failures: bool, batch: list[Request]) -> list[list[Any]]:
        engine = self.engine()
        if engine is None:  # a backend that outlives its pipe and is called by hand
            raise PipeClosed("the pipe of this Jump is gone")
        self.reasons = []
        return engine._run_parts(self.entry, splits, keeps_failures, batch, self.reasons)


def warm_ups_in(backend: Backend) -> list[str]:
    """Return what an instance has run while it was built, part by part."""
    own = getattr(backend, "warmed_up", None)
    return [str(own)] * (own is not None) + [
        said for child in _children_of(backend) for said in warm_ups_in(child.backend)
    ]


def _children_of(backend: Backend) -> list[Child]:
    """Return the children of a container; none of what has something else by that name, as torch's modules do."""
    return getattr(backend, "children", []) if isinstance(backend, Container) else []


def _unmet_in(backend: Backend) -> list[str]:
    """Return what parts of an instance need of their neighbours and have not found."""
    own = getattr(backend, "unmet", None)
    return [str(own)] * (own is not None) + [
        said for child in _children_of(backend) for said in _unmet_in(child.backend)
    ]


def _sub_graphs_in(backend: Backend) -> Iterator[SubGraph]:
    if isinstance(backend, SubGraph):
        yield backend
    for child in _children_of(backend):
        yield from _sub_graphs_in(child.backend)
