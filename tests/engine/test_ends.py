"""Between the end of a request and its owner's knowing of it: signals, exceptions from other threads, copies."""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import fastpipe
from fastpipe import Backend, BackendError, ItemErrors, Pipe, Request, Status
from fastpipe.faults import own_copy

WAIT_S = 20.0


class Echo(Backend):
    """Gives the data back; an exception that is data is raised."""

    max_batch = 4

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            if isinstance(request["data"], BaseException):
                raise request["data"]
            request["result"] = request["data"]


class Held(Echo):
    """Begins when it is let."""

    opened = threading.Event()

    def __init__(self) -> None:
        self.opened = threading.Event()

    def forward(self, batch: list[Request]) -> None:
        assert self.opened.wait(WAIT_S)
        super().forward(batch)


class Stop(BaseException):
    """Raised into the middle of something."""


def once(error: BaseException, when: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does as ``real``, but the first time raises ``before`` or ``after`` it has."""
    left = [error]

    def call(*arguments: Any, **keywords: Any) -> Any:
        if when == "before" and left:
            raise left.pop()
        returned = real(*arguments, **keywords)
        if left:
            raise left.pop()
        return returned

    return call


# ---- exceptions in the middle ----------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What threads, and destructors, tell of the exceptions that end them."""
    seen: list[BaseException] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.append(arguments.exc_value))
    monkeypatch.setattr(sys, "unraisablehook", lambda arguments: seen.append(arguments.exc_value))
    return seen


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "error", [Stop("stop"), KeyboardInterrupt(), MemoryError()], ids=lambda each: type(each).__name__
)
def test_a_future_ends_though_telling_its_waiters_is_ended_in_the_middle(
    told: list[BaseException], when: str, error: BaseException
) -> None:
    """``notify_all`` raises once, before or after its work: the future is done, whoever waits knows."""
    backend = Held()
    with Pipe(backend=backend) as pipe:
        future = pipe.submit({"data": 1})
        condition = future._condition  # type: ignore[attr-defined]
        condition.notify_all = once(error, when, condition.notify_all)
        backend.opened.set()
        assert future.result(WAIT_S)["result"] == 1
        assert pipe({"data": 2})["result"] == 2
    assert [type(each) for each in told] == ([] if isinstance(error, MemoryError) else [type(error)])


