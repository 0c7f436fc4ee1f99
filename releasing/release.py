"""Make all that a release consists of, check it, and say how to upload it. This program uploads nothing.

python releasing/release.py                  runs .ci/run first, which takes an hour
python releasing/release.py --ci-passed      CI has passed on this very commit
python releasing/release.py --without 3.14   no wheel for a version that has no interpreter here

It stops at the first check that fails, the cheap ones first: a clean tree, one version in ``pyproject.toml`` and at the
top of the changelog, no other commit with its tag; the tests; sdist, wheels (built, audited, tested) and the bill of
materials by ``make wheels``; the same sdist again, bit for bit; what the index will say of the descriptions; checksums.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
HEADING = re.compile(r"^## (\S+) \((.+)\)$", re.MULTILINE)
DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


class NotReadyError(Exception):
    """Why this cannot be released, in words."""


def output_of(command: Sequence[str], root: Path) -> str:
    """Return what a command prints, which must succeed."""
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout


def check_tree(root: Path) -> str:
    """Return the version to be released: what is committed is what there is, and says it in one way."""
    if changed := output_of(["git", "status", "--porcelain"], root):
        raise NotReadyError(f"the tree is not clean: commit or remove this first\n{changed.rstrip()}")
    version = str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])
    heading = HEADING.search((root / "CHANGELOG.md").read_text())
    if heading is None or heading.group(1) != version:
        said = "none" if heading is None else repr(heading.group(1))
        raise NotReadyError(f"pyproject.toml has version {version!r}, the newest heading of CHANGELOG.md {said}")
    if DATE.fullmatch(heading.group(2)) is None:
        raise NotReadyError(
            f"CHANGELOG.md says '{heading.group()}': write the date instead, as in '## {version} (2030-01-31)'"
        )
    commits = output_of(["git", "for-each-ref", "--format=%(objectname)%(*objectname)", f"refs/tags/v{version}"], root)
    if commits and output_of(["git", "rev-parse", "HEAD"], root).strip() not in commits:
        raise NotReadyError(f"the tag v{version} is at another commit: this needs a new version")
    return version


def check_wheels(dist: Path, version: str, without: Iterable[str]) -> None:
    """See that there is one wheel for each version of Python on x86-64, with the tag that was promised."""
    for python in set(VERSIONS) - set(without):
        tag = f"cp{python.replace('.', '')}"
        name = f"fastpipe_engine-{version}-{tag}-{tag}-manylinux_2_28_x86_64.whl"
        if not (dist / name).is_file():
            raise NotReadyError(f"there is no {name}; name an interpreter to `make wheels`, or say --without {python}")


def check_bill(dist: Path, version: str) -> None:
    """See that the bill of materials is one of this version."""
    path = dist / f"fastpipe_engine-{version}.cdx.json"
    if not path.is_file() or json.loads(path.read_text())["metadata"]["component"]["version"] != version:
        raise NotReadyError(f"there is no bill of materials of {version}: {path}")


def checksum(path: Path) -> str:
    """Return a file's SHA-256, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_sdist_again(sdist: Path, python: Path, root: Path) -> None:
    """Build the sdist a second time, from a fresh clone elsewhere: it must have the same bytes."""
    epoch = output_of(["git", "log", "-1", "--format=%ct"], root).strip()
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["git", "clone", "--quiet", str(root), f"{scratch}/clone"], check=True)
        command = [str(python), "-m", "build", "--sdist", "--no-isolation", "--outdir", scratch, f"{scratch}/clone"]
        environ = {**os.environ, "SOURCE_DATE_EPOCH": epoch}
        subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, check=True)
        if checksum(Path(scratch, sdist.name)) != checksum(sdist):
            raise NotReadyError(f"{sdist.name} from a fresh clone has other bytes: something that is ignored got in")


def write_checksums(dist: Path) -> Path:
    """Write what ``sha256sum --check`` reads, of all files there are; return its path."""
    path = dist / "SHA256SUMS"
    path.unlink(missing_ok=True)
    lines = [f"{checksum(file)}  {file.name}\n" for file in sorted(dist.iterdir())]
    path.write_text("".join(lines))
    return path


def release(root: Path, ci_passed: bool, without: Sequence[str], wheel_options: str) -> None:
    """Do all of it."""
    version = check_tree(root)
    if ci_passed:
        print("the tests: skipped, as CI is said to have passed on this commit", flush=True)
    else:
        subprocess.run(["bash", ".ci/run"], cwd=root, check=True)
    subprocess.run(["make", "wheels", f"ARGS={wheel_options}"], cwd=root, check=True)
    dist = root / "dist"
    sdist = dist / f"fastpipe_engine-{version}.tar.gz"
    tools = root / "build" / "wheels" / "tools" / "bin"
    check_wheels(dist, version, without)
    check_bill(dist, version)
    check_sdist_again(sdist, tools / "python", root)
    uploaded = [str(path.relative_to(root)) for path in sorted([sdist, *dist.glob("*.whl")])]
    subprocess.run([str(tools / "twine"), "check", "--strict", *uploaded], cwd=root, check=True)
    check_tree(root)  # nothing of this has changed it
    sums = write_checksums(dist)
    print(f"\n{sums.read_text()}\nNothing was uploaded. To release {version}:\n")
    print(f"    git tag -s v{version} -m 'fastpipe {version}' && git push origin v{version}")
    print(f"    {(tools / 'twine').relative_to(root)} upload {' '.join(uploaded)}\n")
    print(f"and keep {sums.name} and the bill of materials beside the release's notes.")


def main(given: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ci-passed", action="store_true", help="do not run .ci/run")
    parser.add_argument("--without", action="append", default=[], choices=VERSIONS, help="no wheel for that Python")
    parser.add_argument("--wheels", default="", metavar="OPTIONS", help="options for releasing/wheels.py")
    arguments = parser.parse_args(given)
    try:
        release(root, arguments.ci_passed, arguments.without, arguments.wheels)
    except NotReadyError as error:
        sys.exit(f"not released: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"not released: {' '.join(error.cmd)} failed\n{error.stderr or ''}".rstrip())


if __name__ == "__main__":
    main()
