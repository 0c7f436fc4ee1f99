"""Bounded stress: everybody gets exactly one outcome, his own, whatever happens around him."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from fastpipe import Backend, ItemErrors, Pipe, PipeClosed, Request, Status

WAIT_S = 30.0


class Planned(Exception):
    """Raised for a request that was marked to fail."""


class Ledger:
    """By request: accepted, then exactly one of done, failed, cancelled; anything else is noted as wrong."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.states: dict[Any, str] = {}
        self.wrong: list[str] = []

    def accept(self, name: Any) -> None:
        with self.lock:
            if name in self.states:
                self.wrong.append(f"{name} was accepted twice")
            self.states[name] = "accepted"

    def end(self, name: Any, state: str, *allowed: str) -> None:
        with self.lock:
            if self.states.get(name) != "accepted":
                self.wrong.append(f"{name} ended as {state}, and was {self.states.get(name)}")
            if state not in allowed:
                self.wrong.append(f"{name} ended as {state}, and should have been one of {allowed}")
            self.states[name] = state

    def check(self) -> Counter[str]:
        """Fail if anything was wrong or is open; return how many ended how."""
        counts = Counter(self.states.values())
        assert not self.wrong, self.wrong[:5]
        assert not counts["accepted"], f"{counts['accepted']} requests have no outcome"
        return counts


def name_of(request: Request) -> Any:
    return request["data"]["name"]


class Works(Backend):
    """Answers with the request's own name; fails those that are marked, in one of three ways; is now and then slow.

    Watches its own contract: one batch at a time, 1..max requests, nobody more than twice, no cancelled one.
    """

    max_batch = 6
    wrong: list[str]

    def __init__(self, *, seed: int = 0, how: str = "raise", slow: float = 0.02) -> None:
        self.random = random.Random(seed)
        self.how = how
        self.slow = slow
        self.busy = threading.Lock()

    def forward(self, batch: list[Request]) -> None:
        if not self.busy.acquire(blocking=False):
            self.wrong.append("two batches at once in one instance")
            return
        try:
            self.run(batch)
        finally:
            self.busy.release()

    def run(self, batch: list[Request]) -> None:
        if not 1 <= len(batch) <= self.max_batch:
            self.wrong.append(f"a batch of {len(batch)}")
        if self.random.random() < self.slow:
            time.sleep(self.random.random() * 0.001)
        failed: dict[int, BaseException] = {}
        for index, request in enumerate(batch):
            request["seen"] = request.get("seen", 0) + 1
            if request["data"].get("fails_at") == id(type(self)):
                if self.how == "raise":
                    raise Planned(name_of(request))
                failed[index] = Planned(name_of(request))
            else:
                request["result"] = request["data"]
        if failed:
            raise ItemErrors(failed)


def make_backend(**attributes: Any) -> type[Works]:
    return type("Works", (Works,), {"wrong": [], **attributes})


