"""The debugger: one request through the graph node by node, what each step tells, breakpoints, views."""

from __future__ import annotations

import html
import io
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastpipe
from fastpipe import Backend, Pipe, PipeError, Status, UnknownNode
from fastpipe.cli.data import data_of
from fastpipe.cli.main import main
from fastpipe.cli.prompt import interact
from fastpipe.debug.debugger import Debugger, Stop
from fastpipe.summaries import in_units, summarize

Request = dict[str, Any]


@fastpipe.backend
def increment(number: int) -> int:
    return number + 1


@fastpipe.backend
def square(number: int) -> int:
    return number * number


@fastpipe.backend
def up_to(number: int) -> list[int]:
    return list(range(number))


class FailsOnTwo(Backend):
    """Raises for 2."""

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            if request["data"] == 2:
                raise ValueError("two is too much")
            request["result"] = request["data"]


class NoResult(Backend):
    """Leaves nothing."""

    def forward(self, batch: list[Request]) -> None:
        pass


@pytest.fixture
def chain() -> Iterator[Pipe]:
    """a: +1, b: squared, c: +1."""
    with Pipe(
        a={"backend": increment, "next": "b"}, b={"backend": square, "next": "c", "max": 4}, c={"backend": increment}
    ) as pipe:
        yield pipe


@pytest.fixture
def split() -> Iterator[Pipe]:
    """A list of numbers is made and each squared, but 2 fails; then they are summed."""
    with Pipe(
        a={"backend": up_to, "next": "each"},
        each={"backend": "MapReduce", "jump": "part", "next": "total"},
        part={"backend": FailsOnTwo, "next": "squared"},
        squared={"backend": square},
        total={"backend": fastpipe.backend(sum)},
    ) as pipe:
        yield pipe


def places(steps: Any) -> list[str]:
    return [step.where for step in steps]


# ---- steps -----------------------------------------------------------------------------------------------------


def test_steps_go_through_the_graph_and_end_with_the_answer_of_a_call(chain: Pipe) -> None:
    """Each step runs one node; the caller's dict is written to once, at the end."""
    request = {"data": 2, "id": 4711}
    with chain.debug(request) as debugger:
        assert debugger.next is not None
        assert debugger.next.where == "a"
        assert [debugger.step().node for _ in "ab"] == ["a", "b"]
        assert request == {"data": 2, "id": 4711}
        last = debugger.step()
        assert (debugger.finished, debugger.next, debugger.error) == (True, None, None)
    assert request == chain({"data": 2, "id": 4711})
    assert debugger.request is request
    assert debugger.history == (*debugger.history[:2], last)
    assert chain.in_flight == 0


def test_a_step_tells_what_its_node_got_and_what_it_made_of_it(chain: Pipe) -> None:
    """The dicts before and after, what the filter changed, the keys that came, the time."""
    with chain.debug({"data": 2}) as debugger:
        first, second = debugger.step(), debugger.step()
    assert (first.arrived, first.before, first.after) == ({"data": 2}, {"data": 2}, {"data": 2, "result": 3})
    assert second.arrived == {"data": 2, "result": 3}
    assert second.before == {"data": 3}
    assert second.after == {"data": 3, "result": 9}
    assert (second.added, second.changed, second.removed) == (("result",), (), ())
    assert (second.number, second.status, second.error, second.traceback) == (2, Status.Run, None, "")
    assert second.elapsed_s is not None
    assert second.elapsed_s > 0
    assert second.after_summaries["result"].type == "int"


def test_changed_removed_and_changed_in_place_are_told_apart() -> None:
    """A new value, a key that is gone, and an array and a list that hold something else than before."""

    class Changes(Backend):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["rebound"] = np.zeros(3)
                request["in_place"][0] = 7
                request["items"].append(1)
                del request["gone"]

    values = {
        "rebound": np.zeros(3),
        "in_place": np.zeros(1000),
        "items": [],
        "gone": 1,
        "same": np.ones(2),
        "text": "x",
    }
    with Pipe(backend=Changes) as pipe, pipe.debug({"data": 1, **values}) as debugger:
        step = debugger.step()
    assert step.changed == ("rebound", "in_place", "items")
    assert step.removed == ("gone",)
    assert step.added == ()
    assert "(in place)" in str(step)
    assert step.before_summaries["in_place"].text.endswith("0 to 0")


