# Admission: how a request gets in. Checks, a place in the line where there is a limit, its walk, and its first visit.
#
# Guarantees   What a caller has done wrong is raised to it before anything is counted. E5: nobody who waits is overtaken.
# Assumes      The GIL; waits serve signals.

from fastpipe.engine.parking cimport FOREVER, now_ns

from numbers import Number


cdef Terms _terms(Engine engine, object timeout, object priority):
    """What a caller asked for, checked; None: nothing."""
    cdef Terms terms
    cdef double seconds
    cdef double rank
    if timeout is None and priority == 0 and engine.timeout_ns < 0:
        return None
    terms = Terms.__new__(Terms)
    terms.deadline_ns = FOREVER
    if timeout is not None:
        seconds = _number(timeout, "timeout must be a number of seconds, more than 0")
        if not seconds > 0:
            raise ValueError(f"timeout must be more than 0 seconds, got {timeout!r}")
        terms.timeout_s = seconds
        if seconds < 1e9:                                       # longer ones, inf among them, are none
            terms.deadline_ns = now_ns() + <int64_t>(seconds * 1e9)
    elif engine.timeout_ns >= 0:
        terms.timeout_s = engine.timeout_ns / 1e9
        terms.deadline_ns = now_ns() + engine.timeout_ns
    rank = _number(priority, "priority must be a number from -1000 to 1000, of which lower ones go first")
    if not -1000 <= rank <= 1000:
        raise ValueError(f"priority must be from -1000 to 1000, got {priority!r}")
    terms.priority_ns = <int64_t>(rank * PRIORITY_NS)
    return terms


cdef double _number(object value, str expected) except? -1:
    """An argument that has to be a number: neither a truth value nor a text that reads like one."""
    if type(value) is float or type(value) is int or (isinstance(value, Number) and not isinstance(value, bool)):
        try:
            return value
        except (TypeError, OverflowError):                      # complex, or beyond what a float holds
            pass
    raise TypeError(f"{expected}; got {value!r}")
