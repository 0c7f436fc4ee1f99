"""One of several: of leaves and of what a map reads, whichever has run."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from helpers import Named, all_ways

from fastpipe import Backend, Pipe, Request, Status
from fastpipe.config.reading import load
from fastpipe.config.wiring import compile_graph
from fastpipe.errors import ConfigError
from fastpipe.show.picture import Picture

WAIT_S = 20.0


def node(backend: Any = Named, **keys: Any) -> dict[str, Any]:
    return {"backend": backend, **keys}


def only(*wanted: str, otherwise: Status = Status.Skip) -> Callable[[Request], Status]:
    """A filter: run for requests of these kinds."""

    def decide(request: Request) -> Status:
        if request["kind"] not in wanted:
            return otherwise
        request["data"] = request.pop("result", request["data"])
        return Status.Run

    return decide


def results(*kinds: str, **nodes: dict[str, Any]) -> list[Any]:
    """Return the results of requests of these kinds; None where there is none."""
    return [all_ways({"data": "x", "kind": kind}, **nodes).get("result") for kind in kinds]


# ---- several leaves --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("light", "heavy"), ("heavy", "light")], ids=str)
def test_of_two_leaves_the_one_that_ran_answers(order: tuple[str, str]) -> None:
    """In whatever order they stand in the file: the other one's dict is that of the node before."""
    leaves = {name: node(filter=only(name)) for name in order}
    answered = all_ways({"data": "x", "kind": "light"}, a=node(next="light,heavy"), **leaves)
    assert answered == {
        "data": "x", "kind": "light", "result": "light(a(x))", "a": True, "light": True, "answered_by": "light",
    }  # fmt: skip
    assert results("light", "heavy", a=node(next="light,heavy"), **leaves) == ["light(a(x))", "heavy(a(x))"]


@pytest.mark.parametrize("status", [Status.SerialSkip, Status.SubGraphSkip], ids=str)
def test_a_leaf_that_is_hidden_by_a_skip_has_not_run(status: Status) -> None:
    """The skip begins at the node before it."""
    nodes = {
        "a": node(next="light,heavy"),
        "light": node(filter=only("light", otherwise=status), next="light2"),
        "light2": node(),
        "heavy": node(filter=only("heavy", otherwise=status), next="heavy2"),
        "heavy2": node(),
    }
    assert results("light", "heavy", **nodes) == ["light2(light(a(x)))", "heavy2(heavy(a(x)))"]


def test_of_leaves_none_of_which_ran_there_is_no_answer() -> None:
    """What an inner node has made is no result of the graph."""
    nodes = {name: node(filter=only(name)) for name in ("light", "heavy")}
    with Pipe(a=node(next="light,heavy"), **nodes) as pipe:
        request = {"data": "x", "kind": "other", "result": "old", "answered_by": "old"}
        assert pipe(request) == {"data": "x", "kind": "other"}
        assert pipe.stats()["requests"]["done"] == 1


def test_the_only_leaf_may_be_skipped_and_the_result_before_it_stays() -> None:
    """That is what ``or`` is for."""
    assert all_ways({"data": "x"}, a=node(next="b"), b=node(filter="or"))["result"] == "a(x)"


def test_of_leaves_that_all_ran_the_last_in_the_file_wins() -> None:
    """With the keys of all of them."""
    nodes = {"b": node(), "skipped": node(filter="Skip"), "c": node()}
    answered = all_ways({"data": "x"}, a=node(next="c,skipped,b"), **nodes)
    assert (answered["result"], answered["answered_by"]) == ("c(a(x))", "c")
    assert answered["b"]
    assert "skipped" not in answered


def test_a_round_is_of_what_the_leaves_that_ran_have_made() -> None:
    """Of two, one of which sends the request round: what ran comes again, until a filter ends it."""

    def until_long(request: Request) -> Status:
        if len(request.get("result", request["data"])) > 20:
            return Status.Break
        request["data"] = request.pop("result", request["data"])
        return Status.Run

    nodes = {
        "a": node(filter=until_long, next="b,c"),
        "b": node(filter=only("b"), restart="a"),
        "c": node(filter=only("c"), restart="a"),
    }
    for kind in "bc":
        answered = all_ways({"data": "x", "kind": kind}, **nodes)
        assert answered["result"] == f"{kind}(a({kind}(a({kind}(a({kind}(a(x))))))))"


