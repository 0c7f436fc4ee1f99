# Limits: how much may wait in a queue, who waits there, and the books that are kept of it.
#
# Guarantees   Where a limit exists, queued + reserved never exceed it, but for what a graph hands on to a node that blocks.
#              Leaving a queue needs no memory. A node at several places has one limit, its front's.
# Assumes      The GIL. No code of users runs in here, but __hash__ and __eq__ of a bucket.

from cpython.ref cimport Py_DECREF
from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst

from fastpipe.engine.ranking cimport Cursor, cursor_begin, cursor_pass, cursor_take

from fastpipe.errors import QueueFull


cdef int32_t count_waiting(Station front) noexcept:
    """How many requests wait for the node, at all its places. At the front."""
    cdef int32_t waiting = front.queued.load(memory_order_seq_cst) - front.ghosts
    cdef size_t i
    for i in range(front.others.size()):
        waiting += (<Station>front.others[i]).queued.load(memory_order_seq_cst) - (<Station>front.others[i]).ghosts
    return waiting


cdef int64_t count_waiting_bytes(Station front) noexcept:
    """How many bytes they have. At the front."""
    cdef int64_t size_bytes = front.queued_bytes
    cdef size_t i
    for i in range(front.others.size()):
        size_bytes += (<Station>front.others[i]).queued_bytes
    return size_bytes


cdef c_bool is_full(Station front, int64_t more_bytes, c_bool with_reserved) noexcept:
    cdef int32_t waiting = count_waiting(front)
    cdef int64_t reserved_bytes = 0
    if with_reserved:
        waiting += front.reserved
        reserved_bytes = front.reserved_bytes
    if front.max_queue > 0 and waiting >= front.max_queue:
        return True
    return front.max_queue_bytes > 0 and count_waiting_bytes(front) + reserved_bytes + more_bytes > front.max_queue_bytes


cdef object full_error(Station front, int64_t more_bytes):
    cdef int32_t waiting = count_waiting(front) + front.reserved
    if front.name is None:
        return QueueFull(f"the pipe is full: {waiting} requests are in flight, and its max_in_flight is {front.max_queue}")
    cdef int64_t waiting_bytes = count_waiting_bytes(front) + front.reserved_bytes
    if front.max_queue_bytes > 0 and waiting_bytes + more_bytes > front.max_queue_bytes:
        said = (f"{waiting_bytes} bytes wait, the request has {more_bytes}, and its max_queue_bytes is "
                f"{front.max_queue_bytes}")
    else:
        said = f"{waiting} requests wait, and its max_queue is {front.max_queue}"
    return QueueFull(f"the queue of node {front.name!r} is full: {said}")


cdef void tell_of_room(Station station) noexcept:
    """The queue is shorter: let in who has waited longest, as many as there are places. They stand at the front.

    No code of users runs in here. Coroutines that are let in wait for start_called, which whoever frees places
    calls before it runs a backend, sleeps or lets the GIL go for good.
    """
    cdef Line line, chosen
    cdef int64_t latest = -1                                    # of those that were looked at, who come in order
    if station.front is not None:
        tell_of_room(station.front)
        return
    while station.waiter_count > 0:
        chosen = None
        for line in station.lines:
            if line.first is not None and line.first.number > latest and (chosen is None
                                                                          or line.first.number < chosen.first.number):
                chosen = line
        if chosen is None:                                      # what keeps them out is full elsewhere
            return
        latest = chosen.first.number
        chosen.c_let_in_first()


cdef Visit take_oldest(Station station):
    """Take the request that would be next out of the queue, or None."""
    cdef Batch batch
    batch.first = NULL
    station.desk.lock()                                         # E7; nothing may come in between
    drain_inbox(station)
    if station.staged.first != NULL:
        take_staged(station, &batch, station.staged.first.bucket, 1)
    station.desk.unlock()
    if batch.first == NULL:
        return None
    station.running.fetch_sub(1, memory_order_relaxed)
    return _only_visit_of(&batch)


cdef Visit take_oldest_of_all(Station front):
    """The same of the queues at all places of the node. At the front."""
    cdef Station station, chosen
    cdef Visit visit
    cdef int64_t rank_ns
    cdef int64_t least_ns = 0
    cdef size_t i
    if front.others.empty():
        return take_oldest(front)
    while True:                                                 # until no worker has been faster
        chosen = front if oldest_rank(front, &least_ns) else None
        for i in range(front.others.size()):
            station = <Station>front.others[i]
            if oldest_rank(station, &rank_ns) and (chosen is None or rank_ns < least_ns):
                chosen = station
                least_ns = rank_ns
        if chosen is None:
            return None
        visit = take_oldest(chosen)
        if visit is not None:
            return visit


