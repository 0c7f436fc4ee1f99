"""What tests of result caches share: a backend that counts, what a cache has counted, and something done at a point."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from helpers import until

from fastpipe import PerRequest, Pipe, Request, _core

S = 1_000_000_000


class Counts(PerRequest):
    """The answer is a list of the data and of how many have run; on "bad" it raises."""

    def __init__(self) -> None:
        self.ran: list[Any] = []

    def run(self, request: Request) -> None:
        self.ran.append(request["data"])
        if request["data"] == "bad":
            raise ValueError("bad")
        request["result"] = [request["data"], len(self.ran)]
        request["size"] = len(self.ran)


@contextlib.contextmanager
def at_every(point: str, action: Callable[[], object]) -> Iterator[None]:
    """Do something whenever a thread comes to a point of the engine."""
    _core._hook(point, action)
    try:
        yield
    finally:
        _core._hook(point, None)


@contextlib.contextmanager
def at(point: str, action: Callable[[], object]) -> Iterator[list[int]]:
    """Do something the first time that a thread comes to a point of the engine."""
    done: list[int] = []

    def act() -> None:
        if not done:
            done.append(1)
            action()

    with at_every(point, act):
        yield done


def counts(pipe: Pipe, node: str = "main") -> dict[str, int]:
    """Return what a cache has counted, without what is nought."""
    return {name: count for name, count in pipe.stats()["nodes"][node]["cache"].items() if count}  # type: ignore[misc]


def answer(pipe: Pipe, data: Any, **keys: Any) -> Any:
    request = {"data": data, **keys}
    pipe(request)
    return request["result"]


def followers(pipe: Pipe, count: int, node: str = "main") -> None:
    """Wait until so many requests have followed others."""
    until(lambda: pipe.stats()["nodes"][node]["cache"]["coalesced"] == count)
