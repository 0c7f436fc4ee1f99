"""OnnxTensor: models of a few nodes, made here, whose right answers are plain arithmetic."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402
from onnx_models import FLOAT, make_model  # noqa: E402

import fastpipe  # noqa: E402
from fastpipe import cpus  # noqa: E402
from fastpipe.backends.model.onnx import OnnxTensor  # noqa: E402
from fastpipe.backends.model.onnx_runtime.graph import HALF_INPUTS  # noqa: E402
from fastpipe.backends.model.shapes import InputSpec, make_profiles  # noqa: E402
from fastpipe.errors import BackendError, ConfigError, ItemErrors, KernelError, MissingExtra  # noqa: E402

# ---- models ----------------------------------------------------------------------------------------------------------


def doubling_model(shape=("n", 4)):
    """y = x + x, for any shape."""
    return make_model([helper.make_node("Add", ["x", "x"], ["y"])], {"x": list(shape)}, {"y": list(shape)})


def two_by_two_model():
    """Two inputs of different shapes, two outputs: total = sum(image) + number, number back."""
    return make_model(
        [
            helper.make_node("ReduceSum", ["image", "axes"], ["sum"], keepdims=0),
            helper.make_node("Add", ["sum", "number"], ["total"]),
            helper.make_node("Identity", ["number"], ["echo"]),
        ],
        {"image": ["n", 3, "h", "w"], "number": ["n"]},
        {"total": ["n"], "echo": ["n"]},
        {"axes": np.array([1, 2, 3])},
    )


def convolution_model():
    """A 3x3 convolution and a ReLU: something in which an error of layout or batch would show."""
    weights = np.random.default_rng(7).normal(size=(8, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "weights"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["features"], ["y"]),
    ]
    return make_model(nodes, {"x": ["n", 3, "h", "w"]}, {"y": ["n", 8, "h", "w"]}, {"weights": weights})


def lookup_model():
    """y = table[x], with a table of four rows: fails while it runs if x is not in -4..3."""
    table = np.arange(4, dtype=np.float32)
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    return make_model([node], {"x": (TensorProto.INT64, ["n", 1])}, {"y": ["n", 1]}, {"table": table})


def total_model(batch="n"):
    """One number for the whole batch: an output without rows."""
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)
    return make_model([node], {"x": [batch, 4]}, {"y": []})


def run(backend, *data):
    """Run the data as one batch and return the results."""
    batch = [{"data": item} for item in data]
    backend.forward(batch)
    return [request["result"] for request in batch]


def rows(*numbers, width=4):
    return [np.full(width, number, np.float32) for number in numbers]


class RunSizes:
    """A postprocessor that keeps the number of requests of every run of the model."""

    def __init__(self):
        self.sizes = []

    def __call__(self, outputs, batch):
        self.sizes.append(len(batch))
        return [outputs[0][row] for row in range(len(batch))]


# ---- data in and out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_each_request_gets_its_own_row_with_a_batch_axis_of_one(batch_size):
    """split, the default, hands out row i of the output as an array of shape (1, ...)."""
    results = run(OnnxTensor(model=doubling_model(), max=5), *rows(*range(batch_size)))
    assert [result.shape for result in results] == [(1, 4)] * batch_size
    assert [result[0, 0] for result in results] == [2 * number for number in range(batch_size)]


def test_items_with_and_without_a_batch_axis_share_a_batch():
    """1CHW and CHW are the same sample."""
    sizes = RunSizes()
    backend = OnnxTensor(model=convolution_model(), max="2x3x8x8", postprocessor=sizes)
    item = np.ones((3, 8, 8), np.float32)
    first, second = run(backend, item, item[np.newaxis])
    assert sizes.sizes == [2]
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("form", [list, tuple, lambda pair: dict(zip(("number", "image"), pair[::-1], strict=True))])
def test_several_inputs_come_as_a_sequence_or_by_name_and_several_outputs_leave_as_a_list(form):
    """Sequences are in the model's order, a mapping in any."""
    backend = OnnxTensor(model=two_by_two_model(), max="3x3x2x2,3")
    data = [form([np.full((3, 2, 2), n, np.float32), np.array([n], np.float32)]) for n in (1, 2)]
    results = run(backend, *data)
    assert [[output.tolist() for output in result] for result in results] == [[[13], [1]], [[26], [2]]]
    assert isinstance(results[0], list)


def test_whoever_speaks_dlpack_is_read():
    """An object with __dlpack__ needs no library of its own here."""

    class Exporter:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **keywords):
            return self.array.__dlpack__(**keywords)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    (result,) = run(OnnxTensor(model=doubling_model()), Exporter(rows(3)[0]))
    assert result.tolist() == [[6, 6, 6, 6]]


@pytest.mark.parametrize("layout", ["transposed", "sliced", "reversed", "read-only", "big-endian"])
def test_arrays_of_any_layout_are_read_right(layout):
    """Neither strides nor byte order reach the model, alone or in a batch."""
    values = np.arange(48, dtype=np.float32).reshape(3, 4, 4)
    item = {
        "transposed": np.ascontiguousarray(values.transpose(1, 2, 0)).transpose(2, 0, 1),
        "sliced": np.repeat(values, 2, axis=2)[:, :, ::2],
        "reversed": np.ascontiguousarray(values[:, ::-1])[:, ::-1],
        "read-only": np.frombuffer(values.tobytes(), np.float32).reshape(3, 4, 4),
        "big-endian": values.astype(">f4"),
    }[layout]
    backend = OnnxTensor(model=doubling_model(("n", 3, 4, 4)), max=2)
    for results in (run(backend, item), run(backend, item, item)):
        for result in results:
            np.testing.assert_array_equal(result[0], values * 2)


@pytest.mark.parametrize("given", [">i8", ">i4", ">u2"])
def test_big_endian_integers_are_converted(given):
    """ONNX Runtime would take them as they lie; alone and in a batch the place in the table is the right one."""
    backend = OnnxTensor(model=lookup_model(), max=2)
    items = [np.array([place], given) for place in (3, 1)]
    results = run(backend, items[0]) + run(backend, *items)
    assert [result.item() for result in results] == [3, 3, 1]


