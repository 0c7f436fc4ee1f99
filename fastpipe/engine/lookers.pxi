# Types of what looks at the engine while it runs; a part of _core.pxd.

@cython.final
cdef class Slowest:
    # The requests that took longest, while somebody looks. All GIL.
    cdef list kept                              # (took_ns, number, ended_ns, why it failed or None, its stops); some more than asked for
    cdef int64_t least_ns                       # what took no longer is not kept
    cdef int64_t number                         # of what was kept: no two of `kept` compare by more


@cython.final
cdef class EventLog:
    # A bounded ring of events, and what makes a file of it. Knows no engine: its thread keeps none alive.
    cdef Event* ring                            # built; a slot: the GIL's until `written`, its thread's until `taken`
    cdef int64_t capacity                       # built: a power of two
    cdef int64_t serial                         # built: see I2 in events.pxi
    cdef atomic[int64_t] written                # atomic: written by holders of the GIL, read by its thread
    cdef atomic[int64_t] taken                  # atomic: the other way round
    cdef int64_t next, owed                     # GIL: the number of the next event; how many ends of what has begun are to come
    cdef readonly int64_t dropped               # GIL: events that found no room
    cdef int32_t* free_lanes                    # GIL: a stack, of which are free
    cdef int32_t free_count                     # GIL
    cdef list kept                              # built: of bytes, what these point to
    cdef vector[Text] names, places             # built: by station
    cdef vector[Text] whys, outcomes            # built: by Turn.why; by how a request ends
    cdef uint8_t* buffer                        # its thread's, as all that follows
    cdef uint8_t* at                            # up to where it is filled
    cdef vector[int64_t] rows                   # of threads and instances, ascending: those that the file knows
    cdef int64_t stranger                       # one that it does not; 0: none was met
    cdef int32_t lanes_known                    # that have rows
    cdef vector[int32_t] queue_lengths          # by station, as last written
    cdef readonly int error_number              # why it could not write, once it has ended
    cdef EventCount changed                     # where the thread sleeps
    cdef atomic[uint8_t] stops                  # atomic: it leaves
    cdef void c_note_request(self, Walk walk) noexcept
    cdef void c_note_outcome(self, Walk walk, uint8_t outcome) noexcept
    cdef void c_note_queued(self, Visit visit) noexcept
    cdef void c_note_batch(self, Station station, Instance instance, list visits, Turn turn, int64_t now) noexcept
    cdef c_bool c_note_stream(self, int64_t stream, int32_t position, int64_t begun_ns, int64_t ended_ns) noexcept
    cdef void c_note_end_of_batch(self, Station station, Instance instance, Turn turn, int64_t now) noexcept
    cdef int c_serve(self, int descriptor) noexcept nogil


@cython.final
cdef class Tracer:
    # Which requests are followed, and what is told of them.
    cdef object spans                           # built: whom; _Spans in the .pyi
    cdef object variable                        # built: the context variable of a span around a call; None: not known
    cdef object key                             # built: of the span, in what the variable has
    cdef uint64_t sample                        # built: of 2**53, how many of the calls without one are followed
    cdef uint64_t dice                          # GIL: a xorshift generator's, never 0
    cdef int64_t followed                       # GIL: requests that are followed and have not ended; 0: no batch has one
    cdef object c_span_context(self, object context)
    cdef c_bool c_follows(self, object context) except *
    cdef int c_begin(self, Walk walk, object context) except -1
    cdef int c_end(self, Walk walk, c_bool is_cancelled, Turn turn) noexcept
    cdef tuple c_enter_batch(self, Station station, Instance instance, list visits, Turn turn)
    cdef int c_give_up_batch(self, tuple begun, object failure, Turn turn) noexcept
    cdef int c_leave_batch(self, tuple begun, object failure, list batch, list visits, Turn turn) noexcept
