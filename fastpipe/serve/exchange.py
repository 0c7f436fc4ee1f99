"""What goes over HTTP, without a server: a request that has come, what is answered, and how both are encoded.

Bounded: nothing here makes more of a request than ``Limits`` says, whatever it says of itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fastpipe.errors import in_brief
from fastpipe.serve import json_text
from fastpipe.serve.statuses import RETRY_AFTER_S, InvalidRequest, RequestTooLarge, TooBusy, message_of, status_of

__all__ = [
    "GZIP_OR_DEFLATE",
    "JSON",
    "OCTETS",
    "Body",
    "Budget",
    "Buffer",
    "Chunks",
    "Failures",
    "Headers",
    "Limits",
    "Response",
    "compressed",
    "decompressed",
    "head_length",
    "json_response",
    "split_body",
]

Buffer: TypeAlias = bytes | memoryview
Headers = Mapping[bytes, bytes]
"""Names in lower case."""
HeaderList = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
OCTETS = (b"content-type", b"application/octet-stream")
HEAD_LENGTH = b"inference-header-content-length"
_AWAY_FROM_THE_LOOP_BYTES = 1 << 18
"""From so many bytes on, compression is a thread's: it takes longer than others should wait, and needs no GIL."""
_PIECE_BYTES = 1 << 22
SMALL_BYTES, MOST_SMALL = 4096, 256
LOGGED_EVERY_S = 1.0
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
        body_s: within so long a body has to be there; one that comes faster than ``least_bytes_per_s``, later.
        least_bytes_per_s: see there.
        write_s: a client that takes nothing of its answer for so long gets no more of it.
    """

    body_bytes: int = 256 << 20
    json_bytes: int = 32 << 20
    buffered_bytes: int = 1 << 30
    body_s: float = 20.0
    least_bytes_per_s: int = 1 << 16
    write_s: float = 60.0

    def body_time_s(self, size_bytes: int) -> float:
        """Return within which time so much of a body has to be there, and more of it come."""
        return self.body_s + size_bytes / self.least_bytes_per_s


class Body(NamedTuple):
    """A request's body: the JSON in front, and binary data behind it."""

    head: Buffer
    tail: memoryview
    """Writable, and as aligned as memory of its own is."""


@dataclass(slots=True)
class Response:
    """An answer; ``parts`` instead of ``body`` where it comes bit by bit."""

    status: int
    headers: HeaderList
    body: bytes = b""
    tail: Sequence[memoryview] = ()
    """What comes behind it: large tensors, which are not copied."""
    parts: AsyncGenerator[bytes, None] | None = None

    def joined(self) -> bytes:
        """Return the whole body as one."""
        return b"".join((self.body, *self.tail)) if self.tail else self.body


