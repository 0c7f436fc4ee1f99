"""Quick spans are the SDK's, as far as a processor, an exporter or a backend can see."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from helpers import ask_on_threads

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed here")

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState
from opentelemetry.trace import set_span_in_context as with_span

from fastpipe.observe import spans as quick_spans
from fastpipe.observe.spans import quick


class Counts(IdGenerator):
    """Ids from 1 on, so that two tracers have the same."""

    def __init__(self) -> None:
        self._next = itertools.count(1)

    def generate_span_id(self) -> int:
        return next(self._next)

    def generate_trace_id(self) -> int:
        return next(self._next) << 64

    def is_trace_id_random(self) -> bool:
        return True


class Told(SpanProcessor):
    """Keeps what it is told, as an exporter would write it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def on_start(self, span: sdk.Span, parent_context: Context | None = None) -> None:
        around = trace.get_current_span(parent_context).get_span_context()
        self.calls.append(("start", (span.is_recording(), around.span_id, json.loads(span.to_json()))))
        span.set_attribute("told", True)

    def _on_ending(self, span: sdk.Span) -> None:
        self.calls.append(("ending", span.name))

    def on_end(self, span: sdk.ReadableSpan) -> None:
        assert isinstance(span, sdk.ReadableSpan)
        dropped = (span.dropped_attributes, span.dropped_events, span.dropped_links)
        self.calls.append(("end", (json.loads(span.to_json()), dropped, span.instrumentation_scope)))


class Adds(Sampler):
    """Records some, samples others, by name; adds an attribute and a state."""

    def should_sample(
        self,
        parent_context: Any,
        trace_id: int,
        name: str,
        kind: Any = None,
        attributes: Any = None,
        links: Any = None,
        trace_state: Any = None,
    ) -> SamplingResult:
        decision = {"drop": Decision.DROP, "record": Decision.RECORD_ONLY}.get(name, Decision.RECORD_AND_SAMPLE)
        return SamplingResult(decision, {**(attributes or {}), "by": "sampler"}, TraceState([("a", "b")]))

    def get_description(self) -> str:
        return "adds"


def remote(flags: int) -> Context:
    state = TraceState([("vendor", "x")])
    return with_span(NonRecordingSpan(SpanContext(5, 6, True, TraceFlags(flags), state)), Context())


def local(flags: int) -> Context:
    return with_span(NonRecordingSpan(SpanContext(5, 6, False, TraceFlags(flags))), Context())


def begins_and_ends(tracer: trace.Tracer) -> None:
    root = tracer.start_span("root", attributes={"a": 1, "b": "text"}, start_time=10)
    child = tracer.start_span("child", with_span(root, Context()), attributes={"c": 0.5}, start_time=11)
    child.set_attribute("late", "x")
    child.end(12)
    root.end(13)
    assert not root.is_recording()


def has_parents(tracer: trace.Tracer) -> None:
    for number, context in enumerate((remote(1), remote(0), remote(0xFF), remote(3), local(1), local(0), Context())):
        span = tracer.start_span(f"of {number}", context, attributes={"n": number}, start_time=1)
        context_of_span = span.get_span_context()
        tracer.start_span("below", with_span(span, Context()), start_time=2).end(3)
        span.end(4)
        assert (context_of_span.is_valid, context_of_span.is_remote) == (True, False)


def is_in_the_current_context(tracer: trace.Tracer) -> None:
    token = otel_context.attach(local(1))
    try:
        tracer.start_span("inside", start_time=1).end(2)
    finally:
        otel_context.detach(token)


def does_everything(tracer: trace.Tracer) -> None:
    other = SpanContext(7, 8, False, TraceFlags(1))
    span = tracer.start_span("all", links=[Link(other, {"l": 1})], start_time=1)
    span.set_attributes({"x": [1, 2], "y": "long text" * 20})
    span.set_attribute("list", ["a", "b"])
    span.set_attribute("", "no key")
    span.add_event("event", {"e": 1}, timestamp=2)
    span.add_link(SpanContext(9, 10, False))
    span.update_name("renamed")
    span.set_status(StatusCode.ERROR, "bad")
    span.set_attribute("x", 3)
    span.end(3)
    span.set_attribute("after", 1)
    span.add_event("after")
    span.end(4)


def fails(tracer: trace.Tracer) -> None:
    span = tracer.start_span("fails", start_time=1)
    span.record_exception(ValueError("bad"), timestamp=2)
    span.end(3)


def is_a_block(tracer: trace.Tracer) -> None:
    try:
        with tracer.start_span("block", start_time=1, kind=SpanKind.SERVER):
            raise KeyError("k")
    except KeyError:
        pass