@pytest.mark.parametrize("given", [np.uint8, np.int64, np.float64, np.float16, np.bool_])
def test_numbers_become_floats_where_the_model_wants_floats(given):
    """Alone and in a batch; a batch of one dtype is one run."""
    sizes = RunSizes()
    backend = OnnxTensor(model=doubling_model(), max=2, postprocessor=sizes)
    item = np.ones(4, given)
    results = run(backend, item) + run(backend, item, item)
    assert [result.tolist() for result in results] == [[2, 2, 2, 2]] * 3
    assert results[0].dtype == np.float32
    assert sizes.sizes == [1, 2]


@pytest.mark.parametrize(("given", "fits"), [(np.int32, True), (np.uint8, True), (np.uint64, False), (float, False)])
def test_only_conversions_that_keep_every_value_lead_to_integers(given, fits):
    """int32 -> int64 is safe; a float would lose its fraction and a uint64 might wrap around."""
    backend = OnnxTensor(model=lookup_model())
    batch = [{"data": np.array([2], given)}]
    if fits:
        backend.forward(batch)
        assert batch[0]["result"].tolist() == [[2]]
    else:
        with pytest.raises(ItemErrors, match="expected int64"):
            backend.forward(batch)


def test_results_stay_valid_when_the_next_batch_runs_and_the_backend_is_gone():
    """No result lies in memory that something of ours uses again."""
    backend = OnnxTensor(model=doubling_model(), max=3)
    first = run(backend, *rows(1, 2, 3))
    first[0][:] = 100  # the caller's own, and nobody else's
    alone = run(backend, *rows(9))
    second = run(backend, *rows(4, 5, 6))
    backend.close()
    del backend
    gc.collect()
    assert [result[0, 0] for result in first + alone + second] == [100, 4, 6, 18, 8, 10, 12]
    assert not any(np.shares_memory(a, b) for a in first for b in alone + second)


def test_the_data_of_a_request_is_not_changed():
    """Neither the array nor the request's other keys."""
    backend = OnnxTensor(model=doubling_model(), max=2, mean=None)
    item = rows(1)[0]
    batch = [{"data": item, "id": 5}, {"data": rows(2)[0]}]
    backend.forward(batch)
    assert batch[0].keys() == {"data", "id", "result"}
    assert batch[0]["data"] is item
    assert item.tolist() == [1, 1, 1, 1]


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_a_mixed_batch_gives_each_request_what_it_gets_alone():
    """Shapes and dtypes that differ are run apart, whatever the scheduler put together."""
    random = np.random.default_rng(3)
    backend = OnnxTensor(model=convolution_model(), max="4x3x16x16")
    data = []
    for _ in range(12):
        shape = (3, *random.integers(1, 4, size=2) * 4)
        data.append(random.integers(0, 255, shape).astype(random.choice(["uint8", "float32"])))
    alone = [run(backend, item)[0] for item in data]
    for together, expected in zip(run(backend, *data), alone, strict=True):
        np.testing.assert_allclose(together, expected, rtol=1e-6, atol=1e-4)


def test_requests_that_may_share_a_batch_have_equal_buckets_and_no_others():
    """The bucket is shape and dtype, with or without the batch axis, and finds no fault with a misfit."""
    backend = OnnxTensor(model=convolution_model(), max=4)

    def bucket(shape, dtype=np.float32):
        return backend.bucket({"data": np.zeros(shape, dtype)})

    assert bucket((3, 8, 8)) == bucket((1, 3, 8, 8))
    assert len({bucket((3, 8, 8)), bucket((3, 8, 16)), bucket((3, 8, 8), np.uint8), bucket((2, 8, 8))}) == 4
    assert bucket((2, 8, 8)) == backend.bucket({"data": "text"}) == backend.bucket({})


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_fixed_batch_serves_fewer_requests_by_padding_with_zeros(count):
    """The model sees its own batch size, and the zeros' rows reach nobody."""
    seen = []

    def keep_rows(outputs, batch):
        seen.append(outputs[0].shape)
        return list(outputs[0])

    backend = OnnxTensor(model=doubling_model((4, 4)), postprocessor=keep_rows)
    assert backend.max_batch == 4
    assert [result[0] for result in run(backend, *rows(*range(1, count + 1)))] == [2 * n for n in range(1, count + 1)]
    assert seen == [(count, 4)]


