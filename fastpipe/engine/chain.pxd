# Chains: callers who sleep and whose answers are there are woken in a chain, as each of them needs the GIL before it can go on.
#
#     worker ─ start ─► the first few ─ at the gate, without the GIL, they wake further ones ─ one at a time: the GIL ─► gone on
#
# If all were woken at once, all but one would queue for the GIL: then every release of it wakes one more thread, the slow way,
# and nobody runs meanwhile. So a few are awake at a time (gate.hpp says how many), and the next wakes up while one runs. Where
# there are no more than MOST_AT_ONCE, all are woken at once: whoever has the GIL has no time to lose with wake-ups then.
#
# A sleeper's word is SET before start, so whoever wakes up, however late or early, finds its answer. Each member goes on once,
# when it has seen the end of its walk, before any user code can run on its thread: only who is PARKED becomes one, and whoever
# stops waiting takes that back first (word_unpark), both with the GIL held. So nobody depends on what others do with their
# answers, nor on a thread that a signal has called away.
#
# No lost wake-up  ``awake`` counts those who are on their way: woken by another, and not gone on yet; and whoever is just about to
#                  wake one. Whoever takes it to 0 wakes the next before it goes on, if there is one. So if somebody sleeps,
#                  somebody is on the way, and a thread that is woken comes. Who has woken up by itself says so in its entry, and is
#                  never counted: the two sides of that exchange one word, so one of them sees the other.
#                  proofs/chain.pml checks it.

from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free
from libcpp cimport bool as c_bool
from libcpp.atomic cimport atomic, memory_order_acq_rel, memory_order_acquire, memory_order_relaxed, memory_order_release

from fastpipe.engine.parking cimport Word, cpu_pause, futex_wake, kernel_now_ns

cdef extern from "engine/gate.hpp" namespace "fastpipe" nogil:
    int64_t wake_depth() noexcept
    atomic[int64_t] wake_ns
    void note_time(atomic[int64_t]& mean, int64_t taken_ns) noexcept
    int64_t lease_at_gate(int64_t longest_lease_ns, int64_t depth) noexcept
    c_bool pass_gate(int64_t lease_ns, int64_t now) noexcept
    void note_gil_taken() noexcept
    void leave_gate() noexcept

cdef enum:
    MOST_AT_ONCE = 16
    LONGEST_LEASES = 4          # somebody stands at the gate

cdef enum:                      # Sleeper.woken_ns; otherwise when it was woken
    ASLEEP = 0
    BY_ITSELF = -1              # it has woken up, and nobody had woken it


cdef struct Sleeper:
    Word* word
    atomic[int64_t] woken_ns
    Sleeper* after


cdef struct Chain:
    atomic[Sleeper*] next                   # who is to be woken next; NULL: nobody, or it has not started
    atomic[int32_t] awake                   # see above
    atomic[int32_t] holders                 # members, and the turn until it has started it; the last one frees it
    int32_t count                           # of sleepers
    Sleeper* first                          # in the order of their answers
    Sleeper* last


cdef inline Chain* chain_new() noexcept nogil:
    """An empty chain, held by whoever is to start it; NULL: no memory."""
    cdef Chain* chain = <Chain*>calloc(1, sizeof(Chain))
    if chain != NULL:
        chain.holders.store(1, memory_order_relaxed)
        chain.awake.store(1, memory_order_relaxed)              # whoever is to start it
    return chain


cdef inline void chain_let_go(Chain* chain) noexcept nogil:
    cdef Sleeper* sleeper
    if chain.holders.fetch_sub(1, memory_order_acq_rel) == 1:
        while chain.first != NULL:
            sleeper = chain.first
            chain.first = sleeper.after
            free(sleeper)
        free(chain)


cdef inline Sleeper* chain_join(Chain* chain, Word* word) noexcept nogil:
    """Add a sleeper to a chain that has not started; its entry, NULL: no memory. Its word is to be SET only after that."""
    cdef Sleeper* sleeper = <Sleeper*>calloc(1, sizeof(Sleeper))
    if sleeper == NULL:
        return NULL
    sleeper.word = word
    if chain.last == NULL:
        chain.first = sleeper
    else:
        chain.last.after = sleeper
    chain.last = sleeper
    chain.count += 1
    chain.holders.fetch_add(1, memory_order_relaxed)
    return sleeper


cdef inline c_bool chain_wake(Chain* chain) noexcept nogil:
    """Wake the next one who still sleeps; False: there is none. The caller is counted in ``awake``, or has taken it to 0."""
    cdef int64_t state
    cdef Sleeper* sleeper = chain.next.load(memory_order_acquire)
    if sleeper == NULL:
        return False
    chain.awake.fetch_add(1, memory_order_acq_rel)              # for the one to be woken, who may be gone before this returns
    while sleeper != NULL:
        if not chain.next.compare_exchange_strong(sleeper, sleeper.after, memory_order_acq_rel, memory_order_acquire):
            continue
        state = ASLEEP
        if sleeper.woken_ns.compare_exchange_strong(state, kernel_now_ns(), memory_order_acq_rel, memory_order_acquire):
            futex_wake(sleeper.word, 1)
            return True
        sleeper = chain.next.load(memory_order_acquire)
    chain.awake.fetch_sub(1, memory_order_acq_rel)              # at 0 or not: nobody is left to be woken
    return False


cdef inline void chain_start(Chain* chain) noexcept nogil:
    """Wake the first few of those who are still there. The chain is no longer the caller's."""
    cdef int64_t count = wake_depth() if chain.count > MOST_AT_ONCE else MOST_AT_ONCE
    chain.next.store(chain.first, memory_order_release)
    while count > 0 and chain_wake(chain):
        count -= 1
    if chain.awake.fetch_sub(1, memory_order_acq_rel) == 1:
        chain_wake(chain)                                       # those woken have gone on meanwhile
    chain_let_go(chain)


cdef inline void chain_go_on(Chain* chain, Sleeper* sleeper, int64_t longest_lease_ns) noexcept nogil:
    """Wait for a turn to take the GIL, and see to it that the next ones wake up. The caller is a member, once.

    longest_lease_ns: see gate.hpp; 0 where there are no cores to spin on.
    """
    cdef int64_t now = kernel_now_ns()
    cdef int64_t woken_ns = sleeper.woken_ns.exchange(BY_ITSELF, memory_order_acq_rel)
    cdef int64_t depth, lease_ns, give_up_ns
    if woken_ns != ASLEEP:
        note_time(wake_ns, now - woken_ns)
    depth = wake_depth()
    lease_ns = lease_at_gate(longest_lease_ns, depth)
    give_up_ns = now + LONGEST_LEASES * longest_lease_ns
    while lease_ns != 0 and now < give_up_ns and not pass_gate(lease_ns, now):
        if woken_ns == ASLEEP or chain.awake.load(memory_order_relaxed) >= depth or not chain_wake(chain):
            cpu_pause()
        now = kernel_now_ns()
    if woken_ns == ASLEEP:
        return
    if lease_ns == 0:                                           # nobody stands at the gate to do it
        while chain.awake.load(memory_order_relaxed) < depth and chain_wake(chain):
            pass
    if chain.awake.fetch_sub(1, memory_order_acq_rel) == 1:
        chain_wake(chain)
