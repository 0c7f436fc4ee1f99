"""Postprocessors of classifiers, of text and of embeddings: against the libraries and formulas that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastpipe.backends.model.heads.postprocessors import find_postprocessor
from fastpipe.backends.model.heads.without_boxes import CosineSimilarity, CtcGreedy, L2Normalize, MeanPooling, TopK
from fastpipe.backends.model.reader import UnfitError
from fastpipe.errors import BackendError, ConfigError


def fill(head: Any, outputs: list[Any], requests: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return the requests, filled; without any, one for each row."""
    batch = requests if requests is not None else [{"data": None} for _ in outputs[0]]
    assert head(outputs, batch) is None
    return batch


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


# ---- classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        ("softmax", lambda row: np.exp(row) / np.exp(row).sum()),
        ("sigmoid", lambda row: 1 / (1 + np.exp(-row))),
        ("none", lambda row: row),
    ],
)
@pytest.mark.parametrize("behind", [(), (1, 1)])
def test_top_k_gives_classes_and_scores_best_first(activation: str, formula: Any, behind: tuple[int, ...]) -> None:
    """Held against a plain sort of what the activation's formula gives."""
    logits = numbers(0, 3, 20)
    head = find_postprocessor({"name": "topk", "k": 4, "activation": activation}, [("n", 20, *behind)])
    for request, row in zip(fill(head, [logits.reshape(3, 20, *behind)]), logits, strict=True):
        expected = sorted(range(20), key=lambda each: -row[each])[:4]
        assert request["result"].tolist() == expected
        np.testing.assert_allclose(request["scores"], formula(row.astype(np.float64))[expected], rtol=1e-5)
        assert (request["result"].dtype, request["scores"].dtype) == (np.int64, np.float32)


def test_top_k_of_fewer_classes_is_all_of_them_the_first_of_equals_first() -> None:
    """Also of numbers whose exponentials are infinite."""
    (request,) = fill(TopK(), [np.array([[1e4, 2e4, 2e4]], np.float32)])
    assert (request["result"].tolist(), request["scores"].tolist()) == ([1, 2, 0], [0.5, 0.5, 0])


@pytest.mark.parametrize(
    ("kind", "activation", "expected"),
    [
        (TopK, "softmax", "numbers for the softmax"),
        (TopK, "sigmoid", "numbers for the sigmoid"),
        (TopK, "none", "scores"),
        (CtcGreedy, "softmax", "numbers for the softmax"),
        (CtcGreedy, "none", "scores"),
    ],
)
@pytest.mark.parametrize("number", ["inf", "nan"])
def test_numbers_of_which_none_is_the_largest_fail_their_request_alone(
    kind: Any, activation: str, expected: str, number: str
) -> None:
    """As those of a model that overflows in float16: infinite, or none; -inf is a probability of 0."""
    logits = np.array([[[0, -np.inf, 0]], [[1, float(number), 0]]], np.float32)
    batch: list[dict[str, Any]] = [{"data": None}, {"data": None}]
    with pytest.raises(UnfitError) as caught:
        kind(activation=activation)([logits[:, 0] if kind is TopK else logits], batch)
    assert list(caught.value.errors) == [1]
    words = f"postprocessor {kind.__name__}: expected finite {expected}, got {number}; has the model overflowed"
    assert words in str(caught.value.errors[1])
    assert "result" not in batch[1]
    if kind is TopK:
        scores = {"softmax": [0.5, 0.5, 0], "sigmoid": [0.5, 0.5, 0], "none": [0, 0, -np.inf]}
        assert batch[0]["scores"].tolist() == scores[activation]
    else:
        assert batch[0]["score"] == 0.0


def test_an_output_is_chosen_by_its_number() -> None:
    """Others are left alone, whatever they are; a number that is none is refused."""
    (request,) = fill(TopK(output=1, k=1), [np.zeros((7, 2)), np.array([[0.0, 1.0]])], [{"data": None}])
    assert request["result"].tolist() == [1]
    with pytest.raises(ConfigError, match=r"expected an output of number 2 \(0 is the first\), the model has 2"):
        find_postprocessor({"name": "TopK", "output": 2}, [("n", 2), ("n", 2)])


# ---- text ------------------------------------------------------------------------------------------------------------

ALPHABET = list("abcdefgh")


