"""TensorrtTensor against a strict fake of TensorRT 10, 11 and TensorRT-RTX, and what is there of the real ones."""

from __future__ import annotations

import importlib
import itertools
import logging
import secrets
import sys
import threading
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from fake_tensorrt import MODULES, NAMES, make  # noqa: E402
from length_models import elementwise, pictures, time_major  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402
from onnx_models import FLOAT, make_model  # noqa: E402

import fastpipe  # noqa: E402
from fastpipe.backends.model import tensorrt_api  # noqa: E402
from fastpipe.backends.model.encrypted import KEY_VARIABLE, encrypt, encrypt_model  # noqa: E402
from fastpipe.backends.model.onnx_runtime import precision as onnx_precision  # noqa: E402
from fastpipe.backends.model.onnx_runtime.precision import with_precision  # noqa: E402
from fastpipe.backends.model.tensorrt_api import find_library  # noqa: E402
from fastpipe.errors import BackendError, ConfigError, ItemErrors, MissingExtra  # noqa: E402

HANG_S = 60


# ---- models ----------------------------------------------------------------------------------------------------------


def doubling_model(shape=("n", 4), kind=FLOAT):
    """y = x + x, for any shape."""
    node = helper.make_node("Add", ["x", "x"], ["y"], name="double")
    return make_model([node], {"x": (kind, list(shape))}, {"y": (kind, list(shape))})


def two_by_two_model():
    """Two inputs of different shapes, two outputs: total = sum(image) + number, number back."""
    nodes = [
        helper.make_node("ReduceSum", ["image", "axes"], ["sum"], keepdims=0),
        helper.make_node("Add", ["sum", "number"], ["total"]),
        helper.make_node("Identity", ["number"], ["echo"]),
    ]
    axes = {"axes": np.array([1, 2, 3])}
    return make_model(nodes, {"image": ["n", 3, "h", "w"], "number": ["n"]}, {"total": ["n"], "echo": ["n"]}, axes)


def convolution_model():
    """A convolution and a ReLU, named, with weights."""
    weights = np.random.default_rng(7).normal(size=(8, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "weights"], ["features"], pads=[1, 1, 1, 1], name="stem/conv"),
        helper.make_node("Relu", ["features"], ["y"], name="stem/relu"),
    ]
    return make_model(nodes, {"x": ["n", 3, "h", "w"]}, {"y": ["n", 8, "h", "w"]}, {"weights": weights})


def quantized_model():
    """y = x, by way of int8."""
    constants = {"scale": np.array(0.5, np.float32), "zero": np.array(0, np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["small"]),
        helper.make_node("DequantizeLinear", ["small", "scale", "zero"], ["y"]),
    ]
    return make_model(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, constants)


def types_in(model):
    """Return output name -> element type, of every value that the checker can tell."""
    inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(model))
    return {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}


# ---- the fake in place of the library, the CPU in place of a GPU -----------------------------------------------------


@pytest.fixture
def cache_home(tmp_path, monkeypatch):
    """Keep engines in a folder of this test, and share none with another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fastpipe" / "engines"


def install(monkeypatch, flavour):
    """Put a fake module in the place of the real ones, and return it."""
    module = make(flavour)
    for name in set(MODULES.values()):
        monkeypatch.setitem(sys.modules, name, module if name == MODULES[flavour] else None)
    return module


@pytest.fixture(params=["10", "11", "rtx"])
def fake(request, monkeypatch, cache_home):
    """A library of each flavour."""
    return install(monkeypatch, request.param)


HANDLES = itertools.count(0x1000)


class FakeStream:
    """Where work is queued: which one is entered is known to the fake."""

    def __init__(self, world):
        self.world = world
        self.handle = next(HANDLES)

    @contextmanager
    def entered(self):
        self.world.streams.add(self.handle)
        try:
            yield SimpleNamespace(handle=self.handle)
        finally:
            self.world.streams.discard(self.handle)


@pytest.fixture
def tensorrt(fake, monkeypatch):
    """The module of the backend, on the CPU."""
    torch = pytest.importorskip("torch")
    module = importlib.import_module("fastpipe.backends.model.tensorrt")

    def open_cpu(device_id):
        return module._Gpu(torch.device("cpu"), FakeStream(fake.world), {"GPU": f"a CPU, number {device_id}"})

    monkeypatch.setattr(module, "_open_gpu", open_cpu)
    monkeypatch.setattr(module, "_use", lambda gpu: nullcontext())
    module._engines.clear()  # a failed test's traceback keeps its own alive
    return module


def run(backend, *data):
    """Run the data as one batch and return the results, as NumPy arrays."""
    batch = [{"data": item} for item in data]
    backend.forward(batch)
    return [np.asarray(request["result"]) for request in batch]


def rows(*numbers, width=4):
    return [np.full(width, number, np.float32) for number in numbers]


# ---- running ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_each_request_gets_its_own_row_with_a_batch_axis_of_one(tensorrt, batch_size):
    """Arrays and tensors, with and without a batch axis, share a batch."""
    torch = sys.modules["torch"]
    backend = tensorrt.TensorrtTensor(model=doubling_model(), max=5)
    data = [row if index % 2 else torch.from_numpy(row[None]) for index, row in enumerate(rows(*range(batch_size)))]
    results = run(backend, *data)
    assert [result.shape for result in results] == [(1, 4)] * batch_size
    assert [result[0, 0] for result in results] == [2 * number for number in range(batch_size)]


def test_requests_of_different_lengths_are_padded_and_their_results_cut(tensorrt):
    """As in OnnxTensor: by the names that the file has for the engine's open axes; the engine gets one shape."""
    backend = tensorrt.TensorrtTensor(model=elementwise(), max="4x64x3", pad="longest", max_tokens=40)
    asked = [np.full((length, 3), length, np.float32) for length in (9, 10, 8)]
    batch = [{"data": item} for item in asked]
    backend.forward(batch)
    for item, request in zip(asked, batch, strict=True):
        doubled, turned = (np.asarray(result) for result in request["result"])
        np.testing.assert_array_equal(doubled, 2 * item[None])
        np.testing.assert_array_equal(turned, 2 * item.T[None])
    assert (backend.padding_counts[0].own, backend.padding_counts[0].padding) == (27, 3)
    assert (backend.max_padded, [backend.length_of(request) for request in batch]) == (40, [9, 10, 8])


