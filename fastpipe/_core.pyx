"""The engine: walks requests through a graph of nodes, on the threads that are already there.

    caller ── pipe(request) ──► Walk ──► Node: filter ──► instance free? ──yes──► run it here, go on to the next node
      ▲                                                        │
      │                                                        no, or the rule waits for company, or thread_bound
      │                                                        ▼
      └── parked on Walk.word ◄── finish ◄── a worker ◄── Station: inbox, staged tickets, tokens, rule

Words: a *walk* is one admitted request on its way; a *visit* is its turn at one node (a fan-out makes more of them); a
*station* is a node's queue, tokens and batching; a *turn* is what one hold of the GIL has produced and not handed out. A
node whose instances are at several places (GPUs) has a *twin* with a station of its own for each; see c_choose_twin.

Invariants, each held by the code that is named:
  E1  A walk ends exactly once: Walk.c_end, one compare-and-swap on ``outcome``. Only its winner touches the caller's dict.
  E2  A visit is in one place at a time. A queued one is owned by its ticket (Engine.c_queue INCREFs, whoever pops takes
      the reference over).
  E3  At most one batch runs in an instance: whoever runs one holds the instance's token (Station.c_try_token).
  E4  No request waits while it could run: a push raises ``queued`` and then looks at ``idle``; a release raises ``idle``
      and then looks at ``queued``; both sequentially consistent, so at least one of them sees the other and notifies.
      A worker announces itself before it looks (EventCount), so a notification between look and sleep is not lost.
  E5  Nobody is overtaken, but by priority: a caller takes a token only if nothing is queued; workers take the oldest
      first, where a priority counts as having come earlier or later (_ranking.pxd).
      Nor is anybody who waits to be let in: whoever frees a place gives it to the first of the line, under the same hold
      of the GIL (Station.c_tell_of_room), so there is never room for the first of a line.
  E6  User code is entered in _enter_user_code and, a backend's forward, in _run_backend, with no mutex held.
  E7  The GIL is never taken while a mutex is held; holders of the GIL may wait for a mutex, which is held for moments.
  E8  A batch that may hang is given up or comes back, not both: whoever changes Station.started_ns from the time at which
      it began has decided (Station.c_end_batch, Watchdog.c_look). A worker that was given up touches no token, no queue
      and no request any more; what its turn has not handed out is the watchdog's.

  E9  An outcome reaches its owner: from Walk.c_end on nothing needs memory that may be lacking (lists of walks are linked
      through them), and a Python call that is ended in the middle, by a signal or an exception from another thread, is
      made again; what ended it is raised where the thread can be interrupted (_note_interrupt). So a function that is
      ``noexcept`` raises nothing inside either: what could is in a ``try`` that ends a walk, or goes on without it.
      The list of live walks owns them: nobody else may.

The models in models/ check E1, E4 and close().

The graph is walked under the GIL: that is what guards the fields marked GIL in _core.pxd. A worker takes the GIL once
per batch, or less often: as long as a batch can leave at once it goes on in the same hold.
"""

cimport cython
from cpython.dict cimport PyDict_CheckExact, PyDict_Copy, PyDict_GetItem, PyDict_Next, PyDict_Size, PyDict_Update
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetInterrupt, PyErr_SetObject, PyErr_WriteUnraisable
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdlib cimport calloc, free
from libcpp.atomic cimport memory_order_acq_rel, memory_order_acquire, memory_order_relaxed, memory_order_release
from libcpp.atomic cimport memory_order_seq_cst

from fastpipe._batching cimport (
    DISPATCH, LATE, REASON_COUNT, RULE, TIMEOUT, WAIT_UNTIL, decide_adaptive, decide_greedy, decide_preferred, decide_timeout,
)
from fastpipe._hanging cimport LOOKS, Watched, late_at_ns
from fastpipe._inbox cimport LINKS_ABOVE, inbox_init, inbox_pop, inbox_push
from fastpipe._parking cimport (
    FOREVER, SET, Frame, abort_process, atomic_thread_fence, enter_frame, events_leave, events_notify, events_prepare, events_sleep,
    frozen_ns, futex_wake, hooked_points, innermost_batch, innermost_frame, is_another_inside, is_hooked, is_inside,
    is_settling, kernel_now_ns, leave_frame, note_sleeper, now_ns, skip_exit_handlers, want_precise_timers, word_set, word_wait,
)
from fastpipe._ranking cimport (
    Cursor, Ranked, cursor_begin, cursor_pass, cursor_take, next_of, ranked_append, ranked_init, ranked_insert,
)

from _thread import start_new_thread
from heapq import heapify, heappop, heappush
from numbers import Number
from opcode import opmap
from os import environ
from threading import Thread, current_thread

from fastpipe.errors import (
    BackendError, BackendHung, CallLoop, DeviceLost, ForkedPipe, ItemErrors, NoResult, PipeClosed, PipeError, QueueFull,
    RequestTimeout, RestartLimit, UnknownNode, WorkerDied, in_brief, keys_in_brief, nearest,
)
from fastpipe._results import checked_parts
from fastpipe._faults import is_device_lost, is_out_of_memory, own_copy, stacks, take_traceback, text_of
from fastpipe._snapshots import CannotCopy, take
from fastpipe.filters import Status, swap

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

cdef enum:
    FILTER_RUN = 0
    FILTER_SWAP = 1
    FILTER_CALL = 2
    FILTER_DEFAULT = 3      # by how the request came: see Engine.c_enter

cdef enum:                  # how a visit came to its node
    PASSED_ON = 0           # over an edge of the graph
    ENTERED = 1             # from outside
    RESTARTED = 2           # it has been through the graph

cdef enum:                  # Station.life
    OPEN_FOR_ALL = 0
    DRAINING = 1            # no new requests: nobody waits for company
    CLOSING = 2             # workers leave when nothing is queued

cdef int64_t NOTIFY_ME = 0x7fffffffffffffff      # Watchdog.until_ns: whenever a batch begins
cdef int64_t GIVEN_UP = -1                       # Station.started_ns: the watchdog has decided

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

cdef enum:                  # a worker, after a batch
    GOES_ON = 0
    DIES = 1
    IS_GIVEN_UP = 2

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

_GREENLET_ADVICE = ("Call the pipe from real threads (gevent: gevent.get_hub().threadpool.apply(pipe, (request,)); eventlet: "
                    "eventlet.tpool.execute(pipe, request)), or do not switch greenlets inside a backend")
_HOOKS = ("admit", "admitted", "push", "pushed", "take", "taken", "sleep", "forward", "return", "end", "ended", "wake", "release",
          "park", "cancel", "expire", "close", "hang")
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
# Batches above this size share one entry in the table of measured costs.
cdef int32_t COST_TABLE_SIZE = 256
cdef int64_t FIRST_GAP_NS = 20_000
# A backend that waits for a call of its own pipe looks this often whether it can come back at all.
cdef int64_t CALL_LOOP_SLICE_NS = 50_000_000
# A Python call on the way from an outcome to its owner is made so often again if a signal, or a lack of memory, ends it.
cdef int MOST_ATTEMPTS = 100
# The lock of a future is waited for no longer than this: who holds it may be stopped, see _lock_future.
cdef double LONGEST_HELD_S = 0.05
# A request of priority p counts as having arrived p times this later: it is overtaken by that much, and never starves.
cdef int64_t PRIORITY_NS = 100_000_000

cdef uint32_t _generation = 0           # raised in the child of a fork
cdef int64_t _spin_ns = 0
cdef unsigned long _main_thread = 0


def configure_process(main_thread_ident: int, spin_ns: int) -> None:
    """Tell the engine which thread serves signals, and how long a waiter spins before it sleeps."""
    global _main_thread, _spin_ns
    _main_thread = main_thread_ident
    _spin_ns = spin_ns


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

cdef dict _actions = {}                 # GIL: of hooks, by point


cdef int _check_test_hooks() except -1:
    """Hooks and frozen time are for fastpipe's own tests: without the variable in the environment they are inert."""
    if environ.get("FASTPIPE_TEST_HOOKS") != "1":
        raise PipeError("hooks and frozen time are for fastpipe's own tests; the environment has no FASTPIPE_TEST_HOOKS=1")
    return 0


def _hook(str point, action):
    """For tests: have ``action()`` called by whatever thread comes to ``point`` of the engine, in any pipe; None: no more.

    An action may wait, as long as what it waits for needs no thread that waits for it. What it raises is raised at
    "admit" (to the caller) and at "admitted" and "push" (it fails the request). At the other points it ends the worker that
    came there, if it is one, with what it holds (WorkerDied); elsewhere it is reported to sys.unraisablehook.
    """
    cdef uint32_t number = _HOOKS.index(point)
    _check_test_hooks()
    if action is None:
        hooked_points.fetch_and(~(<uint32_t>1 << number))
        _actions.pop(number, None)
    else:
        _actions[number] = action
        hooked_points.fetch_or(<uint32_t>1 << number)


def _freeze_time():
    """For tests: have time stand still, for every pipe of the process; _advance_time moves it, _thaw_time ends it."""
    _check_test_hooks()
    frozen_ns.store(now_ns(), memory_order_seq_cst)


def _advance_time(int64_t elapsed_ns):
    """For tests: let so much time pass, at once."""
    _check_test_hooks()
    frozen_ns.fetch_add(elapsed_ns, memory_order_seq_cst)


def _thaw_time():
    """For tests: time is the kernel's again."""
    frozen_ns.store(0, memory_order_seq_cst)


cdef int _act(uint32_t point) except -1:
    """Do what is hooked to a point; what it raises is raised here."""
    action = _actions.get(point)
    if action is not None:
        action()
    return 0


cdef int _act_in(uint32_t point, Turn turn) noexcept:
    """The same where nothing may be raised: the turn's worker ends later, but before its next batch."""
    try:
        _act(point)
    except BaseException as error:
        if turn is not None and turn.is_workers:
            turn.death = error
        else:
            _report(error, _actions.get(point))
    return 0


cdef c_bool _act_without_gil(uint32_t point, PyObject* turn) noexcept with gil:
    """The same for a worker's loop; True if it is to end."""
    _act_in(point, <Turn>turn)
    return (<Turn>turn).death is not None


cdef object _current_greenlet = None    # greenlet.getcurrent, where the process has greenlets


def know_greenlets(getcurrent):
    """Tell the engine how to find out which greenlet runs: of two on a thread, either may be in a backend."""
    global _current_greenlet
    _current_greenlet = getcurrent


cdef inline const void* _greenlet() noexcept:
    if _current_greenlet is None:
        return NULL
    return _ask_for_greenlet()


cdef const void* _ask_for_greenlet() noexcept:
    greenlet = _current_greenlet()
    return <const void*>greenlet


cdef object _enter_user_code(const void* engine, object function, object argument, object second=None):
    # The place where the engine calls what users wrote: filters, rules, buckets, weights, split and merge.
    # (Callbacks of futures are called by c_settle.) The frame lets close() know that it is called from in there.
    cdef Frame* frame = enter_frame(engine, False, _greenlet())
    if frame == NULL:
        raise MemoryError
    try:
        if second is None:
            return function(argument)
        return function(argument, second)
    finally:
        leave_frame(frame)


cdef object _run_backend(const void* engine, object forward, list batch, list visits, Station station):
    # The same for a backend's forward(): cancelled() can tell which requests it runs.
    cdef Frame* frame = enter_frame(engine, False, _greenlet())
    if frame == NULL:
        raise MemoryError
    frame.batch = <void*>visits
    frame.station = <void*>station
    try:
        return forward(batch)
    finally:
        leave_frame(frame)


def cancelled():
    """Inside a backend: True if nobody waits for any request of the batch that it runs on this thread.

    They were cancelled, have run out of time, or failed in another branch. What the batch does is then for nothing; a long
    ``forward`` may look here from time to time and return early. False where no backend runs on this thread.
    """
    cdef void* batch = innermost_batch(_greenlet())
    if batch == NULL:
        return False
    for visit in <list>batch:
        if not _is_dead(<Visit>visit) and not _is_late(<Visit>visit):
            return False
    return True


cdef inline c_bool _is_late(Visit visit) noexcept:
    return visit.walk.deadline_ns >= 0 and now_ns() >= visit.walk.deadline_ns


cdef c_bool _is_of(Visit visit, Walk walk) noexcept:
    """True if a visit is one of a walk, or of a part of it."""
    cdef Walk own = visit.walk
    while own is not walk and own.sink_kind == SINK_GATHER:
        own = (<Gather>own.sink).visit.walk
    return own is walk


cdef inline c_bool _is_dead(Visit visit) noexcept:
    """True if nobody waits for this visit: its walk ended or has restarted, or that of which it is a part."""
    while True:
        if visit.walk.outcome.load(memory_order_acquire) != RUNNING or visit.round != visit.walk.restarts:
            return True
        if visit.walk.sink_kind != SINK_GATHER:
            return False
        visit = (<Gather>visit.walk.sink).visit


cdef void _report(object error, object where) noexcept:
    """Tell sys.unraisablehook of an exception that has nobody to be raised to."""
    PyErr_SetObject(type(error), error)
    PyErr_WriteUnraisable(where)


cdef int _note_interrupt(Turn turn, object error) noexcept:
    """Keep an exception that has ended a call which raises none by itself: a signal's, or one that another thread sent.

    The call of the pipe that this thread is in raises it, or it ends the worker. A lack of memory is over by then.
    """
    if issubclass(type(error), MemoryError):
        return 0
    if turn is not None and turn.is_workers:
        if turn.death is None:
            turn.death = error
    elif turn is not None and turn.interrupt is None:
        turn.interrupt = error
    elif issubclass(type(error), KeyboardInterrupt) and PyThread_get_thread_ident() == _main_thread:
        PyErr_SetInterrupt()                                    # as if it came a moment later
    elif turn is None or turn.interrupt is not error:
        _report(error, None)
    return 0


cdef void _add_note(object error, str note) noexcept:
    try:
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
    except BaseException:  # an exception class may forbid it; its own message is what matters
        pass


cdef Visit _take_last(list visits):
    """Take the last one out of a list that is not empty. Needs no memory, as list.pop() may: that makes the list smaller."""
    cdef Py_ssize_t last = len(visits) - 1
    cdef Visit visit = <Visit>visits[last]
    Py_SET_SIZE(visits, last)
    Py_DECREF(visit)                                            # ``visit`` holds it
    return visit


cdef int _take_out(list items, object item) noexcept:
    """Take an object out of a list, whose order may change. Needs no memory, as list.remove() may, and compares nothing."""
    cdef Py_ssize_t last = len(items) - 1
    cdef Py_ssize_t index
    for index in range(last + 1):
        if items[index] is item:
            tail = items[last]
            items[index] = tail                                 # the caller holds ``item``: no destructor runs
            Py_SET_SIZE(items, last)
            Py_DECREF(tail)                                     # of the slot that is no more
            return 1
    return 0


cdef inline int64_t _first_slice(int64_t deadline_ns) noexcept nogil:
    """Where a wait of this thread has to end for a look at signals."""
    cdef int64_t slice_end
    if PyThread_get_thread_ident() != _main_thread:
        return deadline_ns
    slice_end = now_ns() + SIGNAL_SLICE_NS
    return slice_end if deadline_ns < 0 or slice_end < deadline_ns else deadline_ns


@cython.final
cdef class Instance:
    """One object of a node's backend."""

    def __init__(self, object backend, int index):
        self.backend = backend
        self.forward = backend.forward
        self.index = index


# =================================================================================================================
# Station
# =================================================================================================================

