"""Spans of OpenTelemetry's SDK at a fifth of the price: what an exporter asks for is made when it asks.

A span of the SDK's has two locks, three containers, and a copy of itself for the exporter, whoever needs them: some
10 us to begin, and 5 to end. ``quick`` returns a tracer whose spans have them once somebody looks, and are themselves
what a processor gets. To backends, processors and exporters they are the SDK's: of its class, with its limits, events,
links and status, which are its own code. A sampler is asked as the SDK asks it, unless it is one that always says yes.

This knows the fields of the SDK's spans. Where they are others, as they may be in a later version, the SDK makes its
spans itself.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import get_current
from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, ParentBased, Sampler
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)
from opentelemetry.trace.propagation import _SPAN_KEY

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.util.types import Attributes

__all__ = ["quick"]

# `_record_end_metrics`, which older ones have not, is for an SDK that counts its own spans.
_FIELDS = frozenset(
    [
        "_name",
        "_context",
        "_parent",
        "_kind",
        "_status",
        "_resource",
        "_attributes",
        "_events",
        "_links",
        "_start_time",
        "_end_time",
        "_lock",
        "_limits",
        "_sampler",
        "_span_processor",
        "_instrumentation_info",
        "_instrumentation_scope",
        "_trace_config",
        "_record_exception",
        "_set_status_on_exception",
        "_record_end_metrics",
    ]
)
_FIELDS_OF_TRACERS = ("id_generator", "sampler", "resource", "span_processor", "_span_limits", "_instrumentation_scope")
_COUNTS_ITS_SPANS = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"
_PLAIN = frozenset((str, int, float, bool))
"""Values of attributes that nobody can change, and that the SDK takes as they are, but for their length."""
_NO_STATE = TraceState.get_default()
_SAMPLED = int(TraceFlags.SAMPLED)
_RANDOM = int(getattr(TraceFlags, "RANDOM_TRACE_ID", 0))
"""Older versions of the SDK do not know it."""


def quick(tracer: trace.Tracer) -> trace.Tracer:
    """Return a tracer that makes the spans of one of the SDK's; ``tracer`` itself, where it is none that is known."""
    if type(tracer) is not sdk.Tracer or os.environ.get(_COUNTS_ITS_SPANS) or not _is_known():
        return tracer
    return _QuickTracer(tracer)


@cache
def _is_known() -> bool:
    """True if the SDK's spans have no field that those of here do without."""
    tracer = sdk.TracerProvider(ALWAYS_ON, Resource({}), shutdown_on_exit=False).get_tracer("fastpipe")
    context = SpanContext(1, 2, False)
    return (
        vars(tracer.start_span("")).keys() <= _FIELDS
        and all(hasattr(tracer, field) for field in _FIELDS_OF_TRACERS)
        and tuple(context) == (1, 2, False, context.trace_flags, context.trace_state, True)
    )


