"""``fastpipe tune``: the search, on costs that are known, and the file that it writes."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="optuna is not installed here (extra tune)")
pytest.importorskip("tomlkit", reason="tomlkit is not installed here (extra tune)")

from fastpipe.cli.main import main
from fastpipe.cli.toml_edits import with_values
from fastpipe.cli.tuning import Choice, Outcome, Search, Setting, size_of

CORES, CLIENTS = 4, 32
FILE = """\
# what sleeps
[first]
backend = "Sleep"
time = 3        # milliseconds for each batch
max = 1         # one at a time
next = "last"

[last]          # does nothing
backend = "Identity"
"""


def settings_of(*nodes: str) -> list[Setting]:
    """Return what may be set at nodes."""
    found = []
    for node in nodes:
        found += [
            Setting(node, "instance_num", (1, 2, 4, 8), 0),
            Setting(node, "max", (1, 2, 4, 8, 16, 32), 0),
            Setting(node, "batching_timeout", (0.0, 1.0, 2.0, 5.0, 10.0), 2),
        ]
    return found


def with_costs(
    settings: list[Setting], costs: Mapping[str, tuple[float, float, bool]], noise: float = 0.0
) -> Callable[[Choice], Outcome]:
    """Return a function that says what a choice comes to.

    Args:
        settings: what is chosen.
        costs: of each node: milliseconds for a batch, for each of its requests, and whether it computes on the CPUs.
        noise: by how much what is measured differs from that.
    """
    luck = random.Random(0)

    def run(choice: Choice) -> Outcome:
        values = {(s.node, s.key): s.values[i] for s, i in zip(settings, choice, strict=True)}
        rates = {}
        for node, (fixed_ms, each_ms, computes) in costs.items():
            instances, largest = values[node, "instance_num"], values[node, "max"]
            batch = min(largest, CLIENTS // instances)
            wait_ms = values[node, "batching_timeout"] if 1 < batch < largest else 0.0
            at_once = min(instances, CORES) if computes else instances
            rates[node] = 1000 * at_once * batch / (fixed_ms + each_ms * batch + wait_ms)
        rate = min(rates.values())
        busy = {node: rate / own for node, own in rates.items()}
        return Outcome(choice, rate * luck.uniform(1 - noise, 1 + noise), 1.5 * CLIENTS / rate, busy)

    return run


def best_of_all(settings: list[Setting], run: Callable[[Choice], Outcome], p99_s: float | None) -> float:
    """Return the score of the best of all choices."""
    choices = itertools.product(*(range(len(setting.values)) for setting in settings))
    return max(run(choice).score(p99_s) for choice in choices)


@pytest.mark.parametrize(
    ("costs", "p99_ms", "seed"),
    [
        pytest.param({"a": (4.0, 0.1, False)}, None, 0, id="batches and instances pay"),
        pytest.param({"a": (4.0, 0.1, False)}, None, 1, id="the same with another seed"),
        pytest.param({"a": (0.2, 2.0, True)}, None, 0, id="it computes: batches do not pay"),
        pytest.param({"a": (1.0, 0.5, True)}, 60, 0, id="a limit of p99"),
        pytest.param({"a": (4.0, 0.1, False), "b": (1.0, 0.5, True)}, None, 0, id="two nodes"),
    ],
)
def test_it_finds_what_an_exhaustive_search_finds_with_a_fifth_of_its_runs(
    costs: dict[str, tuple[float, float, bool]], p99_ms: float | None, seed: int
) -> None:
    """Within 5 %, though each run says up to 2 % too much or too little."""
    settings = settings_of(*costs)
    p99_s = None if p99_ms is None else p99_ms / 1e3
    exact = with_costs(settings, costs)
    noisy, runs = with_costs(settings, costs, noise=0.02), 0

    def counted(choice: Choice) -> Outcome:
        nonlocal runs
        runs += 1
        return noisy(choice)

    search = Search(settings, counted, p99_s, seed)
    search.search(min(size_of(settings) // 5 - len(settings) - 1, 60))
    found = search.without_what_does_not_pay()
    assert exact(found.choice).score(p99_s) >= 0.95 * best_of_all(settings, exact, p99_s)
    assert runs <= size_of(settings) / 5


def test_what_does_not_pay_is_left_as_it_was() -> None:
    """A second instance of a node that waits for another gains nothing."""
    settings = settings_of("slow", "fast")
    run = with_costs(settings, {"slow": (10.0, 5.0, True), "fast": (0.1, 0.0, False)})
    search = Search(settings, run)
    search.search(40)
    found = search.without_what_does_not_pay()
    changed = {s.name for s, i in zip(settings, found.choice, strict=True) if i != s.start}
    assert not any(name.startswith("fast.") for name in changed)
    assert "slow.instance_num" in changed


def test_settings_with_which_no_pipe_can_be_built_are_passed_over() -> None:
    """A model may not take a batch of any size."""
    settings = settings_of("a")
    run = with_costs(settings, {"a": (4.0, 0.1, False)})

    def refusing(choice: Choice) -> Outcome:
        return Outcome(choice, error="ConfigError: too large") if choice[1] > 2 else run(choice)

    search = Search(settings, refusing)
    search.search(20)
    assert search.without_what_does_not_pay().choice[1] == 2


def test_the_file_keeps_its_comments_and_layout() -> None:
    """Only the values change; new keys stand behind the others of their node."""
    written = with_values(FILE.encode(), {("first", "max"): 8, ("first", "instance_num"): 2, ("last", "max"): 4})
    assert written.decode() == (
        FILE.replace("max = 1 ", "max = 8 ").replace('next = "last"\n', 'next = "last"\ninstance_num = 2\n')
        + "max = 4\n"
    )
    assert with_values(b'\xef\xbb\xbfbackend = "Pow"\r\n', {("main", "max"): 2}) == (
        b'\xef\xbb\xbfbackend = "Pow"\r\nmax = 2\r\n'
    )


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's folder is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("pipe.toml").write_text(FILE)
    return tmp_path


QUICK = ["--data", "1", "--seconds", "0.1", "--warm-up", "0.03", "--repeats", "1", "--clients", "8"]


def test_the_command_writes_a_better_file(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what each change is worth, and draws what was tried."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed here (extra plot)")
    words = ["tune", "pipe.toml", *QUICK, "--trials", "8", "--plot", "tried.png", "--json"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["best"]["requests_per_s"] > 1.5 * document["was"]["requests_per_s"]
    assert document["without"].keys() <= {"first.instance_num", "first.max", "first.batching_timeout"}
    assert "# milliseconds for each batch" in Path("pipe.tuned.toml").read_text()
    assert Path("pipe.toml").read_text() == FILE
    assert Path("tried.png").read_bytes().startswith(b"\x89PNG")
    assert main(["check", "pipe.tuned.toml"]) == 0


def test_a_limit_that_nothing_keeps_is_an_error(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says how near one can get."""
    assert main(["tune", "pipe.toml", *QUICK, "--trials", "3", "--p99-ms", "0.5"]) == 1
    assert "no setting keeps p99 below 0.5 ms with 8 clients; the least of 3 was" in capsys.readouterr().err
    assert not Path("pipe.tuned.toml").exists()


@pytest.mark.parametrize("library", ["optuna", "tomlkit"])
def test_a_missing_library_is_named_before_anything_is_measured(
    library: str, in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what installs it; ``--help`` needs none."""
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "fastpipe.cli.toml_edits", raising=False)
    assert main(["tune", "pipe.toml", *QUICK]) == 1
    said = capsys.readouterr().err
    assert f"fastpipe tune needs {library}: pip install 'fastpipe-engine[tune]'" in said
    with pytest.raises(SystemExit) as leaving:
        main(["tune", "--help"])
    assert leaving.value.code == 0
