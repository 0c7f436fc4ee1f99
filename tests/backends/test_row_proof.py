"""Rows: that a model's outputs have as many as the batch proves nothing, and what does."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import pytest

import fastpipe
from fastpipe.backends.model.row_proof import COARSE, Output, prove_once, prove_rows
from fastpipe.backends.model.shapes import InputSpec, make_profiles
from fastpipe.errors import ConfigError, ItemErrors, KernelError

HANG_S = 60


# ---- the proof alone, on functions of NumPy --------------------------------------------------------------------------


class Counted:
    """A model made of a function, which keeps the number of rows of each run."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.sizes: list[int] = []

    def __call__(self, arrays: list[Any]) -> list[Any]:
        self.sizes.append(len(arrays[0]))
        outputs = self.function(*arrays)
        return list(outputs) if isinstance(outputs, tuple) else [outputs]


def prove(
    function: Any, *shapes: Any, dtype: Any = np.float32, known: Any = None, limits: Any = None, **keywords: Any
) -> Counted:
    """Prove a model whose inputs have these shapes; return how it was run."""
    model = Counted(function)
    specs = [InputSpec(f"input {place}", np.dtype(dtype), shape) for place, shape in enumerate(shapes or [("n", 4)])]
    prove_rows(model, specs, make_profiles(specs, *(limits or (8, None))), known, **keywords)
    return model


def boxes(images: Any) -> Any:
    """Where a number is above a half: a row for each place, for all images together."""
    return np.argwhere(images > 0.5)


def brightest(images: Any) -> Any:
    """The two brightest places of all images together, whatever they hold."""
    return np.argsort(images.ravel())[-2:, np.newaxis]


@pytest.mark.parametrize(
    "model",
    [
        lambda x: x * 2,
        lambda x: (x.sum(1), x.argmax(1), x[:, :0]),
        lambda x: np.log(x),  # NaN and infinity, too
        lambda x: np.ones((len(x), 2)),
        lambda x: (x @ np.ones((4, 3))).astype(np.float16),
    ],
)
@pytest.mark.parametrize("limits", [(8, None), (2, None), (4, 3), (2, 2)])
@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")
def test_a_model_that_treats_each_row_alone_is_proved(model: Any, limits: Any) -> None:
    """By trials, with nothing known of it: of batches, and of no other sizes than it takes."""
    sizes = prove(model, limits=limits).sizes
    assert 1 < max(sizes) <= limits[0]
    assert min(sizes) >= (limits[1] or 1)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (boxes, r"a batch of \d gives an output of shape \(\d+, 2\)"),
        (brightest, r"gives an output of shape \(2, 1\)|is not what it is alone"),
        (lambda x: x[x.sum(1).argsort()], "is not what it is alone"),
        (lambda x: x[(-x.sum(1)).argsort()], "is not what it is alone"),
        (lambda x: x * (1 + (x.mean() > 0)), "is not what it is alone"),
        (lambda x: x[::-1], r"a row in a batch of \d is not what it is alone: \d+ of 12 numbers differ"),
        (lambda x: x - x.mean(), "is not what it is alone"),
        (lambda x: x - x.mean(0), "is not what it is alone"),
        (lambda x: x + x.sum() / 100, "is not what it is alone"),
        (lambda x: np.concatenate([x[:1], x[:-1]]), "is not what it is alone"),
        (lambda x: np.concatenate([x, x]), r"gives an output of shape \(2, 4\)"),
        (lambda x: np.arange(len(x)), "numbers in batches are not what they are alone"),
        (lambda x: x[:, x.min(0) > 0.4], "its shape is"),
        (lambda x: np.random.default_rng().random(x.shape), "the same data, run twice, give different results"),
        (lambda x: x.sum(), r"gives an output of shape \(\)"),
        (lambda x: x if len(x) < 3 else 1 / 0, r"a batch of \d fails: division by zero"),
        (lambda x: (x, x[x.any(1)]), r"^output 1: .*gives an output of shape"),  # drops rows of zeros
        # One number of many is mixed, and little of each row.
        (
            lambda x: np.concatenate([x.repeat(100, 1), x[:, :1] - x.mean(0)[:1]], 1),
            r"a number of its 401 is not what it is alone in \d of \d rows in batches",
        ),
        (
            lambda x: np.concatenate([np.zeros((len(x), 400), int), np.full((len(x), 1), len(x))], 1),
            r"a number of its 401 is not what it is alone in \d of \d rows in batches",
        ),
        (lambda x: x + x.mean(0) / 1000, "a row in a batch of 8 is not what it is alone"),
        # Pixels, or numbers from -1 to 1, are made what the rest of the model takes.
        (lambda x: x / 255 if x.max() > 1 else x, r"a row in a batch of \d is not what it is alone"),
        (lambda x: x / 2 + 0.5 if x.min() < 0 else x, r"a row in a batch of \d is not what it is alone"),
    ],
)
def test_a_model_that_does_not_is_refused_and_why(model: Any, reason: str) -> None:
    """Whether its rows are too many, are moved, depend on others or on chance; and what can be done."""
    with pytest.raises(ConfigError, match=reason) as caught:
        prove(model)
    assert "no proof that in a batch of 8 row i is that of request i" in str(caught.value)
    assert "max=1 runs one request at a time" in str(caught.value)
    assert "rows='batch' says so" in str(caught.value)


