"""A server of gRPC for the models of a repository, on the event loop that starts it.

    server = GrpcServer(repository, "127.0.0.1:8001")
    await server.start()
    ...
    await server.stop(grace_s=30)

Guarantees: what was begun is answered, within the grace; a call whose client has left, or whose deadline has passed,
is cancelled; a message of more than ``max_message_bytes``, also when decompressed, is refused before it is
in memory as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from fastpipe.errors import ConfigError, MissingExtra
from fastpipe.serve.grpc_desk import Desk
from fastpipe.serve.grpc_health import SERVICE as HEALTH_SERVICE
from fastpipe.serve.grpc_health import health_handlers
from fastpipe.serve.grpc_service import SERVICE, Service

try:
    import grpc
except ImportError as missing:
    raise MissingExtra("fastpipe's gRPC server", "serve", missing) from missing

if TYPE_CHECKING:
    from fastpipe.serve.repository import Repository

__all__ = ["GrpcServer"]

MAX_MESSAGE_BYTES = 256 << 20
BUFFERED_BYTES = 1 << 30
COMPRESSIONS = {
    "none": grpc.Compression.NoCompression,
    "deflate": grpc.Compression.Deflate,
    "gzip": grpc.Compression.Gzip,
}


class GrpcServer:
    """The Open Inference Protocol over gRPC, with ``grpc.health.v1.Health`` beside it.

    Args:
        repository: the models; opened and closed by whoever made it.
        address: ``host:port`` or ``unix:PATH``. Port 0: any free one, which ``start`` returns.
        max_message_bytes: of a request, or an answer.
        compression: of answers, for clients that take it: none, deflate or gzip. Compressed requests are always taken.
        buffered_bytes: of the messages of all requests in flight; one more is refused.
        hides_reasons: whether clients are told no more than that a model failed; the log has the reason then.
        shares_port: whether other processes may serve at the same address, as workers of one service do.
        credentials: ``grpc.ssl_server_credentials(...)``; None: not encrypted.

    Raises:
        MissingExtra: grpcio or protobuf is not installed.

    Thread-safety: one event loop's thread only.
    """

    def __init__(
        self,
        repository: Repository,
        address: str = "127.0.0.1:8001",
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        compression: Literal["none", "deflate", "gzip"] = "none",
        buffered_bytes: int = BUFFERED_BYTES,
        hides_reasons: bool = False,
        shares_port: bool = False,
        credentials: Any = None,
    ) -> None:
        if compression not in COMPRESSIONS:
            raise ConfigError(f"compression must be one of {', '.join(COMPRESSIONS)}, got {compression!r}")
        if not 1 <= max_message_bytes < 1 << 31:  # an int of C
            raise ConfigError(f"max_message_bytes must be 1 to {(1 << 31) - 1}, got {max_message_bytes}")
        self._repository = repository
        self._address = address
        self._compression = COMPRESSIONS[compression]
        self._buffered_bytes = buffered_bytes
        self._hides_reasons = hides_reasons
        self._credentials = credentials
        self._options = [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            # By default a second server takes half of the calls of the first, and neither is told.
            ("grpc.so_reuseport", int(shares_port)),
        ]
        self._server: Any = None
        self._desk: Desk | None = None

    async def start(self) -> int:
        """Listen, and serve; return the port.

        Raises:
            OSError: the address is in use, or none of this machine.
        """
        desk = Desk(buffered_bytes=self._buffered_bytes, hides_reasons=self._hides_reasons)
        server = grpc.aio.server(options=self._options, compression=self._compression)
        named = frozenset({SERVICE, HEALTH_SERVICE})
        health = health_handlers(self._repository.is_ready, named, desk.stopping)
        server.add_generic_rpc_handlers([Service(self._repository, desk).handlers(), health])
        try:
            if self._credentials is None:
                port = server.add_insecure_port(self._address)
            else:
                port = server.add_secure_port(self._address, self._credentials)
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen at {self._address}: {error}") from None
        await server.start()
        self._server, self._desk = server, desk
        return int(port)

    async def stop(self, grace_s: float | None = None) -> None:
        """Take no more calls, and return when those in flight have ended; after ``grace_s`` they are cancelled.

        Streams read no more, and end when what they have begun is answered. Idempotent.
        """
        if self._server is None or self._desk is None:
            return
        self._desk.stopping.set()
        await self._server.stop(grace_s)
