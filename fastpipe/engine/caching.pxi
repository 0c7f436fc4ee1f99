# Caching: an answer that is there already, or on its way, so that a request need not run.
#
# Of equal requests that are in flight at a node with a cache, one runs: it *leads* a flight, and the others *follow*, parked in
# it without a thread. What becomes of the leader's walk is its own affair: it may be cancelled, or too late. As long as somebody
# follows, its visit is not dead (is_dead): it stays where it is, in its queue or its batch, and runs.
#
# Guarantees   A follower is in one place, its flight's list (E2), until that lands: it then has the answer, the error, or runs itself.
#              What is kept, or shared, was set for a content that had not changed until it was there.
# Assumes      The GIL. Sub-graphs have no cache, so that no visit that others are parts of leads.

from cpython.dict cimport PyDict_Copy

from fastpipe.engine.parking cimport Frame, enter_frame, is_hooked, leave_frame

from fastpipe.errors import WorkerDied

cdef enum:
    _SWEEP_FROM = 32                             # followers, before the dead ones among them are taken out


cdef int look_up(Engine engine, Visit visit, Turn turn) except -1:
    """Answer a visit that may run from its node's cache, have it follow an equal one, or let it run. Raises what fails the walk."""
    cdef ResultCache cache = visit.node.cache
    cdef Answer answer
    cdef Flight flight
    cdef Flight own = None
    cdef _Content content = None
    cdef bytes key = None
    if turn.stepper == NULL:                                    # who takes steps wants to see it run
        turn.ended_ns = 0                                       # it may take a while
        content = _content_for(engine, cache, visit.request)
    if content is not None:
        key = content.c_key()
    if key is None:
        cache.bypassed += 1
        turn.ready.append(visit)
        return 0
    while True:                                                 # whatever makes an object may let others run
        answer = find_answer(cache, key)
        if answer is not None:
            cache.hits += 1
            fill_in(visit, answer)
            _need_no_room(visit)
            if visit.way == ENTERED:                            # who comes back comes for an answer, not into a batch
                visit.walk.home = None
            return advance(engine, visit, exit_of(engine, visit.walk.entry, visit.node), True, turn)
        flight = <Flight>cache.flights.get(key)
        if flight is not None and not flight.has_landed:
            keep_context(visit.walk)                            # it goes on on the leader's thread
            if len(flight.followers) >= flight.sweep_at:
                _sweep_followers(flight)
            if not flight.has_landed:
                return _follow(flight, visit)
        elif own is not None:
            return _lead(own, visit, turn)
        else:
            own = Flight.__new__(Flight)
            own.cache = cache
            own.key = key
            own.leader = visit
            own.followers = []
            own.sweep_at = _SWEEP_FROM
            own.before = PyDict_Copy(visit.request)
            own.may_change = content.may_change


cdef _Content _content_for(Engine engine, ResultCache cache, dict request):
    """What a request contains, as far as the node's cache looks; None: it has no key, and is not looked for."""
    cdef object chosen
    if cache.choice is None or isinstance(cache.choice, tuple):
        return <_Content>cache.c_content(request)
    chosen = enter_user_code(<void*>engine, cache.choice, request)
    try:
        return None if chosen is None else content_of_value(chosen, cache.hasher)
    except Exception:                                           # as there
        return None


cdef int _need_no_room(Visit visit) noexcept:
    """A visit does not queue where it has entered."""
    if visit.walk.has_room:
        leave_room(visit.walk)
        tell_of_room(visit.walk.home)
    return 0


cdef int _lead(Flight flight, Visit visit, Turn turn) except -1:
    cdef ResultCache cache = flight.cache
    flight.generation = cache.generation
    cache.aloft[flight] = None
    visit.flight = <PyObject*>flight                            # from here on a failure closes it
    cache.flights[flight.key] = flight
    cache.misses += 1
    turn.ready.append(visit)
    return 0


cdef int _follow(Flight flight, Visit visit) except -1:
    cdef Visit leader = flight.leader
    flight.followers.append(visit)
    flight.cache.coalesced += 1
    _need_no_room(visit)
    if leader.is_ghost:                                         # its walk has ended, and it is wanted again
        leader.is_ghost = False
        leader.node.station.ghosts -= 1
    return 0


cdef int _sweep_followers(Flight flight) except -1:
    """Take the dead followers out: callers that come and go must not pile up."""
    cdef list followers = flight.followers
    cdef Py_ssize_t index = len(followers)
    cdef Visit visit
    cdef Visit last
    while index > 0:
        index -= 1
        if index >= len(followers):                             # a destructor has let others run
            continue
        visit = <Visit>followers[index]
        if is_dead(visit):
            last = take_last(followers)
            if last is not visit:
                followers[index] = last
            note_dropped(visit)
    flight.sweep_at = 2 * len(followers) + _SWEEP_FROM
    return 0


