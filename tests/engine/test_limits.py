"""Queues with limits, deadlines, priorities, and backends that ask whether anybody still waits."""

from __future__ import annotations

import asyncio
import concurrent.futures
import decimal
import fractions
import gc
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from helpers import until

import fastpipe
from fastpipe import (
    Backend,
    CallLoop,
    ConfigError,
    Pipe,
    PipeClosed,
    PipeError,
    QueueFull,
    Request,
    RequestTimeout,
    _core,
)

WAIT_S = 20.0


class Gate(Backend):
    """Runs only while it is open; notes the data of each batch."""

    def __init__(self, *, opened: threading.Event, inside: threading.Event, batches: list[Any]) -> None:
        self.opened = opened
        self.inside = inside
        self.batches = batches

    def forward(self, batch: list[Request]) -> None:
        self.batches.append([request["data"] for request in batch])
        self.inside.set()
        assert self.opened.wait(WAIT_S)
        for request in batch:
            request["result"] = request["data"]


def run(pipe: Pipe, way: str, request: Request, timeout: float) -> None:
    """Run a request to its end in one of the ways of calling."""
    if way == "call":
        pipe(request, timeout=timeout)
    elif way == "submit":
        pipe.submit(request, timeout=timeout).result(WAIT_S)
    elif way == "acall":
        asyncio.run(acall(pipe, request, timeout))
    elif way == "list":
        pipe([request], timeout=timeout)
    else:
        list(pipe.map([request], timeout=timeout))


async def acall(pipe: Pipe, request: Request, timeout: float) -> None:
    await pipe.acall(request, timeout=timeout)


class Held:
    """A pipe whose only instance holds a first request until ``open`` is called."""

    def __init__(self, **keys: Any) -> None:
        self.opened, self.inside = threading.Event(), threading.Event()
        self.batches: list[list[Any]] = []
        instance = Gate(opened=self.opened, inside=self.inside, batches=self.batches)
        self.pipe = Pipe(backend=instance, **keys)
        self.first = self.pipe.submit({"data": "first"})
        deadline_s = time.monotonic() + WAIT_S
        while not self.inside.wait(0.001):
            if self.first.done():  # with a time limit, and a machine that was busy for as long
                self.first = self.pipe.submit({"data": "first"})
            assert time.monotonic() < deadline_s

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *raised: object) -> None:
        self.opened.set()
        self.pipe.close()

    def open(self) -> None:
        self.opened.set()
        assert self.first.result(WAIT_S)["result"] == "first"


def counts_add_up(pipe: Pipe) -> None:
    """What was accepted has ended or is in flight, and each failure has a reason."""
    stats = pipe.stats()
    requests = stats["requests"]
    ended = requests["done"] + requests["failed"] + requests["cancelled"]
    assert requests["accepted"] == requests["in_flight"] + ended
    assert sum(stats["failures"].values()) == requests["failed"]


def patiently(limit_s: float) -> Iterator[float]:
    """Yield a time limit, and longer ones for whom a busy machine keeps from beginning within it."""
    while limit_s < WAIT_S:
        yield limit_s
        limit_s *= 10


# ---- reject ----------------------------------------------------------------------------------------------------------


def test_p12_one_runs_ten_wait_and_the_next_is_refused() -> None:
    """Exactly, with the numbers, at once, and its dict as it was; room is there again as soon as one is taken."""
    with Held(max_queue=10, when_full="reject") as held:
        futures = [held.pipe.submit({"data": index}) for index in range(10)]
        request = {"data": "refused"}
        for start in (held.pipe, held.pipe.submit, lambda request: asyncio.run(held.pipe.acall(request))):
            with pytest.raises(QueueFull, match="of node 'main' is full: 10 requests wait, and its max_queue is 10"):
                start(request)
        assert request == {"data": "refused"}
        assert held.pipe.stats()["requests"]["refused"] == 3
        assert held.pipe.stats()["nodes"]["main"]["queued"] == 10
        assert futures[3].cancel()
        held.open()
        for index, future in enumerate(futures):
            if index != 3:
                assert future.result(WAIT_S)["result"] == index
        assert held.pipe({"data": "after"})["result"] == "after"
        counts_add_up(held.pipe)
    assert [3] not in held.batches


def test_p12_without_a_limit_the_same_ten_and_one_are_taken() -> None:
    """The negative control: it is the limit that refuses."""
    with Held() as held:
        futures = [held.pipe.submit({"data": index}) for index in range(11)]
        assert held.pipe.stats()["nodes"]["main"]["queued"] == 11
        held.open()
        assert [future.result(WAIT_S)["result"] for future in futures] == list(range(11))