def test_pictures_are_padded_on_both_sides_and_cut_back(tensorrt):
    """By a list of tables; the engine gets one shape, with the mask that was made."""
    sides = [{"to": "longest", "axis": side, "max_padding": 1} for side in ("height", "width")]
    backend = tensorrt.TensorrtTensor(model=pictures(), max="4x1x16x16,4x16x16", pad=sides)
    asked = [np.full((1, *size), size[0], np.float32) for size in ((5, 12), (12, 5), (7, 7))]
    batch = [{"data": item} for item in asked]
    backend.forward(batch)
    for item, request in zip(asked, batch, strict=True):
        doubled, halved, total = (np.asarray(result) for result in request["result"])
        np.testing.assert_array_equal(doubled, 2 * item[None])
        assert halved.shape == (1, 1, item.shape[1] // 2, item.shape[2] // 2)
        assert total.tolist() == [[item.sum() + item.size]]


def test_lengths_in_front_of_the_requests_are_padded_and_cut_in_place(tensorrt):
    backend = tensorrt.TensorrtTensor(model=time_major(), max="4x64x3", pad=[16])
    asked = [np.full((length, 1, 3), length, np.float32) for length in (9, 12, 9)]
    batch = [{"data": item} for item in asked]
    backend.forward(batch)
    for item, request in zip(asked, batch, strict=True):
        doubled, turned = request["result"]
        np.testing.assert_array_equal(np.asarray(doubled), 2 * item)
        np.testing.assert_array_equal(np.asarray(turned), 2 * item.transpose(2, 0, 1))


def state_model(width=3):
    """Add x to both layers of a state (layers, batch, 3), and answer with the sum of the layers."""
    nodes = [
        helper.make_node("Add", ["h", "x"], ["hn"]),
        helper.make_node("ReduceSum", ["hn", "first"], ["y"], keepdims=0),
    ]
    inputs = {"x": ["batch", 3], "h": [2, "batch", width]}
    return make_model(nodes, inputs, {"y": ["batch", 3], "hn": [2, "batch", 3]}, {"first": np.array([0])})


@pytest.mark.parametrize("most", [1, 4])
def test_a_state_is_kept_for_each_sequence_on_the_device(tensorrt, most):
    """Streams interleaved; what is kept is memory of its own, and not the batch's."""
    torch = sys.modules["torch"]
    state = {"h": {"output": "hn", "initial": 1}}
    backend = tensorrt.TensorrtTensor(model=state_model(), max=most, state=state)
    assert backend.stateful
    kept = {}
    for number in (1, 2, 3):
        batch = [{"data": np.full(3, number * factor, np.float32), "state": kept.get(factor)} for factor in (1, 10)]
        backend.forward(batch)
        for factor, request in zip((1, 10), batch, strict=True):
            wanted = 2 * (1 + factor * sum(range(number + 1)))
            assert request["result"].tolist() == [[wanted] * 3]
            kept[factor] = request["state"]
            assert isinstance(kept[factor]["h"], torch.Tensor)
            assert kept[factor]["h"].untyped_storage().nbytes() == 2 * 3 * 4


def test_a_state_that_does_not_fit_an_engine_is_refused(tensorrt):
    """By the names, and by what is declared."""
    for model, state, said in (
        (state_model(), {"h": "hm"}, "state, input 'h': the model has no output 'hm'; it has"),
        (state_model(), {"h": "y"}, "state, input 'h', output 'y': expected an output"),
        (state_model(1), {"h": "hn"}, r"output 'hn': expected an output with, of one request, the shape \(2, 1\)"),
    ):
        with pytest.raises(ConfigError, match=said):
            tensorrt.TensorrtTensor(model=model, max=4, state=state)


def test_results_stay_what_they_are_while_the_engine_runs_on(tensorrt):
    """They are memory of their own, not the context's."""
    backend = tensorrt.TensorrtTensor(model=doubling_model(), max=2)
    first = run(backend, *rows(1, 2))
    run(backend, *rows(7, 8))
    assert [result[0, 0] for result in first] == [2, 4]


def test_tensorrt_is_told_only_what_has_changed(tensorrt, fake):
    """The same shapes again: not a shape, and no address of an input, is set a second time."""
    backend = tensorrt.TensorrtTensor(model=doubling_model(), max=4)
    run(backend, *rows(1, 2, 3))
    before = len(fake.world.calls)
    run(backend, *rows(4, 5, 6))
    later = fake.world.calls[before:]
    assert "set_input_shape" not in later
    assert "set_optimization_profile_async" not in later
    assert later.count("set_tensor_address") <= 1  # of the output, which lies elsewhere each time
    run(backend, *rows(4, 5))
    assert fake.world.calls[before:].count("set_input_shape") == 1


def test_several_inputs_and_outputs_keep_the_models_order(tensorrt):
    """Lists, or a mapping by name; requests of other shapes run apart."""
    backend = tensorrt.TensorrtTensor(model=two_by_two_model(), max="4x3x8x8,4")
    small, large = np.ones((3, 2, 2), np.float32), np.ones((3, 8, 8), np.float32)
    batch = [{"data": [small, np.float32(1)]}, {"data": {"number": np.float32(2), "image": large}}]
    batch.append({"data": [small, np.float32(3)]})
    backend.forward(batch)
    assert [[float(part) for part in request["result"]] for request in batch] == [[13, 1], [194, 2], [15, 3]]


def test_each_profile_has_a_context_of_its_own(tensorrt, fake):
    """A request runs in one that it fits in."""
    backend = tensorrt.TensorrtTensor(model=doubling_model(("n", "w")), max="4x8;1x64")
    assert fake.world.calls.count("create_execution_context") == 2
    assert [result.shape for result in run(backend, *rows(1, 2, width=8))] == [(1, 8)] * 2
    assert run(backend, *rows(1, width=64))[0].shape == (1, 64)
    with pytest.raises(ItemErrors, match=r"expected float32 of shape \(1\.\.8\) or \(1\.\.64\)|got float32 of shape"):
        run(backend, *rows(1, width=65))


def test_a_batch_smaller_than_min_is_filled_up_with_zeros(tensorrt):
    """Also after a larger one has left its rows in the memory of the inputs."""
    total = make_model(
        [helper.make_node("ReduceSum", ["x"], ["s"]), helper.make_node("Add", ["x", "s"], ["y"])],
        {"x": ["n", 4]},
        {"y": ["n", 4]},
    )
    backend = tensorrt.TensorrtTensor(model=total, min=2, max=3, rows="batch")
    run(backend, *rows(100, 100, 100))
    assert run(backend, *rows(1))[0].tolist() == [[5, 5, 5, 5]]


def test_integers_and_other_floats_are_converted(tensorrt):
    """What cannot be is an error of its request alone."""
    backend = tensorrt.TensorrtTensor(model=doubling_model(), max=4)
    assert run(backend, np.arange(4, dtype=np.uint8))[0].tolist() == [[0, 2, 4, 6]]
    assert run(backend, *[np.arange(4, dtype=np.float64)[::-1]] * 2)[1].tolist() == [[6, 4, 2, 0]]
    batch = [{"data": np.zeros(4, np.complex64)}, {"data": rows(1)[0]}, {"data": "text"}, {"no": 1}]
    with pytest.raises(ItemErrors) as caught:
        backend.forward(batch)
    assert sorted(caught.value.errors) == [0, 2, 3]
    assert "expected float32 of shape (4,)" in str(caught.value.errors[0])
    assert "which is no array" in str(caught.value.errors[2])
    assert "no 'data'" in str(caught.value.errors[3])
    assert float(batch[1]["result"][0, 0]) == 2


def test_a_number_that_an_engines_input_cannot_hold_fails_its_request_alone(tensorrt):
    """It would be infinite in silence; the others are answered, and what came infinite stays so."""
    torch = sys.modules["torch"]
    backend = tensorrt.TensorrtTensor(model=doubling_model(kind=TensorProto.FLOAT16), max=4)
    batch = [{"data": torch.full((1, 4), number)} for number in (1.0, 7e4, 2.0, float("inf"))]
    with pytest.raises(ItemErrors) as caught:
        backend.forward(batch)
    ((index, error),) = caught.value.errors.items()
    expected = "input 'x': expected values of -65504 to 65504, which is what float16 can hold, got 70000"
    assert (index, str(error).partition(", ")[2]) == (1, expected)
    assert [float(batch[index]["result"][0, 0]) for index in (0, 2, 3)] == [2, 4, float("inf")]
    with pytest.raises(ItemErrors, match="which is what float32 can hold, got 1e"):
        tensorrt.TensorrtTensor(model=doubling_model(), max=2).forward([{"data": np.full((1, 4), 1e39)}])


def test_postprocessors_get_tensors(tensorrt):
    """By name, or a function of the outputs."""
    backend = tensorrt.TensorrtTensor(model=doubling_model(), max=2, postprocessor="SoftmaxArgMax")
    request = {"data": np.array([0, 3, 1, 2], np.float32)}
    backend.forward([request])
    assert (request["result"], request["class"]) == (1, 1)
    backend = tensorrt.TensorrtTensor(model=doubling_model(), max=2, postprocessor={"name": "TopK", "k": 2})
    assert backend.keeps_input
    assert [result.tolist() for result in run(backend, request["data"], -request["data"])] == [[1, 3], [0, 2]]
    sums = tensorrt.TensorrtTensor(
        model=doubling_model(), max=2, postprocessor=lambda outputs, batch: outputs[0].sum(1)
    )
    assert [float(result) for result in run(sums, *rows(1, 2))] == [8, 16]


def test_in_a_pipe_instances_share_the_engine_and_run_at_the_same_time(tensorrt, fake):
    """One is built and loaded; each has a context, in which the fake allows no two threads."""
    fastpipe_model = doubling_model()
    with fastpipe.Pipe(backend="TensorrtTensor", model=fastpipe_model, max=4, instance_num=3) as pipe:
        assert fake.world.calls.count("build_serialized_network") == 1
        assert fake.world.calls.count("deserialize_cuda_engine") == 1
        assert fake.world.calls.count("create_execution_context") == 3
        answers = []

        def client(number):
            for _ in range(20):
                answers.append(float(pipe({"data": rows(number)[0]})["result"][0, 0]) == 2 * number)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG_S)
    assert answers == [True] * 120


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ("execute_async_v3", "the run could not be queued"),
        ("set_tensor_address", "refuses the memory for 'x'"),
        ("set_input_shape", r"refuses shape \(2, 4\) for 'x'"),
        ("set_optimization_profile_async", "refuses profile 0"),
    ],
)
def test_what_tensorrt_refuses_while_it_runs_is_an_error_with_its_reason(tensorrt, fake, call, what):
    """And the next batch is told everything that was refused once more."""
    backend = tensorrt.TensorrtTensor(model=doubling_model(), max=2, rows="batch", warm_up=False)
    fake.world.fails.add(call)
    with pytest.raises(BackendError, match=f"{what}: {call} was made to fail") as caught:
        run(backend, *rows(1, 2))
    assert "run with inputs of shape (2, 4)" in caught.value.__notes__[0]
    fake.world.fails.clear()
    assert [result[0, 0] for result in run(backend, *rows(1, 2))] == [2, 4]


