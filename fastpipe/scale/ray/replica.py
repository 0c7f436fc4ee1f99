"""One replica: a pipe in a process of Ray Serve's, and how requests come to it."""

from __future__ import annotations

import contextlib
import importlib
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import cloudpickle, serve
from ray.serve.exceptions import RayServeException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse

from fastpipe.errors import BackendError, ConfigError, PipeError, RequestTimeout
from fastpipe.faults import text_of
from fastpipe.pipe import Pipe
from fastpipe.scale.ray.autoscaling import load_of
from fastpipe.scale.ray.metrics import ReplicaMetrics

if TYPE_CHECKING:
    from fastpipe.contract import Request
    from fastpipe.measures import Stats
    from fastpipe.serve import App

__all__ = ["Replica"]

_log = logging.getLogger("fastpipe")
_END = object()

LONGEST_CLOSE_S = 10.0
"""Serve calls the destructor once the replica has no requests; a backend that does not return gets this much."""


class Replica:
    """What ``deployment`` deploys: a pipe that takes requests by handle and over HTTP. Derive from it for gRPC.

        class Words(Replica):
            async def Read(self, message):  # the method of the same name of a service of yours
                answer = await self.answer({"data": message.image})
                return words_pb2.Text(text=answer["result"])

    ``self.pipe`` is the pipe. Serve calls all methods on one event loop.

    Args:
        source: as of ``Pipe``; or paths, of which the first that is there is taken.
        imports: modules that are imported before, because they register backends.
        timeout: seconds for a request that says nothing itself.
        metrics_period_s: how often Ray is told what the pipe has counted; 0: never.
        capacity: what ``max_ongoing_requests`` was made from; a warning says if the pipe holds more.
    """

    def __init__(
        self,
        source: Mapping[str, Any] | Sequence[str],
        *,
        imports: Sequence[str] = (),
        timeout: float | None = None,
        metrics_period_s: float = 5.0,
        capacity: int | None = None,
    ) -> None:
        for module in imports:
            importlib.import_module(module)
        self.pipe = Pipe(source if isinstance(source, Mapping) else _first_there(source))
        if capacity is not None and self.pipe.capacity > capacity:
            _log.warning(
                "the pipe holds %d requests in full batches, and its description says %d: batches will be smaller than "
                "they could be; pass max_ongoing_requests=%d to deployment()",
                self.pipe.capacity,
                capacity,
                2 * self.pipe.capacity,
            )
        self._timeout = timeout
        self._app: App | None = None
        self._metrics = ReplicaMetrics(self.pipe, metrics_period_s) if metrics_period_s else None

    async def __call__(
        self,
        request: Request | HttpRequest,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        priority: float = 0,
        entry: str | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> Any:
        """Run one request: ``handle.remote(request)``, or an HTTP request that Serve's proxy brings.

        See ``answer``; of HTTP, ``http``.
        """
        if isinstance(request, HttpRequest):
            return await self.http(request)
        return await self.answer(
            request, timeout=timeout, deadline=deadline, priority=priority, entry=entry, trace=trace
        )

    async def answer(
        self,
        request: Request,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        priority: float = 0,
        entry: str | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> Request:
        """Run one request; return the keys that the pipe has set, without those that the caller has sent.

        Args:
            request: as of a call of the pipe. Its arrays are read-only if they come from another process.
            timeout: seconds from now; None: what the deployment says.
            deadline: when the request's time is over, in seconds of ``time.time()``, which the clocks of the machines
                must agree on; the earlier of both counts.
            priority: as of a call of the pipe.
            entry: as of a call of the pipe.
            trace: headers of the trace to which the request belongs (``fastpipe.observe.traces``).

        Raises:
            Exception: what the pipe raises, with its type; one that cannot be pickled and made again is a BackendError
                that says what it was.

        Cancelling the task cancels the request.
        """
        sent = dict(request) if isinstance(request, dict) else {}
        try:
            with _continued(trace):
                await self.pipe.acall(request, timeout=self._limit(timeout, deadline), priority=priority, entry=entry)
        except Exception as error:
            travels = _that_travels(error)
            if travels is error:
                raise
            raise travels from error
        return _new_in(request, sent)

    async def stream(
        self,
        request: Request,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        priority: float = 0,
        entry: str | None = None,
        trace: Mapping[str, str] | None = None,
        with_answer: bool = False,
    ) -> AsyncGenerator[Any, None]:
        """Run one request and yield its chunks: ``handle.options(stream=True).stream.remote(request)``.

        Args:
            request: as of ``answer``.
            timeout: as of ``answer``.
            deadline: as of ``answer``.
            priority: as of ``answer``.
            entry: as of ``answer``.
            trace: as of ``answer``.
            with_answer: chunks come as tuples of one, and the answer as a dict behind them.
        """
        sent = dict(request) if isinstance(request, dict) else {}
        try:
            limit = self._limit(timeout, deadline)
            chunks = self.pipe.astream(request, timeout=limit, priority=priority, entry=entry)
            async with contextlib.aclosing(chunks):
                with _continued(trace):  # the request starts here; no context may be held over a yield
                    chunk = await anext(chunks, _END)
                while chunk is not _END:
                    yield (chunk,) if with_answer else chunk
                    chunk = await anext(chunks, _END)
        except Exception as error:
            travels = _that_travels(error)
            if travels is error:
                raise
            raise travels from error
        if with_answer:
            yield _new_in(request, sent)

    async def http(self, request: HttpRequest) -> Any:
        """Answer a request over HTTP by the Open Inference Protocol; the model has the deployment's name.

        Override it for a protocol of your own; what it returns is answered as Serve does.
        """
        if self._app is None:
            from fastpipe.serve import app

            self._app = app(self.pipe, name=_deployment_name())
        return _Handed(self._app)

    async def stats(self) -> Stats:
        """Return ``Pipe.stats()``; of all replicas: ``handle.broadcast("stats").results()``."""
        return self.pipe.stats()

    async def check_health(self) -> None:
        """Raise if the pipe is not healthy. Serve replaces a replica that says so three times in a row."""
        health = self.pipe.health()
        if not health["healthy"]:
            raise PipeError("; ".join(health["problems"]))

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what ``QueuePolicy`` needs to know."""
        return load_of(self.pipe.stats())

    def __del__(self) -> None:
        metrics: ReplicaMetrics | None = getattr(self, "_metrics", None)  # the constructor may have failed
        if metrics is not None:
            metrics.stop()
        if hasattr(self, "pipe"):
            self.pipe.close(LONGEST_CLOSE_S)

    def _limit(self, timeout: float | None, deadline: float | None) -> float | None:
        limit = self._timeout if timeout is None else timeout
        if deadline is None:
            return limit
        left_s = deadline - time.time()
        if left_s <= 0:
            raise RequestTimeout(f"the request's time was over {-left_s:.3f} s before it came to a replica")
        return left_s if limit is None else min(limit, left_s)


class _Handed(HttpResponse):
    """The answer to a request over HTTP: whatever an ASGI application makes of the request."""

    def __init__(self, app: App) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)


def _new_in(request: Request, sent: Request) -> Request:
    """Return what a pipe has written to a request."""
    return {key: value for key, value in request.items() if key not in sent or sent[key] is not value}


def _deployment_name() -> str:
    try:
        return str(serve.get_replica_context().deployment)
    except RayServeException:  # it is used without Serve
        return "fastpipe"


def _first_there(paths: Sequence[str]) -> Path:
    for path in paths:
        if Path(path).is_file():
            return Path(path)
    raise ConfigError(f"there is no file {' or '.join(paths)} on the machine of this replica")


def _continued(trace: Mapping[str, str] | None) -> contextlib.AbstractContextManager[None]:
    if trace is None:
        return contextlib.nullcontext()
    from fastpipe.observe.traces import continued

    return continued(trace)


def _that_travels(error: Exception) -> Exception:
    """Return an error that its caller gets with its type; Ray loses one that cannot be made again of its pickle."""
    try:
        if type(cloudpickle.loads(cloudpickle.dumps(error))) is type(error):
            return error
    except Exception as why:
        reason = f"{type(why).__name__}: {text_of(why)}"
    else:
        reason = "it becomes another one"
    kind = type(error)
    told = BackendError(f"{kind.__module__}.{kind.__qualname__}: {text_of(error)} (it cannot be pickled: {reason})")
    for note in getattr(error, "__notes__", ()):
        told.add_note(note)
    return told
