"""Refusals of models as a stranger meets them: where, what was expected, what was given, and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from length_models import embedder  # noqa: E402
from onnx import helper  # noqa: E402
from onnx_models import make_model, places_model, speech_model  # noqa: E402

import fastpipe  # noqa: E402
from fastpipe.backends.model.onnx import OnnxTensor  # noqa: E402
from fastpipe.errors import ConfigError, ItemErrors  # noqa: E402


def product_model() -> bytes:
    """x [n, 4] times y [4, n]: the file calls two axes the same that are not."""
    return make_model(
        [helper.make_node("MatMul", ["x", "y"], ["z"])], {"x": ["n", 4], "y": [4, "n"]}, {"z": ["n", "m"]}
    )


def sum_model(*shape: Any) -> bytes:
    return make_model([helper.make_node("Add", ["a", "b"], ["c"])], {"a": [*shape], "b": [*shape]}, {"c": [*shape]})


def gru_model(first: str, second: str) -> bytes:
    """Two layers' state, with the axes called as torch's exporter calls those that nobody has named."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "one"], ["x1"]),
        helper.make_node("Transpose", ["h"], ["ht"], perm=[1, 0, 2]),
        helper.make_node("Add", ["x1", "ht"], ["sum"]),
        helper.make_node("Transpose", ["sum"], ["hn"], perm=[1, 0, 2]),
    ]
    one = {"one": np.array([1])}
    return make_model(nodes, {"x": [first, 3], "h": [2, second, 3]}, {"hn": [None, None, None]}, one)


def refusal(model: bytes, **keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        OnnxTensor(model=model, **keys)
    return str(caught.value)


@pytest.mark.parametrize("keys", [{"shared": ["y"]}, {"batch_axis": {"y": "none"}}])
def test_an_input_that_is_said_to_be_shared_may_have_an_axis_called_as_the_batch(keys: dict[str, Any]) -> None:
    """As the message about such an axis says itself; trials decide."""
    backend = OnnxTensor(model=product_model(), max=4, **keys)
    x, y = np.arange(8, dtype=np.float32).reshape(2, 4), np.arange(12, dtype=np.float32).reshape(4, 3)
    batch = [{"data": {"x": row[None], "y": y}} for row in x]
    backend.forward(batch)
    assert [request["result"].tolist() for request in batch] == [[row] for row in (x @ y).tolist()]


def test_an_axis_that_torch_has_numbered_counts_as_one_without_a_name() -> None:
    """So a state's is found, as it is where the file has no name."""
    backend = OnnxTensor(model=gru_model("x_dynamic_axes_1", "h_dynamic_axes_1"), max=4)
    x, h = np.full((1, 3), 2, np.float32), np.ones((2, 1, 3), np.float32)
    batch = [{"data": {"x": x, "h": h}}, {"data": {"x": 2 * x, "h": h}}]
    backend.forward(batch)
    assert [request["result"].shape for request in batch] == [(2, 1, 3)] * 2
    assert [float(request["result"][0, 0, 0]) for request in batch] == [3, 5]


def test_a_fixed_batch_that_is_too_small_is_named_with_its_input_and_axis() -> None:
    """Also where it is batch_axis that names the axis."""
    fixed = "max is a batch of 8, but the model's is fixed at 3: lower max, or .*; max=1 runs one at a time"
    with pytest.raises(ConfigError, match=f"input 'a', axis 0: {fixed}"):
        OnnxTensor(model=sum_model(3), max=8)
    with pytest.raises(ConfigError, match=f"input 'state', axis 2: {fixed}"):
        OnnxTensor(model=speech_model(None, None), max=8, batch_axis={"state": 2})


def test_a_request_that_is_a_whole_fixed_batch_is_told_what_takes_it() -> None:
    """A model of two plain vectors looks like one of a batch of three numbers."""
    request = {"data": {"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)}}
    with pytest.raises(ItemErrors) as caught:
        OnnxTensor(model=sum_model(3)).forward([dict(request)])
    (error,) = caught.value.errors.values()
    assert "got float32 of shape (3,); axis 0 counts as the batch, as the model fixes it: max=1 takes it as a" in str(
        error
    )
    OnnxTensor(model=sum_model(3), max=1).forward([request])
    assert request["result"].tolist() == [2, 2, 2]


def test_a_column_that_does_not_have_the_numbers_names_its_output_and_what_to_write() -> None:
    """And not rows = 'batch', which would let it through."""
    for column, problem in (
        (7, r"of shape \(rows, columns\) with a column 7, got"),
        (1, "numbers of requests, from 0"),
    ):
        said = refusal(places_model(), max=4, split_by={"boxes": column})
        assert "rows='batch'" not in said
        assert said.count("output 'boxes', split_by: expected") == 1
        with pytest.raises(ConfigError, match=rf"expected (an output )?{problem}.*split_by = \{{ boxes = "):
            raise ConfigError(said)


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"initial": 0}, "expected output, the name of the output that .*, got only 'initial'; it has"),
        ({}, "expected output, .* got only an empty table"),
        (
            {"output": "new_state", "initial": [1, 2]},
            r"initial: expected one request's, of shape \(2, 3\), .* got shape \(2,\)",
        ),
        ({"output": "new_state", "initial": np.zeros((2, 2, 3))}, r"got shape \(2, 2, 3\)"),
    ],
)
def test_what_is_wrong_with_a_state_is_said_when_the_pipe_is_built(state: dict[str, Any], problem: str) -> None:
    """Not by each request, of an input that it has not brought."""
    with pytest.raises(ConfigError, match=f"state, input 'state'.*{problem}"):
        OnnxTensor(model=speech_model(), max=2, state={"state": state})


