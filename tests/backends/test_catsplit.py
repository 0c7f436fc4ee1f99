"""CatSplit: the items of a batch through one backend as one object."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastpipe import Backend, BackendError, ConfigError, ItemErrors, Pipe, Request, Step
from fastpipe.backends.basic import Pow
from fastpipe.backends.flow.catsplit import CatSplit, Concatenate, SplitRows
from fastpipe.contract import Child
from fastpipe.errors import KernelError


class Doubles(Backend):
    """Doubles what it gets; remembers the shapes, and raises where there is a 13."""

    def __init__(self, *, retry_alone: bool = True, thread_bound: bool = False) -> None:
        self.retry_alone = retry_alone
        self.thread_bound = thread_bound
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, batch: list[Request]) -> None:
        (request,) = batch
        self.shapes.append(tuple(request["data"].shape))
        if (request["data"] == 13).any():
            raise ValueError("13")
        request["result"] = request["data"] * 2


def children(*backends: Backend) -> list[Child]:
    return [Child(f"child{i}", backend) for i, backend in enumerate(backends)]


def arrays(*lengths: int, width: int = 2) -> list[Request]:
    """Requests with arrays of so many rows; the rows of item i are i."""
    return [{"data": np.full((length, width), item)} for item, length in enumerate(lengths)]


def test_arrays_are_joined_run_once_and_split_by_their_lengths() -> None:
    """Along axis 0, in order; a length of 0 is one, too."""
    body = Doubles()
    batch = arrays(1, 3, 0, 2)
    CatSplit(children(body)).forward(batch)
    assert body.shapes == [(6, 2)]
    for item, (request, length) in enumerate(zip(batch, (1, 3, 0, 2), strict=True)):
        np.testing.assert_array_equal(request["result"], np.full((length, 2), 2 * item))
        assert set(request) == {"data", "result"}


def test_torch_tensors_stay_torch_tensors() -> None:
    """Joined by torch, and split into views."""
    torch = pytest.importorskip("torch")
    body = Doubles()
    batch: list[Request] = [{"data": torch.full((1, 3, 2), float(item))} for item in range(3)]
    CatSplit(children(body)).forward(batch)
    assert body.shapes == [(3, 3, 2)]
    assert [type(request["result"]) for request in batch] == [torch.Tensor] * 3
    assert [request["result"][0, 0, 0].item() for request in batch] == [0.0, 2.0, 4.0]


def test_in_a_pipe_the_batch_is_the_nodes() -> None:
    """max says how many items are joined; the body sees them at once."""
    body = Doubles()
    keys = {"max": 4, "batching": "timeout", "batching_timeout": 10_000}
    with Pipe(backend=Step("CatSplit", body), **keys) as pipe:
        batch = arrays(1, 1, 2, 1)
        pipe(batch)
        assert body.shapes == [(5, 2)]
        assert [int(request["result"][0, 0]) for request in batch] == [0, 2, 4, 6]


def test_items_that_cannot_be_joined_never_share_a_run() -> None:
    """Shapes behind the first axis, dtypes and libraries make buckets, and groups where they meet nevertheless."""
    body = Doubles()
    cat_split = CatSplit(children(body))
    batch = [*arrays(1, 2), *arrays(1, width=3), {"data": np.zeros((1, 2), np.float32)}]
    assert cat_split.bucket is not None
    buckets = [cat_split.bucket(request) for request in batch]
    assert buckets[0] == buckets[1]
    assert len(set(buckets)) == 3
    cat_split.forward(batch)
    assert body.shapes == [(3, 2), (1, 3), (1, 2)]
    assert all("result" in request for request in batch)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_an_array_of_another_class_changes_nobody_elses() -> None:
    """A matrix multiplies otherwise, and a whole of which one part is a matrix is one."""
    matrix = np.matrix([[3.0, 4.0], [5.0, 6.0]])
    batch: list[Request] = [{"data": np.array([[1.0, 2.0], [1.0, 2.0]])}, {"data": matrix}]
    cat_split = CatSplit(children(Pow()))
    assert cat_split.bucket is not None
    assert cat_split.bucket(batch[0]) != cat_split.bucket(batch[1])
    cat_split.forward(batch)
    assert type(batch[0]["result"]) is np.ndarray
    np.testing.assert_array_equal(batch[0]["result"], [[1.0, 4.0], [1.0, 4.0]])
    assert type(batch[1]["result"]) is np.matrix


def test_a_tensor_that_requires_gradients_shares_no_run_with_others() -> None:
    """Theirs would keep its graph alive, and lead gradients into it."""
    torch = pytest.importorskip("torch")
    batch: list[Request] = [{"data": torch.ones(1, 2)}, {"data": torch.ones(1, 2, requires_grad=True)}]
    CatSplit(children(Doubles())).forward(batch)
    assert [request["result"].requires_grad for request in batch] == [False, True]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([1, 2], "expected a NumPy array or a torch tensor to join, got list"),
        (np.array(3), "expected an array with at least one axis to join along, got one without axes"),
    ],
)
def test_an_item_that_is_no_array_fails_alone(data: Any, words: str) -> None:
    """With what was expected; its bucket is none of the others'."""
    batch = [*arrays(1), {"data": data}, *arrays(2)]
    cat_split = CatSplit(children(Doubles()))
    assert cat_split.bucket is not None
    assert cat_split.bucket(batch[1]) == "misfit"
    with pytest.raises(ItemErrors) as caught:
        cat_split.forward(batch)
    assert {index: str(error) for index, error in caught.value.errors.items()} == {1: words}
    assert isinstance(caught.value.errors[1], KernelError)
    assert ["result" in request for request in batch] == [True, False, True]


