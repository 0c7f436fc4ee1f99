"""``@fastpipe.batched``: dynamic batching for a plain function, or a method, without a configuration."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

from fastpipe.contract import Backend, Request
from fastpipe.forks import ProcessLock
from fastpipe.pipe import Pipe
from fastpipe.results import checked_results

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["BatchedFunction", "BatchedMethod", "batched"]

Item = TypeVar("Item")
Result = TypeVar("Result")

# Guards the change from no pipe, or a closed one, to a new one. Reentrant: a destructor that runs there may call.
_building = ProcessLock()


class _Decorator(Protocol):
    """What ``batched(...)`` returns: it takes a function of a list, or a method of one."""

    @overload
    def __call__(self, function: Callable[[list[Item]], list[Result]], /) -> BatchedFunction[Item, Result]: ...
    @overload
    def __call__(self, function: Callable[[Any, list[Item]], list[Result]], /) -> BatchedMethod[Item, Result]: ...


def batched(
    *,
    max: int,
    timeout_ms: float = 2.0,
    instance_num: int = 1,
    bucket: Callable[[Any], Hashable] | None = None,
    weigh: Callable[[Any], float] | None = None,
    retry_alone: bool = True,
    keeps_input: bool = False,
) -> _Decorator:
    """Turn a function of a list of items into a function of one item, whose calls meet in batches.

        @fastpipe.batched(max=16, timeout_ms=2)
        def embed(texts: list[str]) -> list[np.ndarray]: ...

        vector = embed("one text")                  # any thread
        vector = await embed.acall("one text")      # asyncio

    The function returns a list, a tuple or an array with one result for each item, in their order. On a method
    (``self`` and the list), each object has batches and threads of its own, which end with ``model.embed.close()`` or
    with the object.

    Args:
        max: the most items (or their weight) the function gets at once.
        timeout_ms: how long the oldest item may wait for others.
        instance_num: how many calls of the function may run at the same time; of a method, for each object.
        bucket: only items with equal buckets share a call.
        weigh: what an item counts towards ``max``; default 1.
        retry_alone: if the function raises for several items, call it again for each, so that one fails alone.
        keeps_input: the function does not change its items, so that they need not be copied for that, and may be what
            cannot be copied; see ``Backend.keeps_input``.
    """

    def decorate(function: Callable[..., list[Any]]) -> Any:
        if inspect.iscoroutinefunction(function):
            raise TypeError(
                f"{function.__qualname__} is async; batched() takes a plain function, its callers may be async"
            )
        is_method = _is_method(function)

        backend = _backend_of(function, is_method, max)
        backend.retry_alone = retry_alone
        backend.keeps_input = keeps_input
        if bucket is not None:
            backend.bucket = lambda self, request: bucket(request["data"])  # type: ignore[assignment]
        if weigh is not None:
            backend.weigh = lambda self, request: weigh(request["data"])  # type: ignore[assignment]
        settings = {"backend": backend, "max": max, "batching_timeout": timeout_ms, "instance_num": instance_num}
        return (BatchedMethod if is_method else BatchedFunction)(function, settings)

    return decorate


def _backend_of(function: Callable[..., list[Any]], is_method: bool, max_size: int) -> type[Backend]:
    class Batched(Backend):
        max_batch = max_size

        def forward(self, batch: list[Request]) -> None:
            items = [request["data"] for request in batch]
            # All requests of a pipe are of one object.
            results = batch[0]["method"](items) if is_method else function(items)
            checked = checked_results(results, len(batch), function.__qualname__)
            for request, result in zip(batch, checked, strict=True):
                request["result"] = result

    Batched.__name__ = Batched.__qualname__ = function.__name__
    return Batched


class _Calls:
    """The pipe behind a function. Its threads start with the first call, and end with ``close``, or with this."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.pipe: Pipe | None = None

    def open(self, *, anew_if_closed: bool) -> Pipe:
        """Return the pipe; another one if there is none yet, or if it is that of the parent of a fork, or closed."""
        while True:
            pipe = self.pipe
            if pipe is not None and not pipe._is_forked() and not (anew_if_closed and pipe.closing):
                return pipe
            with _building.of_this_process:
                if self.pipe is pipe:  # else another thread was faster
                    self.pipe = Pipe(self.settings)


