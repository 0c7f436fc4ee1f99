"""Answers in parts, read while the rest is being made:  python streaming.py"""

import asyncio
import contextlib
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
                yield word
                told += 1
        finally:
            request["told"] = told

    def whole(self, request: fastpipe.Request, chunks: list[Any]) -> str:
        """Return what a plain call gets."""
        return " ".join(chunks)


def main() -> None:
    """Read a stream, read several side by side, leave one, and call the same pipe as if there were no streams."""
    with fastpipe.Pipe(backend=Tell, instance_num=2) as pipe:
        request = {"data": "pipe"}
        print("stream:  ", list(pipe.stream(request)))
        print("then:    ", request)

        async def read(name: str) -> list[str]:
            return [word async for word in pipe.astream({"data": name}, timeout=10)]

        async def read_both() -> list[list[str]]:
            return await asyncio.gather(read("pipe"), read("node"))

        print("tasks:   ", [len(words) for words in asyncio.run(read_both())])

        with contextlib.closing(pipe.stream({"data": "song"}, buffer=4)) as words:
            print("enough:  ", [next(words) for _ in range(3)])

        print("call:    ", pipe({"data": "node"})["result"])
    print("requests:", {name: count for name, count in pipe.stats()["requests"].items() if count})


if __name__ == "__main__":
    main()
