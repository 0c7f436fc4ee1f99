# Running: a batch in an instance whose token is held, on a worker's thread or a caller's.
#
# Guarantees   E3, E6, E8. One request's failure is its own: a batch that fails is run again one by one, where it may be.

from cpython.dict cimport PyDict_Copy
from libcpp.atomic cimport memory_order_relaxed

from fastpipe.engine.costs cimport cost_note
from fastpipe.engine.parking cimport is_hooked, kernel_now_ns, unless_frozen
from fastpipe.engine.tokens cimport token_is_retired

from fastpipe.errors import ItemErrors
from fastpipe.faults import is_device_lost, is_out_of_memory
from fastpipe.snapshots import CannotCopy, take


cdef int send_on(Engine engine, Visit visit, Turn turn) noexcept:
    """Send a visit on; whatever goes wrong on the way fails its walk."""
    if visit.flight != NULL:
        return land(engine, visit, turn)
    visit.is_held = False
    visit.has_emitted = False
    if visit.stepper is not None or visit.has_left:
        return 0
    if visit.walk.deadline_ns >= 0 and is_over_time(visit.walk, turn) and not is_dead(visit):  # here, where it is counted
        return fail_visit(engine, visit, late_error(visit.walk), turn)
    try:
        advance(engine, visit, exit_of(engine, visit.walk.entry, visit.node), True, turn)
    except BaseException as error:
        fail_visit(engine, visit, with_place(error, visit.node), turn)
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
            _run_claimed(engine, station, instance, visits, turn)
            turn.ended_ns = 0
            return 0
        except BaseException as unexpected:                     # a hook, or no memory left: nobody may wait in vain
            cause = unexpected
            if turn.is_workers:
                turn.death = unexpected
        except:  # noqa: E722
            # See _no_memory.
            cause = _no_memory
        turn.ended_ns = 0
    for visit in visits:
        fail_visit(engine, visit, death_error(cause), turn)
    return 0


cdef int _run_claimed(Engine engine, Station station, Instance instance, list visits, Turn turn) except -1:
    cdef Visit visit
    cdef list alive = _claim_all(engine, visits, turn)
    cdef list before = None
    cdef str refusal = None                                     # why there can be no second run
    cdef int count
    cdef int64_t started, elapsed_ns                            # the kernel's, even where a test has frozen time
    cdef int64_t begun_ns, ended_ns
    cdef c_bool shared
    cdef object error
    count = len(alive)
    if count == 0:
        return 0
    if station.lost is not None:
        for visit in alive:
            station.requests_failed += 1
            fail_visit(engine, visit, lost_error(visit, station.lost), turn)
        return 0
    visit = <Visit>alive[0]
    batch = [(<Visit>each).request for each in alive]
    if (count > 1 and instance.retry_alone) or (turn.helps and has_others(alive, turn)):
        if instance.keeps_input:
            before = []
            for request in batch:
                before.append(PyDict_Copy(<dict>request))
        else:
            try:
                before = take(batch)
            except CannotCopy as obstacle:
                refusal = str(obstacle)
            except KeyboardInterrupt as interrupt:
                if not turn.helps:
                    raise
                return _put_back(engine, alive, None, None, interrupt, turn)
    shared = station.instance_count - station.tokens.idle.load(memory_order_relaxed) > 1
    if is_hooked(AT_FORWARD):
        act_at(AT_FORWARD)
    started = kernel_now_ns()
    begun_ns = unless_frozen(started)
    if turn.is_guarded:
        begin_batch(station, instance.index, turn, begun_ns)
    if engine.events is not None:
        engine.events.c_note_batch(station, instance, alive, turn, started)
    error = _forward(engine, station, instance, batch, alive, turn)
    if turn.is_workers and engine.generation != _generation:
        end_child(instance.backend)
    elapsed_ns = kernel_now_ns()
    ended_ns = unless_frozen(elapsed_ns)
    elapsed_ns -= started
    if turn.is_guarded and not end_batch(station, instance.index, turn):
        return 0
    if engine.events is not None:
        engine.events.c_note_end_of_batch(station, instance, turn, started + elapsed_ns)
    if is_hooked(AT_RETURN):
        act_at(AT_RETURN)
    else:
        turn.ended_ns = ended_ns
    station.busy_ns += elapsed_ns
    note_batch(station, alive, count, ended_ns - begun_ns)
    if instance.has_padding:
        note_padding(station, instance)
    if error is None:
        cost_note(&station.cost_shared if shared else &station.cost_alone, count, elapsed_ns)
        for visit in alive:
            note_wait(station, visit, begun_ns, ended_ns)
            if "result" not in visit.request or visit.without is not None:
                note_result(engine, visit, instance.backend, turn)
            send_on(engine, visit, turn)
        return 0
    for visit in alive:
        note_wait(station, visit, begun_ns, ended_ns)
    try:
        _file_failures(engine, station, instance, alive, batch, before, refusal, error, turn)
    except BaseException as unexpected:                         # exceptions may be as odd as their classes
        for visit in alive:
            fail_visit(engine, visit, copy_of(unexpected), turn)
    except:  # noqa: E722
        # See _no_memory.
        for visit in alive:
            fail_visit(engine, visit, _no_memory, turn)
    return 0


