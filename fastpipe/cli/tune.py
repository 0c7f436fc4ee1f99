"""``fastpipe tune``: measures a pipe with other settings, and writes its file with the best of them.

Only settings that cannot change an answer are tried: ``instance_num``, ``max``, ``batching_timeout``, and ``threads``
of a backend that takes it. A change that gains next to nothing is not made.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastpipe.cli.bench import COST, add_load_arguments, count_of, duration_of, requests_of
from fastpipe.cli.load import Load, Sample, Target, Window, measure
from fastpipe.cli.loading import pipe_of_file
from fastpipe.cli.paths import check_output, writing
from fastpipe.cli.tables import Figures
from fastpipe.cli.terminal import progress_console, say, show
from fastpipe.cli.tuning import LEAST_BUSY, Choice, Outcome, Search, Setting, optuna_module, size_of
from fastpipe.config.described import NodeConfig
from fastpipe.config.nodes import ONE_NODE_NAME
from fastpipe.config.reading import BYTE_ORDER_MARK, load, read_toml
from fastpipe.config.values import constructor_parameters
from fastpipe.contract import Request
from fastpipe.cpus import usable_cpu_count
from fastpipe.errors import PipeError
from fastpipe.pipe import Pipe
from fastpipe.show.cards import seconds

__all__ = ["Tuner", "add_arguments", "run"]

TIMEOUTS_MS = (0.0, 1.0, 2.0, 5.0, 10.0)
LARGEST_BATCH = 256
# How often what was chosen is measured once more because something plainer was as good.
MOST_ROUNDS = 4
_SHAPE = re.compile(r"(\d+)((?:x\d+)+)")
_PLAIN = re.compile(r"\d+")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``fastpipe tune`` takes."""
    parser.epilog = (
        f"{COST}. Nothing else should run on the machine meanwhile. The load is a closed loop: what it found is "
        "measured in an open one by fastpipe bench FILE --compare OUT --rate R."
    )
    add_load_arguments(parser, seconds=2.0, repeats=3)
    parser.add_argument(
        "--clients", metavar="N", type=count_of, default=32, help="callers at once (default: %(default)s)"
    )
    parser.add_argument(
        "--p99-ms", metavar="MS", type=duration_of, help="a limit for the latency of 99 of 100 requests"
    )
    parser.add_argument(
        "--trials", metavar="N", type=count_of, default=30, help="how many settings are tried (default: %(default)s)"
    )
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="default: FILE as .tuned.toml, beside it")
    parser.add_argument("--plot", metavar="OUT.png", type=Path, help="draw what was tried, by throughput and p99")
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Search; 0 if the file is as good as can be or a better one was written, 1 if nothing keeps the limit."""
    # What is missing is said before anything is measured.
    from fastpipe.cli.toml_edits import with_values

    optuna_module()
    if arguments.plot is not None:
        from fastpipe.cli import plots

        plots.check_path(arguments.plot)
    check_output("--output", arguments.output)
    path: Path = arguments.file
    p99_s = None if arguments.p99_ms is None else arguments.p99_ms / 1e3
    tuner = Tuner(arguments, requests_of(arguments))
    settings = tuner.settings()
    if not settings:
        raise PipeError(f"{path}: no node has a setting that matters to its throughput")
    search = Search(settings, lambda choice: tuner.measured(settings, choice), p99_s, arguments.seed)
    with _progress(search, arguments.trials):
        search.search(arguments.trials)
        best, prices = _chosen(search, tuner)
    if best.score(p99_s) < 0:
        least = min(outcome.p99_s for outcome in search.outcomes.values())
        raise PipeError(
            f"{path}: no setting keeps p99 below {arguments.p99_ms:g} ms with {arguments.clients} clients; the least "
            f"of {len(search.outcomes)} was {seconds(least)}"
        )
    output = None
    if values := _changed(settings, search.start, best.choice):
        output = arguments.output or path.with_suffix(f".tuned{path.suffix}")
        with writing(output):
            output.write_bytes(with_values(path.read_bytes(), values))
    if arguments.json:
        say((json.dumps(_as_json(search, prices, best.choice, output), indent=2), ""))
    else:
        _show(search, prices, best.choice, output)
    if arguments.plot is not None:
        plots.tune(list(search.outcomes.values()), prices[search.start], best, p99_s, arguments.plot)
    return 0


def _chosen(search: Search, tuner: Tuner) -> tuple[Outcome, dict[Choice, Outcome]]:
    """Return the best settings without what does not pay, and what was measured in turns with them.

    What one window said is not believed: windows of the file as it was, of the best, and of the best without each of
    its changes take turns, until nothing plainer is as good.
    """
    best = search.without_what_does_not_pay()
    for _ in range(MOST_ROUNDS):
        prices = tuner.prices(search.settings, search.start, best.choice)
        best, before = search.plainest(list(prices.values())), best
        if best.choice == before.choice:
            break
    return best, prices


class Tuner:
    """Builds and measures the pipe of a file with other settings."""

    def __init__(self, arguments: argparse.Namespace, requests: Sequence[Request]) -> None:
        self._path: Path = arguments.file
        self._requests = requests
        self._load = Load(clients=arguments.clients)
        self._window = Window(arguments.warm_up, arguments.seconds)
        self._repeats: int = arguments.repeats
        self._timeout_s: float | None = arguments.timeout
        self._node: str | None = arguments.node
        self._is_one_node = False

    def settings(self) -> list[Setting]:
        """Return what may be set at the nodes that have work to do."""
        with pipe_of_file(self._path) as pipe:
            busy = self._sample_of(pipe).nodes
        busiest = max((node.busy_share for node in busy.values()), default=0.0)
        working = {name for name, node in busy.items() if node.busy_share >= LEAST_BUSY * busiest}
        written = read_toml(self._path.read_bytes().removeprefix(BYTE_ORDER_MARK).decode())
        self._is_one_node = not any(isinstance(table, Mapping) for name, table in written.items() if name != "global")
        configs = [config for config in load(self._path, {}).nodes if config.shares is None and config.name in working]
        largest = self._largest_batches(configs, written)
        cores, clients = usable_cpu_count(), self._load.clients or 1
        return [
            setting
            for config in configs
            for setting in _settings_of(config, written, min(largest[config.name], clients), cores)
        ]

    def _sample_of(self, pipe: Pipe) -> Sample:
        return measure(Target(pipe, self._requests, self._timeout_s, self._node), self._load, self._window)

    def _largest_batches(self, configs: Sequence[NodeConfig], written: Mapping[str, Any]) -> dict[str, int]:
        """Return how many requests the backend of each node takes at once, if it is let."""
        asked = {config.name: {"max": LARGEST_BATCH} for config in configs if _is_plain_max(written, config.name)}
        try:
            return self._max_batches(asked)
        except Exception:  # a backend refuses so many
            return self._max_batches({})

    def _max_batches(self, keywords: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
        with self._pipe(keywords) as pipe:
            return {station.name: station.max_batch for station in pipe.stations}

    def _pipe(self, keywords: Mapping[str, Mapping[str, Any]]) -> Pipe:
        """Build the pipe with other values for some keys of some nodes."""
        return Pipe(self._path, **dict(keywords.get(ONE_NODE_NAME, keywords) if self._is_one_node else keywords))

    def measured(self, settings: Sequence[Setting], choice: Choice) -> Outcome:
        """Measure a choice once."""
        keywords: dict[str, dict[str, Any]] = {}
        for setting, index in zip(settings, choice, strict=True):
            if index != setting.start:
                keywords.setdefault(setting.node, {})[setting.key] = setting.values[index]
        try:
            with self._pipe(keywords) as pipe:
                sample = self._sample_of(pipe)
        except Exception as error:  # a model that does not take such a batch, or memory that is not there
            return Outcome(choice, error=f"{type(error).__name__}: {error}")
        busy = {name: node.busy_share for name, node in sample.nodes.items()}
        return Outcome(choice, sample.requests_per_s, sample.quantile_s(0.99), busy)

    def prices(self, settings: Sequence[Setting], start: Choice, best: Choice) -> dict[Choice, Outcome]:
        """Measure, in turns, the file as it was, the best choice, and that without each of its changes."""
        choices = [start, best, *(without for _, without in _without_each(start, best))]
        found: dict[Choice, list[Outcome]] = {}
        for repeat in range(self._repeats):
            for choice in dict.fromkeys(choices if repeat % 2 == 0 else reversed(choices)):
                found.setdefault(choice, []).append(self.measured(settings, choice))
        return {choice: _median(outcomes) for choice, outcomes in found.items()}


def _median(outcomes: Sequence[Outcome]) -> Outcome:
    return Outcome(
        outcomes[0].choice,
        statistics.median(outcome.requests_per_s for outcome in outcomes),
        statistics.median(outcome.p99_s for outcome in outcomes),
        outcomes[0].busy,
        next((outcome.error for outcome in outcomes if outcome.error), None),
    )


def _without_each(start: Choice, best: Choice) -> Iterator[tuple[int, Choice]]:
    """Yield each index that differs, and the best choice with that one as it was."""
    for index in range(len(start)):
        if start[index] != best[index]:
            yield index, (*best[:index], start[index], *best[index + 1 :])


# ---- what may be set -------------------------------------------------------------------------------------------


def _settings_of(config: NodeConfig, written: Mapping[str, Any], largest: int, cores: int) -> Iterator[Setting]:
    """Yield the settings of one node; not those that are written in a form of several values or for one backend."""
    name = config.name
    if _is_free(written, name, "instance_num"):
        yield _setting(name, "instance_num", config.instance_num, _powers(2 * cores))
    shape = _SHAPE.fullmatch(str(_written_value(written, name, "max")))
    largest = max(largest, config.max or 1)
    if largest > 1 and _is_plain_max(written, name):
        yield _setting(name, "max", config.max or 1, _powers(largest))
    elif largest > 1 and shape and _is_free(written, name, "max"):
        now = int(shape[1])
        setting = _setting(name, "max", now, _powers(max(now, largest)))
        yield Setting(name, "max", tuple(f"{count}{shape[2]}" for count in setting.values), setting.start)
    if largest > 1 and _is_free(written, name, "batching_timeout"):
        yield _setting(name, "batching_timeout", config.settings["batching_timeout"], TIMEOUTS_MS)
    if cores > 1 and _takes_threads(config) and _is_free(written, name, "threads"):
        now = _written_value(written, name, "threads")
        yield _setting(name, "threads", cores if now is None else int(now), _powers(cores))


def _setting(node: str, key: str, now: Any, values: Sequence[Any]) -> Setting:
    every = sorted({*values, now})
    return Setting(node, key, tuple(every), every.index(now))


def _powers(most: int) -> list[int]:
    return [1 << exponent for exponent in range(most.bit_length()) if 1 << exponent <= most]


def _table(written: Mapping[str, Any], node: str) -> Mapping[str, Any]:
    table = written.get(node, {} if node != ONE_NODE_NAME else written)
    return table if isinstance(table, Mapping) else {}


def _written_value(written: Mapping[str, Any], node: str, key: str) -> Any:
    for table in (_table(written, node), written.get("global", {}), written):
        if key in table:
            return table[key]
    return None


def _is_free(written: Mapping[str, Any], node: str, key: str) -> bool:
    """Whether a key is not written for one backend alone, nor with values for several."""
    tables = (_table(written, node), written.get("global", {}), written)
    is_scoped = any(each.endswith(f"::{key}") for table in tables for each in table)
    return not is_scoped and not any(sign in str(_written_value(written, node, key)) for sign in "&|;,")


def _is_plain_max(written: Mapping[str, Any], node: str) -> bool:
    value = _written_value(written, node, "max")
    return _is_free(written, node, "max") and (value is None or _PLAIN.fullmatch(str(value)) is not None)


def _takes_threads(config: NodeConfig) -> bool:
    steps = config.plan.steps() if config.plan is not None else ()
    return any(isinstance(step.backend, type) and "threads" in constructor_parameters(step.backend) for step in steps)


# ---- what comes of it ------------------------------------------------------------------------------------------


def _changed(settings: Sequence[Setting], start: Choice, best: Choice) -> dict[tuple[str, str], Any]:
    """Return the values that the file does not have yet, by node and key."""
    return {
        (settings[index].node, settings[index].key): settings[index].values[best[index]]
        for index, _ in _without_each(start, best)
    }


def _show(
    search: Search,
    prices: Mapping[Choice, Outcome],
    best: Choice,
    output: Path | None,
) -> None:
    settings, was = search.settings, prices[search.start]

    def row(words: Sequence[str], outcome: Outcome) -> list[str]:
        if outcome.error is not None:
            return [*words, "cannot be built", "", ""]
        ratio = outcome.requests_per_s / was.requests_per_s
        return [*words, f"{outcome.requests_per_s:,.4g}", seconds(outcome.p99_s), f"{ratio:.2f}x"]

    rows = [row(["the file as it was", "", ""], was)]
    if output is not None:
        rows.append(row(["all of these", "", ""], prices[best]))
    changes = [change for change in _without_each(search.start, best) if change[1] in prices]
    for index, without in sorted(changes, key=lambda change: prices[change[1]].requests_per_s):
        setting = settings[index]
        was_value, value = (str(setting.values[number]) for number in (setting.start, best[index]))
        rows.append(row([f"without {setting.name}", was_value, value], prices[without]))
    show(Figures(["", "was", "is", "requests/s", "p99", "ratio"], rows, words=3, bold=frozenset({1})))
    failed = [outcome for outcome in search.outcomes.values() if outcome.error is not None]
    say(("", ""))
    say((f"{len(search.outcomes)} of {size_of(settings):,} settings were tried, of " + _keys_of(settings), ""))
    if failed:
        say((f"{len(failed)} of them could not be measured; the first: {failed[0].error}", "yellow"))
    told = "nothing that was tried is better than the file as it is" if output is None else f"written to {output}"
    say((told, "bold"))


def _keys_of(settings: Sequence[Setting]) -> str:
    keys: dict[str, list[str]] = {}
    for setting in settings:
        keys.setdefault(setting.node, []).append(setting.key)
    return "; ".join(f"{node}: {', '.join(names)}" for node, names in keys.items())


def _as_json(
    search: Search,
    prices: Mapping[Choice, Outcome],
    best: Choice,
    output: Path | None,
) -> dict[str, Any]:
    settings = search.settings

    def told(outcome: Outcome) -> dict[str, Any]:
        values = {setting.name: setting.values[index] for setting, index in zip(settings, outcome.choice, strict=True)}
        if outcome.error is not None:
            return {"values": values, "error": outcome.error}
        return {"values": values, "requests_per_s": outcome.requests_per_s, "p99_ms": outcome.p99_s * 1e3}

    return {
        "output": None if output is None else str(output),
        "was": told(prices[search.start]),
        "best": told(prices[best]),
        "without": {
            settings[i].name: told(prices[each]) for i, each in _without_each(search.start, best) if each in prices
        },
        "size": size_of(settings),
        "trials": [told(outcome) for outcome in search.outcomes.values()],
    }


@contextmanager
def _progress(search: Search, trials: int) -> Iterator[None]:
    """Show a bar on the terminal, if there is one and rich is installed."""
    console = progress_console()
    if console is None:
        yield
        return
    from rich import progress

    total = min(trials, size_of(search.settings))
    columns = (progress.TextColumn("settings tried"), progress.BarColumn(), progress.MofNCompleteColumn())
    with progress.Progress(
        *columns, progress.TimeElapsedColumn(), console=console, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        task = bar.add_task("", total=total)
        search.when_tried = lambda: bar.update(task, completed=min(len(search.outcomes), total))
        yield