@pytest.mark.parametrize("when", ["before", "after"])
def test_wait_and_as_completed_are_told_though_that_is_ended_in_the_middle(
    told: list[BaseException], when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The waiters of concurrent.futures hear of an end once, not never and not twice."""
    backend = Held()
    with Pipe(backend=backend, max=1) as pipe:
        futures = [pipe.submit({"data": index}) for index in range(3)]
        waiting = threading.Event()
        kind = concurrent.futures._base._AsCompletedWaiter
        monkeypatch.setattr(kind, "add_result", once(Stop(), when, kind.add_result))

        def completed() -> list[int]:
            iterator = concurrent.futures.as_completed(futures, WAIT_S)
            waiting.set()
            return sorted(future.result()["result"] for future in iterator)

        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            result = executor.submit(completed)
            assert waiting.wait(WAIT_S)
            while not all(future._waiters for future in futures):  # type: ignore[attr-defined]
                time.sleep(0.001)
            backend.opened.set()
            assert result.result(WAIT_S) == [0, 1, 2]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [Stop("stop"), MemoryError()], ids=lambda each: type(each).__name__)
def test_an_event_loop_is_told_though_that_is_ended_in_the_middle(
    told: list[BaseException], when: str, error: BaseException
) -> None:
    """``call_soon_threadsafe`` raises once, before or after its work: the awaiting caller has its answer."""
    backend = Held()

    async def main() -> Request:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(pipe.acall({"data": 1}))
        await asyncio.sleep(0)
        loop.call_soon_threadsafe = once(error, when, loop.call_soon_threadsafe)  # type: ignore[method-assign]
        backend.opened.set()
        return await asyncio.wait_for(task, WAIT_S)

    with Pipe(backend=backend) as pipe:
        assert asyncio.run(main())["result"] == 1


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [Stop("stop"), MemoryError()], ids=lambda each: type(each).__name__)
def test_who_is_not_let_in_is_told_though_that_is_ended_in_the_middle(
    told: list[BaseException], when: str, error: BaseException
) -> None:
    """The same of the coroutine that waits for room in a pipe which closes: it gets its PipeClosed."""
    backend = Held()
    closer = threading.Thread(target=lambda: pipe.close())

    async def main() -> Request:
        loop = asyncio.get_running_loop()
        first = pipe.submit({"data": 0})
        task = asyncio.create_task(pipe.acall({"data": 1}))
        await asyncio.sleep(0)
        assert pipe.arrivals == 1
        loop.call_soon_threadsafe = once(error, when, loop.call_soon_threadsafe)  # type: ignore[method-assign]
        closer.start()
        try:
            return await asyncio.wait_for(task, WAIT_S)
        finally:
            backend.opened.set()
            assert first.result(WAIT_S)["result"] == 0

    with Pipe(backend=backend, max_in_flight=1) as pipe:
        with pytest.raises(fastpipe.PipeClosed):
            asyncio.run(main())
        closer.join(WAIT_S)
    assert [type(each) for each in told] == ([] if isinstance(error, MemoryError) else [Stop])


@pytest.mark.parametrize("limit", [{"max_in_flight": 1}, {"max_queue": 1}], ids=str)
def test_what_hits_a_thread_that_lets_another_request_in_fails_no_other(
    told: list[BaseException], limit: dict[str, int]
) -> None:
    """The recorder, on a worker that has made room: the coroutine is told why it fails, and nobody else does."""
    backend = Held()

    class Recorder:
        def begin(self, request: Request, _: str | None) -> None:
            if request["data"] == 1:
                raise Stop

        def end(self, *_: object) -> None:
            pass

        def stop(self, _: float | None) -> None:
            pass

    async def main() -> Request:
        firsts = [pipe.submit({"data": 0})]
        while pipe.stats()["nodes"]["main"]["running"] != 1:
            await asyncio.sleep(0.001)
        if "max_queue" in limit:
            firsts.append(pipe.submit({"data": 0}))
        task = asyncio.create_task(pipe.acall({"data": 1}))
        await asyncio.sleep(0)
        assert pipe.arrivals == 1
        backend.opened.set()
        assert [first.result(WAIT_S)["result"] for first in firsts] == [0] * len(firsts)
        return await asyncio.wait_for(task, WAIT_S)

    with Pipe({"main": {"backend": backend}}, max=1, **limit) as pipe:  # type: ignore[arg-type]
        pipe.recorder = Recorder()
        with pytest.raises(fastpipe.WorkerDied, match="Stop"):
            asyncio.run(main())
        assert pipe({"data": 2}, timeout=WAIT_S)["result"] == 2
        requests = pipe.stats()["requests"]
        assert requests["accepted"] == requests["done"]
    assert [type(each) for each in told] == [Stop]


def test_a_time_limit_for_room_is_told_though_there_is_no_memory_for_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error of a coroutine whose time for room is over cannot be made: then that is what it gets."""
    monkeypatch.setattr("fastpipe._core.RequestTimeout", once(MemoryError(), "before", fastpipe.RequestTimeout))
    backend = Held()
    with Pipe(backend=backend, max_in_flight=1) as pipe:
        first = pipe.submit({"data": 0})
        with pytest.raises(MemoryError):
            asyncio.run(asyncio.wait_for(pipe.acall({"data": 1}, timeout=0.01), WAIT_S))
        backend.opened.set()
        assert first.result(WAIT_S)["result"] == 0
        assert pipe({"data": 2}, timeout=WAIT_S)["result"] == 2


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_awaiting_caller_wakes_though_its_wake_up_is_ended_in_the_middle(when: str) -> None:
    """``call_soon`` raises once in the loop's thread, when a future is settled: its task goes on, once."""
    backend = Held()

    async def main() -> list[Request]:
        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(pipe.acall({"data": index})) for index in range(2)]
        await asyncio.sleep(0)
        real = loop.call_soon
        failing = once(MemoryError(), when, real)

        def call_soon(callback: Any, *arguments: Any, **keywords: Any) -> Any:
            ours = arguments and isinstance(arguments[0], asyncio.Future) and not isinstance(arguments[0], asyncio.Task)
            return (failing if ours else real)(callback, *arguments, **keywords)

        loop.call_soon = call_soon  # type: ignore[assignment, method-assign]
        backend.opened.set()
        return await asyncio.wait_for(asyncio.gather(*tasks), WAIT_S)

    with Pipe(backend=backend) as pipe:
        assert [request["result"] for request in asyncio.run(main())] == [0, 1]


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, ValueError])
def test_one_callback_that_is_ended_does_not_keep_the_others_from_being_called(
    told: list[BaseException], error: type[BaseException]
) -> None:
    """Each callback of a future is called once, whatever another raises."""
    called: list[int] = []

    def raises(_: object) -> None:
        called.append(0)
        raise error

    backend = Held()
    with Pipe(backend=backend) as pipe:
        future = pipe.submit({"data": 1})
        future.add_done_callback(raises)
        future.add_done_callback(lambda _: called.append(1))
        backend.opened.set()
        assert future.result(WAIT_S)["result"] == 1
        assert pipe({"data": 2})["result"] == 2
    assert called == [0, 1]


