"""The engine: walks requests through a graph of nodes, on the threads that are already there.

    caller ── pipe(request) ──► Walk ──► Node: filter ──► instance free? ──yes──► run it here, go on to the next node
      ▲                                                        │
      │                                                        no, or the rule waits for company, or thread_bound
      │                                                        ▼
      └── parked on Walk.word ◄── finish ◄── a worker ◄── Station: inbox, staged tickets, tokens, rule

Words: a *walk* is one admitted request on its way; a *visit* is its turn at one node (a fan-out makes more of them); a
*station* is a node's queue, tokens and batching; a *turn* is what one hold of the GIL has produced and not handed out. A
node whose instances are at several places (GPUs) has a *twin* with a station of its own for each; see choose_twin.

Invariants, each held by the code that is named:
  E1  A walk ends exactly once: Walk.c_end, one compare-and-swap on ``outcome``. Only its winner touches the caller's dict.
  E2  A visit is in one place at a time. A queued one is owned by its ticket (enqueue INCREFs, whoever pops takes the
      reference over).
  E3  At most one batch runs in an instance: whoever runs one holds the instance's token (tokens.pxd).
  E4  No request waits while it could run: a push raises ``queued`` and then looks at ``idle``; a release raises ``idle``
      and then looks at ``queued``; both sequentially consistent, so at least one of them sees the other and notifies.
      A worker announces itself before it looks (EventCount), so a notification between look and sleep is not lost.
  E5  Nobody is overtaken, but by priority: a caller takes a token only if nothing is queued; workers take the oldest
      first, where a priority counts as having come earlier or later (ranking.pxd). Whoever is of another bucket, or too
      different in length (lengths.pxd), is passed by, but never the oldest, unless its bucket can still wait.
      Nor is anybody who waits to be let in: whoever frees a place gives it to the first of the line, under the same hold
      of the GIL (tell_of_room), so there is never room for the first of a line.
  E6  User code is entered in enter_user_code and, a backend's forward, in run_backend, with no mutex held.
  E7  The GIL is never taken while a mutex is held; holders of the GIL may wait for a mutex, which is held for moments.
  E8  A batch that may hang is given up or comes back, not both: whoever changes Station.started_ns from the time at which
      it began has decided (end_batch, Watchdog.c_look). A worker that was given up touches no token, no queue and no
      request any more; what its turn has not handed out is the watchdog's.
  E9  An outcome reaches its owner: from Walk.c_end on nothing needs memory that may be lacking (lists of walks are linked
      through them), and a Python call that is ended in the middle, by a signal or an exception from another thread, is
      made again; what ended it is raised where the thread can be interrupted (note_interrupt). So a function that is
      ``noexcept`` raises nothing inside either: what could is in a ``try`` that ends a walk, or goes on without it.
      The list of live walks owns them: nobody else may.
  E10 A chunk is handed on once, before the end of its request (streams, chunks). Whoever waits for room for one holds a
      token, but no caller's thread; whatever ends the request ends that wait (Walk.c_end, then ChunkStream.c_walk_ended).
  E11 Of one sequence at a node (sequences), one request is in its queue or in a batch, the first of those that have a position;
      whatever ends a request, or its batch, gives up its position, and the next is called (leave_sequences, end_turn).

The models in proofs/ check E1, E4 and close().

The graph is walked under the GIL: that is what guards the fields marked GIL in _core.pxd. A worker takes the GIL once
per batch, or less often: as long as a batch can leave at once it goes on in the same hold.

Chapters, from the top. Each is a text that is included below, one module with this page: a call from one to the other is a
direct one. Each opens with its contract. A name with an underscore is its chapter's own. The types, with who owns which
field, are in _core.pxd; what is pure (the inbox, the waiting, the order, the rules, the tokens, the costs) is in engine/*.pxd.

    switching   from one batch to the next, a node runs in other instances
    watching    what is done when time is over, or a batch does not end
    stepping    one request node by node, for ``eager`` and the debugger
    serving     what a worker does
    streams     chunks of answers: how a backend emits them, and how they are read
    caching     an answer that is there already, or on its way
    running     a batch in an instance; what its failure means for each request
    sequences   requests of one sequence take turns, and leave each other a state
    admission   how a request gets in: checks, a place in line, its walk
    queueing    what is ready goes to its station's queue
    routing     which way a request takes: filters, joins, maps, sub-graphs, restarts
    outcomes    how a walk ends, and how whoever waits gets to know
    futures     RequestFuture and asyncio, whatever ends a call in the middle
    handles     what submit() hands out: a future whose lock is made when somebody asks for it
    chunks      what was emitted and not read, and how a reader gets to know
    compiled    nodes, the ways in and out of them
    loops       backends that wait for each other's calls
    states      what a node keeps for sequences, and whose turn it is
    limits      leaving a queue, and the books of those that have a limit
    lines       who waits to be let in
    clocks      time limits, and when a batch is late
    measuring   what is counted of each request and batch, and how it is read
    forming     what leaves as a batch
    lengths     the same where it is padded to its longest request
    events      what happens, noted for a timeline
    answers     what a node's cache keeps
    contents    what a request is, as a key
    failures    the error of each request
    notices     what the log is to say
    station     tokens, the queue's ends, what was learned
    contexts    the caller's context variables, on other threads
    traces      which requests a tracer follows, and what it is told
    walks       walks, visits, and their dicts
    turns       what a hold of the GIL has produced
    threads     how one starts and ends, even without memory
    waiting     who may wait, and how, as signals are to be served meanwhile
    testing     hooks, frozen time
    user_code   the two ways into it
    words       states, kinds, constants

The way of a request: __call__ here; entry_for, admit and start_walk (admission); ask_filter (routing); run_ready and
run_batch, then send_on (running); advance, and ask_filter for each node that is next (routing); at a leaf, finish_walk
(outcomes).

Calls go down, so that a request is read from the top to the bottom, but for two kinds (tests/house/test_imports.py): a
method that Python calls stands with its class, and is done by a chapter above (Station.serve, Walk.wait); and an end may
have something begin: who is let in (start_called), or the whole whose last part has ended (part_ended).
"""

