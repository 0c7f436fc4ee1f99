"""What ``submit`` returns is a ``concurrent.futures.Future`` to all who use one, and waits in little memory."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import copy
import gc
import logging
import pickle
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from helpers import WAIT_S, Gate, run_loop, until

from fastpipe import Backend, Pipe, Request, Status
from fastpipe._future import RequestFuture

BACKLOG = 200
"""More than the engine keeps the whole dicts of, see WHOLE_UP_TO in words.pxi."""


class Waiting:
    """A pipe whose only instance stands at a gate, and what was submitted to it."""

    def __init__(self, **keys: Any) -> None:
        self.gate = Gate()
        self.pipe = Pipe(backend=self.gate, **keys)
        self.first = self.pipe.submit({"data": "first"})
        assert self.gate.inside.wait(WAIT_S)

    def submit(self, data: Any) -> RequestFuture:
        future = self.pipe.submit({"data": data})
        assert isinstance(future, RequestFuture)
        return future


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    """What is submitted waits until the gate is opened."""
    waiting = Waiting(max=1)
    yield waiting
    waiting.gate.opened.set()
    waiting.pipe.close()


def has_condition(future: Future[Request]) -> bool:
    """Say whether somebody has had a condition made for it."""
    return any(isinstance(held, threading.Condition) for held in gc.get_referents(future))


# ---- the interface ---------------------------------------------------------------------------------------------------


def test_it_is_a_future_of_the_standard_library(waiting: Waiting) -> None:
    """By its class; and whatever a caller attaches to it stays."""
    future = waiting.submit(1)
    assert isinstance(future, Future)
    assert issubclass(RequestFuture, Future)
    future.tag = "mine"  # type: ignore[attr-defined]
    assert weakref.ref(future)() is future
    assert (future.done(), future.running(), future.cancelled()) == (False, False, False)
    assert waiting.first.running()
    assert repr(future).endswith("state=pending>")
    waiting.gate.opened.set()
    assert future.result(WAIT_S) == {"data": 1, "result": 1}
    assert repr(future).endswith("state=finished returned dict>")
    assert future.exception() is None
    assert (future.done(), future.running(), future.cancelled(), future.cancel()) == (True, False, False, False)
    assert future.tag == "mine"  # type: ignore[attr-defined]


def test_an_error_is_raised_and_returned(waiting: Waiting) -> None:
    """While one waits for it, and afterwards: the very object that the backend raised, or its copy."""
    error = ValueError("no")
    future = waiting.submit(error)
    waiting.gate.opened.set()
    assert isinstance(future.exception(WAIT_S), ValueError)
    for _ in range(2):
        with pytest.raises(ValueError, match="no") as raised:
            future.result()
        assert raised.value is future.exception()
    assert repr(future).endswith("state=finished raised ValueError>")


def test_waiting_for_what_does_not_come_ends_in_time(waiting: Waiting) -> None:
    """``timeout`` of result() and exception(): the future goes on."""
    future = waiting.submit(1)
    with pytest.raises(TimeoutError):
        future.result(0.001)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0)
    waiting.gate.opened.set()
    assert future.result(timeout=WAIT_S)["result"] == 1


def test_a_cancelled_one_says_so(waiting: Waiting) -> None:
    """In every way that the standard library's does."""
    future = waiting.submit(1)
    called: list[Future[Request]] = []
    future.add_done_callback(called.append)
    assert future.cancel()
    assert future.cancel()
    assert called == [future]
    assert (future.done(), future.running(), future.cancelled()) == (True, False, True)
    assert repr(future).endswith("state=cancelled>")
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    with pytest.raises(concurrent.futures.CancelledError):
        future.exception()


def test_wait_and_as_completed_take_it(waiting: Waiting) -> None:
    """With what has ended, what will, and what is cancelled."""
    cancelled, second, third = waiting.submit(1), waiting.submit(2), waiting.submit(3)
    cancelled.cancel()
    ended, pending = concurrent.futures.wait([cancelled, second], WAIT_S, concurrent.futures.FIRST_COMPLETED)
    assert (ended, pending) == ({cancelled}, {second})
    ended, pending = concurrent.futures.wait([second, third], 0.001)
    assert (ended, pending) == (set(), {second, third})
    threading.Timer(0.05, waiting.gate.opened.set).start()
    assert {*concurrent.futures.as_completed([cancelled, second, third], WAIT_S)} == {cancelled, second, third}
    assert concurrent.futures.wait([cancelled, second, third], WAIT_S).not_done == set()


def test_asyncio_awaits_and_cancels_it(waiting: Waiting) -> None:
    """wrap_future() has the answer of one, and cancels another."""

    async def main() -> None:
        answered, given_up = waiting.submit(1), waiting.submit(2)
        wrapped, cancelled = asyncio.wrap_future(answered), asyncio.wrap_future(given_up)
        cancelled.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert given_up.cancelled()
        waiting.gate.opened.set()
        assert (await wrapped)["result"] == 1

    run_loop(main)


