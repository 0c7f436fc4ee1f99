# Outcomes: how a walk ends, once (E1), and how whoever waits for it gets to know (E9).
#
# Guarantees   From Walk.c_end on nothing needs memory that may be lacking. A turn gathers whom to wake and which futures to settle.
# Assumes      The GIL.

from cpython.ref cimport Py_DECREF, Py_INCREF
from libcpp.atomic cimport memory_order_relaxed

from fastpipe.engine.parking cimport events_notify, futex_wake, is_hooked, now_ns, word_set


cdef int cancel_all(Engine engine, list walks) except -1:
    for walk in walks:
        cancel_walk(engine, <Walk>walk)
    return 0


cdef void link_walk(Engine engine, Walk walk) noexcept:
    Py_INCREF(walk)                                             # E9: the list owns it
    walk.older = engine.newest
    if engine.newest != NULL:
        (<Walk>engine.newest).newer = <PyObject*>walk
    engine.newest = <PyObject*>walk
    engine.in_flight += 1
    if engine.events is not None:
        engine.events.c_note_request(walk)


cdef void _unlink_walk(Engine engine, Walk walk) noexcept:
    """Take an ended walk off the list of live ones, and tell close() if it was the last. The caller holds the walk."""
    if walk.newer != NULL:
        (<Walk>walk.newer).older = walk.older
    else:
        engine.newest = walk.older
    if walk.older != NULL:
        (<Walk>walk.older).newer = walk.newer
    walk.older = NULL
    walk.newer = NULL
    engine.in_flight -= 1
    if engine.closing and engine.in_flight == 0:
        events_notify(&engine.drained, 0x7fffffff)
    Py_DECREF(walk)


cdef int finish_walk(Engine engine, Walk walk, dict answer, Turn turn) noexcept:
    """End a walk with its answer, once (E1)."""
    if is_over_time(walk, turn):
        return fail_walk(engine, walk, late_error(walk), turn)  # a moment too late is too late: a backend may have given up
    if is_hooked(AT_END):
        act_at_in(AT_END, turn)
    if not _begin_walk(engine, walk, turn) or not walk.c_end(DONE):
        return 0
    _count_out(engine, walk)
    note_end(engine, walk, turn)
    note_without_result(engine, walk, answer)
    try:
        write_back(walk, answer)
    except BaseException as error:                              # a subclass of dict may do as it likes
        walk.error = error
        if issubclass(type(error), KeyboardInterrupt) and PyThread_get_thread_ident() == _main_thread:
            note_interrupt(turn, error)
        if walk.sink_kind != SINK_GATHER:
            engine.done -= 1
            engine.failed += 1
            engine.failed_by[OTHER] += 1
    return _deliver(engine, walk, turn)


cdef int fail_walk(Engine engine, Walk walk, object error, Turn turn) noexcept:
    """End a walk with an exception, once (E1)."""
    cdef int reason
    if is_hooked(AT_END):
        act_at_in(AT_END, turn)
    if not _begin_walk(engine, walk, turn) or not walk.c_end(FAILED):
        return 0
    walk.error = error
    _count_out(engine, walk)
    note_end(engine, walk, turn)
    if walk.sink_kind != SINK_GATHER:
        reason = reason_of(error)
        engine.failed_by[reason] += 1
        engine.without_result += reason == WITHOUT_RESULT
    if issubclass(type(error), KeyboardInterrupt) and PyThread_get_thread_ident() == _main_thread:
        note_interrupt(turn, error)                             # Ctrl-C: not only for whoever waits for this request
    try:
        write_back(walk, None)
    except Exception as unexpected:
        report(unexpected, type(walk.request))
    except BaseException as unexpected:
        note_interrupt(turn, unexpected)
    return _deliver(engine, walk, turn)


cdef int fail_visit(Engine engine, Visit visit, object error, Turn turn) noexcept:
    """Fail a visit's walk, unless it has gone on to another round."""
    visit.is_held = False
    if visit.has_left:
        return 0
    if visit.stepper is not None:
        visit.stepper.failure = error                           # for Stepper.c_run
        return 0
    if visit.is_in_sequence:
        end_turn(engine, visit, False, turn)
    if visit.flight != NULL:
        return fail_flight(engine, visit, error, turn)
    note_failed(visit, error)
    return fail_walk(engine, visit.walk, error, turn) if visit.round == visit.walk.restarts else 0


cdef int cancel_walk(Engine engine, Walk walk) noexcept:
    """Give a walk up: 1, or 0 if it has ended. Its dict is not touched; what still runs of it is dropped."""
    if is_hooked(AT_CANCEL):
        act_at_in(AT_CANCEL, None)
    if not walk.c_end(CANCELLED):
        return 0
    _count_out(engine, walk)
    if walk.span is not None:
        walk.tracer.c_end(walk, True, None)
    if word_set(&walk.word):
        futex_wake(&walk.word, 1)
    _tell_of_places(engine, walk)
    if walk.standing is not None:
        leave_sequences(engine, walk, None)
    start_called(engine, None)
    return 1


