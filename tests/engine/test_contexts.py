"""The caller's context variables are those of the backend, wherever it runs; in company, each request's are at hand."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest
from helpers import WAIT_S, Gate

import fastpipe
from fastpipe import Backend, Pipe, PipeError, Request

CALLER: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="nobody")


class Tells(Backend):
    """Answers whose variables it finds, alone and by context_of, and on which thread."""

    max_batch = 8
    keeps_input = True

    def __init__(self, *, thread_bound: bool = False) -> None:
        self.thread_bound = thread_bound

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            found = CALLER.get() if len(batch) == 1 else "in company"
            own = fastpipe.context_of(request).get(CALLER, "nobody")
            request["result"] = found, own, threading.get_ident()


class Stands(Gate):
    """A gate in which one request waits, so that what comes next queues, and leaves together."""

    def forward(self, batch: list[Request]) -> None:
        if batch[0]["data"] == "first":
            super().forward(batch)
            return
        self.batches.append([request["data"] for request in batch])
        for request in batch:
            own = fastpipe.context_of(request)[CALLER]
            request["result"] = CALLER.get(), own, len(batch)


def as_caller(name: str, function: Callable[[], Any]) -> Any:
    """Call a function in a context of its own, in which CALLER is ``name``."""

    def run() -> Any:
        CALLER.set(name)
        return function()

    return contextvars.Context().run(run)


def in_thread(function: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


@pytest.mark.parametrize("thread_bound", [False, True])
def test_every_way_of_calling_brings_the_callers_variables(thread_bound: bool) -> None:
    """On the caller's thread and on a worker's; a list's requests are in company, perhaps, and each has its own."""
    with Pipe(backend=Tells(thread_bound=thread_bound)) as pipe:

        async def awaited() -> Any:
            CALLER.set("task")
            return (await pipe.acall({"data": 0}))["result"][:2]

        async def gathered() -> list[Any]:
            return [request["result"][1] async for request in pipe.amap({"data": each} for each in range(3))]

        assert as_caller("ann", lambda: pipe({"data": 0})["result"][:2]) == ("ann", "ann")
        assert as_caller("bob", lambda: pipe({"data": 0}, eager=True)["result"][:2]) == ("bob", "bob")
        assert as_caller("cay", lambda: pipe.submit({"data": 0}).result(WAIT_S)["result"][:2]) == ("cay", "cay")
        assert (
            as_caller("dan", lambda: [r["result"][1] for r in pipe.map({"data": i} for i in range(3))]) == ["dan"] * 3
        )
        assert as_caller("eve", lambda: [r["result"][1] for r in pipe([{"data": i} for i in range(5)])]) == ["eve"] * 5
        assert asyncio.run(awaited()) == ("task", "task")
        assert as_caller("fay", lambda: asyncio.run(gathered())) == ["fay"] * 3


def test_a_batched_function_finds_them() -> None:
    """Its items are no requests: in company, the contexts of the batch are asked for all at once."""
    inside, opened = threading.Event(), threading.Event()

    @fastpipe.batched(max=4, timeout_ms=0)
    def who(items: list[str]) -> list[Any]:
        if items == ["first"]:
            inside.set()
            assert opened.wait(WAIT_S)
        return [(len(items), context[CALLER]) for context in fastpipe.contexts_of_batch()]

    try:
        first = as_caller("ann", lambda: who.submit("first"))
        assert inside.wait(WAIT_S)
        others = [as_caller(name, lambda: who.submit("same")) for name in ("bob", "cay")]
        opened.set()
        assert [future.result(WAIT_S)["result"] for future in (first, *others)] == [(1, "ann"), (2, "bob"), (2, "cay")]
    finally:
        who.close()


