# Threads: how one starts, and how it is known to have ended, even where there is no memory for either.

cimport cython
from libcpp.atomic cimport memory_order_seq_cst

from fastpipe.engine.parking cimport FOREVER, events_notify, kernel_now_ns

from threading import Thread


@cython.final
cdef class Latch:
    """An event that is set once. Unlike one of ``threading``, neither setting it nor waiting for it needs memory.

    In threading's a lack of memory may also leave its lock taken for ever.
    """

    def set(self):
        self.is_up.store(1, memory_order_seq_cst)
        events_notify(&self.changed, 0x7fffffff)

    def is_set(self):
        return self.is_up.load(memory_order_seq_cst) != 0

    def wait(self, timeout=None):
        """Wait for so many seconds, or however long; True if it is set. Serves signals. Frozen time does not count."""
        cdef int64_t deadline = FOREVER if timeout is None else kernel_now_ns() + <int64_t>(min(timeout, 1e9) * 1e9)
        return wait_for(&self.changed, _is_up, self, deadline, True) != 0

    def _at_fork_reinit(self):
        """What ``threading`` calls of its own events in the child of a fork: there is no lock."""


cdef int _is_up(object latch) except -1:
    return (<Latch>latch).is_up.load(memory_order_seq_cst)


@cython.final
cdef class ThreadLife:
    """What a thread does, once, and the event that is set when that is over."""

    def __init__(self, Latch over, object body, tuple arguments):
        self.over = over
        self.body = body
        self.arguments = arguments

    def run(self):
        """The thread's ``run``. To be called it needs no memory."""
        cdef int attempt
        self.has_begun = True
        body = self.body
        arguments = self.arguments
        self.body = self.arguments = None                       # a thread that has ended keeps nothing alive
        try:
            for attempt in range(MOST_ATTEMPTS):
                try:
                    body(*arguments)
                    return
                except BaseException as error:
                    if attempt + 1 == MOST_ATTEMPTS or not issubclass(type(error), MemoryError) or has_begun(error):
                        raise
        finally:
            self.over.set()


@cython.final
cdef class ThreadStart:
    """What a thread calls in place of ``Thread._bootstrap``: that, again, where there is no memory for it.

    Whoever starts a thread waits until it has begun, so for ever if its first lines are lost. The thread alone holds this:
    when it is gone the thread is, or never was.
    """

    def __init__(self, object thread, ThreadLife life):
        self.thread = thread
        self.life = life

    def __call__(self):
        cdef int attempt
        for attempt in range(MOST_ATTEMPTS):
            try:
                Thread._bootstrap(self.thread)
            except BaseException:                               # no memory, or what cleans up after that
                if self.life.has_begun or attempt + 1 == MOST_ATTEMPTS:
                    raise
            except:  # noqa: E722
                # See _no_memory.
                pass
            if self.life.has_begun:
                return

    def __del__(self):
        self.life.over.set()
