"""Jump and MapReduce: a graph as the work of a node, and as a step of a Sequential."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fastpipe import Backend, BackendError, ConfigError, NoResult, Pipe, Request, Status, Step
from fastpipe import Sequential as SequentialStep
from fastpipe.backends.flow.graphs import Jump, MapReduce
from fastpipe.contract import SubGraph

WAIT_S = 20.0


class Pow(Backend):
    """Squares; 13 is bad luck."""

    max_batch = 16

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            if request["data"] == 13:
                raise ValueError("bad luck")
            request["result"] = request["data"] ** 2


class Identity(Backend):
    max_batch = 16

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = request["data"]


class Looks(Identity):
    """Remembers what its requests looked like."""

    def __init__(self) -> None:
        self.seen: list[Request] = []

    def forward(self, batch: list[Request]) -> None:
        self.seen.extend(dict(request) for request in batch)
        super().forward(batch)


def node(backend: Any = Identity, **keys: Any) -> dict[str, Any]:
    return {"backend": backend, **keys}


def as_node(kind: str, **keys: Any) -> dict[str, Any]:
    return node(kind, **keys)


def as_step(kind: str, **keys: Any) -> dict[str, Any]:
    return node(f"S[Identity,{kind}]", **keys)


FORMS = pytest.mark.parametrize("form", [as_node, as_step], ids=["node", "step"])
WAYS = pytest.mark.parametrize("way", ["call", "submit", "list"])


def run(pipe: Pipe, request: Request, way: str = "call") -> Request:
    if way == "submit":
        return pipe.submit(request).result(WAIT_S)
    if way == "list":
        pipe([request])
        return request
    answered: Request = pipe(request)
    return answered


# ---- MapReduce -------------------------------------------------------------------------------------------------------


@FORMS
@WAYS
def test_each_element_runs_through_the_graph(form: Any, way: str) -> None:
    """Five elements to a Pow graph: five results, in order."""
    with Pipe(main=form("MapReduce", jump="pow", max=1), pow=node(Pow, instance_num=2)) as pipe:
        assert run(pipe, {"data": [1, 2, 3, 4, 5]}, way)["result"] == [1, 4, 9, 16, 25]


@FORMS
def test_an_empty_list_gives_an_empty_list(form: Any) -> None:
    """No part, no wait."""
    with Pipe(main=form("MapReduce", jump="pow"), pow=node(Pow)) as pipe:
        for way in ("call", "submit", "list"):
            assert run(pipe, {"data": []}, way)["result"] == []


@FORMS
def test_a_failing_element_fails_the_request(form: Any) -> None:
    """With its own exception; notes name the node inside; the others' results are dropped."""
    request: Request = {"data": [1, 13, 3], "result": "old"}
    with Pipe(main=form("MapReduce", jump="pow"), pow=node(Pow)) as pipe:
        with pytest.raises(ValueError, match="bad luck") as raised:
            pipe(request)
        assert any("node 'pow'" in note for note in raised.value.__notes__)
        assert request == {"data": [1, 13, 3]}
        assert pipe({"data": [2]})["result"] == [4]
        assert pipe.stats()["requests"]["in_flight"] == 0


def test_the_note_of_a_failing_element_has_its_index() -> None:
    """Which part of which node."""
    with (
        Pipe(main=node("MapReduce", jump="pow"), pow=node(Pow)) as pipe,
        pytest.raises(ValueError, match="bad") as raised,
    ):
        pipe({"data": [1, 13, 3]})
    assert "fastpipe: part 1 of node 'main'" in raised.value.__notes__


@FORMS
@pytest.mark.parametrize(("on_error", "expected"), [("skip", [1, 9]), ("none", [1, None, 9])])
def test_failing_elements_may_be_left_out(form: Any, on_error: str, expected: list[Any]) -> None:
    """on_error="skip" leaves them out, "none" puts None in their place."""
    with Pipe(main=form("MapReduce", jump="pow", on_error=on_error), pow=node(Pow)) as pipe:
        assert pipe({"data": [1, 13, 3]})["result"] == expected
        assert pipe({"data": [13]})["result"] == expected[1:-1]


