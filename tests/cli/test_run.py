"""``fastpipe run``: files and lines through a pipe, results and failures in files, and what Ctrl-C leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpipe.cli.data import Inputs
from fastpipe.cli.main import main
from fastpipe.cli.run import AHEAD

SQUARES = '[square]\nbackend = "Pow"\nnext = "label"\n\n[label]\nbackend = "Add"\nkey = "unit"\nvalue = "cm2"\n'
BACKENDS = '''
import time
import numpy as np
import fastpipe

latest = 0

@fastpipe.backend
def measured(data):
    jpeg = b"\\xff\\xd8\\xff" + bytes(2000)
    return {"size": len(data), "bytes": jpeg, "small": np.arange(3), "large": np.ones((40, 50))}

@fastpipe.backend
def slow_first(data):
    """The first one takes long, and tells which others have come meanwhile."""
    global latest
    latest = max(latest, data)
    time.sleep(0 if data else 0.5)
    return latest
'''


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's folder is the working directory, and the search path is put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("squares.toml").write_text(SQUARES)
    return tmp_path


def lines_of(path: str | Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_results_are_in_the_order_of_the_lines(in_folder: Path) -> None:
    """Whichever of the workers is faster; a blank line is none."""
    Path("in.jsonl").write_text("".join(f"{number}\n" for number in range(300)) + "\n")
    assert main(["run", "squares.toml", "--data", "@in.jsonl", "--out", "out.jsonl", "--workers", "4"]) == 0
    lines = lines_of("out.jsonl")
    assert [line["answer"]["result"] for line in lines] == [number**2 for number in range(300)]
    assert [line["index"] for line in lines] == list(range(300))
    assert lines[7] == {"index": 7, "input": "in.jsonl:8", "answer": {"result": 49, "unit": "cm2"}}


def test_failures_go_to_a_file_of_their_own(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With node, error and input; a line that is no JSON fails alone; the exit status says that some failed."""
    Path("in.jsonl").write_text('1\n"two"\n{"data": 3}\n{4\n')
    words = ["run", "squares.toml", "--data", "@in.jsonl", "--out", "out.jsonl", "--failures", "failures.jsonl"]
    assert main(words) == 1
    assert [line["answer"]["result"] for line in lines_of("out.jsonl")] == [1, 9]
    two, four = lines_of("failures.jsonl")
    assert (two["input"], two["node"], two["error"]) == ("in.jsonl:2", "square", "TypeError")
    assert (four["index"], four["node"]) == (3, None)
    assert "in.jsonl:4: the line is no JSON" in four["message"]
    assert "2 done, 2 failed" in capsys.readouterr().err


