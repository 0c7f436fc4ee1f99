"""The engine as its callers see it: one outcome per request, on the right thread, in the right dict."""

from __future__ import annotations

import collections
import concurrent.futures
import gc
import itertools
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fastpipe import Backend, BackendError, ItemErrors, Pipe, PipeClosed, PipeError, Request, UnknownNode

WAIT_S = 20.0
"""How long a test waits for what should happen at once, before it is called a failure."""


class Echo(Backend):
    """The result is the data, the same object."""

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = request["data"]


class Bound(Echo):
    thread_bound = True


class Gate(Echo):
    """Stands in ``forward`` until it is opened, and remembers the data of every batch."""

    def __init__(self, *, max_batch: int | None = None, retry_alone: bool = True) -> None:
        self.max_batch = max_batch
        self.retry_alone = retry_alone
        self.inside = threading.Event()
        self.opened = threading.Event()
        self.batches: list[list[Any]] = []

    def forward(self, batch: list[Request]) -> None:
        self.batches.append([request["data"] for request in batch])
        self.inside.set()
        assert self.opened.wait(WAIT_S)
        self.work(batch)

    def work(self, batch: list[Request]) -> None:
        super().forward(batch)


class Raises(Backend):
    """Raises what it is told to."""

    max_batch = 8

    def __init__(self, make: Callable[[], BaseException]) -> None:
        self.make = make

    def forward(self, batch: list[Request]) -> None:
        raise self.make()


def held(gate: Gate, **keys: Any) -> tuple[Pipe, concurrent.futures.Future[Request]]:
    """Return a pipe around ``gate`` and the future of a request that stands in it: whatever comes next is queued."""
    pipe = Pipe(backend=gate, **keys)
    first = pipe.submit({"data": "first"})
    assert gate.inside.wait(WAIT_S)
    return pipe, first


def counts_add_up(pipe: Pipe) -> bool:
    counts = pipe.stats()["requests"]
    ended: int = counts["done"] + counts["failed"] + counts["cancelled"]
    return bool(counts["accepted"] == counts["in_flight"] + ended)


@pytest.fixture
def echo() -> Iterator[Pipe]:
    with Pipe(backend=Echo) as pipe:
        yield pipe


# ---- one request ---------------------------------------------------------------------------------------------------


def test_the_callers_own_dict_is_filled_and_returned(echo: Pipe) -> None:
    """The answer is written into the request, which keeps its extra keys."""
    request = {"data": 1, "tag": "mine"}
    assert echo(request) is request
    assert request == {"data": 1, "tag": "mine", "result": 1}


@pytest.mark.parametrize(
    "data",
    [[1], (1,), {"a": 1}, 1 << 200, None, object(), "text", b"bytes", float("nan")],
    ids=lambda data: str(type(data)),
)
def test_data_is_passed_by_identity(echo: Pipe, data: Any) -> None:
    """Values are never converted or copied: what the backend gets is what the caller gave."""
    assert echo({"data": data})["result"] is data
    assert echo.submit({"data": data}).result(WAIT_S)["result"] is data


def test_keys_need_not_be_text(echo: Pipe) -> None:
    """Keys that are no text travel along."""
    key = (1, 2)
    request: Any = {"data": 1, 5: "five", None: "none", key: "pair"}
    assert echo(request) == {"data": 1, 5: "five", None: "none", key: "pair", "result": 1}


@pytest.mark.parametrize("kind", [collections.OrderedDict, collections.Counter, type("Own", (dict,), {})])
def test_a_subclass_of_dict_keeps_its_books(echo: Pipe, kind: type[dict[str, Any]]) -> None:
    """The answer is written the subclass's own way: an OrderedDict knows the order of its keys afterwards."""
    request = kind({"data": 1})
    for data in (1, 2):
        request["data"] = data
        assert echo(request) is request
        assert list(request) == ["data", "result"]
        assert dict(request.items()) == {"data": data, "result": data}


def test_a_dict_that_refuses_the_answer_fails_its_call_alone(echo: Pipe) -> None:
    """The caller gets what its own dict raised; the pipe goes on."""

    class ReadOnly(dict[str, Any]):
        def update(self, *arguments: Any) -> None:  # type: ignore[override]
            raise RuntimeError("read only")

        def __setitem__(self, key: str, value: Any) -> None:
            raise RuntimeError("read only")

    with pytest.raises(RuntimeError, match="read only"):
        echo(ReadOnly(data=1))
    assert echo({"data": 2})["result"] == 2
    assert counts_add_up(echo)
    assert echo.stats()["requests"]["in_flight"] == 0


def test_a_failure_reaches_the_caller_of_a_dict_that_forbids_changes() -> None:
    """A dict whose removal methods raise cannot keep an outcome from being delivered."""

    class Locked(dict[str, Any]):
        def pop(self, *arguments: Any) -> Any:
            raise RuntimeError("locked")

    with Pipe(backend=Raises(lambda: ValueError("bad"))) as pipe:
        with pytest.raises(ValueError, match="bad"):
            pipe(Locked(data=1))
        assert pipe.stats()["requests"]["failed"] == 1


@pytest.mark.parametrize("request_", [5, "text", None, {1, 2}])
def test_what_is_no_dict_is_refused_with_its_type(echo: Pipe, request_: Any) -> None:
    """The message says what a request is and what was given; nothing is accepted."""
    with pytest.raises(TypeError, match=f"a request is a dict; got {type(request_).__name__}"):
        echo(request_)
    with pytest.raises(TypeError, match="a request is a dict"):
        echo.submit(request_)
    assert echo.stats()["requests"]["accepted"] == 0


