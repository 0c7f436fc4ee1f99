"""HasKey, NotHasKey and Random: each request in the child that is chosen for it."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import Adds

from fastpipe import Backend, ConfigError, ItemErrors, Pipe, Request, Step
from fastpipe.backends.flow.conditions import Choice, HasKey, NotHasKey, Random
from fastpipe.config.reading import load
from fastpipe.contract import Child


class Bucketed(Adds):
    def bucket(self, request: Request) -> Any:  # type: ignore[override]
        return request["data"] % 3


class Weighty(Adds):
    def weigh(self, request: Request) -> float:  # type: ignore[override]
        return float(request["data"])


def children(*backends: Backend) -> list[Child]:
    return [Child(f"child{i}", backend) for i, backend in enumerate(backends)]


def batch_of(*data: int, key: tuple[int, ...] = ()) -> list[Request]:
    """Requests, of which those with the data in ``key`` have the key 'k'."""
    return [{"data": item, "k": None} if item in key else {"data": item} for item in data]


def results(batch: list[Request]) -> list[Any]:
    return [request.get("result") for request in batch]


# ---- HasKey and NotHasKey --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "first"), [(HasKey, [2, 4]), (NotHasKey, [1, 3])])
def test_a_batch_is_divided_among_the_children(kind: type[HasKey], first: list[int]) -> None:
    """Each child gets its share as one batch, in order; what the key holds does not matter."""
    one, other = Adds(amount=10), Adds(amount=100)
    batch = batch_of(1, 2, 3, 4, key=(2, 4))
    before = list(batch)
    kind(children(one, other), key="k").forward(batch)
    assert one.batches == [first]
    assert other.batches == [[item for item in (1, 2, 3, 4) if item not in first]]
    assert results(batch) == [item + (10 if item in first else 100) for item in (1, 2, 3, 4)]
    assert all(request is same for request, same in zip(batch, before, strict=True))


def test_without_a_second_child_the_data_is_the_result_unless_there_is_one() -> None:
    """The request passes through."""
    batch: list[Request] = [{"data": 1}, {"data": 2, "k": 0}, {"data": 3, "result": "kept"}]
    child = Adds()
    HasKey(children(child), key="k").forward(batch)
    assert results(batch) == [1, 3, "kept"]
    assert child.batches == [[2]]


def test_a_child_without_requests_is_not_called() -> None:
    """No empty batches."""
    one, other = Adds(), Adds()
    HasKey(children(one, other), key="k").forward(batch_of(1, 2))
    assert (one.batches, other.batches) == ([], [[1, 2]])


def test_the_notation_names_key_and_children() -> None:
    """HasKey(key)[A,B], as a node and as a step; the key is not handed on to the children."""
    with Pipe(backend="S[Identity,HasKey(box)[Pow,Add(unit, 5)],Identity]", max=4) as pipe:
        assert pipe({"data": 3, "box": 1})["result"] == 9
        assert pipe({"data": 3})["unit"] == 5
    with Pipe(backend="NotHasKey(box)[Pow]") as pipe:
        assert pipe({"data": 3})["result"] == 9
        assert pipe({"data": 3, "box": 1})["result"] == 3
    with Pipe(backend=Step("HasKey", "Pow", key="box")) as pipe:
        assert pipe({"data": 3, "box": 1})["result"] == 9


def test_one_bad_request_fails_alone() -> None:
    """Only the child in which it is runs its share again; the error keeps its index in the whole batch."""
    one, other = Adds(bad=(4,)), Adds()
    batch = batch_of(1, 2, 3, 4, 6, key=(2, 4, 6))
    with pytest.raises(ItemErrors) as caught:
        HasKey(children(one, other), key="k").forward(batch)
    assert {index: str(error) for index, error in caught.value.errors.items()} == {3: "bad 4"}
    assert caught.value.errors[3].__notes__ == ["in step 'child0'"]
    assert one.batches == [[2, 4, 6], [2], [4], [6]]
    assert other.batches == [[1, 3]]
    assert results(batch) == [2, 3, 4, None, 7]


def test_a_single_request_raises_the_exception_itself() -> None:
    """Nothing is wrapped."""
    with pytest.raises(ValueError, match="bad 4"):
        HasKey(children(Adds(bad=(4,))), key="k").forward(batch_of(4, key=(4,)))


def test_without_retry_alone_only_that_childs_share_fails() -> None:
    """The other child's requests have succeeded."""
    batch = batch_of(1, 2, 4, key=(2, 4))
    with pytest.raises(ItemErrors) as caught:
        HasKey(children(Adds(bad=(4,), retry_alone=False), Adds()), key="k").forward(batch)
    assert sorted(caught.value.errors) == [1, 2]
    assert results(batch) == [2, None, None]


def test_batches_are_formed_by_the_chosen_childs_bucket_and_weight() -> None:
    """Requests of different children have different buckets, once one of them has any."""
    plain = HasKey(children(Adds(), Adds()), key="k")
    assert (plain.bucket, plain.weigh) == (None, None)
    bucketed = HasKey(children(Bucketed(), Adds()), key="k")
    assert bucketed.bucket is not None
    with_key = [bucketed.bucket({"data": data, "k": 0}) for data in (1, 4, 2)]
    without = bucketed.bucket({"data": 1})
    assert with_key[0] == with_key[1] != with_key[2]
    assert without not in with_key
    assert without == bucketed.bucket({"data": 2})
    weighing = HasKey(children(Weighty(max_batch=8)), key="k")
    assert weighing.weigh is not None
    assert [weighing.weigh({"data": 5, "k": 0}), weighing.weigh({"data": 5})] == [5.0, 1.0]


