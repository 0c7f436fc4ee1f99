"""Recording and replay: what is kept, in which form, that the pipe never notices, and that it runs again."""

from __future__ import annotations

import argparse
import datetime
import gc
import io
import json
import os
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastpipe
from fastpipe import Backend, Pipe, PipeClosed, PipeError, redaction
from fastpipe.cli import replay
from fastpipe.debug import comparison, record_files
from fastpipe.debug.recorder import MOST_QUEUED, Recording
from fastpipe.instances.threads import Worker

Request = dict[str, Any]

WAIT_S = 30.0

BACKENDS = """
import fastpipe

@fastpipe.backend
def half(number):
    if number % 2:
        raise ValueError(f"{number} is odd, says {object()}")
    return number // 2

@fastpipe.backend
def tenth(number):
    return {"tenth": number / 10, "list": [number]}

def pipe():
    return fastpipe.Pipe(a={"backend": half, "next": "b"}, b={"backend": tenth})

configuration = {"backend": half}
nothing = 3
"""
TOML = """
[a]
backend = "recorded_backends:half"
next = "b"

[b]
backend = "recorded_backends:tenth"
"""


class Half(Backend):
    """Halves even numbers."""

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            if request["data"] % 2:
                raise ValueError(f"{request['data']} is odd")
            request["result"] = request["data"] // 2


class Clears(Backend):
    """Writes into the array it got, and fails."""

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["data"][:] = 0
            request["items"].clear()
            raise ValueError("cleared")


@dataclass
class Point:
    """A type of the user's."""

    x: int
    y: Any = None


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    with Pipe(backend=Half) as pipe:
        yield pipe


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with backends, and a configuration that names them."""
    (tmp_path / "recorded_backends.py").write_text(BACKENDS)
    (tmp_path / "pipe.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "recorded_backends", raising=False)
    return tmp_path


def call(pipe: Pipe, request: Request) -> BaseException | None:
    try:
        pipe(request)
    except Exception as error:
        return error
    return None


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def only_record(folder: Path, **keys: Any) -> record_files.Record:
    (path,) = files_in(folder)
    return record_files.read(path, **keys)


def kept(values: Request, *, pickle: bool = False) -> Request:
    """What comes back of ``values``."""
    encoded, members = record_files.encode({"request": values}, pickle=pickle)
    manifest = json.loads(json.dumps(encoded, allow_nan=False))
    return record_files.Record(Path("x"), manifest, members, pickle).request()


# ---- what is kept ----------------------------------------------------------------------------------------------


def test_a_failing_request_is_kept_with_its_inputs_and_its_error(pipe: Pipe, tmp_path: Path) -> None:
    """One file, which says all there is to know; what succeeds is not kept."""
    with pipe.record(tmp_path / "records") as recording:
        assert call(pipe, {"data": 2}) is None
        error = call(pipe, {"data": 3, "id": 4711})
    assert (recording.written, recording.dropped, recording.last_error) == (1, 0, None)
    record = only_record(tmp_path / "records")
    assert record.path.name.endswith("-failed-main.fastpipe.zip")
    assert record.request() == {"data": 3, "id": 4711}
    manifest = record.manifest
    assert manifest["fastpipe"] == fastpipe.__version__
    assert datetime.datetime.fromisoformat(manifest["time"]).tzinfo is not None
    assert (manifest["outcome"], manifest["entry"]) == ("failed", None)
    told = manifest["error"]
    assert (told["type"], told["message"], told["node"]) == ("ValueError", "3 is odd", "main")
    assert error is not None
    assert told["notes"] == error.__notes__
    assert "in forward" in told["traceback"]


def test_samples_are_kept_with_their_answers(pipe: Pipe, tmp_path: Path) -> None:
    """A share of 1 is all of them; failures are not kept twice."""
    with pipe.record(tmp_path / "records", sample=1.0, failures=False) as recording:
        for number in (2, 3, 4):
            call(pipe, {"data": number})
    assert recording.written == 3
    outcomes = [record_files.read(path).manifest for path in files_in(tmp_path / "records")]
    assert [manifest["outcome"] for manifest in outcomes] == ["answered", "failed", "answered"]
    assert outcomes[2]["answer"] == {"dict": [["data", 4], ["result", 2]]}


def test_a_sample_is_chosen_by_chance(pipe: Pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request for itself, when it comes."""
    chances = iter([0.4, 0.6, 0.1])
    monkeypatch.setattr("random.random", lambda: next(chances))
    with pipe.record(tmp_path, sample=0.5, failures=False):
        for number in (2, 4, 6):
            call(pipe, {"data": number})
    assert [record_files.read(path).request()["data"] for path in files_in(tmp_path)] == [2, 6]


