"""OpenTelemetry spans of what a pipe does: one for each request, one for each node that it runs in.

    fastpipe                        the request, from when it is let in; a child of the span around the call
    ├── resize                      from when it was queued there until its batch returned
    │   └── (the backend's own)     alone in its batch
    └── classify                    in company, linked to
        classify, batch of 8        the batch: a child of one of its requests' spans, linked to those of the others
        └── (the backend's own)

``fastpipe.queue.seconds`` says how much of a node's span was waiting; the rest is the run. A span of the
SDK's costs about 30 us, which is why calls are sampled before it is asked.

Needs the package opentelemetry-api (extra ``otel``), and a provider, as opentelemetry-sdk has one.
"""

from __future__ import annotations

import contextvars
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fastpipe._core import Tracer
from fastpipe.contract import Request
from fastpipe.errors import ItemErrors, MissingExtra, PipeClosed, PipeError
from fastpipe.faults import text_of

try:
    from opentelemetry import context as otel_context
    from opentelemetry import propagate, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import (
        INVALID_SPAN_CONTEXT,
        Link,
        Span,
        SpanContext,
        StatusCode,
        TracerProvider,
        propagation,
        set_span_in_context,
    )
except ImportError as missing:
    raise MissingExtra("fastpipe.observe.traces", "otel", missing) from missing

if TYPE_CHECKING:
    from fastpipe._core import Engine

__all__ = ["Tracing", "continued", "headers", "trace_pipe"]


def trace_pipe(
    pipe: Engine, *, sample: float = 1.0, name: str = "fastpipe", tracer_provider: TracerProvider | None = None
) -> Tracing:
    """Make spans of a pipe's requests from now on, until ``stop()`` or the end of a ``with`` block.

    A call inside a span belongs to its trace: it is followed if that span is sampled, and else not. Of all other
    calls a share is followed, to which ``tracer_provider`` may say no; one that is not costs next to nothing.

    Args:
        pipe: a pipe; one that is traced already is refused.
        sample: the share, 0 to 1, of calls without a span around them.
        name: what the spans of requests are called.
        tracer_provider: None: OpenTelemetry's global one.

    Raises:
        PipeError: the pipe is traced already.
        PipeClosed: it is closed.
    """
    if not isinstance(sample, int | float) or not 0 <= sample <= 1:
        raise ValueError(f"sample must be between 0 and 1, got {sample!r}")
    return Tracing(pipe, float(sample), name, _tracer_of(tracer_provider))


def _tracer_of(provider: TracerProvider | None) -> trace.Tracer:
    tracer = trace.get_tracer("fastpipe", tracer_provider=provider)
    if not type(tracer).__module__.startswith("opentelemetry.sdk."):
        return tracer
    from fastpipe.observe.spans import quick  # the API may be there without the SDK

    return quick(tracer)


@contextmanager
def continued(incoming: Mapping[str, str]) -> Iterator[None]:
    """Have calls within a ``with`` statement belong to the trace that a service's caller has begun.

        with continued(request.headers):
            pipe({"data": body})

    Within a span of that trace, as some frameworks make one for each request, they belong to this span.

    Args:
        incoming: the headers of its request, ``traceparent`` among them, in upper or lower case.
    """
    found = propagate.extract({key.lower(): value for key, value in incoming.items()})
    theirs, around = (trace.get_current_span(each).get_span_context() for each in (found, None))
    if around.is_valid and (not theirs.is_valid or theirs.trace_id == around.trace_id):
        yield  # the framework has done so already, and has a span of its own for it; or there is nothing to go on with
        return
    token = otel_context.attach(found)
    try:
        yield
    finally:
        otel_context.detach(token)


def headers(context: contextvars.Context | None = None) -> dict[str, str]:
    """Return the headers (``traceparent`` and others) with which a backend calls another service.

    Args:
        context: ``fastpipe.context_of(request)``, of a request in company; None: the current one, of a request that is
            alone, or, in company, of the batch.
    """
    outgoing: dict[str, str] = {}
    if context is None:
        propagate.inject(outgoing)
    else:
        context.run(propagate.inject, outgoing)
    return outgoing


