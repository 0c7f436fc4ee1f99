"""The steps around the model, and the configuration (``speech.toml``, beside this file).

The model sees 512 samples and the 64 before them.
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


def configuration() -> dict[str, Any]:
    """Return what ``speech.toml`` says, with the path of the model, a file of the package silero-vad."""
    nodes = tomllib.loads(Path(__file__).with_name("speech.toml").read_text())
    nodes["speech"]["model"] = distribution("silero-vad").locate_file(nodes["speech"]["model"])
    return nodes


class Frame(PerRequest):
    """512 samples, float32 from -1 to 1 -> the model's inputs. The last 64 are kept for the stream's next request."""

    stateful = True
    keeps_input = True

    def run(self, request: Request) -> None:
        samples = np.asarray(request["data"], np.float32)
        if samples.shape != (SAMPLES,):
            raise ValueError(f"expected {SAMPLES} samples, got an array of shape {samples.shape}")
        before = np.zeros(_SAMPLES_BEFORE, np.float32) if request["state"] is None else request["state"]
        request["state"] = samples[-_SAMPLES_BEFORE:].copy()
        request["result"] = {"input": np.concatenate([before, samples])[None], "sr": np.array(RATE_HZ, np.int64)}


class Probability(PerRequest):
    """The model's output -> the probability that somebody speaks."""

    keeps_input = True

    def run(self, request: Request) -> None:
        request["result"] = float(request["data"][0, 0])
