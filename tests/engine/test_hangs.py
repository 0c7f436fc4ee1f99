"""Backends that do not return: the watchdog, what becomes of their requests, and of their instances."""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import gc
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from helpers import until

from fastpipe import Backend, BackendHung, ConfigError, Pipe, PipeClosed, Request, WorkerDied, _core
from fastpipe.instances.hung import MOST_STUCK_THREADS

WAIT_S = 20.0
HANG_S = 0.3  # also what a busy machine may hold up a batch that does not hang


class Hangs(Backend):
    """Returns its data; on "hang" only when told to."""

    instances: list[Hangs]
    released: threading.Event

    def __init__(self) -> None:
        self.is_closed = False
        self.instances.append(self)

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            if request["data"] == "bad":
                raise ValueError("bad")
            if request["data"] == "hang":
                assert self.released.wait(WAIT_S)
            request["result"] = request["data"]

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def hangs() -> Iterator[type[Hangs]]:
    """A backend of the test's own, whose hung instances return at its end."""

    class Own(Hangs):
        instances: list[Hangs] = []  # noqa: RUF012
        released = threading.Event()

    yield Own
    Own.released.set()


def builds_once(hangs: type[Hangs]) -> type[Hangs]:
    """Return a backend like ``hangs`` of which there can be no second instance."""

    class BuildsOnce(hangs):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            if self.instances:
                raise OSError("no licence left")
            super().__init__()

    return BuildsOnce


def hung(pipe: Pipe) -> concurrent.futures.Future[Request]:
    """Return the future of a request inside whose batch a thread of the pipe hangs already."""
    inside = threading.Event()
    _core._hook("forward", inside.set)
    try:
        future = pipe.submit({"data": "hang"})
        assert inside.wait(WAIT_S)
    finally:
        _core._hook("forward", None)
    return future


def test_p17_a_hung_backend_is_given_up_and_replaced(hangs: type[Hangs]) -> None:
    """Its request fails, with the stacks of all threads; the node goes on with a new instance."""
    with Pipe(backend=hangs, hang_timeout=HANG_S) as pipe:
        with pytest.raises(BackendHung, match=r"did not return within the hang_timeout of 0\.3 s") as caught:
            pipe({"data": "hang"})
        assert "in forward" in caught.value.stacks
        assert "fastpipe main#0" in caught.value.stacks
        assert any("node 'main'" in note and "instance 0, batch of 1" in note for note in caught.value.__notes__)
        assert pipe({"data": 3}) == {"data": 3, "result": 3}
        assert len(hangs.instances) == 2
        assert pipe.stats()["failures"] == {"hung": 1}
        assert pipe.stats()["nodes"]["main"]["hung"] == 1
        assert pipe.health() == {"healthy": True, "problems": []}
        assert not hangs.instances[0].is_closed
    assert hangs.instances[1].is_closed


def test_what_a_given_up_backend_does_later_is_for_nothing(hangs: type[Hangs]) -> None:
    """It comes back: its request has its error, its instance is closed on its own thread, and nothing else happens."""
    with Pipe(backend=hangs, hang_timeout=HANG_S) as pipe:
        request = {"data": "hang"}
        with pytest.raises(BackendHung):
            pipe(request)
        hangs.released.set()
        until(lambda: hangs.instances[0].is_closed)
        assert request == {"data": "hang"}
        assert pipe({"data": "hang"})["result"] == "hang"
        assert pipe.stats()["requests"] == {
            "accepted": 2,
            "in_flight": 0,
            "done": 1,
            "failed": 1,
            "cancelled": 0,
            "refused": 0,
        }
        assert (pipe.stats()["nodes"]["main"]["running"], pipe.stats()["nodes"]["main"]["queued"]) == (0, 0)


def run(pipe: Pipe, way: str, request: Request) -> None:
    if way == "call":
        pipe(request)
    elif way == "submit":
        pipe.submit(request).result(WAIT_S)
    elif way == "acall":
        asyncio.run(acall(pipe, request))
    else:
        list(pipe.map([request]))


