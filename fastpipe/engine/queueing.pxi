# Queueing: what is ready goes to its station's queue.
#
# Guarantees   E2: a queued visit is owned by its ticket. E4: raise ``queued``, push, notify.
# Assumes      The GIL. Whatever is wrong with a visit fails its walk; nothing is raised.

from cpython.dict cimport PyDict_GetItem
from cpython.ref cimport Py_INCREF
from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst

from fastpipe.engine.costs cimport cost_of
from fastpipe.engine.parking cimport is_hooked, now_ns


cdef int enqueue(Engine engine, Visit visit, Turn turn, c_bool notify) noexcept:
    """Put a visit into its station's queue."""
    cdef Station station
    cdef int64_t version
    if visit.node.twins is not None and not choose_twin(engine, visit, turn):
        return 0
    station = visit.node.station
    if station.lost is not None:
        fail_visit(engine, visit, lost_error(visit, station.lost), turn)
        return 0
    try:
        if is_hooked(AT_PUSH):
            act_at(AT_PUSH)
        keep_context(visit.walk)
        visit.ticket.visit = <PyObject*>visit
        version = station.version
        ask_for_queue(visit, station, turn)
    except BaseException as error:
        fail_visit(engine, visit, with_place(error, visit.node), turn)
        return 0
    except:  # noqa: E722
        # See _no_memory.
        fail_visit(engine, visit, _no_memory, turn)
        return 0
    if station.c_is_limited() and not _make_room(engine, visit, turn):
        release_bucket(visit)
        return 0
    while station.version != version:                           # others serve now than those that were asked
        version = station.version
        release_bucket(visit)
        try:
            ask_for_queue(visit, station, turn)
        except BaseException as error:
            fail_visit(engine, visit, with_place(error, visit.node), turn)
            leave_queue(visit, station)
            return 0
    visit.ticket.arrival_ns = now_ns()
    visit.ticket.rank_ns = visit.ticket.arrival_ns + visit.walk.priority_ns
    if visit.walk.priority_ns != 0:
        station.has_ranks.store(1, memory_order_relaxed)
    if station.batches and visit.way != ENTERED:
        station.c_note_arrival(visit.ticket.arrival_ns)
    # What users wrote has run since the first look; from here on nothing can come in between.
    if station.lost is not None:
        fail_visit(engine, visit, lost_error(visit, station.lost), turn)
    if is_dead(visit):                                          # a closed station would keep it, and its pipe, for ever
        if station.lost is None:
            note_dropped(visit)
        leave_queue(visit, station)
        return 0
    if station.queued.load(memory_order_relaxed) >= WHOLE_UP_TO and visit.stepper is None:
        _pack(visit)
    Py_INCREF(visit)                                            # E2: owned by the ticket until popped
    station.c_push(&visit.ticket)
    if engine.events is not None:
        engine.events.c_note_queued(visit)
    if is_hooked(AT_PUSHED):
        act_at_in(AT_PUSHED, turn)
    if notify:
        station.c_notify()
    return 1


cdef inline void _pack(Visit visit) noexcept:
    """Keep of the dict of a visit that is queued its value alone, if it has nothing but ``data`` and nobody else has it.

    It is a third of what a request takes that waits. Frees nothing else, so that no destructor runs. unpack makes it again.
    """
    cdef object request = visit.request
    if has_only_data(<dict>request) and Py_REFCNT(request) == 2:  # ``request`` here, and the visit
        visit.request = <object>PyDict_GetItem(request, _DATA)
        visit.is_packed = True


cdef inline int unpack(Visit visit) except -1:
    """Make the dict of a visit again that is taken out of its queue."""
    if visit.is_packed:
        visit.request = {_DATA: visit.request}
        visit.is_packed = False
    return 0


