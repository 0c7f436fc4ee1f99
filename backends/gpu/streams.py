"""The CUDA stream of an instance: whoever runs the instance enters it, and what is nested shares it.

    stream = InstanceStream(0)
    with stream.entered() as current:
        launch(..., current.handle)

Entering makes the stream the current one of torch and of CuPy, as far as they are imported, and has it wait for what
was current before. Leaving it waits until its work is done, by an event and without the GIL, so that results may be
used on any stream. Where another stream of the same GPU has been entered already, that one is used, and nothing waits:
a chain of instances has one stream and one synchronisation, the outermost's.

Public: a backend of yours that enters its stream here shares one with the steps of the box, as they do with each other.
"""

from __future__ import annotations

import importlib
import itertools
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from fastpipe.errors import MissingExtra

from . import timing

__all__ = ["Current", "InstanceStream", "gpu_count", "hand_over"]


class Current(NamedTuple):
    """The stream that is current while one is entered."""

    handle: int
    """CUDA's ``cudaStream_t``."""
    device_number: int
    is_outermost: bool
    """Whether this ``with`` statement synchronises; False: it shares the stream of one around it."""


_serials = itertools.count()


class InstanceStream:
    """A stream of one GPU that nobody else queues on, made when it is first entered.

    Torch lends it one of its own, if torch can use CUDA, otherwise CuPy makes it; neither is imported before that,
    and what is imported already is preferred. (Torch has 32 for each GPU: beyond that, instances share.)

    Thread-safety: one thread at a time, as for the instance itself; not always the same one.

    Args:
        device_number: of the GPU, as torch and CuPy count.

    Raises:
        MissingExtra: when it is entered, if neither torch with CUDA nor CuPy is installed.
        RuntimeError: when it is entered, if there is no such GPU.
    """

    def __init__(self, device_number: int) -> None:
        self.device_number = device_number
        self._sides: list[_Side] = []  # the first made the stream
        self._serial = next(_serials)
        self._clock: timing.StreamClock | None = None  # while a timeline looks

    def entered(self) -> _Entry:
        """Return the context in which the stream is current, to be entered by the thread that runs the instance.

        Leaving it synchronises and restores what was current, also if an exception leaves; if the device itself
        failed, that is raised.
        """
        return _Entry(self)

    def sides(self) -> list[_Side]:
        """Return the stream as each library that is imported by now sees it, made now if need be."""
        if not self._sides:
            self._sides.append(_make(self.device_number))
        if len(self._sides) < len(_LIBRARIES):
            for name, kind in _LIBRARIES.items():
                library = sys.modules.get(name)
                if library is None or any(isinstance(side, kind) for side in self._sides):
                    continue
                if kind.count(library):
                    self._sides.append(kind(library, self.device_number, self._sides[0].handle))
        return self._sides

    def stay(self) -> timing.Stay | None:
        """Return what measures how long the work takes that is queued from now on; None: nobody wants to know."""
        if not timing.watchers:
            self._clock = None
            return None
        if self._clock is None:
            self._clock = timing.StreamClock(self._serial, self.device_number)
        return timing.Stay(self._clock, self._sides[0])


def gpu_count() -> int:
    """Return how many GPUs the imported ones of torch and CuPy can use; 0 as well where neither is imported.

    Nothing can be on a GPU there, so that a backend that only looks after others has nothing to do.
    """
    libraries = [(kind, sys.modules.get(name)) for name, kind in _LIBRARIES.items()]
    return max((kind.count(library) for kind, library in libraries if library is not None), default=0)


