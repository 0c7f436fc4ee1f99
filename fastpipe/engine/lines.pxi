# Lines: who waits to be let in, and in which order (E5).
#
# Guarantees   First come, first served: whoever frees a place gives it to the first of the line, under the same hold of the GIL.
# Assumes      The GIL.

cimport cython

from fastpipe.engine.parking cimport futex_wake, word_set


@cython.final
cdef class Line:
    """Those who wait to be let in at one entry. See ``_core.pxd`` for who owns what."""

    def __init__(self, tuple gates, Station home, Station whole):
        self.gates = gates
        self.home = home
        self.whole = whole

    cdef Station c_shut_gate(self, int64_t size_bytes, c_bool is_patient):
        """The first gate that has no room for a request; None: it may be let in."""
        cdef Station gate
        for gate in self.gates:
            if gate.when_full == SHED_OLDEST and not is_patient:
                continue                                        # it makes room when it is needed
            if is_full(gate, size_bytes if gate is self.home else 0, True):
                return gate
        return None

    cdef Station c_gate_of_first(self):
        """Which gate keeps the line waiting."""
        cdef Station gate = None
        if self.first is not None:
            gate = self.c_shut_gate(self.first.size_bytes, self.first.is_patient)
        return <Station>self.gates[0] if gate is None else gate

    cdef int64_t c_size_of(self, object request) except -1:
        """How much of a limit in bytes a request needs; 0 where there is none."""
        return size_of(request) if self.home is not None and self.home.max_queue_bytes > 0 else 0

    cdef void c_book(self, int64_t size_bytes) noexcept:
        """Take a place in the queue and in the pipe, for a request that is let in."""
        if self.home is not None:
            self.home.reserved += 1
            self.home.reserved_bytes += size_bytes
        if self.whole is not None:
            self.whole.reserved += 1

    cdef void c_give_back(self, int64_t size_bytes) noexcept:
        """The request does not come after all."""
        if self.home is not None:
            self.home.reserved -= 1
            self.home.reserved_bytes -= size_bytes
            tell_of_room(self.home)
        if self.whole is not None:
            self.whole.reserved -= 1
            tell_of_room(self.whole)

    cdef void c_promise(self) noexcept:
        """Hold a place in the queues further on until the request has set out, so that no more are let in than fit."""
        cdef Station gate
        for gate in self.gates:
            if gate is not self.home and gate is not self.whole:
                gate.reserved += 1

    cdef void c_keep_promise(self) noexcept:
        """It has set out, or does not come."""
        cdef Station gate
        for gate in self.gates:
            if gate is not self.home and gate is not self.whole:
                gate.reserved -= 1
                tell_of_room(gate)

    cdef void c_join(self, Waiter waiter) noexcept:
        """Stand where one's number belongs: at the end, or, coming back, near the beginning, as a rule."""
        cdef Station gate
        cdef Waiter before = self.last
        cdef Waiter after = self.first
        if before is not None and before.number > waiter.number:
            before = None
            while after.number < waiter.number:
                before = after
                after = after.next
            waiter.next = after
            after.before = <PyObject*>waiter
        else:
            self.last = waiter
        waiter.before = <PyObject*>before
        if before is None:
            self.first = waiter
            waiter.before = NULL
        else:
            before.next = waiter
        waiter.state = IN_LINE
        for gate in self.gates:
            gate.waiter_count += 1

    cdef void c_step_out(self, Waiter waiter) noexcept:
        cdef Station gate
        if waiter.before == NULL:
            self.first = waiter.next
        else:
            (<Waiter>waiter.before).next = waiter.next
        if waiter.next is None:
            self.last = None if waiter.before == NULL else <Waiter>waiter.before
        else:
            waiter.next.before = waiter.before
        waiter.next = None
        waiter.before = NULL
        for gate in self.gates:
            gate.waiter_count -= 1

    cdef c_bool c_let_in_first(self) noexcept:
        """Let the first in, or turn it away, if its gates say so; False: it has to wait."""
        cdef Waiter waiter = self.first
        cdef Station shut = self.c_shut_gate(waiter.size_bytes, waiter.is_patient)
        waiter.engine.looks += 1
        if shut is not None and (shut.when_full != REJECT or waiter.is_patient):
            return False
        self.c_step_out(waiter)
        if shut is None:
            self.c_book(waiter.size_bytes)
            self.c_promise()
            waiter.is_booked = True
            waiter.state = LET_IN
        else:
            waiter.turned_away_by = shut
            waiter.state = TURNED_AWAY
        waiter.c_call()
        return True

    cdef void c_serve(self) noexcept:
        """Let in all who may be, first come, first served."""
        while self.first is not None and self.c_let_in_first():
            pass

    cdef void c_turn_all_away(self) noexcept:
        """The pipe closes."""
        cdef Waiter waiter
        while self.first is not None:
            waiter = self.first
            self.c_step_out(waiter)
            waiter.state = TURNED_AWAY
            waiter.c_call()


@cython.final
cdef class Waiter:
    """A request in a line; ``acall`` keeps it as a handle."""

    cdef void c_call(self) noexcept:
        """Tell whoever waits that it has left the line: its thread, or who starts the requests of coroutines."""
        if self.sink is None:
            if word_set(&self.word):
                futex_wake(&self.word, 1)
            return
        if self.engine.called_last is None:
            self.engine.called_first = self
        else:
            self.engine.called_last.next = self
        self.engine.called_last = self

    def cancel(self):
        """Give the request up; True if it had not ended."""
        if self.walk is not None:
            return self.walk.cancel()
        return stop_waiting(self)

    def expire(self):
        """Refuse the request if it still waits in line: its time is over. In its event loop's thread."""
        expire_waiter(self)


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
