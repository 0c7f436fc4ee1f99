"""The result cache of a node: what is kept and for whom, and who waits for an answer that is on its way."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import WAIT_S, Adds, Gate, opened, run_loop, until, until_set
from ledger import check_measures

from fastpipe import (
    Backend,
    BackendHung,
    ConfigError,
    DeviceLost,
    ItemErrors,
    NoResult,
    PerRequest,
    Pipe,
    PipeClosed,
    QueueFull,
    Request,
    RequestTimeout,
    Sequential,
    Status,
    Step,
    WorkerDied,
    _core,
    cancelled,
)

S = 1_000_000_000


class Counts(PerRequest):
    """The answer is a list that holds the data, and how many have run before; on "bad" it raises."""

    def __init__(self) -> None:
        self.ran: list[Any] = []

    def run(self, request: Request) -> None:
        self.ran.append(request["data"])
        if request["data"] == "bad":
            raise ValueError("bad")
        request["result"] = [request["data"], len(self.ran)]
        request["size"] = len(self.ran)


class Planted(BaseException):
    """Nothing that a backend raised."""


@pytest.fixture
def frozen_time() -> Iterator[None]:
    """Time stands still, but for _core._advance_time."""
    _core._freeze_time()
    yield
    _core._thaw_time()


@contextlib.contextmanager
def at(point: str, action: Callable[[], object]) -> Iterator[list[int]]:
    """Do something the first time that a thread comes to a point of the engine."""
    done: list[int] = []

    def act() -> None:
        if not done:
            done.append(1)
            action()

    _core._hook(point, act)
    try:
        yield done
    finally:
        _core._hook(point, None)


def counts(pipe: Pipe, node: str = "main") -> dict[str, int]:
    """Return what a cache has counted, without what is nought."""
    return {name: count for name, count in pipe.stats()["nodes"][node]["cache"].items() if count}  # type: ignore[misc]


def answer(pipe: Pipe, data: Any, **keys: Any) -> Any:
    request = {"data": data, **keys}
    pipe(request)
    return request["result"]


def followers(pipe: Pipe, count: int, node: str = "main") -> None:
    """Wait until so many requests have followed others."""
    until(lambda: pipe.stats()["nodes"][node]["cache"]["coalesced"] == count)


# ---- what is kept ---------------------------------------------------------------------------------------------------


def test_an_equal_request_is_answered_without_running() -> None:
    """With all keys that the node had set, and none else."""
    backend = Counts()
    with Pipe(backend=backend, cache="1MB") as pipe:
        first, second = {"data": "a", "lang": "de"}, {"lang": "de", "data": "a"}
        assert pipe(first) == pipe(second) == {"data": "a", "lang": "de", "result": ["a", 1], "size": 1}
        assert answer(pipe, "a") == ["a", 2]
        assert backend.ran == ["a", "a"]
        cache = counts(pipe)
        assert cache.pop("bytes") > 800
        assert cache == {"hits": 1, "misses": 2, "entries": 2}
        check_measures(pipe.stats())


def test_every_way_of_calling_looks() -> None:
    """A call, a list, a future, a coroutine, map; and an eager call does not, for it is there to see the backend run."""
    backend = Counts()

    async def ask(pipe: Pipe) -> Request:
        return await pipe.acall({"data": 1})

    with Pipe(backend=backend, cache=1_000_000) as pipe:
        pipe([{"data": 1}, {"data": 1}, {"data": 2}])
        assert pipe.submit({"data": 1}).result(WAIT_S)["result"] == [1, 1]
        assert asyncio.run(ask(pipe))["result"] == [1, 1]
        assert [each["result"] for each in pipe.map([{"data": 2}, {"data": 1}])] == [[2, 2], [1, 1]]
        assert backend.ran == [1, 2]
        assert pipe({"data": 1}, eager=True)["result"] == [1, 3]
        assert counts(pipe)["bypassed"] == 1


def test_a_hit_does_not_queue_and_takes_no_instance() -> None:
    """The only instance is busy, its queue is full, and yet an answer that is there is given."""
    gate = opened()
    with Pipe(backend=gate, cache="1MB", max=1) as pipe:
        assert answer(pipe, 1) == 1
        gate.opened.clear()
        gate.inside.clear()
        busy, waits = pipe.submit({"data": 2}), pipe.submit({"data": 3})
        assert gate.inside.wait(WAIT_S)
        assert answer(pipe, 1) == 1
        assert pipe.stats()["nodes"]["main"]["queued"] == 1
        gate.opened.set()
        assert busy.result(WAIT_S)["result"] == 2
        assert waits.result(WAIT_S)["result"] == 3
    assert gate.batches == [[1], [2], [3]]


def test_what_was_not_used_for_longest_makes_room() -> None:
    """And the budget is never exceeded."""
    backend = Counts()
    with Pipe(backend=backend, cache="10KB") as pipe:
        for data in ("a", "b", "c", "a", "d", "e"):
            answer(pipe, data * 2000)
            assert counts(pipe)["bytes"] <= 10_000
        assert counts(pipe)["entries"] == 3
        ran = len(backend.ran)
        for data in ("a", "d", "e"):
            answer(pipe, data * 2000)
        assert len(backend.ran) == ran
        answer(pipe, "b" * 2000)
        assert len(backend.ran) == ran + 1
        assert counts(pipe)["evictions"] == 3


def test_an_answer_larger_than_the_budget_drives_nobody_out() -> None:
    """It is not kept, and counted."""
    backend = Counts()
    with Pipe(backend=backend, cache=5000) as pipe:
        for data in ("a", b"x" * 5000, b"x" * 5000, "a"):
            answer(pipe, data)
        assert len(backend.ran) == 3
        assert counts(pipe) == {"hits": 1, "misses": 3, "entries": 1, "not_kept": 2, "bytes": counts(pipe)["bytes"]}


@pytest.mark.usefixtures("frozen_time")
def test_an_answer_is_kept_for_as_long_as_said() -> None:
    """From when it was made; being used does not make it younger."""
    backend = Counts()
    with Pipe(backend=backend, cache="1MB", cache_ttl=10) as pipe:
        assert answer(pipe, "a") == ["a", 1]
        _core._advance_time(9 * S)
        assert answer(pipe, "a") == ["a", 1]
        _core._advance_time(1 * S)
        assert answer(pipe, "a") == ["a", 2]
        assert counts(pipe)["expirations"] == 1


def test_an_error_is_not_kept() -> None:
    """The next request runs."""
    backend = Counts()
    with Pipe(backend=backend, cache="1MB") as pipe:
        for _ in range(2):
            with pytest.raises(ValueError, match="bad"):
                answer(pipe, "bad")
        assert backend.ran == ["bad", "bad"]
        assert counts(pipe) == {"misses": 2}


def test_nobody_can_change_anybody_elses_answer() -> None:
    """Neither the caller who was answered first nor a later one; nor does the backend, which keeps what it has answered."""
    backend = Counts()
    with Pipe(backend=backend, cache="1MB") as pipe:
        for _ in range(3):
            result = answer(pipe, "a")
            assert result == ["a", 1]
            result.append("changed")


def test_arrays_that_are_handed_out_are_their_callers_own() -> None:
    """Writable, and with no memory in common; what is handed out twice under two keys is so in every answer."""
    numpy = pytest.importorskip("numpy")

    def twice(data: Any) -> Any:
        return {"rows": data * 2, "list": [data]}

    class Rows(PerRequest):
        def run(self, request: Request) -> None:
            request["result"] = request["same"] = twice(request["data"])

    data = numpy.arange(6.0).reshape(2, 3)
    with Pipe(backend=Rows, cache="1MB") as pipe:
        for _ in range(3):
            request = pipe({"data": data.copy()})
            assert request["same"] is request["result"]
            assert (request["result"]["rows"] == data * 2).all()
            assert (request["result"]["list"][0] == data).all()
            request["result"]["rows"][:] = -1
            request["result"]["list"][0][:] = -1
        assert counts(pipe)["hits"] == 2


def test_a_tensor_that_is_handed_out_is_its_callers_own() -> None:
    """On the CPU."""
    torch = pytest.importorskip("torch")

    class Doubles(PerRequest):
        def run(self, request: Request) -> None:
            request["result"] = request["data"] * 2

    with Pipe(backend=Doubles, cache="1MB") as pipe:
        for _ in range(3):
            result = answer(pipe, torch.ones(3))
            assert result.tolist() == [2, 2, 2]
            result.zero_()
        assert counts(pipe)["hits"] == 2


def test_an_input_that_was_changed_in_place_has_no_answer_to_keep() -> None:
    """What follows the node would see the input as it was, which it is not if the node runs."""

    class InPlace(PerRequest):
        def run(self, request: Request) -> None:
            request["data"].append(1)
            request["result"] = len(request["data"])

    with Pipe(backend=InPlace, cache="1MB") as pipe:
        assert [answer(pipe, [0]) for _ in range(3)] == [2, 2, 2]
        assert counts(pipe) == {"misses": 3, "not_kept": 3}


def test_what_cannot_be_copied_is_not_kept() -> None:
    """It may be changed by whoever has it, or be somewhere else than in this memory."""
    with Pipe(backend=lambda data: object(), cache="1MB") as pipe:
        assert answer(pipe, 1) is not answer(pipe, 1)
        assert counts(pipe) == {"misses": 2, "not_kept": 2}


def test_what_has_no_key_runs() -> None:
    """A value of a class of one's own: counted, and never a wrong answer."""
    backend = Counts()
    with Pipe(backend=backend, cache="1MB") as pipe:
        same = object()
        assert answer(pipe, same) != answer(pipe, same)
        assert counts(pipe) == {"bypassed": 2}


