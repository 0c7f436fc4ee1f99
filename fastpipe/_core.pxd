# The engine's types: every field with its owner, every C method with its exception mode. What works on them are functions in
# the chapters, which are declared nowhere: a function that is declared in a .pxd is exported, and its address taken.
#
# Owners, used as words below
#   GIL        read and written only while holding the GIL
#   mutex      read and written only under the station's mutex (held for well under a microsecond, never while taking the GIL)
#   atomic     anybody; the comment names the partner
#   built      written while the pipe is built, read-only afterwards
#   both       written only under the mutex by who holds the GIL, too; read under either of the two

cimport cython
from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as c_bool
from libcpp.atomic cimport atomic
from libcpp.mutex cimport mutex
from libcpp.vector cimport vector

from fastpipe.engine.batching cimport Load, Verdict
from fastpipe.engine.chain cimport Chain, Sleeper
from fastpipe.engine.costs cimport Costs
from fastpipe.engine.hanging cimport Watched
from fastpipe.engine.histogram cimport Histogram
from fastpipe.engine.inbox cimport Inbox, Ticket
from fastpipe.engine.lengths cimport Bounds
from fastpipe.engine.noting cimport Event, Text
from fastpipe.engine.parking cimport EventCount, Word
from fastpipe.engine.ranking cimport Batch, Ranked
from fastpipe.engine.tokens cimport Tokens


@cython.final
cdef class Instance:
    cdef readonly object backend                # built
    cdef object forward                         # built: its bound method
    cdef readonly int index                     # of its token
    cdef bint retry_alone                       # built: a batch that fails is run again one by one
    cdef bint keeps_input                       # built: a batch changes no value that it is handed
    cdef tuple padding_counts                   # built: what its parts have padded since they were last read
    cdef bint has_padding                       # built: there are some


