"""ONNX models that have a state: outputs that are inputs of the next run of the same sequence."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the extra cpu is not installed here")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra cpu is not installed here")

from onnx import TensorProto, helper  # noqa: E402
from onnx_models import make_model  # noqa: E402
from sequences import states  # noqa: E402

from fastpipe import ConfigError, KernelError, Pipe  # noqa: E402

WAIT_S = 20.0


def summing_model(batch: int | str = "batch", layers: int | str = 2) -> bytes:
    """Return a model that adds its input to both layers of a state (layers, batch, 3), and scales what it answers."""
    nodes = [
        helper.make_node("Add", ["h", "x"], ["hn"]),
        helper.make_node("ReduceSum", ["hn", "first"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "scale"], ["y"]),
    ]
    inputs = {"x": [batch, 3], "h": [layers, batch, 3], "scale": (TensorProto.FLOAT, [])}
    outputs = {"y": [batch, 3], "hn": [layers, batch, 3]}
    return make_model(nodes, inputs, outputs, {"first": np.array([0])})


def ask(pipe: Pipe, key: str, value: float, scale: float = 1.0) -> Any:
    data = {"x": np.full(3, value, np.float32), "scale": np.float32(scale)}
    return pipe.submit({"data": data, "id": key})


def test_each_sequence_of_a_batch_has_a_state_of_its_own() -> None:
    """The data has the other inputs, the result the other outputs; a scalar is shared by a batch."""
    keys: dict[str, Any] = {"model": summing_model(), "state": {"h": "hn"}, "state_of": "id"}
    with Pipe(backend="OnnxTensor", max=4, batching="timeout", batching_timeout=200, **keys) as pipe:
        futures = {
            (key, number): ask(pipe, key, number * scale, scale)
            for number in range(1, 4)
            for key, scale in (("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", 3.0))
        }
        for (key, number), future in futures.items():
            scale = 3.0 if key == "d" else 1.0
            expected = 2 * scale * scale * sum(range(number + 1))
            result = future.result(WAIT_S)["result"]
            assert result.shape == (1, 3)
            np.testing.assert_array_equal(result, np.full((1, 3), expected, np.float32))
        assert pipe.stats()["nodes"]["main"]["mean_batch"] > 1
        assert states(pipe) == {"kept": 4, "started": 4}


@pytest.mark.parametrize(("max_", "batch"), [(1, "batch"), (1, 1), (4, 4)])
def test_a_model_that_runs_one_request_or_a_fixed_batch_keeps_its_state(max_: int, batch: int | str) -> None:
    """Whatever has to be filled up; torch tensors come back as such."""
    torch = pytest.importorskip("torch", reason="the extra torch is not installed here")
    keys: dict[str, Any] = {"model": summing_model(batch), "state": {"h": "hn"}, "state_of": "id", "max": max_}
    with Pipe(backend="OnnxTensor", batch_axis={"h": 1, "hn": 1}, **keys) as pipe:
        for number in (1, 2, 3):
            request: dict[str, Any] = {"data": [torch.ones(3), torch.tensor(1.0)], "id": "a"}
            result = pipe(request)["result"]
            assert torch.equal(result, torch.full((1, 3), 2.0 * number))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_request_of_several_rows_keeps_a_state_for_all_of_them(layers: int) -> None:
    """With max=1, as it comes: also a single layer in front is no request."""
    nodes = [
        helper.make_node("Add", ["h", "x"], ["hn"]),
        helper.make_node("ReduceSum", ["hn", "first"], ["y"], keepdims=0),
    ]
    inputs, outputs = {"x": [None, 3], "h": [layers, None, 3]}, {"y": [None, 3], "hn": [layers, None, 3]}
    model = make_model(nodes, inputs, outputs, {"first": np.array([0])})
    with Pipe(backend="OnnxTensor", model=model, state={"h": "hn"}, state_of="id", batch_axis={"h": 1}) as pipe:
        for number in (1, 2, 3):
            request: dict[str, Any] = {"data": np.ones((2, 3), np.float32), "id": "a"}
            np.testing.assert_array_equal(pipe(request)["result"], np.full((2, 3), layers * number))


def test_a_sequence_begins_with_what_is_given() -> None:
    """A number, or an array of one request's; needed where the model leaves the size open."""
    keys: dict[str, Any] = {"state_of": "id", "max": 4}
    initial = [[1, 2, 3], [10, 20, 30]]
    state = {"h": {"output": "hn", "initial": initial}}
    with Pipe(backend="OnnxTensor", model=summing_model(), state=state, **keys) as pipe:
        np.testing.assert_array_equal(ask(pipe, "a", 1).result(WAIT_S)["result"], [[13, 24, 35]])
    with Pipe(backend="OnnxTensor", model=summing_model(), state={"h": {"output": "hn", "initial": 2}}, **keys) as pipe:
        np.testing.assert_array_equal(ask(pipe, "a", 1).result(WAIT_S)["result"], [[6, 6, 6]])
    with pytest.raises(
        ConfigError, match=r"state, input 'h': the model leaves open how large it is.*initial = \[...\]"
    ):
        Pipe(backend="OnnxTensor", model=summing_model(layers="layers"), state={"h": "hn"}, batch_axis={"h": 1}, **keys)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"state": {"g": "hn"}}, r"state: the model has no input 'g'.*it has \['x', 'h', 'scale'\]"),
        ({"state": {"h": "hm"}}, r"state, input 'h': the model has no output 'hm'; it has \['y', 'hn'\]"),
        ({"state": {"h": {"output": "hn", "start": 1}}}, "expected output and initial, got 'start'"),
        ({"state": {"h": {"output": "hn", "initial": "zero"}}}, "initial is no float32"),
        ({"state": {"h": "hn", "x": "hn"}}, "each input needs an output of its own"),
        ({"state": {"h": "hn"}, "outputs": ["y", "hn"]}, "outputs: 'hn' is a state"),
        ({"state": {"h": "hn"}, "many_rows": True}, "would need several states"),
        ({"state": {"scale": "y"}}, "state, input 'scale': expected an axis for requests"),
        ({"state": {"h": "hn"}, "state_of": None}, "name the key of a request"),
        ({"state_of": "id"}, "OnnxTensor keeps no state"),
    ],
)
def test_a_state_that_the_model_does_not_have_is_refused(keys: dict[str, Any], said: str) -> None:
    """With what it has."""
    given = {"state_of": "id", "max": 4, **keys}
    with pytest.raises(ConfigError, match=said):
        Pipe(
            backend="OnnxTensor",
            model=summing_model(),
            **{key: each for key, each in given.items() if each is not None},
        )