class Tracing:
    """What ``trace_pipe`` returns. Thread-safety: any thread."""

    def __init__(self, pipe: Engine, sample: float, name: str, tracer: trace.Tracer) -> None:
        if pipe.closing:
            raise PipeClosed("the pipe is closed: there is nothing to trace")
        # Where OpenTelemetry keeps its context; where it does not say, it is asked for each request.
        variable = getattr(getattr(otel_context, "_RUNTIME_CONTEXT", None), "_current_context", None)
        if not isinstance(variable, contextvars.ContextVar):
            variable = None
        try:
            pipe._set_tracer(Tracer(_Spans(tracer, name), variable, sample))
        except RuntimeError:
            raise PipeError("the pipe is traced already: stop() that first") from None
        self._stop = weakref.finalize(self, _untrace, weakref.ref(pipe))

    def stop(self) -> None:
        """Follow no more requests; those that are followed are to the end. Idempotent."""
        self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _untrace(pipe: weakref.ref[Engine]) -> None:
    engine = pipe()
    if engine is not None:
        engine._set_tracer(None)


class _Running:
    """A batch in which requests are that are followed."""

    def __init__(self, nodes: list[tuple[int, Span]], batch: Span | None, token: Any) -> None:
        self.nodes = nodes
        self.batch = batch
        self.token = token


class _Spans:
    """What the engine tells of requests; see engine/traces.pxi. Its threads are those of callers and workers."""

    def __init__(self, tracer: trace.Tracer, name: str) -> None:
        self.tracer = tracer
        self.name = name

    key: str | None = getattr(propagation, "_SPAN_KEY", None)

    def around(self, context: contextvars.Context | None) -> SpanContext:
        """Return the context of the span around a call."""
        span = trace.get_current_span() if context is None else context.run(trace.get_current_span)
        return span.get_span_context()

    def begin(self, node: str, context: contextvars.Context | None) -> tuple[Span, contextvars.Context] | None:
        """Begin the span of a request that enters at ``node``; None: it is not sampled.

        Returns:
            the span, and a context in which it is the current one.
        """
        own = contextvars.copy_context() if context is None else context.copy()
        return own.run(self._begin, node, own)

    def _begin(self, node: str, own: contextvars.Context) -> tuple[Span, contextvars.Context] | None:
        current = otel_context.get_current()
        around = trace.get_current_span(current).get_span_context() if current else INVALID_SPAN_CONTEXT
        if around.is_valid and not around.trace_flags.sampled:
            return None
        span = self.tracer.start_span(self.name, current, attributes={"fastpipe.entry": node})
        if not span.is_recording():
            return None
        otel_context.attach(set_span_in_context(span, current))  # never detached: nobody else is in this context
        return span, own

    def run(self, node: str, instance: int, size: int, followed: list[tuple[int, Span, int]]) -> _Running:
        """Begin the spans of the requests of a batch: (index in it, span, nanoseconds that it was queued)."""
        now = time.time_ns()
        attributes: dict[str, Any] = {"fastpipe.node": node, "fastpipe.instance": instance, "fastpipe.batch.size": size}
        nodes = []
        for index, request, waited_ns in followed:
            span = self.tracer.start_span(
                node,
                set_span_in_context(request, Context()),
                attributes={**attributes, "fastpipe.queue.seconds": waited_ns / 1e9},
                start_time=now - waited_ns,
            )
            nodes.append((index, span))
        _, first = nodes[0]
        if size == 1:
            return _Running(nodes, None, otel_context.attach(set_span_in_context(first)))
        others = [Link(span.get_span_context()) for _, span in nodes[1:]]
        batch = self.tracer.start_span(
            f"{node}, batch", set_span_in_context(first, Context()), attributes=attributes, links=others, start_time=now
        )
        for _, span in nodes[1:]:
            span.add_link(batch.get_span_context())
        return _Running(nodes, batch, otel_context.attach(set_span_in_context(batch)))

    def ran(
        self, running: _Running, error: BaseException | None, batch: list[Request], requests: Sequence[Request]
    ) -> None:
        """End them: the batch has returned, or raised ``error``."""
        otel_context.detach(running.token)
        errors: Mapping[int, BaseException] = {}
        if isinstance(error, ItemErrors):
            errors = error.by_position(batch, list(requests))
        elif error is not None:
            errors = dict.fromkeys(range(len(requests)), error)
        if running.batch is not None:
            _end(running.batch, None if isinstance(error, ItemErrors) else error)
        for index, span in running.nodes:
            _end(span, errors.get(index))

    def end(self, span: Span, error: BaseException | None, is_cancelled: bool) -> None:
        """End the span of a request."""
        if is_cancelled:
            span.add_event("cancelled")
            span.set_status(StatusCode.ERROR, "cancelled")
        span.set_attribute("fastpipe.outcome", "cancelled" if is_cancelled else "failed" if error else "done")
        _end(span, error)


def _end(span: Span, error: BaseException | None) -> None:
    if error is not None:
        span.record_exception(error)
        span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {text_of(error)}")
    span.end()
