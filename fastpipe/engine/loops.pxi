# Loops of calls: a backend that calls its own pipe, and waits for what only backends can do that all wait so.
#
# Guarantees   Such a wait ends with a CallLoop, within CALL_LOOP_SLICE_NS or so.
# Assumes      The GIL.

from cpython.ref cimport Py_DECREF, Py_INCREF
from libcpp.atomic cimport memory_order_seq_cst

from fastpipe.engine.parking cimport Frame, innermost_frame, is_another_inside, now_ns
from fastpipe.engine.ranking cimport next_of
from fastpipe.engine.tokens cimport tokens_leaving

from fastpipe.errors import CallLoop


cdef tuple backends_here(Engine engine, object awaited):
    """For waits_inside: that the backends of this pipe which this thread is in wait for something; None: there are none."""
    cdef Frame* frame = innermost_frame()
    cdef list stations = []
    cdef list visits = []
    while frame != NULL:
        if frame.engine == <void*>engine and frame.station != NULL:
            stations.append(<object>frame.station)
            if frame.batch != NULL:
                visits += <list>frame.batch
        frame = frame.outer
    return (awaited, stations, visits) if stations else None


cdef int wait_inside(Engine engine, Walk walk, int64_t deadline_ns) except -1:
    """Wait for a walk as Walk.c_wait does. In a backend of this pipe, raise CallLoop if it would be for ever."""
    cdef int64_t until
    cdef tuple wait
    if innermost_frame() == NULL:
        return walk.c_wait(deadline_ns)
    wait = backends_here(engine, walk)
    if wait is None:
        return walk.c_wait(deadline_ns)
    engine.waits_inside.append(wait)
    try:
        while True:
            until = now_ns() + CALL_LOOP_SLICE_NS
            if walk.c_wait(deadline_ns if 0 <= deadline_ns < until else until):
                return 1
            leave_flights(engine, walk)                         # it may follow what it is itself awaited for
            error = find_call_loop(engine, wait)
            if error is not None:
                raise error
            if deadline_ns >= 0 and now_ns() >= deadline_ns:
                return 0
    finally:
        take_out(engine.waits_inside, wait)


cdef object find_call_loop(Engine engine, tuple wait):
    """The error of a backend which waits for what only nodes can do whose instances all wait so; None: it may go on.

    Stuck is a backend that waits for a call of its own pipe which is queued at a stuck node, or which another stuck
    backend runs; one that waits for room in the queue of a stuck node; and a node all of whose instances are in stuck
    backends: the greatest sets for which that is true.
    """
    cdef Station station
    cdef list nodes = list(engine.stations)
    cdef list waits = list(engine.waits_inside)
    cdef bint changed = True
    while changed:
        changed = False
        for station in list(nodes):
            if _count_waits(waits, station) < _count_instances(station):
                nodes.remove(station)
                changed = True
        for other in list(waits):
            if (_station_awaited(other, nodes) is None and not _is_run_by(other[0], waits, other)
                    and not _is_behind(other[0], waits)):
                waits.remove(other)
                changed = True
    station = _station_awaited(wait, nodes)
    if station is None:
        return _loop_of_turns(wait, waits)
    held = " and ".join(_titles(nodes))
    if is_another_inside(current_greenlet()):
        return CallLoop(f"a call waits for {station.title}, whose instances are all in calls of other greenlets of this thread, "
                        f"which cannot go on while it waits. {_GREENLET_ADVICE}")
    if isinstance(wait[0], Walk):
        what = f"a call of its own pipe, which is queued at {station.title}"
    else:
        what = f"room for a call of its own pipe at node {station.name!r}"
    return CallLoop(f"a backend waits for {what}; but all instances of {held} wait for such calls: "
                    "give the node more instances, or use a graph, or MapReduce")


cdef object _loop_of_turns(tuple wait, list stuck):
    """The error of a stuck backend whose call waits for its turn in a sequence; None: it may go on."""
    for other in stuck:
        if other is wait and _is_behind(wait[0], stuck):
            return CallLoop("a backend waits for a call of its own pipe, whose turn in its sequence (state_of) comes after a request "
                            "that such a backend has: have the backend return first, or give the call another key")
    return None