from libc.stdlib cimport calloc, free
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed

from fastpipe.engine.histogram cimport TIME_BUCKETS, TIME_SHIFT
from fastpipe.engine.parking cimport (
    FOREVER, SET, is_another_inside, is_hooked, is_inside, now_ns,
)

from fastpipe.errors import PipeClosed, PipeError, in_brief, nearest


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
        self.built_ns = now_ns()
        self.latency_ns.shift = TIME_SHIFT
        self.latency_ns.bucket_count = TIME_BUCKETS
        self.latency_ns.counts = <int64_t*>calloc(TIME_BUCKETS, sizeof(int64_t))
        if self.latency_ns.counts == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.latency_ns.counts)

    def _obey(self, object keys):
        """Have keys of a caller's own dict mean something to the engine; called once, before the graph is opened."""
        self.obeys_node_name = "node_name" in keys
        self.ignored_keys = tuple([key for key in _STEERING_KEYS if key not in keys])

    def _open(self, graph, list nodes, list stations, object root_names, object hidden_names):
        """Take over a built graph; requests may come from now on, at any node but the hidden ones."""
        for position, station in enumerate(stations):
            (<Station>station).engine = <void*>self
            (<Station>station).position = position
        self.graph = graph
        self.nodes = tuple(nodes)
        self.node_named = {(<Node>node).name: node for node in nodes if (<Node>node).name not in hidden_names}
        self.root_names = tuple(root_names)
        self.open_to_all = self.node_named if self.obeys_node_name else {name: self.node_named[name] for name in root_names}
        self.names_leaf = graph.has_several_leaves
        self.stations = stations
        self.only_entry = entry_at(self, self.node_named[self.root_names[0]]) if len(self.root_names) == 1 else None

    def _switch(self, tuple switches, object made_of):
        """Have nodes serve with other instances, all from one moment on; ``made_of`` is what is configured now.

        Raises PipeClosed: nothing has changed. Whatever else is raised hit this thread in the middle, and all is done.
        """
        switch_stations(self, switches, made_of)

    def _check_may_switch(self):
        """Raise what a caller of swap() is to see before anything is built."""
        check_process(self)
        check_may_wait(self)
        if self._is_inside():
            raise PipeError("swap() and resize() wait for the batches that run in the old instances, and this is called from inside "
                            "one of the pipe's own backends: call it from another thread, and do not wait for that in here")
        if self.closing:
            raise PipeClosed("the pipe is closed")

    def _entry_at(self, int index):
        """Where requests enter at the node of that index."""
        return entry_at(self, <Node>self.nodes[index])

    # ---- calls -------------------------------------------------------------------------------------------------

    # The first line is the signature in the form that `inspect` and `help` read: a slot of C has none of its own.
    def __call__(self, request, *, timeout=None, priority=0, bint eager=False, entry=None):
        """__call__($self, request, *, timeout=None, priority=0, eager=False, entry=None)\n--\n
        Run one request, or a list of them, to the end; return what was given.

        The answer is written into the request's own dict: the result under ``"result"``. Thread-safe; blocks.

        ``timeout``: seconds from now until the answer; then the request fails with RequestTimeout, and if no backend has
        it yet none will. Default: the pipe's. ``priority``: lower goes first in every queue; one step is worth 100 ms of
        waiting, so that nobody waits for ever. ``eager``: everything on this thread, node after node, in batches of one
        (only thread-bound backends run on their own thread). The same answers, slower: for a breakpoint in a backend, or a
        traceback without other requests in it. ``entry``: the name of the node where the request, or each of a list,
        enters; any node. Default: the root; of several, that which ``request["node_name"]`` names.

        Raises:
            Exception: whatever a backend raised for this request, with a note that says where; for a list, one
                ExceptionGroup.
            RequestTimeout, QueueFull: it took too long; a node's queue is full (see ``when_full``).
            PipeClosed, ForkedPipe: the pipe takes no requests (any more).
            UnknownNode: ``request["node_name"]`` is needed to choose a root, or names none; no node is named ``entry``.
        """
        cdef Walk walk
        cdef Turn turn
        cdef Terms terms = None
        if timeout is not None or priority != 0 or self.timeout_ns >= 0:
            terms = checked_terms(self, timeout, priority)
        if eager:
            return self._call_eager(request, terms, entry)
        if not isinstance(request, dict):
            return self._call_many(request, terms, entry)
        check_may_wait(self)
        turn = Turn.__new__(Turn)
        walk = admit(self, entry_for(self, request, entry), request, SINK_CALLER, None, terms, now_ns())
        walk.lister = <PyObject*>turn
        start_walk(self, walk, turn)
        run_ready(self, turn)
        if walk.word.load(memory_order_acquire) != SET or turn.interrupt is not None:
            try:
                turn.c_raise_interrupt()
                if not wait_inside(self, walk, walk.deadline_ns):
                    expire_walk(self, walk, turn)
                    turn.c_raise_interrupt()
            except BaseException:
                cancel_walk(self, walk)
                raise
        if walk.error is not None:
            raise walk.error
        return request

    def _call_eager(self, requests, Terms terms, name):
        cdef Stepper stepper
        cdef list errors = []
        check_may_wait(self)
        if is_another_inside(current_greenlet()):               # it has the thread's stepper, or an instance
            raise PipeError("an eager call is not possible while another greenlet of this thread is inside a backend. "
                            + _GREENLET_ADVICE)
        if isinstance(requests, dict):
            stepper = new_stepper(self, requests, None, terms, name)
            stepper.run()
            if stepper.walk.error is not None:
                raise stepper.walk.error
            return requests
        if not isinstance(requests, (list, tuple)):
            entry_for(self, requests, name)                     # says what a request is
        for request in requests:                                # all mistakes before the first is admitted
            entry_for(self, request, name)
        for index, request in enumerate(requests):
            try:
                stepper = new_stepper(self, request, None, terms, name)
            except PipeClosed:
                raise
            except Exception as refused:
                collect_error(errors, refused, index, len(requests))
                continue
            stepper.run()
            collect_error(errors, stepper.walk.error, index, len(requests))
        raise_errors(errors, len(requests))
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
        cdef int64_t entered_ns = now_ns()                              # of all: those behind wait while others get room
        check_may_wait(self)
        if not isinstance(requests, (list, tuple)):
            entry_for(self, requests, name)                     # says what a request is
        entries = []
        for request in requests:                                # all mistakes before the first is admitted
            entries.append(entry_for(self, request, name))
        walks = [None] * len(entries)                                   # now: who is admitted must be found in it
        try:
            for index, (entry, request) in enumerate(zip(entries, requests)):
                try:
                    walks[count] = admit(self, entry, request, SINK_CALLER, None, terms, entered_ns)
                    (<Walk>walks[count]).lister = <PyObject*>turn
                    count += 1
                except PipeClosed:                                      # nothing that follows has a chance
                    raise
                except Exception as error:                              # no room, or no time left
                    refused[index] = error
                    continue
                if (<Entry>entry).line is not None:             # waiting for room, workers must have something to do
                    start_walk(self, <Walk>walks[count - 1], turn)
                    enqueue_all(self, turn)
                    settle(self, turn)                          # others' requests, which it has shed
            for index in range(count):
                walk = <Walk>walks[index]
                if walk.entry.line is None:
                    start_walk(self, walk, turn)
            if len(turn.ready) == 1:
                run_ready(self, turn)
            elif turn.ready:
                visit = <Visit>turn.ready[0]
                enqueue_all(self, turn)
                help_out(visit.node.station, <Walk>walks[count - 1], turn)
            settle(self, turn)
            turn.wake()
            turn.c_raise_interrupt()
            for index in range(count):
                walk = <Walk>walks[index]
                if not wait_inside(self, walk, walk.deadline_ns):
                    expire_walk(self, walk, turn)
                    turn.c_raise_interrupt()
        except BaseException:                                           # closed in the middle, a signal, no memory
            for index in range(count):
                cancel_walk(self, <Walk>walks[index])
            settle(self, turn)                                          # others' requests, which it has shed
            turn.wake()
            raise
        let_in = iter(walks)
        for index in range(len(entries)):
            error = refused[index] if index in refused else (<Walk>next(let_in)).error
            collect_error(errors, error, index, len(entries))
        raise_errors(errors, len(entries))
        return requests

    def _submit(self, request, timeout, priority, name=None):
        """Start a request and return the ``RequestFuture`` of its outcome."""
        future = <FutureCore?>_future_class()
        start_detached(self, request, request, SINK_FUTURE, future, checked_terms(self, timeout, priority), name, False)
        return future

    def _start_async(self, request, loop, future, Terms terms, name=None, given=None, bint is_patient=False):
        """Start a request whose outcome goes to an ``asyncio.Future`` of ``loop``: its walk, or who waits for room for it.

        ``given``: a copy of the dict as it was when it was handed in; None: it is handed in now. ``is_patient``: as of _start.
        """
        given = request if given is None else given
        return start_detached(self, request, given, SINK_ASYNCIO, (loop, future), terms, name, is_patient)

    def _start(self, request, timeout, priority, name=None, bint is_patient=False):
        """Start a request and return its walk, to be waited for. ``is_patient``: wait for room whatever ``when_full`` says."""
        return start_detached(self, request, request, SINK_CALLER, None, checked_terms(self, timeout, priority), name, is_patient)

    def _start_stream(self, request, timeout, priority, name, Py_ssize_t limit):
        """Start a request whose chunks threads read; its reader. At most ``limit`` of them wait to be read."""
        cdef StreamReader reader = new_reader(self, limit)
        reader.stream.reader_thread = PyThread_get_thread_ident()
        start_detached(self, request, request, SINK_STREAM, reader.stream, checked_terms(self, timeout, priority), name, False)
        return reader

    def _start_astream(self, request, given, loop, task, Mailbox mailbox, Terms terms, name, Py_ssize_t limit):
        """The same for a coroutine of ``loop``, in the weakly referenced ``task``; it may have to wait for room."""
        cdef StreamReader reader = new_reader(self, limit)
        reader.stream.loop = loop
        reader.stream.mailbox = mailbox
        reader.stream.reader_task = task
        started = start_detached(self, request, given, SINK_STREAM, reader.stream, terms, name, False)
        if type(started) is Waiter:
            reader.stream.waiter = <Waiter>started
        return reader

    def _leave_streams(self, task):
        """A task is about to wait for the end of all requests: it reads no stream meanwhile."""
        leave_streams(self, task)

    def _terms(self, timeout, priority):
        return checked_terms(self, timeout, priority)

    def _run_parts(self, Entry entry, list splits, bint keeps_failures, list requests, list reasons=None):
        """Run the parts of several requests through the graph at ``entry`` from inside a backend; answers, or exceptions, in
        order. Once a part has failed, the rest of its request's are dropped, unless failures are kept. ``requests``: whose
        parts they are. ``reasons`` gets, for each of them, what its why_no_result() is if that is its parts' doing."""
        cdef Turn turn = Turn.__new__(Turn)
        cdef list walks = []
        cdef list answers = []
        cdef Walk walk
        cdef Stepper outer = <Stepper>self.steppers.get(PyThread_get_thread_ident()) if self.steppers else None
        cdef int start = 0
        cdef list own
        cdef Progress progress = None
        if self.gave_up:                                                # closing goes on with what has begun; this not
            raise PipeClosed("the pipe was closed before the request ended")
        for parts in splits:
            for part in parts:
                walks.append(new_walk(self, entry, part, SINK_CALLER, None))
        if is_in_company():
            turn.is_elsewhere = True
        if turn.is_elsewhere or self.tracer is not None:
            give_contexts(walks, splits, requests)
        progress = give_streams(walks, splits, requests)
        for walk in walks:                                              # no code of users may run in here
            walk.is_part = True
            walk.lister = <PyObject*>turn
            self.accepted += 1
            link_walk(self, walk)
        try:
            if outer is not None:                                       # one after the other, on this thread
                for walk in walks:
                    run_in_steps(self, walk, outer.turn.observer)
            if outer is None:
                for walk in walks:
                    start_part(walk, turn)
            ask_filters(self, turn)
            if len(turn.ready) > 1:
                enqueue_all(self, turn)
            run_ready(self, turn)
            turn.c_raise_interrupt()
            for parts in splits:
                own = walks[start:start + len(parts)]
                start += len(parts)
                for walk in own:
                    while not wait_inside(self, walk, now_ns() + CALL_LOOP_SLICE_NS):
                        if cancelled():                         # nobody waits for the whole any more
                            cancel_all(self, walks)
                        if progress is not None:
                            progress.c_look()
                    if walk.error is not None and not keeps_failures:
                        cancel_all(self, own)
                ended = []
                for walk in own:
                    ended.append(walk.request if walk.error is None else walk.error)
                answers.append(ended)
                if reasons is not None:
                    reasons.append(why_of_parts(own))
        except BaseException:
            cancel_all(self, walks)
            settle(self, turn)
            turn.wake()
            raise
        finally:
            if progress is not None:
                progress.c_look()
        return answers

    # ---- life --------------------------------------------------------------------------------------------------

    def _refuse_new(self):
        """Take no more requests; True if this is the first time."""
        if is_hooked(AT_CLOSE):
            act_at_in(AT_CLOSE, None)
        first = not self.closing
        self.closing = True
        if first:
            for station in self.stations:
                (<Station>station).drain()
            for entry in list(self.entries.values()):           # those who wait to be let in are refused
                if (<Entry>entry).line is not None:
                    (<Entry>entry).line.c_turn_all_away()
                    (<Entry>entry).inner_line.c_turn_all_away()
            start_called(self, None)
        return first

    def _wait_drained(self, double timeout_s):
        """Wait until no request is in flight; True if so. Negative: no limit. Serves signals."""
        cdef int64_t deadline = FOREVER if timeout_s < 0 else now_ns() + <int64_t>(timeout_s * 1e9)
        leave_streams(self, None)
        return wait_for(&self.drained, _is_drained, self, deadline) != 0

    def _fail_rest(self, str why):
        """Fail, each with a PipeClosed of its own, whatever is still in flight: queued, running, or between nodes."""
        cdef Turn turn = Turn.__new__(Turn)
        cdef Walk walk
        self.gave_up = True                                     # first: parts admitted before are failed below
        while self.newest != NULL:
            walk = <Walk>self.newest                            # keeps it alive: its last owner may be a queue
            fail_walk(self, walk, closed_error(why), turn)
        settle(self, turn)
        turn.wake()
        for station in self.stations:
            (<Station>station).fail_queued(why)
        turn.c_raise_interrupt()

    def _close_stations(self):
        for station in self.stations:
            (<Station>station).close()
            if (<Station>station).cache is not None:
                (<Station>station).cache.clear()
            if (<Station>station).states is not None:
                (<Station>station).states.clear()
        if self.clock is not None:
            self.clock.stop()

    def _set_gate(self, int max_in_flight, str when_full):
        """Limit how many requests may be in flight; called once, before the graph is opened."""
        self.gate = Station(None, 1, 1, False, "greedy", (), 0.0, False, max_in_flight, 0, when_full)

    @property
    def failures(self):
        """Requests that failed, by reason."""
        return failures_by_reason(self.failed_by)

    def _set_events(self, EventLog log not None):
        """Have what happens from now on noted. Raises RuntimeError if another log is there."""
        if self.events is not None:
            raise RuntimeError("the engine has a log of events already")
        self.events = log

    def _forget_events(self, EventLog log):
        """Have nothing more noted in that log; another one stays."""
        if self.events is log:
            self.events = None

    def _set_tracer(self, Tracer tracer not None):
        """Have a tracer follow requests from now on. Raises RuntimeError if another one is there."""
        if self.tracer is not None:
            raise RuntimeError("the engine has a tracer already")
        self.tracer = tracer

    def _forget_tracer(self, Tracer tracer):
        """Have that tracer follow no more requests; another one stays."""
        if self.tracer is tracer:
            self.tracer = None

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

    def clear_cache(self, node=None):
        """Empty the result cache of a node, or of all nodes; return how many answers it had.

        What is being run now is answered, and not kept. Thread-safe.

        Raises:
            ValueError: no node has that name, or it has no cache.
        """
        caches = {(<Station>station).name: (<Station>station).cache for station in self.stations
                  if (<Station>station).cache is not None}
        if node is not None and node not in caches:
            raise ValueError(f"no node {in_brief(node)} has a cache; those that have one are {list(caches)}{nearest(node, caches)}")
        count = 0
        for name, cache in caches.items():
            if node is None or name == node:
                count += cache.clear()
        return count

    def drop_state(self, str node, key):
        """Forget the state of a sequence at a node that has ``state_of``; its next request begins anew.

        Requests of the sequence that were submitted before run first, with the state. Thread-safe; does not wait.

        Returns:
            True: there was a state, or such a request. False: nothing was known of the sequence.

        Raises:
            ValueError: no node has that name, or it keeps no states; or ``key`` cannot be a key (``SequenceError``).
        """
        keeping = {(<Node>each).name: (<Node>each).states for each in self.nodes if (<Node>each).states is not None}
        if node not in keeping:
            raise ValueError(f"no node {in_brief(node)} keeps states; those that do are {list(keeping)}{nearest(node, keeping)}")
        return keeping[node].drop(key)

    @property
    def state_keys(self):
        """The keys of a request by which nodes tell sequences apart; () where no node has ``state_of``."""
        return tuple(dict.fromkeys((<Node>each).states.key_name for each in self.nodes if (<Node>each).states is not None))

    @property
    def tallies_bytes(self):
        """Memory of all histograms."""
        cdef Station station
        cdef int64_t size_bytes = TIME_BUCKETS * sizeof(int64_t)
        for station in self.stations:
            size_bytes += station.tallies_bytes
        return size_bytes

    def _measures(self):
        """What is counted, at one moment: for ``stats_of`` of measures.py."""
        return measures_of_all(self)

    # ---- for the debugger --------------------------------------------------------------------------------------

    def _stepper(self, request, observer=None, entry=None):
        """Admit a request that goes through the graph one step at a time."""
        check_may_wait(self)
        return new_stepper(self, request, observer, None, entry)

    def _preview(self, str node_name, request):
        """What the queue of a node would do with a request if it arrived now; {} for a node without one."""
        cdef Node node = <Node>self.node_named[node_name]
        cdef Station station = node.station
        cdef Visit visit
        cdef Load load
        cdef Verdict verdict
        cdef int64_t number                                     # of its bucket; -1: nobody queued has it
        cdef double weight
        cdef int32_t length
        if station is None:
            return {}
        visit = Visit.__new__(Visit)
        visit.node = node
        visit.request = request
        visit.walk = new_walk(self, entry_at(self, node), request, SINK_CALLER, None)
        if node.twins is not None:
            visit.node = twin_for(self, visit, None)
            station = visit.node.station
        weight = weight_of(visit, None) if station.batches else 1.0
        length = length_of(visit, None) if station.has_lengths else 0
        bucket = bucket_of(visit, None) if station.has_buckets else None
        entry = station.bucket_ids.get(bucket)
        number = entry[0] if entry is not None else -1 if station.has_buckets else 0
        with nogil:
            station.desk.lock()
            drain_inbox(station)
            fill_load_with(station, &load, number, weight, length)
            station.desk.unlock()
        preview = {
            "max_batch": station.max_batch,
            "instances": station.instance_count,
            "idle": load.idle_instances,
            "queued": station.queued.load(memory_order_relaxed),
            "queued_in_bucket": load.queued - 1,
            "weight": weight,
            "bucket": bucket,
        }
        if node.twins is not None:
            preview["place"] = station.place
        if load.idle_instances <= 0:
            preview["decision"], preview["reason"] = "wait for instance", ""
        elif asks_rule_object(station, &load):
            preview["decision"], preview["reason"] = "as the rule says", _name_of_rule(station.rule_object)
        else:
            verdict = decide_by_rule(station, &load)
            preview["decision"], preview["reason"] = _ACTIONS[verdict.action], _REASONS[verdict.reason]
        return preview


