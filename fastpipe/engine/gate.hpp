// The gate to the GIL: of the callers that have just been woken, one at a time goes on to take the GIL, and the others spin
// in front of it, without the GIL. A thread that meets a GIL which is held sleeps, and is woken by the slow way.
//
// Guarantees   Nobody waits for a thread that does not come back: whoever goes through has a lease of some microseconds, and
//              ends it early by waiting for the pipe again. A thread stands here for LONGEST_LEASES leases at most.
// Learned      How long callers have the GIL between two calls (hold_ns, smoothed). Where that is longer than a lease may be,
//              nobody spins. What they wait for the GIL does not count: where many do, the gate is what helps.
// Memory       All relaxed: the gate guards no data. A stale value costs somebody a spin, or a place in the GIL's own queue.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "futex.hpp"

namespace fastpipe {

constexpr int64_t LONGEST_LEASES = 4;
constexpr int64_t LEASE_MARGIN_NS = 2000;

inline std::atomic<int64_t> gate_closed_until_ns{0};
inline std::atomic<int64_t> hold_ns{5000};

struct Passage {
    int64_t gil_ns;    // when this thread had the GIL, once it was through; 0: it has come back
    int64_t until_ns;  // its lease; 0: it has none
};
inline Passage& passage() noexcept {
    static thread_local Passage here{};
    return here;
}

// This thread has come back to wait for a pipe, and has let go of the GIL.
inline void leave_gate() noexcept {
    Passage& here = passage();
    if (here.gil_ns == 0) return;
    constexpr int64_t LONGEST_NOTED_NS = 1000000;
    int64_t held = std::min(kernel_now_ns() - here.gil_ns, LONGEST_NOTED_NS);
    int64_t known = hold_ns.load(std::memory_order_relaxed);
    hold_ns.store(known + (held - known) / 16, std::memory_order_relaxed);
    if (here.until_ns != 0) {
        int64_t mine = here.until_ns;
        gate_closed_until_ns.compare_exchange_strong(mine, 0, std::memory_order_relaxed);
    }
    here = Passage{};
}

// Wait for a turn to take the GIL, spinning. longest_lease_ns: 0 where there are no cores to spin on.
inline void enter_gate(int64_t longest_lease_ns) noexcept {
    if (longest_lease_ns == 0) return;
    const int64_t lease = 2 * hold_ns.load(std::memory_order_relaxed) + LEASE_MARGIN_NS;
    if (lease > longest_lease_ns) return;
    int64_t now = kernel_now_ns();
    const int64_t give_up_ns = now + LONGEST_LEASES * longest_lease_ns;
    for (; now < give_up_ns; now = kernel_now_ns()) {
        int64_t closed_until = gate_closed_until_ns.load(std::memory_order_relaxed);
        if (closed_until <= now &&
            gate_closed_until_ns.compare_exchange_strong(closed_until, now + lease, std::memory_order_relaxed)) {
            passage().until_ns = now + lease;
            return;
        }
        cpu_pause();
    }
}

// This thread, which was at the gate, has the GIL.
inline void note_gil_taken(int64_t longest_lease_ns) noexcept {
    if (longest_lease_ns != 0) passage().gil_ns = kernel_now_ns();
}

}  // namespace fastpipe