class Client:
    """Sends requests in all ways there are, checks what comes back, and keeps the ledger."""

    def __init__(self, pipe: Pipe, ledger: Ledger, number: int, marks: list[int], *, cancels: bool = True) -> None:
        self.pipe = pipe
        self.ledger = ledger
        self.number = number
        self.random = random.Random(number)
        self.marks = marks
        self.cancels = cancels
        self.count = 0

    def request(self) -> Request:
        self.count += 1
        data: dict[str, Any] = {"name": (self.number, self.count)}
        if self.marks and self.random.random() < 0.1:
            data["fails_at"] = self.random.choice(self.marks)
        self.ledger.accept(data["name"])
        return {"data": data}

    def ended(self, request: Request, error: BaseException | None, *also: str) -> None:
        name = name_of(request)
        fails = "fails_at" in request["data"]
        if error is None:
            own = request.get("result") is request["data"]
            self.ledger.end(name, "done" if own else "somebody else's", "failed" if fails else "done", *also)
        elif isinstance(error, Planned):
            own = error.args == (name,) and "result" not in request
            self.ledger.end(name, "failed" if own else "somebody else's failure", "failed" if fails else "done", *also)
        elif isinstance(error, concurrent.futures.CancelledError | asyncio.CancelledError):
            self.ledger.end(name, "cancelled", "cancelled", *also)
        elif isinstance(error, PipeClosed):
            self.ledger.end(name, "closed", *also)
        else:
            self.ledger.end(name, repr(error), *also)

    def call(self, *also: str) -> None:
        request = self.request()
        try:
            self.pipe(request)
        except Exception as error:
            self.ended(request, error, *also)
        else:
            self.ended(request, None, *also)

    def call_list(self, *also: str) -> None:
        requests = [self.request() for _ in range(self.random.randrange(1, 8))]
        errors: dict[int, BaseException] = {}
        try:
            self.pipe(requests)
        except ExceptionGroup as group:
            for error in group.exceptions:
                (note,) = [note for note in error.__notes__ if "of a list of" in note]
                errors[int(note.split()[2])] = error
        except PipeClosed as error:
            errors = dict.fromkeys(range(len(requests)), error)
        for index, request in enumerate(requests):
            self.ended(request, errors.get(index), *also)

    def submit(self, *also: str) -> None:
        requests = [self.request() for _ in range(self.random.randrange(1, 8))]
        futures: list[concurrent.futures.Future[Request]] = []
        for request in requests:
            try:
                futures.append(self.pipe.submit(request))
            except PipeClosed as error:
                failed: concurrent.futures.Future[Request] = concurrent.futures.Future()
                failed.set_exception(error)
                futures.append(failed)
            if self.cancels and self.random.random() < 0.2:
                self.random.choice(futures).cancel()
        assert not concurrent.futures.wait(futures, WAIT_S).not_done
        for request, future in zip(requests, futures, strict=True):
            if future.cancelled():
                self.ended(request, concurrent.futures.CancelledError(), *also)
            else:
                self.ended(request, future.exception(), *also)

    def map(self, *also: str) -> None:
        requests = [self.request() for _ in range(self.random.randrange(1, 12))]
        answers = iter(self.pipe.map(requests, look_ahead=self.random.randrange(1, 6), return_exceptions=True))
        stop_after = self.random.randrange(0, 12) if self.cancels else 99
        for index, request in enumerate(requests):
            if index > stop_after:
                answers.close()  # type: ignore[attr-defined]
                for rest in requests[index:]:  # some ran, some were cancelled, some never taken: nobody looks
                    self.ledger.end(name_of(rest), "cancelled", "cancelled")
                return
            try:
                answer = next(answers)
            except PipeClosed as error:
                for rest in requests[index:]:
                    self.ended(rest, error, *also)
                return
            self.ended(request, answer if isinstance(answer, BaseException) else None, *also)

    def tasks(self, *also: str) -> None:
        asyncio.run(self.run_tasks(*also))

    async def run_tasks(self, *also: str) -> None:
        requests = [self.request() for _ in range(self.random.randrange(1, 12))]
        tasks = [asyncio.create_task(self.pipe.acall(request)) for request in requests]
        if self.cancels:
            await asyncio.sleep(0)
            self.random.choice(tasks).cancel()
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), WAIT_S)
        for request, outcome in zip(requests, outcomes, strict=True):
            self.ended(request, outcome if isinstance(outcome, BaseException) else None, *also)

    def run(self, turns: int) -> None:
        ways = [self.call, self.call, self.call_list, self.submit, self.map, self.tasks]
        for _ in range(turns):
            self.random.choice(ways)()


def run_clients(clients: list[Client], turns: int) -> None:
    with concurrent.futures.ThreadPoolExecutor(len(clients)) as executor:
        for future in [executor.submit(client.run, turns) for client in clients]:
            future.result(4 * WAIT_S)


def check_counters(pipe: Pipe, ended: int) -> None:
    counts = pipe.stats()["requests"]
    assert counts["in_flight"] == 0
    assert counts["accepted"] == counts["done"] + counts["failed"] + counts["cancelled"]
    assert counts["accepted"] <= ended


Build = Callable[[], tuple[dict[str, Any], list[type[Works]]]]


