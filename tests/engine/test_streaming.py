"""Answers in parts: what a backend emits, when its reader gets it, and what it may rely on."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import WAIT_S, run_loop, until, until_set
from streaming_backends import Counts, by_all_readers, in_one_batch, read

import fastpipe
from fastpipe import Backend, BackendError, ConfigError, Pipe, PipeError, Request, Streaming

NUMBER: contextvars.ContextVar[int] = contextvars.ContextVar("number", default=-1)


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
def test_p12_a_slow_reader_holds_a_bounded_number_of_chunks(buffer: int) -> None:
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

    with in_one_batch(Asks, max=size) as pipe:
        chunks = []
        for number in range(8):
            NUMBER.set(number)
            chunks += [pipe.stream({"data": number})]
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
    undeclared = emits(False, lambda each: fastpipe.emit(each, 1))
    strange = emits(True, lambda each: fastpipe.emit(dict(each), 1))
    with Pipe(backend=undeclared) as pipe, pytest.raises(BackendError, match="set streams = True in its class"):
        pipe(request)
    with Pipe(backend=strange) as pipe, pytest.raises(PipeError, match="none of the dicts in that batch"):
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
