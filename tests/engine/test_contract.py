"""What a backend may build on: a request's failure that is its own, in one pass or in several."""

from __future__ import annotations

import pytest

import fastpipe
from fastpipe import ItemErrors, Request
from fastpipe.contract import raise_failed, run_each


class Reciprocal(fastpipe.PerRequest):
    """Notes what it was asked for."""

    def __init__(self) -> None:
        self.ran: list[object] = []

    def run(self, request: Request) -> None:
        self.ran.append(request["data"])
        request["result"] = 1 / request["data"]


def test_a_request_that_raises_fails_alone_and_none_is_run_twice() -> None:
    """Neither by the backend nor, afterwards, by the engine."""
    backend = Reciprocal()
    batch = [{"data": 4}, {"data": 0}, {"data": "no number"}, {"data": 2}]
    with pytest.raises(ItemErrors) as caught:
        backend.forward(batch)
    assert {index: type(error) for index, error in caught.value.errors.items()} == {1: ZeroDivisionError, 2: TypeError}
    assert [request.get("result") for request in batch] == [0.25, None, None, 0.5]
    assert backend.ran == [4, 0, "no number", 2]
    assert not backend.retry_alone


def test_a_single_request_fails_with_its_own_exception() -> None:
    """As its caller, who has no batch, expects it."""
    with pytest.raises(ZeroDivisionError):
        Reciprocal().forward([{"data": 0}])


def test_in_a_pipe_the_others_of_a_batch_have_their_results() -> None:
    """The contract, as a user sees it."""
    with fastpipe.Pipe(backend=Reciprocal, max=8) as pipe:
        requests = [{"data": 4}, {"data": 0}]
        with pytest.raises(ExceptionGroup) as caught:
            pipe(requests)
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
    assert requests[0]["result"] == 0.25


def test_a_second_pass_leaves_out_who_failed_in_the_first() -> None:
    """And tells of both passes."""
    batch = [{"data": "a"}, {"data": 0}, {"data": 2}]
    numbers: list[float] = []
    failed = run_each(batch, lambda request: numbers.append(float(request["data"])))
    failed = run_each(batch, lambda request: request.update(result=1 / request["data"]), failed)
    assert numbers == [0, 2]
    assert {index: type(error) for index, error in failed.items()} == {0: ValueError, 1: ZeroDivisionError}
    with pytest.raises(ItemErrors) as caught:
        raise_failed(failed, batch)
    assert caught.value.errors == failed


def test_without_failures_nothing_is_raised() -> None:
    """Neither by a batch of one that is well, nor by an empty one."""
    failed = run_each([{}], lambda request: None)
    assert failed == {}
    raise_failed(failed, [{}])
    raise_failed(run_each([], lambda request: None), [])


def test_run_is_the_backends_to_write() -> None:
    """The message has the class."""
    with pytest.raises(NotImplementedError, match="PerRequest has no run"):
        fastpipe.PerRequest().forward([{}])


def test_a_backend_may_have_a_method_by_the_name_of_what_containers_have() -> None:
    """As torch's modules do."""

    class Module(fastpipe.Backend):
        def children(self) -> list[object]:
            return [object()]

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = len(self.children())

    with fastpipe.Pipe(backend=Module) as pipe:
        assert pipe({"data": 0})["result"] == 1
