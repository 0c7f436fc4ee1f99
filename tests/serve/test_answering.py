"""One call: its rows are requests, it ends once, and it takes its parameters along."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("orjson", reason="the extra serve is not installed here")

from helpers import Adds, Gate, run_loop, until, until_set

from fastpipe import Backend, PerRequest, Pipe, QueueFull, Request, RequestTimeout, SequenceError
from fastpipe.serve.answering import Call, WantedOutput, answer, stream
from fastpipe.serve.repository import Model
from fastpipe.serve.signature import Signature, TensorSpec
from fastpipe.serve.statuses import InvalidRequest
from fastpipe.serve.tensors import Tensor

ROWS = Signature(
    (TensorSpec("x", "INT64", (), "data"),), (TensorSpec("y", "INT64", (), "result", labels=("no", "yes")),), 8
)


def model_of(pipe: Any, signature: Signature = ROWS) -> Model:
    return Model("m", "1", pipe, signature)


def rows(*values: int) -> list[Tensor]:
    return [Tensor("x", "INT64", np.array(values, np.int64))]


def test_rows_meet_in_a_batch() -> None:
    """A call of n rows is n requests at once, and the answers are in the rows' order."""
    backend = Adds(max_batch=8)

    async def main() -> None:
        (output,) = await answer(Call(model, rows(*range(8))))
        assert output.array.tolist() == list(range(1, 9))

    with Pipe(backend=backend, max=8) as pipe:
        model = model_of(pipe)
        run_loop(main)
        assert pipe.stats()["requests"]["done"] == 8
    assert max(map(len, backend.batches)) > 1
    assert (model.statistics.rows, model.statistics.succeeded, model.statistics.failed) == (8, 1, 0)


def test_a_row_that_fails_fails_the_call() -> None:
    """With its own error, whose note names the row; the other requests are cancelled or done, none is in flight."""

    async def main() -> None:
        with pytest.raises(ValueError, match="bad 2") as raised:
            await answer(Call(model, rows(1, 2, 3)))
        assert "fastpipe: row 1 of 3" in raised.value.__notes__
        assert pipe.in_flight == 0

    with Pipe(backend=Adds(bad=(2,))) as pipe:
        model = model_of(pipe)
        run_loop(main)
    assert (model.statistics.rows, model.statistics.failed) == (0, 1)


def test_who_leaves_cancels_all_rows() -> None:
    """Cancelling the task cancels what waits, and what runs is told."""
    gate = Gate()

    async def main() -> None:
        task = asyncio.ensure_future(answer(Call(model, rows(1, 2, 3))))
        await until_set(gate.inside)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert model.statistics.cancelled == 1
        gate.opened.set()

    with Pipe(backend=gate, max=1) as pipe:
        model = model_of(pipe)
        run_loop(main)
        until(lambda: pipe.in_flight == 0)
        assert pipe.stats()["requests"]["cancelled"] == 3
    assert len(gate.batches) == 1


def test_timeout_is_in_microseconds() -> None:
    """A request that takes longer fails with RequestTimeout; 0 is no limit."""
    gate = Gate()

    async def main() -> None:
        with pytest.raises(RequestTimeout):
            await answer(Call(model, rows(1), parameters={"timeout": 1000}))
        gate.opened.set()
        await answer(Call(model, rows(1), parameters={"timeout": 0, "priority": -2, "unknown": [1]}))

    with Pipe(backend=gate) as pipe:
        model = model_of(pipe)
        run_loop(main)


@pytest.mark.parametrize(
    "parameters",
    [{"timeout": -1}, {"timeout": "1"}, {"timeout": True}, {"priority": float("nan")}, {"sequence_id": 7}],
)
def test_wrong_parameters(parameters: dict[str, Any]) -> None:
    """They are refused before anything runs."""

    async def main() -> None:
        with pytest.raises(InvalidRequest):
            await answer(Call(model, rows(1), parameters=parameters))

    with Pipe(backend=Adds()) as pipe:
        model = model_of(pipe)
        run_loop(main)
        assert pipe.stats()["requests"]["accepted"] == 0


@pytest.mark.parametrize(
    "parameters",
    [
        {"timeout": 10**400},
        {"timeout": float("inf")},
        {"priority": 10**400},
        {"priority": float("-inf")},
        {"priority": 2**64 - 1},
    ],
)
def test_parameters_beyond_what_a_pipe_takes(parameters: dict[str, Any]) -> None:
    """The protocol's numbers have no end: they are the farthest that there is."""

    async def main() -> None:
        (output,) = await answer(Call(model, rows(1), parameters=parameters))
        assert output.array.tolist() == [2]

    with Pipe(backend=Adds()) as pipe:
        model = model_of(pipe)
        run_loop(main)


