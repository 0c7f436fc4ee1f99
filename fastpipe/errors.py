"""Every error fastpipe raises, on one page, ordered by who has to act.

A backend's own exception is never replaced: it reaches the caller with its type, its traceback and a note
that names node, backend, instance and batch size. The classes here are for what fastpipe itself has to say.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Self, SupportsIndex, cast

__all__ = [
    "BackendError",
    "BackendHung",
    "CallLoop",
    "ConfigError",
    "DecodeError",
    "DeviceLost",
    "ForkedPipe",
    "GraphError",
    "ItemErrors",
    "KernelError",
    "MissingExtra",
    "Mistake",
    "NoResult",
    "PipeClosed",
    "PipeError",
    "QueueFull",
    "ReplicaLost",
    "RequestTimeout",
    "RestartLimit",
    "SequenceError",
    "UnknownNode",
    "WorkerDied",
]


Request = dict[str, Any]


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


# Of what a request has brought, an error shows no more than this: names, and keys, may be a stranger's.
LONGEST_SHOWN = 60
MOST_SHOWN = 16
# What is longer is nobody's misspelt name, and nobody looks through more of them for one.
LONGEST_NAME = 100
MOST_NAMES = 1000
# So alike are a word and its misspelling: twice the letters they share, by all letters of both.
NEAR = 0.6
AT_KEY = 0
Part = int | str | tuple[str | int, ...] | None
"""Where in a key's value a mistake is; see :class:`Mistake`."""


class Mistake(str):
    """A sentence that says what is wrong with a description, and where: ``"node 'resize': max_h: must be ..."``.

    Args:
        text: what is wrong; or a Mistake, which is copied. The sentence is made of it, once, here.
        node: the name of the node; None: the mistake is not one node's.
        key: of the node, as it is written, or would be; None: the mistake is not one key's.
        part: of the key's value: the column (1 is the first), or a word of it; of a table the keys that lead to what is
            wrong. ``AT_KEY``, also as the last of these: it is the key itself that is wrong, and the text names it.
            None: the value as a whole.
        sentence: for what is not said in that order.
    """

    text: str
    node: str | None
    key: str | None
    part: Part

    def __new__(
        cls,
        text: str,
        node: str | None = None,
        key: str | None = None,
        part: Part = None,
        *,
        sentence: str | None = None,
    ) -> Self:
        if isinstance(text, Mistake):
            node, key, part, sentence = text.node, text.key, text.part, str(text)
            text = text.text
        if sentence is None:
            where = "" if node is None else f"node {node!r}: "
            sentence = f"{where}{_shown_key(key, part)}{text}"
        made = super().__new__(cls, sentence)
        made.text, made.node, made.key, made.part = text, node, key, part
        return made


def _shown_key(key: str | None, part: Part) -> str:
    if isinstance(part, tuple):
        keys = part[:-2] if part[-1:] == (AT_KEY,) else part
        return ".".join(str(each) for each in (key, *keys) if each is not None) + ": "
    shown = "" if key is None or part == AT_KEY else f"{key}: "
    return f"{shown}column {part}: " if isinstance(part, int) and part != AT_KEY else shown


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
        install = f"pip install 'fastpipe-engine[{extra}]'"
        if cause.name is None and not isinstance(cause, ModuleNotFoundError):  # it is there, and does not load
            message = f"{what} cannot load what it needs ({cause}); if it is not installed whole: {install}"
        else:
            message = f"{what} needs {cause.name or cause}: {install}"
        super().__init__(message, name=cause.name)


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


class SequenceError(PipeError, ValueError):
    """A request does not say to which sequence it belongs (``state_of``), or goes on with one that is not known."""


class PipeClosed(PipeError):
    """The pipe was closed before the request ended, or before it was made."""


class ReplicaLost(PipeError):
    """The process, or the machine, that had the request is gone. It may have run; nobody else has got its answer."""


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


class NoResult(PipeError):
    """A step left its request without ``"result"``, and nothing after it gave one; the message names node and step.

    ``without_result = "end"`` in the configuration makes such a request end without an error, as in torchpipe.
    """


class DeviceLost(PipeError):
    """Raised *by* a backend whose device does not work any more: the node fails every further request at once."""

    node: str | None = None
    """The node that has lost it, where fastpipe tells a request so; None: a backend says it of its own device."""