cdef list _claim_all(Engine engine, list visits, Turn turn):
    """Those of some visits that are still wanted, as a rule the same list; the others have failed, or nobody waits for them."""
    cdef Visit visit
    cdef list alive = None                                      # once there is one that is not
    cdef Py_ssize_t index
    cdef c_bool is_wanted
    for index in range(len(visits)):
        visit = <Visit>visits[index]
        is_wanted = False
        try:
            is_wanted = claim(engine, visit, turn) and unpack(visit) == 0
        except BaseException as error:
            fail_visit(engine, visit, error, turn)
        if not is_wanted and alive is None:
            alive = visits[:index]
        elif is_wanted and alive is not None:
            alive.append(visit)
    return visits if alive is None else alive


cdef object _forward(Engine engine, Station station, Instance instance, list batch, list alive, Turn turn):
    """Have the backend run a batch; return what it raised, or None. Raises nothing."""
    cdef PyObject* context = NULL
    cdef object failure = None
    cdef tuple spans = None
    try:
        if (turn.is_elsewhere or turn.helps) and len(alive) == 1:
            context = root_of((<Visit>alive[0]).walk).c_enter_context(turn)
        if engine.tracer is not None and engine.tracer.followed != 0:
            spans = turn.spans = engine.tracer.c_enter_batch(station, instance, alive, turn)
        returned = run_backend(<void*>engine, instance.forward, batch, alive, station)
        if returned is not None:
            failure = wrong_return(returned, alive)
    except BaseException as error:
        failure = error
    except:  # noqa: E722
        # Lost on the way, for want of memory.
        failure = _no_memory
    if spans is not None:
        turn.spans = None
        (<Tracer>spans[0]).c_leave_batch(spans, failure, batch, alive, turn)
    if context != NULL:
        root_of((<Visit>alive[0]).walk).c_leave_context(context)
    return failure


cdef int _file_failures(Engine engine, Station station, Instance instance, list alive, list batch, list before, str refusal,
                        object error, Turn turn) except -1:
    """Decide what an exception of a batch means for each of its requests: each gets one of its own."""
    cdef Visit visit
    cdef int number = station.numbers[instance.index]
    cdef int count = len(alive)
    cdef object traceback
    cdef c_bool is_first
    if issubclass(type(error), ItemErrors):
        return _file_item_errors(engine, station, instance, alive, batch, error, turn)
    if turn.helps and issubclass(type(error), KeyboardInterrupt):
        # Ctrl-C hit a caller while it ran what may not be all its own.
        return _put_back(engine, alive, before, refusal, error, turn)
    if is_device_lost(error, instance.backend):
        is_first = _is_first_loss(station, instance, error)
        for visit in alive:
            station.requests_failed += 1
            fail_visit(engine, visit, with_batch(lost_error(visit, error), visit, number, count), turn)
        return tell_of_loss(station, instance.index, engine, turn) if is_first else 0
    if count > 1 and before is not None and instance.retry_alone:
        return _run_again(engine, station, instance, alive, before, error, turn)
    if count > 1 and refusal is not None and instance.retry_alone:
        add_note(error, f"fastpipe: the batch was not run again one by one: {refusal}")
    # _run_claimed holds it, and nobody else does, as a rule. A backend that keeps it may raise it again, for others.
    if Py_REFCNT(error) == 1 and count == 1:
        own = error
    else:
        traceback = traceback_for_copies(error)
        own = None
    for visit in alive:
        if visit.has_left:
            continue
        station.requests_failed += 1
        fail_visit(engine, visit, with_batch(copy_of(error) if own is None else own, visit, number, count), turn)
    if own is None:
        error.__traceback__ = traceback
    return 0


cdef c_bool _is_first_loss(Station station, Instance instance, object error) noexcept:
    """A batch has lost its device, and the node with it, unless others have taken the instance's place; True if that is news."""
    cdef c_bool is_first = station.lost is None
    if token_is_retired(&station.tokens, instance.index):
        return False
    station.lost = error
    return is_first


