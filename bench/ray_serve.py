"""What does a pipe cost in a replica of Ray Serve, beside a deployment that does the same in Python?

One Ray node, one replica for each contestant, closed-loop callers on one event loop, windows that take turns. First an
echo: a plain class, a pipe by Serve's handle, and a pipe by ``RemotePipe``. Then a model that sleeps 20 ms for a batch
of up to 16: ``@serve.batch`` and a pipe. Beside requests/s it prints CPU time per request, of the replica and of the
callers' process, which other work on the machine changes less. Needs the extra ``ray``; two minutes.

    python bench/ray_serve.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import platform
import time
from collections.abc import Awaitable, Callable
from typing import Any

from common import Numbers, Spread, Window, WrongAnswer

CALLER_COUNT = 32
LARGEST_BATCH = 16
SLEEP_S = 0.02
ROUND_COUNT = 9

Call = Callable[[int], Awaitable[int]]
Cpu = Callable[[], Awaitable[float]]
Contestants = dict[str, tuple[Call, Cpu]]
"""By name: how it is called, and the CPU time of its replica in seconds."""
Figures = dict[str, list[Numbers]]


async def window_of(call: Call, cpu: Cpu, window: Window, caller_count: int) -> Numbers:
    """Measure callers that each send the next request when they have the last answer."""

    async def load(seconds: float) -> int:
        until_s = time.perf_counter() + seconds
        count = 0

        async def caller(data: int) -> None:
            nonlocal count
            while time.perf_counter() < until_s:
                if await call(data) != data:
                    raise WrongAnswer(f"asked for {data}")
                data += caller_count
                count += 1

        await asyncio.gather(*(caller(number) for number in range(caller_count)))
        return count

    await load(window.warm_up_s)
    replica_s, own_s, began = await cpu(), time.process_time(), time.perf_counter()
    count = await load(window.measured_s)
    elapsed_s = time.perf_counter() - began
    own_ms, replica_ms = (time.process_time() - own_s) * 1e3, (await cpu() - replica_s) * 1e3
    return {"per_s": count / elapsed_s, "replica_ms": replica_ms / count, "callers_ms": own_ms / count}


async def rounds_of(contestants: Contestants, window: Window, round_count: int) -> Figures:
    """Give every contestant one window in each round; each round begins with another one."""
    names = list(contestants)
    figures: Figures = {name: [] for name in names}
    for number in range(round_count):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            figures[name].append(await window_of(*contestants[name], window, CALLER_COUNT))
    return figures


def deployed(largest_batch: int, sleep_s: float) -> dict[str, Any]:
    """Deploy the contestants; return their handles by name."""
    from ray import serve

    from fastpipe.scale.ray import Replica, deployment

    class Plain:
        async def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
            return {"result": request["data"]}

        async def cpu_s(self) -> float:
            return time.process_time()

    class Batched:
        def __init__(self) -> None:
            self.sizes: list[int] = []

        @serve.batch(max_batch_size=largest_batch, batch_wait_timeout_s=0.02)
        async def __call__(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
            self.sizes.append(len(requests))
            await asyncio.sleep(sleep_s)
            return [{"result": request["data"]} for request in requests]

        async def batches(self) -> list[int]:
            return self.sizes

        async def cpu_s(self) -> float:
            return time.process_time()

    class Measured(Replica):
        async def cpu_s(self) -> float:
            return time.process_time()

    def run(name: str, app: Any) -> Any:
        return serve.run(app, name=name, route_prefix=f"/{name}")

    ongoing = 2 * largest_batch

    def of_class(kind: type[Any]) -> Any:
        options = {"max_ongoing_requests": ongoing, "ray_actor_options": {"num_cpus": 0.1}}
        return serve.deployment(kind, **options).bind()

    def of_pipe(source: dict[str, Any]) -> Any:
        return deployment(source, num_cpus=0.1, max_ongoing_requests=ongoing, replica=Measured)

    sleeps = {"backend": "Sleep", "Sleep::time": sleep_s * 1e3, "max": largest_batch}
    return {
        "plain": run("plain", of_class(Plain)),
        "pipe": run("pipe", of_pipe({"backend": "Identity"})),
        "serve.batch": run("batch", of_class(Batched)),
        "pipe, batches": run("sleeps", of_pipe(sleeps)),
    }


def contestants_of(handles: dict[str, Any]) -> tuple[Contestants, Contestants]:
    """Return how the contestants are called: those of the echo, those of the batches."""
    from fastpipe.scale.ray import RemotePipe

    def by_handle(name: str) -> tuple[Call, Cpu]:
        handle = handles[name]

        async def call(data: int) -> int:
            answer = await handle.remote({"data": data})
            return int(answer["result"])

        async def cpu() -> float:
            return float(await handle.cpu_s.remote())

        return call, cpu

    remote = RemotePipe(handles["pipe"])

    async def by_remote_pipe(data: int) -> int:
        return int((await remote.acall({"data": data}))["result"])

    echo = {
        "plain class": by_handle("plain"),
        "pipe, handle": by_handle("pipe"),
        "pipe, RemotePipe": (by_remote_pipe, by_handle("pipe")[1]),
    }
    return echo, {name: by_handle(name) for name in ("serve.batch", "pipe, batches")}


def tell(title: str, figures: Figures, base: str) -> None:
    """Print a table, and a line of JSON for each contestant."""
    print(f"\n{title}: {CALLER_COUNT} callers; median (least to greatest), and ratio to {base}")
    for name, windows in figures.items():
        for figure, unit in (
            ("per_s", "requests/s"),
            ("replica_ms", "ms CPU replica"),
            ("callers_ms", "ms CPU callers"),
        ):
            values, others = ([each[figure] for each in figures[which]] for which in (name, base))
            spread, ratio = Spread.of(values), Spread.of_ratio(values, others)
            print(
                f"  {name:17} {spread.median:8.2f} ({spread.least:.2f} to {spread.greatest:.2f}) {unit:15}"
                f" {ratio.median:.3f} ({ratio.least:.3f} to {ratio.greatest:.3f})"
            )
        print(json.dumps({"case": title, "contestant": name, "windows": windows}))


def measure(handles: dict[str, Any], quick: bool) -> None:
    """Measure both cases and print them."""
    window = Window(0.2, 0.5) if quick else Window(0.5, 2.0)
    round_count = 2 if quick else ROUND_COUNT
    echo, batches = contestants_of(handles)
    tell("echo", asyncio.run(rounds_of(echo, window, round_count)), "plain class")
    tell("batches", asyncio.run(rounds_of(batches, window, round_count)), "serve.batch")
    sizes = handles["serve.batch"].batches.remote().result()
    (stats,) = handles["pipe, batches"].broadcast("stats").results()
    own = stats["nodes"]["main"]["batch_sizes"]
    print(
        f"  batches of at most {LARGEST_BATCH}: serve.batch mean {sum(sizes) / len(sizes):.1f}, largest {max(sizes)};"
    )
    print(f"  pipe mean {own['mean']:.1f}, largest {max(own['buckets']):.0f}")


def main() -> None:
    """Start a Ray node, measure, and end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    quick = parser.parse_args().quick
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    ray.init(num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
    print(f"ray {ray.__version__}, CPython {platform.python_version()}, {os.cpu_count()} CPUs")
    try:
        serve.start(proxy_location="Disabled")
        measure(deployed(LARGEST_BATCH, SLEEP_S), quick)
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