def test_an_exception_that_another_thread_raises_in_a_worker_loses_nothing(told: list[BaseException]) -> None:
    """PyThreadState_SetAsyncExc into a worker, again and again: every future ends."""
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    with Pipe(backend=Echo, max=2, batching_timeout=0) as pipe:
        (worker,) = [worker.thread for worker in pipe._instances.workers]
        assert worker.ident is not None
        called: list[object] = []
        futures = []
        for index in range(2_000):
            future = pipe.submit({"data": index})
            future.add_done_callback(called.append)
            futures.append(future)
            if index % 5 == 0:
                raise_in(ctypes.c_ulong(worker.ident), ctypes.py_object(Stop))
        errors = {type(future.exception(WAIT_S)) for future in futures}
        assert errors <= {type(None), Stop, fastpipe.WorkerDied}
        for _ in range(3):  # the last exception may still be on its way
            last = pipe.submit({"data": 1})
            last.exception(WAIT_S)
        assert len({id(future) for future in called}) == len(called) == len(futures)
        requests = pipe.stats()["requests"]
        assert requests["accepted"] == requests["done"] + requests["failed"] == len(futures) + 3


STORM = """
import itertools, os, random, signal, sys, threading, time
import fastpipe

class Echo(fastpipe.Backend):
    max_batch = 4
    def forward(self, batch):
        for request in batch:
            request["result"] = request["data"]

class Ctrl(KeyboardInterrupt):
    pass

is_on = True
is_armed = False
def interrupt(*_):
    global is_armed
    if is_armed:
        is_armed = False  # one at a time: the next only when this one has arrived
        raise Ctrl
signal.signal(signal.SIGINT, interrupt)

def storm():
    while is_on:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(random.random() * 0.0004)

def leaves(request):
    return fastpipe.Status.Break

# A function of its own: CPython 3.13 compiles the jump back of a loop to stand outside of the try around that loop.
def rounds():
    global is_armed
    is_armed = True
    while time.monotonic() < end_s:
        future = pipe.submit({"data": 1})
        kept.append(future)
        future.cancel() if len(kept) % 7 == 0 else None
        if len(kept) % 3 == 0:
            future.exception() if not future.cancelled() else None
            pipe([{"data": 1}, {"data": 2}])
    is_armed = False

lost = 0
called = []
interrupted = 0
with fastpipe.Pipe(start={"backend": "Identity", "next": "echo", "filter": WAY}, echo={"backend": Echo}) as pipe:
    kept = []
    stormer = threading.Thread(target=storm)
    stormer.start()
    end_s = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end_s:
        try:
            rounds()
        except KeyboardInterrupt:
            interrupted += 1
    is_armed = is_on = False
    stormer.join()
    for future in kept:
        try:
            future.exception(5)
        except TimeoutError:
            lost += 1
        except fastpipe.PipeError:
            pass
        except BaseException as error:
            if type(error).__name__ != "CancelledError":
                raise
    requests = pipe.stats()["requests"]
    assert requests["in_flight"] == 0, requests
    assert requests["accepted"] == requests["done"] + requests["failed"] + requests["cancelled"], requests
assert interrupted > 20, interrupted
assert not lost, f"{lost} of {len(kept)} futures are pending for ever"
print(len(kept), interrupted)
"""


