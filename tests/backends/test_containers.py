"""Sequential: one batch through several backends, each request with its own outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from helpers import Adds

from fastpipe.backends.flow.sequential import Sequential
from fastpipe.config.reading import load
from fastpipe.contract import Backend, Child, Container, Request
from fastpipe.errors import BackendError, ConfigError, ItemErrors
from fastpipe.filters import Status, run_if_no_result, swap


class Silent(Backend):
    """Leaves odd numbers without a result."""

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            if request["data"] % 2 == 0:
                request["result"] = request["data"]


def sequential(*children: Any) -> Sequential:
    """Children are backends, or pairs of a filter and a backend."""
    pairs = [child if isinstance(child, tuple) else (None, child) for child in children]
    return Sequential([Child(f"step{i}", backend, filter) for i, (filter, backend) in enumerate(pairs)])


def requests(*data: Any) -> list[Request]:
    return [{"data": item} for item in data]


def results(batch: list[Request]) -> list[Any]:
    return [request.get("result") for request in batch]


def built(expression: Any, **keys: Any) -> Backend:
    plan = load(None, {"backend": expression, **keys}).nodes[0].plan
    assert plan is not None
    return plan.build()


@pytest.mark.parametrize("count", [1, 3])
def test_each_result_is_the_next_ones_data(count: int) -> None:
    """S[Pow,Pow] of 2 is 16, alone and in a batch."""
    batch = requests(*[2] * count)
    built("S[Pow,Pow]").forward(batch)
    assert results(batch) == [16] * count
    assert [request["data"] for request in batch] == [4] * count


@pytest.mark.parametrize("data", [(1,), (1, 2, 3)])
def test_a_request_without_a_result_leaves_without_an_error(data: tuple[int, ...]) -> None:
    """The rest of the batch goes on; the one that left has no result."""
    last = Adds()
    batch = requests(*data)
    sequential(Silent(), last).forward(batch)
    assert results(batch) == [None if item % 2 else item + 1 for item in data]
    assert [item for batch in last.batches for item in batch] == [item for item in data if item % 2 == 0]


def test_a_stale_result_does_not_keep_the_first_child_from_running() -> None:
    """Before the first child no filter stands."""
    batch = [{"data": 1, "result": 50}]
    sequential(Adds()).forward(batch)
    assert results(batch) == [2]


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(
    ("status", "seen_by_second", "seen_by_last", "result"),
    [
        (Status.Run, [1], [2], 3),
        (Status.Skip, [], [2], 3),
        (Status.Break, [], [], 2),
        (Status.SerialSkip, [], [], 2),
        (Status.SubGraphSkip, [], [], 2),
    ],
)
def test_what_each_status_of_a_filter_does(
    status: Status, seen_by_second: list[int], seen_by_last: list[int], result: int, count: int
) -> None:
    """Run runs the step; Skip goes on to the next as it is; Break and its kind leave with what there is."""
    second, last = Adds(), Adds()
    batch = requests(*[1] * count)
    sequential(Adds(), (lambda request: status, second), (swap, last)).forward(batch)
    assert second.batches == ([seen_by_second * count] if seen_by_second else [])
    assert last.batches == ([seen_by_last * count] if seen_by_last else [])
    assert results(batch) == [result] * count


def raising(request: Request) -> Status:
    raise KeyError("absent")


@pytest.mark.parametrize(
    ("filter", "error"),
    [(lambda request: Status.Error, BackendError), (lambda request: None, BackendError), (raising, KeyError)],
)
def test_a_filter_that_fails_fails_its_request_alone(filter: Callable[[Request], Any], error: type[Exception]) -> None:
    """Error, an answer that is no status, and an exception: only the request they are about fails."""

    def only_for_two(request: Request) -> Any:
        return filter(request) if request["data"] == 2 else Status.Run

    batch = requests(1, 2, 3)
    steps = sequential((only_for_two, Adds()), Adds())
    with pytest.raises(ItemErrors) as caught:
        steps.forward(batch)
    assert {index: type(each) for index, each in caught.value.errors.items()} == {1: error}
    assert results(batch) == [3, None, 5]
    with pytest.raises(error):
        steps.forward(requests(2))


def test_or_runs_only_what_has_no_result() -> None:
    """S[A,(or)B]: B is for those that A left without a result."""
    other = Adds()
    batch = requests(1, 2, 3)
    sequential(Silent(), (run_if_no_result, other)).forward(batch)
    assert other.batches == [[1, 3]]
    assert results(batch) == [2, 2, 4]


def test_filters_are_named_in_the_notation() -> None:
    """The filter in brackets is the registered one."""
    batch = requests(3)
    built("S[Identity,(or)Pow,(Skip)RuntimeError]").forward(batch)
    assert results(batch) == [3]


# ---- failures --------------------------------------------------------------------------------------------------


def test_one_bad_request_fails_alone_and_the_others_complete() -> None:
    """A batch that raises is run again one by one, in that step only; the rest goes through all steps."""
    first, second, last = Adds(), Adds(bad=(3,)), Adds()
    batch = requests(1, 2, 3)
    with pytest.raises(ItemErrors) as caught:
        sequential(first, second, last).forward(batch)
    assert list(caught.value.errors) == [1]
    error = caught.value.errors[1]
    assert (type(error), str(error)) == (ValueError, "bad 3")
    assert error.__notes__ == ["in step 'step1'"]
    assert first.batches == [[1, 2, 3]]
    assert second.batches == [[2, 3, 4], [2], [3], [4]]
    assert last.batches == [[3, 5]]
    assert results(batch) == [4, None, 6]


def test_a_request_is_put_back_before_it_is_run_again() -> None:
    """Keys that the failed attempt added are gone, and keys it took away are back, when the request runs alone."""

    class Consumes(Backend):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["attempt"] = request.pop("ticket"), request.get("attempt")
            if len(batch) > 1:
                raise ValueError("not together")
            batch[0]["result"] = batch[0]["attempt"]

    batch = [{"data": 1, "ticket": "a"}, {"data": 2, "ticket": "b"}]
    sequential(Consumes()).forward(batch)
    assert results(batch) == [("a", None), ("b", None)]


def test_a_child_may_do_what_it_likes_with_its_list() -> None:
    """The list belongs to the child: emptying it loses no request."""

    class Empties(Backend):
        def forward(self, batch: list[Request]) -> None:
            while batch:
                request = batch.pop()
                request["result"] = request["data"] * 10

    batch = requests(1, 2)
    sequential(Empties(), Adds()).forward(batch)
    assert results(batch) == [11, 21]


def test_without_retry_alone_the_whole_batch_of_that_step_fails() -> None:
    """Requests that left before are not touched by it."""
    batch = requests(1, 2, 4)
    child = Adds(bad=(2,), retry_alone=False)
    with pytest.raises(ItemErrors) as caught:
        sequential(Silent(), child).forward(batch)
    assert sorted(caught.value.errors) == [1, 2]
    assert child.batches == [[2, 4]]


def test_item_errors_of_a_child_are_taken_at_their_word() -> None:
    """Nothing is run again, and the indices are those of the child's own batch."""

    class Knows(Backend):
        calls = 0

        def forward(self, batch: list[Request]) -> None:
            self.calls += 1
            for request in batch:
                request["result"] = request["data"]
            raise ItemErrors({1: OSError("disk")})

    knows = Knows()
    batch = requests(1, 2, 4, 6)
    with pytest.raises(ItemErrors) as caught:
        sequential(Silent(), knows, Adds()).forward(batch)
    assert {index: type(error) for index, error in caught.value.errors.items()} == {2: OSError}
    assert knows.calls == 1
    assert results(batch) == [None, 3, None, 7]


