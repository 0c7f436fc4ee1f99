"""Turns in sequences, where what users wrote runs in between: destructors, slow keys, keys that come late."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from helpers import WAIT_S, Gate, time_stands_still, until
from sequences import Remembers, answer, states

from fastpipe import Backend, Pipe, PipeError, Request, RequestTimeout, Status, _core

S = 1_000_000_000


class Makes(Backend):
    """Leaves the state that its data makes."""

    stateful = True

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["state"] = request["data"]()
            request["result"] = None


class Calls:
    """Calls something when the collector finds it."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function
        self.cycle = self

    def __del__(self) -> None:
        self.function()


def test_a_destructor_that_runs_while_a_request_takes_its_turn_does_not_tear_the_sequence() -> None:
    """Wherever in submit() the collector runs, and cancels the only other request of the sequence."""
    backend = Remembers(is_open=False)
    cut = 0
    with _little_garbage(), Pipe(backend=backend, state_of="id", instance_num=1, max=1) as pipe:
        # More than Cython keeps for reuse, so that what a request needs is allocated, which makes the collector run.
        others = [pipe.submit({"data": 0, "id": "other"}) for _ in range(100)]
        backend.await_inside()
        found = []
        for after in range(40):
            key = f"{after}"
            first = pipe.submit({"data": 1, "id": key})
            second: Request = {"data": 2, "id": key}
            future = _submit_and_collect(pipe, second, first.cancel, after)
            found.append((first.cancelled(), future, pipe.submit({"data": 3, "id": key})))
            cut += first.cancelled()
        backend.opened.set()
        for was_cancelled, middle, last in found:
            seen = (2,) if was_cancelled else (1, 2)
            assert middle.result(WAIT_S)["result"] == seen
            assert last.result(WAIT_S)["result"] == (*seen, 3)
        assert others[-1].result(WAIT_S)["result"] == (0,) * 100
        assert states(pipe) == {"kept": 41, "started": 41}
    assert cut > 0


@contextmanager
def _little_garbage() -> Iterator[None]:
    """Have the collector look only at what is made from here on, which is quick."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _submit_and_collect(pipe: Pipe, request: Request, destructor: Callable[[], object], after: int) -> Any:
    """Submit a request, and have the collector run a destructor after so many allocations."""
    thresholds = gc.get_threshold()
    gc.disable()
    gc.collect()
    Calls(destructor)
    gc.set_threshold(gc.get_count()[0] + after, 1000, 1000)
    gc.enable()
    try:
        return pipe.submit(request)
    finally:
        gc.disable()
        gc.set_threshold(*thresholds)
        gc.collect()
        gc.enable()


@pytest.mark.parametrize("slow_call", [1, 2])
def test_a_request_that_ends_while_its_key_is_asked_leaves_no_turn_behind(slow_call: int) -> None:
    """A key is asked when the request is submitted, and again at the node; __index__ is the user's."""

    class Slow:
        calls = 0

        def __index__(self) -> int:
            self.calls += 1
            if self.calls == slow_call:
                until(lambda: pipe.stats()["requests"]["failed"] == 1)
            return 7

    with Pipe(backend=Remembers, state_of="id", instance_num=1) as pipe:
        future = pipe.submit({"data": 1, "id": Slow()}, timeout=0.02)
        assert isinstance(future.exception(WAIT_S), RequestTimeout)
        assert pipe.submit({"data": 2, "id": 7}).result(WAIT_S)["result"] == (2,)
        assert states(pipe) == {"kept": 1, "started": 1}


@pytest.mark.parametrize("way", ["replaced", "ended", "begun", "evicted", "expired", "expired, and its own"])
def test_a_state_whose_destructor_waits_for_the_pipe_is_refused_that(way: str) -> None:
    """It runs on a thread that has an instance, or is about to call the next one: it would wait for itself."""
    raised: list[BaseException] = []
    with time_stands_still(), Pipe(backend=Makes, state_of="id", max_states=1, state_ttl=60) as pipe:

        class Calls:
            def __del__(self) -> None:
                try:
                    pipe({"data": object, "id": "a"})
                except PipeError as error:
                    raised.append(error)

        answer(pipe, "a", Calls)
        keys = {"ended": {"sequence_end": True}, "begun": {"sequence_start": True}}.get(way, {})
        if way.startswith("expired"):
            _core._advance_time(60 * S)
        answer(pipe, "b" if way in ("evicted", "expired") else "a", object, **keys)
        assert [type(error) for error in raised] == [PipeError]
        answer(pipe, "a", object)


