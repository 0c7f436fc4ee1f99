# Words: the states, kinds and constants that all chapters share, and what the engine knows of its process.
#
# Owners   _generation, _spin_ns, _main_thread, _future_class: GIL; written once a process, but for _generation, which a fork raises.

from cpython.ref cimport Py_INCREF

from fastpipe.engine.parking cimport skip_exit_handlers

cdef extern from "<sched.h>" nogil:
    int sched_yield() noexcept

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil
    Py_ssize_t Py_REFCNT(object) noexcept
    void Py_SET_SIZE(object, Py_ssize_t) noexcept

cdef enum:
    RUNNING = 0
    DONE = 1
    FAILED = 2
    CANCELLED = 3

cdef enum:
    SINK_CALLER = 0         # a thread that parks on Walk.word
    SINK_FUTURE = 1         # RequestFuture
    SINK_ASYNCIO = 2        # (event loop, asyncio.Future)
    SINK_GATHER = 3         # a part of a sub-graph node
    SINK_STREAM = 4         # ChunkStream

cdef enum:
    FILTER_RUN = 0
    FILTER_SWAP = 1
    FILTER_CALL = 2
    FILTER_DEFAULT = 3      # by how the request came: see ask_filter

cdef enum:                  # how a visit came to its node
    PASSED_ON = 0           # over an edge of the graph
    ENTERED = 1             # from outside
    RESTARTED = 2           # it has been through the graph

cdef enum:                  # Station.life
    OPEN_FOR_ALL = 0
    DRAINING = 1            # no new requests: nobody waits for company
    CLOSING = 2             # workers leave when nothing is queued

cdef enum:                  # beside a rule's actions
    LEAVE = 4               # the instance, or the worker, serves no longer

cdef enum:                  # who asks for a batch, beside a worker that is bound to an instance, which is known by its token
    CALLER = -1
    SHARING = -2            # a worker that runs in any instance; of a later era: less by that

cdef int64_t NOTIFY_ME = 0x7fffffffffffffff      # Watchdog.until_ns: whenever a batch begins
cdef int64_t GIVEN_UP = -1                       # Station.started_ns: the watchdog has decided
cdef int64_t ON_HOLD = -2                        # Station.started_ns: the batch waits for those who read what it emits

cdef enum:                  # Status in filters.py
    STATUS_RUN = 0
    STATUS_SKIP = 1
    STATUS_BREAK = 2
    STATUS_ERROR = 3
    STATUS_SERIAL_SKIP = 4
    STATUS_SUBGRAPH_SKIP = 5

cdef enum:
    RULE_ADAPTIVE = 0
    RULE_TIMEOUT = 1
    RULE_GREEDY = 2
    RULE_PREFERRED = 3
    RULE_OBJECT = 4

cdef enum:                  # Station.when_full
    BLOCK = 0
    REJECT = 1
    SHED_OLDEST = 2

cdef enum:                  # Waiter.state
    IN_LINE = 0
    AWAY = 1                # serving signals
    LET_IN = 2
    TURNED_AWAY = 3
    GONE = 4                # nobody waits for it

cdef str _DATA = "data"
cdef str _RESULT = "result"
cdef str _ANSWERED_BY = "answered_by"           # of a graph with several leaves: the name of the one that did
cdef tuple _STEERING_KEYS = ("restart", "request_size")     # by which a dict tells the engine what to do with it

# What concurrent.futures.Future keeps in ``_state``.
cdef str _PENDING = "PENDING"
cdef str _RUNNING = "RUNNING"
cdef str _CANCELLED = "CANCELLED"
cdef str _NOTIFIED = "CANCELLED_AND_NOTIFIED"
cdef str _FINISHED = "FINISHED"

cdef enum:                  # a worker, after a batch
    GOES_ON = 0
    DIES = 1
    IS_GIVEN_UP = 2

cdef enum:                  # Turn.why, behind the reasons for which batches leave
    RUN_AGAIN = REASON_COUNT + 1

cdef enum:                  # why a request failed, for stats()
    OTHER = 0
    TIMED_OUT = 1
    CROWDED_OUT = 2
    CLOSED = 3
    HUNG = 4
    DIED = 5
    LOST = 6
    WITHOUT_RESULT = 7

cdef enum:                  # the points at which a test may step in, see _hook
    AT_ADMIT = 0
    AT_ADMITTED = 1
    AT_PUSH = 2
    AT_PUSHED = 3
    AT_TAKE = 4
    AT_TAKEN = 5
    AT_SLEEP = 6
    AT_FORWARD = 7
    AT_RETURN = 8
    AT_END = 9
    AT_ENDED = 10
    AT_WAKE = 11
    AT_RELEASE = 12
    AT_PARK = 13
    AT_CANCEL = 14
    AT_EXPIRE = 15
    AT_CLOSE = 16
    AT_HANG = 17
    AT_LAND = 18
    AT_SWITCH = 19

