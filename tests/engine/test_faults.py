"""Backends in trouble: memory that runs out, devices that are lost, and calls that wait for themselves."""

from __future__ import annotations

import concurrent.futures
import sys
import threading
import types
from typing import Any

import pytest

from fastpipe import Backend, CallLoop, DeviceLost, Pipe, Request, Sequential, Status, Step
from fastpipe.faults import is_device_lost, is_out_of_memory

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


@pytest.mark.parametrize("kind", [MemoryError, OutOfMemoryError])
def test_a_request_that_lacks_memory_costs_its_neighbours_a_few_runs_and_no_more(kind: type[Exception]) -> None:
    """Whoever chooses what raises it: they are answered, and the next batch is as large as ever."""
    sizes: list[int] = []
    with Pipe(backend=Fits(sizes=sizes, kind=kind), batching="greedy") as pipe:
        for _ in range(3):
            requests: list[Request] = [{"data": "big" if index == 2 else index} for index in range(4)]
            with pytest.raises(ExceptionGroup, match="1 of 4"):
                pipe(requests)
            assert [request.get("result") for request in requests] == [0, 1, None, 3]
        assert sizes == [4, 2, 2, 1, 1] * 3
        assert pipe.health()["healthy"]


def test_trouble_with_memory_is_known_by_type() -> None:
    """Without importing the libraries that raise it."""
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not is_out_of_memory(RuntimeError("CUDA out of memory"))


# ---- lost devices ----------------------------------------------------------------------------------------------------


STICKY = "CUDA error: an illegal memory access was encountered"
NAMES = [
    ("torch", "AcceleratorError"),
    ("cupy_backends.cuda.api.runtime", "CUDARuntimeError"),
    ("cupy_backends.cuda.api.driver", "CUDADriverError"),
    ("fastpipe.kernels._cuda_device", "CudaError"),
]


def error_of(module: str, name: str, text: str, **attributes: Any) -> Exception:
    """Return an error of a type that is named as a library's."""
    error: Exception = type(name, (RuntimeError,), {"__module__": module})(text)
    vars(error).update(attributes)
    return error


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each library had been imported."""
    for module, _ in NAMES:
        if module not in sys.modules:
            monkeypatch.setitem(sys.modules, module, types.ModuleType(module))


class OnDevice(Backend):
    """At a place, with a device that answers or does not, and what is asked of it."""

    place = "cuda:1"

    def __init__(self, answer: Any = False) -> None:
        self.answer = answer
        self.asked = 0

    def is_device_alive(self) -> bool:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return bool(self.answer)


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(("module", "name"), NAMES)
@pytest.mark.parametrize(
    ("text", "attributes", "is_sticky"),
    [
        (STICKY, {}, True),
        ("no words", {"status": 700}, True),
        ("no words", {"error_code": 710}, True),
        (STICKY, {"status": 2}, False),  # the number counts where there is one
        ("CUDA error: invalid argument", {}, False),
    ],
)
@pytest.mark.parametrize("answer", [True, False, RuntimeError("the same again")], ids=["alive", "dead", "raises"])
def test_a_device_is_lost_if_its_library_says_so_and_it_does_not_answer(
    module: str, name: str, text: str, attributes: dict[str, Any], is_sticky: bool, answer: Any
) -> None:
    """By the type, and the number or the words, of the error; then by what the backend's own look at it says."""
    backend = OnDevice(answer)
    assert is_device_lost(error_of(module, name, text, **attributes), backend) is (is_sticky and answer is not True)
    assert backend.asked == is_sticky


@pytest.mark.parametrize(
    "error",
    [RuntimeError(STICKY), ValueError(STICKY), OutOfMemoryError(STICKY), OSError(STICKY), KeyError(STICKY)],
    ids=lambda error: type(error).__name__,
)
def test_words_alone_lose_no_device(error: Exception) -> None:
    """They may be a request's: nobody even asks the device."""
    backend = OnDevice()
    assert not is_device_lost(error, backend)
    assert backend.asked == 0


def test_the_type_of_a_library_that_nobody_has_imported_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be that library's."""
    monkeypatch.delitem(sys.modules, "cupy_backends.cuda.api.driver", raising=False)
    assert not is_device_lost(error_of("cupy_backends.cuda.api.driver", "CUDADriverError", STICKY), OnDevice())


class WithoutHook(Backend):
    """Says where it is, and leaves the look at its device to others."""

    def __init__(self, place: Any) -> None:
        self.place = place


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(("place", "is_dead", "lost"), [("cuda:1", True, True), ("cuda:1", False, False),
                                                        (None, True, False), ("nowhere", True, False)])  # fmt: skip
