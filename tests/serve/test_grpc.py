"""Calls over gRPC, by tritonclient: rows, parameters, failures, deadlines, and what is asked of the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers import WAIT_S, until

from fastpipe import Backend, Pipe, Request

pytest.importorskip("orjson", reason="orjson is not installed here")
pytest.importorskip("google.protobuf", reason="protobuf is not installed here")
pytest.importorskip("grpc", reason="grpcio is not installed here")
pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed here")
import grpc
import tritonclient.grpc as client_of
from grpc_serving import (
    NUMBERS,
    Echo,
    Served,
    begun,
    element,
    raw_call,
    refusal,
    served,
    standing_still,
    tensor,
    typed,
)
from tritonclient.utils import InferenceServerException

from fastpipe.serve.signature import Signature, TensorSpec


class Scores(Backend):
    """Answers the sum of two named inputs."""

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["sum"] = request["left"] + request["right"]
            request["result"] = request["left"] * 2


ROWS = Signature(
    (TensorSpec("left", "FP32", (3,), "left"), TensorSpec("right", "FP32", (3,), "right")),
    (TensorSpec("sum", "FP32", (3,), "sum", labels=("a", "b")), TensorSpec("twice", "FP32", (3,), "result")),
    4,
)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with Pipe({"echo": {"backend": Echo}}) as echo, Pipe({"add": {"backend": Scores}}) as add:
        for pipe in (echo, add):  # the thread of their clocks is there from now on
            pipe.submit({"data": 0, "left": 0, "right": 0}, timeout=WAIT_S).result()
        with served({"echo": echo, "add": add}, {"add": ROWS}) as made:
            yield made


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[Any]:
    with client_of.InferenceServerClient(server.address) as made:
        yield made


def two_rows() -> list[Any]:
    left, right = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 3), np.float32)
    return [tensor("left", left, "FP32"), tensor("right", right, "FP32")]


# ---- calls -------------------------------------------------------------------------------------------------------


def test_rows_are_requests_and_answers_are_stacked(client: Any) -> None:
    """A call of two rows; outputs in the order in which they were asked for."""
    wanted = [client_of.InferRequestedOutput("twice"), client_of.InferRequestedOutput("sum")]
    answer = client.infer("add", two_rows(), outputs=wanted, request_id="a 1")
    response = answer.get_response()
    assert (response.id, response.model_name, response.model_version) == ("a 1", "add", "1")
    assert [output.name for output in response.outputs] == ["twice", "sum"]
    assert answer.as_numpy("sum").tolist() == [[1, 2, 3], [4, 5, 6]]
    assert answer.as_numpy("twice").tolist() == [[0, 2, 4], [6, 8, 10]]


def test_classification(client: Any) -> None:
    """The best classes instead of the numbers, with labels where there are some."""
    wanted = [client_of.InferRequestedOutput("sum", class_count=2)]
    answer = client.infer("add", two_rows(), outputs=wanted)
    assert answer.as_numpy("sum").tolist() == [[b"3.000000:2", b"2.000000:1:b"], [b"6.000000:2", b"5.000000:1:b"]]


@pytest.mark.parametrize(
    ("model", "inputs", "how", "code", "words"),
    [
        ("ecko", [], {}, "NOT_FOUND", "no model is named 'ecko'; did you mean 'echo'?"),
        ("echo", [], {"model_version": "3"}, "NOT_FOUND", "has no version '3'"),
        ("echo", [("date", (2,), "FP32")], {}, "INVALID_ARGUMENT", "no input is named 'date'; did you mean 'data'?"),
        ("add", [("left", (1, 3), "FP32")], {}, "INVALID_ARGUMENT", "inputs are missing: right"),
        ("add", [("left", (1, 4), "FP32"), ("right", (1, 3), "FP32")], {}, "INVALID_ARGUMENT", "shape must be [-1, 3]"),
        ("add", [("left", (5, 3), "FP32"), ("right", (5, 3), "FP32")], {}, "INVALID_ARGUMENT", "must be 1 to 4, got 5"),
        ("add", [("left", (1, 3), "FP64"), ("right", (1, 3), "FP32")], {}, "INVALID_ARGUMENT", "datatype must be FP32"),
        ("echo", [("data", (1,), "FP32")], {"sequence_id": 5}, "INVALID_ARGUMENT", "sequences (sequence_id)"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(
    client: Any, model: str, inputs: list[Any], how: dict[str, Any], code: str, words: str
) -> None:
    """Names, versions, shapes, rows, data types, parameters."""
    tensors = [tensor(name, np.zeros(shape, NUMBERS[datatype]), datatype) for name, shape, datatype in inputs]
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, tensors, **how)
    assert caught.value.status() == f"StatusCode.{code}"
    assert words in caught.value.message()


def test_a_timeout_that_is_none_is_refused(server: Served) -> None:
    """tritonclient would not send it."""
    for value, words in (
        ({"string_param": "x"}, "timeout must be a number"),
        ({"int64_param": -1}, "from 0 (none) on"),
    ):
        request = typed("INT32", [1], int_contents=[3])
        for name, given in value.items():
            setattr(request.parameters["timeout"], name, given)
        code, details = refusal(server, request)
        assert code == "INVALID_ARGUMENT"
        assert words in details


def test_an_unknown_output_is_refused(client: Any) -> None:
    """Before anything is run."""
    with pytest.raises(InferenceServerException, match="no output is named 'some'"):
        client.infer("add", two_rows(), outputs=[client_of.InferRequestedOutput("some")])
    with pytest.raises(InferenceServerException, match="classification must be a whole number"):
        client.infer("add", two_rows(), outputs=[client_of.InferRequestedOutput("sum", class_count=-1)])


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (b"raise full", "RESOURCE_EXHAUSTED", "in words"),
        (b"raise decode", "INVALID_ARGUMENT", "in words"),
        (b"raise value", "INTERNAL", "ValueError: in words"),
    ],
)
def test_failures_have_the_code_of_their_class(client: Any, data: bytes, code: str, message: str) -> None:
    """As the table of statuses says."""
    with pytest.raises(InferenceServerException) as caught:
        client.infer("echo", element(data))
    assert (caught.value.status(), caught.value.message()) == (f"StatusCode.{code}", message)


def test_clients_that_retry_are_told_when(server: Served) -> None:
    """A full queue is empty a little later; gRPC's own retries look at this trailer."""
    request = typed("BYTES", [1], bytes_contents=[b"raise full"])
    with pytest.raises(grpc.RpcError) as caught:
        raw_call(server, request)
    assert ("grpc-retry-pushback-ms", "1000") in caught.value.trailing_metadata()
    with pytest.raises(grpc.RpcError) as caught:
        raw_call(server, typed("BYTES", [1], bytes_contents=[b"raise value"]))
    assert "grpc-retry-pushback-ms" not in dict(caught.value.trailing_metadata())


