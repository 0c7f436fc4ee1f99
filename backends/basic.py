"""Plumbing: backends that move, add and remove keys, read files, log, and help in tests.

None of them minds the size of a batch. Where a backend's business is not the result itself (Add, Copy, Move, Remove,
Logger), a request that has no result gets its data as the result, so that the chain goes on.
"""

from __future__ import annotations

import logging
import time as clock
from pathlib import Path
from typing import Annotated, Any, Literal

from fastpipe.contract import Backend, Between, PerRequest, Request
from fastpipe.errors import BackendError
from fastpipe.summaries import summarize

__all__ = [
    "Add",
    "Copy",
    "Identity",
    "Logger",
    "Move",
    "Pow",
    "RaiseRuntimeError",
    "ReadFile",
    "Remove",
    "Sleep",
    "ThrowIfNoResult",
    "pass_on",
    "without_long_names",
]

_LONGEST_NAME = 255  # what most file systems allow for one part of a path


class Identity(Backend):
    """The result is the data, the same object."""

    keeps_input = True

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = request["data"]


class Pow(Backend):
    """The result is the data times itself: a number, or an array item by item."""

    keeps_input = True

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            data = request["data"]
            request["result"] = data * data


class Sleep(Backend):
    """Sleeps for a while once per batch, with the GIL released; the result is the data.

    Args:
        time: milliseconds.
    """

    keeps_input = True

    def __init__(self, *, time: Annotated[float, Between(0, 3_600_000)] = 0.0) -> None:
        self.duration_s = time / 1000

    def forward(self, batch: list[Request]) -> None:
        clock.sleep(self.duration_s)
        for request in batch:
            request["result"] = request["data"]


class Add(Backend):
    """Sets a key of each request; one that is there is replaced. The data becomes the result where there is none.

    Args:
        key: which.
        value: the same object in every request.
    """

    keeps_input = True

    def __init__(self, *, key: str, value: Any) -> None:
        self.key = key
        self.value = value

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            pass_on(request)
            request[self.key] = self.value


class Copy(Backend):
    """Sets a key to what is under another one, the same object. The data becomes the result where there is none.

    Args:
        source: the key that is there.
        target: the key that is set.

    Raises:
        KeyError: if a request has no ``source``.
    """

    keeps_input = True

    def __init__(self, *, source: str, target: str) -> None:
        self.source = source
        self.target = target

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            pass_on(request)
            request[self.target] = request[self.source]


class Move(Backend):
    """Renames a key. The data becomes the result where there is none.

    Args:
        source: its name.
        target: its new name.

    Raises:
        KeyError: if a request has no ``source``.
    """

    keeps_input = True

    def __init__(self, *, source: str, target: str) -> None:
        self.source = source
        self.target = target

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            pass_on(request)
            request[self.target] = request.pop(self.source)


class Remove(Backend):
    """Removes keys where they are there; if ``result`` is one of them, the chain ends for the request.

    Args:
        key: which; several with commas, or as a list.
    """

    keeps_input = True

    def __init__(self, *, key: list[str]) -> None:
        self.keys = key

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            pass_on(request)
            for key in self.keys:
                request.pop(key, None)

    def why_no_result(self, request: Request) -> str | None:
        return "" if "result" in self.keys else None  # it was told to


class ThrowIfNoResult(PerRequest):
    """Fails a request that has no result; for behind a step that may leave none: ``"S[A,(run)ThrowIfNoResult]"``.

    The filter ``run`` is needed, since by default a request without a result leaves the chain before this step.

    Args:
        message: the error's.
    """

    keeps_input = True

    def __init__(self, *, message: str = "there is no result") -> None:
        self.message = message

    def run(self, request: Request) -> None:
        if "result" not in request:
            raise BackendError(self.message)


class RaiseRuntimeError(Backend):
    """Raises RuntimeError for every request. In configurations its name is ``RuntimeError``; it is for tests.

    Args:
        message: the error's.
    """

    keeps_input = True

    def __init__(self, *, message: str = "raised on purpose, by the backend RuntimeError") -> None:
        self.message = message

    def forward(self, batch: list[Request]) -> None:
        raise RuntimeError(self.message)


class Logger(Backend):
    """Logs the keys of each request, with types and shapes, to a logger of the standard library; changes nothing.

    Args:
        message: begins each line.
        logger: the logger's name.
        level: as in ``logging``.
        keys: which keys to log with their values; None: all keys, with their types and shapes only.
    """

    keeps_input = True

    def __init__(
        self,
        *,
        message: str = "request",
        logger: str = "fastpipe",
        level: Literal["debug", "info", "warning", "error", "critical"] = "info",
        keys: list[str] | None = None,
    ) -> None:
        self.message = message
        self.logger = logging.getLogger(logger)
        self.level = logging.getLevelNamesMapping()[level.upper()]
        self.keys = keys

    def forward(self, batch: list[Request]) -> None:
        is_enabled = self.logger.isEnabledFor(self.level)
        for request in batch:
            if is_enabled:
                self.logger.log(self.level, "%s: %s", self.message, self._described(request))
            pass_on(request)

    def _described(self, request: Request) -> str:
        if self.keys is None:
            return ", ".join(f"{_visible(key)}: {_kind(value)}" for key, value in request.items())
        return ", ".join(f"{key}={request[key]!r}" for key in self.keys if key in request)


class ReadFile(PerRequest):
    """Reads the file at the path in the data; the result is its bytes. A file that cannot be read fails its request."""

    keeps_input = True

    def run(self, request: Request) -> None:
        try:
            request["result"] = Path(request["data"]).read_bytes()
        except OSError as error:
            raise without_long_names(error) from None


def without_long_names(error: OSError) -> OSError:
    """Return an error that names the file that was asked for in a few words, if its name is longer than names are."""
    if not isinstance(error.filename, str | bytes) or len(error.filename) <= _LONGEST_NAME:
        return error
    return type(error)(error.errno, error.strerror, str(summarize(error.filename)))


def pass_on(request: Request) -> None:
    """Make the data the result of a request that has none, so that the chain goes on."""
    if "result" not in request and "data" in request:
        request["result"] = request["data"]


def _visible(key: Any) -> str:
    """Return a key that a request has brought so that it cannot end the line, or steer a terminal."""
    return key if isinstance(key, str) and key.isprintable() else repr(key)


def _kind(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__}{tuple(shape)}"
