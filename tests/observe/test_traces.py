"""Spans of a pipe's requests, as the SDK's exporter gets them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import WAIT_S, Gate, opened, until
from interrupts import interrupted_everywhere

import fastpipe
from fastpipe import Backend, Pipe, PipeClosed, PipeError, Request

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed here")

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import StatusCode

from fastpipe.observe import traces
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
    told = dict(request.attributes)
    assert 0 <= told.pop("fastpipe.admission.seconds") < WAIT_S
    assert told == {"fastpipe.entry": "a", "fastpipe.outcome": "done"}
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


class CallsBack(SpanProcessor):
    """Calls the pipe that it is told of, at every opportunity; notes what it met."""

    pipe: Pipe

    def __init__(self) -> None:
        self.met: list[str] = []

    def call(self) -> None:
        try:
            self.pipe({"data": 0}, timeout=WAIT_S)
            self.met.append("answered")
        except Exception as error:
            self.met.append(type(error).__name__)

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.call()

    def on_end(self, span: Any) -> None:
        self.call()


class SamplerCallsBack(Sampler):
    """The same of what decides whether a request is followed."""

    def __init__(self, calls: CallsBack) -> None:
        self.calls = calls

    def should_sample(self, *arguments: Any, **settings: Any) -> SamplingResult:
        self.calls.call()
        return SamplingResult(Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "calls back"


@pytest.mark.parametrize("way", ["call", "submit", "acall in line"])
def test_what_traces_a_pipe_and_calls_it_is_refused_and_hangs_nobody(way: str) -> None:
    """Samplers, processors: on the caller's thread, on the worker's, and where a worker lets in who stood in line."""
    calls = CallsBack()
    provider = TracerProvider(sampler=SamplerCallsBack(calls))
    provider.add_span_processor(calls)
    gate = opened()
    with Pipe(backend=gate, max=1, max_in_flight=1) as pipe, trace_pipe(pipe, tracer_provider=provider):
        calls.pipe = pipe
        if way == "call":
            assert pipe({"data": 1}, timeout=WAIT_S)["result"] == 1
        elif way == "submit":
            assert pipe.submit({"data": 1}).result(WAIT_S)["result"] == 1
        else:
            gate.opened.clear()

            async def both() -> None:
                tasks = [asyncio.create_task(pipe.acall({"data": number})) for number in range(2)]
                assert await asyncio.to_thread(gate.inside.wait, WAIT_S)
                gate.opened.set()
                assert [(await task)["result"] for task in tasks] == [0, 1]

            asyncio.run(asyncio.wait_for(both(), WAIT_S))
        until(lambda: pipe.in_flight == 0)
    # For each request: a decision, a beginning and an end of its span and of its node's; all before close() returns.
    assert calls.met == ["PipeError"] * 6 * (2 if way == "acall in line" else 1)


@pytest.mark.parametrize("breaks_at", range(5))
def test_spans_of_a_batch_end_if_a_processor_raises_while_they_begin(
    breaks_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first node's, the second's, the third's, the batch's, or none: what has begun ends, and nobody fails."""

    class Breaks(SpanProcessor):
        def __init__(self) -> None:
            self.begun: list[Any] = []
            self.is_armed = False

        def on_start(self, span: Any, parent_context: Any = None) -> None:
            if self.is_armed and span.name.startswith("main"):
                if breaks_at == len(self.begun):
                    self.is_armed = False
                    raise RuntimeError("broken")
                self.begun.append(span)

    breaks, gate = Breaks(), Gate()
    provider = TracerProvider()
    provider.add_span_processor(breaks)
    reported: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", reported.append)
    with Pipe(backend=gate, batching="greedy") as pipe, trace_pipe(pipe, tracer_provider=provider):
        first = pipe.submit({"data": 0})
        assert gate.inside.wait(WAIT_S)
        breaks.is_armed = True
        others = [pipe.submit({"data": number}) for number in range(1, 4)]
        gate.opened.set()
        assert [each.result(WAIT_S)["result"] for each in (first, *others)] == [0, 1, 2, 3]
    assert len(breaks.begun) == min(breaks_at, 4)
    assert all(span.end_time is not None for span in breaks.begun)
    assert [str(each.exc_value) for each in reported] == ["broken"] * (breaks_at < 4)


