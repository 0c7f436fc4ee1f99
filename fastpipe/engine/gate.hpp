// How callers whose answers are there get to the GIL: how many of them are to be awake at once, and the gate in front of it.
//
// Depth        As many as are woken while one of them has the GIL: how long a wake-up takes, divided by how long a caller has
//              the GIL between two calls; and one more. Both are measured, all the time. Where cores are taken by others, a wake-up takes
//              long, and all are woken at once: then the scheduler sees all who could run.
// The gate     Of those who are awake, one at a time goes on to take the GIL, and the others spin in front of it, without the
//              GIL, where there are cores for that: a thread that meets a GIL which is held sleeps, and is woken by the slow way.
//              Nobody waits for a thread that does not come back: whoever goes through has a lease of some microseconds, and ends
//              it early by waiting for a pipe again. Where callers have the GIL for longer than a lease, nobody spins.
// Memory       All relaxed: it guards no data. A stale value costs somebody a spin, or a place in the GIL's own queue.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "futex.hpp"

namespace fastpipe {

constexpr int64_t LEASE_MARGIN_NS = 2000;
constexpr int64_t MOST_AT_GATE = 12;        // if more are awake, cores are scarce
constexpr int64_t LONGEST_NOTED_NS = 1000000;

// Smoothed over some sixteen callers.
inline std::atomic<int64_t> hold_ns{5000};  // from having the GIL to waiting again; what they wait for it does not count
inline std::atomic<int64_t> wake_ns{5000};  // from a wake-up to being awake
inline std::atomic<int64_t> gate_closed_until_ns{0};

inline void note_time(std::atomic<int64_t>& mean, int64_t taken_ns) noexcept {
    int64_t known = mean.load(std::memory_order_relaxed);
    taken_ns = std::clamp<int64_t>(taken_ns, 0, LONGEST_NOTED_NS);
    mean.store(known + (taken_ns - known) / 16, std::memory_order_relaxed);
}

// How many are to be on their way to the GIL at once: those that wake up while one has it, and one that stands at the gate.
inline int64_t wake_depth() noexcept {
    int64_t hold = std::max<int64_t>(hold_ns.load(std::memory_order_relaxed), 500);
    return 1 + std::max<int64_t>(1, (wake_ns.load(std::memory_order_relaxed) + hold / 2) / hold);
}

struct Passage {
    int64_t gil_ns;    // when this thread had the GIL, after it was woken; 0: it has come back since
    int64_t until_ns;  // its lease; 0: it has none
};
inline Passage& passage() noexcept {
    static thread_local Passage here{};
    return here;
}

// This thread is about to wait for a pipe, and has let go of the GIL.
inline void leave_gate() noexcept {
    Passage& here = passage();
    if (here.gil_ns == 0) return;
    note_time(hold_ns, kernel_now_ns() - here.gil_ns);
    if (here.until_ns != 0) {
        int64_t mine = here.until_ns;
        gate_closed_until_ns.compare_exchange_strong(mine, 0, std::memory_order_relaxed);
    }
    here = Passage{};
}

// How long whoever passes the gate keeps it closed for the others; 0: nobody is to wait at it.
inline int64_t lease_at_gate(int64_t longest_lease_ns, int64_t depth) noexcept {
    const int64_t lease_ns = 2 * hold_ns.load(std::memory_order_relaxed) + LEASE_MARGIN_NS;
    return lease_ns > longest_lease_ns || depth > MOST_AT_GATE ? 0 : lease_ns;
}

// Pass, if it is this thread's turn to take the GIL.
inline bool pass_gate(int64_t lease_ns, int64_t now) noexcept {
    int64_t closed_until = gate_closed_until_ns.load(std::memory_order_relaxed);
    if (closed_until > now ||
        !gate_closed_until_ns.compare_exchange_strong(closed_until, now + lease_ns, std::memory_order_relaxed))
        return false;
    passage().until_ns = now + lease_ns;
    return true;
}

// This thread, which was woken, has the GIL.
inline void note_gil_taken() noexcept { passage().gil_ns = kernel_now_ns(); }

}  // namespace fastpipe
