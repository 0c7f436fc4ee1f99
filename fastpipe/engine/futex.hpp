// What Cython cannot say: sleeping on a word, a CPU pause, a thread-local pointer, and hooks that compile away.
#pragma once
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <unistd.h>
#include <new>
#include <vector>

#include "sleeping.hpp"

namespace fastpipe {

// The time as a test has set it, see _core._freeze_time; 0: it is the kernel's.
inline std::atomic<int64_t> frozen_ns{0};
inline int64_t frozen_now_ns() noexcept {
#ifdef FASTPIPE_NO_HOOKS
    return 0;
#else
    return frozen_ns.load(std::memory_order_relaxed);
#endif
}

inline int64_t now_ns() noexcept {
    int64_t frozen = frozen_now_ns();
    return __builtin_expect(frozen != 0, 0) ? frozen : kernel_now_ns();
}

// A time that the kernel has given, as a test would have it.
inline int64_t unless_frozen(int64_t kernel_ns) noexcept {
    int64_t frozen = frozen_now_ns();
    return __builtin_expect(frozen != 0, 0) ? frozen : kernel_ns;
}

// Sleep while *word == expected. Returns 0 when woken or when the word differs, else ETIMEDOUT or EINTR.
// deadline_ns: absolute, of now_ns; negative: none. While time is frozen, 0 also for nothing, every millisecond: every
// sleeper looks again.
inline int futex_wait(Word* word, uint32_t expected, int64_t deadline_ns) noexcept {
    if (deadline_ns < 0 || frozen_now_ns() == 0) return sleep_on(word, expected, deadline_ns);
    if (now_ns() >= deadline_ns) return ETIMEDOUT;
    const int why = sleep_on(word, expected, kernel_now_ns() + 1000000);
    return why == ETIMEDOUT ? 0 : why;
}

// Note a sleeper that is to be woken later. False if there is no memory for it: then it is to be woken now.
inline bool note_sleeper(std::vector<Word*>& sleepers, Word* word) noexcept {
    try {
        sleepers.push_back(word);
        return true;
    } catch (const std::bad_alloc&) {
        return false;
    }
}

inline void cpu_pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// What this thread is running for an engine at the moment, innermost first: lets close() know that it was called from a
// backend, and a call that it was made by a future's callback on the very thread that would have to serve it.
//
// Not on the C stack: a backend that switches greenlets has its stack copied away, with whatever stood on it, and other
// greenlets of the thread look at its frame meanwhile, and may leave theirs in any order.
struct Frame {
    const void* engine;
    const void* greenlet;  // which one entered it; for comparing only. Null: the process has none
    bool settles;          // in callbacks of futures, on a worker's thread; else in a backend
    void* batch;           // the visits that a backend runs; null elsewhere
    void* station;         // where it runs them
    Frame* outer;
};
// So many frames of a thread need no allocation: more are for backends that call pipes whose backends call pipes.
constexpr unsigned OWN_FRAMES = 4;
struct Frames {
    Frame* innermost;
    unsigned taken;  // a bit for each of its own
    Frame own[OWN_FRAMES];
};
inline Frames& frames() noexcept {
    static thread_local Frames here{};
    return here;
}
inline Frame* innermost_frame() noexcept { return frames().innermost; }

// Null if memory ran out: what runs is then not known to run inside.
inline Frame* enter_frame(const void* engine, bool settles, const void* greenlet) noexcept {
    Frames& here = frames();
    unsigned free = ~here.taken & ((1u << OWN_FRAMES) - 1);
    Frame* frame;
    if (__builtin_expect(free != 0, 1)) {
        unsigned index = __builtin_ctz(free);
        here.taken |= 1u << index;
        frame = &here.own[index];
    } else {
        frame = static_cast<Frame*>(std::malloc(sizeof(Frame)));
        if (!frame) return nullptr;
    }
    *frame = Frame{engine, greenlet, settles, nullptr, nullptr, here.innermost};
    here.innermost = frame;
    return frame;
}
inline void leave_frame(Frame* frame) noexcept {
    Frames& here = frames();
    Frame** link = &here.innermost;
    while (*link && *link != frame) link = &(*link)->outer;  // the first, but where greenlets were switched
    if (!frame || !*link) return;
    *link = frame->outer;
    if (frame >= here.own && frame < here.own + OWN_FRAMES)
        here.taken &= ~(1u << (frame - here.own));
    else
        std::free(frame);
}
inline bool is_inside(const void* engine) noexcept {
    for (Frame* frame = innermost_frame(); frame; frame = frame->outer)
        if (frame->engine == engine) return true;
    return false;
}
inline bool is_settling(const void* engine) noexcept {
    for (Frame* frame = innermost_frame(); frame; frame = frame->outer)
        if (frame->engine == engine && frame->settles) return true;
    return false;
}

inline void* innermost_batch(const void* greenlet) noexcept {
    for (Frame* frame = innermost_frame(); frame; frame = frame->outer)
        if (frame->batch && frame->greenlet == greenlet) return frame->batch;
    return nullptr;
}
// Whether another greenlet of this thread is inside, and has switched to this one in the middle.
inline bool is_another_inside(const void* greenlet) noexcept {
    for (Frame* frame = innermost_frame(); frame; frame = frame->outer)
        if (frame->greenlet && frame->greenlet != greenlet) return true;
    return false;
}

// Where tests step in, see _core._hook: a bit for each point that has an action. One load and a branch that is never
// taken; none at all if compiled with FASTPIPE_NO_HOOKS.
inline std::atomic<uint32_t> hooked_points{0};
inline bool is_hooked(uint32_t point) noexcept {
#ifdef FASTPIPE_NO_HOOKS
    (void)point;
    return false;
#else
    return __builtin_expect(hooked_points.load(std::memory_order_relaxed) & (1u << point), 0);
#endif
}

// Have this process, the child of a fork, end without the exit handlers that the parent has registered: destructors of
// libraries' globals are among them, and those may wait for the parent's threads. Handlers run in reverse, so what the
// child registers later runs; so does all that Python does. Elsewhere than in glibc no handler is told the exit code.
inline void skip_exit_handlers() noexcept {
#ifdef __GLIBC__
    on_exit([](int status, void*) { std::fflush(nullptr); _exit(status); }, nullptr);
#endif
}

// The end of a process in which nothing can be trusted to run: SIGABRT, for which faulthandler shows all stacks.
[[noreturn]] inline void abort_process() noexcept { std::abort(); }

}  // namespace fastpipe
