"""``fastpipe serve``: starts, says where, answers, and ends as a service should; with workers, too."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed here")
pytest.importorskip("orjson", reason="the extra serve is not installed here")

from helpers import WAIT_S, until
from serve_command import START_S, Command, command

from fastpipe import ConfigError, PipeError
from fastpipe.cli.main import main
from fastpipe.cli.serve import size_bytes
from fastpipe.serve.addresses import bind, is_loopback, reserve

ECHO = '[node]\nbackend = "Identity"\nmax = 8\n'
SLOW = '[node]\nbackend = "Sleep"\n"Sleep::time" = 700\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "echo.toml").write_text(ECHO)
    (tmp_path / "slow.toml").write_text(SLOW)
    return tmp_path


def test_sigterm_with_requests_in_flight(folder: Path) -> None:
    """It says where it is; at SIGTERM it is not ready at once, answers what has begun, and ends with 0."""
    with command(folder, "echo.toml", "s=slow.toml", "--delay", "0.4") as running:
        assert running.said == f"http://127.0.0.1:{running.port} serves echo, s"
        assert running.get("/v2/health/ready") == 200
        assert running.infer("echo")[0] == 200
        answers: list[Any] = []
        asking = [threading.Thread(target=lambda: answers.append(running.infer("s"))) for _ in range(3)]
        for each in asking:
            each.start()
        until(lambda: _in_flight(running) >= 3)
        running.process.send_signal(signal.SIGTERM)
        until(lambda: running.get("/v2/health/ready") == 503)
        assert running.get("/v2/health/live") == 200
        for each in asking:
            each.join(START_S)
        assert [status for status, _ in answers] == [200] * 3
        status, errors = running.end()
        assert status == 0, errors
        assert "fastpipe.serve: finishing 3 requests; Ctrl-C again ends at once\n" in errors
        assert "Traceback" not in errors


def _in_flight(running: Command) -> int:
    pytest.importorskip("prometheus_client")
    with running.connected() as connection:
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
    found = re.search(r'fastpipe_in_flight\{pipe="s"\} (\d+)', page)
    return int(found[1]) if found else 0


def test_a_second_signal_does_not_wait(folder: Path) -> None:
    """What is in flight is cut off; the end is there before its answer would be."""
    (folder / "slow.toml").write_text('[node]\nbackend = "Sleep"\n"Sleep::time" = 20000\nhang_timeout = 0.5\n')
    with command(folder, "slow.toml") as running, running.connected() as connection:
        body = {"inputs": [{"name": "data", "datatype": "INT32", "shape": [1], "data": [7]}]}
        connection.request("POST", "/v2/models/slow/infer", json.dumps(body))
        time.sleep(0.1)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        running.process.send_signal(signal.SIGTERM)
        assert running.end()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_models_are_built(folder: Path, number: signal.Signals) -> None:
    """Nothing is waited for; and the paths of unix sockets, which were held, are free: no server is there to do it."""
    (folder / "own.py").write_text(
        "import os, time\nfrom pathlib import Path\n\ndef build():\n    assert Path('socket').is_socket()\n"
        f"    assert Path('socket-of-grpc.lock').exists()\n    os.kill(os.getpid(), {number:d})\n    time.sleep(60)\n"
    )
    with command(folder, "--pipe", "m=own:build", "--grpc", "unix:socket-of-grpc", http="unix:socket") as running:
        status, errors = running.end()
    assert status == 128 + number, errors
    assert not list(folder.glob("socket*"))


SLOW_BACKEND = """
import time
from pathlib import Path

import fastpipe


@fastpipe.backend
def slow(data):
    Path("begun").touch()
    time.sleep(1)
    return data


