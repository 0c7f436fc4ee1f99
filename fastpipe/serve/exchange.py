"""What goes over HTTP, without a server: a request that has come, what is answered, and how both are encoded.

Bounded: nothing here makes more of a request than ``Limits`` says, whatever it says of itself.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fastpipe.errors import in_brief
from fastpipe.serve import json_text
from fastpipe.serve.statuses import RETRY_AFTER_S, InvalidRequest, RequestTooLarge, message_of, status_of

__all__ = [
    "GZIP_OR_DEFLATE",
    "JSON",
    "OCTETS",
    "Body",
    "Headers",
    "Limits",
    "Response",
    "compressed",
    "decompressed",
    "error_response",
    "head_length",
    "json_response",
    "split_body",
]

Headers = Mapping[bytes, bytes]
"""Names in lower case."""
HeaderList = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
OCTETS = (b"content-type", b"application/octet-stream")
HEAD_LENGTH = b"inference-header-content-length"
_AWAY_FROM_THE_LOOP_BYTES = 1 << 18
"""From so many bytes on, compression is a thread's: it takes longer than others should wait, and needs no GIL."""
_LEAST_COMPRESSED_BYTES = 1 << 10
_LEVEL = 1  # of zlib: numbers hardly get smaller with more
_WINDOW = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
GZIP_OR_DEFLATE = "gzip, deflate"


@dataclass(frozen=True)
class Limits:
    """What a server takes of clients, whoever they are.

    Args:
        body_bytes: of a request, also when it is decompressed.
        json_bytes: of the JSON in it, which becomes many times as much in memory; larger tensors go as binary data.
        buffered_bytes: of the bodies of all requests that are there; one more is refused with 503.
        body_s: within so long a body has to be there.
    """

    body_bytes: int = 256 << 20
    json_bytes: int = 32 << 20
    buffered_bytes: int = 1 << 30
    body_s: float = 60.0


class Body(NamedTuple):
    """A request's body: the JSON in front, and binary data behind it."""

    head: bytes
    tail: memoryview
    """Writable, and as aligned as memory of its own is."""


@dataclass(slots=True)
class Response:
    """An answer; ``parts`` instead of ``body`` where it comes bit by bit."""

    status: int
    headers: HeaderList
    body: bytes = b""
    parts: AsyncGenerator[bytes, None] | None = None


@dataclass
class Buffered:
    """How many bytes of bodies the server holds; on the loop's thread only."""

    size_bytes: int = 0
    limits: Limits = field(default_factory=Limits)


def json_response(value: Any, status: int = 200) -> Response:
    """Return a document as an answer."""
    return Response(status, [JSON], json_text.dumps(value))


def error_response(error: BaseException, *, hide: bool = False) -> Response:
    """Return what a client gets of an error: its status, and ``{"error": "a sentence"}``."""
    status = status_of(error)
    headers = [JSON]
    if status.retry_after:
        headers.append((b"retry-after", b"%d" % RETRY_AFTER_S))
    if status.http == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return Response(status.http, headers, json_text.dumps({"error": message_of(error, hide=hide)}))


# ---- bodies ----------------------------------------------------------------------------------------------------


def head_length(headers: Headers) -> int | None:
    """Return how many bytes of JSON a body begins with; None: all of it.

    Raises:
        InvalidRequest: it is no number.
    """
    given = headers.get(HEAD_LENGTH)
    if given is None:
        return None
    if not given.isdigit() or len(given) > 12:
        raise InvalidRequest(f"Inference-Header-Content-Length must be a number of bytes, got {_shown(given)}")
    return int(given)


