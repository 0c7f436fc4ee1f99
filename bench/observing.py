"""What does looking inside cost? An echo with metrics, traces and a timeline, beside another build of the package.

python bench/observing.py --beside FOLDER   the table; FOLDER holds another build, see bench/instructions.py
python bench/observing.py                   without the rows that compare builds
python bench/observing.py --quick           shows that it runs

Builds and ways take turns, each window in a process of its own; a ratio is that of two windows that stood side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.append(
    str(Path(__file__).resolve().parent)
)  # a child is started with -P, to import the build that is asked for

from common import Numbers, Spread, Window, closed_loop

CLIENTS = (1, 10, 64)
SCRAPE_EVERY_S = 1.0
TRACED_SHARE = 0.01
DEMO_ROUNDS = 7

# What is looked with, and the least ratio to the other build (or, for the timeline, to the same build without it).
GOALS = {"nothing": 0.97, "metrics and traces": 0.93, "timeline": 0.5}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another build of the package, to compare with")
    parser.add_argument("--rounds", type=int, default=7, help="windows of each kind (default: 7)")
    parser.add_argument("--quick", action="store_true", help="one short round: shows that it runs")
    parser.add_argument("--window", help=argparse.SUPPRESS)  # a child's
    options = parser.parse_args(arguments)
    if options.window:
        print(json.dumps(_window(**json.loads(options.window))))
        return 0
    rounds, window = (1, Window(0.1, 0.2)) if options.quick else (options.rounds, Window(0.5, 2.0))
    _compare(options.beside, rounds, window)
    for line in (*_counted(options.quick), _demo(options.quick)):
        print(line)
    return 0


def _compare(beside: Path | None, rounds: int, window: Window) -> None:
    """Print how fast an echo is while it is looked at."""
    print(f"{'looked at with':22}{'clients':>8}{'ratio':>8}{'least':>8}{'most':>8}{'goal':>8}")
    for way, goal in GOALS.items():
        others = None if way == "timeline" else beside
        if way != "timeline" and beside is None:
            continue
        for clients in CLIENTS:
            rates: dict[str, list[float]] = {"here": [], "other": []}
            for turn in range(rounds):
                pair = [("here", None, way), ("other", others, "nothing")]
                for name, path, looked in pair if turn % 2 else reversed(pair):
                    rates[name].append(_child(path, looked, clients, window)["requests_per_s"])
            ratio = Spread.of_ratio(rates["here"], rates["other"])
            print(f"{way:22}{clients:>8}{ratio.median:>8.2f}{ratio.least:>8.2f}{ratio.greatest:>8.2f}{goal:>8}")


def _child(path: Path | None, way: str, clients: int, window: Window) -> Numbers:
    """Run one window in a process of its own, with the build in ``path``."""
    asked = {"way": way, "clients": clients, "warm_up_s": window.warm_up_s, "measured_s": window.measured_s}
    ran = subprocess.run(
        [sys.executable, "-P", __file__, "--window", json.dumps(asked)],
        env={**os.environ, **({"PYTHONPATH": str(path.resolve())} if path else {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise SystemExit(f"{way}, {clients} clients: {ran.stderr.strip()[-2000:]}")
    numbers: Numbers = json.loads(ran.stdout)
    return numbers


def _window(way: str, clients: int, warm_up_s: float, measured_s: float) -> Numbers:
    """Measure an echo that is looked at in a way of GOALS. In a child, with the build that it imports."""
    import fastpipe

    class Echo(fastpipe.Backend):
        def forward(self, batch: list[fastpipe.Request]) -> None:
            for request in batch:
                request["result"] = request["data"]

    with fastpipe.Pipe(backend=Echo, instance_num=2, max=8) as pipe, _looked_at(pipe, way):
        return closed_loop(lambda number: lambda: pipe({"data": number}), clients, Window(warm_up_s, measured_s))


@contextmanager
def _looked_at(pipe: Any, way: str) -> Iterator[None]:
    """Look at a pipe within a ``with`` statement."""
    with ExitStack() as stack:
        if way == "timeline":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(pipe.timeline(Path(folder, "run.pftrace")))
        elif way == "metrics and traces":
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

            from fastpipe.observe.traces import trace_pipe

            class Discards(SpanExporter):  # what another one costs is its own: it writes at most 1 % of requests
                def export(self, spans: Sequence[Any]) -> SpanExportResult:
                    return SpanExportResult.SUCCESS

            provider = TracerProvider()
            provider.add_span_processor(BatchSpanProcessor(Discards()))
            stack.callback(provider.shutdown)
            stack.enter_context(trace_pipe(pipe, sample=TRACED_SHARE, tracer_provider=provider))
            stack.enter_context(_each_second(_scrape_of(pipe)))
        yield


def _scrape_of(*pipes: Any) -> Callable[[], bytes]:
    """Return what a scrape calls."""
    import prometheus_client

    from fastpipe.observe.metrics import PrometheusCollector, generate_latest

    registry = prometheus_client.CollectorRegistry()
    registry.register(PrometheusCollector({f"pipe {number}": pipe for number, pipe in enumerate(pipes)}))
    return lambda: generate_latest(registry)


@contextmanager
def _each_second(body: Callable[[], object]) -> Iterator[None]:
    """Call ``body`` on a thread of its own, once a second."""
    is_over = threading.Event()

    def loop() -> None:
        while not is_over.wait(SCRAPE_EVERY_S):
            body()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _counted(is_quick: bool) -> Iterator[str]:
    """Yield what a scrape and the live page cost, as lines."""
    import fastpipe

    nodes = {f"node{number}": {"backend": "Identity", "max": 8} for number in range(50)}
    for number in range(49):
        nodes[f"node{number}"]["next"] = f"node{number + 1}"
    with fastpipe.Pipe(nodes) as pipe:
        for number in range(200):
            pipe({"data": number})
        scrape = _scrape_of(pipe)
        size = len(scrape())
        took_ms = []
        for _ in range(5 if is_quick else 50):
            start = time.perf_counter()
            scrape()
            took_ms.append((time.perf_counter() - start) * 1e3)
        took = Spread.of(took_ms)
        yield (
            f"a scrape of 50 nodes, {size / 1e3:.0f} kB: "
            f"{took.median:.1f} ms ({took.least:.1f} to {took.greatest:.1f}); goal: at most 5"
        )
        share = _share_of_core(pipe, 3 if is_quick else 20)
        yield f"the live page of 50 nodes: {share:.2%} of a core; goal: at most 2 %"


def _demo(is_quick: bool) -> str:
    """Return what a timeline costs the pipe of examples/ocr, as a line. Runs with and without one take turns."""
    import fastpipe

    sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
    try:
        from ocr import command, pages, pipeline

        pipe = fastpipe.Pipe(pipeline.configuration(2))
    except (ImportError, fastpipe.PipeError) as missing:
        return f"a timeline of the demo: not measured: {missing}"
    rows: dict[bool, list[Numbers]] = {True: [], False: []}
    with pipe, tempfile.TemporaryDirectory() as folder:
        texts = pages.sample_pages(2 if is_quick else 12)
        read = command.pipe_reader(pipe)
        command.read_all(texts, read, 4)  # warm-up
        for turn in range(1 if is_quick else DEMO_ROUNDS):
            for with_timeline in (True, False) if turn % 2 else (False, True):
                start_s = time.process_time()
                with pipe.timeline(Path(folder, "run.pftrace")) if with_timeline else ExitStack():
                    wall_s = command.read_all(texts, read, 4)[2]
                rows[with_timeline].append({"wall_s": wall_s, "cpu_s": time.process_time() - start_s})
    ratios = {
        key: Spread.of_ratio([row[key] for row in rows[False]], [row[key] for row in rows[True]])
        for key in ("wall_s", "cpu_s")
    }
    return (
        "a timeline of the demo: "
        + ", ".join(
            f"{what} {ratios[key].median:.3f} ({ratios[key].least:.2f} to {ratios[key].greatest:.2f}) x without"
            for what, key in (("speed", "wall_s"), ("speed by processor time", "cpu_s"))
        )
        + "; goal: at least 0.99"
    )


# Looks at the page as a browser does: asks for what came after what it has.
VIEWER = """
import json, sys, urllib.request
after = 0
while True:
    with urllib.request.urlopen(f"{sys.argv[1].rstrip('/')}/points?after={after}") as answer:
        after = max([after, *(point["number"] for point in json.load(answer)["points"])])
"""


def _share_of_core(pipe: Any, seconds: int) -> float:
    """Return the CPU time of this process, which has nothing else to do, while somebody looks at the live page."""
    import fastpipe.observe

    with fastpipe.observe.live(pipe) as page, subprocess.Popen([sys.executable, "-c", VIEWER, page.url]) as viewer:
        time.sleep(2)
        start_s = time.process_time()
        time.sleep(seconds)
        share = (time.process_time() - start_s) / seconds
        if viewer.poll() is not None:
            raise SystemExit("the viewer of the live page has ended")
        viewer.terminate()
    return share


if __name__ == "__main__":
    sys.exit(main())
