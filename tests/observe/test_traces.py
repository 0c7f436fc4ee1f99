"""Spans of a pipe's requests, as the SDK's exporter gets them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import WAIT_S, Gate, opened

import fastpipe
from fastpipe import Backend, Pipe, PipeClosed, PipeError, Request

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed here")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import StatusCode

from fastpipe.observe.traces import continued, headers, trace_pipe


class Spans:
    """A provider, and what it has exported."""

    def __init__(self, **settings: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**settings)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    yield made
    made.provider.shutdown()


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    return span.parent is not None and (span.parent.span_id, span.context.trace_id) == (
        parent.context.span_id,
        parent.context.trace_id,
    )


@pytest.mark.parametrize("thread_bound", [False, True])
def test_a_request_is_a_child_of_the_span_around_it_and_its_backends_spans_of_its_nodes(
    spans: Spans, thread_bound: bool
) -> None:
    class Works(Backend):
        def __init__(self) -> None:
            self.thread_bound = thread_bound

        def forward(self, batch: list[Request]) -> None:
            with spans.tracer.start_as_current_span(f"work {batch[0]['data']}"):
                batch[0]["result"] = batch[0]["data"] + 1

    with Pipe({"a": {"backend": Works, "next": "b"}, "b": {"backend": Works}}) as pipe:
        with trace_pipe(pipe, tracer_provider=spans.provider), spans.tracer.start_as_current_span("service"):
            pipe({"data": 1})
        pipe({"data": 1})
    request, a, b = spans.one("fastpipe"), spans.one("a"), spans.one("b")
    assert is_child(request, spans.one("service"))
    assert is_child(a, request)
    assert is_child(b, request)
    assert is_child(spans.named("work 1")[0], a)
    assert is_child(spans.named("work 2")[0], b)
    assert request.attributes is not None
    assert dict(request.attributes) == {"fastpipe.entry": "a", "fastpipe.outcome": "done"}
    assert a.attributes is not None
    assert a.attributes["fastpipe.batch.size"] == 1
    assert request.start_time <= a.start_time <= a.end_time <= b.end_time <= request.end_time


def test_64_callers_have_64_traces_and_batches_are_linked(spans: Spans) -> None:
    """1. One stands in the only instance. 2. The others queue. 3. They leave in batches of 8."""
    gate = Gate()
    with Pipe(backend=gate, batching="greedy") as pipe, trace_pipe(pipe, tracer_provider=spans.provider):

        def call(number: int) -> None:
            with spans.tracer.start_as_current_span(f"caller {number}"):
                pipe({"data": number})

        callers = [threading.Thread(target=call, args=(number,)) for number in range(64)]
        callers[0].start()
        assert gate.inside.wait(WAIT_S)
        for caller in callers[1:]:
            caller.start()
        while pipe.in_flight < 64:
            pass
        gate.opened.set()
        for caller in callers:
            caller.join(WAIT_S)
    assert len(spans.named("fastpipe")) == len(spans.named("main")) == 64
    around = {span.context.trace_id: span for number in range(64) for span in spans.named(f"caller {number}")}
    requests = {span.context.span_id: span for span in spans.named("fastpipe")}
    for request in requests.values():
        assert is_child(request, around[request.context.trace_id])
    nodes = {span.context.span_id: span for span in spans.named("main")}
    for node in nodes.values():
        assert node.parent is not None
        assert is_child(node, requests[node.parent.span_id])
    batches = spans.named("main, batch")
    sizes = [len(batch) for batch in gate.batches if len(batch) > 1]
    assert sorted(span.attributes["fastpipe.batch.size"] for span in batches if span.attributes) == sorted(sizes)
    for batch in batches:
        assert batch.parent is not None
        members = [nodes[batch.parent.span_id], *(nodes[link.context.span_id] for link in batch.links)]
        assert batch.attributes is not None
        assert len(members) == batch.attributes["fastpipe.batch.size"]
        for member in members[1:]:
            assert [link.context.span_id for link in member.links] == [batch.context.span_id]
    waited = [node.attributes["fastpipe.queue.seconds"] for node in nodes.values() if node.attributes]
    assert min(waited) >= 0
    assert sum(wait > 0 for wait in waited) == 63


def test_a_failure_is_the_status_of_node_and_request_and_an_event_of_both(spans: Spans) -> None:
    with (
        Pipe(backend=opened()) as pipe,
        trace_pipe(pipe, tracer_provider=spans.provider),
        pytest.raises(ValueError, match="bad"),
    ):
        pipe({"data": ValueError("bad")})
    for span in (spans.one("fastpipe"), spans.one("main")):
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "ValueError: bad"
        event = span.events[-1]
        assert (event.name, event.attributes["exception.type"]) == ("exception", "ValueError")
    request = spans.one("fastpipe")
    assert request.attributes is not None
    assert request.attributes["fastpipe.outcome"] == "failed"


def test_of_a_batch_only_those_have_failed_that_it_names(spans: Spans) -> None:
    class Names(Gate):
        def forward(self, batch: list[Request]) -> None:
            if batch[0]["data"] == "first":
                super().forward(batch)
                return
            for request in batch:
                request["result"] = 0
            raise fastpipe.ItemErrors([(batch[0], ValueError("the first of them"))])

    gate = Names()
    with Pipe(backend=gate, batching="greedy") as pipe, trace_pipe(pipe, tracer_provider=spans.provider):
        futures = [pipe.submit({"data": "first"})]
        assert gate.inside.wait(WAIT_S)
        futures += [pipe.submit({"data": number}) for number in range(3)]
        gate.opened.set()
        assert [type(future.exception(WAIT_S)) for future in futures] == [
            type(None),
            ValueError,
            type(None),
            type(None),
        ]
    assert [span.status.is_ok for span in spans.named("main")].count(False) == 1
    assert spans.one("main, batch").status.status_code is StatusCode.UNSET


def test_a_cancelled_request_says_so(spans: Spans) -> None:
    gate = Gate()

    async def main(pipe: Pipe) -> None:
        task = asyncio.create_task(pipe.acall({"data": 0}))
        await asyncio.to_thread(gate.inside.wait, WAIT_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with Pipe(backend=gate) as pipe, trace_pipe(pipe, tracer_provider=spans.provider):
        asyncio.run(main(pipe))
        request = spans.one("fastpipe")
        gate.opened.set()
    assert (request.status.status_code, request.status.description) == (StatusCode.ERROR, "cancelled")
    assert [event.name for event in request.events] == ["cancelled"]


def test_what_is_not_sampled_makes_no_spans(spans: Spans) -> None:
    """By the span around it, by the provider, by the share that is asked for."""
    off = Spans(sampler=ParentBased(ALWAYS_OFF))
    with Pipe(backend=opened()) as pipe:
        with trace_pipe(pipe, tracer_provider=off.provider):
            pipe({"data": 0})
        with trace_pipe(pipe, sample=0, tracer_provider=spans.provider):
            for _ in range(20):
                pipe({"data": 0})
            with off.tracer.start_as_current_span("service"):
                pipe({"data": 0})
            assert spans.exporter.get_finished_spans() == ()
            with spans.tracer.start_as_current_span("service"):
                pipe({"data": 0})
            assert len(spans.named("fastpipe")) == 1
        with trace_pipe(pipe, sample=0.5, tracer_provider=spans.provider):
            for _ in range(400):
                pipe({"data": 0})
    assert off.exporter.get_finished_spans() == ()
    assert 120 < len(spans.named("fastpipe")) < 280
    off.provider.shutdown()


def test_a_trace_goes_on_from_one_service_to_the_next(spans: Spans) -> None:
    """``traceparent`` comes in whatever case it is written, and goes out from a backend: alone, and in company."""
    gate = Gate()

    class Calls(Backend):
        max_batch = 8

        def forward(self, batch: list[Request]) -> None:
            if batch[0]["data"] == "first":
                gate.forward(batch)
            for request in batch:
                request["result"] = headers(fastpipe.context_of(request) if len(batch) > 1 else None)

    def parent_of(trace: int) -> dict[str, str]:
        return {"TraceParent": f"00-{trace:032x}-{7:016x}-01"}

    with Pipe(backend=Calls(), batching="greedy") as pipe, trace_pipe(pipe, tracer_provider=spans.provider):
        with continued(parent_of(1)):
            first = pipe.submit({"data": "first"})
        assert gate.inside.wait(WAIT_S)
        others = []
        for trace in (2, 3):
            with continued(parent_of(trace)):
                others.append(pipe.submit({"data": 0}))
        gate.opened.set()
        alone, *company = [future.result(WAIT_S)["result"]["traceparent"].split("-") for future in (first, *others)]
    requests = {span.context.trace_id: span for span in spans.named("fastpipe")}
    nodes = {span.context.trace_id: span for span in spans.named("main")}
    assert int(alone[1], 16) == 1
    assert int(alone[2], 16) == nodes[1].context.span_id
    assert [int(each[1], 16) for each in company] == [2, 3]
    assert [int(each[2], 16) for each in company] == [requests[trace].context.span_id for trace in (2, 3)]
    assert {span.parent.span_id for span in requests.values() if span.parent} == {7}


def test_a_tracer_that_fails_fails_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(TracerProvider):
        def get_tracer(self, *names: Any, **settings: Any) -> Any:
            return self

        def start_span(self, *arguments: Any, **settings: Any) -> Any:
            raise RuntimeError("no spans today")

    reported: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", reported.append)
    with Pipe(backend=opened()) as pipe, trace_pipe(pipe, tracer_provider=Broken()):
        assert pipe({"data": 1})["result"] == 1
    assert "no spans today" in str(reported[0].exc_value)


def test_a_second_tracer_and_a_closed_pipe_are_refused(spans: Spans) -> None:
    with Pipe(backend=opened()) as pipe:
        with trace_pipe(pipe, tracer_provider=spans.provider), pytest.raises(PipeError, match="traced already"):
            trace_pipe(pipe)
        with pytest.raises(ValueError, match="sample must be between 0 and 1, got 2"):
            trace_pipe(pipe, sample=2)
    with pytest.raises(PipeClosed):
        trace_pipe(pipe)


def test_an_exporter_that_calls_the_pipe_it_is_told_of_is_refused_and_hangs_no_worker() -> None:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    from fastpipe.observe.traces import trace_pipe

    met: list[str] = []

    class CallsBack(SpanProcessor):
        def on_end(self, span: Any) -> None:
            try:
                pipe({"data": 0}, timeout=5)
            except Exception as error:
                met.append(type(error).__name__)

    provider = TracerProvider()
    provider.add_span_processor(CallsBack())
    with fastpipe.Pipe(backend="Identity") as pipe, trace_pipe(pipe, tracer_provider=provider):
        assert pipe.submit({"data": 1}).result(timeout=10)["result"] == 1
    assert met == ["PipeError", "PipeError"]  # of the node's span, and of the request's
