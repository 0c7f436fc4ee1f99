"""A pipe whose replicas are somewhere in a Ray cluster, called as a pipe is called."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Coroutine
from typing import TYPE_CHECKING, Any, NoReturn

from ray import exceptions
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from fastpipe.errors import PipeClosed, QueueFull, ReplicaLost, RequestTimeout

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from fastpipe.contract import Request

__all__ = ["RemotePipe"]

_LOST = (
    exceptions.RayActorError,
    exceptions.NodeDiedError,
    exceptions.WorkerCrashedError,
    exceptions.ObjectLostError,  # the replica has answered, and its machine went before the answer was fetched
    ReplicaUnavailableError,
)


class RemoteTraceback(Exception):
    """Where a replica's pipe has raised what this is the cause of: its text."""


class RemotePipe:
    """Calls the replicas of a deployment: ``pipe(request)``, ``await pipe.acall(request)``.

        pipe = RemotePipe(serve.get_app_handle("ocr"), retries=1, timeout=2.0)

    As with a pipe, the answer's keys are written to the caller's dict once the request has succeeded, and errors have
    the types that they have there, without Ray's own mixed in; their cause is Ray's error, or the replica's traceback.
    Cancelling, and the end of a ``timeout``, cancel the request in the replica.

    Args:
        handle: what ``serve.run`` or ``serve.get_app_handle`` returns.
        retries: how often a request whose replica was lost is sent to another one. It may then run twice, of which one
            run has no answer. What the pipe itself raises is not tried again.
        timeout: seconds for a request that says nothing itself, retries and Serve's queues included.

    Raises:
        TypeError, ValueError: ``retries`` is no whole number, or below 0.

    Thread-safety: any thread; ``acall`` on any event loop.
    """

    def __init__(self, handle: DeploymentHandle[Any], *, retries: int = 0, timeout: float | None = None) -> None:
        if not isinstance(retries, int) or isinstance(retries, bool):
            raise TypeError(f"retries must be a whole number, got {retries!r}")
        if retries < 0:
            raise ValueError(f"retries must be at least 0, got {retries}")
        self._handle = handle
        self._retries = retries
        self._timeout = timeout

    def __call__(
        self, request: Request, *, timeout: float | None = None, priority: float = 0, entry: str | None = None
    ) -> Request:
        """Run one request and return it; blocks. Not on the thread of an event loop: there, ``await acall(request)``.

        Args:
            request: a dict, as of a call of the pipe, whose values can be pickled.
            timeout: seconds, all included; None: what the RemotePipe says.
            priority: as of a call of the pipe.
            entry: as of a call of the pipe.

        Raises:
            RequestTimeout: it did not end in time.
            ReplicaLost: its replica is gone, and there is no retry left.
            QueueFull: the pipe's, or Serve's ``max_queued_requests``.
            PipeClosed: the deployment is not to be had.
            Exception: what the pipe raises.
        """
        call = _Call(self._handle, request, self._timeout if timeout is None else timeout, priority, entry)
        for retries_left in range(self._retries, -1, -1):
            response = call.send()
            try:
                request.update(response.result(timeout_s=call.left_s()))
                return request
            except BaseException as caught:
                error = call.meaning_of(caught, response, retries_left)
            if error is not None:
                _raise(error)
        raise AssertionError("the last try returns or raises")

    def acall(
        self, request: Request, *, timeout: float | None = None, priority: float = 0, entry: str | None = None
    ) -> Coroutine[Any, Any, Request]:
        """Run one request without blocking the event loop; return it. Arguments and errors are those of a call."""
        call = _Call(self._handle, request, self._timeout if timeout is None else timeout, priority, entry)
        return self._acall(request, call)

    async def _acall(self, request: Request, call: _Call) -> Request:
        for retries_left in range(self._retries, -1, -1):
            response = call.send()
            try:
                async with asyncio.timeout(call.left_s()):
                    request.update(await response)
                return request
            except BaseException as caught:
                error = call.meaning_of(caught, response, retries_left)
            if error is not None:
                _raise(error)
        raise AssertionError("the last try returns or raises")

    def astream(
        self, request: Request, *, timeout: float | None = None, priority: float = 0, entry: str | None = None
    ) -> AsyncGenerator[Any, None]:
        """Iterate over the chunks of an answer, as ``Pipe.astream`` does; the whole is in the dict at the end.

        Leaving early cancels the request. A request whose replica was lost is tried again only if no chunk has come.
        A slow reader does not slow the backend down: Ray keeps what was not read yet. Arguments are those of a call.
        """
        call = _Call(self._handle, request, self._timeout if timeout is None else timeout, priority, entry)
        return self._astream(request, call)

    async def _astream(self, request: Request, call: _Call) -> AsyncGenerator[Any, None]:
        retries_left = self._retries
        while True:
            response = call.send_stream()
            try:
                while True:
                    async with asyncio.timeout(call.left_s()):
                        part = await anext(response)
                    if isinstance(part, dict):
                        request.update(part)
                        return
                    retries_left = 0
                    yield part[0]
            except BaseException as caught:
                error = call.meaning_of(caught, response, retries_left)
            if error is not None:
                _raise(error)
            retries_left -= 1

    def __repr__(self) -> str:
        return f"<fastpipe RemotePipe of {self._handle.app_name}#{self._handle.deployment_name}>"


