# The type of what one hold of the GIL has produced (turns.pxi); a part of _core.pxd.

@cython.final
cdef class Turn:
    # What one hold of the GIL has produced and not yet handed out. Owned by one thread.
    cdef list arrived                           # visits at whose node the filter is to be asked
    cdef list ready                             # visits that may run now
    cdef Position called_first                  # whose turns in their sequences have come, to be queued
    cdef Position called_last
    cdef c_bool is_calling                      # somebody will see to them
    cdef PyObject* settled_first                # ended walks with a future to settle, linked by Walk.settled_after; owned
    cdef PyObject* settled_last
    cdef int64_t ended_ns                       # when the batch ended whose answers are handed on; 0: none are
    cdef vector[Word*] wakes                    # sleepers to wake once the GIL is free
    cdef c_bool is_crowded                      # so many may have to be woken that they are to be in a chain
    cdef Chain* chain                           # callers to wake then, one after the other; owned until it is started. NULL: none
    cdef bint helps                             # a caller runs batches that may hold other callers' requests
    cdef object interrupt                       # what hit the thread in the middle (a signal's exception): its call raises it
    cdef bint is_guarded                        # a watchdog looks at the batches that it runs
    cdef int64_t guarded_ns                     # then: what is in Station.started_ns, unless the batch was given up
    cdef object abandoned                       # the backend in which it was given up as hung
    cdef bint is_workers                        # a worker's; others have no loop that could end
    cdef int worker                             # then: which one, as try_take knows it
    cdef int why                                # its batch left: a reason, plus 1; 0: its caller runs it; or RUN_AGAIN
    cdef int64_t shown                          # the `serial` of the log of events in which its batch has begun; 0: in none
    cdef int64_t thread                         # then: its ident
    cdef tuple spans                            # GIL: what Tracer.c_enter_batch gave for its batch, while that runs; or None
    cdef bint is_elsewhere                      # its thread is not in the context of those whose requests it runs
    cdef object death                           # what ended that worker
    cdef PyObject* stepper                      # whose turn it is, if it takes one step at a time; it owns the turn
    cdef object observer                        # the stepper's, or None
    cdef void wake(self) noexcept nogil
    cdef c_bool c_has_sleepers(self) noexcept
    cdef void c_will_wake(self, Word* word) noexcept
    cdef void c_answer(self, Walk walk) noexcept
    cdef void c_will_settle(self, Walk walk) noexcept
    cdef int c_raise_interrupt(self) except -1
    cdef void c_report_interrupt(self) noexcept
