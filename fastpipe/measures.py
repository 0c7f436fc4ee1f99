"""What ``Pipe.stats`` returns: its types, and what is computed from counts and buckets.

A distribution is kept as buckets, each at most 1/16 as wide as the values in it are large: ``engine/histogram.pxd``.
Quantiles are middles of buckets, so within 3.2 % of a value that was measured; count, sum, mean and max are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Final, NotRequired, TypedDict, cast

from fastpipe import _core

__all__ = [
    "CacheStats",
    "Distribution",
    "InstanceStats",
    "NodeStats",
    "PaddingStats",
    "RequestStats",
    "Stats",
    "between",
    "edges",
    "stats_of",
]

PER_MILLE: Final = {"p50": 500, "p90": 900, "p99": 990, "p999": 999}

Tally = tuple[float, float, dict[float, int]]
"""A distribution as the engine has it: the sum of all values, the greatest, and how many by upper edge of a bucket."""


class Distribution(TypedDict):
    """Values that were measured: seconds, requests in a batch, or a batch's weight."""

    count: int
    sum: float
    mean: float | None
    """None, as ``max`` and the quantiles, while there is no value."""
    max: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    p999: float | None
    buckets: dict[float, int]
    """By upper edge, ascending: how many values are at most that, and above the edge before. Without empty ones."""


class InstanceStats(TypedDict):
    """The instances of a node, now."""

    count: int
    in_service: int
    hung: int
    """Those that hang and are not replaced, or not yet."""
    replaced: int
    """How many have been, since the pipe was built."""
    switches: int
    """How often others took their place, by ``swap`` or ``resize``, since the pipe was built."""


class CacheStats(TypedDict):
    """What a node's result cache has done. Each request that has come there is one of the first four."""

    hits: int
    """Requests that were answered with what was kept."""
    misses: int
    """Requests that ran, as nothing was kept for them."""
    coalesced: int
    """Requests that waited for an equal one which ran, and got its answer, or its error."""
    bypassed: int
    """Requests that ran although there may have been an answer: they had no key, or their answer cannot be shared."""
    not_kept: int
    """Answers that were not kept: without a result, too large, not to be copied, or to an input changed in place."""
    evictions: int
    """Answers that had to go for want of room."""
    expirations: int
    """Answers that were found to be too old."""
    entries: int
    """Answers that are kept, now."""
    bytes: int
    """Their memory, now."""


class PaddingStats(TypedDict):
    """What a model was fed, in elements along the axis that is padded: tokens, say."""

    own: int
    """Those of requests."""
    padding: int
    """Those that were made up beside them, to fill up requests, or a batch."""
    share: float | None
    """Which part of all of them that is; None: nothing has run."""


class NodeStats(TypedDict):
    """What a node has done, or the part of it at one place."""

    batches: int
    """Batches that have run, second runs among them."""
    requests: int
    """Requests in those batches."""
    failed: int
    """Requests whose run has failed."""
    mean_batch: float
    run_by_caller: int
    """Requests that ran on the thread of a caller."""
    gil_acquires: int
    """By workers."""
    busy_s: float
    """Time in the backend, summed over the instances."""
    halved: int
    """Batches that were run in halves, as memory ran out."""
    hung: int
    """Batches that were given up."""
    worker_deaths: int
    queued: int
    """Requests in the queue, now."""
    running: int
    """Requests in instances, now."""
    oldest_s: float
    """How long the oldest of the queue has waited; 0 if none has."""
    why_batches_left: dict[str, int]
    queue_s: Distribution
    """Of each request that has run: how long it was queued; 0 if its caller ran it at once. No second run counts."""
    run_s: Distribution
    """Of each batch: time in the backend."""
    batch_sizes: Distribution
    """Requests of each batch."""
    weights: Distribution
    """Their weight together; the same as ``batch_sizes`` where each weighs 1."""
    failures: dict[str, int]
    """Requests that have failed here, by reason; the reasons are those of the pipe."""
    refused: int
    """Callers that were turned away as the queue was full, or stayed so for too long. They are in no other count."""
    shed: int
    """Those of ``failures["queue full"]`` that had to leave the queue for newer ones."""
    expired: int
    """``failures["timeout"]``: their time was over while they were queued here, or ran."""
    cancelled: int
    """They were cancelled while they were queued here, or ran."""
    without_result: int
    """It was this node that left them without one: ``failures["no result"]``, and those that ended so all the same, as
    the pipe was told ``without_result = "end"``."""
    dropped: int
    """They were queued here, or ran, and were not wanted any more: they had failed, or ended, in another branch."""
    instances: InstanceStats
    max: int
    """The configured ``max`` of a batch; at several places of the first."""
    padding: NotRequired[PaddingStats]
    """Where a backend pads requests to one length."""
    cache: NotRequired[CacheStats]
    """Where the node has one; at several places they share that of the first."""
    places: NotRequired[dict[str, NodeStats]]
    """The same for each place, where the instances are at several."""


