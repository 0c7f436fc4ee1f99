# Contexts: the caller's context variables (contextvars), for what runs of its request on other threads than its own; and what the
# engine asks of user code about one request: there.
#
# Guarantees   A request that is alone in its batch finds them as its caller had them; in company each request's are at hand
#              (context_of). One context serves a request from node to node. What a backend sets is seen by no other request,
#              but for what it sets in company, or on its caller's thread: there it is called like any function.
# Assumes      The GIL. Whoever queues a walk for the first time is on its caller's thread, or has given it a context before.
#              Nobody else ever gets hold of a walk's context, so that is_context_entered says whether it can be entered. (They
#              share no_variables, which is never entered.)

from cpython.contextvars cimport PyContext_Copy, PyContext_CopyCurrent, PyContext_New
from cpython.dict cimport PyDict_GetItem
from libcpp.atomic cimport memory_order_relaxed

from fastpipe.engine.parking cimport innermost_batch

from fastpipe.errors import PipeError, keys_in_brief, nearest

# The context of all requests whose callers have set no variable. Nobody enters it.
cdef object no_variables = PyContext_New()


cdef inline int keep_context(Walk walk) except -1:
    """Keep the context variables of this thread for a walk that is about to be queued, if it has none."""
    cdef Walk root = root_of(walk)
    cdef object context
    if root.context is None:
        context = PyContext_CopyCurrent()
        root.context = context if len(context) != 0 else no_variables
    return 0


cdef object ask_about(Walk walk, Turn turn, object function, object argument, object second=None):
    """Call what users wrote for one request, a filter say, or a part of it: in its caller's context variables.

    ``turn``: this thread's. On the caller's own thread, and before the request was queued, they are the current ones.
    """
    cdef Walk root = root_of(walk)
    cdef PyObject* context
    if root.context is None or turn is None or is_at_home(root, turn):
        return enter_user_code(<void*>walk.engine, function, argument, second)
    context = root.c_enter_context(turn)
    try:
        return enter_user_code(<void*>walk.engine, function, argument, second)
    finally:
        root.c_leave_context(context)


cdef object bucket_of(Visit visit, Turn turn):
    cdef PyObject* found
    bucket = visit.node.bucket
    if not isinstance(bucket, str):
        return ask_about(visit.walk, turn, bucket, visit.request)
    found = PyDict_GetItem(visit.request, bucket)
    if found == NULL:
        keys = [key for key in visit.request if isinstance(key, str)]
        raise KeyError(f"node {visit.node.name!r}: bucket: the request has no key {bucket!r}, by which the node forms its "
                       f"batches; its keys are {keys_in_brief(keys)}{nearest(bucket, keys)}")
    return <object>found


cdef double weight_of(Visit visit, Turn turn) except? -1:
    """What a visit weighs; its ticket knows it from now on."""
    cdef Node node = visit.node
    cdef double weight
    if node.weigh is not None:
        weight = ask_about(visit.walk, turn, node.weigh, visit.request)
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


cdef int32_t length_of(Visit visit, Turn turn) except? -1:
    """How long a visit is, where a batch is padded to its longest."""
    cdef object length = ask_about(visit.walk, turn, visit.node.length_of, visit.request)
    if not isinstance(length, int) or not 0 < length < 1 << 31:
        raise ValueError(f"length_of must return a whole number from 1 to {(1 << 31) - 1}; node {visit.node.name!r} got {length!r}")
    return length


cdef object _copy_of_context(Visit visit, list batch):
    """The context of one visit of the batch that this thread runs. Alone, or on its caller's thread, that is the current one."""
    cdef Walk root = root_of(visit.walk)
    return PyContext_CopyCurrent() if len(batch) == 1 or root.context is None else PyContext_Copy(root.context)


cdef Visit find_visit(object request):
    """Which of the batch that this thread runs a request is; None: it is not one of them."""
    cdef void* batch = innermost_batch(current_greenlet())
    if batch != NULL:
        for visit in <list>batch:
            if (<Visit>visit).request is request:
                return <Visit>visit
    return None


cdef c_bool is_in_company() noexcept:
    """True if this thread is in a backend that runs several requests, so that its context is none of theirs."""
    cdef void* batch = innermost_batch(current_greenlet())
    return batch != NULL and len(<list>batch) > 1


cdef int give_contexts(list walks, list splits, list requests) except -1:
    """Give parts, which a backend runs for the requests of its batch, the context and the span of the one that each is a part of."""
    cdef Walk walk
    cdef Walk root
    cdef Visit visit
    cdef Py_ssize_t start = 0
    for parts, request in zip(splits, requests, strict=True):
        visit = find_visit(request)
        root = None if visit is None else root_of(visit.walk)   # None: a backend has made dicts of its own
        for walk in walks[start:start + len(parts)]:
            if root is None or root.context is None or not is_in_company():
                walk.context = PyContext_CopyCurrent()
            else:
                walk.context = PyContext_Copy(root.context)
            if root is not None:
                walk.span = root.span
                walk.tracer = root.tracer
        start += len(parts)
    return 0


def contexts_of_batch():
    """Inside a backend's ``forward``, or a ``@batched`` function: what ``context_of`` gives, for all that it was given, in order.

    Raises:
        PipeError: no backend runs on this thread.
    """
    cdef void* batch = innermost_batch(current_greenlet())
    cdef list contexts = []
    if batch == NULL:
        raise PipeError("contexts_of_batch() is for a backend's forward(), or a @batched function, and none runs on this thread")
    for visit in <list>batch:
        contexts.append(_copy_of_context(<Visit>visit, <list>batch))
    return contexts


def context_of(request):
    """Inside a backend's ``forward``: the context variables with which one of its requests came, as a copy of its own.

    Alone in a batch, a request's context is the current one already. In company no request's is: ``context_of(request)[var]``
    and ``.get(var)`` read from it, ``.run(function)`` calls a function in it. What is set in the copy is not seen elsewhere.

    Raises:
        PipeError: no backend runs on this thread, or its batch does not hold this very dict.
    """
    cdef void* batch = innermost_batch(current_greenlet())
    cdef Visit visit = find_visit(request)
    if visit is not None:
        return _copy_of_context(visit, <list>batch)
    is_inside_forward = batch != NULL
    where = "this is none of the dicts in that batch" if is_inside_forward else "no backend runs on this thread"
    raise PipeError("context_of() is for a request of the batch that the calling thread runs, inside forward(), and "
                    f"{where}. Ask before work is handed to other threads, and hand them what context_of() returned")


def _place_in_batch(request):
    """Whether this thread runs a batch with this very dict, and a request's own context; None: that is the current one."""
    cdef Visit visit = find_visit(request)
    if visit is None:
        return False, None
    return True, _copy_of_context(visit, <list>innermost_batch(current_greenlet())) if is_in_company() else None


cdef double weight_alone(Visit visit, Turn turn) except? -1:
    """The same of one that does not go through the queue, with the errors that it would meet on the way through it."""
    cdef Station station = visit.node.station
    cdef double weight
    cdef int64_t version
    while True:
        version = station.version
        weight = weight_of(visit, turn)
        if isinstance(visit.node.bucket, str):
            hash(bucket_of(visit, turn))
        if station.version == version:                          # else users' code has run, and others are to be asked now
            return weight
