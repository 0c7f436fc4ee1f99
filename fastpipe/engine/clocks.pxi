# Clocks: time limits of requests for which no thread waits, and batches that run for too long.
#
# Guarantees   Their threads keep no pipe alive. E8: Watchdog.c_look, end_batch.

cimport cython
from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst

from fastpipe.engine.hanging cimport LOOKS, late_at_ns
from fastpipe.engine.parking cimport events_notify, frozen_ns, now_ns

from heapq import heapify, heappush


cdef int begin_batch(Station station, int index, Turn turn, int64_t now) noexcept:
    """From now on the watchdog looks at what runs in an instance."""
    turn.guarded_ns = now
    station.started_ns[index].store(now, memory_order_seq_cst)
    station.watchdog.c_tell(now + station.hang_ns // LOOKS)
    return 0


cdef c_bool keep_batch(Station station, int index, Turn turn, int64_t since) noexcept:
    """The batch is alive: its time counts from ``since``, or, ON_HOLD, not until begin_batch; False if it was given up (E8)."""
    cdef int64_t expected = turn.guarded_ns
    if not station.started_ns[index].compare_exchange_strong(expected, since, memory_order_seq_cst, memory_order_seq_cst):
        return False
    turn.guarded_ns = since
    return True


cdef c_bool end_batch(Station station, int index, Turn turn) noexcept:
    """The backend has returned; False if it was given up before (E8)."""
    cdef int64_t expected = turn.guarded_ns
    if station.started_ns[index].compare_exchange_strong(expected, 0, memory_order_seq_cst, memory_order_seq_cst):
        return True
    turn.abandoned = (<Instance>(<tuple>station.held[index])[2]).backend if turn.abandoned is None else turn.abandoned
    return False


@cython.final
cdef class Clock:
    """Fails requests for which no thread waits when their time is over. Knows no pipe: its thread keeps none alive."""

    def __cinit__(self):
        self.timers = []
        self.turn = Turn.__new__(Turn)                          # now: the thread is not to fail for want of it

    cdef int c_add(self, Walk walk) except -1:
        if self.over > 64 and self.over > len(self.timers) // 2:
            self.timers = [timer for timer in self.timers if (<list>timer)[2] is not None]
            heapify(self.timers)
            self.over = 0
        self.count += 1
        timer = [walk.deadline_ns, self.count, walk]
        heappush(self.timers, timer)
        walk.timer = timer
        if self.timers[0] is walk.timer:
            events_notify(&self.changed, 1)                     # the thread sleeps for longer than that
        return 0

    cdef void c_forget(self, Walk walk) noexcept:
        """The walk has ended. Its timer stays, empty, until it is due or too many are empty."""
        walk.timer[2] = None
        walk.timer = None
        self.over += 1

    def serve(self):
        """The body of the thread. Sleeps until the next deadline, or until an earlier one comes."""
        serve_clock(self)

    def stop(self):
        """Let the thread leave."""
        self.stops.store(1, memory_order_seq_cst)
        events_notify(&self.changed, 0x7fffffff)


@cython.final
cdef class Watchdog:
    """Gives up batches that run for longer than their node's ``hang_timeout``. Knows no pipe: its thread keeps none alive.

    Finding one needs no GIL, which the hung backend may hold. What follows does, but for ``aborts``: that ends the process
    at once, by SIGABRT. Sleeps until the next look (hanging.pxd); while no batch runs, for ever.
    """

    def __cinit__(self, list stations, bint aborts):
        self.stations = stations
        self.aborts = aborts
        self.asked_ns = NOTIFY_ME
        for station in stations:
            self.stations_seen.push_back(<PyObject*>station)
            self.watched.resize(self.watched.size() + <size_t>(<Station>station).instance_count)

    cdef void c_tell(self, int64_t until) noexcept nogil:
        """A batch has begun that is to be looked at by then."""
        if self.until_ns.load(memory_order_seq_cst) > until:
            events_notify(&self.changed, 1)                     # it sleeps for longer than that

    cdef c_bool c_look(self, PyObject** station, int* index, int64_t* until) noexcept nogil:
        """True if a batch is late: where, and it is decided (E8). Else, when to look again."""
        cdef int64_t now = now_ns()
        cdef int64_t asked = self.asked_ns if frozen_ns.load(memory_order_relaxed) == 0 else -1
        cdef int64_t started, late_at, hang_ns
        cdef size_t i
        cdef size_t seen = 0
        cdef int k
        until[0] = NOTIFY_ME
        for i in range(self.stations_seen.size()):
            station[0] = self.stations_seen[i]
            hang_ns = (<Station>station[0]).hang_ns
            for k in range((<Station>station[0]).instance_count):
                seen += 1
                started = (<Station>station[0]).started_ns[k].load(memory_order_seq_cst)
                if started <= 0:
                    continue
                late_at = late_at_ns(&self.watched[seen - 1], started, hang_ns, now, asked)
                if late_at > now:
                    until[0] = min(until[0], min(late_at, now + hang_ns // LOOKS))
                elif (<Station>station[0]).started_ns[k].compare_exchange_strong(started, GIVEN_UP, memory_order_seq_cst,
                                                                                 memory_order_seq_cst):
                    (<Station>station[0]).given_up_after_ns = now - started
                    index[0] = k
                    self.asked_ns = now                         # the next look is at once
                    return True
        self.asked_ns = until[0]
        return False

    def serve(self):
        """The body of the thread."""
        serve_watchdog(self)

    def stop(self):
        """Let the thread leave, once no batch runs: what close() has left behind may still hang, and be given up then.

        Where batches that hang end the process the thread leaves at once: a pipe that is closed does so no more.
        """
        self.stops.store(1, memory_order_seq_cst)
        events_notify(&self.changed, 0x7fffffff)
