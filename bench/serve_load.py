"""Servers in processes of their own, and clients that load them: wrk, tritonclient over gRPC, and one of our own.

The last is for work that takes milliseconds: it keeps each latency as it was, where wrk "corrects" its percentiles for
stalls, and reads no more of an answer than its length.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Numbers, Window, WrongAnswer, summary_of

__all__ = ["DidNotStart", "Post", "Server", "connections", "free_port", "triton_clients", "wrk"]

STARTS_WITHIN_S = 90.0
ENDS_WITHIN_S = 10.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
BODIES_FROM_FILE = """
local file = io.open("{path}", "rb")
wrk.method, wrk.body = "POST", file:read("*a")
file:close()
"""


def free_port() -> int:
    """Return a port of this machine at which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class DidNotStart(RuntimeError):
    """A server ended, or did not answer in time. The message has the end of what it wrote, ``log`` all of it."""

    def __init__(self, log: str, error: BaseException) -> None:
        super().__init__(f"did not start: {log[-800:] or error}")
        self.log = log


class Server:
    """A process, with those that it starts, which listens at ``port``; stopped (SIGSTOP) while others are measured.

    Args:
        command: the port is put behind it, or where it has ``PORT``.
        environment: what is different from this process's.

    Raises:
        DidNotStart: it did not listen in time.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        has_place = any("PORT" in part for part in command)
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by close()
        self.process = subprocess.Popen(
            [part.replace("PORT", str(self.port)) for part in command] + ([] if has_place else [str(self.port)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, **(environment or {})},
            text=True,
            start_new_session=True,
        )

    def wait_until(self, is_ready: Callable[[], object]) -> None:
        """Wait until a first request has had its answer."""
        until_s = time.monotonic() + STARTS_WITHIN_S
        while True:
            try:
                is_ready()
                return
            except WrongAnswer:
                raise
            except Exception as error:
                if self.process.poll() is not None or time.monotonic() > until_s:
                    self.log.seek(0)
                    raise DidNotStart(self.log.read(), error) from error
                time.sleep(0.2)

    def tell(self, line: str) -> float:
        """Have ``fastpipe_told.py`` do something, and return what it answers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def pause(self) -> None:
        """Take no time of the CPUs from now on."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Run again."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def cpu_s(self) -> float:
        """Return the CPU time of all its processes so far, user and system."""
        ticks = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            if int(fields[3]) == self.process.pid:  # the session
                ticks += int(fields[11]) + int(fields[12])
        return ticks / TICKS_PER_S

    def close(self) -> None:
        """End it, by force if it has to be."""
        for number in (signal.SIGCONT, signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(0.01 if number == signal.SIGCONT else ENDS_WITHIN_S)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # who has outlived its parent
        for stream in (self.process.stdin, self.process.stdout, self.log):
            if stream is not None:
                stream.close()


# ---- HTTP ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Post:
    """A request, and what its answer must contain."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    answer_has: bytes = b""

    def written(self) -> bytes:
        """Return it as it goes over a connection."""
        headers = {"Host": "127.0.0.1", **self.headers, "Content-Length": str(len(self.body))}
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + self.body

    def check(self, port: int) -> None:
        """Ask once.

        Raises:
            WrongAnswer: that is no answer to it.
        """
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("POST", self.path, self.body, dict(self.headers))
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status != 200 or self.answer_has not in answer:
            raise WrongAnswer(f"{self.path}: {response.status} {answer[:200]!r}")


def wrk(server: Server, post: Post, clients: int, window: Window) -> Numbers:
    """Load with wrk, on one thread; its percentiles are corrected for stalls.

    Raises:
        WrongAnswer: an answer was not 2xx, or a connection failed.
    """
    with tempfile.TemporaryDirectory(prefix="fastpipe-bench-") as folder:
        body, script = Path(folder, "body"), Path(folder, "script.lua")
        body.write_bytes(post.body)
        script.write_text(BODIES_FROM_FILE.format(path=body))
        headers = [part for name, value in post.headers.items() for part in ("-H", f"{name}: {value}")]
        command = [shutil.which("wrk") or "wrk", "-t1", f"-c{clients}", "--latency", "-s", str(script), *headers]

        def run(seconds: float) -> str:
            address = f"http://127.0.0.1:{server.port}{post.path}"
            ran = subprocess.run([*command, f"-d{seconds:.0f}s", address], capture_output=True, text=True, check=True)
            return ran.stdout

        run(max(1.0, window.warm_up_s))
        began_s = server.cpu_s()
        said = run(max(1.0, window.measured_s))
        cpu_s = server.cpu_s() - began_s
    return numbers_of_wrk(said, cpu_s)


