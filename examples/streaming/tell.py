"""A backend that answers in parts, and a pipe of it."""

import time
from collections.abc import Iterator
from typing import Any

import fastpipe

STORY = {"pipe": "A pipe has nodes .", "node": "A node has instances , each with a batch .", "song": "la " * 1_000}


class Tell(fastpipe.Streaming):
    """Tell a story word by word, as a language model does; up to four stories take turns."""

    max_batch = 4

    def run(self, request: fastpipe.Request) -> Iterator[str]:
        """Yield one word after the other. Where the reader leaves, or is late, the ``finally`` block runs."""
        told = 0
        try:
            for word in STORY[request["data"]].split():
                time.sleep(0.005)  # stands for a model's work on a word
                yield word
                told += 1
        finally:
            request["told"] = told

    def whole(self, request: fastpipe.Request, chunks: list[Any]) -> str:
        """Return what a plain call gets."""
        return " ".join(chunks)


def build() -> fastpipe.Pipe:
    """Return a pipe of one node; two of its instances tell at the same time."""
    return fastpipe.Pipe(tell={"backend": Tell, "instance_num": 2})
