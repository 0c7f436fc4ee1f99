"""Does a batch pay? What a model costs for one alone, and for each of several together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import onnxruntime

from ocr import models, steps
from ocr.under_load.search import Searcher

__all__ = ["BatchCost", "cost_of_line", "cost_of_query"]

RUNS = 7  # of which the fastest counts: whatever else runs makes it only slower
QUERIES_TOGETHER = 16
LINES_TOGETHER = 4
# Below this, the waiting for a batch costs more than it brings.
WORTH_IT = 1.15


@dataclass(frozen=True)
class BatchCost:
    """What one thread takes for a model, for each in a batch.

    Attributes:
        what: that is given to the model, with its article.
        alone_s: for one.
        each_s: for one of ``count`` together.
    """

    what: str
    count: int
    alone_s: float
    each_s: float

    @property
    def pays(self) -> bool:
        return self.alone_s >= WORTH_IT * self.each_s

    def __str__(self) -> str:
        ratio = self.alone_s / self.each_s
        verdict = f"batches pay, {ratio:.1f} x" if self.pays else "batches do not pay here"
        alone, each = f"{self.alone_s * 1e3:.1f} ms", f"{self.each_s * 1e3:.1f} ms"
        return f"{self.what} costs its model {alone} alone, {each} as one of {self.count}: {verdict}"


def cost_of_query(search: Searcher, query: str) -> BatchCost:
    """Measure the language model, with one thread."""
    alone = search.inputs(query)
    together = {name: np.repeat(array, QUERIES_TOGETHER, axis=0) for name, array in alone.items()}
    each_s = _fastest_s(lambda: search.run(together)) / QUERIES_TOGETHER
    return BatchCost("A query", QUERIES_TOGETHER, _fastest_s(lambda: search.run(alone)), each_s)


def cost_of_line(page: bytes) -> BatchCost:
    """Measure the model that reads a line of text, with one thread, on the upper left corner of a page."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    path = str(models.model_path(models.RECOGNISER))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    corner = cv2.resize(steps.decoded(page), (steps.NARROWEST_WIDTH, steps.LINE_HEIGHT))
    line = steps.recognition_input(corner, steps.NARROWEST_WIDTH)[None]
    together = np.repeat(line, LINES_TOGETHER, axis=0)
    each_s = _fastest_s(lambda: session.run(None, {name: together})) / LINES_TOGETHER
    return BatchCost("A line of text", LINES_TOGETHER, _fastest_s(lambda: session.run(None, {name: line})), each_s)


def _fastest_s(run: Callable[[], Any]) -> float:
    took_s = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        took_s.append(time.perf_counter() - start)
    return min(took_s)