async def acall(pipe: Pipe, request: Request) -> None:
    await asyncio.wait_for(pipe.acall(request), WAIT_S)


@pytest.mark.parametrize("way", ["call", "list", "submit", "acall", "map"])
def test_every_way_of_calling_gets_the_error(hangs: type[Hangs], way: str) -> None:
    """No caller is left with the thread that hangs."""
    with Pipe(backend=hangs, hang_timeout=HANG_S) as pipe:
        request: Request = {"data": "hang"}
        if way == "list":
            with pytest.raises(ExceptionGroup) as group:
                pipe([request, {"data": 1}])
            assert [type(error) for error in group.value.exceptions] == [BackendHung]
            return
        with pytest.raises(BackendHung):
            run(pipe, way, request)


def test_the_rest_of_a_hung_batch_fails_and_what_had_ended_does_not(hangs: type[Hangs]) -> None:
    """A batch is run again one by one: those before the one that hangs have their answers, those behind it fail."""

    class Batched(hangs):  # type: ignore[misc, valid-type]
        max_batch = 8
        retry_alone = True

    holds = threading.Event()

    class First(Batched):
        def forward(self, batch: list[Request]) -> None:
            if batch[0]["data"] == "first":
                assert holds.wait(WAIT_S)
            if len(batch) > 1:
                raise ValueError("the whole batch")
            super().forward(batch)

    with Pipe(backend=First, batching="greedy", hang_timeout=2.0) as pipe:
        first = pipe.submit({"data": "first"})
        until(lambda: pipe.stats()["nodes"]["main"]["running"] == 1)
        futures = [pipe.submit({"data": data}) for data in (1, "bad", "hang", 4)]
        holds.set()
        assert first.result(WAIT_S)["result"] == "first"
        errors = [future.exception(WAIT_S) for future in futures]
        assert [type(error) for error in errors] == [type(None), ValueError, BackendHung, BackendHung]
        assert futures[0].result()["result"] == 1
        assert errors[2] is not errors[3]
        assert pipe.stats()["failures"] == {"error": 1, "hung": 2}


def test_what_a_hung_thread_had_not_handed_on_goes_on(hangs: type[Hangs]) -> None:
    """The request in front of the one that hangs was on its way to the next node, on the thread that hangs."""
    holds = threading.Event()

    class First(hangs):  # type: ignore[misc, valid-type]
        max_batch = 2

        def forward(self, batch: list[Request]) -> None:
            if batch[0]["data"] == "first":
                assert holds.wait(WAIT_S)
            if len(batch) > 1:
                raise ValueError("the whole batch")
            super().forward(batch)

    nodes = {
        "a": {"backend": First, "batching": "greedy", "hang_timeout": 2.0, "next": "b"},
        "b": {"backend": "Identity"},
    }
    with Pipe(nodes) as pipe:
        first = pipe.submit({"data": "first"})
        until(lambda: pipe.stats()["nodes"]["a"]["running"] == 1)
        good, hung = pipe.submit({"data": 1}), pipe.submit({"data": "hang"})
        holds.set()
        assert first.result(WAIT_S)["result"] == "first"
        assert good.result(WAIT_S)["result"] == 1
        assert isinstance(hung.exception(WAIT_S), BackendHung)


def test_a_thread_bound_instance_is_built_again_on_a_thread_of_its_own(hangs: type[Hangs]) -> None:
    """Built, run and closed there; the old one is closed on its own thread, once it comes back."""
    threads: list[tuple[str, int]] = []

    class Bound(hangs):  # type: ignore[misc, valid-type]
        thread_bound = True

        def __init__(self) -> None:
            super().__init__()
            threads.append(("built", threading.get_ident()))

        def forward(self, batch: list[Request]) -> None:
            threads.append(("run", threading.get_ident()))
            super().forward(batch)

        def close(self) -> None:
            super().close()
            threads.append(("closed", threading.get_ident()))

    with Pipe(backend=Bound, hang_timeout=HANG_S) as pipe:
        with pytest.raises(BackendHung):
            pipe({"data": "hang"})
        pipe({"data": 1})
        hangs.released.set()
        until(lambda: hangs.instances[0].is_closed)
    by_thread: dict[int, list[str]] = {}
    for what, thread in threads:
        by_thread.setdefault(thread, []).append(what)
    assert list(by_thread.values()) == [["built", "run", "closed"], ["built", "run", "closed"]]