def test_after_a_shape_was_refused_the_last_good_one_is_set_again(tensorrt, fake):
    """What the context holds by then is TensorRT's secret."""
    backend = tensorrt.TensorrtTensor(model=doubling_model(), max=2)
    run(backend, *rows(1, 2))
    fake.world.fails.add("set_input_shape")
    with pytest.raises(BackendError, match=r"refuses shape \(1, 4\)"):
        run(backend, *rows(1))
    fake.world.fails.clear()
    before = len(fake.world.calls)
    assert [result[0, 0] for result in run(backend, *rows(1, 2))] == [2, 4]
    assert "set_input_shape" in fake.world.calls[before:]


def test_an_output_whose_size_depends_on_the_data_is_an_error(tensorrt):
    """There would have to be memory for it before it is known."""
    nodes = [helper.make_node("NonZero", ["x"], ["y"])]
    model = make_model(nodes, {"x": [1, 4]}, {"y": (TensorProto.INT64, [2, "found"])})
    with pytest.raises(BackendError, match="output 'y' depends on the data, which is not supported"):
        tensorrt.TensorrtTensor(model=model)


def test_a_model_that_cannot_be_batched_is_told_so(tensorrt):
    """An output without rows is noticed before it is cut into rows."""
    model = make_model([helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], {"x": ["n", 4]}, {"y": []})
    with pytest.raises(ConfigError, match=r"expected 4 rows for a batch of 4, got shape \(\); .* needs max=1"):
        tensorrt.TensorrtTensor(model=model, max=4)
    assert run(tensorrt.TensorrtTensor(model=model, max=1), *rows(2))[0] == 8