def test_in_company_each_request_has_its_own() -> None:
    """1. One stands in the only instance. 2. Three others queue. 3. It leaves, and they run in one batch."""
    gate = Stands()
    with Pipe(backend=gate, batching="greedy") as pipe:
        first = in_thread(lambda: pipe({"data": "first"}))
        assert gate.inside.wait(WAIT_S)
        others = [as_caller(name, lambda: pipe.submit({"data": 0})) for name in ("ann", "bob", "cay")]
        gate.opened.set()
        assert [future.result(WAIT_S)["result"] for future in others] == [
            ("nobody", n, 3) for n in ("ann", "bob", "cay")
        ]
        first.join(WAIT_S)


def test_what_failed_together_is_run_again_each_in_its_own() -> None:
    class FailsInCompany(Stands):
        def forward(self, batch: list[Request]) -> None:
            if len(batch) > 1:
                raise ValueError("too many")
            super().forward(batch)

    gate = FailsInCompany()
    with Pipe(backend=gate, batching="greedy") as pipe:
        first = in_thread(lambda: pipe({"data": "first"}))
        assert gate.inside.wait(WAIT_S)
        others = [as_caller(name, lambda: pipe.submit({"data": 0})) for name in ("ann", "bob")]
        gate.opened.set()
        assert [future.result(WAIT_S)["result"] for future in others] == [(n, n, 1) for n in ("ann", "bob")]
        first.join(WAIT_S)


def test_what_a_node_sets_is_seen_by_the_next_ones_of_the_same_request_alone() -> None:
    class Sets(Backend):
        thread_bound = True

        def forward(self, batch: list[Request]) -> None:
            batch[0]["result"] = CALLER.get()
            CALLER.set("set by the first node")

    class Reads(Backend):
        thread_bound = True

        def forward(self, batch: list[Request]) -> None:
            batch[0]["result"] = batch[0]["data"], CALLER.get()

    with Pipe({"first": {"backend": Sets(), "next": "second"}, "second": {"backend": Reads()}}) as pipe:
        for _ in range(2):
            assert as_caller("ann", lambda: (pipe({"data": 0})["result"], CALLER.get())) == (
                ("ann", "set by the first node"),
                "ann",
            )


def test_two_branches_of_a_request_run_in_its_context_at_the_same_time() -> None:
    """One enters the context itself, the other a copy of it: both are inside until both have seen each other."""
    together = threading.Barrier(2)

    class Meets(Backend):
        thread_bound = True

        def forward(self, batch: list[Request]) -> None:
            together.wait(WAIT_S)
            batch[0]["result"] = CALLER.get()

    class Joins(Backend):
        def forward(self, batch: list[Request]) -> None:
            batch[0]["result"] = batch[0]["data"], batch[0]["right"]

    graph = {
        "root": {"backend": "Identity", "next": "left,right"},
        "left": {"backend": Meets(), "next": "join"},
        "right": {"backend": Meets(), "next": "join"},
        "join": {"backend": Joins(), "map": "left[result:data],right[result:right]"},
    }
    with Pipe(graph) as pipe:
        for _ in range(3):
            assert as_caller("ann", lambda: pipe({"data": 0})["result"]) == ("ann", "ann")


class Doubles(fastpipe.contract.SubGraph):
    """Runs two parts, and answers what both have answered."""

    max_batch = 8

    def split(self, request: Request) -> list[Request]:
        return [{"data": 0}, {"data": 1}]

    def merge(self, request: Request, answers: Any) -> None:
        request["result"] = [answer["result"][1] for answer in answers]


def test_parts_have_their_requests_context() -> None:
    graph = {"whole": {"backend": Doubles(jump="part")}, "part": {"backend": Tells(thread_bound=True)}}
    with Pipe(graph) as pipe:
        assert as_caller("ann", lambda: pipe({"data": 0}, entry="whole")["result"]) == ["ann", "ann"]
        assert as_caller("bob", lambda: pipe.submit({"data": 0}, entry="whole").result(WAIT_S)["result"]) == ["bob"] * 2