def test_a_request_without_data_fails_alone() -> None:
    """As a KeyError, like anywhere else."""
    batch: list[Request] = [*arrays(1), {}]
    with pytest.raises(ItemErrors) as caught:
        CatSplit(children(Doubles())).forward(batch)
    assert {index: type(error) for index, error in caught.value.errors.items()} == {1: KeyError}


# ---- cat and split of one's own --------------------------------------------------------------------------------------


def join_words(words: list[str]) -> str:
    return " ".join(words)


def split_words(text: str) -> list[str]:
    return text.split(" ")


def upper(text: str) -> str:
    return text.upper()


def test_cat_and_split_may_be_functions_of_one_item() -> None:
    """cat gets the list of data, split what the body made of the whole."""
    with Pipe(backend=Step("CatSplit", join_words, upper, split_words), max=3, batching="timeout") as pipe:
        batch: list[Request] = [{"data": word, "id": word} for word in ("a", "b", "c")]
        pipe(batch)
        assert batch == [{"data": word, "id": word, "result": word.upper()} for word in ("a", "b", "c")]


def test_the_default_halves_may_be_combined_with_others() -> None:
    """In the notation; what cat writes under sizes is there for split."""
    with Pipe(backend="CatSplit[Concatenate,S[Identity,Pow],SplitRows]", max=3, batching="timeout") as pipe:
        batch = arrays(1, 2, 1)
        pipe(batch)
        assert [request["result"].tolist() for request in batch] == [[[0, 0]], [[1, 1]] * 2, [[4, 4]]]


def test_a_body_without_a_result_leaves_all_without_one() -> None:
    """No error: the filter of whatever comes next decides."""

    class Silent(Backend):
        def forward(self, batch: list[Request]) -> None: ...

    batch = arrays(1, 2)
    CatSplit(children(Silent())).forward(batch)
    assert ["result" in request for request in batch] == [False, False]


class Returns(Backend):
    """Has one result for everything; without it, none."""

    def __init__(self, *result: Any) -> None:
        self.result = result

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            for result in self.result:
                request["result"] = result


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            Returns([1, 2]),
            "CatSplit: 'child2' must return a list with one result for each of 1 items; got 2 in a list",
        ),
        (Returns("x"), "got str"),
        (Returns({0: "x"}), "got dict, whose order is its own"),
        (Returns(5), "got int"),
        (Returns(), "got None"),
    ],
)
def test_a_split_that_does_not_give_one_for_each_is_told(parts: Backend, words: str) -> None:
    """Expected and got, and whose result it is."""
    with pytest.raises(BackendError) as caught:
        CatSplit(children(Concatenate(), Doubles(), parts)).forward(arrays(1))
    assert words in str(caught.value)


def test_a_cat_without_a_result_is_told() -> None:
    """The body has nothing to run on."""
    with pytest.raises(BackendError, match="expected the joined object as the result of 'child0', got none"):
        CatSplit(children(Returns(), Doubles(), SplitRows())).forward(arrays(1))


def test_a_body_that_changes_the_number_of_rows_is_told() -> None:
    """SplitRows says what the sizes add up to."""
    with pytest.raises(KernelError, match=r"expected an array of 3 rows to split into \[3\], got shape \(2, 2\)"):
        CatSplit(children(Returns(np.zeros((2, 2))))).forward(arrays(3))
    with pytest.raises(KernelError, match=r"expected an array of 3 rows to split into \[3\], got a list"):
        CatSplit(children(Returns([1]))).forward(arrays(3))


def test_a_body_moves_no_border_between_two_items() -> None:
    """It is one of the items' requests that would get others' rows; with SplitRows named, the sizes are the body's."""

    class Resizes(Backend):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["sizes"][:] = [2, 1]
                request["sizes"] = [3, 0]
                request["result"] = request["data"]

    batch = arrays(1, 2)
    CatSplit(children(Resizes())).forward(batch)
    assert [request["result"].tolist() for request in batch] == [[[0, 0]], [[1, 1]] * 2]
    batch = arrays(1, 2)
    CatSplit(children(Concatenate(), Resizes(), SplitRows())).forward(batch)
    assert [len(request["result"]) for request in batch] == [3, 0]


