# Futures: handing an outcome to a RequestFuture, or to an event loop, whatever ends a call in the middle (E9).

from cpython.ref cimport Py_DECREF

from _thread import start_new_thread


cdef int hand_out(Turn turn) noexcept:
    """Hand outcomes to futures: this runs callbacks that users have attached."""
    cdef Walk walk
    while turn.settled_first != NULL:
        walk = <Walk>turn.settled_first
        if walk.sink_kind == SINK_ASYNCIO:
            _settle_in((<tuple>walk.sink)[0], turn)
            continue
        walk = first_settled(turn)
        if walk.sink_kind == SINK_STREAM:
            (<ChunkStream>walk.sink).c_end(walk.error, turn)
        elif walk.error is None:
            end_future(<FutureCore>walk.sink, _FINISHED, walk.request, None, turn)
        else:
            end_future(<FutureCore>walk.sink, _FINISHED, None, walk.error, turn)
        walk.sink = None                                        # breaks the cycle future -> callback -> walk -> future
    return 0


cdef int _settle_in(object loop, Turn turn) noexcept:
    """The same for all the futures of an event loop: its thread does it, in one go."""
    cdef list outcomes
    cdef PyObject* each
    cdef Walk walk
    cdef Walk before = None
    cdef int _attempt
    for _attempt in range(MOST_ATTEMPTS):
        try:
            outcomes = []
            each = turn.settled_first
            while each != NULL:
                walk = <Walk>each
                if walk.sink_kind == SINK_ASYNCIO and (<tuple>walk.sink)[0] is loop:
                    outcomes.append(((<tuple>walk.sink)[1], walk.request, walk.error))
                each = walk.settled_after
            loop.call_soon_threadsafe(_settle_in_loop, outcomes)
            break
        except RuntimeError:                                    # the loop is closed: nobody is there to be told
            break
        except BaseException as error:                          # if it was done all the same, twice does no harm
            note_interrupt(turn, error)
    each = turn.settled_first
    while each != NULL:
        walk = <Walk>each
        each = walk.settled_after
        if walk.sink_kind != SINK_ASYNCIO or (<tuple>walk.sink)[0] is not loop:
            before = walk
            continue
        if before is None:
            turn.settled_first = each
        else:
            before.settled_after = each
        if each == NULL:
            turn.settled_last = <PyObject*>before if before is not None else NULL
        Py_DECREF(walk)                                         # ``walk`` holds it
        walk.sink = None
    return 0


cdef int tell_waiter(Waiter waiter, object error, Turn turn) noexcept:
    """Have the future of a coroutine whose request was not let in settled by its loop."""
    cdef int _attempt
    if type(waiter.sink) is ChunkStream:
        (<ChunkStream>waiter.sink).c_end(error, turn)
        return 0
    for _attempt in range(MOST_ATTEMPTS):
        try:
            waiter.sink[0].call_soon_threadsafe(_settle_in_loop, [(waiter.sink[1], waiter.request, error)])
            return 0
        except RuntimeError:                                    # the loop is closed: nobody is there to be told
            return 0
        except BaseException as unexpected:                     # if it was done all the same, twice does no harm
            note_interrupt(turn, unexpected)
    return 0


cdef c_bool _lock_future(object condition, Turn turn, c_bool* is_held=NULL) noexcept:
    """Take the lock of a future that has one; False if that fails again and again. Its own ``with`` is not safe from signals.

    With ``is_held``, False as well, and that is True, if it is not to be had for long. Whoever has it holds it for moments;
    but a signal's handler may stop that thread between two lines of ``result()``, and then call the pipe: it would wait
    for the thread that waits for the lock.
    """
    cdef int _attempt
    for _attempt in range(MOST_ATTEMPTS):
        try:                                                    # the lock's own method, not written in Python
            if is_held == NULL:
                condition.acquire()
            elif not condition.acquire(False) and not condition.acquire(True, LONGEST_HELD_S):
                is_held[0] = True
                return False
            return True
        except BaseException as error:
            note_interrupt(turn, error)
    return False


