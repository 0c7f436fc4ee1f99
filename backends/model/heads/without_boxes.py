"""Postprocessors of classifiers, readers of text and embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from fastpipe.contract import Between, Request
from fastpipe.errors import ConfigError, KernelError, nearest
from fastpipe.summaries import summarize

from ...ranges import numbers_of
from .head import Floats, Head, OneOutputHead, may_be

__all__ = ["CosineSimilarity", "CtcGreedy", "L2Normalize", "MeanPooling", "TopK"]

# The least that a length or a number of tokens is taken for, so that zeros stay zeros; those of torch and
# sentence-transformers.
LEAST_NORM = 1e-12
LEAST_TOKENS = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class TopK(OneOutputHead):
    """The most likely classes of an output of shape (batch, classes), or with axes of one behind.

    Sets ``result`` to the classes, int64 of shape (k,), best first (of equal ones, the first), and ``scores``, float32.

    Args:
        k: how many; of fewer classes, all.
        activation: what makes scores of the output: ``softmax``, ``sigmoid``, or ``none`` if it has them.
    """

    k: Annotated[int, Between(1, 1_000_000)] = 5
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"

    def problem_of(self, shape: Sequence[Any]) -> str:
        is_right = len(shape) >= 2 and shape[1] != 0 and all(may_be(size, 1) for size in shape[2:])
        return "" if is_right else f"expected an output of shape (batch, classes), at least 1, got {tuple(shape)}"

    def fill(self, request: Request, rows: list[Floats]) -> None:
        scores = _activated(rows[0].ravel(), self)
        best = np.argsort(-scores, kind="stable")[: self.k]
        request["result"] = best.copy()  # not all of its memory, which has a number for each class
        request["scores"] = scores[best]


@dataclass(frozen=True, kw_only=True, eq=False)
class CtcGreedy(OneOutputHead):
    """The most likely class at each step of an output of shape (batch, steps, classes), repeats and blanks left out.

    Sets ``result`` to the classes, int64, or to text, and ``score`` to the mean of their probabilities, a float; 0.0
    where nothing is read.

    Args:
        blank: the class that stands for nothing.
        characters: of the other classes, in order: text of one character each, or a list. The result is then text.
        activation: ``softmax`` if the output is none yet; only ``score`` depends on it.
    """

    blank: Annotated[int, Between(0, 1_000_000)] = 0
    characters: str | list[str] | None = None
    activation: Literal["softmax", "none"] = "none"

    def problem_of(self, shape: Sequence[Any]) -> str:
        if len(shape) != 3:
            return f"expected an output of shape (batch, steps, classes), got {tuple(shape)}"
        if isinstance(shape[2], int) and self.blank >= shape[2]:
            return f"blank={self.blank} is none of {shape[2]} classes"
        if self.characters is not None and not may_be(shape[2], len(self.characters) + 1):
            return f"expected {shape[2] - 1} characters for {shape[2]} classes and a blank, got {len(self.characters)}"
        return ""

    def fill(self, request: Request, rows: list[Floats]) -> None:
        probabilities = _activated(rows[0], self)
        classes = probabilities.argmax(axis=1)
        is_read = classes != self.blank
        is_read[1:] &= classes[1:] != classes[:-1]
        read = classes[is_read]
        request["score"] = float(probabilities.max(axis=1)[is_read].mean()) if len(read) else 0.0
        if self.characters is None:
            request["result"] = read
        else:  # those behind the blank are one further on among the classes
            request["result"] = "".join([self.characters[number - (number > self.blank)] for number in read])


@dataclass(frozen=True, kw_only=True, eq=False)
class L2Normalize(OneOutputHead):
    """An embedding, (batch, numbers), divided by its length; zeros stay zeros. ``result``: float32, (numbers,)."""

    def problem_of(self, shape: Sequence[Any]) -> str:
        return "" if len(shape) == 2 else f"expected an output of shape (batch, numbers), got {tuple(shape)}"

    def fill(self, request: Request, rows: list[Floats]) -> None:
        request["result"] = _unit(rows[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class MeanPooling(OneOutputHead):
    """The mean of token embeddings, (batch, tokens, numbers), over the tokens that count. ``result``: float32.

    Args:
        mask: which of the request's inputs says what counts: 1 for each token that does, 0 for padding. Its name where
            ``data`` is a mapping, its number (0 is the first) where that is a list; ``none``: all tokens count.
        normalize: divide the mean by its length.
    """

    mask: int | str = "attention_mask"
    normalize: bool = False

    def problem_of(self, shape: Sequence[Any]) -> str:
        return "" if len(shape) == 3 else f"expected an output of shape (batch, tokens, numbers), got {tuple(shape)}"

    def problem_of_inputs(self, names: Sequence[str]) -> str:
        ways = "'none' lets all tokens count"
        if isinstance(self.mask, int):
            is_there = 0 <= self.mask < len(names)
            expected = f"expected the number of an input, from 0 to {len(names) - 1}, got {self.mask}"
            return "" if is_there else f"mask: {expected}; {ways}"
        if self.mask == "none" or self.mask in names:
            return ""
        near = nearest(self.mask, names)
        return f"mask: the model has no input {self.mask!r}{near}; requests bring {list(names)}; {ways}"

    def fill(self, request: Request, rows: list[Floats]) -> None:
        tokens = rows[0].astype(np.float64)
        weights = np.ones(len(tokens)) if self.mask == "none" else self._mask(request["data"], len(tokens))
        tokens = np.where(weights[:, None] > 0, tokens, 0)  # 0 times what is infinite, or no number, is no number
        mean = weights @ tokens / max(float(weights.sum()), LEAST_TOKENS)
        request["result"] = _unit(mean) if self.normalize else mean.astype(np.float32)

    def _mask(self, data: Any, token_count: int) -> Floats:
        """Return a weight for each token."""
        given = None
        if isinstance(data, Mapping):
            given = data.get(self.mask)
        elif isinstance(data, list | tuple) and isinstance(self.mask, int) and 0 <= self.mask < len(data):
            given = data[self.mask]
        if given is None:
            raise KernelError(
                f"postprocessor MeanPooling: expected a mask, input {self.mask!r}, in the data, got {summarize(data)}; "
                f"the option mask names it, or is its number in a list, and 'none' lets all tokens count"
            )
        weights = numbers_of(given.cpu() if hasattr(given, "cpu") else given, np.float64)
        if weights is None or weights.size != token_count or weights.ndim not in (1, 2) or not _is_mask(weights):
            raise KernelError(
                f"postprocessor MeanPooling: expected a mask of {token_count} numbers, each 0 or 1, "
                f"got {summarize(given)}"
            )
        return weights.ravel()


@dataclass(frozen=True, kw_only=True, eq=False)
class CosineSimilarity(Head):
    """How alike embeddings are, from -1 to 1.

    Without ``references``, of the model's two outputs, both (batch, numbers): ``result`` is a float. With them, of the
    model's only output with each: float32 of shape (references,). An embedding of zeros is like none: 0.

    Args:
        references: embeddings to compare with, an array of shape (references, numbers), or nested lists.
    """

    references: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.references is None:
            return
        numbers = numbers_of(self.references, np.float64)
        if numbers is None or numbers.ndim != 2 or not numbers.size or not np.isfinite(numbers).all():
            raise ConfigError(
                "postprocessor CosineSimilarity: references must be finite numbers of shape (references, numbers), "
                f"got {summarize(self.references)}"
            )
        object.__setattr__(self, "references", _unit(numbers))

    def problem(self, shapes: Sequence[Sequence[Any]]) -> str:
        numbers = None if self.references is None else self.references.shape[1]
        expected = "two outputs of shape (batch, numbers)" if numbers is None else f"one output (batch, {numbers})"
        is_right = len(shapes) == (2 if numbers is None else 1) and all(len(shape) == 2 for shape in shapes)
        if is_right and may_be(shapes[0][1], shapes[-1][1] if numbers is None else numbers):
            return ""
        return f"expected {expected}, got {', '.join(str(tuple(shape)) for shape in shapes)}"

    def fill(self, request: Request, rows: list[Floats]) -> None:
        if self.references is None:
            request["result"] = float(_unit(rows[0]) @ _unit(rows[1]))
        else:
            request["result"] = self.references @ _unit(rows[0])


def _activated(scores: Floats, head: TopK | CtcGreedy) -> Floats:
    """Return scores as probabilities over the last axis, by the head's activation.

    Raises:
        KernelError: if the largest is infinite or no number, so that nothing can be said of any.
    """
    largest = scores.max(axis=-1, keepdims=True)
    if not np.isfinite(largest).all():
        raise KernelError(
            f"postprocessor {type(head).__name__}: expected finite "
            f"{'scores' if head.activation == 'none' else f'numbers for the {head.activation}'}, got "
            f"{float(largest[~np.isfinite(largest)][0]):g}; has the model overflowed in half precision?"
        )
    if head.activation == "none":
        return scores
    if head.activation == "sigmoid":
        return 1 / (1 + np.exp(-scores))
    exponentials = np.exp(scores - largest)
    probabilities: Floats = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities


def _unit(vectors: Floats) -> Floats:
    """Return vectors along the last axis divided by their lengths, as float32."""
    wide = vectors.astype(np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=-1, keepdims=True))
    units: Floats = (wide / np.maximum(lengths, LEAST_NORM)).astype(np.float32)
    return units


def _is_mask(weights: Floats) -> bool:
    return bool(((weights == 0) | (weights == 1)).all())
