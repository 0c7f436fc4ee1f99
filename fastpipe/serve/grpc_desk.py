"""What all calls of a server of gRPC go past: who asks is checked, and failures are told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NoReturn

from fastpipe.errors import MissingExtra
from fastpipe.serve.http import Service
from fastpipe.serve.statuses import RETRY_AFTER_S, message_of, status_of

try:
    import grpc
except ImportError as missing:
    raise MissingExtra("fastpipe's gRPC server", "serve", missing) from missing

__all__ = ["Desk", "Metadata"]

Metadata = Sequence[tuple[str, str | bytes]]
"""Of a call, with names in lower case: what HTTP calls headers."""

LONGEST_DETAILS_BYTES = 4096
"""Of the words of an error, which are sent as metadata: beyond 8 KiB of that, clients show neither code nor words."""
CUT = " [...]"
MILLISECONDS = 1000


class Desk:
    """Belongs to one server; on its event loop's thread only."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.repository = service.repository
        self.limits = service.limits
        self.budget = service.budget
        """Of the bytes of all requests that are there, by whatever they came."""
        self.stopping = asyncio.Event()
        """Set when the server stops: streams and watches read no more, and end."""
        self._asks_for_token = service.settings.token is not None

    def check(self, metadata: Metadata) -> None:
        """Raise Unauthorized if the server asks for a token, and the call has not that one."""
        if self._asks_for_token:
            given = next((value for key, value in metadata if key == "authorization"), "")
            self._service.check_authorization(given.encode() if isinstance(given, str) else given)

    def words_of(self, error: Exception) -> str:
        """Return what a client is told of an error; log it, where it is the server's or a model's own fault."""
        self._service.failures.log(error)
        words = message_of(error, hide=self._service.settings.hide_errors).encode("utf-8", "replace").decode()
        while _size_bytes(words) > LONGEST_DETAILS_BYTES:
            words = words[: len(words) * 3 // 4 - len(CUT)] + CUT
        return words

    async def refuse(self, context: Any, error: Exception) -> NoReturn:
        """End a call with an error; where it may succeed a little later, clients that retry are told when."""
        status = status_of(error)
        again = (("grpc-retry-pushback-ms", str(RETRY_AFTER_S * MILLISECONDS)),) if status.retry_after else ()
        await context.abort(getattr(grpc.StatusCode, status.grpc), self.words_of(error), again)
        raise AssertionError("abort() has not raised")  # for type checkers


def _size_bytes(words: str) -> int:
    """How long words are as metadata: gRPC writes three bytes for each that is no printable ASCII, and for a %."""
    encoded = words.encode()
    plain = sum(0x20 <= byte <= 0x7E and byte != 0x25 for byte in encoded)
    return plain + 3 * (len(encoded) - plain)
