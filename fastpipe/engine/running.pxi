# Running: a batch in an instance whose token is held, on a worker's thread or a caller's.
#
# Guarantees   E3, E6, E8. One request's failure is its own: a batch that fails is run again one by one, where it may be.

from cpython.dict cimport PyDict_Copy
from libcpp.atomic cimport memory_order_relaxed

from fastpipe.engine.parking cimport Frame, enter_frame, is_hooked, kernel_now_ns, leave_frame, now_ns

from threading import current_thread

from fastpipe.errors import BackendError, ItemErrors
from fastpipe.faults import is_device_lost, is_out_of_memory
from fastpipe.snapshots import CannotCopy, take


cdef int send_on(Engine engine, Visit visit, Turn turn) noexcept:
    """Send a visit on; whatever goes wrong on the way fails its walk."""
    visit.is_held = False
    if visit.stepper is not None:
        return 0
    try:
        advance(engine, visit, exit_of(engine, visit.walk.entry, visit.node, STATUS_SKIP), True, turn)
    except BaseException as error:
        fail_visit(engine, visit, _with_place(error, visit.node), turn)
    except:  # noqa: E722
        # See _no_memory.
        fail_visit(engine, visit, _no_memory, turn)
    return 0


cdef int run_batch(Engine engine, Station station, Instance instance, list visits, Turn turn) noexcept:
    """Run visits in an instance whose token is held, and send each on or fail it."""
    cdef Visit visit
    cdef object cause = turn.death
    if turn.abandoned is not None:
        return 0
    if cause is None:
        try:
            run_claimed(engine, station, instance, visits, turn)
            return 0
        except BaseException as unexpected:                     # a hook, or no memory left: nobody may wait in vain
            cause = unexpected
            if turn.is_workers:
                turn.death = unexpected
        except:  # noqa: E722
            # See _no_memory.
            cause = _no_memory
    for visit in visits:
        fail_visit(engine, visit, _death(cause), turn)
    return 0


cdef int run_claimed(Engine engine, Station station, Instance instance, list visits, Turn turn) except -1:
    cdef Visit visit
    cdef list alive = []
    cdef list before = None
    cdef str refusal = None                                     # why there can be no second run
    cdef int count
    cdef int64_t started = 0
    cdef int64_t elapsed_ns
    cdef c_bool shared
    cdef object error = None
    for visit in visits:
        try:
            if claim(engine, visit, turn):
                alive.append(visit)
        except BaseException as claim_error:
            fail_visit(engine, visit, claim_error, turn)
    count = len(alive)
    if count == 0:
        return 0
    if station.lost is not None:
        for visit in alive:
            station.requests_failed += 1
            fail_visit(engine, visit, lost_error(engine, visit, station.lost), turn)
        return 0
    visit = <Visit>alive[0]
    batch = [(<Visit>each).request for each in alive]
    if (count > 1 and visit.node.retry_alone) or (turn.helps and _has_others(alive, turn)):
        if visit.node.keeps_input:
            before = [PyDict_Copy(<dict>request) for request in batch]
        else:
            try:
                before = take(batch)
            except CannotCopy as obstacle:
                refusal = str(obstacle)
            except KeyboardInterrupt as interrupt:
                if not turn.helps:
                    raise
                return put_back(engine, alive, None, None, interrupt, turn)
    shared = station.instance_count - station.idle.load(memory_order_relaxed) > 1
    if is_hooked(AT_FORWARD):
        _act(AT_FORWARD)
    if turn.is_guarded:
        started = now_ns()
        begin_batch(station, instance.index, started)
    elapsed_ns = kernel_now_ns()
    try:
        returned = _run_backend(<void*>engine, instance.forward, batch, alive, station)
        if returned is not None:
            error = BackendError(f"forward() of {visit.node.backend_name} returned {type(returned).__name__}; it must "
                                 "fill in request['result'] and return nothing")
    except BaseException as caught:
        error = caught
    except:  # noqa: E722
        # Lost on the way, for want of memory.
        error = _no_memory
    elapsed_ns = kernel_now_ns() - elapsed_ns
    if turn.is_guarded and not end_batch(station, instance.index, turn, started):
        return 0
    if is_hooked(AT_RETURN):
        _act(AT_RETURN)
    station.batches_run += 1
    station.requests_run += count
    station.busy_ns += elapsed_ns
    if error is None:
        station.c_note_cost(count, shared, elapsed_ns)
        for visit in alive:
            if "result" not in visit.request or visit.without is not None:
                note_result(engine, visit, instance.backend)
            send_on(engine, visit, turn)
        return 0
    try:
        file_failures(engine, station, instance, alive, batch, before, refusal, error, turn)
    except BaseException as unexpected:                         # exceptions may be as odd as their classes
        for visit in alive:
            fail_visit(engine, visit, _copy_of(unexpected), turn)
    except:  # noqa: E722
        # See _no_memory.
        for visit in alive:
            fail_visit(engine, visit, _no_memory, turn)
    return 0


