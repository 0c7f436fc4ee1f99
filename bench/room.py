"""What does it cost to wait for room, and is everybody let in as often? Beside the same pipe without a limit.

    python bench/room.py            # a table
    python bench/room.py --quick    # the same with fewer requests: shows that it runs

Each figure is the median of several turns, with the least and the greatest; "of no limit" compares medians. Shares: how
many requests the luckiest of 64 closed-loop threads had for each of the least lucky. "queued": what a request of mixed
priorities costs where so many wait already.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import fastpipe

__all__: list[str] = []

LIMITS: dict[str, dict[str, int]] = {
    "no limit": {},
    "max_queue 8": {"max_queue": 8},
    "max_in_flight 8": {"max_in_flight": 8},
    "max_queue 2": {"max_queue": 2},
}


def coroutines(keys: dict[str, int], count: int) -> float:
    """Return how long so many coroutines take that all come at once, in microseconds each."""

    async def main(pipe: fastpipe.Pipe) -> float:
        began_s = time.perf_counter()
        answers = await asyncio.gather(*[pipe.acall({"data": number}) for number in range(count)])
        lasted_s = time.perf_counter() - began_s
        if [answer["result"] for answer in answers] != list(range(count)):
            raise RuntimeError("somebody got another's answer")
        return lasted_s / count * 1e6

    with fastpipe.Pipe(backend="Identity", **keys) as pipe:
        return asyncio.run(main(pipe))


def threads(keys: dict[str, int], count: int, each: int) -> float:
    """Return how long so many threads take for some requests each, in microseconds a request."""
    start = threading.Barrier(count + 1)

    def client() -> None:
        start.wait()
        for number in range(each):
            if pipe({"data": number})["result"] != number:
                raise RuntimeError("somebody got another's answer")

    with fastpipe.Pipe(backend="Identity", **keys) as pipe:
        clients = [threading.Thread(target=client) for _ in range(count)]
        for thread in clients:
            thread.start()
        start.wait()
        began_s = time.perf_counter()
        for thread in clients:
            thread.join()
        return (time.perf_counter() - began_s) / count / each * 1e6


def shares(keys: dict[str, int], seconds: float) -> float:
    """Return the greatest number of requests that one of 64 threads had, over the least; the backend takes 0.5 ms."""

    class Sleeps(fastpipe.Backend):
        def forward(self, batch: list[fastpipe.Request]) -> None:
            time.sleep(0.0005)
            for request in batch:
                request["result"] = request["data"]

    counts = [0] * 64
    is_over = threading.Event()

    def client(index: int) -> None:
        while not is_over.is_set():
            pipe({"data": index})
            counts[index] += 1

    with fastpipe.Pipe(backend=Sleeps, **keys) as pipe:
        clients = [threading.Thread(target=client, args=(index,)) for index in range(64)]
        for thread in clients:
            thread.start()
        is_over.wait(seconds / 4)
        before = list(counts)
        is_over.wait(seconds)
        after = list(counts)
        is_over.set()
        for thread in clients:
            thread.join()
    had = [later - earlier for earlier, later in zip(before, after, strict=True)]
    return max(had) / max(min(had), 1)


def queued(count: int, priorities: tuple[float, ...]) -> float:
    """Return how many microseconds a request takes that is put into a queue in which up to ``count`` wait."""
    chance = random.Random(1)
    inside, opened = threading.Event(), threading.Event()

    def hold(data: Any) -> Any:
        inside.set()
        opened.wait()
        return data

    with fastpipe.Pipe(backend=hold) as pipe:
        futures = [pipe.submit({"data": 0})]
        inside.wait()
        chosen = [chance.choice(priorities) for _ in range(count)]
        began_s = time.perf_counter()
        futures += [pipe.submit({"data": 1}, priority=priority) for priority in chosen]
        opened.set()
        for future in futures:
            future.result()
        return (time.perf_counter() - began_s) / count * 1e6


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    arguments.add_argument("--quick", action="store_true", help="fewer requests")
    is_quick = arguments.parse_args().quick
    turns, scale = (1, 10) if is_quick else (5, 1)

    def measure(name: str, of: Callable[[dict[str, int]], float], unit: str, *, compares: bool = True) -> None:
        found = {limit: [] for limit in LIMITS}  # type: dict[str, list[float]]
        for _ in range(turns):
            for limit, keys in LIMITS.items():
                found[limit].append(of(keys))
        base = statistics.median(found["no limit"])
        for limit, values in found.items():
            middle = statistics.median(values)
            ratio = f"{middle / base:6.2f} of no limit" if compares else ""
            print(f"{name:28} {limit:16} {middle:8.2f} {unit:12} ({min(values):.2f} to {max(values):.2f})  {ratio}")

    measure("4,000 coroutines at once", lambda keys: coroutines(keys, 4_000 // scale), "us a request")
    measure("500 threads", lambda keys: threads(keys, 500 // scale, 20), "us a request")
    measure("shares of 64 threads", lambda keys: shares(keys, 4.0 / scale), "x", compares=False)
    for count in (1_000 // scale, 32_000 // scale):
        for words, priorities in (("one priority", (0.0,)), ("mixed priorities", (0.0, -1.0, 1.0, 2.0, 5.0))):
            values = [queued(count, priorities) for _ in range(turns)]
            middle, least, most = statistics.median(values), min(values), max(values)
            print(f"{f'{count:,} queued':28} {words:16} {middle:8.2f} us a request ({least:.2f} to {most:.2f})")


if __name__ == "__main__":
    main()
