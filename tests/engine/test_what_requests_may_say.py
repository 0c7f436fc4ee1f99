"""What a request may tell the engine by its keys, and what only the configuration or the call may."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastpipe import Backend, BackendError, Pipe, Request, Status, UnknownNode
from fastpipe.backends.flow.graphs import MapReduce
from fastpipe.errors import ConfigError

WAIT_S = 20.0

Call = Callable[..., Any]


def by_acall(pipe: Pipe, request: Request, **how: Any) -> Request:
    async def main() -> Request:
        return await pipe.acall(request, **how)

    return asyncio.run(main())


def by_debugger(pipe: Pipe, request: Request, **how: Any) -> Request:
    with pipe.debug() as debugger:
        debugger.start(request, **how)
        debugger.run()
        if debugger.error is not None:
            raise debugger.error
        return request


WAYS: dict[str, Call] = {
    "call": lambda pipe, request, **how: pipe(request, **how),
    "eager": lambda pipe, request, **how: pipe(request, eager=True, **how),
    "list": lambda pipe, request, **how: pipe([request], **how)[0],
    "eager list": lambda pipe, request, **how: pipe([request], eager=True, **how)[0],
    "submit": lambda pipe, request, **how: pipe.submit(request, **how).result(WAIT_S),
    "acall": by_acall,
    "map": lambda pipe, request, **how: next(pipe.map([request], **how)),
    "debugger": by_debugger,
}


@pytest.fixture(params=WAYS)
def call(request: pytest.FixtureRequest) -> Call:
    """How the pipe is called."""
    return WAYS[request.param]


class Named(Backend):
    """The result is the data with the node's name in front."""

    def __init__(self, *, node_name: str) -> None:
        self.name = node_name

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = f"{self.name}({request['data']})"


class Denies(Backend):
    """Lets nobody pass."""

    def forward(self, batch: list[Request]) -> None:
        raise PermissionError("no")


def node(backend: Any = Named, **keys: Any) -> dict[str, Any]:
    return {"backend": backend, **keys}


def guarded() -> dict[str, dict[str, Any]]:
    return {"authenticate": node(Denies, next="model"), "model": node()}


# ---- node_name -------------------------------------------------------------------------------------------------------


def test_a_request_cannot_skip_what_comes_before_a_node(call: Call) -> None:
    """The error says how the program, or the configuration, may let it."""
    request = json.loads('{"data": "x", "node_name": "model"}')
    with Pipe(guarded()) as pipe:
        with pytest.raises(UnknownNode) as raised:
            call(pipe, request)
        assert pipe.stats()["requests"]["accepted"] == 0
    assert request == {"data": "x", "node_name": "model"}
    for words in ("'model', which is no root", "entry='model'", "obey_request_keys=['node_name']", "['authenticate']"):
        assert words in str(raised.value)


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("inner", {"main": node("Jump", jump="inner"), "inner": node()}),
        ("inner", {"main": node("MapReduce", jump="inner"), "inner": node()}),
        ("inner", {"main": node("S[Identity,Jump]", jump="inner"), "inner": node()}),
        ("inner", {"main": node("Proxy", proxy="inner"), "inner": node()}),
        ("inner", {"main": node("S[Identity,Proxy]", proxy="inner"), "inner": node()}),
        ("main.2", {"main": node(next="main.2"), "main.2": {}}),
        ("b", {"a": node(next="b"), "c": node(next="b"), "b": node(map="a[result:data]")}),
    ],
)
def test_a_request_cannot_enter_where_only_parts_or_others_come(name: str, nodes: dict[str, Any]) -> None:
    """What is jumped to, what proxies run, a logical node, a join."""
    with Pipe(nodes) as pipe:
        with pytest.raises(UnknownNode, match="which is no root"):
            pipe({"data": "x", "node_name": name})
        assert pipe({"data": "x"}, entry=name)["result"].endswith("(x)")


def test_of_several_roots_a_request_chooses(call: Call) -> None:
    """That skips nothing; and the name of the only root is no harm."""
    with Pipe(a=node(next="c"), b=node(), c=node()) as pipe:
        assert call(pipe, {"data": "x", "node_name": "a"})["result"] == "c(a(x))"
        assert call(pipe, {"data": "x", "node_name": "b"})["result"] == "b(x)"
        with pytest.raises(UnknownNode, match="no root"):
            call(pipe, {"data": "x", "node_name": "c"})
    with Pipe(guarded()) as pipe, pytest.raises((PermissionError, ExceptionGroup)):
        call(pipe, {"data": "x", "node_name": "authenticate"})


