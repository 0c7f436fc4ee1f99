# Ranked: the staged tickets of a station in the order in which they are to go, a linked list that has an index if it needs one.
#
# As long as tickets come in their order, which without priorities is always, it is a plain list: a ticket goes to its end.
# The first that belongs further in front has all of them indexed: from then on, until nothing is left, it is a skip list
# (Pugh 1990). A ticket has a second link with probability 1/4, a third with 1/16 ...; whoever looks for a place walks along
# the highest links first. What an insertion costs grows with the logarithm of the length: 32,000 tickets of mixed
# priorities take some 30 steps each, where walking the list took 16,000.
#
# Taken: the tickets that have left it, in the order in which they did: what a batch is made of.
#
# Guarantees   By rank, and tickets of one rank in the order in which they came. Nothing is allocated: the links are in the tickets,
#              and nobody else touches them.
# Assumes      all calls are made under the station's mutex, but for those on what is taken, which has one owner; a ticket is in one
#              list at a time.
# Invariants   I1  following next from first, every ticket is reached, and rank_ns never falls (while only `ranked_insert` is used)
#              I2  the tickets at level k are those of level k - 1 that have more than k links, in the same order
#              I3  not is_indexed: level 0 is all there is. An empty list is not indexed.

from libc.stdint cimport int32_t, int64_t, uint32_t
from libcpp cimport bool as c_bool
from libcpp.atomic cimport memory_order_relaxed

from fastpipe.engine.inbox cimport LINKS_ABOVE, Ticket


cdef struct Ranked:
    Ticket* first
    Ticket* last
    int32_t count
    double weight                       # of all of them together
    c_bool is_indexed
    Ticket* first_above[LINKS_ABOVE]    # by level, counted from 1
    Ticket* last_above[LINKS_ABOVE]
    uint32_t random                     # state of the generator; never 0
    int64_t steps                       # tickets walked past by insertions; tests count them


cdef struct Taken:
    Ticket* first
    Ticket* last
    int32_t count
    double weight                       # of all of them together


cdef struct Batch:              # what a worker took from its station: owned by that worker
    Taken taken                 # oldest first; each ticket holds a reference to its visit
    int32_t instance            # whose token the worker holds; -1: none
    int32_t reason              # why it left
    c_bool may_grow             # the rule allows company that arrives until the batch really starts
    int64_t bucket


cdef struct Cursor:                     # a walk from the first ticket on, on which tickets may be taken out
    Ticket* at                          # the next to be looked at, or NULL
    Ticket* before                      # the last one that was passed, or NULL
    Ticket* before_above[LINKS_ABOVE]   # the same by level; of an indexed list only


cdef inline Ticket* next_of(const Ticket* ticket) noexcept nogil:
    return <Ticket*>ticket.next.load(memory_order_relaxed)


cdef inline void ranked_init(Ranked* ranked) noexcept nogil:
    cdef int level
    ranked.first = NULL
    ranked.last = NULL
    ranked.count = 0
    ranked.weight = 0
    ranked.is_indexed = False
    ranked.random = 2463534242          # any but 0
    ranked.steps = 0
    for level in range(LINKS_ABOVE):
        ranked.first_above[level] = NULL
        ranked.last_above[level] = NULL


cdef inline int32_t _links_above(Ranked* ranked) noexcept nogil:
    """How many links a ticket has above the first: n with probability 3 / 4 ** (n + 1)."""
    cdef uint32_t bits = ranked.random
    cdef int32_t links = 0
    bits ^= bits << 13                  # Marsaglia's xorshift
    bits ^= bits >> 17
    bits ^= bits << 5
    ranked.random = bits
    while links < LINKS_ABOVE and bits & 3 == 0:
        links += 1
        bits >>= 2
    return links


cdef inline void _append_above(Ranked* ranked, Ticket* ticket) noexcept nogil:
    """Index a ticket that is the last of those that are indexed."""
    cdef int32_t level
    ticket.links_above = _links_above(ranked)
    for level in range(ticket.links_above):
        ticket.above[level] = NULL
        if ranked.last_above[level] == NULL:
            ranked.first_above[level] = ticket
        else:
            ranked.last_above[level].above[level] = ticket
        ranked.last_above[level] = ticket


cdef inline void _index(Ranked* ranked) noexcept nogil:
    cdef Ticket* ticket = ranked.first
    ranked.is_indexed = True
    while ticket != NULL:
        _append_above(ranked, ticket)
        ticket = next_of(ticket)


cdef inline void ranked_append(Ranked* ranked, Ticket* ticket) noexcept nogil:
    """Put a ticket at the end, whatever its rank."""
    ticket.next.store(NULL, memory_order_relaxed)
    ticket.links_above = 0
    if ranked.last == NULL:
        ranked.first = ticket
    else:
        ranked.last.next.store(<void*>ticket, memory_order_relaxed)
    ranked.last = ticket
    ranked.count += 1
    ranked.weight += ticket.weight
    if ranked.is_indexed:
        _append_above(ranked, ticket)


