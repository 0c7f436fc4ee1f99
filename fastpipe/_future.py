"""What ``Pipe.submit`` returns."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from operator import attrgetter

from fastpipe._core import FutureCore
from fastpipe.contract import Request

__all__ = ["RequestFuture"]


class _Condition(threading.Condition):
    """A condition whose lock is taken and given back by the lock's own methods, not by some written in Python.

    In those a signal can raise when the lock is taken and the ``with`` has not begun: nobody would give it back.
    """

    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))


class RequestFuture(FutureCore, Future[Request]):
    """A future that tells the pipe when it is cancelled: a queued request then leaves its queue at once.

    The engine gives it its outcome (``_core.end_future``), not set_result() or set_exception(). Thread-safe, like any.
    """

    new_condition = _Condition

    def callback_failed(self, error: BaseException) -> None:
        """Say what a callback of this future raised where the standard library does."""
        logging.getLogger("concurrent.futures").error("exception calling callback for %r", self, exc_info=error)
