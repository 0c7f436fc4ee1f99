"""What tests of states share: a backend that remembers what it has seen of a sequence, and what a node keeps."""

from __future__ import annotations

import threading
from typing import Any

from helpers import WAIT_S, until

from fastpipe import Backend, ItemErrors, Pipe, Request


class Remembers(Backend):
    """The result is all data of the sequence so far; "bad" data raises. A batch waits until the gate is open."""

    stateful = True
    max_batch = 8
    keeps_input = True

    def __init__(self, *, is_open: bool = True, names_bad: bool = True) -> None:
        self.names_bad = names_bad
        self.opened = threading.Event()
        self.inside = threading.Semaphore(0)
        self.batches: list[list[Any]] = []
        if is_open:
            self.opened.set()

    def forward(self, batch: list[Request]) -> None:
        self.batches.append([request["data"] for request in batch])
        self.inside.release()
        assert self.opened.wait(WAIT_S)
        failed = {}
        for index, request in enumerate(batch):
            request["state"] = request["result"] = (*(request["state"] or ()), request["data"])
            if isinstance(request["data"], str) and request["data"].startswith("bad"):
                failed[index] = ValueError(request["data"])
        if failed and (len(batch) == 1 or not self.names_bad):
            raise next(iter(failed.values()))
        if failed:
            raise ItemErrors(failed)

    def await_inside(self) -> None:
        """Wait until one more batch has come in."""
        assert self.inside.acquire(timeout=WAIT_S)


def alike(backend: Remembers) -> type[Remembers]:
    """Return a class whose instances are that object in all but identity: for nodes that have several."""

    class Alike(Remembers):
        keeps_input = True

        def __init__(self) -> None:
            self.__dict__ = backend.__dict__

    return Alike


def states(pipe: Pipe, node: str = "main") -> dict[str, int]:
    """Return what a node has counted of its states, without what is nought."""
    return {name: count for name, count in pipe.stats()["nodes"][node]["states"].items() if count}  # type: ignore[misc]


def await_waiting(pipe: Pipe, count: int, node: str = "main") -> None:
    """Wait until so many requests wait for their turns."""
    until(lambda: pipe.stats()["nodes"][node]["states"]["waiting"] == count)


def answer(pipe: Pipe, key: Any, data: Any, **keys: Any) -> Any:
    request = {"data": data, "id": key, **keys}
    pipe(request)
    return request["result"]
