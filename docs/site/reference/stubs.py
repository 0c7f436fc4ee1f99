"""Signatures of what is compiled: types from the stub beside it, defaults from what is compiled, which has no types."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from pathlib import Path

import fastpipe
from fastpipe import _core

__all__ = ["signature_of"]

_ALIASES = {"_Request": "Request"}


@cache
def signature_of(name: str) -> tuple[str, str] | None:
    """Return the parameters and the result of ``"emit"`` or ``"Engine.clear_cache"``, as the stub has them.

    Of a function with several signatures it is the first.
    """
    function = _functions().get(name)
    return None if function is None else _signature(function, name)


@cache
def _functions() -> dict[str, ast.FunctionDef]:
    found: dict[str, ast.FunctionDef] = {}
    stub = ast.parse((Path(fastpipe.__path__[0]) / "_core.pyi").read_text())
    for statement in stub.body:
        owner = statement if isinstance(statement, ast.ClassDef) else None
        for each in [statement] if owner is None else owner.body:
            if isinstance(each, ast.FunctionDef) and _is_method_or_function(each):
                found.setdefault(each.name if owner is None else f"{owner.name}.{each.name}", each)
    return found


def _is_method_or_function(function: ast.FunctionDef) -> bool:
    marks = {each.id for each in function.decorator_list if isinstance(each, ast.Name)}
    return not marks & {"property", "staticmethod"}


def _signature(function: ast.FunctionDef, name: str) -> tuple[str, str]:
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            node.id = _ALIASES.get(node.id, node.id)
    _put_defaults(function.args, attrgetter(name)(_core))
    if "." in name:
        del (function.args.posonlyargs or function.args.args)[0]  # self
    return f"({ast.unparse(function.args)})", "" if function.returns is None else ast.unparse(function.returns)


def _put_defaults(arguments: ast.arguments, compiled: Callable[..., object]) -> None:
    """Put the defaults of what is compiled in the place of a stub's ``...``."""
    parameters = inspect.signature(compiled).parameters

    def default(argument: ast.arg) -> ast.expr:
        return ast.parse(repr(parameters[argument.arg].default), mode="eval").body

    positional = [*arguments.posonlyargs, *arguments.args]
    arguments.defaults = [default(argument) for argument in positional[len(positional) - len(arguments.defaults) :]]
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    arguments.kw_defaults = [given and default(argument) for argument, given in pairs]
