"""The server of ``fastpipe serve``: one process, one event loop, HTTP and gRPC beside each other.

    parent (only with workers) ── binds, starts, replaces ──► server: pipes are built, then ports are open, then ready

At SIGTERM or SIGINT it is not ready from then on; after ``delay_s`` it takes no more connections; what was begun is
answered, within ``grace_s``; then the pipes are closed. A second signal ends it without waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

from fastpipe.errors import MissingExtra
from fastpipe.serve.addresses import UNIX, UnixPath
from fastpipe.serve.asgi import App
from fastpipe.serve.connection import Connections
from fastpipe.serve.encryption import Encryption
from fastpipe.serve.http import Service, Settings
from fastpipe.serve.incoming import Bounds
from fastpipe.serve.repository import Repository

try:
    import uvicorn
except ImportError as missing:
    raise MissingExtra("fastpipe serve", "serve", missing) from missing

__all__ = ["Plan", "Server", "finishing", "serve"]

BACKLOG = 2048
RESERVED_FILES = 128
"""File descriptors that are not connections: models, logs, the pipes' own."""
LOOK_EVERY_S = 0.1
"""For a second signal, while gRPC stops."""


@dataclass(frozen=True)
class Plan:
    """How to serve.

    Args:
        settings: of requests and answers.
        bounds: of connections.
        grpc: the address for gRPC; None: no gRPC.
        grpc_path: that address's path, if it is held already, see ``addresses.reserve``; None: it is not.
        shares_ports: other processes serve at the same addresses.
        delay_s: between being not ready and taking no more connections, for balancers that look now and then.
        grace_s: for what was begun.
        live_port: of the live page of the first model; None: none.
        encryption: of HTTP and gRPC; None: none.
        parent: the process that has started this one as a worker: it ends when that is gone. None: nobody.
    """

    settings: Settings = field(default_factory=Settings)
    bounds: Bounds = field(default_factory=Bounds)
    grpc: str | None = None
    grpc_path: UnixPath | None = None
    shares_ports: bool = False
    delay_s: float = 0.0
    grace_s: float = 30.0
    live_port: int | None = None
    encryption: Encryption | None = None
    parent: int | None = None


