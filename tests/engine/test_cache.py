"""The result cache of a node: what is kept, for how long, and what becomes of a request that is answered with it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from caches import Counts, S, answer, counts
from helpers import WAIT_S, opened
from ledger import check_measures

from fastpipe import ConfigError, NoResult, PerRequest, Pipe, Request, Sequential, Status, _core

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
    """A call, a list, a future, a coroutine, map; an eager call does not, for it is there to see the backend run."""
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
    with Pipe(backend=backend, cache="15KB") as pipe:
        for data in ("a", "b", "c", "a", "d", "e"):
            answer(pipe, data * 2000)
            assert counts(pipe)["bytes"] <= 15_000
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
    """Neither the caller who was answered first nor a later one."""
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


def test_stats_of_an_interval_count_what_was_in_it() -> None:
    """But for what is kept now."""
    with Pipe(backend=Counts, cache="1MB") as pipe:
        answer(pipe, 1)
        before = pipe.stats()
        answer(pipe, 1)
        answer(pipe, object())
        cache = pipe.stats(since=before)["nodes"]["main"]["cache"]
        assert {name: cache[name] for name in ("hits", "misses", "bypassed", "entries")} == {
            "hits": 1,
            "misses": 0,
            "bypassed": 1,
            "entries": 1,
        }
    with Pipe(backend=Counts) as pipe:
        assert "cache" not in pipe.stats()["nodes"]["main"]


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
    """Written at the node it is an error that says what to do; a default is for the others; a step may have one."""
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
