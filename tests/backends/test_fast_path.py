"""The way of requests whose shapes were met before gives what the usual way gives, and leaves to it what it must."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the extra cpu is not installed here")
pytest.importorskip("onnxruntime", reason="the extra cpu is not installed here")

from onnx import TensorProto, helper
from onnx_models import make_model

from fastpipe.backends.model.onnx import OnnxTensor
from fastpipe.errors import BackendError, ItemErrors, KernelError
from fastpipe.kernels._fast_path import OrtRun

RNG = np.random.default_rng(11)
Requests = list[dict[str, Any]]


def two_inputs() -> dict[str, Any]:
    """Two outputs, sum and difference of an image's mean and a number."""
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Add", ["mean", "number"], ["sum"]),
        helper.make_node("Sub", ["mean", "number"], ["difference"]),
    ]
    inputs, outputs = {"image": ["n", "h", "w"], "number": ["n"]}, {"sum": ["n"], "difference": ["n"]}
    return {"model": make_model(nodes, inputs, outputs)}


def with_state() -> dict[str, Any]:
    """A state (layers, batch, 3) to which the input is added, and a scalar that a batch shares."""
    nodes = [
        helper.make_node("Add", ["h", "x"], ["hn"]),
        helper.make_node("ReduceSum", ["hn", "first"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "scale"], ["y"]),
    ]
    inputs = {"x": ["batch", 3], "h": [2, "batch", 3], "scale": (TensorProto.FLOAT, [])}
    outputs = {"y": ["batch", 3], "hn": [2, "batch", 3]}
    return {"model": make_model(nodes, inputs, outputs, {"first": np.array([0])}), "state": {"h": "hn"}}


def on_axis_one() -> dict[str, Any]:
    """Requests on the second axis of the input and of one output, and an output that is one for all."""
    nodes = [helper.make_node("Mul", ["x", "x"], ["y"]), helper.make_node("Identity", ["weights"], ["all"])]
    inputs, outputs = {"x": [2, "n", 3]}, {"y": [2, "n", 3], "all": [4]}
    axes = {"x": 1, "y": 1, "all": "none"}
    model = make_model(nodes, inputs, outputs, {"weights": np.arange(4, dtype=np.float32)})
    return {"model": model, "batch_axis": axes}