def test_padding_is_zero_and_not_what_an_earlier_batch_left():
    """A model that adds up its whole batch shows what it was padded with."""
    sum_of_batch = [
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    model = make_model(sum_of_batch, {"x": [3, 1]}, {"y": [3, 1]}, {"axes": np.array([0])})
    backend = OnnxTensor(model=model, rows="batch")
    assert [result.item() for result in run(backend, *rows(10, 20, 30, width=1))] == [70, 80, 90]
    assert [result.item() for result in run(backend, *rows(1, width=1))] == [2]


def test_min_is_the_smallest_batch_the_model_is_run_with():
    """One request is padded to two; the model's answer is the shape of what it saw, which has two rows, too."""
    node = helper.make_node("Shape", ["x"], ["y"])
    model = make_model([node], {"x": ["n", 4]}, {"y": (TensorProto.INT64, [2])})
    backend = OnnxTensor(model=model, max=2, min=2, rows="batch")
    assert run(backend, *rows(1))[0].tolist() == [2]


@pytest.mark.parametrize(
    ("shape", "limits", "expected"),
    [(("n", 4), {}, 1), (("n", 4), {"max": "6"}, 6), ((3, 4), {}, 3), ((3, 4), {"max": 2}, 2), ((3, 4), {"min": 1}, 3)],
)
def test_the_batch_limit_comes_from_max_or_from_the_model(shape, limits, expected):
    """A dynamic batch without max is 1."""
    assert OnnxTensor(model=doubling_model(shape), **limits).max_batch == expected


def test_a_profile_with_a_smaller_batch_splits_what_is_more():
    """Large items run two at a time although small ones may be four."""
    sizes = RunSizes()
    backend = OnnxTensor(model=doubling_model(("n", "w")), max="4x8;2x16", postprocessor=sizes)
    assert backend.max_batch == 4
    run(backend, *[np.ones(8, np.float32)] * 4)
    run(backend, *[np.ones(16, np.float32)] * 3)
    assert sizes.sizes == [4, 2, 1]


def test_a_model_run_alone_may_have_outputs_without_rows():
    """With max 1 an output is handed out whole."""
    assert run(OnnxTensor(model=total_model()), rows(3)[0])[0] == 12


def test_a_model_that_cannot_be_batched_is_found_while_it_is_built():
    """Its output has no row for each request."""
    with pytest.raises(ConfigError, match=r"output 'y': expected 3 rows.*max=1"):
        OnnxTensor(model=total_model(), max=3)


def test_every_batch_size_is_run_before_the_first_request():
    """A model that breaks at one size only, here 2, is refused; without warm-up it breaks later."""
    reshape = helper.make_node("Reshape", ["x", "shape"], ["y"])
    model = make_model([reshape], {"x": ["n", 1]}, {"y": [3, "w"]}, {"shape": np.array([3, -1])})
    OnnxTensor(model=model, max=3, min=3)
    with pytest.raises(ConfigError, match=r"(?s)zeros of shape \(2, 1\) failed.*warm_up=false"):
        OnnxTensor(model=model, max=3)
    backend = OnnxTensor(model=model, max=3, warm_up=False, rows="batch")
    with pytest.raises(Exception, match="Reshape") as caught:
        run(backend, *rows(1, 2, width=1))
    assert "run with inputs of shape (2, 1)" in caught.value.__notes__[0]


# ---- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (np.zeros((2, 8, 8), np.float32), r"input 'x': expected float32 of shape \(3, 1..16, 1..16\), .*\(2, 8, 8\)"),
        (np.zeros((1, 3, 8, 17), np.float32), r"got float32 of shape \(3, 8, 17\)"),
        (np.zeros((2, 3, 8, 8), np.float32), r"batch axis of 1 in front, got float32 of shape \(2, 3, 8, 8\)"),
        (np.zeros((8, 8), np.float32), r"got float32 of shape \(8, 8\)"),
        (np.zeros((3, 8, 8), np.complex64), "got complex64"),
        (np.zeros((3, 8, 8), "U1"), "got str32"),
        ("text", "got a str, which is no array"),
        (None, "got a NoneType"),
        ([np.zeros((3, 8, 8), np.float32)] * 2, "expected 1 array, for x, got 2"),
        ({"y": np.zeros((3, 8, 8), np.float32)}, r"inputs \['x'\], got \['y'\]"),
    ],
)
def test_a_request_that_does_not_fit_fails_alone_and_says_why(data, problem, tmp_path):
    """Its neighbours have their results; the message names file, input, expected and got."""
    path = tmp_path / "convolution.onnx"
    path.write_bytes(convolution_model())
    backend = OnnxTensor(model=path, max="3x3x16x16")
    good = np.ones((3, 8, 8), np.float32)
    batch = [{"data": good}, {"data": data}, {"data": good}]
    with pytest.raises(ItemErrors, match=problem) as caught:
        backend.forward(batch)
    assert caught.value.errors.keys() == {1}
    assert isinstance(caught.value.errors[1], KernelError)
    assert "convolution.onnx" in str(caught.value)
    assert ["result" in request for request in batch] == [True, False, True]


def test_an_empty_axis_needs_min_and_the_error_says_which():
    """A picture without boxes: in a batch, too; where the model has a size there, nothing can be done."""
    model = doubling_model(("n", "boxes", 4))
    none, two = np.zeros((0, 4), np.float32), np.ones((2, 4), np.float32)
    with pytest.raises(ItemErrors, match=r"got float32 of shape \(0, 4\); min='1x0x4' would let axes be empty"):
        run(OnnxTensor(model=model, max=2), none)
    backend = OnnxTensor(model=model, max=2, min="1x0x4")
    assert [result.shape for result in run(backend, none, none, two)] == [(1, 0, 4), (1, 0, 4), (1, 2, 4)]
    with pytest.raises(ItemErrors, match=r"got float32 of shape \(0, 3\), with|got float32 of shape \(0, 3\)$"):
        run(backend, np.zeros((0, 3), np.float32))
    backend = OnnxTensor(model=two_by_two_model(), max="2x3x4x4,2", min="2x3x2x2,2")
    with pytest.raises(ItemErrors, match=r"; min='2x3x0x2,2' would let axes be empty"):
        run(backend, [np.zeros((3, 0, 4), np.float32), np.zeros((), np.float32)])


def test_a_request_without_data_fails_alone():
    """As any other misfit."""
    with pytest.raises(ItemErrors, match="the request has no 'data'"):
        OnnxTensor(model=doubling_model()).forward([{}])


def test_inputs_that_fit_only_in_different_profiles_do_not_fit():
    """All inputs of a request belong to one profile."""
    backend = OnnxTensor(model=two_by_two_model(), max="2x3x4x4,2;2x3x8x8,2", min="1x3x1x1,1;1x3x8x8,1")
    with pytest.raises(ItemErrors, match=r"\(3, 1..4, 1..4\) or \(3, 8, 8\).*got float32 of shape \(3, 5, 5\)"):
        run(backend, [np.ones((3, 5, 5), np.float32), np.ones(1, np.float32)])


def test_an_error_of_the_runtime_keeps_its_type_and_names_model_and_shapes(capfd):
    """One bad value fails the run, for the engine to find out whose it was; nothing is written to stderr."""
    backend = OnnxTensor(model=lookup_model(), max=2)
    with pytest.raises(Exception, match="out of data bounds") as caught:
        run(backend, np.array([1]), np.array([99]))
    assert type(caught.value).__module__.startswith("onnxruntime")
    assert "run with inputs of shape (2, 1)" in caught.value.__notes__[0]
    assert backend.retry_alone
    assert capfd.readouterr() == ("", "")


