"""What ``stats()`` measures: times, sizes and ends of requests, by node; exact where it says so, else within 5 %."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import pytest
from helpers import WAIT_S, Adds, Gate, opened, until
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger import check_distribution, check_measures

import fastpipe
from fastpipe import Backend, NoResult, Pipe, QueueFull, Request, RequestTimeout, _core
from fastpipe.measures import between

MS = 1_000_000


class Takes(Backend):
    """Takes as long as it is told, in frozen time; knows when each batch began and ended. For one instance."""

    max_batch = 8

    def __init__(self, times_ns: Iterator[int]) -> None:
        self.times_ns = times_ns
        self.now_ns = 0
        self.batches: list[tuple[int, int, int]] = []  # size, begin, end
        self.goes = threading.Event()

    def forward(self, batch: list[Request]) -> None:
        assert self.goes.wait(WAIT_S)
        took_ns = next(self.times_ns)
        self.batches.append((len(batch), self.now_ns, self.now_ns + took_ns))
        self.now_ns += took_ns
        _core._advance_time(took_ns)
        for request in batch:
            request["result"] = request["data"]


def times_ns(seed: int) -> Iterator[int]:
    """Yield times from 100 ns to minutes, most of them some milliseconds."""
    chance = random.Random(seed)
    while True:
        yield int(min(max(chance.lognormvariate(15, 2.5), 100), 1e11))


# ---- the histogram alone ---------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-3, 1 << 62), max_size=50), st.sampled_from([0, 4, 10]))
@settings(deadline=None, max_examples=200)
def test_each_value_is_in_the_bucket_whose_edges_enclose_it(values: list[int], shift: int) -> None:
    """The upper edge belongs to it, the lower one does not; what is negative counts as 0; sum and maximum are exact."""
    counted = _core.CountedValues(shift, 1000)
    values = [value >> (index % 60) for index, value in enumerate(values)]
    for value in values:
        counted.add(value)
    expected = [max(value, 0) for value in values]
    for lower, upper, count in counted.counts:
        assert count == sum(lower < value <= upper or value == lower == 0 for value in expected)
    assert sum(count for _, _, count in counted.counts) == len(values)
    assert (counted.sum, counted.most) == (sum(expected), max(expected, default=0))


@pytest.mark.parametrize("shift", [0, 4, 10])
def test_a_middle_is_within_the_promised_error_of_all_in_its_bucket(shift: int) -> None:
    """Above the first 16 steps; below, a bucket is one step wide."""
    for power in range(62):
        for value in {(1 << power) + offset for offset in (0, 1, (1 << power) // 3, (1 << power) - 1)}:
            counted = _core.CountedValues(shift, 1000)
            counted.add(value)
            ((lower, upper, _),) = counted.counts
            if value <= 16 << shift:
                assert upper - lower == 1 << shift
            else:
                assert abs(Fraction(lower + 1 + upper, 2) - value) <= Fraction(value, 32)


def test_what_is_above_the_last_bucket_is_counted_in_it() -> None:
    counted = _core.CountedValues(0, 20)
    for value in (20, 21, 1 << 60):
        counted.add(value)
    assert counted.counts == [(19, 20, 3)]
    assert counted.most == 1 << 60


@pytest.mark.parametrize("name", ["seconds", "sizes", "weights"])
def test_ladders_ascend_and_are_the_same_everywhere(name: str) -> None:
    """Of two pipes the buckets can be added. Sizes up to 32 have one each."""
    edges = [edge for edge, _ in _core.ladder(name)]
    middles = [middle for _, middle in _core.ladder(name)]
    assert edges == sorted(set(edges))
    assert all(before < middle <= edge for before, middle, edge in zip(edges, middles[1:], edges[1:], strict=False))
    if name == "sizes":
        assert edges[:33] == [*range(1, 33), 34]
        assert middles[:32] == edges[:32]


# ---- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("frozen_time")
def test_quantiles_are_those_of_the_ledger_for_requests_that_run_at_once() -> None:
    """5,000 requests of one caller: run and latency are the times that the backend took; nobody was queued."""
    backend = Takes(times_ns(1))
    backend.goes.set()
    with Pipe(backend=backend, max=1) as pipe:
        for number in range(5000):
            pipe({"data": number})
        stats = pipe.stats()
    node = stats["nodes"]["main"]
    took_s = [(end - begin) / 1e9 for _, begin, end in backend.batches]
    check_distribution(node["run_s"], took_s)
    check_distribution(stats["latency_s"], took_s)
    assert node["queue_s"]["buckets"] == {16e-9: 5000}
    assert (node["queue_s"]["max"], node["queue_s"]["p999"], node["queue_s"]["sum"]) == (0, 0, 0)
    check_measures(stats)


@pytest.mark.usefixtures("frozen_time")
def test_quantiles_are_those_of_the_ledger_for_requests_that_wait() -> None:
    """3,000 futures wait for one instance: each for all batches before its own, and is answered when that ends."""
    backend = Takes(times_ns(2))
    with Pipe(backend=backend, max=8, batching_timeout=0, batching="greedy") as pipe:
        futures = [pipe.submit({"data": number}) for number in range(3000)]
        backend.goes.set()
        for future in futures:
            future.result(WAIT_S)
        stats = pipe.stats()
    node = stats["nodes"]["main"]
    check_distribution(node["batch_sizes"], [size for size, _, _ in backend.batches])
    check_distribution(node["run_s"], [(end - begin) / 1e9 for _, begin, end in backend.batches])
    check_distribution(node["queue_s"], [begin / 1e9 for size, begin, _ in backend.batches for _ in range(size)])
    check_distribution(stats["latency_s"], [end / 1e9 for size, _, end in backend.batches for _ in range(size)])
    assert node["weights"] == node["batch_sizes"]
    check_measures(stats)


@pytest.mark.usefixtures("frozen_time")
def test_the_oldest_of_a_queue_has_its_age() -> None:
    """With priorities, too, where it is not the next; none once nothing is queued."""
    gate = Gate()
    with Pipe(backend=gate, max=1) as pipe:
        futures = [pipe.submit({"data": 0})]
        assert gate.inside.wait(WAIT_S)
        _core._advance_time(5 * MS)
        assert pipe.stats()["nodes"]["main"]["oldest_s"] == 0
        for priority in (0, 0, -5):
            futures.append(pipe.submit({"data": 1}, priority=priority))
            _core._advance_time(20 * MS)
        assert pipe.stats()["nodes"]["main"]["oldest_s"] == pytest.approx(0.06)
        futures[1].cancel()
        assert pipe.stats()["nodes"]["main"]["oldest_s"] == pytest.approx(0.04)
        gate.opened.set()
        for future in futures[2:]:
            future.result(WAIT_S)
        until(lambda: pipe.stats()["nodes"]["main"]["queued"] == 0)
        assert pipe.stats()["nodes"]["main"]["oldest_s"] == 0


@pytest.mark.usefixtures("frozen_time")
def test_latency_has_the_wait_for_room_in_front_of_the_pipe() -> None:
    """As the caller sees it: from the call, as its time limit counts."""
    gate = Gate()
    with Pipe(backend=gate, max=1, max_in_flight=1) as pipe:
        first = threading.Thread(target=pipe, args=({"data": 1},))
        first.start()
        assert gate.inside.wait(WAIT_S)
        second = threading.Thread(target=pipe, args=({"data": 2},))
        second.start()
        until(lambda: pipe.arrivals == 1)
        _core._advance_time(100 * MS)
        gate.opened.set()
        first.join(WAIT_S)
        second.join(WAIT_S)
        stats = pipe.stats()
    check_distribution(stats["latency_s"], [0.1, 0.1])
    check_distribution(stats["nodes"]["main"]["run_s"], [0.1, 0.0])


def test_weights_are_those_of_the_batches() -> None:
    """Of batches that ran at once and of those that were queued, in eighths."""
    gate = Gate()
    with Pipe(backend=gate, max=8, batching="greedy", obey_request_keys=["request_size"]) as pipe:
        futures = [pipe.submit({"data": 0, "request_size": 2.5})]
        assert gate.inside.wait(WAIT_S)
        futures += [pipe.submit({"data": 1, "request_size": size}) for size in (0.125, 0.5, 6)]
        gate.opened.set()
        for future in futures:
            future.result(WAIT_S)
        pipe({"data": 2, "request_size": 7})
        node = pipe.stats()["nodes"]["main"]
    check_distribution(node["weights"], [2.5, 6.625, 7])
    check_distribution(node["batch_sizes"], [1, 3, 1])


def test_a_second_run_is_a_batch_of_its_own_and_no_second_wait() -> None:
    """Of a batch that failed, each request runs again alone."""
    bad = Adds(bad=(3,), max_batch=4)
    with Pipe(backend=bad, max=4) as pipe:
        with pytest.raises(ExceptionGroup):
            pipe([{"data": number} for number in range(4)])
        stats = pipe.stats()
    node = stats["nodes"]["main"]
    assert node["queue_s"]["count"] == 4
    assert node["requests"] == 8
    assert node["batch_sizes"]["buckets"] == {1: 4, 4: 1}
    assert node["failures"] == {"error": 1} == stats["failures"]
    check_measures(stats)


# ---- how requests end, by node ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def one_inside(**keys: Any) -> Iterator[tuple[Pipe, Gate, Any]]:
    """A pipe of a node that passes everything, and one in which a request stands in the only instance."""
    gate = Gate()
    with Pipe(a={"backend": opened(), "next": "b"}, b={"backend": gate, "max": 1, "min": 1, **keys}) as pipe:
        future = pipe.submit({"data": "inside"})
        assert gate.inside.wait(WAIT_S)
        try:
            yield pipe, gate, future
        finally:
            gate.opened.set()


def ended(pipe: Pipe) -> Any:
    """Return the stats of a pipe once nothing is left in it."""
    until(lambda: all(node["queued"] == 0 == node["running"] for node in pipe.stats()["nodes"].values()))
    stats = pipe.stats()
    check_measures(stats)
    return stats


@pytest.mark.usefixtures("frozen_time")
def test_what_expires_is_counted_where_it_was_queued_or_ran() -> None:
    with one_inside() as (pipe, gate, future):
        queued = [pipe.submit({"data": 1}, timeout=0.05) for _ in range(3)]
        until(lambda: pipe.stats()["nodes"]["b"]["queued"] == 3)
        _core._advance_time(100 * MS)
        for each in queued:
            assert isinstance(each.exception(WAIT_S), RequestTimeout)
        gate.opened.set()
        future.result(WAIT_S)
        stats = ended(pipe)
    assert stats["nodes"]["b"]["expired"] == 3
    assert stats["nodes"]["b"]["failures"] == {"timeout": 3} == stats["failures"]
    assert stats["nodes"]["b"]["queue_s"]["count"] == 1, "who has not run is not in it"
    assert stats["nodes"]["a"]["expired"] == 0
    assert stats["latency_s"]["count"] == 4


@pytest.mark.usefixtures("frozen_time")
@pytest.mark.parametrize("eager", [False, True])
def test_what_runs_for_longer_than_its_limit_is_counted_where_it_ran(eager: bool) -> None:
    """On its caller's thread nobody notices before the batch has ended."""
    backend = Takes(itertools.repeat(100 * MS))
    backend.goes.set()
    after = opened()
    with Pipe(a={"backend": backend, "max": 1, "next": "b"}, b={"backend": after}) as pipe:
        with pytest.raises(RequestTimeout):
            pipe({"data": 1}, timeout=0.05, eager=eager)
        stats = ended(pipe)
    assert {name: node["failures"] for name, node in stats["nodes"].items()} == {"a": {"timeout": 1}, "b": {}}
    assert not after.batches
    check_distribution(stats["latency_s"], [0.1])