class Budget:
    """How many bytes the server holds of bodies, and of answers in streams, and how many it may.

    For one event loop's thread.
    """

    __slots__ = ("limit_bytes", "used_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Count bytes that are held from now on.

        Raises:
            TooBusy: they are too many; they are not counted.
        """
        if self.used_bytes + size_bytes > self.limit_bytes:
            raise TooBusy("the server holds as many bytes of requests as it may")
        self.used_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """Count bytes no more."""
        self.used_bytes -= size_bytes

    def exchange(self, former_bytes: int, size_bytes: int) -> int:
        """Count bytes in the place of others; return how many.

        Raises:
            TooBusy: they are too many; what was counted still is.
        """
        if size_bytes > former_bytes:
            self.take(size_bytes - former_bytes)
        else:
            self.give(former_bytes - size_bytes)
        return size_bytes


class Chunks:
    """A body as it comes. Many small pieces are put together, or each byte of a body could cost forty."""

    __slots__ = ("_chunks", "_small", "size_bytes", "whole")

    def __init__(self) -> None:
        self.size_bytes = 0
        self.whole: memoryview | None = None
        """The body in one piece, in memory that nobody else has; what was added is then not looked at."""
        self._chunks: list[bytes] = []
        self._small: list[bytes] = []

    def add(self, chunk: bytes) -> int:
        """Add a piece, and return how many bytes there are."""
        self.size_bytes += len(chunk)
        if len(chunk) < SMALL_BYTES:
            self._small.append(chunk)
            if len(self._small) < MOST_SMALL:
                return self.size_bytes
        if self._small:
            self._chunks.append(b"".join(self._small))
            self._small.clear()
        if len(chunk) >= SMALL_BYTES:
            self._chunks.append(chunk)
        return self.size_bytes

    def taken(self) -> list[Buffer]:
        """Return the pieces, which are from now on the caller's alone; their size is still known here."""
        if self.whole is not None:
            whole, self.whole = self.whole, None
            return [whole]
        if self._small:
            self._chunks.append(self._small[0] if len(self._small) == 1 else b"".join(self._small))
        chunks: list[Buffer] = [*self._chunks]
        self._chunks, self._small = [], []
        return chunks


def json_response(value: Any, status: int = 200) -> Response:
    """Return a document as an answer."""
    return Response(status, [JSON], json_text.dumps(value))


class Failures:
    """Makes answers of errors. Those of the server's own fault are logged, each kind at most once a second.

    Args:
        hide: clients are not told why a backend has failed.

    A request that fails elsewhere is no line of the log, as its caller has the exception; here the caller is far away.
    """

    def __init__(self, *, hide: bool) -> None:
        self.hide = hide
        self._logged_s: dict[str, float] = {}

    def response(self, error: BaseException) -> Response:
        """Return what a client gets: the status of the error, and ``{"error": "a sentence"}``."""
        status = status_of(error)
        headers = [JSON]
        if status.retry_after:
            headers.append((b"retry-after", b"%d" % RETRY_AFTER_S))
        if status.http == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        self.log(error)
        return Response(status.http, headers, json_text.dumps({"error": message_of(error, hide=self.hide)}))

    def log(self, error: BaseException) -> None:
        """Log an error, if the server, or a backend, is to blame."""
        if status_of(error).http != 500:
            return
        kind = type(error).__name__
        now_s = time.monotonic()
        if now_s - self._logged_s.get(kind, -LOGGED_EVERY_S) >= LOGGED_EVERY_S:
            self._logged_s[kind] = now_s
            logging.getLogger("fastpipe.serve").error("a request has failed", exc_info=error)


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


def split_body(chunks: Sequence[Buffer], length: int | None, limits: Limits) -> Body:
    """Return a body as it is used; of binary data in several pieces, or in one that is ``bytes``, a copy.

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
    if len(chunks) == 1 and isinstance(chunks[0], memoryview):
        return Body(chunks[0][:length], chunks[0][length:])
    head: list[Buffer] = []
    tail = np.empty(size - length, np.uint8).data if size > length else memoryview(b"")
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


async def decompressed(body: bytes, headers: Headers, limits: Limits, budget: Budget) -> list[bytes]:
    """Return a body, in pieces, as it was before its ``Content-Encoding``: gzip, deflate (zlib), or none.

    What it becomes is taken from the budget piece by piece; the caller gives back as many bytes as are returned, and
    nothing if this raises.

    Raises:
        InvalidRequest: it is damaged, or encoded otherwise.
        RequestTooLarge: it would be larger than bodies may be.
        TooBusy: it is more than the server has room for.
    """
    encoding = headers[b"content-encoding"].strip().lower()
    window = _WINDOW.get(encoding)
    if window is None:
        raise InvalidRequest(f"Content-Encoding must be gzip or deflate, got {_shown(encoding)}")
    inflater = zlib.decompressobj(window)
    pieces: list[bytes] = []
    size = 0
    try:
        while not inflater.eof:
            if len(body) < _AWAY_FROM_THE_LOOP_BYTES and not size:
                piece = inflater.decompress(body, _PIECE_BYTES)
            else:
                piece = await asyncio.to_thread(inflater.decompress, body, _PIECE_BYTES)
            body = inflater.unconsumed_tail
            if not piece and not body:
                break
            budget.take(len(piece))
            size += len(piece)
            pieces.append(piece)
            if size > limits.body_bytes:
                raise RequestTooLarge(f"the body has more than {limits.body_bytes} bytes when it is decompressed")
        if not inflater.eof or inflater.unused_data:
            raise InvalidRequest("the compressed body is cut short, or goes on behind its end")
    except BaseException as error:
        budget.give(size)
        if isinstance(error, zlib.error):
            raise InvalidRequest(f"the body is not what its Content-Encoding says: {error}") from None
        raise
    return pieces


async def compressed(response: Response, accepted: bytes) -> Response:
    """Return an answer as the request's ``Accept-Encoding`` wants it.

    A client that names only gzip or deflate has asked for that. One that lists several has said nothing: browsers and
    libraries do that by themselves. Binary tensors stay as they are for it: to compress 10 MB takes longer than to send
    them.
    """
    if response.parts is not None or (len(response.body) < _LEAST_COMPRESSED_BYTES and not response.tail):
        return response
    names = [name.strip().lower() for name in accepted.split(b",")]
    is_asked = len(names) == 1
    if not is_asked and response.headers[0] is not JSON:
        return response
    encoding = next((name for name in names if name in _WINDOW), None)
    if encoding is None:
        return response
    whole = response.joined()
    if len(whole) < _AWAY_FROM_THE_LOOP_BYTES:
        body = _deflated(whole, _WINDOW[encoding])
    else:
        body = await asyncio.to_thread(_deflated, whole, _WINDOW[encoding])
    headers = [*response.headers, (b"content-encoding", encoding), (b"vary", b"accept-encoding")]
    return Response(response.status, headers, body)


def _deflated(body: bytes, window: int) -> bytes:
    deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, window)
    return deflater.compress(body) + deflater.flush()


def _shown(text: bytes) -> str:
    return in_brief(text.decode("latin-1"))
