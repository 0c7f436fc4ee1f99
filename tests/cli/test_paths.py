"""Where commands write: what is wrong is said at once, with the option, the path, and what to do."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from fastpipe.cli.main import main
from fastpipe.cli.paths import check_folder, check_output
from fastpipe.errors import PipeError

RUN = ["run", "pipe.toml", "--data", "1"]
BENCH = ["bench", "pipe.toml", "--data", "1", "--seconds", "0.01", "--repeats", "1"]
TUNE = ["tune", "pipe.toml", "--data", "1", "--seconds", "0.01", "--repeats", "1", "--trials", "2"]
OPTIONS = {
    "--out": [*RUN, "--out"],
    "--failures": [*RUN, "--failures"],
    "--timeline": [*RUN, "--timeline"],
    "graph": ["graph", "pipe.toml", "-o"],
    "schema": ["schema", "-o"],
    "bench --plot": [*BENCH, "--plot"],
    "tune --plot": [*TUNE, "--plot"],
    "tune --output": [*TUNE, "-o"],
}
IS_MISSING = {name: importlib.util.find_spec(name) is None for name in ("matplotlib", "optuna", "tomlkit")}


@pytest.mark.parametrize("option", OPTIONS)
def test_what_cannot_be_written_is_said_before_anything_is_built(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is not there, a folder in the place of a file, a file in the place of a folder."""
    if "--plot" in option and IS_MISSING["matplotlib"]:
        pytest.skip("matplotlib is not installed here")
    if "tune" in option and (IS_MISSING["optuna"] or IS_MISSING["tomlkit"]):
        pytest.skip("optuna is not installed here")
    monkeypatch.chdir(tmp_path)
    Path("pipe.toml").write_text('[main]\nbackend = "noisy:Noisy"\n')
    Path("noisy.py").write_text(
        "import pathlib, fastpipe\nclass Noisy(fastpipe.Backend):\n"
        "    def __init__(self): pathlib.Path('built').touch()\n    def forward(self, batch): pass\n"
    )
    Path("folder.png").mkdir()
    Path("file").write_text("kept")
    name = option.split()[-1] if "--" in option else "--output"
    for path, told in (
        ("nowhere/out.png", "nowhere; make it first, or name another file"),
        ("folder.png", f"{name} folder.png: that is a folder; name a file in it"),
        ("file/out.png", "file is no folder; make it first, or name another file"),
    ):
        assert main([*OPTIONS[option], path]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"fastpipe: {name} {path}: ")
        assert told in said.err
    assert not Path("built").exists()
    assert Path("file").read_text() == "kept"


def test_a_folder_for_results_may_be_new_but_no_file_stands_in_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pipe.toml").write_text('[main]\nbackend = "Identity"\n')
    Path("file").write_text("kept")
    assert main([*RUN, "--out-dir", "new/and/deep"]) == 0
    capsys.readouterr()
    assert main([*RUN, "--out-dir", "file/below"]) == 1
    assert f"--out-dir file/below: {tmp_path / 'file'} is a file, and no folder" in capsys.readouterr().err


def test_what_this_user_may_not_write_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whatever the system says of rights, as root may write everywhere."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name not in ("locked", tmp_path.name))
    (tmp_path / "locked").write_text("kept")
    for path in (tmp_path / "locked", tmp_path / "new"):
        with pytest.raises(PipeError, match=f"--out {path}: this user may not write there; name another file"):
            check_output("--out", path)
    with pytest.raises(PipeError, match=f"this user may not write to {tmp_path}; name another folder"):
        check_folder("--out-dir", tmp_path / "new" / "deep")


def test_where_nothing_is_to_be_written_nothing_is_checked() -> None:
    check_output("--out", None)
    check_folder("--out-dir", None)
