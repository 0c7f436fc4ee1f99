"""What does the engine add to a call? Backends that do nothing, one caller; beside it what one would do without."""

from __future__ import annotations

import asyncio
import queue
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fastpipe import Backend, Pipe, Request, Sequential
from fastpipe.snapshots import take

Open = Callable[..., Pipe]

BATCH = 64
STEPS = 5
LIMITS = [{}, {"max_queue": 8}, {"max_in_flight": 8}, {"max_queue": 2}]


class Echo(Backend):
    """The result is the data."""

    max_batch = 1

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = request["data"]


class EchoOnItsOwnThread(Echo):
    """The same, on a thread of its own: every call is handed over."""

    thread_bound = True


class EchoOfMany(Echo):
    """The same for up to 64 requests at once."""

    max_batch = BATCH


def ask(pipe: Pipe) -> Any:
    """Send one request and return its result."""
    request = {"data": 1}
    pipe(request)
    return request["result"]


def chain(count: int) -> dict[str, dict[str, Any]]:
    """Return so many nodes in a row."""
    nodes: dict[str, dict[str, Any]] = {f"n{index}": {"backend": Echo} for index in range(count)}
    for index in range(count - 1):
        nodes[f"n{index}"]["next"] = f"n{index + 1}"
    return nodes


@pytest.mark.benchmark(group="one call")
def test_echo(benchmark: Any, open_pipe: Open) -> None:
    """One node, whose instance is free: the caller runs it."""
    assert benchmark(ask, open_pipe(backend=Echo)) == 1


@pytest.mark.benchmark(group="one call")
def test_echo_handed_over(benchmark: Any, open_pipe: Open) -> None:
    """One node that is bound to a thread: there and back."""
    assert benchmark(ask, open_pipe(backend=EchoOnItsOwnThread)) == 1


@pytest.mark.benchmark(group="one call")
def test_echo_without_a_pipe(benchmark: Any) -> None:
    """The backend called directly."""
    backend = Echo()

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
def test_submit(benchmark: Any, open_pipe: Open) -> None:
    """A concurrent.futures.Future, waited for."""
    pipe = open_pipe(backend=Echo)
    assert benchmark(lambda: pipe.submit({"data": 1}).result()["result"]) == 1


@pytest.mark.benchmark(group="100 awaited calls, one after the other")
def test_acall(benchmark: Any, open_pipe: Open) -> None:
    """An awaited call, on a loop that has nothing else to do."""
    pipe = open_pipe(backend=Echo)
    with asyncio.Runner() as runner:

        async def hundred() -> None:
            for _ in range(100):
                await pipe.acall({"data": 1})

        benchmark(lambda: runner.run(hundred()))


@pytest.mark.benchmark(group="graphs, one caller")
@pytest.mark.parametrize("count", [3, 10])
def test_chain(benchmark: Any, open_pipe: Open, count: int) -> None:
    """Nodes in a row: the difference says what a node costs."""
    assert benchmark(ask, open_pipe(chain(count))) == 1


@pytest.mark.benchmark(group="graphs, one caller")
def test_diamond(benchmark: Any, open_pipe: Open) -> None:
    """A fan-out to two nodes, and a join."""
    node = {"backend": Echo}
    join = {**node, "map": "b[result:data],c[result:other]"}
    graph = {"a": {**node, "next": "b,c"}, "b": {**node, "next": "d"}, "c": {**node, "next": "d"}, "d": join}
    assert benchmark(ask, open_pipe(graph)) == 1


@pytest.mark.benchmark(group=f"{BATCH} requests in one batch")
def test_batch_forming(benchmark: Any, open_pipe: Open) -> None:
    """Requests sent together are queued, made a batch of, run and answered."""
    pipe = open_pipe(backend=EchoOfMany)

    def call() -> Any:
        requests = [{"data": number} for number in range(BATCH)]
        pipe(requests)
        return requests[-1]["result"]

    benchmark.extra_info["requests"] = BATCH
    assert benchmark(call) == BATCH - 1


@pytest.mark.benchmark(group=f"{BATCH} requests in one batch")
def test_map(benchmark: Any, open_pipe: Open) -> None:
    """The same by ``Pipe.map``, which yields them in order."""
    pipe = open_pipe(backend=EchoOfMany)
    benchmark.extra_info["requests"] = BATCH
    answers = benchmark(lambda: list(pipe.map([{"data": number} for number in range(BATCH)])))
    assert [request["result"] for request in answers] == list(range(BATCH))