nodes = {"slow": {"backend": slow}}
"""


def test_ctrl_c_reaches_workers_and_their_parent(folder: Path) -> None:
    """As a terminal sends it: to all. It is one signal, at which what was begun is answered."""
    (folder / "own.py").write_text(SLOW_BACKEND)
    answers: list[Any] = []
    with command(folder, "--pipe", "m=own:nodes", "--workers", "2", has_own_group=True) as running:
        asking = threading.Thread(target=lambda: answers.append(running.infer("m")[0]))
        asking.start()
        until((folder / "begun").exists)
        os.killpg(running.process.pid, signal.SIGINT)
        asking.join(START_S)
        status, errors = running.end()
    assert answers == [200]
    assert status == 0, errors


def test_workers_share_a_port_and_are_replaced(folder: Path) -> None:
    """Two processes answer; one that is killed is replaced; both end with the parent."""
    pytest.importorskip("prometheus_client")
    with command(folder, "echo.toml", "--workers", "2") as running:
        until(lambda: len(_workers(running)) == 2)
        first = _workers(running)
        os.kill(next(iter(first)), signal.SIGKILL)
        until(lambda: len(_workers(running)) == 2 and _workers(running) != first)
        assert running.infer("echo")[0] == 200
        workers = _workers(running)
        running.process.send_signal(signal.SIGTERM)
        status, errors = running.end()
        assert status == 0, errors
        assert "died (status -9); it is replaced" in errors
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


class Load:
    """Clients that ask as fast as they can; every other one opens a connection for each request."""

    def __init__(self, running: Command, count: int = 6) -> None:
        self.running = running
        self.answered = [0] * count
        self.failures: dict[int, list[Exception]] = {number: [] for number in range(count)}
        self.wrong: list[Any] = []
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(count)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(START_S)
        assert not any(thread.is_alive() for thread in self._threads)

    def goes_on(self) -> None:
        """Wait until each client has been answered again."""
        before = list(self.answered)
        until(lambda: all(now > then for now, then in zip(self.answered, before, strict=True)))

    def _ask(self, number: int) -> None:
        body = json.dumps({"inputs": [{"name": "data", "datatype": "INT32", "shape": [1], "data": [number]}]})
        connection = http.client.HTTPConnection("127.0.0.1", self.running.port, timeout=START_S)
        while not self._is_over.is_set():
            try:
                connection.request("POST", "/v2/models/echo/infer", body)
                response = connection.getresponse()
                answer = response.status, json.loads(response.read())["outputs"][0]["data"]
                if answer != (200, [number]):
                    self.wrong.append(answer)
                self.answered[number] += 1
                if number % 2:
                    connection.close()
            except (OSError, http.client.HTTPException) as error:
                self.failures[number].append(error)
                connection.close()
        connection.close()


def test_no_request_fails_while_workers_are_replaced(folder: Path) -> None:
    """Nor does one that comes on a kept connection as its worker ends: its answer tells the client to close that."""
    with command(folder, "echo.toml", "--workers", "2") as running, Load(running) as load:
        first = _children(running)
        assert len(first) == 2
        load.goes_on()
        running.process.send_signal(signal.SIGHUP)
        until(lambda: len(_children(running)) == 2 and first.isdisjoint(_children(running)))
        load.goes_on()
    assert load.wrong == []
    assert not any(load.failures.values()), load.failures


def test_a_worker_that_is_killed_takes_only_its_own_requests_along(folder: Path) -> None:
    """Each client loses one at most, and is answered by the other worker, or by the successor."""
    with command(folder, "echo.toml", "--workers", "2") as running, Load(running) as load:
        load.goes_on()
        victim = min(_children(running))
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(_children(running) - {victim}) == 2)
        load.goes_on()
    assert load.wrong == []
    assert all(len(failures) <= 1 for failures in load.failures.values()), load.failures


def _children(running: Command) -> set[int]:
    pid = running.process.pid
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_workers_end_with_their_parent(folder: Path) -> None:
    """Also when nobody could tell them."""
    pytest.importorskip("prometheus_client")
    with command(folder, "echo.toml", "--workers", "2") as running:
        assert running.said == f"http://127.0.0.1:{running.port} serves echo"
        until(lambda: len(_workers(running)) == 2)
        workers = _workers(running)
        running.process.kill()
        until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def _workers(running: Command) -> set[int]:
    """Return the processes whose pipes are in the metrics of any."""
    try:
        with running.connected() as connection:
            connection.request("GET", "/metrics")
            page = connection.getresponse().read().decode()
    except OSError:  # the one that was asked is gone
        return set()
    return {int(pid) for pid in re.findall(r'fastpipe_healthy\{pid="(\d+)",pipe="echo"\} 1', page)}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bad.toml"], "no backend is named 'Identiti'; did you mean 'Identity'"),
        (["none.toml"], "there is no file 'none.toml'"),
        (["echo.toml", "--http", "127.0.0.1:http"], "an address is host:port"),
        (["e=echo.toml", "e=echo.toml"], "two models are called 'e'"),
        (["--pipe", "os:getcwd"], "--pipe is written NAME=MODULE:ATTRIBUTE"),
        ([".", "echo.toml"], "a folder of models stands alone"),
        (["echo.toml", "--http", "unix:"], "the address 'unix:' has no path"),
        (["echo.toml", "--grpc", "unix:"], "the address 'unix:' has no path"),
        (["echo.toml", "--grpc", f"unix:{'s' * 108}"], "the path has 108 bytes, that of a unix socket has at most 107"),
    ],
)
def test_what_cannot_start(
    arguments: list[str],
    says: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A mistake is said as ``fastpipe check`` says it, one of the address in words; the status is 1."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (folder / "bad.toml").write_text('[node]\nbackend = "Identiti"\n')
    assert main(["serve", "--http", "127.0.0.1:0", "--grpc", "none", *arguments]) == 1
    assert says in capsys.readouterr().err


def test_workers_that_cannot_start(folder: Path) -> None:
    """They end all, and so does the parent."""
    (folder / "bad.toml").write_text('[node]\nbackend = "Identiti"\n')
    with command(folder, "bad.toml", "--workers", "2") as running:
        status, errors = running.end()
        assert status == 1
        assert "could not start (status 1): the server ends" in errors


def test_an_address_in_use() -> None:
    """It is found before anything is built; also by a server of several processes."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for count in (1, 2):
            with pytest.raises(PipeError, match=f"cannot listen at {address}: .*in use"):
                bind(address, count)


