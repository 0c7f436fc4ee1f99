# Sequences: requests that have one key at a node run there in turns, and each finds the state that the one before has left.
#
# A visit that arrives before its turn is *parked*: it waits in its position (states.pxi), in no queue, without a thread. The end
# of the turn before *calls* it: it is queued then. So of each sequence at most one request is where batches are formed, which
# need not know of sequences; requests of many sequences make one batch.
#
# Guarantees   E11. A state is taken over from a request that has run, while somebody waits for its answer; what fails, is cancelled,
#              or ends too late leaves what it has found. It is handed in once for each request, whatever is run again.
#              Who is called is called in a loop, not from within each other, however many fail one after the other.
# Assumes      The GIL. States are handed in, and taken over, on the thread that runs the batch.

from cpython.dict cimport PyDict_DelItem, PyDict_GetItemWithError
from cpython.ref cimport Py_DECREF, Py_INCREF

from fastpipe.engine.parking cimport Frame, enter_frame, futex_wake, leave_frame, word_set

from fastpipe.errors import SequenceError


cdef int await_turn(Engine engine, Visit visit, Turn turn) except -1:
    """Let a visit that may run do so when its turn in its sequence comes. Raises what fails the walk."""
    cdef States states = visit.node.states
    cdef PyObject* key = PyDict_GetItemWithError(visit.request, states.key_name)
    cdef Position position
    cdef int starts, ends
    if key == NULL:
        raise SequenceError(f"node {visit.node.name!r} keeps a state for each sequence of requests (state_of): "
                            f"request[{states.key_name!r}] must say to which this one belongs, and is not there. "
                            "(A node that has a map gets it by that, and a server by its clients' parameter sequence_id.)")
    if PyDict_GetItemWithError(visit.request, "state") != NULL:
        raise SequenceError(f"request['state'] is what the pipe keeps for node {visit.node.name!r} (state_of): leave it out, or "
                            "rename it")
    name = key_of(states, <object>key)
    starts = _flag(visit.request, "sequence_start")
    ends = _flag(visit.request, "sequence_end")
    if is_dead(visit):                                          # what it was asked has taken its time
        note_dropped(visit)
        return 0
    position = position_for(visit, states)
    if position is not None and position.sequence.key != name:  # a node before has named another
        _yield_to_next(engine, position, turn)
        position = None
    if position is None:
        position = take_position(visit, states, name, True)
        if position is None:
            note_dropped(visit)
            return 0
    position.starts = starts == 1
    position.goes_on = starts == 0
    position.ends = ends == 1
    arrive(position, visit)
    visit.is_in_sequence = True
    if turn.stepper != NULL or position.sequence.first is position:
        turn.ready.append(visit)                                # a stepper waits for its turn itself
        return 0
    keep_context(visit.walk)                                    # it goes on on another thread
    if visit.node.station.c_is_limited() and not make_room(engine, visit, turn):
        return 0
    if position.sequence is None:                               # its walk has ended meanwhile
        leave_queue(visit, visit.node.station)
        return 0
    park(states, position)
    if position.sequence.first is position:                     # those before have ended meanwhile
        _call(engine, position.sequence, turn)
    return 0


cdef int _flag(dict request, str name) except -2:
    """What a request says about its place in its sequence: 1, 0, or -1: nothing."""
    cdef PyObject* value = PyDict_GetItemWithError(request, name)
    if value == NULL or <object>value is None:
        return -1
    return 1 if <object>value else 0


cdef int go_round(Engine engine, Visit visit, Turn turn) except -1:
    """A visit does not run at a node that keeps states: others need not wait for it."""
    cdef Position position = None if is_dead(visit) else position_for(visit, visit.node.states)
    return 0 if position is None else _yield_to_next(engine, position, turn)


cdef int _yield_to_next(Engine engine, Position position, Turn turn) except -1:
    cdef Sequence sequence = _release_turn(engine, position)
    return 0 if sequence is None else _call(engine, sequence, turn)