def test_what_is_cancelled_is_counted_where_it_was_queued_or_ran() -> None:
    with one_inside() as (pipe, gate, _):
        walks = [pipe._start({"data": number}, None, 0) for number in range(3)]
        until(lambda: pipe.stats()["nodes"]["b"]["queued"] == 3)
        assert walks[1].cancel()
        gate.opened.set()
        assert walks[2].wait() is None
        stats = ended(pipe)
        assert (stats["nodes"]["b"]["cancelled"], stats["requests"]["cancelled"]) == (1, 1)
        gate.opened.clear()
        gate.inside.clear()
        running = pipe._start({"data": "running"}, None, 0)
        assert gate.inside.wait(WAIT_S)
        assert running.cancel()
        gate.opened.set()
        stats = ended(pipe)
    assert (stats["nodes"]["b"]["cancelled"], stats["requests"]["cancelled"]) == (2, 2)
    assert stats["nodes"]["b"]["queue_s"]["count"] == 4, "what was cancelled while it ran has run"
    assert stats["latency_s"]["count"] == 3, "nobody was answered who has cancelled"


def test_refused_and_shed_are_counted_at_the_queue_that_was_full() -> None:
    for when_full in ("reject", "shed_oldest"):
        gate = Gate()
        with Pipe(backend=gate, max=1, max_queue=2, when_full=when_full) as pipe:
            futures = [pipe.submit({"data": 0})]
            assert gate.inside.wait(WAIT_S)
            futures += [pipe.submit({"data": number}) for number in (1, 2)]
            if when_full == "reject":
                with pytest.raises(QueueFull):
                    pipe({"data": 3})
            else:
                futures.append(pipe.submit({"data": 3}))
                assert isinstance(futures.pop(1).exception(WAIT_S), QueueFull)
            gate.opened.set()
            for future in futures:
                future.result(WAIT_S)
            stats = ended(pipe)
        node = stats["nodes"]["main"]
        if when_full == "reject":
            assert (node["refused"], node["shed"], node["failures"]) == (1, 0, {})
        else:
            assert (node["refused"], node["shed"], node["failures"]) == (0, 1, {"queue full": 1})
        assert node["refused"] == stats["requests"]["refused"]