@cython.final
cdef class Station:
    # One node's front desk, or that of its instances at one place: queue, tokens and batching. Knows no backend and no
    # pipe, so that a worker which sleeps here keeps neither alive.
    cdef readonly str name                      # built
    cdef readonly object place                  # GIL: where its instances are; None: everywhere
    cdef readonly tuple numbers                 # GIL: by token, which of the node's instances it is
    cdef Station front                          # built: of a node at several places the first one's, whose limits and room
                                                # are the node's; None: this one
    cdef vector[PyObject*] others               # built: at the front, the other places'. Not owned: who asks holds the engine
    cdef int next_twin                          # GIL: at the front, where the look for the least work begins
    cdef readonly int instance_count            # both: tokens that are not retired
    cdef public int in_service                  # GIL: how many of them; the others hung and are being built again
    cdef readonly int max_batch                 # both; also the greatest weight of a batch
    cdef readonly bint thread_bound             # both: only worker i may hold token i
    cdef int32_t era                            # both: how often all instances were swapped
    cdef int32_t sharing                        # mutex: workers of this era that run in any instance
    cdef int32_t sharing_wanted                 # mutex: how many there are to be: if they are more, who sees it leaves
    cdef bint workers_only                      # both: no caller runs a batch here
    cdef readonly bint streams                  # both: its backends may emit chunks, and wait for those who read them
    cdef int64_t version                        # GIL: how often a switch has changed what is asked of a request
    cdef readonly int64_t switches              # GIL: how often its instances were swapped, or others added or taken away
    cdef const void* engine                     # built: whose it is; for comparing only, it may be gone
    cdef readonly int position                  # built: where it is in the engine's list
    cdef bint batches                           # both: max_batch > 1, so the rule matters
    cdef int rule                               # both: one of the RULE_ constants
    cdef object rule_object                     # GIL: a user's rule, or None
    cdef vector[int32_t] preferred              # both: ascending
    cdef int64_t timeout_ns                     # both
    cdef readonly tuple upstream                # built: stations whose requests may still come here
    cdef vector[PyObject*] upstream_stations    # built: the same, for nogil code; kept alive by `upstream`
    cdef bint has_buckets                       # both
    cdef bint has_lengths                       # both: a batch is padded to its longest request, within `bounds`
    cdef Bounds bounds                          # both
    cdef dict bucket_ids                        # GIL: bucket -> [number, queued requests that have it, bucket]
    cdef int64_t next_bucket_id                 # GIL

    cdef Inbox inbox                            # push: anybody; pop: mutex
    cdef atomic[int32_t] queued                 # atomic: tickets pushed and not taken; raised before the push. Pairs with
                                                # `tokens.idle`: push raises queued then reads idle, release raises idle then reads queued
    cdef atomic[int32_t] running                # atomic: requests inside an instance, until they are pushed on or ended
    cdef Tokens tokens                          # anybody; where they are: both
    cdef EventCount workers                     # where workers sleep
    cdef atomic[uint8_t] has_weights            # atomic: some request weighed other than 1, so counts say little
    cdef atomic[int32_t] collecting             # atomic: workers that sleep until a deadline, collecting a batch
    cdef atomic[int32_t] wake_at                # atomic: while collecting, a push wakes them only from so many queued on
    cdef atomic[uint8_t] life                   # atomic: OPEN_FOR_ALL -> DRAINING -> CLOSING
    cdef readonly object lost                   # GIL: why nothing can run here any more, or None
    cdef int when_full                          # built: BLOCK, REJECT or SHED_OLDEST
    cdef int32_t max_queue                      # built: 0: no limit
    cdef int64_t max_queue_bytes                # built: 0: no limit
    cdef int32_t reserved                       # GIL: requests let in that will be queued, or run, here in a moment
    cdef int64_t reserved_bytes                 # GIL: theirs
    cdef list waiting_alone                     # GIL: visits of steppers that wait for a token, and not in the queue
    cdef int64_t queued_bytes                   # GIL
    cdef list lines                             # GIL: of Line: all in which one may wait for a place here, at the front
    cdef int32_t waiter_count                   # GIL: how many stand in them
    cdef atomic[uint8_t] has_ranks              # atomic: some request had a priority, so the queue must be kept in order
    cdef int32_t ghosts                         # GIL: queued visits whose walks have ended: they hold no place
    cdef int64_t hang_ns                        # built: how long a batch may run; 0: however long
    cdef Watchdog watchdog                      # built: who looks; None if nobody does
    cdef atomic[int64_t]* started_ns            # atomic: by token, when the batch in that instance began; 0: none. Whoever
                                                # changes it from that value, the worker or the watchdog, decides: it hung
                                                # or not. Where they are: both
    cdef Watched* watched                       # the watchdog's thread's, under the mutex: by token, what it has seen. Where: both
    cdef list held                              # GIL: by token, (visits, turn, instance, thread) while a batch may hang
    cdef list lives                             # GIL: by token, how many instances have had it before
    cdef readonly int64_t hung                  # GIL: batches that did
    cdef readonly int64_t given_up_after_ns     # the watchdog's: how long the last of them had run
    cdef readonly int64_t deaths                # GIL: workers that ended, and were set to work again
    cdef atomic[int32_t] wanted                 # atomic: threads that wait for a token, not for requests; more once it closes.
                                                # Pairs with `tokens`: they raise it and then try, release does its part and then
                                                # reads. They sleep where workers do: c_notify reads it, lest they get a worker's wake-up

    cdef mutex desk                             # guards what says "mutex"
    cdef Ranked staged                          # mutex: popped from the inbox, in order, not yet taken

    # What the rule has learned. Relaxed atomics: written under the GIL, read anywhere; a stale value is harmless.
    cdef atomic[int64_t] idle_since_ns          # when an instance became idle while none was
    cdef atomic[int64_t] latest_arrival_ns
    cdef atomic[int64_t] latest_answer_ns
    cdef atomic[int64_t] usual_gap_ns
    cdef atomic[int64_t] longest_gap_ns         # it is forgotten over some 64 further ones
    cdef atomic[int32_t] owed                   # callers just answered who have not come back yet
    cdef Costs cost_alone                       # of batches that ran while the other instances were idle. Where: both
    cdef Costs cost_shared                      # the same while others were busy

    # Counters for stats(). GIL, but for gil_acquires (each worker counts under the GIL as well).
    cdef readonly int64_t batches_run
    cdef readonly int64_t requests_run
    cdef readonly int64_t requests_failed
    cdef readonly int64_t run_by_caller
    cdef readonly int64_t gil_acquires
    cdef readonly int64_t busy_ns
    cdef readonly int64_t halved                # batches run in halves, as memory ran out
    cdef int64_t[2] padding                     # elements of requests that ran, and of padding beside them
    cdef bint has_padding                       # both: some backend counts them, or did
    cdef atomic[int64_t] reasons[8]             # atomic, relaxed
    cdef public ResultCache cache               # built: at the front, the node's answers; or None

    # What the log tells of a gate, at the front of a node; see notices.pxi. All GIL.
    cdef readonly int64_t no_room               # requests for which there was none: callers', and those of a node before
    cdef readonly int64_t pushed_out            # requests that had to leave for newer ones
    cdef public bint is_noticed                 # the log will look at these two, and need not be told

    # What is measured; see measuring.pxi. All GIL.
    cdef int64_t* tallies                       # the buckets of the four histograms
    cdef readonly int64_t tallies_bytes         # of memory
    cdef Histogram queue_ns                     # of each visit that has run, how long it was queued; 0: never
    cdef Histogram run_ns                       # of each batch, the time in the backend
    cdef Histogram sizes                        # of each batch; not kept where there were batches of one only
    cdef Histogram weights                      # the same
    cdef int64_t[8] failed_by                   # visits that have failed here, by reason
    cdef int64_t cancelled                      # visits whose walk was cancelled, found so here
    cdef int64_t dropped                        # visits whose walk has ended elsewhere, found so here
    cdef int64_t without_result                 # requests that have ended without one, or failed for want of it, because of it
    cdef int64_t shed                           # visits that had to leave the queue for newer ones
    cdef int64_t refused                        # at the front: requests that were not let in because of this queue
    cdef public int64_t replaced                # instances that hung and were built again

    cdef int c_make_histograms(self, int64_t most) except -1
    cdef int c_add_tokens(self, int32_t count) except -1
    cdef void c_set_kind(self, int max_batch, bint thread_bound) noexcept nogil
    cdef void c_release_token(self, int index) noexcept nogil
    cdef void c_push(self, Ticket* ticket) noexcept nogil
    cdef void c_notify(self) noexcept nogil
    cdef c_bool c_has_twins(self) noexcept
    cdef c_bool c_is_limited(self) noexcept
    cdef void c_note_arrival(self, int64_t now) noexcept nogil


