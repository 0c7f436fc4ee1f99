"""Batches that are padded to their longest request: what they are made of, and that nobody waits for ever."""

from __future__ import annotations

import concurrent.futures
import random
import threading
from typing import Any

import pytest
from helpers import SCALE, WAIT_S, Gate, opened, until
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastpipe import Backend, Pipe, Request, Sequential
from fastpipe._core import similar
from fastpipe.padding import PaddingCount

ANY = 1 << 62


def best_stretch(lengths: list[int], most: int, padded: int, padding: float) -> tuple[int, int]:
    """Return how many requests the best batch with the oldest has, and its padding: of all stretches, one by one."""
    ordered = sorted(range(len(lengths)), key=lambda position: (lengths[position], position))
    oldest = ordered.index(0)
    found = [(1, 0)]
    for first in range(oldest + 1):
        for last in range(oldest, len(ordered)):
            own = sum(lengths[position] for position in ordered[first : last + 1])
            count, total = last - first + 1, (last - first + 1) * lengths[ordered[last]]
            if count <= most and total <= padded and total - own <= padding * total:
                found.append((count, total - own))
    count = max(count for count, _ in found)
    return count, min(padding for many, padding in found if many == count)


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40),
    st.integers(1, 12),
    st.integers(1, 600),
    st.sampled_from([0.0, 0.1, 0.15, 0.3, 1.0]),
)
@example([10, 100, 100, 100], 8, ANY, 0.3)  # one shorter one is allowed for only beside several longer ones
@example([500, 1], 8, 100, 1.0)  # longer than a batch may be: it goes alone
@settings(deadline=None, max_examples=int(400 * min(SCALE, 1)))
def test_a_batch_has_the_oldest_and_as_many_as_the_bounds_allow(
    lengths: list[int], most: int, padded: int, padding: float
) -> None:
    """Of all stretches of the sorted lengths it is the one with the most requests, then with the least padding."""
    positions, is_full = similar(lengths, most, padded, padding)
    chosen = [lengths[position] for position in positions]
    assert 0 in positions
    longest = max(chosen)
    assert (len(chosen), len(chosen) * longest - sum(chosen)) == best_stretch(lengths, most, padded, padding)
    assert is_full == (len(chosen) >= most or (len(chosen) + 1) * longest > padded)


def test_as_many_as_are_looked_at_are_chosen_from() -> None:
    """The last of 256 is chosen as the first is."""
    positions, is_full = similar([7] * 256, 256, ANY, 0.0)
    assert (positions, is_full) == (list(range(256)), True)
    assert similar([7] * 255 + [8], 256, ANY, 0.0) == (list(range(255)), False)


class Padded(Gate):
    """A gate whose requests have lengths, their data; it remembers its batches."""

    max_padded = 100
    max_padding = 0.25

    def length_of(self, request: Request) -> int:  # type: ignore[override]
        return int(request["data"])


def batches_of(backend: Padded, lengths: list[Any], **config: Any) -> list[list[int]]:
    """Have an instance be busy with the first until the others are queued; return the batches behind that."""
    with Pipe(node={"backend": backend, "batching": "greedy", **config}) as pipe:
        first = pipe.submit({"data": lengths[0]})
        assert backend.inside.wait(WAIT_S)
        rest = []
        for queued, length in enumerate(lengths[1:], 1):
            rest.append(pipe.submit({"data": length}))
            until(lambda queued=queued: pipe.stats()["nodes"]["node"]["queued"] == queued)  # type: ignore[misc]
        backend.opened.set()
        for future, length in zip([first, *rest], lengths, strict=True):
            assert future.result(WAIT_S)["result"] == length
        assert pipe.stats()["requests"]["in_flight"] == 0
    return backend.batches[1:]


def test_the_oldest_takes_along_those_of_similar_length() -> None:
    """In batches of at most 100, a quarter of it padding; who came first goes first, whatever the others are."""
    assert batches_of(Padded(), [1, 30, 10, 28, 9, 31, 11, 90]) == [[30, 28, 31], [10, 9, 11], [90]]


def test_max_bounds_the_requests_and_the_queue_keeps_its_order() -> None:
    """Of equal lengths, the oldest go first."""
    assert batches_of(Padded(), [1, 5, 5, 5, 50, 5, 5], max=3) == [[5, 5, 5], [50], [5, 5]]


def test_requests_of_other_buckets_stay_apart() -> None:
    """A bucket is taken of one kind, whatever is of the right length elsewhere."""

    class Kinds(Padded):
        def bucket(self, request: Request) -> bool:  # type: ignore[override]
            return bool(request["data"] % 2)

    assert batches_of(Kinds(), [1, 20, 21, 22, 23, 24]) == [[20, 22, 24], [21, 23]]


