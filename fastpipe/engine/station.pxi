# Station: one node's desk at one place: its tokens, its queue's ends, and what it has learned of arrivals and costs.
#
# Guarantees   E4: c_push, c_notify, c_release_token. Knows no backend and no pipe, so that a worker which sleeps
#              here keeps neither alive. What Python calls (serve, fail_queued, give_up) is done by chapters further up.

cimport cython
from libc.stdlib cimport calloc, free
from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst

from fastpipe.engine.costs cimport cost_of, costs_free, costs_grow, costs_init
from fastpipe.engine.hanging cimport Watched
from fastpipe.engine.histogram cimport (
    SIZE_SHIFT, TIME_BUCKETS, TIME_SHIFT, WEIGHT_ONE, WEIGHT_SHIFT, Histogram, bucket_index,
)
from fastpipe.engine.inbox cimport inbox_init, inbox_push
from fastpipe.engine.parking cimport FOREVER, atomic_thread_fence, events_notify, now_ns
from fastpipe.engine.ranking cimport ranked_init
from fastpipe.engine.tokens cimport (
    LEFT, token_hold, token_is_retired, token_keep, token_release, token_retire, tokens_free, tokens_grow, tokens_init,
)

from fastpipe.errors import QueueFull

cdef enum:
    RETIRED = 1
    ANOTHER_LIFE = 2


