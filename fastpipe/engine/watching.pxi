# Watching: what is done about a batch that does not end.
#
# Guarantees   E8: it has been decided that nobody else touches what the hung worker held. E9: it is tried again without memory.

from fastpipe.engine.parking cimport is_hooked


cdef void _give_up(PyObject* station, int index) noexcept with gil:
    cdef Visit visit
    if is_hooked(AT_HANG):
        _act_in(AT_HANG, None)
    for _attempt in range(MOST_ATTEMPTS):                        # it is decided (E8): nobody else does it
        if (<Station>station).held[index] is None:
            return
        try:
            visit = (<tuple>(<Station>station).held[index])[0][0]
            visit.walk.engine._give_up(<Station>station, index)
            return
        except BaseException as error:
            _report(error, <Station>station)
