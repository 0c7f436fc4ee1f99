"""Models whose batch is on another axis, or that share an input, against plain ONNX Runtime with one request."""

from __future__ import annotations

import itertools
import sys
import threading
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402
from onnx_models import FLOAT, make_model, places_model, speech_model  # noqa: E402

import fastpipe  # noqa: E402
from fastpipe.backends.model.axes import Wishes, input_axes  # noqa: E402
from fastpipe.backends.model.onnx import OnnxTensor  # noqa: E402
from fastpipe.backends.model.shapes import InputSpec  # noqa: E402
from fastpipe.errors import BackendError, ConfigError, ItemErrors, KernelError  # noqa: E402

HANG_S = 60
INT64 = TensorProto.INT64


def branching_model() -> bytes:
    """As ``speech_model``, with all of it in the branches of an If, and without names."""
    whole = onnx.load_from_string(speech_model(None, None, declares=False)).graph
    branches = {}
    for branch in ("then_branch", "else_branch"):
        outputs = [helper.make_empty_tensor_value_info(value.name) for value in whole.output]
        branches[branch] = helper.make_graph(list(whole.node), branch, [], outputs, list(whole.initializer))
    two = helper.make_tensor("two", INT64, [], [2])
    nodes = [
        helper.make_node("Greater", ["rate", "two"], ["is_fast"]),
        helper.make_node("If", ["is_fast"], ["score_out", "new_state_out"], **branches),
        helper.make_node("Identity", ["score_out"], ["score"]),
        helper.make_node("Identity", ["new_state_out"], ["new_state"]),
    ]
    outputs = [
        helper.make_tensor_value_info(name, FLOAT, [None] * rank) for name, rank in (("score", 2), ("new_state", 3))
    ]
    graph = helper.make_graph(nodes, "branching", list(whole.input), outputs, [two])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


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


@pytest.mark.parametrize("has_onnx", [True, False])
def test_an_output_of_which_nothing_is_known_is_looked_at(monkeypatch: Any, has_onnx: bool) -> None:
    """No axis has a name, and shape inference does not see through the branches: two runs show where the batch is."""
    model = branching_model()
    if not has_onnx:
        monkeypatch.setitem(sys.modules, "onnx", None)
    backend = OnnxTensor(model=model, max=5)
    assert (backend._axes.inputs, dict(backend._axes.outputs)) == ((0, 1, None), {"new_state": 1})
    data = [speech_data(number) for number in range(3)]
    for results, each in zip(run(backend, *data), data, strict=True):
        assert_same(results, alone(model, each))


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


def test_names_in_the_file_are_enough_without_the_package_onnx(monkeypatch: Any) -> None:
    """What the file declares of its outputs says on which axis to look; trials are the proof."""
    model = speech_model()
    monkeypatch.setitem(sys.modules, "onnx", None)
    backend = OnnxTensor(model=model, max=3)
    data = [speech_data(number) for number in range(3)]
    for results, each in zip(run(backend, *data), data, strict=True):
        assert_same(results, alone(model, each))


@pytest.mark.parametrize(
    ("shapes", "expected", "batch"),
    [
        ([("batch", 3, "h", "w")], [0], "batch"),
        ([("?", 3)], [0], ""),
        ([(1, 3, "N")], [0], ""),  # points, not pictures
        ([(8, "seq"), (8, "seq")], [0, 0], ""),
        ([("N", "H", "W")], [0], "N"),
        ([("seq", "batch", 4), (2, "batch", 4)], [1, 1], "batch"),
        ([("s0", "s1"), ("s0", "s1"), (2, "s0", 8)], [0, 0, 1], "s0"),
        ([("?", "?"), (2, "?", 128), ()], [0, 1, None], ""),
        ([("n", "seq"), ("seq",)], [0, None], "n"),
        ([("tokens",), ("batch_size",)], [0, 0], "batch_size"),
        ([("unk__1", 3), ("unk__2", 3)], [0, 0], ""),
        ([("batch", 4), (3,), (1,), (2, 3)], [0, None, None, None], "batch"),
        ([(3, 4, 5), (5,)], [None, None], ""),
        ([(1, 3, 8), (2, 1, 64)], [0, None], ""),
        ([("batch", "seq"), ("seq", "batch")], [0, 1], "batch"),
        ([("p", "q"), ("q", "p")], [0, 0], ""),
        ([(0, 5)], [None], ""),
    ],
)
def test_where_the_batch_is_by_the_shapes_of_a_file(shapes: Any, expected: Any, batch: str) -> None:
    """A guess, which trials have to bear out."""
    specs = [InputSpec(f"x{place}", np.dtype(np.float32), shape) for place, shape in enumerate(shapes)]
    assert input_axes(specs, Wishes({}, {})) == (expected, batch)


