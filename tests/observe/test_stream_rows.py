"""Streams of GPUs in a timeline: by the events of a stand-in for CUDA, and as Perfetto's own engine reads them."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
from perfetto_engine import ask

from fastpipe import Backend, Pipe, Request
from fastpipe.backends.gpu import timing
from fastpipe.backends.gpu.streams import InstanceStream
from fastpipe.observe import stream_rows

ERRORS = "select name, value from stats where (severity != 'info' or name = 'track_event_parser_errors') and value > 0"
SLICES = (
    "select g.name gpus, d.name device, t.name stream, s.name node, s.ts, s.dur from slice s"
    " join track t on s.track_id = t.id join track d on t.parent_id = d.id join track g on d.parent_id = g.id"
    " where g.name = 'GPUs' order by s.ts"
)


@pytest.fixture(params=["torch", "cupy"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two GPUs, and one of the libraries that can use them."""
    for name in ("torch", "cupy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    driver = fake_cuda.Driver(gpus=2)
    made = fake_cuda.fake_torch(driver) if request.param == "torch" else fake_cuda.fake_cupy(driver)
    monkeypatch.setitem(sys.modules, request.param, made)
    yield made
    assert timing.watchers == {}


class Works(Backend):
    """Queues work on a stream of its own, and notes when that was done."""

    made: list[Works]
    library: Any

    def __init__(self, *, gpu: int = 0) -> None:
        self.stream = InstanceStream(gpu)
        self.spans: list[tuple[int, int]] = []
        self.made.append(self)

    def forward(self, batch: list[Request]) -> None:
        def work() -> None:
            begun_ns = time.monotonic_ns()
            time.sleep(0.002)
            self.spans.append((begun_ns, time.monotonic_ns()))

        with self.stream.entered():
            self.library.library.run(work)
            with self.stream.entered():  # shares it, and is no stay of its own
                pass
        for request in batch:
            request["result"] = request["data"]


def run(pipe: Pipe, count: int) -> None:
    def call() -> None:
        for number in range(count):
            pipe({"data": number})

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()


def test_each_stream_has_a_row_with_what_ran_there_and_when(library: Any, tmp_path: Path) -> None:
    """Two nodes at two GPUs, one of them with two instances: three rows, below those of their GPUs."""
    made: list[Works] = []

    class Here(Works):
        pass

    Here.made, Here.library = made, library
    nodes: dict[str, Any] = {
        "detect": {"backend": Here, "instance_num": 2, "next": "read"},
        "read": {"backend": Here, "gpu": 1},
    }
    driver = library.library.driver
    path = tmp_path / "run.pftrace"
    with Pipe(nodes) as pipe:
        run(pipe, 2)
        assert driver.timed_events == 0
        before = {id(each): len(each.spans) for each in made}
        with pipe.timeline(path) as timeline:
            run(pipe, 5)
        recorded = driver.timed_events
        after = {id(each): len(each.spans) for each in made}
        run(pipe, 2)
        assert driver.timed_events == recorded == 2 * sum(after[each] - before[each] for each in before)
        assert timeline.dropped == 0
    errors, slices = ask(path.read_bytes(), ERRORS, SLICES)
    assert errors == []
    rows: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    for _, device, stream, node, begun, took in slices:
        rows.setdefault((device, stream, node), []).append((begun, took))
    truth = {id(each): each.spans[before[id(each)] : after[id(each)]] for each in made}
    assert sorted(len(each) for each in rows.values()) == sorted(len(each) for each in truth.values() if each)
    assert {(device, node) for device, _, node in rows} == {("cuda:0", "detect"), ("cuda:1", "read")}
    for (device, _, _), found in rows.items():
        alike = [
            s for each, s in zip(made, truth.values(), strict=True) if each.stream.device_number == int(device[-1])
        ]
        nearest = min(alike, key=lambda spans: abs(spans[0][0] - found[0][0]) if spans else 1 << 62)
        for (begun, took), (work_begun, work_ended) in zip(found, nearest, strict=True):
            assert took >= work_ended - work_begun  # the events are around the work
            assert begun <= work_begun + took
            assert begun + took >= work_begun


def test_a_timeline_shows_the_streams_of_its_own_pipe(library: Any, tmp_path: Path) -> None:
    """Of two pipes, and of work outside of any."""

    class Here(Works):
        pass

    Here.made, Here.library = [], library
    path = tmp_path / "run.pftrace"
    with Pipe(backend=Here) as shown, Pipe({"other": {"backend": Here}}) as other, shown.timeline(path):
        shown({"data": 1})
        other({"data": 2})
        Here().forward([])
    (slices,) = ask(path.read_bytes(), SLICES)
    assert [node for _, _, _, node, _, _ in slices] == ["main"]


def test_streams_beyond_the_most_that_are_shown_are_left_out(
    library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_rows, "MOST_STREAMS", 2)

    class Changes(Works):
        """A stream for each batch, as if each instance were replaced."""

        def forward(self, batch: list[Request]) -> None:
            self.stream = InstanceStream(0)
            super().forward(batch)

    Changes.made, Changes.library = [], library
    path = tmp_path / "run.pftrace"
    with Pipe(backend=Changes) as pipe, pipe.timeline(path):
        for number in range(5):
            pipe({"data": number})
    (slices,) = ask(path.read_bytes(), SLICES)
    assert len(slices) == 2


def test_a_device_that_fails_is_told_as_ever_and_shows_nothing(library: Any, tmp_path: Path) -> None:
    class Here(Works):
        pass

    Here.made, Here.library = [], library
    path = tmp_path / "run.pftrace"
    with Pipe(backend=Here) as pipe, pipe.timeline(path):
        library.library.driver.fails = True
        with pytest.raises(Exception, match="illegal memory access"):
            pipe({"data": 1})
        library.library.driver.fails = False
    errors, slices = ask(path.read_bytes(), ERRORS, SLICES)
    assert (errors, slices) == ([], [])


def test_a_watcher_that_raises_and_events_that_fail_harm_nobody(library: Any) -> None:
    class Breaks:
        def ran(self, stream: int, device_number: int, begun_ns: int, ended_ns: int) -> None:
            raise RuntimeError("broken")

    stream, breaks = InstanceStream(0), Breaks()
    timing.watch(breaks)
    try:
        with stream.entered():
            pass
        stream.sides()[0].mark = None  # type: ignore[method-assign, assignment]
        with stream.entered():
            pass
    finally:
        timing.unwatch(breaks)
        timing.unwatch(breaks)


class Gpu:
    """A clock that began at another time and is fast, or slow, by some millionths."""

    def __init__(self, drift: float) -> None:
        self.drift = drift

    def of_host(self, host_ns: int) -> int:
        return int((host_ns + 123_456_789_000) * (1 + self.drift))

    def mark(self) -> Any:
        raise AssertionError("not asked here")

    def milliseconds(self, first: int, second: int) -> float:
        return (second - first) / 1e6


@pytest.mark.parametrize("drift", [20e-6, 0, -20e-6])
def test_times_are_found_although_most_stays_say_little(drift: float) -> None:
    """Of 4000 stays in 25 s nine of ten were held up on both sides, by up to 5 ms; the others began at once."""
    dice, gpu, clock = random.Random(7), Gpu(drift), timing.StreamClock(0, 0)
    now_ns = 10**12
    worst_ns = 0
    end_before_ns = 0
    for number in range(4000):
        held_ns, seen_ns = (dice.randrange(5_000_000) for _ in range(2))
        if number % 10 == 0:
            held_ns = dice.randrange(3_000)
        took_ns = dice.randrange(100_000, 2_000_000)
        begun_ns = now_ns + held_ns
        ended_ns = begun_ns + took_ns
        found = clock.placed(gpu, gpu.of_host(begun_ns), gpu.of_host(ended_ns), now_ns, ended_ns + seen_ns)
        assert end_before_ns <= now_ns <= found[0] <= found[1] <= ended_ns + seen_ns
        end_before_ns = found[1]
        assert abs(found[1] - found[0] - took_ns) < 1_000
        worst_ns = max(worst_ns, abs(found[0] - begun_ns))
        now_ns = ended_ns + seen_ns + dice.randrange(1_000_000)
    assert worst_ns < 3_000 + 2 * timing.RENEWED_AFTER_NS * 20e-6 * 1.1
