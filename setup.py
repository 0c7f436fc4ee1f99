"""Build fastpipe: five extension modules, and two folders of the repository's root installed inside the package.

Everything that is not code to run lives in ``pyproject.toml``. The top of this file needs nothing but Python, so that
the Makefile can ask :func:`missing_on_this_machine` before anything is installed.
"""

import gzip
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from setuptools import Distribution

DEBUG = os.environ.get("FASTPIPE_DEBUG") == "1"
# What g++ has after -fsanitize=: an engine that watches itself. tests/promises/sanitize.py builds it, and says where it
# goes, as it works only in a process that has the sanitizer's library loaded from the start.
SANITIZE = os.environ.get("FASTPIPE_SANITIZE", "")
BUILD = Path("build", "sanitize", SANITIZE.partition(",")[0]) if SANITIZE else Path("build")

SYSTEMS = ("linux", "darwin")
# What only the linker of ELF files knows.
HARDENED_LINKS = ["-Wl,-z,relro,-z,now", "-Wl,-z,noexecstack"] if sys.platform == "linux" else []

# Checks that cost time in every access, and Python's rules for division, come back in a debug build.
COMPILER_DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": DEBUG,
    "initializedcheck": DEBUG,
    "cdivision": not DEBUG,
    "auto_pickle": False,  # what the engine holds means nothing in another process
    "autotestdict": False,
}

PROBE = """
#include <Python.h>
#ifdef __linux__
#include <linux/futex.h>
#endif
#include <atomic>
#include <memory_resource>  // only since C++17
int main() { return 0; }
"""


def missing_on_this_machine() -> str:
    """Return one sentence saying what a build needs and this machine lacks, or an empty string."""
    if sys.platform not in SYSTEMS:
        return f"fastpipe runs on Linux; for macOS it is compiled, but has never run there; this is {sys.platform}."
    if sys.version_info < (3, 11):
        return f"fastpipe needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}."
    compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")
    if shutil.which(compiler[0]) is None:
        return (
            f"fastpipe needs the C++ compiler {compiler[0]!r}, and it is not installed. Debian and Ubuntu have it in"
            " the package g++, Fedora in gcc-c++. (The variable CXX may name another compiler.)"
        )
    include_dir = sysconfig.get_path("include")
    if not Path(include_dir, "Python.h").is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return (
            f"fastpipe needs Python's C headers, and there is no {include_dir}/Python.h. Debian and Ubuntu have it in"
            f" the package python{version}-dev, Fedora in python3-devel."
        )
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "probe.cpp")
        source.write_text(PROBE)
        command = [*compiler, "-std=c++17", f"-I{include_dir}", "-c", str(source), "-o", str(Path(scratch, "probe.o"))]
        probe = subprocess.run(command, capture_output=True, text=True)
    if probe.returncode:
        complaint = next((line for line in probe.stderr.splitlines() if "error" in line), probe.stderr.strip())
        return (
            f"fastpipe needs a C++17 compiler with the headers of the C library and of Linux; {compiler[0]!r} says"
            f" {complaint!r}. Debian and Ubuntu have them in the packages g++, libc6-dev and linux-libc-dev, Fedora in"
            " gcc-c++, glibc-devel and kernel-headers."
        )
    return ""


def mode_file() -> str:
    """Return a file that is younger than anything built in another mode: debug or release, other CPPFLAGS.

    setuptools and Cython compare times, not options: without it, a build with FASTPIPE_DEBUG=1 after one without (or
    the other way round) would keep what is there.
    """
    path = BUILD / "mode"
    mode = " ".join(["debug" if DEBUG else "release", *os.environ.get("CPPFLAGS", "").split()])
    if not path.is_file() or path.read_text() != mode:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(mode)
    return str(path)


