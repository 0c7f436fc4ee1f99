# Measuring: what is counted of each request and each batch, and how it is read.
#
# Guarantees   Counting takes no lock, no memory and no GIL of its own; it reads the clock when a request comes, and where one ends
#              otherwise than behind a batch, which has done so.
#              What a station has counted is read in one piece.
# Assumes      The GIL.
#
# Of all visits that come to a station, each is in one of these when it has left: it was sent on, or it is counted in
# `failed_by`, `cancelled` or `dropped`. Those that have run are in `queue_ns` as well, whatever came of them, but for a hung batch.

cimport cython
from cpython.dict cimport PyDict_GetItem
from libcpp.atomic cimport memory_order_relaxed

from fastpipe.engine.batching cimport REASON_COUNT
from fastpipe.engine.histogram cimport (
    SIZE_SHIFT, TIME_BUCKETS, TIME_SHIFT, WEIGHT_ONE, WEIGHT_SHIFT, Histogram, histogram_add, histogram_add_zero, upper_edge,
)
from fastpipe.engine.parking cimport now_ns

cdef enum:
    MOST_SLOW = 10                               # of those that are kept
    MOST_STOPS = 100                             # of each: one that loops may have made more
cdef enum:                                       # Ticket.arrival_ns of a visit that is not queued
    _HAS_RUN = -1                                # how long it waited is counted
    _HAS_ENDED = -2                              # it is counted how it has left its station
cdef dict _LADDERS = {"seconds": (TIME_SHIFT, 1e9), "sizes": (SIZE_SHIFT, 1.0), "weights": (WEIGHT_SHIFT, float(WEIGHT_ONE))}


# ---- counting ----------------------------------------------------------------------------------------------------

cdef inline void note_end(Engine engine, Walk walk, Turn turn) noexcept:
    """A request was answered, or has failed. A part is no request of a caller's."""
    cdef int64_t ended_ns
    if not walk.is_part:
        ended_ns = time_in(turn)
        histogram_add(&engine.latency_ns, ended_ns - walk.entered_ns)
        if walk.stops is not None and engine.slowest is not None:
            _keep_if_slow(engine.slowest, walk, ended_ns)


cdef inline void note_without_result(Engine engine, Walk walk, dict answer) noexcept:
    """A request was answered: without a result, perhaps, because a step gave none, and the pipe lets it go so."""
    cdef Station station
    if walk.without is None or not engine.lets_go or walk.is_part or PyDict_GetItem(answer, "result") != NULL:
        return
    if walk.without[1] == "":                                   # a filter would have it so
        return
    engine.without_result += 1
    station = (<Node>walk.without[2]).station
    if station is not None:
        station.without_result += 1


cdef inline void note_wait(Station station, Visit visit, int64_t begun_ns, int64_t ended_ns) noexcept:
    """A visit has run, in a batch that began at ``begun_ns``."""
    cdef int64_t arrival_ns = visit.ticket.arrival_ns
    if visit.walk.stops is not None:
        _note_stop(visit, begun_ns if arrival_ns <= 0 else arrival_ns, begun_ns, ended_ns)
    if arrival_ns == 0:                                         # never queued here: on its caller's thread
        histogram_add_zero(&station.queue_ns)
    elif arrival_ns > 0:
        histogram_add(&station.queue_ns, begun_ns - arrival_ns)
    visit.ticket.arrival_ns = _HAS_RUN


cdef int _note_stop(Visit visit, int64_t arrival_ns, int64_t begun_ns, int64_t ended_ns) noexcept:
    """Somebody looks for the slowest: note where a walk, or a part of it, has been."""
    try:
        if len(visit.walk.stops) < MOST_STOPS:
            visit.walk.stops.append((visit.node.name, arrival_ns, begun_ns, ended_ns))
    except BaseException:                                       # no memory left: one stop less is shown
        return 0
    return 0


cdef int _keep_if_slow(Slowest slowest, Walk walk, int64_t ended_ns) noexcept:
    """Keep an ended walk, if few were slower."""
    cdef int64_t took_ns = ended_ns - walk.entered_ns
    if took_ns <= slowest.least_ns:
        return 0
    try:
        slowest.number += 1
        why = None if walk.error is None else _FAILURES[reason_of(walk.error)]
        slowest.kept.append((took_ns, slowest.number, ended_ns, why, list(walk.stops)))
        if len(slowest.kept) >= 2 * MOST_SLOW:                  # once for many
            slowest.kept.sort(reverse=True)
            del slowest.kept[MOST_SLOW:]
            slowest.least_ns = slowest.kept[MOST_SLOW - 1][0]
    except BaseException:                                       # no memory left: it is not shown
        return 0
    return 0


