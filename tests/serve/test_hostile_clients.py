"""Clients that mean harm, or do not know better: each gets a 4xx, or is closed, and the next one is served."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed here")
pytest.importorskip("orjson", reason="the extra serve is not installed here")

from helpers import WAIT_S, Gate, until
from served import Served, serving

from fastpipe import PerRequest, Pipe, Request
from fastpipe.serve.exchange import Limits
from fastpipe.serve.http import Settings
from fastpipe.serve.incoming import Bounds
from fastpipe.serve.server import Plan

MODEL = "/v2/models/m/infer"
GOOD = json.dumps({"inputs": [{"name": "data", "datatype": "INT32", "shape": [1], "data": [7]}]}).encode()


def request(body: bytes = GOOD, *headers: bytes, length: int | None = None, in_pieces: bool = False) -> bytes:
    declared = b"content-length: %d" % (len(body) if length is None else length)
    if in_pieces:
        declared = b"transfer-encoding: chunked"
    return b"\r\n".join([b"POST %b HTTP/1.1" % MODEL.encode(), b"host: x", declared, *headers, b"", b""]) + body


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A server with small limits."""
    settings = Settings(
        limits=Limits(body_bytes=1 << 20, json_bytes=1 << 18, buffered_bytes=4 << 20, body_s=0.3, write_s=0.5)
    )
    bounds = Bounds(connections=50, head_bytes=8192, head_s=0.3, idle_s=0.5, pipelined=16, look_s=0.1)
    with serving({"m": lambda: Pipe(backend="Identity", max=8)}, Plan(settings=settings, bounds=bounds)) as own:
        yield own


@pytest.fixture(autouse=True)
def the_next_is_served(served: Served) -> Iterator[None]:
    """Whatever was done, afterwards a good request is answered, and nothing of the others is kept."""
    yield
    until(lambda: served.service.budget.used_bytes == 0)
    status, answer = ask(served, request())
    assert status == 200
    assert json.loads(answer)["outputs"][0]["data"] == [7]


def connected(served: Served) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", served.port), WAIT_S)
    connection.settimeout(WAIT_S)
    return connection


