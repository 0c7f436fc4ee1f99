# Tokens: one an instance. Whoever holds it runs the batch in that instance.
#
# Guarantees   At most one thread holds a token. What its last holder did happens before what the next one does.
# Assumes      A token is released only by who holds it. At first all are held: an instance is open once its token is released.
# Progress     Nobody waits in here. A token that is released while tokens_take looks may be missed: who releases one looks for
#              work afterwards (E4).
# Invariants   I1  `idle` is the count of flags that are set, but for threads between the two: it may be less than 0 in a moment

from libc.stdint cimport int32_t, uint8_t
from libc.stdlib cimport calloc, free
from libcpp cimport bool as c_bool
from libcpp.atomic cimport atomic, memory_order_acq_rel, memory_order_relaxed, memory_order_release, memory_order_seq_cst


cdef struct Tokens:
    int32_t count
    atomic[int32_t] idle                # how many are free. Pairs with Station.queued, see E4
    atomic[uint8_t]* is_free            # one flag a token; whoever clears it holds the token


cdef inline c_bool tokens_init(Tokens* tokens, int32_t count) noexcept nogil:
    """Make so many tokens, all held; False: there is no memory."""
    tokens.count = count
    tokens.idle.store(0, memory_order_relaxed)
    tokens.is_free = <atomic[uint8_t]*>calloc(count, sizeof(atomic[uint8_t]))
    return tokens.is_free != NULL


cdef inline void tokens_free(Tokens* tokens) noexcept nogil:
    free(tokens.is_free)


cdef inline c_bool token_try(Tokens* tokens, int32_t index) noexcept nogil:
    """Take that token; False: somebody has it."""
    cdef uint8_t is_free = 1
    # acq_rel: what the last batch in this instance did happens before ours. Pairs with the store in token_release.
    if tokens.is_free[index].compare_exchange_strong(is_free, 0, memory_order_acq_rel, memory_order_relaxed):
        tokens.idle.fetch_sub(1, memory_order_seq_cst)
        return True
    return False


cdef inline int32_t tokens_take(Tokens* tokens) noexcept nogil:
    """Take any token: its number; -1: none is free."""
    cdef int32_t index
    if tokens.idle.load(memory_order_seq_cst) <= 0:
        return -1
    for index in range(tokens.count):
        if tokens.is_free[index].load(memory_order_relaxed) and token_try(tokens, index):
            return index
    return -1


cdef inline void token_release(Tokens* tokens, int32_t index) noexcept nogil:
    """Give that token back. E4: look at the queue afterwards."""
    tokens.is_free[index].store(1, memory_order_release)
    tokens.idle.fetch_add(1, memory_order_seq_cst)
