"""The HTTP server of the live page: one file and two answers in JSON, to people who may see them.

    GET /               the page: the same for everybody, without a word of the pipe
    GET /about          names and drawing of the pipe
    GET /points?after=7 what came after point 7; waits for the next one if there is none

Guarantees: nothing is written but to the socket; no request changes anything; no thread of it keeps the process alive.

Against other users of the browser's machine or network there is the token. Against pages of strangers in the same
browser: they cannot read answers of another origin, as no CORS header allows it, and a name of theirs that points here
(DNS rebinding) is refused by the Host header; with a token it would not help them, as they do not have it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import logging
import math
import os
import re
import secrets
import socket
import socketserver
import threading
import time
import weakref
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastpipe.observe.sampling import Sampler

__all__ = ["PageServer"]

MOST_CONNECTIONS = 64
"""A browser has a few, and each has a thread here. One more takes the place of the one that has been idle for longest;
only where all of them wait for points is it turned away."""
IDLE_S = 60.0
"""A connection on which nothing comes is closed."""
WAIT_S = 10.0
"""So long a question for points is held back at most, if there is none."""

_living: weakref.WeakSet[PageServer] = weakref.WeakSet()


class PageServer(socketserver.ThreadingMixIn, HTTPServer):
    """Listens from its construction on, and serves from ``start`` to ``stop``.

    Args:
        family: of the address.
        address: host and port.
        sampler: has the points.
        about: what is shown of the pipe, but numbers.
        token: who asks for numbers has to have it; None: everybody may.

    Raises:
        OSError: the address is in use, or none of this machine.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(
        self,
        family: socket.AddressFamily,
        address: tuple[str, int],
        sampler: Sampler,
        about: dict[str, Any],
        token: str | None,
    ) -> None:
        self.address_family = family
        self.sampler = sampler
        # A page that finds another one here when it asks again begins anew.
        self.boot = secrets.token_hex(8)
        self.about = json.dumps({"boot": self.boot, **about}).encode()
        self.token = None if token is None else token.encode("ascii")
        self.pid = os.getpid()
        # Since when nothing has been heard of a connection; infinite while it waits for points. Under the lock.
        self._connections: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        self._is_stopping = False
        super().__init__(address, _Handler)
        _close_in_children()
        _living.add(self)

    def server_bind(self) -> None:
        # Not HTTPServer's, which looks up the machine's name: that may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def start(self) -> None:
        """Serve on a thread."""
        self._thread = threading.Thread(target=self._serve, name="fastpipe live", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._is_stopping:  # not serve_forever, which wakes up twice a second
            self.handle_request()
        self.server_close()

    def stop(self, timeout_s: float) -> None:
        """Take no more connections, and end those that are there."""
        if self._is_stopping:
            return
        self._is_stopping = True
        with self._lock:
            open_sockets = [self.socket, *self._connections]
        for each in open_sockets:
            _end(each)
        self._thread.join(timeout_s)

    def close_in_child(self) -> None:
        """Let go of what a fork has copied: otherwise the port stays taken when the parent is gone."""
        for each in (self.socket, *self._connections):
            each.close()

    # ---- what socketserver calls -----------------------------------------------------------------------------------

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:  # such as too many open files: it would be asked for again at once
            if not self._is_stopping:
                time.sleep(0.1)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        idle = None
        with self._lock:
            is_welcome = not self._is_stopping
            if len(self._connections) >= MOST_CONNECTIONS:
                idle = min(self._connections, key=self._connections.__getitem__)
                is_welcome = is_welcome and self._connections[idle] < math.inf
            if is_welcome:
                self._connections[request] = time.monotonic()
                if idle is not None:
                    del self._connections[idle]
                    _end(idle)  # its thread closes it; not before this, as its number would be another's
        if is_welcome:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def note_heard(self, request: socket.socket, *, waits: bool = False) -> None:
        """A connection has a question, or an answer to it; ``waits``: the answer may take a while, and is wanted."""
        with self._lock:
            if request in self._connections:
                self._connections[request] = math.inf if waits else time.monotonic()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Of a connection, most of them that its other end has gone; nothing of it concerns the service.
        logging.getLogger("fastpipe").debug("the live page lost a connection", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version = "fastpipe"
    sys_version = ""
    timeout = IDLE_S
    wbufsize = 1 << 16  # head and body leave together

    def do_GET(self) -> None:
        self.server.note_heard(self.connection)
        parts = urlsplit(self.path)
        if not self._is_meant():
            self._answer(403, b"this page answers to localhost and to addresses, not to other names\n", "text/plain")
        elif parts.path == "/":
            body, policy = page()
            self._answer(200, body, "text/html", ("Content-Security-Policy", policy))
        elif parts.path not in ("/about", "/points"):
            self._answer(404, b"nothing is here; the page is /\n", "text/plain")
        elif not self._has_token():
            self._answer(401, b"Authorization: Bearer TOKEN is missing, or wrong\n", "text/plain", _CHALLENGE)
        elif parts.path == "/about":
            self._answer(200, self.server.about, "application/json")
        else:
            self._answer(200, self._points(parts.query), "application/json")

    def _points(self, query: str) -> bytes:
        after = parse_qs(query).get("after", ["0"])[0]
        number = int(after) if re.fullmatch("[0-9]{1,15}", after) else 0
        sampler = self.server.sampler
        self.server.note_heard(self.connection, waits=True)
        points = ",".join(sampler.points_after(number, WAIT_S))
        self.server.note_heard(self.connection)
        return f'{{"boot":"{self.server.boot}","state":"{sampler.state()}","points":[{points}]}}'.encode()

    def _is_meant(self) -> bool:
        """Whether the Host header is one that a page of strangers cannot have; see the head of this module."""
        if self.server.token is not None:
            return True
        try:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
            return host == "localhost" or ipaddress.ip_address(host.partition("%")[0]) is not None
        except ValueError:
            return False

    def _has_token(self) -> bool:
        if self.server.token is None:
            return True
        kind, _, given = self.headers.get("Authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(given.encode("latin-1", "replace"), self.server.token)

    def _answer(self, status: int, body: bytes, kind: str, *more: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", f"{kind}; charset=utf-8"), *_ALWAYS, *more):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """A line for each question of each viewer is of no use to anybody."""


_CHALLENGE = ("WWW-Authenticate", "Bearer")
_ALWAYS = (
    ("Cache-Control", "no-store"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
)


@cache
def page() -> tuple[bytes, str]:
    """Return the page, and the policy by which a browser runs nothing but its own script."""
    text = resources.files("fastpipe.observe").joinpath("live.html").read_text(encoding="utf-8")
    hashes = {}
    for element in ("script", "style"):
        found = re.search(f"<{element}>(.*?)</{element}>", text, re.DOTALL)
        own = b"" if found is None else found[1].encode()
        hashes[element] = base64.b64encode(hashlib.sha256(own).digest()).decode()
    # Of the drawing, elements have styles of their own.
    policy = (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "style-src-attr 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return text.encode(), policy


def _end(connection: socket.socket) -> None:
    """Wake whoever waits for something on a socket."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # its other end has


@cache
def _close_in_children() -> None:
    def close_all() -> None:
        for server in list(_living):
            server.close_in_child()
        _living.clear()

    os.register_at_fork(after_in_child=close_all)
