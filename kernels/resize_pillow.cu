// uint8 HWC images, each of its own size -> resized as Pillow's BILINEAR does, smoothing what becomes smaller, colors
// converted, normalised, NCHW: a batch in one launch. The bytes between resizing and the rest are Pillow's, all bits.
//
// What Pillow computes (src/libImaging/Resample.c): weights in double, divided by their sum, rounded to 22 bits after
// the point; sums of products in integers; along rows first, rounded to bytes, then along columns. Pillow 13 takes the
// columns first where the height shrinks by far more pixels than the width (`goes_down_first`).
//
// Both passes are products of matrices, weights times bytes, and go to the tensor cores, which multiply bytes and add
// up in 32 bits. A weight is three bytes, w = low + middle * 2**8 + high * 2**16, and so each product is three; nothing
// is rounded. Most of a matrix of weights is zero, and they are still several times as fast as sums of four (dp4a).
//
// A block makes bands of at most 16 rows, of a strip of 8 columns for each of its warps. It goes through the rows of the
// image that a band needs, 16 at a time, a tile:
//
//   1. fetch: the bytes come into shared memory as they lie, while the tile before is computed;
//   2. across: 16 rows of bytes times the weights of 8 columns, 32 pixels of the rows at a time. Each thread takes the
//      channels of four neighbouring pixels apart, which is what the instruction wants of it;
//   3. down: the 16 x 8 bytes that are the result are turned (movmatrix), and multiplied by the weights of 16 rows.
//
// That needs images that go across first, and pieces of them that fit into shared memory; the others are done pixel by
// pixel, by `resize_any`, which is slower and takes everything.
//
// Grid: (strips of columns of the result, pieces of rows, images); blocks of (32, warps). Shared memory: `shared_bytes`,
// as `Room` divides it.

const int LARGEST_WARPS = 4;
const int WARP_COLUMNS = 8;
const int LARGEST_STRIP = LARGEST_WARPS * WARP_COLUMNS;
const int TILE_ROWS = 16;  // of the image at a time; and the rows of the highest band
const int STEP = 32;  // pixels of a row at a time
const int MOST_BANDS = 4;  // of a block
const int WEIGHT_BYTES = 3 * 32 * 8;  // of a step, or a tile: three parts, eight bytes for each thread of a warp

extern __shared__ uint4 shared[];

// What the threads of a block share, beside the rows and weights in `shared`.
struct Work {
    Window columns[LARGEST_STRIP], rows[MOST_BANDS * TILE_ROWS];
    Barriers barriers;
};

// A band of a piece: its first row of the piece and how many it has, and the rows of the image it is made of.
struct Band {
    int first, rows, begin, end, tiles;
};

__device__ inline Band band_of(const Batch& batch, const Work& work, const Piece& piece, int number)
{
    Band band = {};
    band.first = number * batch.band_rows;
    band.rows = min(piece.rows - band.first, batch.band_rows);
    if (band.rows <= 0)
        return band;
    const Window& last = work.rows[band.first + band.rows - 1];
    band.begin = work.rows[band.first].first;
    band.end = last.first + last.count;
    band.tiles = (band.end - band.begin + TILE_ROWS - 1) / TILE_ROWS;
    return band;
}

// What of an image a piece is made of, and how a block's shared memory is divided.
struct Room {
    int start, bytes, pitch;  // of each row: the first pixel, the bytes, and bytes from row to row in shared memory
    int steps;  // the most that a warp has
    int bands, tiles;  // the most that a band has
    int column_weights_at, row_weights_at;  // bytes from the start; two tiles of the image come first
    bool is_aligned;  // all rows begin with whole words
    bool fits;
};

// The first pixel of a warp's columns, or the last whole word's before it.
__device__ inline int first_of(const Room& room, const Work& work, int warp)
{
    const int first = work.columns[WARP_COLUMNS * warp].first;
    return room.is_aligned ? first & ~3 : first;
}

// How many STEPs of pixels a warp's columns are made of.
__device__ inline int steps_of(const Room& room, const Work& work, const Piece& piece, int warp)
{
    const Window& last = work.columns[min(WARP_COLUMNS * warp + WARP_COLUMNS, piece.columns) - 1];
    return (last.first + last.count - first_of(room, work, warp) + STEP - 1) / STEP;
}