@pytest.mark.parametrize("way", ["None", "leaves"])
def test_no_future_is_lost_in_a_storm_of_signals(way: str) -> None:
    """SIGINT again and again on the thread that submits, cancels, helps and waits: every future ends."""
    seconds = os.environ.get("FASTPIPE_STORM_S", "4")
    script = STORM.replace("WAY", way)
    child = subprocess.run(
        [sys.executable, "-P", "-c", script, seconds], capture_output=True, text=True, timeout=float(seconds) + 60
    )
    assert child.returncode == 0, child.stderr[-2000:]


@pytest.mark.parametrize("moment", ["begins", "ends"])
def test_whoever_holds_the_lock_of_a_future_holds_up_no_other_request(moment: str) -> None:
    """A signal's handler that calls the pipe may have stopped its thread inside of ``result()``, which holds it."""
    gate = threading.Event()
    running = threading.Event()

    def wait_at_the_gate(data: int) -> int:
        if data == 0:
            running.set()
            gate.wait(30)
        return data

    with Pipe(backend=wait_at_the_gate) as pipe:
        first = pipe.submit({"data": 0})
        assert running.wait(30)
        held = first if moment == "ends" else pipe.submit({"data": 1})
        calls: list[int] = []
        held.add_done_callback(lambda future: calls.append(future.result()["data"]))
        with held._condition:  # type: ignore[attr-defined]
            gate.set()
            assert pipe.submit({"data": 2}).result(30)["result"] == 2
            assert not held.done()
        assert held.result(30)["result"] == held.result()["data"]
        assert first.result(30)["result"] == 0
    until = time.monotonic() + 30
    while not calls and time.monotonic() < until:
        time.sleep(0.001)
    assert len(calls) == 1


def test_a_signal_in_a_filter_interrupts_the_submit_that_asks_it() -> None:
    """Ctrl-C is not put away in the future of a request: ``submit`` raises it, and the request is over."""

    def interrupted(request: Request) -> Status:
        signal.raise_signal(signal.SIGINT)
        end_s = time.monotonic() + WAIT_S
        while time.monotonic() < end_s:  # the interpreter may look for signals a moment later: in here all the same
            pass
        return Status.Run

    with Pipe(main={"backend": Echo, "filter": interrupted}) as pipe:
        with pytest.raises(KeyboardInterrupt):
            pipe.submit({"data": 1})
        requests = pipe.stats()["requests"]
        assert requests["in_flight"] == 0
        assert requests["accepted"] == 1


def test_a_cancelled_future_ends_though_telling_is_ended_in_the_middle() -> None:
    """What hits ``cancel`` in the middle is raised by it, when the future is cancelled and all know."""
    backend = Held()
    with Pipe(backend=backend, max=1) as pipe:
        first = pipe.submit({"data": 0})
        future = pipe.submit({"data": 1})
        condition = future._condition  # type: ignore[attr-defined]
        condition.notify_all = once(KeyboardInterrupt(), "before", condition.notify_all)
        with pytest.raises(KeyboardInterrupt):
            future.cancel()
        assert future.cancelled()
        assert concurrent.futures.wait([future], WAIT_S).done == {future}
        backend.opened.set()
        assert first.result(WAIT_S)["result"] == 0