def test_what_is_changed_between_steps_is_what_the_node_gets(chain: Pipe) -> None:
    """What-if: the live dict may be edited, and the caller's dict is not touched by it."""
    request = {"data": 1}
    with chain.debug(request) as debugger:
        debugger.step()
        debugger.request["result"] = 10
        assert request == {"data": 1}
        debugger.run()
    assert request["result"] == 101


def test_an_error_is_in_the_step_and_ends_the_request(chain: Pipe) -> None:
    """It is not raised; type, traceback and note are there, and the caller's dict is as it was."""
    request = {"data": "text"}
    with chain.debug(request) as debugger:
        step = debugger.step()
        assert debugger.finished
    assert isinstance(step.error, TypeError)
    assert debugger.error is step.error
    assert "in increment" in step.traceback
    assert "node 'a'" in step.traceback
    assert request == {"data": "text"}
    assert "TypeError" in str(step)


def test_a_step_after_the_end_is_refused(chain: Pipe) -> None:
    """In words that say what to do."""
    with chain.debug({"data": 1}) as debugger:
        debugger.run()
        with pytest.raises(PipeError, match=r"the request has ended after 3 steps; start\(request\)"):
            debugger.step()


def test_iterating_takes_the_steps_that_are_left(chain: Pipe) -> None:
    """As a trace of the whole request."""
    with chain.debug({"data": 1}) as debugger:
        debugger.step()
        assert places(debugger) == ["b", "c"]


def test_a_thread_bound_node_is_stepped_through(chain: Pipe) -> None:
    """It runs on its own thread, and the step waits for it."""

    class Bound(Backend):
        thread_bound = True

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = threading.current_thread().name

    with Pipe(backend=Bound) as pipe, pipe.debug({"data": 1}) as debugger:
        assert debugger.step().after["result"] == "fastpipe main#0"


# ---- why -------------------------------------------------------------------------------------------------------


def big(request: Request) -> Status:
    return Status.Run if request["data"] > 10 else Status.Skip


def test_why_names_the_filter_and_what_it_means() -> None:
    """The default ones, one by name, a function, and a map."""
    nodes: dict[str, Any] = {
        "a": {"backend": "Identity", "next": "b"},
        "b": {"backend": "Identity", "next": "c", "filter": "or"},
        "c": {"backend": "Identity", "next": "d", "filter": big},
        "d": {"backend": "Identity", "next": "e"},
        "e": {"backend": "Identity", "map": "a[result:data]"},
    }
    with Pipe(nodes) as pipe, pipe.debug({"data": 1}) as debugger:
        steps = {step.node: step for step in debugger}
    assert steps["a"].why == "no filter: the request enters here"
    assert steps["b"].status is Status.Skip
    assert steps["b"].why == "its filter 'or' says Skip: it does not run; the request goes on as it is"
    assert steps["b"].elapsed_s is None
    assert steps["c"].why.startswith("its filter 'big' says Skip")
    assert steps["d"].why == "default filter 'swap': the result of the node before became 'data'"
    assert steps["e"].why == "no filter: its map made a new request, of a"


def test_a_request_without_a_result_ends_and_says_where() -> None:
    """The commonest surprise of all: swap finds nothing, and the graph ends."""
    nodes = {"a": {"backend": NoResult, "next": "b"}, "b": {"backend": "Identity"}}
    with Pipe(nodes) as pipe, pipe.debug({"data": 1}) as debugger:
        assert debugger.run().reason == "the request has failed with NoResult"
        assert "node 'a': step NoResult gave no result" in str(debugger.error)
        assert debugger.history[-1].why == "default filter 'swap': there is no result, so the request ends here"
    with Pipe(nodes, without_result="end") as pipe, pipe.debug({"data": 1}) as debugger:
        stop = debugger.run()
    assert stop.reason == "the request has ended: Break at b"
    assert "none: the node has left no result" in str(debugger.history[0])
    assert debugger.history[-1].why == "default filter 'swap': there is no result, so the request ends here"
    assert debugger.error is None


def test_a_filter_that_raises_has_no_verdict() -> None:
    """The step holds the error; the filter is named."""

    def careless(request: Request) -> Status:
        raise LookupError("no such key")

    with Pipe(backend="Identity", filter=careless) as pipe, pipe.debug({"data": 1}) as debugger:
        step = debugger.step()
    assert step.status is None
    assert step.why.endswith("careless' raised")
    assert isinstance(step.error, LookupError)
    assert "no verdict" in str(step)


