"""One failed allocation, anywhere in any way of calling a pipe: see failed_allocations.py, which this runs in part.

``FASTPIPE_ALLOCATIONS=all`` runs all points, some thousands; otherwise a share of them, the same in each run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

pytest.importorskip("_testcapi", reason="this Python was built without its tests")

SCRIPT = Path(__file__).with_name("failed_allocations.py")
WAYS = [
    "call_here",
    "call_first",
    "call_worker",
    "call_eager",
    "call_graph",
    "call_parts",
    "list_of_six",
    "list_with_failures",
    "list_with_limit",
    "list_cached",
    "submit_one",
    "submit_three",
    "submit_failing",
    "submit_with_timeout",
    "submit_guarded",
    "submit_buckets",
    "submit_cached",
    "submit_in_turns",
    "submit_expires",
    "submit_behind_many",
    "acall_one",
    "acall_starts_the_clock",
    "acall_failing",
    "acall_waits_for_room",
    "acall_waits_for_a_time",
    "pipe_map",
    "stream",
    "stream_in_company",
    "astream",
    "batched",
    "timeline_begins",
    "timeline_goes_on",
    "traced",
    "asked_in_contexts",
    "swap",
    "swap_bound",
    "resize",
]
# So many of the first points, and then every so many'th: the first are the engine's own.
FIRST_POINTS = 6
STEP = 97


def run(way: str, step: int, first: int = 0, at_most: int | None = None) -> str:
    """Return what went wrong, a line for each point, for every ``step``-th point from ``first`` on."""
    arguments = [sys.executable, str(SCRIPT), way, str(step), str(first), *([] if at_most is None else [str(at_most)])]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=1800).stdout


@pytest.mark.parametrize("way", WAYS)
def test_a_failed_allocation_hangs_crashes_and_loses_nothing(way: str) -> None:
    """The request ends, with its answer or an exception; the books are in order; the pipe serves on, and closes."""
    if os.environ.get("FASTPIPE_ALLOCATIONS") == "all":
        said = run(way, 1)
    else:
        said = run(way, 1, 0, FIRST_POINTS) + run(way, STEP, FIRST_POINTS + zlib.crc32(way.encode()) % STEP)
    assert "points" in said
    assert "fails: it" not in said, said


def test_every_way_of_the_script_is_run_here() -> None:
    """The list above is the script's."""
    said = subprocess.run([sys.executable, str(SCRIPT), "--ways"], capture_output=True, text=True, timeout=60).stdout
    assert said.split() == WAYS
