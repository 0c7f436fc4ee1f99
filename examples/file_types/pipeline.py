"""The backends around the model, and the configuration that ties them together (``file_types.toml``, beside this file).

They do what the package magika does in its mode of high confidence; the rules are those of its ``config.min.json``.
"""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np

from fastpipe import PerRequest, Request

__all__ = ["Features", "Label", "configuration"]

LABELS = "magika/config/content_types_kb.min.json"


def configuration() -> dict[str, Any]:
    """Return what ``file_types.toml`` says, with the path of the model, a file of the package magika."""
    nodes = tomllib.loads(Path(__file__).with_name("file_types.toml").read_text())
    nodes["identify"]["model"] = distribution("magika").locate_file(nodes["identify"]["model"])
    return nodes


class Features(PerRequest):
    """Bytes of a file -> the model's input, int32 of shape (1, 2048): the first and the last 1024 bytes.

    Spaces around them do not count, and 256 stands for "no byte". A file of fewer than eight bytes gets its label here,
    and with it a ``score``.
    """

    keeps_input = True

    def run(self, request: Request) -> None:
        content: bytes = request["data"]
        first, last = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
        if len(first) < 8 or len(content) < 8:
            request.update(result=_label_of_few(content[:4096]), score=1.0)
            return
        numbers = np.full((1, 2048), 256, np.int32)
        numbers[0, : len(first)] = np.frombuffer(first, np.uint8)
        numbers[0, 2048 - len(last) :] = np.frombuffer(last, np.uint8)
        request["result"] = numbers


class Label(PerRequest):
    """The number of the most probable label -> its name; "txt" or "unknown" where that is not probable enough.

    Sets ``score``, its probability, and ``guess``, the name in any case.

    Args:
        model: the model's file; what its numbers mean is beside it.
    """

    keeps_input = True

    def __init__(self, *, model: Path) -> None:
        rules = json.loads(model.with_name("config.min.json").read_text())
        self._names = rules["target_labels_space"]
        self._instead = rules["overwrite_map"]
        self._least = rules["thresholds"]
        self._least_of_others = rules["medium_confidence_threshold"]
        kinds = json.loads(Path(str(distribution("magika").locate_file(LABELS))).read_text())
        self._texts = {name for name, kind in kinds.items() if kind["is_text"]}

    def run(self, request: Request) -> None:
        guess = self._names[request["data"][0]]
        score = float(request.pop("scores")[0])
        label = self._instead.get(guess, guess)
        if score < self._least.get(guess, self._least_of_others):
            label = "txt" if label in self._texts else "unknown"
        request.update(result=label, guess=guess, score=score)


def _label_of_few(content: bytes) -> str:
    """Return the label of a file with next to nothing in it."""
    if not content:
        return "empty"
    try:
        content.decode()
    except UnicodeDecodeError:
        return "unknown"
    return "txt"
