// CUDA's words for a C++ compiler: enough of them to run the kernels of this repository on a CPU, block after block.
//
// The threads of a block are fibers of one thread, run in order up to the next __syncthreads(). That finds wrong
// arithmetic, wrong indexes and barriers that not all threads reach; it does not find races.

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

struct Dimensions {
    int x = 1, y = 1;
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
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum)
{
    for (int i = 0; i < 4; i++)
        sum += byte_of(a, i) * byte_of(b, i);
    return sum;
}
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

struct Fiber {
    ucontext_t context;
    Dimensions number;
    bool has_ended;
};
static std::vector<Fiber> fibers;
static std::vector<char> stacks;
static ucontext_t scheduler;
static Fiber* running;
static std::function<void()> body;
const std::size_t STACK_BYTES = 64 * 1024;

inline void __syncthreads() { swapcontext(&running->context, &scheduler); }

static void enter()
{
    body();
    running->has_ended = true;
    swapcontext(&running->context, &scheduler);
}

// Runs a kernel. Returns 1 if some threads of a block ended while others waited at a barrier.
template <class Kernel>
int run(Kernel kernel, int blocks_x, int blocks_y, int threads_x, int threads_y)
{
    body = kernel;
    blockDim = {threads_x, threads_y};
    fibers.resize(threads_x * threads_y);
    stacks.resize(fibers.size() * STACK_BYTES);
    for (int block = 0; block < blocks_x * blocks_y; block++) {
        blockIdx = {block % blocks_x, block / blocks_x};
        for (std::size_t i = 0; i < fibers.size(); i++) {
            getcontext(&fibers[i].context);
            fibers[i].context.uc_stack.ss_sp = &stacks[i * STACK_BYTES];
            fibers[i].context.uc_stack.ss_size = STACK_BYTES;
            fibers[i].context.uc_link = nullptr;
            makecontext(&fibers[i].context, enter, 0);
            fibers[i].number = {(int)i % threads_x, (int)i / threads_x};
            fibers[i].has_ended = false;
        }
        for (;;) {
            std::size_t ended = 0;
            for (Fiber& fiber : fibers) {
                running = &fiber;
                threadIdx = fiber.number;
                swapcontext(&scheduler, &fiber.context);
                ended += fiber.has_ended;
            }
            if (ended == fibers.size())
                break;
            if (ended)
                return 1;
        }
    }
    return 0;
}