def test_requests_without_a_result_run_every_time() -> None:
    """A backend that leaves one without fails each of them."""

    class Silent(PerRequest):
        ran = 0

        def run(self, request: Request) -> None:
            Silent.ran += 1

    with Pipe(backend=Silent, cache="1MB") as pipe:
        for _ in range(2):
            with pytest.raises(NoResult, match="Silent"):
                pipe({"data": 1})
        assert Silent.ran == 2
        assert counts(pipe) == {"misses": 2, "not_kept": 2}


def test_the_keys_that_count_can_be_chosen() -> None:
    """One, several, or what a function makes of a request; None of it: the request runs."""
    for chosen in ("data", ["data", "lang"], "data, lang", lambda request: (request["data"], request.get("lang"))):
        backend = Counts()
        with Pipe(backend=backend, cache="1MB", cache_key=chosen) as pipe:
            assert answer(pipe, "a", id=1) == answer(pipe, "a", id=2) == ["a", 1]
            assert (answer(pipe, "a", lang="de") == ["a", 1]) is (chosen == "data")
    with Pipe(backend=Counts, cache="1MB", cache_key=lambda request: request["data"] or None) as pipe:
        assert answer(pipe, 0) != answer(pipe, 0)
        assert counts(pipe) == {"bypassed": 2}