@pytest.mark.parametrize("rows", [0, 2, 4])
def test_too_few_rows_or_too_many_fail_every_item_of_the_batch(rows: int) -> None:
    """Nobody gets a part of a whole that was cut in the wrong places."""
    batch = arrays(1, 2)
    body = Returns(np.zeros((rows, 2)))
    body.retry_alone = False
    with pytest.raises(ItemErrors) as caught:
        CatSplit(children(body)).forward(batch)
    assert sorted(caught.value.errors) == [0, 1]
    assert all(f"got shape ({rows}, 2)" in str(error) for error in caught.value.errors.values())
    assert not any("result" in request for request in batch)


@pytest.mark.parametrize("sizes", [[4, -1], [1.5, 1.5], [True, 2], None, 3, "12", b"12"])
def test_sizes_that_are_no_numbers_of_rows_are_refused(sizes: Any) -> None:
    """Negative ones would hand out rows twice though their sum is right; the neighbour is split."""
    batch: list[Request] = [{"data": np.zeros((3, 2)), "sizes": each} for each in (sizes, [1, 2])]
    with pytest.raises(ItemErrors) as caught:
        SplitRows().forward(batch)
    assert list(caught.value.errors) == [0]
    assert "expected sizes as a list of numbers of rows, 0 or more each, got" in str(caught.value.errors[0])
    assert [len(part) for part in batch[1]["result"]] == [1, 2]


# ---- failures --------------------------------------------------------------------------------------------------------


def test_one_bad_item_fails_alone() -> None:
    """A failed whole is run again item by item; other groups are not."""
    body = Doubles()
    batch = [*arrays(1, 2), {"data": np.full((1, 2), 13)}, *arrays(1, width=3)]
    with pytest.raises(ItemErrors) as caught:
        CatSplit(children(body)).forward(batch)
    assert {index: str(error) for index, error in caught.value.errors.items()} == {2: "13"}
    assert caught.value.errors[2].__notes__ == ["in step 'child0'"]
    assert body.shapes == [(4, 2), (1, 2), (2, 2), (1, 2), (1, 3)]
    assert ["result" in request for request in batch] == [True, True, False, True]


def test_without_retry_alone_the_whole_fails() -> None:
    """Every item of it, and no other."""
    batch = [*arrays(1), {"data": np.full((1, 2), 13)}, *arrays(1, width=3)]
    with pytest.raises(ItemErrors) as caught:
        CatSplit(children(Doubles(retry_alone=False))).forward(batch)
    assert sorted(caught.value.errors) == [0, 1]
    assert "in a batch of 2" in caught.value.errors[0].__notes__


def test_a_single_item_raises_the_exception_itself() -> None:
    """Nothing is wrapped."""
    with pytest.raises(ValueError, match="13"):
        CatSplit(children(Doubles())).forward([{"data": np.full((1, 2), 13)}])


# ---- the halves ------------------------------------------------------------------------------------------------------


def test_the_halves_alone() -> None:
    """As steps of a Sequential they undo each other; what does not fit fails alone."""
    whole: Request = {"data": [np.zeros((2, 3)), np.ones((1, 3))]}
    Concatenate().forward([whole])
    assert (whole["result"].shape, whole["sizes"]) == ((3, 3), [2, 1])
    whole["data"] = whole.pop("result")
    SplitRows().forward([whole])
    assert [part.shape for part in whole["result"]] == [(2, 3), (1, 3)]
    wrong: list[Request] = [
        {"data": [np.zeros((2, 3)), np.zeros((2, 4))]},
        {"data": []},
        {"data": [np.zeros((2, 3)), np.zeros((2, 3), np.int8)]},
        {"data": [np.zeros((2, 3))]},
    ]
    with pytest.raises(ItemErrors) as caught:
        Concatenate().forward(wrong)
    assert {index: str(error) for index, error in caught.value.errors.items()} == {
        0: "expected arrays like the first, of shape (n, ...) = (2, 3), float64, to join; got (2, 4), float64",
        1: "expected a list of arrays to join, got []",
        2: "expected arrays like the first, of shape (n, ...) = (2, 3), float64, to join; got (2, 3), int8",
    }
    assert "result" in wrong[3]


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_body_or_all_three(count: int) -> None:
    """Another number of children makes no sense."""
    with pytest.raises(ConfigError, match=f"CatSplit takes a body, or cat, body and split; got {count} children"):
        CatSplit(children(*[Doubles() for _ in range(count)]))


def test_filters_are_refused_and_threads_kept() -> None:
    """No filter stands in front of the three; one that must stay on its thread binds the whole."""
    with pytest.raises(ConfigError, match="CatSplit asks no filters"):
        CatSplit([Child("a", Doubles(), filter=lambda request: None)])
    assert CatSplit(children(Doubles(thread_bound=True))).thread_bound
    assert not CatSplit(children(Doubles())).thread_bound
