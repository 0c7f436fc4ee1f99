# Switching: from one moment to the next, a node's batches run in other instances, while it serves.
#
# Guarantees   A batch runs wholly in the instance whose token it was formed with: one that is retired gets no more requests,
#              and what is asked of an instance about a batch (may it be run again? is its input kept?) is asked of that one.
#              What is asked of requests is asked of the instances that will run them: nothing can be run (no token is free)
#              from when the old tokens are retired until all that waits has been asked by the new (Switch.asks_again), or is
#              about to be asked again (Station.version). So nobody is overtaken meanwhile (E5), and no batch is half of each.
#              From when the first token is retired, nothing fails the switch: what is needed is there, and user code that
#              raises fails the request that it was asked about.
# Assumes      The GIL. One switch at a time (Python's part, instances/swapping.py, sees to it). The tokens of `opened` are kept.
#              Old instances stay in Node.instances until their batches are done.

cimport cython
from cpython.ref cimport Py_DECREF
from libcpp.atomic cimport memory_order_seq_cst

from fastpipe.engine.inbox cimport Ticket
from fastpipe.engine.parking cimport events_notify, is_hooked
from fastpipe.engine.ranking cimport Cursor, Taken, cursor_begin, cursor_move, ranked_insert, taken_init, taken_pop
from fastpipe.engine.tokens cimport token_hold, token_retire


@cython.final
cdef class Switch:
    """What a station is to become, all at once; see Engine._switch."""

    def __init__(self, Station station not None, *, tuple opened, tuple retired, object backend, str backend_name, object bucket,
                 int max_batch, bint thread_bound, Rule rule not None, bint replaces_all,
                 bint asks_again):
        """``backend``: one of those that will serve, which is asked about requests. ``bucket``: the node's own, or None."""
        self.station = station
        self.opened = opened
        self.retired = retired
        self.backend_name = backend_name
        self.bucket = backend.bucket if bucket is None else bucket
        self.weigh = backend.weigh
        self.length_of = backend.length_of
        self.bounds = bounds_of(backend, max_batch)
        self.has_padding = len(backend.padding_counts) > 0
        self.place_of = backend.place_of
        self.place = backend.place
        self.max_batch = max_batch
        self.thread_bound = thread_bound
        self.has_buckets = self.bucket is not None
        self.rule = rule
        self.replaces_all = replaces_all
        self.asks_again = asks_again


cdef int switch_stations(Engine engine, tuple switches, object made_of) except -1:
    """Have stations serve with other instances; see Engine._switch."""
    cdef Turn turn = Turn.__new__(Turn)
    cdef Switch switch
    cdef Renewal renewal
    cdef list renewals = _renewals(engine, switches)
    if engine.closing:
        raise PipeClosed("the pipe is closed")
    for switch in switches:
        _retire_tokens(switch)
    for renewal in renewals:                                    # what old instances answer from now on is kept by nobody
        renewal.cache.c_renew(renewal)
    engine._made_of = made_of
    for switch in switches:
        _change_nodes(engine, switch)
        switch.station.version += 1
        if switch.station.front is None:                        # once for a node
            switch.station.switches += 1
        switch.station.lost = None
    if is_hooked(AT_SWITCH):
        act_at_in(AT_SWITCH, None)
    for switch in switches:
        if switch.asks_again:
            _ask_all_again(engine, switch.station, turn)
    for switch in switches:
        _open_tokens(switch)
    enqueue_all(engine, turn)                                   # a MapReduce may go on without its failed parts
    settle(engine, turn)
    turn.wake()
    turn.c_raise_interrupt()
    return 0


cdef list _renewals(Engine engine, tuple switches):
    """What empties the caches of nodes whose instances are all replaced."""
    cdef list renewals = []
    cdef Switch switch
    cdef Node node
    for node in engine.nodes:
        for switch in switches:
            if node.cache is not None and switch.replaces_all and node.station is switch.station:
                renewals.append(renewal_of(node.cache))
    return renewals


