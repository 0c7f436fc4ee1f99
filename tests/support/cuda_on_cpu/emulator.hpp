// CUDA's words for a C++ compiler: enough of them to run the kernels of this repository on a CPU, block after block.
//
// The threads of a block are fibers of one thread, run in order up to the next __syncthreads(), or up to an operation of
// all threads of a warp. That finds wrong arithmetic, wrong indexes and barriers that not all threads reach; it does not
// find races.

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __device__
#define __global__
#define __grid_constant__
#define __shared__ static
#define __launch_bounds__(...)

struct uint2 {
    unsigned x, y;
};
struct uint4 {
    unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct Dimensions {
    int x = 1, y = 1, z = 1;
};
static Dimensions blockIdx, threadIdx, blockDim;

using std::max;
using std::min;

template <class T>
T __ldg(const T* address)
{
    T value;
    memcpy(&value, address, sizeof value);
    return value;
}
template <class T>
T __ldcs(const T* address)
{
    return __ldg(address);
}
template <class T>
void __stcs(T* address, T value)
{
    memcpy(address, &value, sizeof value);
}
inline unsigned __float_as_uint(float value) { return __ldg((const unsigned*)&value); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, int shift)
{
    return (unsigned)(((std::uint64_t)high << 32 | low) >> (shift & 31));
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector)
{
    const std::uint64_t both = (std::uint64_t)y << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; i++)
        result |= (unsigned)(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return result;
}
inline unsigned byte_of(unsigned word, int number) { return word >> 8 * number & 255; }
inline unsigned __dp2a_lo(unsigned halves, unsigned bytes, unsigned sum)
{
    return sum + (halves & 65535) * byte_of(bytes, 0) + (halves >> 16) * byte_of(bytes, 1);
}
inline unsigned __dp2a_hi(unsigned halves, unsigned bytes, unsigned sum) { return __dp2a_lo(halves, bytes >> 16, sum); }

// What cvt.rn.f16.f32 does.
inline unsigned short half_of(float value)
{
    _Float16 half = (_Float16)value;
    unsigned short bits;
    memcpy(&bits, &half, sizeof bits);
    return bits;
}

// ---- fibers -------------------------------------------------------------------------------------------------------

enum State { RUNS, AT_BLOCK_BARRIER, AT_WARP_BARRIER, ENDED };

struct Fiber {
    ucontext_t context;
    jmp_buf place;  // where it goes on; swapcontext would ask the system for signals each time
    Dimensions number;
    State state;
    bool has_begun;
};
static std::vector<Fiber> fibers;
static std::vector<char> stacks;
static jmp_buf scheduler_place;
static Fiber* running;
static std::function<void()> body;
const std::size_t STACK_BYTES = 64 * 1024;
const int WARP = 32;

__attribute__((noipa)) static void leave(State state)
{
    running->state = state;
    if (!_setjmp(running->place))
        _longjmp(scheduler_place, 1);
}

inline void __syncthreads() { leave(AT_BLOCK_BARRIER); }

static void enter()
{
    body();
    leave(ENDED);
}

__attribute__((noipa)) static void resume(Fiber& fiber)
{
    running = &fiber;
    threadIdx = fiber.number;
    if (_setjmp(scheduler_place))
        return;
    if (fiber.has_begun)
        _longjmp(fiber.place, 1);
    fiber.has_begun = true;
    setcontext(&fiber.context);
}

// Lets fibers that wait for each other go on. Returns whether there are any.
static bool release()
{
    bool is_any = false;
    const auto all_wait = [](std::size_t begin, std::size_t end, State state) {
        return std::all_of(&fibers[begin], &fibers[begin] + (end - begin), [state](const Fiber& fiber) {
            return fiber.state == state;
        });
    };
    const auto let_go = [&is_any](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; i++)
            fibers[i].state = RUNS;
        is_any = true;
    };
    if (all_wait(0, fibers.size(), AT_BLOCK_BARRIER))
        let_go(0, fibers.size());
    for (std::size_t begin = 0; begin < fibers.size(); begin += WARP) {
        const std::size_t end = std::min(begin + WARP, fibers.size());
        if (all_wait(begin, end, AT_WARP_BARRIER))
            let_go(begin, end);
    }
    return is_any;
}