def test_where_no_leaf_ran_a_round_begins_with_the_request_as_it_is() -> None:
    """Skip says nothing against going round."""

    def three_times(request: Request) -> Status:
        request["data"] = request.pop("result", request["data"])
        return Status.Break if request["data"].count("a") == 3 else Status.Run

    nodes = {"a": node(filter=three_times, next="b,c"), "b": node(filter="Skip", restart="a"), "c": node(filter="Skip")}
    with Pipe(nodes) as pipe:
        assert "result" not in pipe({"data": "x"})
        assert pipe.stats()["nodes"]["a"]["requests"] == 3


# ---- map = "light|heavy" ---------------------------------------------------------------------------------------------


def joined(written: Any = "light|heavy[result:data]", **filters: Any) -> dict[str, dict[str, Any]]:
    """a -> {light, heavy} -> join, which reads one of them."""
    return {
        "a": node(next="light,heavy"),
        "light": node(filter=filters.get("light", only("light", "both")), next="join"),
        "heavy": node(filter=filters.get("heavy", only("heavy", "both")), next="join"),
        "join": node(map=written),
    }


@pytest.mark.parametrize(
    "written", ["light|heavy[result:data]", " light | heavy ", ["light|heavy"], {"light|heavy": {"result": "data"}}]
)
def test_a_map_reads_whichever_of_several_ran(written: Any) -> None:
    """In all forms of ``map``."""
    assert results("light", "heavy", **joined(written)) == ["join(light(a(x)))", "join(heavy(a(x)))"]


def test_of_several_that_ran_the_first_named_is_read() -> None:
    """The order is that of the map, not of the file."""
    assert results("both", **joined()) == ["join(light(a(x)))"]
    assert results("both", **joined("heavy|light")) == ["join(heavy(a(x)))"]


def test_of_several_none_of_which_ran_nothing_can_be_read() -> None:
    """Though a map that names one reads what came to it."""
    with Pipe(joined()) as pipe, pytest.raises(KeyError, match=r"'join' reads 'light\|heavy', of which none ran for"):
        pipe({"data": "x", "kind": "other"})
    assert results("other", **joined("light")) == ["join(a(x))"]


def test_what_is_hidden_by_a_skip_is_not_read() -> None:
    """The nodes behind the one whose filter was asked."""
    for status in (Status.SerialSkip, Status.SubGraphSkip):
        nodes = joined("light2|heavy", light=only("light", otherwise=status))
        nodes["light"]["next"] = "light2"
        nodes["light2"] = node(next="join")
        assert results("light", "heavy", **nodes) == ["join(light2(light(a(x))))", "join(heavy(a(x)))"]


def test_one_of_several_may_be_read_beside_others() -> None:
    """Of a node alone, too, that is one of them."""
    nodes = joined("light|heavy[result:data],a[result:first],light[kind:kind]")
    for kind in ("light", "heavy"):
        answered = all_ways({"data": "x", "kind": kind}, **nodes)
        assert (answered["result"], answered["first"]) == (f"join({kind}(a(x)))", "a(x)")


def test_a_better_answer_is_read_where_there_is_one() -> None:
    """The heavy model runs behind the light one, where that is not sure."""
    nodes = {
        "light": node(next="heavy"),
        "heavy": node(filter=only("hard"), next="last"),
        "last": node(map="heavy|light"),
    }
    assert results("hard", "easy", **nodes) == ["last(heavy(light(x)))", "last(light(x))"]


def test_one_that_cannot_be_reached_has_not_run() -> None:
    """A request that enters in the middle."""
    assert all_ways({"data": "x", "kind": "light"}, "light", **joined())["result"] == "join(light(x))"
    assert all_ways({"data": "x", "kind": "heavy"}, "heavy", **joined())["result"] == "join(heavy(x))"
    with Pipe(joined()) as pipe, pytest.raises(KeyError, match="of which none ran"):
        pipe({"data": "x", "kind": "heavy"}, entry="light")


def test_a_graph_inside_a_node_is_read_like_any_other() -> None:
    """A Jump that was skipped has not run; one that ran has."""
    nodes = joined() | {"inner": node()}
    nodes["light"]["backend"] = "Jump"
    nodes["light"]["jump"] = "inner"
    assert results("light", "heavy", **nodes) == ["join(inner(a(x)))", "join(heavy(a(x)))"]