def test_a_model_that_mixes_its_rows_is_refused(tensorrt):
    """As for OnnxTensor: by trials, once for an engine, however many instances share it."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0]), helper.make_node("Sub", ["x", "mean"], ["y"])]
    model = make_model(nodes, {"x": ["n", 4]}, {"y": ["n", 4]})
    with pytest.raises(ConfigError, match=r"output 'y': .*a row in a batch of \d is not what it is alone"):
        tensorrt.TensorrtTensor(model=model, max=4)
    assert tensorrt.TensorrtTensor(model=model, max=4, rows="batch").max_batch == 4
    assert run(tensorrt.TensorrtTensor(model=model), *rows(2))[0].tolist() == [[0] * 4]


def test_an_engine_is_tried_once_for_all_its_instances(tensorrt, fake):
    """The second instance runs its warm-up alone."""
    model, runs = doubling_model(), []
    kept = []
    for _ in range(2):
        before = fake.world.calls.count("execute_async_v3")
        kept.append(tensorrt.TensorrtTensor(model=model, max=4))
        runs.append(fake.world.calls.count("execute_async_v3") - before)
    assert runs == [2 + 8, 2]


def test_inputs_that_share_an_axis_and_a_batch_on_another_one_are_seen_by_their_names_in_the_file(tensorrt):
    """The engine knows only that they are open."""
    shapes = {"a": ["n", "seq"], "b": ["n", "seq"]}
    node = helper.make_node("Mul", ["a", "b"], ["y"])
    backend = tensorrt.TensorrtTensor(model=make_model([node], shapes, {"y": ["n", "seq"]}), max="2x8,2x8")
    with pytest.raises(ItemErrors, match="share the axis 'seq', but it is 4 in 'a' and 1 in 'b'"):
        run(backend, [*rows(1), *rows(1, width=1)])
    node = helper.make_node("Add", ["x", "state"], ["y"])
    model = make_model([node], {"x": ["n", 4], "state": [2, "n", 4]}, {"y": [2, "n", 4]})
    backend = tensorrt.TensorrtTensor(model=model, max="2x4,2x2x4")
    states = [np.arange(8, dtype=np.float32).reshape(2, 1, 4) * number for number in (1, 2)]
    results = run(backend, *[[row, state] for row, state in zip(rows(10, 20), states, strict=True)])
    assert [result.tolist() for result in results] == [(10 + states[0]).tolist(), (20 + states[1]).tolist()]


def gated_model():
    """A state [2, "y", 4] plus x ["x", 4], times a scale that all share; and, per row, the sum of the state."""
    nodes = [
        helper.make_node("Add", ["state", "x"], ["added"]),
        helper.make_node("Mul", ["added", "scale"], ["new_state"]),
        helper.make_node("ReduceSum", ["state", "axes"], ["total"], keepdims=0),
    ]
    inputs = {"x": ["x", 4], "state": [2, "y", 4], "scale": [1]}
    return make_model(nodes, inputs, {"new_state": None, "total": None}, {"axes": np.array([0, 2])})


@pytest.mark.parametrize("many_rows", [False, True])
def test_a_state_on_its_second_axis_and_a_shared_input_reach_an_engine(tensorrt, many_rows):
    """Requests with another scale run apart; the engine is built for the axes as the model has them."""
    keys = {"batch_axis": {"state": 1, "new_state": 1}, "shared": ["scale"], "many_rows": many_rows}
    backend = tensorrt.TensorrtTensor(
        model=gated_model(), max=6, result_as="dict", outputs=["total", "new_state"], **keys
    )
    random, data = np.random.default_rng(1), []
    for count, scale in [(2, 1), (1, 2), (3, 1), (0, 1)] if many_rows else [(1, 1), (1, 2), (1, 1)]:
        x, state = random.standard_normal((count, 4)), random.standard_normal((2, count, 4))
        data.append([np.float32(x), np.float32(state), np.float32([scale])])
    batch = [{"data": each} for each in data]
    backend.forward(batch)
    for request, (x, state, scale) in zip(batch, data, strict=True):
        result = {name: tensor.numpy() for name, tensor in request["result"].items()}
        assert list(result) == ["total", "new_state"]
        np.testing.assert_allclose(result["new_state"], (state + x) * scale, rtol=1e-5)
        np.testing.assert_allclose(result["total"], state.sum((0, 2)), rtol=1e-4, atol=1e-5)
        assert result["new_state"].shape == (2, len(x), 4)
    with pytest.raises(ItemErrors, match=r"input 'state': expected float32 of shape \(2, 4\), with"):
        run(backend, [data[0][0], data[0][1][..., :3], data[0][2]])


def test_an_engine_for_one_request_takes_all_rows_of_a_fixed_batch(tensorrt):
    """Where a batch cannot be filled up; an engine with an open batch takes one row, for which it is built."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0]), helper.make_node("Sub", ["x", "mean"], ["y"])]
    model = make_model(nodes, {"x": [3, 2]}, {"y": [3, 2]})
    with pytest.raises(ConfigError, match="no proof"):
        tensorrt.TensorrtTensor(model=model)
    backend = tensorrt.TensorrtTensor(model=model, max=1)
    assert run(backend, np.arange(6, dtype=np.float32).reshape(3, 2))[0].tolist() == [[-2, -2], [0, 0], [2, 2]]
    with pytest.raises(ItemErrors, match=r"with a batch axis of 3 in front \(.*is not what it is alone"):
        run(backend, *rows(1, width=2))
    with pytest.raises(ItemErrors, match="with or without a batch axis of 1 in front, got"):
        run(tensorrt.TensorrtTensor(model=doubling_model()), np.ones((3, 4), np.float32))