@pytest.mark.parametrize("count", [1, 2])
def test_parts_that_a_backend_runs_in_company_have_their_requests_context(count: int) -> None:
    """A sub-graph that is a step: its batch holds several requests, and each part is of one of them."""
    gate = Stands()

    class Passes(Backend):
        max_batch = 8

        def forward(self, batch: list[Request]) -> None:
            if batch[0]["data"] == "first":
                gate.forward(batch)
            for request in batch:
                request["result"] = len(batch)

    class Halves(Doubles):
        def split(self, request: Request) -> list[Request]:
            return [{"data": each} for each in range(count)]

        def merge(self, request: Request, answers: Any) -> None:
            request["result"] = request["data"], [answer["result"][:2] for answer in answers]

    whole = fastpipe.Sequential(Passes(), Halves(jump="part"))
    graph = {"whole": {"backend": whole, "max": 8, "batching": "greedy"}, "part": {"backend": Tells()}}
    with Pipe(graph) as pipe:
        first = in_thread(lambda: pipe({"data": "first"}, entry="whole"))
        assert gate.inside.wait(WAIT_S)
        others = [as_caller(name, lambda: pipe.submit({"data": 0}, entry="whole")) for name in ("ann", "bob")]
        gate.opened.set()
        for name, future in zip(("ann", "bob"), others, strict=True):
            size, parts = future.result(WAIT_S)["result"]
            assert size == 2
            assert [own for _, own in parts] == [name] * count
        first.join(WAIT_S)


def test_a_coroutine_that_stood_in_line_has_its_tasks_context() -> None:
    """Another thread starts its request, once there is room."""
    gate = Stands()

    async def call(pipe: Pipe, name: str, data: Any) -> Any:
        CALLER.set(name)
        return (await pipe.acall({"data": data}))["result"]

    async def main() -> None:
        with Pipe(backend=gate, max_in_flight=1, batching="greedy") as pipe:
            first = asyncio.create_task(call(pipe, "ann", "first"))
            await asyncio.to_thread(gate.inside.wait, WAIT_S)
            waiting = [asyncio.create_task(call(pipe, name, 0)) for name in ("bob", "cay")]
            await asyncio.sleep(0)
            gate.opened.set()
            assert [(await each)[:2] for each in waiting] == [("bob", "bob"), ("cay", "cay")]
            await first

    asyncio.run(main())


class Asked(Backend):
    """Notes who is the caller in each question that the engine asks about a request."""

    max_batch = 4
    keeps_input = True

    def __init__(self, *, found: list[tuple[str, str]], thread_bound: bool = False, place: str | None = None) -> None:
        self.found = found
        self.thread_bound = thread_bound
        self.place = place

    def bucket(self, request: Request) -> str:
        self.found.append(("bucket", CALLER.get()))
        return "all"

    def weigh(self, request: Request) -> int:
        self.found.append(("weigh", CALLER.get()))
        return 1

    def place_of(self, request: Request) -> None:
        self.found.append(("place_of", CALLER.get()))

    def why_no_result(self, request: Request) -> None:
        self.found.append(("why_no_result", CALLER.get()))

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request.pop("result", None)


class AsksParts(fastpipe.contract.SubGraph):
    """Notes the same where a request is split up, and where its parts come together."""

    def __init__(self, *, jump: str, found: list[tuple[str, str]]) -> None:
        super().__init__(jump=jump)
        self.found = found

    def split(self, request: Request) -> list[Request]:
        self.found.append(("split", CALLER.get()))
        return [{"data": 0}, {"data": 1}]

    def merge(self, request: Request, answers: Any) -> None:
        self.found.append(("merge", CALLER.get()))
        request["result"] = len(answers)


WAYS: dict[str, Callable[[Pipe], Any]] = {
    "call": lambda pipe: pipe({"data": 0}, entry="first"),
    "list": lambda pipe: pipe([{"data": each} for each in range(3)], entry="first"),
    "eager": lambda pipe: pipe({"data": 0}, entry="first", eager=True),
    "submit": lambda pipe: pipe.submit({"data": 0}, entry="first").result(WAIT_S),
    "map": lambda pipe: list(pipe.map([{"data": each} for each in range(3)], entry="first")),
    "acall": lambda pipe: asyncio.run(pipe.acall({"data": 0}, entry="first")),
}


