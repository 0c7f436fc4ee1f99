"""The health service that load balancers and Kubernetes ask: ``grpc.health.v1.Health``.

Its messages are described here, as those of the protocol are in ``grpc_messages``, and for the same reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from functools import cache
from typing import Any

from fastpipe.errors import MissingExtra
from fastpipe.serve.grpc_messages import DecodeError, MessageTypes, message_types

try:
    import grpc
except ImportError as missing:
    raise MissingExtra("fastpipe's gRPC server", "serve", missing) from missing

__all__ = ["SERVICE", "health_handlers"]

SERVICE = "grpc.health.v1.Health"

# Of the enum ServingStatus, which on the wire is a number as any other.
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3

LOOK_EVERY_S = 1.0
"""So often a watched server is looked at: nothing tells of a pipe that has lost a device."""


@cache
def _messages() -> MessageTypes:
    return message_types(
        "grpc.health.v1",
        {
            "HealthCheckRequest": "string service = 1",
            "HealthCheckResponse": "int32 status = 1",
            "HealthListRequest": "",
            "HealthListResponse": "map HealthCheckResponse statuses = 1",
        },
    )


def health_handlers(is_ready: Callable[[], bool], services: frozenset[str], stopping: asyncio.Event) -> Any:
    """Return the service's handlers, for ``grpc.aio.Server.add_generic_rpc_handlers``.

    Args:
        is_ready: whether the server can answer calls now; cheap, and called on the event loop.
        services: names that have its answer; the empty one, which stands for the server as a whole, has it too.
        stopping: set when the server takes no more calls: watches end.
    """
    types = _messages()
    request_type, response_type = types["HealthCheckRequest"], types["HealthCheckResponse"]

    def answer(body: bytes) -> bytes | None:
        service = request_type.FromString(body).service
        if service and service not in services:
            return None
        status = SERVING if is_ready() and not stopping.is_set() else NOT_SERVING
        return bytes(response_type(status=status).SerializeToString())

    async def check(body: bytes, context: Any) -> bytes:
        try:
            answered = answer(body)
        except DecodeError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not a HealthCheckRequest: {error}")
        if answered is not None:
            return answered
        await context.abort(grpc.StatusCode.NOT_FOUND, f"no such service; there are: {', '.join(sorted(services))}")
        raise AssertionError("abort() has not raised")  # for type checkers

    async def watch(body: bytes, context: Any) -> AsyncGenerator[bytes, None]:
        told = None
        unknown = bytes(response_type(status=SERVICE_UNKNOWN).SerializeToString())
        while True:
            try:
                answered = answer(body) or unknown
            except DecodeError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not a HealthCheckRequest: {error}")
            if answered != told:
                told = answered
                yield answered
            if stopping.is_set():
                return
            try:
                await asyncio.wait_for(stopping.wait(), LOOK_EVERY_S)
            except TimeoutError:
                continue

    async def list_all(_: bytes, __: Any) -> bytes:
        response = types["HealthListResponse"]()
        for service in ("", *sorted(services)):
            response.statuses[service].status = SERVING if is_ready() and not stopping.is_set() else NOT_SERVING
        return bytes(response.SerializeToString())

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Check": grpc.unary_unary_rpc_method_handler(check),
            "Watch": grpc.unary_stream_rpc_method_handler(watch),
            "List": grpc.unary_unary_rpc_method_handler(list_all),
        },
    )