cdef inline c_bool has_run_here(Visit visit) noexcept:
    return visit.ticket.arrival_ns == _HAS_RUN


cdef inline void note_gone(Visit visit) noexcept:
    """A visit has run in a batch that goes on; the wait of it is noted with that, see note_wait."""
    visit.ticket.arrival_ns = _HAS_RUN


cdef inline void note_batch(Station station, list visits, int32_t count, int64_t run_ns) noexcept:
    """A batch has run."""
    cdef Visit visit
    cdef double weight = count
    station.batches_run += 1
    station.requests_run += count
    histogram_add(&station.run_ns, run_ns)
    if station.sizes.bucket_count == 0:
        return
    histogram_add(&station.sizes, count)
    if station.has_weights.load(memory_order_relaxed):
        weight = 0
        for visit in visits:
            weight += visit.ticket.weight
    histogram_add(&station.weights, <int64_t>(weight * WEIGHT_ONE))


cdef int note_padding(Station station, Instance instance) noexcept:
    """A batch has run, whatever became of it: count what its backend has padded."""
    cdef object count
    try:
        for count in instance.padding_counts:
            station.padding[0] += <int64_t>count.own
            station.padding[1] += <int64_t>count.padding
            count.own = count.padding = 0
    except BaseException:                                       # somebody has put something else there
        return 0
    return 0


cdef c_bool _ends_here(Visit visit) noexcept:
    """True once for each visit of a station: a worker that dies fails what it has found dead before, too."""
    if visit.flight != NULL:
        close_flight(<Flight>visit.flight)                      # nobody follows (is_dead), and nobody is to
    if visit.node.station is None or visit.ticket.arrival_ns == _HAS_ENDED:
        return False
    visit.ticket.arrival_ns = _HAS_ENDED
    return True


cdef int note_failed(Visit visit, object error) noexcept:
    """A visit is about to fail its walk, if that has not ended."""
    cdef Station station = visit.node.station
    cdef int reason
    if is_dead(visit):
        return note_dropped(visit)
    if not _ends_here(visit):
        return 0
    reason = reason_of(error)
    if reason == WITHOUT_RESULT and visit.walk.without is not None:
        station = (<Node>visit.walk.without[2]).station         # a step before may have left it so
        if station is None:
            return 0
    station.failed_by[reason] += 1
    station.without_result += reason == WITHOUT_RESULT
    return 0


cdef int note_dropped(Visit visit) noexcept:
    """A visit leaves its station for nothing: its walk has ended, or that of which it is a part."""
    cdef Station station = visit.node.station
    cdef Walk walk = visit.walk
    cdef uint8_t outcome = walk.outcome.load(memory_order_relaxed)
    cdef int reason
    if not _ends_here(visit):
        return 0
    while outcome == RUNNING and walk.sink_kind == SINK_GATHER:
        walk = (<Gather>walk.sink).visit.walk
        outcome = walk.outcome.load(memory_order_relaxed)
    reason = reason_of(walk.error) if outcome == FAILED else OTHER
    if outcome == CANCELLED:
        station.cancelled += 1
    elif reason == TIMED_OUT or reason == CLOSED:               # that has met it here as well as anywhere
        station.failed_by[reason] += 1
    else:
        station.dropped += 1
    return 0


cdef int note_refused(Engine engine, Station gate) noexcept:
    """A request is not let in, because of a gate: a node's, or the pipe's."""
    cdef Station front = front_of(gate)
    engine.refused += 1
    front.refused += 1
    return 0


@cython.final
cdef class Slowest:
    """The slowest requests that were answered or have failed, once ``Engine.slowest`` is one: with where their time went."""

    def __cinit__(self):
        self.kept = []

    def take(self):
        """Return those since the last call, the slowest first, and begin anew.

        Each is (how long it took, a number, when it ended, the reason if it has failed, stops), and a stop (node, when it was
        queued, when its batch began, when that ended); all in nanoseconds of the monotonic clock.
        """
        cdef list kept = self.kept
        self.kept = []
        self.least_ns = 0
        kept.sort(reverse=True)
        return kept[:MOST_SLOW]


# ---- reading -----------------------------------------------------------------------------------------------------