def test_the_number_of_stuck_threads_is_bounded_and_the_node_recovers(hangs: type[Hangs]) -> None:
    """With too many threads in the backend the node is lost, and fails what comes; when they return it is back."""
    with Pipe(backend=hangs, hang_timeout=HANG_S) as pipe:
        for _ in range(MOST_STUCK_THREADS + 1):
            with pytest.raises(BackendHung, match="did not return"):
                pipe({"data": "hang"})
        until(lambda: not pipe.health()["healthy"])
        assert pipe.health()["problems"] == ["node 'main' lacks 1 instance: 5 threads are stuck in its backend"]
        for _ in range(3):
            with pytest.raises(BackendHung, match="node 'main' has no instance left"):
                pipe({"data": 1})
        assert len(hangs.instances) == MOST_STUCK_THREADS + 1
        hangs.released.set()
        until(lambda: pipe.health()["healthy"])
        assert pipe({"data": 1})["result"] == 1
        assert len(hangs.instances) == MOST_STUCK_THREADS + 2


def test_requests_that_wait_fail_with_a_node_that_is_lost(hangs: type[Hangs]) -> None:
    """They do not wait for an instance that will not come."""
    with Pipe(backend=hangs, hang_timeout=HANG_S) as pipe:
        futures = [pipe.submit({"data": "hang"}) for _ in range(MOST_STUCK_THREADS + 4)]
        errors = [future.exception(WAIT_S) for future in futures]
        assert [type(error) for error in errors] == [BackendHung] * len(futures)
        assert pipe.stats()["failures"] == {"hung": len(futures)}


def test_a_replacement_that_cannot_be_built_is_a_problem_of_the_node(hangs: type[Hangs]) -> None:
    """health() says why; with no instance left the node fails what comes."""

    with Pipe(backend=builds_once(hangs), hang_timeout=HANG_S) as pipe:
        with pytest.raises(BackendHung):
            pipe({"data": "hang"})
        until(lambda: not pipe.health()["healthy"])
        (problem,) = pipe.health()["problems"]
        assert problem == "node 'main' lacks 1 instance: its backend could not be built again: OSError: no licence left"
        with pytest.raises(BackendHung, match="could not be built again"):
            pipe({"data": 1})


def test_the_other_instances_go_on(hangs: type[Hangs]) -> None:
    """While one hangs, and nobody has noticed, the other serves."""
    with Pipe(backend=hangs, hang_timeout=30, instance_num=2) as pipe:
        hung = pipe.submit({"data": "hang"})
        until(lambda: pipe.stats()["nodes"]["main"]["running"] == 1)
        for index in range(50):
            assert pipe({"data": index})["result"] == index
        hangs.released.set()
        assert hung.result(WAIT_S)["result"] == "hang"
        assert pipe.stats()["nodes"]["main"]["hung"] == 0


def test_closing_does_not_wait_for_what_hangs(hangs: type[Hangs]) -> None:
    """Neither for a request that hangs while the pipe closes, nor for threads that were given up before."""
    pipe = Pipe(backend=hangs, hang_timeout=HANG_S)
    with pytest.raises(BackendHung):
        pipe({"data": "hang"})
    future = pipe.submit({"data": "hang"})
    pipe.close()
    assert isinstance(future.exception(WAIT_S), BackendHung)
    assert not hangs.released.is_set()