class Wordy(Backend):
    """Raises an error of very many words."""

    def forward(self, batch: list[Request]) -> None:
        raise ValueError("ä%" * 50_000)


def test_long_words_of_an_error_are_cut() -> None:
    """Beyond 8 KiB of metadata a client would see neither code nor words."""
    with Pipe({"wordy": {"backend": Wordy}}) as pipe, served({"m": pipe}) as made:
        client = client_of.InferenceServerClient(made.address)
        with client, pytest.raises(InferenceServerException) as caught:
            client.infer("m", element(b""))
    assert caught.value.status() == "StatusCode.INTERNAL"
    assert caught.value.message().startswith("ValueError: ä%ä%")
    assert caught.value.message().endswith(" [...]")


def test_reasons_are_hidden_where_that_is_asked_for() -> None:
    """A backend's own exception may say what strangers should not read; fastpipe's errors are as before."""
    with Pipe({"echo": {"backend": Echo}}) as pipe, served({"m": pipe}, hide_errors=True) as made:
        client = client_of.InferenceServerClient(made.address)
        with client:
            with pytest.raises(InferenceServerException, match="the model failed; the server's log has the reason"):
                client.infer("m", element(b"raise value"))
            with pytest.raises(InferenceServerException, match="in words"):
                client.infer("m", element(b"raise full"))


@pytest.fixture
def gate() -> Iterator[Any]:
    with standing_still() as made:
        yield made


# ---- deadlines, cancellation, priority ------------------------------------------------------------------------------


def test_the_parameter_timeout_ends_a_request(gate: Any) -> None:
    """In microseconds; the code is DEADLINE_EXCEEDED."""
    _, pipe, made = gate
    with client_of.InferenceServerClient(made.address) as client, pytest.raises(InferenceServerException) as caught:
        client.infer("m", element(b"x"), timeout=20_000)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert "0.02" in caught.value.message()
    assert pipe.stats()["requests"]["failed"] == 1


def test_the_clients_deadline_ends_its_request(gate: Any) -> None:
    """What waits behind it is not held up by a request that nobody waits for any more."""
    backend, pipe, made = gate
    with client_of.InferenceServerClient(made.address) as client:
        for _ in range(2):  # the first is in the backend, the second in the queue
            with pytest.raises(InferenceServerException) as caught:
                client.infer("m", element(b"x"), client_timeout=0.3)
            assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    backend.opened.set()
    until(lambda: sum(pipe.stats()["requests"][how] for how in ("failed", "cancelled")) == 2)
    assert backend.batches == [[b"x"]]


def test_a_cancelled_call_cancels_its_requests(gate: Any) -> None:
    """That in the queue never runs."""
    backend, pipe, made = gate
    with client_of.InferenceServerClient(made.address) as client:
        _, first = begun(client, b"first")
        assert backend.inside.wait(WAIT_S)
        cancel, _ = begun(client, b"second")
        until(lambda: pipe.stats()["requests"]["in_flight"] == 2)
        cancel.cancel()
        until(lambda: pipe.stats()["requests"]["cancelled"] == 1)
        backend.opened.set()
        assert first.result(WAIT_S) == [b"first"]
    assert backend.batches == [[b"first"]]


