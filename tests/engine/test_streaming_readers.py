"""Readers of streams: those that leave, those that are slow, and those that close the pipe."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import WAIT_S, Gate, run_loop, until, until_set
from streaming_backends import Endless, Script, aremains, counts, remains

from fastpipe import (
    Pipe,
    PipeClosed,
    QueueFull,
    Request,
    RequestTimeout,
    Streaming,
)

# ---- readers that leave --------------------------------------------------------------------------------------------


def leave_by_close(pipe: Pipe) -> None:
    chunks = pipe.stream({"data": 0})
    assert next(chunks) == 1
    chunks.close()
    chunks.close()
    assert list(chunks) == []


def leave_by_break(pipe: Pipe) -> None:
    for chunk in pipe.stream({"data": 0}):
        assert chunk == 1
        break


def leave_by_with(pipe: Pipe) -> None:
    with pipe.stream({"data": 0}) as chunks:
        assert next(chunks) == 1


def leave_by_raising(pipe: Pipe) -> None:
    with contextlib.suppress(ZeroDivisionError), pipe.stream({"data": 0}) as chunks:
        assert next(chunks) / 0


def leave_by_cycle(pipe: Pipe) -> None:
    own: list[Any] = [pipe.stream({"data": 0})]
    own.append(own)
    assert next(own[0]) == 1
    del own
    gc.collect()


def leave_by_aclosing(pipe: Pipe) -> None:
    async def main() -> None:
        async with contextlib.aclosing(pipe.astream({"data": 0})) as chunks:
            assert await anext(chunks) == 1

    run_loop(main)


def leave_by_async_break(pipe: Pipe) -> None:
    async def main() -> None:
        async for chunk in pipe.astream({"data": 0}):
            assert chunk == 1
            break

    run_loop(main)


def leave_by_cancelling(pipe: Pipe) -> None:
    async def main() -> None:
        async def read() -> None:
            async for _ in pipe.astream({"data": 0}):
                await asyncio.sleep(0)

        task = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_loop(main)


def leave_a_closed_loop(pipe: Pipe) -> None:
    loop = asyncio.new_event_loop()
    chunks = pipe.astream({"data": 0})
    assert loop.run_until_complete(anext(chunks)) == 1
    loop.close()
    del chunks


LEAVES = [value for name, value in sorted(globals().items()) if name.startswith("leave_")]


@pytest.mark.parametrize("leave", LEAVES, ids=lambda leave: leave.__name__)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine method 'aclose':RuntimeWarning")
def test_p10_who_leaves_a_stream_ends_its_request(leave: Callable[[Pipe], None]) -> None:
    """However it leaves: the backend, which waited for it, goes on to its ``finally``, and the instance is free."""
    backend = Endless()
    with Pipe(backend=backend) as pipe:
        leave(pipe)
        gc.collect()
        assert backend.closed.wait(WAIT_S)
        assert backend.saw == [True]
        until(lambda: counts(pipe) == {"cancelled": 1})
        until(lambda: pipe.stats()["nodes"]["main"]["running"] == 0)


def test_a_reader_in_a_loop_that_is_closed_under_it_is_given_up() -> None:
    """The coroutine awaits a chunk, and nobody will ever run it again: what is emitted for it finds that out."""
    go = threading.Event()
    data = [1, lambda: go.wait(WAIT_S), *range(100)]
    with Pipe(backend=Script) as pipe:
        loop = asyncio.new_event_loop()
        chunks = pipe.astream({"data": data}, buffer=2)

        async def two() -> None:
            await anext(chunks)
            await anext(chunks)

        task = loop.create_task(two())
        loop.call_later(0.05, loop.stop)
        loop.run_forever()
        loop.close()
        go.set()
        until(lambda: counts(pipe) == {"cancelled": 1})
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        task.get_coro().close()


def test_a_backend_that_is_blocked_by_a_closed_loop_goes_on() -> None:
    """It looks now and then, as nobody tells it."""
    backend = Endless()
    with Pipe(backend=backend) as pipe:
        loop = asyncio.new_event_loop()
        chunks = pipe.astream({"data": 0}, buffer=2)
        assert loop.run_until_complete(anext(chunks)) == 1
        until(lambda: backend.made >= 4)
        loop.close()
        assert backend.closed.wait(WAIT_S)
        until(lambda: counts(pipe) == {"cancelled": 1})
        with contextlib.suppress(RuntimeError, StopIteration):
            chunks.aclose().send(None)


def test_a_queued_stream_that_is_left_never_runs() -> None:
    """As of any request."""
    backend = Endless()
    with Pipe(backend=backend) as pipe:
        first = pipe.stream({"data": 0})
        assert next(first) == 1
        pipe.stream({"data": 1}).close()
        first.close()
        until(lambda: counts(pipe) == {"cancelled": 2})
        until(lambda: pipe.stats()["nodes"]["main"]["queued"] == 0)
    assert backend.saw == [True]


def test_a_generator_that_does_not_want_to_end_harms_nobody() -> None:
    """It yields on its way out, which Python makes an error of; nobody waits for that request."""

    class Stubborn(Streaming):
        def run(self, request: Request) -> Iterator[int]:
            while request["data"] != "well":
                try:
                    yield 1
                except GeneratorExit:
                    yield 2

    with Pipe(backend=Stubborn) as pipe:
        leave_by_break(pipe)
        assert pipe({"data": "well"})["result"] == []
        assert counts(pipe) == {"cancelled": 1, "done": 1}


def test_a_dropped_pipe_is_freed_with_its_streams() -> None:
    """No cycle keeps the pipe, nor what was streamed."""

    class Chunk:
        pass

    chunk = Chunk()
    gone = weakref.ref(chunk)
    pipe = Pipe(backend=Script)
    chunks = pipe.stream({"data": [chunk, chunk, ValueError("the end")]})
    del chunk
    with pytest.raises(ValueError, match="the end"):
        list(chunks)
    pipe.close()
    alive = weakref.ref(pipe)
    del pipe, chunks
    gc.collect()
    assert alive() is None
    assert gone() is None


# ---- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
def test_time_that_is_over_ends_a_stream_whose_reader_is_slow(asynchronous: bool) -> None:
    """The backend, blocked, is released; what it had emitted is read, and then the error."""
    backend = Endless()
    with Pipe(backend=backend) as pipe:
        if asynchronous:

            async def slow() -> tuple[list[Any], BaseException | None]:
                chunks = pipe.astream({"data": 0}, timeout=0.1, buffer=3)
                assert await anext(chunks) == 1
                await until_set(backend.closed)
                return await aremains(chunks)

            read, error = asyncio.run(slow())
        else:
            chunks = pipe.stream({"data": 0}, timeout=0.1, buffer=3)
            assert next(chunks) == 1
            assert backend.closed.wait(WAIT_S)
            read, error = remains(chunks)
        assert type(error) is RequestTimeout
        assert read == list(range(2, len(read) + 2))
        assert 2 <= len(read) <= 3
        assert backend.saw == [True]
        assert pipe.stats()["failures"] == {"timeout": 1}


def test_time_that_is_over_ends_a_stream_whose_backend_is_slow() -> None:
    """The reader is told at once, though the backend has not come back; one that waits in the queue never runs."""
    go = threading.Event()
    with Pipe(backend=Script) as pipe:
        chunks = pipe.stream({"data": [1, lambda: go.wait(WAIT_S), 2]}, timeout=0.1)
        queued = pipe.stream({"data": [pytest.fail]}, timeout=0.05)
        read, error = remains(chunks)
        assert (read, type(error)) == ([1], RequestTimeout)
        assert type(remains(queued)[1]) is RequestTimeout
        go.set()


@pytest.mark.parametrize("when", ["cancelled", "late", "let in", "closed"])
def test_a_coroutine_s_stream_that_waits_for_room(when: str) -> None:
    """It stands in line as any request does, and blocks no loop meanwhile."""
    backend = Gate()
    pipe = Pipe(backend=backend, max=1, max_queue=1)

    async def main() -> None:
        running = [asyncio.create_task(pipe.acall({"data": 0}))]
        await until_set(backend.inside)
        running.append(asyncio.create_task(pipe.acall({"data": 1})))
        await asyncio.to_thread(until, lambda: pipe.stats()["nodes"]["main"]["queued"] == 1)
        chunks = pipe.astream({"data": 5}, timeout=0.1 if when == "late" else None)
        reading = asyncio.create_task(aremains(chunks))
        await asyncio.to_thread(until, lambda: pipe.arrivals == 1)
        if when == "cancelled":
            reading.cancel()
            await asyncio.wait([reading])
        elif when == "late":
            assert type((await reading)[1]) is RequestTimeout
        elif when == "closed":
            closing = asyncio.create_task(pipe.aclose())
            assert type((await reading)[1]) is PipeClosed
        backend.opened.set()
        await asyncio.gather(*running)
        if when == "let in":
            assert await reading == ([], None)
        if when == "closed":
            await closing
        await pipe.aclose()
        assert pipe.stats()["requests"]["done"] == (3 if when == "let in" else 2)
        assert pipe.stats()["requests"]["in_flight"] == 0

    run_loop(main)


def test_a_stream_for_which_there_is_no_room_is_refused_or_shed() -> None:
    """As ``when_full`` says."""
    for when_full, first_error in (("reject", None), ("shed_oldest", QueueFull)):
        backend = Gate()
        with Pipe(backend=backend, max=1, max_queue=1, when_full=when_full) as pipe:
            running = pipe.stream({"data": 0})
            assert backend.inside.wait(WAIT_S)
            waiting = pipe.stream({"data": 1})
            last = None
            if when_full == "reject":
                with pytest.raises(QueueFull):
                    pipe.stream({"data": 2})
                assert type(asyncio.run(aremains(pipe.astream({"data": 3})))[1]) is QueueFull
            else:
                last = pipe.stream({"data": 2})
            backend.opened.set()
            assert remains(running) == ([], None)
            assert type(remains(waiting)[1]) is (first_error or type(None))
            assert last is None or remains(last) == ([], None)


# ---- closing -------------------------------------------------------------------------------------------------------


def test_closing_waits_for_a_stream_that_is_read() -> None:
    """Every chunk arrives, from a pipe that takes no more requests."""
    pipe = Pipe(backend=Script)
    chunks = pipe.stream({"data": list(range(100))}, buffer=1)
    assert next(chunks) == 0
    closer = threading.Thread(target=pipe.close)
    closer.start()
    until(lambda: pipe.closing)
    assert remains(chunks) == (list(range(1, 100)), None)
    closer.join(WAIT_S)
    assert not closer.is_alive()


@pytest.mark.parametrize("by_reader", [False, True])
def test_closing_ends_a_stream_that_is_not_read(by_reader: bool) -> None:
    """After its timeout, behind what was emitted; without one, at once, where it is the reader who closes."""
    backend = Endless()
    pipe = Pipe(backend=backend)
    chunks = pipe.stream({"data": 0}, buffer=2)
    assert next(chunks) == 1
    if by_reader:
        pipe.close()
    else:
        closer = threading.Thread(target=pipe.close, args=(0.05,))
        closer.start()
        closer.join(WAIT_S)
        assert not closer.is_alive()
    assert backend.closed.wait(WAIT_S)
    read, error = remains(chunks)
    assert type(error) is PipeClosed
    assert read == list(range(2, len(read) + 2))
    pipe.close()


def test_a_coroutine_that_closes_the_pipe_ends_its_own_streams() -> None:
    """Another one's are read to their end."""

    async def main() -> None:
        pipe = Pipe(backend=Script, instance_num=2)
        mine = pipe.astream({"data": list(range(100))})
        assert await anext(mine) == 0
        others = asyncio.create_task(aremains(pipe.astream({"data": list(range(100))})))
        await asyncio.sleep(0)
        await pipe.aclose()
        assert await others == (list(range(100)), None)
        assert type((await aremains(mine))[1]) is PipeClosed

    run_loop(main)
