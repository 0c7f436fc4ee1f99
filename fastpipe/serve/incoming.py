"""What connections may cost, and a request as far as it has come."""

from __future__ import annotations

from dataclasses import dataclass

from fastpipe.serve.exchange import Chunks
from fastpipe.serve.http import Route

__all__ = ["Bounds", "Incoming"]


@dataclass(frozen=True)
class Bounds:
    """What connections may cost.

    Args:
        connections: how many there may be; for one more, an idle one is closed, or else it is refused with 503.
        head_bytes: of a request's first line and headers.
        head_s: within so long they have to be there.
        idle_s: a connection on which nothing comes is closed.
        pipelined: how many requests a client may send ahead.
        look_s: so often it is looked who has been too slow.
        farewell_s: when the server ends, a kept connection on which nothing runs has so long for one more request.
    """

    connections: int = 4096
    head_bytes: int = 1 << 16
    head_s: float = 10.0
    idle_s: float = 75.0
    pipelined: int = 64
    look_s: float = 1.0
    farewell_s: float = 1.0


class Incoming:
    """A request, as far as it has come."""

    __slots__ = ("chunks", "error", "headers", "is_1_0", "is_head", "keeps_alive", "large_bytes", "route", "url")

    def __init__(self) -> None:
        self.url = b""
        self.headers: dict[bytes, bytes] = {}
        self.chunks = Chunks()
        self.route: Route | None = None
        self.error: Exception | None = None
        """Why it is refused."""
        self.keeps_alive = True
        self.is_1_0 = False
        self.is_head = False
        self.large_bytes = 0
        """Of a body that is received where it is used; 0: it is a small one."""
