"""Models with several lengths, each padded by itself: encoder and decoder, height and width."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the extra cpu is not installed here")
pytest.importorskip("onnxruntime", reason="the extra cpu is not installed here")

from length_models import alone, assert_equal, embedder, ids_of, pictures, results, translator
from onnx import TensorProto, helper
from onnx_models import make_model

import fastpipe
from fastpipe.backends.model.onnx import OnnxTensor
from fastpipe.errors import ConfigError, ItemErrors

LONGEST = {"to": "longest", "max_padding": 1}
TWO_TEXTS = [{**LONGEST, "axis": "source_length"}, {**LONGEST, "axis": "target_length"}]
TWO_SIDES = [{**LONGEST, "axis": "height"}, {**LONGEST, "axis": "width"}]


def texts() -> list[dict[str, Any]]:
    return [
        {"input_ids": source, "decoder_input_ids": target}
        for source, target in zip(ids_of(5, 9, 7, 9), ids_of(4, 2, 6, 2, seed=1), strict=True)
    ]


def translated(data: dict[str, Any]) -> list[Any]:
    """Return what ONNX Runtime gives for one request, as it is."""
    source = data["input_ids"]
    return alone(translator(), source, np.ones(len(source), np.int64), data["decoder_input_ids"])


def picture(height: int, width: int) -> Any:
    return np.random.default_rng((height, width)).random((1, height, width), np.float32)


@pytest.mark.parametrize(
    "pad",
    [
        TWO_TEXTS,
        [{"to": [8, 16], "axis": "source_length"}, {"to": "longest", "axis": "target_length"}],
        [
            {**LONGEST, "axis": {"input_ids": 1, "attention_mask": 1}, "mask": "attention_mask"},
            {"to": [6, 12], "axis": {"decoder_input_ids": 1}, "outputs": {"tokens": 1, "mean": []}},
        ],
    ],
)
def test_two_texts_of_a_request_have_a_length_each(pad: Any) -> None:
    """Each is padded to its own, the mask of the first is made, and the output is cut by the second."""
    with fastpipe.Pipe(backend="OnnxTensor", model=translator(), max=8, pad=pad) as pipe:
        asked = texts()
        for data, future in zip(asked, [pipe.submit({"data": data}) for data in asked], strict=True):
            assert_equal(future.result()["result"], translated(data))


def test_a_run_has_as_many_elements_as_both_texts_have_together() -> None:
    """What is counted, and what max_tokens bounds: 4 x (9 + 6) in one run, of which 44 are the requests' own."""
    backend = OnnxTensor(model=translator(), max=8, pad=TWO_TEXTS, max_tokens=60)
    asked = texts()
    for data, found in zip(asked, results(backend, *asked), strict=True):
        assert_equal(found, translated(data))
    (count,) = backend.padding_counts
    assert (count.own, count.padding) == (44, 16)
    assert [backend.length_of({"data": data}) for data in asked] == [9, 11, 13, 11]
    assert backend.max_padded == 60
    backend = OnnxTensor(model=translator(), max=8, pad=TWO_TEXTS, max_tokens=59)
    results(backend, *asked)
    assert backend.padding_counts[0].padding < 16
    long = {"input_ids": np.zeros(40, int), "decoder_input_ids": np.zeros(20, int)}
    with pytest.raises(ItemErrors, match="at most 59 elements in all, got lengths of 40, 20, with padding 60"):
        backend.forward([{"data": long}])


@pytest.mark.parametrize("pad", [TWO_SIDES, [{"to": [8, 24], "axis": 2}, {"to": [8, 24], "axis": "width"}]])
def test_pictures_are_padded_on_both_sides_and_cut_back(pad: Any) -> None:
    """Also where an output is half as large, rounded down; without a mask, which such a model does not need."""
    backend = OnnxTensor(model=pictures(has_mask=False), max=8, pad=pad)
    asked = [picture(5, 12), picture(12, 5), picture(7, 7), picture(24, 3)]
    for data, found in zip(asked, results(backend, *asked), strict=True):
        assert_equal(found, alone(pictures(has_mask=False), data))


