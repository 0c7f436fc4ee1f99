"""ModelStreamInfer: ids, order, failures, bounds, parts, and how a stream ends."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers import WAIT_S, Gate, until

from fastpipe import Backend, Pipe, Request, Streaming

pytest.importorskip("grpc", reason="grpcio is not installed here")
pytest.importorskip("orjson", reason="orjson is not installed here")
pytest.importorskip("google.protobuf", reason="protobuf is not installed here")
import grpc
from grpc_serving import Served, served

from fastpipe.serve import grpc_streams
from fastpipe.serve.grpc_desk import Desk
from fastpipe.serve.grpc_messages import inference


class Echo(Backend):
    """Answers what it was given; raises for b"bad"."""

    keeps_input = True

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            if request["data"] == b"bad":
                raise ValueError("bad")
            request["result"] = request["data"]


class Parts(Streaming):
    """Hands on the numbers below its data, then fails if that is negative."""

    handed = 0
    left = 0
    width = 1

    def run(self, request: Request) -> Iterator[Any]:
        try:
            for number in range(abs(int(request["data"]))):
                self.handed += 1
                yield np.full(self.width, number)
            if request["data"] < 0:
                raise ValueError("negative")
        finally:
            self.left += 1


@pytest.fixture
def models() -> Iterator[tuple[Served, Any, Any]]:
    """A server of "echo"; of "gate", which stands still until it is opened; and of "parts", which streams."""
    gate = Gate()
    gate.max_batch = 1
    parts = Parts()
    pipes = {
        "echo": Pipe({"echo": {"backend": Echo}}),
        "gate": Pipe({"gate": {"backend": gate}}),
        "parts": Pipe({"parts": {"backend": parts}}),
    }
    try:
        with served(pipes) as made:
            try:
                yield made, gate, {**pipes, "parts": parts}
            finally:
                gate.opened.set()
    finally:
        for pipe in pipes.values():
            pipe.close(WAIT_S)


class Stream:
    """A stream without tritonclient, which hides the ids of failures."""

    def __init__(self, served: Served) -> None:
        self.channel = grpc.insecure_channel(served.address)
        self.sent: queue.Queue[Any] = queue.Queue()
        call = self.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        self.call = call(iter(self.sent.get, None), timeout=WAIT_S)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.sent.put(None)
        self.channel.close()

    def ask(self, model: str, data: bytes | int, id: str = "", **parameters: bool) -> None:
        request = inference()["ModelInferRequest"](model_name=model, id=id)
        for key, value in parameters.items():
            request.parameters[key].bool_param = value
        is_bytes = isinstance(data, bytes)
        request.inputs.add(name="data", datatype="BYTES" if is_bytes else "INT64", shape=[1] if is_bytes else [])
        request.raw_input_contents.append(
            len(data).to_bytes(4, "little") + data if isinstance(data, bytes) else np.int64(data).tobytes()
        )
        self.sent.put(request.SerializeToString())

    def answers(self, count: int) -> list[Any]:
        """The next ones."""
        return [inference()["ModelStreamInferResponse"].FromString(next(self.call)) for _ in range(count)]

    def end(self) -> list[Any]:
        """Say that no more is asked, and return what still comes."""
        self.sent.put(None)
        return [inference()["ModelStreamInferResponse"].FromString(each) for each in self.call]


def ids(answers: list[Any]) -> list[str]:
    return [each.infer_response.id for each in answers]


def is_final(answer: Any) -> bool:
    return bool(answer.infer_response.parameters["triton_final_response"].bool_param)


def test_each_answer_has_its_requests_id(models: Any) -> None:
    """And says that there are no more of it."""
    with Stream(models[0]) as stream:
        for number in range(20):
            stream.ask("echo", b"x", f"id {number}")
        answers = stream.end()
    assert ids(answers) == [f"id {number}" for number in range(20)]
    assert all(map(is_final, answers))
    assert answers[3].infer_response.raw_output_contents[0] == b"\1\0\0\0x"


def test_answers_come_in_the_order_of_their_requests(models: Any) -> None:
    """As in Triton, where clients without ids count on it, although the requests run at the same time."""
    made, gate, pipes = models
    with Stream(made) as stream:
        stream.ask("gate", b"slow", "slow")
        stream.ask("echo", b"quick", "quick")
        stream.ask("echo", b"bad", "bad")
        until(lambda: pipes["echo"].stats()["requests"]["failed"] == 1)  # both have ended before the first
        assert gate.inside.is_set()
        gate.opened.set()
        assert ids(stream.end()) == ["slow", "quick", "bad"]


def test_a_failure_ends_its_request_and_not_the_stream(models: Any) -> None:
    """A backend's exception, a model that is not there, a message that is none."""
    with Stream(models[0]) as stream:
        stream.ask("echo", b"bad", "1")
        stream.ask("none", b"x", "2")
        stream.sent.put(b"\xff\xff")
        stream.ask("echo", b"good", "4")
        answers = stream.end()
    assert ids(answers) == ["1", "2", "", "4"]
    words = [each.error_message for each in answers]
    assert words[0] == "ValueError: bad"
    assert words[1].startswith("no model is named 'none'")
    assert words[2].startswith("the request is no ModelInferRequest")
    assert words[3] == ""
    assert all(is_final(each) for each in answers[:2])


