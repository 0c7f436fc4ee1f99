# States: what a node keeps for sequences of requests, for how long, and whose turn it is in each of them.
#
# A request that may come to the node takes a position in its sequence when it sets out, at the end: so turns are in the order
# of submission, however requests overtake each other on their way. One whose key is not known then, or is another when it
# arrives, takes it when it arrives, before those who are on their way. A position is given up when its request has run, fails,
# goes round the node, enters again, or ends; but not while it is in a batch.
#
# Guarantees   Of what is kept, not more than ``max_states``, but for sequences that have requests in flight; what was not used
#              for longest goes first. A position is in its sequence's list from stand_in to release, which needs no memory.
#              Nobody waits for each other: whoever has taken its position on arrival waits for none that is on its way, and all
#              others for what was submitted before them.
# Assumes      The GIL. Keys are of no class of users: no code of theirs runs when they are looked for. What is dropped may run
#              a destructor, after the books are right: whoever reads on behind that reads anew. It is told by a frame that it must
#              not wait for the pipe: the thread may hold an instance, or be about to call who is next.

cimport cython
from cpython.dict cimport PyDict_GetItemWithError, PyDict_Next

from fastpipe.engine.parking cimport Frame, enter_frame, leave_frame, now_ns

from operator import index as index_of

from fastpipe.errors import SequenceError, in_brief

cdef enum:
    _LONGEST_KEY = 1024                         # characters or bytes: keys are kept, and strangers may choose them
    _MOST_AT_ONCE = 8                           # states that are too old, and let go by one request


@cython.final
cdef class Sequence:
    """The requests that have one key at a node."""


@cython.final
@cython.freelist(64)
cdef class Position:
    """A request's turn in a sequence."""


@cython.final
@cython.freelist(64)
cdef class Standing:
    """The positions of a walk."""


@cython.final
cdef class States:
    """What a node keeps for sequences. See ``sequenced.pxi`` for who owns what."""

    def __cinit__(self, str key_name, int64_t max_states, double ttl_s):
        self.key_name = key_name
        self.max_states = max_states
        self.ttl_ns = <int64_t>(ttl_s * 1e9)
        self.sequences = {}

    def __len__(self):
        """How many sequences have a state, or requests."""
        return len(self.sequences)

    def drop(self, object key):
        """Drop the state of a sequence, once the requests have run that have a position now; True if there is any of both."""
        cdef Sequence sequence = <Sequence>self.sequences.get(key_of(self, key))
        if sequence is None:
            return False
        if sequence.last is not None:
            sequence.last.drops = True
            return True
        _drop_state(self, sequence)
        return True

    def clear(self):
        """Drop what is kept; sequences that have requests begin anew."""
        forget_states(self)
        let_states_go(self)


cdef object key_of(States states, object key):
    """A sequence's key as it is looked for. Raises SequenceError."""
    if type(key) is str or type(key) is bytes:
        if len(key) <= _LONGEST_KEY:
            return key
        raise SequenceError(f"request[{states.key_name!r}] names a sequence, and has {len(key)} characters or bytes: at most "
                            f"{_LONGEST_KEY} are taken")
    if type(key) is int:
        return key
    if isinstance(key, str):
        return key_of(states, str.__str__(key))                 # a plain one: NumPy's, for example
    if not isinstance(key, bool):
        try:
            return index_of(key)
        except TypeError:
            pass
    raise SequenceError(f"request[{states.key_name!r}] names a sequence: a str, bytes or a whole number is expected, got {in_brief(key)}")


# ---- what is kept ----------------------------------------------------------------------------------------------


cdef object _replace_state(States states, Sequence sequence, object state):
    """Keep another state, or None, and return what was kept: who has called drops it when all is in order."""
    cdef object before = sequence.state
    if state is None and before is not None:
        states.kept -= 1
    elif state is not None and before is None:
        states.kept += 1
        states.started += 1
    before, sequence.state = sequence.state, state
    return before


cdef int _forget_if_unused(States states, Sequence sequence) except -1:
    """Take a sequence out of the books that has neither requests nor a state."""
    if sequence.first is None and sequence.state is None and states.sequences.get(sequence.key) is sequence:
        _leave_idle(states, sequence)
        del states.sequences[sequence.key]
    return 0


