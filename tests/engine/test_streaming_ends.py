"""How streams end: failures, hangs, deaths, signals, forks, and calls from where nobody may wait."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading

import pytest
from helpers import WAIT_S, Adds, until
from streaming_backends import WHOLE_BATCHES, Endless, Script, aremains, counts, remains

import fastpipe
from fastpipe import (
    Backend,
    BackendHung,
    CallLoop,
    DeviceLost,
    ForkedPipe,
    ItemErrors,
    Pipe,
    PipeClosed,
    PipeError,
    Request,
    Step,
    UnknownNode,
    WorkerDied,
    _core,
)

# ---- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "awaited"),
    [
        (ValueError("told to"), ValueError, ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt, fastpipe.BackendError),
        (SystemExit(3), SystemExit, fastpipe.BackendError),
        (GeneratorExit(), GeneratorExit, fastpipe.BackendError),
        (DeviceLost("gone"), DeviceLost, DeviceLost),
    ],
)
def test_a_failure_is_raised_behind_what_came_before(
    error: BaseException, kind: type[BaseException], awaited: type[BaseException]
) -> None:
    """Once; with the note that says where; and what cannot come out of ``await`` in another one's place."""
    with Pipe(backend=Script) as pipe:
        request: Request = {"data": [1, 2, error], "result": "of an earlier call"}
        read, raised = remains(pipe.stream(request))
        assert read == [1, 2]
        assert type(raised) is kind
        assert "node 'main'" in str(raised) + str(getattr(raised, "__notes__", ""))
        assert "result" not in request
        if kind is not DeviceLost:
            read, raised = asyncio.run(aremains(pipe.astream({"data": [1, 2, error]})))
            assert (read, type(raised)) == ([1, 2], awaited)
            assert counts(pipe) == {"failed": 2}


def test_a_request_that_is_not_let_in_raises_at_once() -> None:
    """For a thread at the call, for a coroutine at its first iteration."""
    with Pipe(backend=Script) as pipe:
        for request, keywords, kind in (([], {}, TypeError), ({"data": []}, {"entry": "nowhere"}, UnknownNode)):
            with pytest.raises(kind):
                pipe.stream(request, **keywords)  # type: ignore[arg-type]
            assert type(asyncio.run(aremains(pipe.astream(request, **keywords)))[1]) is kind  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="timeout must be more than 0"):
            pipe.astream({"data": []}, timeout=0)
    with pytest.raises(PipeClosed):
        pipe.stream({"data": []})


def test_p03_what_has_emitted_is_not_run_again() -> None:
    """What they have handed on would come twice. The others are run again, alone, as ever."""
    runs: list[list[int]] = []

    class Fails(Backend):
        streams = True
        max_batch = 8

        def forward(self, batch: list[Request]) -> None:
            runs.append(sorted(request["data"] for request in batch))
            for request in batch:
                if request["data"] < 2:
                    fastpipe.emit(request, request["data"])
            if len(batch) > 1 or batch[0]["data"] == 5:
                raise ValueError("together")
            batch[0]["result"] = "alone"

    with Pipe(backend=Fails, **WHOLE_BATCHES) as pipe:
        requests: list[Request] = [{"data": number} for number in range(8)]
        ends = [remains(chunks) for chunks in [pipe.stream(request) for request in requests]]
        assert [read for read, _ in ends] == [[0], [1], [], [], [], [], [], []]
        assert [type(error).__name__ for _, error in ends] == ["ValueError"] * 2 + ["NoneType"] * 3 + [
            "ValueError",
            "NoneType",
            "NoneType",
        ]
        assert any("parts of its answer had been handed on" in note for note in ends[0][1].__notes__)  # type: ignore[union-attr]
        assert runs == [list(range(8)), *[[number] for number in range(2, 8)]]


def test_item_errors_reach_the_streams_they_name() -> None:
    """The others have succeeded."""

    class Names(Backend):
        streams = True
        max_batch = 4

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                fastpipe.emit(request, "chunk")
                request["result"] = 1
            raise ItemErrors([(request, ValueError("odd")) for request in batch if request["data"] % 2])

    with Pipe(backend=Names) as pipe:
        ends = [remains(chunks) for chunks in [pipe.stream({"data": number}) for number in range(6)]]
        assert [read for read, _ in ends] == [["chunk"]] * 6
        assert [type(error) for _, error in ends] == [type(None), ValueError] * 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_dies_ends_the_streams_it_holds() -> None:
    """Behind their chunks; the next one is served."""

    def dies() -> None:
        _core._hook("return", None)
        raise MemoryError

    with Pipe(backend=Script) as pipe:
        _core._hook("return", dies)
        read, error = remains(pipe.stream({"data": [1, 2]}))
        assert read == [1, 2]
        assert type(error) is WorkerDied
        assert remains(pipe.stream({"data": [3]})) == ([3], None)


# ---- hangs ---------------------------------------------------------------------------------------------------------


def test_p17_a_slow_reader_is_no_hang_and_a_long_stream_neither() -> None:
    """The time in which ``yield`` waits does not count, and each chunk begins the backend's time anew."""
    pause = threading.Event()
    with Pipe(backend=Script, hang_timeout=0.5) as pipe:
        chunks = pipe.stream({"data": list(range(5))}, buffer=1)
        for number in range(5):
            pause.wait(0.4)
            assert next(chunks) == number
        assert remains(chunks) == ([], None)
        step = [lambda: pause.wait(0.2), 1]
        assert remains(pipe.stream({"data": step * 5})) == ([1] * 5, None)
        assert pipe({"data": step * 5})["result"] == [1] * 5
        assert pipe.stats()["failures"] == {}


