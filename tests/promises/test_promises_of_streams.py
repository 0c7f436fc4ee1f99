"""The promises that hold for streams as for any request, under load: P1, P6 and P13."""

from __future__ import annotations

import concurrent.futures
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import promise_load as load
import pytest
from helpers import until

from fastpipe import Pipe, PipeClosed, Request, Streaming, _core

ledgers = load.ledgers
scaled = load.scaled
WAIT_S = load.WAIT_S


def aloud(ledger: Any) -> Pipe:
    """Return a pipe of five nodes, of which two, one in a branch, emit chunks."""
    return Pipe(load.five_nodes(ledger, b={"backend": load.MixesAloud}, e={"backend": load.MixesAloud}))


def clients_of(pipe: Pipe, ledger: Any, count: int, seed: int = 0) -> list[load.Client]:
    clients = [load.Client(pipe, ledger, seed + number) for number in range(count)]
    for client in clients:
        client.aloud = 2
    return clients


def run(clients: list[load.Client], count: int) -> None:
    with concurrent.futures.ThreadPoolExecutor(len(clients)) as executor:
        for done in [executor.submit(client.run_streams, count) for client in clients]:
            done.result()


def test_p01_exactly_once_of_streams() -> None:
    """Two nodes emit, readers are threads and tasks with small buffers; every fault at one in a hundred.

    Each request has one outcome, and each chunk is its own request's, once and in order; of one that is done, all.
    """
    count = scaled(20_000) // 16 * 16
    ledger = ledgers.Ledger(count)
    with aloud(ledger) as pipe:
        run(clients_of(pipe, ledger, 16), count // 16)
    counts = ledger.check(pipe.stats())
    assert counts["done"] > count * 0.5
    assert counts["done"] + counts["unclear"] + ledger.reasons["queue full"] > count * 0.9
    assert ledger.reasons["error"] > 0


@pytest.mark.skipif(not hasattr(_core, "_hook"), reason="compiled without hooks")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_p01_exactly_once_of_streams_although_workers_die() -> None:
    """The same while threads are held up at every named point, and the workers that come there die now and then."""
    count = scaled(3_000) // 16 * 16
    ledger = ledgers.Ledger(count)
    turns = iter(range(1, 1 << 60))

    def stumbles() -> None:
        turn = next(turns)
        if turn % 97 == 0:
            time.sleep(0.0005)
        if turn % 701 == 0 and "#" in threading.current_thread().name:
            raise load.Stumbled(turn)

    try:
        with aloud(ledger) as pipe:
            for point in ("take", "taken", "forward", "return", "end", "ended", "release", "sleep"):
                _core._hook(point, stumbles)
            run(clients_of(pipe, ledger, 16), count // 16)
            for point in _core._HOOKS:
                _core._hook(point, None)
    finally:
        for point in _core._HOOKS:
            _core._hook(point, None)
    ledger.check(pipe.stats())
    assert ledger.reasons["worker died"] > 0


@pytest.mark.parametrize("timeout", [None, 0.0, 0.02])
def test_p06_closing_ends_every_stream(timeout: float | None) -> None:
    """At any moment, by another thread: each reader comes to an end, in its answer or in PipeClosed."""
    for turn in range(scaled(5)):
        ledger = ledgers.Ledger(16 * 200)
        pipe = aloud(ledger)
        closed = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(16) as executor:
            clients = clients_of(pipe, ledger, 16, seed=100 * turn)
            sending = [executor.submit(send_until, closed, client) for client in clients]
            until(lambda pipe=pipe, done=20 * (turn + 1): pipe.done >= done)  # type: ignore[misc]
            pipe.close(timeout)
            closed.set()
            for each in sending:
                each.result(WAIT_S)
        pipe.close()
        ledger.check(pipe.stats())


def send_until(closed: threading.Event, client: load.Client) -> None:
    """Read streams until the event is set, 200 at most."""
    for _ in range(50):
        if closed.is_set():
            return
        client.random.choice([client.streams, client.task_streams])(4)


class Numbers(Streaming):
    def run(self, request: Request) -> Iterator[Any]:
        for _ in range(request["data"]):
            yield Chunk()


class Chunk:
    alive: ClassVar[weakref.WeakSet[Chunk]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.alive.add(self)


def test_p13_no_leak_per_stream() -> None:
    """Read, left, failed and refused ones: no chunk and no object of the engine is left."""
    with Pipe(backend=Numbers) as pipe:

        def some() -> None:
            for _ in range(scaled(300)):
                assert len(list(pipe.stream({"data": 5}))) == 5
                next(pipe.stream({"data": 50}, buffer=3))
                with pytest.raises(TypeError):
                    list(pipe.stream({"data": None}))
            until(lambda: pipe.in_flight == 0 and pipe.stats()["nodes"]["main"]["running"] == 0)

        some()
        gc.collect()
        before = len(gc.get_objects())
        some()
        gc.collect()
        assert len(Chunk.alive) == 0
        assert len(gc.get_objects()) < before + 100
    with pytest.raises(PipeClosed):
        pipe.stream({"data": 1})
