# Stepping: one request, node after node, on the thread that calls; for ``eager`` and the debugger.

cimport cython
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst

from fastpipe.engine.parking cimport SET, innermost_frame, now_ns
from fastpipe.engine.tokens cimport tokens_take

cdef enum:
    HAS_ENDED = 1
    IS_FOR_WORKERS = 2
    FIRST_TOKEN = 3

cdef enum:                  # beside tokens
    NO_TOKEN = -1           # it needs none
    NOT_HERE = -3           # only workers run in the node's instances
    HAS_FAILED = -4         # what is asked of a visit could not be answered


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
        cdef Visit visit
        cdef list found = []
        for visit in self.turn.arrived:
            if not is_dead(visit):
                found.append((visit.node.name, part_of(visit.walk), request_of(self.engine, visit)))
        return found

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
        check_process(self.engine)
        while self.turn.arrived:
            visit = <Visit>self.turn.arrived.pop(0)
            if is_dead(visit):
                continue
            try:
                ask_filter(self.engine, visit, self.turn)
            except BaseException as error:
                fail_visit(self.engine, visit, with_place(error, visit.node), self.turn)
            try:
                while self.turn.ready:
                    self.c_run(take_last(self.turn.ready))
            except BaseException:                               # a signal while it waited, or the observer
                self.cancel()
                raise
            finally:
                settle(self.engine, self.turn)                  # others' requests, if this one has shed them
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
        return self.walk is not None and cancel_walk(self.engine, self.walk) == 1

    cdef int c_run(self, Visit visit) except -1:
        """Run a visit in an instance, and send it on or fail it."""
        cdef Station station
        cdef Engine engine = self.engine
        cdef int64_t started
        cdef int index
        self.failure = None
        if visit.is_in_sequence and not self.c_wait_for_turn(visit):
            note_dropped(visit)
            return 0
        if visit.node.twins is not None and not choose_twin(engine, visit, self.turn):
            return 0                                            # now: where those before it have left the state
        station = visit.node.station
        index = self.c_instance(visit)
        started = now_ns()
        if index == HAS_FAILED:
            return 0
        if index == NOT_HERE:
            visit.stepper = self                                # what becomes of it is left with the visit, not acted upon
            self.c_run_on_worker(visit)
            visit.stepper = None
        elif index == NO_TOKEN:                                 # nobody waits for it any more, or the node is lost
            if station.lost is not None:
                fail_visit(engine, visit, lost_error(visit, station.lost), self.turn)
            else:
                note_dropped(visit)
            return 0
        else:
            _run_here(self, visit, index)
        failure = self.failure
        self.failure = None
        if failure is None and self.c_is_over(visit):           # a part whose time is over has not run, and the whole ends
            if visit.is_in_sequence:
                end_turn(engine, visit, False, self.turn)
            if has_run_here(visit):
                note_dropped(visit)
            return 0
        if self.turn.observer is not None:
            self.turn.observer.ran(visit.node.name, part_of(visit.walk), visit.request, failure, (now_ns() - started) / 1e9)
        if failure is None:
            send_on(engine, visit, self.turn)
        else:
            fail_visit(engine, visit, failure, self.turn)
        return 0

    cdef c_bool c_wait_for_turn(self, Visit visit) except *:
        """Wait until those before it in its sequence have run; False: nobody waits for the visit any more. Serves signals."""
        cdef Engine engine = self.engine
        cdef Position position = position_of(visit)
        cdef tuple wait = backends_here(engine, self.walk) if innermost_frame() != NULL else None
        if wait is not None:
            engine.waits_inside.append(wait)
        try:
            while position is not None and position.sequence is not None and position.sequence.first is not position:
                if self.c_is_over(visit):
                    return False
                error = None if wait is None else find_call_loop(engine, wait)
                if error is not None:
                    raise error
                self.returned.store(0, memory_order_release)
                position.stepper = self
                wait_for_word(&self.returned, self.c_slice_end())
                position.stepper = None
        finally:
            if position is not None:
                position.stepper = None
            if wait is not None:
                take_out(engine.waits_inside, wait)
        return not is_dead(visit)

    cdef int c_run_on_worker(self, Visit visit) except -1:
        """Let the node's own thread run a visit, and wait until it has, or until it cannot. Serves signals."""
        self.returned.store(0, memory_order_release)
        self.engine.steppers[<object>self] = self               # tells workers to look for visits to be sent back
        try:
            if not enqueue(self.engine, visit, self.turn, True):
                return 0
            start_called(self.engine, self.turn)
            while self.returned.load(memory_order_acquire) != SET and not self.c_is_over(visit):
                wait_for_word(&self.returned, self.c_slice_end())
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
            expire_walk(self.engine, self.walk, self.turn)
        return is_dead(visit)

    cdef int c_instance(self, Visit visit) except -2:
        """Ask of a visit what a queue would, wait for a free instance, and take its token; or say why not. Serves signals."""
        cdef Station station = visit.node.station
        cdef int64_t version
        cdef int index
        while not station.thread_bound:
            version = station.version
            if station.batches:
                try:                                            # one that is too heavy fails
                    weight_alone(visit, self.turn)
                except BaseException as error:
                    fail_visit(self.engine, visit, with_place(error, visit.node), self.turn)
                    return HAS_FAILED
            index = self.c_token(visit)
            if index == NO_TOKEN or (index != NOT_HERE and station.version == version):
                return index
            if index != NOT_HERE:                               # other instances serve now, which have not been asked
                station.c_release_token(index)
        return NOT_HERE

    cdef int c_token(self, Visit visit) except -2:
        """Wait for a free instance and take its token. Serves signals."""
        cdef Station station = visit.node.station
        cdef Engine engine = self.engine
        cdef int outcome = 0
        cdef tuple wait = backends_here(engine, self.walk) if innermost_frame() != NULL else None
        if wait is not None:
            engine.waits_inside.append(wait)
        station.waiting_alone.append(visit)
        station.wanted.fetch_add(1, memory_order_seq_cst)
        try:
            while True:
                outcome = wait_for(&station.workers, _has_token, (self, visit), self.c_slice_end())
                if outcome != 0:
                    return NO_TOKEN if outcome == HAS_ENDED else NOT_HERE if outcome == IS_FOR_WORKERS else outcome - FIRST_TOKEN
                error = None if wait is None else find_call_loop(engine, wait)
                if error is not None:
                    raise error
        finally:
            if wait is not None:
                take_out(engine.waits_inside, wait)
            take_out(station.waiting_alone, visit)
            station.wanted.fetch_sub(1, memory_order_seq_cst)
            if outcome < FIRST_TOKEN:
                station.c_notify()                              # a wake-up that was a worker's may have come here


