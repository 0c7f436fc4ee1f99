"""Equal requests in flight at a node with a result cache: one runs for all, whoever leaves, fails or hangs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import logging
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from caches import Counts, S, answer, at, at_every, counts, followers
from helpers import SCALE, WAIT_S, Adds, Gate, opened, run_loop, until
from ledger import check_measures

from fastpipe import (
    Backend,
    BackendHung,
    DeviceLost,
    ItemErrors,
    NoResult,
    PerRequest,
    Pipe,
    PipeClosed,
    QueueFull,
    Request,
    RequestTimeout,
    WorkerDied,
    _core,
    cancelled,
)


class Planted(BaseException):
    """Nothing that a backend raised."""


# ---- equal requests in flight ---------------------------------------------------------------------------------------


def test_of_equal_requests_in_flight_one_runs() -> None:
    """Whoever asks: threads, futures, a list, coroutines. All are answered, each with values of its own."""
    gate = Gate()
    results: list[Any] = []

    def call(pipe: Pipe) -> None:
        results.extend(each["result"] for each in pipe([{"data": [1]}, {"data": [1]}]))

    async def ask(pipe: Pipe) -> None:
        results.extend(each["result"] for each in await asyncio.gather(*(pipe.acall({"data": [1]}) for _ in range(2))))

    with Pipe(backend=gate, cache="1MB", instance_num=1) as pipe:
        leader = pipe.submit({"data": [1]})
        assert gate.inside.wait(WAIT_S)
        threads = [threading.Thread(target=call, args=(pipe,)) for _ in range(2)]
        threads.append(threading.Thread(target=asyncio.run, args=(ask(pipe),)))
        for thread in threads:
            thread.start()
        followers(pipe, 6)
        assert pipe.stats()["nodes"]["main"]["queued"] == 0
        gate.opened.set()
        for thread in threads:
            thread.join(WAIT_S)
        results.append(leader.result(WAIT_S)["result"])
        assert results == [[1]] * 7
        assert len({id(each) for each in results}) == 7
        assert gate.batches == [[[1]]]
        check_measures(pipe.stats())


def test_each_follower_has_an_error_of_its_own() -> None:
    """A copy, with the notes that say where it comes from; the next request runs again."""
    gate = Gate()
    with Pipe(backend=gate, cache="1MB", cache_key=lambda request: request["id"]) as pipe:
        futures = [pipe.submit({"data": ValueError("bad"), "id": 1}) for _ in range(3)]
        followers(pipe, 2)
        gate.opened.set()
        errors = [future.exception(WAIT_S) for future in futures]
        assert [str(error) for error in errors] == ["bad"] * 3
        assert len({id(error) for error in errors}) == 3
        assert all("node 'main'" in error.__notes__[0] and len(error.__notes__) == 1 for error in errors)  # type: ignore
        assert pipe.stats()["requests"]["failed"] == 3
        assert answer(pipe, 1, id=1) == 1
        check_measures(pipe.stats())


def test_a_batch_that_fails_shares_each_error_with_those_it_concerns() -> None:
    """Of three contents in one batch one is bad: alone again, or by ItemErrors."""

    class Tells(Backend):
        max_batch = 8

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = request["data"]
            bad = [(request, ValueError("bad")) for request in batch if request["data"] == 1]
            if bad:
                raise ItemErrors(bad)

    for backend in (Adds(bad=(1,), max_batch=8), Tells()):
        with Pipe(backend=backend, cache="1MB") as pipe:
            with pytest.raises(ExceptionGroup) as raised:
                pipe([{"data": data} for data in (0, 1, 2, 0, 1, 2)])
            assert [str(error)[:3] for error in raised.value.exceptions] == ["bad", "bad"]
            assert pipe.stats()["requests"]["done"] == 4
            assert counts(pipe)["coalesced"] == 3
            assert counts(pipe)["entries"] == 2


def test_a_leader_that_leaves_before_it_ran_takes_nobody_along() -> None:
    """The work stays where it was in the queue, and runs for those who follow."""
    gate = Gate()
    with Pipe(backend=gate, cache="1MB", max=1) as pipe:
        busy = pipe.submit({"data": 0})
        assert gate.inside.wait(WAIT_S)
        leader, other = pipe.submit({"data": 1}), pipe.submit({"data": 2})
        follower = pipe.submit({"data": 1})
        assert leader.cancel()
        late = pipe.submit({"data": 1})
        gate.opened.set()
        assert [each.result(WAIT_S)["result"] for each in (busy, other, follower, late)] == [0, 2, 1, 1]
        assert gate.batches == [[0], [1], [2]]
        assert counts(pipe)["coalesced"] == 2
        check_measures(pipe.stats())


@pytest.mark.usefixtures("frozen_time")
@pytest.mark.parametrize("is_queued", [True, False])
def test_a_leader_that_is_too_late_takes_nobody_along(is_queued: bool) -> None:
    """Its own time is over; it runs, or has run, for the follower, who has time."""
    gate = Gate()
    with Pipe(backend=gate, cache="1MB", max=1) as pipe:
        busy = pipe.submit({"data": 0 if is_queued else 1}, timeout=5 if not is_queued else 100)
        assert gate.inside.wait(WAIT_S)
        leader = pipe.submit({"data": 1}, timeout=5) if is_queued else busy
        follower = pipe.submit({"data": 1}, timeout=100)
        followers(pipe, 1)
        _core._advance_time(6 * S)
        assert isinstance(leader.exception(WAIT_S), RequestTimeout)
        gate.opened.set()
        assert follower.result(WAIT_S)["result"] == 1
        assert gate.batches == ([[0], [1]] if is_queued else [[1]])
        assert answer(pipe, 1) == 1
        check_measures(pipe.stats())


@pytest.mark.usefixtures("frozen_time")
def test_who_comes_after_a_leader_that_was_too_late_runs() -> None:
    """The worker finds it late, before the pipe's clock does, and nobody follows: nobody is to wait for it."""
    gate = Gate()
    goes = threading.Event()

    def stops_the_clock() -> None:
        if "clock" in threading.current_thread().name:
            assert goes.wait(WAIT_S)

    with Pipe(backend=gate, cache="1MB", max=1) as pipe, at_every("expire", stops_the_clock):
        busy = pipe.submit({"data": 0})
        assert gate.inside.wait(WAIT_S)
        leader = pipe.submit({"data": 1}, timeout=5)
        _core._advance_time(6 * S)
        gate.opened.set()
        assert isinstance(leader.exception(WAIT_S), RequestTimeout)
        assert pipe.submit({"data": 1}).result(WAIT_S)["result"] == 1
        busy.result(WAIT_S)
        goes.set()
        assert gate.batches == [[0], [1]]


