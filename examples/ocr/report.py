"""What the demo shows in the end: pictures with the boxes found, and how long it all took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.table import Table

from ocr.pages import PageFile
from ocr.steps import Line, decoded

__all__ = ["Run", "batch_table", "same_lines", "save_picture", "time_table"]

# Small images are enlarged to about this width, so that boxes and numbers have room.
PICTURE_WIDTH = 1000
LARGEST_ENLARGEMENT = 3
BOX_COLOR = (60, 140, 20)  # BGR

# Two ways of batching the same line differ in the last bits only.
SCORE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Run:
    """One way of reading all pages, and how long it took."""

    what: str
    wall_s: float
    latencies_s: Sequence[float]
    """Of each page, from the call to the answer."""

    @property
    def pages_per_s(self) -> float:
        return len(self.latencies_s) / self.wall_s


def save_picture(page: PageFile, lines: Sequence[Line], folder: Path) -> Path:
    """Write the page with a box and a number for each line, and return where.

    Raises:
        OSError: if the folder cannot be made or written to.
    """
    image: Any = decoded(page.content)
    scale = min(LARGEST_ENLARGEMENT, max(1, round(PICTURE_WIDTH / image.shape[1])))
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    quads = [np.round(line.quad * scale).astype(np.int32) for line in lines]
    tinted = cv2.fillPoly(image.copy(), quads, BOX_COLOR) if quads else image
    image = cv2.addWeighted(tinted, 0.15, image, 0.85, 0)
    cv2.polylines(image, quads, isClosed=True, color=BOX_COLOR, thickness=2, lineType=cv2.LINE_AA)
    for number, quad in enumerate(quads, 1):
        _draw_label(image, str(number), quad[0])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{page.name}.boxes.png"
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return path


def _draw_label(image: Any, text: str, corner: Any) -> None:
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.5
    (width, height), _ = cv2.getTextSize(text, font, size, 1)
    # On the box's upper left corner, but never outside of the picture.
    x = int(min(max(corner[0] - width - 6, 0), image.shape[1] - width - 6))
    y = int(min(max(corner[1], 0), image.shape[0] - height - 8))
    cv2.rectangle(image, (x, y), (x + width + 5, y + height + 7), BOX_COLOR, cv2.FILLED)
    cv2.putText(image, text, (x + 3, y + height + 3), font, size, (255, 255, 255), 1, cv2.LINE_AA)


def same_lines(some: Sequence[Line], others: Sequence[Line]) -> bool:
    """Say whether two readings of a page agree: equal texts and boxes, and scores as near as makes no difference."""
    return len(some) == len(others) and all(
        a.text == b.text and np.array_equal(a.quad, b.quad) and abs(a.score - b.score) <= SCORE_TOLERANCE
        for a, b in zip(some, others, strict=True)
    )


def time_table(runs: Sequence[Run]) -> Table:
    """Return a table of all runs; the last column says how many times as fast the first is as each of the others."""
    table = Table(title="Pages read")
    for heading in ("", "pages/s", "p50", "p99", "fastpipe is"):
        table.add_column(heading, justify="right" if heading else "left")
    for run in runs:
        p50, p99 = np.percentile(run.latencies_s, [50, 99])
        ratio = "" if run is runs[0] else f"{runs[0].pages_per_s / run.pages_per_s:.2f}x as fast"
        table.add_row(run.what, f"{run.pages_per_s:.2f}", _seconds(p50), _seconds(p99), ratio)
    return table


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def batch_table(nodes: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table of a pipe's nodes, from what ``Pipe.stats`` says under ``"nodes"``."""
    table = Table(title="Inside the pipe")
    for heading in ("node", "requests", "batches", "mean batch", "busy"):
        table.add_column(heading, justify="left" if heading == "node" else "right")
    for name, node in nodes.items():
        counts = (str(node["requests"]), str(node["batches"]), f"{node['mean_batch']:.2f}")
        table.add_row(name, *counts, _seconds(node["busy_s"]))
    return table