def test_a_missing_key_is_reported_with_the_keys_that_are_there(echo: Pipe) -> None:
    """A backend's KeyError keeps its type; notes say node, backend and the keys present."""
    with pytest.raises(KeyError, match="data") as raised:
        echo({"image": 1, 5: 6})  # type: ignore[dict-item]
    notes = "\n".join(raised.value.__notes__)
    assert "node 'main'" in notes
    assert "backend Echo" in notes
    assert "'image'" in notes


def test_keys_that_cannot_be_shown_do_not_hide_the_error(echo: Pipe) -> None:
    """A key whose repr raises: the backend's KeyError still comes out, with its place."""

    class Silent:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    with pytest.raises(KeyError, match="data") as raised:
        echo({Silent(): 1})  # type: ignore[dict-item]
    assert "node 'main'" in raised.value.__notes__[0]


def test_a_backend_that_leaves_no_result_leaves_no_old_one_either() -> None:
    """A result of an earlier call does not look like the answer to this one."""

    class Nothing(Backend):
        def forward(self, batch: list[Request]) -> None:
            pass

    with Pipe(backend=Nothing, without_result="end") as pipe:
        assert pipe({"data": 1, "result": "old"}) == {"data": 1}


def test_a_backend_never_sees_the_result_of_an_earlier_call() -> None:
    """The same dict may be sent again and again."""
    seen: list[bool] = []

    class Looks(Echo):
        def forward(self, batch: list[Request]) -> None:
            seen.extend("result" in request for request in batch)
            super().forward(batch)

    with Pipe(backend=Looks) as pipe:
        request = {"data": 1}
        for _ in range(3):
            pipe(request)
    assert seen == [False] * 3


def test_what_a_backend_does_to_the_list_of_its_batch_changes_nothing() -> None:
    """The list is the backend's: emptied, or filled with other dicts, the requests are still answered."""

    class Empties(Backend):
        max_batch = 4

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = request["data"]
            batch.clear()
            batch.append({"result": "somebody else's"})

    with Pipe(backend=Empties) as pipe:
        assert [request["result"] for request in pipe([{"data": i} for i in range(4)])] == [0, 1, 2, 3]


def test_map_raises_what_its_source_raises_behind_the_answers(echo: Pipe) -> None:
    """Requests taken before the iterable failed, or gave what is no request, are answered first."""

    def source(last: Any) -> Iterator[Any]:
        yield {"data": 1}
        yield {"data": 2}
        if isinstance(last, Exception):
            raise last
        yield last

    for last, expected in ((OSError("disk"), OSError), (5, TypeError), (iter([]), TypeError)):
        answers = echo.map(source(last), look_ahead=8)
        assert [next(answers)["result"], next(answers)["result"]] == [1, 2]
        with pytest.raises(expected):
            next(answers)


def test_node_name_must_be_a_node_if_given(echo: Pipe) -> None:
    """A name nobody has is refused with the names there are; it is a KeyError too."""
    with pytest.raises(UnknownNode, match=r"'mian'.*main.*did you mean 'main'"):
        echo({"data": 1, "node_name": "mian"})
    with pytest.raises(KeyError):
        echo.submit({"data": 1, "node_name": "nobody"})
    assert echo({"data": 1, "node_name": "main"})["result"] == 1


# ---- whose thread, which instance ------------------------------------------------------------------------------------


def test_an_idle_instance_runs_on_the_callers_thread(echo: Pipe) -> None:
    """No hand-over: the backend is called by the thread that called the pipe, and no worker takes the GIL."""
    threads = []

    class Notes(Echo):
        def forward(self, batch: list[Request]) -> None:
            threads.append(threading.get_ident())
            super().forward(batch)

    with Pipe(backend=Notes, max=8) as pipe:
        pipe({"data": 1})
        stats = pipe.stats()["nodes"]["main"]
    assert threads == [threading.get_ident()]
    assert stats["run_by_caller"] == 1
    assert stats["gil_acquires"] == 0


def test_a_busy_instance_leaves_the_request_to_its_worker() -> None:
    """Who finds no instance idle queues, and parks until a worker has run the request."""
    names = []

    class Notes(Gate):
        def work(self, batch: list[Request]) -> None:
            names.append(threading.current_thread().name)
            super().work(batch)

    gate = Notes()
    pipe = Pipe(backend=gate)
    with pipe, concurrent.futures.ThreadPoolExecutor(2, "caller") as callers:
        calls = [callers.submit(pipe, {"data": 1})]
        assert gate.inside.wait(WAIT_S)
        queued = pipe.submit({"data": 2})
        gate.opened.set()
        assert calls[0].result(WAIT_S)["result"] == 1
        assert queued.result(WAIT_S)["result"] == 2
    assert names == ["caller_0", "fastpipe main#0"]


def test_a_thread_bound_backend_lives_on_one_thread() -> None:
    """Construction, every batch and close happen on one thread per instance, which is not the caller's."""
    seen: dict[int, set[int]] = collections.defaultdict(set)
    calls: list[str] = []

    class Owned(Echo):
        thread_bound = True

        def __init__(self) -> None:
            self.note("init")

        def note(self, what: str) -> None:
            calls.append(what)
            seen[id(self)].add(threading.get_ident())

        def forward(self, batch: list[Request]) -> None:
            self.note("forward")
            super().forward(batch)

        def close(self) -> None:
            self.note("close")

    with Pipe(backend=Owned, instance_num=2) as pipe:
        for data in range(20):
            assert pipe({"data": data})["result"] == data
        pipe([{"data": data} for data in range(20)])
        assert pipe.stats()["nodes"]["main"]["run_by_caller"] == 0
    assert len(seen) == 2
    assert all(len(threads) == 1 and threading.get_ident() not in threads for threads in seen.values())
    assert calls.count("init") == calls.count("close") == 2