@pytest.mark.parametrize("limits", [(3, 3), (5, 2)])
def test_what_is_filled_up_must_not_depend_on_what_fills_it(limits: Any) -> None:
    """Also where the graph carries the batch axis: zeros would change the answer."""
    known = [Output("y", is_carried=True)]
    prove(lambda x: x + 1, limits=limits, known=known)
    with pytest.raises(ConfigError, match=r"output 'y': .* without min, max=1 runs one"):
        prove(lambda x: x + x.mean(0), limits=limits, known=known)


def test_a_model_that_takes_no_large_numbers_is_tried_without() -> None:
    """As one that looks something up by the numbers that it is given."""

    def look_up(x: Any) -> Any:
        if np.abs(x).max() > 100:
            raise IndexError("not in the table")
        return x + 1

    prove(look_up, limits=(3, None))
    with pytest.raises(ConfigError, match="is not what it is alone"):
        prove(lambda x: look_up(x) + x.mean(), limits=(3, None))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: np.triu(x),
        lambda x: np.tril(x, 50),
        lambda x: np.concatenate([x[:1], x[1:] * (np.arange(x.shape[1]) != 7)]),
    ],
)
def test_whole_numbers_that_depend_on_their_place_are_found(function: Any) -> None:
    """Of a wide row only a number or two, and shape inference carries the axis through."""
    known = [Output("y", is_carried=True)]
    for outputs in (None, known):
        with pytest.raises(ConfigError, match=r"of equal rows, one in a batch is not|not what .* alone"):
            prove(function, ("n", 100), dtype=np.int64, limits=(3, None), known=outputs)
    with pytest.raises(ConfigError, match="not what they are alone"):
        prove(
            lambda x: np.cumprod(np.concatenate([[1], x[:-1]])), ("n",), dtype=np.int64, limits=(3, None), known=known
        )
    model = prove(lambda x: x + 1, ("n", 100), dtype=np.int64, known=known)
    assert len(model.sizes) == 18


def test_a_fixed_batch_is_tried_at_its_own_size_only() -> None:
    """With a few rows compared, however large it is."""
    model = prove(lambda x: x * 2, (64, 4), limits=(None, None))
    assert set(model.sizes) == {64}
    assert len(model.sizes) <= 13


def test_two_inputs_that_do_not_follow_the_same_axis_are_refused() -> None:
    """Tokens and where each text begins: the texts of a batch would be one."""

    def bag(tokens: Any, offsets: Any) -> Any:
        table = np.arange(1.0, 7.0).reshape(2, 3)
        ends = [*offsets[1:], len(tokens)]
        return np.array([table[tokens[a:b]].sum(0) for a, b in zip(offsets, ends, strict=True)])

    with pytest.raises(ConfigError, match="is not what it is alone"):
        prove(bag, ("tokens",), ("texts",), dtype=np.int64)