def test_where_requests_are_trusted_they_may_enter_anywhere(call: Call) -> None:
    """The configuration says so; by proxy only proxies enter even then."""
    with Pipe(guarded() | {"p": node("Proxy", proxy="model")}, obey_request_keys=["node_name"]) as pipe:
        assert call(pipe, {"data": "x", "node_name": "model"})["result"] == "model(x)"
        with pytest.raises(UnknownNode):
            call(pipe, {"data": "x", "node_name": "model (by proxy)"})


# ---- entry -----------------------------------------------------------------------------------------------------------


def test_a_call_may_enter_at_any_node(call: Call) -> None:
    """Whatever the request says; its keys stay as they are."""
    with Pipe(guarded() | {"other": node()}) as pipe:
        assert call(pipe, {"data": "x"}, entry="model") == {"data": "x", "result": "model(x)"}
        request = {"data": "x", "node_name": "authenticate"}
        assert call(pipe, request, entry="other") == {**request, "result": "other(x)"}


@pytest.mark.parametrize("entry", ["mod3l", "model (by proxy)", 5, ["model"]])
def test_an_entry_that_nobody_has_is_refused_with_all_names(call: Call, entry: Any) -> None:
    """And with the nearest there is."""
    with Pipe(guarded() | {"p": node("Proxy", proxy="model")}) as pipe:
        with pytest.raises(UnknownNode) as raised:
            call(pipe, {"data": "x"}, entry=entry)
        assert pipe.stats()["requests"]["accepted"] == 0
    shown = "of type list" if entry == ["model"] else repr(entry)
    assert f"entry is {shown}, and no node has that name; they are ['authenticate', 'model', 'p']" in str(raised.value)
    assert ("did you mean 'model'" in str(raised.value)) == (entry == "mod3l")


def test_a_debugger_is_told_where_its_first_request_enters() -> None:
    """Also if it is given one when it is made."""
    with Pipe(guarded()) as pipe, pipe.debug({"data": "x"}, entry="model") as debugger:
        assert debugger.run().request["result"] == "model(x)"


def test_a_request_that_was_recorded_enters_again_where_it_did(tmp_path: Path) -> None:
    """The record says where, if that was not the only root."""
    from fastpipe.cli.replay import replay
    from fastpipe.debug import record_files

    with Pipe({"first": node(next="last"), "last": node()}) as pipe:
        with pipe.record(tmp_path, sample=1.0):
            pipe({"data": "x"}, entry="last")
            pipe({"data": "y"})
        records = [record_files.read(path) for path in sorted(tmp_path.iterdir())]
        assert [record.manifest["entry"] for record in records] == ["last", None]
        assert [replay(record, pipe).difference for record in records] == ["", ""]


# ---- restart ---------------------------------------------------------------------------------------------------------


def test_a_request_cannot_send_itself_round(call: Call) -> None:
    """Its key is not seen inside, and stays in the caller's dict."""
    seen: list[Request] = []

    class Looks(Backend):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                seen.append(dict(request))
                request["result"] = request["data"]

    with Pipe(a=node(Looks, next="b"), b=node()) as pipe:
        request = {"data": "x", "restart": "a"}
        assert call(pipe, request) == {"data": "x", "restart": "a", "result": "b(x)"}
    assert seen == [{"data": "x"}]


def test_what_a_backend_sets_sends_a_request_round(call: Call) -> None:
    """Be there such a key in the caller's dict or not."""

    class Again(Backend):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = request["data"] + "."
                if len(request["result"]) < 3:
                    request["restart"] = "a"

    with Pipe(a=node(Again), b=node()) as pipe:
        for more in ({}, {"restart": "b"}):
            assert call(pipe, {"data": "", "node_name": "a", **more})["result"] == "..."


def test_where_requests_are_trusted_they_may_send_themselves_round(call: Call) -> None:
    """Once: the key is taken out, inside."""
    with Pipe(a=node(), obey_request_keys="restart") as pipe:
        assert call(pipe, {"data": "x", "restart": "a"}) == {"data": "x", "restart": "a", "result": "a(a(x))"}