def test_priority_goes_along() -> None:
    """The lower one runs first."""
    gate = Gate()

    async def main() -> None:
        first = asyncio.ensure_future(answer(Call(model, rows(0))))
        await until_set(gate.inside)
        calls = [
            asyncio.ensure_future(answer(Call(model, rows(number), parameters={"priority": number})))
            for number in (3, 1, 2)
        ]
        await asyncio.sleep(0)
        while pipe.in_flight < 4:
            await asyncio.sleep(0.001)
        gate.opened.set()
        await asyncio.gather(first, *calls)

    with Pipe(backend=gate, max=1) as pipe:
        model = model_of(pipe)
        run_loop(main)
    assert gate.batches == [[0], [1], [2], [3]]


def test_an_unknown_output_is_found_before_the_pipe_runs() -> None:
    """Nothing is computed for an answer that nobody can be given."""

    async def main() -> None:
        with pytest.raises(InvalidRequest, match="no output is named 'z'"):
            await answer(Call(model, rows(1), [WantedOutput("z")]))

    with Pipe(backend=Adds()) as pipe:
        model = model_of(pipe)
        run_loop(main)
        assert pipe.stats()["requests"]["accepted"] == 0


def test_classification() -> None:
    """The best classes of each row: score, index, and label where there is one."""
    own = Signature(
        (TensorSpec("x", "FP32", (3,), "data"),), (TensorSpec("y", "FP32", (3,), "result", labels=("a", "b")),), 8
    )

    async def main() -> None:
        scores = np.array([[0.1, 0.7, 0.2], [3, 1, 3]], np.float32)
        (output,) = await answer(Call(model, [Tensor("x", "FP32", scores)], [WantedOutput("y", 2)]))
        assert output.datatype == "BYTES"
        assert output.array.tolist() == [[b"0.700000:1:b", b"0.200000:2"], [b"3.000000:0:a", b"3.000000:2"]]

    with Pipe(backend="Identity") as pipe:
        model = model_of(pipe, own)
        run_loop(main)


def test_a_full_queue_is_its_own_error() -> None:
    """The call has what the pipe says."""
    gate = Gate()

    async def main() -> None:
        first = [asyncio.ensure_future(answer(Call(model, rows(0))))]
        await until_set(gate.inside)
        first.append(asyncio.ensure_future(answer(Call(model, rows(1)))))
        while pipe.in_flight < 2:
            await asyncio.sleep(0.001)
        with pytest.raises(QueueFull):
            await answer(Call(model, rows(9)))
        gate.opened.set()
        await asyncio.gather(*first)

    with Pipe(backend=gate, max=1, max_queue=1, when_full="reject") as pipe:
        model = model_of(pipe)
        run_loop(main)


# ---- streams -----------------------------------------------------------------------------------------------------


class Streaming:
    """Stands for a pipe that streams: yields parts, then fails, or has a result."""

    def __init__(self, *parts: Any, error: Exception | None = None, result: Any = None) -> None:
        self.parts = parts
        self.error = error
        self.result = result
        self.terms: dict[str, Any] = {}
        self.is_closed = False

    async def astream(self, request: Request, **terms: Any) -> AsyncGenerator[Any, None]:
        self.terms = terms
        try:
            for part in self.parts:
                yield part
            if self.error is not None:
                raise self.error
            request["result"] = self.result
        finally:
            self.is_closed = True


def test_parts_come_as_they_are() -> None:
    """Each is a set of outputs; those that nobody asked for are left out."""

    async def main() -> None:
        pipe = Streaming("a", {"result": "b", "n": 1})
        own = Signature(outputs=(TensorSpec("text", None, (1,), "result"), TensorSpec("n", None, (1,), "n")))
        call = Call(model_of(pipe, own), [Tensor("data", "INT64", np.array([1]))], parameters={"timeout": 5_000_000})
        got = [{each.name: each.array.tolist() for each in part} async for part in stream(call)]
        assert got == [{"text": [b"a"]}, {"text": [b"b"], "n": 1}]
        assert pipe.terms == {"timeout": 5.0}
        call.wanted = [WantedOutput("n")]
        assert [len(part) async for part in stream(call)] == [0, 1]
        assert call.model.statistics.succeeded == 2

    run_loop(main)


