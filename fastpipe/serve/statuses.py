"""What becomes of each error on the wire: one table, for HTTP, for gRPC and for docs/serving.md.

An error is looked up by its class, then by the classes that this one extends. What is in no row is a backend's own
exception: 500.
"""

from __future__ import annotations

from typing import NamedTuple

from fastpipe.errors import (
    BackendError,
    BackendHung,
    CallLoop,
    ConfigError,
    DecodeError,
    DeviceLost,
    ForkedPipe,
    KernelError,
    MissingExtra,
    NoResult,
    PipeClosed,
    PipeError,
    QueueFull,
    ReplicaLost,
    RequestTimeout,
    RestartLimit,
    SequenceError,
    UnknownNode,
    WorkerDied,
)
from fastpipe.faults import text_of

__all__ = [
    "RETRY_AFTER_S",
    "STATUSES",
    "AnswerNotServed",
    "ClientGone",
    "HeadersTooLarge",
    "InvalidRequest",
    "NotReady",
    "NotServed",
    "RequestTooLarge",
    "ServeError",
    "SlowClient",
    "Status",
    "TooBusy",
    "Unauthorized",
    "UnknownModel",
    "WrongMethod",
    "message_of",
    "status_of",
]

RETRY_AFTER_S = 1
"""What the header ``Retry-After`` says, where there is one: a queue is shorter after a second, or its node is lost."""


# ---- what a server itself has to say ---------------------------------------------------------------------------


class ServeError(PipeError):
    """Base of the errors of a server; no pipe raises them."""


class InvalidRequest(ServeError, ValueError):
    """A request of the protocol is malformed: a wrong name, shape, datatype or length, or no JSON."""


class UnknownModel(ServeError, LookupError):
    """No model, or version of it, has that name; or nothing is at that address."""


class NotReady(ServeError):
    """The model is being loaded, was unloaded, or its pipe is not healthy; or the server is shutting down."""


class NotServed(ServeError):
    """The protocol has it, and this server does not: shared memory, trace settings."""


class RequestTooLarge(ServeError):
    """A body, or what it is when decompressed, or the JSON in it, is larger than the server takes."""


class HeadersTooLarge(ServeError):
    """The first line and the headers of a request are larger than the server takes."""


class TooBusy(ServeError):
    """The bodies of requests in flight have as many bytes as the server keeps, or it has as many connections."""


class Unauthorized(ServeError):
    """The server asks for a token, and the request has none, or another one."""


class WrongMethod(ServeError):
    """There is something at the address, but not for this method."""


class SlowClient(ServeError):
    """The client did not send its request, or take its answers, within the time that it has for that."""


class ClientGone(ServeError):
    """The client left before its answer was there; its requests were cancelled, and nobody reads this."""


class AnswerNotServed(ServeError):
    """What the pipe answered cannot be written as a tensor; the message says what the pipe has to do instead."""


# ---- the table -------------------------------------------------------------------------------------------------


class Status(NamedTuple):
    """What an error is on the wire."""

    http: int
    grpc: str
    """The name of a ``grpc.StatusCode``."""
    retry_after: bool = False
    """Whether the same request may succeed a little later: the header ``Retry-After`` says when."""


_INTERNAL = Status(500, "INTERNAL")

STATUSES: dict[type[BaseException], Status] = {
    InvalidRequest: Status(400, "INVALID_ARGUMENT"),
    DecodeError: Status(400, "INVALID_ARGUMENT"),
    KernelError: Status(400, "INVALID_ARGUMENT"),
    NoResult: Status(400, "INVALID_ARGUMENT"),
    SequenceError: Status(400, "INVALID_ARGUMENT"),
    ConfigError: Status(400, "INVALID_ARGUMENT"),
    Unauthorized: Status(401, "UNAUTHENTICATED"),
    UnknownModel: Status(404, "NOT_FOUND"),
    UnknownNode: Status(404, "NOT_FOUND"),
    WrongMethod: Status(405, "UNIMPLEMENTED"),
    SlowClient: Status(408, "DEADLINE_EXCEEDED"),
    RequestTooLarge: Status(413, "RESOURCE_EXHAUSTED"),
    QueueFull: Status(429, "RESOURCE_EXHAUSTED", retry_after=True),
    HeadersTooLarge: Status(431, "RESOURCE_EXHAUSTED"),
    ClientGone: Status(499, "CANCELLED"),
    AnswerNotServed: _INTERNAL,
    BackendError: _INTERNAL,
    BackendHung: _INTERNAL,
    CallLoop: _INTERNAL,
    RestartLimit: _INTERNAL,
    WorkerDied: _INTERNAL,
    NotServed: Status(501, "UNIMPLEMENTED"),
    MissingExtra: Status(501, "UNIMPLEMENTED"),
    NotReady: Status(503, "UNAVAILABLE", retry_after=True),
    TooBusy: Status(503, "RESOURCE_EXHAUSTED", retry_after=True),
    PipeClosed: Status(503, "UNAVAILABLE", retry_after=True),
    ReplicaLost: Status(503, "UNAVAILABLE", retry_after=True),
    ForkedPipe: Status(503, "UNAVAILABLE", retry_after=True),
    DeviceLost: Status(503, "UNAVAILABLE", retry_after=True),
    MemoryError: Status(503, "RESOURCE_EXHAUSTED", retry_after=True),
    RequestTimeout: Status(504, "DEADLINE_EXCEEDED"),
}
"""By class, in the order of the statuses; docs/serving.md has the same rows, and a test compares them."""


def status_of(error: BaseException) -> Status:
    """Return what an error is on the wire; a backend's own exception is 500."""
    for kind in type(error).__mro__:
        found = STATUSES.get(kind)
        if found is not None:
            return found
    return _INTERNAL


def message_of(error: BaseException, *, hide: bool = False) -> str:
    """Return what a client is told of an error: one text, never empty.

    Args:
        error: fastpipe's own have their message alone; of all others the type comes first.
        hide: of an error that is neither fastpipe's nor the request's fault, say only where the reason is to be found.
    """
    if isinstance(error, PipeError):
        text = text_of(error) or type(error).__name__
    elif hide:
        text = "the model failed; the server's log has the reason"
    else:
        text = f"{type(error).__name__}: {text_of(error)}"
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()  # no form has half a surrogate
