"""The table of expected values: what a graph answers, one row per test, in the order of the table.

r, a, b are nodes; their backend is Identity unless said. Every row holds for each way of calling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fastpipe import Backend, Pipe, Request, Status

WAIT_S = 20.0


def node(backend: Any = "Identity", **keys: Any) -> dict[str, Any]:
    return {"backend": backend, **keys}


def call(pipe: Pipe, request: Request) -> None:
    pipe(request)


def call_eagerly(pipe: Pipe, request: Request) -> None:
    pipe(request, eager=True)


def submit(pipe: Pipe, request: Request) -> None:
    pipe.submit(request).result(WAIT_S)


def call_list(pipe: Pipe, request: Request) -> None:
    pipe([request])


@pytest.fixture(params=[call, call_eagerly, submit, call_list])
def way(request: pytest.FixtureRequest) -> Any:
    """How the pipe is called."""
    return request.param


@pytest.fixture
def answer(way: Callable[[Pipe, Request], None]) -> Callable[..., Request]:
    """Return what builds a graph, sends it one request, and returns what became of that."""

    def ask(request: Request, **nodes: dict[str, Any]) -> Request:
        with Pipe(nodes) as pipe:
            way(pipe, request)
        return request

    return ask


Answer = Callable[..., Request]


def test_a_diamond(answer: Answer) -> None:
    """Pow, two Identities, a join with map: 3 becomes result 9 and tmp 9."""
    got = answer(
        {"data": 3},
        a=node("Pow", next="b1,b2"),
        b1=node(next="c"),
        b2=node(next="c"),
        c=node(next="leaf", map="b1[result:data],b2[result:tmp]"),
        leaf=node(),
    )
    assert got["result"] == 9
    assert got["tmp"] == 9


def test_a_sequential(answer: Answer) -> None:
    """S[Pow,Pow] of 2 is 16."""
    assert answer({"data": 2}, main=node("S[Pow,Pow]"))["result"] == 16


def test_a_map_from_an_ancestor_that_is_no_parent(answer: Answer) -> None:
    """Identity, Pow, Pow, the last one reading from the first: 2 becomes 4."""
    got = answer({"data": 2}, a=node(next="b"), b=node("Pow", next="c"), c=node("Pow", map="a[result:data]"))
    assert got["result"] == 4


def plus_one(data: int) -> int:
    return data + 1


def test_a_request_names_its_root(answer: Answer) -> None:
    """Two roots, one adds 1, the other squares: node_name chooses."""
    assert answer({"data": 5, "node_name": "b"}, a=node(plus_one), b=node("Pow"))["result"] == 25
    assert answer({"data": 5, "node_name": "a"}, a=node(plus_one), b=node("Pow"))["result"] == 6


@pytest.mark.parametrize("name", ["or", "else"])
def test_or_does_not_run_where_there_is_a_result(answer: Answer, name: str) -> None:
    """The last node is skipped, and the result stays."""
    got = answer({"data": 5}, a=node(next="last"), last=node("RuntimeError", filter=name))
    assert got == {"data": 5, "result": 5}


def big_graph(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """r1 -> a1 -> a2 -> {a2a, a2b} -> a3 -> r2, and r1 -> b1 -> b2 -> r2."""
    nodes = {
        "r1": node(next="a1,b1"),
        "a1": node(next="a2"),
        "a2": node(next="a2a,a2b"),
        "a2a": node(next="a3"),
        "a2b": node(next="a3"),
        "a3": node(next="r2", map="a2a[result:data],a2b[result:data_2]"),
        "b1": node(next="b2"),
        "b2": node(next="r2"),
        "r2": node(map="a3[result:data],b2[result:data_2]"),
    }
    return {name: {**keys, **changes.get(name, {})} for name, keys in nodes.items()}


def test_joins_behind_joins(answer: Answer) -> None:
    """The graph of the next three rows as it is: nine nodes, three joins."""
    assert answer({"data": 1}, **big_graph()) == {"data": 1, "data_2": 1, "result": 1}


@pytest.mark.parametrize("filter", ["SubGraphSkip", "subgraph_skip", lambda request: Status.SubGraphSkip])
def test_a_sub_graph_is_skipped(answer: Answer, filter: Any) -> None:
    """a1 hides a1 to a3, which would raise; what r2 maps from a3 it reads from a1: the result of r1."""
    raises = {"backend": "RuntimeError"}
    got = answer(
        {"data": 1}, **big_graph(a1={**raises, "filter": filter}, a2=raises, a2a=raises, a2b=raises, a3=raises)
    )
    assert got == {"data": 1, "data_2": 1, "result": 1}


@pytest.mark.parametrize("filter", ["SerialSkip", "serial_skip", lambda request: Status.SerialSkip])
def test_a_chain_is_skipped(answer: Answer, filter: Any) -> None:
    """b1 hides b1 and b2, which would raise, up to the join r2."""
    raises = {"backend": "RuntimeError"}
    got = answer({"data": "1"}, **big_graph(b1={**raises, "filter": filter}, b2=raises))
    assert got["result"] == "1"


def test_break_at_a_branch_ends_the_request_with_the_dict_there(answer: Answer) -> None:
    """What other branches do no longer matters; there is no result."""
    assert answer({"data": 1}, **big_graph(a2a={"filter": "Break"}, a3={"backend": "RuntimeError"})) == {"data": 1}


def test_a_logical_node_shares_the_instances_of_its_name(way: Callable[[Pipe, Request], None]) -> None:
    """rec.2 has its own place in the graph; its own `max` is ignored with a warning."""
    with pytest.warns(UserWarning, match=r"rec\.2.*shares the instances of 'rec'.*'max' is ignored"):
        pipe = Pipe(
            {
                "in": node(next="rec,rec.2"),
                "rec": node(next="final"),
                "rec.2": {"max": 2, "next": "final"},
                "final": node(map="rec[result:data],rec.2[result:data_2]"),
            }
        )
    with pipe:
        request: Request = {"data": 1}
        way(pipe, request)
        assert request["result"] == request["data_2"] == 1
        assert pipe.stats()["nodes"]["rec"]["requests"] == 2
        assert set(pipe.stats()["nodes"]) == {"in", "rec", "final"}


@pytest.mark.parametrize("backend", ["MapReduce", "S[MapReduce]"])
def test_each_element_of_a_list_runs_through_a_graph(answer: Answer, backend: str) -> None:
    """MapReduce over five numbers to a Pow graph."""
    got = answer({"data": [1, 2, 3, 4, 5]}, main=node(backend, jump="pow"), pow=node("Pow"))
    assert got == {"data": [1, 2, 3, 4, 5], "result": [1, 4, 9, 16, 25]}


@pytest.mark.parametrize("last", [{}, {"map": "b[result:data]"}, {"filter": "Skip"}, {"filter": "Break"}])
@pytest.mark.parametrize("backend", ["Jump", "S[Jump]"])
def test_a_jump_answers_as_the_graph_in_its_place(answer: Answer, backend: str, last: dict[str, Any]) -> None:
    """a, then b and c, then d: once as a chain, once with b and c in a graph of their own."""
    inner = {"b": node("Pow"), "c": node("S[Pow,(run)Add]", key="unit", value="cm", **last)}
    inline = {"a": node(plus_one, next="b"), "b": {**inner["b"], "next": "c"}, "c": {**inner["c"], "next": "d"}}
    apart = {"a": node(plus_one, next="jump"), "jump": node(backend, jump="b", next="d")}
    got = answer({"data": 2}, **apart, b={**inner["b"], "next": "c"}, c=inner["c"], d=node("Pow"))
    expected = answer({"data": 2}, **inline, d=node("Pow"))
    if last == {"filter": "Break"}:  # ends the graph that it is in
        assert expected == {"data": 2}
        assert got == {"data": 2}
    else:
        assert got == expected


def test_a_node_that_raises_fails_the_request_with_its_type(answer: Answer) -> None:
    """From the middle of a graph: the type, the node in the notes, and no result."""
    request: Request = {"data": 1, "result": "old"}
    with pytest.raises((RuntimeError, ExceptionGroup)) as raised:
        answer(request, a=node(next="b"), b=node("RuntimeError", next="c"), c=node())
    error = raised.value.exceptions[0] if isinstance(raised.value, ExceptionGroup) else raised.value
    assert type(error) is RuntimeError
    assert any("node 'b'" in note for note in error.__notes__)
    assert request == {"data": 1}


@pytest.mark.parametrize("eager", [False, True])
def test_of_a_list_the_second_may_fail(eager: bool) -> None:
    """Three requests through two nodes: the others have results, the group has one member that names index 1."""

    class FailsOnTwo(Backend):
        def forward(self, batch: list[Request]) -> None:
            if any(request["data"] == 2 for request in batch):
                raise ValueError("two")
            for request in batch:
                request["result"] = request["data"]

    requests: list[Request] = [{"data": 1}, {"data": 2}, {"data": 3}]
    with (
        Pipe(a=node(next="b"), b=node(FailsOnTwo, max=4)) as pipe,
        pytest.raises(ExceptionGroup) as raised,
    ):
        pipe(requests, eager=eager)
    (error,) = raised.value.exceptions
    assert type(error) is ValueError
    assert any("request 1 of a list of 3" in note for note in error.__notes__)
    assert [request.get("result") for request in requests] == [1, None, 3]
