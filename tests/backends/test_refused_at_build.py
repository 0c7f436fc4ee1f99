"""What no request could ever run with is refused when the pipe is built, not with the first request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the extra cpu is not installed here")
pytest.importorskip("onnxruntime", reason="the extra cpu is not installed here")

from length_models import embedder
from onnx import TensorProto, helper
from onnx_models import make_model

from fastpipe import ConfigError, Pipe
from fastpipe.backends.model.heads.without_boxes import MeanPooling
from fastpipe.backends.model.onnx import OnnxTensor
from fastpipe.backends.model.row_proof import prove_rows
from fastpipe.backends.model.shapes import InputSpec, make_profiles
from fastpipe.backends.model.state import StateWish
from fastpipe.backends.model.state_proof import prove_state

INT64 = TensorProto.INT64
node = helper.make_node


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ("attention_mark", r"no input 'attention_mark'; did you mean 'attention_mask'\?"),
        (2, "mask: expected the number of an input, from 0 to 1, got 2"),
        (-1, "mask: expected the number of an input"),
    ],
)
def test_a_mask_that_no_request_can_bring_is_refused(mask: Any, said: str) -> None:
    """By the names of the inputs, whether the postprocessor is written down or an object."""
    keys: dict[str, Any] = {"model": embedder(), "outputs": ["tokens"], "max": 2}
    for head in ({"name": "MeanPooling", "mask": mask}, MeanPooling(mask=mask)):
        with pytest.raises(ConfigError, match=said):
            OnnxTensor(**keys, postprocessor=head)


def test_a_mask_of_a_torch_model_has_to_be_among_its_inputs() -> None:
    """Its parameters are what requests bring; one that takes any number of them is left to the requests."""
    torch = pytest.importorskip("torch", reason="the extra torch is not installed here")
    from fastpipe.backends.model.torch import TorchTensor

    class Tokens(torch.nn.Module):
        def forward(self, tokens: Any) -> Any:
            return tokens * 2

    keys: dict[str, Any] = {"model": Tokens(), "max": 2, "rows": "batch", "device": ["cpu"]}
    with pytest.raises(ConfigError, match=r"no input 'attention_mask'; requests bring \['tokens'\]; 'none' lets all"):
        TorchTensor(**keys, postprocessor="MeanPooling")
    backend = TorchTensor(**keys, postprocessor={"name": "MeanPooling", "mask": "none"})
    request = {"data": torch.ones(1, 3, 4)}
    backend.forward([request])
    np.testing.assert_array_equal(request["result"], np.full(4, 2, np.float32))


@pytest.mark.parametrize(
    ("session", "arena"), [({}, "cpu:7"), ({}, "gpu:0"), ({}, "1"), ({"enable_cpu_mem_arena": False}, "cpu:0")]
)
def test_a_value_that_no_run_takes_is_refused_also_where_one_request_runs_alone(session: Any, arena: str) -> None:
    """ONNX Runtime looks at it in a run only, and of one that fails with max=1 zeros might be the cause."""
    options = {"memory.enable_memory_arena_shrinkage": arena}
    with pytest.raises(ConfigError, match=r"run_options: expected values.*memory.enable_memory_arena_shrinkage"):
        OnnxTensor(model=embedder(), run_options=options, session_options=session)


def test_a_batch_of_one_that_alone_differs_is_offered_min_2() -> None:
    """As libraries add up a single row in another order; a model that mixes its rows is not helped by it."""

    def prove(function: Any, batch: int = 8) -> None:
        specs = [InputSpec("x", np.dtype(np.float32), ("n", 4))]
        prove_rows(lambda arrays: [function(*arrays)], specs, make_profiles(specs, batch, None), None)

    with pytest.raises(ConfigError, match=r"a row in a batch of 8 is not what it is alone.*; min=2 runs it in batches"):
        prove(lambda x: x * 2 if len(x) > 1 else x * 3)
    with pytest.raises(ConfigError) as refused:
        prove(lambda x: x - x.mean(0))
    assert "min=2" not in str(refused.value)


def test_min_2_is_what_such_a_model_needs() -> None:
    """Then a request alone has a row of zeros beside it."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "first"], ["rows"]),
        node("Min", ["rows", "two"], ["factor"]),
        node("Cast", ["factor"], ["number"], to=TensorProto.FLOAT),
        node("Mul", ["x", "number"], ["y"]),
    ]
    model = make_model(nodes, {"x": ["n", 3]}, {"y": ["n", 3]}, {"first": np.array(0), "two": np.array(2)})
    with pytest.raises(ConfigError, match="min=2 runs it in batches"):
        OnnxTensor(model=model, max=4)
    with Pipe(backend="OnnxTensor", model=model, max=4, min=2) as pipe:
        assert pipe({"data": np.ones(3, np.float32)})["result"].tolist() == [[2, 2, 2]]


