"""What the nodes of a pipe have counted, wherever their instances are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastpipe import _core

__all__ = ["counters_by_node"]


def counters_by_node(stations: Iterable[_core.Station]) -> dict[str, dict[str, Any]]:
    """Return the counters of each node, by name; see ``Pipe.stats``."""
    by_node: dict[str, list[_core.Station]] = {}
    for station in stations:
        by_node.setdefault(station.name, []).append(station)
    return {name: _counters_of(own) for name, own in by_node.items()}


def _counters_of(stations: list[_core.Station]) -> dict[str, Any]:
    """Return the counters of a node: those of its stations together, and at each place if there are several."""
    places = {station.place: station.stats() for station in stations}
    first, *others = places.values()
    if not others:
        return first
    total = {**first, "why_batches_left": dict(first["why_batches_left"])}
    for other in others:
        for key, value in other.items():
            if key == "why_batches_left":
                for reason, count in value.items():
                    total[key][reason] = total[key].get(reason, 0) + count
            else:
                total[key] += value
    total["mean_batch"] = total["requests"] / total["batches"] if total["batches"] else 0.0
    return {**total, "places": places}