cdef int file_failures(Engine engine, Station station, Instance instance, list alive, list batch, list before, str refusal,
                       object error, Turn turn) except -1:
    """Decide what an exception of a batch means for each of its requests: each gets one of its own."""
    cdef Visit visit
    cdef int index
    cdef int number = station.numbers[instance.index]
    cdef int count = len(alive)
    cdef object lost = None
    cdef dict errors
    cdef list halves
    cdef object traceback
    if issubclass(type(error), ItemErrors):
        errors = _checked_item_errors(error, batch, alive)
        for each in errors.values():                            # a container's, whose child has said so
            if is_device_lost(each, instance.backend):
                station.lost = lost = each
                break
        each = None
        for index in range(count):
            if index not in errors:
                note_result(engine, <Visit>alive[index], instance.backend)
        for index in range(count):
            visit = <Visit>alive[index]
            if index in errors:
                each = errors[index] if lost is None else lost_error(engine, visit, lost)
                station.requests_failed += 1
                own = errors[index] if lost is None else lost_error(engine, visit, lost)
                # Held by ``errors`` and ``own``; by others it is if it was named for several, or is kept in the backend.
                if lost is None and Py_REFCNT(own) > 2:
                    own = _copy_of(own)
                fail_visit(engine, visit, _with_batch(own, visit, number, count), turn)
            else:
                send_on(engine, visit, turn)
        return 0
    if turn.helps and issubclass(type(error), KeyboardInterrupt):
        # Ctrl-C hit a caller while it ran what may not be all its own.
        return put_back(engine, alive, before, refusal, error, turn)
    if is_device_lost(error, instance.backend):
        station.lost = error
        for visit in alive:
            station.requests_failed += 1
            fail_visit(engine, visit, _with_batch(lost_error(engine, visit, error), visit, number, count), turn)
        return 0
    if count > 1 and before is not None and (<Visit>alive[0]).node.retry_alone:
        if is_out_of_memory(error):                             # half as many may fit
            station.halved += 1
            halves = [alive[:count // 2], alive[count // 2:]]   # first: what is run is not to fail for want of a list
            index = 0
            # The second half is put back when its turn comes: what it shares with the first, that may have changed.
            for half in halves:
                if turn.abandoned is not None:                  # E8
                    return 0
                for visit in <list>half:
                    _restore(visit, before[index])
                    index += 1
                run_batch(engine, station, instance, <list>half, turn)
            return 0
        halves = [[visit] for visit in alive]
        for index in range(count):
            if turn.abandoned is not None:                      # E8
                return 0
            _restore(<Visit>alive[index], before[index])
            run_batch(engine, station, instance, <list>halves[index], turn)
        return 0
    if count > 1 and refusal is not None and (<Visit>alive[0]).node.retry_alone:
        _add_note(error, f"fastpipe: the batch was not run again one by one: {refusal}")
    # run_claimed holds it, and nobody else does, as a rule. A backend that keeps it may raise it again, for others.
    if Py_REFCNT(error) == 1 and count == 1:
        own = error
    else:
        traceback = _traceback_for_copies(error)
        own = None
    for visit in alive:
        station.requests_failed += 1
        fail_visit(engine, visit, _with_batch(_copy_of(error) if own is None else own, visit, number, count), turn)
    if own is None:
        error.__traceback__ = traceback
    return 0


cdef int put_back(Engine engine, list alive, list before, str refusal, object interrupt, Turn turn) except -1:
    """Ctrl-C has hit a caller who ran a batch, in it others' requests: those go back to the queue, as they were.

    Where that cannot be, they fail, as those do whose worker dies. ``before`` and ``refusal`` are None: it has not begun.
    """
    cdef Visit visit
    cdef int index
    turn.interrupt = interrupt                                  # its own requests are cancelled for it
    for index in range(len(alive)):
        visit = <Visit>alive[index]
        if refusal is not None:
            error = _death(interrupt)
            _add_note(error, f"fastpipe: the batch was not run again: {refusal}")
            fail_visit(engine, visit, error, turn)
            continue
        if before is not None:
            _restore(visit, before[index])
        enqueue(engine, visit, turn, True)
    return 0


cdef int run_ready(Engine engine, Turn turn) noexcept:
    """Run what is ready on this thread, node after node, as far as instances are free; queue the rest."""
    cdef Visit visit
    cdef Station station
    cdef list visits
    cdef double weight
    cdef int index
    while turn.ready or turn.arrived:
        enter_arrived(engine, turn)
        if len(turn.ready) > 1:
            hand_over(engine, turn)
        if not turn.ready:
            continue
        visit = _take_last(turn.ready)
        if _is_dead(visit) or visit.node.twins is not None and not choose_twin(engine, visit, turn):
            continue
        station = visit.node.station
        weight = 1.0
        try:
            if station.batches:
                weight = _weight(visit)
                if isinstance(visit.node.bucket, str):
                    hash(_bucket_of(visit))                     # the same errors as on the way through the queue
            visits = [visit]                                    # before the token is taken: there may be no memory
        except BaseException as error:
            fail_visit(engine, visit, _with_place(error, visit.node), turn)
            continue
        index = token_for_caller(station, weight)
        if index < 0:
            enqueue(engine, visit, turn, True)
            continue
        if turn.wakes.size() != 0:
            turn.wake()
        if visit.walk.has_room:
            _leave_room(visit.walk)
            tell_of_room(station)
        if engine.called_first is not None:
            start_called_beside(engine, station, turn)
        station.running.fetch_add(1, memory_order_relaxed)
        station.run_by_caller += 1
        run_batch(engine, station, <Instance>visit.node.instances[index], visits, turn)
        station.running.fetch_sub(1, memory_order_relaxed)
        station.c_release_token(index)
        if turn.settled_first != NULL:
            settle(engine, turn)                                # with no token held: callbacks may call the pipe
    settle(engine, turn)                                        # others' requests, if the last visit has shed them
    turn.wake()
    return 0


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
        fail_visit(visit.walk.engine, visit, _death(cause), turn)
        send_one_back(visit.walk.engine, visit, turn)
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
            top_up(station, batch)
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
            start_called_beside(engine, station, turn)
        if visits:
            instance = <Instance>(<Visit>visits[0]).node.instances[batch.instance]
            if worker >= 0 and station.hang_ns > 0 and turn.death is None:
                try:
                    station.held[batch.instance] = visits, turn, instance, current_thread()
                    turn.is_guarded = True
                    for visit in visits:
                        visit.is_held = True
                except BaseException as error:                  # run_batch fails them
                    turn.death = error
            run_batch(engine, station, instance, visits, turn)
            if turn.is_guarded:
                if turn.abandoned is not None:
                    return                                      # E8: all of it is the watchdog's
                turn.is_guarded = False
                station.held[batch.instance] = None
                for visit in visits:
                    visit.is_held = False
        if engine.steppers:
            send_back(engine, visits, turn)
        frame = enter_frame(<void*>engine, False, _greenlet())  # filters are asked while the token is held
        if frame != NULL:
            frame.station = <void*>station
        enqueue_all(engine, turn)
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
        if station.queued.load(memory_order_relaxed) == 0 or not try_take(station, batch, only, &verdict):
            break
    if is_hooked(AT_RELEASE):
        _act_in(AT_RELEASE, turn)
    station.c_release_token(batch.instance)
    batch.instance = -1
    if turn.settled_first != NULL or engine.called_first is not None:
        if worker >= 0:
            frame = enter_frame(<void*>engine, True, _greenlet())
            settle(engine, turn)
            leave_frame(frame)
        else:
            settle(engine, turn)
