"""Graphs: what compiles, what is refused and in which words, and what a request becomes on its way."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from fastpipe import (
    Backend,
    BackendError,
    ConfigError,
    Filter,
    GraphError,
    NoResult,
    Pipe,
    Request,
    Status,
    UnknownNode,
)
from fastpipe.config.graph import Graph
from fastpipe.config.reading import load
from fastpipe.config.wiring import compile_graph

WAIT_S = 20.0


class Affine(Backend):
    """The result is data * times + plus; the request's trail gets another entry."""

    def __init__(self, *, times: int = 1, plus: int = 0, node_name: str = "") -> None:
        self.times = times
        self.plus = plus
        self.name = node_name

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = request["data"] * self.times + self.plus
            request["trail"] = (*request.get("trail", ()), self.name)


class Silent(Backend):
    """Leaves no result."""

    def forward(self, batch: list[Request]) -> None:
        pass


def node(backend: Any = "Identity", **keys: Any) -> dict[str, Any]:
    return {"backend": backend, **keys}


def compiled(**nodes: dict[str, Any]) -> Graph:
    return compile_graph(load(nodes, {}).nodes, {})


def answer(request: Request, **nodes: dict[str, Any]) -> Request:
    """Return what a graph makes of a request."""
    with Pipe(nodes) as pipe:
        answered: Request = pipe(request)
        return answered


# ---- what does not compile -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ({"a": node(next="bb"), "b": node()}, "node 'a': next: no node is named 'bb'; did you mean 'b'?"),
        ({"a": node(next="b"), "b": node(next="c"), "c": node(next="a")}, "the graph has a cycle: a -> b -> c -> a"),
        ({"a": node(next="a")}, "the graph has a cycle: a -> a"),
        (
            {"a": node(next="b,c"), "b": node(next="d"), "c": node(next="d"), "d": node()},
            "node 'd' joins 'b', 'c': it needs a map that says which keys it takes from each",
        ),
        (
            {"a": node(next="b"), "b": node(map="a[result:data],c[result:x]"), "c": node()},
            "node 'b': map: 'c' does not come before 'b'; these do: ['a']",
        ),
        ({"a": node(next="b"), "b": node(map="aa[result:data]")}, "node 'b': map: no node is named 'aa'"),
        ({"a": node(next="b"), "b": node(map="a[result:x]")}, "node 'b': map: nothing becomes 'data'"),
        (
            {"a": node(next="b,c"), "b": node(next="d"), "c": node(next="d"), "d": node(map="[result:data]")},
            "node 'd': map: a node must be named before [...], as 'd' has 2 parents",
        ),
        ({"m": node("Jump", jump="s"), "s": node(next="t"), "t": node("Jump", jump="m")}, "m -> s -> t -> m"),
        ({"m": node("Jump", jump="ss"), "s": node()}, "node 'm': jump: no node is named 'ss'; did you mean 's'?"),
        (
            {"m": node("Jump", jump="t"), "s": node(next="t"), "t": node()},
            "node 'm': jump: 't' is no root, as 's' leads to it",
        ),
        ({"m": node("Jump", jump="m")}, "m -> m"),
        ({"m": node("S[Identity,Jump]", jump="s"), "s": node("Jump", jump="m")}, "m -> s -> m"),
    ],
)
def test_a_mistake_in_the_wiring_is_said_in_words(nodes: dict[str, Any], words: str) -> None:
    """Node, key, and what would be right; before anything is built."""
    with pytest.raises(GraphError) as raised:
        Pipe(nodes)
    assert words in str(raised.value)


def test_all_mistakes_of_the_wiring_are_said_at_once() -> None:
    """Unknown names, joins without map and maps from nowhere: one error, one sentence each."""
    with pytest.raises(GraphError) as raised:
        Pipe(
            a=node(next="b,c,nobody"),
            b=node(next="d"),
            c=node(next="d"),
            d=node(next="e"),
            e=node(map="a[result:x],f[result:data]"),
            f=node(),
        )
    text = " ".join(raised.value.problems)
    assert "'nobody'" in text
    assert "node 'd' joins 'b', 'c'" in text
    assert "'f' does not come before 'e'" in text


def test_nothing_is_started_for_a_graph_that_does_not_compile() -> None:
    """No constructor runs and no thread starts."""
    built = []

    class Notes(Silent):
        def __init__(self) -> None:
            built.append(self)

    before = set(threading.enumerate())
    with pytest.raises(GraphError):
        Pipe(a=node(Notes, next="nobody"))
    assert not built
    assert set(threading.enumerate()) <= before  # one of an earlier test may still be ending