def test_what_a_filter_changes_is_told() -> None:
    """A user's filter may prepare the request; that is no doing of the node's."""

    def prepare(request: Request) -> Status:
        request["seen"] = True
        return Status.Run

    with Pipe(backend="Identity", filter=prepare) as pipe, pipe.debug({"data": 1}) as debugger:
        step = debugger.step()
    assert (step.arrived, step.before) == ({"data": 1}, {"data": 1, "seen": True})
    assert "it has changed the request: +seen" in str(step)


def test_hidden_nodes_are_listed() -> None:
    """SubGraphSkip names what it skips, itself first."""
    nodes = {
        "a": {"backend": "Identity", "next": "b"},
        "b": {"backend": "Identity", "next": "c", "filter": "SubGraphSkip"},
        "c": {"backend": "RuntimeError"},
    }
    with Pipe(nodes) as pipe, pipe.debug({"data": 1}) as debugger:
        debugger.run()
    assert places(debugger.history) == ["a", "b"]
    assert debugger.history[1].hidden == ("b", "c")
    assert "skipped b, c" in " ".join(str(debugger.history[1]).split())


def test_a_restart_is_told() -> None:
    """The leaf says that the request comes again, and the node there says why it runs."""

    def small(request: Request) -> Status:
        return Status.Break if request.get("result", 0) > 3 else fastpipe.filters.swap(request)

    nodes: dict[str, Any] = {
        "a": {"backend": increment, "next": "b"},
        "b": {"backend": "Identity", "filter": small, "restart": "a"},
    }
    with Pipe(nodes) as pipe, pipe.debug({"data": 1}) as debugger:
        debugger.run()
    assert places(debugger.history) == ["a", "b", "a", "b", "a", "b"]
    assert debugger.history[1].restarted_at == "a"
    assert debugger.history[2].why.startswith("restart: the request comes again")
    assert "comes again at a" in str(debugger.history)


# ---- the batch it would have joined ----------------------------------------------------------------------------


def test_a_step_tells_the_batch_that_the_request_would_have_joined(chain: Pipe) -> None:
    """What the queue holds and what the rule says of it."""
    with chain.debug({"data": 1}) as debugger:
        alone, batched = debugger.step(), debugger.step()
    assert alone.batch["max_batch"] == 1
    assert {key: batched.batch[key] for key in ("max_batch", "instances", "idle", "queued", "weight")} == {
        "max_batch": 4,
        "instances": 1,
        "idle": 1,
        "queued": 0,
        "weight": 1,
    }
    assert "alone, as the node takes one at a time; 0 queued, 1 of 1 instances idle" in str(alone)
    assert "alone, of up to 4, at once: nobody else could come" in str(batched)


def test_buckets_and_weights_are_those_of_the_request_behind_the_filter() -> None:
    """They are asked with the dict that the node gets."""

    class Bucketed(Backend):
        max_batch = 8

        def bucket(self, request: Request) -> str:
            return f"width {request['data']}"

        def weigh(self, request: Request) -> float:
            return float(request["data"])

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = 1

    with (
        Pipe(a={"backend": increment, "next": "b"}, b={"backend": Bucketed}) as pipe,
        pipe.debug({"data": 2}) as debugger,
    ):
        debugger.step()
        step = debugger.step()
    assert (step.batch["bucket"], step.batch["weight"]) == ("width 3", 3.0)
    assert "it weighs 3; bucket 'width 3'" in str(step)


# ---- parts -----------------------------------------------------------------------------------------------------


def test_the_parts_of_a_map_reduce_are_steps_of_their_own(split: Pipe) -> None:
    """They are named by index, and the node that split tells their number."""
    request = {"data": 2}
    with split.debug(request) as debugger:
        debugger.run()
    assert sorted(places(debugger.history)) == sorted(
        ["a", "each", "part[0]", "part[1]", "squared[0]", "squared[1]", "total"]
    )
    assert debugger.history[1].part_count == 2
    assert "split into 2 parts" in str(debugger.history)
    assert request["result"] == 1


def test_a_failing_part_fails_the_request_in_its_step(split: Pipe) -> None:
    """The others are not run any more."""
    with split.debug({"data": 4}) as debugger:
        stop = debugger.run()
    assert stop.reason == "the request has failed with ValueError"
    assert debugger.history[-1].where == "part[2]"
    assert isinstance(debugger.history[-1].error, ValueError)


