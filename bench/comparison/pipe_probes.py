"""Probes that are the same for libraries that are called in the process: fastpipe and omniback, and their pipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from http_probes import waited
from probes import NEUTRAL, NO, YES, Cell, at_once, probe

__all__ = ["Forward", "Library", "interrupted", "register"]

Forward = Callable[[list[int]], list[Any]]
"""What a node does with the data of a batch; results in the same order."""


class Library(ABC):
    """How a library builds a pipe."""

    @abstractmethod
    def node(self, forward: Forward, max_batch: int, **keys: Any) -> dict[str, Any]:
        """Return the description of a node that does this."""

    @abstractmethod
    def pipe(self, nodes: dict[str, dict[str, Any]]) -> Callable[[dict[str, Any]], Any]:
        """Build a pipe, whose call works on a dict."""

    def ask(self, pipe: Callable[[dict[str, Any]], Any], data: Any) -> Any:
        """Call it, and return the result."""
        request = {"data": data}
        pipe(request)
        return request["result"]


def batching(library: Library) -> Cell:
    """Eight at once."""
    sizes: list[int] = []

    def forward(numbers: list[int]) -> list[int]:
        sizes.append(len(numbers))
        time.sleep(0.05)
        return numbers

    pipe = library.pipe({"batches": library.node(forward, 8, batching_timeout=300)})
    library.ask(pipe, 100)
    answers = at_once([lambda number=number: library.ask(pipe, number) for number in range(8)] * 2)
    assert answers == list(range(8)) * 2, answers
    return Cell(YES if max(sizes) > 1 else NO, f"up to {max(sizes)} of 8")


def lone(library: Library) -> Cell:
    """One after the other."""
    pipe = library.pipe({"lone": library.node(lambda numbers: numbers, 8, batching_timeout=300)})
    library.ask(pipe, 0)
    seconds = []
    for number in range(5):
        began_s = time.perf_counter()
        library.ask(pipe, number)
        seconds.append(time.perf_counter() - began_s)
    return waited(seconds)


def batch_raises(library: Library) -> Cell:
    """A busy instance lets four meet; 13 is bad."""
    sizes: list[int] = []

    def forward(numbers: list[int]) -> list[int]:
        time.sleep(0.2 if numbers == [0] else 0.02)
        if numbers != [0]:
            sizes.append(len(numbers))
        if 13 in numbers:
            raise ValueError("13 is a bad number")
        return numbers

    pipe = library.pipe({"raises": library.node(forward, 4, batching_timeout=100)})
    library.ask(pipe, 1)
    sizes.clear()
    calls = [lambda: library.ask(pipe, 0)]
    calls += [lambda number=number: (time.sleep(0.1), library.ask(pipe, number))[1] for number in (2, 3, 13, 4)]
    answers = at_once(calls)[1:]
    if max(sizes) == 1:
        return Cell(NEUTRAL, "the four have not met")
    failed = [answer for answer in answers if isinstance(answer, BaseException)]
    kinds = type(answers[2]).__name__
    assert answers[2] in failed
    return Cell(YES, f"only it fails ({kinds})") if len(failed) == 1 else Cell(NO, f"all of its batch fail ({kinds})")


def instances(library: Library) -> Cell:
    """Two at once."""

    def forward(numbers: list[int]) -> list[int]:
        time.sleep(0.3)
        return [os.getpid() for _ in numbers]

    pipe = library.pipe({"two": library.node(forward, 1, instance_num=2)})
    library.ask(pipe, 1)
    began_s = time.perf_counter()
    answers = at_once([lambda: library.ask(pipe, 1)] * 2)
    elapsed_s = time.perf_counter() - began_s
    assert answers == [os.getpid()] * 2
    return Cell(YES, "threads of the caller's process") if elapsed_s < 0.5 else Cell(NO, "one after the other")


def graph(library: Library) -> Cell:
    """1 -> (+1, squared) -> a pair, eight callers at once."""
    sizes: list[int] = []

    def squares(numbers: list[int]) -> list[int]:
        sizes.append(len(numbers))
        time.sleep(0.05)
        return [number**2 for number in numbers]

    pipe = library.pipe(
        {
            "first": library.node(lambda numbers: numbers, 8, next="more,squares"),
            "more": library.node(lambda numbers: [number + 1 for number in numbers], 8, next="both"),
            "squares": library.node(squares, 8, batching_timeout=50, next="both"),
            "both": library.node(lambda numbers: numbers, 8, map="more[result:data],squares[result:other]"),
        }
    )

    def ask(number: int) -> tuple[int, int]:
        request = {"data": number}
        pipe(request)
        return request["result"], request["other"]

    answers = at_once([lambda number=number: ask(number) for number in range(8)])
    assert answers == [(number + 1, number**2) for number in range(8)], answers
    return Cell(YES, f"described; steps share batches of up to {max(sizes)}")


def in_process(library: Library) -> Cell:
    """Call it."""
    pipe = library.pipe({"only": library.node(lambda numbers: [2 * number for number in numbers], 1)})
    assert library.ask(pipe, 21) == 42
    return Cell(YES, "a thread-safe function")


def interrupted(code: str, whole_s: float) -> Cell:
    """Run a program, send it SIGINT while it waits for a request, and say what its call does."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "ready" not in process.stdout.readline():
        pass
    time.sleep(0.4)
    began_s = time.perf_counter()
    os.kill(process.pid, signal.SIGINT)
    said = process.stdout.readline().strip()
    seconds = time.perf_counter() - began_s
    process.wait(20)
    is_prompt = seconds < whole_s / 2 and said == "KeyboardInterrupt"
    return Cell(YES if is_prompt else NO, f"the call raises {said} after {seconds:.1f} of {whole_s:.0f} s")


def register(library: Library) -> None:
    """Register what both are asked."""
    for function in (in_process, batching, lone, batch_raises, instances, graph):
        probe(function.__name__)(lambda function=function: function(library))
