"""A compiled graph, and what a request meets in it: order, joins, maps, copies. Pure data, made by ``wiring``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fastpipe.filters import Status

__all__ = ["Entry", "Exit", "Graph", "GraphNode", "Source", "reached_from"]


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
        reached = frozenset(reached_from(node, [each.next for each in nodes]))
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


def reached_from(start: int, following: Sequence[tuple[int, ...]]) -> set[int]:
    """Return the nodes that can be reached from ``start``, itself included."""
    reached = {start}
    todo = [start]
    while todo:
        for target in following[todo.pop()]:
            if target not in reached:
                reached.add(target)
                todo.append(target)
    return reached