# ---- mean, std, precision --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["chw", "hwc", "open"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mean_and_std_are_applied_in_the_graph(layout, dtype):
    """For channels first and last, on uint8 and on floats, in float32."""
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    shape = {"chw": ("n", 3, 5, 6), "hwc": ("n", 5, 6, 3), "open": ("n", "c", "h", "w")}[layout]
    last = layout == "hwc"
    backend = OnnxTensor(model=doubling_model(shape), max="2x5x6x3" if last else "2x3x5x6", mean=mean, std=std)
    image = np.random.default_rng(1).integers(0, 256, (5, 6, 3)).astype(dtype)
    expected = (image.astype(np.float32) - np.float32(mean)) / np.float32(std) * 2
    item = image if last else np.ascontiguousarray(image.transpose(2, 0, 1))
    for result in run(backend, item, item) + run(backend, item):
        shown = result[0] if last else result[0].transpose(1, 2, 0)
        np.testing.assert_allclose(shown, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("mean", "std", "expected"), [([10.0], None, 180), (None, [50.0], 4), ([0.0], [2.0, 4.0], 100)]
)
def test_mean_or_std_alone_and_one_number_for_all_channels(mean, std, expected):
    """One number is for every channel; with two it depends on the channel."""
    shape = (1 if std is None or len(std) == 1 else 2, 2, 2)
    backend = OnnxTensor(model=doubling_model(("n", *shape)), mean=mean, std=std)
    assert run(backend, np.full(shape, 100, np.float32))[0][0, 0, 0, 0] == expected


def test_only_images_are_normalised_and_names_stay():
    """Other inputs pass as they are, and data by name still has the model's names."""
    backend = OnnxTensor(model=two_by_two_model(), mean=[1.0, 1.0, 1.0])
    total, echo = run(backend, {"image": np.full((3, 2, 2), 3, np.float32), "number": np.array([5], np.float32)})[0]
    assert (total.item(), echo.item()) == (2 * 12 + 5, 5)


def test_an_input_may_be_named_as_another_one_is_that_gets_normalised():
    """``x::raw`` is what the input ``x`` is called within a graph that normalises it, and only there."""
    node = helper.make_node("Sub", ["x", "x::raw"], ["y"])
    model = make_model([node], {name: ["n", 1, 2, 2] for name in ("x", "x::raw")}, {"y": ["n", 1, 2, 2]})
    five, two = (np.full((1, 2, 2), number, np.float32) for number in (5, 2))
    assert run(OnnxTensor(model=model), {"x": five, "x::raw": two})[0][0, 0, 0, 0] == 3
    with pytest.raises(ConfigError, match="no input may be called 'x::raw'"):
        OnnxTensor(model=model, mean=[1.0])


def test_mean_and_std_reach_an_input_that_is_read_inside_a_branch():
    """The body of an If reads the normalised tensor under the input's own name."""
    branches = {}
    for name in ("then_branch", "else_branch"):
        output = helper.make_tensor_value_info(f"{name}_y", FLOAT, ["n", 1, 2, 2])
        branches[name] = helper.make_graph([helper.make_node("Neg", ["x"], [f"{name}_y"])], name, [], [output])
    node = helper.make_node("If", ["yes"], ["y"], **branches)
    shape = ["n", 1, 2, 2]
    model = make_model([node], {"x": shape}, {"y": shape}, {"yes": np.array(True)})
    assert run(OnnxTensor(model=model, mean=[2.0]), np.full((1, 2, 2), 7, np.float32))[0][0, 0, 0, 0] == -5


@pytest.mark.parametrize(
    ("mean", "std", "problem"),
    [
        ([1.0, 2.0], None, r"with 2 channels fit no input.*'x' \(None, 3, None, None\)"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "one number, or one for each channel"),
        ([], None, "one number, or one for each channel"),
        (None, [1.0, 0.0, 1.0], "std must not have a zero"),
        (None, [1e-60], "std must not have a zero in float32"),
        (None, [float("inf")], "std must have finite numbers of float32, got"),
        ([1e39], [1.0], "mean must have finite numbers of float32, got"),
    ],
)
def test_mean_and_std_that_cannot_be_meant_are_refused(mean, std, problem):
    """A wrong number of channels, or a division by zero."""
    with pytest.raises(ConfigError, match=problem):
        OnnxTensor(model=convolution_model(), mean=mean, std=std)


@pytest.mark.parametrize(
    ("mean", "std", "problem"),
    [
        ([65_520.0], None, "mean must have finite numbers of float16"),
        (None, [1e-9], "std must not have a zero in float1"),
    ],
)
def test_mean_and_std_are_held_against_the_dtype_of_the_input(mean, std, problem):
    """An input of halves is normalised in halves, where a small std is zero and a large mean infinite."""
    node = helper.make_node("Identity", ["x"], ["y"])
    shape = ["n", 1, 2, 2]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    with pytest.raises(ConfigError, match=problem):
        OnnxTensor(model=model, mean=mean, std=std)


def test_fp16_keeps_the_types_of_inputs_and_outputs_and_is_close():
    """About three digits remain; with mean and std, too, which stay in float32."""
    item = np.random.default_rng(2).integers(0, 256, (3, 9, 9)).astype(np.uint8)
    options = {"model": convolution_model(), "mean": [127.5], "std": [127.5]}
    (exact,) = run(OnnxTensor(**options), item)
    (half,) = run(OnnxTensor(**options, precision="fp16"), item)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 0.02


def test_fp16_survives_a_variance_that_float16_cannot_hold():
    """A batch normalisation with a variance of 1e8, as PP-OCR's detector has, is merged into its convolution first."""
    weights = np.random.default_rng(8).normal(size=(2, 3, 1, 1)).astype(np.float32) * 1000
    constants = {"weights": weights, "mean": np.zeros(2, np.float32), "variance": np.full(2, 1e8, np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "weights"], ["features"]),
        helper.make_node("BatchNormalization", ["features", "one", "zero", "mean", "variance"], ["y"]),
    ]
    constants |= {"one": np.ones(2, np.float32), "zero": np.zeros(2, np.float32)}
    model = make_model(nodes, {"x": ["n", 3, 4, 4]}, {"y": ["n", 2, 4, 4]}, constants)
    item = np.random.default_rng(9).normal(size=(3, 4, 4)).astype(np.float32) * 100
    (exact,) = run(OnnxTensor(model=model), item)
    (half,) = run(OnnxTensor(model=model, precision="fp16"), item)
    np.testing.assert_allclose(half, exact, rtol=0.01, atol=0.05)


