"""One request, one node at a time, on the calling thread: ``eager=True`` and what the debugger stands on."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from fastpipe import Backend, CallLoop, Pipe, PipeClosed, PipeError, Request, RequestTimeout, Status

WAIT_S = 20.0


class Where(Backend):
    """Notes the thread it runs on; the result is the data plus one."""

    def __init__(self, *, node_name: str) -> None:
        self.name = node_name

    def forward(self, batch: list[Request]) -> None:
        assert len(batch) == 1
        for request in batch:
            request["result"] = request["data"] + 1
            request["threads"] = (*request.get("threads", ()), threading.get_ident())


class Bound(Where):
    """Must stay on its own thread."""

    thread_bound = True


class Fails(Backend):
    """Fails what is negative."""

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            if request["data"] < 0:
                raise ValueError(f"negative: {request['data']}")
            request["result"] = request["data"]


def node(backend: Any = Where, **keys: Any) -> dict[str, Any]:
    return {"backend": backend, **keys}


class Notes:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def decided(self, name: str, part: tuple[int, ...], status: Status, request: Request) -> None:
        self.said.append(("decided", name, part, status.name))

    def hidden(self, names: tuple[str, ...], part: tuple[int, ...]) -> None:
        self.said.append(("hidden", names, part))

    def ran(
        self, name: str, part: tuple[int, ...], request: Request, error: BaseException | None, seconds: float
    ) -> None:
        assert seconds >= 0
        self.said.append(("ran", name, part, request.get("result"), type(error).__name__))

    def restarted(self, name: str, part: tuple[int, ...], count: int) -> None:
        self.said.append(("restarted", name, part, count))


# ---- eager -----------------------------------------------------------------------------------------------------------


def test_everything_runs_on_the_calling_thread() -> None:
    """Nodes that would batch, branches and parts as well, alone in their batches."""
    nodes = {
        "a": node(max=8, next="b,c"),
        "b": node(max=4, next="d"),
        "c": node(next="d"),
        "d": node("Identity", map="b[result:data,threads:b],c[threads:c]"),
    }
    with Pipe(nodes) as pipe:
        answer = pipe({"data": 1}, eager=True)
        assert answer["result"] == 3
        assert {*answer["b"], *answer["c"]} == {threading.get_ident()}
        assert pipe.stats()["nodes"]["a"]["gil_acquires"] == 0


def test_a_thread_bound_backend_keeps_its_thread() -> None:
    """And the rest stays here."""
    with Pipe(a=node(next="b"), b=node(Bound, next="c"), c=node()) as pipe:
        first, second, third = pipe({"data": 1}, eager=True)["threads"]
        assert first == third == threading.get_ident()
        assert second != first


@pytest.mark.parametrize("form", ["node", "step"])
def test_parts_run_here_too(form: str) -> None:
    """Of a MapReduce as a node, and as a step of a Sequential."""
    backend = "MapReduce" if form == "node" else "S[Identity,MapReduce]"
    with Pipe(all=node(backend, jump="part", merge="result,threads"), part=node(max=8)) as pipe:
        answer = pipe({"data": [1, 2, 3]}, eager=True)
        assert answer["result"] == [2, 3, 4]
        assert {thread for threads in answer["threads"] for thread in threads} == {threading.get_ident()}


def test_a_thread_bound_part_that_fails() -> None:
    """What its thread says becomes of the request is acted upon here."""

    class FailsBound(Fails):
        thread_bound = True

    nodes = {"all": node("MapReduce", jump="part", on_error="none", next="last"), "part": node(FailsBound)}
    with Pipe(nodes | {"last": node("Identity")}) as pipe:
        assert pipe({"data": [1, -1, 3]}, eager=True)["result"] == [1, None, 3]
        assert pipe.stats()["requests"]["in_flight"] == 0


def test_failures_are_those_of_a_call() -> None:
    """Types, notes and the untouched request; of a list, one group."""
    with Pipe(a=node("Identity", next="b"), b=node(Fails, max=8)) as pipe:
        request = {"data": -1}
        with pytest.raises(ValueError, match="negative: -1") as raised:
            pipe(request, eager=True)
        assert any("node 'b', backend Fails, instance 0, batch of 1" in note for note in raised.value.__notes__)
        assert request == {"data": -1}
        requests = [{"data": 1}, {"data": -2}, {"data": 3}]
        with pytest.raises(ExceptionGroup, match="1 of 3 requests failed") as group:
            pipe(requests, eager=True)
        assert "request 1 of a list of 3" in str(group.value.exceptions[0].__notes__)
        assert [request.get("result") for request in requests] == [1, None, 3]
        with pytest.raises(TypeError, match="a request is a dict; got int"):
            pipe(5, eager=True)  # type: ignore[call-overload]
        assert pipe.stats()["requests"] == {
            "accepted": 4,
            "in_flight": 0,
            "done": 2,
            "failed": 2,
            "cancelled": 0,
            "refused": 0,
        }


def test_it_waits_for_an_instance_that_others_use() -> None:
    """At most one batch runs in an instance, whoever runs it."""
    started, opened = threading.Event(), threading.Event()

    class Held(Backend):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                if request["data"] == "held":
                    started.set()
                    assert opened.wait(WAIT_S)
                request["result"] = request["data"]

    with Pipe(backend=Held) as pipe:
        future = pipe.submit({"data": "held"})
        assert started.wait(WAIT_S)
        threading.Timer(0.05, opened.set).start()
        assert pipe({"data": "eager"}, eager=True)["result"] == "eager"
        assert opened.is_set()
        assert future.result(WAIT_S)["result"] == "held"


def test_a_call_from_a_callback_is_refused_as_ever() -> None:
    """It would wait on a worker's thread."""
    caught: list[BaseException] = []

    def callback(future: Any) -> None:
        try:
            pipe({"data": 1}, eager=True)
        except PipeError as error:
            caught.append(error)

    gate = threading.Event()

    class Held(Backend):
        def forward(self, batch: list[Request]) -> None:
            gate.wait(WAIT_S)
            batch[0]["result"] = None

    with Pipe(backend=Held) as pipe:
        future = pipe.submit({"data": 1})
        future.add_done_callback(callback)
        gate.set()
        future.result(WAIT_S)
    assert len(caught) == 1


