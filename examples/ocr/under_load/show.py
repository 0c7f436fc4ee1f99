"""The service under load, from the lines that were read to the three lines that say what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import wait
from pathlib import Path

from rich.console import Console

from ocr.neighbours import Neighbours, disturbance
from ocr.pages import PageFile
from ocr.under_load import verdict
from ocr.under_load.board import milliseconds, rate, shown, summary
from ocr.under_load.chart import save_chart
from ocr.under_load.contestants import contestants
from ocr.under_load.costs import cost_of_line, cost_of_query
from ocr.under_load.ladder import Plan, climb, goal_of
from ocr.under_load.search import Searcher, worth_finding

__all__ = ["show_under_load"]

WITHOUT_BATCHES = 1  # the executor's place among the contestants
# Where nothing else runs, some 30 windows are enough, and most of those that are not held are cut short.
LONGEST_WINDOWS = 56


def show_under_load(
    console: Console, page: PageFile, lines: Sequence[str], cpu_count: int, window_s: float, chart: Path
) -> None:
    """Let five ways of searching in the lines answer the same queries, and print what each of them holds.

    Args:
        console: where it is printed.
        page: any page, for what a line costs.
        lines: what was read.
        cpu_count: how many CPUs all have to use.
        window_s: the seconds of each window of load.
        chart: where the chart goes.

    Raises:
        DemoError: if an answer is wrong.
        ModelsMissing: if the packages with the model are not installed.
        OSError: if the chart cannot be written.
        KeyboardInterrupt: after Ctrl-C; all threads have ended by then.
    """
    queries = Path(__file__).with_name("queries.txt").read_text().splitlines()
    with console.status("loading the language model"):
        search = Searcher(1)
        search.index = search.indexed(worth_finding(lines))
        costs = cost_of_query(search, queries[0]), cost_of_line(page.content)
    with contestants(search.index, cpu_count) as ways:
        with console.status("finding out what this machine does"):
            for way in ways:
                wait([way.submit(query) for query in queries])  # the first runs, also of batches, are slower
            goal = goal_of(search, ways[WITHOUT_BATCHES], queries, cpu_count)
        console.print(
            f"A search in the {len(search.index.lines)} lines: a query takes {milliseconds(goal.alone_s)} alone, and"
            f" {cpu_count} CPUs do {rate(goal.capacity_per_s)}/s, one by one. Queries now arrive at random moments"
            f" (Poisson), at {rate(goal.rate_per_s(0))}/s and then at more or less, for each way in turns."
            f" {verdict.bound(goal)}",
            highlight=False,
        )
        neighbours = Neighbours()
        with shown(console, ways, goal) as listener:
            figures = climb(ways, goal, Plan(window_s, LONGEST_WINDOWS * window_s, queries), search, listener)
        disturbed = disturbance(neighbours.share())
    console.print(summary(figures, ways))
    console.print(
        f"All {sum(figures.answer_counts)} answers are right: they are those of the model for each query alone. The"
        " endpoints are called by ASGI in this process, without HTTP; the def endpoint runs on FastAPI's 40 threads, as"
        " it comes.",
        highlight=False,
    )
    if save_chart(figures, ways, chart):
        console.print(f"The chart is {chart}", highlight=False, soft_wrap=True)
    console.print()
    for text in (
        *([disturbed] if disturbed else []),
        verdict.at_one_load(figures, ways),
        verdict.highest_loads(figures, ways),
        verdict.batching(figures, *costs),
    ):
        console.print(text, highlight=False)