def tree_model(threshold, scaled=False):
    """1 up to a threshold of the first feature, 2 beyond; with a scaler in front, of the doubled feature."""
    tree = helper.make_node(
        "TreeEnsembleRegressor",
        ["s" if scaled else "x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_falsenodeids=[2, 0, 0],
        nodes_featureids=[0, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_nodeids=[0, 1, 2],
        nodes_treeids=[0, 0, 0],
        nodes_truenodeids=[1, 0, 0],
        nodes_values=[threshold, 0.0, 0.0],
        target_ids=[0, 0],
        target_nodeids=[1, 2],
        target_treeids=[0, 0],
        target_weights=[1.0, 2.0],
    )
    scaler = helper.make_node("Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=[0.0], scale=[2.0])
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [scaler, tree] if scaled else [tree], "g", [value("x", FLOAT, ["n", 2])], [value("y", FLOAT, ["n", 1])]
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()


def quantized_model():
    """x, quantised and back, times weights: as files are that were quantised."""
    return make_model(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
            helper.make_node("MatMul", ["d", "w"], ["y"]),
        ],
        {"x": ["n", 3]},
        {"y": ["n", 3]},
        {"scale": np.float32(0.5), "zero": np.uint8(0), "w": np.eye(3, dtype=np.float32)},
    )


def celu_model():
    return make_model([helper.make_node("Celu", ["x"], ["y"])], {"x": ["n", 3]}, {"y": ["n", 3]})


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (tree_model(2048.5), [[2049.0, 0.0]]),
        (tree_model(70000.5), [[70000.0, 0.0]]),
        (tree_model(4097.5, scaled=True), [[2049.0, 0.0]]),
        (quantized_model(), [[1.0, 2.5, 100.0]]),
        (celu_model(), [[0.5, 1.0, 90000.0]]),
    ],
    ids=["tree", "large", "scaled tree", "quantised", "celu"],
)
def test_fp16_leaves_operators_in_float32_that_take_nothing_else(model, data):
    """And what they read is not rounded on its way: what a tree decides is what it decided."""
    data = np.array(data, np.float32)
    expected, got = (
        run(OnnxTensor(model=model, max=2, precision=precision), data)[0] for precision in ("fp32", "fp16")
    )
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("options", [{"precision": "fp16"}, {"mean": [1.0]}, {"precision": "fp16", "std": [2.0]}])
def test_a_model_with_its_weights_beside_it_can_be_changed(options, tmp_path):
    """As exporters write them; they are taken in."""
    inside = convolution_model()
    expected = run(OnnxTensor(model=inside, **options), np.ones((1, 3, 6, 6), np.float32))[0]
    path = tmp_path / "model.onnx"
    onnx.save(onnx.load_from_string(inside), path, save_as_external_data=True, location="model.data", size_threshold=0)
    assert (tmp_path / "model.data").stat().st_size > 0
    got = run(OnnxTensor(model=path, **options), np.ones((1, 3, 6, 6), np.float32))[0]
    np.testing.assert_array_equal(got, expected)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.data", "model.onnx"]


def product_model():
    """x times ones: an operator that is computed in float16."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return make_model(nodes, {"x": ["n", 3]}, {"y": ["n", 3]}, {"w": np.eye(3, dtype=np.float32)})


@pytest.mark.parametrize("value", [65505.0, -7e4, 1e30])
def test_fp16_refuses_a_request_with_values_that_it_cannot_hold(value):
    """They would be infinite, and wrong in silence; the others of the batch are answered, and fp32 takes it."""
    data = [np.full((1, 3), number, np.float32) for number in (1, value, 65504)]
    backend = OnnxTensor(model=product_model(), max=4, precision="fp16")
    batch = [{"data": each} for each in data]
    assert len({backend.bucket(request) for request in batch}) == 1
    with pytest.raises(ItemErrors) as caught:
        backend.forward(batch)
    (error,) = caught.value.errors.values()
    assert list(caught.value.errors) == [1]
    assert isinstance(error, KernelError)
    assert "input 'x': expected values of -65504 to 65504, which is what float16 can hold, got" in str(error)
    assert [request["result"][0, 0] for request in (batch[0], batch[2])] == [1, 65504]
    np.testing.assert_array_equal(run(OnnxTensor(model=product_model()), data[1])[0], data[1])


@pytest.mark.parametrize("data", [np.full((1, 3), 1e6, np.float32), np.full((1, 3), 70000)])
def test_a_model_whose_input_is_float16_refuses_what_that_cannot_hold(data):
    """Whoever made it so; the way out is not a precision."""
    node = helper.make_node("Identity", ["x"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["n", 3]) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    backend = OnnxTensor(model=content, max=2)
    with pytest.raises(ItemErrors) as caught:
        backend.forward([{"data": data}])
    (error,) = caught.value.errors.values()
    assert "expected values of -65504 to 65504, which is what float16 can hold, got" in str(error)
    assert "fp32" not in str(error)


def test_fp16_takes_what_is_infinite_or_no_number_as_it_is():
    """Float16 has them, too; only beside a number that it has not are they in the way of none."""
    backend = OnnxTensor(model=celu_and_product(), max=2, precision="fp16")
    run(backend, np.array([[np.inf, np.nan, 1]], np.float32), np.zeros((1, 3), np.float32))
    with pytest.raises(ItemErrors, match="got 70000"):
        run(backend, np.array([[np.inf, np.nan, 70000]], np.float32))


def celu_and_product():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Celu", ["m"], ["y"])]
    return make_model(nodes, {"x": ["n", 3]}, {"y": ["n", 3]}, {"w": np.eye(3, dtype=np.float32)})


def test_fp16_asks_nothing_of_pixels_that_are_normalised_first():
    """That is done in float32."""
    backend = OnnxTensor(model=convolution_model(), precision="fp16", mean=[65000.0], std=[1000.0])
    assert np.isfinite(run(backend, np.full((1, 3, 6, 6), 66000, np.float32))[0]).all()


@pytest.mark.parametrize("written", ["no JSON", '["x"]'])
def test_what_a_file_says_under_the_name_of_our_metadata_is_not_read(written):
    """Only what was written here counts."""
    model = onnx.load_from_string(doubling_model())
    helper.set_model_props(model, {HALF_INPUTS: written})
    large = np.full((1, 4), 1e6, np.float32)
    assert run(OnnxTensor(model=model.SerializeToString()), large)[0].max() == 2e6


def test_fp16_leaves_the_import_path_as_it_is():
    """The converter's package would add a folder to sys.path for the whole process."""
    before = list(sys.path)
    OnnxTensor(model=convolution_model(), precision="fp16")
    assert sys.path == before