def single(**keys: Any) -> Build:
    def build() -> tuple[dict[str, Any], list[type[Works]]]:
        backend = make_backend(thread_bound=keys.get("thread_bound", False))
        return {"main": {"backend": backend, **{k: v for k, v in keys.items() if k != "thread_bound"}}}, [backend]

    return build


def diamond() -> tuple[dict[str, Any], list[type[Works]]]:
    """Five nodes: a filter that skips, a thread-bound branch, a join, item errors."""
    first, left, right, last = make_backend(), make_backend(thread_bound=True), make_backend(), make_backend()

    def skips_some(request: Request) -> Status:
        if name_of({"data": request["result"]})[1] % 3 == 0:
            return Status.Skip
        request["data"] = request.pop("result")
        return Status.Run

    nodes = {
        "first": {"backend": first, "next": "left,right", "instance_num": 2},
        "left": {"backend": left, "next": "join", "instance_num": 2, "how": "items"},
        "right": {"backend": right, "next": "middle", "max": 1},
        "middle": {"backend": make_backend(), "next": "join", "filter": skips_some},
        "join": {"backend": last, "map": "left[result:data],middle[result:other]", "instance_num": 2},
    }
    return nodes, [first, left, right, last]


def buckets() -> tuple[dict[str, Any], list[type[Works]]]:
    def bucket(self: Works, request: Request) -> int:
        return int(name_of(request)[1] % 4)

    backend = make_backend(bucket=bucket)
    return {"main": {"backend": backend, "instance_num": 3}}, [backend]


class Thirds:
    """A rule of a user's: waits for three."""

    def decide(self, load: dict[str, Any]) -> int:
        return 3 if load["queued"] >= 3 else 0


PIPES: dict[str, Build] = {
    "one instance": single(),
    "one instance, max 1": single(max=1),
    "three instances": single(instance_num=3),
    "thread bound": single(thread_bound=True, instance_num=2),
    "item errors": single(how="items", instance_num=2),
    "timeout": single(batching="timeout", batching_timeout=1),
    "greedy": single(batching="greedy", instance_num=2),
    "preferred": single(batching="preferred", preferred_batch_sizes=[2, 4], batching_timeout=1),
    "own rule": single(batching=Thirds(), batching_timeout=1, instance_num=2),
    "buckets": buckets,
    "diamond": diamond,
}


@pytest.fixture(autouse=True)
def no_garbage_before() -> None:
    gc.collect()


@pytest.mark.parametrize("kind", PIPES)
def test_everybody_gets_exactly_one_outcome_his_own(kind: str) -> None:
    """Eight threads, all ways of calling, one request in ten fails, some are cancelled: the ledger is exact."""
    nodes, backends = PIPES[kind]()
    ledger = Ledger()
    with Pipe(nodes) as pipe:
        marks = [id(backend) for backend in backends]
        run_clients([Client(pipe, ledger, number, marks) for number in range(8)], 150)
    counts = ledger.check()
    assert counts["done"] > 2000
    assert counts["failed"] > 100
    check_counters(pipe, sum(counts.values()))
    assert [wrong for backend in backends for wrong in backend.wrong] == []


@pytest.mark.parametrize("turn", range(6))
def test_closing_at_any_moment_loses_nobody(turn: int) -> None:
    """Clients at work when the pipe is closed, drained or not: each request is answered, fails or gets PipeClosed."""
    nodes, backends = (diamond, PIPES["thread bound"], PIPES["three instances"])[turn % 3]()
    ledger = Ledger()
    pipe = Pipe(nodes)
    clients = [Client(pipe, ledger, number, [], cancels=False) for number in range(6)]
    begun = threading.Barrier(7)

    def run(client: Client) -> None:
        begun.wait(WAIT_S)
        ways = [client.call, client.call_list, client.submit, client.map]
        while not any(state == "closed" for state in list(ledger.states.values())):
            client.random.choice(ways)("closed")

    with concurrent.futures.ThreadPoolExecutor(6) as executor:
        futures = [executor.submit(run, client) for client in clients]
        begun.wait(WAIT_S)
        while pipe.stats()["requests"]["done"] < 200:
            threading.Event().wait(0.001)
        pipe.close(timeout=None if turn < 3 else 0.0)
        for future in futures:
            future.result(WAIT_S)
    pipe.close()
    counts = ledger.check()
    assert counts["done"] > 100
    assert counts["closed"] > 0
    check_counters(pipe, sum(counts.values()))
    assert [wrong for backend in backends for wrong in backend.wrong] == []


