"""Which nodes are run by proxies of other nodes, and whether that can work: the backend ``Proxy``, seen from outside.

A proxy enters at a hidden logical node, which shares the instances of its target and has no next, map or filter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from fastpipe.backends.flow.graphs import Proxy, SubGraph, hidden_name
from fastpipe.config.plan import Problems, StepPlan
from fastpipe.errors import nearest

__all__ = ["proxied"]


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
        where = f"node {name!r}"
        for proxy in _steps(plan, Proxy):
            target = _target(proxy)
            if target is None:
                continue  # which has been noted
            owner = shares.get(target, target)
            if target not in known:
                problems.add(where, f"proxy: no node is named {target!r}{nearest(target, known)}")
            elif owner in plans and issubclass(_class_of(plans[owner]), SubGraph):
                kind = plans[owner].name
                problems.add(where, f"proxy: {target!r} is a {kind}, which has no instances of its own to run in")
            elif path := _path(owner, name, uses):
                problems.add(where, f"proxy: running {target!r} leads back to {name!r}: {' -> '.join([name, *path])}")
            else:  # also of a node that could not be read: what is wrong with that has been noted
                hidden[hidden_name(target)] = owner
    return hidden


def _steps(plan: StepPlan, kind: type[SubGraph]) -> Iterator[StepPlan]:
    if issubclass(_class_of(plan), kind):
        yield plan
    for child in plan.children:
        yield from _steps(child, kind)


def _class_of(plan: StepPlan) -> type:
    return plan.backend if isinstance(plan.backend, type) else type(plan.backend)


def _target(step: StepPlan) -> str | None:
    """Return the node that a Proxy names, or at which another sub-graph enters; None if it is not written."""
    key = "proxy" if issubclass(_class_of(step), Proxy) else "jump"
    name = step.parameters.get(key) if isinstance(step.backend, type) else getattr(step.backend, key)
    return name if isinstance(name, str) else None


def _used(plan: StepPlan, shares: Mapping[str, str], following: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the nodes in whose instances a request may run while it is in this plan's."""
    for step in _steps(plan, SubGraph):
        target = _target(step)
        if target is None:
            continue
        if issubclass(_class_of(step), Proxy):
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