def test_a_row_alone_counts_as_alone_with_every_company() -> None:
    """The trials use batches of several sizes, each row in another place than where it was, and a row of zeros."""
    seen: list[Any] = []

    def watch(x: Any) -> Any:
        seen.append(x.copy())
        return x

    prove(watch)
    assert {len(x) for x in seen} == {1, 2, 3, 8}
    assert any(not row.any() for x in seen if len(x) == 2 for row in x)
    batches = [x for x in seen if len(x) > 1]
    assert len({x.tobytes() for x in batches}) == len(batches) == 3


def test_the_cost_is_eleven_runs_of_few_rows_and_less_where_the_graph_is_proof() -> None:
    """However large the batch is; nothing where no run has two rows."""
    known = [Output("y", is_carried=True)]
    model = prove(lambda x: x, limits=(1000, None))
    assert (len(model.sizes), sum(model.sizes)) == (11, 29)
    model = prove(lambda x: x, limits=(1000, None), known=known)
    assert (len(model.sizes), sum(model.sizes)) == (8, 25)
    assert prove(boxes, limits=(1, None)).sizes == []
    assert prove(boxes, limits=(None, None)).sizes == []


def test_what_counts_its_rows_by_the_data_is_refused_without_a_run() -> None:
    """Trials that go well would prove nothing."""
    known = [Output("x", is_carried=True), Output("boxes", counted_by="the operator NonZero")]
    with pytest.raises(ConfigError, match=r"^output 'boxes': .*the operator NonZero makes as many rows as the data"):
        prove(lambda x: 1 / 0, known=known)


def test_open_axes_are_guessed_until_the_model_takes_them() -> None:
    """A model that takes no guess is refused, unless its graph is proof; max can say what to try."""

    def of_eight(x: Any) -> Any:
        if x.shape[1] != 8:
            raise ValueError(f"no {x.shape[1]} here")
        return x

    prove(of_eight, ("n", "w"))
    shape = ("n", "w", 2)
    with pytest.raises(ConfigError, match=r"cannot be tried on pseudo-random data: no 3 here.*; shapes in max, as in"):
        prove(lambda x: of_eight(x[:, :3]), shape)
    prove(lambda x: of_eight(x[:, :3]), shape, known=[Output("y", is_carried=True)])
    with pytest.raises(ConfigError, match="the shapes of its inputs are not known"):
        prove_rows(
            lambda arrays: arrays, None, make_profiles([InputSpec("x", np.dtype("f4"), ("n", 4))], 2, None), None
        )


def test_whole_numbers_are_small_and_bytes_are_pixels() -> None:
    """A table of two rows takes the first; where zero is no length, all are one."""
    prove(lambda x: np.eye(2)[x], ("n", "w"), dtype=np.int64)

    def by_length(x: Any) -> Any:
        if (x < 1).any():
            raise ValueError("a length must be positive")
        return 1 / x

    prove(by_length, dtype=np.int32, limits=(2, None))
    seen: list[int] = []
    prove(lambda x: seen.append(int(x.max())) or x, dtype=np.uint8)
    assert max(seen) > 100


def test_rounding_is_no_difference_and_a_tenth_of_the_labels_may_be_ties() -> None:
    """float32 summed in another order; half precision with its own measure; labels as of a forest."""

    def noisy(x: Any) -> Any:
        return x * (1 + 1e-4 * (len(x) > 1))

    prove(noisy)
    with pytest.raises(ConfigError):
        prove(lambda x: x * (1 + 0.02 * (len(x) > 1)))
    prove(lambda x: x * (1 + 0.02 * (len(x) > 1)), tolerance=COARSE)
    prove(lambda x: (np.arange(100) == x.argmax(1)[:, np.newaxis]) * (len(x) > 1) + np.zeros((len(x), 100), int))


def test_instances_of_one_model_are_proved_once() -> None:
    """A proof that fails is made again."""
    made: list[int] = []
    for key in ("a", "a", "b"):
        prove_once((test_instances_of_one_model_are_proved_once, key), lambda: made.append(1))
    assert len(made) == 2
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            prove_once(test_instances_of_one_model_are_proved_once, lambda: 1 / 0)


