"""Which nodes keep a state for each sequence of requests, and whether their requests can take turns."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fastpipe import _core
from fastpipe.config.described import NodeConfig
from fastpipe.config.graph import Graph, reached_from
from fastpipe.contract import Backend
from fastpipe.errors import ConfigError, Mistake

__all__ = ["check_stateful", "check_turns", "states_of"]


def states_of(config: NodeConfig, backends: Sequence[Backend]) -> _core.States | None:
    """Return where a node keeps its states; None: it has none.

    Raises:
        ConfigError: its backend keeps a state and ``state_of`` is missing, or the other way round.
    """
    key_name, max_states, ttl_s = (config.settings[key] for key in ("state_of", "max_states", "state_ttl"))
    for backend in backends:
        check_stateful(config.name, backend, is_expected=key_name is not None)
    return None if key_name is None else _core.States(key_name, max_states, ttl_s)


def check_stateful(node: str, backend: Backend, *, is_expected: bool) -> None:
    """Refuse a backend that keeps a state where the node does not say whose, or none where the node says so.

    Raises:
        ConfigError: it is so.
    """
    is_stateful = getattr(backend, "stateful", False)  # the engine takes objects that only look like a Backend
    if is_stateful and not is_expected:
        text = (
            "the backend keeps a state for each sequence of requests: name the key of a request that says to which it "
            'belongs, state_of = "stream_id"'
        )
        raise ConfigError(Mistake(text, node, "state_of"))
    if is_expected and not is_stateful:
        text = (
            f"{type(backend).__name__} keeps no state; a backend of yours that does, under request['state'], says "
            "stateful = True in its class"
        )
        raise ConfigError(Mistake(text, node, "state_of"))


def check_turns(graph: Graph, keeping: Collection[int]) -> None:
    """Refuse a graph in which a request would wait for its own part to have its turn, which comes after it.

    Args:
        graph: of the pipe.
        keeping: the nodes that keep states.

    Raises:
        ConfigError: parts of a request come to a node at which the request itself has its turn later.
    """
    following = [node.next for node in graph.nodes]
    onward = [(*node.next, *node.jumps) for node in graph.nodes]
    for node in graph.nodes:
        inside = {index for target in node.jumps for index in reached_from(target, onward)}
        both = inside & reached_from(node.index, following) & set(keeping)
        if both:
            name = graph.nodes[min(both)].name
            text = (
                f"requests come here, and before that parts of them, from node {node.name!r}: in turns (state_of) each "
                "would wait for the other. Make two nodes of it"
            )
            raise ConfigError(Mistake(text, name, "state_of"))
