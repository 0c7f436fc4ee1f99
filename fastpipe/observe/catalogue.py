"""The metrics of a pipe: their names, units and meaning, and where in ``stats()`` each number is. For all exporters.

A name is OpenTelemetry's; Prometheus' follows from it by the rules with which OpenTelemetry itself translates names, so
that both are one metric. The table of docs/observing.md is checked against this page.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from fastpipe.measures import edges

if TYPE_CHECKING:
    from fastpipe.measures import Distribution, NodeStats, Stats

__all__ = [
    "ALL",
    "HEALTHY",
    "OF_NODES",
    "OF_PIPES",
    "SECONDS",
    "SIZES",
    "Bounds",
    "Measure",
    "counts_within",
    "places_of",
    "values_of",
]

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Where times are divided, if nobody says otherwise: each is moved to the nearest edge that the engine knows."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""The same of batches; those above a node's ``max`` are left out."""

Numbers = Callable[[Any], Any]


@dataclass(frozen=True, eq=False)  # each is itself: it is a key
class Measure:
    """One metric."""

    name: str
    """OpenTelemetry's."""
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    """As UCUM writes it: ``s``, ``By``, ``{request}``."""
    text: str
    read: Numbers
    """From ``stats()``, or of a node: a number, a Distribution, numbers by ``label``; None: there are none."""
    label: str | None = None
    """What tells the numbers of a dict apart."""
    ladder: Literal["run_s", "batch_sizes", "weights"] = "run_s"
    """Of a histogram, in the words of ``measures.edges``."""

    adds_up: bool = False
    """Of a gauge: those of several processes, added, mean something. OpenTelemetry makes a difference."""

    @property
    def prometheus(self) -> str:
        """Its name for Prometheus."""
        name = self.name.replace(".", "_")
        name += "_seconds" * (self.unit == "s") + "_bytes" * (self.unit == "By")
        return name + "_total" * (self.kind == "counter")


def _outcomes(stats: Stats) -> Mapping[str, int]:
    requests = stats["requests"]
    return {
        "done": requests["done"],
        "failed": requests["failed"],
        "cancelled": requests["cancelled"],
        "refused": requests["refused"],
    }


def _weights(node: NodeStats) -> Distribution | None:
    return None if node["weights"] == node["batch_sizes"] else node["weights"]  # other processes' are copies


def _instances(node: NodeStats) -> Mapping[str, int]:
    instances = node["instances"]
    return {"in_service": instances["in_service"], "missing": instances["count"] - instances["in_service"]}


def _cached(node: NodeStats) -> Mapping[str, int] | None:
    cache = node.get("cache")
    if cache is None:
        return None
    return {
        "hit": cache["hits"],
        "miss": cache["misses"],
        "coalesced": cache["coalesced"],
        "bypassed": cache["bypassed"],
    }


def _padded(node: NodeStats) -> Mapping[str, int] | None:
    padding = node.get("padding")
    return None if padding is None else {"request": padding["own"], "padding": padding["padding"]}


def _dropped_answers(node: NodeStats) -> Mapping[str, int] | None:
    cache = node.get("cache")
    return None if cache is None else {"evicted": cache["evictions"], "expired": cache["expirations"]}


def _of(*path: str) -> Numbers:
    """Return what reads the entry at some path of keys."""

    def read(stats: Any) -> Any:
        for key in path:
            stats = stats[key]
        return stats

    return read


def _of_cache(key: str) -> Numbers:
    """Return what reads a number of a node's cache; None: it has none."""

    def read(node: NodeStats) -> Any:
        return node.get("cache", {}).get(key)

    return read