cdef Sequence _release_turn(Engine engine, Position position):
    """What release does; states that are dropped by it may have destructors, which must not wait for the pipe."""
    cdef Frame* frame = enter_frame(<void*>engine, True, current_greenlet())
    try:
        return release(position)
    finally:
        leave_frame(frame)


cdef int leave_sequences(Engine engine, Walk walk, Turn turn) noexcept:
    """A walk has ended, or sets out anew: it gives up its positions, and those of its parts, that no batch holds.

    ``turn``: this thread's; None if it has none.
    """
    cdef Turn own = turn
    cdef Position position = next_to_leave(walk)
    cdef Sequence sequence
    while position is not None:
        sequence = None
        try:
            sequence = _release_turn(engine, position)
        except BaseException as error:
            report(error, engine)
        if sequence is not None:
            if own is None:
                own = _new_turn()
            if own is not None:
                _call(engine, sequence, own)
        position = next_to_leave(walk)
    if turn is None and own is not None:
        hand_out(own)
        own.wake()
        if own.interrupt is not None:
            note_interrupt(None, own.interrupt)
    return 0


cdef Turn _new_turn():
    """A turn, though memory may be short for a moment."""
    cdef int _attempt
    for _attempt in range(MOST_ATTEMPTS):
        try:
            return Turn.__new__(Turn)
        except BaseException as error:
            note_interrupt(None, error)
    return None


cdef int _call(Engine engine, Sequence sequence, Turn turn) noexcept:
    """Have the first of a sequence run, if it has arrived; needs no memory. Nothing has to be done for others: their turns come."""
    cdef Position position = sequence.first
    if position is None or position.is_called:
        return 0
    if position.stepper is not None:
        if word_set(&position.stepper.returned):
            futex_wake(&position.stepper.returned, 1)
        return 0
    if position.visit is None or not position.visit.is_parked:
        return 0
    position.is_called = True
    Py_INCREF(position)                                         # the turn's, until call_all takes it over
    if turn.called_last == NULL:
        turn.called_first = <PyObject*>position
    else:
        (<Position>turn.called_last).called_next = <PyObject*>position
    turn.called_last = <PyObject*>position
    return 0 if turn.is_calling else call_all(engine, turn)


cdef int call_all(Engine engine, Turn turn) noexcept:
    """Queue those whose turns have come; each station is notified once."""
    cdef Position position
    cdef Station station
    cdef Station before = None
    cdef Visit visit
    turn.is_calling = True
    while turn.called_first != NULL:
        position = <Position>turn.called_first
        turn.called_first = position.called_next
        if turn.called_first == NULL:
            turn.called_last = NULL
        position.called_next = NULL
        position.is_called = False
        Py_DECREF(position)                                     # ``position`` holds it
        visit = position.visit
        if visit is None or not visit.is_parked:                # it has ended meanwhile
            continue
        if visit.node.twins is not None:
            station = visit.node.station
            if not choose_twin(engine, visit, turn):
                continue
            station.queued_bytes -= visit.size_bytes            # it is counted where it waits
            visit.node.station.queued_bytes += visit.size_bytes
        if not enqueue(engine, visit, turn, False):
            continue
        station = visit.node.station
        if before is not None and before is not station:
            before.c_notify()
        before = station
    if before is not None:
        before.c_notify()
    turn.is_calling = False
    return 0


# ---- around a batch --------------------------------------------------------------------------------------------


cdef list give_states(Engine engine, Station station, Instance instance, list visits, Turn turn):
    """Give each visit of a batch what its sequence has kept; return those that may run."""
    cdef list ready = []
    cdef Position position
    cdef Visit visit
    turn.is_calling = True                                      # those whose turns come by this batch are to meet in the next
    for visit in visits:
        position = position_of(visit)
        if position is None or is_dead(visit):                  # what one of the others has run in _claim_all has ended it
            continue
        position.is_running = True
        position.instance = instance
        if not position.is_handed or position.is_outdated:      # else it is run again, and has what it was given then
            state = _find_state(engine, position)
            if state is None and position.goes_on:
                fail_visit(engine, visit, _gone_error(visit, position), turn)
                continue
            visit.request["state"] = state
            position.is_handed = True
            position.is_outdated = False
        position.sequence.place = station.place
        ready.append(visit)
    _queue_called(engine, station, turn)                        # behind those that have failed: now, not after the batch
    turn.is_calling = True
    return ready


