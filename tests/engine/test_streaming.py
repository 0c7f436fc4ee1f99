"""Answers in parts: what a backend emits, when its reader gets it, and what the others see."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import WAIT_S, Adds, run_loop, until, until_set

import fastpipe
from fastpipe import Backend, BackendError, ConfigError, Pipe, PipeError, Request, Sequential, Step, Streaming
from fastpipe.backends.flow.catsplit import CatSplit
from fastpipe.contract import Child

NUMBER: contextvars.ContextVar[int] = contextvars.ContextVar("number", default=-1)


class Counts(Streaming):
    """Yields the numbers below ``data``; ``made`` has all it has come to."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def run(self, request: Request) -> Iterator[int]:
        for number in range(request["data"]):
            self.made.append(number)
            yield number


class Led(Streaming):
    """Yields its data, item by item, each when it is let; says when it has been closed."""

    max_batch = 8

    def __init__(self) -> None:
        self.may = threading.Semaphore(0)
        self.begun = threading.Event()
        self.closed = threading.Event()
        self.saw_cancelled: bool | None = None

    def run(self, request: Request) -> Iterator[Any]:
        self.begun.set()
        try:
            for item in request["data"]:
                assert self.may.acquire(timeout=WAIT_S)
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.saw_cancelled = fastpipe.cancelled()
            self.closed.set()


class Emits(Backend):
    """Works on a batch as a model does that makes a token for each request in turn."""

    streams = True
    max_batch = 8

    def forward(self, batch: list[Request]) -> None:
        for number in range(max(request["data"] for request in batch)):
            for request in batch:
                if number < request["data"]:
                    fastpipe.emit(request, number)
        for request in batch:
            request["result"] = request["data"]


async def read(chunks: Any) -> list[Any]:
    return [chunk async for chunk in chunks]


def by_all_readers(pipe: Pipe, request: Request, **keywords: Any) -> list[Any]:
    """Return the chunks of a request, which a thread and a coroutine must read alike, and leave the same dict."""
    mine, other = dict(request), dict(request)
    chunks = list(pipe.stream(mine, **keywords))
    assert asyncio.run(asyncio.wait_for(read(pipe.astream(other, **keywords)), WAIT_S)) == chunks
    assert mine == other
    request.update(mine)
    return chunks


# ---- what is handed on ---------------------------------------------------------------------------------------------


def test_chunks_are_read_in_order_and_the_whole_is_in_the_dict() -> None:
    """More chunks than the buffer holds; the answer is there once they have ended."""
    with Pipe(backend=Counts) as pipe:
        request: Request = {"data": 100}
        assert by_all_readers(pipe, request) == list(range(100))
        assert request == {"data": 100, "result": list(range(100))}
        assert by_all_readers(pipe, {"data": 0}) == []
        assert pipe.stats()["requests"]["done"] == 4


def test_a_chunk_is_read_before_the_next_one_is_made() -> None:
    """That is what a stream is for; also in a coroutine, which nobody else wakes."""
    backend = Led()
    with Pipe(backend=backend) as pipe:
        chunks = pipe.stream({"data": "abc"})
        for expected in "abc":
            backend.may.release()
            assert next(chunks) == expected
        with pytest.raises(StopIteration):
            next(chunks)

        async def main() -> None:
            asynchronous = pipe.astream({"data": "abc"})
            for expected in "abc":
                backend.may.release()
                assert await anext(asynchronous) == expected
            with pytest.raises(StopAsyncIteration):
                await anext(asynchronous)

        run_loop(main)


def test_any_call_but_a_stream_gets_the_whole() -> None:
    """Nobody reads: nothing waits, whatever the length."""
    whole = {"data": 100, "result": list(range(100))}
    with Pipe(backend=Counts, instance_num=2, max=4) as pipe:
        assert pipe({"data": 100}) == whole
        assert pipe([{"data": 100}] * 5) == [whole] * 5
        assert pipe.submit({"data": 100}).result(WAIT_S) == whole
        assert asyncio.run(pipe.acall({"data": 100})) == whole
        assert list(pipe.map([{"data": 100}] * 5)) == [whole] * 5
        assert pipe({"data": 100}, eager=True) == whole
        with pipe.debug({"data": 100}) as debugger:
            assert debugger.run().request == whole  # type: ignore[union-attr]


class ByReturn(Counts):
    def run(self, request: Request) -> Iterator[int]:
        yield from super().run(request)
        return "returned"  # type: ignore[return-value]


