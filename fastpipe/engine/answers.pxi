# Answers: what a node's result cache keeps, for how long, and what it has counted.
#
# Guarantees   The sizes of what is kept never exceed the budget; what was not used for longest goes first. What is kept belongs to
#              the cache: nobody else gets an object out of it that can be changed.
# Assumes      The GIL. What is dropped may run a destructor, after the books are right.

cimport cython
from cpython.dict cimport PyDict_GetItem, PyDict_Update

from fastpipe.engine.parking cimport FOREVER, now_ns

from collections import OrderedDict
from hashlib import blake2b
from os import urandom

from fastpipe.contents import are_fixed, copy_values, size_bytes_of

cdef enum:
    _SIZE_OF_AN_ANSWER = 400                     # bytes: of its objects here, and its places in two tables


@cython.final
cdef class Renewal:
    """See ResultCache.clear."""


cdef Renewal renewal_of(ResultCache cache):
    """Return what a cache can be emptied with."""
    cdef Renewal renewal = Renewal.__new__(Renewal)
    renewal.cache = cache
    renewal.answers = OrderedDict()
    renewal.flights = {}
    return renewal


@cython.final
cdef class ResultCache:
    """The answers of one node, by what it was asked. See ``cached.pxi`` for who owns what."""

    def __cinit__(self, int64_t budget_bytes, object ttl_s=None, object choice=None, bint keeps_data=True):
        self.budget_bytes = budget_bytes
        self.ttl_ns = FOREVER if ttl_s is None else <int64_t>(<double>ttl_s * 1e9)
        self.choice = choice
        self.keeps_data = keeps_data
        self.hasher = blake2b(key=urandom(_DIGEST_BYTES), digest_size=_DIGEST_BYTES)
        self.answers = OrderedDict()
        self.flights = {}
        self.aloft = {}

    def clear(self):
        """Keep nothing of what was asked so far: neither what is there nor what is on its way, which still is whose it is."""
        cdef Renewal renewal = renewal_of(self)
        self.c_renew(renewal)
        return len(renewal.answers)                             # they are dropped when all is in order

    cdef void c_renew(self, Renewal renewal) noexcept:
        """The same without asking for memory; what there was goes with the renewal."""
        self.generation += 1
        self.answers, renewal.answers = renewal.answers, self.answers
        self.flights, renewal.flights = renewal.flights, self.flights
        self.size_bytes = 0

    @property
    def flight_count(self):
        """How many requests run, or are to run, that others may follow."""
        return len(self.aloft)

    def key_of(self, dict request):
        """The key of a request; None: it has none. For tests, and where no function of users chooses."""
        content = self.c_content(request)
        return None if content is None else (<_Content>content).c_key()

    cdef object c_content(self, object request):
        """What a request contains under the chosen keys; None: something in it has no key."""
        try:
            return content_of(request, self.choice, self.hasher)
        except Exception:                                       # its keys have no order, it has changed meanwhile, there is no memory
            return None


cdef Answer find_answer(ResultCache cache, bytes key):
    """What is kept under a key, which counts as used now; None: nothing."""
    cdef Answer answer = <Answer>cache.answers.get(key)
    if answer is None:
        return None
    if answer.until_ns >= 0 and now_ns() >= answer.until_ns:
        cache.expired += 1
        _drop_answer(cache, key)
        return None
    cache.answers.move_to_end(key)
    return answer


cdef int _drop_answer(ResultCache cache, bytes key) except -1:
    cdef Answer answer = <Answer>cache.answers.pop(key)
    cache.size_bytes -= answer.size_bytes
    return 0


cdef int keep_answer(ResultCache cache, bytes key, Answer answer) except -1:
    """Keep an answer, and no more than the budget allows."""
    cdef list dropped = []                                      # until all is in order
    cdef Answer oldest
    if key in cache.answers:
        _drop_answer(cache, key)
    answer.until_ns = FOREVER if cache.ttl_ns < 0 else now_ns() + cache.ttl_ns
    cache.answers[key] = answer
    cache.size_bytes += answer.size_bytes
    while cache.size_bytes > cache.budget_bytes:
        oldest = <Answer>cache.answers.popitem(False)[1]
        cache.size_bytes -= oldest.size_bytes
        cache.evicted += 1
        dropped.append(oldest)
    return 0


cdef Answer new_answer(Flight flight, Visit visit, c_bool* is_kept):
    """What a visit has set, now that it has run; None: nobody else may have it, or nobody wants it."""
    cdef ResultCache cache = flight.cache
    cdef Answer answer = Answer.__new__(Answer)
    cdef dict before = flight.before
    cdef dict changes = {}
    cdef PyObject* was
    cdef c_bool has_result = "result" in visit.request
    for key, value in visit.request.items():
        was = PyDict_GetItem(before, key)
        if was == NULL or was != <PyObject*>value:
            changes[key] = value
    if has_result and not cache.keeps_data and "restart" not in visit.request:
        changes.pop("data", None)
    answer.removed = tuple([key for key in before if key not in visit.request])
    answer.without = None if visit.without is None else (visit.without[1],)
    answer.size_bytes = size_bytes_of(changes) + len(flight.key) + _SIZE_OF_AN_ANSWER
    is_kept[0] = (has_result and answer.size_bytes <= cache.budget_bytes and flight.generation == cache.generation)
    if not is_kept[0] and not flight.followers:
        return None
    answer.is_fixed = are_fixed(changes.values())
    answer.changes = changes if answer.is_fixed else copy_values(changes)
    return answer


cdef int fill_in(Visit visit, Answer answer) except -1:
    """Set in a request what an equal one was answered: values of its own, where they can be changed."""
    cdef dict changes = answer.changes if answer.is_fixed else copy_values(answer.changes)
    for key in answer.removed:
        visit.request.pop(key, None)
    PyDict_Update(visit.request, changes)
    visit.without = None if answer.without is None else (visit.node, answer.without[0], visit.node)
    return 0


cdef int close_flight(Flight flight) noexcept:
    """Have nobody follow a flight any more; its followers are the caller's."""
    cdef ResultCache cache = flight.cache
    flight.has_landed = True
    flight.leader.flight = NULL
    try:
        if cache.flights.get(flight.key) is flight:
            del cache.flights[flight.key]
        cache.aloft.pop(flight, None)
    except BaseException as error:                              # a signal: there is no code of users
        report(error, cache)
    return 0


cdef object cache_counts(ResultCache cache):
    """CacheStats of measures.py; None: there is no cache."""
    if cache is None:
        return None
    return {
        "hits": cache.hits,
        "misses": cache.misses,
        "coalesced": cache.coalesced,
        "bypassed": cache.bypassed,
        "not_kept": cache.not_kept,
        "evictions": cache.evicted,
        "expirations": cache.expired,
        "entries": len(cache.answers),
        "bytes": cache.size_bytes,
    }


cdef object state_counts(States states):
    """StateStats of measures.py; None: there are none."""
    if states is None:
        return None
    return {
        "kept": states.kept,
        "waiting": states.parked,
        "started": states.started,
        "dropped": states.dropped,
        "expirations": states.expired,
        "evictions": states.evicted,
    }