def test_requests_in_flight_of_a_stream_are_bounded(models: Any) -> None:
    """What is more is not read: gRPC's flow control has the client wait."""
    made, gate, pipes = models
    most = grpc_streams.MOST_IN_FLIGHT
    with Stream(made) as stream:
        for number in range(most + 20):
            stream.ask("gate", b"x", str(number))
        until(lambda: pipes["gate"].stats()["requests"]["in_flight"] == most)
        made.run(asyncio.sleep(0.05))
        assert pipes["gate"].stats()["requests"]["accepted"] == most
        gate.opened.set()
        assert ids(stream.end()) == [str(number) for number in range(most + 20)]


def test_cancelling_a_stream_cancels_its_requests(models: Any) -> None:
    """Those that had not begun never run."""
    made, gate, pipes = models
    with Stream(made) as stream:
        for _ in range(3):
            stream.ask("gate", b"x")
        until(lambda: pipes["gate"].stats()["requests"]["in_flight"] == 3)
        stream.call.cancel()
        until(lambda: pipes["gate"].stats()["requests"]["cancelled"] >= 2)
    gate.opened.set()
    until(lambda: pipes["gate"].stats()["requests"]["in_flight"] == 0)
    assert len(gate.batches) == 1


def test_stopping_answers_what_a_stream_has_begun(models: Any) -> None:
    """Then the stream ends, with UNAVAILABLE; it would else stay for ever."""
    made, gate, _ = models
    with Stream(made) as stream:
        stream.ask("gate", b"x", "begun")
        assert gate.inside.wait(WAIT_S)
        stopping = asyncio.run_coroutine_threadsafe(made.server.stop(WAIT_S), made.loop)
        gate.opened.set()
        assert ids(stream.answers(1)) == ["begun"]
        with pytest.raises(grpc.RpcError) as caught:
            next(stream.call)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in caught.value.details()
        stopping.result(WAIT_S)


def test_an_idle_stream_does_not_hold_up_the_stop(models: Any) -> None:
    """Nothing is in flight in it."""
    made, _, _ = models
    with Stream(made) as stream:
        stream.ask("echo", b"x")
        stream.answers(1)
        made.run(made.server.stop(WAIT_S))
        with pytest.raises(grpc.RpcError) as caught:
            next(stream.call)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


# ---- parts -----------------------------------------------------------------------------------------------------------


def numbers(answers: list[Any]) -> list[int]:
    return [int(np.frombuffer(raw, np.int64)[0]) for each in answers for raw in each.infer_response.raw_output_contents]