include "engine/lookers.pxi"
include "engine/cached.pxi"


@cython.final
cdef class Line:
    # Those who wait to be let in at one entry, first come, first served. All of them need room at the same gates, so what
    # keeps the first of them out keeps all. Knows stations only, so that workers which sleep there keep nothing else alive.
    cdef tuple gates                            # built: of Station, fronts: one is let in only while none of them is full
    cdef Station home                           # built: of the gates, the one where one will queue; or None
    cdef Station whole                          # built: of the gates, the pipe's; or None
    cdef Waiter first                           # GIL
    cdef Waiter last                            # GIL
    cdef Station c_shut_gate(self, int64_t size_bytes, c_bool is_patient)
    cdef Station c_gate_of_first(self)
    cdef int64_t c_size_of(self, object request) except -1
    cdef void c_book(self, int64_t size_bytes) noexcept
    cdef void c_give_back(self, int64_t size_bytes) noexcept
    cdef void c_promise(self) noexcept
    cdef void c_keep_promise(self) noexcept
    cdef void c_join(self, Waiter waiter) noexcept
    cdef void c_step_out(self, Waiter waiter) noexcept
    cdef c_bool c_let_in_first(self) noexcept
    cdef void c_serve(self) noexcept
    cdef void c_turn_all_away(self) noexcept


@cython.final
cdef class Waiter:
    # A request in a line. GIL: all but `word`.
    cdef Engine engine
    cdef Line line
    cdef Entry entry
    cdef object request                         # as it was handed in
    cdef object owned                           # a coroutine's: the caller's dict, of which `request` is a copy
    cdef Terms terms
    cdef object sink                            # (loop, asyncio future) of a coroutine, or its ChunkStream; None: a thread
                                                # parks on `word`
    cdef int64_t entered_ns                     # when it was handed in
    cdef Walk walk                              # the coroutine's, once it is let in
    cdef object context                         # a coroutine's: the context variables of its task, for its walk
    cdef int64_t number                         # how many have come before it, in all lines of the pipe
    cdef int64_t size_bytes
    cdef bint is_patient                        # it waits even where others are refused, or shed what waits
    cdef readonly int state                     # IN_LINE, AWAY, LET_IN, TURNED_AWAY or GONE
    cdef bint is_booked                         # it holds the places for its request
    cdef Station turned_away_by                 # None: the pipe closes
    cdef Word word                              # parks its thread
    cdef Waiter next                            # in the line, or among those who are called
    cdef PyObject* before                       # in the line; not owned
    cdef void c_call(self) noexcept


