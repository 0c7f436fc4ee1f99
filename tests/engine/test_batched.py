"""``@fastpipe.batched``: dynamic batching for a plain function."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import gc
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastpipe
from fastpipe import BackendError, ConfigError, PipeClosed
from fastpipe.batched_function import BatchedFunction

WAIT_S = 20.0


class Counting:
    """A function of a list; remembers the lists it got, and holds the first back until it is opened."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.inside = threading.Event()
        self.opened = threading.Event()

    def __call__(self, items: list[Any]) -> list[Any]:
        self.batches.append(items)
        self.inside.set()
        assert self.opened.wait(WAIT_S)
        if 13 in items:
            raise ValueError("bad luck")
        return [item * 2 for item in items]


Made = Callable[..., tuple[BatchedFunction[Any, Any], Counting]]


@pytest.fixture
def make() -> Iterator[Made]:
    """Make a batched function around a Counting, closed after the test."""
    made: list[BatchedFunction[Any, Any]] = []

    def make(*, held: bool = False, **settings: Any) -> tuple[BatchedFunction[Any, Any], Counting]:
        counting = Counting()
        if not held:
            counting.opened.set()

        def double(items: list[Any]) -> list[Any]:
            """Double each item."""
            return counting(items)

        made.append(fastpipe.batched(**{"max": 4, **settings})(double))
        return made[-1], counting

    yield make
    for function in made:
        function.close()


def test_a_call_takes_an_item_and_returns_its_result(make: Made) -> None:
    """One item in, one result out."""
    double, counting = make()
    assert double(21) == 42
    assert counting.batches == [[21]]


def test_it_looks_like_the_function_it_was_made_of(make: Made) -> None:
    """Name and docstring stay; the function itself is at __wrapped__."""
    double, _ = make()
    assert double.__name__ == "double"  # type: ignore[attr-defined]
    assert double.__doc__ == "Double each item."
    assert inspect.isfunction(double.__wrapped__)  # type: ignore[attr-defined]


def our_threads() -> int:
    """Return how many threads fastpipe has; others of the process may come and go."""
    return sum(thread.name.startswith("fastpipe") for thread in threading.enumerate())


def test_nothing_is_started_before_the_first_call(make: Made) -> None:
    """Decorating costs no thread, so that a module may do it at import."""
    before = our_threads()
    double, _ = make(instance_num=3)
    assert our_threads() == before
    double(1)
    assert our_threads() == before + 3


def test_calls_of_many_threads_meet_in_batches(make: Made) -> None:
    """While one call of the function runs, others gather: each caller gets its own result."""
    double, counting = make(held=True)
    with concurrent.futures.ThreadPoolExecutor(9) as callers:
        first = callers.submit(double, 0)
        assert counting.inside.wait(WAIT_S)
        futures = [callers.submit(double, item) for item in range(1, 9)]
        while double.pipe.stats()["nodes"]["main"]["queued"] < 8:
            threading.Event().wait(0.001)
        counting.opened.set()
        assert first.result(WAIT_S) == 0
        assert [future.result(WAIT_S) for future in futures] == [item * 2 for item in range(1, 9)]
    assert [len(batch) for batch in counting.batches] == [1, 4, 4]


def test_submit_map_and_acall(make: Made) -> None:
    """Futures of requests, ordered results, awaitables."""
    double, _ = make()
    assert double.submit(1).result(WAIT_S)["result"] == 2
    assert list(double.map(range(12))) == [item * 2 for item in range(12)]

    async def main() -> list[Any]:
        return await asyncio.gather(*(double.acall(item) for item in range(12)))

    assert asyncio.run(main()) == [item * 2 for item in range(12)]


def test_one_bad_item_fails_alone(make: Made) -> None:
    """The function is called again for each item of a failed batch."""
    double, counting = make(held=True)
    first = double.submit(0)
    assert counting.inside.wait(WAIT_S)
    futures = [double.submit(item) for item in (1, 13, 3)]
    counting.opened.set()
    concurrent.futures.wait([first, *futures], WAIT_S)
    assert [type(future.exception()) for future in futures] == [type(None), ValueError, type(None)]
    assert counting.batches == [[0], [1, 13, 3], [1], [13], [3]]


