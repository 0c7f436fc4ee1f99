# Lengths: which requests share a batch that is padded to its longest one. Pure: no clock, no lock, no Python.
#
# Such a batch costs its requests times its longest one's length, so what one more request costs depends on the others. It is
# chosen as a whole: a stretch of the requests, sorted by length, with the oldest in it.
#
# Guarantees   The oldest is always chosen, so nobody waits behind those that fit each other better: who is passed by becomes the
#              oldest, at the latest after all who were before it. What is chosen keeps the bounds, but that the oldest alone may be
#              longer than `most_padded` (its backend refuses it). Of all such stretches, it has the most requests, and of those that
#              have as many, the least padding.
# Assumes      Lengths are 1 or more; at most LOOKED_AT are given.
# Cost         n log n of the lengths given: 1 us for 64, 8 us for 256.

from libc.stdint cimport int32_t, int64_t, uint64_t
from libcpp cimport bool as c_bool
from libcpp.algorithm cimport sort

cdef enum:
    LOOKED_AT = 256             # of the oldest requests of a bucket
    _POSITION_BITS = 8          # of LOOKED_AT


cdef struct Bounds:             # of a batch
    int32_t most_requests
    int64_t most_padded         # requests times the longest one's length
    double most_padding         # share of that which is no request's own


cdef struct Similar:            # what is chosen
    uint64_t[4] positions       # a bit for each of those given
    int32_t count
    int64_t own                 # their lengths together
    int32_t longest
    c_bool is_full              # no other request could join them


cdef inline c_bool are_within(const Bounds* bounds, int32_t count, int64_t own, int64_t longest) noexcept nogil:
    """True if so many requests, ``own`` long together, may share a batch."""
    cdef int64_t padded = count * longest
    return count <= bounds.most_requests and padded <= bounds.most_padded and padded - own <= bounds.most_padding * padded


cdef inline c_bool is_full(const Bounds* bounds, int32_t count, int64_t longest) noexcept nogil:
    """True if not even a request of the same length could join."""
    return count >= bounds.most_requests or (count + 1) * longest > bounds.most_padded


cdef inline c_bool is_chosen(const Similar* similar, int32_t position) noexcept nogil:
    return (similar.positions[position >> 6] >> (position & 63)) & 1


cdef inline void choose_similar(const int32_t* lengths, int32_t count, const Bounds* bounds, Similar* similar) noexcept nogil:
    """Choose of so many lengths, at least one, the oldest first."""
    cdef uint64_t[LOOKED_AT] ordered                            # the length, and behind it the position
    cdef int64_t[LOOKED_AT + 1] sums                            # of the lengths before each
    cdef int32_t index, last, first, low, high, middle
    cdef int32_t oldest = 0
    cdef int32_t best_first = -1
    cdef int32_t best_last = -1
    cdef int64_t longest, padding
    cdef int64_t least_padding = 0
    for index in range(count):
        ordered[index] = (<uint64_t>lengths[index] << _POSITION_BITS) | <uint64_t>index
    sort(&ordered[0], &ordered[0] + count)
    sums[0] = 0
    for index in range(count):
        sums[index + 1] = sums[index] + <int64_t>(ordered[index] >> _POSITION_BITS)
        if ordered[index] & (LOOKED_AT - 1) == 0:
            oldest = index
    for last in range(oldest, count):                           # the longest one
        longest = <int64_t>(ordered[last] >> _POSITION_BITS)
        if last > oldest and (last - oldest + 1 > bounds.most_requests or (last - oldest + 1) * longest > bounds.most_padded):
            break                                               # still longer ones, too
        if not are_within(bounds, last - oldest + 1, sums[last + 1] - sums[oldest], longest) and last > oldest:
            continue                                            # with more of that length it may be
        low, high = 0, oldest                                   # each shorter one adds a larger share of padding
        while low < high:
            middle = (low + high) // 2
            if are_within(bounds, last - middle + 1, sums[last + 1] - sums[middle], longest):
                high = middle
            else:
                low = middle + 1
        first = low
        padding = (last - first + 1) * longest - (sums[last + 1] - sums[first])
        if (last - first > best_last - best_first or best_first < 0
                or (last - first == best_last - best_first and padding < least_padding)):
            best_first, best_last, least_padding = first, last, padding
    similar.positions[0] = similar.positions[1] = similar.positions[2] = similar.positions[3] = 0
    for index in range(best_first, best_last + 1):
        low = <int32_t>(ordered[index] & (LOOKED_AT - 1))
        similar.positions[low >> 6] |= <uint64_t>1 << (low & 63)
    similar.count = best_last - best_first + 1
    similar.own = sums[best_last + 1] - sums[best_first]
    similar.longest = <int32_t>(ordered[best_last] >> _POSITION_BITS)
    similar.is_full = is_full(bounds, similar.count, similar.longest)
