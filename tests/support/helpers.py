"""What tests of several files share: gates, waits, and one request in every way of calling.

A test imports it by its name: ``tests/support/`` is on the path of the tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from fastpipe import Backend, Pipe, Request, _core

SCALE = float(os.environ.get("FASTPIPE_SCALE", "1"))
"""How much of a load is tried. CI repeats the tests in further environments, there with less than 1."""

once = pytest.mark.skipif(SCALE < 1, reason="it tries nothing of what is installed here: once is enough, at full scale")
"""Of a test that says the same in every environment."""

COMPILED_KERNELS = ("fast_path", "images", "launches", "loops")
"""Modules of the kernels that are compiled, without the line in front of their names."""

WAIT_S = 20.0
"""How long a test waits for what should happen at once, before it is called a failure."""


def calls_of(work: Callable[[], Any]) -> int:
    """Return how many calls of functions Python itself makes in this thread while it does something."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


class Gate(Backend):
    """Stands in ``forward`` until it is opened; remembers its batches and threads, and raises data that is an error."""

    max_batch = 8
    keeps_input = True  # its data may be an exception, which nobody can copy

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.opened = threading.Event()
        self.batches: list[list[Any]] = []
        self.threads: set[int] = set()

    def forward(self, batch: list[Request]) -> None:
        self.batches.append([request["data"] for request in batch])
        self.threads.add(threading.get_ident())
        self.inside.set()
        assert self.opened.wait(WAIT_S)
        for request in batch:
            if isinstance(request["data"], BaseException):
                raise request["data"]
            request["result"] = request["data"]


class Adds(Backend):
    """Adds a number; remembers the data of every batch, and raises for what it is told to."""

    def __init__(
        self,
        *,
        amount: int = 1,
        max_batch: int | None = None,
        bad: tuple[Any, ...] = (),
        retry_alone: bool = True,
        thread_bound: bool = False,
    ) -> None:
        self.amount = amount
        self.max_batch = max_batch
        self.bad = bad
        self.retry_alone = retry_alone
        self.thread_bound = thread_bound
        self.batches: list[list[Any]] = []
        self.is_closed = False

    def forward(self, batch: list[Request]) -> None:
        self.batches.append([request["data"] for request in batch])
        for request in batch:
            if request["data"] in self.bad:
                raise ValueError(f"bad {request['data']}")
            request["result"] = request["data"] + self.amount

    def close(self) -> None:
        self.is_closed = True


def opened() -> Gate:
    """Return a gate that lets everything pass."""
    gate = Gate()
    gate.opened.set()
    return gate


class Named(Backend):
    """The result is the data with the node's name in front; the request says by which nodes it came."""

    def __init__(self, *, node_name: str) -> None:
        self.name = node_name

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = f"{self.name}({request['data']})"
            request[self.name] = True


@contextlib.contextmanager
def time_stands_still() -> Iterator[None]:
    """The engine's clock does not go on, but by _core._advance_time."""
    _core._freeze_time()
    try:
        yield
    finally:
        _core._thaw_time()


def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds; fail if it never does."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def ask_on_threads(ask: Callable[[int], object], threads: int = 8, each: int = 100) -> list[object]:
    """Call ``ask`` with numbers that differ, on several threads at once; return what it says is wrong."""
    wrong: list[object] = []

    def call(start: int) -> None:
        wrong.extend(problem for number in range(start, start + each) if (problem := ask(number)) is not None)

    calling = [threading.Thread(target=call, args=(start * 1000,)) for start in range(threads)]
    for thread in calling:
        thread.start()
    for thread in calling:
        thread.join(WAIT_S)
    assert not any(thread.is_alive() for thread in calling)
    return wrong


def run_loop(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine to its end; fail if it never comes."""
    asyncio.run(asyncio.wait_for(main(), WAIT_S))


async def until_set(event: threading.Event) -> None:
    """Wait for a thread's event without blocking the loop."""
    assert await asyncio.to_thread(event.wait, WAIT_S)


def all_ways(request: Request, entry: str | None = None, /, **nodes: dict[str, Any]) -> Request:
    """Return the answer, after checking that ``submit``, a list and ``eager`` give the same."""
    with Pipe(nodes) as pipe:
        called: Request = pipe(dict(request), entry=entry)
        assert pipe.submit(dict(request), entry=entry).result(WAIT_S) == called
        assert pipe([dict(request)] * 2, entry=entry)[1] == called
        assert pipe(dict(request), eager=True, entry=entry) == called
        assert pipe.stats()["requests"]["in_flight"] == 0
    return called