class RequestStats(TypedDict):
    """How requests have ended: accepted = in_flight + done + failed + cancelled."""

    accepted: int
    in_flight: int
    done: int
    failed: int
    cancelled: int
    refused: int
    """They were never accepted."""


class Stats(TypedDict):
    """What a pipe has done, since it was built or in an interval."""

    pipe_id: str
    """Which one: no other pipe has it, in no process."""
    time_s: float
    """When this was counted, in seconds of ``time.monotonic()``."""
    interval_s: float
    """The seconds up to then that it covers."""
    requests: RequestStats
    failures: dict[str, int]
    without_result: int
    """Requests that a step left without a result: ``failures["no result"]``, or with ``without_result = "end"`` some
    of those that are done."""
    copies: int
    latency_s: Distribution
    """Of each request that was let in, and was answered or failed: from its call to its answer, the wait for room in
    front of the pipe included. Who is refused, or has waited for room until its time was over, is not let in. The
    requests of a list have one call. Not of the parts that a Jump or MapReduce inside a Sequential makes of a
    request."""
    nodes: dict[str, NodeStats]


LADDER_OF: Final = {
    "latency_s": "seconds",
    "queue_s": "seconds",
    "run_s": "seconds",
    "batch_sizes": "sizes",
    "weights": "weights",
}
BY_REASON: Final = ("failures", "why_batches_left")
NOW: Final = ("queued", "running", "oldest_s", "instances", "max")
"""What ``since`` leaves as it is: it says what a node is, not what it has done."""
NOW_OF_CACHES: Final = ("entries", "bytes")


def stats_of(pipe_id: str, counted: dict[str, Any], between_nodes: Callable[[], None] | None = None) -> Stats:
    """Return the ``Stats`` of what the engine has counted: ``Engine._measures``.

    ``between_nodes``: called between two nodes, to let other threads go on.
    """
    by_node: dict[str, dict[str, dict[str, Any]]] = {}
    for name, place, station in counted.pop("stations"):
        by_node.setdefault(name, {})[str(place)] = station
    counted["latency_s"] = _distribution("latency_s", counted["latency_s"])
    nodes = {}
    for name, places in by_node.items():
        nodes[name] = _node_at(places)
        if between_nodes is not None:
            between_nodes()
    return cast("Stats", {"pipe_id": pipe_id, **counted, "nodes": nodes})


def _node_at(places: dict[str, dict[str, Any]]) -> NodeStats:
    """Return what a node has counted: at its places together, and at each if there are several."""
    if len(places) == 1:
        return _node(*places.values())
    node = _node(_added(places.values()))
    node["places"] = {place: _node(station) for place, station in places.items()}
    return node


