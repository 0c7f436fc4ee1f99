"""CUDA's streams and events without a GPU, behind the few functions of torch and CuPy that the backends use.

Work is queued on streams, and done when somebody waits for it: nothing is done early, and in no order that the queues
do not force. So a result that is read without having waited for it is not there yet. A stream can be entered, recorded
and waited for only as the libraries allow it: anything else is an AssertionError.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any


class Driver:
    """The device: streams are queues of work, by handle; 0 is the default stream of every GPU."""

    def __init__(self, gpus: int = 1) -> None:
        self.gpus = gpus
        self.queues: dict[tuple[int, int], list[Callable[[], None]]] = {(gpu, 0): [] for gpu in range(gpus)}
        self.threads = threading.local()
        self.synchronizations = 0
        self.timed_events = 0
        self.fails = False  # from now on, waiting raises

    def new_stream(self, gpu: int) -> int:
        handle = 0x100 * len(self.queues)
        self.queues[gpu, handle] = []
        return handle

    def queue(self, gpu: int, handle: int, work: Callable[[], None]) -> None:
        self.queues[gpu, handle].append(work)

    def finish(self, gpu: int, handle: int) -> None:
        queue = self.queues[gpu, handle]
        while queue:
            queue.pop(0)()

    def run_until(self, gpu: int, handle: int, is_done: Callable[[], bool]) -> None:
        queue = self.queues[gpu, handle]
        while not is_done():
            queue.pop(0)()


class Event:
    """An event of either library."""

    def __init__(self, driver: Driver, blocking: bool, has_time: bool = False) -> None:
        self.driver, self.blocking, self.has_time = driver, blocking, has_time
        driver.timed_events += has_time
        self.gpu: int | None = None
        self.recorded: SimpleNamespace | None = None

    def record(self, stream: Any) -> None:
        assert self.gpu in (None, stream.gpu), "an event belongs to the GPU it was first recorded on"
        self.gpu = stream.gpu
        mark = SimpleNamespace(done=False, gpu=stream.gpu, handle=stream.handle)
        self.driver.queue(stream.gpu, stream.handle, lambda: mark.__dict__.update(done=True, ns=time.monotonic_ns()))
        self.recorded = mark

    def elapsed_time(self, other: Event) -> float:
        first, second = self.recorded, other.recorded
        assert first is not None
        assert second is not None
        assert self.has_time, "an event that does not know when it was reached"
        assert other.has_time
        assert first.done, "an event that was not awaited has no time yet"
        assert second.done
        assert first.gpu == second.gpu
        return (second.ns - first.ns) / 1e6

    def reach(self, mark: SimpleNamespace) -> None:
        self.driver.run_until(mark.gpu, mark.handle, lambda: mark.done)

    def synchronize(self) -> None:
        assert self.recorded is not None
        assert self.blocking, "waiting must not keep a CPU busy"
        self.driver.synchronizations += 1
        if self.driver.fails:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        self.reach(self.recorded)


class Stream:
    """A stream of either library."""

    def __init__(self, driver: Driver, gpu: int, handle: int) -> None:
        self.driver, self.gpu, self.handle = driver, gpu, handle
        self.cuda_stream = self.ptr = handle

    def query(self) -> bool:
        return not self.driver.queues[self.gpu, self.handle]

    def wait_event(self, event: Event) -> None:
        mark = event.recorded
        assert mark is not None
        self.driver.queue(self.gpu, self.handle, lambda: event.reach(mark))

    def wait_stream(self, other: Stream) -> None:
        event = Event(self.driver, blocking=False)
        event.record(other)
        self.wait_event(event)


class Library:
    """What both libraries know of a thread: its GPU, and its stream on each."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.local = threading.local()

    def device(self) -> int:
        return int(getattr(self.driver.threads, "gpu", 0))

    def current(self, gpu: int) -> Stream:
        found: Stream | None = getattr(self.local, f"stream_{gpu}", None)
        return found or Stream(self.driver, gpu, 0)

    @contextmanager
    def on(self, gpu: int) -> Iterator[None]:
        before = self.device()
        self.driver.threads.gpu = gpu
        try:
            yield
        finally:
            self.driver.threads.gpu = before

    @contextmanager
    def using(self, stream: Stream) -> Iterator[None]:
        before = self.current(stream.gpu)
        setattr(self.local, f"stream_{stream.gpu}", stream)
        try:
            yield
        finally:
            setattr(self.local, f"stream_{stream.gpu}", before)

    def run(self, work: Callable[[], None]) -> None:
        """Queue work as an operation of the library does."""
        gpu = self.device()
        self.driver.queue(gpu, self.current(gpu).handle, work)


