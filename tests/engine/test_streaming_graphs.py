"""Streams in batches and in graphs: who waits for whom, and whose chunks are read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import WAIT_S, Adds, until
from streaming_backends import WHOLE_BATCHES, Counts, by_all_readers, in_one_batch

import fastpipe
from fastpipe import Backend, ConfigError, Pipe, Request, Sequential, Step, Streaming
from fastpipe.backends.flow.catsplit import CatSplit
from fastpipe.contract import Child


class Emits(Backend):
    """Works on a batch as a model does that makes a token for each request in turn."""

    streams = True
    max_batch = 8

    def forward(self, batch: list[Request]) -> None:
        for number in range(max(request["data"] for request in batch)):
            for request in batch:
                if number < request["data"]:
                    fastpipe.emit(request, number)
        for request in batch:
            request["result"] = request["data"]


# ---- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Counts, Emits])
def test_streams_of_one_batch_are_read_one_after_the_other(kind: type[Backend]) -> None:
    """Each ends when it has ended: a reader of several does not wait for what it reads later.

    ``Emits`` tells all ends at its own: it does not say ``finish``.
    """
    with in_one_batch(kind) as pipe:
        wanted = [80] * 8 if kind is Counts else [3 + index for index in range(8)]  # the buffers hold all of the latter
        chunks = [pipe.stream({"data": count}) for count in wanted]
        assert [list(each) for each in chunks] == [list(range(count)) for count in wanted]
        assert pipe.stats()["nodes"]["words"]["batches"] == 1


def test_a_slow_reader_does_not_stop_the_others_of_its_batch() -> None:
    """Its generator is passed over."""
    with in_one_batch(Counts) as pipe:
        slow, *others = [pipe.stream({"data": count}, buffer=2) for count in (50, 50, 50, 1, 1, 1, 1, 1)]
        assert [list(each) for each in others] == [list(range(50))] * 2 + [[0]] * 5
        assert pipe.stats()["requests"]["done"] == 7
        assert list(slow) == list(range(50))


def test_who_leaves_ends_its_generator_alone() -> None:
    """And who fails; the rest of the batch goes on."""

    class Picky(Counts):
        def run(self, request: Request) -> Iterator[int]:
            for number in super().run({"data": 50}):
                if number == request["data"]:
                    raise ValueError(f"no {number}")
                yield number

    with in_one_batch(Picky) as pipe:
        leaves, fails, *others = [pipe.stream({"data": number}) for number in (99, 20, *[99] * 6)]
        assert next(leaves) == 0
        leaves.close()
        with pytest.raises(ValueError, match="no 20") as raised:
            list(fails)
        assert any("node 'words', backend Picky, instance 0, batch of 8" in note for note in raised.value.__notes__)
        assert [list(each) for each in others] == [list(range(50))] * 6
        requests = pipe.stats()["requests"]
        assert (requests["done"], requests["failed"], requests["cancelled"]) == (6, 1, 1)
        assert pipe.stats()["nodes"]["words"]["failed"] == 1


def test_a_request_that_is_done_goes_on_while_its_batch_runs() -> None:
    """``finish``: it is at the next node, and then answered, before ``forward`` returns."""
    goes_on = threading.Event()
    said: list[bool] = []

    class Finishes(Backend):
        max_batch = 8
        streams = True

        def forward(self, batch: list[Request]) -> None:
            first, *others = batch
            first["result"] = first["data"]
            said.append(fastpipe.finish(self, first))
            said.append(fastpipe.emit(first, "late"))
            said.append(fastpipe.cancelled(first))
            said.append(fastpipe.finish(self, first))
            assert goes_on.wait(WAIT_S)
            for request in others:
                request["result"] = request["data"]

    with Pipe(
        words={"backend": Finishes, "next": "last", **WHOLE_BATCHES},
        last={"backend": Adds},
    ) as pipe:
        futures = [pipe.submit({"data": number}) for number in range(8)]
        until(lambda: any(future.done() for future in futures))
        (first,) = [future for future in futures if future.done()]
        assert first.result()["result"] == futures.index(first) + 1
        assert said == [True, False, True, True]
        goes_on.set()
        assert [future.result(WAIT_S)["result"] for future in futures] == list(range(1, 9))
        assert pipe.stats()["requests"]["done"] == 8
        assert pipe.stats()["nodes"]["words"]["requests"] == 8


# ---- graphs --------------------------------------------------------------------------------------------------------


class Tagged(Streaming):
    """Yields its data twice, with the node's name, and passes it on."""

    def __init__(self, *, node_name: str) -> None:
        self.name = node_name

    def run(self, request: Request) -> Iterator[str]:
        for index in range(2):
            yield f"{self.name}{index} {request['data']}"
        request["result"] = request["data"]


