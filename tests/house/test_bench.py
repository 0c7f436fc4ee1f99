"""The comparison in bench/: it counts right, judges right, and goes on without what is missing or crashes."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import once

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return what imports a module of bench/; those are scripts, which find each other beside themselves."""
    monkeypatch.syspath_prepend(BENCH)
    known = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - known:
        if getattr(sys.modules[name], "__file__", None) and Path(str(sys.modules[name].__file__)).parent == BENCH:
            del sys.modules[name]


def run_peers(output: Path, *arguments: str, stand_in_for_omniback: str = "") -> subprocess.CompletedProcess[str]:
    """Run the comparison with short windows; the stand-in is imported where omniback would be."""
    (output / "stand-ins").mkdir(parents=True)
    (output / "stand-ins" / "omniback.py").write_text(stand_in_for_omniback)
    settings = ["--seconds", "0.2", "--repeats", "2", "--output", str(output)]
    return subprocess.run(
        [sys.executable, str(BENCH / "peers.py"), *settings, *arguments],
        env={**os.environ, "PYTHONPATH": str(output / "stand-ins")},
        capture_output=True,
        text=True,
        check=False,
    )


MISSING = "raise ModuleNotFoundError('there is none', name='omniback')"
CRASHING = "import os; os._exit(3)"

# ---- measuring ---------------------------------------------------------------------------------------------------


def test_rate_and_percentiles_are_those_of_the_requests_in_the_window(bench: Any) -> None:
    """A hundred requests of 1 to 100 us within 2 s, of which one was on a CPU."""
    numbers = bench("common").summary_of([1000 * us for us in range(1, 101)], wall_s=2.0, cpu_s=1.0)
    assert numbers == {"requests_per_s": 50, "p50_us": 51, "p99_us": 100, "max_us": 100, "cpu_us": 10_000}


def test_a_window_without_requests_is_an_error(bench: Any) -> None:
    """A rate of nothing would look like a result."""
    with pytest.raises(TimeoutError, match="too short"):
        bench("common").summary_of([], wall_s=1.0, cpu_s=0.0)


def test_an_answer_that_is_somebody_elses_ends_the_measurement(bench: Any) -> None:
    """It is raised where the window was asked for, not swallowed in a client's thread."""
    contestants, common = bench("contestants"), bench("common")

    class Swapped(contestants.Contestant):  # type: ignore[misc,name-defined]
        def answer(self, data: int) -> int:
            return data ^ 1

    with pytest.raises(common.WrongAnswer, match="another's answer"):
        Swapped().run(2, common.Window(0.01, 0.01))
    with pytest.raises(common.WrongAnswer, match="wrong or missing"):
        Swapped().verify()


def test_mean_batch_counts_batches_of_the_window(bench: Any) -> None:
    """What was counted before measuring began is forgotten."""
    contestants, common = bench("contestants"), bench("common")
    node, batches = contestants.counted(contestants.Node(max_batch=4))
    batches.add(1000)
    numbers = contestants.Lock(node, batches).run(2, common.Window(0.01, 0.2))
    assert numbers["mean_batch"] == 1
    assert numbers["requests_per_s"] > 0


def test_a_ratio_pairs_windows_that_stood_side_by_side(bench: Any) -> None:
    """A machine at half its speed in the second window changes neither the ratio nor its spread."""
    spread = bench("common").Spread.of_ratio([30.0, 15.0], [10.0, 5.0])
    assert (spread.median, spread.least, spread.greatest) == (3, 3, 3)


@pytest.mark.parametrize("name", ["1280x720", "4000x3000", "517x606", "640x640"])
def test_the_sample_pictures_have_the_sizes_they_are_named_after(bench: Any, name: str) -> None:
    """They are made of scikit-image's."""
    cv2 = pytest.importorskip("cv2")
    numpy = pytest.importorskip("numpy")
    pytest.importorskip("skimage")
    image = cv2.imdecode(numpy.frombuffer(bench("images").jpeg(name, None), numpy.uint8), cv2.IMREAD_COLOR)
    assert f"{image.shape[1]}x{image.shape[0]}" == name


