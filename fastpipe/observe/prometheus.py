"""Prometheus: a collector of pipes for any registry, and a quick way to write a registry out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import prometheus_client
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import REGISTRY, Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

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
from fastpipe.observe.peers import Look, Peers
from fastpipe.observe.pipes import Pipes

if TYPE_CHECKING:
    from fastpipe.pipe import Pipe

__all__ = ["PrometheusCollector", "generate_latest"]

Labels = tuple[tuple[str, str], ...]

Forms = dict[str, dict[Labels, str]]
"""The lines of each series, by metric and labels: they are the same at each scrape, but for their numbers."""


class PrometheusCollector(Collector):
    """Hands what pipes count to a registry of ``prometheus_client``, each time that is asked.

        collector = PrometheusCollector({"ocr": pipe})
        prometheus_client.REGISTRY.register(collector)

    One for all pipes of a process: a registry refuses a second one, whose names are the same. A pipe that is closed
    goes on answering with its last numbers, and ``fastpipe_healthy`` is 0; one of the parent of a fork is left out.

    Args:
        pipes: by name, which is their label ``pipe``; more with ``add``.
        seconds: the bounds of histograms of times; each is moved to the nearest edge of the engine's own buckets, 3.2 %
            away at most, so that counts are exact.
        sizes: the same of histograms of batches.
        labels: more labels for every series.
        directory: of a service of several processes behind one port: one in which they find each other. Whichever is
            scraped shows the pipes of all, each with a label ``pid``.

    Raises:
        MissingExtra: ``prometheus-client`` is not installed.
        PipeError: the directory cannot be used.
        TypeError, ValueError: a bound is no number above 0, or two pipes have one name.

    Thread-safety: any thread. No lock is shared with requests: a scrape reads as ``stats()`` does.
    """

    def __init__(
        self,
        pipes: Mapping[str, Pipe] | None = None,
        *,
        seconds: Sequence[float] = SECONDS,
        sizes: Sequence[float] = SIZES,
        labels: Mapping[str, str] | None = None,
        directory: str | Path | None = None,
    ) -> None:
        self._bounds = Bounds(seconds, sizes)
        self._labels: Labels = tuple((labels or {}).items())
        self._pipes = Pipes(pipes)
        self._peers = None if directory is None else Peers(directory, self._pipes)
        if self._peers is not None and pipes:
            self._peers.listen()
        self._forms: Forms = {}

    def add(self, name: str, pipe: Pipe) -> None:
        """Show one more pipe; a closed one of that name makes room for it.

        Raises:
            TypeError: ``name`` is no text, or ``pipe`` is no pipe.
            ValueError: another pipe, not closed, has that name.
        """
        self._pipes.add(name, pipe)
        if self._peers is not None:
            self._peers.listen()  # in each process that has pipes, once

    def remove(self, name: str) -> None:
        """Show a pipe no more; nothing if there is none of that name."""
        self._pipes.remove(name)
        self._forms = {}  # those of its series are of no use any more

    def close(self) -> None:
        """Answer the other processes of a ``directory`` no more; also done when the process ends."""
        if self._peers is not None:
            self._peers.close()

    def describe(self) -> Iterator[Metric]:
        """Yield all metrics without numbers; what a registry asks to find names that two collectors have."""
        for measure in (*OF_PIPES, HEALTHY, *OF_NODES):
            yield _Family(measure, self._forms)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; each pipe is looked at once, so that its numbers fit together."""
        families = {measure: _Family(measure, self._forms) for measure in (*OF_PIPES, HEALTHY, *OF_NODES)}
        for process, name, stats, is_healthy in self._looks():
            labels: Labels = (("pipe", name), *self._labels)
            if self._peers is not None:
                labels += (("pid", process),)
            self._fill(families, OF_PIPES, labels, stats, 0)
            self._fill(families, (HEALTHY,), labels, {"healthy": int(is_healthy)}, 0)
            for where, node in places_of(stats):
                self._fill(families, OF_NODES, labels + where, node, node["max"])
        yield from families.values()

    def _looks(self) -> Iterator[Look]:
        if self._peers is not None:
            yield from self._peers.looks()
        else:
            for look in self._pipes.looks():
                yield ("", *look)

    def _fill(
        self, families: dict[Measure, _Family], measures: tuple[Measure, ...], labels: Labels, stats: Any, most: int
    ) -> None:
        for measure in measures:
            bounds = self._bounds.of(measure, most) if measure.kind == "histogram" else ()
            families[measure].rows += [(labels + more, value, bounds) for more, value in values_of(measure, stats)]