class FakeTensor:
    """A tensor on a GPU, perhaps a view of another one's memory, as far as that memory's owner goes."""

    is_cuda = True

    def __init__(self, gpu: int = 0, memory: FakeTensor | None = None) -> None:
        self.gpu = gpu
        self.memory = memory or self
        self._base = memory
        self.users: list[int] = []

    def get_device(self) -> int:
        return self.gpu

    def untyped_storage(self) -> Any:
        return SimpleNamespace(data_ptr=lambda: id(self.memory))

    def record_stream(self, stream: Stream) -> None:
        self.users.append(stream.handle)


def fake_torch(driver: Driver) -> Any:
    """Return a module that looks like torch; ``library`` is behind it."""
    library = Library(driver)

    @contextmanager
    def stream_context(stream: Stream) -> Iterator[None]:
        with library.on(stream.gpu), library.using(stream):
            yield

    def set_device(gpu: int) -> None:
        driver.threads.gpu = gpu

    def set_stream(stream: Stream) -> None:
        set_device(stream.gpu)
        setattr(library.local, f"stream_{stream.gpu}", stream)

    torch: Any = ModuleType("torch")
    torch.library = library
    torch.Tensor = FakeTensor
    torch.cuda = SimpleNamespace(
        is_available=lambda: driver.gpus > 0,
        device_count=lambda: driver.gpus,
        Stream=lambda gpu: Stream(driver, gpu, driver.new_stream(gpu)),
        ExternalStream=lambda handle, gpu: Stream(driver, gpu, handle),
        Event=lambda blocking=False, enable_timing=False: Event(driver, blocking, enable_timing),
        current_stream=library.current,
        current_device=library.device,
        set_stream=set_stream,
        set_device=set_device,
        stream=stream_context,
    )
    return torch


class CupyDevice:
    """``cupy.cuda.Device``: may be entered again and again, by any thread."""

    def __init__(self, library: Library, gpu: int) -> None:
        self.library, self.gpu = library, gpu
        self.local = threading.local()

    def __enter__(self) -> None:
        self.local.contexts = [*getattr(self.local, "contexts", []), self.library.on(self.gpu)]
        self.local.contexts[-1].__enter__()

    def __exit__(self, *error: Any) -> None:
        self.local.contexts.pop().__exit__(*error)


class CupyStream(Stream):
    """``cupy.cuda.Stream``: a context of its own, for a thread that is on its GPU."""

    def __init__(self, library: Library, handle: int) -> None:
        super().__init__(library.driver, library.device(), handle)
        self.library = library
        self.contexts: list[Any] = []

    def __enter__(self) -> None:
        assert self.library.device() == self.gpu, "CuPy's streams can be entered on their own GPU alone"
        self.contexts.append(self.library.using(self))
        self.contexts[-1].__enter__()

    def __exit__(self, *error: Any) -> None:
        self.contexts.pop().__exit__(*error)


def fake_cupy(driver: Driver) -> Any:
    """Return a module that looks like CuPy; ``library`` is behind it."""
    library = Library(driver)

    def stream(non_blocking: bool) -> CupyStream:
        assert non_blocking, "a stream that waits for the default stream has no use here"
        return CupyStream(library, driver.new_stream(library.device()))

    def external(handle: int, gpu: int) -> CupyStream:
        assert library.device() == gpu
        return CupyStream(library, handle)

    class CUDARuntimeError(RuntimeError):
        pass

    def device_count() -> int:
        if not driver.gpus:
            raise CUDARuntimeError("cudaErrorNoDevice")
        return driver.gpus

    cupy: Any = ModuleType("cupy")
    cupy.library = library
    cupy.cuda = SimpleNamespace(
        Device=lambda gpu: CupyDevice(library, gpu),
        Stream=stream,
        ExternalStream=external,
        Event=lambda block=False, disable_timing=False: Event(driver, block, not disable_timing),
        get_elapsed_time=lambda first, second: first.elapsed_time(second),
        get_current_stream=lambda: library.current(library.device()),
        runtime=SimpleNamespace(getDeviceCount=device_count, CUDARuntimeError=CUDARuntimeError),
    )
    return cupy