def test_a_list_larger_than_the_queue_passes_through_it() -> None:
    """Where the rest is refused, its requests end with QueueFull; where callers wait, all are served."""
    with Pipe(backend="Identity", max_queue=2) as pipe:
        requests = [{"data": index} for index in range(50)]
        pipe(requests)
        assert [request["result"] for request in requests] == list(range(50))
        assert [request["result"] for request in pipe.map([{"data": index} for index in range(50)])] == list(range(50))


def test_bytes_are_counted_too() -> None:
    """Bytes, arrays and lists of them; what can never fit is refused even by an empty queue."""
    with Held(max_queue_bytes=1000, when_full="reject") as held:
        fits = [
            held.pipe.submit({"data": b"x" * 400}),
            held.pipe.submit({"data": [np.zeros(25, np.float32), "text of 20 characters"[:20]]}),
            held.pipe.submit({"data": 5}),
        ]
        with pytest.raises(QueueFull, match="520 bytes wait, the request has 600, and its max_queue_bytes is 1000"):
            held.pipe.submit({"data": b"x" * 600})
        fits.append(held.pipe.submit({"data": b"x" * 480}))
        held.open()
        concurrent.futures.wait(fits, WAIT_S)
        with pytest.raises(QueueFull, match="0 bytes wait, the request has 1001"):
            held.pipe({"data": b"x" * 1001})
        assert held.pipe({"data": b"x" * 1000})["result"]


def test_a_full_queue_inside_the_graph_fails_the_request() -> None:
    """It was accepted, so it ends with QueueFull, and is counted as failed for that reason."""
    opened, inside = threading.Event(), threading.Event()
    gate = Gate(opened=opened, inside=inside, batches=[])
    nodes = {"a": {"backend": "Identity", "next": "b"}, "b": {"backend": gate, "max_queue": 1, "when_full": "reject"}}
    with Pipe(nodes) as pipe:
        futures = [pipe.submit({"data": 0})]
        assert inside.wait(WAIT_S)
        futures += [pipe.submit({"data": index}) for index in (1, 2, 3)]
        until(lambda: pipe.stats()["requests"]["failed"] == 2)
        opened.set()
        outcomes = [type(future.exception(WAIT_S)) for future in futures]
        assert outcomes.count(QueueFull) == 2
        assert outcomes.count(type(None)) == 2
        assert pipe.stats()["failures"] == {"queue full": 2}
        counts_add_up(pipe)


# ---- shed the oldest -------------------------------------------------------------------------------------------------


def test_the_oldest_makes_room() -> None:
    """It fails with QueueFull, exactly once each; the newest are served."""
    with Held(max_queue=3, when_full="shed_oldest") as held:
        futures = [held.pipe.submit({"data": index}) for index in range(8)]
        for future in futures[:5]:
            with pytest.raises(QueueFull, match="max_queue is 3"):
                future.result(WAIT_S)
        held.open()
        assert [future.result(WAIT_S)["result"] for future in futures[5:]] == [5, 6, 7]
        assert held.pipe.stats()["failures"] == {"queue full": 5}
        counts_add_up(held.pipe)


# ---- block -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["call", "submit", "acall"])
def test_a_caller_waits_for_room(way: str) -> None:
    """Never more than the limit waits, and everybody is served."""
    with Held(max_queue=2) as held:
        waiting = [held.pipe.submit({"data": index}) for index in range(2)]
        most = []

        def call(index: int) -> Any:
            if way == "call":
                return held.pipe({"data": index})["result"]
            if way == "submit":
                return held.pipe.submit({"data": index}).result(WAIT_S)["result"]
            return asyncio.run(held.pipe.acall({"data": index}))["result"]

        with concurrent.futures.ThreadPoolExecutor(6) as executor:
            calls = [executor.submit(call, index) for index in range(10, 16)]
            for _ in range(20):
                most.append(held.pipe.stats()["nodes"]["main"]["queued"])
                time.sleep(0.002)
            assert not any(call.done() for call in calls)
            assert max(most) == 2
            held.open()
            assert [call.result(WAIT_S) for call in calls] == list(range(10, 16))
        assert [future.result(WAIT_S)["result"] for future in waiting] == [0, 1]
        counts_add_up(held.pipe)


@pytest.mark.parametrize("way", ["call", "submit", "acall", "map"])
def test_it_waits_no_longer_than_its_timeout(way: str) -> None:
    """It was never accepted: refused."""
    with Held(max_queue=1) as held:
        held.pipe.submit({"data": 0})
        with pytest.raises(RequestTimeout, match="room in the queue of node 'main'"):
            run(held.pipe, way, {"data": 1}, 0.02)
        assert held.pipe.stats()["requests"]["refused"] == 1
        assert held.pipe.stats()["requests"]["accepted"] == 2


