"""``async with pipe``, ``aclose`` and ``amap``; and the way for anyio and trio, as docs/calling.md has it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from helpers import WAIT_S, Gate, opened, run_loop, until_set

import fastpipe
from fastpipe import Backend, Pipe, PipeClosed, Request


async def closed_while_busy() -> tuple[Gate, Pipe, asyncio.Task[Request], asyncio.Task[None]]:
    """Return a gate, its pipe, the task of a request that stands in it, and that of ``aclose()``."""
    gate = Gate()
    pipe = Pipe(backend=gate)
    answer = asyncio.create_task(pipe.acall({"data": 1}))
    await until_set(gate.inside)
    closing = asyncio.create_task(pipe.aclose())
    while not pipe.closing:
        await asyncio.sleep(0)
    return gate, pipe, answer, closing


# ---- closing ---------------------------------------------------------------------------------------------------------


def test_async_with_closes_the_pipe_at_the_end_of_the_block() -> None:
    """Also if the block raises."""

    async def main() -> None:
        async with Pipe(backend=opened()) as pipe:
            assert (await pipe.acall({"data": 1}))["result"] == 1
        assert pipe.closing
        with pytest.raises(ZeroDivisionError):
            async with Pipe(backend=opened()) as pipe:
                1 / 0  # noqa: B018
        assert pipe.closing

    run_loop(main)


def test_aclose_drains_while_the_loop_goes_on() -> None:
    """The request in flight is answered by what the loop does meanwhile; new ones are refused at once."""

    async def main() -> None:
        gate, pipe, answer, closing = await closed_while_busy()
        with pytest.raises(PipeClosed):
            await pipe.acall({"data": 2})
        assert not closing.done()
        gate.opened.set()
        await closing
        assert (await answer)["result"] == 1
        await pipe.aclose()  # again, and after close()
        assert pipe.stats()["requests"]["in_flight"] == 0

    run_loop(main)


def test_aclose_with_a_time_limit_fails_what_is_left() -> None:
    """As close(timeout) does; it returns although the backend is still inside."""

    async def main() -> None:
        gate = Gate()
        pipe = Pipe(backend=gate)
        answer = asyncio.create_task(pipe.acall({"data": 1}))
        await until_set(gate.inside)
        await pipe.aclose(timeout=0)
        with pytest.raises(PipeClosed):
            await answer
        gate.opened.set()

    run_loop(main)


def test_cancelling_aclose_ends_the_waiting_and_not_the_closing() -> None:
    """The task is free at once; the pipe is closed when its requests have ended."""

    async def main() -> None:
        gate, pipe, answer, closing = await closed_while_busy()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        gate.opened.set()
        assert (await answer)["result"] == 1
        await pipe.aclose()
        assert not any(thread.name.startswith("fastpipe main") for thread in threading.enumerate())

    run_loop(main)


def test_what_a_backend_raises_when_it_is_closed_is_raised_by_aclose() -> None:
    """As by close()."""

    class Stubborn(Backend):
        def forward(self, batch: list[Request]) -> None:
            batch[0]["result"] = 1

        def close(self) -> None:
            raise RuntimeError("not me")

    async def main() -> None:
        with pytest.raises(RuntimeError, match="not me"):
            await Pipe(backend=Stubborn).aclose()

    run_loop(main)


@pytest.mark.parametrize("timeout", ["1", True, b"1", [1]])
def test_a_time_to_close_that_is_no_number_is_refused_before_anything_is_closed(timeout: Any) -> None:
    """By both ways of closing; so is nan."""

    async def main() -> None:
        async with Pipe(backend=opened()) as pipe:
            for wrong, kind in ((timeout, TypeError), (float("nan"), ValueError)):
                with pytest.raises(kind, match="timeout must be a number of seconds, or None for no limit; got"):
                    await pipe.aclose(wrong)
                with pytest.raises(kind, match="timeout must be a number of seconds, or None for no limit; got"):
                    pipe.close(wrong)
            assert not pipe.closing

    run_loop(main)


# ---- amap ------------------------------------------------------------------------------------------------------------


async def asynchronous(items: Any, taken: list[Any] | None = None) -> AsyncIterator[Request]:
    for item in items:
        await asyncio.sleep(0)
        if taken is not None:
            taken.append(item)
        yield {"data": item}


def synchronous(items: Any, taken: list[Any] | None = None) -> Iterator[Request]:
    for item in items:
        if taken is not None:
            taken.append(item)
        yield {"data": item}


async def collect(answers: AsyncIterator[Any], results: list[Any]) -> None:
    async for answer in answers:
        results.append(answer["result"])


SOURCES = [synchronous, asynchronous]


@pytest.mark.parametrize("source", SOURCES)
def test_amap_yields_all_answers_in_order(source: Any) -> None:
    """Of an iterable and of an asynchronous one; also of nothing."""

    async def main() -> None:
        async with Pipe(backend=opened()) as pipe:
            assert [answer["result"] async for answer in pipe.amap(source(range(200)))] == list(range(200))
            assert [answer async for answer in pipe.amap(source(()))] == []
            assert [answer["data"] async for answer in pipe.amap([{"data": 1}], timeout=WAIT_S, priority=-1)] == [1]

    run_loop(main)


@pytest.mark.parametrize("source", SOURCES)
def test_amap_takes_no_more_than_it_looks_ahead(source: Any) -> None:
    """Of an endless source; while nobody asks for the next answer, nothing more is taken."""
    taken: list[int] = []

    async def main() -> None:
        async with Pipe(backend=opened()) as pipe:
            async with contextlib.aclosing(pipe.amap(source(iter(int, 1), taken), look_ahead=3)) as answers:
                for count in range(1, 20):
                    await anext(answers)
                    for _ in range(5):
                        await asyncio.sleep(0)
                    assert len(taken) <= count + 3
            assert pipe.stats()["requests"]["in_flight"] == 0

    run_loop(main)


def test_amap_yields_what_has_ended_while_the_source_lets_wait() -> None:
    """An answer is not held back until the look-ahead is full: the next request may come because of it."""

    async def main() -> None:
        queue: asyncio.Queue[int | None] = asyncio.Queue()

        async def conversation() -> AsyncIterator[Request]:
            while (item := await queue.get()) is not None:
                yield {"data": item}

        said = []
        queue.put_nowait(0)
        async with Pipe(backend=opened()) as pipe:
            async for answer in pipe.amap(conversation(), look_ahead=8):
                said.append(answer["result"])
                queue.put_nowait(answer["result"] + 1 if answer["result"] < 5 else None)
        assert said == [0, 1, 2, 3, 4, 5]

    run_loop(main)


def test_leaving_amap_cancels_what_is_left() -> None:
    """With aclosing, when the block ends: nothing of it is in flight, no backend sees it, and the source is left."""

    async def main() -> None:
        gate = opened()
        goes_on, left = asyncio.Event(), asyncio.Event()

        async def endless() -> AsyncIterator[Request]:
            try:
                yield {"data": 0}
                await goes_on.wait()
                for number in range(1, 20):
                    yield {"data": number}
                await asyncio.Event().wait()
            finally:
                left.set()

        async with Pipe(backend=gate, max=1) as pipe:
            async with contextlib.aclosing(pipe.amap(endless(), look_ahead=30)) as answers:
                async for answer in answers:
                    assert answer["result"] == 0
                    break
                gate.opened.clear()
                gate.inside.clear()
                goes_on.set()
                following = asyncio.create_task(anext(answers))  # takes as many as it may
                await until_set(gate.inside)
                while pipe.in_flight < 19:
                    await asyncio.sleep(0)
                following.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await following
            assert left.is_set()
            assert pipe.stats()["requests"]["in_flight"] == 0
            assert pipe.stats()["requests"]["cancelled"] == 19
            gate.opened.set()
        assert gate.batches == [[0], [1]]  # of what was cancelled only the one that was inside

    run_loop(main)


def test_a_failure_ends_amap_in_its_place_or_is_yielded() -> None:
    """What comes before it is yielded, what was taken ahead is cancelled; with return_exceptions all goes on."""

    async def main() -> None:
        async with Pipe(backend=opened(), max=1) as pipe:
            got: list[Any] = []
            with pytest.raises(ZeroDivisionError):
                await collect(pipe.amap(synchronous([1, 2, ZeroDivisionError("three"), 4])), got)
            assert got == [1, 2]
            answers = [each async for each in pipe.amap(synchronous([1, KeyError(2), 3]), return_exceptions=True)]
            assert [type(each) for each in answers] == [dict, KeyError, dict]

    run_loop(main)


@pytest.mark.parametrize("source", SOURCES)
def test_what_the_source_raises_comes_behind_the_answers_of_what_it_gave(source: Any) -> None:
    """Also with return_exceptions: it is nobody's answer."""

    def items() -> Iterator[int]:
        yield from range(5)
        raise LookupError("the source")

    async def main() -> None:
        async with Pipe(backend=opened()) as pipe:
            for returns in (False, True):
                got: list[Any] = []
                with pytest.raises(LookupError, match="the source"):
                    await collect(pipe.amap(source(items()), return_exceptions=returns), got)
                assert got == list(range(5))

    run_loop(main)


