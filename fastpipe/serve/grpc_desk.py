"""What all calls of a server of gRPC go past: it counts the bytes of their messages, and tells of their failures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from fastpipe.errors import MissingExtra
from fastpipe.serve.statuses import RETRY_AFTER_S, TooBusy, message_of, status_of

try:
    import grpc
except ImportError as missing:
    raise MissingExtra("fastpipe's gRPC server", "serve", missing) from missing

__all__ = ["Desk"]

LONGEST_DETAILS_BYTES = 4096
"""Of the words of an error, which are sent as metadata: beyond 8 KiB of that, clients show neither code nor words."""
CUT = " [...]"
MILLISECONDS = 1000

log = logging.getLogger("fastpipe.serve")


class Desk:
    """Belongs to one server; on its event loop's thread only.

    Args:
        buffered_bytes: of the messages of all requests in flight; one more is refused.
        hides_reasons: whether clients are told no more than that a model failed; the log has the reason.
    """

    def __init__(self, *, buffered_bytes: int, hides_reasons: bool) -> None:
        self._limit_bytes = buffered_bytes
        self._held_bytes = 0
        self._hides_reasons = hides_reasons
        self.stopping = asyncio.Event()
        """Set when the server stops: streams and watches read no more, and end."""

    @contextmanager
    def holding(self, body: bytes) -> Iterator[None]:
        """Count the bytes of a message while its request is in flight.

        Raises:
            TooBusy: there are too many already.
        """
        if self._held_bytes and self._held_bytes + len(body) > self._limit_bytes:
            raise TooBusy(f"the server holds {self._held_bytes} bytes of requests in flight; at most {self._limit_bytes}")
        self._held_bytes += len(body)
        try:
            yield
        finally:
            self._held_bytes -= len(body)

    def words_of(self, error: Exception) -> str:
        """Return what a client is told of an error; log it, where it is the server's or a model's own fault."""
        if status_of(error).http == 500:
            log.error("a call by gRPC has failed", exc_info=error)
        words = message_of(error, hide=self._hides_reasons).encode("utf-8", "replace").decode()
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