def test_closing_ends_the_wait_for_room() -> None:
    """Whoever waits to get in is refused."""
    held = Held(max_queue=1)
    held.pipe.submit({"data": 0})
    came = threading.Semaphore(0)
    _core._hook("admit", came.release)
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        waits = [
            executor.submit(held.pipe, {"data": 1}),
            executor.submit(lambda: asyncio.run(held.pipe.acall({"data": 2}))),
        ]
        try:
            assert all(came.acquire(timeout=WAIT_S) for _ in waits)
        finally:
            _core._hook("admit", None)
        time.sleep(0.02)  # they wait by then, as a rule; who has not begun to is refused as well
        closing = executor.submit(lambda: None)
        closer = threading.Thread(target=held.pipe.close)
        closer.start()
        for wait in waits:
            assert isinstance(wait.exception(WAIT_S), PipeClosed)
        closing.result(WAIT_S)
        held.open()
        closer.join(WAIT_S)
        assert not closer.is_alive()


def test_a_queue_further_on_holds_requests_back_where_they_enter() -> None:
    """b is full and lets callers wait: a takes nothing more meanwhile."""
    opened, inside = threading.Event(), threading.Event()
    ran: list[Any] = []

    class Notes(Backend):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                ran.append(request["data"])
                request["result"] = request["data"]

    gate = Gate(opened=opened, inside=inside, batches=[])
    with Pipe(a={"backend": Notes, "next": "b"}, b={"backend": gate, "max_queue": 1}) as pipe:
        futures = [pipe.submit({"data": 0})]
        assert inside.wait(WAIT_S)
        futures.append(pipe.submit({"data": 1}))
        while pipe.stats()["nodes"]["b"]["queued"] < 1:
            time.sleep(0.001)
        with pytest.raises(RequestTimeout, match="room in the queue of node 'b'"):
            pipe.submit({"data": 2}, timeout=0.02)
        assert ran == [0, 1]
        opened.set()
        assert [future.result(WAIT_S)["result"] for future in futures] == [0, 1]


# ---- deadlines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["call", "submit", "acall", "list", "map"])
@pytest.mark.parametrize("place", ["queued", "running"])
def test_p10_a_request_fails_when_its_time_is_over(way: str, place: str) -> None:
    """Queued, no backend ever sees it; running, its caller is released. Its dict stays as it was."""
    for limit_s in patiently(0.05):
        batches = run_until_late(way, place, limit_s)
        if place == "queued" or [1] in batches:
            break
    assert ([1] in batches) == (place == "running")


def run_until_late(way: str, place: str, limit_s: float) -> list[list[Any]]:
    """Have a request fail as its time is over; return what the backend has seen of it, and of others."""
    opened, inside = threading.Event(), threading.Event()
    batches: list[list[Any]] = []
    gate = Gate(opened=opened, inside=inside, batches=batches)
    gate.thread_bound = True  # type: ignore[misc]  # so that no caller runs it itself
    with Pipe(backend=gate) as pipe:
        first = None
        if place == "queued":
            first = pipe.submit({"data": "first"})
            assert inside.wait(WAIT_S)
        request: Request = {"data": 1}

        before = time.monotonic()
        with pytest.raises((RequestTimeout, ExceptionGroup)) as raised:
            run(pipe, way, request, limit_s)
        assert time.monotonic() - before >= limit_s
        assert f"did not end within {limit_s:g} s" in str(getattr(raised.value, "exceptions", [raised.value])[0])
        assert isinstance(getattr(raised.value, "exceptions", [raised.value])[0], TimeoutError)
        assert request == {"data": 1}
        opened.set()
        if first is not None:
            assert first.result(WAIT_S)["result"] == "first"
        assert pipe({"data": "after"})["result"] == "after"
        assert pipe.stats()["failures"] == {"timeout": 1}
        counts_add_up(pipe)
    return batches


def test_p11_of_many_deadlines_exactly_the_past_ones_are_refused() -> None:
    """A hundred requests wait behind one; those whose time is over when the instance is free again have not run."""
    with Held() as held:
        short = [held.pipe.submit({"data": index}, timeout=0.01 + index / 10_000) for index in range(50)]
        long = [held.pipe.submit({"data": 100 + index}, timeout=WAIT_S) for index in range(50)]
        for future in short:
            assert isinstance(future.exception(WAIT_S), RequestTimeout)
        held.open()
        assert [future.result(WAIT_S)["result"] for future in long] == list(range(100, 150))
        assert held.pipe.stats()["failures"] == {"timeout": 50}
    assert all(data == "first" or data >= 100 for (data,) in held.batches)


