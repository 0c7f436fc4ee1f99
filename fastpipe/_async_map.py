"""How ``Pipe.amap`` runs: tasks in a window, answers in order, and a source that may be asynchronous."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from fastpipe._results import with_request
from fastpipe.backend import Request
from fastpipe.errors import ForkedPipe, PipeClosed

if TYPE_CHECKING:
    import asyncio

    from fastpipe.pipe import Pipe

__all__ = ["async_map"]


async def async_map(
    pipe: Pipe,
    requests: Iterable[Request] | AsyncIterable[Request],
    window: int,
    return_exceptions: bool,
    timeout: float | None,
    priority: float,
    entry: str | None,
) -> AsyncGenerator[Any, None]:
    """Yield the answers of ``requests`` in order; see ``Pipe.amap``."""
    import asyncio  # a caller that has a running loop has imported it

    source = _Source(requests)
    started: deque[tuple[asyncio.Task[Request], Request]] = deque()
    try:
        while True:
            while source.is_open and len(started) < window:
                next_request = await source.take(unless=started[0][0] if started else None)
                if next_request is None:
                    break
                if pipe.closing:
                    source.ends(PipeClosed("the pipe is closed"))
                    break
                given = dict.copy(next_request) if isinstance(next_request, dict) else next_request
                answer = pipe._acall(next_request, given, timeout, priority, entry, True)
                started.append((asyncio.create_task(answer), next_request))
            if not started:
                break
            await asyncio.wait([started[0][0]])
            head, request = started.popleft()
            error = head.exception()
            # PipeClosed may also be what a backend has raised, of another pipe.
            takes_no_more = isinstance(error, PipeClosed | ForkedPipe) and (pipe.closing or pipe._is_forked())
            if error is not None and (not return_exceptions or takes_no_more):
                try:
                    raise error
                finally:
                    del error, head, request  # the traceback holds this frame: a cycle would keep the pipe
            result = head.result() if error is None else with_request(error, request)
            del error, head, request
            yield result
            del result
        if source.failure is not None:
            raise source.failure
    finally:
        source.failure = None
        left = [*(task for task, _ in started), *source.close()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


class _Source:
    """Where requests come from. What it raises is told behind the answers of what it has given before."""

    def __init__(self, requests: Iterable[Request] | AsyncIterable[Request]) -> None:
        self.is_open = True
        self.failure: Exception | None = None
        self._awaited: asyncio.Task[Request] | None = None
        self._iterator: Iterator[Request] | AsyncIterator[Request]
        if isinstance(requests, AsyncIterable):
            self._iterator = aiter(requests)
        else:
            self._iterator = iter(requests)

    async def take(self, unless: asyncio.Task[Any] | None) -> Request | None:
        """Return the next request; None if there is none, or if ``unless`` ends before there is one."""
        import asyncio

        try:
            if isinstance(self._iterator, Iterator):
                return next(self._iterator)
            if self._awaited is None:
                self._awaited = asyncio.ensure_future(_next_of(self._iterator))
            await asyncio.wait(
                [self._awaited] if unless is None else [self._awaited, unless], return_when=asyncio.FIRST_COMPLETED
            )
            if not self._awaited.done():
                return None
            awaited, self._awaited = self._awaited, None
            return awaited.result()
        except (StopIteration, StopAsyncIteration):
            self.ends(None)
        except Exception as error:
            self.ends(error)
        return None

    def ends(self, failure: Exception | None) -> None:
        """Take no more from it, and raise ``failure`` in the end."""
        self.is_open = False
        self.failure = failure

    def close(self) -> list[asyncio.Task[Request]]:
        """Return the task that awaits the next request, if one does."""
        return [] if self._awaited is None else [self._awaited]


async def _next_of(iterator: AsyncIterator[Request]) -> Request:
    return await anext(iterator)
