"""Make the wheels of a release from its sdist, check them, and test each in an environment that has nothing else.

python releasing/wheels.py dist/*.tar.gz                        x86-64, for each CPython from 3.11 that is found
python releasing/wheels.py dist/*.tar.gz --python python3.12    for these only
python releasing/wheels.py dist/*.tar.gz --root build/arm       and aarch64, for the Python in that folder, by qemu-user

Such a folder is made by ``releasing/unpack_python.sh``. What is built comes from the sdist, by g++ and the tools of
``releasing/tools.txt``, into ``--to``; auditwheel gives each a tag of manylinux_2_28 or older, or fails. Needs Linux
and g++; for aarch64 also Debian's packages ``g++-aarch64-linux-gnu`` and ``qemu-user``, and a Python of that version
that runs here.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from targets import X86_64, Aarch64, Target, find_interpreters

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OLDEST_GLIBC = 28
"""The minor version of the glibc that a wheel must run with: 2.28 of 2018, in Debian 10, RHEL 8 and what is newer."""
TESTS = ("tests/engine", "tests/kernels", "tests/house/test_packaging.py")
"""What is run on each wheel. It needs no optional library."""


@dataclass(frozen=True)
class Plan:
    """What is made of what."""

    sdist: Path
    to: Path
    work: Path
    tests: tuple[str, ...]
    epoch: str


def run(command: Sequence[str | Path], **options: object) -> None:
    """Run a command; what it prints is shown. Ends this program if it fails."""
    shown = " ".join(str(part) for part in command)
    print(f"+ {shown}", flush=True)
    if subprocess.run([str(part) for part in command], check=False, **options).returncode:  # type: ignore[call-overload]
        raise SystemExit(f"failed: {shown}")


def fresh(folder: Path) -> Path:
    """Make a folder anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def environment_of_build(plan: Plan, target: Target, objects: Path) -> dict[str, str]:
    """Return the variables of a build whose result does not depend on the folder, the time, or how Python was built.

    LDSHARED: a Python may bring the path of its own libraries, which would be written into each module.
    """
    cc, cxx = target.compilers()
    link = f"-Wl,-s -Wl,--version-script={HERE / 'exports.map'} {objects / 'libstdcxx.o'}"
    return {
        **{name: value for name, value in os.environ.items() if name not in {"CPPFLAGS", "CFLAGS", "PYTHONPATH"}},
        **target.variables(),
        "CC": cc,
        "CXX": cxx,
        "LDSHARED": f"{cc} -shared",
        "LDCXXSHARED": f"{cxx} -shared",
        "LDFLAGS": link,
        "PYTHONHASHSEED": "0",
        "SOURCE_DATE_EPOCH": plan.epoch,
    }


def build(plan: Plan, target: Target, builder: Path) -> Path:
    """Build the sdist for one Python; return the wheel, which has no tag of manylinux yet."""
    work = fresh(plan.work / target.name / "build")
    _, cxx = target.compilers()
    run([*cxx.split(), "-O2", "-fPIC", "-std=c++17", "-c", HERE / "libstdcxx.cpp", "-o", work / "libstdcxx.o"])
    with tarfile.open(plan.sdist) as archive:
        archive.extractall(work, filter="data")
    source = work / plan.sdist.name.removesuffix(".tar.gz")
    command: list[str | Path] = [builder, "-m", "build", "--wheel", "--no-isolation", "--outdir", work / "raw", source]
    run(command, env=environment_of_build(plan, target, work))
    return next((work / "raw").glob("*.whl"))


def is_old_enough(name: str, machine: str) -> bool:
    """Tell by its name whether a wheel runs on that kind of processor, with the oldest glibc that it must run with."""
    tag = re.fullmatch(rf".+-manylinux_2_(\d+)_{machine}\.whl", name)
    return tag is not None and int(tag.group(1)) <= OLDEST_GLIBC