@pytest.mark.benchmark(group=f"{BATCH} requests in one batch")
def test_batch_without_a_pipe(benchmark: Any) -> None:
    """The backend called directly with a batch."""
    backend = EchoOfMany()
    benchmark.extra_info["requests"] = BATCH
    benchmark(lambda: backend.forward([{"data": number} for number in range(BATCH)]))


@pytest.mark.benchmark(group=f"{STEPS} steps, one request")
def test_steps_of_a_sequential(benchmark: Any, open_pipe: Open) -> None:
    """One node that is a Sequential."""
    assert benchmark(ask, open_pipe(backend=Sequential(*[Echo] * STEPS))) == 1


@pytest.mark.benchmark(group=f"{STEPS} steps, one request")
def test_steps_as_nodes(benchmark: Any, open_pipe: Open) -> None:
    """A chain of nodes."""
    assert benchmark(ask, open_pipe(chain(STEPS))) == 1


@pytest.mark.benchmark(group=f"{STEPS} steps, one request")
def test_steps_as_plain_calls(benchmark: Any) -> None:
    """The backends called one after the other, by hand."""
    backends = [Echo() for _ in range(STEPS)]

    def call() -> Any:
        request: dict[str, Any] = {"data": 1}
        for number, backend in enumerate(backends):
            if number:
                request["data"] = request.pop("result")
            backend.forward([request])
        return request["result"]

    assert benchmark(call) == 1


@pytest.mark.benchmark(group="1,000 awaited calls at once")
@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_coroutines_that_wait_for_room(benchmark: Any, open_pipe: Open, limit: dict[str, int]) -> None:
    """They wait in one line, however long it is."""
    pipe = open_pipe(backend=Echo, **limit)

    async def thousand() -> None:
        await asyncio.gather(*[pipe.acall({"data": number}) for number in range(1000)])

    with asyncio.Runner() as runner:
        benchmark(lambda: runner.run(thousand()))


@pytest.mark.benchmark(group="5,000 calls of 500 threads")
@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_threads_that_wait_for_room(benchmark: Any, open_pipe: Open, limit: dict[str, int]) -> None:
    """The same for threads that block."""
    pipe = open_pipe(backend=Echo, **limit)
    with ThreadPoolExecutor(500) as executor:
        answers = benchmark(lambda: list(executor.map(lambda number: pipe({"data": number}), range(5000))))
    assert [answer["result"] for answer in answers] == list(range(5000))


@pytest.mark.benchmark(group="requests that are put into a long queue, and answered")
@pytest.mark.parametrize("count", [1_000, 16_000])
@pytest.mark.parametrize("priorities", [[0.0], [0.0, -1.0, 1.0, 2.0, 5.0]], ids=["one priority", "mixed priorities"])
def test_a_long_queue(benchmark: Any, open_pipe: Open, count: int, priorities: list[float]) -> None:
    """What a request costs where so many wait does not depend on how many."""
    is_open = threading.Event()
    pipe = open_pipe(backend=lambda data: is_open.wait())
    chosen = random.Random(1).choices(priorities, k=count)

    def call() -> None:
        is_open.clear()
        futures = [pipe.submit({"data": 1}, priority=priority) for priority in chosen]
        is_open.set()
        for future in futures:
            future.result()

    benchmark.extra_info["requests"] = count
    benchmark(call)


@pytest.mark.benchmark(group=f"copies of {BATCH} requests, with which a batch can run again")
@pytest.mark.parametrize(
    "values", ["100 kB", "224 x 224 x 3", "640 x 640 x 3", "1,000 numbers", "images, copied by hand", "keeps_input"]
)
def test_copies_before_a_batch_runs(benchmark: Any, values: str) -> None:
    """What they are made of counts, and not at all where a backend keeps its input: only dicts are copied then."""
    np = pytest.importorskip("numpy")
    side = 640 if values == "640 x 640 x 3" else 224
    made = {"100 kB": lambda: bytes(100_000), "1,000 numbers": lambda: [float(number) for number in range(1000)]}
    batch = [{"data": made.get(values, lambda: np.ones((side, side, 3), np.uint8))()} for _ in range(BATCH)]
    ways: dict[str, Callable[[], Any]] = {
        "images, copied by hand": lambda: [request["data"].copy() for request in batch],
        "keeps_input": lambda: [request.copy() for request in batch],
    }
    benchmark(ways.get(values, lambda: take(batch)))


@pytest.mark.benchmark(group="building")
def test_building_and_closing_a_pipe(benchmark: Any) -> None:
    """Check a configuration, start a thread for each of four instances, end them."""

    def build() -> None:
        Pipe(backend=Echo, instance_num=4).close()

    benchmark(build)