def test_rows_with_the_number_of_their_picture_are_given_back_from_an_engine(tensorrt):
    """As many for each request as it has, also none."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("Identity", ["flat"], ["boxes"]),
    ]
    model = make_model(nodes, {"x": ["n", 4]}, {"boxes": None}, {"shape": np.array([-1, 2])})
    backend = tensorrt.TensorrtTensor(model=model, max=2, split_by={"boxes": 0}, rows="batch")
    data = [np.array(each, np.float32) for each in ([1, 5, 1, 6], [0, 7, 1, 8])]
    assert [result.tolist() for result in run(backend, *data)] == [[[0, 7]], [[0, 5], [0, 6], [0, 8]]]


def test_the_wider_unsigned_integers_are_converted(tensorrt):
    """torch knows them, but has no common type for them and others."""
    torch = sys.modules["torch"]
    backend = tensorrt.TensorrtTensor(model=doubling_model(), max=2)
    for dtype in (torch.uint16, torch.uint32):
        data = [torch.tensor([1, 2, 3, 60000]).to(dtype)] * 2
        for results in (run(backend, data[0]), run(backend, *data)):
            assert [result.tolist() for result in results] == [[[2, 4, 6, 120000]]] * len(results)


# ---- building --------------------------------------------------------------------------------------------------------


def test_builds_of_a_process_come_one_after_the_other(fake):
    """TensorRT's builder is used by one thread at a time; the fake asserts that there is no second one."""
    library = find_library()
    inside, errors = threading.Barrier(2), []
    fake.world.during_build = lambda: threading.Event().wait(0.05)

    def build():
        inside.wait(HANG_S)
        try:
            library.build(doubling_model([1, 4]), lambda inputs: [])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert errors == []
    assert fake.world.calls.count("build_serialized_network") == 2


def test_what_cannot_be_parsed_or_built_or_loaded_says_why(fake):
    """The parser's reasons, or the log's."""
    library = find_library()
    with pytest.raises(ConfigError, match="cannot parse it: ModelProto cannot be read"):
        library.build(b"junk", lambda inputs: [])
    with pytest.raises(ConfigError, match="cannot build an engine: network has dynamic inputs"):
        library.build(doubling_model(), lambda inputs: [])
    with pytest.raises(ConfigError, match="inconsistent with other shapes"):
        library.build(doubling_model(), lambda inputs: [{"x": ((2, 4), (1, 4), (1, 4))}])
    fake.world.fails.add("add_optimization_profile")
    with pytest.raises(ConfigError, match=r"refuses a profile with the shapes \{'x': .*was made to fail"):
        library.build(doubling_model(), lambda inputs: [{"x": ((1, 4), (1, 4), (1, 4))}])
    with pytest.raises(ConfigError, match="cannot load the engine: the engine plan file is not compatible"):
        library.load(b"junk")
    fake.world.has_gpu = False
    with pytest.raises(ConfigError, match=r"cannot build an engine .*returned nullptr"):
        library.build(doubling_model([1, 4]), lambda inputs: [])


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (
            make_model([helper.make_node("Identity", ["shape_of_x"], ["y"])], {"shape_of_x": [2]}, {"y": [2]}),
            "'shape_of_x' is the shape of something, which has to lie on the CPU",
        ),
        (doubling_model((1, 4), TensorProto.BFLOAT16), "'x' is bfloat16, which no request can be checked for"),
    ],
)
def test_inputs_that_no_request_can_bring_are_refused(tensorrt, model, problem):
    """Shapes that lie on the CPU, and types that NumPy lacks."""
    with pytest.raises(ConfigError, match=problem):
        tensorrt.TensorrtTensor(model=model)


