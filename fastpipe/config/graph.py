"""Nodes in, a compiled graph out: order, joins, maps, copies. Pure: no threads, no backends, nothing is started.

Every mistake of the wiring is found here, all at once, and said in one GraphError.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fastpipe.config.nodes import MapEntry, NodeConfig
from fastpipe.errors import GraphError, Mistake, nearest
from fastpipe.filters import Status

__all__ = ["Entry", "Exit", "Graph", "GraphNode", "Source", "compile_graph"]


# Who comes before whom is a table with a place for every pair of nodes.
MOST_NODES = 4000


@dataclass(frozen=True)
class Source:
    """An ancestor that a node's ``map`` reads; of several, which the file joins by ``|``, the first that has run."""

    indices: tuple[int, ...]
    names: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]  # (key there, key here)

    @property
    def name(self) -> str:
        return "|".join(self.names)

    @property
    def names_context(self) -> bool:
        return any(key_there == "context" for key_there, _ in self.keys)


@dataclass(frozen=True)
class GraphNode:
    """A node and its place."""

    index: int
    name: str
    next: tuple[int, ...]
    parents: tuple[int, ...]
    sources: tuple[Source, ...] | None  # None: it gets its only parent's dict; see also `read`
    jumps: tuple[int, ...]  # nodes at which parts of its requests enter
    restart: int | None  # where a request that ends here enters again
    upstream: frozenset[int]  # nodes whose requests may still come here, through jumps and restarts too

    @property
    def read(self) -> Iterator[int]:
        """The nodes that its ``map`` may read."""
        return (index for source in self.sources or () for index in source.indices)


@dataclass(frozen=True)
class Exit:
    """How a request leaves a node, or a part of the graph that is skipped as a whole."""

    hidden: tuple[int, ...]  # the nodes that are left: one, or those that are skipped, the first of them first
    kept: tuple[int, ...]  # slots in which its dict stays for a later map, or for the answer
    unread: tuple[int, ...]  # slots that have one reader less each: the maps of hidden nodes
    next: tuple[int, ...]  # where the request goes, in file order; a join once for each edge
    heir: int  # which of `next` gets the dict itself; -1: none. The others without a map get copies
    leaves: int  # how many leaves are passed


@dataclass(frozen=True)
class Entry:
    """What a request meets that enters at ``node``: only what can be reached from there is counted.

    A dict that has to outlast its node has a *slot*, until the last node that reads it has done so.
    """

    graph: Graph = field(repr=False, compare=False)
    node: int
    reached: frozenset[int]
    pending: tuple[int, ...]  # by node: how many parents must arrive; empty if there is no join on the way
    slots: Mapping[int, int]  # node -> its slot
    readers: tuple[int, ...]  # by slot: how many will read it
    leaves: tuple[int, ...]  # in file order
    restart: int | None  # where a request that has passed all leaves enters again

    def exit(self, node: int, status: Status = Status.Skip) -> Exit:
        """Return what follows when a request leaves ``node``: SerialSkip and SubGraphSkip take more nodes along."""
        nodes = self.graph.nodes
        hidden = {node: None}  # a dict for its order
        if status is Status.SerialSkip:
            following = self._only_follower(node)
            while following is not None:
                hidden[following] = None
                following = self._only_follower(following)
        elif status is Status.SubGraphSkip:
            for index in self.graph.order:
                parents = [parent for parent in nodes[index].parents if parent in self.reached]
                if parents and all(parent in hidden for parent in parents):
                    hidden[index] = None
        maps = [source for index in hidden if index != node for source in nodes[index].read]
        kept = tuple(self.slots[index] for index in hidden if index in self.slots)
        onward = tuple(target for index in hidden for target in nodes[index].next if target not in hidden)
        takers = [place for place, target in enumerate(onward) if nodes[target].sources is None]
        return Exit(
            hidden=tuple(hidden),
            kept=kept,
            unread=tuple(self.slots[source] for source in maps if source in self.slots),
            next=onward,
            heir=takers[-1] if takers and not kept else -1,
            leaves=sum(not nodes[index].next for index in hidden),
        )

    def _only_follower(self, node: int) -> int | None:
        following = self.graph.nodes[node].next
        if len(following) != 1:
            return None
        parents = self.graph.nodes[following[0]].parents
        return following[0] if sum(parent in self.reached for parent in parents) == 1 else None