def test_a_window_is_long_enough_for_the_largest_picture(bench: Any) -> None:
    """In a short run, too: a request takes a tenth of a second there."""
    short = bench("common").Window(warm_up_s=0.15, measured_s=0.3)
    cases = bench("cases").all_cases()
    lengths = {name: cases[name].window(short).measured_s for name in ("jpeg 1280x720", "jpeg 4000x3000")}
    assert lengths == {"jpeg 1280x720": 0.3, "jpeg 4000x3000": 1.0}


# ---- judging -----------------------------------------------------------------------------------------------------


@pytest.fixture
def echo_results(bench: Any) -> tuple[Any, Any]:
    """Return the case "echo", and results in which fastpipe is 30 times as fast as omniback, for one client only."""
    report = bench("report")
    windows = {
        "fastpipe": [{"requests_per_s": 300.0, "p50_us": 1.0}, {"requests_per_s": 600.0, "p50_us": 1.5}],
        "omniback": [{"requests_per_s": 10.0, "p50_us": 70.0}, {"requests_per_s": 20.0, "p50_us": 75.0}],
    }
    results = report.Results({"machine": "any"})
    results.outcomes["echo"] = {who: report.Outcome({1: numbers}) for who, numbers in windows.items()}
    results.outcomes["echo"]["lock"] = report.Outcome(problem="skipped, nothing is installed")
    return bench("cases").all_cases()["echo"], results


def test_goals_stand_beside_what_was_reached(bench: Any, echo_results: tuple[Any, Any]) -> None:
    """What was not measured is neither reached nor missed."""
    case, results = echo_results
    one, ten, _ = bench("report").goal_table([case], results).splitlines()[2:]
    assert [cell.strip() for cell in one.split("|")[3:6]] == ["requests/s >= 25 x omniback", "30 x (30 to 30)", "yes"]
    assert [cell.strip() for cell in ten.split("|")[4:6]] == ["not measured", "-"]
    results.outcomes["echo"]["fastpipe"].windows[1] = [{"requests_per_s": 10.0}, {"requests_per_s": 20.0}]
    assert "**no**" in bench("report").goal_table([case], results).splitlines()[2]


def test_results_survive_being_written_and_read(bench: Any, echo_results: tuple[Any, Any], tmp_path: Path) -> None:
    """A run can be shown again."""
    _, results = echo_results
    results.write(tmp_path / "results.jsonl")
    assert bench("report").Results.read(tmp_path / "results.jsonl") == results


def test_the_page_keeps_what_stands_around_the_figures(
    bench: Any, echo_results: tuple[Any, Any], tmp_path: Path
) -> None:
    """Only what is between the marks is replaced."""
    pytest.importorskip("matplotlib")
    peers, (case, results) = bench("peers"), echo_results
    page = tmp_path / "page.md"
    page.write_text(f"before\n{peers.BEGIN}old\n{peers.END}after\n")
    for _ in range(2):
        peers.put_into_page(page, [case], results)
    text = page.read_text()
    assert text.startswith(f"before\n{peers.BEGIN}")
    assert text.endswith(f"{peers.END}after\n")
    assert "old" not in text
    assert text.count("What does a call cost") == 1
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


# ---- a whole run -------------------------------------------------------------------------------------------------


@once
def test_a_run_writes_tables_and_windows_and_skips_by_name_what_is_not_installed(tmp_path: Path) -> None:
    """The others are measured, under every load, as often as was asked for."""
    ran = run_peers(tmp_path, "--case", "chain", stand_in_for_omniback=MISSING)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "omniback: skipped, omniback is not installed" in ran.stdout
    about, *lines = [json.loads(line) for line in (tmp_path / "peers.jsonl").read_text().splitlines()]
    assert "CPUs" in about["machine"]
    windows = {(line["contestant"], line["clients"]): line["windows"] for line in lines if "windows" in line}
    assert set(windows) == {(who, n) for who in ("fastpipe", "executor", "queue", "lock") for n in (1, 10)}
    assert all(len(taken) == 2 and all(numbers["p50_us"] > 0 for numbers in taken) for taken in windows.values())
    assert "| fastpipe" in (tmp_path / "peers.md").read_text()


