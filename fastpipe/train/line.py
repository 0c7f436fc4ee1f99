"""Which nodes of a description come before the model, in one line, and may run without an engine."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastpipe.backends.flow.sequential import Sequential
from fastpipe.backends.model.runs import ModelBackend
from fastpipe.config.described import NodeConfig, PipeConfig
from fastpipe.config.graph import Graph
from fastpipe.config.plan import StepPlan
from fastpipe.config.sub_graphs import is_sub_graph, jumps_of
from fastpipe.config.wiring import compile_graph
from fastpipe.contract import Request
from fastpipe.errors import ConfigError, Mistake, nearest
from fastpipe.filters import run, run_if_no_result, swap

__all__ = ["Link", "line_of", "model_behind", "split"]

Ends = Callable[[StepPlan], bool]

_OF_THE_MODEL = ("mean", "std")
# In front of a step that is cut off, or at which a node is divided, none of these ends a request before its time.
_NEVER_LEAVE = (None, run, run_if_no_result, swap)


@dataclass(frozen=True)
class Link:
    """A node, or what is left of it."""

    node: str
    plan: StepPlan
    filter: Callable[[Request], Any] | None = None
    """In front of it; None: the default, which moves the result of the link before to ``data``."""


def line_of(config: PipeConfig, before: str | None) -> list[Link]:
    """Return the links from the root to a node or step, without that.

    Args:
        config: all nodes.
        before: the name of a node, or of a step, or ``"node::step"``; None: the first step that runs a model, or all.

    Raises:
        ConfigError: they are no line, or one of them cannot be run so, or nothing is left; the message names the node.
    """
    nodes = {node.name: node for node in config.nodes}
    place, ends = _end(nodes, before)
    links: list[Link] = []
    for node in _walk(config, before, ends):
        plan = _plan_of(node, nodes)
        ends_here = ends if place in (None, node.name) else _never
        head, tail = (None, plan) if node.name == before else split(plan, ends_here, node.name)
        if head is not None:
            _check(node, head, is_first=not links)
            links.append(Link(node.name, head, node.filter))
        if tail is not None:
            if before is None:
                _check_model(node.name, tail)
            break
    else:
        if before is not None:
            raise ConfigError(f"the line of nodes from {links[0].node!r} does not lead to {before!r}")
    if not links:
        raise ConfigError(f"nothing stands in front of {before or 'the model'}: there is nothing to transform with")
    return links


def model_behind(config: PipeConfig, node: str | None) -> tuple[str, StepPlan, bool]:
    """Return the node of the first step that runs a model, that step, and whether a request comes there as it is.

    Args:
        config: all nodes.
        node: the name of the node to look in; None: in all, in the order they are written.

    Raises:
        ConfigError: none does, or there is no such node.
    """
    names = [each.name for each in config.nodes]
    if node is not None and node not in names:
        raise ConfigError(f"no node is named {node!r}{nearest(node, names)}")
    for each in config.nodes:
        for step in each.plan.steps() if each.plan is not None and node in (None, each.name) else ():
            if _is_model(step):
                head, _ = split(each.plan or step, partial(operator.is_, step), each.name)
                is_root = not any(each.name in other.next for other in config.nodes)
                return each.name, step, head is None and is_root
    raise ConfigError(f"no {'node' if node is None else f'step of {node!r}'} runs a model")


def split(plan: StepPlan, ends: Ends, node: str) -> tuple[StepPlan | None, StepPlan | None]:
    """Divide a plan in front of the first step for which ``ends`` is true: what comes before, and the rest.

    A step inside another container than Sequential is not reached: it is divided in front of that container. The rest
    has the filter that stands in front of it.

    Raises:
        ConfigError: a filter could let a request leave the divided Sequential early, which nobody behind would know.
    """
    if ends(plan):
        return None, plan
    if not _is_sequential(plan):
        is_inside = any(ends(step) for step in plan.steps())
        return (None, plan) if is_inside else (plan, None)
    for index, child in enumerate(plan.children):
        head, tail = split(child, ends, node)
        if tail is None:
            continue
        _check_filters(node, plan.children[: index + 1])
        rest = child if head is None else tail
        before = [*plan.children[:index], *([] if head is None else [head])]
        behind = [replace(rest, filter=None), *plan.children[index + 1 :]]
        kept = replace(plan, children=tuple(before)) if before else None
        return kept, replace(plan, children=tuple(behind), filter=rest.filter)
    return plan, None


def _is_sequential(plan: StepPlan) -> bool:
    return issubclass(plan.kind, Sequential) and plan.kind.forward is Sequential.forward


def _is_model(step: StepPlan) -> bool:
    return issubclass(step.kind, ModelBackend)


def _end(nodes: dict[str, NodeConfig], before: str | None) -> tuple[str | None, Ends]:
    """Return what says of a step that the line ends in front of it, and the only node in which that counts."""
    if before is None:
        return None, _is_model
    if before in nodes:
        return None, _never
    place, _, step_name = before.rpartition("::")
    if place and place not in nodes:
        raise ConfigError(f"no node is named {place!r}{nearest(place, nodes)}")
    within = [nodes[place]] if place else nodes.values()
    names = {step.name.lower(): step.name for node in within if node.plan for step in node.plan.steps()}
    if step_name.lower() not in names:
        known = [*nodes, *names.values()]
        raise ConfigError(f"no node and no step is named {before!r}{nearest(step_name, known)}")
    return place or None, lambda step: step.name.lower() == step_name.lower()


def _never(step: StepPlan) -> bool:
    return False


def _plan_of(node: NodeConfig, nodes: dict[str, NodeConfig]) -> StepPlan:
    plan = node.plan if node.shares is None else nodes[node.shares].plan
    if plan is None:  # which a description without mistakes has
        raise ConfigError(Mistake("it has no backend", node.name))
    return plan


def _walk(config: PipeConfig, before: str | None, ends: Ends) -> Iterator[NodeConfig]:
    """Yield the nodes from the root on; behind a fork, the one at which the line ends."""
    graph: Graph = compile_graph(config.nodes, jumps_of(config.nodes))
    targets = {index for node in graph.nodes for index in node.jumps}
    roots = [index for index in graph.roots if index not in targets]
    if len(roots) != 1:
        names = ", ".join(config.nodes[index].name for index in roots)
        raise ConfigError(f"a transform begins at one root, and there are {len(roots)}: {names}")
    here = roots[0]
    yield config.nodes[here]
    while following := graph.nodes[here].next:
        here = following[0] if len(following) == 1 else _chosen(config, here, following, before, ends)
        yield config.nodes[here]


def _chosen(config: PipeConfig, fork: int, following: Sequence[int], before: str | None, ends: Ends) -> int:
    """Return the node behind a fork at which the line ends: the one that is named, or any of several models.

    Raises:
        ConfigError: there is none.
    """
    nodes = {node.name: node for node in config.nodes}
    behind = [config.nodes[index] for index in following]
    named = [index for index in following if config.nodes[index].name == before]
    if named:
        return named[0]
    if before is None and all(split(_plan_of(node, nodes), ends, node.name)[0] is None for node in behind):
        return following[0]
    names = ", ".join(node.name for node in behind)
    text = f"{names} follow it, and a transform is one line of nodes: before={behind[0].name!r} ends it there"
    raise ConfigError(Mistake(text, config.nodes[fork].name, "next"))


def _check(node: NodeConfig, plan: StepPlan, *, is_first: bool) -> None:
    """Refuse what needs an engine around it."""
    text = ""
    if node.map is not None:
        text = "its map takes keys of several nodes, which a transform does not keep apart"
    for step in plan.steps():
        if is_sub_graph(step):
            text = f"{step.name} is another graph"
        elif step.kind.streams:
            text = f"{step.name} answers in parts"
        elif step.backend.thread_bound:
            text = f"{step.name} needs a thread of its own, and a transform has none"
    if text:
        advice = "" if is_first else f"; before={node.name!r} ends it in front"
        raise ConfigError(Mistake(f"{text}: it cannot be part of a transform{advice}", node.name))


def _check_model(node: str, tail: StepPlan) -> None:
    """Refuse a model that normalises while it serves, as the net would be trained on other numbers."""
    for step in tail.steps():
        keys = [key for key in _OF_THE_MODEL if _is_model(step) and step.parameters.get(key) is not None]
        if keys:
            raise ConfigError(
                Mistake(
                    f"{step.name} has {' and '.join(keys)}, which the transform in front of it does not apply: a net "
                    f"would be trained on other numbers than it is served. Give them to a step NormalizeMat instead, "
                    f"or say before={step.name!r} and normalise within the net",
                    node,
                    keys[0],
                )
            )


def _check_filters(node: str, children: tuple[StepPlan, ...]) -> None:
    for child in children:
        if child.filter not in _NEVER_LEAVE:
            raise ConfigError(
                Mistake(
                    f"the filter in front of {child.name} may end a request there, and the node is divided behind it: "
                    "make nodes of the two parts",
                    node,
                    "backend",
                )
            )
