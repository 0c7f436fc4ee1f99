"""What a swap does to a node's cache, to answers in parts, and to what runs a node from elsewhere."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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


# ---- run from elsewhere ------------------------------------------------------------------------------------------


class Closable(Backend):
    """Gives ten times the data; version 1 holds what is asked to wait. Not to be used once it is closed."""

    keeps_input = True

    def __init__(self, *, inside: threading.Event, go: threading.Event, version: int = 1) -> None:
        self.inside, self.go, self.version = inside, go, version
        self.is_open = True

    def close(self) -> None:
        self.is_open = False

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            if request["data"] == "hold":
                self.inside.set()
                assert self.go.wait(WAIT_S)
                request["data"] = self.version
            assert self.is_open
            request["result"] = request["data"] * 10


class ClosableBound(Closable):
    keeps_input = True
    thread_bound = True


def _debugged(pipe: Pipe, request: Request) -> Request:
    with pipe.debug(request, entry="a") as debugger:
        debugger.run()
    return request


WAYS: dict[str, Any] = {
    "call": lambda pipe, request: pipe(request, entry="a"),
    "eager": lambda pipe, request: pipe(request, entry="a", eager=True),
    "debugger": _debugged,
    "map": lambda pipe, request: {"result": pipe({"data": [request["data"]]}, entry="each")["result"][0]},
    "step": lambda pipe, request: {"result": pipe({"data": [request["data"]]}, entry="deep")["result"][0]},
    "proxy": lambda pipe, request: pipe(request, entry="proxy"),
}


def _pipe(backend: Any, inside: threading.Event, go: threading.Event, **keys: Any) -> Pipe:
    return Pipe(
        a={"backend": "Identity", "next": "node"},
        node={"backend": backend, "inside": inside, "go": go, **keys},
        each={"backend": "MapReduce", "jump": "a"},
        deep={"backend": "S[Identity,MapReduce]", "jump": "a", "instance_num": 2},
        proxy={"backend": "Proxy", "proxy": "node"},
    )


@pytest.mark.parametrize("keys", [{}, {"cache": "1MB"}, {"max": 4, "batching_timeout": 1}], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_what_runs_in_an_old_instance_ends_there(
    way: str, keys: dict[str, Any], go: threading.Event, tmp_path: Path
) -> None:
    """However it came there, also while it is watched: the old instance is closed after that, and no request waits."""
    inside = threading.Event()
    with (
        _pipe(Closable, inside, go, **keys) as pipe,
        ThreadPoolExecutor(2) as executor,
        pipe.timeline(tmp_path / "run"),
    ):
        held = executor.submit(WAYS[way], pipe, {"data": "hold"})
        assert inside.wait(WAIT_S)
        swapping = executor.submit(pipe.swap, "node", version=2)
        until(lambda: pipe.stats()["nodes"]["node"]["instances"]["switches"] == 1)
        assert WAYS[way](pipe, {"data": 3})["result"] == 30
        assert not swapping.done()
        go.set()
        assert held.result(WAIT_S)["result"] == 10
        swapping.result(WAIT_S)
        assert WAYS[way](pipe, {"data": "hold"})["result"] == 20


@pytest.mark.parametrize("backend", [Closable, ClosableBound])
@pytest.mark.parametrize("keys", [{}, {"max": 4, "batching_timeout": 1, "cache": 3000}, {"max_queue": 8}], ids=str)
def test_parts_under_swaps(backend: type[Backend], keys: dict[str, Any], go: threading.Event) -> None:
    """Callers of MapReduces, of all ways to call, while their node is swapped and resized: each has its own answers."""
    wrong: list[Any] = []
    is_over = threading.Event()

    def calls(number: int) -> None:
        draws = random.Random(number)
        while not is_over.is_set():
            data = [draws.randrange(50) for _ in range(draws.randrange(9))]
            entry = draws.choice(["each", "deep"])
            if number % 3 == 0:
                result = pipe.submit({"data": data}, entry=entry).result(WAIT_S)["result"]
            else:
                result = pipe({"data": data}, entry=entry, eager=number % 3 == 1)["result"]
            if result != [each * 10 for each in data]:
                wrong.append((data, result))

    with _pipe(backend, threading.Event(), go, instance_num=2, **keys) as pipe:
        with ThreadPoolExecutor(3) as executor:
            callers = [executor.submit(calls, number) for number in range(3)]
            try:
                for turn in range(12):
                    pipe.swap("node", version=turn + 2, timeout=WAIT_S)
                    pipe.resize("node", instance_num=1 + turn % 3, max=1 + turn % 4, timeout=WAIT_S)
                    pipe.swap("deep", timeout=WAIT_S)
            finally:
                is_over.set()
            for caller in callers:
                caller.result(WAIT_S)
        requests = pipe.stats()["requests"]
    assert wrong == []
    assert requests["accepted"] == requests["done"] > 0
