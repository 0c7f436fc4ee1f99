"""Models of several inputs and outputs as they are served: by their own names, over HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed here")
pytest.importorskip("orjson", reason="the extra serve is not installed here")
pytest.importorskip("onnx", reason="the extra cpu is not installed here")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra cpu is not installed here")

from length_models import alone, embedder, ids_of, pictures  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402
from onnx_models import make_model  # noqa: E402
from served import serving  # noqa: E402

from fastpipe import ConfigError, Pipe  # noqa: E402
from fastpipe.serve.announced import signature_of  # noqa: E402
from fastpipe.serve.signature import TensorSpec  # noqa: E402
from fastpipe.serve.tensors import Tensor  # noqa: E402

INT64 = TensorProto.INT64


def speech() -> bytes:
    """Return a model of chunks (batch, 3), a state (2, batch, 3) and a rate: a score, and the state with the chunk."""
    nodes = [
        helper.make_node("Add", ["state", "chunk"], ["next"]),
        helper.make_node("ReduceSum", ["next", "first"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["rate"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["sum", "factor"], ["score"]),
    ]
    inputs = {"chunk": ["batch", 3], "state": [2, "batch", 3], "rate": (INT64, [])}
    return make_model(nodes, inputs, {"score": ["batch", 3], "next": [2, "batch", 3]}, {"first": np.array([0])})


CHUNK = TensorSpec("chunk", "FP32", (3,), "data", item="chunk")
RATE = TensorSpec("rate", "INT64", (), "data", item="rate")
SCORE = TensorSpec("score", "FP32", (3,), "result")
PIXELS = TensorSpec("pixels", "FP32", (1, -1, -1), "data", item="pixels")


@pytest.mark.parametrize(
    ("keys", "inputs", "outputs"),
    [
        (
            {"model": speech()},
            (CHUNK, TensorSpec("state", "FP32", (2, 3), "data", item="state"), RATE),
            (
                TensorSpec("score", "FP32", (3,), "result", item=0),
                TensorSpec("next", "FP32", (2, 3), "result", item=1, sample_axis=1),
            ),
        ),
        ({"model": speech(), "state": {"state": "next"}, "state_of": "id"}, (CHUNK, RATE), (SCORE,)),
        (
            {"model": speech(), "outputs": ["next"], "result_as": "dict"},
            (CHUNK, TensorSpec("state", "FP32", (2, 3), "data", item="state"), RATE),
            (TensorSpec("next", "FP32", (2, 3), "result", item="next", sample_axis=1),),
        ),
        (
            {
                "model": pictures(),
                "pad": [{"to": [8], "axis": "height"}, {"to": [8], "axis": "width"}],
                "outputs": ["doubled"],
            },
            (PIXELS, TensorSpec("pixel_mask", "INT64", (-1, -1), "data", item="pixel_mask", is_optional=True)),
            (TensorSpec("doubled", "FP32", (1, -1, -1), "result"),),
        ),
    ],
)
@pytest.mark.parametrize("most", [1, 4])
def test_what_a_model_announces(keys: Any, inputs: Any, outputs: Any, most: int) -> None:
    """All inputs that a request brings, and all outputs that it gets, without the axis of the requests."""
    with Pipe(backend="OnnxTensor", max=most, **keys) as pipe:
        signature = signature_of(pipe)
    assert signature.inputs == inputs
    assert signature.outputs == outputs
    assert signature.max_batch_size > 0


def test_outputs_without_a_row_for_each_request_are_announced_whole() -> None:
    """Tables of all requests, constants, and what a model gives that runs as it is."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("Identity", ["fixed"], ["anchors"]),
    ]
    model = make_model(nodes, {"x": ["n", 2]}, {"y": ["n", 2], "anchors": [5, 2]}, {"fixed": np.ones((5, 2), "f4")})
    whole = TensorSpec("anchors", "FP32", (5, 2), "result", item=1, sample_axis=None)
    for keys in ({"max": 1}, {"max": 4, "batch_axis": {"anchors": "none"}}):
        with Pipe(backend="OnnxTensor", model=model, **keys) as pipe:
            signature = signature_of(pipe)
            first, second = signature.to_outputs([pipe({"data": np.ones(2, np.float32)})])
        assert signature.outputs == (TensorSpec("y", "FP32", (2,), "result", item=0), whole)
        assert (first.array.shape, second.array.shape) == ((1, 2), (1, 5, 2))


