"""One stream per instance, one synchronisation at the outermost: against CUDA's rules without a GPU."""

from __future__ import annotations

import functools
import importlib.util
import sys
import threading
from collections.abc import Iterator
from typing import Any

import fake_cuda
import pytest

import fastpipe
from fastpipe.backends.gpu.streams import InstanceStream, gpu_count, hand_over
from fastpipe.backends.gpu.synchronization import SyncTensor
from fastpipe.errors import ConfigError, MissingExtra


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two GPUs, and neither library imported."""
    for name in ("torch", "cupy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return fake_cuda.Driver(gpus=2)


@pytest.fixture
def torch(driver: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = fake_cuda.fake_torch(driver)
    monkeypatch.setitem(sys.modules, "torch", made)
    return made


@pytest.fixture
def cupy(driver: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = fake_cuda.fake_cupy(driver)
    monkeypatch.setitem(sys.modules, "cupy", made)
    return made


def test_the_work_is_done_on_a_stream_of_its_own_when_it_is_left(driver: Any, torch: Any) -> None:
    """It is made when it is first entered, used again and again, and what was current comes back."""
    stream = InstanceStream(1)
    assert len(driver.queues) == 2
    done: list[str] = []
    for count in (1, 2):
        with stream.entered() as current:
            assert current.is_outermost
            assert torch.library.device() == 1
            assert torch.library.current(1).handle == current.handle != 0
            torch.library.run(lambda: done.append("work"))
            assert len(done) == count - 1
        assert len(done) == count
        assert driver.synchronizations == count
        assert torch.library.device() == 0
        assert torch.library.current(1).handle == 0
    assert len(driver.queues) == 3


def test_it_waits_for_what_was_queued_before(driver: Any, torch: Any, cupy: Any) -> None:
    """On the streams that torch and CuPy had in this thread."""
    order: list[str] = []
    other = torch.cuda.Stream(0)
    with torch.cuda.stream(other):
        torch.library.run(lambda: order.append("torch, before"))
        cupy.library.run(lambda: order.append("CuPy, before"))
        with InstanceStream(0).entered():
            cupy.library.run(lambda: order.append("CuPy, within"))
            torch.library.run(lambda: order.append("torch, within"))
        assert torch.library.current(0) is other
    assert sorted(order[:2]) == ["CuPy, before", "torch, before"]
    assert order[2:] == ["CuPy, within", "torch, within"]


@pytest.mark.parametrize("names", [("torch", "cupy"), ("cupy", "torch")], ids=str)
def test_a_library_that_is_imported_later_comes_to_the_same_stream(
    driver: Any, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    """Either may have made it."""
    first, second = (getattr(fake_cuda, f"fake_{name}")(driver) for name in names)
    monkeypatch.setitem(sys.modules, names[0], first)
    stream = InstanceStream(1)
    with stream.entered() as before:
        pass
    monkeypatch.setitem(sys.modules, names[1], second)
    with stream.entered() as after:
        assert before.handle == after.handle
        assert first.library.current(1).handle == second.library.current(1).handle == after.handle
    assert first.library.current(1).handle == second.library.current(1).handle == 0


def test_a_nested_stream_of_the_same_gpu_is_the_ambient_one(driver: Any, torch: Any) -> None:
    """And nothing is awaited but at the end."""
    outer, inner = InstanceStream(0), InstanceStream(0)
    done: list[int] = []
    with outer.entered() as current:
        with inner.entered() as nested:
            assert nested.handle == current.handle
            assert not nested.is_outermost
            torch.library.run(lambda: done.append(1))
        assert driver.synchronizations == 0
        assert not done
    assert driver.synchronizations == 1
    assert done == [1]
    with inner.entered() as alone:
        assert alone.is_outermost
        assert alone.handle != current.handle


@pytest.mark.parametrize("name", ["torch", "cupy"])
def test_a_nested_stream_of_another_gpu_waits_for_the_outer_one_and_is_awaited(
    driver: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It has a synchronisation of its own."""
    library = getattr(fake_cuda, f"fake_{name}")(driver)
    monkeypatch.setitem(sys.modules, name, library)
    order: list[str] = []
    with InstanceStream(0).entered():
        library.library.run(lambda: order.append("GPU 0"))
        with InstanceStream(1).entered() as nested:
            assert nested.is_outermost
            library.library.run(lambda: order.append("GPU 1"))
        assert order == ["GPU 0", "GPU 1"]
        assert library.library.device() == 0
    assert driver.synchronizations == 2


