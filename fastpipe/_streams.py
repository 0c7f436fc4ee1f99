"""How ``Pipe.stream`` and ``Pipe.astream`` run: chunks of an answer, as they come, for threads and for coroutines."""

from __future__ import annotations

import weakref
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from fastpipe._core import ENDED, NOT_YET, Engine, Mailbox, StreamReader
from fastpipe.contract import Request

if TYPE_CHECKING:
    import asyncio

__all__ = ["BUFFER", "StreamingCalls", "as_given"]

BUFFER = 16
"""So many chunks may wait for a reader, unless the call says otherwise."""

_mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox] = weakref.WeakKeyDictionary()


class StreamingCalls(Engine):
    """The calls of a pipe that hand on an answer in parts, while the rest is being made."""

    def stream(
        self,
        request: Request,
        *,
        timeout: float | None = None,
        priority: float = 0,
        entry: str | None = None,
        buffer: int = BUFFER,
    ) -> StreamReader:
        """Start a request, and iterate over the chunks of its answer as they come.

            for chunk in pipe.stream(request): ...
            request["result"]

        Chunks are what the backends on the request's way hand on (``fastpipe.Streaming``, ``fastpipe.emit``), of all
        nodes, in the order in which they come; without such a backend there are none. When they have ended, the answer
        is in the request's dict, as after a call. A request that fails raises its error behind all chunks that came
        before.

        Leaving early (``break``, ``close()``, the end of a ``with`` block, dropping the iterator) cancels the request;
        so does an exception of a signal while the next chunk is awaited. What is changed in the dict after this returns
        is not seen by any backend.

        Args:
            request: as of a call.
            timeout: seconds from now until the end of the answer; chunks that wait are still read after it.
            priority: as of a call.
            entry: as of a call.
            buffer: how many chunks may wait to be read. A backend that emits more waits, in its instance: while a
                reader is slow, other requests need other instances, or its batch. The wait ends with the request.

        Raises:
            What ``submit`` raises at once, of a request that is not let in.
        """
        return self._start_stream(request, timeout, priority, entry, _checked_buffer(buffer))

    def astream(
        self,
        request: Request,
        *,
        timeout: float | None = None,
        priority: float = 0,
        entry: str | None = None,
        buffer: int = BUFFER,
    ) -> AsyncGenerator[Any, None]:
        """Iterate over the chunks of a request's answer without blocking the event loop; see ``stream``.

            async with contextlib.aclosing(pipe.astream(request)) as chunks:
                async for chunk in chunks: ...

        The request starts with the first iteration; ``timeout`` counts from then. What is changed in the dict after
        this was called is not seen by any backend. Whoever leaves the loop early cancels the request: with
        ``aclosing``, before the block ends; without, as soon as the event loop gets to it. Cancelling the task cancels
        it, too.
        """
        limit = _checked_buffer(buffer)
        self._terms(timeout, priority)  # what is wrong with them is said now
        return _chunks_of(self, request, as_given(request), timeout, priority, entry, limit)


async def _chunks_of(
    engine: Engine,
    request: Request,
    given: Request,
    timeout: float | None,
    priority: float,
    entry: str | None,
    limit: int,
) -> AsyncGenerator[Any, None]:
    import asyncio  # a caller that has a running loop has imported it

    loop = asyncio.get_running_loop()
    mailbox = _mailboxes.get(loop)
    if mailbox is None:
        mailbox = _mailboxes[loop] = Mailbox()
    task = asyncio.current_task()
    terms = engine._terms(timeout, priority)
    reader = engine._start_astream(
        request, given, loop, None if task is None else weakref.ref(task), mailbox, terms, entry, limit
    )
    expiry = None
    try:
        if reader.waiter is not None:  # for room; once it is let in, the pipe's clock sees to its limit
            remaining_s = engine._remaining_s(terms)
            expiry = None if remaining_s is None else loop.call_later(remaining_s, reader.waiter.expire)
        while True:
            chunk = reader.take()
            if chunk is NOT_YET:
                news = loop.create_future()
                if reader.listen(news):
                    await news
            elif chunk is ENDED:
                return
            else:
                yield chunk
                del chunk  # the reader's alone, while the next is awaited
    finally:
        reader.close()
        if expiry is not None:
            expiry.cancel()


def _checked_buffer(buffer: int) -> int:
    if not isinstance(buffer, int) or isinstance(buffer, bool):
        raise TypeError(f"buffer must be a whole number of chunks, at least 1; got {buffer!r}")
    if buffer < 1:
        raise ValueError(f"buffer must be at least 1, got {buffer}")
    return buffer


def as_given(request: Request) -> Request:
    """Return a copy of a request as it is now; what is no dict is refused when it is started."""
    return dict.copy(request) if isinstance(request, dict) else request
