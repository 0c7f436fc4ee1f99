"""The soak of ``make soak`` for seconds: its judgement of what grows, and that nothing planted escapes it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

import pytest
import soak
from helpers import once


def run_soak(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Run many short rounds in a process of their own; return its exit status and its report."""
    command = [sys.executable, soak.__file__, "--round", "0.05", "--rounds", "16", "--json", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stdout, ran.stderr
    return ran.returncode, json.loads(ran.stdout)


def test_every_request_has_its_outcome_and_no_thread_or_file_is_left() -> None:
    """Resident memory is not judged here: a second is too short for it."""
    _, report = run_soak()
    assert report["problems"] == []
    assert {name for name, judged in report["judged"].items() if judged["grows"]} <= {"memory", "blocks"}
    assert report["outcomes"]["done"] > 100
    assert report["outcomes"]["accepted"] == 0


@once
def test_what_is_leaked_in_every_round_is_found() -> None:
    """The negative control of the whole script."""
    status, report = run_soak("--plant", "memory", "--plant", "thread", "--plant", "file")
    assert status == 1
    assert {name for name, judged in report["judged"].items() if judged["grows"]} >= {"memory", "threads", "files"}


@pytest.mark.parametrize("name", ["threads", "files", "blocks", "memory"])
def test_growth_is_told_from_noise_and_from_a_jump(name: str) -> None:
    """Of one in a hundred a round, and of one thread or file in ten rounds."""
    dice = random.Random(0)
    level = 30 if name in ("threads", "files") else 10_000_000

    def grows(values: list[int]) -> bool:
        return bool(soak.verdicts_of({name: values})[name].grows)

    flat = [level + dice.randrange(2) * level // 1000 for _ in range(60)]
    assert not grows(flat)
    assert not grows([*flat[:40], *(value + level // 5 for value in flat[40:])])  # beyond the middle of what is judged
    assert not grows([value + level // (round + 1) for round, value in enumerate(flat)])  # it fills, and is full
    leaked = (lambda round: round // 10) if name in ("threads", "files") else (lambda round: round * level // 100)
    assert grows([value + leaked(round) for round, value in enumerate(flat)])


def test_too_few_rounds_are_not_judged() -> None:
    """What is said of them would be chance."""
    assert soak.verdicts_of({"threads": list(range(14))}) == {}
    assert soak.verdicts_of({"threads": list(range(16))})["threads"].grows