def test_data_for_the_state_is_refused() -> None:
    """It is the pipe's."""
    with Pipe(backend="OnnxTensor", model=summing_model(), state={"h": "hn"}, state_of="id", max=4) as pipe:
        x = np.zeros(3, np.float32)
        for data in ([x], {"x": x, "h": x, "scale": x}, [x, x, x]):
            with pytest.raises(
                KernelError, match=r"expected data for the inputs \['x', 'scale'\] \(h is what the pipe"
            ):
                pipe({"data": data, "id": "a"})
        assert states(pipe) == {}


# ---- silero-vad -----------------------------------------------------------------------------------------------------

SILERO = importlib.util.find_spec("silero_vad")
FILES = ["silero_vad", "silero_vad_16k_op15", "silero_vad_half", "silero_vad_op18_ifless", "silero_vad_openvino_16k"]


def _plain(path: str, chunks: Any) -> list[Any]:
    """Return what a plain loop of ONNX Runtime gives."""
    session = onnxruntime.InferenceSession(path)
    names = [each.name for each in session.get_inputs()]
    kept = {
        each.name: np.zeros([each.shape[0], 1, 128], np.float32) for each in session.get_inputs() if each.name in "hc"
    }
    kept |= {"state": np.zeros((2, 1, 128), np.float32)}
    answers = []
    for chunk in chunks:
        feeds = {"input": chunk[None], "sr": np.array(16000), **kept}
        first, *left = session.run(None, {name: feeds[name] for name in names})
        kept = dict(zip(["h", "c"] if len(left) == 2 else ["state"], left, strict=True))
        answers.append(first.ravel())
    return answers


@pytest.mark.skipif(SILERO is None, reason="silero-vad is not installed here")
@pytest.mark.parametrize("name", [*FILES, "silero_vad_16k_sequence"])
def test_sileros_files_answer_as_in_a_plain_loop(name: str) -> None:
    """Four streams interleaved."""
    assert SILERO is not None
    assert SILERO.origin is not None
    path = str(Path(SILERO.origin).parent / "data" / f"{name}.onnx")
    rng = np.random.default_rng(0)
    streams = {key: (rng.standard_normal((8, 576)) * 0.1).astype(np.float32) for key in "abcd"}
    state = {"h": "hn", "c": "cn"} if name.endswith("sequence") else {"state": "stateN"}
    takes_rate = "sr" in {each.name for each in onnxruntime.InferenceSession(path).get_inputs()}
    most = 1 if name in ("silero_vad_16k_sequence", "silero_vad_openvino_16k") else 16
    with Pipe(backend="OnnxTensor", model=path, max=most, state=state, state_of="id") as pipe:
        futures = {
            (key, number): pipe.submit(
                {"data": {"input": chunks[number], **({"sr": np.array(16000)} if takes_rate else {})}, "id": key}
            )
            for number in range(8)
            for key, chunks in streams.items()
        }
        for key, chunks in streams.items():
            for number, expected in enumerate(_plain(path, chunks)):
                result = futures[key, number].result(WAIT_S)["result"]
                np.testing.assert_allclose(np.ravel(result), expected, atol=1e-5)
