# Events: what a pipe does, noted while somebody looks: a bounded ring, and the thread that makes a timeline of it.
#
#     holders of the GIL ── note_... ──► ring ──► EventLog.serve, on a thread that needs no GIL ──► a file in Perfetto's format
#
# Guarantees   Off, one look at a pointer. On, no allocation, no lock, no system call on the way of a request: an event is 48 bytes
#              that are copied. A begin is noted only where there is room for its end, so that slices of one row always nest; what
#              finds no room is counted. Memory: the ring, the buffer and the lanes; all of them are allocated at the start.
# Assumes      note_...: the GIL, and that it is not let go between the events of one batch. One thread serves.
# Invariants   I1  taken <= written <= taken + capacity - owed;  owed: how many begins in the ring, or before, have no end yet
#              I2  a walk's `number`, and a turn's `shown`, are of this log only if they are not below `serial`
# Owners       written: holders of the GIL.  taken, and what serve() has: its thread.

cimport cython
from cpython.exc cimport PyErr_NoMemory
from libc.errno cimport EINTR, errno
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from libcpp.algorithm cimport binary_search, lower_bound
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst
from posix.unistd cimport write

from fastpipe.engine.noting cimport (
    BATCH_BEGAN, BATCH_ENDED, MEMBER, QUEUED, REQUEST_BEGAN, REQUEST_ENDED, STREAM_RAN, Event, Text,
)
from fastpipe.engine.parking cimport (
    Frame, events_leave, events_notify, events_prepare, events_sleep, innermost_frame, is_another_inside, kernel_now_ns,
)
from fastpipe.engine.perfetto cimport (
    COUNTER, DESCRIPTOR_NAME, DESCRIPTOR_PARENT, DESCRIPTOR_UUID, EVENT_COUNTER, EVENT_NAME, INSTANT, SLICE_BEGIN,
    SLICE_END, TRACK_DESCRIPTOR, Packet, begin_event, begin_packet, end_packet, put_annotation, put_flow, put_number,
    put_text, put_words,
)

cdef enum:                  # why EventLog.c_serve has returned
    IS_DONE = 0
    HAS_MET_A_STRANGER = 1  # a thread, an instance or a stream, that has no row yet
    CANNOT_WRITE = 2

# The rows: a thread's is its ident, an address, and larger than these; smaller numbers are the makers of the file's.
cdef int64_t FIRST_LANE = 1 << 20
cdef int64_t FIRST_QUEUE = 1 << 26
cdef int64_t FIRST_STREAM = 1 << 27
cdef int64_t FIRST_INSTANCE = 1 << 28
cdef int64_t MOST_INSTANCES = 1 << 12                           # of a station, that have rows of their own
cdef int64_t REQUESTS_TRACK = 1

# More requests than lanes are not shown at the same time.
cdef int32_t LANE_COUNT = 1 << 14
cdef size_t BUFFER_BYTES = 1 << 18
cdef Py_ssize_t LONGEST_TEXT = 1000
# Of a larger batch, so many requests are followed.
cdef int32_t MOST_FLOWS = 8192
# The ring is looked at this often: an event costs nobody a system call, and is in the file after this time.
cdef int64_t LOOK_EVERY_NS = 10_000_000

cdef int64_t _numbers = 0                                       # GIL: the last number given to a log or, by a log, to a request