@dataclass(frozen=True)
class Graph:
    """The compiled graph; nodes refer to each other by index."""

    nodes: tuple[GraphNode, ...]
    order: tuple[int, ...]  # all nodes, each behind its parents
    roots: tuple[int, ...]  # where requests enter by themselves, in file order; not those that are jumped to

    @property
    def has_several_leaves(self) -> bool:
        """Whether from some root a request passes more than one leaf."""
        leaves: list[set[int]] = [set() for _ in self.nodes]
        for index in reversed(self.order):
            found = {leaf for target in self.nodes[index].next for leaf in leaves[target]} or {index}
            leaves[index] = set(sorted(found)[:2])  # two are enough to know
        return any(len(leaves[root]) > 1 for root in self.roots)

    def entry(self, node: int) -> Entry:
        """Return what a request meets that enters at ``node``; any node will do."""
        nodes = self.nodes
        reached = frozenset(_reached(node, [each.next for each in nodes]))
        pending = [0] * len(nodes)
        readers: dict[int, int] = {}
        for index in sorted(reached):
            pending[index] = sum(parent in reached for parent in nodes[index].parents)
            # The dict with which the request enters is its own: what the node there would map is not looked at.
            for source in () if index == node else nodes[index].read:
                if source in reached:
                    readers[source] = readers.get(source, 0) + 1
        leaves = tuple(index for index in sorted(reached) if not nodes[index].next)
        if len(leaves) > 1:
            readers.update(dict.fromkeys(leaves, 1))  # by the answer
        restarts = [target for leaf in leaves if (target := nodes[leaf].restart) is not None]
        return Entry(
            graph=self,
            node=node,
            reached=reached,
            pending=tuple(pending) if max(pending) > 1 else (),
            slots={index: slot for slot, index in enumerate(readers)},
            readers=tuple(readers.values()),
            leaves=leaves,
            restart=restarts[-1] if restarts else None,
        )


def compile_graph(configs: Sequence[NodeConfig], jumps: Mapping[str, Sequence[str]]) -> Graph:
    """Compile ``configs``; ``jumps`` has, for nodes with a Jump or MapReduce, the names of the nodes it leads to.

    Raises:
        GraphError: with every mistake: unknown names, cycles (as a path), joins without ``map``, a ``map`` from a node
            that is no ancestor or that leaves no ``data``, a jump that leads into itself, a ``restart`` to nowhere.
    """
    if len(configs) > MOST_NODES:
        raise GraphError(f"the graph has {len(configs)} nodes; {MOST_NODES} are the most")
    index_of = {config.name: index for index, config in enumerate(configs)}
    problems: list[str] = []
    following = [_known(config, index_of, problems) for config in configs]
    parents: list[list[int]] = [[] for _ in configs]
    for index, targets in enumerate(following):
        for target in targets:
            parents[target].append(index)
    jumps_of: dict[int, tuple[int, ...]] = {}
    for name, target_names in jumps.items():
        for target_name in target_names:
            if target_name not in index_of:
                problems.append(
                    f"node {name!r}: jump: no node is named {target_name!r}{nearest(target_name, index_of)}"
                )
                continue
            target = index_of[target_name]
            if parents[target]:
                parent = configs[parents[target][0]].name
                problems.append(f"node {name!r}: jump: {target_name!r} is no root, as {parent!r} leads to it")
            jumps_of[index_of[name]] = (*jumps_of.get(index_of[name], ()), target)
    jumped_to = {target for targets in jumps_of.values() for target in targets}
    names = [config.name for config in configs]
    cycle = _cycle(following)
    if cycle:
        path = " -> ".join(names[index] for index in cycle)
        problems.append(Mistake(f"the graph has a cycle: {path}", node=names[cycle[-2]], key="next"))
    elif cycle := _cycle(_with_jumps(following, jumps_of)):
        path = " -> ".join(names[index] for index in cycle)
        problems.append(Mistake(f"a jump leads back to where it comes from: {path}", node=names[cycle[0]]))
    ancestors = _ancestors(following)
    sources = [
        _sources(config, index, parents, ancestors, names, index_of, problems) for index, config in enumerate(configs)
    ]
    restarts = [_restart(config, index_of, problems) for config in configs]
    # A node that only proxies use, and that leads nowhere, is like one that is jumped to.
    proxied = {index_of[config.shares] for config in configs if config.is_hidden and config.shares is not None}
    roots = tuple(
        index
        for index in range(len(configs))
        if not parents[index] and index not in jumped_to and (following[index] or index not in proxied)
    )
    problems += _nested_restarts(names, following, jumps_of, restarts)
    for start in dict.fromkeys((*roots, *sorted(jumped_to))):
        ends = {leaf: restarts[leaf] for leaf in _leaves(start, following) if restarts[leaf] is not None}
        if len(set(ends.values())) > 1:
            listed = ", ".join(repr(names[leaf]) for leaf in ends)
            sentence = f"{listed}: restart: a request that enters at {names[start]!r} passes them all: one target"
            problems.append(Mistake(sentence, node=names[max(ends)], key="restart"))
    if not roots and not cycle:
        problems.append("no node is a root: every node is another one's next or jump")
    if problems:
        raise GraphError(*problems)

    upstream = _ancestors(_through_jumps(following, jumps_of, restarts))
    nodes = tuple(
        GraphNode(
            index=index,
            name=config.name,
            next=following[index],
            parents=tuple(parents[index]),
            sources=sources[index],
            jumps=jumps_of.get(index, ()),
            restart=restarts[index],
            upstream=frozenset(upstream[index]),
        )
        for index, config in enumerate(configs)
    )
    return Graph(nodes, _order(parents, following), roots)


