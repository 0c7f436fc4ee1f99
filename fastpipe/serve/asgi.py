"""A pipe, or a repository of models, as an ASGI application: for any ASGI server, or to be mounted in another app.

    app = fastpipe.serve.app("pipeline.toml")            uvicorn module:app, gunicorn -k uvicorn_worker...
    main.mount("/v2", fastpipe.serve.app(pipe))          in FastAPI or Starlette

A plain ASGI callable, without a router or middleware in front: a request pays for what it asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastpipe.serve.exchange import Buffer, Chunks, Headers, Response
from fastpipe.serve.http import Service, Settings
from fastpipe.serve.repository import Repository, Source
from fastpipe.serve.signature import Signature
from fastpipe.serve.statuses import InvalidRequest, RequestTooLarge, SlowClient

__all__ = ["App", "Watch", "app"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

WATCHED_AFTER_S = 0.01
"""A client that leaves is noticed from then on: to watch quick requests would cost more than it saves."""


def app(
    model: Source | Repository | Mapping[str, Source],
    *,
    name: str = "pipe",
    signature: Signature | None = None,
    settings: Settings | None = None,
) -> App:
    """Return an ASGI application that serves a pipe, or several, by the Open Inference Protocol v2.

    Args:
        model: a pipe; the path of a configuration, or a function that returns a pipe: these are built at startup, in
            the process that serves, and closed at shutdown; or models by name; or a repository.
        name: of the model, where there is one; of a path, the file's name without its ending.
        signature: what the model announces, instead of what its configuration or its backends say.
        settings: limits, token, and what else a server may want to say.

    Mounted in another application, it gets no startup: what has to be built is built at the first request, unless the
    other application starts it: ``FastAPI(lifespan=served.lifespan)``, with ``served = fastpipe.serve.app(...)``.
    """
    if isinstance(model, Repository):
        return App(Service(model, settings))
    if isinstance(model, str | Path) and name == "pipe":
        name = Path(model).stem
    models = model if isinstance(model, Mapping) else {name: model}
    signatures = {} if signature is None else dict.fromkeys(models, signature)
    return App(Service(Repository(models, signatures=signatures), settings))


class App:
    """The application; ``app`` makes it. ``service`` has its models: ``app.service.repository``."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._is_open = False
        self._opening: asyncio.Lock | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            await self._http(scope, receive, send)
        elif kind == "lifespan":
            await self._lifespan(receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    # ---- life --------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Build what is to be built; again, it does nothing.

        Raises:
            Exception: what building a pipe raises.
        """
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if not self._is_open:
                await self.service.repository.open()
                if self.service.settings.metrics_directory is not None:
                    self.service.scraping.look()
                self._is_open = True

    async def aclose(self, timeout: float | None = None) -> None:
        """Close what was built here; requests in flight end first."""
        await self.service.repository.aclose(timeout)
        self.service.scraping.close()

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Start and stop with another application: ``FastAPI(lifespan=served.lifespan)``."""
        await self.open()
        try:
            yield
        finally:
            await self.aclose()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.open()
        except Exception as error:
            await self.aclose()
            await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    # ---- one request -------------------------------------------------------------------------------------------

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._is_open:
            await self.open()
        service = self.service
        headers: Headers = dict(scope["headers"])
        held = 0
        try:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            route = service.route(scope["method"], path)
            service.check_token(route, headers)
            chunks: list[Buffer] = []
            if scope["method"] == "POST":
                chunks, held = await self._body(headers, receive)
        except _Gone:
            return
        except Exception as error:
            await _send(send, scope, service.failed(error), ends=True)
            return
        try:
            with Watch(receive):
                response = await service.answer(route, headers, chunks)
                await _send(send, scope, response)
        finally:
            service.budget.give(held)

    async def _body(self, headers: Headers, receive: Receive) -> tuple[list[Buffer], int]:
        """Return the body of a request, as it came, and its size.

        Raises:
            RequestTooLarge, TooBusy, SlowClient: it is more than the server takes, or does not come.
        """
        limits = self.service.limits
        declared = headers.get(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > limits.body_bytes:
            raise RequestTooLarge(f"the body has {int(declared)} bytes; at most {limits.body_bytes} are taken")
        budget, chunks, size, has_more = self.service.budget, Chunks(), 0, True
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            async with asyncio.timeout_at(began_s + limits.body_s) as timeout:
                while has_more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    chunk, has_more = message.get("body", b""), message.get("more_body", False)
                    budget.take(len(chunk))
                    size = chunks.add(chunk)
                    if size > limits.body_bytes:
                        raise RequestTooLarge(f"the body has more than {limits.body_bytes} bytes")
                    if has_more:
                        timeout.reschedule(began_s + limits.body_time_s(size))
            if declared is not None and declared.isdigit() and int(declared) != size:
                raise InvalidRequest(f"Content-Length is {int(declared)}, and the body has {size} bytes")
        except BaseException as error:
            budget.give(size)
            if isinstance(error, TimeoutError):
                raise SlowClient(f"the body was not there within {limits.body_time_s(size):g} s") from None
            raise
        return chunks.taken(), size


class _Gone(Exception):
    """The client left while it sent its body."""


class Watch:
    """Within a ``with`` statement, the task is cancelled if the client leaves; the block then ends there, quietly.

    ``is_gone`` says so afterwards. The request's body has to have been read.
    """

    def __init__(self, receive: Receive) -> None:
        self.is_gone = False
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        own = asyncio.current_task()
        if own is None:  # not by an ASGI server
            raise RuntimeError("an ASGI application runs in a task")
        self._own = own
        self._later = asyncio.get_running_loop().call_later(WATCHED_AFTER_S, self._begin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._later.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if not self.is_gone or kind is None or not issubclass(kind, asyncio.CancelledError):
            return False
        return self._own.uncancel() == 0  # nobody else has cancelled it

    def _begin(self) -> None:
        self._watcher = self._own.get_loop().create_task(self._until_gone())

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_gone = True
        self._own.cancel()


async def _send(send: Send, scope: Scope, response: Response, *, ends: bool = False) -> None:
    """Send an answer; ``ends``: its request was not read to the end, so that the connection is of no more use."""
    headers = response.headers
    body = response.joined()
    if response.parts is None:
        headers = [*headers, (b"content-length", b"%d" % len(body))]
    if ends and scope.get("http_version", "1.1").startswith("1"):
        headers = [*headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    if response.parts is None:
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
        return
    try:
        async for part in response.parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
    finally:
        await response.parts.aclose()
    await send({"type": "http.response.body", "body": b""})
