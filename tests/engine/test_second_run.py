"""A batch that has failed and is run again, one by one or in halves: the second run meets what the first one met."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpipe import Backend, BackendError, ItemErrors, Pipe, Request, Sequential, Step, WorkerDied, _core, batched
from fastpipe.backends.flow.catsplit import CatSplit
from fastpipe.backends.flow.composites import Range
from fastpipe.backends.flow.conditions import HasKey
from fastpipe.backends.flow.graphs import MapReduce
from fastpipe.contract import Child, SubGraph

WAIT_S = 20.0


class Own:
    """An object of somebody's."""


class Halves(Backend):
    """Halves arrays in place, then fails those that are marked."""

    max_batch = 8

    def __init__(self, *, kind: type[Exception] = ValueError) -> None:
        self.kind = kind
        self.sizes: list[int] = []

    def forward(self, batch: list[Request]) -> None:
        self.sizes.append(len(batch))
        for request in batch:
            request["data"] /= 2
        if any(request.get("bad") for request in batch):
            raise self.kind("bad")
        for request in batch:
            request["result"] = request["data"]


class KeepsIt(Halves):
    """Says that it changes nothing."""

    keeps_input = True

    def forward(self, batch: list[Request]) -> None:
        self.sizes.append(len(batch))
        if any(request.get("bad") for request in batch):
            raise self.kind("bad")
        for request in batch:
            request["result"] = request["data"]


def outcomes(pipe: Pipe, requests: list[Request]) -> list[BaseException | None]:
    """Run one batch; return each request's error."""
    errors: list[BaseException | None] = [None] * len(requests)
    try:
        pipe(requests)
    except ExceptionGroup as group:
        failed = [index for index, request in enumerate(requests) if "result" not in request]
        for index, error in zip(failed, group.exceptions, strict=True):
            errors[index] = error
    return errors


def arrays(count: int, bad: int) -> list[Request]:
    return [{"data": np.full(2, 8.0), "bad": index == bad} for index in range(count)]


# ---- what the second run meets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ValueError, MemoryError])
def test_what_a_first_run_changed_in_place_is_as_it_was_for_the_second(kind: type[Exception]) -> None:
    """8 / 2 is 4, however often a bad neighbour has its batch run again."""
    backend = Halves(kind=kind)
    with Pipe(backend=backend) as pipe:
        requests = arrays(8, bad=5)
        errors = outcomes(pipe, requests)
    assert [type(error) for error in errors] == [kind if index == 5 else type(None) for index in range(8)]
    for index, request in enumerate(requests):
        if index != 5:
            assert request["result"].tolist() == [4, 4]
    assert backend.sizes[0] == 8
    assert backend.sizes.count(1) == (8 if kind is ValueError else 2)


def test_a_file_in_memory_is_read_from_where_it_stood() -> None:
    """The good one gets its bytes; the bad one fails again, and for the same reason."""

    class Reads(Backend):
        max_batch = 4

        def forward(self, batch: list[Request]) -> None:
            contents = [request["data"].read() for request in batch]
            if b"bad" in contents:
                raise ValueError("bad bytes")
            for request, content in zip(batch, contents, strict=True):
                request["result"] = content

    requests: list[Request] = [{"data": io.BytesIO(content)} for content in (b"one", b"bad", b"two")]
    with Pipe(backend=Reads) as pipe:
        errors = outcomes(pipe, requests)
    assert [type(error) for error in errors] == [type(None), ValueError, type(None)]
    assert [request.get("result") for request in requests] == [b"one", None, b"two"]


@pytest.mark.parametrize("kind", [ValueError, MemoryError])
def test_what_requests_share_is_for_each_of_them_as_it_was(kind: type[Exception]) -> None:
    """Also where a neighbour's second run has changed it meanwhile."""
    shared = np.full(2, 8.0)
    with Pipe(backend=Halves(kind=kind)) as pipe:
        requests: list[Request] = [{"data": shared, "bad": index == 0} for index in range(2)]
        outcomes(pipe, requests)
        assert requests[1]["result"].tolist() == [4, 4]


