# Forming a batch: what is staged, what the rule says to it, and what is taken.
#
# Guarantees   E3: who has a batch has a token. E5: the oldest first, by rank. E7: a rule written in Python is asked with no mutex held.
# Assumes      "Mutex held": by the caller, of the station's desk.

from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst

from fastpipe.engine.batching cimport (
    DISPATCH, LATE, RULE, TIMEOUT, WAIT_UNTIL, decide_adaptive, decide_greedy, decide_preferred, decide_timeout,
)
from fastpipe.engine.costs cimport Costs, cost_of
from fastpipe.engine.inbox cimport inbox_pop
from fastpipe.engine.parking cimport now_ns
from fastpipe.engine.ranking cimport (
    Cursor, cursor_begin, cursor_move, cursor_pass, next_of, ranked_append, ranked_insert, taken_init,
)
from fastpipe.engine.tokens cimport token_is_retired, token_try, tokens_take

from fastpipe.errors import BackendError


cdef int32_t _count_company(Station station) noexcept nogil:
    # torchpipe's rule does not reckon with callers that come back.
    cdef int32_t company = 0 if station.rule == RULE_TIMEOUT else station.owed.load(memory_order_relaxed)
    cdef size_t i
    for i in range(station.upstream_stations.size()):
        company += count_present(station.upstream_stations[i])
    return company


cdef void drain_inbox(Station station) noexcept nogil:
    """Move what has arrived from the inbox to the staged list: to its end, or where its rank belongs. Mutex held."""
    cdef Ticket* ticket = inbox_pop(&station.inbox)
    while ticket != NULL:
        if station.has_ranks.load(memory_order_relaxed):
            ranked_insert(&station.staged, ticket)
        else:
            ranked_append(&station.staged, ticket)
        ticket = inbox_pop(&station.inbox)


cdef int64_t _weigh_queue(Station station, Load* load) noexcept nogil:
    """Fill in what is queued of the bucket to go next, and return that bucket. Mutex held.

    The oldest request's bucket goes next. Another one that is full may overtake it, but only as long as the oldest
    has not waited for batching_timeout: it is never starved. Only the first 16 buckets among the first 256 requests
    are looked at, so that the look stays short.
    """
    cdef int64_t[16] buckets
    cdef int32_t[16] counts
    cdef double[16] weights
    cdef int64_t[16] oldest
    cdef int32_t bucket_count = 0
    cdef c_bool is_overdue
    cdef int32_t seen = 0
    cdef int32_t i
    cdef Ticket* ticket = station.staged.first
    load.queued = 0
    load.queued_weight = 0
    if ticket == NULL:
        return 0
    if station.has_lengths:
        return weigh_similar(station, load)
    if not station.has_buckets:
        load.queued = station.staged.count
        load.queued_weight = station.staged.weight
        load.oldest_ns = ticket.arrival_ns
        return 0
    is_overdue = now_ns() - ticket.arrival_ns >= station.timeout_ns
    while ticket != NULL and seen < 256:
        seen += 1
        i = 0
        while i < bucket_count and buckets[i] != ticket.bucket:
            i += 1
        if i == bucket_count and bucket_count < 16:
            bucket_count += 1
            buckets[i] = ticket.bucket
            counts[i] = 0
            weights[i] = 0
            oldest[i] = ticket.arrival_ns
        if i < bucket_count:
            counts[i] += 1
            weights[i] += ticket.weight
            if weights[i] >= station.max_batch and (i == 0 or not is_overdue):
                break
        ticket = next_of(ticket)
    if ticket == NULL or seen >= 256:
        i = 0
    load.queued = counts[i]
    load.queued_weight = weights[i]
    load.oldest_ns = oldest[i]
    return buckets[i]


cdef int64_t fill_load(Station station, Load* load) noexcept nogil:
    """Describe the moment to a rule, and return the bucket to go next. Mutex held."""
    cdef int64_t bucket = _weigh_queue(station, load)
    _fill_in_but_queue(station, load)
    _fill_in_costs(station, load)
    return bucket