def test_item_errors_for_items_that_are_not_there_fail_the_batch_as_a_broken_contract() -> None:
    """A backend that names item 5 of 2 cannot be believed about any of them."""

    class Wrong(Backend):
        def forward(self, batch: list[Request]) -> None:
            raise ItemErrors({5: OSError("disk")})

    with pytest.raises(ItemErrors) as caught:
        sequential(Wrong()).forward(requests(1, 2))
    assert {type(error) for error in caught.value.errors.values()} == {BackendError}
    with pytest.raises(BackendError, match="a batch of 1 names item 5"):
        sequential(Wrong()).forward(requests(1))


def test_a_single_request_raises_the_exception_itself() -> None:
    """No wrapping for a batch of one, also if the child wrapped it; the note names the step."""

    class Wraps(Backend):
        def forward(self, batch: list[Request]) -> None:
            error = OSError("disk")
            error.__cause__ = KeyError("its own cause")
            raise ItemErrors({0: error})

    with pytest.raises(OSError, match="disk") as caught:
        sequential(Adds(), Wraps()).forward(requests(1))
    assert caught.value.__notes__ == ["in step 'step1'"]
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(ValueError, match="bad 1"):
        sequential(Adds(bad=(1,))).forward(requests(1))


def test_a_nested_sequential_reports_its_own_failures_outwards() -> None:
    """Inner and outer steps keep the failing request apart from the others."""
    batch = requests(1, 2, 3)
    with pytest.raises(ItemErrors) as caught:
        sequential(Adds(), sequential(Adds(), Adds(bad=(4,))), Adds()).forward(batch)
    assert list(caught.value.errors) == [1]
    assert results(batch) == [5, None, 7]


