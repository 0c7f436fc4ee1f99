"""A state for each sequence of requests at a node: who takes turns with whom, and what each finds."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest
from helpers import WAIT_S, Adds, Gate, run_loop, time_stands_still, until
from sequences import Remembers, alike, answer, await_waiting, states

from fastpipe import (
    Backend,
    BackendHung,
    CallLoop,
    ConfigError,
    PerRequest,
    Pipe,
    PipeClosed,
    QueueFull,
    Request,
    RequestTimeout,
    SequenceError,
    Status,
    Streaming,
    _core,
    register,
)
from fastpipe.contract import SubGraph

S = 1_000_000_000


# ---- turns ----------------------------------------------------------------------------------------------------------


def test_each_request_finds_what_the_one_before_has_left() -> None:
    """In every way of calling; the state is no part of the answer."""

    async def ask(pipe: Pipe) -> None:
        answers = await asyncio.gather(*(pipe.acall({"data": data, "id": "a"}) for data in (6, 7)))
        assert [each["result"] for each in answers] == [(1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 6, 7)]

    with Pipe(backend=Remembers, state_of="id", instance_num=2) as pipe:
        assert answer(pipe, "a", 1) == (1,)
        assert answer(pipe, "b", 1) == (1,)
        assert pipe.submit({"data": 2, "id": "a"}).result(WAIT_S)["result"] == (1, 2)
        listed = pipe([{"data": 3, "id": "a"}, {"data": 4, "id": "a"}])
        assert [each["result"] for each in listed] == [(1, 2, 3), (1, 2, 3, 4)]
        assert listed[0].keys() == {"data", "id", "result"}
        request: Request = {"data": 5, "id": "a"}
        assert pipe(request, eager=True)["result"] == (1, 2, 3, 4, 5)
        run_loop(lambda: ask(pipe))
        mapped = pipe.map([{"data": data, "id": "a"} for data in (8, 9)])
        assert [each["result"][-1] for each in mapped] == [8, 9]
        assert states(pipe) == {"kept": 2, "started": 2}


def test_one_request_of_a_sequence_runs_at_a_time_and_those_of_others_beside_it() -> None:
    """A batch holds at most one of each; whoever waits for a turn is in no queue."""
    backend = Remembers(is_open=False)
    with Pipe(backend=backend, state_of="id", instance_num=1, max=8) as pipe:
        futures = [pipe.submit({"data": f"{key}{number}", "id": key}) for number in range(3) for key in "ab"]
        backend.await_inside()
        await_waiting(pipe, 4)
        backend.opened.set()
        results = [future.result(WAIT_S)["result"] for future in futures]
        assert [len(each) for each in results] == [1, 1, 2, 2, 3, 3]
        assert results[-1] == ("b0", "b1", "b2")
        for batch in backend.batches:
            assert len({data[0] for data in batch}) == len(batch)
        assert max(map(len, backend.batches)) == 2


def test_turns_are_in_the_order_of_submission_however_requests_overtake_each_other() -> None:
    """One that comes to the node first waits for one that was submitted before it; others do not."""
    slow = Gate()
    nodes = {
        "slow": {"backend": slow, "filter": _skips_fast, "next": "keeps"},
        "keeps": {"backend": Remembers, "state_of": "id", "filter": _moves_if_there},
    }
    with Pipe(nodes) as pipe:
        first = pipe.submit({"data": 1, "id": "a"})
        assert slow.inside.wait(WAIT_S)
        second = pipe.submit({"data": 2, "id": "a", "fast": True})
        await_waiting(pipe, 1, "keeps")
        assert answer(pipe, "b", 3, fast=True) == (3,)
        assert not second.done()
        slow.opened.set()
        assert first.result(WAIT_S)["result"] == (1,)
        assert second.result(WAIT_S)["result"] == (1, 2)


def _skips_fast(request: Request) -> Any:
    if request.get("fast"):
        return Status.Skip
    return _moves_if_there(request)


def _moves_if_there(request: Request) -> Any:
    if "result" in request:
        request["data"] = request.pop("result")
    return Status.Run


def test_a_request_that_fails_or_goes_round_the_node_holds_nobody_up() -> None:
    """One before it on its way has failed, has gone another way, or was cancelled: the next has its turn."""
    slow = Gate()
    nodes = {
        "slow": {"backend": slow, "instance_num": 1, "max": 1, "next": "keeps"},
        "keeps": {"backend": Remembers, "state_of": "id", "filter": _skips_round},
    }
    with Pipe(nodes) as pipe:
        fails = pipe.submit({"data": ValueError("no"), "id": "a"})
        assert slow.inside.wait(WAIT_S)
        goes_round = pipe.submit({"data": 1, "id": "a", "round": True})
        leaves = pipe.submit({"data": 2, "id": "a"})
        comes = pipe.submit({"data": 3, "id": "a"})
        assert leaves.cancel()
        slow.opened.set()
        assert comes.result(WAIT_S)["result"] == (3,)
        assert goes_round.result(WAIT_S)["result"] == 1
        with pytest.raises(ValueError, match="no"):
            fails.result(WAIT_S)


def _skips_round(request: Request) -> Any:
    return Status.Skip if request.get("round") else _moves_if_there(request)


def test_a_key_that_a_node_before_sets_has_turns_in_the_order_of_arrival() -> None:
    """Also one that it changes: the place that was taken under the other is given up."""

    class Names(PerRequest):
        def run(self, request: Request) -> None:
            request["id"] = request["camera"]
            request["result"] = request["data"]

    nodes = {
        "names": {"backend": Names, "next": "keeps"},
        "keeps": {"backend": Remembers, "state_of": "id"},
    }
    with Pipe(nodes) as pipe:
        assert pipe({"data": 1, "camera": 7})["result"] == (1,)
        assert pipe({"data": 2, "camera": 7, "id": 8})["result"] == (1, 2)
        assert pipe({"data": 3, "id": 7, "camera": 8})["result"] == (3,)
        assert states(pipe, "keeps") == {"kept": 2, "started": 2}


def test_a_priority_does_not_change_the_order_within_a_sequence() -> None:
    """It counts among sequences."""
    backend = Remembers(is_open=False)
    with Pipe(backend=backend, state_of="id", instance_num=1, max=1) as pipe:
        held = pipe.submit({"data": 0, "id": "z"})
        backend.await_inside()
        futures = [pipe.submit({"data": number, "id": "a"}, priority=-number) for number in range(1, 4)]
        backend.opened.set()
        assert [future.result(WAIT_S)["result"] for future in futures] == [(1,), (1, 2), (1, 2, 3)]
        held.result(WAIT_S)


# ---- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names_bad", [True, False])
def test_a_request_that_fails_leaves_the_state_as_it_was(names_bad: bool) -> None:
    """The next goes on with it; a batch that is run again one by one applies no state twice."""
    backend = Remembers(is_open=False, names_bad=names_bad)
    with Pipe(backend=backend, state_of="id", instance_num=1, max=8) as pipe:
        held = pipe.submit({"data": 0, "id": "held"})
        backend.await_inside()
        data = {"a": [1, 2, 3], "b": [1, "bad", 3], "c": ["bad", 2, "bad"]}
        futures = {key: [pipe.submit({"data": each, "id": key}) for each in all_] for key, all_ in data.items()}
        backend.opened.set()
        outcomes = {
            key: [future.result(WAIT_S)["result"] if future.exception(WAIT_S) is None else "failed" for future in own]
            for key, own in futures.items()
        }
        assert outcomes == {
            "a": [(1,), (1, 2), (1, 2, 3)],
            "b": [(1,), "failed", (1, 3)],
            "c": ["failed", (2,), "failed"],
        }
        assert [answer(pipe, key, 9) for key in "abc"] == [(1, 2, 3, 9), (1, 3, 9), (2, 9)]
        held.result(WAIT_S)


def test_a_state_that_is_changed_in_place_is_applied_once_where_a_batch_is_run_again() -> None:
    """Each request meets a copy of what it met first. What fails then is not undone in what was changed in place."""

    class Appends(Backend):
        stateful = True
        max_batch = 4

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                seen = request["state"] if request["state"] is not None else []
                seen.append(request["data"])
                request["state"], request["result"] = seen, list(seen)
            if any(request["data"] == "bad" for request in batch):
                raise ValueError("bad")

    with Pipe(backend=Appends, state_of="id", instance_num=1, batching="timeout", batching_timeout=1000, max=3) as pipe:
        pipe([{"data": 1, "id": key} for key in "abc"])
        with pytest.raises(ExceptionGroup):
            pipe([{"data": 2, "id": "a"}, {"data": "bad", "id": "b"}, {"data": 2, "id": "c"}])
        listed = pipe([{"data": 3, "id": key} for key in "abc"])
        assert [each["result"] for each in listed] == [[1, 2, 3], [1, "bad", 3], [1, 2, 3]]


def test_a_request_that_is_cancelled_while_it_runs_leaves_the_state_as_it_was() -> None:
    """The next one waits until its batch is over all the same."""
    backend = Remembers(is_open=False)
    with Pipe(backend=alike(backend), state_of="id", instance_num=2, max=1) as pipe:

        async def leave() -> None:
            task = asyncio.ensure_future(pipe.acall({"data": 1, "id": "a"}))
            await asyncio.to_thread(backend.await_inside)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        run_loop(leave)
        after = pipe.submit({"data": 2, "id": "a"})
        await_waiting(pipe, 1)
        other = pipe.submit({"data": 3, "id": "b"})
        backend.await_inside()
        assert backend.batches == [[1], [3]]
        backend.opened.set()
        assert after.result(WAIT_S)["result"] == (2,)
        assert other.result(WAIT_S)["result"] == (3,)


def test_a_request_that_is_cancelled_while_it_waits_is_passed_over() -> None:
    """In the middle of those who wait, and queued as the next."""
    backend = Remembers(is_open=False)
    with Pipe(backend=backend, state_of="id", instance_num=1) as pipe:
        held = pipe.submit({"data": 0, "id": "held"})
        backend.await_inside()
        futures = [pipe.submit({"data": number, "id": "a"}) for number in range(4)]
        assert futures[0].cancel()
        assert futures[2].cancel()
        await_waiting(pipe, 1)
        backend.opened.set()
        assert [futures[each].result(WAIT_S)["result"] for each in (1, 3)] == [(1,), (1, 3)]
        held.result(WAIT_S)
    assert len(backend.batches) == 3


def test_a_request_that_is_too_late_leaves_the_state_as_it_was() -> None:
    """Whether it waits for its turn, is queued, or runs."""
    backend = Remembers(is_open=False)
    with time_stands_still(), Pipe(backend=backend, state_of="id", max=1) as pipe:
        runs = pipe.submit({"data": 1, "id": "a"}, timeout=1)
        backend.await_inside()
        waits = pipe.submit({"data": 2, "id": "a"}, timeout=1)
        after = pipe.submit({"data": 3, "id": "a"})
        _core._advance_time(2 * S)
        for future in (runs, waits):
            with pytest.raises(RequestTimeout):
                future.result(WAIT_S)
        backend.opened.set()
        assert after.result(WAIT_S)["result"] == (3,)


def test_a_backend_that_hangs_gives_up_the_turn_and_not_the_state() -> None:
    """The next request finds what the last one to succeed has left; what comes back late is nobody's."""
    gate = threading.Event()
    back = threading.Event()

    class Hangs(PerRequest):
        stateful = True
        max_batch = 1

        def run(self, request: Request) -> None:
            if request["data"] == "hang":
                request["state"] = "wrong"
                gate.wait(WAIT_S)
                back.set()
            request["state"] = request["result"] = (*(request["state"] or ()), request["data"])

    with Pipe(backend=Hangs, state_of="id", hang_timeout=0.2, instance_num=1) as pipe:
        assert answer(pipe, "a", 1) == (1,)
        hangs = pipe.submit({"data": "hang", "id": "a"})
        after = pipe.submit({"data": 2, "id": "a"})
        with pytest.raises(BackendHung):
            hangs.result(WAIT_S)
        assert after.result(WAIT_S)["result"] == (1, 2)
        gate.set()
        assert back.wait(WAIT_S)
        assert answer(pipe, "a", 3) == (1, 2, 3)


