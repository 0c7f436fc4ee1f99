"""Proxy: one run of another node's backend, in its own instances and batches."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from helpers import ask_on_threads

from fastpipe import Backend, ConfigError, Pipe, Request, Status, Step
from fastpipe import Sequential as SequentialStep
from fastpipe.backends.flow.graphs import Proxy
from fastpipe.config.reading import load
from fastpipe.errors import BackendError, UnknownNode

WAIT_S = 20.0


class Square(Backend):
    """Squares; remembers what its requests looked like, by batch; 13 is bad luck."""

    max_batch = 16

    def __init__(self) -> None:
        self.batches: list[list[Request]] = []

    def forward(self, batch: list[Request]) -> None:
        self.batches.append([dict(request) for request in batch])
        for request in batch:
            if request["data"] == 13:
                raise ValueError("bad luck")
            request["result"] = request["data"] ** 2
            request.pop("ticket", None)


def as_node(target: str, **keys: Any) -> dict[str, Any]:
    return {"backend": "Proxy", "proxy": target, **keys}


def as_step(target: str, **keys: Any) -> dict[str, Any]:
    return {"backend": f"S[Identity,Proxy({target})]", **keys}


FORMS = pytest.mark.parametrize("form", [as_node, as_step], ids=["node", "step"])


@FORMS
@pytest.mark.parametrize("way", ["call", "submit", "list"])
def test_the_other_nodes_backend_runs_here(form: Any, way: str) -> None:
    """Its instance, on the request as it is; what it takes away is gone."""
    square = Square()
    request: Request = {"data": 3, "ticket": 1, "context": "c"}
    with Pipe(main=form("rec", max=4), rec={"backend": square}) as pipe:
        if way == "call":
            pipe(request)
        elif way == "submit":
            request = pipe.submit(request).result(WAIT_S)
        else:
            pipe([request])
        assert request["result"] == 9
        assert request["context"] == "c"
        assert pipe.stats()["nodes"]["rec"]["requests"] == 1
    assert square.batches[0][0]["context"] == "c"


@FORMS
def test_next_map_and_filter_of_the_other_node_are_not_looked_at(form: Any) -> None:
    """Nor what comes before it."""

    def never(request: Request) -> Status:
        raise AssertionError

    nodes = {
        "main": form("rec", next="end"),
        "before": {"backend": "RuntimeError", "next": "rec"},
        "rec": {"backend": Square(), "map": "before[result:data]", "filter": never, "next": "after"},
        "after": {"backend": "RuntimeError"},
        "end": {"backend": "Pow"},
    }
    with Pipe(nodes) as pipe:
        assert pipe({"data": 2, "node_name": "main"})["result"] == 16


@FORMS
def test_a_failure_is_the_requests_own(form: Any) -> None:
    """With notes that name the node whose backend raised."""
    with Pipe(main=form("rec"), rec={"backend": Square()}) as pipe:
        with pytest.raises(ValueError, match="bad luck") as caught:
            pipe({"data": 13})
        assert any("rec" in note for note in caught.value.__notes__)
        assert pipe({"data": 2})["result"] == 4


@FORMS
def test_a_wish_to_restart_is_kept_for_the_graph_around(form: Any) -> None:
    """The other node's run does not take it as its own."""

    nodes = {
        "wish": {"backend": "Add", "key": "restart", "value": "check", "next": "main"},
        "main": form("rec"),
        "check": {"backend": "RuntimeError", "filter": lambda request: Status.Break},
        "rec": {"backend": Square()},
    }
    with Pipe(nodes) as pipe:
        request = pipe({"data": 4, "node_name": "wish"})
    assert (request["data"], request["result"]) == (4, 16)
    assert "restart" not in request
    assert [list(seen) for (seen,) in nodes["rec"]["backend"].batches] == [["data", "node_name"]]