@cython.final
cdef class Node:
    # A node of the compiled graph. Built; read-only afterwards, but for what a switch changes.
    cdef readonly str name
    cdef readonly int index
    cdef readonly Station station               # None for a sub-graph node
    cdef readonly list instances                # GIL: of Instance, by token; shared by logical nodes
    cdef str backend_name                       # GIL
    cdef int filter_kind                        # FILTER_DEFAULT, FILTER_RUN, FILTER_SWAP or FILTER_CALL
    cdef object filter
    cdef tuple sources                          # the map: ((source index, source name, ((key there, key here), ...), names context), ...)
    cdef int parent_count
    cdef int restart_limit                      # how often one request may enter again here
    cdef object subgraph                        # the Jump or MapReduce backend, or None
    cdef ResultCache cache                      # the answers that it has given, or None
    cdef bint is_plain                          # it has neither: what may run there is ready
    cdef readonly Entry jump                    # where its parts enter
    cdef object bucket                          # GIL: None, a key (str) or a callable
    cdef object weigh                           # GIL: None or a callable
    cdef object length_of                       # GIL: None or a callable
    cdef readonly tuple twins                   # of Node: itself at each place, if its instances are at several; else None. Its own
                                                # station is then the first place's
    cdef dict twin_at                           # place -> Node
    cdef object place_of                        # GIL: None or a callable


@cython.final
cdef class Switch:
    # What a station is to become, all at once. Built.
    cdef readonly Station station
    cdef tuple opened                           # of Instance: those that begin to serve
    cdef tuple retired                          # of int: the tokens of those that serve no longer
    cdef object backend_name
    cdef object bucket                          # for the node, as `weigh` and `place_of`
    cdef object weigh
    cdef object length_of
    cdef Bounds bounds
    cdef bint has_padding
    cdef object place_of
    cdef object place
    cdef int max_batch
    cdef bint thread_bound
    cdef bint has_buckets
    cdef Rule rule
    cdef bint replaces_all                      # `retired` are all that there are, and their workers leave with them
    cdef bint asks_again                        # what waits is to be weighed, and given its bucket, once more


@cython.final
cdef class Rule:
    # When a batch leaves, as it was configured. Built.
    cdef int kind                               # one of the RULE_ constants
    cdef object decide                          # a user's, or None
    cdef vector[int32_t] preferred              # ascending
    cdef int64_t timeout_ns


@cython.final
cdef class Exit:
    # How a request leaves a node, or a part of the graph that it skips; see graph.Exit. Read-only.
    cdef tuple hidden                           # names
    cdef vector[int32_t] kept
    cdef vector[int32_t] unread
    cdef tuple next                             # of Node
    cdef int heir
    cdef int leaves


@cython.final
cdef class Entry:
    # Where requests may enter the graph; see graph.Entry. Read-only but for `exits`, which fills as requests pass.
    cdef object plan                            # the graph.Entry
    cdef readonly Node node
    cdef vector[int32_t] pending                # by node index: parents that must arrive first; empty without joins
    cdef vector[int32_t] slots                  # by node index: where its dict is kept, or -1
    cdef vector[int32_t] readers                # by slot: how many will read it
    cdef int leaf_count
    cdef tuple leaves                           # of Node, in file order
    cdef Node restart                           # where a request that has passed all leaves enters again, or None
    cdef list exits                             # GIL: by node index, an Exit or None
    cdef Line line                              # where one waits to be let in; None: nothing here has a limit
    cdef Line inner_line                        # the same for calls from inside the pipe: they are part of what is in it
    cdef dict skips                             # GIL: (node index, status) -> Exit


