"""Triton's perf_analyzer, a client of its own in C++, is content with the server.

Its binary needs a glibc of 2.38; ``bench/perf_analyzer.sh`` puts both into a folder and runs these tests.
``FASTPIPE_PERF_ANALYZER`` is the command that starts it.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers import WAIT_S

from fastpipe import Pipe, Request, Streaming

pytest.importorskip("grpc", reason="grpcio is not installed here")
pytest.importorskip("orjson", reason="orjson is not installed here")
pytest.importorskip("google.protobuf", reason="protobuf is not installed here")
pytest.importorskip("uvicorn", reason="uvicorn is not installed here")
from grpc_serving import served

COMMAND = os.environ.get("FASTPIPE_PERF_ANALYZER", "")
pytestmark = pytest.mark.skipif(not COMMAND, reason="FASTPIPE_PERF_ANALYZER does not say how to start it")

LONGEST_S = 120.0

MODEL = """
[step]
backend = "Identity"

[serve]
max_batch_size = 8
inputs = { data = { datatype = "FP32", shape = [16] } }
outputs = { result = { datatype = "FP32", shape = [16] } }
"""


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """``fastpipe serve``, and where it listens, by protocol; at the end SIGTERM ends it, with exit code 0."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "m.toml").write_text(MODEL)
    command = [sys.executable, "-P", "-m", "fastpipe", "serve", "m.toml"]
    server = subprocess.Popen(
        [*command, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        yield dict(re.findall(r"(http|grpc)://(\S+)", said))
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT_S) == 0
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def run(address: str, protocol: str, output: Path, *arguments: str) -> str:
    """Run it for a second or so; what it said, once it was content and has measured something."""
    short = ["-p", "300", "-r", "3", "-s", "500", "-f", str(output)]
    ran = subprocess.run(
        [*shlex.split(COMMAND), "-m", "m", "-u", address, "-i", protocol, *short, *arguments],
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    said = ran.stdout + ran.stderr
    assert ran.returncode == 0, said
    assert float(output.read_text().splitlines()[1].split(",")[1]) > 0, said  # inferences/second
    return said


LOADS = {
    "closed loop, one row": ["-b", "1", "--concurrency-range", "2"],
    "closed loop, eight rows": ["-b", "8", "--concurrency-range", "2"],
    "open loop, one row": ["-b", "1", "--request-rate-range", "50", "--request-distribution", "poisson"],
    "open loop, eight rows": ["-b", "8", "--request-rate-range", "50"],
}
WAYS = {"http": [], "grpc": [], "grpc --streaming": ["--streaming"]}


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("way", WAYS)
def test_loads(addresses: Mapping[str, str], tmp_path: Path, way: str, load: str) -> None:
    """Exit code 0, and requests were answered."""
    protocol = way.split()[0]
    run(addresses[protocol], protocol, tmp_path / "out.csv", *WAYS[way], *LOADS[load])


class ThreeParts(Streaming):
    """Answers three times."""

    def run(self, request: Request) -> Iterator[Any]:
        for _ in range(3):
            yield request["data"]


def test_answers_in_parts(tmp_path: Path) -> None:
    """Of a model that says it is decoupled, perf_analyzer waits for the empty last answer."""
    table = {**tomllib.loads(MODEL)["serve"], "max_batch_size": 0}
    with Pipe({"parts": {"backend": ThreeParts}, "serve": table}) as pipe, served({"m": pipe}) as made:
        said = run(made.address, "grpc", tmp_path / "out.csv", "--streaming", "--concurrency-range", "2")
    assert "decoupled model" in said