def test_a_follower_that_leaves_takes_nobody_along() -> None:
    """Neither by cancelling nor by running out of time; it is not run either."""
    gate = Gate()

    async def leave(pipe: Pipe) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pipe.acall({"data": 1}), 0.01)

    with Pipe(backend=gate, cache="1MB") as pipe:
        leader, cancels, stays = (pipe.submit({"data": 1}) for _ in range(3))
        assert gate.inside.wait(WAIT_S)
        assert cancels.cancel()
        asyncio.run(leave(pipe))
        with pytest.raises(RequestTimeout):
            pipe({"data": 1}, timeout=0.01)
        gate.opened.set()
        assert leader.result(WAIT_S)["result"] == stays.result(WAIT_S)["result"] == 1
        assert gate.batches == [[1]]
        assert pipe.stats()["requests"]["cancelled"] == 2
        check_measures(pipe.stats())


def test_what_nobody_waits_for_any_more_does_not_run() -> None:
    """Leader and followers have left while it was queued; who comes then runs."""
    gate = Gate()
    with Pipe(backend=gate, cache="1MB", max=1) as pipe:
        busy = pipe.submit({"data": 0})
        assert gate.inside.wait(WAIT_S)
        gone = [pipe.submit({"data": 1}) for _ in range(3)]
        assert [future.cancel() for future in gone] == [True] * 3
        gate.opened.set()
        busy.result(WAIT_S)
        until(lambda: pipe.stats()["nodes"]["main"]["queued"] == 0)
        assert gate.batches == [[0]]
        assert answer(pipe, 1) == 1