@pytest.mark.parametrize(("sizes", "expected"), [([1, 1], 1), ([4, 8], 4), ([1, 8], 8), ([None, 6], 6), ([None], None)])
def test_sizes_are_those_of_a_sequential(sizes: list[int | None], expected: int | None) -> None:
    """The smallest of those that are not one; a child that takes one is run item by item."""
    backends = [Adds(max_batch=size) for size in sizes]
    assert HasKey(children(*backends), key="k").max_batch == expected


def test_a_child_that_takes_one_is_run_item_by_item() -> None:
    """The batch is as large as the other one allows."""
    one = Adds(max_batch=1)
    HasKey(children(one, Adds(max_batch=8)), key="k").forward(batch_of(1, 2, 3, key=(1, 3)))
    assert one.batches == [[1], [3]]


def test_a_choice_is_thread_bound_if_a_child_is_and_closes_them() -> None:
    """One child that must stay on its thread binds the whole."""
    bound, free = Adds(thread_bound=True), Adds()
    choice = HasKey(children(bound, free), key="k")
    assert choice.thread_bound
    assert not HasKey(children(free), key="k").thread_bound
    choice.close()
    assert bound.is_closed
    assert free.is_closed


def test_a_choice_of_ones_own() -> None:
    """choose() says which child."""

    class ByParity(Choice):
        chooses_once = True

        def choose(self, request: Request) -> int:
            return int(request["data"] % 2)

    batch = batch_of(1, 2, 3)
    ByParity(children(Adds(amount=0), Adds(amount=-1))).forward(batch)
    assert results(batch) == [0, 2, 2]


# ---- Random ----------------------------------------------------------------------------------------------------------


def choices(seed: int | None, p: float = 0.5, count: int = 400) -> list[int]:
    batch = batch_of(*[0] * count)
    Random(children(Adds(amount=1), Adds(amount=2)), p=p, seed=seed).forward(batch)
    return results(batch)


def test_the_first_child_gets_its_share() -> None:
    """With probability p; 0 is never and 1 always."""
    assert set(choices(None, p=0.0)) == {2}
    assert set(choices(None, p=1.0)) == {1}
    assert 60 < choices(7, p=0.25).count(1) < 140


def test_a_seed_makes_the_choices_repeatable() -> None:
    """The same seed, the same choices; another seed, others."""
    assert choices(7) == choices(7) != choices(8)


def test_random_in_the_notation() -> None:
    """p stands in brackets, seed is a keyword; both may be keys of the node."""
    for backend, keys in (("Random(1)[Pow,Identity]", {}), ("Random[Pow,Identity]", {"p": "1", "seed": "5"})):
        with Pipe(backend=backend, **keys) as pipe:
            assert pipe({"data": 3})["result"] == 9


def test_the_children_of_random_get_one_bucket_at_a_time_and_no_more_than_they_take() -> None:
    """Their share is known only when the batch is there, and is divided then."""
    child = Bucketed(max_batch=2)
    Random(children(child, Adds(max_batch=2)), p=1.0).forward(batch_of(0, 1, 3, 6, 2))
    assert child.batches == [[0, 3], [1], [6], [2]]


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: HasKey(children(Adds(), Adds(), Adds()), key="k"), "HasKey takes one child or two, got 3"),
        (lambda: NotHasKey([], key="k"), "NotHasKey takes one child or two, got 0"),
        (lambda: Random(children(Adds()), p=0.5), "Random chooses between two children, got 1"),
        (
            lambda: Random(children(Adds(max_batch=4), Adds()), p=0.5),
            "Random needs children that take the same batch sizes; child0 takes 1 to 4, child1 takes 1 or more",
        ),
        (
            lambda: HasKey([Child("a", Adds(), filter=lambda request: None)], key="k"),
            "HasKey asks no filters: take the one in front of a away",
        ),
    ],
)
def test_trees_that_make_no_sense(build: Any, words: str) -> None:
    """Number of children, their sizes, filters in front of them."""
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value) == words


def test_mistakes_in_a_configuration_name_the_node() -> None:
    """What the constructor refuses has a note; what can be read off the text is told before anything is built."""
    with pytest.raises(ConfigError, match="between two children") as caught:
        Pipe(fork={"backend": "Random(0.5)[Pow]"})
    assert "node 'fork'" in caught.value.__notes__[0]
    with pytest.raises(ConfigError, match="node 'main': key: HasKey needs it"):
        load(None, {"backend": "HasKey[Pow]"})
    with pytest.raises(ConfigError, match=r"Random\(p\): must be between 0 and 1, got 2"):
        load(None, {"backend": "Random(2)[Pow,Pow]"})
    with pytest.raises(ConfigError, match="HasKey needs children"):
        load(None, {"backend": "HasKey(k)"})