__device__ inline Room room_of(const Batch& batch, const Image& image, const Work& work, const Piece& piece)
{
    const Window& right = work.columns[piece.columns - 1];
    Room room;
    room.is_aligned = ((Address)image.pixels | (Address)image.row_stride) % 4 == 0;
    room.start = first_of(room, work, 0);
    room.bytes = 3 * min(right.first + right.count - room.start, 1 << 24);
    // The eight rows that a warp reads from at once are in banks of their own, 48 bytes apart.
    room.pitch = (max(room.bytes + 30 - 48, 0) + 127) / 128 * 128 + 48;
    room.steps = 0;
    for (int warp = 0; warp * WARP_COLUMNS < piece.columns; warp++)
        room.steps = max(room.steps, steps_of(room, work, piece, warp));
    room.column_weights_at = 2 * TILE_ROWS * room.pitch;
    room.row_weights_at = room.column_weights_at + WEIGHT_BYTES * room.steps * blockDim.y;
    room.tiles = room.bands = 0;
    for (Band band = band_of(batch, work, piece, 0); band.tiles; band = band_of(batch, work, piece, ++room.bands))
        room.tiles = max(room.tiles, band.tiles);
    const long long needed = room.row_weights_at + (long long)WEIGHT_BYTES * room.tiles * room.bands;
    room.fits = needed <= batch.shared_bytes && is_packed(image) && !goes_down_first(batch, image);
    return room;
}

// ---- weights, as the threads of a warp want them ---------------------------------------------------------------------

// Writes the three bytes of a weight: of words of eight bytes, one for each thread of a warp, one after the other.
__device__ inline void write_weight(Byte* words, int thread, int byte, int weight)
{
    Byte* at = words + 8 * thread + byte;
    at[0] = weight;
    at[256] = weight >> 8;
    at[512] = weight >> 16;
}

__device__ inline void make_column_weights(const Room& room, const Work& work, const Piece& piece)
{
    const int warp = threadIdx.y, column = threadIdx.x % WARP_COLUMNS;
    if (WARP_COLUMNS * warp + column >= piece.columns)
        return;
    const Window window = work.columns[WARP_COLUMNS * warp + column];
    Byte* words = (Byte*)shared + room.column_weights_at + WEIGHT_BYTES * room.steps * warp;
    const int skipped = window.first - first_of(room, work, warp);
    for (int number = threadIdx.x / WARP_COLUMNS; number < window.count; number += 32 / WARP_COLUMNS) {
        // Of 32 pixels a thread has four that lie together, and four that are 16 on: `read_pixels` has their order.
        const int pixel = skipped + number, at = pixel % STEP;
        const int owner = 4 * column + at % 16 / 4, byte = at % 4 / 2 * 4 + at / 16 * 2 + at % 2;
        write_weight(words + WEIGHT_BYTES * (pixel / STEP), owner, byte, weight_of(window, number));
    }
}

__device__ inline void make_row_weights(const Batch& batch, const Room& room, const Work& work, const Piece& piece)
{
    const int thread = 32 * threadIdx.y + threadIdx.x;
    // Eight threads have a row together.
    for (int row = thread / 8; row < piece.rows; row += 4 * blockDim.y) {
        const int band = row / batch.band_rows, in_band = row - band * batch.band_rows;
        const Window window = work.rows[row];
        Byte* words = (Byte*)shared + room.row_weights_at + WEIGHT_BYTES * room.tiles * band;
        const int skipped = window.first - work.rows[row - in_band].first;
        for (int number = thread % 8; number < window.count; number += 8) {
            // Of 16 rows of the image a thread has two, and two that are 8 on: `turned` has their order.
            const int from = skipped + number, at = from % TILE_ROWS;
            const int owner = 4 * (in_band % 8) + at % 8 / 2, byte = in_band / 8 * 4 + at % 2 * 2 + at / 8;
            write_weight(words + WEIGHT_BYTES * (from / TILE_ROWS), owner, byte, weight_of(window, number));
        }
    }
}

