// What of nvJPEG's interface a batch needs, and of CUDA's driver around it: nvjpeg.h and cuda.h, no more of them.
#pragma once
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>
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

// The two ways in which the library uses the engines; where a GPU has none, there is the first only.
enum Way { PIPELINED, PLAIN };

// Which of the two ways is quicker just now, for batches of about one size.
//
// The other way is tried once in so many batches, four times as rarely after each time that it lost; and at once, if the
// pipelined way takes twice as long as it did at its best: that is how it looks when a model shares the GPU.
class Chooser {
public:
    // The way of the next batch.
    int choose() const { return left_ > 0 ? current_ : 1 - current_; }
    int current() const { return current_; }

    // Take in what a batch has cost, in nanoseconds a byte.
    void tell(int way, double cost) {
        const double usual = costs_[current_];
        if (way == current_) {
            costs_[way] = usual < 0 ? cost : (usual + cost) / 2;
            best_ = std::min(best_, cost);
            left_--;
            if (way == PIPELINED && cost > SLOWED * best_)
                left_ = 0;
            return;
        }
        if (usual >= 0 && cost < BETTER * usual) {
            current_ = way;
            costs_[way] = best_ = cost;
            gap_ = FIRST_GAP;
        } else {
            gap_ = std::min(gap_ * GROWTH, LONGEST_GAP);
        }
        left_ = gap_;
    }

private:
    static constexpr int FIRST_GAP = 4, LONGEST_GAP = 4096, GROWTH = 4;  // batches
    static constexpr double SLOWED = 2.0, BETTER = 0.9;                  // more than that is noise
    int current_ = PIPELINED, gap_ = FIRST_GAP, left_ = FIRST_GAP;
    double costs_[2] = {-1, -1};  // below 0: none is known
    double best_ = std::numeric_limits<double>::infinity();
};

// Handles of the library and of the driver, which one thread uses at a time.
struct Handles {
    int way_count = 0;
    void *libraries[2] = {}, *states[2] = {};  // of each way
    void *stream = nullptr, *before = nullptr, *after = nullptr;
};

// A batch, placed.
struct Batch {
    int count, output;
    const uint8_t* const* sources;
    const size_t* sizes;
    Destination* targets;
    const jpeg::Header* headers;
    int32_t* is_refused;
};

struct Outcome {
    int step = NOTHING;   // which function failed
    int status = 0;       // what it returned
    int32_t refused = 0;  // images of which the library thinks otherwise than we read; nothing was decoded
};

// What decodes on one GPU, for everybody in the process. Callers take turns, in the order in which they came, and without
// the GIL: else it would be idle for as long as the thread that was last waits for that.
class Decoder {
public:
    Decoder(const Functions& functions, const Handles& handles) : call_(functions), handles_(handles) {}

    // Decode a batch behind what is queued on a stream, and have that stream wait for it.
    // tells: whether what the batch costs says something of those to come.
    Outcome decode(const Batch& batch, void* caller, bool tells) {
        Outcome outcome;
        refuse(batch, &outcome);
        if (outcome.refused)
            return outcome;
        size_t total_bytes = 1;
        for (int number = 0; number < batch.count; number++)
            total_bytes += batch.sizes[number];
        {
            std::unique_lock<std::mutex> lock(mutex_);
            const uint64_t mine = arrived_++;
            changed_.wait(lock, [&] { return served_ == mine; });
        }
        Chooser& chooser = choosers_[size_class(batch.count)];
        const int way = handles_.way_count < 2 ? int(PIPELINED) : tells ? chooser.choose() : chooser.current();
        const auto begun = std::chrono::steady_clock::now();
        const bool is_done = run(batch, way, caller, &outcome);
        const std::chrono::duration<double, std::nano> elapsed = std::chrono::steady_clock::now() - begun;
        if (tells && is_done)
            chooser.tell(way, elapsed.count() / double(total_bytes));
        const std::lock_guard<std::mutex> lock(mutex_);
        served_++;
        changed_.notify_all();
        return outcome;
    }

private:
    static int size_class(int count) {
        int bits = 0;
        for (; count; count >>= 1)
            bits++;
        return bits;
    }

    // Note the images that are not to be decoded: memory is there for the size that was read from the header.
    // A handle of the library may be used by any number of threads.
    void refuse(const Batch& batch, Outcome* outcome) const {
        for (int number = 0; number < batch.count; number++) {
            int channels = 0, sampling = -1, widths[4] = {}, heights[4] = {};
            const int status = call_.info(handles_.libraries[0], batch.sources[number], batch.sizes[number], &channels,
                                          &sampling, widths, heights);
            const jpeg::Header& header = batch.headers[number];
            batch.is_refused[number] =
                status || !is_taken(sampling) || widths[0] != header.width || heights[0] != header.height;
            outcome->refused += batch.is_refused[number];
        }
    }

    // It is the caller's turn.
    bool run(const Batch& batch, int way, void* caller, Outcome* outcome) {
        const auto failed = [&](int step, int status) {
            if (status)
                outcome->step = step, outcome->status = status;
            return status != 0;
        };
        void *stream = handles_.stream, *library = handles_.libraries[way], *state = handles_.states[way];
        // The library may hang if a batch begins while it is still at work on the one before, in either way.
        if (call_.query(stream) && failed(SYNCHRONIZE, call_.synchronize(stream)))
            return false;
        if (counts_[way] != batch.count || outputs_[way] != batch.output) {
            counts_[way] = 0;
            if (failed(PREPARE, call_.prepare(library, state, batch.count, HELPERS, batch.output)))
                return false;
            counts_[way] = batch.count, outputs_[way] = batch.output;
        }
        if (failed(RECORD, call_.record(handles_.before, caller)) || failed(WAIT, call_.wait(stream, handles_.before, 0)))
            return false;
        const int status = call_.decode(library, state, batch.sources, batch.sizes, batch.targets, stream);
        if (status) {
            counts_[way] = 0;
            if (failed(SYNCHRONIZE, call_.synchronize(stream)))
                return false;
        }
        if (failed(RECORD, call_.record(handles_.after, stream)) || failed(WAIT, call_.wait(caller, handles_.after, 0)))
            return false;
        return !failed(DECODE, status);
    }

    static constexpr int HELPERS = 1;  // threads of the CPU, which the engines do not need

    const Functions call_;
    const Handles handles_;
    std::mutex mutex_;  // of whose turn it is; what follows those is used by whoever has it
    std::condition_variable changed_;
    uint64_t arrived_ = 0, served_ = 0;
    int counts_[2] = {}, outputs_[2] = {};  // what each way is prepared for
    Chooser choosers_[33];  // by the size class of a batch: one image costs more a byte than many do
};

// The numbers of images, the widest first; those of one width in their order.
inline void widest_first(const jpeg::Header* headers, int32_t count, int32_t* order) {
    std::iota(order, order + count, 0);
    const auto is_wider = [=](int32_t left, int32_t right) { return headers[left].width > headers[right].width; };
    if (!std::is_sorted(order, order + count, is_wider))
        std::stable_sort(order, order + count, is_wider);
}

}  // namespace nvjpeg