def test_a_backend_that_hangs_in_a_stream_is_given_up() -> None:
    """Behind its chunks; when it comes back it emits nothing any more."""
    release = threading.Event()
    emitted: list[bool] = []

    class Hangs(Backend):
        streams = True

        def forward(self, batch: list[Request]) -> None:
            emitted.append(fastpipe.emit(batch[0], 1))
            if batch[0]["data"] == "hang":
                assert release.wait(WAIT_S)
                emitted.append(fastpipe.emit(batch[0], 2))
            batch[0]["result"] = 0

    with Pipe(backend=Hangs, hang_timeout=0.3) as pipe:
        read, error = remains(pipe.stream({"data": "hang"}))
        assert (read, type(error)) == ([1], BackendHung)
        assert remains(pipe.stream({"data": "well"})) == ([1], None)
        release.set()
        until(lambda: len(emitted) == 3)
        assert sorted(emitted) == [False, True, True]


def test_parts_that_wait_for_a_reader_are_no_hang_of_who_waits_for_them() -> None:
    """A MapReduce that is a step of a Sequential waits in ``forward``, which a watchdog sees."""
    pause = threading.Event()
    steps = fastpipe.Sequential(Step("Identity"), Step("MapReduce", jump="inner"))
    with Pipe(outer={"backend": steps, "hang_timeout": 0.4}, inner={"backend": Script}) as pipe:
        chunks = pipe.stream({"data": [list(range(4))]}, entry="outer", buffer=1)
        for number in range(4):
            pause.wait(0.3)
            assert next(chunks) == number
        assert remains(chunks) == ([], None)


# ---- who calls from where ------------------------------------------------------------------------------------------


def test_a_backend_reads_a_stream_of_its_own_pipe() -> None:
    """And is refused where that would wait for itself."""

    class Reads(Backend):
        def forward(self, batch: list[Request]) -> None:
            batch[0]["result"] = list(pipe.stream({"data": batch[0]["data"]}, entry=batch[0]["where"]))

    with Pipe(outer={"backend": Reads}, inner={"backend": Script}) as pipe:
        request: Request = {"data": list(range(50)), "where": "inner"}
        assert pipe(dict(request), entry="outer")["result"] == list(range(50))
        with pytest.raises(CallLoop):
            pipe({**request, "where": "outer"}, entry="outer")
        assert pipe.stats()["requests"]["in_flight"] == 0


def test_a_callback_of_a_future_may_start_a_stream_but_not_wait_for_it() -> None:
    """It runs on a thread that may have to do the work."""
    raised: list[BaseException] = []

    def reads(_: object) -> None:
        try:
            next(pipe.stream({"data": [1]}))
        except PipeError as error:
            raised.append(error)

    gate = threading.Event()
    with Pipe(backend=Script) as pipe:
        future = pipe.submit({"data": [lambda: gate.wait(WAIT_S)]})
        future.add_done_callback(reads)
        gate.set()
        future.result(WAIT_S)
        until(lambda: bool(raised))
        assert "must not wait for the pipe" in str(raised[0])


def test_a_signal_interrupts_a_reader_that_waits() -> None:
    """What the handler raises is raised by the iterator, and the request is cancelled."""

    class Ring(Exception):
        pass

    def rings(*_: object) -> None:
        raise Ring

    go = threading.Event()
    before = signal.signal(signal.SIGALRM, rings)
    try:
        with Pipe(backend=Script) as pipe:
            chunks = pipe.stream({"data": [1, lambda: go.wait(WAIT_S), 2]})
            assert next(chunks) == 1
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Ring):
                next(chunks)
            assert counts(pipe) == {"cancelled": 1}
            assert list(chunks) == []
            go.set()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_child_of_a_fork_reads_no_stream_of_its_parent() -> None:
    """It is told so; and leaving harms nobody."""
    with Pipe(backend=Script) as pipe:
        chunks = pipe.stream({"data": list(range(50))}, buffer=2)
        assert next(chunks) == 0
        child = os.fork()
        if child == 0:
            status = 1
            try:
                try:
                    next(chunks)
                except ForkedPipe:
                    chunks.close()
                    del chunks
                    gc.collect()
                    status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert remains(chunks) == (list(range(1, 50)), None)


def test_several_threads_read_one_stream() -> None:
    """Each chunk goes to one of them; each comes to the end."""
    with Pipe(backend=Script) as pipe:
        chunks = pipe.stream({"data": list(range(2000))}, buffer=4)
        read: list[list[int]] = [[] for _ in range(4)]
        threads = [threading.Thread(target=lambda mine=mine: mine.extend(chunks)) for mine in read]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert not any(thread.is_alive() for thread in threads)
        assert sorted(number for mine in read for number in mine) == list(range(2000))
        assert all(mine == sorted(mine) for mine in read)


def test_adding_is_not_streaming() -> None:
    """A caller runs other nodes itself, and none that emits: it would wait for a reader whom it may be keeping."""
    with Pipe(a={"backend": Adds, "next": "b"}, b={"backend": Endless}) as pipe:
        chunks = pipe.stream({"data": 1}, buffer=1)
        assert next(chunks) == 1
        assert pipe.stats()["nodes"]["b"]["run_by_caller"] == 0
        chunks.close()