cdef int _unlock_future(object condition, Turn turn) noexcept:
    cdef int _attempt
    for _attempt in range(MOST_ATTEMPTS):
        try:
            condition.release()
            return 0
        except RuntimeError:                                    # it has been released
            return 0
        except BaseException as error:
            note_interrupt(turn, error)
    return 0


cdef c_bool start_future(FutureCore future, Turn turn) noexcept:
    """Tell a future that its request starts, or ends; False if its owner has cancelled it."""
    cdef c_bool is_held = False                                 # then without: no line of Python comes in between
    cdef object condition = future.condition
    cdef c_bool is_locked = condition is not None and _lock_future(condition, turn, &is_held)
    cdef c_bool is_wanted = future.state == _PENDING or future.state == _RUNNING
    if is_wanted:
        future.state = _RUNNING
    if is_locked:
        _unlock_future(condition, turn)
    if not is_wanted:
        end_future(future, _CANCELLED, None, None, turn)        # those who wait for it are to know
    return is_wanted


cdef int end_future(FutureCore future, str state, object request, object error, Turn turn, c_bool is_patient=False) noexcept:
    """Give a RequestFuture its outcome and tell everybody, as its set_result(), set_exception() or cancel() would.

    Those are written in Python: a signal between two of their lines leaves a future pending for ever, or one that has an
    outcome of which nobody was told. Here only what others have written is Python, and it is called again (E9).
    """
    cdef c_bool is_held = False
    cdef object condition = future.condition                    # none: there is none before the state is what it is to be
    cdef c_bool is_locked = condition is not None and _lock_future(condition, turn, <c_bool*>NULL if is_patient else &is_held)
    cdef str before
    cdef str how = None
    if is_held:
        try:
            start_new_thread(_end_held_future, (future, state, request, error))
            return 0
        except BaseException as unexpected:                     # no thread, no memory: then this one waits
            note_interrupt(turn, unexpected)
        is_locked = _lock_future(condition, turn)
    before = future.state
    if before == _CANCELLED or (state == _CANCELLED and (before == _PENDING or before == _RUNNING)):
        how = "add_cancelled"
        future.state = _NOTIFIED
    elif before == _PENDING or before == _RUNNING:
        how = "add_result" if error is None else "add_exception"
        future.request = request
        future.error = error
        future.state = _FINISHED
    future.walk = None                                          # whoever keeps the future keeps no pipe alive
    if how is not None and condition is not None:
        _notify_all(condition, turn)
    if how is not None and future.waiters:
        _tell_waiters(future, future.waiters, how, turn)
    if is_locked:
        _unlock_future(condition, turn)
    if how is not None and future.callbacks and before != _CANCELLED:  # else: somebody else has ended it, or called them
        for callback in future.callbacks:
            _call_back(callback, future, turn)
    return 0


cdef int _notify_all(object condition, Turn turn) noexcept:
    """Wake the threads that wait in result() or exception()."""
    cdef int _attempt
    for _attempt in range(MOST_ATTEMPTS):
        try:
            condition.notify_all()
            return 0
        except BaseException as error:
            note_interrupt(turn, error)
    return 0


def _end_held_future(FutureCore future, str state, request, error):
    """The body of a thread that waits for the lock of a future, so that no thread of a pipe has to."""
    cdef Turn turn = Turn.__new__(Turn)
    end_future(future, state, request, error, turn, True)
    turn.c_report_interrupt()


cdef int _tell_waiters(FutureCore future, list waiters, str how, Turn turn) noexcept:
    """Tell wait() and as_completed() of concurrent.futures that a future has ended."""
    cdef int _attempt
    # A signal in the middle could leave a lock of theirs taken, and the main thread is where signals go: so another does it.
    if PyThread_get_thread_ident() == _main_thread:
        for _attempt in range(MOST_ATTEMPTS):
            try:
                start_new_thread(_tell_all, (list(waiters), future, how))
                return 0
            except RuntimeError:                                # there can be no more threads
                break
            except BaseException as error:
                note_interrupt(turn, error)
    interrupt = _tell_all(waiters, future, how)
    if interrupt is not None:
        note_interrupt(turn, interrupt)
    return 0


