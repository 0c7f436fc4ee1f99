# Types of the engine's threads that watch the time, and of how a thread begins and ends; a part of _core.pxd.

@cython.final
cdef class Latch:
    # An event.
    cdef EventCount changed                     # where those sleep who wait for it
    cdef atomic[uint8_t] is_up                  # atomic: it is set


@cython.final
cdef class ThreadLife:
    # What a thread does.
    cdef Latch over                             # built
    cdef object body                            # GIL: what it calls; None once it has
    cdef tuple arguments                        # GIL
    cdef c_bool has_begun                       # GIL


@cython.final
cdef class ThreadStart:
    # How a thread begins.
    cdef object thread                          # built
    cdef ThreadLife life                        # built


@cython.final
cdef class Clock:
    # Time limits of requests for which no thread waits.
    cdef list timers                            # GIL: heap of [deadline_ns, number, walk or None if it has ended]
    cdef int64_t count                          # GIL: for the numbers
    cdef int over                               # GIL: how many of them have ended
    cdef Turn turn                              # built: the thread's
    cdef EventCount changed                     # where the thread sleeps
    cdef atomic[uint8_t] stops                  # atomic: it leaves
    cdef int c_add(self, Walk walk) except -1
    cdef void c_forget(self, Walk walk) noexcept


@cython.final
cdef class Watchdog:
    # Looks for batches that do not end. Needs no GIL for that.
    cdef list stations                          # built
    cdef vector[PyObject*] stations_seen        # built: the same, for nogil code
    cdef bint aborts                            # built: end the process instead
    cdef int64_t asked_ns                       # its thread's: when it meant to look next, at the latest
    cdef EventCount changed                     # where the thread sleeps
    cdef atomic[int64_t] until_ns               # atomic: until when it sleeps. Workers store `started_ns` and then read
                                                # it; it stores NOTIFY_ME and then reads `started_ns`: one sees the other
    cdef atomic[uint8_t] stops                  # atomic: it leaves, once no batch runs
    cdef void c_tell(self, int64_t until) noexcept nogil
    cdef c_bool c_look(self, PyObject** station, int* index, int64_t* until) noexcept nogil
