"""The steps around the model, and the configuration (``speech.toml``, beside this file).

The model sees 512 samples, and the 64 before them, and hands on what it remembers of the stream. Both are the state.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np

from fastpipe import PerRequest, Request

__all__ = ["RATE_HZ", "SAMPLES", "Frame", "Probability", "configuration"]

RATE_HZ = 16000
SAMPLES = 512
_SAMPLES_BEFORE = 64
_NOTHING_REMEMBERED = np.zeros((2, 1, 128), np.float32)


def configuration() -> dict[str, Any]:
    """Return what ``speech.toml`` says, with the whole path of the model.

    Raises:
        PackageNotFoundError: if the package silero-vad is not installed.
    """
    nodes = tomllib.loads(Path(__file__).with_name("speech.toml").read_text())
    node = nodes["speech"]
    node["model"] = distribution("silero-vad").locate_file(node["model"])
    return nodes


class Frame(PerRequest):
    """512 samples, float32 from -1 to 1, and the stream's state -> the model's inputs."""

    stateful = True
    keeps_input = True

    def run(self, request: Request) -> None:
        samples = np.asarray(request["data"], np.float32)
        if samples.shape != (SAMPLES,):
            raise ValueError(f"expected {SAMPLES} samples, got an array of shape {samples.shape}")
        before, remembered = request["state"] or (np.zeros(_SAMPLES_BEFORE, np.float32), _NOTHING_REMEMBERED)
        request["samples"] = samples
        request["result"] = {
            "input": np.concatenate([before, samples])[None],
            "state": remembered,
            "sr": np.array(RATE_HZ, np.int64),
        }


class Probability(PerRequest):
    """The model's outputs -> the probability that somebody speaks, and the stream's state for its next request."""

    keeps_input = True

    def run(self, request: Request) -> None:
        probability, remembered = request["data"]
        request["state"] = request.pop("samples")[-_SAMPLES_BEFORE:].copy(), remembered.copy()
        request["result"] = float(probability[0, 0])
