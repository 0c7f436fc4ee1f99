"""How much longer do requests take while a node of their pipe is swapped, and does any of them fail?

    python bench/swap.py [--quick] [--model FILE.onnx --shape 3x224x224] [--clients 64]

Clients call in a closed loop all the time. In each round the node is left alone for as long as a swap takes, and is
swapped; the two take turns to be first. A request belongs to the window in which it was sent. Without a model, a
batch sleeps for 5 ms and building an instance for 0.3 s, as if both were a device's work. With one, it is
``OnnxTensor``, on the CPUs on which the clients run as well, and building it takes what loading and warming up take.

Every answer is checked: it is that of one version, and once a swap has returned, that of the new one.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import Spread, summary_of

import fastpipe

FORWARD_S = 0.005
BUILD_S = 0.3


class Model(fastpipe.Backend):
    """Answers with its version, after a while."""

    max_batch = 32

    def __init__(self, *, version: int = 0) -> None:
        time.sleep(BUILD_S)
        self.version = version

    def forward(self, batch: list[fastpipe.Request]) -> None:
        time.sleep(FORWARD_S)
        for request in batch:
            request["result"] = (self.version, request["data"])


@dataclass
class Load:
    """Clients that call as fast as they get answers, and what came of it."""

    pipe: fastpipe.Pipe
    data: Any
    """None: a number that differs from request to request."""
    newest: int = 0
    """The version that serves for certain."""
    calls: list[tuple[int, int]] = field(default_factory=list)
    """When each began, and when it ended, in nanoseconds."""
    failures: list[BaseException] = field(default_factory=list)
    ends: bool = False

    def client(self, number: int) -> None:
        """Call until the end; the body of a thread."""
        count = 0
        while not self.ends:
            count += 1
            least = self.newest
            data = (number, count) if self.data is None else self.data
            began_ns = time.perf_counter_ns()
            try:
                result = self.pipe({"data": data})["result"]
            except Exception as error:
                self.failures.append(error)
                continue
            self.calls.append((began_ns, time.perf_counter_ns()))  # list.append is atomic
            if self.data is None and not (result[1] == data and least <= result[0] <= self.newest + 1):
                self.failures.append(ValueError(f"{data} got {result}, while {least} served"))

    def window(self, seconds: float | None) -> tuple[float, float]:
        """Swap the node, or let ``seconds`` pass; return how long it was, and the p99 of what was sent in it, in ms."""
        began_ns = time.perf_counter_ns()
        if seconds is None:
            self.pipe.swap("main", {"version": self.newest + 1} if self.data is None else {})
            self.newest += 1
        else:
            time.sleep(seconds)
        ended_ns = time.perf_counter_ns()
        time.sleep(0.5)  # what was sent last has ended
        if self.failures:
            raise self.failures[0]
        latencies = [ended - began for began, ended in self.calls.copy() if began_ns <= began < ended_ns]
        took_s = (ended_ns - began_ns) / 1e9
        return took_s, summary_of(latencies, took_s, 0.0)["p99_us"] / 1e3


def measure(load: Load, clients: int, rounds: int) -> dict[str, list[float]]:
    """Return the p99 of all windows, in ms, and how long the swaps took, in s."""
    found: dict[str, list[float]] = {"before_ms": [], "during_ms": [], "swap_s": []}
    threads = [threading.Thread(target=load.client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(1.0)
        took_s, _ = load.window(None)  # a warm-up, and how long it takes
        for number in range(rounds):
            for is_swap in (False, True) if number % 2 else (True, False):
                length_s, p99_ms = load.window(None if is_swap else took_s)
                found["during_ms" if is_swap else "before_ms"].append(p99_ms)
                if is_swap:
                    took_s = length_s
                    found["swap_s"].append(took_s)
    finally:
        load.ends = True
        for thread in threads:
            thread.join()
    return found


def in_words(spread: Spread, unit: str) -> str:
    """Return the median, with the least and the greatest."""
    return f"{spread.median:.2f} {unit} ({spread.least:.2f} to {spread.greatest:.2f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status; a request that fails ends it at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds: to see that it runs")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--instances", type=int, default=2)
    parser.add_argument("--model", type=Path, help="an ONNX model with one float input")
    parser.add_argument("--shape", default="3x224x224", help="of a request's input for the model")
    options = parser.parse_args(arguments)
    rounds = 2 if options.quick else options.rounds
    keys: dict[str, Any] = {"backend": Model, "instance_num": options.instances}
    data = None
    if options.model is not None:
        import numpy as np

        data = np.ones([int(size) for size in options.shape.split("x")], np.float32)
        keys |= {"backend": "OnnxTensor", "model": str(options.model), "max": 8}
    with fastpipe.Pipe(keys) as pipe:
        load = Load(pipe, data)
        found = measure(load, options.clients, rounds)
        requests = pipe.stats()["requests"]
    ratio = Spread.of_ratio(found["during_ms"], found["before_ms"])
    print(
        f"{options.clients} clients, {rounds} swaps of {options.instances} instances, {requests['done']} requests done"
    )
    print(f"failed or wrong     {len(load.failures)}")
    print(f"a swap takes        {in_words(Spread.of(found['swap_s']), 's')}")
    print(f"p99 beside a swap   {in_words(Spread.of(found['before_ms']), 'ms')}")
    print(f"p99 during a swap   {in_words(Spread.of(found['during_ms']), 'ms')}")
    print(f"ratio               {in_words(ratio, 'x')}, goal: at most 1.5")
    print(json.dumps({**found, "failures": len(load.failures), "requests": requests}))
    return 1 if load.failures else 0


if __name__ == "__main__":
    sys.exit(main())