def steps(seed: int) -> np.ndarray:
    """Probabilities (batch 3, steps 40, classes 10) with many repeats and blanks: a blank, 8 letters, a space."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (3, 40, 10))
    for row in range(3):
        for step, number in enumerate(np.repeat(rng.choice(10, 20, p=[0.37, *[0.07] * 9]), 2)):
            logits[row, step, number] += 4
    exponentials = np.exp(logits)
    return (exponentials / exponentials.sum(-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_ctc_reads_what_rapidocr_reads(seed: int) -> None:
    """Text and score; rapidocr puts a space behind the characters and the blank in front."""
    decoder = pytest.importorskip("rapidocr_onnxruntime.ch_ppocr_rec.utils", exc_type=ImportError).CTCLabelDecode
    probabilities = steps(seed)
    head = CtcGreedy(characters="".join(ALPHABET) + " ")
    expected = decoder(character=list(ALPHABET))(probabilities)
    requests = fill(head, [probabilities])
    assert [request["result"] for request in requests] == [text for text, _ in expected]
    assert [request["score"] for request in requests] == pytest.approx([score for _, score in expected], rel=1e-5)


def test_ctc_merges_repeats_and_drops_blanks() -> None:
    """A blank between two equal ones keeps both; any class may be the blank."""
    classes = [3, 0, 0, 3, 0, 1, 1, 3, 3, 2]
    logits = np.full((1, len(classes), 4), -2.0, np.float32)
    logits[0, range(len(classes)), classes] = 3
    (request,) = fill(CtcGreedy(blank=3), [logits])
    assert (request["result"].tolist(), request["result"].dtype) == ([0, 0, 1, 2], np.int64)
    assert request["score"] == 3
    (request,) = fill(CtcGreedy(blank=1, characters=["x", "yes", "z"], activation="softmax"), [logits])
    assert request["result"] == "zxzxzyes"
    assert request["score"] == pytest.approx(np.exp(3) / (np.exp(3) + 3 * np.exp(-2)))


def test_ctc_of_blanks_alone_is_nothing() -> None:
    """Score 0.0, as rapidocr's."""
    (request,) = fill(CtcGreedy(characters="ab"), [np.array([[[0.9, 0.1, 0.0]] * 3], np.float32)])
    assert (request["result"], request["score"]) == ("", 0.0)


# ---- embeddings ------------------------------------------------------------------------------------------------------


def mean_of(tokens: np.ndarray, mask: list[int]) -> np.ndarray:
    """What sentence-transformers computes: the sum of what counts, over how many do, at least 1e-9."""
    weights = np.array(mask, np.float64)[:, None]
    return (tokens.astype(np.float64) * weights).sum(0) / max(weights.sum(), 1e-9)


@pytest.mark.parametrize("normalize", [False, True])
def test_mean_pooling_counts_what_the_mask_counts(normalize: bool) -> None:
    """The mask by name of a mapping, with and without a batch axis; a mask of zeros gives zeros."""
    tokens, masks = numbers(1, 3, 5, 6), [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    data = [{"input_ids": [0] * 5, "attention_mask": np.array(mask)} for mask in masks]
    data[1]["attention_mask"] = data[1]["attention_mask"][None]
    head = find_postprocessor({"name": "MeanPooling", "normalize": normalize}, [("n", "tokens", 6), ("n", 6)])
    requests = fill(head, [tokens, tokens[:, 0]], [{"data": each} for each in data])
    for request, own, mask in zip(requests, tokens, masks, strict=True):
        expected = mean_of(own, mask)
        if normalize and any(mask):
            expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(request["result"], expected, rtol=1e-5, atol=1e-7)
        assert (request["result"].dtype, request["result"].shape) == (np.float32, (6,))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_mean_pooling_does_not_read_tokens_that_do_not_count(number: float) -> None:
    """Padding may hold what is no number."""
    tokens = np.array([[[1, 2], [number, number], [3, 6]]], np.float32)
    (request,) = fill(MeanPooling(), [tokens], [{"data": {"attention_mask": [1, 0, 1]}}])
    assert request["result"].tolist() == [2, 4]


def test_mean_pooling_takes_a_mask_by_number_or_none() -> None:
    """Of inputs in a list; and all tokens."""
    tokens = numbers(2, 1, 3, 4)
    (request,) = fill(MeanPooling(mask=1), [tokens], [{"data": [[7, 8, 9], [1, 1, 0]]}])
    np.testing.assert_allclose(request["result"], mean_of(tokens[0], [1, 1, 0]), rtol=1e-5)
    (request,) = fill(MeanPooling(mask="none"), [tokens])
    np.testing.assert_allclose(request["result"], tokens[0].mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (np.zeros(3), "expected a mask, input 'attention_mask', in the data"),
        ({"mask": [1, 1, 1]}, "expected a mask, input 'attention_mask', in the data"),
        ({"attention_mask": [1, 1]}, r"expected a mask of 3 numbers, each 0 or 1, got \[1, 1\]"),
        ({"attention_mask": [1, 1, 2]}, "expected a mask of 3 numbers, each 0 or 1"),
        ({"attention_mask": "abc"}, "expected a mask of 3 numbers, each 0 or 1, got 'abc'"),
    ],
)
def test_a_request_without_its_mask_fails_alone(data: Any, problem: str) -> None:
    """The error says how to name it."""
    with pytest.raises(UnfitError) as caught:
        fill(MeanPooling(), [numbers(3, 2, 3, 4)], [{"data": {"attention_mask": [1, 0, 1]}}, {"data": data}])
    assert list(caught.value.errors) == [1]
    with pytest.raises(type(caught.value.errors[1]), match=problem):
        raise caught.value.errors[1]


