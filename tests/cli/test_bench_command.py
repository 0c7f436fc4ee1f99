"""``fastpipe bench``: loads, figures, and that latencies of an open loop count from when a request was to arrive."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fastpipe import Pipe
from fastpipe.cli import load
from fastpipe.cli.load import Load, Target, Window, measure
from fastpipe.cli.main import main

SHORT = Window(0.05, 0.3)
QUICK = ["--seconds", "0.15", "--warm-up", "0.05", "--repeats", "2"]


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's folder is the working directory, with two configurations in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("slow.toml").write_text('[slow]\nbackend = "Sleep"\ntime = 8\n')
    Path("fast.toml").write_text('[fast]\nbackend = "Sleep"\ntime = 2\n')
    return tmp_path


def test_a_closed_loop_waits_for_each_answer() -> None:
    """One client of a backend that takes 5 ms gets no more than 200 answers a second; four of four get four times."""
    with Pipe(backend="Sleep", time=5, instance_num=4) as pipe:
        one = measure(Target(pipe, [{"data": 1}]), Load(clients=1), SHORT)
        four = measure(Target(pipe, [{"data": 1}]), Load(clients=4), SHORT)
    assert 0 < one.requests_per_s < 205
    assert one.quantile_s(0.5) >= 0.005
    assert four.requests_per_s > 2 * one.requests_per_s
    assert one.kept_up
    assert 0.2 < one.nodes["main"].busy_share * 4 <= 1.1


def test_an_open_loop_sees_the_requests_that_wait_for_a_stall() -> None:
    """No coordinated omission: one batch of 200 ms at 200 requests a second is seen by some forty of them."""
    import time

    calls = 0

    def stalls_once(data: int) -> int:
        nonlocal calls
        calls += 1
        time.sleep(0.2 if calls == 60 else 0.0005)
        return data

    window = Window(0.05, 0.8)
    with Pipe(backend=stalls_once) as pipe:
        open_loop = measure(Target(pipe, [{"data": 1}]), Load(rate=200), window, 1)
        calls = 0
        closed_loop = measure(Target(pipe, [{"data": 1}]), Load(clients=1), window)
    seen = (open_loop.latencies_s > 0.05).sum()
    assert seen > 10
    assert (closed_loop.latencies_s > 0.05).sum() < seen / 2


def test_an_open_loop_that_cannot_keep_up_says_so_and_ends() -> None:
    """What has no answer in the end counts with the time it has waited."""
    with Pipe(backend="Sleep", time=20) as pipe:
        sample = measure(Target(pipe, [{"data": 1}]), Load(rate=1000), Window(0.05, 0.3))
    assert not sample.kept_up
    assert sample.unfinished > 100
    assert sample.quantile_s(0.99) > 0.3


def test_arrivals_are_poissons_and_repeat_with_their_seed() -> None:
    """Their gaps have the mean of the rate, and as large a deviation."""
    import numpy as np

    times = np.array(list(load._arrivals_s(1000, 20, seed=3)))
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1e-3, rel=0.05)
    assert gaps.std() == pytest.approx(1e-3, rel=0.05)
    assert times.tolist() == list(load._arrivals_s(1000, 20, seed=3))
    assert times.tolist() != list(load._arrivals_s(1000, 20, seed=4))


def test_the_command_shows_a_table(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each load, and the nodes under the load with the most answers."""
    words = ["bench", "slow.toml", "--data", "1", "--clients", "1,3", "--rate", "50", *QUICK]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith(("1 client", "3 clients", "50/s"))] == [
        "1 client",
        "3 clients",
        "50/s",
    ]
    assert lines[-1].split()[0] == "slow"


@pytest.mark.parametrize("command", ["bench", "debug", "tune"])
def test_data_that_cannot_be_read_are_said_in_a_line(
    command: str, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by a traceback."""
    if command == "tune":
        pytest.importorskip("optuna")
        pytest.importorskip("tomlkit")
    Path("lines.jsonl").write_text("{bad\n")
    assert main([command, str(next(Path().glob("*.toml"))), "--data", "@lines.jsonl"]) == 1
    assert "lines.jsonl:1: the line is no JSON" in capsys.readouterr().err


def test_two_files_are_compared_in_turns(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON, with the ratio of both."""
    words = ["bench", "slow.toml", "--compare", "fast.toml", "--data", "1", "--clients", "1", "--json", *QUICK]
    assert main(words) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [each["file"] for each in document["results"]] == ["slow.toml", "fast.toml"]
    assert document["ratios"][0]["requests_per_s"]["median"] > 1.5
    assert document["ratios"][0]["p50"]["median"] < 0.7
    assert document["results"][0]["p99_ms"]["least"] >= 8


def test_failures_are_counted_and_make_the_exit_status(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If all fail, the first error is what is said."""
    Path("in.jsonl").write_text('1\n"two"\n')
    Path("square.toml").write_text('[square]\nbackend = "Pow"\n')
    assert main(["bench", "square.toml", "--data", "@in.jsonl", "--clients", "2", *QUICK]) == 1
    assert "the first failure was TypeError" in capsys.readouterr().out
    assert main(["bench", "square.toml", "--data", "two", "--clients", "2", *QUICK]) == 1
    assert "all requests failed; the first with TypeError" in capsys.readouterr().err


def test_a_plot_is_drawn(in_folder: Path) -> None:
    """Of the kind that its name says; a kind that nobody knows is an error."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed here (extra plot)")
    words = ["bench", "slow.toml", "--data", "1", "--clients", "1", *QUICK, "--repeats", "1"]
    assert main([*words, "--compare", "fast.toml", "--plot", "plot.png"]) == 0
    assert Path("plot.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--plot", "plot.nothing"]) == 1


@pytest.mark.parametrize("words", [["--clients", "0"], ["--clients", "a"], ["--rate", "-1"], ["--seconds", "nan"]])
def test_numbers_that_mean_nothing_are_refused(words: list[str], in_folder: Path) -> None:
    """As a mistake of the command."""
    with pytest.raises(SystemExit) as leaving:
        main(["bench", "slow.toml", "--data", "1", *words])
    assert leaving.value.code == 2
