"""Races and deaths at named points of the engine: what the hooks of ``_core._hook`` are for."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import time_stands_still, until

from fastpipe import (
    Backend,
    DeviceLost,
    Pipe,
    PipeClosed,
    PipeError,
    QueueFull,
    Request,
    RequestTimeout,
    WorkerDied,
    _core,
)
from fastpipe.instances import threads

WAIT_S = 20.0


class Echo(Backend):
    """Returns its data."""

    max_batch = 4
    seen: list[Any]

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            self.seen.append(request["data"])
            request["result"] = request["data"]


class Bound(Echo):
    """The same, always on its worker."""

    thread_bound = True


class Planted(BaseException):
    """Nothing that a backend raised."""


class Stop:
    """Holds the first thread that comes to a point, until it is let go."""

    def __init__(self, point: str, *, thread: Callable[[str], bool] = lambda name: True) -> None:
        self.point = point
        self.reached, self.let_go = threading.Event(), threading.Event()
        self.is_for = thread
        self.is_spent = threading.Lock()

    def __enter__(self) -> Stop:
        _core._hook(self.point, self)
        return self

    def __exit__(self, *raised: object) -> None:
        _core._hook(self.point, None)
        self.let_go.set()

    def __call__(self) -> None:
        if self.is_for(threading.current_thread().name) and self.is_spent.acquire(blocking=False):
            self.reached.set()
            assert self.let_go.wait(WAIT_S)


def is_worker(name: str) -> bool:
    return name.startswith("fastpipe main#")


@pytest.fixture(autouse=True)
def no_hook_is_left() -> Iterator[None]:
    Echo.seen = []
    yield
    for point in _core._HOOKS:
        _core._hook(point, None)


@pytest.fixture
def deaths(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The exceptions that ended workers."""
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda what: told.append(what.exc_value))
    return told


# ---- workers that die --------------------------------------------------------------------------------------------

DEADLY = ("take", "taken", "forward", "return", "end", "ended", "release", "sleep")


