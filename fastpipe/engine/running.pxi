# Running: a batch in an instance whose token is held, on a worker's thread or a caller's.
#
# Guarantees   E3, E6, E8. One request's failure is its own: a batch that fails is run again one by one, where it may be.

from libcpp.atomic cimport memory_order_relaxed

from fastpipe.engine.parking cimport Frame, enter_frame, is_hooked, kernel_now_ns, leave_frame

from threading import current_thread


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
    station_serve_hold(station, batch, worker, turn)
    if turn.abandoned is not None:
        return IS_GIVEN_UP
    return GOES_ON if turn.death is None else DIES


cdef int _fail_taken(Batch* batch, object cause, Turn turn) noexcept:
    """Fail what a worker has taken and cannot even list, because of what it met."""
    cdef Visit visit
    while batch.first != NULL:
        visit = _only_visit_of(batch)
        visit.walk.engine.c_fail_visit(visit, _death(cause), turn)
        visit.walk.engine.c_send_one_back(visit, turn)
    return 0


cdef void station_serve_hold(Station station, Batch* batch, int worker, Turn turn) noexcept:
    """Run the batch, and further ones while the GIL is held anyway; release the token; settle futures."""
    cdef int64_t started = kernel_now_ns()
    cdef int64_t cost_ns
    cdef c_bool is_long
    cdef Frame* frame
    cdef list visits
    cdef Visit visit
    cdef Instance instance
    cdef Engine engine
    cdef int32_t count
    cdef Verdict verdict
    cdef int only = worker if station.thread_bound else -1
    while True:
        if batch.may_grow:
            station.c_top_up(batch)
        count = batch.count
        engine = (<Visit>batch.first.visit).walk.engine
        try:
            if is_hooked(AT_TAKEN):
                _act(AT_TAKEN)
            visits = _visits_of(batch)
        except BaseException as error:                          # there is no memory for a list
            turn.death = error
            visits = []
            _fail_taken(batch, error, turn)
        if engine.called_first is not None:
            engine.c_start_called_beside(station, turn)
        if visits:
            instance = <Instance>(<Visit>visits[0]).node.instances[batch.instance]
            if worker >= 0 and station.hang_ns > 0 and turn.death is None:
                try:
                    station.held[batch.instance] = visits, turn, instance, current_thread()
                    turn.is_guarded = True
                    for visit in visits:
                        visit.is_held = True
                except BaseException as error:                  # c_run_batch fails them
                    turn.death = error
            engine.c_run_batch(station, instance, visits, turn)
            if turn.is_guarded:
                if turn.abandoned is not None:
                    return                                      # E8: all of it is the watchdog's
                turn.is_guarded = False
                station.held[batch.instance] = None
                for visit in visits:
                    visit.is_held = False
        if engine.steppers:
            engine.c_send_back(visits, turn)
        frame = enter_frame(<void*>engine, False, _greenlet())  # filters are asked while the token is held
        if frame != NULL:
            frame.station = <void*>station
        engine.c_queue_all(turn)
        leave_frame(frame)
        station.running.fetch_sub(count, memory_order_relaxed)
        visits = None
        # Answers are handed out at the end of the hold: a caller woken earlier would only queue for the GIL. But a batch
        # that takes long, or nobody knows how long, or many short ones, must not hold them back.
        cost_ns = station.c_cost(station.cost_alone_ns, count)
        is_long = cost_ns == 0 or cost_ns > HANDOVER_NS or kernel_now_ns() - started > LONGEST_HELD_BACK_NS
        if is_long:
            turn.wake()
        if turn.interrupt is not None or turn.death is not None or (is_long and turn.settled_first != NULL):
            break                                               # callbacks run with no token and no batch held
        if station.queued.load(memory_order_relaxed) == 0 or not station.c_try_take(batch, only, &verdict):
            break
    if is_hooked(AT_RELEASE):
        _act_in(AT_RELEASE, turn)
    station.c_release_token(batch.instance)
    batch.instance = -1
    if turn.settled_first != NULL or engine.called_first is not None:
        if worker >= 0:
            frame = enter_frame(<void*>engine, True, _greenlet())
            engine.c_settle(turn)
            leave_frame(frame)
        else:
            engine.c_settle(turn)