def test_an_exported_program_announces_what_it_declares(tmp_path: Any) -> None:
    """By its own names; a module without a file declares nothing, and the table says it."""
    torch: Any = pytest.importorskip("torch", reason="the extra torch is not installed here")

    class Model(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any, h: Any) -> Any:
            return {"sum": x + h[0], "next": h + x}

    batch = torch.export.Dim("batch", min=1, max=64)
    dynamic = {"x": {0: batch}, "h": {1: batch}}
    program = torch.export.export(Model(), (torch.ones(2, 3), torch.ones(2, 2, 3)), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "model.pt2")
    keys: dict[str, Any] = {"backend": "TorchTensor", "model": tmp_path / "model.pt2", "max": 4, "device": ["cpu"]}
    x = TensorSpec("x", "FP32", (3,), "data")
    with Pipe(state={"h": "next"}, state_of="id", **keys) as pipe:
        signature = signature_of(pipe)
        assert (signature.inputs, signature.outputs) == ((x,), (TensorSpec("sum", "FP32", (3,), "result"),))
    with Pipe(result_as="dict", **keys) as pipe:
        signature = signature_of(pipe)
        assert signature.inputs == (replace(x, item="x"), TensorSpec("h", "FP32", (2, 3), "data", item="h"))
        rows = [Tensor("x", "FP32", np.ones((2, 3), "f4")), Tensor("h", "FP32", np.ones((2, 2, 3), "f4"))]
        total, after = signature.to_outputs([pipe(request) for request in signature.to_requests(rows)])
        assert total.array.tolist() == [[2, 2, 2]] * 2
        assert after.array.shape == (2, 2, 3)
    with Pipe(backend="TorchTensor", model=Model(), max="4x3,4x2x3", batch_axis={"h": 1, "next": 1}) as pipe:
        assert signature_of(pipe).inputs[0].datatype is None


# ---- served ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipes() -> Iterator[dict[str, Pipe]]:
    keys: dict[str, Any] = {"backend": "OnnxTensor", "max": 8}
    with (
        Pipe(model=speech(), **keys) as plain,
        Pipe(model=speech(), state={"state": "next"}, state_of="stream", **keys) as stream,
        Pipe(model=embedder(), pad="longest", **keys) as embed,
    ):
        yield {"plain": plain, "stream": stream, "embed": embed}


def http(pipes: dict[str, Pipe]) -> Iterator[tuple[Any, Any]]:
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed here")
    with serving(pipes) as server, triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield triton, client


def grpc(pipes: dict[str, Pipe]) -> Iterator[tuple[Any, Any]]:
    pytest.importorskip("grpc", reason="the extra grpc is not installed here")
    triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed here")
    from grpc_serving import served

    with served(pipes) as server, triton.InferenceServerClient(server.address) as client:
        yield triton, client


@pytest.fixture(scope="module", params=[http, grpc])
def client(request: Any, pipes: dict[str, Pipe]) -> Iterator[tuple[Any, Any]]:
    yield from request.param(pipes)


def ask(client: tuple[Any, Any], model: str, arrays: dict[str, Any], **more: Any) -> Any:
    triton, connection = client
    inputs = []
    for name, array in arrays.items():
        kind = {"float32": "FP32", "int64": "INT64"}[array.dtype.name]
        inputs.append(triton.InferInput(name, list(array.shape), kind))
        inputs[-1].set_data_from_numpy(array)
    return connection.infer(model, inputs, **more)


def test_tensors_of_a_call_are_the_inputs_of_a_model(client: tuple[Any, Any]) -> None:
    """In any order; rows are requests, also of a state whose batch is on another axis, and of a scalar."""
    chance = np.random.default_rng(1)
    chunk, state = chance.random((3, 3), np.float32), chance.random((3, 2, 3), np.float32)
    rate = np.array([1, 2, 2])
    answer = ask(client, "plain", {"rate": rate, "state": state, "chunk": chunk})
    session = onnxruntime.InferenceSession(speech())
    for row in range(3):
        feeds = {"chunk": chunk[row : row + 1], "state": state[row][:, None], "rate": np.asarray(rate[row])}
        score, after = session.run(None, feeds)
        np.testing.assert_allclose(answer.as_numpy("score")[row], score[0], rtol=1e-6)
        np.testing.assert_allclose(answer.as_numpy("next")[row], after[:, 0], rtol=1e-6)