def _node(counted: dict[str, Any]) -> NodeStats:
    """Return the ``NodeStats`` of what a station has counted."""
    for name in LADDER_OF.keys() & counted.keys():
        if counted[name] is not None:
            counted[name] = _distribution(name, counted[name])
    for name in ("cache", "padding"):
        if counted[name] is None:
            del counted[name]
    if counted["weights"] is None:  # each request weighs 1
        counted["weights"] = counted["batch_sizes"]
    return _with_sums(counted)


def _with_sums(counted: dict[str, Any]) -> NodeStats:
    """Return a node's counters with those that follow from others."""
    counted["mean_batch"] = counted["requests"] / counted["batches"] if counted["batches"] else 0.0
    counted["expired"] = counted["failures"].get("timeout", 0)
    if padding := counted.get("padding"):
        total = padding["own"] + padding["padding"]
        counted["padding"] = {**padding, "share": padding["padding"] / total if total else None}
    return cast("NodeStats", counted)


def _added(stations: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return what several stations have counted, as if it were one."""
    first, *others = stations
    total = dict(first)
    for other in others:
        if (total["weights"] is None) != (other["weights"] is None):
            total["weights"] = total["weights"] or total["batch_sizes"]
            other = {**other, "weights": other["weights"] or other["batch_sizes"]}
        for name, value in other.items():
            if name == "oldest_s":
                total[name] = max(total[name], value)
            elif isinstance(value, dict):
                total[name] = {key: total[name].get(key, 0) + value.get(key, 0) for key in total[name] | value}
            elif isinstance(value, tuple):
                (total_sum, most, buckets), (sum_here, most_here, here) = total[name], value
                edges = sorted(buckets | here)
                together = {edge: buckets.get(edge, 0) + here.get(edge, 0) for edge in edges}
                total[name] = (total_sum + sum_here, max(most, most_here), together)
            elif value is not None and name != "max":
                total[name] += value
    return total


# ---- distributions ----------------------------------------------------------------------------------------------


@cache
def edges(name: str) -> tuple[float, ...]:
    """Return the upper edges of all buckets that a distribution may have, ascending; ``name``: ``"run_s"``, say."""
    return tuple(_middles(LADDER_OF[name]))


@cache
def _middles(ladder: str) -> dict[float, float]:
    """Return the middle of each bucket, by upper edge."""
    return dict(_core.ladder(ladder))


def _distribution(name: str, tally: Tally) -> Distribution:
    """Return the distribution called ``name`` of what the engine has counted."""
    total, most, buckets = tally
    count = sum(buckets.values())
    if not count:
        return Distribution(count=0, sum=0.0, mean=None, max=None, p50=None, p90=None, p99=None, p999=None, buckets={})
    middles = _middles(LADDER_OF[name])
    quantiles: dict[str, float] = {}
    ranks = iter(PER_MILLE.items())
    quantile, per_mille = next(ranks)
    seen = 0
    for edge, here in buckets.items():
        seen += here
        while quantile and seen * 1000 >= count * per_mille:
            quantiles[quantile] = min(middles[edge], most)
            quantile, per_mille = next(ranks, ("", 0))
    shown = {"count": count, "sum": total, "mean": total / count, "max": most, **quantiles, "buckets": buckets}
    return cast("Distribution", shown)


# ---- intervals --------------------------------------------------------------------------------------------------


def between(later: Stats, earlier: Stats) -> Stats:
    """Return what a pipe has done between two of its ``stats()``, each since it was built.

    Counters and distributions are differences; ``in_flight``, ``queued``, ``running``, ``oldest_s`` and ``instances``
    are the later one's. The ``max`` of an interval is exact if it is the greatest value of all; else the upper edge of
    its bucket.

    Raises:
        TypeError: ``earlier`` is no dict.
        ValueError: it is another pipe's, covers an interval itself, is the later one, or is none that ``stats()`` made.
    """
    if not isinstance(earlier, dict):
        raise TypeError(f"since must be what an earlier stats() returned, a dict; got {type(earlier).__name__}")
    try:
        _check_pair(later, earlier)
        requests = _counts_between(later["requests"], earlier["requests"])
        requests["in_flight"] = later["requests"]["in_flight"]
        return {
            **later,
            "interval_s": later["time_s"] - earlier["time_s"],
            "requests": cast("RequestStats", requests),
            "failures": _reasons_between(later["failures"], earlier["failures"]),
            "without_result": _count_between(later["without_result"], earlier["without_result"]),
            "copies": _count_between(later["copies"], earlier["copies"]),
            "latency_s": _distribution_between("latency_s", later["latency_s"], earlier["latency_s"]),
            "nodes": {name: _node_between(node, earlier["nodes"][name]) for name, node in later["nodes"].items()},
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            "since must be what an earlier stats() of this pipe returned, as it was: this dict has something else, or"
            f" nothing, at {error}"
        ) from error


def _check_pair(later: Stats, earlier: Stats) -> None:
    if earlier["pipe_id"] != later["pipe_id"]:
        raise ValueError(
            "since is from the stats() of another pipe: pass what an earlier stats() of this very pipe returned"
        )
    begun_s = [stats["time_s"] - stats["interval_s"] for stats in (later, earlier)]
    if abs(begun_s[0] - begun_s[1]) > 1e-6:
        raise ValueError(
            "since covers an interval itself, and says nothing of what was before: pass what stats() returned without"
            " since"
        )


def _count_between(later: Any, earlier: Any) -> Any:
    difference = later - earlier
    if difference < 0:
        raise ValueError("since has counted more than there is now: it is no earlier stats(), or was changed")
    return difference


def _counts_between(later: Any, earlier: Any) -> dict[str, Any]:
    skipped = ("in_flight",)
    return {name: value if name in skipped else _count_between(value, earlier[name]) for name, value in later.items()}


def _reasons_between(later: dict[str, int], earlier: dict[str, int]) -> dict[str, int]:
    counts = {reason: _count_between(count, earlier.get(reason, 0)) for reason, count in later.items()}
    return {reason: count for reason, count in counts.items() if count}


def _node_between(later: Any, earlier: Any) -> NodeStats:
    node: dict[str, Any] = {}
    for name, value in later.items():
        if name in NOW:
            node[name] = value
        elif name in BY_REASON:
            node[name] = _reasons_between(value, earlier[name])
        elif name in LADDER_OF:
            node[name] = _distribution_between(name, value, earlier[name])
        elif name == "cache":
            node[name] = {
                each: count if each in NOW_OF_CACHES else _count_between(count, earlier[name][each])
                for each, count in value.items()
            }
        elif name == "padding":
            before = earlier.get(name, {})  # none before a swap
            node[name] = {each: _count_between(value[each], before.get(each, 0)) for each in ("own", "padding")}
        elif name == "places":
            node[name] = {place: _node_between(there, earlier[name][place]) for place, there in value.items()}
        elif name != "mean_batch":
            node[name] = _count_between(value, earlier[name])
    if later["weights"] == later["batch_sizes"]:
        node["weights"] = node["batch_sizes"]
    return _with_sums(node)


def _distribution_between(name: str, later: Distribution, earlier: Distribution) -> Distribution:
    before = earlier["buckets"]
    if not before:
        return later
    counts = {edge: count - before.get(edge, 0) for edge, count in later["buckets"].items()}
    _count_between(min(counts.values(), default=0), 0)  # one look at all: there may be hundreds
    buckets = {edge: count for edge, count in counts.items() if count}
    if not buckets:
        return _distribution(name, (0.0, 0.0, {}))
    total = later["sum"] - earlier["sum"]
    most = cast("float", later["max"])
    if most == earlier["max"]:
        most = min(most, next(reversed(buckets))) if total else 0.0
    return _distribution(name, (total, most, buckets))
