"""The ways of a request through a graph: skipped parts, entering anywhere, loops; what is copied and what is kept."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from helpers import all_ways

from fastpipe import Backend, NoResult, Pipe, Request, RestartLimit, Status, UnknownNode
from fastpipe.config.graph import Graph
from fastpipe.config.reading import load
from fastpipe.config.wiring import compile_graph
from fastpipe.errors import ConfigError, GraphError

WAIT_S = 20.0


class Trail(Backend):
    """The result is the data plus one; the request's trail gets the node's name."""

    def __init__(self, *, node_name: str) -> None:
        self.name = node_name

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = request["data"] + 1
            request["trail"] = (*request.get("trail", ()), self.name)


class Silent(Backend):
    """Leaves no result."""

    def forward(self, batch: list[Request]) -> None:
        pass


class Same(Backend):
    """Notes the identity of the dict it gets."""

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = request["data"]
            request["ids"] = (*request.get("ids", ()), id(request))


def node(backend: Any = Trail, **keys: Any) -> dict[str, Any]:
    return {"backend": backend, **keys}


def raises(**keys: Any) -> dict[str, Any]:
    return node("RuntimeError", **keys)


def compiled(**nodes: dict[str, Any]) -> Graph:
    return compile_graph(load(nodes, {}).nodes, {})


# ---- skips -----------------------------------------------------------------------------------------------------------


def two_branches(**filters: Any) -> dict[str, dict[str, Any]]:
    """r1 -> a1 -> a2 -> {a2a, a2b} -> a3 -> r2, and r1 -> b1 -> b2 -> r2."""
    nodes = {
        "r1": node("Identity", next="a1,b1"),
        "a1": node("Identity", next="a2"),
        "a2": node("Identity", next="a2a,a2b"),
        "a2a": node("Identity", next="a3"),
        "a2b": node("Identity", next="a3"),
        "a3": node("Identity", map="a2a[result:data],a2b[result:other]", next="r2"),
        "b1": node("Identity", next="b2"),
        "b2": node("Identity", next="r2"),
        "r2": node("Identity", map="a3[result:data],b2[result:tmp]"),
    }
    for name, chosen in filters.items():
        nodes[name]["filter"] = chosen
    return nodes


def test_a_skipped_sub_graph_takes_all_nodes_along_that_only_it_leads_to() -> None:
    """a1 to a3 are skipped, so a3 does not raise, and what r2 maps from a3 it reads from a1."""
    nodes = two_branches(a1="SubGraphSkip")
    nodes["a3"]["backend"] = "RuntimeError"
    assert all_ways({"data": 1}, **nodes) == {"data": 1, "tmp": 1, "result": 1}


def test_a_serial_skip_ends_in_front_of_a_join() -> None:
    """b1 and b2 would raise; r2 reads from b1 what it maps from b2."""
    nodes = two_branches(b1="SerialSkip")
    nodes["b1"]["backend"] = nodes["b2"]["backend"] = "RuntimeError"
    assert all_ways({"data": "1"}, **nodes)["result"] == "1"


def test_a_serial_skip_ends_at_a_fan_out() -> None:
    """a1 and a2 are skipped; a2a and a2b run, with the request as it was."""
    nodes = two_branches(a1="serial_skip")
    nodes["a1"]["backend"] = nodes["a2"]["backend"] = "RuntimeError"
    nodes["a2a"] = node("Pow", next="a3")
    assert all_ways({"data": 3}, **nodes)["result"] == 9


def test_both_skips_at_once() -> None:
    """Everything but the ends is skipped."""
    nodes = two_branches(a1="SubGraphSkip", b1="SerialSkip")
    for name in ("a1", "a2", "a2a", "a2b", "a3", "b1", "b2"):
        nodes[name]["backend"] = "RuntimeError"
    assert all_ways({"data": 2}, **nodes) == {"data": 2, "tmp": 2, "result": 2}


def test_break_in_a_branch_answers_with_its_dict() -> None:
    """The dict at a2a, without a result."""
    assert all_ways({"data": 1}, **two_branches(a2a="Break")) == {"data": 1}


def test_a_skip_over_the_leaf_ends_the_request_as_it_is() -> None:
    """With both kinds; the chain and the sub-graph of b have everything behind it."""
    for name in ("SerialSkip", "SubGraphSkip"):
        answered = all_ways({"data": 1}, a=node(next="b"), b=raises(filter=name, next="c"), c=raises())
        assert answered == {"data": 1, "result": 2, "trail": ("a",)}


def test_a_skip_at_the_root_answers_with_the_request() -> None:
    """Nothing runs."""
    nodes = two_branches(r1="SubGraphSkip")
    for keys in nodes.values():
        keys["backend"] = "RuntimeError"
    assert all_ways({"data": 1, "more": 2}, **nodes) == {"data": 1, "more": 2}


def test_of_several_leaves_those_that_are_skipped_say_nothing() -> None:
    """A skip that hides a leaf, too."""
    nodes = {
        "a": node(next="b,c"),
        "b": raises(filter="SubGraphSkip", next="b2"),
        "b2": raises(),
        "c": node(next="c2"),
        "c2": node(),
    }
    assert all_ways({"data": 1}, **nodes) == {"data": 1, "result": 4, "trail": ("a", "c", "c2"), "answered_by": "c2"}


def test_a_users_filter_may_skip_by_request() -> None:
    """The same graph, with and without the skip."""

    def small(request: Request) -> Status:
        if request["result"] < 10:
            return Status.SubGraphSkip
        request["data"] = request.pop("result")
        return Status.Run

    nodes = two_branches(a1=small)
    nodes["a2b"]["backend"] = Trail
    assert "other" not in all_ways({"data": 1}, **nodes)
    with Pipe(nodes) as pipe:
        assert pipe({"data": 10})["result"] == 10
        assert [pipe({"data": data})["result"] for data in (1, 20, 2)] == [1, 20, 2]


def test_the_parents_that_count_are_those_the_request_can_reach() -> None:
    """Entering at a, c has one parent: the chain goes on over it."""
    nodes = {
        "a": raises(filter="SerialSkip", next="c"),
        "b": node(next="c"),
        "c": node(map="a[data:data]", next="d"),
        "d": node(),
    }
    assert all_ways({"data": 1}, "a", **nodes) == {"data": 1}
    assert compiled(**nodes).entry(0).exit(0, Status.SerialSkip).hidden == (0, 2, 3)
    assert compiled(**nodes).entry(0).exit(0, Status.SubGraphSkip).hidden == (0, 2, 3)
    assert compiled(**nodes).entry(0).exit(0).hidden == (0,)


# ---- entering --------------------------------------------------------------------------------------------------------


def test_a_request_may_enter_at_any_node() -> None:
    """Nothing before it runs, and the filter there is a root's."""
    nodes = {"a": raises(next="b"), "b": node(next="c"), "c": node()}
    assert all_ways({"data": 1}, "b", **nodes)["trail"] == ("b", "c")
    assert all_ways({"data": 1}, "c", **nodes)["trail"] == ("c",)


