"""asyncio: requests as awaitables; the loop is never blocked, and is told outcomes once per batch."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest
from helpers import WAIT_S, Gate, opened, run_loop, until_set

from fastpipe import BackendError, Pipe, PipeClosed, Request, UnknownNode


def test_acall_returns_the_callers_own_dict() -> None:
    """Awaited, the request is filled in; no backend ran on the loop's thread."""
    gate = opened()

    async def main() -> None:
        request: Request = {"data": 1}
        assert await pipe.acall(request) is request
        assert request["result"] == 1

    with Pipe(backend=gate) as pipe:
        run_loop(main)
    assert threading.get_ident() not in gate.threads


def test_many_tasks_get_their_own_answers() -> None:
    """500 tasks at once."""

    async def main() -> None:
        answers = await asyncio.gather(*(pipe.acall({"data": index}) for index in range(500)))
        assert [answer["result"] for answer in answers] == list(range(500))

    with Pipe(backend=opened(), next="") as pipe:
        run_loop(main)
        assert pipe.stats()["requests"]["done"] == 500


def test_the_loop_goes_on_while_a_backend_works() -> None:
    """Another coroutine opens the gate that the backend stands in."""
    gate = Gate()

    async def main() -> None:
        task = asyncio.create_task(pipe.acall({"data": 1}))
        await until_set(gate.inside)
        gate.opened.set()
        assert (await task)["result"] == 1

    with Pipe(backend=gate) as pipe:
        run_loop(main)


@pytest.mark.parametrize("error", [ValueError("bad"), KeyError("key")])
def test_an_exception_comes_out_of_await_itself(error: BaseException) -> None:
    """What the backend raised, with its note; a copy, as the request keeps the object itself."""

    async def main() -> None:
        with pytest.raises(type(error)) as raised:
            await pipe.acall({"data": error})
        assert raised.value.args == error.args
        assert any("node 'main'" in note for note in raised.value.__notes__)
        assert not hasattr(error, "__notes__")

    with Pipe(backend=opened()) as pipe:
        run_loop(main)


def test_a_stop_iteration_is_replaced() -> None:
    """It cannot come out of a coroutine; the caller gets an error that has it as its cause."""

    async def main() -> None:
        with pytest.raises(BackendError, match="StopIteration") as raised:
            await pipe.acall({"data": StopIteration("stop")})
        assert isinstance(raised.value.__cause__, StopIteration)

    with Pipe(backend=opened()) as pipe:
        run_loop(main)


def test_one_failing_task_of_a_batch_fails_alone() -> None:
    """Four tasks in one batch."""
    gate = Gate()

    async def main() -> None:
        first = asyncio.create_task(pipe.acall({"data": "first"}))
        await until_set(gate.inside)
        tasks = [asyncio.create_task(pipe.acall({"data": data})) for data in (1, ValueError("bad"), 2)]
        await asyncio.sleep(0)
        gate.opened.set()
        outcomes = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [dict, dict, ValueError, dict]

    with Pipe(backend=gate, batching="greedy") as pipe:
        run_loop(main)


def test_what_is_no_request_is_refused_at_once() -> None:
    """TypeError, UnknownNode and PipeClosed are raised by the call itself."""
    pipe = Pipe(backend=opened())

    async def main() -> None:
        with pytest.raises(TypeError):
            await pipe.acall([{"data": 1}])  # type: ignore[arg-type]
        with pytest.raises(UnknownNode):
            await pipe.acall({"data": 1, "node_name": "nobody"})
        pipe.close()
        with pytest.raises(PipeClosed):
            await pipe.acall({"data": 1})

    run_loop(main)
    assert pipe.stats()["requests"]["accepted"] == 0


# ---- cancelling ------------------------------------------------------------------------------------------------------


def test_cancelling_a_task_cancels_its_queued_request() -> None:
    """The backend never sees it, the dict is untouched, the counters know."""
    gate = Gate()
    request: Request = {"data": "cancelled", "result": "old"}

    async def main() -> None:
        first = asyncio.create_task(pipe.acall({"data": "first"}))
        await until_set(gate.inside)
        task = asyncio.create_task(pipe.acall(request))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.opened.set()
        await first

    with Pipe(backend=gate) as pipe:
        run_loop(main)
        counts = pipe.stats()["requests"]
    assert counts["cancelled"] == 1
    assert counts["done"] == 1
    assert gate.batches == [["first"]]
    assert request == {"data": "cancelled", "result": "old"}


def test_cancelling_a_task_releases_it_while_the_backend_runs_on() -> None:
    """The awaiting task ends at once; what the backend makes is dropped."""
    gate = Gate()
    request: Request = {"data": 1}

    async def main() -> None:
        task = asyncio.create_task(pipe.acall(request))
        await until_set(gate.inside)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not gate.opened.is_set()
        gate.opened.set()
        assert (await pipe.acall({"data": 2}))["result"] == 2

    with Pipe(backend=gate) as pipe:
        run_loop(main)
        assert pipe.stats()["requests"]["cancelled"] == 1
    assert request == {"data": 1}


def test_a_timeout_cancels_the_request() -> None:
    """asyncio.timeout works as with any awaitable."""
    gate = Gate()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await pipe.acall({"data": 1})
        gate.opened.set()

    with Pipe(backend=gate) as pipe:
        run_loop(main)
        assert pipe.stats()["requests"]["cancelled"] == 1