def test_closing_beside_a_hung_and_a_replaced_instance_leaves_nothing_but_what_hangs(hangs: type[Hangs]) -> None:
    """The replacement's thread does not wait for the instance that hangs: it ends, and its backend is closed."""
    inside = threading.Event()

    class Spares(hangs):  # type: ignore[misc, valid-type]
        spared: threading.Thread | None = None

        def forward(self, batch: list[Request]) -> None:
            if threading.current_thread() is self.spared:
                batch[0]["result"] = True
                return
            if self.spared is not None:
                inside.set()
            super().forward(batch)

    pipe = Pipe(backend=Spares, instance_num=2, hang_timeout=HANG_S)
    (station,) = pipe.stations
    with pytest.raises(BackendHung):
        pipe({"data": "hang"})
    until(lambda: station.in_service == 2)
    Spares.spared = pipe._instances.workers[-1].thread  # the replacement's
    future = pipe.submit({"data": "hang"})
    while not inside.wait(0.01):  # until the other thread has one
        if future.done():
            future = pipe.submit({"data": "hang"})
    pipe.close(timeout=0.0)
    assert isinstance(future.exception(WAIT_S), BackendHung | PipeClosed)
    until(lambda: not Spares.spared.is_alive())
    until(lambda: station.hung == 2)  # the watchdog goes on until nothing runs any more
    assert sum(instance.is_closed for instance in hangs.instances) == 1
    assert len(hangs.instances) == 3
    Spares.spared = None


def test_a_second_close_waits_no_longer_than_a_batch_may_run(hangs: type[Hangs]) -> None:
    """The first has left a hung instance behind, and the second has no time limit."""
    pipe = Pipe(backend=hangs, hang_timeout=2 * HANG_S)
    future = hung(pipe)
    pipe.close(timeout=0.0)
    assert isinstance(future.exception(WAIT_S), PipeClosed)
    pipe.close()
    assert not hangs.released.is_set()
    assert not hangs.instances[0].is_closed


def test_nobody_waits_for_the_token_of_a_backend_that_is_given_up(hangs: type[Hangs]) -> None:
    """It comes back never; and as it is taken out of service, no other is built in its place."""
    with Pipe(backend=hangs, hang_timeout=HANG_S) as pipe, concurrent.futures.ThreadPoolExecutor(1) as executor:
        (station,) = pipe.stations
        future = hung(pipe)
        retiring = executor.submit(station.retire, 0, 0, -1.0)
        assert isinstance(future.exception(WAIT_S), BackendHung)
        assert retiring.result(WAIT_S) is None
        assert station.retire(0, 0, 0.0) is None
        assert station.has_left(0)
    assert len(hangs.instances) == 1


def test_a_pipe_with_a_watchdog_is_freed_when_it_is_dropped(hangs: type[Hangs]) -> None:
    """Its threads keep it no more alive than those of other pipes do."""
    pipe = Pipe(backend=hangs, hang_timeout=30)
    assert pipe({"data": 1})["result"] == 1
    gone = weakref.ref(pipe)
    del pipe
    until(lambda: gc.collect() >= 0 and gone() is None)


def test_time_in_the_queue_is_not_time_in_the_backend(hangs: type[Hangs]) -> None:
    """Twenty batches of a third of the timeout each, one after the other: none hangs."""

    class Slow(hangs):  # type: ignore[misc, valid-type]
        def forward(self, batch: list[Request]) -> None:
            time.sleep(0.1)
            super().forward(batch)

    with Pipe(backend=Slow, hang_timeout=2) as pipe:
        for future in [pipe.submit({"data": index}) for index in range(30)]:
            assert future.exception(WAIT_S) is None
        assert pipe.stats()["nodes"]["main"]["hung"] == 0


