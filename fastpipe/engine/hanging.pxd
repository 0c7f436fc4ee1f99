# Hanging: when a batch has run for too long, of what a watchdog sees that may itself have been kept from running.
#
# A process that is stopped, a virtual machine that is paused, a group of processes that has used up its share of the CPU:
# time goes by, and no batch gets on. The watchdog stands still as well, and that is how it knows. It looks LOOKS times in
# each hang_timeout while a batch runs; if it comes to a look much later than it meant to, each batch that runs gets one more
# hang_timeout, from now on. What hangs is found by then.
#
# Guarantees   A batch is late only after a whole hang_timeout in which no pause longer than hang_timeout / TOLERANCE was
#              noticed; but after MOST_PAUSES it is late all the same, so that one that hangs is found where looks are
#              always late. Pure: no clock is read in here.

from libc.stdint cimport int32_t, int64_t

cdef enum:
    LOOKS = 4
    TOLERANCE = 8
    MOST_PAUSES = 3


cdef struct Watched:            # what the watchdog knows of the batch in an instance
    int64_t started_ns          # which one it is: when it began
    int64_t since_ns            # from when on its time counts
    int32_t pauses              # how often it was granted one more hang_timeout


cdef inline int64_t late_at_ns(Watched* watched, int64_t started_ns, int64_t hang_ns, int64_t now_ns, int64_t asked_ns) noexcept nogil:
    """When the batch that began at ``started_ns`` is late, as is known at the look of ``now_ns``: then, if that is over.

    ``asked_ns``: when that look was meant to be, at the latest; negative: time is not the kernel's, and tells nothing.
    """
    cdef int64_t due_ns = asked_ns
    if watched.started_ns != started_ns:                        # seen for the first time: its worker has called for a look
        watched.started_ns = started_ns
        watched.since_ns = started_ns
        watched.pauses = 0
        due_ns = min(due_ns, started_ns + hang_ns // LOOKS)
    if asked_ns >= 0 and now_ns - due_ns > hang_ns // TOLERANCE and watched.pauses < MOST_PAUSES:
        watched.pauses += 1
        watched.since_ns = now_ns
    return watched.since_ns + hang_ns
