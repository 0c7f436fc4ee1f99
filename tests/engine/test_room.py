"""Waiting for room: who is let in, in which order, and what becomes of those who do not wait to the end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import random
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import until

from fastpipe import Backend, BackendError, Pipe, PipeClosed, QueueFull, Request, RequestTimeout

WAIT_S = 20.0


class Gate(Backend):
    """Runs only while it is open; notes the data of what it runs."""

    def __init__(self) -> None:
        self.opened, self.inside = threading.Event(), threading.Event()
        self.ran: list[Any] = []

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            self.ran.append(request["data"])
        self.inside.set()
        assert self.opened.wait(WAIT_S)
        for request in batch:
            request["result"] = request["data"]


class Held:
    """A pipe whose only instance holds a first request until ``open`` is called."""

    def __init__(self, **keys: Any) -> None:
        self.gate = Gate()
        self.pipe = Pipe(backend=self.gate, **keys)
        self.first = self.pipe.submit({"data": "1"})
        assert self.gate.inside.wait(WAIT_S)

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *raised: object) -> None:
        self.gate.opened.set()
        self.pipe.close()

    def open(self) -> None:
        self.gate.opened.set()
        assert self.first.result(WAIT_S)["result"] == "1"

    def wait_for_arrivals(self, count: int) -> None:
        until(lambda: self.pipe.arrivals == count)


class Loop:
    """An event loop on a thread of its own, which stands still while ``stopped``."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def start(self, pipe: Pipe, request: Request) -> concurrent.futures.Future[Request]:
        return asyncio.run_coroutine_threadsafe(pipe.acall(request), self.loop)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        go_on = threading.Event()
        self.loop.call_soon_threadsafe(lambda: go_on.wait(WAIT_S))
        try:
            yield
        finally:
            go_on.set()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(WAIT_S)
        self.loop.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def executor() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(64) as made:
        yield made


LIMITS = [{"max_queue": 1}, {"max_in_flight": 1}, {"max_queue_bytes": 3}]


def fill(held: Held, limit: dict[str, int]) -> list[bytes]:
    """Take the place that is left, if there is one; return its request's data."""
    if "max_in_flight" in limit:
        return []
    held.pipe.submit({"data": b"00"})
    return [b"00"]


# ---- the order -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", LIMITS)
def test_first_come_first_served_whoever_waits(
    limit: dict[str, int], loop: Loop, executor: concurrent.futures.ThreadPoolExecutor
) -> None:
    """Threads that call, threads that submit and coroutines stand in one line."""
    futures: list[concurrent.futures.Future[Request]] = []
    with Held(**limit) as held:
        filled = fill(held, limit)
        for number in range(1, 31):
            request = {"data": b"%02d" % number}
            if number % 3 == 0:
                futures.append(executor.submit(held.pipe, request))  # type: ignore[arg-type]
            elif number % 3 == 1:
                futures.append(loop.start(held.pipe, request))
            else:
                futures.append(executor.submit(lambda request=request: held.pipe.submit(request).result(WAIT_S)))
            held.wait_for_arrivals(number)
        held.open()
        assert [future.result(WAIT_S)["result"] for future in futures] == [b"%02d" % number for number in range(1, 31)]
        assert held.gate.ran == ["1", *filled, *[b"%02d" % number for number in range(1, 31)]]


def test_a_small_request_does_not_overtake_a_large_one(loop: Loop) -> None:
    """There is room for it, but not for the one that came before."""
    with Held(max_queue_bytes=10) as held:
        futures = [held.pipe.submit({"data": b"6" * 6})]
        for number, data in enumerate((b"8" * 8, b"2" * 2)):
            futures.append(loop.start(held.pipe, {"data": data}))
            held.wait_for_arrivals(number + 1)
        held.open()
        assert all(future.result(WAIT_S) for future in futures)
        assert held.gate.ran == ["1", b"6" * 6, b"8" * 8, b"2" * 2]


def test_who_gives_up_the_first_place_lets_the_next_go_who_needs_less(
    executor: concurrent.futures.ThreadPoolExecutor,
) -> None:
    """A large request runs out of time; the small one behind it is let in at once, while the instance is still busy."""
    with Held(max_queue_bytes=10) as held:
        held.pipe.submit({"data": b"6" * 6})
        late = executor.submit(held.pipe, {"data": b"8" * 8}, timeout=0.3)
        held.wait_for_arrivals(1)
        small = executor.submit(held.pipe, {"data": b"2" * 2}, timeout=WAIT_S)
        held.wait_for_arrivals(2)
        assert isinstance(late.exception(WAIT_S), RequestTimeout)
        until(lambda: held.pipe.stats()["nodes"]["main"]["queued"] == 2)
        held.open()
        assert small.result(WAIT_S)["result"] == b"22"


