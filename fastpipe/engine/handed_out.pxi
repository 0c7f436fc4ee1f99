# Types of what callers hold while a request is on its way; a part of _core.pxd.

cdef class FutureCore:
    # The C side of RequestFuture. GIL: all of it. Where there is a condition, `state` is changed under its lock only.
    cdef readonly Walk walk                     # None once the request has ended, or before it has begun
    cdef str state                              # one of those of concurrent.futures
    cdef object request                         # once it is _FINISHED: the request, as its result
    cdef object error                           # or why it failed
    cdef object condition                       # None until somebody asks for it
    cdef list waiters                           # of concurrent.futures' wait() and as_completed(); None until they come
    cdef list callbacks                         # None until there is one