cdef c_bool oldest_rank(Station station, int64_t* rank_ns) noexcept:
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
    cdef Batch ghosts
    cdef Cursor cursor
    cdef Ticket* ticket
    cdef Ticket* last = NULL
    if station.ghosts < 32 or station.ghosts < station.queued.load(memory_order_relaxed) // 2:
        return 0
    ghosts.first = NULL
    ghosts.count = 0
    station.desk.lock()                                         # E7: a holder of the GIL may wait for it
    drain_inbox(station)
    cursor_begin(&cursor, &station.staged)
    while cursor.at != NULL:
        if not (<Visit>cursor.at.visit).is_ghost:
            cursor_pass(&cursor, &station.staged)
            continue
        ticket = cursor_take(&cursor, &station.staged)
        if last == NULL:
            ghosts.first = ticket
        else:
            last.next.store(<void*>ticket, memory_order_relaxed)
        last = ticket
        ghosts.count += 1
    station.queued.fetch_sub(ghosts.count, memory_order_seq_cst)
    station.desk.unlock()
    while ghosts.first != NULL:
        _first_visit_of(&ghosts)                                # and drop it
    return 0


cdef list _visits_of(Batch* batch):
    """The visits of a batch, as a list that owns them; the tickets' references are given up."""
    cdef list visits = [None] * batch.count                     # if there is no memory for it, nothing has happened
    cdef Visit visit
    cdef Station station
    cdef Ticket* ticket = batch.first
    cdef Ticket* after
    cdef Py_ssize_t index = 0
    while ticket != NULL:
        after = <Ticket*>ticket.next.load(memory_order_relaxed)
        visit = <Visit>ticket.visit
        visits[index] = visit
        index += 1
        Py_DECREF(visit)                                        # E2: the list holds it now
        ticket = after
    batch.first = NULL
    station = visit.node.station
    for visit in visits:
        _leave_queue(visit, station)
    if station.c_is_limited():
        tell_of_room(station)
    return visits


cdef Visit _first_visit_of(Batch* batch):
    """Take one visit out of a batch that is not empty; the ticket's reference is given up. Needs no memory."""
    cdef Ticket* ticket = batch.first
    cdef Visit visit = <Visit>ticket.visit
    batch.first = <Ticket*>ticket.next.load(memory_order_relaxed)
    Py_DECREF(visit)                                            # E2: ``visit`` holds it now
    _leave_queue(visit, visit.node.station)
    return visit


cdef Visit _only_visit_of(Batch* batch):
    """The same of a batch of one; those who wait for room are told."""
    cdef Visit visit = _first_visit_of(batch)
    if visit.node.station.c_is_limited():
        tell_of_room(visit.node.station)
    return visit


cdef int _leave_queue(Visit visit, Station station) noexcept:
    """Take a visit that was popped out of its station's books. Needs no memory."""
    _release_bucket(visit)
    if not station.c_is_limited():
        return 0
    if visit.is_ghost:
        visit.is_ghost = False
        station.ghosts -= 1
        return 0
    station.queued_bytes -= visit.size_bytes
    visit.size_bytes = 0
    if visit.walk.queued is not None:
        _take_out(visit.walk.queued, visit)
    return 0


cdef void _release_bucket(Visit visit) noexcept:
    cdef list entry = visit.bucket
    if entry is None:
        return
    visit.bucket = None
    try:                                                        # a bucket's __hash__ and __eq__ may be a user's
        entry[1] -= 1
        if entry[1] == 0 and visit.node.station.bucket_ids.get(entry[2]) is entry:
            del visit.node.station.bucket_ids[entry[2]]
    except BaseException as error:
        _report(error, visit.node.station)


cdef inline void _take_places(Walk walk, Line line, int64_t size_bytes) noexcept:
    """The places that are booked for a request are its walk's."""
    walk.has_room = line.home is not None
    walk.room_bytes = size_bytes
    walk.is_counted = line.whole is not None


cdef inline void _leave_room(Walk walk) noexcept:
    """Give up the place that is held in a queue: it is taken for good, or not needed."""
    cdef Station front = _front_of(walk.home)
    walk.has_room = False
    front.reserved -= 1
    front.reserved_bytes -= walk.room_bytes