class ItemErrors(PipeError):
    """Raised *by* a backend to fail some requests of a batch, each with an exception of its own.

    The requests that are not named succeeded and are not run again.

    Args:
        errors: pairs of a request of the batch, the dict itself, and its exception. Instead of the request its index
            may stand there, which is that in the list that ``forward`` was given, as it is when this is raised; and
            instead of pairs, a mapping of index to exception.
    """

    pairs: list[tuple[Any, Any]]
    """What was given, as it was given."""
    errors: dict[Any, Any]
    """Of these, what was given by index."""

    def __init__(
        self,
        errors: Mapping[Any, BaseException] | Iterable[tuple[Request | SupportsIndex, BaseException]],
    ) -> None:
        self.pairs = [(which, error) for which, error in (errors.items() if isinstance(errors, Mapping) else errors)]
        self.errors = {which: error for which, error in self.pairs if not isinstance(which, dict)}
        texts = []
        for which, error in self.pairs:
            name = "a request" if isinstance(which, dict) else f"item {which}"
            texts.append(f"{name}: {type(error).__name__}: {error}")
        super().__init__("; ".join(texts))

    def by_position(self, batch: Sequence[Request], handed: Sequence[Request]) -> dict[int, BaseException]:
        """Return the exceptions by their requests' positions in ``handed``; for whoever runs a backend.

        Args:
            batch: the list that ``forward`` was given, as it is now. Indices are those in it.
            handed: its requests as they were given. Requests are compared by identity: two equal ones are two.

        Raises:
            BackendError: if it names something that is no request of the batch, or one twice, or no exception for it;
                or an index, and the list has no longer the requests that it had.
        """
        position_of = {id(request): position for position, request in enumerate(handed)}
        is_kept = len(batch) == len(handed) and sorted(map(id, batch)) == sorted(map(id, handed))
        found: dict[int, BaseException] = {}
        for which, error in self.pairs:
            if isinstance(which, dict):
                position = position_of.get(id(which))
                said = "a dict that is none of the batch's requests (an equal one is another one)"
            else:
                index = _index(which)
                position, said = None, f"item {which!r:.100}"
                if index is not None and not is_kept:
                    raise BackendError(
                        f"ItemErrors names item {which} of a list whose requests are no longer those that forward() "
                        "was given: name the request itself, ItemErrors([(request, error)])"
                    ) from self
                if index is not None and 0 <= index < len(batch):
                    position = position_of[id(batch[index])]
            if position is None:
                raise BackendError(f"ItemErrors for a batch of {len(handed)} names {said}") from self
            if position in found:
                raise BackendError(f"ItemErrors for a batch of {len(handed)} names {said} a second time") from self
            if not isinstance(error, BaseException):
                raise BackendError(
                    f"ItemErrors for a batch of {len(handed)} has {error!r:.100} for item {position}: no exception"
                ) from self
            found[position] = error
        return found


def _index(which: Any) -> int | None:
    """Return an index as an int, NumPy's too; None: it is none, as are True and False."""
    if isinstance(which, bool):
        return None
    try:
        return operator.index(which)
    except TypeError:
        return None


class DecodeError(PipeError, ValueError):
    """The bytes of a request are not an image this decoder can read."""


class KernelError(PipeError, ValueError):
    """An array handed to a kernel has the wrong shape, dtype or layout; the message has expected and got."""


# ---- us --------------------------------------------------------------------------------------------------------


class WorkerDied(PipeError):
    """What ran this request ended, not by the backend's doing: the exception that ended it is the cause."""


def nearest(name: object, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, or an empty string.

    Quick, whatever a request has brought: a name that is longer than names are, or the thousandth key, is near to none.
    """
    if not isinstance(name, str) or len(name) > LONGEST_NAME:
        return ""
    folded = name.lower()
    own_letters = dict.fromkeys(map(ord, folded))
    by_folded = {}
    for other in islice(known, MOST_NAMES):
        if len(other) <= LONGEST_NAME:
            lower = other.lower()
            shared_count = len(lower) - len(lower.translate(own_letters))
            if 2 * shared_count >= NEAR * (len(lower) + len(folded)):  # difflib takes ten times as long to say no
                by_folded[lower] = other
    close = difflib.get_close_matches(folded, by_folded, n=1, cutoff=NEAR)
    return f"; did you mean {by_folded[close[0]]!r}?" if close else ""


def in_brief(value: object) -> str:
    """Return what a request has brought where a name was expected: a text by its beginning, of all else the type."""
    kind = type(value)
    if isinstance(value, str):
        start = repr(str(value[: LONGEST_SHOWN + 1]))
        if len(start) <= LONGEST_SHOWN + len("''"):
            return start
        return f"{start[:LONGEST_SHOWN]}... ({len(value)} characters)"
    if value is None or kind in (bool, float) or (isinstance(value, int) and value.bit_length() <= 64):
        return repr(value)
    return f"of type {kind.__name__}"


def keys_in_brief(keys: Iterable[object]) -> str:
    """Return a request's keys that are text, in order; of many, or of long ones, only the first."""
    names = [key for key in keys if isinstance(key, str)]
    shown = ", ".join(map(in_brief, map(str, sorted(names[:MOST_SHOWN]))))
    return f"[{shown}]" if len(names) <= MOST_SHOWN else f"[{shown}, ...] and {len(names) - MOST_SHOWN} more"
