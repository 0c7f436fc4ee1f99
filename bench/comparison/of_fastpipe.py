"""fastpipe, asked.  python of_fastpipe.py [FEATURE ...]"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from http_probes import Peer, crash, ended_by, running, series
from pipe_probes import Forward, Library, interrupted, register
from probes import NO, PARTLY, YES, Cell, at_once, documented, main, probe

import fastpipe

COMMAND = (sys.executable, "-P", "-m", "fastpipe", "serve", "--pipe", "model=fastpipe_service:PIPE")
COMMAND += ("--http", "127.0.0.1:PORT", "--grpc", "none")


class Fastpipe(Library):
    """Pipes are closed when the process ends."""

    def node(self, forward: Forward, max_batch: int, **keys: Any) -> dict[str, Any]:
        class Node(fastpipe.Backend):
            def forward(self, batch: Any) -> None:
                for request, result in zip(batch, forward([request["data"] for request in batch]), strict=True):
                    request["result"] = result

        Node.max_batch = max_batch
        return {"backend": Node, **keys}

    def pipe(self, nodes: dict[str, dict[str, Any]]) -> Callable[[dict[str, Any]], Any]:
        return fastpipe.Pipe(nodes)


register(Fastpipe())


def slow(ran: list[int], seconds: float = 0.4) -> dict[str, Any]:
    """Return the node of a model that takes that long for 0, and no time for other numbers."""

    def forward(numbers: list[int]) -> list[int]:
        ran.extend(numbers)
        time.sleep(seconds if 0 in numbers else 0)
        return numbers

    return Fastpipe().node(forward, 1)


def wait_until_runs(ran: list[int]) -> None:
    """Wait until the model was given something."""
    until_s = time.monotonic() + 30
    while not ran and time.monotonic() < until_s:
        time.sleep(0.01)


@probe("isolation")
def isolation() -> Cell:
    """A backend says which requests failed, and of what."""

    class Model(fastpipe.Backend):
        max_batch = 4
        retry_alone = False

        def forward(self, batch: Any) -> None:
            for request in batch:
                request["result"] = request["data"]
            refused = [request for request in batch if request["data"] == 14]
            raise fastpipe.ItemErrors([(request, ValueError("14 is refused")) for request in refused])

    with fastpipe.Pipe(backend=Model, batching_timeout=100) as pipe:
        requests: list[dict[str, Any]] = [{"data": number} for number in (1, 2, 14, 3)]
        try:
            pipe(requests)
        except ExceptionGroup as group:
            kinds = [type(error).__name__ for error in group.exceptions]
    is_alone = kinds == ["ValueError"] and [request.get("result") for request in requests] == [1, 2, None, 3]
    return Cell(YES if is_alone else NO, f"only it fails ({kinds[0]})")


@probe("loop")
def loop() -> Cell:
    """Doubled until above 1000."""

    def ends(request: dict[str, Any]) -> fastpipe.Status:
        if request["result"] > 1000:
            return fastpipe.Status.Break
        request["data"] = request.pop("result")
        return fastpipe.Status.Run

    library = Fastpipe()
    pipe = library.pipe(
        {
            "double": library.node(lambda numbers: [2 * number for number in numbers], 8, next="check"),
            "check": library.node(lambda numbers: numbers, 8, filter=ends, restart="double"),
        }
    )
    assert library.ask(pipe, 3) == 1536
    return Cell(YES, "described (restart)")


@probe("map_reduce")
def map_reduce() -> Cell:
    """Three callers with three elements each."""
    sizes: list[int] = []

    def squares(numbers: list[int]) -> list[int]:
        sizes.append(len(numbers))
        time.sleep(0.03)
        return [number**2 for number in numbers]

    library = Fastpipe()
    each = {"backend": "MapReduce", "jump": "square"}
    pipe = library.pipe({"each": each, "square": library.node(squares, 9, batching_timeout=100)})
    answers = at_once([lambda first=first: library.ask(pipe, [first, first + 1, first + 2]) for first in (1, 4, 7)])
    assert answers == [[1, 4, 9], [16, 25, 36], [49, 64, 81]], answers
    return Cell(YES, f"described; batches of up to {max(sizes)} of three callers")


@probe("cancellation")
def cancellation() -> Cell:
    """A task is cancelled while its request waits."""
    ran: list[int] = []

    async def leave() -> None:
        with fastpipe.Pipe(model=slow(ran)) as pipe:
            first = asyncio.ensure_future(pipe.acall({"data": 0}))
            await asyncio.to_thread(wait_until_runs, ran)
            gone = asyncio.ensure_future(pipe.acall({"data": 77}))
            await asyncio.sleep(0.05)
            gone.cancel()
            await first

    asyncio.run(leave())
    return Cell(NO, "runs all the same") if 77 in ran else Cell(YES, "never runs")


@probe("deadline")
def deadline() -> Cell:
    """One runs for a second, another waits behind it."""
    ran: list[int] = []
    with fastpipe.Pipe(model=slow(ran, 1.0), request_timeout=0.3) as pipe:

        def ask(number: int) -> str:
            began_s = time.perf_counter()
            error = pipe.submit({"data": number}).exception(20)
            return f"{type(error).__name__} after {time.perf_counter() - began_s:.1f} s"

        runs, waits = at_once([lambda: ask(0), lambda: (wait_until_runs(ran), ask(78))[1]])
    is_run = 78 in ran
    is_kept = str(runs) == str(waits) == "RequestTimeout after 0.3 s" and not is_run
    behind = "run all the same" if is_run else "never run"
    return Cell(YES if is_kept else PARTLY, f"runs: {runs}; waits: {waits}, {behind}")


@probe("overload")
def overload() -> Cell:
    """Twelve at once, with room for four in the pipe."""
    with fastpipe.Pipe(model=slow([], 0.2), max_in_flight=4, when_overloaded="reject") as pipe:
        answers = at_once([lambda: pipe.submit({"data": 0}).result(30)] * 12)
    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    kinds = {type(error).__name__ for error in refused}
    return Cell(YES if refused else NO, f"{12 - len(refused)} answered, {len(refused)} x {', '.join(kinds)}")


@probe("priority")
def priority() -> Cell:
    """Three wait, the last one is urgent."""
    ran: list[int] = []
    with fastpipe.Pipe(model=slow(ran)) as pipe:
        futures = [pipe.submit({"data": 0})]
        wait_until_runs(ran)
        futures += [pipe.submit({"data": number}, priority=-10 if number == 5 else 0) for number in (3, 4, 5)]
        for future in futures:
            future.result(30)
    return Cell(YES if ran == [0, 5, 3, 4] else NO, "any number, ageing; the urgent one runs first")


@probe("streaming")
def streaming() -> Cell:
    """Three parts."""

    class Parts(fastpipe.Streaming):
        def run(self, request: dict[str, Any]) -> Iterator[int]:
            for part in range(3):
                time.sleep(0.2)
                yield part

    came: list[float] = []
    with fastpipe.Pipe(backend=Parts) as pipe:
        began_s = time.perf_counter()
        for _ in pipe.stream({"data": 1}):
            came.append(time.perf_counter() - began_s)
    assert len(came) == 3
    mark = YES if came[0] < 0.45 < came[2] else NO
    return Cell(mark, f"first part after {came[0]:.1f} s, the last after {came[2]:.1f} s")


@probe("state")
def state() -> Cell:
    """Two streams, whose requests meet in batches."""
    sizes: list[int] = []

    class Sums(fastpipe.Backend):
        stateful = True
        max_batch = 8

        def forward(self, batch: Any) -> None:
            sizes.append(len(batch))
            time.sleep(0.03)
            for request in batch:
                request["state"] = request["result"] = (request["state"] or 0) + request["data"]

    with fastpipe.Pipe(backend=Sums, state_of="stream") as pipe:
        futures = {of: [pipe.submit({"data": number, "stream": of}) for number in (1, 2, 3)] for of in "ab"}
        sums = [[future.result(30)["result"] for future in each] for each in futures.values()]
    assert sums == [[1, 3, 6], [1, 3, 6]], sums
    return Cell(YES if max(sizes) > 1 else PARTLY, f"batches of {max(sizes)} streams; the pipe keeps the state")


@probe("swap")
def swap() -> Cell:
    """New instances of the node while requests come."""
    failed: list[BaseException] = []
    count = 0
    is_over = threading.Event()
    with fastpipe.Pipe(model=Fastpipe().node(lambda numbers: (time.sleep(0.005), numbers)[1], 1)) as pipe:

        def ask_on() -> None:
            nonlocal count
            while not is_over.is_set():
                try:
                    pipe({"data": 1})
                    count += 1
                except Exception as error:
                    failed.append(error)

        asking = threading.Thread(target=ask_on)
        asking.start()
        time.sleep(0.1)
        pipe.swap("model")
        time.sleep(0.1)
        is_over.set()
        asking.join()
    return Cell(NO if failed else YES, f"{len(failed)} of {count} fail" if failed else "none fails")


@probe("metrics")
def metrics() -> Cell:
    """What its collector writes."""
    import prometheus_client

    from fastpipe.observe.metrics import PrometheusCollector, generate_latest

    registry = prometheus_client.CollectorRegistry()
    library = Fastpipe()
    pipe = library.pipe({"model": library.node(lambda numbers: numbers, 8)})
    registry.register(PrometheusCollector({"model": pipe}))  # type: ignore[dict-item]
    library.ask(pipe, 1)
    return series(generate_latest(registry).decode())


@probe("timeline")
def timeline() -> Cell:
    """A file that Perfetto reads."""
    library = Fastpipe()
    with tempfile.TemporaryDirectory() as folder, fastpipe.Pipe({"model": library.node(lambda n: n, 8)}) as pipe:
        path = Path(folder, "run.pftrace")
        with pipe.timeline(path):
            for number in range(10):
                pipe({"data": number})
        has_batches = b"model" in path.read_bytes()
    return Cell(YES if has_batches else NO, "a file for Perfetto: batches, queues, threads; OpenTelemetry")


@probe("misspelt")
def misspelt() -> Cell:
    """instance_nun."""
    library = Fastpipe()
    try:
        library.pipe({"model": library.node(lambda numbers: numbers, 4, instance_nun=2)})
    except fastpipe.ConfigError as error:
        hint = "names node and key, and the right one" if "did you mean 'instance_num'" in str(error) else str(error)
        return Cell(YES, f"ConfigError: {hint}")
    return Cell(NO, "is ignored")


PROGRAM = """
import fastpipe, time

