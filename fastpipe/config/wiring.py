"""Names of nodes -> a compiled graph: who follows whom, who reads what, what is wrong with it. Starts nothing.

Every mistake of the wiring is found here, all at once, and said in one GraphError.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fastpipe.config.described import NodeConfig
from fastpipe.config.graph import Graph, GraphNode, Source, reached_from
from fastpipe.config.maps import MapEntry
from fastpipe.config.problems import NO_BACKEND, Problems
from fastpipe.config.sub_graphs import jumps_of
from fastpipe.errors import GraphError, Mistake, nearest

__all__ = ["add_mistakes_of_the_graph", "compile_graph"]

# Who comes before whom is a table with a field for every pair of nodes.
MOST_NODES = 4000
# A mistake in one of these makes other nodes look wrong, which are not.
_WIRING = {"next", "map", "restart"}

Edges = Sequence[tuple[int, ...]]


def compile_graph(configs: Sequence[NodeConfig], jumps: Mapping[str, Sequence[str]]) -> Graph:
    """Compile ``configs``; ``jumps`` has, for nodes with a Jump or MapReduce, the names of the nodes it leads to.

    Raises:
        GraphError: with every mistake: unknown names, cycles (as a path), joins without ``map``, a ``map`` from a node
            that is no ancestor or that leaves no ``data``, a jump that leads into itself, a ``restart`` to nowhere.
    """
    if len(configs) > MOST_NODES:
        raise GraphError(f"the graph has {len(configs)} nodes; {MOST_NODES} are the most")
    return _Wiring(configs).compile(jumps)


def add_mistakes_of_the_graph(nodes: Sequence[NodeConfig], problems: Problems) -> None:
    """Note in ``problems``, which has those of the nodes, what is wrong with the graph that the nodes make."""
    if not _is_wired(problems.mistakes):
        return
    wrong = {mistake.node for mistake in problems.mistakes}
    # What a plan with a mistake lacks may be where it jumps to.
    readable = [replace(node, plan=None) if node.name in wrong else node for node in nodes]
    try:
        compile_graph(readable, jumps_of(readable))
    except GraphError as error:
        for mistake in error.problems:
            problems.note(mistake)


def _is_wired(mistakes: Iterable[Mistake]) -> bool:
    """Whether all nodes are there, with what leads from one to another."""
    return not any(
        mistake.key in _WIRING or (mistake.key is None and mistake.text != NO_BACKEND) for mistake in mistakes
    )


class _Wiring:
    """Edges by index, and what is wrong with them, while a graph is compiled."""

    def __init__(self, configs: Sequence[NodeConfig]) -> None:
        self.configs = configs
        self.names = [config.name for config in configs]
        self.index_of = {name: index for index, name in enumerate(self.names)}
        self.mistakes: list[Mistake] = []
        self.following = [self._following(config) for config in configs]
        self.parents: list[list[int]] = [[] for _ in configs]
        for index, targets in enumerate(self.following):
            for target in targets:
                self.parents[target].append(index)
        self.jumps: dict[int, tuple[int, ...]] = {}
        self.restarts: list[int | None] = []

    def compile(self, jumps: Mapping[str, Sequence[str]]) -> Graph:
        """Check everything, in the order in which a reader would put it right; then put the nodes together."""
        for name, targets in jumps.items():
            self._add_jumps(name, targets)
        has_cycle = self._note_cycle()
        ancestors = _ancestors(self.following)
        sources = [self._sources(config, index, ancestors[index]) for index, config in enumerate(self.configs)]
        self.restarts = [self._restart(config) for config in self.configs]
        jumped_to = {target for targets in self.jumps.values() for target in targets}
        roots = self._roots(jumped_to)
        self._note_nested_restarts()
        self._note_contradicting_restarts((*roots, *sorted(jumped_to)))
        if not roots and not has_cycle:
            self._note("no node is a root: every node is another one's next or jump")
        if self.mistakes:
            raise GraphError(*self.mistakes)
        upstream = _ancestors(_through_jumps(self.following, self.jumps, self.restarts))
        nodes = tuple(
            GraphNode(
                index=index,
                name=config.name,
                next=self.following[index],
                parents=tuple(self.parents[index]),
                sources=sources[index],
                jumps=self.jumps.get(index, ()),
                restart=self.restarts[index],
                upstream=frozenset(upstream[index]),
            )
            for index, config in enumerate(self.configs)
        )
        return Graph(nodes, _order(self.parents, self.following), roots)

    # ---- edges -------------------------------------------------------------------------------------------------

    def _note(
        self,
        text: str,
        node: str | None = None,
        key: str | None = None,
        part: str | None = None,
        sentence: str | None = None,
    ) -> None:
        self.mistakes.append(Mistake(text, node, key, part, sentence=sentence))

    def _note_unknown(self, name: str, node: str, key: str) -> None:
        self._note(f"no node is named {name!r}{nearest(name, self.index_of)}", node, key, name)

    def _following(self, config: NodeConfig) -> tuple[int, ...]:
        for name in config.next:
            if name not in self.index_of:
                self._note_unknown(name, config.name, "next")
        return tuple(self.index_of[name] for name in dict.fromkeys(config.next) if name in self.index_of)

    def _add_jumps(self, name: str, targets: Sequence[str]) -> None:
        for target_name in targets:
            if target_name not in self.index_of:
                self._note_unknown(target_name, name, "jump")
                continue
            target, index = self.index_of[target_name], self.index_of[name]
            if self.parents[target]:
                parent = self.names[self.parents[target][0]]
                self._note(f"{target_name!r} is no root, as {parent!r} leads to it", name, "jump", target_name)
            self.jumps[index] = (*self.jumps.get(index, ()), target)

    def _note_cycle(self) -> bool:
        """Say whether the edges have a cycle, of themselves or through jumps."""
        if cycle := _cycle(self.following):
            text = f"the graph has a cycle: {self._path(cycle)}"
            self._note(text, self.names[cycle[-2]], "next", sentence=text)
        elif cycle := _cycle(_with_jumps(self.following, self.jumps)):
            text = f"a jump leads back to where it comes from: {self._path(cycle)}"
            self._note(text, self.names[cycle[0]], sentence=text)
        return bool(cycle)

    def _path(self, indices: Iterable[int]) -> str:
        return " -> ".join(self.names[index] for index in indices)

    def _roots(self, jumped_to: set[int]) -> tuple[int, ...]:
        # A node that only proxies use, and that leads nowhere, is like one that is jumped to.
        shared = (config.shares for config in self.configs if config.is_hidden)
        proxied = {self.index_of[name] for name in shared if name is not None}
        return tuple(
            index
            for index in range(len(self.configs))
            if not self.parents[index] and index not in jumped_to and (self.following[index] or index not in proxied)
        )

    # ---- restarts ----------------------------------------------------------------------------------------------

    def _restart(self, config: NodeConfig) -> int | None:
        if config.restart is None:
            return None
        if config.next:
            text = f"a node has either this or next; its next is {config.next}"
            self._note(text, config.name, "restart")
        if config.restart not in self.index_of:
            self._note_unknown(config.restart, config.name, "restart")
        return self.index_of.get(config.restart)

    def _note_nested_restarts(self) -> None:
        """Restarts that lead from inside a sub-graph back to the node that jumps there: parts within parts."""
        edges = _with_jumps(self.following, self.jumps)
        for index, restart in enumerate(self.restarts):
            if restart is None:
                continue
            for jumper in sorted(reached_from(restart, edges)):
                if any(index in reached_from(target, edges) for target in self.jumps.get(jumper, ())):
                    name, target_name = self.names[index], self.names[restart]
                    self._note(
                        f"from {target_name!r} the jump of {self.names[jumper]!r} leads back to {name!r}, and a "
                        "request would be in itself without end",
                        name,
                        "restart",
                        target_name,
                    )
                    break

    def _note_contradicting_restarts(self, starts: Iterable[int]) -> None:
        for start in dict.fromkeys(starts):
            leaves = _leaves(start, self.following)
            ends = {leaf: self.restarts[leaf] for leaf in leaves if self.restarts[leaf] is not None}
            if len(set(ends.values())) > 1:
                text = f"a request that enters at {self.names[start]!r} passes them all: one target"
                listed = ", ".join(repr(self.names[leaf]) for leaf in ends)
                self._note(text, self.names[max(ends)], "restart", sentence=f"{listed}: restart: {text}")

    # ---- maps --------------------------------------------------------------------------------------------------

    def _sources(self, config: NodeConfig, index: int, ancestors: set[int]) -> tuple[Source, ...] | None:
        """Return what a node's ``map`` reads; None: it has none, and no need of one."""
        if config.map is None:
            if len(self.parents[index]) > 1:
                listed = ", ".join(repr(self.names[parent]) for parent in self.parents[index])
                text = f"joins {listed}: it needs a map that says which keys it takes from each"
                self._note(text, config.name, sentence=f"node {config.name!r} {text}")
            return None
        by_indices: dict[tuple[int, ...], Source] = {}
        for entry in config.map:
            source = self._source(config.name, entry, self.parents[index], ancestors)
            if source is not None:
                before = by_indices.get(source.indices)
                keys = source.keys if before is None else (*before.keys, *source.keys)
                by_indices[source.indices] = Source(source.indices, source.names, keys)
        self._check_keys_here(config.name, by_indices.values())
        return tuple(by_indices.values())

    def _check_keys_here(self, node: str, sources: Iterable[Source]) -> None:
        """Each key is filled once, and ``data`` is."""
        taken: dict[str, str] = {}
        for source in sources:
            for _, key_here in source.keys:
                if key_here in taken:
                    text = f"{key_here!r} is filled from {taken[key_here]!r} and {source.name!r}"
                    self._note(text, node, "map", key_here)
                taken[key_here] = source.name
        if taken and "data" not in taken:
            self._note(f"nothing becomes 'data'; its keys here are {sorted(taken)}", node, "map", "data")

    def _source(self, node: str, entry: MapEntry, parents: Sequence[int], ancestors: set[int]) -> Source | None:
        if not entry.sources:
            if len(parents) != 1:
                text = f"a node must be named before [...], as {node!r} has {len(parents)} parents"
                self._note(text, node, "map")
                return None
            return Source((parents[0],), (self.names[parents[0]],), entry.keys)
        count = len(self.mistakes)
        for name in entry.sources:
            if name not in self.index_of:
                self._note_unknown(name, node, "map")
            elif self.index_of[name] not in ancestors:
                known = sorted(self.names[ancestor] for ancestor in ancestors)
                self._note(f"{name!r} does not come before {node!r}; these do: {known}", node, "map", name)
        if len(self.mistakes) > count:
            return None
        return Source(tuple(self.index_of[name] for name in entry.sources), entry.sources, entry.keys)