# ---- ONNX ------------------------------------------------------------------------------------------------------------

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fastpipe.backends.model.onnx import OnnxTensor  # noqa: E402
from fastpipe.backends.model.onnx_runtime.rows import read_graph  # noqa: E402

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def make_model(nodes: Any, inputs: Any, outputs: Any, constants: Any = None, functions: Any = ()) -> bytes:
    """Return the bytes of a model; inputs and outputs are name -> shape, or name -> (type, shape)."""

    def values(table: Any) -> Any:
        typed = {name: entry if isinstance(entry, tuple) else (FLOAT, entry) for name, entry in table.items()}
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in typed.items()]

    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "graph", values(inputs), values(outputs), initializers)
    imports = [helper.make_opsetid("", 17), *[helper.make_opsetid(each.domain, 1) for each in functions]]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8, functions=list(functions))
    content: bytes = model.SerializeToString()
    return content


def detector() -> bytes:
    """Where a picture is above a half: (image, row, column) for each place, for all images together."""
    nodes = [
        helper.make_node("Greater", ["x", "threshold"], ["above"]),
        helper.make_node("NonZero", ["above"], ["places"]),
        helper.make_node("Transpose", ["places"], ["boxes"], perm=[1, 0]),
    ]
    outputs = {"boxes": (INT64, ["num_boxes", 3])}
    return make_model(nodes, {"x": ["N", "H", "W"]}, outputs, {"threshold": np.float32(0.5)})


def bag_model() -> bytes:
    """The sum of each text's tokens; where a text begins is in offsets, and all tokens are in one row."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["embedded"]),
        helper.make_node("Shape", ["ids"], ["count"]),
        helper.make_node("Squeeze", ["count"], ["number"]),
        helper.make_node("Range", ["zero", "number", "one"], ["places"]),
        helper.make_node("Slice", ["offsets", "from", "to"], ["others"]),
        helper.make_node("Concat", ["others", "count"], ["ends"], axis=0),
        helper.make_node("Unsqueeze", ["offsets", "axes"], ["first"]),
        helper.make_node("Unsqueeze", ["ends", "axes"], ["last"]),
        helper.make_node("GreaterOrEqual", ["places", "first"], ["behind"]),
        helper.make_node("Less", ["places", "last"], ["before"]),
        helper.make_node("And", ["behind", "before"], ["inside"]),
        helper.make_node("Cast", ["inside"], ["weights"], to=FLOAT),
        helper.make_node("MatMul", ["weights", "embedded"], ["y"]),
    ]
    constants = {
        "table": np.arange(12, dtype=np.float32).reshape(4, 3) + 1,
        "zero": np.array(0),
        "one": np.array(1),
        "from": np.array([1]),
        "to": np.array([1 << 30]),
        "axes": np.array([1]),
    }
    inputs = {"ids": (INT64, ["num_tokens"]), "offsets": (INT64, ["batch_size"])}
    return make_model(nodes, inputs, {"y": ["batch_size", 3]}, constants)


def state_model(first: Any = 2, x: Any = ("batch", 4), inner: str = "batch") -> bytes:
    """As an LSTM has it: its state has the batch on the second axis."""
    nodes = [
        helper.make_node("ReduceSum", ["state", "axes"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    inputs = {"x": list(x), "state": [first, inner, 4]}
    return make_model(nodes, inputs, {"y": list(x)}, {"axes": np.array([0])})


def one_node(operator: str, *, inputs: Any = None, outputs: Any = None, **keywords: Any) -> bytes:
    constants = keywords.pop("constants", {})
    node = helper.make_node(operator, [*(inputs or {"x": 0}), *constants], ["y"], **keywords)
    return make_model([node], inputs or {"x": ["n", 4]}, outputs or {"y": ["n", 4]}, constants)


def run(backend: Any, *data: Any) -> list[Any]:
    batch = [{"data": each} for each in data]
    backend.forward(batch)
    return [request["result"] for request in batch]


@pytest.mark.parametrize("limits", [{"max": 2}, {"max": "2x4x4"}, {"max": 2, "warm_up": False}])
@pytest.mark.parametrize("has_onnx", [True, False])
def test_a_detector_whose_boxes_are_those_of_all_images_is_refused(
    limits: Any, has_onnx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images of one box each would get what two boxes in one of them gave; alone, each is right."""
    model = detector()
    if not has_onnx:
        monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"output 'boxes': .*max=1"):
        OnnxTensor(model=model, **limits)
    bright, dark = np.zeros((4, 4), np.float32), np.zeros((4, 4), np.float32)
    bright[1, 1] = bright[2, 3] = 1
    results = run(OnnxTensor(model=model), bright, dark)
    assert [result.tolist() for result in results] == [[[0, 1, 1], [0, 2, 3]], []]


