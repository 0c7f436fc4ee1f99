# Lengths: what leaves as a batch where a batch is padded to its longest request; see engine/lengths.pxd.
#
# Guarantees   E5, as far as it can be: the oldest is in every batch, and who is passed by is passed by only because of its length.
#              What is taken is what was chosen: the choice is made anew under the mutex that is held while it is taken.
# Assumes      Mutex held. Station.has_lengths.

from fastpipe.engine.inbox cimport Ticket
from fastpipe.engine.lengths cimport LOOKED_AT, Bounds, Similar, are_within, choose_similar, is_chosen
from fastpipe.engine.ranking cimport Cursor, Taken, cursor_begin, cursor_move, cursor_pass, next_of


cdef int32_t _look_at_lengths(Station station, int64_t bucket, int32_t* lengths, int32_t count) noexcept nogil:
    """Add to ``count`` lengths those of the oldest requests of a bucket; return how many there are."""
    cdef Ticket* ticket = station.staged.first
    cdef int32_t seen = 0
    while ticket != NULL and seen < LOOKED_AT and count < LOOKED_AT:
        seen += 1
        if ticket.bucket == bucket:
            lengths[count] = ticket.length
            count += 1
        ticket = next_of(ticket)
    return count


cdef int64_t weigh_similar(Station station, Load* load) noexcept nogil:
    """Fill in what is queued that would go with the oldest, and return their bucket. At least one is staged."""
    cdef int32_t[LOOKED_AT] lengths
    cdef Similar similar
    cdef int64_t bucket = station.staged.first.bucket
    cdef int32_t count = _look_at_lengths(station, bucket, lengths, 0)
    choose_similar(lengths, count, &station.bounds, &similar)
    load.queued = similar.count
    load.queued_weight = station.max_batch if similar.is_full else similar.count
    load.oldest_ns = station.staged.first.arrival_ns
    return bucket


cdef void weigh_similar_with(Station station, Load* load, int64_t bucket, int32_t length) noexcept nogil:
    """Fill in what is queued that would go with a request of that length that came now."""
    cdef int32_t[LOOKED_AT] lengths
    cdef Similar similar
    cdef Ticket* ticket = station.staged.first
    cdef int32_t position = 1
    lengths[0] = length
    choose_similar(lengths, _look_at_lengths(station, bucket, lengths, 1), &station.bounds, &similar)
    load.queued = similar.count - 1
    load.queued_weight = station.max_batch - 1 if similar.is_full else similar.count - 1
    while ticket != NULL and load.queued > 0:
        if ticket.bucket == bucket:
            if is_chosen(&similar, position):
                load.oldest_ns = ticket.arrival_ns
                break
            position += 1
        ticket = next_of(ticket)


cdef void take_similar(Station station, Batch* batch, int64_t bucket, int32_t size) noexcept nogil:
    """Append to ``batch`` up to ``size`` staged requests of ``bucket`` that may share it."""
    if batch.taken.count > 0:
        _add_similar(station, batch, bucket, size)
    elif station.staged.first != NULL:
        _take_chosen(station, batch, bucket, size)


cdef void _take_chosen(Station station, Batch* batch, int64_t bucket, int32_t size) noexcept nogil:
    cdef int32_t[LOOKED_AT] lengths
    cdef Similar similar
    cdef Bounds bounds = station.bounds
    cdef Cursor cursor
    cdef Taken* taken = &batch.taken
    cdef int32_t position = 0
    cdef int32_t count = _look_at_lengths(station, bucket, lengths, 0)
    if count == 0:                                              # they have left while a rule was asked
        return
    bounds.most_requests = min(bounds.most_requests, size)
    choose_similar(lengths, count, &bounds, &similar)
    cursor_begin(&cursor, &station.staged)
    while taken.count < similar.count:
        if cursor.at.bucket != bucket:
            cursor_pass(&cursor, &station.staged)
            continue
        if not is_chosen(&similar, position):
            cursor_pass(&cursor, &station.staged)
        elif taken.count > 0 and taken.weight + cursor.at.weight > station.max_batch:
            break
        else:
            cursor_move(&cursor, &station.staged, taken)
        position += 1


cdef void _add_similar(Station station, Batch* batch, int64_t bucket, int32_t size) noexcept nogil:
    """Add those that a batch which is formed already has room for, the oldest first."""
    cdef Cursor cursor
    cdef Taken* taken = &batch.taken
    cdef Ticket* ticket = taken.first
    cdef int64_t own = 0
    cdef int32_t longest = 0
    cdef int32_t seen = 0
    cdef int32_t added = 0
    while ticket != NULL:
        own += ticket.length
        longest = max(longest, ticket.length)
        ticket = next_of(ticket)
    cursor_begin(&cursor, &station.staged)
    while cursor.at != NULL and seen < LOOKED_AT and added < size:
        seen += 1
        ticket = cursor.at
        if (ticket.bucket == bucket and taken.weight + ticket.weight <= station.max_batch
                and are_within(&station.bounds, taken.count + 1, own + ticket.length, max(longest, ticket.length))):
            own += ticket.length
            longest = max(longest, ticket.length)
            added += 1
            cursor_move(&cursor, &station.staged, taken)
        else:
            cursor_pass(&cursor, &station.staged)
