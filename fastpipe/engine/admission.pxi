# Admission: how a request gets in. Checks, a place in the line where there is a limit, its walk, and its first visit.
#
# Guarantees   What a caller has done wrong is raised to it before anything is counted. E5: nobody who waits is overtaken.
# Assumes      The GIL; waits serve signals.

from cpython.contextvars cimport PyContext_CopyCurrent
from cpython.dict cimport PyDict_GetItem
from cpython.exc cimport PyErr_CheckSignals

from fastpipe.engine.parking cimport FOREVER, Frame, enter_frame, is_hooked, is_inside, is_settling, leave_frame, now_ns, word_wait

from numbers import Number

from fastpipe.errors import PipeClosed, RequestTimeout, UnknownNode, in_brief, nearest


cdef int start_walk(Engine engine, Walk walk, Turn turn) except -1:
    cdef Visit visit
    try:
        visit = Visit.__new__(Visit)
        visit.walk = walk
        visit.request = own_request(walk)
        if walk.entry.stateful is not None:
            stand_in(visit)
    except BaseException:                                       # out of memory: the walk must not stay in the books
        cancel_walk(engine, walk)
        raise
    visit.node = walk.entry.node
    visit.way = ENTERED
    if walk.home is not None and walk.home.batches and visit.node.twins is None:
        walk.home.c_note_arrival(now_ns())                      # where there are twins, at the one that is chosen
    if turn.stepper != NULL:
        turn.arrived.append(visit)
        return 0
    try:
        if is_hooked(AT_ADMITTED):
            act_at(AT_ADMITTED)
        ask_filter(engine, visit, turn)
    except BaseException as error:
        fail_visit(engine, visit, with_place(error, visit.node), turn)
    except:  # noqa: E722
        # See _no_memory.
        fail_visit(engine, visit, _no_memory, turn)
    return ask_filters(engine, turn)


cdef object _refused_at(Station gate, int64_t size_bytes, Engine engine):
    """Refuse a request for which a gate has no room: return the error."""
    cdef object error
    note_refused(engine, gate)
    error = full_error(gate, size_bytes)
    tell_of_refusal(gate, engine, None)
    return error


cdef object _late_for_room(Engine engine, Waiter waiter):
    """Refuse a request that has waited for room until its time was over: return the error. Raises nothing."""
    cdef Station gate = waiter.line.c_gate_of_first()
    note_refused(engine, gate)
    try:
        where = "in the pipe" if gate is engine.gate else f"in the queue of node {gate.name!r}"
        error = RequestTimeout(f"the request waited {waiter.terms.timeout_s:g} s for room {where}")
    except BaseException as unexpected:                         # no memory for it: then that is the error
        error = unexpected
    stop_waiting(waiter)                                        # now: whoever tells the log lets the GIL go
    tell_of_refusal(gate, engine, None)
    return error


cdef object start_detached(Engine engine, request, given, uint8_t sink_kind, object sink, Terms terms, name, c_bool is_patient):
    """Start a request for which no thread waits: its walk. A coroutine's that has to wait for room: its Waiter."""
    cdef Turn turn = Turn.__new__(Turn)
    cdef Walk walk
    cdef Clock clock
    cdef Line line
    cdef Waiter waiter
    cdef int64_t size
    cdef int64_t entered_ns = now_ns()
    entry = entry_for(engine, given, name)
    if terms is not None and terms.deadline_ns >= 0 and sink_kind != SINK_CALLER and engine.clock is None:
        clock = Clock.__new__(Clock)
        engine._keeper.start_clock(clock)                       # raises if there can be no more threads
        if engine.clock is None:
            engine.clock = clock
        else:                                                   # somebody else was faster
            clock.stop()
        if engine.gave_up:                                      # the pipe has closed while the thread began: nobody else stops it
            engine.clock.stop()
    if (<Entry>entry).line is not None and (sink_kind == SINK_ASYNCIO or is_of_coroutine(sink)):
        if is_hooked(AT_ADMIT):
            act_at(AT_ADMIT)
        line = _line_at(engine, entry)
        size = line.c_size_of(given)
        waiter = _enter_line(engine, line, entry, given, size, terms, is_patient, sink)
        if waiter is not None:
            waiter.owned = request
            waiter.entered_ns = entered_ns
            return waiter
        walk = _admit_booked(engine, line, size, entry, given, sink_kind, sink, terms, entered_ns)
    else:
        walk = admit(engine, entry, given, sink_kind, sink, terms, entered_ns, is_patient)
    hand_in(walk, request, given)
    walk.lister = <PyObject*>turn
    _start_admitted(engine, walk, turn)
    settle(engine, turn)
    turn.wake()
    walk.lister = NULL
    if turn.interrupt is not None:                              # its caller will have no future: nobody waits for it
        cancel_walk(engine, walk)
        turn.c_raise_interrupt()
    return walk


