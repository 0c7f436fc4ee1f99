"""What a type checker sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import COMPILED_KERNELS

ROOMS = ("kernels", "backends")
EXAMPLES = ("cascade", "codes", "embedding", "file_types", "ocr", "speech")  # those that are packages


@pytest.fixture(scope="module")
def as_installed() -> Path:
    """A folder in which the package looks as it does once installed: the rooms are inside it.

    mypy follows neither an editable install nor ``package_dir``; it does follow links. The folder stays, for mypy's
    cache.
    """
    root = Path(__file__).resolve().parents[2]
    package = root / "build" / "typing" / "fastpipe"
    package.mkdir(parents=True, exist_ok=True)
    for old in package.iterdir():
        old.unlink()
    for source in [*(root / "fastpipe").iterdir(), *(root / room for room in ROOMS)]:
        if source.suffix in {"", ".py", ".pyi", ".typed"} and source.name != "__pycache__":
            (package / source.name).symlink_to(source)
    for name in EXAMPLES:
        example = package.parent / name
        example.unlink(missing_ok=True)
        example.symlink_to(root / "examples" / name)
    return package.parent


def test_the_package_passes_strict_mypy(as_installed: Path, repository_root: Path) -> None:
    """All of it: a check that silently sees a part of the files is worse than none."""
    pytest.importorskip("mypy", reason="mypy is not installed here")
    settings = ["--config-file", str(repository_root / "pyproject.toml")]
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", *settings, *(word for name in ("fastpipe", *EXAMPLES) for word in ("-p", name))],
        cwd=as_installed,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rooms = ("fastpipe", *ROOMS, *(f"examples/{name}" for name in EXAMPLES))
    sources = [path for room in rooms for path in (repository_root / room).rglob("*.py*")]
    count = sum(path.suffix in {".py", ".pyi"} for path in sources)
    assert f"no issues found in {count} source files" in ran.stdout


@pytest.mark.parametrize("module", ["fastpipe._core", *(f"fastpipe.kernels._{name}" for name in COMPILED_KERNELS)])
def test_the_stub_of_what_is_compiled_matches_it(
    module: str, as_installed: Path, repository_root: Path, tmp_path: Path
) -> None:
    """What the stub names is in the compiled module, with the same parameters; Cython adds more to each class."""
    pytest.importorskip("mypy", reason="mypy is not installed here")
    settings = ["--ignore-missing-stub", "--mypy-config-file", str(repository_root / "pyproject.toml")]
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "mypy.stubtest", *settings, module],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(as_installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Success: no issues found in 1 module" in ran.stdout