cdef int _file_item_errors(Engine engine, Station station, Instance instance, list alive, list batch, object error, Turn turn) except -1:
    """The same of ItemErrors, which says which requests have failed, and how."""
    cdef Visit visit
    cdef int index
    cdef int number = station.numbers[instance.index]
    cdef int count = len(alive)
    cdef object lost = None
    cdef c_bool is_first = False
    cdef dict errors = checked_item_errors(error, batch, alive)
    for each in errors.values():                                # a container's, whose child has said so
        if is_device_lost(each, instance.backend):
            lost = each
            is_first = _is_first_loss(station, instance, lost)
            break
    each = None
    for index in range(count):
        if index not in errors:
            note_result(engine, <Visit>alive[index], instance.backend, turn)
    for index in range(count):
        visit = <Visit>alive[index]
        if visit.has_left:
            continue
        if index in errors:
            station.requests_failed += 1
            own = errors[index] if lost is None else lost_error(visit, lost)
            # Held by ``errors`` and ``own``; by others it is if it was named for several, or is kept in the backend.
            if lost is None and Py_REFCNT(own) > 2:
                own = copy_of(own)
            fail_visit(engine, visit, with_batch(own, visit, number, count), turn)
        else:
            send_on(engine, visit, turn)
    return tell_of_loss(station, instance.index, engine, turn) if is_first else 0


cdef int _run_again(Engine engine, Station station, Instance instance, list alive, list before, object error, Turn turn) except -1:
    """Run the requests of a batch that has failed one by one, or, if memory ran out, half of them at a time; as they were."""
    cdef Visit visit
    cdef list pieces                                            # first: what is run is not to fail for want of a list
    cdef int half
    cdef int index = 0
    turn.why = RUN_AGAIN
    alive, before = _without_emitted(engine, station, instance, alive, before, error, turn)
    half = len(alive) // 2
    if is_out_of_memory(error):
        station.halved += 1
        pieces = [alive[:half], alive[half:]]
    else:
        pieces = []
        for visit in alive:
            pieces.append([visit])
    for piece in pieces:
        if turn.abandoned is not None:                          # E8
            return 0
        # What comes later is put back when its turn comes: what it shares with the first, that may have changed.
        for visit in <list>piece:
            restore(visit, before[index])
            index += 1
        run_batch(engine, station, instance, <list>piece, turn)
    return 0


cdef tuple _without_emitted(Engine engine, Station station, Instance instance, list alive, list before, object error, Turn turn):
    """Fail those of a batch that has failed of which chunks are handed on: they would be handed on twice. Return the others."""
    cdef Visit visit
    cdef int index
    cdef int count = len(alive)
    cdef list others = []
    cdef list before_them = []
    for index in range(count):
        visit = <Visit>alive[index]
        if not (visit.has_emitted or visit.has_left):
            others.append(visit)
            before_them.append(before[index])
    if len(others) == count:
        return alive, before
    for visit in alive:
        if visit.has_emitted and not visit.has_left:
            own = copy_of(error)
            add_note(own, "fastpipe: it was not run again alone, as parts of its answer had been handed on")
            station.requests_failed += 1
            fail_visit(engine, visit, with_batch(own, visit, station.numbers[instance.index], count), turn)
    return others, before_them


cdef int _put_back(Engine engine, list alive, list before, str refusal, object interrupt, Turn turn) except -1:
    """Ctrl-C has hit a caller who ran a batch, in it others' requests: those go back to the queue, as they were.

    Where that cannot be, they fail, as those do whose worker dies. ``before`` and ``refusal`` are None: it has not begun.
    """
    cdef Visit visit
    cdef int index
    turn.interrupt = interrupt                                  # its own requests are cancelled for it
    for index in range(len(alive)):
        visit = <Visit>alive[index]
        if refusal is not None:
            error = death_error(interrupt)
            add_note(error, f"fastpipe: the batch was not run again: {refusal}")
            fail_visit(engine, visit, error, turn)
            continue
        if before is not None:
            restore(visit, before[index])
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
        ask_filters(engine, turn)
        if len(turn.ready) > 1:
            hand_over(engine, turn)
        if not turn.ready:
            continue
        visit = take_last(turn.ready)
        if is_dead(visit):
            note_dropped(visit)
            continue
        if visit.node.twins is not None and not choose_twin(engine, visit, turn):
            continue
        station = visit.node.station
        weight = 1.0
        try:
            if station.batches:
                weight = weight_alone(visit, turn)
            visits = [visit]                                    # before the token is taken: there may be no memory
        except BaseException as error:
            fail_visit(engine, visit, with_place(error, visit.node), turn)
            continue
        index = token_for_caller(station, weight)
        if index < 0:
            enqueue(engine, visit, turn, True)
            continue
        if turn.c_has_sleepers():
            turn.wake()
        if visit.walk.has_room:
            leave_room(visit.walk)
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