def test_where_it_enters_a_map_is_not_looked_at() -> None:
    """The request is what the map would have made."""
    nodes = {"a": raises(next="b"), "b": node(map="a[result:data]", next="c"), "c": node()}
    assert all_ways({"data": 1}, "b", **nodes)["result"] == 3


def test_a_written_filter_is_asked_where_it_enters() -> None:
    """Only the default gives way."""
    nodes = {"a": raises(next="b"), "b": raises(filter="Skip", next="c"), "c": node(filter="run")}
    assert all_ways({"data": 1}, "b", **nodes)["trail"] == ("c",)


def test_a_join_waits_only_for_what_can_be_reached() -> None:
    """And a map that reads what cannot have run fails the request in words."""
    nodes = {"a": node(next="c"), "b": node(next="c"), "c": node(map="a[result:data]")}
    assert all_ways({"data": 1}, "a", **nodes)["result"] == 3
    with Pipe(nodes) as pipe, pytest.raises(KeyError, match="'c' reads 'a', which did not run for this request"):
        pipe({"data": 1}, entry="b")


def test_a_node_that_nobody_has_is_refused_with_the_roots() -> None:
    """And with the nearest name there is."""
    with Pipe(first=node(next="last"), second=node(), last=node()) as pipe:
        with pytest.raises(UnknownNode, match=r"'lats'.*roots are \['first', 'second'\]; did you mean 'last'"):
            pipe({"data": 1, "node_name": "lats"})
        with pytest.raises(UnknownNode, match=r"several roots.*\['first', 'second'\]"):
            pipe({"data": 1})
        with pytest.raises(UnknownNode, match=r"\['node_name'\] is of type list"):
            pipe({"data": 1, "node_name": ["last"]})
        assert pipe.stats()["requests"]["accepted"] == 0


# ---- loops -----------------------------------------------------------------------------------------------------------


