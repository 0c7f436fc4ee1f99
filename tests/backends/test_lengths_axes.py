"""Requests of different lengths where the model has the requests on another axis, and what goes with pad."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from length_models import elementwise, embedder, ids_of, time_major  # noqa: E402
from onnx import helper  # noqa: E402
from onnx_models import make_model  # noqa: E402

import fastpipe  # noqa: E402
from fastpipe.backends.model.onnx import OnnxTensor  # noqa: E402
from fastpipe.errors import ConfigError, ItemErrors  # noqa: E402


def steps_of(*lengths: int) -> list[Any]:
    return [np.random.default_rng(length).random((length, 1, 3), np.float32) for length in lengths]


def run(backend: Any, asked: Any) -> list[Any]:
    batch = [{"data": data} for data in asked]
    backend.forward(batch)
    return [request["result"] for request in batch]


@pytest.mark.parametrize(
    "keys",
    [
        {"pad": "longest"},
        {"pad": [16]},
        {"pad": {"to": "longest", "axis": 0, "outputs": {"doubled": 0, "turned": [1]}}},
        {"pad": {"to": [12, 20], "axis": {"x": "t"}}, "max": "4x64x3"},
    ],
)
@pytest.mark.parametrize("has_batch_axis", [True, False])
def test_the_length_may_be_in_front_of_the_requests(keys: dict[str, Any], has_batch_axis: bool) -> None:
    """Found by the names, or said as the model has its axes; each request gets its own length back, in place."""
    backend = OnnxTensor(**{"model": time_major(), "max": 4, **keys})
    asked = steps_of(9, 10, 11, 10)
    results = run(backend, [data if has_batch_axis else data[:, 0] for data in asked])
    for data, (doubled, turned) in zip(asked, results, strict=True):
        np.testing.assert_array_equal(doubled, 2 * data)
        np.testing.assert_array_equal(turned, 2 * data.transpose(2, 0, 1))
    (count,) = backend.padding_counts
    assert count.own == 40
    assert count.padding > 0


def test_axes_are_told_as_the_model_has_them() -> None:
    backend = OnnxTensor(model=time_major("rows"), max=4, batch_axis={"x": 1, "turned": 2, "doubled": 1}, pad=[12])
    with pytest.raises(ItemErrors) as caught:
        backend.forward([{"data": data} for data in steps_of(13)])
    (error,) = caught.value.errors.values()
    assert "input 'x', axis 0: expected a length of at most 12, got 13" in str(error)
    problems = {
        "axis": (
            1,
            r"input 'x': expected an axis of \('t', 'batch', 3\), but not the batch, which is 1, by its number",
        ),
        "outputs": (
            {"turned": [2]},
            r"output 'turned': expected an axis of \(3, 't', 'batch'\), but not the batch, whi",
        ),
    }
    for key, (value, problem) in problems.items():
        with pytest.raises(ConfigError, match=problem):
            OnnxTensor(model=time_major(), max=4, pad={"to": "longest", key: value})
    with pytest.raises(ConfigError, match=r"expected the length in the axes \[0\], got \(3, 5, 1\), .* that is \[1\]"):
        OnnxTensor(model=time_major(), max=4, pad={"to": "longest", "outputs": {"turned": 0}})


def test_outputs_are_chosen_and_named_where_requests_are_padded() -> None:
    """An output that is not handed on needs no place for the length either."""
    backend = OnnxTensor(model=elementwise(), max=4, pad="longest", outputs=["turned"], result_as="dict")
    asked = [data[:, 0] for data in steps_of(9, 10, 9)]
    for data, result in zip(asked, run(backend, asked), strict=True):
        assert list(result) == ["turned"]
        np.testing.assert_array_equal(result["turned"], 2 * data.T[None])


def test_a_request_of_several_rows_is_not_padded_where_requests_run_alone() -> None:
    """With max=1, too, which takes what comes where nothing is padded."""
    backend = OnnxTensor(model=elementwise(), max=1, pad=[12])
    ((doubled, _),) = run(backend, [np.ones((9, 3), np.float32)])
    assert doubled.shape == (1, 9, 3)
    with pytest.raises(ItemErrors, match="with or without a batch axis of 1 in front"):
        backend.forward([{"data": np.ones((2, 9, 3), np.float32)}])
    assert run(OnnxTensor(model=elementwise(), max=1), [np.ones((2, 9, 3), np.float32)])[0][0].shape == (2, 9, 3)


def test_who_is_refused_by_a_postprocessor_is_the_one_that_it_refused() -> None:
    """Of three lengths in one run, the second, which the others were padded to, brings no mask for MeanPooling."""
    head = {"name": "MeanPooling"}
    backend = OnnxTensor(
        model=embedder(), max=4, pad={"to": "longest", "max_padding": 1}, outputs=["tokens"], postprocessor=head
    )
    ids = ids_of(5, 7, 6)
    good, bad, last = ({"data": {"input_ids": each, "attention_mask": np.ones_like(each)}} for each in ids)
    del bad["data"]["attention_mask"]
    with pytest.raises(ItemErrors) as caught:
        backend.forward([good, bad, last])
    assert list(caught.value.errors) == [1]
    assert good["result"].shape == last["result"].shape
    assert "result" not in bad


def shared_model(speed: Any = ()) -> bytes:
    """Return a model of x (n, t), times a speed of that shape."""
    nodes = [helper.make_node("Mul", ["x", "speed"], ["y"])]
    return make_model(nodes, {"x": ["n", "t"], "speed": list(speed)}, {"y": ["n", "t"]})


def test_requests_that_are_padded_share_what_a_batch_shares() -> None:
    """Those with other values have a run of their own; trials take the example."""
    for shared in (None, {"speed": 2.0}):
        backend = OnnxTensor(model=shared_model(), max=8, pad={"to": "longest", "max_padding": 1}, shared=shared)
        asked = [(np.arange(length, dtype=np.float32), np.float32(speed)) for length in (3, 7, 5) for speed in (2, 3)]
        batch = [{"data": {"x": x, "speed": speed}} for x, speed in asked]
        backend.forward(batch)
        for (x, speed), request in zip(asked, batch, strict=True):
            np.testing.assert_array_equal(request["result"], x[None] * speed)
        assert (backend.padding_counts[0].own, backend.padding_counts[0].padding) == (30, 12)
    assert backend.bucket(batch[0]) == backend.bucket(batch[2]) != backend.bucket(batch[1])


def recurrent() -> bytes:
    nodes = [
        helper.make_node("Add", ["x", "h"], ["y"]),
        helper.make_node("Identity", ["h"], ["hn"]),
    ]
    return make_model(nodes, {"x": ["n", "t", 3], "h": ["n", 1, 3]}, {"y": ["n", "t", 3], "hn": ["n", 1, 3]})


@pytest.mark.parametrize(
    ("model", "keys", "problem"),
    [
        (elementwise, {"many_rows": True}, "pad: expected requests of one row each, got many_rows"),
        (
            lambda: shared_model(["t"]),
            {"shared": ["speed"]},
            "pad: input 'speed': expected an axis for the requests, which differ in length, got one that a batch",
        ),
        (elementwise, {"batch_axis": {"turned": "none"}}, "pad: output 'turned': expected an axis for the requests"),
        (elementwise, {"split_by": {"turned": 0}}, "pad: output 'turned': expected a row for each request"),
        (recurrent, {"state": {"h": "hn"}}, "state and pad: a state would have gone through the padding"),
    ],
)
def test_what_does_not_go_with_pad_is_refused(model: Any, keys: dict[str, Any], problem: str) -> None:
    """And says which of the two to leave out."""
    with pytest.raises(ConfigError, match=problem):
        OnnxTensor(model=model(), max=4, pad="longest", **keys)


def test_text_is_not_padded() -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    words = (onnx.TensorProto.STRING, ["n", "t"])
    with pytest.raises(ConfigError, match="pad: input 'x': expected numbers to pad, got text"):
        OnnxTensor(model=make_model(nodes, {"x": words}, {"y": words}), max=4, pad="longest")


def test_a_model_of_values_is_not_padded() -> None:
    """Of sequences no batch is made; it says so of pad, too."""
    sequence = helper.make_tensor_sequence_value_info("x", onnx.TensorProto.FLOAT, None)
    output = helper.make_tensor_value_info("n", onnx.TensorProto.INT64, [])
    graph = helper.make_graph([helper.make_node("SequenceLength", ["x"], ["n"])], "g", [sequence], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ConfigError, match="leave out pad, max_tokens"):
        OnnxTensor(model=model.SerializeToString(), pad="longest", max_tokens=64)


def test_a_pipe_forms_batches_by_length_on_another_axis() -> None:
    """The engine is told the length, wherever it is."""
    with fastpipe.Pipe(node={"backend": "OnnxTensor", "model": time_major(), "max": 8, "pad": "longest"}) as pipe:
        asked = steps_of(3, 40, 3, 40, 3, 40)
        futures = [pipe.submit({"data": data}) for data in asked]
        for data, future in zip(asked, futures, strict=True):
            np.testing.assert_array_equal(future.result()["result"][0], 2 * data)
        padding = pipe.stats()["nodes"]["node"]["padding"]
    assert (padding["own"], padding["padding"]) == (129, 0)


def torch_time_major(torch: Any) -> Any:
    class TimeMajor(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return {"doubled": 2 * x, "turned": (2 * x).permute(2, 0, 1)}

    return TimeMajor()


def test_torch_models_are_padded_on_any_axis_and_name_their_outputs() -> None:
    """By the keys of the dict that the module gives, which are known once it has run."""
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    backends = pytest.importorskip("fastpipe.backends.model.torch")
    keys: dict[str, Any] = {
        "max": "4x64x3",
        "batch_axis": {"x": 1, "doubled": 1, "turned": 2},
        "pad": {"to": "longest", "axis": 0, "outputs": {"turned": 1}},
        "device": ["cpu"],
        "outputs": ["turned", "doubled"],
        "result_as": "dict",
    }
    backend = backends.TorchTensor(model=torch_time_major(torch), **keys)
    asked = [torch.from_numpy(data) for data in steps_of(9, 10, 11, 10)]
    for data, result in zip(asked, run(backend, asked), strict=True):
        assert list(result) == ["turned", "doubled"]
        assert torch.equal(result["doubled"], 2 * data)
        assert torch.equal(result["turned"], 2 * data.permute(2, 0, 1))
    wrong = {**keys, "pad": {"to": "longest", "axis": 0, "outputs": {"turned": 0}}}
    with pytest.raises(ConfigError, match=r"output 'turned': expected the length in the axes \[0\].* that is \[1\]"):
        backends.TorchTensor(model=torch_time_major(torch), **wrong)
    unknown = {**keys, "pad": {"to": "longest", "axis": 0, "outputs": {"turn": 1}}}
    with pytest.raises(ConfigError, match=r"no output is named 'turn'.*turned"):
        backends.TorchTensor(model=torch_time_major(torch), **unknown)
