# Types of what a node keeps for sequences of requests; a part of _core.pxd.

@cython.final
cdef class Sequence:
    # The requests that have one key at a node, and the state that they leave to each other. All GIL.
    cdef object key                             # built: a str, bytes or int, of no class of users
    cdef object state                           # what the last request to succeed has left; None: it begins anew
    cdef object forgotten                       # what it has kept until others took the place of the node's backends
    cdef object place                           # where the last request has run
    cdef int64_t used_ns                        # when the last of its requests was gone
    cdef Position first                         # those who have a position, in the order of their turns
    cdef Position last
    cdef int64_t on_their_way                   # of these: they have not arrived at the node
    cdef PyObject* older                        # neighbours among those that have a state and no requests; not owned
    cdef PyObject* newer
    cdef c_bool is_idle                         # it is among them


@cython.final
cdef class Position:
    # A request's turn in a sequence: the first of it may run, the others wait. All GIL.
    cdef States states                          # built
    cdef Sequence sequence                      # None: it is given up
    cdef Walk walk                              # whose it is
    cdef Visit visit                            # once it has arrived at the node; None: it is on its way there
    cdef Instance instance                      # that it was handed in to
    cdef Position next                          # in the sequence, which owns its positions
    cdef PyObject* before
    cdef Position sibling                       # the next of the same walk
    cdef Standing whole                         # of a part: its root's
    cdef PyObject* kin_before                   # of a part: neighbours in the root's list; not owned
    cdef PyObject* kin_next
    cdef Position parked_next                   # neighbours among the parked of the node
    cdef PyObject* parked_before
    cdef PyObject* called_next                  # in a turn's list of those who may run now
    cdef Stepper stepper                        # whose thread waits for its turn, or None
    cdef c_bool starts                          # what was kept is dropped before it runs
    cdef c_bool goes_on                         # it fails if nothing is kept
    cdef c_bool ends                            # nothing is kept once it has run
    cdef c_bool drops                           # nothing is kept once it and all before it are gone: drop_state()
    cdef c_bool is_called                       # it is in a turn's list of those who may run now
    cdef c_bool is_handed                       # it has the state in its dict
    cdef c_bool is_outdated                     # that is another backend's: it is queued again, and to be handed another one
    cdef c_bool is_running                      # in a batch: whatever becomes of its walk, the next waits for the end of that


@cython.final
cdef class Standing:
    # The positions of a walk, and of its parts. All GIL.
    cdef Position own                           # linked by `sibling`
    cdef PyObject* kin                          # of a root: those of its parts, linked by `kin_next`
    cdef int64_t kin_count                      # of its parts, and theirs: how many positions they have


@cython.final
cdef class States:
    # What a node keeps for sequences. Knows no engine and no backend. All GIL.
    cdef readonly str key_name                  # built: the key of a request that says which sequence it belongs to
    cdef readonly int64_t max_states            # built
    cdef int64_t ttl_ns                         # built
    cdef dict sequences                         # key -> Sequence: those that have a state, or requests
    cdef PyObject* oldest                       # of those that have a state and no requests, the one not used for longest
    cdef PyObject* newest
    cdef Position parked_first                  # those who have arrived and wait for their turns, in order of arrival
    cdef Position parked_last
    cdef readonly int32_t parked                # how many they are: they count as queued
    cdef readonly int64_t kept                  # sequences that have a state: started - dropped - expired - evicted
    cdef readonly int64_t started, dropped, expired, evicted
