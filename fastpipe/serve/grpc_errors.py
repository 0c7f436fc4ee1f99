"""How an error goes out over gRPC: a status code and its words."""

from __future__ import annotations

from typing import Any, NoReturn

from fastpipe.errors import MissingExtra
from fastpipe.serve.statuses import RETRY_AFTER_S, message_of, status_of

try:
    import grpc
except ImportError as missing:
    raise MissingExtra("fastpipe's gRPC server", "serve", missing) from missing

__all__ = ["refuse", "words_of"]

LONGEST_DETAILS = 4096
"""Characters. They are sent as metadata, of which clients take 8 KiB; of more, they show neither code nor words."""
CUT = " [...]"
LONGEST_ENCODED = 6144
"""Bytes of the same, as they are sent: percent-encoded, where a character can be 12 bytes."""
MILLISECONDS = 1000


def words_of(error: BaseException, *, hides_reasons: bool) -> str:
    """Return what a client is told of an error; long words are cut."""
    words = message_of(error, hide=hides_reasons)
    if len(words) > LONGEST_DETAILS:
        words = words[: LONGEST_DETAILS - len(CUT)] + CUT
    while _encoded_bytes(words) > LONGEST_ENCODED:
        words = words[: (len(words) - len(CUT)) // 2] + CUT
    return words


def _encoded_bytes(words: str) -> int:
    """How long words are as metadata: gRPC writes three bytes for each that is no printable ASCII, and for a %."""
    encoded = words.encode("utf-8", "replace")
    plain = sum(0x20 <= byte <= 0x7E and byte != 0x25 for byte in encoded)
    return plain + 3 * (len(encoded) - plain)


async def refuse(context: Any, error: BaseException, *, hides_reasons: bool) -> NoReturn:
    """End a call with an error.

    Where it may succeed a little later, clients that retry are told when.
    """
    status = status_of(error)
    again = (("grpc-retry-pushback-ms", str(RETRY_AFTER_S * MILLISECONDS)),) if status.retry_after else ()
    words = words_of(error, hides_reasons=hides_reasons).encode("utf-8", "replace").decode()
    await context.abort(getattr(grpc.StatusCode, status.grpc), words, again)
    raise AssertionError("abort() raises")  # pragma: no cover
