# Serving: what a worker does. It waits for a batch without the GIL, runs it and further ones in one hold, and hands out what came of it.
#
# Guarantees   E4: it announces itself before it looks. E8: one that was given up touches nothing any more.

from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_seq_cst

from fastpipe.engine.batching cimport WAIT_UNTIL
from fastpipe.engine.chain cimport MOST_AT_ONCE
from fastpipe.engine.costs cimport cost_of
from fastpipe.engine.parking cimport (
    FOREVER, SET, Frame, enter_frame, events_leave, events_prepare, events_sleep, is_hooked, kernel_now_ns, leave_frame,
    want_precise_timers,
)

from threading import current_thread


cdef object serve_until_closed(Station station, int worker):
    """What a worker does for its whole life; see Station.serve."""
    cdef Batch batch
    cdef Turn turn = Turn.__new__(Turn)
    cdef PyObject* turn_pointer = <PyObject*>turn
    turn.is_workers = True
    turn.is_elsewhere = True
    turn.worker = worker
    with nogil:
        want_precise_timers()
        while _wait_for_batch(station, &batch, worker, turn_pointer):
            if not _run_taken(&batch, worker, <PyObject*>station, turn_pointer):
                break
    if turn.abandoned is not None or turn.death is None:
        return turn.abandoned
    station.deaths += 1
    raise turn.death


cdef int help_out(Station station, Walk last, Turn turn) noexcept:
    """Run batches of a station on this thread until ``last`` has ended or there is none to run."""
    cdef Batch batch
    cdef Verdict verdict
    if station.workers_only:
        return 0
    turn.helps = True
    while turn.interrupt is None and last.word.load(memory_order_acquire) != SET:
        batch.instance = -1
        if not try_take(station, &batch, CALLER, &verdict):
            return 0
        station.run_by_caller += batch.taken.count
        _serve_hold(station, &batch, CALLER, turn)
        turn.wake()
    turn.helps = False
    return 0


cdef c_bool _wait_for_batch(Station station, Batch* batch, int worker, PyObject* turn) noexcept nogil:
    """Wait for a batch and a token; False: the station is closed and empty, the worker is to leave, or a hook has ended it."""
    cdef Verdict verdict
    cdef uint32_t epoch
    # Callers that were just answered are often about to come back. One yield lets them run, and saves a sleep and a
    # wake-up: 1.4 times the requests of one client, where every request is handed over.
    cdef c_bool may_yield = True
    while True:
        epoch = events_prepare(&station.workers)
        batch.instance = -1
        if is_hooked(AT_TAKE) and act_without_gil(AT_TAKE, turn):
            events_leave(&station.workers)
            station.c_notify()                                  # a wake-up that was another worker's may have come here
            return False
        if try_take(station, batch, worker, &verdict):
            events_leave(&station.workers)
            if station.queued.load(memory_order_seq_cst) > 0:
                station.c_notify()                              # there may be enough for another instance
            return True
        if verdict.action == LEAVE:
            events_leave(&station.workers)
            station.c_notify()                                  # as above
            return False
        if station.life.load(memory_order_seq_cst) == CLOSING and station.queued.load(memory_order_seq_cst) == 0:
            events_leave(&station.workers)
            return False
        if is_hooked(AT_SLEEP) and act_without_gil(AT_SLEEP, turn):
            events_leave(&station.workers)
            station.c_notify()
            return False
        if verdict.action == WAIT_UNTIL:
            station.collecting.fetch_add(1, memory_order_seq_cst)
            events_sleep(&station.workers, epoch, verdict.until_ns)
            station.collecting.fetch_sub(1, memory_order_seq_cst)
        elif may_yield:
            may_yield = False
            events_leave(&station.workers)
            sched_yield()
        else:
            events_sleep(&station.workers, epoch, FOREVER)


cdef c_bool _run_taken(Batch* batch, int worker, PyObject* station_pointer, PyObject* turn_pointer) noexcept nogil:
    """Run what a worker has taken, and more if more is there; then wake whoever waits, without the GIL. False: it ends."""
    cdef int what_now = _run_taken_with_gil(batch, worker, station_pointer, turn_pointer)
    if what_now != IS_GIVEN_UP:                                 # E8: then the watchdog wakes them
        (<Turn>turn_pointer).wake()
    return what_now == GOES_ON


cdef int _run_taken_with_gil(Batch* batch, int worker, PyObject* station_pointer, PyObject* turn_pointer) noexcept with gil:
    # noexcept: the caller is a nogil loop with no frame to raise into; whatever user code raises is filed in its walk.
    cdef Station station = <Station>station_pointer
    cdef Turn turn = <Turn>turn_pointer
    station.gil_acquires += 1
    _serve_hold(station, batch, worker, turn)
    if turn.abandoned is not None:
        return IS_GIVEN_UP
    return GOES_ON if turn.death is None else DIES


