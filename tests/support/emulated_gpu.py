"""A GPU that is none: the .cu files compiled for the CPU, behind what ``fastpipe.kernels.cuda`` asks of a device.

Arrays are NumPy's, in memory that is followed by a guard, so that writing too far shows.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from fastpipe.kernels import _device_arrays
from fastpipe.kernels._cuda_device import source_of

EMULATOR = Path(__file__).resolve().parent / "cuda_on_cpu" / "emulator.hpp"
SHARED_BYTES = 74 * 1024
ROW = struct.Struct("<Qq4i16x")  # cuda.IMAGE

# What all threads of a warp do together: the beginning of the assembly, and the emulator's function.
COLLECTIVES = {
    r'"mma\.sync\.aligned\.m16n8k32': "multiply_32(sums, left, right)",
    r'"mma\.sync\.aligned\.m16n8k16': "multiply_16(sums, left, right)",
    r'"movmatrix': "result = turned_warp(pairs)",
}

BEHIND = """
extern "C" int launch(
    int grid_x, int grid_y, int grid_z, int block_x, int block_y, int shared_bytes, const Batch* batch)
{{
    if (shared_bytes > (int)sizeof shared_memory)
        return 2;
    memset(shared_memory, 0xa5, sizeof shared_memory);  // nobody may rely on what is in it
    return run([batch] {{ {kernel}(*batch); }}, grid_x, grid_y, grid_z, block_x, block_y);
}}
"""


class NumpyArrays:
    """NumPy's arrays in the place of a GPU library's."""

    def describe(self, images: Any, channels: int, device: int) -> bytearray:
        rows = bytearray()
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 2 + (channels == 3) or image.size == 0:
                raise _device_arrays.KernelError(f"images: expected uint8, got {image.dtype} of shape {image.shape}")
            strides = (*image.strides, 0)[:3]
            rows += ROW.pack(image.ctypes.data, strides[0], *image.shape[:2], strides[1], strides[2])
        return rows

    def describe_batch(self, images: Any, channels: int, device: int) -> Any:
        return images.shape[0], images.strides[0], self.describe([images[0]], channels, device)

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        size = int(np.prod(shape))
        kind = np.dtype("uint16" if dtype == "bfloat16" else dtype)
        memory = np.full(size * kind.itemsize + 64, 0xA5, np.uint8)
        start = -memory.ctypes.data % 16
        return memory[start : start + size * kind.itemsize].view(kind).reshape(shape)

    def address(self, out: Any, shape: tuple[int, ...], dtype: str, device: int) -> int:
        if out.shape != shape or str(out.dtype) != dtype.replace("bfloat16", "uint16") or not out.flags.c_contiguous:
            raise _device_arrays.KernelError(f"out: expected {dtype} {shape}, got {out.dtype} {out.shape}")
        return int(out.ctypes.data)

    def stream(self, device: int) -> int:
        return 0


class Slot:
    """Memory of the host that is memory of the device, too."""

    def __init__(self, size_bytes: int) -> None:
        self.host = np.zeros(size_bytes, np.uint8)
        self.memory = self.host.data
        self.host_address = self.device_address = int(self.host.ctypes.data)

    def wait(self) -> None:
        """Nothing is ever under way."""


class EmulatedDevice:
    """``fastpipe.kernels._cuda_device.Device`` on the CPU."""

    number = 0
    multiprocessors = 4
    shared_bytes = SHARED_BYTES

    class cupy:
        """What is asked of CuPy itself."""

        ndarray = np.ndarray
        empty = staticmethod(np.empty)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launches: list[tuple[str, tuple[int, int, int]]] = []
        self._functions: dict[tuple[str, int], int] = {}
        self._libraries: list[Any] = []
        self._names: list[str] = []

    def function(self, name: str, output: int) -> int:
        if (name, output) not in self._functions:
            self._functions[name, output] = len(self._libraries)
            self._libraries.append(self._compiled(name, output))
            self._names.append(name)
        return self._functions[name, output]

    def slot(self, size_bytes: int) -> Slot:
        return Slot(size_bytes)

    def launch(
        self,
        function: int,
        grid: Any,
        block: Any,
        shared_bytes: int,
        batch: int,
        stream: int,
        slot: Any,
        table: int,
    ) -> None:
        self.launches.append((self._names[function], grid))
        if result := self._libraries[function].launch(*grid, *block, shared_bytes, ctypes.c_void_p(batch)):
            raise RuntimeError(f"the emulator says {result}")

    def _compiled(self, name: str, output: int) -> Any:
        source = source_of(name)
        source = source.replace("extern __shared__ uint4 shared[];", "")
        source = re.sub(r'asm\("cvt.rn.f16.f32.*\);', "bits = half_of(value);", source)
        source = re.sub(r'asm\("cvt.rn.f16x2.f32.*\);', "bits = half_of(first) | half_of(second) << 16;", source)
        source = re.sub(r'asm\("div.rn.f32.*\);', "quotient = dividend / divisor;", source)
        for pattern, function in COLLECTIVES.items():
            source = re.sub(rf"asm\({pattern}.*?\);", f"{function};", source, flags=re.DOTALL)
        room = f"alignas(16) static char shared_memory[{SHARED_BYTES}];"
        room += "static uint4* const shared = (uint4*)shared_memory;\n"
        written = self.folder / f"{name}{output}.cpp"
        written.write_text(
            f'#include "{EMULATOR}"\n#define OUTPUT {output}\n{room}{source}{BEHIND.format(kernel=name)}'
        )
        library = written.with_suffix(".so")
        options = ["-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-fno-strict-aliasing", "-w"]
        # Where it is on by default, glibc ends a process whose longjmp goes to another stack, as fibers do.
        options.append("-U_FORTIFY_SOURCE")
        options.append("-fno-gnu-unique")  # or shared memory of one library would be that of another, too
        subprocess.run(["g++", *options, str(written), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))


def is_there() -> bool:
    """Say whether this machine can compile the emulator."""
    return shutil.which("g++") is not None
