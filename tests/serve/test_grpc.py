"""The protocol over gRPC, asked by tritonclient: data types, shapes, parameters, failures, the repository."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import WAIT_S, Gate

from fastpipe import Backend, ConfigError, DecodeError, Pipe, PipeError, QueueFull, Request

grpc = pytest.importorskip("grpc", reason="grpcio is not installed here")
client_of = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed here")
from grpc_serving import Served, served  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

from fastpipe.serve.grpc_messages import inference  # noqa: E402
from fastpipe.serve.grpc_server import GrpcServer  # noqa: E402
from fastpipe.serve.signature import Signature, TensorSpec  # noqa: E402


class Echo(Backend):
    """Answers what it was given; raises what is an error's name."""

    max_batch = 8
    keeps_input = True

    def __init__(self) -> None:
        self.priorities: list[float] = []

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            data = request["data"]
            if isinstance(data, bytes) and data.startswith(b"raise "):
                raise {b"full": QueueFull, b"decode": DecodeError, b"value": ValueError}[data[6:]]("in words")
            request["result"] = data


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


def tensor(name: str, array: np.ndarray[Any, Any], datatype: str) -> Any:
    made = client_of.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def two_rows() -> list[Any]:
    left, right = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 3), np.float32)
    return [tensor("left", left, "FP32"), tensor("right", right, "FP32")]


# ---- tensors -----------------------------------------------------------------------------------------------------

NUMBERS = {
    "BOOL": np.bool_,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}


def extremes(dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    if dtype.kind == "b":
        return np.array([True, False, True, False])
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.array([limits.min, limits.max, 0, 1], dtype)
    return np.array([-np.inf, np.nan, np.finfo(dtype).tiny, 1 / 3], dtype)


@pytest.mark.parametrize("shape", [(4,), (2, 2), (1, 4, 1)])
@pytest.mark.parametrize("datatype", NUMBERS)
def test_numbers_there_and_back(client: Any, datatype: str, shape: tuple[int, ...]) -> None:
    """Each data type, bit for bit, at the ends of its range."""
    array = extremes(np.dtype(NUMBERS[datatype])).reshape(shape)
    answer = client.infer("echo", [tensor("data", array, datatype)])
    assert answer.get_output("result").datatype == datatype
    back = answer.as_numpy("result")
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_bfloat16_there_and_back(client: Any) -> None:
    """As the type of ml-dtypes, on both sides."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml-dtypes is not installed here")
    array = np.array([[1.5, -2.25, 3e38]], ml_dtypes.bfloat16)
    back = client.infer("echo", [tensor("data", array, "BF16")]).as_numpy("result")
    assert back.dtype == array.dtype
    assert (back == array).all()


def test_bytes_there_and_back(client: Any) -> None:
    """Empty elements, zero bytes at the end, a length that takes more than one byte."""
    elements = [b"", b"\0", b"text\0\0", "Grüße".encode(), bytes(range(256)) * 300]
    array = np.array(elements, object)
    back = client.infer("echo", [tensor("data", array, "BYTES")]).as_numpy("result")
    assert back.tolist() == elements


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
@pytest.mark.parametrize("datatype", ["FP32", "INT8", "BYTES"])
def test_empty_tensors_there_and_back(client: Any, datatype: str, shape: tuple[int, ...]) -> None:
    """An axis of length 0 is a shape as any other."""
    array = np.empty(shape, NUMBERS.get(datatype, object))
    answer = client.infer("echo", [tensor("data", array, datatype)])
    assert answer.get_output("result").datatype == datatype
    assert list(answer.get_output("result").shape) == list(shape)


def test_a_scalar_there_and_back(client: Any) -> None:
    """A shape without axes."""
    back = client.infer("echo", [tensor("data", np.array(7, np.int32), "INT32")]).as_numpy("result")
    assert (back.shape, int(back)) == ((), 7)


def test_a_hundred_megabytes_there_and_back(client: Any) -> None:
    """One message, both ways."""
    array = np.arange(25_000_000, dtype=np.float32)
    back = client.infer("echo", [tensor("data", array, "FP32")]).as_numpy("result")
    assert np.array_equal(back, array)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client: Any, algorithm: str) -> None:
    """They are taken without any setting."""
    array = np.zeros((100, 100), np.int64)
    answer = client.infer("echo", [tensor("data", array, "INT64")], compression_algorithm=algorithm)
    assert np.array_equal(answer.as_numpy("result"), array)


# ---- typed contents ----------------------------------------------------------------------------------------------


def raw_call(server: Served, request: Any, method: str = "ModelInfer", answer: str = "ModelInferResponse") -> Any:
    """Call without tritonclient, which sends raw contents only."""
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        body = request if isinstance(request, bytes) else request.SerializeToString()
        return inference()[answer].FromString(call(body, timeout=WAIT_S))


def refusal(server: Served, request: Any, **how: Any) -> tuple[str, str]:
    """The code and the words with which a call is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        raw_call(server, request, **how)
    return caught.value.code().name, caught.value.details()


def typed(datatype: str, shape: list[int], **contents: Any) -> Any:
    request = inference()["ModelInferRequest"](model_name="echo", id="7")
    made = request.inputs.add(name="data", datatype=datatype, shape=shape)
    made.contents.SetInParent()
    for name, elements in contents.items():
        getattr(made.contents, name).extend(elements)
    return request


@pytest.mark.parametrize(
    ("datatype", "field", "elements"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-32768, 32767]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, -3.0]),
        ("FP64", "fp64_contents", [1 / 3, -3.0]),
    ],
)
def test_typed_contents_are_taken(server: Served, datatype: str, field: str, elements: list[Any]) -> None:
    """Requests may have elements in the fields of their type; answers have raw contents all the same."""
    answer = raw_call(server, typed(datatype, [2, 1], **{field: elements}))
    assert answer.id == "7"
    assert list(answer.outputs[0].shape) == [2, 1]
    assert answer.raw_output_contents[0] == np.array(elements, NUMBERS[datatype]).tobytes()
    assert not answer.outputs[0].HasField("contents")


