"""A description that has been read and checked: frozen dataclasses, from which the pipe is built and drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastpipe.announcing import NOT_WRITTEN, Interface
from fastpipe.config.keys import NODE_KEYS, PIPE_KEYS, default_settings
from fastpipe.config.maps import MapEntry
from fastpipe.config.plan import StepPlan

__all__ = ["NodeConfig", "PipeConfig", "Written"]


@dataclass(frozen=True, eq=False, repr=False)
class Written:
    """What a pipe is made from, as it was written, and what was changed since; it may have secrets."""

    source: str | Path | Mapping[str, Any] | None
    keywords: Mapping[str, Any]
    tables: Mapping[str, Any]
    """What the source says."""
    base_directory: Path | None
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By node: keys that win over all else."""

    def changed(self, node: str, keys: Mapping[str, Any]) -> Written:
        """Return the same with keys of a node changed."""
        changes = {**self.changes, node: {**self.changes.get(node, {}), **keys}}
        return Written(self.source, self.keywords, self.tables, self.base_directory, changes)

    def keywords_now(self) -> dict[str, Any]:
        """Return the keywords with which the source means what it means with the changes."""
        keywords = dict(self.keywords)
        for node, keys in self.changes.items():
            if isinstance(self.tables.get(node, keywords.get(node)), Mapping):
                keywords[node] = {**keywords.get(node, {}), **keys}
            else:  # the only node, whose keys stand beside the tables
                keywords.update(keys)
        return keywords


@dataclass(frozen=True)
class NodeConfig:
    """One node, checked."""

    name: str
    plan: StepPlan | None
    """What to build; None for a logical node."""
    shares: str | None = None
    """For a logical node such as ``rec.2``: ``"rec"``, the node whose instances it uses."""
    instance_num: int = 1
    max: int | None = None
    """How many requests a batch may have; None: what the backend says."""
    next: tuple[str, ...] = ()
    map: tuple[MapEntry, ...] | None = None
    filter: Callable[..., Any] | None = None
    """None: the default, which depends on the place in the graph."""
    filter_name: str | None = None
    restart: str | None = None
    """For a leaf: where its requests enter again."""
    restart_limit: int = 1000
    """How often one request may enter again here."""
    bucket: str | Callable[..., Any] | None = None
    """A key of the request, or a function of it; None: what the backend says."""
    is_hidden: bool = False
    """Nobody wrote it: proxies of the node it ``shares`` enter there, and no request by ``node_name``."""
    settings: Mapping[str, Any] = field(default_factory=lambda: default_settings(NODE_KEYS))
    """The values of the keys that have no field of their own here, by the names of the keys: see ``keys.NODE_KEYS``."""

    @property
    def batching(self) -> Any:
        """The name of a rule, or an object with the rule's method."""
        return self.settings["batching"]

    @property
    def hang_timeout_s(self) -> float | None:
        """How long a batch may run before its instance is given up; None: however long."""
        timeout_s: float | None = self.settings["hang_timeout"]
        return timeout_s


@dataclass(frozen=True)
class PipeConfig:
    """All nodes, in the order they were written."""

    nodes: tuple[NodeConfig, ...]
    written: Written = field(repr=False)
    request_timeout_s: float | None = None
    """How long a request may take that says nothing itself."""
    max_in_flight: int | None = None
    """How many requests may be in the pipe at once; None: no limit."""
    when_overloaded: str = "block"
    """What becomes of one more."""
    when_hung: str = "replace"
    """What becomes of an instance that does not return within its node's ``hang_timeout``; or of the process."""
    obey_request_keys: Sequence[str] = ()
    """The keys that mean something to the engine also where a caller's own dict has them."""
    without_result: str = "error"
    """What becomes of a request that ends without a result because a step gave none."""
    interface: Interface = NOT_WRITTEN
    """What a server announces of the pipe, as far as it is written."""
    settings: Mapping[str, Any] = field(default_factory=lambda: default_settings(PIPE_KEYS))
    """The values of the keys of the pipe that have no field here, by the names of the keys: see ``keys.PIPE_KEYS``."""
