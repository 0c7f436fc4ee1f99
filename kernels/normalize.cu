// uint8 HWC images of one size -> (byte - mean) / std, NCHW, colors converted: each byte read once, each number
// written once, a batch in one launch.
//
// Grid: (chunks of an image, 1, images). A thread has a group of GROUP neighbouring pixels, as many as fill a 16-byte
// store; or `band_rows` groups, where not all planes begin with a whole store. Shared memory: `shared_bytes`, for the
// bytes of a chunk and a line.

const int THREADS = 128;
const int GROUP = 16 / sizeof(Output);
const int WORDS = 3 * GROUP / 4;  // of the image, per group: 6, or 3 for float32
const int STRIDE = THREADS * GROUP;  // pixels from a thread's group to its next one
const int LINE = 128 / sizeof(Output);  // numbers in a line of the cache

extern __shared__ uint4 shared[];

__device__ inline int byte_of(const unsigned (&words)[WORDS], int number)
{
    return (words[number / 4] >> (8 * (number % 4))) & 255;
}

// Numbers of one plane.
union Group {
    decltype(rounded(0.f, 0.f)) pairs[GROUP / 2];
    Output values[GROUP];
    uint4 all;
};

// Returns those made of byte `first` of the words, and of each third byte from there on.
template <bool IS_QUICK>
__device__ inline Group group_of(const Batch& batch, int plane, const unsigned (&words)[WORDS], int first)
{
    Group group;
    #pragma unroll
    for (int i = 0; i < GROUP / 2; i++)
        group.pairs[i] = rounded(
            normalized<IS_QUICK>(batch, plane, byte_of(words, 6 * i + first)),
            normalized<IS_QUICK>(batch, plane, byte_of(words, 6 * i + first + 3)));
    return group;
}

// ---- planes and pixels that begin where 16-byte stores and 8-byte loads can ----------------------------------------

template <bool IS_QUICK>
__device__ inline void write_aligned(const Batch& batch, const unsigned (&words)[WORDS], Output* at, long long size)
{
    #pragma unroll
    for (int plane = 0; plane < 3; plane++) {
        // Two calls, so that each knows its bytes when it is compiled.
        const Group group = batch.is_reversed ? group_of<IS_QUICK>(batch, plane, words, 2 - plane)
                                              : group_of<IS_QUICK>(batch, plane, words, plane);
        __stcs((uint4*)(at + plane * size), group.all);  // nobody reads it before it has left the cache
    }
}

__device__ inline void read_aligned(const Byte* from, unsigned (&words)[WORDS])
{
#if OUTPUT == 0
    #pragma unroll
    for (int i = 0; i < WORDS; i++)
        words[i] = __ldcs((const unsigned*)from + i);
#else
    #pragma unroll
    for (int i = 0; i < WORDS; i += 2) {
        const uint2 two = __ldcs((const uint2*)(from + 4 * i));  // nobody reads it again
        words[i] = two.x;
        words[i + 1] = two.y;
    }
#endif
}

__device__ inline void normalize_aligned(const Batch& batch, int number, const Byte* pixels, long long size)
{
    const long long first = (long long)blockIdx.x * STRIDE + threadIdx.x * GROUP;
    if (first >= size)
        return;
    unsigned words[WORDS];
    read_aligned(pixels + 3 * first, words);
    Output* at = (Output*)batch.result + number * 3 * size + first;
    if (batch.is_quick)
        write_aligned<true>(batch, words, at, size);
    else
        write_aligned<false>(batch, words, at, size);
}

// ---- the others: bytes by way of shared memory, stores from the next whole line of each plane on --------------------

// Writes a plane's numbers of a chunk, the first of which are `head` pixels behind the chunk's. `bytes` has the first
// pixel's byte of the plane at `first`; `left` pixels are the image's from the chunk on.
template <bool IS_QUICK>
__device__ inline void write_plane(
    const Batch& batch, int plane, const unsigned* bytes, int first, int head, int left, Output* at)
{
    first += 3 * head;
    at += head;
    left -= head;
    for (int mine = threadIdx.x * GROUP; mine < left; mine += STRIDE) {
        const unsigned* aligned = bytes + (first + 3 * mine) / 4;
        const int shift = 8 * (first & 3);  // 3 * mine is made of whole words
        unsigned words[WORDS];
        #pragma unroll
        for (int word = 0; word < WORDS; word++)
            words[word] = __funnelshift_r(aligned[word], aligned[word + 1], shift);
        const Group group = group_of<IS_QUICK>(batch, plane, words, 0);
        if (mine + GROUP <= left) {
            __stcs((uint4*)(at + mine), group.all);
        } else {
            #pragma unroll
            for (int number = 0; number < GROUP; number++)
                if (mine + number < left)
                    at[mine + number] = group.values[number];
        }
    }
}

__device__ inline void normalize_staged(const Batch& batch, int number, const Byte* pixels, long long size)
{
    const int chunk = batch.band_rows * STRIDE;
    const long long start = (long long)blockIdx.x * chunk;
    const Byte* from = pixels + 3 * start;
    const int phase = (Address)from & 15;
    const int left = (int)min((long long)(chunk + LINE), size - start);
    for (int i = threadIdx.x; 16 * i < phase + 3 * left; i += THREADS)
        shared[i] = __ldcs((const uint4*)(from - phase) + i);
    __syncthreads();
    #pragma unroll 1
    for (int plane = 0; plane < 3; plane++) {
        Output* at = (Output*)batch.result + (number * 3LL + plane) * size;
        const int head = (-(Address)at & 127) / sizeof(Output);  // before the first whole line
        const int first = phase + (batch.is_reversed ? 2 - plane : plane);
        if (blockIdx.x == 0 && (int)threadIdx.x < min(head, left))
            at[threadIdx.x] = value_of(batch, plane, ((const Byte*)shared)[3 * threadIdx.x + first]);
        const int until = min(left, chunk + head);
        if (batch.is_quick)
            write_plane<true>(batch, plane, (const unsigned*)shared, first, head, until, at + start);
        else
            write_plane<false>(batch, plane, (const unsigned*)shared, first, head, until, at + start);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) normalize(const __grid_constant__ Batch batch)
{
    let_next_begin();
    const int number = blockIdx.z;
    const Image image = image_of(batch, number);
    const long long size = (long long)batch.height * batch.width;
    await_previous();

    if (is_packed(image) && image.row_stride == 3LL * batch.width && batch.planes == 3) {
        if ((Address)image.pixels % (WORDS % 2 ? 4 : 8) == 0 && size % GROUP == 0 && batch.band_rows == 1)
            normalize_aligned(batch, number, image.pixels, size);
        else
            normalize_staged(batch, number, image.pixels, size);
        return;
    }
    // Any layout: neighbouring threads have neighbouring pixels.
    const long long start = (long long)blockIdx.x * batch.band_rows * STRIDE + threadIdx.x;
    for (int i = 0; i < batch.band_rows * GROUP; i++) {
        const long long pixel = start + (long long)i * THREADS;
        if (pixel >= size)
            return;
        const int y = pixel / batch.width, x = pixel % batch.width;
        const Byte* from = image.pixels + y * image.row_stride + (long long)x * image.column_stride;
        write_pixel(batch, place_of(batch, number, y, x), from[0], from[image.channel_stride], from[2LL * image.channel_stride]);
    }
}
