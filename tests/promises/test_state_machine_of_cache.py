"""Any order of what may happen to equal requests at a node that keeps answers, found by hypothesis: each ends once.

One thread makes every move, the backend runs only when a move lets it, and time stands still but for moves that let it
pass; so it is known who runs for whom, who waits for what, and what is kept. ``test_state_machine.py`` does the same
for queues, priorities and streams.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from dataclasses import dataclass, field

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed here")

import promise_load as load
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastpipe import Backend, Pipe, PipeClosed, Request, RequestTimeout, _core

ledgers = load.ledgers
WAIT_S = 20.0
MS = 1_000_000  # in nanoseconds
CONTENTS = 4

settings.register_profile(
    "cache machine",
    max_examples=load.scaled(60),
    stateful_step_count=40,
    deadline=None,
    derandomize=load.SCALE <= 1,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class Steps(Backend):
    """Runs one request when it is told to, and fails if it is told so. Its answers say which instance it is."""

    thread_bound = True

    def __init__(self, *, version: int = 0) -> None:
        self.version = version
        self.has = threading.Semaphore(0)
        self.goes = threading.Semaphore(0)
        self.running: int | None = None
        self.told: BaseException | None = None
        self.free = False

    def forward(self, batch: list[Request]) -> None:
        (request,) = batch
        self.running = request["data"]
        self.has.release()
        if not self.free:
            assert self.goes.acquire(timeout=WAIT_S)
        self.running = None
        if self.told is not None:
            raise self.told
        request["result"] = (request["data"], self.version)


@dataclass(eq=False)
class Flight:
    """What is to run, or runs, for all who wait for it: the first is the one that leads."""

    content: int
    clears: int
    """How often the cache was emptied before."""
    leader: int
    """Whose request it is that runs; it may have left."""
    waiting: list[int] = field(default_factory=list)


class CacheMachine(RuleBasedStateMachine):
    """A pipe of one node with one instance and a cache that is never full."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = ledgers.Ledger(2000)
        self.futures: dict[int, concurrent.futures.Future[Request]] = {}
        self.due: dict[int, int] = {}
        self.now_ns = 0
        self.queue: list[Flight] = []
        self.at: Flight | None = None  # what runs
        self.leader: int | None = None  # who is in the batch that runs, unless that one has ended
        self.kept: dict[int, tuple[int, int]] = {}
        self.flights: dict[int, Flight] = {}  # those that may be followed
        self.counts = dict.fromkeys(("hits", "misses", "coalesced", "not_kept"), 0)
        self.clears = 0
        self.swaps = 0
        self.runs = 0
        self.closed = False

    @initialize()
    def build(self) -> None:
        _core._freeze_time()
        self.backend = Steps()
        self.pipe = Pipe(backend=self.backend, cache="1MB", cache_key="data")

    # ---- moves -------------------------------------------------------------------------------------------------

    @rule(content=st.integers(0, CONTENTS - 1), limit_ms=st.sampled_from([None, None, 50, 200, 1000]))
    def ask(self, content: int, limit_ms: int | None) -> None:
        """It is answered at once, follows an equal one, or is to run."""
        number = self.ledger.accept()
        request: Request = {"data": content, "whose": number}
        timeout = None if limit_ms is None else limit_ms / 1000
        if self.closed:
            with pytest.raises(PipeClosed):
                self.pipe.submit(request, timeout=timeout)
            self.ledger.end(number, ledgers.REFUSED)
            return
        future = self.futures[number] = self.pipe.submit(request, timeout=timeout)
        if content in self.kept:
            self.counts["hits"] += 1
            self._answered([number], self.kept[content])
            return
        if limit_ms is not None:
            self.due[number] = self.now_ns + limit_ms * MS
        flight = self.flights.get(content)
        if flight is not None:
            self.counts["coalesced"] += 1
            flight.waiting.append(number)
            assert not future.done()
            return
        self.counts["misses"] += 1
        flight = self.flights[content] = Flight(content, self.clears, number, [number])
        self.queue.append(flight)
        if self.at is None:
            self._begins()

    @rule(contents=st.lists(st.integers(0, CONTENTS - 1), min_size=2, max_size=6))
    def ask_many(self, contents: list[int]) -> None:
        for content in contents:
            self.ask(content, None)

    @precondition(lambda self: self.at is not None)
    @rule(fails=st.booleans())
    def answer(self, fails: bool) -> None:
        """The one that runs has its answer, or its error, and so have all who wait for it."""
        self._lands(self.backend, load.Planned("all of them") if fails else None)
        self._begins()

    @precondition(lambda self: bool(self.futures))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Cancel anybody: it takes nobody along. In vain only for the one that is in the batch."""
        number = data.draw(st.sampled_from(sorted(self.futures)))
        assert self.futures[number].cancel() == (number != self.leader)
        if number != self.leader:
            self._leaves(number)
            self._ended(number, ledgers.CANCELLED)

    @rule(elapsed_ms=st.sampled_from([10, 60, 300, 2000]))
    def wait(self, elapsed_ms: int) -> None:
        """Let time pass: exactly those fail whose time is over, whether or not they lead."""
        self.now_ns += elapsed_ms * MS
        _core._advance_time(elapsed_ms * MS)
        for number in [number for number, due_ns in self.due.items() if due_ns <= self.now_ns]:
            assert isinstance(self.futures[number].exception(WAIT_S), RequestTimeout)
            self._leaves(number)
            self._ended(number, ledgers.ERROR, "timeout")

    @precondition(lambda self: not self.closed)
    @rule()
    def clear(self) -> None:
        """Empty the cache: who waits is answered, and nobody follows what began before."""
        assert self.pipe.clear_cache() == len(self.kept)
        self._forgets()

    @precondition(lambda self: not self.closed)
    @rule()
    def swap(self) -> None:
        """Give the node another instance: what is kept is forgotten, and what runs is answered by the old one."""
        old, at = self.backend, self.at
        self.backend = Steps(version=self.swaps + 1)
        swapping = threading.Thread(target=self.pipe.swap, args=("main",), kwargs={"backend": self.backend})
        swapping.start()
        while self.pipe.stats()["nodes"]["main"]["instances"]["switches"] == self.swaps:
            time.sleep(0.0005)
        self.swaps += 1
        self._forgets()
        if at is not None:
            self._lands(old, None)
        swapping.join(WAIT_S)
        assert not swapping.is_alive()
        self._begins()

    @precondition(lambda self: not self.closed)
    @rule(rarely=st.integers(0, 14), drains=st.booleans())
    def close(self, rarely: int, drains: bool) -> None:
        """All who wait are answered, or fail with PipeClosed; what comes later is refused."""
        if rarely:
            return
        self.closed = True
        self.backend.told = None
        closer = threading.Thread(target=self.pipe.close, args=(None if drains else 0.0,))
        closer.start()
        if not drains:
            for number in sorted(self.futures):
                assert isinstance(self.futures[number].exception(WAIT_S), PipeClosed)
                self._leaves(number)
                self._ended(number, ledgers.ERROR, "closed")
        self.backend.free = True
        self.backend.goes.release()
        closer.join(WAIT_S)
        assert not closer.is_alive()
        for flight in (*([] if self.at is None else [self.at]), *self.queue):
            self._answered(flight.waiting, (flight.content, self.backend.version))
        self.queue.clear()
        self.at = self.leader = None

    # ---- what follows from a move ------------------------------------------------------------------------------

    def _begins(self) -> None:
        """The instance is free: it takes the first for which somebody waits."""
        self.at = self.leader = None
        while self.queue:
            flight = self.queue.pop(0)
            if not flight.waiting:
                if self.flights.get(flight.content) is flight:
                    del self.flights[flight.content]
                continue
            assert self.backend.has.acquire(timeout=WAIT_S)
            assert self.backend.running == flight.content
            self.at = flight
            self.leader = flight.leader if flight.leader in flight.waiting else None
            return
        # Those for whom nobody waits are dropped when the worker comes past them, a moment later.
        while not self.closed and self.pipe.stats()["nodes"]["main"]["queued"]:
            time.sleep(0.0005)

    def _lands(self, backend: Steps, error: BaseException | None) -> None:
        flight = self.at
        assert flight is not None
        backend.told = error
        backend.goes.release()
        waiting, self.at, self.leader = flight.waiting, None, None
        if self.flights.get(flight.content) is flight:
            del self.flights[flight.content]
        answer = (flight.content, backend.version)
        self.runs += 1
        while self.pipe.stats()["nodes"]["main"]["batches"] < self.runs:  # of what nobody waits for, nobody is told
            time.sleep(0.0005)
        if error is None:
            self._answered(waiting, answer)
            if flight.clears == self.clears:
                self.kept[flight.content] = answer
            else:
                self.counts["not_kept"] += 1
        else:
            for number in list(waiting):
                outcome = self.futures[number].exception(WAIT_S)
                assert (type(outcome), outcome.args) == (type(error), error.args)
                self._ended(number, ledgers.ERROR)

    def _answered(self, numbers: list[int], answer: tuple[int, int]) -> None:
        for number in list(numbers):
            request = self.futures[number].result(WAIT_S)
            assert (request["result"], request["whose"]) == (answer, number)
            self._ended(number, ledgers.DONE)

    def _leaves(self, number: int) -> None:
        for flight in (*self.queue, *([] if self.at is None else [self.at])):
            if number in flight.waiting:
                flight.waiting.remove(number)
        if number == self.leader:
            self.leader = None

    def _forgets(self) -> None:
        self.kept.clear()
        self.flights.clear()
        self.clears += 1

    def _ended(self, number: int, state: int, reason: str = "error") -> None:
        del self.futures[number]
        self.due.pop(number, None)
        self.ledger.end(number, state, reason)

    # ---- what is always true -----------------------------------------------------------------------------------

    @invariant()
    def the_counters_say_what_the_model_says(self) -> None:
        if not hasattr(self, "pipe"):
            return
        stats, model = self.pipe.stats(), self.ledger.counts()
        counts = stats["requests"]
        assert not self.ledger.mistakes
        assert counts["done"] == model["done"]
        assert counts["failed"] == model["error"] == sum(stats["failures"].values())
        assert counts["cancelled"] == model["cancelled"]
        assert counts["in_flight"] == model["accepted"] == len(self.futures)
        cache = stats["nodes"]["main"]["cache"]
        assert cache["bypassed"] == 0
        if self.closed:
            assert cache["entries"] == 0
        else:
            assert {key: cache[key] for key in self.counts} == self.counts
            assert cache["entries"] == len(self.kept)

    def teardown(self) -> None:
        if not hasattr(self, "pipe"):
            return
        _core._thaw_time()
        self.backend.free = True
        self.backend.told = None
        self.backend.goes.release()
        self.pipe.close()
        for number in sorted(self.futures):
            error = self.futures[number].exception(WAIT_S)  # its time goes on again, and may be over
            assert error is None or (number in self.due and isinstance(error, RequestTimeout))
            self._ended(number, ledgers.DONE if error is None else ledgers.ERROR, "timeout")
        self.ledger.check(self.pipe.stats())


TestCacheMachine = pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")(
    CacheMachine.TestCase
)
TestCacheMachine.settings = settings.get_profile("cache machine")