@cython.final
cdef class EventLog:
    """What a pipe does, from ``Engine._set_events`` on, for one thread that writes it to a file."""

    def __cinit__(self, Engine engine, int capacity):
        global _numbers
        cdef int index
        if capacity < 16 or capacity & (capacity - 1):
            raise ValueError(f"the capacity of a log of events is a power of two, at least 16; got {capacity}")
        self.capacity = capacity
        self.ring = <Event*>calloc(capacity, sizeof(Event))
        self.free_lanes = <int32_t*>malloc(LANE_COUNT * sizeof(int32_t))
        self.buffer = <uint8_t*>malloc(BUFFER_BYTES)
        if self.ring == NULL or self.free_lanes == NULL or self.buffer == NULL:
            PyErr_NoMemory()
        self.at = self.buffer
        for index in range(LANE_COUNT):                         # the lowest lane is the first
            self.free_lanes[index] = LANE_COUNT - 1 - index
        self.free_count = LANE_COUNT
        self.kept = []
        for station in engine.stations:
            _put_text(self, &self.names, station.name)
            _put_text(self, &self.places, "" if station.place is None else str(station.place))
        for why in ("run by its caller", *_REASONS, "run again"):
            _put_text(self, &self.whys, why)
        for outcome in ("done", "cancelled"):
            _put_text(self, &self.outcomes, outcome)
        for reason in _FAILURES:
            _put_text(self, &self.outcomes, "failed: " + reason)
        self.queue_lengths.assign(len(engine.stations), -1)
        for position, station in enumerate(engine.stations):
            for number in sorted(station.numbers_in_service()):
                self.rows.push_back(_row_of(position, number))
        _numbers += 1
        self.serial = _numbers

    def __dealloc__(self):
        free(self.ring)
        free(self.free_lanes)
        free(self.buffer)

    requests_track = REQUESTS_TRACK

    def queue_track(self, int position):
        """The row of the queue of a station, by its place in the engine's list."""
        return FIRST_QUEUE + position

    def instance_track(self, int position, int number):
        """The row of one of the instances of a node, of those at that station."""
        return _row_of(position, number)

    def stream_track(self, int number):
        """The row of a stream of a GPU, by a number of the caller's; at most 2**20."""
        return FIRST_STREAM + number

    def note_stream(self, Engine engine, int number, int64_t begun_ns, int64_t ended_ns):
        """Note that a stream has worked, by the clock of ``time.monotonic_ns()``, for the backend which this thread is in.

        False: it is in none of that pipe's. Of one stream, each has begun when the one before has ended, or later.
        """
        cdef Frame* frame = innermost_frame()
        while frame != NULL and (frame.engine != <void*>engine or frame.station == NULL):
            frame = frame.outer
        if frame == NULL:
            return False
        return self.c_note_stream(FIRST_STREAM + number, (<Station>frame.station).position, begun_ns, ended_ns)

    def serve(self, int descriptor, describe_track, describe_instance):
        """Write events to a file until ``stop``; the body of a thread. Ends early where the file cannot be written to;
        ``error_number`` then says why.

        ``describe_track(track)``, of a thread, whose ident it is, or of a stream; ``describe_instance(position, number)``: the
        bytes that give one its row.
        """
        cdef bytes description
        cdef int why
        while True:
            with nogil:
                why = self.c_serve(descriptor)
            if why != HAS_MET_A_STRANGER:
                return
            if FIRST_INSTANCE <= self.stranger < FIRST_INSTANCE + <int64_t>self.names.size() * MOST_INSTANCES:
                description = describe_instance((self.stranger - FIRST_INSTANCE) // MOST_INSTANCES,
                                                (self.stranger - FIRST_INSTANCE) % MOST_INSTANCES)
            else:
                description = describe_track(self.stranger)
            self.rows.insert(lower_bound(self.rows.begin(), self.rows.end(), self.stranger), self.stranger)
            if <size_t>len(description) < BUFFER_BYTES - (self.at - self.buffer):
                memcpy(self.at, <const char*>description, len(description))
                self.at += len(description)

    def stop(self):
        """Have the thread write what is there, and leave."""
        self.stops.store(1, memory_order_seq_cst)
        events_notify(&self.changed, 0x7fffffff)

    # ---- what the engine notes: methods, as a function that is called once would be put where it is called --------

    cdef void c_note_request(self, Walk walk) noexcept:
        """A request has been let in: it has a lane until it ends."""
        global _numbers
        cdef Event* event
        if self.free_count == 0 or not _has_room(self, 2):
            self.dropped += self.free_count == 0
            return
        self.owed += 1
        self.free_count -= 1
        _numbers += 1
        walk.number = _numbers
        walk.lane = self.free_lanes[self.free_count]
        event = _note(self, REQUEST_BEGAN, kernel_now_ns())
        event.request = walk.number
        event.lane = walk.lane
        event.thread = 0 if walk.entry.line is None else max(event.time_ns - walk.entered_ns, 0)
        _publish(self)

    cdef void c_note_outcome(self, Walk walk, uint8_t outcome) noexcept:
        """A request has ended."""
        cdef Event* event
        if walk.number < self.serial:                           # it began before the log did, or found no room
            return
        event = _note(self, REQUEST_ENDED, kernel_now_ns())
        event.lane = walk.lane
        event.why = 0 if outcome == DONE else 1 if outcome == CANCELLED else 2 + reason_of(walk.error)
        self.free_lanes[self.free_count] = walk.lane
        self.free_count += 1
        self.owed -= 1
        _publish(self)

    cdef void c_note_queued(self, Visit visit) noexcept:
        """A visit has been put into its station's queue."""
        cdef Walk root = root_of(visit.walk)
        cdef Event* event
        if root.number < self.serial or not _has_room(self, 1):
            return
        event = _note(self, QUEUED, visit.ticket.arrival_ns)
        event.request = root.number
        event.lane = root.lane
        event.station = visit.node.station.position
        event.count = visit.node.station.queued.load(memory_order_relaxed)
        _publish(self)

    cdef void c_note_batch(self, Station station, Instance instance, list visits, Turn turn, int64_t now) noexcept:
        """A batch begins in an instance on this thread."""
        cdef int32_t count = min(<int32_t>len(visits), MOST_FLOWS)
        cdef Event* event
        cdef int32_t index
        if not _has_room(self, count + 2):
            return
        self.owed += 1
        turn.shown = self.serial
        turn.thread = PyThread_get_thread_ident()
        if is_another_inside(current_greenlet()):               # of a thread's greenlets several are in batches: they need not nest
            turn.thread = <int64_t>current_greenlet()
        event = _note(self, BATCH_BEGAN, now)
        event.thread = turn.thread
        event.station = station.position
        event.instance = station.numbers[instance.index]
        event.count = count
        event.size = <int32_t>len(visits)
        event.why = turn.why
        event.lane = station.queued.load(memory_order_relaxed)
        for index in range(count):
            event = _note(self, MEMBER, now)
            event.request = root_of((<Visit>visits[index]).walk).number
        _publish(self)

    cdef void c_note_end_of_batch(self, Station station, Instance instance, Turn turn, int64_t now) noexcept:
        """It has come back, or was given up."""
        cdef Event* event
        if turn.shown != self.serial:
            return
        turn.shown = 0
        event = _note(self, BATCH_ENDED, now)
        event.thread = turn.thread
        event.station = station.position
        event.instance = station.numbers[instance.index]
        self.owed -= 1
        _publish(self)

    cdef c_bool c_note_stream(self, int64_t stream, int32_t position, int64_t begun_ns, int64_t ended_ns) noexcept:
        """A stream has worked for a station."""
        cdef Event* event
        if not _has_room(self, 1):
            return True
        event = _note(self, STREAM_RAN, begun_ns)
        event.thread = stream
        event.station = position
        event.request = ended_ns
        _publish(self)
        return True

    # ---- what its thread does -------------------------------------------------------------------------------------

    cdef int c_serve(self, int descriptor) noexcept nogil:
        cdef uint32_t epoch
        cdef uint8_t stops
        cdef c_bool is_empty
        while True:
            epoch = events_prepare(&self.changed)
            stops = self.stops.load(memory_order_seq_cst)       # before the look: what was noted before stop() is written
            is_empty = _encode_all(self)
            if self.stranger != 0 or not _flush(self, descriptor) or is_empty and stops:
                events_leave(&self.changed)
                if self.stranger != 0:
                    return HAS_MET_A_STRANGER
                return CANNOT_WRITE if self.error_number != 0 else IS_DONE
            if is_empty:
                events_sleep(&self.changed, epoch, kernel_now_ns() + LOOK_EVERY_NS)
            else:
                events_leave(&self.changed)