@pytest.mark.parametrize(
    "container",
    [
        lambda child: Sequential(Step("Identity"), child),
        lambda child: Step("HasKey", child, key="data"),
        lambda child: Step("Range", child, range="1,8"),
        lambda child: Step("CatSplit", Listed, child, Identity),
    ],
    ids=["Sequential", "HasKey", "Range", "CatSplit"],
)
def test_a_step_of_a_container_meets_what_it_met_before(container: Callable[[Any], Any]) -> None:
    """Each container runs again by itself what has failed in one of its steps."""
    with Pipe(backend=container(HalvesAll if container(Halves).name == "CatSplit" else Halves), max=8) as pipe:
        requests = arrays(4, bad=2)
        if container(Halves).name == "CatSplit":
            for request in requests:
                request["data"] = {"array": request["data"], "bad": request["bad"]}
        errors = outcomes(pipe, requests)
        assert [type(error) for error in errors] == [ValueError if index == 2 else type(None) for index in range(4)]
        assert [request["result"].tolist() for index, request in enumerate(requests) if index != 2] == [[4, 4]] * 3


class Listed(Backend):
    """Joins nothing: the whole is the list."""

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = request["data"]


class Identity(Listed):
    pass


class HalvesAll(Backend):
    """Halves the arrays of a list, then fails if one is marked."""

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            for item in request["data"]:
                item["array"] /= 2
            if any(item["bad"] for item in request["data"]):
                raise ValueError("bad")
            request["result"] = [item["array"] for item in request["data"]]


# ---- where there can be none -----------------------------------------------------------------------------------------


def test_what_a_client_nests_deeply_costs_its_neighbours_nothing() -> None:
    """A text of JSON nests lists as deep as its sender likes: the batch is run again all the same."""
    nested = json.loads("[" * 600 + "]" * 600)
    good: Request = {"data": np.ones(1)}
    with Pipe(backend=Halves, max=2) as pipe, pytest.raises(ExceptionGroup) as raised:
        pipe([good, {"data": np.ones(1), "bad": True, "note": nested}])
    assert [str(error) for error in raised.value.exceptions] == ["bad"]
    assert good["result"] == 0.5


@pytest.mark.parametrize("kind", [ValueError, MemoryError])
def test_a_batch_with_a_value_that_cannot_be_copied_is_not_run_again(kind: type[Exception]) -> None:
    """All of its requests fail with its error, which says of which key, what is there, and what to do."""
    backend = Halves(kind=kind)
    requests = arrays(3, bad=1)
    requests[2]["session"] = Own()
    with Pipe(backend=backend) as pipe:
        errors = outcomes(pipe, requests)
        assert outcomes(pipe, arrays(3, bad=9)) == [None] * 3  # nothing remains of it
    assert backend.sizes == [3, 3]
    for error in errors:
        assert type(error) is kind
        (note,) = (note for note in error.__notes__ if "not run again" in note)
        assert "what is under 'session' cannot be copied" in note
        assert "Own" in note
        assert "keeps_input = True" in note
        assert "ItemErrors" in note


def test_in_a_container_it_is_not_run_again_either() -> None:
    """The others' steps have nothing to do with it."""
    requests = arrays(3, bad=1)
    requests[2]["session"] = Own()
    with Pipe(backend=Sequential(Step("Identity"), Halves)) as pipe:
        errors = outcomes(pipe, requests)
    assert {type(error) for error in errors} == {ValueError}
    assert all("under 'session' cannot be copied" in " ".join(error.__notes__) for error in errors if error)


def test_a_backend_that_keeps_its_input_is_run_again_with_anything() -> None:
    """And with the same objects."""
    backend = KeepsIt()
    session = Own()
    requests = [{"data": session, "bad": index == 1} for index in range(3)]
    with Pipe(backend=backend) as pipe:
        errors = outcomes(pipe, requests)
    assert [type(error) for error in errors] == [type(None), ValueError, type(None)]
    assert requests[0]["result"] is session
    assert backend.sizes == [3, 1, 1, 1]


def test_that_a_backend_keeps_its_input_is_not_inherited() -> None:
    """What a subclass does nobody has said."""
    assert KeepsIt.keeps_input
    assert not type("Mine", (KeepsIt,), {}).keeps_input
    assert type("Mine", (KeepsIt,), {"keeps_input": True}).keeps_input


def test_nothing_is_copied_where_there_is_no_second_run() -> None:
    """One request alone, or retry_alone = False: what cannot be copied goes through, and copies nobody asks for."""

    class Once(Halves):
        retry_alone = False

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = id(request["data"])

    with Pipe(backend=Once) as pipe:
        requests: list[Request] = [{"data": Own()} for _ in range(4)]
        assert outcomes(pipe, requests) == [None] * 4
        assert [request["result"] for request in requests] == [id(request["data"]) for request in requests]