def test_an_address_for_grpc_in_use(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers would share it with who has it, if that one shares it: neither would get all of its calls."""
    monkeypatch.chdir(folder)
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["serve", "echo.toml", "--http", "127.0.0.1:0", "--grpc", address, "--workers", "2"]) == 1
    assert f"cannot listen at {address}" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_unix_socket(folder: Path, workers: str) -> None:
    """A server that was killed leaves its path to the next one; one that lives keeps it, and removes it at its end."""
    address = f"unix:{folder / 'socket'}"
    for end in (signal.SIGKILL, signal.SIGTERM):
        with command(folder, "echo.toml", "--workers", workers, http=address) as running:
            assert running.said == f"{address} serves echo"
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(folder / "socket"))
                connection.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.1 200")
            with pytest.raises(PipeError, match="another server has it"):
                bind(address)
            running.process.send_signal(end)
            status, errors = running.end()
            assert (folder / "socket").is_socket() == (end == signal.SIGKILL)
        if end == signal.SIGKILL and workers == "2":  # they end as by SIGTERM, once they see it
            until(lambda: not _listens(folder / "socket"))
    assert status == 0, errors
    assert not list(folder.glob("socket*"))


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def test_the_path_of_a_server_that_does_not_listen_yet(tmp_path: Path) -> None:
    """It is held from the start, so that nobody takes it while models are built; and by one only."""
    path = tmp_path / "socket"
    for _ in range(2):
        listeners = bind(f"unix:{path}", 2)
        for second in (bind, reserve):
            with pytest.raises(PipeError, match=f"cannot listen at unix:{path}: another server has it"):
                second(f"unix:{path}")
        assert path.is_socket()
        for listener in listeners:
            listener.close()
        assert not list(tmp_path.iterdir())


def test_a_path_that_another_program_has(tmp_path: Path) -> None:
    """One that listens keeps it, although it takes no connections; a file that is no socket stays; no trace is left."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as waiting:
        other.bind(str(path))
        other.listen(0)
        waiting.connect(str(path))  # more than there is room for
        with pytest.raises(PipeError, match=f"cannot listen at unix:{path}: another server listens there"):
            bind(f"unix:{path}")
        assert [each.name for each in tmp_path.iterdir()] == ["socket"]
    path.unlink()
    path.write_text("precious")
    with pytest.raises(PipeError, match="something is there that is no socket"):
        bind(f"unix:{path}")
    assert path.read_text() == "precious"
    with pytest.raises(PipeError, match=r"cannot listen at unix:.*: No such file or directory"):
        bind(f"unix:{tmp_path / 'folder' / 'socket'}")
    with pytest.raises(ConfigError, match=r"cannot listen at unix:.*: the path has \d+ bytes"):
        bind(f"unix:{tmp_path / ('s' * 120)}")
    assert [each.name for each in tmp_path.iterdir()] == ["socket"]


def test_only_the_own_socket_is_removed(tmp_path: Path) -> None:
    """Not what somebody has put in its place meanwhile."""
    path = tmp_path / "socket"
    (listener,) = bind(f"unix:{path}")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        listener.close()
        assert path.is_socket()


def test_a_child_that_closes_its_copy_leaves_the_path_alone(tmp_path: Path) -> None:
    """After a fork the socket is in both, and the parent's."""
    path = tmp_path / "socket"
    (listener,) = bind(f"unix:{path}")
    child = os.fork()
    if child == 0:
        listener.close()
        os._exit(0)
    assert os.waitpid(child, 0) == (child, 0)
    assert path.is_socket()
    with pytest.raises(PipeError, match="another server has it"):
        bind(f"unix:{path}")
    listener.close()


def test_pipes_from_code(folder: Path) -> None:
    """``--pipe`` names a pipe, a configuration, or a function of a module beside which the command runs."""
    (folder / "own.py").write_text(
        "import fastpipe\n\n@fastpipe.backend\ndef double(data):\n    return data * 2\n\n"
        "nodes = {'a': {'backend': double}}\n"
    )
    with command(folder, "--pipe", "m=own:nodes") as running:
        assert running.infer("m")[1]["outputs"][0]["data"] == [14]


def test_gunicorn_preload(folder: Path) -> None:
    """The application is made before the fork, and its pipe after it, in each worker."""
    pytest.importorskip("gunicorn")
    (folder / "service.py").write_text("import fastpipe.serve\n\napp = fastpipe.serve.app('echo.toml')\n")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    worker = "uvicorn_worker.UvicornWorker" if _has_module("uvicorn_worker") else "uvicorn.workers.UvicornWorker"
    running = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gunicorn",
            "--preload",
            "-w",
            "2",
            "-k",
            worker,
            "-b",
            f"127.0.0.1:{port}",
            "service:app",
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: _answers(port, running))
    finally:
        running.terminate()
        _, errors = running.communicate(timeout=START_S)
    assert running.returncode == 0, errors
    assert "Traceback" not in errors