def audited(plan: Plan, target: Target, wheel: Path, tools: Path) -> Path:
    """Have auditwheel give a wheel its tag. It refuses if a module needs anything newer, or a library of its own."""
    out = fresh(plan.work / target.name / "audited")
    path = os.pathsep.join([str(tools.parent), os.environ["PATH"]])
    # auditwheel takes no names of other processors than this one's, but finds what such a wheel can have.
    plat = "auto" if target.machine == Aarch64.machine else f"manylinux_2_{OLDEST_GLIBC}_{target.machine}"
    command: list[str | Path] = [tools, "-m", "auditwheel", "repair", "--only-plat", "--plat", plat]
    run([*command, "--wheel-dir", out, wheel], env={**os.environ, "PATH": path, "SOURCE_DATE_EPOCH": plan.epoch})
    (found,) = out.iterdir()
    if not is_old_enough(found.name, target.machine):
        raise SystemExit(f"{found.name} would not run with glibc 2.{OLDEST_GLIBC}; `auditwheel show` says why")
    return Path(shutil.copy(found, plan.to))


def targets_of(arguments: argparse.Namespace) -> Iterator[Target]:
    """Yield what was asked for, or what this machine has; say which versions it lacks."""
    if arguments.machine != Aarch64.machine:
        interpreters, missing = find_interpreters(arguments.python)
        for version in missing:
            print(f"no CPython {version} was found: no wheel is made for it (--python PATH names one)")
        yield from (X86_64(path) for path in interpreters)
    if arguments.machine != X86_64.machine:
        yield from (Aarch64(root.resolve()) for root in arguments.root)


def make(plan: Plan, target: Target, tools: Path) -> Path:
    """Make one wheel, checked and tested."""
    builder = target.builder(plan.work / target.name / "builder", HERE / "tools.txt", run)
    wheel = audited(plan, target, build(plan, target, builder), tools)
    if plan.tests:
        bare = target.bare_python(plan.work / target.name / "bare", wheel, run)
        target.test(bare, [*plan.tests, "--wheel", str(wheel), "-k", "not bill_of_materials"], ROOT, run)
    return wheel


def tools_of(work: Path) -> Path:
    """Return a Python that has the pinned tools."""
    python = work / "tools" / "bin" / "python"
    if not python.exists():
        run([sys.executable, "-m", "venv", work / "tools"])
    run([python, "-m", "pip", "install", *QUIET, "--require-hashes", "-r", HERE / "tools.txt"])
    return python


QUIET: Sequence[str] = ("--quiet", "--disable-pip-version-check")


def main(given: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sdist", type=Path)
    parser.add_argument("--python", action="append", default=[], help="an interpreter to build for; may be repeated")
    parser.add_argument("--root", action="append", default=[], type=Path, help="an unpacked Python for aarch64")
    parser.add_argument("--to", type=Path, default=ROOT / "dist", help="where the wheels go (default: dist)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "wheels", help="environments and objects")
    parser.add_argument("--machine", choices=(X86_64.machine, Aarch64.machine), help="only for this kind of processor")
    parser.add_argument("--no-tests", action="store_true", help="do not run the tests on each wheel")
    arguments = parser.parse_args(given)
    epoch = environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        raise SystemExit("SOURCE_DATE_EPOCH says when a release was made, and is not set; see `make wheels`")
    arguments.to.mkdir(parents=True, exist_ok=True)
    work = arguments.work.resolve()
    plan = Plan(arguments.sdist.resolve(), arguments.to.resolve(), work, () if arguments.no_tests else TESTS, epoch)
    tools = tools_of(work)
    wheels = [make(plan, target, tools) for target in targets_of(arguments)]
    if not wheels:
        raise SystemExit("no wheel was made: no interpreter was found")
    print("made, checked and tested:" if plan.tests else "made and checked, not tested:")
    for wheel in wheels:
        print(f"  {wheel}")


if __name__ == "__main__":
    main()