def test_spans_of_a_batch_end_if_a_processor_raises_while_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each: that one fails to be told of one end is no reason to forget the others."""

    class Breaks(SpanProcessor):
        def __init__(self) -> None:
            self.begun: list[Any] = []

        def on_start(self, span: Any, parent_context: Any = None) -> None:
            self.begun.append(span)

        def on_end(self, span: Any) -> None:
            raise RuntimeError("broken")

    gate = Gate()
    provider = TracerProvider()
    breaks = Breaks()
    provider.add_span_processor(breaks)
    monkeypatch.setattr("sys.unraisablehook", lambda told: None)
    with Pipe(backend=gate, batching="greedy") as pipe, trace_pipe(pipe, tracer_provider=provider):
        futures = [pipe.submit({"data": 0})]
        assert gate.inside.wait(WAIT_S)
        futures += [pipe.submit({"data": number}) for number in range(1, 4)]
        gate.opened.set()
        assert [each.result(WAIT_S)["result"] for each in futures] == [0, 1, 2, 3]
    assert len(breaks.begun) == 4 + 1 + 3 + 1
    assert all(span.end_time is not None for span in breaks.begun)


def test_spans_end_where_a_backend_says_nonsense_of_its_failures(spans: Spans) -> None:
    class Nonsense(Backend):
        def forward(self, batch: list[Request]) -> None:
            raise fastpipe.ItemErrors([({"data": "of another batch"}, ValueError("whose?"))])

    with (
        Pipe(backend=Nonsense()) as pipe,
        trace_pipe(pipe, tracer_provider=spans.provider),
        pytest.raises(fastpipe.BackendError),
    ):
        pipe({"data": 1})
    assert spans.one("main").status.status_code is StatusCode.ERROR
    assert spans.one("fastpipe").status.status_code is StatusCode.ERROR


@pytest.mark.parametrize("way", ["call", "acall"])
def test_the_wait_for_room_is_in_the_span_and_in_the_latency(spans: Spans, way: str) -> None:
    """1. One stands in the gate. 2. Another waits to be let in. 3. After a while the gate opens."""
    waits_s = 0.2
    gate = Gate()

    async def call(pipe: Pipe) -> Any:
        return await pipe.acall({"data": 2})

    with Pipe(backend=gate, max_in_flight=1) as pipe, trace_pipe(pipe, tracer_provider=spans.provider):
        first = pipe.submit({"data": 1})
        assert gate.inside.wait(WAIT_S)
        second = threading.Thread(
            target=lambda: asyncio.run(call(pipe)) if way == "acall" else pipe({"data": 2}), daemon=True
        )
        second.start()
        until(lambda: pipe.arrivals == 1)
        time.sleep(waits_s)
        gate.opened.set()
        first.result(WAIT_S)
        second.join(WAIT_S)
        longest_s = pipe.stats()["latency_s"]["max"]
    assert longest_s is not None
    request = max(spans.named("fastpipe"), key=lambda span: span.attributes["fastpipe.admission.seconds"])
    node = max(spans.named("main"), key=lambda span: span.start_time or 0)
    assert is_child(node, request)
    assert request.attributes is not None
    waited_s = request.attributes["fastpipe.admission.seconds"]
    assert isinstance(waited_s, float)
    assert waits_s <= waited_s <= longest_s
    assert request.start_time is not None
    assert request.end_time is not None
    assert node.start_time is not None
    assert (request.end_time - request.start_time) / 1e9 >= waited_s
    assert node.start_time - request.start_time >= waited_s * 1e9 * 0.9  # two clocks


def test_who_is_refused_has_no_span_and_no_latency(spans: Spans) -> None:
    """Neither at once nor after having waited: it was not let in."""
    gate = Gate()
    with Pipe(backend=gate, max_in_flight=1) as pipe, trace_pipe(pipe, tracer_provider=spans.provider):
        first = pipe.submit({"data": 1})
        assert gate.inside.wait(WAIT_S)
        with pytest.raises(fastpipe.RequestTimeout, match="for room"):
            pipe({"data": 2}, timeout=0.05)
        gate.opened.set()
        first.result(WAIT_S)
        stats = pipe.stats()
    assert (stats["requests"]["refused"], stats["latency_s"]["count"]) == (1, 1)
    assert len(spans.named("fastpipe")) == 1


def test_a_signal_while_a_trace_begins_leaves_nothing_behind(spans: Spans) -> None:
    """Ctrl-C behind each instruction: the pipe can be traced again."""
    watched = {traces.Tracing.__init__.__code__, trace_pipe.__code__}
    with Pipe(backend=opened()) as pipe:
        calls, tracing = interrupted_everywhere(lambda: trace_pipe(pipe, tracer_provider=spans.provider), watched)
        assert calls > 20
        tracing.stop()
        with trace_pipe(pipe, tracer_provider=spans.provider):
            tracing.stop()  # of another: it ends nothing
            pipe({"data": 1})
    assert len(spans.named("fastpipe")) == 1


def test_spans_of_a_batch_that_hangs_end_when_it_is_given_up(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """1. A batch of two hangs. 2. It is given up: all its spans end as failed. 3. It comes back, and nobody minds."""
    first, inside, lets_go, left = Gate(), threading.Event(), threading.Event(), threading.Event()

    class Hangs(Backend):
        max_batch = 8

        def forward(self, batch: list[Request]) -> None:
            if batch[0]["data"] == "first":
                first.forward(batch)
            elif batch[0]["data"] == "hang":
                inside.set()
                assert lets_go.wait(WAIT_S)
            for request in batch:
                request["result"] = 0

        def close(self) -> None:
            left.set()

    with (
        Pipe(backend=Hangs, batching="greedy", hang_timeout=0.3) as pipe,
        trace_pipe(pipe, tracer_provider=spans.provider),
    ):
        futures = [pipe.submit({"data": "first"})]
        assert first.inside.wait(WAIT_S)
        futures += [pipe.submit({"data": "hang"}) for _ in range(2)]
        first.opened.set()
        assert inside.wait(WAIT_S)
        assert [type(future.exception(WAIT_S)) for future in futures] == [type(None), *[fastpipe.BackendHung] * 2]
        ended = [(span.name, span.status.status_code.name) for span in spans.exporter.get_finished_spans()]
        failed = [("main", "ERROR")] * 2 + [("main, batch", "ERROR")] + [("fastpipe", "ERROR")] * 2
        assert sorted(ended) == sorted([("main", "UNSET"), ("fastpipe", "UNSET"), *failed])
        lets_go.set()
        assert left.wait(WAIT_S)
        count = len(spans.exporter.get_finished_spans())
        assert pipe({"data": 1})["result"] == 0
    assert len(spans.exporter.get_finished_spans()) == count + 2
    assert [record.message for record in caplog.records if record.name.startswith("opentelemetry")] == []


def test_greenlets_that_leave_their_backends_in_any_order_have_spans_of_their_own(spans: Spans) -> None:
    greenlet = pytest.importorskip("greenlet", reason="greenlet is not installed here")
    main = greenlet.getcurrent()

    class Switches(Backend):
        def forward(self, batch: list[Request]) -> None:
            main.switch()
            with spans.tracer.start_as_current_span(f"inside {batch[0]['data']}"):
                batch[0]["result"] = batch[0]["data"]

    def call(number: int) -> None:
        with spans.tracer.start_as_current_span(f"around {number}"):
            pipe({"data": number})

    with Pipe(backend=Switches, instance_num=3) as pipe, trace_pipe(pipe, tracer_provider=spans.provider):
        calls = [greenlet.greenlet(call) for _ in range(3)]
        for number, each in enumerate(calls):
            each.switch(number)
        for number in (1, 0, 2):
            calls[number].switch()
    nodes = {span.context.span_id: span for span in spans.named("main")}
    requests = {span.context.span_id: span for span in spans.named("fastpipe")}
    for number in range(3):
        inside = spans.one(f"inside {number}")
        assert inside.parent is not None
        node = nodes[inside.parent.span_id]
        assert node.parent is not None
        assert is_child(requests[node.parent.span_id], spans.one(f"around {number}"))


def test_spans_of_a_node_at_several_places_name_its_instances(spans: Spans) -> None:
    """Each as the node's own number, whatever place it is at."""
    places = iter(("cuda:0", "cuda:1", "cuda:0", "cuda:1"))

    class Placed(Gate):
        def __init__(self) -> None:
            super().__init__()
            self.place = next(places)
            self.opened.set()

        def place_of(self, request: Request) -> str:
            return f"cuda:{request['data'] % 2}"

    with Pipe(backend=Placed, instance_num=4) as pipe, trace_pipe(pipe, tracer_provider=spans.provider):
        for future in [pipe.submit({"data": number}) for number in range(40)]:
            future.result(WAIT_S)
        by_place = pipe.stats()["nodes"]["main"]["places"]
    attributes = [span.attributes for span in spans.named("main") if span.attributes]
    assert len(attributes) == 40
    assert {each["fastpipe.instance"] for each in attributes} <= {0, 1, 2, 3}
    assert {int(str(each["fastpipe.instance"])) % 2 for each in attributes} == {0, 1}
    assert sum(place["requests"] for place in by_place.values()) == 40