def test_a_missing_onnx_package_is_named_only_where_it_is_needed(monkeypatch):
    """Running a model as it is needs ONNX Runtime alone."""
    model = convolution_model()
    monkeypatch.setitem(sys.modules, "onnx", None)
    OnnxTensor(model=model)
    with pytest.raises(MissingExtra, match=r"mean, std, fuse or precision.*fastpipe-engine\[cpu\]"):
        OnnxTensor(model=model, precision="fp16")


# ---- postprocessors --------------------------------------------------------------------------------------------------

SCORES = [np.log(np.array(row, np.float32)) for row in ([1, 2, 5], [6, 1, 1], [2, 2, 4])]


def identity_model(shape=("n", 3), kind=FLOAT):
    node = helper.make_node("Identity", ["x"], ["y"])
    return make_model([node], {"x": (kind, list(shape))}, {"y": (kind, list(shape))})


def test_softmax_arg_max_gives_the_class_and_keeps_its_score():
    """As torchpipe: result and class are the number, score its probability."""
    backend = OnnxTensor(model=identity_model(), max=3, postprocessor="SoftmaxArgMax")
    batch: list[dict[str, Any]] = [{"data": scores} for scores in SCORES]
    backend.forward(batch)
    assert [request["result"] for request in batch] == [request["class"] for request in batch] == [2, 0, 2]
    assert [request["score"] for request in batch] == pytest.approx([5 / 8, 6 / 8, 4 / 8])
    assert {type(request["result"]) for request in batch} == {int}


def test_softmax_max_gives_class_and_probability_as_floats():
    """As torchpipe: a list of the two."""
    backend = OnnxTensor(model=identity_model(), max=3, postprocessor="softmaxmax")
    assert run(backend, *SCORES) == [pytest.approx(pair) for pair in ([2.0, 5 / 8], [0.0, 6 / 8], [2.0, 4 / 8])]


def test_softmax_cpu_turns_scores_into_probabilities():
    """Rows that add up to one, with a batch axis."""
    backend = OnnxTensor(model=identity_model(), max=3, postprocessor="SoftmaxCpu")
    np.testing.assert_allclose(np.concatenate(run(backend, *SCORES)), np.exp(SCORES) / 8, rtol=1e-6)


def test_softmax_of_large_half_precision_scores_stays_finite():
    """exp(60000) is no float16, nor float32."""
    backend = OnnxTensor(model=identity_model(kind=TensorProto.FLOAT16), postprocessor="SoftmaxCpu")
    (result,) = run(backend, np.array([6e4, 6e4, -6e4], np.float16))
    assert result.tolist() == [[0.5, 0.5, 0]]


def test_softmax_cpu_leaves_outputs_that_are_no_class_scores_alone():
    """As torchpipe: only outputs of shape (batch, classes)."""
    backend = OnnxTensor(model=identity_model(("n", 2, 3)), postprocessor="SoftmaxCpu")
    item = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(run(backend, item)[0][0], item)


def test_cpu_is_split():
    """There is nothing to move."""
    (result,) = run(OnnxTensor(model=identity_model(), postprocessor="cpu"), SCORES[0])
    np.testing.assert_array_equal(result, SCORES[:1])


@pytest.mark.parametrize("shape", [("n", 3, 1, 1), ("n", "classes", 1, 1)])
def test_class_scores_may_have_axes_of_one_behind(shape):
    """As after a global pooling."""
    backend = OnnxTensor(model=identity_model(shape), max="2x3x1x1", postprocessor="SoftmaxArgMax")
    assert run(backend, SCORES[0].reshape(3, 1, 1), SCORES[1].reshape(3, 1, 1)) == [2, 0]


def test_a_callable_gets_the_rows_of_the_requests_and_may_fill_them_itself():
    """Once for each run; None says that the requests are filled."""
    calls = []

    def fill(outputs, batch):
        calls.append([output.shape for output in outputs])
        for row, request in enumerate(batch):
            request["result"] = outputs[0][row].sum()

    backend = OnnxTensor(model=doubling_model((4, 4)), postprocessor=fill)
    assert run(backend, *rows(1, 2, 3)) == [8, 16, 24]
    assert calls == [[(3, 4)]]


def test_a_callable_that_returns_too_few_results_is_found_out():
    """BackendError, with both numbers."""
    backend = OnnxTensor(model=doubling_model(), max=3, postprocessor=lambda outputs, batch: [1])
    with pytest.raises(BackendError, match="returned 1 results for 3 requests: expected one for each"):
        run(backend, *rows(1, 2, 3))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: {"a": 1, "b": 2, "c": 3}, "a dict"),
        (lambda: {1, 2, 3}, "a set"),
        (lambda: frozenset({1, 2, 3}), "a frozenset"),
        (lambda: "abc", "a str"),
        (lambda: b"abc", "a bytes"),
        (lambda: bytearray(3), "a bytearray"),
        (lambda: {"a": 1, "b": 2, "c": 3}.keys(), "a dict_keys"),
        (lambda: 3, "a int"),
        (lambda: np.float32(3), "a float32"),
        (lambda: np.array(3), "a ndarray"),
        (lambda: (number for number in range(3)), "a generator.*list.* makes one of a generator"),
        (lambda: map(str, range(3)), "a map.*makes one of a map"),
        (lambda: {"a": 1, "b": 2, "c": 3}.values(), "a dict_values.*makes one of a dict_values"),
    ],
)
def test_a_callable_that_returns_no_list_is_found_out(make, kind):
    """Although its length may be right: its elements are no results, or come in no order."""
    backend = OnnxTensor(model=doubling_model(), max=3, postprocessor=lambda outputs, batch: make())
    batch = [{"data": item} for item in rows(1, 2, 3)]
    with pytest.raises(BackendError, match=rf"returned {kind}") as caught:
        backend.forward(batch)
    assert "for 3 requests: expected a list with a result for each of them" in str(caught.value)
    assert not any("result" in request for request in batch)