def test_a_closed_pipe_refuses_it() -> None:
    """Like any call."""
    pipe = Pipe(backend="Identity")
    pipe.close()
    with pytest.raises(PipeClosed):
        pipe({"data": 1}, eager=True)


@pytest.mark.parametrize("is_bound", [False, True])
def test_what_a_queue_would_refuse_fails_here_too(is_bound: bool) -> None:
    """A request that is too heavy, or whose weight cannot be told."""

    class Heavy(Backend):
        max_batch = 4
        thread_bound = is_bound

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = request["data"]

    with Pipe(backend=Heavy, obey_request_keys="request_size") as pipe:
        with pytest.raises(ValueError, match="the request weighs 100"):
            pipe({"data": 1, "request_size": 100}, eager=True)
        with pytest.raises(TypeError):
            pipe({"data": 1, "request_size": "x"}, eager=True)
        assert pipe({"data": 1}, eager=True)["result"] == 1
        assert pipe.stats()["requests"]["failed"] == 2


def test_a_pipe_that_gives_up_ends_the_wait_for_an_instance() -> None:
    """Its instance is retired before it is free: whoever waits for it is released."""
    opened, inside = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    class Held(Backend):
        def forward(self, batch: list[Request]) -> None:
            inside.set()
            opened.wait(WAIT_S)

    def call() -> None:
        try:
            pipe({"data": 2}, eager=True)
        except PipeClosed as error:
            errors.append(error)

    pipe = Pipe(backend=Held)
    pipe.submit({"data": 1})
    assert inside.wait(WAIT_S)
    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    while pipe.stats()["requests"]["accepted"] < 3:
        time.sleep(0.001)
    pipe.close(timeout=0.02)
    closer = threading.Thread(target=pipe.close)
    closer.start()
    opened.set()
    for thread in (*threads, closer):
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert len(errors) == 2


# ---- steps -----------------------------------------------------------------------------------------------------------


def test_a_step_is_one_node() -> None:
    """What is next is seen before its filter is asked, and may be changed."""
    notes = Notes()
    with Pipe(a=node(next="b"), b=node(filter="Skip", next="c"), c=node()) as pipe:
        request = {"data": 1}
        stepper = pipe._stepper(request, notes)
        assert stepper.next == ("a", (), {"data": 1})
        assert stepper.step()
        name, part, live = stepper.next
        assert (name, part, live["result"]) == ("b", (), 2)
        live["result"] = 10
        assert stepper.step()
        assert stepper.step()
        assert not stepper.step()
        assert stepper.next is None
        assert stepper.finished
        assert stepper.error is None
        assert request["result"] == 11
    assert notes.said == [
        ("decided", "a", (), "Run"),
        ("ran", "a", (), 2, "NoneType"),
        ("decided", "b", (), "Skip"),
        ("decided", "c", (), "Run"),
        ("ran", "c", (), 11, "NoneType"),
    ]


def test_changing_what_arrives_does_not_change_the_callers_dict() -> None:
    """Neither before the first node, nor with the answer."""
    with Pipe(backend="Identity") as pipe:
        request = {"data": 1, "result": "old"}
        stepper = pipe._stepper(request)
        stepper.next[2]["data"] = 5
        assert request == {"data": 1, "result": "old"}
        stepper.run()
        assert request == {"data": 1, "result": 5}


