# Watching: what is done about a batch that does not end.
#
# Guarantees   E8: it has been decided that nobody else touches what the hung worker held. E9: it is tried again without memory.

from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst

from fastpipe.engine.parking cimport (
    FOREVER, Frame, abort_process, enter_frame, events_leave, events_notify, events_prepare, events_sleep, is_hooked,
    kernel_now_ns, leave_frame, now_ns, want_precise_timers,
)

from fastpipe.engine.tokens cimport token_is_retired, token_keep

from heapq import heappop


cdef int serve_clock(Clock clock) except -1:
    """Fail each request whose time is over; see Clock.serve."""
    cdef Turn turn = clock.turn
    cdef Walk walk
    cdef Frame* frame
    cdef list timer
    cdef uint32_t epoch
    cdef int64_t until
    want_precise_timers()
    while True:
        epoch = events_prepare(&clock.changed)
        while clock.timers and <int64_t>(<list>clock.timers[0])[0] <= now_ns():
            try:
                timer = heappop(clock.timers)
            except MemoryError:                                 # nothing has happened: again
                continue
            walk = <Walk>timer[2]
            if walk is None:
                clock.over -= 1
                continue
            # Callbacks run here: one that waits would stop the clock.
            frame = enter_frame(<void*>walk.engine, True, current_greenlet())
            expire_walk(walk.engine, walk, turn)
            leave_frame(frame)
            walk = None
            turn.wake()
            turn.c_report_interrupt()
        if clock.stops.load(memory_order_seq_cst):
            events_leave(&clock.changed)
            return 0
        until = (<list>clock.timers[0])[0] if clock.timers else FOREVER
        with nogil:
            events_sleep(&clock.changed, epoch, until)


cdef int serve_watchdog(Watchdog watchdog) except -1:
    """Have each batch given up that runs for too long; see Watchdog.serve."""
    cdef PyObject* station
    cdef int index
    cdef int64_t until
    cdef uint32_t epoch
    with nogil:
        want_precise_timers()
        while True:
            epoch = events_prepare(&watchdog.changed)
            watchdog.until_ns.store(NOTIFY_ME, memory_order_seq_cst)
            if watchdog.aborts and watchdog.stops.load(memory_order_seq_cst):
                break
            if watchdog.c_look(&station, &index, &until):
                events_leave(&watchdog.changed)
                if watchdog.aborts:
                    abort_process()
                _give_up(station, index)
            elif until == NOTIFY_ME and watchdog.stops.load(memory_order_seq_cst):
                break
            else:
                watchdog.until_ns.store(until, memory_order_seq_cst)
                events_sleep(&watchdog.changed, epoch, FOREVER if until == NOTIFY_ME else until)
        events_leave(&watchdog.changed)
    return 0


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
            report(error, station)
    return 0


cdef int _try_to_give_up(Station station, int index) except -1:
    cdef Turn turn = Turn.__new__(Turn)
    cdef Turn lost
    cdef Visit visit
    cdef Engine engine
    cdef Instance instance
    cdef Frame* frame
    cdef str where = stacks_now()                               # first: this runs Python code, and may take a while
    cdef list visits
    visits, lost, instance, thread = station.held[index]
    engine = (<Visit>visits[0]).walk.engine
    station.lives[index] += 1
    station.held[index] = None                                  # decided: from here on nothing may fail
    if token_is_retired(&station.tokens, index):
        station.c_release_token(index)                          # for the last time
    else:
        token_keep(&station.tokens, index)                      # for the instance that is built again
    if lost.worker == SHARING - station.era:
        station.desk.lock()                                     # E7: a holder of the GIL may wait for it
        station.sharing -= 1
        station.desk.unlock()
    events_notify(&station.workers, 0x7fffffff)                 # for retire()
    station.hung += 1
    lost.abandoned = instance.backend
    if engine.events is not None:
        engine.events.c_note_end_of_batch(station, instance, lost, kernel_now_ns())
    turn.settled_first = lost.settled_first                     # what it has not handed out
    turn.settled_last = lost.settled_last
    lost.settled_first = NULL
    lost.settled_last = NULL
    turn.arrived, lost.arrived = lost.arrived, turn.arrived
    turn.ready, lost.ready = lost.ready, turn.ready
    turn.wakes.swap(lost.wakes)
    turn.chain, lost.chain = lost.chain, turn.chain
    count = len(visits)
    station.running.fetch_sub(count, memory_order_relaxed)
    frame = enter_frame(<void*>engine, True, current_greenlet())
    try:
        try:
            engine._keeper.replace(station, index, instance, thread)  # first: close() may only wait for the requests
        except BaseException as error:
            report(error, station)
        if lost.spans is not None:
            (<Tracer>lost.spans[0]).c_give_up_batch(lost.spans, hung_error(station, <Visit>visits[0], index, count, where), turn)
        for visit in visits:
            if visit.is_held:
                visit.is_held = False
                station.requests_failed += 1
                fail_visit(engine, visit, hung_error(station, visit, index, count, where), turn)
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
        act_at_in(AT_HANG, None)
    for _attempt in range(MOST_ATTEMPTS):                       # it is decided (E8): nobody else does it
        if (<Station>station).held[index] is None:
            return
        try:
            visit = (<tuple>(<Station>station).held[index])[0][0]
            visit.walk.engine._keeper.give_up(<Station>station, index)
            return
        except BaseException as error:
            report(error, <Station>station)
