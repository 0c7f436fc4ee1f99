"""Probes that are the same for every HTTP server: each peer says how its service is started, and how it is asked."""

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
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from probes import NO, PARTLY, YES, Cell, at_end, at_once, probe
from served_model import BAD, CRASHES, REFUSED, SCALE

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/: servers are started as by serve.py

from common import WrongAnswer
from serve_load import Server, free_port

__all__ = [
    "SERVICES",
    "Answer",
    "Peer",
    "Running",
    "beside",
    "burst",
    "crash",
    "parts_of",
    "register",
    "running",
    "series",
    "two_instances",
    "under_change",
    "waited",
]

SERVICES = Path(__file__).resolve().parent / "services"
HERE = str(Path(__file__).resolve().parent)
ENDS_WITHIN_S = 40.0
METRICS_WITHIN_S = 20.0
REPLACED_WITHIN_S = 30.0


@dataclass(frozen=True)
class Answer:
    """What a client got, and after how many seconds."""

    status: int
    body: Any
    seconds: float


@dataclass(frozen=True)
class Peer:
    """How a library's service is started and asked.

    Attributes:
        command: its command; the port is put where it has PORT, free ports where it has OTHER1 and OTHER2.
        path: where requests go.
        write: a number as the body of a request.
        read: the body of an answer as ``[number, batch, process]``.
        metrics: the path of its metrics; of another port as ``:OTHER1/path``.
        environment: for every start.
    """

    command: tuple[str, ...]
    path: str
    write: Callable[[int], bytes] = lambda number: json.dumps({"number": number}).encode()
    read: Callable[[bytes], list[int]] = json.loads
    metrics: str = "/metrics"
    environment: tuple[tuple[str, str], ...] = ()