@pytest.mark.parametrize("thread_bound", [False, True])
def test_an_instance_runs_one_batch_at_a_time(thread_bound: bool) -> None:
    """With 8 callers and 2 instances, no object is ever entered twice at once."""
    bound = thread_bound
    collisions = []

    class Alone(Echo):
        thread_bound = bound

        def __init__(self) -> None:
            self.lock = threading.Lock()

        def forward(self, batch: list[Request]) -> None:
            if not self.lock.acquire(blocking=False):
                collisions.append(batch)
                return
            try:
                super().forward(batch)
            finally:
                self.lock.release()

    with Pipe(backend=Alone, instance_num=2) as pipe:

        def client(number: int) -> None:
            for index in range(200):
                assert pipe({"data": (number, index)})["result"] == (number, index)

        with concurrent.futures.ThreadPoolExecutor(8) as callers:
            list(callers.map(client, range(8)))
    assert not collisions


def test_all_instances_can_run_at_the_same_time() -> None:
    """Three callers meet in a barrier inside three instances."""
    barrier = threading.Barrier(3)

    class Meets(Echo):
        def forward(self, batch: list[Request]) -> None:
            barrier.wait(WAIT_S)
            super().forward(batch)

    with Pipe(backend=Meets, instance_num=3) as pipe, concurrent.futures.ThreadPoolExecutor(3) as callers:
        assert [r["result"] for r in callers.map(pipe, [{"data": i} for i in range(3)])] == [0, 1, 2]


def test_requests_are_served_first_come_first_served() -> None:
    """What queued first runs first."""
    gate = Gate()
    pipe, first = held(gate)
    with pipe:
        futures = [pipe.submit({"data": index}) for index in range(50)]
        gate.opened.set()
        concurrent.futures.wait([first, *futures], WAIT_S)
    assert gate.batches == [["first"], *([index] for index in range(50))]


def test_two_pipes_know_nothing_of_each_other() -> None:
    """Same node names, same backend: each answers for itself, also when the other is closed."""
    with Pipe(backend=Echo) as one:
        with Pipe(backend=Echo) as other:
            assert other({"data": 1})["result"] == 1
        assert one({"data": 2})["result"] == 2
        assert one.stats()["requests"]["done"] == 1


def test_a_backend_may_call_its_own_pipe_if_another_instance_is_free() -> None:
    """Two instances: the first one's backend sends a request that the second serves."""
    pipes: list[Pipe] = []

    class Halves(Backend):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                data = request["data"]
                request["result"] = pipes[0]({"data": data - 1})["result"] + 1 if data % 2 else data

    with Pipe(backend=Halves, instance_num=2) as pipe:
        pipes.append(pipe)
        assert pipe({"data": 7})["result"] == 7
        assert pipe.submit({"data": 7}).result(WAIT_S)["result"] == 7


def test_a_backend_may_call_another_pipe() -> None:
    """Pipes nest, whichever thread runs them."""
    with Pipe(backend=Bound) as inner:

        class Asks(Backend):
            def forward(self, batch: list[Request]) -> None:
                for request in batch:
                    request["result"] = inner({"data": request["data"]})["result"]

        with Pipe(backend=Asks) as outer:
            assert outer({"data": 3})["result"] == 3
            assert outer.submit({"data": 4}).result(WAIT_S)["result"] == 4


# ---- the caller's dict while things go wrong -------------------------------------------------------------------------


class Scribbles(Gate):
    """Writes into the request before it waits; then raises."""

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["scribble"] = True
            request["data"] = "changed"
            del request["gone"]
        super().forward(batch)

    def work(self, batch: list[Request]) -> None:
        raise ValueError("after scribbling")


def test_a_failing_request_leaves_the_callers_dict_as_it_was() -> None:
    """Not while it runs, nor when it fails, does anything change but that an old result is removed."""
    gate = Scribbles()
    request = {"data": 1, "gone": 2, "result": "old"}
    with Pipe(backend=gate) as pipe:
        future = pipe.submit(request)
        assert gate.inside.wait(WAIT_S)
        assert request == {"data": 1, "gone": 2, "result": "old"}
        gate.opened.set()
        assert isinstance(future.exception(WAIT_S), ValueError)
    assert request == {"data": 1, "gone": 2}


def test_a_cancelled_request_leaves_the_callers_dict_untouched() -> None:
    """A queued request that is cancelled is never written to."""
    gate = Gate()
    pipe, first = held(gate)
    with pipe:
        request = {"data": 1, "result": "old"}
        assert pipe.submit(request).cancel()
        gate.opened.set()
        first.result(WAIT_S)
    assert request == {"data": 1, "result": "old"}


def test_one_dict_sent_by_four_threads_at_once_is_answered_four_times() -> None:
    """The same object in flight several times is no danger: each call works on its own copy."""
    request: Request = {"data": 7}
    barrier = threading.Barrier(4)

    class Slowly(Echo):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["private"] = object()
            super().forward(batch)

    with Pipe(backend=Slowly, instance_num=2) as pipe:

        def client(_: int) -> None:
            barrier.wait(WAIT_S)
            for _ in range(300):
                assert pipe(request) is request

        with concurrent.futures.ThreadPoolExecutor(4) as callers:
            list(callers.map(client, range(4)))
        assert pipe.stats()["requests"]["done"] == 1200
    assert request["result"] == 7


# ---- exceptions ------------------------------------------------------------------------------------------------------