def test_eight_threads_never_get_each_others_boxes() -> None:
    """Each call's answer is held against what its own picture has; none is another's."""
    wrong: list[Any] = []
    answered: list[int] = []
    together = threading.Barrier(8)

    def client(number: int, pipe: Any) -> None:
        random = np.random.default_rng(number)
        together.wait(HANG_S)
        for _ in range(100):
            image = (random.random((4, 4)) < 0.1).astype(np.float32)
            result = pipe({"data": image})["result"]
            answered.append(1)
            if result[:, 1:].tolist() != np.argwhere(image > 0.5).tolist():
                wrong.append((image, result))

    with fastpipe.Pipe(backend="OnnxTensor", model=detector(), instance_num=2, threads=2) as pipe:
        threads = [threading.Thread(target=client, args=(number, pipe)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG_S)
    assert len(answered) == 800
    assert wrong == []


def test_first_axes_of_different_names_are_no_batch() -> None:
    """A bag of tokens and the texts' beginnings; one text at a time is right."""
    model = bag_model()
    for limits in ({"max": 2}, {"max": 2, "warm_up": False}):
        with pytest.raises(ConfigError, match=r"output 'y': .*a row in a batch of \d is not what it is alone"):
            OnnxTensor(model=model, **limits)
    one, two = ([np.array([token]), np.array([0])] for token in (1, 3))
    assert [result.tolist() for result in run(OnnxTensor(model=model), one, two)] == [[[4, 5, 6]], [[10, 11, 12]]]


def test_first_axes_of_different_names_that_are_the_batch_are_taken() -> None:
    """Names are no proof either way: an exporter numbers every axis that it cannot name."""
    inputs = {"a": ["unk__214", 3], "b": ["unk__215", 3]}
    model = one_node("Add", inputs=inputs, outputs={"y": ["unk__216", 3]})
    assert not read_graph(model).outputs[0].is_carried
    backend = OnnxTensor(model=model, max=4)
    data = [[np.full(3, number, np.float32), np.ones(3, np.float32)] for number in range(4)]
    assert [result[0, 0] for result in run(backend, *data)] == [1, 2, 3, 4]


@pytest.mark.parametrize("limits", [{}, {"max": 1}, {"max": 2}, {"max": 4}, {"max": 2, "rows": "batch"}])
@pytest.mark.parametrize("model", [state_model(), state_model("layers"), state_model(2, ("seq", "batch", 4))])
def test_a_batch_on_another_axis_is_found_by_its_name(model: bytes, limits: Any) -> None:
    """The state's first axis is no batch, neither a fixed one to be filled up nor an open one."""
    backend = OnnxTensor(model=model, **limits)
    assert backend.max_batch == limits.get("max", 1)
    x, state = np.ones((1, 4), np.float32), np.arange(8, dtype=np.float32).reshape(2, 1, 4)
    data = [[number * x if "seq" not in str(model) else number * x[:, None], number * state] for number in (1, 2, 3)]
    results = [result.ravel().tolist() for result in run(backend, *data)]
    assert results == [[number * (each + 1) for each in (4, 6, 8, 10)] for number in (1, 2, 3)]


def test_a_batch_on_another_axis_can_run_one_request_at_a_time() -> None:
    """Where the file calls an axis of two inputs the same, they have one size there."""
    backend = OnnxTensor(model=state_model("layers"))
    x, state = np.ones((1, 4), np.float32), np.full((1, 1, 4), 2, np.float32)
    assert run(backend, [x, state])[0].tolist() == [[3, 3, 3, 3]]
    with pytest.raises(ItemErrors, match="'x' and 'state' share the axis 'batch', but it is 1 in 'x' and 2 in 'state'"):
        run(backend, [x, np.ones((1, 2, 4), np.float32)])


def test_a_fixed_size_in_front_of_one_input_is_no_batch_of_the_others() -> None:
    """Under other names, too, and with every size fixed: two layers are not two requests."""
    with pytest.raises(ConfigError, match="there is no proof"):
        OnnxTensor(model=state_model(2, (2, 4), "c"))
    for limits in ({"max": 2}, {"max": 1}):
        model = state_model(2, ("b", 4), "c")
        if limits["max"] > 1:
            with pytest.raises(ConfigError, match="there is no proof"):
                OnnxTensor(model=model, **limits)
        else:
            x, state = np.ones((5, 4), np.float32), np.ones((2, 5, 4), np.float32)
            assert run(OnnxTensor(model=model, **limits), [x, state])[0].tolist() == [[3] * 4] * 5


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (
            make_model(
                [
                    helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0]),
                    helper.make_node("Sub", ["x", "mean"], ["y"]),
                ],
                {"x": ["n", 4]},
                {"y": ["n", 4]},
            ),
            "is not what it is alone",
        ),
        (one_node("Softmax", axis=0), "is not what it is alone"),
        (one_node("RandomNormalLike"), "the same data, run twice, give different results"),
    ],
)
def test_a_model_that_mixes_its_rows_is_refused_although_their_number_is_right(model: bytes, problem: str) -> None:
    """Whatever shape inference says; rows="batch" takes it as it is."""
    assert read_graph(model).outputs[0].is_carried
    with pytest.raises(ConfigError, match=problem):
        OnnxTensor(model=model, max=3)
    assert OnnxTensor(model=model, max=3, rows="batch").max_batch == 3


