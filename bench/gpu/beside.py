"""Is it faster than it was? JPEG to tensor and to class, by this build and by another, in turns.

    python bench/gpu/beside.py --baseline FOLDER [--quick] [--images FOLDER] [--json FILE]

FOLDER holds another build: check its commit out, and run ``python setup.py build --build-lib FOLDER`` there. Each build
runs in a process of its own, and windows take turns, so that a machine that slows down does so for both. Figures are
medians; behind a ratio is its range within the rounds. The most telling cases come first. ``--memory``: what memory of
the GPU instances take, too.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import callers
from common import BusyThread, Numbers, Spread, Window

NOW, BEFORE = "now", "before"
BUSY_LIST = 256

SAMPLE_EVERY_S = 0.0003
"""How long the thread sleeps that looks for the GIL: it holds it for less than a hundredth of the time itself."""

CLASS_PIPES = {f"to class, {count} instances": count for count in (2, 3, 4)}
USUAL_CLASS = "to class, 3 instances"
TENSOR = "to tensor, 2 instances"
ONE_CLIENT = {"to tensor, 1 instance": "torch", "to tensor, 1 instance, CuPy's arrays": "cupy"}
FOR_BUSY = f"to tensor, batches of {BUSY_LIST}, 4 instances, CuPy's arrays"


class GilSampler:
    """A thread that sleeps, and notes how late it was awake: sleeping needs no GIL, and waking does."""

    def __init__(self) -> None:
        self.delays_ns: list[int] = []
        self._is_wanted = True
        self._thread = threading.Thread(target=self._run, name="gil sampler", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_wanted = False
        self._thread.join()

    def _run(self) -> None:
        while self._is_wanted:
            begun_ns = time.perf_counter_ns()
            time.sleep(SAMPLE_EVERY_S)
            self.delays_ns.append(time.perf_counter_ns() - begun_ns)

    def share_above(self, idle: GilSampler) -> float:
        """Return how often it was later than it hardly ever is in a process that does nothing."""
        late_ns = sorted(idle.delays_ns)[int(0.99 * len(idle.delays_ns))]
        return sum(each > late_ns for each in self.delays_ns) / max(1, len(self.delays_ns))


# ---- what is measured ------------------------------------------------------------------------------------------------


def of_map(pipe: Any, data: callers.Data, window: Window) -> Numbers:
    """One thread, one endless ``map``."""
    return callers.of_map(pipe, data, 1, window)


def of_map_and_sampler(pipe: Any, data: callers.Data, window: Window) -> Numbers:
    """Do the same, and tell how often the GIL was held when another thread woke up."""
    with GilSampler() as idle:
        time.sleep(0.2)
    with GilSampler() as sampler:
        numbers = of_map(pipe, data, window)
    return {**numbers, "gil_share": sampler.share_above(idle)}


def of_lists(pipe: Any, data: callers.Data, window: Window, *, size: int) -> Numbers:
    """Four threads with lists."""
    return callers.of_lists(pipe, data, size, window)


def of_lists_beside_busy(pipe: Any, data: callers.Data, window: Window, *, size: int) -> Numbers:
    """Do the same beside a thread that computes in Python."""
    with BusyThread():
        return of_lists(pipe, data, window, size=size)


def of_threads(pipe: Any, data: callers.Data, window: Window, *, count: int) -> Numbers:
    """Single requests from threads."""
    return callers.of_threads(pipe, data, count, window)


def of_tasks(pipe: Any, data: callers.Data, window: Window, *, count: int) -> Numbers:
    """Single requests from tasks of one event loop."""
    return callers.of_tasks(pipe, data, count, window)


Way = Callable[[Any, callers.Data, Window], Numbers]

WAYS: dict[str, Way] = {
    "map": of_map,
    "lists of 64": functools.partial(of_lists, size=64),
    "64 threads": functools.partial(of_threads, count=64),
    "128 threads": functools.partial(of_threads, count=128),
    "128 tasks": functools.partial(of_tasks, count=128),
    "one client": functools.partial(of_threads, count=1),
    f"lists of {BUSY_LIST}": functools.partial(of_lists, size=BUSY_LIST),
    f"lists of {BUSY_LIST}, beside a busy thread": functools.partial(of_lists_beside_busy, size=BUSY_LIST),
    "map, and how often the GIL is held": of_map_and_sampler,
}


class Case(NamedTuple):
    """What is measured for every image."""

    pipe: str
    way: str


CASES = [
    *(Case(USUAL_CLASS, way) for way in ("map", "lists of 64", "64 threads", "128 threads")),
    *(Case(TENSOR, way) for way in ("map", "lists of 64", "64 threads", "128 threads")),
    *(Case(pipe, "one client") for pipe in ONE_CLIENT),
    *(Case(FOR_BUSY, way) for way in WAYS if way.startswith(f"lists of {BUSY_LIST}")),
    Case(USUAL_CLASS, "map, and how often the GIL is held"),
    *(Case(pipe, "map") for pipe in CLASS_PIPES if pipe != USUAL_CLASS),
    Case(USUAL_CLASS, "128 tasks"),
]


def config_of(pipe: str) -> dict[str, Any]:
    """Return the configuration of a pipe."""
    import classify
    import decode

    if pipe in CLASS_PIPES:
        return classify.one_node(CLASS_PIPES[pipe])
    if pipe in ONE_CLIENT:
        return {**decode.NODE, "instance_num": 1, "array": ONE_CLIENT[pipe]}
    if pipe == FOR_BUSY:
        return {**decode.NODE, "max": BUSY_LIST, "instance_num": 4, "array": "cupy"}
    return {**decode.NODE, "instance_num": 2}


# ---- one build, in a process of its own ------------------------------------------------------------------------------


class Contestant:
    """A process with one of the builds.

    Args:
        name: NOW or BEFORE.
        baseline: the folder of the other build.
        images: the folder of the images; None: scikit-image's.
    """

    def __init__(self, name: str, baseline: Path | None, images: Path | None) -> None:
        environment = dict(os.environ)
        if name == BEFORE:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(baseline), environment.get("PYTHONPATH")]))
        about = {"name": name, "baseline": str(baseline), "images": images and str(images.resolve())}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--contestant", json.dumps(about)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **what: Any) -> Any:
        """Have it do something, and return its answer.

        Raises:
            RuntimeError: if its process has ended; stderr says why.
        """
        self.send(**what)
        return self.answer()

    def send(self, **what: Any) -> None:
        """Have it do something; ``answer`` has to follow."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Return its answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a build's process has ended with status {self._process.wait()}")
        return json.loads(line)

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def be_contestant(about: Mapping[str, Any]) -> None:
    """Answer what is asked on stdin: prepare a pipe, measure a window, or tell what memory instances take."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr
    import decode

    import fastpipe

    if about["name"] == BEFORE and not Path(fastpipe.__file__).is_relative_to(about["baseline"]):
        raise RuntimeError(f"fastpipe is that of {fastpipe.__file__}, not that of {about['baseline']}")
    encoded = decode.images(about["images"] and Path(about["images"]))
    pipes: dict[str, fastpipe.Pipe] = {}
    for line in sys.stdin:
        what = json.loads(line)
        answer: Any = list(encoded)
        if "prepare" in what:
            pipes[what["prepare"]] = fastpipe.Pipe(config_of(what["prepare"]))
        elif "way" in what:
            source = itertools.repeat(encoded[what["image"]]).__next__
            answer = WAYS[what["way"]](pipes[what["pipe"]], source, Window(*what["window"]))
        elif "memory" in what:
            answer = memory_of_instances(encoded)
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


def memory_of_instances(encoded: Mapping[str, bytes]) -> dict[str, float]:
    """Return how much of the GPU's memory pipes with one instance and with more take, by their names, in MB."""
    import torch

    import fastpipe

    def used_mb() -> float:
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 1e6

    torch.zeros(1, device="cuda")
    largest = encoded[max(encoded, key=lambda name: len(encoded[name]))]
    taken = {}
    for pipe in ("to tensor, 1 instance", TENSOR, "to class, 1 instance", "to class, 2 instances", USUAL_CLASS):
        before_mb = used_mb()
        config = config_of(USUAL_CLASS if pipe.startswith("to class") else TENSOR)
        node = config.get("model", config)
        node["instance_num"] = int(pipe.split()[2])
        with fastpipe.Pipe(config) as made:
            for _ in range(4):
                made([{"data": largest} for _ in range(64 * node["instance_num"])])
            taken[f"{pipe}: of the GPU"] = used_mb() - before_mb
        torch.cuda.empty_cache()
    return taken