OF_PIPES = (
    Measure(
        "fastpipe.requests",
        "counter",
        "{request}",
        "Requests that have ended, or were not let in.",
        _outcomes,
        "outcome",
    ),
    Measure("fastpipe.failures", "counter", "{request}", "Requests that have failed.", _of("failures"), "reason"),
    Measure(
        "fastpipe.without_result",
        "counter",
        "{request}",
        "Requests that a step left without a result, failed or not.",
        _of("without_result"),
    ),
    Measure(
        "fastpipe.in_flight",
        "gauge",
        "{request}",
        "Requests let in that have not ended.",
        _of("requests", "in_flight"),
        adds_up=True,
    ),
    Measure(
        "fastpipe.request.duration",
        "histogram",
        "s",
        "From the call of the pipe to the answer or the failure, the wait for room included.",
        _of("latency_s"),
    ),
)
HEALTHY = Measure(
    "fastpipe.healthy", "gauge", "", "1 while health() says so; 0 once the pipe is closed.", _of("healthy")
)
OF_NODES = (
    Measure(
        "fastpipe.node.requests",
        "counter",
        "{request}",
        "Requests that have run, second runs among them.",
        _of("requests"),
    ),
    Measure(
        "fastpipe.node.run_by_caller",
        "counter",
        "{request}",
        "Those that ran on their caller's thread.",
        _of("run_by_caller"),
    ),
    Measure(
        "fastpipe.node.failures",
        "counter",
        "{request}",
        "Requests that have failed at the node.",
        _of("failures"),
        "reason",
    ),
    Measure(
        "fastpipe.node.without_result",
        "counter",
        "{request}",
        "Requests that the node left without a result, failed or not.",
        _of("without_result"),
    ),
    Measure(
        "fastpipe.node.refused", "counter", "{request}", "Requests not let in, as the queue was full.", _of("refused")
    ),
    Measure(
        "fastpipe.node.shed", "counter", "{request}", "Requests that left a full queue for newer ones.", _of("shed")
    ),
    Measure(
        "fastpipe.node.cancelled", "counter", "{request}", "Requests cancelled while they were there.", _of("cancelled")
    ),
    Measure(
        "fastpipe.node.dropped", "counter", "{request}", "Requests that had ended in another branch.", _of("dropped")
    ),
    Measure(
        "fastpipe.node.batches_left",
        "counter",
        "{batch}",
        "Batches formed in the queue, by why.",
        _of("why_batches_left"),
        "reason",
    ),
    Measure(
        "fastpipe.node.queue.duration", "histogram", "s", "How long a request was queued; 0 if never.", _of("queue_s")
    ),
    Measure("fastpipe.node.run.duration", "histogram", "s", "How long a batch was in the backend.", _of("run_s")),
    Measure(
        "fastpipe.node.batch.size",
        "histogram",
        "{request}",
        "Requests of a batch.",
        _of("batch_sizes"),
        ladder="batch_sizes",
    ),
    Measure(
        "fastpipe.node.batch.weight",
        "histogram",
        "",
        "Weight of a batch, where not all weigh 1.",
        _weights,
        ladder="weights",
    ),
    Measure(
        "fastpipe.node.elements",
        "counter",
        "{element}",
        "Elements along the padded axis that a model was fed: tokens, say.",
        _padded,
        "of",
    ),
    Measure("fastpipe.node.queued", "gauge", "{request}", "Requests in the queue.", _of("queued"), adds_up=True),
    Measure("fastpipe.node.running", "gauge", "{request}", "Requests in instances.", _of("running"), adds_up=True),
    Measure(
        "fastpipe.node.queue.oldest", "gauge", "s", "How long the oldest of the queue has waited.", _of("oldest_s")
    ),
    Measure(
        "fastpipe.node.instances",
        "gauge",
        "{instance}",
        "Instances, in service or missing.",
        _instances,
        "state",
        adds_up=True,
    ),
    Measure("fastpipe.node.max_batch", "gauge", "{request}", "The most requests of a batch.", _of("max")),
    Measure("fastpipe.node.hung", "counter", "{batch}", "Batches given up as hung.", _of("hung")),
    Measure("fastpipe.node.replaced", "counter", "{instance}", "Instances built again.", _of("instances", "replaced")),
    Measure(
        "fastpipe.node.switches", "counter", "{switch}", "Swaps and resizes of the node.", _of("instances", "switches")
    ),
    Measure(
        "fastpipe.node.worker_deaths",
        "counter",
        "{thread}",
        "Workers that died and went back to work.",
        _of("worker_deaths"),
    ),
    Measure("fastpipe.node.halved", "counter", "{batch}", "Batches run in halves, as memory ran out.", _of("halved")),
    Measure(
        "fastpipe.node.cache.requests",
        "counter",
        "{request}",
        "Requests that came to the cache: answered from it, run, answered with an equal one, or run in any case.",
        _cached,
        "outcome",
    ),
    Measure(
        "fastpipe.node.cache.dropped",
        "counter",
        "{answer}",
        "Answers that went: for want of room, or too old.",
        _dropped_answers,
        "reason",
    ),
    Measure(
        "fastpipe.node.cache.not_kept",
        "counter",
        "{answer}",
        "Answers that could not be kept.",
        _of_cache("not_kept"),
    ),
    Measure("fastpipe.node.cache.entries", "gauge", "{answer}", "Answers kept.", _of_cache("entries"), adds_up=True),
    Measure("fastpipe.node.cache.size", "gauge", "By", "Memory of the answers kept.", _of_cache("bytes"), adds_up=True),
)
ALL = (*OF_PIPES, HEALTHY, *OF_NODES)


