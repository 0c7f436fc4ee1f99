# Traces: a tracer is told of the requests that it follows: when one is let in, around each of its batches, and of its end.
#
# Guarantees   Without a tracer, one look at a pointer. A request without a span around it that is not among the sample costs a random
#              number, and no call of Python. What a tracer raises fails no request.
# Assumes      The GIL. tracer: observe/traces.py; the methods that are called are in _core.pyi.

from fastpipe.engine.batching cimport REASON_COUNT
from fastpipe.engine.parking cimport now_ns


cdef extern from "Python.h":
    int PyContextVar_Get(PyObject* variable, PyObject* default_value, PyObject** value) except -1


cdef c_bool _is_followed(Engine engine) except *:
    """True if the tracer is to be asked: there may be a span around this call, or it is one of the sample."""
    cdef PyObject* found = NULL
    if engine.span_variable is None:
        return True
    PyContextVar_Get(<PyObject*>engine.span_variable, NULL, &found)
    if found != NULL:
        around = <object>found
        Py_DECREF(around)
        if around:
            return True
    engine.dice ^= engine.dice << 13
    engine.dice ^= engine.dice >> 7
    engine.dice ^= engine.dice << 17
    return (engine.dice >> 11) < engine.sample


cdef int begin_trace(Engine engine, Walk walk, object context) except -1:
    """Ask the tracer whether it follows a request that is being let in. ``context``: its caller's, if this is not its thread."""
    try:
        if context is not None:
            begun = engine.tracer.begin(walk.entry.node.name, context)
        elif _is_followed(engine):
            begun = engine.tracer.begin(walk.entry.node.name, None)
        else:
            return 0
        if begun is not None:
            walk.span, walk.context = begun
            walk.tracer = engine.tracer
    except Exception as error:
        report(error, engine.tracer)
    return 0


cdef object begin_spans(Station station, Instance instance, list visits, Turn turn):
    """Tell the tracer that a batch begins; what end_spans is to be given, or None: it follows none of its requests."""
    cdef Visit visit
    cdef Walk root
    cdef Walk first = None
    cdef list followed = None
    cdef int64_t now = now_ns()
    cdef Py_ssize_t index
    for index in range(len(visits)):
        visit = <Visit>visits[index]
        root = root_of(visit.walk)
        if root.span is None:
            continue
        if followed is None:
            followed = []
            first = root
        waited = now - visit.ticket.arrival_ns if 0 < turn.why <= REASON_COUNT else 0
        followed.append((index, root.span, waited))
    if followed is None:
        return None
    try:
        return first.tracer, first.tracer.run(station.name, station.numbers[instance.index], len(visits), followed)
    except Exception as error:
        report(error, first.tracer)
    return None


cdef int end_spans(object begun, object failure, list batch, list visits, Turn turn) noexcept:
    """Tell the tracer that the batch has returned, or what it raised."""
    try:
        tracer, running = begun
        tracer.ran(running, failure, batch, [(<Visit>visit).request for visit in visits])
    except Exception as error:
        report(error, None)
    except BaseException as error:
        note_interrupt(turn, error)
    return 0


cdef int end_trace(Walk walk, c_bool is_cancelled, Turn turn) noexcept:
    """Tell the tracer how a request has ended."""
    cdef object span = walk.span
    if walk.is_part:                                            # its span is its whole's
        return 0
    walk.span = None
    try:
        walk.tracer.end(span, walk.error, is_cancelled)
    except Exception as error:
        report(error, walk.tracer)
    except BaseException as error:
        note_interrupt(turn, error)
    return 0