cdef void fill_load_with(Station station, Load* load, int64_t bucket, double weight, int32_t length) noexcept nogil:
    """Describe the moment in which one more request came, and what has its bucket is to go next. Mutex held."""
    cdef Ticket* ticket = station.staged.first
    load.queued = 0
    load.queued_weight = 0
    if station.has_lengths:
        weigh_similar_with(station, load, bucket, length)
        ticket = NULL
    while ticket != NULL:
        if ticket.bucket == bucket:
            load.oldest_ns = ticket.arrival_ns if load.queued == 0 else load.oldest_ns
            load.queued += 1
            load.queued_weight += ticket.weight
        ticket = next_of(ticket)
    _fill_in_but_queue(station, load)
    _add_arrival(station, load, weight)


cdef void _fill_in_but_queue(Station station, Load* load) noexcept nogil:
    load.now_ns = now_ns()
    load.idle_instances = station.tokens.idle.load(memory_order_seq_cst)
    load.busy_instances = station.instance_count - load.idle_instances
    load.max_weight = station.max_batch
    load.timeout_ns = station.timeout_ns
    load.idle_since_ns = station.idle_since_ns.load(memory_order_relaxed)
    load.latest_event_ns = max(station.latest_arrival_ns.load(memory_order_relaxed),
                               station.latest_answer_ns.load(memory_order_relaxed))
    load.usual_gap_ns = station.usual_gap_ns.load(memory_order_relaxed)
    load.longest_gap_ns = station.longest_gap_ns.load(memory_order_relaxed)
    load.company = _count_company(station) if station.life.load(memory_order_relaxed) == OPEN_FOR_ALL else 0


cdef void _add_arrival(Station station, Load* load, double weight) noexcept nogil:
    """Add a request that has come just now."""
    if load.queued == 0:
        load.oldest_ns = load.now_ns
    load.queued += 1
    load.queued_weight += weight
    load.latest_event_ns = load.now_ns
    _fill_in_costs(station, load)