def test_what_is_shared_may_be_a_vector_and_is_compared_by_value() -> None:
    """Equal arrays in other memory meet; an input too large to be compared runs alone, and its answer is right."""
    node = helper.make_node("MatMul", ["x", "scales"], ["y"])
    model = make_model([node], {"x": ["batch", "k"], "scales": ["k", "m"]}, {"y": ["batch", "m"]})
    backend = OnnxTensor(model=model, max=4)
    assert backend._axes.inputs == (0, None)
    sizes = Sizes(backend, "x")
    small = [[np.full((1, 2), number, np.float32), np.ones((2, 3), np.float32)] for number in (1, 2, 3)]
    assert [result.tolist() for result in run(backend, *small)] == [[[2.0 * number] * 3] for number in (1, 2, 3)]
    large = [[np.ones((1, 200), np.float32), np.ones((200, 200), np.float32)] for _ in range(2)]
    assert [float(result[0, 0]) for result in run(backend, *large)] == [200, 200]
    assert sizes.seen == [(3, 2), (1, 200), (1, 200)]


def test_an_input_without_axes_takes_a_plain_number() -> None:
    """Whole or not, as the model wants it; one that it cannot hold fails its request alone."""
    backend = OnnxTensor(model=speech_model(), max=3)
    data = [{**speech_data(number), "rate": rate} for number, rate in enumerate([2, np.int64(2), 5])]
    for results, each in zip(run(backend, *data), data, strict=True):
        assert_same(results, alone(speech_model(), {**each, "rate": np.array(each["rate"])}))
    for rate, problem in ((0.5, "got float64"), (2**70, "got the number 1180591620717411303424"), ("2", "got a str")):
        with pytest.raises(ItemErrors, match=f"input 'rate': expected int64 of shape .*{problem}"):
            run(backend, {**speech_data(1), "rate": rate})
    with pytest.raises(ItemErrors, match=r"input 'audio': .*got a int, which is no array"):
        run(backend, {**speech_data(1), "audio": 1})


def test_an_input_of_which_no_axes_are_said_takes_any_where_requests_run_alone() -> None:
    """A file may say nothing of an input's shape; ONNX Runtime tells that as it tells a scalar."""
    unsaid = make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": None}, {"y": None})
    backend = OnnxTensor(model=unsaid)
    for shape in ((), (3,), (1, 3), (2, 3, 4), (3,)):
        results = run(backend, np.full(shape, -2, np.float32))
        assert_same(results, [np.zeros(shape, np.float32)])


def test_what_a_batch_shares_without_axes_is_a_scalar() -> None:
    """Several values could be one for each request; who sends them is told so, alone."""
    node = helper.make_node("Mul", ["x", "scale"], ["y"])
    backend = OnnxTensor(model=make_model([node], {"x": ["n", 3], "scale": []}, {"y": ["n", 3]}), max=2)
    x = np.ones((1, 3), np.float32)
    batch: list[dict[str, Any]] = [{"data": [x, np.full(shape, 2, np.float32)]} for shape in ((), (2, 1))]
    assert [backend.bucket(request) == "misfit" for request in batch] == [False, True]
    with pytest.raises(ItemErrors) as caught:
        backend.forward(batch)
    assert list(caught.value.errors) == [1]
    with pytest.raises(
        KernelError, match=r"input 'scale': expected float32 of shape \(\), got float32 of shape \(2, 1\)"
    ):
        raise caught.value.errors[1]
    assert_same([batch[0]["result"]], [2 * x])


