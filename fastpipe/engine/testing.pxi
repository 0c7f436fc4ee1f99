# For tests alone: hooks at the points of the engine, frozen time, the rules as a table; a staged list, tokens, costs and a
# histogram by themselves.
#
# Guarantees   Without FASTPIPE_TEST_HOOKS=1 in the environment hooks and frozen time are inert: a point costs the look at one word.

cimport cython
from libcpp.atomic cimport memory_order_seq_cst

from fastpipe.engine.batching cimport decide_adaptive, decide_greedy, decide_preferred, decide_timeout
from fastpipe.engine.costs cimport Costs, cost_note, cost_of, costs_free, costs_init
from fastpipe.engine.hanging cimport Watched, late_at_ns
from fastpipe.engine.histogram cimport Histogram, histogram_add, upper_edge
from fastpipe.engine.inbox cimport LINKS_ABOVE
from fastpipe.engine.lengths cimport LOOKED_AT, Bounds, Similar, choose_similar, is_chosen
from fastpipe.engine.parking cimport HAS_FUTEX, frozen_ns, hooked_points, now_ns
from fastpipe.engine.ranking cimport (
    Cursor, Ranked, Taken, cursor_begin, cursor_move, cursor_pass, next_of, ranked_append, ranked_init, ranked_insert, taken_init,
    taken_pop,
)
from fastpipe.engine.tokens cimport (
    Tokens, token_hold, token_keep, token_release, token_retire, token_try, tokens_free, tokens_init, tokens_take,
)

cdef extern from *:
    """
    #ifdef NDEBUG
    #define FASTPIPE_IS_DEBUG_BUILD 0
    #else
    #define FASTPIPE_IS_DEBUG_BUILD 1
    #endif
    """
    const bint IS_DEBUG_BUILD "FASTPIPE_IS_DEBUG_BUILD"

from os import environ

from fastpipe.errors import PipeError

is_debug_build = bool(IS_DEBUG_BUILD)   # with bounds checks and assertions, and not optimized: FASTPIPE_DEBUG=1
has_futex = bool(HAS_FUTEX)             # of Linux's kernel; else threads sleep in a table of the engine's own (sleeping.hpp)

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


cdef int act_at(uint32_t point) except -1:
    """Do what is hooked to a point; what it raises is raised here."""
    action = _actions.get(point)
    if action is not None:
        action()
    return 0


cdef int act_at_in(uint32_t point, Turn turn) noexcept:
    """The same where nothing may be raised: the turn's worker ends later, but before its next batch."""
    try:
        act_at(point)
    except BaseException as error:
        if turn is not None and turn.is_workers:
            turn.death = error
        else:
            report(error, _actions.get(point))
    return 0


cdef c_bool act_without_gil(uint32_t point, PyObject* turn) noexcept with gil:
    """The same for a worker's loop; True if it is to end."""
    act_at_in(point, <Turn>turn)
    return (<Turn>turn).death is not None


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
    load.longest_gap_ns = load_fields.pop("longest_gap_ns", 0)
    load.timeout_ns = load_fields.pop("timeout_ns", 0)
    load.cost_alone_ns = load_fields.pop("cost_alone_ns", 0)
    load.cost_shared_ns = load_fields.pop("cost_shared_ns", 0)
    load.saving_ns = load_fields.pop("saving_ns", 0)
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
    elif rule != "preferred":
        raise ValueError(f"no rule is named {rule!r}")
    else:
        verdict = decide_preferred(&load, sizes.data(), <int32_t>sizes.size())
    return _ACTIONS[verdict.action], _REASONS[verdict.reason], verdict.until_ns, verdict.size


def similar(list lengths, int most_requests, int64_t most_padded, double most_padding):
    """Which of some lengths, the oldest first, share a batch: (their positions, whether it is full)."""
    cdef int32_t[LOOKED_AT] given
    cdef Bounds bounds = Bounds(most_requests, most_padded, most_padding)
    cdef Similar chosen
    cdef int32_t position
    if not 0 < len(lengths) <= LOOKED_AT:
        raise ValueError(f"from 1 to {LOOKED_AT} lengths, got {len(lengths)}")
    for position, length in enumerate(lengths):
        given[position] = length
    choose_similar(given, <int32_t>len(lengths), &bounds, &chosen)
    positions = []
    own = []
    for position in range(<int32_t>len(lengths)):
        if is_chosen(&chosen, position):
            positions.append(position)
            own.append(lengths[position])
    if (chosen.count, chosen.own, chosen.longest) != (len(own), sum(own), max(own)):
        raise AssertionError("what was counted is not what was chosen")
    return positions, chosen.is_full