def test_amap_of_a_pipe_that_is_closed_ends() -> None:
    """It does not yield PipeClosed for each of an endless source's requests."""

    async def main() -> None:
        pipe = Pipe(backend=opened())
        answers = pipe.amap(({"data": number} for number in iter(int, 1)), return_exceptions=True, look_ahead=2)
        await anext(answers)
        await pipe.aclose()
        with pytest.raises(PipeClosed):
            async for _ in answers:
                pass

    run_loop(main)


def test_another_pipe_that_is_closed_ends_no_amap() -> None:
    """What a backend raises is its request's failure, whatever its type; as with map."""
    inner = Pipe(backend="Identity")
    inner.close()
    requests = [{"data": number} for number in range(4)]

    async def main() -> None:
        with Pipe(backend=lambda number: inner({"data": number}) if number == 1 else number) as pipe:
            answers = [type(each) async for each in pipe.amap(requests, return_exceptions=True)]
            assert answers == [dict, PipeClosed, dict, dict]
            assert [type(each) for each in pipe.map(requests, return_exceptions=True)] == answers

    run_loop(main)


def test_arguments_of_amap_are_checked_when_it_is_called() -> None:
    """As those of map: before anything is awaited."""
    with Pipe(backend=opened()) as pipe:
        for way in (pipe.map, pipe.amap):
            for keywords, kind, words in (
                ({"look_ahead": 0}, ValueError, "at least 1, got 0"),
                ({"look_ahead": "2"}, TypeError, "look_ahead must be a whole number of requests, at least 1; got '2'"),
                ({"timeout": "1"}, TypeError, "timeout must be a number of seconds, more than 0; got '1'"),
                ({"priority": "high"}, TypeError, "priority must be a number from -1000 to 1000"),
            ):
                with pytest.raises(kind, match=words):
                    way([], **keywords)  # type: ignore[call-overload,operator]


