"""The logger ``fastpipe``: what it says, with which fields, and that no handler of it can harm a request."""

from __future__ import annotations

import functools
import logging
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import WAIT_S, Gate, until

from fastpipe import Backend, BackendHung, DeviceLost, Pipe, PipeClosed, QueueFull, Request, _core
from fastpipe.instances import logbook

HANG_S = 0.3


class Echo(Backend):
    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = request["data"]


class Kept(logging.Handler):
    """Keeps the records; on its thread, it does first what a test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []
        self.threads: list[threading.Thread] = []

    def first(self) -> None:
        """Replaced by tests."""

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.threads.append(threading.current_thread())
        self.first()

    def of(self, kind: str) -> list[Any]:
        return [record for record in self.records if record.kind == kind]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """The records of the logger ``fastpipe``, from INFO on."""
    handler, logger = Kept(), logging.getLogger("fastpipe")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def fill(pipe: Pipe, gate: Gate) -> list[Any]:
    """Have the only instance run a request, and another wait, which is all that there is room for."""
    futures = [pipe.submit({"data": 0})]
    assert gate.inside.wait(WAIT_S)
    return [*futures, pipe.submit({"data": 1})]


def refuse(pipe: Pipe, count: int = 1) -> None:
    for _ in range(count):
        with pytest.raises(QueueFull):
            pipe.submit({"data": 2})


def throw(error: BaseException) -> None:
    raise error


def test_a_pipe_says_when_it_is_built_and_closed(kept: Kept) -> None:
    """At INFO, once each: its nodes, how long it took and what was warmed up; how many requests it has had."""

    class Warm(Echo):
        warmed_up = "batches of 1 to 4"

    with Pipe({"a": {"backend": Echo, "instance_num": 2, "next": "b"}, "b": {"backend": Warm}}) as pipe:
        pipe({"data": 1})
    pipe.close()
    built, closed = kept.records
    assert (built.levelname, built.kind, built.nodes, built.node, built.instance) == (
        "INFO",
        "built",
        ["a", "b"],
        None,
        None,
    )
    assert built.warmed_up == {"b": ["batches of 1 to 4"]}
    assert 0 < built.seconds < WAIT_S
    assert built.getMessage().endswith("with 3 instances; warmed up: b with batches of 1 to 4")
    assert (closed.levelname, closed.kind, closed.requests["done"]) == ("INFO", "closed", 1)
    assert {thread.name for thread in kept.threads} == {"fastpipe log"}


def test_what_a_model_was_warmed_up_with_is_said(kept: Kept) -> None:
    """The backends of models tell it."""
    shapes = pytest.importorskip("fastpipe.backends.model.shapes")
    assert shapes.told_batches([4, 2, 1]) == "batches of 1, 2, 4"
    assert shapes.told_batches([3, 2, 1, 4, 4]) == "batches of 1 to 4"
    assert shapes.told_batches([]) is None


def test_an_instance_that_hangs_and_is_replaced_is_said_with_node_and_instance(kept: Kept) -> None:
    """Two warnings, on a thread of the log's own."""
    released = threading.Event()

    class Hangs(Echo):
        def forward(self, batch: list[Request]) -> None:
            if batch[0]["data"] == "hang":
                assert released.wait(WAIT_S)
            super().forward(batch)

    try:
        with Pipe({"n": {"backend": Hangs, "hang_timeout": HANG_S}}) as pipe:
            with pytest.raises(BackendHung):
                pipe({"data": "hang"})
            assert pipe({"data": 1})["result"] == 1
            until(lambda: bool(kept.of("replaced")))
    finally:
        released.set()
    hung, replaced = kept.of("hung")[0], kept.of("replaced")[0]
    assert (hung.levelname, hung.node, hung.instance) == ("WARNING", "n", 0)
    assert hung.getMessage().startswith("node 'n', instance 0: its backend has not returned for 0.3")
    assert (replaced.levelname, replaced.node, replaced.instance) == ("WARNING", "n", 0)
    assert {thread.name for thread in kept.threads[1:3]} == {"fastpipe log"}


