"""What comes out of a run: tables for the terminal and for Markdown, goals with what was reached, a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from cases import FIGURES, Case, Goal
from common import Numbers, Spread

__all__ = ["Outcome", "Results", "goal_table", "markdown", "plot", "tables_of"]


@dataclass
class Outcome:
    """One contestant in one case."""

    windows: dict[int, list[Numbers]] = field(default_factory=dict)
    """By clients; windows of equal index stood side by side."""
    problem: str | None = None
    """Why it was not measured, or not to the end."""


@dataclass
class Results:
    """All outcomes of a run, by case and contestant."""

    about: dict[str, Any]
    """The machine, the versions, the settings."""
    outcomes: dict[str, dict[str, Outcome]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write JSON lines: one about the run, then one for each case, contestant and load."""
        lines: list[Any] = [self.about]
        for case, by_contestant in self.outcomes.items():
            for contestant, outcome in by_contestant.items():
                who = {"case": case, "contestant": contestant}
                if outcome.problem is not None:
                    lines.append({**who, "problem": outcome.problem})
                lines += [{**who, "clients": n, "windows": windows} for n, windows in outcome.windows.items()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what ``write`` has written."""
        about, *lines = (json.loads(line) for line in path.read_text().splitlines())
        results = cls(about)
        for line in lines:
            outcome = results.outcomes.setdefault(line["case"], {}).setdefault(line["contestant"], Outcome())
            outcome.problem = line.get("problem", outcome.problem)
            if "windows" in line:
                outcome.windows[line["clients"]] = line["windows"]
        return results

    def values(self, case: Case, contestant: str, clients: int, figure: str) -> list[float] | None:
        """Return a figure of every window, or None if there is none."""
        outcome = self.outcomes.get(case.name, {}).get(contestant)
        windows = outcome.windows.get(clients) if outcome else None
        if not windows:
            return None
        if figure == "share":
            if case.ideal_per_s is None:
                return None
            ideal_per_s = case.ideal_per_s(clients)
            return [numbers["requests_per_s"] / ideal_per_s for numbers in windows]
        values = [numbers[figure] for numbers in windows if figure in numbers]
        return values or None

    def spread(self, case: Case, contestant: str, clients: int, figure: str) -> Spread | None:
        """Return the median of a figure, and its range."""
        values = self.values(case, contestant, clients, figure)
        return None if values is None else Spread.of(values)

    def reached(self, case: Case, goal: Goal) -> Spread | None:
        """Return what a goal is about; None if it was not measured."""
        ours = self.values(case, goal.of, goal.clients, goal.figure)
        if goal.over is None or ours is None:
            return None if ours is None else Spread.of(ours)
        others = self.values(case, goal.over, goal.clients, goal.figure)
        return None if others is None or len(others) != len(ours) else Spread.of_ratio(ours, others)


# ---- words and numbers -------------------------------------------------------------------------------------------


def shown(value: float, figure: str) -> str:
    """Return a number with three digits and its unit."""
    unit = FIGURES[figure].unit
    if unit == "us":
        return f"{_digits(value)} us" if value < 1000 else f"{_digits(value / 1000)} ms"
    if figure == "share":
        return f"{value:.3f}"
    if unit:
        return f"{value:.0f} {unit}"
    for size, letter in ((1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{_digits(value / (1e6 if letter == 'M' else 1e3))}{letter}"
    return _digits(value)


def _digits(value: float) -> str:
    decimals = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 2)}f}" if value % 1 else f"{value:.0f}"


def shown_spread(spread: Spread, figure: str) -> str:
    """Return the median, and the range in brackets if there is one."""
    median, least, greatest = (shown(value, figure) for value in (spread.median, spread.least, spread.greatest))
    return median if least == greatest else f"{median} ({least} to {greatest})"


def _shown_goal(goal: Goal) -> str:
    sign = ">=" if goal.is_at_least else "<="
    limit = f"{_digits(goal.limit)} x {goal.over}" if goal.over else shown(goal.limit, goal.figure)
    return f"{FIGURES[goal.figure].heading} {sign} {limit}"


def _shown_reached(goal: Goal, spread: Spread) -> str:
    if goal.over is None:
        return shown_spread(spread, goal.figure)
    return f"{_digits(spread.median)} x ({_digits(spread.least)} to {_digits(spread.greatest)})"


def load_of(case: Case, clients: int) -> str:
    """Return how a load is called."""
    return f"{clients} {case.load if clients == 1 else _plural(case.load)}"


def _plural(word: str) -> str:
    return f"{word}es" if word.endswith("s") else f"{word}s"


# ---- tables ------------------------------------------------------------------------------------------------------


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, of which the first is the heading, as a table that can be read as it is and is Markdown too."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    padded.insert(1, ["-" * width for width in widths])
    return "".join(f"| {' | '.join(row)} |\n" for row in padded)


def tables_of(case: Case, results: Results) -> str:
    """Return a table for each figure of a case: contestants by load."""
    outcomes = results.outcomes.get(case.name, {})
    text = f"### {case.name}\n\n{case.question}\n\n"
    for number, figure in enumerate(case.figures):
        rows = [[FIGURES[figure].heading, *(load_of(case, clients) for clients in case.clients)]]
        for contestant in outcomes:
            spreads = [results.spread(case, contestant, clients, figure) for clients in case.clients]
            if any(spreads):
                # The range matters for the first figure; in all tables it would bury the numbers.
                show = shown_spread if number == 0 else lambda spread, figure: shown(spread.median, figure)
                rows.append([contestant, *("" if spread is None else show(spread, figure) for spread in spreads)])
        if len(rows) > 1:
            text += _table(rows) + "\n"
    text += "".join(f"{who}: {outcome.problem}\n\n" for who, outcome in outcomes.items() if outcome.problem)
    return text


def goal_table(cases: Iterable[Case], results: Results) -> str:
    """Return all goals of the cases that ran, with what was reached."""
    rows = [["case", "load", "goal", "measured", "goal reached"]]
    for case in cases:
        if case.name in results.outcomes:
            for goal in case.goals:
                spread = results.reached(case, goal)
                measured = "not measured" if spread is None else _shown_reached(goal, spread)
                verdict = "-" if spread is None else "yes" if goal.is_reached_by(spread.median) else "**no**"
                name = case.name if goal.of == "fastpipe" else f"{case.name} ({goal.of})"
                rows.append([name, load_of(case, goal.clients), _shown_goal(goal), measured, verdict])
    return _table(rows) if len(rows) > 1 else ""


def about_table(about: Mapping[str, Any]) -> str:
    """Return what the figures were taken on."""
    return _table([["what", "on this run"], *([key, str(value)] for key, value in about.items())])


def markdown(cases: Sequence[Case], results: Results) -> str:
    """Return the whole report."""
    ran = [case for case in cases if case.name in results.outcomes]
    details = "".join(tables_of(case, results) for case in ran)
    return (
        f"{about_table(results.about)}\n## Goals\n\n{goal_table(ran, results)}\n## All figures\n\n{details}".rstrip()
        + "\n"
    )


# ---- the plot ----------------------------------------------------------------------------------------------------

COLUMNS = 4
COLORS = {
    "fastpipe": "#d62728",
    "omniback": "#1f77b4",
    "executor": "#2ca02c",
    "queue": "#9467bd",
    "queue that waits": "#c5b0d5",
    "lock": "#7f7f7f",
    "the sleep alone": "#bbbbbb",
    "plain OpenCV": "#ff7f0e",
    "rapidocr's own loop": "#ff7f0e",
}
PLOTTED_ON_LOG_SCALE = {"requests_per_s", "p50_us"}


def plot(cases: Sequence[Case], results: Results, paths: Sequence[Path]) -> None:
    """Draw the first figure of each case, and the goals, into image files.

    Raises:
        ImportError: if Matplotlib is not installed.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown_cases = [case for case in cases if case.name in results.outcomes and _is_plotted(case)]
    if not shown_cases:
        return
    row_count = math.ceil(len(shown_cases) / COLUMNS)
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(4 * COLUMNS, 3 * row_count), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(row_count, COLUMNS, squeeze=False).flat
        handles: dict[str, Any] = {}
        for case, panel in zip(shown_cases, panels, strict=False):
            handles.update(_draw(case, results, panel))
        for panel in list(figure.axes)[len(shown_cases) :]:
            panel.set_axis_off()
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
        for path in paths:
            figure.savefig(path, dpi=110)


def _is_plotted(case: Case) -> bool:
    return bool(case.figures) and FIGURES[case.figures[0]].unit in {"", "us"}


def _draw(case: Case, results: Results, panel: Any) -> dict[str, Any]:
    figure = case.figures[0]
    handles: dict[str, Any] = {}
    contestants = [name for name in case.contestants if results.spread(case, name, case.clients[0], figure)]
    for place, contestant in enumerate(contestants):
        points = [
            (index, spread)
            for index, clients in enumerate(case.clients)
            if (spread := results.spread(case, contestant, clients, figure)) is not None
        ]
        # One load: contestants side by side. Several: a line for each, from load to load.
        offset = (place - (len(contestants) - 1) / 2) * (0.12 if len(case.clients) == 1 else 0.03)
        handles[contestant] = panel.errorbar(
            [index + offset for index, _ in points],
            [spread.median for _, spread in points],
            yerr=[
                [spread.median - spread.least for _, spread in points],
                [spread.greatest - spread.median for _, spread in points],
            ],
            color=COLORS.get(contestant, "black"),
            marker="o",
            markersize=5 if contestant == "fastpipe" else 3,
            linewidth=2 if contestant == "fastpipe" else 1,
            elinewidth=1,
            capsize=2,
            zorder=3 if contestant == "fastpipe" else 2,
        )
    for goal in case.goals:
        if goal.figure == figure and goal.clients in case.clients:
            base = 1.0
            if goal.over is not None:
                other = results.spread(case, goal.over, goal.clients, figure)
                if other is None:
                    continue
                base = other.median
            index = case.clients.index(goal.clients)
            handles["goal"] = panel.hlines(goal.limit * base, index - 0.25, index + 0.25, "black", "dotted", zorder=4)
    if figure in PLOTTED_ON_LOG_SCALE:
        panel.set_yscale("log")
    else:
        panel.set_ylim(bottom=0, top=1.08 if figure == "share" else None)
    panel.set_xticks(range(len(case.clients)), [str(clients) for clients in case.clients])
    panel.set_xlim(-0.6, len(case.clients) - 0.4)
    panel.set_xlabel(_plural(case.load))
    unit = f" ({FIGURES[figure].unit})" if FIGURES[figure].unit else ""
    better = "higher" if FIGURES[figure].is_better_if_higher else "lower"
    panel.set_title(f"{case.name}: {FIGURES[figure].heading}{unit}, {better} is better", fontsize=8)
    panel.grid(axis="y", alpha=0.3)
    return handles
