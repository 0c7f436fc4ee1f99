"""What wheels are made for: a Python of this machine, or one for aarch64 that qemu-user runs."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

Run = Callable[..., None]

VERSIONS = ("3.11", "3.12", "3.13", "3.14")
QUIET = ("--quiet", "--disable-pip-version-check")
BUILDERS = ("build", "cython", "packaging", "pyproject-hooks", "setuptools")
"""What compiles; the other tools look at the result."""
SCALE = "0.2"
"""The share of their load with which tests run: with all of it they have run before."""
TEST_PACKAGES = ("pytest>=9.0", "pytest-benchmark>=5.1", "hypothesis>=6.100")
NOT_UNDER_QEMU = (
    # They compile programs of their own by this machine's compiler, and run them.
    "tests/kernels/test_loops.py",
    "tests/kernels/test_images.py",
    # They start many processes, of which each takes seconds there.
    "tests/engine/test_life.py",
    "tests/engine/test_processes.py",
)


def version_of(python: str | Path) -> str:
    """Return the ``3.x`` of an interpreter; an empty string: it does not run, or is no CPython with a GIL."""
    script = (
        "import sys, sysconfig\n"
        "if sys.implementation.name == 'cpython' and not sysconfig.get_config_var('Py_GIL_DISABLED'):\n"
        "    print('%d.%d' % sys.version_info[:2])"
    )
    ran = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=False)
    return ran.stdout.strip() if ran.returncode == 0 else ""


def find_interpreters(named: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return interpreters, those that are named or one of each version from PATH or pyenv; and versions without one."""
    if named:
        found = [Path(path) for name in named if (path := shutil.which(name))]
        if len(found) < len(named) or not all(version_of(path) in VERSIONS for path in found):
            raise SystemExit(f"not all of these are CPython of {', '.join(VERSIONS)}: {', '.join(named)}")
        return found, []
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    by_version: dict[str, Path] = {}
    for version in VERSIONS:
        candidates = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python3"))]
        usable = [Path(path) for path in candidates if path and version_of(path) == version]
        if usable:
            by_version[version] = usable[0]
    return list(by_version.values()), [version for version in VERSIONS if version not in by_version]


def pinned(tools: Path, names: Sequence[str], to: Path) -> Path:
    """Write the lines of some tools out of the list of all; return the file."""
    blocks = tools.read_text().replace("\\\n", "\0").splitlines()
    kept = [block.replace("\0", "\\\n") for block in blocks if block.split("==")[0] in names]
    to.write_text("\n".join(kept) + "\n")
    return to


class Target(ABC):
    """One version of Python on one kind of processor."""

    name: str
    machine: str

    @abstractmethod
    def compilers(self) -> tuple[str, str]:
        """Return the commands for C and C++."""

    @abstractmethod
    def variables(self) -> dict[str, str]:
        """Return what else a build's environment has."""

    @abstractmethod
    def host_python(self) -> Path:
        """Return the Python of this machine that runs the build."""

    @abstractmethod
    def bare_python(self, folder: Path, wheel: Path, run: Run) -> Path:
        """Make an environment with the wheel, what it needs, and what tests need; return its Python."""

    @abstractmethod
    def test(self, python: Path, arguments: Sequence[str], root: Path, run: Run) -> None:
        """Run tests of the source tree on what is installed."""

    def builder(self, folder: Path, tools: Path, run: Run) -> Path:
        """Make an environment that builds; return its Python."""
        shutil.rmtree(folder, ignore_errors=True)
        run([self.host_python(), "-m", "venv", "--without-pip", folder])
        python = folder / "bin" / "python"
        requirements = pinned(tools, BUILDERS, folder / "builders.txt")
        run(
            [sys.executable, "-m", "pip", "--python", python, "install", *QUIET, "--require-hashes", "-r", requirements]
        )
        return python