def test_a_compiled_graph_knows_its_roots_leaves_and_joins() -> None:
    """Indices are in file order; a walk that enters at a root meets only what it can reach."""
    graph = compiled(
        a=node(next="b,c"),
        b=node(next="d"),
        c=node(next="d"),
        d=node(map="b[result:data],c[result:x]"),
        other=node(next="last"),
        last=node(),
    )
    assert graph.roots == (0, 4)
    assert graph.entry(0).pending[3] == 2
    assert graph.entry(0).leaves == (3,)
    assert graph.entry(4).pending == ()
    assert graph.entry(4).leaves == (5,)
    assert graph.nodes[3].upstream == {0, 1, 2}


# ---- where a request enters ------------------------------------------------------------------------------------------


def test_a_request_that_names_no_node_is_told_the_roots() -> None:
    """Two roots and no node_name, or an unknown one: refused, however it is called."""
    with Pipe(a=node(Affine, plus=1), b=node("Pow")) as pipe:
        with pytest.raises(UnknownNode, match=r"several roots.*\['a', 'b'\]"):
            pipe({"data": 5})
        with pytest.raises(UnknownNode, match=r"'c'.*\['a', 'b'\]"):
            pipe({"data": 5, "node_name": "c"})
        with pytest.raises(KeyError):
            pipe.submit({"data": 5})


# ---- what travels along an edge --------------------------------------------------------------------------------------


def test_next_alone_moves_the_result_to_data() -> None:
    """The default filter between two nodes; other keys travel along, and are written back."""
    got = answer({"data": 1, "tag": "t"}, a=node(Affine, plus=1, next="b"), b=node(Affine, times=10))
    assert got == {"data": 1, "result": 20, "tag": "t", "trail": ("a", "b")}


def test_without_a_result_the_graph_ends() -> None:
    """swap finds nothing to move: where that is no error, the request's dict at that place is the answer."""
    nodes = {"a": node(Silent, next="b"), "b": node("RuntimeError")}
    with Pipe(nodes, without_result="end") as pipe:
        assert pipe({"data": 1, "result": "old"}) == {"data": 1}
    with pytest.raises(NoResult, match="node 'a': step Silent gave no result"):
        answer({"data": 1, "result": "old"}, **nodes)


def test_branches_do_not_see_each_others_keys() -> None:
    """A dict with several readers is copied for each, shallowly."""

    class Writes(Backend):
        def __init__(self, *, key: str) -> None:
            self.key = key

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = sorted(key for key in request if key.startswith("own"))
                request[self.key] = True

    got = answer(
        {"data": 1},
        a=node(next="b,c"),
        b=node(Writes, key="own b", next="d"),
        c=node(Writes, key="own c", next="d"),
        d=node(map="b[result:data],c[result:other]"),
    )
    assert got["result"] == []
    assert got["other"] == []


def test_a_map_makes_a_new_dict_of_the_named_keys_only() -> None:
    """What is not named stays behind; values are handed over as they are."""
    value = [1]
    seen: list[Request] = []

    class Looks(Backend):
        def forward(self, batch: list[Request]) -> None:
            seen.extend(dict(request) for request in batch)
            for request in batch:
                request["result"] = request["data"]

    got = answer({"data": value, "tag": "t"}, a=node(next="b"), b=node(Looks, map="a[result:data,tag:label]"))
    assert seen == [{"data": value, "label": "t"}]
    assert got["result"] is value
    assert got["tag"] == "t"  # the caller's own extra key


def test_the_context_comes_along_with_a_map() -> None:
    """The same object, without being named; naming it otherwise is respected."""
    context = object()
    seen: list[Request] = []

    class Looks(Backend):
        def forward(self, batch: list[Request]) -> None:
            seen.extend(dict(request) for request in batch)
            for request in batch:
                request["result"] = request["data"]

    answer({"data": 1, "context": context}, a=node(next="b"), b=node(Looks, map="a[result:data]"))
    answer({"data": 1, "context": context}, a=node(next="b"), b=node(Looks, map="a[result:data,context:renamed]"))
    assert seen[0]["context"] is context
    assert "context" not in seen[1]
    assert seen[1]["renamed"] is context


def test_a_map_that_finds_no_key_fails_the_request_in_words() -> None:
    """Which node, which key, whose keys, and what there is."""
    with pytest.raises(
        KeyError, match=r"map of node 'b' reads 'missing' from 'a', whose keys are \['data', 'result'\]"
    ):
        answer({"data": 1}, a=node(next="b"), b=node(map="a[missing:data]"))


