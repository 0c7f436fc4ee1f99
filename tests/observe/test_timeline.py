"""A timeline, as Perfetto's own engine reads it; and what becomes of one that cannot be written."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from helpers import WAIT_S, Gate, opened, until
from interrupts import interrupted_everywhere
from perfetto_engine import ask

import fastpipe
from fastpipe import Backend, Pipe, PipeClosed, PipeError, Request
from fastpipe._core import EventLog
from fastpipe.observe import timeline as timelines
from fastpipe.observe.perfetto import row

# Events that it drops because their row, or the one above it, is not described count as information.
ERRORS = "select name, value from stats where (severity != 'info' or name = 'track_event_parser_errors') and value > 0"


class Works(Backend):
    """Takes a moment, alone or in company; fails what it is told to."""

    max_batch = 4
    keeps_input = True

    def __init__(self, *, seconds: float = 0.001, place: str | None = None) -> None:
        self.seconds = seconds
        self.place = place

    def forward(self, batch: list[Request]) -> None:
        time.sleep(self.seconds)
        for request in batch:
            if request["data"] == "bad":
                raise ValueError("bad")
            request["result"] = request["data"]


class Halves(fastpipe.contract.SubGraph):
    """Two parts, in a node of their own."""

    def split(self, request: Request) -> list[Request]:
        return [{"data": request["data"]} for _ in range(2)]

    def merge(self, request: Request, answers: Any) -> None:
        request["result"] = answers[0]["result"]


def run_all(pipe: Pipe, count: int, *, bad: bool = False) -> None:
    """Send requests by callers of their own, by lists and futures; with ``bad``, some of them fail."""

    def call() -> None:
        for index in range(count):
            with contextlib.suppress(ValueError):
                pipe({"data": "bad" if bad and index % 5 == 4 else index})
        pipe([{"data": index} for index in range(count)])

    callers = [threading.Thread(target=call, name=f"caller {number}") for number in range(4)]
    for caller in callers:
        caller.start()
    for future in [pipe.submit({"data": index}) for index in range(count)]:
        future.result(WAIT_S)
    for caller in callers:
        caller.join(WAIT_S)


def test_perfettos_engine_drops_nothing_and_finds_what_stats_say(tmp_path: Path) -> None:
    """Fan-out and join, parts, failures: slices nest, times are those of stats(), and arrows reach every batch."""
    nodes: dict[str, Any] = {
        "first": {"backend": Works, "next": "left,right", "batching_timeout": 1},
        "left": {"backend": Works, "instance_num": 2, "next": "join"},
        "right": {"backend": Halves(jump="part"), "next": "join"},
        "join": {"backend": Works, "instance_num": 2, "map": "left[result:data],right[result:other]"},
        "part": {"backend": Works(seconds=0.0005)},
    }
    path = tmp_path / "run.pftrace"
    with Pipe(nodes) as pipe:
        with pipe.timeline(path) as timeline:
            run_all(pipe, 10, bad=True)
        stats = pipe.stats()
    assert timeline.dropped == 0
    errors, rows, requests, flows, open_slices, lengths = ask(
        path.read_bytes(),
        ERRORS,
        # Each batch is in two rows, its thread's and its instance's.
        "select p.name parent, s.name node, count(*) c, sum(s.dur) d from slice s join track t on s.track_id = t.id"
        " join track p on t.parent_id = p.id where p.name != 'Requests' group by 1, 2",
        "select extract_arg(arg_set_id, 'debug.outcome') how, count(*) c from slice where name = 'request' group by 1",
        # By request, as arrows of one flow have one id: those that end at its batches.
        "select s.name node, count(*) c from flow f join slice s on f.slice_in = s.id group by 1",
        "select count(*) c from slice where dur < 0",
        "select distinct t.name from counter c join track t on c.track_id = t.id",
    )
    assert errors == []
    assert open_slices == [(0,)]
    for node, measured in stats["nodes"].items():
        of_threads = [(c, d) for parent, name, c, d in rows if name == node and parent in ("Workers", "Callers")]
        of_instances = [(c, d) for parent, name, c, d in rows if name == node and parent == "Instances"]
        assert sum(c for c, _ in of_threads) == of_instances[0][0] == measured["batches"]
        assert sum(d for _, d in of_threads) == of_instances[0][1] == round(measured["busy_s"] * 1e9)
        if node != "part":  # which gets two for each request, and an arrow for each
            assert dict(flows)[node] == measured["requests"]
    assert dict(requests) == {"done": stats["requests"]["done"], "failed: error": stats["requests"]["failed"]}
    assert {name for (name,) in lengths} <= {f"queued at {node}" for node in stats["nodes"]}


def test_every_requests_flow_is_complete(tmp_path: Path) -> None:
    """From the request to each node's queue and batch in turn, in company too: none is missing, none is another's."""
    path = tmp_path / "run.pftrace"
    nodes = {"a": {"backend": Works, "next": "b", "max": 4}, "b": {"backend": Works, "max": 4}}
    with Pipe(nodes) as pipe:
        with pipe.timeline(path):
            run_all(pipe, 5)
        count = pipe.stats()["requests"]["done"]
    (begins, arrows) = ask(
        path.read_bytes(),
        "select id, extract_arg(arg_set_id, 'debug.outcome') outcome from slice where name = 'request'",
        "select f.trace_id flow, a.name source, b.name target, b.ts >= a.ts forward"
        " from flow f join slice a on f.slice_out = a.id join slice b on f.slice_in = b.id order by b.ts",
    )
    assert len(begins) == count
    ways: dict[int, list[str]] = {}
    for flow, source, target, forward in arrows:
        assert forward == 1
        way = ways.setdefault(flow, [source])
        assert way[-1] == source
        way.append(target)
    visited = [[step for step in way if step != "queued"] for way in ways.values()]
    assert len(visited) == len(begins)
    assert sum(way == ["request", "a", "b"] for way in visited) == count


def test_rows_of_a_node_at_several_places_are_below_them(tmp_path: Path) -> None:
    class Placed(Works):
        places = iter(("cuda:0", "cuda:1"))

        def __init__(self) -> None:
            super().__init__(place=next(self.places))

    path = tmp_path / "run.pftrace"
    with Pipe(backend=Placed, instance_num=2) as pipe, pipe.timeline(path):
        pipe([{"data": index} for index in range(16)])
    errors, rows = ask(
        path.read_bytes(),
        ERRORS,
        "select distinct p.name place, t.name instance from slice s join track t on s.track_id = t.id"
        " join track p on t.parent_id = p.id where p.name like 'cuda%' order by 1, 2",
    )
    assert errors == []
    assert set(rows) <= {("cuda:0", "main #0"), ("cuda:1", "main #1")}
    assert rows


def test_what_finds_no_room_is_counted_and_what_is_there_still_nests(tmp_path: Path) -> None:
    """A ring of 16, and nobody who empties it: begins are dropped, ends never."""
    path = tmp_path / "full.pftrace"
    with Pipe(backend=opened()) as pipe:
        log = EventLog(pipe, 16)
        pipe._set_events(log)
        for index in range(20):
            pipe({"data": index})
        pipe._forget_events(log)
        assert log.dropped > 0
        log.stop()
        with path.open("wb") as file:
            file.write(row(log.requests_track, "Requests"))
            log.serve(file.fileno(), lambda ident: b"", lambda position, number: b"")
    errors, slices = ask(path.read_bytes(), ERRORS, "select name, min(dur) > 0 whole, count(*) c from slice group by 1")
    assert errors == []
    assert [(name, whole) for name, whole, _ in slices] == [("main", 1), ("request", 1)]


def test_batches_of_greenlets_that_end_in_any_order_have_rows_of_their_own(tmp_path: Path) -> None:
    """On one thread they need not nest: in one row, one would end another's slice."""
    greenlet = pytest.importorskip("greenlet", reason="greenlet is not installed here")
    main = greenlet.getcurrent()

    class Switches(Backend):
        def forward(self, batch: list[Request]) -> None:
            main.switch()
            batch[0]["result"] = 0

    path = tmp_path / "greenlets.pftrace"
    nodes = {name: {"backend": Switches} for name in ("a", "b", "c")}
    with Pipe(nodes) as pipe, pipe.timeline(path):
        calls = {name: greenlet.greenlet(lambda name=name: pipe({"data": 0}, entry=name)) for name in nodes}
        for each in calls.values():
            each.switch()
        for name in ("b", "a", "c"):
            time.sleep(0.002)
            calls[name].switch()
        time.sleep(0.002)
    errors, rows = ask(
        path.read_bytes(),
        ERRORS,
        "select s.name, p.name parent, s.dur, t.id row from slice s join track t on s.track_id = t.id"
        " join track p on t.parent_id = p.id where p.name in ('Callers', 'Instances')",
    )
    assert errors == []
    of_callers = {name: took for name, parent, took, _ in rows if parent == "Callers"}
    assert of_callers == {name: took for name, parent, took, _ in rows if parent == "Instances"}
    assert of_callers["b"] < of_callers["a"] < of_callers["c"]
    assert len({row for _, parent, _, row in rows if parent == "Callers"}) == 3