def test_who_is_left_without_a_result_is_counted_at_the_node_that_left_it_so() -> None:
    """Not where that was found, which is a node later."""

    class Forgets(Backend):
        def forward(self, batch: list[Request]) -> None:
            """Give no result."""

    with Pipe(a={"backend": Forgets, "next": "b"}, b={"backend": opened()}) as pipe:
        with pytest.raises(NoResult):
            pipe({"data": 1})
        stats = ended(pipe)
    assert stats["nodes"]["a"]["without_result"] == 1
    assert {name: node["failures"] for name, node in stats["nodes"].items()} == {"a": {"no result": 1}, "b": {}}


def test_what_has_failed_in_another_branch_is_dropped() -> None:
    gate = Gate()
    with Pipe(
        a={"backend": opened(), "next": ["bad", "slow"]},
        bad={"backend": Adds(bad=(1,))},
        slow={"backend": gate, "max": 1},
    ) as pipe:
        first = pipe.submit({"data": 0})
        assert gate.inside.wait(WAIT_S)
        second = pipe.submit({"data": 1})
        assert isinstance(second.exception(WAIT_S), ValueError)
        gate.opened.set()
        first.result(WAIT_S)
        stats = ended(pipe)
    nodes = stats["nodes"]
    assert {name: (node["failures"], node["dropped"]) for name, node in nodes.items()} == {
        "a": ({}, 0),
        "bad": ({"error": 1}, 0),
        "slow": ({}, 1),
    }


