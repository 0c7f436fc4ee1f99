"""Everything that goes wrong in a service, for minutes, in one process: nothing is lost, and nothing grows.

    python tests/promises/soak.py [--minutes 5] [--round 5] [--rounds COUNT] [--seed 0] [--json]
        [--plant memory|thread|file]

In rounds: clients that call a graph of five nodes in every way, with faults, time limits, cancels and full queues
(promise_load.py); queues that reject or shed; equal requests at a cache that is too small; processes that send
images, whole and damaged, over loopback and die in the middle; threads into which an exception is raised; pipes that
are built, fail to be built, are closed from anywhere or dropped. After each round the ledger must be exact; then,
with nobody in flight, it is counted what the process holds. That is judged from the middle of the run on: before,
caches fill. ``--plant`` leaks something in every round, which must be found. The exit status is 0 if every request
has its one outcome and nothing grows.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))
from ledger import CANCELLED, DONE, ERROR, REFUSED, UNCLEAR, Ledger
from promise_load import Client, five_nodes

import fastpipe
from fastpipe import Backend, ConfigError, ItemErrors, Pipe, PipeClosed, QueueFull, Request, RequestTimeout

MOST_REQUESTS_A_ROUND = 1 << 20
ROUND_ENDS_WITHIN_S = 120.0
MOST_PROBLEMS = 20
LEAST_JUDGED = 8
"""Rounds after the middle: fewer say nothing."""

# ---- what is held, and whether it grows ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """Something that a process holds, and by how much it may grow from the middle of the run to its end."""

    count: Callable[[], int]
    allowed_share: float
    """Of what is held at the middle."""
    allowed: float = 0.0
    """Or so much, if that is more."""


def rss_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


HELD = {
    "threads": Held(lambda: len(os.listdir("/proc/self/task")), 0.0, 0.99),
    "files": Held(lambda: len(os.listdir("/proc/self/fd")), 0.0, 0.99),
    # Blocks of Python's allocator: exact, where resident memory has the noise of the C library's.
    "blocks": Held(sys.getallocatedblocks, 0.005),
    "memory": Held(rss_bytes, 0.03),
}


@dataclass(frozen=True)
class Verdict:
    """What became of one thing that is held, from the middle of the run on."""

    at_middle: float
    growth: float
    allowed: float

    @property
    def grows(self) -> bool:
        return self.growth > self.allowed


def growth_of(values: Sequence[float]) -> float:
    """Return by how much values grow from the first to the last: Siegel's repeated median of slopes, times the length.

    A single jump is no growth, wherever it is but in the very middle; noise is not, either.
    """
    slopes = [
        statistics.median((value - other) / (here - there) for there, other in enumerate(values) if there != here)
        for here, value in enumerate(values)
    ]
    return statistics.median(slopes) * (len(values) - 1)


def verdicts_of(samples: dict[str, list[int]]) -> dict[str, Verdict]:
    """Judge the second half of each series; nothing if it is too short."""
    verdicts = {}
    for name, values in samples.items():
        late = values[len(values) // 2 :]
        if len(late) >= LEAST_JUDGED:
            held = HELD[name]
            middle = statistics.median(late[: LEAST_JUDGED // 2])
            verdicts[name] = Verdict(middle, growth_of(late), max(held.allowed_share * middle, held.allowed))
    return verdicts


# ---- what goes wrong -------------------------------------------------------------------------------------------------


class Echo(Backend):
    max_batch = 8

    def __init__(self, *, slow_s: float = 0.0) -> None:
        self.slow_s = slow_s

    def forward(self, batch: list[Request]) -> None:
        if self.slow_s:
            time.sleep(self.slow_s)
        for request in batch:
            request["result"] = request["data"]


class Unbuildable(Echo):
    """Fails where it was built twice before."""

    count = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).count += 1
        if self.count == 3:
            raise OSError("the third instance cannot be built")


class Left(Exception):
    """Raised into a thread while it does anything at all."""


def outcome_of(ledger: Ledger, number: int, future: concurrent.futures.Future[Request]) -> None:
    """Note how an accepted request of Echo has ended."""
    try:
        error = future.exception(ROUND_ENDS_WITHIN_S)
    except concurrent.futures.CancelledError:
        ledger.end(number, CANCELLED)
        return
    kinds = {type(None): "", RequestTimeout: "timeout", QueueFull: "queue full", PipeClosed: "closed"}
    if type(error) not in kinds:
        ledger.mistake(f"request {number} got {error!r}")
    if error is None and future.result()["result"] != number:
        ledger.mistake(f"request {number} was answered with {future.result()['result']}")
    ledger.end(number, DONE if error is None else ERROR, kinds.get(type(error), "error"))


def flood(pipe: Pipe, ledger: Ledger, dice: random.Random) -> None:
    """Submit more than a narrow queue holds, with priorities and time limits; cancel some, forget some."""
    futures = []
    for _ in range(dice.randrange(1, 40)):
        number = ledger.accept()
        terms: dict[str, float] = {"priority": dice.randrange(-2, 3)}
        if dice.random() < 0.2:
            terms["timeout"] = dice.random() * 0.01 + 1e-6
        try:
            futures.append((number, pipe.submit({"data": number}, **terms)))
        except QueueFull:
            ledger.end(number, REFUSED)
    for _, future in futures:
        if dice.random() < 0.1:
            future.cancel()
    for number, future in futures:
        outcome_of(ledger, number, future)


def leave(pipe: Pipe, ledger: Ledger, dice: random.Random) -> None:
    """Raise an exception into a thread that calls and submits: its requests end, whoever waits for them."""
    numbers = [ledger.accept() for _ in range(20)]
    requests: list[Request] = [{"data": number} for number in numbers]

    # A lock, not an Event: that would keep its own lock if the exception came in the middle.
    raised = threading.Lock()
    raised.acquire()

    def calls() -> None:
        for request in requests[:10]:
            pipe(request)
        for request in requests[10:]:
            pipe.submit(request)

    def run() -> None:
        with contextlib.suppress(Left):
            calls()
            raised.acquire(timeout=ROUND_ENDS_WITHIN_S)  # there must be no other thread of its number

    thread = threading.Thread(target=run, name="leaver")
    thread.start()
    time.sleep(dice.random() * 0.01)  # anywhere
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Left))
    raised.release()
    thread.join(ROUND_ENDS_WITHIN_S)
    if thread.is_alive():
        ledger.mistake("a thread into which an exception was raised does not end")
    for number, request in zip(numbers, requests, strict=True):
        if request.get("result", number) != number:
            ledger.mistake(f"request {number} was answered with {request['result']}")
        ledger.end(number, UNCLEAR)  # not every one was sent


def swap(pipes: Sequence[Pipe], dice: random.Random) -> None:
    """Give a pipe other instances, and for a moment more or fewer of them; as many as there were in the end."""
    pipe = dice.choice(pipes)
    pipe.swap("main")
    pipe.resize("main", instance_num=dice.randint(1, 4))
    pipe.resize("main", instance_num=2)
    time.sleep(dice.uniform(0, 0.05))


class Named(Echo):
    """Answers with the data and who was run for it; fails for one of ten contents."""

    def forward(self, batch: list[Request]) -> None:
        time.sleep(0.0005)
        failed = {}
        for index, request in enumerate(batch):
            if request["data"][0] % 10 == 9:
                failed[index] = Failing(request["data"])
            else:
                request["result"] = request["data"]
        if failed:
            raise ItemErrors(failed)


class Failing(Exception):
    """What some contents are answered with."""


def ask_alike(pipe: Pipe, ledger: Ledger, dice: random.Random) -> None:
    """Submit requests of which many are equal, to a node that keeps answers; cancel some, and empty the cache."""
    futures = []
    for _ in range(dice.randrange(1, 40)):
        number = ledger.accept()
        terms = {"timeout": dice.random() * 0.01 + 1e-6} if dice.random() < 0.2 else {}
        content = (dice.randrange(30), "x" * dice.randrange(3) * 400)  # more than there is room for
        futures.append((number, content, pipe.submit({"data": content, "number": number}, **terms)))
    for _, _, future in futures:
        if dice.random() < 0.2:
            future.cancel()
    if dice.random() < 0.1:
        pipe.clear_cache()
    for number, content, future in futures:
        try:
            error = future.exception(ROUND_ENDS_WITHIN_S)
        except concurrent.futures.CancelledError:
            ledger.end(number, CANCELLED)
            continue
        if error is None and (future.result()["result"], future.result()["number"]) != (content, number):
            ledger.mistake(f"request {number}, {content[0]}, was answered with {future.result()}")
        if isinstance(error, Failing) and (content[0] % 10 != 9 or error.args != (content,)):
            ledger.mistake(f"request {number}, {content[0]}, has the error of another: {error!r}")
        if not isinstance(error, None | Failing | RequestTimeout):
            ledger.mistake(f"request {number} got {error!r}")
        ledger.end(
            number, DONE if error is None else ERROR, "timeout" if isinstance(error, RequestTimeout) else "error"
        )


def build_and_end(ledger: Ledger, dice: random.Random) -> None:
    """Build a pipe and end it in one of the ways there are, or fail to build it."""
    way = dice.choice(["close", "close at once", "close elsewhere", "close inside", "drop", "fail", "mistake"])
    if way == "fail":
        try:
            Pipe(backend=type("Unbuildable", (Unbuildable,), {}), instance_num=4)
        except OSError:
            return
        ledger.mistake("a backend raised, and its pipe was built")
    if way == "mistake":
        try:
            Pipe(first={"backend": Echo, "next": "secondd"}, second={"backend": Echo})
        except ConfigError:
            return
        ledger.mistake("a pipe was built of a misspelt name")
    backend: type[Backend] = type("Bound", (Echo,), {"thread_bound": True}) if dice.random() < 0.5 else Echo
    closes: dict[int, Callable[[], None]] = {}

    @fastpipe.backend
    def may_close(data: int) -> int:
        if closes.get(data):
            closes[data]()
        return data

    pipe = Pipe(
        first={"backend": backend, "instance_num": dice.randrange(1, 4), "next": "second"},
        second={"backend": may_close, "instance_num": 2},
    )
    numbers = [ledger.accept() for _ in range(20)]
    if way == "close inside":
        closes[numbers[10]] = pipe.close
    futures = {}
    for number in numbers:
        try:
            futures[number] = pipe.submit({"data": number})
        except PipeClosed:
            ledger.end(number, REFUSED)
    if way == "close elsewhere":
        closer = threading.Thread(target=pipe.close, kwargs={"timeout": dice.random() * 0.01})
        closer.start()
        closer.join(ROUND_ENDS_WITHIN_S)
    elif way in ("close", "close at once"):
        pipe.close(None if way == "close" else 0)
    for number, future in futures.items():
        outcome_of(ledger, number, future)
    if way == "close inside":
        pipe.close()


CHILD = """
import os, random, resource, signal, socket, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
port, seed, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dice, image = random.Random(seed), open(path, "rb").read()
connection = socket.create_connection(("127.0.0.1", port), 30)
def damaged():
    way = dice.randrange(4)
    if way == 0:
        return image
    if way == 1:
        return image[:dice.randrange(len(image))]
    if way == 2:
        return dice.randbytes(dice.randrange(1, 2000))
    flipped = bytearray(image)
    for _ in range(dice.randrange(1, 20)):
        flipped[dice.randrange(len(image))] ^= 1 << dice.randrange(8)
    return bytes(flipped)