def test_typed_bytes_are_taken(server: Served) -> None:
    """Elements of BYTES have their lengths in front in the answer."""
    answer = raw_call(server, typed("BYTES", [2], bytes_contents=[b"ab", b""]))
    assert answer.raw_output_contents[0] == b"\2\0\0\0ab\0\0\0\0"


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (typed("INT8", [1], int_contents=[300]), "INT8 takes -128 to 127"),
        (typed("FP32", [1], int_contents=[3]), "elements of FP32 go into fp32_contents, not into int_contents"),
        (typed("FP16", [1], fp32_contents=[3]), "elements of FP16 go into raw_input_contents"),
        (typed("INT32", [3], int_contents=[3]), "shape [3] has 3 elements, data has 1"),
        (typed("INT32", [-1], int_contents=[3]), "shape must be a list of whole numbers from 0 on"),
        (typed("COMPLEX", [1]), "datatype must be one of BOOL"),
        (typed("BYTES", [2], bytes_contents=[b"a"]), "2 elements expected, 1 are there"),
    ],
)
def test_wrong_typed_contents_are_refused_in_words(server: Served, request_: Any, words: str) -> None:
    """With INVALID_ARGUMENT."""
    code, details = refusal(server, request_)
    assert code == "INVALID_ARGUMENT"
    assert words in details


def test_wrong_raw_contents_are_refused_in_words(server: Served) -> None:
    """Too many, too short, beside typed ones, of a message that is none."""
    request = typed("INT32", [1])
    request.raw_input_contents.extend([b"1234", b"5678"])
    assert refusal(server, request)[1].startswith("raw_input_contents must have an element for each of the 1 inputs")
    request = inference()["ModelInferRequest"](model_name="echo", raw_input_contents=[b"123"])
    request.inputs.add(name="data", datatype="INT32", shape=[1])
    assert "INT32 of shape [1] has 4 bytes, got 3" in refusal(server, request)[1]
    request = typed("INT32", [1], int_contents=[3])
    request.raw_input_contents.append(b"1234")
    assert "both contents and raw_input_contents" in refusal(server, request)[1]
    code, details = refusal(server, b"\xff\xff\xff")
    assert code == "INVALID_ARGUMENT"
    assert "the request is no ModelInferRequest" in details


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
    for value, words in (({"string_param": "x"}, "timeout must be a number"), ({"int64_param": -1}, "from 0 (none) on")):
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


def element(data: bytes) -> list[Any]:
    return [tensor("data", np.array([data], object), "BYTES")]


def begun(client: Any, data: bytes) -> tuple[Any, Future[Any]]:
    """Start a call; return what cancels it, and the future of its answer."""
    answer: Future[Any] = Future()

    def arrived(result: Any, error: Any) -> None:
        if error is None:
            answer.set_result(result.as_numpy("result").tolist())
        else:
            answer.set_exception(error)

    return client.async_infer("m", element(data), arrived), answer


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
        with client_of.InferenceServerClient(made.address) as client:
            with pytest.raises(InferenceServerException) as caught:
                client.infer("m", element(b""))
    assert caught.value.status() == "StatusCode.INTERNAL"
    assert caught.value.message().startswith("ValueError: ä%ä%")
    assert caught.value.message().endswith(" [...]")


