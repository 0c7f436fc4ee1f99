"""What does a state for each stream cost, beside plain ONNX Runtime loops, and what do batches of streams gain?

    python bench/state.py --model silero_vad.onnx [--quick] [--streams 64] [--chunk 576]

``--model`` is one of silero-vad's files with the input ``state`` and the output ``stateN`` (those of its wheel). Two
questions, each answered in pairs of windows that take turns to be first:

*   One stream, one client: a pipe with ``state_of`` beside a loop of ``session.run``. Goal: at most 1.1 times the time.
*   Many streams: one client for each, which sends a chunk when it has the last answer. Beside the pipe, whose batches
    hold many streams, a thread for each stream runs a plain loop of its own, all on one session; and one thread runs
    the loops one after the other, which is what a single core gives. Goal: at least twice the chunks/s of the first.

The sessions of the loops compute with one thread each, as the package's own wrapper has it. Before anything is timed,
every contestant answers for streams of noise, which are compared with a loop.

Beside each ratio of times is that of processor times, all threads of the process together: where others use the
processors, too, it says more. At last it says what no way of batching can do better than: the processor time of a row
in a run of ONNX Runtime on as many rows as there are streams, beside that of a run of one.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from common import Spread, WrongAnswer

import fastpipe

RATE = np.array(16000, np.int64)
LARGEST_DIFFERENCE = 1e-5

Step = Callable[[Any], Any]
"""What runs a stream's next chunk, and returns its answer."""


class Figures(NamedTuple):
    """What came of a window."""

    chunks_per_s: float
    cpu_us: float  # of the process, for each chunk


