"""The live page as its server gives it out: whose numbers, to whom, at what cost; and ``fastpipe live``."""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import os
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastpipe
import fastpipe.observe
from fastpipe.cli.main import main
from fastpipe.errors import PipeError
from fastpipe.observe import LivePage, live, noticeboard, page_server, sampling
from fastpipe.process import EXIT_DRAIN_S

TOKEN = "a-token-of-32-characters-in-ascii"
EVERY_S = 0.1
NODES: dict[str, Any] = {
    "double": {"backend": "Identity", "max": 4, "next": "parts"},
    "parts": {"backend": "Identity", "next": "show"},
    "show": {"backend": "Identity"},
}


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Notices in a folder of the test's own, and seconds that are shorter."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(sampling, "EVERY_S", EVERY_S)
    monkeypatch.setattr(sampling, "LINGERS_S", 3 * EVERY_S)


@pytest.fixture
def pipe() -> Iterator[fastpipe.Pipe]:
    with fastpipe.Pipe(NODES) as made:
        yield made


def ask(page: LivePage, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Ask over a connection of its own; return status, body and headers."""
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())


def points(page: LivePage, after: int = 0) -> dict[str, Any]:
    """Return what the page is told, at once or when there is something new."""
    status, body, _ = ask(page, f"/points?after={after}")
    assert status == 200
    told: dict[str, Any] = json.loads(body)
    return told


# ---- numbers -----------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_stats(pipe: fastpipe.Pipe) -> None:
    """Counts are exact; rates and quantiles are those of ``stats(since=...)``."""
    with live(pipe) as page:
        first = points(page)["points"][-1]
        assert first["rate"] == 0
        assert first["latency"]["p99"] is None
        for index in range(40):
            pipe({"data": index})
        with contextlib.suppress(fastpipe.PipeError):
            pipe({"data": 1, "node_name": "nowhere"}, entry="nowhere")
        told = points(page, after=first["number"] + 1)["points"][-1]
        stats = pipe.stats()
        assert told["totals"] == stats["requests"]
        assert told["window_s"] * told["rate"] == pytest.approx(40)
        assert told["latency"]["p99"] == stats["latency_s"]["p99"]
        names = json.loads(ask(page, "/about")[1])["names"]
        assert names == list(NODES)
        for name, node in zip(names, told["nodes"], strict=True):
            assert node["rate"] * told["window_s"] == pytest.approx(stats["nodes"][name]["requests"])
            assert node["run_p99"] == stats["nodes"][name]["run_s"]["p99"]
            assert node["max"] == stats["nodes"][name]["max"]


def test_a_batch_that_runs_for_long_is_not_called_idle() -> None:
    """Time in a backend is counted when its batch ends: until then nobody knows, and the page says so."""
    lets_go, runs = threading.Event(), threading.Event()

    class Waits(fastpipe.Backend):
        def forward(self, batch: list[dict[str, Any]]) -> None:
            runs.set()
            lets_go.wait(20)
            batch[0]["result"] = 1

    with fastpipe.Pipe({"waits": {"backend": Waits}}) as pipe, live(pipe) as page:
        future = pipe.submit({"data": 1})
        assert runs.wait(20)
        node = points(page)["points"][-1]["nodes"][0]
        assert (node["running"], node["busy"]) == (1, None)
        lets_go.set()
        future.result(20)


class Counting(fastpipe.Pipe):
    """Counts who asks for its numbers."""

    asked = 0

    def stats(self, since: Any = None) -> Any:
        self.asked += 1
        return super().stats(since)


def test_however_many_look_one_snapshot_is_taken_and_none_while_nobody_does() -> None:
    """What the page costs does not depend on its viewers."""
    with Counting(NODES) as pipe, live(pipe) as page:
        at_first = pipe.asked
        time.sleep(4 * EVERY_S)
        assert pipe.asked == at_first
        begun_s = time.monotonic()
        seen: list[list[int]] = []

        def look() -> None:
            numbers = [0]
            for _ in range(5):
                numbers += [point["number"] for point in points(page, numbers[-1])["points"]]
            seen.append(numbers)

        viewers = [threading.Thread(target=look) for _ in range(8)]
        for viewer in viewers:
            viewer.start()
        for viewer in viewers:
            viewer.join()
        time.sleep(5 * EVERY_S)  # nobody asks any more
        assert pipe.asked - at_first <= (time.monotonic() - begun_s) / EVERY_S + 2
        at_last = pipe.asked
        time.sleep(5 * EVERY_S)
        assert pipe.asked == at_last
        assert all(numbers == sorted(set(numbers)) for numbers in seen)


def test_a_sub_graph_has_a_place_and_no_numbers() -> None:
    """It has no instances: there is nothing to count."""
    nodes = {"whole": {"backend": "Jump", "jump": "part"}, "part": {"backend": "Identity"}}
    with fastpipe.Pipe(nodes) as pipe, live(pipe) as page:
        about = json.loads(ask(page, "/about")[1])
        assert dict(zip(about["names"], about["counted"], strict=True)) == {"whole": False, "part": True}
        assert points(page)["points"][-1]["nodes"][0] is None


def test_the_slowest_requests_are_told_with_where_their_time_went() -> None:
    """Node by node, the parts of a MapReduce included, answered or failed; a minute long."""

    def sleeps(data: float) -> float:
        if data < 0:
            raise ValueError(data)
        time.sleep(data)
        return data

    nodes = {
        "first": {"backend": "Identity", "next": "parts"},
        "parts": {"backend": "MapReduce", "jump": "part", "split": "data", "merge": "result"},
        "part": {"backend": fastpipe.backend(sleeps), "instance_num": 2},
    }
    with fastpipe.Pipe(nodes) as pipe, live(pipe) as page:
        number = points(page)["points"][-1]["number"]
        for _ in range(30):
            pipe({"data": [0.0]})
        pipe({"data": [0.0, 0.03]})
        with pytest.raises(ValueError, match="-1"):
            pipe({"data": [0.02, -1]})
        deadline_s = time.monotonic() + 20
        slowest: list[dict[str, Any]] = []
        while (not slowest or slowest[0]["took_s"] < 0.03) and time.monotonic() < deadline_s:
            told = points(page, number)["points"][-1]
            number, slowest = told["number"], told["slowest"]
        assert len(slowest) == sampling.MOST_SLOW
        assert [request["took_s"] for request in slowest] == sorted((r["took_s"] for r in slowest), reverse=True)
        names = [name for name, *_ in slowest[0]["stops"]]
        assert sorted(names) == ["first", "part", "part"]
        assert slowest[0]["why"] is None
        assert {request["why"] for request in slowest} >= {None}
        for _, queued, begun, ended in slowest[0]["stops"]:
            assert 0 <= queued <= begun <= ended <= slowest[0]["took_s"]
        assert max(ended - begun for _, _, begun, ended in slowest[0]["stops"]) >= 0.03
        assert abs(slowest[0]["time"] - time.time()) < 20
        while pipe.slowest is not None and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert pipe.slowest is None  # nobody looks any more


def test_two_pages_of_a_pipe_show_the_same_slowest_requests(pipe: fastpipe.Pipe) -> None:
    """Also once one of them is closed; and when nobody looks any more, none is noted."""

    def next_with(count: int, each: LivePage) -> list[float]:
        told = points(each)["points"][-1]
        while told["totals"]["done"] < count:
            told = points(each, told["number"])["points"][-1]
        return [request["number"] for request in told["slowest"]]

    with live(pipe) as page:
        with live(pipe) as other:
            for each in (page, other):
                points(each)
            pipe({"data": 1})
            assert next_with(1, page) == next_with(1, other) != []
        pipe({"data": 2})
        assert len(next_with(2, page)) == 2
    deadline_s = time.monotonic() + 20
    while pipe.slowest is not None and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert pipe.slowest is None


# ---- who may look ------------------------------------------------------------------------------------------------


def test_a_token_is_asked_for(pipe: fastpipe.Pipe) -> None:
    """The page itself says nothing of the pipe, and is for everybody; names and numbers are not."""
    with live(pipe, host="0.0.0.0", token=TOKEN, name="secret name") as page:
        status, body, _ = ask(page, "/")
        assert (status, b"secret name" in body, b"double" in body) == (200, False, False)
        for path in ("/about", "/points?after=0"):
            for authorization in (
                "",
                "Bearer",
                f"Bearer {TOKEN[:-1]}",
                f"Bearer {TOKEN}x",
                f"Basic {TOKEN}",
                "Bearer ä",
            ):
                status, body, headers = ask(page, path, Authorization=authorization)
                assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
                assert b"secret" not in body
            assert ask(page, path, Authorization=f"Bearer {TOKEN}")[0] == 200
        assert TOKEN not in page.url


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_what_others_can_reach_needs_a_token(pipe: fastpipe.Pipe, host: str) -> None:
    """The error has one to take."""
    with pytest.raises(ValueError, match=r"can be reached from other machines.* pass token=, such as '[\w-]{16,}'"):
        live(pipe, host=host)


@pytest.mark.parametrize("token", ["", "short", "ä" * 20, "a line\nand another one"])
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(pipe: fastpipe.Pipe, token: str) -> None:
    """Also at the loopback: who passes one means it."""
    with pytest.raises(ValueError, match="token must have at least 16 characters"):
        live(pipe, token=token)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("localhost:1234", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("10.0.0.7:8000", 200)),
        *(("evil.example", 403), ("evil.example:8321", 403), ("127.0.0.1.evil.example", 403), ("", 403), ("[", 403)),
    ],
)
def test_a_strangers_name_that_points_here_gets_nothing(pipe: fastpipe.Pipe, host: str, status: int) -> None:
    """DNS rebinding: the browser then believes that the page of a stranger and this one have the same origin."""
    with live(pipe) as page:
        for path in ("/", "/about", "/points"):
            if (path, status) != ("/points", 200):  # which would wait
                assert ask(page, path, Host=host)[0] == status


def test_a_browser_may_run_nothing_but_the_pages_own_script(pipe: fastpipe.Pipe) -> None:
    """And no page of others may read or frame it."""
    with live(pipe) as page:
        _, body, headers = ask(page, "/")
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'sha256-" in policy
        assert "unsafe-inline" not in policy.replace("style-src-attr 'unsafe-inline'", "")
        assert "frame-ancestors 'none'" in policy
        assert not any(name.lower().startswith("access-control") for name in headers)
        assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")
        text = body.decode().replace("http://www.w3.org/2000/svg", "")
        assert not [word for word in ("http:", "https:", "//cdn", "@import", " src=") if word in text]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("POST", "/", 501), ("PUT", "/about", 501), ("GET", "/about/", 404), ("GET", "/../../etc/passwd", 404)),
        *(
            ("GET", "/points?after=x", 200),
            ("GET", "/points?after=-1", 200),
            ("GET", "/points?after=" + "9" * 300, 200),
        ),
        ("GET", "/" + "a" * 70_000, 414),
    ],
)
def test_odd_questions_get_an_answer(pipe: fastpipe.Pipe, method: str, path: str, status: int) -> None:
    """And serving goes on."""
    with live(pipe) as page:
        assert ask(page, path, method)[0] == status
        assert ask(page, "/about")[0] == 200


def test_many_connections_do_not_make_many_threads_and_keep_nobody_out(
    pipe: fastpipe.Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever says nothing, or not enough, makes room for whoever comes; idle for longest, first."""
    monkeypatch.setattr(page_server, "MOST_CONNECTIONS", 4)
    with live(pipe) as page, contextlib.ExitStack() as stack:
        before = threading.active_count()
        silent = []
        for number in range(40):
            silent.append(stack.enter_context(socket.create_connection(("127.0.0.1", page.port), timeout=20)))
            silent[-1].sendall(b"GET / HTTP/1.1\r\nHost: x" if number % 2 else b"")
        assert ask(page, "/about")[0] == 200
        assert points(page)["points"]
        for each in silent[:30]:
            with contextlib.suppress(ConnectionResetError):
                assert each.recv(1) == b""
        deadline_s = time.monotonic() + 20
        while threading.active_count() > before + 5 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert threading.active_count() <= before + 5  # the connections', and the sampler's


def test_who_waits_for_points_is_not_put_out_for_others(pipe: fastpipe.Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. Two wait for a point that does not come. 2. Others come, and are turned away. 3. One gets its answer."""
    monkeypatch.setattr(page_server, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(page_server, "WAIT_S", 1.0)
    asked: list[int] = []
    points_after = sampling.Sampler.points_after

    def noted(self: sampling.Sampler, number: int, wait_s: float) -> list[str]:
        asked.append(number)
        return points_after(self, number, wait_s)

    monkeypatch.setattr(sampling.Sampler, "points_after", noted)
    with live(pipe) as page, contextlib.ExitStack() as stack:
        waiting = [http.client.HTTPConnection("127.0.0.1", page.port, timeout=20) for _ in range(2)]
        for each in waiting:
            stack.enter_context(contextlib.closing(each))
            each.request("GET", "/points?after=999999")
        deadline_s = time.monotonic() + 20
        while len(asked) < 2 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        for _ in range(3):
            with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
                ask(page, "/about")
        assert [each.getresponse().status for each in waiting] == [200, 200]
        waiting[0].close()
        assert ask(page, "/about")[0] == 200


# ---- life --------------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_an_error_that_says_what_to_do(pipe: fastpipe.Pipe) -> None:
    """As is one that cannot be."""
    with live(pipe) as page:
        with pytest.raises(PipeError, match=f"port {page.port} of 127.0.0.1 is in use: port=0 takes one that is free"):
            live(pipe, port=page.port)
        assert ask(page, "/about")[0] == 200
    with live(pipe, port=page.port) as again:  # it is free at once
        assert again.port == page.port
    for port in (-1, 65_536, True, "80"):
        with pytest.raises(ValueError, match="port must be a whole number"):
            live(pipe, port=port)  # type: ignore[arg-type]
    with pytest.raises(PipeError, match=r"cannot listen at 192\.0\.2\.1"):
        live(pipe, host="192.0.2.1", token=TOKEN)
    with pytest.raises(TypeError, match=r"shows a fastpipe\.Pipe, got dict"):
        live({})  # type: ignore[arg-type]


def test_closing_ends_whoever_waits_and_can_be_done_twice(pipe: fastpipe.Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A viewer that waits for the next point does not hold up the service."""
    monkeypatch.setattr(sampling, "EVERY_S", 60)
    page = live(pipe)
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=20)
    connection.request("GET", "/points?after=0")
    deadline_s = time.monotonic() + 20
    while not page._sampler._is_running and time.monotonic() < deadline_s:
        time.sleep(0.005)
    begun_s = time.monotonic()
    page.close()
    page.close()
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.getresponse()
    connection.close()
    assert time.monotonic() - begun_s < 5
    with pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.1", page.port))
    assert not [thread.name for thread in threading.enumerate() if thread.name == "fastpipe live"]


def test_a_closed_pipe_is_said_to_be_closed() -> None:
    """The page stays, with the last numbers."""
    pipe = fastpipe.Pipe(NODES)
    with live(pipe) as page:
        assert points(page)["state"] == "open"
        pipe({"data": 1})
        pipe.close()
        deadline_s = time.monotonic() + 20
        told = points(page)
        while told["state"] == "open" and time.monotonic() < deadline_s:
            told = points(page, told["points"][-1]["number"] if told["points"] else 0)
        assert told["state"] == "closed"
        assert points(page)["points"]
    with live(pipe) as page:  # also one that is closed already
        assert points(page)["state"] == "closed"


def test_a_page_does_not_keep_its_pipe_alive() -> None:
    """Who drops a pipe has it closed, page or not."""
    pipe = fastpipe.Pipe(NODES)
    with live(pipe) as page:
        points(page)
        gone = weakref.ref(pipe)
        del pipe
        deadline_s = time.monotonic() + 20
        while gone() is not None and time.monotonic() < deadline_s:
            gc.collect()
            time.sleep(0.01)
        assert gone() is None
        assert points(page)["state"] == "closed"


def run(script: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program of its own."""
    command = [sys.executable, "-P", "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)


def test_a_process_that_ends_is_not_held_up_by_its_viewers() -> None:
    """Nor does anything of it make noise."""
    begun_s = time.monotonic()
    ran = run("""
        import socket, time, fastpipe
        from fastpipe.observe import live
        pipe = fastpipe.Pipe({"a": {"backend": "Identity"}})
        page = live(pipe)
        viewers = [socket.create_connection(("127.0.0.1", page.port)) for _ in range(3)]
        for viewer in viewers[1:]:
            viewer.sendall(b"GET /points?after=999999 HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
        time.sleep(0.2)
    """)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert time.monotonic() - begun_s < EXIT_DRAIN_S  # which is how long fastpipe waits for threads that do not end


def test_ctrl_c_ends_a_service_with_a_page() -> None:
    """As it would without one."""
    ran = run("""
        import os, signal, socket, threading, time, fastpipe
        from fastpipe.observe import live
        pipe = fastpipe.Pipe({"a": {"backend": "Identity"}})
        page = live(pipe)
        viewer = socket.create_connection(("127.0.0.1", page.port))
        viewer.sendall(b"GET /points?after=999999 HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            time.sleep(30)
        except KeyboardInterrupt:
            page.close()
            print("ended")
    """)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "ended\n", "")


def test_a_child_of_a_fork_lets_go_of_the_page() -> None:
    """The port is free when the parent is done with it, though the child lives; the child's close() ends nothing."""
    ran = run("""
        import os, socket, time, warnings, fastpipe
        from fastpipe.observe import live
        warnings.simplefilter("ignore", DeprecationWarning)
        pipe = fastpipe.Pipe({"a": {"backend": "Identity"}})
        page = live(pipe, name="parent")
        down, up = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            page.close()
            own = live(pipe)
            os.write(up[1], b"x")
            with socket.create_connection(("127.0.0.1", own.port)) as viewer:
                viewer.sendall(b"GET /points?after=0 HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n")
                answer = b"".join(iter(lambda: viewer.recv(4096), b""))
            os.write(1, b"%a\\n" % ('"state":"forked"' in answer.decode()))  # both write: each a line at a time
            os.read(down[0], 1)
            os._exit(0)
        os.read(up[0], 1)
        with socket.create_connection(("127.0.0.1", page.port)) as viewer:
            viewer.sendall(b"GET /about HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n")
            os.write(1, b"%a\\n" % (b"parent" in b"".join(iter(lambda: viewer.recv(4096), b""))))
        page.close()
        live(pipe, port=page.port).close()
        os.write(down[1], b"x")
        os.waitpid(child, 0)
    """)
    assert (ran.returncode, sorted(ran.stdout.split()), ran.stderr) == (0, ["True", "True"], "")


# ---- in the terminal ---------------------------------------------------------------------------------------------


def test_the_command_finds_the_page_and_shows_a_row_for_each_node(
    pipe: fastpipe.Pipe, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a port or a token: the notice of the page has both."""
    with live(pipe, token=TOKEN, name="mine") as page:
        for index in range(30):
            pipe({"data": index})
        assert main(["live", "--once"]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert shown[0].startswith(f"mine  process {os.getpid()}  {page.url}")
        assert "since it was built: 30 accepted, 30 done, 0 failed, 0 cancelled, 0 refused" in shown
        assert [line.split()[0] for line in shown[-3:]] == list(NODES)
        assert main(["live", str(page.port), "--once", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["totals"]["done"] == 30
        assert main(["live", "--list"]) == 0
        assert page.url in capsys.readouterr().out


def test_the_command_says_why_requests_fail(capsys: pytest.CaptureFixture[str]) -> None:
    """Below the table, by node; and the node's row has the rate."""

    def fails(data: int) -> int:
        raise ValueError(data)

    with fastpipe.Pipe({"fails": {"backend": fastpipe.backend(fails)}}) as pipe, live(pipe) as page:
        number = points(page)["points"][-1]["number"]
        for value in range(7):
            with pytest.raises(ValueError, match=str(value)):
                pipe({"data": value})
        points(page, number + 1)
        assert main(["live", "--once"]) == 0
        *_, row, why = capsys.readouterr().out.splitlines()
        assert row.split()[0] == "fails"
        assert row.split()[2].endswith("/s")
        assert why.startswith("fails: error 7 in ")


def test_the_command_says_what_is_missing(pipe: fastpipe.Pipe, capsys: pytest.CaptureFixture[str]) -> None:
    """No page, another token, no live page at all, no address."""
    assert main(["live", "--once"]) == 1
    assert "A service has a page once it says: fastpipe.observe.live(pipe, port=8321)" in capsys.readouterr().err
    with live(pipe, token=TOKEN) as page:
        assert main(["live", page.url, "--token", "x" * 20, "--once"]) == 1
        assert "asks for another token: set FASTPIPE_LIVE_TOKEN, or say --token" in capsys.readouterr().err
        assert main(["live", f"{page.url}about/", "--once"]) == 1
        assert "is no live page of fastpipe: it answers 404" in capsys.readouterr().err
    assert main(["live", str(page.port), "--once"]) == 1
    assert "nobody answers at" in capsys.readouterr().err
    assert main(["live", "gopher://x:1", "--once"]) == 1
    assert "is no port and no URL" in capsys.readouterr().err
    assert main(["live", "host:port", "--once"]) == 1
    assert "is no port and no URL" in capsys.readouterr().err
    assert main(["live", "--list"]) == 0


def test_names_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Nor the page: what cannot be printed is written out."""
    name = "a\x1b-31m\x07"
    with fastpipe.Pipe({name: {"backend": "Identity"}}) as pipe, live(pipe, name="\x1b[2J") as page:
        assert main(["live", str(page.port), "--once"]) == 0
        shown = capsys.readouterr().out
        assert "\x1b" not in shown
        assert "a\\x1b-31m\\x07" in shown


def test_notices_are_their_owners_alone(pipe: fastpipe.Pipe, tmp_path: Path) -> None:
    """They have the token. They go with the page, or with the process."""
    with live(pipe, token=TOKEN) as page:
        (notice,) = (tmp_path / "fastpipe").iterdir()
        assert stat.S_IMODE(notice.stat().st_mode) == 0o600
        assert stat.S_IMODE(notice.parent.stat().st_mode) == 0o700
        assert [found["url"] for found in noticeboard.notices()] == [page.url]
    assert list(noticeboard.notices()) == []
    dead = subprocess.Popen([sys.executable, "-P", "-c", ""])
    dead.wait()
    stale = notice.with_name(f"{dead.pid}-1.json")
    stale.write_text(json.dumps({"pid": dead.pid, "url": "http://127.0.0.1:1/"}))
    assert list(noticeboard.notices()) == []
    assert not stale.exists()


def test_a_folder_that_others_can_write_to_is_not_used(pipe: fastpipe.Pipe, tmp_path: Path) -> None:
    """Whatever lies there could be anybody's; the page is served all the same."""
    (tmp_path / "fastpipe").mkdir()
    (tmp_path / "fastpipe").chmod(0o777)
    with live(pipe) as page:
        assert list((tmp_path / "fastpipe").iterdir()) == []
        assert list(noticeboard.notices()) == []
        assert ask(page, "/about")[0] == 200


def test_the_room_imports_no_server_before_one_is_asked_for() -> None:
    """Whoever wants metrics, or a timeline, does not pay for it."""
    ran = run("""
        import sys, fastpipe.observe
        print("http.server" in sys.modules, callable(fastpipe.observe.live), "http.server" in sys.modules)
    """)
    assert (ran.stdout, ran.stderr) == ("False True True\n", "")
    assert not hasattr(fastpipe.observe, "lives")
