"""Requests of different lengths in one run of a model: padded, masked, cut back, and each as if it were alone."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from helpers import SCALE, WAIT_S  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from length_models import (  # noqa: E402
    alone,
    assert_equal,
    convolution,
    elementwise,
    embedded,
    embedder,
    fixed,
    ids_of,
    pooled,
    repeated,
    results,
    with_length,
)

import fastpipe  # noqa: E402
from fastpipe.backends.model import length_proof  # noqa: E402
from fastpipe.backends.model.length_sizes import LENGTHS_TO_FIT, Cut, fitting  # noqa: E402
from fastpipe.backends.model.onnx import OnnxTensor  # noqa: E402
from fastpipe.errors import ConfigError, ItemErrors  # noqa: E402


def counted(backend: Any) -> tuple[int, int]:
    """Return how many elements of requests, and how many of padding, have run since the last look."""
    (count,) = backend.padding_counts
    found = count.own, count.padding
    count.own = count.padding = 0
    return found


# ---- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", ["longest", [8, 16, 64], {"to": "longest", "max_padding": 1}])
def test_requests_of_many_lengths_get_what_each_gets_alone(pad: Any) -> None:
    """Of many callers, in batches; tokens are cut to the request's own, and the mask is made for each."""
    asked = ids_of(*np.random.default_rng(1).integers(1, 61, int(120 * min(SCALE, 1))))
    with fastpipe.Pipe(node={"backend": "OnnxTensor", "model": embedder(), "max": 16, "pad": pad}) as pipe:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda ids: pipe({"data": ids})["result"], asked))
        stats = pipe.stats()["nodes"]["node"]
    for ids, result in zip(asked, found, strict=True):
        assert_equal(result, embedded(ids))
    assert stats["padding"]["own"] == sum(map(len, asked))
    if pad == "longest":
        assert stats["padding"]["share"] <= 0.15


@pytest.mark.parametrize("form", ["array", "list", "mapping", "whole list", "whole mapping", "with a batch axis"])
def test_a_request_may_bring_the_mask_or_leave_it_out(form: str) -> None:
    """In every form of its data."""
    backend = OnnxTensor(model=embedder(), max=4, pad="longest")
    asked = ids_of(3, 7, 4)

    def data_of(ids: Any) -> Any:
        mask = np.ones(len(ids), np.int64)
        return {
            "array": ids,
            "list": [ids],
            "mapping": {"input_ids": ids},
            "whole list": [ids, mask],
            "whole mapping": {"attention_mask": mask, "input_ids": ids},
            "with a batch axis": ids[None],
        }[form]

    for ids, result in zip(asked, results(backend, *map(data_of, asked)), strict=True):
        assert_equal(result, embedded(ids))


def test_a_mask_that_a_request_brings_is_kept() -> None:
    """What it ignores of itself is ignored beside others, too."""
    backend = OnnxTensor(model=embedder(), max=4, pad={"to": "longest", "max_padding": 1})
    (ids, other), mask = ids_of(5, 9), np.array([1, 1, 0, 1, 0])
    first, second = results(backend, [ids, mask], other)
    assert_equal(first, alone(embedder(), ids, mask))
    assert_equal(second, embedded(other))


