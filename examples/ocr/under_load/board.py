"""What is seen while the load goes on: a table that changes on a terminal, a line for each window anywhere else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ocr.under_load.arrivals import Offer, Window
from ocr.under_load.contestants import Answer, Contestant
from ocr.under_load.ladder import Climb, Figures, Goal

__all__ = ["held", "milliseconds", "of_windows", "rate", "shown", "summary"]

REFRESHES_PER_S = 4
# With the names, a table of 80 columns. The widths stay, so that nothing moves while the figures change.
WIDTHS = {"": 0, "offered": 7, "answered": 8, "p50": 8, "p99": 8, "held": 4}


def rate(per_s: float) -> str:
    """Return a number of requests in a second as a person reads it."""
    return f"{per_s:.0f}" if per_s >= 10 else f"{per_s:.1f}"


def milliseconds(seconds: float) -> str:
    """Return a latency as a person reads it."""
    if not math.isfinite(seconds):
        return "given up"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.1f} ms"


@contextmanager
def shown(console: Console, ways: Sequence[Contestant], goal: Goal) -> Iterator[Climb]:
    """Return a listener that shows what it hears."""
    if not console.is_terminal:
        yield _Lines(console, goal)
        return
    board = _Board(ways, goal)
    with Live(board.table(), console=console, refresh_per_second=REFRESHES_PER_S, transient=True) as live:
        board.live = live
        yield board


class _Lines(Climb):
    """A line for each window."""

    def __init__(self, console: Console, goal: Goal) -> None:
        self._console, self._goal = console, goal

    def ended(self, contestant: Contestant, step: int, window: Window, sizes: dict[str, float]) -> None:
        p50, p99 = (milliseconds(window.percentile_s(percent)) for percent in (50, 99))
        verdict = "held" if window.percentile_s(99) <= self._goal.bound_s else "not held"
        batches = f"; batches: {_batches(sizes)}" if sizes else ""
        self._console.print(
            f"{contestant.name:21} offered {rate(window.rate_per_s)}/s, answered {rate(window.answered_per_s)}/s,"
            f" p50 {p50}, p99 {p99}: {verdict}{batches}",
            highlight=False,
            soft_wrap=True,
        )


class _Board(Climb):
    """A row for each contestant, with its last window; the one that is being measured is bold."""

    def __init__(self, ways: Sequence[Contestant], goal: Goal) -> None:
        self.live: Live | None = None
        self._goal = goal
        self._rows = {way.name: ["", "", "", "", ""] for way in ways}
        self._batches: dict[str, str] = {way.name: "" for way in ways if way.pipe}
        self._held = dict.fromkeys(self._rows, 0.0)
        self._name = ""
        self._offer: Offer[Answer] | None = None

    def table(self) -> Table:
        """Return what is shown now."""
        bound = milliseconds(self._goal.bound_s)
        table = Table(title=f"Search under load, in requests/s (held: with a p99 of at most {bound})")
        for heading, width in WIDTHS.items():
            table.add_column(heading, justify="right" if heading else "left", min_width=width, no_wrap=True)
        for name, cells in self._rows.items():
            table.add_row(name, *cells, style="bold" if name == self._name else "")
        table.caption = "\n".join(f"{name}, mean batch: {sizes}" for name, sizes in self._batches.items() if sizes)
        return table

    def begun(self, contestant: Contestant, step: int, offer: Offer[Answer]) -> None:
        self._name, self._offer = contestant.name, offer
        self._set([rate(offer.rate_per_s), "", "", "", self._rows[self._name][-1]])

    def ticked(self) -> None:
        if self._offer:
            self._set([*_figures(self._offer.so_far()), self._rows[self._name][-1]])

    def ended(self, contestant: Contestant, step: int, window: Window, sizes: dict[str, float]) -> None:
        if window.percentile_s(99) <= self._goal.bound_s:
            self._held[self._name] = max(self._held[self._name], window.rate_per_s)
        most = self._held[self._name]
        if sizes:
            self._batches[self._name] = _batches(sizes)
        self._set([*_figures(window), rate(most) if most else "-"])

    def _set(self, cells: list[str]) -> None:
        self._rows[self._name] = cells
        if self.live:
            self.live.update(self.table())


def _figures(window: Window) -> list[str]:
    percentiles = [milliseconds(window.percentile_s(percent)) for percent in (50, 99)]
    return [rate(window.rate_per_s), rate(window.answered_per_s), *percentiles]


def _batches(sizes: dict[str, float]) -> str:
    return ", ".join(f"{name} {size:.1f}" for name, size in sizes.items())


def summary(figures: Figures, ways: Sequence[Contestant]) -> Table:
    """Return what was measured, as a table: all at one load, and the highest that each held."""
    first = rate(figures.goal.rate_per_s(0))
    bound = milliseconds(figures.goal.bound_s)
    table = Table(title=f"Search, in turns, {of_windows(figures)} (held: with a p99 of at most {bound})")
    for heading in ("", f"p50 at {first}/s", f"p99 at {first}/s", "held/s", "mean batch"):
        table.add_column(heading, justify="right" if heading else "left")
    for way in ways:
        window, step = figures.better(way.name, 0), figures.held[way.name] or 0
        percentiles = [milliseconds(window.percentile_s(percent)) for percent in (50, 99)]
        size = max(figures.batch_sizes.get((way.name, step), {"": 1.0}).values())
        table.add_row(way.name, *percentiles, held(figures, way.name), f"{size:.1f}")
    return table


def of_windows(figures: Figures) -> str:
    """Return of which windows all figures are."""
    return f"in the better of two windows of {figures.window_s:g} s"


def held(figures: Figures, name: str) -> str:
    """Return the highest load that a contestant held, as a person reads it."""
    per_s, is_unfinished = figures.held_per_s(name), name in figures.unfinished
    if not per_s:
        return "none yet" if is_unfinished else "none"
    return f"at least {rate(per_s)}" if is_unfinished else rate(per_s)