@pytest.mark.parametrize("shape", [(2, 3), (2, 1, 3)])
def test_a_state_begins_with_an_array_with_the_batch_axis_or_without(shape: tuple[int, ...]) -> None:
    """As a request's data may have it."""
    initial = np.full(shape, 2, np.float32)
    keys = {"state": {"state": {"output": "new_state", "initial": initial}}, "state_of": "stream", "max": 2}
    data = {"audio": np.ones((1, 6), np.float32), "rate": np.array(2)}
    with fastpipe.Pipe(backend="OnnxTensor", model=speech_model(), **keys) as pipe:
        given = pipe({"data": data, "stream": 1})["result"]
    session = onnxruntime.InferenceSession(speech_model())
    wanted = session.run(["score"], {**data, "state": initial.reshape(2, 1, 3)})[0]
    assert np.allclose(given, wanted)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"providers": ["cpu"]}, "providers: .* no provider 'cpu'; did you mean 'CPUExecutionProvider'"),
        ({"providers": ["CUDAExecutionProvidr"]}, "did you mean 'CUDAExecutionProvider'"),
        ({"provider_options": {"CUDA": {}}}, r"which is none of the providers; expected a table for each of \['CPU"),
        ({"session_options": {"graph_level": "all"}}, "session_options: this ONNX Runtime knows no 'graph_level'"),
        (
            {"session_options": {"free_dimension_overrides": {"btach": 77}}},
            r"expected the name of an open axis .* got 'btach'; did you mean 'batch'\?; the model's are \['batch'\]",
        ),
        ({"max": "8x6"}, "max='8x6' has shapes of 1 input, but the model has 3: expected one for each"),
    ],
)
def test_a_misspelt_key_names_the_node_and_the_model(keys: dict[str, Any], problem: str) -> None:
    """Of two nodes, one is meant."""
    model = speech_model()
    with pytest.raises(ConfigError, match=f"^node 'listen': model of {len(model)} bytes: .*{problem}") as caught:
        fastpipe.Pipe(
            hear={"backend": "Identity", "next": "listen"}, listen={"backend": "OnnxTensor", "model": model, **keys}
        )
    (mistake,) = caught.value.problems
    assert mistake.node == "listen"


def test_a_provider_of_another_build_is_not_taken_for_a_misspelt_one() -> None:
    """Whoever wants a GPU is not told to take the CPU."""
    if "MIGraphXExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build has it")
    said = refusal(speech_model(), providers=["MIGraphXExecutionProvider"])
    assert "which another build of it may have" in said
    assert "did you mean" not in said


def test_a_misspelt_file_is_held_against_those_beside_it(tmp_path: Path) -> None:
    """As a misspelt key is against those that there are."""
    (tmp_path / "speech.onnx").write_bytes(speech_model())
    path = tmp_path / "speeech.onnx"
    with pytest.raises(ConfigError, match=f"there is nothing at {path}, not a file; did you mean 'speech.onnx'"):
        OnnxTensor(model=str(path))


def test_a_plain_list_of_numbers_is_told_from_a_list_of_inputs() -> None:
    """Tokens come as a list from most tokenizers."""
    with pytest.raises(ItemErrors) as caught:
        OnnxTensor(model=embedder(), max=4, pad="longest").forward([{"data": [1, 2, 3]}])
    (error,) = caught.value.errors.values()
    assert "got 3 numbers; a list has an array for each input: np.array(data) makes one of numbers" in str(error)


def test_an_output_may_name_the_axis_that_is_cut() -> None:
    """As pad.axis may."""
    model = embedder()
    padded = OnnxTensor(model=model, max=4, pad={"to": [16], "axis": "seq", "outputs": {"tokens": "seq"}})
    ids = np.array([1, 2, 3])
    request = {"data": ids}
    padded.forward([request])
    tokens = request["result"][0] if isinstance(request["result"], list) else request["result"]
    assert tokens.shape[:2] == (1, 3)
    with pytest.raises(ConfigError, match="by its number or name, got 'sequence'"):
        OnnxTensor(model=model, max=4, pad={"to": [16], "outputs": {"tokens": "sequence"}})