cdef inline c_bool _has_room(EventLog log, int64_t count) noexcept:
    """True if so many more events may be noted; they are counted as dropped otherwise."""
    if log.next - log.taken.load(memory_order_acquire) + log.owed + count <= log.capacity:
        return True
    log.dropped += count
    return False


cdef inline Event* _note(EventLog log, int32_t kind, int64_t now) noexcept:
    """The next event, to be filled in. Nobody sees it before _publish."""
    cdef Event* event = &log.ring[log.next & (log.capacity - 1)]
    log.next += 1
    event.kind = kind
    event.time_ns = now
    return event


cdef inline void _publish(EventLog log) noexcept:
    log.written.store(log.next, memory_order_release)           # pairs with the acquire in _encode_all: the events before it


cdef c_bool _flush(EventLog log, int descriptor) noexcept nogil:
    cdef uint8_t* start = log.buffer
    cdef ssize_t count
    while start < log.at:
        count = write(descriptor, start, log.at - start)
        if count < 0 and errno != EINTR:
            log.error_number = errno
            return False
        start += max(count, 0)
    log.at = log.buffer
    return True


cdef c_bool _encode_all(EventLog log) noexcept nogil:
    """Put events into the buffer; True if all are, False if it is full, or a thread or an instance has no row."""
    cdef int64_t index = log.taken.load(memory_order_relaxed)
    cdef int64_t end = log.written.load(memory_order_acquire)
    cdef Event* event
    log.stranger = 0
    while index < end:
        event = &log.ring[index & (log.capacity - 1)]
        if log.at > log.buffer + BUFFER_BYTES // 2:             # the other half has room for the largest of all
            return False
        if event.kind == STREAM_RAN and not _knows(log, event.thread):
            return False
        if event.kind == BATCH_BEGAN and not (_knows(log, event.thread)
                                              and _knows(log, _row_of(event.station, event.instance))):
            return False
        _encode(log, event, index)
        index += 1 + (event.count if event.kind == BATCH_BEGAN else 0)
        log.taken.store(index, memory_order_release)            # pairs with the acquire in _has_room: it was read before
    return True


