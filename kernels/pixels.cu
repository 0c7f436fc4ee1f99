// What every kernel here begins with: images as they are seen, and how bytes become the numbers of the result.
//
// _cuda_device.py puts this file in front of each of the others, and some of them in front of those that need them, and
// compiles that with NVRTC. It needs no header of CUDA's.
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

const int TABLE_ROWS = 64;  // a launch takes fastest what needs no more than 4 KiB of arguments

// Which images a launch is for.
enum Source {
    BY_ROW = 0,  // a row of the table for each
    BY_STRIDE = 1,  // row 0 is the first image's, and the others are image_stride bytes apart
    BY_ADDRESS = 2,  // row 0 is everybody's but for the address; the addresses fill the rest of the table
};

// One launch. cuda.py packs it, in this order.
struct Batch {
    const Image* images;  // null: they are in `table`
    const double* matrices;
    void* result;  // (count, planes, height, width), C-contiguous, 16-byte aligned
    long long image_stride;
    int source;
    int height, width;
    int has_places;
    int band_rows, strip_columns;  // how resize_pillow cuts up the result; groups of a thread of normalize
    int most_bands;  // that a block of either resize makes
    int shared_bytes;  // of a block
    int variant;  // of resize_pillow: not 0 is Pillow 13's order of passes; of warp: see there
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

// Launches of one stream follow each other closely, where the GPU can do it (from compute capability 9.0 on): a launch
// begins while the last blocks of the one before still run. It may look at its arguments, and nothing else, before
// `await_previous`, which every thread calls before it ends.
__device__ inline void let_next_begin()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ inline void await_previous()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ inline Image image_of(const Batch& batch, int number)
{
    // Two assignments, not one of whichever it is: that would need an address, and keep the image in local memory.
    Image image;
    if (batch.images) {
        await_previous();  // a table that was copied
        image = batch.images[number];
    } else {
        image = batch.table[batch.source == BY_ROW ? number : 0];
    }
    if (batch.source == BY_ADDRESS)
        image.pixels = ((const Byte* const*)(batch.table + 1))[number];
    image.pixels += number * batch.image_stride;
    if (!batch.has_places) {
        image.top = image.left = 0;
        image.new_height = batch.height;
        image.new_width = batch.width;
    }
    return image;
}

// The part of a result that a block makes, and what of it an image fills.
struct Piece {
    int first_row, stop_row, first_column, stop_column;  // of the result
    int first_y, first_x, rows, columns;  // of the image in its new size; no rows or no columns: it fills nothing
};

// Returns the piece of a block, of so many rows and columns; of a block that is left over, one without any.
__device__ inline Piece piece_of(const Batch& batch, const Image& image, int rows, int columns)
{
    Piece piece;
    piece.first_column = blockIdx.x * columns;
    piece.stop_column = min(piece.first_column + columns, batch.width);
    piece.first_row = min((int)blockIdx.y * rows, batch.height);
    piece.stop_row = min(piece.first_row + rows, batch.height);
    piece.first_x = max(piece.first_column - image.left, 0);
    piece.first_y = max(piece.first_row - image.top, 0);
    piece.columns = max(min(piece.stop_column - image.left, image.new_width) - piece.first_x, 0);
    piece.rows = max(min(piece.stop_row - image.top, image.new_height) - piece.first_y, 0);
    return piece;
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

#if OUTPUT == 0
__device__ inline uint2 rounded(float first, float second)
{
    return make_uint2(__float_as_uint(first), __float_as_uint(second));
}
#elif OUTPUT == 1 && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800)
__device__ inline unsigned rounded(float first, float second)
{
    unsigned bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
    return bits;
}
#else
__device__ inline unsigned rounded(float first, float second) { return rounded(first) | rounded(second) << 16; }
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

// Where a pixel of the result is.
struct Place {
    Output* at;  // its number in the first plane
    long long plane_size;
};

__device__ inline Place place_of(const Batch& batch, int number, int y, int x)
{
    Place place;
    place.plane_size = (long long)batch.height * batch.width;
    place.at = (Output*)batch.result + number * batch.planes * place.plane_size + (long long)y * batch.width + x;
    return place;
}

// Writes a pixel, given its three channels in the image's order.
__device__ inline void write_pixel(const Batch& batch, const Place& place, int first, int second, int third)
{
    if (batch.planes == 1) {
        const int* weights = batch.gray_weights;
        if (weights[0])
            first = (weights[0] * first + weights[1] * second + weights[2] * third + (1 << 14)) >> 15;
        *place.at = value_of(batch, 0, first);
        return;
    }
    const int bytes[3] = {batch.is_reversed ? third : first, second, batch.is_reversed ? first : third};
    if (batch.is_quick) {
        #pragma unroll
        for (int plane = 0; plane < 3; plane++)
            place.at[plane * place.plane_size] = rounded(normalized<true>(batch, plane, bytes[plane]));
    } else {
        for (int plane = 0; plane < 3; plane++)
            place.at[plane * place.plane_size] = rounded(normalized<false>(batch, plane, bytes[plane]));
    }
}

// Writes two pixels that are next to each other, the first of them at an even place, to three planes. Returns false,
// and does nothing, if that is not what the result is like.
__device__ inline bool write_pair(const Batch& batch, const Place& place, const int (&first)[3], const int (&second)[3])
{
    if (!batch.is_quick || batch.planes == 1 || batch.width % 2 || (Address)place.at % (2 * sizeof(Output)))
        return false;
    #pragma unroll
    for (int plane = 0; plane < 3; plane++) {
        const int left = batch.is_reversed ? first[2 - plane] : first[plane];
        const int right = batch.is_reversed ? second[2 - plane] : second[plane];
        const auto pair = rounded(normalized<true>(batch, plane, left), normalized<true>(batch, plane, right));
        *(decltype(rounded(0.f, 0.f))*)(place.at + plane * place.plane_size) = pair;
    }
    return true;
}

// Writes what stands where no image is.
__device__ inline void write_fill(const Batch& batch, const Place& place)
{
    for (int plane = 0; plane < batch.planes; plane++)
        place.at[plane * place.plane_size] = value_of(batch, plane, batch.fill[plane]);
}

// Writes a piece where its image is not.
__device__ inline void write_fills(const Batch& batch, int number, const Image& image, const Piece& piece)
{
    const int columns = piece.stop_column - piece.first_column, rows = piece.stop_row - piece.first_row;
    if (columns == piece.columns && rows == piece.rows)
        return;
    for (int i = blockDim.x * threadIdx.y + threadIdx.x; i < columns * rows; i += blockDim.x * blockDim.y) {
        const int y = piece.first_row + i / columns, x = piece.first_column + i % columns;
        const int row = y - image.top - piece.first_y, column = x - image.left - piece.first_x;
        if (row < 0 || row >= piece.rows || column < 0 || column >= piece.columns)
            write_fill(batch, place_of(batch, number, y, x));
    }
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
