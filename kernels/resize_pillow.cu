// uint8 HWC images, each of its own size -> resized as Pillow's BILINEAR does, smoothing what becomes smaller, colors
// converted, normalised, NCHW: a batch in one launch. The bytes between resizing and the rest are Pillow's, all bits.
//
// What Pillow computes (src/libImaging/Resample.c): weights in double, divided by their sum, rounded to 22 bits after
// the point; sums of products in integers; along rows first, rounded to bytes, then along columns. Pillow 13 takes the
// columns first where the height shrinks by far more pixels than the width (`goes_down_first`).
//
// A block makes some rows of `strip_columns` columns of one result; a thread has a column. The block goes through
// the rows of the image that its band needs, GROUP_ROWS at a time:
//
//   1. stage: the bytes, as three planes, in shared memory. They were fetched while the rows before were computed;
//   2. across: each thread's three sums for each staged row. A weight is three bytes, w = low + middle * 2**8 + high *
//      2**16, so that one instruction (dp4a) does four products: w times a byte needs 30 bits, too many for floats;
//   3. down: each row is added to the (at most three) rows of the result that it is part of, and a row of the result
//      is written when its last one was added.
//
// That needs images that do not become higher and go across first, and pieces of them that fit into shared memory; the
// others are done pixel by pixel, by `resize_any`, which is slower and takes everything.
//
// Grid: (pieces of the result, images). Shared memory: `shared_bytes`, as `Room` divides it.

const int THREADS = 224;  // at most
const int GROUP_ROWS = 4;
const int LARGEST_BAND = 32;
const int OVERLAPPING = 3;  // (2 * scale + 1) / scale <= 3 rows of the result have a row of the image in common
const int HALF = 1 << 21;
// What a pixel of a result costs beside the pixels of the image, in these; measured on an H100. As in cuda.py.
const float PIXELS_PER_RESULT = 15;

extern __shared__ uint4 shared[];

// How a side is resized. Divisions of doubles are slow: a block computes this once.
struct Axis {
    int side;
    double scale, support, inverse_support;
};

__device__ inline Axis axis_of(int side, int new_side)
{
    Axis axis;
    axis.side = side;
    axis.scale = (double)side / new_side;
    axis.support = axis.scale < 1 ? 1 : axis.scale;
    axis.inverse_support = 1 / axis.support;
    return axis;
}

// Which pixels a pixel is made of, and what their weights are computed from. Pillow's precompute_coeffs, line by line.
struct Window {
    int first, count;
    double center, inverse_support, total, inverse_total;
};

__device__ inline double triangle(const Window& window, int number)
{
    const double distance = fabs((number + window.first - window.center + 0.5) * window.inverse_support);
    return distance < 1 ? 1 - distance : 0;
}

__device__ inline Window window_of(const Axis& axis, int at)
{
    Window window;
    window.center = (at + 0.5) * axis.scale;
    window.inverse_support = axis.inverse_support;
    window.first = max((int)(window.center - axis.support + 0.5), 0);
    window.count = min((int)(window.center + axis.support + 0.5), axis.side) - window.first;
    return window;
}

__device__ inline Window window_with_total(const Axis& axis, int at)
{
    Window window = window_of(axis, at);
    window.total = 0;
    for (int number = 0; number < window.count; number++)
        window.total += triangle(window, number);
    window.inverse_total = window.total == 0 ? 0 : 1 / window.total;
    return window;
}

// The quotient is that of a division but, perhaps, for its last bit in cases that nobody has found, and which the
// rounding to 22 bits would have to make visible; a quotient that is a double is exact.
__device__ inline int weight_of(const Window& window, int number)
{
    double weight = triangle(window, number);
    if (window.total != 0) {
        const double quotient = weight * window.inverse_total;
        weight = __fma_rn(__fma_rn(-quotient, window.total, weight), window.inverse_total, quotient);
    }
    return (int)(0.5 + weight * (1 << 22));
}

__device__ inline int clipped(int sum) { return min(sum >> 22, 255); }  // no weight is negative