def test_map_may_leave_out_the_name_of_the_only_parent() -> None:
    """``map="[result:data]"``, and a name alone for ``[result:data]``."""
    assert answer({"data": 3}, a=node("Pow", next="b"), b=node(map="[result:data]"))["result"] == 9
    assert answer({"data": 3}, a=node("Pow", next="b"), b=node(map="a"))["result"] == 9


def test_several_leaves_write_all_their_keys() -> None:
    """Later leaves in file order win; answered_by says which one did."""
    got = answer(
        {"data": 2},
        a=node(next="c,b"),
        b=node(Affine, plus=1),
        c=node(Affine, plus=2),
    )
    assert got["result"] == 4
    assert got["answered_by"] == "c"
    assert got["trail"] == ("c",)


def test_a_fan_out_runs_its_branches_at_the_same_time() -> None:
    """Three branches meet in a barrier."""
    barrier = threading.Barrier(3)

    class Meets(Affine):
        def forward(self, batch: list[Request]) -> None:
            barrier.wait(WAIT_S)
            super().forward(batch)

    nodes = {name: node(Meets, plus=index, next="d") for index, name in enumerate("bce")}
    with Pipe(a=node(next="b,c,e"), **nodes, d=node(map="b[result:data],c[result:c],e[result:e]")) as pipe:
        got = pipe({"data": 1})
        assert (got["result"], got["c"], got["e"]) == (1, 2, 3)
        got = pipe.submit({"data": 2}).result(WAIT_S)
        assert (got["result"], got["c"], got["e"]) == (2, 3, 4)


def test_one_failing_branch_fails_the_request_once() -> None:
    """The other branch's end is dropped; the join never runs."""
    ran = []

    class Joins(Affine):
        def forward(self, batch: list[Request]) -> None:
            ran.append(batch)
            super().forward(batch)

    with Pipe(
        a=node(next="b,c"),
        b=node("RuntimeError", next="d"),
        c=node(next="d"),
        d=node(Joins, map="b[result:data],c[result:x]"),
    ) as pipe:
        for _ in range(20):
            with pytest.raises(RuntimeError):
                pipe({"data": 1})
        counts = pipe.stats()["requests"]
    assert counts["failed"] == counts["accepted"] == 20
    assert not ran


def test_requests_pipeline_through_a_chain() -> None:
    """While one request is in the second node, another is in the first: they meet in a barrier."""
    barrier = threading.Barrier(2)
    meets_in = {"early": "b", "late": "a"}

    class Meets(Backend):
        def __init__(self, *, node_name: str) -> None:
            self.name = node_name

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                if meets_in[request["data"]] == self.name:
                    barrier.wait(WAIT_S)
                request["result"] = request["data"]

    with Pipe(a=node(Meets, next="b"), b=node(Meets)) as pipe:
        futures = [pipe.submit({"data": data}) for data in ("early", "late")]
        assert [future.result(WAIT_S)["result"] for future in futures] == ["early", "late"]


# ---- filters ---------------------------------------------------------------------------------------------------------


def run_with(filter: Any) -> Request:
    return answer(
        {"data": 1}, a=node(Affine, plus=1, next="b"), b=node(Affine, plus=10, filter=filter, next="c"), c=node()
    )


def test_skip_goes_on_with_the_request_as_it_is() -> None:
    """The node does not run, its successors do."""
    assert run_with("Skip")["trail"] == ("a",)
    assert run_with("Skip")["result"] == 2


def test_run_does_not_move_the_result() -> None:
    """The data stays what it was before the previous node."""
    assert run_with("run")["result"] == 11


def test_break_makes_the_dict_the_answer() -> None:
    """Nothing behind it runs."""
    assert run_with("break")["trail"] == ("a",)


def test_error_fails_the_request() -> None:
    """A BackendError names the node."""
    with pytest.raises(BackendError, match="filter of node 'b' said Error"):
        run_with("Error")


class Above(Filter):
    """Runs what is above a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self, request: Request) -> Status:
        return Status.Run if request["result"] > self.limit else Status.Skip


@pytest.mark.parametrize(("limit", "trail"), [(1, ("a", "b")), (2, ("a",))])
def test_a_filter_may_be_an_object_of_the_users(limit: int, trail: tuple[str, ...]) -> None:
    """Subclasses of Filter decide by request; plain functions as well."""
    assert run_with(Above(limit))["trail"] == trail
    assert run_with(lambda request: Above(limit)(request))["trail"] == trail


def test_a_filter_may_prepare_the_request_without_touching_the_callers() -> None:
    """What it writes is seen by the node; the caller's dict stays as it was if the request fails."""

    def prepares(request: Request) -> Status:
        request["data"] = 100
        return Status.Run

    request = {"data": 1}
    assert answer({"data": 1}, a=node(filter=prepares))["result"] == 100
    with pytest.raises(RuntimeError):
        answer(request, a=node("RuntimeError", filter=prepares))
    assert request == {"data": 1}