cdef int _start_admitted(Engine engine, Walk walk, Turn turn) except -1:
    """Send a request on its way for which no thread waits, or none on this thread."""
    try:
        if walk.sink_kind == SINK_FUTURE:
            (<FutureCore>walk.sink).walk = walk
        elif walk.sink_kind == SINK_STREAM:
            (<ChunkStream>walk.sink).walk = walk
        if walk.deadline_ns >= 0 and walk.sink_kind != SINK_CALLER:
            engine.clock.c_add(walk)
    except BaseException:                                       # out of memory: the walk must not stay in the books
        cancel_walk(engine, walk)
        raise
    start_walk(engine, walk, turn)
    return enqueue_all(engine, turn)


cdef int _check_open(Engine engine) except -1:
    if engine.closing:
        engine.refused += 1
        raise PipeClosed("the pipe is closed")
    return 0


cdef Entry entry_for(Engine engine, object request, object entry):
    """Where this request enters: where the call says, else where the request says, as far as it may.

    Raises what the caller is to see before anything is accepted.
    """
    cdef PyObject* name_pointer
    if not isinstance(request, dict):
        raise TypeError(f"a request is a dict; got {type(request).__name__}. (A pipe is called with one, or with a list of "
                        "them; map() takes any iterable.)")
    check_process(engine)
    _check_open(engine)
    if entry is not None:
        node = engine.node_named.get(entry) if isinstance(entry, str) else None
        if node is None:
            raise UnknownNode(f"entry is {in_brief(entry)}, and no node has that name; they are {list(engine.node_named)}"
                              f"{nearest(entry, engine.node_named)}")
        return entry_at(engine, <Node>node)
    name_pointer = PyDict_GetItem(request, "node_name")
    name = None if name_pointer == NULL else <object>name_pointer
    if name is None:
        if engine.only_entry is not None:
            return engine.only_entry
        raise UnknownNode(f"the graph has several roots: set request['node_name'] to one of {list(engine.root_names)} "
                          "(or is a 'next' missing, that leads from one to the other?)")
    node = engine.open_to_all.get(name) if isinstance(name, str) else None
    if node is None and isinstance(name, str) and name in engine.node_named:
        raise UnknownNode(f"request['node_name'] is {name!r}, which is no root: a request would skip what comes before it. "
                          f"Pass entry={name!r} with the call, or have the pipe let requests say so by obey_request_keys="
                          f"['node_name']; the roots are {list(engine.root_names)}")
    if node is None:
        raise UnknownNode(f"request['node_name'] is {in_brief(name)}, and no node has that name; the roots are "
                          f"{list(engine.root_names)}{nearest(name, engine.node_named)}")
    return entry_at(engine, <Node>node)


cdef Walk admit(Engine engine, Entry entry, object request, uint8_t sink_kind, object sink, Terms terms, int64_t entered_ns,
                c_bool is_patient=False):
    """Let a request in, when there is room; ``entered_ns``: when its call began. Blocks; serves signals."""
    cdef Line line
    cdef Waiter waiter
    cdef int64_t size
    if is_hooked(AT_ADMIT):
        act_at(AT_ADMIT)
    if entry.line is None:
        return _admit_now(engine, entry, request, sink_kind, sink, terms, entered_ns)
    line = _line_at(engine, entry)
    size = line.c_size_of(request)
    waiter = _enter_line(engine, line, entry, request, size, terms, is_patient, None)
    if waiter is not None:
        _stand_in_line(engine, waiter)
    return _admit_booked(engine, line, size, entry, request, sink_kind, sink, terms, entered_ns)