def hand_over(value: Any) -> None:
    """Have torch keep the memory of a result until whoever runs the instance has used it on the stream it came from.

    A tensor's memory goes back to the stream it was made on, as soon as the last reference is gone; its next owner
    would overwrite what another stream may still be reading. Lists, tuples and dicts are gone through; all else than
    torch's tensors on a GPU is left alone, and so is everything outside of an entered stream.
    """
    torch: Any = sys.modules.get("torch")
    entries = _entered.stack
    if torch is None or not entries or entries[0].torch_before is None:
        return
    first = entries[0]
    # One tensor of each piece of memory: telling torch gives up the GIL. Most are rows of one, which is quick to see.
    wholes = {}
    for tensor in _leaves(value):
        if isinstance(tensor, torch.Tensor) and tensor.is_cuda and tensor.get_device() == first.device_number:
            whole = tensor if tensor._base is None else tensor._base
            wholes[id(whole)] = whole
    for tensor in {whole.untyped_storage().data_ptr(): whole for whole in wholes.values()}.values():
        tensor.record_stream(first.torch_before)


class _Entry:
    """One ``with`` statement."""

    def __init__(self, stream: InstanceStream) -> None:
        self._stream = stream
        self.device_number = stream.device_number
        self.owner: _Side  # who made the stream, once it is entered
        self.torch_before: Any = None  # torch's stream that was current before this one, if torch is there
        self._restore: ExitStack | None = None
        self._stay: timing.Stay | None = None

    def __enter__(self) -> Current:
        stack = _entered.stack
        if stack and stack[-1].device_number == self.device_number:
            return Current(stack[-1].owner.handle, self.device_number, False)
        sides = self._stream.sides()
        owner = self.owner = sides[0]
        with ExitStack() as restore:
            waited_for = {owner.handle}
            for side in sides:
                before = side.use(restore)
                if isinstance(side, _TorchSide):
                    self.torch_before = before
                handle = side.handle_of(before)
                if handle not in waited_for:
                    side.wait_for(before)
                    waited_for.add(handle)
            if stack:  # of another GPU
                owner.wait_for_entry(stack[-1])
            self._stay = self._stream.stay()
            self._restore = restore.pop_all()
        stack.append(self)
        return Current(owner.handle, self.device_number, True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._restore is None:
            return
        _entered.stack.pop()
        with self._restore:
            if self._stay is not None:
                self._stay.finish()
            self.owner.synchronize()
            if self._stay is not None:
                self._stay.tell()


class _Entered(threading.local):
    """The entries of this thread that have a stream of their own, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[_Entry] = []


_entered = _Entered()


class _Side(Protocol):
    """A stream as one library sees it."""

    handle: int
    stream: Any

    def __init__(self, library: Any, device_number: int, handle: int | None = None) -> None:
        """Make a stream; with a handle, an object for that one."""

    @staticmethod
    def count(library: Any) -> int:
        """Return how many GPUs the library can use."""

    def use(self, restore: ExitStack) -> Any:
        """Make it the current one of this thread, and its GPU the current one; return what was, on that GPU."""

    def handle_of(self, stream: Any) -> int:
        """Return the handle of one of the library's streams."""

    def wait_for(self, stream: Any) -> None:
        """Have this stream wait for what is queued on another one of the same GPU."""

    def wait_for_entry(self, entry: _Entry) -> None:
        """Have this stream wait for what is queued on that of another GPU."""

    def synchronize(self) -> None:
        """Return when what is queued is done; without the GIL, and without keeping a CPU busy."""

    def mark(self) -> Any:
        """See ``timing.Recorder``."""

    def milliseconds(self, first: Any, second: Any) -> float:
        """See ``timing.Recorder``."""


class _TorchSide:
    def __init__(self, library: Any, device_number: int, handle: int | None = None) -> None:
        self._cuda = cuda = library.cuda
        self._device_number = device_number
        self.stream = cuda.Stream(device_number) if handle is None else cuda.ExternalStream(handle, device_number)
        self.handle: int = self.stream.cuda_stream
        # Recording one again does not disturb what waits for it already.
        self._before = cuda.Event()
        self._done = cuda.Event(blocking=True)

    @staticmethod
    def count(library: Any) -> int:
        return int(library.cuda.device_count()) if library.cuda.is_available() else 0

    def use(self, restore: ExitStack) -> Any:
        cuda, number = self._cuda, self._device_number
        before, number_before = cuda.current_stream(number), cuda.current_device()
        cuda.set_stream(self.stream)  # makes its GPU current, too
        if number_before != number:
            restore.callback(cuda.set_device, number_before)
        restore.callback(cuda.set_stream, before)
        return before

    def handle_of(self, stream: Any) -> int:
        return int(stream.cuda_stream)

    def wait_for(self, stream: Any) -> None:
        if not stream.query():  # mostly there is nothing to wait for; asking keeps the GIL
            self._before.record(stream)
            self.stream.wait_event(self._before)

    def wait_for_entry(self, entry: _Entry) -> None:
        cuda, owner = self._cuda, entry.owner
        self.stream.wait_stream(cuda.ExternalStream(owner.handle, entry.device_number))

    def synchronize(self) -> None:
        self._done.record(self.stream)
        self._done.synchronize()

    def mark(self) -> Any:
        event = self._cuda.Event(enable_timing=True)
        event.record(self.stream)
        return event

    def milliseconds(self, first: Any, second: Any) -> float:
        return float(first.elapsed_time(second))


class _CupySide:
    def __init__(self, library: Any, device_number: int, handle: int | None = None) -> None:
        self._cuda = cuda = library.cuda
        self._device = cuda.Device(device_number)
        with self._device:
            self.stream = (
                cuda.Stream(non_blocking=True) if handle is None else _cupy_stream(cuda, handle, device_number)
            )
            self._before = cuda.Event(disable_timing=True)
            self._done = cuda.Event(block=True, disable_timing=True)
        self.handle: int = self.stream.ptr

    @staticmethod
    def count(library: Any) -> int:
        runtime = library.cuda.runtime
        try:
            return int(runtime.getDeviceCount())
        except runtime.CUDARuntimeError:  # there is no driver, or no GPU
            return 0

    def use(self, restore: ExitStack) -> Any:
        restore.enter_context(self._device)
        before = self._cuda.get_current_stream()
        restore.enter_context(self.stream)
        return before

    def handle_of(self, stream: Any) -> int:
        return int(stream.ptr)

    def wait_for(self, stream: Any) -> None:
        self._before.record(stream)
        self.stream.wait_event(self._before)

    def wait_for_entry(self, entry: _Entry) -> None:
        cuda, owner = self._cuda, entry.owner
        with cuda.Device(entry.device_number):
            event = cuda.Event(disable_timing=True)
            event.record(_cupy_stream(cuda, owner.handle, entry.device_number))
        self.stream.wait_event(event)

    def synchronize(self) -> None:
        self._done.record(self.stream)
        self._done.synchronize()

    def mark(self) -> Any:
        event = self._cuda.Event()
        event.record(self.stream)
        return event

    def milliseconds(self, first: Any, second: Any) -> float:
        return float(self._cuda.get_elapsed_time(first, second))


def _cupy_stream(cuda: Any, handle: int, device_number: int) -> Any:
    """Return CuPy's object for a stream that is another library's."""
    with warnings.catch_warnings():
        # Stream.from_external, which CuPy recommends since 14, destroys the stream when the object goes.
        warnings.simplefilter("ignore", DeprecationWarning)
        return cuda.ExternalStream(handle, device_number)


_LIBRARIES: dict[str, type[_Side]] = {"torch": _TorchSide, "cupy": _CupySide}


def _make(device_number: int) -> _Side:
    """Return a new stream, of the first library that can use CUDA; the imported ones are asked first."""
    missing: ImportError | None = None
    is_installed = False
    for name in sorted(_LIBRARIES, key=lambda name: name not in sys.modules):
        try:
            library: Any = importlib.import_module(name)
        except ImportError as error:
            missing = error
            continue
        count = _LIBRARIES[name].count(library)
        if device_number < count:
            return _LIBRARIES[name](library, device_number)
        if count:
            raise RuntimeError(f"there is no GPU {device_number}; {name} sees {count}")
        is_installed = is_installed or name == "cupy"
    if missing is not None and not is_installed:
        raise MissingExtra("a stream on a GPU", "cuda", missing)
    raise RuntimeError(f"there is no GPU {device_number} that CUDA can use")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value