def test_requests_that_fail_one_after_the_other_call_each_other_in_a_loop() -> None:
    """Thousands that wait behind each other, and all fail on their way into the queue, end without deep calls."""

    class Weighs(Remembers):
        def weigh(self, request: Request) -> float:
            if self.broken:
                raise ValueError("no weight")
            return 1.0

        broken = False

    backend = Weighs(is_open=False)
    with Pipe(backend=backend, state_of="id", instance_num=1) as pipe:
        first = pipe.submit({"data": 0, "id": "a"})
        backend.await_inside()
        futures = [pipe.submit({"data": number, "id": "a"}) for number in range(10_000)]
        backend.broken = True
        backend.opened.set()
        assert first.result(WAIT_S)["result"] == (0,)
        assert {type(future.exception(WAIT_S)) for future in futures} == {ValueError}
        assert states(pipe) == {"kept": 1, "started": 1}


# ---- what a request says --------------------------------------------------------------------------------------------


def test_a_sequence_begins_and_ends_where_a_request_says_so() -> None:
    """sequence_start drops what was kept, if False something has to be kept; sequence_end keeps nothing."""
    with Pipe(backend=Remembers, state_of="id") as pipe:
        assert answer(pipe, "a", 1, sequence_start=True) == (1,)
        assert answer(pipe, "a", 2, sequence_start=False) == (1, 2)
        assert answer(pipe, "a", 3, sequence_start=True) == (3,)
        assert answer(pipe, "a", 4, sequence_end=True) == (3, 4)
        assert states(pipe) == {"started": 2, "dropped": 2}
        with pytest.raises(SequenceError, match=r"sequence 'a' has no state at node 'main'.*sequence_start is False"):
            answer(pipe, "a", 5, sequence_start=False)
        assert answer(pipe, "a", 6) == (6,)
        with pytest.raises(ValueError, match="bad"):
            answer(pipe, "a", "bad", sequence_start=True)
        with pytest.raises(SequenceError):
            answer(pipe, "a", 7, sequence_start=False)
        assert len(pipe.nodes[0].station.states) == 0  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({}, r"request\['id'\] must say"),
        ({"id": None}, "a str, bytes or a whole number is expected, got None"),
        ({"id": True}, "a str, bytes or a whole number is expected, got True"),
        ({"id": [1]}, "got of type list"),
        ({"id": "x" * 1025}, "has 1025 characters or bytes: at most 1024"),
        ({"id": "a", "state": 1}, r"request\['state'\] is what the pipe keeps"),
    ],
)
def test_a_request_that_does_not_say_whose_it_is_fails(request_: dict[str, Any], said: str) -> None:
    """Alone, and nothing is kept of it."""
    with Pipe(backend=Remembers, state_of="id") as pipe:
        with pytest.raises(SequenceError, match=said):
            pipe({"data": 1, **request_})
        assert answer(pipe, "a", 1) == (1,)
        assert states(pipe) == {"kept": 1, "started": 1}


