# Loops of calls: a backend that calls its own pipe, and waits for what only backends can do that all wait so.
#
# Guarantees   Such a wait ends with a CallLoop, within CALL_LOOP_SLICE_NS or so.
# Assumes      The GIL.

from libcpp.atomic cimport memory_order_seq_cst


cdef Station _station_awaited(tuple wait, list nodes):
    """Which of some stuck stations has to run before a wait inside a backend can end, as far as queues tell; or None."""
    cdef Station station
    if isinstance(wait[0], Station):
        return wait[0] if _makes_no_room(<Station>wait[0], nodes) else None
    for station in nodes:
        if station.c_holds(<Walk>wait[0]):
            return station
        for visit in station.waiting_alone:                     # an eager call's
            if _is_of(<Visit>visit, <Walk>wait[0]):
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
    return isinstance(awaited, Walk) and any([_is_of(<Visit>visit, <Walk>awaited)
                                              for other in waits if other is not but for visit in other[2]])
