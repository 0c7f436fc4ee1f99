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

from cpython.dict cimport PyDict_Copy, PyDict_GetItem
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_seq_cst

from fastpipe.engine.parking cimport (
    FOREVER, SET, Frame, enter_frame, events_leave, events_notify, events_prepare, events_sleep, futex_wake, innermost_frame,
    is_another_inside, is_hooked, is_inside, is_settling, kernel_now_ns, leave_frame, now_ns, word_set, word_wait,
)

from fastpipe.errors import (
    BackendError, BackendHung, CallLoop, DeviceLost, ForkedPipe, ItemErrors, NoResult, PipeClosed, PipeError, RequestTimeout,
    RestartLimit, UnknownNode, nearest,
)
from fastpipe.faults import is_device_lost, is_out_of_memory, text_of
from fastpipe.filters import Status, swap
from fastpipe.results import checked_parts
from fastpipe.snapshots import CannotCopy, take


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
                raise UnknownNode(f"entry is {entry!r}, and no node has that name; they are {list(self.node_named)}"
                                  f"{nearest(str(entry), self.node_named)}")
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
            raise UnknownNode(f"request['node_name'] is {name!r}, and no node has that name; the roots are "
                              f"{list(self.root_names)}{nearest(str(name), self.node_named)}")
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
                    line.c_step_out(waiter)
                    waiter.state = AWAY
                    line.c_serve()
                    self.c_start_called(None)
                    PyErr_CheckSignals()
                    self.c_check_open()
                    line.c_join(waiter)
                    line.c_serve()
        except BaseException:
            waiter.c_stop_waiting()
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
                                   f"whose keys are {sorted(map(str, source))}")
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
            raise UnknownNode(f"request['restart'] is {name!r}, and no node has that name{nearest(str(name), self.node_named)}")
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


include "engine/watching.pxi"
include "engine/stepping.pxi"
include "engine/running.pxi"
include "engine/admission.pxi"
include "engine/routing.pxi"
include "engine/futures.pxi"
include "engine/lines.pxi"
include "engine/loops.pxi"
include "engine/limits.pxi"
include "engine/clocks.pxi"
include "engine/forming.pxi"
include "engine/station.pxi"
include "engine/failures.pxi"
include "engine/walks.pxi"
include "engine/compiled.pxi"
include "engine/user_code.pxi"
include "engine/threads.pxi"
include "engine/testing.pxi"
include "engine/words.pxi"
