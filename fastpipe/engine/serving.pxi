# Serving: what a worker does. It waits for a batch without the GIL, runs it and further ones in one hold, and hands out what came of it.
#
# Guarantees   E4: it announces itself before it looks. E8: one that was given up touches nothing any more.

from libcpp.atomic cimport memory_order_acquire, memory_order_seq_cst

from fastpipe.engine.batching cimport WAIT_UNTIL
from fastpipe.engine.parking cimport FOREVER, SET, events_leave, events_prepare, events_sleep, is_hooked


cdef int help_out(Engine engine, Station station, Walk last, Turn turn) noexcept:
    """Run batches of a station on this thread until ``last`` has ended or there is none to run."""
    cdef Batch batch
    cdef Verdict verdict
    if station.workers_only:
        return 0
    turn.helps = True
    while turn.interrupt is None and last.word.load(memory_order_acquire) != SET:
        batch.instance = -1
        if not try_take(station, &batch, -1, &verdict):
            return 0
        station.run_by_caller += batch.count
        station_serve_hold(station, &batch, -1, turn)
        turn.wake()
    turn.helps = False
    return 0


cdef c_bool wait_for_batch(Station station, Batch* batch, int worker, PyObject* turn) noexcept nogil:
    """Wait for a batch and a token; False: the station is closed and empty, or a hook has ended the worker."""
    cdef Verdict verdict
    cdef uint32_t epoch
    cdef int only = worker if station.thread_bound else -1
    # Callers that were just answered are often about to come back. One yield lets them run, and saves a sleep and a
    # wake-up: 1.4 times the requests of one client, where every request is handed over.
    cdef c_bool may_yield = True
    while True:
        epoch = events_prepare(&station.workers)
        batch.instance = -1
        if is_hooked(AT_TAKE) and _act_without_gil(AT_TAKE, turn):
            events_leave(&station.workers)
            station.c_notify()                                  # a wake-up that was another worker's may have come here
            return False
        if try_take(station, batch, only, &verdict):
            events_leave(&station.workers)
            if station.queued.load(memory_order_seq_cst) > 0:
                station.c_notify()                              # there may be enough for another instance
            return True
        if station.life.load(memory_order_seq_cst) == CLOSING and station.queued.load(memory_order_seq_cst) == 0:
            events_leave(&station.workers)
            return False
        if is_hooked(AT_SLEEP) and _act_without_gil(AT_SLEEP, turn):
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
