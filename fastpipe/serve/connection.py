"""HTTP/1.1 connections of ``fastpipe serve``: httptools parses, a Service answers, and nothing grows without a limit.

uvicorn runs the server, and takes this instead of its own protocol, which has no limit for headers and none for the
time that they take, copies a body three times, and makes of each request the dicts and coroutines of ASGI.

Guarantees: requests of a connection are answered in order, each once. An answer leaves with its head in one write, if
it is not large. Of what a client has sent, no more is kept than ``Bounds`` and ``Limits`` say. A client that leaves
cancels what it waits for.

All of it runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any

from fastpipe.errors import MissingExtra
from fastpipe.serve.closing import LINGERS_S, close
from fastpipe.serve.exchange import Chunks, Response, head_length
from fastpipe.serve.heads import head_of, head_without_upgrade
from fastpipe.serve.http import Service
from fastpipe.serve.incoming import Bounds, Incoming
from fastpipe.serve.large_bodies import LEAST_BYTES, BodyReader, aligned_memory
from fastpipe.serve.routes import Routes
from fastpipe.serve.statuses import (
    HeadersTooLarge,
    InvalidRequest,
    NotReady,
    RequestTooLarge,
    SlowClient,
    TooBusy,
)

try:
    import httptools
except ImportError as missing:
    raise MissingExtra("fastpipe serve", "serve", missing) from missing

__all__ = ["Connection", "Connections"]

JOINED_BYTES = 1 << 16
"""Smaller answers are copied behind their heads, so that both leave in one system call."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

# What a connection is doing, as far as its time is limited.
IDLE, HEAD, BODY, RUNNING = range(4)


class Connections:
    """All connections of a server: what they share, and who looks at their times."""

    def __init__(self, service: Service, bounds: Bounds | None = None) -> None:
        self.service = service
        self.bounds = bounds or Bounds()
        self.all: set[Connection] = set()
        self.routes = Routes(service)
        self.is_ending = False
        """The server takes no more connections, but for those that are on their way."""
        self._sweep: asyncio.TimerHandle | None = None
        self._head: tuple[Any, bytes] = (None, b"")

    def factory(
        self, config: Any, server_state: Any, app_state: Any, _loop: asyncio.AbstractEventLoop | None = None
    ) -> Connection:
        """Return a protocol for a new connection; uvicorn calls it, with these names."""
        return Connection(self, server_state, _loop or asyncio.get_running_loop())

    def welcome(self, connection: Connection) -> bool:
        """Add a connection; return whether there was room, perhaps made by closing an idle one."""
        if len(self.all) >= self.bounds.connections:
            idle = next((each for each in self.all if each.is_idle()), None)
            if idle is None:
                return False
            self.all.discard(idle)
            idle.transport.abort()
        self.all.add(connection)
        if self._sweep is None:
            self._sweep = connection.loop.call_later(self.bounds.look_s, self._look, connection.loop)
        return True

    def common_head(self, server_state: Any) -> bytes:
        """Return the headers that all answers have, such as the date, as they are written."""
        listed, written = self._head
        if listed is not server_state.default_headers:  # uvicorn makes them anew each second
            listed = server_state.default_headers
            written = b"".join(b"%b: %b\r\n" % pair for pair in listed)
            self._head = (listed, written)
        return written

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        for connection in list(self.all):
            connection.look(self.bounds)
        self._sweep = loop.call_later(self.bounds.look_s, self._look, loop) if self.all else None