def test_l2_normalize_gives_vectors_of_length_one() -> None:
    """Zeros stay zeros; no memory is shared with the output."""
    output = np.array([[3, 4], [0, 0], [1e30, 0]], np.float32)
    results = [request["result"] for request in fill(L2Normalize(), [output])]
    np.testing.assert_allclose(results, [[0.6, 0.8], [0, 0], [1, 0]], rtol=1e-6)
    assert not any(np.shares_memory(result, output) for result in results)


def test_cosine_similarity_is_the_product_of_unit_vectors() -> None:
    """Of two outputs; and of one with references, given as an array or as lists."""
    first, second = numbers(4, 3, 8), numbers(5, 3, 8)
    second[2] = 0

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / max(1e-12, np.linalg.norm(a) * np.linalg.norm(b)))

    requests = fill(CosineSimilarity(), [first, second])
    expected = [cosine(*pair) for pair in zip(first, second, strict=True)]
    assert [request["result"] for request in requests] == pytest.approx(expected, abs=1e-6)
    assert {type(request["result"]) for request in requests} == {float}
    for references in (second, second.tolist()):
        (request, *_) = fill(CosineSimilarity(references=references), [first])
        np.testing.assert_allclose(request["result"], [cosine(first[0], other) for other in second], atol=1e-6)


# ---- arrays of torch, refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_tensors_are_read_as_arrays(dtype: str) -> None:
    """On the CPU, in any float type, also inside a graph of gradients; the results are NumPy's."""
    torch: Any = pytest.importorskip("torch", reason="torch is not installed (extra torch)")
    logits = torch.tensor([[0.0, 4.0, 2.0]], dtype=getattr(torch, dtype), requires_grad=True)
    (request,) = fill(TopK(k=2, activation="none"), [logits])
    assert (request["result"].tolist(), request["scores"].tolist()) == ([1, 2], [4, 2])
    mask = torch.tensor([[1, 0]])
    (request,) = fill(MeanPooling(), [logits.reshape(1, 3, 1)[:, :2]], [{"data": {"attention_mask": mask}}])
    assert request["result"].tolist() == [0]


@pytest.mark.parametrize(
    ("given", "shapes", "problem"),
    [
        ("TopK", [("n", 5, 5)], r"TopK: expected an output of shape \(batch, classes\), at least 1, got \('n', 5, 5\)"),
        ("TopK", [("n", 0)], r"TopK: expected an output of shape \(batch, classes\), at least 1, got \('n', 0\)"),
        ("CtcGreedy", [("n", 5)], r"CtcGreedy: expected an output of shape \(batch, steps, classes\)"),
        ({"name": "CtcGreedy", "blank": 5}, [("n", 9, 5)], "blank=5 is none of 5 classes"),
        ({"name": "CtcGreedy", "characters": "abc"}, [("n", 9, 5)], "expected 4 characters for 5 classes and a blank"),
        ("MeanPooling", [("n", 5)], r"MeanPooling: expected an output of shape \(batch, tokens, numbers\)"),
        ("L2Normalize", [("n", 5, 1)], r"L2Normalize: expected an output of shape \(batch, numbers\)"),
        ("CosineSimilarity", [("n", 5)], r"CosineSimilarity: expected two outputs of shape \(batch, numbers\)"),
        ("CosineSimilarity", [("n", 5), ("n", 6)], "CosineSimilarity: expected two outputs"),
        ({"name": "CosineSimilarity", "references": [[1, 2]]}, [("n", 5)], r"expected one output \(batch, 2\)"),
        ({"name": "CosineSimilarity", "references": [1, 2]}, [()], r"references must be finite numbers of shape"),
        ({"name": "TopK", "kk": 1}, [()], "postprocessor TopK has no option 'kk', only output, k, activation; did"),
        ("Top", [()], "no postprocessor is named 'Top'; did you mean 'TopK'"),
    ],
)
def test_what_cannot_work_is_refused_when_the_pipe_is_built(given: Any, shapes: Any, problem: str) -> None:
    """Names, options, and models with other outputs, as far as they are declared."""
    with pytest.raises(ConfigError, match=problem):
        find_postprocessor(given, shapes)


def test_characters_are_counted_when_the_output_comes_if_not_before() -> None:
    """Of an open axis, nothing is known when the pipe is built."""
    head = find_postprocessor({"name": "CtcGreedy", "characters": "abc"}, [("n", "steps", "classes")])
    with pytest.raises(BackendError, match="expected 4 characters for 5 classes and a blank, got 3"):
        fill(head, [np.zeros((1, 2, 5), np.float32)])


def test_a_postprocessor_that_was_built_is_taken_as_it_is() -> None:
    """In Python; held against the model's outputs, too."""
    head = TopK(k=2)
    assert find_postprocessor(head, [("n", 5)]) is head
    with pytest.raises(ConfigError, match="TopK: expected an output"):
        find_postprocessor(head, [("n", 5, 5)])
    with pytest.raises(ConfigError, match="postprocessor TopK: k must be between 1 and 1000000, got 0"):
        TopK(k=0)