cdef inline void ranked_insert(Ranked* ranked, Ticket* ticket) noexcept nogil:
    """Put a ticket where its rank belongs, behind those of the same rank."""
    cdef Ticket* before_above[LINKS_ABOVE]
    cdef Ticket* before = NULL          # NULL: the beginning
    cdef Ticket* after
    cdef int32_t level
    if ranked.last == NULL or ranked.last.rank_ns <= ticket.rank_ns:
        ranked_append(ranked, ticket)
        return
    if not ranked.is_indexed:
        _index(ranked)
    for level in range(LINKS_ABOVE - 1, -1, -1):
        after = ranked.first_above[level] if before == NULL else before.above[level]
        while after != NULL and after.rank_ns <= ticket.rank_ns:
            before = after
            after = after.above[level]
            ranked.steps += 1
        before_above[level] = before
    after = ranked.first if before == NULL else next_of(before)
    while after.rank_ns <= ticket.rank_ns:                      # the last one's is greater
        before = after
        after = next_of(after)
        ranked.steps += 1
    ticket.next.store(<void*>after, memory_order_relaxed)
    if before == NULL:
        ranked.first = ticket
    else:
        before.next.store(<void*>ticket, memory_order_relaxed)
    ticket.links_above = _links_above(ranked)
    for level in range(ticket.links_above):
        if before_above[level] == NULL:
            ticket.above[level] = ranked.first_above[level]
            ranked.first_above[level] = ticket
        else:
            ticket.above[level] = before_above[level].above[level]
            before_above[level].above[level] = ticket
        if ticket.above[level] == NULL:
            ranked.last_above[level] = ticket
    ranked.count += 1
    ranked.weight += ticket.weight


cdef inline void cursor_begin(Cursor* cursor, const Ranked* ranked) noexcept nogil:
    cdef int level
    cursor.at = ranked.first
    cursor.before = NULL
    if ranked.is_indexed:
        for level in range(LINKS_ABOVE):
            cursor.before_above[level] = NULL


cdef inline void cursor_pass(Cursor* cursor, const Ranked* ranked) noexcept nogil:
    """Leave the ticket at the cursor where it is, and go on to the next."""
    cdef int32_t level
    if ranked.is_indexed:
        for level in range(cursor.at.links_above):
            cursor.before_above[level] = cursor.at
    cursor.before = cursor.at
    cursor.at = next_of(cursor.at)


cdef inline Ticket* _cursor_take(Cursor* cursor, Ranked* ranked) noexcept nogil:
    """Take the ticket at the cursor out of the list, and go on to the next."""
    cdef Ticket* ticket = cursor.at
    cdef Ticket* after = next_of(ticket)
    cdef int32_t level
    if cursor.before == NULL:
        ranked.first = after
    else:
        cursor.before.next.store(<void*>after, memory_order_relaxed)
    if after == NULL:
        ranked.last = cursor.before
    if ranked.is_indexed:
        for level in range(ticket.links_above):
            if cursor.before_above[level] == NULL:
                ranked.first_above[level] = ticket.above[level]
            else:
                cursor.before_above[level].above[level] = ticket.above[level]
            if ticket.above[level] == NULL:
                ranked.last_above[level] = cursor.before_above[level]
        if ranked.first == NULL:
            ranked.is_indexed = False                           # I3
    ranked.count -= 1
    ranked.weight -= ticket.weight
    if ranked.count == 0:
        ranked.weight = 0                                       # no drift from adding and subtracting
    ticket.next.store(NULL, memory_order_relaxed)
    cursor.at = after
    return ticket


cdef inline void taken_init(Taken* taken) noexcept nogil:
    taken.first = NULL
    taken.last = NULL
    taken.count = 0
    taken.weight = 0


cdef inline void cursor_move(Cursor* cursor, Ranked* ranked, Taken* taken) noexcept nogil:
    """Take the ticket at the cursor, as the last of what is taken, and go on to the next."""
    cdef Ticket* ticket = _cursor_take(cursor, ranked)
    if taken.first == NULL:
        taken.first = ticket
    else:
        taken.last.next.store(<void*>ticket, memory_order_relaxed)
    taken.last = ticket
    taken.count += 1
    taken.weight += ticket.weight


cdef inline Ticket* taken_pop(Taken* taken) noexcept nogil:
    """Hand out the first of what is taken; there must be one."""
    cdef Ticket* ticket = taken.first
    taken.first = next_of(ticket)
    taken.count -= 1
    taken.weight -= ticket.weight
    return ticket