def test_each_of_several_is_let_go_of_once_it_was_read() -> None:
    """Also those that were not chosen, and those whose reader is skipped."""

    class Big:
        """Something that can be watched."""

    watched: list[weakref.ref[Big]] = []
    alive: list[int] = []

    class Makes(Backend):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = 1
                request["big"] = Big()
                watched.append(weakref.ref(request["big"]))

    class Watches(Backend):
        def forward(self, batch: list[Request]) -> None:
            gc.collect()
            alive.append(sum(each() is not None for each in watched))
            for request in batch:
                request["result"] = 1

    nodes = {
        "a": node("Identity", next="b,c,skip"),
        "b": node(Makes, next="join"),
        "c": node(Makes, next="join"),
        "join": node("Identity", map="b|c", next="last"),
        "skip": node("Identity", filter=only("run", otherwise=Status.SubGraphSkip), next="reads"),
        "reads": node("Identity", map="a|skip", next="last"),
        "last": node(Watches, map="join[result:data]"),
    }
    with Pipe(nodes) as pipe:
        pipe({"data": 1, "kind": "x"})
    assert len(watched) == 2
    assert alive == [0]


# ---- mistakes, pictures, steps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("light|heavi", "node 'join': map: no node is named 'heavi'; did you mean 'heavy'?"),
        ("light|other", "node 'join': map: 'other' does not come before 'join'; these do: ['a', 'heavy', 'light']"),
        ("light|light", "expected the names of different nodes around '|', got 'light|light'"),
        ("light|", "column 1: expected 'node[key there:key here]'"),
        ("|light", "expected the names of different nodes around '|', got '|light'"),
        ({"light|": {"result": "data"}}, "expected the names of different nodes around '|', got 'light|'"),
        ("light|heavy[result:x]", "node 'join': map: nothing becomes 'data'"),
        ("light|heavy,a[result:data]", "node 'join': map: 'data' is written twice"),
    ],
)
def test_a_mistake_is_said_in_words(written: Any, words: str) -> None:
    """Each name is looked at."""
    with pytest.raises(ConfigError) as raised:
        Pipe(joined(written), other=node())
    assert words in str(raised.value)


def test_a_name_with_a_bar_is_refused() -> None:
    """It would be two."""
    with pytest.raises(ConfigError, match=r"node 'a\|b': no name for a node"):
        Pipe({"a|b": node()})


def test_a_picture_says_that_it_is_one_of_several() -> None:
    """And in which order they are looked at; also on an edge from a node that is no parent."""
    nodes = joined("light|heavy|a[result:data]")
    configs = load(nodes, {}).nodes
    picture = Picture(configs, compile_graph(configs, {}))
    labels = [f"choice {place} of 3: result → data" for place in (1, 2, 3)]
    for drawn in (picture.mermaid(), picture.dot(), picture.html()):
        assert all(label in drawn for label in labels)
    text = " ".join(str(picture).split())
    assert f"takes light: {labels[0]}; heavy: {labels[1]}; a: {labels[2]}" in text


@pytest.mark.parametrize("written", ["light|heavy", "heavy|light"])
@pytest.mark.parametrize("kind", ["light", "heavy"])
def test_the_debugger_says_which_of_several_was_read(written: str, kind: str) -> None:
    """And of what it was one, in the words of the file."""
    with Pipe(joined(written)) as pipe, pipe.debug({"data": "x", "kind": kind}) as debugger:
        debugger.run()
        last = debugger.history[-1]
    assert last.why == f"no filter: its map made a new request, of {kind} (the first of {written} that has run)"
    assert last.before["data"] == f"{kind}(a(x))"


def test_the_debugger_says_so_of_a_node_with_a_filter_too() -> None:
    """Beside what the filter has said."""
    nodes = joined()
    nodes["join"]["filter"] = "Run"
    with Pipe(nodes) as pipe, pipe.debug({"data": "x", "kind": "heavy"}) as debugger:
        debugger.run()
        last = debugger.history[-1]
    read = "its map has read heavy (the first of light|heavy that has run)"
    assert last.why == f"its filter 'Run' says Run: it runs; {read}"


def test_the_debugger_knows_that_a_request_which_comes_again_has_run_nothing_yet() -> None:
    """The second time the other branch runs."""
    nodes = joined("heavy|light")
    nodes["join"]["restart"] = "a"
    with Pipe(nodes, obey_request_keys=["restart"]) as pipe:
        request = {"data": "x", "kind": "heavy", "restart": True}
        with pipe.debug(request) as debugger:
            read = []
            for step in debugger:
                if step.node == "join":
                    read.append(step.why.partition("of ")[2].partition(" ")[0])
                    if len(read) == 2:
                        break
                    debugger.request["kind"] = "light"
    assert read == ["heavy", "light"]