class _Late:
    """A field of a span that is made when it is first read. Of two threads that read it, both have the first one's."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, span: Any, owner: type) -> Any:
        return span.__dict__.setdefault(self._name, self._make(span))


class _QuickSpan(sdk.Span):
    """A span that is cheap to begin and to end. Each tracer has a subclass, with what all of its spans share."""

    _kind = SpanKind.INTERNAL
    _status = Status(StatusCode.UNSET)
    _instrumentation_info = None
    _trace_config = None
    _record_exception = True
    _set_status_on_exception = True
    _record_end_metrics = None
    _end_time: int | None = None
    _first_links: Sequence[Link] = ()
    _context: SpanContext
    _first_attributes: dict[str, Any]
    _has_attributes = False  # of the SDK's kind; until then they are in `_first_attributes`
    _processors: ClassVar[_Processors]

    def _make_attributes(self) -> BoundedAttributes:
        self._has_attributes = True  # first: what is set from now on is set there
        limits = self._limits
        made = BoundedAttributes(
            limits.max_span_attributes,
            self._first_attributes.copy(),
            immutable=False,
            max_value_len=limits.max_span_attribute_length,
        )
        made._immutable = self._end_time is not None
        return made

    _lock = _Late(lambda span: threading.Lock())
    _attributes = _Late(_make_attributes)
    _events = _Late(lambda span: span._new_events())
    _links = _Late(lambda span: span._new_links(span._first_links))

    def get_span_context(self) -> SpanContext:  # quicker than the SDK's
        return self._context

    def set_attribute(self, key: str, value: Any) -> None:
        # The last question is about what another thread may be doing: nobody can get in between it and the line below.
        if self._end_time is not None or type(value) not in _PLAIN or type(key) is not str or self._has_attributes:
            super().set_attribute(key, value)
        else:
            self._first_attributes[key] = value

    def end(self, end_time: int | None = None) -> None:
        now = time.time_ns() if end_time is None else end_time
        if self._end_time is not None:
            super().end(now)  # which says that it has ended already
            return
        self._end_time = now
        if self._has_attributes:
            self._attributes._immutable = True
        for on_end in self._processors.look().on_end:
            on_end(self)


class _Processors:
    """Those of a provider, without calls that do nothing."""

    def __init__(self, processor: Any) -> None:
        self._all = processor
        self._is_flat = type(processor) is sdk.SynchronousMultiSpanProcessor and hasattr(processor, "_span_processors")
        self._known: Any = None  # the tuple that the methods are of
        self.on_start: tuple[Callable[..., None], ...] = ()
        self.on_end: tuple[Callable[..., None], ...] = ()

    def look(self) -> Self:
        """See whether others were added, and return itself."""
        known = self._all._span_processors if self._is_flat else self._all
        if known is not self._known:
            each = known if self._is_flat else (known,)
            self.on_start = (*_that_do_something(each, "on_start"),)
            self.on_end = (*_that_do_something(each, "_on_ending"), *_that_do_something(each, "on_end"))
            self._known = known
        return self


def _that_do_something(processors: Sequence[sdk.SpanProcessor], name: str) -> Iterator[Callable[..., None]]:
    if not hasattr(sdk.SpanProcessor, name):  # an older SDK, which does not call it
        return
    idle = [getattr(sdk.SpanProcessor, name)]
    if name != "on_end":
        idle += [getattr(kind, name) for kind in (BatchSpanProcessor, SimpleSpanProcessor)]
    for processor in processors:
        method = getattr(processor, name)
        if getattr(method, "__func__", None) not in idle:
            yield method


def _always_says_yes(sampler: Sampler, to: str) -> bool:
    """True if a sampler samples all spans of a kind: those of ``_root``, ``_local_parent_sampled``, or ..."""
    if type(sampler).should_sample is ParentBased.should_sample:
        sampler = getattr(sampler, to, sampler)
    return sampler is ALWAYS_ON


class _QuickTracer(trace.Tracer):
    """Thread-safety: as the SDK's."""

    def __init__(self, tracer: sdk.Tracer) -> None:
        self._tracer = tracer
        self._ids = tracer.id_generator
        self._sampler = tracer.sampler
        self._samples_roots = _always_says_yes(tracer.sampler, "_root")
        self._samples_local = _always_says_yes(tracer.sampler, "_local_parent_sampled")
        self._samples_remote = _always_says_yes(tracer.sampler, "_remote_parent_sampled")
        is_random = getattr(tracer.id_generator, "is_trace_id_random", None)
        self._root_flags = TraceFlags(_SAMPLED | (_RANDOM if is_random is not None and is_random() else 0))
        self._has_config = hasattr(tracer, "_tracer_config")  # older SDKs have none
        self._processors = _Processors(tracer.span_processor)
        shared = {
            "_sampler": tracer.sampler,
            "_resource": tracer.resource,
            "_limits": tracer._span_limits,
            "_span_processor": tracer.span_processor,
            "_instrumentation_info": getattr(tracer, "instrumentation_info", None),
            "_instrumentation_scope": tracer._instrumentation_scope,
            "_processors": self._processors,
        }
        self._make = cast("type[_QuickSpan]", type("Span", (_QuickSpan,), shared))

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> trace.Span:
        """Begin a span, as the SDK's does; ``attributes`` become the span's own."""
        is_plain = kind is SpanKind.INTERNAL and record_exception and set_status_on_exception
        if not is_plain or (self._has_config and not self._tracer._tracer_config.is_enabled):
            own = (name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception)
            return self._tracer.start_span(*own)
        around = context if context is not None else get_current()
        parent_span: Any = around.get(_SPAN_KEY)
        if parent_span is None:
            parent = INVALID_SPAN_CONTEXT
        elif type(parent_span) is self._make:
            parent = parent_span._context
        else:
            parent = trace.get_current_span(around).get_span_context()
        trace_id, _, is_remote, flags, state, is_valid = parent
        if not is_valid:
            trace_id, flags, state, is_sure = self._new_trace()
        elif is_remote:
            flags, is_sure = TraceFlags(flags & (_SAMPLED | _RANDOM)), self._samples_remote
        else:
            is_sure = self._samples_local
        if not is_sure or not flags & _SAMPLED:
            result = self._sampler.should_sample(context, trace_id, name, kind, attributes, links or ())
            flags = TraceFlags(flags & _RANDOM | (_SAMPLED if result.decision is Decision.RECORD_AND_SAMPLE else 0))
            attributes, state = dict(result.attributes), result.trace_state or _NO_STATE
            if result.decision is Decision.DROP:
                return NonRecordingSpan(SpanContext(trace_id, self._ids.generate_span_id(), False, flags, state))
        # Neither the SDK's __new__ nor its __init__, which are what takes long.
        span: _QuickSpan = object.__new__(self._make)
        span._name = name
        # As SpanContext() makes it, which looks at ids that are known to be good.
        span._context = tuple.__new__(SpanContext, (trace_id, self._ids.generate_span_id(), False, flags, state, True))
        span._parent = parent if is_valid else None
        span._first_attributes = cast("dict[str, Any]", attributes or {})
        span._start_time = time.time_ns() if start_time is None else start_time
        if links:
            span._first_links = links
        for on_start in self._processors.look().on_start:
            on_start(span, parent_context=context)
        return span

    def _new_trace(self) -> tuple[int, TraceFlags, TraceState, bool]:
        return self._ids.generate_trace_id(), self._root_flags, _NO_STATE, self._samples_roots

    def start_as_current_span(self, *arguments: Any, **settings: Any) -> Any:
        """The SDK's own; nobody here asks for it."""
        return self._tracer.start_as_current_span(*arguments, **settings)