class Running:
    """A service that runs, and the log of its model."""

    def __init__(self, peer: Peer, server: Server, log: Path, others: tuple[int, int] = (0, 0)) -> None:
        self.peer, self.server, self.log, self.others = peer, server, log, others

    def of(self, path: str, write: Callable[[int], bytes], read: Callable[[bytes], Any] = json.loads) -> Running:
        """Return the same service, asked at another address."""
        return Running(Peer((), path, write, read), self.server, self.log, self.others)

    def ask(self, number: int, within_s: float = 60.0) -> Answer:
        """Send a request on a connection of its own and wait for the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=within_s)
        began_s = time.perf_counter()
        try:
            connection.request("POST", self.peer.path, self.peer.write(number), {"Content-Type": "application/json"})
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        seconds = time.perf_counter() - began_s
        return Answer(response.status, self.peer.read(body) if response.status == 200 else body, seconds)

    def ask_all(self, numbers: list[int], apart_s: float = 0.0) -> list[Answer | BaseException]:
        """Send requests at the same time, each so much later than the one before it."""

        def delayed(place: int, number: int) -> Answer:
            time.sleep(place * apart_s)
            return self.ask(number)

        return at_once(
            lambda place=place, number=number: delayed(place, number) for place, number in enumerate(numbers)
        )

    def leave(self, number: int, after_s: float) -> None:
        """Send a request, and close the connection without waiting for the answer."""
        body = self.peer.write(number)
        head = f"POST {self.peer.path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", self.server.port)) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(after_s)

    def get(self, path: str) -> tuple[int, str]:
        """Return status and text of a page."""
        port, slash, page = path.partition("/")
        ports = {"": self.server.port, ":OTHER1": self.others[0], ":OTHER2": self.others[1]}
        connection = http.client.HTTPConnection("127.0.0.1", ports[port], timeout=20)
        try:
            connection.request("GET", slash + page)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def ran(self, number: int) -> bool:
        """Whether the model was given a request."""
        return re.search(rf"\b{number}\b", self.log.read_text()) is not None


@contextmanager
def running(peer: Peer, **settings: object) -> Iterator[Running]:
    """Start the service, ask it once, and end it afterwards.

    Settings are those that ``served_model.py`` reads; in capitals, they are variables of the library's own.
    """
    with tempfile.TemporaryDirectory(prefix="fastpipe-comparison-") as folder:
        log = Path(folder, "log")
        log.touch()
        environment = {
            "COMPARISON_LOG": str(log),
            "TMPDIR": folder,
            "PYTHONPATH": f"{HERE}{os.pathsep}{SERVICES}",
            **dict(peer.environment),
        }
        for key, value in settings.items():
            environment[key if key.isupper() else f"COMPARISON_{key.upper()}"] = str(value)
        others = free_port(), free_port()
        numbers = {"OTHER1": str(others[0]), "OTHER2": str(others[1])}
        server = Server([numbers.get(part, part) for part in peer.command], environment)
        try:
            service = Running(peer, server, log, others)

            def is_ready() -> None:
                answer = service.ask(1)
                if answer.status in {400, 422}:
                    raise WrongAnswer(f"{answer.status}: {answer.body!r}")  # it has started, and will go on like this
                if answer.status != 200:
                    raise ConnectionError(f"{answer.status}: {answer.body!r}")

            server.wait_until(is_ready)
            time.sleep(0.5)
            service.ask(1)
            yield service
        finally:
            server.close()


def seen(answers: list[Answer | BaseException]) -> list[Answer]:
    """Return the answers, or raise what is none."""
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if isinstance(answer, Answer)]


def largest_batch(service: Running) -> Cell:
    """Eight requests at once."""
    answers = seen(service.ask_all([50 * SCALE + each for each in range(8)]))
    assert [answer.body[0] for answer in answers] == [50 * SCALE + each for each in range(8)]
    size = max(answer.body[1] for answer in answers)
    return Cell(YES if size > 1 else NO, f"up to {size} of 8")


def lone(service: Running) -> Cell:
    """One after the other."""
    return waited([service.ask(each).seconds for each in range(20, 25)])


def waited(seconds: list[float]) -> Cell:
    """Say how long lone requests have waited where 300 ms is the most."""
    least, greatest = min(seconds) * 1e3, max(seconds) * 1e3
    if greatest < 100:
        return Cell(YES, "runs at once")
    if least > 250:
        return Cell(PARTLY, "waits the 300 ms that were set")
    return Cell(PARTLY, f"{round(least, -1):.0f} to {round(greatest, -1):.0f} ms")


def failures(answers: list[Answer | BaseException], bad: int) -> Cell:
    """Say who failed beside the bad request, which is the last but one."""
    statuses = [answer.status if isinstance(answer, Answer) else type(answer).__name__ for answer in answers]
    others = [status for place, status in enumerate(statuses) if place != bad]
    failed = sum(status != 200 for status in others)
    assert statuses[bad] != 200, statuses
    return (
        Cell(NO, f"all of its batch fail ({statuses[bad]})")
        if failed
        else Cell(YES, f"only it fails ({statuses[bad]})")
    )


def beside(service: Running, bad: int) -> Cell:
    """Three good requests and a bad one, in one batch."""
    return failures(service.ask_all([50 * SCALE + 1, 50 * SCALE + 2, bad, 50 * SCALE + 3]), 2)


def two_instances(service: Running) -> Cell:
    """Two requests of 300 ms."""
    best: Cell | None = None
    for attempt in range(10):  # which of two processes takes a request is chance in some
        began_s = time.perf_counter()
        answers = seen(service.ask_all([300 * SCALE + 2 * attempt, 300 * SCALE + 2 * attempt + 1]))
        elapsed_s = time.perf_counter() - began_s
        where = "processes" if answers[0].body[2] != answers[1].body[2] else "threads of one process"
        if elapsed_s < 0.55:
            return Cell(YES, where)
        best = Cell(NO, f"one after the other ({elapsed_s:.1f} s)")
    assert best is not None
    return best


def caller_leaves(service: Running) -> Cell:
    """One runs, another waits and its connection is closed."""
    first, gone = 800 * SCALE + 1, 77
    answers = at_once([lambda: service.ask(first), lambda: (time.sleep(0.2), service.leave(gone, 0.2))])
    seen([answers[0]])  # type: ignore[list-item]
    time.sleep(1.0)
    return Cell(NO, "runs all the same") if service.ran(gone) else Cell(YES, "never runs")


def time_limit(service: Running) -> Cell:
    """One runs for a second, another waits behind it."""
    runs, waits = service.ask_all([1000 * SCALE + 1, 78], apart_s=0.1)
    time.sleep(1.5)
    texts = []
    for answer in (runs, waits):
        if isinstance(answer, Answer):
            texts.append(f"{answer.status} after {answer.seconds:.1f} s")
        else:
            texts.append(type(answer).__name__)
    is_run = service.ran(78)
    in_time = [isinstance(answer, Answer) and answer.seconds < 0.7 for answer in (runs, waits)]
    is_late = is_run and not (isinstance(waits, Answer) and waits.status == 200)
    mark = YES if all(in_time) and not is_late else PARTLY if any(in_time) else NO
    behind = "run all the same" if is_late else "run" if is_run else "never run"
    return Cell(mark, f"runs: {texts[0]}; waits: {texts[1]}, {behind}")


def crash(service: Running) -> Cell:
    """The process of the model ends by SIGSEGV; others ask on."""

    def outcome(number: int, within_s: float) -> str:
        try:
            return str(service.ask(number, within_s).status)
        except TimeoutError:
            return f"no answer in {within_s:.0f} s"
        except (OSError, http.client.HTTPException):
            return "connection lost"

    said = outcome(CRASHES, 10.0)
    began_s = time.monotonic()
    while time.monotonic() < began_s + REPLACED_WITHIN_S:
        if outcome(1, 5.0) == "200":
            return Cell(YES, f"{said}; the next request is answered after {time.monotonic() - began_s:.0f} s")
        if service.server.process.poll() is not None:
            return Cell(NO, f"{said}; the server ends")
        time.sleep(0.1)
    return Cell(NO, f"{said}; no other request is answered for {REPLACED_WITHIN_S:.0f} s")


def burst(service: Running) -> Cell:
    """Twelve requests of 200 ms at once."""
    answers = service.ask_all([200 * SCALE + each for each in range(12)])
    counts: dict[str, int] = {}
    for answer in answers:
        name = str(answer.status) if isinstance(answer, Answer) else type(answer).__name__
        counts[name] = counts.get(name, 0) + 1
    answered = counts.pop("200", 0)
    if not counts:
        return Cell(NO, "all are answered: no limit")
    refused = ", ".join(f"{count} x {name}" for name, count in sorted(counts.items()))
    return Cell(YES, f"{answered} answered, {refused}")


def series(text: str) -> Cell:
    """Say what a page of metrics has, beside Python's own."""
    names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    own = {name for name in names if not name.startswith(("python_", "process_"))}
    batch = sorted(name for name in own if "batch" in name)
    return Cell(YES if batch else PARTLY, f"{len(own)} series; batch sizes: {'yes' if batch else 'no'}")