@once
def test_a_run_goes_on_without_a_contestant_whose_process_crashes(tmp_path: Path) -> None:
    """It ends well: fastpipe was measured."""
    ran = run_peers(tmp_path, "--case", "diamond", stand_in_for_omniback=CRASHING)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "omniback: failed: its process ended with status 3" in ran.stdout
    assert "| fastpipe" in ran.stdout


def test_a_case_that_does_not_exist_is_answered_with_those_that_do(tmp_path: Path) -> None:
    """Nobody has to read the source to find a name."""
    ran = run_peers(tmp_path, "--case", "nonsense")
    assert ran.returncode == 2
    assert "batches under load" in ran.stderr


# ---- servers -----------------------------------------------------------------------------------------------------

WRK_SAID = """\
    50%    2.50ms
    99%   15.30ms
  {odd}
  1000 requests in 1.00s, 1.36MB read
Requests/sec:    998.50
"""


def test_what_wrk_prints_is_read_and_a_run_with_failed_requests_is_none(bench: Any) -> None:
    """Its units are in the text; the CPU time is that of one request."""
    load = bench("serve_load")
    numbers = load.numbers_of_wrk(WRK_SAID.format(odd=""), cpu_s=0.1)
    assert numbers == {"requests_per_s": 998.5, "p50_us": 2500, "p99_us": 15300, "cpu_us": pytest.approx(100)}
    for odd in ("Non-2xx or 3xx responses: 3", "Socket errors: connect 0, read 1, write 0, timeout 0"):
        with pytest.raises(bench("common").WrongAnswer):
            load.numbers_of_wrk(WRK_SAID.format(odd=odd), cpu_s=0.1)


def test_servers_are_compared_window_by_window_with_the_best_settings_of_a_peer(bench: Any) -> None:
    """A goal is at least a ratio of requests/s, or at most one of latencies; who was not there is named."""
    serve = bench("serve")

    def windows(*rates: float) -> dict[int, list[dict[str, float]]]:
        return {8: [{"requests_per_s": rate, "p99_us": 1e6 / rate, "cpu_us": 1.0} for rate in rates]}

    shown = {serve.OURS: windows(30, 60), "peer, 1 x 4": windows(10, 20), "peer, 2 x 1": windows(20, 40)}
    goals = (
        serve.Goal("peer", 8, 1.4),
        serve.Goal("peer", 8, 1.6),
        serve.Goal("peer", 8, 0.7, "p99_us"),
        serve.Goal("absent", 8, 2.0),
    )
    rows = serve.tell(serve.Case("a case", (8,), {}, goals), shown)
    assert "x peer, 2 x 1 | 1.50 (1.50 to 1.50) | yes" in rows[0]
    assert "**no**" in rows[1]
    assert rows[2].endswith("yes |")
    assert "not measured" in rows[3]


@once
def test_a_server_is_started_told_and_ended(tmp_path: Path) -> None:
    """10 MB go in and come out, and are copied once at most on each way."""
    for module in ("uvicorn", "httptools", "orjson"):
        pytest.importorskip(module, reason="the extra serve is not installed here")
    command = [sys.executable, "-P", str(BENCH / "serve.py"), "--quick", "--case", "copies"]
    environment = {**os.environ, "PYTHONPATH": str(BENCH)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"10 MB in and out, HTTP .* \| yes \|$", ran.stdout, re.MULTILINE), ran.stdout


# ---- GPUs --------------------------------------------------------------------------------------------------------