def all_of(connection: socket.socket) -> bytes:
    """Return what comes until the server closes."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def answer_on(connection: socket.socket) -> tuple[int, bytes]:
    """Return status and body of one answer, and leave what follows it."""
    got = b""
    while not got.endswith(b"\r\n\r\n"):
        part = connection.recv(1)
        if not part:
            return 0, b""
        got += part
    lengths = [line for line in got.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    length, body = int(lengths[0].partition(b":")[2]), bytearray()
    while len(body) < length:
        body += connection.recv(length - len(body))
    return int(got.split(b" ")[1]), bytes(body)


def ask(served: Served, sent: bytes) -> tuple[int, bytes]:
    with connected(served) as connection:
        connection.sendall(sent)
        return answer_on(connection)


# ---- slow ones ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"POST /v2 HTTP/1.1\r\nhost: x\r\n", request()[:-10]])
def test_a_request_that_does_not_come(served: Served, begun: bytes) -> None:
    """Headers, or a body, that stay away are answered with 408, however the client drips."""
    with connected(served) as connection:
        connection.sendall(begun)
        status, body = answer_on(connection)
        assert status == 408
        assert "was not there within" in json.loads(body)["error"] or "were not there" in json.loads(body)["error"]
        assert all_of(connection) == b""


def test_dripping_headers(served: Served) -> None:
    """A byte now and then is no progress."""
    with connected(served) as connection:
        connection.setblocking(False)
        until(lambda: _is_closed_after(connection, b"x"))


def _is_closed_after(connection: socket.socket, drip: bytes) -> bool:
    time.sleep(0.05)
    try:
        connection.send(b"GET / HTTP/1.1\r\n" if drip == b"" else drip)
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except (ConnectionResetError, BrokenPipeError):
        return True


def test_connections_on_which_nothing_comes(served: Served) -> None:
    """They are closed, new ones and kept ones."""
    with connected(served) as silent, connected(served) as kept:
        kept.sendall(request())
        assert answer_on(kept)[0] == 200
        assert all_of(silent) == all_of(kept) == b""


def test_a_client_that_does_not_read(served: Served) -> None:
    """Its answer is not kept for ever."""
    body = json.dumps(
        {"inputs": [{"name": "data", "datatype": "BYTES", "shape": [1], "data": ["x" * 250_000]}]}
    ).encode()
    with connected(served) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(60):  # until the kernel's buffers are full, too
            try:
                connection.settimeout(0.2)
                connection.sendall(request(body))
            except (TimeoutError, ConnectionError):
                break
        until(lambda: not served.server.server_state.connections)


def test_who_reads_nothing_is_answered_once() -> None:
    """Requests that are sent one by one wait until the answers before them are taken: memory does not fill up."""
    large = 16 << 20  # more than the kernel's buffers have room for
    sizes: list[int] = []

    class Large(PerRequest):
        def run(self, request: Request) -> None:
            sizes.append(large)
            request["result"] = b"x" * large

    with serving({"m": lambda: Pipe(backend=Large)}) as own, connected(own) as connection:
        connection.sendall(request())
        until(lambda: sizes)
        (one,) = own.server.server_state.connections
        until(lambda: one.transport.get_write_buffer_size() > 0)
        for _ in range(2):
            connection.sendall(request())
            with connected(own) as other:  # the server has had its turn
                other.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")
                assert answer_on(other)[0] == 200
        assert len(sizes) == 1
        for _ in range(3):
            status, body = answer_on(connection)
            assert (status, len(body) > large) == (200, True)
        assert len(sizes) == 3


# ---- large ones --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nx: " + b"y" * 10_000,
        b"GET /v2 HTTP/1.1\r\n" + b"x: y\r\n" * 2_000,
        b"GET /v2 HTTP/1.1\r\n" + b"x" * 10_000,
    ],
)
def test_headers_that_are_too_large(served: Served, head: bytes) -> None:
    """431, as soon as they are."""
    with connected(served) as connection:
        connection.sendall(head)
        assert answer_on(connection)[0] == 431


def test_trailers_that_are_too_large(served: Served) -> None:
    """What comes behind a body in pieces is counted, too."""
    head = request(b"", in_pieces=True)
    with connected(served) as connection:
        connection.sendall(head + b"1\r\n{\r\n0\r\n" + b"x: y\r\n" * 5_000)
        assert answer_on(connection)[0] == 431


def test_a_body_that_is_too_large(served: Served) -> None:
    """By what it says, before it is read; in pieces, as soon as it is."""
    status, body = ask(served, request(length=1 << 30))
    assert (status, json.loads(body)["error"]) == (
        413,
        f"the body has {1 << 30} bytes; at most {1 << 20} are taken",
    )
    head = request(b"", in_pieces=True)
    with connected(served) as connection:
        connection.sendall(head)
        piece = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        try:
            for _ in range(64):
                connection.sendall(piece)
        except OSError:
            pass
        assert answer_on(connection)[0] == 413


def test_a_refusal_can_be_read_by_who_goes_on_sending(served: Served) -> None:
    """The connection is not reset under the answer."""
    with connected(served) as connection:
        connection.sendall(request(length=1 << 30))
        for _ in range(16):
            connection.sendall(bytes(1 << 14))
        status, _ = answer_on(connection)
        assert status == 413


def test_more_bodies_than_the_server_holds() -> None:
    """What does not fit is refused with 503, and who waits is not."""
    gate = Gate()
    settings = Settings(limits=Limits(body_bytes=1 << 20, buffered_bytes=3 << 20))
    with serving({"m": lambda: Pipe(backend=gate, max=8)}, Plan(settings=settings)) as own:
        raw = request(bytes(900_000), b"inference-header-content-length: 0")
        waiting = [connected(own) for _ in range(3)]
        for connection in waiting:
            connection.sendall(raw)
        until(lambda: own.service.budget.used_bytes == 2_700_000)
        status, body = ask(own, raw)
        assert (status, "as many bytes" in json.loads(body)["error"]) == (503, True)
        gate.opened.set()
        for connection in waiting:
            assert answer_on(connection)[0] == 200
            connection.close()


def test_a_body_in_bytes_of_one(served: Served) -> None:
    """Small pieces are put together: they cost no more than large ones."""
    before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    head = request(b"", b"inference-header-content-length: 0", in_pieces=True)
    with connected(served) as connection:
        connection.sendall(head + b"1\r\nx\r\n" * 500_000 + b"0\r\n\r\n")
        assert answer_on(connection)[0] == 200
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before_bytes < 100 << 20


# ---- broken ones -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"hello\r\n\r\n",
        b"POST " + MODEL.encode() + b" HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST " + MODEL.encode() + b" HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST " + MODEL.encode() + b" HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST " + MODEL.encode() + b" HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"POST " + MODEL.encode() + b" HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /%ff%fe/\xff HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_request(served: Served, sent: bytes) -> None:
    """400, with a text under error, and the end of the connection."""
    with connected(served) as connection:
        connection.sendall(sent)
        status, body = answer_on(connection)
        assert 400 <= status < 500
        assert json.loads(body)["error"]


@pytest.mark.parametrize("size", [100, 500_000])
def test_a_body_cut_short(served: Served, size: int) -> None:
    """A client that leaves in the middle leaves nothing behind; one that goes silent is told."""
    with connected(served) as connection:
        connection.sendall(request(bytes(size))[:-20])
        until(lambda: served.service.budget.used_bytes == size - 20)
    until(lambda: served.service.budget.used_bytes == 0)
    with connected(served) as connection:
        connection.sendall(request(bytes(size))[:-20])
        connection.settimeout(WAIT_S)
        assert answer_on(connection)[0] == 408
        try:
            for _ in range(100):
                connection.sendall(bytes(100_000))
        except OSError:
            pass


def test_a_large_body_and_what_follows_it(served: Served) -> None:
    """It is received past the parser, which reads the next request."""
    large = request(b"x" * 700_000, b"inference-header-content-length: 0")
    with connected(served) as connection:
        connection.sendall(large + request() + large + request())
        for is_large in (True, False, True, False):
            status, body = answer_on(connection)
            assert status == 200
            assert body.endswith(b"x" * 700_000 if is_large else b'"data":[7]}]}')


def test_an_upgrade_is_answered_and_not_made(served: Served) -> None:
    """``curl --http2`` asks for one, and is content without."""
    with connected(served) as connection:
        connection.sendall(
            b"GET /v2 HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
            b"http2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n"
        )
        assert answer_on(connection)[0] == 200


@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_body_behind_an_upgrade(served: Served, in_pieces: bool) -> None:
    """It is read like any other, however it comes; so is the next request."""
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD) if in_pieces else GOOD
    asked = request(body, b"connection: upgrade", b"upgrade: h2c", in_pieces=in_pieces)
    with connected(served) as connection:
        for cut in (0, len(asked) - len(body), len(asked) - 5):
            connection.sendall(asked[:cut])
            time.sleep(0.01)
            connection.sendall(asked[cut:])
            status, answer = answer_on(connection)
            assert (status, json.loads(answer)["outputs"][0]["data"]) == (200, [7])


def test_expect_100_continue(served: Served) -> None:
    """A client that asks first is told to go on, or is refused at once."""
    with connected(served) as connection:
        head, _, body = request(GOOD, b"expect: 100-continue").partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(1 << 12) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert answer_on(connection)[0] == 200
    with connected(served) as connection:
        connection.sendall(request(b"", b"expect: 100-continue", length=1 << 30))
        assert answer_on(connection)[0] == 413


def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    """Eight in one piece, one of which fails."""
    bodies = [GOOD.replace(b"7", b"%d" % number) for number in range(8)]
    bodies[3] = b"{}"
    with connected(served) as connection:
        connection.sendall(b"".join(map(request, bodies)) + request(GOOD, b"connection: close"))
        got = all_of(connection)
    answers = got.split(b"HTTP/1.1 ")[1:]
    assert [int(answer[:3]) for answer in answers] == [200, 200, 200, 400, 200, 200, 200, 200, 200]
    assert all(f'"data":[{number}]'.encode() in answers[number] for number in (0, 1, 2, 4, 5, 6, 7))


@pytest.mark.parametrize("verb", ["infer", "infer_stream", "generate", "generate_stream"])
def test_an_id_that_is_no_text(served: Served, verb: str) -> None:
    """JSON can write half of a surrogate pair, and no answer can give it back."""
    body = GOOD[:-1] + b',"data":1,"id":"\\ud800"}'
    status, answer = ask(served, request(body).replace(b"/infer ", b"/%b " % verb.encode()))
    assert status == 400
    assert json.loads(answer) == {"error": "id is no Unicode"}


def test_too_many_pipelined_requests(served: Served) -> None:
    """Who sends thousands ahead is closed."""
    with connected(served) as connection:
        connection.sendall(request() * 200)
        assert all_of(connection).count(b"HTTP/1.1 200") <= 20


def test_more_connections_than_there_may_be(served: Served) -> None:
    """Idle ones make room for new ones: 200 are opened, 50 may be there."""
    opened = [connected(served) for _ in range(200)]
    until(lambda: len(served.server.server_state.connections) <= 50)
    assert ask(served, request())[0] == 200
    for connection in opened:
        connection.close()


def test_connections_that_all_work_are_not_closed_for_another() -> None:
    """One more is refused with 503."""
    gate = Gate()
    with serving({"m": lambda: Pipe(backend=gate, max=8)}, Plan(bounds=Bounds(connections=2))) as own:
        working = [connected(own) for _ in range(2)]
        for connection in working:
            connection.sendall(request())
        pipe = own.service.repository.model("m").pipe
        until(lambda: pipe.in_flight == 2)
        with connected(own) as connection:
            assert answer_on(connection)[0] == 503
        gate.opened.set()
        for connection in working:
            assert answer_on(connection)[0] == 200
            connection.close()