cdef Walk _admit_booked(Engine engine, Line line, int64_t size_bytes, Entry entry, object request, uint8_t sink_kind, object sink,
                        Terms terms, int64_t entered_ns):
    """Let a request in whose places are booked."""
    cdef Walk walk
    try:
        walk = _admit_now(engine, entry, request, sink_kind, sink, terms, entered_ns)
    except BaseException:
        line.c_give_back(size_bytes)
        start_called(engine, None)
        raise
    take_places(walk, line, size_bytes)
    return walk


cdef Walk _admit_now(Engine engine, Entry entry, object request, uint8_t sink_kind, object sink, Terms terms, int64_t entered_ns,
                     object context=None):
    cdef Walk walk = new_walk(engine, entry, request, sink_kind, sink)
    walk.entered_ns = entered_ns
    if terms is not None:
        walk.deadline_ns = terms.deadline_ns
        walk.timeout_s = terms.timeout_s
        walk.priority_ns = terms.priority_ns
    if engine.slowest is not None:
        walk.stops = []
    if engine.recorder is not None:
        try:
            walk.recorded = engine.recorder.begin(request, None if entry is engine.only_entry else entry.node.name)
        except Exception as error:
            report(error, engine.recorder)
    if engine.tracer is not None:
        engine.tracer.c_begin(walk, context)
        if engine.closing and walk.span is not None:
            walk.tracer.c_end(walk, True, None)
    _check_open(engine)                                         # again: all of this may have run user code, or a destructor
    engine.accepted += 1
    link_walk(engine, walk)
    return walk


cdef Line _line_at(Engine engine, Entry entry):
    """Where to wait: a call from inside the pipe is part of a request that has been let in, and needs no place in it."""
    return entry.inner_line if is_inside(<void*>engine) else entry.line


cdef Waiter _enter_line(Engine engine, Line line, Entry entry, object request, int64_t size, Terms terms, c_bool is_patient,
                        object sink):
    """Book the places of a request if no gate on its way is full and nobody waits there: None. Else refuse it, as the gate
    says, or return its Waiter, which stands in line."""
    cdef Station home = line.home
    cdef Station shut
    cdef Waiter waiter = None
    if home is not None and home.max_queue_bytes > 0 and size > home.max_queue_bytes:
        raise _refused_at(home, size, engine)
    while True:
        shut = line.c_shut_gate(size, is_patient)
        if shut is None and line.first is not None:             # nobody is overtaken
            shut = line.c_gate_of_first()
            if shut.when_full == SHED_OLDEST and not is_patient:
                shut = None                                     # but by those who do not wait there
        if shut is None:
            line.c_book(size)
            return None
        if shut.when_full == REJECT and not is_patient:
            raise _refused_at(shut, size, engine)
        if is_settling(<void*>engine):
            error = _refused_at(shut, size, engine)
            add_note(error, "fastpipe: a callback of a future does not wait for room: it runs on a thread that has to make it")
            raise error
        if waiter is not None:
            break
        waiter = Waiter.__new__(Waiter)                         # a destructor may run in here: hence another look
        waiter.engine = engine
        waiter.line = line
        waiter.entry = entry
        waiter.request = request
        waiter.terms = terms
        waiter.sink = sink
        waiter.size_bytes = size
        waiter.is_patient = is_patient
        if sink is not None:
            waiter.context = PyContext_CopyCurrent()            # another thread starts its request
    _check_open(engine)
    waiter.number = engine.arrivals
    engine.arrivals += 1
    line.c_join(waiter)
    return waiter