class BatchedFunction(Generic[Item, Result]):
    """What ``@fastpipe.batched`` makes of a function.

    Its threads start with the first call, and end with ``close``; a call after that, or in the child of a fork, starts
    new ones.
    """

    def __init__(self, function: Callable[..., list[Result]], settings: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self._calls = _Calls(settings)

    def _request(self, item: Item) -> Request:
        return {"data": item}

    @property
    def pipe(self) -> Pipe:
        """The pipe behind it, for stats; after ``close`` the closed one, until the next call."""
        return self._calls.open(anew_if_closed=False)

    @property
    def _open(self) -> Pipe:
        return self._calls.open(anew_if_closed=True)

    def __call__(self, item: Item) -> Result:
        """Return the function's result for ``item``. Blocks; any thread."""
        result: Result = self._open(self._request(item))["result"]
        return result

    async def acall(self, item: Item) -> Result:
        """Return the function's result for ``item`` without blocking the event loop."""
        result: Result = (await self._open.acall(self._request(item)))["result"]
        return result

    def submit(self, item: Item) -> Future[Request]:
        """Return a future of the request ``{"data": item}``; its ``"result"`` is the function's."""
        return self._open.submit(self._request(item))

    def map(self, items: Iterable[Item]) -> Iterator[Result]:
        """Yield the results of many items, in order."""
        for request in self._open.map(self._request(item) for item in items):
            yield request["result"]

    async def amap(self, items: Iterable[Item] | AsyncIterable[Item]) -> AsyncGenerator[Result, None]:
        """Yield the results of many items, in order; see ``Pipe.amap``."""
        requests: Iterable[Request] | AsyncIterable[Request]
        if isinstance(items, AsyncIterable):
            requests = (self._request(item) async for item in items)
        else:
            requests = (self._request(item) for item in items)
        async with contextlib.aclosing(self._open.amap(requests)) as answers:
            async for request in answers:
                yield request["result"]

    def close(self, timeout: float | None = None) -> None:
        """End its threads; see ``Pipe.close``. A later call starts new ones."""
        if self._calls.pipe is not None:
            self._calls.pipe.close(timeout)

    async def aclose(self, timeout: float | None = None) -> None:
        """See ``Pipe.aclose``."""
        if self._calls.pipe is not None:
            await self._calls.pipe.aclose(timeout)


class _Bound(BatchedFunction[Item, Result]):
    """A batched method of one object, as it is looked up; like any bound method, it keeps the object alive."""

    def __init__(self, function: Callable[..., list[Result]], owner: object, calls: _Calls) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self.__self__ = owner
        self._calls = calls

    def _request(self, item: Item) -> Request:
        # Bound, so that the object lives until its last call has ended.
        return {"data": item, "method": types.MethodType(self._function, self.__self__)}


class BatchedMethod(Generic[Item, Result]):
    """What ``@fastpipe.batched`` makes of a method: each object has a ``BatchedFunction`` of its own.

    Its threads start with the first call of that object, and end with ``close``, or when the object is freed: nothing
    here refers to it. It must allow weak references, as all objects do but those of classes with ``__slots__``.
    """

    def __init__(self, function: Callable[..., list[Result]], settings: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._settings = settings
        # By id: objects need not be hashable, and equal ones are not the same.
        self._calls: dict[int, tuple[weakref.ref[object], _Calls]] = {}

    @overload
    def __get__(self, owner: None, kind: type, /) -> BatchedMethod[Item, Result]: ...
    @overload
    def __get__(self, owner: object, kind: type | None = None, /) -> BatchedFunction[Item, Result]: ...
    def __get__(self, owner: object, kind: type | None = None, /) -> Any:
        return self if owner is None else _Bound(self._function, owner, self._calls_of(owner))

    def __call__(self, owner: object, item: Item) -> Result:
        """Call the method of ``owner``, as ``Model.embed(model, item)`` does."""
        bound: BatchedFunction[Item, Result] = self.__get__(owner)
        return bound(item)

    def _calls_of(self, owner: object) -> _Calls:
        known = self._calls.get(id(owner))
        if known is None:
            try:
                alive = weakref.ref(owner, functools.partial(_forget, self._calls, id(owner)))
            except TypeError:
                raise TypeError(
                    f"{self._function.__qualname__}: a batched method needs an object that can be referred to weakly; "
                    f"add '__weakref__' to the __slots__ of {type(owner).__name__}"
                ) from None
            known = self._calls.setdefault(id(owner), (alive, _Calls(self._settings)))
        return known[1]


def _forget(calls: dict[int, Any], key: int, _: object) -> None:
    calls.pop(key, None)  # its pipe is dropped with it


def _is_method(function: Callable[..., Any]) -> bool:
    """Whether it takes two arguments, ``self`` and a list, rather than the list."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have none
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in positional and each.default is each.empty for each in parameters) == 2
