"""Answers in parts, read while the rest is being made: ``python examples/streaming``."""

import asyncio
import contextlib

from tell import build


def main() -> None:
    """Read a stream, read several side by side, leave one, and call the same pipe as if there were no streams."""
    with build() as pipe:
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