def test_run_stops_behind_an_error_that_does_not_end_the_request() -> None:
    """break_on_error: with on_error="skip" a part may fail and the request go on."""
    with (
        Pipe(each={"backend": "MapReduce", "jump": "part", "on_error": "skip"}, part={"backend": FailsOnTwo}) as pipe,
        pipe.debug({"data": [1, 2, 3]}) as debugger,
    ):
        debugger.break_on_error()
        stop = debugger.run()
        assert (stop.reason, debugger.finished) == ("error in part[1]", False)
        debugger.run()
        assert debugger.request["result"] == [1, 3]


def test_a_map_reduce_inside_of_a_sequential_tells_what_it_ran() -> None:
    """Its parts run within the step of the node around it."""
    with (
        Pipe(a={"backend": "S[Identity,MapReduce]", "jump": "part"}, part={"backend": square}) as pipe,
        pipe.debug({"data": [1, 2]}) as debugger,
    ):
        step = debugger.step()
        assert debugger.finished
    assert step.after["result"] == [1, 4]
    assert [line.partition(" ->")[0] for line in step.inner] == ["part", "part"]
    assert step.elapsed_s is not None


# ---- breakpoints -----------------------------------------------------------------------------------------------


def test_run_stops_before_a_node_and_goes_on_from_there(chain: Pipe) -> None:
    """It does not stop again where it stands."""
    with chain.debug({"data": 1}) as debugger:
        point = debugger.break_at("b")
        stop = debugger.run()
        assert (stop.reason, places(stop.steps)) == ("breakpoint before b", ["a"])
        assert stop.next is not None
        assert stop.next.request == {"data": 1, "result": 2}
        stop = debugger.run()
        assert (stop.reason, places(stop.steps), stop.next) == ("the request has ended", ["b", "c"], None)
    assert point.hits == 1


def test_run_stops_before_the_first_node_at_once(chain: Pipe) -> None:
    """Nobody has seen that node yet."""
    with chain.debug({"data": 1}) as debugger:
        debugger.break_at("a")
        assert (debugger.run().reason, len(debugger.history)) == ("breakpoint before a", 0)
        assert debugger.run().reason == "the request has ended"


def test_a_condition_chooses_among_parts(split: Pipe) -> None:
    """`when` is asked with the dict as it arrives."""
    with split.debug({"data": 2}) as debugger:
        debugger.break_at("part", when=lambda request: request["data"] == 1)
        assert debugger.run().reason == "breakpoint before part[1]"


def test_a_condition_of_its_own_stops_before_any_node(chain: Pipe) -> None:
    """break_when."""
    with chain.debug({"data": 3}) as debugger:
        debugger.break_when(lambda request: request.get("result", 0) > 10)
        assert debugger.run().reason == "the condition holds before c"


def test_disabled_and_cleared_breakpoints_do_not_stop(chain: Pipe) -> None:
    """Both ways to go on without."""
    with chain.debug({"data": 1}) as debugger:
        debugger.break_at("b").enabled = False
        debugger.break_at("c")
        assert debugger.run().reason == "breakpoint before c"
        debugger.start({"data": 1})
        debugger.clear()
        assert debugger.run().reason == "the request has ended"


def test_what_a_condition_raises_is_raised_and_nothing_is_lost(chain: Pipe) -> None:
    """With a note; the request stands where it stood."""
    with chain.debug({"data": 1}) as debugger:
        point = debugger.break_at("b", when=lambda request: request["absent"])
        with pytest.raises(KeyError) as caught:
            debugger.run()
        assert caught.value.__notes__ == ["fastpipe: raised by the condition of a breakpoint, before b"]
        point.enabled = False
        assert debugger.run().reason == "the request has ended"
        assert debugger.request["result"] == 5


def test_a_breakpoint_at_no_node_is_refused(chain: Pipe) -> None:
    """With the nearest name, and all of them."""
    nodes = r"no node is named 'B'; they are \['a', 'b', 'c'\]; did you mean 'b'\?"
    with chain.debug() as debugger, pytest.raises(UnknownNode, match=nodes):
        debugger.break_at("B")


# ---- its life --------------------------------------------------------------------------------------------------


def test_leaving_the_block_gives_the_request_up(chain: Pipe) -> None:
    """Nothing is left in flight, and the caller's dict is as it was."""
    request = {"data": 1}
    with chain.debug(request) as debugger:
        debugger.step()
        assert chain.in_flight == 1
    assert chain.in_flight == 0
    assert chain.stats()["requests"]["cancelled"] == 1
    assert request == {"data": 1}
    assert repr(debugger) == "<fastpipe.Debugger after 1 steps; the request was given up>"


