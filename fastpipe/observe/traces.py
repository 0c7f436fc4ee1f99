"""OpenTelemetry spans of what a pipe does: one for each request, one for each node that it runs in.

    fastpipe                        the request, from its call; a child of the span around that
    ├── resize                      from when it was queued there until its batch returned
    │   └── (the backend's own)     alone in its batch
    └── classify                    in company, linked to
        classify, batch of 8        the batch: a child of one of its requests' spans, linked to those of the others
        └── (the backend's own)

``fastpipe.queue.seconds`` says how much of a node's span was waiting; the rest is the run. Of a request's,
``fastpipe.admission.seconds`` says how long it waited to be let in; one that is refused has no span. A span of the
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
from fastpipe.errors import BackendError, ItemErrors, MissingExtra, PipeClosed, PipeError
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
        follower = Tracer(_Spans(tracer, name), variable, sample)
        # First: a signal may end this behind any line.
        self._ending = weakref.ref(pipe), follower
        weakref.finalize(self, _untrace, *self._ending)
        try:
            try:
                pipe._set_tracer(follower)
            except RuntimeError:
                raise PipeError("the pipe is traced already: stop() that first") from None
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Follow no more requests; those that are followed are to the end. Idempotent."""
        _untrace(*self._ending)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _untrace(pipe: weakref.ref[Engine], follower: Tracer) -> None:
    engine = pipe()
    if engine is not None:
        engine._forget_tracer(follower)


class _Running:
    """A batch in which requests are that are followed."""

    def __init__(self) -> None:
        self.nodes: list[tuple[int, Span]] = []
        self.batch: Span | None = None
        self.token: Any = None
        self.is_to_end = [True]
        """Whoever takes it out ends the spans: the batch's thread, or who gives the batch up."""


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

    def begin(
        self, node: str, context: contextvars.Context | None, waited_ns: int
    ) -> tuple[Span, contextvars.Context] | None:
        """Begin the span of a request that enters at ``node``, and was called so long ago; None: it is not sampled.

        Returns:
            the span, and a context in which it is the current one.
        """
        own = contextvars.copy_context() if context is None else context.copy()
        return own.run(self._begin, node, own, time.time_ns() - waited_ns, waited_ns)

    def _begin(
        self, node: str, own: contextvars.Context, called_ns: int, waited_ns: int
    ) -> tuple[Span, contextvars.Context] | None:
        current = otel_context.get_current()
        around = trace.get_current_span(current).get_span_context() if current else INVALID_SPAN_CONTEXT
        if around.is_valid and not around.trace_flags.sampled:
            return None
        attributes: dict[str, Any] = {"fastpipe.entry": node, "fastpipe.admission.seconds": waited_ns / 1e9}
        span = self.tracer.start_span(self.name, current, attributes=attributes, start_time=called_ns)
        try:
            if not span.is_recording():
                return None
            otel_context.attach(set_span_in_context(span, current))  # never detached: nobody else is in this context
        except BaseException:  # a signal, or code of others
            span.end()
            raise
        return span, own

    def run(self, node: str, instance: int, size: int, followed: list[tuple[int, Span, int]]) -> _Running:
        """Begin the spans of the requests of a batch: (index in it, span, nanoseconds that it was queued)."""
        running = _Running()
        try:
            self._run(running, node, instance, size, followed)
        except BaseException:  # of code of others, such as a processor's on_start: what has begun is to end
            self.ran(running, None, [], ())
            raise
        return running

    def _run(
        self, running: _Running, node: str, instance: int, size: int, followed: list[tuple[int, Span, int]]
    ) -> None:
        now = time.time_ns()
        attributes: dict[str, Any] = {"fastpipe.node": node, "fastpipe.instance": instance, "fastpipe.batch.size": size}
        for index, request, waited_ns in followed:
            span = self.tracer.start_span(
                node,
                set_span_in_context(request, Context()),
                attributes={**attributes, "fastpipe.queue.seconds": waited_ns / 1e9},
                start_time=now - waited_ns,
            )
            running.nodes.append((index, span))
        _, first = running.nodes[0]
        if size > 1:
            others = [span for _, span in running.nodes[1:]]
            running.batch = self.tracer.start_span(
                f"{node}, batch",
                set_span_in_context(first, Context()),
                attributes=attributes,
                links=[Link(span.get_span_context()) for span in others],
                start_time=now,
            )
            for span in others:
                span.add_link(running.batch.get_span_context())
        running.token = otel_context.attach(set_span_in_context(running.batch or first))

    def ran(
        self, running: _Running, error: BaseException | None, batch: list[Request], requests: Sequence[Request]
    ) -> None:
        """End them: the batch has returned, or raised ``error``."""
        try:
            if running.token is not None:  # the context is this thread's
                otel_context.detach(running.token)
        finally:
            _end_all(running, error, batch, requests)

    def gave_up(self, running: _Running, error: BaseException) -> None:
        """End them, on another thread: the batch hangs."""
        _end_all(running, error)

    def end(self, span: Span, error: BaseException | None, is_cancelled: bool) -> None:
        """End the span of a request."""
        try:
            if is_cancelled:
                span.add_event("cancelled")
                span.set_status(StatusCode.ERROR, "cancelled")
            span.set_attribute("fastpipe.outcome", "cancelled" if is_cancelled else "failed" if error else "done")
        finally:
            _end(span, error)


def _end_all(
    running: _Running,
    error: BaseException | None,
    batch: list[Request] | None = None,
    requests: Sequence[Request] = (),
) -> None:
    """End the spans of a batch, all of them, whatever code of others raises meanwhile; raise the first of that."""
    try:
        running.is_to_end.pop()
    except IndexError:
        return
    whole: BaseException | None = error
    errors: Mapping[int, BaseException] = {} if error is None else dict.fromkeys((i for i, _ in running.nodes), error)
    met: list[BaseException] = []
    try:
        if isinstance(error, ItemErrors) and batch is not None:
            errors = error.by_position(batch, list(requests))  # raises if it says nonsense: then all have failed
            whole = None
    except BackendError:
        pass
    except BaseException as unexpected:
        met.append(unexpected)
    ends = [(span, errors.get(index)) for index, span in running.nodes]
    for span, own in [*([] if running.batch is None else [(running.batch, whole)]), *ends]:
        try:
            _end(span, own)
        except BaseException as unexpected:
            met.append(unexpected)
    if met:
        raise met[0]


def _end(span: Span, error: BaseException | None) -> None:
    try:
        if error is not None:
            span.record_exception(error)
            span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {text_of(error)}")
    finally:
        span.end()