@FORMS
def test_several_keys_are_split_in_step_and_gathered(form: Any) -> None:
    """``split`` and ``merge`` may name several keys; each part has one element of each."""
    looks = Looks()
    keys = {"split": "data,width", "merge": "result,width"}
    with Pipe(main=form("MapReduce", jump="look", **keys), look=node(looks, max=4)) as pipe:
        if form is as_step:  # Identity hands on only `data`; the other key travels along
            got = pipe({"data": [1, 2], "width": [10, 20], "other": "stays"})
        else:
            got = pipe({"data": [1, 2], "width": [10, 20], "other": "stays"})
        assert got["result"] == [1, 2]
        assert got["width"] == [10, 20]
        assert got["other"] == "stays"
    assert sorted(looks.seen, key=lambda seen: seen["data"]) == [{"data": 1, "width": 10}, {"data": 2, "width": 20}]


def test_keys_of_different_lengths_are_refused() -> None:
    """The message has the lengths."""
    with (
        Pipe(main=node("MapReduce", jump="id", split="data,width"), id=node()) as pipe,
        pytest.raises(ValueError, match=r"lengths differ: \{'data': 2, 'width': 1\}"),
    ):
        pipe({"data": [1, 2], "width": [10]})


def test_without_split_keys_the_list_holds_the_requests() -> None:
    """``split=""``: a list of dicts, each one a part; they are not changed."""
    parts = [{"data": 1, "tag": "a"}, {"data": 2, "tag": "b"}]
    with Pipe(main=node("MapReduce", jump="pow", split="", merge="result,tag"), pow=node(Pow)) as pipe:
        got = pipe({"data": parts})
        assert got["result"] == [1, 4]
        assert got["tag"] == ["a", "b"]
    assert parts == [{"data": 1, "tag": "a"}, {"data": 2, "tag": "b"}]


@FORMS
def test_every_part_gets_what_is_shared(form: Any) -> None:
    """The object itself, beside what is split; ``data`` may be shared if another key is split."""
    looks, image, owner = Looks(), object(), object()
    keys = {"split": "box,at", "share": "data,owner"}
    with Pipe(main=form("MapReduce", jump="look", **keys), look=node(looks, max=4)) as pipe:
        got = pipe({"data": image, "owner": owner, "box": ["left", "right"], "at": (0, 1), "other": "stays"})
    assert got["data"] is image
    assert got["result"] == [image, image]
    seen = sorted(looks.seen, key=lambda seen: seen["at"])
    assert seen == [{"data": image, "owner": owner, "box": box, "at": at} for at, box in enumerate(["left", "right"])]


def test_what_is_shared_joins_parts_that_are_dicts_whose_own_keys_win() -> None:
    """``split=""``; and without ``data`` among the keys, the first that is split is the data."""
    looks = Looks()
    with Pipe(main=node("MapReduce", jump="look", split="", share="tag"), look=node(looks)) as pipe:
        pipe({"data": [{"data": 1}, {"data": 2, "tag": "own"}], "tag": "all"})
    assert sorted(looks.seen, key=lambda seen: seen["data"]) == [{"data": 1, "tag": "all"}, {"data": 2, "tag": "own"}]
    looks = Looks()
    with Pipe(main=node("MapReduce", jump="look", split="box", share="tag"), look=node(looks)) as pipe:
        pipe({"data": None, "box": [7], "tag": "all"})
    assert looks.seen == [{"data": 7, "box": 7, "tag": "all"}]


def test_a_missing_shared_key_is_said_in_words() -> None:
    """Which key, and what there is."""
    with (
        Pipe(main=node("MapReduce", jump="id", share="image"), id=node()) as pipe,
        pytest.raises(KeyError, match=r"shares 'image', and the request has \['data', 'tag'\]"),
    ):
        pipe({"data": [1], "tag": 1})


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"share": "data"}, "share cannot have 'data', which is split"),
        ({"share": "data", "split": ""}, "share cannot have 'data', which is split"),
        ({"share": "result"}, "share cannot have 'result': each part has its own"),
        ({"share": "restart,context"}, "share cannot have 'context'"),
    ],
)
def test_what_cannot_be_shared_is_refused(keys: dict[str, Any], problem: str) -> None:
    """When the pipe is built."""
    with pytest.raises(ConfigError, match=problem):
        Pipe(main=node("MapReduce", jump="id", **keys), id=node())