def test_a_pipe_may_have_a_time_limit_for_all() -> None:
    """``request_timeout``; a request's own wins, and inf means none."""
    with Held(request_timeout=0.03) as held:
        assert isinstance(held.first.exception(WAIT_S), RequestTimeout)
        future = held.pipe.submit({"data": 1}, timeout=math.inf)
        with pytest.raises(RequestTimeout, match=r"within 0\.03 s"):
            held.pipe({"data": 2})
        held.opened.set()
        assert future.result(WAIT_S)["result"] == 1


def test_a_callback_of_a_late_request_must_not_wait_for_the_pipe() -> None:
    """It runs on the thread that keeps the deadlines: it is told so, and the other deadlines are kept."""
    told: list[BaseException | None] = []
    added = threading.Event()

    def callback(future: Any) -> None:
        try:
            held.pipe({"data": "again"})
        except PipeError as error:
            told.append(error)

    with Held() as held:
        _core._hook("expire", lambda: added.wait(WAIT_S))
        try:
            first = held.pipe.submit({"data": 1}, timeout=0.01)
            first.add_done_callback(callback)
            added.set()
            second = held.pipe.submit({"data": 2}, timeout=0.05)
            assert isinstance(second.exception(WAIT_S), RequestTimeout)
        finally:
            _core._hook("expire", None)
        assert "a callback of a future of this pipe must not wait" in str(told[0])


def test_a_later_request_with_an_earlier_deadline_is_in_time() -> None:
    """The clock's sleep is cut short."""
    with Held() as held:
        late = held.pipe.submit({"data": 1}, timeout=WAIT_S)
        early = held.pipe.submit({"data": 2}, timeout=0.02)
        assert isinstance(early.exception(WAIT_S / 2), RequestTimeout)
        assert not late.done()


def test_the_parts_of_a_request_are_on_its_time() -> None:
    """They are not run once it is over."""
    for limit_s in patiently(0.03):
        opened, inside = threading.Event(), threading.Event()
        batches: list[list[Any]] = []
        gate = Gate(opened=opened, inside=inside, batches=batches)
        with Pipe(m={"backend": "MapReduce", "jump": "part"}, part={"backend": gate}) as pipe:
            with pytest.raises(RequestTimeout):
                pipe.submit({"data": [1, 2, 3]}, timeout=limit_s).result(WAIT_S)
            opened.set()
            assert pipe({"data": [4]})["result"] == [4]
        if batches != [[4]]:
            break
    assert batches == [[1], [4]]


def test_timers_of_ended_requests_are_not_kept() -> None:
    """Ten thousand requests with an hour each leave next to nothing behind, and the pipe goes when it is dropped."""
    pipe = Pipe(backend="Identity", instance_num=2)
    for _ in range(100):
        futures = [pipe.submit({"data": index}, timeout=3600) for index in range(100)]
        for future in futures:
            future.result(WAIT_S)
    del future, futures
    assert threading.active_count() > 1
    gone = weakref.ref(pipe)
    del pipe
    until(lambda: gc.collect() >= 0 and gone() is None)  # a worker may just have handed the last answer out


@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_a_timeout_must_be_positive(timeout: float) -> None:
    """Nothing is accepted."""
    with Pipe(backend="Identity") as pipe:
        for start in (pipe, pipe.submit, lambda request, **k: asyncio.run(pipe.acall(request, **k))):
            with pytest.raises(ValueError, match="timeout must be more than 0 seconds"):
                start({"data": 1}, timeout=timeout)
        with pytest.raises(ValueError, match="timeout must be more than 0"):
            pipe.map([{"data": 1}], timeout=timeout)
        assert pipe.stats()["requests"]["accepted"] == 0


@pytest.mark.parametrize("is_bound", [False, True])
def test_an_eager_request_does_not_wait_longer_for_an_instance(is_bound: bool) -> None:
    """Also where it is to run on the node's own thread."""
    opened, inside = threading.Event(), threading.Event()
    batches: list[list[Any]] = []
    gate = Gate(opened=opened, inside=inside, batches=batches)
    gate.thread_bound = is_bound  # type: ignore[misc]
    with Pipe(backend=gate) as pipe:
        first = pipe.submit({"data": "first"})
        assert inside.wait(WAIT_S)
        with pytest.raises(RequestTimeout):
            pipe({"data": 1}, eager=True, timeout=0.03)
        assert not first.done()
        opened.set()
        assert first.result(WAIT_S)["result"] == "first"
        assert pipe({"data": 2}, eager=True)["result"] == 2
    assert batches == [["first"], [2]]


