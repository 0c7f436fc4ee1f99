// Rows of an image, on their way into shared memory.
//
// A row comes as it lies, in whole 16 bytes, of the first and last of which the image has some but need not have all: its
// first byte is at `to` + (its address & 15). Groups of rows take turns in two places: turn t is in place t % 2. All
// threads of a block call each of these functions, for each turn: begin_rows, await_rows, then, when a warp has read the
// last of them, have_read, and await_read before the turn after the next begins. __syncthreads() comes after
// begin_barriers.
//
// From compute capability 9.0 on an engine copies: one instruction a row. Before, each thread copies 16 bytes at a time.

struct Barrier {
    unsigned long long state;
};

struct Barriers {
    Barrier filled[2], emptied[2];
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define HAS_COPY_ENGINE 1
#endif

#ifdef HAS_COPY_ENGINE
__device__ inline unsigned shared_address(const void* at) { return (unsigned)__cvta_generic_to_shared(at); }
#endif

#ifdef HAS_COPY_ENGINE
__device__ inline void init_barrier(Barrier& barrier, int count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(count) : "memory");
}

// Returns once a barrier has been passed more than `turn` times.
__device__ inline void await_turn(Barrier& barrier, int turn)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(shared_address(&barrier)),
                 "r"(turn & 1)
                 : "memory");
}
#endif

__device__ inline void begin_barriers(Barriers& barriers)
{
#ifdef HAS_COPY_ENGINE
    if (threadIdx.x == 0 && threadIdx.y == 0) {
        for (int i = 0; i < 2; i++) {
            init_barrier(barriers.filled[i], 32);  // so many threads begin copies
            init_barrier(barriers.emptied[i], blockDim.y);
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
#endif
}

// Begins to copy `count` rows, at most 32, `bytes` of each: number i from `row(i)` to `to` + i * pitch.
template <class Row>
__device__ inline void begin_rows(
    Barriers& barriers, int turn, char* to, int pitch, int count, int bytes, const Row& row)
{
#ifdef HAS_COPY_ENGINE
    const int number = threadIdx.x * blockDim.y + threadIdx.y;  // each warp begins its share
    if (number >= 32)
        return;
    const unsigned at = shared_address(&barriers.filled[turn % 2]);
    const Byte* from = row(min(number, count - 1));
    const int phase = (Address)from & 15;
    const int size = number < count ? (phase + bytes + 15) & ~15 : 0;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(size) : "memory");
    if (size)
        asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                shared_address(to + number * pitch)),
            "l"(from - phase), "r"(size), "r"(at)
            : "memory");
#else
    for (int number = threadIdx.y; number < count; number += blockDim.y) {
        const Byte* from = row(number);
        const int phase = (Address)from & 15;
        const uint4* aligned = (const uint4*)(from - phase);
        uint4* line = (uint4*)(to + number * pitch);
        for (int i = threadIdx.x; 16 * i < phase + bytes; i += 32) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                             (unsigned)__cvta_generic_to_shared(line + i)),
                         "l"(aligned + i));
#else
            line[i] = aligned[i];
#endif
        }
    }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
#endif
}

// Stands for begin_rows where there are no more, so that `LATER` is right.
__device__ inline void begin_no_rows()
{
#if !defined(HAS_COPY_ENGINE) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Returns when the rows of a turn are there. LATER: of how many turns begin_rows or begin_no_rows came after it.
template <int LATER>
__device__ inline void await_rows(Barriers& barriers, int turn)
{
#ifdef HAS_COPY_ENGINE
    await_turn(barriers.filled[turn % 2], turn / 2);
#else
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
#endif
    __syncthreads();
#endif
}

// Says that this warp needs the rows of a turn no more.
__device__ inline void have_read(Barriers& barriers, int turn)
{
#ifdef HAS_COPY_ENGINE
    __syncwarp();
    if (threadIdx.x == 0)
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barriers.emptied[turn % 2]))
                     : "memory");
#endif
}

// Returns when no warp needs the rows of a turn any more.
__device__ inline void await_read(Barriers& barriers, int turn)
{
#ifdef HAS_COPY_ENGINE
    await_turn(barriers.emptied[turn % 2], turn / 2);
#else
    __syncthreads();
#endif
}
