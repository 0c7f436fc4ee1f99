"""``@fastpipe.backend``, and how a function of one item, with it or without, becomes a backend."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from fastpipe.contract import Backend, PerRequest, Request
from fastpipe.errors import ConfigError
from fastpipe.streaming import Streaming

__all__ = ["FunctionBackend", "StreamingFunctionBackend", "backend", "backend_from_function"]

Function = TypeVar("Function", bound=Callable[..., Any])

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def backend(function: Function) -> Function:
    """Say that a function of one item is a backend: ``result = function(data)``.

    Its keyword-only parameters are the node's parameters:

        @fastpipe.backend
        def resize(data, *, side: int = 224):
            return cv2.resize(data, (side, side))

    A generator function answers in parts, which are handed on while the rest is being made: ``fastpipe.Streaming``.

    It stays a function: ``resize(image, side=64)`` calls it, in a test for instance. Several instances may call it at
    the same time. An exception fails that request alone.

    Raises:
        ConfigError: if it cannot be a backend: it is asynchronous, or cannot be called with one item alone.
    """
    backend_from_function(function)  # what is wrong with it is said here, not where it is used
    return function


class FunctionBackend(PerRequest):
    """Base of the classes made of functions; ``function`` is the function as it was written."""

    function: Callable[..., Any]

    def __init__(self, **parameters: Any) -> None:
        self.parameters = parameters

    def run(self, request: Request) -> None:
        """Set the request's result to what the function returns for its data."""
        request["result"] = type(self).function(request["data"], **self.parameters)


class StreamingFunctionBackend(Streaming):
    """The same of generator functions: what they yield are parts of the answer."""

    function: Callable[..., Iterator[Any]]

    def __init__(self, **parameters: Any) -> None:
        self.parameters = parameters

    def run(self, request: Request) -> Iterator[Any]:
        """Yield what the function yields for the request's data."""
        return type(self).function(request["data"], **self.parameters)


def backend_from_function(function: Callable[..., Any]) -> type[Backend]:
    """Return a Backend subclass around ``function``, named like it; its parameters are the keyword-only ones.

    Raises:
        ConfigError: if the function is asynchronous, or cannot be called with one item alone.
    """
    name = getattr(function, "__name__", None) or type(function).__name__
    if not callable(function) or isinstance(function, type):
        raise ConfigError(f"{name}: a function of one item is expected, got {function!r}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"{name}: an async function cannot be a backend; backends run on threads")
    parameters = _parameters_of(function, name)

    base = StreamingFunctionBackend if inspect.isgeneratorfunction(function) else FunctionBackend

    def construct(self: FunctionBackend | StreamingFunctionBackend, **given: Any) -> None:
        base.__init__(self, **given)  # type: ignore[arg-type]  # it is the class of self

    # What configurations see: the function's keyword-only parameters. __wrapped__ leads to the module in which
    # annotations written as text have their meaning.
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    construct.__signature__ = inspect.Signature([this, *parameters])  # type: ignore[attr-defined]
    construct.__wrapped__ = function  # type: ignore[attr-defined]
    return type(
        name,
        (base,),
        {
            "__init__": construct,
            "__doc__": function.__doc__,
            "__module__": getattr(function, "__module__", __name__),
            "__qualname__": getattr(function, "__qualname__", name),
            "function": staticmethod(function),
        },
    )


def _parameters_of(function: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    """Return the keyword-only parameters, having checked that one item can be given."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []  # some built-in functions have no signature; one item is what they get
    required = [p.name for p in parameters if p.kind in _POSITIONAL and p.default is p.empty]
    takes_item = any(p.kind in (*_POSITIONAL, p.VAR_POSITIONAL) for p in parameters)
    if not takes_item or len(required) > 1:
        raise ConfigError(
            f"{name}: a function of one item is expected, as in def {name}(data, *, parameter=...); "
            f"this one takes ({', '.join(map(str, parameters))})"
        )
    return [p for p in parameters if p.kind is p.KEYWORD_ONLY]