def test_the_observer_is_told_of_parts_rounds_and_hidden_nodes() -> None:
    """Parts by their indices, outermost first."""
    notes = Notes()
    nodes = {
        "all": node("MapReduce", jump="inner"),
        "inner": node("MapReduce", jump="part"),
        "part": node("Identity", next="skipped"),
        "skipped": node(filter="SubGraphSkip", next="behind"),
        "behind": node(),
    }
    with Pipe(nodes) as pipe:
        stepper = pipe._stepper({"data": [[1], [2, 3]], "node_name": "all"}, notes)
        stepper.run()
        assert stepper.request["result"] == [[1], [2, 3]]
    assert [said[2] for said in notes.said if said[:2] == ("decided", "part")] == [(0, 0), (1, 0), (1, 1)]
    assert ("hidden", ("skipped", "behind"), (1, 1)) in notes.said
    notes = Notes()
    with Pipe(a=node(filter=lambda r: Status.Break if "result" in r else Status.Run, restart="a")) as pipe:
        pipe._stepper({"data": 1}, notes).run()
    assert ("restarted", "a", (), 1) in notes.said


def test_waiting_has_all_branches() -> None:
    """The first is next; a map is made when it is looked at."""
    nodes = {"a": node("Identity", next="b,c"), "b": node(next="d"), "c": node(next="d")}
    with Pipe(nodes | {"d": node("Identity", map="b[result:data],c[result:x]")}) as pipe:
        stepper = pipe._stepper({"data": 1})
        stepper.step()
        assert [name for name, _, _ in stepper.waiting] == ["b", "c"]
        stepper.step()
        stepper.step()
        assert stepper.next == ("d", (), {"data": 2, "x": 2})
        assert stepper.next == ("d", (), {"data": 2, "x": 2})
        stepper.run()
        assert stepper.request["result"] == 2


def test_a_map_that_cannot_be_made_fails_at_its_node() -> None:
    """Looking at it changes nothing."""
    with Pipe(a=node("Identity", next="b"), b=node("Identity", map="a[nothing:data]")) as pipe:
        stepper = pipe._stepper({"data": 1})
        stepper.step()
        assert stepper.next == ("b", (), {})
        stepper.step()
        assert "reads 'nothing' from 'a', whose keys are ['data', 'result']" in str(stepper.error)


def test_what_is_dropped_is_cancelled() -> None:
    """Nothing stays in flight, and closing does not wait for it."""
    with Pipe(a=node(next="b"), b=node()) as pipe:
        stepper = pipe._stepper({"data": 1})
        stepper.step()
        assert pipe.stats()["requests"]["in_flight"] == 1
        del stepper
        assert pipe.stats()["requests"]["cancelled"] == 1
        other = pipe._stepper({"data": 1})
        assert other.cancel()
        assert not other.cancel()
        assert not other.step()
        assert pipe.stats()["requests"]["in_flight"] == 0


def test_an_observer_that_raises_ends_the_request() -> None:
    """Its exception is not lost."""

    class Breaks(Notes):
        def ran(self, *told: Any) -> None:
            raise ZeroDivisionError("observer")

    with Pipe(backend="Identity") as pipe:
        stepper = pipe._stepper({"data": 1}, Breaks())
        with pytest.raises(ZeroDivisionError):
            stepper.step()
        assert pipe.stats()["requests"]["in_flight"] == 0


def test_a_pipe_that_gives_up_ends_the_steps() -> None:
    """close(timeout) fails the request between two of them."""
    pipe = Pipe(a=node(next="b"), b=node())
    stepper = pipe._stepper({"data": 1})
    stepper.step()
    pipe.close(timeout=0)
    assert not stepper.step()
    assert isinstance(stepper.error, PipeClosed)


# ---- what the queue would do -----------------------------------------------------------------------------------------


