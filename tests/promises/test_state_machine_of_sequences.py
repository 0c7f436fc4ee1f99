"""Any order of what may happen to requests of a few sequences, found by hypothesis: each finds what it has to find.

One thread makes every move, the backend runs only when a move lets it, and time stands still but for moves that let it
pass; so it is known who is queued, who waits for a turn, what is in a batch, and what is kept.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed here")

import promise_load as load
from helpers import until
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sequences import Remembers

from fastpipe import Backend, ItemErrors, PerRequest, Pipe, Request, RequestTimeout, SequenceError, _core

WAIT_S = 20.0
MS = 1_000_000  # in nanoseconds
KEYS = 4
MAX = 2
MAX_STATES = 2
TTL_MS = 300

settings.register_profile(
    "sequence machine",
    max_examples=load.scaled(60),
    stateful_step_count=40,
    deadline=None,
    derandomize=load.SCALE <= 1,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class Steps(Backend):
    """Runs a batch when it is told to; fails those that it is told."""

    thread_bound = True
    stateful = True
    keeps_input = True
    max_batch = MAX

    def __init__(self) -> None:
        self.has = threading.Semaphore(0)
        self.goes = threading.Semaphore(0)
        self.running: list[int] = []
        self.bad: set[int] = set()
        self.free = False

    def forward(self, batch: list[Request]) -> None:
        self.running = [request["data"] for request in batch]
        self.has.release()
        if not self.free:
            assert self.goes.acquire(timeout=WAIT_S)
            time.sleep(0.0002)  # of short batches the engine may hold the answers back until the next is over
        self.running = []
        for request in batch:
            request["state"] = request["result"] = (*(request["state"] or ()), request["data"])
        failed = {index: ValueError() for index, request in enumerate(batch) if request["data"] in self.bad}
        if failed:
            raise ItemErrors(failed) if len(batch) > 1 else failed[0]


@dataclass(eq=False)
class Asked:
    """A request, and what it says."""

    number: int
    key: int
    starts: bool | None
    ends: bool
    drops: bool = False
    is_dead: bool = False
    at: str = "waits"  # "queued", "running"


@dataclass(eq=False)
class Kept:
    """A sequence: its requests in order, and its state."""

    asked: list[Asked] = field(default_factory=list)
    state: tuple[int, ...] | None = None
    used_ns: int = 0


class SequenceMachine(RuleBasedStateMachine):
    """A pipe of one node with one instance on a thread of its own, whose queue is greedy."""

    def __init__(self) -> None:
        super().__init__()
        self.futures: dict[int, concurrent.futures.Future[Request]] = {}
        self.due: dict[int, tuple[int, Asked]] = {}
        self.now_ns = 0
        self.sequences: dict[int, Kept] = {}
        self.idle: list[int] = []  # keys, the one not used for longest first
        self.queue: list[Asked] = []
        self.batch: list[Asked] = []
        self.refused: list[Asked] = []
        self.counts = dict.fromkeys(("started", "dropped", "expirations", "evictions"), 0)

    @initialize()
    def build(self) -> None:
        _core._freeze_time()
        self.backend = Steps()
        keys: dict[str, Any] = {"max_states": MAX_STATES, "state_ttl": TTL_MS / 1000, "batching": "greedy"}
        self.pipe = Pipe(backend=self.backend, state_of="key", **keys)

    # ---- the model ---------------------------------------------------------------------------------------------

    def _replace(self, kept: Kept, state: tuple[int, ...] | None, why: str) -> None:
        if kept.state is None and state is not None:
            self.counts["started"] += 1
        elif kept.state is not None and state is None:
            self.counts[why] += 1
        kept.state = state

    def _kept(self) -> int:
        return sum(kept.state is not None for kept in self.sequences.values())

    def _gives_up(self, asked: Asked) -> list[Asked]:
        """Take a request out of its sequence; return who has to be called for it."""
        kept = self.sequences[asked.key]
        place = kept.asked.index(asked)
        kept.asked.remove(asked)
        if asked.drops and place > 0:
            kept.asked[place - 1].drops = True
        elif asked.drops:
            self._replace(kept, None, "dropped")
        if kept.asked:
            return [kept.asked[0]] if place == 0 and kept.asked[0].at == "waits" else []
        kept.used_ns = self.now_ns
        if kept.state is None:
            del self.sequences[asked.key]
            return []
        self.idle.append(asked.key)
        while self.idle:
            oldest = self.sequences[self.idle[0]]
            if self._kept() > MAX_STATES:
                self._replace(oldest, None, "evictions")
            elif self.now_ns - oldest.used_ns >= TTL_MS * MS:
                self._replace(oldest, None, "expirations")
            else:
                break
            del self.sequences[self.idle.pop(0)]
        return []

    def _call(self, called: list[Asked]) -> None:
        for asked in called:
            asked.at = "queued"
            self.queue.append(asked)

    def _take(self) -> None:
        """Have the worker take what it can, if it is idle, and wait until it has."""
        while self.queue and not self.batch:
            taken, self.queue = self.queue[:MAX], self.queue[MAX:]
            called: list[Asked] = []
            for asked in taken:
                if asked.is_dead:
                    continue
                kept = self.sequences[asked.key]
                if asked.starts:
                    self._replace(kept, None, "dropped")
                if asked.starts is False and kept.state is None:
                    self.refused.append(asked)  # it is told when the batch is over in which it is not
                    self.due.pop(asked.number, None)
                    called += self._gives_up(asked)
                else:
                    asked.at = "running"
                    self.batch.append(asked)
            self._call(called)
            if self.batch:
                assert self.backend.has.acquire(timeout=WAIT_S)
                assert self.backend.running == [asked.number for asked in self.batch]
            else:
                self._refuse()

    def _refuse(self) -> None:
        for asked in self.refused:
            self._fails(asked, SequenceError)
        self.refused.clear()

    def _fails(self, asked: Asked, kind: type[Exception]) -> None:
        self.due.pop(asked.number, None)
        assert isinstance(self.futures[asked.number].exception(WAIT_S), kind)

    def _leaves(self, asked: Asked) -> None:
        """Its request was cancelled, or is too late."""
        self.due.pop(asked.number, None)
        asked.is_dead = True
        if asked.at != "running":
            self._call(self._gives_up(asked))

    # ---- moves -------------------------------------------------------------------------------------------------

    @rule(
        key=st.integers(0, KEYS - 1),
        starts=st.sampled_from([None, None, None, True, False]),
        ends=st.sampled_from([False, False, True]),
        limit_ms=st.sampled_from([None, None, 50, 200]),
    )
    def ask(self, key: int, starts: bool | None, ends: bool, limit_ms: int | None) -> None:
        """It takes a place at the end of its sequence, and is queued if it is the first."""
        number = len(self.futures)
        request: Request = {"data": number, "key": key, "sequence_end": ends}
        if starts is not None:
            request["sequence_start"] = starts
        kept = self.sequences.setdefault(key, Kept())
        if key in self.idle:
            self.idle.remove(key)
            if self.now_ns - kept.used_ns >= TTL_MS * MS:
                self._replace(kept, None, "expirations")
        asked = Asked(number, key, starts, ends)
        kept.asked.append(asked)
        timeout = None if limit_ms is None else limit_ms / 1000
        self.futures[number] = self.pipe.submit(request, timeout=timeout)
        if limit_ms is not None:
            self.due[number] = self.now_ns + limit_ms * MS, asked
        if kept.asked[0] is asked:
            self._call([asked])
        self._take()

    @precondition(lambda self: self.batch)
    @rule(bad=st.sets(st.integers(0, MAX - 1)))
    def go_on(self, bad: set[int]) -> None:
        """The batch ends: what has not failed, and is awaited, leaves its state, and the next have their turns."""
        batch, self.batch = self.batch, []
        self.backend.bad = {asked.number for index, asked in enumerate(batch) if index in bad}
        self.backend.goes.release()
        self._refuse()
        called: list[Asked] = []
        for asked in batch:
            kept = self.sequences[asked.key]
            if asked.number in self.backend.bad and not asked.is_dead:
                self._fails(asked, ValueError)
            elif not asked.is_dead:
                state = (*(kept.state or ()), asked.number)
                assert self.futures[asked.number].result(WAIT_S)["result"] == state
                self.due.pop(asked.number, None)
                if asked.ends:
                    self._replace(kept, None, "dropped")
                else:
                    self._replace(kept, state, "dropped")
            called += self._gives_up(asked)
        self._call(called)
        self._take()
        if not self.batch:  # a batch of which nobody waits for anything may end a little later
            until(lambda: self.pipe.stats()["nodes"]["main"]["running"] == 0)

    def _not_running(self) -> Iterator[Asked]:
        for kept in self.sequences.values():
            yield from (asked for asked in kept.asked if asked.at != "running")

    @precondition(lambda self: any(self._not_running()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Whether it is queued or waits for its turn, nobody waits for it."""
        asked = data.draw(st.sampled_from(list(self._not_running())))
        assert self.futures[asked.number].cancel()
        self._leaves(asked)
        self._take()

    @rule(elapsed_ms=st.sampled_from([30, 100, 250, 400]))
    def wait(self, elapsed_ms: int) -> None:
        """Exactly those fail whose time is over, also in a batch."""
        self.now_ns += elapsed_ms * MS
        _core._advance_time(elapsed_ms * MS)
        for number, (due_ns, asked) in sorted(self.due.items(), key=lambda each: (each[1][0], each[0])):
            if due_ns <= self.now_ns:
                assert isinstance(self.futures[number].exception(WAIT_S), RequestTimeout)
                self._leaves(asked)
        self._take()

    @rule(key=st.integers(0, KEYS - 1))
    def drop(self, key: int) -> None:
        """Behind what has been asked."""
        kept = self.sequences.get(key)
        assert self.pipe.drop_state("main", key) == (kept is not None)
        if kept is not None and kept.asked:
            kept.asked[-1].drops = True
        elif kept is not None:
            self._replace(kept, None, "dropped")
            self.idle.remove(key)
            del self.sequences[key]

    # ---- what holds --------------------------------------------------------------------------------------------

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "pipe"):
            return
        waiting = sum(asked.at == "waits" for kept in self.sequences.values() for asked in kept.asked)
        expected = {"kept": self._kept(), "waiting": waiting, **self.counts}
        assert self.pipe.stats()["nodes"]["main"]["states"] == expected
        station = self.pipe.nodes[0].station
        assert station is not None
        assert station.states is not None
        assert len(station.states) == len(self.sequences)

    def teardown(self) -> None:
        if hasattr(self, "pipe"):
            _core._thaw_time()
            self.backend.free = True
            self.backend.bad = set()
            self.backend.goes.release()
            self.pipe.close()
            assert all(future.done() for future in self.futures.values())