def test_no_more_than_limit_files_are_left_and_the_oldest_go(pipe: Pipe, tmp_path: Path) -> None:
    """Also those of an earlier recording in the same directory; other files stay."""
    (tmp_path / "notes.txt").write_text("mine")
    for numbers in ((1, 3, 5), (7, 9)):
        with pipe.record(tmp_path, limit=2):
            for number in numbers:
                call(pipe, {"data": number})
    assert (tmp_path / "notes.txt").exists()
    paths = [path for path in files_in(tmp_path) if path.suffix == ".zip"]
    assert [record_files.read(path).request()["data"] for path in paths] == [7, 9]


def test_inputs_are_recorded_as_they_came_although_a_backend_writes_into_them(tmp_path: Path) -> None:
    """Arrays, lists and dicts are copied at admission; arrays from copy_below_bytes on are not."""
    with Pipe(backend=Clears) as pipe, pipe.record(tmp_path, copy_below_bytes=1000):
        call(pipe, {"data": np.ones(10), "items": [1, [2]], "inner": {"array": np.ones(3)}})
        call(pipe, {"data": np.ones(1000), "items": [1]})
    small, large = (record_files.read(path).request() for path in files_in(tmp_path))
    assert small["data"].tolist() == [1.0] * 10
    assert small["items"] == [1, [2]]
    assert large["data"].tolist() == [0.0] * 1000
    assert large["items"] == [1]


def test_every_way_of_calling_is_recorded(pipe: Pipe, tmp_path: Path) -> None:
    """Lists, futures, map, eager calls and the debugger."""
    with pipe.record(tmp_path) as recording:
        with pytest.raises(ExceptionGroup):
            pipe([{"data": 1}, {"data": 2}])
        assert isinstance(pipe.submit({"data": 3}).exception(WAIT_S), ValueError)
        list(pipe.map([{"data": 5}], return_exceptions=True))
        with pytest.raises(ValueError, match="7 is odd"):
            pipe({"data": 7}, eager=True)
        with pipe.debug({"data": 9}) as debugger:
            debugger.run()
    assert recording.written == 5
    assert [record_files.read(path).request()["data"] for path in files_in(tmp_path)] == [1, 3, 5, 7, 9]


# ---- the form --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, -1.5, "text \udc80 \n", b"\x00\xff", 10**2000, 1e308, float("inf"), 1 + 2j, [], (), {},
        [1, (2, [3.5, None]), {"a": b"x", 3: "y", (1, 2): {}}], {1, 2}, frozenset(["a"]), Path("a/b"),
    ],
)  # fmt: skip
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    """With their types, at any depth."""
    back = kept({"value": value, 7: [value]})
    assert back == {"value": value, 7: [value]}
    assert type(back["value"]) is type(value)


def test_nan_and_bytearrays_come_back() -> None:
    """One is not equal to itself, the other is to bytes."""
    back = kept({"nan": float("nan"), "array": bytearray(b"ab")})
    assert back["nan"] != back["nan"]
    assert type(back["array"]) is bytearray


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint8).reshape(2, 3), np.zeros((0, 4), np.float32), np.array(3.5), np.array(["a", "bc"]),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(10)[::2], np.zeros(2, [("a", "i4"), ("b", "f8")]),
        np.array(["2020-01-01"], "datetime64[D]"), np.array([1 + 2j, 3]), np.arange(3, dtype=">i2"),
    ],
)  # fmt: skip
def test_arrays_come_back_with_shape_and_dtype(array: Any) -> None:
    """Any layout; scalars are scalars again."""
    back = kept({"array": array, "scalar": array.reshape(-1)[:1].copy()})["array"]
    assert type(back) is np.ndarray
    assert (back.shape, back.dtype) == (array.shape, array.dtype)
    assert np.array_equal(back, array)


def test_numpy_scalars_come_back() -> None:
    """Neither as Python numbers nor as arrays."""
    back = kept({"number": np.float16(1.5), "text": np.str_("a")})
    assert (type(back["number"]), back["number"]) == (np.float16, 1.5)


def test_tensors_come_back() -> None:
    """Of every dtype that NumPy does not have, too."""
    torch = pytest.importorskip("torch")
    tensors = {
        "bfloat16": torch.tensor([[1.5, 2.0]], dtype=torch.bfloat16), "empty": torch.zeros((0, 3)),
        "scalar": torch.tensor(3), "strided": torch.arange(6).reshape(2, 3).T,
        "gradient": torch.ones(2, requires_grad=True),
    }  # fmt: skip
    back = kept(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor.detach())


def test_the_same_array_is_stored_once() -> None:
    """Parts of a request often share an image."""
    image = np.zeros((100, 100))
    _, members = record_files.encode({"a": image, "b": [image, {"c": image}]})
    assert len(members) == 1