class _Call:
    """One request, as it is when the call is made, and what Ray's errors mean for it."""

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        request: Request,
        timeout: float | None,
        priority: float,
        entry: str | None,
    ) -> None:
        if not isinstance(request, dict):
            raise TypeError(f"a request is a dict, got {type(request).__name__}")
        self._handle = handle
        self._sent = dict(request)
        self._timeout = timeout
        self._began = time.monotonic()
        self._keywords: dict[str, Any] = {}  # only what says something: all of it is pickled
        if timeout is not None:
            self._keywords["deadline"] = time.time() + timeout
        if priority != 0:
            self._keywords["priority"] = priority
        if entry is not None:
            self._keywords["entry"] = entry
        if "opentelemetry.trace" in sys.modules:
            from fastpipe.observe.traces import headers

            if trace := headers():
                self._keywords["trace"] = trace

    def send(self) -> Any:
        """Send it to a replica, which Serve chooses; return Serve's response."""
        return self._handle.remote(self._sent, **self._keywords)

    def send_stream(self) -> Any:
        """Send it so that its answer comes in parts."""
        stream = self._handle.options(method_name="stream", stream=True)
        return stream.remote(self._sent, with_answer=True, **self._keywords)

    def left_s(self) -> float | None:
        """Return the seconds that it may still take; None: as long as it likes."""
        return None if self._timeout is None else max(0.0, self._timeout - (time.monotonic() - self._began))

    def meaning_of(self, caught: BaseException, response: Any, retries_left: int) -> BaseException | None:
        """Return what a caller of a pipe is to be told of an error of Ray's; None: the request is to be sent again."""
        if isinstance(caught, exceptions.RayTaskError):  # the replica has raised: Ray mixes its own type and text in
            return _caused(caught.cause, RemoteTraceback(str(caught)))
        if isinstance(caught, _LOST):
            if retries_left > 0 and self.left_s() != 0.0:
                return None
            return _caused(ReplicaLost(f"the replica that had the request is gone: {type(caught).__name__}"), caught)
        if isinstance(caught, BackPressureError):
            return _caused(QueueFull(f"Serve has as many requests waiting as it may: {caught}"), caught)
        if isinstance(caught, DeploymentUnavailableError):
            return _caused(PipeClosed(f"the deployment {self._handle.deployment_name} has failed to start"), caught)
        response.cancel()  # it goes on there: a signal, a task or the time has ended the waiting
        if isinstance(caught, TimeoutError):
            return _caused(RequestTimeout(f"the request did not end within its {self._timeout} s"), caught)
        return caught


def _caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def _raise(error: BaseException) -> NoReturn:
    """Raise an error where Ray's is not its context: that holds it, and the cycle would keep the request."""
    try:
        raise error
    finally:
        del error
