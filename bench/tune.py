"""Does ``fastpipe tune`` find what an exhaustive search finds, with a fifth of its runs?

    python bench/tune.py [--quick] [--case sleep]

Each case is a configuration. Every choice of settings is measured once; then the search looks, with at most a fifth as
many runs, without knowing any of them. In the end, the best of both are measured in turns, as the best of many windows
is also the luckiest. ``sleep`` and ``sleep-p99`` have a backend whose costs are known, so that a busy machine matters
little; ``thumbnails`` is examples/thumbnails/thumbnails.toml, which computes.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastpipe.cli.tune import Tuner
from fastpipe.cli.tuning import Choice, Outcome, Search

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SLEEP = '[model]\nbackend = "Sleep"   # 4 ms for a batch of any size\ntime = 4\n'
GOAL = 0.95
SHARE = 5
TURNS = 7


def photos() -> list[dict[str, bytes]]:
    """Return requests with JPEG files of one megapixel."""
    from PIL import Image

    generator = np.random.default_rng(0)
    requests = []
    for _ in range(8):
        file = io.BytesIO()
        small = Image.fromarray(generator.integers(0, 256, (24, 32, 3), np.uint8))
        small.resize((1152, 864), Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
        requests.append({"data": file.getvalue()})
    return requests


def every_choice(search: Search) -> list[Choice]:
    """Return all choices that differ in what they mean."""
    ranges = (range(len(setting.values)) for setting in search.settings)
    return list(dict.fromkeys(map(search.same, itertools.product(*ranges))))


def in_turns(tuner: Tuner, search: Search, choices: Sequence[Choice]) -> list[Outcome]:
    """Measure choices again and again, in turns; return the medians."""
    found: list[list[Outcome]] = [[] for _ in choices]
    for turn in range(TURNS):
        order = range(len(choices)) if turn % 2 == 0 else reversed(range(len(choices)))
        for which in order:
            found[which].append(tuner.measured(search.settings, choices[which]))
    return [
        Outcome(
            outcomes[0].choice,
            statistics.median(each.requests_per_s for each in outcomes),
            statistics.median(each.p99_s for each in outcomes),
        )
        for outcomes in found
    ]


def compare(
    name: str, file: Path, node: str, requests: list[dict[str, bytes]], p99_s: float | None, seconds: float
) -> bool:
    """Run both searches on one configuration, print a line, and say whether the goal was reached."""
    arguments = argparse.Namespace(
        file=file, clients=16, warm_up=seconds / 3, seconds=seconds, repeats=3, timeout=None, node=None
    )
    tuner = Tuner(arguments, requests)
    settings = [setting for setting in tuner.settings() if setting.node == node]  # all of two would take hours
    began_s = time.monotonic()
    exhaustive = Search(settings, lambda choice: tuner.measured(settings, choice), p99_s)
    choices = every_choice(exhaustive)
    outcomes = [tuner.measured(settings, choice) for choice in choices]
    best = max(outcomes, key=lambda outcome: outcome.score(p99_s))
    took_s = time.monotonic() - began_s

    runs = 0

    def run(choice: Choice) -> Outcome:
        nonlocal runs
        runs += 1
        return tuner.measured(settings, choice)

    began_s = time.monotonic()
    search = Search(settings, run, p99_s)
    search.search(len(choices) // SHARE - len(settings) - 1)  # the rest is for what does not pay
    found = search.without_what_does_not_pay()
    search_took_s = time.monotonic() - began_s
    was, all_best, own = in_turns(tuner, search, [search.start, best.choice, found.choice])
    ratio = own.requests_per_s / all_best.requests_per_s
    keeps = p99_s is None or own.p99_s <= p99_s * 1.05
    values = {s.name: s.values[i] for s, i in zip(settings, found.choice, strict=True) if i != s.start}
    print(
        f"{name}: exhaustive {len(choices)} runs, {took_s:.0f} s; tune {runs} runs, {search_took_s:.0f} s; "
        f"as it was {was.requests_per_s:.0f}/s, exhaustive {all_best.requests_per_s:.0f}/s, "
        f"tune {own.requests_per_s:.0f}/s (p99 {own.p99_s * 1e3:.1f} ms), ratio {ratio:.3f}: {json.dumps(values)}"
    )
    return ratio >= GOAL and keeps and runs * SHARE <= len(choices)


def main() -> int:
    """Run the cases; 0 if all reach the goal."""
    parser = argparse.ArgumentParser(description="Compare fastpipe tune with an exhaustive search.")
    parser.add_argument("--quick", action="store_true", help="short windows: shows that it runs")
    parser.add_argument("--case", action="append", choices=["sleep", "sleep-p99", "thumbnails"])
    arguments = parser.parse_args()
    seconds = 0.1 if arguments.quick else 0.5
    with tempfile.TemporaryDirectory() as folder:
        sleep = Path(folder, "sleep.toml")
        sleep.write_text(SLEEP)
        cases = {
            "sleep": lambda: compare("sleep", sleep, "model", [{"data": b""}], None, seconds),
            "sleep-p99": lambda: compare("sleep-p99", sleep, "model", [{"data": b""}], 0.02, seconds),
            "thumbnails": lambda: compare(
                "thumbnails", EXAMPLES / "thumbnails" / "thumbnails.toml", "decode", photos(), None, 2 * seconds
            ),
        }
        reached = [cases[name]() for name in arguments.case or cases]
    print(f"within {1 - GOAL:.0%} with a fifth of the runs: {sum(reached)} of {len(reached)}")
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
