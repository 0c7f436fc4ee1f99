"""What is installed, and what a wheel holds."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import COMPILED_KERNELS

IN_A_WHEEL = {".py", ".pyi", ".typed", ".toml", ".cu", ".html"}
"""Endings of the files that are installed; the sources of engine and loops are not, their compiled form is."""


def test_only_fastpipe_is_installed_at_the_top() -> None:
    """The folders beside the package must not become packages of their own."""
    assert importlib.metadata.distribution("fastpipe-engine").read_text("top_level.txt") == "fastpipe\n"


@pytest.mark.parametrize("folder", ["kernels", "backends", "tests", "bench", "setup"])
def test_a_folder_of_the_repository_cannot_be_imported_from_elsewhere(folder: str, tmp_path: Path) -> None:
    """Names as common as these belong to the user."""
    script = f"import importlib.util; raise SystemExit(importlib.util.find_spec({folder!r}) is not None)"
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False).returncode == 0


SLOW_TO_IMPORT = {
    "asyncio",
    "concurrent",
    "email",
    "importlib.metadata",
    "logging",
    "subprocess",
    "tomllib",
    "urllib.request",
    "zipfile",
}


def test_the_import_loads_little(tmp_path: Path) -> None:
    """``import fastpipe`` loads few modules, of the standard library none that is slow, and no others."""
    script = "import sys; before = set(sys.modules); import fastpipe; print(*(set(sys.modules) - before))"
    ran = subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert "fastpipe._core" in loaded
    assert len(loaded) <= 130, sorted(loaded)  # a third of them fastpipe's own
    assert not loaded & SLOW_TO_IMPORT
    of_others = {name for name in loaded if name.split(".")[0] not in {*sys.stdlib_module_names, "fastpipe"}}
    assert {name for name in of_others if "cython" not in name} == set()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("os.environ['CXX'] = 'no-such-compiler'", ("compiler 'no-such-compiler'", "g++", "gcc-c++")),
        ("os.environ['CXX'] = 'false'", ("C++17 compiler", "libc6-dev", "glibc-devel")),
        ("setup.sysconfig.get_path = lambda name: '/nowhere'", ("/nowhere/Python.h", "-dev", "python3-devel")),
        ("sys.platform = 'win32'", ("runs on Linux", "never run", "win32")),
        ("sys.version_info = (3, 9, 1)", ("Python 3.11 or newer",)),
    ],
)
def test_a_build_says_in_words_what_the_machine_lacks(
    change: str, said: tuple[str, ...], repository_root: Path
) -> None:
    """Not a page of compiler output: one message, with the names of the packages that help."""
    script = f"import os, sys, setup; {change}; print(setup.missing_on_this_machine())"
    ran = subprocess.run(
        [sys.executable, "-B", "-c", script], cwd=repository_root, capture_output=True, text=True, check=True
    )
    for part in said:
        assert part in ran.stdout


def test_a_wheel_holds_the_package_and_nothing_else(request: pytest.FixtureRequest, repository_root: Path) -> None:
    """A forgotten package or data file, a stale one, and a room at the top level all show here."""
    wheel = request.config.getoption("--wheel")
    if wheel is None:
        pytest.skip("no wheel to look into: pytest --wheel dist/fastpipe_engine-....whl")
    expected = {"fastpipe/_core.so", *(f"fastpipe/kernels/_{name}.so" for name in COMPILED_KERNELS)}
    for folder, package in {
        "fastpipe": "fastpipe",
        "kernels": "fastpipe/kernels",
        "backends": "fastpipe/backends",
    }.items():
        sources = [path for path in (repository_root / folder).rglob("*") if path.suffix in IN_A_WHEEL]
        expected |= {f"{package}/{path.relative_to(repository_root / folder).as_posix()}" for path in sources}
    info = f"fastpipe_engine-{importlib.metadata.version('fastpipe-engine')}.dist-info"
    told = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "licenses/NOTICE", "top_level.txt")
    expected |= {f"{info}/{name}" for name in told}
    files = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]
    held = {re.sub(r"\.cpython-[\w-]+\.so$", ".so", name) for name in files}
    assert held == expected


# Not this project: what stands under that name on the package index is somebody else's.
FOREIGN = re.compile(r"pip (?:install|download)[^\n]*[\s'\"]fastpipe(?![\w/-])|\bfastpipe\\?\[[\w,{}]+\\?\]['\"]")


@pytest.mark.parametrize(
    ("text", "is_foreign"),
    [
        ("pip install 'fast" + "pipe[cpu]'", True),
        ("pip install fast" + "pipe", True),
        (r"match='fast" + r"pipe\[cuda\]'", True),
        ('"fast' + 'pipe[cuda,torch]"', True),
        ("pip install 'fastpipe-engine[cpu]'", False),
        ("pip install dist/fastpipe_engine-0.1.0.whl", False),
        ("python -m fastpipe", False),
    ],
)
def test_texts_that_name_the_foreign_distribution_are_told_from_ours(text: str, is_foreign: bool) -> None:
    """The test below is only as good as this."""
    assert bool(FOREIGN.search(text)) is is_foreign


def test_no_text_sends_users_to_the_foreign_distribution(repository_root: Path) -> None:
    """What is installed is called ``fastpipe-engine``, whatever text says so."""
    listed = subprocess.run(["git", "ls-files"], cwd=repository_root, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: there is no list of the project's own texts")
    paths = [repository_root / name for name in listed.stdout.splitlines()]
    endings = {".cfg", ".md", ".py", ".pyi", ".pyx", ".sh", ".toml", ".txt", ".yml", ""}
    texts = {path: path.read_text(errors="replace") for path in paths if path.suffix in endings and path.is_file()}
    assert len(texts) > 100
    assert [(path.name, match.group()) for path, text in texts.items() for match in FOREIGN.finditer(text)] == []


def test_the_bill_of_materials_names_the_package_and_what_it_needs(request: pytest.FixtureRequest) -> None:
    """It is made with the wheel and lies beside it: a fresh environment has the package and NumPy, and nothing else."""
    wheel = request.config.getoption("--wheel")
    if wheel is None:
        pytest.skip("no wheel to look beside: pytest --wheel dist/fastpipe_engine-....whl")
    version = importlib.metadata.version("fastpipe-engine")
    bill = json.loads((wheel.parent / f"fastpipe_engine-{version}.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    whole = bill["metadata"]["component"]
    assert (whole["name"], whole["version"]) == ("fastpipe-engine", version)
    assert [part["name"] for part in bill["components"]] == ["numpy"]
    assert all(part["version"] for part in bill["components"])