def test_an_open_axis_without_a_largest_size_is_refused(tensorrt):
    """A profile needs one."""
    with pytest.raises(ConfigError, match=r"max must say the largest size .*'x' \('batch', 3, 'h', 'w'\)"):
        tensorrt.TensorrtTensor(model=convolution_model(), max=4)


def test_messages_go_to_logging_and_nothing_they_do_reaches_tensorrt(fake, caplog):
    """It calls from threads of its own, in which an exception would end the process."""
    library = find_library()
    severity = fake.ILogger.Severity
    with caplog.at_level(logging.DEBUG):
        for level in severity:
            library._messages.log(level, f"this is {level.name}")
        library._messages.log(severity.ERROR, None)
    levels = [record.levelname for record in caplog.records]
    assert levels == ["ERROR", "ERROR", "WARNING", "INFO", "DEBUG"]
    assert caplog.messages[1] == f"{library.title}: this is ERROR"
    assert {record.name for record in caplog.records} == {"fastpipe.backends.model.tensorrt_api"}


def test_without_any_tensorrt_the_extra_is_named(monkeypatch):
    """Both modules are looked for."""
    for name in set(MODULES.values()):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"TensorrtTensor needs .*pip install 'fastpipe-engine\[tensorrt\]'"):
        find_library()


def test_without_a_gpu_the_error_says_so(fake):
    """One line, at build."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="there is no GPU 0; torch sees 0"):
        fastpipe.Pipe(backend="TensorrtTensor", model=doubling_model(), max=2)


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_a_second_process_loads_what_the_first_has_built(tensorrt, fake, cache_home):
    """Precision, shapes and GPU are part of the key, so that another one is built for each."""

    def builds(**parameters):
        tensorrt._engines.clear()  # as if this were another process
        before = fake.world.calls.count("build_serialized_network")
        tensorrt.TensorrtTensor(model=convolution_model(), **parameters)
        return fake.world.calls.count("build_serialized_network") - before

    shapes = {"max": "2x3x8x8"}
    assert [builds(**shapes), builds(**shapes)] == [1, 0]
    assert builds(max="4x3x8x8") == 1
    assert builds(precision="fp16", **shapes) == 1
    assert builds(mean=[1.0, 2.0, 3.0], **shapes) == 1
    assert builds(device_id=1, **shapes) == 1
    assert [builds(**shapes), builds(precision="fp16", **shapes)] == [0, 0]
    measured = 0 if fake.world.is_rtx else 2  # a file for each GPU
    assert len(list(cache_home.glob("*.engine"))) == 5 + measured


def test_model_cache_says_where(tensorrt, fake, tmp_path):
    """As a parameter of a pipe it is written as torchpipe writes it."""
    for place in ("engines", "resnet.trt"):
        configuration = {"model::cache": str(tmp_path / place), "model": doubling_model(), "max": 2}
        with fastpipe.Pipe(backend="TensorrtTensor", **configuration) as pipe:
            assert float(pipe({"data": rows(3)[0]})["result"][0, 0]) == 6
        tensorrt._engines.clear()
    assert (tmp_path / "resnet.trt").is_file()
    # And what TensorRT measured; where there is one file, that is in the default folder.
    assert len(list((tmp_path / "engines").glob("*.engine"))) == (1 if fake.world.is_rtx else 2)


def test_what_was_measured_is_given_to_the_next_build(tensorrt, fake):
    """TensorRT-RTX measures nothing while it builds."""
    tensorrt.TensorrtTensor(model=doubling_model(), max=2)
    tensorrt.TensorrtTensor(model=doubling_model(), max=3)
    assert fake.world.timings_given == ([] if fake.world.is_rtx else [b"", b"t"])


def test_another_version_builds_its_own(monkeypatch, cache_home):
    """The trap of a file name without a version in it."""
    torch = pytest.importorskip("torch")
    module = importlib.import_module("fastpipe.backends.model.tensorrt")
    monkeypatch.setattr(module, "_use", lambda gpu: nullcontext())
    for flavour in ("10", "11", "rtx"):
        fake = install(monkeypatch, flavour)
        gpu = module._Gpu(torch.device("cpu"), FakeStream(fake.world), {})
        monkeypatch.setattr(module, "_open_gpu", lambda device_id, gpu=gpu: gpu)
        module.TensorrtTensor(model=doubling_model(), max=2)
        assert fake.world.calls.count("build_serialized_network") == 1


def test_weights_beside_the_model_are_part_of_the_key(tmp_path):
    """The file of the model is the same; its weights are not."""
    from fastpipe.backends.model.source import fingerprint

    path = tmp_path / "model.onnx"
    fingerprints = []
    for number in (1, 2, 1):
        (tmp_path / "weights.bin").unlink(missing_ok=True)
        constants = {"w": np.full(1000, number, np.float32)}
        node = helper.make_node("Add", ["x", "w"], ["y"])
        model = onnx.load_from_string(make_model([node], {"x": [1, 1000]}, {"y": [1, 1000]}, constants))
        onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
        fingerprints.append(fingerprint(path))
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


# ---- precision -------------------------------------------------------------------------------------------------------


def test_mean_and_std_are_put_into_the_graph(tensorrt):
    """As for OnnxTensor."""
    backend = tensorrt.TensorrtTensor(
        model=doubling_model(("n", 3, 2, 2)), max=2, mean=[1.0, 2.0, 3.0], std=[2.0, 4.0, 8.0]
    )
    image = np.full((3, 2, 2), 11, np.uint8)
    assert run(backend, image)[0][0, :, 0, 0].tolist() == [10.0, 4.5, 2.0]


def test_fp16_computes_in_half_and_takes_and_gives_floats(tensorrt):
    """Near what float32 gives, and not equal to it."""
    model = convolution_model()
    image = np.random.default_rng(3).normal(size=(3, 8, 8)).astype(np.float32)
    exact = run(tensorrt.TensorrtTensor(model=model, max="2x3x8x8"), image)[0]
    half = run(tensorrt.TensorrtTensor(model=model, max="2x3x8x8", precision="fp16"), image)[0]
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 0.05


def test_named_nodes_keep_their_type():
    """Parts of names, as in torchpipe's precision::fp32 and precision::fp16."""
    model = convolution_model()
    half = TensorProto.FLOAT16
    assert set(types_in(with_precision(model, "fp32")).values()) <= {FLOAT}
    assert types_in(with_precision(model, "fp16"))["features"] == half
    mixed = onnx.load_from_string(with_precision(model, "fp16", float32=["relu"]))
    assert {node.op_type for node in mixed.graph.node} == {
        "Cast",
        "Conv",
        "Identity",
        "Relu",
    }
    assert [node.op_type for node in mixed.graph.node].count("Cast") == 2
    assert input_type(mixed, "Relu") == FLOAT
    assert input_type(mixed, "Conv") == half
    mixed = onnx.load_from_string(with_precision(model, "fp32", float16=["relu"]))
    assert input_type(mixed, "Relu") == half
    assert input_type(mixed, "Conv") == FLOAT


