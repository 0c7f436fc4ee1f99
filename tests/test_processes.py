"""What a process may be like: out of file descriptors, about to end, forked. Each case runs in a child."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

HANG_S = 60.0

PROLOGUE = """
import fastpipe, gc, os, sys, threading, time

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

class Echo(fastpipe.Backend):
    max_batch = 4
    def forward(self, batch):
        for request in batch:
            request["result"] = request["data"]

class Bound(Echo):
    thread_bound = True
"""


def run(code: str) -> list[str]:
    """Run code after PROLOGUE in a child that must end well and without a word on stderr; return what it says."""
    source = PROLOGUE + textwrap.dedent(code)
    ran = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-W", "ignore:.*fork:DeprecationWarning", "-c", source],
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_S,
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout + ran.stderr
    return ran.stdout.splitlines()


# ---- file descriptors ------------------------------------------------------------------------------------------------

WAYS_TO_CALL = {
    "call": 'assert pipe({"data": 1})["result"] == 1',
    "call with a time limit": 'assert pipe({"data": 1}, timeout=30)["result"] == 1',
    "eager": 'assert pipe({"data": 1}, eager=True)["result"] == 1',
    "list": 'assert [each["result"] for each in pipe([{"data": 1}, {"data": 2}])] == [1, 2]',
    "map": 'assert [each["result"] for each in pipe.map([{"data": 1}, {"data": 2}])] == [1, 2]',
    "submit": 'assert pipe.submit({"data": 1}).result(30)["result"] == 1',
    "submit with a time limit": 'assert pipe.submit({"data": 1}, timeout=30).result(30)["result"] == 1',
    "acall": """
        assert loop.run_until_complete(pipe.acall({"data": 1}))["result"] == 1
        loop.close()
        """,
    "a failure": """
        try:
            pipe.submit({}).result(30)
        except KeyError:
            pass
        else:
            raise AssertionError
        """,
    "a hang": """
        try:
            stuck({"data": 1})
        except fastpipe.BackendHung as error:
            assert "in forward" in error.stacks
        gate.set()
        """,
    "close": "pipe.close()",
}


@pytest.mark.parametrize("way", WAYS_TO_CALL)
def test_a_built_pipe_needs_no_file_descriptor(way: str) -> None:
    """The first call of each kind works although the process has used all descriptors up: nothing is imported by it."""
    before = "import asyncio; loop = asyncio.new_event_loop()" if way == "acall" else ""
    run(
        f"""
        import resource
        gate = threading.Event()
        class Stuck(Echo):
            def forward(self, batch):
                gate.wait(30)
        pipe = fastpipe.Pipe(backend=Echo)
        stuck = fastpipe.Pipe(backend=Stuck, hang_timeout=0.05)
        {before}
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
{textwrap.indent(textwrap.dedent(WAYS_TO_CALL[way]), " " * 8)}
        for each in held:
            os.close(each)
        """
    )


# ---- the end of a process --------------------------------------------------------------------------------------------


def test_a_pipe_that_outlives_the_modules_goes_in_silence() -> None:
    """Freed when the names of fastpipe's modules are gone already, it says nothing; it was closed before."""
    assert run(
        """
        class Closes(Echo):
            def close(self):
                say("closed")
        import fastpipe.pipe
        # Its names are set to None one after the other, the last one last.
        fastpipe.pipe.kept = [fastpipe.Pipe(backend=Closes), fastpipe.Pipe(backend=Bound), fastpipe.pipe]
        """
    ) == ["closed"]