cdef object _find_state(Engine engine, Position position):
    """What a request is given; what was kept before it begins its sequence anew is dropped, as in _release_turn."""
    cdef Frame* frame
    if not position.starts:                                     # nothing is dropped
        return position.sequence.state
    frame = enter_frame(<void*>engine, True, current_greenlet())
    try:
        return find_state(position.states, position.sequence, position.starts)
    finally:
        leave_frame(frame)


cdef object _gone_error(Visit visit, Position position):
    try:
        error = SequenceError(f"sequence {in_brief(position.sequence.key)} has no state at node {visit.node.name!r}, and the request "
                              "says that it does not begin one (sequence_start is False): it has not begun, has ended, was dropped, or "
                              f"was not used for the state_ttl of {position.states.ttl_ns / 1e9:g} s")
        return with_place(error, visit.node)
    except BaseException as unexpected:                         # no memory for it: then that is the error
        return unexpected


cdef int end_turn(Engine engine, Visit visit, c_bool has_run, Turn turn) noexcept:
    """A visit has run, or fails: take over what it leaves to the next, and call that."""
    cdef Position position = position_of(visit)
    cdef Sequence sequence = None
    visit.is_in_sequence = False
    if position is None:
        return 0
    try:
        if position.is_handed:
            _take_over(engine, visit, position, has_run)
    except BaseException as error:
        report(error, engine)
    try:
        sequence = _release_turn(engine, position)
    except BaseException as error:
        report(error, engine)
    return 0 if sequence is None else _call(engine, sequence, turn)


cdef int _take_over(Engine engine, Visit visit, Position position, c_bool has_run) except -1:
    """Keep the state that a visit has left, if it has run; what nobody keeps is dropped, as in _release_turn."""
    cdef Frame* frame = enter_frame(<void*>engine, True, current_greenlet())
    cdef PyObject* left
    cdef object state = None
    try:
        left = PyDict_GetItemWithError(visit.request, "state")
        if left != NULL:
            state = <object>left
            PyDict_DelItem(visit.request, "state")
        if has_run and not is_dead(visit):
            keep_state(position, state)
        state = None
    finally:
        leave_frame(frame)
    return 0


cdef int end_turns(Engine engine, Station station, list visits, Turn turn) noexcept:
    """A batch is over: end the turns of those that have ended meanwhile, and queue whose turns have come."""
    cdef Position position
    cdef Visit visit
    if turn.abandoned is not None:                              # E8
        return 0
    for visit in visits:
        if visit.is_in_sequence and visit.stepper is None:
            position = position_of(visit)
            if position is not None and position.is_running:
                end_turn(engine, visit, False, turn)
    return _queue_called(engine, station, turn)


cdef int _queue_called(Engine engine, Station station, Turn turn) noexcept:
    """Queue whose turns have come by a batch in one of a station's instances."""
    cdef Frame* frame
    turn.is_calling = False
    if turn.called_first == NULL:
        return 0
    frame = enter_frame(<void*>engine, False, current_greenlet())  # users may be asked things, while the token is held
    if frame != NULL:
        frame.station = <void*>station
    call_all(engine, turn)
    leave_frame(frame)
    return 0


cdef int wait_again(Engine engine, Visit visit, Turn turn) noexcept:
    """A visit goes back from its batch into the queue: its turn goes on, if somebody waits for it."""
    cdef Position position = position_of(visit)
    if position is None:
        return 0
    if is_dead(visit):
        return end_turn(engine, visit, False, turn)
    position.is_running = False
    position.is_outdated = position.instance.is_replaced
    return 0


cdef int pass_turn(Visit visit, Visit onward) noexcept:
    """A visit goes on as another one."""
    cdef Position position = position_of(visit)
    visit.is_in_sequence = False
    if position is not None:
        position.visit = onward
        onward.is_in_sequence = True
    return 0