def test_a_hand_over_is_never_forgotten() -> None:
    """Two clients meet again and again in front of a thread-bound node; a lost wake-up would leave one waiting."""
    pipe = Pipe(backend=make_backend(thread_bound=True), max=1)
    rounds = 4_000
    barrier = threading.Barrier(2)

    def client(number: int) -> None:
        for index in range(rounds):
            barrier.wait(WAIT_S)
            data = {"name": (number, index)}
            assert pipe({"data": data})["result"] is data

    with pipe, concurrent.futures.ThreadPoolExecutor(2) as executor:
        for future in [executor.submit(client, number) for number in range(2)]:
            future.result(4 * WAIT_S)
        assert pipe.stats()["requests"]["done"] == 2 * rounds


def test_map_reduce_of_many_callers_mixes_nothing_up() -> None:
    """Lists of random lengths through a shared graph, with failing elements left out."""
    works = make_backend()
    with Pipe(
        main={"backend": "MapReduce", "jump": "work", "on_error": "none"},
        work={"backend": works, "instance_num": 2},
    ) as pipe:

        def client(number: int) -> None:
            source = random.Random(number)
            for index in range(40):
                elements: list[dict[str, Any]] = [
                    {"name": (number, index, each)} for each in range(source.randrange(9))
                ]
                for element in elements:
                    if source.random() < 0.1:
                        element["fails_at"] = id(works)
                expected = [None if "fails_at" in element else element for element in elements]
                request = {"data": elements}
                answer = pipe(request) if index % 2 else pipe.submit(request).result(WAIT_S)
                assert answer["result"] == expected

        with concurrent.futures.ThreadPoolExecutor(6) as executor:
            for future in [executor.submit(client, number) for number in range(6)]:
                future.result(4 * WAIT_S)
    assert works.wrong == []


def test_a_pipe_closed_in_the_middle_of_a_list_ends_all_of_it() -> None:
    """A destructor, run while the list is being accepted, lets another thread close: no request is left in flight.

    1. The list's requests are being admitted; the garbage collector runs, and with it a destructor of the user's.
    2. The destructor waits until another thread has begun to close the pipe.
    3. The call raises PipeClosed, or is answered; either way close() comes to its end.
    """
    pipe = Pipe(backend=make_backend(), max=1)
    asked, armed = threading.Event(), threading.Event()

    def close() -> None:
        assert asked.wait(WAIT_S)
        pipe.close()

    class Garbage:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            if armed.is_set() and not asked.is_set():
                asked.set()
                while True:
                    try:
                        pipe.submit({"data": {}}).cancel()
                    except PipeClosed:
                        return

    closer = threading.Thread(target=close, daemon=True)
    closer.start()
    requests = [{"data": {"name": index}} for index in range(2000)]
    thresholds = gc.get_threshold()
    gc.disable()
    try:
        for _ in range(20):
            Garbage()
        armed.set()
        gc.set_threshold(1500, 1, 1)
        gc.enable()
        with contextlib.suppress(PipeClosed):
            pipe(requests)
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
    asked.set()
    closer.join(WAIT_S)
    assert not closer.is_alive()
    assert pipe.stats()["requests"]["in_flight"] == 0


def test_building_a_pipe_with_running_stations_is_safe() -> None:
    """Chains and joins are built while their first workers are up already: a hundred times, nothing goes wrong."""
    for turn in range(60):
        nodes = {
            f"n{index}": {"backend": Works, "instance_num": 2, "next": [f"n{index + 1}"] if index < 11 else []}
            for index in range(12)
        }
        Works.wrong = []
        with Pipe(nodes) as pipe:
            assert pipe({"data": {"name": turn}})["result"] == {"name": turn}