def test_a_model_whose_data_cannot_be_guessed_needs_its_graph_as_proof() -> None:
    """A table that begins at 100: shape inference carries the axis through Gather, and no trial can be made."""
    shape = ["n", 4]
    nodes = [
        helper.make_node("Sub", ["x", "hundred"], ["place"]),
        helper.make_node("Gather", ["table", "place"], ["y"]),
    ]
    constants = {"hundred": np.array(100), "table": np.arange(8.0, dtype=np.float32)}
    model = make_model(nodes, {"x": (INT64, shape)}, {"y": shape}, constants)
    backend = OnnxTensor(model=model, max=2, warm_up=False)
    assert [result[0, 0] for result in run(backend, np.full(4, 103), np.full(4, 105))] == [3, 5]
    with pytest.raises(ConfigError, match=r"cannot be tried on pseudo-random data: .*out of data bounds"):
        OnnxTensor(model=model, max=2, min=2, warm_up=False)


@pytest.mark.parametrize(
    ("nodes", "is_carried"),
    [
        ([("Relu", ["x"], {})], True),
        ([("Flatten", ["x"], {})], True),
        ([("Shape", ["x"], {})], False),
        ([("Transpose", ["x"], {"perm": [1, 0, 2]})], False),
        ([("ReduceSum", ["x"], {"keepdims": 0})], False),
        ([("Reshape", ["x", "rows"], {})], False),
        ([("Shape", ["x"], {"end": 1}), ("Concat", ["0", "two"], {"axis": 0}), ("Reshape", ["x", "1"], {})], True),
        ([("NonZero", ["x"], {}), ("Transpose", ["0"], {})], False),
    ],
)
def test_the_batch_axis_is_followed_through_a_graph(nodes: Any, is_carried: bool) -> None:
    """By its size, not by its name, and whatever the file declares of its outputs."""
    made = [
        helper.make_node(operator, inputs, [str(place) if place < len(nodes) - 1 else "y"], **keywords)
        for place, (operator, inputs, keywords) in enumerate(nodes)
    ]
    constants = {"two": np.array([-1]), "rows": np.array([-1, 2])}
    output = {"y": (INT64 if nodes[-1][0] in ("Shape",) else FLOAT, ["n"] if nodes[0][0] == "Shape" else None)}
    graph = read_graph(make_model(made, {"x": ["n", 2, 3]}, output, constants))
    assert graph is not None
    assert graph.outputs[0].is_carried == is_carried
    assert graph.inputs == {"x": ("n", 2, 3)}