cdef object _drop_state(States states, Sequence sequence):
    """Begin anew: return what was kept, to be dropped by the caller."""
    before = _replace_state(states, sequence, None)
    states.dropped += before is not None
    _forget_if_unused(states, sequence)
    return before


cdef void forget_states(States states) noexcept:
    """Have all sequences begin anew. No destructor runs, and no memory is needed: what was kept, let_states_go lets go."""
    cdef PyObject* key
    cdef PyObject* value
    cdef Py_ssize_t position = 0
    cdef Sequence sequence
    while PyDict_Next(states.sequences, &position, &key, &value):
        sequence = <Sequence>value
        if sequence.first is not None and not sequence.first.is_running:
            sequence.first.is_outdated = True
        if sequence.state is not None:
            sequence.forgotten, sequence.state = sequence.state, None
            states.kept -= 1
            states.dropped += 1


cdef int let_states_go(States states) except -1:
    """Drop what forget_states has taken away."""
    cdef PyObject* key
    cdef PyObject* value
    cdef Py_ssize_t position
    cdef Sequence sequence
    cdef object forgotten = None
    cdef c_bool found = True
    while found:                                                # as a destructor may change the table meanwhile
        found = False
        position = 0
        while PyDict_Next(states.sequences, &position, &key, &value):
            sequence = <Sequence>value
            if sequence.forgotten is not None:
                found = True
                forgotten, sequence.forgotten = sequence.forgotten, None
                _forget_if_unused(states, sequence)
                forgotten = None
    return 0


cdef object find_state(States states, Sequence sequence, c_bool starts):
    """What a request finds that is about to run; None: its sequence begins anew."""
    if starts and sequence.state is not None:
        _drop_state(states, sequence)
    return sequence.state


cdef int keep_state(Position position, object state) except -1:
    """Keep what a request has left that has run; None: nothing."""
    cdef object before
    if position.instance.is_replaced:                           # what serves now is not to meet it
        return 0
    if position.ends:
        state = None
    before = _replace_state(position.states, position.sequence, state)
    position.states.dropped += state is None and before is not None
    return 0


cdef void _leave_idle(States states, Sequence sequence) noexcept:
    if not sequence.is_idle:
        return
    sequence.is_idle = False
    if sequence.older == NULL:
        states.oldest = sequence.newer
    else:
        (<Sequence>sequence.older).newer = sequence.newer
    if sequence.newer == NULL:
        states.newest = sequence.older
    else:
        (<Sequence>sequence.newer).older = sequence.older
    sequence.older = NULL
    sequence.newer = NULL


cdef int _become_idle(States states, Sequence sequence) except -1:
    """The last request of a sequence is gone: keep its state, and no more than the limits allow."""
    cdef int let_go = 0
    cdef object before = None
    cdef Sequence oldest
    sequence.used_ns = now_ns()
    if sequence.state is None:
        return _forget_if_unused(states, sequence)
    sequence.is_idle = True
    sequence.older = states.newest
    if states.newest == NULL:
        states.oldest = <PyObject*>sequence
    else:
        (<Sequence>states.newest).newer = <PyObject*>sequence
    states.newest = <PyObject*>sequence
    while states.oldest != NULL:
        oldest = <Sequence>states.oldest
        if states.kept > states.max_states:
            states.evicted += 1
        elif let_go < _MOST_AT_ONCE and sequence.used_ns - oldest.used_ns >= states.ttl_ns:
            states.expired += 1
            let_go += 1
        else:
            return 0
        before = _replace_state(states, oldest, None)
        _forget_if_unused(states, oldest)
        before = None                                           # a destructor may run: what follows is read anew
    return 0


# ---- whose turn it is ------------------------------------------------------------------------------------------


cdef int stand_in(Visit visit) except -1:
    """Take a position wherever a walk, that sets out with a visit, may come to a node that keeps states."""
    cdef Node node
    cdef PyObject* key
    for node in visit.walk.entry.stateful:
        try:
            key = PyDict_GetItemWithError(visit.request, node.states.key_name)
            if key == NULL:
                continue
            found = key_of(node.states, <object>key)
        except Exception:                                       # what is wrong is said if the request comes there
            continue
        take_position(visit, node.states, found, False)
    return 0