@pytest.mark.parametrize("make", [list, tuple, np.array, deque])
def test_a_callable_may_return_whatever_has_an_order_and_a_length(make):
    """A list, a tuple, an array."""
    backend = OnnxTensor(model=doubling_model(), max=3, postprocessor=lambda outputs, batch: make([1, 2, 3]))
    assert run(backend, *rows(1, 2, 3)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("postprocessor", "model", "problem"),
    [
        ("SoftmaxArgmin", identity_model(), "did you mean 'SoftmaxArgMax'"),
        ("SoftmaxArgMax", two_by_two_model(), "needs a model with one output"),
        ("SoftmaxMax", identity_model(("n", 3, 4)), "needs a model with one output"),
    ],
)
def test_a_postprocessor_that_cannot_work_is_refused(postprocessor, model, problem):
    """An unknown name, or a model with other outputs."""
    with pytest.raises(ConfigError, match=problem):
        OnnxTensor(model=model, postprocessor=postprocessor)


# ---- files, providers, threads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "there is nothing at /"), ("folder", "a folder at /"), (b"junk", "it is no ONNX model")],
)
@pytest.mark.parametrize("options", [{}, {"mean": [1.0]}])
def test_a_file_that_is_no_model_is_named(content, problem, options, tmp_path):
    """Missing, a folder, or damaged; also where the graph is to be changed."""
    path = tmp_path / "model.onnx"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"model '{path}'.*{problem}"):
        OnnxTensor(model=str(path), **options)


@pytest.mark.parametrize(
    ("model", "limits", "problem"),
    [
        (doubling_model(), {"max": "4x"}, "max must be a batch size like 4 or shapes"),
        (doubling_model(), {"max": 0}, "max must be a batch size"),
        (doubling_model(), {"max": "4x5"}, "max is 5 in axis 1 of input 'x', the model has 4"),
        (doubling_model(), {"max": "4x4x4"}, "max has 3 axes for input 'x', the model has 2"),
        (doubling_model(), {"max": "4x4,4x4"}, "shapes of 2 inputs, but the model has 1"),
        (doubling_model(), {"max": 2, "min": 3}, "the batch of min is 3, that of max only 2"),
        (doubling_model(("n", "w")), {"max": "2x3", "min": "1x4"}, "min is 4 in axis 1 of input 'x', max only 3"),
        (doubling_model((2, 4)), {"max": 3}, "max is a batch of 3, but the model's is fixed at 2"),
        (doubling_model(()), {"max": 2}, "input 'x' has no batch axis, and no other input has one: .*max=1"),
        (two_by_two_model(), {"max": "2x3x4x4,3"}, "must be the same for every input"),
        (doubling_model(("n", "w")), {"max": "1x2;1x3;1x4", "min": "1x1;1x2"}, "has 3 profiles, min='1x1;1x2' has 2"),
        (doubling_model(), {"providers": ["CpuExecutionProvider"]}, "did you mean 'CPUExecutionProvider'"),
    ],
)
def test_parameters_that_contradict_the_model_are_refused(model, limits, problem):
    """In words, with the model named."""
    with pytest.raises(ConfigError, match=f"model of {len(model)} bytes: .*{problem}"):
        OnnxTensor(model=model, **limits)


def test_a_model_without_inputs_is_refused_in_words():
    """Whatever a request has, it would get the same."""
    constant = helper.make_node("Constant", [], ["y"], value_floats=[1.0])
    graph = helper.make_graph([constant], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    with pytest.raises(ConfigError, match="it has no inputs"):
        OnnxTensor(model=model)


def test_one_batch_number_serves_all_profiles_and_inputs():
    """min="1" beside two profiles, max="4" beside two inputs."""
    specs = [InputSpec("a", np.dtype("f4"), ("n", "w")), InputSpec("b", np.dtype("f4"), ("n",))]
    first, second = make_profiles(specs, "4x8,4; 2x16 ,2", "1")
    assert (first.max_batch, first.limits) == (4, (((1, 8),), ()))
    assert (second.max_batch, second.limits) == (2, (((1, 16),), ()))
    (profile,) = make_profiles(specs, "4", None)
    assert (profile.max_batch, profile.limits) == (4, (((1, None),), ()))


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"threads": 4}, 4), ({"threads": 4, "instance_num": 3}, 1), ({}, 6), ({"instance_num": 2}, 3)],
)
def test_the_instances_share_one_budget_of_threads(options, expected, monkeypatch):
    """threads, or the CPUs the process may use, divided by the instances; and none of them spins."""
    monkeypatch.setattr("fastpipe.backends.model.onnx_runtime.model.usable_cpu_count", lambda: 6)
    opened = []

    class Recorder(onnxruntime.InferenceSession):
        def __init__(self, model, session_options, **keywords):
            opened.append(session_options)
            super().__init__(model, session_options, **keywords)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorder)
    OnnxTensor(model=doubling_model(), **options)
    (used,) = opened
    assert (used.intra_op_num_threads, used.inter_op_num_threads) == (expected, 1)
    assert used.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_more_instances_than_threads_have_one_each():
    """Never zero, which would mean as many as there are cores."""
    before = set(os.listdir("/proc/self/task"))
    backends = [OnnxTensor(model=doubling_model(), threads=2, instance_num=8) for _ in range(8)]
    assert set(os.listdir("/proc/self/task")) <= before  # threads of earlier tests may still be ending
    assert len(backends) == 8