for _ in range(dice.randrange(1, 30)):
    content = damaged()
    connection.sendall(len(content).to_bytes(4, "big") + content)
    if dice.random() < 0.8 and connection.recv(1) not in (b"y", b"n", b"e"):
        sys.exit("a wrong answer")
end = dice.randrange(5)
if end == 0:
    os._exit(3)
if end == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if end == 2:
    os.kill(os.getpid(), signal.SIGSEGV)
if end == 3:
    connection.sendall(b"\\0\\0\\xff\\xff" + image[:100])
    os._exit(0)
connection.shutdown(socket.SHUT_WR)
while connection.recv(100):
    pass
"""


class Server:
    """An asyncio service on loopback, on a thread of its own: each connection sends images, and may break off."""

    def __init__(self, pipe: Pipe, folder: Path) -> None:
        import cv2
        import numpy as np

        self.pipe = pipe
        self.image = folder / "image.jpg"
        rng = np.random.default_rng(0)
        pixels = cv2.resize(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (320, 240))
        self.image.write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes())
        self.whole = self.image.read_bytes()
        self.ledger = Ledger(0)
        self.open: set[asyncio.Task[None]] = set()
        self.loop = asyncio.new_event_loop()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self._run, name="server")
        self.thread.start()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self.stopped = asyncio.Event()
        async with await asyncio.start_server(self._connection, sock=self.socket):
            await self.stopped.wait()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        this = asyncio.current_task()
        assert this is not None
        self.open.add(this)
        tasks: list[asyncio.Task[None]] = []
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(4), "big")
                content = await reader.readexactly(size)
                tasks.append(asyncio.create_task(self._answer(content, writer, len(tasks))))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            # Who has said that nothing more comes is answered; whoever just breaks off is not waited for.
            if not isinstance(error, asyncio.IncompleteReadError) or error.partial:
                for task in tasks:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        finally:
            self.open.discard(this)

    async def _answer(self, content: bytes, writer: asyncio.StreamWriter, index: int) -> None:
        number = self.ledger.accept()
        request: Request = {"data": content}
        try:
            await self.pipe.acall(request, timeout=0.0005 if index % 16 == 15 else 60)
        except asyncio.CancelledError:
            self.ledger.end(number, UNCLEAR)
            raise
        except RequestTimeout:
            self.ledger.end(number, ERROR, "timeout")
            answer = b"e"
        except fastpipe.DecodeError:
            self.ledger.end(number, ERROR)
            answer = b"e"
        else:
            self.ledger.end(number, DONE)
            if content == self.whole and getattr(request.get("result"), "shape", None) != (60, 80, 3):
                self.ledger.mistake("a whole image was not decoded")
            answer = b"y" if "result" in request else b"n"
        if not writer.is_closing():
            writer.write(answer)

    def send(self, dice: random.Random) -> None:
        """Let a process send images until it dies, or is killed."""
        command = [sys.executable, "-I", "-S", "-c", CHILD, str(self.port), str(dice.getrandbits(32)), str(self.image)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(dice.random() * 0.2 if dice.random() < 0.2 else ROUND_ENDS_WITHIN_S)
            child.kill()
            said = child.communicate()[1]
        if "a wrong answer" in said:
            self.ledger.mistake(f"a client was told nonsense: {said}")

    def wait_until_quiet(self) -> bool:
        """Wait until no connection is served; False if that takes too long."""
        deadline = time.monotonic() + ROUND_ENDS_WITHIN_S
        while self.open and time.monotonic() < deadline:
            time.sleep(0.002)
        return not self.open

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.stopped.set)
        self.thread.join(ROUND_ENDS_WITHIN_S)


# ---- rounds ----------------------------------------------------------------------------------------------------------


class Switch:
    """Stands for the ledger of the round in backends that outlive it."""

    def __init__(self) -> None:
        self.now = Ledger(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.now, name)


class Soak:
    """The pipes that stay, and what is done to them in each round."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.dice = random.Random(seed)
        self.totals: Counter[str] = Counter()
        self.problems: list[str] = []
        self.switch = Switch()
        self.five = Pipe(five_nodes(self.switch))
        self.rejects = Pipe(backend=Echo, slow_s=0.0005, max_queue=4, when_full="reject")
        self.sheds = Pipe(backend=Echo, slow_s=0.0005, max_queue=4, when_full="shed_oldest", instance_num=2)
        self.left = Pipe(backend=Echo, instance_num=2, request_timeout=30)
        self.keeps = Pipe(backend=Named, cache=20_000, cache_key="data", cache_ttl=0.2, instance_num=2, max=4)
        self.pipes = [self.five, self.rejects, self.sheds, self.left, self.keeps]
        self.server: Server | None = None
        try:
            import cv2  # noqa: F401
        except ImportError:
            return
        images = Pipe(
            decode={"backend": "S[DecodeMat,ResizeMat]", "resize_h": 60, "resize_w": 80, "instance_num": 2},
            without_result="end",
        )
        self.pipes.append(images)
        self.server = Server(images, folder)

    def round(self, seconds: float) -> None:
        """Let everybody do his worst for so long; then check that every request has its one outcome."""
        end = time.monotonic() + seconds
        kinds = ["five", "reject", "shed", "left", "alike", "built", *(["images"] if self.server else [])]
        ledgers = {kind: Ledger(MOST_REQUESTS_A_ROUND) for kind in kinds}
        before = [pipe.stats() for pipe in self.pipes]
        self.switch.now = ledgers["five"]
        clients = [Client(self.five, ledgers["five"], self.dice.getrandbits(32), 0.02) for _ in range(3)]
        work: list[Callable[[random.Random], None]] = [
            *(lambda _, client=client: client.run(100) for client in clients),
            lambda dice: flood(self.rejects, ledgers["reject"], dice),
            lambda dice: flood(self.sheds, ledgers["shed"], dice),
            lambda dice: leave(self.left, ledgers["left"], dice),
            lambda dice: build_and_end(ledgers["built"], dice),
            lambda dice: ask_alike(self.keeps, ledgers["alike"], dice),
            lambda dice: swap((self.sheds, self.left, self.keeps), dice),
        ]
        if self.server is not None:
            self.server.ledger = ledgers["images"]
            work += [self.server.send] * 2

        def repeat(action: Callable[[random.Random], None], dice: random.Random) -> None:
            while time.monotonic() < end:
                action(dice)

        with concurrent.futures.ThreadPoolExecutor(len(work)) as executor:
            running = [executor.submit(repeat, action, random.Random(self.dice.getrandbits(32))) for action in work]
            done, late = concurrent.futures.wait(running, seconds + ROUND_ENDS_WITHIN_S)
            if late:
                faulthandler.dump_traceback()
                os._exit(70)  # a hang: nothing can be waited for any more
        self.problems += [f"a client failed: {future.exception()!r}" for future in done if future.exception()]
        if self.server is not None and not self.server.wait_until_quiet():
            self.problems.append("connections stay open whose clients are dead")
        self._settle()
        self._check(ledgers, before)

    def _settle(self) -> None:
        """Wait until nothing is in flight: what was abandoned ends by itself."""
        deadline = time.monotonic() + ROUND_ENDS_WITHIN_S
        for pipe in self.pipes:
            while pipe.in_flight or any(node["queued"] or node["running"] for node in pipe.stats()["nodes"].values()):
                if time.monotonic() > deadline:
                    self.problems.append(f"requests never end: {pipe.stats()}")
                    return
                time.sleep(0.002)

    def _check(self, ledgers: dict[str, Ledger], before: list[dict[str, Any]]) -> None:
        for kind, ledger in ledgers.items():
            try:
                counts = ledger.check()
                index = {"five": 0, "reject": 1, "shed": 2, "alike": 4, "images": 5}.get(kind)
                if index is not None:
                    ledger.check(self.pipes[index].stats(since=before[index]))
            except AssertionError as error:
                self.problems.append(f"{kind}: {error}")
                continue
            self.totals.update({outcome: count for outcome, count in counts.items() if outcome != "new"})
            self.totals.update({f"error: {reason}": count for reason, count in ledger.reasons.items()})

    def close(self) -> None:
        if self.server is not None:
            self.server.stop()
        for pipe in self.pipes:
            pipe.close(ROUND_ENDS_WITHIN_S)


