"""What of padding is refused: keys that do not fit a model, padding that leaks, requests that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from helpers import WAIT_S  # noqa: E402
from length_models import assert_equal, embedded, embedder, fixed, ids_of, outer, results  # noqa: E402

import fastpipe  # noqa: E402
from fastpipe.backends.model.onnx import OnnxTensor  # noqa: E402
from fastpipe.backends.model.pad_keys import read_pad  # noqa: E402
from fastpipe.errors import ConfigError, ItemErrors, KernelError  # noqa: E402


def test_padding_that_changes_answers_is_refused_and_says_what_to_do() -> None:
    """A model without a mask: the file, the input, the axis, expected, got, and the ways out; or one vouches."""
    with pytest.raises(ConfigError) as caught:
        OnnxTensor(model=embedder(is_masked=False), max=4, pad="longest")
    text = str(caught.value)
    order = [
        "model of",
        "input 'input_ids', axis 1",
        "expected in output",
        "got",
        "Ways out",
        "pad.mask",
        "rows='batch'",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    backend = OnnxTensor(model=embedder(is_masked=False, output_symbol="t"), max=4, pad="longest", rows="batch")
    assert [result[0].shape for result in results(backend, *ids_of(7, 8))] == [(1, 7, 8), (1, 8, 8)]


def test_a_mask_of_another_name_is_named() -> None:
    """It is not guessed: without it, the request has to bring it, as before."""
    model = embedder(mask_name="keep")
    backend = OnnxTensor(model=model, max=4, pad={"to": "longest", "mask": "keep"})
    for ids, result in zip(ids_of(7, 8), results(backend, *ids_of(7, 8)), strict=True):
        assert_equal(result, embedded(ids))


def test_an_output_that_follows_the_length_otherwise_is_refused() -> None:
    """It cannot be cut."""
    with pytest.raises(ConfigError, match=r"output 'y' an axis as long as the request.*\(1, 25\).*Way out: leave"):
        OnnxTensor(model=outer(), max=4, pad="longest")


@pytest.mark.parametrize(
    ("model", "options", "problem"),
    [
        (embedder(), {"pad": "shortest"}, "pad: expected 'longest' or a list of lengths, such as .*, got 'shortest'"),
        (embedder(), {"pad": []}, "pad: expected 'longest' or a list of lengths"),
        (embedder(), {"pad": [16, 0]}, "pad: expected 'longest' or a list of lengths"),
        (embedder(), {"pad": [True]}, "pad: expected 'longest' or a list of lengths"),
        (embedder(), {"pad": [16, 512], "max_tokens": 500}, "no request of length 512 could run with max_tokens=500"),
        (embedder(), {"max_tokens": 500}, "max_tokens: .* needs pad"),
        (embedder(), {"pad": {"too": [1]}}, "pad: it has no 'too', only to, axis, .* did you mean 'to'"),
        (embedder(), {"pad": {"axis": 1}}, "pad: expected to = "),
        (
            embedder(),
            {"pad": {"to": "longest", "max_padding": 15}},
            "expected a number from 0 to 1, got 15",
        ),
        (
            embedder(),
            {"pad": {"to": "longest", "outputs": [1]}},
            r"pad.outputs: expected a table .* such as \{ hidden = 1 \}",
        ),
        (
            embedder(),
            {"pad": {"to": "longest", "axis": "sec"}},
            "no input has an axis 'sec'.*'seq'.*open are",
        ),
        (embedder(), {"pad": {"to": "longest", "axis": 0}}, "input 'input_ids': expected an axis of .* got 0"),
        (embedder(), {"pad": {"to": "longest", "axis": 2}}, "input 'input_ids': expected an axis of .* got 2"),
        (embedder(), {"pad": {"to": "longest", "axis": {"ids": 1}}}, "pad.axis: no input is named 'ids'"),
        (
            embedder(),
            {"pad": {"to": "longest", "axis": {"attention_mask": 1}}},
            "no input would be padded but",
        ),
        (embedder(), {"pad": {"to": "longest", "value": "x"}}, "pad.value: input 'input_ids': expected a number"),
        (embedder(), {"pad": {"to": "longest", "value": 0.5}}, "expected a number that int64 has, got 0.5"),
        (embedder(), {"pad": {"to": "longest", "value": {"ids": 1}}}, "pad.value: no input is named 'ids'"),
        (embedder(), {"pad": {"to": "longest", "mask": "attention"}}, "pad.mask: no input is named 'attention'"),
        (
            embedder(),
            {"pad": {"to": "longest", "length": "input_ids"}},
            r"pad.length: .* expected the shape",
        ),
        (embedder(), {"pad": {"to": "longest", "outputs": {"token": 1}}}, "pad.outputs: no output is named 'token'"),
        (
            embedder(),
            {"pad": {"to": "longest", "outputs": {"tokens": 3}}},
            "'tokens': expected an axis of .* got 3",
        ),
        (embedder(), {"pad": {"to": "longest", "outputs": {"tokens": []}}}, r"axes \[\], got .*: that is \[1\]"),
        (embedder(), {"pad": [16, 64], "max": "4x32,4x32"}, "expected lengths of at most 32, .* got 64"),
        (embedder(symbol=16), {"pad": "longest"}, "expected an input with an open axis, got none"),
        (fixed(), {"pad": {"to": [8], "axis": 1}}, r"input 'input_ids', axis 1: expected \[16\], .* got \[8\]"),
        (fixed(), {"pad": {"to": [16], "axis": 1}}, "pad.outputs: output 'tokens': expected the axis"),
    ],
)
def test_what_is_wrong_with_the_keys_is_said_before_anything_runs(
    model: bytes, options: dict[str, Any], problem: str
) -> None:
    """Where, what was expected, and what it got."""
    with pytest.raises(ConfigError, match=problem):
        OnnxTensor(**{"model": model, "max": 4, **options})


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (ids_of(70)[0], "expected a length of at most 64, got 70: pad to a longer one than 64"),
        (ids_of(0)[0], r"input 'input_ids': expected int64 of shape \(seq,\)"),
        ([ids_of(5)[0], np.ones(6, np.int64)], "share the axis 'seq'"),
        ({"input_ids": ids_of(5)[0], "mask": np.ones(5)}, "expected data for the inputs"),
        ({"attention_mask": np.ones(5)}, "expected data for the inputs"),
        (ids_of(6)[0].reshape(2, 3), "with or without a batch axis of 1 in front, got int64 of shape"),
        ("text", "is no array"),
        (np.ones(5, np.float32), "expected int64"),
    ],
)
def test_a_request_that_does_not_fit_fails_alone(data: Any, problem: str) -> None:
    """The others of its batch are answered."""
    node = {"backend": "OnnxTensor", "model": embedder(), "max": 4, "pad": [8, 64]}
    with fastpipe.Pipe(node=node) as pipe:
        good = pipe.submit({"data": ids_of(7)[0]})
        with pytest.raises(KernelError, match=problem):
            pipe({"data": data})
        assert_equal(good.result(WAIT_S)["result"], embedded(ids_of(7)[0]))
    backend = OnnxTensor(model=embedder(), max=4, pad=[8, 64])
    batch = [{"data": ids_of(7)[0]}, {"data": data}, {"data": ids_of(9)[0]}]
    with pytest.raises(ItemErrors) as caught:
        backend.forward(batch)
    assert list(caught.value.errors) == [1]
    assert_equal(batch[2]["result"], embedded(ids_of(9)[0]))


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed")


def test_arrays_unlike_others_are_read_or_refused_as_without_pad(torch: Any) -> None:
    """One that has nothing but DLPack has a length; one whose mask would be lost, or whose shape raises, is refused."""

    class Bare:
        def __init__(self, array: Any) -> None:
            self.array = array

        def __dlpack__(self, **given: Any) -> Any:
            return self.array.__dlpack__(**given)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    class Raises:
        @property
        def shape(self) -> Any:
            raise RuntimeError("no shape")

    (ids,) = ids_of(6)
    backend = OnnxTensor(model=embedder(), max=4, pad=[8])
    assert_equal(results(backend, Bare(ids))[0], embedded(ids))
    assert_equal(results(backend, torch.from_numpy(ids))[0], embedded(ids))
    for odd in (np.ma.masked_array(ids, [1] * 6), Raises(), torch.from_numpy(ids).to_sparse()):
        batch = [{"data": odd}]
        with pytest.raises(ItemErrors) as caught:
            backend.forward(batch)
        assert type(caught.value.errors[0]) is KernelError
        assert (backend.bucket(batch[0]), backend.length_of(batch[0])) == ("misfit", 1)


def test_a_request_longer_than_the_budget_is_refused() -> None:
    """It could never run."""
    with (
        fastpipe.Pipe(node={"backend": "OnnxTensor", "model": embedder(), "pad": "longest", "max_tokens": 50}) as pipe,
        pytest.raises(KernelError, match="axis 1: expected a length of at most 50, got 51: raise max_tokens"),
    ):
        pipe({"data": ids_of(51)[0]})


def test_inputs_that_are_padded_need_one_length() -> None:
    """Where their names do not say so."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n, a] x, float[n, b] y) => (float[n, a] z) { z = Add(x, y) }'
    ).SerializeToString()
    backend = OnnxTensor(model=model, max=4, pad={"to": "longest", "axis": 1})
    with pytest.raises(ItemErrors) as caught:
        results(backend, [np.ones(3, np.float32), np.ones(4, np.float32)])
    (error,) = caught.value.errors.values()
    assert "input 'y', axis 1: expected 3, the length of input 'x', got 4" in str(error)


def test_the_pipe_reads_the_keys_from_a_file(tmp_path: Any) -> None:
    """As a table, as text, and as a list."""
    (tmp_path / "model.onnx").write_bytes(embedder())
    for number, written in enumerate(
        ['pad = "longest"', "pad = [8, 16]", 'pad = { to = [8, 16], axis = "seq", value = { input_ids = 3 } }']
    ):
        path = tmp_path / f"{number}.toml"
        path.write_text(f'[main]\nbackend = "OnnxTensor"\nmodel = "model.onnx"\nmax = 4\nmax_tokens = 64\n{written}\n')
        with fastpipe.Pipe(path) as pipe:
            assert_equal(pipe({"data": ids_of(5)[0]})["result"], embedded(ids_of(5)[0]))


def test_nothing_is_padded_unless_it_is_said() -> None:
    """And no bucket is empty."""
    assert read_pad(None, None) is None
    assert OnnxTensor(model=embedder(), max=4).length_of is None
