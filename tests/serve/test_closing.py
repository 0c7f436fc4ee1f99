"""The end of connections with TLS: clients that do not read hold nobody up, and lose nothing that was written."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed here")
pytest.importorskip("orjson", reason="the extra serve is not installed here")

from certificates import make_certificate
from helpers import WAIT_S, until
from served import Served, serving

from fastpipe import Pipe
from fastpipe.serve.encryption import Encryption
from fastpipe.serve.incoming import Bounds
from fastpipe.serve.server import Plan

GRACE_S = WAIT_S
LINGERS_S = 0.2
Connect = Callable[[Served], ssl.SSLSocket]


@pytest.fixture(scope="module")
def encryption(tmp_path_factory: pytest.TempPathFactory) -> Encryption:
    return Encryption(*make_certificate(tmp_path_factory.mktemp("tls"), "own"))


@pytest.fixture
def connect(encryption: Encryption) -> Iterator[Connect]:
    """A function that returns a connection, with the handshake done."""
    context = ssl.create_default_context(cafile=encryption.certificate)
    with contextlib.ExitStack() as stack:

        def connected(served: Served) -> ssl.SSLSocket:
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", served.port), WAIT_S))
            return stack.enter_context(context.wrap_socket(plain, server_hostname="localhost"))

        yield connected


@pytest.fixture(params=["asyncio", "uvloop"], autouse=True)
def short_times(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients have a moment only, on either kind of event loop; by itself it waits longer for them than a test."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed here")
    else:
        monkeypatch.setattr("fastpipe.serve.server._loop_factory", lambda: None)
        monkeypatch.setattr("asyncio.constants.SSL_SHUTDOWN_TIMEOUT", 3 * WAIT_S)
    monkeypatch.setattr("fastpipe.serve.closing.LINGERS_S", LINGERS_S)


def echoing(encryption: Encryption, **bounds: Any) -> contextlib.AbstractContextManager[Served]:
    plan = Plan(bounds=Bounds(farewell_s=0.1, **bounds), grace_s=GRACE_S, encryption=encryption)
    return serving({"m": lambda: Pipe(backend="Identity", max=8)}, plan)


def infer(size_bytes: int) -> bytes:
    """Return a request whose answer is as large as that."""
    tensor = {"name": "data", "datatype": "BYTES", "shape": [1], "data": ["x" * size_bytes]}
    body = json.dumps({"inputs": [tensor]}).encode()
    return b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def read_answer(connection: ssl.SSLSocket) -> bytes:
    """Return the body of an answer."""
    with connection.makefile("rb") as reader:
        length = 0
        while (line := reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        return reader.read(length)


def test_idle_clients_do_not_hold_up_the_end(
    encryption: Encryption, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """One that was answered, and one that has not asked: neither reads that the server closes."""
    with echoing(encryption) as served:
        kept, silent = connect(served), connect(served)
        kept.sendall(infer(10))
        assert b"x" * 10 in read_answer(kept)
        until(lambda: len(served.server.server_state.connections) == 2)
        served.server.stop()
        served.thread.join(WAIT_S)
        assert not served.thread.is_alive()
        assert silent.recv(1) == b""
    assert "timeout graceful shutdown exceeded" not in caplog.text


def test_connections_on_which_nothing_comes(encryption: Encryption, connect: Connect) -> None:
    """They are gone when their time is over, although their clients do not read."""
    with echoing(encryption, head_s=0.2, idle_s=0.3, look_s=0.1) as served:
        kept, silent = connect(served), connect(served)
        kept.sendall(infer(10))
        assert b"x" * 10 in read_answer(kept)
        until(lambda: not served.server.server_state.connections)
        assert silent.recv(1) == kept.recv(1) == b""


@pytest.mark.parametrize(("size_bytes", "kernel_bytes"), [(60_000, 4096), (2_000_000, 1 << 16)])
def test_who_reads_late_gets_the_whole_answer(
    encryption: Encryption, connect: Connect, size_bytes: int, kernel_bytes: int
) -> None:
    """Also when the server ends meanwhile, whichever buffer the answer waits in: below TLS, or in it."""
    with echoing(encryption) as served:
        late = connect(served)
        until(lambda: served.server.server_state.connections)
        (connection,) = served.server.server_state.connections
        late.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, kernel_bytes)
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, kernel_bytes)
        late.sendall(infer(size_bytes))
        until(lambda: connection.changes >= 3 and connection._task is None)  # it is answered
        silent = connect(served)
        until(lambda: len(served.server.server_state.connections) == 2)
        served.server.stop()
        until(lambda: served.server.server_state.connections == {connection})  # so the other's time is over, too
        assert silent.recv(1) == b""
        assert json.loads(read_answer(late))["outputs"][0]["data"] == ["x" * size_bytes]
        served.thread.join(WAIT_S)
        assert not served.thread.is_alive()