def until(limit: int) -> Callable[[Request], Status]:
    def decide(request: Request) -> Status:
        return Status.Break if request["result"] >= limit else Status.Skip

    return decide


def test_a_request_goes_round_until_a_filter_lets_it_out() -> None:
    """step adds one; at 5 it is let out. Each round the result becomes the data."""
    nodes = {"step": node(next="more"), "more": node(filter=until(5), restart="step")}
    assert all_ways({"data": 0}, **nodes) == {"data": 0, "result": 5, "trail": ("step",) * 5}


def test_a_node_may_restart_itself() -> None:
    """Its own filter is asked each time it is entered."""

    def ask(request: Request) -> Status:
        if "result" in request:
            request["data"] = request["result"]
        return Status.Break if request["data"] >= 3 else Status.Run

    assert all_ways({"data": 0}, a=node(filter=ask, restart="a"))["trail"] == ("a",) * 3
    assert "trail" not in all_ways({"data": 7}, a=node(filter=ask, restart="a"))


def test_a_round_without_a_result_ends_the_request() -> None:
    """There is nothing to go on with: an error, or, where that is none, its end."""
    with Pipe({"a": node(Silent, restart="a")}, without_result="end") as pipe:
        assert pipe({"data": 0}) == {"data": 0}
    with pytest.raises(NoResult, match="node 'a': step Silent gave no result"):
        all_ways({"data": 0}, a=node(Silent, restart="a"))


def test_the_key_restart_sends_a_request_round() -> None:
    """A backend says so, for one request and not for another; the key does not come out."""

    class Again(Trail):
        def forward(self, batch: list[Request]) -> None:
            super().forward(batch)
            for request in batch:
                if request["result"] < 3:
                    request["restart"] = "b"

    nodes = {"a": node(next="b"), "b": node(Again)}
    assert all_ways({"data": 0}, **nodes) == {"data": 0, "result": 3, "trail": ("a", "b", "b")}
    assert all_ways({"data": 5}, **nodes)["trail"] == ("a", "b")
    with Pipe(a=node(Again)) as pipe, pytest.raises(UnknownNode, match=r"request\['restart'\] is 'b', and no node has"):
        pipe({"data": 0})


def test_a_limit_ends_what_nobody_lets_out() -> None:
    """By default a thousand rounds; the node that is entered again may say less. No stack grows."""
    with Pipe(a=node(restart="a", restart_limit=3)) as pipe:
        for way in (pipe, lambda request: pipe.submit(request).result(WAIT_S), lambda r: pipe(r, eager=True)):
            request = {"data": 0}
            with pytest.raises(RestartLimit, match=r"again at node 'a' for the 4th time.*restart_limit is 3"):
                way(request)
            assert request == {"data": 0}
    chain = {f"n{index}": node("Identity", filter="Skip", next=f"n{index + 1}") for index in range(50)}
    with Pipe(chain | {"n50": node(filter="Skip", restart="n0")}) as pipe, pytest.raises(RestartLimit, match="is 1000"):
        pipe({"data": 0})


def test_each_round_starts_with_nothing_but_its_dict() -> None:
    """A map reads what ran in its own round: at c, entered again, nothing has."""

    def once(request: Request) -> Status:
        return Status.Break if len(request.get("trail", ())) > 4 else Status.Skip

    nodes = {
        "a": node(next="b,c"),
        "b": node(next="d"),
        "c": node(next="d"),
        "d": node(map="b[result:data],c[trail:trail]", next="e"),
        "e": node(filter=once, restart="a"),
    }
    assert all_ways({"data": 0}, **nodes)["result"] == 6
    nodes["e"]["restart"] = "c"
    with Pipe(nodes) as pipe, pytest.raises(KeyError, match="'d' reads 'b', which did not run for this request"):
        pipe({"data": 0})


def test_a_branch_of_an_earlier_round_comes_to_nothing() -> None:
    """Break with the key restart leaves the other branch behind: held up, it ends after the new round has."""
    opened = threading.Event()

    class Held(Trail):
        def forward(self, batch: list[Request]) -> None:
            opened.wait(WAIT_S)
            super().forward(batch)

    def away(request: Request) -> Status:
        request["restart"] = "out"
        return Status.Break

    nodes = {
        "a": node(next="slow,fast"),
        "slow": node(Held, next="behind"),
        "behind": raises(),
        "fast": node(filter=away),
        "out": node(next="last"),
        "last": node(),
    }
    with Pipe(nodes) as pipe:
        future = pipe.submit({"data": 0}, entry="a")
        assert future.result(WAIT_S)["trail"] == ("a", "out", "last")
        opened.set()
    assert pipe.stats()["requests"]["failed"] == 0


