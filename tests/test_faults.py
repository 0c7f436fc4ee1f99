"""Backends in trouble: memory that runs out, devices that are lost, and calls that wait for themselves."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import Any

import pytest

from fastpipe import Backend, CallLoop, DeviceLost, Pipe, Request, Status
from fastpipe._faults import is_device_lost, is_out_of_memory

WAIT_S = 20.0


class OutOfMemoryError(RuntimeError):
    """Named as torch's and CuPy's are."""


class Fits(Backend):
    """Holds four requests, and one that is marked ``big`` never."""

    max_batch = 16

    def __init__(self, *, sizes: list[int], kind: type[Exception] = MemoryError) -> None:
        self.sizes = sizes
        self.kind = kind
        self.opened, self.inside = threading.Event(), threading.Event()

    def forward(self, batch: list[Request]) -> None:
        if batch[0]["data"] == "first":
            self.inside.set()
            assert self.opened.wait(WAIT_S)
        self.sizes.append(len(batch))
        for request in batch:
            request["half"] = True
        if len(batch) > 4 or any(request["data"] == "big" for request in batch):
            raise self.kind("no room")
        for request in batch:
            assert request.pop("half")
            request["result"] = request["data"]


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MemoryError, OutOfMemoryError])
def test_p15_a_batch_for_which_memory_ran_out_is_run_in_halves(kind: type[Exception]) -> None:
    """16 become 8 and 8, and those fours; each request is as it was before. Only what does not fit alone fails."""
    sizes: list[int] = []
    backend = Fits(sizes=sizes, kind=kind)
    with Pipe(backend=backend, batching="greedy") as pipe:
        first = pipe.submit({"data": "first"})
        assert backend.inside.wait(WAIT_S)
        futures = [pipe.submit({"data": "big" if index == 5 else index}) for index in range(16)]
        backend.opened.set()
        assert first.result(WAIT_S)["result"] == "first"
        for index, future in enumerate(futures):
            if index == 5:
                with pytest.raises(kind, match="no room"):
                    future.result(WAIT_S)
            else:
                assert future.result(WAIT_S)["result"] == index
        assert sizes == [1, 16, 8, 4, 4, 2, 1, 1, 2, 8, 4, 4]
        assert pipe.stats()["nodes"]["main"]["halved"] == 5
        assert pipe.health()["healthy"]


@pytest.mark.parametrize(
    ("error", "memory", "lost"),
    [
        (MemoryError(), True, False),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("cudaErrorLaunchFailure: unspecified launch failure"), False, True),
        (DeviceLost("gone"), False, True),
        (ValueError("an illegal memory access was encountered"), False, False),
        (RuntimeError("shape mismatch"), False, False),
    ],
)
def test_trouble_is_known_by_type_and_words(error: Exception, memory: bool, lost: bool) -> None:
    """Without importing the libraries that raise it."""
    assert is_out_of_memory(error) is memory
    assert is_device_lost(error) is lost


# ---- lost devices ----------------------------------------------------------------------------------------------------


def test_p16_a_lost_device_fails_what_waits_and_what_comes_and_shows() -> None:
    """The backend is not asked again; the other node goes on."""
    calls: list[Any] = []
    opened, inside = threading.Event(), threading.Event()

    class Gpu(Backend):
        max_batch = 4

        def forward(self, batch: list[Request]) -> None:
            calls.append(len(batch))
            inside.set()
            assert opened.wait(WAIT_S)
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with Pipe(gpu={"backend": Gpu}, cpu={"backend": "Identity"}) as pipe:
        futures = [pipe.submit({"data": 0, "node_name": "gpu"})]
        assert inside.wait(WAIT_S)
        futures += [pipe.submit({"data": index, "node_name": "gpu"}) for index in range(20)]
        assert pipe.health() == {"healthy": True, "problems": []}
        opened.set()
        for future in futures:
            with pytest.raises(DeviceLost, match="node 'gpu' has lost its device: RuntimeError: CUDA error") as raised:
                future.result(WAIT_S)
            assert isinstance(raised.value.__cause__, RuntimeError)
        with pytest.raises(DeviceLost):
            pipe({"data": 1, "node_name": "gpu"})
        assert pipe({"data": 1, "node_name": "cpu"})["result"] == 1
        health = pipe.health()
        assert not health["healthy"]
        assert "node 'gpu' has lost its device" in health["problems"][0]
    assert calls == [1]
    assert "the pipe is closed" in pipe.health()["problems"]


# ---- a backend that calls its own pipe -------------------------------------------------------------------------------


class Recurses(Backend):
    """Computes a factorial by calling its own pipe."""

    pipe: Pipe

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            number = request["data"]
            request["result"] = 1 if number <= 1 else number * self.pipe({"data": number - 1})["result"]


def test_a_backend_may_call_its_own_pipe_while_instances_are_free() -> None:
    """Five deep on five instances."""

    class Own(Recurses):
        pass

    with Pipe(backend=Own, instance_num=5) as pipe:
        Own.pipe = pipe
        assert pipe({"data": 5})["result"] == 120
        del Own.pipe


@pytest.mark.parametrize("way", ["call", "submit", "list"])
def test_a_call_that_would_wait_for_itself_is_refused(way: str) -> None:
    """Six deep on five instances: the innermost raises, and so does everything around it; then the pipe goes on."""

    class Own(Recurses):
        def forward(self, batch: list[Request]) -> None:
            if way == "call":
                super().forward(batch)
                return
            for request in batch:
                number = request["data"]
                inner: Request = {"data": number - 1}
                if number > 1:
                    self.pipe([inner, {"data": 1}] if way == "list" else inner)
                request["result"] = number * inner.get("result", 1)

    with Pipe(backend=Own, instance_num=2) as pipe:
        Own.pipe = pipe
        with pytest.raises((CallLoop, ExceptionGroup)) as raised:
            pipe({"data": 6}) if way != "submit" else pipe.submit({"data": 6}).result(WAIT_S)
        error: Any = raised.value
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        assert "queued at node 'main'; but all instances of 'main' wait for such calls" in str(error)
        assert pipe({"data": 1})["result"] == 1
        assert pipe.stats()["requests"]["in_flight"] == 0
        del Own.pipe


def test_two_nodes_that_wait_for_each_other_are_found() -> None:
    """a calls b, whose only instance calls a, whose only instance waits."""
    pipes: list[Pipe] = []

    class Calls(Backend):
        def __init__(self, *, other: str) -> None:
            self.other = other

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                if request["data"] > 0:
                    pipes[0]({"data": request["data"] - 1, "node_name": self.other})
                request["result"] = request["data"]

    with Pipe(a={"backend": Calls, "other": "b"}, b={"backend": Calls, "other": "a"}) as pipe:
        pipes.append(pipe)
        assert pipe({"data": 1, "node_name": "a"})["result"] == 1
        with pytest.raises(CallLoop, match="'a' and 'b' wait for such calls"):
            pipe({"data": 2, "node_name": "a"})
        assert pipe({"data": 1, "node_name": "b"})["result"] == 1
        pipes.clear()


def test_a_call_that_only_has_to_wait_is_not_refused() -> None:
    """The instance that it needs is held by somebody who does not wait for it; several slices long."""
    opened, inside = threading.Event(), threading.Event()
    pipes: list[Pipe] = []

    class Inner(Backend):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                if request["data"] == "held":
                    inside.set()
                    assert opened.wait(WAIT_S)
                request["result"] = request["data"]

    class Outer(Backend):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = pipes[0]({"data": "inner", "node_name": "inner"})["result"]

    with Pipe(outer={"backend": Outer}, inner={"backend": Inner}) as pipe:
        pipes.append(pipe)
        held = pipe.submit({"data": "held", "node_name": "inner"})
        assert inside.wait(WAIT_S)
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            outer = executor.submit(pipe, {"data": 1, "node_name": "outer"})
            with pytest.raises(concurrent.futures.TimeoutError):
                outer.result(0.2)
            opened.set()
            assert outer.result(WAIT_S)["result"] == "inner"
        assert held.result(WAIT_S)["result"] == "held"
        pipes.clear()


@pytest.mark.parametrize("way", ["call", "submit"])
def test_a_filter_that_calls_its_own_pipe(way: str) -> None:
    """On its caller's thread no instance is held meanwhile; on a worker's, a call that would wait for it is refused."""
    pipes: list[Pipe] = []

    def asks(request: Request) -> Status:
        if request["data"] == 7:
            pipes[0]({"data": 1})
        return Status.Run

    with Pipe(a={"backend": "Pow", "next": "b"}, b={"backend": "Identity", "filter": asks}) as pipe:
        pipes.append(pipe)
        if way == "call":
            assert pipe({"data": 7})["result"] == 7
        else:
            with pytest.raises(CallLoop):
                pipe.submit({"data": 7}).result(WAIT_S)
        assert pipe({"data": 2})["result"] == 2
        pipes.clear()
