// The loops of fastpipe.kernels.cpu: bytes to bytes, to normalised planes, to another size.
//
// Guarantees   The bits of reference.py, from every compiled form. No allocation, no exception and nothing of Python's,
//              so a loop runs with or without the GIL.
// Assumes      Every size has been checked; the memory lives until the loop returns; the output overlaps no image.
// Scratch      Rows are worked on in blocks, whose intermediate results lie on the stack and stay in the first cache.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

// A wheel must run on every x86-64, whose common part has vectors of 16 bytes and no way to shuffle bytes in them. So a
// loop is compiled once for each of these vector units; the dynamic linker takes the form that the CPU is good for. A
// sanitizer's library is not ready yet when the linker asks, so a build for one has one form.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(FASTPIPE_ONE_FORM)
#define FASTPIPE_FOR_EACH_VECTOR_UNIT __attribute__((target_clones("default", "sse4.1", "avx2")))
#else
#define FASTPIPE_FOR_EACH_VECTOR_UNIT
#endif
// What a loop calls has to become part of it, to be compiled for the same vector unit.
#define FASTPIPE_PART_OF_LOOP inline __attribute__((always_inline))

namespace fastpipe {

// An image as the loops see it: strides are in bytes, from one row, column and channel to the next, of either sign.
struct Image {
    const uint8_t* pixels;
    ptrdiff_t height, width, channels;
    ptrdiff_t row_stride, column_stride, channel_stride;
};

// What reference.taps returns: for each pixel of the result the two that it is made of, and their weights times 2**11.
struct Taps {
    ptrdiff_t count;
    const int64_t *first, *second, *first_weight, *second_weight;
};

constexpr ptrdiff_t BLOCK_PIXELS = 512;

// ---- pixels and gray ------------------------------------------------------------------------------------------------

// The same image as one long row, if its rows follow each other in memory.
FASTPIPE_PART_OF_LOOP Image in_one_row(Image image) noexcept {
    if (image.row_stride == image.width * image.column_stride) {
        image.width *= image.height;
        image.height = image.height > 0;
    }
    return image;
}

// Some pixels of a row, one after the other: in place if they lie so, else gathered in scratch.
FASTPIPE_PART_OF_LOOP const uint8_t* pixels_at(
    const Image& image, ptrdiff_t y, ptrdiff_t x, ptrdiff_t count, uint8_t* scratch) noexcept {
    const uint8_t* pixels = image.pixels + y * image.row_stride + x * image.column_stride;
    if (image.column_stride == image.channels && (image.channel_stride == 1 || image.channels == 1)) return pixels;
    for (ptrdiff_t column = 0; column < count; ++column)
        for (ptrdiff_t channel = 0; channel < image.channels; ++channel)
            scratch[column * image.channels + channel] =
                pixels[column * image.column_stride + channel * image.channel_stride];
    return scratch;
}

// The weighted sum of each pixel's three channels, rounded; weights are in the image's order, times 2**15.
FASTPIPE_PART_OF_LOOP void to_gray(
    const uint8_t* __restrict pixels, ptrdiff_t count, const int32_t* weights, uint8_t* __restrict gray) noexcept {
    const int32_t first = weights[0], second = weights[1], third = weights[2];
    for (ptrdiff_t at = 0; at < count; ++at)
        gray[at] = (first * pixels[3 * at] + second * pixels[3 * at + 1] + third * pixels[3 * at + 2] + (1 << 14)) >> 15;
}

// ---- bytes to bytes -------------------------------------------------------------------------------------------------

// Five pixels at a time: 16 bytes are loaded and stored, of which the last is the next pixel's, written again by its own
// turn. (A plain loop is vectorised too, but takes twice as long with AVX2, whose shuffles do not cross 16 bytes.)
FASTPIPE_PART_OF_LOOP void swap_channels(
    const uint8_t* __restrict pixels, ptrdiff_t count, uint8_t* __restrict out) noexcept {
    typedef uint8_t Bytes __attribute__((vector_size(16)));
    ptrdiff_t at = 0;
    for (; at < count - 5; at += 5) {
        Bytes bytes;
        std::memcpy(&bytes, pixels + 3 * at, sizeof bytes);
#ifdef __clang__
        bytes = __builtin_shufflevector(bytes, bytes, 2, 1, 0, 5, 4, 3, 8, 7, 6, 11, 10, 9, 14, 13, 12, 15);
#else
        bytes = __builtin_shuffle(bytes, Bytes{2, 1, 0, 5, 4, 3, 8, 7, 6, 11, 10, 9, 14, 13, 12, 15});
#endif
        std::memcpy(out + 3 * at, &bytes, sizeof bytes);
    }
    for (; at < count; ++at) {
        const uint8_t first = pixels[3 * at], second = pixels[3 * at + 1], third = pixels[3 * at + 2];
        out[3 * at] = third, out[3 * at + 1] = second, out[3 * at + 2] = first;
    }
}

FASTPIPE_PART_OF_LOOP void repeat_gray(
    const uint8_t* __restrict gray, ptrdiff_t count, uint8_t* __restrict out) noexcept {
    for (ptrdiff_t at = 0; at < count; ++at) out[3 * at] = out[3 * at + 1] = out[3 * at + 2] = gray[at];
}

// One image to out, C-contiguous. Three channels become one if there are gray_weights, and else three in the opposite
// order; one becomes three equal ones.
FASTPIPE_FOR_EACH_VECTOR_UNIT void convert(Image image, const int32_t* gray_weights, uint8_t* out) noexcept {
    uint8_t scratch[3 * BLOCK_PIXELS];
    image = in_one_row(image);
    for (ptrdiff_t y = 0; y < image.height; ++y)
        for (ptrdiff_t x = 0; x < image.width; x += BLOCK_PIXELS) {
            const ptrdiff_t count = std::min(BLOCK_PIXELS, image.width - x);
            const uint8_t* pixels = pixels_at(image, y, x, count, scratch);
            if (gray_weights)
                to_gray(pixels, count, gray_weights, out);
            else if (image.channels == 1)
                repeat_gray(pixels, count, out);
            else
                swap_channels(pixels, count, out);
            out += gray_weights ? count : 3 * count;
        }
}

// ---- bytes to normalised planes -------------------------------------------------------------------------------------

// What a byte is in a plane of float32.
struct Level {
    float mean, std;
    float operator()(uint8_t byte) const noexcept { return (float(byte) - mean) / std; }
};

// What a byte is in a plane of float16: a table of its bits, as not every CPU computes in float16.
struct Table {
    uint16_t bits[256];
    uint16_t operator()(uint8_t byte) const noexcept { return bits[byte]; }
};

template <class Levels, class Value>
FASTPIPE_PART_OF_LOOP void one_plane(
    const uint8_t* __restrict bytes, ptrdiff_t count, const Levels& level, Value* __restrict plane) noexcept {
    for (ptrdiff_t at = 0; at < count; ++at) plane[at] = level(bytes[at]);
}

// One loop for all three planes: it is vectorised as loads of 3 channels and stores of 3 planes, and takes a third of
// the time of three loops.
template <class Levels, class Value>
FASTPIPE_PART_OF_LOOP void three_planes(
    const uint8_t* __restrict pixels, ptrdiff_t count, const Levels& first, const Levels& second, const Levels& third,
    Value* __restrict first_plane, Value* __restrict second_plane, Value* __restrict third_plane) noexcept {
    for (ptrdiff_t at = 0; at < count; ++at) {
        first_plane[at] = first(pixels[3 * at]);
        second_plane[at] = second(pixels[3 * at + 1]);
        third_plane[at] = third(pixels[3 * at + 2]);
    }
}

template <class Levels, class Value>
FASTPIPE_PART_OF_LOOP void normalize_each(
    const Image* images, ptrdiff_t image_count, const int32_t* gray_weights, bool is_swapped, const Levels* levels,
    ptrdiff_t plane_count, Value* out) noexcept {
    uint8_t scratch[3 * BLOCK_PIXELS], gray[BLOCK_PIXELS];
    for (ptrdiff_t number = 0; number < image_count; ++number) {
        const ptrdiff_t plane_size = images[number].height * images[number].width;
        const Image image = in_one_row(images[number]);
        Value* plane = out + number * plane_count * plane_size;
        for (ptrdiff_t y = 0; y < image.height; ++y)
            for (ptrdiff_t x = 0; x < image.width; x += BLOCK_PIXELS) {
                const ptrdiff_t count = std::min(BLOCK_PIXELS, image.width - x);
                const uint8_t* pixels = pixels_at(image, y, x, count, scratch);
                if (image.channels == 3 && !gray_weights) {
                    const int first = is_swapped ? 2 : 0, third = 2 - first;
                    three_planes(pixels, count, levels[first], levels[1], levels[third], plane + first * plane_size,
                                 plane + plane_size, plane + third * plane_size);
                } else {
                    if (gray_weights) to_gray(pixels, count, gray_weights, gray);
                    for (ptrdiff_t index = 0; index < plane_count; ++index)
                        one_plane(gray_weights ? gray : pixels, count, levels[index], plane + index * plane_size);
                }
                plane += count;
            }
    }
}

// A batch to out, (image_count, plane_count, height, width), C-contiguous. There is a level for each plane of out;
// is_swapped: the image's first channel goes to the last plane. For gray_weights see convert.
FASTPIPE_FOR_EACH_VECTOR_UNIT void normalize(
    const Image* images, ptrdiff_t image_count, const int32_t* gray_weights, bool is_swapped, const Level* levels,
    ptrdiff_t plane_count, float* out) noexcept {
    normalize_each(images, image_count, gray_weights, is_swapped, levels, plane_count, out);
}

// The same to float16, as its bits.
FASTPIPE_FOR_EACH_VECTOR_UNIT void normalize_to_half(
    const Image* images, ptrdiff_t image_count, const int32_t* gray_weights, bool is_swapped, const Table* tables,
    ptrdiff_t plane_count, uint16_t* out) noexcept {
    normalize_each(images, image_count, gray_weights, is_swapped, tables, plane_count, out);
}

// ---- bytes of another size ------------------------------------------------------------------------------------------

// Some columns of the result, as the loop needs them: the weights once for each byte.
struct Columns {
    ptrdiff_t start, count;
    int16_t first_weight[3 * BLOCK_PIXELS], second_weight[3 * BLOCK_PIXELS];
};

FASTPIPE_PART_OF_LOOP void take_columns(const Taps& taps, ptrdiff_t start, Columns& columns) noexcept {
    columns.start = start;
    columns.count = std::min(BLOCK_PIXELS, taps.count - start);
    for (ptrdiff_t at = 0; at < 3 * columns.count; ++at) {
        columns.first_weight[at] = int16_t(taps.first_weight[start + at / 3]);
        columns.second_weight[at] = int16_t(taps.second_weight[start + at / 3]);
    }
}

// The pixels that the columns are made of: one of the two that each needs.
FASTPIPE_PART_OF_LOOP void gather(
    const Image& image, int64_t y, const int64_t* taken, ptrdiff_t count, uint8_t* __restrict bytes) noexcept {
    const uint8_t* row = image.pixels + y * image.row_stride;
    if (image.channel_stride == 1) {
        for (ptrdiff_t at = 0; at < count; ++at) std::memcpy(bytes + 3 * at, row + taken[at] * image.column_stride, 3);
        return;
    }
    for (ptrdiff_t at = 0; at < count; ++at)
        for (ptrdiff_t channel = 0; channel < 3; ++channel)
            bytes[3 * at + channel] = row[taken[at] * image.column_stride + channel * image.channel_stride];
}

// A row of the image at its new width, times 2**11.
FASTPIPE_PART_OF_LOOP void blend_columns(
    const Image& image, int64_t y, const Taps& taps, const Columns& columns, int32_t* __restrict blended) noexcept {
    uint8_t first[3 * BLOCK_PIXELS], second[3 * BLOCK_PIXELS];
    gather(image, y, taps.first + columns.start, columns.count, first);
    gather(image, y, taps.second + columns.start, columns.count, second);
    for (ptrdiff_t at = 0; at < 3 * columns.count; ++at)  // as products of int16, so that twice as many fit into a vector
        blended[at] = int16_t(first[at]) * columns.first_weight[at] + int16_t(second[at]) * columns.second_weight[at];
}

// A row of the result; OpenCV drops these bits at these steps.
FASTPIPE_PART_OF_LOOP void blend_rows(
    const int32_t* __restrict upper, const int32_t* __restrict lower, int32_t upper_weight, int32_t lower_weight,
    ptrdiff_t count, uint8_t* __restrict out) noexcept {
    for (ptrdiff_t at = 0; at < count; ++at)
        out[at] = (((upper_weight * (upper[at] >> 4)) >> 16) + ((lower_weight * (lower[at] >> 4)) >> 16) + 2) >> 2;
}

// One image of three channels to out, uint8 (rows.count, columns.count, 3), C-contiguous.
FASTPIPE_FOR_EACH_VECTOR_UNIT void resize(Image image, Taps row_taps, Taps column_taps, uint8_t* out) noexcept {
    Columns columns;
    int32_t blended[2][3 * BLOCK_PIXELS];
    for (ptrdiff_t start = 0; start < column_taps.count; start += BLOCK_PIXELS) {
        take_columns(column_taps, start, columns);
        int64_t holds[2] = {-1, -1};  // which row of the image each half of blended is made of
        for (ptrdiff_t y = 0; y < row_taps.count; ++y) {
            const int64_t wanted[2] = {row_taps.first[y], row_taps.second[y]};
            for (int part = 0; part < 2; ++part) {
                if (holds[0] == wanted[part] || holds[1] == wanted[part]) continue;
                const int half = holds[0] == wanted[1 - part];  // the one that this row of the result does not need
                blend_columns(image, wanted[part], column_taps, columns, blended[half]);
                holds[half] = wanted[part];
            }
            const int32_t* upper = blended[holds[0] != wanted[0]];
            const int32_t* lower = blended[holds[0] != wanted[1]];
            blend_rows(upper, lower, int32_t(row_taps.first_weight[y]), int32_t(row_taps.second_weight[y]),
                       3 * columns.count, out + 3 * (y * column_taps.count + start));
        }
    }
}

}  // namespace fastpipe