def test_without_a_file_results_go_to_the_output_and_failures_are_told(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As lines, which another program may read; no control character of a file's gets to a terminal."""
    Path("in.jsonl").write_text('2\n"\\u001b[31m\\u009b"\n', encoding="utf-8")
    assert main(["run", "squares.toml", "--data", "@in.jsonl"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["answer"]["result"] == 4
    assert "in.jsonl:2: node 'square': TypeError" in said.err


def test_a_failure_tells_no_secret_of_its_request(in_folder: Path) -> None:
    """Errors repeat what they were given, and the file may go to others."""
    Path("ours_repeating.py").write_text(
        "import fastpipe\n\nclass Repeats(fastpipe.Backend):\n    def forward(self, batch):\n"
        "        raise ValueError(f'refused: {batch[0]}')\n"
    )
    Path("pipe.toml").write_text('backend = "ours_repeating:Repeats"\n')
    words = ["run", "pipe.toml", "--data", "1", "--data", "api_key='hunter2-hunter2'", "--failures", "failures.jsonl"]
    assert main(words) == 1
    assert "hunter2" not in Path("failures.jsonl").read_text()
    assert lines_of("failures.jsonl")[0]["message"].startswith("refused: {'data': 1")


def test_a_folder_gives_a_request_for_each_file(in_folder: Path) -> None:
    """In the order of the names, with the folders inside of it, and without hidden ones; results are files, too."""
    Path("ours_measured.py").write_text(BACKENDS)
    Path("pipe.toml").write_text('backend = "ours_measured:measured"\n')
    for name in ("b.bin", "a.bin", "deep/c.bin", ".hidden", ".git/d.bin"):
        path = Path("photos", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    assert main(["run", "pipe.toml", "--data", "@photos/", "--out", "out.jsonl", "--out-dir", "out"]) == 0
    lines = lines_of("out.jsonl")
    assert [line["input"] for line in lines] == ["photos/a.bin", "photos/b.bin", "photos/deep/c.bin"]
    result = lines[2]["answer"]["result"]
    assert result["size"] == len("deep/c.bin")
    assert result["small"] == [0, 1, 2]
    assert result["large"] == {"file": "deep/c.bin.result.large.npy", "dtype": "float64", "shape": [40, 50]}
    assert np.load(Path("out", result["large"]["file"])).sum() == 2000
    assert result["bytes"] == {"file": "deep/c.bin.result.bytes.jpg", "size_bytes": 2003}
    assert Path("out", result["bytes"]["file"]).stat().st_size == 2003


def test_without_a_folder_large_values_are_described_and_that_is_said(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, while it runs: whoever wants the values can stop it early."""
    Path("ours_described.py").write_text(BACKENDS)
    Path("pipe.toml").write_text('backend = "ours_described:measured"\n')
    assert main(["run", "pipe.toml", "--data", "one", "--data", "two", "--out", "out.jsonl"]) == 0
    first, second = lines_of("out.jsonl")
    assert first["answer"]["result"]["large"]["left_out"].startswith("ndarray float64 (40, 50)")
    assert first["answer"]["result"]["small"] == second["answer"]["result"]["small"] == [0, 1, 2]
    assert capsys.readouterr().err.count("--out-dir FOLDER keeps arrays and bytes") == 1


def test_resuming_passes_over_what_is_done(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line that was not written to its end is done again, and so is what failed."""
    Path("in.jsonl").write_text("1\n2\n3\n")
    words = ["run", "squares.toml", "--data", "@in.jsonl", "--out", "out.jsonl"]
    assert main(words) == 0
    whole = Path("out.jsonl").read_text()
    Path("out.jsonl").write_text(whole[: len(whole) - 20])
    assert main([*words, "--resume"]) == 0
    assert Path("out.jsonl").read_text() == whole
    assert "1 done, 0 failed, 2 done before" in capsys.readouterr().err
    Path("out.jsonl").write_text("something else\n")
    assert main([*words, "--resume"]) == 1
    assert "out.jsonl:1 is no line of fastpipe run" in capsys.readouterr().err


def test_few_inputs_are_held_at_once(in_folder: Path) -> None:
    """However many there are: as long as the first one is not done, only so many are read ahead."""
    Path("ours_slow_first.py").write_text(BACKENDS)
    Path("pipe.toml").write_text('backend = "ours_slow_first:slow_first"\ninstance_num = 4\n')
    Path("in.jsonl").write_text("".join(f"{number}\n" for number in range(500)))
    words = ["run", "pipe.toml", "--data", "@in.jsonl", "--out", "out.jsonl", "--workers", "2"]
    assert main(words) == 0
    first, *_, last = lines_of("out.jsonl")
    assert 2 < first["answer"]["result"] <= 2 * AHEAD
    assert last["answer"]["result"] == 499


def test_ctrl_c_ends_it_and_says_how_far_it_was(in_folder: Path) -> None:
    """Requests that have begun end, what they came to is written, and the exit status is a shell's for Ctrl-C."""
    Path("pipe.toml").write_text('backend = "Sleep"\ntime = 20\ninstance_num = 2\n')
    words = [sys.executable, "-P", "-m", "fastpipe", "run", "pipe.toml", "--data", "@-", "--out", "out.jsonl"]
    ran = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert ran.stdin is not None
    ran.stdin.write("".join(f"{number}\n" for number in range(10)))
    ran.stdin.flush()  # and no end: it waits for more
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s and not Path("out.jsonl").exists():
        time.sleep(0.02)
    time.sleep(0.5)
    ran.send_signal(signal.SIGINT)
    _, said = ran.communicate(timeout=30)
    assert ran.returncode == 130
    assert "interrupted: " in said
    assert f"{len(lines_of('out.jsonl'))} done, 0 failed" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["squares.toml", "--data", "@nowhere/"], "there is no such file or folder in "),
        (["squares.toml", "--data", "size=@folder/", "--data", "1"], "only 'data' may be of many"),
        (["wrong.toml", "--data", "1"], "no backend is named 'Pov'; did you mean 'Pow'?"),
        (["nowhere.toml", "--data", "1"], "nowhere.toml"),
    ],
)
def test_what_is_wrong_is_said(
    words: list[str], said: str, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is run, and before a file of results is emptied."""
    Path("folder").mkdir()
    Path("wrong.toml").write_text('[a]\nbackend = "Pov"\n')
    Path("out.jsonl").write_text("earlier\n")
    assert main(["run", *words, "--out", "out.jsonl"]) == 1
    assert Path("out.jsonl").read_text() == "earlier\n"
    assert said in capsys.readouterr().err


def test_data_is_read_the_same_everywhere(in_folder: Path) -> None:
    """Keys beside the data are those of every request; a text with a sign of equality may be quoted."""
    Path("a.bin").write_bytes(b"bytes")
    requests = [item.read() for item in Inputs(["@a.bin", "'x=y'", "size=3", "name=@a.bin"])]
    assert requests == [
        {"data": b"bytes", "size": 3, "name": b"bytes"},
        {"data": "x=y", "size": 3, "name": b"bytes"},
    ]
    assert Inputs(["@a.bin", "7"]).count() == 2
    assert Inputs(["@-"]).count() is None


def test_a_file_of_numpy_gives_arrays_as_a_model_takes_them(in_folder: Path) -> None:
    """One array, or several by their names; for every request, or as one file of a folder."""
    ids, mask = np.arange(3), np.ones(3, np.float32)
    Path("folder").mkdir()
    np.save("folder/ids.npy", ids)
    np.savez("both.npz", ids=ids, mask=mask)
    one, both = [item.read()["data"] for item in Inputs(["@folder/", "@both.npz"])]
    assert (one.dtype, one.tolist()) == (ids.dtype, [0, 1, 2])
    assert {name: (array.dtype, array.tolist()) for name, array in both.items()} == {
        "ids": (ids.dtype, [0, 1, 2]),
        "mask": (mask.dtype, [1, 1, 1]),
    }
    (request,) = [item.read() for item in Inputs(["7", "mask=@folder/ids.npy"])]
    assert request["mask"].tolist() == [0, 1, 2]
    assert main(["run", "squares.toml", "--data", "@folder/ids.npy", "--out", "out.jsonl"]) == 0
    assert lines_of("out.jsonl")[0]["answer"]["result"] == [0, 1, 4]


@pytest.mark.parametrize("name", ["code.npy", "empty.npy", "text.npz"])
def test_a_file_of_arrays_that_is_none_fails_alone_and_no_code_in_it_is_run(in_folder: Path, name: str) -> None:
    """Objects are pickles, and files may come from anybody."""
    np.save("code.npy", np.array([{}]), allow_pickle=True)
    Path("empty.npy").write_bytes(b"")
    Path("text.npz").write_text("text")
    with pytest.raises(ValueError, match=f"^{name}: expected arrays that NumPy reads without running code, got: "):
        next(iter(Inputs([f"@{name}"]))).read()
    words = [
        "run",
        "squares.toml",
        "--data",
        f"@{name}",
        "--data",
        "3",
        "--out",
        "out.jsonl",
        "--failures",
        "bad.jsonl",
    ]
    assert main(words) == 1
    assert [line["answer"]["result"] for line in lines_of("out.jsonl")] == [9]
    assert [line["input"] for line in lines_of("bad.jsonl")] == [name]


@pytest.mark.parametrize("option", ["--out", "--failures", "--timeline"])
def test_a_full_disk_is_said_with_the_file(in_folder: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    """Also of what is written only when the file is closed."""
    Path("in.jsonl").write_text('1\n"no number"\n')
    assert main(["run", "squares.toml", "--data", "@in.jsonl", "--out", "out.jsonl", option, "/dev/full"]) == 1
    assert "fastpipe: /dev/full: No space left on device\n" in capsys.readouterr().err


def test_an_array_that_finds_no_room_is_said_with_its_file(
    in_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPy says only how many items were written."""
    monkeypatch.setattr(np, "save", lambda *_, **__: (_ for _ in ()).throw(OSError("2000 requested and 0 written")))
    Path("measures.py").write_text(BACKENDS)
    Path("measured.toml").write_text('[measured]\nbackend = "measures:measured"\n')
    assert main(["run", "measured.toml", "--data", "x", "--out", "out.jsonl", "--out-dir", "arrays"]) == 1
    assert ".npy: 2000 requested and 0 written; the disk may be full" in capsys.readouterr().err
