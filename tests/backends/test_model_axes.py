"""Models whose batch is on another axis, or that share an input, against plain ONNX Runtime with one request."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402
from onnx_models import FLOAT, make_model  # noqa: E402

import fastpipe  # noqa: E402
from fastpipe.backends.model.onnx import OnnxTensor  # noqa: E402

HANG_S = 60
INT64 = TensorProto.INT64


def speech_model(batch: Any = "batch", state_batch: Any = "batch", *, declares: bool = True) -> bytes:
    """As a detector of speech has it: audio [batch, 6], state [2, batch, 3], a scalar rate; a score and a new state."""
    nodes = [
        helper.make_node("MatMul", ["audio", "weights"], ["heard"]),  # (batch, 3)
        helper.make_node("Cast", ["rate"], ["rate_float"], to=FLOAT),
        helper.make_node("Div", ["heard", "rate_float"], ["scaled"]),
        helper.make_node("Add", ["state", "scaled"], ["added"]),  # (2, batch, 3)
        helper.make_node("Tanh", ["added"], ["new_state"]),
        helper.make_node("ReduceSum", ["new_state", "axes"], ["score"], keepdims=0),
    ]
    weights = np.random.default_rng(3).standard_normal((6, 3)).astype(np.float32)
    inputs = {"audio": [batch, 6], "state": [2, state_batch, 3], "rate": (INT64, [])}
    outputs = {"score": [batch, 3] if declares else None, "new_state": [2, state_batch, 3] if declares else None}
    return make_model(nodes, inputs, outputs, {"weights": weights, "axes": np.array([0])})


def speech_data(number: int, rate: int = 2) -> dict[str, Any]:
    random = np.random.default_rng(number)
    return {
        "audio": random.standard_normal((1, 6)).astype(np.float32),
        "state": random.standard_normal((2, 1, 3)).astype(np.float32),
        "rate": np.array(rate),
    }


def alone(model: bytes, data: dict[str, Any]) -> list[Any]:
    answer: list[Any] = onnxruntime.InferenceSession(model).run(None, data)
    return answer


def run(backend: Any, *data: Any) -> list[Any]:
    batch = [{"data": each} for each in data]
    backend.forward(batch)
    return [request["result"] for request in batch]


def assert_same(results: Any, expected: Any) -> None:
    for result, wanted in zip(results, expected, strict=True):
        assert result.shape == wanted.shape
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)


class Sizes:
    """Counts what ONNX Runtime is run with."""

    def __init__(self, backend: Any, name: str) -> None:
        self.seen: list[tuple[int, ...]] = []
        self._call, self._name = backend._call, name
        self._place = backend._feed_names.index(name)
        backend._call = self

    def __call__(self, arrays: Any) -> Any:
        self.seen.append(arrays[self._place].shape)
        return self._call(arrays)


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        (speech_model(), {}),
        (speech_model(declares=False), {}),
        (speech_model(None, None), {}),
        (speech_model("x", "y"), {"batch_axis": {"state": 1, "new_state": 1, "rate": "none"}}),
        (speech_model("x", "y", declares=False), {"batch_axis": {"state": -2, "new_state": 1}, "shared": ["rate"]}),
    ],
)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_state_with_the_batch_on_its_second_axis_is_batched(model: bytes, keys: Any, count: int) -> None:
    """By names, by shape inference, or by the key; each answer is the one alone, in the model's own shapes."""
    backend = OnnxTensor(model=model, max=5, **keys)
    sizes = Sizes(backend, "state")
    data = [speech_data(number) for number in range(count)]
    for results, each in zip(run(backend, *data), data, strict=True):
        assert_same(results, alone(model, each))
    assert sizes.seen == [(2, count, 3)]


def test_a_state_goes_in_as_it_came_out_for_many_callers() -> None:
    """Eight streams together, twenty steps each: every state is its own."""
    model = speech_model()
    failed: list[Any] = []
    together = threading.Barrier(8)

    def stream(number: int, pipe: Any) -> None:
        data, mine = speech_data(number), speech_data(number)
        together.wait(HANG_S)
        for _ in range(20):
            score, data["state"] = pipe({"data": dict(data)})["result"]
            wanted, mine["state"] = alone(model, mine)
            if not (np.allclose(score, wanted, atol=1e-4) and data["state"].shape == (2, 1, 3)):
                failed.append((number, score, wanted))

    with fastpipe.Pipe(backend="OnnxTensor", model=model, max=8) as pipe:
        threads = [threading.Thread(target=stream, args=(number, pipe)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG_S)
        assert sum(thread.is_alive() for thread in threads) == 0
    assert failed == []


def test_requests_with_other_values_of_what_is_shared_do_not_meet() -> None:
    """Two sampling rates in one batch of requests: two runs, and each answer its own."""
    model = speech_model()
    backend = OnnxTensor(model=model, max=6)
    data = [speech_data(number, rate) for number, rate in enumerate([2, 5, 2, 5, 2])]
    assert len({backend.bucket({"data": each}) for each in data}) == 2
    sizes = Sizes(backend, "audio")
    for results, each in zip(run(backend, *data), data, strict=True):
        assert_same(results, alone(model, each))
    assert sizes.seen == [(3, 6), (2, 6)]