# ---- an exception of one's own ---------------------------------------------------------------------------------------


SINGLETON = ValueError("always the same")


class Raises(Backend):
    """Raises one and the same object, for whole batches."""

    max_batch = 8
    retry_alone = False

    def forward(self, batch: list[Request]) -> None:
        raise SINGLETON


def frames(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def test_one_object_that_is_raised_again_and_again_does_not_grow() -> None:
    """10,000 requests, one object: each caller has one note and a traceback of his own; the object has no note."""
    lengths = set()
    with Pipe(backend=Raises) as pipe:
        for index in range(10_000):
            with pytest.raises(ValueError, match="always the same") as raised:
                pipe({"data": index})
            assert len(raised.value.__notes__) == 1
            raised.value.add_note("mine")
            lengths.add(len(frames(raised.value)))
    assert len(lengths) == 1
    assert not hasattr(SINGLETON, "__notes__")
    assert len(frames(SINGLETON)) <= max(lengths)


def test_each_request_of_a_batch_that_fails_has_an_exception_of_its_own() -> None:
    """A list: each member of the group is another object, which says which request it was, and only that."""
    with Pipe(backend=Raises, batching="greedy") as pipe, pytest.raises(ExceptionGroup) as raised:
        pipe([{"data": index} for index in range(5)])
    errors = raised.value.exceptions
    assert len({id(error) for error in errors}) == 5
    for index, error in enumerate(errors):
        assert [note for note in error.__notes__ if "of a list of" in note] == [
            f"fastpipe: request {index} of a list of 5"
        ]
        assert "forward" in frames(error)


def test_one_error_named_for_several_items_is_copied_for_each() -> None:
    """ItemErrors with the same object twice."""

    class Names(Backend):
        max_batch = 2

        def forward(self, batch: list[Request]) -> None:
            error = KeyError("both")
            raise ItemErrors(dict.fromkeys(range(len(batch)), error))

    with Pipe(backend=Names, batching="greedy") as pipe, pytest.raises(ExceptionGroup) as raised:
        pipe([{"data": 1}, {"data": 2}])
    first, second = raised.value.exceptions
    assert type(first) is type(second) is KeyError
    assert first is not second
    assert first.__notes__ is not second.__notes__


def test_a_filter_that_raises_one_object_does_not_make_it_grow() -> None:
    """What holds of backends holds of filters."""
    error = ValueError("the filter's")

    def refuses(request: Request) -> Status:
        raise error

    with Pipe(main={"backend": Echo, "filter": refuses}) as pipe:
        for _ in range(5):
            with pytest.raises(ValueError, match="the filter's") as raised:
                pipe({"data": 1})
            assert raised.value is not error
            assert len(raised.value.__notes__) == 1
    assert not hasattr(error, "__notes__")


def test_an_exception_that_nobody_keeps_is_not_copied() -> None:
    """Its class may have a constructor that counts, or does more: it runs once, and the caller gets that object."""
    made: list[int] = []

    class Counted(Exception):
        def __init__(self, text: str) -> None:
            super().__init__(text)
            made.append(id(self))

    class Fresh(Backend):
        def forward(self, batch: list[Request]) -> None:
            raise Counted("backend")

    with Pipe(main={"backend": Fresh}) as pipe, pytest.raises(Counted, match="backend") as raised:
        pipe({"data": 1})
    assert [id(raised.value)] == made


class Slotted(Exception):
    """Keeps something where copy.copy does not look."""

    __slots__ = ("code",)

    def __init__(self, code: int, *, strict: bool) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.strict = strict


def odd_exceptions() -> Iterator[BaseException]:
    yield Slotted(7, strict=True)
    yield OSError(2, "no such file", "a.txt")
    yield FileNotFoundError(2, "no such file", "a.txt", None, "b.txt")
    yield UnicodeDecodeError("utf-8", b"abc", 1, 2, "because")
    yield ImportError("no module", name="that", path="there")
    yield StopIteration(3)
    yield SystemExit(4)
    yield KeyError("key")
    yield ExceptionGroup("two", [ValueError(1), TypeError(2)])
    yield SyntaxError("bad", ("file.py", 3, 4, "text"))
    yield fastpipe.BackendHung("hung", "stacks")
    yield ItemErrors({1: ValueError("one")})
    yield AttributeError("none", name="attribute", obj=3)


@pytest.mark.parametrize("error", list(odd_exceptions()), ids=lambda each: type(each).__name__)
def test_a_copy_says_what_the_exception_says(error: BaseException) -> None:
    """Type, text, attributes, notes, cause, context and traceback, whatever the class's constructor takes."""
    try:
        try:
            raise ValueError("context")
        except ValueError:
            raise error from KeyError("cause")
    except BaseException as caught:
        caught.add_note("a note")
    copied = own_copy(error)
    assert copied is not error
    assert type(copied) is type(error)
    assert (str(copied), copied.args) == (str(error), error.args)
    attributes = [name for name in dir(error) if not name.startswith("_") and not callable(getattr(error, name, len))]
    assert [getattr(copied, name) for name in attributes] == [getattr(error, name) for name in attributes]
    assert copied.__cause__ is error.__cause__
    assert copied.__context__ is error.__context__
    assert copied.__traceback__ is error.__traceback__
    copied.add_note("of its own")
    assert error.__notes__ == ["a note"]


def test_an_exception_that_cannot_be_copied_is_the_cause_of_a_backend_error() -> None:
    """Rather another type than notes of others in it."""

    class Single(Exception):
        def __new__(cls, *arguments: object) -> Single:
            return super().__new__(cls, *arguments)

        @property
        def args(self) -> Any:
            return ("x",)

    error = Single("one")
    copied = own_copy(error)
    assert isinstance(copied, BackendError)
    assert copied.__cause__ is error
    assert "Single" in str(copied)


# ---- what would end an event loop ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        *(SystemExit(3), KeyboardInterrupt("stop"), GeneratorExit("end"), asyncio.CancelledError()),
        *(StopIteration("x"), StopAsyncIteration("x")),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_would_end_an_event_loop_reaches_an_awaiting_caller_in_a_backend_error(error: BaseException) -> None:
    """The loop goes on; the exception is named, and is the cause; its notes say where it comes from."""

    async def main() -> None:
        with pytest.raises(BackendError, match=type(error).__name__) as raised:
            await pipe.acall({"data": error})
        assert type(raised.value.__cause__) is type(error)
        assert any("node 'main'" in note for note in raised.value.__notes__)
        assert (await pipe.acall({"data": 1}))["result"] == 1

    with Pipe(backend=Echo) as pipe:
        asyncio.run(main())


# ---- no file descriptors ---------------------------------------------------------------------------------------------


def test_the_first_calls_need_no_file_descriptor() -> None:
    """A service that has used up its descriptors goes on: nothing is imported in the first submit, map or acall."""
    script = """
        import asyncio, os, resource
        import fastpipe
        pipe = fastpipe.Pipe(backend="Identity")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        loop = asyncio.new_event_loop()
        taken = []
        try:
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        assert pipe.submit({"data": 1}, timeout=60).result(20)["result"] == 1
        assert next(pipe.map([{"data": 2}]))["result"] == 2
        assert loop.run_until_complete(pipe.acall({"data": 3}))["result"] == 3
        assert pipe({"data": 4}, eager=True)["result"] == 4
        assert pipe([{"data": 5}])[0]["result"] == 5
        for each in taken:
            os.close(each)
        pipe.close()
        loop.close()
    """
    child = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert child.returncode == 0, child.stderr[-2000:]