cdef int _has_token(object waiting) except -1:
    """FIRST_TOKEN and the number of a token that was taken; HAS_ENDED: the visit needs none; IS_FOR_WORKERS; 0: it waits."""
    cdef Stepper stepper = (<tuple>waiting)[0]
    cdef Visit visit = (<tuple>waiting)[1]
    cdef int index
    if visit.node.station.thread_bound:
        return IS_FOR_WORKERS
    index = tokens_take(&visit.node.station.tokens)
    if index >= 0:
        return FIRST_TOKEN + index
    return HAS_ENDED if visit.node.station.lost is not None or stepper.c_is_over(visit) else 0


cdef Stepper new_stepper(Engine engine, object request, object observer, Terms terms, object entry):
    cdef Stepper stepper = Stepper.__new__(Stepper)
    stepper.engine = engine
    stepper.turn = Turn.__new__(Turn)
    stepper.turn.stepper = <PyObject*>stepper
    stepper.turn.observer = observer
    stepper.walk = admit(engine, entry_for(engine, request, entry), request, SINK_CALLER, None, terms, now_ns())
    stepper.walk.lister = <PyObject*>stepper.turn
    start_walk(engine, stepper.walk, stepper.turn)
    return stepper


cdef int run_in_steps(Engine engine, Walk walk, object observer) except -1:
    """Take all steps of a walk that has been admitted, on this thread."""
    cdef Stepper stepper = Stepper.__new__(Stepper)
    stepper.engine = engine
    stepper.turn = Turn.__new__(Turn)
    stepper.turn.stepper = <PyObject*>stepper
    stepper.turn.observer = observer
    stepper.walk = walk
    walk.lister = <PyObject*>stepper.turn
    start_part(walk, stepper.turn)
    stepper.run()
    return 0


cdef int _run_here(Stepper stepper, Visit visit, int index) except -1:
    """Run a visit on this thread, in an instance whose token is held; release that."""
    cdef Station station = visit.node.station
    cdef Engine engine = stepper.engine
    station.running.fetch_add(1, memory_order_relaxed)
    station.run_by_caller += 1
    try:
        if visit.walk.has_room:
            leave_room(visit.walk)
            tell_of_room(station)
        start_called(engine, stepper.turn)
        visits = [visit]
        thread = PyThread_get_thread_ident()
        before = engine.steppers.get(thread)
        engine.steppers[thread] = stepper
        try:
            visit.stepper = stepper
            run_batch(engine, station, <Instance>visit.node.instances[index], visits, stepper.turn)
        finally:
            visit.stepper = None
            if before is None:
                del engine.steppers[thread]
            else:
                engine.steppers[thread] = before
    finally:
        station.running.fetch_sub(1, memory_order_relaxed)
        station.c_release_token(index)
    return 0