def test_what_cannot_be_kept_is_named_and_the_rest_is_there(pipe: Pipe, tmp_path: Path) -> None:
    """Where in the request, of which type; nothing of it is run when it is read."""
    with pipe.record(tmp_path):
        call(pipe, {"data": 1, "point": Point(1), "deep": [{"lock": threading.Lock()}], "objects": np.array([None])})
    record = only_record(tmp_path)
    assert record.request() == {"data": 1}
    assert record.lost == [
        f"request['point'] ({Point.__module__}.Point)",
        "request['deep'][0]['lock'] (_thread.lock)",
        "request['objects'] (numpy.ndarray)",
    ]
    assert record.manifest["summary"]["point"] == "Point(x=1, y=None)"


def test_pickles_are_kept_and_loaded_only_if_both_sides_say_so(pipe: Pipe, tmp_path: Path) -> None:
    """pickle=True here and there."""
    with pipe.record(tmp_path, pickle=True):
        call(pipe, {"data": 1, "when": datetime.date(2020, 1, 2)})
    assert only_record(tmp_path).lost == ["request['when'] (a pickle, which is loaded with --pickle only)"]
    assert only_record(tmp_path).request() == {"data": 1}
    record = only_record(tmp_path, pickle=True)
    assert record.lost == []
    assert record.request() == {"data": 1, "when": datetime.date(2020, 1, 2)}


def test_endless_and_enormous_values_do_not_stop_the_writer() -> None:
    """A list that holds itself is kept down to a depth, a list of a million is not."""
    endless: list[Any] = []
    endless.append(endless)
    encoded, _ = record_files.encode({"endless": endless, "many": list(range(10**6))})
    assert "nested too deeply" in json.dumps(encoded["endless"])
    record = record_files.Record(Path("x"), {"request": {"dict": [["many", encoded["many"]]]}}, {})
    assert record.lost == ["request['many'] (list: too many values)"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "is no record of fastpipe: File is not a zip file"),
        ({}, "is no record of fastpipe: .*manifest.json"),
        ({"manifest.json": "{"}, "is no record of fastpipe: Expecting"),
        ({"manifest.json": "[]"}, "is no record of fastpipe: its manifest.json has no format"),
        ({"manifest.json": '{"format": 1}'}, "is no record of fastpipe: it has no request"),
        ({"manifest.json": '{"format": 9, "fastpipe": "7.1"}'}, "has the format 9, of fastpipe 7.1; .* reads up to 1"),
    ],
)
def test_what_is_no_record_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    """With the file's name, and why."""
    path = tmp_path / "x.fastpipe.zip"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in content.items():
                archive.writestr(name, text)
    with pytest.raises(PipeError, match=f"x.fastpipe.zip {message}"):
        record_files.read(path)


@pytest.mark.parametrize("node", [{"ndarray": "9.npy"}, {"unheard": 1}, {}, {"scalar": "0.npy"}])
def test_a_damaged_record_is_a_pipe_error(node: Any) -> None:
    """Members that are missing, kinds nobody knows, arrays that hold objects."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.array([None]), allow_pickle=True)
    manifest = {"request": {"dict": [["data", node]]}}
    with pytest.raises(PipeError, match="x is damaged"):
        record_files.Record(Path("x"), manifest, {"0.npy": file.getvalue()}).request()


# ---- the pipe does not notice ----------------------------------------------------------------------------------


class Stuck:
    """Stands in for the writing of a file, and waits in there."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.real = record_files.write

    def __call__(self, *arguments: Any) -> None:
        self.entered.set()
        assert self.go_on.wait(WAIT_S)
        self.real(*arguments)