def test_a_graph_that_is_jumped_to_may_go_round() -> None:
    """Each part as often as it needs."""
    nodes = {
        "all": node("MapReduce", jump="step"),
        "step": node(next="more"),
        "more": node(filter=until(4), restart="step"),
    }
    assert all_ways({"data": [0, 2, 9]}, **nodes)["result"] == [4, 4, 10]


def test_the_limit_is_counted_by_node() -> None:
    """Three times at a and three times at b are not four."""

    class Turns(Trail):
        def forward(self, batch: list[Request]) -> None:
            super().forward(batch)
            for request in batch:
                if request["result"] < 7:
                    request["restart"] = "ab"[request["result"] % 2]

    nodes = {"a": node(Turns, restart_limit=3), "b": node(Turns, restart_limit=3)}
    assert all_ways({"data": 0}, "a", **nodes)["result"] == 7


def test_a_restart_out_of_a_sub_graph_into_itself_is_refused() -> None:
    """By the node's key when it is built; by the request's key once it shows."""
    nodes = {"all": node("Jump", jump="in", next="last"), "in": node(restart="all"), "last": node()}
    with pytest.raises(GraphError, match="'in': restart: from 'all' the jump of 'all' leads back to 'in'"):
        Pipe(nodes)

    class Back(Trail):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request.update(result=0, restart="all")

    nodes["in"] = node(Back)
    with Pipe(nodes) as pipe, pytest.raises(RestartLimit, match="node 'all': parts within parts without end"):
        pipe({"data": 0})


@pytest.mark.parametrize("backend", ["Jump", "S[Identity,Jump]"])
def test_keys_that_a_map_inside_a_jump_drops_are_not_in_its_answer(backend: str) -> None:
    """The same as written inline; and a logical node of a Jump is one."""
    nodes = {
        "j": node(backend, jump="a", next="j.2"),
        "j.2": {},
        "a": node(next="b"),
        "b": node("Identity", map="a[result:data]"),
    }
    assert all_ways({"data": 0}, **nodes) == {"data": 0, "result": 2}


def test_a_part_that_restarts_leaves_nothing_of_its_rounds_behind() -> None:
    """What a map drops in the second round is not in the answer: as if it were entered without the jump."""
    nodes = {
        "j": node("Jump", jump="a"),
        "a": node("Identity", restart="b"),
        "b": node("S[Identity,(run)Add]", key="x", value=1, next="c"),
        "c": node("Identity", map="b[result:data]"),
    }
    assert "x" not in all_ways({"data": 1}, "j", **nodes)
    assert "x" not in all_ways({"data": 1}, "a", **nodes)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ({"a": node(restart="bb"), "b": node()}, "node 'a': restart: no node is named 'bb'; did you mean 'b'?"),
        ({"a": node(next="b", restart="a"), "b": node()}, "node 'a': restart: a node has either this or next"),
        (
            {"a": node(next="b,c"), "b": node(restart="a"), "c": node(restart="b")},
            "'b', 'c': restart: a request that enters at 'a' passes them all: one target",
        ),
        ({"a": node(restart=5)}, "node 'a': restart: must be the name of a node, got 5"),
        ({"a": node(restart="a", restart_limit=0)}, "node 'a': restart_limit: "),
    ],
)
def test_a_mistaken_restart_is_said_in_words(nodes: dict[str, Any], words: str) -> None:
    """Before anything is built."""
    with pytest.raises(ConfigError) as raised:
        Pipe(nodes)
    assert words in str(raised.value)


# ---- copies, and what is kept ----------------------------------------------------------------------------------------


def copies(request: Request, entry: str | None = None, /, **nodes: dict[str, Any]) -> int:
    with Pipe(nodes) as pipe:
        pipe(request, entry=entry)
        count: int = pipe.stats()["copies"]
        return count


def test_a_chain_copies_nothing() -> None:
    """One dict goes through all nodes."""
    nodes = {"a": node(Same, next="b"), "b": node(Same, next="c"), "c": node(Same)}
    with Pipe(nodes) as pipe:
        assert len(set(pipe({"data": 1})["ids"])) == 1
        assert pipe.stats()["copies"] == 0


def test_of_several_readers_the_last_gets_the_dict_itself() -> None:
    """Three branches: two copies. Joined by maps that read only the branches: no more."""
    branches = {name: node("Identity", next="z") for name in "bcd"}
    z = node("Identity", map="b[result:data],c[result:x],d[result:y]")
    assert copies({"data": 1}, a=node("Identity", next="b,c,d"), **branches, z=z) == 2