class Loop:
    """Streams as one writes them by hand: a state each, ``session.run`` for each chunk."""

    def __init__(self, model: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.takes_rate = "sr" in [each.name for each in self.session.get_inputs()]

    def stream(self, name: str) -> Step:
        feeds = {"state": np.zeros((2, 1, 128), np.float32), **({"sr": RATE} if self.takes_rate else {})}

        def step(chunk: Any) -> Any:
            feeds["input"] = chunk[None]
            answer, feeds["state"] = self.session.run(["output", "stateN"], feeds)
            return answer

        return step


class Piped:
    """The same by a pipe."""

    def __init__(self, model: str, most: int, *, takes_rate: bool, threads: int | None = None) -> None:
        keys: dict[str, Any] = {"model": model, "max": most, "state": {"state": "stateN"}, "threads": threads}
        given = {key: value for key, value in keys.items() if value is not None}
        self.pipe = fastpipe.Pipe(backend="OnnxTensor", state_of="stream_id", instance_num=1, **given)
        self.takes_rate = takes_rate

    def stream(self, name: str) -> Step:
        def step(chunk: Any) -> Any:
            data = {"input": chunk, "sr": RATE} if self.takes_rate else chunk
            return self.pipe({"data": data, "stream_id": name})["result"]

        return step


def check(contestants: Sequence[tuple[str, Loop | Piped]], chunks: Any) -> None:
    """Raise WrongAnswer unless all give what a loop gives, of streams that are interleaved."""
    expected: dict[str, list[Any]] = {}
    for name, contestant in contestants:
        steps = {key: contestant.stream(f"check {key}") for key in "abcd"}
        answers: dict[str, list[Any]] = {key: [] for key in steps}
        for number in range(8):
            for offset, (key, step) in enumerate(steps.items()):
                answers[key].append(np.ravel(step(chunks[(number * 5 + offset) % len(chunks)])))
        expected = expected or answers
        for key, own in answers.items():
            difference = max(float(np.abs(a - b).max()) for a, b in zip(own, expected[key], strict=True))
            if not difference <= LARGEST_DIFFERENCE:
                raise WrongAnswer(f"{name}: stream {key} differs by {difference:g} from a plain loop")


def alone(contestant: Loop | Piped, chunks: Any, seconds: float) -> Figures:
    """Send the chunks of one stream."""
    step = contestant.stream("alone")
    count = 0
    began, cpu_began = time.perf_counter(), time.process_time()
    while (passed := time.perf_counter() - began) < seconds:
        step(chunks[count % len(chunks)])
        count += 1
    return Figures(count / passed, (time.process_time() - cpu_began) / count * 1e6)


def together(contestant: Loop | Piped, chunks: Any, seconds: float, streams: int) -> Figures:
    """Send the chunks of many streams, each from a thread."""
    begin, ends = threading.Barrier(streams + 1), threading.Event()
    counts = [0] * streams

    def client(number: int) -> None:
        step = contestant.stream(f"stream {number}")
        step(chunks[0])
        begin.wait()
        while not ends.is_set():
            step(chunks[(counts[number] + number) % len(chunks)])
            counts[number] += 1

    clients = [threading.Thread(target=client, args=(number,)) for number in range(streams)]
    for each in clients:
        each.start()
    begin.wait()
    began, cpu_began, before = time.perf_counter(), time.process_time(), sum(counts)
    time.sleep(seconds)
    passed, cpu_s, done = time.perf_counter() - began, time.process_time() - cpu_began, sum(counts) - before
    ends.set()
    for each in clients:
        each.join()
    return Figures(done / passed, cpu_s / done * 1e6)


def rows(loop: Loop, chunks: Any, rows_count: int, rounds: int) -> list[float]:
    """Return the processor time of a row, in us, in runs of ONNX Runtime on so many rows."""
    feeds = {"state": np.zeros((2, rows_count, 128), np.float32), **({"sr": RATE} if loop.takes_rate else {})}
    feeds["input"] = chunks[:rows_count]
    found = []
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(1 + 256 // rows_count):
            loop.session.run(["output", "stateN"], feeds)
        found.append((time.process_time() - began) / (1 + 256 // rows_count) / rows_count * 1e6)
    return found


def in_pairs(measures: Sequence[Callable[[], Figures]], rounds: int) -> list[list[Figures]]:
    """Return what each has measured, figures for each round; another one is the first in each."""
    found: list[list[Figures]] = [[] for _ in measures]
    for number in range(rounds):
        for index in range(len(measures)):
            which = (number + index) % len(measures)
            found[which].append(measures[which]())
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return 0, or 1 if an answer is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, metavar="FILE.onnx", help="with the input state and the output stateN"
    )
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=576, help="samples of a chunk")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a window")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two short rounds: whether it runs, not how fast")
    options = parser.parse_args(arguments)
    seconds, rounds = (0.3, 2) if options.quick else (options.seconds, options.rounds)
    chunks = (np.random.default_rng(0).standard_normal((256, options.chunk)) * 0.1).astype(np.float32)
    loop = Loop(options.model)
    one = Piped(options.model, 1, takes_rate=loop.takes_rate, threads=1)
    many = Piped(options.model, options.streams, takes_rate=loop.takes_rate)
    with one.pipe, many.pipe:
        try:
            check([("loop", loop), ("pipe, one", one), ("pipe, many", many)], chunks)
        except WrongAnswer as error:
            print(error, file=sys.stderr)
            return 1
        plain, piped = in_pairs([lambda: alone(loop, chunks, seconds), lambda: alone(one, chunks, seconds)], rounds)
        _tell("one stream: time of a chunk, pipe / loop", _rates(plain), _rates(piped), "chunks_per_s", "<= 1.1")
        _tell("one stream: processor time of a chunk, pipe / loop", _cpu(piped), _cpu(plain), "cpu_us")
        single, threads, batches = in_pairs(
            [
                lambda: alone(loop, chunks, seconds),
                lambda: together(loop, chunks, seconds, options.streams),
                lambda: together(many, chunks, seconds, options.streams),
            ],
            rounds,
        )
        name = f"{options.streams} streams"
        rate = f"{name}: chunks/s, pipe"
        _tell(f"{rate} / a loop in a thread for each", _rates(batches), _rates(threads), "chunks_per_s", ">= 2")
        _tell(f"{rate} / loops one after the other", _rates(batches), _rates(single), "chunks_per_s")
        _tell(f"{name}: processor time of a chunk, such a thread / pipe", _cpu(threads), _cpu(batches), "cpu_us")
        one_row, many_rows = (Spread.of(rows(loop, chunks, count, rounds)).median for count in (1, options.streams))
        print(
            f"a run of one row takes {one_row / many_rows:.2f} times the processor time of a row of {options.streams}"
        )
        node = many.pipe.stats()["nodes"]["main"]
        print(f"batches of {node['mean_batch']:.1f} streams on average")
    return 0


def _tell(what: str, first: Sequence[float], second: Sequence[float], unit: str, goal: str = "") -> None:
    """Print the ratio of two figures with its spread, and the same as a line of JSON."""
    ratio = Spread.of_ratio(first, second)
    shown = f" (goal {goal})" if goal else ""
    print(f"{what}: {ratio.median:.2f}, {ratio.least:.2f} to {ratio.greatest:.2f} in pairs{shown}")
    figures = {unit: [Spread.of(first).median, Spread.of(second).median]}
    print(
        json.dumps({"what": what, "median": ratio.median, "least": ratio.least, "greatest": ratio.greatest, **figures})
    )


def _rates(windows: Sequence[Figures]) -> list[float]:
    return [each.chunks_per_s for each in windows]


def _cpu(windows: Sequence[Figures]) -> list[float]:
    return [each.cpu_us for each in windows]


if __name__ == "__main__":
    sys.exit(main())