def test_the_table_of_the_gpu_says_what_was_reached(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From what its scripts write: a goal is reached or not, whoever calls, and what has none is only shown."""
    monkeypatch.syspath_prepend(BENCH / "gpu")
    lines_of = importlib.import_module("run").LINES
    sys.modules.pop("run")

    def kernel(what: str, us: float, **more: Any) -> dict[str, Any]:
        way = {"host: an empty launch": "CuPy"}.get(what, "fastpipe, CuPy arrays")
        return {"what": what, "way": way, "us": us, "least": us, "greatest": us, **more}

    host = kernel("host: resize opencv, 64", 29.0)
    kernels = [
        kernel("fast", 1.0, share=0.95, goal=0.9),
        kernel("slow", 9.0, share=0.5, goal=0.9),
        kernel("host: an empty launch", 10.0),
        host,
        {**host, "way": "fastpipe, a table", "us": 31.0},
    ]

    def decode(way: str, rate: float, **more: float) -> dict[str, Any]:
        return {"what": "640x640", "way": way, "goal": 100, "requests_per_s": rate, **more}

    decoded = [
        decode("binding, decode only", 1e6),
        decode("64 threads", 101, p50_us=1.0, p99_us=21_000),
        decode("map", 99),
        decode("64 threads, beside a busy thread", 60, p50_us=1.0, p99_us=2.0, share=0.6),
        decode("map, beside a busy thread", 10, share=0.1),
        decode("one client", 5, p50_us=400.0, p99_us=500.0),
    ]
    models = [
        {"what": "graph, batch 64", "images_per_s": 100.0},
        {"what": "map", "images_per_s": 91.0, "share": 0.91},
    ]
    classified = [
        {"what": "a", "way": "map", "pipe": pipe, "goal": goal, "requests_per_s": rate}
        for pipe, rate, goal in (("one node", 7.0, 8), ("two nodes", 9.0, 8))
    ]
    several = [
        {"what": "cuda:0, map", "images_per_s": 10.0, "each": {"cuda:0": 10.0}, "ratio_to_one_gpu": 1.0},
        {"what": "all, map", "images_per_s": 18.0, "each": {"cuda:0": 9.0, "cuda:1": 9.0}, "ratio_to_one_gpu": 1.8},
    ]
    windows = {
        name: [{"requests_per_s": rate} for rate in rates]
        for name, rates in {"now": (110.0, 120.0, 90.0), "before": (100.0, 100.0, 100.0), "slow": (80.0,) * 3}.items()
    }
    beside = [
        {
            "image": "1080p",
            "pipe": "to tensor",
            "way": "map",
            "windows": {"before": windows[before], "now": windows[now]},
        }
        for before, now in (("before", "now"), ("before", "slow"))
    ]
    alone = {"image": "1080p", "pipe": "to class", "way": "map", "windows": {"now": windows["now"]}}
    numbers: dict[str, Any] = {
        "kernels": {"rows": kernels},
        "decode": {"rows": decoded},
        "torch_model": models,
        "classify": classified,
        "several_gpus": several,
        "beside": {"rows": [*beside, alone], "memory_mb": {"to tensor": 900.0}},
    }
    reached = {name: [line.is_reached for line in make(numbers[name])] for name, make in lines_of.items()}
    assert reached == {
        "kernels": [True, False, True, False],
        "decode": [False, False, True, True],
        "torch_model": [True],
        "classify": [True],
        "several_gpus": [False],
        "beside": [True, False, True],
    }


# ---- the runtimes of models --------------------------------------------------------------------------------------


def test_runtimes_are_compared_in_pairs_on_a_model_of_ones_own(tmp_path: Path) -> None:
    """Each has its time with its spread, and its error; ONNX Runtime is compared with itself, too."""
    pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    from onnx_models import color_model

    (tmp_path / "color.onnx").write_bytes(color_model())
    script, settings = str(BENCH / "model_runtimes.py"), ["--rounds", "2", "--seconds", "0.01", "--batch", "2"]
    ran = subprocess.run(
        [sys.executable, "-P", script, f"{tmp_path / 'color.onnx'}@1x3x8x8", *settings],
        env={**os.environ, "PYTHONPATH": str(BENCH)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    rows = [line for line in ran.stdout.splitlines() if line.startswith(("| ONNX Runtime", "| OpenVINO"))]
    assert rows[0].startswith("| ONNX Runtime fp32 |")
    assert "| 1.00 (1.00, 1.00) |" in rows[0]
    assert rows[1].startswith("| OpenVINO fp32 |")
    assert float(rows[1].rstrip("| ").rpartition("|")[2]) < 1e-5
