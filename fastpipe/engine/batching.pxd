# When does a batch leave? The rules, as pure functions of a Load: no clock, no lock, no Python; tested as a table.
#
# What the default, "adaptive", weighs:
#   * a full batch leaves at once; without an idle instance there is nothing to decide, and requests collect by themselves;
#   * waiting pays only while company is likely and close: requests are upstream, or callers that were just answered are
#     about to come back (they do so within microseconds of each other). What already runs in this node is no company;
#   * it is never worth more than a part of what a batch costs, and the patience starts again with each arrival: a burst is
#     taken whole, and the gap after it ends the wait. Where measured costs say that one batch is cheaper than two, the longest
#     of the latest gaps is waited for: callers that are woken together come back with pauses, as each needs the GIL, and those
#     who miss one batch because of a pause would miss each following one, too;
#   * several idle instances share a short queue if measured times say that this is faster.

from libc.stdint cimport int32_t, int64_t
from libcpp cimport bool as c_bool

cdef enum:                  # what to do: an action
    DISPATCH = 0            # take `size` worth of requests now
    WAIT_UNTIL = 1          # look again at `until_ns`, or when something arrives
    WAIT_FOR_INSTANCE = 2   # every instance is busy
    WAIT_FOR_REQUEST = 3    # nothing is queued

cdef enum:                  # why a batch left; counted, and shown by stats()
    FULL = 0                # it could not take more
    ALONE = 1               # nobody else can come
    NOT_WORTH = 2           # waiting would cost more than company saves
    LATE = 3                # company was expected and did not come
    TIMEOUT = 4             # batching_timeout is over
    SPLIT = 5               # the queue was shared between idle instances
    SIZE = 6                # a preferred size was reached
    RULE = 7                # the rule has no reason of its own: "greedy", or the user's object
    REASON_COUNT = 8

cdef enum:
    # Waits shorter than this are not worth a sleep and a wake-up, which cost 5 to 20 us on the machines tried.
    SHORTEST_WAIT_NS = 20_000
    # Company is expected for this many times the usual gap between arrivals ...
    GAPS_OF_PATIENCE = 4
    # ... or, where company saves something, for the longest of the latest gaps and this part of it, up to a part of that ...
    MARGIN_PART_OF_LONGEST_GAP = 4
    PATIENCE_PART_OF_SAVING = 2
    # ... but for at most this part of what the batch costs.
    PATIENCE_PART_OF_COST = 4


cdef struct Load:           # everything a rule may look at; times in ns on one monotonic clock
    int64_t now_ns
    int64_t oldest_ns           # arrival of the oldest request of the bucket to go next
    int64_t idle_since_ns       # when the first of the idle instances became idle
    int64_t latest_event_ns     # last arrival here, or last answer given, whichever is later
    int64_t usual_gap_ns        # between arrivals of one burst
    int64_t longest_gap_ns      # of the latest of them
    int64_t timeout_ns          # batching_timeout
    int64_t cost_alone_ns       # a batch of all who are here or expected, other instances idle; 0: not measured yet
    int64_t cost_shared_ns      # a batch of a fair share of them, other instances busy too; 0: not measured yet
    int64_t saving_ns           # what one batch of all who are here or expected costs less than one of each; 0: nothing, or not measured
    double queued_weight        # of the bucket to go next
    double max_weight           # the node's max
    int32_t queued              # requests of that bucket
    int32_t idle_instances
    int32_t busy_instances
    int32_t company             # admitted requests that may still come here, and callers likely to return


cdef struct Verdict:
    int32_t action
    int32_t reason
    int64_t until_ns            # for WAIT_UNTIL
    int32_t size                # for DISPATCH: at most so many requests


cdef inline Verdict _dispatch(int32_t reason, int32_t size) noexcept nogil:
    cdef Verdict verdict
    verdict.action = DISPATCH
    verdict.reason = reason
    verdict.until_ns = 0
    verdict.size = size
    return verdict


cdef inline Verdict _wait(int32_t action, int64_t until_ns) noexcept nogil:
    cdef Verdict verdict
    verdict.action = action
    verdict.reason = RULE
    verdict.until_ns = until_ns
    verdict.size = 0
    return verdict


cdef inline int32_t _fair_share(const Load* load, int32_t expected) noexcept nogil:
    """How many of ``expected`` requests one instance should take, now that several may be idle."""
    if load.idle_instances < 2 or expected < 2:
        return expected
    # Not measured yet: try it, the measurement decides from then on.
    if load.cost_shared_ns == 0 or load.cost_alone_ns == 0 or load.cost_shared_ns * 100 < load.cost_alone_ns * 97:
        return (expected + load.idle_instances - 1) // load.idle_instances
    return expected


