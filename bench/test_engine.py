"""What does the engine add to a call? Backends that do nothing, one caller; beside it what one would do without."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fastpipe import Backend, Pipe

Open = Callable[..., Pipe]
Kind = type[Backend]

BATCH = 64


def ask(pipe: Pipe) -> Any:
    """Send one request and return its result."""
    request = {"data": 1}
    pipe(request)
    return request["result"]


@pytest.mark.benchmark(group="one call")
def test_echo(benchmark: Any, open_pipe: Open, echo: Kind) -> None:
    """One node, whose instance is free: the caller runs it."""
    assert benchmark(ask, open_pipe(backend=echo)) == 1


@pytest.mark.benchmark(group="one call")
def test_echo_handed_over(benchmark: Any, open_pipe: Open, echo_on_its_own_thread: Kind) -> None:
    """One node that is bound to a thread: there and back."""
    assert benchmark(ask, open_pipe(backend=echo_on_its_own_thread)) == 1


@pytest.mark.benchmark(group="one call")
def test_echo_without_a_pipe(benchmark: Any, echo: Kind) -> None:
    """The backend called directly."""
    backend = echo()

    def call() -> Any:
        request = {"data": 1}
        backend.forward([request])
        return request["result"]

    assert benchmark(call) == 1


@pytest.mark.benchmark(group="one call")
def test_echo_by_a_queue(benchmark: Any) -> None:
    """A SimpleQueue to a worker thread, and one back."""
    there: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    back: queue.SimpleQueue[int] = queue.SimpleQueue()

    def serve() -> None:
        while (data := there.get()) is not None:
            back.put(data)

    worker = threading.Thread(target=serve)
    worker.start()

    def call() -> int:
        there.put(1)
        return back.get()

    assert benchmark(call) == 1
    there.put(None)
    worker.join()


@pytest.mark.benchmark(group="one call")
def test_echo_by_an_executor(benchmark: Any) -> None:
    """A ThreadPoolExecutor of one thread."""
    with ThreadPoolExecutor(1) as executor:
        assert benchmark(lambda: executor.submit(int, 1).result()) == 1


@pytest.mark.benchmark(group="one future")
def test_submit(benchmark: Any, open_pipe: Open, echo: Kind) -> None:
    """A concurrent.futures.Future, waited for."""
    pipe = open_pipe(backend=echo)
    assert benchmark(lambda: pipe.submit({"data": 1}).result()["result"]) == 1


@pytest.mark.benchmark(group="100 awaited calls, one after the other")
def test_acall(benchmark: Any, open_pipe: Open, echo: Kind) -> None:
    """An awaited call, on a loop that has nothing else to do."""
    pipe = open_pipe(backend=echo)
    with asyncio.Runner() as runner:

        async def hundred() -> None:
            for _ in range(100):
                await pipe.acall({"data": 1})

        benchmark(lambda: runner.run(hundred()))


@pytest.mark.benchmark(group="graphs, one caller")
def test_chain_of_three(benchmark: Any, open_pipe: Open, echo: Kind) -> None:
    """Three nodes in a row."""
    node = {"backend": echo}
    assert benchmark(ask, open_pipe({"a": {**node, "next": "b"}, "b": {**node, "next": "c"}, "c": node})) == 1


@pytest.mark.benchmark(group="graphs, one caller")
def test_chain_of_ten(benchmark: Any, open_pipe: Open, echo: Kind) -> None:
    """Ten nodes in a row: with the chain of three, what a node costs."""
    nodes = {f"n{index}": {"backend": echo, "next": f"n{index + 1}"} for index in range(9)}
    assert benchmark(ask, open_pipe({**nodes, "n9": {"backend": echo}})) == 1


@pytest.mark.benchmark(group="graphs, one caller")
def test_diamond(benchmark: Any, open_pipe: Open, echo: Kind) -> None:
    """A fan-out to two nodes, and a join."""
    node = {"backend": echo}
    join = {**node, "map": "b[result:data],c[result:other]"}
    graph = {"a": {**node, "next": "b,c"}, "b": {**node, "next": "d"}, "c": {**node, "next": "d"}, "d": join}
    assert benchmark(ask, open_pipe(graph)) == 1


@pytest.mark.benchmark(group=f"{BATCH} requests in one batch")
def test_batch_forming(benchmark: Any, open_pipe: Open, echo_of_many: Kind) -> None:
    """Requests sent together are queued, made a batch of, run and answered."""
    pipe = open_pipe(backend=echo_of_many)

    def call() -> Any:
        requests = [{"data": number} for number in range(BATCH)]
        pipe(requests)
        return requests[-1]["result"]

    benchmark.extra_info["requests"] = BATCH
    assert benchmark(call) == BATCH - 1


@pytest.mark.benchmark(group=f"{BATCH} requests in one batch")
def test_map(benchmark: Any, open_pipe: Open, echo_of_many: Kind) -> None:
    """The same by ``Pipe.map``, which yields them in order."""
    pipe = open_pipe(backend=echo_of_many)
    benchmark.extra_info["requests"] = BATCH
    answers = benchmark(lambda: list(pipe.map([{"data": number} for number in range(BATCH)])))
    assert [request["result"] for request in answers] == list(range(BATCH))


@pytest.mark.benchmark(group=f"{BATCH} requests in one batch")
def test_batch_without_a_pipe(benchmark: Any, echo_of_many: Kind) -> None:
    """The backend called directly with a batch."""
    backend = echo_of_many()
    benchmark.extra_info["requests"] = BATCH
    benchmark(lambda: backend.forward([{"data": number} for number in range(BATCH)]))


@pytest.mark.benchmark(group="building")
def test_building_and_closing_a_pipe(benchmark: Any, echo: Kind) -> None:
    """Check a configuration, start a thread for each of four instances, end them."""

    def build() -> None:
        Pipe(backend=echo, instance_num=4).close()

    benchmark(build)