cdef c_bool _is_behind(object awaited, list waits) noexcept:
    """True if what is awaited, or a part of it, waits for its turn behind a request that one of the backends that wait has."""
    cdef Position position
    cdef PyObject* each
    if not isinstance(awaited, Walk) or (<Walk>awaited).standing is None:
        return False
    position = (<Walk>awaited).standing.own
    while position is not None:
        if _waits_for_one_of(position, waits):
            return True
        position = position.sibling
    each = (<Walk>awaited).standing.kin
    while each != NULL:
        if _waits_for_one_of(<Position>each, waits):
            return True
        each = (<Position>each).kin_next
    return False


cdef c_bool _waits_for_one_of(Position position, list waits) noexcept:
    """True if a visit has arrived before its turn, and whose turn it is is a request that one of the backends that wait has."""
    cdef Visit visit
    cdef Position first = position.sequence.first
    if position.visit is None or first is position:
        return False
    for _, _, visits in waits:
        for visit in visits:
            if root_of(visit.walk) is root_of(first.walk):
                return True
    return False


cdef int32_t _count_instances(Station station) noexcept:
    """How many there are, with those that are retired and still in a batch."""
    return station.instance_count + tokens_leaving(&station.tokens)


cdef c_bool _holds(Station station, Walk walk):
    """True if some visit of a walk, or of a part of it, is queued here."""
    cdef Ticket* ticket
    cdef vector[PyObject*] visits
    cdef PyObject* visit
    cdef c_bool found = False
    station.desk.lock()                                         # E7: a holder of the GIL may wait for it
    drain_inbox(station)
    ticket = station.staged.first
    while ticket != NULL:                                       # E6: nothing in here may run a destructor
        visits.push_back(ticket.visit)
        Py_INCREF(<object>ticket.visit)
        ticket = next_of(ticket)
    station.desk.unlock()
    for visit in visits:
        found = found or is_part_of(<Visit>visit, walk)
        Py_DECREF(<object>visit)
    return found


cdef Station _station_awaited(tuple wait, list nodes):
    """Which of some stuck stations has to run before a wait inside a backend can end, as far as queues tell; or None."""
    cdef Station station
    if isinstance(wait[0], Station):
        return wait[0] if _makes_no_room(<Station>wait[0], nodes) else None
    for station in nodes:
        if _holds(station, <Walk>wait[0]):
            return station
        for visit in station.waiting_alone:                     # an eager call's
            if is_part_of(<Visit>visit, <Walk>wait[0]):
                return station
    return None


cdef c_bool _makes_no_room(Station front, list stuck):
    """True if the stations of a node are stuck: all of them, or all that have something in its full queue."""
    cdef Station station
    cdef size_t i
    cdef Visit visit
    cdef int32_t on_the_way = front.reserved                    # requests that may yet leave a place in the queue behind
    cdef list able = []
    cdef list places = [front]
    for i in range(front.others.size()):
        places.append(<Station>front.others[i])
    for station in places:
        if station not in stuck:
            able.append(station)
            continue
        for visit in station.waiting_alone:
            if visit.walk.has_room and visit.walk.home is station:
                on_the_way -= 1
    if not able:
        return True
    if len(able) == len(places) or on_the_way > 0:
        return False
    for station in able:
        if station.queued.load(memory_order_seq_cst) > station.ghosts:
            return False
    return True


cdef c_bool _is_run_by(object awaited, list waits, tuple but) noexcept:
    """True if one of the backends that wait, other than ``but``, runs what is awaited."""
    cdef Visit visit
    if not isinstance(awaited, Walk):
        return False
    for other in waits:
        if other is but:
            continue
        for visit in other[2]:
            if is_part_of(visit, <Walk>awaited):
                return True
    return False


cdef Py_ssize_t _count_waits(list waits, Station station) except -1:
    """How many backends that wait are instances of that station."""
    cdef Py_ssize_t count = 0
    for _, stations, _ in waits:
        for each in stations:
            count += each is station
    return count


cdef list _titles(list stations):
    cdef Station station
    cdef list titles = []
    for station in stations:
        titles.append(repr(station.name) + at_place(station))
    return titles
