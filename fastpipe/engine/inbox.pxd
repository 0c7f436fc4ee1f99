# Inbox: unbounded queue of tickets, any number of producers, one consumer at a time.
#
# Vyukov's intrusive multi-producer single-consumer queue (1024cores.net, "Intrusive MPSC node-based queue").
# The bounded ring of the first design gave way to it: a batch is formed by one thread at a time anyway (under the
# station's mutex), a push can never find the queue full in the middle of a graph, and nothing is allocated.
#
# Guarantees   FIFO. A pushed ticket is popped exactly once. push never fails, waits or allocates.
# Assumes      a ticket is in one queue at a time; pop is called under the station's mutex; the queue outlives its users.
# Progress     push is wait-free: one exchange, one store. A producer stopped between (A) and (B) hides the tickets
#              pushed after it until it goes on; pop then answers NULL, as if empty. Whoever relies on "empty" must
#              look at Station.queued, which is raised before the push. Nothing may run Python between A and B.
# Invariants   I1  from tail, following next, every ticket pushed and not popped is reached, but for gaps at (A)..(B)
#              I2  the stub is in the list at most once, and never handed out
# Owners       head: producers, by exchange.  tail, stub: the consumer.  ticket.next: producer until (B), then consumer.

from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t
from libcpp cimport bool as c_bool
from libcpp.atomic cimport atomic, memory_order_acq_rel, memory_order_acquire, memory_order_relaxed, memory_order_release


cdef enum:
    LINKS_ABOVE = 7             # of a staged ticket, see ranking.pxd: enough for 4 ** 8 of them


cdef struct Ticket:
    # What a queue sees of a visit; lives inside it. Written by the producer before the push, read by the consumer after.
    atomic[void*] next
    PyObject* visit             # owned: the producer INCREFs before the push, whoever pops takes the reference over
    int64_t arrival_ns          # CLOCK_MONOTONIC at the push
    int64_t rank_ns             # the queue's order: the arrival, moved by the request's priority
    int64_t bucket              # only equal buckets share a batch
    double weight               # counts so much towards the node's max
    int32_t length              # what it is padded from; 0 where nobody asks
    int32_t links_above         # while staged: how many of the next are in use
    Ticket* above[LINKS_ABOVE]


cdef struct Inbox:
    atomic[void*] head          # newest ticket
    Ticket* tail                # oldest ticket, or the stub
    Ticket stub


cdef inline void inbox_init(Inbox* inbox) noexcept nogil:
    inbox.stub.next.store(NULL, memory_order_relaxed)
    inbox.head.store(&inbox.stub, memory_order_relaxed)
    inbox.tail = &inbox.stub


cdef inline void inbox_push(Inbox* inbox, Ticket* ticket) noexcept nogil:
    cdef Ticket* before
    ticket.next.store(NULL, memory_order_relaxed)
    # (A) acq_rel: publishes our fields to the next producer's (B), and orders us after the previous one's init.
    before = <Ticket*>inbox.head.exchange(<void*>ticket, memory_order_acq_rel)
    before.next.store(<void*>ticket, memory_order_release)      # (B) pairs with the acquire loads in pop (C)


cdef inline Ticket* inbox_pop(Inbox* inbox) noexcept nogil:
    cdef Ticket* tail = inbox.tail
    cdef Ticket* after = <Ticket*>tail.next.load(memory_order_acquire)             # (C)
    if tail == &inbox.stub:
        if after == NULL:
            return NULL
        inbox.tail = after
        tail = after
        after = <Ticket*>tail.next.load(memory_order_acquire)                      # (C)
    if after != NULL:
        inbox.tail = after
        return tail
    if tail != <Ticket*>inbox.head.load(memory_order_acquire):
        return NULL                                             # a producer is between (A) and (B)
    inbox_push(inbox, &inbox.stub)                              # so that the last ticket can leave the list
    after = <Ticket*>tail.next.load(memory_order_acquire)                          # (C)
    if after != NULL:
        inbox.tail = after
        return tail
    return NULL