def test_keys_are_texts_bytes_and_whole_numbers_and_no_two_of_them_are_mixed_up() -> None:
    """NumPy's are taken for what they say."""
    numpy = pytest.importorskip("numpy")
    with Pipe(backend=Remembers, state_of="id") as pipe:
        for key in ("1", b"1", 1):
            assert answer(pipe, key, 0) == (0,)
        assert answer(pipe, numpy.str_("1"), 1) == (0, 1)
        assert answer(pipe, numpy.int64(1), 1) == (0, 1)
        assert states(pipe)["kept"] == 3


def test_drop_state_comes_behind_what_was_submitted_before_it() -> None:
    """Requests that are there run first, with the state; the next begins anew."""
    backend = Remembers(is_open=False)
    with Pipe(backend=backend, state_of="id", instance_num=1) as pipe:
        before = [pipe.submit({"data": number, "id": "a"}) for number in range(3)]
        backend.await_inside()
        assert pipe.drop_state("main", "a")
        after = [pipe.submit({"data": number, "id": "a"}) for number in range(2)]
        assert before[2].cancel()  # the one behind which it was
        backend.opened.set()
        assert [future.result(WAIT_S)["result"] for future in (*before[:2], *after)] == [(0,), (0, 1), (0,), (0, 1)]
        assert pipe.drop_state("main", "a")
        assert not pipe.drop_state("main", "a")
        assert states(pipe) == {"started": 2, "dropped": 2}
        with pytest.raises(ValueError, match=r"no node 'other' keeps states; those that do are \['main'\]"):
            pipe.drop_state("other", "a")
        with pytest.raises(SequenceError, match="whole number"):
            pipe.drop_state("main", 1.5)  # type: ignore[arg-type]