# ---- states ----------------------------------------------------------------------------------------------------------


def state_model(state: Any, output: Any, *nodes: Any) -> bytes:
    """Return a model of x (n, 3) and h, with y, which is twice x, and hn."""
    twice = node("Add", ["x", "x"], ["y"])
    return make_model([twice, *nodes], {"x": ["n", 3], "h": state}, {"y": ["n", 3], "hn": output})


JOINED = node("Concat", ["h", "x"], ["hn"], axis=1)


@pytest.mark.parametrize("most", [1, 4])
def test_a_state_of_another_shape_is_refused(most: int) -> None:
    """By what is declared."""
    said = "input 'h', output 'hn': expected an output with, of one request, the shape \\(3,\\), .* got \\(6,\\)"
    with pytest.raises(ConfigError, match=said):
        OnnxTensor(model=state_model(["n", 3], ["n", 6], JOINED), state={"h": "hn"}, max=most)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x, h: [x, h + x], ""),
        (lambda x, h: [x, np.concatenate([h, x], axis=1)], r"expected an output of shape \(1, 3\), .* got \(1, 6\)"),
        (lambda x, h: [x, (h + x).sum(1)], r"expected an output of shape \(1, 3\), as the input has it, got \(1,\)"),
        (lambda x, h: [x, h > x], ""),
        (lambda x, h: [x, (h + x).astype(str)], "expected an output of float32, as the input is, got str"),
    ],
)
def test_what_a_run_leaves_is_looked_at_where_nothing_is_declared(function: Any, said: str) -> None:
    """A trial of the smallest batch shows it."""
    specs = [InputSpec(name, np.dtype(np.float32), ("n", 3)) for name in ("x", "h")]
    initial = {"h": np.zeros(3, np.float32)}

    def prove() -> None:
        wishes = [StateWish("h", "hn", 0)]
        prove_state(lambda arrays: function(*arrays), wishes, initial, specs, make_profiles(specs, 4, None))

    if not said:
        prove()
        return
    with pytest.raises(ConfigError, match=f"state, input 'h', output 'hn': {said}"):
        prove()


def test_a_state_of_another_kind_of_numbers_is_refused() -> None:
    """Whole numbers become floats, as in data; floats never become whole numbers."""
    to_float = node("Cast", ["h"], ["numbers"], to=TensorProto.FLOAT)
    model = state_model((INT64, ["n", 3]), ["n", 3], to_float, node("Add", ["numbers", "x"], ["hn"]))
    with pytest.raises(ConfigError, match="expected an output of int64, as the input is, got float32"):
        OnnxTensor(model=model, state={"h": "hn"})
    to_whole = node("Cast", ["sum"], ["hn"], to=INT64)
    model = state_model(["n", 3], (INT64, ["n", 3]), node("Add", ["h", "x"], ["sum"]), to_whole)
    with Pipe(backend="OnnxTensor", model=model, state={"h": "hn"}, state_of="id", max=4) as pipe:
        assert pipe({"data": np.ones(3, np.float32), "id": "a"})["result"].tolist() == [[2, 2, 2]]