def test_instances_run_side_by_side():
    """Each has a session of its own; the answers do not mix."""
    backends = [OnnxTensor(model=convolution_model(), max="4x3x8x8", threads=2, instance_num=2) for _ in range(2)]
    item = np.random.default_rng(5).normal(size=(4, 3, 8, 8)).astype(np.float32)
    expected = run(backends[0], *item)
    wrong = []

    def work(backend):
        for _ in range(50):
            if not all(np.array_equal(a, b) for a, b in zip(run(backend, *item), expected, strict=True)):
                wrong.append(backend)

    threads = [threading.Thread(target=work, args=(backend,)) for backend in backends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- usable CPUs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, [1.5]),
        ("0::/\n", {"cpu.max": "max 100000\n"}, []),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "200000 100000\n"}, [3.0, 2.0]),
        ("0::/only/on/the/host\n", {"cpu.max": "400000 100000\n"}, [4.0]),
        ("4:memory:/\n3:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, [0.5]),
        ("3:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, []),
        ("", {}, []),
    ],
)
def test_cgroup_quotas_are_read_in_both_versions(membership, files, expected, tmp_path):
    """Also those of the groups around, and where the path is one that only the host has."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(cpus._cgroup_quotas(membership, tmp_path)) == expected


@pytest.mark.parametrize(("quotas", "expected"), [([], 4), ([2.5], 2), ([8.0, 3.0], 3), ([0.5], 1)])
def test_usable_cpus_are_the_affinity_mask_within_the_quota(quotas, expected, monkeypatch):
    """Rounded down, but at least one."""
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    monkeypatch.setattr(cpus, "_cgroup_quotas", lambda membership, root: quotas)
    assert cpus.usable_cpu_count.__wrapped__() == expected


# ---- torch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("postprocessor", ["split", "SoftmaxCpu", lambda outputs, batch: list(outputs[0].unsqueeze(1))])
def test_torch_tensors_come_back_as_torch_tensors(postprocessor):
    """Alone and in a batch, also where they need a gradient; a callable sees tensors, too."""
    torch = pytest.importorskip("torch")
    backend = OnnxTensor(model=identity_model(), max=3, postprocessor=postprocessor)
    tensors = [torch.tensor(scores, requires_grad=True) for scores in SCORES]
    for results in (run(backend, tensors[0]), run(backend, *tensors)):
        for result, scores in zip(results, SCORES, strict=False):
            assert isinstance(result, torch.Tensor)
            assert result.shape == (1, 3)
            expected = np.exp(scores) / 8 if postprocessor == "SoftmaxCpu" else scores
            torch.testing.assert_close(result[0], torch.from_numpy(expected))


def test_torch_and_numpy_requests_get_what_they_sent():
    """In one batch of the scheduler they are two runs of the model."""
    torch = pytest.importorskip("torch")
    results = run(OnnxTensor(model=identity_model(), max=2), SCORES[0], torch.from_numpy(SCORES[1]))
    assert [type(result) for result in results] == [np.ndarray, torch.Tensor]


def test_softmax_arg_max_of_torch_requests_is_plain_numbers():
    """Like that of NumPy requests."""
    torch = pytest.importorskip("torch")
    backend = OnnxTensor(model=identity_model(), max=3, postprocessor="SoftmaxArgMax")
    assert run(backend, *map(torch.from_numpy, SCORES)) == [2, 0, 2]


def test_an_output_without_axes_is_a_torch_tensor_too():
    """Handed out whole, with max 1."""
    torch = pytest.importorskip("torch")
    (result,) = run(OnnxTensor(model=total_model()), torch.ones(4))
    assert isinstance(result, torch.Tensor)
    assert result.item() == 4


def test_a_tensor_that_numpy_cannot_read_fails_alone():
    """bfloat16 has no form in NumPy."""
    torch = pytest.importorskip("torch")
    with pytest.raises(ItemErrors, match=r"a Tensor that NumPy cannot read: .*; a step before has to make one of it"):
        run(OnnxTensor(model=identity_model()), torch.zeros(3, dtype=torch.bfloat16))


# ---- real models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "max_shape"), [("det", "1x3x96x96"), ("mobile_v2.0_cls", "3x3x48x192"), ("rec", "3x3x48x320")]
)
def test_the_models_of_pp_ocr_give_in_a_batch_what_they_give_alone(part, max_shape):
    """Files as they come out of an exporter: old opsets, axes named '?', batch -1."""
    package = importlib.util.find_spec("rapidocr_onnxruntime")
    if package is None:
        pytest.skip("rapidocr-onnxruntime, which holds the models, is not installed")
    (path,) = (Path(package.submodule_search_locations[0]) / "models").glob(f"*{part}*.onnx")
    batch, channels, height, width = map(int, max_shape.split("x"))
    backend = OnnxTensor(model=path, max=max_shape)
    items = np.random.default_rng(4).normal(size=(batch, channels, height, width)).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for item, result in zip(items, run(backend, *items), strict=True):
        (expected,) = session.run(None, {"x": item[np.newaxis]})
        np.testing.assert_allclose(result, expected, atol=1e-4)


# ---- in a pipe -------------------------------------------------------------------------------------------------------


def test_a_pipe_from_a_file_runs_a_model_beside_it_with_values_written_as_text(tmp_path):
    """The path is relative to the file; one request that does not fit fails with its own error, the others answer."""
    (tmp_path / "convolution.onnx").write_bytes(convolution_model())
    (tmp_path / "pipe.toml").write_text(
        '[model]\nbackend = "OnnxTensor"\nmodel = "convolution.onnx"\nmax = "4x3x16x16"\ninstance_num = "2"\n'
        'threads = "2"\nmean = "127.5, 127.5, 127.5"\nstd = "127.5"\nprecision = "fp32"\n'
    )
    items = [np.full((3, 8, 8 + number % 2), number, np.uint8) for number in range(9)]
    alone = OnnxTensor(model=convolution_model(), mean=[127.5], std=[127.5])
    with fastpipe.Pipe(tmp_path / "pipe.toml") as pipe:
        requests = [{"data": item} for item in items]
        with pytest.raises(ExceptionGroup) as caught:
            pipe([*requests, {"data": np.zeros((2, 8, 8))}])
    (error,) = caught.value.exceptions
    assert isinstance(error, KernelError)
    for request, expected in zip(requests, run(alone, *items), strict=True):
        np.testing.assert_allclose(request["result"], expected, rtol=1e-5, atol=1e-5)


def test_a_bad_value_that_fails_a_batch_reaches_only_its_own_caller():
    """The runtime cannot say whose value it was; the engine runs the batch's requests again, alone."""
    with fastpipe.Pipe(backend="OnnxTensor", model=lookup_model(), max=4) as pipe:
        requests = [{"data": np.array([number])} for number in (0, 1, 99, 2, 3)]
        with pytest.raises(ExceptionGroup) as caught:
            pipe(requests)
    (error,) = caught.value.exceptions
    assert "out of data bounds" in str(error)
    answers = [float(request["result"].item()) if "result" in request else None for request in requests]
    assert answers == [0, 1, None, 2, 3]


def test_the_batch_limit_of_a_node_without_max_is_the_models_own():
    """A fixed batch of 4 never gets five requests."""
    sizes = RunSizes()
    with fastpipe.Pipe(backend="OnnxTensor", model=doubling_model((4, 4)), postprocessor=sizes) as pipe:
        requests = [{"data": item} for item in rows(*range(9))]
        pipe(requests)
    assert [request["result"][0] for request in requests] == [2 * number for number in range(9)]
    assert max(sizes.sizes) <= 4
