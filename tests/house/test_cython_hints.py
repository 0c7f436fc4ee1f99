"""Cython's own remarks about the engine are errors."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import once


@once
def test_cython_has_nothing_to_say_about_the_engine(repository_root: Path, tmp_path: Path) -> None:
    """A nogil function without an exception mode takes the GIL after every call; Cython hints at that."""
    pytest.importorskip("Cython", reason="Cython is not installed here")
    directives = runpy.run_path(str(repository_root / "setup.py"))["COMPILER_DIRECTIVES"]
    options = [option for item in directives.items() for option in ("-X", "{}={}".format(*item))]
    command = [sys.executable, "-m", "cython", "--cplus", *options, "-o", str(tmp_path / "_core.cpp")]
    ran = subprocess.run(
        [*command, "fastpipe/_core.pyx"], cwd=repository_root, capture_output=True, text=True, check=False
    )
    remarks = [
        line for line in (ran.stdout + ran.stderr).splitlines() if "performance hint" in line or "warning" in line
    ]
    assert ran.returncode == 0, ran.stderr
    assert not remarks, "\n".join(remarks)


@once
def test_cython_lint_has_nothing_to_say_about_the_chapters(repository_root: Path, tmp_path: Path) -> None:
    """By itself it reads .pyx and .pxd only: of a chapter it would see the layout, and no name that is not used."""
    pytest.importorskip("cython_lint", reason="cython-lint is not installed here")
    chapters = sorted((repository_root / "fastpipe" / "engine").glob("*.pxi"))
    assert len(chapters) > 20
    for chapter in chapters:
        (tmp_path / f"{chapter.stem}.pyx").write_text(chapter.read_text())
    command = [sys.executable, "-m", "cython_lint.cython_lint", "--no-pycodestyle", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")