# ---- bounds ---------------------------------------------------------------------------------------------------------


def test_the_state_that_was_not_used_for_longest_makes_room() -> None:
    """Those of sequences with requests in flight stay, and count."""
    backend = Remembers()
    with Pipe(backend=backend, state_of="id", max_states=2, instance_num=1) as pipe:
        for key in "ab":
            answer(pipe, key, 1)
        answer(pipe, "a", 2)
        assert answer(pipe, "c", 1) == (1,)  # in the place of b's
        assert states(pipe) == {"kept": 2, "started": 3, "evictions": 1}
        assert answer(pipe, "a", 3) == (1, 2, 3)
        assert answer(pipe, "b", 2) == (2,)
        backend.opened.clear()
        for _ in backend.batches:
            backend.await_inside()
        futures = [pipe.submit({"data": number, "id": f"new {number}"}) for number in range(4)]
        backend.await_inside()
        backend.opened.set()
        for future in futures:
            future.result(WAIT_S)
        assert states(pipe)["kept"] == 2
        assert len(pipe.nodes[0].station.states) == 2  # type: ignore[union-attr,arg-type]


def test_a_state_that_was_not_used_for_too_long_is_dropped() -> None:
    """Once somebody looks: its own sequence, or another that comes to the node."""

    class Thing:
        pass

    class Keeps(PerRequest):
        stateful = True

        def run(self, request: Request) -> None:
            request["result"] = request["state"] is None
            request["state"] = things.setdefault(request["data"], Thing())

    things: dict[int, Thing] = {}
    with time_stands_still(), Pipe(backend=Keeps, state_of="id", state_ttl=10) as pipe:
        assert answer(pipe, "a", 1)
        assert answer(pipe, "b", 2)
        _core._advance_time(9 * S)
        assert not answer(pipe, "b", 2)
        _core._advance_time(2 * S)
        seen = weakref.ref(things.pop(1))
        assert not answer(pipe, "b", 2)
        gc.collect()
        assert seen() is None
        assert states(pipe) == {"kept": 1, "started": 2, "expirations": 1}
        _core._advance_time(11 * S)
        assert answer(pipe, "b", 2)