# ---- priorities ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("frozen_time")
def test_lower_goes_first_and_equals_keep_their_order() -> None:
    """A list of priorities, in the order in which they are served, if all come at the same time."""
    with Held() as held:
        priorities = [0, 5, -1, 0, 5, -2, 0]
        futures = [held.pipe.submit({"data": index}, priority=p) for index, p in enumerate(priorities)]
        held.open()
        concurrent.futures.wait(futures, WAIT_S)
    assert [data for (data,) in held.batches[1:]] == [5, 2, 0, 3, 6, 1, 4]


@pytest.mark.usefixtures("frozen_time")
@pytest.mark.parametrize("waited_ms", [99, 101])
def test_p20_nobody_starves(waited_ms: int) -> None:
    """What has waited for long enough goes before what came later and is more urgent: one step is worth 100 ms."""
    with Held() as held:
        patient = held.pipe.submit({"data": "patient"}, priority=1)
        _core._advance_time(waited_ms * 1_000_000)
        urgent = [held.pipe.submit({"data": index}, priority=0) for index in range(5)]
        held.open()
        concurrent.futures.wait([patient, *urgent], WAIT_S)
    expected: list[Any] = [0, 1, 2, 3, 4]
    expected.insert(0 if waited_ms > 100 else 5, "patient")
    assert [data for (data,) in held.batches[1:]] == expected


def test_a_priority_must_be_in_bounds() -> None:
    """Anything from -1000 to 1000."""
    with Pipe(backend="Identity") as pipe:
        with pytest.raises(ValueError, match="priority must be from -1000 to 1000, got 2000"):
            pipe({"data": 1}, priority=2000)
        with pytest.raises(ValueError, match="priority must be from -1000 to 1000, got nan"):
            pipe({"data": 1}, priority=math.nan)
        assert pipe({"data": 1}, priority=0.5)["result"] == 1


WAYS_TO_CALL: dict[str, Callable[..., Any]] = {
    "call": lambda pipe, **terms: pipe({"data": 1}, **terms),
    "list": lambda pipe, **terms: pipe([{"data": 1}], **terms),
    "eager": lambda pipe, **terms: pipe({"data": 1}, eager=True, **terms),
    "submit": lambda pipe, **terms: pipe.submit({"data": 1}, **terms),
    "map": lambda pipe, **terms: pipe.map([{"data": 1}], **terms),
    "amap": lambda pipe, **terms: pipe.amap([{"data": 1}], **terms),
    "acall": lambda pipe, **terms: asyncio.run(pipe.acall({"data": 1}, **terms)),
}


@pytest.mark.parametrize("way", WAYS_TO_CALL)
def test_terms_that_are_no_numbers_are_refused_with_what_is_allowed(way: str) -> None:
    """Text, truth values and others, by each way of calling; nothing is accepted. Numbers of other libraries are."""
    with Pipe(backend="Identity") as pipe:
        for wrong in ("high", "1", b"1", True, [1], 1j, np.True_):
            with pytest.raises(
                TypeError, match="priority must be a number from -1000 to 1000, of which lower ones go f"
            ):
                WAYS_TO_CALL[way](pipe, priority=wrong)
            with pytest.raises(TypeError, match="timeout must be a number of seconds, more than 0; got"):
                WAYS_TO_CALL[way](pipe, timeout=wrong)
        assert pipe.stats()["requests"]["accepted"] == 0
        for number in (5, 5.0, np.float32(5), np.int64(5), fractions.Fraction(5), decimal.Decimal(5)):
            assert pipe({"data": 1}, timeout=number, priority=number)["result"] == 1
        assert pipe({"data": 1}, timeout=math.inf)["result"] == 1


# ---- cancelled() -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("frozen_time")
@pytest.mark.parametrize("following", [{}, {"next": "last"}], ids=["leaf", "inner node"])
def test_who_gives_up_in_time_is_late_and_not_without_result(following: dict[str, str]) -> None:
    """The backend leaves no result as cancelled() says so: its caller is told of the time limit, not of the backend."""

    class GivesUp(Backend):
        def forward(self, batch: list[Request]) -> None:
            _core._advance_time(2_000_000_000)
            assert fastpipe.cancelled()

    nodes: dict[str, Any] = {"main": {"backend": GivesUp, **following}}
    if following:
        nodes["last"] = {"backend": "Identity"}
    with Pipe(nodes) as pipe:
        with pytest.raises(RequestTimeout):
            pipe({"data": 1}, timeout=1)
        assert pipe.stats()["failures"] == {"timeout": 1}


