// uint8 HWC images, each of its own size -> resized as OpenCV's INTER_LINEAR does, colors converted, normalised, NCHW:
// a batch in one launch. The bytes between resizing and the rest are those of reference.resize.
//
// Grid: (strips of columns of the result, pieces of rows, images). A block makes some bands of BAND rows of COLUMNS columns; of each, a thread has
// ROWS pixels of one column. The rows of the image that a band is made of come into shared memory first, as long copies,
// while the band before is computed: read pixel by pixel, they took longer, and memory was idle in between.
//
// That needs pixels that lie side by side, and rows that fit into shared memory; the others are read where they lie.
//
// Which pixels are read is computed in double, once for each row and column of a piece: divisions by every thread took
// as long as all the rest. Shared memory: `shared_bytes`, for the rows of two bands.

const int COLUMNS = 32;
const int THREAD_ROWS = 4;  // blockDim.y
const int ROWS = 2;
const int BAND = THREAD_ROWS * ROWS;
const int MOST_BANDS = 4;  // of a block: it computes the taps of all its rows at once, by as many threads as a warp has
const int SPARSE = 12;  // pixels of 3 bytes, more than a sector of memory, which is read whole
const int BLOCK_BYTES = 1900;  // of a row of the image, for each of its bands: so blocks have about as much to do

extern __shared__ uint4 shared[];

// Which two pixels a pixel is made of, and the weight of each times 2**11: reference.taps, line by line.
struct Taps {
    int first, second, first_weight, second_weight;
};

__device__ inline Taps taps_of(int at, int side, int new_side, bool cut_at_edges)
{
    const double scale = 1 / ((double)new_side / side);
    const float position = (float)((at + 0.5) * scale - 0.5);
    float first = floorf(position);
    float fraction = position - first;
    if (cut_at_edges) {
        if (first < 0 || first >= side - 1)
            fraction = 0;
        first = fminf(fmaxf(first, 0), side - 1);
    }
    Taps taps;
    taps.first_weight = (int)rintf((1 - fraction) * 2048);
    taps.second_weight = (int)rintf(fraction * 2048);
    taps.first = min(max((int)first, 0), side - 1);
    taps.second = min(max((int)first + 1, 0), side - 1);
    return taps;
}

// A row's two pixels, blended, times 2**11.
struct Blended {
    int channels[3];
};

// `weights` has the left one in its lower half; `words` the bytes l0 l1 l2 r0, r1 r2.
__device__ inline Blended blend(const unsigned (&words)[2], unsigned weights)
{
    const unsigned first_two = __byte_perm(words[0], words[1], 0x4130);  // l0 r0 l1 r1
    const unsigned third = __byte_perm(words[0], words[1], 0x0052);  // l2 r2
    Blended row;
    row.channels[0] = __dp2a_lo(weights, first_two, 0u);
    row.channels[1] = __dp2a_hi(weights, first_two, 0u);
    row.channels[2] = __dp2a_lo(weights, third, 0u);
    return row;
}

__device__ inline void write_blended(
    const Batch& batch, const Place& place, const Blended& upper, const Blended& lower, const Taps& rows)
{
    int channels[3];
    #pragma unroll
    for (int channel = 0; channel < 3; channel++) {
        const int above = ((upper.channels[channel] >> 4) * rows.first_weight) >> 16;
        const int below = ((lower.channels[channel] >> 4) * rows.second_weight) >> 16;
        channels[channel] = (above + below + 2) >> 2;
    }
    write_pixel(batch, place, channels[0], channels[1], channels[2]);
}

// What a block knows of its piece.
struct Work {
    Taps columns[COLUMNS], rows[MOST_BANDS * BAND];
    Barriers barriers;
};

// ---- rows in shared memory ------------------------------------------------------------------------------------------

// Where the rows of a band are in shared memory.
struct Room {
    long long start;  // the first pixel of a row that is there
    int pitch, bytes;  // of a row there, and of the image
    bool fits;
};