def test_closing_a_coroutine_cancels_its_request() -> None:
    """A coroutine that is thrown away while it waits does not leave its request behind."""
    gate = Gate()

    async def main() -> None:
        first = asyncio.create_task(pipe.acall({"data": "first"}))
        await until_set(gate.inside)
        coroutine = pipe.acall({"data": "thrown away"})
        coroutine.send(None)
        coroutine.close()
        gate.opened.set()
        await first

    with Pipe(backend=gate) as pipe:
        run_loop(main)
    assert gate.batches == [["first"]]
    assert pipe.stats()["requests"]["cancelled"] == 1


def test_random_cancels_lose_nobody() -> None:
    """Every second task is cancelled at some moment: the others are answered, the counters add up."""

    async def main() -> None:
        tasks = []
        for index in range(400):
            tasks.append(asyncio.create_task(pipe.acall({"data": index})))
            if index % 2:
                asyncio.get_running_loop().call_later(0.0001 * (index % 7), tasks[-1].cancel)
            if index % 10 == 0:
                await asyncio.sleep(0)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, dict):
                assert outcome["result"] == index
            else:
                assert index % 2
                assert isinstance(outcome, asyncio.CancelledError)

    with Pipe(backend=opened()) as pipe:
        run_loop(main)
    counts = pipe.stats()["requests"]
    assert counts["accepted"] == 400 == counts["done"] + counts["cancelled"]


# ---- the loop --------------------------------------------------------------------------------------------------------


def test_a_loop_that_was_closed_early_makes_no_noise(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Outcomes for a loop that is gone are dropped; worker and pipe live on, nothing is printed."""
    gate = Gate()
    with Pipe(backend=gate) as pipe:
        loop = asyncio.new_event_loop()
        futures = [loop.create_future() for _ in range(20)]
        walks = [pipe._start_async({"data": index}, loop, future, None) for index, future in enumerate(futures)]
        assert gate.inside.wait(WAIT_S)
        loop.close()
        gate.opened.set()
        assert pipe({"data": "after"})["result"] == "after"
        assert all(walk.wait() is None for walk in walks)
        del futures, walks
        gc.collect()
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_one_call_into_the_loop_per_batch() -> None:
    """call_soon_threadsafe is called at most once per batch, not once per request."""
    gate = Gate()
    calls = 0

    async def main() -> None:
        nonlocal calls
        loop = asyncio.get_running_loop()
        first = asyncio.create_task(pipe.acall({"data": "first"}))
        await until_set(gate.inside)
        tasks = [asyncio.create_task(pipe.acall({"data": index})) for index in range(64)]
        await asyncio.sleep(0)
        original = loop.call_soon_threadsafe

        def counting(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            return original(*arguments, **keywords)

        loop.call_soon_threadsafe = counting  # type: ignore[method-assign,assignment]
        try:
            gate.opened.set()
            await asyncio.gather(first, *tasks)
        finally:
            loop.call_soon_threadsafe = original  # type: ignore[method-assign]

    with Pipe(backend=gate) as pipe:
        run_loop(main)
        stats = pipe.stats()["nodes"]["main"]
    assert stats["batches"] == 9
    assert 1 <= calls <= 9
    assert 1 <= stats["gil_acquires"] <= 9


def test_two_loops_in_two_threads_share_a_pipe() -> None:
    """Each loop gets its own outcomes, also where both have requests in one batch."""
    failures: list[BaseException] = []

    async def client(number: int) -> None:
        for index in range(20):
            requests = [{"data": (number, index, each)} for each in range(10)]
            answers = await asyncio.gather(*(pipe.acall(request) for request in requests))
            assert [answer["result"] for answer in answers] == [request["data"] for request in requests]

    def thread(number: int) -> None:
        try:
            asyncio.run(client(number))
        except BaseException as failure:
            failures.append(failure)

    with Pipe(backend=opened()) as pipe:
        threads = [threading.Thread(target=thread, args=(number,)) for number in range(2)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(WAIT_S)
        assert pipe.stats()["requests"]["done"] == 400
    assert not failures


def test_an_asyncio_request_runs_through_a_graph() -> None:
    """Fan-out, join and MapReduce."""

    async def main() -> None:
        answers = await asyncio.gather(*(pipe.acall({"data": [index, index + 1]}) for index in range(20)))
        assert [answer["result"] for answer in answers] == [[index**2, (index + 1) ** 2] for index in range(20)]
        assert all("other" in answer for answer in answers)

    with Pipe(
        a={"backend": "Identity", "next": "b,c"},
        b={"backend": "MapReduce", "jump": "pow", "next": "d"},
        c={"backend": "Identity", "next": "d"},
        d={"backend": "Identity", "map": "b[result:data],c[result:other]"},
        pow={"backend": "Pow"},
    ) as pipe:
        run_loop(main)


def test_closing_with_a_deadline_fails_what_is_awaited() -> None:
    """PipeClosed comes out of await."""
    gate = Gate()
    pipe = Pipe(backend=gate)

    async def main() -> None:
        tasks = [asyncio.create_task(pipe.acall({"data": index})) for index in range(3)]
        await until_set(gate.inside)
        await asyncio.to_thread(pipe.close, 0.0)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [PipeClosed] * 3
        gate.opened.set()

    run_loop(main)
    pipe.close()


def test_nothing_is_kept_of_an_awaited_request() -> None:
    """Without the cyclic garbage collector, the value is gone when the task is."""

    class Value:
        pass

    references: list[weakref.ref[Value]] = []

    async def main() -> None:
        for _ in range(5):
            value = Value()
            references.append(weakref.ref(value))
            await pipe.acall({"data": value})
            del value

    gate = opened()
    gc.disable()
    try:
        with Pipe(backend=gate) as pipe:
            run_loop(main)
        gate.batches.clear()  # the workers have ended: nobody is about to let go of something
        assert [reference() for reference in references] == [None] * 5
    finally:
        gc.enable()