_GREENLET_ADVICE = ("Call the pipe from real threads (gevent: gevent.get_hub().threadpool.apply(pipe, (request,)); eventlet: "
                    "eventlet.tpool.execute(pipe, request)), or do not switch greenlets inside a backend")
_HOOKS = ("admit", "admitted", "push", "pushed", "take", "taken", "sleep", "forward", "return", "end", "ended", "wake", "release",
          "park", "cancel", "expire", "close", "hang", "land", "switch")
_FAILURES = ("error", "timeout", "queue full", "closed", "hung", "worker died", "device lost", "no result")
_WHEN_FULL = {"block": BLOCK, "reject": REJECT, "shed_oldest": SHED_OLDEST}
_RULES = {"adaptive": RULE_ADAPTIVE, "timeout": RULE_TIMEOUT, "greedy": RULE_GREEDY, "preferred": RULE_PREFERRED}
_ACTIONS = ("dispatch", "wait until", "wait for instance", "wait for request")
_REASONS = ("full", "alone", "not worth waiting", "company late", "timeout", "split", "preferred size", "rule")

# A worker that runs one short batch after the other in one hold of the GIL hands out answers at least this often.
cdef int64_t LONGEST_HELD_BACK_NS = 500_000
# A hand-over to another thread costs 10 to 60 us where the GIL is in play: a branch that takes less runs where it is.
cdef int64_t HANDOVER_NS = 50_000
# The main thread looks for signals this often while it waits. The kernel interrupts it at once as a rule; this is for
# signals that another thread of the process received.
cdef int64_t SIGNAL_SLICE_NS = 100_000_000
cdef int64_t FIRST_GAP_NS = 20_000
# A backend that waits for a call of its own pipe looks this often whether it can come back at all.
cdef int64_t CALL_LOOP_SLICE_NS = 50_000_000
# A backend that waits for room in the stream of a coroutine looks this often whether its event loop is closed.
cdef int64_t CLOSED_LOOP_SLICE_NS = 500_000_000
# An event loop that has not looked at its streams for so long is asked again: asyncio drops what it has no memory to call.
cdef int64_t LOST_CALLBACK_NS = 400_000_000
# A Python call on the way from an outcome to its owner is made so often again if a signal, or a lack of memory, ends it.
cdef int MOST_ATTEMPTS = 100
# The lock of a future is waited for no longer than this: who holds it may be stopped, see _lock_future.
cdef double LONGEST_HELD_S = 0.05
# Of so many queued requests the dicts are kept, as making one again costs half a microsecond: behind them memory counts.
cdef int32_t WHOLE_UP_TO = 64
# A request of priority p counts as having arrived p times this later: it is overtaken by that much, and never starves.
cdef int64_t PRIORITY_NS = 100_000_000

cdef uint32_t _generation = 0           # raised in the child of a fork
cdef int64_t _spin_ns = 0
cdef int64_t _longest_lease_ns = 0
cdef unsigned long _main_thread = 0
cdef object _future_class = None


cdef c_bool is_among(object thing, object things) except *:
    """True if one of them is this very object."""
    for each in things:
        if each is thing:
            return True
    return False


def configure_process(main_thread_ident: int, spin_ns: int, longest_lease_ns: int) -> None:
    """Tell the engine which thread serves signals, how long a waiter spins before it sleeps.

    ``longest_lease_ns``: how long a caller that has been woken may keep the next ones spinning; 0 where none should.
    """
    global _main_thread, _spin_ns, _longest_lease_ns
    _main_thread = main_thread_ident
    _spin_ns = spin_ns
    _longest_lease_ns = longest_lease_ns


def configure_futures(future_class: type) -> None:
    """Tell the engine what submit() returns: a class that has FutureCore and the standard library's Future as its bases."""
    global _future_class
    _future_class = future_class


def note_fork_in_child() -> None:
    """Make every pipe built before the fork refuse in this process."""
    global _generation
    _generation += 1


def abandon_in_child(list pipes):
    """Never free pipes that the parent of a fork has built, nor what they refer to: not even when the process ends."""
    for pipe in pipes:
        Py_INCREF(pipe)
    if pipes:
        skip_exit_handlers()


# A call may fail with no exception to say why, if there was no memory for that or its traceback: only a bare ``except``
# catches it, and this is the error then.
cdef object _no_memory = MemoryError("an exception was lost, for want of memory")
