"""What limits cost an echo, and what submit() costs, in instructions: the same on every machine, however busy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import once

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "instructions.py"

# Times the plain echo. A priority is a keyword of the call, for which Python makes a dict. When each future had its
# lock from the start, submit() cost 3.9 times as much as an echo.
AT_MOST = {"max_queue": 1.05, "request_timeout": 1.10, "all three": 1.30, "submit": 1.0}


@once
def test_limits_cost_an_echo_next_to_nothing() -> None:
    """With --json, as a script in CI would ask."""
    if shutil.which("valgrind") is None:
        pytest.skip("Valgrind is not installed (Debian, Ubuntu, Fedora: the package valgrind)")
    mode = ROOT / "build" / "mode"  # see setup.py
    if mode.is_file() and mode.read_text() == "debug":
        pytest.skip("the engine was built for debugging, and checks what it does")
    cases = [argument for name in AT_MOST for argument in ("--case", name)]
    ran = subprocess.run([sys.executable, str(SCRIPT), "--json", *cases], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    counts = json.loads(ran.stdout)["here"]
    assert counts["plain"] > 1000
    for name, most in AT_MOST.items():
        assert counts[name] / counts["plain"] < most, counts
