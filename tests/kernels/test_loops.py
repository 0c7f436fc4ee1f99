"""Each compiled form of the loops gives the bits of the reference; a process has only the form that its CPU takes."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpipe.kernels import reference

# By what the CPU has to have: what the compiler is told. The last of them may join a product and a sum, if it is let.
FORMS = {"": [], "sse4_1": ["-msse4.1"], "avx2": ["-mavx2"], "fma": ["-march=native"]}

ENTRIES = """
#include "loops.hpp"
using namespace fastpipe;
extern "C" {
void c_convert(const Image* image, const int32_t* weights, uint8_t* out) { convert(*image, weights, out); }
void c_normalize(const Image* images, ptrdiff_t count, const int32_t* weights, bool is_swapped, const void* levels,
                 ptrdiff_t planes, void* out) {
    normalize(images, count, weights, is_swapped, (const Level*)levels, planes, (float*)out);
}
void c_normalize_to_half(const Image* images, ptrdiff_t count, const int32_t* weights, bool is_swapped,
                         const void* tables, ptrdiff_t planes, void* out) {
    normalize_to_half(images, count, weights, is_swapped, (const Table*)tables, planes, (uint16_t*)out);
}
void c_resize(const Image* image, const Taps* rows, const Taps* columns, uint8_t* out) {
    resize(*image, *rows, *columns, out);
}
}
"""

MEAN, STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
GRAY_FROM_BGR = np.array([reference.BLUE, reference.GREEN, reference.RED], np.int32)
# Less than a vector, around one, around the blocks in which rows are worked on.
SIZES = [(1, 1), (2, 5), (3, 17), (7, 33), (2, 511), (3, 513), (41, 1030)]


class Image(ctypes.Structure):
    """``Image`` of loops.hpp."""

    _fields_ = [("pixels", ctypes.c_void_p), *((name, ctypes.c_ssize_t) for name in ("h", "w", "c", "dy", "dx", "dc"))]


class Taps(ctypes.Structure):
    """``Taps`` of loops.hpp."""

    _fields_ = [("count", ctypes.c_ssize_t), *((f"row_{row}", ctypes.c_void_p) for row in range(4))]


def seen(image: Any) -> Any:
    channels = image.shape[2:] or (1,)
    return ctypes.byref(Image(image.ctypes.data, *image.shape[:2], *channels, *(*image.strides, 1)[:3]))


def taps(side: int, new_side: int, *, cut_at_edges: bool) -> tuple[Any, Any]:
    """Return the pointer, and what has to be kept while it is used."""
    table = reference.taps(side, new_side, cut_at_edges=cut_at_edges)
    return ctypes.byref(Taps(new_side, *(row.ctypes.data for row in table))), table


def address(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.fixture(scope="module", params=list(FORMS), ids=lambda unit: unit or "baseline")
def loops(request: pytest.FixtureRequest, repository_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The loops, compiled for one kind of vector unit."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    is_intel = platform.machine() == "x86_64"
    if request.param and not (is_intel and request.param in Path("/proc/cpuinfo").read_text().split()):
        pytest.skip(f"this CPU has no {request.param}")
    folder = tmp_path_factory.mktemp("loops")
    source, library = folder / "entries.cpp", folder / "entries.so"
    source.write_text(ENTRIES)
    flags = ["-std=c++17", "-O3", "-ffp-contract=off", "-DFASTPIPE_ONE_FORM", "-fPIC", "-shared", "-Wall", "-Werror"]
    command = [compiler, *flags, *FORMS[request.param], f"-I{repository_root / 'kernels'}", str(source), "-o"]
    subprocess.run([*command, str(library)], check=True)
    return ctypes.CDLL(str(library))


def layouts(height: int, width: int) -> Iterator[Any]:
    """Yield images: in one piece, with gaps between rows, mirrored in all axes."""
    rng = np.random.default_rng(height * width)
    whole = rng.integers(0, 256, (height, width, 3), np.uint8)
    yield whole
    yield np.pad(whole, ((1, 1), (2, 1), (0, 0)))[1:-1, 2:-1]
    yield whole[::-1, ::-1, ::-1]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_colors(loops: Any, size: tuple[int, int]) -> None:
    """Swapped, to gray, and from gray."""
    for image in layouts(*size):
        swapped, gray = np.empty((*size, 3), np.uint8), np.empty(size, np.uint8)
        loops.c_convert(seen(image), None, address(swapped))
        np.testing.assert_array_equal(swapped, image[..., ::-1])
        loops.c_convert(seen(image), address(GRAY_FROM_BGR), address(gray))
        np.testing.assert_array_equal(gray, reference.convert_color(image, "bgr", "gray"))
        loops.c_convert(seen(image[..., 1]), None, address(swapped))
        np.testing.assert_array_equal(swapped, np.repeat(image[..., 1:2], 3, axis=2))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_planes(loops: Any, size: tuple[int, int], dtype: str) -> None:
    """Of three channels in both orders, of gray, and of what becomes gray."""
    levels, entry = np.stack([MEAN, STD], axis=1), loops.c_normalize
    if dtype == "float16":
        levels = ((np.arange(256, dtype=np.float32) - levels[:, :1]) / levels[:, 1:]).astype(np.float16)
        entry = loops.c_normalize_to_half
    kinds: list[tuple[Any, Any, int, Any, bool]] = [
        ("bgr", "bgr", 3, None, False),
        ("bgr", "rgb", 3, None, True),
        ("bgr", "gray", 1, GRAY_FROM_BGR, True),
        ("gray", "rgb", 3, None, True),
    ]
    for image in layouts(*size):
        for source, target, planes, weights, is_swapped in kinds:
            pixels = image[..., 1] if source == "gray" else image
            out = np.empty((1, planes, *size), dtype)
            gray_weights = None if weights is None else address(weights)
            shape = (ctypes.c_ssize_t(1), gray_weights, ctypes.c_bool(is_swapped))
            entry(seen(pixels), *shape, address(levels), ctypes.c_ssize_t(planes), address(out))
            options: Any = {"mean": MEAN[:planes], "std": STD[:planes], "source": source, "target": target}
            np.testing.assert_array_equal(out[0], reference.normalize(pixels, dtype=dtype, **options))


@pytest.mark.parametrize("new_size", [(1, 1), (19, 23), (30, 1100)], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(loops: Any, size: tuple[int, int], new_size: tuple[int, int]) -> None:
    """Smaller and larger, also than a block is wide."""
    for image in layouts(*size):
        out = np.empty((*new_size, 3), np.uint8)
        rows, row_table = taps(size[0], new_size[0], cut_at_edges=False)
        columns, column_table = taps(size[1], new_size[1], cut_at_edges=True)
        loops.c_resize(seen(image), rows, columns, address(out))
        np.testing.assert_array_equal(out, reference.resize(image, *new_size))
        del row_table, column_table