def test_an_exception_reaches_the_caller_itself_with_place_and_traceback() -> None:
    """The same object; one note with node, backend, instance and batch size; the traceback leads into forward."""
    raised_ids = []

    def make() -> ValueError:
        error = ValueError("bad image")
        raised_ids.append(id(error))
        return error

    with (
        Pipe(decode={"backend": Raises(make)}) as pipe,
        pytest.raises(ValueError, match="bad image") as raised,
    ):
        pipe({"data": 1})
    assert [id(raised.value)] == raised_ids
    assert raised.value.__notes__ == ["fastpipe: node 'decode', backend Raises, instance 0, batch of 1"]
    assert "forward" in [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]


def test_the_same_exception_raised_again_is_each_callers_own() -> None:
    """A backend that keeps raising one object does not make it grow: each caller gets a copy of it."""
    error = ValueError("always this one")
    lengths = set()
    with Pipe(backend=Raises(lambda: error)) as pipe:
        for _ in range(5):
            with pytest.raises(ValueError, match="always") as raised:
                pipe({"data": 1})
            assert raised.value is not error
            assert raised.value.__notes__ == ["fastpipe: node 'main', backend Raises, instance 0, batch of 1"]
            lengths.add(len(traceback.extract_tb(raised.value.__traceback__)))
    assert len(lengths) == 1
    assert not hasattr(error, "__notes__")
    assert len(traceback.extract_tb(error.__traceback__)) < max(lengths)


def test_the_cause_of_an_exception_is_kept() -> None:
    """``raise ... from ...`` inside a backend reaches the caller complete."""

    class Chains(Backend):
        def forward(self, batch: list[Request]) -> None:
            try:
                batch[0]["nothing"]
            except KeyError as cause:
                raise ValueError("chained") from cause

    with Pipe(backend=Chains) as pipe, pytest.raises(ValueError, match="chained") as raised:
        pipe({"data": 1})
    assert isinstance(raised.value.__cause__, KeyError)


class NoNotes(Exception):
    def add_note(self, note: str) -> None:
        raise RuntimeError("no notes")


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class NoClass(Exception):
    @property
    def __class__(self) -> Any:
        raise RuntimeError("no class")

    @__class__.setter
    def __class__(self, value: Any) -> None: ...