def test_how_long_a_request_waited_to_be_let_in_is_said(tmp_path: Path) -> None:
    """Its slice begins when it was let in: with that, it is the latency of stats()."""
    gate, path = Gate(), tmp_path / "room.pftrace"
    with Pipe(backend=gate, max_in_flight=1) as pipe, pipe.timeline(path):
        first = pipe.submit({"data": 0})
        assert gate.inside.wait(WAIT_S)
        second = threading.Thread(target=lambda: pipe({"data": 1}))
        second.start()
        until(lambda: pipe.arrivals == 1)
        time.sleep(0.05)
        gate.opened.set()
        first.result(WAIT_S)
        second.join(WAIT_S)
        latency = pipe.stats()["latency_s"]
    errors, requests = ask(
        path.read_bytes(),
        ERRORS,
        "select dur, extract_arg(arg_set_id, 'debug.waited_for_room_ns') waited from slice where name = 'request'"
        " order by ts",
    )
    assert errors == []
    assert requests[1][1] > 50_000_000 > requests[0][1]
    assert sum(took + waited for took, waited in requests) / 1e9 == pytest.approx(latency["sum"], abs=0.5)


def test_a_batch_that_hangs_ends_when_it_is_given_up(tmp_path: Path) -> None:
    gate = Gate()
    path = tmp_path / "hung.pftrace"
    with Pipe(backend=gate, hang_timeout=0.1) as pipe:
        with pipe.timeline(path), pytest.raises(fastpipe.BackendHung):
            pipe({"data": 0})
        gate.opened.set()
    errors, slices = ask(path.read_bytes(), ERRORS, "select name, dur > 0 ended from slice where name = 'main'")
    assert errors == []
    assert slices == [("main", 1), ("main", 1)]