def test_chunks_of_all_nodes_on_the_way_are_read() -> None:
    """Of nodes in a row one after the other; of branches as they come; the answer is the last node's."""
    row = {"a": {"backend": Tagged, "next": "b"}, "b": {"backend": Adds, "next": "c"}, "c": {"backend": Tagged}}
    with Pipe(row) as pipe:
        request: Request = {"data": 1}
        assert by_all_readers(pipe, request) == ["a0 1", "a1 1", "c0 2", "c1 2"]
        assert request["result"] == 2
        assert by_all_readers(pipe, {"data": 1}, entry="b") == ["c0 2", "c1 2"]
    branches = {
        "root": {"backend": "Identity", "next": "a,b"},
        "a": {"backend": Tagged, "next": "join"},
        "b": {"backend": Tagged, "next": "join"},
        "join": {"backend": "Identity", "map": "a[result:data],b[result:other]"},
    }
    with Pipe(branches) as pipe:
        request = {"data": 7}
        chunks = list(pipe.stream(request, buffer=1))
        assert sorted(chunks) == ["a0 7", "a1 7", "b0 7", "b1 7"]
        assert chunks.index("a0 7") < chunks.index("a1 7")
        assert request["result"] == request["other"] == 7


def test_a_pipe_that_does_not_stream_has_no_chunks() -> None:
    """The answer is in the dict all the same."""
    with Pipe(backend=Adds) as pipe:
        request: Request = {"data": 1}
        assert by_all_readers(pipe, request) == []
        assert request["result"] == 2


def test_a_step_of_a_sequential_streams() -> None:
    """One request at a time; batches are refused when the pipe is built, as all would end with the slowest reader."""
    steps = Sequential(Step(Adds), Step(Counts), Step("Identity"))
    with Pipe(backend=steps) as pipe:
        request: Request = {"data": 30}
        assert by_all_readers(pipe, request) == request["result"] == list(range(31))
    with pytest.raises(
        ConfigError, match="node 'main': a step of it streams: it takes one request at a time, and max is"
    ):
        Pipe(backend=steps, max=4)
    with pytest.raises(ConfigError, match="CatSplit joins requests"):
        CatSplit([Child("Counts", Counts())])


def test_only_a_step_whose_parts_stream_takes_one_request_at_a_time() -> None:
    """However far behind; what streams elsewhere in the graph does not matter."""
    steps = Sequential(Step("Identity"), Step("MapReduce", jump="inner"))
    nodes: dict[str, Any] = {
        "outer": {"backend": steps, "max": 4, "next": "tells"},
        "tells": {"backend": Counts, "max": 4},
        "inner": {"backend": "Identity", "next": "behind"},
    }
    with Pipe(nodes, behind={"backend": "Identity"}) as pipe:
        assert list(pipe.stream({"data": 2}, entry="tells")) == [0, 1]
    with pytest.raises(ConfigError, match="node 'outer': a step of it streams"):
        Pipe(nodes, behind={"backend": Counts})


@pytest.mark.parametrize("as_step", [False, True])
@pytest.mark.parametrize("kind", ["Jump", "MapReduce", "Proxy"])
def test_parts_of_a_request_emit_into_its_stream(kind: str, as_step: bool) -> None:
    """A sub-graph that is a node, or a step of a Sequential."""
    own = {"proxy": "inner"} if kind == "Proxy" else {"jump": "inner"}
    step = Step(kind, **own)
    pipe = Pipe(
        outer={"backend": Sequential(Step("Identity"), step) if as_step else kind, **({} if as_step else own)},
        inner={"backend": Counts, "instance_num": 2},
    )
    with pipe:
        data = [20, 3] if kind == "MapReduce" else 20
        request: Request = {"data": data}
        chunks = sorted(pipe.stream(request, entry="outer", buffer=1))
        assert chunks == sorted([*range(20), *range(3)] if kind == "MapReduce" else range(20))
        wholes = [list(range(20)), list(range(3))]
        assert request["result"] == (wholes if kind == "MapReduce" else wholes[0])


def test_a_loop_emits_in_every_round() -> None:
    """Restarts are one request, and one stream."""

    class Again(Tagged):
        def run(self, request: Request) -> Iterator[str]:
            yield from super().run(request)
            request["result"] = request["data"] + 1
            if request["data"] < 2:
                request["restart"] = "a"

    with Pipe(a={"backend": Again}) as pipe:
        assert by_all_readers(pipe, {"data": 0}) == [f"a{index} {round_}" for round_ in range(3) for index in range(2)]