def test_a_backend_is_not_cancelled_while_somebody_follows() -> None:
    """What cancelled() says."""
    said: list[bool] = []
    inside, goes = threading.Semaphore(0), threading.Semaphore(0)

    class Asks(PerRequest):
        def run(self, request: Request) -> None:
            for _ in range(3):
                inside.release()
                assert goes.acquire(timeout=WAIT_S)
                said.append(cancelled())
            request["result"] = 1

    async def main(pipe: Pipe) -> None:
        leader = asyncio.create_task(pipe.acall({"data": 1}))
        follower = asyncio.create_task(pipe.acall({"data": 1}))
        await asyncio.to_thread(followers, pipe, 1)
        for task in (None, leader, follower):
            await asyncio.to_thread(inside.acquire, timeout=WAIT_S)  # what it said before is noted
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            goes.release()

    with Pipe(backend=Asks, cache="1MB") as pipe:
        run_loop(lambda: main(pipe))
    assert said == [False, False, True]


def test_an_exception_that_is_the_threads_is_not_shared() -> None:
    """Ctrl-C, or another exit of the leader's thread: a follower runs, and the others follow it."""

    class Exits(Gate):
        def forward(self, batch: list[Request]) -> None:
            super().forward(batch)
            if len(self.batches) == 1:
                raise KeyboardInterrupt

    gate = Exits()
    with Pipe(backend=gate, cache="1MB") as pipe:
        leader, *others = (pipe.submit({"data": 1}) for _ in range(4))
        assert gate.inside.wait(WAIT_S)
        gate.opened.set()
        assert [each.result(WAIT_S)["result"] for each in others] == [1, 1, 1]
        assert isinstance(leader.exception(WAIT_S), KeyboardInterrupt)
        assert len(gate.batches) == 2
        check_measures(pipe.stats())


def test_a_worker_that_dies_takes_no_follower_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its request fails; one of those who follow runs, on the worker that takes its place."""
    gate = Gate()
    monkeypatch.setattr(threading, "excepthook", lambda what: None)

    def dies() -> None:
        raise Planted

    with Pipe(backend=gate, cache="1MB") as pipe:
        busy = pipe.submit({"data": 0})
        assert gate.inside.wait(WAIT_S)
        leader, *others = (pipe.submit({"data": 1}) for _ in range(3))
        with at("forward", dies):
            gate.opened.set()
            assert isinstance(leader.exception(WAIT_S), WorkerDied)
        assert [each.result(WAIT_S)["result"] for each in (busy, *others)] == [0, 1, 1]
        check_measures(pipe.stats())


def test_those_who_follow_what_hangs_hang_with_it() -> None:
    """They fail with a BackendHung of their own, and the next runs in the new instance."""
    released = threading.Event()

    class Hangs(PerRequest):
        ran = 0

        def run(self, request: Request) -> None:
            Hangs.ran += 1
            if Hangs.ran == 1:
                assert released.wait(WAIT_S)
            request["result"] = Hangs.ran

    with Pipe(backend=Hangs, cache="1MB", hang_timeout=0.2) as pipe:
        futures = [pipe.submit({"data": 1}) for _ in range(3)]
        errors = [future.exception(WAIT_S) for future in futures]
        assert [type(error) for error in errors] == [BackendHung] * 3
        assert len({id(error) for error in errors}) == 3
        assert answer(pipe, 1) == 2
        released.set()
        check_measures(pipe.stats())


def test_those_who_follow_lose_the_device_with_the_leader() -> None:
    """Each with an error of its own."""

    class Loses(Gate):
        def forward(self, batch: list[Request]) -> None:
            super().forward(batch)
            raise DeviceLost("gone")

    gate = Loses()
    with Pipe(backend=gate, cache="1MB") as pipe:
        futures = [pipe.submit({"data": 1}) for _ in range(3)]
        gate.opened.set()
        assert {type(future.exception(WAIT_S)) for future in futures} == {DeviceLost}
        assert pipe.stats()["failures"] == {"device lost": 3}


def test_those_who_follow_what_has_no_result_have_none() -> None:
    """The error names the step, as the leader's does."""

    class Silent(Gate):
        def forward(self, batch: list[Request]) -> None:
            self.inside.set()
            assert self.opened.wait(WAIT_S)

    gate = Silent()
    with Pipe(backend=gate, cache="1MB") as pipe:
        futures = [pipe.submit({"data": 1}) for _ in range(3)]
        assert gate.inside.wait(WAIT_S)
        gate.opened.set()
        errors = [future.exception(WAIT_S) for future in futures]
        assert {(type(error), "step Silent gave no result" in str(error)) for error in errors} == {(NoResult, True)}
        assert pipe.stats()["nodes"]["main"]["without_result"] == 3