// Whether the columns come first: ImagingResampleInner of Pillow 13.
__device__ inline bool goes_down_first(const Batch& batch, const Image& image)
{
    const long long less_high = (long long)image.height - image.new_height;
    const long long less_wide = (long long)image.width - image.new_width;
    return batch.variant && less_high > 0 && less_high > 2 * less_wide;
}

// The piece of a result that a block makes, in the coordinates of the part of it where the image goes.
struct Piece {
    int first_x, last_x, first_y, last_y;  // last ones included; empty if last < first
};

// What becomes of a row of the image: its weight in the next rows of the result, and how many of these it completes.
struct alignas(16) RowPlan {
    int weights[OVERLAPPING];
    int completes;
};

// How a block's shared memory is divided, for one image. _shared_bytes in cuda.py and this must agree.
struct Room {
    int rows;  // of the image that a band may need; each has a RowPlan, at the start
    int pairs;  // of words, each four weights, of one column
    int pitch;  // bytes of a staged plane of a row
    int raw_pitch;  // of a row as it lies
    int planes_at, raw_at, weights_at;  // bytes from the start
    bool fits;
};

__device__ inline Room room_of(
    const Batch& batch, const Image& image, const Axis& across, const Axis& down, int band_rows)
{
    const double support_x = across.support, support_y = down.support;
    Room room;
    room.fits = false;
    // All of it first in double: sides of 2**31 - 1 would overflow integers.
    const double pitch = fmin((double)image.width, batch.strip_columns * across.scale + 2 * support_x + 2) + 24;
    const double bytes = sizeof(RowPlan) * ((band_rows + 1) * support_y + 3) + GROUP_ROWS * (6 * pitch + 48) +
        24.0 * batch.strip_columns * ((2 * support_x + 2 + 14) / 8) + 64;
    if (!(bytes <= batch.shared_bytes))
        return room;
    room.rows = (int)((band_rows + 1) * support_y) + 2;
    room.pairs = ((int)(2 * support_x) + 2 + 14) / 8;
    room.pitch = (int)pitch & ~7;
    room.planes_at = sizeof(RowPlan) * room.rows;
    room.raw_at = (room.planes_at + GROUP_ROWS * 3 * room.pitch + 15) & ~15;
    room.raw_pitch = (3 * room.pitch + 46) & ~15;
    room.weights_at = room.raw_at + GROUP_ROWS * room.raw_pitch;
    room.fits = down.scale >= 1 && is_packed(image) && !goes_down_first(batch, image);
    return room;
}

// ---- shared memory: bytes of 4 rows, weights of all columns -------------------------------------------------------

// Begins to copy 16 bytes into shared memory. No register holds them, so the copy runs while the block computes.
__device__ inline void begin_copy(uint4* to, const uint4* from)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from));
#else
    *to = *from;
#endif
}

// Waits for this thread's copies.
__device__ inline void end_copies()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Where a row of a group is: the last one again, where there are no more.
__device__ inline const Byte* row_of(const Image& image, int row, int end, int first)
{
    return image.pixels + min(row, end - 1) * image.row_stride + 3LL * first;
}

// Begins to copy rows `base` and on, from pixel `first` up to `stop`, as they lie: in 16 bytes, the first and last of
// which the image need not have all of, but never one of which it has nothing.
__device__ inline void fetch(const Image& image, const Room& room, int base, int end, int first, int stop)
{
    const int bytes = 3 * (stop - first);
    #pragma unroll
    for (int r = 0; r < GROUP_ROWS; r++) {
        const Byte* row = row_of(image, base + r, end, first);
        const int phase = (Address)row & 15;
        uint4* raw = (uint4*)((char*)shared + room.raw_at + r * room.raw_pitch);
        for (int i = threadIdx.x; 16 * i < phase + bytes; i += blockDim.x)
            begin_copy(raw + i, (const uint4*)(row - phase) + i);
    }
}