def test_instances_that_hang_and_are_replaced_are_counted() -> None:
    goes = threading.Event()

    class Hangs(Backend):
        def forward(self, batch: list[Request]) -> None:
            goes.wait(WAIT_S)

    with Pipe(backend=Hangs, max=1, hang_timeout=0.05) as pipe:
        assert isinstance(pipe.submit({"data": 1}).exception(WAIT_S), fastpipe.BackendHung)
        until(lambda: pipe.stats()["nodes"]["main"]["instances"]["replaced"] == 1)
        node = pipe.stats()["nodes"]["main"]
        goes.set()
        assert node["instances"] == {"count": 1, "in_service": 1, "hung": 0, "replaced": 1, "switches": 0}
        assert (node["hung"], node["failures"]) == (1, {"hung": 1})


# ---- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("frozen_time")
def test_an_interval_is_what_was_done_in_it() -> None:
    """Counters and distributions; what is a state is that of now."""
    times = times_ns(3)
    backend = Takes(times)
    backend.goes.set()
    with Pipe(backend=backend, max=1) as pipe:
        for _ in range(300):
            pipe({"data": 1})
        earlier = pipe.stats()
        backend.batches.clear()
        for _ in range(500):
            pipe({"data": 1})
        interval = pipe.stats(since=earlier)
        total = pipe.stats()
        nothing = pipe.stats(since=total)
    took_s = [(end - begin) / 1e9 for _, begin, end in backend.batches]
    exact = sum(took_s)
    assert interval["interval_s"] == pytest.approx(exact)
    assert interval["time_s"] - earlier["time_s"] == pytest.approx(exact)
    assert interval["requests"]["done"] == interval["nodes"]["main"]["requests"] == 500
    most = interval["latency_s"]["max"]
    assert most is not None
    assert max(took_s) <= most * (1 + 1e-12) <= max(took_s) * (1 + 1 / 16 + 1e-9), "of an interval it may be an edge"
    measured: Any = {**interval["latency_s"], "max": max(took_s)}
    check_distribution(measured, took_s)
    assert between(total, earlier) == interval
    assert nothing["requests"] == dict.fromkeys(total["requests"], 0)
    assert nothing["latency_s"]["count"] == 0
    assert nothing["latency_s"]["p99"] is None
    assert nothing["nodes"]["main"]["instances"] == total["nodes"]["main"]["instances"]
    assert nothing["nodes"]["main"]["max"] == 1