def test_a_path_that_cannot_be_written_is_said_at_once_and_serving_goes_on(tmp_path: Path) -> None:
    with Pipe(backend=opened()) as pipe:
        with pytest.raises(FileNotFoundError, match="no_such_folder"):
            pipe.timeline(tmp_path / "no_such_folder" / "run.pftrace")
        with pytest.raises(IsADirectoryError):
            pipe.timeline(tmp_path)
        assert pipe({"data": 1})["result"] == 1
        with pipe.timeline(tmp_path / "run.pftrace"):
            assert pipe({"data": 2})["result"] == 2
    assert (tmp_path / "run.pftrace").stat().st_size > 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_disk_that_is_full_ends_the_timeline_and_not_the_service() -> None:
    with Pipe(backend=opened()) as pipe:
        with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
            pipe.timeline("/dev/full")
        assert pipe({"data": 1})["result"] == 1
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        timeline = pipe.timeline(f"/dev/fd/{writer}")  # a pipe that nobody empties, and then nobody reads
        os.close(writer)
        os.close(reader)
        for index in range(10):
            assert pipe({"data": index})["result"] == index
        with pytest.raises(BrokenPipeError):
            timeline.stop()
        timeline.stop()


def test_whoever_stops_a_timeline_finds_its_file_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The writer is held up. 2. Two threads stop the timeline. 3. Neither returns before the writer has ended."""
    held, inside = threading.Event(), threading.Event()
    write_events = timelines._write_events

    def waits(log: Any, file: Any, *more: Any) -> None:
        inside.set()
        assert held.wait(WAIT_S)
        write_events(log, file, *more)

    monkeypatch.setattr(timelines, "_write_events", waits)
    path = tmp_path / "run.pftrace"
    sizes: list[int] = []
    with Pipe(backend=opened()) as pipe:
        timeline = pipe.timeline(path)
        assert inside.wait(WAIT_S)
        pipe({"data": 0})

        def stop() -> None:
            timeline.stop()
            sizes.append(path.stat().st_size)

        stopping = [threading.Thread(target=stop) for _ in range(2)]
        for thread in stopping:
            thread.start()
        time.sleep(0.05)
        assert sizes == []
        held.set()
        for thread in stopping:
            thread.join(WAIT_S)
    assert sizes == [path.stat().st_size] * 2


def test_a_handler_that_raises_and_calls_the_pipe_ends_no_timeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A small ring, whose writer is held up. 2. Events find no room. 3. The log is told by a broken handler."""
    held, told = threading.Event(), []
    write_events = timelines._write_events

    def waits(*arguments: Any) -> None:
        assert held.wait(WAIT_S)
        write_events(*arguments)

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append((record.getMessage(), pipe({"data": "of the handler"}, timeout=WAIT_S)["result"]))
            raise RuntimeError("broken")

    raised: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    monkeypatch.setattr(timelines, "MOST_WAITING", 16)
    monkeypatch.setattr(timelines, "_write_events", waits)
    handler = Broken()
    logging.getLogger("fastpipe").addHandler(handler)
    try:
        with Pipe(backend=opened()) as pipe:
            with pipe.timeline(tmp_path / "run.pftrace") as timeline:
                for number in range(20):
                    pipe({"data": number})
                held.set()
            assert timeline.dropped > 0
    finally:
        logging.getLogger("fastpipe").removeHandler(handler)
    ((text, answer),) = told
    assert f"{timeline.dropped} events are missing" in text
    assert answer == "of the handler"
    assert [str(each.exc_value) for each in raised] == ["broken"]


