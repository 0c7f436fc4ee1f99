// uint8 HWC images of one size -> (byte - mean) / std, NCHW, colors converted: each byte read once, each number
// written once, a batch in one launch.
//
// Grid: (chunks of an image, images). A thread has GROUP neighbouring pixels: as many as fill a 16-byte store.

const int GROUP = 16 / sizeof(Output);
const int WORDS = 3 * GROUP / 4;  // of the image, per group: 6, or 3 for float32

__device__ inline int byte_of(const unsigned (&words)[WORDS], int number)
{
    return (words[number / 4] >> (8 * (number % 4))) & 255;
}

template <bool IS_QUICK>
__device__ inline void write_group(const Batch& batch, const unsigned (&words)[WORDS], Output* at, long long plane_size)
{
    #pragma unroll
    for (int plane = 0; plane < 3; plane++) {
        union {
            Output values[GROUP];
            uint4 all;
        } group;
        #pragma unroll
        for (int i = 0; i < GROUP; i++) {
            const int byte = batch.is_reversed ? byte_of(words, 3 * i + 2 - plane) : byte_of(words, 3 * i + plane);
            group.values[i] = rounded(normalized<IS_QUICK>(batch, plane, byte));
        }
        __stcs((uint4*)(at + plane * plane_size), group.all);  // nobody reads it before it has left the cache
    }
}

extern "C" __global__ void __launch_bounds__(256) normalize(const __grid_constant__ Batch batch)
{
    const int number = blockIdx.y;
    const Image image = image_of(batch, number);
    const long long size = (long long)batch.height * batch.width;
    const long long group = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const bool is_contiguous = is_packed(image) && image.row_stride == 3LL * batch.width;
    const bool is_aligned = (Address)image.pixels % (WORDS % 2 ? 4 : 8) == 0 && size % GROUP == 0;

    if (is_contiguous && is_aligned && batch.planes == 3) {
        if (group * GROUP >= size)
            return;
        unsigned words[WORDS];
        const Byte* from = image.pixels + group * GROUP * 3;
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
        Output* at = (Output*)batch.result + number * 3 * size + group * GROUP;
        if (batch.is_quick)
            write_group<true>(batch, words, at, size);
        else
            write_group<false>(batch, words, at, size);
        return;
    }
    // Any layout: neighbouring threads have neighbouring pixels.
    const long long start = (long long)blockIdx.x * blockDim.x * GROUP + threadIdx.x;
    for (int i = 0; i < GROUP; i++) {
        const long long pixel = start + (long long)i * blockDim.x;
        if (pixel >= size)
            return;
        const int y = pixel / batch.width, x = pixel % batch.width;
        const Byte* from = image.pixels + y * image.row_stride + (long long)x * image.column_stride;
        write_pixel(batch, number, y, x, from[0], from[image.channel_stride], from[2LL * image.channel_stride]);
    }
}
