# User code: the two ways into it (E6), and what the engine asks of it about a request.
#
# Guarantees   While it runs, a Frame says in which engine, batch and station this thread is: close(), cancelled(), greenlets and
#              the look for loops of calls rely on it. What it raises is raised to the caller.
# Assumes      No mutex is held.

from cpython.dict cimport PyDict_GetItem
from cpython.exc cimport PyErr_SetInterrupt, PyErr_SetObject, PyErr_WriteUnraisable
from libcpp.atomic cimport memory_order_relaxed
from posix.unistd cimport _exit

from fastpipe.engine.parking cimport Frame, enter_frame, leave_frame

from opcode import opmap

from fastpipe.errors import BackendError, PipeError, in_brief, keys_in_brief, nearest
from fastpipe.faults import is_engines
from fastpipe.filters import Status

cdef enum:
    _CHILD_HAS_RETURNED = 70                                    # EX_SOFTWARE of sysexits.h

cdef object _current_greenlet = None    # greenlet.getcurrent, where the process has greenlets


def know_greenlets(getcurrent):
    """Tell the engine how to find out which greenlet runs: of two on a thread, either may be in a backend."""
    global _current_greenlet
    _current_greenlet = getcurrent


cdef inline const void* current_greenlet() noexcept:
    if _current_greenlet is None:
        return NULL
    return _ask_for_greenlet()


cdef const void* _ask_for_greenlet() noexcept:
    greenlet = _current_greenlet()
    return <const void*>greenlet


cdef object enter_user_code(const void* engine, object function, object argument, object second=None):
    # The place where the engine calls what users wrote: filters, rules, buckets, weights, split and merge.
    # (Callbacks of futures are called by settle.) The frame lets close() know that it is called from in there.
    cdef Frame* frame = enter_frame(engine, False, current_greenlet())
    if frame == NULL:
        raise MemoryError
    try:
        if second is None:
            return function(argument)
        return function(argument, second)
    finally:
        leave_frame(frame)


cdef object run_backend(const void* engine, object forward, list batch, list visits, Station station):
    # The same for a backend's forward(): cancelled() can tell which requests it runs.
    cdef Frame* frame = enter_frame(engine, False, current_greenlet())
    if frame == NULL:
        raise MemoryError
    frame.batch = <void*>visits
    frame.station = <void*>station
    try:
        return forward(batch)
    finally:
        leave_frame(frame)


cdef object wrong_return(object returned, list visits):
    """The error of a forward() that has returned something."""
    return BackendError(f"forward() of {(<Visit>visits[0]).node.backend_name} returned {type(returned).__name__}; it must fill in "
                        "request['result'] and return nothing")


cdef void report(object error, object where) noexcept:
    """Tell sys.unraisablehook of an exception that has nobody to be raised to."""
    PyErr_SetObject(type(error), error)
    PyErr_WriteUnraisable(where)


cdef void end_child(object backend) noexcept:
    """End the child of a fork in which forward() has returned to a worker: nobody there fills its queue, or has asked."""
    report(PipeError("forward() has forked, and has returned in the child as well, where no caller waits for it. The child ends "
                     "here. End it in forward(), with os._exit() or os.exec...()"), backend)
    _exit(_CHILD_HAS_RETURNED)


cdef int note_interrupt(Turn turn, object error) noexcept:
    """Keep an exception that has ended a call which raises none by itself: a signal's, or one that another thread sent.

    The call of the pipe that this thread is in raises it, or it ends the worker. A lack of memory is over by then.
    """
    if issubclass(type(error), MemoryError):
        return 0
    if turn is not None and turn.is_workers:
        if turn.death is None:
            turn.death = error
    elif turn is not None and turn.interrupt is None:
        turn.interrupt = error
    elif issubclass(type(error), KeyboardInterrupt) and PyThread_get_thread_ident() == _main_thread:
        PyErr_SetInterrupt()                                    # as if it came a moment later
    elif turn is None or turn.interrupt is not error:
        report(error, None)
    return 0


cdef int64_t size_of(object request) except -1:
    """How many bytes a request's data has, as far as one can see: bytes, arrays, and lists of them."""
    data = request.get("data")
    return _bytes_in(data) if not isinstance(data, (list, tuple)) else sum([_bytes_in(each) for each in data])


cdef int64_t _bytes_in(object data) except -1:
    if isinstance(data, (bytes, bytearray, str)):
        return len(data)
    size = getattr(data, "nbytes", 0)
    return size if isinstance(size, int) and size > 0 else 0


cdef object bucket_of(Visit visit):
    cdef PyObject* found
    bucket = visit.node.bucket
    if not isinstance(bucket, str):
        return enter_user_code(<void*>visit.walk.engine, bucket, visit.request)
    found = PyDict_GetItem(visit.request, bucket)
    if found == NULL:
        keys = [key for key in visit.request if isinstance(key, str)]
        raise KeyError(f"node {visit.node.name!r}: bucket: the request has no key {bucket!r}, by which the node forms its "
                       f"batches; its keys are {keys_in_brief(keys)}{nearest(bucket, keys)}")
    return <object>found


cdef double weight_of(Visit visit) except? -1:
    """What a visit weighs; its ticket knows it from now on."""
    cdef Node node = visit.node
    cdef double weight
    if node.weigh is not None:
        weight = enter_user_code(<void*>visit.walk.engine, node.weigh, visit.request)
    else:
        size = visit.request.get("request_size")
        if size is None:
            visit.ticket.weight = 1.0
            return 1.0
        weight = size
    if not 0 < weight <= node.station.max_batch:
        raise ValueError(f"the request weighs {weight:g}; node {node.name!r} takes more than 0 and up to {node.station.max_batch}")
    if weight != 1.0:
        node.station.has_weights.store(1, memory_order_relaxed)
    visit.ticket.weight = weight
    return weight


cdef double weight_alone(Visit visit) except? -1:
    """The same of one that does not go through the queue, with the errors that it would meet on the way through it."""
    cdef Station station = visit.node.station
    cdef double weight
    cdef int64_t version
    while True:
        version = station.version
        weight = weight_of(visit)
        if isinstance(visit.node.bucket, str):
            hash(bucket_of(visit))
        if station.version == version:                          # else users' code has run, and others are to be asked now
            return weight


cdef int checked_status(object status, Node node) except -1:
    if isinstance(status, Status):
        return status
    raise BackendError(f"the filter of node {node.name!r} must return a fastpipe.Status; it returned {in_brief(status)}")


cdef object _RESUME = opmap["RESUME"]


cdef c_bool has_begun(object error) noexcept:
    """False if an exception comes from a signal, another thread or a lack of memory that ended a call before its first line."""
    cdef object innermost = None
    cdef int depth = 0
    try:
        traceback = error.__traceback__
        while traceback is not None:
            if not is_engines(traceback.tb_frame.f_code):
                innermost = traceback
                depth += 1
            traceback = traceback.tb_next
        if depth == 0:
            return issubclass(type(error), Exception) and not issubclass(type(error), MemoryError)
        return depth > 1 or innermost.tb_frame.f_code.co_code[innermost.tb_lasti] != _RESUME
    except BaseException:
        return True