def write_again(archive: str, epoch: int) -> None:
    """Write an sdist again so that its bytes depend on names and contents alone, and on the time that is given.

    setuptools writes files' times, owners and the clock, and follows the file system's order.
    """
    written = Path(f"{archive}.again")
    with (
        tarfile.open(archive) as old,
        open(written, "wb") as raw,
        gzip.GzipFile("", "wb", mtime=epoch, fileobj=raw) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            told = tarfile.TarInfo(member.name)
            told.type, told.size, told.mtime = member.type, member.size, epoch
            told.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            new.addfile(told, old.extractfile(member))
    written.replace(archive)


def folders_of_a_build(distribution: "Distribution") -> tuple[str, str]:
    """Return where an ordinary build puts extension modules, and what they are made of."""
    from setuptools.command.build import build

    usual = build(distribution)
    usual.ensure_finalized()
    return usual.build_platlib, usual.build_temp


def main() -> None:
    """Run setuptools."""
    from Cython.Build import cythonize
    from setuptools import Extension, find_packages, setup
    from setuptools.command.build_ext import build_ext
    from setuptools.command.sdist import sdist

    class BuildOrExplain(build_ext):
        def finalize_options(self) -> None:
            super().finalize_options()
            # An editable installation builds in a temporary folder. Here it builds where `build_ext --inplace` looks,
            # so that nothing is compiled twice; and all modules at once, as one of them takes as long as the others.
            if self.editable_mode:
                self.build_lib, self.build_temp = folders_of_a_build(self.distribution)
            self.parallel = self.parallel or len(os.sched_getaffinity(0))

        def run(self) -> None:
            if problem := missing_on_this_machine():
                raise SystemExit(problem)
            super().run()

    class ReproducibleSdist(sdist):
        def make_distribution(self) -> None:
            super().make_distribution()
            if epoch := os.environ.get("SOURCE_DATE_EPOCH"):
                for archive in self.archive_files:
                    write_again(archive, int(epoch))

    # Harder for an attacker: the linker's tables are read-only before anything runs, a smashed buffer ends the process,
    # calls of the C library are checked where sizes are known. None of it shows in bench/instructions.py;
    # -fstack-protector-strong would, by 2 %.
    hardening = [] if DEBUG or SANITIZE else ["-fstack-protector", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
    # -UNDEBUG: Python's own flags have -DNDEBUG, which would silence assert() in a debug build too.
    flags = ["-O0", "-g", "-UNDEBUG"] if DEBUG else ["-O2", "-g0"]
    sanitize = [f"-fsanitize={SANITIZE}"] if SANITIZE else []
    if SANITIZE:  # reports name lines and callers; -Wno-tsan: that it does not know fences is said in sanitize.py
        flags = ["-O1", "-g", "-fno-omit-frame-pointer", "-Wno-tsan", *sanitize]

    def compiled(name: str, source: str, depends: list[str], more_flags: Sequence[str] = ()) -> Extension:
        return Extension(
            name,
            [source],
            language="c++",
            include_dirs=[source.partition("/")[0]],
            depends=[*depends, "setup.py", mode_file()],
            extra_compile_args=["-std=c++17", *flags, *hardening, *more_flags],
            extra_link_args=[*sanitize, *HARDENED_LINKS],
        )

    # -O3: at -O2 loops are not vectorised. -ffp-contract=off: no product and sum become one operation with one
    # rounding, which some CPUs have: results are to be the same bits everywhere.
    vectorised = [] if DEBUG or SANITIZE else ["-O3"]
    exact = ["-ffp-contract=off", *(["-DFASTPIPE_ONE_FORM"] if SANITIZE else [])]
    modules = [
        compiled("fastpipe._core", "fastpipe/_core.pyx", [*glob("fastpipe/*.pxd"), *glob("fastpipe/engine/*.[ph]*")]),
        compiled("fastpipe.kernels._loops", "kernels/_loops.pyx", ["kernels/loops.hpp"], [*exact, *vectorised]),
        compiled("fastpipe.kernels._launches", "kernels/_launches.pyx", ["kernels/image_row.hpp"]),
        compiled(
            "fastpipe.kernels._images",
            "kernels/_images.pyx",
            ["kernels/_jpegs.pxi", *glob("kernels/*.hpp")],
            vectorised,
        ),
        compiled("fastpipe.kernels._fast_path", "kernels/_fast_path.pyx", []),
    ]
    rooms = [f"fastpipe.backends.{package}" for package in find_packages("backends")]
    setup(
        packages=[*find_packages(include=["fastpipe", "fastpipe.*"]), "fastpipe.kernels", "fastpipe.backends", *rooms],
        package_dir={"fastpipe.kernels": "kernels", "fastpipe.backends": "backends"},
        package_data={
            "fastpipe": ["py.typed", "*.pyi"],
            "fastpipe.engine": ["*.pyi"],
            "fastpipe.kernels": ["*.cu", "*.pyi"],
            "fastpipe.observe": ["*.html"],
        },
        exclude_package_data={"": ["*.pyx", "*.pxd", "*.pxi", "*.hpp"]},
        ext_modules=cythonize(
            modules,
            build_dir=str(BUILD / ("cython-debug" if DEBUG else "cython")),
            compiler_directives=COMPILER_DIRECTIVES,
        ),
        cmdclass={"build_ext": BuildOrExplain, "sdist": ReproducibleSdist},
    )


if __name__ == "__main__":
    main()