// Makes three planes of each row that was fetched. Pixels beyond `stop` become anything; their weights are 0.
__device__ inline void stage(const Image& image, const Room& room, int base, int end, int first, int stop)
{
    const char* raws[GROUP_ROWS];
    int shifts[GROUP_ROWS];
    #pragma unroll
    for (int r = 0; r < GROUP_ROWS; r++) {
        const int phase = (Address)row_of(image, base + r, end, first) & 15;
        shifts[r] = 8 * (phase & 3);
        raws[r] = (const char*)shared + room.raw_at + r * room.raw_pitch + (phase & ~3);
    }
    for (int at = 4 * threadIdx.x; at < stop - first; at += 4 * blockDim.x) {
        #pragma unroll
        for (int r = 0; r < GROUP_ROWS; r++) {
            const unsigned* words = (const unsigned*)(raws[r] + 3 * at);
            const unsigned a = __funnelshift_r(words[0], words[1], shifts[r]);
            const unsigned b = __funnelshift_r(words[1], words[2], shifts[r]);
            const unsigned c = __funnelshift_r(words[2], words[3], shifts[r]);
            char* row = (char*)shared + room.planes_at + 3 * r * room.pitch + at;
            *(unsigned*)row = __byte_perm(__byte_perm(a, b, 0x0630), c, 0x5210);
            *(unsigned*)(row + room.pitch) = __byte_perm(__byte_perm(a, b, 0x0741), c, 0x6210);
            *(unsigned*)(row + 2 * room.pitch) = __byte_perm(__byte_perm(a, b, 0x0052), c, 0x7410);
        }
    }
}

// Returns where the weights of a column's pair of words are: those of low bytes; middle and high are strip_columns on.
__device__ inline uint2* weights_at(const Batch& batch, const Room& room, int pair)
{
    return (uint2*)((char*)shared + room.weights_at) + 3 * pair * batch.strip_columns + threadIdx.x;
}

// Writes the weights of this thread's column, the first of them for the pixel window.first & ~7.
__device__ inline void make_weights(const Batch& batch, const Room& room, const Window& window, int pairs)
{
    for (int pair = 0; pair < pairs; pair++) {
        unsigned words[3][2];
        #pragma unroll
        for (int half = 0; half < 2; half++) {
            words[0][half] = words[1][half] = words[2][half] = 0;
            #pragma unroll
            for (int i = 0; i < 4; i++) {
                const int number = 8 * pair + 4 * half + i - (window.first & 7);
                const unsigned weight = number >= 0 && number < window.count ? weight_of(window, number) : 0;
                words[0][half] |= (weight & 255) << (8 * i);
                words[1][half] |= (weight >> 8 & 255) << (8 * i);
                words[2][half] |= (weight >> 16) << (8 * i);
            }
        }
        uint2* at = weights_at(batch, room, pair);
        for (int part = 0; part < 3; part++)
            at[part * batch.strip_columns] = make_uint2(words[part][0], words[part][1]);
    }
}

// ---- images that become smaller, and fit --------------------------------------------------------------------------