# ---- sizes, buckets, weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([1, 1], 1), ([1, 8], 8), ([4, 8, 1], 4), ([None, None], None), ([None, 1], None), ([None, 6], 6)],
)
def test_the_range_is_the_intersection_of_the_childrens(sizes: list[int | None], expected: int | None) -> None:
    """All ones: one. Otherwise the smallest of those that are not one."""
    assert sequential(*(Adds(max_batch=size) for size in sizes)).max_batch == expected


def test_a_child_that_takes_one_is_run_item_by_item() -> None:
    """The batch stays together for the others, and a failure needs no second attempt."""
    one, many = Adds(max_batch=1, bad=(2,)), Adds(max_batch=8)
    batch = requests(1, 2, 3)
    with pytest.raises(ItemErrors) as caught:
        sequential(one, many).forward(batch)
    assert list(caught.value.errors) == [1]
    assert one.batches == [[1], [2], [3]]
    assert many.batches == [[2, 4]]


class Bucketed(Adds):
    def bucket(self, request: Request) -> Any:  # type: ignore[override]
        return request["data"] % 3


class Weighty(Adds):
    def weigh(self, request: Request) -> float:  # type: ignore[override]
        return float(request["data"])


def test_the_first_childs_bucket_and_weight_are_the_nodes() -> None:
    """The engine forms batches by the first child, which then gets them whole."""
    first = Bucketed(max_batch=8)
    steps = sequential(first, Adds())
    assert steps.bucket is not None
    assert steps.bucket({"data": 5}) == 2
    assert sequential(Adds(), Bucketed()).bucket is None
    weighing = sequential(Weighty(max_batch=8))
    assert weighing.weigh is not None
    assert weighing.weigh({"data": 5}) == 5.0
    steps.forward(requests(1, 2))
    assert first.batches == [[1, 2]]


def test_a_later_child_gets_one_bucket_at_a_time() -> None:
    """Its buckets are known only once the steps before it have run."""
    later = Bucketed(max_batch=8)
    batch = requests(0, 1, 2, 3)
    sequential(Adds(), later).forward(batch)
    assert later.batches == [[1, 4], [2], [3]]
    assert results(batch) == [2, 3, 4, 5]


def test_a_later_child_never_gets_more_weight_than_its_max_batch() -> None:
    """Requests are packed in order; one that is too heavy by itself runs alone."""
    later = Weighty(max_batch=5)
    sequential(Adds(), later).forward(requests(1, 2, 0, 8))
    assert later.batches == [[2, 3], [1], [9]]


def test_a_later_child_never_gets_more_requests_than_it_takes() -> None:
    """A batch of requests that weigh less than one may have more of them than max_batch."""

    class Light(Adds):
        def weigh(self, request: Request) -> float:  # type: ignore[override]
            return 0.5

    first, later = Light(max_batch=2), Adds(max_batch=2)
    sequential(first, later).forward(requests(1, 2, 3))
    assert first.batches == [[1, 2, 3]]
    assert later.batches == [[2, 3], [4]]


def test_a_request_that_cannot_be_measured_fails_alone() -> None:
    """An exception in bucket() or weigh() is that of its request."""

    class Picky(Adds):
        def bucket(self, request: Request) -> Any:  # type: ignore[override]
            return {2: "a"}[request["data"]]

    with pytest.raises(ItemErrors) as caught:
        sequential(Adds(), Picky()).forward(requests(1, 5))
    assert {index: type(error) for index, error in caught.value.errors.items()} == {1: KeyError}


# ---- building --------------------------------------------------------------------------------------------------


def test_thread_bound_if_any_child_is() -> None:
    """One child that must stay on its thread binds the whole."""
    assert sequential(Adds(), Adds(thread_bound=True)).thread_bound
    assert not sequential(Adds()).thread_bound


def test_children_are_built_last_first_and_closed_with_it() -> None:
    """The order of building is the reverse of the order of running; close() reaches every child."""
    order: list[str] = []

    class Named(Adds):
        def __init__(self, *, label: str) -> None:
            super().__init__()
            order.append(label)

    from fastpipe.config.notation import Sequential as in_sequence
    from fastpipe.config.notation import Step

    steps = built(in_sequence(Step(Named, label="a"), Step(Named, label="b")))
    assert order == ["b", "a"]
    steps.close()
    assert isinstance(steps, Sequential)
    assert all(child.backend.is_closed for child in steps.children)  # type: ignore[attr-defined]


