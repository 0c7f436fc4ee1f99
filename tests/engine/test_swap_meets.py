"""What a swap does to a node's cache, and to answers in parts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import WAIT_S, until

from fastpipe import Backend, ConfigError, Pipe, Request, Streaming


class Versioned(Backend):
    """Says by which version it was run; version 1 waits until it may answer."""

    def __init__(self, *, go: threading.Event, version: int = 1) -> None:
        self.go = go
        self.version = version

    def forward(self, batch: list[Request]) -> None:
        if self.version == 1:
            assert self.go.wait(WAIT_S)
        for request in batch:
            request["result"] = self.version


class Parts(Streaming):
    """Emits its version three times."""

    def __init__(self, *, version: int = 1) -> None:
        self.version = version

    def run(self, request: Request) -> Iterator[int]:
        for _ in range(3):
            yield self.version


@pytest.fixture
def go() -> threading.Event:
    return threading.Event()


def cache_of(pipe: Pipe) -> dict[str, int]:
    counts: dict[str, int] = pipe.stats()["nodes"]["main"]["cache"]
    return counts


def test_a_swap_empties_the_cache(go: threading.Event) -> None:
    """What the old instance has answered is not the new one's answer."""
    go.set()
    with Pipe(backend=Versioned, go=go, cache="1MB") as pipe:
        assert [pipe({"data": 1})["result"] for _ in range(2)] == [1, 1]
        assert cache_of(pipe)["hits"] == 1
        pipe.swap("main", version=2)
        assert cache_of(pipe)["entries"] == 0
        assert [pipe({"data": 1})["result"] for _ in range(2)] == [2, 2]
        assert cache_of(pipe)["hits"] == 2


def test_an_answer_of_an_old_instance_that_comes_after_the_swap_is_not_kept(go: threading.Event) -> None:
    """Its caller has it, and those who followed before; whoever asks after the swap is answered by the new one."""
    with Pipe(backend=Versioned, go=go, cache="1MB") as pipe, ThreadPoolExecutor(1) as executor:
        old = [pipe.submit({"data": 1}) for _ in range(2)]
        until(lambda: pipe.stats()["nodes"]["main"]["running"] == 1)
        swapping = executor.submit(pipe.swap, "main", version=2)
        until(lambda: pipe.stats()["nodes"]["main"]["instances"]["switches"] == 1)
        assert pipe({"data": 1})["result"] == 2
        go.set()
        assert [each.result(WAIT_S)["result"] for each in old] == [1, 1]
        swapping.result(WAIT_S)
        assert pipe({"data": 1})["result"] == 2


def test_instances_that_are_added_leave_the_cache_as_it_is(go: threading.Event) -> None:
    go.set()
    with Pipe(backend=Versioned, go=go, cache="1MB") as pipe:
        pipe({"data": 1})
        pipe.resize("main", instance_num=2)
        pipe({"data": 1})
        assert (cache_of(pipe)["entries"], cache_of(pipe)["hits"]) == (1, 1)


def test_a_stream_ends_in_the_instance_in_which_it_began() -> None:
    """The swap waits for it, and nobody else does: it does not take a worker's wake-up, either."""
    with Pipe(backend=Parts) as pipe, ThreadPoolExecutor(1) as executor:
        old = pipe.stream({"data": 0}, buffer=1)
        assert next(old) == 1
        swapping = executor.submit(pipe.swap, "main", version=2)
        until(lambda: pipe.stats()["nodes"]["main"]["instances"]["switches"] == 1)
        assert list(pipe.stream({"data": 0})) == [2, 2, 2]
        assert not swapping.done()
        assert list(old) == [1, 1]
        swapping.result(WAIT_S)


def test_a_node_that_answers_whole_is_not_swapped_for_one_that_answers_in_parts(go: threading.Event) -> None:
    """Callers run its batches, who would wait for readers; it goes on as it was."""
    go.set()
    with Pipe(backend=Versioned(go=go)) as pipe:
        with pytest.raises(ConfigError, match="answers in parts, and what it serves with now does not"):
            pipe.swap("main", {"backend": Parts()})
        assert pipe({"data": 1})["result"] == 1


def test_a_node_that_answers_in_parts_may_be_swapped_for_one_that_does_not(go: threading.Event) -> None:
    with Pipe(backend=Parts()) as pipe:
        pipe.swap("main", {"backend": Versioned(go=go, version=2)})
        request = {"data": 1}
        assert list(pipe.stream(request)) == []
        assert request["result"] == 2  # type: ignore[comparison-overlap]
