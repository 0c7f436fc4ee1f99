# Handles: what submit() hands out, a concurrent.futures.Future whose lock and lists are made when somebody asks for them.
#
# Most futures are asked for nothing before they have ended, or get a callback. A threading.Condition, its lock, and the lists
# made two thirds of a waiting request's memory, and of the work of submit().
#
# Guarantees   Whatever concurrent.futures and asyncio read, write, lock and call of a Future is there, and means the same.
#              Whoever holds ``_condition`` sees no change of ``_state`` but its own. If nobody has asked for it, nobody can hold it.
# Assumes      The GIL: from the look for a condition to the change of the state no Python code runs, nor anything that may start
#              the garbage collector. (Whoever makes a condition makes it first, and then looks whether there is one.)


cdef c_bool _is_over(FutureCore future) noexcept:
    return future.state != _PENDING and future.state != _RUNNING


cdef class FutureCore:
    """The part of a ``RequestFuture`` that is not the standard library's. It comes before ``Future`` among its bases."""

    def __cinit__(self):
        self.state = _PENDING

    def __init__(self):
        """Make nothing: not the condition and the lists that Future.__init__ would."""

    def __reduce__(self):
        raise TypeError(f"cannot pickle {type(self).__name__!r} object: its request is on its way in this process")

    def cancel(self):
        """Cancel the request, if no backend has begun with it, and it has not failed meanwhile."""
        walk = self.walk
        return super().cancel() if walk is None else walk.cancel_future(self)

    def cancelled(self):
        """True if the request was cancelled."""
        return self.state == _CANCELLED or self.state == _NOTIFIED

    def running(self):
        """True if a backend has begun with the request, and it has not ended."""
        return self.state == _RUNNING

    def done(self):
        """True if the request has ended, or was cancelled."""
        return _is_over(self)

    def result(self, timeout=None):
        """The request, once it has ended; or raise why it failed. See ``concurrent.futures.Future.result``."""
        if self.state != _FINISHED:
            return super().result(timeout)
        if self.error is not None:
            raise self.error
        return self.request

    def exception(self, timeout=None):
        """Why the request failed, once it has ended; or None. See ``concurrent.futures.Future.exception``."""
        return self.error if self.state == _FINISHED else super().exception(timeout)

    def add_done_callback(self, fn):
        """Have ``fn(future)`` called once the request has ended: now, if it has. In the order in which they were added."""
        callbacks = self._done_callbacks                        # may make a list: before the look at the state
        if not _is_over(self):
            (<list>callbacks).append(fn)
            return
        try:
            fn(self)
        except Exception as error:
            self.callback_failed(error)

    # What concurrent.futures and asyncio use of a Future, by its names there.

    @property
    def _condition(self):
        if self.condition is None:
            made = self.new_condition()
            if self.condition is None:                          # else: another thread was faster
                self.condition = made
        return self.condition

    @property
    def _waiters(self):
        if self.waiters is None:
            made = []
            if self.waiters is None:
                self.waiters = made
        return self.waiters

    @property
    def _done_callbacks(self):
        if self.callbacks is None:
            made = []
            if self.callbacks is None:
                self.callbacks = made
        return self.callbacks

    @property
    def _state(self):
        return self.state

    @_state.setter
    def _state(self, str state not None):
        self.state = state

    @property
    def _result(self):
        return self.request

    @_result.setter
    def _result(self, request):
        self.request = request

    @property
    def _exception(self):
        return self.error

    @_exception.setter
    def _exception(self, error):
        self.error = error
