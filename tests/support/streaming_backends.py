"""What tests of streams share: backends that answer in parts, and readers.

A test imports it by its name, as it does ``helpers``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import WAIT_S

import fastpipe
from fastpipe import Pipe, Request, Streaming


class Endless(Streaming):
    """Yields without end; says when it has been closed, and what ``cancelled`` said then."""

    keeps_chunks = False

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.saw: list[bool] = []
        self.made = 0

    def run(self, request: Request) -> Iterator[int]:
        try:
            while True:
                self.made += 1
                yield self.made
        finally:
            self.saw.append(fastpipe.cancelled())
            self.closed.set()


class Script(Streaming):
    """Yields its data item by item, raises what is an exception, calls what is callable."""

    def run(self, request: Request) -> Iterator[Any]:
        for item in request["data"]:
            if isinstance(item, BaseException):
                raise item
            if callable(item):
                item()
            else:
                yield item


def counts(pipe: Pipe) -> dict[str, int]:
    """Return how requests have ended, without zeros."""
    numbers: Any = pipe.stats()["requests"]
    return {name: count for name, count in numbers.items() if count and name != "accepted"}


def remains(chunks: Any) -> tuple[list[Any], BaseException | None]:
    """Return what a stream still gives, and the error at its end; a second end has no error."""
    read: list[Any] = []
    error: BaseException | None = None
    try:
        read.extend(iter(lambda: next(chunks), object()))
    except StopIteration:
        pass
    except BaseException as raised:
        error = raised
    with pytest.raises(StopIteration):
        next(chunks)
    return read, error


async def aremains(chunks: Any) -> tuple[list[Any], BaseException | None]:
    read: list[Any] = []
    try:
        async for chunk in chunks:
            read.append(chunk)
    except BaseException as raised:
        return read, raised
    return read, None


class Counts(Streaming):
    """Yields the numbers below ``data``; ``made`` has all it has come to."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def run(self, request: Request) -> Iterator[int]:
        for number in range(request["data"]):
            self.made.append(number)
            yield number


class IfFull:
    """A rule: nothing leaves before a batch is full. (By the rule "timeout", a lone request does.)"""

    def decide(self, load: dict[str, Any]) -> int:
        return int(load["queued"]) if load["queued_weight"] >= load["max"] else 0


WHOLE_BATCHES: dict[str, Any] = {"batching": IfFull(), "batching_timeout": 60_000.0}
"""Keys of a node whose batches leave when they are full, and never before."""


def in_one_batch(backend: Any, **keywords: Any) -> Pipe:
    """Return a pipe of a node ``words`` that runs eight requests, or ``max``, together, and fewer never."""
    return Pipe(words={"backend": backend, "max": 8, **WHOLE_BATCHES, **keywords})


async def read(chunks: Any) -> list[Any]:
    return [chunk async for chunk in chunks]


def by_all_readers(pipe: Pipe, request: Request, **keywords: Any) -> list[Any]:
    """Return the chunks of a request, which a thread and a coroutine must read alike, and leave the same dict."""
    mine, other = dict(request), dict(request)
    chunks = list(pipe.stream(mine, **keywords))
    assert asyncio.run(asyncio.wait_for(read(pipe.astream(other, **keywords)), WAIT_S)) == chunks
    assert mine == other
    request.update(mine)
    return chunks