@fastpipe.backend
def slow(number):
    time.sleep(2)
    return number

pipe = fastpipe.Pipe(backend=slow)
print("ready", flush=True)
try:
    pipe({"data": 1})
    print("answered", flush=True)
except BaseException as error:
    print(type(error).__name__, flush=True)
"""


# ---- the server --------------------------------------------------------------------------------------------------


def write(number: int) -> bytes:
    """Return a number as a request of the protocol."""
    return json.dumps({"inputs": [{"name": "data", "shape": [1, 1], "datatype": "INT64", "data": [number]}]}).encode()


def read(body: bytes) -> list[int]:
    """Return the first output."""
    return [int(value) for value in json.loads(body)["outputs"][0]["data"]]


PEER = Peer(COMMAND, "/v2/models/model/infer", write, read)


@probe("ctrl_c")
def ctrl_c() -> Cell:
    """In a program that waits for a request, and in the server."""
    in_program, in_server = interrupted(PROGRAM, 2.0), ended_by(PEER, signal.SIGINT)
    mark = YES if in_program.mark == in_server.mark == YES else PARTLY
    return Cell(mark, f"server: {in_server.text}; in a program {in_program.text}")


probe("sigterm")(lambda: ended_by(PEER, signal.SIGTERM))


@probe("crash")
def crashes() -> Cell:
    """A command without workers has nobody to replace it."""
    with running(PEER, max_batch=1) as service:
        alone = crash(service)
    with running(replace(PEER, command=(*COMMAND, "--workers", "2")), max_batch=1) as service:
        workers = crash(service)
    assert alone.mark == NO, alone
    return Cell(PARTLY if workers.mark == YES else NO, f"{alone.text}; with --workers 2: {workers.text}")


@probe("protocol")
def protocol() -> Cell:
    """Health and an inference; its tests ask over gRPC."""
    with running(PEER, max_batch=1) as service:
        status, _ = service.get("/v2/health/ready")
        assert (status, service.ask(5).body[0]) == (200, 5)
    return Cell(YES, "HTTP and gRPC")


documented(NO, "none on the index yet; builds on Linux x86-64 and aarch64", "../README.md#install", "platforms")
documented(PARTLY, "threads share the GIL; --workers N: separate pipes", "serving.md#several-processes", "cores")
documented(PARTLY, "none of its own; inside replicas of Ray Serve", "scaling.md#ray-serve", "machines")
documented(NO, "none", "serving.md", "openai")
documented(YES, "DecodeTensor (nvJPEG); measured on an H200", "gpu/decoding.md", "gpu_decode")

if __name__ == "__main__":
    main("fastpipe-engine")