__device__ inline void make_weights(const Batch& batch, const Room& room, const Work& work, const Piece& piece)
{
    const int bytes = room.row_weights_at + WEIGHT_BYTES * room.tiles * room.bands - room.column_weights_at;
    uint4* words = (uint4*)((char*)shared + room.column_weights_at);
    for (int i = 32 * threadIdx.y + threadIdx.x; i < bytes / 16; i += 32 * blockDim.y)
        words[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
    make_column_weights(room, work, piece);
    make_row_weights(batch, room, work, piece);
    __syncthreads();
}

// ---- images that go across first, and fit ----------------------------------------------------------------------------

// Reads four pixels, and four that are 16 on, of one row, and takes their channels apart: the first two of each four
// become one word of a channel, the others the next but one.
template <bool IS_ALIGNED>
__device__ inline void read_pixels(const unsigned* from, int shift, int first, unsigned (&pixels)[3][4])
{
    unsigned words[2][3];
    #pragma unroll
    for (int group = 0; group < 2; group++)
        #pragma unroll
        for (int i = 0; i < 3; i++) {
            const unsigned* at = from + 12 * group + i;
            words[group][i] = IS_ALIGNED ? at[0] : __funnelshift_r(at[0], at[1], shift);
        }
    // Bytes 0 to 11 of each four pixels: 0 3 6 9 are the first channel's, and so on. What is next to each other in two
    // words is taken out for two channels at once.
    const unsigned outer = __byte_perm(words[0][0], words[1][0], 0x6521);  // 1 2 of both
    const unsigned left = __byte_perm(words[0][1], words[1][1], 0x5410);  // 4 5
    const unsigned right = __byte_perm(words[0][1], words[1][1], 0x7632);  // 6 7
    const unsigned last = __byte_perm(words[0][2], words[1][2], 0x6521);  // 9 10
    pixels[0][first] = __byte_perm(words[0][0], words[1][0], 0x7430);  // 0 3
    pixels[0][first + 2] = __byte_perm(right, last, 0x6240);  // 6 9
    pixels[1][first] = __byte_perm(outer, left, 0x6240);  // 1 4
    pixels[1][first + 2] = __byte_perm(right, last, 0x7351);  // 7 10
    pixels[2][first] = __byte_perm(outer, left, 0x7351);  // 2 5
    pixels[2][first + 2] = __byte_perm(words[0][2], words[1][2], 0x7430);  // 8 11
}

// Where a thread's pixels of its two rows begin.
struct Rows {
    const unsigned* from[2];
    int shifts[2];
};

template <bool IS_ALIGNED>
__device__ inline void add_step(Sums& sums, const Rows& rows, const uint2* weights, int step)
{
    unsigned pixels[3][4];
    #pragma unroll
    for (int i = 0; i < 2; i++)
        read_pixels<IS_ALIGNED>(rows.from[i] + 24 * step, rows.shifts[i], i, pixels);
    #pragma unroll
    for (int part = 0; part < 3; part++) {
        const uint2 right = weights[(3 * step + part) * 32];
        #pragma unroll
        for (int channel = 0; channel < 3; channel++)
            multiply(sums.parts[channel][part], pixels[channel], right);
    }
}

// Returns a warp's products of a tile, across.
template <bool IS_ALIGNED>
__device__ inline Sums products_across(const Rows& rows, const uint2* weights, int steps)
{
    Sums sums = sums_of_nothing();
    add_step<IS_ALIGNED>(sums, rows, weights, 0);
    for (int step = 1; step < steps; step++)
        add_step<IS_ALIGNED>(sums, rows, weights, step);
    return sums;
}

// Adds the products of a tile, down.
__device__ inline void add_down(Sums& sums, const Sums& across, const uint2* weights)
{
    #pragma unroll
    for (int channel = 0; channel < 3; channel++) {
        const unsigned left = byte_of(across, channel, 0) | byte_of(across, channel, 2) << 8;
        const unsigned right = byte_of(across, channel, 1) | byte_of(across, channel, 3) << 8;
        const unsigned bytes = turned(left | right << 16);
        #pragma unroll
        for (int part = 0; part < 3; part++)
            multiply(sums.parts[channel][part], weights[part * 32], bytes);
    }
}

// Which tile is fetched next: of all bands of the piece, one after the other.
struct Next {
    Band band;
    int number, tile, turn;
};

// Begins to copy a tile of the image, if there is one more. The rows behind the band's last are left as they are: their
// weights are 0.
__device__ inline void fetch(
    const Batch& batch, const Image& image, Work& work, const Room& room, const Piece& piece, Next& next)
{
    if (next.tile == next.band.tiles) {
        next.band = band_of(batch, work, piece, ++next.number);
        next.tile = 0;
    }
    if (!next.band.tiles) {
        begin_no_rows();
        return;
    }
    const int first = next.band.begin + next.tile * TILE_ROWS;
    const auto row = [&image, &room, first](int number) {
        return image.pixels + (first + number) * image.row_stride + 3LL * room.start;
    };
    char* to = (char*)shared + next.turn % 2 * TILE_ROWS * room.pitch;
    const int count = min(next.band.end - first, TILE_ROWS);
    begin_rows(work.barriers, next.turn, to, room.pitch, count, room.bytes, row);
    next.tile++;
    next.turn++;
}

// Writes what a thread has of a band: four pixels, two neighbours in each of two rows.
__device__ inline void write_band(
    const Batch& batch, int number, const Image& image, const Piece& piece, const Band& band, const Sums& sums)
{
    const int column = threadIdx.y * WARP_COLUMNS + threadIdx.x % 4 * 2;
    if (column >= piece.columns)
        return;
    #pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const int row = threadIdx.x / 4 + 4 * i;
        if (row >= band.rows)
            break;
        int left[3], right[3];
        #pragma unroll
        for (int channel = 0; channel < 3; channel++) {
            left[channel] = byte_of(sums, channel, i);
            right[channel] = byte_of(sums, channel, i + 1);
        }
        const int y = image.top + piece.first_y + band.first + row;
        Place place = place_of(batch, number, y, image.left + piece.first_x + column);
        const bool are_two = column + 1 < piece.columns;
        if (are_two && write_pair(batch, place, left, right))
            continue;
        write_pixel(batch, place, left[0], left[1], left[2]);
        place.at++;
        if (are_two)
            write_pixel(batch, place, right[0], right[1], right[2]);
    }
}

