# Turns: what one hold of the GIL has produced, and not yet handed out: who is to be woken, which futures are to be told.
#
# Owner        One thread, which holds the GIL but for wake().
# Guarantees   Whoever sleeps and has an answer is woken, at the latest when the turn is dropped (E9: also without memory).

cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF
from libcpp.atomic cimport memory_order_relaxed

from fastpipe.engine.chain cimport Chain, chain_join, chain_new, chain_start
from fastpipe.engine.parking cimport PARKED, futex_wake, is_hooked, note_sleeper, word_set


@cython.final
@cython.freelist(16)
cdef class Turn:
    """What one hold of the GIL has produced."""

    def __cinit__(self):
        self.arrived = []
        self.ready = []

    def __dealloc__(self):
        while self.settled_first != NULL:                       # none is left, as a rule
            first_settled(self)
        if self.c_has_sleepers():
            self.wake()

    cdef void c_will_wake(self, Word* word) noexcept:
        """Have a sleeping caller woken once the GIL is free."""
        if not note_sleeper(self.wakes, word):
            futex_wake(word, 1)

    cdef void c_answer(self, Walk walk) noexcept:
        """Tell a walk's caller that it has ended. One who sleeps is woken once the GIL is free; of many, in a chain."""
        # Relaxed: its caller alone takes PARKED back, with the GIL, which has passed on to us what it did.
        if self.is_crowded and walk.word.load(memory_order_relaxed) == PARKED:
            if self.chain == NULL:
                self.chain = chain_new()
            if self.chain != NULL:
                walk.sleeper = chain_join(self.chain, &walk.word)
                if walk.sleeper != NULL:
                    walk.chain = self.chain
        if word_set(&walk.word) and walk.chain == NULL:
            self.c_will_wake(&walk.word)

    cdef c_bool c_has_sleepers(self) noexcept:
        return self.chain != NULL or self.wakes.size() != 0

    cdef void c_will_settle(self, Walk walk) noexcept:
        """Have a future told of the end of its walk by settle."""
        Py_INCREF(walk)
        walk.settled_after = NULL
        if self.settled_last == NULL:
            self.settled_first = <PyObject*>walk
        else:
            (<Walk>self.settled_last).settled_after = <PyObject*>walk
        self.settled_last = <PyObject*>walk

    cdef int c_raise_interrupt(self) except -1:
        """Raise what has hit this thread meanwhile, if something has."""
        if self.interrupt is not None:
            interrupt = self.interrupt
            self.interrupt = None
            raise interrupt
        return 0

    cdef void c_report_interrupt(self) noexcept:
        """The same on a thread that nobody has called: tell sys.unraisablehook."""
        if self.interrupt is not None:
            report(self.interrupt, None)
            self.interrupt = None

    cdef void wake(self) noexcept nogil:
        cdef size_t i
        cdef Chain* chain = self.chain
        if is_hooked(AT_WAKE) and (chain != NULL or self.wakes.size() != 0):
            act_without_gil(AT_WAKE, <PyObject*>self)
        self.is_crowded = False
        if chain != NULL:
            self.chain = NULL
            chain_start(chain)
        for i in range(self.wakes.size()):
            futex_wake(self.wakes[i], 1)
        self.wakes.clear()


cdef Walk first_settled(Turn turn):
    """Take the first walk out of a turn's list, which is not empty."""
    cdef Walk walk = <Walk>turn.settled_first
    turn.settled_first = walk.settled_after
    if turn.settled_first == NULL:
        turn.settled_last = NULL
    walk.settled_after = NULL
    Py_DECREF(walk)                                             # ``walk`` holds it
    return walk
