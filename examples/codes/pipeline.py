"""The last step of the graph, and the configuration (``codes.toml``, beside this file)."""

from __future__ import annotations

import tomllib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import zxingcpp

from fastpipe import PerRequest, Request

__all__ = ["NAMES", "Read", "configuration"]

NAMES = (
    *("QR code", "micro QR code", "Aztec", "Data Matrix", "PDF417", "Code 128", "Code 39", "Code 93"),
    *("EAN-13", "EAN-8", "UPC-A", "UPC-E", "DataBar", "linear code"),
)
"""What the detector's classes are, by their number."""


def configuration() -> dict[str, Any]:
    """Return what ``codes.toml`` says, with the path of the model, a file of the package arbez."""
    nodes = tomllib.loads(Path(__file__).with_name("codes.toml").read_text())
    nodes["detect"]["model"] = distribution("arbez").locate_file(nodes["detect"]["model"])
    return nodes


class Read(PerRequest):
    """The picture and a ``box`` -> the text of the code in it; empty if it cannot be read.

    Args:
        margin: how much wider and higher than its box a code is cut out: the white around it is a part of it.
    """

    keeps_input = True

    def __init__(self, *, margin: float = 0.2) -> None:
        self._margin = margin

    def run(self, request: Request) -> None:
        image, box = request["data"], request["box"]
        more = self._margin / 2 * (box[2:] - box[:2]).max()
        left, top = np.maximum(box[:2] - more, 0).astype(int)
        right, bottom = np.ceil(box[2:] + more).astype(int)
        code = zxingcpp.read_barcode(np.ascontiguousarray(image[top:bottom, left:right]))
        request["result"] = code.text if code else ""
