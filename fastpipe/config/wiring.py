"""Mistakes of the graph, told together with those of the nodes, as far as the nodes can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastpipe.config.graph import compile_graph
from fastpipe.config.nodes import NodeConfig
from fastpipe.config.plan import Problems
from fastpipe.errors import GraphError, Mistake
from fastpipe.instances.building import jumps_of

__all__ = ["add_mistakes_of_the_graph"]

# A mistake in one of these makes other nodes look wrong, which are not.
_WIRING = {"next", "map", "restart"}


def add_mistakes_of_the_graph(nodes: Sequence[NodeConfig], problems: Problems) -> None:
    """Note in ``problems``, which has those of the nodes, what is wrong with the graph that the nodes make."""
    mistakes = [Mistake(sentence) for sentence in problems.sentences]
    if not _is_wired(mistakes):
        return
    wrong = {mistake.node for mistake in mistakes}
    # What a plan with a mistake lacks may be where it jumps to.
    readable = [replace(node, plan=None) if node.name in wrong else node for node in nodes]
    try:
        compile_graph(readable, jumps_of(readable))
    except GraphError as error:
        for mistake in error.problems:
            problems.sentences.setdefault(mistake)


def _is_wired(mistakes: Sequence[Mistake]) -> bool:
    """Whether all nodes are there, with what leads from one to another."""
    return not any(
        mistake.key in _WIRING or (mistake.key is None and not mistake.endswith(": it has no backend"))
        for mistake in mistakes
    )
