// The gate to the GIL: of the callers that have just been woken, one at a time goes on to take the GIL, and the others spin
// in front of it, without the GIL. A thread that meets a GIL which is held sleeps, and is woken by the slow way.
//
// Guarantees   Nobody waits for a thread that does not come back: whoever goes through has a lease of some microseconds, and
//              ends it early by waiting for the pipe again. A thread stands here for LONGEST_LEASES leases at most.
// Learned      How long callers keep the GIL's turn between two calls (hold_ns, smoothed). Where that is longer than a lease
//              may be, nobody spins.
// Memory       All relaxed: the gate guards no data. A stale value costs somebody a spin, or a place in the GIL's own queue.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "futex.hpp"

namespace fastpipe {

constexpr int64_t LONGEST_LEASES = 4;

inline std::atomic<int64_t> gate_closed_until_ns{0};
inline std::atomic<int64_t> hold_ns{5000};

struct Passage {
    int64_t passed_ns;  // when this thread went through; 0: it has come back
    int64_t until_ns;   // its lease; 0: it has none
};
inline Passage& passage() noexcept {
    static thread_local Passage here{};
    return here;
}

inline void note_hold(int64_t held_ns) noexcept {
    int64_t known = hold_ns.load(std::memory_order_relaxed);
    hold_ns.store(known + (std::min<int64_t>(held_ns, 1000000) - known) / 16, std::memory_order_relaxed);
}

// This thread has come back to wait for a pipe, and has let go of the GIL.
inline void leave_gate() noexcept {
    Passage& here = passage();
    if (here.passed_ns == 0) return;
    note_hold(kernel_now_ns() - here.passed_ns);
    if (here.until_ns != 0) {
        int64_t mine = here.until_ns;
        gate_closed_until_ns.compare_exchange_strong(mine, 0, std::memory_order_relaxed);
    }
    here = Passage{};
}

// Wait for a turn to take the GIL, spinning; longest_lease_ns: 0 where there are no cores to spin on.
inline void enter_gate(int64_t longest_lease_ns) noexcept {
    if (longest_lease_ns == 0) return;
    Passage& here = passage();
    int64_t now = kernel_now_ns();
    int64_t lease = 2 * hold_ns.load(std::memory_order_relaxed) + 2000;
    here = Passage{now, 0};
    if (lease > longest_lease_ns) return;
    const int64_t give_up_ns = now + LONGEST_LEASES * longest_lease_ns;
    while (now < give_up_ns) {
        int64_t closed_until = gate_closed_until_ns.load(std::memory_order_relaxed);
        if (closed_until <= now) {
            if (gate_closed_until_ns.compare_exchange_strong(closed_until, now + lease, std::memory_order_relaxed)) {
                // The one before has not come back in time: it counts as having been away for as long as it might.
                if (closed_until != 0 && now - closed_until < lease) note_hold(2 * lease);
                here = Passage{now, now + lease};
                return;
            }
        }
        cpu_pause();
        now = kernel_now_ns();
    }
    here = Passage{now, 0};
}

}  // namespace fastpipe