def test_a_preview_tells_what_the_queue_would_do() -> None:
    """Alone it would leave at once; behind others of its bucket it would join them, or wait for the instance."""
    started, opened = threading.Event(), threading.Event()

    class Held(Backend):
        max_batch = 4

        def bucket(self, request: Request) -> Any:
            return request["data"]

        def weigh(self, request: Request) -> float:
            return 2.0

        def forward(self, batch: list[Request]) -> None:
            started.set()
            opened.wait(WAIT_S)
            for request in batch:
                request["result"] = None

    with Pipe(held=node(Held), jump=node("Jump", jump="part"), part=node("Identity")) as pipe:
        alone = pipe._preview("held", {"data": "x"})
        assert alone == {
            "max_batch": 4,
            "instances": 1,
            "idle": 1,
            "queued": 0,
            "queued_in_bucket": 0,
            "weight": 2.0,
            "bucket": "x",
            "decision": "dispatch",
            "reason": "alone",
        }
        pipe.submit({"data": "y", "node_name": "held"})
        assert started.wait(WAIT_S)
        futures = [pipe.submit({"data": data, "node_name": "held"}) for data in ("x", "y", "x")]
        behind = pipe._preview("held", {"data": "x"})
        assert (behind["idle"], behind["queued"], behind["queued_in_bucket"]) == (0, 3, 2)
        assert behind["decision"] == "wait for instance"
        assert pipe._preview("jump", {"data": 1}) == {}
        opened.set()
        for future in futures:
            future.result(WAIT_S)
        assert pipe.stats()["requests"]["accepted"] == 4


def test_a_preview_weighs_no_other_bucket() -> None:
    """What waits with another bucket is not what fills the batch that the request would be in."""

    class ByData(Where):
        def bucket(self, request: Request) -> Any:
            return request["data"]

        def weigh(self, request: Request) -> float:
            return 3.0 if request["data"] == "heavy" else 1.0

    waiting = node(ByData, max=4, batching="preferred", preferred_batch_sizes=[4], batching_timeout=60_000)
    with Pipe(main=waiting) as pipe:
        heavy = pipe.submit({"data": "heavy"})
        assert pipe._preview("main", {"data": "heavy"})["reason"] == "full"
        light = pipe._preview("main", {"data": "light"})
        assert (light["queued"], light["queued_in_bucket"], light["decision"]) == (1, 0, "wait until")
        heavy.cancel()


# ---- recording -------------------------------------------------------------------------------------------------------


def test_a_recorder_is_told_of_beginnings_and_ends() -> None:
    """By whatever way a request comes; not of parts, and not of what it did not want."""

    class Recorder:
        def __init__(self) -> None:
            self.ends: list[tuple[Any, Any, Any]] = []

        def begin(self, request: Request, entry: str | None) -> Any:
            return None if request["data"] == "no" else dict(request)

        def end(self, token: Any, request: Request, error: BaseException | None) -> None:
            self.ends.append((token["data"], request.get("result"), type(error)))

    with Pipe(a=node("MapReduce", jump="b"), b=node(Fails)) as pipe:
        pipe.recorder = recorder = Recorder()
        pipe({"data": [1, 2]})
        pipe({"data": [3]}, eager=True)
        for start in (pipe, lambda request: pipe.submit(request).result(WAIT_S)):
            with pytest.raises(ValueError, match="negative"):
                start({"data": [-1]})
        with pytest.raises(TypeError):
            pipe({"data": "no"})
        pipe.recorder = None
        pipe({"data": [4]})
    assert recorder.ends == [
        ([1, 2], [1, 2], type(None)),
        ([3], [3], type(None)),
        ([-1], None, ValueError),
        ([-1], None, ValueError),
    ]


def test_a_recorder_that_fails_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported, and the request goes on."""
    reported: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda report: reported.append(report.exc_type))

    class Recorder:
        def begin(self, request: Request, entry: str | None) -> Any:
            if request["data"] == 1:
                raise ZeroDivisionError
            return "token"

        def end(self, token: Any, request: Request, error: BaseException | None) -> None:
            raise OSError

    with Pipe(backend="Identity") as pipe:
        pipe.recorder = Recorder()
        assert pipe({"data": 1})["result"] == 1
        assert pipe({"data": 2})["result"] == 2
        pipe.recorder = None
    assert reported == [ZeroDivisionError, OSError]


def test_an_eager_call_from_inside_the_only_instance_it_needs_is_told_so() -> None:
    """It would wait for its own caller to end, for ever."""

    class Calls(Backend):
        def forward(self, batch: list[Request]) -> None:
            batch[0]["result"] = batch[0]["data"] and pipe({"data": 0}, eager=True)["result"]

    with Pipe(backend=Calls) as pipe:
        assert pipe({"data": 0})["result"] == 0
        with pytest.raises(CallLoop, match="a backend waits for a call of its own pipe"):
            pipe({"data": 1})
        assert pipe({"data": 0})["result"] == 0


def test_a_part_whose_time_is_over_ends_the_whole_with_that() -> None:
    """Not with what its node, which has not run, did not leave."""

    def slow(request: Request) -> Status:
        time.sleep(0.1)
        return Status.Run

    nodes = {"each": node("MapReduce", jump="part"), "part": node(Fails, filter=slow)}
    with Pipe(nodes) as pipe:
        with pytest.raises(RequestTimeout):
            pipe({"data": [1]}, timeout=0.05, eager=True)
        assert pipe.stats()["failures"] == {"timeout": 1}
