"""What ``Pipe.submit`` returns."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from operator import attrgetter

from fastpipe._core import Walk
from fastpipe.contract import Request

__all__ = ["RequestFuture"]


class _Condition(threading.Condition):
    """A condition whose lock is taken and given back by the lock's own methods, not by some written in Python.

    In those a signal can raise when the lock is taken and the ``with`` has not begun: nobody would give it back.
    """

    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))


class RequestFuture(Future[Request]):
    """A future that tells the pipe when it is cancelled: a queued request then leaves its queue at once.

    The engine gives it its outcome (``_core._end_future``), not set_result() or set_exception().
    """

    walk: Walk | None = None
    """The engine's; None once the request has ended."""

    def __init__(self) -> None:
        super().__init__()
        self._condition = _Condition()

    def cancel(self) -> bool:
        """Cancel the request, if no backend has begun with it, and it has not failed meanwhile."""
        walk = self.walk
        return super().cancel() if walk is None else walk.cancel_future(self)

    def callback_failed(self, error: BaseException) -> None:
        """Say what a callback of this future raised where the standard library does."""
        logging.getLogger("concurrent.futures").error("exception calling callback for %r", self, exc_info=error)
