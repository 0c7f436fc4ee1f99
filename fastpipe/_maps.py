"""How ``Pipe.map`` and ``Pipe.amap`` run: requests in a window, answers in order, a source that may be asynchronous."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from fastpipe._core import Engine, Walk, _as_raised
from fastpipe.contract import Request
from fastpipe.errors import ForkedPipe, PipeClosed
from fastpipe.faults import with_request

if TYPE_CHECKING:
    import asyncio

__all__ = ["amap_in_order", "map_in_order", "window_of"]


def window_of(look_ahead: int | None, default: int) -> int:
    """Return how many requests a map takes ahead, checked."""
    if look_ahead is None:
        return default
    if not isinstance(look_ahead, int) or isinstance(look_ahead, bool):
        raise TypeError(f"look_ahead must be a whole number of requests, at least 1; got {look_ahead!r}")
    if look_ahead < 1:
        raise ValueError(f"look_ahead must be at least 1, got {look_ahead}")
    return look_ahead


def map_in_order(
    start: Callable[[Request], Walk], requests: Iterator[Request], window: int, return_exceptions: bool
) -> Iterator[Any]:
    """Yield the answers of ``requests`` in order; see ``Pipe.map``.

    Args:
        start: starts a request.
        requests: as of ``Pipe.map``.
        window: how many requests are taken ahead.
        return_exceptions: as of ``Pipe.map``.
    """
    started: deque[tuple[Walk | Exception, Request]] = deque()
    failure: Exception | None = None
    try:
        while True:
            try:
                request = next(requests)
            except StopIteration:
                break
            except Exception as error:  # of the iterable: it is told behind what has begun
                failure = error
                break
            try:
                started.append((start(request), request))
            except (PipeClosed, ForkedPipe) as error:
                failure = error
                break
            except Exception as error:  # it was not let in
                started.append((error.with_traceback(None), request))
                if not return_exceptions:
                    break
            if len(started) >= window:
                yield _next_of(started, return_exceptions)
        while started:
            yield _next_of(started, return_exceptions)
        if failure is not None:
            raise failure
    finally:
        failure = None  # see _next_of
        for walk, _ in started:
            if isinstance(walk, Walk):
                walk.cancel()


def _next_of(started: deque[tuple[Walk | Exception, Request]], return_exceptions: bool) -> Any:
    walk, request = started[0]
    error = walk.wait() if isinstance(walk, Walk) else walk
    started.popleft()
    if error is None:
        return request
    if return_exceptions:
        return with_request(error, request)
    try:
        raise _as_raised(error)
    finally:
        del error, walk  # the traceback holds this frame: without this, a cycle would keep the request and its pipe


async def amap_in_order(
    call: Callable[[Request], Coroutine[Any, Any, Request]],
    engine: Engine,
    requests: Iterable[Request] | AsyncIterable[Request],
    window: int,
    return_exceptions: bool,
) -> AsyncGenerator[Any, None]:
    """Yield the answers of ``requests`` in order; see ``Pipe.amap``.

    Args:
        call: takes a request when it is called, and runs it when it is awaited.
        engine: the pipe, for whether it is closing, or was built before a fork.
        requests: as of ``Pipe.amap``.
        window: how many requests are taken ahead.
        return_exceptions: as of ``Pipe.amap``.
    """
    import asyncio  # a caller that has a running loop has imported it

    source = _Source(requests)
    started: deque[tuple[asyncio.Task[Request], Request]] = deque()
    try:
        while True:
            while source.is_open and len(started) < window:
                next_request = await source.take(unless=started[0][0] if started else None)
                if next_request is None:
                    break
                if engine.closing:
                    source.ends(PipeClosed("the pipe is closed"))
                    break
                started.append((asyncio.create_task(call(next_request)), next_request))
            if not started:
                break
            await asyncio.wait([started[0][0]])
            head, request = started.popleft()
            error = head.exception()
            # PipeClosed may also be what a backend has raised, of another pipe.
            takes_no_more = isinstance(error, PipeClosed | ForkedPipe) and (engine.closing or engine._is_forked())
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
                self._awaited = asyncio.ensure_future(_awaited(self._iterator))
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


async def _awaited(iterator: AsyncIterator[Request]) -> Request:
    return await anext(iterator)
