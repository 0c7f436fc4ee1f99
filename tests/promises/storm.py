"""Requests under storms of SIGINT, of cancelling and of allocations that fail, and an exact account of them all.

    python tests/promises/storm.py --requests 2000000      an hour or less, in processes of 100,000 requests each
    python tests/promises/storm.py                         200,000

Each process has one pipe and clients of every kind. The main thread is hit by Ctrl-C some hundred times a second,
wherever it is; tasks and futures are cancelled at random; and in every second process one allocation fails now and
then, in whichever thread comes along (`_testcapi.set_nomemory`). What a client knows of a request is one byte, set
before the call to "unknown" and afterwards to what came of it, which allocates nothing. Then, once the pipe is closed:

- every future is done, none is pending, and the process ends;
- accepted = done + failed + cancelled, and nothing is in flight;
- the clients' sums are the pipe's, up to those whose outcome an exception kept from its client;
- every answer is its own request's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

UNSENT, UNKNOWN, DONE, FAILED, CANCELLED = range(5)
REQUESTS_PER_PROCESS = 100_000
PROCESS_ENDS_WITHIN_S = 900


def mixed(number: int) -> int:
    """What a request with this number is answered with."""
    return (number * 2654435761) % 4294967291


def main() -> int:
    """Run processes until so many requests were sent; 0 if every account was exact."""
    parser = argparse.ArgumentParser(description="Count requests under storms of signals and failing allocations.")
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--process", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process is not None:
        sys.stdout.write(json.dumps(one_process(options.requests, options.seed, options.process == "memory")) + "\n")
        return 0
    total = dict.fromkeys(("sent", "done", "failed", "cancelled", "unknown", "interrupts", "failed allocations"), 0)
    kinds = ["signals", "memory"] if can_fail_allocations() else ["signals"]
    number = 0
    while total["sent"] < options.requests:
        kind = kinds[number % len(kinds)]
        # Each way of calling gets its share: of very few, none would get any.
        count = min(REQUESTS_PER_PROCESS, max(options.requests - total["sent"], 1000))
        seed = options.seed + number
        number += 1
        command = [sys.executable, __file__, "--requests", str(count), "--seed", str(seed), "--process", kind]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=PROCESS_ENDS_WITHIN_S, check=False)
        except subprocess.TimeoutExpired as error:
            sys.stdout.write(f"{kind}, seed {seed}: it did not end\n{error.stderr!r}\n")
            return 1
        if ran.returncode:
            sys.stdout.write(f"{kind}, seed {seed}: exit status {ran.returncode}\n{ran.stdout}{ran.stderr[-6000:]}\n")
            return 1
        account = json.loads(ran.stdout.splitlines()[-1])
        for key in total:
            total[key] += account[key]
        sys.stdout.write(f"{kind}, seed {seed}: {account}\n")
        sys.stdout.flush()
    sys.stdout.write(f"exact: {total}\n")
    return 0


def can_fail_allocations() -> bool:
    try:
        import _testcapi
    except ImportError:
        return False
    return hasattr(_testcapi, "set_nomemory")


# ---- one process -------------------------------------------------------------------------------------------------


class Storm:
    """Clients of one pipe, and what they know."""

    def __init__(self, pipe: Any, count: int, seed: int, request_failed: type[Exception]) -> None:
        self.pipe = pipe
        self.count = count
        self.known = bytearray(count)
        self.requests: list[dict[str, Any]] = [{"data": number} for number in range(count)]
        self.futures: list[Any] = [None] * count
        self.random = random.Random(seed)
        # Made beforehand: the loops below take them without allocating anything.
        self.numbers = list(range(count))
        self.cancels = [self.random.random() < 0.3 for _ in range(count)]
        self.interrupts = 0
        # What the engine says of a request for whose own work there was no memory.
        self.request_failed: type[Exception] = request_failed

    def call(self, number: int) -> None:
        self.known[number] = UNKNOWN
        self.pipe(self.requests[number])
        self.known[number] = DONE

    def submit(self, number: int) -> None:
        self.known[number] = UNKNOWN
        future = self.pipe.submit(self.requests[number])
        self.futures[number] = future
        if self.cancels[number] and future.cancel():
            self.known[number] = CANCELLED
            return
        future.result(60)
        self.known[number] = DONE

    def survive(self, send: Callable[[int], None], numbers: list[int]) -> None:
        """Send them all, whatever comes in between."""
        for number in numbers:
            try:
                send(number)
            except (MemoryError, KeyboardInterrupt):
                pass
            except self.request_failed:
                self.known[number] = FAILED
            except RuntimeError as error:  # the standard library's conditions, in which an allocation has failed
                if "lock" not in str(error):
                    raise

    def lists(self, numbers: list[int]) -> None:
        for start in range(0, len(numbers) - 7, 8):
            eight = numbers[start : start + 8]
            for number in eight:
                self.known[number] = UNKNOWN
            self.pipe([self.requests[number] for number in eight])
            for number in eight:
                self.known[number] = DONE

    def mapped(self, numbers: list[int]) -> None:
        for number in numbers:
            self.known[number] = UNKNOWN
        for request in self.pipe.map(self.requests[number] for number in numbers):
            self.known[request["data"]] = DONE

    def tasks(self, numbers: list[int]) -> None:
        async def one(number: int) -> None:
            self.known[number] = UNKNOWN
            await self.pipe.acall(self.requests[number])
            self.known[number] = DONE

        async def all_of_them() -> None:
            for start in range(0, len(numbers), 64):
                some = numbers[start : start + 64]
                tasks = [asyncio.ensure_future(one(number)) for number in some]
                await asyncio.sleep(0)
                for number, task in zip(some, tasks, strict=True):
                    if self.cancels[number]:
                        task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(all_of_them())


def one_process(count: int, seed: int, fails_allocations: bool) -> dict[str, int]:
    """Send so many requests through one pipe, and return the account; raise if it is not exact."""
    import fastpipe

    class Mix(fastpipe.Backend):
        max_batch = 8

        def forward(self, batch: list[dict[str, Any]]) -> None:
            for request in batch:
                request["result"] = mixed(request["data"])

    class Bound(fastpipe.Backend):
        thread_bound = True
        max_batch = 8

        def forward(self, batch: list[dict[str, Any]]) -> None:
            for request in batch:
                request["result"] = request["data"]

    pipe = fastpipe.Pipe(mix={"backend": Mix, "instance_num": 2, "next": "bound"}, bound={"backend": Bound})
    storm = Storm(pipe, count, seed, fastpipe.WorkerDied)
    # No Event: CPython may leave its lock taken where an allocation fails in it.
    is_over = [False]
    failed_allocations = [0]

    def interrupt() -> None:
        while not is_over[0]:
            time.sleep(storm.random.uniform(0.0005, 0.005))
            storm.interrupts += 1
            os.kill(os.getpid(), signal.SIGINT)

    def fail_allocations() -> None:
        import _testcapi

        while not is_over[0]:
            with contextlib.suppress(MemoryError):  # some are this thread's own: it goes on
                start = storm.random.randrange(20, 3000)
                failed_allocations[0] += 1
                _testcapi.set_nomemory(start, start + 1)
                time.sleep(0.002)

    # Of a hundred requests, so many go each way. asyncio's loop itself does not survive an allocation that fails.
    bulk = not fails_allocations
    shares = {"main": 30, "call": 15, "submit": 25, "list": 10 * bulk, "map": 10 * bulk, "tasks": 10 * bulk}
    own: dict[str, list[int]] = {}
    start = 0
    for name, share in shares.items():
        own[name] = storm.numbers[start : start + count * share // 100]
        start += len(own[name])
    threads = [
        threading.Thread(target=storm.survive, args=(storm.call, own["call"])),
        threading.Thread(target=storm.survive, args=(storm.submit, own["submit"])),
        threading.Thread(target=storm.lists, args=(own["list"],)),
        threading.Thread(target=storm.mapped, args=(own["map"],)),
        threading.Thread(target=storm.tasks, args=(own["tasks"],)),
    ]
    for thread in threads:
        thread.start()
    trouble = threading.Thread(target=fail_allocations if fails_allocations else interrupt)
    with contextlib.suppress(KeyboardInterrupt, MemoryError):  # it may begin before this returns
        trouble.start()
    middle = len(own["main"]) // 2
    weathered(storm.survive, storm, storm.call, own["main"][:middle])
    weathered(storm.survive, storm, storm.submit, own["main"][middle:])
    # From here on nothing is to be interrupted: the account is made.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for thread in threads:
        thread.join()
    is_over[0] = True
    trouble.join()
    if fails_allocations:
        import _testcapi

        _testcapi.remove_mem_hooks()
    pipe.close(timeout=60)
    return account(storm, pipe, failed_allocations[0])


def weathered(survive: Callable[..., None], storm: Storm, send: Callable[[int], None], numbers: list[int]) -> None:
    """Send them all; a signal may also come between two of them, and then the rest is sent."""
    while True:
        with contextlib.suppress(KeyboardInterrupt, MemoryError):
            left = [number for number in numbers if storm.known[number] == UNSENT]
            if not left:
                return
            survive(send, left)


def account(storm: Storm, pipe: Any, failed_allocations: int) -> dict[str, int]:
    """Hold what the clients know against what the pipe has counted."""
    counts = pipe.stats()["requests"]
    outcomes = {"done": DONE, "failed": FAILED, "cancelled": CANCELLED}
    known = {name: storm.known.count(value) for name, value in outcomes.items()}
    unknown = storm.known.count(UNKNOWN)
    sent = len(storm.known) - storm.known.count(UNSENT)
    assert counts["in_flight"] == 0, counts
    assert counts["accepted"] == counts["done"] + counts["failed"] + counts["cancelled"], counts
    assert counts["accepted"] <= sent, (counts, sent)
    assert sent - unknown <= counts["accepted"], (counts, sent, unknown)
    for name, seen in known.items():
        assert seen <= counts[name] <= seen + unknown, (name, counts, known, unknown)
    pending = [number for number, future in enumerate(storm.futures) if future is not None and not future.done()]
    assert not pending, f"{len(pending)} futures are pending"
    for number, request in enumerate(storm.requests):
        assert request["data"] == number or request["data"] == mixed(number), request
        if storm.known[number] == DONE or "result" in request:
            assert request["result"] == mixed(number), (number, request)
    assert threading.active_count() == 1, threading.enumerate()
    return {
        "sent": sent,
        "done": counts["done"],
        "failed": counts["failed"],
        "cancelled": counts["cancelled"],
        "unknown": unknown,
        "interrupts": storm.interrupts,
        "failed allocations": failed_allocations,
    }


if __name__ == "__main__":
    sys.exit(main())