def test_a_function_that_fails_to_choose_fails_its_request() -> None:
    """As one that chooses a bucket does; the note names the node."""
    with Pipe(backend=Counts, cache="1MB", cache_key=lambda request: request["id"]) as pipe:
        with pytest.raises(KeyError, match="id") as raised:
            answer(pipe, 1)
        assert "node 'main'" in "".join(raised.value.__notes__)
        assert answer(pipe, 1, id=1) == answer(pipe, 2, id=1) == [1, 1]


# ---- in a graph -----------------------------------------------------------------------------------------------------


def test_a_hit_goes_on_as_if_it_had_run() -> None:
    """To each node that is next, by a map too; filters are asked every time."""
    asked: list[Any] = []

    def asks(request: Request) -> Status:
        asked.append(request["data"])
        return Status.Skip if request["data"] == "skip" else Status.Run

    backend = Counts()
    nodes: dict[str, Any] = {
        "first": {"backend": backend, "cache": "1MB", "filter": asks, "next": "left,right"},
        "left": {"backend": "Add", "key": "left", "value": 1, "next": "last"},
        "right": {"backend": "Add", "key": "right", "value": 2, "next": "last"},
        "last": {"backend": "Identity", "map": "first[result:data,size:size],left[left:left],right[right:right]"},
    }
    with Pipe(nodes) as pipe:
        answers = [pipe({"data": "a"}) for _ in range(3)]
        assert answers[0] == answers[1] == answers[2]
        assert answers[0]["result"] == ["a", 1]
        assert answers[0]["left"] == 1
        assert asked == ["a"] * 3
        assert backend.ran == ["a"]
        assert pipe.stats()["nodes"]["last"]["requests"] == 3


@pytest.mark.parametrize("then", ["swap", "map", "filter"])
def test_data_is_what_it_would_be_behind_the_node(then: str) -> None:
    """Also where a later node reads what a Sequential has left there; where none does, it takes no room."""
    big = "x" * 10_000
    first = {"backend": Sequential(lambda data: big + data, len), "cache": "1MB", "next": "then"}
    seen: list[Any] = []

    def sees(request: Request) -> Status:
        seen.append(request["data"])
        return Status.Run

    kinds: dict[str, dict[str, Any]] = {
        "swap": {},
        "map": {"map": "first[data:data]"},
        "filter": {"filter": sees},
    }
    with Pipe({"first": first, "then": {"backend": "Identity", **kinds[then]}}) as pipe:
        results = [answer(pipe, "a") for _ in range(2)]
        assert results == [10_001 if then == "swap" else big + "a"] * 2
        assert seen == ([big + "a"] * 2 if then == "filter" else [])
        assert (counts(pipe, "first")["bytes"] > 10_000) is (then != "swap")
        assert counts(pipe, "first")["hits"] == 1