@pytest.mark.parametrize("point", DEADLY)
def test_p05_a_worker_that_dies_fails_what_it_holds_and_is_set_to_work_again(
    point: str, deaths: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each point of its loop, a hundred times under load: every request ends, and the node serves on."""
    monkeypatch.setattr(threads, "LONGEST_PAUSE_S", 0.001)
    count = itertools.count(1)

    def dies() -> None:
        if is_worker(threading.current_thread().name) and next(count) % 3 == 0:
            raise Planted(point)

    ended: list[BaseException | None] = []
    with Pipe(backend=Bound, instance_num=2) as pipe:
        _core._hook(point, dies)
        while len(deaths) < 100:
            futures = [pipe.submit({"data": index}) for index in range(8)]
            ended += [future.exception(WAIT_S) for future in futures]
        _core._hook(point, None)
        assert {type(error) for error in ended} <= {type(None), WorkerDied}
        died = [error for error in ended if error is not None]
        for error in died:
            assert isinstance(error.__cause__, Planted)
            assert str(error) == f"the thread that had this request met Planted: {point}"
        assert len({id(error) for error in died}) == len(died)  # each its own: notes are added for each caller
        assert bool(died) == (point in ("taken", "forward", "return"))
        assert pipe({"data": 1})["result"] == 1
        assert pipe.stats()["failures"].get("worker died", 0) == len(died)
        until(lambda: pipe.stats()["nodes"]["main"]["worker_deaths"] == len(deaths))  # one may just be on its way
        node = pipe.stats()["nodes"]["main"]
        assert (node["queued"], node["running"]) == (0, 0)
        assert pipe.health()["healthy"]


def test_a_death_that_others_can_see_leaves_their_requests_alone(deaths: list[Any]) -> None:
    """Only the batch that the worker held fails; what is queued is served by whoever comes."""
    with Pipe(backend=Bound, batching="greedy", max=1) as pipe:
        with Stop("taken") as stop:
            first = pipe.submit({"data": 0})
            assert stop.reached.wait(WAIT_S)
            others = [pipe.submit({"data": index}) for index in range(1, 6)]
            _core._hook("taken", None)
            _core._hook("forward", lambda: raise_once(stop, Planted()))
        assert isinstance(first.exception(WAIT_S), WorkerDied)
        _core._hook("forward", None)
        assert [future.result(WAIT_S)["result"] for future in others] == [1, 2, 3, 4, 5]
        assert len(deaths) == 1


def test_workers_that_die_with_what_they_took_leave_the_limits_of_the_queue_alone(deaths: list[Any]) -> None:
    """Their places are free, and no more than those."""

    def dies() -> None:
        if is_worker(threading.current_thread().name):
            raise Planted

    with Pipe(backend=Bound, max=1, max_queue=2, when_full="reject") as pipe:
        _core._hook("taken", dies)
        for _ in range(5):
            assert isinstance(pipe.submit({"data": 1}).exception(WAIT_S), WorkerDied)
        _core._hook("taken", None)
        with Stop("forward") as stop:
            running = pipe.submit({"data": 1})
            assert stop.reached.wait(WAIT_S)
            queued = [pipe.submit({"data": index}) for index in range(2)]
            with pytest.raises(QueueFull, match="2 requests wait, and its max_queue is 2"):
                pipe.submit({"data": 3})
        assert all(future.result(WAIT_S)["result"] is not None for future in [running, *queued])


def test_a_request_that_is_queued_as_its_node_is_lost_fails() -> None:
    """Between the first look and the push."""

    class Breaks(Bound):
        def forward(self, batch: list[Request]) -> None:
            raise DeviceLost("gone")

    caller = concurrent.futures.ThreadPoolExecutor(1)
    with Pipe(backend=Breaks, max=1) as pipe, Stop("push") as stop:
        late = caller.submit(pipe, {"data": 1})
        assert stop.reached.wait(WAIT_S)
        assert isinstance(pipe.submit({"data": 2}).exception(WAIT_S), DeviceLost)
        stop.let_go.set()
        assert isinstance(late.exception(WAIT_S), DeviceLost)
        caller.shutdown()


def raise_once(stop: Any, error: BaseException) -> None:
    if not getattr(stop, "has_raised", False):
        stop.has_raised = True
        raise error


def test_on_a_callers_own_thread_it_fails_its_request() -> None:
    """There is no worker to die."""
    with Pipe(backend=Echo) as pipe:
        _core._hook("forward", lambda: (_ for _ in ()).throw(Planted("here")))
        with pytest.raises(WorkerDied, match="met Planted: here"):
            pipe({"data": 1})
        _core._hook("forward", None)
        assert pipe({"data": 1})["result"] == 1


@pytest.mark.parametrize("point", ["admit", "admitted", "push"])
def test_what_a_hook_raises_on_the_way_in_goes_to_the_caller(point: str) -> None:
    """And nothing is left in the books."""
    with Pipe(backend=Bound) as pipe:
        _core._hook(point, lambda: (_ for _ in ()).throw(OSError(point)))
        with pytest.raises(OSError, match=point):
            pipe({"data": 1})
        _core._hook(point, None)
        counts = pipe.stats()["requests"]
        assert counts["in_flight"] == 0
        assert counts["accepted"] == counts["failed"] == (0 if point == "admit" else 1)
        assert pipe({"data": 1})["result"] == 1


# ---- wake-ups ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["take", "sleep"])
def test_p19_a_request_that_comes_while_a_worker_goes_to_sleep_is_served(point: str) -> None:
    """Between its last look and the kernel: the push finds it announced, and the sleep ends at once."""
    with Pipe(backend=Bound) as pipe:
        pipe({"data": 0})
        with Stop(point, thread=is_worker) as stop:
            first = pipe.submit({"data": 1})  # wakes it, if it slept already
            assert stop.reached.wait(WAIT_S)
            second = pipe.submit({"data": 2})
            stop.let_go.set()
            assert first.result(WAIT_S)["result"] == 1
            assert second.result(WAIT_S)["result"] == 2


def test_p19_an_answer_that_comes_before_its_caller_parks_is_seen() -> None:
    """The word is set while the caller is on its way to sleep."""
    with Pipe(backend=Bound) as pipe, Stop("park") as stop:
        caller = concurrent.futures.ThreadPoolExecutor(1)
        answer = caller.submit(pipe, {"data": 1})
        assert stop.reached.wait(WAIT_S)
        until(lambda: pipe.stats()["requests"]["done"] == 1)
        stop.let_go.set()
        assert answer.result(WAIT_S)["result"] == 1
        caller.shutdown()


def test_p19_a_push_before_its_notification_is_found_by_who_releases_an_instance() -> None:
    """The one that pushed has not told anybody, and the only worker is busy: it looks when it is done."""
    with Pipe(backend=Bound, max=1) as pipe, Stop("release", thread=is_worker) as release:
        first = pipe.submit({"data": 1})
        assert release.reached.wait(WAIT_S)
        with Stop("pushed") as pushed:
            caller = concurrent.futures.ThreadPoolExecutor(1)
            second = caller.submit(pipe, {"data": 2})
            assert pushed.reached.wait(WAIT_S)
            release.let_go.set()
            until(lambda: Echo.seen == [1, 2])
            pushed.let_go.set()
            assert second.result(WAIT_S)["result"] == 2
            assert first.result(WAIT_S)["result"] == 1
            caller.shutdown()


# ---- cancelling and time limits against everything else ------------------------------------------------------------

PLACES = ("push", "pushed", "take", "taken", "forward", "return", "end", "ended", "release")


@pytest.mark.parametrize("how", ["future", "task", "timeout"])
@pytest.mark.parametrize("place", PLACES)
def test_p10_giving_up_at_any_place_ends_the_request_once(place: str, how: str) -> None:
    """Nine places, three ways: one outcome, an honest count, no backend after it, and the next request is served."""
    on_worker = place not in ("push", "pushed")
    with Pipe(backend=Bound, max=1) as pipe, time_stands_still():
        with Stop(place, thread=is_worker if on_worker else lambda name: not is_worker(name)) as stop:
            if how == "task":
                outcome = asyncio.run(cancelled_task(pipe, stop, on_worker))
            else:
                outcome = given_up_future(pipe, stop, how, on_worker)
        counts = pipe.stats()["requests"]
        assert pipe({"data": "next"})["result"] == "next"
        assert counts["accepted"] == counts["done"] + counts["failed"] + counts["cancelled"] == 1
        assert counts[outcome] == 1
        if place in ("push", "pushed", "take", "taken") and outcome != "done":
            assert Echo.seen == ["next"]


def given_up_future(pipe: Pipe, stop: Stop, how: str, on_worker: bool) -> str:
    limit = 0.05 if how == "timeout" else None  # of a time that stands still until the place is reached
    if on_worker:
        future = pipe.submit({"data": 1}, timeout=limit)
        assert stop.reached.wait(WAIT_S)
        _core._advance_time(51_000_000)
    else:
        submitted: list[concurrent.futures.Future[Request]] = []
        thread = threading.Thread(target=lambda: submitted.append(pipe.submit({"data": 1}, timeout=limit)))
        thread.start()
        assert stop.reached.wait(WAIT_S)
        _core._advance_time(51_000_000)
        if how == "timeout":
            until(lambda: pipe.stats()["requests"]["in_flight"] == 0)  # late, or its worker was awake and has run it
        stop.let_go.set()
        thread.join(WAIT_S)
        (future,) = submitted
    if how == "future":
        future.cancel()
    elif on_worker and stop.point not in ("ended", "release"):
        until(lambda: pipe.stats()["requests"]["failed"] == 1)
    stop.let_go.set()
    if future.cancelled():
        return "cancelled"
    error = future.exception(WAIT_S)
    assert error is None or isinstance(error, RequestTimeout)
    return "done" if error is None else "failed"


async def cancelled_task(pipe: Pipe, stop: Stop, on_worker: bool) -> str:
    if not on_worker:
        # The loop's own thread stands at the point: there is nobody to cancel before it goes on.
        threading.Timer(0.01, stop.let_go.set).start()
    task = asyncio.create_task(pipe.acall({"data": 1}))
    await asyncio.sleep(0)
    assert await asyncio.to_thread(stop.reached.wait, WAIT_S)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    stop.let_go.set()
    counts = pipe.stats()["requests"]
    return "cancelled" if counts["cancelled"] else "done"


# ---- closing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["admitted", "push", "pushed", "take", "taken", "forward", "return", "end", "ended", "release"]
)
def test_p06_closing_while_a_request_is_at_any_place_ends_it(place: str) -> None:
    """It is answered, or told that the pipe was closed; and close() returns."""
    pipe = Pipe(backend=Bound, max=1)
    with Stop(place) as stop:
        answer = concurrent.futures.ThreadPoolExecutor(1)
        future = answer.submit(pipe, {"data": 1})
        assert stop.reached.wait(WAIT_S)
        closer = threading.Thread(target=pipe.close)
        closer.start()
        until(lambda: pipe.closing)
        stop.let_go.set()
        closer.join(WAIT_S)
        assert not closer.is_alive()
        error = future.exception(WAIT_S)
        assert error is None or isinstance(error, PipeClosed)
        assert pipe.stats()["requests"]["in_flight"] == 0
        answer.shutdown()


def test_p06_giving_up_the_rest_while_a_request_is_at_any_place_ends_it() -> None:
    """close(timeout=0) does not wait: the request gets PipeClosed, wherever it is."""
    for place in ("admitted", "push", "taken", "forward"):
        pipe = Pipe(backend=Bound, max=1)
        with Stop(place) as stop:
            caller = concurrent.futures.ThreadPoolExecutor(1)
            future = caller.submit(pipe, {"data": 1})
            assert stop.reached.wait(WAIT_S)
            closer = threading.Thread(target=pipe.close, args=(0,))
            closer.start()
            until(lambda pipe=pipe: pipe.stats()["requests"]["in_flight"] == 0)  # type: ignore[misc]
            stop.let_go.set()
            closer.join(WAIT_S)
            assert isinstance(future.exception(WAIT_S), PipeClosed)
            caller.shutdown()


# ---- the hooks themselves ------------------------------------------------------------------------------------------


def test_every_point_is_reached() -> None:
    """By an ordinary day of a pipe: calls, futures, a time limit, a cancellation, a batch that hangs, and its end."""

    class Slow(Bound):
        def forward(self, batch: list[Request]) -> None:
            if batch[0]["data"] == "slow":
                time.sleep(0.6)
            super().forward(batch)

    numbers = itertools.count()  # by which no two requests are equal
    reached: set[str] = set()
    for point in _core._HOOKS:
        _core._hook(point, lambda point=point: reached.add(point))  # type: ignore[misc]
    with Pipe(backend=Slow, hang_timeout=0.3, cache="1MB", cache_key=lambda _: next(numbers)) as pipe:
        pipe({"data": 1})
        with pytest.raises(Exception, match="did not return"):
            pipe({"data": "slow"})
        with pytest.raises(RequestTimeout):
            pipe({"data": 1}, timeout=1e-6)
        pipe.submit({"data": "slow"}).cancel()
        asyncio.run(cancel_at_once(pipe))
        pipe.swap("main")
    assert reached == set(_core._HOOKS)


async def cancel_at_once(pipe: Pipe) -> None:
    task = asyncio.create_task(pipe.acall({"data": 1}))
    await asyncio.sleep(0)
    task.cancel()


def test_a_point_that_does_not_exist_is_refused() -> None:
    """Before anything is armed."""
    with pytest.raises(ValueError, match="not in tuple"):
        _core._hook("nowhere", print)


def test_what_a_hook_raises_on_a_callers_thread_where_nothing_may_be_raised_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The call has its answer all the same."""
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: reported.append(type(what.exc_value)))
    with Pipe(backend=Echo) as pipe:
        _core._hook("ended", lambda: (_ for _ in ()).throw(Planted()))
        assert pipe({"data": 1})["result"] == 1
        _core._hook("ended", None)
    assert reported == [Planted]


