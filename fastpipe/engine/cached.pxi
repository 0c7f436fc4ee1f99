# Types of the result cache; a part of _core.pxd.

@cython.final
cdef class Answer:
    # What a node has set in a request, to be set in others: the cache's own copies. Built; read-only afterwards.
    cdef dict changes
    cdef tuple removed                          # keys that are no more
    cdef bint is_fixed                          # nothing in `changes` can change, so that all may have it
    cdef tuple without                          # (part of the backend,) that left it without a result; None: it has one
    cdef int64_t size_bytes                     # with its key, about
    cdef int64_t until_ns                       # FOREVER: until there is no room


@cython.final
cdef class Flight:
    # A visit that runs for others as well: they follow it. All GIL.
    cdef ResultCache cache
    cdef bytes key
    cdef Visit leader
    cdef list followers                         # of Visit, in order of arrival; some may be dead
    cdef Py_ssize_t sweep_at                    # how many there may be before the dead ones are taken out
    cdef dict before                            # the leader's dict as it was when it was looked for
    cdef bint may_change                        # what is in there may be changed in place
    cdef int64_t generation                     # the cache's, then
    cdef bint has_landed                        # nobody can follow any more


cdef class Renewal:
    # What a cache is to be made empty with, made beforehand, as no memory may be asked for then; what it had, from then on.
    cdef ResultCache cache
    cdef object answers
    cdef dict flights


@cython.final
cdef class ResultCache:
    # A node's answers by what it was asked, and who waits for one that is on its way. Knows no engine and no backend.
    cdef readonly int64_t budget_bytes          # built
    cdef int64_t ttl_ns                         # built; FOREVER: no limit
    cdef object choice                          # built: what the key is made of: a tuple of keys, a function; None: all keys
    cdef bint keeps_data                        # built: somebody may read `data` behind the node
    cdef object hasher                          # built: keyed with a secret; copied for each digest
    cdef object answers                         # GIL: OrderedDict: key -> Answer, the one used last at the end
    cdef dict flights                           # GIL: key -> the Flight that an equal request follows
    cdef dict aloft                             # GIL: all flights that have not landed, which it owns
    cdef readonly int64_t generation            # GIL: how often it was emptied: what has begun before is not kept
    cdef readonly int64_t size_bytes            # GIL: of `answers`
    cdef readonly int64_t hits, misses, coalesced, bypassed     # GIL: of each request that looked, one
    cdef readonly int64_t not_kept, evicted, expired            # GIL: answers
    cdef void c_renew(self, Renewal renewal) noexcept
    cdef object c_content(self, object request)
