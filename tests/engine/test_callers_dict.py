"""What becomes of the dict that a caller hands in: it is copied when the pipe is called, and gets what is new."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fastpipe import Backend, Pipe, PipeClosed, PipeError, Request, Status

WAIT_S = 20.0

Call = Callable[[Pipe, Request], Any]


def by_acall(pipe: Pipe, request: Request) -> Request:
    async def main() -> Request:
        return await pipe.acall(request)

    return asyncio.run(main())


WAYS: dict[str, Call] = {
    "call": lambda pipe, request: pipe(request),
    "eager": lambda pipe, request: pipe(request, eager=True),
    "list": lambda pipe, request: pipe([request])[0],
    "submit": lambda pipe, request: pipe.submit(request).result(WAIT_S),
    "acall": by_acall,
    "map": lambda pipe, request: next(pipe.map([request])),
}


@pytest.fixture(params=WAYS)
def call(request: pytest.FixtureRequest) -> Call:
    """How the pipe is called."""
    return WAYS[request.param]


class Does(Backend):
    """Calls a function with each request."""

    def __init__(self, *, does: Callable[[Request], Any]) -> None:
        self.does = does

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            self.does(request)


def doing(does: Callable[[Request], Any], **keys: Any) -> dict[str, Any]:
    return {"backend": Does, "does": does, **keys}


def doubles(request: Request) -> None:
    request["result"] = request["data"] * 2


def passes(request: Request) -> None:
    request["result"] = request["data"]


class Gate:
    """Holds a backend up; remembers what it got."""

    def __init__(self) -> None:
        self.inside, self.opened = threading.Event(), threading.Event()
        self.got: list[Request] = []

    def __call__(self, request: Request) -> None:
        self.inside.set()
        assert self.opened.wait(WAIT_S)
        self.got.append(dict(request))
        request["result"] = request["data"]


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


# ---- the same dict, again --------------------------------------------------------------------------------------------


def test_the_same_dict_sent_twice_gives_the_same_answer_twice(call: Call) -> None:
    """What the inner nodes had as their data stays inside."""
    request = {"data": 3.0}
    with Pipe(a=doing(doubles, next="b"), b=doing(doubles)) as pipe:
        for _ in range(2):
            assert call(pipe, request) is request
            assert request == {"data": 3.0, "result": 12.0}


def test_a_graph_with_several_leaves_is_entered_at_its_root_again(call: Call) -> None:
    """Which of them answered stands under a key that means nothing to the pipe."""
    request = {"data": 3}
    with Pipe(a=doing(doubles, next="b,c"), b=doing(doubles), c=doing(doubles)) as pipe:
        for _ in range(2):
            assert call(pipe, request) == {"data": 3, "result": 12, "answered_by": "c"}


def test_an_answer_of_an_earlier_call_is_seen_by_nobody_and_gone_after_a_failure(call: Call) -> None:
    """The result, and of several leaves the name of the one that gave it."""
    seen: list[Request] = []

    def looks(request: Request) -> None:
        seen.append(dict(request))
        request["result"] = 1 / request["data"]

    request = {"data": 1, "id": 7}
    with Pipe(a=doing(looks, next="b,c"), b=doing(passes), c=doing(passes)) as pipe:
        call(pipe, request)
        assert request == {"data": 1, "id": 7, "result": 1.0, "answered_by": "c"}
        request["data"] = 0
        with pytest.raises((ZeroDivisionError, ExceptionGroup)):
            call(pipe, request)
    assert request == {"data": 0, "id": 7}
    assert seen == [{"data": 1, "id": 7}, {"data": 0, "id": 7}]


def test_a_key_named_answered_by_is_like_any_other_where_there_is_one_leaf(call: Call) -> None:
    """It is seen, and stays."""
    with Pipe(a=doing(lambda request: request.update(result=request["answered_by"]))) as pipe:
        assert call(pipe, {"answered_by": "me"}) == {"answered_by": "me", "result": "me"}


# ---- what is written, and what is not --------------------------------------------------------------------------------


def test_data_and_node_name_are_never_written(call: Call) -> None:
    """Not even if a backend has set them."""

    def meddles(request: Request) -> None:
        request.update(data="other", node_name="other", result=1)

    with Pipe(a=doing(meddles)) as pipe:
        assert call(pipe, {"data": 5}) == {"data": 5, "result": 1}
        assert call(pipe, {"data": 5, "node_name": "a"}) == {"data": 5, "node_name": "a", "result": 1}
        assert call(pipe, {}) == {"result": 1}


def test_keys_of_a_request_that_was_read_from_json_are_no_others(call: Call) -> None:
    """Their texts are other objects than those in programs."""
    with Pipe(a=doing(doubles, next="b"), b=doing(doubles)) as pipe:
        request = json.loads('{"data": 3, "result": 99, "node_name": "a"}')
        assert call(pipe, request) == {"data": 3, "node_name": "a", "result": 12}


def test_what_a_backend_sets_is_written_over_a_key_of_that_name(call: Call) -> None:
    """Else a client's own score would be taken for the model's."""

    def scores(request: Request) -> None:
        request.update(result=request["data"], score=0.5)

    with Pipe(a=doing(scores)) as pipe:
        assert call(pipe, {"data": 1, "score": "forged", "id": 7}) == {"data": 1, "score": 0.5, "id": 7, "result": 1}


def test_what_a_backend_takes_out_stays_in_the_callers_dict(call: Call) -> None:
    """It was working on its own."""

    def takes(request: Request) -> None:
        request["result"] = request.pop("extra")

    with Pipe(a=doing(takes)) as pipe:
        assert call(pipe, {"data": 1, "extra": 2}) == {"data": 1, "extra": 2, "result": 2}


def test_what_the_caller_changes_meanwhile_is_not_written_over(gate: Gate) -> None:
    """Unless a backend has set that key, too."""

    def sets(request: Request) -> None:
        gate(request)
        request["set"] = "by the backend"

    request = {"data": 1, "id": "old", "set": "old", "gone": "old"}
    with Pipe(a=doing(sets)) as pipe:
        future = pipe.submit(request)
        assert gate.inside.wait(WAIT_S)
        request.update(data=2, id="new", set="new", more="new")
        del request["gone"]
        gate.opened.set()
        assert future.result(WAIT_S) is request
    assert request == {"data": 2, "id": "new", "set": "by the backend", "more": "new", "result": 1}


def test_a_dict_of_another_class_is_told_of_what_is_new_and_of_nothing_else(call: Call) -> None:
    """By its own methods."""

    class Noting(dict[str, Any]):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.written: list[str] = []

        def __setitem__(self, key: str, value: Any) -> None:
            self.written.append(key)
            super().__setitem__(key, value)

    request = Noting({"data": 3, "id": 7})
    with Pipe(a=doing(lambda r: r.update(result=r["data"], unit="cm"), next="b"), b=doing(doubles)) as pipe:
        assert call(pipe, request) is request
    assert request == {"data": 3, "id": 7, "unit": "cm", "result": 6}
    assert sorted(request.written) == ["result", "unit"]


def test_a_break_writes_no_data_either(call: Call) -> None:
    """Where the graph is left in the middle, the dict there is the answer."""

    def leaves(request: Request) -> Status:
        request["data"] = "of the filter"
        return Status.Break

    with Pipe(a=doing(doubles, next="b"), b=doing(doubles, filter=leaves)) as pipe:
        assert call(pipe, {"data": 3}) == {"data": 3, "result": 6}


def test_the_answer_of_a_part_has_its_data() -> None:
    """Inside nothing is kept from anybody: a Jump is as if its graph stood there."""
    nodes = {
        "m": {"backend": "MapReduce", "jump": "a", "merge": "result,data"},
        "a": doing(doubles, next="b"),
        "b": doing(doubles, next="c"),
        "c": doing(lambda request: request.update(result=(request["data"], request.get("seen")))),
        "seen": doing(passes),
    }
    with Pipe(nodes) as pipe:
        got: Request = pipe({"data": [1, 2]}, entry="m")
    assert got == {"data": [1, 2], "result": [(4, None), (8, None)]}
    with Pipe(j={"backend": "Jump", "jump": "a", "next": "last"}, last=doing(passes, filter="run"), **{
        name: nodes[name] for name in "abc"
    }) as pipe:  # fmt: skip
        assert pipe({"data": 1})["result"] == 4  # the data of c


# ---- copied when the pipe is called ----------------------------------------------------------------------------------


def test_what_is_changed_after_submit_changes_no_answer(gate: Gate) -> None:
    """Neither of what runs, nor of what is queued."""
    with Pipe(a=doing(gate)) as pipe:
        requests = [{"data": number, "id": number} for number in range(3)]
        futures = [pipe.submit(request) for request in requests]
        for request in requests:
            request.update(data=99, id=99)
        gate.opened.set()
        assert [future.result(WAIT_S)["result"] for future in futures] == [0, 1, 2]
    assert gate.got == [{"data": number, "id": number} for number in range(3)]


def test_what_is_changed_after_acall_changes_no_answer(gate: Gate) -> None:
    """Not even before the coroutine has begun to run, or while it waits for room."""

    async def main() -> None:
        running = asyncio.create_task(pipe.acall(requests[0]))
        waiting = asyncio.create_task(pipe.acall(requests[1]))
        held = pipe.acall(requests[2])
        for request in requests:
            request["data"] = 99
        await asyncio.to_thread(gate.inside.wait, WAIT_S)
        gate.opened.set()
        assert [(await each)["result"] for each in (running, waiting, held)] == [0, 1, 2]

    requests = [{"data": number} for number in range(3)]
    with Pipe(a=doing(gate), max_in_flight=1) as pipe:
        asyncio.run(main())
    assert requests == [{"data": 99, "result": number} for number in range(3)]


def test_what_is_changed_after_map_has_taken_it_changes_no_answer(gate: Gate) -> None:
    """It is taken when it is to be started."""

    def made() -> Iterator[Request]:
        for number in range(3):
            requests.append({"data": number})
            yield requests[-1]
            requests[-1]["data"] = 99
        gate.opened.set()

    requests: list[Request] = []
    with Pipe(a=doing(gate)) as pipe:
        assert [request["result"] for request in pipe.map(made(), look_ahead=5)] == [0, 1, 2]


def test_the_copy_is_of_the_dict_and_not_of_its_values(gate: Gate) -> None:
    """A list that is changed meanwhile is the list that the backend has."""
    request = {"data": [1]}
    with Pipe(a=doing(gate)) as pipe:
        future = pipe.submit(request)
        request["data"].append(2)
        gate.opened.set()
        assert future.result(WAIT_S)["result"] == [1, 2]


# ---- a dict with methods of its own ----------------------------------------------------------------------------------


class Acts(dict[str, Any]):
    """Does something, once, when it is written to, or when something is taken out of it."""

    act: Callable[[], Any] | None = None

    def __setitem__(self, key: str, value: Any) -> None:
        self.do()
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        self.do()
        super().__delitem__(key)

    def do(self) -> None:
        act, self.act = self.act, None
        if act is not None:
            act()


WAITS: dict[str, Callable[[Pipe], Any]] = {
    "call": lambda pipe: pipe({"data": 2}),
    "eager": lambda pipe: pipe({"data": 2}, eager=True),
    "list": lambda pipe: pipe([{"data": 2}]),
    "map": lambda pipe: next(pipe.map([{"data": 2}])),
}


@pytest.mark.parametrize("waits", WAITS.values(), ids=WAITS)
def test_a_dict_that_waits_for_the_pipe_which_writes_to_it_is_refused(call: Call, waits: Callable[[Pipe], Any]) -> None:
    """It would wait for its own thread: its request fails, and the pipe goes on."""
    told: list[PipeError] = []

    def act() -> None:
        try:
            waits(pipe)
        except PipeError as error:
            told.append(error)

    request = Acts(data=1)
    request.act = act
    with Pipe(a=doing(doubles)) as pipe:
        assert call(pipe, request)["result"] == 2
        assert pipe({"data": 3})["result"] == 6
    assert ["must a method of a dict" in str(error) for error in told] == [True]


def test_what_a_dict_raises_when_it_is_written_to_is_its_requests_error(call: Call) -> None:
    """That it was refused to wait, for instance; the pipe goes on."""
    request = Acts(data=1)
    with Pipe(a=doing(doubles)) as pipe:
        request.act = lambda: pipe({"data": 2})
        with pytest.raises((PipeError, ExceptionGroup)) as raised:
            call(pipe, request)
        errors = raised.value.exceptions if isinstance(raised.value, ExceptionGroup) else [raised.value]
        assert [type(error) for error in errors] == [PipeError]
        assert pipe({"data": 3})["result"] == 6


def test_a_dict_may_submit_to_the_pipe_that_writes_to_it(call: Call) -> None:
    """As a callback may: nobody waits there."""
    futures = []
    request = Acts(data=1)
    with Pipe(a=doing(doubles)) as pipe:
        request.act = lambda: futures.append(pipe.submit({"data": 2}))
        assert call(pipe, request)["result"] == 2
        assert [future.result(WAIT_S)["result"] for future in futures] == [4]


def test_a_dict_may_close_the_pipe_that_writes_to_it(call: Call) -> None:
    """As a backend may: ``close`` returns, and the rest happens as soon as the thread is out of it."""
    request = Acts(data=1)
    pipe = Pipe(a=doing(doubles))
    request.act = pipe.close
    assert call(pipe, request)["result"] == 2
    with pytest.raises(PipeClosed):
        pipe({"data": 3})
    pipe.close()


def test_a_dict_may_close_the_pipe_that_takes_an_old_result_out_of_it(call: Call) -> None:
    """Also where its request has failed."""

    def fails(request: Request) -> None:
        raise ValueError("bad")

    request = Acts(data=1, result=0)
    pipe = Pipe(a=doing(fails))
    request.act = pipe.close
    with pytest.raises((ValueError, ExceptionGroup)):
        call(pipe, request)
    assert "result" not in request
    pipe.close()


# ---- a second run ----------------------------------------------------------------------------------------------------


class Tags(Backend):
    """Changes a value in place, and fails with the first batch."""

    max_batch = 2

    def __init__(self, *, begun: threading.Event, opened: threading.Event) -> None:
        self.begun, self.opened = begun, opened

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["tags"].append("seen")
        if len(batch) > 1:
            self.begun.set()
            assert self.opened.wait(WAIT_S)
            raise ValueError("bad")
        for request in batch:
            request["result"] = list(request["tags"])


def run_twice(meanwhile: Callable[[list[Request]], None]) -> list[Request]:
    """Run two requests together, which fails, and then alone; ``meanwhile``: while they are run together."""
    begun, opened = threading.Event(), threading.Event()
    requests: list[Request] = [{"data": number, "tags": [number]} for number in range(2)]
    tags = Tags(begun=begun, opened=opened)
    with Pipe(a={"backend": tags, "batching": "greedy"}) as pipe:
        futures = [pipe.submit(request) for request in requests]
        while not begun.is_set() and not all(future.done() for future in futures):
            begun.wait(0.01)
        meanwhile(requests)
        opened.set()
        assert [future.result(WAIT_S)["result"] for future in futures] == [[0, "seen"], [1, "seen"]]
    return requests


def test_a_second_run_does_not_overwrite_what_the_caller_has_set_meanwhile() -> None:
    """A value that was put back for it has been set by no backend."""

    def meanwhile(requests: list[Request]) -> None:
        for request in requests:
            request["tags"] = "the caller's"

    assert [request["tags"] for request in run_twice(meanwhile)] == ["the caller's"] * 2


def test_a_caller_gets_the_value_that_a_second_run_has_seen() -> None:
    """Not the one that the first run has changed: that is as if it had not been."""
    requests = run_twice(lambda _: None)
    assert [request["tags"] for request in requests] == [[0, "seen"], [1, "seen"]]