def is_sampled_by_name(tracer: trace.Tracer) -> None:
    for name in ("drop", "record", "sample"):
        span = tracer.start_span(name, attributes={"n": name}, start_time=1)
        span.set_attribute("more", 1)
        span.end(2)


ACTS = (begins_and_ends, has_parents, is_in_the_current_context, does_everything, fails, is_a_block, is_sampled_by_name)
SAMPLERS = (
    DEFAULT_ON,
    ALWAYS_ON,
    ALWAYS_OFF,
    ParentBased(ALWAYS_OFF),
    TraceIdRatioBased(0.5),
    Adds(),
    ParentBased(Adds()),
)


def told_of(
    act: Callable[[trace.Tracer], None], make: Callable[[trace.Tracer], trace.Tracer], **settings: Any
) -> list[tuple[str, Any]]:
    told = Told()
    provider = TracerProvider(id_generator=Counts(), resource=Resource({"service.name": "s"}), **settings)
    provider.add_span_processor(told)
    act(make(provider.get_tracer("t", "1.0")))
    for call, what in told.calls:  # the real time of the blocks that say none
        if call != "ending" and act is is_a_block:
            (what[2] if call == "start" else what[0]).update(
                end_time=None, events=len(what[2 if call == "start" else 0]["events"])
            )
    return told.calls


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.get_description()[:40])
def test_whoever_looks_sees_what_the_sdks_spans_show(
    act: Callable[[trace.Tracer], None], sampler: Sampler, caplog: pytest.LogCaptureFixture
) -> None:
    assert told_of(act, quick, sampler=sampler) == told_of(act, lambda tracer: tracer, sampler=sampler)


def test_limits_are_the_sdks(caplog: pytest.LogCaptureFixture) -> None:
    limits = SpanLimits(max_span_attributes=2, max_span_attribute_length=5, max_events=0, max_links=1)
    (_, quicks), (_, sdks) = (
        told_of(does_everything, make, span_limits=limits)[-1] for make in (quick, lambda tracer: tracer)
    )
    assert quicks == sdks
    assert quicks[1][0] > 0


def test_quick_spans_are_what_pipes_get() -> None:
    """Of the SDK that is installed here; a later one may have other fields, and then this says so."""
    span = quick(TracerProvider().get_tracer("t")).start_span("a")
    assert isinstance(span, quick_spans._QuickSpan)


def test_what_is_not_known_is_left_to_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracer of somebody else's; spans with another field; an SDK that counts its spans."""
    provider = TracerProvider()
    tracer = provider.get_tracer("t")
    other = trace.NoOpTracer()
    assert quick(other) is other
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    assert quick(tracer) is tracer
    monkeypatch.delenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED")
    monkeypatch.setattr(quick_spans, "_FIELDS", quick_spans._FIELDS - {"_limits"})
    quick_spans._is_known.cache_clear()
    assert quick(tracer) is tracer
    monkeypatch.undo()
    quick_spans._is_known.cache_clear()
    assert quick(tracer) is not tracer


def test_a_processor_that_comes_later_is_told_of_the_end() -> None:
    provider = TracerProvider()
    tracer = quick(provider.get_tracer("t"))
    span = tracer.start_span("a")
    late = Told()
    provider.add_span_processor(late)
    span.end()
    assert [call for call, _ in late.calls][-1] == "end"


def test_processors_that_run_at_once_are_told() -> None:
    told = [Told(), Told()]
    processor = sdk.ConcurrentMultiSpanProcessor(2)
    provider = TracerProvider(active_span_processor=processor)
    for each in told:
        provider.add_span_processor(each)
    quick(provider.get_tracer("t")).start_span("a").end()
    assert [[call for call, _ in each.calls][-1] for each in told] == ["end", "end"]
    provider.shutdown()


def test_what_several_threads_set_at_once_is_all_there() -> None:
    """Some look meanwhile, so that the attributes change from one kind to the other below those who set them."""
    tracer = quick(TracerProvider(sampler=ALWAYS_ON).get_tracer("t"))
    for _ in range(50):
        span = tracer.start_span("a")
        assert isinstance(span, sdk.Span)

        def act(start: int, span: sdk.Span = span) -> None:
            if start // 1000 % 2:
                assert span.attributes is not None
            span.set_attribute(f"key {start}", start)

        ask_on_threads(act, 8, 1)
        span.end()
        assert dict(span.attributes or {}) == {f"key {start}": start for start in range(0, 8000, 1000)}


def test_a_span_that_has_ended_says_so(caplog: pytest.LogCaptureFixture) -> None:
    span = quick(TracerProvider().get_tracer("t")).start_span("a")
    span.end()
    with caplog.at_level(logging.WARNING):
        span.end()
        span.set_attribute("a", 1)
    assert [record.message for record in caplog.records] == [
        "Calling end() on an ended span.",
        "Setting attribute on ended span.",
    ]