class Bounds:
    """Where histograms are divided: at edges of the engine's own buckets, so that every count is exact.

    Args:
        seconds: of times; each is moved to the nearest edge, 3.2 % away at most.
        sizes: of batches; each up to 32, and every power of two, is an edge.

    Raises:
        TypeError, ValueError: one is no number above 0.
    """

    def __init__(self, seconds: Sequence[float], sizes: Sequence[float]) -> None:
        self._seconds = _snapped("seconds", seconds, edges("run_s"))
        self._sizes = {ladder: _snapped("sizes", sizes, edges(ladder)) for ladder in ("batch_sizes", "weights")}

    def of(self, measure: Measure, most: int) -> tuple[float, ...]:
        """Return the upper bounds of a metric's buckets, of which the last has none; ``most``: a node's ``max``."""
        if measure.ladder == "run_s":
            return self._seconds
        sizes = self._sizes[measure.ladder]
        return sizes[: bisect_left(sizes, most) + 1]


def _snapped(name: str, wanted: Sequence[float], ladder: tuple[float, ...]) -> tuple[float, ...]:
    found = set()
    for bound in wanted:
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise TypeError(f"{name} must be numbers above 0; got {bound!r}")
        if not bound > 0:
            raise ValueError(f"{name} must be numbers above 0; got {bound!r}")
        above = min(bisect_left(ladder, bound), len(ladder) - 1)
        found.add(min(ladder[max(above - 1, 0) : above + 1], key=lambda edge: abs(edge - bound)))
    return tuple(sorted(found))


def counts_within(buckets: Mapping[float, int], bounds: tuple[float, ...]) -> list[int]:
    """Return how many values are above each bound, and not above the next: one more than there are bounds."""
    counts = [0] * (len(bounds) + 1)
    positions = _positions_in(bounds)
    for edge, count in buckets.items():
        counts[positions[edge]] += count
    return counts


class _Positions(dict[float, int]):
    """By edge, between which bounds it is; looked for once, as each scrape has hundreds for each node."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds

    def __missing__(self, edge: float) -> int:
        position = self[edge] = bisect_left(self._bounds, edge)
        return position


_positions_in = cache(_Positions)


def places_of(stats: Stats) -> Iterator[tuple[tuple[tuple[str, str], ...], NodeStats]]:
    """Yield (labels, counters) of each node; of one whose instances are at several places, of each place instead."""
    for name, node in stats["nodes"].items():
        places = node.get("places")
        if places is None:
            yield (("node", name),), node
        else:
            for place, there in places.items():
                yield (("node", name), ("place", str(place))), there


def values_of(measure: Measure, stats: Any) -> list[tuple[tuple[tuple[str, str], ...], Any]]:
    """Return (labels beside those of the pipe and the node, value) for each series of a metric."""
    value = measure.read(stats)
    if value is None:
        return []
    if measure.label is None:
        return [((), value)]
    return [(((measure.label, key),), number) for key, number in value.items()]