def test_an_exception_within_leaves_after_the_work_is_done(driver: Any, torch: Any) -> None:
    """Everything is as before; also in nested streams."""
    done: list[int] = []
    with pytest.raises(KeyError), InstanceStream(0).entered(), InstanceStream(0).entered():  # noqa: PT012
        torch.library.run(lambda: done.append(1))
        raise KeyError("within")
    assert done == [1]
    assert driver.synchronizations == 1
    assert torch.library.current(0).handle == 0
    with InstanceStream(0).entered() as current:
        assert current.is_outermost


def test_a_device_that_failed_is_told_and_the_thread_is_as_before(driver: Any, torch: Any) -> None:
    """The failure shows where the work is awaited."""
    stream = InstanceStream(1)
    driver.fails = True
    with pytest.raises(RuntimeError, match="illegal memory access"), stream.entered():
        pass
    assert torch.library.device() == 0
    assert torch.library.current(1).handle == 0


def test_another_thread_is_not_within(driver: Any, torch: Any) -> None:
    """What is entered is entered by one thread."""
    seen: list[Any] = []

    def enter() -> None:
        with InstanceStream(0).entered() as current:
            seen.append(current)

    with InstanceStream(0).entered() as mine:
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join(30)
    assert seen[0].is_outermost
    assert seen[0].handle != mine.handle


def test_results_are_kept_until_the_callers_stream_has_used_them(driver: Any, torch: Any) -> None:
    """Tensors on this GPU alone, wherever they are in the result."""
    other = torch.cuda.Stream(0)
    here, there, inner = fake_cuda.FakeTensor(0), fake_cuda.FakeTensor(1), fake_cuda.FakeTensor(0)
    hand_over(here)
    with torch.cuda.stream(other), InstanceStream(0).entered(), InstanceStream(0).entered():
        hand_over({"a": [here, (there, "text")], "b": inner})
    assert here.users == inner.users == [other.handle]
    assert there.users == []
    whole = fake_cuda.FakeTensor(0)
    rows = [fake_cuda.FakeTensor(0, memory=whole) for _ in range(3)]
    with InstanceStream(0).entered():
        hand_over(rows)
    assert [len(tensor.users) for tensor in (whole, *rows)].count(1) == 1  # memory is handed over once


def test_a_gpu_that_is_not_there_is_told(driver: Any, torch: Any) -> None:
    with pytest.raises(RuntimeError, match="there is no GPU 2; torch sees 2"), InstanceStream(2).entered():
        pass
    driver.gpus = 0
    assert gpu_count() == 0


def test_without_a_library_the_extra_is_named(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "cupy"):
        monkeypatch.setitem(sys.modules, name, None)
    assert gpu_count() == 0
    with (
        pytest.raises(MissingExtra, match=r"a stream on a GPU needs .*fastpipe-engine\[cuda\]"),
        InstanceStream(0).entered(),
    ):
        pass


def test_without_a_gpu_that_is_told(driver: Any, torch: Any, cupy: Any) -> None:
    driver.gpus = 0
    assert gpu_count() == 0
    with pytest.raises(RuntimeError, match="there is no GPU 0 that CUDA can use"), InstanceStream(0).entered():
        pass


class Queues(fastpipe.Backend):
    """Queues work on the current stream of torch; the result is a list that the work fills."""

    max_batch = 4

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails

    def forward(self, batch: list[dict[str, Any]]) -> None:
        library = sys.modules["torch"].library  # type: ignore[attr-defined]
        for request in batch:
            request["result"] = made = []
            work = functools.partial(lambda made, given, handle: made.extend([*given, handle]), made, request["data"])
            library.run(functools.partial(work, library.current(0).handle))
        if self.fails:
            raise ValueError("a step fails")


@pytest.mark.parametrize(
    "steps", [("SyncTensor", Queues, Queues), (Queues, "StreamGuard", Queues), (Queues, Queues, "tensorsync")], ids=str
)
@pytest.mark.parametrize("count", [1, 3])
def test_a_sequential_with_a_synctensor_runs_on_one_stream(
    driver: Any, torch: Any, steps: tuple[Any, ...], count: int
) -> None:
    """Wherever it stands, with one request or several: one synchronisation for each batch."""
    with fastpipe.Pipe(backend=fastpipe.Sequential(*steps), max=4) as pipe:
        requests: list[dict[str, Any]] = [{"data": []} for _ in range(count)]
        pipe(requests if count > 1 else requests[0])
    handles = {handle for request in requests for handle in request["result"]}
    assert [len(request["result"]) for request in requests] == [2] * count
    assert len(handles) == 1
    assert 0 not in handles
    assert 1 <= driver.synchronizations <= count