def test_a_key_that_comes_late_does_not_wait_for_those_who_wait_for_it() -> None:
    """The first gets its key at the node, behind the second, which waits elsewhere for the first.

    first:  keeps (late, behind the second's turn at keeps.again)
    second: other (behind the first's turn there), then keeps.again
    """
    slow = Gate()
    nodes = {
        "slow": {"backend": slow, "instance_num": 1, "max": 1, "filter": _is_slow, "next": "keeps"},
        "keeps": {"backend": Remembers, "state_of": "id", "filter": _names_itself, "next": "other"},
        "other": {"backend": Remembers, "state_of": "other", "filter": _goes_on, "next": "keeps.again"},
        "keeps.again": {"filter": _goes_on},
    }
    with Pipe(nodes) as pipe:
        first = pipe.submit({"data": 1, "id": "x", "later": "a", "other": 0, "is_slow": True})
        assert slow.inside.wait(WAIT_S)
        second = pipe.submit({"data": 2, "id": "a", "other": 0})
        until(lambda: pipe.stats()["nodes"]["other"]["states"]["waiting"] == 1)
        slow.opened.set()
        after_both = (2, 1)
        assert first.result(WAIT_S)["result"] == (*after_both, (after_both,))
        assert second.result(WAIT_S)["result"] == (*after_both, (after_both,), (after_both, (2,)))


def _goes_on(request: Request) -> Status:
    if "result" in request:
        request["data"] = request.pop("result")
    return Status.Run


def _is_slow(request: Request) -> Status:
    return Status.Run if "is_slow" in request else Status.Skip


def _names_itself(request: Request) -> Status:
    request["id"] = request.pop("later", request["id"])
    return _goes_on(request)


def test_steps_run_where_the_requests_before_have_left_the_state() -> None:
    """Of several places: which one that is, is known when the turn comes."""

    class At(Gate):
        stateful = True
        places = iter("ab")

        def __init__(self) -> None:
            super().__init__()
            self.place = next(self.places)
            self.inside, self.opened = inside, opened

        def forward(self, batch: list[Request]) -> None:
            super().forward(batch)
            for request in batch:
                request["result"] = request["state"] = (*(request["state"] or ()), self.place)

    def is_asked(request: Request) -> Status:
        if request["data"] == 2:
            asked.set()
        return Status.Run

    inside, opened, asked = threading.Event(), threading.Event(), threading.Event()
    with Pipe(backend=At, state_of="id", instance_num=2, filter=is_asked) as pipe:
        first = pipe.submit({"data": 1, "id": "a"})
        assert inside.wait(WAIT_S)
        second: Request = {"data": 2, "id": "a"}
        steps = threading.Thread(target=pipe, args=(second,), kwargs={"eager": True})
        steps.start()
        assert asked.wait(WAIT_S)
        opened.set()
        steps.join(WAIT_S)
        (place,) = first.result(WAIT_S)["result"]
        assert second["result"] == (place, place)


class Interrupts(Backend):
    """The result is all data of the sequence so far, and its title; Ctrl-C hits the main thread where told to."""

    stateful = True
    max_batch = 4

    def __init__(self, *, title: str, act: Callable[[], None]) -> None:
        self.title = title
        self.act = act

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["state"] = [*(request["state"] or ()), request["data"]]
            request["result"] = self.title, tuple(request["state"])
        if threading.current_thread() is threading.main_thread() and any("is_others" in request for request in batch):
            self.act()
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(WAIT_S)


@pytest.mark.parametrize("is_swapped", [False, True], ids=["same backend", "another backend"])
def test_ctrl_c_in_a_batch_with_others_requests_leaves_them_their_turns(is_swapped: bool) -> None:
    """One that goes back to the queue finds what it has found before, but no state of a backend that was replaced."""
    other: list[Any] = []
    swapping: list[threading.Thread] = []

    def act() -> None:
        if is_swapped:
            swapping.append(threading.Thread(target=pipe.swap, args=("main", {"title": "new"})))
            swapping[0].start()
            until(lambda: pipe.stats()["nodes"]["main"]["instances"]["switches"] == 1)

    def queue_others() -> None:
        """Just as the list's requests are queued: the worker has not looked yet."""
        if not other:
            other.append(None)
            other[0] = pipe.submit({"data": 2, "id": "a", "is_others": True})
            other.append(pipe.submit({"data": 3, "id": "a"}))

    with Pipe(backend=Interrupts, title="old", act=act, state_of="id", batching="greedy") as pipe:
        held = threading.Event()
        assert pipe.submit({"data": 1, "id": "a"}).result(WAIT_S)["result"] == ("old", (1,))
        _core._hook("take", lambda: threading.current_thread() is threading.main_thread() or held.wait(WAIT_S))
        _core._hook("pushed", queue_others)
        try:
            with pytest.raises(KeyboardInterrupt):
                pipe([{"data": 0, "id": f"own {number}"} for number in range(2)])
        finally:
            _core._hook("pushed", None)
            _core._hook("take", None)
            held.set()
        results = [future.result(WAIT_S)["result"] for future in other]
        if is_swapped:
            assert results == [("new", (2,)), ("new", (2, 3))]
            swapping[0].join(WAIT_S)
        else:
            assert results == [("old", (1, 2)), ("old", (1, 2, 3))]
