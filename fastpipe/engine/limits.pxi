# Limits: how much may wait in a queue, who waits there, and the books that are kept of it.
#
# Guarantees   Where a limit exists, queued + reserved never exceed it, but for what a graph hands on to a node that blocks.
#              Leaving a queue needs no memory. A node at several places has one limit, its front's.
# Assumes      The GIL. No code of users runs in here, but __hash__ and __eq__ of a bucket.

from cpython.ref cimport Py_DECREF
from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst

from fastpipe.engine.ranking cimport Cursor, Taken, cursor_begin, cursor_move, cursor_pass, taken_init, taken_pop


cdef Visit _take_oldest(Station station):
    """Take the request that would be next out of the queue, or None."""
    cdef Batch batch
    take_oldest(station, &batch)                                # with the GIL: nothing may come in between
    if batch.taken.count == 0:
        return None
    station.running.fetch_sub(1, memory_order_relaxed)
    return only_visit_of(&batch)


cdef Visit take_oldest_of_all(Station front):
    """The same of the queues at all places of the node. At the front."""
    cdef Station station, chosen
    cdef Visit visit
    cdef int64_t rank_ns
    cdef int64_t least_ns = 0
    cdef size_t i
    if front.states is not None and front.states.parked_first is not None:
        return front.states.parked_first.visit                  # it waits for others of its sequence: longer than who is queued
    if front.others.empty():
        return _take_oldest(front)
    while True:                                                 # until no worker has been faster
        chosen = front if _oldest_rank(front, &least_ns) else None
        for i in range(front.others.size()):
            station = <Station>front.others[i]
            if _oldest_rank(station, &rank_ns) and (chosen is None or rank_ns < least_ns):
                chosen = station
                least_ns = rank_ns
        if chosen is None:
            return None
        visit = _take_oldest(chosen)
        if visit is not None:
            return visit


cdef c_bool _oldest_rank(Station station, int64_t* rank_ns) noexcept:
    """The rank of the request that would be next; False if nothing is queued."""
    cdef c_bool found
    station.desk.lock()                                         # E7: a holder of the GIL may wait for it
    drain_inbox(station)
    found = station.staged.first != NULL
    if found:
        rank_ns[0] = station.staged.first.rank_ns
    station.desk.unlock()
    return found


cdef int sweep(Station station) except -1:
    """Take visits whose walks have ended out of the queue, once they are many: they keep their data alive."""
    cdef Taken ghosts
    cdef Cursor cursor
    if station.ghosts < 32 or station.ghosts < station.queued.load(memory_order_relaxed) // 2:
        return 0
    taken_init(&ghosts)
    station.desk.lock()                                         # E7: a holder of the GIL may wait for it
    drain_inbox(station)
    cursor_begin(&cursor, &station.staged)
    while cursor.at != NULL:
        if (<Visit>cursor.at.visit).is_ghost:
            if (<Visit>cursor.at.visit).flight != NULL:
                (<Flight>(<Visit>cursor.at.visit).flight).has_landed = True  # nobody is to follow from now on
            cursor_move(&cursor, &station.staged, &ghosts)
        else:
            cursor_pass(&cursor, &station.staged)
    station.queued.fetch_sub(ghosts.count, memory_order_seq_cst)
    station.desk.unlock()
    while ghosts.count > 0:
        note_dropped(_first_visit_of(&ghosts))
    return 0


cdef list visits_of(Batch* batch):
    """The visits of a batch, as a list that owns them; the tickets' references are given up."""
    cdef list visits = [None] * batch.taken.count               # if there is no memory for it, nothing has happened
    cdef Visit visit
    cdef Station station
    cdef Py_ssize_t index
    for index in range(batch.taken.count):
        visit = <Visit>taken_pop(&batch.taken).visit
        visits[index] = visit
        Py_DECREF(visit)                                        # E2: the list holds it now
    station = visit.node.station
    for visit in visits:
        leave_queue(visit, station)
    if station.c_is_limited():
        tell_of_room(station)
    return visits


cdef Visit _first_visit_of(Taken* taken):
    """Hand out the first visit of what is taken; there must be one, and its ticket's reference is given up. Needs no memory."""
    cdef Visit visit = <Visit>taken_pop(taken).visit
    Py_DECREF(visit)                                            # E2: ``visit`` holds it now
    leave_queue(visit, visit.node.station)
    return visit


cdef Visit only_visit_of(Batch* batch):
    """The same of a batch of one; those who wait for room are told."""
    cdef Visit visit = _first_visit_of(&batch.taken)
    if visit.node.station.c_is_limited():
        tell_of_room(visit.node.station)
    return visit


cdef int leave_queue(Visit visit, Station station) noexcept:
    """Take a visit that was popped out of its station's books. Needs no memory."""
    release_bucket(visit)
    if not station.c_is_limited():
        return 0
    if visit.is_ghost:
        visit.is_ghost = False
        station.ghosts -= 1
        return 0
    station.queued_bytes -= visit.size_bytes
    visit.size_bytes = 0
    if visit.walk.queued is not None:
        take_out(visit.walk.queued, visit)
    return 0


cdef void release_bucket(Visit visit) noexcept:
    cdef list entry = visit.bucket
    if entry is None:
        return
    visit.bucket = None
    try:                                                        # a bucket's __hash__ and __eq__ may be a user's
        entry[1] -= 1
        if entry[1] == 0 and visit.node.station.bucket_ids.get(entry[2]) is entry:
            del visit.node.station.bucket_ids[entry[2]]
    except BaseException as error:
        report(error, visit.node.station)


cdef inline void take_places(Walk walk, Line line, int64_t size_bytes) noexcept:
    """The places that are booked for a request are its walk's."""
    walk.has_room = line.home is not None
    walk.room_bytes = size_bytes
    walk.is_counted = line.whole is not None


cdef inline void leave_room(Walk walk) noexcept:
    """Give up the place that is held in a queue: it is taken for good, or not needed."""
    cdef Station front = front_of(walk.home)
    walk.has_room = False
    front.reserved -= 1
    front.reserved_bytes -= walk.room_bytes