def test_retry_alone_can_be_switched_off(make: Made) -> None:
    """Then a failed batch fails as a whole."""
    double, counting = make(held=True, retry_alone=False)
    first = double.submit(0)
    assert counting.inside.wait(WAIT_S)
    futures = [double.submit(item) for item in (1, 13, 3)]
    counting.opened.set()
    concurrent.futures.wait([first, *futures], WAIT_S)
    assert [type(future.exception()) for future in futures] == [ValueError] * 3
    assert len(counting.batches) == 2


def test_buckets_and_weights_are_of_items(make: Made) -> None:
    """Both functions get the item itself."""
    double, counting = make(held=True, bucket=lambda item: item % 2, weigh=lambda item: 2 if item > 10 else 1)
    first = double.submit(0)
    assert counting.inside.wait(WAIT_S)
    futures = [double.submit(item) for item in (1, 2, 3, 11, 12, 14, 16)]
    counting.opened.set()
    assert not concurrent.futures.wait([first, *futures], WAIT_S).not_done
    assert sorted(counting.batches[1:]) == [[1, 3, 11], [2, 12], [14, 16]]


def test_the_wrong_number_of_results_is_said_in_words() -> None:
    """Too few or too many: a BackendError with both numbers."""

    @fastpipe.batched(max=4)
    def forgets(items: list[int]) -> list[int]:
        return items[1:]

    with pytest.raises(
        BackendError, match="forgets must return a list with one result for each of 1 items; got 0 in a list"
    ):
        forgets(1)
    forgets.close()


def test_a_function_of_no_list_is_an_error_of_the_call() -> None:
    """None instead of a list."""

    @fastpipe.batched(max=4)
    def nothing(items: list[int]) -> Any:
        return None

    with pytest.raises(fastpipe.BackendError, match="one result for each of 1 items; got None"):
        nothing(1)
    nothing.close()


def test_async_functions_are_refused_when_they_are_decorated() -> None:
    """The callers may be asynchronous, the function may not."""
    with pytest.raises(TypeError, match=r"async.*plain function"):

        @fastpipe.batched(max=4)  # type: ignore[arg-type]
        async def wrong(items: list[int]) -> list[int]:
            return items


def test_wrong_settings_are_a_configuration_error() -> None:
    """At the first call at the latest, with what is allowed; and again at the next."""
    for _ in range(2):
        with pytest.raises(ConfigError, match="max"):
            fastpipe.batched(max=0)(lambda items: items)(1)


def test_a_call_after_close_starts_new_threads(make: Made) -> None:
    """Closing is idempotent, also before the first call; the pipe that was closed stays to be looked at until then."""
    double, _ = make()
    double.close()
    assert double(1) == 2
    before = our_threads()
    double.close()
    double.close()
    closed = double.pipe
    assert (our_threads(), closed.closing) == (before - 1, True)
    with pytest.raises(PipeClosed):
        closed({"data": 2})
    assert double(2) == 4
    assert double.pipe is not closed
    assert double.submit(3).result(WAIT_S)["result"] == 6


class Named(NamedTuple):
    boxes: list[int]
    scores: list[int]


NO_LISTS: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "dict": (lambda items: dict.fromkeys(items, "x"), "got dict, whose order is its own: return a list"),
    "set": (lambda items: set(items), "got set, whose order is its own"),
    "values": (lambda items: {item: item for item in items}.values(), "got dict_values"),
    "text": (lambda items: "".join(map(str, items)), "got str"),
    "bytes": (lambda items: bytes(items), "got bytes"),
    "memory": (lambda items: memoryview(bytes(items)), "got memoryview"),
    "named tuple": (lambda items: Named(items[:1], items[1:]), "got Named"),
    "generator": (lambda items: (item for item in items), r"got generator: return list\(...\) of it"),
    "map": (lambda items: map(str, items), r"got map: return list\(...\) of it"),
    "number": (lambda items: len(items), "got int"),
    "array of no axis": (lambda items: np.array(len(items)), "got ndarray"),
}


