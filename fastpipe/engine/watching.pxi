# Watching: what is done about a batch that does not end.
#
# Guarantees   E8: it has been decided that nobody else touches what the hung worker held. E9: it is tried again without memory.

from libcpp.atomic cimport memory_order_relaxed

from fastpipe.engine.parking cimport Frame, enter_frame, events_notify, is_hooked, leave_frame


cdef int give_up_batch(Station station, int index) noexcept:
    """Fail what a hung instance holds, and have it replaced; see Station.give_up."""
    cdef int _attempt
    for _attempt in range(MOST_ATTEMPTS):                       # it is decided (E8): nobody else does it
        if station.held[index] is None:
            return 0
        try:
            _try_to_give_up(station, index)
            return 0
        except BaseException as error:                          # no memory: nothing has happened yet
            _report(error, station)
    return 0


cdef int _try_to_give_up(Station station, int index) except -1:
    cdef Turn turn = Turn.__new__(Turn)
    cdef Turn lost
    cdef Visit visit
    cdef Engine engine
    cdef Instance instance
    cdef Frame* frame
    cdef str where = _stacks()                                  # first: this runs Python code, and may take a while
    cdef list visits
    visits, lost, instance, thread = station.held[index]
    engine = (<Visit>visits[0]).walk.engine
    station.lives[index] += 1
    station.held[index] = None                                  # decided: from here on nothing may fail
    events_notify(&station.workers, 0x7fffffff)                 # for retire()
    station.hung += 1
    lost.abandoned = instance.backend
    turn.settled_first = lost.settled_first                     # what it has not handed out
    turn.settled_last = lost.settled_last
    lost.settled_first = NULL
    lost.settled_last = NULL
    turn.arrived, lost.arrived = lost.arrived, turn.arrived
    turn.ready, lost.ready = lost.ready, turn.ready
    turn.wakes.swap(lost.wakes)
    count = len(visits)
    station.running.fetch_sub(count, memory_order_relaxed)
    frame = enter_frame(<void*>engine, True, _greenlet())
    try:
        try:
            engine._keeper.replace(station, index, instance, thread)  # first: close() may only wait for the requests
        except BaseException as error:
            _report(error, station)
        for visit in visits:
            if visit.is_held:
                visit.is_held = False
                station.requests_failed += 1
                fail_visit(engine, visit, _hung_error(station, visit, index, count, where), turn)
        if engine.steppers:
            send_back(visits, turn)
        enqueue_all(engine, turn)
        settle(engine, turn)
    finally:
        leave_frame(frame)
        turn.wake()
    turn.c_report_interrupt()
    return 0


cdef void _give_up(PyObject* station, int index) noexcept with gil:
    cdef Visit visit
    if is_hooked(AT_HANG):
        _act_in(AT_HANG, None)
    for _attempt in range(MOST_ATTEMPTS):                       # it is decided (E8): nobody else does it
        if (<Station>station).held[index] is None:
            return
        try:
            visit = (<tuple>(<Station>station).held[index])[0][0]
            visit.walk.engine._keeper.give_up(<Station>station, index)
            return
        except BaseException as error:
            _report(error, <Station>station)