def test_a_model_may_be_tried_with_an_example_of_what_is_shared() -> None:
    """A rate of 0 or 1, as trials have it, is none; an example is, and other values still run."""
    nodes = [
        helper.make_node("Range", ["nothing", "thousand", "rate"], ["times"]),  # fails for a rate of 0
        helper.make_node("Shape", ["times"], ["steps"]),
        helper.make_node("Cast", ["steps"], ["float_steps"], to=FLOAT),
        helper.make_node("Mul", ["x", "float_steps"], ["y"]),
    ]
    constants = {"thousand": np.array(1000), "nothing": np.array(0)}
    model = make_model(nodes, {"x": ["n", 2], "rate": (INT64, [])}, {"y": ["n", 2]}, constants)
    with pytest.raises(ConfigError, match="warm-up with zeros"):
        OnnxTensor(model=model, max=3)
    backend = OnnxTensor(model=model, max=3, shared={"rate": 500})
    data = [[np.ones(2, np.float32), np.array(rate)] for rate in (500, 250, 500)]
    assert [result.tolist() for result in run(backend, *data)] == [[[2, 2]], [[4, 4]], [[2, 2]]]
    with pytest.raises(
        ConfigError, match=r"input 'rate', shared: expected an example of int64 of shape \(\), .* got 'x'"
    ):
        OnnxTensor(model=model, max=3, shared={"rate": "x"})


def test_an_input_of_one_number_may_come_without_its_axis() -> None:
    """speed is [1] in the file, which is no batch of one beside an open one."""
    model = make_model([helper.make_node("Div", ["x", "speed"], ["y"])], {"x": ["n", 2], "speed": [1]}, {"y": ["n", 2]})
    backend = OnnxTensor(model=model, max=3)
    data = [[np.ones(2, np.float32), speed] for speed in (np.array([2], np.float32), np.float32(2))]
    assert [result.tolist() for result in run(backend, *data)] == [[[0.5, 0.5]]] * 2


@pytest.mark.parametrize(
    ("nodes", "keys", "problem"),
    [
        # The mean over the batch, which stands on the second axis of x.
        ([("ReduceMean", {"axes": [1]}), ("Sub", {})], {}, "is not what it is alone"),
        ([("Softmax", {"axis": 1})], {}, "is not what it is alone"),
        ([("ReduceSum", {"keepdims": 0})], {"batch_axis": {"y": "none"}}, "output 'y': .*is not what it is alone"),
        ([("Transpose", {"perm": [1, 0, 2]})], {"batch_axis": {"y": 2}}, r"output 'y': expected 3 rows .* on axis 2"),
    ],
)
def test_a_batch_on_another_axis_is_proved_by_the_same_trials(nodes: Any, keys: Any, problem: str) -> None:
    """A model that mixes what is on that axis is refused, and so is an output that is said to be one for all."""
    made = [helper.make_node(kind, ["x"] if not at else ["x", "0"], [str(at) if at < len(nodes) - 1 else "y"], **given)
            for at, (kind, given) in enumerate(nodes)]  # fmt: skip
    model = make_model(made, {"x": [2, "batch", 4]}, {"y": None})
    with pytest.raises(ConfigError, match=problem) as caught:
        OnnxTensor(model=model, max=3, **keys)
    assert "batch_axis" in str(caught.value)


