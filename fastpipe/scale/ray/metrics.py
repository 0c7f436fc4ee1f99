"""What a replica's pipe counts, for Ray's own metrics: those that its agents export for Prometheus."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ray.serve.metrics import Counter, Gauge

from fastpipe.observe.catalogue import (
    HEALTHY,
    OF_NODES,
    OF_PIPES,
    SECONDS,
    SIZES,
    Bounds,
    Measure,
    counts_within,
    places_of,
    values_of,
)

if TYPE_CHECKING:
    from fastpipe.pipe import Pipe

__all__ = ["ReplicaMetrics"]

Tags = dict[str, str]

_log = logging.getLogger("fastpipe")


class ReplicaMetrics:
    """Tells Ray every few seconds what a pipe has counted; Serve adds application, deployment and replica.

    Names are those of docs/observing.md; Ray puts ``ray_`` in front. Ray's histograms take single values, and a pipe
    has counted already: its histograms are gauges that look like Prometheus' (``_bucket`` with ``le``, ``_count``,
    ``_sum``), with exact counts, for ``histogram_quantile``.

    To be made on a running event loop, which runs it.
    """

    def __init__(self, pipe: Pipe, period_s: float) -> None:
        self._pipe = pipe
        self._bounds = Bounds(SECONDS, SIZES)
        self._known: dict[str, Any] = {}
        self._told: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._task = asyncio.get_running_loop().create_task(self._tell_forever(period_s))

    def stop(self) -> None:
        """Tell Ray no more. On the thread of the event loop."""
        self._task.cancel()

    async def _tell_forever(self, period_s: float) -> None:
        while True:
            try:
                await asyncio.to_thread(self.tell)  # some milliseconds, where there are many nodes
            except Exception:
                _log.warning("Ray could not be told what the pipe has counted", exc_info=True)
            await asyncio.sleep(period_s)

    def tell(self) -> None:
        """Tell Ray what has been counted up to now."""
        stats = self._pipe.stats()
        for measure in OF_PIPES:
            self._tell(measure, stats, {}, 0)
        self._tell(HEALTHY, {"healthy": int(self._pipe.health()["healthy"])}, {}, 0)
        for where, node in places_of(stats):
            tags = {"place": "", **dict(where)}
            for measure in OF_NODES:
                self._tell(measure, node, tags, node["max"])

    def _tell(self, measure: Measure, stats: Any, tags: Tags, most: int) -> None:
        name = measure.prometheus.removesuffix("_total")  # Ray adds it
        for more, value in values_of(measure, stats):
            own = {**tags, **dict(more)}
            if measure.kind == "counter":
                self._count(name, measure, own, value)
            elif measure.kind == "gauge":
                self._metric(Gauge, name, measure, own).set(value, own)
            else:
                self._tell_distribution(name, measure, own, value, self._bounds.of(measure, most))

    def _count(self, name: str, measure: Measure, tags: Tags, value: float) -> None:
        counter = self._metric(Counter, name, measure, tags)
        series = name, tuple(tags.items())
        new = value - self._told.get(series, 0)
        self._told[series] = value
        if new > 0:  # Ray's counters refuse a 0
            counter.inc(new, tags)

    def _tell_distribution(
        self, name: str, measure: Measure, tags: Tags, value: Mapping[str, Any], bounds: tuple[float, ...]
    ) -> None:
        totals = [*accumulate(counts_within(value["buckets"], bounds))]
        for bound, total in zip((*map(repr, bounds), "+Inf"), totals, strict=True):
            own = {**tags, "le": bound}
            self._metric(Gauge, f"{name}_bucket", measure, own).set(total, own)
        self._metric(Gauge, f"{name}_count", measure, tags).set(totals[-1], tags)
        self._metric(Gauge, f"{name}_sum", measure, tags).set(value["sum"], tags)

    def _metric(self, kind: type[Any], name: str, measure: Measure, tags: Tags) -> Any:
        metric = self._known.get(name)
        if metric is None:
            metric = self._known[name] = kind(name, description=measure.text, tag_keys=tuple(tags))
        return metric
