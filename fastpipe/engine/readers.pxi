# Types of what reads chunks while they are made; a part of _core.pxd.

@cython.final
cdef class ChunkStream:
    # What a backend has emitted for a request and its reader has not taken. GIL: all of it, but for `news`.
    cdef Walk walk                              # the request; None: it has not begun, or has ended
    cdef Waiter waiter                          # who waits for room for it, or None
    cdef object chunks                          # a deque
    cdef Py_ssize_t limit                       # built: so many of them, at most
    cdef int64_t emitted                        # how many there have been
    cdef list blocked                           # of Pause: backends that wait for room
    cdef object error                           # what the request has failed with, until its reader has it
    cdef bint has_ended                         # the outcome is there
    cdef bint is_left                           # the reader has gone
    cdef bint cannot_be_read                    # the reader closes the pipe, and waits for it
    cdef unsigned long reader_thread            # which has read last; 0: a coroutine reads
    cdef object reader_task                     # weak: the coroutine's
    cdef EventCount news                        # where threads sleep that read
    cdef object loop                            # built: a coroutine's; None: threads read
    cdef Mailbox mailbox                        # built: that loop's
    cdef object waiting                         # the asyncio future that the coroutine awaits, or None
    cdef bint is_called                         # it is in the mailbox
    cdef ChunkStream next_called                # there
    cdef c_bool c_is_over(self) noexcept
    cdef c_bool c_is_full(self) except *
    cdef object c_take(self)
    cdef void c_release(self) noexcept
    cdef void c_walk_ended(self, Walk walk) noexcept
    cdef void c_end(self, object error, Turn turn) noexcept
    cdef c_bool c_tell(self, Turn turn) noexcept


@cython.final
cdef class Mailbox:
    # Streams whose readers are to be told of news by their event loop. GIL.
    cdef ChunkStream first                      # linked by next_called
    cdef ChunkStream last
    cdef bint is_scheduled                      # the loop is about to look
    cdef int64_t scheduled_ns                   # since when, by the kernel's clock
    cdef c_bool c_call(self, object loop, Turn turn) noexcept


@cython.final
cdef class Pause:
    # A backend that waits for room.
    cdef Word word                              # parks its thread


@cython.final
cdef class Progress:
    # Of parts that emit, which the batch of a backend waits for. GIL.
    cdef list visits                            # built: of that batch, whose parts they are
    cdef list emitted                           # by visit, how many chunks its stream has had
    cdef int c_look(self) except -1


@cython.final
cdef class StreamReader:
    # The reader's end of a stream: whoever drops it leaves.
    cdef Engine engine                          # built
    cdef ChunkStream stream                     # built: which refers to no reader
    cdef int c_wait(self) except -1
    cdef object c_outcome(self, c_bool is_awaited)
