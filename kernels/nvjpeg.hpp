// What of nvJPEG's interface a batch needs, and of CUDA's driver around it: nvjpeg.h and cuda.h, no more of them.
#pragma once
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <numeric>

#include "jpeg.hpp"

namespace nvjpeg {

struct Destination {  // nvjpegImage_t: up to four planes; interleaved pixels are the first one
    uint8_t* channel[4];
    size_t pitch[4];
};

// Ways to store chroma that the engines take: 4:4:4, 4:2:2, 4:2:0, 4:4:0, gray.
inline bool is_taken(int sampling) { return (sampling >= 0 && sampling <= 3) || sampling == 6; }

struct Functions {
    int (*info)(void* handle, const uint8_t* data, size_t size, int* channels, int* sampling, int* widths, int* heights);
    int (*prepare)(void* handle, void* state, int count, int helpers, int output);
    int (*decode)(void* handle, void* state, const uint8_t* const* sources, const size_t* sizes, Destination* targets,
                  void* stream);
    int (*query)(void* stream);
    int (*synchronize)(void* stream);
    int (*record)(void* event, void* stream);
    int (*wait)(void* stream, void* event, unsigned flags);
};

// In the order of Functions; NOTHING: all went well.
enum Step { NOTHING = -1, INFO, PREPARE, DECODE, QUERY, SYNCHRONIZE, RECORD, WAIT };

// What decodes, and on which streams; nobody else uses any of it meanwhile.
struct Engines {
    void *handle, *state, *stream, *before, *after;
    int is_prepared, helpers, output;
};

struct Outcome {
    int step;             // which function failed
    int status;           // what it returned
    int64_t elapsed_ns;   // of the decoding call
    int32_t refused;      // images of which the library thinks otherwise than their header was read; nothing was decoded
};

// Decode a batch behind what is queued on a stream, and have that stream wait for it.
inline Outcome decode(const Functions& call, Engines* engines, void* caller, int count, const uint8_t* const* sources,
                      const size_t* sizes, Destination* targets, const jpeg::Header* headers, int32_t* is_refused) {
    Outcome outcome{NOTHING, 0, 0, 0};
    // Memory is there for the size that was read; the decoder must not have read another one.
    for (int number = 0; number < count; number++) {
        int channels = 0, sampling = -1, widths[4] = {}, heights[4] = {};
        const int status =
            call.info(engines->handle, sources[number], sizes[number], &channels, &sampling, widths, heights);
        is_refused[number] = status || !is_taken(sampling) || widths[0] != headers[number].width
            || heights[0] != headers[number].height;
        outcome.refused += is_refused[number];
    }
    if (outcome.refused)
        return outcome;
    const auto failed = [&](int step, int status) {
        if (status)
            outcome.step = step, outcome.status = status;
        return status != 0;
    };
    // The library may hang if a batch begins while it is still at work on the one before.
    if (call.query(engines->stream) && failed(SYNCHRONIZE, call.synchronize(engines->stream)))
        return outcome;
    if (!engines->is_prepared) {
        if (failed(PREPARE, call.prepare(engines->handle, engines->state, count, engines->helpers, engines->output)))
            return outcome;
        engines->is_prepared = 1;
    }
    if (failed(RECORD, call.record(engines->before, caller)) || failed(WAIT, call.wait(engines->stream, engines->before, 0)))
        return outcome;
    const auto begun = std::chrono::steady_clock::now();
    const int status = call.decode(engines->handle, engines->state, sources, sizes, targets, engines->stream);
    outcome.elapsed_ns =
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - begun).count();
    if (status) {
        engines->is_prepared = 0;
        if (failed(SYNCHRONIZE, call.synchronize(engines->stream)))
            return outcome;
    }
    if (!failed(RECORD, call.record(engines->after, engines->stream)) && !failed(WAIT, call.wait(caller, engines->after, 0)))
        failed(DECODE, status);
    return outcome;
}

// The numbers of images, the widest first; those of one width in their order.
inline void widest_first(const jpeg::Header* headers, int32_t count, int32_t* order) {
    std::iota(order, order + count, 0);
    const auto is_wider = [=](int32_t left, int32_t right) { return headers[left].width > headers[right].width; };
    if (!std::is_sorted(order, order + count, is_wider))
        std::stable_sort(order, order + count, is_wider);
}

}  // namespace nvjpeg