def test_the_mask_of_a_picture_has_both_sides() -> None:
    """It is made, or brought, and is 0 for what was added on either side; pixels are counted."""
    backend = OnnxTensor(model=pictures(), max=8, pad=TWO_SIDES)
    asked = [picture(5, 12), picture(12, 5), picture(7, 7)]
    expected = [alone(pictures(), data, np.ones(data.shape[1:], np.int64)) for data in asked]
    for found, wanted in zip(results(backend, *asked), expected, strict=True):
        assert_equal(found, wanted)
    (count,) = backend.padding_counts
    assert (count.own, count.padding) == (60 + 60 + 49, 3 * 144 - 169)
    mask = np.zeros((5, 12), np.int64)
    mask[2] = 1
    brought = {"pixels": asked[0], "pixel_mask": mask}
    found, other = results(backend, brought, asked[1])
    assert_equal(found, alone(pictures(), asked[0], mask))
    assert_equal(other, expected[1])


def test_buckets_of_both_sides_say_what_shares_a_run() -> None:
    """A picture that is longer than one of them fails alone, and says on which side."""
    pad = [{"to": [8, 16], "axis": "height"}, {"to": [8, 16], "axis": "width"}]
    backend = OnnxTensor(model=pictures(), max=8, pad=pad)
    assert backend.max_padding == 1
    keys = [backend.bucket({"data": picture(*size)}) for size in ((5, 12), (8, 9), (9, 8))]
    assert keys[0] == keys[1] != keys[2]
    assert backend.length_of({"data": picture(5, 12)}) == 8 * 16
    with pytest.raises(ItemErrors, match="input 'pixels', axis 3: expected a length of at most 16, got 17"):
        backend.forward([{"data": picture(4, 17)}])


def test_a_model_of_fixed_lengths_takes_shorter_texts() -> None:
    """Each is padded to the model's own; what is cut has to be said, as nothing can be tried."""
    pad = [
        {"to": [16], "axis": {"input_ids": 1, "attention_mask": 1}, "outputs": {"tokens": [], "mean": []}},
        {"to": [12], "axis": {"decoder_input_ids": 1}, "outputs": {"tokens": 1, "mean": []}},
    ]
    backend = OnnxTensor(model=translator(lengths=(16, 12)), max=4, pad=pad)
    asked = texts()
    for data, found in zip(asked, results(backend, *asked), strict=True):
        assert_equal(found, translated(data))
    with pytest.raises(ConfigError, match=r"pad\[1\].outputs: output 'tokens': expected the axis that has the length"):
        OnnxTensor(model=translator(lengths=(16, 12)), max=4, pad=[pad[0], {"to": [12], "axis": pad[1]["axis"]}])


def test_torch_models_have_several_lengths_too() -> None:
    """Of a module the axes are numbers, and what its outputs have is seen in trials."""
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    from fastpipe.backends.model.torch import TorchTensor

    class Pictures(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, pixels: Any, pixel_mask: Any) -> Any:
            brighter = (pixels[:, 0] + 1) * pixel_mask
            return {"halved": torch.nn.functional.max_pool2d(pixels, 2), "sum": brighter.sum((1, 2))[:, None]}

    pad = [
        {**LONGEST, "axis": {"pixels": 2, "pixel_mask": 1}, "mask": "pixel_mask"},
        {**LONGEST, "axis": {"pixels": 3, "pixel_mask": 2}, "mask": "pixel_mask"},
    ]
    backend = TorchTensor(model=Pictures(), max="8x1x32x32,8x32x32", pad=pad, device=["cpu"])
    asked = [picture(5, 12), picture(12, 5), picture(7, 7)]
    found = results(backend, *map(torch.from_numpy, asked))
    for data, own in zip(asked, found, strict=True):
        pixels = torch.from_numpy(data)[None]
        wanted = Pictures()(pixels, torch.ones(pixels.shape[0], *pixels.shape[2:]))
        assert_equal([each.numpy() for each in own], [each.numpy() for each in wanted.values()])


def test_a_mask_of_a_torch_model_may_have_axes_of_one() -> None:
    """Where max says so, since a module says nothing; and so may a length."""
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    from fastpipe.backends.model.torch import TorchTensor

    class Masked(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any, mask: Any, length: Any) -> Any:
            return {"y": (x * mask)[:, 0] + 1, "mean": (x * mask).sum((1, 3)) / length}

    pad = {**LONGEST, "axis": {"x": 3, "mask": 3}, "mask": "mask", "length": "length"}
    backend = TorchTensor(model=Masked(), max="4x2x1x9,4x1x1x9,4x1", pad=pad, device=["cpu"])
    asked = [np.random.default_rng(size).random((2, 1, size), np.float32) for size in (3, 7, 2)]
    for data, (own, mean) in zip(asked, results(backend, *map(torch.from_numpy, asked)), strict=True):
        assert_equal([own.numpy()[0], mean.numpy()[0]], [data[0] + 1, data.sum((0, 2)) / data.shape[2]])