class _Family(Metric):
    """One metric with its series, which are made into samples only if somebody asks for those."""

    def __init__(self, measure: Measure, forms: Forms) -> None:
        self.rows: list[tuple[Labels, Any, tuple[float, ...]]] = []
        self._forms = forms
        self._is_histogram = measure.kind == "histogram"
        super().__init__(measure.prometheus.removesuffix("_total"), measure.text, measure.kind)
        self._written = measure.prometheus

    @property
    def samples(self) -> list[Sample]:
        """The series as ``prometheus_client`` has them."""
        return [
            Sample(self._written + suffix, dict(labels + le), float(value))
            for row in self.rows
            for suffix, labels, le, value in self._lines(*row)
        ]

    @samples.setter
    def samples(self, samples: list[Sample]) -> None:
        """Done by ``Metric``, before there are any."""

    def _lines(
        self, labels: Labels, value: Any, bounds: tuple[float, ...]
    ) -> Iterator[tuple[str, Labels, Labels, float]]:
        if not self._is_histogram:
            yield "", labels, (), value
            return
        for (suffix, le), number in zip(_parts(bounds), _numbers(value, bounds), strict=True):
            yield suffix, labels, le, number

    def text(self) -> str:
        """Return the metric as Prometheus' text format has it."""
        forms = self._forms.setdefault(self._written, {})
        texts = [f"# HELP {self._written} {self.documentation}\n# TYPE {self._written} {self.type}\n"]
        for labels, value, bounds in self.rows:
            form = forms.get(labels)
            if form is None:
                form = forms[labels] = self._form(labels, bounds)
            texts.append(form % tuple(_numbers(value, bounds)) if self._is_histogram else form % value)
        return "".join(texts)

    def _form(self, labels: Labels, bounds: tuple[float, ...]) -> str:
        """Return the lines of a series, with ``%s`` for each number."""
        parts = _parts(bounds) if self._is_histogram else [("", ())]
        heads = [
            f"{self._written}{suffix}{{{','.join(f'{key}={_quoted(value)}' for key, value in sorted(labels + le))}}}"
            for suffix, le in parts
        ]
        return "".join(f"{head.replace('%', '%%')} %s\n" for head in heads)


def _parts(bounds: tuple[float, ...]) -> list[tuple[str, Labels]]:
    """Return (suffix, label ``le``) of each line of a histogram."""
    les = [*(floatToGoString(bound) for bound in bounds), "+Inf"]
    return [*(("_bucket", (("le", le),)) for le in les), ("_count", ()), ("_sum", ())]


def _numbers(distribution: Any, bounds: tuple[float, ...]) -> list[float]:
    """Return the number of each line of a histogram."""
    total = 0
    numbers: list[float] = []
    for count in counts_within(distribution["buckets"], bounds):
        total += count
        numbers.append(total)
    return [*numbers, total, distribution["sum"]]


def _quoted(value: str) -> str:
    escaped = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'"{escaped}"'


class _Only:
    """A registry of one metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


def generate_latest(registry: Collector = REGISTRY) -> bytes:
    """Return a registry in Prometheus' text format, as ``prometheus_client.generate_latest`` does, but quicker.

    What pipes count is written at once, without an object and a formatting of labels for each number: 3 to 10 times as
    quick, for 50 nodes. The metrics of others in the registry are written by ``prometheus_client``.
    """
    return b"".join(
        metric.text().encode() if isinstance(metric, _Family) else prometheus_client.generate_latest(_Only(metric))  # type: ignore[arg-type]  # which is all that it asks of one
        for metric in registry.collect()
    )