def test_p17_a_hung_backend_that_holds_the_gil_is_noticed_all_the_same(hangs: type[Hangs]) -> None:
    """Noticed, and decided, while no Python code could run; told to the callers as soon as one can."""

    class HoldsTheGil(hangs):  # type: ignore[misc, valid-type]
        def forward(self, batch: list[Request]) -> None:
            if batch[0]["data"] == "hang":
                ctypes.PyDLL(None).usleep(2_000_000)
            super().forward([request for request in batch if request["data"] != "hang"])

    with Pipe(backend=HoldsTheGil, hang_timeout=HANG_S) as pipe:
        with pytest.raises(BackendHung):
            pipe({"data": "hang"})
        (station,) = pipe.stations
        assert HANG_S <= station.given_up_after_ns / 1e9 < 1.9
        assert pipe({"data": 1})["result"] == 1


def test_when_hung_abort_ends_the_process_without_the_gil(tmp_path: Path) -> None:
    """SIGABRT, for which faulthandler shows where the threads are: the backend holds the GIL and will never let go."""
    code = """
        import ctypes, faulthandler, fastpipe
        faulthandler.enable()
        class HoldsTheGil(fastpipe.Backend):
            def forward(self, batch):
                ctypes.PyDLL(None).pause()
        pipe = fastpipe.Pipe(backend=HoldsTheGil, hang_timeout=0.1, when_hung="abort")
        pipe({"data": 1})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=WAIT_S, cwd=tmp_path
    )
    assert done.returncode == -6
    assert re.search(r"line 6 in forward", done.stderr)


def test_a_hung_batch_of_parts_fails_the_whole(hangs: type[Hangs]) -> None:
    """MapReduce: the other parts are dropped, and the request fails once."""
    nodes = {
        "all": {"backend": "MapReduce", "jump": "each"},
        "each": {"backend": hangs, "hang_timeout": HANG_S},
    }
    with Pipe(nodes) as pipe:
        with pytest.raises(BackendHung):
            pipe({"node_name": "all", "data": [1, "hang", 3]})
        assert pipe({"node_name": "all", "data": [1, 2]})["result"] == [1, 2]
        assert pipe.stats()["requests"]["failed"] == 1


def test_eager_calls_and_the_debugger_are_not_watched(hangs: type[Hangs]) -> None:
    """A breakpoint may last."""

    class Slow(hangs):  # type: ignore[misc, valid-type]
        def forward(self, batch: list[Request]) -> None:
            time.sleep(3 * HANG_S)
            super().forward(batch)

    with Pipe(backend=Slow, hang_timeout=HANG_S) as pipe:
        assert pipe({"data": 1}, eager=True)["result"] == 1
        assert pipe.stats()["nodes"]["main"]["hung"] == 0


def test_the_watchdog_and_the_worker_never_both_decide(hangs: type[Hangs]) -> None:
    """Batches that end just when their time is over: each request has one outcome, and the counters add up."""

    class Close(hangs):  # type: ignore[misc, valid-type]
        def forward(self, batch: list[Request]) -> None:
            time.sleep(batch[0]["data"])
            batch[0]["result"] = True

    with Pipe(backend=Close, hang_timeout=0.01, instance_num=4) as pipe:
        futures = [pipe.submit({"data": 0.0095 + 0.00005 * (index % 20)}) for index in range(400)]
        outcomes = [future.exception(WAIT_S) for future in futures]
        hung = sum(isinstance(error, BackendHung) for error in outcomes)
        assert hung + sum(error is None for error in outcomes) == 400
        stats = pipe.stats()
        assert stats["requests"]["done"] + stats["requests"]["failed"] == 400
        assert stats["failures"].get("hung", 0) == hung
        until(lambda: pipe.stats()["nodes"]["main"]["running"] == 0)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"hang_timeout": 0}, "hang_timeout: must be between 1e-06 and 1000000000 seconds, got 0"),
        ({"hang_timeout": "soon"}, "hang_timeout: must be a number between 1e-06 and 1000000000 seconds, got 'soon'"),
        ({"when_hung": "explode"}, "when_hung: must be 'replace' or 'abort', got 'explode'"),
    ],
)
def test_a_wrong_key_is_told(keys: dict[str, Any], says: str) -> None:
    """With what is allowed."""
    with pytest.raises(ConfigError, match=re.escape(says)):
        Pipe(backend="Identity", **keys)


def test_a_hook_that_raises_in_the_watchdog_is_reported(hangs: type[Hangs], monkeypatch: pytest.MonkeyPatch) -> None:
    """And the watchdog goes on."""
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: reported.append(type(what.exc_value)))

    def breaks() -> None:
        raise OSError("planted")

    with Pipe(backend=hangs, hang_timeout=HANG_S) as pipe:
        _core._hook("hang", breaks)
        try:
            with pytest.raises(BackendHung):
                pipe({"data": "hang"})
        finally:
            _core._hook("hang", None)
        assert reported == [OSError]


# ---- replacements that are slow, or impossible -----------------------------------------------------------------------


class Slow(Hangs):
    """Its first instance is built at once, the next ones only when told to."""

    may_build: threading.Event

    def __init__(self) -> None:
        if self.instances:
            assert self.may_build.wait(WAIT_S)
        super().__init__()


@pytest.fixture
def slow() -> Iterator[type[Slow]]:
    """A backend of the test's own, whose replacements are built at its end at the latest."""

    class Own(Slow):
        instances: list[Hangs] = []  # noqa: RUF012
        released = threading.Event()
        may_build = threading.Event()

    yield Own
    Own.released.set()
    Own.may_build.set()


