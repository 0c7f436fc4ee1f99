# Station: one node's desk at one place: its tokens, its queue's ends, and what it has learned of arrivals and costs.
#
# Guarantees   E3: c_try_token. E4: c_push, c_notify, c_release_token. Knows no backend and no pipe, so that a worker which sleeps
#              here keeps neither alive. What Python calls (serve, fail_queued, give_up) is done by chapters further up.

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdlib cimport calloc, free
from libcpp.atomic cimport memory_order_acq_rel, memory_order_relaxed, memory_order_release, memory_order_seq_cst

from fastpipe.engine.batching cimport (
    DISPATCH, LATE, REASON_COUNT, TIMEOUT, WAIT_UNTIL, decide_adaptive, decide_greedy, decide_preferred, decide_timeout,
)
from fastpipe.engine.hanging cimport LOOKS
from fastpipe.engine.inbox cimport inbox_init, inbox_pop, inbox_push
from fastpipe.engine.parking cimport (
    FOREVER, Frame, atomic_thread_fence, enter_frame, events_leave, events_notify, events_prepare, events_sleep, is_hooked,
    leave_frame, now_ns, want_precise_timers,
)
from fastpipe.engine.ranking cimport Cursor, cursor_begin, cursor_pass, cursor_take, ranked_append, ranked_init, ranked_insert

from fastpipe.errors import QueueFull


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