@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_without_a_look_of_its_own_the_library_at_hand_looks(
    library: str, place: Any, is_dead: bool, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the device on which the backend is; a backend on none loses none."""
    looked: list[int] = []

    def synchronize(number: int = 1) -> None:
        looked.append(number)
        if is_dead:
            raise RuntimeError(STICKY)

    stand_in = types.ModuleType(library)
    if library == "torch":
        stand_in.cuda = types.SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)  # type: ignore[attr-defined]
    else:
        device = types.SimpleNamespace(synchronize=synchronize)
        stand_in.cuda = types.SimpleNamespace(Device=lambda number: device)  # type: ignore[attr-defined]
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setitem(sys.modules, library, stand_in)
    error = error_of("cupy_backends.cuda.api.driver", "CUDADriverError", STICKY)
    assert is_device_lost(error, WithoutHook(place)) is lost
    assert looked == ([1] if place == "cuda:1" else [])


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("text", [STICKY, "cannot parse 'device-side assert triggered'", "cudaErrorLaunchFailure"])
@pytest.mark.parametrize("place", [None, "cuda:0"])
def test_a_text_that_a_request_chooses_takes_no_node_down(text: str, place: Any) -> None:
    """It fails, with the exception that its backend raised; everybody else is served as before."""

    class Parses(Backend):
        max_batch = 4

        def __init__(self) -> None:
            self.place = place

        def is_device_alive(self) -> bool:
            return True

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                if not isinstance(request["data"], int):
                    raise RuntimeError(f"cannot parse {request['data']!r}")
                request["result"] = request["data"]

    with Pipe(backend=Parses) as pipe:
        for number in range(3):
            with pytest.raises(RuntimeError, match="cannot parse"):
                pipe({"data": text})
            assert pipe({"data": number})["result"] == number
        requests: list[Request] = [{"data": each} for each in (1, text, 3)]
        with pytest.raises(ExceptionGroup, match="1 of 3"):
            pipe(requests)
        assert pipe.health()["healthy"]
        assert pipe.stats()["failures"] == {"error": 4}


@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_the_lost_device_of_an_inner_pipe_is_the_inner_pipes(container: bool, count: int) -> None:
    """A backend that calls another pipe passes its DeviceLost on; its own node goes on."""

    class Lost(Backend):
        def forward(self, batch: list[Request]) -> None:
            if batch[0]["data"] == "lose":
                raise DeviceLost("gone")
            batch[0]["result"] = 1

    class Calls(Backend):
        max_batch = 4

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = 0 if request["data"] == "outer" else inner({"data": request["data"]})["result"]

    with Pipe(backend=Lost) as inner, Pipe(backend=Sequential(Step("Identity"), Calls) if container else Calls) as pipe:
        for _ in range(2):
            requests: list[Request] = [{"data": "lose"}, *[{"data": "outer"}] * (count - 1)]
            with pytest.raises((DeviceLost, ExceptionGroup)) as raised:
                pipe(requests if count > 1 else requests[0])
            error: Any = raised.value.exceptions[0] if isinstance(raised.value, ExceptionGroup) else raised.value
            assert (type(error), error.node) == (DeviceLost, "main")
        assert pipe({"data": "outer"})["result"] == 0
        assert pipe.health()["healthy"]
        assert not inner.health()["healthy"]


@pytest.mark.usefixtures("libraries")
def test_a_device_that_is_lost_in_a_step_of_a_container_is_lost() -> None:
    """Also if the batch had several requests, each of which has met it by itself."""

    class Gpu(Backend):
        max_batch = 4

        def is_device_alive(self) -> bool:
            return False

        def forward(self, batch: list[Request]) -> None:
            raise error_of("cupy_backends.cuda.api.driver", "CUDADriverError", STICKY)

    with Pipe(backend=Sequential(Step("Identity"), Gpu)) as pipe:
        with pytest.raises(ExceptionGroup) as raised:
            pipe([{"data": 1}, {"data": 2}])
        assert {type(error) for error in raised.value.exceptions} == {DeviceLost}
        assert not pipe.health()["healthy"]
        with pytest.raises(DeviceLost):
            pipe({"data": 3})


@pytest.mark.usefixtures("libraries")
def test_p16_a_lost_device_fails_what_waits_and_what_comes_and_shows() -> None:
    """The backend is not asked again; the other node goes on."""
    calls: list[Any] = []
    opened, inside = threading.Event(), threading.Event()

    class Gpu(Backend):
        max_batch = 4

        def is_device_alive(self) -> bool:
            return False

        def forward(self, batch: list[Request]) -> None:
            calls.append(len(batch))
            inside.set()
            assert opened.wait(WAIT_S)
            raise error_of("cupy_backends.cuda.api.driver", "CUDADriverError", STICKY)

    with Pipe(gpu={"backend": Gpu}, cpu={"backend": "Identity"}) as pipe:
        futures = [pipe.submit({"data": 0, "node_name": "gpu"})]
        assert inside.wait(WAIT_S)
        futures += [pipe.submit({"data": index, "node_name": "gpu"}) for index in range(20)]
        assert pipe.health() == {"healthy": True, "problems": []}
        opened.set()
        for future in futures:
            with pytest.raises(
                DeviceLost, match="node 'gpu' has lost its device: CUDADriverError: CUDA error"
            ) as raised:
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