cdef Position take_position(Visit visit, States states, object key, c_bool has_arrived):
    """Take a position for a visit's walk in a sequence; None: that has ended, or has gone on without the visit.

    ``has_arrived``: at the node, and then it stands before those who have not; else it sets out, and stands at the end.
    """
    cdef Walk walk = visit.walk
    cdef Position position = Position.__new__(Position)
    cdef Sequence sequence
    cdef Standing whole = None
    cdef object expired = None                                  # until all is in order
    cdef Frame* frame
    _stand(walk)
    if walk.sink_kind == SINK_GATHER:
        whole = _standing_of_root(walk)
    # What is made may have a destructor run, in which the sequence is begun or ends: it is looked for behind all of that.
    sequence = <Sequence>states.sequences.get(key)
    if sequence is None:
        sequence = Sequence.__new__(Sequence)
        sequence.key = key
        sequence = <Sequence>states.sequences.setdefault(key, sequence)
    if is_dead(visit):                                          # so may the walk, and then nobody would give the position up
        _forget_if_unused(states, sequence)
        return None
    if sequence.is_idle:                                        # from here on nothing needs memory
        _leave_idle(states, sequence)
        if now_ns() - sequence.used_ns >= states.ttl_ns:
            expired = _replace_state(states, sequence, None)
            states.expired += 1
    position.states = states
    position.sequence = sequence
    position.walk = walk
    _join(sequence, position, _first_on_its_way(sequence) if has_arrived else None)
    position.sibling = walk.standing.own
    walk.standing.own = position
    if whole is not None:
        position.whole = whole
        position.kin_next = whole.kin
        if whole.kin != NULL:
            (<Position>whole.kin).kin_before = <PyObject*>position
        whole.kin = <PyObject*>position
        _count_kin(walk, 1)
    if expired is not None:
        frame = enter_frame(<void*>walk.engine, True, current_greenlet())
        expired = None
        leave_frame(frame)
    return position


cdef Position _first_on_its_way(Sequence sequence):
    """The first who has not arrived at the node; None: all have."""
    cdef Position position = sequence.first if sequence.on_their_way > 0 else None
    while position is not None and position.visit is not None:
        position = position.next
    return position


cdef void _join(Sequence sequence, Position position, Position after) noexcept:
    """Put a position before another one; None: at the end."""
    cdef PyObject* before = <PyObject*>sequence.last if after is None else after.before
    if sequence.last is None:
        before = NULL
    position.before = before
    position.next = after
    if before == NULL:
        sequence.first = position
    else:
        (<Position>before).next = position
    if after is None:
        sequence.last = position
    else:
        after.before = <PyObject*>position
    sequence.on_their_way += 1


cdef void arrive(Position position, Visit visit) noexcept:
    """Have a visit that has come to its node have the position that its walk has there."""
    position.visit = visit
    position.sequence.on_their_way -= 1


cdef int _stand(Walk walk) except -1:
    """Have a walk have positions."""
    cdef Standing standing
    if walk.standing is None:
        standing = Standing.__new__(Standing)
        if walk.standing is None:                               # a destructor may have let others run
            walk.standing = standing
    return 0


cdef Standing _standing_of_root(Walk part):
    """Where the positions of a root's parts are listed; each walk between the two counts those of its own."""
    cdef Walk walk = part
    while walk.sink_kind == SINK_GATHER:
        walk = (<Gather>walk.sink).visit.walk
        _stand(walk)
    return walk.standing


cdef void _count_kin(Walk walk, int change) noexcept:
    """Have all walks that a walk is a part of know of a position that it takes, or gives up."""
    while walk.sink_kind == SINK_GATHER:
        walk = (<Gather>walk.sink).visit.walk
        walk.standing.kin_count += change


cdef Position position_of(Visit visit):
    """Where a visit stands at its node, or None."""
    cdef Position position = None if visit.walk.standing is None else visit.walk.standing.own
    while position is not None and position.visit is not visit:
        position = position.sibling
    return position


