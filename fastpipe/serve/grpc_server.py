"""A server of gRPC for the models of a repository, on the event loop that starts it.

    server = GrpcServer(Service(repository), "127.0.0.1:8001")
    await server.start()
    ...
    await server.stop(grace_s=30)

Guarantees: what was begun is answered, within the grace; a call whose client has left, or whose deadline has passed,
is cancelled; a message that is larger than bodies may be, also when decompressed, is refused before it is in memory as
a whole.
"""

from __future__ import annotations

from typing import Any, Literal

from fastpipe.errors import ConfigError, MissingExtra, PipeError
from fastpipe.serve.addresses import UNIX, UnixPath
from fastpipe.serve.grpc_desk import Desk
from fastpipe.serve.grpc_health import SERVICE as HEALTH_SERVICE
from fastpipe.serve.grpc_health import health_handlers
from fastpipe.serve.grpc_service import SERVICE, Calls
from fastpipe.serve.http import Service

try:
    import grpc
except ImportError as missing:
    raise MissingExtra("fastpipe's gRPC server", "serve", missing) from missing

__all__ = ["GrpcServer"]

MOST_MESSAGE_BYTES = (1 << 31) - 1
"""That gRPC can be told: an int of C."""

COMPRESSIONS = {
    "none": grpc.Compression.NoCompression,
    "deflate": grpc.Compression.Deflate,
    "gzip": grpc.Compression.Gzip,
}


class GrpcServer:
    """The Open Inference Protocol over gRPC, with ``grpc.health.v1.Health`` beside it.

    Args:
        service: models, token and limits, which HTTP beside it may share; its repository is opened, and closed, by
            whoever made it.
        address: ``host:port`` or ``unix:PATH``. Port 0: any free one, which ``start`` returns.
        compression: of answers, for clients that take it: none, deflate or gzip. Compressed requests are always taken.
        shares_port: whether other processes may serve at the same address, as workers of one service do.
        credentials: ``grpc.ssl_server_credentials(...)``; None: not encrypted.
        path: of a unix socket, if the caller holds it already; ``stop`` lets go of it. None: ``start`` takes it.

    Raises:
        MissingExtra: grpcio or protobuf is not installed.

    Thread-safety: one event loop's thread only.
    """

    def __init__(
        self,
        service: Service,
        address: str = "127.0.0.1:8001",
        *,
        compression: Literal["none", "deflate", "gzip"] = "none",
        shares_port: bool = False,
        credentials: Any = None,
        path: UnixPath | None = None,
    ) -> None:
        if compression not in COMPRESSIONS:
            raise ConfigError(f"compression must be one of {', '.join(COMPRESSIONS)}, got {compression!r}")
        self._service = service
        self._address = address
        self._compression = COMPRESSIONS[compression]
        self._credentials = credentials
        max_message_bytes = min(service.limits.body_bytes, MOST_MESSAGE_BYTES)
        self._options = [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            # By default a second server takes half of the calls of the first, and neither is told.
            ("grpc.so_reuseport", int(shares_port)),
        ]
        self._server: Any = None
        self._path = path
        self._desk: Desk | None = None

    async def start(self) -> int:
        """Listen, and serve; return the port.

        Raises:
            PipeError: the address is in use, or none of this machine.
        """
        desk = Desk(self._service)
        server = grpc.aio.server(options=self._options, compression=self._compression)
        named = frozenset({SERVICE, HEALTH_SERVICE})
        health = health_handlers(desk.repository.is_ready, named, desk.stopping)
        server.add_generic_rpc_handlers([Calls(desk).handlers(), health])
        # gRPC would take the path away from a server that lives.
        if self._path is None and self._address.startswith(UNIX):
            self._path = UnixPath(self._address.removeprefix(UNIX))
        try:
            if self._credentials is None:
                port = server.add_insecure_port(self._address)
            else:
                port = server.add_secure_port(self._address, self._credentials)
            if self._path is not None:
                self._path.note_bound()
            await server.start()
        except BaseException as error:
            self._let_go_of_path()
            if isinstance(error, RuntimeError):
                raise PipeError(f"gRPC cannot listen at {self._address}: {error}") from None
            raise
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
        self._let_go_of_path()

    def _let_go_of_path(self) -> None:
        if self._path is not None:
            self._path.close()