def test_a_debugger_that_is_not_used_leaves_nothing_in_flight(chain: Pipe) -> None:
    """Without `with`, the request is admitted by the first step."""
    debugger = chain.debug({"data": 1})
    assert chain.in_flight == 0
    assert repr(debugger) == "<fastpipe.Debugger; nothing has begun>"
    assert debugger.step().node == "a"
    assert chain.in_flight == 1
    assert debugger.cancel()
    assert not debugger.cancel()


def test_a_debugger_without_a_request_says_so(chain: Pipe) -> None:
    """Instead of an attribute error."""
    with chain.debug() as debugger, pytest.raises(PipeError, match=r"the debugger has no request: start\(request\)"):
        debugger.step()


def test_start_begins_another_request_and_keeps_breakpoints(chain: Pipe) -> None:
    """The one before is given up."""
    with chain.debug({"data": 1}) as debugger:
        debugger.break_at("b")
        debugger.run()
        debugger.start({"data": 5})
        assert len(debugger.history) == 0
        assert chain.in_flight == 1
        assert debugger.run().request["result"] == 6


def test_a_request_that_the_pipe_refuses_is_refused_by_start(chain: Pipe) -> None:
    """As a call would."""
    with chain.debug() as debugger, pytest.raises(UnknownNode, match="nowhere"):
        debugger.start({"data": 1, "node_name": "nowhere"})


def test_other_threads_are_served_meanwhile(chain: Pipe) -> None:
    """Between steps no instance is held."""
    with chain.debug({"data": 1}) as debugger:
        debugger.step()
        answers: list[Any] = []
        caller = threading.Thread(target=lambda: answers.append(chain({"data": 2})["result"]))
        caller.start()
        caller.join(timeout=30)
        assert answers == [10]
        debugger.run()
        assert debugger.request["result"] == 5


def test_closing_the_pipe_does_not_wait_for_a_debugger_of_the_same_thread() -> None:
    """That thread is in close() and could never take the next step."""
    pipe = Pipe(backend="Identity")
    debugger = pipe.debug({"data": 1})
    assert debugger.next is not None
    closer_was_done = threading.Event()
    guard = threading.Timer(30, lambda: closer_was_done.is_set() or pipe._fail_rest("the test hangs"))
    guard.start()
    pipe.close()
    closer_was_done.set()
    guard.cancel()
    assert debugger.finished
    assert debugger.error is None  # given up, not failed by the guard


def test_dropping_a_debugger_lets_a_close_end_that_waits_for_its_request() -> None:
    """Whoever closes must not be the one who keeps the debugger, and so the request, alive."""
    pipe = Pipe(backend="Identity")
    debugger = pipe.debug({"data": 1})
    assert debugger.next is not None
    closer = threading.Thread(target=pipe.close)
    told = threading.Event()
    tell = type(debugger)._pipe_closes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Debugger, "_pipe_closes", lambda self: (tell(self), told.set()))
        closer.start()
        assert told.wait(30)
    del debugger
    closer.join(30)
    was_done = not closer.is_alive()
    pipe._fail_rest("the test hangs")
    closer.join()
    assert was_done


# ---- views -----------------------------------------------------------------------------------------------------


class Awkward:
    """Its methods must not be called by whoever only looks."""

    def __init__(self) -> None:
        self.width = 3
        self._secret = 1

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __len__ = __bool__ = __eq__ = __repr__  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


def test_a_value_that_cannot_be_shown_does_not_break_the_debugger() -> None:
    """Neither a step, nor a history, nor a stop."""
    with Pipe(backend="Identity") as pipe, pipe.debug({"data": Awkward(), "more": [Awkward()]}) as debugger:
        step = debugger.step()
        assert "Awkward(width=3)" in str(step)
        assert "Awkward" in str(debugger)
        assert "Awkward" in step._repr_html_()


