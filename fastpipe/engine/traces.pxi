# Traces: a tracer is told of the requests that it follows: when one is let in, around each of its batches, and of its end.
#
# Guarantees   Without a tracer, one look at a pointer. A request without a span around it that is not among the sample costs a random
#              number, and no call of Python; one within a span that is not sampled, a look at that span. What a tracer raises fails no
#              request. Its code (samplers, processors, exporters) runs as a callback of a future does, in a frame that is settling:
#              where it calls the pipe it may be on the worker that it would wait for, and on its caller's thread it would call itself
#              for ever.
# Assumes      The GIL. Methods, as a function that is called once would be put where it is called, which is the direct path.

cimport cython

from fastpipe.engine.batching cimport REASON_COUNT
from fastpipe.engine.parking cimport Frame, enter_frame, leave_frame, now_ns


cdef extern from "Python.h":
    int PyContextVar_Get(PyObject* variable, PyObject* default_value, PyObject** value) except -1


@cython.final
cdef class Tracer:
    """Which requests are followed; ``spans`` is told of them, see ``_Spans`` in the ``.pyi``.

    ``variable``: the context variable that has a dict where a call may have a span around it, in which the span is under
    ``spans.key``. None: one of them is not known, and ``spans`` is asked for each request. ``sample``: the share of all others.
    """

    def __cinit__(self, object spans, object variable, double sample):
        self.spans = spans
        self.variable = None if spans.key is None else variable
        self.key = spans.key
        self.sample = <uint64_t>(sample * 2.0 ** 53)
        self.dice = <uint64_t>now_ns() | 1

    cdef object c_span_context(self, object context):
        """Of the span around a call, its context; None: there is no span."""
        cdef PyObject* found = NULL
        cdef object around = None
        if self.variable is None:
            return self.spans.around(context)
        if context is not None:
            around = context.get(self.variable)
        else:
            PyContextVar_Get(<PyObject*>self.variable, NULL, &found)
            if found != NULL:
                around = <object>found
                Py_DECREF(around)
        if not around:
            return None
        span = around.get(self.key)                             # there may be others' things: baggage
        return None if span is None else span.get_span_context()

    cdef c_bool c_follows(self, object context) except *:
        """True if the span around this call is sampled; or if there is none, and it is one of the sample."""
        parent = self.c_span_context(context)
        if parent is not None and parent.is_valid:
            return parent.trace_flags.sampled
        self.dice ^= self.dice << 13
        self.dice ^= self.dice >> 7
        self.dice ^= self.dice << 17
        return (self.dice >> 11) < self.sample

    cdef int c_begin(self, Walk walk, object context) except -1:
        """A request is being let in. ``context``: its caller's, if this is not its thread."""
        cdef Frame* frame = NULL
        try:
            if not self.c_follows(context):
                return 0
            frame = enter_frame(<void*>walk.engine, True, current_greenlet())
            begun = self.spans.begin(walk.entry.node.name, context, max(now_ns() - walk.entered_ns, 0))
            if begun is not None:
                walk.span, walk.context = begun
                walk.tracer = self
                self.followed += 1
        except Exception as error:
            report(error, self.spans)
        finally:
            if frame != NULL:
                leave_frame(frame)
        return 0

    cdef int c_end(self, Walk walk, c_bool is_cancelled, Turn turn) noexcept:
        """A request that is followed has ended. A part's span is its whole's."""
        cdef object span = walk.span
        cdef Frame* frame
        if walk.is_part:
            return 0
        walk.span = None
        self.followed -= 1
        frame = enter_frame(<void*>walk.engine, True, current_greenlet())
        try:
            self.spans.end(span, walk.error, is_cancelled)
        except Exception as error:
            report(error, self.spans)
        except BaseException as error:
            note_interrupt(turn, error)
        if frame != NULL:
            leave_frame(frame)
        return 0

    cdef tuple c_enter_batch(self, Station station, Instance instance, list visits, Turn turn):
        """A batch begins. What c_leave_batch is to be given, or None: none of its requests is followed."""
        cdef Visit visit
        cdef Walk root
        cdef list followed = None
        cdef int64_t now = 0
        cdef Py_ssize_t index
        cdef Frame* frame
        for index in range(len(visits)):
            visit = <Visit>visits[index]
            root = root_of(visit.walk)
            if root.span is None or root.tracer is not self:
                continue
            if followed is None:
                followed = []
                now = now_ns()
            waited = now - visit.ticket.arrival_ns if 0 < turn.why <= REASON_COUNT else 0
            followed.append((index, root.span, waited))
        if followed is None:
            return None
        frame = enter_frame(station.engine, True, current_greenlet())
        try:
            return self, self.spans.run(station.name, station.numbers[instance.index], len(visits), followed)
        except Exception as error:
            report(error, self.spans)
        finally:
            if frame != NULL:
                leave_frame(frame)
        return None

    cdef int c_give_up_batch(self, tuple begun, object failure, Turn turn) noexcept:
        """It hangs: the requests go on without it. c_leave_batch is called all the same, should it come back."""
        try:
            self.spans.gave_up(begun[1], failure)
        except Exception as error:
            report(error, self.spans)
        except BaseException as error:
            note_interrupt(turn, error)
        return 0

    cdef int c_leave_batch(self, tuple begun, object failure, list batch, list visits, Turn turn) noexcept:
        """It has come back, or raised ``failure``."""
        cdef Frame* frame = enter_frame(<void*>(<Visit>visits[0]).walk.engine, True, current_greenlet())
        try:
            self.spans.ran(begun[1], failure, batch, [(<Visit>visit).request for visit in visits])
        except Exception as error:
            report(error, self.spans)
        except BaseException as error:
            note_interrupt(turn, error)
        if frame != NULL:
            leave_frame(frame)
        return 0