@cython.final
cdef class Walk:
    # One admitted request on its way through the graph. Tens of thousands may wait at once, hence the order of the small fields.
    cdef Engine engine
    cdef Entry entry                            # GIL: where it entered, or entered again
    cdef Station home                           # where it was admitted: its caller may come back there; or None. Of a node with
                                                # twins the front, until one is chosen
    cdef object request                         # the caller's dict; written once, by the finish that succeeds
    cdef dict given                             # the same as it was handed in; None if it had nothing but `data`
    cdef dict restored                          # GIL: of its values, those that were put back for a second run; or None
    cdef readonly object error                  # why it failed; written before `outcome`
    cdef object sink                            # by sink_kind: RequestFuture, (loop, asyncio future), Gather, ChunkStream. Of parts
                                                # that a backend runs and waits for, the ChunkStream of their whole, or None
    cdef uint8_t sink_kind
    cdef atomic[uint8_t] outcome                # atomic: RUNNING -> DONE | FAILED | CANCELLED; the CAS that succeeds files it
    cdef c_bool is_part                         # of another request, which knows what to do without a result: `request` is no
                                                # caller's dict, but one that split() has made
    cdef c_bool started                         # some backend has seen it
    cdef c_bool has_room                        # it holds a place in the queue of `home`, booked at its front
    cdef c_bool is_counted                      # it holds a place in the engine's `gate`
    cdef c_bool is_context_entered              # GIL: some batch runs in `context`, which only one can at a time
    cdef Word word                              # parks the caller; set after `outcome`
    cdef int sink_index                         # Gather: which part
    cdef Sleeper* sleeper                       # its entry in `chain`
    cdef Chain* chain                           # in which its caller is woken; written before `word` is SET, then the caller's. Or NULL
    cdef int leaves_left                        # GIL
    cdef int restarts                           # GIL: its rounds
    cdef int32_t lane                           # GIL: in a log of events
    cdef float timeout_s                        # for the error's message, which has six digits of it
    cdef dict entered_again                     # GIL: node index -> how often; None before the first time
    cdef Branches branches                      # GIL: None where branches neither meet nor are read
    cdef int64_t entered_ns                     # when it was handed in
    cdef int64_t deadline_ns                    # when it fails if it has not ended; FOREVER
    cdef int64_t priority_ns                    # how much later it counts as having arrived, in every queue
    cdef list timer                             # GIL: the clock's, if it has one
    cdef int64_t room_bytes                     # of the place in the queue of `home`
    cdef list queued                            # GIL: its visits in queues that have a limit; or None
    cdef tuple without                          # GIL: who left it without a result, if somebody did; see Visit.without
    cdef PyObject* lister                       # the turn of its caller's call, for comparing only; NULL: that has returned
    cdef object recorded                        # what the recorder wants to have back at the end, or None
    cdef object context                         # GIL: its caller's context variables, for batches on other threads; a part's are
                                                # its whole's. no_variables: it had none, until a batch runs in one of its own.
                                                # None: it has not been queued, and runs where they are at hand
    cdef object span                            # GIL: what the tracer knows it by, until it ends; None: it is not followed
    cdef Tracer tracer                          # GIL: whose that is
    cdef int64_t number                         # GIL: in a log of events; 0, or below its `serial`: not in it
    cdef list stops                             # GIL: where it has been, for Engine.slowest; None: nobody looked when it came
    cdef PyObject* older                        # GIL: neighbours in the engine's list of live walks, which owns the walks in it
    cdef PyObject* newer
    cdef PyObject* settled_after                # the next in a turn's list of ended walks, which owns them
    cdef c_bool c_end(self, uint8_t outcome) noexcept
    cdef int c_wait(self, int64_t deadline_ns) except -1
    cdef PyObject* c_enter_context(self, Turn turn) except? NULL
    cdef int c_leave_context(self, PyObject* pointer) noexcept


@cython.final
cdef class Branches:
    # What a walk keeps of a graph whose branches meet, or are read later. All GIL.
    cdef vector[int32_t] pending                # by node index: parents that must arrive first; empty without joins
    cdef vector[int32_t] readers                # by slot, how many will still read it
    cdef list answers                           # dicts that a map or the answer needs later, by slot
    cdef vector[uint8_t] has_run                # by slot, whether its node has run, or was skipped


@cython.final
cdef class Visit:
    # A walk's turn at a node. In one place at a time: a queue, a batch, a turn's ready list, or a gather.
    cdef Ticket ticket
    cdef Walk walk
    cdef Node node                              # once one is chosen, its twin
    cdef object request                         # a dict of its own. None: the node's map makes it. is_packed: its only value
    cdef int round                              # of its walk; an older one is over
    cdef uint8_t way                            # how it came: PASSED_ON, ENTERED or RESTARTED
    cdef c_bool has_emitted                     # GIL: chunks of this run are handed on: it must not run again
    cdef c_bool has_left                        # GIL: it was sent on, or failed, before the end of its batch, as another visit
    cdef c_bool is_ghost                        # queued, but its walk has ended: it holds no place
    cdef c_bool is_held                         # a batch that may hang has it
    cdef c_bool is_packed                       # GIL: queued behind many, and its dict, which had nothing but `data`, is not there
    cdef int64_t size_bytes                     # of its data, while queued; 0 where nobody counts
    cdef tuple without                          # (node, part of its backend, node that counts it) that last left it without a
                                                # result, or None. Of parts the third is the one inside the sub-graph
    cdef list bucket                            # its entry in the station's bucket_ids while queued
    cdef Stepper stepper                        # who waits for it while a worker runs it, or None
    cdef PyObject* flight                       # the Flight that it leads, which its cache owns; or NULL