def test_large_values_are_never_printed_whole() -> None:
    """A line for each key, whatever is in it, and not too many keys."""
    request = {"data": np.zeros((4000, 4000)), "text": "x" * 10**6, "items": list(range(10**5)), "bytes": b"y" * 10**6}
    with Pipe(backend="Identity") as pipe, pipe.debug({**request, **{f"key{i}": i for i in range(500)}}) as debugger:
        text = str(debugger.step())
    assert max(map(len, text.splitlines())) < 160
    assert len(text.splitlines()) < 60
    assert "more keys" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (0.1, "0.1"),
        (None, "None"),
        ("a\nb", r"'a\nb'"),
        ("x" * 1000, f"str of 1000: '{'x' * 60}'..."),
        (b"\xff\xd8", r"bytes, 2 B: b'\xff\xd8'"),
        (10**1000, "int of 3322 bits"),
        ((1, 2.5), "(1, 2.5)"),
        ([1, 2, 3, 4, 5, 6], "list of 6: [1, 2, 3, 4, ... 2 more]"),
        ([[0] * 3] * 9, "list of 9: [[0, ... 2 more like it], ... 8 more]"),
        ({"a": {"b": [1]}}, "{'a': {'b': [1]}}"),
        (np.zeros((4, 5, 3), np.uint8), "ndarray uint8 (4, 5, 3), 60 B, 0 to 0"),
        (np.array([1.5, 2]), "ndarray float64 (2,), 16 B: [1.5, 2]"),
        (np.array([np.nan] + [1.0] * 9), "ndarray float64 (10,), 80 B, 1 to 1, 1 of 10 are nan"),
        (np.float32(0.5), "float32 0.5"),
        (np.array([None, 1]), "ndarray object (2,), 16 B of None, ..."),
        (ValueError("x"), "ValueError('x')"),
        (Status.Run, "Status.Run"),
        (int, "class int"),
        (Awkward(), "Awkward(width=3)"),
    ],
)
def test_how_a_value_is_summarised(value: Any, text: str) -> None:
    """In a line that says what one wants to know of it."""
    assert str(summarize(value)) == text


class Credentials(NamedTuple):
    """Two fields, the second a secret."""

    user: str
    password: str


class Header(NamedTuple):
    """A pair as any other: its first item says what the second is."""

    name: str
    value: str


@dataclass
class Account:
    """A dataclass with a secret."""

    user: str
    api_key: str


@dataclass(frozen=True, slots=True)
class SlottedAccount:
    """One without a ``__dict__``."""

    user: str
    api_key: str


@dataclass
class Denied(Exception):
    """An error with fields, which are its ``args``, too."""

    user: str
    password: str


class Refused(Exception):
    """An error with a secret as an attribute, and in its message."""

    def __init__(self, user: str, password: str) -> None:
        super().__init__(f"{user} is refused with {password}", password)
        self.password = password


SECRET = "correct horse"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Credentials("me", SECRET), "Credentials(user='me', password=<secret>)"),
        (
            [Credentials("me", SECRET)] * 2,
            "[Credentials(user='me', password=<secret>), Credentials(user='me', password=<secret>)]",
        ),
        (Header("Authorization", SECRET), "Header(name='Authorization', value=<secret>)"),
        (Header("Accept", "*"), "Header(name='Accept', value='*')"),
        (namedtuple("Wide", "a b c d token")(1, 2, 3, 4, SECRET), "Wide(a=1, b=2, c=3, d=4, ... 1 more)"),
        (Account("me", SECRET), "Account(user='me', api_key=<secret>)"),
        (SlottedAccount("me", SECRET), "SlottedAccount(api_key=<secret>, user='me')"),
        (Denied("me", SECRET), "Denied('me', <secret>)"),
        (Denied(SECRET, SECRET), "Denied(<secret>, <secret>)"),
        (Refused("me", SECRET), "Refused('me is refused with <secret>', <secret>)"),
        (ValueError("Authorization", SECRET), "ValueError('Authorization', <secret>)"),
        (ValueError({"password": SECRET}), "ValueError({'password': <secret>})"),
        (ValueError(Credentials("me", SECRET)), "ValueError(Credentials(user='me', password=<secret>))"),
        ({"cause": Denied("me", SECRET)}, "{'cause': Denied('me', <secret>)}"),
    ],
)
def test_a_field_named_like_a_secret_is_left_out_of_a_summary(value: Any, text: str) -> None:
    """Of named tuples, dataclasses and errors, as keys of dicts are."""
    assert str(summarize(value)) == text


def test_a_secret_in_an_error_is_not_shown_in_part_either() -> None:
    """A long text is cut, and what is hidden is hidden before."""
    text = str(summarize(Refused("x" * 40, "y" * 100)))
    assert "y" not in text
    assert text.startswith(f"Refused('{'x' * 40} is refused with <")


