"""docs/reliability.md and the tests say the same: each promise has a test of its name, and each such test a row."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from helpers import once

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "reliability.md"
ROW = re.compile(
    r"^\| P(?P<number>\d+) \| \*\*(?P<promise>[^*]+)\*\*(?P<words>[^|]*) \| (?P<tests>[^|]*) \| (?P<run>[^|]+) \|$"
)

pytestmark = once


def rows() -> dict[int, set[str]]:
    """Return the tests of each promise in the document's table."""
    found: dict[int, set[str]] = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("| P"):
            row = ROW.match(line)
            assert row is not None, f"this is no row of a promise: {line}"
            assert int(row["number"]) not in found, line
            found[int(row["number"])] = set(re.findall(r"`(test_p\d\d_\w+)`", row["tests"]))
    return found


def named_tests() -> dict[int, set[str]]:
    """Return the tests that are named after a promise."""
    found: dict[int, set[str]] = {}
    for path in TESTS.rglob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            number = re.match(r"test_p(\d\d)_", node.name) if isinstance(node, ast.FunctionDef) else None
            if number is not None:
                found.setdefault(int(number[1]), set()).add(node.name)  # type: ignore[union-attr]
    return found


def test_each_promise_has_its_tests_and_each_test_its_promise() -> None:
    """By name, both ways."""
    assert rows() == named_tests()


def test_no_promise_is_without_a_test() -> None:
    """And a row has a run, with a number in it."""
    assert all(rows().values())
    for line in PAGE.read_text().splitlines():
        if (row := ROW.match(line)) is not None:
            assert re.search(r"\d", row["run"]), f"P{row['number']} was never run"


def test_every_test_that_the_page_names_is_there() -> None:
    """Also those of promises without a number."""
    tests = {
        node.name
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text()))
    assert len(named) > 100
    assert named - tests == set()
