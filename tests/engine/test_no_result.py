"""A request that ends without a result: an error that names the step, unless a filter would have it so."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from fastpipe import Backend, BackendError, ConfigError, NoResult, Pipe, Request, Sequential, Status, Step

WAIT_S = 20.0


class Forgets(Backend):
    """Gives a result only to even numbers; the rest it forgets."""

    max_batch = 8

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            if request["data"] % 2 == 0:
                request["result"] = request["data"]


class Echo(Backend):
    max_batch = 8

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = request["data"]


def pop_and(status: Status) -> Any:
    """Return a filter of a user who lets requests go without a result."""

    def ends(request: Request) -> Status:
        request.pop("result", None)
        return status

    return ends


NODES: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "the only node": ({"a": {"backend": Forgets}}, "node 'a': step Forgets"),
    "the last node": ({"a": {"backend": Echo, "next": "b"}, "b": {"backend": Forgets}}, "node 'b': step Forgets"),
    "between nodes": ({"a": {"backend": Forgets, "next": "b"}, "b": {"backend": Echo}}, "node 'a': step Forgets"),
    "in front of swap": (
        {"a": {"backend": Forgets, "next": "b"}, "b": {"backend": Echo, "filter": "swap"}},
        "node 'a': step Forgets",
    ),
    "a first step": ({"a": {"backend": Sequential(Forgets, Echo)}}, "node 'a': step Forgets"),
    "a middle step": ({"a": {"backend": Sequential(Echo, Forgets, Echo)}}, "node 'a': step Forgets"),
    "a last step": ({"a": {"backend": Sequential(Echo, Forgets)}}, "node 'a': step Forgets"),
    "a step with swap": ({"a": {"backend": Sequential(Forgets, Step(Echo, filter="swap"))}}, "node 'a': step Forgets"),
    "a step within": ({"a": {"backend": Sequential(Echo, Sequential(Forgets, Echo))}}, "node 'a': step Forgets"),
    "of a choice": (
        {"a": {"backend": Step("HasKey", Sequential(Forgets, Echo), key="data")}},
        "node 'a': step Forgets",
    ),
    "of a range": ({"a": {"backend": Step("Range", Sequential(Forgets), range="1,8")}}, "node 'a': step Forgets"),
    "behind a skipped node": (
        {"a": {"backend": Forgets, "next": "b"}, "b": {"backend": Echo, "filter": "skip", "next": "c"},
         "c": {"backend": Echo}},
        "node 'a': step Forgets",
    ),
    "behind a jump": (
        {"a": {"backend": "Jump", "jump": "b", "next": "c"}, "b": {"backend": Sequential(Echo, Forgets)},
         "c": {"backend": Echo}},
        "node 'a': step Forgets of node 'b'|node 'b': step Forgets",
    ),
    "behind a jump in a step": (
        {"a": {"backend": Sequential(Step("Jump", jump="b"), Echo)}, "b": {"backend": Sequential(Echo, Forgets)}},
        "node 'a': step Forgets of node 'b'",
    ),
    "with a restart": ({"a": {"backend": Forgets, "restart": "a"}}, "node 'a': step Forgets"),
}  # fmt: skip


def calls(pipe: Pipe, request: Request) -> dict[str, Any]:
    async def acall() -> Request:
        return await pipe.acall(dict(request))

    return {
        "call": lambda: pipe(dict(request)),
        "eager": lambda: pipe(dict(request), eager=True),
        "submit": lambda: pipe.submit(dict(request)).result(WAIT_S),
        "acall": lambda: asyncio.run(acall()),
        "map": lambda: list(pipe.map([dict(request)])),
    }


def first(nodes: dict[str, dict[str, Any]]) -> str:
    return next(iter(nodes))


@pytest.mark.parametrize("name", NODES)
def test_a_step_that_gives_no_result_is_named(name: str) -> None:
    """However the pipe is called; and the failure is counted."""
    nodes, words = NODES[name]
    request = {"data": 1, "node_name": first(nodes)}
    with Pipe(nodes) as pipe:
        count = 0
        for call in calls(pipe, request).values():
            with pytest.raises(NoResult, match=f"({words}) gave no result.*without_result"):
                call()
            count += 1
        stats = pipe.stats()
    assert stats["failures"]["no result"] == stats["without_result"] == count
    assert sum(node["failures"].get("no result", 0) for node in stats["nodes"].values()) == count
    assert sum(node["without_result"] for node in stats["nodes"].values()) == count


@pytest.mark.parametrize("name", NODES)
def test_as_in_torchpipe_it_may_end_so(name: str) -> None:
    """without_result = "end": no error, no result, and nothing counted as a failure."""
    nodes, _ = NODES[name]
    request = {"data": 1, "node_name": first(nodes)}
    with Pipe(nodes, without_result="end") as pipe:
        count = 0
        for call in calls(pipe, request).values():
            got = call()
            assert "result" not in (got[0] if isinstance(got, list) else got)
            count += 1
        stats = pipe.stats()
    assert stats["failures"] == {}
    assert stats["without_result"] == count <= stats["requests"]["done"]
    assert sum(node["without_result"] for node in stats["nodes"].values()) == count


@pytest.mark.parametrize(
    "backend",
    [Forgets, Sequential(Forgets, Echo), Sequential(Echo, Forgets), Step("HasKey", Sequential(Forgets), key="data"),
     Sequential(Sequential(Echo, Forgets), Echo)],
    ids=["alone", "first", "last", "choice", "within"],
)  # fmt: skip
def test_in_a_batch_only_those_fail_that_have_none(backend: Any) -> None:
    """Each with an error of its own."""
    with Pipe(backend=backend, max=8) as pipe:
        requests: list[Request] = [{"data": number} for number in range(6)]
        with pytest.raises(ExceptionGroup, match="3 of 6 requests failed") as raised:
            pipe(requests)
    assert len({id(error) for error in raised.value.exceptions}) == 3
    assert all("step Forgets gave no result" in str(error) for error in raised.value.exceptions)
    assert [request.get("result") for request in requests] == [0, None, 2, None, 4, None]


LET_GO: dict[str, dict[str, dict[str, Any]]] = {
    "Break": {"a": {"backend": Forgets, "next": "b"}, "b": {"backend": Echo, "filter": "Break"}},
    "a filter's Break": {"a": {"backend": Echo, "next": "b"}, "b": {"backend": Echo, "filter": pop_and(Status.Break)}},
    "a filter's Skip": {"a": {"backend": Echo, "next": "b"}, "b": {"backend": Echo, "filter": pop_and(Status.Skip)}},
    "all skipped": {"a": {"backend": Echo, "filter": "skip"}},
    "the leaf skipped": {"a": {"backend": Forgets, "next": "b"}, "b": {"backend": Echo, "filter": "skip"}},
    "Break in a step": {"a": {"backend": Sequential(Echo, Step(Echo, filter="Break"))}},
    "a filter's Break in a step": {"a": {"backend": Sequential(Echo, Step(Echo, filter=pop_and(Status.Break)))}},
    "Break in the first step": {"a": {"backend": Sequential(Step(Echo, filter="Break"), Echo)}},
    "all steps skipped": {"a": {"backend": Sequential(Step(Echo, filter="skip"), Step(Echo, filter="skip"))}},
    "the last step skipped": {"a": {"backend": Sequential(Forgets, Step(Echo, filter="skip"))}},
    "a removed result": {"a": {"backend": Sequential(Echo, Step("Remove", key="result"))}},
    "Break behind a jump": {
        "a": {"backend": "Jump", "jump": "b"},
        "b": {"backend": Echo, "next": "c"},
        "c": {"backend": Echo, "filter": "Break"},
    },
    "Break behind a jump in a step": {
        "a": {"backend": Sequential(Step("Jump", jump="b"))},
        "b": {"backend": Sequential(Echo, Step(Echo, filter="Break"))},
    },
}


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("name", LET_GO)
def test_what_is_let_go_on_purpose_is_no_error(name: str, count: int) -> None:
    """A filter's decision stays, in nodes and in steps, alone and in a batch; so does what Remove is told."""
    nodes = {key: dict(node, max=8) if node["backend"] != "Jump" else node for key, node in LET_GO[name].items()}
    for without_result in ("error", "end"):
        with Pipe(nodes, without_result=without_result) as pipe:
            requests: list[Request] = [{"data": 1, "node_name": "a"} for _ in range(count)]
            pipe(requests)
            assert all("result" not in request for request in requests)
            stats = pipe.stats()
            assert (stats["failures"], stats["without_result"]) == ({}, 0)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(
    "nodes",
    [
        {"a": {"backend": Sequential(Forgets, Step(Echo, filter="or"))}},
        {"a": {"backend": Forgets, "next": "b"}, "b": {"backend": Echo, "filter": "or"}},
        {"a": {"backend": Sequential(Forgets), "next": "b"}, "b": {"backend": Echo, "filter": "run"}},
        {"a": {"backend": Sequential(Forgets, Echo), "next": "b"}, "b": {"backend": Echo, "map": "a[data:data]"}},
        {
            "a": {"backend": Echo, "next": ["b", "c"]},
            "b": {"backend": Forgets, "map": "a[data:data]"},
            "c": {"backend": Echo, "map": "a[data:data]"},
        },
    ],
    ids=["or in a step", "or", "run", "a map", "another leaf"],
)
def test_what_has_a_result_in_the_end_is_no_error(nodes: dict[str, dict[str, Any]], count: int) -> None:
    """A step gave none, and another one did."""
    for without_result in ("error", "end"):
        with Pipe({name: dict(node, max=8) for name, node in nodes.items()}, without_result=without_result) as pipe:
            requests: list[Request] = [{"data": 1} for _ in range(count)]
            pipe(requests)
            assert [request["result"] for request in requests] == [1] * count
            stats = pipe.stats()
            assert [stats["without_result"], *(node["without_result"] for node in stats["nodes"].values())] == [
                0 for _ in range(1 + len(nodes))
            ]