def input_type(model, operator):
    """Return the type of what goes into a node: that to which the Cast in front of it casts, or the value's own."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    name = next(node.input[0] for node in inferred.node if node.op_type == operator)
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    return next(value.type.tensor_type.elem_type for value in values if value.name == name)


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"precision": "best"}, "precision='best' went with TensorRT 11: choose fp32, fp16 or bf16"),
        ({"precision": "int8"}, r"quantised already.*nvidia-modelopt\[onnx\] writes one"),
        ({"precision": "fp32", "float32": ["relu"]}, "precision::fp32 names exceptions from fp16 or bf16"),
        ({"precision": "fp16", "float16": ["relu"]}, "precision::fp16 names exceptions from fp32"),
        ({"precision": "fp16", "float32": ["relv"]}, "precision::fp32: no node has 'relv' in its name"),
        ({"precision": "fp32", "float16": ["stem/convv"]}, "precision::fp16: .*; did you mean 'stem/conv'"),
        ({"precision": "fp32", "std": [0.0]}, "std must not have a zero"),
    ],
)
def test_what_cannot_be_cast_is_refused_in_words(parameters, problem):
    """What 11 has removed, and exceptions from nothing."""
    with pytest.raises(ConfigError, match=problem):
        with_precision(convolution_model(), **parameters)


def test_bf16_without_modelopt_names_it(monkeypatch):
    """There is no other converter for it."""
    monkeypatch.setitem(sys.modules, "modelopt.onnx", None)
    with pytest.raises(ConfigError, match=r"pip install 'nvidia-modelopt\[onnx\]'"):
        with_precision(convolution_model(), "bf16")


def test_bf16_by_modelopt():
    """Its autocast, with exceptions by name."""
    pytest.importorskip("modelopt.onnx.autocast", exc_type=ImportError)
    cast = onnx.load_from_string(with_precision(convolution_model(), "bf16"))
    assert input_type(cast, "Conv") == TensorProto.BFLOAT16
    assert {value.type.tensor_type.elem_type for value in [*cast.graph.input, *cast.graph.output]} == {FLOAT}
    mixed = onnx.load_from_string(with_precision(convolution_model(), "bf16", float32=["conv"]))
    assert input_type(mixed, "Conv") == FLOAT


def test_int8_takes_a_quantised_file_as_it_is(tensorrt):
    """The numbers are rounded to its steps."""
    model = quantized_model()
    assert with_precision(model, "int8") == model
    backend = tensorrt.TensorrtTensor(model=model, max=2, precision="int8")
    assert run(backend, np.array([0.1, 0.4, 1.0, 500], np.float32))[0].tolist() == [[0.0, 0.5, 1.0, 63.5]]


def test_casting_twice_gives_the_same_bytes():
    """Otherwise an engine would never be found again."""
    first, second = (with_precision(convolution_model(), "fp16", mean=[1.0], std=[2.0]) for _ in range(2))
    assert first == second
    assert onnx_precision.prepare(convolution_model(), half=False, mean=[1.0], std=None) != first


# ---- encrypted models ------------------------------------------------------------------------------------------------


def test_an_encrypted_model_runs_and_its_engine_is_kept_encrypted(tensorrt, fake, tmp_path, monkeypatch):
    """What is on the disk shows nothing of the weights."""
    pytest.importorskip("cryptography")
    key, path = secrets.token_bytes(32), tmp_path / "model.onnx.encrypted"
    (tmp_path / "model.onnx").write_bytes(doubling_model())
    encrypt_model(tmp_path / "model.onnx", path, key)
    for model_key in (KEY_VARIABLE, lambda: key):
        tensorrt._engines.clear()
        monkeypatch.setenv(KEY_VARIABLE, key.hex())
        backend = tensorrt.TensorrtTensor(model=path, max=2, model_cache=tmp_path / "kept", model_key=model_key)
        assert run(backend, *rows(2))[0].tolist() == [[4] * 4]
    assert fake.world.calls.count("build_serialized_network") == 1
    for kept in (path, *(tmp_path / "kept").glob("*.engine")):
        assert b"double" not in kept.read_bytes()


def test_onnx_tensor_takes_encrypted_models_too(tmp_path):
    """As files, and as bytes."""
    pytest.importorskip("cryptography")
    from fastpipe.backends.model.onnx import OnnxTensor

    key = secrets.token_bytes(32)
    (tmp_path / "model").write_bytes(encrypt(doubling_model(), key, "model"))
    for model in (tmp_path / "model", (tmp_path / "model").read_bytes()):
        assert run(OnnxTensor(model=model, max=2, model_key=lambda: key), *rows(2))[0].tolist() == [[4] * 4]


@pytest.mark.parametrize(
    ("damage", "key", "problem"),
    [
        (lambda data: data, bytes(32), "secret.onnx' cannot be decrypted: the key is another one, or the file was"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), None, "secret.onnx' cannot be decrypted"),
        (lambda data: data[:8] + bytes([data[8] ^ 1]) + data[9:], None, "secret.onnx' cannot be decrypted"),
        (lambda data: data[:25], None, "secret.onnx' cannot be decrypted"),
        (lambda data: data[:10], None, "secret.onnx' cannot be decrypted"),
        (lambda data: data, b"short", "model_key must return 32 bytes, got 5 bytes"),
        (lambda data: data, "text", "model_key must return 32 bytes, got a str"),
    ],
)
def test_a_wrong_key_or_a_changed_file_is_an_error_that_names_the_file(tmp_path, damage, key, problem):
    """Nothing of a file that was changed is used."""
    pytest.importorskip("cryptography")
    from fastpipe.backends.model.onnx import OnnxTensor

    right = secrets.token_bytes(32)
    path = tmp_path / "secret.onnx"
    path.write_bytes(damage(encrypt(doubling_model(), right, "model")))
    with pytest.raises(ConfigError, match=problem):
        OnnxTensor(model=path, model_key=lambda: right if key is None else key)


@pytest.mark.parametrize("text", [None, "abc", "zz" * 32, "00" * 31])
def test_a_key_that_is_not_in_the_environment_is_an_error_without_the_key(tmp_path, monkeypatch, text):
    """Only the name of the variable is in the message."""
    pytest.importorskip("cryptography")
    from fastpipe.backends.model.onnx import OnnxTensor

    (tmp_path / "model").write_bytes(encrypt(doubling_model(), bytes(32), "model"))
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    if text is not None:
        monkeypatch.setenv(KEY_VARIABLE, text)
    with pytest.raises(ConfigError, match=f"the environment variable {KEY_VARIABLE}") as caught:
        OnnxTensor(model=tmp_path / "model")
    assert text is None or text not in str(caught.value)


def test_without_cryptography_the_extra_is_named(monkeypatch):
    """One line."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(MissingExtra, match=r"an encrypted model needs .*pip install 'fastpipe-engine\[encryption\]'"):
        encrypt(b"model", bytes(32), "model")
    with pytest.raises(ConfigError, match="a key has 32 bytes, got 3"):
        encrypt(b"model", b"key", "model")