def test_those_who_follow_what_cannot_be_shared_run_themselves() -> None:
    """An answer that cannot be copied is the leader's; and so is one to an input that was changed in place."""

    class Objects(Gate):
        def forward(self, batch: list[Request]) -> None:
            super().forward(batch)
            for request in batch:
                request["result"] = object()

    class InPlace(Gate):
        def forward(self, batch: list[Request]) -> None:
            super().forward(batch)
            for request in batch:
                request["data"].append(2)

    for gate in (Objects(), InPlace()):
        with Pipe(backend=gate, cache="1MB", max=1) as pipe:
            futures = [pipe.submit({"data": [1]}) for _ in range(3)]
            assert gate.inside.wait(WAIT_S)
            gate.opened.set()
            results = [future.result(WAIT_S)["result"] for future in futures]
            assert len({id(result) for result in results}) == 3
            assert len(gate.batches) == 3
            assert counts(pipe)["bypassed"] == 2


def test_followers_go_on_in_their_own_contexts() -> None:
    """The nodes behind run on a worker, which is not in the context of the leader's caller."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    gate = Gate()

    class Reads(PerRequest):
        def run(self, request: Request) -> None:
            request["result"] = variable.get()

    def call(name: str, answers: list[str]) -> None:
        variable.set(name)
        answers.append(pipe({"data": 1})["result"])

    nodes: dict[str, Any] = {
        "first": {"backend": gate, "cache": "1MB", "next": "reads"},
        "reads": {"backend": Reads, "instance_num": 2},
    }
    with Pipe(nodes) as pipe:
        answers: dict[str, list[str]] = {name: [] for name in ("leader", "one", "other")}
        threads = [threading.Thread(target=call, args=(name, answers[name])) for name in answers]
        threads[0].start()
        assert gate.inside.wait(WAIT_S)
        for thread in threads[1:]:
            thread.start()
        followers(pipe, 2, "first")
        gate.opened.set()
        for thread in threads:
            thread.join(WAIT_S)
        assert answers == {name: [name] for name in answers}


def test_a_call_from_inside_a_backend_does_not_wait_for_itself() -> None:
    """The backend asks its own pipe for what it is just asked itself."""
    pipes: list[Pipe] = []

    class Asks(PerRequest):
        def run(self, request: Request) -> None:
            inner = request["data"] == "outer" and "is_inner" not in request
            request["result"] = pipes[0]({"data": "outer", "is_inner": 1})["result"] + 1 if inner else 1

    with Pipe(backend=Asks, cache="1MB", cache_key="data", instance_num=2) as pipe:
        pipes.append(pipe)
        assert answer(pipe, "outer") == 2
        pipes.clear()


# ---- room, closing, emptying ----------------------------------------------------------------------------------------


def test_who_follows_holds_no_place_in_the_queue() -> None:
    """A queue for one has a leader in it, and takes those who follow; but no other."""
    gate = Gate()
    with Pipe(backend=gate, cache="1MB", max=1, max_queue=1, when_full="reject") as pipe:
        busy = pipe.submit({"data": 0})
        assert gate.inside.wait(WAIT_S)
        follows = pipe.submit({"data": 0})
        leader = pipe.submit({"data": 1})
        with pytest.raises(QueueFull):
            pipe.submit({"data": 2})
        gate.opened.set()
        assert [each.result(WAIT_S)["result"] for each in (busy, follows, leader)] == [0, 0, 1]


def test_a_leader_that_has_left_holds_its_place_while_it_is_followed() -> None:
    """Its visit waits as before; without followers it makes room at once."""
    gate = Gate()
    with Pipe(backend=gate, cache="1MB", max=1, max_queue=2, when_full="reject") as pipe:
        busy = pipe.submit({"data": 0})
        assert gate.inside.wait(WAIT_S)
        leader, follower = pipe.submit({"data": 1}), pipe.submit({"data": 1})
        assert leader.cancel()
        other = pipe.submit({"data": 2})
        with pytest.raises(QueueFull):
            pipe.submit({"data": 3})
        assert other.cancel()
        last = pipe.submit({"data": 3})
        gate.opened.set()
        assert [each.result(WAIT_S)["result"] for each in (busy, follower, last)] == [0, 1, 3]
        assert gate.batches == [[0], [1], [3]]


def test_a_leader_that_left_alone_is_wanted_again() -> None:
    """It is still queued when an equal request comes, which follows it: it holds a place again, and one only."""
    gate = Gate()
    with Pipe(backend=gate, cache="1MB", max=1, max_queue=1, when_full="reject") as pipe:
        for number in (0, 10):
            gate.opened.clear()
            gate.inside.clear()
            busy = pipe.submit({"data": number})
            assert gate.inside.wait(WAIT_S)
            assert pipe.submit({"data": number + 1}).cancel()
            follower = pipe.submit({"data": number + 1})
            with pytest.raises(QueueFull):
                pipe.submit({"data": number + 2})
            gate.opened.set()
            assert [each.result(WAIT_S)["result"] for each in (busy, follower)] == [number, number + 1]
        assert gate.batches == [[0], [1], [10], [11]]
        assert counts(pipe)["coalesced"] == 2


def test_those_who_follow_what_is_shed_are_shed() -> None:
    """The leader was the oldest of a full queue."""
    gate = Gate()
    with Pipe(backend=gate, cache="1MB", max=1, max_queue=1, when_full="shed_oldest") as pipe:
        busy = pipe.submit({"data": 0})
        assert gate.inside.wait(WAIT_S)
        shed = [pipe.submit({"data": 1}) for _ in range(3)]
        stays = pipe.submit({"data": 2})
        assert {type(each.exception(WAIT_S)) for each in shed} == {QueueFull}
        gate.opened.set()
        assert stays.result(WAIT_S)["result"] == 2
        busy.result(WAIT_S)
        check_measures(pipe.stats())


def test_callers_that_come_and_go_do_not_pile_up() -> None:
    """A thousand followers of one slow batch that cancel leave nothing behind that grows with them."""
    gate = Gate()
    made: list[Any] = []

    class Data:
        def __del__(self) -> None:
            made.pop()

    with Pipe(backend=gate, cache="1MB", cache_key=lambda request: request["id"]) as pipe:
        leader = pipe.submit({"data": 1, "id": 1})
        assert gate.inside.wait(WAIT_S)
        for _ in range(1000):
            made.append(1)
            assert pipe.submit({"data": Data(), "id": 1}).cancel()
        assert len(made) < 100
        gate.opened.set()
        assert leader.result(WAIT_S)["result"] == 1
    assert not made


def test_closing_lets_followers_end() -> None:
    """And with a deadline they fail as all others do."""
    for timeout in (None, 0):
        gate = Gate()
        pipe = Pipe(backend=gate, cache="1MB")
        futures = [pipe.submit({"data": 1}) for _ in range(3)]
        assert gate.inside.wait(WAIT_S)
        closes = threading.Thread(target=pipe.close, args=(timeout,))
        closes.start()
        if timeout is not None:
            assert {type(future.exception(WAIT_S)) for future in futures} == {PipeClosed}
        gate.opened.set()
        closes.join(WAIT_S)
        if timeout is None:
            assert [future.result(WAIT_S)["result"] for future in futures] == [1, 1, 1]
        assert pipe.stats()["nodes"]["main"]["cache"]["bytes"] == 0


def test_emptying_forgets_what_is_there_and_what_is_on_its_way() -> None:
    """As where a model is swapped: who was in flight is answered, and who comes afterwards runs."""
    gate = opened()
    with Pipe({"one": {"backend": gate, "cache": "1MB"}, "other": {"backend": "Pow"}}) as pipe:
        assert pipe({"data": 1}, entry="one")["result"] == 1
        assert pipe.clear_cache() == 1
        gate.opened.clear()
        gate.inside.clear()
        before = [pipe.submit({"data": 1}, entry="one") for _ in range(2)]
        assert gate.inside.wait(WAIT_S)
        assert pipe.clear_cache("one") == 0
        after = pipe.submit({"data": 1}, entry="one")
        gate.opened.set()
        assert [future.result(WAIT_S)["result"] for future in (*before, after)] == [1, 1, 1]
        assert gate.batches == [[1]] * 3
        assert counts(pipe, "one")["not_kept"] == 1
        assert counts(pipe, "one")["entries"] == 1
        with pytest.raises(ValueError, match=r"no node 'other' has a cache.*\['one'\]"):
            pipe.clear_cache("other")


def test_whatever_happens_while_an_answer_is_taken_nobody_is_lost() -> None:
    """Between the copy of an answer and its keeping: one more follows, all are cancelled, the cache is emptied."""
    late: list[Any] = []
    acts: list[Callable[[Pipe, Any], Any]] = [
        lambda pipe, futures: late.append(pipe.submit({"data": 1})),
        lambda pipe, futures: [future.cancel() for future in futures],
        lambda pipe, futures: pipe.clear_cache(),
    ]
    for act in acts:
        gate = Gate()
        with Pipe(backend=gate, cache="1MB") as pipe:
            futures = [pipe.submit({"data": 1}) for _ in range(2)]
            assert gate.inside.wait(WAIT_S)
            with at("land", lambda act=act, pipe=pipe, futures=futures: act(pipe, futures)) as done:  # type: ignore
                gate.opened.set()
                until(lambda pipe=pipe: pipe.stats()["requests"]["in_flight"] == 0)  # type: ignore[misc]
            assert done
            assert [each.result(WAIT_S)["result"] for each in (*futures, *late) if not each.cancelled()]
            assert counts(pipe).get("entries", 0) == (act is not acts[2])
            check_measures(pipe.stats())
        late.clear()


def test_a_stepped_request_neither_leads_nor_follows() -> None:
    """A debugger shows what the node does, whatever is kept."""
    backend = Counts()
    with Pipe(backend=backend, cache="1MB") as pipe:
        answer(pipe, 1)
        with pipe.debug({"data": 1}) as debugger:
            debugger.run()
        assert backend.ran == [1, 1]
        assert answer(pipe, 1) == [1, 1]


class Fails(Backend):
    """Answers with a list of the data, or raises, as chance has it; some requests it cannot share."""

    max_batch = 4

    def __init__(self) -> None:
        self.chance = random.Random(1)

    def forward(self, batch: list[Request]) -> None:
        if self.chance.random() < 0.1:
            raise RuntimeError("now and then")
        for request in batch:
            time.sleep(0.0002)
            request["result"] = [request["data"], request["data"] * 2]
            if request["data"] == 0:
                request["object"] = object()


async def tasks(pipe: Pipe, own: random.Random) -> list[Any]:
    """Four requests side by side, of which one is cancelled: each with what it got."""
    requests = [{"data": own.randrange(4)} for _ in range(4)]
    calls = [asyncio.create_task(pipe.acall(request, timeout=limit(own))) for request in requests]
    await asyncio.sleep(own.random() / 1000)
    calls[own.randrange(4)].cancel()
    return [*zip(requests, await asyncio.gather(*calls, return_exceptions=True), strict=True)]


def limit(own: random.Random) -> float | None:
    return own.choice((None, None, None, 0.0005, 0.002))


def test_equal_requests_end_once_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight clients send few contents, leave, and run out of time; workers die, and the cache is emptied."""
    monkeypatch.setattr(threading, "excepthook", lambda what: None)
    monkeypatch.setattr(logging.getLogger("fastpipe"), "disabled", True)
    ends: Counter[str] = Counter()
    lock = threading.Lock()
    chance = random.Random(7)

    def dies() -> None:
        if chance.random() < 0.002:
            raise Planted

    def ended(request: Request, what: Any) -> None:
        if not isinstance(what, BaseException):
            assert request["result"] == [request["data"], request["data"] * 2], request
            request["result"].append("changed")
        with lock:
            ends[type(what).__name__ if isinstance(what, BaseException) else "done"] += 1

    def client(pipe: Pipe, seed: int, wrong: list[BaseException]) -> None:
        own = random.Random(seed)
        try:
            for _ in range(int(60 * SCALE) + 1):
                way = own.randrange(3)
                if way == 0:
                    for request, what in asyncio.run(tasks(pipe, own)):
                        ended(request, what)
                    continue
                requests = [{"data": own.randrange(4)} for _ in range(3)]
                futures = [pipe.submit(request, timeout=limit(own)) for request in requests]
                if way == 1:
                    futures[own.randrange(3)].cancel()
                for request, future in zip(requests, futures, strict=True):
                    cancelled = future.cancelled()
                    ended(request, concurrent.futures.CancelledError() if cancelled else future.exception(WAIT_S))
        except BaseException as error:
            wrong.append(error)

    with (
        Pipe(backend=Fails, instance_num=2, cache=3000, cache_ttl=0.02, max_queue=4, when_full="shed_oldest") as pipe,
        at_every("forward", dies),
    ):
        wrong: list[BaseException] = []
        threads = [threading.Thread(target=client, args=(pipe, seed, wrong)) for seed in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            pipe.clear_cache()
            threads[0].join(0.005)
        assert not wrong
        until(lambda: pipe.stats()["requests"]["in_flight"] == 0)
        counted = pipe.stats()["requests"]
        assert counted["accepted"] == sum(ends.values())
        assert counted["done"] >= ends["done"]  # a task may be cancelled when the answer is there already
        assert counted["cancelled"] <= ends["CancelledError"]
        until(lambda: pipe.stats()["nodes"]["main"]["queued"] == 0)
        cache = pipe.stations[0].cache
        assert cache is not None
        until(lambda: cache.flight_count == 0)  # what was cancelled may run yet
        assert cache.hits + cache.coalesced > cache.misses
        check_measures(pipe.stats())


def test_a_dropped_pipe_leaves_no_answer_behind() -> None:
    """Flights and answers refer to walks and values, and nothing refers to them."""

    class Data:
        pass

    gate = Gate()
    pipe = Pipe(backend=gate, cache="1MB", cache_key=lambda request: request["id"])
    data = Data()
    known = weakref.ref(data)
    futures = [pipe.submit({"data": data, "id": 1}) for _ in range(2)]
    gate.opened.set()
    for future in futures:
        future.result(WAIT_S)
    pipe.close()
    del futures, future, data, pipe, gate
    gc.collect()
    assert known() is None
