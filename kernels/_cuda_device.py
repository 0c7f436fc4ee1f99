"""One GPU, as ``fastpipe.kernels.cuda`` uses it: compiled kernels, memory for tables, and launches.

CuPy compiles (NVRTC, kept on disk in CuPy's folder) and allocates. Launches go to the driver directly, with arguments
that lie ready; so a call gives up the GIL once, which beside a busy thread costs 5 ms to get back. Launching without
giving it up was tried: while another thread frees memory, which waits for the device, a launch waits too, and all of
Python with it.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastpipe.errors import MissingExtra

from ._launches import Driver

__all__ = ["OUTPUTS", "Device", "Slot", "device"]

OUTPUTS = ("float32", "float16", "bfloat16")
"""What a result is made of; the place in this list is OUTPUT in the sources."""

SOURCES = Path(__file__).resolve().parent
# What a source needs in front of it, beside pixels.cu.
PARTS = {"resize_opencv": ("rows",), "resize_pillow": ("rows", "windows", "products")}
# Contraction would change the last bit of what has to be equal to a CPU's; the sources say fma where they mean it.
OPTIONS = ("-std=c++14", "-fmad=false")

# Three blocks share a multiprocessor of 227 KiB at least, of which each block takes 1 KiB for itself.
LARGEST_SHARED_BYTES = 74 * 1024

CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8


class Slot:
    """Pinned memory, memory of the device as large, and an event that says when the last launch has read them."""

    def __init__(self, device: Device, size_bytes: int) -> None:
        cupy = device.cupy
        with cupy.cuda.Device(device.number):
            self._pinned = cupy.cuda.alloc_pinned_memory(size_bytes)
            self._memory = cupy.cuda.Memory(size_bytes)
            self._event = cupy.cuda.Event(block=True, disable_timing=True)
        self.host = np.frombuffer(self._pinned, np.uint8, size_bytes)
        self.memory: Any = self.host.data  # the same, for struct
        self.host_address: int = self._pinned.ptr
        self.device_address: int = self._memory.ptr
        self.event: int = self._event.ptr
        self.is_queued = False
        self._device = device

    def wait(self) -> None:
        """Return once the device has read what was queued last; without the GIL if that takes a while."""
        if self.is_queued:
            _check(self._device.driver.cuEventSynchronize(self.event))
            self.is_queued = False


class Device:
    """A GPU. Make it with ``device``.

    Thread-safety: every method is reentrant; a slot is used by one thread at a time.

    Raises:
        MissingExtra: if CuPy is not installed.
        RuntimeError: if there is no such GPU, or no driver.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.cupy = cupy = _cupy()
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise RuntimeError(f"there is no GPU that CUDA can use: {error}") from error
        if not 0 <= number < count:
            raise RuntimeError(f"there is no GPU {number}; CUDA sees {count}")
        self.driver: Any = ctypes.CDLL("libcuda.so.1")
        _declare(self.driver)
        with cupy.cuda.Device(number):
            cupy.cuda.runtime.free(0)  # makes the context that CuPy and torch share
            context = ctypes.c_void_p()
            _check(self.driver.cuCtxGetCurrent(ctypes.byref(context)))
            properties = cupy.cuda.runtime.getDeviceProperties(number)
        addresses = [ctypes.cast(getattr(self.driver, name), ctypes.c_void_p).value or 0 for name in Driver.NAMES]
        # From compute capability 9.0 on a launch can begin before the one before has ended; pixels.cu has how.
        self._launches = Driver(addresses, context.value or 0, int(properties["major"]) >= 9)
        self.multiprocessors: int = properties["multiProcessorCount"]
        self.shared_bytes = min(int(properties["sharedMemPerBlockOptin"]), LARGEST_SHARED_BYTES)
        self._modules: dict[tuple[str, int], Any] = {}
        self._functions: dict[tuple[str, int], int] = {}

    def function(self, name: str, output: int) -> int:
        """Return the driver's handle of a kernel for results of ``OUTPUTS[output]``, compiled now if need be."""
        found = self._functions.get((name, output))
        if found is None:
            with self.cupy.cuda.Device(self.number):
                options = (*OPTIONS, f"-DOUTPUT={output}")
                module = self.cupy.RawModule(code=source_of(name), options=options)
                kernel = module.get_function(name)
                found = kernel.kernel.ptr
                attribute = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                if name.startswith("resize"):
                    _check(self.driver.cuFuncSetAttribute(found, attribute, self.shared_bytes))
            self._modules[name, output] = (module, kernel)
            self._functions[name, output] = found
        return found

    def slot(self, size_bytes: int) -> Slot:
        """Return new memory for tables."""
        return Slot(self, size_bytes)

    def launch(
        self,
        function: int,
        grid: tuple[int, int, int],
        block: tuple[int, int],
        shared_bytes: int,
        batch: int,
        stream: int,
        slot: Slot | None,
        table_bytes: int,
    ) -> None:
        """Queue the copy of a table, if there is one, and a kernel behind it.

        Args:
            function: of ``function``.
            grid: blocks.
            block: threads.
            shared_bytes: of each block.
            batch: the address of the kernel's argument; read before this returns.
            stream: its handle; 0 is the legacy default stream.
            slot: where the table is.
            table_bytes: how much of it is to be copied.

        Raises:
            CudaError: if the driver refuses; the message has the driver's name for why.
        """
        to, host, event = (0, 0, 0) if slot is None else (slot.device_address, slot.host_address, slot.event)
        _check(self._launches.launch(function, grid, block, shared_bytes, batch, stream, to, host, table_bytes, event))
        if slot is not None:
            slot.is_queued = True


@functools.cache
def device(number: int) -> Device:
    """Return the GPU with this number, the same object each time."""
    return Device(number)


@functools.cache
def source_of(name: str) -> str:
    """Return the CUDA source of a kernel."""
    parts = ("pixels", *PARTS.get(name, ()), name)
    return "".join((SOURCES / f"{part}.cu").read_text() for part in parts)


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise MissingExtra("fastpipe.kernels.cuda", "cuda", error) from error
    return cupy


def _declare(library: Any) -> None:
    """Say what the driver's functions take, so that ctypes makes 64-bit addresses of Python's integers."""
    pointer = ctypes.c_void_p
    signatures: dict[str, list[Callable[..., Any]]] = {
        "cuCtxGetCurrent": [pointer],
        "cuEventSynchronize": [pointer],
        "cuFuncSetAttribute": [pointer, ctypes.c_int, ctypes.c_int],
    }
    for name, types in signatures.items():
        getattr(library, name).argtypes = types


class CudaError(RuntimeError):
    """What a call of CUDA's driver has returned; ``status`` is its number."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def _check(result: int) -> None:
    if result:
        name = ctypes.c_char_p()
        ctypes.PyDLL("libcuda.so.1").cuGetErrorName(result, ctypes.byref(name))
        raise CudaError(f"CUDA: {(name.value or b'error').decode()} ({result})", result)