# ---- the real ones ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(MODULES.values())))
def test_the_real_library_has_what_the_fake_has(name):
    """Every class and attribute that the backend uses."""
    module = pytest.importorskip(name, exc_type=ImportError)
    missing = [f"{kind}.{attribute}" for kind in NAMES for attribute in NAMES[kind] if not has(module, kind, attribute)]
    assert missing == []
    members = {"FLOAT", "HALF", "BF16", "INT8", "INT32", "INT64", "BOOL", "UINT8"}
    assert members <= set(module.DataType.__members__)
    assert set(tensorrt_api._DTYPES) == members
    assert module.TensorIOMode.INPUT != module.TensorIOMode.OUTPUT


def has(module, kind, attribute):
    return hasattr(getattr(module, kind), attribute)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_rtx_parses_and_builds_for_real_and_the_engine_is_kept(precision, tmp_path, monkeypatch):
    """It builds without a GPU; what cannot be had without one is the loading."""
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    from fastpipe.backends.model.engine_cache import EngineCache, key_of
    from fastpipe.backends.model.tensorrt_api import Library

    library = Library(importlib.import_module("tensorrt_rtx"), "TensorRT-RTX")
    model = with_precision(convolution_model(), precision, mean=[1.0, 2.0, 3.0], std=[2.0])
    seen = []

    def profiles(inputs):
        seen.extend(inputs)
        return [{inputs[0].name: ((1, 3, 8, 8), (4, 3, 16, 16), (4, 3, 16, 16))}]

    def build():
        plan, measured = library.build(model, profiles)
        assert measured == b""
        return plan

    key = key_of({"precision": precision, "version": library.version})
    plan = EngineCache(tmp_path).get(key, build)
    assert len(plan) > 1000
    assert [(info.dtype, info.shape) for info in seen] == [("float32", (-1, 3, -1, -1))]
    assert EngineCache(tmp_path).get(key, lambda: pytest.fail("it was kept")) == plan
    with pytest.raises(ConfigError, match="cannot parse it: "):
        library.build(b"junk", profiles)
    with pytest.raises(ConfigError, match=r"cannot build an engine|refuses a profile"):
        library.build(model, lambda inputs: [])