def test_what_waits_for_a_replacement_is_served_by_it_also_while_the_pipe_closes(slow: type[Slow]) -> None:
    """The pipe drains: a new instance comes just in time."""
    pipe = Pipe(backend=slow, hang_timeout=2)
    hung, waits = pipe.submit({"data": "hang"}), pipe.submit({"data": 1})
    assert isinstance(hung.exception(WAIT_S), BackendHung)
    until(lambda: not pipe.health()["healthy"])
    assert pipe.health()["problems"] == ["node 'main' lacks 1 instance: being built again"]
    closer = threading.Thread(target=pipe.close)
    closer.start()
    until(lambda: pipe.closing)
    slow.may_build.set()
    assert waits.result(WAIT_S)["result"] == 1
    closer.join(WAIT_S)
    assert not closer.is_alive()
    assert slow.instances[1].is_closed


def test_closing_waits_no_longer_for_a_replacement_than_for_a_batch(slow: type[Slow]) -> None:
    """The constructor hangs, too: what waits fails, and close() returns."""
    pipe = Pipe(backend=slow, hang_timeout=HANG_S)
    hung, waits = pipe.submit({"data": "hang"}), pipe.submit({"data": 1})
    assert isinstance(hung.exception(WAIT_S), BackendHung)
    pipe.close()
    assert isinstance(waits.exception(WAIT_S), BackendHung)
    slow.may_build.set()
    until(lambda: len(slow.instances) == 2 and slow.instances[1].is_closed)


