"""``fastpipe serve`` over gRPC: it says where, answers what was begun when it is told to end, and has workers."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import WAIT_S, until

pytest.importorskip("uvicorn", reason="the extra serve is not installed here")
pytest.importorskip("google.protobuf", reason="protobuf is not installed here")
pytest.importorskip("grpc", reason="grpcio is not installed here")
import grpc

from fastpipe.serve.grpc_messages import inference

START_S = 3 * WAIT_S
"""For processes that are started: the machine may be busy."""
ECHO = '[node]\nbackend = "Identity"\n'
WAITING = """
import time
from pathlib import Path

from fastpipe import Backend, Pipe


class Waiting(Backend):
    def forward(self, batch):
        Path("begun").touch()
        while not Path("go").exists():
            time.sleep(0.005)
        for request in batch:
            request["result"] = request["data"]


def pipe():
    return Pipe({"node": {"backend": Waiting}})
"""


@contextmanager
def command(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run ``fastpipe serve`` in a folder; give the process, and the address of gRPC."""
    (folder / "m.toml").write_text(ECHO)
    (folder / "waiting.py").write_text(WAITING)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "fastpipe", "serve", "--http", "127.0.0.1:0", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        found = re.search(r"grpc://(\S+)", process.stdout.readline())
        assert found is not None
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def call(channel: Any) -> Any:
    """Start a call of the model with one number; return its future."""
    request = inference()["ModelInferRequest"](model_name="m", raw_input_contents=[b"\7\0\0\0"])
    request.inputs.add(name="data", datatype="INT32", shape=[1])
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    return infer.future(request.SerializeToString(), timeout=START_S)


def is_ready(channel: Any) -> bool:
    ask = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
    try:
        return bool(inference()["ServerReadyResponse"].FromString(ask(b"", timeout=START_S)).ready)
    except grpc.RpcError:
        return False


def raw(answer: bytes) -> bytes:
    return bytes(inference()["ModelInferResponse"].FromString(answer).raw_output_contents[0])


def test_what_was_begun_is_answered_at_sigterm(tmp_path: Path) -> None:
    """Then it ends, with status 0."""
    with (
        command(tmp_path, "--pipe", "m=waiting:pipe", "--grpc", "127.0.0.1:0") as (process, address),
        grpc.insecure_channel(address) as channel,
    ):
        begun = call(channel)
        until((tmp_path / "begun").exists)
        process.send_signal(signal.SIGTERM)
        until(lambda: not is_ready(channel))
        (tmp_path / "go").touch()
        assert raw(begun.result(START_S)) == b"\7\0\0\0"
        assert process.wait(START_S) == 0


HOLDING = """
import fastpipe
from fastpipe.serve.addresses import reserve


def pipe():
    try:
        reserve("unix:grpc")
    except fastpipe.PipeError as error:
        said = str(error)
    return fastpipe.Pipe(backend=fastpipe.backend(lambda data: said))
"""


def test_the_path_of_a_unix_socket_is_held_while_models_are_built(tmp_path: Path) -> None:
    """No other server gets it meanwhile; then it is served, and at the end nothing is left of it."""
    (tmp_path / "holding.py").write_text(HOLDING)
    arguments = ("--pipe", "m=holding:pipe", "--grpc", "unix:grpc")
    with command(tmp_path, *arguments) as (process, address):
        assert address == "unix:grpc"
        with grpc.insecure_channel(f"unix:{tmp_path}/grpc") as channel:
            assert raw(call(channel).result(START_S)).endswith(b"cannot listen at unix:grpc: another server has it")
        process.send_signal(signal.SIGTERM)
        assert process.wait(START_S) == 0
    assert not list(tmp_path.glob("grpc*"))


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """What is in flight has no answer then, however long the grace is."""
    arguments = ("--pipe", "m=waiting:pipe", "--grpc", "127.0.0.1:0", "--grace", "3600")
    with command(tmp_path, *arguments) as (process, address), grpc.insecure_channel(address) as channel:
        begun = call(channel)
        until((tmp_path / "begun").exists)
        process.send_signal(signal.SIGTERM)
        until(lambda: not is_ready(channel))
        process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError):
            begun.result(START_S)
        assert process.wait(START_S) == 0


def test_workers_share_the_address(tmp_path: Path) -> None:
    """Each call is answered by one of them, and all end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with command(tmp_path, "m.toml", "--grpc", address, "--workers", "2") as (process, said):
        assert said == address
        for number in range(6):
            with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
                assert raw(call(channel).result(START_S)) == b"\7\0\0\0", number
        process.send_signal(signal.SIGTERM)
        assert process.wait(START_S) == 0


def test_an_address_in_use_is_said(tmp_path: Path) -> None:
    """With status 1, and without a traceback."""
    (tmp_path / "m.toml").write_text(ECHO)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ran = subprocess.run(
            [sys.executable, "-P", "-m", "fastpipe", "serve", "m.toml", "--http", "127.0.0.1:0", "--grpc", address],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
    assert ran.returncode == 1
    assert f"cannot listen at {address}: [Errno 98] Address already in use" in ran.stderr
    assert "Traceback" not in ran.stderr