class Connection(asyncio.Protocol):
    """One connection. ``phase``, and how long it has been so, is what ``look`` judges."""

    transport: asyncio.Transport

    def __init__(self, shared: Connections, server_state: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.shared = shared
        self.service = shared.service
        self.server_state = server_state
        self.loop = loop
        self.parser = httptools.HttpRequestParser(self)
        self.phase = IDLE
        self.changes = 0
        self._seen = (0, 0)  # of `changes` and the bytes that are still to be written, when it was looked at last
        self._age_s = 0.0
        self._head_bytes = 0
        self._incoming: Incoming | None = None
        self._upgrading: Incoming | None = None
        self._queue: deque[Incoming] = deque()
        self._task: asyncio.Task[None] | None = None
        self._is_last = False
        """The request that is being answered is the connection's last one."""
        self._is_deaf = False
        """Whatever else comes is not looked at."""
        self._lingers = False
        """The client is still sending what was refused."""
        self._is_shut = False
        """The server ends."""
        self._is_gone = False
        self._writable: asyncio.Future[None] | None = None

    # ---- what asyncio, and uvicorn, call -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream's
        if not self.shared.welcome(self):
            self._write(self.service.failed(TooBusy("the server has as many connections as it takes")), None)
            self._hang_up()
            return
        self.server_state.connections.add(self)
        if self.shared.is_ending:  # it was taken before, and uvicorn has not known it when it told the others
            self.shutdown()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_gone = True
        self.shared.all.discard(self)
        self.server_state.connections.discard(self)
        self._drop(self._incoming)
        self._incoming = None
        while self._queue:
            self._drop(self._queue.popleft())
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        if self._task is not None:
            self._task.cancel()

    def eof_received(self) -> bool:
        return False  # a client that has closed its side is gone; the transport closes itself

    def pause_writing(self) -> None:
        self._writable = self.loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None
        if self._task is None and not self._is_gone and not self.transport.is_closing():
            self._go_on()

    def shutdown(self) -> None:
        """Close once all that has begun is answered; uvicorn calls it when the server ends.

        A client that keeps its connection may be about to send the next request, or has done so: it would get a reset
        for an answer. So it has a moment for that one, and is then told to close.
        """
        self._is_shut = True
        self.loop.call_later(self.shared.bounds.farewell_s, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self._task is None and self._incoming is None and not self._queue:
            self._hang_up()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        if self.phase <= HEAD:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay_with_http(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            self._refuse(InvalidRequest(f"this is no HTTP request: {error}"))
            return
        if self.phase == HEAD and self._head_bytes > self.shared.bounds.head_bytes:
            self._refuse(HeadersTooLarge(f"the headers have more than {self.shared.bounds.head_bytes} bytes"))
        elif self.phase == BODY and self._incoming is not None and self._incoming.large_bytes:
            self._receive_large(self._incoming)

    def _stay_with_http(self, rest: bytes) -> None:
        """Answer a request as if it had not asked for another protocol: the parser has passed its body over."""
        incoming, self._upgrading = self._upgrading, None
        if incoming is None:
            self._is_deaf = True  # behind a CONNECT, what follows is no HTTP
            return
        head = head_without_upgrade(self.parser.get_method(), incoming.url, incoming.headers)
        self.parser = httptools.HttpRequestParser(self)
        self._head_bytes = 0
        self.data_received(head + rest)

    # ---- what the parser calls ---------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._is_deaf:
            return
        self._incoming = Incoming()
        self.phase = HEAD
        self.changes += 1

    def on_url(self, url: bytes) -> None:
        if self._incoming is not None:
            self._incoming.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        incoming = self._incoming
        if incoming is None:
            return
        if self.phase == BODY:  # trailers, which nobody reads
            self._head_bytes += len(name) + len(value)
            if self._head_bytes > self.shared.bounds.head_bytes:
                self._refuse(HeadersTooLarge("the trailers are too large"))
            return
        incoming.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        incoming = self._incoming
        if incoming is None:
            return
        headers = incoming.headers
        if self._head_bytes > self.shared.bounds.head_bytes:  # or its body has come along
            size = len(incoming.url) + sum(len(name) + len(value) for name, value in headers.items())
            if size > self.shared.bounds.head_bytes:
                self._refuse(HeadersTooLarge(f"the headers have more than {self.shared.bounds.head_bytes} bytes"))
                return
        method = self.parser.get_method()
        if self.parser.should_upgrade() and method != b"CONNECT":
            self._incoming, self._upgrading = None, incoming
            return
        self._head_bytes = 0
        self.phase = BODY
        self.changes += 1
        incoming.keeps_alive = self.parser.should_keep_alive() and not self.parser.should_upgrade()
        incoming.is_1_0 = self.parser.get_http_version() == "1.0"
        incoming.is_head = method == b"HEAD"
        try:
            incoming.route = self.shared.routes.find(method, incoming.url)
            self.service.check_token(incoming.route, headers)
            declared = headers.get(b"content-length")
            if declared is not None and int(declared) > self.service.limits.body_bytes:
                most = self.service.limits.body_bytes
                raise RequestTooLarge(f"the body has {int(declared)} bytes; at most {most} are taken")
            if declared is not None and int(declared) >= LEAST_BYTES:
                incoming.large_bytes = int(declared)
        except Exception as error:
            if b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0":
                self._refuse(error)  # its body is not read
            else:
                incoming.error = error
            return
        if b"expect" in headers and headers[b"expect"].lower() == b"100-continue" and self._task is None:
            self.transport.write(CONTINUE)

    def on_body(self, body: bytes) -> None:
        incoming = self._incoming
        if incoming is None:
            return
        try:
            self.service.budget.take(len(body))
            if incoming.chunks.add(body) > self.service.limits.body_bytes:
                raise RequestTooLarge(f"the body has more than {self.service.limits.body_bytes} bytes")
        except Exception as error:
            self._refuse(error)

    def on_message_complete(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is None:
            return
        self.phase = RUNNING
        self.changes += 1
        self._queue_up(incoming)

    def _receive_large(self, incoming: Incoming) -> None:
        """Hand the transport to who receives the rest of a body, past the parser."""
        there = incoming.chunks.taken()
        try:
            length = head_length(incoming.headers) or 0
            memory = aligned_memory(min(length, incoming.large_bytes), incoming.large_bytes)
        except Exception as error:
            self._refuse(error)
            return
        position = 0
        for chunk in there:
            memory[position : position + len(chunk)] = chunk
            position += len(chunk)
        incoming.large_bytes = 0

        def received(size: int) -> bool:
            if self._incoming is not incoming:  # it was too slow, and is refused
                self.transport.set_protocol(self)
                return False
            try:
                self.service.budget.take(size)
            except TooBusy as error:
                self.transport.set_protocol(self)
                self._refuse(error)
                return False
            incoming.chunks.size_bytes += size
            return True

        def complete(body: memoryview) -> None:
            self.transport.set_protocol(self)
            self.parser = httptools.HttpRequestParser(self)  # the former one waits for the body
            incoming.chunks.whole = body
            self.on_message_complete()

        self.transport.set_protocol(BodyReader(memory, position, received, complete, self))

    # ---- requests ----------------------------------------------------------------------------------------------

    def _queue_up(self, incoming: Incoming) -> None:
        if self._task is None and self._writable is None:
            self._start(incoming)
            return
        self._queue.append(incoming)
        self.transport.pause_reading()
        if len(self._queue) > self.shared.bounds.pipelined:
            self.transport.abort()

    def _refuse(self, error: Exception) -> None:
        """Answer what is not read to its end with an error; the connection ends with that."""
        incoming = self._incoming or Incoming()
        self._incoming = None
        self._drop(incoming)
        incoming.keeps_alive = False
        incoming.error = error
        self._is_deaf = self._lingers = True
        self.phase = RUNNING
        self.changes += 1
        self._queue_up(incoming)

    def _drop(self, incoming: Incoming | None) -> None:
        """Let go of a request's body."""
        if incoming is not None:
            self.service.budget.give(incoming.chunks.size_bytes)
            incoming.chunks = Chunks()

    def _start(self, incoming: Incoming) -> None:
        self._is_last = not incoming.keeps_alive
        self._task = self.loop.create_task(self._run(incoming))
        self.server_state.tasks.add(self._task)

    async def _run(self, incoming: Incoming) -> None:
        task = self._task
        try:
            if incoming.error is not None or incoming.route is None:
                response = self.service.failed(incoming.error or InvalidRequest("the request cannot be read"))
            else:
                response = await self.service.answer(incoming.route, incoming.headers, incoming.chunks.taken())
            if response.parts is None:
                self._write(response, incoming)
            else:
                await self._write_parts(response, incoming)
        except asyncio.CancelledError:
            if not self._is_gone:  # the server ends, and waits no longer
                self._is_last = True
                self._write(self.service.failed(NotReady("the server has shut down")), incoming)
                raise
        except Exception:
            logging.getLogger("fastpipe.serve").exception("an answer could not be written")
            self.transport.abort()
        finally:
            self._drop(incoming)
            self.server_state.tasks.discard(task)
            self._ended()

    def _ended(self) -> None:
        """Go on, once the client has taken its answer: who sends ahead and reads nothing is not to fill the memory."""
        self._task = None
        self.server_state.total_requests += 1
        if self._is_gone:
            return
        if self._is_last:
            self._close()
        elif self._writable is None:
            self._go_on()
        else:
            self.transport.pause_reading()

    def _go_on(self) -> None:
        """Go on with what the client has sent ahead, or wait for its next request."""
        if self._queue:
            self._start(self._queue.popleft())
        elif self._is_shut and self._incoming is None:
            self._hang_up()
        else:
            self.changes += 1
            if self._incoming is None:
                self.phase = IDLE
            self.transport.resume_reading()

    def _close(self) -> None:
        """Close; but first let a client that goes on sending read why, which a reset would take from it."""
        self._is_deaf = True
        if self._lingers and self.transport.can_write_eof():
            self.transport.write_eof()
            self.transport.resume_reading()
            self.loop.call_later(LINGERS_S, self.transport.close)
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        close(self.transport, self.loop, lambda: self._is_gone)

    # ---- answers -----------------------------------------------------------------------------------------------

    def _write(self, response: Response, incoming: Incoming | None) -> None:
        is_last = incoming is None or self._is_last or (self._is_shut and not self._queue)
        head = head_of(response, self.shared.common_head(self.server_state), is_last=is_last)
        size = len(response.body) + sum(map(len, response.tail))
        head.append(b"content-length: %d\r\n\r\n" % size)
        if incoming is not None and incoming.is_head:
            self.transport.write(b"".join(head))
            return
        head.append(response.body)
        if size <= JOINED_BYTES:
            self.transport.write(b"".join((*head, *response.tail)))
            return
        if response.tail:
            self.transport.write(b"".join(head))
        else:
            self.transport.write(b"".join(head[:-1]))
            self.transport.write(response.body)
        for raw in response.tail:
            self.transport.write(raw)

    async def _write_parts(self, response: Response, incoming: Incoming) -> None:
        parts = response.parts
        if parts is None:
            return
        is_chunked = not incoming.is_1_0
        self._is_last = self._is_last or not is_chunked
        is_last = self._is_last or (self._is_shut and not self._queue)
        head = head_of(response, self.shared.common_head(self.server_state), is_last=is_last)
        head.append(b"transfer-encoding: chunked\r\n\r\n" if is_chunked else b"\r\n")
        try:
            self.transport.write(b"".join(head))
            async for part in parts:
                self.transport.write(b"%x\r\n%b\r\n" % (len(part), part) if is_chunked else part)
                if self._writable is not None:
                    await self._writable
        finally:
            await parts.aclose()
        if is_chunked:
            self.transport.write(b"0\r\n\r\n")

    # ---- times -------------------------------------------------------------------------------------------------

    def is_idle(self) -> bool:
        """Whether it would cost no request to close it."""
        return self.phase <= HEAD and self._task is None

    def look(self, bounds: Bounds) -> None:
        """Close the connection if its client has been too slow; called now and then."""
        to_write = self.transport.get_write_buffer_size()
        seen = (self.changes, to_write)
        if seen != self._seen:
            self._seen, self._age_s = seen, 0.0
            return
        self._age_s += bounds.look_s
        if to_write:
            if self._age_s > self.service.limits.write_s:
                self.transport.abort()
        elif self.phase == IDLE:
            if self._age_s > bounds.idle_s or (self.changes == 0 and self._age_s > bounds.head_s):
                self._hang_up()
        elif self.phase == HEAD:
            if self._age_s > bounds.head_s:
                self._refuse(SlowClient(f"the headers were not there within {bounds.head_s:g} s"))
        elif self.phase == BODY and self._incoming is not None:
            allowed_s = self.service.limits.body_time_s(self._incoming.chunks.size_bytes)
            if self._age_s > allowed_s:
                self._refuse(SlowClient(f"the body was not there within {allowed_s:g} s"))