def test_only_the_outermost_synctensor_synchronises(driver: Any, torch: Any) -> None:
    """A Sequential inside another one shares its stream."""
    inner = fastpipe.Sequential(Queues, SyncTensor)
    with fastpipe.Pipe(backend=fastpipe.Sequential(inner, Queues, SyncTensor)) as pipe:
        request = pipe({"data": []})
    assert driver.synchronizations == 1
    assert len(request["result"]) == 2
    assert len(set(request["result"])) == 1
    assert request["result"][0] != 0


def test_a_step_that_fails_leaves_the_thread_as_it_was(driver: Any, torch: Any) -> None:
    backend = fastpipe.Sequential(fastpipe.Step(Queues, fails=True), SyncTensor)
    with fastpipe.Pipe(backend=backend) as pipe:
        for _ in range(2):
            with pytest.raises(ValueError, match="a step fails"):
                pipe({"data": []})
    assert driver.synchronizations == 2
    assert torch.library.current(0).handle == 0


def test_the_last_step_hands_its_results_over(driver: Any, torch: Any) -> None:
    tensor = fake_cuda.FakeTensor(0)
    with fastpipe.Pipe(backend="S[Identity,SyncTensor]") as pipe:
        assert pipe({"data": tensor})["result"] is tensor
    assert tensor.users == [0]


@pytest.mark.parametrize("is_imported", [False, True])
def test_without_a_gpu_synctensor_does_nothing(driver: Any, monkeypatch: pytest.MonkeyPatch, is_imported: bool) -> None:
    """So that torchpipe's files run anywhere."""
    driver.gpus = 0
    if is_imported:
        monkeypatch.setitem(sys.modules, "torch", fake_cuda.fake_torch(driver))
    with fastpipe.Pipe(backend="S[Pow,SyncTensor]") as pipe:
        assert pipe({"data": 3})["result"] == 9
        assert pipe([{"data": 3}, {"data": 4}])[1]["result"] == 16
    assert driver.synchronizations == 0


def test_a_sequential_without_one_is_as_it_was(driver: Any, torch: Any) -> None:
    """No stream is made, and forward is the class's own."""
    from fastpipe.backends.basic import Identity
    from fastpipe.backends.flow.sequential import Sequential
    from fastpipe.contract import Child

    plain = Sequential([Child("Identity", Identity())])
    assert "forward" not in vars(plain)
    plain.forward([{"data": 1}])
    assert driver.synchronizations == 0


class TestTorch:
    """``Torch[...]``, with real tensors, which need the real library."""

    def test_a_gpu_that_is_not_there_is_found_when_the_pipe_is_built(self) -> None:
        pytest.importorskip("torch", reason="torch is not installed: pip install 'fastpipe-engine[torch]'")
        with pytest.raises(ConfigError, match="Torch: there is no GPU 1023; torch sees"):
            fastpipe.Pipe(backend="Torch(device_id=1023)[Identity]")

    def test_without_torch_the_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises((MissingExtra, ConfigError), match=r"Torch needs torch: .*fastpipe-engine\[torch\]"):
            fastpipe.Pipe(backend="Torch[Identity]")

    def test_tensors_are_moved_and_all_runs_on_one_stream(
        self, driver: Any, torch: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those in lists, tuples and dicts as well; one synchronisation, on the GPU that was asked for."""

        class Tensor(fake_cuda.FakeTensor):
            def to(self, device: Any, non_blocking: bool) -> Any:
                assert torch.library.device() == 1, "the copy is queued on the instance's stream"
                return self if device == ("cuda", self.gpu) else Tensor(device[1])

        torch.Tensor, torch.device = Tensor, lambda *parts: parts
        there = Tensor(1)
        with fastpipe.Pipe(backend="Torch[Identity,SyncTensor]", device_id=1) as pipe:
            data = pipe({"data": {"a": [Tensor(0), there], "b": (Tensor(0), "text")}})["result"]
        assert [tensor.gpu for tensor in (*data["a"], data["b"][0])] == [1, 1, 1]
        assert data["a"][1] is there
        assert data["b"][1] == "text"
        assert there.users
        assert driver.synchronizations == 1


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_on_a_gpu_results_are_complete_and_nothing_of_the_thread_is_changed() -> None:
    """On whatever GPU is there, with work that takes a while."""
    torch: Any = importlib.import_module("torch")
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    before = torch.cuda.current_stream(0).cuda_stream
    ones = torch.ones(1 << 24, device="cuda:0")
    stream = InstanceStream(0)
    for _ in range(20):
        with stream.entered() as current:
            assert torch.cuda.current_stream(0).cuda_stream == current.handle != before
            total = ones
            for _ in range(50):
                total = total + ones
            hand_over(total)
        assert torch.cuda.Stream(0).query()
        assert float(total.max()) == float(total.min()) == 51
    assert torch.cuda.current_stream(0).cuda_stream == before
