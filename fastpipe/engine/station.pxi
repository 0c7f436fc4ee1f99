# Station: one node's desk at one place: its tokens, its queue's ends, and what it has learned of arrivals and costs.
#
# Guarantees   E4: c_push, c_notify, c_release_token. Knows no backend and no pipe, so that a worker which sleeps
#              here keeps neither alive. What Python calls (serve, fail_queued, give_up) is done by chapters further up.

cimport cython
from libc.stdlib cimport calloc, free
from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst

from fastpipe.engine.costs cimport cost_of, costs_free, costs_init
from fastpipe.engine.histogram cimport (
    SIZE_SHIFT, TIME_BUCKETS, TIME_SHIFT, WEIGHT_ONE, WEIGHT_SHIFT, Histogram, bucket_index,
)
from fastpipe.engine.inbox cimport inbox_init, inbox_push
from fastpipe.engine.parking cimport FOREVER, atomic_thread_fence, events_notify, now_ns
from fastpipe.engine.ranking cimport ranked_init
from fastpipe.engine.tokens cimport token_release, token_try, tokens_free, tokens_init

from fastpipe.errors import QueueFull

cdef enum:
    RETIRED = 1
    ANOTHER_LIFE = 2


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
        self.started_ns = <atomic[int64_t]*>calloc(instance_count, sizeof(atomic[int64_t]))
        if not (tokens_init(&self.tokens, instance_count) and costs_init(&self.cost_alone, max_batch)
                and costs_init(&self.cost_shared, max_batch) and self.started_ns != NULL):
            raise MemoryError
        if name is not None:
            self.c_make_histograms()
        self.usual_gap_ns.store(FIRST_GAP_NS, memory_order_relaxed)

    def __dealloc__(self):
        tokens_free(&self.tokens)
        costs_free(&self.cost_alone)
        costs_free(&self.cost_shared)
        free(self.started_ns)
        free(self.tallies)

    cdef int c_make_histograms(self) except -1:
        """Have room for all that will be measured."""
        cdef int64_t most = self.max_batch
        cdef int32_t sizes = bucket_index(most, SIZE_SHIFT) + 1 if self.batches else 0
        cdef int32_t weights = bucket_index(most * WEIGHT_ONE, WEIGHT_SHIFT) + 1 if self.batches else 0
        cdef size_t count = 2 * TIME_BUCKETS + sizes + weights
        self.tallies_bytes = count * sizeof(int64_t)
        self.tallies = <int64_t*>calloc(count, sizeof(int64_t))
        if self.tallies == NULL:
            raise MemoryError
        self.queue_ns = Histogram(self.tallies, TIME_BUCKETS, TIME_SHIFT, 0, 0)
        self.run_ns = Histogram(self.tallies + TIME_BUCKETS, TIME_BUCKETS, TIME_SHIFT, 0, 0)
        self.sizes = Histogram(self.tallies + 2 * TIME_BUCKETS, sizes, SIZE_SHIFT, 0, 0)
        self.weights = Histogram(self.tallies + 2 * TIME_BUCKETS + sizes, weights, WEIGHT_SHIFT, 0, 0)
        return 0

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
        return f"node {self.name!r}{at_place(self)}"

    def may_stream(self):
        """Say that its backends may emit chunks; called once, while building.

        No caller runs them: it would wait for a reader whom nobody knows, perhaps for itself.
        """
        self.streams = True
        self.workers_only = True

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
        cdef int outcome = wait_for(&self.workers, _has_retired, (self, index, life), deadline)
        return None if outcome == ANOTHER_LIFE else outcome == RETIRED

    def close(self):
        """Let the workers leave once nothing is queued."""
        self.life.store(CLOSING, memory_order_seq_cst)
        events_notify(&self.workers, 0x7fffffff)

    def serve(self, int worker):
        """Work until the station is closed and empty; return None. The body of a worker thread.

        Returns the backend in which the worker was given up as hung, if it was: another has its place, and it must not
        serve any more. Raises what ended the worker otherwise: it may serve again. What it held has failed.
        """
        return serve_until_closed(self, worker)

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
        fail_all_queued(self, why, lost)

    # ---- tokens ------------------------------------------------------------------------------------------------

    cdef void c_release_token(self, int index) noexcept nogil:
        if self.batches and self.tokens.idle.load(memory_order_relaxed) == 0:
            self.idle_since_ns.store(now_ns(), memory_order_relaxed)
        token_release(&self.tokens, index)                      # E4: then look at the queue
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
        if self.tokens.idle.load(memory_order_seq_cst) <= 0:
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
        if 0 <= gap < cost_of(&self.cost_alone, 1) // 2:
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

    # ---- batches that do not end -------------------------------------------------------------------------------

    def give_up(self, int index):
        """Fail what a hung instance holds, and have it replaced."""
        give_up_batch(self, index)