def cache_model(next_cache: Any) -> bytes:
    """Return a model of tokens (n, new), a cache (n, past) and a mask (n, all): the sum of both, masked; the cache."""
    nodes = [
        node("Concat", ["cache", "tokens"], ["whole"], axis=1),
        node("Mul", ["whole", "mask"], ["masked"]),
        node("ReduceSum", ["masked", "one"], ["sum"], keepdims=1),
        next_cache,
    ]
    inputs = {"tokens": ["n", "new"], "cache": ["n", "past"], "mask": ["n", "all"]}
    return make_model(nodes, inputs, {"sum": ["n", 1], "next": ["n", "grown"]}, {"one": np.array([1])})


def test_a_state_that_grows_is_taken_where_other_inputs_grow_with_it() -> None:
    """As a decoder's cache does; one that no run takes, whatever else grows, is refused."""
    state = {"cache": {"output": "next", "initial": np.zeros(0, np.float32)}}
    keys: dict[str, Any] = {"state": state, "min": "1x1,1x0,1x1"}
    model = cache_model(node("Identity", ["whole"], ["next"]))
    with Pipe(backend="OnnxTensor", model=model, state_of="id", **keys) as pipe:
        for count in (1, 2, 3):
            data = {"tokens": np.ones(1, np.float32), "mask": np.ones(count, np.float32)}
            assert pipe({"data": data, "id": "a"})["result"].tolist() == [[count]]
    two_masks = make_model(
        [node("Concat", ["cache", "tokens"], ["whole"], axis=1), node("Mul", ["whole", "tokens"], ["next"])],
        {"tokens": ["n", "new"], "cache": ["n", "past"]},
        {"whole": ["n", "all"], "next": ["n", "grown"]},
    )
    with pytest.raises(ConfigError, match=r"expected what a run gives to be taken by the next, got \(1, 64\)"):
        OnnxTensor(model=two_masks, state=state, min="1x1,1x0")


@pytest.mark.parametrize("axis", ["all", "others"])
def test_several_inputs_may_have_to_grow_with_a_state(axis: str) -> None:
    """As a mask and a bias do, whether their axes have one name or two."""
    nodes = [
        node("Concat", ["cache", "tokens"], ["next"], axis=1),
        node("Mul", ["next", "mask"], ["masked"]),
        node("Add", ["masked", "bias"], ["biased"]),
        node("ReduceSum", ["biased", "one"], ["sum"], keepdims=1),
    ]
    inputs = {"tokens": ["n", "new"], "cache": ["n", "past"], "mask": ["n", "all"], "bias": ["n", axis]}
    model = make_model(nodes, inputs, {"sum": ["n", 1], "next": ["n", "grown"]}, {"one": np.array([1])})
    state = {"cache": {"output": "next", "initial": np.zeros(0, np.float32)}}
    with Pipe(backend="OnnxTensor", model=model, state=state, state_of="id", min="1x1,1x0,1x1,1x1") as pipe:
        for count in (1, 2, 3):
            ones = np.ones(count, np.float32)
            data = {"tokens": np.ones(1, np.float32), "mask": ones, "bias": ones}
            assert pipe({"data": data, "id": "a"})["result"].tolist() == [[2 * count]]


@pytest.mark.parametrize("most", [1, 2])
def test_a_model_whose_only_output_is_a_state_is_refused(most: int) -> None:
    """Nothing would be left for the answer."""
    model = make_model([node("Add", ["h", "x"], ["hn"])], {"x": ["n", 3], "h": ["n", 3]}, {"hn": ["n", 3]})
    with pytest.raises(ConfigError, match="state: at least one output has to be the request's answer"):
        OnnxTensor(model=model, state={"h": "hn"}, max=most)
