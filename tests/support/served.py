"""A server of fastpipe's within the process of a test, on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from helpers import WAIT_S

from fastpipe.serve.addresses import bind
from fastpipe.serve.repository import Repository
from fastpipe.serve.server import Plan, Server, serve


@dataclass
class Served:
    """A server that runs: ``address`` is ``127.0.0.1:port``."""

    address: str
    port: int
    server: Server
    thread: threading.Thread

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def service(self) -> Any:
        return self.server.app.service


@contextmanager
def serving(models: Mapping[str, Any] | Repository, plan: Plan | None = None) -> Iterator[Served]:
    """Serve models at a free port, over HTTP; at the end nothing is in flight, or the test fails."""
    repository = models if isinstance(models, Repository) else Repository(models)
    (listener,) = bind("127.0.0.1:0")
    port = listener.getsockname()[1]
    ready = threading.Event()
    found: list[Server] = []
    failed: list[BaseException] = []

    def is_ready(server: Server) -> None:
        found.append(server)
        ready.set()

    def run() -> None:
        try:
            serve(repository, [listener], plan or Plan(grace_s=WAIT_S), is_ready)
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=run, name="served")
    thread.start()
    assert ready.wait(WAIT_S)
    if failed:
        thread.join(WAIT_S)
        raise failed[0]
    (server,) = found
    try:
        yield Served(f"127.0.0.1:{port}", port, server, thread)
    finally:
        server.stop()
        thread.join(WAIT_S)
        if thread.is_alive():
            server.stop()
            thread.join(WAIT_S)
        listener.close()
    assert not thread.is_alive()
    assert server.app.service.budget.used_bytes == 0
