"""``@fastpipe.batched``: dynamic batching for a plain function, without a configuration."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fastpipe.backend import Backend, Request
from fastpipe.errors import BackendError
from fastpipe.pipe import Pipe

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["BatchedFunction", "batched"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def batched(
    *,
    max: int,
    timeout_ms: float = 2.0,
    instance_num: int = 1,
    bucket: Callable[[Any], Hashable] | None = None,
    weigh: Callable[[Any], float] | None = None,
    retry_alone: bool = True,
    keeps_input: bool = False,
) -> Callable[[Callable[[list[Item]], list[Result]]], BatchedFunction[Item, Result]]:
    """Turn a function of a list of items into a function of one item, whose calls meet in batches.

        @fastpipe.batched(max=16, timeout_ms=2)
        def embed(texts: list[str]) -> list[np.ndarray]: ...

        vector = embed("one text")                  # any thread
        vector = await embed.acall("one text")      # asyncio

    Args:
        max: the most items (or their weight) the function gets at once.
        timeout_ms: how long the oldest item may wait for company.
        instance_num: how many calls of the function may run at the same time.
        bucket: only items with equal buckets share a call.
        weigh: what an item counts towards ``max``; default 1.
        retry_alone: if the function raises for several items, call it again for each, so that one fails alone.
        keeps_input: the function does not change its items, so that they need not be copied for that, and may be what
            cannot be copied; see ``Backend.keeps_input``.
    """

    def decorate(function: Callable[[list[Item]], list[Result]]) -> BatchedFunction[Item, Result]:
        if inspect.iscoroutinefunction(function):
            raise TypeError(
                f"{function.__qualname__} is async; batched() takes a plain function, its callers may be async"
            )

        class Batched(Backend):
            max_batch = max

            def forward(self, batch: list[Request]) -> None:
                results = function([request["data"] for request in batch])
                if not isinstance(results, Sized) or not isinstance(results, Iterable):
                    raise BackendError(f"{function.__qualname__} must return a list of results, got {results!r}")
                if len(results) != len(batch):
                    raise BackendError(
                        f"{function.__qualname__} got {len(batch)} items and returned {len(results)} results"
                    )
                for request, result in zip(batch, results, strict=True):
                    request["result"] = result

        Batched.__name__ = Batched.__qualname__ = function.__name__
        Batched.retry_alone = retry_alone
        Batched.keeps_input = keeps_input
        if bucket is not None:
            Batched.bucket = lambda self, request: bucket(request["data"])  # type: ignore[assignment]
        if weigh is not None:
            Batched.weigh = lambda self, request: weigh(request["data"])  # type: ignore[assignment]
        settings = {"backend": Batched, "max": max, "batching_timeout": timeout_ms, "instance_num": instance_num}
        return BatchedFunction(function, settings)

    return decorate


class BatchedFunction(Generic[Item, Result]):
    """What ``@fastpipe.batched`` makes. Its threads start with the first call, and end with ``close``."""

    def __init__(self, function: Callable[[list[Item]], list[Result]], settings: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self._settings = settings
        self._pipe: Pipe | None = None
        self._lock = threading.Lock()

    @property
    def pipe(self) -> Pipe:
        """The pipe behind it: stats, close."""
        if self._pipe is None:
            with self._lock:
                if self._pipe is None:
                    self._pipe = Pipe(self._settings)
        return self._pipe

    def __call__(self, item: Item) -> Result:
        """Return the function's result for ``item``. Blocks; any thread."""
        result: Result = self.pipe({"data": item})["result"]
        return result

    async def acall(self, item: Item) -> Result:
        """Return the function's result for ``item`` without blocking the event loop."""
        result: Result = (await self.pipe.acall({"data": item}))["result"]
        return result

    def submit(self, item: Item) -> Future[Request]:
        """Return a future of the request ``{"data": item}``; its ``"result"`` is the function's."""
        return self.pipe.submit({"data": item})

    def map(self, items: Iterable[Item]) -> Iterator[Result]:
        """Yield the results of many items, in order."""
        for request in self.pipe.map({"data": item} for item in items):
            yield request["result"]

    def close(self, timeout: float | None = None) -> None:
        """See ``Pipe.close``."""
        if self._pipe is not None:
            self._pipe.close(timeout)