def ladder(str name):
    """The buckets of "seconds", "sizes" or "weights": a list of (upper edge, middle)."""
    cdef int32_t shift
    cdef int32_t bucket
    cdef int32_t count = TIME_BUCKETS
    shift, unit = _LADDERS[name]
    cdef list edges = [(upper_edge(0, shift) / unit, 0.0 if shift else 1.0)]
    for bucket in range(1, count):
        middle = (upper_edge(bucket - 1, shift) + 1 + upper_edge(bucket, shift)) / 2
        edges.append((upper_edge(bucket, shift) / unit, middle / unit))
    return edges


cdef tuple _tally(const Histogram* histogram, double unit):
    """(sum, greatest value, {upper edge: count})."""
    cdef dict buckets = {}
    cdef int32_t bucket
    for bucket in range(histogram.bucket_count):
        if histogram.counts[bucket]:
            buckets[upper_edge(bucket, histogram.shift) / unit] = histogram.counts[bucket]
    return histogram.sum / unit, histogram.most / unit, buckets


cdef dict failures_by_reason(const int64_t* counts):
    cdef int reason
    return {_FAILURES[reason]: counts[reason] for reason in range(len(_FAILURES)) if counts[reason]}


cdef double _oldest_s(Station station) noexcept:
    """How long the oldest of the queue has waited; 0: nothing is queued. Of many of mixed priorities the first are looked at."""
    cdef Ticket* ticket
    cdef int64_t oldest_ns = 0
    cdef int _seen
    station.desk.lock()                                         # E7: a holder of the GIL may wait for it
    drain_inbox(station)
    ticket = station.staged.first
    for _seen in range(256):
        if ticket == NULL:
            break
        if not is_dead(<Visit>ticket.visit) and (oldest_ns == 0 or ticket.arrival_ns < oldest_ns):
            oldest_ns = ticket.arrival_ns
        if oldest_ns != 0 and not station.has_ranks.load(memory_order_relaxed):
            break
        ticket = <Ticket*>ticket.next.load(memory_order_relaxed)
    station.desk.unlock()
    return 0.0 if oldest_ns == 0 else max(now_ns() - oldest_ns, 0) / 1e9


cdef dict _measures_of(Station station):
    """What a station has counted: NodeStats of measures.py, with tallies for distributions; without what follows from it."""
    cdef tuple sizes = (<double>station.requests_run, 1.0 if station.batches_run else 0.0,
                        {1.0: station.batches_run} if station.batches_run else {})
    cdef int absent = station.instance_count - station.in_service
    return {
        "batches": station.batches_run,
        "requests": station.requests_run,
        "failed": station.requests_failed,
        "run_by_caller": station.run_by_caller,
        "gil_acquires": station.gil_acquires,
        "busy_s": station.busy_ns / 1e9,
        "halved": station.halved,
        "hung": station.hung,
        "worker_deaths": station.deaths,
        "queued": station.queued.load(memory_order_relaxed),
        "running": station.running.load(memory_order_relaxed),
        "oldest_s": _oldest_s(station),
        "why_batches_left": {_REASONS[i]: station.reasons[i].load(memory_order_relaxed) for i in range(REASON_COUNT)
                             if station.reasons[i].load(memory_order_relaxed)},
        "queue_s": _tally(&station.queue_ns, 1e9),
        "run_s": _tally(&station.run_ns, 1e9),
        "batch_sizes": _tally(&station.sizes, 1.0) if station.sizes.bucket_count else sizes,
        "weights": _tally(&station.weights, WEIGHT_ONE) if station.has_weights.load(memory_order_relaxed) else None,
        "failures": failures_by_reason(station.failed_by),
        "without_result": station.without_result,
        "refused": station.refused,
        "shed": station.shed,
        "cancelled": station.cancelled,
        "dropped": station.dropped,
        "instances": {"count": station.instance_count, "in_service": station.in_service, "hung": absent,
                      "replaced": station.replaced, "switches": station.switches},
        "max": station.max_batch,
        "padding": {"own": station.padding[0], "padding": station.padding[1]} if station.has_padding else None,
        "cache": cache_counts(station.cache),
    }


cdef dict measures_of_all(Engine engine):
    """What an engine has counted: Stats of measures.py, of which ``stations`` has (node, place, what it has counted)."""
    cdef int64_t now = now_ns()
    cdef Station station
    cdef list stations = []
    for station in engine.stations:
        stations.append((station.name, station.place, _measures_of(station)))
    return {
        "time_s": now / 1e9,
        "interval_s": (now - engine.built_ns) / 1e9,
        "requests": engine._counts(),
        "failures": failures_by_reason(engine.failed_by),
        "without_result": engine.without_result,
        "copies": engine.copies,
        "latency_s": _tally(&engine.latency_ns, 1e9),
        "stations": stations,
    }
