"""How much load does each hold? All start at one load, in turns, and climb or descend from there, step by step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ocr import DemoError
from ocr.under_load.arrivals import Offer, Window
from ocr.under_load.contestants import Answer, Contestant
from ocr.under_load.search import Hit, Index, Searcher

__all__ = ["BOUND_IN_QUERIES", "STEP", "Climb", "Figures", "Goal", "Judge", "Key", "Place", "Plan", "climb", "goal_of"]

STEP = 1.25
# Of what the machine computes without batches: there a queue is felt, and nobody drowns yet.
FIRST_SHARE = 0.8
TURNS_AT_FIRST = 2
TRIES = 2  # a machine does other things, too: a load counts as not held if it was not, so many times
LOWEST_STEP, HIGHEST_STEP = -6, 10
# A bound that a person would set: a round number of milliseconds, so many times what one query takes.
BOUNDS_MS = (20, 50, 100, 200, 500, 1000, 2000, 5000)
BOUND_IN_QUERIES = 20
LARGEST_DIFFERENCE = 1e-3  # of two scores of one line: batches may add up in another order

Key = tuple[str, int]
"""A contestant's name, and the step of the ladder: 0 is where all start."""


@dataclass(frozen=True)
class Goal:
    """What is looked for, on this machine.

    Attributes:
        alone_s: how long a query takes that is alone.
        capacity_per_s: queries that the machine computes in a second, each by itself, on all CPUs.
        bound_s: what 99 of 100 requests may take, for a load to count as held.
    """

    alone_s: float
    capacity_per_s: float
    bound_s: float

    def rate_per_s(self, step: int) -> float:
        """Return the load at a step of the ladder."""
        return FIRST_SHARE * self.capacity_per_s * STEP**step


@dataclass(frozen=True)
class Plan:
    """What is sent, in windows of so many seconds; after ``longest_s`` no more are begun."""

    window_s: float
    longest_s: float
    queries: Sequence[str]


@dataclass(frozen=True)
class Figures:
    """What was measured.

    Attributes:
        goal: what was looked for.
        window_s: how long a window was; longer, where too few requests would have come.
        windows: of each contestant and step, in the order of time.
        batch_sizes: of each contestant that has batches and each step: by node, how many requests shared one.
        held: of each contestant, the highest step that it held; None: not even the lowest tried.
        unfinished: the contestants for which the time was up before they came as far as they can.
        answer_counts: how many answers of each window were compared, and found right.
    """

    goal: Goal
    window_s: float
    windows: dict[Key, list[Window]] = field(default_factory=lambda: defaultdict(list))
    batch_sizes: dict[Key, dict[str, float]] = field(default_factory=dict)
    held: dict[str, int | None] = field(default_factory=dict)
    unfinished: set[str] = field(default_factory=set)
    answer_counts: list[int] = field(default_factory=list)

    def better(self, name: str, step: int) -> Window:
        """Return a contestant's window at a step with the lower 99th percentile: it says whether the step was held.

        All figures that are shown are of it, so that none contradicts another.
        """
        return min(self.windows[name, step], key=lambda window: window.percentile_s(99))

    def p99_s(self, name: str, step: int) -> float:
        """Return the 99th percentile of the better window."""
        return self.better(name, step).percentile_s(99)

    def steps_of(self, name: str) -> list[int]:
        """Return the steps that a contestant was measured at, lowest first."""
        return sorted(step for own, step in self.windows if own == name)

    def held_per_s(self, name: str) -> float:
        """Return the highest load that a contestant held, in requests/s; 0: none."""
        step = self.held.get(name)
        return 0.0 if step is None else self.goal.rate_per_s(step)


class Climb:
    """What a listener gets told; each method does nothing."""

    def begun(self, contestant: Contestant, step: int, offer: Offer[Answer]) -> None:
        """Hear that a window begins."""

    def ticked(self) -> None:
        """Hear that some time of the window has passed."""

    def ended(self, contestant: Contestant, step: int, window: Window, sizes: dict[str, float]) -> None:
        """Hear that it is over, and what came of it."""


def goal_of(search: Searcher, contestant: Contestant, queries: Sequence[str], cpu_count: int) -> Goal:
    """Measure what this machine can do, with queries that get no company.

    Args:
        search: without a pipe, with one thread.
        contestant: one without batches that uses all CPUs.
        queries: what is asked.
        cpu_count: how many CPUs there are to use.
    """
    alone_s = []
    for query in queries[:20]:
        start = time.perf_counter()
        search.find(query)
        alone_s.append(time.perf_counter() - start)
    median_s = float(np.median(alone_s))
    count = 4 * cpu_count + int(0.6 * cpu_count / median_s)
    start = time.perf_counter()
    wait([contestant.submit(queries[number % len(queries)]) for number in range(count)])
    capacity_per_s = count / (time.perf_counter() - start)
    bound_ms = next((ms for ms in BOUNDS_MS if ms >= 1e3 * BOUND_IN_QUERIES * median_s), BOUNDS_MS[-1])
    return Goal(median_s, capacity_per_s, bound_ms / 1e3)