def _order(parents: Sequence[Sequence[int]], following: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """All nodes of a graph without cycles, each behind its parents; otherwise in file order."""
    waiting = [len(own) for own in parents]
    ready = [index for index, count in enumerate(waiting) if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for target in following[order[-1]]:
            waiting[target] -= 1
            if waiting[target] == 0:
                heapq.heappush(ready, target)
    return tuple(order)


def _cycle(following: Sequence[Iterable[int]]) -> list[int]:
    """A cycle as a path whose last node is its first, or an empty list. Iterative: graphs may be long chains."""
    state = [0] * len(following)  # 0 not seen, 1 on the path, 2 done
    for start in range(len(following)):
        if state[start]:
            continue
        path = [start]
        rest = [iter(following[start])]
        state[start] = 1
        while path:
            target = next(rest[-1], None)
            if target is None:
                state[path.pop()] = 2
                rest.pop()
            elif state[target] == 1:
                return [*path[path.index(target) :], target]
            elif state[target] == 0:
                state[target] = 1
                path.append(target)
                rest.append(iter(following[target]))
    return []


def _with_jumps(following: Sequence[tuple[int, ...]], jumps_of: Mapping[int, tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [(*targets, *jumps_of.get(index, ())) for index, targets in enumerate(following)]


def _through_jumps(
    following: Sequence[tuple[int, ...]], jumps_of: Mapping[int, tuple[int, ...]], restarts: Sequence[int | None]
) -> list[tuple[int, ...]]:
    """Edges along which a request or its parts go: the leaves of a graph that was jumped to lead to what follows."""
    edges = [list(targets) for targets in _with_jumps(following, jumps_of)]
    for index, restart in enumerate(restarts):
        if restart is not None:
            edges[index].append(restart)
    for index, targets in jumps_of.items():
        for leaf in {leaf for target in targets for leaf in _leaves(target, following)}:
            edges[leaf].extend(following[index])
    return [tuple(targets) for targets in edges]


def _leaves(start: int, following: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(index for index in sorted(reached_from(start, following)) if not following[index])


def _ancestors(following: Sequence[tuple[int, ...]]) -> list[set[int]]:
    ancestors: list[set[int]] = [set() for _ in following]
    for index in range(len(following)):
        for target in reached_from(index, following) - {index}:
            ancestors[target].add(index)
    return ancestors
