# Tokens: one an instance. Whoever holds it runs the batch in that instance.
#
# Guarantees   At most one thread holds a token. What its last holder did happens before what the next one does.
#              One that is retired is never taken again: it has left once its last holder has released it.
# Assumes      A token is released only by who holds it. At first all are kept: an instance is open once its token is.
#              Nobody calls any of this while tokens_grow runs.
# Progress     Nobody waits in here. A token that is released while tokens_take looks may be missed: who releases one looks for
#              work afterwards (E4).
# Invariants   I1  `idle` is the count of tokens that are free, but for threads between the two: it may be less than 0 in a moment
#              I2  KEPT -> HELD <-> FREE; HELD -> LEAVING -> LEFT; FREE -> LEFT; KEPT -> LEFT. For another instance, after one that
#                  hung: HELD -> KEPT; after one that has left: LEFT -> KEPT

from libc.stdint cimport int32_t, uint8_t
from libc.stdlib cimport calloc, free
from libcpp cimport bool as c_bool
from libcpp.atomic cimport (
    atomic, memory_order_acq_rel, memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst,
)

cdef enum:                              # of a token. A release adds 1: it needs not know whether the token is retired
    HELD = 0
    FREE = 1
    LEAVING = 2                         # retired, and held for the last time
    LEFT = 3                            # retired, and nobody's
    KEPT = 4                            # nobody's, for an instance that is not in service yet


cdef struct Tokens:
    int32_t count
    atomic[int32_t] idle                # how many are free. Pairs with Station.queued, see E4
    atomic[uint8_t]* states             # by token; whoever changes it from FREE to HELD holds the token


cdef inline void token_keep(Tokens* tokens, int32_t index) noexcept nogil:
    """Keep a token for an instance to come: one that has left, or, for who holds it, its own."""
    tokens.states[index].store(KEPT, memory_order_release)


cdef inline c_bool token_hold(Tokens* tokens, int32_t index) noexcept nogil:
    """Take a token that was kept, to release it; False: it is retired."""
    cdef uint8_t kept = KEPT
    return tokens.states[index].compare_exchange_strong(kept, HELD, memory_order_acq_rel, memory_order_relaxed)


cdef inline int32_t tokens_leaving(const Tokens* tokens) noexcept nogil:
    """How many are retired, and still held."""
    cdef int32_t index
    cdef int32_t count = 0
    for index in range(tokens.count):
        count += tokens.states[index].load(memory_order_relaxed) == LEAVING
    return count


cdef inline c_bool tokens_init(Tokens* tokens, int32_t count) noexcept nogil:
    """Make so many tokens, all kept; False: there is no memory."""
    cdef int32_t index
    tokens.count = count
    tokens.idle.store(0, memory_order_relaxed)
    tokens.states = <atomic[uint8_t]*>calloc(<size_t>max(count, 0), sizeof(atomic[uint8_t]))
    if tokens.states == NULL:
        return False
    for index in range(count):
        token_keep(tokens, index)
    return True


cdef inline void tokens_free(Tokens* tokens) noexcept nogil:
    free(tokens.states)


cdef inline atomic[uint8_t]* tokens_grow(Tokens* tokens, int32_t count, atomic[uint8_t]* states) noexcept nogil:
    """Have more tokens, kept ones, in ``states``, which has room for so many; what they were in is to be freed."""
    cdef atomic[uint8_t]* before = tokens.states
    cdef int32_t index
    for index in range(count):
        states[index].store(before[index].load(memory_order_relaxed) if index < tokens.count else KEPT, memory_order_relaxed)
    tokens.states = states
    tokens.count = count
    return before


cdef inline c_bool token_try(Tokens* tokens, int32_t index) noexcept nogil:
    """Take that token; False: somebody has it."""
    cdef uint8_t is_free = FREE
    # acq_rel: what the last batch in this instance did happens before ours. Pairs with the addition in token_release.
    if tokens.states[index].compare_exchange_strong(is_free, HELD, memory_order_acq_rel, memory_order_relaxed):
        tokens.idle.fetch_sub(1, memory_order_seq_cst)
        return True
    return False


cdef inline int32_t tokens_take(Tokens* tokens) noexcept nogil:
    """Take any token: its number; -1: none is free."""
    cdef int32_t index
    if tokens.idle.load(memory_order_seq_cst) <= 0:
        return -1
    for index in range(tokens.count):
        if tokens.states[index].load(memory_order_relaxed) == FREE and token_try(tokens, index):
            return index
    return -1


cdef inline void token_release(Tokens* tokens, int32_t index) noexcept nogil:
    """Give that token back. E4: look at the queue afterwards."""
    if tokens.states[index].fetch_add(1, memory_order_seq_cst) == HELD:
        tokens.idle.fetch_add(1, memory_order_seq_cst)


cdef inline c_bool token_retire(Tokens* tokens, int32_t index) noexcept nogil:
    """Have nobody take that token any more; True if nobody holds it: what was done with it happens before."""
    cdef uint8_t state = tokens.states[index].load(memory_order_acquire)
    cdef uint8_t onward
    while state != LEAVING and state != LEFT:
        onward = LEAVING if state == HELD else LEFT
        if tokens.states[index].compare_exchange_strong(state, onward, memory_order_acq_rel, memory_order_acquire):
            if state == FREE:
                tokens.idle.fetch_sub(1, memory_order_seq_cst)
            return onward == LEFT
    return state == LEFT


cdef inline c_bool token_is_retired(const Tokens* tokens, int32_t index) noexcept nogil:
    """True if nobody takes that token any more."""
    cdef uint8_t state = tokens.states[index].load(memory_order_relaxed)
    return state == LEAVING or state == LEFT