def test_who_waits_for_one_node_keeps_nobody_from_another(executor: concurrent.futures.ThreadPoolExecutor) -> None:
    """The pipe has places, the node has none: those for another node go in; and the other way round."""
    gates = {"x": Gate(), "y": Gate()}
    nodes = {name: {"backend": gate, "max_queue": 1} for name, gate in gates.items()}
    with Pipe(nodes, max_in_flight=6) as pipe:
        calls = [pipe.submit({"node_name": "x", "data": 0})]
        assert gates["x"].inside.wait(WAIT_S)
        calls.append(pipe.submit({"node_name": "x", "data": 1}))
        for index in range(3):
            calls.append(executor.submit(pipe, {"node_name": "x", "data": 2 + index}))  # type: ignore[arg-type]
            until(lambda index=index: pipe.arrivals == index + 1)
        gates["y"].opened.set()
        for index in range(10):
            assert pipe({"node_name": "y", "data": index}, timeout=WAIT_S)["result"] == index
        gates["x"].opened.set()
        assert [call.result(WAIT_S)["result"] for call in calls] == list(range(5))


def test_the_pipes_places_go_to_who_came_first_for_whatever_node(
    executor: concurrent.futures.ThreadPoolExecutor,
) -> None:
    """Callers of two nodes wait for the one place in the pipe, by turns."""
    gate = Gate()

    class Notes(Backend):
        def forward(self, batch: list[Request]) -> None:
            gate.ran.append(batch[0]["data"])
            batch[0]["result"] = True

    with Pipe({"x": {"backend": gate}, "y": {"backend": Notes}}, max_in_flight=1) as pipe:
        first = pipe.submit({"node_name": "x", "data": "first"})
        assert gate.inside.wait(WAIT_S)
        calls = []
        for index in range(10):
            request = {"node_name": "xy"[index % 2], "data": index}
            calls.append(executor.submit(pipe, request))
            until(lambda index=index: pipe.arrivals == index + 1)
        gate.opened.set()
        assert all(call.result(WAIT_S) for call in [first, *calls])
        assert gate.ran == ["first", *range(10)]


# ---- how much work it is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [{"max_queue": 8}, {"max_in_flight": 8}, {"max_queue": 8, "max_in_flight": 9}])
def test_waiting_costs_the_same_however_many_wait(limit: dict[str, int]) -> None:
    """4,000 coroutines wait for 8 places: whether one may go is looked at a few times for each, not thousands."""
    count = 4_000

    async def main(pipe: Pipe) -> list[Any]:
        return [answer["result"] for answer in await asyncio.gather(*[pipe.acall({"data": n}) for n in range(count)])]

    with Pipe(backend="Identity", **limit) as pipe:
        assert asyncio.run(main(pipe)) == list(range(count))
        assert count // 2 < pipe.arrivals <= count
        assert pipe.looks <= 5 * count


def test_as_many_threads_are_woken_as_there_are_places() -> None:
    """100 threads and 2 places: each request is looked at a few times; a herd would look at all that wait each time."""
    each, clients = 20, 100

    def client(pipe: Pipe) -> None:
        for index in range(each):
            assert pipe({"data": index})["result"] == index

    with Pipe(backend="Identity", max_queue=2, max_in_flight=3) as pipe:
        threads = [threading.Thread(target=client, args=(pipe,)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert pipe.stats()["requests"]["done"] == each * clients
        assert pipe.looks <= 6 * each * clients


# ---- those who do not wait to the end --------------------------------------------------------------------------------


def test_an_event_loop_that_stands_still_holds_up_nobody(loop: Loop) -> None:
    """A coroutine's request is let in, and run, without its loop; the next one waits as for any other."""
    with Held(max_in_flight=1) as held:
        coroutine = loop.start(held.pipe, {"data": b"loop"})
        held.wait_for_arrivals(1)
        with loop.stopped():
            held.open()
            assert held.pipe({"data": b"next"}, timeout=WAIT_S)["result"] == b"next"
            assert held.gate.ran == ["1", b"loop", b"next"]
        assert coroutine.result(WAIT_S)["result"] == b"loop"


def test_a_signals_handler_may_call_the_pipe_while_its_thread_waits_for_room() -> None:
    """The thread that runs the handler is let in after it: otherwise it would wait for itself."""
    answers: list[Any] = []

    with Held(max_in_flight=1) as held:
        before = signal.signal(
            signal.SIGUSR1, lambda *_: answers.append(held.pipe({"data": b"handler"}, timeout=WAIT_S)["result"])
        )

        def interrupt() -> None:
            held.wait_for_arrivals(1)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            held.wait_for_arrivals(2)
            held.gate.opened.set()

        helper = threading.Thread(target=interrupt)
        helper.start()
        try:
            answers.append(held.pipe({"data": b"main"}, timeout=WAIT_S)["result"])
        finally:
            helper.join(WAIT_S)
            signal.signal(signal.SIGUSR1, before)
    assert answers == [b"handler", b"main"]


@pytest.mark.parametrize("limit", LIMITS)
def test_a_waiting_coroutine_that_is_cancelled_leaves_the_line(limit: dict[str, int], loop: Loop) -> None:
    """Wherever it stands; the others are served in their order."""
    with Held(**limit) as held:
        filled = fill(held, limit)
        coroutines = []
        for number in range(9):
            coroutines.append(loop.start(held.pipe, {"data": b"%02d" % number}))
            held.wait_for_arrivals(number + 1)
        for index in (0, 4, 8):
            coroutines[index].cancel()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), loop.loop).result(WAIT_S)  # until they have been told
        held.open()
        for index in (1, 2, 3, 5, 6, 7):
            assert coroutines[index].result(WAIT_S)["result"] == b"%02d" % index
        assert held.gate.ran == ["1", *filled, *[b"%02d" % number for number in (1, 2, 3, 5, 6, 7)]]
        assert held.pipe.stats()["requests"]["accepted"] == 7 + len(filled)