def test_a_dict_that_a_map_reads_later_is_not_given_away() -> None:
    """a is read by c's map, so b gets a copy; b is read by nobody else, so no second one."""
    nodes = {"a": node(next="b"), "b": node(next="c"), "c": node(map="a[result:data],b[result:x]")}
    assert copies({"data": 1}, **nodes) == 1
    assert all_ways({"data": 1}, **nodes)["result"] == 3
    assert copies({"data": 1}, "b", **nodes | {"c": node(map="b[result:data]")}) == 0


def test_copies_that_a_skip_saves() -> None:
    """Both branches of a are skipped with it: nothing is handed to them."""
    nodes = {"a": node("Identity", next="b,c"), "b": node("Identity", next="d"), "c": node("Identity", next="d")}
    nodes["d"] = node("Identity", map="b[result:data],c[result:x]")
    assert copies({"data": 1}, **nodes) == 1
    start = {"start": node("Identity", next="a")}
    assert copies({"data": 1}, **start | nodes | {"a": nodes["a"] | {"filter": "SubGraphSkip"}}) == 0


class Big:
    """Something that can be watched."""


def test_a_dict_is_let_go_of_once_its_last_reader_has_read() -> None:
    """The maps of b and c read what a left: it is there while b runs, and gone while c and d do."""
    alive: list[bool] = []
    watched: list[weakref.ref[Big]] = []

    class Makes(Backend):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = 1
                request["big"] = Big()
                watched.append(weakref.ref(request["big"]))

    class Watches(Backend):
        def forward(self, batch: list[Request]) -> None:
            gc.collect()
            alive.append(watched[-1]() is not None)
            for request in batch:
                request["result"] = request["data"]

    nodes = {
        "a": node(Makes, next="b"),
        "b": node(Watches, map="a[result:data]", next="c"),
        "c": node(Watches, map="a[result:data]", next="d"),
        "d": node(Watches),
    }
    with Pipe(nodes) as pipe:
        pipe({"data": 1})
        assert alive == [True, False, False]


def test_the_dicts_that_are_kept_have_slots_and_no_others() -> None:
    """Of a chain of a thousand nodes with one map, one."""
    nodes = {f"n{index}": node(next=f"n{index + 1}") for index in range(1000)}
    nodes["n999"] = node(next="n1000", map="n5[result:data]")
    entry = compiled(**nodes, n1000=node()).entry(0)
    assert entry.slots == {5: 0}
    assert entry.readers == (1,)
    assert entry.exit(5).kept == (0,)
    assert entry.exit(6).kept == ()


# ---- branches --------------------------------------------------------------------------------------------------------


def test_a_failing_branch_keeps_what_is_queued_of_its_request_from_running() -> None:
    """b holds its only instance; c's part of the second request is queued behind it, and its other branch fails."""
    opened = threading.Event()
    started = threading.Event()
    ran: list[int] = []

    class Held(Backend):
        def forward(self, batch: list[Request]) -> None:
            started.set()
            opened.wait(WAIT_S)
            ran.extend(request["data"] for request in batch)
            for request in batch:
                request["result"] = request["data"]

    class Fails(Backend):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                if request["data"] == 2:
                    raise ValueError("two")
                request["result"] = request["data"]

    nodes = {
        "a": node("Identity", next="held,fails"),
        "held": node(Held, next="join"),
        "fails": node(Fails, next="join"),
        "join": node("Identity", map="held[result:data],fails[result:x]"),
    }
    with Pipe(nodes) as pipe:
        first = pipe.submit({"data": 1})
        assert started.wait(WAIT_S)
        second = {"data": 2}
        with pytest.raises(ValueError, match="two"):
            pipe.submit(second).result(WAIT_S)
        assert second == {"data": 2}
        opened.set()
        assert first.result(WAIT_S)["result"] == 1
        third = pipe({"data": 3})
        assert third["result"] == 3
        counts = pipe.stats()["requests"]
        assert (counts["done"], counts["failed"], counts["in_flight"]) == (2, 1, 0)
        assert pipe.stats()["nodes"]["held"]["queued"] == 0
    assert ran == [1, 3]


def test_a_cycle_without_restart_is_refused_as_ever() -> None:
    """Restart is no next: the path is still shown."""
    with pytest.raises(GraphError, match="a -> b -> a"):
        Pipe(a=node(next="b"), b=node(next="a"))
