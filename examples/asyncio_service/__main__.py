"""A pipe behind an event loop: ``python examples/asyncio_service``.

Starts a line-based service on a free port of this machine, lets a hundred connections ask it, and shows how large the
batches were. A web framework's handler does the same: ``await pipe.acall(request)``.
"""

import argparse
import asyncio
import time
from pathlib import Path

import fastpipe


class Model(fastpipe.Backend):
    """Stands for a model: 5 ms for any batch of up to 16, without the GIL."""

    max_batch = 16

    def forward(self, batch: list[fastpipe.Request]) -> None:
        time.sleep(0.005)
        for request in batch:
            request["result"] = len(request["data"])


async def serve(pipe: fastpipe.Pipe, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each line with what the pipe says; a failure is that line's own."""
    while line := await reader.readline():
        try:
            answer = await pipe.acall({"data": line.rstrip(b"\n")})
            writer.write(f"{answer['result']}\n".encode())
        except Exception as error:
            writer.write(f"error: {error}\n".encode())
        await writer.drain()
    writer.close()


async def ask(port: int, text: str) -> str:
    """One connection, one question."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{text}\n".encode())
    answer = await reader.readline()
    writer.close()
    return answer.decode().strip()


async def main(graph: Path | None) -> None:
    """Start the service and ask it from a hundred connections at once."""
    with fastpipe.Pipe(model={"backend": Model, "instance_num": 2}) as pipe:
        server = await asyncio.start_server(lambda reader, writer: serve(pipe, reader, writer), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            answers = await asyncio.gather(*(ask(port, "x" * count) for count in range(100)))
        model = pipe.stats()["nodes"]["model"]
        print(f"{len(answers)} answers, all right: {answers == [str(count) for count in range(100)]}")
        print(f"{model['batches']} batches, {model['mean_batch']:.1f} requests each")
        if graph:
            graph.write_text(pipe.graph(stats=True).svg())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python examples/asyncio_service", description=__doc__.splitlines()[0])
    parser.add_argument("--graph", type=Path, metavar="FILE.svg", help="draw the graph with the numbers of the run")
    asyncio.run(main(parser.parse_args().graph))
