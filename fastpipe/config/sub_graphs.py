"""Nodes and steps whose work is another graph, or another node: where they lead, and whether a Proxy's can work.

A proxy enters at a hidden logical node, which shares the instances of its target and has no next, map or filter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from fastpipe.config.described import NodeConfig
from fastpipe.config.plan import StepPlan
from fastpipe.config.problems import Problems
from fastpipe.contract import SubGraph
from fastpipe.errors import nearest

__all__ = ["entry_of", "entry_of_object", "is_sub_graph", "jumps_of", "proxied"]


def is_sub_graph(plan: StepPlan) -> bool:
    """Whether a step's work is another graph, or another node."""
    return issubclass(plan.kind, SubGraph)


def entry_of(plan: StepPlan) -> str | None:
    """Return the node at which the parts of a step enter; None: it is no sub-graph, or does not say where."""
    target = _target(plan)
    return target if target is None or not _runs_there(plan) else _hidden_name(target)


def entry_of_object(sub_graph: SubGraph) -> str:
    """Return the node at which the parts of a backend enter."""
    return _hidden_name(sub_graph.jump) if sub_graph.runs_there else sub_graph.jump


def jumps_of(configs: Iterable[NodeConfig]) -> dict[str, tuple[str, ...]]:
    """Return, for the nodes that have such steps, where parts of their requests enter; also for logical nodes."""
    configs = tuple(configs)
    plans = {config.name: config.plan for config in configs}
    jumps = {}
    for config in configs:
        plan = plans.get(config.name if config.shares is None else config.shares)
        entries = () if plan is None else map(entry_of, plan.steps())
        targets = tuple(entry for entry in entries if entry is not None)
        if targets:
            jumps[config.name] = targets
    return jumps


def proxied(
    plans: Mapping[str, StepPlan],
    shares: Mapping[str, str],
    following: Mapping[str, Sequence[str]],
    known: Collection[str],
    problems: Problems,
) -> dict[str, str]:
    """Return the hidden nodes that proxies need, and whose instances each shares.

    Args:
        plans: of the nodes that have one.
        shares: logical node -> the node whose instances it uses.
        following: node -> its ``next``.
        known: the names of all nodes, also of those about which problems were noted.
        problems: notes targets that nobody knows, that have no instances, or that lead back to the proxy.
    """
    hidden: dict[str, str] = {}
    uses = {name: list(_used(plan, shares, following)) for name, plan in plans.items()}
    for name, plan in plans.items():
        for proxy in filter(_runs_there, plan.steps()):
            target = _target(proxy)
            if target is None:
                continue  # which has been noted
            owner = shares.get(target, target)
            if target not in known:
                problems.add(name, "proxy", f"no node is named {target!r}{nearest(target, known)}", target)
            elif owner in plans and is_sub_graph(plans[owner]):
                kind = plans[owner].name
                text = f"{target!r} is a {kind}, which has no instances of its own to run in"
                problems.add(name, "proxy", text, target)
            elif path := _path(owner, name, uses):
                text = f"running {target!r} leads back to {name!r}: {' -> '.join([name, *path])}"
                problems.add(name, "proxy", text, target)
            else:  # also of a node that could not be read: what is wrong with that has been noted
                hidden[_hidden_name(target)] = owner
    return hidden


def _hidden_name(node: str) -> str:
    """Return the name of the logical node by which proxies of ``node`` enter; no user's node has such a name."""
    return f"{node} (by proxy)"


def _target(plan: StepPlan) -> str | None:
    """Return the node that a step names as the one where its parts go; None: it names none."""
    if not issubclass(plan.kind, SubGraph):
        return None
    given = plan.backend
    target = given.jump if isinstance(given, SubGraph) else plan.kind.entry_node(plan.parameters)
    return target if isinstance(target, str) else None


def _runs_there(plan: StepPlan) -> bool:
    return issubclass(plan.kind, SubGraph) and plan.kind.runs_there


def _used(plan: StepPlan, shares: Mapping[str, str], following: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the nodes in whose instances a request may run while it is in this plan's."""
    for step in plan.steps():
        target = _target(step)
        if target is None:
            continue
        if _runs_there(step):
            yield shares.get(target, target)
            continue
        waiting, seen = [target], set()
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                yield shares.get(name, name)
                waiting.extend(following.get(name, ()))


def _path(start: str, goal: str, uses: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the shortest way from ``start`` to ``goal``, both included; empty if there is none."""
    paths = [[start]]
    seen = {start}
    for path in paths:  # grows while it is walked
        if path[-1] == goal:
            return path
        for name in uses.get(path[-1], ()):
            if name not in seen:
                seen.add(name)
                paths.append([*path, name])
    return []