def serve(
    repository: Repository, listeners: Sequence[socket.socket], plan: Plan, on_ready: Callable[[Server], None]
) -> bool:
    """Serve until a signal says that it is enough; return whether a second one said that it is not to wait.

    Args:
        repository: opened here, and closed.
        listeners: bound sockets for HTTP, see ``addresses.bind``; closed at the end.
        plan: how.
        on_ready: called once, on the event loop, when requests are taken.

    Raises:
        Exception: what building a pipe raises.
        PipeError: the address for gRPC is in use.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(repository, listeners, plan, on_ready))


async def _serve(
    repository: Repository, listeners: Sequence[socket.socket], plan: Plan, on_ready: Callable[[Server], None]
) -> bool:
    app = App(Service(repository, plan.settings))
    server: Server | None = None
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(lambda: app.aclose(server.left_s() if server is not None else 0.0))
        await app.open()
        if plan.live_port is not None:
            stack.enter_context(_live_page(app, plan.live_port))
        grpc_server, grpc_address = None, ""
        if plan.grpc is not None:
            grpc_server, grpc_address = await _start_grpc(app.service, plan)
            stack.push_async_callback(grpc_server.stop, 0.0)
        server = Server(app, plan, grpc_server, grpc_address, on_ready)
        await server.serve(list(listeners))
    return server.force_exit


def finishing(count: int) -> str:
    """Return what a person is told who ends a server with so many requests in flight."""
    return f"finishing {count} {'request' if count == 1 else 'requests'}; Ctrl-C again ends at once"


def _live_page(app: App, port: int) -> Any:
    from fastpipe.observe import live

    model = app.service.repository.models()[0]
    page = live(model.pipe, port=port, name=model.name)
    app.service.live_url = page.url
    return page


async def _start_grpc(service: Service, plan: Plan) -> tuple[Any, str]:
    from importlib import import_module

    module = import_module("fastpipe.serve.grpc_server")
    credentials = None
    if plan.encryption is not None:
        credentials = import_module("grpc").ssl_server_credentials([plan.encryption.pem()])
    server = module.GrpcServer(
        service, plan.grpc, shares_port=plan.shares_ports, credentials=credentials, path=plan.grpc_path
    )
    port = await server.start()
    host = str(plan.grpc).rpartition(":")[0]
    return server, str(plan.grpc) if str(plan.grpc).startswith(UNIX) else f"{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's server, which ends as the head of this module says. ``app`` has the models."""

    def __init__(
        self, app: App, plan: Plan, grpc_server: Any, grpc_address: str, on_ready: Callable[[Server], None]
    ) -> None:
        bounds = _bounds_within_files(plan.bounds)
        bounds = replace(bounds, farewell_s=min(bounds.farewell_s, plan.grace_s))
        self._connections = Connections(app.service, bounds)
        config = uvicorn.Config(
            app,
            http=self._connections.factory,  # type: ignore[arg-type]  # it is called as a class would be
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            interface="asgi3",
            backlog=BACKLOG,
            timeout_graceful_shutdown=max(1, round(plan.grace_s)),
            ssl_certfile=None if plan.encryption is None else plan.encryption.certificate,
            ssl_keyfile=None if plan.encryption is None else plan.encryption.key,
        )
        super().__init__(config)
        self.app = app
        self.grpc_address = grpc_address
        """Where gRPC is served; empty: it is not."""
        self._plan = plan
        self._grpc_server = grpc_server
        self._on_ready = on_ready
        self._ends_at_s: float | None = None
        self._has_told = False

    def left_s(self) -> float:
        """Return how much of the grace is left."""
        if self.force_exit or self._ends_at_s is None:
            return 0.0
        return max(0.0, self._ends_at_s + self._plan.grace_s - time.monotonic())

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready(self)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's, which sends the signal to this process again once all is over. Ctrl-C reaches the parent of
        # workers, too, and it tells them to end: heard twice, it would cut off what was begun.
        if sig != signal.SIGINT or self._plan.parent is None:
            self.stop()

    def stop(self) -> None:
        """Begin to end, as a signal does; the second time, end without waiting. From any thread."""
        if self._ends_at_s is None:
            self.app.service.repository.is_draining = True
            self._ends_at_s = time.monotonic() + self._plan.delay_s
        else:
            self.force_exit = True
            self._ends_at_s = min(self._ends_at_s, time.monotonic())

    async def on_tick(self, counter: int) -> bool:
        if self._plan.parent is not None and os.getppid() != self._plan.parent and self._ends_at_s is None:
            self.stop()
        if self._ends_at_s is not None and not self._has_told:  # not by the signal's handler: it may interrupt a log
            self._has_told = True
            count = sum(model.pipe.in_flight for model in self.app.service.repository.models())
            if count:
                logging.getLogger("fastpipe.serve").info(finishing(count))
        if self._ends_at_s is not None and time.monotonic() >= self._ends_at_s:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._connections.is_ending = True
        if self._grpc_server is None:
            await super().shutdown(sockets)
        else:
            await asyncio.gather(super().shutdown(sockets), self._stop_grpc())

    async def _stop_grpc(self) -> None:
        stopping = asyncio.ensure_future(self._grpc_server.stop(self.left_s()))
        while not stopping.done():
            await asyncio.wait({stopping}, timeout=LOOK_EVERY_S)
            if self.force_exit and not stopping.done():  # the second signal has come meanwhile
                await self._grpc_server.stop(0.0)
        await stopping


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _bounds_within_files(bounds: Bounds) -> Bounds:
    """Let the process have as many files as it may, and no more connections than those allow."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = bounds.connections + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return bounds
    return replace(bounds, connections=max(1, soft - RESERVED_FILES))
