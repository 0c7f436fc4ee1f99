"""What every test gets: a check that it leaves no thread of fastpipe behind."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Before any test imports fastpipe: its hooks and frozen time are inert without it. The processes of tests inherit it.
os.environ["FASTPIPE_TEST_HOOKS"] = "1"

# A thread that was told to end needs the GIL once more to do so; on a busy machine that takes a while, never this long.
THREADS_END_WITHIN_S = 20.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--wheel``, for the one test that looks into a built wheel."""
    parser.addoption("--wheel", type=Path, help="a built wheel, whose list of files is then checked")


@pytest.fixture(scope="session")
def repository_root() -> Path:
    """The folder that holds ``fastpipe/``, ``kernels/`` and ``backends/``."""
    return ROOT


def our_threads() -> set[threading.Thread]:
    """Return the living threads that fastpipe started; it gives all of them names that begin with its own."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("fastpipe")}


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Fail a test that leaves a thread behind which was not there before it."""
    before = our_threads()
    yield
    if our_threads() <= before:
        return
    gc.collect()  # a failed test's traceback keeps its pipe alive in a reference cycle
    deadline_s = time.monotonic() + THREADS_END_WITHIN_S
    for thread in our_threads() - before:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    left = sorted(thread.name for thread in our_threads() - before)
    assert not left, f"the test left threads of fastpipe behind: {', '.join(left)}"