@cython.final
cdef class Station:
    """Queue, tokens and batching of one node. See ``_core.pxd`` for who owns what."""

    def __cinit__(self, str name, int instance_count, int max_batch, bint thread_bound, object rule, object preferred,
                  double timeout_ms, bint has_buckets, int max_queue=0, int64_t max_queue_bytes=0, str when_full="block",
                  double hang_timeout_s=0, object place=None, tuple numbers=None):
        self.name = name
        self.place = place
        self.numbers = tuple(range(instance_count)) if numbers is None else numbers
        self.instance_count = instance_count
        self.in_service = instance_count
        self.max_batch = max_batch
        self.batches = max_batch > 1
        self.thread_bound = thread_bound
        self.hang_ns = <int64_t>(hang_timeout_s * 1e9)
        self.workers_only = thread_bound or self.hang_ns > 0
        self.held = [None] * instance_count
        self.lives = [0] * instance_count
        if isinstance(rule, str):
            self.rule = _RULES[rule]
        else:
            self.rule = RULE_OBJECT
            self.rule_object = rule.decide
        if preferred is not None:  # sorted(preferred or ()) crashes Cython 3.3.0
            for size in sorted(preferred):
                self.preferred.push_back(size)
        self.timeout_ns = <int64_t>(timeout_ms * 1e6)
        self.has_buckets = has_buckets
        self.bucket_ids = {}
        self.upstream = ()
        self.max_queue = max_queue
        self.max_queue_bytes = max_queue_bytes
        self.when_full = _WHEN_FULL[when_full]
        self.lines = []
        self.waiting_alone = []
        inbox_init(&self.inbox)
        ranked_init(&self.staged)
        self.cost_size = min(max_batch, COST_TABLE_SIZE) + 1
        self.token_is_free = <atomic[uint8_t]*>calloc(instance_count, sizeof(atomic[uint8_t]))
        self.cost_alone_ns = <atomic[int64_t]*>calloc(self.cost_size, sizeof(atomic[int64_t]))
        self.cost_shared_ns = <atomic[int64_t]*>calloc(self.cost_size, sizeof(atomic[int64_t]))
        self.started_ns = <atomic[int64_t]*>calloc(instance_count, sizeof(atomic[int64_t]))
        if self.token_is_free == NULL or self.cost_alone_ns == NULL or self.cost_shared_ns == NULL or self.started_ns == NULL:
            raise MemoryError
        self.usual_gap_ns.store(FIRST_GAP_NS, memory_order_relaxed)

    def __dealloc__(self):
        free(self.token_is_free)
        free(self.cost_alone_ns)
        free(self.cost_shared_ns)
        free(self.started_ns)

    def set_upstream(self, tuple stations):
        """Say which stations' requests may still come here; called once, while building."""
        self.upstream = stations
        for station in stations:
            self.upstream_stations.push_back(<PyObject*>station)

    def join(self, tuple others):
        """Say which stations serve the same node at other places; called once, at the first one's, while building."""
        for other in others:
            (<Station>other).front = self
            self.others.push_back(<PyObject*>other)

    @property
    def title(self):
        """The node as in a sentence, and where, if its instances are at several places: ``node 'resize' at cuda:1``."""
        return f"node {self.name!r}{_at(self)}"

    def open_instance(self, int index):
        """Make an instance available: its backend is built."""
        self.c_release_token(index)

    def drain(self):
        """No new requests are coming: let batches leave without waiting for company."""
        self.life.store(DRAINING, memory_order_seq_cst)
        events_notify(&self.workers, 0x7fffffff)

    def life_of(self, int index):
        """Which of the backends that have had an instance's place has it now: how many were given up before."""
        return self.lives[index]

    def retire(self, int index, int life, double timeout_s):
        """Take an instance out of service for good, once its batch is done; False if that lasts longer. Serves signals.

        None if the backend with that ``life`` was given up, before or while this waits: its token is another's, or nobody's.
        Only after close(): whoever releases a token then tells those who wait here. Negative ``timeout_s``: no limit.
        """
        cdef int64_t deadline = FOREVER if timeout_s < 0 else now_ns() + <int64_t>(timeout_s * 1e9)
        cdef int64_t until
        cdef uint32_t epoch
        while True:
            epoch = events_prepare(&self.workers)
            if self.lives[index] != life:
                events_leave(&self.workers)
                return None
            if self.c_try_token(index):
                events_leave(&self.workers)
                return True
            if deadline >= 0 and now_ns() >= deadline:
                events_leave(&self.workers)
                return False
            with nogil:
                until = _first_slice(deadline)
                events_sleep(&self.workers, epoch, until)
            PyErr_CheckSignals()

    def close(self):
        """Let the workers leave once nothing is queued."""
        self.life.store(CLOSING, memory_order_seq_cst)
        events_notify(&self.workers, 0x7fffffff)

    def serve(self, int worker):
        """Work until the station is closed and empty; return None. The body of a worker thread.

        Returns the backend in which the worker was given up as hung, if it was: another has its place, and it must not
        serve any more. Raises what ended the worker otherwise: it may serve again. What it held has failed.
        """
        cdef Batch batch
        cdef Turn turn = Turn.__new__(Turn)
        cdef PyObject* turn_pointer = <PyObject*>turn
        turn.is_workers = True
        with nogil:
            want_precise_timers()
            while self.c_wait_for_batch(&batch, worker, turn_pointer):
                if not _run_taken(&batch, worker, <PyObject*>self, turn_pointer):
                    break
        if turn.abandoned is not None or turn.death is None:
            return turn.abandoned
        self.deaths += 1
        raise turn.death

    def lose(self, object error):
        """Fail whatever comes from now on: there is no instance any more. What is queued: fail_queued()."""
        self.lost = error
        events_notify(&self.workers, 0x7fffffff)                # for steppers

    @property
    def hang_timeout_s(self):
        """How long a batch may run; 0: however long."""
        return self.hang_ns / 1e9

    @property
    def is_closed(self):
        """True once its workers are told to leave."""
        return self.life.load(memory_order_seq_cst) == CLOSING

    def recover(self):
        """There is an instance again."""
        self.lost = None

    def watch(self, Watchdog watchdog):
        """Say who looks for batches that do not end; called once, while building."""
        self.watchdog = watchdog

    def fail_queued(self, str why, object lost=None):
        """Fail every queued request: as the pipe closes without draining, or because of how the node was ``lost``."""
        cdef Batch batch
        cdef Turn turn = Turn.__new__(Turn)
        cdef Visit visit
        while True:
            with nogil:
                self.desk.lock()
                self.c_drain()
                batch.first = NULL
                if self.staged.first != NULL:
                    self.c_take(&batch, self.staged.first.bucket, 1)
                self.desk.unlock()
            if batch.first == NULL:
                turn.c_raise_interrupt()
                return
            visit = _only_visit_of(&batch)
            visit.walk.engine.c_fail_visit(visit, _closed_error(why) if lost is None else visit.walk.engine.c_lost_error(visit, lost),
                                           turn)
            self.running.fetch_sub(1, memory_order_relaxed)
            visit.walk.engine.c_queue_all(turn)                 # a MapReduce may go on without its failed parts
            visit.walk.engine.c_send_one_back(visit, turn)
            visit.walk.engine.c_settle(turn)
            turn.wake()

    def stats(self):
        """Counters since the pipe was built; see ``Pipe.stats``."""
        return {
            "batches": self.batches_run,
            "requests": self.requests_run,
            "failed": self.requests_failed,
            "mean_batch": <double>self.requests_run / <double>self.batches_run if self.batches_run else 0.0,
            "run_by_caller": self.run_by_caller,
            "gil_acquires": self.gil_acquires,
            "busy_s": self.busy_ns / 1e9,
            "halved": self.halved,
            "hung": self.hung,
            "worker_deaths": self.deaths,
            "queued": self.queued.load(memory_order_relaxed),
            "running": self.running.load(memory_order_relaxed),
            "why_batches_left": {_REASONS[i]: self.reasons[i].load(memory_order_relaxed) for i in range(REASON_COUNT)
                                 if self.reasons[i].load(memory_order_relaxed)},
        }

    # ---- tokens ------------------------------------------------------------------------------------------------

    cdef c_bool c_try_token(self, int index) noexcept nogil:
        cdef uint8_t is_free = 1
        # acq_rel: what the last batch in this instance did happens before ours. Pairs with the store in c_release_token.
        if self.token_is_free[index].compare_exchange_strong(is_free, 0, memory_order_acq_rel, memory_order_relaxed):
            self.idle.fetch_sub(1, memory_order_seq_cst)
            return True
        return False

    cdef int c_take_token(self) noexcept nogil:
        cdef int index
        if self.idle.load(memory_order_seq_cst) <= 0:
            return -1
        for index in range(self.instance_count):
            if self.token_is_free[index].load(memory_order_relaxed) and self.c_try_token(index):
                return index
        return -1

    cdef void c_release_token(self, int index) noexcept nogil:
        if self.batches and self.idle.load(memory_order_relaxed) == 0:
            self.idle_since_ns.store(now_ns(), memory_order_relaxed)
        self.token_is_free[index].store(1, memory_order_release)
        self.idle.fetch_add(1, memory_order_seq_cst)            # E4: then look at the queue
        if self.queued.load(memory_order_seq_cst) > 0:
            events_notify(&self.workers, 1)
        if self.life.load(memory_order_seq_cst) == CLOSING or self.wanted.load(memory_order_seq_cst) > 0:
            events_notify(&self.workers, 0x7fffffff)            # for retire() and steppers

    # ---- arrivals ----------------------------------------------------------------------------------------------

    cdef void c_push(self, Ticket* ticket) noexcept nogil:
        self.queued.fetch_add(1, memory_order_seq_cst)          # E4: then look at the tokens, which is c_notify
        inbox_push(&self.inbox, ticket)

    cdef void c_notify(self) noexcept nogil:
        atomic_thread_fence(memory_order_seq_cst)               # the push, before the look: it ends with a release store
        if self.idle.load(memory_order_seq_cst) <= 0:
            return                                              # whoever releases a token looks at the queue
        if (self.collecting.load(memory_order_seq_cst) > 0
                and self.queued.load(memory_order_seq_cst) < self.wake_at.load(memory_order_seq_cst)):
            return                                              # a worker collects, and will look at its deadline
        events_notify(&self.workers, 1)

    cdef void c_note_arrival(self, int64_t now) noexcept nogil:
        """Learn from a request that came, and forgive one caller who was expected back."""
        cdef int64_t latest = max(self.latest_arrival_ns.load(memory_order_relaxed),
                                  self.latest_answer_ns.load(memory_order_relaxed))
        cdef int64_t gap = now - latest
        cdef int64_t usual = self.usual_gap_ns.load(memory_order_relaxed)
        cdef int32_t owed = self.owed.load(memory_order_relaxed)
        # A pause longer than half of a batch is no part of a burst: it says nothing about the gaps inside one, and who
        # was expected back has not come.
        if 0 <= gap < self.c_cost(self.cost_alone_ns, 1) // 2:
            self.usual_gap_ns.store(usual + (gap - usual) // 8, memory_order_relaxed)
        else:
            self.owed.store(0, memory_order_relaxed)
            owed = 0
        self.latest_arrival_ns.store(now, memory_order_relaxed)
        while owed > 0:
            if self.owed.compare_exchange_weak(owed, owed - 1, memory_order_relaxed, memory_order_relaxed):
                break

    # ---- limits ------------------------------------------------------------------------------------------------

    cdef c_bool c_is_limited(self) noexcept:
        return self.max_queue > 0 or self.max_queue_bytes > 0

    cdef c_bool c_has_twins(self) noexcept:
        return self.front is not None or not self.others.empty()

    cdef int32_t c_waiting(self) noexcept:
        """How many requests wait for the node, at all its places. At the front."""
        cdef int32_t waiting = self.queued.load(memory_order_seq_cst) - self.ghosts
        cdef size_t i
        for i in range(self.others.size()):
            waiting += (<Station>self.others[i]).queued.load(memory_order_seq_cst) - (<Station>self.others[i]).ghosts
        return waiting

    cdef int64_t c_waiting_bytes(self) noexcept:
        """How many bytes they have. At the front."""
        cdef int64_t size_bytes = self.queued_bytes
        cdef size_t i
        for i in range(self.others.size()):
            size_bytes += (<Station>self.others[i]).queued_bytes
        return size_bytes

    cdef c_bool c_is_full(self, int64_t more_bytes, c_bool with_reserved) noexcept:
        cdef int32_t waiting = self.c_waiting()
        cdef int64_t reserved_bytes = 0
        if with_reserved:
            waiting += self.reserved
            reserved_bytes = self.reserved_bytes
        if self.max_queue > 0 and waiting >= self.max_queue:
            return True
        return self.max_queue_bytes > 0 and self.c_waiting_bytes() + reserved_bytes + more_bytes > self.max_queue_bytes

    cdef object c_full_error(self, int64_t more_bytes):
        cdef int32_t waiting = self.c_waiting() + self.reserved
        if self.name is None:
            return QueueFull(f"the pipe is full: {waiting} requests are in flight, and its max_in_flight is {self.max_queue}")
        cdef int64_t waiting_bytes = self.c_waiting_bytes() + self.reserved_bytes
        if self.max_queue_bytes > 0 and waiting_bytes + more_bytes > self.max_queue_bytes:
            said = (f"{waiting_bytes} bytes wait, the request has {more_bytes}, and its max_queue_bytes is "
                    f"{self.max_queue_bytes}")
        else:
            said = f"{waiting} requests wait, and its max_queue is {self.max_queue}"
        return QueueFull(f"the queue of node {self.name!r} is full: {said}")

    cdef void c_tell_of_room(self) noexcept:
        """The queue is shorter: let in who has waited longest, as many as there are places. They stand at the front.

        No code of users runs in here. Coroutines that are let in wait for Engine.c_start_called, which whoever frees places
        calls before it runs a backend, sleeps or lets the GIL go for good.
        """
        cdef Line line, chosen
        cdef int64_t latest = -1                                # of those that were looked at, who come in order
        if self.front is not None:
            self.front.c_tell_of_room()
            return
        while self.waiter_count > 0:
            chosen = None
            for line in self.lines:
                if line.first is not None and line.first.number > latest and (chosen is None
                                                                              or line.first.number < chosen.first.number):
                    chosen = line
            if chosen is None:                                  # what keeps them out is full elsewhere
                return
            latest = chosen.first.number
            chosen.c_let_in_first()

    cdef Visit c_take_oldest(self):
        """Take the request that would be next out of the queue, or None."""
        cdef Batch batch
        batch.first = NULL
        self.desk.lock()                                        # E7; nothing may come in between
        self.c_drain()
        if self.staged.first != NULL:
            self.c_take(&batch, self.staged.first.bucket, 1)
        self.desk.unlock()
        if batch.first == NULL:
            return None
        self.running.fetch_sub(1, memory_order_relaxed)
        return _only_visit_of(&batch)

    cdef Visit c_take_oldest_of_all(self):
        """The same of the queues at all places of the node. At the front."""
        cdef Station station, chosen
        cdef Visit visit
        cdef int64_t rank_ns
        cdef int64_t least_ns = 0
        cdef size_t i
        if self.others.empty():
            return self.c_take_oldest()
        while True:                                             # until no worker has been faster
            chosen = self if self.c_oldest_rank(&least_ns) else None
            for i in range(self.others.size()):
                station = <Station>self.others[i]
                if station.c_oldest_rank(&rank_ns) and (chosen is None or rank_ns < least_ns):
                    chosen = station
                    least_ns = rank_ns
            if chosen is None:
                return None
            visit = chosen.c_take_oldest()
            if visit is not None:
                return visit

    cdef c_bool c_oldest_rank(self, int64_t* rank_ns) noexcept:
        """The rank of the request that would be next; False if nothing is queued."""
        cdef c_bool found
        self.desk.lock()                                        # E7: a holder of the GIL may wait for it
        self.c_drain()
        found = self.staged.first != NULL
        if found:
            rank_ns[0] = self.staged.first.rank_ns
        self.desk.unlock()
        return found

    cdef int c_sweep(self) except -1:
        """Take visits whose walks have ended out of the queue, once they are many: they keep their data alive."""
        cdef Batch ghosts
        cdef Cursor cursor
        cdef Ticket* ticket
        cdef Ticket* last = NULL
        if self.ghosts < 32 or self.ghosts < self.queued.load(memory_order_relaxed) // 2:
            return 0
        ghosts.first = NULL
        ghosts.count = 0
        self.desk.lock()                                        # E7: a holder of the GIL may wait for it
        self.c_drain()
        cursor_begin(&cursor, &self.staged)
        while cursor.at != NULL:
            if not (<Visit>cursor.at.visit).is_ghost:
                cursor_pass(&cursor, &self.staged)
                continue
            ticket = cursor_take(&cursor, &self.staged)
            if last == NULL:
                ghosts.first = ticket
            else:
                last.next.store(<void*>ticket, memory_order_relaxed)
            last = ticket
            ghosts.count += 1
        self.queued.fetch_sub(ghosts.count, memory_order_seq_cst)
        self.desk.unlock()
        while ghosts.first != NULL:
            _first_visit_of(&ghosts)                            # and drop it
        return 0

    cdef c_bool c_holds(self, Walk walk):
        """True if some visit of a walk, or of a part of it, is queued here."""
        cdef Ticket* ticket
        cdef vector[PyObject*] visits
        cdef PyObject* visit
        cdef c_bool found = False
        self.desk.lock()                                        # E7: a holder of the GIL may wait for it
        self.c_drain()
        ticket = self.staged.first
        while ticket != NULL:                                   # E6: nothing in here may run a destructor
            visits.push_back(ticket.visit)
            Py_INCREF(<object>ticket.visit)
            ticket = <Ticket*>ticket.next.load(memory_order_relaxed)
        self.desk.unlock()
        for visit in visits:
            found = found or _is_of(<Visit>visit, walk)
            Py_DECREF(<object>visit)
        return found

    # ---- batches that do not end -------------------------------------------------------------------------------

    def give_up(self, int index):
        """Fail what a hung instance holds, and have it replaced."""
        for _attempt in range(MOST_ATTEMPTS):                    # it is decided (E8): nobody else does it
            if self.held[index] is None:
                return
            try:
                self.c_give_up(index)
                return
            except BaseException as error:                      # no memory: nothing has happened yet
                _report(error, self)

    cdef int c_begin_batch(self, int index, int64_t now) noexcept:
        """From now on the watchdog looks at what runs in an instance."""
        self.started_ns[index].store(now, memory_order_seq_cst)
        self.watchdog.c_tell(now + self.hang_ns // LOOKS)
        return 0

    cdef c_bool c_end_batch(self, int index, Turn turn, int64_t started) noexcept:
        """The backend has returned; False if it was given up before (E8)."""
        cdef int64_t expected = started
        if self.started_ns[index].compare_exchange_strong(expected, 0, memory_order_seq_cst, memory_order_seq_cst):
            return True
        turn.abandoned = (<Instance>(<tuple>self.held[index])[2]).backend if turn.abandoned is None else turn.abandoned
        return False

    cdef int c_give_up(self, int index) except -1:
        """What give_up does, once the watchdog has decided (E8)."""
        cdef Turn turn = Turn.__new__(Turn)
        cdef Turn lost
        cdef Visit visit
        cdef Engine engine
        cdef Instance instance
        cdef Frame* frame
        cdef str where = _stacks()                              # first: this runs Python code, and may take a while
        cdef list visits
        visits, lost, instance, thread = self.held[index]
        engine = (<Visit>visits[0]).walk.engine
        self.lives[index] += 1
        self.held[index] = None                                 # decided: from here on nothing may fail
        events_notify(&self.workers, 0x7fffffff)                # for retire()
        self.hung += 1
        lost.abandoned = instance.backend
        turn.settled_first = lost.settled_first                 # what it has not handed out
        turn.settled_last = lost.settled_last
        lost.settled_first = NULL
        lost.settled_last = NULL
        turn.arrived, lost.arrived = lost.arrived, turn.arrived
        turn.ready, lost.ready = lost.ready, turn.ready
        turn.wakes.swap(lost.wakes)
        count = len(visits)
        self.running.fetch_sub(count, memory_order_relaxed)
        frame = enter_frame(<void*>engine, True, _greenlet())
        try:
            try:
                engine._replace_hung(self, index, instance, thread)     # first: close() may only wait for the requests
            except BaseException as error:
                _report(error, self)
            for visit in visits:
                if visit.is_held:
                    visit.is_held = False
                    self.requests_failed += 1
                    engine.c_fail_visit(visit, _hung_error(self, visit, index, count, where), turn)
            if engine.steppers:
                engine.c_send_back(visits, turn)
            engine.c_queue_all(turn)
            engine.c_settle(turn)
        finally:
            leave_frame(frame)
            turn.wake()
        turn.c_report_interrupt()
        return 0

    # ---- measured costs ----------------------------------------------------------------------------------------

    cdef void c_note_cost(self, int32_t size, c_bool shared, int64_t elapsed_ns) noexcept nogil:
        cdef atomic[int64_t]* costs = self.cost_shared_ns if shared else self.cost_alone_ns
        cdef int64_t before
        size = min(size, self.cost_size - 1)
        before = costs[size].load(memory_order_relaxed)
        # A first sample counts in full: the first batch of a size may be slow, and the average forgets it soon.
        costs[size].store(elapsed_ns if before == 0 else before + (elapsed_ns - before) // 4, memory_order_relaxed)

    cdef int64_t c_cost(self, atomic[int64_t]* costs, int32_t size) noexcept nogil:
        """The measured cost of a batch of ``size``, or of the nearest size that was measured; 0: none was."""
        cdef int32_t distance, below, above
        cdef int64_t cost
        size = min(max(size, 1), self.cost_size - 1)
        for distance in range(self.cost_size):
            below = size - distance
            above = size + distance
            if below >= 1:
                cost = costs[below].load(memory_order_relaxed)
                if cost:
                    return cost
            if above < self.cost_size:
                cost = costs[above].load(memory_order_relaxed)
                if cost:
                    return cost
            if below < 1 and above >= self.cost_size:
                break
        return 0

    # ---- forming a batch ---------------------------------------------------------------------------------------

    cdef int32_t c_company(self) noexcept nogil:
        # torchpipe's rule does not reckon with callers that come back.
        cdef int32_t company = 0 if self.rule == RULE_TIMEOUT else self.owed.load(memory_order_relaxed)
        cdef size_t i
        for i in range(self.upstream_stations.size()):
            company += _present(self.upstream_stations[i])
        return company

    cdef void c_drain(self) noexcept nogil:
        """Move what has arrived from the inbox to the staged list: to its end, or where its rank belongs. Mutex held."""
        cdef Ticket* ticket = inbox_pop(&self.inbox)
        while ticket != NULL:
            if self.has_ranks.load(memory_order_relaxed):
                ranked_insert(&self.staged, ticket)
            else:
                ranked_append(&self.staged, ticket)
            ticket = inbox_pop(&self.inbox)

    cdef int64_t c_weigh_queue(self, Load* load) noexcept nogil:
        """Fill in what is queued of the bucket to go next, and return that bucket. Mutex held.

        The oldest request's bucket goes next. Another one that is full may overtake it, but only as long as the oldest
        has not waited for batching_timeout: it is never starved. Only the first 16 buckets among the first 256 requests
        are looked at, so that the look stays short.
        """
        cdef int64_t[16] buckets
        cdef int32_t[16] counts
        cdef double[16] weights
        cdef int64_t[16] oldest
        cdef int32_t bucket_count = 0
        cdef c_bool is_overdue
        cdef int32_t seen = 0
        cdef int32_t i
        cdef Ticket* ticket = self.staged.first
        load.queued = 0
        load.queued_weight = 0
        if ticket == NULL:
            return 0
        if not self.has_buckets:
            load.queued = self.staged.count
            load.queued_weight = self.staged.weight
            load.oldest_ns = ticket.arrival_ns
            return 0
        is_overdue = now_ns() - ticket.arrival_ns >= self.timeout_ns
        while ticket != NULL and seen < 256:
            seen += 1
            i = 0
            while i < bucket_count and buckets[i] != ticket.bucket:
                i += 1
            if i == bucket_count and bucket_count < 16:
                bucket_count += 1
                buckets[i] = ticket.bucket
                counts[i] = 0
                weights[i] = 0
                oldest[i] = ticket.arrival_ns
            if i < bucket_count:
                counts[i] += 1
                weights[i] += ticket.weight
                if weights[i] >= self.max_batch and (i == 0 or not is_overdue):
                    break
            ticket = <Ticket*>ticket.next.load(memory_order_relaxed)
        if ticket == NULL or seen >= 256:
            i = 0
        load.queued = counts[i]
        load.queued_weight = weights[i]
        load.oldest_ns = oldest[i]
        return buckets[i]

    cdef int64_t c_fill_load(self, Load* load) noexcept nogil:
        """Describe the moment to a rule, and return the bucket to go next. Mutex held."""
        cdef int64_t bucket = self.c_weigh_queue(load)
        load.now_ns = now_ns()
        load.idle_instances = self.idle.load(memory_order_seq_cst)
        load.busy_instances = self.instance_count - load.idle_instances
        load.max_weight = self.max_batch
        load.timeout_ns = self.timeout_ns
        load.idle_since_ns = self.idle_since_ns.load(memory_order_relaxed)
        load.latest_event_ns = max(self.latest_arrival_ns.load(memory_order_relaxed),
                                   self.latest_answer_ns.load(memory_order_relaxed))
        load.usual_gap_ns = self.usual_gap_ns.load(memory_order_relaxed)
        load.company = self.c_company() if self.life.load(memory_order_relaxed) == OPEN_FOR_ALL else 0
        self.c_fill_costs(load)
        return bucket

    cdef void c_fill_costs(self, Load* load) noexcept nogil:
        """Fill in the measured costs of the batches that a rule has to choose between."""
        cdef int32_t expected
        load.cost_alone_ns = 0
        load.cost_shared_ns = 0
        if self.batches and load.queued > 0:
            expected = min(load.queued + max(load.company, 0), self.max_batch)
            load.cost_alone_ns = self.c_cost(self.cost_alone_ns, expected)
            if load.idle_instances > 1:
                load.cost_shared_ns = self.c_cost(self.cost_shared_ns, expected // load.idle_instances)

    cdef Verdict c_decide(self, Load* load) noexcept nogil:
        if self.rule == RULE_GREEDY or self.life.load(memory_order_relaxed) != OPEN_FOR_ALL:
            return decide_greedy(load)
        if self.rule == RULE_ADAPTIVE or not self.batches:
            return decide_adaptive(load)
        if self.rule == RULE_TIMEOUT:
            return decide_timeout(load)
        return decide_preferred(load, self.preferred.data(), <int32_t>self.preferred.size())

    cdef void c_take(self, Batch* batch, int64_t bucket, int32_t size) noexcept nogil:
        """Append to ``batch`` up to ``size`` staged requests of ``bucket``, within the node's max. Mutex held."""
        cdef Cursor cursor
        cdef Ticket* ticket
        cdef Ticket* last = batch.first
        cdef int32_t taken = 0
        if last == NULL:
            batch.count = 0
            batch.weight = 0
            batch.bucket = bucket
        else:
            while last.next.load(memory_order_relaxed) != NULL:
                last = <Ticket*>last.next.load(memory_order_relaxed)
        cursor_begin(&cursor, &self.staged)
        while cursor.at != NULL and taken < size and batch.weight < self.max_batch:
            if cursor.at.bucket != bucket:
                cursor_pass(&cursor, &self.staged)
                continue
            if batch.count > 0 and batch.weight + cursor.at.weight > self.max_batch:
                break
            ticket = cursor_take(&cursor, &self.staged)
            if last == NULL:
                batch.first = ticket
            else:
                last.next.store(<void*>ticket, memory_order_relaxed)
            last = ticket
            batch.count += 1
            batch.weight += ticket.weight
            taken += 1
        self.running.fetch_add(taken, memory_order_relaxed)
        self.queued.fetch_sub(taken, memory_order_seq_cst)

    cdef c_bool c_try_take(self, Batch* batch, int worker, Verdict* verdict) noexcept nogil:
        """Form a batch if the rule says so; True if ``batch`` holds one, and a token.

        ``worker``: only that instance's token (thread_bound), or -1 for any. A token that ``batch`` holds already is kept.
        """
        cdef Load load
        cdef int64_t bucket
        cdef c_bool has_token = batch.instance >= 0
        cdef c_bool took = False
        batch.first = NULL
        self.desk.lock()
        self.c_drain()
        bucket = self.c_fill_load(&load)
        if has_token:
            if load.idle_instances == 0:
                load.idle_since_ns = load.now_ns
            load.idle_instances += 1
            load.busy_instances -= 1
        if self.rule == RULE_OBJECT and self.batches and load.queued > 0 and load.idle_instances > 0:
            # E7: a rule written in Python needs the GIL, which must not be waited for under the mutex.
            self.desk.unlock()
            verdict[0] = _ask_rule_object(<PyObject*>self, &load)
            self.desk.lock()
        else:
            verdict[0] = self.c_decide(&load)
        if verdict.action == DISPATCH:
            if not has_token:
                if worker >= 0:
                    batch.instance = worker if self.c_try_token(worker) else -1
                else:
                    batch.instance = self.c_take_token()
            if batch.instance >= 0:
                self.c_take(batch, bucket, verdict.size)
                if batch.first != NULL:
                    took = True
                    self.reasons[verdict.reason].fetch_add(1, memory_order_relaxed)
                    batch.may_grow = self.rule == RULE_ADAPTIVE or self.rule == RULE_GREEDY
                    batch.may_grow = batch.may_grow and verdict.size >= load.queued and batch.weight < self.max_batch
                elif not has_token:
                    self.c_release_token(batch.instance)
                    batch.instance = -1
        elif verdict.action == WAIT_UNTIL:
            # Wake the collecting worker when the batch is full or everybody who was expected is here. Where a count does
            # not tell (weights, buckets, rules of other kinds), at every arrival.
            if (self.rule != RULE_ADAPTIVE or self.has_buckets or self.has_weights.load(memory_order_relaxed)
                    or load.company <= 0):
                # What has been seen, not what is counted: a ticket may be counted before its push can be seen.
                self.wake_at.store(self.staged.count + 1, memory_order_seq_cst)
            else:
                self.wake_at.store(min(self.max_batch, load.queued + load.company), memory_order_seq_cst)
        if took and (verdict.reason == LATE or verdict.reason == TIMEOUT):
            self.owed.store(0, memory_order_relaxed)            # they did not come back: expect nobody until the next answer
        self.desk.unlock()
        return took

    cdef c_bool c_wait_for_batch(self, Batch* batch, int worker, PyObject* turn) noexcept nogil:
        """Wait for a batch and a token; False: the station is closed and empty, or a hook has ended the worker."""
        cdef Verdict verdict
        cdef uint32_t epoch
        cdef int only = worker if self.thread_bound else -1
        # Callers that were just answered are often about to come back. One yield lets them run, and saves a sleep and a
        # wake-up: 1.4 times the requests of one client, where every request is handed over.
        cdef c_bool may_yield = True
        while True:
            epoch = events_prepare(&self.workers)
            batch.instance = -1
            if is_hooked(AT_TAKE) and _act_without_gil(AT_TAKE, turn):
                events_leave(&self.workers)
                self.c_notify()                                 # a wake-up that was another worker's may have come here
                return False
            if self.c_try_take(batch, only, &verdict):
                events_leave(&self.workers)
                if self.queued.load(memory_order_seq_cst) > 0:
                    self.c_notify()                             # there may be enough for another instance
                return True
            if self.life.load(memory_order_seq_cst) == CLOSING and self.queued.load(memory_order_seq_cst) == 0:
                events_leave(&self.workers)
                return False
            if is_hooked(AT_SLEEP) and _act_without_gil(AT_SLEEP, turn):
                events_leave(&self.workers)
                self.c_notify()
                return False
            if verdict.action == WAIT_UNTIL:
                self.collecting.fetch_add(1, memory_order_seq_cst)
                events_sleep(&self.workers, epoch, verdict.until_ns)
                self.collecting.fetch_sub(1, memory_order_seq_cst)
            elif may_yield:
                may_yield = False
                events_leave(&self.workers)
                sched_yield()
            else:
                events_sleep(&self.workers, epoch, FOREVER)

    cdef void c_top_up(self, Batch* batch) noexcept nogil:
        """Add what has arrived since the batch was formed: taking the GIL may have lasted milliseconds."""
        if self.queued.load(memory_order_relaxed) == 0:
            return
        self.desk.lock()
        self.c_drain()
        self.c_take(batch, batch.bucket, self.max_batch)
        self.desk.unlock()

    cdef int c_token_for_caller(self, double weight) noexcept:
        """A token, if a caller with one request may run it right here; -1: it has to queue."""
        cdef Load load
        cdef Verdict verdict
        cdef int64_t now
        if self.workers_only or self.queued.load(memory_order_seq_cst) > 0:
            return -1
        if not self.batches:
            return self.c_take_token()
        load.idle_instances = self.idle.load(memory_order_relaxed)
        if load.idle_instances <= 0 or self.rule == RULE_OBJECT:
            return -1
        now = now_ns()
        load.now_ns = now
        load.oldest_ns = now
        load.idle_since_ns = now
        load.latest_event_ns = now
        load.usual_gap_ns = self.usual_gap_ns.load(memory_order_relaxed)
        load.timeout_ns = self.timeout_ns
        load.queued = 1
        load.queued_weight = weight
        load.max_weight = self.max_batch
        load.busy_instances = self.instance_count - load.idle_instances
        load.company = self.c_company()
        self.c_fill_costs(&load)
        verdict = self.c_decide(&load)
        if verdict.action != DISPATCH:
            return -1
        self.reasons[verdict.reason].fetch_add(1, memory_order_relaxed)
        return self.c_take_token()


cdef str _at(Station station):
    """`` at cuda:1``, of a node whose instances are at several places; otherwise nothing."""
    return f" at {station.place}" if station.place is not None and station.c_has_twins() else ""


cdef inline Station _front_of(Station station):
    """The station that has the limits of a node, and where callers wait for room."""
    return station if station.front is None else station.front


cdef inline int32_t _present(PyObject* station) noexcept nogil:
    """Requests queued or running at a station, seen from a thread that does not hold the GIL."""
    return (<Station>station).queued.load(memory_order_relaxed) + (<Station>station).running.load(memory_order_relaxed)


cdef Verdict _ask_rule_object(PyObject* station_pointer, const Load* load) noexcept with gil:
    """Ask a rule written in Python. Whatever goes wrong in it must not stop the queue: then the batch leaves."""
    cdef Station station = <Station>station_pointer
    cdef Verdict verdict
    cdef int64_t size
    verdict.action = DISPATCH
    verdict.reason = RULE
    verdict.size = load.queued
    verdict.until_ns = load.oldest_ns + load.timeout_ns
    if verdict.until_ns <= load.now_ns or station.life.load(memory_order_relaxed) != OPEN_FOR_ALL:
        return verdict
    try:
        answer = _enter_user_code(station.engine, station.rule_object, _load_as_dict(load))
        if not isinstance(answer, int):
            raise BackendError(f"a batching rule must return how many requests leave now, an int; got {answer!r}")
        size = answer
        if size > 0:
            verdict.size = <int32_t>min(size, load.queued)
        else:
            verdict.action = WAIT_UNTIL
    except BaseException as error:
        _report(error, station.rule_object)
    return verdict


cdef dict _load_as_dict(const Load* load):
    return {
        "queued": load.queued,
        "queued_weight": load.queued_weight,
        "max": load.max_weight,
        "oldest_ms": (load.now_ns - load.oldest_ns) / 1e6,
        "latest_event_ms": (load.now_ns - load.latest_event_ns) / 1e6,
        "usual_gap_ms": load.usual_gap_ns / 1e6,
        "batching_timeout_ms": load.timeout_ns / 1e6,
        "idle_instances": load.idle_instances,
        "busy_instances": load.busy_instances,
        "company": load.company,
        "cost_alone_ms": load.cost_alone_ns / 1e6,
        "cost_shared_ms": load.cost_shared_ns / 1e6,
    }


cdef list _visits_of(Batch* batch):
    """The visits of a batch, as a list that owns them; the tickets' references are given up."""
    cdef list visits = [None] * batch.count                     # if there is no memory for it, nothing has happened
    cdef Visit visit
    cdef Station station
    cdef Ticket* ticket = batch.first
    cdef Ticket* after
    cdef Py_ssize_t index = 0
    while ticket != NULL:
        after = <Ticket*>ticket.next.load(memory_order_relaxed)
        visit = <Visit>ticket.visit
        visits[index] = visit
        index += 1
        Py_DECREF(visit)                                        # E2: the list holds it now
        ticket = after
    batch.first = NULL
    station = visit.node.station
    for visit in visits:
        _leave_queue(visit, station)
    if station.c_is_limited():
        station.c_tell_of_room()
    return visits


cdef Visit _first_visit_of(Batch* batch):
    """Take one visit out of a batch that is not empty; the ticket's reference is given up. Needs no memory."""
    cdef Ticket* ticket = batch.first
    cdef Visit visit = <Visit>ticket.visit
    batch.first = <Ticket*>ticket.next.load(memory_order_relaxed)
    Py_DECREF(visit)                                            # E2: ``visit`` holds it now
    _leave_queue(visit, visit.node.station)
    return visit


cdef Visit _only_visit_of(Batch* batch):
    """The same of a batch of one; those who wait for room are told."""
    cdef Visit visit = _first_visit_of(batch)
    if visit.node.station.c_is_limited():
        visit.node.station.c_tell_of_room()
    return visit


cdef int _leave_queue(Visit visit, Station station) noexcept:
    """Take a visit that was popped out of its station's books. Needs no memory."""
    _release_bucket(visit)
    if not station.c_is_limited():
        return 0
    if visit.is_ghost:
        visit.is_ghost = False
        station.ghosts -= 1
        return 0
    station.queued_bytes -= visit.size_bytes
    visit.size_bytes = 0
    if visit.walk.queued is not None:
        _take_out(visit.walk.queued, visit)
    return 0


cdef void _release_bucket(Visit visit) noexcept:
    cdef list entry = visit.bucket
    if entry is None:
        return
    visit.bucket = None
    try:                                                        # a bucket's __hash__ and __eq__ may be a user's
        entry[1] -= 1
        if entry[1] == 0 and visit.node.station.bucket_ids.get(entry[2]) is entry:
            del visit.node.station.bucket_ids[entry[2]]
    except BaseException as error:
        _report(error, visit.node.station)


cdef c_bool _run_taken(Batch* batch, int worker, PyObject* station_pointer, PyObject* turn_pointer) noexcept nogil:
    """Run what a worker has taken, and more if more is there; then wake whoever waits, without the GIL. False: it ends."""
    cdef int what_now = _run_taken_with_gil(batch, worker, station_pointer, turn_pointer)
    if what_now != IS_GIVEN_UP:                                 # E8: then the watchdog wakes them
        (<Turn>turn_pointer).wake()
    return what_now == GOES_ON


cdef int _run_taken_with_gil(Batch* batch, int worker, PyObject* station_pointer, PyObject* turn_pointer) noexcept with gil:
    # noexcept: the caller is a nogil loop with no frame to raise into; whatever user code raises is filed in its walk.
    cdef Station station = <Station>station_pointer
    cdef Turn turn = <Turn>turn_pointer
    station.gil_acquires += 1
    station_serve_hold(station, batch, worker, turn)
    if turn.abandoned is not None:
        return IS_GIVEN_UP
    return GOES_ON if turn.death is None else DIES


cdef int _fail_taken(Batch* batch, object cause, Turn turn) noexcept:
    """Fail what a worker has taken and cannot even list, because of what it met."""
    cdef Visit visit
    while batch.first != NULL:
        visit = _only_visit_of(batch)
        visit.walk.engine.c_fail_visit(visit, _death(cause), turn)
        visit.walk.engine.c_send_one_back(visit, turn)
    return 0


cdef object _death(object cause):
    """The error of a request that was in the hands of a thread which has met an error of its own. Raises nothing."""
    try:
        error = WorkerDied(f"the thread that had this request met {type(cause).__name__}: {text_of(cause)}")
        error.__cause__ = _copy_of(cause)
        return error
    except BaseException as unexpected:                         # no memory for an error: then that is the error
        return unexpected


cdef object _closed_error(str why):
    """A PipeClosed of a request's own. Raises nothing."""
    try:
        return PipeClosed(why)
    except BaseException as unexpected:
        return unexpected


cdef object _hung_error(Station station, Visit visit, int index, int count, str where):
    """A BackendHung of a request's own. Raises nothing."""
    try:
        error = BackendHung(f"the backend did not return within the hang_timeout of {station.hang_ns / 1e9:g} s", where)
        return _with_batch(error, visit, station.numbers[index], count)
    except BaseException as unexpected:
        return unexpected


cdef void station_serve_hold(Station station, Batch* batch, int worker, Turn turn) noexcept:
    """Run the batch, and further ones while the GIL is held anyway; release the token; settle futures."""
    cdef int64_t started = kernel_now_ns()
    cdef int64_t cost_ns
    cdef c_bool is_long
    cdef Frame* frame
    cdef list visits
    cdef Visit visit
    cdef Instance instance
    cdef Engine engine
    cdef int32_t count
    cdef Verdict verdict
    cdef int only = worker if station.thread_bound else -1
    while True:
        if batch.may_grow:
            station.c_top_up(batch)
        count = batch.count
        engine = (<Visit>batch.first.visit).walk.engine
        try:
            if is_hooked(AT_TAKEN):
                _act(AT_TAKEN)
            visits = _visits_of(batch)
        except BaseException as error:                          # there is no memory for a list
            turn.death = error
            visits = []
            _fail_taken(batch, error, turn)
        if engine.called_first is not None:
            engine.c_start_called_beside(station, turn)
        if visits:
            instance = <Instance>(<Visit>visits[0]).node.instances[batch.instance]
            if worker >= 0 and station.hang_ns > 0 and turn.death is None:
                try:
                    station.held[batch.instance] = visits, turn, instance, current_thread()
                    turn.is_guarded = True
                    for visit in visits:
                        visit.is_held = True
                except BaseException as error:                  # c_run_batch fails them
                    turn.death = error
            engine.c_run_batch(station, instance, visits, turn)
            if turn.is_guarded:
                if turn.abandoned is not None:
                    return                                      # E8: all of it is the watchdog's
                turn.is_guarded = False
                station.held[batch.instance] = None
                for visit in visits:
                    visit.is_held = False
        if engine.steppers:
            engine.c_send_back(visits, turn)
        frame = enter_frame(<void*>engine, False, _greenlet())  # filters are asked while the token is held
        if frame != NULL:
            frame.station = <void*>station
        engine.c_queue_all(turn)
        leave_frame(frame)
        station.running.fetch_sub(count, memory_order_relaxed)
        visits = None
        # Answers are handed out at the end of the hold: a caller woken earlier would only queue for the GIL. But a batch
        # that takes long, or nobody knows how long, or many short ones, must not hold them back.
        cost_ns = station.c_cost(station.cost_alone_ns, count)
        is_long = cost_ns == 0 or cost_ns > HANDOVER_NS or kernel_now_ns() - started > LONGEST_HELD_BACK_NS
        if is_long:
            turn.wake()
        if turn.interrupt is not None or turn.death is not None or (is_long and turn.settled_first != NULL):
            break                                               # callbacks run with no token and no batch held
        if station.queued.load(memory_order_relaxed) == 0 or not station.c_try_take(batch, only, &verdict):
            break
    if is_hooked(AT_RELEASE):
        _act_in(AT_RELEASE, turn)
    station.c_release_token(batch.instance)
    batch.instance = -1
    if turn.settled_first != NULL or engine.called_first is not None:
        if worker >= 0:
            frame = enter_frame(<void*>engine, True, _greenlet())
            engine.c_settle(turn)
            leave_frame(frame)
        else:
            engine.c_settle(turn)


# =================================================================================================================
# The graph's pieces
# =================================================================================================================

@cython.final
cdef class Node:
    """A node of the compiled graph."""

    def __init__(self, str name, int index, Station station, list instances, str backend_name, *, bint retry_alone,
                 bint keeps_input, object filter, str filter_kind, object bucket, object weigh, object subgraph, object sources,
                 int parent_count, int restart_limit):
        self.name = name
        self.index = index
        self.station = station
        self.instances = instances
        self.backend_name = backend_name
        self.retry_alone = retry_alone
        self.keeps_input = keeps_input
        self.filter = filter
        self.filter_kind = {"default": FILTER_DEFAULT, "run": FILTER_RUN, "swap": FILTER_SWAP, "call": FILTER_CALL}[filter_kind]
        self.bucket = bucket
        self.weigh = weigh
        self.reads_request_size = station is not None and station.batches and weigh is None
        self.subgraph = subgraph
        self.sources = sources
        self.parent_count = parent_count
        self.restart_limit = restart_limit

    def set_twins(self, tuple twins, object place_of):
        """Say that its instances are at several places: the node itself at each; called once, while building."""
        self.twins = twins
        self.twin_at = {(<Node>twin).station.place: twin for twin in twins}
        self.place_of = place_of

    def ask(self, object backend, object bucket):
        """Have a backend and no other say what a request weighs, where its data is, and, unless the node does, its bucket."""
        self.bucket = backend.bucket if bucket is None else bucket
        self.weigh = backend.weigh
        if self.twins is not None:
            self.place_of = backend.place_of

    def set_jump(self, Entry entry):
        """Say where the parts of a sub-graph node enter; called once, while building."""
        self.jump = entry


@cython.final
cdef class Exit:
    """How a request leaves a node, or a skipped part of the graph: a graph.Exit for fast reading."""

    def __init__(self, plan, tuple nodes):
        self.hidden = tuple([(<Node>nodes[index]).name for index in plan.hidden])
        for slot in plan.kept:
            self.kept.push_back(slot)
        for slot in plan.unread:
            self.unread.push_back(slot)
        self.next = tuple([nodes[index] for index in plan.next])
        self.heir = plan.heir
        self.leaves = plan.leaves


@cython.final
cdef class Entry:
    """A place where requests may enter the graph: a graph.Entry for fast reading."""

    def __init__(self, plan, tuple nodes, Station gate=None):
        self.plan = plan
        self.node = nodes[plan.node]
        for count in plan.pending:
            self.pending.push_back(count)
        for index in range(len(nodes)):
            self.slots.push_back(plan.slots.get(index, -1))
        for count in plan.readers:
            self.readers.push_back(count)
        self.leaves = tuple([nodes[index] for index in plan.leaves])
        self.leaf_count = len(self.leaves)
        self.restart = None if plan.restart is None else nodes[plan.restart]
        stations = [(<Node>nodes[index]).station for index in sorted(plan.reached) if (<Node>nodes[index]).station is not None]
        gates = tuple([station for station in dict.fromkeys(stations) if (<Station>station).c_is_limited()
                       and ((<Station>station).when_full == BLOCK or station is self.node.station)])
        home = self.node.station if self.node.station in gates else None
        if gate is not None:
            self.line = Line((gate, *gates), home, gate)
            self.inner_line = Line(gates, home, None)
        elif gates:
            self.line = self.inner_line = Line(gates, home, None)
        self.exits = [None] * len(nodes)
        self.skips = {}


# =================================================================================================================
# Room: who is let in, and in which order
# =================================================================================================================

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
            if gate.c_is_full(size_bytes if gate is self.home else 0, True):
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
        return _size_of(request) if self.home is not None and self.home.max_queue_bytes > 0 else 0

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
            self.home.c_tell_of_room()
        if self.whole is not None:
            self.whole.reserved -= 1
            self.whole.c_tell_of_room()

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
                gate.c_tell_of_room()

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

    cdef void c_unlink(self, Waiter waiter) noexcept:
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
        self.c_unlink(waiter)
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
            self.c_unlink(waiter)
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

    cdef c_bool c_leave(self) noexcept:
        """Wait no longer, and hand on what one was given; False if the request has set out."""
        if self.state == IN_LINE:
            self.line.c_unlink(self)
            self.state = GONE
            self.line.c_serve()                                 # who comes next may need less
        elif self.state != GONE and self.sink is not None:
            if self.walk is not None:
                return False
            self.state = GONE                                   # c_start_waiter gives its places back
        elif self.is_booked:
            self.is_booked = False
            self.state = GONE
            self.line.c_keep_promise()
            self.line.c_give_back(self.size_bytes)
        self.engine.c_start_called(None)
        return True

    def cancel(self):
        """Give the request up; True if it had not ended."""
        if self.walk is not None:
            return self.walk.cancel()
        return self.c_leave()

    def expire(self):
        """Refuse the request if it still waits in line: its time is over. In its event loop's thread."""
        if self.state == IN_LINE:
            error = self.engine.c_late_for_room(self)
            self.c_leave()
            for _attempt in range(MOST_ATTEMPTS):
                try:
                    outcomes = [(self.sink[1], self.request, error)]
                    break
                except BaseException as unexpected:             # no memory for a list: again
                    _note_interrupt(None, unexpected)
            _settle_in_loop(outcomes)


@cython.final
@cython.freelist(64)
cdef class Walk:
    """One admitted request on its way; ``map`` and ``acall`` keep it as a handle."""

    cdef c_bool c_end(self, uint8_t outcome) noexcept:
        """Claim the one right to end this walk (E1)."""
        cdef uint8_t running = RUNNING
        return self.outcome.compare_exchange_strong(running, outcome, memory_order_acq_rel, memory_order_acquire)

    cdef int c_wait(self, int64_t deadline_ns) except -1:
        """Park until the walk has ended: 1; or until the deadline: 0. Serves signals."""
        cdef int why
        cdef int64_t until
        while True:
            if self.word.load(memory_order_acquire) == SET:
                return 1
            if is_hooked(AT_PARK):
                _act(AT_PARK)
            with nogil:
                until = _first_slice(deadline_ns)
                why = word_wait(&self.word, until, _spin_ns)
            if why == 0:
                return 1
            PyErr_CheckSignals()
            if deadline_ns >= 0 and now_ns() >= deadline_ns:
                return 0

    def wait(self):
        """Block until the request has ended, and return its error or None. A signal's exception cancels the request."""
        self.engine.c_check_process()
        self.engine.c_check_may_wait()
        cdef Turn turn
        try:
            if not self.engine.c_wait_inside(self, self.deadline_ns):
                turn = Turn.__new__(Turn)
                self.engine.c_expire(self, turn)
                turn.c_raise_interrupt()
        except BaseException:
            self.engine.c_cancel(self)
            raise
        return self.error

    def cancel(self):
        """Give the request up; True if it had not ended. A backend never sees it if it is still queued."""
        return self.engine.c_cancel(self) == 1

    def cancel_future(self, future):
        """The same for a request's future, if no backend has begun with it; True if the future is cancelled."""
        cdef Turn turn = Turn.__new__(Turn)
        if not self.started:
            self.started = True                                 # so that nobody marks the future as running
            if self.engine.c_cancel(self) == 1:
                _end_future(future, _CANCELLED, None, None, turn)
                turn.c_raise_interrupt()
                return True
        return future.cancelled()

    @property
    def finished(self):
        return self.outcome.load(memory_order_acquire) != RUNNING


@cython.final
@cython.freelist(64)
cdef class Visit:
    """A walk's turn at a node."""


@cython.final
@cython.freelist(16)
cdef class Terms:
    """What a caller asked for."""


@cython.final
cdef class Gather:
    """A sub-graph node waiting for its parts."""


@cython.final
@cython.freelist(16)
cdef class Turn:
    """What one hold of the GIL has produced."""

    def __cinit__(self):
        self.arrived = []
        self.ready = []

    def __dealloc__(self):
        while self.settled_first != NULL:                       # none is left, as a rule
            _first_settled(self)

    cdef void c_will_wake(self, Word* word) noexcept:
        """Have a sleeping caller woken once the GIL is free."""
        if not note_sleeper(self.wakes, word):
            futex_wake(word, 1)

    cdef void c_will_settle(self, Walk walk) noexcept:
        """Have a future told of the end of its walk by c_settle."""
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
            _report(self.interrupt, None)
            self.interrupt = None

    cdef void wake(self) noexcept nogil:
        cdef size_t i
        if is_hooked(AT_WAKE) and self.wakes.size() != 0:
            _act_without_gil(AT_WAKE, <PyObject*>self)
        for i in range(self.wakes.size()):
            futex_wake(self.wakes[i], 1)
        self.wakes.clear()


# =================================================================================================================
# Threads
# =================================================================================================================

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
        cdef c_bool serves_signals = PyThread_get_thread_ident() == _main_thread
        cdef int64_t until
        cdef uint32_t epoch
        while True:
            epoch = events_prepare(&self.changed)
            if self.is_up.load(memory_order_seq_cst):
                events_leave(&self.changed)
                return True
            if deadline >= 0 and kernel_now_ns() >= deadline:
                events_leave(&self.changed)
                return False
            until = kernel_now_ns() + SIGNAL_SLICE_NS
            if not serves_signals or 0 <= deadline < until:
                until = deadline
            with nogil:
                events_sleep(&self.changed, epoch, until)
            PyErr_CheckSignals()

    def _at_fork_reinit(self):
        """What ``threading`` calls of its own events in the child of a fork: there is no lock."""


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
                    if attempt + 1 == MOST_ATTEMPTS or not issubclass(type(error), MemoryError) or _has_begun(error):
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
            except:  # no-cython-lint: E722
                # See _no_memory.
                pass
            if self.life.has_begun:
                return

    def __del__(self):
        self.life.over.set()


# =================================================================================================================
# Deadlines
# =================================================================================================================

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
        cdef Turn turn = self.turn
        cdef Walk walk
        cdef Frame* frame
        cdef list timer
        cdef uint32_t epoch
        cdef int64_t until
        want_precise_timers()
        while True:
            epoch = events_prepare(&self.changed)
            while self.timers and <int64_t>(<list>self.timers[0])[0] <= now_ns():
                try:
                    timer = heappop(self.timers)
                except MemoryError:                             # nothing has happened: again
                    continue
                walk = <Walk>timer[2]
                if walk is None:
                    self.over -= 1
                    continue
                # Callbacks run here: one that waits would stop the clock.
                frame = enter_frame(<void*>walk.engine, True, _greenlet())
                walk.engine.c_expire(walk, turn)
                leave_frame(frame)
                walk = None
                turn.wake()
                turn.c_report_interrupt()
            if self.stops.load(memory_order_seq_cst):
                events_leave(&self.changed)
                return
            until = (<list>self.timers[0])[0] if self.timers else FOREVER
            with nogil:
                events_sleep(&self.changed, epoch, until)

    def stop(self):
        """Let the thread leave."""
        self.stops.store(1, memory_order_seq_cst)
        events_notify(&self.changed, 0x7fffffff)


# =================================================================================================================
# Batches that do not end
# =================================================================================================================

@cython.final
cdef class Watchdog:
    """Gives up batches that run for longer than their node's ``hang_timeout``. Knows no pipe: its thread keeps none alive.

    Finding one needs no GIL, which the hung backend may hold. What follows does, but for ``aborts``: that ends the process
    at once, by SIGABRT. Sleeps until the next look (_hanging.pxd); while no batch runs, for ever.
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
        cdef PyObject* station
        cdef int index
        cdef int64_t until
        cdef uint32_t epoch
        with nogil:
            want_precise_timers()
            while True:
                epoch = events_prepare(&self.changed)
                self.until_ns.store(NOTIFY_ME, memory_order_seq_cst)
                if self.aborts and self.stops.load(memory_order_seq_cst):
                    break
                if self.c_look(&station, &index, &until):
                    events_leave(&self.changed)
                    if self.aborts:
                        abort_process()
                    _give_up(station, index)
                elif until == NOTIFY_ME and self.stops.load(memory_order_seq_cst):
                    break
                else:
                    self.until_ns.store(until, memory_order_seq_cst)
                    events_sleep(&self.changed, epoch, FOREVER if until == NOTIFY_ME else until)
            events_leave(&self.changed)

    def stop(self):
        """Let the thread leave, once no batch runs: what close() has left behind may still hang, and be given up then.

        Where batches that hang end the process the thread leaves at once: a pipe that is closed does so no more.
        """
        self.stops.store(1, memory_order_seq_cst)
        events_notify(&self.changed, 0x7fffffff)


cdef str _stacks():
    try:
        return stacks()
    except BaseException as error:                              # no memory for them: what follows matters more
        return f"(not known: {type(error).__name__})"


cdef void _give_up(PyObject* station, int index) noexcept with gil:
    cdef Visit visit
    if is_hooked(AT_HANG):
        _act_in(AT_HANG, None)
    for _attempt in range(MOST_ATTEMPTS):                        # it is decided (E8): nobody else does it
        if (<Station>station).held[index] is None:
            return
        try:
            visit = (<tuple>(<Station>station).held[index])[0][0]
            visit.walk.engine._give_up(<Station>station, index)
            return
        except BaseException as error:
            _report(error, <Station>station)


# =================================================================================================================
# One step at a time
# =================================================================================================================

@cython.final
cdef class Stepper:
    """Walks one request through the graph, node after node, on the thread that calls it; for ``eager`` and the debugger.

    A node runs alone in one of its instances, which is waited for; a thread-bound one on its own thread. ``observer`` is
    told what happens: ``decided(node, part, status, request)``, ``hidden(nodes, part)``, ``ran(node, part, request, error,
    seconds)`` and ``restarted(node, part, count)``; ``part`` has the indices of a part of a sub-graph node, outermost first.
    Used by one thread; dropping it cancels what has not ended.
    """

    def __del__(self):
        self.cancel()

    @property
    def waiting(self):
        """What has arrived at a node whose filter has not been asked: (node, part, request), in order."""
        return [((<Visit>visit).node.name, _part_of((<Visit>visit).walk), self.engine.c_request_of(<Visit>visit))
                for visit in self.turn.arrived if not _is_dead(<Visit>visit)]

    @property
    def next(self):
        """The first of them, or None."""
        waiting = self.waiting
        return waiting[0] if waiting else None

    @property
    def finished(self):
        return self.walk.finished

    @property
    def error(self):
        return self.walk.error

    @property
    def request(self):
        """The caller's dict."""
        return self.walk.request

    def step(self):
        """Ask the filter of what is next, and run its node if the filter says so. True if there was something."""
        cdef Visit visit
        self.engine.c_check_process()
        while self.turn.arrived:
            visit = <Visit>self.turn.arrived.pop(0)
            if _is_dead(visit):
                continue
            try:
                self.engine.c_enter(visit, self.turn)
            except BaseException as error:
                self.engine.c_fail_visit(visit, _with_place(error, visit.node), self.turn)
            try:
                while self.turn.ready:
                    self.c_run(_take_last(self.turn.ready))
            except BaseException:                               # a signal while it waited, or the observer
                self.cancel()
                raise
            finally:
                self.engine.c_settle(self.turn)                 # others' requests, if this one has shed them
                self.turn.wake()
            if self.turn.interrupt is not None:
                self.cancel()
                self.turn.c_raise_interrupt()
            return True
        return False

    def run(self):
        """Take all steps."""
        while self.step():
            pass

    def cancel(self):
        """Give the request up; True if it had not ended."""
        return self.walk is not None and self.engine.c_cancel(self.walk) == 1

    cdef int c_run(self, Visit visit) except -1:
        """Run a visit in an instance, and send it on or fail it."""
        cdef Station station
        cdef Engine engine = self.engine
        cdef int64_t started
        cdef int index
        if visit.node.twins is not None and not engine.c_choose_twin(visit, self.turn):
            return 0
        station = visit.node.station
        if station.thread_bound:
            started = now_ns()
            visit.stepper = self                                # what becomes of it is left with the visit, not acted upon
            self.c_run_on_worker(visit)
            visit.stepper = None
        else:
            if station.batches:
                try:                                            # as a queue would: one that is too heavy fails
                    _weight(visit)
                    if isinstance(visit.node.bucket, str):
                        hash(_bucket_of(visit))
                except BaseException as error:
                    engine.c_fail_visit(visit, _with_place(error, visit.node), self.turn)
                    return 0
            index = self.c_token(visit)
            if index < 0:                                       # nobody waits for it any more, or the node is lost
                if station.lost is not None:
                    engine.c_fail_visit(visit, engine.c_lost_error(visit, station.lost), self.turn)
                return 0
            station.running.fetch_add(1, memory_order_relaxed)
            station.run_by_caller += 1
            started = now_ns()
            try:
                if visit.walk.has_room:
                    _leave_room(visit.walk)
                    station.c_tell_of_room()
                engine.c_start_called(self.turn)
                visits = [visit]
                thread = PyThread_get_thread_ident()
                before = engine.steppers.get(thread)
                engine.steppers[thread] = self
                try:
                    visit.stepper = self
                    engine.c_run_batch(station, <Instance>visit.node.instances[index], visits, self.turn)
                finally:
                    visit.stepper = None
                    if before is None:
                        del engine.steppers[thread]
                    else:
                        engine.steppers[thread] = before
            finally:
                station.running.fetch_sub(1, memory_order_relaxed)
                station.c_release_token(index)
        failure = visit.failure
        visit.failure = None
        if failure is None and self.c_is_over(visit):           # a part whose time is over has not run, and the whole ends
            return 0
        if self.turn.observer is not None:
            self.turn.observer.ran(visit.node.name, _part_of(visit.walk), visit.request, failure, (now_ns() - started) / 1e9)
        if failure is None:
            engine.c_step(visit, self.turn)
        else:
            engine.c_fail_visit(visit, failure, self.turn)
        return 0

    cdef int c_run_on_worker(self, Visit visit) except -1:
        """Let the node's own thread run a visit, and wait until it has, or until it cannot. Serves signals."""
        cdef int64_t until
        self.returned.store(0, memory_order_release)
        self.engine.steppers[<object>self] = self               # tells workers to look for visits to be sent back
        try:
            if not self.engine.c_queue(visit, self.turn, True):
                return 0
            self.engine.c_start_called(self.turn)
            while self.returned.load(memory_order_acquire) != SET and not self.c_is_over(visit):
                until = self.c_slice_end()
                with nogil:
                    word_wait(&self.returned, until, _spin_ns)
                PyErr_CheckSignals()
        finally:
            del self.engine.steppers[<object>self]
        return 0

    cdef int64_t c_slice_end(self) noexcept:
        """Until when to sleep: whoever fails or cancels the request does not know where it waits."""
        cdef int64_t until = now_ns() + SIGNAL_SLICE_NS
        return self.walk.deadline_ns if 0 <= self.walk.deadline_ns < until else until

    cdef c_bool c_is_over(self, Visit visit) except *:
        """True if nobody waits for a visit any more; its time may just be over."""
        if self.walk.deadline_ns >= 0 and now_ns() >= self.walk.deadline_ns:
            self.engine.c_expire(self.walk, self.turn)
        return _is_dead(visit)

    cdef int c_token(self, Visit visit) except -2:
        """Wait for a free instance and take its token; -1: the visit is dead. Serves signals."""
        cdef Station station = visit.node.station
        cdef Engine engine = self.engine
        cdef int index = -1
        cdef int64_t until
        cdef uint32_t epoch
        cdef tuple wait = engine.c_inside(self.walk) if innermost_frame() != NULL else None
        if wait is not None:
            engine.waits_inside.append(wait)
        station.waiting_alone.append(visit)
        station.wanted.fetch_add(1, memory_order_seq_cst)
        try:
            while True:
                epoch = events_prepare(&station.workers)
                index = station.c_take_token()
                if index >= 0 or station.lost is not None or self.c_is_over(visit):
                    events_leave(&station.workers)
                    return index
                until = self.c_slice_end()
                with nogil:
                    events_sleep(&station.workers, epoch, until)
                PyErr_CheckSignals()
                error = None if wait is None else engine.c_call_loop(wait)
                if error is not None:
                    raise error
        finally:
            if wait is not None:
                _take_out(engine.waits_inside, wait)
            _take_out(station.waiting_alone, visit)
            station.wanted.fetch_sub(1, memory_order_seq_cst)
            if index < 0:
                station.c_notify()                              # a wake-up that was a worker's may have come here


cdef Station _station_awaited(tuple wait, list nodes):
    """Which of some stuck stations has to run before a wait inside a backend can end, as far as queues tell; or None."""
    cdef Station station
    if isinstance(wait[0], Station):
        return wait[0] if _makes_no_room(<Station>wait[0], nodes) else None
    for station in nodes:
        if station.c_holds(<Walk>wait[0]):
            return station
        for visit in station.waiting_alone:                     # an eager call's
            if _is_of(<Visit>visit, <Walk>wait[0]):
                return station
    return None


cdef c_bool _makes_no_room(Station front, list stuck):
    """True if the stations of a node are stuck: all of them, or all that have something in its full queue."""
    cdef Station station
    cdef size_t i
    cdef Visit visit
    cdef int32_t on_the_way = front.reserved                    # requests that may yet leave a place in the queue behind
    cdef list able = []
    cdef list places = [front]
    for i in range(front.others.size()):
        places.append(<Station>front.others[i])
    for station in places:
        if station not in stuck:
            able.append(station)
            continue
        for visit in station.waiting_alone:
            if visit.walk.has_room and visit.walk.home is station:
                on_the_way -= 1
    if not able:
        return True
    if len(able) == len(places) or on_the_way > 0:
        return False
    for station in able:
        if station.queued.load(memory_order_seq_cst) > station.ghosts:
            return False
    return True


cdef c_bool _is_run_by(object awaited, list waits, tuple but) noexcept:
    """True if one of the backends that wait, other than ``but``, runs what is awaited."""
    return isinstance(awaited, Walk) and any([_is_of(<Visit>visit, <Walk>awaited)
                                              for other in waits if other is not but for visit in other[2]])


cdef tuple _part_of(Walk walk):
    """The indices of the part that a walk is, outermost first; () for a request itself."""
    cdef list path = []
    while walk.sink_kind == SINK_GATHER:
        path.append(walk.sink_index)
        walk = (<Gather>walk.sink).visit.walk
    path.reverse()
    return tuple(path)


# =================================================================================================================
# Engine
# =================================================================================================================

cdef class Engine:
    """Runs a compiled graph. ``Pipe`` is the subclass that users see, and documents the public methods."""

    def __cinit__(self, *args, **kwargs):
        self.generation = _generation
        self.entries = {}
        self.stations = []
        self.steppers = {}
        self.waits_inside = []
        self.timeout_ns = FOREVER
        self.ignored_keys = _STEERING_KEYS

    def _obey(self, object keys):
        """Have keys of a caller's own dict mean something to the engine; called once, before the graph is opened."""
        self.obeys_node_name = "node_name" in keys
        self.ignored_keys = tuple([key for key in _STEERING_KEYS if key not in keys])

    def _open(self, graph, list nodes, list stations, object root_names, object hidden_names):
        """Take over a built graph; requests may come from now on, at any node but the hidden ones."""
        for station in stations:
            (<Station>station).engine = <void*>self
        self.graph = graph
        self.nodes = tuple(nodes)
        self.node_named = {(<Node>node).name: node for node in nodes if (<Node>node).name not in hidden_names}
        self.root_names = tuple(root_names)
        self.open_to_all = self.node_named if self.obeys_node_name else {name: self.node_named[name] for name in root_names}
        self.names_leaf = graph.has_several_leaves
        self.stations = stations
        self.only_entry = self.c_entry_at(self.node_named[self.root_names[0]]) if len(self.root_names) == 1 else None

    def _entry_at(self, int index):
        """Where requests enter at the node of that index."""
        return self.c_entry_at(<Node>self.nodes[index])

    cdef Entry c_entry_at(self, Node node):
        cdef Entry made
        cdef Entry entry = <Entry>self.entries.get(node.name)
        if entry is None:                                       # nobody has entered here before
            made = Entry(self.graph.entry(node.index), self.nodes, self.gate)
            entry = self.entries.setdefault(node.name, made)
            if entry is made:                                   # nobody was faster
                for line in dict.fromkeys((made.line, made.inner_line)):
                    for gate in (<Line>line).gates if line is not None else ():
                        (<Station>gate).lines.append(line)
        return entry

    cdef Exit c_exit(self, Entry entry, Node node, int status):
        """How a request that entered at ``entry`` leaves ``node`` after it ran or was skipped."""
        cdef Exit exit
        if status == STATUS_SKIP:
            exit = <Exit>entry.exits[node.index]
            if exit is None:
                exit = entry.exits[node.index] = Exit(entry.plan.exit(node.index), self.nodes)
            return exit
        exit = <Exit>entry.skips.get((node.index, status))
        if exit is None:
            exit = Exit(entry.plan.exit(node.index, Status(status)), self.nodes)
            entry.skips[node.index, status] = exit
        return exit

    # ---- calls -------------------------------------------------------------------------------------------------

    def __call__(self, request, *, timeout=None, priority=0, bint eager=False, entry=None):
        """Run one request, or a list of them, to the end; return what was given.

        The answer is written into the request's own dict: the result under ``"result"``. Thread-safe; blocks.

        ``timeout``: seconds from now until the answer; then the request fails with RequestTimeout, and if no backend has
        it yet none will. Default: the pipe's. ``priority``: lower goes first in every queue; one step is worth 100 ms of
        waiting, so that nobody waits for ever. ``eager``: everything on this thread, node after node, in batches of one
        (only thread-bound backends run on their own thread). The same answers, slower: for a breakpoint in a backend, or a
        traceback without other requests in it. ``entry``: the name of the node where the request, or each of a list,
        enters; any node. Default: the root; of several, that which ``request["node_name"]`` names.

        Raises:
            Whatever a backend raised for this request, with a note that says where. For a list: one ExceptionGroup.
            RequestTimeout, QueueFull: it took too long; a node's queue is full (see ``when_full``).
            PipeClosed, ForkedPipe: the pipe takes no requests (any more).
            UnknownNode: ``request["node_name"]`` is needed to choose a root, or names none; no node is named ``entry``.
        """
        cdef Walk walk
        cdef Turn turn
        cdef Terms terms = None
        if timeout is not None or priority != 0 or self.timeout_ns >= 0:
            terms = _terms(self, timeout, priority)
        if eager:
            return self._call_eager(request, terms, entry)
        if not isinstance(request, dict):
            return self._call_many(request, terms, entry)
        self.c_check_may_wait()
        turn = Turn.__new__(Turn)
        walk = self.c_admit(self.c_entry(request, entry), request, SINK_CALLER, None, terms)
        self.c_start_walk(walk, turn)
        self.c_run_ready(turn)
        if walk.word.load(memory_order_acquire) != SET or turn.interrupt is not None:
            try:
                turn.c_raise_interrupt()
                if not self.c_wait_inside(walk, walk.deadline_ns):
                    self.c_expire(walk, turn)
                    turn.c_raise_interrupt()
            except BaseException:
                self.c_cancel(walk)
                raise
        if walk.error is not None:
            raise walk.error
        return request

    cdef int c_start_walk(self, Walk walk, Turn turn) except -1:
        cdef Visit visit
        try:
            visit = Visit.__new__(Visit)
            visit.request = _own_request(walk)
        except BaseException:                                   # out of memory: the walk must not stay in the books
            self.c_cancel(walk)
            raise
        visit.walk = walk
        visit.node = walk.entry.node
        visit.way = ENTERED
        if walk.home is not None and walk.home.batches and visit.node.twins is None:
            walk.home.c_note_arrival(now_ns())                  # where there are twins, at the one that is chosen
        if turn.stepper != NULL:
            turn.arrived.append(visit)
            return 0
        try:
            if is_hooked(AT_ADMITTED):
                _act(AT_ADMITTED)
            self.c_enter(visit, turn)
        except BaseException as error:
            self.c_fail_visit(visit, _with_place(error, visit.node), turn)
        except:  # no-cython-lint: E722
            # See _no_memory.
            self.c_fail_visit(visit, _no_memory, turn)
        return self.c_enter_arrived(turn)

    def _call_eager(self, requests, Terms terms, name):
        cdef Stepper stepper
        cdef list errors = []
        self.c_check_may_wait()
        if is_another_inside(_greenlet()):                      # it has the thread's stepper, or an instance
            raise PipeError("an eager call is not possible while another greenlet of this thread is inside a backend. "
                            + _GREENLET_ADVICE)
        if isinstance(requests, dict):
            stepper = _new_stepper(self, requests, None, terms, name)
            stepper.run()
            if stepper.walk.error is not None:
                raise stepper.walk.error
            return requests
        if not isinstance(requests, (list, tuple)):
            self.c_entry(requests, name)                        # says what a request is
        for request in requests:                                # all mistakes before the first is admitted
            self.c_entry(request, name)
        for index, request in enumerate(requests):
            try:
                stepper = _new_stepper(self, request, None, terms, name)
            except PipeClosed:
                raise
            except Exception as refused:
                _collect_error(errors, refused, index, len(requests))
                continue
            stepper.run()
            _collect_error(errors, stepper.walk.error, index, len(requests))
        _raise_errors(errors, len(requests))
        return requests

    def _call_many(self, requests, Terms terms, name):
        cdef Turn turn = Turn.__new__(Turn)
        cdef list walks
        cdef list errors = []
        cdef dict refused = {}                                  # index -> why it was not let in
        cdef Walk walk
        cdef Visit visit
        cdef int index
        cdef Py_ssize_t count = 0                                       # of those that are admitted
        self.c_check_may_wait()
        if not isinstance(requests, (list, tuple)):
            self.c_entry(requests, name)                        # says what a request is
        entries = [self.c_entry(request, name) for request in requests]     # all mistakes before the first is admitted
        walks = [None] * len(entries)                                   # now: who is admitted must be found in it
        try:
            for index, (entry, request) in enumerate(zip(entries, requests)):
                try:
                    walks[count] = self.c_admit(entry, request, SINK_CALLER, None, terms)
                    (<Walk>walks[count]).lister = <PyObject*>turn
                    count += 1
                except PipeClosed:                                      # nothing that follows has a chance
                    raise
                except Exception as error:                              # no room, or no time left
                    refused[index] = error
                    continue
                if (<Entry>entry).line is not None:             # waiting for room, workers must have something to do
                    self.c_start_walk(<Walk>walks[count - 1], turn)
                    self.c_queue_all(turn)
                    self.c_settle(turn)                         # others' requests, which it has shed
            for index in range(count):
                walk = <Walk>walks[index]
                if walk.entry.line is None:
                    self.c_start_walk(walk, turn)
            if len(turn.ready) == 1:
                self.c_run_ready(turn)
            elif turn.ready:
                visit = <Visit>turn.ready[0]
                self.c_queue_all(turn)
                self.c_help(visit.node.station, <Walk>walks[count - 1], turn)
            self.c_settle(turn)
            turn.wake()
            turn.c_raise_interrupt()
            for index in range(count):
                walk = <Walk>walks[index]
                if not self.c_wait_inside(walk, walk.deadline_ns):
                    self.c_expire(walk, turn)
                    turn.c_raise_interrupt()
        except BaseException:                                           # closed in the middle, a signal, no memory
            for index in range(count):
                self.c_cancel(<Walk>walks[index])
            self.c_settle(turn)                                         # others' requests, which it has shed
            turn.wake()
            raise
        let_in = iter(walks)
        for index in range(len(entries)):
            error = refused[index] if index in refused else (<Walk>next(let_in)).error
            _collect_error(errors, error, index, len(entries))
        _raise_errors(errors, len(entries))
        return requests

    cdef int c_help(self, Station station, Walk last, Turn turn) noexcept:
        """Run batches of a station on this thread until ``last`` has ended or there is none to run."""
        cdef Batch batch
        cdef Verdict verdict
        if station.workers_only:
            return 0
        turn.helps = True
        while turn.interrupt is None and last.word.load(memory_order_acquire) != SET:
            batch.instance = -1
            if not station.c_try_take(&batch, -1, &verdict):
                return 0
            station.run_by_caller += batch.count
            station_serve_hold(station, &batch, -1, turn)
            turn.wake()
        turn.helps = False
        return 0

    def _submit(self, request, future, timeout, priority, name=None):
        """Start a request whose outcome goes to a ``RequestFuture``."""
        return self.c_start_detached(request, request, SINK_FUTURE, future, _terms(self, timeout, priority), name, False)

    def _start_async(self, request, loop, future, Terms terms, name=None, given=None, bint is_patient=False):
        """Start a request whose outcome goes to an ``asyncio.Future`` of ``loop``: its walk, or who waits for room for it.

        ``given``: a copy of the dict as it was when it was handed in; None: it is handed in now. ``is_patient``: as of _start.
        """
        given = request if given is None else given
        return self.c_start_detached(request, given, SINK_ASYNCIO, (loop, future), terms, name, is_patient)

    def _start(self, request, timeout, priority, name=None, bint is_patient=False):
        """Start a request and return its walk, to be waited for. ``is_patient``: wait for room whatever ``when_full`` says."""
        return self.c_start_detached(request, request, SINK_CALLER, None, _terms(self, timeout, priority), name, is_patient)

    def _terms(self, timeout, priority):
        return _terms(self, timeout, priority)

    cdef object c_late_for_room(self, Waiter waiter):
        """Refuse a request that has waited for room until its time was over: return the error. Raises nothing."""
        cdef Station gate = waiter.line.c_gate_of_first()
        self.refused += 1
        try:
            where = "in the pipe" if gate is self.gate else f"in the queue of node {gate.name!r}"
            return RequestTimeout(f"the request waited {waiter.terms.timeout_s:g} s for room {where}")
        except BaseException as unexpected:                     # no memory for it: then that is the error
            return unexpected

    cdef object c_start_detached(self, request, given, uint8_t sink_kind, object sink, Terms terms, name, c_bool is_patient):
        """Start a request for which no thread waits: its walk. A coroutine's that has to wait for room: its Waiter."""
        cdef Turn turn = Turn.__new__(Turn)
        cdef Walk walk
        cdef Clock clock
        cdef Line line
        cdef Waiter waiter
        cdef int64_t size
        entry = self.c_entry(given, name)
        if terms is not None and terms.deadline_ns >= 0 and sink_kind != SINK_CALLER and self.clock is None:
            clock = Clock.__new__(Clock)
            self._start_clock(clock)                            # raises if there can be no more threads
            if self.clock is None:
                self.clock = clock
            else:                                               # somebody else was faster
                clock.stop()
        if sink_kind == SINK_ASYNCIO and (<Entry>entry).line is not None:
            if is_hooked(AT_ADMIT):
                _act(AT_ADMIT)
            line = self.c_line_at(entry)
            size = line.c_size_of(given)
            waiter = self.c_enter_line(line, entry, given, size, terms, is_patient, sink)
            if waiter is not None:
                waiter.owned = request
                return waiter
            walk = self.c_admit_booked(line, size, entry, given, sink_kind, sink, terms)
        else:
            walk = self.c_admit(entry, given, sink_kind, sink, terms, is_patient)
        _hand_in(walk, request, given)
        self.c_start_admitted(walk, turn)
        self.c_settle(turn)
        turn.wake()
        if turn.interrupt is not None:                          # its caller will have no future: nobody waits for it
            self.c_cancel(walk)
            turn.c_raise_interrupt()
        return walk

    cdef int c_start_admitted(self, Walk walk, Turn turn) except -1:
        """Send a request on its way for which no thread waits, or none on this thread."""
        try:
            if walk.sink_kind == SINK_FUTURE:
                walk.sink.walk = walk
            if walk.deadline_ns >= 0 and walk.sink_kind != SINK_CALLER:
                self.clock.c_add(walk)
        except BaseException:                                   # out of memory: the walk must not stay in the books
            self.c_cancel(walk)
            raise
        self.c_start_walk(walk, turn)
        return self.c_queue_all(turn)

    def _run_parts(self, Entry entry, list splits, bint keeps_failures, list reasons=None):
        """Run the parts of several requests through the graph at ``entry`` from inside a backend; answers, or exceptions, in
        order. Once a part has failed, the rest of its request's are dropped, unless failures are kept. ``reasons`` gets, for
        each of the requests, what its why_no_result() is if that is its parts' doing."""
        cdef Turn turn = Turn.__new__(Turn)
        cdef list walks = [_new_walk(self, entry, part, SINK_CALLER, None) for parts in splits for part in parts]
        cdef list answers = []
        cdef Walk walk
        cdef Stepper outer = <Stepper>self.steppers.get(PyThread_get_thread_ident()) if self.steppers else None
        cdef int start = 0
        cdef list own
        if self.gave_up:                                                # closing goes on with what has begun; this not
            raise PipeClosed("the pipe was closed before the request ended")
        for walk in walks:                                              # no code of users may run in here
            walk.is_part = True
            self.accepted += 1
            self.c_link(walk)
        try:
            if outer is not None:                                       # one after the other, on this thread
                for walk in walks:
                    _run_in_steps(self, walk, outer.turn.observer)
            if outer is None:
                for walk in walks:
                    self.c_start_part(walk, turn)
            self.c_enter_arrived(turn)
            if len(turn.ready) > 1:
                self.c_queue_all(turn)
            self.c_run_ready(turn)
            turn.c_raise_interrupt()
            for parts in splits:
                own = walks[start:start + len(parts)]
                start += len(parts)
                for walk in own:
                    while not self.c_wait_inside(walk, now_ns() + CALL_LOOP_SLICE_NS):
                        if cancelled():                         # nobody waits for the whole any more
                            self.c_drop(walks)
                    if walk.error is not None and not keeps_failures:
                        self.c_drop(own)
                answers.append([walk.request if walk.error is None else walk.error for walk in own])
                if reasons is not None:
                    reasons.append(_why_of_parts(own))
        except BaseException:
            self.c_drop(walks)
            self.c_settle(turn)
            turn.wake()
            raise
        return answers

    cdef int c_drop(self, list walks) except -1:
        for walk in walks:
            self.c_cancel(<Walk>walk)
        return 0

    cdef tuple c_inside(self, object awaited):
        """For waits_inside: that the backends of this pipe which this thread is in wait for something; None: there are none."""
        cdef Frame* frame = innermost_frame()
        cdef list stations = []
        cdef list visits = []
        while frame != NULL:
            if frame.engine == <void*>self and frame.station != NULL:
                stations.append(<object>frame.station)
                if frame.batch != NULL:
                    visits += <list>frame.batch
            frame = frame.outer
        return (awaited, stations, visits) if stations else None

    cdef int c_wait_inside(self, Walk walk, int64_t deadline_ns) except -1:
        """Wait for a walk as Walk.c_wait does. In a backend of this pipe, raise CallLoop if it would be for ever."""
        cdef int64_t until
        cdef tuple wait
        if innermost_frame() == NULL:
            return walk.c_wait(deadline_ns)
        wait = self.c_inside(walk)
        if wait is None:
            return walk.c_wait(deadline_ns)
        self.waits_inside.append(wait)
        try:
            while True:
                until = now_ns() + CALL_LOOP_SLICE_NS
                if walk.c_wait(deadline_ns if 0 <= deadline_ns < until else until):
                    return 1
                error = self.c_call_loop(wait)
                if error is not None:
                    raise error
                if deadline_ns >= 0 and now_ns() >= deadline_ns:
                    return 0
        finally:
            _take_out(self.waits_inside, wait)

    cdef object c_call_loop(self, tuple wait):
        """The error of a backend which waits for what only nodes can do whose instances all wait so; None: it may go on.

        Stuck is a backend that waits for a call of its own pipe which is queued at a stuck node, or which another stuck
        backend runs; one that waits for room in the queue of a stuck node; and a node all of whose instances are in stuck
        backends: the greatest sets for which that is true.
        """
        cdef Station station
        cdef list nodes = list(self.stations)
        cdef list waits = list(self.waits_inside)
        cdef bint changed = True
        while changed:
            changed = False
            for station in list(nodes):
                if sum([each is station for _, stations, _ in waits for each in stations]) < station.instance_count:
                    nodes.remove(station)
                    changed = True
            for other in list(waits):
                if _station_awaited(other, nodes) is None and not _is_run_by(other[0], waits, other):
                    waits.remove(other)
                    changed = True
        station = _station_awaited(wait, nodes)
        if station is None:
            return None
        held = " and ".join([repr((<Station>each).name) + _at(<Station>each) for each in nodes])
        if is_another_inside(_greenlet()):
            return CallLoop(f"a call waits for {station.title}, whose instances are all in calls of other greenlets of this thread, "
                            f"which cannot go on while it waits. {_GREENLET_ADVICE}")
        if isinstance(wait[0], Walk):
            what = f"a call of its own pipe, which is queued at {station.title}"
        else:
            what = f"room for a call of its own pipe at node {station.name!r}"
        return CallLoop(f"a backend waits for {what}; but all instances of {held} wait for such calls: "
                        "give the node more instances, or use a graph, or MapReduce")

    # ---- admission ---------------------------------------------------------------------------------------------

    cdef int c_check_may_wait(self) except -1:
        """A callback of a future runs on a worker's thread: if it waited there, the worker could be the one it waits for.

        So does a method of a dict's subclass, while an answer is written; its thread may even hold an instance.
        """
        if is_settling(<void*>self):
            raise PipeError("a callback of a future of this pipe must not wait for the pipe, nor must a method of a dict to which "
                            "it writes an answer: they run on the thread that may have to do the work; use submit() there")
        return 0

    cdef int c_check_process(self) except -1:
        if self.generation != _generation:
            raise ForkedPipe("this pipe was built before os.fork(), and its threads live in the parent process; "
                             "build a new one in the child")
        return 0

    cdef int c_check_open(self) except -1:
        if self.closing:
            self.refused += 1
            raise PipeClosed("the pipe is closed")
        return 0

    cdef Entry c_entry(self, object request, object entry):
        """Where this request enters: where the call says, else where the request says, as far as it may.

        Raises what the caller is to see before anything is accepted.
        """
        cdef PyObject* name_pointer
        if not isinstance(request, dict):
            raise TypeError(f"a request is a dict; got {type(request).__name__}. (A pipe is called with one, or with a list of "
                            "them; map() takes any iterable.)")
        self.c_check_process()
        self.c_check_open()
        if entry is not None:
            node = self.node_named.get(entry) if isinstance(entry, str) else None
            if node is None:
                raise UnknownNode(f"entry is {in_brief(entry)}, and no node has that name; they are {list(self.node_named)}"
                                  f"{nearest(entry, self.node_named)}")
            return self.c_entry_at(<Node>node)
        name_pointer = PyDict_GetItem(request, "node_name")
        name = None if name_pointer == NULL else <object>name_pointer
        if name is None:
            if self.only_entry is not None:
                return self.only_entry
            raise UnknownNode(f"the graph has several roots: set request['node_name'] to one of {list(self.root_names)} "
                              "(or is a 'next' missing, that leads from one to the other?)")
        node = self.open_to_all.get(name) if isinstance(name, str) else None
        if node is None and isinstance(name, str) and name in self.node_named:
            raise UnknownNode(f"request['node_name'] is {name!r}, which is no root: a request would skip what comes before it. "
                              f"Pass entry={name!r} with the call, or have the pipe let requests say so by obey_request_keys="
                              f"['node_name']; the roots are {list(self.root_names)}")
        if node is None:
            raise UnknownNode(f"request['node_name'] is {in_brief(name)}, and no node has that name; the roots are "
                              f"{list(self.root_names)}{nearest(name, self.node_named)}")
        return self.c_entry_at(<Node>node)

    cdef Walk c_admit(self, Entry entry, object request, uint8_t sink_kind, object sink, Terms terms, c_bool is_patient=False):
        """Let a request in, when there is room. Blocks; serves signals."""
        cdef Line line
        cdef Waiter waiter
        cdef int64_t size
        if is_hooked(AT_ADMIT):
            _act(AT_ADMIT)
        if entry.line is None:
            return self.c_admit_now(entry, request, sink_kind, sink, terms)
        line = self.c_line_at(entry)
        size = line.c_size_of(request)
        waiter = self.c_enter_line(line, entry, request, size, terms, is_patient, None)
        if waiter is not None:
            self.c_stand_in_line(waiter)
        return self.c_admit_booked(line, size, entry, request, sink_kind, sink, terms)

    cdef Walk c_admit_booked(self, Line line, int64_t size_bytes, Entry entry, object request, uint8_t sink_kind, object sink,
                             Terms terms):
        """Let a request in whose places are booked."""
        cdef Walk walk
        try:
            walk = self.c_admit_now(entry, request, sink_kind, sink, terms)
        except BaseException:
            line.c_give_back(size_bytes)
            self.c_start_called(None)
            raise
        _take_places(walk, line, size_bytes)
        return walk

    cdef Walk c_admit_now(self, Entry entry, object request, uint8_t sink_kind, object sink, Terms terms):
        cdef Walk walk = _new_walk(self, entry, request, sink_kind, sink)
        if terms is not None:
            walk.deadline_ns = terms.deadline_ns
            walk.timeout_s = terms.timeout_s
            walk.priority_ns = terms.priority_ns
        if self.recorder is not None:
            try:
                walk.recorded = self.recorder.begin(request, None if entry is self.only_entry else entry.node.name)
            except Exception as error:
                _report(error, self.recorder)
        self.c_check_open()                                     # again: all of this may have run user code, or a destructor
        self.accepted += 1
        self.c_link(walk)
        return walk

    cdef Line c_line_at(self, Entry entry):
        """Where to wait: a call from inside the pipe is part of a request that has been let in, and needs no place in it."""
        return entry.inner_line if is_inside(<void*>self) else entry.line

    cdef Waiter c_enter_line(self, Line line, Entry entry, object request, int64_t size, Terms terms, c_bool is_patient,
                             object sink):
        """Book the places of a request if no gate on its way is full and nobody waits there: None. Else refuse it, as the gate
        says, or return its Waiter, which stands in line."""
        cdef Station home = line.home
        cdef Station shut
        cdef Waiter waiter = None
        if home is not None and home.max_queue_bytes > 0 and size > home.max_queue_bytes:
            self.refused += 1
            raise home.c_full_error(size)
        while True:
            shut = line.c_shut_gate(size, is_patient)
            if shut is None and line.first is not None:         # nobody is overtaken
                shut = line.c_gate_of_first()
                if shut.when_full == SHED_OLDEST and not is_patient:
                    shut = None                                 # but by those who do not wait there
            if shut is None:
                line.c_book(size)
                return None
            if shut.when_full == REJECT and not is_patient:
                self.refused += 1
                raise shut.c_full_error(size)
            if is_settling(<void*>self):
                self.refused += 1
                error = shut.c_full_error(size)
                _add_note(error, "fastpipe: a callback of a future does not wait for room: it runs on a thread that has to make it")
                raise error
            if waiter is not None:
                break
            waiter = Waiter.__new__(Waiter)                     # a destructor may run in here: hence another look
            waiter.engine = self
            waiter.line = line
            waiter.entry = entry
            waiter.request = request
            waiter.terms = terms
            waiter.sink = sink
            waiter.size_bytes = size
            waiter.is_patient = is_patient
        self.c_check_open()
        waiter.number = self.arrivals
        self.arrivals += 1
        line.c_join(waiter)
        return waiter

    cdef int c_stand_in_line(self, Waiter waiter) except -1:
        """Wait until one is let in, and has the places booked. Serves signals.

        A signal's handler may call the pipe, on this very thread: nobody is let in, and nobody kept waiting, while it runs.
        """
        cdef Line line = waiter.line
        cdef int64_t deadline = FOREVER if waiter.terms is None else waiter.terms.deadline_ns
        cdef int64_t until
        cdef tuple wait = None
        cdef Station gate
        cdef c_bool inside = is_inside(<void*>self)
        cdef c_bool serves_signals = PyThread_get_thread_ident() == _main_thread
        try:
            while waiter.state == IN_LINE:
                self.c_start_called(None)                           # this thread may have made room for others
                if inside:
                    gate = line.c_gate_of_first()
                    if wait is None or wait[0] is not gate:
                        wait = self.c_inside(gate)
                    if wait is not None:
                        self.waits_inside.append(wait)
                error = None
                try:
                    with nogil:
                        until = _first_slice(deadline)
                        if inside and (until < 0 or until > now_ns() + CALL_LOOP_SLICE_NS):
                            until = now_ns() + CALL_LOOP_SLICE_NS
                        word_wait(&waiter.word, until, _spin_ns)
                    if waiter.state == IN_LINE and wait is not None:
                        error = self.c_call_loop(wait)
                finally:
                    if wait is not None:
                        _take_out(self.waits_inside, wait)
                if waiter.state != IN_LINE:
                    break
                if error is not None:
                    self.refused += 1
                    raise error
                if deadline >= 0 and now_ns() >= deadline:
                    raise self.c_late_for_room(waiter)
                if serves_signals:
                    line.c_unlink(waiter)
                    waiter.state = AWAY
                    line.c_serve()
                    self.c_start_called(None)
                    PyErr_CheckSignals()
                    self.c_check_open()
                    line.c_join(waiter)
                    line.c_serve()
        except BaseException:
            waiter.c_leave()
            raise
        if waiter.state == TURNED_AWAY:
            if waiter.turned_away_by is None:
                self.c_check_open()
            self.refused += 1
            raise waiter.turned_away_by.c_full_error(waiter.size_bytes)
        waiter.is_booked = False                                # the places are the request's
        line.c_keep_promise()
        return 0

    cdef int c_start_called(self, Turn turn) noexcept:
        """Start the requests of coroutines that have been let in. Whoever makes room does so: their loops may be busy, or gone.

        ``turn``: this thread's, which is told of what hits it meanwhile; None if it has none.
        """
        cdef Waiter waiter
        cdef Turn own
        while self.called_first is not None:
            waiter = self.called_first
            self.called_first = waiter.next
            waiter.next = None
            if self.called_first is None:
                self.called_last = None
            own = None
            try:
                own = Turn.__new__(Turn)
                own.is_workers = turn is not None and turn.is_workers
                self.c_start_waiter(waiter, own)
            except Exception as error:
                _tell_waiter(waiter, error, turn)
            except BaseException as error:                      # it has hit this thread, not the request
                _tell_waiter(waiter, _death(error), turn)
                _note_interrupt(turn, error)
            except:  # no-cython-lint: E722
                # See _no_memory.
                _tell_waiter(waiter, _no_memory, turn)
            if waiter.is_booked:                                # it does not come: cancelled, or there is no memory
                waiter.is_booked = False
                waiter.line.c_keep_promise()
                waiter.line.c_give_back(waiter.size_bytes)
            if own is not None:
                self.c_hand_out(own)
                own.wake()
                if own.death is not None:
                    _note_interrupt(turn, own.death)
                if own.interrupt is not None:
                    _note_interrupt(turn, own.interrupt)
        return 0

    cdef int c_start_called_beside(self, Station station, Turn turn) noexcept:
        """The same on a thread that holds a token of a station, and is about to run a batch: filters that are asked now do not
        wait for it."""
        cdef Frame* frame = enter_frame(<void*>self, False, _greenlet())
        if frame != NULL:
            frame.station = <void*>station
        self.c_start_called(None if turn.is_workers else turn)  # what ends a worker would fail its batch
        leave_frame(frame)
        return 0

    cdef int c_start_waiter(self, Waiter waiter, Turn turn) except -1:
        cdef Walk walk
        if waiter.state == GONE:
            return 0
        if waiter.state == TURNED_AWAY:
            if waiter.turned_away_by is None:
                self.c_check_open()
            self.refused += 1
            raise waiter.turned_away_by.c_full_error(waiter.size_bytes)
        # If this fails, c_start_called gives the places back, and goes on with whom they are for then.
        walk = self.c_admit_now(waiter.entry, waiter.request, SINK_ASYNCIO, waiter.sink, waiter.terms)
        waiter.is_booked = False
        _take_places(walk, waiter.line, waiter.size_bytes)
        waiter.walk = walk
        waiter.line.c_keep_promise()
        _hand_in(waiter.walk, waiter.owned, waiter.request)
        if waiter.state == GONE:                                # while a recorder or a destructor ran
            self.c_cancel(waiter.walk)
        return self.c_start_admitted(waiter.walk, turn)

    cdef void c_link(self, Walk walk) noexcept:
        Py_INCREF(walk)                                         # E9: the list owns it
        walk.older = self.newest
        if self.newest != NULL:
            (<Walk>self.newest).newer = <PyObject*>walk
        self.newest = <PyObject*>walk
        self.in_flight += 1

    cdef void c_unlink(self, Walk walk) noexcept:
        """Take an ended walk off the list of live ones, and tell close() if it was the last. The caller holds the walk."""
        if walk.newer != NULL:
            (<Walk>walk.newer).older = walk.older
        else:
            self.newest = walk.older
        if walk.older != NULL:
            (<Walk>walk.older).newer = walk.newer
        walk.older = NULL
        walk.newer = NULL
        self.in_flight -= 1
        if self.closing and self.in_flight == 0:
            events_notify(&self.drained, 0x7fffffff)
        Py_DECREF(walk)

    # ---- walking the graph; all of it under the GIL --------------------------------------------------------------

    cdef int c_enter(self, Visit visit, Turn turn) except -1:
        """Ask the filter of the visit's node, and do as it says. Raises what fails the walk."""
        cdef Node node = visit.node
        cdef PyObject* result
        cdef int status
        cdef int kind = node.filter_kind
        cdef Exit exit
        if visit.request is None:
            visit.request = self.c_mapped(node, visit.walk)
        if kind == FILTER_DEFAULT:
            if visit.way == PASSED_ON:
                kind = FILTER_SWAP if node.sources is None else FILTER_RUN
            else:
                kind = FILTER_SWAP if visit.way == RESTARTED else FILTER_RUN
        if kind == FILTER_RUN:
            status = STATUS_RUN
        else:
            if kind == FILTER_SWAP:
                result = PyDict_GetItem(visit.request, "result")
                if result == NULL:
                    status = STATUS_BREAK
                else:
                    visit.request["data"] = <object>result
                    del visit.request["result"]
                    status = STATUS_RUN
            else:
                status = _status(_enter_user_code(<void*>self, node.filter, visit.request), node)
        if turn.observer is not None:
            turn.observer.decided(node.name, _part_of(visit.walk), Status(status), visit.request)
        if status != STATUS_RUN and visit.walk.has_room:
            _leave_room(visit.walk)                             # it does not queue where it has entered
            visit.walk.home.c_tell_of_room()
        if status == STATUS_RUN:
            if node.subgraph is not None:
                return self.c_split(visit, turn)
            turn.ready.append(visit)
            return 0
        if status == STATUS_BREAK:
            # Another filter than swap would have it so, whoever left nothing before.
            visit.walk.without = visit.without if kind == FILTER_SWAP or node.filter is swap else None
            if visit.walk.without is not None:
                self.c_check_result(visit.walk, visit.request)
            return self.c_answer(visit.walk, visit.request, node.name if visit.walk.entry.leaf_count > 1 else None, turn)
        if status == STATUS_ERROR:
            raise BackendError(f"the filter of node {node.name!r} said Error")
        exit = self.c_exit(visit.walk.entry, node, status)
        if status != STATUS_SKIP and turn.observer is not None:
            turn.observer.hidden(exit.hidden, _part_of(visit.walk))
        return self.c_advance(visit, exit, False, turn)

    cdef c_bool c_choose_twin(self, Visit visit, Turn turn) noexcept:
        """Decide where a visit is to run whose node has twins, just before it is queued or run: so loads are what they are.

        False: what says where its data is has failed, and so has its walk.
        """
        cdef Node node = visit.node
        cdef Station station
        try:
            visit.node = _twin_for(self, node, visit.request)
            node.station.next_twin = (node.twins.index(visit.node) + 1) % len(node.twins)
        except BaseException as error:
            self.c_fail_visit(visit, _with_place(error, node), turn)
            return False
        station = visit.node.station
        if visit.way == ENTERED:                                # its caller is likely to come back to that place
            visit.walk.home = station
            if station.batches:
                station.c_note_arrival(now_ns())
        return True

    cdef dict c_request_of(self, Visit visit):
        """The dict with which a visit arrives; {} if its node's map cannot be made. It is the visit's own from now on."""
        try:
            if visit.request is None:
                visit.request = self.c_mapped(visit.node, visit.walk)
        except KeyError:                                        # c_enter meets it again, and fails the walk
            return {}
        return visit.request

    cdef int c_enter_arrived(self, Turn turn) noexcept:
        """Ask the filters of all that has arrived, and of what arrives meanwhile: no recursion, however long the graph is."""
        cdef Visit visit
        cdef Py_ssize_t index = 0
        if turn.stepper != NULL:
            return 0
        while index < len(turn.arrived):
            visit = <Visit>turn.arrived[index]
            index += 1
            if _is_dead(visit):
                continue
            try:
                self.c_enter(visit, turn)
            except BaseException as error:
                self.c_fail_visit(visit, _with_place(error, visit.node), turn)
            except:  # no-cython-lint: E722
                # See _no_memory.
                self.c_fail_visit(visit, _no_memory, turn)
        if index > 0:
            turn.arrived.clear()
        return 0

    cdef int c_advance(self, Visit visit, Exit exit, c_bool has_run, Turn turn) except -1:
        """Send the request on from a node that has run, or from what was skipped. Raises what fails the walk."""
        cdef Walk walk = visit.walk
        cdef Node following
        cdef dict answer = visit.request
        cdef Visit onward = visit
        cdef tuple without = visit.without
        cdef int place = -1
        cdef int32_t slot
        if _is_dead(visit):
            return 0
        for slot in exit.kept:
            if walk.readers[slot] > 0:
                walk.answers[slot] = answer
                walk.has_run[slot] = has_run
        for slot in exit.unread:
            _forget(walk, slot)
        if exit.leaves > 0:
            if has_run and without is not None and without[0] is visit.node:
                walk.without = without                          # a leaf has run, and has none
            walk.leaves_left -= exit.leaves
            if walk.leaves_left == 0:
                return self.c_leave(walk, answer, turn)
        for following in exit.next:
            place += 1
            if walk.pending.size() != 0 and following.parent_count > 1:
                walk.pending[following.index] -= 1
                if walk.pending[following.index] > 0:
                    continue
            if onward is None:
                onward = Visit.__new__(Visit)
                onward.walk = walk
                onward.round = visit.round
            onward.node = following
            onward.without = without if following.sources is None else None
            if following.sources is not None:
                onward.request = None
            elif place == exit.heir:
                onward.request = answer
            else:
                onward.request = PyDict_Copy(answer)
                self.copies += 1
            onward.way = PASSED_ON
            turn.arrived.append(onward)
            onward = None
        return 0

    cdef dict c_mapped(self, Node node, Walk walk):
        """The new dict that a node's ``map`` makes of its ancestors' dicts."""
        cdef dict request = {}
        cdef dict source
        cdef tuple indices
        cdef int32_t slot
        for indices, name, keys, names_context in node.sources:
            source = None
            for index in indices:                               # of several the first that has run; one also if it was skipped
                slot = walk.entry.slots[<int>index]
                if slot >= 0 and (walk.has_run[slot] or len(indices) == 1):
                    source = <dict>walk.answers[slot]
                    break
            if source is None:
                which = "which did not run" if len(indices) == 1 else "of which none ran"
                raise KeyError(f"the map of node {node.name!r} reads {name!r}, {which} for this request")
            for key_there, key_here in keys:
                if key_there not in source:
                    raise KeyError(f"the map of node {node.name!r} reads {key_there!r} from {(<Node>self.nodes[index]).name!r}, "
                                   f"whose keys are {keys_in_brief(source)}")
                request[key_here] = source[key_there]
            if not names_context and "context" in source and "context" not in request:
                request["context"] = source["context"]
        for indices, _, _, _ in node.sources:
            for index in indices:
                slot = walk.entry.slots[<int>index]
                if slot >= 0:                                   # else it cannot be reached from where the request entered
                    _forget(walk, slot)
        return request

    cdef int c_leave(self, Walk walk, dict answer, Turn turn) except -1:
        """All leaves are passed: the answer, or another round. Of several leaves, those that were skipped say nothing."""
        cdef Entry entry = walk.entry
        cdef Node leaf
        cdef str name = None
        cdef int32_t slot
        if entry.leaf_count > 1:
            answer = {}
            for leaf in entry.leaves:
                slot = entry.slots[leaf.index]
                if walk.has_run[slot]:
                    if "result" in walk.answers[slot] or "result" not in answer:
                        name = leaf.name                        # of those that ran the last with a result, if one has any
                    answer.update(walk.answers[slot])
            if name is None and entry.restart is not None:      # none has run: it goes round as it is
                for leaf in entry.leaves:
                    answer.update(walk.answers[entry.slots[leaf.index]])
        if walk.without is not None:
            self.c_check_result(walk, answer)
        if entry.restart is not None and "restart" not in answer:
            return self.c_restart(walk, entry.restart, answer, turn)
        return self.c_answer(walk, answer, name, turn)

    cdef int c_check_result(self, Walk walk, dict answer) except -1:
        """Fail a request that ends without a result because a step gave none. A part's whole knows better: it goes on."""
        cdef Node node
        if self.lets_go or walk.is_part or "result" in answer:
            return 0
        node, part = walk.without
        if part == "":                                          # a filter inside of it would have it so
            return 0
        if walk.deadline_ns >= 0 and now_ns() >= walk.deadline_ns:
            raise _late_error(walk)                             # it gave up, as fastpipe.cancelled() told it to
        raise NoResult(f"node {node.name!r}: step {part or node.backend_name} gave no result, and no step after it did. If "
                       "requests may end so, say without_result = \"end\" in the configuration; to go on with something else, "
                       "put a step with the filter (or) behind it")

    cdef int c_note_result(self, Visit visit, object backend) noexcept:
        """Note who left a request without a result, once a node has run: ask its backend for the part of it."""
        visit.without = None
        if self.lets_go or PyDict_GetItem(visit.request, "result") != NULL:
            return 0
        try:
            visit.without = (visit.node, None)
            if backend.why_no_result is not None:
                visit.without = (visit.node, _enter_user_code(<void*>self, backend.why_no_result, visit.request))
        except BaseException as error:                          # it cannot say: then it is the backend as a whole
            _report(error, backend)
        return 0

    cdef int c_answer(self, Walk walk, dict answer, str leaf, Turn turn) except -1:
        """The graph has ended for this request, of several leaves at ``leaf``: finish, or start again where its dict says."""
        cdef PyObject* restart = PyDict_GetItem(answer, "restart")
        if restart != NULL:
            name = <object>restart
            del answer["restart"]
        if restart == NULL or "result" not in answer:
            if leaf is not None:
                answer[_ANSWERED_BY] = leaf
            return self.c_finish(walk, answer, turn)
        node = self.node_named.get(name) if isinstance(name, str) else None
        if node is None:
            raise UnknownNode(f"request['restart'] is {in_brief(name)}, and no node has that name{nearest(name, self.node_named)}")
        return self.c_restart(walk, <Node>node, answer, turn)

    cdef int c_restart(self, Walk walk, Node node, dict answer, Turn turn) except -1:
        """Enter again, at ``node``: a new round, which shares nothing with the last but its dict."""
        cdef Visit visit
        if walk.entered_again is None:
            walk.entered_again = {}
        count = walk.entered_again[node.index] = walk.entered_again.get(node.index, 0) + 1
        if count > node.restart_limit:
            raise RestartLimit(f"the request entered again at node {node.name!r} for the {count}th time, and its "
                               f"restart_limit is {node.restart_limit}; does a filter let it out (Break)?")
        visit = Visit.__new__(Visit)
        walk.restarts += 1
        walk.entry = self.c_entry_at(node)
        _start_round(walk)
        visit.walk = walk
        visit.round = walk.restarts
        visit.node = node
        visit.request = answer
        visit.way = RESTARTED
        turn.arrived.append(visit)
        if turn.observer is not None:
            turn.observer.restarted(node.name, _part_of(walk), count)
        return 0

    cdef int c_split(self, Visit visit, Turn turn) except -1:
        """Send the parts of a sub-graph node on their way. Raises what fails the walk."""
        cdef Node node = visit.node
        cdef Gather gather
        cdef Walk part
        cdef int index
        if not self.c_claim(visit, turn):
            return 0
        if len(_part_of(visit.walk)) > len(self.nodes):         # only a loop leads so deep
            raise RestartLimit(f"node {node.name!r}: parts within parts without end: a restart leads from the inside of a "
                               "sub-graph back to the node that jumps there")
        parts = checked_parts(_enter_user_code(<void*>self, node.subgraph.split, visit.request), f"split() of node {node.name!r}")
        gather = Gather.__new__(Gather)
        gather.visit = visit
        gather.left = len(parts)
        gather.answers = [None] * gather.left
        if gather.left == 0:
            return self.c_merge(gather, turn)
        for index, request in enumerate(parts):
            part = _new_walk(self, node.jump, request, SINK_GATHER, gather)
            part.sink_index = index
            part.started = True
            self.c_start_part(part, turn)
        return 0

    cdef int c_start_part(self, Walk part, Turn turn) except -1:
        """Send a part on its way, in a dict of its own: keys that a map leaves behind must not be found in the answer."""
        cdef Visit visit = Visit.__new__(Visit)
        visit.walk = part
        visit.node = part.entry.node
        visit.request = PyDict_Copy(part.request)
        visit.way = ENTERED
        turn.arrived.append(visit)
        return 0

    cdef int c_merge(self, Gather gather, Turn turn) except -1:
        """All parts are there: make them one answer and go on. Raises what fails the walk."""
        cdef Visit visit = gather.visit
        if _is_dead(visit):
            return 0
        _enter_user_code(<void*>self, visit.node.subgraph.merge, visit.request, gather.answers)
        visit.without = None
        if "result" not in visit.request:
            visit.without = (visit.node, "" if gather.has_let_go else None)
            if gather.without is not None:
                visit.without = (visit.node, _step_in_words(gather.without))
        return self.c_advance(visit, self.c_exit(visit.walk.entry, visit.node, STATUS_SKIP), True, turn)

    cdef int c_part_ended(self, Walk part, Turn turn) noexcept:
        """File a part's outcome with the node that waits for it."""
        cdef Gather gather = <Gather>part.sink
        cdef Node node = gather.visit.node
        gather.left -= 1
        try:
            if part.error is None:
                gather.answers[part.sink_index] = part.request
                if "result" not in part.request:
                    if part.without is None or part.without[1] == "":
                        gather.has_let_go = True
                    elif gather.without is None:
                        gather.without = part.without
            elif node.subgraph.keeps_failures:
                gather.answers[part.sink_index] = part.error
            else:
                _note_part(part, node)
                return self.c_fail_visit(gather.visit, part.error, turn)
            if gather.left == 0:
                self.c_merge(gather, turn)
        except BaseException as error:
            self.c_fail_visit(gather.visit, _with_place(error, node), turn)
        except:  # no-cython-lint: E722
            # See _no_memory.
            self.c_fail_visit(gather.visit, _no_memory, turn)
        return 0

    # ---- ends --------------------------------------------------------------------------------------------------

    cdef int c_finish(self, Walk walk, dict answer, Turn turn) noexcept:
        """End a walk with its answer, once (E1)."""
        if walk.deadline_ns >= 0 and walk.sink_kind != SINK_GATHER and now_ns() >= walk.deadline_ns:
            return self.c_fail(walk, _late_error(walk), turn)   # a moment too late is too late: a backend may have given up
        if is_hooked(AT_END):
            _act_in(AT_END, turn)
        if not self.c_begin(walk, turn) or not walk.c_end(DONE):
            return 0
        self.c_count_out(walk)
        try:
            _write_back(walk, answer)
        except BaseException as error:                          # a subclass of dict may do as it likes
            walk.error = error
            if issubclass(type(error), KeyboardInterrupt) and PyThread_get_thread_ident() == _main_thread:
                _note_interrupt(turn, error)
            if walk.sink_kind != SINK_GATHER:
                self.done -= 1
                self.failed += 1
                self.failed_by[OTHER] += 1
        return self.c_deliver(walk, turn)

    cdef int c_fail(self, Walk walk, object error, Turn turn) noexcept:
        """End a walk with an exception, once (E1)."""
        if is_hooked(AT_END):
            _act_in(AT_END, turn)
        if not self.c_begin(walk, turn) or not walk.c_end(FAILED):
            return 0
        walk.error = error
        self.c_count_out(walk)
        if walk.sink_kind != SINK_GATHER:
            self.failed_by[_reason_of(error)] += 1
        if issubclass(type(error), KeyboardInterrupt) and PyThread_get_thread_ident() == _main_thread:
            _note_interrupt(turn, error)                        # Ctrl-C: not only for whoever waits for this request
        try:
            _write_back(walk, None)
        except Exception as unexpected:
            _report(unexpected, type(walk.request))
        except BaseException as unexpected:
            _note_interrupt(turn, unexpected)
        return self.c_deliver(walk, turn)

    cdef int c_fail_visit(self, Visit visit, object error, Turn turn) noexcept:
        """Fail a visit's walk, unless it has gone on to another round."""
        visit.is_held = False
        if visit.stepper is not None:
            visit.failure = error                               # for Stepper.c_run
            return 0
        return self.c_fail(visit.walk, error, turn) if visit.round == visit.walk.restarts else 0

    cdef int c_cancel(self, Walk walk) noexcept:
        """Give a walk up: 1, or 0 if it has ended. Its dict is not touched; what still runs of it is dropped."""
        if is_hooked(AT_CANCEL):
            _act_in(AT_CANCEL, None)
        if not walk.c_end(CANCELLED):
            return 0
        self.c_count_out(walk)
        if word_set(&walk.word):
            futex_wake(&walk.word, 1)
        self.c_tell_of_places(walk)
        self.c_start_called(None)
        return 1

    cdef c_bool c_begin(self, Walk walk, Turn turn) noexcept:
        """Mark a future as running before its walk's first batch, or its end; False if its owner has cancelled it."""
        if walk.started or walk.sink_kind != SINK_FUTURE:
            return True
        walk.started = True
        if _start_future(walk.sink, turn):
            return True
        self.c_cancel(walk)
        return False

    cdef int c_expire(self, Walk walk, Turn turn) noexcept:
        """Fail a walk whose time is over; nothing if it has ended."""
        if is_hooked(AT_EXPIRE):
            _act_in(AT_EXPIRE, None)
        self.c_fail(walk, _late_error(walk), turn)
        return self.c_settle(turn)

    cdef void c_count_out(self, Walk walk) noexcept:
        """Take an ended walk out of the books. No user code can run in here, or between it and Walk.c_end."""
        cdef uint8_t outcome = walk.outcome.load(memory_order_relaxed)
        cdef Visit visit
        if walk.has_room:
            _leave_room(walk)
        if walk.is_counted:
            self.gate.reserved -= 1
        if walk.queued is not None:
            for visit in walk.queued:
                visit.is_ghost = True
                visit.node.station.ghosts += 1
                visit.node.station.queued_bytes -= visit.size_bytes
                visit.size_bytes = 0
        if walk.timer is not None:
            self.clock.c_forget(walk)
        if walk.sink_kind == SINK_GATHER:
            return
        if outcome == DONE:
            self.done += 1
        elif outcome == FAILED:
            self.failed += 1
        else:
            self.cancelled += 1
        self.c_unlink(walk)

    cdef int c_tell_of_places(self, Walk walk) noexcept:
        """A walk has ended: let those look again who wait for a place that it held."""
        cdef Visit visit
        if walk.is_counted:
            self.gate.c_tell_of_room()
        if walk.home is not None and walk.home.c_is_limited():
            walk.home.c_tell_of_room()
        if walk.queued is not None:
            for visit in walk.queued:
                try:
                    visit.node.station.c_sweep()
                except BaseException as error:
                    _report(error, self)
                visit.node.station.c_tell_of_room()
            walk.queued = None
        return 0

    cdef int c_deliver(self, Walk walk, Turn turn) noexcept:
        """Hand an outcome to whoever waits for it."""
        cdef Station station
        self.c_tell_of_places(walk)
        if walk.sink_kind == SINK_GATHER:
            return self.c_part_ended(walk, turn)
        station = walk.home
        if station is not None and station.batches:
            station.owed.fetch_add(1, memory_order_relaxed)
            station.latest_answer_ns.store(now_ns(), memory_order_relaxed)
        if walk.recorded is not None:
            try:
                self.recorder.end(walk.recorded, walk.request, walk.error)
            except Exception as error:
                _report(error, self.recorder)
            except BaseException as error:
                _note_interrupt(turn, error)
        if is_hooked(AT_ENDED):
            _act_in(AT_ENDED, turn)
        if walk.sink_kind != SINK_CALLER:
            turn.c_will_settle(walk)
        if word_set(&walk.word):
            turn.c_will_wake(&walk.word)
        return 0

    cdef int c_settle(self, Turn turn) noexcept:
        """Start what has been let in, and hand outcomes to futures. No token of ours is needed."""
        if self.called_first is not None:
            self.c_start_called(turn)
        return self.c_hand_out(turn) if turn.settled_first != NULL else 0

    cdef int c_hand_out(self, Turn turn) noexcept:
        """Hand outcomes to futures: this runs callbacks that users have attached."""
        cdef Walk walk
        while turn.settled_first != NULL:
            walk = <Walk>turn.settled_first
            if walk.sink_kind == SINK_ASYNCIO:
                self.c_settle_in((<tuple>walk.sink)[0], turn)
                continue
            walk = _first_settled(turn)
            if walk.error is None:
                _end_future(walk.sink, _FINISHED, walk.request, None, turn)
            else:
                _end_future(walk.sink, _FINISHED, None, walk.error, turn)
            walk.sink = None                                    # breaks the cycle future -> callback -> walk -> future
        return 0

    cdef int c_settle_in(self, object loop, Turn turn) noexcept:
        """The same for all the futures of an event loop: its thread does it, in one go."""
        cdef list outcomes
        cdef PyObject* each
        cdef Walk walk
        cdef Walk before = None
        cdef int _attempt
        for _attempt in range(MOST_ATTEMPTS):
            try:
                outcomes = []
                each = turn.settled_first
                while each != NULL:
                    walk = <Walk>each
                    if walk.sink_kind == SINK_ASYNCIO and (<tuple>walk.sink)[0] is loop:
                        outcomes.append(((<tuple>walk.sink)[1], walk.request, walk.error))
                    each = walk.settled_after
                loop.call_soon_threadsafe(_settle_in_loop, outcomes)
                break
            except RuntimeError:                                # the loop is closed: nobody is there to be told
                break
            except BaseException as error:                      # if it was done all the same, twice does no harm
                _note_interrupt(turn, error)
        each = turn.settled_first
        while each != NULL:
            walk = <Walk>each
            each = walk.settled_after
            if walk.sink_kind != SINK_ASYNCIO or (<tuple>walk.sink)[0] is not loop:
                before = walk
                continue
            if before is None:
                turn.settled_first = each
            else:
                before.settled_after = each
            if each == NULL:
                turn.settled_last = <PyObject*>before if before is not None else NULL
            Py_DECREF(walk)                                     # ``walk`` holds it
            walk.sink = None
        return 0

    # ---- running -----------------------------------------------------------------------------------------------

    cdef int c_step(self, Visit visit, Turn turn) noexcept:
        """Send a visit on; whatever goes wrong on the way fails its walk."""
        visit.is_held = False
        if visit.stepper is not None:
            return 0
        try:
            self.c_advance(visit, self.c_exit(visit.walk.entry, visit.node, STATUS_SKIP), True, turn)
        except BaseException as error:
            self.c_fail_visit(visit, _with_place(error, visit.node), turn)
        except:  # no-cython-lint: E722
            # See _no_memory.
            self.c_fail_visit(visit, _no_memory, turn)
        return 0

    cdef int c_send_back(self, list visits, Turn turn) noexcept:
        """Tell steppers that a worker is done with their visits."""
        cdef Visit visit
        for visit in visits:
            self.c_send_one_back(visit, turn)
        return 0

    cdef int c_send_one_back(self, Visit visit, Turn turn) noexcept:
        cdef Stepper stepper = visit.stepper
        if stepper is not None:
            visit.stepper = None
            if word_set(&stepper.returned):
                turn.c_will_wake(&stepper.returned)
        return 0

    cdef c_bool c_claim(self, Visit visit, Turn turn) except *:
        """True if the visit is still wanted; its dict is then ours to write."""
        if _is_dead(visit):
            return False
        if visit.walk.deadline_ns >= 0 and _is_late(visit):
            if is_hooked(AT_EXPIRE):
                _act_in(AT_EXPIRE, turn)
            if visit.walk.sink_kind != SINK_GATHER:             # a part ends with the whole, whose time is over, too
                self.c_fail(visit.walk, _late_error(visit.walk), turn)
            return False
        return self.c_begin(visit.walk, turn)

    cdef int c_run_batch(self, Station station, Instance instance, list visits, Turn turn) noexcept:
        """Run visits in an instance whose token is held, and send each on or fail it."""
        cdef Visit visit
        cdef object cause = turn.death
        if turn.abandoned is not None:
            return 0
        if cause is None:
            try:
                self.c_run_claimed(station, instance, visits, turn)
                return 0
            except BaseException as unexpected:                 # a hook, or no memory left: nobody may wait in vain
                cause = unexpected
                if turn.is_workers:
                    turn.death = unexpected
            except:  # no-cython-lint: E722
                # See _no_memory.
                cause = _no_memory
        for visit in visits:
            self.c_fail_visit(visit, _death(cause), turn)
        return 0

    cdef int c_run_claimed(self, Station station, Instance instance, list visits, Turn turn) except -1:
        cdef Visit visit
        cdef list alive = []
        cdef list before = None
        cdef str refusal = None                                 # why there can be no second run
        cdef int count
        cdef int64_t started = 0
        cdef int64_t elapsed_ns
        cdef c_bool shared
        cdef object error = None
        for visit in visits:
            try:
                if self.c_claim(visit, turn):
                    alive.append(visit)
            except BaseException as claim_error:
                self.c_fail_visit(visit, claim_error, turn)
        count = len(alive)
        if count == 0:
            return 0
        if station.lost is not None:
            for visit in alive:
                station.requests_failed += 1
                self.c_fail_visit(visit, self.c_lost_error(visit, station.lost), turn)
            return 0
        visit = <Visit>alive[0]
        batch = [(<Visit>each).request for each in alive]
        if (count > 1 and visit.node.retry_alone) or (turn.helps and _has_others(alive, turn)):
            if visit.node.keeps_input:
                before = [PyDict_Copy(<dict>request) for request in batch]
            else:
                try:
                    before = take(batch)
                except CannotCopy as obstacle:
                    refusal = str(obstacle)
                except KeyboardInterrupt as interrupt:
                    if not turn.helps:
                        raise
                    return self.c_put_back(alive, None, None, interrupt, turn)
        shared = station.instance_count - station.idle.load(memory_order_relaxed) > 1
        if is_hooked(AT_FORWARD):
            _act(AT_FORWARD)
        if turn.is_guarded:
            started = now_ns()
            station.c_begin_batch(instance.index, started)
        elapsed_ns = kernel_now_ns()
        try:
            returned = _run_backend(<void*>self, instance.forward, batch, alive, station)
            if returned is not None:
                error = BackendError(f"forward() of {visit.node.backend_name} returned {type(returned).__name__}; it must "
                                     "fill in request['result'] and return nothing")
        except BaseException as caught:
            error = caught
        except:  # no-cython-lint: E722
            # Lost on the way, for want of memory.
            error = _no_memory
        elapsed_ns = kernel_now_ns() - elapsed_ns
        if turn.is_guarded and not station.c_end_batch(instance.index, turn, started):
            return 0
        if is_hooked(AT_RETURN):
            _act(AT_RETURN)
        station.batches_run += 1
        station.requests_run += count
        station.busy_ns += elapsed_ns
        if error is None:
            station.c_note_cost(count, shared, elapsed_ns)
            for visit in alive:
                if "result" not in visit.request or visit.without is not None:
                    self.c_note_result(visit, instance.backend)
                self.c_step(visit, turn)
            return 0
        try:
            self.c_file_failures(station, instance, alive, batch, before, refusal, error, turn)
        except BaseException as unexpected:                     # exceptions may be as odd as their classes
            for visit in alive:
                self.c_fail_visit(visit, _copy_of(unexpected), turn)
        except:  # no-cython-lint: E722
            # See _no_memory.
            for visit in alive:
                self.c_fail_visit(visit, _no_memory, turn)
        return 0

    cdef int c_file_failures(self, Station station, Instance instance, list alive, list batch, list before, str refusal,
                             object error, Turn turn) except -1:
        """Decide what an exception of a batch means for each of its requests: each gets one of its own."""
        cdef Visit visit
        cdef int index
        cdef int number = station.numbers[instance.index]
        cdef int count = len(alive)
        cdef object lost = None
        cdef dict errors
        cdef list halves
        cdef object traceback
        if issubclass(type(error), ItemErrors):
            errors = _checked_item_errors(error, batch, alive)
            for each in errors.values():                        # a container's, whose child has said so
                if is_device_lost(each, instance.backend):
                    station.lost = lost = each
                    break
            each = None
            for index in range(count):
                if index not in errors:
                    self.c_note_result(<Visit>alive[index], instance.backend)
            for index in range(count):
                visit = <Visit>alive[index]
                if index in errors:
                    each = errors[index] if lost is None else self.c_lost_error(visit, lost)
                    station.requests_failed += 1
                    own = errors[index] if lost is None else self.c_lost_error(visit, lost)
                    # Held by ``errors`` and ``own``; by others it is if it was named for several, or is kept in the backend.
                    if lost is None and Py_REFCNT(own) > 2:
                        own = _copy_of(own)
                    self.c_fail_visit(visit, _with_batch(own, visit, number, count), turn)
                else:
                    self.c_step(visit, turn)
            return 0
        if turn.helps and issubclass(type(error), KeyboardInterrupt):
            # Ctrl-C hit a caller while it ran what may not be all its own.
            return self.c_put_back(alive, before, refusal, error, turn)
        if is_device_lost(error, instance.backend):
            station.lost = error
            for visit in alive:
                station.requests_failed += 1
                self.c_fail_visit(visit, _with_batch(self.c_lost_error(visit, error), visit, number, count), turn)
            return 0
        if count > 1 and before is not None and (<Visit>alive[0]).node.retry_alone:
            if is_out_of_memory(error):                         # half as many may fit
                station.halved += 1
                halves = [alive[:count // 2], alive[count // 2:]]       # first: what is run is not to fail for want of a list
                index = 0
                # The second half is put back when its turn comes: what it shares with the first, that may have changed.
                for half in halves:
                    if turn.abandoned is not None:              # E8
                        return 0
                    for visit in <list>half:
                        _restore(visit, before[index])
                        index += 1
                    self.c_run_batch(station, instance, <list>half, turn)
                return 0
            halves = [[visit] for visit in alive]
            for index in range(count):
                if turn.abandoned is not None:                  # E8
                    return 0
                _restore(<Visit>alive[index], before[index])
                self.c_run_batch(station, instance, <list>halves[index], turn)
            return 0
        if count > 1 and refusal is not None and (<Visit>alive[0]).node.retry_alone:
            _add_note(error, f"fastpipe: the batch was not run again one by one: {refusal}")
        # c_run_claimed holds it, and nobody else does, as a rule. A backend that keeps it may raise it again, for others.
        if Py_REFCNT(error) == 1 and count == 1:
            own = error
        else:
            traceback = _traceback_for_copies(error)
            own = None
        for visit in alive:
            station.requests_failed += 1
            self.c_fail_visit(visit, _with_batch(_copy_of(error) if own is None else own, visit, number, count), turn)
        if own is None:
            error.__traceback__ = traceback
        return 0

    cdef int c_put_back(self, list alive, list before, str refusal, object interrupt, Turn turn) except -1:
        """Ctrl-C has hit a caller who ran a batch, in it others' requests: those go back to the queue, as they were.

        Where that cannot be, they fail, as those do whose worker dies. ``before`` and ``refusal`` are None: it has not begun.
        """
        cdef Visit visit
        cdef int index
        turn.interrupt = interrupt                              # its own requests are cancelled for it
        for index in range(len(alive)):
            visit = <Visit>alive[index]
            if refusal is not None:
                error = _death(interrupt)
                _add_note(error, f"fastpipe: the batch was not run again: {refusal}")
                self.c_fail_visit(visit, error, turn)
                continue
            if before is not None:
                _restore(visit, before[index])
            self.c_queue(visit, turn, True)
        return 0

    cdef object c_lost_error(self, Visit visit, object cause):
        """The error of a visit whose node is lost: one of its own, caused by what happened there."""
        cdef str where
        try:
            where = f"node {visit.node.name!r}{_at(visit.node.station)}"
            if issubclass(type(cause), BackendHung):
                return BackendHung(f"{where} has no instance left: {text_of(cause)}", cause.stacks)
            error = DeviceLost(f"{where} has lost its device: {type(cause).__name__}: {text_of(cause)}")
            error.node = visit.node.name                        # to a backend that calls this pipe, it is somebody else's device
            error.__cause__ = _copy_of(cause)
            return error
        except BaseException as unexpected:                     # no memory for an error: then that is the error
            return unexpected

    cdef int c_queue(self, Visit visit, Turn turn, c_bool notify) noexcept:
        """Put a visit into its station's queue."""
        cdef Station station
        cdef list entry
        if visit.node.twins is not None and not self.c_choose_twin(visit, turn):
            return 0
        station = visit.node.station
        if station.lost is not None:
            self.c_fail_visit(visit, self.c_lost_error(visit, station.lost), turn)
            return 0
        try:
            if is_hooked(AT_PUSH):
                _act(AT_PUSH)
            visit.ticket.visit = <PyObject*>visit
            visit.ticket.weight = _weight(visit) if station.batches else 1.0
            visit.ticket.bucket = 0
            if visit.node.bucket is not None and station.batches:
                key = _bucket_of(visit)
                station.next_bucket_id += 1
                entry = <list>station.bucket_ids.setdefault(key, [station.next_bucket_id, 0, key])
                entry[1] += 1
                visit.bucket = entry
                visit.ticket.bucket = entry[0]
            if visit.ticket.weight != 1.0:
                station.has_weights.store(1, memory_order_relaxed)
                station.wake_at.store(0, memory_order_seq_cst)
        except BaseException as error:
            self.c_fail_visit(visit, _with_place(error, visit.node), turn)
            return 0
        except:  # no-cython-lint: E722
            # See _no_memory.
            self.c_fail_visit(visit, _no_memory, turn)
            return 0
        if station.c_is_limited() and not self.c_make_room(visit, turn):
            _release_bucket(visit)
            return 0
        visit.ticket.arrival_ns = now_ns()
        visit.ticket.rank_ns = visit.ticket.arrival_ns + visit.walk.priority_ns
        if visit.walk.priority_ns != 0:
            station.has_ranks.store(1, memory_order_relaxed)
        if station.batches and visit.way != ENTERED:
            station.c_note_arrival(visit.ticket.arrival_ns)
        # What users wrote has run since the first look; from here on nothing can come in between.
        if station.lost is not None:
            self.c_fail_visit(visit, self.c_lost_error(visit, station.lost), turn)
        if _is_dead(visit):                                     # a closed station would keep it, and its pipe, for ever
            _leave_queue(visit, station)
            return 0
        Py_INCREF(visit)                                        # E2: owned by the ticket until popped
        station.c_push(&visit.ticket)
        if is_hooked(AT_PUSHED):
            _act_in(AT_PUSHED, turn)
        if notify:
            station.c_notify()
        return 1

    cdef c_bool c_make_room(self, Visit visit, Turn turn) noexcept:
        """Make sure that a visit may be put into a queue with a limit; False, and its walk has failed, if it may not."""
        cdef Station station = visit.node.station
        cdef Station front = _front_of(station)
        cdef Visit oldest
        if visit.walk.has_room and station is visit.walk.home:
            _leave_room(visit.walk)                             # it has been let in
        try:
            if visit.walk.queued is None:
                visit.walk.queued = []
            visit.size_bytes = _size_of(visit.request) if station.max_queue_bytes > 0 else 0
            while station.when_full != BLOCK and front.c_is_full(visit.size_bytes, station.when_full == REJECT):
                error = front.c_full_error(visit.size_bytes)
                if station.when_full == REJECT:
                    visit.size_bytes = 0
                    self.c_fail_visit(visit, error, turn)
                    return False
                oldest = front.c_take_oldest_of_all()
                if oldest is None:
                    break
                self.c_fail_visit(oldest, error, turn)          # of what waits, it is the one that has waited longest
                self.c_send_one_back(oldest, turn)
            visit.walk.queued.append(visit)                     # now: this may need memory
        except BaseException as error:
            visit.size_bytes = 0
            self.c_fail_visit(visit, _with_place(error, visit.node), turn)
            return False
        if _is_dead(visit):                                     # no code of users runs from here to the push
            visit.size_bytes = 0
            return False
        station.queued_bytes += visit.size_bytes
        return True

    cdef int c_queue_all(self, Turn turn) noexcept:
        """Queue everything that is ready; each station is notified once."""
        cdef Visit visit
        cdef list ready
        cdef object station
        cdef object before
        cdef Py_ssize_t index
        while turn.ready or turn.arrived:
            self.c_enter_arrived(turn)
            ready = turn.ready
            if len(ready) == 1:
                self.c_queue(_take_last(ready), turn, True)
                continue
            for index in range(len(ready)):                     # in its own list: there may be no memory for another
                visit = <Visit>ready[index]
                ready[index] = visit.node.station if self.c_queue(visit, turn, False) else None
            before = None
            for station in ready:
                if station is not None and station is not before:
                    (<Station>station).c_notify()
                    before = station
            ready.clear()
        return 0

    cdef int c_hand_over(self, Turn turn) noexcept:
        """Keep of several ready visits one, and those that cost less than a hand-over; queue the others."""
        cdef Visit visit
        cdef Station station
        cdef list kept
        cdef list others
        cdef bint has_dear = False
        cdef dict crowds
        try:
            kept = []
            others = []
            crowds = {}
            for visit in turn.ready:
                crowds[visit.node.station] = crowds.get(visit.node.station, 0) + 1
            for visit in turn.ready:
                station = visit.node.station
                if station.batches and <int>crowds[station] > 1:
                    others.append(visit)                        # they belong into one batch
                elif 0 < station.c_cost(station.cost_alone_ns, 1) < HANDOVER_NS:
                    kept.append(visit)
                elif not has_dear:
                    has_dear = True
                    kept.insert(0, visit)                       # popped last: the others have started by then
                else:
                    others.append(visit)
        except BaseException:                                   # no memory for lists: all of them run here
            return 0
        turn.ready = others
        self.c_queue_all(turn)
        turn.ready = kept
        return 0

    cdef int c_run_ready(self, Turn turn) noexcept:
        """Run what is ready on this thread, node after node, as far as instances are free; queue the rest."""
        cdef Visit visit
        cdef Station station
        cdef list visits
        cdef double weight
        cdef int index
        while turn.ready or turn.arrived:
            self.c_enter_arrived(turn)
            if len(turn.ready) > 1:
                self.c_hand_over(turn)
            if not turn.ready:
                continue
            visit = _take_last(turn.ready)
            if _is_dead(visit) or visit.node.twins is not None and not self.c_choose_twin(visit, turn):
                continue
            station = visit.node.station
            weight = 1.0
            try:
                if station.batches:
                    weight = _weight(visit)
                    if isinstance(visit.node.bucket, str):
                        hash(_bucket_of(visit))                 # the same errors as on the way through the queue
                visits = [visit]                                # before the token is taken: there may be no memory
            except BaseException as error:
                self.c_fail_visit(visit, _with_place(error, visit.node), turn)
                continue
            index = station.c_token_for_caller(weight)
            if index < 0:
                self.c_queue(visit, turn, True)
                continue
            if turn.wakes.size() != 0:
                turn.wake()
            if visit.walk.has_room:
                _leave_room(visit.walk)
                station.c_tell_of_room()
            if self.called_first is not None:
                self.c_start_called_beside(station, turn)
            station.running.fetch_add(1, memory_order_relaxed)
            station.run_by_caller += 1
            self.c_run_batch(station, <Instance>visit.node.instances[index], visits, turn)
            station.running.fetch_sub(1, memory_order_relaxed)
            station.c_release_token(index)
            if turn.settled_first != NULL:
                self.c_settle(turn)                             # with no token held: callbacks may call the pipe
        self.c_settle(turn)                                     # others' requests, if the last visit has shed them
        turn.wake()
        return 0

    # ---- life --------------------------------------------------------------------------------------------------

    def _refuse_new(self):
        """Take no more requests; True if this is the first time."""
        if is_hooked(AT_CLOSE):
            _act_in(AT_CLOSE, None)
        first = not self.closing
        self.closing = True
        if first:
            for station in self.stations:
                (<Station>station).drain()
            for entry in list(self.entries.values()):           # those who wait to be let in are refused
                if (<Entry>entry).line is not None:
                    (<Entry>entry).line.c_turn_all_away()
                    (<Entry>entry).inner_line.c_turn_all_away()
            self.c_start_called(None)
        return first

    def _wait_drained(self, double timeout_s):
        """Wait until no request is in flight; True if so. Negative: no limit. Serves signals."""
        cdef int64_t deadline = FOREVER if timeout_s < 0 else now_ns() + <int64_t>(timeout_s * 1e9)
        cdef int64_t until
        cdef uint32_t epoch
        while True:
            epoch = events_prepare(&self.drained)
            if self.in_flight == 0:
                events_leave(&self.drained)
                return True
            if deadline >= 0 and now_ns() >= deadline:
                events_leave(&self.drained)
                return False
            with nogil:
                until = _first_slice(deadline)
                events_sleep(&self.drained, epoch, until)
            PyErr_CheckSignals()

    def _fail_rest(self, str why):
        """Fail, each with a PipeClosed of its own, whatever is still in flight: queued, running, or between nodes."""
        cdef Turn turn = Turn.__new__(Turn)
        cdef Walk walk
        self.gave_up = True                                     # first: parts admitted before are failed below
        while self.newest != NULL:
            walk = <Walk>self.newest                            # keeps it alive: its last owner may be a queue
            self.c_fail(walk, _closed_error(why), turn)
        self.c_settle(turn)
        turn.wake()
        for station in self.stations:
            (<Station>station).fail_queued(why)
        turn.c_raise_interrupt()

    def _close_stations(self):
        for station in self.stations:
            (<Station>station).close()
        if self.clock is not None:
            self.clock.stop()

    def _set_gate(self, int max_in_flight, str when_full):
        """Limit how many requests may be in flight; called once, before the graph is opened."""
        self.gate = Station(None, 1, 1, False, "greedy", (), 0.0, False, max_in_flight, 0, when_full)

    @property
    def failures(self):
        """Requests that failed, by reason."""
        return {_FAILURES[i]: self.failed_by[i] for i in range(len(_FAILURES)) if self.failed_by[i]}

    def _let_go(self):
        """Let requests end without a result; called once, while building."""
        self.lets_go = True

    def _set_timeout(self, double seconds):
        """Give requests that say nothing a time limit; called once, while building."""
        self.timeout_ns = <int64_t>(seconds * 1e9)

    def _remaining_s(self, Terms terms):
        """How long a request with these terms may still wait; None: however long."""
        return None if terms is None or terms.deadline_ns < 0 else max(terms.deadline_ns - now_ns(), 0) / 1e9

    def _is_inside(self):
        """True if this thread is in one of this pipe's backends."""
        return is_inside(<void*>self)

    def _is_forked(self):
        """True in a process that was forked after this pipe was built."""
        return self.generation != _generation

    def _counts(self):
        return {"accepted": self.accepted, "in_flight": self.in_flight, "done": self.done, "failed": self.failed,
                "cancelled": self.cancelled, "refused": self.refused}

    # ---- for the debugger --------------------------------------------------------------------------------------

    def _stepper(self, request, observer=None, entry=None):
        """Admit a request that goes through the graph one step at a time."""
        self.c_check_may_wait()
        return _new_stepper(self, request, observer, None, entry)

    def _preview(self, str node_name, request):
        """What the queue of a node would do with a request if it arrived now; {} for a node without one."""
        cdef Node node = <Node>self.node_named[node_name]
        cdef Station station = node.station
        cdef Visit visit
        cdef Load load
        cdef Verdict verdict
        if station is None:
            return {}
        visit = Visit.__new__(Visit)
        visit.node = node
        visit.request = request
        visit.walk = _new_walk(self, self.c_entry_at(node), request, SINK_CALLER, None)
        if node.twins is not None:
            visit.node = _twin_for(self, node, request)
            station = visit.node.station
        weight = _weight(visit) if station.batches else 1.0
        bucket = _bucket_of(visit) if station.has_buckets else None
        with nogil:
            station.desk.lock()
            station.c_drain()
            station.c_fill_load(&load)
            station.desk.unlock()
        entry = station.bucket_ids.get(bucket)
        preview = {
            "max_batch": station.max_batch,
            "instances": station.instance_count,
            "idle": load.idle_instances,
            "queued": station.queued.load(memory_order_relaxed),
            "queued_in_bucket": (0 if entry is None else entry[1]) if station.has_buckets else load.queued,
            "weight": weight,
            "bucket": bucket,
        }
        if node.twins is not None:
            preview["place"] = station.place
        load.queued = preview["queued_in_bucket"] + 1
        load.queued_weight += weight
        if load.queued == 1:
            load.oldest_ns = load.now_ns
        station.c_fill_costs(&load)
        if load.idle_instances <= 0:
            preview["decision"], preview["reason"] = "wait for instance", ""
        elif station.rule == RULE_OBJECT:
            preview["decision"], preview["reason"] = "as the rule says", type(station.rule_object).__name__
        else:
            verdict = station.c_decide(&load)
            preview["decision"], preview["reason"] = _ACTIONS[verdict.action], _REASONS[verdict.reason]
        return preview


def _as_raised(error, bint is_awaited=False):
    """What comes out of an iterator, or of an ``await``, for a request's ``error``: itself, or what can come out in its place.

    A StopIteration, or a StopAsyncIteration where it is awaited, would end what iterates as if there were nothing more; and
    whatever is no Exception would end the coroutine that awaits, or its event loop.
    """
    ends = (StopIteration, StopAsyncIteration) if is_awaited else StopIteration
    if not issubclass(type(error), ends) and (not is_awaited or issubclass(type(error), Exception)):
        return error
    way = "await" if is_awaited else "an iterator"
    replacement = BackendError(f"a backend raised {type(error).__name__}: {text_of(error)}; as that cannot come out of {way} "
                               "without ending more than the call, this is raised in its place")
    replacement.__cause__ = error
    for note in getattr(error, "__notes__", ()):
        replacement.add_note(note)
    return replacement


cdef int _tell_waiter(Waiter waiter, object error, Turn turn) noexcept:
    """Have the future of a coroutine whose request was not let in settled by its loop."""
    cdef int _attempt
    for _attempt in range(MOST_ATTEMPTS):
        try:
            waiter.sink[0].call_soon_threadsafe(_settle_in_loop, [(waiter.sink[1], waiter.request, error)])
            return 0
        except RuntimeError:                                    # the loop is closed: nobody is there to be told
            return 0
        except BaseException as unexpected:                     # if it was done all the same, twice does no harm
            _note_interrupt(turn, unexpected)
    return 0


# What concurrent.futures.Future keeps in ``_state``.
cdef str _PENDING = "PENDING"
cdef str _RUNNING = "RUNNING"
cdef str _CANCELLED = "CANCELLED"
cdef str _NOTIFIED = "CANCELLED_AND_NOTIFIED"
cdef str _FINISHED = "FINISHED"
cdef object _RESUME = opmap["RESUME"]


cdef Walk _first_settled(Turn turn):
    """Take the first walk out of a turn's list, which is not empty."""
    cdef Walk walk = <Walk>turn.settled_first
    turn.settled_first = walk.settled_after
    if turn.settled_first == NULL:
        turn.settled_last = NULL
    walk.settled_after = NULL
    Py_DECREF(walk)                                             # ``walk`` holds it
    return walk


cdef c_bool _lock_future(object future, Turn turn, c_bool* is_held=NULL) noexcept:
    """Take the lock of a future; False if that fails again and again. Its own ``with`` is not safe from signals.

    With ``is_held``, False as well, and that is True, if it is not to be had for long. Whoever has it holds it for moments;
    but a signal's handler may stop that thread between two lines of ``result()``, and then call the pipe: it would wait
    for the thread that waits for the lock.
    """
    cdef int _attempt
    for _attempt in range(MOST_ATTEMPTS):
        try:                                                    # the lock's own method, not written in Python
            if is_held == NULL:
                future._condition.acquire()
            elif not future._condition.acquire(False) and not future._condition.acquire(True, LONGEST_HELD_S):
                is_held[0] = True
                return False
            return True
        except BaseException as error:
            _note_interrupt(turn, error)
    return False


cdef int _unlock_future(object future, Turn turn) noexcept:
    cdef int _attempt
    for _attempt in range(MOST_ATTEMPTS):
        try:
            future._condition.release()
            return 0
        except RuntimeError:                                    # it has been released
            return 0
        except BaseException as error:
            _note_interrupt(turn, error)
    return 0


cdef c_bool _start_future(object future, Turn turn) noexcept:
    """Tell a future that its request starts, or ends; False if its owner has cancelled it."""
    cdef c_bool is_held = False                                 # then without: no line of Python comes in between
    cdef c_bool is_locked = _lock_future(future, turn, &is_held)
    cdef c_bool is_wanted = True
    cdef int _attempt
    for _attempt in range(MOST_ATTEMPTS):
        try:
            state = future._state
            if state == _PENDING:
                future._state = _RUNNING
            else:
                is_wanted = state == _RUNNING
            break
        except BaseException as error:
            _note_interrupt(turn, error)
    if is_locked:
        _unlock_future(future, turn)
    if not is_wanted:
        _end_future(future, _CANCELLED, None, None, turn)       # those who wait for it are to know
    return is_wanted


cdef int _end_future(object future, str state, object request, object error, Turn turn, c_bool is_patient=False) noexcept:
    """Give a RequestFuture its outcome and tell everybody, as its set_result(), set_exception() or cancel() would.

    Those are written in Python: a signal between two of their lines leaves a future pending for ever, or one that has an
    outcome of which nobody was told. Here only what others have written is Python, and it is called again (E9).
    """
    cdef c_bool is_held = False
    cdef c_bool is_locked = _lock_future(future, turn) if is_patient else _lock_future(future, turn, &is_held)
    cdef list waiters = None
    cdef list callbacks = None
    cdef str how = None
    cdef int _attempt
    if is_held:
        try:
            start_new_thread(_end_held_future, (future, state, request, error))
            return 0
        except BaseException as unexpected:                     # no thread, no memory: then this one waits
            _note_interrupt(turn, unexpected)
        is_locked = _lock_future(future, turn)
    for _attempt in range(MOST_ATTEMPTS):
        try:
            future.walk = None                                  # whoever keeps the future keeps no pipe alive
            before = future._state
            if before == _CANCELLED or (state == _CANCELLED and (before == _PENDING or before == _RUNNING)):
                how = "add_cancelled"
                future._state = _NOTIFIED
            elif before == _PENDING or before == _RUNNING:
                how = "add_result" if error is None else "add_exception"
                future._result = request
                future._exception = error
                future._state = _FINISHED
            break
        except BaseException as unexpected:
            _note_interrupt(turn, unexpected)
    if how is None:                                             # somebody else has ended it
        if is_locked:
            _unlock_future(future, turn)
        return 0
    for _attempt in range(MOST_ATTEMPTS):
        try:
            future._condition.notify_all()
            waiters = future._waiters
            callbacks = future._done_callbacks
            break
        except BaseException as unexpected:
            _note_interrupt(turn, unexpected)
    if waiters:
        _tell_waiters(future, waiters, how, turn)
    if is_locked:
        _unlock_future(future, turn)
    if callbacks and before != _CANCELLED:                      # cancel() has called them
        for callback in callbacks:
            _call_back(callback, future, turn)
    return 0


def _end_held_future(future, str state, request, error):
    """The body of a thread that waits for the lock of a future, so that no thread of a pipe has to."""
    cdef Turn turn = Turn.__new__(Turn)
    _end_future(future, state, request, error, turn, True)
    turn.c_report_interrupt()


cdef int _tell_waiters(object future, list waiters, str how, Turn turn) noexcept:
    """Tell wait() and as_completed() of concurrent.futures that a future has ended."""
    cdef int _attempt
    # A signal in the middle could leave a lock of theirs taken, and the main thread is where signals go: so another does it.
    if PyThread_get_thread_ident() == _main_thread:
        for _attempt in range(MOST_ATTEMPTS):
            try:
                start_new_thread(_tell_all, (list(waiters), future, how))
                return 0
            except RuntimeError:                                # there can be no more threads
                break
            except BaseException as error:
                _note_interrupt(turn, error)
    interrupt = _tell_all(waiters, future, how)
    if interrupt is not None:
        _note_interrupt(turn, interrupt)
    return 0


def _tell_all(list waiters, future, str how):
    """Tell each of them, whatever happens; return what has ended a call in the middle, or None."""
    cdef int _attempt
    interrupt = None
    for waiter in waiters:
        for _attempt in range(MOST_ATTEMPTS):
            try:
                getattr(waiter, how)(future)
                break
            except BaseException as error:
                if not issubclass(type(error), MemoryError):
                    interrupt = error
                try:
                    if any([each is future for each in waiter.finished_futures]):
                        # It knows, but may still sleep. Not here: the event's lock may have been left taken.
                        start_new_thread(waiter.event.set, ())
                        break
                except BaseException:                           # then again, from the beginning
                    pass
    return interrupt


cdef int _call_back(object callback, object future, Turn turn) noexcept:
    """Call what a user has attached to a future; again, if it was ended before its first line."""
    cdef int _attempt
    for _attempt in range(MOST_ATTEMPTS):
        try:
            callback(future)
            return 0
        except BaseException as error:
            if not _has_begun(error):
                _note_interrupt(turn, error)
                continue
            if issubclass(type(error), Exception):
                _log_failed_callback(future, error)
            elif turn.is_workers:                               # sys.exit() in a callback does not end a worker
                _report(error, callback)
            else:
                _note_interrupt(turn, error)
            return 0
    return 0


cdef c_bool _has_begun(object error) noexcept:
    """False if an exception comes from a signal, another thread or a lack of memory that ended a call before its first line."""
    cdef object innermost = None
    cdef int depth = 0
    try:
        traceback = error.__traceback__
        while traceback is not None:
            if not traceback.tb_frame.f_code.co_filename.endswith("_core.pyx"):
                innermost = traceback
                depth += 1
            traceback = traceback.tb_next
        if depth == 0:
            return issubclass(type(error), Exception) and not issubclass(type(error), MemoryError)
        return depth > 1 or innermost.tb_frame.f_code.co_code[innermost.tb_lasti] != _RESUME
    except BaseException:
        return True


cdef int _log_failed_callback(object future, object error) noexcept:
    try:
        future.callback_failed(error)
    except BaseException as unexpected:
        _report(unexpected, future)
    return 0


def _settle_in_loop(list outcomes):
    """Settle asyncio futures, in their loop's thread. What ends this in the middle is raised when all are settled."""
    cdef int attempt
    cdef list callbacks
    interrupt = None
    for future, request, error in outcomes:
        callbacks = None
        for attempt in range(MOST_ATTEMPTS):
            try:
                if not future.done():                           # else: cancelled in the meantime
                    callbacks = future._callbacks
                    if error is None:
                        future.set_result(request)
                    else:
                        future.set_exception(_as_raised(error, True))
                elif attempt > 0 and callbacks:
                    _schedule(future, callbacks)
                break
            except BaseException as unexpected:
                if not issubclass(type(unexpected), MemoryError):
                    interrupt = unexpected
    if interrupt is not None:
        raise interrupt


cdef int _schedule(object future, list callbacks) except -1:
    """Have those callbacks of an asyncio future called that are not about to be: its set_result() was ended in the middle."""
    loop = future.get_loop()
    for callback, context in callbacks:
        if not any([future in (handle._args or ()) and handle._callback is callback for handle in getattr(loop, "_ready", ())]):
            loop.call_soon(callback, future, context=context)
    return 0


cdef Walk _new_walk(Engine engine, Entry entry, object request, uint8_t sink_kind, object sink):
    cdef Walk walk = Walk.__new__(Walk)
    walk.engine = engine
    walk.entry = entry
    walk.request = request
    walk.sink_kind = sink_kind
    walk.sink = sink
    walk.home = entry.node.station
    walk.deadline_ns = FOREVER
    if sink_kind == SINK_GATHER:                                # a part is on its whole's terms
        walk.deadline_ns = (<Gather>sink).visit.walk.deadline_ns
        walk.timeout_s = (<Gather>sink).visit.walk.timeout_s
        walk.priority_ns = (<Gather>sink).visit.walk.priority_ns
        walk.is_part = True
    _start_round(walk)
    return walk


cdef Node _twin_for(Engine engine, Node node, object request):
    """Where a request is to run: where its data is; if that is nowhere or has no instance, where there is least to do."""
    cdef Node twin
    if node.place_of is not None:
        place = _enter_user_code(<void*>engine, node.place_of, request)
        if place is not None:
            twin = <Node>node.twin_at.get(place)
            if twin is not None:
                return twin
    return _least_busy(node)


cdef Node _least_busy(Node node):
    """The twin with the fewest requests for each instance in service, of those that are not lost; of several the next in turn.

    Where none is in service, requests wait until one is built again: it is passed over while there is another place.
    """
    cdef Node best = _least_busy_of(node, True)
    if best is None:
        best = _least_busy_of(node, False)
    return <Node>node.twins[0] if best is None else best


cdef Node _least_busy_of(Node node, c_bool in_service):
    """The same by the instances in service, or by all there should be; None: there is no such twin."""
    cdef Node best = None
    cdef Station station
    cdef int64_t outstanding
    cdef int64_t least = 0
    cdef int64_t instances
    cdef int64_t of_best = 1                                    # its instances
    cdef Py_ssize_t count = len(node.twins)
    cdef Py_ssize_t i
    for i in range(count):
        twin = node.twins[(node.station.next_twin + i) % count]
        station = (<Node>twin).station
        instances = station.in_service if in_service else station.instance_count
        if station.lost is not None or instances == 0:
            continue
        outstanding = _present(<PyObject*>station) - station.ghosts
        if best is None or outstanding * of_best < least * instances:
            best = <Node>twin
            least = outstanding
            of_best = instances
    return best


cdef inline void _hand_in(Walk walk, object request, object given) noexcept:
    """Say whose dict an answer is for, where the walk was admitted with a copy of it."""
    if given is not request:
        walk.given = given
        walk.request = request


cdef inline void _take_places(Walk walk, Line line, int64_t size_bytes) noexcept:
    """The places that are booked for a request are its walk's."""
    walk.has_room = line.home is not None
    walk.room_bytes = size_bytes
    walk.is_counted = line.whole is not None


cdef inline void _leave_room(Walk walk) noexcept:
    """Give up the place that is held in a queue: it is taken for good, or not needed."""
    cdef Station front = _front_of(walk.home)
    walk.has_room = False
    front.reserved -= 1
    front.reserved_bytes -= walk.room_bytes


cdef Terms _terms(Engine engine, object timeout, object priority):
    """What a caller asked for, checked; None: nothing."""
    cdef Terms terms
    cdef double seconds
    cdef double rank
    if timeout is None and priority == 0 and engine.timeout_ns < 0:
        return None
    terms = Terms.__new__(Terms)
    terms.deadline_ns = FOREVER
    if timeout is not None:
        seconds = _number(timeout, "timeout must be a number of seconds, more than 0")
        if not seconds > 0:
            raise ValueError(f"timeout must be more than 0 seconds, got {timeout!r}")
        terms.timeout_s = seconds
        if seconds < 1e9:                                       # longer ones, inf among them, are none
            terms.deadline_ns = now_ns() + <int64_t>(seconds * 1e9)
    elif engine.timeout_ns >= 0:
        terms.timeout_s = engine.timeout_ns / 1e9
        terms.deadline_ns = now_ns() + engine.timeout_ns
    rank = _number(priority, "priority must be a number from -1000 to 1000, of which lower ones go first")
    if not -1000 <= rank <= 1000:
        raise ValueError(f"priority must be from -1000 to 1000, got {priority!r}")
    terms.priority_ns = <int64_t>(rank * PRIORITY_NS)
    return terms


cdef double _number(object value, str expected) except? -1:
    """An argument that has to be a number: neither a truth value nor a text that reads like one."""
    if type(value) is float or type(value) is int or (isinstance(value, Number) and not isinstance(value, bool)):
        try:
            return value
        except (TypeError, OverflowError):                      # complex, or beyond what a float holds
            pass
    raise TypeError(f"{expected}; got {value!r}")


cdef int64_t _size_of(object request) except -1:
    """How many bytes a request's data has, as far as one can see: bytes, arrays, and lists of them."""
    data = request.get("data")
    return _bytes_in(data) if not isinstance(data, (list, tuple)) else sum([_bytes_in(each) for each in data])


cdef int64_t _bytes_in(object data) except -1:
    if isinstance(data, (bytes, bytearray, str)):
        return len(data)
    size = getattr(data, "nbytes", 0)
    return size if isinstance(size, int) and size > 0 else 0


cdef object _late_error(Walk walk):
    """The error of a request whose time is over. Raises nothing."""
    try:
        return RequestTimeout(f"the request did not end within {walk.timeout_s:g} s")
    except BaseException as unexpected:                         # no memory for it: then that is the error
        return unexpected


cdef int _reason_of(object error) noexcept:
    """Why a request failed, for stats()."""
    kind = type(error)                                          # isinstance() may call what users wrote
    if issubclass(kind, RequestTimeout):
        return TIMED_OUT
    if issubclass(kind, QueueFull):
        return CROWDED_OUT
    if issubclass(kind, PipeClosed):
        return CLOSED
    if issubclass(kind, BackendHung):
        return HUNG
    if issubclass(kind, WorkerDied):
        return DIED
    if issubclass(kind, NoResult):
        return WITHOUT_RESULT
    return LOST if issubclass(kind, DeviceLost) else OTHER


cdef int _start_round(Walk walk) except -1:
    """Set out from ``walk.entry``: nothing has arrived anywhere, and no dict is kept."""
    cdef Entry entry = walk.entry
    walk.leaves_left = entry.leaf_count
    walk.pending = entry.pending
    walk.readers = entry.readers
    if entry.readers.size() != 0:
        walk.has_run.assign(entry.readers.size(), 0)
        walk.answers = [None] * <Py_ssize_t>entry.readers.size()
    else:
        walk.answers = None
    walk.without = None
    return 0


cdef inline void _forget(Walk walk, int32_t slot) noexcept:
    """One reader less: the last one lets go of the dict."""
    walk.readers[slot] -= 1
    if walk.readers[slot] == 0:
        walk.answers[slot] = None


cdef Stepper _new_stepper(Engine engine, object request, object observer, Terms terms, object entry):
    cdef Stepper stepper = Stepper.__new__(Stepper)
    stepper.engine = engine
    stepper.turn = Turn.__new__(Turn)
    stepper.turn.stepper = <PyObject*>stepper
    stepper.turn.observer = observer
    stepper.walk = engine.c_admit(engine.c_entry(request, entry), request, SINK_CALLER, None, terms)
    engine.c_start_walk(stepper.walk, stepper.turn)
    return stepper


cdef int _run_in_steps(Engine engine, Walk walk, object observer) except -1:
    """Take all steps of a walk that has been admitted, on this thread."""
    cdef Stepper stepper = Stepper.__new__(Stepper)
    stepper.engine = engine
    stepper.turn = Turn.__new__(Turn)
    stepper.turn.stepper = <PyObject*>stepper
    stepper.turn.observer = observer
    stepper.walk = walk
    engine.c_start_part(walk, stepper.turn)
    stepper.run()
    return 0


cdef int _collect_error(list errors, object error, int index, int count) except -1:
    """Note the failure of one request of a list."""
    if error is None:
        return 0
    if issubclass(type(error), KeyboardInterrupt) and PyThread_get_thread_ident() == _main_thread:
        raise error                                             # Ctrl-C: nobody looks for it in a group
    _add_note(error, f"fastpipe: request {index} of a list of {count}")
    errors.append(error)
    return 0


cdef int _raise_errors(list errors, int count) except -1:
    if errors:
        raise BaseExceptionGroup(f"{len(errors)} of {count} requests failed", errors)
    return 0


cdef dict _own_request(Walk walk):
    """The dict with which a request sets out: a copy of what the caller has handed in, without what it may not say.

    The caller's own is written once, at the end, and only if the request succeeds.
    """
    cdef dict own = PyDict_Copy(walk.request if walk.given is None else walk.given)
    if "result" in own:
        del own["result"]                                       # left over from an earlier call with the same dict
    if not _has_only_data(own):
        for key in walk.engine.ignored_keys:
            own.pop(key, None)
        if walk.engine.names_leaf:
            own.pop(_ANSWERED_BY, None)                         # like the result
        if walk.given is None:
            walk.given = PyDict_Copy(own)
    return own


cdef c_bool _has_only_data(dict request) noexcept:
    """True if there is no other key: nothing then has to be kept in order to tell what was there from what was set."""
    cdef PyObject* key
    cdef PyObject* value
    cdef Py_ssize_t position = 0
    return (PyDict_Size(request) == 1 and PyDict_Next(request, &position, &key, &value)
            and <object>key is _DATA)


cdef int _write_back(Walk walk, dict answer) except -1:
    """Write an answer, or None for a failure, into a caller's dict; a result that it does not have is removed.

    Written is what has been set since the request was handed in. Never ``data``, which is the input of the last node by
    now, nor ``node_name``. A part's dict is the engine's own, and gets all of it.
    """
    cdef Frame* frame
    if PyDict_CheckExact(walk.request):
        return _write(walk, answer, True)
    # A subclass has methods of its own: code of users, who may wait for the pipe in it as little as in callbacks.
    frame = enter_frame(<void*>walk.engine, True, _greenlet())
    if frame == NULL:
        raise MemoryError
    try:
        return _write(walk, answer, False)
    finally:
        leave_frame(frame)


cdef inline int _write(Walk walk, dict answer, c_bool is_exact) except -1:
    cdef object request = walk.request
    cdef PyObject* key_pointer
    cdef PyObject* value_pointer
    cdef Py_ssize_t position = 0
    cdef c_bool has_result = False
    if answer is not None:
        while PyDict_Next(answer, &position, &key_pointer, &value_pointer):
            key = <object>key_pointer
            value = <object>value_pointer
            if key is _RESULT:
                has_result = True
            elif not walk.is_part:
                if key is _DATA or isinstance(key, str) and (key == "data" or key == "node_name"):
                    continue
                if walk.given is not None and _is_unset(walk, key, value_pointer):
                    continue
            if is_exact:
                (<dict>request)[key] = value
            else:
                request[key] = value                            # a subclass has books of its own
    if not has_result and (answer is None or "result" not in answer) and "result" in request:
        del request["result"]
    if walk.engine.names_leaf and not walk.is_part and (answer is None or _ANSWERED_BY not in answer):
        request.pop(_ANSWERED_BY, None)
    return 0


cdef c_bool _is_unset(Walk walk, object key, PyObject* value) except *:
    """True if no backend has set a key, and the caller's dict is to keep what it has.

    What is as it was before its batch (_restore) because a run had changed it in place has been set by nobody: the caller
    gets it for the value that was changed, not for one that it has put there since.
    """
    cdef PyObject* before = PyDict_GetItem(walk.given, key)
    if before == NULL:
        return False
    if before == value:
        return True
    if walk.restored is None or PyDict_GetItem(walk.restored, key) != value:
        return False
    return PyDict_GetItem(walk.request, key) != before


cdef int _restore(Visit visit, object before) except -1:
    """Make a request what it was before its batch: by a snapshot, or by a copy of its dict if its values were kept."""
    cdef Walk walk = visit.walk
    if isinstance(before, dict):
        visit.request.clear()
        PyDict_Update(visit.request, before)
        return 0
    for key, was, value in before.put_back(visit.request):
        if walk.given is None or PyDict_GetItem(walk.given, key) == NULL:
            continue
        given = walk.given[key]
        if was is given or walk.restored is not None and walk.restored.get(key) is was:
            if walk.restored is None:
                walk.restored = {}
            walk.restored[key] = value
    return 0


cdef str _why_of_parts(list walks):
    """Why a request whose parts these are has no result: what gave none of them one, "": a filter; None: they have some."""
    cdef Walk walk
    cdef str why = None
    for walk in walks:
        if walk.error is None and "result" not in walk.request:
            if walk.without is not None and walk.without[1] != "":
                return _step_in_words(walk.without)
            why = ""
    return why


cdef str _step_in_words(tuple without):
    cdef Node node
    node, part = without
    return f"{part or node.backend_name} of node {node.name!r}"


cdef c_bool _has_others(list visits, Turn turn):
    """True if some visit is of a request that this thread's caller did not bring."""
    cdef Walk own
    for visit in visits:
        own = (<Visit>visit).walk
        while own.sink_kind == SINK_GATHER:
            own = (<Gather>own.sink).visit.walk
        if own.lister != <PyObject*>turn:
            return True
    return False


cdef dict _checked_item_errors(object error, list batch, list alive):
    """What ItemErrors says, by place in ``alive``; if it says nonsense, that every item failed because of it."""
    try:
        return error.by_position(batch, [(<Visit>visit).request for visit in alive])
    except BackendError as wrong:
        return dict.fromkeys(range(len(alive)), wrong)


cdef object _bucket_of(Visit visit):
    cdef PyObject* found
    bucket = visit.node.bucket
    if not isinstance(bucket, str):
        return _enter_user_code(<void*>visit.walk.engine, bucket, visit.request)
    found = PyDict_GetItem(visit.request, bucket)
    if found == NULL:
        keys = [key for key in visit.request if isinstance(key, str)]
        raise KeyError(f"node {visit.node.name!r}: bucket: the request has no key {bucket!r}, by which the node forms its "
                       f"batches; its keys are {keys_in_brief(keys)}{nearest(bucket, keys)}")
    return <object>found


cdef double _weight(Visit visit) except? -1:
    cdef Node node = visit.node
    cdef double weight
    if node.weigh is not None:
        weight = _enter_user_code(<void*>visit.walk.engine, node.weigh, visit.request)
    else:
        size = visit.request.get("request_size")
        if size is None:
            return 1.0
        weight = size
    if not 0 < weight <= node.station.max_batch:
        raise ValueError(f"the request weighs {weight:g}; node {node.name!r} takes more than 0 and up to {node.station.max_batch}")
    return weight


cdef int _status(object status, Node node) except -1:
    if isinstance(status, Status):
        return status
    raise BackendError(f"the filter of node {node.name!r} must return a fastpipe.Status; it returned {in_brief(status)}")


cdef Py_ssize_t _count_holders(object error):
    cdef object own = error                                     # as in _with_place
    return Py_REFCNT(own)


cdef Py_ssize_t _count_holders_in_except():
    """How many references to an exception there are in _with_place if nobody but the ``except`` that calls it has it."""
    try:
        raise BackendError("which nobody keeps")
    except BaseException as error:
        return _count_holders(error)


# Counted, as it is Cython's own affair.
cdef Py_ssize_t _holders_in_except = _count_holders_in_except()


cdef object _with_place(object error, Node node):
    """Give an exception that was raised for one request the note that says at which node. Raises nothing.

    One that somebody keeps is copied: the filter, for instance, which raises it again for the next request.
    """
    cdef object own = error
    cdef object traceback
    try:
        if Py_REFCNT(error) > _holders_in_except:
            traceback = _traceback_for_copies(error)
            own = _copy_of(error)
            error.__traceback__ = traceback
        _add_note(own, f"fastpipe: node {node.name!r}, backend {node.backend_name}")
    except BaseException:                                       # no memory for a note
        pass
    return own


cdef int _note_part(Walk part, Node node) except -1:
    """Add the note that says which part of a request has failed."""
    _add_note(part.error, f"fastpipe: part {part.sink_index} of node {node.name!r}")
    return 0


cdef object _copy_of(object error):
    """A copy of an exception for one more request. Raises nothing."""
    cdef int _attempt
    for _attempt in range(MOST_ATTEMPTS):
        try:
            return own_copy(error)
        except BaseException as unexpected:
            _note_interrupt(None, unexpected)
    return error


cdef object _traceback_for_copies(object error):
    """What an exception's traceback is to be again, once copies of it are made; see take_traceback. Raises nothing."""
    try:
        return take_traceback(error)
    except BaseException:
        return error.__traceback__


cdef object _with_batch(object error, Visit visit, int instance, int batch_size):
    """Add the note that says where an exception of a backend comes from. Raises nothing."""
    cdef Node node = visit.node
    cdef str place
    try:
        place = f"fastpipe: node {node.name!r}, backend {node.backend_name}, instance {instance}, batch of {batch_size}"
        if issubclass(type(error), KeyError):
            place += f"; the request's keys are {keys_in_brief(visit.request)}"
        _add_note(error, place)
    except BaseException:                                       # no memory for a note
        pass
    return error


# =================================================================================================================
# For tests: the rules as a table, the inbox alone
# =================================================================================================================

def decide(str rule, *, list preferred=None, **load_fields):
    """What ``rule`` says to a Load: (action, reason, until_ns, size). Fields that are not given are 0."""
    cdef Load load
    cdef Verdict verdict
    cdef vector[int32_t] sizes
    load.now_ns = load_fields.pop("now_ns", 0)
    load.oldest_ns = load_fields.pop("oldest_ns", 0)
    load.idle_since_ns = load_fields.pop("idle_since_ns", 0)
    load.latest_event_ns = load_fields.pop("latest_event_ns", 0)
    load.usual_gap_ns = load_fields.pop("usual_gap_ns", 0)
    load.timeout_ns = load_fields.pop("timeout_ns", 0)
    load.cost_alone_ns = load_fields.pop("cost_alone_ns", 0)
    load.cost_shared_ns = load_fields.pop("cost_shared_ns", 0)
    load.queued = load_fields.pop("queued", 0)
    load.queued_weight = load_fields.pop("queued_weight", load.queued)
    load.max_weight = load_fields.pop("max_weight", 0)
    load.idle_instances = load_fields.pop("idle_instances", 0)
    load.busy_instances = load_fields.pop("busy_instances", 0)
    load.company = load_fields.pop("company", 0)
    if load_fields:
        raise TypeError(f"a Load has no {sorted(load_fields)}")
    if preferred is not None:
        for size in sorted(preferred):
            sizes.push_back(size)
    if rule == "adaptive":
        verdict = decide_adaptive(&load)
    elif rule == "timeout":
        verdict = decide_timeout(&load)
    elif rule == "greedy":
        verdict = decide_greedy(&load)
    else:
        verdict = decide_preferred(&load, sizes.data(), <int32_t>sizes.size())
    return _ACTIONS[verdict.action], _REASONS[verdict.reason], verdict.until_ns, verdict.size


cdef int _hold(c_bool invariant) except -1:
    if not invariant:                                           # assert is silent in a release build
        raise AssertionError("the list breaks an invariant of _ranking.pxd")
    return 0


def late_at(int64_t hang_ns, list looks):
    """When a batch counts as late after each of some looks at its instance: (when it began, when the look was meant, when it was)."""
    cdef Watched watched
    watched.started_ns = watched.since_ns = watched.pauses = 0
    return [late_at_ns(&watched, started_ns, hang_ns, now_ns, asked_ns) for started_ns, asked_ns, now_ns in looks]


@cython.final
cdef class RankedTickets:
    """For tests: a station's staged list alone, of tickets that have nothing but a number, a rank and a bucket."""

    cdef Ranked ranked
    cdef list visits
    cdef readonly int64_t added

    def __cinit__(self):
        self.visits = []
        ranked_init(&self.ranked)

    def add(self, int64_t rank, int64_t bucket=0, *, bint in_order=False):
        """Insert a ticket, or with ``in_order`` append it, as is done while no request has had a priority; its number."""
        cdef Visit visit = Visit.__new__(Visit)
        visit.ticket.rank_ns = rank
        visit.ticket.bucket = bucket
        visit.ticket.arrival_ns = self.added                    # its number
        visit.ticket.weight = 1.0
        self.visits.append(visit)
        self.added += 1
        if in_order:
            ranked_append(&self.ranked, &visit.ticket)
        else:
            ranked_insert(&self.ranked, &visit.ticket)
        return self.added - 1

    def take(self, int64_t bucket, int count):
        """Take the first so many of a bucket, as a batch does; their numbers."""
        cdef Cursor cursor
        taken = []
        cursor_begin(&cursor, &self.ranked)
        while cursor.at != NULL and len(taken) < count:
            if cursor.at.bucket == bucket:
                taken.append(cursor_take(&cursor, &self.ranked).arrival_ns)
            else:
                cursor_pass(&cursor, &self.ranked)
        return taken

    @property
    def numbers(self):
        """The tickets' numbers, in the list's order."""
        cdef Ticket* ticket = self.ranked.first
        numbers = []
        while ticket != NULL:
            numbers.append(ticket.arrival_ns)
            ticket = next_of(ticket)
        return numbers

    @property
    def steps(self):
        """How many tickets have been walked past in order to insert others."""
        return self.ranked.steps

    @property
    def is_indexed(self):
        return self.ranked.is_indexed

    def check(self):
        """Fail if the list breaks one of its invariants."""
        cdef Ticket* ticket = self.ranked.first
        cdef Ticket* last = NULL
        cdef Ticket* reached[LINKS_ABOVE]
        cdef int32_t count = 0
        cdef int level
        for level in range(LINKS_ABOVE):
            reached[level] = self.ranked.first_above[level] if self.ranked.is_indexed else NULL
        while ticket != NULL:
            if self.ranked.is_indexed:
                for level in range(ticket.links_above):
                    _hold(reached[level] == ticket)
                    reached[level] = ticket.above[level]
                    _hold(reached[level] != NULL or self.ranked.last_above[level] == ticket)
            last = ticket
            count += 1
            ticket = next_of(ticket)
        for level in range(LINKS_ABOVE):
            _hold(reached[level] == NULL)
        _hold(self.ranked.last == last)
        _hold(self.ranked.count == count)
        _hold(self.ranked.weight == count)
        _hold(count > 0 or not self.ranked.is_indexed)
