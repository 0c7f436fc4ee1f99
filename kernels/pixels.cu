// What every kernel here begins with: images as they are seen, and how bytes become the numbers of the result.
//
// cuda.py puts this file in front of each of the others and compiles them with NVRTC. It needs no header of CUDA's.
// Compiled without contraction of a * b + c: a product is rounded before it is added to, as on a CPU, unless
// __fmaf_rn is written. OUTPUT says what the result is made of: 0 float32, 1 float16, 2 bfloat16.

typedef unsigned char Byte;
typedef unsigned long long Address;

// An image, or a part of one; cuda.py packs a table of them. Axes as in NumPy: strides are in bytes, of any sign.
struct Image {
    const Byte* pixels;  // the first channel of the first pixel; never written to
    long long row_stride;
    int height, width;
    int column_stride, channel_stride;  // 3 and 1 are read fastest; a gray image is three equal channels, 0 apart
    int top, left, new_height, new_width;  // where it goes in the result, if the batch has places
};

const int TABLE_ROWS = 64;  // A launch has room for 4 KiB of arguments

// One launch. cuda.py packs it, in this order.
struct Batch {
    const Image* images;  // null: they are in `table`
    const double* matrices;
    void* result;  // (count, planes, height, width), C-contiguous, 16-byte aligned
    long long image_stride;  // of one array: table[0] is its first image, and the others are so many bytes apart
    int is_array;
    int height, width;
    int has_places;
    int band_rows, strip_columns;  // how resize_pillow cuts up the result of an image that costs so much:
    float largest_cost;
    int shared_bytes;
    int variant;  // of resize_pillow: not 0 is Pillow 13's order of passes; of warp: not 0 repeats the border
    // How a byte becomes a number; cuda.py keeps this part from call to call.
    int planes;
    int is_reversed;  // plane 0 comes from channel 2, and plane 2 from channel 0
    int gray_weights[3];  // of the channels; all zero: not to gray, or gray already
    int fill[3];  // what stands in each plane where no image is
    int is_quick;
    float mean[3], std[3], reciprocal[3];
    int unused;
    Image table[TABLE_ROWS];
};

__device__ inline Image image_of(const Batch& batch, int number)
{
    // Two assignments, not one of whichever it is: that would need an address, and keep the image in local memory.
    Image image;
    if (batch.images)
        image = batch.images[number];
    else
        image = batch.table[batch.is_array ? 0 : number];
    image.pixels += number * batch.image_stride;
    if (!batch.has_places) {
        image.top = image.left = 0;
        image.new_height = batch.height;
        image.new_width = batch.width;
    }
    return image;
}

__device__ inline bool is_packed(const Image& image) { return image.column_stride == 3 && image.channel_stride == 1; }

#if OUTPUT == 0
typedef float Output;
__device__ inline Output rounded(float value) { return value; }
#elif OUTPUT == 1
typedef unsigned short Output;  // the bits of a float16
__device__ inline Output rounded(float value)
{
    Output bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#else
typedef unsigned short Output;  // the bits of a bfloat16; no value here is NaN
__device__ inline Output rounded(float value)
{
    const unsigned bits = __float_as_uint(value);
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
#endif

// CuPy compiles so that the least floats, below 2**-126, count as zero; not here, where they are divided by.
__device__ inline float quotient_of(float dividend, float divisor)
{
    float quotient;
    asm("div.rn.f32 %0, %1, %2;" : "=f"(quotient) : "f"(dividend), "f"(divisor));
    return quotient;
}

// Returns (byte - mean) / std as float32, the same bits as a division gives.
//
// IS_QUICK: by the reciprocal and one correction of the quotient, a third of the instructions. cuda.py has tried all
// 256 bytes of each plane and says so only where the bits are the same.
template <bool IS_QUICK>
__device__ inline float normalized(const Batch& batch, int plane, int byte)
{
    const float difference = (float)byte - batch.mean[plane];
    if (!IS_QUICK)
        return quotient_of(difference, batch.std[plane]);
    const float quotient = difference * batch.reciprocal[plane];
    const float remainder = __fmaf_rn(-quotient, batch.std[plane], difference);
    return __fmaf_rn(remainder, batch.reciprocal[plane], quotient);
}

__device__ inline Output value_of(const Batch& batch, int plane, int byte)
{
    return rounded(batch.is_quick ? normalized<true>(batch, plane, byte) : normalized<false>(batch, plane, byte));
}

// Writes a pixel, given its three channels in the image's order.
__device__ inline void write_pixel(const Batch& batch, int number, int y, int x, int first, int second, int third)
{
    const long long plane_size = (long long)batch.height * batch.width;
    Output* at = (Output*)batch.result + number * batch.planes * plane_size + (long long)y * batch.width + x;
    if (batch.planes == 1) {
        const int* weights = batch.gray_weights;
        if (weights[0])
            first = (weights[0] * first + weights[1] * second + weights[2] * third + (1 << 14)) >> 15;
        *at = value_of(batch, 0, first);
        return;
    }
    at[0] = value_of(batch, 0, batch.is_reversed ? third : first);
    at[plane_size] = value_of(batch, 1, second);
    at[2 * plane_size] = value_of(batch, 2, batch.is_reversed ? first : third);
}

// Writes what stands where no image is.
__device__ inline void write_fill(const Batch& batch, int number, int y, int x)
{
    const long long plane_size = (long long)batch.height * batch.width;
    Output* at = (Output*)batch.result + number * batch.planes * plane_size + (long long)y * batch.width + x;
    for (int plane = 0; plane < batch.planes; plane++)
        at[plane * plane_size] = value_of(batch, plane, batch.fill[plane]);
}

// Reads COUNT * 4 bytes from anywhere, in aligned words, none of which lies wholly outside of the first `needed` bytes.
template <int COUNT>
__device__ inline void read_words(const Byte* from, int needed, unsigned (&words)[COUNT])
{
    const int phase = (Address)from & 3;
    const unsigned* aligned = (const unsigned*)(from - phase);
    unsigned current = __ldg(aligned);
    #pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const unsigned next = 4 * (i + 1) < phase + needed ? __ldg(aligned + i + 1) : 0;
        words[i] = __funnelshift_r(current, next, 8 * phase);
        current = next;
    }
}