TestSequenceMachine = SequenceMachine.TestCase
TestSequenceMachine.settings = settings.get_profile("sequence machine")


# ---- with threads, where the order is not known ---------------------------------------------------------------------


class Jitters(PerRequest):
    """Takes a while, and raises for what it is told to."""

    def run(self, request: Request) -> None:
        time.sleep(request["pause_s"])
        if request["fails"] == "before":
            raise ValueError("before")
        request["result"] = request["data"]


class Sometimes(Remembers):
    """Fails the requests that say so, some by a batch that fails as a whole; takes a moment."""

    def forward(self, batch: list[Request]) -> None:
        time.sleep(0.0003)
        super().forward(batch)
        if any(request["fails"] == "here" for request in batch):
            raise ValueError("here")


def _stream(pipe: Pipe, key: int, seed: int, requests: int, wrong: list[Any]) -> None:
    """Submit a sequence's requests, cancel some, and hold the answers against a plain loop."""
    rng = random.Random(seed)
    futures: dict[int, concurrent.futures.Future[Request]] = {}
    for number in range(requests):
        fails = rng.choices(["", "before", "here"], [10, 1, 1])[0]
        request = {"data": number, "key": key, "fails": fails, "pause_s": rng.choice((0, 0, 0.0005, 0.002))}
        timeout = rng.choice((None, None, None, 0.004, WAIT_S))
        with contextlib.suppress(RequestTimeout):  # while it waited for room
            futures[number] = pipe.submit(request, timeout=timeout, priority=rng.choice((-1, 0, 0, 1)))
        if rng.random() < 0.1 and futures:
            rng.choice(list(futures.values())).cancel()
    seen: tuple[int, ...] = ()
    for number, future in futures.items():
        try:
            answer = future.result(WAIT_S)
        except (ValueError, RequestTimeout, concurrent.futures.CancelledError):
            continue
        seen = (*seen, number)
        if answer["result"] != seen:
            wrong.append((key, number, answer["result"], seen))
            return


