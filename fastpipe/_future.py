"""What ``Pipe.submit`` returns."""

from __future__ import annotations

from concurrent.futures import Future

from fastpipe._core import Walk
from fastpipe.backend import Request

__all__ = ["RequestFuture"]


class RequestFuture(Future[Request]):
    """A future that tells the pipe when it is cancelled: a queued request then gives up its place at once."""

    walk: Walk | None = None
    """The engine's; None once the request has ended."""

    def start(self) -> bool:
        """Mark it as running, before its request's first batch or its end; False if it is over already.

        As set_running_or_notify_cancel(), which complains loudly of a request whose time is over at this very moment.
        """
        with self._condition:
            if self._state in ("FINISHED", "CANCELLED_AND_NOTIFIED"):
                return False
            return self.set_running_or_notify_cancel()

    def cancel(self) -> bool:
        """Cancel the request, if no backend has begun with it, and it has not failed meanwhile."""
        walk = self.walk
        if walk is None:
            return super().cancel()
        if not walk.cancel_unstarted():
            return self.cancelled()
        self.walk = None
        super().cancel()
        self.set_running_or_notify_cancel()  # tells those who wait for it
        return True
