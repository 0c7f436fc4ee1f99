// uint8 HWC images, each of its own size -> resized as OpenCV's INTER_LINEAR does, colors converted, normalised, NCHW:
// a batch in one launch. The bytes between resizing and the rest are those of reference.resize.
//
// Grid: (tiles of the result, images). A thread has ROWS pixels of one column, so that the reads of all of them are
// under way at once. Which pixels are read is computed in double, once for each row and column of a tile: divisions by
// every thread took as long as all the rest.

const int COLUMNS = 32;
const int THREAD_ROWS = 8;  // blockDim.y
const int ROWS = 4;

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

// `weights` has the left one in its lower half. The pixels are neighbours: their six bytes are read as words.
__device__ inline Blended blend_neighbours(const Byte* left, unsigned weights)
{
    unsigned words[2];  // bytes l0 l1 l2 r0, r1 r2
    read_words(left, 6, words);
    const unsigned first_two = __byte_perm(words[0], words[1], 0x4130);  // l0 r0 l1 r1
    const unsigned third = __byte_perm(words[0], words[1], 0x0052);  // l2 r2
    Blended row;
    row.channels[0] = __dp2a_lo(weights, first_two, 0u);
    row.channels[1] = __dp2a_hi(weights, first_two, 0u);
    row.channels[2] = __dp2a_lo(weights, third, 0u);
    return row;
}

__device__ inline Blended blend_any(const Image& image, const Byte* row, const Taps& taps)
{
    Blended blended;
    for (int channel = 0; channel < 3; channel++) {
        const Byte* first = row + (long long)channel * image.channel_stride;
        const int left = first[(long long)taps.first * image.column_stride];
        const int right = first[(long long)taps.second * image.column_stride];
        blended.channels[channel] = left * taps.first_weight + right * taps.second_weight;
    }
    return blended;
}

extern "C" __global__ void __launch_bounds__(COLUMNS * THREAD_ROWS, 4)
    resize_opencv(const __grid_constant__ Batch batch)
{
    const int number = blockIdx.y;
    const Image image = image_of(batch, number);
    const int tiles_across = (batch.width + COLUMNS - 1) / COLUMNS;
    const int x = blockIdx.x % tiles_across * COLUMNS + threadIdx.x;
    const int first_y = blockIdx.x / tiles_across * (THREAD_ROWS * ROWS) + threadIdx.y;

    __shared__ Taps of_columns[COLUMNS], of_rows[THREAD_ROWS * ROWS];
    if (threadIdx.y == 0)
        of_columns[threadIdx.x] = taps_of(x - image.left, image.width, image.new_width, true);
    if (threadIdx.y == 1) {
        static_assert(THREAD_ROWS * ROWS == COLUMNS, "one row of threads computes the taps of all rows");
        const int y = first_y - threadIdx.y + threadIdx.x;
        of_rows[threadIdx.x] = taps_of(y - image.top, image.height, image.new_height, false);
    }
    __syncthreads();
    if (x >= batch.width)
        return;

    const bool is_column_inside = x >= image.left && x < image.left + image.new_width;
    const Taps columns = of_columns[threadIdx.x];
    const bool are_neighbours = is_packed(image) && image.width > 1;
    // At the right edge the weight is all on the last pixel, which is the right one of the pair that is read.
    const bool is_last = columns.first == image.width - 1;
    const unsigned weights = is_last ? 2048u << 16 : columns.first_weight | columns.second_weight << 16;
    const long long left = 3LL * (is_last ? columns.first - 1 : columns.first);

    int ys[ROWS];
    bool are_inside[ROWS];
    Taps rows[ROWS];
    Blended upper[ROWS], lower[ROWS];
    #pragma unroll
    for (int i = 0; i < ROWS; i++) {
        ys[i] = first_y + i * THREAD_ROWS;
        are_inside[i] = is_column_inside && ys[i] < batch.height && ys[i] >= image.top &&
            ys[i] < image.top + image.new_height;
        rows[i] = of_rows[threadIdx.y + i * THREAD_ROWS];
    }
    #pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if (!are_inside[i])
            continue;
        const Byte* first = image.pixels + rows[i].first * image.row_stride;
        const Byte* second = image.pixels + rows[i].second * image.row_stride;
        upper[i] = are_neighbours ? blend_neighbours(first + left, weights) : blend_any(image, first, columns);
        lower[i] = are_neighbours ? blend_neighbours(second + left, weights) : blend_any(image, second, columns);
    }
    #pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if (ys[i] >= batch.height)
            break;
        if (!are_inside[i]) {
            write_fill(batch, number, ys[i], x);
            continue;
        }
        int channels[3];
        for (int channel = 0; channel < 3; channel++) {
            const int above = ((upper[i].channels[channel] >> 4) * rows[i].first_weight) >> 16;
            const int below = ((lower[i].channels[channel] >> 4) * rows[i].second_weight) >> 16;
            channels[channel] = (above + below + 2) >> 2;
        }
        write_pixel(batch, number, ys[i], x, channels[0], channels[1], channels[2]);
    }
}