def climb(ways: Sequence[Contestant], goal: Goal, plan: Plan, search: Searcher, listener: Climb) -> Figures:
    """Let all climb as far as each comes, or as far as the time allows.

    Raises:
        DemoError: if an answer is not what the model says of a query alone.
        KeyboardInterrupt: after Ctrl-C.
    """
    figures = Figures(goal, plan.window_s)
    runner = _Runner(figures, plan, Judge(search, plan.queries), listener)
    end_s = time.monotonic() + plan.longest_s
    for turn in range(TURNS_AT_FIRST):
        for way in _rotated(ways, turn):
            runner.run(way, 0)
    places = {}
    for way in ways:
        is_held = figures.p99_s(way.name, 0) <= goal.bound_s
        figures.held[way.name] = 0 if is_held else None
        places[way.name] = Place(1 if is_held else -1)
    turn = 0
    while places and time.monotonic() < end_s:
        for way in _rotated([way for way in ways if way.name in places], turn):
            place = places[way.name]
            step = place.step
            is_held = runner.run(way, step).percentile_s(99) <= goal.bound_s
            if is_held:
                figures.held[way.name] = step
            if not place.moves_on(is_held):
                del places[way.name]
        turn += 1
    figures.unfinished.update(places)
    return figures


class Place:
    """Where a contestant is on the ladder, and which way it goes: up (1) for as long as it holds, or down (-1)."""

    def __init__(self, direction: int) -> None:
        self.step = direction
        self._direction, self._failures = direction, 0

    def moves_on(self, is_held: bool) -> bool:
        """Go on after a window; say whether there is anything left to try."""
        self._failures = 0 if is_held else self._failures + 1
        if is_held and self._direction < 0:
            return False
        if not is_held and self._failures < TRIES:
            return True  # again, when the others have had their turn
        if not is_held and self._direction > 0:
            return False
        self.step += self._direction
        self._failures = 0
        return LOWEST_STEP <= self.step <= HIGHEST_STEP


def _rotated(ways: Sequence[Contestant], turn: int) -> list[Contestant]:
    """Return all, another one first in each turn."""
    first = turn % len(ways)
    return [*ways[first:], *ways[:first]]


class _Runner:
    """Runs the windows of a climb, and keeps what they gave."""

    def __init__(self, figures: Figures, plan: Plan, judge: Judge, listener: Climb) -> None:
        self._figures, self._plan, self._judge, self._listener = figures, plan, judge, listener

    def run(self, way: Contestant, step: int) -> Window:
        """Offer the load of a step for the length of a window."""
        goal, windows = self._figures.goal, self._figures.windows[way.name, step]
        # The same gaps and queries for all; others in a second turn.
        random = np.random.default_rng(1000 * len(windows) + step + 100)
        queries = [self._plan.queries[place] for place in random.permutation(len(self._plan.queries))]
        offer = Offer(way.submit, queries, goal.rate_per_s(step), self._plan.window_s, 2 * goal.bound_s, random)
        before: Any = way.pipe.stats() if way.pipe else None
        self._listener.begun(way, step, offer)
        window = offer.run(self._listener.ticked)
        sizes = {}
        if way.pipe:
            nodes = way.pipe.stats(since=before)["nodes"]
            sizes = {name: node["mean_batch"] for name, node in nodes.items()}
            self._figures.batch_sizes[way.name, step] = sizes
        self._figures.answer_counts.append(self._judge.check(way.name, offer.answers))
        windows.append(window)
        self._listener.ended(way, step, window, sizes)
        return window


class Judge:
    """Knows the right answers: what the model says of each query alone."""

    def __init__(self, search: Searcher, queries: Sequence[str]) -> None:
        index: Index = search.index
        self._scores = {
            query: dict(zip(index.lines, index.scores(search.meaning(query)).tolist(), strict=True))
            for query in queries
        }  # fmt: skip

    def check(self, name: str, answers: Sequence[tuple[str, list[Hit]]]) -> int:
        """Return how many answers there are.

        Raises:
            DemoError: if one is wrong.
        """
        for query, hits in answers:
            if not self.is_right(query, hits):
                raise DemoError(f"{name} answers {query!r} with {hits}")
        return len(answers)

    def is_right(self, query: str, hits: Sequence[Hit]) -> bool:
        """Say whether the lines have the scores that they say, and no line left out is nearer."""
        scores = self._scores[query]
        best = sorted(scores.values(), reverse=True)[: len(hits)]
        return (
            len(hits) > 0
            and len({line for line, _ in hits}) == len(hits)
            and all(
                abs(score - scores.get(line, np.inf)) <= LARGEST_DIFFERENCE
                and abs(score - expected) <= LARGEST_DIFFERENCE
                for (line, score), expected in zip(hits, best, strict=True)
            )
        )
