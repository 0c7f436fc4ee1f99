"""Docstrings as reStructuredText: the house writes code as an indented block, without a mark in front of it."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from types import ModuleType

__all__ = ["of_data", "with_code_marked"]

# Google's sections, whose items are indented too; "What may happen:" is no section, as nobody knows what it would be.
_SECTION = re.compile(r"(Args|Attributes|Example|Examples|Methods|Note|Raises|Returns|See Also|Warns|Yields):")


def with_code_marked(lines: list[str]) -> list[str]:
    """Return the lines of a docstring with ``::`` in front of indented blocks."""
    marked: list[str] = []
    before = ""  # the last line that is not empty
    for line in lines:
        begins = line.startswith("    ") and marked and not marked[-1] and before and not before.startswith(" ")
        if begins and not _SECTION.match(before) and not before.startswith((">>>", "- ", "::")):
            marked += ["::", ""]
        if line:
            before = line
        marked.append(line)
    return marked


def of_data(module: ModuleType, name: str) -> str:
    """Return the text below the assignment of a name that is neither class nor function, wherever it comes from."""
    body = ast.parse(inspect.getsource(module)).body
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.ImportFrom) and any(alias.name == name for alias in statement.names):
            path = "." * statement.level + (statement.module or "")
            return of_data(importlib.import_module(path, module.__package__), name)
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if not any(isinstance(target, ast.Name) and target.id == name for target in targets):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            return inspect.cleandoc(str(following.value.value))
    return ""