# ---- the table -------------------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run everything, print it as it comes, and return it."""
    window, rounds = (Window(0.2, 0.4), 1) if arguments.quick else (Window(0.3, 0.7), arguments.rounds)
    names = [NOW, *([BEFORE] if arguments.baseline else [])]
    cases = [case for case in CASES if case.pipe.startswith(arguments.only)][: arguments.cases]
    baseline = arguments.baseline and arguments.baseline.resolve()
    running = {name: Contestant(name, baseline, arguments.images) for name in names}
    rows: list[dict[str, Any]] = []
    try:
        for pipe in dict.fromkeys(case.pipe for case in cases):
            for each in running.values():
                each.send(prepare=pipe)
            found = [each.answer() for each in running.values()]
        for case, image in itertools.product(cases, found[0]):
            windows: dict[str, list[Numbers]] = {name: [] for name in names}
            for number in range(rounds):
                for name in names[:: -1 if number % 2 else 1]:
                    asked_for = {"pipe": case.pipe, "way": case.way, "image": image}
                    seconds = (window.warm_up_s, window.measured_s)
                    windows[name].append(running[name].ask(**asked_for, window=seconds))
            rows.append({"pipe": case.pipe, "way": case.way, "image": image, "windows": windows})
            print(line_of(rows[-1]), flush=True)
    finally:
        for each in running.values():
            each.stop()
    memory_mb = memory_of(arguments.images) if arguments.memory else {}
    for what, mb in memory_mb.items():
        print(f"{what:48} {mb:8.0f} MB", flush=True)
    return {"rows": rows, "memory_mb": memory_mb}