cdef int ask_for_queue(Visit visit, Station station, Turn turn) except -1:
    """Ask what a visit weighs, how long it is, and what its bucket is; its ticket knows it from now on."""
    cdef list entry
    visit.ticket.weight = weight_of(visit, turn) if station.batches else 1.0
    visit.ticket.length = length_of(visit, turn) if station.has_lengths else 0
    visit.ticket.bucket = 0
    if visit.node.bucket is not None and station.batches:
        key = bucket_of(visit, turn)
        station.next_bucket_id += 1
        entry = <list>station.bucket_ids.setdefault(key, [station.next_bucket_id, 0, key])
        entry[1] += 1
        visit.bucket = entry
        visit.ticket.bucket = entry[0]
    if visit.ticket.weight != 1.0:
        station.wake_at.store(0, memory_order_seq_cst)
    return 0


cdef c_bool _make_room(Engine engine, Visit visit, Turn turn) noexcept:
    """Make sure that a visit may be put into a queue with a limit; False, and its walk has failed, if it may not."""
    cdef Station station = visit.node.station
    cdef Station front = front_of(station)
    cdef Visit oldest
    if visit.walk.has_room and station is visit.walk.home:
        leave_room(visit.walk)                                  # it has been let in
    try:
        if visit.walk.queued is None:
            visit.walk.queued = []
        visit.size_bytes = size_of(visit.request) if station.max_queue_bytes > 0 else 0
        while station.when_full != BLOCK and is_full(front, visit.size_bytes, station.when_full == REJECT):
            error = full_error(front, visit.size_bytes)
            if station.when_full == REJECT:
                visit.size_bytes = 0
                fail_visit(engine, visit, error, turn)
                tell_of_refusal(front, engine, turn)
                return False
            oldest = take_oldest_of_all(front)
            if oldest is None:
                break
            if not is_dead(oldest):
                oldest.node.station.shed += 1
            fail_visit(engine, oldest, error, turn)             # of what waits, it is the one that has waited longest
            send_one_back(oldest, turn)
            tell_of_shed(front, engine, turn)
        visit.walk.queued.append(visit)                         # now: this may need memory
    except BaseException as error:
        visit.size_bytes = 0
        fail_visit(engine, visit, with_place(error, visit.node), turn)
        return False
    if is_dead(visit):                                          # no code of users runs from here to the push
        note_dropped(visit)
        visit.size_bytes = 0
        return False
    station.queued_bytes += visit.size_bytes
    return True


cdef int enqueue_all(Engine engine, Turn turn) noexcept:
    """Queue everything that is ready; each station is notified once."""
    cdef Visit visit
    cdef list ready
    cdef object station
    cdef object before
    cdef Py_ssize_t index
    while turn.ready or turn.arrived:
        ask_filters(engine, turn)
        ready = turn.ready
        if len(ready) == 1:
            enqueue(engine, take_last(ready), turn, True)
            continue
        for index in range(len(ready)):                         # in its own list: there may be no memory for another
            visit = <Visit>ready[index]
            ready[index] = visit.node.station if enqueue(engine, visit, turn, False) else None
        before = None
        for station in ready:
            if station is not None and station is not before:
                (<Station>station).c_notify()
                before = station
        ready.clear()
    return 0


cdef int hand_over(Engine engine, Turn turn) noexcept:
    """Keep of several ready visits one, and those that cost less than a hand-over; queue the others."""
    cdef Visit visit
    cdef Station station
    cdef list kept
    cdef list others
    cdef bint has_dear = False
    cdef dict crowds
    try:
        kept = []
        others = []
        crowds = {}
        for visit in turn.ready:
            crowds[visit.node.station] = crowds.get(visit.node.station, 0) + 1
        for visit in turn.ready:
            station = visit.node.station
            if station.batches and <int>crowds[station] > 1:
                others.append(visit)                            # they belong into one batch
            elif 0 < cost_of(&station.cost_alone, 1) < HANDOVER_NS:
                kept.append(visit)
            elif not has_dear:
                has_dear = True
                kept.insert(0, visit)                           # popped last: the others have started by then
            else:
                others.append(visit)
    except BaseException:                                       # no memory for lists: all of them run here
        return 0
    turn.ready = others
    enqueue_all(engine, turn)
    turn.ready = kept
    return 0