def test_a_state_does_not_get_old_while_requests_of_its_sequence_wait() -> None:
    """However long they have to."""
    backend = Remembers()
    with time_stands_still(), Pipe(backend=backend, state_of="id", state_ttl=10, max=1) as pipe:
        assert answer(pipe, "a", 1) == (1,)
        backend.await_inside()
        backend.opened.clear()
        held = pipe.submit({"data": 1, "id": "b"})
        backend.await_inside()
        waits = pipe.submit({"data": 2, "id": "a"})
        _core._advance_time(60 * S)
        backend.opened.set()
        assert waits.result(WAIT_S)["result"] == (1, 2)
        held.result(WAIT_S)


def test_whoever_waits_for_a_turn_counts_in_the_queue() -> None:
    """So a limit of the queue holds for one sequence as well as for many."""
    backend = Remembers(is_open=False)
    with Pipe(backend=backend, state_of="id", instance_num=1, max_queue=2, when_full="reject") as pipe:
        futures = [pipe.submit({"data": 0, "id": "a"})]
        backend.await_inside()
        futures += [pipe.submit({"data": number, "id": "a"}) for number in (1, 2)]
        with pytest.raises(QueueFull):
            pipe.submit({"data": 3, "id": "a"})
        assert futures[1].cancel()
        futures.append(pipe.submit({"data": 4, "id": "a"}))
        backend.opened.set()
        assert [futures[each].result(WAIT_S)["result"] for each in (0, 2, 3)] == [(0,), (0, 2), (0, 2, 4)]


def test_where_the_oldest_makes_room_it_is_one_that_waits_for_its_turn() -> None:
    """The others of its sequence go on without it; bytes are counted, too."""
    backend = Remembers(is_open=False)
    keys: dict[str, Any] = {"max_queue_bytes": 20, "when_full": "shed_oldest"}
    with Pipe(backend=backend, state_of="id", instance_num=1, **keys) as pipe:
        futures = [pipe.submit({"data": b"x" * 10 + bytes([number]), "id": "a"}) for number in range(1)]
        backend.await_inside()
        futures += [pipe.submit({"data": b"x" * 9 + bytes([number]), "id": "a"}) for number in range(1, 4)]
        with pytest.raises(QueueFull):
            futures[1].result(WAIT_S)
        backend.opened.set()
        assert [len(futures[each].result(WAIT_S)["result"]) for each in (0, 2, 3)] == [1, 2, 3]
        until(lambda: pipe.in_flight == 0)
        assert pipe.stats()["nodes"]["main"]["shed"] == 1