def test_closing_refuses_all_who_wait(loop: Loop, executor: concurrent.futures.ThreadPoolExecutor) -> None:
    """Threads and coroutines, at once, while the instance is still busy."""
    held = Held(max_queue=1)
    fill(held, {})
    waiting = []
    for index in range(6):
        request = {"data": b"x"}
        waiting.append(loop.start(held.pipe, request) if index % 2 else executor.submit(held.pipe, request))
        held.wait_for_arrivals(index + 1)
    closing = executor.submit(held.pipe.close)
    assert all(isinstance(future.exception(WAIT_S), PipeClosed) for future in waiting)
    held.open()
    closing.result(WAIT_S)


@pytest.mark.parametrize(
    ("limit", "places"),
    [
        ({"max_queue": 3}, 3),
        ({"max_in_flight": 3}, 2),
        ({"max_queue_bytes": 6}, 3),
        ({"max_queue": 5, "max_in_flight": 4}, 3),
    ],
)
def test_no_place_is_lost_whatever_happens_to_those_who_wait(limit: dict[str, int], places: int) -> None:
    """Many threads and coroutines are cancelled or run out of time as they are let in: then all places are free."""
    gate = Gate()
    gate.opened.set()

    def client(seed: int) -> None:
        source = random.Random(seed)
        for _ in range(60):
            with contextlib.suppress(RequestTimeout):
                pipe({"data": b"xx"}, timeout=source.choice([0.0003, 0.001, WAIT_S]))

    async def one(source: random.Random) -> None:
        task = asyncio.create_task(pipe.acall({"data": b"xx"}, timeout=source.choice([0.001, WAIT_S])))
        await asyncio.sleep(source.choice([0, 0.0003, 0.001, 0.02]))
        if source.random() < 0.5:
            task.cancel()
        with contextlib.suppress(RequestTimeout, asyncio.CancelledError):
            await task

    async def many(seed: int) -> None:
        source = random.Random(seed)
        for _ in range(10):
            await asyncio.gather(*[one(source) for _ in range(20)])

    with Pipe(backend=gate, **limit) as pipe:
        with concurrent.futures.ThreadPoolExecutor(8) as storm:
            clients = [storm.submit(client, seed) for seed in range(6)]
            clients += [storm.submit(asyncio.run, many(seed)) for seed in range(2)]
            for done in clients:
                done.result()
        until(lambda: pipe.in_flight == 0)
        gate.inside.clear()
        gate.opened.clear()
        futures = [pipe.submit({"data": b"yy"})]
        assert gate.inside.wait(WAIT_S)
        futures += [pipe.submit({"data": b"yy"}, timeout=WAIT_S) for _ in range(places)]
        with pytest.raises(RequestTimeout):
            pipe.submit({"data": b"yy"}, timeout=0.01)
        gate.opened.set()
        assert all(future.result(WAIT_S) for future in futures)


# ---- lists and map ---------------------------------------------------------------------------------------------------


def test_a_list_longer_than_the_room_is_refused_request_by_request(
    executor: concurrent.futures.ThreadPoolExecutor,
) -> None:
    """Those for which there is room are served; each of the others fails on its own, and says which it is."""
    with Held(max_queue=2, when_full="reject") as held:
        requests = [{"data": index} for index in range(6)]
        call = executor.submit(held.pipe, requests)  # type: ignore[arg-type]
        until(lambda: held.pipe.stats()["requests"]["refused"] == 4)
        assert not call.done()
        held.open()
        group = call.exception(WAIT_S)
        assert isinstance(group, ExceptionGroup)
        assert group.message == "4 of 6 requests failed"
        assert all(isinstance(error, QueueFull) for error in group.exceptions)
        assert [error.__notes__ for error in group.exceptions] == [
            [f"fastpipe: request {index} of a list of 6"] for index in (2, 3, 4, 5)
        ]
        assert [request.get("result") for request in requests] == [0, 1, None, None, None, None]
        assert held.pipe.stats()["requests"]["accepted"] == 3