@pytest.mark.parametrize("thread_bound", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_asked_about_a_request_is_asked_in_its_context(way: str, thread_bound: bool) -> None:
    """Filters, buckets, weights, places, parts, and why there is no result: on its caller's thread and on workers."""
    found: list[tuple[str, str]] = []
    places = iter(("left", "right"))

    def asks(request: Request) -> fastpipe.Status:
        found.append(("filter", CALLER.get()))
        return fastpipe.Status.Run

    class Placed(Asked):
        def __init__(self) -> None:
            super().__init__(found=found, place=next(places))

    graph = {
        "first": {"backend": Tells(thread_bound=thread_bound), "next": "asked"},
        "asked": {"backend": Asked(found=found), "filter": asks, "next": "placed"},
        "placed": {"backend": Placed, "instance_num": 2, "filter": asks, "next": "whole"},
        "whole": {"backend": AsksParts(jump="part", found=found), "filter": asks},
        "part": {"backend": Tells(thread_bound=thread_bound), "filter": asks},
    }
    with Pipe(graph, without_result="end") as pipe:
        as_caller("ann", lambda: WAYS[way](pipe))
    assert {caller for _, caller in found} == {"ann"}
    asked = {"filter", "weigh", "place_of", "why_no_result", "split", "merge"}
    assert {what for what, _ in found} - {"bucket"} == asked  # that one only of what is queued
    assert not thread_bound or ("bucket", "ann") in found or way == "eager"


def test_what_a_filter_sets_is_seen_by_the_next_question_of_the_same_request_alone() -> None:
    def sets(request: Request) -> fastpipe.Status:
        CALLER.set(CALLER.get() + ", by a filter")
        return fastpipe.Status.Run

    first = {"backend": Tells(thread_bound=True), "next": "second"}
    with Pipe({"first": first, "second": {"backend": Tells(thread_bound=True), "filter": sets}}) as pipe:
        for _ in range(2):
            assert as_caller("ann", lambda: (pipe({"data": 0})["result"][0], CALLER.get())) == (
                "ann, by a filter",
                "ann",
            )


def test_who_makes_room_asks_in_the_context_of_who_waited_for_it() -> None:
    """1. A request stands in the gate. 2. Two coroutines wait for room. 3. A worker lets them in, and asks for them."""
    gate, found = Stands(), []

    def asks(request: Request) -> fastpipe.Status:
        found.append(CALLER.get())
        return fastpipe.Status.Run

    async def call(pipe: Pipe, name: str, data: Any) -> None:
        CALLER.set(name)
        await pipe.acall({"data": data})

    async def main() -> None:
        with Pipe(backend=gate, filter=asks, max_in_flight=1) as pipe:
            first = asyncio.create_task(call(pipe, "ann", "first"))
            await asyncio.to_thread(gate.inside.wait, WAIT_S)
            waiting = [asyncio.create_task(call(pipe, name, 0)) for name in ("bob", "cay")]
            await asyncio.sleep(0)
            gate.opened.set()
            await asyncio.gather(first, *waiting)

    asyncio.run(main())
    assert found == ["ann", "bob", "cay"]


def test_who_sheds_anothers_request_merges_it_in_its_own_context() -> None:
    """1. One stands in the gate, and ann's part queues. 2. bob's pushes it out: her merge runs on his thread."""
    gate, found = Gate(), []

    class Keeps(AsksParts):
        keeps_failures = True

        def merge(self, request: Request, answers: Any) -> None:
            super().merge(request, answers)
            found.append(type(answers[0]).__name__)

    class One(Keeps):
        def split(self, request: Request) -> list[Request]:
            return [{"data": 0}]

    told: list[tuple[str, str]] = []
    graph = {
        "whole": {"backend": One(jump="part", found=told)},
        "part": {"backend": gate, "max": 1, "max_queue": 1, "when_full": "shed_oldest"},
    }
    with Pipe(graph) as pipe:
        first = pipe.submit({"data": "first"}, entry="part")
        assert gate.inside.wait(WAIT_S)
        ann = as_caller("ann", lambda: pipe.submit({"data": 0}, entry="whole"))
        bob = as_caller("bob", lambda: pipe.submit({"data": 1}, entry="part"))
        assert ann.result(WAIT_S)["result"] == 1
        gate.opened.set()
        assert (first.result(WAIT_S)["result"], bob.result(WAIT_S)["result"]) == ("first", 1)
    assert told == [("merge", "ann")]
    assert found == ["QueueFull"]


def test_a_call_from_inside_a_backend_brings_the_requests_variables_along() -> None:
    inner = Pipe(backend=Tells(thread_bound=True))

    class Calls(Backend):
        thread_bound = True

        def forward(self, batch: list[Request]) -> None:
            batch[0]["result"] = inner({"data": 0})["result"][0]

    with inner, Pipe(backend=Calls()) as outer:
        assert as_caller("ann", lambda: outer({"data": 0})["result"]) == "ann"


def test_a_context_does_not_outlive_its_request() -> None:
    class Kept:
        freed = threading.Event()

        def __del__(self) -> None:
            self.freed.set()

    kept: contextvars.ContextVar[Kept] = contextvars.ContextVar("kept")

    with Pipe(backend=Tells(thread_bound=True)) as pipe:

        def call() -> None:
            kept.set(Kept())
            pipe.submit({"data": 0}).result(WAIT_S)

        contextvars.Context().run(call)
        pipe({"data": 1})  # the worker has let go of the first by the time it takes another
        assert Kept.freed.wait(WAIT_S)


def test_a_context_in_which_a_batch_hangs_serves_the_request_all_the_same() -> None:
    """A part hangs in the request's context, which it never leaves; the whole goes on, in a copy."""
    opened = threading.Event()

    class Hangs(Tells):
        def forward(self, batch: list[Request]) -> None:
            if batch[0]["data"] == 0:
                opened.wait(WAIT_S)
            super().forward(batch)

    class Keeps(Doubles):
        keeps_failures = True

        def merge(self, request: Request, answers: Any) -> None:
            request["result"] = [type(answer).__name__ for answer in answers]

    graph = {
        "whole": {"backend": Keeps(jump="part"), "next": "after"},
        "part": {"backend": Hangs, "instance_num": 2, "max": 1, "hang_timeout": 0.2},
        "after": {"backend": Tells(thread_bound=True)},
    }
    with Pipe(graph) as pipe:
        answer = as_caller("ann", lambda: pipe({"data": 0}, entry="whole"))
        opened.set()
    assert answer["result"][:2] == ("ann", "ann")
    assert answer["data"] == 0


def test_context_of_says_where_it_works() -> None:
    with pytest.raises(PipeError, match=r"inside forward\(\), and no backend runs on this thread"):
        fastpipe.context_of({"data": 0})

    class Asks(Backend):
        def forward(self, batch: list[Request]) -> None:
            fastpipe.context_of(dict(batch[0]))

    with Pipe(backend=Asks()) as pipe, pytest.raises(PipeError, match="none of the dicts in that batch"):
        pipe({"data": 0})


def test_switching_greenlets_inside_a_backend_keeps_contexts_apart() -> None:
    greenlet = pytest.importorskip("greenlet", reason="greenlet is not installed here")

    class Switches(Backend):
        thread_bound = True

        def forward(self, batch: list[Request]) -> None:
            def other() -> str:
                found = CALLER.get()
                CALLER.set("another greenlet")
                return found

            batch[0]["result"] = greenlet.greenlet(other).switch(), CALLER.get()

    with Pipe(backend=Switches()) as pipe:
        for name in ("ann", "bob"):
            assert as_caller(name, lambda: pipe({"data": 0})["result"]) == ("nobody", name)
