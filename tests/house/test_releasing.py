"""What makes wheels and releases: what it refuses, and that the same sources make the same bytes."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
Import = Callable[[str], ModuleType]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Import]:
    """Import a module of ``releasing/``, which is no package, for one test."""
    monkeypatch.syspath_prepend(str(ROOT / "releasing"))
    imported: list[str] = []

    def import_it(name: str) -> ModuleType:
        imported.extend({name, "targets"})
        return importlib.import_module(name)

    yield import_it
    for name in imported:
        sys.modules.pop(name, None)


def archive(path: Path, files: dict[str, bytes], *, time: int, owner: int, mode: int) -> None:
    with tarfile.open(path, "w:gz") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.uid, member.uname, member.mode = len(content), time, owner, "me", mode
            packed.addfile(member, io.BytesIO(content))


def written_again(path: Path) -> bytes:
    script = f"import setup; setup.write_again({str(path)!r}, 1_700_000_000)"
    subprocess.run([sys.executable, "-B", "-c", script], cwd=ROOT, check=True)
    return path.read_bytes()


def test_an_sdist_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    """Two builds of the same files: other times, owners, rights of groups, and another order in the folder."""
    files = {"p/setup.py": b"a", "p/run.sh": b"b"}
    one, two, other = (tmp_path / name / "p.tar.gz" for name in ("one", "two", "other"))
    for path in (one, two, other):
        path.parent.mkdir()
    archive(one, files, time=1, owner=0, mode=0o644)
    archive(two, dict(reversed(files.items())), time=2_000_000, owner=1000, mode=0o664)
    archive(other, files | {"p/run.sh": b"c"}, time=1, owner=0, mode=0o644)
    assert written_again(one) == written_again(two) != written_again(other)
    with tarfile.open(one) as read:
        assert [(member.name, member.mode, member.mtime) for member in read] == [
            ("p/run.sh", 0o644, 1_700_000_000),
            ("p/setup.py", 0o644, 1_700_000_000),
        ]
        content = read.extractfile("p/run.sh")
        assert content is not None
        assert content.read() == b"b"


@pytest.mark.parametrize(
    ("name", "is_old_enough"),
    [
        ("f-1-cp312-cp312-manylinux_2_28_x86_64.whl", True),
        ("f-1-cp312-cp312-manylinux_2_24_x86_64.whl", True),
        ("f-1-cp312-cp312-manylinux_2_35_x86_64.whl", False),
        ("f-1-cp312-cp312-linux_x86_64.whl", False),
        ("f-1-cp312-cp312-manylinux_2_24_aarch64.whl", False),
    ],
)
def test_a_wheel_with_a_newer_tag_is_refused(name: str, is_old_enough: bool, module: Import) -> None:
    """Newer than glibc 2.28, or for something else."""
    assert module("wheels").is_old_enough(name, "x86_64") is is_old_enough


def test_an_interpreter_that_does_not_run_is_refused(module: Import) -> None:
    """Before anything is built."""
    with pytest.raises(SystemExit, match=r"not all of these are CPython of 3\.11, .*: no-such-python"):
        module("targets").find_interpreters(["no-such-python"])


def git(root: Path, *words: str) -> None:
    environ = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *identity, *words], cwd=root, env=environ, check=True, capture_output=True)


def commit(root: Path, *, version: str, heading: str) -> None:
    (root / "pyproject.toml").write_text(f'[project]\nname = "f"\nversion = "{version}"\n')
    (root / "CHANGELOG.md").write_text(f"# Changes\n\nText.\n\n{heading}\n\nMore.\n\n## 0.1.0 (2020-01-01)\n")
    git(root, "add", ".")
    git(root, "commit", "-m", version)


def test_only_what_is_committed_and_dated_is_released(tmp_path: Path, module: Import) -> None:
    """One after the other, each reason is said; then there is none. A tag at another commit is one more."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    release = module("release")
    git(tmp_path, "init", "-b", "main")
    for version, heading, why in [
        ("0.2.0", "## 0.3.0 (2030-01-31)", r"version '0\.2\.0', the newest heading of CHANGELOG\.md '0\.3\.0'"),
        ("0.2.0", "## 0.2.0 (not released)", r"write the date instead, as in '## 0\.2\.0 \(2030-01-31\)'"),
    ]:
        commit(tmp_path, version=version, heading=heading)
        with pytest.raises(release.NotReadyError, match=why):
            release.check_tree(tmp_path)
    commit(tmp_path, version="0.2.0", heading="## 0.2.0 (2030-01-31)")
    git(tmp_path, "tag", "-m", "it", "v0.2.0")
    assert release.check_tree(tmp_path) == "0.2.0"
    (tmp_path / "left.txt").write_text("")
    with pytest.raises(release.NotReadyError, match=r"(?s)not clean.*left\.txt"):
        release.check_tree(tmp_path)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "later")
    with pytest.raises(release.NotReadyError, match=r"the tag v0\.2\.0 is at another commit"):
        release.check_tree(tmp_path)


def test_a_release_lacks_nothing(tmp_path: Path, module: Import) -> None:
    """A wheel for each Python but for those that were named, a bill of this version, and checksums of all there is."""
    release = module("release")
    for python in ("311", "312", "313"):
        (tmp_path / f"fastpipe_engine-1.0-cp{python}-cp{python}-manylinux_2_28_x86_64.whl").write_bytes(b"wheel")
    release.check_wheels(tmp_path, "1.0", ["3.14"])
    with pytest.raises(release.NotReadyError, match=r"no fastpipe_engine-1\.0-cp314-.*--without 3\.14"):
        release.check_wheels(tmp_path, "1.0", [])
    bill = tmp_path / "fastpipe_engine-1.0.cdx.json"
    with pytest.raises(release.NotReadyError, match="no bill of materials"):
        release.check_bill(tmp_path, "1.0")
    bill.write_text(json.dumps({"metadata": {"component": {"version": "1.0"}}}))
    release.check_bill(tmp_path, "1.0")
    sums = release.write_checksums(tmp_path)
    assert len(sums.read_text().splitlines()) == 4
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", sums.name], cwd=tmp_path, check=True)
