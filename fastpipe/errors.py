"""Every error fastpipe raises, on one page, ordered by who has to act.

A backend's own exception is never replaced: it reaches the caller with its type, its traceback and a note
that names node, backend, instance and batch size. The classes here are for what fastpipe itself has to say.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Self, cast

__all__ = [
    "BackendError",
    "BackendHung",
    "CallLoop",
    "ConfigError",
    "DecodeError",
    "DeviceLost",
    "ForkedPipe",
    "GraphError",
    "InternalError",
    "ItemErrors",
    "KernelError",
    "MissingExtra",
    "Mistake",
    "PipeClosed",
    "PipeError",
    "QueueFull",
    "RequestTimeout",
    "RestartLimit",
    "UnknownNode",
    "WorkerDied",
]


class PipeError(Exception):
    """Base of all errors that fastpipe raises on its own account.

    Each can be copied and pickled, whatever its constructor takes: process pools send them. As of any exception, notes
    and attributes come along; cause and traceback do not.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        _, arguments, *state = cast("tuple[Any, ...]", super().__reduce__())
        return _restored, (type(self), arguments), *state


def _restored(kind: type[PipeError], arguments: tuple[Any, ...]) -> PipeError:
    """Make an error of its message; the constructor of ``kind`` may want what the message was made from."""
    error: PipeError = kind.__new__(kind, *arguments)
    built_in: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    built_in.__init__(error, *arguments)  # ImportError and others keep more than BaseException.__new__ does
    return error


# ---- who wrote the configuration -------------------------------------------------------------------------------


_PLACE = re.compile(r"node (?P<node>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")(?:: (?P<key>[\w.:]*\w): )?")


class Mistake(str):
    """A sentence that says what is wrong with a description, with the place of it.

    Most begin with it, ``"node 'resize': max_h: must be ..."``, and it is read off there; others are told theirs.
    """

    node: str | None
    """The name of the node; None: the mistake is not one node's."""
    key: str | None
    """As it is written, or would be; None: the mistake is not one key's."""

    def __new__(cls, sentence: str, node: str | None = None, key: str | None = None) -> Self:
        made = super().__new__(cls, sentence)
        made.node, made.key = (sentence.node, sentence.key) if isinstance(sentence, Mistake) else (node, key)
        place = _PLACE.match(sentence)
        if place is not None:
            made.node = ast.literal_eval(place["node"])
            made.key = place["key"] or made.key
        return made


class ConfigError(PipeError, ValueError):
    """The description of a pipe is wrong; nothing was started.

    ``problems`` has one sentence per mistake; each is a :class:`Mistake`, which knows its node and key.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(map(Mistake, problems))
        if len(problems) == 1:
            super().__init__(problems[0])
        else:
            lines = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, 1))
            super().__init__(f"{len(problems)} mistakes:\n{lines}")


class GraphError(ConfigError):
    """The nodes are fine, but do not make a graph: a cycle, a join without ``map``, an unknown ``next``."""


class MissingExtra(PipeError, ImportError):
    """A backend needs an optional library that is not installed; the message names the extra to install."""

    def __init__(self, what: str, extra: str, cause: ImportError) -> None:
        needs = f"{what} needs {cause.name or cause}"
        super().__init__(f"{needs}: pip install 'fastpipe-engine[{extra}]'", name=cause.name)


# ---- who calls the pipe ----------------------------------------------------------------------------------------


class UnknownNode(PipeError, KeyError):
    """A request's ``node_name`` is missing or names no node at which it may enter; or a call's ``entry`` names none."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class QueueFull(PipeError):
    """A node's queue has as many requests, or bytes, as it may: the request was refused, or shed to make room."""


class RequestTimeout(PipeError, TimeoutError):
    """A request did not end within its ``timeout``, or found no room in a queue for so long."""


class RestartLimit(PipeError):
    """A request entered the graph again and again (``restart``) and no filter let it out."""


class PipeClosed(PipeError):
    """The pipe was closed before the request ended, or before it was made."""


class ForkedPipe(PipeError):
    """The pipe was built before ``os.fork()``: its threads live in the parent. Build a new one in the child."""


# ---- who wrote the backend -------------------------------------------------------------------------------------


class BackendError(PipeError):
    """A backend broke its contract (a wrong number of results, a status nobody knows)."""


class BackendHung(PipeError):
    """A backend did not return within its node's ``hang_timeout``. ``stacks`` says where all threads were then."""

    def __init__(self, message: str, stacks: str = "") -> None:
        super().__init__(message)
        self.stacks = stacks


class CallLoop(PipeError):
    """A backend calls its own pipe, and waits for an instance that waits for it: it would wait for ever."""


class DeviceLost(PipeError):
    """Raised *by* a backend whose device does not work any more: the node fails every further request at once."""


class ItemErrors(PipeError):
    """Raised *by* a backend to fail some requests of a batch: index in the batch -> that request's exception.

    The requests that are not named succeeded and are not run again.
    """

    def __init__(self, errors: Mapping[int, BaseException]) -> None:
        self.errors = dict(errors)
        super().__init__("; ".join(f"item {i}: {type(e).__name__}: {e}" for i, e in sorted(self.errors.items())))


class DecodeError(PipeError, ValueError):
    """The bytes of a request are not an image this decoder can read."""


class KernelError(PipeError, ValueError):
    """An array handed to a kernel has the wrong shape, dtype or layout; the message has expected and got."""


# ---- us --------------------------------------------------------------------------------------------------------


class WorkerDied(PipeError):
    """What ran this request ended, not by the backend's doing: the exception that ended it is the cause."""


class InternalError(PipeError):
    """A bug in fastpipe: please report it with the traceback."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, or an empty string."""
    by_folded = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), by_folded, n=1, cutoff=0.6)
    return f"; did you mean {by_folded[close[0]]!r}?" if close else ""