def test_reasons_are_hidden_where_that_is_asked_for() -> None:
    """A backend's own exception may say what strangers should not read; fastpipe's errors are as before."""
    with Pipe({"echo": {"backend": Echo}}) as pipe, served({"m": pipe}, hide_errors=True) as made:
        with client_of.InferenceServerClient(made.address) as client:
            with pytest.raises(InferenceServerException, match="the model failed; the server's log has the reason"):
                client.infer("m", element(b"raise value"))
            with pytest.raises(InferenceServerException, match="in words"):
                client.infer("m", element(b"raise full"))


# ---- deadlines, cancellation, priority ------------------------------------------------------------------------------


@pytest.fixture
def gate() -> Iterator[Any]:
    """A pipe whose backend stands still until it is opened, and its server."""
    backend = Gate()
    backend.max_batch = 1
    with Pipe({"gate": {"backend": backend}}) as pipe, served({"m": pipe}) as made:
        try:
            yield backend, pipe, made
        finally:
            backend.opened.set()


def wait_until(happened: Callable[[], bool]) -> None:
    """Wait for what nothing tells of."""
    deadline_s = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def test_the_parameter_timeout_ends_a_request(gate: Any) -> None:
    """In microseconds; the code is DEADLINE_EXCEEDED."""
    backend, pipe, made = gate
    with client_of.InferenceServerClient(made.address) as client:
        with pytest.raises(InferenceServerException) as caught:
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
    wait_until(lambda: sum(pipe.stats()["requests"][how] for how in ("failed", "cancelled")) == 2)
    assert backend.batches == [[b"x"]]


def test_a_cancelled_call_cancels_its_requests(gate: Any) -> None:
    """That in the queue never runs."""
    backend, pipe, made = gate
    with client_of.InferenceServerClient(made.address) as client:
        _, first = begun(client, b"first")
        assert backend.inside.wait(WAIT_S)
        cancel, _ = begun(client, b"second")
        wait_until(lambda: pipe.stats()["requests"]["in_flight"] == 2)
        cancel.cancel()
        wait_until(lambda: pipe.stats()["requests"]["cancelled"] == 1)
        backend.opened.set()
        assert first.result(WAIT_S) == [b"first"]
    assert backend.batches == [[b"first"]]


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
            try:
                channel.unary_unary(f"/{service.full_name}/{method.name}")(b"", timeout=WAIT_S)
            except grpc.RpcError as error:
                assert error.details() not in ("", "Method not found!"), method.name
                assert error.code().name in ("UNIMPLEMENTED", "NOT_FOUND"), method.name


def test_models_are_loaded_and_unloaded(tmp_path: Path) -> None:
    """By clients, where the server lets them; a call of an unloaded model is UNAVAILABLE."""
    (tmp_path / "m.toml").write_text('[step]\nbackend = "Identity"\n')
    with served({"m": tmp_path / "m.toml"}, control=True) as made, client_of.InferenceServerClient(made.address) as client:
        assert client.infer("m", element(b"x")).as_numpy("result").tolist() == [b"x"]
        client.unload_model("m")
        assert not client.is_model_ready("m")
        assert not client.get_model_repository_index(as_json=True)["models"][0].get("state") == "READY"
        with pytest.raises(InferenceServerException, match="unloaded") as caught:
            client.infer("m", element(b"x"))
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        client.load_model("m")
        assert client.infer("m", element(b"x")).as_numpy("result").tolist() == [b"x"]
        with pytest.raises(InferenceServerException, match="parameter 'config' is not taken"):
            client.load_model("m", config='{"max_batch_size": 3}')
        with pytest.raises(InferenceServerException, match="no model is named 'n'"):
            client.load_model("n")


def test_models_stay_where_clients_have_no_control(client: Any) -> None:
    """As the server was started."""
    with pytest.raises(InferenceServerException) as caught:
        client.unload_model("echo")
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    assert client.is_model_ready("echo")


def test_messages_too_large_are_refused() -> None:
    """Also those that are large only when decompressed."""
    with Pipe({"echo": {"backend": Echo}}) as pipe, served({"m": pipe}, body_bytes=1 << 20) as made:
        with client_of.InferenceServerClient(made.address) as client:
            large = [tensor("data", np.zeros(1 << 20, np.uint8), "UINT8")]
            for how in ({}, {"compression_algorithm": "gzip"}):
                with pytest.raises(InferenceServerException, match="larger than max") as caught:
                    client.infer("m", large, **how)
                assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
            assert client.infer("m", element(b"x")).as_numpy("result").tolist() == [b"x"]


def test_messages_in_flight_are_bounded(gate: Any) -> None:
    """One more than the server keeps is refused, and served once there is room."""
    backend, pipe, _ = gate
    with served({"m": pipe}, buffered_bytes=1000) as made, client_of.InferenceServerClient(made.address) as client:
        _, first = begun(client, b"a" * 900)
        assert backend.inside.wait(WAIT_S)
        with pytest.raises(InferenceServerException, match="as many bytes of requests as it may") as caught:
            client.infer("m", element(b"b" * 900))
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        backend.opened.set()
        assert first.result(WAIT_S) == [b"a" * 900]
        assert client.infer("m", element(b"b" * 900)).as_numpy("result").tolist() == [b"b" * 900]