cdef int _stand_in_line(Engine engine, Waiter waiter) except -1:
    """Wait until one is let in, and has the places booked. Serves signals.

    A signal's handler may call the pipe, on this very thread: nobody is let in, and nobody kept waiting, while it runs.
    """
    cdef Line line = waiter.line
    cdef int64_t deadline = FOREVER if waiter.terms is None else waiter.terms.deadline_ns
    cdef int64_t until
    cdef tuple wait = None
    cdef Station gate
    cdef c_bool inside = is_inside(<void*>engine)
    cdef c_bool serves_signals = PyThread_get_thread_ident() == _main_thread
    try:
        while waiter.state == IN_LINE:
            start_called(engine, None)                          # this thread may have made room for others
            if inside:
                gate = line.c_gate_of_first()
                if wait is None or wait[0] is not gate:
                    wait = backends_here(engine, gate)
                if wait is not None:
                    engine.waits_inside.append(wait)
            error = None
            try:
                with nogil:
                    until = first_slice(deadline)
                    if inside and (until < 0 or until > now_ns() + CALL_LOOP_SLICE_NS):
                        until = now_ns() + CALL_LOOP_SLICE_NS
                    word_wait(&waiter.word, until, _spin_ns)
                if waiter.state == IN_LINE and wait is not None:
                    error = find_call_loop(engine, wait)
            finally:
                if wait is not None:
                    take_out(engine.waits_inside, wait)
            if waiter.state != IN_LINE:
                break
            if error is not None:
                note_refused(engine, gate)
                raise error
            if deadline >= 0 and now_ns() >= deadline:
                raise _late_for_room(engine, waiter)
            if serves_signals:
                line.c_step_out(waiter)
                waiter.state = AWAY
                line.c_serve()
                start_called(engine, None)
                PyErr_CheckSignals()
                _check_open(engine)
                line.c_join(waiter)
                line.c_serve()
    except BaseException:
        stop_waiting(waiter)
        raise
    if waiter.state == TURNED_AWAY:
        if waiter.turned_away_by is None:
            _check_open(engine)
        raise _refused_at(waiter.turned_away_by, waiter.size_bytes, engine)
    waiter.is_booked = False                                    # the places are the request's
    line.c_keep_promise()
    return 0


cdef int start_called(Engine engine, Turn turn) noexcept:
    """Start the requests of coroutines that have been let in. Whoever makes room does so: their loops may be busy, or gone.

    ``turn``: this thread's, which is told of what hits it meanwhile; None if it has none.
    """
    cdef Waiter waiter
    cdef Turn own
    while engine.called_first is not None:
        waiter = engine.called_first
        engine.called_first = waiter.next
        waiter.next = None
        if engine.called_first is None:
            engine.called_last = None
        own = None
        try:
            own = Turn.__new__(Turn)
            own.is_workers = turn is not None and turn.is_workers
            _start_waiter(engine, waiter, own)
        except Exception as error:
            tell_waiter(waiter, error, turn)
        except BaseException as error:                          # it has hit this thread, not the request
            tell_waiter(waiter, death_error(error), turn)
            note_interrupt(turn, error)
        except:  # noqa: E722
            # See _no_memory.
            tell_waiter(waiter, _no_memory, turn)
        if waiter.is_booked:                                    # it does not come: cancelled, or there is no memory
            waiter.is_booked = False
            waiter.line.c_keep_promise()
            waiter.line.c_give_back(waiter.size_bytes)
        if own is not None:
            hand_out(own)
            own.wake()
            if own.death is not None:
                note_interrupt(turn, own.death)
            if own.interrupt is not None:
                note_interrupt(turn, own.interrupt)
    return 0


cdef int start_called_beside(Engine engine, Station station, Turn turn) noexcept:
    """The same on a thread that holds a token of a station, and is about to run a batch: filters that are asked now do not
    wait for it."""
    cdef Frame* frame = enter_frame(<void*>engine, False, current_greenlet())
    if frame != NULL:
        frame.station = <void*>station
    start_called(engine, None if turn.is_workers else turn)     # what ends a worker would fail its batch
    leave_frame(frame)
    return 0


