"""Which requests are followed: by the span around the call, and of all others a share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from helpers import WAIT_S, Gate, opened

from fastpipe import Pipe

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed here")

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from fastpipe.observe import traces
from fastpipe.observe.traces import continued, trace_pipe


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> Iterator[TracerProvider]:
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    yield made
    made.shutdown()


@contextmanager
def within(context: otel_context.Context) -> Iterator[None]:
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)


@pytest.fixture(params=["known", "not known"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the engine knows where OpenTelemetry keeps a span, or has to ask for each request."""
    if request.param == "not known":
        monkeypatch.setattr(traces._Spans, "key", None)
    return str(request.param)


def test_a_context_without_a_span_leaves_it_to_the_share(
    way: str, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    """Baggage, say; or headers without a trace."""
    with Pipe(backend=opened()) as pipe:
        for sample in (0, 1):
            with trace_pipe(pipe, sample=sample, tracer_provider=provider):
                with within(baggage.set_baggage("user", "7", otel_context.Context())):
                    pipe({"data": 0})
                with continued({"Host": "here"}):
                    pipe({"data": 0})
            assert len([span for span in exporter.get_finished_spans() if span.name == "fastpipe"]) == 2 * sample


def test_a_coroutine_that_waits_for_room_is_followed_as_its_span_or_the_share_says(
    way: str, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    """1. One is in the pipe, which has room for one. 2. Two wait, the second within a span. 3. Others let them in."""
    gate = Gate()

    async def main(pipe: Pipe) -> None:
        first = asyncio.create_task(pipe.acall({"data": 0}))
        await asyncio.to_thread(gate.inside.wait, WAIT_S)
        second = asyncio.create_task(pipe.acall({"data": 1}))
        with provider.get_tracer("t").start_as_current_span("service"):
            third = asyncio.create_task(pipe.acall({"data": 2}))
            await asyncio.sleep(0)
        gate.opened.set()
        await asyncio.gather(first, second, third)

    with Pipe(backend=gate, max_in_flight=1) as pipe, trace_pipe(pipe, sample=0, tracer_provider=provider):
        asyncio.run(main(pipe))
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert len(exporter.get_finished_spans()) == 3
    assert spans["fastpipe"].parent == spans["service"].context


def test_within_a_span_that_is_not_sampled_nobody_is_asked(
    provider: TracerProvider, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(traces._Spans, "begin", lambda *arguments: asked.append(arguments))
    off = TracerProvider(sampler=ALWAYS_OFF)
    with Pipe(backend=opened()) as pipe, trace_pipe(pipe, tracer_provider=provider):
        with off.get_tracer("t").start_as_current_span("service"):
            pipe({"data": 0})
        assert asked == []
        pipe({"data": 0})
    assert len(asked) == 1


def test_a_span_that_the_framework_has_begun_is_the_parent(
    provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    """Its trace is that of the headers, or they have none. A span of another trace is none of this request's."""
    incoming = {"traceparent": f"00-{5:032x}-{6:016x}-01"}
    remote = set_span_in_context(
        NonRecordingSpan(SpanContext(5, 6, True, TraceFlags(TraceFlags.SAMPLED))), otel_context.Context()
    )
    tracer = provider.get_tracer("t")
    with Pipe(backend=opened()) as pipe, trace_pipe(pipe, tracer_provider=provider):
        for context, headers, expected in (
            (remote, incoming, "POST"),
            (otel_context.Context(), {}, "POST"),
            (otel_context.Context(), incoming, None),
        ):
            exporter.clear()
            with within(context), tracer.start_as_current_span("POST"), continued(headers):
                pipe({"data": 0})
                inside = trace.get_current_span().get_span_context()
            spans = {span.name: span for span in exporter.get_finished_spans()}
            assert spans["fastpipe"].parent is not None
            assert spans["fastpipe"].parent.span_id == (6 if expected is None else spans[expected].context.span_id)
            assert inside.span_id == spans["fastpipe"].parent.span_id
