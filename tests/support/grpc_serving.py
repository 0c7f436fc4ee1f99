"""A server of gRPC in the process of a test, on a thread with an event loop of its own; and what its clients say."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from helpers import WAIT_S, Gate

from fastpipe import Backend, DecodeError, Pipe, QueueFull, Request
from fastpipe.serve.exchange import Limits
from fastpipe.serve.grpc_messages import inference
from fastpipe.serve.grpc_server import GrpcServer
from fastpipe.serve.http import Service, Settings
from fastpipe.serve.repository import Repository
from fastpipe.serve.signature import Signature

LIMITS = ("body_bytes", "json_bytes", "buffered_bytes", "write_s")


class Served:
    """What a test has of a running server."""

    def __init__(self, models: Mapping[str, Any], signatures: Mapping[str, Signature], **options: Any) -> None:
        control = options.pop("control", False)
        limits = {name: options.pop(name) for name in LIMITS if name in options}
        settings = {name: options.pop(name) for name in ("token", "hide_errors") if name in options}
        self.repository = Repository(models, signatures=signatures, control=control)
        self.service = Service(self.repository, Settings(limits=Limits(**limits), **settings))
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="server of the test", daemon=True)
        self.thread.start()
        self.server: Any = None
        self.port = 0
        self.options = options

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the server's loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WAIT_S * 3)

    async def start(self) -> None:
        await self.repository.open()
        self.server = GrpcServer(self.service, self.options.pop("address", "127.0.0.1:0"), **self.options)
        self.port = await self.server.start()

    async def end(self) -> None:
        if self.server is not None:
            await self.server.stop(0)
        await self.repository.aclose(WAIT_S)
        rest = asyncio.all_tasks() - {asyncio.current_task()}  # what the clients of a test have left hanging
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def served(
    models: Mapping[str, Any], signatures: Mapping[str, Signature] | None = None, **options: Any
) -> Iterator[Served]:
    """Serve models, by name: pipes, or what a repository builds pipes of."""
    made = Served(models, signatures or {}, **options)
    try:
        made.run(made.start())
        yield made
    finally:
        made.run(made.end())
        made.loop.call_soon_threadsafe(made.loop.stop)
        made.thread.join(WAIT_S)
        made.loop.close()


# ---- models ----


class Echo(Backend):
    """Answers what it was given; raises what is an error's name."""

    max_batch = 8
    keeps_input = True

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            data = request["data"]
            if isinstance(data, bytes) and data.startswith(b"raise "):
                raise {b"full": QueueFull, b"decode": DecodeError, b"value": ValueError}[data[6:]]("in words")
            request["result"] = data


NUMBERS = {
    "BOOL": np.bool_,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
"""The data types that NumPy has, too."""


@contextmanager
def standing_still() -> Iterator[tuple[Gate, Pipe, Served]]:
    """Serve a pipe, "m", whose backend stands still until it is opened; batches of one."""
    backend = Gate()
    backend.max_batch = 1
    with Pipe({"gate": {"backend": backend}}) as pipe, served({"m": pipe}) as made:
        try:
            yield backend, pipe, made
        finally:
            backend.opened.set()


# ---- clients ----


def tensor(name: str, array: np.ndarray[Any, Any], datatype: str) -> Any:
    made = _tritonclient().InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def element(data: bytes) -> list[Any]:
    return [tensor("data", np.array([data], object), "BYTES")]


def begun(client: Any, data: bytes, **how: Any) -> tuple[Any, Future[Any]]:
    """Start a call; return what cancels it, and the future of its answer."""
    answer: Future[Any] = Future()

    def arrived(result: Any, error: Any) -> None:
        if error is None:
            answer.set_result(result.as_numpy("result").tolist())
        else:
            answer.set_exception(error)

    return client.async_infer("m", element(data), arrived, **how), answer


def raw_call(server: Served, request: Any, method: str = "ModelInfer", answer: str = "ModelInferResponse") -> Any:
    """Call without tritonclient, which sends raw contents only."""
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        body = request if isinstance(request, bytes) else request.SerializeToString()
        return inference()[answer].FromString(call(body, timeout=WAIT_S))


def refusal(server: Served, request: Any, **how: Any) -> tuple[str, str]:
    """The code and the words with which a call is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        raw_call(server, request, **how)
    return caught.value.code().name, caught.value.details()


def typed(datatype: str, shape: list[int], **contents: Any) -> Any:
    request = inference()["ModelInferRequest"](model_name="echo", id="7")
    made = request.inputs.add(name="data", datatype=datatype, shape=shape)
    made.contents.SetInParent()
    for name, elements in contents.items():
        getattr(made.contents, name).extend(elements)
    return request


def _tritonclient() -> Any:
    import tritonclient.grpc

    return tritonclient.grpc