@pytest.mark.parametrize("seed", range(load.scaled(6)))
def test_each_sequence_is_answered_as_by_a_plain_loop(seed: int) -> None:
    """Streams from threads, nodes before that let requests overtake each other, failures, cancellations, limits."""
    rng = random.Random(seed)
    nodes: dict[str, dict[str, Any]] = {}
    for name in ("one", "two")[: rng.randrange(3)]:
        if nodes:
            nodes["one"]["next"] = name
        nodes[name] = {"backend": Jitters, "instance_num": rng.randint(2, 4)}
    before = list(nodes)
    nodes["keeps"] = {
        "backend": Sometimes,
        "state_of": "key",
        "instance_num": rng.randint(1, 3),
        "max": rng.choice((1, 4, 8)),
        "batching": rng.choice(("adaptive", "greedy", "timeout")),
    }
    if before:
        nodes[before[-1]]["next"] = "keeps"
    if rng.random() < 0.5:
        nodes["keeps"] |= {"max_queue": rng.choice((3, 20)), "when_full": "block"}
    wrong: list[Any] = []
    with Pipe(nodes) as pipe:
        streams = [threading.Thread(target=_stream, args=(pipe, key, seed * 100 + key, 60, wrong)) for key in range(6)]
        for stream in streams:
            stream.start()
        for stream in streams:
            stream.join(WAIT_S * 2)
        assert not wrong
        assert pipe.stats()["nodes"]["keeps"]["states"]["waiting"] == 0
        assert pipe.in_flight == 0
