# Walks: one admitted request on its way, its visits at nodes; and the dicts they have.
#
# Guarantees   E1: Walk.c_end. A caller's dict is read before the request sets out, and written once, by whoever has ended the walk.
# Assumes      The GIL, but for what is atomic.

cimport cython
from cpython.contextvars cimport PyContext_Copy, PyContext_Enter, PyContext_Exit
from cpython.dict cimport PyDict_CheckExact, PyDict_Copy, PyDict_GetItem, PyDict_Next, PyDict_Size, PyDict_Update
from cpython.ref cimport Py_DECREF, Py_INCREF
from libcpp.atomic cimport memory_order_acq_rel, memory_order_acquire

from fastpipe.engine.parking cimport (
    FOREVER, SET, Frame, enter_frame, innermost_batch, is_hooked, leave_frame, now_ns,
)

cdef inline c_bool is_late(Visit visit) noexcept:
    return visit.walk.deadline_ns >= 0 and now_ns() >= visit.walk.deadline_ns


cdef inline int64_t time_in(Turn turn) noexcept:
    """What time it is; while the answers of a batch are handed on, when the batch ended."""
    return turn.ended_ns if turn.ended_ns != 0 else now_ns()


cdef inline c_bool is_over_time(Walk walk, Turn turn) noexcept:
    """True if a walk is too late. A part never is: it ends with the whole, whose time is over, too."""
    return walk.deadline_ns >= 0 and walk.sink_kind != SINK_GATHER and time_in(turn) >= walk.deadline_ns


cdef inline Walk root_of(Walk walk):
    """The request of which a walk is a part, or a part of a part; itself, if it is none."""
    while walk.sink_kind == SINK_GATHER:
        walk = (<Gather>walk.sink).visit.walk
    return walk


cdef inline c_bool is_at_home(Walk root, Turn turn) noexcept:
    """True if this thread, whose turn it is, is in the context of a request's caller, as it is the caller's own."""
    return root.lister == <PyObject*>turn and not turn.is_elsewhere


cdef inline c_bool is_of_coroutine(object sink) noexcept:
    """True of a stream that a coroutine reads."""
    return type(sink) is ChunkStream and (<ChunkStream>sink).loop is not None


cdef c_bool is_part_of(Visit visit, Walk walk) noexcept:
    """True if a visit is one of a walk, or of a part of it."""
    cdef Walk own = visit.walk
    while own is not walk and own.sink_kind == SINK_GATHER:
        own = (<Gather>own.sink).visit.walk
    return own is walk


cdef inline c_bool is_dead(Visit visit) noexcept:
    """True if nobody waits for this visit: its walk ended or has restarted, or that of which it is a part, and none follows it."""
    if visit.walk.outcome.load(memory_order_acquire) != RUNNING or visit.round != visit.walk.restarts:
        return not has_followers(visit)
    return visit.walk.sink_kind == SINK_GATHER and _is_whole_dead(visit)


cdef c_bool _is_whole_dead(Visit part) noexcept:
    """The same of a part, as far as its whole goes. (No sub-graph leads a flight.)"""
    cdef Visit visit = part
    while visit.walk.sink_kind == SINK_GATHER:
        visit = (<Gather>visit.walk.sink).visit
        if visit.walk.outcome.load(memory_order_acquire) != RUNNING or visit.round != visit.walk.restarts:
            return not has_followers(part)
    return False


cdef c_bool has_followers(Visit visit) noexcept:
    """True if a visit leads a flight, and somebody waits for what it will be answered: see caching.pxi."""
    cdef list followers
    cdef Py_ssize_t index
    if visit.flight == NULL:
        return False
    followers = (<Flight>visit.flight).followers
    for index in range(len(followers) - 1, -1, -1):             # the newest is most likely to wait yet
        if not is_dead(<Visit>followers[index]):
            return True
    return False


cdef Visit take_last(list visits):
    """Take the last one out of a list that is not empty. Needs no memory, as list.pop() may: that makes the list smaller."""
    cdef Py_ssize_t last = len(visits) - 1
    cdef Visit visit = <Visit>visits[last]
    Py_SET_SIZE(visits, last)
    Py_DECREF(visit)                                            # ``visit`` holds it
    return visit


