"""The demo as a web service: ``python examples/ocr --serve``; docs/serving.md has its calls.

GET  /                       a page to drop pictures on (page.html)
POST /read                   a picture in, its lines out, as JSON
GET  /samples/{number}.png   pages to try it with
/v2/...                 the Open Inference Protocol; the same over gRPC, at a port of its own
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from pathlib import Path
from types import FrameType

import fastpipe.serve
from fastpipe import Pipe
from fastpipe.errors import MissingExtra
from fastpipe.observe import live
from fastpipe.serve.addresses import bind
from fastpipe.serve.exchange import Failures
from fastpipe.serve.grpc_server import GrpcServer
from fastpipe.serve.server import finishing
from fastpipe.serve.statuses import NotReady
from ocr import pages, pipeline

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Mount, Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as missing:
    raise MissingExtra("the service", "serve", missing) from missing

__all__ = ["application", "protocol", "serve", "service_pipe"]

MODEL = "ocr"
NO_GRPC = "none"
LARGEST_FILE_BYTES = 32 << 20
GRACE_S = 30.0

# A crowd is told to come again, instead of waiting without end.
LIMITS = {"max_in_flight": 64, "when_overloaded": "reject", "request_timeout": 60.0}

# The page is one file, and fetches nothing but what is here: a text on a picture is no script, whatever it says.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}


def service_pipe(instance_num: int | None = None) -> Pipe:
    """Return the pipe of the service: that of ``ocr.toml``, with limits.

    Raises:
        ModelsMissing: if the package with the models is not installed.
    """
    return Pipe({**pipeline.configuration(instance_num), **LIMITS})


def application(pipe: Pipe, served: fastpipe.serve.App) -> Starlette:
    """Return the service as an ASGI application, for any server; the pipe stays the caller's to close.

    Args:
        pipe: what reads.
        served: the same behind the Open Inference Protocol, as ``protocol`` makes it.
    """
    html = Path(__file__).with_name("page.html").read_bytes()

    async def page(request: Request) -> Response:
        return Response(html, media_type="text/html", headers=PAGE_HEADERS)

    routes = [
        Route("/", page),
        Route("/samples/{number:int}.png", _sample),  # a plain function: Starlette draws the page on a thread
        Route("/read", fastpipe.serve.endpoint(pipe, max_body_bytes=LARGEST_FILE_BYTES), methods=["POST"]),
        Mount("/v2", served),
    ]
    return Starlette(routes=routes, lifespan=served.lifespan)


def protocol(pipe: Pipe, live_url: str = "") -> fastpipe.serve.App:
    """Return the Open Inference Protocol for the pipe; ``/v2/live`` leads to its live page, if it has one."""
    limits = fastpipe.serve.Limits(body_bytes=LARGEST_FILE_BYTES)
    served = fastpipe.serve.app(pipe, name=MODEL, settings=fastpipe.serve.Settings(limits=limits))
    served.service.live_url = live_url
    return served


def _sample(request: Request) -> Response:
    return Response(_drawn(request.path_params["number"] % len(pages.KINDS)), media_type="image/png")


@functools.cache
def _drawn(number: int) -> bytes:
    return pages.drawn_page(number).content


def serve(http: str, grpc: str, instance_num: int | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; what has begun is answered then.

    Args:
        http: the address of the page and of HTTP, ``host:port``; port 0 is any that is free.
        grpc: that of gRPC, or ``"none"``.
        instance_num: of every node; None: what ``ocr.toml`` says.

    Raises:
        ModelsMissing: if the package with the models is not installed.
        PipeError: an address is in use, or none.
    """
    (listener,) = bind(http)
    with listener, service_pipe(instance_num) as pipe, live(pipe, name=MODEL) as inside:
        asyncio.run(_serve(listener, grpc, pipe, protocol(pipe, inside.url)))


async def _serve(listener: socket.socket, grpc: str, pipe: Pipe, served: fastpipe.serve.App) -> None:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(served.lifespan())
        addresses = [f"http://{':'.join(map(str, listener.getsockname()[:2]))}"]
        if grpc != NO_GRPC:
            server = GrpcServer(served.service, grpc)
            addresses.append(f"grpc://{grpc.rpartition(':')[0]}:{await server.start()}")
            # What is left of the grace was HTTP's, too; after a second signal there is none.
            stack.push_async_callback(lambda: server.stop(0.0 if http.force_exit else GRACE_S))
        app = _ending(application(pipe, served))
        config = uvicorn.Config(app, lifespan="off", log_level="warning", timeout_graceful_shutdown=round(GRACE_S))
        http = _Server(config, pipe)
        listener.listen()  # who comes from here on waits for an answer
        print(f"pages are read at {' and '.join(addresses)}; Ctrl-C ends it", flush=True)
        await http.serve([listener])


def _ending(app: ASGIApp) -> ASGIApp:
    """Return an application that says 503 when the server ends and waits no longer: it cancels what is in flight."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def sent(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await app(scope, receive, sent)
        except asyncio.CancelledError:  # of uvicorn's task, which has nothing else to do
            if not has_begun:
                failed = Failures(hide=False).response(NotReady("the server has shut down"))
                headers = {name.decode(): value.decode() for name, value in failed.headers}
                await Response(failed.body, failed.status, headers)(scope, receive, send)

    return answer


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, pipe: Pipe) -> None:
        super().__init__(config)
        self._pipe = pipe

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._pipe.in_flight:
            print(finishing(self._pipe.in_flight), flush=True)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's, which sends the signal to this process again once all is over: the pipe is still to be closed.
        self.force_exit = self.should_exit
        self.should_exit = True