def test_an_array_is_split_along_its_first_axis() -> None:
    """Also of no rows; an array of no axis is no list."""
    looks = Looks()
    with Pipe(main=node("MapReduce", jump="look", split="box", share="data"), look=node(looks)) as pipe:
        assert pipe({"data": 5, "box": np.array([[1, 2], [3, 4]])})["result"] == [5, 5]
        assert sorted(seen["box"].tolist() for seen in looks.seen) == [[1, 2], [3, 4]]
        assert pipe({"data": 5, "box": np.zeros((0, 2))})["result"] == []
        with pytest.raises(TypeError, match="the list under 'box'; it is ndarray"):
            pipe({"data": 5, "box": np.array(3)})


@pytest.mark.parametrize("element", [5, [], None])
def test_without_split_keys_an_element_that_is_no_dict_is_refused(element: Any) -> None:
    """With its place in the list."""
    nodes = {"m": {"backend": "MapReduce", "jump": "p", "split": ""}, "p": {"backend": "Identity"}}
    with Pipe(nodes) as pipe, pytest.raises(TypeError, match="takes a list of dicts; element 1 is"):
        pipe({"data": [{"data": 1}, element]})


@pytest.mark.parametrize("data", [5, None, "text", {"a": 1}])
def test_what_is_no_list_is_refused(data: Any) -> None:
    """The message names key and type."""
    with (
        Pipe(main=node("MapReduce", jump="id"), id=node()) as pipe,
        pytest.raises(TypeError, match=f"the list under 'data'; it is {type(data).__name__}"),
    ):
        pipe({"data": data})


def test_a_missing_merge_key_is_said_in_words() -> None:
    """Which key, and what there is."""
    with (
        Pipe(main=node("MapReduce", jump="id", merge="text"), id=node()) as pipe,
        pytest.raises(KeyError, match=r"gathers 'text'.*result"),
    ):
        pipe({"data": [1]})


def test_context_and_other_keys_do_not_travel_into_the_parts() -> None:
    """A part has what was split, and nothing else."""
    looks = Looks()
    with Pipe(main=node("MapReduce", jump="look"), look=node(looks)) as pipe:
        pipe({"data": [1], "context": object(), "tag": "t"})
    assert looks.seen == [{"data": 1}]


def test_parts_of_all_callers_meet_in_the_same_batches() -> None:
    """Two requests of two elements each, held back by a barrier of filters, are one batch of four."""
    gate = threading.Event()
    inside = threading.Event()
    batches: list[int] = []

    class Gathers(Identity):
        def forward(self, batch: list[Request]) -> None:
            inside.set()
            assert gate.wait(WAIT_S)
            batches.append(len(batch))
            super().forward(batch)

    with Pipe(main=node("MapReduce", jump="gather"), gather=node(Gathers, batching="greedy")) as pipe:
        futures = [pipe.submit({"data": ["first"]})]
        assert inside.wait(WAIT_S)
        futures += [pipe.submit({"data": [(index, 0), (index, 1)]}) for index in range(4)]
        gate.set()
        assert [future.result(WAIT_S)["result"] for future in futures[1:]] == [[(i, 0), (i, 1)] for i in range(4)]
    assert batches == [1, 8]


@FORMS
def test_map_reduce_may_be_nested(form: Any) -> None:
    """A list of lists of lists."""
    with Pipe(
        outer=form("MapReduce", jump="middle"),
        middle=form("MapReduce", jump="inner"),
        inner=form("MapReduce", jump="pow"),
        pow=node(Pow, instance_num=2),
    ) as pipe:
        request = {"data": [[[1, 2], [3]], [], [[4]]], "node_name": "outer"}
        assert pipe(request)["result"] == [[[1, 4], [9]], [], [[16]]]
        with pytest.raises(ValueError, match="bad luck"):
            pipe({"data": [[[13]]], "node_name": "outer"})


def test_parts_may_end_early() -> None:
    """Break inside the graph ends the part, with what it has there; the others go on."""

    def above_four(request: Request) -> Status:
        if request["result"] <= 4:
            return Status.Break
        request["data"] = request.pop("result")
        return Status.Run

    with Pipe(
        main=node("MapReduce", jump="pow"), pow=node(Pow, next="again"), again=node(Pow, filter=above_four)
    ) as pipe:
        assert pipe({"data": [1, 3]})["result"] == [1, 81]