cdef Position position_for(Visit visit, States states):
    """The position that a visit was given when it set out, to have it once it arrives at a node; None: it was given none."""
    cdef Position position = None if visit.walk.standing is None else visit.walk.standing.own
    cdef Position earliest = None                               # of several, where logical nodes share the states
    while position is not None:
        if position.states is states and position.visit is None:
            earliest = position
        position = position.sibling
    return earliest


cdef Sequence release(Position position):
    """Give a position up; return its sequence if others' turns come by that, None if not. Needs no memory."""
    cdef Sequence sequence = position.sequence
    cdef States states = position.states
    cdef Position before = <Position>position.before if position.before != NULL else None
    cdef Position after = position.next
    cdef Visit visit = position.visit
    if sequence is None:
        return None
    if before is None:
        sequence.first = after
    else:
        before.next = after
    if after is None:
        sequence.last = before
    else:
        after.before = position.before
    _leave_walk(position)
    sequence.on_their_way -= visit is None
    position.next = None
    position.before = NULL
    position.sequence = None
    position.visit = None
    position.is_running = False
    if visit is not None:
        visit.is_in_sequence = False
        unpark(states, visit, position)
    if position.drops and before is not None:
        before.drops = True                                     # all that was asked before drop_state() is to have run
    elif position.drops:
        _drop_state(states, sequence)
    if sequence.first is None:
        _become_idle(states, sequence)
    return sequence if before is None and after is not None else None


cdef void _leave_walk(Position position) noexcept:
    """Take a position out of the lists of its walk."""
    cdef Standing standing = position.walk.standing
    cdef Standing whole = position.whole
    cdef Position before = standing.own
    if before is position:
        standing.own = position.sibling
    else:
        while before.sibling is not position:
            before = before.sibling
        before.sibling = position.sibling
    position.sibling = None
    if whole is None:
        return
    _count_kin(position.walk, -1)
    if position.kin_before == NULL:
        whole.kin = position.kin_next
    else:
        (<Position>position.kin_before).kin_next = position.kin_next
    if position.kin_next != NULL:
        (<Position>position.kin_next).kin_before = position.kin_before
    position.kin_before = NULL
    position.kin_next = NULL
    position.whole = None


cdef c_bool _is_part(Walk part, Walk walk) noexcept:
    """True if a walk is another one, or a part of it."""
    while part is not walk and part.sink_kind == SINK_GATHER:
        part = (<Gather>part.sink).visit.walk
    return part is walk


cdef Position next_to_leave(Walk walk):
    """Of a walk that has ended, or sets out anew, and of its parts: a position that is held by no batch; None: there is none."""
    cdef Position position = walk.standing.own
    cdef PyObject* each
    while position is not None:
        if not position.is_running:
            return position
        position = position.sibling
    if walk.standing.kin_count == 0:                            # else each of many parts would look through those of all others
        return None
    each = root_of(walk).standing.kin
    while each != NULL:
        position = <Position>each
        if not position.is_running and position.walk is not walk and _is_part(position.walk, walk):
            return position
        each = position.kin_next
    return None


# ---- who waits -------------------------------------------------------------------------------------------------


cdef void park(States states, Position position) noexcept:
    """Have a visit that has arrived wait for its turn. It counts as queued."""
    position.visit.is_parked = True
    if states.parked_last is None:
        states.parked_first = position
    else:
        position.parked_before = <PyObject*>states.parked_last
        states.parked_last.parked_next = position
    states.parked_last = position
    states.parked += 1


cdef void step_out(States states, Visit visit, Position position) noexcept:
    """Take a visit out of those who wait: it is in the queue, or nowhere."""
    visit.is_parked = False
    states.parked -= 1
    if position.parked_before == NULL:
        states.parked_first = position.parked_next
    else:
        (<Position>position.parked_before).parked_next = position.parked_next
    if position.parked_next is None:
        states.parked_last = None if position.parked_before == NULL else <Position>position.parked_before
    else:
        position.parked_next.parked_before = position.parked_before
    position.parked_next = None
    position.parked_before = NULL


cdef void unpark(States states, Visit visit, Position position) noexcept:
    """Take a visit out of those who wait, if it is one of them, and out of the books of the queue: it does not come."""
    if not visit.is_parked:
        return
    step_out(states, visit, position)
    leave_queue(visit, visit.node.station)
    if visit.node.station.c_is_limited():
        tell_of_room(visit.node.station)