cdef int _fail_taken(Batch* batch, object cause, Turn turn) noexcept:
    """Fail what a worker has taken and cannot even list, because of what it met."""
    cdef Visit visit
    while batch.taken.count > 0:
        visit = only_visit_of(batch)
        fail_visit(visit.walk.engine, visit, death_error(cause), turn)
        send_one_back(visit, turn)
    return 0


cdef void _serve_hold(Station station, Batch* batch, int worker, Turn turn) noexcept:
    """Run the batch, and further ones while the GIL is held anyway; release the token; settle futures."""
    cdef int64_t started = kernel_now_ns()
    cdef int64_t cost_ns
    cdef c_bool is_long
    cdef Frame* frame
    cdef list visits
    cdef Engine engine
    cdef int32_t count
    cdef Verdict verdict
    while True:
        if batch.may_grow:
            top_up(station, batch)
        count = batch.taken.count
        # On one or two cores a chain brought nothing (docs/design.md).
        if _longest_lease_ns > 0 and count + station.queued.load(memory_order_relaxed) > MOST_AT_ONCE:
            turn.is_crowded = True
        turn.why = batch.reason + 1
        engine = (<Visit>batch.taken.first.visit).walk.engine
        visits = _list_taken(batch, turn)
        if engine.called_first is not None:
            start_called_beside(engine, station, turn)
        if visits and not _run_guarded(station, visits, batch.instance, worker != CALLER, turn):
            return                                              # E8: all of it is the watchdog's
        if engine.steppers:
            send_back(visits, turn)
        frame = enter_frame(<void*>engine, False, current_greenlet())  # filters are asked while the token is held
        if frame != NULL:
            frame.station = <void*>station
        enqueue_all(engine, turn)
        leave_frame(frame)
        station.running.fetch_sub(count, memory_order_relaxed)
        visits = None
        # Answers are handed out at the end of the hold: a caller woken earlier would only queue for the GIL. But a batch
        # that takes long, or nobody knows how long, or many short ones, must not hold them back; nor those who read a stream.
        cost_ns = cost_of(&station.cost_alone, count)
        is_long = station.streams or cost_ns == 0 or cost_ns > HANDOVER_NS or kernel_now_ns() - started > LONGEST_HELD_BACK_NS
        if is_long:
            turn.wake()
        if turn.interrupt is not None or turn.death is not None or (is_long and turn.settled_first != NULL):
            break                                               # callbacks run with no token and no batch held
        if station.queued.load(memory_order_relaxed) == 0 or not try_take(station, batch, worker, &verdict):
            break
    if is_hooked(AT_RELEASE):
        act_at_in(AT_RELEASE, turn)
    station.c_release_token(batch.instance)
    batch.instance = -1
    if turn.settled_first != NULL or engine.called_first is not None:
        if worker != CALLER:
            frame = enter_frame(<void*>engine, True, current_greenlet())
            settle(engine, turn)
            leave_frame(frame)
        else:
            settle(engine, turn)


cdef list _list_taken(Batch* batch, Turn turn):
    """The visits of a batch; [] if there is no memory for a list, and then they have failed. Raises nothing."""
    try:
        if is_hooked(AT_TAKEN):
            act_at(AT_TAKEN)
        return visits_of(batch)
    except BaseException as error:
        turn.death = error
        _fail_taken(batch, error, turn)
        return []


cdef c_bool _run_guarded(Station station, list visits, int index, c_bool is_workers, Turn turn) noexcept:
    """Run visits in an instance, on a worker before the eyes of the watchdog if the node has one; False: it gave them up."""
    cdef Visit visit = <Visit>visits[0]
    cdef Engine engine = visit.walk.engine
    cdef Instance instance = <Instance>visit.node.instances[index]
    if is_workers and station.hang_ns > 0 and turn.death is None:
        try:
            station.held[index] = visits, turn, instance, current_thread()
            turn.is_guarded = True
            for visit in visits:
                visit.is_held = True
        except BaseException as error:                          # run_batch fails them
            turn.death = error
    run_batch(engine, station, instance, visits, turn)
    if not turn.is_guarded:
        return True
    if turn.abandoned is not None:
        return False
    turn.is_guarded = False
    station.held[index] = None
    for visit in visits:
        visit.is_held = False
    return True


cdef int fail_all_queued(Station station, str why, object lost) except -1:
    """Fail every queued request; see Station.fail_queued."""
    cdef Batch batch
    cdef Turn turn = Turn.__new__(Turn)
    cdef Visit visit
    cdef Engine engine
    while True:
        with nogil:
            take_oldest(station, &batch)
        if batch.taken.count == 0:
            return turn.c_raise_interrupt()
        visit = only_visit_of(&batch)
        engine = visit.walk.engine
        fail_visit(engine, visit, closed_error(why) if lost is None else lost_error(visit, lost), turn)
        station.running.fetch_sub(1, memory_order_relaxed)
        enqueue_all(engine, turn)                               # a MapReduce may go on without its failed parts
        send_one_back(visit, turn)
        settle(engine, turn)
        turn.wake()