def test_parts_run_through_a_graph_with_a_join() -> None:
    """A diamond for each element."""
    with Pipe(
        main=node("MapReduce", jump="a"),
        a=node(next="b,c"),
        b=node(Pow, next="d"),
        c=node(next="d"),
        d=node(lambda_sum(), map="b[result:data],c[result:other]"),
    ) as pipe:
        assert pipe({"data": [1, 2, 3]})["result"] == [2, 6, 12]
        assert pipe.submit({"data": [1, 2, 3]}).result(WAIT_S)["result"] == [2, 6, 12]


def lambda_sum() -> type[Backend]:
    class Sum(Backend):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = request["data"] + request["other"]

    return Sum


def test_a_subclass_may_split_and_merge_its_own_way() -> None:
    """split() and merge() are methods to replace."""

    class Digits(MapReduce):
        def split(self, request: Request) -> list[Request]:
            return [{"data": int(digit)} for digit in str(request["data"])]

        def merge(self, request: Request, answers: Sequence[Any]) -> None:
            request["result"] = sum(answer["result"] for answer in answers)

    with Pipe(main=node(Digits, jump="pow"), pow=node(Pow)) as pipe:
        assert pipe({"data": 123})["result"] == 1 + 4 + 9


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([1, 2], "must give dicts; part 0 is int"),
        (None, "got None"),
        (5, "got int"),
        (({"data": 1} for _ in range(2)), r"got generator: return list\(...\) of it"),
        ({"data": 1}, "got dict, whose order is its own: return a list"),
        ({1, 2}, "got set, whose order is its own"),
        ("ab", "got str"),
    ],
    ids=["no dicts", "None", "int", "generator", "dict", "set", "text"],
)
@FORMS
def test_a_split_that_breaks_its_contract_fails_the_request(form: Any, bad: Any, words: str) -> None:
    """Not a hang, and no parts made of keys or letters: an error that names the node and says what to return."""

    class Wrong(SubGraph):
        def split(self, request: Request) -> list[Request]:
            answer: list[Request] = bad
            return answer

        def merge(self, request: Request, answers: Sequence[Any]) -> None:
            request["result"] = len(answers)

    backend: Any = Wrong if form is as_node else SequentialStep(Identity, Step(Wrong))
    with Pipe(main=node(backend, jump="id"), id=node()) as pipe:
        with pytest.raises(BackendError, match=words) as raised:
            pipe({"data": 1})
        assert "'main'" in f"{raised.value} {getattr(raised.value, '__notes__', '')}"
        assert pipe.stats()["requests"]["in_flight"] == 0


@pytest.mark.parametrize("method", ["split", "merge"])
@FORMS
def test_what_split_and_merge_raise_is_the_requests_error(form: Any, method: str) -> None:
    """Whichever thread they run on."""

    class Raises(MapReduce):
        pass

    def raises(self: Any, *arguments: Any) -> Any:
        raise ZeroDivisionError(method)

    setattr(Raises, method, raises)
    backend: Any = Raises if form is as_node else SequentialStep(Identity, Step(Raises))
    with Pipe(main=node(backend, jump="id"), id=node()) as pipe:
        for way in ("call", "submit"):
            with pytest.raises(ZeroDivisionError, match=method) as raised:
                run(pipe, {"data": [1]}, way)
            assert any("node 'main'" in note for note in raised.value.__notes__)


def test_what_a_filter_inside_raises_names_its_node() -> None:
    """Also at the root of the graph that is jumped to."""

    def raises(request: Request) -> Status:
        raise ZeroDivisionError("filter")

    for chain in ({"s": node(filter=raises)}, {"s": node(next="t"), "t": node(filter=raises)}):
        with Pipe(main=node("MapReduce", jump="s"), **chain) as pipe, pytest.raises(ZeroDivisionError) as raised:
            pipe({"data": [1]})
        assert any(f"node {list(chain)[-1]!r}" in note for note in raised.value.__notes__)


def test_a_map_reduce_stands_anywhere_in_a_graph() -> None:
    """Before, between and behind other nodes; its answer goes on along next."""

    class Doubles(Backend):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = [element * 2 for element in request["data"]]

    with Pipe(
        first=node(Doubles, next="each"),
        each=node("MapReduce", jump="pow", next="last"),
        last=node(Doubles),
        pow=node(Pow),
    ) as pipe:
        assert pipe({"data": [1, 2]})["result"] == [8, 32]
        assert pipe.submit({"data": [1, 2]}).result(WAIT_S)["result"] == [8, 32]