def test_a_replacement_for_which_there_is_no_thread_fails_the_node(
    hangs: type[Hangs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost with it: what hung and what waited have their errors."""
    with Pipe(backend=hangs, hang_timeout=HANG_S) as pipe:

        def start(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", start)
        hung, waits = pipe.submit({"data": "hang"}), pipe.submit({"data": 1})
        assert isinstance(hung.exception(WAIT_S), BackendHung)
        assert "can't start new thread" in str(waits.exception(WAIT_S))
        monkeypatch.undo()


def test_a_pipe_that_is_dropped_while_an_instance_is_built_again_closes_it(slow: type[Slow]) -> None:
    """Whoever is last sees to it."""
    pipe = Pipe(backend=slow, hang_timeout=HANG_S)
    with pytest.raises(BackendHung):
        pipe({"data": "hang"})
    gone = weakref.ref(pipe)
    del pipe
    slow.released.set()  # what hangs still has its request, and that its pipe
    slow.may_build.set()
    until(lambda: gc.collect() >= 0 and gone() is None)
    until(lambda: slow.instances[1].is_closed)


def test_a_backend_that_comes_back_and_cannot_be_closed_is_stuck_no_more(
    hangs: type[Hangs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread has left; the node goes on being replaced."""
    told: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda what: told.append(str(what.exc_value)))

    class CannotClose(hangs):  # type: ignore[misc, valid-type]
        def close(self) -> None:
            if self is not self.instances[-1]:
                raise OSError("cannot close")

    with Pipe(backend=CannotClose, hang_timeout=HANG_S) as pipe:
        for count in range(1, MOST_STUCK_THREADS + 3):
            hangs.released.clear()
            with pytest.raises(BackendHung, match="did not return"):
                pipe({"data": "hang"})
            hangs.released.set()
            until(lambda count=count: len(told) == count)  # type: ignore[misc]
        assert pipe({"data": 1})["result"] == 1


def test_eager_calls_of_a_node_that_is_lost_fail_as_others_do(hangs: type[Hangs]) -> None:
    """They do not wait for an instance that will not come."""

    with Pipe(backend=builds_once(hangs), hang_timeout=HANG_S) as pipe:
        with pytest.raises(BackendHung):
            pipe({"data": "hang"})
        with pytest.raises(BackendHung, match="no licence left"):
            pipe({"data": 1}, eager=True)


def test_callers_answered_before_a_batch_that_hangs_are_woken_once(hangs: type[Hangs]) -> None:
    """The worker comes back just as it is given up: what it had not woken is the watchdog's (E8)."""
    reached, go_on = threading.Event(), threading.Event()

    def decided() -> None:
        reached.set()
        assert go_on.wait(WAIT_S)

    class Late(hangs):  # type: ignore[misc, valid-type]
        def forward(self, batch: list[Request]) -> None:
            if batch[0]["data"] == "hang":
                assert reached.wait(WAIT_S)
            super().forward([request for request in batch if request["data"] != "hang"])

    with Pipe(backend=Late, hang_timeout=HANG_S) as pipe:
        _core._hook("hang", decided)
        try:
            answers = [threading.Thread(target=pipe, args=({"data": index},)) for index in range(8)]
            hung = pipe.submit({"data": "hang"})
            for thread in answers:
                thread.start()
            assert reached.wait(WAIT_S)
            go_on.set()
            assert isinstance(hung.exception(WAIT_S), BackendHung)
            for thread in answers:
                thread.join(WAIT_S)
                assert not thread.is_alive()
        finally:
            _core._hook("hang", None)


def test_hang_timeout_as_a_default_of_all_nodes_leaves_those_out_that_run_nothing(hangs: type[Hangs]) -> None:
    """A MapReduce has no batches; its parts' nodes do."""
    with Pipe({"all": {"backend": "MapReduce", "jump": "each"}, "each": {"backend": hangs}}, hang_timeout=30) as pipe:
        assert pipe({"node_name": "all", "data": [1, 2]})["result"] == [1, 2]


def test_a_callback_that_waits_does_not_stop_the_watchdog(hangs: type[Hangs]) -> None:
    """It runs on a thread of its own, and may even wait for another request that hangs."""
    with Pipe(backend=hangs, hang_timeout=HANG_S, instance_num=2) as pipe:
        first, second = pipe.submit({"data": "hang"}), pipe.submit({"data": "hang"})
        told: list[BaseException | None] = []
        done = threading.Event()

        def waits(_: Any) -> None:
            told.append(second.exception(WAIT_S))
            done.set()

        first.add_done_callback(waits)
        assert done.wait(WAIT_S)
        assert isinstance(told[0], BackendHung)


def test_a_worker_that_dies_in_one_half_of_a_batch_does_not_hang_in_the_other(
    hangs: type[Hangs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of the batch fails with it: a thread that is about to end begins nothing new."""
    monkeypatch.setattr(threading, "excepthook", lambda what: None)
    reached, go_on = threading.Event(), threading.Event()
    ran: list[Any] = []

    class Batched(hangs):  # type: ignore[misc, valid-type]
        max_batch = 4

        def forward(self, batch: list[Request]) -> None:
            if batch[0]["data"] == "first":
                reached.set()
                assert go_on.wait(WAIT_S)
            elif len(batch) > 1:
                _core._hook("return", lambda: (_ for _ in ()).throw(MemoryError("planted")))
                raise ValueError("the whole batch")
            else:
                ran.append(batch[0]["data"])
            super().forward(batch)

    with Pipe(backend=Batched, batching="greedy", hang_timeout=WAIT_S) as pipe:
        first = pipe.submit({"data": "first"})
        assert reached.wait(WAIT_S)
        futures = [pipe.submit({"data": data}) for data in (1, "hang", 3)]
        go_on.set()
        try:
            assert first.result(WAIT_S)["result"] == "first"
            assert [type(future.exception(WAIT_S)) for future in futures] == [WorkerDied] * 3
        finally:
            _core._hook("return", None)
        assert "hang" not in ran
        assert pipe({"data": 5})["result"] == 5


# ---- a process that did not run --------------------------------------------------------------------------------------

STOPPED = """
    import sys
    import fastpipe

    class Waits(fastpipe.Backend):
        def forward(self, batch):
            print("inside", flush=True)
            assert sys.stdin.readline()
            batch[0]["result"] = batch[0]["data"]

    pipe = fastpipe.Pipe(backend=Waits, hang_timeout=1.0, when_hung=sys.argv[1])
    try:
        print(pipe({"data": "answer"})["result"], flush=True)
    except fastpipe.BackendHung as error:
        print(type(error).__name__, flush=True)
"""


@pytest.mark.parametrize("when_hung", ["replace", "abort"])
@pytest.mark.parametrize("hangs", [False, True], ids=["healthy", "hung"])
def test_a_process_that_was_stopped_has_not_hung(tmp_path: Path, when_hung: str, hangs: bool) -> None:
    """While it was stopped no batch could get on: each gets another hang_timeout. One that hangs is found then."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(STOPPED))
    command = [sys.executable, str(program), when_hung]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "inside\n"
        child.send_signal(signal.SIGSTOP)
        time.sleep(2.0)  # it is this long that must not count
        if not hangs:
            child.stdin.write("go on\n")
            child.stdin.flush()
        child.send_signal(signal.SIGCONT)
        said = child.stdout.readline()
        child.stdin.close()
        child.wait(WAIT_S)
    if not hangs:
        assert (said, child.returncode) == ("answer\n", 0)
    elif when_hung == "abort":
        assert (said, child.returncode) == ("", -signal.SIGABRT)
    else:
        assert said == "BackendHung\n"


@pytest.mark.parametrize(
    ("looks", "late_at"),
    [
        ([(100, 350, 350), (100, 600, 600)], [1100, 1100]),  # on time, as meant
        ([(100, 350, 350), (100, 600, 700)], [1100, 1100]),  # a busy machine
        ([(100, 350, 350), (100, 600, 2600)], [1100, 3600]),  # it stood still for 2000: one more hang_timeout
        ([(100, 350, 350), (100, 600, 2600), (100, 2850, 2850), (100, 3600, 3600)], [1100, 3600, 3600, 3600]),
        ([(100, 9999, 2600)], [3600]),  # seen for the first time, where a look at 350 was meant
        ([(100, 9999, 350)], [1100]),
        ([(100, 350, 350), (900, 600, 950)], [1100, 1950]),  # another batch, which began in the pause: from the look on
        ([(100, 350 * n, 350 * n + 500) for n in range(1, 6)], [1850, 2200, 2550, 2550, 2550]),  # looks are always late
        ([(100, -1, 350), (100, -1, 2600)], [1100, 1100]),  # frozen time tells nothing
    ],
)
def test_when_a_batch_counts_as_late(looks: list[tuple[int, int, int]], late_at: list[int]) -> None:
    """A hang_timeout of 1000 after it began, or after a look that came much later than meant; thrice at most."""
    assert _core.late_at(1000, looks) == late_at