cdef void _fill_in_costs(Station station, Load* load) noexcept nogil:
    """Fill in the measured costs of the batches that a rule has to choose between."""
    cdef int32_t expected
    cdef Costs* costs
    load.cost_alone_ns = 0
    load.cost_shared_ns = 0
    load.saving_ns = 0
    if station.batches and load.queued > 0:
        expected = min(load.queued + max(load.company, 0), station.max_batch)
        load.cost_alone_ns = cost_of(&station.cost_alone, expected)
        if load.idle_instances > 1:
            load.cost_shared_ns = cost_of(&station.cost_shared, expected // load.idle_instances)
        if expected > load.queued:
            costs = &station.cost_shared if load.busy_instances > 0 else &station.cost_alone
            load.saving_ns = max(0, cost_of(costs, load.queued) + cost_of(costs, expected - load.queued) - cost_of(costs, expected))


cdef c_bool asks_rule_object(Station station, const Load* load) noexcept nogil:
    """True if there is something to decide, and a rule written in Python does."""
    return station.rule == RULE_OBJECT and station.batches and load.queued > 0 and load.idle_instances > 0


cdef Verdict decide_by_rule(Station station, Load* load) noexcept nogil:
    if station.rule == RULE_GREEDY or station.life.load(memory_order_relaxed) != OPEN_FOR_ALL:
        return decide_greedy(load)
    if station.rule == RULE_ADAPTIVE or not station.batches:
        return decide_adaptive(load)
    if station.rule == RULE_TIMEOUT:
        return decide_timeout(load)
    return decide_preferred(load, station.preferred.data(), <int32_t>station.preferred.size())


cdef void take_staged(Station station, Batch* batch, int64_t bucket, int32_t size) noexcept nogil:
    """Append to ``batch`` up to ``size`` staged requests of ``bucket``, within the node's max. Mutex held."""
    cdef Cursor cursor
    cdef Taken* taken = &batch.taken
    cdef int32_t before = taken.count
    batch.bucket = bucket
    cursor_begin(&cursor, &station.staged)
    if station.has_lengths:
        take_similar(station, batch, bucket, size)
        cursor.at = NULL
    while cursor.at != NULL and taken.count - before < size and taken.weight < station.max_batch:
        if cursor.at.bucket != bucket:
            cursor_pass(&cursor, &station.staged)
            continue
        if taken.count > 0 and taken.weight + cursor.at.weight > station.max_batch:
            break
        cursor_move(&cursor, &station.staged, taken)
    station.running.fetch_add(taken.count - before, memory_order_relaxed)
    station.queued.fetch_sub(taken.count - before, memory_order_seq_cst)


cdef void take_oldest(Station station, Batch* batch) noexcept nogil:
    """Take the request that would be next out of the queue, as a batch; an empty one if nothing is queued."""
    taken_init(&batch.taken)
    station.desk.lock()                                         # E7: a holder of the GIL may wait for it
    drain_inbox(station)
    if station.staged.first != NULL:
        take_staged(station, batch, station.staged.first.bucket, 1)
    station.desk.unlock()


cdef c_bool try_take(Station station, Batch* batch, int worker, Verdict* verdict) noexcept nogil:
    """Form a batch if the rule says so; True if ``batch`` holds one, and a token.

    ``worker``: who asks: CALLER, SHARING (see words), or the token of the instance that is bound to it, which is the only one it gets. A
    token that ``batch`` holds already is kept. The verdict is LEAVE if that, or who asks, serves no longer.
    """
    cdef Load load
    cdef int64_t bucket
    cdef c_bool has_token = batch.instance >= 0
    cdef c_bool took = False
    taken_init(&batch.taken)
    station.desk.lock()
    drain_inbox(station)
    bucket = fill_load(station, &load)
    if has_token:
        if load.idle_instances == 0:
            load.idle_since_ns = load.now_ns
        load.idle_instances += 1
        load.busy_instances -= 1
    if asks_rule_object(station, &load):
        # E7: it needs the GIL, which must not be waited for under the mutex.
        station.desk.unlock()
        verdict[0] = _ask_rule_object(<PyObject*>station, &load)
        station.desk.lock()
    else:
        if station.has_lengths and load.queued < station.staged.count:
            # Others wait that do not fit: this batch waits for nobody, and is not shared between instances that have them to run.
            load.company = 0
            load.idle_instances = min(load.idle_instances, 1)
        verdict[0] = decide_by_rule(station, &load)
    if _is_to_leave(station, batch.instance, worker):
        verdict.action = LEAVE
    if verdict.action == DISPATCH:
        if not has_token:
            if station.thread_bound:
                batch.instance = worker if token_try(&station.tokens, worker) else -1
            else:
                batch.instance = tokens_take(&station.tokens)
        if batch.instance >= 0:
            take_staged(station, batch, bucket, verdict.size)
            if batch.taken.count > 0:
                took = True
                batch.reason = verdict.reason
                station.reasons[verdict.reason].fetch_add(1, memory_order_relaxed)
                batch.may_grow = station.rule == RULE_ADAPTIVE or station.rule == RULE_GREEDY
                batch.may_grow = batch.may_grow and verdict.size >= load.queued and batch.taken.weight < station.max_batch
            elif not has_token:
                station.c_release_token(batch.instance)
                batch.instance = -1
    elif verdict.action == WAIT_UNTIL:
        # Wake the collecting worker when the batch is full or everybody who was expected is here. Where a count does
        # not tell (weights, buckets, lengths, rules of other kinds), at every arrival.
        if (station.rule != RULE_ADAPTIVE or station.has_buckets or station.has_lengths or station.has_weights.load(memory_order_relaxed)
                or load.company <= 0):
            # What has been seen, not what is counted: a ticket may be counted before its push can be seen.
            station.wake_at.store(station.staged.count + 1, memory_order_seq_cst)
        else:
            station.wake_at.store(min(station.max_batch, load.queued + load.company), memory_order_seq_cst)
    if took and (verdict.reason == LATE or verdict.reason == TIMEOUT):
        station.owed.store(0, memory_order_relaxed)             # they did not come back: expect nobody until the next answer
    station.desk.unlock()
    return took


cdef c_bool _is_to_leave(Station station, int instance, int worker) noexcept nogil:
    """True if a worker, or the token that it holds, serves no longer, or a caller has no business here any more. Mutex held."""
    if instance >= 0 and token_is_retired(&station.tokens, instance):
        return True
    if worker == CALLER:
        return station.workers_only
    if worker >= 0:
        return token_is_retired(&station.tokens, worker)
    if worker != SHARING - station.era:                         # those who came with the instances that serve now stay
        return True
    if station.sharing <= station.sharing_wanted:
        return False
    if instance < 0:                                            # else it comes back without a token
        station.sharing -= 1
    return True


cdef void top_up(Station station, Batch* batch) noexcept nogil:
    """Add what has arrived since the batch was formed: taking the GIL may have lasted milliseconds."""
    if station.queued.load(memory_order_relaxed) == 0:
        return
    station.desk.lock()
    drain_inbox(station)
    if not token_is_retired(&station.tokens, batch.instance):   # else what arrives is not for that instance
        take_staged(station, batch, batch.bucket, station.max_batch)
    station.desk.unlock()


cdef int token_for_caller(Station station, double weight) noexcept:
    """A token, if a caller with one request may run it right here; -1: it has to queue."""
    cdef Load load
    cdef Verdict verdict
    if station.workers_only or station.queued.load(memory_order_seq_cst) > 0:
        return -1
    if not station.batches:
        return tokens_take(&station.tokens)
    if station.tokens.idle.load(memory_order_relaxed) <= 0 or station.rule == RULE_OBJECT:
        return -1
    load.queued = 0
    load.queued_weight = 0
    _fill_in_but_queue(station, &load)
    _add_arrival(station, &load, weight)
    verdict = decide_by_rule(station, &load)
    if verdict.action != DISPATCH:
        return -1
    station.reasons[verdict.reason].fetch_add(1, memory_order_relaxed)
    return tokens_take(&station.tokens)


cdef Verdict _ask_rule_object(PyObject* station_pointer, const Load* load) noexcept with gil:
    """Ask a rule written in Python. Whatever goes wrong in it must not stop the queue: then the batch leaves."""
    cdef Station station = <Station>station_pointer
    cdef Verdict verdict
    cdef int64_t size
    verdict.action = DISPATCH
    verdict.reason = RULE
    verdict.size = load.queued
    verdict.until_ns = load.oldest_ns + load.timeout_ns
    if (verdict.until_ns <= load.now_ns or station.life.load(memory_order_relaxed) != OPEN_FOR_ALL
            or station.rule_object is None):                    # another rule has just taken its place
        return verdict
    try:
        answer = enter_user_code(station.engine, station.rule_object, _load_as_dict(load))
        if not isinstance(answer, int):
            raise BackendError(f"a batching rule must return how many requests leave now, an int; got {answer!r}")
        size = answer
        if size > 0:
            verdict.size = <int32_t>min(size, load.queued)
        else:
            verdict.action = WAIT_UNTIL
    except BaseException as error:
        report(error, station.rule_object)
    return verdict


cdef dict _load_as_dict(const Load* load):
    return {
        "queued": load.queued,
        "queued_weight": load.queued_weight,
        "max": load.max_weight,
        "oldest_ms": (load.now_ns - load.oldest_ns) / 1e6,
        "latest_event_ms": (load.now_ns - load.latest_event_ns) / 1e6,
        "usual_gap_ms": load.usual_gap_ns / 1e6,
        "longest_gap_ms": load.longest_gap_ns / 1e6,
        "batching_timeout_ms": load.timeout_ns / 1e6,
        "idle_instances": load.idle_instances,
        "busy_instances": load.busy_instances,
        "company": load.company,
        "cost_alone_ms": load.cost_alone_ns / 1e6,
        "cost_shared_ms": load.cost_shared_ns / 1e6,
        "saving_ms": load.saving_ns / 1e6,
    }