cdef int _start_waiter(Engine engine, Waiter waiter, Turn turn) except -1:
    cdef Walk walk
    if waiter.state == GONE:
        return 0
    if waiter.state == TURNED_AWAY:
        if waiter.turned_away_by is None:
            _check_open(engine)
        raise _refused_at(waiter.turned_away_by, waiter.size_bytes, engine)
    # If this fails, start_called gives the places back, and goes on with whom they are for then.
    walk = _admit_now(engine, waiter.entry, waiter.request, SINK_STREAM if is_of_coroutine(waiter.sink) else SINK_ASYNCIO,
                      waiter.sink, waiter.terms, waiter.entered_ns, waiter.context)
    waiter.is_booked = False
    take_places(walk, waiter.line, waiter.size_bytes)
    waiter.walk = walk
    if walk.context is None:
        walk.context = waiter.context
    waiter.line.c_keep_promise()
    hand_in(waiter.walk, waiter.owned, waiter.request)
    if waiter.state == GONE:                                    # while a recorder or a destructor ran
        cancel_walk(engine, waiter.walk)
    return _start_admitted(engine, waiter.walk, turn)


cdef Terms checked_terms(Engine engine, object timeout, object priority):
    """What a caller asked for, checked; None: nothing."""
    cdef Terms terms
    cdef double seconds
    cdef double rank
    if timeout is None and priority == 0 and engine.timeout_ns < 0:
        return None
    terms = Terms.__new__(Terms)
    terms.deadline_ns = FOREVER
    if timeout is not None:
        seconds = _number(timeout, "timeout must be a number of seconds, more than 0")
        if not seconds > 0:
            raise ValueError(f"timeout must be more than 0 seconds, got {timeout!r}")
        terms.timeout_s = seconds
        if seconds < 1e9:                                       # longer ones, inf among them, are none
            terms.deadline_ns = now_ns() + <int64_t>(seconds * 1e9)
    elif engine.timeout_ns >= 0:
        terms.timeout_s = engine.timeout_ns / 1e9
        terms.deadline_ns = now_ns() + engine.timeout_ns
    rank = _number(priority, "priority must be a number from -1000 to 1000, of which lower ones go first")
    if not -1000 <= rank <= 1000:
        raise ValueError(f"priority must be from -1000 to 1000, got {priority!r}")
    terms.priority_ns = <int64_t>(rank * PRIORITY_NS)
    return terms


cdef double _number(object value, str expected) except? -1:
    """An argument that has to be a number: neither a truth value nor a text that reads like one."""
    if type(value) is float or type(value) is int or (isinstance(value, Number) and not isinstance(value, bool)):
        try:
            return value
        except (TypeError, OverflowError):                      # complex, or beyond what a float holds
            pass
    raise TypeError(f"{expected}; got {value!r}")


cdef c_bool stop_waiting(Waiter waiter) noexcept:
    """Wait no longer, and hand on what one was given; False if the request has set out."""
    if waiter.state == IN_LINE:
        waiter.line.c_step_out(waiter)
        waiter.state = GONE
        waiter.line.c_serve()                                   # who comes next may need less
    elif waiter.state != GONE and waiter.sink is not None:
        if waiter.walk is not None:
            return False
        waiter.state = GONE                                     # _start_waiter gives its places back
    elif waiter.is_booked:
        waiter.is_booked = False
        waiter.state = GONE
        waiter.line.c_keep_promise()
        waiter.line.c_give_back(waiter.size_bytes)
    start_called(waiter.engine, None)
    return True


cdef int expire_waiter(Waiter waiter) except -1:
    """Refuse a request that still waits in line; see Waiter.expire."""
    if waiter.state == IN_LINE:
        error = _late_for_room(waiter.engine, waiter)
        if is_of_coroutine(waiter.sink):
            return tell_waiter(waiter, error, None)
        for _attempt in range(MOST_ATTEMPTS):
            try:
                outcomes = [(waiter.sink[1], waiter.request, error)]
                break
            except BaseException as unexpected:                 # no memory for a list: again
                note_interrupt(None, unexpected)
        _settle_in_loop(outcomes)
    return 0