__device__ inline Room room_of(const Batch& batch, const Image& image, const Work& work, const Piece& piece)
{
    Room room;
    const Taps &left = work.columns[0], &right = work.columns[piece.columns - 1];
    room.start = min(left.first, max(image.width - 2, 0));
    const long long bytes = 3 * (max(right.second, right.first) + 1 - room.start);
    const int pitch = (int)min(bytes + 30, 1LL << 24) & ~15;
    room.pitch = pitch;
    room.bytes = (int)bytes;
    // Beyond so many pixels for one, most of what lies between them is better left out.
    const bool is_near = bytes <= 3 * SPARSE * (piece.columns + 1LL);
    room.fits = is_packed(image) && image.width > 1 && is_near && 4LL * BAND * pitch + 16 <= batch.shared_bytes;
    return room;
}

// Which rows of the image a band is made of: two for each of its own, or all from the first on, if these are no more.
struct Needed {
    const Taps* rows;  // of the band
    int count;  // of the image
    bool is_dense;
};

__device__ inline Needed needed_by(const Work& work, const Piece& piece, int band)
{
    Needed needed;
    needed.rows = work.rows + band * BAND;
    const int rows = min(piece.rows - band * BAND, BAND);
    const int all = needed.rows[rows - 1].second - needed.rows[0].first + 1;
    needed.is_dense = all <= 2 * rows;
    needed.count = needed.is_dense ? all : 2 * rows;
    return needed;
}

__device__ inline void fetch(const Image& image, Work& work, const Room& room, const Piece& piece, int band)
{
    if (band * BAND >= piece.rows) {
        begin_no_rows();
        return;
    }
    const Needed needed = needed_by(work, piece, band);
    const auto row = [&image, &room, &needed](int slot) {
        const Taps& taps = needed.rows[needed.is_dense ? 0 : slot / 2];
        const int number = needed.is_dense ? taps.first + slot : slot % 2 ? taps.second : taps.first;
        return image.pixels + number * image.row_stride + 3 * room.start;
    };
    char* to = (char*)shared + band % 2 * 2 * BAND * room.pitch;
    begin_rows(work.barriers, band, to, room.pitch, needed.count, room.bytes, row);
}

// Reads two neighbouring pixels of a row and blends them. They are `at` bytes behind the first that is there.
__device__ inline Blended blend_staged(
    const Image& image, const Room& room, const char* rows, int slot, int row, int at, unsigned weights)
{
    const unsigned start = (unsigned)(Address)image.pixels + row * (unsigned)image.row_stride + 3 * (unsigned)room.start;
    const int first = slot * room.pitch + (start & 15) + at;
    const unsigned* aligned = (const unsigned*)rows + first / 4;
    const unsigned a = aligned[0], b = aligned[1], c = aligned[2];
    const int shift = 8 * (first & 3);
    const unsigned words[2] = {__funnelshift_r(a, b, shift), __funnelshift_r(b, c, shift)};
    return blend(words, weights);
}

// ---- rows where they lie --------------------------------------------------------------------------------------------

__device__ inline Blended blend_any(const Image& image, int row, const Taps& taps)
{
    const Byte* from = image.pixels + row * image.row_stride;
    Blended blended;
    for (int channel = 0; channel < 3; channel++) {
        const Byte* first = from + (long long)channel * image.channel_stride;
        const int left = first[(long long)taps.first * image.column_stride];
        const int right = first[(long long)taps.second * image.column_stride];
        blended.channels[channel] = left * taps.first_weight + right * taps.second_weight;
    }
    return blended;
}

__device__ inline Blended blend_neighbours(const Image& image, int row, long long left, unsigned weights)
{
    unsigned words[2];
    read_words(image.pixels + row * image.row_stride + left, 6, words);
    return blend(words, weights);
}

// ---- both -----------------------------------------------------------------------------------------------------------

// What of the columns a thread needs: the left pixel's first byte, and the two weights, the left one in the lower half.
struct Pair {
    long long left;
    unsigned weights;
};

__device__ inline Pair pair_of(const Image& image, const Taps& columns)
{
    // At the right edge the weight is all on the last pixel, which is the right one of the pair that is read.
    const bool is_last = columns.first == image.width - 1;
    Pair pair;
    pair.left = 3LL * (is_last ? columns.first - 1 : columns.first);
    pair.weights = is_last ? 2048u << 16 : columns.first_weight | columns.second_weight << 16;
    return pair;
}

