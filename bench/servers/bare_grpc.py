"""An echo as little as grpcio allows, for tritonclient: bytes in, bytes out.  python bare_grpc.py aio|sync PORT

Nothing is parsed: the last KB of a request is its tensor, and all else of the answer is written before the first one.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

SIZE_BYTES = 1024
METHOD = "inference.GRPCInferenceService"


def head() -> bytes:
    """Return the answer up to the bytes of its tensor."""
    answer = service_pb2.ModelInferResponse(model_name="echo", model_version="1")
    answer.outputs.add(name="result", datatype="UINT8", shape=[SIZE_BYTES])
    answer.raw_output_contents.append(bytes(SIZE_BYTES))
    written: bytes = answer.SerializeToString()
    return written[:-SIZE_BYTES]


HEAD = head()


def infer(body: bytes, context: Any) -> bytes:
    """Answer on one of the server's threads."""
    return HEAD + body[-SIZE_BYTES:]


async def infer_async(body: bytes, context: Any) -> bytes:
    """Answer on the event loop."""
    return HEAD + body[-SIZE_BYTES:]


def add(server: Any, method: Any, port: int) -> None:
    """Have a server answer at that port."""
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(method)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(METHOD, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")


async def serve_on_loop(port: int) -> None:
    """Serve until the process ends."""
    server = grpc.aio.server()
    add(server, infer_async, port)
    await server.start()
    await server.wait_for_termination()


def serve_on_threads(port: int) -> None:
    """Serve until the process ends."""
    server = grpc.server(ThreadPoolExecutor(32))
    add(server, infer, port)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    kind, number = sys.argv[1:]
    if kind == "aio":
        import uvloop

        uvloop.run(serve_on_loop(int(number)))
    else:
        serve_on_threads(int(number))