cdef int _is_drained(object engine) except -1:
    return (<Engine>engine).in_flight == 0


cdef str _name_of_rule(object decide):
    """The class whose method a rule is, or whatever else it is."""
    return type(getattr(decide, "__self__", decide)).__name__


include "engine/switching.pxi"
include "engine/watching.pxi"
include "engine/stepping.pxi"
include "engine/serving.pxi"
include "engine/streams.pxi"
include "engine/caching.pxi"
include "engine/running.pxi"
include "engine/sequences.pxi"
include "engine/admission.pxi"
include "engine/queueing.pxi"
include "engine/routing.pxi"
include "engine/outcomes.pxi"
include "engine/futures.pxi"
include "engine/handles.pxi"
include "engine/chunks.pxi"
include "engine/compiled.pxi"
include "engine/loops.pxi"
include "engine/states.pxi"
include "engine/limits.pxi"
include "engine/lines.pxi"
include "engine/clocks.pxi"
include "engine/measuring.pxi"
include "engine/forming.pxi"
include "engine/lengths.pxi"
include "engine/events.pxi"
include "engine/answers.pxi"
include "engine/contents.pxi"
include "engine/failures.pxi"
include "engine/notices.pxi"
include "engine/station.pxi"
include "engine/contexts.pxi"
include "engine/traces.pxi"
include "engine/walks.pxi"
include "engine/turns.pxi"
include "engine/threads.pxi"
include "engine/waiting.pxi"
include "engine/testing.pxi"
include "engine/user_code.pxi"
include "engine/words.pxi"