def test_an_output_that_is_one_for_the_whole_batch_is_handed_to_each_request() -> None:
    """Anchors, which depend on no data: a copy for each, since results are the callers' own."""
    nodes = [helper.make_node("Identity", ["table"], ["anchors"]), helper.make_node("Neg", ["x"], ["y"])]
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    model = make_model(nodes, {"x": ["n", 2]}, {"y": ["n", 2], "anchors": [3, 2]}, {"table": table})
    backend = OnnxTensor(model=model, max=3, batch_axis={"anchors": "none"})
    results = run(backend, *[np.full(2, number, np.float32) for number in (1, 2)])
    assert [result[0].tolist() for result in results] == [[[-1, -1]], [[-2, -2]]]
    results[0][1][:] = 0
    assert results[1][1].tolist() == table.tolist()


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"batch_axis": {"statee": 1}}, "batch_axis: the model has no input or output 'statee'; did you mean 'state'"),
        (
            {"batch_axis": {"state": 3}},
            "input 'state', batch_axis: expected an axis from 0 to 2, or 'none', got 3; its",
        ),
        ({"batch_axis": {"new_state": -4}}, "output 'new_state', batch_axis: expected an axis from 0 to 2"),
        ({"batch_axis": {"state": "second"}}, "'state', batch_axis: expected the number of an axis, .* got 'second'"),
        ({"batch_axis": {"state": True}}, "'state', batch_axis: expected the number of an axis, .* got True"),
        ({"batch_axis": {"rate": 0}}, "input 'rate', batch_axis: expected 'none', as it has no axes, got 0"),
        ({"shared": ["rat"]}, "shared: the model has no input 'rat'; did you mean 'rate'"),
        ({"shared": ["score"]}, "shared: the model has no input 'score'"),
        ({"shared": ["state"], "batch_axis": {"state": 1}}, "input 'state', axis 1: shared says"),
        ({"split_by": {"score": -1}}, "output 'score', split_by: expected the number of the column"),
        ({"split_by": {"state": 0}}, "split_by: the model has no output 'state'"),
        ({"split_by": {"score": 0}, "batch_axis": {"score": 0}}, "split_by and batch_axis contradict each other"),
        ({"outputs": ["scores"]}, "outputs: the model has no output 'scores'; did you mean 'score'"),
        ({"outputs": ["score", "score"]}, "outputs: expected names of outputs, each once"),
        ({"outputs": []}, "outputs: expected names of outputs, each once"),
        ({"shared": ["audio", "state", "rate"], "max": 2}, "input 'audio' has no batch axis, and no other input has"),
        ({"split_by": {"score": 0}, "postprocessor": "YoloV8"}, "output 'score', split_by: expected the postprocessor"),
        ({"result_as": "dict", "postprocessor": "SoftmaxMax", "outputs": ["score"]}, "goes with the postprocessors"),
        ({"many_rows": True}, "many_rows: expected max above 1"),
        (
            {"batch_axis": {"state": 2}, "max": 2},
            "axis 'batch' is axis 0 of input 'audio' and axis 1 of input 'state': .*max=1",
        ),
    ],
)
def test_keys_that_contradict_the_model_are_refused_in_words(keys: Any, problem: str) -> None:
    """With the file, what was expected, what was given, and the way out."""
    model = speech_model()
    with pytest.raises(ConfigError, match=f"^model of {len(model)} bytes: .*{problem}"):
        OnnxTensor(model=model, **keys)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"state": np.zeros((2, 2, 3), np.float32)},
            r"input 'state': .*\(2, 3\), with or without a batch axis of 1 as",
        ),
        (
            {"state": np.zeros((2, 4), np.float32)},
            r"input 'state': expected float32 of shape \(2, 3\), .*got .*\(2, 4\)",
        ),
        ({"rate": np.zeros(3)}, "input 'rate': expected int64 of shape"),
    ],
)
def test_a_request_that_does_not_fit_another_axis_fails_alone(change: Any, problem: str) -> None:
    """The message has the item's axes, and which axis the batch is."""
    backend = OnnxTensor(model=speech_model(), max=3)
    batch = [{"data": speech_data(1)}, {"data": {**speech_data(2), **change}}, {"data": speech_data(3)}]
    with pytest.raises(ItemErrors, match=problem) as caught:
        backend.forward(batch)
    assert list(caught.value.errors) == [1]
    assert isinstance(caught.value.errors[1], KernelError)
    assert ["result" in request for request in batch] == [True, False, True]


# ---- max = 1 ---------------------------------------------------------------------------------------------------------


def test_a_request_that_runs_alone_may_bring_any_rows_and_gets_the_outputs_whole() -> None:
    """As Triton's max_batch_size 0; a batch axis of 1 that is missing is still put there."""
    backend = OnnxTensor(model=speech_model())
    data = speech_data(1)
    many = {
        "audio": np.concatenate([data["audio"]] * 3),
        "state": np.concatenate([data["state"]] * 3, 1),
        "rate": data["rate"],
    }
    assert_same(run(backend, many)[0], alone(speech_model(), many))
    bare = {"audio": data["audio"][0], "state": data["state"][:, 0], "rate": data["rate"]}
    assert_same(run(backend, bare)[0], alone(speech_model(), data))
    none = {name: array[:0] if name == "audio" else array for name, array in many.items()}
    with pytest.raises(ItemErrors, match="share the axis 'batch', but it is 0 in 'audio' and 3 in 'state'"):
        run(backend, none)


