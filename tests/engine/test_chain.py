"""Callers whose answers are there wake each other, one after the other: none is forgotten, whatever the others do."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest
from helpers import SCALE, WAIT_S, Gate, time_stands_still, until

from fastpipe import Backend, Pipe, Request, _core, process

CALLERS = 24  # more than are woken at once


@pytest.fixture(params=[0, 100_000], ids=["few cores", "many cores"])
def chained(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have callers woken as on a machine with few cores, or with many, whatever this one has."""
    process.set_up()
    _core.configure_process(threading.main_thread().ident or 0, 0, request.param)
    yield
    process._configure()


class Wide(Gate):
    """Takes all of them at once: a full batch waits for nobody."""

    max_batch = CALLERS


class Callers:
    """Threads that call a pipe once, and then are elsewhere: none comes back before all have their answers."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self.answers: list[int] = []
        self.may_end = threading.Event()
        self.threads: list[threading.Thread] = []

    def call(self, number: int, timeout: float | None = None, behind: int = 0) -> None:
        def run() -> None:
            self.answers.append(self.pipe({"data": number}, timeout=timeout)["result"])
            assert self.may_end.wait(WAIT_S)

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()
        until(lambda: self.pipe.stats()["nodes"]["main"]["queued"] == len(self.threads) + behind)

    def join_main(self, count: int) -> None:
        """Call beside the main thread, which is about to, and send that a signal."""
        until(lambda: self.pipe.stats()["nodes"]["main"]["queued"] == 1)
        for number in range(count):
            self.call(number, behind=1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def end(self) -> None:
        self.may_end.set()
        for thread in self.threads:
            thread.join(WAIT_S)


@pytest.mark.usefixtures("chained")
def test_callers_who_do_not_come_back_hold_up_nobody() -> None:
    gate = Wide()
    with Pipe(backend=gate) as pipe:
        first = pipe.submit({"data": -1})
        assert gate.inside.wait(WAIT_S)
        callers = Callers(pipe)
        for number in range(CALLERS):
            callers.call(number)
        gate.opened.set()
        until(lambda: len(callers.answers) == CALLERS)
        callers.end()
        assert sorted(callers.answers) == list(range(CALLERS))
        assert gate.batches == [[-1], list(range(CALLERS))]
        assert first.result(WAIT_S)["result"] == -1


@pytest.mark.usefixtures("chained")
@pytest.mark.parametrize("early", [1, 3, CALLERS - 1])
def test_callers_who_wake_up_by_themselves_before_the_others_are_woken(early: int) -> None:
    """Their time is over between answer and wake-up: they have the answer, and the others are woken all the same."""
    gate = Wide()
    with time_stands_still(), Pipe(backend=gate) as pipe:
        pipe.submit({"data": -1})
        assert gate.inside.wait(WAIT_S)
        callers = Callers(pipe)
        for number in range(CALLERS):
            callers.call(number, timeout=60.0 if number < early else None)
        left_early = []

        def before_the_wake_up() -> None:
            if len(gate.batches) == 2 and not left_early:
                _core._advance_time(100 * 10**9)
                # More, where a caller without a time limit was not asleep yet: it sees its answer without being woken.
                until(lambda: len(callers.answers) >= early)
                left_early.append(len(callers.answers))

        _core._hook("wake", before_the_wake_up)
        try:
            gate.opened.set()
            until(lambda: len(callers.answers) == CALLERS)
        finally:
            _core._hook("wake", None)
        callers.end()
        assert len(left_early) == 1
        assert sorted(callers.answers) == list(range(CALLERS))


@pytest.mark.usefixtures("chained")
def test_a_thread_that_a_signal_has_called_away_holds_up_nobody() -> None:
    """Its handler waits for the other callers of its batch, whom nobody else wakes."""
    gate = Wide()
    still_asleep = []
    with Pipe(backend=gate) as pipe:
        pipe.submit({"data": -1})
        assert gate.inside.wait(WAIT_S)
        callers = Callers(pipe)

        def handler(*_: object) -> None:
            gate.opened.set()
            until(lambda: len(callers.answers) == CALLERS - 1)
            still_asleep.append(CALLERS - 1 - len(callers.answers))

        before = signal.signal(signal.SIGUSR1, handler)
        try:
            helper = threading.Thread(target=callers.join_main, args=(CALLERS - 1,))
            helper.start()
            assert pipe({"data": "main"})["result"] == "main"
        finally:
            signal.signal(signal.SIGUSR1, before)
        helper.join(WAIT_S)
        callers.end()
    assert still_asleep == [0]


@pytest.mark.usefixtures("chained")
def test_a_call_that_a_signal_ends_holds_up_nobody() -> None:
    """Its exception keeps the request alive, in a traceback, while the other callers are waited for."""

    class Interrupt(Exception):
        pass

    gate = Wide()
    with Pipe(backend=gate) as pipe:
        pipe.submit({"data": -1})
        assert gate.inside.wait(WAIT_S)
        callers = Callers(pipe)

        def handler(*_: object) -> None:
            gate.opened.set()
            until(lambda: pipe.stats()["requests"]["in_flight"] == 0)
            raise Interrupt

        before = signal.signal(signal.SIGUSR1, handler)
        try:
            helper = threading.Thread(target=callers.join_main, args=(CALLERS - 1,))
            helper.start()
            with pytest.raises(Interrupt) as caught:
                list(pipe.map([{"data": "main"}]))
            until(lambda: len(callers.answers) == CALLERS - 1)
            assert caught.tb is not None  # it is alive until here
        finally:
            signal.signal(signal.SIGUSR1, before)
        helper.join(WAIT_S)
        callers.end()


class Echo(Backend):
    """On a thread of its own, so that callers sleep."""

    thread_bound = True
    max_batch = 48

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = request["data"]


@pytest.mark.usefixtures("chained")
def test_many_callers_that_come_back_at_once_or_later_or_never() -> None:
    rounds = max(20, int(200 * SCALE))
    with Pipe(backend=Echo) as pipe:
        wrong: list[tuple[int, int]] = []

        def calls(number: int) -> None:
            for turn in range(rounds if number % 4 else number % 3):
                if number % 4 == 1:
                    threading.Event().wait(0.0005)  # elsewhere, and without the GIL
                if pipe({"data": (number, turn)})["result"] != (number, turn):
                    wrong.append((number, turn))

        threads = [threading.Thread(target=calls, args=(number,)) for number in range(48)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert not any(thread.is_alive() for thread in threads)
        assert wrong == []
        assert pipe.stats()["requests"]["done"] == 36 * rounds + sum(number % 3 for number in range(0, 48, 4))