@pytest.mark.parametrize("how", ["future", "task", "timeout"])
def test_a_backend_may_ask_whether_anybody_waits(how: str) -> None:
    """It goes on until nobody does, and returns early."""
    inside, left = threading.Event(), threading.Event()

    class Long(Backend):
        thread_bound = True

        def forward(self, batch: list[Request]) -> None:
            inside.set()
            while not fastpipe.cancelled():
                time.sleep(0.001)
            left.set()

    with Pipe(backend=Long) as pipe:
        if how == "timeout":
            for limit_s in patiently(0.03):
                with pytest.raises(RequestTimeout):
                    pipe({"data": 1}, timeout=limit_s)
                if inside.is_set():
                    break
        elif how == "task":

            async def main() -> None:
                task = asyncio.create_task(pipe.acall({"data": 1}))
                while not inside.is_set():
                    await asyncio.sleep(0.001)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

            asyncio.run(main())
        else:
            walk = pipe._start({"data": 1}, None, 0)
            assert inside.wait(WAIT_S)
            assert walk.cancel()
        assert left.wait(WAIT_S)
    assert not fastpipe.cancelled()


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"max_queue": 0}, "node 'main': max_queue: must be between 1 and"),
        ({"max_queue": 5, "when_full": "drop"}, "must be one of 'block', 'reject', 'shed_oldest', got 'drop'"),
        ({"when_full": "reject"}, "when_full: there is no max_queue or max_queue_bytes"),
        ({"max_queue_bytes": "many"}, "max_queue_bytes: must be a whole number"),
        ({"request_timeout": -1}, "request_timeout: must be between 1e-06 and 1000000000 seconds"),
        ({"max_queu": 5}, "did you mean 'max_queue'?"),
        ({"max_in_fligth": 5}, "did you mean 'max_in_flight'?"),
        ({"when_overloaded": "reject"}, "configuration: when_overloaded: there is no max_in_flight"),
    ],
)
def test_mistaken_limits_are_said_in_words(keys: dict[str, Any], words: str) -> None:
    """Before anything is built."""
    with pytest.raises(ConfigError) as raised:
        Pipe(backend="Identity", **keys)
    assert words in str(raised.value)


# ---- the whole pipe --------------------------------------------------------------------------------------------------


def test_one_request_in_flight_is_said_in_the_singular() -> None:
    """And what happens beyond the limit may be said where it is what happens anyway."""
    Pipe(backend="Identity", when_overloaded="block").close()
    with Held(max_in_flight=1, when_overloaded="reject") as held:
        with pytest.raises(QueueFull, match="the pipe is full: 1 request is in flight, and its max_in_flight is 1"):
            held.pipe({"data": "more"})
        held.open()


def test_max_in_flight_refuses_what_is_one_too_many_and_says_the_numbers() -> None:
    """Queued and running count together; a place is free as soon as a request has ended, however it ends."""
    with Held(max_in_flight=3, when_overloaded="reject") as held:
        queued = [held.pipe.submit({"data": index}) for index in range(2)]
        with pytest.raises(QueueFull, match="the pipe is full: 3 requests are in flight, and its max_in_flight is 3"):
            held.pipe({"data": "more"})
        assert queued[0].cancel()
        again = held.pipe.submit({"data": "again"})
        with pytest.raises(QueueFull):
            held.pipe.submit({"data": "more"})
        held.open()
        assert again.result(WAIT_S)["result"] == "again"
        for index in range(10):
            assert held.pipe({"data": index})["result"] == index
        assert held.pipe.stats()["requests"]["refused"] == 2


@pytest.mark.parametrize("way", ["call", "submit", "acall", "list", "map"])
def test_max_in_flight_has_callers_wait_for_a_place(way: str) -> None:
    """Until their time is over; and they enter as soon as there is one."""
    with Held(max_in_flight=1) as held:
        with pytest.raises((RequestTimeout, ExceptionGroup)) as caught:
            run(held.pipe, way, {"data": 1}, 0.02)
        assert "for room in the pipe" in str(caught.value) or way == "list" or "waited in vain" in str(caught.value)
        entered = concurrent.futures.ThreadPoolExecutor(1)
        request: Request = {"data": 2}
        answer = entered.submit(run, held.pipe, way, request, WAIT_S)
        held.open()
        answer.result(WAIT_S)
        assert request["result"] == 2
        entered.shutdown()


def test_a_call_from_inside_is_part_of_a_request_that_has_entered() -> None:
    """Otherwise two of them would wait for each other's places."""

    class Calls(Backend):
        pipe: Pipe

        def forward(self, batch: list[Request]) -> None:
            batch[0]["result"] = self.pipe({"node_name": "inner", "data": batch[0]["data"]})["result"] + 1

    nodes = {"outer": {"backend": Calls, "instance_num": 2}, "inner": {"backend": "Identity"}}
    with Pipe(nodes, max_in_flight=2) as pipe:
        Calls.pipe = pipe
        futures = [pipe.submit({"node_name": "outer", "data": index}) for index in range(20)]
        assert [future.result(WAIT_S)["result"] for future in futures] == list(range(1, 21))
        del Calls.pipe