def memory_of(images: Path | None) -> dict[str, float]:
    """Return what instances of this build take of the GPU's memory, in MB, measured in a process of its own."""
    asked = Contestant(NOW, None, images)
    try:
        answer: dict[str, float] = asked.ask(memory=True)
    finally:
        asked.stop()
    return answer


def line_of(row: Mapping[str, Any]) -> str:
    """Return a line of the table."""
    windows: dict[str, list[Numbers]] = row["windows"]
    rates = {name: [numbers["requests_per_s"] for numbers in found] for name, found in windows.items()}
    words = [f"{row['image']:9} {row['pipe']}, {row['way']}:"]
    for name, found in windows.items():
        words.append(f" {name} {Spread.of(rates[name]).median:7.0f}/s")
        for key, unit, scale in (("p50_us", "ms p50", 1e3), ("p99_us", "ms p99", 1e3), ("gil_share", "held", 1.0)):
            if key in found[0] and "lists" not in row["way"]:
                words.append(f"({Spread.of([numbers[key] for numbers in found]).median / scale:.2f} {unit})")
        if name != NOW:
            ratio = Spread.of_ratio(rates[NOW], rates[name])
            words.append(f"= {ratio.median:.2f} [{ratio.least:.2f} .. {ratio.greatest:.2f}];")
    return " ".join(words)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contestant"]:
        be_contestant(json.loads(sys.argv[2]))
        os._exit(0)  # not all threads of libraries let the interpreter end
    given = callers.arguments_of(
        __doc__,
        baseline={"type": Path, "metavar": "FOLDER", "help": "another build of fastpipe"},
        only={"metavar": "PIPE", "default": "", "help": "pipes whose names begin so"},
        cases={"type": int, "help": "the first so many cases"},
        memory={"action": "store_true", "help": "what memory of the GPU instances take, too"},
        rounds={"type": int, "default": 3, "help": "windows of each build (default: %(default)s)"},
    )
    callers.write(measure(given), given, "beside")