def images(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def pairs(count: int, *size: int) -> Requests:
    return [{"data": {"image": images(*(size or (4, 5))), "number": images()}} for _ in range(count)]


def of_lists(count: int) -> Requests:
    """With a batch axis, without it, not contiguous, in another byte order, in integers."""
    kinds: list[Callable[[], list[Any]]] = [
        lambda: [images(1, 4, 5), images(1)],
        lambda: [images(5, 4).T, images()],
        lambda: [images(4, 10)[:, ::2], images(1)],
    ]
    return [{"data": kinds[number % len(kinds)]()} for number in range(count)]


def steps(count: int, scales: tuple[float, ...] = (1.5,)) -> Requests:
    scale = [np.array(scales[number % len(scales)], np.float32) for number in range(count)]
    return [{"data": {"x": images(3), "scale": scale[number]}} for number in range(count)]


def runs_of(backend: OnnxTensor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the size of each batch that goes the usual way."""
    usual, sizes = backend._run_batch, []

    def counted(inputs: Any, batch: Requests, run: Any) -> None:
        sizes.append(len(batch))
        usual(inputs, batch, run)

    monkeypatch.setattr(backend, "_run_batch", counted)
    return sizes


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [each for name in sorted(value) for each in (name, *flat(value[name]))]
    return [each for part in value for each in flat(part)] if isinstance(value, list) else [value]


def assert_same(found: Requests, expected: Requests) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for own, wanted in zip(flat(one["result"]), flat(other["result"]), strict=True):
            np.testing.assert_array_equal(own, wanted, strict=True)
        own_state, wanted_state = flat(one.get("state") or {}), flat(other.get("state") or {})
        for own, wanted in zip(own_state[1::2], wanted_state[1::2], strict=True):
            np.testing.assert_array_equal(np.squeeze(own), np.squeeze(wanted))


CASES: list[tuple[Callable[[], dict[str, Any]], Callable[[int], Requests]]] = [
    (two_inputs, pairs),
    (two_inputs, of_lists),
    (two_inputs, lambda count: [{"data": (images(4, 5).astype(">f4"), images(1))} for _ in range(count)]),
    (two_inputs, lambda count: [{"data": [np.full((4, 5), 7, np.uint8), images(1)]} for _ in range(count)]),
    (two_inputs, lambda count: [{"data": [np.ones((4, 5)), images()], "key": "kept"} for _ in range(count)]),
    (on_axis_one, lambda count: [{"data": images(2, 3)} for _ in range(count)]),
    (on_axis_one, lambda count: [{"data": {"x": images(2, 1, 3)}} for _ in range(count)]),
    (with_state, steps),
]
NARROWED = 4  # float64 may overflow, so each is looked at: always the usual way


@pytest.mark.parametrize("max_", [1, 5])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_it_gives_the_bits_of_the_usual_way(case: int, max_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone and in batches; the usual way is taken only by shapes that are new, and values that may overflow."""
    keys, make = CASES[case]
    backend, plain = OnnxTensor(**keys(), max=max_), OnnxTensor(**keys(), max=max_)
    monkeypatch.setattr(plain, "_fast_path", None)
    for request in make(3):  # each of the shapes, so that they are known, those of a state that was kept among them
        for _ in range(2):
            backend.forward([request])
    sizes = runs_of(backend, monkeypatch)
    for count in range(1, max_ + 1):
        found = make(count)
        expected = [{**request} for request in found]
        keys_of = [backend.bucket(request) for request in found]
        assert keys_of == [plain.bucket(request) for request in expected]
        for _ in range(2):  # the second time from the states that the first has left
            backend.forward(found)
            plain.forward(expected)
            assert_same(found, expected)
    assert bool(sizes) == (case == NARROWED)


def test_values_that_a_batch_shares_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """By value, not by identity; requests with others run apart, by the usual way."""
    backend = OnnxTensor(**with_state(), max=4)
    backend.forward(steps(1))
    sizes = runs_of(backend, monkeypatch)
    same, mixed = steps(4), steps(4, scales=(1.0, 2.0))
    assert len({backend.bucket(request) for request in same}) == 1
    assert len({backend.bucket(request) for request in mixed}) == 2
    backend.forward(same)
    assert sizes == []
    backend.forward(mixed)
    assert sizes == [4]
    for request, scale in zip(mixed, (1.0, 2.0, 1.0, 2.0), strict=True):
        np.testing.assert_allclose(request["result"][0], 2 * scale * request["data"]["x"], rtol=1e-6)


def test_shapes_that_differ_run_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where each of them has a fast path."""
    backend = OnnxTensor(**two_inputs(), max=4)
    backend.forward([*pairs(1), *pairs(1, 2, 2)])
    sizes = runs_of(backend, monkeypatch)
    batch = [*pairs(1), *pairs(2, 2, 2)]
    backend.forward(batch)
    assert sizes == [3]
    for request in batch:
        data = request["data"]
        np.testing.assert_allclose(request["result"][0], [data["image"].mean() + data["number"]], rtol=1e-5)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "has no 'data'"),
        ([images(4, 5)], "expected 2 arrays, for image, number, got 1"),
        ({"image": images(4, 5), "numbers": images()}, r"expected data for the inputs \['image', 'number'\]"),
        ([images(4, 5), [1.0]], "input 'number': expected float32"),
        ([images(4, 5).astype(complex), images()], "input 'image': expected float32 of shape"),
        ([images(2, 4, 5), images()], "input 'image': expected float32 of shape"),
    ],
)
def test_a_wrong_request_fails_alone_as_ever(data: Any, said: str) -> None:
    """With the message of the usual way, while the others of its batch have their results."""
    backend = OnnxTensor(**two_inputs(), max=4)
    backend.forward(pairs(1))
    batch = [*pairs(1), {} if data is None else {"data": data}, *pairs(1)]
    with pytest.raises(ItemErrors) as caught:
        backend.forward(batch)
    assert list(caught.value.errors) == [1]
    with pytest.raises(KernelError, match=said):
        raise caught.value.errors[1]
    assert all("result" in batch[number] for number in (0, 2))


def test_neither_results_nor_states_are_others_memory() -> None:
    """Results share only what this batch has made; a state is a copy, so that no batch stays for one sequence."""
    backend = OnnxTensor(**with_state(), max=4)
    backend.forward(steps(1))
    batch = steps(4)
    kept = [request["data"]["x"].copy() for request in batch]
    backend.forward(batch)
    for request in batch:
        assert request["state"]["h"].base is None
        assert not np.shares_memory(request["result"], request["data"]["x"])
        request["result"][...] = -1
    backend.forward(steps(4))
    for request, before in zip(batch, kept, strict=True):
        np.testing.assert_array_equal(request["data"]["x"], before)
        np.testing.assert_array_equal(request["state"]["h"], np.stack([before, before])[:, None])


def test_a_request_that_a_postprocessor_refuses_applies_nothing_twice() -> None:
    """The others run again, from the states that they had."""
    from fastpipe.backends.model.reader import UnfitError

    refused = []

    def postprocess(outputs: list[Any], batch: Requests) -> Any:
        wrong = [number for number, request in enumerate(batch) if request.get("is_wrong")]
        if wrong:
            refused.append(len(batch))
            raise UnfitError({number: KernelError("it is wrong") for number in wrong})
        return list(outputs[0])

    model = make_model(
        [helper.make_node("Add", ["h", "x"], ["hn"]), helper.make_node("Identity", ["hn"], ["y"])],
        {"x": ["batch", 3], "h": ["batch", 3]},
        {"y": ["batch", 3], "hn": ["batch", 3]},
    )
    backend = OnnxTensor(model=model, state={"h": "hn"}, max=3, postprocessor=postprocess)
    for warm in (False, True):
        batch: Requests = [{"data": np.ones(3, np.float32), "is_wrong": number == 1} for number in range(3)]
        with pytest.raises(ItemErrors, match="it is wrong"):
            backend.forward(batch)
        for number in (0, 2):
            np.testing.assert_array_equal(batch[number]["result"], np.ones(3))
            np.testing.assert_array_equal(np.ravel(batch[number]["state"]["h"]), np.ones(3))
        assert "state" not in batch[1]
        assert refused == [3] * (3 if warm else 1), "on the fast path, and again on the usual one"


def test_a_postprocessor_may_do_as_it_likes_with_its_list_of_requests() -> None:
    """States are kept for those who have run, in their order."""

    def postprocess(outputs: list[Any], batch: Requests) -> None:
        for number, request in enumerate(batch):
            request["result"] = outputs[0][number]
        batch.reverse()
        batch.pop()

    backend = OnnxTensor(**with_state(), max=3, postprocessor=postprocess)
    assert backend._fast_path is None, "the requests are not in front everywhere"
    model = make_model(
        [helper.make_node("Add", ["h", "x"], ["hn"]), helper.make_node("Identity", ["hn"], ["y"])],
        {"x": ["batch", 3], "h": ["batch", 3]},
        {"y": ["batch", 3], "hn": ["batch", 3]},
    )
    backend = OnnxTensor(model=model, state={"h": "hn"}, max=3, postprocessor=postprocess)
    batch = [{"data": np.full(3, number, np.float32)} for number in range(3)]
    for run in (1, 2, 3):
        backend.forward(batch)
        assert len(batch) == 3
        for number, request in enumerate(batch):
            np.testing.assert_array_equal(np.ravel(request["state"]["h"]), np.full(3, run * number))


def test_a_state_of_other_names_is_left_to_the_usual_way() -> None:
    """What has the place of the state is no data for it."""
    backend = OnnxTensor(**with_state(), max=1)
    backend.forward(steps(1))
    request = {"data": [images(2, 3), np.array(1, np.float32)], "state": {"x": images(3)}}
    with pytest.raises(KeyError, match="h"):
        backend.forward([request])
    assert "result" not in request


def test_outputs_without_a_row_for_each_request_are_refused() -> None:
    """With the message of the usual way, and never handed out."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["greatest"], axes=[1], keepdims=0),
        helper.make_node("Greater", ["greatest", "zero"], ["is_kept"]),
        helper.make_node("Compress", ["x", "is_kept"], ["y"], axis=0),
    ]
    model = make_model(nodes, {"x": ["n", 2]}, {"y": ["n", 2]}, {"zero": np.array(0, np.float32)})
    backend = OnnxTensor(model=model, max=3, rows="batch", warm_up=False)
    batch: Requests = [{"data": np.full(2, value, np.float32)} for value in (1, 2, -1)]
    backend.forward([{**batch[0]}])
    with pytest.raises(BackendError, match="output 'y': expected 3 rows for a batch of 3, got shape"):
        backend.forward(batch)
    assert all("result" not in request for request in batch)


def test_what_a_run_raises_names_model_and_shapes() -> None:
    """As on the usual way."""
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    table = {"table": np.arange(4, dtype=np.float32)}
    model = make_model([node], {"x": (TensorProto.INT64, ["n", 1])}, {"y": ["n", 1]}, table)
    backend = OnnxTensor(model=model, max=2)
    backend.forward([{"data": np.array([1])}])
    with pytest.raises(Exception, match="indices element out of data bounds") as caught:
        backend.forward([{"data": np.array([9])} for _ in range(2)])
    assert caught.value.__notes__ == [f"{backend._name}, run with inputs of shape (2, 1)"]


def test_another_request_while_the_latest_route_is_compared_changes_nothing() -> None:
    """Memory for a shape may have garbage collected, whose destructors may run anything, and let other threads run."""
    axes = [f"axis{number}" for number in range(21)]  # CPython keeps shorter tuples for reuse
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", *axes]}, {"y": ["n", *axes]})
    backend = OnnxTensor(model=model, max=2)
    one, other = ({"data": np.ones((*size, *[1] * 19), np.float32)} for size in ((2, 6), (3, 4)))
    for request in (one, other):
        backend.forward([{**request}])
    expected, wrong = backend.bucket(one), backend.bucket(other)
    assert expected != wrong
    found = []

    def meanwhile(phase: str, _: Any) -> None:
        if phase == "start":
            found.append(backend.bucket(other))

    threshold, kept = gc.get_threshold(), []
    gc.collect()
    gc.callbacks.append(meanwhile)
    try:
        for more in range(4):
            for _ in range(10):
                backend.bucket(one)
                kept += [tuple(range(30)) for _ in range(5)]  # so that there is a count to reach
                gc.set_threshold(gc.get_count()[0] + more)
                key = backend.bucket(one)
                gc.set_threshold(100_000)
                assert key == expected
    finally:
        gc.callbacks.remove(meanwhile)
        gc.set_threshold(*threshold)
    if sys.version_info < (3, 12):  # later ones collect between two lines of Python, and so not there
        assert wrong in found


def test_a_session_is_run_with_an_array_for_each_input_and_no_other_number() -> None:
    """It looks at no memory behind a list."""
    run = OrtRun(lambda *given: given, ["y"], ["a", "b"], None)
    assert run([1, 2]) == (["y"], {"a": 1, "b": 2}, None)
    for arrays in ([], [1], [1, 2, 3]):
        with pytest.raises(ValueError, match=f"expected an array for each of 2 inputs, got {len(arrays)}"):
            run(arrays)


def test_a_request_alone_goes_through_one_function_of_python() -> None:
    """Each takes a microsecond or two behind a run, from caches that are full of the model."""
    backend = OnnxTensor(**with_state(), max=4)
    backend.forward(steps(1))
    (request,) = steps(1)
    called: list[str] = []
    sys.setprofile(lambda frame, event, _: called.append(frame.f_code.co_name) if event == "call" else None)
    try:
        backend.forward([request])
    finally:
        sys.setprofile(None)
    assert called == ["forward"]
