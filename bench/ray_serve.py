"""What does a pipe cost in a replica of Ray Serve, beside a deployment that does the same in Python?

One Ray node, one replica for each contestant, closed-loop callers on one event loop, windows that take turns. First an
echo: a plain class, a pipe by Serve's handle, and a pipe by ``RemotePipe``. Then a model that sleeps 20 ms for a batch
of up to 16: ``@serve.batch`` and a pipe. Needs the extra ``ray``; two minutes.

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

from common import Spread, Window, WrongAnswer

CALLER_COUNT = 32
LARGEST_BATCH = 16
SLEEP_S = 0.02
ROUND_COUNT = 9

Call = Callable[[int], Awaitable[int]]


async def window_of(call: Call, window: Window, caller_count: int) -> float:
    """Return the answers per second of callers that each send the next request when they have the last answer."""
    began = time.perf_counter()
    from_s, until_s = began + window.warm_up_s, began + window.warm_up_s + window.measured_s
    count = 0

    async def caller(number: int) -> None:
        nonlocal count
        data = number
        while (now := time.perf_counter()) < until_s:
            if await call(data) != data:
                raise WrongAnswer(f"asked for {data}")
            count += now >= from_s
            data += caller_count

    await asyncio.gather(*(caller(number) for number in range(caller_count)))
    return count / (time.perf_counter() - from_s)


async def rounds_of(calls: dict[str, Call], window: Window, round_count: int) -> dict[str, list[float]]:
    """Give every contestant one window in each round; each round begins with another one."""
    names = list(calls)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(round_count):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            rates[name].append(await window_of(calls[name], window, CALLER_COUNT))
    return rates


def deployed(largest_batch: int, sleep_s: float) -> dict[str, Any]:
    """Deploy the contestants; return their handles by name."""
    from ray import serve

    from fastpipe.scale.ray import deployment

    class Plain:
        async def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
            return {"result": request["data"]}

    class Batched:
        def __init__(self) -> None:
            self.sizes: list[int] = []

        @serve.batch(max_batch_size=largest_batch, batch_wait_timeout_s=0.002)
        async def __call__(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
            self.sizes.append(len(requests))
            await asyncio.sleep(sleep_s)
            return [{"result": request["data"]} for request in requests]

        async def batches(self) -> list[int]:
            return self.sizes

    def run(name: str, app: Any) -> Any:
        return serve.run(app, name=name, route_prefix=f"/{name}")

    def of_class(kind: type[Any]) -> Any:
        kind.__module__ = "__main__"  # pickled by value
        options = {"max_ongoing_requests": 2 * largest_batch, "ray_actor_options": {"num_cpus": 0.1}}
        return serve.deployment(kind, **options).bind()

    sleeps = {"backend": "Sleep", "Sleep::time": sleep_s * 1e3, "max": largest_batch}
    ongoing = 2 * largest_batch
    return {
        "plain": run("plain", of_class(Plain)),
        "pipe": run("pipe", deployment({"backend": "Identity"}, num_cpus=0.1, max_ongoing_requests=ongoing)),
        "serve.batch": run("batch", of_class(Batched)),
        "pipe, batches": run("sleeps", deployment(sleeps, num_cpus=0.1)),
    }


def calls_of(handles: dict[str, Any]) -> tuple[dict[str, Call], dict[str, Call]]:
    """Return how the contestants are called: those of the echo, those of the batches."""
    from fastpipe.scale.ray import RemotePipe

    def by_handle(handle: Any) -> Call:
        async def call(data: int) -> int:
            answer = await handle.remote({"data": data})
            return int(answer["result"])

        return call

    remote = RemotePipe(handles["pipe"])

    async def by_remote_pipe(data: int) -> int:
        return int((await remote.acall({"data": data}))["result"])

    echo = {
        "plain class": by_handle(handles["plain"]),
        "pipe, handle": by_handle(handles["pipe"]),
        "pipe, RemotePipe": by_remote_pipe,
    }
    batches = {name: by_handle(handles[name]) for name in ("serve.batch", "pipe, batches")}
    return echo, batches


def tell(title: str, rates: dict[str, list[float]], base: str) -> None:
    """Print a table, and a line of JSON for each contestant."""
    print(f"\n{title}: requests/s of {CALLER_COUNT} callers, median (least to greatest); ratio to {base}")
    for name, values in rates.items():
        rate, ratio = Spread.of(values), Spread.of_ratio(values, rates[base])
        print(
            f"  {name:18} {rate.median:8.0f} ({rate.least:.0f} to {rate.greatest:.0f})"
            f"   {ratio.median:.3f} ({ratio.least:.3f} to {ratio.greatest:.3f})"
        )
        print(json.dumps({"case": title, "contestant": name, "requests_per_s": values}))


def measure(handles: dict[str, Any], quick: bool) -> None:
    """Measure both cases and print them."""
    window = Window(0.2, 0.5) if quick else Window(0.5, 2.0)
    round_count = 2 if quick else ROUND_COUNT
    echo, batches = calls_of(handles)
    tell("echo", asyncio.run(rounds_of(echo, window, round_count)), "plain class")
    tell("batches", asyncio.run(rounds_of(batches, window, round_count)), "serve.batch")
    sizes = handles["serve.batch"].batches.remote().result()
    (stats,) = handles["pipe, batches"].broadcast("stats").results()
    own = stats["nodes"]["main"]["batch_sizes"]
    print(
        f"  batches of at most {LARGEST_BATCH}: serve.batch mean {sum(sizes) / len(sizes):.1f}, largest {max(sizes)};"
    )
    print(f"  pipe mean {own['mean']:.1f}, largest {max(own['buckets'])}")


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