class Gate(Square):
    """Holds its first batch until it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.open = threading.Event()

    def forward(self, batch: list[Request]) -> None:
        self.entered.set()
        assert self.open.wait(WAIT_S)
        super().forward(batch)


def test_requests_of_the_node_and_of_its_proxies_share_batches() -> None:
    """While the only instance is busy, both queue at the node; then they are one batch."""
    gate = Gate()
    with Pipe(main=as_node("rec"), rec={"backend": gate, "max": 16, "batching": "greedy"}) as pipe:
        first = pipe.submit({"data": 1}, entry="rec")
        assert gate.entered.wait(WAIT_S)
        waiting = [pipe.submit({"data": data}, entry=name) for data, name in ((2, "main"), (3, "rec"), (4, "main"))]
        assert pipe.stats()["nodes"]["rec"]["queued"] == 3  # submit() has queued them before it returns
        gate.open.set()
        assert [future.result(WAIT_S)["result"] for future in (first, *waiting)] == [1, 4, 9, 16]
    assert [sorted(request["data"] for request in batch) for batch in gate.batches] == [[1], [2, 3, 4]]


def test_a_proxy_in_a_tree_in_a_list_and_of_a_logical_node() -> None:
    """As a step among steps, inside a choice, divided with '|', as an object, of a node that shares."""
    nodes = {
        "a": {"backend": "S[Pow,HasKey(deep)[Proxy],Proxy]", "proxy": "|sq|one"},
        "b": {"backend": SequentialStep(Proxy(proxy="one.2"), Step(Proxy, proxy="sq"))},
        "sq": {"backend": "Pow"},
        "one": {"backend": "Add", "key": "one", "value": 1, "filter": "Break"},
        "one.2": {"filter": "Break"},
    }
    with Pipe(nodes) as pipe:
        assert pipe({"data": 2, "deep": 1, "node_name": "a"})["result"] == 16
        request = pipe({"data": 2, "node_name": "a"})
        assert (request["result"], request["one"]) == (4, 1)
        assert pipe({"data": 3, "node_name": "b"})["result"] == 9


def test_many_callers_through_proxies() -> None:
    """Every request has its own answer."""
    with Pipe(main=as_node("rec"), step=as_step("rec", instance_num=2), rec={"backend": "Pow", "max": 4}) as pipe:

        def ask(item: int) -> list[str] | None:
            names = ("main", "step", "rec")
            return [name for name in names if pipe({"data": item}, entry=name)["result"] != item * item] or None

        assert ask_on_threads(ask, threads=6) == []


def test_a_node_for_proxies_only_is_no_root_and_may_be_entered_nevertheless() -> None:
    """One that leads somewhere is a root as ever: the graph behind it is its own."""
    with Pipe(main=as_step("rec"), rec={"backend": "Pow"}) as pipe:
        assert pipe({"data": 3})["result"] == 9
        assert pipe({"data": 3}, entry="rec")["result"] == 9
    with Pipe(main=as_step("first"), first={"backend": "Pow", "next": "main"}) as pipe:
        assert pipe({"data": 2})["result"] == 16
        assert pipe({"data": 2}, entry="main")["result"] == 4
    nodes = {"main": as_step("rec"), "rec": {"backend": "Pow", "next": "end"}, "end": {"backend": "Pow"}}
    with Pipe(nodes) as pipe, pytest.raises(UnknownNode, match=r"\['main', 'rec'\]"):
        pipe({"data": 3})


# ---- the hidden node -------------------------------------------------------------------------------------------------


def test_the_hidden_node_is_one_for_all_proxies_and_comes_last() -> None:
    """It shares the target, and has nothing else."""
    nodes = load(
        {
            "a": as_node("rec"),
            "b": as_step("rec"),
            "rec": {"backend": "Pow", "filter": "or", "next": "c"},
            "c": {"backend": "Pow"},
        },
        {},
    ).nodes
    hidden = nodes[-1]
    assert [node.name for node in nodes] == ["a", "b", "rec", "c", "rec (by proxy)"]
    assert (hidden.plan, hidden.shares, hidden.next, hidden.map, hidden.filter) == (None, "rec", (), None, None)
    assert [node.is_hidden for node in nodes] == [False] * 4 + [True]


def test_no_request_enters_at_the_hidden_node() -> None:
    """Its name is unknown to callers, and not listed."""
    with Pipe(main=as_node("rec"), rec={"backend": "Pow"}) as pipe:
        with pytest.raises(UnknownNode) as caught:
            pipe({"data": 1, "node_name": "rec (by proxy)"})
        assert "by proxy" not in str(caught.value).replace("'rec (by proxy)', and", "")
        assert repr(pipe) == "<fastpipe.Pipe of main, rec: 0 in flight>"


def test_a_proxy_that_is_called_outside_of_a_pipe() -> None:
    """There is nothing to run."""
    with pytest.raises(BackendError, match="Proxy works only inside a pipe"):
        Proxy(proxy="rec").forward([{"data": 1}])


# ---- mistakes --------------------------------------------------------------------------------------------------------


def problems(**nodes: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(nodes, {})
    return caught.value.problems


@FORMS
def test_an_unknown_target_names_the_nearest(form: Any) -> None:
    """Hidden names are no targets."""
    assert problems(main=form("rek"), rec={"backend": "Pow"}) == (
        "node 'main': proxy: no node is named 'rek'; did you mean 'rec'?",
    )


@FORMS
@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ({"backend": "MapReduce", "jump": "leaf"}, "MapReduce"),
        ({"backend": "Jump", "jump": "leaf"}, "Jump"),
        ({"backend": "Proxy", "proxy": "leaf"}, "Proxy"),
    ],
)
def test_a_target_without_instances(form: Any, target: dict[str, Any], kind: str) -> None:
    """It is another graph's work."""
    told = problems(main=form("words"), words=target, leaf={"backend": "Pow"})
    assert told == (f"node 'main': proxy: 'words' is a {kind}, which has no instances of its own to run in",)


