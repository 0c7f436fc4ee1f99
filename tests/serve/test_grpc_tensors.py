"""Tensors over gRPC: every data type there and back, raw and typed, and what is wrong with some."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers import WAIT_S

from fastpipe import Pipe

pytest.importorskip("orjson", reason="orjson is not installed here")
pytest.importorskip("google.protobuf", reason="protobuf is not installed here")
pytest.importorskip("grpc", reason="grpcio is not installed here")
pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed here")
import tritonclient.grpc as client_of
from grpc_serving import NUMBERS, Echo, Served, raw_call, refusal, served, tensor, typed

from fastpipe.serve.grpc_desk import Desk
from fastpipe.serve.grpc_messages import inference
from fastpipe.serve.grpc_service import Calls


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with Pipe({"echo": {"backend": Echo}}) as pipe:
        pipe.submit({"data": 0}, timeout=WAIT_S).result()  # the thread of its clock is there from now on
        with served({"echo": pipe}) as made:
            yield made


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[Any]:
    with client_of.InferenceServerClient(server.address) as made:
        yield made


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
        (typed("INT32", [3], int_contents=[3]), "shape [3] has 3 elements, int_contents has 1"),
        (typed("INT32", [1] * 40, int_contents=[3]), "at most 32 are taken"),
        (typed("INT32", [-1], int_contents=[3]), "shape must be a list of whole numbers from 0 on"),
        (typed("COMPLEX", [1]), "datatype must be one of BOOL"),
        (typed("BYTES", [2], bytes_contents=[b"a"]), "shape [2] has 2 elements, bytes_contents has 1"),
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
    assert "inputs have both contents and raw_input_contents" in refusal(server, request)[1]
    code, details = refusal(server, b"\xff\xff\xff")
    assert code == "INVALID_ARGUMENT"
    assert "the request is no ModelInferRequest" in details


# ---- copies ----------------------------------------------------------------------------------------------------------


class Context:
    """What a handler uses of gRPC's context, for a client without a deadline."""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> None:
        return None


@pytest.mark.parametrize(("datatype", "most_copies"), [("UINT8", 1), ("FP64", 2)])
def test_ten_megabytes_are_copied_once_each_way(server: Served, datatype: str, most_copies: int) -> None:
    """Into the answer; and out of the request only if they do not lie there as their type wants it."""
    size = 10_000_000
    request = inference()["ModelInferRequest"](model_name="echo", raw_input_contents=[bytes(size)])
    shape = [size // np.dtype(NUMBERS[datatype]).itemsize]
    request.inputs.add(name="data", datatype=datatype, shape=shape)
    body = request.SerializeToString()

    async def peak_bytes() -> int:
        tracemalloc.start()
        try:
            answer = await Calls(Desk(server.service))._infer(body, Context())
            assert len(answer) > size
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert server.run(peak_bytes()) < most_copies * size + size // 10
