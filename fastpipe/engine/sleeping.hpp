// How a thread sleeps until a word changes, in two ways that behave alike: a futex of Linux's kernel, or a table of sleepers.
//
// Guarantees   No lost wake-up: looking at the word and falling asleep are one step for whoever calls futex_wake after it has
//              changed the word. Sleeping and waking need no memory, and take no GIL.
// Assumes      Whoever wakes has changed the word before, by an atomic operation of any order. The word may be gone by then:
//              only its address is used. So a sleeper may wake for nothing, and every one here looks again in a loop.
// Memory       What a thread did before futex_wake happens before its sleeper's return. (The engine does not rely on that: each
//              word has an order of its own.)
// The table    For systems without futexes, and with -DFASTPIPE_PORTABLE_WAIT for tests. Sleepers stand in one of some lists, by
//              their word's address; a list has a mutex. The difference for users: a signal ends no sleep early, so the main
//              thread serves it up to 100 ms later (first_slice in waiting.pxi).
#pragma once
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <ctime>

#if defined(__linux__) && !defined(FASTPIPE_PORTABLE_WAIT)
#define FASTPIPE_HAS_FUTEX 1
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#define FASTPIPE_HAS_FUTEX 0
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <pthread.h>
#endif
#ifdef __linux__
#include <sys/prctl.h>
#endif

namespace fastpipe {

using Word = std::atomic<uint32_t>;
static_assert(sizeof(Word) == 4 && Word::is_always_lock_free, "the kernel compares a plain 32-bit word");

constexpr bool HAS_FUTEX = FASTPIPE_HAS_FUTEX;

// The clock of time.monotonic(), which times in the log and in measurements are compared with.
inline int64_t kernel_now_ns() noexcept {
    timespec t;
#ifdef __APPLE__
    clock_gettime(CLOCK_UPTIME_RAW, &t);
#else
    clock_gettime(CLOCK_MONOTONIC, &t);
#endif
    return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

// Timed waits of this thread end within about 2 us of their deadline; Linux's default allows 50 us.
inline void want_precise_timers() noexcept {
#ifdef __linux__
    prctl(PR_SET_TIMERSLACK, 2000UL, 0, 0, 0);
#endif
}

#if FASTPIPE_HAS_FUTEX

// Sleep while *word == expected. Returns 0 when woken or when the word differs, else ETIMEDOUT or EINTR.
// deadline_ns: absolute, of kernel_now_ns; negative: none.
inline int sleep_on(Word* word, uint32_t expected, int64_t deadline_ns) noexcept {
    timespec t;
    if (deadline_ns >= 0) {
        t.tv_sec = deadline_ns / 1000000000;
        t.tv_nsec = deadline_ns % 1000000000;
    }
    long r = syscall(SYS_futex, word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, expected, deadline_ns >= 0 ? &t : nullptr,
                     nullptr, FUTEX_BITSET_MATCH_ANY);
    return r == 0 || errno == EAGAIN ? 0 : errno;
}

// Wake up to `count` sleepers. Of a word that is gone the kernel says EFAULT, or somebody else's sleeper wakes for nothing.
inline void futex_wake(Word* word, int count) noexcept {
    syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, count, nullptr, nullptr, 0);
}

#else

struct Sleeper {  // on its thread's stack, in its list until it is woken or gives up
    explicit Sleeper(const Word* its) noexcept : word(its) {}
    const Word* const word;
    bool is_woken = false;
    Sleeper* before = nullptr;
    Sleeper* after = nullptr;
    std::condition_variable woken;
};

struct SleeperList {
    std::mutex desk;  // guards all that follows, and all fields of the sleepers in it
    Sleeper* first = nullptr;
    Sleeper* last = nullptr;

    void add(Sleeper* sleeper) noexcept {
        sleeper->before = last;
        (last ? last->after : first) = sleeper;
        last = sleeper;
    }
    void remove(Sleeper* sleeper) noexcept {
        (sleeper->before ? sleeper->before->after : first) = sleeper->after;
        (sleeper->after ? sleeper->after->before : last) = sleeper->before;
    }
};

constexpr size_t SLEEPER_LISTS = 256;  // more than threads that sleep, as a rule; 32 KB

// Never destroyed: threads may sleep while the process ends.
union SleeperTable {
    SleeperList lists[SLEEPER_LISTS];
    constexpr SleeperTable() noexcept : lists() {}
    ~SleeperTable() {}
};
inline SleeperTable sleeper_table;

// In the child of a fork nobody sleeps, and whoever held a list's mutex is not there to unlock it.
inline void forget_sleepers() noexcept {
    for (SleeperList& list : sleeper_table.lists) new (&list) SleeperList();
}

inline const int told_of_forks = pthread_atfork(nullptr, nullptr, forget_sleepers);

inline SleeperList& sleepers_of(const Word* word) noexcept {
    const auto address = reinterpret_cast<uintptr_t>(word) >> 2;
    return sleeper_table.lists[(address ^ address >> 8 ^ address >> 16) % SLEEPER_LISTS];
}

// As above; never EINTR.
inline int sleep_on(Word* word, uint32_t expected, int64_t deadline_ns) noexcept {
    SleeperList& list = sleepers_of(word);
    std::unique_lock<std::mutex> lock(list.desk);
    // Relaxed: whoever has changed the word wakes under this mutex, before (then its change is seen here) or afterwards.
    if (word->load(std::memory_order_relaxed) != expected) return 0;
    Sleeper me(word);
    list.add(&me);
    while (!me.is_woken) {
        if (deadline_ns < 0) {
            me.woken.wait(lock);
            continue;
        }
        const int64_t left_ns = deadline_ns - kernel_now_ns();
        if (left_ns <= 0) {
            list.remove(&me);
            return ETIMEDOUT;
        }
        me.woken.wait_for(lock, std::chrono::nanoseconds(left_ns));
    }
    return 0;
}

inline void futex_wake(Word* word, int count) noexcept {
    SleeperList& list = sleepers_of(word);
    const std::lock_guard<std::mutex> lock(list.desk);  // while it is told, too: once it is free, the sleeper may be gone
    Sleeper* after;
    for (Sleeper* sleeper = list.first; sleeper && count > 0; sleeper = after) {
        after = sleeper->after;
        if (sleeper->word != word) continue;
        list.remove(sleeper);
        sleeper->is_woken = true;
        sleeper->woken.notify_one();
        count--;
    }
}

#endif

}  // namespace fastpipe