def test_requests_beyond_max_are_padded_to_those_whose_run_they_share() -> None:
    """Not to the longest of what was given together: with max=1 no output was tried with padding."""
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    from fastpipe.backends.model.torch import TorchTensor

    class Doubled(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return x * 2

    backend = TorchTensor(model=Doubled(), max="1x9", pad=LONGEST, device=["cpu"])
    asked = [np.ones(size, np.float32) for size in (3, 7, 2)]
    for data, own in zip(asked, results(backend, *map(torch.from_numpy, asked)), strict=True):
        assert_equal([own.numpy()[0]], [data * 2])


@pytest.mark.parametrize(
    ("model", "pad", "said"),
    [
        (pictures, "longest", r"pad: several axes may be the length.*write a table for each of them"),
        (pictures, [LONGEST, LONGEST], r"pad\[0\].axis: expected the axis of this length, as there are several"),
        (pictures, [{**LONGEST, "axis": "height"}, 8], "pad: expected a table for each of several lengths, got 8"),
        (
            pictures,
            [{**LONGEST, "axis": "height"}, {**LONGEST, "axis": {"pixels": 2}}],
            "pad: input 'pixels': expected an axis of its own for each length, got axis 2 for several",
        ),
        (pictures, [*TWO_SIDES[:1], {**LONGEST, "axis": "wide"}], r"pad\[1\].axis: no input has an axis 'wide'"),
        (
            pictures,
            [*TWO_SIDES[:1], {**LONGEST, "axis": "width", "outputs": {"halved": 2}}],
            r"pad\[1\].outputs: output 'halved': expected the length in the axes \[2\], got .*: that is \[3\]",
        ),
        (
            lambda: pictures(has_mask=False),
            [*TWO_SIDES[:1], {**LONGEST, "axis": "width", "value": 0.5, "lengths": 3}],
            r"pad\[1\]: it has no 'lengths'.*did you mean 'length'",
        ),
        (
            lambda: flattened(),
            TWO_SIDES,
            "expected in output 'y' every axis to follow one length, got axis 1, which follows several",
        ),
    ],
)
def test_what_is_wrong_with_several_lengths_is_said(model: Any, pad: Any, said: str) -> None:
    """With the number of the table."""
    with pytest.raises(ConfigError, match=said):
        OnnxTensor(model=model(), max=4, pad=pad)


def flattened() -> bytes:
    """Return a model that joins height and width of a picture: (n, height + width)."""
    nodes = [
        helper.make_node("ReduceMax", ["pixels"], ["rows"], axes=[2], keepdims=0),
        helper.make_node("ReduceMax", ["pixels"], ["columns"], axes=[1], keepdims=0),
        helper.make_node("Concat", ["rows", "columns"], ["y"], axis=1),
    ]
    return make_model(nodes, {"pixels": ["n", "height", "width"]}, {"y": ["n", "both"]})


# ---- masks that are none ---------------------------------------------------------------------------------------------


def test_the_ids_are_no_mask() -> None:
    """What is read of them where there is padding depends on the mask that the model has."""
    said = "pad.mask: input 'input_ids': expected the input that says what is padding.*'attention_mask' says it"
    with pytest.raises(ConfigError, match=said):
        OnnxTensor(model=embedder(), max=4, pad={"to": "longest", "mask": "input_ids"})
    with pytest.raises(ConfigError, match="'counted' says it"):
        OnnxTensor(model=embedder(mask_name="counted"), max=4, pad={"to": "longest", "mask": "input_ids"})
    with pytest.raises(ConfigError, match=r"pad\[0\].mask: input 'input_ids'"):
        OnnxTensor(model=translator(), max=4, pad=[{**TWO_TEXTS[0], "mask": "input_ids"}, TWO_TEXTS[1]])


def test_a_mask_that_hides_nothing_may_be_named() -> None:
    """A model whose padding does no harm may want one all the same."""
    nodes = [
        helper.make_node("Cast", ["counted"], ["factors"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "factors"], ["y"]),
    ]
    inputs = {"x": ["n", "t"], "counted": (TensorProto.INT64, ["n", "t"])}
    model = make_model(nodes, inputs, {"y": ["n", "t"]})
    backend = OnnxTensor(model=model, max=4, pad={"to": "longest", "mask": "counted", "max_padding": 1})
    found = results(backend, np.ones(3, np.float32), np.ones(5, np.float32))
    assert [each.shape for each in found] == [(1, 3), (1, 5)]