def test_a_model_of_fixed_sizes_runs_as_it_is_where_no_batch_can_be_filled_up() -> None:
    """All rows or none: one alone would be filled up with zeros, which the others' mean would see."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0]), helper.make_node("Sub", ["x", "mean"], ["y"])]
    model = make_model(nodes, {"x": [3, 2]}, {"y": [3, 2]})
    with pytest.raises(ConfigError, match=r"no proof .* differ. max=1 runs one request at a time, as it comes"):
        OnnxTensor(model=model)
    backend = OnnxTensor(model=model, max=1)
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert run(backend, x)[0].tolist() == [[-2, -2], [0, 0], [2, 2]]
    with pytest.raises(
        ItemErrors, match=r"of shape \(2,\), with a batch axis of 3 in front \(.*is not what it is alone"
    ):
        run(backend, x[:1])
    adding = OnnxTensor(
        model=make_model([helper.make_node("Add", ["x", "x"], ["y"])], {"x": [3, 2]}, {"y": [3, 2]}), max=1
    )
    assert run(adding, x)[0].tolist() == (2 * x).tolist()
    assert run(adding, x[1])[0].tolist() == (2 * x[1:2]).tolist()


def test_zeros_that_are_no_valid_data_of_a_model_that_runs_alone_are_only_told(caplog: Any) -> None:
    """A step of zero; several at once would be refused, as before."""
    node = helper.make_node("Range", ["start", "end", "step"], ["y"])
    model = make_model([node], {name: (INT64, []) for name in ("start", "end", "step")}, {"y": (INT64, ["k"])})
    backend = OnnxTensor(model=model)
    assert "the warm-up with zeros of shape (), (), () failed" in caplog.text
    assert run(backend, [np.array(number) for number in (2, 9, 3)])[0].tolist() == [2, 5, 8]
    assert run(backend, [np.array(number) for number in (2, 2, 3)])[0].tolist() == []


# ---- outputs by name -------------------------------------------------------------------------------------------------


def test_outputs_are_chosen_by_name_in_the_order_wanted() -> None:
    """One alone is an array; a dict has their names, also of one."""
    model, data = speech_model(), speech_data(1)
    score, state = alone(model, data)
    for limits in ({}, {"max": 3}):
        assert_same(run(OnnxTensor(model=model, outputs=["new_state", "score"], **limits), data)[0], [state, score])
        assert_same([run(OnnxTensor(model=model, outputs=["new_state"], **limits), data)[0]], [state])
        by_name = run(OnnxTensor(model=model, result_as="dict", **limits), data)[0]
        assert list(by_name) == ["score", "new_state"]
        assert_same(by_name.values(), [score, state])
        only = run(OnnxTensor(model=model, outputs=["score"], result_as="dict", **limits), data, data)[1]
        assert list(only) == ["score"]


def test_an_output_that_nobody_wants_needs_no_proof() -> None:
    """The total of the batch has no rows."""
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0)]
    model = make_model(nodes, {"x": ["n", 2]}, {"y": ["n", 2], "total": []})
    with pytest.raises(ConfigError, match=r"output 'total': expected 3 rows .*batch_axis says on which axis .*max=1"):
        OnnxTensor(model=model, max=3)
    assert OnnxTensor(model=model, max=3, outputs=["y"]).max_batch == 3


# ---- rows ------------------------------------------------------------------------------------------------------------


def rows_model(batch: Any = "n") -> bytes:
    return make_model([helper.make_node("Neg", ["x"], ["y"])], {"x": [batch, 2]}, {"y": [batch, 2]})


def numbered(*counts: int) -> list[Any]:
    ends = np.cumsum([0, *counts])
    numbers = np.arange(2 * ends[-1], dtype=np.float32).reshape(-1, 2) + 1
    return [numbers[first:last] for first, last in itertools.pairwise(ends)]


@pytest.mark.parametrize(("batch", "counts", "runs"), [
    ("n", (2, 1, 3, 0, 1), [7]),
    ("n", (5, 5, 1), [5, 6]),
    ("n", (0, 0), [1]),
    (8, (2, 3, 8), [8, 8]),
])  # fmt: skip
def test_a_request_may_bring_any_number_of_rows_and_gets_as_many(batch: Any, counts: Any, runs: list[int]) -> None:
    """They count towards max; of none there is an answer with none."""
    backend = OnnxTensor(model=rows_model(batch), max=8, many_rows=True)
    sizes = Sizes(backend, "x")
    data = numbered(*counts)
    assert [backend.weigh({"data": each}) for each in data] == [max(count, 1) for count in counts]
    results = run(backend, *data)
    for result, each in zip(results, data, strict=True):
        np.testing.assert_array_equal(result, -each)
    assert [shape[0] for shape in sizes.seen] == (runs if batch == "n" else [8] * len(runs))


def test_rows_of_a_model_in_half_precision_are_as_many() -> None:
    """What looks at values that float16 cannot hold reads rows as well."""
    backend = OnnxTensor(model=rows_model(), max=4, many_rows=True, precision="fp16")
    data = [*numbered(2, 1), np.full((1, 2), 1e5, np.float32)]
    batch: list[Any] = [{"data": each} for each in data]
    with pytest.raises(ItemErrors, match="expected values of -65504 to 65504") as caught:
        backend.forward(batch)
    assert list(caught.value.errors) == [2]
    assert [request["result"].tolist() for request in batch[:2]] == [(-each).tolist() for each in data[:2]]


def test_rows_of_many_callers_meet_in_a_pipe_and_no_batch_has_more_than_max() -> None:
    """Each of forty requests gets its own rows; what the model saw is never above eight."""
    wrong: list[Any] = []
    together = threading.Barrier(8)
    seen: list[int] = []

    class Watched(OnnxTensor):
        """Keeps how many rows ran."""

        def _call(self, arrays: Any) -> Any:
            seen.append(len(arrays[0]))
            return super()._call(arrays)

    def client(number: int, pipe: Any) -> None:
        random = np.random.default_rng(number)
        together.wait(HANG_S)
        for _ in range(5):
            x = random.standard_normal((random.integers(0, 6), 2)).astype(np.float32)
            if not np.array_equal(pipe({"data": x})["result"], -x):
                wrong.append(x)

    with fastpipe.Pipe(backend=Watched, model=rows_model(), max=8, many_rows=True) as pipe:
        threads = [threading.Thread(target=client, args=(number, pipe)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG_S)
    assert wrong == []
    assert max(seen) <= 8


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (
            {"audio": (9, 6), "state": (2, 9, 3)},
            "input 'audio': expected up to 4 rows .max., got 9; send them as several",
        ),
        ({"audio": (3, 6), "state": (2, 2, 3)}, "'audio' and 'state' share the axis 'batch', but it is 3 .* and 2 in"),
        (
            {"audio": (3, 5), "state": (2, 3, 3)},
            r"input 'audio': expected float32 of shape \(6,\), with a batch axis in",
        ),
    ],
)
def test_rows_that_do_not_fit_fail_their_request_alone(data: Any, problem: str) -> None:
    """Too many, or not as many in every input."""
    backend = OnnxTensor(model=speech_model(), max=4, many_rows=True)
    bad = {**{name: np.zeros(shape, np.float32) for name, shape in data.items()}, "rate": np.array(2)}
    batch = [{"data": speech_data(1)}, {"data": bad}]
    with pytest.raises(ItemErrors, match=problem) as caught:
        backend.forward(batch)
    assert list(caught.value.errors) == [1]
    assert backend.weigh({"data": bad}) == 1


def test_many_rows_of_inputs_on_several_axes_equal_what_they_are_alone() -> None:
    """Rows, a state on its second axis and a shared rate together; results by name."""
    model = speech_model("x", "y")
    keys = {"batch_axis": {"state": 1, "new_state": 1}, "shared": ["rate"], "result_as": "dict"}
    backend = OnnxTensor(model=model, max=6, many_rows=True, **keys)
    sizes = Sizes(backend, "state")
    random = np.random.default_rng(0)
    data = [
        {
            "audio": random.standard_normal((count, 6)).astype(np.float32),
            "state": random.standard_normal((2, count, 3)).astype(np.float32),
            "rate": np.array(3),
        }
        for count in (1, 3, 2)
    ]
    for result, each in zip(run(backend, *data), data, strict=True):
        assert list(result) == ["score", "new_state"]
        assert_same(result.values(), alone(model, each))
    assert sizes.seen == [(2, 6, 3)]


@pytest.mark.parametrize(
    ("postprocessor", "key", "expected"),
    [
        ("SoftmaxArgMax", "class", [[1, 0], [], [1]]),
        (lambda outputs, batch: [float(row.max()) for row in outputs[0]], "result", [[5.0, 3.0], [], [7.0]]),
        ({"name": "TopK", "k": 1, "activation": "none"}, "scores", [[[5.0], [3.0]], [], [[7.0]]]),
    ],
)
def test_a_postprocessor_sees_a_request_for_each_row_and_gives_a_list(
    postprocessor: Any, key: str, expected: Any
) -> None:
    """With an entry for each row, under every key that it sets."""
    backend = OnnxTensor(model=rows_model(), max=4, many_rows=True, postprocessor=postprocessor)
    rows = [np.array(each, np.float32).reshape(-1, 2) for each in ([[-1, -5], [-3, -2]], [], [[-1, -7]])]
    batch: list[Any] = [{"data": each, "kept": 1} for each in rows]
    backend.forward(batch)
    assert [np.asarray(request.get(key, [])).tolist() for request in batch] == expected
    assert [len(request["result"]) for request in batch] == [2, 0, 1]
    assert all(request["kept"] == 1 for request in batch)


def test_a_row_that_a_postprocessor_refuses_fails_its_request_alone() -> None:
    """Each row has its own part of the data, by the names of the inputs."""
    node = helper.make_node("Mul", ["tokens", "one"], ["y"])
    touch = helper.make_node("Identity", ["attention_mask"], ["unused"])
    inputs = {"tokens": ["n", 3, 2], "attention_mask": ["n", 3]}
    outputs = {"y": ["n", 3, 2], "unused": ["n", 3]}
    model = make_model([node, touch], inputs, outputs, {"one": np.ones(1, np.float32)})
    backend = OnnxTensor(model=model, max=4, many_rows=True, postprocessor="MeanPooling")
    tokens = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    masks = [[[1, 0, 0], [0, 0, 1]], [[1, 1, 1], [1, 0.5, 0]]]
    batch: list[Any] = [{"data": {"tokens": tokens, "attention_mask": np.float32(mask)}} for mask in masks]
    with pytest.raises(ItemErrors, match="expected a mask of 3 numbers, each 0 or 1") as caught:
        backend.forward(batch)
    assert list(caught.value.errors) == [1]
    assert np.asarray(batch[0]["result"]).tolist() == [[0, 1], [10, 11]]


# ---- rows of all requests together -----------------------------------------------------------------------------------


def pictures(*counts: int) -> list[Any]:
    """Return pictures with so many bright places."""
    random = np.random.default_rng(5)
    made = []
    for count in counts:
        picture = np.zeros(16, np.float32)
        picture[random.choice(16, count, replace=False)] = 1
        made.append(picture.reshape(4, 4))
    return made


@pytest.mark.parametrize("counts", [(2, 0, 1), (0, 0, 0), (16,), (1, 3)])
def test_rows_with_the_number_of_their_picture_are_given_back(counts: Any) -> None:
    """Every picture gets what it gets alone: the number is 0, and those without a place have an empty array."""
    model = places_model()
    backend = OnnxTensor(model=model, max=3, split_by={"boxes": 0})
    data = pictures(*counts)
    for results, each in zip(run(backend, *data), data, strict=True):
        assert_same(results, alone(model, {"x": each[None]}))


def test_trials_that_found_nothing_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """A threshold that no pseudo-random number reaches leaves empty tables, which are all alike."""
    OnnxTensor(model=places_model(), max=3, split_by={"boxes": 0})
    assert not caplog.records
    nodes = [
        helper.make_node("Greater", ["x", "far"], ["is_found"]),
        helper.make_node("NonZero", ["is_found"], ["places"]),
        helper.make_node("Transpose", ["places"], ["boxes"], perm=[1, 0]),
    ]
    outputs = {"boxes": (INT64, ["found", 3])}
    model = make_model(nodes, {"x": ["n", 4, 4]}, outputs, {"far": np.float32(1e6)})
    OnnxTensor(model=model, max=3, split_by={"boxes": 0})
    (record,) = caplog.records
    assert "output 'boxes', split_by: the trials found no row of it in pseudo-random data" in record.getMessage()


def test_rows_of_what_fills_up_a_fixed_batch_are_nobodys() -> None:
    """Three pictures of which two are requests; below a half there is a place everywhere, also in zeros."""
    nodes = [
        helper.make_node("Less", ["x", "half"], ["below"]),
        helper.make_node("NonZero", ["below"], ["places"]),
        helper.make_node("Transpose", ["places"], ["boxes"], perm=[1, 0]),
    ]
    model = make_model(nodes, {"x": [3, 4, 4]}, {"boxes": (INT64, ["boxes", 3])}, {"half": np.float32(0.5)})
    backend = OnnxTensor(model=model, split_by={"boxes": 0})
    data = pictures(3, 15)
    for result, each in zip(run(backend, *data), data, strict=True):
        np.testing.assert_array_equal(result, np.argwhere(each[None] < 0.5))


def test_rows_are_given_back_to_requests_of_several_pictures_and_to_postprocessors() -> None:
    """Numbers count from 0 within a request; a function gets a list with an array for each request."""
    model = places_model()
    backend = OnnxTensor(model=model, max=8, split_by={"boxes": 0}, many_rows=True, outputs=["boxes"])
    data = [np.stack(pictures(2, 1)), np.stack(pictures(3, 0, 2))]
    for result, each in zip(run(backend, *data), data, strict=True):
        np.testing.assert_array_equal(result, np.argwhere(each > 0.5))

    def count(outputs: Any, batch: Any) -> Any:
        return [len(boxes) for boxes in outputs[0]]

    backend = OnnxTensor(model=model, max=4, split_by={"boxes": 0}, postprocessor=count)
    assert run(backend, *pictures(3, 0, 7)) == [3, 0, 7]


def test_a_postprocessor_of_ones_own_may_give_the_rows_back() -> None:
    """The output is one for the whole batch, and whoever vouches for the rows gets it whole."""

    def give_back(outputs: Any, batch: Any) -> Any:
        boxes, _ = outputs
        return [boxes[boxes[:, 0] == number, 1:] for number in range(len(batch))]

    keys: Any = {"batch_axis": {"boxes": "none"}, "rows": "batch"}
    backend = OnnxTensor(model=places_model(), max=4, postprocessor=give_back, **keys)
    data = pictures(3, 0, 2)
    for result, each in zip(run(backend, *data), data, strict=True):
        np.testing.assert_array_equal(result, np.argwhere(each > 0.5))


def test_numbers_that_are_no_pictures_fail_the_run_and_a_model_that_mixes_them_is_refused() -> None:
    """A wrong column, one that the output has not, and places that depend on the others' pictures."""
    backend = OnnxTensor(model=places_model(), max=2, split_by={"boxes": 1}, rows="batch")
    with pytest.raises(
        BackendError, match="output 'boxes', split_by: expected numbers of requests, from 0 to 1, in col"
    ):
        run(backend, *pictures(16, 16))
    backend = OnnxTensor(model=places_model(), max=2, split_by={"boxes": 3}, rows="batch")
    with pytest.raises(
        BackendError, match=r"expected an output of shape \(rows, columns\) with a column 3, got \(32, 3\)"
    ):
        run(backend, *pictures(16, 16))
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["x", "mean"], ["above"]),
        helper.make_node("NonZero", ["above"], ["places"]),
        helper.make_node("Transpose", ["places"], ["boxes"], perm=[1, 0]),
    ]
    model = make_model(nodes, {"x": ["n", 4, 4]}, {"boxes": (INT64, ["boxes", 3])})
    with pytest.raises(ConfigError, match=r"output 'boxes': .*is not what it is alone"):
        OnnxTensor(model=model, max=3, split_by={"boxes": 0})