def test_no_children_is_an_error() -> None:
    """An empty Sequential is refused, in a configuration and by itself."""
    with pytest.raises(ConfigError, match="needs children"):
        load(None, {"backend": "S"})
    with pytest.raises(ConfigError, match="at least one child"):
        Sequential([])


class Squares:
    """A form of data."""

    def __init__(self, root: Any) -> None:
        self.root = root


class Roots:
    """Another one."""


class Gives(Backend):
    """Its results are squares, in a form of their own if the next step takes that."""

    offers_forms = (Roots, Squares)

    def __init__(self) -> None:
        self.told: list[type] = []

    def hand_on(self, form: type, taker: Backend) -> None:
        self.told.append(form)
        self.taker = taker

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            root = request.pop("root") if "root" in request else request["data"]
            request["result"] = Squares(root) if self.told else root * root


class Takes(Backend):
    """Notes what it is given; 13 fails."""

    keeps_input = True
    takes_forms = (Squares,)

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            data = request["data"]
            self.seen.append(data)
            root = data.root if isinstance(data, Squares) else data
            if root == 13:
                raise ValueError("13")
            request["result"] = root


class Extended(Takes):
    """It may expect what is documented."""


@pytest.mark.parametrize("data", [[2], [2, 3], [13], [2, 13, 3]])
def test_two_steps_may_agree_on_a_form_of_data_that_nobody_else_sees(data: list[int]) -> None:
    """Behind them ``data`` is what it was before the first, also for a request that fails there and is run again."""
    gives, takes = Gives(), Takes()
    backend = Sequential([Child("A", gives), Child("B", takes)])
    assert gives.told == [Squares]
    assert gives.taker is takes
    batch = requests(*data)
    try:
        backend.forward(batch)
    except (ItemErrors, ValueError):
        assert 13 in data
    assert {type(seen) for seen in takes.seen} == {Squares}
    assert [request["data"] for request in batch] == data
    assert results(batch) == [None if number == 13 else number for number in data]


@pytest.mark.parametrize("count", [1, 2])
def test_behind_a_form_a_request_without_data_has_none_again(count: int) -> None:
    batch: list[Request] = [{"root": 2} for _ in range(count)]
    Sequential([Child("A", Gives()), Child("B", Takes())]).forward(batch)
    assert batch == [{"result": 2}] * count


@pytest.mark.parametrize("count", [1, 2])
def test_a_step_behind_a_form_leaves_the_data_that_it_was_given(count: int) -> None:
    """Only the two steps that agree on a form have their data put back."""
    batch = requests(*[3] * count)
    Sequential([Child("A", Gives()), Child("B", Takes()), Child("C", Adds())]).forward(batch)
    assert [request["data"] for request in batch] == [3] * count
    batch = requests(*[4] * count)
    Sequential([Child("A", Gives()), Child("B", Takes()), Child("C", Adds()), Child("D", Adds())]).forward(batch)
    assert [request["data"] for request in batch] == [5] * count


def test_there_is_no_form_across_a_filter_or_for_a_subclass_that_does_not_say_so() -> None:
    """What a class promises of its code is not promised of another's."""
    for steps in (
        [Child("A", Gives()), Child("B", Takes(), filter=run_if_no_result)],
        [Child("A", Gives()), Child("B", Extended())],
        [Child("A", type("Other", (Gives,), {})()), Child("B", Takes())],
        [Child("A", Gives()), Child("B", Adds())],
    ):
        Sequential(steps)
        assert steps[0].backend.told == []  # type: ignore[attr-defined]


def test_what_a_container_says_of_places_itself_counts() -> None:
    """Where it is, and where data is; its children fill in what it does not say."""

    class Placed(Adds):
        place = "a"

        def place_of(self, request: Request) -> str:
            return "a"

    class Own(Container):
        def place_of(self, request: Request) -> str:
            return "b"

    class Elsewhere(Container):
        def __init__(self, children: list[Child]) -> None:
            self.place = ["b"]  # what cannot be hashed is told with the node's name, when it is built
            super().__init__(children)

    child = Child("A", Placed())
    assert Container([child]).place == Own([child]).place == "a"
    assert Container([child]).place_of is not None
    assert Container([child]).place_of({}) == "a"
    assert Own([child]).place_of({}) == "b"
    with pytest.raises(ConfigError, match=r"Elsewhere is at \['b'\], A is at a"):
        Elsewhere([child])