def test_a_caller_who_waits_for_room_is_let_in_as_turns_come() -> None:
    """A queue of one place, and requests of one sequence from threads."""
    backend = Remembers()
    with Pipe(backend=backend, state_of="id", instance_num=1, max_queue=1) as pipe:
        results: list[Any] = []
        threads = [
            threading.Thread(target=lambda: results.extend(answer(pipe, "a", 0) for _ in range(20))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert sorted(map(len, results)) == list(range(1, 81))


# ---- other instances, and the end -----------------------------------------------------------------------------------


class Versioned(PerRequest):
    """Remembers which versions have run."""

    stateful = True

    def __init__(self, *, version: int = 0, gate: Any = None) -> None:
        self.version = version
        self.gate = gate

    def run(self, request: Request) -> None:
        request["state"] = request["result"] = (*(request["state"] or ()), self.version)
        if self.gate is not None and request["data"] == "held":
            self.gate.inside.set()
            assert self.gate.opened.wait(WAIT_S)


class Stateless(Versioned):
    stateful = False


def test_a_swap_begins_all_sequences_anew_and_a_resize_none() -> None:
    """What the old backend still makes of a state is not handed to the new one."""
    gate = Gate()
    with Pipe(backend=Versioned, state_of="id", version=1, gate=gate, instance_num=1) as pipe:
        assert answer(pipe, "a", 0) == (1,)
        pipe.resize("main", instance_num=3)
        assert answer(pipe, "a", 0) == (1, 1)
        pipe.resize("main", instance_num=1)
        assert answer(pipe, "a", 0) == (1, 1, 1)
        answer(pipe, "b", 0)
        held = pipe.submit({"data": "held", "id": "a"})
        assert gate.inside.wait(WAIT_S)
        swap = threading.Thread(target=pipe.swap, args=("main",), kwargs={"version": 2, "gate": None})
        swap.start()
        until(lambda: answer(pipe, "c", 0)[-1] == 2)
        gate.opened.set()
        swap.join(WAIT_S)
        assert held.result(WAIT_S)["result"] == (1, 1, 1, 1)
        assert answer(pipe, "a", 0) == (2,)
        with pytest.raises(SequenceError):
            answer(pipe, "b", 0, sequence_start=False)
        with pytest.raises(ConfigError, match="keeps no state"):
            pipe.swap("main", backend=Stateless)


def test_closing_runs_all_turns_or_fails_them_and_lets_go_of_the_states() -> None:
    """Those who wait for others are no less in flight."""

    class Thing:
        pass

    class Keeps(Remembers):
        def forward(self, batch: list[Request]) -> None:
            super().forward(batch)
            for request in batch:
                request["state"] = thing

    thing: Thing | None = Thing()
    kept = weakref.ref(thing)
    for drains in (True, False):
        backend = Remembers(is_open=False)
        pipe = Pipe(backend=backend, state_of="id", instance_num=1)
        futures = [pipe.submit({"data": number, "id": "a"}) for number in range(50)]
        backend.await_inside()
        closing = threading.Thread(target=pipe.close, kwargs={} if drains else {"timeout": 0.01})
        closing.start()
        if not drains:
            until(lambda: futures[-1].done())  # noqa: B023
        backend.opened.set()
        closing.join(WAIT_S)
        ended = [future.exception(WAIT_S) for future in futures]
        assert ended == [None] * 50 if drains else {type(each) for each in ended} == {PipeClosed}
    with Pipe(backend=Keeps, state_of="id") as pipe:
        assert pipe({"data": 1, "id": "a"})["result"] == (1,)
        thing = None
        assert kept() is not None
    gc.collect()
    assert kept() is None


# ---- graphs ---------------------------------------------------------------------------------------------------------


def test_two_nodes_keep_states_of_their_own() -> None:
    """By the same key, or by another."""
    nodes = {
        "one": {"backend": Remembers, "state_of": "id", "next": "two"},
        "two": {"backend": Remembers, "state_of": "user"},
    }
    with Pipe(nodes) as pipe:
        assert pipe.state_keys == ("id", "user")
        pipe({"data": 1, "id": "a", "user": "u"})
        pipe({"data": 2, "id": "b", "user": "u"})
        assert pipe({"data": 3, "id": "a", "user": "u"})["result"] == ((1,), (2,), (1, 3))


def test_logical_nodes_share_the_states_of_their_node() -> None:
    """A request that passes two of them has two turns, one after the other; the next waits for both."""
    gate = Gate()
    nodes = {
        "keeps": {"backend": Remembers, "state_of": "id", "next": "gate"},
        "gate": {"backend": gate, "instance_num": 1, "max": 1, "next": "keeps.again"},
        "keeps.again": {},
    }
    with Pipe(nodes) as pipe:
        futures = [pipe.submit({"data": number, "id": "a"}) for number in range(3)]
        assert gate.inside.wait(WAIT_S)
        await_waiting(pipe, 2, "keeps")
        gate.opened.set()
        results = [future.result(WAIT_S)["result"] for future in futures]
        assert [len(result) for result in results] == [2, 4, 6]
        assert results[0] == (0, (0,))


def test_parts_of_a_request_have_their_turns_in_their_order() -> None:
    """And do not wait any more once their whole has failed."""

    class Jumbles(PerRequest):
        """Holds the first part until the others have gone by."""

        def run(self, request: Request) -> None:
            if request["data"] == 0:
                assert others.wait(WAIT_S)
            elif request["data"] == "fails":
                assert others.wait(WAIT_S)
                raise ValueError("fails")
            else:
                others.set()
            request["result"] = request["data"]

    class Parts(SubGraph):
        def split(self, request: Request) -> list[Request]:
            return [{"data": each, "id": request["id"]} for each in request["data"]]

        def merge(self, request: Request, answers: Any) -> None:
            request["result"] = [each["result"] for each in answers]

    others = threading.Event()
    nodes = {
        "whole": {"backend": Parts, "jump": "jumbles"},
        "jumbles": {"backend": Jumbles, "instance_num": 4, "next": "keeps"},
        "keeps": {"backend": Remembers, "state_of": "id"},
    }
    with Pipe(nodes) as pipe:
        assert pipe({"data": [0, 1, 2], "id": "a"}, entry="whole")["result"] == [(0,), (0, 1), (0, 1, 2)]
        others.clear()
        with pytest.raises(ValueError, match="fails"):
            pipe({"data": ["fails", 3, 4], "id": "a"}, entry="whole")
        assert pipe({"data": [5], "id": "a"}, entry="whole")["result"] == [(0, 1, 2, 5)]
        until(lambda: pipe.in_flight == 0)
        assert "waiting" not in states(pipe, "keeps")


def test_a_request_that_enters_again_takes_its_turn_anew() -> None:
    """Behind those who are there; it does not wait for itself."""

    class Again(PerRequest):
        def run(self, request: Request) -> None:
            request["result"] = request["data"]
            if len(request["data"]) < 3:
                request["restart"] = "keeps"

    class Flat(Remembers):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["data"] = 0
            super().forward(batch)

    nodes = {
        "keeps": {"backend": Flat, "state_of": "id", "next": "again"},
        "again": {"backend": Again},
    }
    with Pipe(nodes) as pipe:
        assert pipe({"data": 0, "id": "a"})["result"] == (0, 0, 0)
        futures = [pipe.submit({"data": 0, "id": "b"}) for _ in range(2)]
        assert [len(future.result(WAIT_S)["result"]) for future in futures] in ([3, 4], [4, 3], [3, 3])


def test_a_backend_whose_call_of_its_pipe_waits_for_its_own_turn_fails() -> None:
    """It would wait for ever: in turns, or step by step."""

    class Calls(PerRequest):
        stateful = True

        def run(self, request: Request) -> None:
            if request["data"] > 0:
                eager = request["data"] == 2
                pipe({"data": 0, "id": request["id"] if request["data"] < 3 else "other"}, eager=eager)
            request["result"] = request["data"]

    pipe = Pipe(backend=Calls, state_of="id", instance_num=4)
    with pipe:
        for data in (1, 2):
            with pytest.raises(CallLoop, match="whose turn in its sequence"):
                answer(pipe, "a", data)
        assert answer(pipe, "a", 3) == 3


def test_steps_wait_for_the_turn_of_their_request() -> None:
    """As eager calls do, and the next waits for them."""
    backend = Remembers(is_open=False)
    with Pipe(backend=alike(backend), state_of="id", instance_num=2, max=1) as pipe:
        first = pipe.submit({"data": 1, "id": "a"})
        backend.await_inside()
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(pipe({"data": 2, "id": "a"}, eager=True)["result"]))
        thread.start()
        until(lambda: pipe.in_flight == 2)
        last = pipe.submit({"data": 3, "id": "a"})
        await_waiting(pipe, 1)
        backend.opened.set()
        assert first.result(WAIT_S)["result"] == (1,)
        thread.join(WAIT_S)
        assert results == [(1, 2)]
        assert last.result(WAIT_S)["result"] == (1, 2, 3)


def test_a_stream_leaves_its_state_when_it_is_finished() -> None:
    """Of one batch the request that ends first makes place for the next of its sequence."""

    class Counts(Streaming):
        stateful = True
        max_batch = 4

        def run(self, request: Request) -> Any:
            begun = request["state"] or 0
            for number in range(request["data"]):
                yield begun + number
            request["state"] = begun + request["data"]

    with Pipe(backend=Counts, state_of="id", instance_num=1) as pipe:
        assert list(pipe.stream({"data": 3, "id": "a"})) == [0, 1, 2]
        assert list(pipe.stream({"data": 2, "id": "a"})) == [3, 4]
        long = pipe.submit({"data": 1000, "id": "b"})
        futures = [pipe.submit({"data": 1, "id": "a"}) for _ in range(3)]
        assert [future.result(WAIT_S)["result"] for future in futures] == [[5], [6], [7]]
        assert long.result(WAIT_S)["result"][-1] == 999
        with pipe.stream({"data": 10_000, "id": "a"}) as leaving:
            next(leaving)
        assert list(pipe.stream({"data": 1, "id": "a"})) == [8]


def test_a_sequence_stays_at_the_place_of_its_state() -> None:
    """Where instances are at several places, such as GPUs."""

    class At(PerRequest):
        stateful = True
        max_batch = 4
        made = iter("abababab")

        def __init__(self) -> None:
            self.place = next(type(self).made)

        def run(self, request: Request) -> None:
            request["result"] = request["state"] = {*(request["state"] or ()), self.place}

    with Pipe(backend=At, state_of="id", instance_num=2) as pipe:
        for _ in range(5):
            futures = [pipe.submit({"data": 0, "id": number}) for number in range(10)]
            for future in futures:
                assert len(future.result(WAIT_S)["result"]) == 1
        assert len(set().union(*(answer(pipe, number, 0) for number in range(10)))) == 2
        assert states(pipe) == {"kept": 10, "started": 10}


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"backend": Remembers}, r"node 'main': state_of: the backend keeps a state.*state_of = "),
        ({"backend": Adds, "state_of": "id"}, "Adds keeps no state"),
        ({"backend": Remembers, "state_of": "id", "cache": "1MB"}, "take cache or state_of out"),
        ({"backend": Remembers, "state_of": "data"}, "'data' is a key of requests that means something else"),
        ({"backend": Remembers, "state_of": 1}, "a key of the request"),
        ({"backend": Adds, "max_states": 3}, "there is no state_of"),
        ({"backend": Adds, "state_ttl": 3}, "there is no state_of"),
        ({"backend": Remembers, "state_of": "id", "max_states": 0}, "max_states"),
        ({"backend": "S[One,Two]", "state_of": "id"}, "One and Two each keep a state: make nodes of them"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(keys: dict[str, Any], said: str) -> None:
    """With the node, and the key."""
    if isinstance(keys["backend"], str):
        for name in ("One", "Two"):
            register(name, type(name, (Remembers,), {}))
    with pytest.raises(ConfigError, match=said):
        Pipe(**keys)


def test_parts_of_parts_take_turns_in_order_however_many_there_are() -> None:
    """A walk knows how many positions its own parts have: none of thousands looks through those of all others."""

    class Counts(PerRequest):
        stateful = True

        def run(self, request: Request) -> None:
            request["state"] = (request["state"] or 0) + 1
            request["result"] = (request["data"], request["state"])

    nodes: dict[str, Any] = {
        "pages": {"backend": "MapReduce", "jump": "lines", "share": "id"},
        "lines": {"backend": "MapReduce", "jump": "counts", "share": "id"},
        "counts": {"backend": Counts, "state_of": "id", "instance_num": 2, "max": 4},
    }
    with Pipe(nodes) as pipe:
        for round_number in range(2):
            pages = [[(page, line) for line in range(4)] for page in range(500)]
            request: Request = {"data": pages, "id": "a", "node_name": "pages"}
            pipe(request)
            first = 1 + 2000 * round_number
            numbered = iter(range(first, first + 2000))
            assert request["result"] == [[(line, next(numbered)) for line in page] for page in pages]


def test_a_graph_in_which_a_request_would_wait_for_its_own_parts_is_refused() -> None:
    """Parts come to a node where the whole comes later: each would have its turn after the other."""
    nodes = {
        "whole": {"backend": "MapReduce", "jump": "part", "next": "keeps"},
        "part": {"backend": Adds, "next": "keeps"},
        "keeps": {"backend": Remembers, "state_of": "id", "map": "whole|part[result:data]"},
    }
    with pytest.raises(ConfigError, match="each would wait for the other"):
        Pipe(nodes)


def test_what_a_node_has_counted_of_its_states_between_two_times() -> None:
    """What is kept is kept now; the rest has happened since."""
    with Pipe(backend=Remembers, state_of="id") as pipe:
        answer(pipe, "a", 1)
        before = pipe.stats()
        answer(pipe, "b", 1)
        answer(pipe, "a", 1, sequence_end=True)
        assert pipe.stats(since=before)["nodes"]["main"]["states"] == {
            "kept": 1,
            "waiting": 0,
            "started": 1,
            "dropped": 1,
            "expirations": 0,
            "evictions": 0,
        }