cdef void _retire_tokens(Switch switch) noexcept:
    """Take the old instances out of service, and have the station be what it is for the new.

    Each new one that any thread runs comes with a worker. Old workers leave with the old instances; if these are only fewer,
    as many leave as are too many, whichever they are.
    """
    cdef Station station = switch.station
    cdef int token
    cdef object rule_object = station.rule_object               # held, as its place is taken
    station.desk.lock()                                         # and the GIL: "both"
    for token in switch.retired:
        token_retire(&station.tokens, token)
    station.instance_count += <int>len(switch.opened) - <int>len(switch.retired)
    station.c_set_kind(switch.max_batch, switch.thread_bound)
    station.has_buckets = switch.has_buckets
    station.has_lengths = switch.length_of is not None and station.batches
    station.bounds = switch.bounds
    station.has_padding = station.has_padding or switch.has_padding
    if switch.replaces_all:
        station.era += 1
        station.sharing = 0
    if not switch.thread_bound:
        station.sharing += <int>len(switch.opened)
    station.sharing_wanted = 0 if switch.thread_bound else station.instance_count
    rule_object = take_rule(station, switch.rule)
    station.desk.unlock()
    station.rule_object = rule_object
    station.in_service = station.instance_count
    station.place = switch.place


cdef void _change_nodes(Engine engine, Switch switch) noexcept:
    """Have the nodes of a station know the new instances, and ask these about requests."""
    cdef Node node
    cdef Node twin
    for node in engine.nodes:
        if node.station is switch.station:
            _change_node(node, switch)
        for twin in node.twins if node.twins is not None else ():
            if twin.station is switch.station:
                _change_node(twin, switch)


cdef void _change_node(Node node, Switch switch) noexcept:
    cdef Instance instance
    for instance in switch.opened:
        node.instances[instance.index] = instance
    node.backend_name = switch.backend_name
    node.bucket = switch.bucket
    node.weigh = switch.weigh
    node.length_of = switch.length_of
    node.place_of = switch.place_of


cdef void _open_tokens(Switch switch) noexcept:
    cdef Station station = switch.station
    cdef Instance instance
    station.wake_at.store(0, memory_order_seq_cst)
    for instance in switch.opened:
        if token_hold(&station.tokens, instance.index):         # else the pipe has closed while users' code ran
            station.c_release_token(instance.index)
    events_notify(&station.workers, 0x7fffffff)                 # some workers leave; others collect by another rule


cdef int _ask_all_again(Engine engine, Station station, Turn turn) noexcept:
    """Ask of all that waits what it weighs, and what its bucket is, and put it where it was. It is counted as queued throughout."""
    cdef Cursor cursor
    cdef Taken taken
    taken_init(&taken)
    station.desk.lock()                                         # E7: a holder of the GIL may wait for it
    drain_inbox(station)
    cursor_begin(&cursor, &station.staged)
    while cursor.at != NULL:
        cursor_move(&cursor, &station.staged, &taken)
    station.desk.unlock()
    while taken.count > 0:
        _ask_again(engine, station, taken_pop(&taken), turn)
    return 0


cdef int _ask_again(Engine engine, Station station, Ticket* ticket, Turn turn) noexcept:
    """The same of one that is out of the queue, and still owned by its ticket."""
    cdef Visit visit = <Visit>ticket.visit
    cdef object problem = None
    cdef int _attempt
    for _attempt in range(MOST_ATTEMPTS):
        problem = None
        release_bucket(visit)
        try:
            unpack(visit)
            ask_for_queue(visit, station, turn)
            break
        except Exception as error:
            problem = with_place(error, visit.node)
            break
        except BaseException as error:                          # a signal's, of the thread that switches: no request's
            note_interrupt(turn, error)
            problem = error
        except:  # noqa: E722
            # See _no_memory.
            problem = _no_memory
            break
    # From here to the end of its being queued, or not, no code of users runs.
    if problem is None and not is_dead(visit):
        station.desk.lock()
        ranked_insert(&station.staged, ticket)
        station.desk.unlock()
        return 0
    station.queued.fetch_sub(1, memory_order_seq_cst)
    Py_DECREF(visit)                                            # E2: the ticket's
    leave_queue(visit, station)
    if station.c_is_limited():
        tell_of_room(station)
    if problem is None:
        note_dropped(visit)
    else:
        fail_visit(engine, visit, problem, turn)
    send_one_back(visit, turn)
    return 0