@pytest.mark.parametrize("kind", ["plain", "branch", "function", "of shapes"])
def test_operators_that_count_are_found_wherever_they_are(kind: str) -> None:
    """In a branch and in a function as well; one that counts the ones of a shape depends on no data."""
    non_zero = helper.make_node("NonZero", ["b"], ["y"])
    functions = []
    if kind == "branch":
        graphs = {}
        for name in ("then_branch", "else_branch"):
            output = helper.make_tensor_value_info(f"{name}_y", INT64, None)
            inner = helper.make_node("NonZero", ["b"], [f"{name}_y"])
            graphs[name] = helper.make_graph([inner], name, [], [output])
        non_zero = helper.make_node("If", ["yes"], ["y"], **graphs)
    elif kind == "function":
        imports = [helper.make_opsetid("", 17)]
        inner = helper.make_node("NonZero", ["p"], ["q"])
        functions = [helper.make_function("own", "Places", ["p"], ["q"], [inner], imports)]
        non_zero = helper.make_node("Places", ["b"], ["y"], domain="own")
    source = "Shape" if kind == "of shapes" else "Neg"
    model = make_model(
        [helper.make_node(source, ["x"], ["b"]), non_zero],
        {"x": ["n", 4]},
        {"y": (INT64, None)},
        {"yes": np.array(True)},
        functions,
    )
    graph = read_graph(model)
    assert graph is not None
    assert graph.outputs[0].counted_by == ("" if kind == "of shapes" else "the operator NonZero")


def test_half_precision_in_a_file_is_measured_as_such() -> None:
    """Weights in float16."""
    half = one_node("Add", inputs={"x": (TensorProto.FLOAT16, ["n", 4])}, constants={"w": np.ones(4, np.float16)})
    assert read_graph(half).tolerance == COARSE
    assert read_graph(one_node("Relu")).tolerance < COARSE
    assert read_graph(b"no model") is None


def test_a_model_that_takes_its_scale_from_the_batch_is_refused() -> None:
    """One request's large numbers would leave the others none of theirs; alone it runs, and who vouches has it."""
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["small", "scale", "zero"])]
    nodes += [helper.make_node("DequantizeLinear", ["small", "scale", "zero"], ["y"])]
    by_batch = make_model(nodes, {"x": ["n", 4]}, {"y": ["n", 4]})
    with pytest.raises(ConfigError, match=r"output .y.: .* the operator DynamicQuantizeLinear rounds by a scale"):
        OnnxTensor(model=by_batch, max=4)
    assert OnnxTensor(model=by_batch).max_batch == 1
    assert OnnxTensor(model=by_batch, max=4, rows="batch").max_batch == 4


def test_a_model_that_mixes_rows_in_larger_batches_only_is_refused() -> None:
    """A trial has as many rows as the model may get, up to sixteen."""
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")

    class Late(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.cat([x[:3], x[3:].flip(0)])

    with pytest.raises(ConfigError, match="a row in a batch of 8 is not what it is alone"):
        torch_tensor(model=Late(), max="8x5")
    assert torch_tensor(model=Late(), max="3x5").max_batch == 3


# ---- torch -----------------------------------------------------------------------------------------------------------


def torch_module(function: Any) -> Any:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")

    class Model(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return function(torch, x)

    return Model()


def torch_tensor(**keywords: Any) -> Any:
    pytest.importorskip("torch", reason="torch is not installed")
    from fastpipe.backends.model.torch import TorchTensor

    return TorchTensor(device=["cpu"], **keywords)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda torch, x: (x > 0.5).nonzero(), "output 0: expected 2 rows"),
        (lambda torch, x: x[x.sum((1, 2)) != 0], "output 0: expected 2 rows"),
        (lambda torch, x: x - x.mean(0), r"a row in a batch of \d is not what it is alone"),
        (lambda torch, x: x.flip(0), "is not what it is alone"),
        (lambda torch, x: torch.rand_like(x), "the same data, run twice, give different results"),
        (lambda torch, x: x.sub_(x.amax(0)), "is not what it is alone"),
    ],
)
def test_a_module_that_mixes_or_counts_its_rows_is_refused(function: Any, problem: str) -> None:
    """With shapes in max, it is tried."""
    with pytest.raises(ConfigError, match=problem):
        torch_tensor(model=torch_module(function), max="2x3x4")
    assert torch_tensor(model=torch_module(function)).max_batch == 1