@pytest.mark.parametrize("kind", NO_LISTS)
def test_what_is_no_list_of_results_is_refused_also_if_it_is_as_long(kind: str) -> None:
    """Two items, two keys or letters: nobody gets another's, or a key for an answer; the error says what to return."""
    returns, words = NO_LISTS[kind]
    function = fastpipe.batched(max=2, timeout_ms=60_000, retry_alone=False)(lambda items: returns(items))
    try:
        futures = [function.submit(item) for item in (1, 2)]
        for future in futures:
            with pytest.raises(BackendError, match=words):
                future.result(WAIT_S)
    finally:
        function.close()


@pytest.mark.parametrize("kind", [list, tuple, np.array, collections.deque])
def test_lists_tuples_and_arrays_of_rows_are_results(kind: Callable[[list[Any]], Any]) -> None:
    """Whatever has an order and one for each item."""
    function = fastpipe.batched(max=2)(lambda items: kind([[item, item] for item in items]))
    try:
        assert [list(function(item)) for item in (1, 2)] == [[1, 1], [2, 2]]
    finally:
        function.close()


# ---- methods ---------------------------------------------------------------------------------------------------------


class Model:
    """Adds its own number; equal to every other, and so in no dict's keys."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.batches: list[list[int]] = []

    def __eq__(self, other: object) -> bool:
        return True

    @fastpipe.batched(max=4)
    def add(self, items: list[int]) -> list[int]:
        """Add to each."""
        self.batches.append(items)
        return [item + self.number for item in items]


def test_a_method_has_batches_and_threads_for_each_object() -> None:
    """Items of two objects never meet; each object's threads start with its own first call."""
    one, ten = Model(1), Model(10)
    before = our_threads()
    assert one.add(1) == 2
    assert our_threads() == before + 1
    assert (ten.add(1), Model.add(ten, 2), one.add.__doc__) == (11, 12, "Add to each.")
    assert list(one.add.map(range(8))) == list(range(1, 9))
    assert sum(map(len, one.batches)) == 9
    assert ten.batches == [[1], [2]]

    async def main() -> list[int]:
        return [await ten.add.acall(3), ten.add.submit(4).result(WAIT_S)["result"]]

    assert asyncio.run(main()) == [13, 14]
    one.add.close()
    assert our_threads() == before + 1
    assert one.add(5) == 6
    one.add.close()
    ten.add.close()
    assert our_threads() == before


def test_the_threads_of_a_method_end_with_its_object() -> None:
    """Nothing refers to the object but who uses it; a call in flight is a use."""
    gate = threading.Event()

    class Waits:
        @fastpipe.batched(max=1)
        def wait(self, items: list[int]) -> list[int]:
            gate.wait(WAIT_S)
            return items

    before = our_threads()
    future = Waits().wait.submit(1)  # of an object that nobody else keeps
    gate.set()
    assert future.result(WAIT_S)["result"] == 1
    alive = weakref.ref(future.result()["method"].__self__)
    del future
    for _ in range(1000):  # the worker drops its request a moment after it has answered
        gc.collect()
        if alive() is None and our_threads() == before:
            break
        threading.Event().wait(0.01)
    assert alive() is None
    assert our_threads() == before


def test_an_object_without_weak_references_is_told_what_to_add() -> None:
    """__slots__ without __weakref__."""

    class Slotted:
        __slots__ = ()

        @fastpipe.batched(max=1)
        def same(self, items: list[int]) -> list[int]:
            return items

    with pytest.raises(TypeError, match=r"same.*add '__weakref__' to the __slots__ of Slotted"):
        Slotted().same(1)


def test_the_first_call_may_come_from_many_threads_at_once(make: Made) -> None:
    """One pipe is built, not one per thread."""
    double, _ = make(instance_num=2)
    barrier = threading.Barrier(8)
    before = our_threads()

    def client(item: int) -> Any:
        barrier.wait(WAIT_S)
        return double(item)

    with concurrent.futures.ThreadPoolExecutor(8) as callers:
        assert list(callers.map(client, range(8))) == [item * 2 for item in range(8)]
        assert our_threads() == before + 2