def test_a_summary_has_shape_dtype_and_size_of_an_array() -> None:
    """For programs that look at steps."""
    summary = summarize(np.zeros((2, 3), np.float32))
    assert (summary.type, summary.shape, summary.dtype, summary.size_bytes, summary.length) == (
        "numpy.ndarray", (2, 3), "float32", 24, 2,
    )  # fmt: skip


def test_a_subclass_that_misbehaves_is_only_named() -> None:
    """Of a list subclass the list's own methods are used; what raises all the same is said."""

    class Odd(list[int]):
        def __len__(self) -> int:
            raise RuntimeError

        def __iter__(self) -> Iterator[int]:
            raise RuntimeError

    assert str(summarize(Odd([1, 2]))) == "Odd of 2: [1, 2]"

    class Hostile:
        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            raise RuntimeError("never")

    assert str(summarize(Hostile())) == "Hostile, which raises RuntimeError when looked at"


def test_sizes_are_told_as_people_say_them() -> None:
    """Three digits and a unit."""
    assert [in_units(size) for size in (0, 999, 1000, 921_600, 13_002_000)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "922 kB",
        "13.0 MB",
    ]


def test_repr_is_a_line_and_str_is_all(chain: Pipe) -> None:
    """A list of steps stays readable."""
    with chain.debug({"data": 1}) as debugger:
        step = debugger.step()
        stop = debugger.run()
    assert repr(step).startswith("<NodeRun 1: a -> Run, ")
    assert repr(step).endswith(", +result>")
    assert repr(stop) == "<Stop after 2 steps: the request has ended>"
    assert str(step).splitlines()[0].startswith("step 1: a -> Run (")
    assert "+ result  2" in str(step)
    assert str(debugger.history).splitlines()[1].split()[:3] == ["2", "b", "Run"]
    assert "the request has ended" in str(debugger)


def _views(debugger: Debugger, stop: Stop) -> list[Any]:
    return [debugger.history[0], debugger.history, stop, debugger]


class Unlocks(Backend):
    """Fails, and says with which key of its configuration, and which password of the request."""

    def __init__(self, model_key: str) -> None:
        self.model_key = model_key

    def forward(self, batch: list[Request]) -> None:
        raise ValueError(f"{self.model_key!r} opens nothing for {batch[0].pop('password')!r}")


def test_a_secret_that_an_error_repeats_is_not_shown() -> None:
    """Of the configuration and of the request, nor is its value; the error itself is whole, for programs."""
    request = {"data": 1, "password": "battery staple"}
    with Pipe(backend=Unlocks, model_key="correct horse") as pipe, pipe.debug(request) as debugger:
        stop = debugger.run()
        assert str(debugger.error) == "'correct horse' opens nothing for 'battery staple'"
        said = "'<secret>' opens nothing for '<secret>'"
        assert said in debugger.history[0].traceback
        for view in _views(debugger, stop):
            for text in (str(view), html.unescape(view._repr_html_())):
                assert said in text
                assert "correct horse" not in text
                assert "battery staple" not in text


def test_a_bucket_that_raises_is_told_without_the_secret_in_its_text() -> None:
    """In the line about the batch that the request would have joined."""

    def bucket(request: Request) -> int:
        raise ValueError(f"no bucket for {request['token']}")

    request = {"data": 1, "token": "battery staple"}
    with Pipe(backend="Identity", bucket=bucket) as pipe, pipe.debug(request) as debugger:
        text = str(debugger.step())
    assert "no bucket for <secret>" in text
    assert "battery staple" not in text


