"""When a batch leaves: each rule as a table of (load -> verdict), and what the engine makes of it."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import time_stands_still
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpipe import Backend, Pipe, Request, _core
from fastpipe._core import decide

WAIT_S = 20.0
LONG_MS = 60_000
"""A batching_timeout that no test could sit out."""

MS = 1_000_000
NOW = 1_000 * MS

# ---- the rules, as tables ------------------------------------------------------------------------------------------

# An idle node of 2 instances and max 8; 10 ms timeout, batches of about 4 ms, requests of a burst 100 us apart.
CALM: dict[str, Any] = {
    "now_ns": NOW,
    "oldest_ns": NOW,
    "idle_since_ns": NOW - 500 * MS,
    "latest_event_ns": NOW,
    "usual_gap_ns": MS // 10,
    "timeout_ns": 10 * MS,
    "cost_alone_ns": 4 * MS,
    "cost_shared_ns": 4 * MS,
    "max_weight": 8,
    "idle_instances": 1,
    "busy_instances": 1,
}
NOBODY = "wait for request"
BUSY = "wait for instance"
WAIT = "wait until"

Verdict = tuple[Any, ...]


def said(rule: str, **fields: Any) -> Verdict:
    """Return the verdict without what does not matter: (reason, size), (WAIT, ns from now), NOBODY or BUSY."""
    preferred = fields.pop("preferred", None)
    action, reason, until_ns, size = decide(rule, preferred=preferred, **{**CALM, **fields})
    if action == "dispatch":
        return reason, size
    return (action, until_ns - NOW) if action == WAIT else (action,)


RULES = ["adaptive", "timeout", "greedy", "preferred"]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_waits_where_nothing_can_leave(rule: str) -> None:
    """Nothing queued: wait for a request. No instance idle: keep collecting, however full or old."""
    assert said(rule, queued=0) == (NOBODY,)
    assert said(rule, queued=0, idle_instances=0, busy_instances=2) == (NOBODY,)
    for queued in (1, 8, 100):
        assert said(rule, queued=queued, idle_instances=0, busy_instances=2, oldest_ns=0) == (BUSY,)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("company", [0, 5])
def test_every_rule_lets_a_full_batch_leave_at_once(rule: str, company: int) -> None:
    """By count, and by weight."""
    assert said(rule, queued=8, company=company) == ("full", 8)
    assert said(rule, queued=2, queued_weight=8.5, company=company) == ("full", 2)


# (what is different from CALM) -> what the rule says.
ADAPTIVE = [
    # Nobody else can come: leave, however young.
    ({"queued": 1}, ("alone", 1)),
    ({"queued": 3}, ("alone", 3)),
    # Company is likely: wait for four usual gaps, from the latest arrival.
    ({"queued": 1, "company": 1}, (WAIT, 4 * MS // 10)),
    ({"queued": 3, "company": 2, "latest_event_ns": NOW - MS // 10}, (WAIT, 3 * MS // 10)),
    # ... at most a quarter of what the batch costs,
    ({"queued": 1, "company": 1, "usual_gap_ns": MS}, (WAIT, MS)),
    # ... and until the timeout of the oldest.
    ({"queued": 1, "company": 1, "oldest_ns": NOW - 99 * MS // 10}, (WAIT, MS // 10)),
    # Where one batch is cheaper than two: for a little more than the longest of the latest gaps,
    ({"queued": 1, "company": 1, "longest_gap_ns": MS * 64 // 100, "saving_ns": 3 * MS}, (WAIT, MS * 80 // 100)),
    # ... at most half of what is saved, and a quarter of what the batch costs.
    ({"queued": 1, "company": 1, "longest_gap_ns": 5 * MS, "saving_ns": MS}, (WAIT, MS // 2)),
    ({"queued": 1, "company": 1, "longest_gap_ns": 5 * MS, "saving_ns": 3 * MS}, (WAIT, MS)),
    # Where it is not: for four usual gaps, as if there had been no longer one.
    ({"queued": 1, "company": 1, "longest_gap_ns": 5 * MS, "saving_ns": 0}, (WAIT, 4 * MS // 10)),
    # What a request waited for an instance, it did not wait for company.
    ({"queued": 1, "company": 1, "oldest_ns": NOW - 50 * MS, "idle_since_ns": NOW}, (WAIT, 4 * MS // 10)),
    # It was expected and did not come.
    ({"queued": 1, "company": 1, "latest_event_ns": NOW - MS}, ("company late", 1)),
    ({"queued": 1, "company": 1, "oldest_ns": NOW - 10 * MS}, ("timeout", 1)),
    ({"queued": 1, "company": 1, "timeout_ns": 0}, ("timeout", 1)),
    # Shorter than a sleep and a wake-up cost, or not measured: not worth it.
    ({"queued": 1, "company": 1, "usual_gap_ns": 4_000}, ("not worth waiting", 1)),
    ({"queued": 1, "company": 1, "cost_alone_ns": 79_000}, ("not worth waiting", 1)),
    ({"queued": 1, "company": 1, "cost_alone_ns": 0}, ("not worth waiting", 1)),
    # Two instances idle: share where a share is faster, or where nobody has measured it yet.
    ({"queued": 4, "idle_instances": 2, "cost_shared_ns": MS}, ("split", 2)),
    ({"queued": 5, "idle_instances": 2, "cost_shared_ns": MS}, ("split", 3)),
    ({"queued": 4, "idle_instances": 2, "cost_shared_ns": 0}, ("split", 2)),
    ({"queued": 4, "idle_instances": 2, "cost_shared_ns": 4 * MS}, ("alone", 4)),
    ({"queued": 1, "idle_instances": 2, "cost_shared_ns": MS}, ("alone", 1)),
    # With company under way, the first share of everybody need not wait for the rest.
    ({"queued": 3, "company": 3, "idle_instances": 2, "cost_shared_ns": MS}, ("split", 3)),
    ({"queued": 2, "company": 3, "idle_instances": 2, "cost_shared_ns": MS}, (WAIT, 4 * MS // 10)),
]

TIMEOUT = [
    # torchpipe's: a lone request leaves while nothing runs; anything else waits for a full batch or the timeout.
    ({"queued": 1, "busy_instances": 0}, ("alone", 1)),
    ({"queued": 1, "busy_instances": 1}, (WAIT, 10 * MS)),
    ({"queued": 1, "busy_instances": 0, "company": 1}, (WAIT, 10 * MS)),
    ({"queued": 3, "busy_instances": 0}, (WAIT, 10 * MS)),
    ({"queued": 3, "oldest_ns": NOW - 4 * MS}, (WAIT, 6 * MS)),
    ({"queued": 3, "oldest_ns": NOW - 10 * MS}, ("timeout", 3)),
    ({"queued": 3, "timeout_ns": 0}, ("timeout", 3)),
]

GREEDY = [
    ({"queued": 1}, ("rule", 1)),
    ({"queued": 7, "company": 50}, ("rule", 7)),
]

PREFERRED = [
    ({"queued": 3}, (WAIT, 10 * MS)),
    ({"queued": 4}, ("preferred size", 4)),
    ({"queued": 5}, ("preferred size", 4)),
    ({"queued": 6}, ("preferred size", 6)),
    ({"queued": 7}, ("preferred size", 6)),
    ({"queued": 3, "oldest_ns": NOW - 10 * MS}, ("timeout", 3)),
    ({"queued": 3, "preferred": []}, (WAIT, 10 * MS)),
]


@pytest.mark.parametrize(("load", "verdict"), ADAPTIVE)
def test_adaptive(load: dict[str, Any], verdict: Verdict) -> None:
    """The default: wait only for company that is likely, near, and worth it."""
    assert said("adaptive", **load) == verdict


@pytest.mark.parametrize(("load", "verdict"), TIMEOUT)
def test_timeout(load: dict[str, Any], verdict: Verdict) -> None:
    """torchpipe's rule."""
    assert said("timeout", **load) == verdict


