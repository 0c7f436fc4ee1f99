// A row of a table of images, as the CUDA kernels read it: struct Image of pixels.cu, IMAGE of _cuda_images.py.
#pragma once
#include <cstdint>

struct ImageRow {
    uint64_t address;
    int64_t row_stride;
    int32_t height, width, column_stride, channel_stride;
    int32_t place[4];
};
static_assert(sizeof(ImageRow) == 48, "the kernels read rows of 48 bytes");