class X86_64(Target):
    """A Python of this machine."""

    machine = "x86_64"

    def __init__(self, python: Path) -> None:
        if platform.machine() != self.machine:
            raise SystemExit(f"wheels for {self.machine} are made on such a machine; this is {platform.machine()}")
        self._python = python
        self.name = f"{version_of(python)}-{self.machine}"

    def compilers(self) -> tuple[str, str]:
        return "gcc", "g++"

    def variables(self) -> dict[str, str]:
        return {}

    def host_python(self) -> Path:
        return self._python

    def bare_python(self, folder: Path, wheel: Path, run: Run) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        run([self._python, "-m", "venv", "--without-pip", folder])
        python = folder / "bin" / "python"
        run([sys.executable, "-m", "pip", "--python", python, "install", *QUIET, wheel, *TEST_PACKAGES])
        return python

    def test(self, python: Path, arguments: Sequence[str], root: Path, run: Run) -> None:
        command = [python.parent / "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        run(command, cwd=root, env={**os.environ, "FASTPIPE_SCALE": SCALE})


class Aarch64(Target):
    """A Python that was unpacked into a folder, and is run by qemu-user.

    It shows that the wheel loads and does what it should. It shows nothing of the processor's memory order: qemu
    translates to x86-64, which keeps to a stricter one. docs/design.md says what was read for that.
    """

    machine = "aarch64"

    def __init__(self, root: Path) -> None:
        found = sorted(root.glob("usr/bin/python3.[0-9]*[0-9]"))
        if not found:
            raise SystemExit(f"there is no usr/bin/python3.x in {root}; releasing/unpack_python.sh makes such a folder")
        self._root = root
        self._version = found[0].name.removeprefix("python")
        self._packages = root / "usr" / "lib" / "python3" / "dist-packages"
        self.name = f"{self._version}-{self.machine}"

    def compilers(self) -> tuple[str, str]:
        include = f"-I{self._root}/usr/include/python{self._version}"
        return f"aarch64-linux-gnu-gcc {include}", f"aarch64-linux-gnu-g++ {include}"

    def variables(self) -> dict[str, str]:
        # With these Python says of itself what the target's would: endings, platform. CPython builds itself so.
        standard = self._root / "usr" / "lib" / f"python{self._version}"
        data = next(standard.glob("_sysconfigdata_*aarch64*.py"))
        only_that = self._root / "sysconfigdata"
        only_that.mkdir(exist_ok=True)
        shutil.copy(data, only_that)
        return {
            "_PYTHON_HOST_PLATFORM": "linux-aarch64",
            "_PYTHON_SYSCONFIGDATA_NAME": data.stem,
            "PYTHONPATH": str(only_that),
        }

    def host_python(self) -> Path:
        interpreters, _ = find_interpreters([])
        for path in interpreters:
            if version_of(path) == self._version:
                return path
        raise SystemExit(
            f"a build for aarch64 is run by a Python of the same version, {self._version}, of this machine"
        )

    def bare_python(self, folder: Path, wheel: Path, run: Run) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.rmtree(self._packages, ignore_errors=True)
        platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(28, 16, -1)]
        for_it = [*platforms, "--python-version", self._version, "--only-binary=:all:", "--target", self._packages]
        run([sys.executable, "-m", "pip", "install", *QUIET, *for_it, wheel, *TEST_PACKAGES])
        # The kernel does not know how to run a program for aarch64, so children are started by this script, too.
        python = folder / "python"
        interpreter = self._root / "usr" / "bin" / f"python{self._version}"
        python.write_text(f'#!/bin/sh\nexec qemu-aarch64 -L "{self._root}" "{interpreter}" "$@"\n')
        python.chmod(0o755)
        (self._packages / "children.pth").write_text(f"import sys; sys.executable = {str(python)!r}\n")
        return python

    def test(self, python: Path, arguments: Sequence[str], root: Path, run: Run) -> None:
        left_out = [f"--ignore={path}" for path in NOT_UNDER_QEMU]
        options = ["-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=600", *left_out]
        run([python, *options, *arguments], cwd=root, env={**os.environ, "FASTPIPE_SCALE": SCALE})