cdef int take_out(list items, object item) noexcept:
    """Take an object out of a list, whose order may change. Needs no memory, as list.remove() may, and compares nothing."""
    cdef Py_ssize_t last = len(items) - 1
    cdef Py_ssize_t index
    for index in range(last + 1):
        if items[index] is item:
            tail = items[last]
            items[index] = tail                                 # the caller holds ``item``: no destructor runs
            Py_SET_SIZE(items, last)
            Py_DECREF(tail)                                     # of the slot that is no more
            return 1
    return 0


@cython.final
@cython.freelist(64)
cdef class Walk:
    """One admitted request on its way; ``map`` and ``acall`` keep it as a handle."""

    cdef c_bool c_end(self, uint8_t outcome) noexcept:
        """Claim the one right to end this walk (E1)."""
        cdef uint8_t running = RUNNING
        return self.outcome.compare_exchange_strong(running, outcome, memory_order_acq_rel, memory_order_acquire)

    cdef int c_wait(self, int64_t deadline_ns) except -1:
        """Park until the walk has ended: 1; or until the deadline: 0. Serves signals."""
        if self.word.load(memory_order_acquire) == SET:
            return 1
        if is_hooked(AT_PARK):
            act_at(AT_PARK)
        return wait_for_answer(self, deadline_ns)

    cdef PyObject* c_enter_context(self, Turn turn) except? NULL:
        """Have this thread, which is about to run user code for the request alone, be in its context; what c_leave_context is given.

        NULL: it is in it already, as the caller's own. (Methods, as functions that are called once would be put where they are
        called, which is the direct path.)
        """
        cdef object context = self.context
        if is_at_home(self, turn):
            return NULL
        # A context can be entered once at a time, and another branch, or part, of the request runs in it: a hung one, perhaps.
        if self.is_context_entered:
            context = PyContext_Copy(context)
        elif context is no_variables:
            context = self.context = PyContext_Copy(context)    # its own from now on
        PyContext_Enter(context)
        if context is self.context:
            self.is_context_entered = True
        Py_INCREF(context)                                      # c_leave_context lets go of it
        return <PyObject*>context

    cdef int c_leave_context(self, PyObject* pointer) noexcept:
        cdef object context = <object>pointer
        Py_DECREF(context)
        try:
            PyContext_Exit(context)
            if context is self.context:
                self.is_context_entered = False
        except BaseException as error:                          # a backend has left this thread in a context of its own
            report(error, context)
        return 0

    def wait(self):
        """Block until the request has ended, and return its error or None. A signal's exception cancels the request."""
        check_process(self.engine)
        check_may_wait(self.engine)
        cdef Turn turn
        try:
            if not wait_inside(self.engine, self, self.deadline_ns):
                turn = Turn.__new__(Turn)
                expire_walk(self.engine, self, turn)
                turn.c_raise_interrupt()
        except BaseException:
            cancel_walk(self.engine, self)
            raise
        return self.error

    def cancel(self):
        """Give the request up; True if it had not ended. A backend never sees it if it is still queued."""
        return cancel_walk(self.engine, self) == 1

    def cancel_future(self, FutureCore future not None):
        """The same for a request's future, if no backend has begun with it; True if the future is cancelled."""
        cdef Turn turn = Turn.__new__(Turn)
        if not self.started:
            self.started = True                                 # so that nobody marks the future as running
            if cancel_walk(self.engine, self) == 1:
                end_future(future, _CANCELLED, None, None, turn)
                turn.c_raise_interrupt()
                return True
        return future.cancelled()

    @property
    def finished(self):
        return self.outcome.load(memory_order_acquire) != RUNNING


@cython.final
cdef class Branches:
    """Where the branches of a walk meet, and what they leave to be read."""


@cython.final
@cython.freelist(64)
cdef class Visit:
    """A walk's turn at a node."""


@cython.final
@cython.freelist(16)
cdef class Terms:
    """What a caller asked for."""


@cython.final
cdef class Gather:
    """A sub-graph node waiting for its parts."""


