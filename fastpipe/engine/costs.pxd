# Costs: how long a batch takes, by its size, as it was measured.
#
# Guarantees   Nobody waits. A size that was never measured costs what the nearest one does that was; of two as near, the smaller.
# Assumes      One thread notes at a time (it holds the GIL). Anybody reads: relaxed, as a stale value is harmless.

from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free
from libcpp cimport bool as c_bool
from libcpp.atomic cimport atomic, memory_order_relaxed

cdef enum:
    MOST_SIZES = 256                    # batches above this size share one entry


cdef struct Costs:
    int32_t length                      # of the table
    atomic[int64_t]* by_size            # in ns; index 0 is unused, and 0 is: not measured


cdef inline c_bool costs_init(Costs* costs, int32_t max_batch) noexcept nogil:
    """Make an empty table; False: there is no memory."""
    costs.length = min(max_batch, MOST_SIZES) + 1
    costs.by_size = <atomic[int64_t]*>calloc(costs.length, sizeof(atomic[int64_t]))
    return costs.by_size != NULL


cdef inline c_bool costs_grow(Costs* costs, int32_t max_batch) noexcept nogil:
    """Have an entry for each size up to that, with what was measured; False: there is no memory. Nobody reads or notes meanwhile."""
    cdef Costs longer
    cdef int32_t size
    if min(max_batch, MOST_SIZES) < costs.length:
        return True
    if not costs_init(&longer, max_batch):
        return False
    for size in range(costs.length):
        longer.by_size[size].store(costs.by_size[size].load(memory_order_relaxed), memory_order_relaxed)
    free(costs.by_size)
    costs.by_size = longer.by_size
    costs.length = longer.length
    return True


cdef inline void costs_free(Costs* costs) noexcept nogil:
    free(costs.by_size)


cdef inline void cost_note(Costs* costs, int32_t size, int64_t elapsed_ns) noexcept nogil:
    """Learn from a batch: a running average, in which the last one counts a quarter."""
    cdef int64_t before
    size = min(size, costs.length - 1)
    before = costs.by_size[size].load(memory_order_relaxed)
    # A first sample counts in full: the first batch of a size may be slow, and the average forgets it soon.
    costs.by_size[size].store(elapsed_ns if before == 0 else before + (elapsed_ns - before) // 4, memory_order_relaxed)


cdef inline int64_t cost_of(const Costs* costs, int32_t size) noexcept nogil:
    """The measured cost of a batch of ``size``, or of the nearest size that was measured; 0: none was."""
    cdef int32_t distance, below, above
    cdef int64_t cost
    size = min(max(size, 1), costs.length - 1)
    for distance in range(costs.length):
        below = size - distance
        above = size + distance
        if below >= 1:
            cost = costs.by_size[below].load(memory_order_relaxed)
            if cost:
                return cost
        if above < costs.length:
            cost = costs.by_size[above].load(memory_order_relaxed)
            if cost:
                return cost
        if below < 1 and above >= costs.length:
            break
    return 0