cdef inline Verdict _dispatch_shared(const Load* load, int32_t reason) noexcept nogil:
    """Dispatch all that is queued, or a fair share of it."""
    cdef int32_t share = _fair_share(load, load.queued)
    return _dispatch(SPLIT if share < load.queued and share < load.max_weight else reason, share)


cdef inline Verdict decide_adaptive(const Load* load) noexcept nogil:
    # What a request waited for an instance, it did not wait for company.
    cdef int64_t timeout_at = max(load.oldest_ns, load.idle_since_ns) + load.timeout_ns
    cdef int64_t patience, until
    cdef int32_t share
    if load.queued == 0:
        return _wait(WAIT_FOR_REQUEST, 0)
    if load.idle_instances == 0:
        return _wait(WAIT_FOR_INSTANCE, 0)
    if load.company <= 0:
        return _dispatch_shared(load, FULL if load.queued_weight >= load.max_weight else ALONE)
    # Everybody who is expected, divided among the idle instances: the first share need not wait for the others.
    share = _fair_share(load, load.queued + load.company)
    if share <= load.queued and share < load.max_weight:
        return _dispatch(SPLIT, share)
    if load.queued_weight >= load.max_weight:
        return _dispatch_shared(load, FULL)
    if load.now_ns >= timeout_at:
        return _dispatch_shared(load, TIMEOUT)
    patience = max(load.usual_gap_ns * GAPS_OF_PATIENCE,
                   min(load.longest_gap_ns + load.longest_gap_ns // MARGIN_PART_OF_LONGEST_GAP, load.saving_ns // PATIENCE_PART_OF_SAVING))
    patience = min(patience, load.cost_alone_ns // PATIENCE_PART_OF_COST)
    if patience < SHORTEST_WAIT_NS:
        return _dispatch_shared(load, NOT_WORTH)
    until = min(load.latest_event_ns + patience, timeout_at)
    if until <= load.now_ns:
        return _dispatch_shared(load, LATE)
    return _wait(WAIT_UNTIL, until)


cdef inline Verdict decide_timeout(const Load* load) noexcept nogil:
    """torchpipe's rule: a full batch, or the oldest has waited long enough, or a lone request with nothing running."""
    if load.queued == 0:
        return _wait(WAIT_FOR_REQUEST, 0)
    if load.idle_instances == 0:
        return _wait(WAIT_FOR_INSTANCE, 0)
    if load.queued_weight >= load.max_weight:
        return _dispatch(FULL, load.queued)
    if load.now_ns - load.oldest_ns >= load.timeout_ns:
        return _dispatch(TIMEOUT, load.queued)
    if load.queued == 1 and load.busy_instances == 0 and load.company == 0:
        return _dispatch(ALONE, 1)
    return _wait(WAIT_UNTIL, load.oldest_ns + load.timeout_ns)


cdef inline Verdict decide_greedy(const Load* load) noexcept nogil:
    """Whatever is queued leaves as soon as an instance is idle."""
    if load.queued == 0:
        return _wait(WAIT_FOR_REQUEST, 0)
    if load.idle_instances == 0:
        return _wait(WAIT_FOR_INSTANCE, 0)
    return _dispatch(FULL if load.queued_weight >= load.max_weight else RULE, load.queued)


cdef inline Verdict decide_preferred(const Load* load, const int32_t* sizes, int32_t size_count) noexcept nogil:
    """The largest preferred size that is reached leaves at once; anything else waits for the timeout.

    ``sizes`` ascends. The meaning of Triton's preferred_batch_size.
    """
    cdef int32_t i
    if load.queued == 0:
        return _wait(WAIT_FOR_REQUEST, 0)
    if load.idle_instances == 0:
        return _wait(WAIT_FOR_INSTANCE, 0)
    if load.queued_weight >= load.max_weight:
        return _dispatch(FULL, load.queued)
    for i in range(size_count - 1, -1, -1):
        if load.queued >= sizes[i]:
            return _dispatch(SIZE, sizes[i])
    if load.now_ns - load.oldest_ns >= load.timeout_ns:
        return _dispatch(TIMEOUT, load.queued)
    return _wait(WAIT_UNTIL, load.oldest_ns + load.timeout_ns)