def test_an_instance_that_cannot_be_replaced_and_a_node_without_any_are_said(kept: Kept) -> None:
    """Why, too."""
    released = threading.Event()
    built: list[int] = []

    class Once(Echo):
        def __init__(self) -> None:
            built.append(1)
            if len(built) > 1:
                raise OSError("no licence left")

        def forward(self, batch: list[Request]) -> None:
            assert released.wait(WAIT_S)

    try:
        with Pipe(backend=Once, hang_timeout=HANG_S) as pipe:
            with pytest.raises(BackendHung):
                pipe({"data": 1})
            until(lambda: bool(kept.of("lost")))
    finally:
        released.set()
    (not_replaced,), (lost,) = kept.of("not_replaced"), kept.of("lost")
    assert "its backend could not be built again: OSError: no licence left" in not_replaced.getMessage()
    assert (not_replaced.node, not_replaced.instance, lost.node, lost.instance) == ("main", 0, "main", None)


def test_a_worker_that_dies_is_said_and_a_storm_of_deaths_is_held_back(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first at once; what follows within a second in one line, with how many."""
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    deaths = 0

    def die() -> None:
        nonlocal deaths
        if threading.current_thread().name == "fastpipe main#0" and deaths < 5:
            deaths += 1
            raise SystemError("of the test")

    with Pipe(backend=Echo) as pipe:
        _core._hook("take", die)
        try:
            pipe.submit({"data": 1}).result(WAIT_S)
            until(lambda: deaths == 5)
        finally:
            _core._hook("take", None)
        until(lambda: bool(kept.of("worker_died")))
    first, *more = kept.of("worker_died")
    assert (
        first.getMessage()
        == "node 'main', instance 0: its worker met SystemError: of the test; it is set to work again"
    )
    assert (first.levelname, first.node, first.instance) == ("WARNING", "main", 0)
    assert 1 + sum(1 + getattr(record, "held_back", 0) for record in more) == 5
    assert len(more) <= 2


def test_a_node_that_loses_its_device_is_said_once(kept: Kept) -> None:
    """Whoever's batch finds out, and however many."""

    class Gone(Backend):
        def forward(self, batch: list[Request]) -> None:
            raise DeviceLost("the card fell out")

    with Pipe({"gpu": {"backend": Gone, "instance_num": 2}}) as pipe:
        for _ in range(3):
            with pytest.raises(DeviceLost):
                pipe({"data": 1})
    (record,) = kept.of("device_lost")
    assert (record.levelname, record.node, record.instance) == ("WARNING", "gpu", 0)
    assert record.getMessage().endswith("the device of the node is lost: DeviceLost: the card fell out")


def test_refusals_are_counted_and_said_at_most_once_a_second(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines together have all of them; there are as many as began, and one more at the end."""
    monkeypatch.setattr(logbook, "QUIET_S", 0.2)
    gate = Gate()
    with Pipe({"n": {"backend": gate, "max": 1, "max_queue": 1, "when_full": "reject"}}) as pipe:
        fill(pipe, gate)
        began_s = time.monotonic()
        count = 0
        while time.monotonic() < began_s + 0.5:
            refuse(pipe, 10)
            count += 10
        gate.opened.set()
    lines = kept.of("refused")
    assert sum(record.refused for record in lines) == count
    assert 2 <= len(lines) <= 4
    assert {(record.levelname, record.node, record.shed) for record in lines} == {("WARNING", "n", 0)}
    assert lines[0].getMessage().startswith("the queue of node 'n' is full: ")
    assert lines[1].getMessage().endswith(" requests were refused within 0.2 s")


def test_requests_that_are_shed_and_a_full_pipe_are_said(kept: Kept) -> None:
    """A queue that sheds, and the limit of the whole pipe, each in its own words."""
    gate = Gate()
    with Pipe({"n": {"backend": gate, "max": 1, "max_queue": 1, "when_full": "shed_oldest"}}) as pipe:
        futures = [*fill(pipe, gate), pipe.submit({"data": 2})]
        with pytest.raises(QueueFull):
            futures[1].result(WAIT_S)
        gate.opened.set()
    (line,) = kept.of("refused")
    assert (line.node, line.refused, line.shed) == ("n", 0, 1)
    assert line.getMessage() == "the queue of node 'n' is full: 1 request was shed, as waiting longest"
    gate = Gate()
    with Pipe({"global": {"max_in_flight": 1, "when_overloaded": "reject"}, "n": {"backend": gate}}) as pipe:
        pipe.submit({"data": 0})
        refuse(pipe)
        gate.opened.set()
    assert kept.of("refused")[1].getMessage() == "the pipe is full: 1 request was refused"
    assert kept.of("refused")[1].node is None


def test_a_request_that_a_full_queue_inside_refuses_is_said(kept: Kept) -> None:
    """It had been let in: for its caller it has failed, and for the queue it was one too many."""
    gate = Gate()
    nodes = {
        "a": {"backend": Echo, "next": "b"},
        "b": {"backend": gate, "max": 1, "max_queue": 1, "when_full": "reject"},
    }
    with Pipe(nodes) as pipe:
        fill(pipe, gate)
        until(lambda: pipe.stats()["nodes"]["b"]["queued"] == 1)
        with pytest.raises(QueueFull):
            pipe.submit({"data": 2}, entry="a").result(WAIT_S)
        gate.opened.set()
    assert sum(line.refused for line in kept.of("refused")) == 1


def test_records_that_are_dropped_are_said_with_the_reason(kept: Kept, tmp_path: Path) -> None:
    """Counted, as refusals are."""
    folder = tmp_path / "records"
    with Pipe(backend=Echo) as pipe:
        recording = pipe.record(folder, sample=1.0)
        folder.rmdir()
        folder.write_text("not a folder any more")
        for number in range(5):
            pipe({"data": number})
        recording.stop()
    lines = kept.of("record_dropped")
    assert sum(line.dropped for line in lines) == recording.dropped == 5
    assert lines[0].getMessage().startswith(f"the recording to {str(folder)!r} has dropped ")
    assert ": a file could not be written: NotADirectoryError: " in lines[0].getMessage()


def test_a_handler_that_raises_loses_no_line_and_no_request(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that raises what ends threads; it is told to ``threading.excepthook``."""
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: told.append(arguments.exc_type))
    for error in (ValueError, SystemExit, KeyboardInterrupt):
        gate = Gate()
        kept.records.clear()
        monkeypatch.setattr(kept, "first", functools.partial(throw, error("of a handler")))
        with Pipe({"n": {"backend": gate, "max": 1, "max_queue": 1, "when_full": "reject"}}) as pipe:
            futures = fill(pipe, gate)
            refuse(pipe)
            until(lambda: bool(kept.of("refused")))
            until(lambda: bool(told))
            gate.opened.set()
            assert [future.result(WAIT_S)["data"] for future in futures] == [0, 1]
        assert set(told) == {error}
        assert kept.of("closed")
        told.clear()
        assert pipe.stats()["requests"]["done"] == 2


def test_a_handler_that_blocks_holds_up_nobody(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those who are refused, nor what hangs and is given up, nor close() for long."""
    blocked, released = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        assert released.wait(WAIT_S)

    monkeypatch.setattr(kept, "first", block)
    monkeypatch.setattr(logbook, "LAST_WORDS_S", 0.05)
    gate = Gate()
    with Pipe(
        {"n": {"backend": gate, "max": 1, "max_queue": 1, "when_full": "reject", "hang_timeout": HANG_S}}
    ) as pipe:
        assert blocked.wait(WAIT_S)
        futures = fill(pipe, gate)
        refuse(pipe, 100)
        with pytest.raises(BackendHung):
            futures[0].result(WAIT_S)
        gate.opened.set()
    assert [record.kind for record in kept.records] == ["built"]
    released.set()


def test_a_handler_that_calls_the_pipe_is_answered_or_refused(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the log's thread, which is nobody's worker."""
    gate = Gate()
    errors: list[Any] = []
    with Pipe({"n": {"backend": gate, "max": 1, "max_queue": 1, "when_full": "reject"}}) as pipe:

        def call() -> None:
            try:
                pipe.submit({"data": 3})
            except (QueueFull, PipeClosed) as error:
                errors.append(error)

        fill(pipe, gate)
        monkeypatch.setattr(kept, "first", call)
        refuse(pipe)
        until(lambda: bool(errors))
        gate.opened.set()
    assert sum(record.refused for record in kept.of("refused")) >= 2


def test_a_handler_of_a_signal_that_is_refused_as_well_meets_no_lock(kept: Kept) -> None:
    """It comes in wherever the thread is, while that is being refused; all of them are counted."""
    gate = Gate()
    count = 0
    with Pipe({"n": {"backend": gate, "max": 1, "max_queue": 1, "when_full": "reject"}}) as pipe:

        def handle(number: int, frame: Any) -> None:
            nonlocal count
            refuse(pipe)
            count += 1

        fill(pipe, gate)
        before = signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        try:
            until(lambda: (refuse(pipe, 5), count > 50)[1])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            gate.opened.set()
    assert sum(record.refused for record in kept.of("refused")) == pipe.stats()["requests"]["refused"]


def test_no_field_clashes_with_those_of_a_record_nor_with_a_factorys(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a program's own record factory has a field ``node``, its own stays, and the line is written."""
    factory = logging.getLogRecordFactory()

    def with_node(*args: Any, **keywords: Any) -> logging.LogRecord:
        record = factory(*args, **keywords)
        record.node = "host-17"
        record.kind = "own"
        return record

    logging.setLogRecordFactory(with_node)
    try:
        Pipe(backend=Echo).close()
    finally:
        logging.setLogRecordFactory(factory)
    assert [(record.node, record.getMessage().split(",")[0]) for record in kept.records] == [
        ("host-17", "a pipe of main is built"),
        ("host-17", "the pipe is closed"),
    ]


def test_a_pipe_that_has_nothing_to_say_has_no_thread_for_it_and_one_that_had_loses_it() -> None:
    """Nor does whoever drops the pipe have to wait for it."""
    gate = Gate()
    pipe = Pipe({"n": {"backend": gate, "max": 1, "max_queue": 1, "when_full": "reject"}})
    assert "fastpipe log" not in {thread.name for thread in threading.enumerate()}
    futures = fill(pipe, gate)
    refuse(pipe)
    gate.opened.set()
    assert [future.result(WAIT_S)["data"] for future in futures] == [0, 1]
    del pipe, futures
    until(lambda: "fastpipe log" not in {thread.name for thread in threading.enumerate()})


def test_a_program_without_logging_sees_warnings_and_nothing_else(tmp_path: Path) -> None:
    """Python prints them, as no handler of fastpipe's says that they are taken care of; an import does nothing."""
    script = """
        import sys
        import fastpipe
        assert "logging" not in sys.modules, "the import is to do no work"

        class Gone(fastpipe.Backend):
            def forward(self, batch):
                raise fastpipe.DeviceLost("gone")

        with fastpipe.Pipe(backend=Gone) as pipe:
            try:
                pipe({"data": 1})
            except fastpipe.DeviceLost:
                pass
        import logging
        assert logging.getLogger("fastpipe").handlers == []
    """
    ran = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "")
    assert ran.stderr == "node 'main', instance 0: the device of the node is lost: DeviceLost: gone\n"