cdef c_bool _begin_walk(Engine engine, Walk walk, Turn turn) noexcept:
    """Mark a future as running before its walk's first batch, or its end; False if its owner has cancelled it."""
    if walk.started or walk.sink_kind != SINK_FUTURE:
        return True
    walk.started = True
    if start_future(<FutureCore>walk.sink, turn):
        return True
    cancel_walk(engine, walk)
    return False


cdef int expire_walk(Engine engine, Walk walk, Turn turn) noexcept:
    """Fail a walk whose time is over; nothing if it has ended."""
    if is_hooked(AT_EXPIRE):
        act_at_in(AT_EXPIRE, None)
    fail_walk(engine, walk, late_error(walk), turn)
    return settle(engine, turn)


cdef void _count_out(Engine engine, Walk walk) noexcept:
    """Take an ended walk out of the books. No user code can run in here, or between it and Walk.c_end."""
    cdef uint8_t outcome = walk.outcome.load(memory_order_relaxed)
    cdef Visit visit
    if walk.has_room:
        leave_room(walk)
    if walk.is_counted:
        engine.gate.reserved -= 1
    if walk.queued is not None:
        for visit in walk.queued:
            if has_followers(visit):                            # it is wanted
                continue
            visit.is_ghost = True
            visit.node.station.ghosts += 1
            visit.node.station.queued_bytes -= visit.size_bytes
            visit.size_bytes = 0
    if walk.timer is not None:
        engine.clock.c_forget(walk)
    if type(walk.sink) is ChunkStream:
        (<ChunkStream>walk.sink).c_walk_ended(walk)
    if walk.sink_kind == SINK_GATHER:
        return
    if outcome == DONE:
        engine.done += 1
    elif outcome == FAILED:
        engine.failed += 1
    else:
        engine.cancelled += 1
    if engine.events is not None:
        engine.events.c_note_outcome(walk, outcome)
    _unlink_walk(engine, walk)


cdef int _tell_of_places(Engine engine, Walk walk) noexcept:
    """A walk has ended: let those look again who wait for a place that it held."""
    cdef Visit visit
    if walk.is_counted:
        tell_of_room(engine.gate)
    if walk.home is not None and walk.home.c_is_limited():
        tell_of_room(walk.home)
    if walk.queued is not None:
        for visit in walk.queued:
            try:
                sweep(visit.node.station)
            except BaseException as error:
                report(error, engine)
            tell_of_room(visit.node.station)
        walk.queued = None
    return 0


cdef int _deliver(Engine engine, Walk walk, Turn turn) noexcept:
    """Hand an outcome to whoever waits for it."""
    cdef Station station
    _tell_of_places(engine, walk)
    if walk.standing is not None:
        leave_sequences(engine, walk, turn)
    if walk.sink_kind == SINK_GATHER:
        return part_ended(engine, walk, turn)
    station = walk.home
    if station is not None and station.batches:
        station.owed.fetch_add(1, memory_order_relaxed)
        station.latest_answer_ns.store(now_ns(), memory_order_relaxed)
    if walk.recorded is not None:
        try:
            engine.recorder.end(walk.recorded, walk.request, walk.error)
        except Exception as error:
            report(error, engine.recorder)
        except BaseException as error:
            note_interrupt(turn, error)
    if walk.span is not None:
        walk.tracer.c_end(walk, False, turn)
    if is_hooked(AT_ENDED):
        act_at_in(AT_ENDED, turn)
    if walk.sink_kind != SINK_CALLER:
        turn.c_will_settle(walk)
    turn.c_answer(walk)
    return 0


cdef int settle(Engine engine, Turn turn) noexcept:
    """Start what has been let in, and hand outcomes to futures. No token of ours is needed."""
    if engine.called_first is not None:
        start_called(engine, turn)
    return hand_out(turn) if turn.settled_first != NULL else 0


cdef int send_back(list visits, Turn turn) noexcept:
    """Tell steppers that a worker is done with their visits."""
    cdef Visit visit
    for visit in visits:
        send_one_back(visit, turn)
    return 0


cdef int send_one_back(Visit visit, Turn turn) noexcept:
    cdef Stepper stepper = visit.stepper
    if stepper is not None:
        visit.stepper = None
        if word_set(&stepper.returned):
            turn.c_will_wake(&stepper.returned)
    return 0


cdef c_bool claim(Engine engine, Visit visit, Turn turn) except *:
    """True if the visit is still wanted; its dict is then ours to write."""
    cdef c_bool is_followed
    if is_dead(visit):
        note_dropped(visit)
        return False
    if visit.walk.deadline_ns >= 0 and is_late(visit):
        if is_hooked(AT_EXPIRE):
            act_at_in(AT_EXPIRE, turn)
        error = late_error(visit.walk)
        is_followed = has_followers(visit)                      # then it runs for them
        if not is_followed:
            note_failed(visit, error)
        if visit.walk.sink_kind != SINK_GATHER:                 # a part ends with the whole, whose time is over, too
            fail_walk(engine, visit.walk, error, turn)
        return is_followed
    if _begin_walk(engine, visit.walk, turn) or has_followers(visit):
        return True
    if visit.flight != NULL:
        close_flight(<Flight>visit.flight)
    return False