cdef Bounds bounds_of(object backend, int max_batch) except *:
    """What a batch of a backend may be padded to."""
    cdef Bounds bounds
    bounds.most_requests = max_batch
    bounds.most_padded = (<int64_t>1 << 62) if backend.max_padded is None else backend.max_padded
    bounds.most_padding = backend.max_padding
    return bounds


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
        self.hang_ns = <int64_t>(hang_timeout_s * 1e9)
        self.c_set_kind(max_batch, thread_bound)
        self.sharing_wanted = 0 if thread_bound else instance_count
        self.held = [None] * instance_count
        self.lives = [0] * instance_count
        rules = Rule(rule, preferred, timeout_ms)
        self.rule_object = take_rule(self, rules)
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
        self.watched = <Watched*>calloc(instance_count, sizeof(Watched))
        if not (tokens_init(&self.tokens, instance_count) and costs_init(&self.cost_alone, max_batch)
                and costs_init(&self.cost_shared, max_batch) and self.started_ns != NULL and self.watched != NULL):
            raise MemoryError
        if name is not None:
            self.c_make_histograms(max_batch)
        self.usual_gap_ns.store(FIRST_GAP_NS, memory_order_relaxed)
        self.longest_gap_ns.store(FIRST_GAP_NS, memory_order_relaxed)

    def __dealloc__(self):
        tokens_free(&self.tokens)
        costs_free(&self.cost_alone)
        costs_free(&self.cost_shared)
        free(self.started_ns)
        free(self.watched)
        free(self.tallies)

    cdef void c_set_kind(self, int max_batch, bint thread_bound) noexcept nogil:
        """Say how large batches are, and whether each instance has its thread. Both held."""
        self.max_batch = max_batch
        self.batches = max_batch > 1
        self.thread_bound = thread_bound
        self.workers_only = thread_bound or self.hang_ns > 0 or self.streams

    cdef int c_make_histograms(self, int64_t most) except -1:
        """Have room for all that will be measured, of batches of up to ``most``; what has been measured is kept."""
        cdef int32_t sizes = bucket_index(most, SIZE_SHIFT) + 1 if most > 1 else 0
        cdef int32_t weights = bucket_index(most * WEIGHT_ONE, WEIGHT_SHIFT) + 1 if most > 1 else 0
        cdef size_t count = 2 * TIME_BUCKETS + sizes + weights
        cdef int64_t* before = self.tallies
        cdef int64_t* tallies
        if before != NULL and sizes <= self.sizes.bucket_count:
            return 0
        tallies = <int64_t*>calloc(count, sizeof(int64_t))
        if tallies == NULL:
            raise MemoryError
        self.tallies_bytes = count * sizeof(int64_t)
        self.tallies = tallies
        move_histogram(&self.queue_ns, tallies, TIME_BUCKETS, TIME_SHIFT)
        move_histogram(&self.run_ns, tallies + TIME_BUCKETS, TIME_BUCKETS, TIME_SHIFT)
        if sizes > 0 and self.sizes.bucket_count == 0:          # until now, all were batches of one
            self.sizes = Histogram(tallies + 2 * TIME_BUCKETS, 0, SIZE_SHIFT, self.requests_run, min(self.batches_run, 1))
            self.sizes.counts[0] = self.batches_run
            self.weights = Histogram(tallies + 2 * TIME_BUCKETS + sizes, 0, WEIGHT_SHIFT, self.requests_run * WEIGHT_ONE,
                                     min(self.batches_run, 1) * WEIGHT_ONE)
            self.weights.counts[bucket_index(WEIGHT_ONE, WEIGHT_SHIFT)] = self.batches_run
        move_histogram(&self.sizes, tallies + 2 * TIME_BUCKETS, sizes, SIZE_SHIFT)
        move_histogram(&self.weights, tallies + 2 * TIME_BUCKETS + sizes, weights, WEIGHT_SHIFT)
        free(before)
        return 0

    cdef int c_add_tokens(self, int32_t count) except -1:
        """Have so many tokens in all, of which the new ones are kept for instances to come."""
        cdef size_t size = count
        cdef atomic[uint8_t]* states = <atomic[uint8_t]*>calloc(size, sizeof(atomic[uint8_t]))
        cdef atomic[int64_t]* started_ns = <atomic[int64_t]*>calloc(size, sizeof(atomic[int64_t]))
        cdef Watched* watched = <Watched*>calloc(size, sizeof(Watched))
        cdef int32_t index
        if states == NULL or started_ns == NULL or watched == NULL:
            free(states)
            free(started_ns)
            free(watched)
            raise MemoryError
        self.desk.lock()                                        # and the GIL
        for index in range(self.tokens.count):
            started_ns[index].store(self.started_ns[index].load(memory_order_seq_cst), memory_order_seq_cst)
            watched[index] = self.watched[index]
        states = tokens_grow(&self.tokens, count, states)
        started_ns, self.started_ns = self.started_ns, started_ns
        watched, self.watched = self.watched, watched
        self.desk.unlock()
        free(states)
        free(started_ns)
        free(watched)
        return 0

    def make_room(self, tuple numbers, tuple vacant, int max_batch):
        """Have tokens for instances to come, which will have these numbers; return them. Engine._switch opens them.

        Nobody takes them until then, and what batches of ``max_batch`` cost can be noted. ``vacant``: tokens that have left
        and are nobody's any more, to be used again. Raises MemoryError: nothing has changed.
        """
        cdef int32_t before = self.tokens.count
        cdef int32_t count = before + max(len(numbers) - len(vacant), 0)
        cdef tuple tokens = (*vacant, *range(before, count))[:len(numbers)]
        cdef list all_numbers = [*self.numbers, *[0] * (count - before)]
        cdef list lives = [*self.lives, *[0] * (count - before)]
        cdef list held = [*self.held, *[None] * (count - before)]
        cdef c_bool is_larger
        for token, number in zip(tokens, numbers):
            all_numbers[token] = number
        made = tuple(all_numbers)
        self.c_make_histograms(max_batch)
        self.desk.lock()
        is_larger = costs_grow(&self.cost_alone, max_batch) and costs_grow(&self.cost_shared, max_batch)
        self.desk.unlock()
        if not is_larger:
            raise MemoryError
        if count > before:
            self.c_add_tokens(count)
        self.numbers = made
        self.held = held
        for token in tokens:
            lives[token] = lives[token] + 1
            token_keep(&self.tokens, token)
        self.lives = lives
        return tokens

    def numbers_in_service(self):
        """The numbers of the instances that serve, or should."""
        cdef int token
        return [self.numbers[token] for token in range(self.tokens.count) if not token_is_retired(&self.tokens, token)]

    def has_left(self, int index):
        """True if an instance serves no longer, and nobody is in it."""
        return self.tokens.states[index].load(memory_order_seq_cst) == LEFT

    def is_retired(self, int index, int life):
        """True once that life's instance serves no longer: it may still run a batch."""
        return self.lives[index] != life or token_is_retired(&self.tokens, index)

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

    def bound_by(self, object backend):
        """Have batches keep the bounds of a backend that pads to the longest request; called once, while building."""
        self.bounds = bounds_of(backend, self.max_batch)
        self.has_lengths = backend.length_of is not None and self.batches
        self.has_padding = len(backend.padding_counts) > 0

    def may_stream(self):
        """Say that its backends may emit chunks; called once, while building.

        No caller runs them: it would wait for a reader whom nobody knows, perhaps for itself.
        """
        self.streams = True
        self.workers_only = True

    def open_instance(self, int index):
        """Make an instance available: its backend is built. Not if it was retired meanwhile."""
        if token_hold(&self.tokens, index):
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
        Negative ``timeout_s``: no limit.
        """
        cdef int64_t deadline = FOREVER if timeout_s < 0 else now_ns() + <int64_t>(timeout_s * 1e9)
        cdef int outcome
        cdef tuple instance = (self, index, life)
        self.wanted.fetch_add(1, memory_order_seq_cst)
        try:
            outcome = wait_for(&self.workers, _has_retired, instance, deadline)
        finally:
            self.wanted.fetch_sub(1, memory_order_seq_cst)
            events_notify(&self.workers, 0x7fffffff)            # its worker leaves, too; and a wake-up may have come here
        return None if outcome == ANOTHER_LIFE else outcome == RETIRED

    def close(self):
        """Let the workers leave once nothing is queued."""
        self.life.store(CLOSING, memory_order_seq_cst)
        self.wanted.fetch_add(1, memory_order_seq_cst)          # from now on, a release wakes all: the queue may be empty
        events_notify(&self.workers, 0x7fffffff)

    def add_sharing(self):
        """Count a worker that is about to serve in any instance; return how ``serve`` will know it."""
        self.desk.lock()
        self.sharing += 1
        self.desk.unlock()
        return SHARING - self.era

    def next_sharing(self, bint replaces_all):
        """The same of one that a switch will count."""
        return SHARING - self.era - (1 if replaces_all else 0)

    def serve(self, int worker):
        """Work until the station is closed and empty, or does not need the worker; return None. The body of a worker thread.

        ``worker``: the token of the instance that is bound to this thread, or what ``add_sharing`` has returned.

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
        if self.wanted.load(memory_order_seq_cst) > 0:
            events_notify(&self.workers, 0x7fffffff)            # for retire() and steppers; for workers, once it closes

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
        # Where others sleep as well, who wait for a token, the one that was woken may be theirs: they raise `wanted` before they
        # sleep, so it is looked at afterwards.
        if self.wanted.load(memory_order_seq_cst) > 0:
            events_notify(&self.workers, 0x7fffffff)

    cdef void c_note_arrival(self, int64_t now) noexcept nogil:
        """Learn from a request that came, and forgive one caller who was expected back."""
        cdef int64_t latest = max(self.latest_arrival_ns.load(memory_order_relaxed),
                                  self.latest_answer_ns.load(memory_order_relaxed))
        cdef int64_t gap = now - latest
        cdef int64_t usual = self.usual_gap_ns.load(memory_order_relaxed)
        cdef int64_t longest = self.longest_gap_ns.load(memory_order_relaxed)
        cdef int32_t owed = self.owed.load(memory_order_relaxed)
        # A pause longer than half of a batch is no part of a burst: it says nothing about the gaps inside one, and who
        # was expected back has not come.
        if 0 <= gap < cost_of(&self.cost_alone, 1) // 2:
            self.usual_gap_ns.store(usual + (gap - usual) // 8, memory_order_relaxed)
            self.longest_gap_ns.store(gap if gap > longest else longest - (longest - gap) // 64, memory_order_relaxed)
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
    return RETIRED if token_retire(&station.tokens, index) else 0


@cython.final
cdef class Rule:
    """When a batch leaves, as it was configured."""

    def __init__(self, object rule, object preferred, double timeout_ms):
        if isinstance(rule, str):
            self.kind = _RULES[rule]
        else:
            self.kind = RULE_OBJECT
            self.decide = rule.decide
        if preferred is not None:  # sorted(preferred or ()) crashes Cython 3.3.0
            for size in sorted(preferred):
                self.preferred.push_back(size)
        self.timeout_ns = <int64_t>(timeout_ms * 1e6)


cdef object take_rule(Station station, Rule rule):
    """Have batches leave by a rule; return what is to be its ``rule_object``. Both held."""
    station.rule = rule.kind
    station.preferred.swap(rule.preferred)
    station.timeout_ns = rule.timeout_ns
    return rule.decide


cdef inline void move_histogram(Histogram* histogram, int64_t* counts, int32_t bucket_count, int32_t shift) noexcept:
    """Have a histogram count in more memory, which is all zeros where it was not counting yet."""
    cdef int32_t bucket
    for bucket in range(histogram.bucket_count):
        counts[bucket] = histogram.counts[bucket]
    histogram.counts = counts
    histogram.bucket_count = bucket_count
    histogram.shift = shift


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
    return waiting if front.states is None else waiting + front.states.parked


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
        said = "1 request is" if waiting == 1 else f"{waiting} requests are"
        return QueueFull(f"the pipe is full: {said} in flight, and its max_in_flight is {front.max_queue}")
    cdef int64_t waiting_bytes = _count_waiting_bytes(front) + front.reserved_bytes
    if front.max_queue_bytes > 0 and waiting_bytes + more_bytes > front.max_queue_bytes:
        said = (f"{waiting_bytes} bytes wait, the request has {more_bytes}, and its max_queue_bytes is "
                f"{front.max_queue_bytes}")
    else:
        said = "1 request waits" if waiting == 1 else f"{waiting} requests wait"
        said = f"{said}, and its max_queue is {front.max_queue}"
    return QueueFull(f"the queue of node {front.name!r} is full: {said}")