def test_a_future_is_not_cancelled_once_its_request_has_failed() -> None:
    """Between the outcome and its future: what its owner sees is what is counted."""
    with Pipe(backend=Bound, max=1) as pipe:
        with Stop("forward") as busy:
            running = pipe.submit({"data": 1})
            assert busy.reached.wait(WAIT_S)
            with Stop("ended", thread=lambda name: name == "fastpipe clock") as stop:
                late = pipe.submit({"data": 2}, timeout=0.01)
                assert stop.reached.wait(WAIT_S)
                assert not late.cancel()
                stop.let_go.set()
                assert isinstance(late.exception(WAIT_S), RequestTimeout)
        assert running.result(WAIT_S)["result"] == 1
        counts = pipe.stats()["requests"]
        assert (counts["done"], counts["failed"], counts["cancelled"]) == (1, 1, 0)


@pytest.mark.parametrize(
    "use", [lambda: _core._hook("admit", print), _core._freeze_time, lambda: _core._advance_time(1)]
)
def test_hooks_and_frozen_time_are_inert_outside_of_tests(
    monkeypatch: pytest.MonkeyPatch, use: Callable[[], object]
) -> None:
    """A process whose environment does not ask for them cannot be made to stop, or to lie about the time, by a call."""
    monkeypatch.delenv("FASTPIPE_TEST_HOOKS")
    with pytest.raises(PipeError, match="FASTPIPE_TEST_HOOKS=1"):
        use()
    with Pipe(backend=Echo) as pipe:
        assert pipe({"data": 1})["result"] == 1