def give_memory_back() -> None:
    """Have freed memory leave the process: glibc would keep up to 64 MB a thread after one large image was freed there.

    It raises both thresholds by itself as long as nobody sets one.
    """
    with contextlib.suppress(AttributeError):
        mallopt, m_trim_threshold, m_mmap_threshold = ctypes.CDLL(None).mallopt, -1, -3
        mallopt(m_trim_threshold, 128 << 10)
        mallopt(m_mmap_threshold, 128 << 10)


def counted(most_threads: int | None) -> dict[str, int]:
    """Count what is held, once dropped pipes' threads, if there are any, have had a second to end."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
    deadline = time.monotonic() + 1
    while most_threads is not None and HELD["threads"].count() > most_threads and time.monotonic() < deadline:
        time.sleep(0.01)
    return {name: held.count() for name, held in HELD.items()}


PLANTED: dict[str, Callable[[], Any]] = {
    "memory": lambda: b"leaked" * (rss_bytes() // 200),
    "thread": lambda: threading.Thread(target=threading.Event().wait, daemon=True).start(),
    "file": lambda: os.open(os.devnull, os.O_RDONLY),
}


def rounds(soak: Soak, options: argparse.Namespace) -> Iterator[dict[str, int]]:
    """Run one round after the other, and yield what is held after each."""
    end = time.monotonic() + 60 * options.minutes
    leaked: list[Any] = []
    threads: int | None = None
    for _ in range(options.rounds):
        if time.monotonic() > end or len(soak.problems) >= MOST_PROBLEMS:
            return
        soak.round(options.round)
        leaked += [PLANTED[kind]() for kind in options.plant]
        held = counted(threads)
        threads = held["threads"]
        yield held


def report_of(soak: Soak, samples: dict[str, list[int]], verdicts: dict[str, Verdict], seconds: float) -> str:
    """Return what a person wants to read."""
    count = len(samples["memory"])
    text = f"{sum(soak.totals[name] for name in ('done', 'error', 'cancelled', 'refused', 'unclear'))} requests"
    text += f" in {count} rounds, {seconds:.0f} s\n"
    text += "".join(f"  {outcome:20}{number:>12}\n" for outcome, number in sorted(soak.totals.items()) if number)
    if soak.server is None:
        text += "no images were sent: OpenCV is not installed\n"
    if not verdicts:
        text += f"what is held was not judged: {count} rounds are too few\n"
    for name, verdict in verdicts.items():
        mark = "GROWS" if verdict.grows else "ok   "
        text += f"{mark} {name:8} {samples[name][0]:>12} first {verdict.at_middle:>12.0f} middle"
        text += (
            f" {samples[name][-1]:>12} last; {verdict.growth:+.1f} since the middle, {verdict.allowed:.1f} allowed\n"
        )
    return text + "".join(f"WRONG {problem}\n" for problem in soak.problems)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run for as long as was asked for; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5, help="how long (5)")
    parser.add_argument("--round", type=float, default=5, metavar="SECONDS", help="how long a round has load (5)")
    parser.add_argument("--rounds", type=int, default=sys.maxsize, metavar="COUNT", help="so many rounds at most")
    parser.add_argument("--seed", type=int, default=0, help="of everything random but the order of threads (0)")
    parser.add_argument("--json", action="store_true", help="write one JSON object, with every sample, instead of text")
    parser.add_argument("--plant", action="append", default=[], choices=PLANTED, help="leak this in every round")
    options = parser.parse_args(arguments)
    give_memory_back()
    unraisable: Counter[str] = Counter()
    sys.unraisablehook = lambda what: unraisable.update([repr(what.exc_value)])
    started = time.monotonic()
    samples: dict[str, list[int]] = {name: [] for name in HELD}
    with (
        tempfile.TemporaryDirectory(prefix="fastpipe-soak-") as folder,
        contextlib.closing(Soak(Path(folder), options.seed)) as soak,  # its threads would keep the process
    ):
        for held in rounds(soak, options):
            for name, value in held.items():
                samples[name].append(value)
    del unraisable[repr(Left())]  # raised into a thread while Python called it from C, and had nobody else to tell
    soak.problems += [f"{count} times unraisable: {what}" for what, count in unraisable.items()]
    verdicts, seconds = verdicts_of(samples), time.monotonic() - started
    is_right = not soak.problems and not any(verdict.grows for verdict in verdicts.values())
    if options.json:
        judged = {name: {**vars(verdict), "grows": verdict.grows} for name, verdict in verdicts.items()}
        what = {"right": is_right, "seconds": seconds, "outcomes": soak.totals, "problems": soak.problems}
        sys.stdout.write(json.dumps({**what, "judged": judged, "samples": samples}) + "\n")
    else:
        sys.stdout.write(report_of(soak, samples, verdicts, seconds))
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
