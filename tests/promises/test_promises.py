"""The promises of docs/reliability.md, each proved under load: P1 to P4, P10 to P12, P15, P18 to P21 and P26.

The others are proved where their kind of test lives; docs/reliability.md says where. ``FASTPIPE_SCALE=50`` makes the
loads as large as the document reports; 1 is what CI has time for.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import itertools
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import promise_load as load
import pytest

from fastpipe import Backend, ItemErrors, Pipe, PipeClosed, PipeError, QueueFull, Request, RequestTimeout, _core

ledgers = load.ledgers
scaled = load.scaled
WAIT_S = load.WAIT_S


def our_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("fastpipe")}


class Gate(Backend):
    """Runs only while it is open; notes what came."""

    max_batch = 16

    def __init__(self, *, bound: bool = False) -> None:
        self.inside, self.opened = threading.Event(), threading.Event()
        self.came: list[Any] = []

    def forward(self, batch: list[Request]) -> None:
        self.came += [request["data"] for request in batch]
        self.inside.set()
        assert self.opened.wait(WAIT_S)
        for request in batch:
            request["result"] = request["data"]


# ---- P1 and P2: outcomes ---------------------------------------------------------------------------------------------


def test_p01_exactly_once() -> None:
    """Five nodes, 32 clients, all ways of calling, every fault at one in a hundred: each request has one outcome."""
    count = scaled(200_000) // 32 * 32
    ledger = ledgers.Ledger(count + load.SURE)
    with Pipe(load.five_nodes(ledger)) as pipe:
        load.be_sure_of_each_end(pipe, ledger)
        clients = [load.Client(pipe, ledger, seed) for seed in range(32)]
        load.run_clients(clients, count // 32)
    counts = ledger.check(pipe.stats())
    # How many are shed is a matter of the machine; all else is planned.
    assert counts["done"] > count * 0.5
    assert counts["done"] + ledger.reasons["queue full"] > count * 0.9
    assert all(counts[kind] for kind in ("error", "cancelled"))
    assert {"error", "timeout"} <= set(ledger.reasons)
    ran = [number for number in range(len(ledger)) if ledger.state(number) == ledgers.CANCELLED and ledger.runs(number)]
    assert not ran, f"these were cancelled, and a backend got them: {ran[:9]}"


DELAYED = ("admit", "admitted", "push", "pushed", "take", "taken", "sleep", "forward", "return", "end", "ended", "wake")
DEADLY = ("take", "taken", "forward", "return", "end", "ended", "release", "sleep")  # of the worker that comes there
FAILING = ("admitted", "push")  # the request


@pytest.mark.skipif(not hasattr(_core, "_hook"), reason="compiled without hooks")
def test_p01_exactly_once_with_faults_inside_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same while threads are held up at every named point, workers die, and admissions fail."""
    count = scaled(40_000) // 32 * 32
    deaths: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda what: deaths.append(what.exc_value))
    # A client that submits in a callback may stumble on a worker's thread, in a turn that is not the worker's.
    report = sys.unraisablehook
    monkeypatch.setattr(
        sys, "unraisablehook", lambda what: None if isinstance(what.exc_value, load.Stumbled) else report(what)
    )
    source = random.Random(1)
    forwards = itertools.count(1)  # of workers

    def action(point: str) -> Callable[[], None]:
        def act() -> None:
            chance = source.random()
            if chance < 0.01:
                time.sleep(source.random() * 0.0005)
            is_worker = "#" in threading.current_thread().name  # not the clock
            if 0.01 < chance < (0.02 if point in FAILING else 0.012 if point in DEADLY and is_worker else 0.0):
                raise load.Stumbled(point)
            # Chance might spare all workers that hold requests: a few die for certain.
            if point == "forward" and is_worker and next(forwards) % 100 == 0:
                raise load.Stumbled(point)

        return act

    ledger = ledgers.Ledger(count)
    try:
        with Pipe(load.five_nodes(ledger)) as pipe:
            for point in {*DELAYED, *DEADLY, *FAILING}:
                _core._hook(point, action(point))
            load.run_clients([load.Client(pipe, ledger, seed) for seed in range(32)], count // 32)
            for point in _core._HOOKS:
                _core._hook(point, None)
            assert pipe.health()["healthy"]
    finally:
        for point in _core._HOOKS:
            _core._hook(point, None)
    counts = ledger.check(pipe.stats())
    assert counts["done"] > count * 0.2
    assert counts["done"] + ledger.reasons["queue full"] > count * 0.5
    assert len(deaths) == sum(node["worker_deaths"] for node in pipe.stats()["nodes"].values()) > 0
    assert ledger.reasons["worker died"] > 0


@pytest.mark.parametrize("timeout", [None, 0.0, 0.02])
def test_p01_exactly_once_although_it_is_closed(timeout: float | None) -> None:
    """The same, closed at some moment, ten times: what was accepted has ended, what comes later is refused."""
    for turn in range(scaled(10)):
        ledger = ledgers.Ledger(16 * 400)
        pipe = Pipe(load.five_nodes(ledger))
        clients = [load.Client(pipe, ledger, 100 * turn + seed) for seed in range(16)]
        stopped = threading.Event()

        def send(client: Any, stopped: threading.Event = stopped) -> None:
            ways = [client.call, client.submit, client.tasks]
            sent = 0
            while sent < 360 and not stopped.is_set():
                size = client.random.randrange(1, 20)
                client.random.choice(ways)(size)
                sent += size

        with concurrent.futures.ThreadPoolExecutor(16) as executor:
            futures = [executor.submit(send, client) for client in clients]
            while pipe.stats()["requests"]["accepted"] < 50 + 37 * turn % 1000:
                time.sleep(0.0005)
            pipe.close(timeout=timeout)
            stopped.set()
            for future in futures:
                future.result(4 * WAIT_S)
        pipe.close()
        ledger.check(pipe.stats())


def test_p02_right_answer_to_the_right_caller() -> None:
    """Each request has a random number of 128 bits, and gets what is made of it; batches of up to 32, nothing fails."""
    count = scaled(60_000) // 24 * 24
    ledger = ledgers.Ledger(count)
    plenty = {"max_queue": 1_000_000}
    with Pipe(load.five_nodes(ledger, c={"max_queue": 1_000_000}, a=plenty)) as pipe:
        clients = [load.Client(pipe, ledger, seed, share=0.0) for seed in range(24)]
        load.run_clients(clients, count // 24)
    counts = ledger.check(pipe.stats())
    assert counts == {name: count if name == "done" else 0 for name in ledgers.NAMES}
    assert pipe.stats()["nodes"]["c"]["mean_batch"] > 1.2


# ---- P3 and P4: what backends raise ----------------------------------------------------------------------------------


class FailsSome(Backend):
    """Fails the requests that are marked, one of two ways."""

    max_batch = 8

    def __init__(self, *, ledger: Any, per_item: bool) -> None:
        self.ledger = ledger
        self.per_item = per_item

    def forward(self, batch: list[Request]) -> None:
        errors: dict[int, BaseException] = {}
        for index, request in enumerate(batch):
            self.ledger.note_run(request["data"][0])
            request["result"] = request["data"]
            if request["data"][1]:
                errors[index] = load.Planned(request["data"][0])
        if errors:
            raise ItemErrors(errors) if self.per_item else next(iter(errors.values()))


@pytest.mark.parametrize("per_item", [False, True])
def test_p03_batch_isolation(per_item: bool) -> None:
    """Two of eight are bad: exactly these fail, and no good one comes to the backend more than twice (once)."""
    clients, rounds = 4, scaled(100)
    ledger = ledgers.Ledger(clients * rounds * 40)

    def client() -> None:
        for _ in range(rounds):
            requests: list[Request] = []
            for place in range(40):
                requests.append({"data": (ledger.accept(), place % 8 in (1, 3))})
            for future, request in [(pipe.submit(request), request) for request in requests]:
                number, is_bad = request["data"]
                error = future.exception(WAIT_S)
                if (error is not None) != is_bad or (is_bad and error.args != (number,)):  # type: ignore[union-attr]
                    ledger.mistake(f"{request}: {error!r}")
                if ledger.runs(number) > (1 if per_item else 2):
                    ledger.mistake(f"{request} came {ledger.runs(number)} times")
                ledger.end(number, ledgers.ERROR if error else ledgers.DONE)

    with (
        Pipe(backend=FailsSome, ledger=ledger, per_item=per_item, instance_num=2) as pipe,
        concurrent.futures.ThreadPoolExecutor(clients) as executor,
    ):
        for done in [executor.submit(client) for _ in range(clients)]:
            done.result()
    assert ledger.check(pipe.stats())["error"] == len(ledger) // 4
    assert pipe.stats()["nodes"]["main"]["mean_batch"] > 1


class Speechless(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise ValueError("no words")


class Forbids(Exception):
    """Takes no notes."""

    def add_note(self, note: str) -> None:
        raise RuntimeError("no notes")


KINDS: list[Callable[[int], BaseException]] = [
    ValueError,
    KeyError,
    StopIteration,
    StopAsyncIteration,
    GeneratorExit,
    KeyboardInterrupt,
    SystemExit,
    MemoryError,
    asyncio.CancelledError,
    RecursionError,
    Speechless,
    Forbids,
    lambda number: ExceptionGroup(f"group {number}", [ValueError(number)]),
]


class RaisesAllKinds(Backend):
    max_batch = 4

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = request["data"]
            number, kind = request["data"]
            if kind is not None:
                try:
                    raise LookupError(f"why {number}")
                except LookupError as cause:
                    raise KINDS[kind](number) from cause


def test_p04_backend_exceptions() -> None:
    """Thirteen kinds, one request in ten: its own object with traceback and cause; as many workers as before."""
    count = scaled(4_000) // 8 * 8
    ledger = ledgers.Ledger(count)

    def check(number: int, kind: int | None, error: BaseException | None) -> None:
        if kind is None:
            if error is not None:
                ledger.mistake(f"{number} has done nothing wrong, and got {type(error)}")
            ledger.end(number, ledgers.DONE)
            return
        expected = type(KINDS[kind](number))
        if type(error) is not expected or type(error.__cause__) is not LookupError or error.__traceback__ is None:
            ledger.mistake(f"{number} should have {expected}, and has {type(error)}")
        elif error.__cause__.args != (f"why {number}",):
            ledger.mistake(f"{number} has somebody else's {expected}")
        ledger.end(number, ledgers.ERROR)

    def client(seed: int) -> None:
        source = random.Random(seed)
        for _ in range(count // 8):
            kind = source.randrange(len(KINDS)) if source.random() < 0.1 else None
            request: Request = {"data": (ledger.accept(), kind)}
            error: BaseException | None = None
            try:
                if source.random() < 0.5:
                    pipe(request)
                else:
                    error = pipe.submit(request).exception(WAIT_S)
            except BaseException as raised:
                error = raised
            check(*request["data"], error)

    pipe = Pipe(backend=RaisesAllKinds, instance_num=3)
    before = our_threads()
    with pipe, concurrent.futures.ThreadPoolExecutor(8) as executor:
        for done in [executor.submit(client, seed) for seed in range(8)]:
            done.result()
        assert our_threads() == before
    assert len(before) == 3
    assert ledger.check(pipe.stats())["error"] > count / 20


# ---- P10 and P11: cancelling and deadlines ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["future", "task", "walk"])
@pytest.mark.parametrize("place", ["queued", "running", "ended"])
def test_p10_cancelling_where_it_counts(way: str, place: str) -> None:
    """Queued, no backend sees it; running, its client is released at once, the result is dropped; ended, it is late."""
    gate = Gate()
    gate.thread_bound = True  # type: ignore[misc]
    request: Request = {"data": "it"}

    async def as_a_task() -> None:
        task = asyncio.create_task(pipe.acall(request))
        await asyncio.sleep(0)
        await asyncio.to_thread(reach)
        if place == "ended":
            await task
        assert task.cancel() == (place != "ended")
        if place != "ended":
            with pytest.raises(asyncio.CancelledError):
                await task

    def reach() -> None:
        """Wait until the request is where it is to be cancelled."""
        if place == "running":
            assert gate.inside.wait(WAIT_S)
        elif place == "ended":
            gate.opened.set()

    with Pipe(backend=gate, max=1) as pipe:
        if place == "queued":
            first = pipe.submit({"data": "first"})
            assert gate.inside.wait(WAIT_S)
        if way == "task":
            asyncio.run(as_a_task())
        elif way == "walk":
            walk = pipe._start(request, None, 0)
            reach()
            assert place != "ended" or walk.wait() is None
            assert walk.cancel() == (place != "ended")
        else:
            future = pipe.submit(request)
            reach()
            assert place != "ended" or future.result(WAIT_S)
            assert future.cancel() == (place == "queued")  # a concurrent future that runs cannot be cancelled
        assert place == "ended" or not gate.opened.is_set()
        gate.opened.set()
        if place == "queued":
            assert first.result(WAIT_S)["result"] == "first"
        assert pipe({"data": "after"})["result"] == "after"
    cancelled = place == "queued" or (place == "running" and way != "future")
    assert ("it" in gate.came) == (place != "queued")
    assert request == ({"data": "it"} if cancelled else {"data": "it", "result": "it"})
    assert pipe.stats()["requests"]["cancelled"] == cancelled


class Value:
    """Something of which one can see whether it is gone."""

    def __init__(self, number: int, hold: Any = None) -> None:
        self.number = number
        self.hold = hold


class Echo(Backend):
    """Takes long enough for a queue to build up."""

    max_batch = 8

    def __init__(self, *, ledger: Any) -> None:
        self.ledger = ledger
        self.random = random.Random(10)

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            self.ledger.note_run(request["data"].number)
            request["result"] = request["data"]
            if request["data"].hold is not None:
                request["data"].hold.stand()
        time.sleep(self.random.random() * 0.002)


def test_p10_random_cancels() -> None:
    """Cancelled by another thread at some moment: no backend sees what was cancelled in time, and nothing is kept.

    First both instances are held: what is queued then is cancelled for certain. Chance has the rest.
    """
    count = scaled(8_000) // 4 * 4
    ledger = ledgers.Ledger(2 + 40 + count)
    alive: weakref.WeakSet[Value] = weakref.WeakSet()
    with Pipe(backend=Echo, ledger=ledger, instance_num=2) as pipe, concurrent.futures.ThreadPoolExecutor(8) as threads:

        def start(hold: Any = None) -> tuple[int, concurrent.futures.Future[Request]]:
            value = Value(ledger.accept(), hold)
            alive.add(value)
            return value.number, pipe.submit({"data": value})

        def placed() -> None:
            hold = load.Hold()
            goes_on = []
            for _ in range(2):
                goes_on.append(start(hold))
                assert hold.inside.acquire(timeout=WAIT_S)
            for place in range(40):
                number, future = start()
                if place % 2:
                    goes_on.append((number, future))
                else:
                    assert future.cancel()
                    ledger.end(number, ledgers.CANCELLED)
            assert pipe.stats()["requests"]["cancelled"] == 20
            hold.opened.set()
            for number, future in goes_on:
                assert future.result(WAIT_S)["result"].number == number
                ledger.end(number, ledgers.DONE)
            assert pipe.stats()["requests"] == {
                "accepted": 42,
                "in_flight": 0,
                "done": 22,
                "failed": 0,
                "cancelled": 20,
                "refused": 0,
            }

        placed()

        def cancel(futures: list[concurrent.futures.Future[Request]], seed: int) -> None:
            source = random.Random(seed)
            for future in futures:
                if source.random() < 0.5:
                    time.sleep(source.random() * 0.0002)
                    future.cancel()

        def client(seed: int) -> None:
            for turn in range(count // 4 // 20):
                requests: list[Request] = [{"data": Value(ledger.accept())} for _ in range(20)]
                alive.update(request["data"] for request in requests)
                futures = [pipe.submit(request) for request in requests]
                canceller = threads.submit(cancel, futures[::-1], 1000 * seed + turn)
                for future, request in zip(futures, requests, strict=True):
                    number = request["data"].number
                    try:
                        assert future.result(WAIT_S)["result"] is request["data"]
                        ledger.end(number, ledgers.DONE)
                    except concurrent.futures.CancelledError:
                        ledger.end(number, ledgers.CANCELLED)
                canceller.result(WAIT_S)

        for done in [threads.submit(client, seed) for seed in range(4)]:
            done.result()
        del done
    counts = ledger.check(pipe.stats())
    assert counts["cancelled"] > 20
    assert counts["done"] > count / 20
    for number in range(len(ledger)):
        assert ledger.runs(number) == (ledger.state(number) == ledgers.DONE)
    gc.collect()
    assert not alive


def test_p11_deadline_honoured_in_the_queue() -> None:
    """A thousand random deadlines behind a held instance: exactly those that are past fail, in time, and never run."""
    source = random.Random(11)
    gate = Gate()
    with Pipe(backend=gate) as pipe:
        first = pipe.submit({"data": "first"})
        assert gate.inside.wait(WAIT_S)
        short, endless = [], []
        for index in range(1000):
            if source.random() < 0.5:
                short.append((index, pipe.submit({"data": index}, timeout=source.uniform(0.0001, 0.3))))
            else:
                endless.append((index, pipe.submit({"data": index}, timeout=source.uniform(1000, 2000))))
        for _, future in short:
            assert isinstance(future.exception(WAIT_S), RequestTimeout)
        assert not first.done()
        assert pipe.stats()["failures"] == {"timeout": len(short)}
        gate.opened.set()
        for index, future in endless:
            assert future.result(WAIT_S)["result"] == index
    assert gate.came == ["first", *(index for index, _ in endless)]


def test_p11_who_is_late_makes_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    """Time limits that are over while the request is being started: nothing is logged."""

    def client(seed: int) -> None:
        source = random.Random(seed)
        for _ in range(scaled(300)):
            futures = [pipe.submit({"data": 1}, timeout=source.uniform(0.0001, 0.001)) for _ in range(4)]
            concurrent.futures.wait(futures, WAIT_S)

    gate = Gate()
    gate.opened.set()
    with Pipe(backend=gate, max=2) as pipe, concurrent.futures.ThreadPoolExecutor(8) as executor:
        for done in [executor.submit(client, seed) for seed in range(8)]:
            done.result()
    assert not caplog.records


# ---- P12: room (what memory does is in test_promises_of_processes.py) ------------------------------------------------


@pytest.mark.parametrize("when_full", ["reject", "shed_oldest", "block"])
def test_p12_the_queue_never_grows_above_its_limit(when_full: str) -> None:
    """Sixteen clients, far more than one slow instance can do: looked at all the time, no more than 10 wait."""
    gate = Gate()
    gate.opened.set()
    stop = threading.Event()
    most = 0
    ledger = ledgers.Ledger(16 * scaled(400))

    def client() -> None:
        for _ in range(scaled(400)):
            number = ledger.accept()
            try:
                future = pipe.submit({"data": number}, timeout=60.0)
            except QueueFull:
                ledger.end(number, ledgers.REFUSED)
                continue
            if number % 4 == 0:
                error = future.exception(WAIT_S)
                ledger.end(number, ledgers.ERROR if error else ledgers.DONE, "queue full")
            else:
                future.add_done_callback(
                    lambda future, number=number: ledger.end(  # type: ignore[misc]
                        number, ledgers.ERROR if future.exception() else ledgers.DONE, "queue full"
                    )
                )

    def look() -> None:
        nonlocal most
        while not stop.is_set():
            most = max(most, pipe.stats()["nodes"]["main"]["queued"])
            time.sleep(0.0002)

    with Pipe(backend=gate, max=4, max_queue=10, when_full=when_full) as pipe:
        watcher = threading.Thread(target=look)
        watcher.start()
        with concurrent.futures.ThreadPoolExecutor(16) as executor:
            for done in [executor.submit(client) for _ in range(16)]:
                done.result()
        stop.set()
        watcher.join()
    counts = ledger.check(pipe.stats())
    assert most <= 10
    assert counts["refused"] == 0 or when_full == "reject"
    assert counts["error"] == 0 or when_full == "shed_oldest"
    assert counts["done"] == len(ledger) or when_full != "block"


@pytest.mark.parametrize("when_full", ["reject", "shed_oldest", "block"])
def test_p12_no_place_in_a_queue_is_ever_lost(when_full: str) -> None:
    """After thousands of requests that were cancelled, late, shed or refused, exactly as many may wait as before."""
    gate = Gate()
    gate.opened.set()
    rounds = scaled(150)

    def client(seed: int) -> None:
        source = random.Random(seed)
        for _ in range(rounds):
            futures: list[concurrent.futures.Future[Request]] = []
            for _ in range(4):
                timeout = source.choice([60.0, 0.0002, 0.001])
                with contextlib.suppress(QueueFull, RequestTimeout):
                    futures.append(pipe.submit({"data": b"x" * source.randrange(9)}, timeout=timeout))
                if futures and source.random() < 0.4:
                    source.choice(futures).cancel()
            concurrent.futures.wait(futures, WAIT_S)

    keys: dict[str, Any] = {"max_queue": 6, "max_queue_bytes": 30, "when_full": when_full}
    with Pipe(backend=gate, max=2, **keys) as pipe:
        with concurrent.futures.ThreadPoolExecutor(8) as executor:
            for done in [executor.submit(client, seed) for seed in range(8)]:
                done.result()
        assert pipe({"data": b""})["result"] == b""  # behind what is late, and still runs
        gate.opened.clear()
        gate.inside.clear()
        first = pipe.submit({"data": "first"})
        assert gate.inside.wait(WAIT_S)
        waiting = [pipe.submit({"data": b"12345"}) for _ in range(6)]
        assert not any(future.done() for future in waiting)
        assert pipe.stats()["nodes"]["main"]["queued"] == 6
        if when_full == "shed_oldest":
            waiting.append(pipe.submit({"data": b""}))
            assert isinstance(waiting.pop(0).exception(WAIT_S), QueueFull)
        else:
            with pytest.raises((QueueFull, RequestTimeout)):
                pipe.submit({"data": b""}, timeout=0.01)
        gate.opened.set()
        assert all(future.result(WAIT_S) for future in [first, *waiting])


# ---- P15: memory of a device -----------------------------------------------------------------------------------------


class SmallDevice(Backend):
    """Has room for so many bytes, another number each time, but always for the largest request that may come."""

    max_batch = 16

    def __init__(self, *, ledger: Any) -> None:
        self.ledger = ledger
        self.random = random.Random(15)

    def forward(self, batch: list[Request]) -> None:
        room = self.random.randrange(100, 1000)
        if sum(request["data"][1] for request in batch) > room:
            raise MemoryError("no room on the device")
        for request in batch:
            request["result"] = request["data"]


def test_p15_all_that_fits_alone_succeeds() -> None:
    """Batches of any size against a limit that changes: halved until they fit; what is too large alone fails alone."""
    count = scaled(6_000) // 6 * 6
    ledger = ledgers.Ledger(count)

    def client(seed: int) -> None:
        source = random.Random(seed)
        requests: list[Request] = []
        for _ in range(count // 6):
            size = 5000 if source.random() < 0.02 else source.randrange(1, 100)
            requests.append({"data": (ledger.accept(), size)})
        for request, answer in zip(requests, pipe.map(requests, look_ahead=64, return_exceptions=True), strict=True):
            number, size = request["data"]
            if isinstance(answer, MemoryError) != (size == 5000):
                ledger.mistake(f"{size} bytes: {answer!r}")
            ledger.end(number, ledgers.ERROR if isinstance(answer, BaseException) else ledgers.DONE)

    with Pipe(backend=SmallDevice, ledger=ledger, instance_num=2) as pipe:
        with concurrent.futures.ThreadPoolExecutor(6) as executor:
            for done in [executor.submit(client, seed) for seed in range(6)]:
                done.result()
        assert pipe.health()["healthy"]
    assert ledger.check(pipe.stats())["error"] > count / 100
    assert pipe.stats()["nodes"]["main"]["halved"] > 0


# ---- P18: any thread, any operation ----------------------------------------------------------------------------------


def test_p18_thread_safe_api() -> None:
    """Sixteen threads call whatever there is, in any order, while others build, close and look; the ledger is exact."""
    begun = time.monotonic()
    until = begun + min(60.0, 3.0 * load.SCALE)
    ledger = ledgers.Ledger(2_000_000)
    pipes: list[Pipe] = []
    everything: list[Pipe] = []
    exchange = threading.Lock()

    def build() -> None:
        pipe = Pipe(load.five_nodes(ledger), request_timeout=60)
        with exchange:
            everything.append(pipe)
            pipes.append(pipe)
            old = pipes.pop(0) if len(pipes) > 3 else None
        if old is not None:
            old.close(timeout=random.choice([None, 0.0, 0.01]))

    def look(pipe: Pipe) -> None:
        stats = pipe.stats()["requests"]
        ended = stats["done"] + stats["failed"] + stats["cancelled"]
        if stats["accepted"] != stats["in_flight"] + ended:
            ledger.mistake(f"the counters of a running pipe: {stats}")
        pipe.health()
        repr(pipe)
        str(pipe.graph())

    def goes_on() -> bool:
        """A machine may be slow: but not this slow."""
        now = time.monotonic()
        return now < until or (ledger.counts()["done"] <= 100 and now < begun + WAIT_S)

    def client(seed: int) -> None:
        source = random.Random(seed)
        while goes_on() and not ledger.mistakes:
            with exchange:
                pipe = source.choice(pipes)
            each = load.Client(pipe, ledger, source.getrandbits(30))
            action = source.randrange(12)
            if action == 0:
                build()
            elif action == 1:
                look(pipe)
            else:
                (each.call, each.submit, each.tasks)[action % 3](source.randrange(1, 8))

    for _ in range(3):
        build()
    with concurrent.futures.ThreadPoolExecutor(16) as executor:
        for done in [executor.submit(client, seed) for seed in range(16)]:
            done.result()
    for pipe in everything:
        pipe.close()
    counts = ledger.check(*(pipe.stats() for pipe in everything))
    assert counts["done"] > 100


# ---- P20 and P21: order ----------------------------------------------------------------------------------------------


def test_p20_no_starvation() -> None:
    """Saturated with both of two priorities: none overtakes what has waited 100 ms longer than it per step."""
    served: list[tuple[int, float]] = []  # who, and a time before its batch had ended
    kept: dict[int, tuple[float, float]] = {}  # between which times it came, with its priority added
    shares = [0] * 12
    numbers = itertools.count()
    begun = time.monotonic()
    until = begun + min(60.0, 2.0 * load.SCALE)

    class Slow(Backend):
        def forward(self, batch: list[Request]) -> None:
            (request,) = batch
            request["result"] = request["data"]
            time.sleep(0.001)
            served.append((request["data"], time.monotonic()))

    def goes_on() -> bool:
        """On a slow machine it takes longer until each has had three turns; all press on until then."""
        now = time.monotonic()
        return now < until or (min(shares) < 3 and now < begun + WAIT_S)

    def client(name: int) -> None:
        priority = name % 2
        while goes_on():
            number = next(numbers)
            before = time.monotonic()
            future = pipe.submit({"data": number}, priority=priority)
            kept[number] = (before + 0.1 * priority, time.monotonic() + 0.1 * priority)
            future.result(2 * WAIT_S)
            shares[name] += 1

    with Pipe(backend=Slow) as pipe, concurrent.futures.ThreadPoolExecutor(12) as executor:
        for done in [executor.submit(client, name) for name in range(12)]:
            done.result()
    assert min(shares) > 2
    assert sum(shares[0::2]) > sum(shares[1::2])
    assert len(kept) == len(served)
    for place, (number, _) in enumerate(served):
        came = kept[number][1]
        for earlier in range(place - 1, 0, -1):
            # Taken after the batch before had ended. If that was before `number` came, it may not have been there yet.
            if served[earlier - 1][1] <= came:
                break
            assert kept[served[earlier][0]][0] <= came, "a request overtook one that had waited for longer"


@pytest.mark.parametrize("bound", [False, True])
def test_p21_ordering(bound: bool) -> None:
    """Requests of a client come to the backend in the order in which it sent them, in each priority."""
    count = scaled(8_000)
    came: list[tuple[int, int, int]] = []

    class Notes(Backend):
        thread_bound = bound
        max_batch = 8

        def forward(self, batch: list[Request]) -> None:
            came.extend(request["data"] for request in batch)
            for request in batch:
                request["result"] = None

    def client(name: int) -> None:
        source = random.Random(name)
        for start in range(0, count, 100):
            futures = []
            for number in range(start, start + 100):
                priority = source.randrange(3)
                futures.append(pipe.submit({"data": (name, priority, number)}, priority=priority))
            concurrent.futures.wait(futures, WAIT_S)

    with Pipe(backend=Notes) as pipe, concurrent.futures.ThreadPoolExecutor(3) as executor:
        for done in [executor.submit(client, name) for name in range(3)]:
            done.result()
    assert len(came) == 3 * count
    for name in range(3):
        for priority in range(3):
            own = [number for each, rank, number in came if (each, rank) == (name, priority)]
            assert own == sorted(own)


# ---- P26: what is counted --------------------------------------------------------------------------------------------


def test_p26_observability_is_honest() -> None:
    """One request for each way to end: the counters say so, each once, and add up at every moment in between."""
    gate = Gate()
    pipe = Pipe(a={"backend": gate, "max": 1, "max_queue": 4, "when_full": "reject", "instance_num": 1})

    def counts(**expected: int) -> None:
        stats = pipe.stats()
        names = ("accepted", "in_flight", "done", "failed", "cancelled", "refused")
        assert stats["requests"] == {name: expected.get(name, 0) for name in names}
        assert sum(stats["failures"].values()) == expected.get("failed", 0)

    counts()
    running = pipe.submit({"data": "running"})
    assert gate.inside.wait(WAIT_S)
    counts(accepted=1, in_flight=1)
    late = pipe.submit({"data": "late"}, timeout=0.001)
    assert isinstance(late.exception(WAIT_S), RequestTimeout)
    counts(accepted=2, in_flight=1, failed=1)
    walk = pipe._start({"data": "cancelled"}, None, 0)
    assert walk.cancel()
    counts(accepted=3, in_flight=1, failed=1, cancelled=1)
    assert not walk.cancel()
    waiting: list[Any] = []
    refusal = None
    while refusal is None and len(waiting) < 5:
        try:
            waiting.append(pipe.submit({"data": len(waiting)}))
        except QueueFull as error:
            refusal = error
    assert len(waiting) <= 4
    accepted = 3 + len(waiting)
    counts(accepted=accepted, in_flight=accepted - 2, failed=1, cancelled=1, refused=1)
    closer = threading.Thread(target=pipe.close, args=(0.0,))
    closer.start()
    for future in [running, *waiting]:
        assert isinstance(future.exception(WAIT_S), PipeClosed)
    with pytest.raises(PipeError):
        pipe({"data": "too late"})
    gate.opened.set()
    closer.join(WAIT_S)
    counts(accepted=accepted, failed=accepted - 1, cancelled=1, refused=2)
    assert pipe.stats()["failures"] == {"timeout": 1, "closed": accepted - 2}