cdef tuple part_of(Walk walk):
    """The indices of the part that a walk is, outermost first; () for a request itself."""
    cdef list path = []
    while walk.sink_kind == SINK_GATHER:
        path.append(walk.sink_index)
        walk = (<Gather>walk.sink).visit.walk
    path.reverse()
    return tuple(path)


cdef Walk new_walk(Engine engine, Entry entry, object request, uint8_t sink_kind, object sink):
    cdef Walk walk = Walk.__new__(Walk)
    walk.engine = engine
    walk.entry = entry
    walk.request = request
    walk.sink_kind = sink_kind
    walk.sink = sink
    walk.home = entry.node.station
    walk.deadline_ns = FOREVER
    if sink_kind == SINK_GATHER:                                # a part is on its whole's terms
        walk.deadline_ns = (<Gather>sink).visit.walk.deadline_ns
        walk.timeout_s = (<Gather>sink).visit.walk.timeout_s
        walk.priority_ns = (<Gather>sink).visit.walk.priority_ns
        walk.stops = (<Gather>sink).visit.walk.stops
        walk.is_part = True
    start_round(walk)
    return walk


cdef inline void hand_in(Walk walk, object request, object given) noexcept:
    """Say whose dict an answer is for, where the walk was admitted with a copy of it."""
    if given is not request:
        walk.given = given
        walk.request = request


cdef int start_round(Walk walk) except -1:
    """Set out from ``walk.entry``: nothing has arrived anywhere, and no dict is kept."""
    cdef Entry entry = walk.entry
    cdef Branches branches = None
    walk.leaves_left = entry.leaf_count
    if entry.readers.size() != 0 or entry.pending.size() != 0:
        branches = Branches.__new__(Branches)
        branches.pending = entry.pending
        branches.readers = entry.readers
        branches.has_run.assign(entry.readers.size(), 0)
        branches.answers = [None] * <Py_ssize_t>entry.readers.size()
    walk.branches = branches
    walk.without = None
    return 0


cdef inline void forget_slot(Branches branches, int32_t slot) noexcept:
    """One reader less: the last one lets go of the dict."""
    branches.readers[slot] -= 1
    if branches.readers[slot] == 0:
        branches.answers[slot] = None


cdef dict own_request(Walk walk):
    """The dict with which a request sets out: a copy of what the caller has handed in, without what it may not say.

    The caller's own is written once, at the end, and only if the request succeeds.
    """
    cdef dict own = PyDict_Copy(walk.request if walk.given is None else walk.given)
    if "result" in own:
        del own["result"]                                       # left over from an earlier call with the same dict
    if not has_only_data(own):
        for key in walk.engine.ignored_keys:
            own.pop(key, None)
        if walk.engine.names_leaf:
            own.pop(_ANSWERED_BY, None)                         # like the result
        if walk.given is None:
            walk.given = PyDict_Copy(own)
    return own


cdef c_bool has_only_data(dict request) noexcept:
    """True if there is no other key: nothing then has to be kept in order to tell what was there from what was set."""
    cdef PyObject* key
    cdef PyObject* value
    cdef Py_ssize_t position = 0
    return (PyDict_Size(request) == 1 and PyDict_Next(request, &position, &key, &value)
            and <object>key is _DATA)


cdef int write_back(Walk walk, dict answer) except -1:
    """Write an answer, or None for a failure, into a caller's dict; a result that it does not have is removed.

    Written is what has been set since the request was handed in. Never ``data``, which is the input of the last node by
    now, nor ``node_name``. A part's dict is the engine's own, and gets all of it.
    """
    cdef Frame* frame
    if PyDict_CheckExact(walk.request):
        return _write(walk, answer, True)
    # A subclass has methods of its own: code of users, who may wait for the pipe in it as little as in callbacks.
    frame = enter_frame(<void*>walk.engine, True, current_greenlet())
    if frame == NULL:
        raise MemoryError
    try:
        return _write(walk, answer, False)
    finally:
        leave_frame(frame)