def test_a_callback_is_called_once_whenever_it_comes(waiting: Waiting, caplog: pytest.LogCaptureFixture) -> None:
    """In their order; one that comes late at once, and what it raises is logged as the standard library does."""
    future = waiting.submit(1)
    called: list[int] = []
    for number in range(3):
        future.add_done_callback(lambda _, number=number: called.append(number))  # type: ignore[misc]
    waiting.gate.opened.set()
    until(lambda: len(called) == 3)

    def late(_: object) -> None:
        called.append(3)
        raise ValueError("in a callback")

    with caplog.at_level(logging.ERROR, "concurrent.futures"):
        future.add_done_callback(late)
    assert called == [0, 1, 2, 3]
    assert [record.getMessage()[:27] for record in caplog.records] == ["exception calling callback "]

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        future.add_done_callback(interrupted)


@pytest.mark.parametrize("dump", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_cannot_be_copied(waiting: Waiting, dump: Callable[[object], object]) -> None:
    """A copy would never end."""
    with pytest.raises(TypeError, match="cannot pickle 'RequestFuture' object"):
        dump(waiting.submit(1))


def test_what_an_executor_does_with_a_future_works() -> None:
    """The methods that the standard library has for executors, on one that the engine does not know."""
    answered, failed, cancelled, refused = (RequestFuture() for _ in range(4))
    assert answered.set_running_or_notify_cancel()
    with pytest.raises(RuntimeError, match="unexpected state"):
        answered.set_running_or_notify_cancel()
    heard: list[Future[Request]] = []
    answered.add_done_callback(heard.append)
    answered.set_result({"data": 1})
    assert (answered.result(), answered.exception(), heard) == ({"data": 1}, None, [answered])
    with pytest.raises(concurrent.futures.InvalidStateError):
        answered.set_result({})
    failed.set_exception(KeyError("x"))
    with pytest.raises(KeyError):
        failed.result()
    assert cancelled.cancel()
    assert not cancelled.set_running_or_notify_cancel()
    assert concurrent.futures.wait([answered, failed, cancelled], WAIT_S).not_done == set()
    with pytest.raises(TypeError):
        refused._state = 3  # type: ignore[assignment]


# ---- the condition that is made when somebody asks -------------------------------------------------------------------


def test_a_condition_is_made_for_those_who_wait_alone(waiting: Waiting) -> None:
    """Asking, callbacks, the end, its result, and cancelling need none."""
    future, cancelled, awaited = waiting.submit(1), waiting.submit(2), waiting.submit(3)
    future.add_done_callback(lambda _: None)
    assert (future.done(), future.running(), future.cancelled()) == (False, False, False)
    assert cancelled.cancel()
    with pytest.raises(TimeoutError):
        awaited.result(0)
    waiting.gate.opened.set()
    until(future.done)
    assert future.result()["result"] == 1
    assert [has_condition(each) for each in (future, cancelled, awaited)] == [False, False, True]


def test_two_who_ask_at_once_get_the_same_condition(waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one makes it, another has: 1. the first asks, 2. the second asks and has one, 3. the first goes on."""
    future = waiting.submit(1)
    make = RequestFuture.new_condition
    seconds: list[threading.Condition] = []

    def made_meanwhile() -> threading.Condition:
        monkeypatch.setattr(RequestFuture, "new_condition", make)
        asks = threading.Thread(target=lambda: seconds.append(future._condition))
        asks.start()
        asks.join(WAIT_S)
        return make()

    monkeypatch.setattr(RequestFuture, "new_condition", staticmethod(made_meanwhile))
    assert [future._condition] == seconds


@pytest.mark.parametrize("how", ["result", "wait", "as_completed"])
def test_who_waits_as_it_ends_does_not_wait_for_ever(
    waiting: Waiting, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """1. somebody begins to wait, 2. as the condition is made the request ends, which nobody tells, 3. it is seen."""
    future = waiting.submit(1)
    make = RequestFuture.new_condition

    def ends_meanwhile() -> threading.Condition:
        waiting.gate.opened.set()
        until(future.done)
        return make()

    monkeypatch.setattr(RequestFuture, "new_condition", staticmethod(ends_meanwhile))
    if how == "result":
        assert future.result()["result"] == 1
    elif how == "wait":
        assert concurrent.futures.wait([future]).done == {future}
    else:
        assert [*concurrent.futures.as_completed([future])] == [future]


def test_who_begins_to_wait_at_any_moment_is_woken() -> None:
    """Threads wait for futures in three ways while they end, with switches as often as can be: all come back."""
    interval_s = sys.getswitchinterval()
    ways: list[Callable[[Future[Request]], object]] = [
        lambda future: future.result(WAIT_S),
        lambda future: concurrent.futures.wait([future], WAIT_S).done.pop(),
        lambda future: next(concurrent.futures.as_completed([future], WAIT_S)),
    ]
    woken: list[int] = []

    def wait_in_turn(way: Callable[[Future[Request]], object], futures: list[Future[Request]]) -> None:
        for future in futures:
            way(future)
        woken.append(len(futures))

    sys.setswitchinterval(1e-6)
    try:
        with Pipe(backend=lambda data: data) as pipe:
            for _ in range(10):
                futures = [pipe.submit({"data": number}) for number in range(40)]
                threads = [threading.Thread(target=wait_in_turn, args=(way, futures)) for way in ways]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(WAIT_S)
    finally:
        sys.setswitchinterval(interval_s)
    assert woken == [40] * 30


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_a_queued_request_takes_at_most_700_bytes(waiting: Waiting) -> None:
    """Beyond its dict, and the list that keeps the future; 2,490 when every future had a lock."""
    requests: list[Request] = [{"data": None} for _ in range(2000)]
    futures: list[Any] = [None] * len(requests)

    def submit_all() -> float:
        before_bytes = tracemalloc.get_traced_memory()[0]
        for index, request in enumerate(requests):
            futures[index] = waiting.pipe.submit(request)
        return (tracemalloc.get_traced_memory()[0] - before_bytes) / len(requests)

    tracemalloc.start()
    try:
        bytes_each = contextvars.Context().run(submit_all)
    finally:
        tracemalloc.stop()
    waiting.gate.opened.set()
    assert {future.result(WAIT_S)["result"] for future in futures} == {None}
    assert bytes_each <= 700


@pytest.mark.parametrize("data", [None, 7, {"data": 1}, {}, []], ids=repr)
def test_a_request_that_waits_behind_many_is_what_it_was(waiting: Waiting, data: Any) -> None:
    """Whatever its data is: the very object reaches the backend, and the dict of the caller is filled in."""
    for number in range(BACKLOG):
        waiting.submit(number)
    request = {"data": data}
    future = waiting.pipe.submit(request)
    with_more = waiting.pipe.submit({"data": data, "more": 1})
    waiting.gate.opened.set()
    assert future.result(WAIT_S) is request
    assert request["result"] is data
    assert with_more.result(WAIT_S) == {"data": data, "more": 1, "result": data}
    assert waiting.gate.batches == [["first"], *([number] for number in range(BACKLOG)), [data], [data]]


def test_a_dict_that_somebody_else_has_stays_the_same_while_it_waits() -> None:
    """A filter has kept it: what the backend gets is that one."""
    seen: list[Request] = []
    ran: list[Request] = []
    gate = Gate()

    def keep(request: Request) -> Status:
        seen.append(request)
        return Status.Run

    class Notes(Backend):
        def forward(self, batch: list[Request]) -> None:
            gate.forward(batch)
            ran.extend(batch)

    with Pipe(main={"backend": Notes, "filter": keep}) as pipe:
        futures = [pipe.submit({"data": number}) for number in range(BACKLOG)]
        gate.opened.set()
        concurrent.futures.wait(futures, WAIT_S)
    assert [id(request) for request in ran] == [id(request) for request in seen]


def test_what_waits_behind_many_is_weighed_again_when_a_node_is_swapped() -> None:
    """A swap asks of all that is queued what it weighs: of whole dicts."""
    weighed: list[Request] = []
    gate = Gate()

    class Weighs(Backend):
        max_batch = 2

        def weigh(self, request: Request) -> float:
            weighed.append(dict(request))
            return 1.0

        def forward(self, batch: list[Request]) -> None:
            gate.forward(batch)

    with Pipe(main={"backend": Weighs, "batching": "greedy"}) as pipe:
        first = pipe.submit({"data": -1})
        assert gate.inside.wait(WAIT_S)
        futures = [pipe.submit({"data": number}) for number in range(BACKLOG)]
        swapping = threading.Thread(target=pipe.swap, args=("main",))
        swapping.start()
        until(lambda: len(weighed) == 1 + 2 * BACKLOG)
        gate.opened.set()
        swapping.join(WAIT_S)
        assert [future.result(WAIT_S)["result"] for future in [first, *futures]] == [-1, *range(BACKLOG)]
    queued = [{"data": number} for number in range(BACKLOG)]
    assert weighed == [{"data": -1}, *queued, *queued]


# ---- callers without context variables -------------------------------------------------------------------------------

SET: contextvars.ContextVar[int] = contextvars.ContextVar("set", default=0)


class Counts(Backend):
    """Answers what the variable is, and sets the next number."""

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = (*request.get("seen", ()), SET.get())
            request["seen"] = request["result"]
            SET.set(SET.get() + 1)


def test_requests_of_callers_without_variables_do_not_see_each_others() -> None:
    """What a node sets is seen by the next node of the same request, and by no other request."""
    nodes = {
        "a": {"backend": Counts, "max": 1, "next": "b"},
        "b": {"backend": Counts, "max": 1, "filter": lambda _: Status.Run},
    }
    with Pipe(nodes) as pipe:
        futures = [contextvars.Context().run(pipe.submit, {"data": number}) for number in range(5)]
        assert [future.result(WAIT_S)["result"] for future in futures] == [(0, 1)] * 5