class ByKey(Counts):
    keeps_chunks = False

    def run(self, request: Request) -> Iterator[int]:
        yield from super().run(request)
        request["result"] = "set"


class ByWhole(Counts):
    def whole(self, request: Request, chunks: list[Any]) -> Any:
        return sum(chunks) + request["data"]


class Plain(Counts):
    """No generator function, but what returns an iterator."""

    def run(self, request: Request) -> Iterator[int]:
        return iter(range(request["data"]))


@pytest.mark.parametrize(
    ("kind", "result"),
    [(ByReturn, "returned"), (ByKey, "set"), (ByWhole, 6), (Plain, [0, 1, 2])],
)
@pytest.mark.parametrize("size", [1, 3])
def test_what_the_whole_is(kind: type[Streaming], result: Any, size: int) -> None:
    """What ``run`` sets, or returns, or what ``whole`` makes of the chunks; alone and in a batch."""
    with Pipe(backend=kind, max=size) as pipe:
        answers = pipe([{"data": 3} for _ in range(size)])
        assert [answer["result"] for answer in answers] == [result] * size
        assert by_all_readers(pipe, {"data": 3}) == [0, 1, 2]


def test_a_generator_function_is_a_streaming_backend() -> None:
    """The short form, with parameters of the node."""

    @fastpipe.backend
    def words(text: str, *, sign: str = "") -> Iterator[str]:
        for word in text.split():
            yield word + sign

    with Pipe(backend=words, sign="!") as pipe:
        request: Request = {"data": "one two"}
        assert by_all_readers(pipe, request) == request["result"] == ["one!", "two!"]


def test_a_backend_is_tested_by_hand() -> None:
    """No pipe, no reader: ``forward`` fills the request in."""
    request, other = {"data": 2}, {"data": 3}
    Counts().forward([request])
    assert request["result"] == [0, 1]
    Counts().forward([request, other])
    assert other["result"] == [0, 1, 2]