# ---- places of requests that nobody waits for ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["future", "task", "timeout"])
@pytest.mark.parametrize("limit", [{"max_queue": 1}, {"max_queue_bytes": 5}])
def test_p10_a_queued_request_that_is_given_up_frees_its_place_at_once(how: str, limit: dict[str, int]) -> None:
    """The instance is still busy, and the next one finds room."""
    with Held(when_full="reject", **limit) as held:
        for _ in range(100):
            if how == "future":
                future = held.pipe.submit({"data": b"fives"})
                with pytest.raises(QueueFull):
                    held.pipe.submit({"data": b"more"})
                assert future.cancel()
            elif how == "task":
                asyncio.run(given_up(held.pipe))
            else:
                with pytest.raises(RequestTimeout):
                    held.pipe({"data": b"fives"}, timeout=0.001)
        assert held.pipe.stats()["nodes"]["main"]["queued"] <= 64  # those that are gone are swept out
        last = held.pipe.submit({"data": b"fives"})
        held.open()
        assert last.result(WAIT_S)["result"] == b"fives"
        assert held.batches == [["first"], [b"fives"]]


async def given_up(pipe: Pipe) -> None:
    task = asyncio.create_task(pipe.acall({"data": b"fives"}))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_cancelled_future_is_told_to_those_who_wait_for_it() -> None:
    """concurrent.futures.wait() returns, although the instance is still busy."""
    with Held() as held:
        future = held.pipe.submit({"data": 1})
        assert future.cancel()
        assert concurrent.futures.wait([future], WAIT_S).done == {future}
        assert held.pipe.stats()["requests"]["cancelled"] == 1


# ---- waiting for room on a thread that has to make it ----------------------------------------------------------------


def test_a_backend_that_waits_for_room_in_its_own_full_queue_is_told_so() -> None:
    """CallLoop, for a call and for submit()."""

    class Calls(Backend):
        pipe: Pipe

        def forward(self, batch: list[Request]) -> None:
            if batch[0]["data"] == "outer":
                filler = self.pipe.submit({"data": "filler"})
                try:
                    self.pipe.submit({"data": "inner"})
                finally:
                    filler.cancel()
            batch[0]["result"] = True

    with Pipe(backend=Calls, max_queue=1) as pipe:
        Calls.pipe = pipe
        with pytest.raises(CallLoop, match="a backend waits for room for a call of its own pipe at node 'main'"):
            pipe.submit({"data": "outer"}).result(WAIT_S)
        assert pipe({"data": 1})["result"]
        del Calls.pipe


def test_a_callback_of_a_future_does_not_wait_for_room() -> None:
    """It runs on the thread that would have to make it: QueueFull, at once."""
    caught: list[BaseException] = []
    with Held(max_queue=1) as held:

        def again(_: Any) -> None:
            try:
                for _ in range(2):
                    held.pipe.submit({"data": "again"})
            except QueueFull as error:
                caught.append(error)

        held.first.add_done_callback(again)
        queued = held.pipe.submit({"data": 1})
        held.open()
        assert queued.result(WAIT_S)["result"] == 1
    assert len(caught) == 1
    assert any("a callback of a future does not wait for room" in note for note in caught[0].__notes__)


def test_a_list_that_sheds_and_then_fails_settles_what_it_has_shed() -> None:
    """The first of the list takes the place of a future, and is served; the second is refused for its size."""
    with Held(max_queue=1, max_queue_bytes=10, when_full="shed_oldest") as held:
        shed = held.pipe.submit({"data": b"1"})
        requests = [{"data": b"2"}, {"data": b"x" * 11}]
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            call = executor.submit(held.pipe, requests)
            assert isinstance(shed.exception(WAIT_S), QueueFull)
            held.open()
            group = call.exception(WAIT_S)
        assert isinstance(group, ExceptionGroup)
        (refused,) = group.exceptions
        assert isinstance(refused, QueueFull)
        assert "the request has 11, and its max_queue_bytes is 10" in str(refused)
        assert requests == [{"data": b"2", "result": b"2"}, {"data": b"x" * 11}]


