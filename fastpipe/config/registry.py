"""Names of backends: what ships in the box, what was registered, what other packages offer, and ``"module:Name"``.

A name is looked up in that order, whatever its case. The box is a table of names; a module is imported when a
configuration first names something in it, and an entry point when nothing else has its name.

Whoever writes a configuration therefore runs code. For one that somebody else may have written (a record has one) there
is ``distrusting``: within it, names mean what computes, of what is in the box, and nothing else is imported.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

from fastpipe.contract import Backend, Container, PerRequest
from fastpipe.errors import ConfigError, MissingExtra, Mistake, nearest
from fastpipe.forks import ProcessLock
from fastpipe.streaming import Streaming

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["built_in_names", "composer", "distrusting", "find", "import_object", "known_names", "register", "resolve"]

ENTRY_POINT_GROUP = "fastpipe.backends"

# Looked up, not imported: fastpipe/ does not know the box, but for where its table is.
_box: Any = importlib.import_module("fastpipe.backends.box")
_BUILT_IN: dict[str, tuple[str, str, str]] = _box.BUILT_IN
_NEEDS_TRUST: frozenset[str] = _box.NEEDS_TRUST
_REGISTERED: dict[str, tuple[str, Any, type[Backend] | Backend]] = {}  # folded name -> name, as given, resolved
_entry_points: dict[str, EntryPoint] | None = None
_distrust: ContextVar[str] = ContextVar("fastpipe distrust", default="")  # what to do about it; empty: all is trusted
_lock = ProcessLock()  # guards writing _REGISTERED and reading the entry points once


def register(name: str, backend: Any, *, replace: bool = False) -> None:
    """Make ``backend`` known as ``name``, in any case, to every configuration of this process.

    Args:
        name: without ``:``, brackets or spaces.
        backend: a Backend subclass, an instance of one, or a function of one item.
        replace: the name may mean something else so far, which is forgotten: a cell of a notebook that is run again
            makes its class anew. Pipes that are built keep what they were built of.

    Raises:
        ConfigError: if the name is that of a backend which ships with fastpipe; if it already means something else, and
            is not to be replaced.
    """
    if not isinstance(name, str) or not name or not name.replace("_", "").replace("-", "").replace(".", "").isalnum():
        raise ConfigError(f"register: a name has letters, digits, '_', '-' and '.', got {name!r}")
    resolved = _from_object(backend, repr(name))
    folded = name.lower()
    if folded in _BUILT_IN:
        raise ConfigError(f"register: {name!r} is the name of a backend that ships with fastpipe")
    with _lock.of_this_process:
        known = _REGISTERED.get(folded)
        if known is not None and known[1] is not backend and not replace:
            raise ConfigError(
                f"register: {name!r} is already the name of {known[1]!r}; replace=True makes it mean something else"
            )
        if known is None or known[1] is not backend:
            _REGISTERED[folded] = (name, backend, resolved)


@contextmanager
def distrusting(remedy: str) -> Iterator[None]:
    """Let names mean only backends of the box that compute, within a ``with`` statement and on this thread.

    Refused are ``"module:Name"``, what was registered, what other packages offer, and those of the box that read or
    write files, or run code, which their parameters name: nothing is imported for any of them.

    Args:
        remedy: ends the error of what is refused: how the reader says that it is to be trusted.
    """
    token = _distrust.set(remedy)
    try:
        yield
    finally:
        _distrust.reset(token)


def _refuse_if_distrusted(name: str, why: str) -> None:
    remedy = _distrust.get()
    if remedy:
        raise ConfigError(f"{name!r} {why}, and the configuration may be anybody's: {remedy}")


def find(name: str) -> type[Backend] | Backend:
    """Return what ``name`` means; a function is returned as the backend class made of it.

    Raises:
        ConfigError: if nothing has that name (with the nearest that exists), or what has it is no backend.
        MissingExtra: if it ships in the box, but needs a library that is not installed.
    """
    if ":" in name:
        return _from_object(import_object(name), repr(name))
    folded = name.lower()
    if folded in _NEEDS_TRUST:
        _refuse_if_distrusted(name, "opens files, or runs code, that its parameters or a request name")
    elif folded not in _BUILT_IN:
        _refuse_if_distrusted(name, "is not in the box")
    if folded in _BUILT_IN:
        return _from_box(*_BUILT_IN[folded])
    if folded not in _REGISTERED:
        entry_point = _other_packages().get(folded)
        if entry_point is None:
            raise ConfigError(Mistake(f"no backend is named {name!r}{nearest(name, known_names())}", part=name))
        _load(entry_point)
    return _REGISTERED[folded][2]


def resolve(thing: Any) -> type[Backend] | Backend:
    """Return the backend that ``thing`` stands for: a name, a Backend subclass or instance, a function of one item."""
    return find(thing) if isinstance(thing, str) else _from_object(thing, repr(thing))


def composer() -> type[Container]:
    """Return what an instance of a node is whose keys have ``&``: a container of several backends."""
    return cast("type[Container]", _from_box(*_box.COMPOSER))


def known_names() -> list[str]:
    """Return every name a configuration may use, sorted; nothing is imported for it."""
    names = set(built_in_names()) | {name for name, _, _ in _REGISTERED.values()}
    names.update(entry_point.name for folded, entry_point in _other_packages().items() if folded not in _REGISTERED)
    return sorted(names, key=str.lower)


def built_in_names() -> list[str]:
    """Return the names of what is in the box, as they are written."""
    return [name for name, _, _ in _BUILT_IN.values()]


def import_object(path: str) -> Any:
    """Return the object that ``"package.module:Name"`` (or ``"module:Outer.inner"``) names.

    Raises:
        ConfigError: if there is no such module or name; what the module itself raises while imported is its cause.
    """
    _refuse_if_distrusted(path, "is code")
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{path!r}: 'package.module:Name' is expected")
    try:
        found: Any = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:  # TypeError, ValueError: a relative or an empty name
        raise ConfigError(f"{path!r}: the module cannot be imported: {error}") from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigError(f"{path!r}: {found!r} has no {part!r}{nearest(part, vars(found))}") from None
    return found


def _from_box(name: str, module: str, class_name: str) -> type[Backend]:
    try:
        found: type[Backend] = getattr(importlib.import_module(f"fastpipe.backends.{module}"), class_name)
    except ImportError as error:
        if module not in _box.EXTRAS or (error.name or "").split(".")[0] == "fastpipe":
            raise  # a broken installation of fastpipe itself
        raise MissingExtra(name, _box.EXTRAS[module], error) from error
    return found


def _from_object(thing: Any, what: str) -> type[Backend] | Backend:
    if isinstance(thing, type) and not issubclass(thing, Backend):
        raise ConfigError(f"{what} is a class, but no backend: subclass fastpipe.Backend")
    if isinstance(thing, type | Backend):
        _check_methods(thing, what)
        return thing
    if not callable(thing) or callable(getattr(thing, "forward", None)):
        raise ConfigError(f"{what} is no backend: subclass fastpipe.Backend, or give a function of one item")
    from fastpipe.functions import backend_from_function

    return backend_from_function(thing)


def _check_methods(backend: Any, what: str) -> None:
    """Refuse a class, or an object, that leaves open what it has to define, or defines it so that it never runs."""
    forward, run = (getattr(backend, name, None) for name in ("forward", "run"))
    written = vars(backend if isinstance(backend, type) else type(backend))
    if getattr(forward, "__func__", forward) is Backend.forward:
        raise ConfigError(f"{what} has no forward(batch){nearest('forward', written)}")
    is_per_request = getattr(forward, "__func__", forward) is PerRequest.forward
    is_streaming = getattr(forward, "__func__", forward) is Streaming.forward
    if is_per_request and getattr(run, "__func__", run) is PerRequest.run:
        raise ConfigError(f"{what} has no run(request){nearest('run', written)}: a PerRequest defines it")
    if is_streaming and getattr(run, "__func__", run) is Streaming.run:
        raise ConfigError(f"{what} has no run(request){nearest('run', written)}: a Streaming defines it")
    name, method = ("run", run) if is_per_request or is_streaming else ("forward", forward)
    if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
        raise ConfigError(f"{what}: {name} is an async function, which nobody would await; backends run on threads")
    if inspect.isgeneratorfunction(method) and not is_streaming:
        raise ConfigError(f"{what}: {name} yields, so a call runs nothing of it; to answer in parts, extend Streaming")


def _other_packages() -> dict[str, EntryPoint]:
    """Return the entry points by folded name; the installed packages are searched once per process."""
    global _entry_points
    with _lock.of_this_process:
        if _entry_points is None:
            from importlib.metadata import entry_points  # slow to import, and most configurations need none

            _entry_points = {e.name.lower(): e for e in entry_points(group=ENTRY_POINT_GROUP)}
        return _entry_points


def _load(entry_point: EntryPoint) -> None:
    offered = f"backend {entry_point.name!r}, offered by {entry_point.value!r}"
    try:
        loaded = entry_point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{offered}, cannot be loaded: {error}") from error
    resolved = _from_object(loaded, offered)
    with _lock.of_this_process:
        _REGISTERED.setdefault(entry_point.name.lower(), (entry_point.name, loaded, resolved))
