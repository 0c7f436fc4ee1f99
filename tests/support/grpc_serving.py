"""A server of gRPC in the process of a test, on a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from helpers import WAIT_S

from fastpipe.serve.exchange import Limits
from fastpipe.serve.grpc_server import GrpcServer
from fastpipe.serve.http import Service, Settings
from fastpipe.serve.repository import Repository
from fastpipe.serve.signature import Signature


class Served:
    """What a test has of a running server."""

    def __init__(self, models: Mapping[str, Any], signatures: Mapping[str, Signature], **options: Any) -> None:
        control = options.pop("control", False)
        limits = {name: options.pop(name) for name in ("body_bytes", "buffered_bytes") if name in options}
        settings = {name: options.pop(name) for name in ("token", "hide_errors") if name in options}
        self.repository = Repository(models, signatures=signatures, control=control)
        self.service = Service(self.repository, Settings(limits=Limits(**limits), **settings))
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="server of the test", daemon=True)
        self.thread.start()
        self.server: Any = None
        self.port = 0
        self.options = options

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the server's loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WAIT_S * 3)

    async def start(self) -> None:
        await self.repository.open()
        self.server = GrpcServer(self.service, self.options.pop("address", "127.0.0.1:0"), **self.options)
        self.port = await self.server.start()

    async def end(self) -> None:
        if self.server is not None:
            await self.server.stop(0)
        await self.repository.aclose(WAIT_S)
        rest = asyncio.all_tasks() - {asyncio.current_task()}  # what the clients of a test have left hanging
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def served(
    models: Mapping[str, Any], signatures: Mapping[str, Signature] | None = None, **options: Any
) -> Iterator[Served]:
    """Serve models, by name: pipes, or what a repository builds pipes of."""
    made = Served(models, signatures or {}, **options)
    try:
        made.run(made.start())
        yield made
    finally:
        made.run(made.end())
        made.loop.call_soon_threadsafe(made.loop.stop)
        made.thread.join(WAIT_S)
        made.loop.close()