def test_parts_are_answers_of_their_own(models: Any) -> None:
    """Each with the request's id; whoever asks for it is told of the end by an answer without outputs."""
    with Stream(models[0]) as stream:
        stream.ask("parts", 3, "quiet")
        assert numbers(answers := stream.answers(3)) == [0, 1, 2]
        assert ids(answers) == ["quiet"] * 3
        assert not any(map(is_final, answers))
        stream.ask("parts", 2, "told", triton_enable_empty_final_response=True)
        answers = stream.end()
    assert numbers(answers) == [0, 1]
    assert ids(answers) == ["told"] * 3
    assert [is_final(each) for each in answers] == [False, False, True]


def test_a_failure_comes_behind_the_parts_before_it(models: Any) -> None:
    """It is the end of its request."""
    with Stream(models[0]) as stream:
        stream.ask("parts", -2, "7", triton_enable_empty_final_response=True)
        answers = stream.end()
    assert numbers(answers) == [0, 1]
    assert answers[-1].error_message == "ValueError: negative"
    assert (ids(answers), len(answers), is_final(answers[-1])) == (["7"] * 3, 3, True)


def test_other_answers_need_not_wait_for_a_long_stream(models: Any) -> None:
    """Nor do streams for answers that are not there yet."""
    made, gate, _ = models
    with Stream(made) as stream:
        stream.ask("gate", b"x", "slow")
        stream.ask("parts", 2, "parts", triton_enable_empty_final_response=True)
        assert ids(stream.answers(3)) == ["parts"] * 3
        gate.opened.set()
        assert ids(stream.end()) == ["slow"]
    with Stream(made) as stream:
        stream.ask("parts", 10**9, "endless")
        stream.ask("echo", b"x", "short")
        while ids(stream.answers(1)) != ["short"]:
            pass
        stream.call.cancel()
    until(lambda: models[2]["parts"].left == 2)


def test_a_slow_reader_holds_up_the_backend(models: Any) -> None:
    """Of an endless answer that nobody reads, a bounded number of parts is made; leaving ends it."""
    made, _, pipes = models
    pipes["parts"].width = 100_000  # the windows of flow control are soon full
    with Stream(made) as stream:
        stream.ask("parts", 10**9)
        stream.answers(1)
        before = -1
        while pipes["parts"].handed != before:  # until no more are made
            before = pipes["parts"].handed
            made.run(asyncio.sleep(0.2))
        assert pipes["parts"].left == 0
        stream.call.cancel()
        until(lambda: pipes["parts"].left == 1)


LARGE = b"x" * (1 << 20)
"""More of these than a few fill all windows of flow control."""


@pytest.mark.parametrize("model", ["echo", "parts"])
def test_a_client_that_reads_nothing_loses_its_stream(model: str) -> None:
    """After some time; meanwhile it costs no more than the limit says, and others are served. Its requests end."""
    parts, most_bytes = Parts(), 10 << 20
    parts.width = 100_000
    with (
        Pipe({"echo": {"backend": Echo}}) as echo,
        Pipe({"parts": {"backend": parts}}) as streaming,
        served({"echo": echo, "parts": streaming}, buffered_bytes=most_bytes, write_s=0.4) as made,
        Stream(made) as silent,
        Stream(made) as other,
    ):
        for number in range(40):
            silent.ask(model, LARGE if model == "echo" else 10**9, str(number))
        for _ in range(3):
            other.ask("echo", b"x")
            assert other.answers(1)[0].infer_response.raw_output_contents[0][4:] == b"x"
            assert made.service.budget.used_bytes <= most_bytes
        until(lambda: made.service.budget.used_bytes == 0)
        until(lambda: echo.stats()["requests"]["in_flight"] + streaming.stats()["requests"]["in_flight"] == 0)
        with pytest.raises(grpc.RpcError) as caught:
            silent.end()
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert caught.value.details() == "nothing of an answer was taken for 0.4 s"


class Large(Backend):
    """Answers everything with a megabyte."""

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = LARGE