__device__ inline void resize_staged(
    const Batch& batch, int number, const Image& image, const Axis& horizontal, const Axis& vertical, const Room& room,
    const Piece& piece, int x)
{
    __shared__ Window windows[LARGEST_BAND];
    RowPlan* plans = (RowPlan*)shared;
    const bool is_mine = x >= piece.first_x && x <= piece.last_x;
    const int count = piece.last_y - piece.first_y + 1;

    const Window left = window_of(horizontal, piece.first_x);
    const Window right = window_of(horizontal, piece.last_x);
    const int start = left.first & ~7, stop = right.first + right.count;
    const Window top = window_of(vertical, piece.first_y), bottom = window_of(vertical, piece.last_y);
    const int begin = top.first, end = bottom.first + bottom.count;
    fetch(image, room, begin, end, start, stop);
    int pairs = 0;
    const char* mine = (const char*)shared + room.planes_at;
    if (is_mine) {
        const Window column = window_with_total(horizontal, x);
        pairs = ((column.first & 7) + column.count + 7) / 8;
        mine += (column.first & ~7) - start;
        make_weights(batch, room, column, pairs);
    }
    // The last threads are the likeliest to have no column.
    for (int t = blockDim.x - 1 - threadIdx.x; t < count; t += blockDim.x)
        windows[t] = window_with_total(vertical, piece.first_y + t);
    __syncthreads();
    for (int row = begin + threadIdx.x; row < end; row += blockDim.x) {
        RowPlan plan = {};
        int t = 0;
        while (windows[t].first + windows[t].count <= row)
            t++;
        #pragma unroll
        for (int slot = 0; slot < OVERLAPPING; slot++)
            if (t + slot < count && row >= windows[t + slot].first)
                plan.weights[slot] = weight_of(windows[t + slot], row - windows[t + slot].first);
        for (; t < count && windows[t].first + windows[t].count == row + 1; t++)
            plan.completes++;
        plans[row - begin] = plan;
    }

    int next = 0;  // the row of the piece that is written next
    int sums[OVERLAPPING][3];
    for (int slot = 0; slot < OVERLAPPING; slot++)
        for (int channel = 0; channel < 3; channel++)
            sums[slot][channel] = HALF;

    for (int base = begin; base < end; base += GROUP_ROWS) {
        end_copies();
        __syncthreads();  // everybody's copies are there, and nobody needs the planes of the rows before
        stage(image, room, base, end, start, stop);
        __syncthreads();
        if (base + GROUP_ROWS < end)
            fetch(image, room, base + GROUP_ROWS, end, start, stop);
        unsigned low[GROUP_ROWS][3] = {}, middle[GROUP_ROWS][3] = {}, high[GROUP_ROWS][3] = {};
        for (int pair = 0; pair < pairs; pair++) {
            const uint2* weights = weights_at(batch, room, pair);
            const uint2 lows = weights[0], middles = weights[batch.strip_columns];
            const uint2 highs = weights[2 * batch.strip_columns];
            #pragma unroll
            for (int r = 0; r < GROUP_ROWS; r++) {
                #pragma unroll
                for (int channel = 0; channel < 3; channel++) {
                    const uint2 bytes = *(const uint2*)(mine + (3 * r + channel) * room.pitch + 8 * pair);
                    low[r][channel] = __dp4a(bytes.y, lows.y, __dp4a(bytes.x, lows.x, low[r][channel]));
                    middle[r][channel] = __dp4a(bytes.y, middles.y, __dp4a(bytes.x, middles.x, middle[r][channel]));
                    high[r][channel] = __dp4a(bytes.y, highs.y, __dp4a(bytes.x, highs.x, high[r][channel]));
                }
            }
        }
        #pragma unroll
        for (int r = 0; r < GROUP_ROWS; r++) {
            const int row = base + r;
            if (row >= end)
                break;
            int across[3];
            #pragma unroll
            for (int channel = 0; channel < 3; channel++)
                across[channel] =
                    clipped(HALF + low[r][channel] + (middle[r][channel] << 8) + (high[r][channel] << 16));
            const RowPlan plan = plans[row - begin];
            #pragma unroll
            for (int slot = 0; slot < OVERLAPPING; slot++)
                #pragma unroll
                for (int channel = 0; channel < 3; channel++)
                    sums[slot][channel] += plan.weights[slot] * across[channel];
            for (int completed = 0; completed < plan.completes; completed++) {
                if (is_mine)
                    write_pixel(
                        batch, number, piece.first_y + next + image.top, x + image.left, clipped(sums[0][0]),
                        clipped(sums[0][1]), clipped(sums[0][2]));
                #pragma unroll
                for (int channel = 0; channel < 3; channel++) {
                    #pragma unroll
                    for (int slot = 0; slot < OVERLAPPING - 1; slot++)
                        sums[slot][channel] = sums[slot + 1][channel];
                    sums[OVERLAPPING - 1][channel] = HALF;
                }
                next++;
            }
        }
    }
}

// ---- all others ---------------------------------------------------------------------------------------------------