include "engine/readers.pxi"
include "engine/handed_out.pxi"
include "engine/timers.pxi"


@cython.final
cdef class Terms:
    # What a caller asked for besides the answer.
    cdef int64_t deadline_ns
    cdef double timeout_s
    cdef int64_t priority_ns


@cython.final
cdef class Gather:
    # A sub-graph node waiting for its parts.
    cdef Visit visit
    cdef list answers                           # GIL: dict, or the exception of a part that failed
    cdef tuple without                          # GIL: the first of its parts', see Walk.without
    cdef bint has_let_go                        # GIL: some part ended without a result, as a filter would have it
    cdef int left                               # GIL


include "engine/turn_types.pxi"


@cython.final
cdef class Stepper:
    # Walks one request through the graph on its own thread, one node at a time. Used by one thread.
    cdef Engine engine
    cdef Walk walk
    cdef Turn turn
    cdef Word returned                          # parks the thread while a worker runs a thread-bound node
    cdef object failure                         # what the visit that runs has failed with, or None
    cdef int c_run(self, Visit visit) except -1
    cdef int c_run_on_worker(self, Visit visit) except -1
    cdef int64_t c_slice_end(self) noexcept
    cdef c_bool c_is_over(self, Visit visit) except *
    cdef int c_instance(self, Visit visit) except -2
    cdef int c_token(self, Visit visit) except -2


cdef class Engine:
    cdef object graph                           # built: the graph.Graph
    cdef readonly tuple nodes                   # built: of Node, by index
    cdef dict node_named                        # built: name -> Node, for those at which a request may enter
    cdef dict entries                           # GIL: name -> Entry, made when first asked for
    cdef tuple root_names                       # built
    cdef dict open_to_all                       # built: those of node_named at which a request may enter that says so itself
    cdef bint obeys_node_name                   # built: they are all
    cdef readonly tuple ignored_keys            # built: which are taken out of a caller's dict, lest they steer
    cdef bint names_leaf                        # built: several leaves may answer, and the answer says which did
    cdef Entry only_entry                       # built: None with several roots
    cdef readonly list stations                 # built
    cdef PyObject* newest                       # GIL: live walks, owned; see Walk.older
    cdef readonly int64_t in_flight             # GIL
    cdef readonly int64_t accepted              # GIL: accepted == in_flight + done + failed + cancelled
    cdef readonly int64_t done
    cdef readonly int64_t failed
    cdef readonly int64_t cancelled
    cdef readonly int64_t refused
    cdef readonly int64_t without_result        # GIL: requests that ended without one, or failed for want of it, as a step gave none
    cdef readonly int64_t copies                # GIL: dicts copied because several nodes read them
    cdef EventLog events                        # GIL: who notes what happens, or None
    cdef Tracer tracer                          # GIL: who is told of requests that it may follow, or None
    cdef public object recorder                 # who is told of requests that begin and end, or None
    cdef public Slowest slowest                 # GIL: or None, while nobody looks
    cdef public object _keeper                  # built: who starts threads and replaces what hangs; _Keeper in the .pyi
    cdef public object _made_of                # GIL: what was configured; a switch puts what is now in its place
    cdef list waits_inside                      # GIL: (awaited, stations, visits) of backends that call their own pipe: they
                                                # wait for a walk, or for room at a station
    cdef dict steppers                          # GIL: thread -> the stepper that runs a backend there
    cdef readonly bint closing                  # GIL
    cdef bint gave_up                           # GIL: close() has failed the rest, and stops the workers
    cdef int64_t timeout_ns                     # built: of requests that say nothing; FOREVER
    cdef bint lets_go                           # built: a request may end without a result
    cdef Clock clock                            # GIL: made when first needed
    cdef int64_t[8] failed_by                   # GIL: how many requests, by reason
    cdef Histogram latency_ns                   # GIL: of callers' requests that were answered or failed, from call to end
    cdef int64_t built_ns                       # built
    cdef Station gate                           # built: its places are those of requests in flight; or None
    cdef EventCount drained                     # where close() sleeps
    cdef readonly int64_t arrivals              # GIL: how many have stood in line
    cdef readonly int64_t looks                 # GIL: how often it was looked whether the first of a line may go; for tests
    cdef Waiter called_first                    # GIL: coroutines that are let in, and whose requests are not started yet
    cdef Waiter called_last                     # GIL
    cdef uint32_t generation                    # built: in which process, see fork()