def test_a_future_whose_time_is_over_as_it_starts_makes_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    """Its worker finds that it is over, and says nothing."""
    opened = threading.Event()

    class Waits(Backend):
        def forward(self, batch: list[Request]) -> None:
            assert opened.wait(WAIT_S)
            batch[0]["result"] = batch[0]["data"]

    with Pipe(backend=Waits) as pipe:
        first = pipe.submit({"data": 1})
        late = pipe.submit({"data": 2}, timeout=0.01)
        cancelled = pipe.submit({"data": 3})
        assert cancelled.cancel()
        assert concurrent.futures.wait([cancelled, late], WAIT_S).done == {cancelled, late}
        assert isinstance(late.exception(), RequestTimeout)
        opened.set()
        assert first.result(WAIT_S)["result"] == 1
    assert not caplog.records


def test_a_branch_that_ends_its_request_leaves_no_bytes_in_the_queue_of_another() -> None:
    """A request whose one branch is rejected never takes a place in the queue of the other."""
    opened = threading.Event()

    class Waits(Backend):
        def forward(self, batch: list[Request]) -> None:
            assert opened.wait(WAIT_S)
            batch[0]["result"] = batch[0]["data"]

    nodes = {
        "a": {"backend": "Identity", "next": "b,c"},
        "b": {"backend": Waits, "max_queue": 1, "when_full": "reject"},
        "c": {"backend": Waits, "max_queue_bytes": 1000, "when_full": "reject"},
    }
    with Pipe(nodes) as pipe:
        futures = [pipe.submit({"data": b"x" * 90}) for _ in range(12)]
        until(lambda: pipe.stats()["requests"]["failed"] >= 10)
        opened.set()
        concurrent.futures.wait(futures, WAIT_S)
        for _ in range(20):
            assert pipe({"data": b"x" * 900})["result"] == b"x" * 900


def test_a_coroutine_that_waits_for_room_for_many_bytes_sleeps() -> None:
    """There is some room, but not enough: it looks again when there is more, and not before."""
    with Held(max_queue_bytes=10) as held:
        held.pipe.submit({"data": b"123456"})
        started_s = time.process_time()
        with pytest.raises(RequestTimeout, match=r"the request waited 0\.5 s for room in the queue of node 'main'"):
            asyncio.run(acall(held.pipe, {"data": b"123456"}, 0.5))
        assert time.process_time() - started_s < 0.25


def test_a_time_limit_for_which_there_is_no_thread_leaves_nothing_in_the_books(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller is told; the next one, with a thread, has its limit kept."""
    with Held() as held:

        def start(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            held.pipe.submit({"data": 1}, timeout=0.01)
        assert held.pipe.stats()["requests"]["accepted"] == 1
        monkeypatch.undo()
        assert isinstance(held.pipe.submit({"data": 1}, timeout=0.01).exception(WAIT_S), RequestTimeout)


def test_a_callback_of_a_request_that_a_worker_finds_late_may_not_wait() -> None:
    """It runs on the worker, where the clock has not come first."""
    told: list[BaseException] = []
    reached, go_on = threading.Event(), threading.Event()

    def clock_is_late() -> None:
        if threading.current_thread().name == "fastpipe clock":
            reached.set()
            assert go_on.wait(WAIT_S)

    with Held() as held:

        def calls(_: Any) -> None:
            try:
                held.pipe({"data": 2})
            except PipeError as error:
                told.append(error)

        _core._hook("expire", clock_is_late)
        try:
            late = held.pipe.submit({"data": 1}, timeout=0.01)
            late.add_done_callback(calls)
            assert reached.wait(WAIT_S)
            held.open()
            assert isinstance(late.exception(WAIT_S), RequestTimeout)
        finally:
            go_on.set()
            _core._hook("expire", None)
    assert len(told) == 1
    assert "must not wait for the pipe" in str(told[0])


def test_a_request_that_skips_the_node_where_it_enters_leaves_its_place_there() -> None:
    """It will not queue there; others may."""
    opened, inside = threading.Event(), threading.Event()

    class Waits(Backend):
        def forward(self, batch: list[Request]) -> None:
            inside.set()
            assert opened.wait(WAIT_S)
            batch[0]["result"] = True

    def skips(request: Request) -> fastpipe.Status:
        return fastpipe.Status.Skip if request["data"] == "skip" else fastpipe.Status.Run

    nodes = {
        "a": {"backend": "Identity", "filter": skips, "max_queue": 1, "when_full": "reject", "next": "b"},
        "b": {"backend": Waits, "filter": "Run"},
    }
    with Pipe(nodes) as pipe:
        first = pipe.submit({"data": "skip"})
        assert inside.wait(WAIT_S)
        futures = [pipe.submit({"data": "skip"}) for _ in range(5)]
        opened.set()
        assert all(future.result(WAIT_S)["result"] for future in [first, *futures])
