# Chains: callers who sleep and whose answers are there are woken in a chain, as each of them needs the GIL before it can go on.
#
#     worker ─ start ─► the first few ─ leave, each, once it has the GIL ─► one further ─► ...
#
# If all were woken at once, all but one would queue for the GIL: then every release of it wakes one more thread, the slow way,
# and nobody runs meanwhile. So only ``depth`` of them are awake at a time, and the next one wakes up while one runs.
#
# A sleeper's word is SET before start, so whoever wakes up, however late or early, finds its answer. Each member leaves once:
# when it has seen the end of its walk; or, if it has given up waiting, when its walk is dropped. Nobody depends on its coming
# back to the pipe.
#
# No lost wake-up  Each leave gives one credit, start gives ``depth`` >= 1 of them, and credit i wakes sleeper i. Leaves before start
#                  count, too: their credits are used by start. If sleeper j slept for ever, no more than j credits were given; so
#                  all of those before it were woken, and have left or will, which is ``depth`` credits more.
#                  proofs/chain.pml checks it.
#
# The gate         Of those who are awake, one at a time goes on to the GIL, where cores are free for the others to spin: see
#                  gate.hpp.

from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free, realloc
from libcpp cimport bool as c_bool
from libcpp.atomic cimport atomic, memory_order_acq_rel, memory_order_relaxed

from fastpipe.engine.parking cimport Word, futex_wake

cdef extern from "engine/gate.hpp" namespace "fastpipe" nogil:
    void enter_gate(int64_t longest_lease_ns) noexcept
    void note_gil_taken(int64_t longest_lease_ns) noexcept
    void leave_gate() noexcept

cdef enum:
    FIRST_ROOM = 16
cdef enum: STARTED = 0x40000000             # in ``credits``


cdef struct Chain:
    atomic[int64_t] credits                 # given, and STARTED from start on
    atomic[int32_t] holders                 # members, and the turn until it has started it; the last one frees it
    int32_t count                           # of sleepers; written before start
    int32_t room
    Word** sleepers                         # in the order of their answers


cdef inline Chain* chain_new() noexcept nogil:
    """An empty chain, held by whoever is to start it; NULL: no memory."""
    cdef Chain* chain = <Chain*>calloc(1, sizeof(Chain))
    if chain != NULL:
        chain.holders.store(1, memory_order_relaxed)
    return chain


cdef inline void chain_let_go(Chain* chain) noexcept nogil:
    if chain.holders.fetch_sub(1, memory_order_acq_rel) == 1:
        free(chain.sleepers)
        free(chain)


cdef inline c_bool chain_join(Chain* chain, Word* word) noexcept nogil:
    """Add a sleeper to a chain that has not started; False: no memory. Its word is to be SET only after that."""
    cdef void* grown
    cdef int32_t room
    if chain.count == chain.room:
        room = FIRST_ROOM if chain.room == 0 else 2 * chain.room
        grown = realloc(chain.sleepers, room * sizeof(Word*))
        if grown == NULL:
            return False
        chain.sleepers = <Word**>grown
        chain.room = room
    chain.sleepers[chain.count] = word
    chain.count += 1
    chain.holders.fetch_add(1, memory_order_relaxed)
    return True


cdef inline void chain_start(Chain* chain, int32_t depth) noexcept nogil:
    """Wake the first ``depth`` of those who are still there. The chain is no longer the caller's."""
    cdef int64_t left = chain.credits.fetch_add(STARTED + depth, memory_order_acq_rel)     # its members see all sleepers
    cdef int64_t end = min(<int64_t>chain.count, left + depth)
    cdef int64_t index
    for index in range(end):
        futex_wake(chain.sleepers[index], 1)
    chain_let_go(chain)


cdef inline void chain_leave(Chain* chain) noexcept nogil:
    """Wake one more of a chain. The caller is a member, once; the chain is no longer its."""
    cdef int64_t credit = chain.credits.fetch_add(1, memory_order_acq_rel) - STARTED
    if 0 <= credit < chain.count:
        futex_wake(chain.sleepers[credit], 1)
    chain_let_go(chain)