cdef inline int _write(Walk walk, dict answer, c_bool is_exact) except -1:
    cdef object request = walk.request
    cdef PyObject* key_pointer
    cdef PyObject* value_pointer
    cdef Py_ssize_t position = 0
    cdef c_bool has_result = False
    if answer is not None:
        while PyDict_Next(answer, &position, &key_pointer, &value_pointer):
            key = <object>key_pointer
            value = <object>value_pointer
            if key is _RESULT:
                has_result = True
            elif not walk.is_part:
                if key is _DATA or isinstance(key, str) and (key == "data" or key == "node_name"):
                    continue
                if walk.given is not None and _is_unset(walk, key, value_pointer):
                    continue
            if is_exact:
                (<dict>request)[key] = value
            else:
                request[key] = value                            # a subclass has books of its own
    if not has_result and (answer is None or "result" not in answer) and "result" in request:
        del request["result"]
    if walk.engine.names_leaf and not walk.is_part and (answer is None or _ANSWERED_BY not in answer):
        request.pop(_ANSWERED_BY, None)
    return 0


cdef c_bool _is_unset(Walk walk, object key, PyObject* value) except *:
    """True if no backend has set a key, and the caller's dict is to keep what it has.

    What is as it was before its batch (restore) because a run had changed it in place has been set by nobody: the caller
    gets it for the value that was changed, not for one that it has put there since.
    """
    cdef PyObject* before = PyDict_GetItem(walk.given, key)
    if before == NULL:
        return False
    if before == value:
        return True
    if walk.restored is None or PyDict_GetItem(walk.restored, key) != value:
        return False
    return PyDict_GetItem(walk.request, key) != before


cdef int restore(Visit visit, object before) except -1:
    """Make a request what it was before its batch: by a snapshot, or by a copy of its dict if its values were kept."""
    cdef Walk walk = visit.walk
    if isinstance(before, dict):
        visit.request.clear()
        PyDict_Update(visit.request, before)
        return 0
    for key, was, value in before.put_back(visit.request):
        if walk.given is None or PyDict_GetItem(walk.given, key) == NULL:
            continue
        given = walk.given[key]
        if was is given or walk.restored is not None and walk.restored.get(key) is was:
            if walk.restored is None:
                walk.restored = {}
            walk.restored[key] = value
    return 0


cdef str why_of_parts(list walks):
    """Why a request whose parts these are has no result: what gave none of them one, "": a filter; None: they have some."""
    cdef Walk walk
    cdef str why = None
    for walk in walks:
        if walk.error is None and "result" not in walk.request:
            if walk.without is not None and walk.without[1] != "":
                return step_in_words(walk.without)
            why = ""
    return why


cdef str step_in_words(tuple without):
    cdef Node node
    node, part, _ = without
    return f"{part or node.backend_name} of node {node.name!r}"


cdef c_bool has_others(list visits, Turn turn):
    """True if some visit is of a request that this thread's caller did not bring, or may run for one."""
    for visit in visits:
        if (<Visit>visit).flight != NULL or root_of((<Visit>visit).walk).lister != <PyObject*>turn:
            return True
    return False


cdef c_bool is_unwanted(Visit visit) noexcept:
    """True if nobody waits for a visit in its batch any more: its walk, or that of which it is a part, has ended or is too late."""
    cdef object sink
    if visit.has_left or is_dead(visit) or (is_late(visit) and not has_followers(visit)):
        return True
    sink = root_of(visit.walk).sink
    return type(sink) is ChunkStream and (<ChunkStream>sink).c_is_over()


def cancelled(request=None):
    """Inside a backend: True if nobody waits for any request of the batch that it runs on this thread.

    They were cancelled, have run out of time, or failed in another branch, or whoever read their stream has left. What the
    batch does is then for nothing; a long ``forward`` may look here from time to time and return early. False where no
    backend runs on this thread.

    ``request``: only that one of the batch counts; False of a dict that is not in it.
    """
    cdef void* batch = innermost_batch(current_greenlet())
    if batch == NULL:
        return False
    if request is not None:
        for visit in <list>batch:
            if (<Visit>visit).request is request:
                return is_unwanted(<Visit>visit)
        return False
    for visit in <list>batch:
        if not is_unwanted(<Visit>visit):
            return False
    return True