def test_batched_may_say_that_it_keeps_its_items() -> None:
    """Then they may be anything."""

    @batched(max=4, keeps_input=True)
    def attribute(items: list[Any]) -> list[Any]:
        return [item.value for item in items]

    good = Own()
    good.value = 3  # type: ignore[attr-defined]
    errors = outcomes(attribute.pipe, requests := [{"data": good}, {"data": Own()}])
    attribute.close()
    assert [type(error) for error in errors] == [type(None), AttributeError]
    assert requests[0]["result"] == 3


def test_a_split_that_fails_fails_its_request_alone() -> None:
    """Where a MapReduce is a step, no second run is needed for that: what cannot be copied may be in there."""
    inner = {"backend": "Identity"}
    with Pipe(main={"backend": "S[MapReduce]", "jump": "inner", "max": 4}, inner=inner) as pipe:
        requests: list[Request] = [{"data": [Own(), Own()], "node_name": "main"}, {"data": 1, "node_name": "main"}]
        errors = outcomes(pipe, requests)
    assert [type(error) for error in errors] == [type(None), TypeError]
    assert requests[0]["result"] == requests[0]["data"]
    assert issubclass(MapReduce, SubGraph)


# ---- Ctrl-C, while a caller helps ------------------------------------------------------------------------------------


class Waits(Backend):
    """Changes its data, and waits where it is told to."""

    max_batch = 4

    def __init__(self, *, act: Callable[[list[Request]], None]) -> None:
        self.act = act

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["data"] /= 2
        self.act(batch)
        for request in batch:
            request["result"] = request["data"].tolist()


@pytest.mark.parametrize("extra", [{}, {"session": Own()}], ids=["copied", "not copied"])
def test_ctrl_c_in_a_batch_with_others_requests(extra: dict[str, Any]) -> None:
    """They go back to the queue as they were; one that cannot be copied fails as if a worker had died."""
    other: list[Any] = []

    def act(batch: list[Request]) -> None:
        if threading.current_thread() is threading.main_thread() and any(request.get("other") for request in batch):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(WAIT_S)

    def queue_another() -> None:
        """Just as the list's requests are queued: the worker has not looked yet."""
        if not other:
            other.append(None)
            other[0] = pipe.submit({"data": np.full(2, 8.0), "other": True, **extra})

    with Pipe(backend=Waits(act=act), batching="greedy") as pipe:
        held = threading.Event()
        _core._hook("take", lambda: threading.current_thread() is threading.main_thread() or held.wait(WAIT_S))
        _core._hook("pushed", queue_another)
        try:
            with pytest.raises(KeyboardInterrupt):
                pipe([{"data": np.full(2, 8.0)} for _ in range(2)])
        finally:
            _core._hook("pushed", None)
            _core._hook("take", None)
            held.set()
        if extra:
            with pytest.raises(WorkerDied, match="KeyboardInterrupt") as raised:
                other[0].result(WAIT_S)
            assert "under 'session' cannot be copied" in " ".join(raised.value.__notes__)
        else:
            assert other[0].result(WAIT_S)["result"] == [4, 4]


# ---- ItemErrors ------------------------------------------------------------------------------------------------------


class Tells(Backend):
    """Fails, by ItemErrors, the requests that are marked; ``name`` says how it names them, ``order`` sorts the list."""

    max_batch = 8

    def __init__(self, *, name: Callable[[list[Request], Request], Any], order: Callable[[list[Request]], Any]) -> None:
        self.name = name
        self.order = order

    def forward(self, batch: list[Request]) -> None:
        self.order(batch)
        bad = [request for request in batch if request.get("bad")]
        for request in batch:
            request["result"] = request["data"]
        raise ItemErrors([(self.name(batch, request), ValueError(request["data"])) for request in bad])


def place(batch: list[Request], request: Request) -> int:
    return next(index for index, each in enumerate(batch) if each is request)