def test_what_comes_too_fast_is_dropped_and_counted(
    pipe: Pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk hangs, requests go on; as many as fit in the queue are written later."""
    stuck = Stuck()
    monkeypatch.setattr(record_files, "write", stuck)
    with pipe.record(tmp_path, limit=1000) as recording:
        call(pipe, {"data": 1})
        assert stuck.entered.wait(WAIT_S)
        for _ in range(MOST_QUEUED + 5):
            call(pipe, {"data": 3})
        assert recording.dropped == 5
        stuck.go_on.set()
    assert recording.written == MOST_QUEUED + 1


def test_a_file_that_cannot_be_written_is_counted_and_leaves_nothing(
    pipe: Pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, say; the next one may be written again."""

    tried = threading.Event()

    def full(*_: Any) -> None:
        tried.set()
        raise OSError(28, "No space left on device")

    with pipe.record(tmp_path) as recording:
        monkeypatch.setattr("os.replace", full)
        error = call(pipe, {"data": 1})
        assert tried.wait(WAIT_S)
        monkeypatch.undo()
        call(pipe, {"data": 3})
    assert str(error) == "1 is odd"
    assert (recording.written, recording.dropped) == (1, 1)
    assert recording.last_error == "OSError: [Errno 28] No space left on device"
    assert len(files_in(tmp_path)) == 1


def test_an_error_that_cannot_be_shown_is_recorded(tmp_path: Path) -> None:
    """Its class may raise at every turn."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    class Raises(Backend):
        def forward(self, batch: list[Request]) -> None:
            raise Mute

    with Pipe(backend=Raises) as pipe, pipe.record(tmp_path) as recording:
        call(pipe, {"data": 1})
    assert (recording.written, recording.last_error) == (1, None)
    assert only_record(tmp_path).manifest["error"]["message"] == "<its __str__ raises RuntimeError>"


@pytest.mark.parametrize("odd", [RuntimeError("no"), SystemExit("no"), KeyboardInterrupt("no")], ids=repr)
def test_a_value_that_raises_when_it_is_looked_at_costs_no_other_request_its_record(
    odd: BaseException, tmp_path: Path
) -> None:
    """Nor does an error in whose text there is none; whatever they raise, the thread goes on."""

    class Odd:
        @property
        def __class__(self) -> Any:
            raise odd

    class Mute(Exception):
        def __str__(self) -> str:
            raise odd

    class Raises(Backend):
        def forward(self, batch: list[Request]) -> None:
            raise Mute

    with Pipe(backend=Raises) as pipe, pipe.record(tmp_path) as recording:
        call(pipe, {"data": Odd()})
        call(pipe, {"data": 2})
    with Pipe(backend=Half) as pipe, pipe.record(tmp_path, sample=1.0) as second:
        call(pipe, {"data": Odd()})
        call(pipe, {"data": 2})
    assert recording.written + recording.dropped == second.written + second.dropped == 2
    assert second.written >= 1
    if isinstance(odd, Exception):
        assert (recording.written, second.written) == (2, 2)
    else:
        assert second.last_error == f"{type(odd).__name__}: no"


def test_the_thread_of_a_recording_begins_like_those_of_instances(tmp_path: Path, pipe: Pipe) -> None:
    """That is, also where its first lines find no memory; and a process that has only greenlets is told so."""
    with pipe.record(tmp_path) as recording:
        assert isinstance(recording._thread, Worker)
        assert not recording._thread.is_over
    assert recording._thread.is_over


def test_a_recording_is_not_stopped_with_a_timeout_that_makes_no_sense(tmp_path: Path) -> None:
    """It goes on, and stops as soon as somebody says it in a way that can be understood."""
    with Pipe(backend="Identity") as pipe:
        recording = pipe.record(tmp_path)
        with pytest.raises(TypeError, match="timeout must be a number of seconds, or None for no limit; got '1'"):
            recording.stop("1")  # type: ignore[arg-type]
        assert not recording.is_stopped
        recording.stop(float("inf"))
        assert recording.is_stopped


def test_requests_in_flight_when_recording_stops_are_not_kept(tmp_path: Path) -> None:
    """The pipe goes on, and may be recorded again, to somewhere else."""
    entered, go_on = threading.Event(), threading.Event()

    class Waits(Backend):
        def forward(self, batch: list[Request]) -> None:
            entered.set()
            assert go_on.wait(WAIT_S)
            raise ValueError("late")

    with Pipe(backend=Waits) as pipe:
        recording = pipe.record(tmp_path / "one")
        future = pipe.submit({"data": 1})
        assert entered.wait(WAIT_S)
        recording.stop()
        recording.stop()
        second = pipe.record(tmp_path / "two")
        go_on.set()
        assert str(future.exception(WAIT_S)) == "late"
        call(pipe, {"data": 2})
    assert (recording.written, second.written) == (0, 1)
    assert repr(recording) == f"<fastpipe stopped to {str(tmp_path / 'one')!r}: 0 written, 0 dropped>"


def test_closing_the_pipe_writes_what_is_left_and_ends_the_thread(tmp_path: Path) -> None:
    """Without stop(); the thread is gone, as the fixture of all tests checks."""
    with Pipe(backend=Half) as pipe:
        recording = pipe.record(tmp_path)
        for _ in range(20):
            call(pipe, {"data": 1})
    assert recording.is_stopped
    assert recording.written == 20


def test_a_pipe_that_is_dropped_ends_the_thread(tmp_path: Path) -> None:
    """Neither the pipe nor the recording is kept alive by it."""
    pipe = Pipe(backend=Half)
    thread = pipe.record(tmp_path)._thread.thread
    del pipe
    gc.collect()
    thread.join(WAIT_S)
    assert not thread.is_alive()


# ---- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sample": 2}, "sample must be between 0 and 1, got 2"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"failures": False}, "nothing would be recorded: failures is False and sample is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(pipe: Pipe, tmp_path: Path, keys: Any, message: str) -> None:
    """Before anything is made."""
    with pytest.raises(ValueError, match=message):
        pipe.record(tmp_path / "records", **keys)
    assert not (tmp_path / "records").exists()


def test_a_second_recording_and_a_closed_pipe_are_refused(tmp_path: Path) -> None:
    """One at a time; and there must be something to come."""
    with (
        Pipe(backend=Half) as pipe,
        pipe.record(tmp_path / "one"),
        pytest.raises(PipeError, match=r"records to '.*one' already: stop\(\) that first"),
    ):
        pipe.record(tmp_path / "two")
    with pytest.raises(PipeClosed, match="nothing to record"):
        pipe.record(tmp_path)


def test_a_directory_that_cannot_be_made_is_an_error_at_once(pipe: Pipe, tmp_path: Path) -> None:
    """Not a count that nobody reads."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        pipe.record(tmp_path / "file")


# ---- replay ----------------------------------------------------------------------------------------------------


def replayed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    """Run the command in this process; return its status, and its table as lines."""
    parser = argparse.ArgumentParser()
    replay.add_arguments(parser)
    status = replay.run(parser.parse_args(words))
    return status, capsys.readouterr().out.splitlines()


def recorded(source: Any, *numbers: Any, folder: str = "records", **keys: Any) -> None:
    with Pipe(source) as pipe, pipe.record(folder, **keys):
        for number in numbers:
            call(pipe, number if isinstance(number, dict) else {"data": number})


def test_what_was_recorded_reproduces_in_a_fresh_process(project: Path) -> None:
    """The same error, addresses aside, and the same answer; status 0."""
    recorded("pipe.toml", 2, 3, 6, sample=1.0)
    command = [sys.executable, "-m", "fastpipe", "replay", "--trust", "records"]
    ran = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["same", "same", "same", "3"]
    assert "ValueError at a: 3 is odd" in lines[1]
    assert lines[-1] == "3 of 3 reproduced"


def test_the_pipe_is_found_by_file_mapping_classes_or_name(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A configuration in plain data is in the record; a class is, if it can be imported."""
    import recorded_backends as backends  # type: ignore[import-not-found]

    recorded("pipe.toml", 3)
    recorded({"a": {"backend": "recorded_backends:half"}}, 5)
    recorded(backends.configuration, 7)
    assert replayed(capsys, "records", "--trust")[0] == 0
    with backends.pipe() as pipe, pipe.record("named"):
        call(pipe, {"data": 3})
    for name in ("pipe", "configuration"):
        assert replayed(capsys, "named", "--pipe", f"recorded_backends:{name}")[0] == 0
    assert replayed(capsys, "named", "--config", "pipe.toml")[0] == 0


def test_what_does_not_reproduce_is_told_and_the_status_is_1(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another message, another type, an answer instead, another answer; and that the file has changed."""
    recorded("pipe.toml", 3, 8, "x", sample=1.0)
    changed = BACKENDS.replace("if number % 2", "if number % 3 == 0").replace("/ 10", "/ 5").replace("is odd", "is bad")
    (project / "recorded_backends.py").write_text(changed)
    del sys.modules["recorded_backends"]
    (project / "pipe.toml").write_text(TOML + "\n")
    status, lines = replayed(capsys, "records", "--trust")
    assert status == 1
    assert "now ValueError: 3 is bad" in lines[0]
    assert "['result']['tenth']: 0.4, now 0.8" in lines[1]
    assert lines[2].startswith("same")
    assert all("pipe.toml has changed since" in line for line in lines[:3])
    assert lines[3] == "1 of 3 reproduced"


def test_a_record_that_lacks_a_value_is_not_run_unless_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says which key; --allow-missing leaves it out."""
    recorded("pipe.toml", {"data": 3, "point": Point(1)})
    status, lines = replayed(capsys, "records", "--trust")
    assert status == 1
    assert lines[0].startswith("not run")
    assert f"the record lacks request['point'] ({Point.__module__}.Point); --allow-missing runs it without" in lines[0]
    assert replayed(capsys, "records", "--trust", "--allow-missing")[0] == 0


@pytest.mark.parametrize(
    ("source", "words", "message"),
    [
        (
            lambda: {"backend": Half()},
            [],
            "['backend'] is Half object: no text says what that is, so replay needs --pipe",
        ),
        (lambda: "pipe.toml", ["--pipe", "recorded_backends"], "--pipe is written module:attribute"),
        (lambda: "pipe.toml", ["--pipe", "absent:pipe"], "there is no module 'absent'"),
        (lambda: "pipe.toml", ["--pipe", "recorded_backends:absent"], "'recorded_backends' has no 'absent'"),
        (lambda: "pipe.toml", ["--pipe", "recorded_backends:nothing"], "is no Pipe, and no configuration"),
        (lambda: "pipe.toml", ["--config", "absent.toml"], "there is no file 'absent.toml'"),
    ],
)
def test_a_pipe_that_cannot_be_had_is_said_in_the_record_s_row(
    project: Path, capsys: pytest.CaptureFixture[str], source: Callable[[], Any], words: list[str], message: str
) -> None:
    """In words that say what to do."""
    recorded(source(), 3)
    status, lines = replayed(capsys, "records", *words)
    assert status == 1
    assert lines[0].startswith("not run")
    assert message in lines[0]


def test_a_configuration_that_is_gone_is_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the ways to name another one."""
    recorded("pipe.toml", 3)
    (project / "pipe.toml").unlink()
    _, lines = replayed(capsys, "records", "--trust")
    assert "pipe.toml is not there: say --config FILE or --pipe module:attribute" in lines[0]


def test_nothing_to_replay_has_a_status_of_its_own(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path that is not there, a directory without records: 2, said on stderr."""
    parser = argparse.ArgumentParser()
    replay.add_arguments(parser)
    assert replay.run(parser.parse_args(["absent"])) == 2
    assert capsys.readouterr().err == "fastpipe replay: there is no 'absent'\n"
    assert replay.run(parser.parse_args(["."])) == 2
    assert "has no records (*.fastpipe.zip)" in capsys.readouterr().err


def test_a_file_that_is_no_record_is_a_row_of_the_table(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are replayed."""
    recorded("pipe.toml", 3)
    Path("records/a.fastpipe.zip").write_bytes(b"")
    status, lines = replayed(capsys, "records", "--trust")
    assert (status, lines[-1]) == (1, "1 of 2 reproduced")
    assert sum("is no record of fastpipe" in line for line in lines) == 1


def test_debug_stops_before_the_node_that_failed(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a prompt, which reads its commands from the standard input."""
    recorded("pipe.toml", 6, {"data": "text"})
    recorded("pipe.toml", {"data": 5}, folder="other")
    monkeypatch.setattr("sys.stdin", io.StringIO("run\nprint data\nset data 4\nstep\nrun\n"))
    status, lines = replayed(capsys, "other", "--trust", "--debug")
    text = "\n".join(lines)
    assert "breakpoint before a (after 0 steps)" in text
    assert "(fastpipe) print data\n5\n" in text
    assert "step 1: a -> Run" in text
    assert (status, lines[-1]) == (1, "0 of 1 reproduced")  # with another input, it does not fail
    assert "now answered" in lines[-2]


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (1, 1, ""),
        (100_000, 100_001, "x['key']: 100000, now 100001"),
        (1, True, "x['key']: 1, now True"),
        (0.5, 0.50001, ""),
        (0.5, 0.6, "x['key']: 0.5, now 0.6"),
        (float("nan"), float("nan"), ""),
        ([1, 2], [1, 3], "x['key'][1]: 2, now 3"),
        ([1], [1, 2], "x['key']: 1 items, now 2"),
        ((1,), [1], "x['key']: tuple, now list"),
        ({"a": 1}, {"a": 1, "b": 2}, "x['key']['b']: new"),
        ({"a": 1}, {}, "x['key']['a']: missing now"),
        (b"a", b"b", "x['key']: other bytes"),
        (np.ones(3, np.float32), np.ones(3, np.float32) * (1 + 1e-5), ""),
        (np.ones(3), np.array([1, 1, 1.5]), "x['key']: values differ by up to 0.5"),
        (np.ones(3), np.ones(4), "x['key']: float64 (3,), now float64 (4,)"),
        (np.array([1, 2]), np.array([1, 3]), "x['key']: other values"),
        (np.array(["a"]), np.array(["a"]), ""),
        (Point(1, [2]), Point(1, [2]), ""),
        (Point(1, [2]), Point(1, [3]), "x['key'].y[0]: 2, now 3"),
        (object(), object(), ""),
        (object(), threading.Lock(), "x['key']: object, now _thread.lock"),
    ],
)
def test_what_counts_as_an_equal_answer(one: Any, other: Any, found: str) -> None:
    """Floats within the tolerance, everything else exactly; of what cannot be kept, the type."""
    encoded, members = record_files.encode({"key": one})
    others, others_members = record_files.encode({"key": other})
    difference = comparison.same(
        {"dict": list(map(list, encoded.items()))}, members, {"dict": list(map(list, others.items()))}, others_members
    )
    assert difference == found.removeprefix("x")


def test_replays_are_drawn_by_rich_too() -> None:
    """One row for each record."""
    console = pytest.importorskip("rich.console")
    outcomes = replay.Replay(
        [
            replay.Outcome("a.zip", "answered", "answered", True),
            replay.Outcome("b.zip", "ValueError: x", "answered", False, "now answered", "p.toml has changed since"),
        ]
    )
    out = io.StringIO()
    console.Console(file=out, width=120).print(outcomes)
    assert "now answered" in out.getvalue()
    assert "1 of 2 reproduced" in out.getvalue()


def test_the_handle_is_what_record_returns(pipe: Pipe, tmp_path: Path) -> None:
    """And it says where it is and what it has done."""
    with pipe.record(str(tmp_path)) as recording:
        assert isinstance(recording, Recording)
        assert repr(recording) == f"<fastpipe recording to {str(tmp_path)!r}: 0 written, 0 dropped>"


# ---- secrets, and who may read -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        *("password", "DB_Password", "passphrase", "secret", "clientSecret", "token", "X-Auth-Token", "access_token"),
        *("api_key", "API-Key", "apiKey", "Authorization", "Cookie", "Set-Cookie", "model_key", "model::key", "jwt"),
        *("private_key", "credentials", b"authorization", "aws_secret_access_key", "DB_PWD"),
    ],
)  # fmt: skip
def test_keys_that_look_like_those_of_secrets(key: str | bytes) -> None:
    """Whatever their case, and however their words are joined."""
    assert redaction.looks_secret(key)


@pytest.mark.parametrize(
    "key",
    ["data", "tokens", "token_ids", "max_tokens", "tokenizer", "key", "keys", "monkey", "pass", "author", 3, None],
)
def test_keys_that_do_not(key: Any) -> None:
    """What language models are given, and words that have such words in them."""
    assert not redaction.looks_secret(key)


HIDDEN = "correct horse battery"


@dataclass
class Login:
    """A type of the user's with a secret in it."""

    name: str
    password: str


class Refuses(Backend):
    """Fails, and says with what."""

    def forward(self, batch: list[Request]) -> None:
        raise ValueError(f"no user has {batch[0]['password']!r}")


def test_secrets_are_left_out_of_records_and_a_replay_says_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At any depth, in headers and objects, in what errors repeat, and in the configuration."""
    request = {
        "data": 3,
        "password": HIDDEN,
        "user": {"name": "x", "Api-Key": HIDDEN, "inner": [{"token": HIDDEN.encode()}]},
        "headers": [("Authorization", HIDDEN), (b"cookie", HIDDEN.encode()), ("Accept", "*/*")],
        "login": Login("x", HIDDEN),
    }
    nodes = {"a": {"backend": Refuses, "next": "b"}, "b": {"backend": "Add", "key": "x", "value": {"secret": HIDDEN}}}
    folder = tmp_path / "records"
    with Pipe(nodes) as pipe, pipe.record(folder, sample=1.0):
        call(pipe, request)
    (path,) = files_in(folder)
    assert HIDDEN.encode() not in path.read_bytes()
    record = record_files.read(path)
    why = "left out, as its key looks like that of a secret"
    assert record.lost == [
        f"request['password'] (str: {why})",
        f"request['user']['Api-Key'] (str: {why})",
        f"request['user']['inner'][0]['token'] (bytes: {why})",
        f"request['headers'][0][1] (str: {why})",
        f"request['headers'][1][1] (bytes: {why})",
        f"request['login'] ({Login.__module__}.Login)",
    ]
    assert record.manifest["error"]["message"] == "no user has '<secret>'"
    assert record.manifest["configuration"]["left_out"] == ["['b']['value']['secret']"]
    assert record.request() == {"data": 3}
    _, lines = replayed(capsys, str(path), "--trust")
    assert "the record lacks request['password'] (str: left out, as its key looks like that of a secret); " in lines[0]


class Unlocks(Backend):
    """Fails, and says with which key of its configuration."""

    def __init__(self, model_key: str, login: dict[str, str] | None = None) -> None:
        self.said = f"{model_key!r} opens nothing, nor does {(login or {}).get('password')!r}"

    def forward(self, batch: list[Request]) -> None:
        raise ValueError(self.said)


UNLOCKS = f"{__name__}:Unlocks"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"backend": UNLOCKS, "model_key": HIDDEN}, "'<secret>' opens nothing, nor does None"),
        ({"backend": f"{UNLOCKS}(model_key={HIDDEN})"}, "'<secret>' opens nothing, nor does None"),
        ({"backend": f"S[{UNLOCKS}]", "model_key": HIDDEN}, "'<secret>' opens nothing, nor does None"),
        (
            {"backend": UNLOCKS, "model_key": HIDDEN, "login": {"password": f"more {HIDDEN}"}},
            "'<secret>' opens nothing, nor does '<secret>'",
        ),
        ('[a]\nbackend = "UNLOCKS"\nmodel_key = "HIDDEN"\n', "'<secret>' opens nothing, nor does None"),
        ('[global]\nmodel_key = "HIDDEN"\n[a]\nbackend = "UNLOCKS"\n', "'<secret>' opens nothing, nor does None"),
    ],
)
def test_a_secret_of_the_configuration_that_an_error_repeats_is_not_recorded(
    written: Any, said: str, tmp_path: Path
) -> None:
    """Written as keywords, in brackets or in a file; a replay with the secret does not show it, and reproduces."""
    source = written
    if isinstance(written, str):
        source = tmp_path / "pipe.toml"
        source.write_text(written.replace("UNLOCKS", UNLOCKS).replace("HIDDEN", HIDDEN))
    with Pipe(source) as pipe:
        with pipe.record(tmp_path / "records"):
            call(pipe, {"data": 3})
        (path,) = files_in(tmp_path / "records")
        assert HIDDEN.encode() not in path.read_bytes()
        record = record_files.read(path)
        node = record.manifest["error"]["node"]
        assert record.manifest["error"]["message"] == said
        assert "'<secret>' opens nothing" in record.manifest["error"]["traceback"]
        outcome = replay.replay(record, pipe)
    assert (outcome.recorded, outcome.now) == (f"ValueError at {node}: {said}", f"ValueError: {said}")
    assert outcome.reproduced


@dataclass
class Denied(Exception):
    """An error whose text is its fields."""

    user: str
    password: str


class Denies(Backend):
    """Fails with an error that has a secret, which the request has under another name."""

    def forward(self, batch: list[Request]) -> None:
        raise ValueError("cannot log in") from Denied("me", batch[0]["data"]["second"])


def test_a_secret_that_an_error_has_as_a_field_is_not_in_its_text(tmp_path: Path) -> None:
    """Of the error that led to another, too; what a backend gets under another name is no secret of the request."""
    with Pipe(backend=Denies) as pipe, pipe.record(tmp_path):
        call(pipe, {"data": {"second": HIDDEN}})
    told = only_record(tmp_path).manifest["error"]
    assert "Denied: ('me', '<secret>')" in told["traceback"]
    assert HIDDEN not in json.dumps(told)


def test_a_replay_does_not_show_a_secret_that_an_error_repeats_now(tmp_path: Path) -> None:
    """Then it was answered, or failed with another text."""
    with Pipe(backend="Identity") as answers, answers.record(tmp_path, sample=1.0):
        answers({"data": 3})
    with Pipe({"backend": UNLOCKS, "model_key": HIDDEN}) as pipe:
        outcome = replay.replay(only_record(tmp_path), pipe)
    assert outcome.difference == "now ValueError: '<secret>' opens nothing, nor does None"
    assert HIDDEN not in repr(outcome)


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ({"keywords": {"backend": "Pow", "model_key": HIDDEN}}, "['model_key']"),
        ({"keywords": {"a": {"backend": "Pow", "Pow::api_key": HIDDEN}}}, "['a']['Pow::api_key']"),
        ({"mapping": {"a": {"backend": f"OnnxTensor(model_key={HIDDEN})"}}}, "['a']['backend']"),
        ({"mapping": {"a": {"backend": "Pow", "value": [{"token": HIDDEN}]}}}, "['a']['value'][0]['token']"),
    ],
)
def test_a_configuration_is_kept_without_its_secrets(written: Any, place: str) -> None:
    """Under any way to write a parameter."""
    left_out: list[str] = []
    kept = redaction.own_copy_without(next(iter(written.values())), left_out)
    assert left_out == [place]
    assert HIDDEN not in repr(kept)


def test_a_node_is_kept_whatever_it_is_called() -> None:
    """Its secrets are not."""
    left_out: list[str] = []
    nodes = {"check_token": {"backend": "Pow", "api_key": HIDDEN}, "credentials": {"user": "x"}}
    assert redaction.own_copy_without(nodes, left_out) == {"check_token": {"backend": "Pow"}}
    assert left_out == ["['check_token']['api_key']", "['credentials']"]


def test_a_pipe_without_its_secrets_is_built_only_if_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pipe: Pipe
) -> None:
    """A replay says what the configuration lacks, and the ways on."""
    node = {"backend": "Add", "key": "x", "value": {"secret": 1}}
    with Pipe(node) as adding, adding.record(tmp_path, sample=1.0):
        adding({"data": 3})
    _, lines = replayed(capsys, str(tmp_path))
    assert lines[0].startswith("not run")
    assert (
        "the record leaves out the configuration's ['value']['secret'], which look like secrets: say --config"
        in lines[0]
    )
    status, lines = replayed(capsys, str(tmp_path), "--allow-missing")
    assert (status, lines[0][:9]) == (1, "different")


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o277])
def test_records_are_their_owner_s_alone_whatever_the_umask(pipe: Pipe, tmp_path: Path, mask: int) -> None:
    """Files 0600 from the moment they are there, and the directory 0700 if it is made."""
    before = os.umask(mask)
    try:
        with pipe.record(tmp_path / "made" if mask != 0o277 else tmp_path / "one"):
            call(pipe, {"data": 3})
    finally:
        os.umask(before)
    (folder,) = files_in(tmp_path)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in files_in(folder)] == [0o600]


def test_a_directory_that_is_there_keeps_its_mode(pipe: Pipe, tmp_path: Path) -> None:
    """It may be shared on purpose; the files in it are the owner's all the same."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o755)
    with pipe.record(folder):
        call(pipe, {"data": 3})
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert [stat.S_IMODE(path.stat().st_mode) for path in files_in(folder)] == [0o600]


def test_a_record_is_not_written_through_a_link_of_somebody_else_s(tmp_path: Path) -> None:
    """In a directory that others may write to: the link stays, what it leads to is not touched."""
    other = tmp_path / "of_somebody"
    other.write_text("theirs")
    (tmp_path / ".x.zip.part").symlink_to(other)
    with pytest.raises(FileExistsError):
        record_files.write(tmp_path / "x.zip", {}, {})
    assert other.read_text() == "theirs"
    assert (tmp_path / ".x.zip.part").is_symlink()