def _restart(config: NodeConfig, index_of: Mapping[str, int], problems: list[str]) -> int | None:
    if config.restart is None:
        return None
    if config.next:
        problems.append(f"node {config.name!r}: restart: a node has either this or next; its next is {config.next}")
    if config.restart not in index_of:
        problems.append(
            f"node {config.name!r}: restart: no node is named {config.restart!r}{nearest(config.restart, index_of)}"
        )
    return index_of.get(config.restart)


def _nested_restarts(
    names: Sequence[str],
    following: Sequence[tuple[int, ...]],
    jumps_of: Mapping[int, tuple[int, ...]],
    restarts: Sequence[int | None],
) -> Iterator[str]:
    """Restarts that lead from inside a sub-graph back to the node that jumps there: parts within parts without end."""
    edges = _with_jumps(following, jumps_of)
    for index, restart in enumerate(restarts):
        if restart is None:
            continue
        for jumper in sorted(_reached(restart, edges)):
            if any(index in _reached(target, edges) for target in jumps_of.get(jumper, ())):
                yield (
                    f"node {names[index]!r}: restart: from {names[restart]!r} the jump of {names[jumper]!r} leads back "
                    f"to {names[index]!r}, and a request would be in itself without end"
                )
                break


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


def _known(config: NodeConfig, index_of: Mapping[str, int], problems: list[str]) -> tuple[int, ...]:
    for name in config.next:
        if name not in index_of:
            problems.append(f"node {config.name!r}: next: no node is named {name!r}{nearest(name, index_of)}")
    return tuple(index_of[name] for name in dict.fromkeys(config.next) if name in index_of)


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
    return tuple(index for index in sorted(_reached(start, following)) if not following[index])


def _reached(start: int, following: Sequence[tuple[int, ...]]) -> set[int]:
    reached = {start}
    todo = [start]
    while todo:
        for target in following[todo.pop()]:
            if target not in reached:
                reached.add(target)
                todo.append(target)
    return reached


def _ancestors(following: Sequence[tuple[int, ...]]) -> list[set[int]]:
    ancestors: list[set[int]] = [set() for _ in following]
    for index in range(len(following)):
        for target in _reached(index, following) - {index}:
            ancestors[target].add(index)
    return ancestors


def _sources(
    config: NodeConfig,
    index: int,
    parents: Sequence[Sequence[int]],
    ancestors: Sequence[set[int]],
    names: Sequence[str],
    index_of: Mapping[str, int],
    problems: list[str],
) -> tuple[Source, ...] | None:
    own_parents = parents[index]
    if config.map is None:
        if len(own_parents) > 1:
            listed = ", ".join(repr(names[parent]) for parent in own_parents)
            problems.append(
                f"node {config.name!r} joins {listed}: it needs a map that says which keys it takes from each"
            )
        return None
    by_indices: dict[tuple[int, ...], Source] = {}
    for entry in config.map:
        source = _source(config, entry, own_parents, ancestors[index], names, index_of, problems)
        if source is not None:
            before = by_indices.get(source.indices)
            keys = source.keys if before is None else (*before.keys, *source.keys)
            by_indices[source.indices] = Source(source.indices, source.names, keys)
    taken: dict[str, str] = {}
    for source in by_indices.values():
        for _, key_here in source.keys:
            if key_here in taken:
                problems.append(
                    f"node {config.name!r}: map: {key_here!r} is filled from {taken[key_here]!r} and {source.name!r}"
                )
            taken[key_here] = source.name
    if by_indices and "data" not in taken:
        problems.append(f"node {config.name!r}: map: nothing becomes 'data'; its keys here are {sorted(taken)}")
    return tuple(by_indices.values())


def _source(
    config: NodeConfig,
    entry: MapEntry,
    own_parents: Sequence[int],
    own_ancestors: set[int],
    names: Sequence[str],
    index_of: Mapping[str, int],
    problems: list[str],
) -> Source | None:
    where = f"node {config.name!r}: map"
    if not entry.sources:
        if len(own_parents) != 1:
            problems.append(
                f"{where}: a node must be named before [...], as {config.name!r} has {len(own_parents)} parents"
            )
            return None
        return Source((own_parents[0],), (names[own_parents[0]],), entry.keys)
    count = len(problems)
    for name in entry.sources:
        if name not in index_of:
            problems.append(f"{where}: no node is named {name!r}{nearest(name, index_of)}")
        elif index_of[name] not in own_ancestors:
            known = sorted(names[ancestor] for ancestor in own_ancestors)
            problems.append(f"{where}: {name!r} does not come before {config.name!r}; these do: {known}")
    if len(problems) > count:
        return None
    return Source(tuple(index_of[name] for name in entry.sources), entry.sources, entry.keys)