// Blends the columns of the two rows that a row of a band is made of, where they lie.
__device__ inline void blend_rows(
    const Image& image, const Pair& pair, const Taps& columns, const Taps& rows, Blended& upper, Blended& lower)
{
    if (is_packed(image) && image.width > 1) {
        upper = blend_neighbours(image, rows.first, pair.left, pair.weights);
        lower = blend_neighbours(image, rows.second, pair.left, pair.weights);
    } else {
        upper = blend_any(image, rows.first, columns);
        lower = blend_any(image, rows.second, columns);
    }
}

// Makes this thread's pixels of a band. IS_STAGED: its rows are in shared memory.
template <bool IS_STAGED>
__device__ inline void write_band(
    const Batch& batch, int number, const Image& image, const Work& work, const Room& room, const Piece& piece, int band)
{
    const int column = threadIdx.x, first_row = band * BAND + threadIdx.y;
    if (column >= piece.columns)
        return;
    const Taps columns = work.columns[column];
    const Pair pair = pair_of(image, columns);
    const Needed needed = needed_by(work, piece, band);
    const char* staged = (const char*)shared + band % 2 * 2 * BAND * room.pitch;
    const int at = (int)(pair.left - 3 * room.start);
    Blended upper[ROWS], lower[ROWS];
    #pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int row = first_row + i * THREAD_ROWS;
        if (row >= piece.rows)
            break;
        const Taps& rows = work.rows[row];
        if (IS_STAGED) {
            const int in_band = 2 * (row - band * BAND), begin = needed.rows[0].first;
            const int first = needed.is_dense ? rows.first - begin : in_band;
            const int second = needed.is_dense ? rows.second - begin : in_band + 1;
            upper[i] = blend_staged(image, room, staged, first, rows.first, at, pair.weights);
            lower[i] = blend_staged(image, room, staged, second, rows.second, at, pair.weights);
        } else {
            blend_rows(image, pair, columns, rows, upper[i], lower[i]);
        }
    }
    Place place = place_of(batch, number, image.top + piece.first_y + first_row, image.left + piece.first_x + column);
    #pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int row = first_row + i * THREAD_ROWS;
        if (row >= piece.rows)
            break;
        write_blended(batch, place, upper[i], lower[i], work.rows[row]);
        place.at += THREAD_ROWS * batch.width;
    }
}

// Returns how many bands a block makes: more of an image of whose rows it needs less. As opencv_pieces of _cuda_bands.py.
__device__ inline int bands_of(const Batch& batch, const Image& image)
{
    const long long bytes = 3LL * COLUMNS * image.width, most = (long long)BLOCK_BYTES * image.new_width;
    return min(1 + (2 * bytes <= most) + (3 * bytes <= most) + (4 * bytes <= most), batch.most_bands);
}

extern "C" __global__ void __launch_bounds__(COLUMNS * THREAD_ROWS, 8)
    resize_opencv(const __grid_constant__ Batch batch)
{
    let_next_begin();
    __shared__ Work work;
    const int number = blockIdx.z;
    const Image image = image_of(batch, number);
    const Piece piece = piece_of(batch, image, bands_of(batch, image) * BAND, COLUMNS);
    if (piece.first_row == piece.stop_row) {
        await_previous();
        return;
    }
    begin_barriers(work.barriers);
    if (threadIdx.y == 0 && (int)threadIdx.x < piece.columns)
        work.columns[threadIdx.x] = taps_of(piece.first_x + threadIdx.x, image.width, image.new_width, true);
    if (threadIdx.y == 1 && (int)threadIdx.x < piece.rows)
        work.rows[threadIdx.x] = taps_of(piece.first_y + threadIdx.x, image.height, image.new_height, false);
    __syncthreads();
    await_previous();
    write_fills(batch, number, image, piece);
    if (!piece.rows || !piece.columns)
        return;
    const Room room = room_of(batch, image, work, piece);
    const int count = (piece.rows + BAND - 1) / BAND;
    if (!room.fits) {
        for (int band = 0; band < count; band++)
            write_band<false>(batch, number, image, work, room, piece, band);
        return;
    }
    fetch(image, work, room, piece, 0);
    fetch(image, work, room, piece, 1);
    for (int band = 0; band < count; band++) {
        await_rows<1>(work.barriers, band);
        write_band<true>(batch, number, image, work, room, piece, band);
        have_read(work.barriers, band);
        if (band + 2 < count)
            await_read(work.barriers, band);
        fetch(image, work, room, piece, band + 2);
    }
}