# ---- request_size ----------------------------------------------------------------------------------------------------


class Counts(Backend):
    """The result is how many requests are in the batch."""

    max_batch = 4

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = len(batch)


@pytest.mark.parametrize("size", [4, 1000, -1, "x", None, [1]])
def test_a_request_cannot_say_what_it_weighs(size: Any) -> None:
    """Neither fill a batch alone, nor break it."""
    with Pipe(backend=Counts, batching="timeout", batching_timeout=60_000) as pipe:
        requests: list[Request] = [{"data": index, "request_size": size} for index in range(4)]
        pipe(requests)
        assert requests == [{"data": index, "request_size": size, "result": 4} for index in range(4)]


def test_what_a_backend_or_the_configuration_says_of_the_weight_counts() -> None:
    """Set inside, or by a request that is trusted: more than max fails."""

    class Weighs(Backend):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request.update(result=1, request_size=5)

    with Pipe(a=node(Weighs, next="b"), b=node(Counts)) as pipe, pytest.raises(ValueError, match="weighs 5"):
        pipe({"data": 1})
    with Pipe(backend=Counts, obey_request_keys=["request_size"]) as pipe, pytest.raises(ValueError, match="weighs 5"):
        pipe({"data": 1, "request_size": 5})


# ---- dicts inside the data -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["MapReduce", "S[Identity,(run)MapReduce]"])
def test_dicts_that_become_requests_may_say_no_more_than_those_of_callers(backend: str) -> None:
    """No result of their own where a filter would take it, no other round, no weight."""
    part = {"data": "x", "result": "forged", "restart": "part", "request_size": 1000, "node_name": "main"}
    nodes = {"main": node(backend, jump="part", split=""), "part": node(filter="or", next="last"), "last": node(Counts)}
    with Pipe(nodes) as pipe:
        assert pipe({"data": [part]})["result"] == [1]
        assert pipe.stats()["nodes"]["part"]["requests"] == 1
    with Pipe(nodes, obey_request_keys=["restart"], part={"restart_limit": 1}) as pipe:
        assert pipe({"data": [part]})["result"] == [1]
        assert pipe.stats()["nodes"]["last"]["requests"] == 2
    assert part["result"] == "forged"


def test_what_a_split_of_yours_says_of_parts_counts() -> None:
    """It is code of the program."""

    class Twice(MapReduce):
        def split(self, request: Request) -> list[Request]:
            return [{"data": each, "restart": "part"} for each in request["data"]]

    with Pipe(main=node(Twice, jump="part"), part=node()) as pipe:
        assert pipe({"data": ["x"]})["result"] == ["part(part(x))"]


# ---- and others ------------------------------------------------------------------------------------------------------


def test_names_of_torchpipes_constants_are_keys_like_any_other(call: Call) -> None:
    """They mean something in a configuration only."""
    request = {"data": "x", "TASK_DATA_KEY": "y", "TASK_RESTART_KEY": "a", "TASK_NODE_NAME_KEY": "b"}
    with Pipe(a=node(next="b"), b=node()) as pipe:
        assert call(pipe, dict(request)) == {**request, "result": "b(a(x))"}


def test_a_mistake_in_the_key_of_the_pipe_is_said_in_words() -> None:
    """With what it may be."""
    for wrong in (["nodename"], "node_name,nodename", 5):
        with pytest.raises(ConfigError, match=r"obey_request_keys: .*'node_name', 'restart', 'request_size'|list"):
            Pipe(backend=Named, obey_request_keys=wrong)
    with Pipe(backend=Named, obey_request_keys=[]) as pipe:
        assert pipe({"data": "x", "restart": "main"})["result"] == "main(x)"


@pytest.mark.parametrize("key", ["node_name", "restart", "request_size", "result", "context", "answered_by", "leaf"])
def test_no_key_leads_past_a_filter(key: str) -> None:
    """What the first node refuses goes no further, whatever else the request says."""

    def with_token(request: Request) -> Status:
        return Status.Run if request["token"] else Status.Error

    nodes = {"authenticate": node(filter=with_token, next="model"), "model": node()}
    with Pipe(nodes) as pipe:
        with pytest.raises((BackendError, UnknownNode)):
            pipe(json.loads(json.dumps({"data": "x", "token": False, key: "model"})))
        assert pipe.stats()["nodes"]["model"]["requests"] == 0
