# Parking: how a thread waits without polling. Two forms, both over one 32-bit word that is slept on as on a futex
# (engine/sleeping.hpp), both without the GIL.
#
# Outcome word     one waiter, one event: a caller waits for its request.
#                  OPEN <-> PARKED (by the waiter), and from either -> SET (by the finisher).
# Event count      many waiters, many events: the workers of a station wait for something to do. A waiter announces
#                  itself, looks again, and sleeps only if nothing was signalled since the announcement.
#
# Lost wake-ups    waiter:   waiters += 1  (seq_cst) ; look at the queue ; sleep if epoch unchanged
#                  notifier: change the queue (seq_cst) ; look at waiters ; epoch += 1 ; wake
#                  Both sides write, then read the other's word, all seq_cst: at least one of them sees the other.
#                  (A push ends with a release store, which a processor may delay past a later load: hence the fence
#                  in events_notify.)

from libc.stdint cimport int64_t, uint32_t
from libcpp cimport bool as c_bool
from libcpp.atomic cimport atomic, memory_order, memory_order_acq_rel, memory_order_acquire, memory_order_relaxed, memory_order_seq_cst
from libcpp.vector cimport vector

cdef extern from "engine/futex.hpp" namespace "fastpipe" nogil:
    ctypedef atomic[uint32_t] Word
    int64_t now_ns() noexcept
    int64_t kernel_now_ns() noexcept
    int64_t unless_frozen(int64_t kernel_ns) noexcept
    atomic[int64_t] frozen_ns
    int futex_wait(Word* word, uint32_t expected, int64_t deadline_ns) noexcept
    void futex_wake(Word* word, int count) noexcept
    const c_bool HAS_FUTEX
    c_bool note_sleeper(vector[Word*]& sleepers, Word* word) noexcept
    void cpu_pause() noexcept
    void want_precise_timers() noexcept
    ctypedef struct Frame:
        const void* engine
        const void* greenlet
        void* batch
        void* station
        Frame* outer
    Frame* enter_frame(const void* engine, c_bool settles, const void* greenlet) noexcept
    void leave_frame(Frame* frame) noexcept
    c_bool is_inside(const void* engine) noexcept
    c_bool is_settling(const void* engine) noexcept
    void* innermost_batch(const void* greenlet) noexcept
    c_bool is_another_inside(const void* greenlet) noexcept
    Frame* innermost_frame() noexcept
    atomic[uint32_t] hooked_points
    c_bool is_hooked(uint32_t point) noexcept
    void skip_exit_handlers() noexcept
    void abort_process() noexcept

cdef extern from "<atomic>" namespace "std" nogil:
    void atomic_thread_fence(memory_order order) noexcept

cdef extern from "<cerrno>" nogil:
    const int EINTR
    const int ETIMEDOUT

cdef enum:
    OPEN = 0
    PARKED = 1
    SET = 2

cdef enum:
    FOREVER = -1                # as a deadline


# ---- outcome word ----------------------------------------------------------------------------------------------

cdef inline int word_wait(Word* word, int64_t deadline_ns, int64_t spin_ns) noexcept nogil:
    """Wait until the word is SET: 0. Otherwise ETIMEDOUT or EINTR, and the caller may wait again."""
    cdef uint32_t seen = word.load(memory_order_acquire)
    cdef int64_t spin_until
    cdef int why = 0
    if seen == SET:
        return 0
    if spin_ns > 0:
        spin_until = kernel_now_ns() + spin_ns
        while kernel_now_ns() < spin_until:
            if word.load(memory_order_acquire) == SET:
                return 0
            cpu_pause()
    while True:
        seen = OPEN
        if not word.compare_exchange_strong(seen, PARKED, memory_order_acq_rel, memory_order_acquire):
            if seen == SET:
                return 0
        if why != 0:
            return why
        why = futex_wait(word, PARKED, deadline_ns)
        if word.load(memory_order_acquire) == SET:      # pairs with the exchange in word_set
            return 0


cdef inline c_bool word_set(Word* word) noexcept nogil:
    """Set the word; True if its waiter sleeps and must be woken (by futex_wake, best after the GIL is released)."""
    return word.exchange(SET, memory_order_acq_rel) == PARKED


cdef inline c_bool word_unpark(Word* word) noexcept nogil:
    """Say that nobody sleeps on the word for now, as word_wait has left it; False if it is SET."""
    cdef uint32_t seen = PARKED
    return word.compare_exchange_strong(seen, OPEN, memory_order_acq_rel, memory_order_acquire) or seen != SET


# ---- event count -----------------------------------------------------------------------------------------------

cdef struct EventCount:
    Word epoch                  # raised by every notification that found a waiter
    atomic[uint32_t] waiters    # threads between prepare and leave


cdef inline uint32_t events_prepare(EventCount* events) noexcept nogil:
    cdef uint32_t epoch
    events.waiters.fetch_add(1, memory_order_seq_cst)       # pairs with the load in events_notify
    epoch = events.epoch.load(memory_order_seq_cst)
    atomic_thread_fence(memory_order_seq_cst)               # the announcement, before the look, which may be relaxed loads
    return epoch


cdef inline int events_sleep(EventCount* events, uint32_t epoch, int64_t deadline_ns) noexcept nogil:
    """Sleep unless notified since ``epoch``; 0, ETIMEDOUT or EINTR. Ends the announcement made by prepare."""
    cdef int why = futex_wait(&events.epoch, epoch, deadline_ns)
    events.waiters.fetch_sub(1, memory_order_relaxed)
    return why


cdef inline void events_leave(EventCount* events) noexcept nogil:
    """End the announcement without sleeping: there was something to do."""
    events.waiters.fetch_sub(1, memory_order_relaxed)


cdef inline void events_notify(EventCount* events, int count) noexcept nogil:
    """Wake up to ``count`` waiters. The state they wait for must have been changed before."""
    atomic_thread_fence(memory_order_seq_cst)               # the change, before the look: see the head of this file
    if events.waiters.load(memory_order_seq_cst) != 0:      # pairs with the add in events_prepare
        events.epoch.fetch_add(1, memory_order_seq_cst)
        futex_wake(&events.epoch, count)
