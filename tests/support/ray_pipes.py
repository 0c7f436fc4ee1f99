"""Backends and replicas for the tests of Ray Serve. Ray's processes import it: the folder is on their PYTHONPATH."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from fastpipe import DeviceLost, PerRequest, QueueFull, Request, Streaming, cancelled
from fastpipe.scale.ray import Replica


class Looks(PerRequest):
    """Says what it got: whether an array is writable and owns its memory."""

    def run(self, request: Request) -> None:
        array = request["data"]
        request["is_writable"], request["owns_memory"] = array.flags.writeable, array.flags.owndata
        request["result"] = array


class NeedsTwo(Exception):
    """Its pickle cannot be loaded: the constructor wants more than the message."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


class Fails(PerRequest):
    """Raises what the request asks for."""

    retry_alone = False

    def run(self, request: Request) -> None:
        kinds = {
            "own": lambda: LookupError("no such page"),
            "full": lambda: QueueFull("the queue is full"),
            "needs two": lambda: NeedsTwo("a page", "is torn"),
            "device": lambda: DeviceLost("the GPU has fallen off the bus"),
        }
        if request["data"] in kinds:
            raise kinds[request["data"]]()
        request["result"] = request["data"]


class RunsUntilCancelled(PerRequest):
    """Does not end by itself."""

    def run(self, request: Request) -> None:
        while not cancelled():
            time.sleep(0.01)


class Spells(Streaming):
    """Hands on letter by letter; knows no ``!``, and does not end at a ``?``."""

    def run(self, request: Request) -> Iterator[str]:
        for letter in request["data"]:
            if letter == "!":
                raise LookupError("no letter '!'")
            while letter == "?":
                yield letter
                time.sleep(0.01)
            yield letter


class Runs(PerRequest):
    """Writes down what runs in which process, and waits until there is a file."""

    def __init__(self, *, file: str, gate: str) -> None:
        self.file = file
        self.gate = Path(gate)

    def run(self, request: Request) -> None:
        with Path(self.file).open("a") as file:
            file.write(f"{request['data']} {os.getpid()}\n")
        while not self.gate.exists():
            time.sleep(0.01)
        request["result"] = request["data"]


class Words(Replica):
    """A replica that tells its process, and answers a gRPC service of the tests' own."""

    async def pid(self) -> int:
        return os.getpid()

    async def Read(self, message: BytesValue) -> StringValue:
        answer = await self.answer({"data": message.value.decode()})
        return StringValue(value=answer["result"])


def add_WordsServicer_to_server(servicer: Any, server: Any) -> None:
    """What ``protoc`` would write of a service ``words.Words`` with one method, ``Read``."""
    handler = grpc.unary_unary_rpc_method_handler(
        servicer.Read,
        request_deserializer=BytesValue.FromString,
        response_serializer=StringValue.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("words.Words", {"Read": handler}),))
