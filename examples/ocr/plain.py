"""The loop the pipe is compared with: one page after the other, the same steps, the models as published, no pipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import onnxruntime

from ocr import models, steps

__all__ = ["PlainReader"]


class PlainReader:
    """Reads a page as one would write it down: detect, unwarp and turn all lines, recognise all lines.

    Each run of a model has all cores to itself and gets one line, which is as fast as such a loop goes. With up to six
    lines of a width at once, as the reference has it, it took 1.2 times as long; with each line turned and recognised
    before the next, 1.4 times, since ONNX Runtime's idle threads of one model spin while the other's compute.

    Args:
        threads: computing threads of each model; None: ONNX Runtime's own choice, one for each core.
    """

    def __init__(self, threads: int | None = None) -> None:
        recogniser = models.model_path(models.RECOGNISER)
        self._detect = _Model(models.model_path(models.DETECTOR), threads)
        self._direction = _Model(models.model_path(models.DIRECTION), threads)
        self._recognise = _Model(recogniser, threads)
        self._alphabet = models.alphabet(recogniser)

    def read(self, content: bytes) -> list[steps.Line]:
        """Return the lines of text on the page in an image file, given as its bytes.

        Raises:
            UnreadablePage: if it is none.
        """
        page = steps.prepare_page(steps.decoded(content))
        quads = steps.boxes_of_map(self._detect(steps.detection_input(page)), page)
        lines = [self._turned(steps.unwarp(page.image, quad)) for quad in quads]
        found = []
        for quad, line, width in zip(quads, lines, steps.recognition_widths(quads), strict=True):
            text, score = steps.text_of(self._recognise(steps.recognition_input(line, width)), self._alphabet)
            if score >= steps.LOWEST_SCORE:
                found.append(steps.Line(text, score, page.to_source(quad)))
        return found

    def _turned(self, line: steps.Image) -> steps.Image:
        upside_down = steps.is_upside_down(self._direction(steps.direction_input(line)))
        return cv2.rotate(line, cv2.ROTATE_180) if upside_down else line


class _Model:
    """A session of ONNX Runtime with one input and one output, run on one sample."""

    def __init__(self, path: Path, threads: int | None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, sample: steps.Floats) -> Any:
        return self._session.run(None, {self._input: sample[None]})[0]
