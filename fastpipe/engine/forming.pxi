# Forming a batch: what is staged, what the rule says to it, and what is taken.
#
# Guarantees   E3: who has a batch has a token. E5: the oldest first, by rank. E7: a rule written in Python is asked with no mutex held.
# Assumes      "Mutex held": by the caller, of the station's desk.

from libcpp.atomic cimport memory_order_relaxed

from fastpipe.engine.batching cimport DISPATCH, RULE, WAIT_UNTIL

from fastpipe.errors import BackendError


cdef Verdict _ask_rule_object(PyObject* station_pointer, const Load* load) noexcept with gil:
    """Ask a rule written in Python. Whatever goes wrong in it must not stop the queue: then the batch leaves."""
    cdef Station station = <Station>station_pointer
    cdef Verdict verdict
    cdef int64_t size
    verdict.action = DISPATCH
    verdict.reason = RULE
    verdict.size = load.queued
    verdict.until_ns = load.oldest_ns + load.timeout_ns
    if verdict.until_ns <= load.now_ns or station.life.load(memory_order_relaxed) != OPEN_FOR_ALL:
        return verdict
    try:
        answer = _enter_user_code(station.engine, station.rule_object, _load_as_dict(load))
        if not isinstance(answer, int):
            raise BackendError(f"a batching rule must return how many requests leave now, an int; got {answer!r}")
        size = answer
        if size > 0:
            verdict.size = <int32_t>min(size, load.queued)
        else:
            verdict.action = WAIT_UNTIL
    except BaseException as error:
        _report(error, station.rule_object)
    return verdict


cdef dict _load_as_dict(const Load* load):
    return {
        "queued": load.queued,
        "queued_weight": load.queued_weight,
        "max": load.max_weight,
        "oldest_ms": (load.now_ns - load.oldest_ns) / 1e6,
        "latest_event_ms": (load.now_ns - load.latest_event_ns) / 1e6,
        "usual_gap_ms": load.usual_gap_ns / 1e6,
        "batching_timeout_ms": load.timeout_ns / 1e6,
        "idle_instances": load.idle_instances,
        "busy_instances": load.busy_instances,
        "company": load.company,
        "cost_alone_ms": load.cost_alone_ns / 1e6,
        "cost_shared_ms": load.cost_shared_ns / 1e6,
    }
