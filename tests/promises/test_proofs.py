"""The models in proofs/: the small ones hold, planted bugs are found, and what they model is still in the sources."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import once

MODELS = Path(__file__).resolve().parents[2] / "proofs"
MODELLED = "".join(path.read_text() for path in (*MODELS.glob("*.pml"), *MODELS.glob("*.inc")))


def rows() -> list[tuple[list[str], str, list[str], list[str]]]:
    """Return the table of proofs/README.md: names in the models, a source file, its functions, what they touch."""
    found = []
    for line in (MODELS / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and re.fullmatch(r"`fastpipe/[\w/]+\.(py|pyx|pxd|pxi)`", cells[1]):
            functions, _, touched = cells[2].partition(":")
            ours, theirs, fields = (re.findall(r"`(\w+)`", text) for text in (cells[0], functions, touched))
            found.append((ours, cells[1].strip("`"), theirs, fields))
    return found


@once
def test_the_small_models_hold_and_planted_bugs_are_found() -> None:
    """The rest is ``make model``: some minutes."""
    if shutil.which("spin") is None:
        pytest.skip("Spin is not installed (Debian, Ubuntu: the package spin)")
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler.split()[0]) is None:
        pytest.skip(f"there is no C compiler {compiler!r}")
    ran = subprocess.run(
        [sys.executable, str(MODELS / "check.py"), "--small"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "8 runs and 6 planted bugs, 0 not as expected" in ran.stdout


def test_what_the_models_stand_for_is_in_the_sources(repository_root: Path) -> None:
    """A function that was renamed or removed wants a look at its model."""
    assert len(rows()) > 20
    for ours, source, theirs, fields in rows():
        text = (repository_root / source).read_text()
        assert theirs
        for name in theirs:
            defined = rf"^ *c?def [^#\n=(]*\b{name}\("
            assert re.search(defined, text, re.MULTILINE), f"{source} defines no {name}: see proofs/README.md"
        for name in fields:
            assert re.search(rf"\b{name}\b", text), f"{source} has no {name}: see proofs/README.md"
        for name in ours:
            defined = rf"^\s*(inline|(active )?proctype|#define) {name}\b"
            assert re.search(defined, MODELLED, re.MULTILINE), f"no model has {name}"


def test_every_planted_bug_is_tried() -> None:
    """And none is tried that no model knows."""
    known = set(re.findall(r"\bBUG_\w+", MODELLED))
    assert known == set(re.findall(r"\bBUG_\w+", (MODELS / "check.py").read_text()))
    assert len(known) >= 3


def test_the_engine_counts_what_it_has_seen(repository_root: Path) -> None:
    """A bug that the models have found and that is too rare for a test of the running engine."""
    chapter = (repository_root / "fastpipe" / "engine" / "forming.pxi").read_text()
    assert "station.wake_at.store(station.staged.count + 1" in chapter
    assert not re.search(r"wake_at\.store\(station\.queued", chapter)


def test_who_waits_for_a_token_takes_no_wake_up_of_a_request(repository_root: Path) -> None:
    """Another one that the models have found: who is woken is looked at after the wake-up, not before."""
    chapter = (repository_root / "fastpipe" / "engine" / "station.pxi").read_text()
    notify = chapter[chapter.index("cdef void c_notify(") : chapter.index("cdef void c_note_arrival(")]
    assert notify.index("events_notify(&self.workers, 1)") < notify.index("self.wanted.load(")


def test_close_empties_the_queues_in_any_case(repository_root: Path) -> None:
    """Otherwise a cancelled request may keep a worker for ever; far too rare to be met by running it."""
    source = (repository_root / "fastpipe" / "pipe.py").read_text()
    assert not re.search(r"if not drained:\n\s+self\._fail_rest", source)