// Makes a piece.
__device__ inline void resize_staged(
    const Batch& batch, int number, const Image& image, Work& work, const Room& room, const Piece& piece)
{
    const int warp = threadIdx.y, row = threadIdx.x / 4, of_four = threadIdx.x % 4;
    const bool is_idle = warp * WARP_COLUMNS >= piece.columns;
    Next next = {};
    next.band = band_of(batch, work, piece, 0);
    fetch(batch, image, work, room, piece, next);
    fetch(batch, image, work, room, piece, next);
    make_weights(batch, room, work, piece);

    const uint2* column_weights =
        (const uint2*)((const char*)shared + room.column_weights_at + WEIGHT_BYTES * room.steps * warp) + threadIdx.x;
    const int first = is_idle ? 0 : first_of(room, work, warp) - room.start;
    const int steps = is_idle ? 0 : steps_of(room, work, piece, warp);
    for (int b = 0, turn = 0; b < room.bands; b++) {
        const Band band = band_of(batch, work, piece, b);
        const uint2* row_weights =
            (const uint2*)((const char*)shared + room.row_weights_at + WEIGHT_BYTES * room.tiles * b) + threadIdx.x;
        int at[2];  // where this thread's pixels of its two rows begin: the same byte of 16 in all tiles of a band
        for (int i = 0; i < 2; i++) {
            const unsigned start = (unsigned)(Address)image.pixels +
                (band.begin + row + 8 * i) * (unsigned)image.row_stride + 3u * room.start;
            at[i] = (row + 8 * i) * room.pitch + (start & 15) + 3 * (first + 4 * of_four);
        }
        Sums down = sums_of_nothing();
        for (int tile = 0; tile < band.tiles; tile++, turn++) {
            await_rows<1>(work.barriers, turn);
            Rows rows;
            for (int i = 0; i < 2; i++) {
                rows.from[i] = (const unsigned*)shared + (turn % 2 * TILE_ROWS * room.pitch + at[i]) / 4;
                rows.shifts[i] = 8 * (at[i] % 4);
            }
            Sums across;
            if (!is_idle)
                across = room.is_aligned ? products_across<true>(rows, column_weights, steps)
                                         : products_across<false>(rows, column_weights, steps);
            have_read(work.barriers, turn);
            if (!is_idle)
                add_down(down, across, row_weights + 3 * 32 * tile);
            await_read(work.barriers, turn);
            fetch(batch, image, work, room, piece, next);
        }
        write_band(batch, number, image, piece, band, down);
    }
}

// ---- all others ------------------------------------------------------------------------------------------------------

// Writes what fits of the columns' weights to shared memory, and returns how many of each that are.
__device__ inline int keep_weights(const Batch& batch, const Work& work, const Piece& piece)
{
    const int kept_count = batch.shared_bytes / 4 / LARGEST_STRIP;
    for (int i = 32 * threadIdx.y + threadIdx.x; i < kept_count * LARGEST_STRIP; i += 32 * blockDim.y) {
        const int column = i % LARGEST_STRIP, number = i / LARGEST_STRIP;
        if (column < piece.columns && number < work.columns[column].count)
            ((int*)shared)[i] = weight_of(work.columns[column], number);
    }
    return kept_count;
}