def test_every_axis_of_an_output_that_has_the_length_is_cut() -> None:
    """By the file's own names, wherever it is; what the request brought is left as it was."""
    backend = OnnxTensor(model=elementwise(), max=4, pad="longest")
    asked = [np.random.default_rng(n).random((n, 3), np.float32) for n in (4, 5, 6)]
    before = [array.copy() for array in asked]
    for array, (doubled, turned) in zip(asked, results(backend, *asked), strict=True):
        np.testing.assert_array_equal(doubled, 2 * array[None])
        np.testing.assert_array_equal(turned, 2 * array.T[None])
    for array, copy in zip(asked, before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("outputs", [{}, {"tokens": 1}, {"tokens": [1], "mean": []}])
def test_an_output_whose_axis_has_another_name_is_seen_in_the_trials(outputs: Any) -> None:
    """What is said of it has to be so."""
    model = embedder(output_symbol="out")
    backend = OnnxTensor(model=model, max=4, pad={"to": "longest", "outputs": outputs})
    for ids, result in zip(ids_of(9, 8), results(backend, *ids_of(9, 8)), strict=True):
        assert_equal(result, embedded(ids))


def test_the_length_is_told_to_a_model_that_has_an_input_for_it() -> None:
    """Made for a request that has not brought it."""
    backend = OnnxTensor(model=with_length(), max=4, pad={"to": "longest", "value": 100})
    asked = [np.arange(length, dtype=np.float32) for length in (10, 9, 11)]
    assert [float(sum_[0]) for sum_ in results(backend, *asked)] == [45, 36, 55]
    (own,) = results(backend, {"x": asked[0], "lengths": np.array(3)})
    assert float(own[0]) == 3


def test_a_bucket_is_what_a_request_is_padded_to_also_alone() -> None:
    """So it does not depend on company."""
    backend = OnnxTensor(model=embedder(), max=4, pad=[8, 16])
    short, long = ids_of(5, 13)
    assert_equal(results(backend, short)[0], embedded(short))
    assert counted(backend) == (5, 3)
    together = results(backend, short, long)
    assert_equal(together[1], embedded(long))
    assert counted(backend) == (18, 6)


def test_a_model_of_one_length_takes_shorter_requests() -> None:
    """The file's axis is fixed, so that its outputs' have no name: which one has the length is said."""
    backend = OnnxTensor(model=fixed(), max=4, pad={"to": [16], "axis": 1, "outputs": {"tokens": 1, "mean": []}})
    asked = ids_of(5, 16, 1)
    for ids, result in zip(asked, results(backend, *asked), strict=True):
        assert_equal(result, embedded(ids))
    with pytest.raises(ItemErrors) as caught:
        results(backend, *ids_of(5, 17))
    (error,) = caught.value.errors.values()
    assert "expected" in str(error)
    assert "1..16" in str(error)


def test_another_value_may_be_what_does_not_leak() -> None:
    """A bias of 1 makes 1 of padding with 0, which the convolution reads at the edge; -1 becomes 0 there."""
    with pytest.raises(ConfigError, match=r"input 'x', axis 2: padded to 16, expected in output 'y' what a request"):
        OnnxTensor(model=convolution(1), max=4, pad="longest")
    backend = OnnxTensor(model=convolution(1), max=4, pad={"to": "longest", "value": {"x": -1}})
    pixels = [np.arange(length, dtype=np.uint8)[None] for length in (7, 8)]  # a type that has no -1
    for array, result in zip(pixels, results(backend, *pixels), strict=True):
        assert_equal([result], alone(convolution(1), array.astype(np.float32)))


def test_a_postprocessor_sees_each_request_as_it_would_alone() -> None:
    """Those of one length together."""
    shapes = []

    def lengths(outputs: Any, batch: Any) -> list[int]:
        shapes.append((outputs[0].shape, len(batch)))
        return [outputs[0].shape[1]] * len(batch)

    backend = OnnxTensor(model=embedder(), max=8, pad={"to": "longest", "max_padding": 1}, postprocessor=lengths)
    assert results(backend, *ids_of(4, 6, 5)) == [4, 6, 5]
    assert sorted(shapes) == [((1, 4, 8), 1), ((1, 5, 8), 1), ((1, 6, 8), 1)]
    shapes.clear()
    assert results(backend, *ids_of(6, 6)) == [6, 6]
    assert shapes == [((2, 6, 8), 2)]


def test_mean_pooling_means_over_the_request() -> None:
    """No padding is left when it looks."""
    backend = OnnxTensor(model=embedder(), max=8, pad="longest", postprocessor={"name": "MeanPooling", "mask": "none"})
    for ids, mean in zip(ids_of(4, 5), results(backend, *ids_of(4, 5)), strict=True):
        np.testing.assert_allclose(mean, embedded(ids)[1][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [pooled(2, 2), pooled(3, 1), pooled(5, 4), pooled(1, 16), repeated(3)])
def test_an_output_of_strides_or_repeats_is_cut_to_what_it_is_alone(model: bytes) -> None:
    """Found in the trials: how long it is for every length."""
    backend = OnnxTensor(model=model, max=8, pad={"to": "longest", "max_padding": 1})
    asked = [np.random.default_rng(length).random((1, length), np.float32) + 1 for length in (17, 100, 53, 16, 32)]
    for array, result in zip(asked, results(backend, *asked), strict=True):
        assert_equal([result], alone(model, array))


@given(st.integers(1, 16), st.integers(-40, 40), st.integers(1, 60))
@settings(deadline=None, max_examples=int(200 * min(SCALE, 1)))
def test_a_rule_of_strides_is_found_from_lengths_in_a_row(divide: int, add: int, start: int) -> None:
    """And no other fits them: it holds for all lengths."""
    lengths = list(range(start, start + LENGTHS_TO_FIT))
    right = Cut(2, 1, add, divide)
    if right.size(start) == 0:  # no model gives nothing
        return
    assert fitting(2, lengths, [right.size(length) for length in lengths]) == right
    assert Cut(2, 3, add).size(7) == max(0, 21 + add)


# ---- what shares a run -----------------------------------------------------------------------------------------------


def test_a_batch_that_nobody_formed_by_length_is_divided() -> None:
    """So that every run keeps the bounds: behind another step, or called by hand."""
    runs = []

    def note(outputs: Any, batch: Any) -> list[None]:
        runs.append(sorted(len(request["data"]) for request in batch))
        return [None] * len(batch)

    pad = {"to": "longest", "max_padding": 0.2, "outputs": {}}
    backend = OnnxTensor(model=with_length(), max=8, pad=pad, max_tokens=40, postprocessor=note)
    results(backend, *[np.ones(length, np.float32) for length in (3, 20, 19, 18, 4, 4, 40)])
    assert sorted(runs) == [[3, 4, 4], [18], [19, 20], [40]]
    own, padding = counted(backend)
    assert (own, padding) == (108, 2)


def test_the_engine_forms_batches_within_the_budget() -> None:
    """No run has more padded tokens, and the share of padding is what stats() says."""
    most = []

    def note(outputs: Any, batch: Any) -> list[None]:
        most.append(len(batch) * max(len(request["data"]) for request in batch))
        return [None] * len(batch)

    config = {"model": with_length(), "max": 32, "pad": "longest", "max_tokens": 100, "postprocessor": note}
    with fastpipe.Pipe(node={"backend": "OnnxTensor", **config}) as pipe:
        futures = [pipe.submit({"data": np.ones(1 + number % 50, np.float32)}) for number in range(200)]
        for future in futures:
            future.result(WAIT_S)
        stats = pipe.stats()["nodes"]["node"]
    assert max(most) <= 100
    assert stats["padding"]["own"] == 4 * sum(range(1, 51))
    assert stats["padding"]["padding"] == sum(most) - stats["padding"]["own"]
    assert stats["mean_batch"] > 1


def test_two_instances_need_one_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second knows what the first has seen of the outputs."""
    proved = []
    original = length_proof.prove_lengths
    monkeypatch.setattr(
        "fastpipe.backends.model.onnx_runtime.model.prove_lengths",
        lambda *given, **more: proved.append(original(*given, **more)),
    )
    model = embedder(output_symbol="seen once")
    first, second = [OnnxTensor(model=model, max=4, pad="longest") for _ in range(2)]
    assert len(proved) == 1
    for backend in (first, second):
        assert [result[0].shape for result in results(backend, *ids_of(7, 8))] == [(1, 7, 8), (1, 8, 8)]


# ---- the other backends ----------------------------------------------------------------------------------------------


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed")


def masked_mean(torch: Any, *, exported: bool) -> Any:
    """Return a torch model of floats (n, t, 2) and a mask (n, t): running sums, and the mean over what counts."""

    class Mean(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any, attention_mask: Any) -> Any:
            weights = attention_mask.unsqueeze(2).to(x.dtype)
            return x.cumsum(1), (x * weights).sum(1) / weights.sum(1)

    if not exported:
        return Mean()
    batch, time = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("time", min=2, max=512)
    example = (torch.ones(3, 4, 2), torch.ones(3, 4, dtype=torch.int64))
    shapes = ({0: batch, 1: time}, {0: batch, 1: time})
    return torch.export.export(Mean(), example, dynamic_shapes=shapes)


@pytest.mark.parametrize("exported", [False, True])
def test_a_torch_model_pads_as_well(torch: Any, tmp_path: Any, exported: bool) -> None:
    """A module whose shapes `max` says, and an exported program; the results are memory of their own."""
    from fastpipe.backends.model.torch import TorchTensor

    model = masked_mean(torch, exported=exported)
    if exported:
        torch.export.save(model, tmp_path / "mean.pt2")
        backend = TorchTensor(model=tmp_path / "mean.pt2", max=8, device=["cpu"], pad="longest")
    else:
        pad = {"to": "longest", "axis": 1, "mask": "attention_mask"}
        backend = TorchTensor(model=model, max="8x64x2,8x64", dtypes=["float32", "int64"], device=["cpu"], pad=pad)
    asked = [torch.rand(length, 2) for length in (5, 6, 7)]
    for array, (sums, mean) in zip(asked, results(backend, *asked), strict=True):
        torch.testing.assert_close(sums, array.cumsum(0)[None])
        torch.testing.assert_close(mean, array.mean(0)[None])
        assert sums.untyped_storage().nbytes() == sums.nbytes
    assert counted(backend) == (18, 3)


def test_a_torch_model_whose_padding_leaks_is_refused(torch: Any) -> None:
    """By the same trials."""
    from fastpipe.backends.model.torch import TorchTensor

    class Mean(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x.mean(1)

    with pytest.raises(ConfigError, match=r"input 'x', axis 1: padded to 16, expected in output 0 what a request"):
        TorchTensor(model=Mean(), max="8x64", device=["cpu"], pad="longest")
    with pytest.raises(ConfigError, match=r"pad: expected shapes in max"):
        TorchTensor(model=Mean(), max=8, rows="batch", device=["cpu"], pad="longest")
