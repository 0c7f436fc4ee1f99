// What of nvJPEG's interface a batch needs, and of CUDA's driver around it: nvjpeg.h and cuda.h, no more of them.
#pragma once
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <deque>
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
    // The way of the next batch; that is a trial if it is not the usual one, and has to be told or dropped.
    int next() const { return left_ > 0 || is_trying_ ? current_ : 1 - current_; }
    int current() const { return current_; }
    void begin(int way) { is_trying_ = is_trying_ || way != current_; }

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
        is_trying_ = false;
        if (usual >= 0 && cost < BETTER * usual) {
            current_ = way;
            costs_[way] = best_ = cost;
            gap_ = FIRST_GAP;
        } else {
            gap_ = std::min(gap_ * GROWTH, LONGEST_GAP);
        }
        left_ = gap_;
    }

    // A batch says nothing of those to come.
    void drop(int way) {
        if (way != current_)
            is_trying_ = false;
    }

private:
    static constexpr int FIRST_GAP = 4, LONGEST_GAP = 4096, GROWTH = 4;  // batches
    static constexpr double SLOWED = 2.0, BETTER = 0.9;                  // more than that is noise
    int current_ = PIPELINED, gap_ = FIRST_GAP, left_ = FIRST_GAP;
    bool is_trying_ = false;
    double costs_[2] = {-1, -1};  // below 0: none is known
    double best_ = std::numeric_limits<double>::infinity();
};

// Handles of the library and of the driver, which one thread uses at a time.
struct Decoder {
    void *handles[2] = {}, *states[2] = {};
    void *stream = nullptr, *before = nullptr, *after = nullptr;
    int counts[2] = {}, outputs[2] = {};  // what each way is prepared for
    bool is_taken = false;
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
    int32_t refused = 0;  // images of which the library thinks otherwise than their header was read; nothing was decoded
    int way = 0;
};

// What decodes on one GPU, for everybody in the process.
//
// Callers take turns, in the order in which they came, and without the GIL: else a decoder would be idle for as long as
// a thread waits for that. One batch is decoded at a time where the plain way is the quicker, as two then make each other
// slower, and while a way is tried; otherwise as many as there are decoders.
class Decoders {
public:
    explicit Decoders(const Functions& functions) : call_(functions) {}

    void add(const Decoder& decoder, int way_count) {
        const std::lock_guard<std::mutex> lock(mutex_);
        way_count_ = way_count;
        decoders_.push_back(decoder);
        changed_.notify_all();
    }

