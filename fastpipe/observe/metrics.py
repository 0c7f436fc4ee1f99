"""Metrics of pipes, for Prometheus (extra ``metrics``) and OpenTelemetry (extra ``otel``).

    from fastpipe.observe.metrics import PrometheusCollector

    prometheus_client.REGISTRY.register(PrometheusCollector({"ocr": pipe}))

Names, units and what each means: docs/observing.md. Nothing is imported until it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastpipe.errors import MissingExtra

if TYPE_CHECKING:
    from fastpipe.observe.otel import PipeMetricsExporter, instrument
    from fastpipe.observe.prometheus import PrometheusCollector, generate_latest

__all__ = ["PipeMetricsExporter", "PrometheusCollector", "generate_latest", "instrument"]

_HOMES = {
    "PrometheusCollector": ("fastpipe.observe.prometheus", "metrics"),
    "generate_latest": ("fastpipe.observe.prometheus", "metrics"),
    "PipeMetricsExporter": ("fastpipe.observe.otel", "otel"),
    "instrument": ("fastpipe.observe.otel", "otel"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = _HOMES[name]
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise MissingExtra(f"{__name__}.{name}", extra, error) from error