def test_answers_that_wait_are_counted() -> None:
    """Small requests may have large answers; one for which there is no room fails, in words, and the stream goes on."""
    with (
        Pipe({"large": {"backend": Large}}) as pipe,
        served({"large": pipe}, buffered_bytes=5 << 20) as made,
        Stream(made) as stream,
    ):
        for number in range(40):
            stream.ask("large", b"x", str(number))
        until(lambda: pipe.stats()["requests"]["done"] == 40)
        answers = stream.end()
        until(lambda: made.service.budget.used_bytes == 0)
    assert ids(answers) == [str(number) for number in range(40)]
    good = [each for each in answers if not each.error_message]
    assert 4 <= len(good) < 40
    assert all(len(each.infer_response.raw_output_contents[0]) == 4 + len(LARGE) for each in good)
    failed = {each.error_message for each in answers if each.error_message}
    assert failed == {"the server holds as many bytes of requests as it may"}


def test_tritonclients_stream(models: Any) -> None:
    """Its own reading of answers, of failures, and of parts."""
    client_of = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed here")
    came: queue.Queue[Any] = queue.Queue()
    with client_of.InferenceServerClient(models[0].address) as client:
        client.start_stream(lambda result, error: came.put((result, error)))
        try:
            given = client_of.InferInput("data", [1], "BYTES")
            given.set_data_from_numpy(np.array([b"x"], object))
            client.async_stream_infer("echo", [given], request_id="1")
            result, error = came.get(timeout=WAIT_S)
            assert error is None
            assert (result.get_response().id, result.as_numpy("result").tolist()) == ("1", [b"x"])
            given.set_data_from_numpy(np.array([b"bad"], object))
            client.async_stream_infer("echo", [given], request_id="2")
            result, error = came.get(timeout=WAIT_S)
            assert str(error) == "ValueError: bad"
            count = client_of.InferInput("data", [], "INT64")
            count.set_data_from_numpy(np.array(2))
            client.async_stream_infer("parts", [count], enable_empty_final_response=True)
            results = [came.get(timeout=WAIT_S)[0] for _ in range(3)]
            assert [each.as_numpy("result").tolist() for each in results[:2]] == [[0], [1]]
            assert results[2].get_response().parameters["triton_final_response"].bool_param
        finally:
            client.stop_stream()


def test_streams_of_many_threads_get_their_own_answers(models: Any) -> None:
    """Eight at once, each with requests of three models."""
    made, gate, _ = models
    gate.opened.set()
    wrong: list[Any] = []

    def one(name: str) -> None:
        with Stream(made) as stream:
            for number in range(10):
                stream.ask(("echo", "gate", "echo")[number % 3], f"{name} {number}".encode(), f"{name} {number}")
            for answer in stream.end():
                expected = answer.infer_response.id.encode()
                if not expected or answer.infer_response.raw_output_contents[0][4:] != expected:
                    wrong.append(answer)

    threads = [threading.Thread(target=one, args=(f"thread {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert wrong == []


class _Gone:
    """Stands for a call whose client has gone between its request and the answer, as gRPC tells it."""

    def __init__(self, *bodies: bytes) -> None:
        self.bodies = list(bodies)

    async def read(self) -> Any:
        return self.bodies.pop(0) if self.bodies else grpc.aio.EOF

    async def write(self, message: bytes) -> None:
        raise grpc.aio.InternalError("it cannot be written")

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> None:
        return None

    def cancelled(self) -> bool:
        return True


@pytest.mark.parametrize("name", ["echo", "parts"])
def test_a_client_that_is_gone_is_no_error(models: tuple[Served, Any, Any], name: str) -> None:
    """Its stream is cancelled: the log is not for it, and nothing is written behind what could not be."""
    made, _, _ = models
    message = inference()["ModelInferRequest"](model_name=name)
    tensor = message.inputs.add(name="data", datatype="INT64", shape=[])
    tensor.contents.int64_contents.append(3)
    body = message.SerializeToString()

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError):
            await grpc_streams.Streams(Desk(made.service)).serve(None, _Gone(body, body))
        assert made.service.budget.used_bytes == 0

    made.run(main())
