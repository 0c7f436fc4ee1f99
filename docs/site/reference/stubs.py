"""Signatures of what is compiled, which knows its parameters' names at most: from the stub beside it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import fastpipe

__all__ = ["signature_of"]

_ALIASES = {"_Request": "Request"}


def signature_of(name: str) -> tuple[str, str] | None:
    """Return the parameters and the result of ``"emit"`` or ``"Engine.clear_cache"``, as the stub has them.

    Of a function with several signatures it is the first.
    """
    return _signatures().get(name)


@cache
def _signatures() -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    stub = ast.parse((Path(fastpipe.__path__[0]) / "_core.pyi").read_text())
    for statement in stub.body:
        owner = statement if isinstance(statement, ast.ClassDef) else None
        for each in [statement] if owner is None else owner.body:
            if isinstance(each, ast.FunctionDef) and _is_method_or_function(each):
                name = each.name if owner is None else f"{owner.name}.{each.name}"
                found.setdefault(name, _signature(each, is_method=owner is not None))
    return found


def _is_method_or_function(function: ast.FunctionDef) -> bool:
    marks = {each.id for each in function.decorator_list if isinstance(each, ast.Name)}
    return not marks & {"property", "staticmethod"}


def _signature(function: ast.FunctionDef, *, is_method: bool) -> tuple[str, str]:
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            node.id = _ALIASES.get(node.id, node.id)
    if is_method:
        del (function.args.posonlyargs or function.args.args)[0]  # self
    return f"({ast.unparse(function.args)})", "" if function.returns is None else ast.unparse(function.returns)