NAMES: dict[str, Callable[[list[Request], Request], Any]] = {
    "request": lambda batch, request: request,
    "index": place,
    "NumPy's index": lambda batch, request: np.int64(place(batch, request)),
}
ORDERS: dict[str, Callable[[list[Request]], Any]] = {
    "as it was": lambda batch: None,
    "sorted": lambda batch: batch.sort(key=lambda request: -request["data"]),
    "reversed": lambda batch: batch.reverse(),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_item_errors_reach_their_own_callers_whatever_the_order(name: str, order: str, depth: int) -> None:
    """By request or by index, the list sorted or not, in a node and in containers; equal requests are not the same."""
    backend: Any = Step(Tells, name=NAMES[name], order=ORDERS[order])
    for _ in range(depth):
        backend = Sequential(Step("Identity"), backend)
    requests = [{"data": number, "bad": number in (1, 4)} for number in (3, 1, 2, 4, 0, 2)]
    with Pipe(backend=backend) as pipe:
        errors = outcomes(pipe, requests)
    assert [error.args[0] if error else None for error in errors] == [None, 1, None, 4, None, None]
    assert [request.get("result") for request in requests] == [3, None, 2, None, 0, 2]


def test_equal_requests_are_told_apart() -> None:
    """The dict itself counts, not what is in it."""

    class First(Backend):
        max_batch = 2

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = 1
            raise ItemErrors([(batch[1], ValueError("the second"))])

    with Pipe(backend=First) as pipe:
        errors = outcomes(pipe, [{"data": 0}, {"data": 0}])
    assert [type(error) for error in errors] == [type(None), ValueError]


ERROR = ValueError("one")
NONSENSE: dict[str, tuple[Callable[[list[Request]], Any], str]] = {
    "a copy": (lambda batch: [(dict(batch[0]), ERROR)], "none of the batch's requests"),
    "twice": (lambda batch: [(batch[0], ERROR), (batch[0], ERROR)], "a second time"),
    "twice by index": (lambda batch: [(1, ERROR), (np.int8(1), ERROR)], "names item .*1.* a second time"),
    "by both": (lambda batch: [(batch[1], ERROR), (1, ERROR)], "a second time"),
    "a bool": (lambda batch: {True: ERROR}, "names item True"),
    "too far": (lambda batch: {3: ERROR}, "a batch of 3 names item 3"),
    "negative": (lambda batch: {-1: ERROR}, "names item -1"),
    "a text": (lambda batch: {"0": ERROR}, "names item '0'"),
    "no exception": (lambda batch: [(batch[0], "text")], "no exception"),
    "a shorter list": (lambda batch: [(int(bool(batch.pop())), ERROR)], "no longer those"),
    "another list": (lambda batch: [(len(batch.__setitem__(0, {}) or []), ERROR)], "no longer those"),
}  # fmt: skip


@pytest.mark.parametrize("name", NONSENSE)
@pytest.mark.parametrize("in_a_container", [False, True])
def test_item_errors_that_name_nobody_are_never_taken_for_a_success(name: str, in_a_container: bool) -> None:
    """All requests of the batch fail, and the error says what is wrong."""
    make, words = NONSENSE[name]

    class Wrong(Backend):
        max_batch = 4

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = 1
            raise ItemErrors(make(batch))

    with Pipe(backend=Sequential(Step("Identity"), Wrong) if in_a_container else Wrong) as pipe:
        errors = outcomes(pipe, [{"data": number} for number in range(3)])
    for error in errors:
        assert type(error) is BackendError
        with pytest.raises(BackendError, match=words):
            raise error


def test_a_request_can_be_named_when_the_list_has_become_another() -> None:
    """By identity, it is still known."""

    class Eats(Backend):
        max_batch = 4

        def forward(self, batch: list[Request]) -> None:
            failed = []
            while batch:
                request = batch.pop()
                request["result"] = request["data"]
                if request["data"] == 1:
                    failed.append((request, ValueError("1")))
            raise ItemErrors(failed)

    with Pipe(backend=Eats) as pipe:
        errors = outcomes(pipe, [{"data": number} for number in range(3)])
    assert [type(error) for error in errors] == [type(None), ValueError, type(None)]


# ---- the box ---------------------------------------------------------------------------------------------------------


def test_containers_keep_their_input_if_all_of_their_steps_do() -> None:
    """CatSplit, which joins arrays into a new one, whatever its body does."""
    keeping, changing = Child("A", KeepsIt()), Child("B", Halves())
    for make in (
        lambda *children: HasKey(list(children), key="data"),
        lambda *children: Range(list(children), range=(1, 8)),
    ):
        assert make(keeping, keeping).keeps_input
        assert not make(keeping, changing).keeps_input
    assert CatSplit([changing]).keeps_input
    assert not CatSplit([keeping, changing, keeping]).keeps_input


def test_a_failed_first_run_leaves_nothing_behind_in_a_file(tmp_path: Path) -> None:
    """What is open for reading cannot be copied: it is not read twice."""
    path = tmp_path / "numbers"
    path.write_bytes(b"12")

    class Reads(Backend):
        max_batch = 2

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = request["data"].read(1)
            raise ValueError("afterwards")

    with path.open("rb") as file, Pipe(backend=Reads) as pipe:
        errors = outcomes(pipe, [{"data": file}, {"data": file}])
        assert {type(error) for error in errors} == {ValueError}
        assert file.tell() == 2