def test_a_leaf_that_lets_a_request_go_excuses_no_other_leaf() -> None:
    """Whichever of the two ends last."""
    ran = {"forgets": threading.Event(), "lets go": threading.Event()}

    class Runs(Forgets):
        def __init__(self, *, name: str, after: str = "") -> None:
            self.name, self.after = name, after

        def forward(self, batch: list[Request]) -> None:
            assert not self.after or ran[self.after].wait(WAIT_S)
            ran[self.name].set()

    for first, last in (("forgets", "lets go"), ("lets go", "forgets")):
        after = {first: "", last: first}
        nodes: dict[str, dict[str, Any]] = {
            "root": {"backend": Echo, "next": "forgets,lets"},
            "forgets": {"backend": Step(Runs, name="forgets", after=after["forgets"])},
            "lets": {
                "backend": Sequential(Step(Runs, name="lets go", after=after["lets go"]), Step(Echo, filter="Break"))
            },
        }
        with Pipe(nodes) as pipe, pytest.raises(NoResult, match="node 'forgets': step Runs"):
            pipe.submit({"data": 1}).result(WAIT_S)
        for event in ran.values():
            event.clear()


@pytest.mark.parametrize("count", [1, 4])
def test_throw_if_no_result_says_its_own_words(count: int) -> None:
    """It comes before the end, and keeps its type and its text."""
    step = Step("ThrowIfNoResult", filter="run", message="no image")
    with Pipe(backend=Sequential(Forgets, step), max=8) as pipe:
        with pytest.raises((BackendError, ExceptionGroup)) as raised:
            pipe([{"data": 1} for _ in range(count)] if count > 1 else {"data": 1})
        error: Any = raised.value.exceptions[0] if count > 1 else raised.value  # type: ignore[attr-defined]
        assert (type(error), str(error)) == (BackendError, "no image")


@pytest.mark.parametrize("on_error", ["fail", "skip", "none"])
def test_a_part_without_a_result_is_its_wholes_business(on_error: str) -> None:
    """MapReduce says what it misses, or takes None for it, as before."""
    with Pipe(main={"backend": "MapReduce", "jump": "part", "on_error": on_error}, part={"backend": Forgets}) as pipe:
        request: Request = {"data": [2, 3], "node_name": "main"}
        if on_error == "none":
            assert pipe(request)["result"] == [2, None]
        else:
            with pytest.raises(KeyError, match="gathers 'result'"):
                pipe(request)


def test_the_key_is_checked() -> None:
    """There are two ways."""
    with pytest.raises(ConfigError, match="without_result: must be 'error' or 'end', got 'quiet'"):
        Pipe(backend="Identity", without_result="quiet")
