"""Who calls a pipe in the scripts of this folder, each until its window is over, and their common command line."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastpipe

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import Numbers, Window, closed_loop

__all__ = ["CLIENTS", "WAYS", "arguments_of", "counted", "of_lists", "of_map", "of_tasks", "of_threads", "write"]

CLIENTS = 64

Data = Callable[[], Any]
"""Returns the data of the next request; called by many threads at once."""


def of_threads(pipe: fastpipe.Pipe, data: Data, clients: int, window: Window) -> Numbers:
    """Single requests from threads."""
    return closed_loop(lambda _: lambda: pipe({"data": data()}), clients, window)


def of_lists(pipe: fastpipe.Pipe, data: Data, size: int, window: Window, threads: int = 4) -> Numbers:
    """Threads with lists of so many; the times are those of a list."""
    numbers = closed_loop(lambda _: lambda: pipe([{"data": data()} for _ in range(size)]), threads, window)
    numbers["requests_per_s"] *= size
    return numbers


def of_map(pipe: fastpipe.Pipe, data: Data, clients: int, window: Window, threads: int = 1) -> Numbers:
    """Threads with one endless ``map`` each."""

    def client(number: int) -> Callable[[], Any]:
        return pipe.map({"data": data()} for _ in itertools.count()).__next__

    return {"requests_per_s": closed_loop(client, threads, window)["requests_per_s"]}


def of_tasks(pipe: fastpipe.Pipe, data: Data, tasks: int, window: Window) -> Numbers:
    """Single requests from tasks of one event loop."""
    count = 0

    async def task() -> None:
        nonlocal count
        while True:
            await pipe.acall({"data": data()})
            count += 1

    async def main() -> Numbers:
        asking = [asyncio.create_task(task()) for _ in range(tasks)]
        await asyncio.sleep(window.warm_up_s)
        before, start_s = count, time.perf_counter()
        await asyncio.sleep(window.measured_s)
        rate = (count - before) / (time.perf_counter() - start_s)
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        return {"requests_per_s": rate}

    return asyncio.run(main())


WAYS: dict[str, Callable[[fastpipe.Pipe, Data, int, Window], Numbers]] = {
    f"{CLIENTS} threads": of_threads,
    f"{2 * CLIENTS} tasks of asyncio": lambda pipe, data, clients, window: of_tasks(pipe, data, 2 * clients, window),
    "map": of_map,
    f"4 threads with lists of {CLIENTS}": of_lists,
}


def counted(step: Callable[[], Any], window: Window, each: int = 1) -> Numbers:
    """Return how often a step is done in a second, times ``each``."""
    numbers = closed_loop(lambda _: step, 1, window)
    return {"requests_per_s": numbers["requests_per_s"] * each}


def arguments_of(description: str | None, **more: dict[str, Any]) -> argparse.Namespace:
    """Return what the command line says: ``--quick``, ``--images``, ``--json``, and what ``more`` names."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short windows: shows that it runs")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="take these images, not scikit-image's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the numbers")
    for name, options in more.items():
        parser.add_argument(f"--{name}", **options)
    return parser.parse_args()


def write(numbers: Any, arguments: argparse.Namespace, name: str) -> None:
    """Write the numbers to the file that ``--json`` names, or into the folder that the variable OUT does."""
    file = arguments.json or (Path(os.environ["OUT"], f"{name}.json") if os.environ.get("OUT") else None)
    if file is not None:
        file.write_text(json.dumps(numbers, indent=1))
