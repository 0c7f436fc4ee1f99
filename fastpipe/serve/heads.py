"""Heads of HTTP/1.1 as they are written: of an answer, and of a request that is read a second time."""

from __future__ import annotations

import http

from fastpipe.serve.exchange import Headers, Response

__all__ = ["head_of", "head_without_upgrade"]

_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in http.HTTPStatus}
_CLOSE = b"connection: close\r\n"
_OF_UPGRADES = {b"connection", b"upgrade", b"http2-settings"}


def head_of(response: Response, common: bytes, *, is_last: bool) -> list[bytes]:
    """Return the pieces of an answer's head, but for how long its body is, and the empty line.

    Args:
        response: the answer.
        common: headers that all answers have, as they are written.
        is_last: the connection is closed behind it.
    """
    head = [_STATUS_LINES.get(response.status) or b"HTTP/1.1 %d -\r\n" % response.status, common]
    for name, value in response.headers:
        head += (name, b": ", value, b"\r\n")
    if is_last:
        head.append(_CLOSE)
    return head


def head_without_upgrade(method: bytes, url: bytes, headers: Headers) -> bytes:
    """Return the head of a request as its client would have sent it without asking for another protocol."""
    kept = (b"%b: %b\r\n" % pair for pair in headers.items() if pair[0] not in _OF_UPGRADES)
    return b"".join((b"%b %b HTTP/1.1\r\n" % (method, url), *kept, b"\r\n"))
