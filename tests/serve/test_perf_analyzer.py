"""Triton's perf_analyzer, a client of its own in C++, is content with the server.

Its binary needs a glibc of 2.38; ``bench/perf_analyzer.sh`` has both in a folder and runs these tests.
``FASTPIPE_PERF_ANALYZER`` is the command that starts it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpipe import Backend, Pipe, Request

pytest.importorskip("grpc", reason="grpcio is not installed here")
pytest.importorskip("google.protobuf", reason="protobuf is not installed here")
from grpc_serving import Served, served  # noqa: E402

COMMAND = os.environ.get("FASTPIPE_PERF_ANALYZER", "")
pytestmark = pytest.mark.skipif(not COMMAND, reason="FASTPIPE_PERF_ANALYZER does not say how to start it")

LONGEST_S = 120.0


class Doubles(Backend):
    """Twice a row of numbers."""

    max_batch = 8

    def forward(self, batch: list[Request]) -> None:
        for request, row in zip(batch, np.stack([request["data"] for request in batch]) * 2, strict=True):
            request["result"] = row


SERVE = {
    "max_batch_size": 8,
    "inputs": {"data": {"datatype": "FP32", "shape": [16]}},
    "outputs": {"result": {"datatype": "FP32", "shape": [16]}},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with Pipe({"double": {"backend": Doubles}, "serve": SERVE}) as pipe:
        pipe.submit({"data": np.zeros(16, np.float32)}, timeout=LONGEST_S).result()  # its clock is there from now on
        with served({"m": pipe}) as made:
            yield made


def run(address: str, protocol: str, output: Path, *arguments: str) -> tuple[int, str]:
    """Run it for a second or so; return its exit code and what it said."""
    short = ["-p", "300", "-r", "3", "-s", "500", "-f", str(output)]
    ran = subprocess.run(
        [*shlex.split(COMMAND), "-m", "m", "-u", address, "-i", protocol, *short, *arguments],
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    return ran.returncode, ran.stdout + ran.stderr


LOADS = {
    "one row": ["-b", "1", "--concurrency-range", "2"],
    "eight rows": ["-b", "8", "--concurrency-range", "2"],
    "open loop": ["--request-rate-range", "100", "--request-distribution", "poisson"],
}


@pytest.mark.parametrize("load", LOADS)
def test_grpc(server: Served, tmp_path: Path, load: str) -> None:
    """Exit code 0, and requests were answered."""
    code, said = run(server.address, "grpc", tmp_path / "out.csv", *LOADS[load])
    assert code == 0, said
    assert float((tmp_path / "out.csv").read_text().splitlines()[1].split(",")[1]) > 0


@pytest.mark.parametrize("load", LOADS)
def test_grpc_streaming(server: Served, tmp_path: Path, load: str) -> None:
    """The same on one stream for each of its workers."""
    code, said = run(server.address, "grpc", tmp_path / "out.csv", "--streaming", *LOADS[load])
    assert code == 0, said
    assert float((tmp_path / "out.csv").read_text().splitlines()[1].split(",")[1]) > 0


class ThreeParts(Pipe):
    """Answers three times."""

    async def astream(self, request: Request, **_: Any) -> AsyncGenerator[Any, None]:
        for _ in range(3):
            yield (await self.acall({"data": request["data"]}))["result"]


def test_answers_in_parts(tmp_path: Path) -> None:
    """Of a model that says it is decoupled, perf_analyzer waits for the empty last answer."""
    one_row = {**SERVE, "max_batch_size": 0}
    with ThreeParts({"double": {"backend": Doubles}, "serve": one_row}) as pipe, served({"m": pipe}) as made:
        made.repository.model("m").is_streaming = True
        code, said = run(made.address, "grpc", tmp_path / "out.csv", "--streaming", "--concurrency-range", "2")
    assert code == 0, said
    assert "Response Throughput" in said