__device__ inline void resize_any(
    const Batch& batch, int number, const Image& image, const Axis& horizontal, const Axis& vertical,
    const Piece& piece, int x)
{
    if (x < piece.first_x || x > piece.last_x)
        return;
    const Window column = window_with_total(horizontal, x);
    // What fits of the column's weights is kept; a thread reads none but its own.
    int* kept = (int*)shared + threadIdx.x;
    const int kept_count = min(column.count, batch.shared_bytes / 4 / (int)blockDim.x);
    for (int i = 0; i < kept_count; i++)
        kept[i * blockDim.x] = weight_of(column, i);

    const bool is_down_first = goes_down_first(batch, image);
    for (int y = piece.first_y; y <= piece.last_y; y++) {
        const Window rows = window_with_total(vertical, y);
        const int outer_count = is_down_first ? column.count : rows.count;
        const int inner_count = is_down_first ? rows.count : column.count;
        const Byte* first =
            image.pixels + rows.first * image.row_stride + (long long)column.first * image.column_stride;
        int sums[3] = {HALF, HALF, HALF};
        for (int outer = 0; outer < outer_count; outer++) {
            int inner_sums[3] = {HALF, HALF, HALF};
            for (int inner = 0; inner < inner_count; inner++) {
                const int r = is_down_first ? inner : outer, c = is_down_first ? outer : inner;
                const int weight = is_down_first ? weight_of(rows, r)
                    : c < kept_count             ? kept[c * blockDim.x]
                                                 : weight_of(column, c);
                const Byte* pixel = first + r * image.row_stride + (long long)c * image.column_stride;
                for (int channel = 0; channel < 3; channel++)
                    inner_sums[channel] += weight * pixel[(long long)channel * image.channel_stride];
            }
            const int weight = is_down_first ? weight_of(column, outer) : weight_of(rows, outer);
            for (int channel = 0; channel < 3; channel++)
                sums[channel] += weight * clipped(inner_sums[channel]);
        }
        write_pixel(
            batch, number, y + image.top, x + image.left, clipped(sums[0]), clipped(sums[1]), clipped(sums[2]));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 3) resize_pillow(const __grid_constant__ Batch batch)
{
    const int number = blockIdx.y;
    const Image image = image_of(batch, number);
    // A smaller image has higher bands, so that all blocks have as much to do; those left over have nothing.
    const float cost = (float)image.height * image.width + PIXELS_PER_RESULT * image.new_height * image.new_width;
    const int band_rows = max((int)fminf(batch.band_rows * batch.largest_cost / cost, LARGEST_BAND), batch.band_rows);
    const int strips = (batch.width + batch.strip_columns - 1) / batch.strip_columns;
    const int first_column = blockIdx.x % strips * batch.strip_columns;
    const int stop_column = min(first_column + batch.strip_columns, batch.width);
    const int first_row = blockIdx.x / strips * band_rows;
    if (first_row >= batch.height)
        return;
    const int stop_row = min(first_row + band_rows, batch.height);
    const int column = first_column + threadIdx.x;

    Piece piece;
    piece.first_x = max(first_column - image.left, 0);
    piece.last_x = min(stop_column - image.left, image.new_width) - 1;
    piece.first_y = max(first_row - image.top, 0);
    piece.last_y = min(stop_row - image.top, image.new_height) - 1;
    const bool is_empty = piece.last_x < piece.first_x || piece.last_y < piece.first_y;

    const int x = column < stop_column ? column - image.left : -1;
    if (column < stop_column)
        for (int row = first_row; row < stop_row; row++) {
            const int y = row - image.top;
            if (is_empty || x < piece.first_x || x > piece.last_x || y < piece.first_y || y > piece.last_y)
                write_fill(batch, number, row, column);
        }
    if (is_empty)
        return;
    __shared__ Axis axes[2];
    if (threadIdx.x < 2)
        axes[threadIdx.x] =
            threadIdx.x ? axis_of(image.height, image.new_height) : axis_of(image.width, image.new_width);
    __syncthreads();
    const Room room = room_of(batch, image, axes[0], axes[1], band_rows);
    if (room.fits)
        resize_staged(batch, number, image, axes[0], axes[1], room, piece, x);
    else
        resize_any(batch, number, image, axes[0], axes[1], piece, x);
}