@pytest.mark.parametrize(("load", "verdict"), GREEDY)
def test_greedy(load: dict[str, Any], verdict: Verdict) -> None:
    """Whatever is there."""
    assert said("greedy", **load) == verdict


@pytest.mark.parametrize(("load", "verdict"), PREFERRED)
def test_preferred(load: dict[str, Any], verdict: Verdict) -> None:
    """The largest preferred size that is reached."""
    assert said("preferred", **{"preferred": [6, 4], **load}) == verdict


def test_decide_knows_its_fields() -> None:
    """A field that a Load does not have is a mistake in the test."""
    with pytest.raises(TypeError, match="queud"):
        decide("adaptive", queud=1)


@given(
    rule=st.sampled_from(RULES),
    queued=st.integers(1, 40),
    company=st.integers(-2, 40),
    idle=st.integers(1, 8),
    age_ns=st.integers(0, 30 * MS),
    idle_for_ns=st.integers(0, 30 * MS),
    quiet_ns=st.integers(0, 30 * MS),
    gap_ns=st.integers(0, 5 * MS),
    longest_ns=st.integers(0, 50 * MS),
    saving_ns=st.integers(0, 50 * MS),
    cost_ns=st.integers(0, 50 * MS),
    shared_ns=st.integers(0, 50 * MS),
    timeout_ns=st.integers(0, 20 * MS),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_no_rule_waits_beyond_the_timeout_or_dispatches_nothing(
    rule: str,
    queued: int,
    company: int,
    idle: int,
    age_ns: int,
    idle_for_ns: int,
    quiet_ns: int,
    gap_ns: int,
    longest_ns: int,
    saving_ns: int,
    cost_ns: int,
    shared_ns: int,
    timeout_ns: int,
) -> None:
    """With something queued and an instance idle: 1..queued requests leave, or it waits, within the timeout."""
    action, _, until_ns, size = decide(
        rule,
        preferred=[4],
        now_ns=NOW,
        oldest_ns=NOW - age_ns,
        idle_since_ns=NOW - idle_for_ns,
        latest_event_ns=NOW - quiet_ns,
        usual_gap_ns=gap_ns,
        longest_gap_ns=longest_ns,
        saving_ns=saving_ns,
        timeout_ns=timeout_ns,
        cost_alone_ns=cost_ns,
        cost_shared_ns=shared_ns,
        queued=queued,
        max_weight=8,
        idle_instances=idle,
        busy_instances=8 - idle,
        company=company,
    )
    if action == "dispatch":
        assert 1 <= size <= queued
    else:
        assert action == WAIT
        assert queued < 8
        assert NOW < until_ns <= NOW + timeout_ns


# ---- in a pipe -----------------------------------------------------------------------------------------------------


class Recorder(Backend):
    """Remembers its batches; waits inside the first one until it is opened."""

    def __init__(self, max_batch: int | None = 8) -> None:
        self.max_batch = max_batch
        self.inside = threading.Event()
        self.opened = threading.Event()
        self.batches: list[list[Any]] = []

    def forward(self, batch: list[Request]) -> None:
        self.batches.append([request["data"] for request in batch])
        self.inside.set()
        assert self.opened.wait(WAIT_S)
        for request in batch:
            request["result"] = request["data"]


class Weighing(Recorder):
    def weigh(self, request: Request) -> float:
        weight: float = request["weight"]
        return weight


class Bucketing(Recorder):
    def bucket(self, request: Request) -> Any:
        return request["bucket"]


Futures = list[concurrent.futures.Future[Request]]


def batches_of(recorder: Recorder, requests: list[Request], **keys: Any) -> list[list[Any]]:
    """Queue ``requests`` while the only instance is busy, and return the batches they left in."""
    first = {"data": "first", "weight": 1, "bucket": None, "width": None}
    with Pipe(backend=recorder, **keys) as pipe:
        futures = [pipe.submit(first)]
        assert recorder.inside.wait(WAIT_S)
        futures += [pipe.submit(request) for request in requests]
        recorder.opened.set()
        assert not concurrent.futures.wait(futures, WAIT_S).not_done
        assert all(future.exception() is None for future in futures)
    assert recorder.batches[0] == ["first"]
    return recorder.batches[1:]


@pytest.fixture
def caller() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        yield executor


@pytest.mark.parametrize("rule", ["adaptive", "greedy", "timeout"])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 24, 30])
def test_what_collected_leaves_in_batches_of_max(rule: str, count: int) -> None:
    """While the instance was busy, requests gathered: they leave in order, in full batches and a rest."""
    batches = batches_of(Recorder(8), [{"data": index} for index in range(count)], batching=rule, batching_timeout=20)
    assert [item for batch in batches for item in batch] == list(range(count))
    assert [len(batch) for batch in batches] == [8] * (count // 8) + [count % 8] * (count % 8 > 0)


def test_the_nodes_max_holds_below_the_backends() -> None:
    """``max`` narrows what the backend takes."""
    batches = batches_of(Recorder(8), [{"data": index} for index in range(9)], max=3)
    assert [len(batch) for batch in batches] == [3, 3, 3]


def test_a_lone_request_never_waits_for_company() -> None:
    """Nobody else can come: with a timeout of a minute, a single caller is answered at once, every time."""
    recorder = Recorder(8)
    recorder.opened.set()
    with Pipe(backend=recorder, batching_timeout=LONG_MS) as pipe:
        started_s = time.monotonic()
        for index in range(50):
            pipe({"data": index})
            pipe.submit({"data": index}).result(WAIT_S)
        pipe([{"data": 1}, {"data": 2}])
        assert time.monotonic() - started_s < LONG_MS / 1000 / 2


def test_what_runs_in_the_node_is_no_company() -> None:
    """A second instance does not wait for the request that the first one is running."""
    gate = threading.Event()
    inside = threading.Event()

    class Blocks(Backend):
        max_batch = 4

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                if request["data"] == "slow":
                    inside.set()
                    assert gate.wait(WAIT_S)
                request["result"] = request["data"]

    with Pipe(backend=Blocks, instance_num=2, batching_timeout=LONG_MS) as pipe:
        slow = pipe.submit({"data": "slow"})
        assert inside.wait(WAIT_S)
        for _ in range(3):
            assert pipe({"data": "quick"})["result"] == "quick"
        assert pipe.submit({"data": "quick"}).result(WAIT_S)["result"] == "quick"
        gate.set()
        slow.result(WAIT_S)


class Milliseconds(Backend):
    """Takes a fixed time per batch."""

    max_batch = 8

    def __init__(self, *, time_ms: float) -> None:
        self.time_ms = time_ms

    def forward(self, batch: list[Request]) -> None:
        time.sleep(self.time_ms / 1000)
        for request in batch:
            request["result"] = request["data"]


def burst(pipe: Pipe, clients: int, calls: int) -> None:
    def client(_: int) -> None:
        for index in range(calls):
            pipe({"data": index})

    with concurrent.futures.ThreadPoolExecutor(clients) as callers:
        list(callers.map(client, range(clients)))


@pytest.mark.parametrize("rule", ["adaptive", "timeout"])
def test_callers_that_are_gone_are_not_waited_for(rule: str) -> None:
    """After a burst of 16 clients, a lone client with a pause between its requests soon runs them all by itself."""
    with Pipe(backend=Milliseconds, time_ms=10, batching=rule, batching_timeout=2) as pipe:
        burst(pipe, 16, 2)
        for _ in range(5):  # the first may still be held up by what the burst has taught; or the machine is busy
            pipe({"data": 1})
            before = pipe.stats()["nodes"]["main"]
            for _ in range(5):
                time.sleep(0.002)  # a client that thinks: no order depends on it
                pipe({"data": 1})
            after = pipe.stats()["nodes"]["main"]
            if after["run_by_caller"] - before["run_by_caller"] == 5:
                break
    assert after["run_by_caller"] - before["run_by_caller"] == 5
    assert after["why_batches_left"].get("timeout", 0) == before["why_batches_left"].get("timeout", 0)


def test_many_clients_meet_in_full_batches() -> None:
    """Closed-loop clients of one instance: batches fill up although nothing is tuned; at best of five."""
    means = []
    for _ in range(5):
        with Pipe(backend=Milliseconds, time_ms=3) as pipe:
            burst(pipe, 16, 15)
            means.append(pipe.stats()["nodes"]["main"]["mean_batch"])
        if means[-1] > 5:
            break
    assert max(means) > 5


class TellTale(Backend):
    """A batch takes 8 ms; as the rule, it keeps what it is told, and dispatches all."""

    max_batch = 4

    def __init__(self) -> None:
        self.loads: list[dict[str, Any]] = []

    def forward(self, batch: list[Request]) -> None:
        time.sleep(0.008)  # the cost of a batch is measured by the kernel's clock, the gaps are not
        for request in batch:
            request["result"] = request["data"]

    def decide(self, load: dict[str, Any]) -> int:
        self.loads.append(load)
        return int(load["queued"])


def test_what_the_gaps_between_requests_have_been_and_what_company_saves() -> None:
    """The longest gap is forgotten bit by bit; a pause beyond half of a batch is no gap within a burst."""
    backend = TellTale()
    with time_stands_still(), Pipe(backend=backend, batching=backend) as pipe:
        for gap_ns in (0, 2 * MS, 0, 10_000 * MS, 0):
            _core._advance_time(gap_ns)
            pipe({"data": 0})
        longest = [load["longest_gap_ms"] for load in backend.loads]
        assert longest[1:] == pytest.approx([2, 2 * 63 / 64, 2 * 63 / 64, 2 * 63**2 / 64**2], rel=1e-6)
        assert [load["saving_ms"] for load in backend.loads] == [0.0] * 5  # nobody else is expected
        pipe([{"data": 0}, {"data": 1}, {"data": 2}])
        pipe({"data": 0})  # two callers of the list are expected back
    of_one_ms = backend.loads[-2]["cost_alone_ms"]  # of the nearest size that was measured
    load = backend.loads[-1]
    assert (load["queued"], load["company"]) == (1, 2)
    assert load["saving_ms"] == pytest.approx(max(0, of_one_ms + of_one_ms - load["cost_alone_ms"]))


def test_an_upstream_node_is_company() -> None:
    """A request that is on its way here is waited for, a little; it is never lost."""
    with Pipe(
        first={"backend": Milliseconds, "time_ms": 1, "max": 1, "instance_num": 4, "next": "second"},
        second={"backend": Milliseconds, "time_ms": 4},
    ) as pipe:
        burst(pipe, 8, 10)
        stats = pipe.stats()
    assert stats["requests"]["done"] == 80
    assert stats["nodes"]["second"]["requests"] == 80


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_weight_of_a_batch_never_exceeds_max(seed: int) -> None:
    """Random weights, by ``weigh`` and by ``request_size``: first come, first served, and as full as that allows."""
    source = random.Random(seed)
    weights = [source.choice([0.5, 1, 2, 3, 7, 8]) for _ in range(60)]
    expected: list[list[int]] = []
    filled = 99.0
    for index, weight in enumerate(weights):
        if filled + weight > 8:
            expected.append([])
            filled = 0
        expected[-1].append(index)
        filled += weight
    by_method = [{"data": index, "weight": weight} for index, weight in enumerate(weights)]
    assert batches_of(Weighing(8), by_method, batching="greedy") == expected
    by_key = [{"data": index, "request_size": weight} for index, weight in enumerate(weights)]
    assert batches_of(Recorder(8), by_key, batching="greedy", obey_request_keys="request_size") == expected


@pytest.mark.parametrize("weight", [9, 0, -1, float("nan"), float("inf"), "heavy", None])
@pytest.mark.parametrize("busy", [False, True])
def test_a_request_that_cannot_weigh_so_much_is_refused(weight: Any, busy: bool) -> None:
    """More than max, nothing, or no number: that request fails, with the limits, be the instance busy or not."""
    backend = Weighing(8)
    with Pipe(backend=backend) as pipe:
        futures = []
        if busy:
            futures.append(pipe.submit({"data": 0, "weight": 1}))
            assert backend.inside.wait(WAIT_S)
        backend_error = TypeError if weight is None or isinstance(weight, str) else ValueError
        future = pipe.submit({"data": 1, "weight": weight})
        if not busy:
            with pytest.raises(backend_error):
                pipe({"data": 1, "weight": weight})
        backend.opened.set()
        error = future.exception(WAIT_S)
        assert isinstance(error, backend_error)
        assert "node 'main'" in f"{error} {error.__notes__}"
        if backend_error is ValueError:
            assert "up to 8" in str(error)
        assert pipe({"data": 2, "weight": 8})["result"] == 2


def test_request_size_is_refused_above_max_on_the_callers_thread_too() -> None:
    """The check does not depend on who runs the request."""
    recorder = Recorder(4)
    recorder.opened.set()
    with Pipe(backend=recorder, obey_request_keys=["request_size"]) as pipe:
        with pytest.raises(ValueError, match="weighs 5"):
            pipe({"data": 1, "request_size": 5})
        assert pipe({"data": 1, "request_size": 4})["result"] == 1


@pytest.mark.parametrize("rule", ["adaptive", "timeout"])
def test_a_batch_that_is_full_by_weight_leaves_at_once(rule: str) -> None:
    """A weight of 3 that joins one of 1 fills a batch of 4: nobody waits for the timeout."""
    recorder = Recorder(4)
    recorder.opened.set()
    keys = {"batching": rule, "batching_timeout": LONG_MS, "obey_request_keys": "request_size"}
    with Pipe(backend=recorder, instance_num=1, **keys) as pipe:
        pipe([{"data": index} for index in range(16)])  # a burst, after which company is expected
        futures = [pipe.submit({"data": "a"}), pipe.submit({"data": "b", "request_size": 3})]
        assert not concurrent.futures.wait(futures, WAIT_S).not_done


# ---- buckets ---------------------------------------------------------------------------------------------------------


def test_only_equal_buckets_share_a_batch() -> None:
    """Arrivals of three buckets, mixed: each batch has one bucket, in order of arrival, and no request is lost."""
    requests = [{"data": (index % 3, index), "bucket": index % 3} for index in range(30)]
    batches = batches_of(Bucketing(8), requests, batching="greedy")
    assert all(len({bucket for bucket, _ in batch}) == 1 for batch in batches)
    for bucket in range(3):
        order = [index for batch in batches for each, index in batch if each == bucket]
        assert order == list(range(bucket, 30, 3))
    assert all(len(batch) in (8, 2) for batch in batches)


@pytest.mark.parametrize("bucket", ["width", lambda request: request["width"]], ids=["key", "function"])
def test_a_bucket_may_be_a_key_or_a_function(bucket: Any) -> None:
    """Given with the node; the backend need not know."""
    requests = [{"data": index, "width": index % 2} for index in range(8)]
    batches = batches_of(Recorder(8), requests, bucket="width" if bucket == "width" else by_width, batching="greedy")
    assert sorted(batches) == [[0, 2, 4, 6], [1, 3, 5, 7]]


@pytest.mark.parametrize("max_queue", [None, 100])
def test_a_request_without_the_key_of_the_bucket_fails_alone(max_queue: int | None) -> None:
    """On every way: it is said where, which key, what it has and what was meant; nothing is mixed with it."""
    recorder = Recorder(8)
    recorder.opened.set()
    with Pipe(backend=recorder, bucket="width", max_queue=max_queue) as pipe:
        request = {"data": 1, "wide": 2}
        for call in (
            lambda: pipe(dict(request)),
            lambda: pipe(dict(request), eager=True),
            lambda: pipe.submit(dict(request)).result(WAIT_S),
            lambda: list(pipe.map([dict(request)])),
        ):
            with pytest.raises(KeyError, match="node 'main': bucket: the request has no key 'width'") as raised:
                call()
            assert "its keys are ['data', 'wide']; did you mean 'wide'?" in str(raised.value)
            assert raised.value.__notes__ == ["fastpipe: node 'main', backend Recorder"]
        requests: list[Request] = [{"data": 1, "width": 1}, dict(request), {"data": 3, "width": 1}]
        with pytest.raises(ExceptionGroup, match="1 of 3 requests failed"):
            pipe(requests)
        assert [each.get("result") for each in requests] == [1, None, 3]
        assert pipe({"data": 5, "width": None})["result"] == 5  # there, and None
        assert pipe.stats()["requests"]["in_flight"] == 0


def test_where_nothing_is_batched_the_key_of_a_bucket_is_not_missed() -> None:
    """max is 1: nobody's company is at stake."""
    with Pipe(backend="Identity", bucket="width") as pipe:
        assert pipe({"data": 1})["result"] == 1


def by_width(request: Request) -> Any:
    return request.get("width")


def test_the_oldest_bucket_goes_first_unless_another_is_full() -> None:
    """No bucket is starved."""
    requests = [{"data": index, "bucket": bucket} for index, bucket in enumerate("abbbbbac")]
    batches = batches_of(Bucketing(4), requests, batching="greedy", batching_timeout=LONG_MS)
    assert batches == [[1, 2, 3, 4], [0, 6], [5], [7]]


def test_buckets_and_weights_together() -> None:
    """A batch has one bucket, and no more than max of its weight."""
    source = random.Random(3)
    requests = [
        {"data": index, "bucket": source.randrange(3), "request_size": source.choice([1, 2, 3])} for index in range(60)
    ]
    batches = batches_of(Bucketing(4), requests, batching="greedy", obey_request_keys="request_size")
    assert sorted(item for batch in batches for item in batch) == list(range(60))
    for batch in batches:
        assert len({requests[index]["bucket"] for index in batch}) == 1
        assert sum(requests[index]["request_size"] for index in batch) <= 4


@dataclasses.dataclass(frozen=True)
class Shape:
    """A bucket whose ``==`` and ``hash`` are Python code."""

    height: int
    width: int


def test_buckets_may_be_objects_with_python_equality(caller: concurrent.futures.ThreadPoolExecutor) -> None:
    """Many threads, few equal buckets: nobody is lost, and nothing is left behind in the table of buckets."""

    class Shapes(Backend):
        max_batch = 4

        def bucket(self, request: Request) -> Shape:
            return Shape(request["data"] % 3, 7)

        def forward(self, batch: list[Request]) -> None:
            assert len({request["data"] % 3 for request in batch}) == 1
            for request in batch:
                request["result"] = request["data"]

    with Pipe(backend=Shapes, instance_num=2) as pipe:

        def client(number: int) -> None:
            requests = [{"data": number + index} for index in range(40)]
            pipe(requests)
            assert all(request["result"] == request["data"] for request in requests)

        list(caller.map(client, range(40)))


@pytest.mark.parametrize("bad", ["unhashable", "raises"])
def test_a_request_without_a_usable_bucket_fails_alone(bad: str) -> None:
    """What bucket() raises, or a bucket that cannot be hashed, is that request's error."""

    class Picky(Recorder):
        def bucket(self, request: Request) -> Any:
            if request["data"] == "raises":
                raise LookupError("no bucket")
            return [] if request["data"] == "unhashable" else 0

    recorder = Picky(4)
    with Pipe(backend=recorder) as pipe:
        first = pipe.submit({"data": 1})
        assert recorder.inside.wait(WAIT_S)
        future = pipe.submit({"data": bad})
        other = pipe.submit({"data": 2})
        recorder.opened.set()
        assert isinstance(future.exception(WAIT_S), (TypeError, LookupError))
        assert first.result(WAIT_S)["result"] == 1
        assert other.result(WAIT_S)["result"] == 2


# ---- other rules -----------------------------------------------------------------------------------------------------


class PairsOnly:
    """A user's rule: batches of two; remembers what it was told."""

    def __init__(self) -> None:
        self.loads: list[dict[str, Any]] = []

    def decide(self, load: dict[str, Any]) -> int:
        self.loads.append(load)
        return 2 if load["queued"] >= 2 else 0


def test_a_users_rule_is_asked_at_every_arrival() -> None:
    """An object with decide(load) -> int: 0 waits, a number dispatches so many."""
    rule = PairsOnly()
    recorder = Recorder(8)
    recorder.opened.set()
    with Pipe(backend=recorder, batching=rule, batching_timeout=LONG_MS) as pipe:
        for _ in range(3):
            futures = [pipe.submit({"data": index}) for index in range(4)]
            assert not concurrent.futures.wait(futures, WAIT_S).not_done
        assert pipe.stats()["nodes"]["main"]["why_batches_left"] == {"rule": 6}
    assert [len(batch) for batch in recorder.batches] == [2] * 6
    load = rule.loads[0]
    assert load["max"] == 8
    assert load["batching_timeout_ms"] == LONG_MS
    assert load["idle_instances"] == 1
    assert {"queued", "queued_weight", "oldest_ms", "company", "busy_instances"} <= set(load)


def test_a_users_rule_waits_no_longer_than_the_timeout() -> None:
    """A rule that always says 0 is overruled by batching_timeout."""

    class Never:
        def decide(self, load: dict[str, Any]) -> int:
            return 0

    recorder = Recorder(8)
    recorder.opened.set()
    with Pipe(backend=recorder, batching=Never(), batching_timeout=5) as pipe:
        assert pipe({"data": 1})["result"] == 1


@pytest.mark.parametrize("answer", [99, -5, None, "many", 2.5])
def test_a_users_rule_may_be_wrong_without_harm(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than there is, less than nothing, or no number: the requests are answered all the same."""
    reported: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", reported.append)

    class Wrong:
        def decide(self, load: dict[str, Any]) -> Any:
            return answer

    recorder = Recorder(4)
    recorder.opened.set()
    with Pipe(backend=recorder, batching=Wrong(), batching_timeout=5) as pipe:
        requests = [{"data": index} for index in range(10)]
        pipe(requests)
        assert all(request["result"] == request["data"] for request in requests)
    assert all(len(batch) <= 4 for batch in recorder.batches)
    assert bool(reported) == (not isinstance(answer, int))


def test_a_users_rule_that_raises_is_reported_and_the_batch_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue does not stop because of a bug in a rule."""
    reported: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda unraisable: reported.append(unraisable.exc_type))

    class Broken:
        def decide(self, load: dict[str, Any]) -> int:
            raise ZeroDivisionError

    recorder = Recorder(4)
    recorder.opened.set()
    with Pipe(backend=recorder, batching=Broken(), batching_timeout=LONG_MS) as pipe:
        assert pipe({"data": 1})["result"] == 1
    assert reported == [ZeroDivisionError]


def test_preferred_sizes_leave_at_once_and_others_wait() -> None:
    """With sizes 2 and 4 of max 8: what has gathered leaves as four and two."""
    recorder = Recorder(8)
    keys: dict[str, Any] = {"batching": "preferred", "preferred_batch_sizes": [2, 4], "batching_timeout": LONG_MS}
    with Pipe(backend=recorder, **keys) as pipe:
        futures = [pipe.submit({"data": "a"}), pipe.submit({"data": "b"})]
        assert recorder.inside.wait(WAIT_S)
        futures += [pipe.submit({"data": index}) for index in range(6)]
        recorder.opened.set()
        assert not concurrent.futures.wait(futures, WAIT_S).not_done
        assert pipe.stats()["nodes"]["main"]["why_batches_left"] == {"preferred size": 3}
    assert recorder.batches == [["a", "b"], [0, 1, 2, 3], [4, 5]]


def test_a_preferred_size_is_noticed_as_soon_as_it_is_reached() -> None:
    """Also right after a burst, when more company is expected."""
    recorder = Recorder(8)
    recorder.opened.set()
    keys: dict[str, Any] = {"batching": "preferred", "preferred_batch_sizes": [2], "batching_timeout": LONG_MS}
    with Pipe(backend=recorder, **keys) as pipe:
        pipe([{"data": index} for index in range(16)])
        futures = [pipe.submit({"data": "a"}), pipe.submit({"data": "b"})]
        assert not concurrent.futures.wait(futures, WAIT_S).not_done


def test_the_timeout_rule_is_torchpipes() -> None:
    """A lone request leaves at once while nothing runs; two of four wait for the timeout, and leave together."""
    recorder = Recorder(4)
    recorder.opened.set()
    with Pipe(backend=recorder, batching="timeout", batching_timeout=200) as pipe:
        pipe({"data": "alone"})
        pipe([{"data": 1}, {"data": 2}])
        assert pipe.stats()["nodes"]["main"]["why_batches_left"] == {"alone": 1, "timeout": 1}
    assert recorder.batches == [["alone"], [1, 2]]


@pytest.mark.parametrize(
    "keys",
    [
        {"batching": "timeout"},
        {"batching": "preferred", "preferred_batch_sizes": [4]},
        {"batching": PairsOnly()},
        {"batching": "adaptive"},
    ],
    ids=lambda keys: str(keys["batching"])[:9],
)
def test_closing_does_not_wait_for_company(keys: dict[str, Any]) -> None:
    """Once the pipe takes no more requests, nobody else can come: what is queued leaves at once."""
    recorder = Recorder(8)
    recorder.opened.set()
    pipe = Pipe(backend=recorder, batching_timeout=WAIT_S * 1000, **keys)
    futures = [pipe.submit({"data": index}) for index in range(3)]
    started_s = time.monotonic()
    pipe.close()
    assert time.monotonic() - started_s < WAIT_S / 2
    assert [future.result()["result"] for future in futures] == [0, 1, 2]


# ---- under fire ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["adaptive", "timeout", "greedy"])
@pytest.mark.parametrize("instances", [1, 3])
def test_max_holds_under_races(rule: str, instances: int, caller: concurrent.futures.ThreadPoolExecutor) -> None:
    """8 threads in all ways of calling, weights and buckets: no batch is heavier than max or mixed, none is empty."""
    wrong: list[Any] = []

    class Checks(Backend):
        max_batch = 6

        def bucket(self, request: Request) -> Any:
            return request["data"][0] % 2

        def forward(self, batch: list[Request]) -> None:
            weight = sum(request.get("request_size", 1) for request in batch)
            if not 0 < weight <= 6 or len({request["data"][0] % 2 for request in batch}) != 1:
                wrong.append(batch)
            for request in batch:
                request["result"] = request["data"]

    keys = {"batching_timeout": 1, "obey_request_keys": "request_size"}
    with Pipe(backend=Checks, instance_num=instances, batching=rule, **keys) as pipe:

        def client(number: int) -> None:
            source = random.Random(number)
            for index in range(40):
                requests = [
                    {"data": (number, index, each), "request_size": source.choice([1, 1, 2, 5])} for each in range(4)
                ]
                if index % 3 == 0:
                    pipe(requests)
                elif index % 3 == 1:
                    concurrent.futures.wait([pipe.submit(request) for request in requests], WAIT_S)
                else:
                    for request in requests:
                        pipe(request)
                assert all(request["result"] == request["data"] for request in requests)

        list(caller.map(client, range(8)))
        assert pipe.stats()["requests"]["done"] == 8 * 40 * 4
    assert not wrong


@pytest.mark.parametrize(("timeout_ms", "first"), [(0, "old"), (LONG_MS, 1)])
def test_a_full_bucket_overtakes_the_oldest_request_until_that_is_overdue(timeout_ms: float, first: Any) -> None:
    """Else a stream of full batches would starve a lone request of another bucket."""
    requests = [{"data": "old", "bucket": "a"}] + [{"data": index, "bucket": "b"} for index in range(1, 5)]
    batches = batches_of(Bucketing(4), requests, batching_timeout=timeout_ms)
    assert batches[0][0] == first
    assert sorted(map(len, batches)) == [1, 4]