def test_many_timelines_leave_nothing_behind(tmp_path: Path) -> None:
    """Stopped, dropped, or refused: no file, no thread, and no object."""
    path = tmp_path / "run.pftrace"

    def use(pipe: Pipe) -> tuple[int, int, int]:
        for _ in range(10):
            with pipe.timeline(path), contextlib.suppress(PipeError):
                pipe.timeline(path)
            pipe.timeline(path)
            pipe({"data": 0})
            gc.collect()
        until(lambda: "fastpipe timeline" not in [thread.name for thread in threading.enumerate()])
        ours = sum(str(getattr(type(each), "__module__", "")).startswith("fastpipe") for each in gc.get_objects())
        return len(os.listdir("/proc/self/fd")), threading.active_count(), ours

    with Pipe(backend=opened()) as pipe:
        use(pipe)
        before = use(pipe)
        assert use(pipe) == before


def test_a_second_timeline_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "first.pftrace"
    with Pipe(backend=opened()) as pipe:
        with pipe.timeline(path):
            size = path.stat().st_size
            with pytest.raises(PipeError, match="has a timeline already"):
                pipe.timeline(path)
            assert path.stat().st_size == size
            pipe({"data": 0})
        with pipe.timeline(path):  # one after the other is as it should be
            pipe({"data": 0})


def test_a_pipe_that_is_closed_meanwhile_ends_nothing_but_the_events(tmp_path: Path) -> None:
    pipe = Pipe(backend=opened())
    with pipe.timeline(tmp_path / "run.pftrace"):
        pipe({"data": 0})
        pipe.close()
    with pytest.raises(PipeClosed, match="nothing to draw"):
        pipe.timeline(tmp_path / "other.pftrace")


def test_a_timeline_that_is_dropped_ends_its_thread(tmp_path: Path) -> None:
    """The fixture of all tests looks for the thread."""
    with Pipe(backend=opened()) as pipe:
        pipe.timeline(tmp_path / "run.pftrace")
        pipe({"data": 0})
        pipe.timeline(tmp_path / "run.pftrace").stop()


def test_a_timeline_keeps_no_pipe_alive(tmp_path: Path) -> None:
    pipe = Pipe(backend=opened())
    timeline = pipe.timeline(tmp_path / "run.pftrace")
    pipe.close()
    gone = weakref.ref(pipe)
    del pipe
    until(lambda: gc.collect() >= 0 and gone() is None)
    timeline.stop()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_with_block_that_a_child_of_a_fork_leaves_ends_there_and_goes_on_here(tmp_path: Path) -> None:
    with Pipe(backend=opened()) as pipe, pipe.timeline(tmp_path / "run.pftrace") as timeline:
        child = os.fork()
        if child == 0:
            timeline.stop()
            os._exit(7)
        until_s = time.monotonic() + WAIT_S
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < until_s:
            time.sleep(0.01)
        if ended == (0, 0):
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(ended[1]) == 7, "the child waits for a thread that it does not have"
        size = (tmp_path / "run.pftrace").stat().st_size
        pipe({"data": 0})
    assert (tmp_path / "run.pftrace").stat().st_size > size


@pytest.mark.filterwarnings("ignore:.*unclosed file:pytest.PytestUnraisableExceptionWarning")  # but it is closed
@pytest.mark.filterwarnings("ignore:.*FileIO:pytest.PytestUnraisableExceptionWarning")
def test_a_signal_while_a_timeline_begins_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-C behind each instruction: the pipe can have another one, and no file stays open, nor any thread at work."""
    watched = {timelines.Timeline.__init__.__code__, timelines._started.__code__}
    with Pipe(backend=opened()) as pipe:
        open_files = len(os.listdir("/proc/self/fd"))
        calls, timeline = interrupted_everywhere(lambda: pipe.timeline(tmp_path / "run.pftrace"), watched)
        assert calls > 20
        timeline.stop()
        until_s = time.monotonic() + WAIT_S
        while len(os.listdir("/proc/self/fd")) > open_files and time.monotonic() < until_s:
            time.sleep(0.01)
        assert len(os.listdir("/proc/self/fd")) == open_files
        assert "fastpipe timeline" not in [thread.name for thread in threading.enumerate()]