def test_many_callers_with_many_parts() -> None:
    """Eight threads, lists of random lengths, a shared graph of two instances: everybody gets his own."""
    with Pipe(main=node("MapReduce", jump="pow"), pow=node(Pow, instance_num=2)) as pipe:

        def client(number: int) -> None:
            for index in range(25):
                data = [n if n != 13 else 14 for n in range(number, number + index % 7)]
                assert run(pipe, {"data": data}, ("call", "submit", "list")[index % 3])["result"] == [
                    d**2 for d in data
                ]

        with concurrent.futures.ThreadPoolExecutor(8) as callers:
            list(callers.map(client, range(8)))
        assert pipe.stats()["requests"]["done"] == 200


def test_cancelling_a_request_drops_its_parts() -> None:
    """Parts that are still queued never reach the backend."""
    gate = threading.Event()
    inside = threading.Event()
    seen: list[Any] = []

    class Gates(Backend):
        def forward(self, batch: list[Request]) -> None:
            inside.set()
            assert gate.wait(WAIT_S)
            seen.extend(request["data"] for request in batch)
            for request in batch:
                request["result"] = request["data"]

    with Pipe(main=node("MapReduce", jump="gate"), gate=node(Gates)) as pipe:
        answers = pipe.map([{"data": [1]}, {"data": [2, 3]}], look_ahead=2)
        first = pipe.submit({"data": ["first"]})
        assert inside.wait(WAIT_S)
        starter = threading.Thread(target=lambda: next(answers))
        starter.start()
        while pipe.stats()["nodes"]["gate"]["queued"] < 3:
            threading.Event().wait(0.001)
        gate.set()
        starter.join(WAIT_S)
        gate.clear()
        answers.close()  # type: ignore[attr-defined]
        gate.set()
        first.result(WAIT_S)
    assert pipe.stats()["requests"]["in_flight"] == 0
    assert seen[0] == "first"


# ---- Jump ------------------------------------------------------------------------------------------------------------


@FORMS
@WAYS
def test_a_jump_answers_like_the_graph_written_inline(form: Any, way: str) -> None:
    """The node's work is another graph of two nodes."""
    inline = Pipe(main=node(Identity, next="pow"), pow=node(Pow, next="pow2"), pow2=node(Pow))
    jumped = Pipe(main=form("Jump", jump="pow"), pow=node(Pow, next="pow2"), pow2=node(Pow))
    with inline, jumped:
        assert run(jumped, {"data": 3}, way)["result"] == run(inline, {"data": 3}, way)["result"] == 81


def test_a_jump_does_not_carry_the_context_over() -> None:
    """The other graph does not see it; the request keeps it."""
    looks = Looks()
    context = object()
    with Pipe(main=node("Jump", jump="look"), look=node(looks)) as pipe:
        got = pipe({"data": 1, "context": context})
    assert "context" not in looks.seen[0]
    assert got["context"] is context


def test_a_jump_whose_graph_leaves_no_result_leaves_none() -> None:
    """Where that is no error, the graph ends there, as behind any node; else it names the step inside."""

    class Silent(Backend):
        def forward(self, batch: list[Request]) -> None:
            pass

    nodes = {"main": node("Jump", jump="silent", next="last"), "silent": node(Silent), "last": node("RuntimeError")}
    with Pipe(nodes, without_result="end") as pipe:
        assert "result" not in pipe({"data": 1, "result": "old"})
    with Pipe(nodes) as pipe, pytest.raises(NoResult, match="step Silent of node 'silent' gave no result"):
        pipe({"data": 1, "result": "old"})


def test_what_fails_behind_a_jump_fails_the_request() -> None:
    """With the notes of the node inside."""
    with Pipe(main=node("Jump", jump="pow"), pow=node(Pow)) as pipe, pytest.raises(ValueError, match="bad") as raised:
        pipe({"data": 13})
    assert any("node 'pow'" in note for note in raised.value.__notes__)


