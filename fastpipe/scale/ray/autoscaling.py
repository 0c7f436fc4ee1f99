"""How many replicas there should be, by what waits in their pipes. Serve's controller runs this, pickled by value.

Serve's own policy counts the requests that a replica has been sent. It cannot see that most of them wait for one node,
nor that a node takes 64 of them in one batch. ``load_of`` is measured where that is known, in each replica.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["LOAD", "ROOM", "QueuePolicy", "load_of"]

LOAD = "fastpipe_load"
ROOM = "fastpipe_room"


def load_of(stats: Mapping[str, Any]) -> dict[str, float]:
    """Return what a replica tells the controller, of ``Pipe.stats()``.

    ``fastpipe_room``: how many requests the instances of the node with the most to do take at once, in full batches.
    ``fastpipe_load``: the requests in its queue and its instances, as a multiple of that.
    """
    load, room = 0.0, 1.0
    for node in stats["nodes"].values():
        takes = max(node["instances"]["count"] * node["max"], 1)
        waits = (node["queued"] + node["running"]) / takes
        if waits >= load:
            load, room = waits, float(takes)
    return {LOAD: load, ROOM: room}


class QueuePolicy:
    """A policy for ``autoscaling_config``: as many replicas as give each a load of ``target_load``.

    A load of 1 is as many requests as fill every batch of the node with the most to do; above that, requests wait.
    Requests that wait in front of Serve's replicas are added. Serve applies its bounds, factors and delays to the
    outcome, as it does with its own policy.

    Args:
        target_load: above 0. More: fuller batches and fewer replicas. Less: requests wait for less.

    Raises:
        ValueError: ``target_load`` is no number above 0.
    """

    def __init__(self, target_load: float = 1.0) -> None:
        if isinstance(target_load, bool) or not isinstance(target_load, int | float) or not target_load > 0:
            raise ValueError(f"target_load must be a number above 0, got {target_load!r}")
        self.target_load = target_load

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Return how many replicas there should be, and no state. ``context``: Serve's ``AutoscalingContext``."""
        measured = context.aggregated_metrics or {}
        loads, rooms = measured.get(LOAD) or {}, measured.get(ROOM) or {}
        if not loads or not rooms:  # no replica has told anything yet
            return context.target_num_replicas, {}
        # A replica that has not told yet is taken to be as the others are.
        load = sum(loads.values()) / len(loads) * context.current_num_replicas
        room = sum(rooms.values()) / len(rooms)
        return (load + context.total_queued_requests / room) / self.target_load, {}
