"""``fastpipe serve`` with a certificate: HTTP and gRPC are encrypted, or it says what is wrong with the files."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed here")
pytest.importorskip("orjson", reason="the extra serve is not installed here")

from certificates import make_certificate
from helpers import WAIT_S, until
from serve_command import START_S, command

from fastpipe.cli.main import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "echo.toml").write_text('[node]\nbackend = "Identity"\nmax = 8\n')
    make_certificate(tmp_path, "own")
    return tmp_path


def ask(port: int, trusted: Path, body: bytes, **headers: str) -> tuple[int, bytes]:
    context = ssl.create_default_context(cafile=trusted)
    connection = http.client.HTTPSConnection("localhost", port, timeout=START_S, context=context)
    with contextlib.closing(connection):
        connection.request("POST", "/v2/models/echo/infer", body, headers)
        response = connection.getresponse()
        return response.status, response.read()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _all_from(connection: socket.socket) -> bytes:
    came = b""
    with contextlib.suppress(ConnectionResetError):
        while more := connection.recv(4096):
            came += more
    return came


@pytest.mark.parametrize("workers", ["1", "2"])
def test_http_and_grpc_are_encrypted(folder: Path, workers: str) -> None:
    """A small request, one with a large tensor past the parser, and a call of gRPC; who speaks plainly gets nothing."""
    grpc = pytest.importorskip("grpc", reason="grpcio is not installed here")
    grpc_address = f"127.0.0.1:{free_port()}"
    tls = ["--tls-certificate", "own.pem", "--tls-key", "own.key"]
    with command(folder, "echo.toml", *tls, "--workers", workers, "--grpc", grpc_address) as running:
        assert running.said.startswith("https://127.0.0.1:")
        port = int(running.said.split(" ")[0].rpartition(":")[2])
        trusted = folder / "own.pem"
        small = {"inputs": [{"name": "data", "datatype": "INT32", "shape": [1], "data": [7]}]}
        status, answer = ask(port, trusted, json.dumps(small).encode())
        assert (status, json.loads(answer)["outputs"][0]["data"]) == (200, [7])

        tensor = bytes(range(256)) * 4096
        described: dict[str, Any] = {"name": "data", "datatype": "UINT8", "shape": [len(tensor)]}
        described["parameters"] = {"binary_data_size": len(tensor)}
        head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
        lengths = {"Inference-Header-Content-Length": str(len(head))}
        status, answer = ask(port, trusted, head + tensor, **lengths)
        assert status == 200
        assert answer.endswith(tensor)

        credentials = grpc.ssl_channel_credentials(trusted.read_bytes())
        with grpc.secure_channel(grpc_address.replace("127.0.0.1", "localhost"), credentials) as channel:
            live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            assert live(b"", timeout=START_S) == b"\x08\x01"

        with socket.create_connection(("127.0.0.1", port), START_S) as plain:
            plain.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
            assert b"200" not in _all_from(plain)
        running.process.send_signal(signal.SIGTERM)
        status, errors = running.end()
    assert status == 0, errors


def test_a_renewed_certificate_is_read_at_sighup(folder: Path) -> None:
    """By the workers that come; clients see it from then on."""
    tls = ["--tls-certificate", "own.pem", "--tls-key", "own.key", "--workers", "2"]
    with command(folder, "echo.toml", *tls) as running:
        port = int(running.said.split(" ")[0].rpartition(":")[2])
        former = (folder / "own.pem").read_text()
        assert _shown(port) == former
        make_certificate(folder, "own")
        running.process.send_signal(signal.SIGHUP)
        until(lambda: {_shown(port) for _ in range(8)} == {(folder / "own.pem").read_text()})


def _shown(port: int) -> str:
    with contextlib.suppress(OSError):
        return ssl.get_server_certificate(("127.0.0.1", port), timeout=WAIT_S)
    return ""


@pytest.mark.parametrize(
    ("certificate", "key", "says"),
    [
        ("none.pem", "own.key", "TLS: none.pem cannot be read: No such file or directory"),
        ("own.pem", "none.key", "TLS: none.key cannot be read: No such file or directory"),
        ("own.pem", "other.key", "TLS: own.pem and the key in other.key cannot be used: .*mismatch"),
        ("own.pem", "locked.key", "TLS: own.pem and the key in locked.key cannot be used: the key has a password"),
        ("own.pem", None, "TLS: there is no private key in own.pem: name the file that has it with --tls-key"),
        ("own.pem", "empty.pem", "TLS: there is no private key in empty.pem: no line says BEGIN PRIVATE KEY"),
        ("empty.pem", "own.key", "TLS: there is no certificate in empty.pem: no line says BEGIN CERTIFICATE\n"),
        ("own.key", None, "TLS: there is no certificate in own.key: no line says BEGIN CERTIFICATE\n"),
        ("own.key", "own.pem", "TLS: there is no certificate in own.key: .*; own.pem has one: .* may be swapped"),
        ("cut.pem", "own.key", r"TLS: cut.pem and the key in own.key cannot be used: .*PEM"),
    ],
)
def test_what_is_wrong_with_the_files_is_said_before_anything_is_built(
    certificate: str,
    key: str | None,
    says: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In a line; the status is 1."""
    make_certificate(folder, "other")
    (folder / "empty.pem").touch()
    (folder / "cut.pem").write_text((folder / "own.pem").read_text()[:500])
    make_certificate(folder, "locked", "-passout", "pass:secret")
    monkeypatch.chdir(folder)
    given = ["--tls-certificate", certificate, *([] if key is None else ["--tls-key", key])]
    with caplog.at_level("INFO", "fastpipe"):
        assert main(["serve", "echo.toml", "--http", "127.0.0.1:0", "--grpc", "none", *given]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(says, error), error
    assert "is built" not in caplog.text


def test_a_key_without_a_certificate(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["serve", "echo.toml", "--tls-key", "own.key"])
    assert leaving.value.code == 2
    assert "--tls-key: the certificate is needed, too" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--tls-certificate", "--tls-key"])
def test_an_empty_name(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As of a variable that is not set: it would be the folder."""
    with pytest.raises(SystemExit) as leaving:
        main(["serve", "echo.toml", option, ""])
    assert leaving.value.code == 2
    assert f"argument {option}: the name of a file is needed, got ''" in capsys.readouterr().err
