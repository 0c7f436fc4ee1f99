"""The parent of several processes: how many there are, whatever signals come, and however they die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import WAIT_S, until

WORKER = """
import os, signal, sys, time
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # as workers do
descriptor = int(sys.argv[sys.argv.index("--ready") + 1])
while os.path.exists("held"):
    time.sleep(0.01)
os.write(descriptor, b"ready\\n")
time.sleep(600)
"""
PARENT = """
import os, sys
from fastpipe.serve.workers import Workers
sockets = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
sys.exit(Workers([sys.executable, "-S", "-c", sys.argv[1]], sockets, lambda: print("up", flush=True)).run())
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A parent of two workers that serve nothing; while there is a file ``held``, new ones do not become ready."""
    command = [sys.executable, "-P", "-c", PARENT, WORKER]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_S) == 1  # these workers die of it
        finally:
            process.kill()


def children(parent: subprocess.Popen[str]) -> set[int]:
    return set(map(int, Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()))


def test_a_signal_to_replace_all_while_they_are_replaced(parent: subprocess.Popen[str], tmp_path: Path) -> None:
    """Successors that were on their way have successors, too; at the end there are as many as before."""
    first = children(parent)
    held = tmp_path / "held"
    held.touch()
    parent.send_signal(signal.SIGHUP)
    until(lambda: len(children(parent)) == 3)
    (early,) = children(parent) - first
    parent.send_signal(signal.SIGHUP)
    parent.send_signal(signal.SIGCHLD)  # once this has been looked at, so has the one before it
    until(lambda: not _is_pending(parent))
    assert len(children(parent)) == 3
    held.unlink()
    until(lambda: len(children(parent)) == 2 and children(parent).isdisjoint({*first, early}))


def test_one_that_dies_while_its_successor_starts(parent: subprocess.Popen[str], tmp_path: Path) -> None:
    """It has no second one."""
    first = children(parent)
    held = tmp_path / "held"
    held.touch()
    parent.send_signal(signal.SIGHUP)
    until(lambda: len(children(parent)) == 3)
    for worker in first:
        os.kill(worker, signal.SIGKILL)
    until(lambda: children(parent).isdisjoint(first))
    held.unlink()
    until(lambda: len(children(parent)) == 2)


def _is_pending(parent: subprocess.Popen[str]) -> bool:
    """Whether a signal is still to be taken; it is blocked there until the parent asks for it."""
    lines = Path(f"/proc/{parent.pid}/status").read_text().splitlines()
    return any(int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd")))