def metrics(service: Running) -> Cell:
    """Look at its metrics."""
    until_s = time.monotonic() + METRICS_WITHIN_S
    while True:  # some write them every few seconds only
        status, text = service.get(service.peer.metrics)
        if status != 200 or "batch" in text or time.monotonic() > until_s:
            break
        time.sleep(0.5)
    return series(text) if status == 200 else Cell(NO, f"{service.peer.metrics}: {status}")


def ended_by(peer: Peer, number: int, **settings: object) -> Cell:
    """Send a signal while a request is in flight: Ctrl-C to all its processes, SIGTERM to the first one."""
    Shared.end()
    with running(peer, max_batch=1, **settings) as service:
        process = service.server.process

        def signal_it() -> float:
            time.sleep(0.25)
            began_s = time.perf_counter()
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
            try:
                process.wait(ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                return -1.0
            return time.perf_counter() - began_s

        answer, seconds = at_once([lambda: service.ask(600 * SCALE + 1), signal_it])
        assert isinstance(seconds, float), seconds
        is_answered = isinstance(answer, Answer) and answer.status == 200
        said = "answered" if is_answered else f"{answer.status}" if isinstance(answer, Answer) else "connection lost"
        if seconds < 0:
            return Cell(NO, f"{said}; runs on after {ENDS_WITHIN_S:.0f} s")
        status = process.returncode
        how = f"status {status}" if status >= 0 else f"ended by {signal.Signals(-status).name}"
        left = left_of(process.pid)
        stays = f", and leaves {left} processes that run on" if left else ""
        return Cell(YES if is_answered and not left else NO, f"{said}; {how} after {seconds:.1f} s{stays}")


def left_of(session: int) -> int:
    """Return how many processes of a session are there still, five seconds after the first of them has ended."""
    time.sleep(5)
    count = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            count += fields[3] == str(session) and fields[0] != "Z"
    return count


def protocol(service: Running, *, infer: Callable[[Running], int]) -> Cell:
    """Ask by the Open Inference Protocol."""
    status, _ = service.get("/v2/health/ready")
    if status != 200:
        return Cell(NO, f"/v2/health/ready: {status}")
    return Cell(YES, f"HTTP; inference: {infer(service)}")


def under_change(service: Running, change: Callable[[], bool]) -> Cell:
    """Send requests without a pause while the model is changed, and count those that fail."""
    statuses: list[int | str] = []
    is_over = threading.Event()

    def ask_on() -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            try:
                statuses.append(service.ask(5 * SCALE + number % 1000).status)
            except OSError as error:
                statuses.append(type(error).__name__)

    asking = threading.Thread(target=ask_on)
    asking.start()
    time.sleep(0.3)
    is_changed = change()
    time.sleep(0.3)
    is_over.set()
    asking.join()
    failed = [status for status in statuses if status != 200]
    assert is_changed
    return Cell(NO if failed else YES, f"{len(failed)} of {len(statuses)} fail" if failed else "none fails")


def parts_of(peer: Peer, ready: Peer | None = None) -> Cell:
    """Read an answer of three parts, 200 ms apart, as it comes; ``ready`` asks whether the service has started."""
    with running(ready or replace(peer, read=lambda body: [])) as service:
        connection = http.client.HTTPConnection("127.0.0.1", service.server.port, timeout=20)
        began_s = time.perf_counter()
        connection.request("POST", peer.path, peer.write(1), {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read1()
        first_s = time.perf_counter() - began_s
        response.read()
        last_s = time.perf_counter() - began_s
        connection.close()
    assert last_s > 0.5, "these were not three parts"
    return Cell(YES if first_s < 0.45 else NO, f"first part after {first_s:.1f} s, the last after {last_s:.1f} s")


class Shared:
    """A service that several probes use one after the other, started by the first of them. Only one of them runs."""

    _one: ClassVar[Shared | None] = None

    def __init__(self, peer: Peer, **settings: object) -> None:
        self.peer, self.settings = peer, settings
        self.stack = ExitStack()
        self.service: Running | None = None

    def get(self) -> Running:
        """Start it, if it does not run."""
        if self.service is None:
            self.end()
            self.service = self.stack.enter_context(running(self.peer, **self.settings))
            Shared._one = self
        return self.service

    @staticmethod
    def end() -> None:
        """End the one that runs."""
        one, Shared._one = Shared._one, None
        if one is not None:
            one.service = None
            one.stack.close()


def register(
    peer: Peer, *, limit: dict[str, object] | None, room: dict[str, object] | None, single: Peer | None = None
) -> None:
    """Register what is asked of every server.

    Args:
        peer: whom.
        single: the same where it takes one request at a time, if that is another address.
        limit: settings that give it a time limit of 300 ms; None: a probe of its own, or a page, says it.
        room: settings that leave room for four requests; None likewise.
    """
    single = single or peer
    at_end(Shared.end)
    batches = Shared(peer, max_batch=8, wait_ms=300)
    fours = Shared(peer, max_batch=4, wait_ms=300)

    def of(shared: Shared, function: Callable[[Running], Cell]) -> Callable[[], Cell]:
        return lambda: function(shared.get())

    def alone(function: Callable[[Running], Cell], **settings: object) -> Callable[[], Cell]:
        def run() -> Cell:
            Shared.end()
            with running(single, **settings) as service:
                return function(service)

        return run

    probe("batching")(of(batches, largest_batch))
    probe("lone")(of(batches, lone))
    probe("metrics")(of(batches, metrics))
    probe("isolation")(of(fours, lambda service: beside(service, REFUSED)))
    probe("batch_raises")(of(fours, lambda service: beside(service, BAD)))
    probe("instances")(alone(two_instances, instances=2, max_batch=1))
    probe("crash")(alone(crash, instances=1, max_batch=1))
    probe("cancellation")(alone(caller_leaves, max_batch=1))
    if limit is not None:
        probe("deadline")(alone(time_limit, max_batch=1, **limit))
    if room is not None:
        probe("overload")(alone(burst, max_batch=1, **room))
    probe("ctrl_c")(lambda: ended_by(single, signal.SIGINT))
    probe("sigterm")(lambda: ended_by(single, signal.SIGTERM))