def test_lower_priorities_go_first(gate: Any) -> None:
    """As in Triton; 0, the default, is before all others."""
    backend, pipe, made = gate
    with client_of.InferenceServerClient(made.address) as client:
        answers = []
        for count, (data, priority) in enumerate([(b"first", 0), (b"later", 7), (b"soon", 3), (b"now", 0)], 1):
            answers.append(begun(client, data, priority=priority)[1])
            until(lambda count=count: pipe.stats()["requests"]["in_flight"] == count)
            assert backend.inside.wait(WAIT_S)
        backend.opened.set()
        for answer in answers:
            answer.result(WAIT_S)
    assert backend.batches == [[b"first"], [b"now"], [b"soon"], [b"later"]]


def test_a_call_belongs_to_its_clients_trace() -> None:
    """By ``traceparent`` in its metadata."""
    pytest.importorskip("opentelemetry.sdk", reason="OpenTelemetry is not installed here")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from fastpipe.observe.traces import trace_pipe

    provider, spans = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace = "0af7651916cd43dd8448eb211c80319c"
    with Pipe({"echo": {"backend": Echo}}) as pipe, served({"m": pipe}) as made:
        client = client_of.InferenceServerClient(made.address)
        with client, trace_pipe(pipe, sample=0.0, tracer_provider=provider):
            client.infer("m", element(b"x"), headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
            client.infer("m", element(b"x"))
    assert {format(span.context.trace_id, "032x") for span in spans.get_finished_spans()} == {trace}


# ---- the server ------------------------------------------------------------------------------------------------------


def test_metadata_and_readiness(client: Any) -> None:
    """Of the server, and of a model, in the form that tritonclient reads."""
    import fastpipe

    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("add")
    assert client.is_model_ready("add", "1")
    about = client.get_server_metadata()
    assert (about.name, about.version) == ("fastpipe", fastpipe.__version__)
    assert "statistics" in about.extensions
    of_model = client.get_model_metadata("add", as_json=True)
    assert of_model["inputs"][0] == {"name": "left", "datatype": "FP32", "shape": ["-1", "3"]}
    assert of_model["versions"] == ["1"]
    config = client.get_model_config("add", as_json=True)["config"]
    assert config["max_batch_size"] == 4
    assert config["input"][1] == {"name": "right", "data_type": "TYPE_FP32", "dims": ["3"]}


def test_statistics_grow(client: Any) -> None:
    """By the rows of a call."""

    def counts() -> tuple[int, int]:
        (of_model,) = client.get_inference_statistics("add").model_stats
        assert (of_model.name, of_model.version) == ("add", "1")
        return of_model.inference_count, of_model.inference_stats.success.count

    before = counts()
    client.infer("add", two_rows())
    assert counts() == (before[0] + 2, before[1] + 1)
    assert {each.name for each in client.get_inference_statistics().model_stats} == {"echo", "add"}


def test_what_is_not_served_is_refused_in_words(client: Any) -> None:
    """Shared memory, traces and the log: UNIMPLEMENTED, whoever asks."""
    for refused, words in [
        (lambda: client.register_system_shared_memory("r", "/r", 8), "SystemSharedMemoryRegister: shared memory"),
        (lambda: client.get_system_shared_memory_status(), "shared memory is not used by this server"),
        (lambda: client.unregister_cuda_shared_memory(), "CudaSharedMemoryUnregister"),
        (lambda: client.register_cuda_shared_memory("r", b"", 0, 8), "CudaSharedMemoryRegister"),
        (lambda: client.get_trace_settings(), "traces are set up where the server is started"),
        (lambda: client.update_log_settings({"log_info": True}), "the log is set up where the server is started"),
    ]:
        with pytest.raises(InferenceServerException) as caught:
            refused()
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
        assert words in caught.value.message()


def test_tensors_in_shared_memory_are_refused_in_words(client: Any) -> None:
    """Inputs and outputs alike."""
    there = client_of.InferInput("data", [1], "FP32")
    there.set_shared_memory("region", 4)
    with pytest.raises(InferenceServerException, match="input 'data' is in shared memory") as caught:
        client.infer("echo", [there])
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    wanted = client_of.InferRequestedOutput("result")
    wanted.set_shared_memory("region", 4)
    with pytest.raises(InferenceServerException, match="output 'result' is in shared memory"):
        client.infer("echo", element(b"x"), outputs=[wanted])


def test_every_call_of_the_protocol_is_answered(server: Served) -> None:
    """With an answer or with words: "Method not found" is gRPC's, and says nothing."""
    service = pytest.importorskip("tritonclient.grpc.service_pb2").DESCRIPTOR.services_by_name["GRPCInferenceService"]
    with grpc.insecure_channel(server.address) as channel:
        for method in service.methods:
            if method.name == "ModelStreamInfer":
                continue
            call = channel.unary_unary(f"/{service.full_name}/{method.name}").future(b"", timeout=WAIT_S)
            if call.exception() is not None:
                assert call.details() not in ("", "Method not found!"), method.name
                assert call.code().name in ("UNIMPLEMENTED", "NOT_FOUND"), method.name
