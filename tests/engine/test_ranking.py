"""The staged list of a station alone: in order by rank, whatever comes, and in few steps."""

from __future__ import annotations

import random

import pytest
from helpers import SCALE
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpipe._core import RankedTickets

ADD = st.tuples(st.just("add"), st.integers(-5, 5), st.integers(0, 2))
TAKE = st.tuples(st.just("take"), st.integers(0, 2), st.integers(1, 40))


@given(st.lists(st.one_of(ADD, ADD, ADD, TAKE), max_size=300))
@settings(deadline=None, max_examples=int(300 * min(SCALE, 1)))
def test_tickets_stand_as_in_a_sorted_list(moves: list[tuple[str, int, int]]) -> None:
    """By rank, then as they came; a batch of a bucket is the first of that bucket; the links are in order."""
    tickets = RankedTickets()
    model: list[tuple[int, int, int]] = []  # rank, number, bucket
    for kind, first, second in moves:
        if kind == "add":
            model.append((first, tickets.add(first, second), second))
            model.sort()
        else:
            taken = [entry for entry in model if entry[2] == first][:second]
            assert tickets.take(first, second) == [number for _, number, _ in taken]
            model = [entry for entry in model if entry not in taken]
        tickets.check()
        assert tickets.numbers == [number for _, number, _ in model]


def test_a_list_is_indexed_only_while_something_came_out_of_order() -> None:
    """Requests without priorities pay for no index; what stands there when it is needed is indexed with the rest."""
    tickets = RankedTickets()
    for rank in range(100):
        tickets.add(rank, in_order=True)
    tickets.add(100)
    assert not tickets.is_indexed
    urgent = tickets.add(50)
    assert tickets.is_indexed
    tickets.check()
    assert tickets.numbers == [*range(51), urgent, *range(51, 101)]
    assert len(tickets.take(0, 1000)) == 102
    assert not tickets.is_indexed
    tickets.check()


@pytest.mark.parametrize("ranks", ["mixed", "falling", "two priorities"])
def test_an_insertion_walks_past_few_tickets_however_many_wait(ranks: str) -> None:
    """32,000 wait: some 30 are looked at, where a walk along the list would look at thousands."""
    count = 32_000
    tickets = RankedTickets()
    chance = random.Random(1)
    for index in range(count):
        if ranks == "mixed":
            tickets.add(chance.randrange(1_000_000))
        elif ranks == "falling":
            tickets.add(-index)
        else:
            tickets.add(index + chance.choice((0, 1_000_000)))
    assert tickets.steps / count < 60
    tickets.check()