def test_a_request_that_weighs_more_counts_as_more() -> None:
    """What ``weigh`` says holds beside the lengths."""

    class Weighed(Padded):
        def weigh(self, request: Request) -> float:  # type: ignore[override]
            return float(request.get("size", 1))

    backend = Weighed()
    with Pipe(node={"backend": backend, "max": 4, "batching": "greedy"}) as pipe:
        first = pipe.submit({"data": 1})
        assert backend.inside.wait(WAIT_S)
        rest = [pipe.submit({"data": 9, "size": size}) for size in (2, 1, 2)]
        until(lambda: pipe.stats()["nodes"]["node"]["queued"] == 3)
        backend.opened.set()
        for future in [first, *rest]:
            future.result(WAIT_S)
    assert backend.batches == [[1], [9, 9], [9]]


def test_nobody_is_passed_by_for_ever() -> None:
    """One of a rare length goes when it is the oldest, however many that fit each other come behind it."""
    backend = Padded()
    with Pipe(node={"backend": backend, "max": 2, "batching": "greedy"}) as pipe:
        futures = [pipe.submit({"data": 1})]
        assert backend.inside.wait(WAIT_S)
        futures += [pipe.submit({"data": 50}), pipe.submit({"data": 3})]
        until(lambda: pipe.stats()["nodes"]["node"]["queued"] == 2)
        futures += [pipe.submit({"data": 49 + number % 2}) for number in range(20)]
        until(lambda: pipe.stats()["nodes"]["node"]["queued"] == 22)
        backend.opened.set()
        for future in futures:
            future.result(WAIT_S)
    assert [3] in backend.batches[1:4]


def test_priorities_decide_who_is_the_oldest() -> None:
    """The most urgent is in the next batch, with what is like it."""
    backend = Padded()
    with Pipe(node={"backend": backend, "batching": "greedy"}) as pipe:
        futures = [pipe.submit({"data": 1})]
        assert backend.inside.wait(WAIT_S)
        futures += [pipe.submit({"data": length}) for length in (10, 11)]
        futures += [pipe.submit({"data": 50}, priority=-1000), pipe.submit({"data": 49})]
        until(lambda: pipe.stats()["nodes"]["node"]["queued"] == 4)
        backend.opened.set()
        for future in futures:
            future.result(WAIT_S)
    assert backend.batches == [[1], [50, 49], [10, 11]]


@pytest.mark.parametrize("length", [0, -1, 1.5, "ten", None, 1 << 31])
def test_what_is_no_length_fails_its_request_alone(length: Any) -> None:
    """The error says what a length is, and where."""

    class Lengths(Padded):
        def length_of(self, request: Request) -> Any:
            return request.get("length", 1)

    backend = Lengths()
    with Pipe(node={"backend": backend}) as pipe:
        busy = pipe.submit({"data": 1})
        assert backend.inside.wait(WAIT_S)
        odd, other = pipe.submit({"data": 2, "length": length}), pipe.submit({"data": 3})
        with pytest.raises(ValueError, match=r"length_of must return a whole number from 1 to .* node 'node' got"):
            odd.result(WAIT_S)
        backend.opened.set()
        assert (busy.result(WAIT_S)["result"], other.result(WAIT_S)["result"]) == (1, 3)


def test_a_step_of_a_sequential_says_the_lengths_if_it_is_the_first() -> None:
    """So do its bounds."""
    backend = Padded()
    node = {"backend": Sequential(backend, "Identity"), "batching": "greedy"}
    with Pipe(node=node) as pipe:
        futures = [pipe.submit({"data": 1})]
        assert backend.inside.wait(WAIT_S)
        futures += [pipe.submit({"data": length}) for length in (30, 8, 28, 9)]
        until(lambda: pipe.stats()["nodes"]["node"]["queued"] == 4)
        backend.opened.set()
        for future in futures:
            future.result(WAIT_S)
    assert backend.batches == [[1], [30, 28], [8, 9]]


def test_the_debugger_says_with_whom_a_request_would_go() -> None:
    """Those of similar length, not all that are queued."""
    backend = Padded()
    with Pipe(node={"backend": backend}) as pipe:
        futures = [pipe.submit({"data": 1})]
        assert backend.inside.wait(WAIT_S)
        futures += [pipe.submit({"data": length}) for length in (30, 2, 28, 1)]
        until(lambda: pipe.stats()["nodes"]["node"]["queued"] == 4)
        assert pipe._preview("node", {"data": 29})["queued_in_bucket"] == 2
        assert pipe._preview("node", {"data": 90})["queued_in_bucket"] == 0
        backend.opened.set()
        for future in futures:
            future.result(WAIT_S)