def test_the_metadata_have_every_tensor(client: tuple[Any, Any]) -> None:
    """Names, datatypes and shapes; the configuration says what may be left out."""
    _, connection = client
    metadata, config = connection.get_model_metadata("plain"), connection.get_model_config("embed")
    if not isinstance(metadata, dict):
        from google.protobuf.json_format import MessageToDict

        metadata, config = MessageToDict(metadata), MessageToDict(config.config)
    told = {
        each["name"]: (each["datatype"], [int(size) for size in each["shape"]])
        for each in [*metadata["inputs"], *metadata["outputs"]]
    }
    assert told == {
        "chunk": ("FP32", [-1, 3]),
        "state": ("FP32", [-1, 2, 3]),
        "rate": ("INT64", [-1]),
        "score": ("FP32", [-1, 3]),
        "next": ("FP32", [-1, 2, 3]),
    }
    assert {each["name"]: each.get("optional", False) for each in config["input"]} == {
        "input_ids": False,
        "attention_mask": True,
    }


def test_a_mask_that_is_made_may_be_left_out(client: tuple[Any, Any]) -> None:
    """Or be sent."""
    (ids,) = ids_of(6)
    expected = alone(embedder(), ids, np.ones(6, np.int64))
    mask = np.array([[1, 1, 1, 1, 0, 0]])
    masked = alone(embedder(), ids, mask[0])
    for sent, wanted in (({}, expected), ({"attention_mask": mask}, masked)):
        answer = ask(client, "embed", {"input_ids": ids[None], **sent})
        np.testing.assert_allclose(answer.as_numpy("tokens"), wanted[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(answer.as_numpy("mean"), wanted[1], rtol=1e-4, atol=1e-5)


def test_a_model_with_a_state_is_served_without_it(client: tuple[Any, Any]) -> None:
    """Its answer has the datatype and shape of the model's output."""
    triton, _ = client
    chunk, rate = np.ones((1, 3), np.float32), np.array([2])
    for number in (1, 2):
        more = {"sequence_id": 7 if "grpc" in triton.__name__ else 8, "sequence_start": number == 1}
        answer = ask(client, "stream", {"chunk": chunk, "rate": rate}, **more)
        assert answer.as_numpy("score").dtype == np.float32
        assert answer.as_numpy("score").tolist() == [[4.0 * number] * 3]


def test_an_input_that_is_missing_or_unknown_is_named(client: tuple[Any, Any]) -> None:
    """As of every model."""
    chunk = np.ones((1, 3), np.float32)
    with pytest.raises(Exception, match="inputs are missing: state, rate"):
        ask(client, "plain", {"chunk": chunk})
    with pytest.raises(Exception, match="no input is named 'chunks'; did you mean 'chunk'"):
        ask(client, "plain", {"chunks": chunk})


# ---- what the configuration says -------------------------------------------------------------------------------------


def test_the_table_maps_tensors_onto_a_dict_without_a_step() -> None:
    """For backends that announce nothing, as a torch module or one of yours."""
    table = {
        "inputs": {
            "left": {"datatype": "FP32", "shape": [2], "key": "data", "item": "a"},
            "right": {"datatype": "FP32", "shape": [2], "key": "data", "item": "b", "optional": True},
        },
        "outputs": {"both": {"datatype": "FP32", "shape": [2], "key": "result", "item": "a"}},
    }
    with Pipe({"main": {"backend": "Identity"}, "serve": table}) as pipe:
        signature = signature_of(pipe)
        assert signature.inputs == (
            TensorSpec("left", "FP32", (2,), "data", item="a"),
            TensorSpec("right", "FP32", (2,), "data", item="b", is_optional=True),
        )
        rows = np.arange(4, dtype=np.float32).reshape(2, 2)
        requests = signature.to_requests([Tensor("left", "FP32", rows)])
        assert [list(request["data"]) for request in requests] == [["a"], ["a"]]
        (output,) = signature.to_outputs([pipe(request) for request in requests])
        assert output.array.tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"a": {"key": "x", "item": "p"}, "b": {"key": "x", "item": "p"}}, "'x' is the key of 'a' already"),
        ({"a": {"key": "x"}, "b": {"key": "x", "item": "p"}}, "'x' is the key of 'a' already"),
        ({"a": {"key": "x", "item": 0}}, "the name of an input"),
        ({"a": {"key": "x", "item": ""}}, "a name in what the key has, or its number in a list"),
        ({"a": {"optional": 1}}, "true or false, and true only of inputs"),
    ],
)
def test_mistakes_in_the_parts_of_a_key(inputs: Any, said: str) -> None:
    """One would overwrite the other."""
    table = {"inputs": {name: {"datatype": "FP32", "shape": [2], **more} for name, more in inputs.items()}}
    with pytest.raises(ConfigError, match=said):
        Pipe({"main": {"backend": "Identity"}, "serve": table})
