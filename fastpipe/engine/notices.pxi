# Notices: what the log is to say of a node is counted here, and told the keeper, which has a thread of its own write it.
#
# Guarantees   Whoever refuses a request waits for no handler of a log, and meets none of their errors. A gate gives notice once, and
#              again only when the log has looked (Station.is_noticed): what is refused in between costs one addition.
# Assumes      The GIL, which may be let go in here: the books are in order, and what an error says was read before.


cdef int tell_of_refusal(Station gate, Engine engine, Turn turn) noexcept:
    """A gate has refused a request; ``turn``: this thread's, if it has one, which is told of what hits it meanwhile."""
    gate.no_room += 1
    return _give_notice(gate, engine, turn)


cdef int tell_of_shed(Station gate, Engine engine, Turn turn) noexcept:
    """A request that waited longest has made room for another."""
    gate.pushed_out += 1
    return _give_notice(gate, engine, turn)


cdef int tell_of_loss(Station station, int index, Engine engine, Turn turn) noexcept:
    """A node has lost its device, as a batch in one of its instances has found out."""
    try:
        engine._keeper.note_loss(station, index)
    except BaseException as error:
        note_interrupt(turn, error)
    return 0


cdef int _give_notice(Station gate, Engine engine, Turn turn) noexcept:
    if gate.is_noticed:
        return 0
    gate.is_noticed = True
    try:
        engine._keeper.note_refusals(gate)
    except BaseException as error:                              # there is no thread or no memory for it: at the next one
        gate.is_noticed = False
        note_interrupt(turn, error)
    return 0