def test_logical_nodes_share_the_answers_of_their_node() -> None:
    """As they share its instances."""
    backend = Counts()
    nodes: dict[str, Any] = {
        "work": {"backend": backend, "cache": "1MB", "cache_key": "data"},
        "work.2": {"filter": "Run"},
    }
    with Pipe(nodes) as pipe:
        assert pipe({"data": 1}, entry="work")["result"] == pipe({"data": 1}, entry="work.2")["result"] == [1, 1]
        assert "cache" in pipe.stats()["nodes"]["work"]


def test_places_share_the_answers_of_their_node() -> None:
    """A hit goes to neither of them; the first has what was counted."""

    class Placed(Counts):
        built = 0

        def __init__(self) -> None:
            super().__init__()
            self.place = f"place {Placed.built}"
            Placed.built += 1

    with Pipe(backend=Placed, instance_num=2, cache="1MB") as pipe:
        assert [answer(pipe, data) for data in (1, 2, 1, 2)] == [[1, 1], [2, 1]] * 2
        node = pipe.stats()["nodes"]["main"]
        assert (node["requests"], node["cache"]["hits"]) == (2, 2)
        assert [place.get("cache", {}).get("hits") for place in node["places"].values()] == [2, None]


def test_a_graph_that_goes_round_looks_in_every_round() -> None:
    """The key "restart" that a backend sets is a part of its answer."""

    class Halves(PerRequest):
        ran = 0

        def run(self, request: Request) -> None:
            Halves.ran += 1
            request["result"] = request["data"] // 2
            if request["result"]:
                request["restart"] = "main"

    with Pipe({"main": {"backend": Halves, "cache": "1MB"}}) as pipe:
        assert [answer(pipe, data) for data in (8, 8, 9)] == [0, 0, 0]
        assert Halves.ran == 5


def test_parts_of_requests_look_as_well() -> None:
    """Those of one request that are equal run once."""
    backend = Counts()
    nodes: dict[str, Any] = {
        "pages": {"backend": "MapReduce", "jump": "page"},
        "page": {"backend": backend, "cache": "1MB", "max": 4},
    }
    with Pipe(nodes) as pipe:
        results = pipe({"data": ["a", "a", "a", "b"]}, entry="pages")["result"]
        assert [data for data, _ in results] == ["a", "a", "a", "b"]
        assert sorted(backend.ran) == ["a", "b"]
        check_measures(pipe.stats())


def test_a_sub_graph_has_no_cache_of_its_own() -> None:
    """Written at the node it is an error that says what to do; as a default it is for the others; a step may have one."""
    page: dict[str, Any] = {"backend": Counts}
    with pytest.raises(ConfigError, match=r"'pages': cache: MapReduce is a node whose work others do.*S\[MapReduce\]"):
        Pipe({"pages": {"backend": "MapReduce", "jump": "page", "cache": "1MB"}, "page": page})
    with Pipe({"cache": "1MB", "pages": {"backend": "MapReduce", "jump": "page"}, "page": page}) as pipe:
        pipe({"data": [1, 1]}, entry="pages")
        assert counts(pipe, "page")["misses"] == 1
    with Pipe({"pages": {"backend": "S[MapReduce]", "jump": "page", "cache": "1MB"}, "page": page}) as pipe:
        assert answer(pipe, [1, 2]) == answer(pipe, [1, 2])
        assert counts(pipe, "pages")["hits"] == 1


def test_a_backend_that_answers_in_parts_has_no_cache() -> None:
    """Its parts would be lost."""

    class Streams(Counts):
        streams = True

    with pytest.raises(ConfigError, match="'main': cache: the backend answers in parts"):
        Pipe(backend=Streams, cache="1MB")


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
        assert all([future.cancel() for future in gone])
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
    """It is still queued when an equal request comes, which follows it."""
    gate = Gate()
    with Pipe(backend=gate, cache="1MB", max=1, max_queue=2, when_full="reject") as pipe:
        busy = pipe.submit({"data": 0})
        assert gate.inside.wait(WAIT_S)
        assert pipe.submit({"data": 1}).cancel()
        follower = pipe.submit({"data": 1})
        gate.opened.set()
        assert [each.result(WAIT_S)["result"] for each in (busy, follower)] == [0, 1]
        assert gate.batches == [[0], [1]]
        assert counts(pipe)["coalesced"] == 1


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


def test_a_dropped_pipe_leaves_no_answer_behind() -> None:
    """Flights and answers refer to walks and values, and nothing refers to them."""
    import gc
    import weakref

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