cdef c_bool _knows(EventLog log, int64_t row) noexcept nogil:
    """True if the file knows a row; else it is the stranger."""
    if binary_search(log.rows.begin(), log.rows.end(), row):
        return True
    log.stranger = row
    return False


cdef int _put_text(EventLog log, vector[Text]* texts, str given) except -1:
    """Have a text be found by its number without the GIL."""
    cdef Text text
    cdef bytes written = given.encode(errors="replace")[:LONGEST_TEXT]
    log.kept.append(written)
    text.start = <const char*>written
    text.length = len(written)
    texts.push_back(text)
    return 0


cdef inline int64_t _row_of(int64_t position, int64_t number) noexcept nogil:
    return FIRST_INSTANCE + position * MOST_INSTANCES + min(number, MOST_INSTANCES - 1)


# ---- what becomes of it in the file ----------------------------------------------------------------------------

cdef void _encode(EventLog log, Event* event, int64_t index) noexcept nogil:
    """Put the packets of an event into the buffer, which has room."""
    if event.kind == REQUEST_BEGAN:
        _encode_request(log, event)
    elif event.kind == REQUEST_ENDED:
        _encode_outcome(log, event)
    elif event.kind == QUEUED:
        _encode_queued(log, event)
    elif event.kind == BATCH_BEGAN:
        _encode_batch(log, event, index)
    elif event.kind == BATCH_ENDED:
        _encode_end(log, event.time_ns, event.thread)
        _encode_end(log, event.time_ns, _row_of(event.station, event.instance))
    elif event.kind == STREAM_RAN:
        _encode_stream(log, event)


cdef void _encode_end(EventLog log, int64_t now, int64_t track) noexcept nogil:
    cdef Packet packet
    begin_event(&packet, log.at, now, SLICE_END, track)
    log.at = end_packet(&packet)