cdef int _hold(c_bool invariant) except -1:
    if not invariant:                                           # assert is silent in a release build
        raise AssertionError("the list breaks an invariant of ranking.pxd")
    return 0


def late_at(int64_t hang_ns, list looks):
    """When a batch counts as late after each of some looks at its instance: (when it began, when the look was meant, when it was)."""
    cdef Watched watched
    watched.started_ns = watched.since_ns = watched.pauses = 0
    cdef list late_at = []
    for started_ns, asked_ns, now_ns in looks:
        late_at.append(late_at_ns(&watched, started_ns, hang_ns, now_ns, asked_ns))
    return late_at


@cython.final
cdef class CountedValues:
    """For tests: a histogram alone."""

    cdef vector[int64_t] buckets
    cdef Histogram histogram

    def __cinit__(self, int shift, int bucket_count):
        self.buckets.resize(bucket_count)
        self.histogram = Histogram(self.buckets.data(), bucket_count, shift, 0, 0)

    def add(self, int64_t value):
        """Count a value."""
        histogram_add(&self.histogram, value)

    @property
    def counts(self):
        """(greatest value that is too small for the bucket, greatest value of the bucket, count), of those that have some."""
        cdef list found = []
        for bucket, count in enumerate(self.buckets):
            if count:
                below = upper_edge(bucket - 1, self.histogram.shift) if bucket else 0
                found.append((below, upper_edge(bucket, self.histogram.shift), count))
        return found

    @property
    def sum(self):
        return self.histogram.sum

    @property
    def most(self):
        return self.histogram.most


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
        cdef Taken taken
        taken_init(&taken)
        cursor_begin(&cursor, &self.ranked)
        while cursor.at != NULL and taken.count < count:
            if cursor.at.bucket == bucket:
                cursor_move(&cursor, &self.ranked, &taken)
            else:
                cursor_pass(&cursor, &self.ranked)
        cdef list numbers = []
        for _ in range(taken.count):
            numbers.append(taken_pop(&taken).arrival_ns)
        return numbers

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


@cython.final
cdef class LoneTokens:
    """For tests: the tokens of so many instances alone, all of them free at first."""

    cdef Tokens tokens
    cdef vector[int64_t] uses           # by token, how often it was held: its holder's, so no atomic

    def __cinit__(self, int count):
        if not tokens_init(&self.tokens, count):
            raise MemoryError
        self.uses.resize(count)
        for index in range(count):
            token_hold(&self.tokens, index)
            token_release(&self.tokens, index)

    def __dealloc__(self):
        tokens_free(&self.tokens)

    @property
    def idle(self):
        return self.tokens.idle.load(memory_order_seq_cst)

    @property
    def used(self):
        """How often some token was held by use()."""
        return sum(self.uses)

    def take(self):
        """Any free one, or -1."""
        return tokens_take(&self.tokens)

    def take_this(self, int index):
        return token_try(&self.tokens, index)

    def release(self, int index):
        token_release(&self.tokens, index)

    def retire(self, int index):
        return token_retire(&self.tokens, index)

    def keep(self, int index):
        token_keep(&self.tokens, index)

    def hold(self, int index):
        return token_hold(&self.tokens, index)

    def use(self, int rounds):
        """Take and release one so many times without the GIL; how often there was one."""
        cdef int64_t found = 0
        cdef int index
        with nogil:
            for _ in range(rounds):
                index = tokens_take(&self.tokens)
                if index >= 0:
                    self.uses[index] += 1
                    found += 1
                    token_release(&self.tokens, index)
        return found


@cython.final
cdef class LoneCosts:
    """For tests: a table of costs alone."""

    cdef Costs costs

    def __cinit__(self, int max_batch):
        if not costs_init(&self.costs, max_batch):
            raise MemoryError

    def __dealloc__(self):
        costs_free(&self.costs)

    def note(self, int size, int64_t elapsed_ns):
        cost_note(&self.costs, size, elapsed_ns)

    def of(self, int size):
        return cost_of(&self.costs, size)