    // Whether another decoder would have been of use just now.
    bool is_short() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return running_ == decoders_.size() && !is_alone_;
    }

    // Decode a batch behind what is queued on a stream, and have that stream wait for it.
    Outcome decode(const Batch& batch, void* caller, bool tells) {
        Outcome outcome;
        refuse(batch, &outcome);
        if (outcome.refused)
            return outcome;
        size_t total_bytes = 0;
        for (int number = 0; number < batch.count; number++)
            total_bytes += batch.sizes[number];
        Chooser& chooser = choosers_[size_class(batch.count)];
        bool is_alone;
        size_t before;
        Decoder* decoder = take(chooser, tells, &outcome.way, &is_alone, &before);
        const auto begun = std::chrono::steady_clock::now();
        const bool is_done = run(batch, decoder, outcome.way, caller, &outcome);
        const double elapsed_ns = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begun).count();
        const std::lock_guard<std::mutex> lock(mutex_);
        const double sharers = (before + running_) / 2.0;  // who decodes at the same time has its part of the engines
        if (tells && is_done)
            chooser.tell(outcome.way, elapsed_ns / sharers / std::max<size_t>(1, total_bytes));
        else
            chooser.drop(outcome.way);
        decoder->is_taken = false;
        running_--;
        is_alone_ = is_alone_ && !is_alone;
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
    void refuse(const Batch& batch, Outcome* outcome) {
        void* handle;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            handle = decoders_.front().handles[0];
        }
        for (int number = 0; number < batch.count; number++) {
            int channels = 0, sampling = -1, widths[4] = {}, heights[4] = {};
            const int status =
                call_.info(handle, batch.sources[number], batch.sizes[number], &channels, &sampling, widths, heights);
            const jpeg::Header& header = batch.headers[number];
            batch.is_refused[number] =
                status || !is_taken(sampling) || widths[0] != header.width || heights[0] != header.height;
            outcome->refused += batch.is_refused[number];
        }
    }

    // Wait for a decoder, behind all who came before; return it, the way, and how many are at work with it.
    Decoder* take(Chooser& chooser, bool tells, int* way, bool* is_alone, size_t* running) {
        std::unique_lock<std::mutex> lock(mutex_);
        const uint64_t mine = arrived_++;
        for (;; changed_.wait(lock)) {
            if (mine != served_ || is_alone_)
                continue;
            *way = way_count_ > 1 && tells ? chooser.next() : way_count_ > 1 ? chooser.current() : PIPELINED;
            *is_alone = *way == PLAIN || *way != chooser.current();
            if (*is_alone ? running_ == 0 : running_ < decoders_.size())
                break;
        }
        served_++;
        chooser.begin(*way);
        is_alone_ = *is_alone;
        *running = ++running_;
        for (Decoder& decoder : decoders_)
            if (!decoder.is_taken) {
                decoder.is_taken = true;
                changed_.notify_all();  // the next in line may have its turn, too
                return &decoder;
            }
        std::abort();  // fewer are at work than there are
    }

    bool run(const Batch& batch, Decoder* decoder, int way, void* caller, Outcome* outcome) {
        const auto failed = [&](int step, int status) {
            if (status)
                outcome->step = step, outcome->status = status;
            return status != 0;
        };
        void *stream = decoder->stream, *handle = decoder->handles[way], *state = decoder->states[way];
        // The library may hang if a batch begins while it is still at work on the one before, in either way.
        if (call_.query(stream) && failed(SYNCHRONIZE, call_.synchronize(stream)))
            return false;
        if (decoder->counts[way] != batch.count || decoder->outputs[way] != batch.output) {
            decoder->counts[way] = 0;
            if (failed(PREPARE, call_.prepare(handle, state, batch.count, HELPERS, batch.output)))
                return false;
            decoder->counts[way] = batch.count, decoder->outputs[way] = batch.output;
        }
        if (failed(RECORD, call_.record(decoder->before, caller)) || failed(WAIT, call_.wait(stream, decoder->before, 0)))
            return false;
        const int status = call_.decode(handle, state, batch.sources, batch.sizes, batch.targets, stream);
        if (status) {
            decoder->counts[way] = 0;
            if (failed(SYNCHRONIZE, call_.synchronize(stream)))
                return false;
        }
        if (failed(RECORD, call_.record(decoder->after, stream)) || failed(WAIT, call_.wait(caller, decoder->after, 0)))
            return false;
        return !failed(DECODE, status);
    }

    static constexpr int HELPERS = 1;  // threads of the CPU, which the engines do not need

    const Functions call_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Decoder> decoders_;  // never moved
    Chooser choosers_[33];          // by the size class of a batch: one image costs more a byte than many do
    int way_count_ = 1;
    uint64_t arrived_ = 0, served_ = 0;  // whose turn it is
    size_t running_ = 0;
    bool is_alone_ = false;  // somebody decodes who must be alone
};

// The numbers of images, the widest first; those of one width in their order.
inline void widest_first(const jpeg::Header* headers, int32_t count, int32_t* order) {
    std::iota(order, order + count, 0);
    const auto is_wider = [=](int32_t left, int32_t right) { return headers[left].width > headers[right].width; };
    if (!std::is_sorted(order, order + count, is_wider))
        std::stable_sort(order, order + count, is_wider);
}

}  // namespace nvjpeg
