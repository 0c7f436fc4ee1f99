# Chains: callers who sleep and whose answers are there are woken in a chain, as each of them needs the GIL before it can go on.
#
#     worker ─ start ─► the first few ─ leave, each, once it has the GIL ─► one further ─► ...
#
# If all were woken at once, all but one would queue for the GIL: then every release of it wakes one more thread, the slow way,
# and nobody runs meanwhile. So a few are awake at a time (gate.hpp says how many), and the next wakes up while one runs. Where
# there are no more than MOST_AT_ONCE, all are woken at once: whoever has the GIL has no time to lose with wake-ups then.
#
# A sleeper's word is SET before start, so whoever wakes up, however late or early, finds its answer. Each member leaves once,
# when it has seen the end of its walk, before any user code can run on its thread: only who is PARKED becomes one, and whoever
# stops waiting takes that back first (word_unpark), both with the GIL held. So nobody depends on what others do with their
# answers, nor on a thread that a signal has called away. Whoever was woken slowly gives one credit more: cores are taken, and a
# chain of slow wake-ups would take long.
#
# No lost wake-up  Each leave gives a credit, or more, start gives ``depth`` >= 1 of them, and credit i wakes sleeper i. Leaves
#                  before start count, too: their credits are used by start. If sleeper j slept for ever, no more than j credits
#                  were given; so all of those before it were woken, and have left or will, which is ``depth`` credits more.
#                  proofs/chain.pml checks it.

from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free, realloc
from libcpp.atomic cimport atomic, memory_order_acq_rel, memory_order_acquire, memory_order_relaxed

from fastpipe.engine.parking cimport Word, futex_wake, kernel_now_ns

cdef extern from "engine/gate.hpp" namespace "fastpipe" nogil:
    int64_t wake_depth() noexcept
    atomic[int64_t] wake_ns
    void note_time(atomic[int64_t]& mean, int64_t taken_ns) noexcept
    void enter_gate(int64_t longest_lease_ns) noexcept
    void note_gil_taken() noexcept
    void leave_gate() noexcept

cdef enum:
    FIRST_ROOM = 16
    STARTED = 0x40000000                    # in ``credits``
    MOST_AT_ONCE = 16
    SLOW_WAKE_NS = 200000


cdef struct Sleeper:
    Word* word
    atomic[int64_t] woken_ns                # when it was woken; 0: it was not


cdef struct Chain:
    atomic[int64_t] credits                 # given, and STARTED from start on
    atomic[int32_t] holders                 # members, and the turn until it has started it; the last one frees it
    int32_t count                           # of sleepers; written before start
    int32_t room
    Sleeper* sleepers                       # in the order of their answers


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


cdef inline int32_t chain_join(Chain* chain, Word* word) noexcept nogil:
    """Add a sleeper to a chain that has not started; its place, -1: no memory. Its word is to be SET only after that."""
    cdef void* grown
    cdef int32_t room
    if chain.count == chain.room:
        room = FIRST_ROOM if chain.room == 0 else 2 * chain.room
        grown = realloc(chain.sleepers, room * sizeof(Sleeper))
        if grown == NULL:
            return -1
        chain.sleepers = <Sleeper*>grown
        chain.room = room
    chain.sleepers[chain.count].word = word
    chain.sleepers[chain.count].woken_ns.store(0, memory_order_relaxed)
    chain.count += 1
    chain.holders.fetch_add(1, memory_order_relaxed)
    return chain.count - 1


cdef inline void chain_wake(Chain* chain, int64_t begin, int64_t end) noexcept nogil:
    """Wake those at some places, as far as there are any."""
    cdef int64_t place
    for place in range(begin, min(end, <int64_t>chain.count)):
        chain.sleepers[place].woken_ns.store(kernel_now_ns(), memory_order_relaxed)
        futex_wake(chain.sleepers[place].word, 1)


cdef inline void chain_start(Chain* chain) noexcept nogil:
    """Wake the first few of those who are still there. The chain is no longer the caller's."""
    cdef int64_t depth = wake_depth() if chain.count > MOST_AT_ONCE else MOST_AT_ONCE
    cdef int64_t left = chain.credits.fetch_add(STARTED + depth, memory_order_acq_rel)     # its members see all sleepers
    chain_wake(chain, 0, left + depth)
    chain_let_go(chain)


cdef inline int64_t chain_awake(Chain* chain, int32_t place) noexcept nogil:
    """Note that a member is awake; how many credits it is to give."""
    cdef int64_t woken_ns, taken_ns
    if chain.credits.load(memory_order_acquire) < STARTED:  # it woke up by itself, and the list of sleepers may still move
        return 1
    woken_ns = chain.sleepers[place].woken_ns.load(memory_order_relaxed)
    if woken_ns == 0:
        return 1
    taken_ns = kernel_now_ns() - woken_ns
    note_time(wake_ns, taken_ns)
    return 2 if taken_ns > SLOW_WAKE_NS else 1


cdef inline void chain_leave(Chain* chain, int64_t credits) noexcept nogil:
    """Wake further ones of a chain. The caller is a member, once; the chain is no longer its."""
    cdef int64_t first = chain.credits.fetch_add(credits, memory_order_acq_rel) - STARTED
    if first >= 0:
        chain_wake(chain, first, first + credits)
    chain_let_go(chain)
