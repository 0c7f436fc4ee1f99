"""The examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from fastpipe.errors import MissingExtra

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for room in ("fastpipe", "kernels", "backends") for path in (ROOT / room).rglob("*.py"))


def module_name(path: Path) -> str:
    """Return the name under which a source file of the repository is imported."""
    inner = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in (inner if inner[0] == "fastpipe" else ("fastpipe", *inner)) if part != "__init__")


@pytest.mark.parametrize("name", [module_name(path) for path in SOURCES if path.name != "__main__.py"])
def test_the_examples_in_docstrings_are_true(name: str) -> None:
    """Examples are run through the imported module: by path, a room would be imported a second time."""
    try:
        module = importlib.import_module(name)
    except MissingExtra as missing:
        pytest.skip(str(missing))
    except ModuleNotFoundError as missing:
        if str(missing.name).startswith("fastpipe"):
            raise
        pytest.skip(f"{missing.name} is not installed")
    assert doctest.testmod(module).failed == 0