def test_swapping_brings_the_new_bounds_to_those_who_wait() -> None:
    """Who was let in under the old ones is asked for its length again."""
    backend = Padded()

    class Wider(Padded):
        max_padding = 1.0

    wider = Wider()
    wider.opened.set()
    with Pipe({"node": {"backend": backend, "batching": "greedy"}}) as pipe:
        futures = [pipe.submit({"data": 1})]
        assert backend.inside.wait(WAIT_S)
        futures += [pipe.submit({"data": length}) for length in (30, 10, 28)]
        until(lambda: pipe.stats()["nodes"]["node"]["queued"] == 3)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            swapping = pool.submit(pipe.swap, "node", {"backend": wider, "batching": "greedy"})
            until(lambda: sum(map(len, wider.batches)) == 3)
            backend.opened.set()
            swapping.result(WAIT_S)
        for future in futures:
            future.result(WAIT_S)
    assert (backend.batches, wider.batches) == ([[1]], [[30, 10, 28]])


def test_instances_that_are_idle_take_whole_batches_while_others_wait() -> None:
    """What fits together is not shared between them: each has requests of another length to run."""

    batches: list[list[Any]] = []
    inside, opens = threading.Semaphore(0), threading.Event()
    both = threading.Barrier(2)

    class Two(Padded):
        def forward(self, batch: list[Request]) -> None:
            inside.release()
            assert opens.wait(WAIT_S)
            both.wait(WAIT_S)  # else both may be idle at once, and share what is left
            batches.append(sorted(request["data"] for request in batch))
            for request in batch:
                request["result"] = request["data"]

    with Pipe(node={"backend": Two, "instance_num": 2}) as pipe:
        futures = [pipe.submit({"data": 1}), pipe.submit({"data": 100})]
        for _ in range(2):
            assert inside.acquire(timeout=WAIT_S)
        futures += [pipe.submit({"data": length}) for length in (30, 10, 31, 11, 30, 10)]
        until(lambda: pipe.stats()["nodes"]["node"]["queued"] == 6)
        opens.set()
        for future in futures:
            future.result(WAIT_S)
    assert sorted(batches) == [[1], [10, 10, 11], [30, 30, 31], [100]]


def test_many_callers_of_mixed_lengths_get_their_own_answers_within_the_bounds() -> None:
    """Every batch keeps the bounds, and nobody is lost or mixed up, on two instances."""
    made = [opened(), opened()]
    chance = random.Random(3)
    lengths = [chance.randint(1, 60) for _ in range(int(400 * min(SCALE, 1)))]

    class Bounded(Backend):
        max_batch = 8
        max_padded = 120
        max_padding = 0.2
        keeps_input = True

        def __init__(self) -> None:
            self.gate = made.pop()
            self.padding_counts = (PaddingCount(),)

        def length_of(self, request: Request) -> int:  # type: ignore[override]
            return int(request["data"])

        def forward(self, batch: list[Request]) -> None:
            self.gate.forward(batch)
            own = [request["data"] for request in batch]
            padded = len(own) * max(own)
            assert padded <= 120
            assert padded - sum(own) <= 0.2 * padded
            self.padding_counts[0].add(sum(own), padded)

    with Pipe(node={"backend": Bounded, "instance_num": 2}) as pipe:
        before = pipe.stats()
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda length: pipe({"data": length})["result"], lengths))
        counted = pipe.stats(since=before)["nodes"]["node"]
    assert answers == lengths
    assert (counted["requests"], counted["failed"]) == (len(lengths), 0)
    assert counted["padding"]["own"] == sum(lengths)
    share = counted["padding"]["padding"] / (counted["padding"]["own"] + counted["padding"]["padding"])
    assert counted["padding"]["share"] == pytest.approx(share)
    assert 0 <= share <= 0.2


def test_a_node_that_pads_nothing_says_nothing_of_it() -> None:
    """And one that has not run yet has no share."""

    class Counts(Backend):
        def __init__(self) -> None:
            self.padding_counts = (PaddingCount(),)

        def forward(self, batch: list[Request]) -> None:
            raise AssertionError("nobody asks")

    with Pipe({"a": {"backend": "Identity"}, "b": {"backend": Counts}}) as pipe:
        nodes = pipe.stats()["nodes"]
    assert "padding" not in nodes["a"]
    assert nodes["b"]["padding"] == {"own": 0, "padding": 0, "share": None}