@pytest.mark.parametrize("status", [True, False, 0, 1, None, "Run", 99, 1.0])
def test_what_is_no_status_fails_the_request_in_words(status: Any) -> None:
    """A bool is no Status: whoever wrote a predicate is told so, not silently misunderstood."""
    with pytest.raises(BackendError, match=r"filter of node 'b' must return a fastpipe\.Status"):
        run_with(lambda request: status)


def test_what_a_filter_raises_is_the_requests_error() -> None:
    """With a note that names the node in front of which it stands."""

    def breaks(request: Request) -> Status:
        raise ZeroDivisionError("filter")

    for call in ("call", "submit"):
        with Pipe(a=node(next="b"), b=node(filter=breaks)) as pipe, pytest.raises(ZeroDivisionError) as raised:
            pipe({"data": 1}) if call == "call" else pipe.submit({"data": 1}).result(WAIT_S)
        assert any("node 'b'" in note for note in raised.value.__notes__)


def test_a_filter_of_a_root_is_asked_too() -> None:
    """Break at the root: the answer is the request as it came."""
    assert answer({"data": 1, "result": "old"}, a=node("RuntimeError", filter="Break")) == {"data": 1}
    assert answer({"data": 1}, a=node("RuntimeError", filter="Skip")) == {"data": 1}


@pytest.mark.parametrize("name", ["or", "else"])
def test_or_runs_where_there_is_no_result(name: str) -> None:
    """The data is that of the node before."""
    assert answer({"data": 5}, a=node(Silent, next="b"), b=node(Affine, plus=1, filter=name))["result"] == 6


# ---- logical nodes ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:node 'rec.2'")
def test_visits_of_logical_nodes_share_batches() -> None:
    """Both places of rec meet in one batch, and go on to where each belongs."""
    sizes = []

    class Sizes(Affine):
        max_batch = 8

        def forward(self, batch: list[Request]) -> None:
            sizes.append(len(batch))
            super().forward(batch)

    with Pipe(
        {
            "in": node(next="rec,rec.2"),
            "rec": node(Sizes, plus=1, next="final"),
            "rec.2": {"next": "twice"},
            "twice": node(Affine, times=2, next="final"),
            "final": node(map="rec[result:data],twice[result:other]"),
        }
    ) as pipe:
        for data in range(5):
            got = pipe({"data": data})
            assert (got["result"], got["other"]) == (data + 1, 2 * (data + 1))
    assert sizes == [2] * 5


# ---- long and deep ---------------------------------------------------------------------------------------------------


def test_a_chain_of_a_thousand_nodes() -> None:
    """Built, called both ways, and closed; no recursion limit is hit."""
    count = 1000
    nodes = {
        f"n{index}": node(Affine, plus=1, **({"next": f"n{index + 1}"} if index + 1 < count else {}))
        for index in range(count)
    }
    with Pipe(nodes) as pipe:
        assert pipe({"data": 0})["result"] == count
        assert pipe.submit({"data": 1}).result(WAIT_S)["result"] == count + 1


def test_a_long_chain_of_skips() -> None:
    """600 nodes that do not run, one after the other."""
    count = 600
    nodes = {
        f"n{index}": node("RuntimeError", filter="Skip", **({"next": f"n{index + 1}"} if index + 1 < count else {}))
        for index in range(count)
    }
    with Pipe(nodes) as pipe:
        assert pipe({"data": 0}) == {"data": 0}
        assert pipe.submit({"data": 0}).result(WAIT_S) == {"data": 0}


def test_mistakes_of_the_graph_are_told_with_those_of_the_nodes() -> None:
    """A `next` to nowhere beside a backend that nobody knows and a misspelt key: three mistakes at once."""
    with pytest.raises(ConfigError) as raised:
        Pipe({"a": {"backend": "Pow", "next": "bb"}, "b": {"backend": "Pov"}, "c": {"backend": "Pow", "maxx": 2}})
    assert sorted(problem.node for problem in raised.value.problems) == ["a", "b", "c"]
    text = str(raised.value)
    assert all(word in text for word in ("no node is named 'bb'", "mean 'Pow'?", "mean 'max'?"))