cdef int land(Engine engine, Visit visit, Turn turn) noexcept:
    """A leader has run: keep what it has set, send it on, and answer its followers."""
    cdef Flight flight = <Flight>visit.flight
    cdef ResultCache cache = flight.cache
    cdef Answer answer = None
    cdef c_bool is_kept = False
    try:
        turn.ended_ns = 0                                       # it may take a while
        if not flight.may_change or _is_unchanged(engine, flight):
            answer = new_answer(flight, visit, &is_kept)
        if is_hooked(AT_LAND):
            act_at_in(AT_LAND, turn)
        if is_kept and flight.generation == cache.generation:
            keep_answer(cache, flight.key, answer)
        else:
            cache.not_kept += 1
    except Exception:                                           # what it has set cannot be copied
        cache.not_kept += 1
        answer = None
    except BaseException as error:
        note_interrupt(turn, error)
        answer = None
    close_flight(flight)
    send_on(engine, visit, turn)
    return _send_followers(engine, flight, answer, None, False, turn) if flight.followers else 0


cdef c_bool _is_unchanged(Engine engine, Flight flight) except *:
    """True if what the leader was asked is what it was when it was looked for: nobody has changed it in place."""
    cdef _Content content = _content_for(engine, flight.cache, flight.before)
    return content is not None and content.c_key() == flight.key


cdef int fail_flight(Engine engine, Visit visit, object error, Turn turn) noexcept:
    """A leader has failed: so do its followers. If it was not for what it was asked, they run themselves."""
    cdef Flight flight = <Flight>visit.flight
    cdef c_bool is_theirs = issubclass(type(error), Exception) and not issubclass(type(error), WorkerDied)
    cdef object traceback
    cdef object shared = None
    close_flight(flight)
    if not flight.followers:
        return fail_visit(engine, visit, error, turn)
    if is_theirs:
        traceback = traceback_for_copies(error)
        shared = copy_of(error)                                 # before its caller adds to it
        error.__traceback__ = traceback
    fail_visit(engine, visit, error, turn)
    return _send_followers(engine, flight, None, shared, not is_theirs, turn)


cdef int _send_followers(Engine engine, Flight flight, Answer answer, object error, c_bool looks_again, Turn turn) noexcept:
    """Give followers the answer, or the error; without either they run themselves, all or, if they look again, one of them.

    What goes on from here is queued: a caller runs nobody else's requests, and would not be in their contexts.
    """
    cdef Frame* frame
    cdef list followers = flight.followers
    cdef list arrived = None
    cdef list ready = None
    cdef Visit visit
    if turn.stepper == NULL:
        try:
            arrived = []
            ready = []
            arrived, turn.arrived = turn.arrived, arrived
            ready, turn.ready = turn.ready, ready
        except BaseException as unexpected:                     # no memory for two lists
            ready = None
            error = unexpected
    frame = enter_frame(<void*>engine, False, current_greenlet())  # filters are asked, maybe while a token is held
    if frame != NULL:
        frame.station = <void*>flight.leader.node.station
    for visit in followers:
        if is_dead(visit):
            note_dropped(visit)
        elif error is not None:
            fail_visit(engine, visit, copy_of(error), turn)
        else:
            try:
                if answer is not None:
                    fill_in(visit, answer)
                elif looks_again and ready is not None:
                    look_up(engine, visit, turn)
                else:
                    flight.cache.bypassed += 1
                    enqueue(engine, visit, turn, True)
            except BaseException as unexpected:
                fail_visit(engine, visit, with_place(unexpected, visit.node), turn)
                continue
            if answer is not None:
                send_on(engine, visit, turn)
    followers.clear()
    if ready is not None:
        enqueue_all(engine, turn)
        turn.arrived = arrived
        turn.ready = ready
    leave_frame(frame)
    return 0


cdef int leave_flights(Engine engine, Walk walk) except -1:
    """Have the visits of a walk that follow others run themselves; of a backend's call that waits for itself, perhaps."""
    cdef Turn turn = Turn.__new__(Turn)
    cdef Flight flight
    cdef Station station
    cdef Visit visit
    for station in engine.stations:
        if station.cache is None:
            continue
        for flight in list(station.cache.aloft):
            for visit in list(flight.followers):
                if is_part_of(visit, walk) and take_out(flight.followers, visit):
                    flight.cache.coalesced -= 1
                    flight.cache.bypassed += 1
                    enqueue(engine, visit, turn, True)
    settle(engine, turn)
    turn.wake()
    return turn.c_raise_interrupt()
