# Histogram: how many values fell into which bucket, where buckets are as much wider as the values are larger.
#
# Log-linear, as HdrHistogram is: each doubling is divided into 16 buckets of equal width, so that a bucket is at most 1/16 of
# what is in it, and its middle at most 1/32 = 3.2 % from it. The first 16 buckets, of the smallest values, are one step wide.
# A bucket has its upper edge and not its lower one: what is "at most 4" are the buckets up to the one whose upper edge is 4.
#
# Guarantees   Adding takes no lock, no memory and no clock: some 15 instructions. Edges depend on the shift alone, so that
#              histograms of several processes can be added.
# Assumes      Whoever adds or reads is alone: the engine does both under the GIL. ``counts`` outlives its users.

from libc.stdint cimport int32_t, int64_t, uint64_t

cdef extern from * nogil:
    int leading_zeros "__builtin_clzll" (uint64_t bits) noexcept

cdef enum:
    PARTS_LOG2 = 4
    PARTS = 16                  # of a doubling

    # Of times, in ns: steps of 16 ns, and 640 buckets, of which the last holds whatever is above 39 hours.
    TIME_SHIFT = 4
    TIME_BUCKETS = 640
    # Of counts: each up to 32 has a bucket of its own.
    SIZE_SHIFT = 0
    # Of weights, which are fractions: in units of 2**-20, by steps of 2**-10.
    WEIGHT_SHIFT = 10
    WEIGHT_ONE = 1 << 20


cdef struct Histogram:
    int64_t* counts             # by bucket
    int32_t bucket_count
    int32_t shift               # a step is 2**shift
    int64_t sum                 # of all values
    int64_t most                # the greatest of them


cdef inline int32_t bucket_index(int64_t value, int32_t shift) noexcept nogil:
    """The bucket of a value, which is at least 1."""
    cdef uint64_t steps = <uint64_t>(value - 1) >> shift
    cdef int32_t doublings = 63 - PARTS_LOG2 - leading_zeros(steps | PARTS)
    return doublings * PARTS + <int32_t>(steps >> doublings)


cdef inline int64_t upper_edge(int32_t bucket, int32_t shift) noexcept nogil:
    """The greatest value of a bucket; of the one before: the greatest that is too small for it."""
    cdef int32_t doublings = max(bucket // PARTS - 1, 0)
    return <int64_t>(bucket - doublings * PARTS + 1) << (doublings + shift)


cdef inline void histogram_add_zero(Histogram* histogram) noexcept nogil:
    histogram.counts[0] += 1


cdef inline void histogram_add(Histogram* histogram, int64_t value) noexcept nogil:
    """Count a value. What is negative, as between two clocks, counts as 0; what is too large is in the last bucket."""
    if value <= 0:
        histogram_add_zero(histogram)
        return
    histogram.counts[min(bucket_index(value, histogram.shift), histogram.bucket_count - 1)] += 1
    histogram.sum += value
    histogram.most = max(histogram.most, value)
