"""The sanitizers of ``make sanitize`` see what they are there for; the rest of it takes minutes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sanitize
from helpers import once


@once
@pytest.mark.parametrize("name", ["thread", "address"])
def test_planted_faults_are_reported_and_right_code_is_not(name: str) -> None:
    """The negative control: races, an order that rests on a futex alone, writes beyond the end, an overflow."""
    if problem := sanitize.what_is_missing(sanitize.SANITIZERS[name]):
        pytest.skip(problem)
    ran = subprocess.run(
        [sys.executable, sanitize.__file__, "--controls", name], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "controls, 0 judged wrongly" in ran.stdout


def test_a_control_that_is_judged_wrongly_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sanitizer that sees nothing must not pass for one that has nothing to say."""
    thread = sanitize.SANITIZERS["thread"]
    if problem := sanitize.what_is_missing(thread):
        pytest.skip(problem)
    blind = sanitize.Sanitizer(thread.flags, thread.libraries, "report_bugs=0", ("both_write",), ())
    monkeypatch.setitem(sanitize.SANITIZERS, "thread", blind)
    assert sanitize.main(["--controls", "thread"]) == 1
    assert "both_write is faulty and was not reported" in capsys.readouterr().out


def test_an_unknown_sanitizer_is_answered_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody has to read the source to find a name."""
    with pytest.raises(SystemExit):
        sanitize.main(["memory"])
    assert "there is no sanitizer 'memory'; there are: thread, address" in capsys.readouterr().err


def test_what_is_tested_under_sanitizers_exists(repository_root: Path) -> None:
    """A renamed file would stop being tested."""
    assert all((repository_root / path).is_file() for path in sanitize.TESTS)


def test_every_suppression_has_its_reason() -> None:
    """In a sentence."""
    assert all(len(reason.split()) > 8 for reason in sanitize.SUPPRESSIONS.values())