def test_a_module_of_unknown_shapes_needs_them_or_a_word() -> None:
    """max=8 alone does not say what it could be tried with."""
    model = torch_module(lambda torch, x: x * 2)
    with pytest.raises(ConfigError, match=r"the shapes of its inputs are not known.*shapes in max.*rows='batch'"):
        torch_tensor(model=model, max=8)
    assert torch_tensor(model=model, max="8x3").max_batch == 8
    assert torch_tensor(model=model, max=8, rows="batch").max_batch == 8


@pytest.mark.parametrize(
    ("function", "problem", "without_warm_up"),
    [
        (lambda torch, x: x.nonzero(), "expected 2 rows", "the program, by u0, makes as many rows as the data have it"),
        (lambda torch, x: x.sum(0), "expected 2 rows", r"a batch of 1 gives an output of shape \(4,\)"),
        (lambda torch, x: x - x.mean(0), "is not what it is alone", "is not what it is alone"),
    ],
)
def test_an_exported_program_is_held_to_its_symbols(
    function: Any, problem: str, without_warm_up: str, tmp_path: Any
) -> None:
    """The batch is a symbol, and so is what the data count; it is tried, too."""
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    path = tmp_path / "model.pt2"

    def save(model: Any) -> None:
        shapes = ({0: torch.export.Dim("batch", max=64)},)
        torch.export.save(torch.export.export(torch_module(model), (torch.zeros(2, 4),), dynamic_shapes=shapes), path)

    save(lambda torch, x: (x * 2, function(torch, x)))
    with pytest.raises(ConfigError, match=f"output 1: .*{problem}"):
        torch_tensor(model=path, max=2)
    with pytest.raises(ConfigError, match=f"output 1: .*{without_warm_up}"):
        torch_tensor(model=path, max=2, warm_up=False)
    save(lambda torch, x: x * 2)
    results = run(torch_tensor(model=path, max=2, warm_up=False), torch.ones(4), torch.zeros(4))
    assert [result.tolist() for result in results] == [[[2] * 4], [[0] * 4]]


# ---- requests that disagree with themselves --------------------------------------------------------------------------


def test_inputs_that_share_an_axis_and_disagree_fail_alone_in_words() -> None:
    """Before the run, which could fail or stretch the shorter one; the neighbours have their results."""
    inputs = {"ids": ["n", "seq"], "mask": ["n", "seq"]}
    backend = OnnxTensor(model=one_node("Mul", inputs=inputs, outputs={"y": ["n", "seq"]}), max=3)
    good = [np.ones(5, np.float32)] * 2
    for size in (7, 1):
        bad = [np.ones(5, np.float32), np.ones(size, np.float32)]
        batch = [{"data": each} for each in (good, bad, good)]
        with pytest.raises(
            ItemErrors, match=f"'ids' and 'mask' share the axis 'seq', but it is 5 in 'ids' and {size} in 'mask'"
        ) as caught:
            backend.forward(batch)
        assert list(caught.value.errors) == [1]
        assert isinstance(caught.value.errors[1], KernelError)
        assert ["result" in request for request in batch] == [True, False, True]


def test_a_name_that_one_input_has_twice_in_two_sizes_means_nothing() -> None:
    """As where somebody called every open axis "dynamic"."""
    inputs = {"a": ["n", "dynamic", "dynamic"], "b": ["n", "dynamic"]}
    nodes = [helper.make_node("Identity", ["a"], ["y"]), helper.make_node("Identity", ["b"], ["z"])]
    backend = OnnxTensor(model=make_model(nodes, inputs, {"y": inputs["a"], "z": inputs["b"]}))
    y, z = run(backend, [np.ones((2, 3), np.float32), np.ones(5, np.float32)])[0]
    assert (y.shape, z.shape) == ((1, 2, 3), (1, 5))


def test_a_torch_model_needs_min_for_an_empty_axis_and_says_so() -> None:
    """As OnnxTensor."""
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    model = torch_module(lambda torch, x: x * 2)
    with pytest.raises(ItemErrors, match="; min='1x0x1' would let axes be empty"):
        run(torch_tensor(model=model, max="2x3x4"), torch.zeros(0, 4))
    backend = torch_tensor(model=model, max="2x3x4", min="1x0x1")
    assert [result.shape for result in run(backend, torch.zeros(0, 4), torch.zeros(0, 4))] == [(1, 0, 4)] * 2