// Runs a kernel. Returns 1 if some threads of a block ended, or were elsewhere, while others waited at a barrier.
template <class Kernel>
int run(Kernel kernel, int blocks_x, int blocks_y, int blocks_z, int threads_x, int threads_y)
{
    body = kernel;
    blockDim = {threads_x, threads_y};
    fibers.resize(threads_x * threads_y);
    stacks.resize(fibers.size() * STACK_BYTES);
    for (int block = 0; block < blocks_x * blocks_y * blocks_z; block++) {
        blockIdx = {block % blocks_x, block / blocks_x % blocks_y, block / blocks_x / blocks_y};
        for (std::size_t i = 0; i < fibers.size(); i++) {
            getcontext(&fibers[i].context);
            fibers[i].context.uc_stack.ss_sp = &stacks[i * STACK_BYTES];
            fibers[i].context.uc_stack.ss_size = STACK_BYTES;
            fibers[i].context.uc_link = nullptr;
            makecontext(&fibers[i].context, enter, 0);
            fibers[i].number = {(int)i % threads_x, (int)i / threads_x};
            fibers[i].state = RUNS;
            fibers[i].has_begun = false;
        }
        do {
            for (Fiber& fiber : fibers)
                if (fiber.state == RUNS)
                    resume(fiber);
        } while (release());
        for (const Fiber& fiber : fibers)
            if (fiber.state != ENDED)
                return 1;
    }
    return 0;
}

// ---- what the threads of a warp do together -----------------------------------------------------------------------

// Gives each thread of a warp what all have brought. Two tables: who is a step ahead writes to the other one.
template <class T>
const T* exchanged(const T& mine)
{
    static std::vector<T> tables[2];
    static std::vector<int> turns;
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    turns.resize(fibers.size());
    std::vector<T>& table = tables[turns[thread] ^= 1];
    table.resize(fibers.size());
    table[thread] = mine;
    leave(AT_WARP_BARRIER);
    return &table[thread / WARP * WARP];
}

// mma.m16n8k32 (WORDS 2) and mma.m16n8k16 (WORDS 1) of unsigned bytes.
template <int WORDS>
void multiply_warp(int (&sums)[4], const unsigned (&left)[2 * WORDS], const unsigned (&right)[WORDS])
{
    struct Operands {
        unsigned left[2 * WORDS], right[WORDS];
    } mine;
    memcpy(mine.left, left, sizeof left);
    memcpy(mine.right, right, sizeof right);
    const int lane = (threadIdx.y * blockDim.x + threadIdx.x) % WARP;
    const Operands* all = exchanged(mine);
    for (int i = 0; i < 4; i++)
        for (int word = 0; word < WORDS; word++)
            for (int of_four = 0; of_four < 4; of_four++) {
                const unsigned a = all[lane / 4 * 4 + of_four].left[2 * word + i / 2];
                const unsigned b = all[(lane % 4 * 2 + i % 2) * 4 + of_four].right[word];
                for (int byte = 0; byte < 4; byte++)
                    sums[i] += byte_of(a, byte) * byte_of(b, byte);
            }
}
inline void multiply_32(int (&sums)[4], const unsigned (&left)[4], uint2 right)
{
    multiply_warp<2>(sums, left, {right.x, right.y});
}
inline void multiply_16(int (&sums)[4], uint2 left, unsigned right)
{
    multiply_warp<1>(sums, {left.x, left.y}, {right});
}

// movmatrix.m8n8.trans.b16.
inline unsigned turned_warp(unsigned pairs)
{
    const int lane = (threadIdx.y * blockDim.x + threadIdx.x) % WARP;
    const unsigned* all = exchanged(pairs);
    const int row = lane / 4, column = lane % 4 * 2;
    const auto pair = [all](int row, int column) { return all[4 * row + column / 2] >> column % 2 * 16 & 65535; };
    return pair(column, row) | pair(column + 1, row) << 16;
}
