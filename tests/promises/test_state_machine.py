"""Any order of operations of the public API, found by hypothesis: the ledger is exact, and the counters add up.

One thread makes every move, and the backend runs only when a move lets it: who is queued and running, and who is next,
is known exactly. Time stands still but for moves that let it pass: whose time is over, and whom age has brought to the
front, is known as exactly. By default the same examples are tried each time; ``FASTPIPE_SCALE=100`` tries others, and
more of them.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed here")

import promise_load as load
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import fastpipe
from fastpipe import Backend, Pipe, PipeClosed, PipeError, QueueFull, Request, RequestTimeout, UnknownNode, _core

ledgers = load.ledgers
WAIT_S = 20.0
MAX_QUEUE = 3
MS = 1_000_000  # in nanoseconds
AGE_NS = 100 * MS  # what a step of priority is worth

settings.register_profile(
    "machine",
    max_examples=load.scaled(60),
    stateful_step_count=40,
    deadline=None,
    derandomize=load.SCALE <= 1,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class Steps(Backend):
    """Runs one request, and only when it is told to; says which it has, and does with it as it is told.

    Whose request it is hears of it: a chunk when it has begun, and one before the end.
    """

    streams = True

    def __init__(self) -> None:
        self.has = threading.Semaphore(0)
        self.goes = threading.Semaphore(0)
        self.running: int | None = None
        self.told: BaseException | None = None
        self.free = False
        self.came: list[int] = []

    def forward(self, batch: list[Request]) -> None:
        (request,) = batch
        self.running = request["data"]
        self.came.append(request["data"])
        fastpipe.emit(request, "begun")
        self.has.release()
        if not self.free:
            assert self.goes.acquire(timeout=WAIT_S)
        self.running = None
        time.sleep(0.001)  # answers of batches that take microseconds wait for the next one
        fastpipe.emit(request, "ends")
        if self.told is not None:
            raise self.told
        request["result"] = -request["data"]


class Read:
    """A request that is read as a stream, as the machine knows futures."""

    def __init__(self, chunks: Iterator[Any], request: Request) -> None:
        self.chunks, self.request = chunks, request
        self.read: list[Any] = []

    def exception(self, timeout_s: float) -> BaseException | None:
        """Read it to its end."""
        try:
            self.read.extend(self.chunks)
        except Exception as error:
            assert self.read in ([], ["begun"], ["begun", "ends"])
            return error
        assert self.read == ["begun", "ends"]
        return None

    def result(self, timeout_s: float) -> Request:
        assert self.exception(timeout_s) is None
        return self.request

    def cancel(self) -> bool:
        """Leave: unlike a future, that ends a request which runs, too."""
        self.chunks.close()  # type: ignore[attr-defined]
        assert list(self.chunks) == []
        return True


class Machine(RuleBasedStateMachine):
    """A pipe of two nodes, ``first`` and ``second``, with one instance each; requests enter at either."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = ledgers.Ledger(1000)
        self.futures: dict[int, concurrent.futures.Future[Request] | Read] = {}
        self.left: set[int] = set()  # streams whose readers have gone while they ran
        self.requests: dict[int, Request] = {}
        self.now_ns = 0
        self.queued: dict[int, int] = {}  # at `first`: when it counts as having come; in order of arrival
        self.due: dict[int, int] = {}  # those with a time limit
        self.at: int | None = None  # what runs in `first`
        self.closed = False
        self.backend = Steps()

    @initialize(when_full=st.sampled_from(["reject", "shed_oldest", "block", None]))
    def build(self, when_full: str | None) -> None:
        self.when_full = when_full
        limits = {} if when_full is None else {"max_queue": MAX_QUEUE, "when_full": when_full}
        self.backend.thread_bound = True  # type: ignore[misc]
        _core._freeze_time()
        self.pipe = Pipe(first={"backend": self.backend, "next": "second", **limits}, second={"backend": "Identity"})

    # ---- moves -------------------------------------------------------------------------------------------------

    @rule(priority=st.integers(-3, 3), limit_ms=st.sampled_from([None, None, 50, 200, 1000]), is_read=st.booleans())
    def submit(self, priority: int, limit_ms: int | None, is_read: bool) -> None:
        """Send a request to ``first``: it runs at once, waits, or is refused, as the model says."""
        self._send(priority, limit_ms, is_read)

    def _start(self, request: Request, is_read: bool, **terms: Any) -> concurrent.futures.Future[Request] | Read:
        if is_read:
            return Read(self.pipe.stream(request, buffer=2, **terms), request)
        return self.pipe.submit(request, **terms)

    def _send(self, priority: int, limit_ms: int | None, is_read: bool = False) -> None:
        timeout = None if limit_ms is None else limit_ms / 1000
        number = self.ledger.accept()
        request: Request = {"data": number, "node_name": "first"}
        is_full = self.when_full is not None and len(self.queued) >= MAX_QUEUE
        if is_full and self.when_full == "block" and not self.closed:
            self._waits_in_vain(number, request)
            return
        refusal: type[PipeError] | None = None
        if self.closed:
            refusal = PipeClosed
        elif is_full and self.when_full == "reject":
            refusal = QueueFull
        if refusal is not None:
            with pytest.raises(refusal):
                self._start(request, is_read, priority=priority, timeout=timeout)
            self.ledger.end(number, ledgers.REFUSED)
            return
        future = self._start(request, is_read, priority=priority, timeout=timeout)
        self.futures[number], self.requests[number] = future, request
        if is_full:
            self._sheds()
        self.queued[number] = self.now_ns + AGE_NS * priority
        if limit_ms is not None:
            self.due[number] = self.now_ns + limit_ms * MS
        if self.at is None:
            self._begins()

    def _waits_in_vain(self, number: int, request: Request) -> None:
        """There is no room: its caller waits for it, until its time is over."""
        waits = threading.Event()
        refused: list[BaseException] = []

        def submit() -> None:
            try:
                self.pipe.submit(request, timeout=1e-6)  # before anybody else's
            except RequestTimeout as error:
                refused.append(error)

        _core._hook("admit", waits.set)
        caller = threading.Thread(target=submit)
        caller.start()
        assert waits.wait(WAIT_S)
        _core._hook("admit", None)
        self._passes(2_000)
        caller.join(WAIT_S)
        assert not caller.is_alive()
        self.ledger.end(number, ledgers.REFUSED)
        assert len(refused) == 1

    @rule(elapsed_ms=st.sampled_from([10, 60, 300, 2000]))
    def wait(self, elapsed_ms: int) -> None:
        """Let time pass: exactly those fail whose time is over, queued or running."""
        self._passes(elapsed_ms * MS)

    def _passes(self, elapsed_ns: int) -> None:
        self.now_ns += elapsed_ns
        _core._advance_time(elapsed_ns)
        for number in [number for number, due_ns in self.due.items() if due_ns <= self.now_ns]:
            assert isinstance(self.futures[number].exception(WAIT_S), RequestTimeout)
            self.queued.pop(number, None)
            self._ended(number, ledgers.ERROR, "timeout")

    @rule(priorities=st.lists(st.sampled_from([0, -1000, 1000]), min_size=2, max_size=6))
    def submit_many(self, priorities: list[int]) -> None:
        """Fill the queue."""
        for priority in priorities:
            self._send(priority, None)

    @rule()
    def answer(self) -> None:
        """Let the running request go on to ``second``, and to its end."""
        if self.at is not None:
            self._goes(None)

    @rule()
    def fail(self) -> None:
        """Let the running request fail."""
        if self.at is not None:
            self._goes(load.Planned(self.at))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Cancel any future: certain while its request is queued, in vain once it runs. A stream: at any time."""
        if not self.futures:
            return
        number = data.draw(st.sampled_from(sorted(self.futures)))
        succeeds = number in self.queued or isinstance(self.futures[number], Read)
        assert self.futures[number].cancel() == succeeds
        if succeeds:
            if self.queued.pop(number, None) is None:
                self.left.add(number)
            self._ended(number, ledgers.CANCELLED)

    @rule()
    def enter_at_second(self) -> None:
        """A request that enters further on passes by what is held up."""
        number = self.ledger.accept()
        request: Request = {"data": number}
        try:
            assert self.pipe(request, entry="second")["result"] == number
            self.ledger.end(number, ledgers.DONE)
        except PipeClosed:
            assert self.closed
            self.ledger.end(number, ledgers.REFUSED)

    @rule()
    def enter_nowhere(self) -> None:
        """A node that is not there: nothing is counted."""
        before = self.pipe.stats()["requests"]
        with pytest.raises((UnknownNode, PipeClosed)) as raised:
            self.pipe.submit({"data": 0}, entry="third")
        refused = isinstance(raised.value, PipeClosed)
        assert self.pipe.stats()["requests"] == {**before, "refused": before["refused"] + refused}
        if refused:
            self.ledger.end(self.ledger.accept(), ledgers.REFUSED)

    @precondition(lambda self: not self.closed)
    @rule(rarely=st.integers(0, 9), drains=st.booleans())
    def close(self, rarely: int, drains: bool) -> None:
        """Close: what is in flight is answered, or fails with PipeClosed; what comes later is refused."""
        if rarely:
            return
        self.closed = True
        self.backend.told = None
        if drains:
            self.backend.free = True
            self.backend.goes.release()
            self.pipe.close()
            for number in sorted(self.futures):
                assert self.futures[number].result(WAIT_S)["result"] == -number
                self._ended(number, ledgers.DONE)
        else:
            closer = threading.Thread(target=self.pipe.close, args=(0.0,))
            closer.start()
            for number in sorted(self.futures):
                assert isinstance(self.futures[number].exception(WAIT_S), PipeClosed)
                self._ended(number, ledgers.ERROR, "closed")
            self.backend.free = True
            self.backend.goes.release()
            closer.join(WAIT_S)
            assert not closer.is_alive()
            self.pipe.close()
        self.queued.clear()
        self.at = None

    # ---- what follows from a move ------------------------------------------------------------------------------

    def _next(self) -> int:
        """Return who waits and is the next: by when it counts as having come, and of equals the first that came."""
        return min(self.queued, key=lambda number: self.queued[number])

    def _begins(self) -> None:
        """The instance is free: it takes the next, if there is one."""
        if self.queued:
            assert self.backend.has.acquire(timeout=WAIT_S)
            self.at = self._next()
            assert self.backend.running == self.at
            del self.queued[self.at]

    def _goes(self, error: BaseException | None) -> None:
        number = self.at
        assert number is not None
        self.at = None
        self.backend.told = error
        future = self.futures.get(number)
        self.backend.goes.release()
        if future is None:  # its time was over before
            self._begins()
            return
        outcome = future.exception(WAIT_S)
        if error is None:
            assert outcome is None
            assert self.requests[number]["result"] == -number
            self._ended(number, ledgers.DONE)
        else:
            assert (type(outcome), outcome.args) == (type(error), error.args)  # a copy: the backend keeps it
            self._ended(number, ledgers.ERROR)
        self._begins()

    def _sheds(self) -> None:
        """The queue was full, and the next has made room."""
        number = self._next()
        assert isinstance(self.futures[number].exception(WAIT_S), QueueFull)
        del self.queued[number]
        self._ended(number, ledgers.ERROR, "queue full")

    def _ended(self, number: int, state: int, reason: str = "error") -> None:
        del self.futures[number]
        self.due.pop(number, None)
        self.ledger.end(number, state, reason)

    # ---- what is always true -----------------------------------------------------------------------------------

    @invariant()
    def the_counters_say_what_the_model_says(self) -> None:
        if not hasattr(self, "pipe"):
            return
        counts, model = self.pipe.stats()["requests"], self.ledger.counts()
        assert not self.ledger.mistakes
        assert counts["done"] == model["done"]
        assert counts["failed"] == model["error"] == sum(self.pipe.stats()["failures"].values())
        assert counts["cancelled"] == model["cancelled"]
        assert counts["refused"] == model["refused"]
        assert counts["in_flight"] == model["accepted"] == len(self.queued) + (self.at in self.futures)
        assert counts["accepted"] == counts["in_flight"] + counts["done"] + counts["failed"] + counts["cancelled"]
        assert self.pipe.health()["healthy"] == (not self.closed)

    def teardown(self) -> None:
        if not hasattr(self, "pipe"):
            return
        _core._thaw_time()
        self.backend.free = True
        self.backend.told = None
        self.backend.goes.release()
        self.pipe.close()
        for number in sorted(self.futures):
            assert number in self.due or self.futures[number].result(WAIT_S)["result"] == -number
            error = self.futures[number].exception(WAIT_S)  # its time goes on again, and may be over
            assert error is None or isinstance(error, RequestTimeout)
            self._ended(number, ledgers.DONE if error is None else ledgers.ERROR, "timeout")
        stats = self.pipe.stats()
        self.ledger.check(stats)
        ends: Counter[str] = Counter()  # each at the one node where the request was, as there are no branches
        for node in stats["nodes"].values():
            ends.update({**node["failures"], "cancelled": node["cancelled"], "dropped": node["dropped"]})
        assert +ends == +Counter({**stats["failures"], "cancelled": stats["requests"]["cancelled"]})
        assert stats["latency_s"]["count"] == stats["requests"]["done"] + stats["requests"]["failed"]
        for number in range(len(self.backend.came)):
            assert (
                self.ledger.state(self.backend.came[number]) != ledgers.CANCELLED
                or self.backend.came[number] in self.left
            )
        assert len(set(self.backend.came)) == len(self.backend.came)


TestMachine = pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")(Machine.TestCase)
TestMachine.settings = settings.get_profile("machine")
