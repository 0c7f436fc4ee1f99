"""docs/troubleshooting.md: each error of its table is provoked, and says what the page says."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doc_pages import DOCS
from helpers import WAIT_S, Gate, opened, until

import fastpipe
from fastpipe import Backend, PerRequest, Pipe, Request
from fastpipe.errors import MissingExtra

ROWS = [
    re.findall(r"`([^`]+)`", line.split(" | ")[0])
    for line in (DOCS / "troubleshooting.md").read_text().partition("## What does this error mean?")[2].splitlines()
    if line.startswith("| `")
]


class Length(Backend):
    """Measures texts, up to four at once."""

    max_batch = 4

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = len(request["data"])


class SetsNothing(Backend):
    def forward(self, batch: list[Request]) -> None:
        pass


class Returns(Backend):
    def forward(self, batch: list[Request]) -> Any:
        return [len(request["data"]) for request in batch]


class Sized(Backend):
    def __init__(self, size: int) -> None:
        self.size = size

    def forward(self, batch: list[Request]) -> None:
        pass


class Remembers(PerRequest):
    stateful = True

    def run(self, request: Request) -> None:
        request["result"] = request["state"]


class Asynchronous(Backend):
    async def forward(self, batch: list[Request]) -> None:  # type: ignore[override]
        pass


def ask(request: Any, **keys: Any) -> None:
    """Send one request to a pipe of its own."""
    with Pipe(**keys) as pipe:
        pipe(request)


def ask_a_closed_pipe() -> None:
    pipe = Pipe(backend=Length)
    pipe.close()
    pipe({"data": "text"})


def wait_for_a_call() -> None:
    if sys.version_info >= (3, 14):
        pytest.skip("these are the words of Python up to 3.13")

    async def main() -> None:
        with Pipe(backend=Length) as pipe:
            await pipe({"data": "text"})  # type: ignore[misc]

    asyncio.run(main())


def fill_the_queue() -> None:
    gate = Gate()
    with Pipe(backend=gate, max=1, max_queue=1, when_full="reject") as pipe:
        pipe.submit({"data": 1})
        assert gate.inside.wait(WAIT_S)
        pipe.submit({"data": 2})
        try:
            pipe({"data": 3})
        finally:
            gate.opened.set()


def let_time_run_out() -> None:
    gate = Gate()
    with Pipe(backend=gate, max=1) as pipe:
        pipe.submit({"data": 1})
        assert gate.inside.wait(WAIT_S)
        try:
            pipe({"data": 2}, timeout=0.05)
        finally:
            gate.opened.set()


def hang() -> None:
    done = threading.Event()

    class Stuck(Backend):
        def forward(self, batch: list[Request]) -> None:
            done.wait(WAIT_S)

    with Pipe(backend=Stuck, hang_timeout=0.1) as pipe:
        try:
            pipe({"data": 1})
        finally:
            done.set()
            until(lambda: pipe.stats()["nodes"]["main"]["instances"]["hung"] == 0)


def call_its_own_pipe() -> None:
    @fastpipe.backend
    def again(data: Any) -> Any:
        return pipe({"data": data})["result"]

    with Pipe(backend=again) as pipe:
        pipe({"data": 1})


def ask_a_model(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["image"], ["out"])],
        "model",
        [value("image", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [value("out", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])],
    )
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    ask({"data": np.zeros((8, 8, 3), np.float32)}, backend="OnnxTensor", model=path, max=4)


def ask_for_an_extra() -> None:
    raise MissingExtra("OnnxTensor", "cpu", ModuleNotFoundError(name="onnxruntime"))


def fork_with_a_pipe() -> None:
    code = (
        "import fastpipe, os\n"
        "pipe = fastpipe.Pipe(backend=str.upper)\n"
        "if os.fork() == 0:\n"
        "    try: pipe({'data': 'text'})\n"
        "    except fastpipe.ForkedPipe as error: print(error, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "pipe.close()\n"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    raise RuntimeError(ran.stdout)


def import_a_source_tree(tmp_path: Path) -> None:
    (tmp_path / "fastpipe").mkdir()
    shutil.copy(str(fastpipe.__file__), tmp_path / "fastpipe")
    command = [sys.executable, "-S", "-c", "import fastpipe"]  # without what is installed: that may be found, too
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert ran.returncode == 1
    raise ImportError(ran.stderr)


def fill_the_pipe() -> None:
    gate = Gate()
    with Pipe(backend=gate, max_in_flight=1, when_overloaded="reject") as pipe:
        pipe.submit({"data": 1})
        try:
            pipe({"data": 2})
        finally:
            gate.opened.set()


def fail_with_what_cannot_be_copied() -> None:
    ask([{"data": number, "o": object()} for number in (5, 6)], backend=Length)


def look_for_the_server() -> None:
    command = [sys.executable, "-P", "-c", "import fastpipe; fastpipe.serve"]
    raise RuntimeError(subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stderr)


JOIN = {"b": {"backend": Length, "next": "d"}, "c": {"backend": Length, "next": "d"}, "d": {"backend": Length}}
PROVOKED: dict[str, Callable[[Path], None]] = {
    "no backend is named": lambda _: ask({}, backend="ResizMat"),
    "nobody takes 'request_timeout'": lambda _: Pipe({"a": {"backend": Length, "request_timeout": 1}}).close(),
    "there is no max_in_flight": lambda _: ask({}, backend=Length, when_overloaded="reject"),
    "a mapping or the path": lambda _: Pipe(Length).close(),  # type: ignore[arg-type]
    "needs it": lambda _: ask({}, backend=Sized),
    "has no attribute 'serve'": lambda _: look_for_the_server(),
    "cannot be copied": lambda _: fail_with_what_cannot_be_copied(),
    "(state_of)": lambda _: ask({"data": 1}, backend=Remembers, state_of="stream_id"),
    "the pipe is full": lambda _: fill_the_pipe(),
    "nobody takes 'instances'": lambda _: ask({}, backend=Length, instances=2),
    "takes at most 4": lambda _: ask({}, backend=Length, max=8),
    "the module cannot be imported": lambda _: ask({}, backend="mymodule:Thing"),
    "needs onnxruntime": lambda _: ask_for_an_extra(),
    "has no fastpipe._core": import_a_source_tree,
    "there is no file": lambda _: Pipe("pipes.toml").close(),
    "it needs a map": lambda _: Pipe({"a": {"backend": Length, "next": "b,c"}, **JOIN}).close(),
    "several roots": lambda _: ask({"data": "x"}, a={"backend": Length}, b={"backend": Length}),
    "where the backend is an object": lambda _: ask({}, backend=opened(), instance_num=2),
    "is an async function": lambda _: ask({}, backend=Asynchronous),
    "a request is a dict": lambda _: ask("text", backend=Length),
    "'data'": lambda _: ask({"text": "x"}, backend=Length),
    "object dict can't be used": lambda _: wait_for_a_call(),
    "requests failed": lambda _: ask([{"data": "a"}, {"data": 5}, {"data": "b"}], backend=Length),
    "gave no result": lambda _: ask({"data": 1}, backend=SetsNothing),
    "returned list": lambda _: ask({"data": "x"}, backend=Returns),
    "DecodeMat: expected bytes": lambda _: ask({"data": "photo.jpg"}, backend="DecodeMat"),
    "expected float32 of shape": ask_a_model,
    "the queue of node": lambda _: fill_the_queue(),
    "did not end within": lambda _: let_time_run_out(),
    "hang_timeout": lambda _: hang(),
    "waits for a call of its own pipe": lambda _: call_its_own_pipe(),
    "before os.fork()": lambda _: fork_with_a_pipe(),
    "the pipe is closed": lambda _: ask_a_closed_pipe(),
}


def said_by(error: BaseException) -> str:
    """Return an error's text with its notes, of a group also those of its errors."""
    inside = [said_by(each) for each in error.exceptions] if isinstance(error, BaseExceptionGroup) else []
    return "\n".join([str(error), *getattr(error, "__notes__", ()), *inside])


def test_each_row_has_an_error_and_each_error_a_row() -> None:
    """So that the page can be trusted as a whole."""
    missing = [row for row in ROWS if sum(words in " ".join(row) for words in PROVOKED) != 1]
    assert not missing
    assert len(ROWS) == len(PROVOKED)


@pytest.mark.parametrize("words", PROVOKED)
def test_an_error_says_what_the_page_says(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each text of the row's first column is in the message or its notes; ``...`` stands for anything."""
    (row,) = [row for row in ROWS if words in " ".join(row)]
    monkeypatch.chdir(tmp_path)
    try:
        PROVOKED[words](tmp_path)
    except MissingExtra as error:
        if words != "needs onnxruntime":
            pytest.skip(str(error))
        said = said_by(error)
    except Exception as error:
        said = said_by(error)
    else:
        pytest.fail("nothing was raised")
    for text in row:
        pattern = ".*".join(map(re.escape, text.split("...")))
        assert re.search(pattern, said), said