def _tell_all(list waiters, future, str how):
    """Tell each of them, whatever happens; return what has ended a call in the middle, or None."""
    cdef int _attempt
    interrupt = None
    for waiter in waiters:
        for _attempt in range(MOST_ATTEMPTS):
            try:
                getattr(waiter, how)(future)
                break
            except BaseException as error:
                if not issubclass(type(error), MemoryError):
                    interrupt = error
                try:
                    if is_among(future, waiter.finished_futures):
                        # It knows, but may still sleep. Not here: the event's lock may have been left taken.
                        start_new_thread(waiter.event.set, ())
                        break
                except BaseException:                           # then again, from the beginning
                    pass
    return interrupt


cdef int _call_back(object callback, FutureCore future, Turn turn) noexcept:
    """Call what a user has attached to a future; again, if it was ended before its first line."""
    cdef int _attempt
    for _attempt in range(MOST_ATTEMPTS):
        try:
            callback(future)
            return 0
        except BaseException as error:
            if not has_begun(error):
                note_interrupt(turn, error)
                continue
            if issubclass(type(error), Exception):
                _log_failed_callback(future, error)
            elif turn.is_workers:                               # sys.exit() in a callback does not end a worker
                report(error, callback)
            else:
                note_interrupt(turn, error)
            return 0
    return 0


cdef int _log_failed_callback(FutureCore future, object error) noexcept:
    try:
        future.callback_failed(error)
    except BaseException as unexpected:
        report(unexpected, future)
    return 0


def _settle_in_loop(list outcomes):
    """Settle asyncio futures, in their loop's thread. What ends this in the middle is raised when all are settled."""
    cdef int attempt
    cdef list callbacks
    interrupt = None
    for future, request, error in outcomes:
        callbacks = None
        for attempt in range(MOST_ATTEMPTS):
            try:
                if not future.done():                           # else: cancelled in the meantime
                    callbacks = future._callbacks
                    if error is None:
                        future.set_result(request)
                    else:
                        future.set_exception(_as_raised(error, True))
                elif attempt > 0 and callbacks:
                    _schedule(future, callbacks)
                break
            except BaseException as unexpected:
                if not issubclass(type(unexpected), MemoryError):
                    interrupt = unexpected
    if interrupt is not None:
        raise interrupt


cdef int deliver_news(Mailbox mailbox) except -1:
    """Wake all who await news of a stream, in their loop's thread. What ends this in the middle is raised when all are woken."""
    cdef ChunkStream stream
    cdef list outcomes
    cdef int _attempt
    interrupt = None
    mailbox.is_scheduled = False
    while mailbox.first is not None:
        stream = mailbox.first
        mailbox.first = stream.next_called
        stream.next_called = None
        if mailbox.first is None:
            mailbox.last = None
        stream.is_called = False
        for _attempt in range(MOST_ATTEMPTS):
            try:
                if stream.waiting is not None:
                    outcomes = [(stream.waiting, None, None)]
                    stream.waiting = None
                    _settle_in_loop(outcomes)
                break
            except BaseException as error:                      # no memory for a list: again
                if not issubclass(type(error), MemoryError):
                    interrupt = error
    if interrupt is not None:
        raise interrupt
    return 0


cdef int _schedule(object future, list callbacks) except -1:
    """Have those callbacks of an asyncio future called that are not about to be: its set_result() was ended in the middle."""
    loop = future.get_loop()
    for callback, context in callbacks:
        if not _is_scheduled(loop, future, callback):
            loop.call_soon(callback, future, context=context)
    return 0


cdef c_bool _is_scheduled(object loop, object future, object callback) except *:
    """True if the loop is about to call that callback of a future."""
    for handle in getattr(loop, "_ready", ()):
        if future in (handle._args or ()) and handle._callback is callback:
            return True
    return False