// Computes a pixel; `kept` are the first weights of its column.
__device__ inline void resize_any(
    const Image& image, const Window& column, const Window& rows, const int* kept, int kept_count, bool is_down_first,
    int (&channels)[3])
{
    const int outer_count = is_down_first ? column.count : rows.count;
    const int inner_count = is_down_first ? rows.count : column.count;
    const Byte* first = image.pixels + rows.first * image.row_stride + (long long)column.first * image.column_stride;
    int sums[3] = {HALF, HALF, HALF};
    for (int outer = 0; outer < outer_count; outer++) {
        int inner_sums[3] = {HALF, HALF, HALF};
        for (int inner = 0; inner < inner_count; inner++) {
            const int r = is_down_first ? inner : outer, c = is_down_first ? outer : inner;
            const int weight = is_down_first ? weight_of(rows, r)
                : c < kept_count             ? kept[c * LARGEST_STRIP]
                                             : weight_of(column, c);
            const Byte* pixel = first + r * image.row_stride + (long long)c * image.column_stride;
            for (int channel = 0; channel < 3; channel++)
                inner_sums[channel] += weight * pixel[(long long)channel * image.channel_stride];
        }
        const int weight = is_down_first ? weight_of(column, outer) : weight_of(rows, outer);
        for (int channel = 0; channel < 3; channel++)
            sums[channel] += weight * clipped(inner_sums[channel]);
    }
    for (int channel = 0; channel < 3; channel++)
        channels[channel] = clipped(sums[channel]);
}

__device__ inline void write_any(
    const Batch& batch, int number, const Image& image, const Work& work, const Piece& piece)
{
    const int kept_count = keep_weights(batch, work, piece);
    __syncthreads();
    const bool is_down_first = goes_down_first(batch, image);
    for (int i = 32 * threadIdx.y + threadIdx.x; i < piece.rows * piece.columns; i += 32 * blockDim.y) {
        const int row = i / piece.columns, column = i % piece.columns;
        int channels[3];
        resize_any(
            image, work.columns[column], work.rows[row], (const int*)shared + column, kept_count, is_down_first,
            channels);
        const Place place =
            place_of(batch, number, image.top + piece.first_y + row, image.left + piece.first_x + column);
        write_pixel(batch, place, channels[0], channels[1], channels[2]);
    }
}

// ---- the kernel ------------------------------------------------------------------------------------------------------

// Returns how many bands a block makes: more of an image of which a band has fewer tiles, ((band_rows + 1) * scale + 3) /
// TILE_ROWS + 1 at most, so that all blocks have up to 12. As pillow_pieces of _cuda_bands.py.
__device__ inline int bands_of(const Batch& batch, const Image& image)
{
    const long long rows = (batch.band_rows + 1LL) * max(image.height, image.new_height), unit = image.new_height;
    const int bands = 1 + (rows < unit * (TILE_ROWS * 6 - 3)) + (rows < unit * (TILE_ROWS * 4 - 3)) +
        (rows < unit * (TILE_ROWS * 3 - 3));
    return min(bands, batch.most_bands);
}

extern "C" __global__ void __launch_bounds__(32 * LARGEST_WARPS, 4)
    resize_pillow(const __grid_constant__ Batch batch)
{
    let_next_begin();
    __shared__ Work work;
    const int number = blockIdx.z, thread = 32 * threadIdx.y + threadIdx.x, threads = 32 * blockDim.y;
    const Image image = image_of(batch, number);
    const Piece piece = piece_of(batch, image, bands_of(batch, image) * batch.band_rows, batch.strip_columns);
    if (piece.first_row == piece.stop_row) {
        await_previous();
        return;
    }
    begin_barriers(work.barriers);
    if (piece.rows && piece.columns) {
        if (thread < piece.columns)
            work.columns[thread] = window_with_total(axis_of(image.width, image.new_width), piece.first_x + thread);
        // The last threads are the likeliest to have no column.
        for (int row = threads - 1 - thread; row < piece.rows; row += threads)
            work.rows[row] = window_with_total(axis_of(image.height, image.new_height), piece.first_y + row);
    }
    __syncthreads();
    await_previous();
    write_fills(batch, number, image, piece);
    if (!piece.rows || !piece.columns)
        return;
    const Room room = room_of(batch, image, work, piece);
    if (room.fits)
        resize_staged(batch, number, image, work, room, piece);
    else
        write_any(batch, number, image, work, piece);
}