def test_jumps_may_be_many() -> None:
    """A hundred graphs, each the work of the one before."""
    count = 100
    nodes = {f"j{index}": node("Jump", jump=f"j{index + 1}") for index in range(count)}
    with Pipe({**nodes, f"j{count}": node(Pow)}) as pipe:
        assert pipe({"data": 3, "node_name": "j0"})["result"] == 9
        assert pipe.submit({"data": 3, "node_name": "j0"}).result(WAIT_S)["result"] == 9


def test_a_jump_as_one_of_several_steps_with_split_parameters() -> None:
    """``jump="||n1||n2"``: one value per child of the Sequential."""
    with Pipe(
        main=node("S[Identity,Identity,Jump,Identity,Jump]", jump="||n1||n2"), n1=node(Pow), n2=node(Pow)
    ) as pipe:
        assert pipe({"data": 2})["result"] == 16


def test_one_node_may_be_jumped_to_from_several() -> None:
    """The graph behind is shared: its instances serve both."""
    with Pipe(
        main=node("Jump", jump="pow", next="again"), again=node("Jump", jump="pow"), pow=node(Pow, max=4)
    ) as pipe:
        assert pipe({"data": 2})["result"] == 16
        assert pipe.stats()["nodes"]["pow"]["requests"] == 2


def test_a_step_that_jumps_keeps_batches_together() -> None:
    """A batch of several through S[...,MapReduce]: each request fails or succeeds alone."""
    gate = threading.Event()
    inside = threading.Event()

    class Holds(Identity):
        def forward(self, batch: list[Request]) -> None:
            inside.set()
            assert gate.wait(WAIT_S)
            super().forward(batch)

    with Pipe(
        main=node(SequentialStep(Holds, "MapReduce"), jump="pow", batching="greedy", max=8), pow=node(Pow)
    ) as pipe:
        futures = [pipe.submit({"data": [1]})]
        assert inside.wait(WAIT_S)
        futures += [pipe.submit({"data": data}) for data in ([1, 2], [13, 3], [], [4])]
        gate.set()
        concurrent.futures.wait(futures, WAIT_S)
        assert isinstance(futures[2].exception(), ValueError)
        assert [f.result()["result"] for f in futures if f.exception() is None] == [[1], [1, 4], [], [16]]


def test_a_sub_graph_without_a_pipe_says_so() -> None:
    """Called by hand, there is no graph to run."""
    with pytest.raises(BackendError, match="Jump works only inside a pipe"):
        Jump(jump="somewhere").forward([{"data": 1}])


def test_a_missing_jump_is_a_configuration_error() -> None:
    """The parameter has no default."""
    with pytest.raises(ConfigError, match="jump"):
        Pipe(main=node("MapReduce"), pow=node(Pow))


def test_on_error_must_be_known() -> None:
    """One of three."""
    with pytest.raises(ConfigError, match="on_error"):
        Pipe(main=node("MapReduce", jump="pow", on_error="ignore"), pow=node(Pow))


def test_parts_of_a_step_are_dropped_once_one_has_failed() -> None:
    """The parts behind it in the queue do not run, and the error says which part it was."""
    ran: list[int] = []

    class Odd(Backend):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                ran.append(request["data"])
                if request["data"] == 3:
                    raise ValueError("three")
                request["result"] = request["data"]
                threading.Event().wait(0.002)

    nodes = {"m": {"backend": "S[Identity,MapReduce]", "jump": "p"}, "p": {"backend": Odd}}
    with Pipe(nodes) as pipe:
        with pytest.raises(ValueError, match="three") as raised:
            pipe({"data": list(range(100))})
        assert "fastpipe: part 3" in raised.value.__notes__
        assert pipe({"data": [1, 2]})["result"] == [1, 2]
        assert pipe.stats()["requests"]["in_flight"] == 0
    assert len(ran) < 80


def test_a_share_for_the_only_step_that_takes_it() -> None:
    """The other shares are empty; a text with a "|" of its own is left alone."""
    nodes = {"m": {"backend": "S[Identity,Jump]", "jump": "|s"}, "s": {"backend": "Pow"}}
    with Pipe(nodes) as pipe:
        assert pipe({"data": 3})["result"] == 9
    with Pipe(backend="S[Identity,(run)Add]", key="a|b", value=1) as pipe:
        assert pipe({"data": 3})["a|b"] == 1
