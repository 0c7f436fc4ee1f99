// Which pixels a pixel of a result is made of, and their weights, as Pillow computes them: in double, line by line.

const int HALF = 1 << 21;

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
