# Chunks: parts of an answer on their way from the backend that makes them to whoever reads the stream.
#
# Guarantees   A stream holds no more chunks than its limit. It ends once, with the outcome of its request, behind all chunks that
#              came before. E9: nothing from the end of a walk to its reader needs memory that may be lacking.
# Assumes      The GIL. An event loop is told of news once until it has looked: one callback for all of its streams.

cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF
from libcpp.atomic cimport memory_order_acquire

from fastpipe.engine.parking cimport events_notify, futex_wake, kernel_now_ns, word_set

from collections import deque


@cython.final
cdef class ChunkStream:
    """What the reader of a stream and the backends that make it share. See ``_core.pxd`` for who owns what."""

    def __cinit__(self, Py_ssize_t limit):
        self.limit = limit
        self.chunks = deque()
        self.blocked = []

    cdef c_bool c_is_over(self) noexcept:
        """True if nobody wants any more chunks."""
        return (self.has_ended or self.is_left
                or (self.walk is not None and self.walk.outcome.load(memory_order_acquire) != RUNNING))

    cdef c_bool c_is_full(self) except *:
        return len(self.chunks) >= self.limit

    cdef object c_take(self):
        """Take the first chunk, which must be there. A backend goes on once half of them are gone: it is woken less often."""
        chunk = self.chunks.popleft()
        if self.blocked and len(self.chunks) * 2 <= self.limit:
            self.c_release()
        return chunk

    cdef void c_release(self) noexcept:
        """Have backends look again that wait for room."""
        cdef Pause pause
        for pause in self.blocked:
            if word_set(&pause.word):
                futex_wake(&pause.word, 1)

    cdef void c_walk_ended(self, Walk walk) noexcept:
        """A walk has ended whose backends may wait for room here. No user code can run in here."""
        self.c_release()
        if walk.sink_kind == SINK_STREAM and walk.outcome.load(memory_order_acquire) == CANCELLED:
            self.has_ended = True                               # nobody else tells of it
            self.walk = None                                    # as in c_end; whoever ends the walk holds it
            events_notify(&self.news, 0x7fffffff)

    cdef void c_end(self, object error, Turn turn) noexcept:
        """The request has ended: its reader is told, behind all chunks."""
        if self.has_ended:
            return
        self.error = error
        self.has_ended = True
        self.walk = None                                        # breaks the cycle walk -> stream -> walk
        self.waiter = None
        self.c_tell(turn)

    cdef c_bool c_tell(self, Turn turn) noexcept:
        """Tell the reader that there is news; False: its event loop is closed, and it will never look."""
        events_notify(&self.news, 0x7fffffff)
        if self.waiting is None:
            return True
        if not self.is_called:
            self.is_called = True
            if self.mailbox.last is None:
                self.mailbox.first = self
            else:
                self.mailbox.last.next_called = self
            self.mailbox.last = self
        return self.mailbox.c_call(self.loop, turn)


@cython.final
cdef class Mailbox:
    """The streams of one event loop for whose readers there is news. Does not keep the loop alive."""

    cdef c_bool c_call(self, object loop, Turn turn) noexcept:
        """Have the loop look, if it is not about to; False: it is closed."""
        cdef int _attempt
        cdef int64_t now = kernel_now_ns()
        if self.is_scheduled and now - self.scheduled_ns < LOST_CALLBACK_NS:
            return True
        self.is_scheduled = True
        self.scheduled_ns = now
        for _attempt in range(MOST_ATTEMPTS):
            try:
                loop.call_soon_threadsafe(self.deliver)
                return True
            except RuntimeError:                                # the loop is closed: nobody is there to be told
                break
            except BaseException as error:                      # if it was done all the same, twice does no harm
                note_interrupt(turn, error)
        self.is_scheduled = False
        return False

    def deliver(self):
        """Wake the readers, in their loop's thread."""
        deliver_news(self)


@cython.final
cdef class Pause:
    """One wait of a backend for room in a stream."""