def test_an_eager_list_is_refused_request_by_request() -> None:
    """The one that is too large fails; those before and behind it are served."""
    with Pipe(backend="Identity", max_queue_bytes=3) as pipe:
        requests = [{"data": b"1"}, {"data": b"too large"}, {"data": b"3"}]
        with pytest.raises(ExceptionGroup) as raised:
            pipe(requests, eager=True)
        (error,) = raised.value.exceptions
        assert isinstance(error, QueueFull)
        assert error.__notes__ == ["fastpipe: request 1 of a list of 3"]
        assert [request.get("result") for request in requests] == [b"1", None, b"3"]


@pytest.mark.parametrize(
    "limit",
    [
        {"max_queue": 2, "when_full": "reject"},
        {"max_queue": 2, "when_full": "shed_oldest"},
        {"max_in_flight": 2, "when_overloaded": "reject"},
        {"max_queue": 2},
    ],
)
def test_map_waits_for_room_whatever_when_full_says(limit: dict[str, Any]) -> None:
    """It takes more ahead than there is room for, and all are served; another caller is still refused."""
    with Held(**limit) as held:
        answers = held.pipe.map([{"data": index} for index in range(50)], look_ahead=20)
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            taking = executor.submit(lambda: [answer["result"] for answer in answers])
            held.wait_for_arrivals(1)
            if "reject" in limit.values():
                with pytest.raises(QueueFull):
                    held.pipe({"data": "other"})
            held.open()
            assert taking.result(WAIT_S) == list(range(50))
        assert held.pipe.stats()["failures"] == {}


def test_map_yields_every_failure_with_its_request() -> None:
    """Of a backend, of what is no request, and of one for which there was no room in time; the rest is served."""

    class Fails(Gate):
        def forward(self, batch: list[Request]) -> None:
            super().forward(batch)
            if batch[0]["data"] == "bad":
                raise ValueError("bad")

    gate = Fails()
    with Pipe(backend=gate, max_queue=1) as pipe:
        first = pipe.submit({"data": "first"})
        assert gate.inside.wait(WAIT_S)
        queued = pipe.submit({"data": "queued"})
        requests: list[Any] = [{"data": "late"}, 5, {"data": "later", "node_name": "nobody"}]
        answers = list(pipe.map(requests, return_exceptions=True, timeout=0.02))
        assert [type(answer).__name__ for answer in answers] == ["RequestTimeout", "TypeError", "UnknownNode"]
        for answer, request in zip(answers, requests, strict=True):
            assert answer.failed_request is request  # type: ignore[union-attr]
        gate.opened.set()
        assert first.result(WAIT_S)
        assert queued.result(WAIT_S)
        requests = [{"data": "good"}, {"data": "bad"}, {"data": "good"}]
        good, bad, again = pipe.map(requests, return_exceptions=True)
        assert good is requests[0]
        assert again is requests[2]
        assert isinstance(bad, ValueError)
        assert bad.failed_request is requests[1]  # type: ignore[attr-defined]


def test_map_ends_with_a_pipe_that_is_closed() -> None:
    """No request after that has a chance: it would yield PipeClosed for ever where requests are endless."""
    pipe = Pipe(backend="Identity")
    answers = iter(pipe.map(({"data": 1} for _ in iter(int, 1)), look_ahead=1, return_exceptions=True))
    assert next(answers)["result"] == 1  # type: ignore[index]
    pipe.close()
    with pytest.raises(PipeClosed):
        next(answers)
    with pytest.raises(StopIteration):
        next(answers)


@pytest.mark.parametrize("return_exceptions", [False, True])
def test_a_stop_iteration_from_a_backend_keeps_its_name_in_map(return_exceptions: bool) -> None:
    """Raised as it is it would end the loop as if all were done; a generator makes RuntimeError of it."""
    with Pipe(backend=lambda data: next(iter(())) if data is None else data) as pipe:
        answers = iter(pipe.map([{"data": 1}, {"data": None}], return_exceptions=return_exceptions))
        assert next(answers)["result"] == 1  # type: ignore[index]
        if return_exceptions:
            assert isinstance(next(answers), StopIteration)
        else:
            with pytest.raises(BackendError, match="a backend raised StopIteration") as raised:
                next(answers)
            assert isinstance(raised.value.__cause__, StopIteration)
