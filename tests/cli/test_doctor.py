"""``fastpipe doctor`` and ``fastpipe --version``: what is there, and what would be slow."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import fastpipe
from fastpipe import _core
from fastpipe.cli import doctor
from fastpipe.cli.main import main
from fastpipe.cpus import usable_cpu_count


def test_the_version_says_how_the_engine_was_built(capsys: pytest.CaptureFixture[str]) -> None:
    """In one line."""
    with pytest.raises(SystemExit) as leaving:
        main(["--version"])
    assert leaving.value.code == 0
    line = capsys.readouterr().out
    kind = "debug" if _core.is_debug_build else "release"
    assert line.startswith(f"fastpipe {fastpipe.__version__} ({kind} engine, CPython 3.")


def test_what_is_there_is_shown_and_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The same sections in both; NumPy is always there."""
    assert main(["doctor", "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document.keys() == {"fastpipe", "cpus", "libraries", "gpus", "caches", "remarks"}
    assert document["cpus"]["usable"] == usable_cpu_count()
    assert "numpy" in document["libraries"]
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line in document] == list(document)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("FASTPIPE_TEST_HOOKS", "1", "lets tests stop the engine"),
        ("JSIMD_FORCENONE", "1", "keeps libjpeg-turbo from vector units"),
    ],
)
def test_an_environment_that_makes_things_slow_is_remarked(
    variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it means."""
    monkeypatch.setenv(variable, value)
    _, remarks = doctor.examined()
    assert any(said in remark for remark in remarks), remarks


def test_a_quota_below_the_cpus_is_remarked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that count CPUs start too many threads."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(doctor, "cgroup_quota", lambda: 0.5)
    monkeypatch.setattr(doctor, "usable_cpu_count", lambda: 1)
    _, remarks = doctor.examined()
    assert any("the quota is 0.5 CPUs of" in remark for remark in remarks)
    assert any("there is one CPU" in remark for remark in remarks)


def test_gpus_are_those_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the program is; one that fails is a remark, not an error."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 580.95.05, 143771 MiB, 4 MiB, 9.0'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    facts, _ = doctor.examined()
    assert facts["gpus"]["cuda:0"]["name"] == "NVIDIA H200"
    assert facts["gpus"]["cuda:0"]["driver_version"] == "580.95.05"
    program.write_text("#!/bin/sh\necho 'no devices were found' >&2\nexit 9\n")
    _, remarks = doctor.examined()
    assert "nvidia-smi does not answer: no devices were found" in remarks