def numbers_of_wrk(said: str, cpu_s: float) -> Numbers:
    """Return what wrk has printed as numbers.

    Raises:
        WrongAnswer: not all requests were answered.
    """
    if "Non-2xx" in said or "Socket errors" in said:
        raise WrongAnswer(said)
    units = {"us": 1.0, "ms": 1e3, "s": 1e6}

    def percentile_us(percent: int) -> float:
        found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s)$", said, re.MULTILINE)
        if found is None:
            raise WrongAnswer(said)
        return float(found[1]) * units[found[2]]

    count, rate = (re.search(form, said) for form in (r"(\d+) requests in", r"Requests/sec:\s+([\d.]+)"))
    if count is None or rate is None or not int(count[1]):
        raise WrongAnswer(said)
    return {
        "requests_per_s": float(rate[1]),
        "p50_us": percentile_us(50),
        "p99_us": percentile_us(99),
        "cpu_us": cpu_s / int(count[1]) * 1e6,
    }


def connections(server: Server, post: Post, clients: int, window: Window, beside: Any = None) -> Numbers:
    """Load with connections that each send the next request when they have the last answer.

    Args:
        server: where.
        post: what.
        clients: how many connections.
        window: how long.
        beside: called on another thread after the warm-up; what is answered until it returns is what counts, however
            long that takes.
    """
    return asyncio.run(_connections(server, post, clients, window, beside))


async def _connections(server: Server, post: Post, clients: int, window: Window, beside: Any) -> Numbers:
    opened = [await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 26) for _ in range(clients)]
    request = post.written()

    def call_of(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Callable[[], Awaitable[None]]:
        async def call() -> None:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
            body = await reader.readexactly(int(length[1]) if length else 0)
            if not head.startswith(b"HTTP/1.1 200"):
                raise WrongAnswer(f"{head!r} {body[:200]!r}")

        return call

    try:
        return await _loop([call_of(*pair) for pair in opened], server, window, beside)
    finally:
        for _, writer in opened:
            writer.close()


async def _loop(
    calls: Sequence[Callable[[], Awaitable[None]]], server: Server, window: Window, beside: Any = None
) -> Numbers:
    """Let each call run again and again, and say how fast that was."""
    latencies_ns: list[int] = []
    is_over = False

    async def client(call: Callable[[], Awaitable[None]]) -> None:
        while not is_over:
            start_ns = time.perf_counter_ns()
            await call()
            latencies_ns.append(time.perf_counter_ns() - start_ns)

    tasks = [asyncio.ensure_future(client(call)) for call in calls]
    try:
        await asyncio.wait(tasks, timeout=window.warm_up_s, return_when=asyncio.FIRST_EXCEPTION)
        latencies_ns.clear()
        start_s, cpu_start_s = time.perf_counter(), server.cpu_s()
        if beside is None:
            await asyncio.wait(tasks, timeout=window.measured_s, return_when=asyncio.FIRST_EXCEPTION)
        else:
            await asyncio.to_thread(beside)
        wall_s, cpu_s = time.perf_counter() - start_s, server.cpu_s() - cpu_start_s
        numbers = summary_of(latencies_ns, wall_s, cpu_s)
        is_over = True
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return numbers


# ---- gRPC ------------------------------------------------------------------------------------------------------


def triton_clients(server: Server, size_bytes: int, clients: int, window: Window) -> Numbers:
    """Load with tritonclient: one connection, and so many calls at once."""
    import numpy as np
    import tritonclient.grpc.aio as triton

    sent = np.random.default_rng(0).integers(0, 255, size_bytes, np.uint8)

    async def run() -> Numbers:
        async with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            tensor = triton.InferInput("data", [size_bytes], "UINT8")
            tensor.set_data_from_numpy(sent)

            async def call() -> None:
                answer = await client.infer("echo", [tensor])
                if answer.as_numpy("result").tobytes() != sent.tobytes():
                    raise WrongAnswer("the echo is another")

            return await _loop([call] * clients, server, window)

    return asyncio.run(run())