def split_body(chunks: Sequence[bytes], length: int | None, limits: Limits) -> Body:
    """Return a body as it is used; of binary data this is the one copy that is made.

    Args:
        chunks: what came, in order.
        length: of the JSON; None: all is JSON.
        limits: of the server.

    Raises:
        InvalidRequest: there are fewer bytes than that.
        RequestTooLarge: it has more JSON than the server takes.
    """
    size = sum(map(len, chunks))
    if length is None:
        _check_json_size(size, limits)
        return Body(chunks[0] if len(chunks) == 1 else b"".join(chunks), memoryview(b""))
    if length > size:
        raise InvalidRequest(f"Inference-Header-Content-Length is {length}, and the body has {size} bytes")
    _check_json_size(length, limits)
    head: list[bytes] = []
    tail = memoryview(np.empty(size - length, np.uint8)).cast("B") if size > length else memoryview(b"")
    missing, position = length, 0
    for chunk in chunks:
        if missing >= len(chunk):
            head.append(chunk)
            missing -= len(chunk)
            continue
        rest = memoryview(chunk)[missing:] if missing else chunk
        if missing:
            head.append(chunk[:missing])
            missing = 0
        tail[position : position + len(rest)] = rest
        position += len(rest)
    return Body(b"".join(head), tail)


def _check_json_size(size: int, limits: Limits) -> None:
    if size > limits.json_bytes:
        raise RequestTooLarge(
            f"the JSON has {size} bytes; at most {limits.json_bytes} are taken: send tensors as binary data"
        )


async def decompressed(body: bytes, headers: Headers, limits: Limits) -> bytes:
    """Return a body as it was before its ``Content-Encoding``: gzip, deflate (zlib), or none.

    Raises:
        InvalidRequest: it is damaged, or encoded otherwise.
        RequestTooLarge: it would be larger than bodies may be.
    """
    encoding = headers[b"content-encoding"].strip().lower()
    if encoding in (b"", b"identity"):
        return body
    window = _WINDOW.get(encoding)
    if window is None:
        raise InvalidRequest(f"Content-Encoding must be gzip or deflate, got {_shown(encoding)}")
    if len(body) < _AWAY_FROM_THE_LOOP_BYTES >> 4:  # it may become a thousand times as large, but no more
        return _inflated(body, window, limits)
    return await asyncio.to_thread(_inflated, body, window, limits)


def _inflated(body: bytes, window: int, limits: Limits) -> bytes:
    inflater = zlib.decompressobj(window)
    try:
        found = inflater.decompress(body, limits.body_bytes + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the body is not what its Content-Encoding says: {error}") from None
    if len(found) > limits.body_bytes:
        raise RequestTooLarge(f"the body has more than {limits.body_bytes} bytes when it is decompressed")
    if not inflater.eof or inflater.unused_data:
        raise InvalidRequest("the compressed body is cut short, or goes on behind its end")
    return found


async def compressed(response: Response, accepted: bytes) -> Response:
    """Return an answer as the request's ``Accept-Encoding`` wants it.

    A client that names only gzip or deflate has asked for that. One that lists several has said nothing: browsers and
    libraries do that by themselves. Binary tensors stay as they are for it: to compress 10 MB takes longer than to send
    them.
    """
    if response.parts is not None or len(response.body) < _LEAST_COMPRESSED_BYTES:
        return response
    names = [name.strip().lower() for name in accepted.split(b",")]
    is_asked = len(names) == 1
    if not is_asked and response.headers[0] is not JSON:
        return response
    encoding = next((name for name in names if name in _WINDOW), None)
    if encoding is None:
        return response
    if len(response.body) < _AWAY_FROM_THE_LOOP_BYTES:
        body = _deflated(response.body, _WINDOW[encoding])
    else:
        body = await asyncio.to_thread(_deflated, response.body, _WINDOW[encoding])
    headers = [*response.headers, (b"content-encoding", encoding), (b"vary", b"accept-encoding")]
    return Response(response.status, headers, body)


def _deflated(body: bytes, window: int) -> bytes:
    deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, window)
    return deflater.compress(body) + deflater.flush()


def _shown(text: bytes) -> str:
    return in_brief(text.decode("latin-1"))
