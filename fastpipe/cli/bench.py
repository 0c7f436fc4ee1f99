"""``fastpipe bench``: throughput and latencies of a pipe under load, and of a second one in turns with it.

Windows of the files take turns (A B, B A, ...), so that a machine that gets slower meanwhile does so for both. Figures
are medians of the windows, with the least and the greatest; a ratio is one of medians, with the range of the ratios of
windows that stood side by side.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fastpipe.cli.data import HELP, Inputs, loaded
from fastpipe.cli.load import Load, Sample, Target, Window, measure
from fastpipe.cli.loading import pipe_of_file
from fastpipe.cli.tables import Figures
from fastpipe.cli.terminal import complain, say, show
from fastpipe.contract import Request
from fastpipe.cpus import usable_cpu_count
from fastpipe.pipe import Pipe
from fastpipe.show.cards import seconds

__all__ = ["Results", "Spread", "add_arguments", "add_load_arguments", "count_of", "duration_of", "requests_of", "run"]

MOST_REQUESTS = 1000
# Where the load generator itself is late by more than this share of the median latency, it is worth a word.
LATE_SHARE = 0.2
LATE_S = 0.001
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}

COST = (
    "The load comes from threads of the same process, which take some 2 us of a core for each request of a closed "
    "loop, and 20 to 60 us in an open one, whose single thread sends some 10,000 requests a second at most"
)


@dataclass(frozen=True)
class Spread:
    """One figure over all windows."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summarise at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    @classmethod
    def of_ratio(cls, values: Sequence[float], others: Sequence[float]) -> Self:
        """Return the ratio of the medians, with the least and greatest ratio of windows side by side."""
        ratios = [value / other for value, other in zip(values, others, strict=True)]
        return cls(statistics.median(values) / statistics.median(others), min(ratios), max(ratios))

    def as_json(self) -> dict[str, float]:
        """Return it as JSON has it."""
        return {"median": self.median, "least": self.least, "greatest": self.greatest}

    def told(self, word: Callable[[float], str], unit: str = "") -> str:
        """Return the median, and the range if there is one."""
        if self.least == self.greatest:
            return f"{word(self.median)}{unit}"
        return f"{word(self.median)} ({word(self.least)}–{word(self.greatest)}){unit}"

    def in_time(self) -> str:
        """Return the same of seconds, in a unit that suits them."""
        factor, unit = next(((1 / s, u) for s, u in ((1.0, "s"), (1e-3, "ms")) if self.median >= s), (1e6, "us"))
        return self.told(lambda value: f"{value * factor:.3g}", f" {unit}")


