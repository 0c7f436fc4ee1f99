# Noting: what an event of a pipe is, in a log of them (events.pxi).

from libc.stdint cimport int32_t, int64_t

cdef enum:                  # Event.kind, and which fields it has
    REQUEST_BEGAN = 0       # request, lane; thread: for how many ns it waited to be let in
    REQUEST_ENDED = 1       # lane; why: how, by EventLog.outcomes
    QUEUED = 2              # request, lane, station; count: queue length
    BATCH_BEGAN = 3         # thread, station, instance, why, size; count: how many MEMBERs are behind it; lane: queue length
    MEMBER = 4              # request
    BATCH_ENDED = 5         # thread, station, instance
    STREAM_RAN = 6          # thread: the stream's row; station; request: when it ended, time_ns being when it began


cdef struct Event:
    int64_t time_ns             # CLOCK_MONOTONIC
    int64_t thread
    int64_t request
    int32_t kind
    int32_t station
    int32_t instance
    int32_t count
    int32_t size
    int32_t why
    int32_t lane


cdef struct Text:               # of a bytes object that somebody keeps
    const char* start
    size_t length
