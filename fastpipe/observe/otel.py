"""OpenTelemetry: instruments for what pipes count, and histograms, which no instrument can hand over as a whole.

    callbacks of observable instruments ◄── MeterProvider ──► reader ──► PipeMetricsExporter ──► the exporter
            └── numbers of stats()                                            └── histograms of stats()

An instrument of OpenTelemetry's counts values one by one. There is none for a histogram that is there already, and to
record each request in one would put its lock on the path of every request. In the specification a MetricProducer would
add it to a reader; Python's SDK has none. So it is added where all readers that push end, before an exporter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.sdk.metrics import Histogram as HistogramInstrument
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from fastpipe.measures import between
from fastpipe.observe.catalogue import (
    ALL,
    HEALTHY,
    OF_NODES,
    SECONDS,
    SIZES,
    Bounds,
    Measure,
    counts_within,
    places_of,
    values_of,
)
from fastpipe.observe.pipes import Pipes

if TYPE_CHECKING:
    from fastpipe.measures import Stats
    from fastpipe.pipe import Pipe

__all__ = ["PipeMetricsExporter", "instrument"]

SCOPE = "fastpipe"
# The callbacks of one collection come one after the other: they share a look at the pipes, whose numbers fit together.
SHARED_LOOK_S = 0.05

Attributes = dict[str, str]


def instrument(pipes: Mapping[str, Pipe], meter_provider: MeterProvider | None = None) -> Pipes:
    """Make observable instruments for all that pipes count, but for histograms: see ``PipeMetricsExporter``.

        pipes = instrument({"ocr": pipe})

    Args:
        pipes: by name, which is the attribute ``pipe``.
        meter_provider: default the global one.

    Returns:
        the pipes that are shown; ``add(name, pipe)`` and ``remove(name)`` change them. Call this once in a process.
    """
    shown = Pipes(pipes)
    looks = _Looks(shown)
    meter = metrics.get_meter(SCOPE, meter_provider=meter_provider)
    for measure in ALL:
        if measure.kind == "histogram":
            continue
        if measure.kind == "counter":
            make: Callable[..., Any] = meter.create_observable_counter
        elif measure.adds_up:
            make = meter.create_observable_up_down_counter
        else:
            make = meter.create_observable_gauge
        make(measure.name, [_callback(measure, looks)], unit=measure.unit, description=measure.text)
    return shown


class _Looks:
    """Looks at pipes, for callbacks that come in a row."""

    def __init__(self, pipes: Pipes) -> None:
        self._pipes = pipes
        self._last: tuple[float, list[tuple[str, Stats, bool]]] = (-1.0, [])

    def now(self) -> list[tuple[str, Stats, bool]]:
        looked_s, looks = self._last
        if not 0 <= time.monotonic() - looked_s < SHARED_LOOK_S:
            looks = list(self._pipes.looks())
            self._last = time.monotonic(), looks
        return looks


def _callback(measure: Measure, looks: _Looks) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        for name, stats, is_healthy in looks.now():
            for attributes, value, _ in _rows(measure, name, stats, is_healthy):
                yield Observation(value, attributes)

    return observe


def _rows(measure: Measure, name: str, stats: Stats, is_healthy: bool) -> Iterator[tuple[Attributes, Any, int]]:
    """Yield (attributes, value, the node's ``max``) of each series of a metric."""
    if measure is HEALTHY:
        yield {"pipe": name}, int(is_healthy), 0
        return
    sources: Iterable[tuple[Any, Any]] = places_of(stats) if measure in OF_NODES else [((), stats)]
    for where, source in sources:
        for more, value in values_of(measure, source):
            yield dict((("pipe", name), *where, *more)), value, source.get("max", 0)


class PipeMetricsExporter(MetricExporter):
    """Adds the histograms of pipes to what another exporter exports; with ``instrument``, which has the rest.

        exporter = PipeMetricsExporter(OTLPMetricExporter(), {"ocr": pipe})
        provider = MeterProvider([PeriodicExportingMetricReader(exporter)])
        instrument({"ocr": pipe}, provider)

    They are histograms with explicit bounds, each an edge of the engine's own buckets, so that counts are exact. (An
    exponential histogram's edges are others. And the SDK's own loses its resolution for good in an interval of nothing
    but zeros, such as times in a queue that is empty; here they are counted in the first bucket.)

    Args:
        exporter: whose preferred temporality, cumulative or delta, is kept.
        pipes: by name; or what ``instrument`` has returned.
        seconds: the bounds of histograms of times, see ``PrometheusCollector``.
        sizes: the same of histograms of batches.
    """

    def __init__(
        self,
        exporter: MetricExporter,
        pipes: Mapping[str, Pipe] | Pipes,
        *,
        seconds: Sequence[float] = SECONDS,
        sizes: Sequence[float] = SIZES,
    ) -> None:
        super().__init__(exporter._preferred_temporality, exporter._preferred_aggregation)
        self._exporter = exporter
        self._pipes = pipes if isinstance(pipes, Pipes) else Pipes(pipes)
        self._bounds = Bounds(seconds, sizes)
        temporality = (exporter._preferred_temporality or {}).get(HistogramInstrument)
        self._is_delta = temporality is AggregationTemporality.DELTA
        self._earlier: dict[str, Stats] = {}
        self._since_ns: dict[str, int] = {}  # by pipe, from when on its histograms count

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        first, *others = metrics_data.resource_metrics or [ResourceMetrics(Resource.create(), [], "")]
        own = ScopeMetrics(InstrumentationScope(SCOPE), self._histograms(), "")
        first = ResourceMetrics(first.resource, [*first.scope_metrics, own], first.schema_url)
        return self._exporter.export(MetricsData([first, *others]), timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self._exporter.shutdown(timeout_millis, **kwargs)

    def _histograms(self) -> list[Metric]:
        points: dict[Measure, list[HistogramDataPoint]] = {}
        for name, stats in self._stats():
            for measure in ALL:
                if measure.kind == "histogram":
                    points.setdefault(measure, []).extend(self._points(measure, name, stats))
        how = AggregationTemporality.DELTA if self._is_delta else AggregationTemporality.CUMULATIVE
        return [
            Metric(measure.name, measure.text, measure.unit, Histogram(own, how))
            for measure, own in points.items()
            if own
        ]

    def _stats(self) -> Iterator[tuple[str, Stats]]:
        """Yield what each pipe has counted: since the last export, if that is what the exporter wants."""
        for name, pipe in self._pipes:
            stats = pipe.stats()
            earlier = self._earlier.get(name) if self._is_delta else None
            self._earlier[name] = stats
            if earlier is None or earlier["pipe_id"] != stats["pipe_id"]:
                yield name, stats
            else:
                yield name, between(stats, earlier)

    def _points(self, measure: Measure, name: str, stats: Stats) -> Iterator[HistogramDataPoint]:
        now_ns = time.time_ns()
        # Not anew each time: another begin would say that the count has begun again.
        since_ns = self._since_ns.setdefault(stats["pipe_id"], now_ns - int(stats["interval_s"] * 1e9))
        for attributes, value, most in _rows(measure, name, stats, True):
            bounds = self._bounds.of(measure, most)
            yield HistogramDataPoint(
                attributes=attributes,
                start_time_unix_nano=now_ns - int(stats["interval_s"] * 1e9) if self._is_delta else since_ns,
                time_unix_nano=now_ns,
                count=value["count"],
                sum=value["sum"],
                bucket_counts=counts_within(value["buckets"], bounds),
                explicit_bounds=bounds,
                min=None,  # type: ignore[arg-type]  # nobody measures it; the protocol has it optional
                max=value["max"],
            )