class NoAttributes(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("no attributes")


class BareItemErrors(ItemErrors):
    def __init__(self) -> None:
        pass  # and so has no `errors`


KINDS: list[tuple[Callable[[], BaseException], type[BaseException]]] = [
    (ValueError, ValueError),
    (StopIteration, StopIteration),
    (StopAsyncIteration, StopAsyncIteration),
    (GeneratorExit, GeneratorExit),
    (MemoryError, MemoryError),
    (RecursionError, RecursionError),
    (lambda: SystemExit(3), SystemExit),
    (concurrent.futures.CancelledError, concurrent.futures.CancelledError),
    (lambda: ExceptionGroup("several", [ValueError()]), ExceptionGroup),
    (NoNotes, NoNotes),
    (NoText, NoText),
    (NoClass, NoClass),
    (NoAttributes, NoAttributes),
    (BareItemErrors, AttributeError),
]


@pytest.mark.parametrize("thread_bound", [False, True])
@pytest.mark.parametrize(("make", "expected"), KINDS, ids=lambda value: getattr(value, "__name__", "made"))
def test_whatever_a_backend_raises_is_its_requests_error(
    make: Callable[[], BaseException], expected: type[BaseException], thread_bound: bool
) -> None:
    """Any kind of exception, however odd: the request ends with it, and the worker lives on."""

    class Odd(Raises):
        def __init__(self) -> None:
            super().__init__(make)

    Odd.thread_bound = thread_bound
    with Pipe(backend=Odd) as pipe:
        for _ in range(3):
            with pytest.raises(expected):
                pipe({"data": 1})
        future = pipe.submit({"data": 1})
        concurrent.futures.wait([future], WAIT_S)
        assert type(future._exception) is expected  # exception() itself raises a CancelledError
        assert pipe.stats()["requests"]["failed"] == 4


def test_system_exit_in_a_worker_ends_the_request_and_not_the_worker() -> None:
    """``sys.exit(3)`` in a backend: the caller gets SystemExit(3); the next request is served by the same thread."""

    class Leaves(Bound):
        def forward(self, batch: list[Request]) -> None:
            if batch[0]["data"] == "exit":
                raise SystemExit(3)
            super().forward(batch)

    with Pipe(backend=Leaves) as pipe:
        with pytest.raises(SystemExit) as raised:
            pipe({"data": "exit"})
        assert raised.value.code == 3
        assert pipe({"data": 1})["result"] == 1


# ---- a batch of which some fail ------------------------------------------------------------------------------------


class FailsOn(Gate):
    """Raises for the whole batch if one of its requests is bad, after it has written into all of them."""

    def __init__(self, *bad: Any, error: Callable[[], BaseException] = ValueError, retry_alone: bool = True) -> None:
        super().__init__(max_batch=8, retry_alone=retry_alone)
        self.bad = bad
        self.error = error
        self.seen_keys: list[set[Any]] = []

    def work(self, batch: list[Request]) -> None:
        for request in batch:
            self.seen_keys.append(set(request))
            request["scribble"] = True
            request.pop("extra", None)
        for request in batch:
            if request["data"] in self.bad:
                raise self.error()
            request["result"] = request["data"]


def batch_of(gate: Gate, *data: Any) -> tuple[Pipe, list[concurrent.futures.Future[Request]]]:
    """Run ``data`` as one batch through ``gate`` and return its pipe and the futures, all ended."""
    pipe, first = held(gate, batching="greedy")
    futures = [pipe.submit({"data": item, "extra": 1}) for item in data]
    gate.opened.set()
    concurrent.futures.wait([first, *futures], WAIT_S)
    assert gate.batches[1] == list(data)
    return pipe, futures


@pytest.mark.parametrize("error", [ValueError, SystemExit, GeneratorExit])
def test_one_bad_request_fails_alone(error: type[BaseException]) -> None:
    """A batch that raises is run again one by one: neighbours succeed, and nobody is run a third time."""
    gate = FailsOn(2, error=error)
    pipe, futures = batch_of(gate, 1, 2, 3, 4)
    with pipe:
        assert [type(future.exception()) for future in futures] == [type(None), error, type(None), type(None)]
        assert [future.result()["result"] for future in futures if future.exception() is None] == [1, 3, 4]
    assert gate.batches[1:] == [[1, 2, 3, 4], [1], [2], [3], [4]]
    exception = futures[1].exception()
    assert exception is not None
    assert exception.__notes__ == ["fastpipe: node 'main', backend FailsOn, instance 0, batch of 1"]


def test_a_request_that_is_run_again_is_as_it_was_before() -> None:
    """What the failed batch wrote into its requests is undone; what it removed is back."""
    gate = FailsOn(2)
    pipe, futures = batch_of(gate, 1, 2, 3)
    with pipe:
        assert all(keys == {"data", "extra"} for keys in gate.seen_keys[1:])
        assert futures[0].result()["scribble"] is True


def test_retry_alone_false_fails_the_whole_batch_once() -> None:
    """A backend whose work must not be repeated: every request of the batch fails, each with its own exception."""
    gate = FailsOn(2, retry_alone=False)
    pipe, futures = batch_of(gate, 1, 2, 3)
    with pipe:
        errors = [future.exception() for future in futures]
        assert len({id(error) for error in errors}) == 3
        for error in errors:
            assert type(error) is ValueError
            assert error.__notes__ == ["fastpipe: node 'main', backend FailsOn, instance 0, batch of 3"]
            assert "forward" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert gate.batches == [["first"], [1, 2, 3]]


class Reports(Gate):
    """Raises ItemErrors for a batch of several, having filled in all results."""

    def __init__(self, errors: dict[Any, Any]) -> None:
        super().__init__(max_batch=8)
        self.errors = errors

    def work(self, batch: list[Request]) -> None:
        super().work(batch)
        if len(batch) > 1:
            raise ItemErrors(self.errors)


def test_item_errors_fail_exactly_those_that_are_named() -> None:
    """The others have succeeded, and nothing is run again."""
    gate = Reports({1: ValueError("item 1")})
    pipe, futures = batch_of(gate, "a", "b", "c")
    with pipe:
        assert str(futures[1].exception()) == "item 1"
        assert futures[0].result()["result"] == "a"
        assert futures[2].result()["result"] == "c"
        assert pipe.stats()["nodes"]["main"]["failed"] == 1
    assert len(gate.batches) == 2


@pytest.mark.parametrize("errors", [{3: ValueError()}, {-1: ValueError()}, {0: "text"}, {"0": ValueError()}])
def test_item_errors_that_make_no_sense_fail_the_batch_in_words(errors: dict[Any, Any]) -> None:
    """An index outside of the batch, or a value that is no exception, is never taken for a success."""
    pipe, futures = batch_of(Reports(errors), "a", "b", "c")
    with pipe:
        for future in futures:
            error = future.exception()
            assert isinstance(error, BackendError)
            assert "ItemErrors" in str(error)


# ---- lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 100])
@pytest.mark.parametrize("backend", [Echo, Bound])
def test_a_list_of_requests_is_answered_together(backend: type[Backend], count: int) -> None:
    """The list itself is returned, each dict filled in."""
    with Pipe(backend=backend, max=8) as pipe:
        requests = [{"data": index} for index in range(count)]
        assert pipe(requests) is requests
        assert [request["result"] for request in requests] == list(range(count))
        batch = tuple({"data": index} for index in range(count))
        assert pipe(batch) is batch
        assert pipe.stats()["requests"]["done"] == 2 * count


@pytest.mark.parametrize("max_batch", [1, 8])
def test_failures_of_a_list_come_back_as_one_group(max_batch: int) -> None:
    """One member per failed request, each with a note that has its index; the other requests have results."""

    class Odd(Backend):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                if request["data"] % 2:
                    raise ValueError(f"odd: {request['data']}")
                request["result"] = request["data"]

    requests: list[Request] = [{"data": index, "result": "old"} for index in range(5)]
    with (
        Pipe(backend=Odd, max=max_batch) as pipe,
        pytest.raises(ExceptionGroup, match="2 of 5 requests failed") as raised,
    ):
        pipe(requests)
    assert [str(error) for error in raised.value.exceptions] == ["odd: 1", "odd: 3"]
    for index, error in zip((1, 3), raised.value.exceptions, strict=True):
        assert f"fastpipe: request {index} of a list of 5" in error.__notes__
    assert [request.get("result") for request in requests] == [0, None, 2, None, 4]


def test_a_list_with_something_else_in_it_is_refused_as_a_whole(echo: Pipe) -> None:
    """No request is accepted before all have been looked at."""
    with pytest.raises(TypeError, match="got int"):
        echo([{"data": 1}, 5])  # type: ignore[list-item]
    with pytest.raises(UnknownNode):
        echo([{"data": 1}, {"data": 2, "node_name": "nobody"}])
    assert echo.stats()["requests"]["accepted"] == 0


def test_the_same_dict_twice_in_a_list_is_two_requests(echo: Pipe) -> None:
    """Each occurrence is run."""
    request: Request = {"data": 1}
    echo([request, request])
    assert request["result"] == 1
    assert echo.stats()["requests"]["done"] == 2


def test_a_base_exception_in_a_list_makes_a_base_exception_group() -> None:
    """``except Exception`` does not swallow a SystemExit among the failures."""
    with Pipe(backend=Raises(lambda: SystemExit(1))) as pipe:
        with pytest.raises(BaseExceptionGroup) as raised:
            pipe([{"data": 1}, {"data": 2}])
        assert not isinstance(raised.value, ExceptionGroup)


# ---- futures ---------------------------------------------------------------------------------------------------------


def test_a_future_has_the_request_as_its_result(echo: Pipe) -> None:
    """submit() answers at once; the result is the caller's own dict, filled in."""
    request = {"data": 1}
    assert echo.submit(request).result(WAIT_S) is request
    assert request["result"] == 1


def test_submit_runs_no_backend_on_the_callers_thread() -> None:
    """Also where the instance is idle, the work is the worker's."""
    threads = []

    class Notes(Echo):
        def forward(self, batch: list[Request]) -> None:
            threads.append(threading.get_ident())
            super().forward(batch)

    with Pipe(backend=Notes) as pipe:
        pipe.submit({"data": 1}).result(WAIT_S)
    assert threads != [threading.get_ident()]


def test_cancelling_a_queued_request_keeps_it_from_the_backend() -> None:
    """cancel() says True, wait() sees an ended future, and the backend never sees the request."""
    gate = Gate()
    pipe, first = held(gate)
    with pipe:
        futures = [pipe.submit({"data": index}) for index in range(4)]
        assert futures[1].cancel()
        assert futures[2].cancel()
        assert not first.cancel()
        gate.opened.set()
        ended, pending = concurrent.futures.wait([first, *futures], WAIT_S)
        assert not pending
        assert len(ended) == 5
        assert pipe.stats()["requests"] == {
            "accepted": 5,
            "in_flight": 0,
            "done": 3,
            "failed": 0,
            "cancelled": 2,
            "refused": 0,
        }
    assert gate.batches == [["first"], [0], [3]]


def test_cancelling_one_of_a_batch_leaves_the_others_in_it() -> None:
    """The cancelled one is left out when the batch starts."""
    gate = Gate(max_batch=8)
    pipe, first = held(gate, batching="greedy")
    with pipe:
        futures = [pipe.submit({"data": index}) for index in range(4)]
        assert futures[0].cancel()
        gate.opened.set()
        concurrent.futures.wait([first, *futures], WAIT_S)
    assert gate.batches == [["first"], [1, 2, 3]]


def test_a_callback_may_submit_but_not_wait() -> None:
    """A future's callback runs on the thread that may have to do the work: waiting there is refused in words."""
    errors: list[BaseException] = []
    futures: list[concurrent.futures.Future[Request]] = []
    ended = threading.Event()
    gate = Gate()
    pipe, first = held(gate)
    with pipe:

        def callback(_: concurrent.futures.Future[Request]) -> None:
            try:
                for call in (pipe, lambda request: pipe([request]), lambda request: list(pipe.map([request]))):
                    with pytest.raises(PipeError, match=r"callback.*submit\(\)"):
                        call({"data": "again"})
                futures.append(pipe.submit({"data": "again"}))
            except BaseException as error:
                errors.append(error)
            ended.set()

        first.add_done_callback(callback)
        others = [pipe.submit({"data": index}) for index in range(5)]
        gate.opened.set()
        assert ended.wait(WAIT_S)
        assert not errors
        assert futures[0].result(WAIT_S)["result"] == "again"
        assert not concurrent.futures.wait(others, WAIT_S).not_done


def test_a_callback_may_close_the_pipe() -> None:
    """close() from a callback does not wait for the thread it is on: everything accepted still ends."""
    gate = Gate()
    pipe, first = held(gate)
    first.add_done_callback(lambda future: pipe.close())
    futures = [pipe.submit({"data": index}) for index in range(5)]
    gate.opened.set()
    assert not concurrent.futures.wait([first, *futures], WAIT_S).not_done
    assert [future.result()["result"] for future in futures] == list(range(5))
    pipe.close()
    with pytest.raises(PipeClosed):
        pipe({"data": 1})


def test_a_callback_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """concurrent.futures logs it; the worker goes on."""
    gate = Gate()
    pipe, first = held(gate)
    with pipe:

        def callback(_: concurrent.futures.Future[Request]) -> None:
            raise ValueError("in a callback")

        first.add_done_callback(callback)
        other = pipe.submit({"data": 1})
        gate.opened.set()
        assert other.result(WAIT_S)["result"] == 1
    assert "in a callback" in caplog.text


# ---- map -------------------------------------------------------------------------------------------------------------


def test_map_keeps_the_order() -> None:
    """Answers come in the order of the requests, whichever instance is done first."""

    class Shuffles(Echo):
        def forward(self, batch: list[Request]) -> None:
            if batch[0]["data"] % 2:
                threading.Event().wait(0.0005)  # odd ones take longer; the order must not depend on it
            super().forward(batch)

    with Pipe(backend=Shuffles, instance_num=3) as pipe:
        assert [r["result"] for r in pipe.map({"data": index} for index in range(100))] == list(range(100))


@pytest.mark.parametrize("look_ahead", [1, 2, 7])
def test_map_takes_no_more_than_look_ahead(look_ahead: int) -> None:
    """An endless source is consumed only so far ahead of what was yielded."""
    taken = itertools.count()
    newest = -1

    def source() -> Iterator[Request]:
        nonlocal newest
        for index in taken:
            newest = index
            yield {"data": index}

    with Pipe(backend=Echo, instance_num=2) as pipe:
        answers = pipe.map(source(), look_ahead=look_ahead)
        for index in range(20):
            assert next(answers)["result"] == index
            assert newest <= index + look_ahead - 1
        answers.close()  # type: ignore[attr-defined]


def test_map_looks_ahead_by_itself_as_far_as_helps() -> None:
    """Without look_ahead, all instances can be busy at once."""
    barrier = threading.Barrier(4)

    class Meets(Echo):
        def forward(self, batch: list[Request]) -> None:
            barrier.wait(WAIT_S)
            super().forward(batch)

    with Pipe(backend=Meets, instance_num=4) as pipe:
        assert len(list(pipe.map({"data": index} for index in range(8)))) == 8


def test_map_wants_a_positive_look_ahead(echo: Pipe) -> None:
    """It is said at once, not at the first answer."""
    with pytest.raises(ValueError, match="look_ahead must be at least 1, got 0"):
        echo.map([], look_ahead=0)


def test_map_can_return_exceptions_in_their_place() -> None:
    """A failed request's exception is yielded where its answer would be."""
    gate = FailsOn(2)
    gate.opened.set()
    with Pipe(backend=gate) as pipe:
        answers = list(pipe.map([{"data": index} for index in range(4)], return_exceptions=True))
    assert [type(answer) for answer in answers] == [dict, dict, ValueError, dict]


def test_map_raises_in_place_and_cancels_what_it_took_ahead() -> None:
    """The exception ends the iteration; requests that were queued for later answers never run."""
    gate = FailsOn(0)
    gate.max_batch = 1
    pipe = Pipe(backend=gate)
    with pipe:
        gate.opened.set()
        answers = pipe.map(({"data": index} for index in itertools.count()), look_ahead=50)
        with pytest.raises(ValueError):  # noqa: PT011
            next(answers)
        with pytest.raises(StopIteration):
            next(answers)
        counts = pipe.stats()["requests"]
        assert counts["failed"] == 1
        assert counts["accepted"] == 50
    assert counts_add_up(pipe)


def test_abandoning_map_cancels_what_it_took_ahead() -> None:
    """Closing the iterator gives up the requests nobody will ask for."""
    gate = Gate()
    pipe, first = held(gate)
    with pipe:
        answers = pipe.map([{"data": index} for index in range(10)], look_ahead=5)
        starter = threading.Thread(target=next, args=(answers,))
        starter.start()
        while pipe.stats()["nodes"]["main"]["queued"] < 5:
            threading.Event().wait(0.001)
        gate.opened.set()
        starter.join(WAIT_S)
        gate.opened.clear()
        answers.close()  # type: ignore[attr-defined]
        gate.opened.set()
        first.result(WAIT_S)
    assert counts_add_up(pipe)
    assert pipe.stats()["requests"]["in_flight"] == 0


@pytest.mark.parametrize("return_exceptions", [False, True])
@pytest.mark.parametrize("bad", ["raises", "no dict", "unknown node"])
def test_an_error_of_the_source_comes_in_its_place(echo: Pipe, bad: str, return_exceptions: bool) -> None:
    """Behind what was taken before it: it ends the iteration, or is yielded as any failure of a request is."""
    is_yielded = return_exceptions and bad != "raises"

    def source() -> Iterator[Any]:
        yield {"data": 0}
        yield {"data": 1}
        if bad == "raises":
            raise KeyError("source")
        yield 5 if bad == "no dict" else {"data": 2, "node_name": "nobody"}
        if not return_exceptions:
            raise AssertionError("nothing is taken behind the error")
        yield {"data": 3}

    answers = iter(echo.map(source(), look_ahead=10, return_exceptions=return_exceptions))
    assert [next(answers)["result"] for _ in range(2)] == [0, 1]  # type: ignore[index]
    if is_yielded:
        error = next(answers)
        assert isinstance(error, TypeError if bad == "no dict" else UnknownNode)
        assert error.failed_request == (5 if bad == "no dict" else {"data": 2, "node_name": "nobody"})  # type: ignore[union-attr]
        assert next(answers)["result"] == 3  # type: ignore[index]
    else:
        with pytest.raises((KeyError, TypeError, UnknownNode)):
            next(answers)
    with pytest.raises(StopIteration):
        next(answers)
    assert echo.stats()["requests"]["in_flight"] == 0
    assert counts_add_up(echo)


# ---- counting --------------------------------------------------------------------------------------------------------


def test_the_counters_add_up_whatever_happens() -> None:
    """accepted == in_flight + done + failed + cancelled, with all four at work; refused ones were never accepted."""
    gate = FailsOn("bad")
    pipe, first = held(gate)
    futures = [pipe.submit({"data": data}) for data in (1, "bad", 2, "bad", 3)]
    futures[4].cancel()
    assert counts_add_up(pipe)
    assert (pipe.stats()["requests"]["in_flight"], pipe.stats()["requests"]["cancelled"]) == (5, 1)
    gate.opened.set()
    concurrent.futures.wait([first, *futures], WAIT_S)
    pipe.close()
    with pytest.raises(PipeClosed):
        pipe({"data": 1})
    assert pipe.stats()["requests"] == {
        "accepted": 6,
        "in_flight": 0,
        "done": 3,
        "failed": 2,
        "cancelled": 1,
        "refused": 1,
    }


def test_a_worker_takes_the_gil_once_per_batch_at_most() -> None:
    """200 queued requests of a thread-bound node with max 8: no more GIL acquires than batches."""

    class Eight(Bound):
        max_batch = 8

    with Pipe(backend=Eight) as pipe:
        for _ in range(5):
            pipe([{"data": index} for index in range(200)])
        stats = pipe.stats()["nodes"]["main"]
    assert stats["requests"] == 1000
    assert stats["gil_acquires"] <= stats["batches"]
    assert stats["mean_batch"] > 4


def test_stats_tell_what_ran_and_why() -> None:
    """Each node has its batches, requests, failures, and the reasons for which batches left."""
    gate = FailsOn("bad")
    pipe, _ = batch_of(gate, 1, "bad", 2)
    with pipe:
        stats = pipe.stats()["nodes"]["main"]
        assert stats["batches"] == 5
        assert stats["requests"] == 1 + 3 + 3
        assert stats["failed"] == 1
        assert stats["queued"] == stats["running"] == 0
        assert sum(stats["why_batches_left"].values()) == 2
        assert stats["busy_s"] > 0


# ---- memory ----------------------------------------------------------------------------------------------------------


class Value:
    """Something a weak reference can point at."""


USES: dict[str, Callable[[Pipe, Request], Any]] = {
    "call": lambda pipe, request: pipe(request),
    "list": lambda pipe, request: pipe([request, dict(request)]),
    "submit": lambda pipe, request: pipe.submit(request).result(WAIT_S),
    "map": lambda pipe, request: list(pipe.map([request, dict(request)])),
    "map, exceptions returned": lambda pipe, request: list(pipe.map([request, dict(request)], return_exceptions=True)),
    "map, source raises": lambda pipe, request: list(pipe.map([request, 5])),  # type: ignore[list-item]
    "map, abandoned": lambda pipe, request: next(pipe.map([dict(request) for _ in range(9)])),
}


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
@pytest.mark.parametrize("use", USES)
def test_nothing_is_kept_once_a_request_has_ended(use: str, fails: bool) -> None:
    """Without the cyclic garbage collector, data, results and the pipe itself go as soon as nobody holds them."""

    class Maybe(Echo):
        def forward(self, batch: list[Request]) -> None:
            if fails:
                raise ValueError("bad")
            super().forward(batch)

    def use_once(pipe: Pipe) -> weakref.ref[Value]:
        value = Value()
        try:
            USES[use](pipe, {"data": value})
        except (ValueError, ExceptionGroup, TypeError):
            assert fails or use == "map, source raises"
        return weakref.ref(value)

    gc.collect()
    gc.disable()
    try:
        pipe = Pipe(backend=Maybe)
        references = [use_once(pipe) for _ in range(3)]
        pipe.close()
        whole = weakref.ref(pipe)
        del pipe
        assert [reference() for reference in references] == [None] * 3
        assert whole() is None
    finally:
        gc.enable()


def test_collecting_garbage_in_the_middle_is_harmless() -> None:
    """A backend that collects garbage, under load, disturbs nobody."""

    class Collects(Echo):
        def forward(self, batch: list[Request]) -> None:
            cycle: list[Any] = []
            cycle.append(cycle)
            del cycle
            gc.collect()
            super().forward(batch)

    with Pipe(backend=Collects, max=4, instance_num=2) as pipe, concurrent.futures.ThreadPoolExecutor(4) as callers:
        futures = [callers.submit(pipe, {"data": index}) for index in range(40)]
        assert [future.result(WAIT_S)["result"] for future in futures] == list(range(40))


def test_values_that_run_python_when_they_are_dropped_do_no_harm() -> None:
    """A result whose destructor calls the pipe is replaced by the next answer: no deadlock, no lost outcome."""
    dropped = []

    with Pipe(backend=Echo, instance_num=2) as pipe:

        class Calls:
            def __del__(self) -> None:
                dropped.append(pipe({"data": 1})["result"])

        request: Request = {"data": 1, "result": Calls()}
        for _ in range(3):
            pipe(request)
            request["result"] = Calls()
        request.clear()
    assert dropped == [1] * 4


def test_a_destructor_that_waits_does_not_hold_up_closing() -> None:
    """Dropping an old value may run Python that waits; close(timeout) ends all the same, and so does the request."""
    inside = threading.Event()
    leave = threading.Event()

    class Waits:
        def __del__(self) -> None:
            inside.set()
            leave.wait(WAIT_S)

    class Replaces(Echo):
        def forward(self, batch: list[Request]) -> None:
            super().forward(batch)
            batch[0]["old"] = None

    pipe = Pipe(backend=Replaces)
    request = {"data": 1, "old": Waits()}
    caller = threading.Thread(target=pipe, args=(request,))
    caller.start()
    assert inside.wait(WAIT_S)
    pipe.close(timeout=0.0)
    leave.set()
    caller.join(WAIT_S)
    assert not caller.is_alive()
    assert request["result"] == 1


# ---- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [Echo, Bound])
def test_a_list_may_be_long(backend: type[Backend]) -> None:
    """20,000 requests in one call."""
    requests = [{"data": index} for index in range(20_000)]
    with Pipe(backend=backend, max=32) as pipe:
        pipe(requests)
    assert all(request["result"] == request["data"] for request in requests)


def test_pipes_are_built_and_closed_from_many_threads() -> None:
    """Each thread builds, uses and closes its own, with and without waiting."""

    def build_and_close(number: int) -> None:
        for index in range(10):
            pipe = Pipe(backend=(Echo, Bound)[index % 2], instance_num=1 + index % 3, max=1 + number % 4)
            assert pipe({"data": index})["result"] == index
            futures = [pipe.submit({"data": each}) for each in range(5)]
            pipe.close(timeout=None if index % 3 else 0.0)
            assert all(future.done() for future in futures)

    with concurrent.futures.ThreadPoolExecutor(6) as builders:
        list(builders.map(build_and_close, range(6)))