@dataclass(frozen=True)
class Results:
    """All windows of one file under one load."""

    file: Path
    load: Load
    samples: tuple[Sample, ...]

    @property
    def throughput(self) -> Spread:
        """Requests answered a second."""
        return Spread.of([sample.requests_per_s for sample in self.samples])

    def latency_s(self, quantile: float) -> Spread:
        """Return a quantile of the latencies, in seconds."""
        return Spread.of([sample.quantile_s(quantile) for sample in self.samples])

    def ratio_to(self, other: Results) -> dict[str, Spread]:
        """Return how many times the other's figures these are."""

        def of(figure: Callable[[Sample], float]) -> Spread:
            return Spread.of_ratio([figure(mine) for mine in self.samples], [figure(its) for its in other.samples])

        return {
            "requests_per_s": of(lambda sample: sample.requests_per_s),
            "p50": of(lambda sample: sample.quantile_s(0.5)),
            "p99": of(lambda sample: sample.quantile_s(0.99)),
        }

    def as_json(self) -> dict[str, Any]:
        """Return them as JSON has it; latencies in milliseconds."""
        last = self.samples[-1]
        quantiles = {
            f"{name}_ms": Spread.of([sample.quantile_s(share) * 1e3 for sample in self.samples]).as_json()
            for name, share in QUANTILES.items()
        }
        return {
            "file": str(self.file),
            "clients": self.load.clients,
            "rate": self.load.rate,
            "requests_per_s": self.throughput.as_json(),
            **quantiles,
            "failed": sum(sample.failed for sample in self.samples),
            "unfinished": sum(sample.unfinished for sample in self.samples),
            "kept_up": all(sample.kept_up for sample in self.samples),
            "generator_late_p99_ms": None if last.late_p99_s is None else last.late_p99_s * 1e3,
            "nodes": {
                name: {
                    "busy_share": node.busy_share,
                    "mean_batch": node.mean_batch,
                    "requests_per_s": node.requests_per_s,
                }
                for name, node in last.nodes.items()
            },
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``fastpipe bench`` takes."""
    parser.epilog = f"{COST}. Measure with as few other programs as you can."
    add_load_arguments(parser, seconds=3.0, repeats=3)
    parser.add_argument(
        "--clients",
        type=_clients,
        metavar="N,...",
        help="closed loop: so many callers, each with its next request when it has its answer (default: 1,8,64)",
    )
    parser.add_argument(
        "--rate",
        type=_rates,
        metavar="R,...",
        default=(),
        help="open loop: so many requests a second, which arrive independently of each other (Poisson) and wait for no "
        "answer; latencies count from when a request was to arrive",
    )
    parser.add_argument("--compare", metavar="OTHER", type=Path, help="a second configuration, measured in turns")
    parser.add_argument("--plot", metavar="OUT.png", type=Path, help="draw throughput and latencies")
    parser.add_argument("--json", action="store_true", help="write JSON instead of tables")


def add_load_arguments(parser: argparse.ArgumentParser, *, seconds: float, repeats: int) -> None:
    """Add what says which requests are sent, and for how long."""
    parser.add_argument("file", metavar="FILE", type=Path, help="the configuration, a TOML file")
    parser.add_argument("--data", metavar="DATA", required=True, action="append", help=HELP)
    parser.add_argument(
        "--seconds", metavar="S", type=duration_of, default=seconds, help="of each window (default: %(default)s)"
    )
    parser.add_argument(
        "--warm-up", metavar="S", type=duration_of, default=0.5, help="before each window (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", metavar="N", type=count_of, default=repeats, help="windows of each kind (default: %(default)s)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of all that is random (default: %(default)s)")
    parser.add_argument("--timeout", metavar="S", type=duration_of, help="of each request, in seconds")
    parser.add_argument("--node", metavar="NODE", help="where requests enter (default: the root)")


def run(arguments: argparse.Namespace) -> int:
    """Measure; 0 if no request failed, otherwise 1."""
    if arguments.plot is not None:
        from fastpipe.cli import plots  # what is missing is said before anything is measured

        plots.check_path(arguments.plot)
    clients = arguments.clients or (() if arguments.rate else (1, 8, 64))
    loads = [*(Load(clients=count) for count in clients), *(Load(rate=rate) for rate in arguments.rate)]
    requests = requests_of(arguments)
    files = [arguments.file, *([arguments.compare] if arguments.compare is not None else [])]
    with contextlib.ExitStack() as stack:
        pipes = [stack.enter_context(pipe_of_file(file)) for file in files]
        results = _measured(files, pipes, requests, loads, arguments)
    if arguments.json:
        say((json.dumps(_as_json(results, files, len(requests), arguments), indent=2), ""))
    else:
        _show(results, files, len(requests), arguments)
    if arguments.plot is not None:
        plots.bench(results, arguments.plot)
    return 1 if any(sample.failed for each in results for sample in each.samples) else 0


def requests_of(arguments: argparse.Namespace) -> list[Request]:
    """Read the requests that are sent over and over again."""
    requests, are_there_more = loaded(Inputs(arguments.data), MOST_REQUESTS)
    if are_there_more:
        complain(f"only the first {len(requests)} requests of --data are sent, over and over again")
    return requests


def _measured(
    files: Sequence[Path],
    pipes: Sequence[Pipe],
    requests: Sequence[Request],
    loads: Sequence[Load],
    arguments: argparse.Namespace,
) -> list[Results]:
    """Measure each file under each load, ``--repeats`` times; the files take turns in being the first."""
    window = Window(arguments.warm_up, arguments.seconds)
    samples: dict[tuple[int, int], list[Sample]] = {}
    for repeat in range(arguments.repeats):
        for number, load in enumerate(loads):
            order = range(len(pipes)) if repeat % 2 == 0 else reversed(range(len(pipes)))
            for which in order:
                target = Target(pipes[which], requests, arguments.timeout, arguments.node)
                sample = measure(target, load, window, arguments.seed + repeat)
                samples.setdefault((number, which), []).append(sample)
    return [Results(files[which], loads[number], tuple(samples[number, which])) for number, which in sorted(samples)]


# ---- what is shown ---------------------------------------------------------------------------------------------


def _show(results: list[Results], files: list[Path], request_count: int, arguments: argparse.Namespace) -> None:
    cpus = usable_cpu_count()
    say(
        (" and ".join(map(str, files)), "bold"),
        (f": {request_count} request{'s' if request_count != 1 else ''}; {arguments.repeats} windows of ", ""),
        (f"{arguments.seconds:g} s, median (least–greatest); {cpus} CPU{'s' if cpus != 1 else ''}", ""),
    )
    say(("", ""))
    show(_table(results, files))
    for remark in _remarks(results):
        say((remark, "yellow"))
    for file in files:
        fastest = max((each for each in results if each.file == file), key=lambda each: each.throughput.median)
        say(("", ""))
        say((f"{file}, nodes at {fastest.load}", "bold"))
        show(_nodes(fastest.samples[-1]))


def _table(results: list[Results], files: list[Path]) -> Figures:
    headings = ["load", *(["file"] if len(files) > 1 else []), "requests/s", *QUANTILES, "failed"]
    rows: list[list[str]] = []
    for number, each in enumerate(results):
        name = [each.file.name] if len(files) > 1 else []
        latencies = [each.latency_s(share).in_time() for share in QUANTILES.values()]
        failed = str(sum(sample.failed for sample in each.samples))
        rows.append([str(each.load), *name, each.throughput.told(_whole), *latencies, failed])
        if len(files) > 1 and number % 2:
            ratio = {
                key: spread.told(lambda ratio: f"{ratio:.2f}", "x")
                for key, spread in each.ratio_to(results[number - 1]).items()
            }
            rows.append(["", "ratio", ratio["requests_per_s"], ratio["p50"], "", ratio["p99"], "", ""])
    bold = frozenset(number for number, row in enumerate(rows) if row[1] == "ratio")
    return Figures(headings, rows, words=2 if len(files) > 1 else 1, bold=bold)


def _nodes(sample: Sample) -> Figures:
    rows = [
        [name, f"{node.busy_share:.0%}", f"{node.mean_batch:.3g}", _whole(node.requests_per_s)]
        for name, node in sample.nodes.items()
    ]
    return Figures(["node", "busy", "batch", "requests/s"], rows)


def _remarks(results: list[Results]) -> list[str]:
    found = []
    for each in results:
        last = each.samples[-1]
        if not all(sample.kept_up for sample in each.samples):
            found.append(
                f"{each.file.name} did not keep up with {each.load}: its queue grew, as latencies will with --seconds"
            )
        if last.late_p99_s is not None and last.late_p99_s > max(LATE_S, LATE_SHARE * last.quantile_s(0.5)):
            found.append(
                f"at {each.load} the load generator was late itself, by {seconds(last.late_p99_s)} (p99), which is in "
                "the latencies: there are too few CPUs, or queues were full"
            )
        error = next((sample.error for sample in each.samples if sample.error is not None), None)
        if error is not None:
            found.append(f"{each.file.name}, {each.load}: the first failure was {type(error).__name__}: {error}")
    return found


def _as_json(
    results: list[Results], files: list[Path], request_count: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "requests": request_count,
        "seconds": arguments.seconds,
        "warm_up_s": arguments.warm_up,
        "repeats": arguments.repeats,
        "seed": arguments.seed,
        "cpus": usable_cpu_count(),
        "python": platform.python_version(),
        "results": [each.as_json() for each in results],
    }
    if len(files) > 1:
        pairs = zip(results[::2], results[1::2], strict=True)
        document["ratios"] = [
            {
                "clients": first.load.clients,
                "rate": first.load.rate,
                **{key: spread.as_json() for key, spread in second.ratio_to(first).items()},
            }
            for first, second in pairs
        ]
    return document


def _whole(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


# ---- values of options -----------------------------------------------------------------------------------------


def _clients(text: str) -> tuple[int, ...]:
    """Read ``1,8,64``."""
    return tuple(count_of(part) for part in text.split(","))


def count_of(text: str) -> int:
    """Read a number of at least 1."""
    if not text.strip().isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of at least 1 is expected, got {text!r}")
    return int(text)


def _rates(text: str) -> tuple[float, ...]:
    return tuple(duration_of(part) for part in text.split(","))


def duration_of(text: str) -> float:
    """Read a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"a number above 0 is expected, got {text!r}")
    return number
