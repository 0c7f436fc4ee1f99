"""Cython's own remarks about engine and kernels are errors."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from helpers import COMPILED_KERNELS, once

MODULES = ["fastpipe/_core.pyx", *(f"kernels/_{name}.pyx" for name in COMPILED_KERNELS)]


@pytest.fixture(scope="module", params=MODULES)
def compiled(
    request: pytest.FixtureRequest, repository_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """A module in C++, and what Cython said about it."""
    pytest.importorskip("Cython", reason="Cython is not installed here")
    directives = runpy.run_path(str(repository_root / "setup.py"))["COMPILER_DIRECTIVES"]
    options = [option for item in directives.items() for option in ("-X", "{}={}".format(*item))]
    output = tmp_path_factory.mktemp("compiled") / "module.cpp"
    command = [sys.executable, "-m", "cython", "--cplus", *options, "-o", str(output), request.param]
    ran = subprocess.run(command, cwd=repository_root, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return output.read_text(), ran.stdout + ran.stderr


@once
def test_cython_has_nothing_to_say_about_our_modules(compiled: tuple[str, str]) -> None:
    """A nogil function without an exception mode takes the GIL after every call; Cython hints at that."""
    _, said = compiled
    remarks = [line for line in said.splitlines() if "performance hint" in line or "warning" in line]
    assert not remarks, "\n".join(remarks)


@once
def test_no_comprehension_makes_what_it_appends(compiled: tuple[str, str]) -> None:
    """Without memory, Cython lets go of such an item twice (findings/cython-comprehension-without-memory.sh)."""
    code, _ = compiled
    appends = re.findall(
        r'/\* "((?:fastpipe|kernels)/[\w/.]+)":(\d+)\n|\(__Pyx_(?:List|Set)Comp_A(?:ppend|dd)AndDecref\(__pyx', code
    )
    at = [f"{file}:{line}" for (file, line), (nothing, _) in pairwise(appends) if file and not nothing]
    assert re.search(rf'"({"|".join(map(re.escape, MODULES))})":', code)
    assert not at, f"a loop with append, please: {at}"


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
