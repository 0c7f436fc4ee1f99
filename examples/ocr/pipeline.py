"""The backends between the models, and the configuration that ties them together (``ocr.toml``, beside this file).

A page's request carries ``page`` (a :class:`~ocr.steps.Page`) and ``quads``; a line's carries the page's
image under ``data`` at first, ``quad`` and ``width``, then ``line`` (the crop). Each backend takes any batch.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import cv2

from fastpipe import Backend
from ocr import models, steps

__all__ = [
    "DetectionInput",
    "DetectionOutput",
    "DirectionInput",
    "DirectionOutput",
    "NoImage",
    "PageText",
    "RecognitionInput",
    "RecognitionOutput",
    "configuration",
]

Request = dict[str, Any]


def configuration(instance_num: int | None = None) -> dict[str, Any]:
    """Return what ``ocr.toml`` says, with each model's file name replaced by where the file is.

    Args:
        instance_num: of every node; None: what the file says.

    Raises:
        ModelsMissing: if the package with the models is not installed.
    """
    with Path(__file__).with_name("ocr.toml").open("rb") as file:
        nodes = tomllib.load(file)
    if instance_num is not None:
        nodes["instance_num"] = instance_num
    for node in nodes.values():
        if isinstance(node, dict) and "model" in node:
            node["model"] = models.model_path(node["model"])
    return nodes


class NoImage(Backend):
    """What the decoder gave no result for -> an error that says so."""

    def forward(self, batch: list[Request]) -> None:
        raise steps.UnreadablePage("it is no JPEG, PNG, WebP or BMP picture, or only a part of one")


class DetectionInput(Backend):
    """An image -> what the detector takes; the page it is made of is kept as ``page``, its shape as ``shape``."""

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["page"] = steps.prepare_page(request["data"])
            request["result"] = steps.detection_input(request["page"])
            request["shape"] = request["result"].shape


class DetectionOutput(Backend):
    """The detector's map -> one dict for each line of the page, in reading order; their quads are kept as ``quads``."""

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            page = request["page"]
            del request["shape"]
            quads = steps.boxes_of_map(request["data"], page)
            request["quads"] = quads
            request["result"] = [
                {"data": page.image, "quad": quad, "width": width}
                for quad, width in zip(quads, steps.recognition_widths(quads), strict=True)
            ]


class DirectionInput(Backend):
    """A line -> what the direction model takes; the line is kept as ``line``."""

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["line"] = request["data"]
            request["result"] = steps.direction_input(request["data"])


class DirectionOutput(Backend):
    """What the direction model says -> the line, the right way up."""

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            line = request.pop("line")
            upside_down = steps.is_upside_down(request["data"])
            request["result"] = cv2.rotate(line, cv2.ROTATE_180) if upside_down else line


class RecognitionInput(Backend):
    """A line -> what the recogniser takes, ``width`` pixels wide.

    Wide lines weigh more, so that ``max`` limits how wide a batch is in all: as many of the narrowest lines, or what
    takes as much room.

    Args:
        max: of the node.
    """

    def __init__(self, *, max: int = 1) -> None:  # the node's key
        self._max = max

    def weigh(self, request: Request) -> float:
        # So that as many as fit make a full batch exactly: one that never gets full would always wait for company.
        fit: int = self._max * steps.NARROWEST_WIDTH // request["width"]
        return self._max / max(1, fit)

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = steps.recognition_input(request["data"], request["width"])


class RecognitionOutput(Backend):
    """What the recogniser says -> the text, and under ``score`` how sure it is.

    Args:
        model: the recogniser's file, for the characters it knows.
    """

    def __init__(self, *, model: Path) -> None:
        self._alphabet = models.alphabet(model)

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"], request["score"] = steps.text_of(request["data"], self._alphabet)


class PageText(Backend):
    """Texts and scores of all lines -> a list of :class:`~ocr.steps.Line`, without the doubtful ones.

    Args:
        lowest_score: of a line that is kept.
    """

    def __init__(self, *, lowest_score: float = steps.LOWEST_SCORE) -> None:
        self._lowest_score = lowest_score

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            page, quads, scores = (request.pop(key) for key in ("page", "quads", "score"))
            request["result"] = [
                steps.Line(text, score, page.to_source(quad))
                for text, score, quad in zip(request["data"], scores, quads, strict=True)
                if score >= self._lowest_score
            ]