def test_a_stream_without_parts_has_the_whole_answer() -> None:
    """Also of a backend that answers at once."""

    async def main() -> None:
        call = Call(model_of(Streaming(result="all"), Signature()), [Tensor("data", "INT64", np.array([1]))])
        assert [part[0].array.tolist() async for part in stream(call)] == [[b"all"]]

    run_loop(main)


def test_classes_of_parts() -> None:
    """An output that is asked for as classes is that in each part."""

    async def main() -> None:
        call = Call(model_of(Streaming(np.int64(3))), rows(1), [WantedOutput("y", 1)])
        assert [part[0].array.tolist() async for part in stream(call)] == [[[b"3:0:no"]]]

    run_loop(main)


def test_a_stream_that_fails_or_is_left() -> None:
    """The failure comes behind the parts; leaving closes the pipe's stream at once."""

    async def main() -> None:
        tensors = [Tensor("data", "INT64", np.array([1]))]
        failing = Call(model_of(Streaming("a", error=ValueError("bad")), Signature()), tensors)
        parts = stream(failing)
        assert (await anext(parts))[0].array.tolist() == [b"a"]
        with pytest.raises(ValueError, match="bad"):
            await anext(parts)
        assert failing.model.statistics.failed == 1
        left = Call(model_of(Streaming("a", "b"), Signature()), tensors)
        parts = stream(left)
        await anext(parts)
        await parts.aclose()
        assert left.model.pipe.is_closed
        assert left.model.statistics.cancelled == 1

    run_loop(main)


def test_several_rows_are_no_stream() -> None:
    """Nobody could tell whose part is whose."""

    async def main() -> None:
        with pytest.raises(InvalidRequest, match="has 2 rows"):
            await anext(stream(Call(model_of(Streaming()), rows(1, 2))))

    run_loop(main)


class Traced(Backend):
    """The result is the trace in which it runs."""

    def forward(self, batch: list[Request]) -> None:
        from opentelemetry import trace

        for request in batch:
            request["result"] = f"{trace.get_current_span().get_span_context().trace_id:032x}"


def test_the_client_s_trace_goes_on() -> None:
    """What a backend does belongs to the trace that the client has begun."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider

    from fastpipe.observe.traces import trace_pipe

    trace_id = "0af7651916cd43dd8448eb211c80319c"

    async def main() -> None:
        headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
        (output,) = await answer(Call(model, [Tensor("data", "INT64", np.array([1]))], headers=headers))
        assert output.array.tolist() == [trace_id.encode()]

    with Pipe(backend=Traced) as pipe, trace_pipe(pipe, tracer_provider=TracerProvider()):
        model = model_of(pipe, Signature())
        run_loop(main)


# ---- sequences ------------------------------------------------------------------------------------------------------


def test_a_call_belongs_to_the_sequence_that_its_parameters_name() -> None:
    """Its rows in their order: the first begins it, the last ends it. 0 and "" are none."""

    class Adds(PerRequest):
        stateful = True
        max_batch = 4

        def run(self, request: Request) -> None:
            request["state"] = request["result"] = request["data"] + (request["state"] or 0)

    async def ask(count: int, **parameters: Any) -> list[Any]:
        (output,) = await answer(Call(model, rows(*range(count)), parameters=parameters))
        return np.ravel(output.array).tolist()

    async def main() -> None:
        assert await ask(3, sequence_id=7, sequence_start=True, sequence_end=False) == [0, 1, 3]
        assert await ask(2, sequence_id="other", sequence_start=True) == [0, 1]
        assert await ask(3, sequence_id=7, sequence_start=False, sequence_end=True) == [3, 4, 6]
        with pytest.raises(SequenceError, match="sequence 7 has no state"):
            await ask(1, sequence_id=7, sequence_start=False)
        for parameters in ({"sequence_id": 0}, {"sequence_id": ""}, {}):
            with pytest.raises(SequenceError, match=r"must say to which .* parameter sequence_id"):
                await ask(1, **parameters)
        for parameters in ({"sequence_id": 1.5}, {"sequence_id": True}, {"sequence_id": 1, "sequence_end": 1}):
            with pytest.raises(InvalidRequest):
                await ask(1, **parameters)

    with Pipe(backend=Adds, state_of="user") as pipe:
        model = model_of(pipe)
        run_loop(main)
