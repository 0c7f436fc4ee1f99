"""What a node has done, in the few words that fit into its box."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastpipe.show.cards import seconds

__all__ = ["lines_of", "rate"]


def lines_of(stats: Mapping[str, Any], *, is_interval: bool) -> dict[str, tuple[str, ...]]:
    """Return lines for each node, by its name: how many requests, how they are batched, and how long that takes.

    Args:
        stats: as ``Pipe.stats`` returns them.
        is_interval: they are of an interval: a rate says more than a count.
    """
    interval_s = stats["interval_s"] if is_interval else None
    return {name: tuple(_lines(node, interval_s)) for name, node in stats["nodes"].items()}


def _lines(node: Mapping[str, Any], interval_s: float | None) -> Iterator[str]:
    word = "request" if node["requests"] == 1 else "requests"
    first = f"{_count(node['requests'])} {word}" if interval_s is None else rate(node["requests"], interval_s)
    cache = node.get("cache")
    if cache is not None:
        cached = cache["hits"] + cache["coalesced"]
        first += f" + {_count(cached) if interval_s is None else rate(cached, interval_s)} cached"
    failed = sum(node["failures"].values())
    yield f"{first} · {_count(failed)} failed" if failed else first
    if node["batches"]:
        yield f"queue {_count(node['queued'])} · batch {node['mean_batch']:.3g} of {node['max']}"
        waits, runs = (seconds(node[key]["p99"] or 0.0) for key in ("queue_s", "run_s"))
        yield f"p99 {waits} queued, {runs} run"


def rate(count: int, interval_s: float) -> str:
    """Return how often something happens, as people say it."""
    per_s = count / interval_s if interval_s > 0 else 0.0
    return f"{_count(round(per_s))}/s" if per_s >= 10 else f"{per_s:.1f}/s"


def _count(number: int) -> str:
    """Return a whole number with its digits in groups."""
    return f"{number:,}" if number >= 10_000 else str(number)