def test_names_of_nodes_mean_nothing_to_an_interval() -> None:
    """A node may be called as a counter is."""
    with Pipe(max={"backend": opened(), "next": "in_flight"}, in_flight={"backend": opened()}) as pipe:
        earlier = pipe.stats()
        pipe({"data": 1})
        interval = pipe.stats(since=earlier)
    assert {name: node["requests"] for name, node in interval["nodes"].items()} == {"max": 1, "in_flight": 1}


def test_a_since_that_is_none_of_this_pipes_is_an_error_that_says_so() -> None:
    with Pipe(backend=opened()) as pipe, Pipe(backend=opened()) as other:
        earlier = pipe.stats()
        pipe({"data": 1})
        now = pipe.stats()
        with pytest.raises(ValueError, match="of another pipe: pass what an earlier stats"):
            pipe.stats(since=other.stats())
        with pytest.raises(ValueError, match="covers an interval itself"):
            pipe.stats(since=pipe.stats(since=earlier))
        with pytest.raises(ValueError, match="more than there is now"):
            between(earlier, now)
        with pytest.raises(TypeError, match="a dict; got float"):
            pipe.stats(since=1.5)  # type: ignore[arg-type]
        wrong: list[Callable[[Any], object]] = [
            lambda stats: stats.clear(),
            lambda stats: stats.update(nodes={}),
            lambda stats: stats.update(requests=None),
            lambda stats: stats["nodes"]["main"].pop("queue_s"),
            lambda stats: stats["latency_s"].update(buckets=[1]),
        ]
        for change in wrong:
            changed: Any = json.loads(json.dumps(now))
            change(changed)
            with pytest.raises(ValueError, match="as it was"):
                pipe.stats(since=changed)


# ---- what it costs ---------------------------------------------------------------------------------------------------


def test_the_histograms_of_ten_nodes_take_at_most_256_kib() -> None:
    nodes: dict[str, dict[str, Any]] = {
        f"n{index}": {"backend": "Identity", "max": 64, "next": f"n{index + 1}"} for index in range(9)
    }
    with Pipe(**nodes, n9={"backend": "Identity", "max": 64}) as pipe:
        assert len(pipe.stations) == 10
        assert sum(station.tallies_bytes for station in pipe.stations) < pipe.tallies_bytes <= 256 * 1024