def _has_module(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def _answers(port: int, running: Any) -> bool:
    assert running.poll() is None, running.stderr.read()
    try:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)) as connection:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
    except OSError:
        return False


# ---- arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("10KB", 10_000), ("2M", 2_000_000), ("256MiB", 256 << 20), ("1GiB", 1 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    """In bytes, thousands or 1024s."""
    assert size_bytes(text) == size


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["x.toml", "--max-body", "big"],
        ["x.toml", "--max-body", "0"],
        ["x.toml", "--workers", "0"],
        ["x.toml", "--workers", "2", "--live"],
        ["x.toml", "--workers", "2", "--grpc", "127.0.0.1:0"],
        ["x.toml", "--workers", "2", "--grpc", "unix:socket"],
        ["x.toml", "--http", "127.0.0.1:8001"],
        ["--live", "x.toml"],
        ["x.toml", "--live", "70000"],
    ],
)
def test_arguments_that_are_wrong(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The command itself was wrong: status 2."""
    with pytest.raises(SystemExit) as leaving:
        main(["serve", *arguments])
    assert leaving.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_an_address_that_others_reach_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """There is nobody at the door unless there is a token."""
    assert is_loopback("127.0.0.1:1")
    assert is_loopback("[::1]:1")
    assert is_loopback("localhost:1")
    assert is_loopback("unix:/x")
    assert not is_loopback("example.invalid:1")
    (listener,) = bind("0.0.0.0:0")
    listener.close()
    assert "0.0.0.0:0 can be reached from other machines" in caplog.text
    assert reserve("0.0.0.0:00") is None  # where gRPC is to be
    assert "0.0.0.0:00 can be reached from other machines" in caplog.text


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_address_of_grpc_that_is_in_use(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, workers: str
) -> None:
    """It is said in one line, before a model is built."""
    (tmp_path / "echo.toml").write_text(ECHO)
    (other,) = bind("127.0.0.1:0")
    with contextlib.closing(other), caplog.at_level("INFO", "fastpipe"):
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        given = ["--http", "127.0.0.1:0", "--grpc", address, "--workers", workers]
        assert main(["serve", str(tmp_path / "echo.toml"), *given]) == 1
    assert capfd.readouterr().err == f"fastpipe: cannot listen at {address}: [Errno 98] Address already in use\n"
    assert "is built" not in caplog.text


BUILDS_FOR_EVER = """
import time
from pathlib import Path

import fastpipe


def pipe():
    while Path("replace").exists():
        Path("building").touch()
        time.sleep(0.01)
    return fastpipe.Pipe(backend="Identity")
"""


def test_sigterm_while_workers_are_replaced(tmp_path: Path) -> None:
    """The successor, which builds its pipes, ends as well; nobody is started any more; and all was well."""
    (tmp_path / "building_module.py").write_text(BUILDS_FOR_EVER)
    with command(tmp_path, "--pipe", "m=building_module:pipe", "--workers", "2") as running:
        (tmp_path / "replace").touch()
        running.process.send_signal(signal.SIGHUP)
        until((tmp_path / "building").exists)
        running.process.send_signal(signal.SIGTERM)
        status, errors = running.end()
    assert status == 0, errors