def test_a_proxy_that_leads_back_to_itself() -> None:
    """Directly, through another proxy, or through a Jump; the way is shown."""
    assert problems(main=as_step("main")) == ("node 'main': proxy: running 'main' leads back to 'main': main -> main",)
    assert problems(a=as_step("b"), b=as_step("a.2"), **{"a.2": {}}) == (
        "node 'a': proxy: running 'b' leads back to 'a': a -> b -> a",
        "node 'b': proxy: running 'a.2' leads back to 'b': b -> a -> b",
    )
    told = problems(
        a=as_step("b"),
        b={"backend": "S[Pow,MapReduce]", "jump": "c"},
        c={"backend": "Pow", "next": "d"},
        d=as_step("a"),
    )
    assert told[0] == "node 'a': proxy: running 'b' leads back to 'a': a -> b -> d -> a"


def test_a_proxy_of_a_node_with_mistakes_is_not_told_twice() -> None:
    """The target is known; what is wrong with it is said once."""
    assert problems(main=as_node("rec"), rec={"backend": "Pov"}) == (
        "node 'rec': backend: no backend is named 'Pov'; did you mean 'Pow'?",
    )
    assert problems(main={"backend": "Proxy"}) == ("node 'main': proxy: Proxy needs it",)


@FORMS
@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ({"rec": {"backend": "Pov"}}, "node 'rec': backend: no backend is named 'Pov'"),
        ({"rec": {"backend": "Pow["}}, "node 'rec': backend: column 5: "),
        ({"rec": {}}, "node 'rec': it has no backend"),
        ({"rec": {"backend": "Pow", "max": "x"}}, "node 'rec': max: "),
        ({"rec.2": {}, "rec": {"backend": "Pov"}}, "node 'rec': backend: no backend is named 'Pov'"),
    ],
)
def test_a_pipe_with_a_proxy_of_a_refused_node_tells_only_what_is_wrong_with_that(
    form: Any, nodes: dict[str, Any], told: str
) -> None:
    """Also where the mistakes of the graph are told with those of the nodes: no word of the hidden node."""
    with pytest.raises(ConfigError) as caught:
        Pipe({"main": form(next(iter(nodes))), **nodes})
    (problem,) = caught.value.problems
    assert problem.startswith(told)