def test_a_batched_function_maps_and_closes_asynchronously() -> None:
    """amap takes items of both kinds of iterables, and yields results."""
    double = fastpipe.batched(max=4)(lambda items: [item * 2 for item in items])

    async def numbers() -> AsyncIterator[int]:
        for number in range(20):
            yield number

    async def main() -> None:
        expected = [number * 2 for number in range(20)]
        assert [result async for result in double.amap(range(20))] == expected
        assert [result async for result in double.amap(numbers())] == expected
        await double.aclose()
        assert double.pipe.closing

    run_loop(main)


# ---- anyio and trio --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["asyncio", "trio"])
def run_by_anyio(request: pytest.FixtureRequest) -> Callable[..., Any]:
    anyio = pytest.importorskip("anyio", reason="anyio is not installed here")
    pytest.importorskip(request.param, reason=f"{request.param} is not installed here")
    return lambda main, *arguments: anyio.run(main, *arguments, backend=request.param)


async def call(pipe: Pipe, request: Request, **terms: Any) -> Request:
    """As in docs/calling.md."""
    from anyio import to_thread

    future = pipe.submit(request, **terms)
    try:
        return await to_thread.run_sync(future.result, abandon_on_cancel=True)
    except BaseException:  # cancelled, mostly; a request that has ended does not mind
        future.cancel()
        raise


def test_the_documented_way_for_anyio_calls_and_fails_as_acall_does(run_by_anyio: Callable[..., Any]) -> None:
    """Many tasks, each its answer; a backend's exception; under asyncio and under trio."""
    import anyio

    answers: dict[int, Any] = {}

    async def one(pipe: Pipe, number: int) -> None:
        answers[number] = (await call(pipe, {"data": number}))["result"]

    async def main() -> None:
        with Pipe(backend=opened()) as pipe:
            async with anyio.create_task_group() as tasks:
                for number in range(100):
                    tasks.start_soon(one, pipe, number)
            with pytest.raises(ZeroDivisionError):
                await call(pipe, {"data": ZeroDivisionError()})

    run_by_anyio(main)
    assert answers == {number: number for number in range(100)}


def test_the_documented_way_for_anyio_can_be_cancelled(run_by_anyio: Callable[..., Any]) -> None:
    """A queued request is never run, and its thread is free; the one that runs is let go at once."""
    import anyio

    gate = Gate()

    async def main() -> None:
        with Pipe(backend=gate, max=1) as pipe:
            with anyio.move_on_after(WAIT_S):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(call, pipe, {"data": "running"})
                    tasks.start_soon(call, pipe, {"data": "queued"})
                    await anyio.to_thread.run_sync(gate.inside.wait, WAIT_S)
                    while pipe.in_flight < 2:
                        await anyio.sleep(0)
                    tasks.cancel_scope.cancel()
            gate.opened.set()
        assert pipe.stats()["requests"]["cancelled"] >= 1

    run_by_anyio(main)
    assert gate.batches in ([["running"]], [["queued"]])
