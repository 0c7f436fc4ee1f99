# Failures: the error of each request is its own, and says where it comes from.
#
# Guarantees   What makes an error raises none: without memory for it, that is the error. A copy is made of what somebody else keeps.

from fastpipe.errors import BackendError, BackendHung, DeviceLost, NoResult, PipeClosed, QueueFull, RequestTimeout, WorkerDied
from fastpipe.errors import keys_in_brief
from fastpipe.faults import own_copy, stacks, take_traceback, text_of


cdef object lost_error(Visit visit, object cause):
    """The error of a visit whose node is lost: one of its own, caused by what happened there."""
    cdef str where
    try:
        where = f"node {visit.node.name!r}{at_place(visit.node.station)}"
        if issubclass(type(cause), BackendHung):
            return BackendHung(f"{where} has no instance left: {text_of(cause)}", cause.stacks)
        error = DeviceLost(f"{where} has lost its device: {type(cause).__name__}: {text_of(cause)}")
        error.node = visit.node.name                            # to a backend that calls this pipe, it is somebody else's device
        error.__cause__ = copy_of(cause)
        return error
    except BaseException as unexpected:                         # no memory for an error: then that is the error
        return unexpected


cdef void add_note(object error, str note) noexcept:
    try:
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
    except BaseException:  # an exception class may forbid it; its own message is what matters
        pass


cdef object death_error(object cause):
    """The error of a request that was in the hands of a thread which has met an error of its own. Raises nothing."""
    try:
        error = WorkerDied(f"the thread that had this request met {type(cause).__name__}: {text_of(cause)}")
        error.__cause__ = copy_of(cause)
        return error
    except BaseException as unexpected:                         # no memory for an error: then that is the error
        return unexpected


cdef object closed_error(str why):
    """A PipeClosed of a request's own. Raises nothing."""
    try:
        return PipeClosed(why)
    except BaseException as unexpected:
        return unexpected


cdef object hung_error(Station station, Visit visit, int index, int count, str where):
    """A BackendHung of a request's own. Raises nothing."""
    try:
        error = BackendHung(f"the backend did not return within the hang_timeout of {station.hang_ns / 1e9:g} s", where)
        return with_batch(error, visit, station.numbers[index], count)
    except BaseException as unexpected:
        return unexpected


cdef str stacks_now():
    try:
        return stacks()
    except BaseException as error:                              # no memory for them: what follows matters more
        return f"(not known: {type(error).__name__})"


def _as_raised(error, bint is_awaited=False):
    """What comes out of an iterator, or of an ``await``, for a request's ``error``: itself, or what can come out in its place.

    A StopIteration, or a StopAsyncIteration where it is awaited, would end what iterates as if there were nothing more; and
    whatever is no Exception would end the coroutine that awaits, or its event loop.
    """
    ends = (StopIteration, StopAsyncIteration) if is_awaited else StopIteration
    if not issubclass(type(error), ends) and (not is_awaited or issubclass(type(error), Exception)):
        return error
    way = "await" if is_awaited else "an iterator"
    replacement = BackendError(f"a backend raised {type(error).__name__}: {text_of(error)}; as that cannot come out of {way} "
                               "without ending more than the call, this is raised in its place")
    replacement.__cause__ = error
    for note in getattr(error, "__notes__", ()):
        replacement.add_note(note)
    return replacement


cdef object late_error(Walk walk):
    """The error of a request whose time is over. Raises nothing."""
    try:
        return RequestTimeout(f"the request did not end within {walk.timeout_s:g} s")
    except BaseException as unexpected:                         # no memory for it: then that is the error
        return unexpected


cdef int reason_of(object error) noexcept:
    """Why a request failed, for stats()."""
    kind = type(error)                                          # isinstance() may call what users wrote
    if issubclass(kind, RequestTimeout):
        return TIMED_OUT
    if issubclass(kind, QueueFull):
        return CROWDED_OUT
    if issubclass(kind, PipeClosed):
        return CLOSED
    if issubclass(kind, BackendHung):
        return HUNG
    if issubclass(kind, WorkerDied):
        return DIED
    if issubclass(kind, NoResult):
        return WITHOUT_RESULT
    return LOST if issubclass(kind, DeviceLost) else OTHER


cdef int collect_error(list errors, object error, int index, int count) except -1:
    """Note the failure of one request of a list."""
    if error is None:
        return 0
    if issubclass(type(error), KeyboardInterrupt) and PyThread_get_thread_ident() == _main_thread:
        raise error                                             # Ctrl-C: nobody looks for it in a group
    add_note(error, f"fastpipe: request {index} of a list of {count}")
    errors.append(error)
    return 0


cdef int raise_errors(list errors, int count) except -1:
    if errors:
        raise BaseExceptionGroup(f"{len(errors)} of {count} requests failed", errors)
    return 0


cdef dict checked_item_errors(object error, list batch, list alive):
    """What ItemErrors says, by place in ``alive``; if it says nonsense, that every item failed because of it."""
    try:
        return error.by_position(batch, [(<Visit>visit).request for visit in alive])
    except BackendError as wrong:
        return dict.fromkeys(range(len(alive)), wrong)


cdef Py_ssize_t _count_holders(object error):
    cdef object own = error                                     # as in with_place
    return Py_REFCNT(own)


cdef Py_ssize_t _count_holders_in_except():
    """How many references to an exception there are in with_place if nobody but the ``except`` that calls it has it."""
    try:
        raise BackendError("which nobody keeps")
    except BaseException as error:
        return _count_holders(error)


# Counted, as it is Cython's own affair.
cdef Py_ssize_t _holders_in_except = _count_holders_in_except()


cdef object with_place(object error, Node node):
    """Give an exception that was raised for one request the note that says at which node. Raises nothing.

    One that somebody keeps is copied: the filter, for instance, which raises it again for the next request.
    """
    cdef object own = error
    cdef object traceback
    try:
        if Py_REFCNT(error) > _holders_in_except:
            traceback = traceback_for_copies(error)
            own = copy_of(error)
            error.__traceback__ = traceback
        add_note(own, f"fastpipe: node {node.name!r}, backend {node.backend_name}")
    except BaseException:                                       # no memory for a note
        pass
    return own


cdef int note_part(Walk part, Node node) except -1:
    """Add the note that says which part of a request has failed."""
    add_note(part.error, f"fastpipe: part {part.sink_index} of node {node.name!r}")
    return 0


cdef object copy_of(object error):
    """A copy of an exception for one more request. Raises nothing."""
    cdef int _attempt
    for _attempt in range(MOST_ATTEMPTS):
        try:
            return own_copy(error)
        except BaseException as unexpected:
            note_interrupt(None, unexpected)
    return error


cdef object traceback_for_copies(object error):
    """What an exception's traceback is to be again, once copies of it are made; see take_traceback. Raises nothing."""
    try:
        return take_traceback(error)
    except BaseException:
        return error.__traceback__


cdef object with_batch(object error, Visit visit, int instance, int batch_size):
    """Add the note that says where an exception of a backend comes from. Raises nothing."""
    cdef Node node = visit.node
    cdef str place
    try:
        place = f"fastpipe: node {node.name!r}, backend {node.backend_name}, instance {instance}, batch of {batch_size}"
        if issubclass(type(error), KeyError):
            place += f"; the request's keys are {keys_in_brief(visit.request)}"
        add_note(error, place)
    except BaseException:                                       # no memory for a note
        pass
    return error