def test_answers_are_compressed_where_that_is_set() -> None:
    """gRPC does it; what comes is the same."""
    with Pipe({"echo": {"backend": Echo}}) as pipe, served({"m": pipe}, compression="gzip") as made:
        with client_of.InferenceServerClient(made.address) as client:
            back = client.infer("m", [tensor("data", np.ones(9999, np.int8), "INT8")]).as_numpy("result")
    assert back.sum() == 9999


def test_an_address_in_use_is_an_error(server: Served) -> None:
    """By default gRPC would let a second server take half of the calls of the first."""
    other = GrpcServer(server.service, server.address)
    with pytest.raises(PipeError, match=f"gRPC cannot listen at {server.address}"):
        asyncio.run(other.start())


def test_a_wrong_setting_is_refused(server: Served) -> None:
    """Before anything listens."""
    with pytest.raises(ConfigError, match="compression must be one of none, deflate, gzip, got 'zip'"):
        GrpcServer(server.service, compression="zip")  # type: ignore[arg-type]


def test_whoever_asks_needs_the_token() -> None:
    """But for health, which is asked by who has none."""
    with Pipe({"echo": {"backend": Echo}}) as pipe, served({"m": pipe}, token="secret") as made:
        with client_of.InferenceServerClient(made.address) as client:
            right = {"authorization": "Bearer secret"}
            assert client.infer("m", element(b"x"), headers=right).as_numpy("result").tolist() == [b"x"]
            assert client.get_model_metadata("m", headers=right).name == "m"
            assert client.is_server_ready()
            assert client.is_model_ready("m")
            for ask in (
                lambda headers: client.infer("m", element(b"x"), headers=headers),
                lambda headers: client.get_model_metadata("m", headers=headers),
                lambda headers: client.get_log_settings(headers=headers),
            ):
                for headers in ({}, {"authorization": "Bearer secre"}):
                    with pytest.raises(InferenceServerException) as caught:
                        ask(headers)
                    assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
        with grpc.insecure_channel(made.address) as channel:
            stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(iter([]))
            with pytest.raises(grpc.RpcError) as refused:
                next(stream)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_stopping_answers_what_was_begun(gate: Any) -> None:
    """New calls are refused meanwhile; gRPC itself cancels one that comes at just that moment."""
    backend, _, made = gate
    with client_of.InferenceServerClient(made.address) as client:
        _, first = begun(client, b"x")
        assert backend.inside.wait(WAIT_S)
        stopping = asyncio.run_coroutine_threadsafe(made.server.stop(WAIT_S), made.loop)
        codes: list[str] = []
        while not codes or codes[-1] == "StatusCode.CANCELLED":
            try:
                client.is_server_live()
            except InferenceServerException as error:
                codes.append(error.status())
        assert codes[-1] == "StatusCode.UNAVAILABLE"
        assert len(codes) <= 2
        backend.opened.set()
        stopping.result(WAIT_S)
        assert first.result(WAIT_S) == [b"x"]


def test_a_unix_socket_is_served(tmp_path: Path) -> None:
    """For clients on the same machine."""
    with Pipe({"echo": {"backend": Echo}}) as pipe, served({"m": pipe}, address=f"unix:{tmp_path}/s"):
        with client_of.InferenceServerClient(f"unix:{tmp_path}/s") as client:
            assert client.infer("m", element(b"x")).as_numpy("result").tolist() == [b"x"]


# ---- health ----------------------------------------------------------------------------------------------------------


def test_health_of_the_server(gate: Any) -> None:
    """As load balancers and Kubernetes ask; a watch tells of a change."""
    _, pipe, made = gate

    def decoded(body: bytes) -> int:
        return body[1] if body else 0

    with grpc.insecure_channel(made.address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert decoded(check(b"", timeout=WAIT_S)) == 1
        service = b"inference.GRPCInferenceService"
        assert decoded(check(bytes([10, len(service)]) + service, timeout=WAIT_S)) == 1
        with pytest.raises(grpc.RpcError) as caught:
            check(b"\x0a\x01x", timeout=WAIT_S)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=WAIT_S)
        assert decoded(next(watch)) == 1
        assert decoded(next(channel.unary_stream("/grpc.health.v1.Health/Watch")(b"\x0a\x01x", timeout=WAIT_S))) == 3
        made.repository.is_draining = True
        assert decoded(next(watch)) == 2
        assert decoded(check(b"", timeout=WAIT_S)) == 2
        made.run(made.server.stop(WAIT_S))
        assert list(watch) == []