def test_a_secret_of_a_request_is_shown_only_to_who_asks_for_it_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``print password`` shows it; steps and requests show that it is there, and whether it has changed."""
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("step\nhistory 1\nset password 'another one'\nprint\nprint password\n")
    )
    request = {"data": 1, "password": "battery staple"}
    with Pipe(a={"backend": increment, "next": "b"}, b={"backend": square}) as pipe, pipe.debug(request) as debugger:
        interact(debugger)
    said = capsys.readouterr().out
    assert "password  <secret>" in said
    assert "battery staple" not in said
    assert said.count("another one") == 2  # the command, which is repeated where no terminal is, and its answer


@pytest.mark.parametrize("data", [1, "text"])
def test_rich_draws_all_of_it(chain: Pipe, data: Any) -> None:
    """In colours where the terminal has them; markup in values is text."""
    console = pytest.importorskip("rich.console")
    with chain.debug({"data": data, "tag": "[bold]x[/bold]"}) as debugger:
        stop = debugger.run()
        for view in _views(debugger, stop):
            out = io.StringIO()
            console.Console(file=out, width=100).print(view)
            assert "a" in out.getvalue()
            if view is debugger:
                assert "[bold]x[/bold]" in out.getvalue()


@pytest.mark.parametrize("data", [1, "<b>text</b>"])
def test_a_notebook_gets_html_with_everything_escaped(chain: Pipe, data: Any) -> None:
    """No value becomes markup."""
    with chain.debug({"data": data, "<i>": 1}) as debugger:
        stop = debugger.run()
        for view in _views(debugger, stop):
            drawn = view._repr_html_()
            assert "<i>" not in drawn
            assert "<b>text" not in drawn


def test_the_debugger_needs_no_rich(chain: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain text is always there."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    with chain.debug({"data": 1}) as debugger:
        assert "a -> Run" in str(debugger.step())


# ---- the prompt ------------------------------------------------------------------------------------------------


@pytest.fixture
def at_prompt(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Run `fastpipe debug` on a chain of two squares, with these lines as input."""
    path = tmp_path / "squares.toml"
    path.write_text('[first]\nbackend = "Pow"\nnext = "second"\n[second]\nbackend = "Pow"\n')

    def at_prompt(*lines: str, words: Sequence[str] = ("--data", "3")) -> tuple[int, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        status = main(["debug", str(path), *words])
        return status, capsys.readouterr().out

    return at_prompt


def test_the_prompt_steps_runs_and_shows(at_prompt: Callable[..., tuple[int, str]]) -> None:
    """The commands, short and long; the status is 0 as the request ended well."""
    status, text = at_prompt("b second", "r", "print result", "set result 5", "step", "history", "history 1", "w")
    assert status == 0
    assert "breakpoint before second (after 1 step)" in text
    assert "(fastpipe) print result\n9\n" in text
    assert "result  25" in text
    assert "1  first   Run" in text
    assert "the request has ended" in text


def test_what_is_left_at_the_prompt_is_given_up(at_prompt: Callable[..., tuple[int, str]]) -> None:
    """Status 1: nothing came of it."""
    assert at_prompt("s", "q")[0] == 1
    assert at_prompt()[0] == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["stepp"], "there is no command 'stepp'; did you mean 'step'?; ? lists them"),
        (["?"], "s, step [N]"),
        (["b fourth"], "no node is named 'fourth'"),
        (["b"], "no breakpoints: break NODE sets one"),
        (["p resource"], "the request has no key 'resource'; its keys are ['data']"),
        (["set data x y"], "set KEY VALUE, with a Python literal: 'x y' is none (text needs quotes)"),
        (["r", "set data 1"], "the request has ended"),
        (["r", "s"], "the request has ended after 2 steps"),
        (["s x"], "a number is expected, got 'x'"),
        (["s", "h 9"], "there are steps 1 to 1"),
        (["b second", "clear", "r"], "the request has ended (after 2 steps)"),
    ],
)
def test_the_prompt_says_what_is_wrong_and_goes_on(
    at_prompt: Callable[..., tuple[int, str]], lines: list[str], message: str
) -> None:
    """No mistake at the prompt ends it."""
    text = at_prompt(*lines, "w")[1]
    assert message in text
    assert "(fastpipe) w" in text


def test_where_the_request_enters_and_stops_can_be_said(at_prompt: Callable[..., tuple[int, str]]) -> None:
    """--node and --break."""
    text = at_prompt("r", "s", words=["--data", "2", "--node", "second", "--break", "second"])[1]
    assert "breakpoint before second (after 0 steps)" in text
    assert "+ result  4" in text


def test_what_data_may_be(tmp_path: Any) -> None:
    """A literal, the bytes of a file, or else text."""
    (tmp_path / "file").write_bytes(b"\xff")
    assert [data_of(text) for text in ("3", "[1, 'a']", "hello", "'3'", f"@{tmp_path / 'file'}")] == [
        3, [1, "a"], "hello", "3", b"\xff",
    ]  # fmt: skip


def test_a_stop_in_front_of_a_queue_names_the_rule_that_will_decide() -> None:
    """The class of a rule of one's own, not that of its method."""

    class InPairs:
        def decide(self, load: dict[str, Any]) -> int:
            return int(load["queued"]) // 2 * 2

    with Pipe(backend="Pow", max=8, batching=InPairs()) as pipe:
        preview = pipe._preview("main", {"data": 3})
    assert (preview["decision"], preview["reason"]) == ("as the rule says", "InPairs")