# ---- back-pressure -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [1, 2, 16])
def test_a_slow_reader_holds_a_bounded_number_of_chunks(buffer: int) -> None:
    """The backend's ``yield`` waits: it has made what the buffer holds, and one more that it is stuck with."""
    backend = Counts()
    with Pipe(backend=backend) as pipe:
        chunks = pipe.stream({"data": 1000}, buffer=buffer)
        until(lambda: len(backend.made) == buffer + 1)
        for read_count in range(200):
            assert next(chunks) == read_count
            assert len(backend.made) <= read_count + buffer + 2
        until(lambda: len(backend.made) >= 200 + buffer // 2)
        assert list(chunks) == list(range(200, 1000))


def test_a_slow_coroutine_holds_a_bounded_number_of_chunks() -> None:
    """The same in an event loop, which is free meanwhile."""
    backend = Counts()

    async def main() -> None:
        async with Pipe(backend=backend) as pipe, contextlib.aclosing(pipe.astream({"data": 1000}, buffer=4)) as chunks:
            assert await anext(chunks) == 0
            await asyncio.to_thread(until, lambda: len(backend.made) >= 5)
            for expected in range(1, 200):
                assert await anext(chunks) == expected
                assert len(backend.made) <= expected + 6
            assert await read(chunks) == list(range(200, 1000))

    run_loop(main)


def test_a_backend_that_waits_for_a_reader_keeps_no_other_instance_and_no_gil() -> None:
    """One instance stands still; the other one serves."""
    with Pipe(backend=Counts, instance_num=2) as pipe:
        chunks = pipe.stream({"data": 100}, buffer=1)
        assert next(chunks) == 0
        assert pipe({"data": 3})["result"] == [0, 1, 2]
        assert list(chunks) == list(range(1, 100))


@pytest.mark.parametrize("value", [0, -1])
def test_a_buffer_holds_at_least_one_chunk(value: int) -> None:
    """Said at the call, also of a coroutine's."""
    with Pipe(backend=Counts) as pipe:
        for call in (pipe.stream, pipe.astream):
            with pytest.raises(ValueError, match=f"buffer must be at least 1, got {value}"):
                call({"data": 1}, buffer=value)
            with pytest.raises(TypeError, match="buffer must be a whole number of chunks"):
                call({"data": 1}, buffer=1.5)  # type: ignore[arg-type]


# ---- batches -------------------------------------------------------------------------------------------------------


class Lets(Backend):
    """Passes its whole batch on, once it is told to."""

    max_batch = 8

    def __init__(self) -> None:
        self.may = threading.Event()

    def forward(self, batch: list[Request]) -> None:
        assert self.may.wait(WAIT_S)
        for request in batch:
            request["result"] = request["data"]


class Gated:
    """A pipe whose node ``words`` gets all requests in one batch."""

    def __init__(self, backend: Any, **keywords: Any) -> None:
        self.lets = Lets()
        self.pipe = Pipe(
            gate={"backend": self.lets, "next": "words", "max": 8, "batching": "timeout", "batching_timeout": 60_000.0},
            words={"backend": backend, "max": 8, "batching_timeout": 1000.0, **keywords},
        )

    def streams(self, requests: list[Request], **keywords: Any) -> list[Any]:
        chunks = [self.pipe.stream(request, entry="gate", **keywords) for request in requests]
        self.lets.may.set()
        return chunks

    def __enter__(self) -> Gated:
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.close()


@pytest.mark.parametrize("kind", [Counts, Emits])
def test_streams_of_one_batch_are_read_one_after_the_other(kind: type[Backend]) -> None:
    """Each ends when it has ended: a reader of several does not wait for what it reads later.

    ``Emits`` tells all ends at its own: it does not say ``finish``.
    """
    with Gated(kind) as gated:
        chunks = gated.streams([{"data": 8 * 10} if kind is Counts else {"data": 3 + index} for index in range(8)])
        wanted = [80] * 8 if kind is Counts else [3 + index for index in range(8)]  # the buffers hold all of the latter
        assert [list(each) for each in chunks] == [list(range(count)) for count in wanted]
        assert gated.pipe.stats()["nodes"]["words"]["batches"] == 1


def test_a_slow_reader_does_not_stop_the_others_of_its_batch() -> None:
    """Its generator is passed over."""
    with Gated(Counts) as gated:
        slow, *others = gated.streams([{"data": 50}, {"data": 50}, {"data": 50}, *[{"data": 1}] * 5], buffer=2)
        assert [list(each) for each in others] == [list(range(50))] * 2 + [[0]] * 5
        assert gated.pipe.stats()["requests"]["done"] == 7
        assert list(slow) == list(range(50))


def test_who_leaves_ends_its_generator_alone() -> None:
    """And who fails; the rest of the batch goes on."""

    class Picky(Counts):
        def run(self, request: Request) -> Iterator[int]:
            for number in super().run({"data": 50}):
                if number == request["data"]:
                    raise ValueError(f"no {number}")
                yield number

    with Gated(Picky) as gated:
        leaves, fails, *others = gated.streams([{"data": 99}, {"data": 20}, *[{"data": 99}] * 6])
        assert next(leaves) == 0
        leaves.close()
        with pytest.raises(ValueError, match="no 20") as raised:
            list(fails)
        assert any("node 'words', backend Picky, instance 0, batch of 8" in note for note in raised.value.__notes__)
        assert [list(each) for each in others] == [list(range(50))] * 6
        requests = gated.pipe.stats()["requests"]
        assert (requests["done"], requests["failed"], requests["cancelled"]) == (6, 1, 1)
        assert gated.pipe.stats()["nodes"]["words"]["failed"] == 1


def test_a_request_that_is_done_goes_on_while_its_batch_runs() -> None:
    """``finish``: it is at the next node, and then answered, before ``forward`` returns."""
    goes_on = threading.Event()
    said: list[bool] = []

    class Finishes(Backend):
        max_batch = 8
        streams = True

        def forward(self, batch: list[Request]) -> None:
            first, *others = batch
            first["result"] = first["data"]
            said.append(fastpipe.finish(self, first))
            said.append(fastpipe.emit(first, "late"))
            said.append(fastpipe.cancelled(first))
            said.append(fastpipe.finish(self, first))
            assert goes_on.wait(WAIT_S)
            for request in others:
                request["result"] = request["data"]

    lets = Lets()
    with Pipe(
        gate={"backend": lets, "next": "words", "batching": "timeout", "batching_timeout": 60_000.0},
        words={"backend": Finishes, "next": "last"},
        last={"backend": Adds},
    ) as pipe:
        futures = [pipe.submit({"data": number}) for number in range(8)]
        lets.may.set()
        until(lambda: any(future.done() for future in futures))
        (first,) = [future for future in futures if future.done()]
        assert first.result()["result"] == futures.index(first) + 1
        assert said == [True, False, True, True]
        goes_on.set()
        assert [future.result(WAIT_S)["result"] for future in futures] == list(range(1, 9))
        assert pipe.stats()["requests"]["done"] == 8
        assert pipe.stats()["nodes"]["words"]["requests"] == 8


# ---- graphs --------------------------------------------------------------------------------------------------------


class Tagged(Streaming):
    """Yields its data twice, with the node's name, and passes it on."""

    def __init__(self, *, node_name: str) -> None:
        self.name = node_name

    def run(self, request: Request) -> Iterator[str]:
        for index in range(2):
            yield f"{self.name}{index} {request['data']}"
        request["result"] = request["data"]


def test_chunks_of_all_nodes_on_the_way_are_read() -> None:
    """Of nodes in a row one after the other; of branches as they come; the answer is the last node's."""
    row = {"a": {"backend": Tagged, "next": "b"}, "b": {"backend": Adds, "next": "c"}, "c": {"backend": Tagged}}
    with Pipe(row) as pipe:
        request: Request = {"data": 1}
        assert by_all_readers(pipe, request) == ["a0 1", "a1 1", "c0 2", "c1 2"]
        assert request["result"] == 2
        assert by_all_readers(pipe, {"data": 1}, entry="b") == ["c0 2", "c1 2"]
    branches = {
        "root": {"backend": "Identity", "next": "a,b"},
        "a": {"backend": Tagged, "next": "join"},
        "b": {"backend": Tagged, "next": "join"},
        "join": {"backend": "Identity", "map": "a[result:data],b[result:other]"},
    }
    with Pipe(branches) as pipe:
        request = {"data": 7}
        chunks = list(pipe.stream(request, buffer=1))
        assert sorted(chunks) == ["a0 7", "a1 7", "b0 7", "b1 7"]
        assert chunks.index("a0 7") < chunks.index("a1 7")
        assert request["result"] == request["other"] == 7


def test_a_pipe_that_does_not_stream_has_no_chunks() -> None:
    """The answer is in the dict all the same."""
    with Pipe(backend=Adds) as pipe:
        request: Request = {"data": 1}
        assert by_all_readers(pipe, request) == []
        assert request["result"] == 2


def test_a_step_of_a_sequential_streams() -> None:
    """One request at a time; batches are refused when the pipe is built, as all would end with the slowest reader."""
    steps = Sequential(Step(Adds), Step(Counts), Step("Identity"))
    with Pipe(backend=steps) as pipe:
        request: Request = {"data": 30}
        assert by_all_readers(pipe, request) == request["result"] == list(range(31))
    with pytest.raises(ConfigError, match="node 'main': a step of it streams: it takes one request at a time, and max is"):
        Pipe(backend=steps, max=4)
    with pytest.raises(ConfigError, match="CatSplit joins requests"):
        CatSplit([Child("Counts", Counts())])


@pytest.mark.parametrize("as_step", [False, True])
@pytest.mark.parametrize("kind", ["Jump", "MapReduce", "Proxy"])
def test_parts_of_a_request_emit_into_its_stream(kind: str, as_step: bool) -> None:
    """A sub-graph that is a node, or a step of a Sequential."""
    own = {"proxy": "inner"} if kind == "Proxy" else {"jump": "inner"}
    step = Step(kind, **own)
    pipe = Pipe(
        outer={"backend": Sequential(Step("Identity"), step) if as_step else kind, **({} if as_step else own)},
        inner={"backend": Counts, "instance_num": 2},
    )
    with pipe:
        data = [20, 3] if kind == "MapReduce" else 20
        request: Request = {"data": data}
        chunks = sorted(pipe.stream(request, entry="outer", buffer=1))
        assert chunks == sorted([*range(20), *range(3)] if kind == "MapReduce" else range(20))
        wholes = [list(range(20)), list(range(3))]
        assert request["result"] == (wholes if kind == "MapReduce" else wholes[0])


def test_a_loop_emits_in_every_round() -> None:
    """Restarts are one request, and one stream."""

    class Again(Tagged):
        def run(self, request: Request) -> Iterator[str]:
            yield from super().run(request)
            request["result"] = request["data"] + 1
            if request["data"] < 2:
                request["restart"] = "a"

    with Pipe(a={"backend": Again}) as pipe:
        assert by_all_readers(pipe, {"data": 0}) == [f"a{index} {round_}" for round_ in range(3) for index in range(2)]


# ---- what else a backend may rely on -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4])
def test_a_generator_runs_in_the_context_of_its_request(size: int) -> None:
    """Alone and in company; what it sets it finds again after its next ``yield``, and nobody else does."""

    class Asks(Streaming):
        def run(self, request: Request) -> Iterator[int]:
            for step in range(3):
                yield NUMBER.get() + step
                NUMBER.set(NUMBER.get())
            assert NUMBER.get() == request["data"]

    with Gated(Asks, max=size) as gated:
        chunks = []
        for number in range(8):
            NUMBER.set(number)
            chunks += [gated.pipe.stream({"data": number}, entry="gate")]
        gated.lets.may.set()
        assert [list(each) for each in chunks] == [[number, number + 1, number + 2] for number in range(8)]
        NUMBER.set(-1)


def test_priorities_count_for_streams() -> None:
    """The urgent one is read first."""
    backend = Led()
    with Pipe(backend=backend, max=1) as pipe:
        order: list[str] = []
        streams = [pipe.stream({"data": ["first"]})]
        assert backend.begun.wait(WAIT_S)
        streams += [pipe.stream({"data": [name]}, priority=priority) for name, priority in (("b", 5), ("a", -5))]
        readers = [threading.Thread(target=lambda each=each: order.extend(each)) for each in streams]
        for reader in readers:
            reader.start()
        for count in range(1, 4):
            backend.may.release()
            until(lambda count=count: len(order) == count)  # type: ignore[misc]
        for reader in readers:
            reader.join(WAIT_S)
        assert order == ["first", "a", "b"]


def test_what_is_wrong_with_a_backend_that_emits_is_said() -> None:
    """Not declared; on no batch; a dict that is none of the batch's; no generator; no ``run``."""

    def emits(declared: bool, emit: Callable[[Request], object]) -> type[Backend]:
        class Wrong(Backend):
            streams = declared

            def forward(self, batch: list[Request]) -> None:
                emit(batch[0])

        return Wrong

    request: Request = {"data": 1}
    for function in (fastpipe.emit, fastpipe.try_emit):
        with pytest.raises(PipeError, match="none runs on this thread"):
            function(request, 1)
    with Pipe(backend=emits(False, lambda each: fastpipe.emit(each, 1))) as pipe:
        with pytest.raises(BackendError, match="set streams = True in its class"):
            pipe(request)
    with Pipe(backend=emits(True, lambda each: fastpipe.emit(dict(each), 1))) as pipe:
        with pytest.raises(PipeError, match="none of the dicts in that batch"):
            pipe(request)

    class Returns(Streaming):
        def run(self, request: Request) -> Any:
            return [1, 2]

    class Lacks(Streaming):
        pass

    with Pipe(backend=Returns) as pipe, pytest.raises(BackendError, match=r"run\(\) of Returns must yield"):
        pipe(request)
    with pytest.raises(ConfigError, match=r"Lacks.* has no run\(request\).*a Streaming defines it"):
        Pipe(backend=Lacks)


def test_a_recorder_and_a_debugger_see_a_stream_as_any_request(tmp_path: Path) -> None:
    """One record, with the whole."""
    with Pipe(backend=Counts) as pipe:
        with pipe.record(tmp_path, sample=1.0) as recording:
            assert list(pipe.stream({"data": 3})) == [0, 1, 2]
            until(lambda: recording.written == 1)
        with pipe.debug({"data": 3}) as debugger:
            step = debugger.step()
            assert step is not None
            assert debugger.request["data"] == 3  # type: ignore[index]


def test_streams_of_a_loop_need_no_threads_and_few_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred coroutines read; while the loop is busy, all news of all streams is one callback."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        calls: list[Any] = []
        call_soon_threadsafe = loop.call_soon_threadsafe
        async with Pipe(backend=Counts, instance_num=2, max=50) as pipe:
            before = threading.active_count()
            assert await asyncio.gather(*(read(pipe.astream({"data": 30})) for _ in range(100))) == [
                list(range(30)) for _ in range(100)
            ]
            assert threading.active_count() == before
            backend = Led()
            async with Pipe(backend=backend, max=8) as led:
                readers = [asyncio.create_task(read(led.astream({"data": "abcd"}))) for _ in range(4)]
                await until_set(backend.begun)
                await asyncio.sleep(0.01)
                monkeypatch.setattr(
                    loop, "call_soon_threadsafe", lambda *call: (calls.append(call), call_soon_threadsafe(*call))[1]
                )
                for _ in range(8):
                    backend.may.release()
                until(lambda: backend.may._value == 0)  # type: ignore[attr-defined]  # the loop stands still meanwhile
                assert len(calls) <= 1
                for _ in range(8):
                    backend.may.release()
                assert await asyncio.gather(*readers) == [list("abcd")] * 4

    run_loop(main)