cdef int _has_retired(object instance) except -1:
    """RETIRED if the token of an instance could be taken, ANOTHER_LIFE if its backend was given up; 0: neither."""
    cdef Station station = (<tuple>instance)[0]
    cdef int index = (<tuple>instance)[1]
    if station.lives[index] != (<tuple>instance)[2]:
        return ANOTHER_LIFE
    return RETIRED if token_try(&station.tokens, index) else 0


cdef str at_place(Station station):
    """`` at cuda:1``, of a node whose instances are at several places; otherwise nothing."""
    return f" at {station.place}" if station.place is not None and station.c_has_twins() else ""


cdef inline Station front_of(Station station):
    """The station that has the limits of a node, and where callers wait for room."""
    return station if station.front is None else station.front


cdef inline int32_t count_present(PyObject* station) noexcept nogil:
    """Requests queued or running at a station, seen from a thread that does not hold the GIL."""
    return (<Station>station).queued.load(memory_order_relaxed) + (<Station>station).running.load(memory_order_relaxed)


cdef int32_t _count_waiting(Station front) noexcept:
    """How many requests wait for the node, at all its places. At the front."""
    cdef int32_t waiting = front.queued.load(memory_order_seq_cst) - front.ghosts
    cdef size_t i
    for i in range(front.others.size()):
        waiting += (<Station>front.others[i]).queued.load(memory_order_seq_cst) - (<Station>front.others[i]).ghosts
    return waiting


cdef int64_t _count_waiting_bytes(Station front) noexcept:
    """How many bytes they have. At the front."""
    cdef int64_t size_bytes = front.queued_bytes
    cdef size_t i
    for i in range(front.others.size()):
        size_bytes += (<Station>front.others[i]).queued_bytes
    return size_bytes


cdef c_bool is_full(Station front, int64_t more_bytes, c_bool with_reserved) noexcept:
    cdef int32_t waiting = _count_waiting(front)
    cdef int64_t reserved_bytes = 0
    if with_reserved:
        waiting += front.reserved
        reserved_bytes = front.reserved_bytes
    if front.max_queue > 0 and waiting >= front.max_queue:
        return True
    return front.max_queue_bytes > 0 and _count_waiting_bytes(front) + reserved_bytes + more_bytes > front.max_queue_bytes


cdef object full_error(Station front, int64_t more_bytes):
    cdef int32_t waiting = _count_waiting(front) + front.reserved
    if front.name is None:
        return QueueFull(f"the pipe is full: {waiting} requests are in flight, and its max_in_flight is {front.max_queue}")
    cdef int64_t waiting_bytes = _count_waiting_bytes(front) + front.reserved_bytes
    if front.max_queue_bytes > 0 and waiting_bytes + more_bytes > front.max_queue_bytes:
        said = (f"{waiting_bytes} bytes wait, the request has {more_bytes}, and its max_queue_bytes is "
                f"{front.max_queue_bytes}")
    else:
        said = f"{waiting} requests wait, and its max_queue is {front.max_queue}"
    return QueueFull(f"the queue of node {front.name!r} is full: {said}")
