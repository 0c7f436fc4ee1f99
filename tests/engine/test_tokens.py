"""What the instances of a station are held by, and what their batches are known to cost, each alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpipe._core import LoneCosts, LoneTokens

COUNT = 3
MOVES = st.one_of(
    st.just(("take", -1)),
    st.tuples(st.just("take this"), st.integers(0, COUNT - 1)),
    st.tuples(st.just("release"), st.integers(0, COUNT - 1)),
)


@given(st.lists(MOVES, max_size=60))
@settings(deadline=None)
def test_a_token_has_one_holder(moves: list[tuple[str, int]]) -> None:
    """Whoever wants any gets the first that is free; who wants one that is held does not."""
    tokens = LoneTokens(COUNT)
    free = set(range(COUNT))
    for move, index in moves:
        if move == "take":
            assert tokens.take() == min(free, default=-1)
            free -= {min(free, default=-1)}
        elif move == "take this":
            assert tokens.take_this(index) == (index in free)
            free -= {index}
        elif index not in free:
            tokens.release(index)
            free |= {index}
        assert tokens.idle == len(free)


@pytest.mark.parametrize("count", [1, 3])
def test_what_a_holder_writes_the_next_one_sees(count: int) -> None:
    """Four threads count in what only holders of a token may touch; no count is lost."""
    tokens = LoneTokens(count)
    together = threading.Barrier(4)

    def use(_: int) -> int:
        together.wait()
        return tokens.use(50_000)

    with ThreadPoolExecutor(4) as threads:
        found = sum(threads.map(use, range(4)))
    assert tokens.used == found > 0
    assert tokens.idle == count


def test_a_cost_is_that_of_the_nearest_size_that_was_measured() -> None:
    """Of two as near, the smaller; nothing measured is 0."""
    costs = LoneCosts(8)
    assert costs.of(4) == 0
    costs.note(2, 200)
    assert [costs.of(size) for size in (0, 1, 2, 8, 1000)] == [200] * 5
    costs.note(6, 600)
    assert [costs.of(size) for size in range(1, 9)] == [200, 200, 200, 200, 600, 600, 600, 600]


def test_a_cost_follows_what_is_measured_and_the_first_counts_in_full() -> None:
    costs = LoneCosts(4)
    for elapsed_ns, expected_ns in ((1000, 1000), (2000, 1250), (1250, 1250), (250, 1000)):
        costs.note(3, elapsed_ns)
        assert costs.of(3) == expected_ns


def test_the_largest_batches_share_one_cost() -> None:
    """The table has an end."""
    costs = LoneCosts(10_000)
    costs.note(5000, 700)
    costs.note(256, 300)
    assert costs.of(10_000) == costs.of(256) == 600
