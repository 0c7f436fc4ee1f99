// Parts of uint8 HWC images, each seen through a perspective matrix -> upright rectangles of one size, bilinear, colors
// converted, normalised, NCHW: all boxes of a batch in one launch. The bytes before the rest are those of
// reference.warp.
//
// Grid: (tiles of the result, 1, boxes). A thread has a pixel. Where it comes from is computed in double, so that it is
// known to 1 / 2**11 of a pixel anywhere in the largest image, and to the same bits as on the CPU. OpenCV 4 rounds it to
// 1 / 2**5, and adds it up from the start of a block of columns on, which is done here where it is asked for.

const int COLUMNS = 32;
const int THREAD_ROWS = 8;  // blockDim.y
const int REPEATS_BORDER = 1, AS_OPENCV_4 = 2;  // of `variant`, as cuda.py has them

// Which two pixels of a row or column a position lies between, and the weight of the second times 2**11.
struct Between {
    int first, second, weight;
};

__device__ inline Between between(double position, int side)
{
    const double inside = fmin(fmax(position, -1.0), (double)side);  // of what is not a number, -1
    const double first = floor(inside);
    Between taps;
    taps.first = (int)first;
    taps.second = taps.first + 1;
    taps.weight = (int)rint((inside - first) * 2048);
    return taps;
}

__device__ inline int byte_at(const Batch& batch, const Image& image, int y, int x, int channel)
{
    if (batch.variant & REPEATS_BORDER) {
        y = min(max(y, 0), image.height - 1);
        x = min(max(x, 0), image.width - 1);
    } else if (y < 0 || y >= image.height || x < 0 || x >= image.width) {
        // `fill` is in the order of the planes.
        return batch.fill[batch.planes == 1 ? 0 : batch.is_reversed ? 2 - channel : channel];
    }
    return image.pixels[y * image.row_stride + (long long)x * image.column_stride +
                        (long long)channel * image.channel_stride];
}

extern "C" __global__ void __launch_bounds__(COLUMNS * THREAD_ROWS) warp(const __grid_constant__ Batch batch)
{
    let_next_begin();
    await_previous();
    const int number = blockIdx.z;
    const Image image = image_of(batch, number);
    const int tiles_across = (batch.width + COLUMNS - 1) / COLUMNS;
    const int x = blockIdx.x % tiles_across * COLUMNS + threadIdx.x;
    const int y = blockIdx.x / tiles_across * THREAD_ROWS + threadIdx.y;
    if (x >= batch.width || y >= batch.height)
        return;

    const double* m = batch.matrices + 9 * number;
    double column, row;
    if (batch.variant & AS_OPENCV_4) {
        const int start = x - x % min(1024 / min(16, batch.height), batch.width), behind = x - start;
        const double depth = (m[6] * start + m[7] * y + m[8]) + m[6] * behind;
        const double scale = depth != 0 ? 32 / depth : 0;
        column = rint(((m[0] * start + m[1] * y + m[2]) + m[0] * behind) * scale) / 32;
        row = rint(((m[3] * start + m[4] * y + m[5]) + m[3] * behind) * scale) / 32;
    } else {
        const double depth = m[6] * x + m[7] * y + m[8];
        column = (m[0] * x + m[1] * y + m[2]) / depth;
        row = (m[3] * x + m[4] * y + m[5]) / depth;
    }
    const Between columns = between(column, image.width), rows = between(row, image.height);
    int channels[3];
    #pragma unroll
    for (int channel = 0; channel < 3; channel++) {
        const int upper = byte_at(batch, image, rows.first, columns.first, channel) * (2048 - columns.weight) +
            byte_at(batch, image, rows.first, columns.second, channel) * columns.weight;
        const int lower = byte_at(batch, image, rows.second, columns.first, channel) * (2048 - columns.weight) +
            byte_at(batch, image, rows.second, columns.second, channel) * columns.weight;
        channels[channel] = (upper * (2048 - rows.weight) + lower * rows.weight + (1 << 21)) >> 22;
    }
    write_pixel(batch, place_of(batch, number, y, x), channels[0], channels[1], channels[2]);
}