cdef void _encode_stream(EventLog log, Event* event) noexcept nogil:
    cdef Packet packet
    cdef Text node = log.names[event.station]
    begin_event(&packet, log.at, event.time_ns, SLICE_BEGIN, event.thread)
    packet.at = put_text(packet.at, EVENT_NAME, node.start, node.length)
    log.at = end_packet(&packet)
    _encode_end(log, event.request, event.thread)


cdef void _encode_request(EventLog log, Event* event) noexcept nogil:
    cdef Packet packet
    while log.lanes_known <= event.lane:
        begin_packet(&packet, log.at, TRACK_DESCRIPTOR)
        packet.at = put_number(packet.at, DESCRIPTOR_UUID, FIRST_LANE + log.lanes_known)
        packet.at = put_number(packet.at, DESCRIPTOR_PARENT, REQUESTS_TRACK)
        packet.at = put_text(packet.at, DESCRIPTOR_NAME, "in flight", 9)
        log.at = end_packet(&packet)
        log.lanes_known += 1
    begin_event(&packet, log.at, event.time_ns, SLICE_BEGIN, FIRST_LANE + event.lane)
    packet.at = put_text(packet.at, EVENT_NAME, "request", 7)
    put_annotation(&packet, "request", 7, event.request)
    if event.thread > 0:
        put_annotation(&packet, "waited_for_room_ns", 18, event.thread)
    put_flow(&packet, event.request)
    log.at = end_packet(&packet)


cdef void _encode_outcome(EventLog log, Event* event) noexcept nogil:
    cdef Packet packet
    cdef Text outcome = log.outcomes[event.why]
    begin_event(&packet, log.at, event.time_ns, SLICE_END, FIRST_LANE + event.lane)
    put_words(&packet, "outcome", 7, outcome.start, outcome.length)
    log.at = end_packet(&packet)


cdef void _encode_queued(EventLog log, Event* event) noexcept nogil:
    cdef Packet packet
    cdef Text node = log.names[event.station]
    begin_event(&packet, log.at, event.time_ns, INSTANT, FIRST_LANE + event.lane)
    packet.at = put_text(packet.at, EVENT_NAME, "queued", 6)
    put_words(&packet, "node", 4, node.start, node.length)
    put_flow(&packet, event.request)
    log.at = end_packet(&packet)
    _encode_length(log, event.time_ns, event.station, event.count)


cdef void _encode_length(EventLog log, int64_t now, int32_t station, int32_t length) noexcept nogil:
    """Say how long a queue is, if that has changed."""
    cdef Packet packet
    if log.queue_lengths[station] == length:
        return
    log.queue_lengths[station] = length
    begin_event(&packet, log.at, now, COUNTER, FIRST_QUEUE + station)
    packet.at = put_number(packet.at, EVENT_COUNTER, length)
    log.at = end_packet(&packet)


cdef void _encode_batch(EventLog log, Event* event, int64_t index) noexcept nogil:
    cdef Packet packet
    cdef Text node = log.names[event.station]
    cdef Text why = log.whys[event.why]
    cdef Text place = log.places[event.station]
    cdef int64_t request
    cdef int64_t member
    begin_event(&packet, log.at, event.time_ns, SLICE_BEGIN, event.thread)
    packet.at = put_text(packet.at, EVENT_NAME, node.start, node.length)
    put_annotation(&packet, "requests", 8, event.size)
    put_annotation(&packet, "instance", 8, event.instance)
    put_words(&packet, "left", 4, why.start, why.length)
    if place.length != 0:
        put_words(&packet, "place", 5, place.start, place.length)
    for member in range(event.count):
        request = log.ring[(index + 1 + member) & (log.capacity - 1)].request
        if request >= log.serial:
            put_flow(&packet, request)
    log.at = end_packet(&packet)
    begin_event(&packet, log.at, event.time_ns, SLICE_BEGIN, _row_of(event.station, event.instance))
    packet.at = put_text(packet.at, EVENT_NAME, node.start, node.length)
    put_annotation(&packet, "requests", 8, event.size)
    log.at = end_packet(&packet)
    _encode_length(log, event.time_ns, event.station, event.lane)
