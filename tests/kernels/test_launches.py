"""What calls of the CUDA kernels do in C: rows of images, tables, and launches by a driver that is none."""

from __future__ import annotations

import ctypes
import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastpipe.kernels import _cuda_bands, _launches, cuda

UINT8 = np.dtype("uint8")
LIMITS = _cuda_bands.Limits(multiprocessors=132, shared_bytes=74 * 1024)


def shown(shape: Any, strides: Any, *, address: int = 4096, device: int = 0, dtype: Any = UINT8) -> Any:
    """What of a CuPy array is looked at."""
    return SimpleNamespace(
        data=SimpleNamespace(ptr=address, device_id=device), shape=shape, strides=strides, dtype=dtype
    )


def test_rows_of_cupys_arrays() -> None:
    """Colored and gray; strides of any sign."""
    rows = _launches.rows_of_cupy([shown((5, 7, 3), (-30, 6, 2)), shown((2, 1, 3), (3, 3, 1))], 3, 0, UINT8)
    assert np.frombuffer(rows, cuda.IMAGE).tolist() == [
        (4096, -30, 5, 7, 6, 2, 0, 0, 0, 0),
        (4096, 3, 2, 1, 3, 1, 0, 0, 0, 0),
    ]
    rows = _launches.rows_of_cupy([shown((5, 7), (7, 1), address=2**48)], 1, 0, UINT8)
    assert np.frombuffer(rows, cuda.IMAGE).tolist() == [(2**48, 7, 5, 7, 1, 0, 0, 0, 0, 0)]


@pytest.mark.parametrize(
    "wrong",
    [
        shown((5, 7), (7, 1)),
        shown((5, 7, 4), (28, 4, 1)),
        shown((5, 0, 3), (0, 3, 1)),
        shown((5, 7, 3), (21, 3, 1), device=1),
        shown((5, 7, 3), (21, 3, 1), dtype=np.dtype("int8")),
    ],
    ids=["axes", "channels", "empty", "device", "dtype"],
)
def test_the_first_wrong_image_is_told(wrong: Any) -> None:
    """By its number."""
    right = shown((5, 7, 3), (21, 3, 1))
    assert _launches.rows_of_cupy([right, right, wrong, wrong], 3, 0, UINT8) == 2


def test_rows_of_torchs_tensors_by_dlpack() -> None:
    """As their attributes say it; a view, one of another class or dtype, and one elsewhere are told."""
    torch = pytest.importorskip("torch", reason="torch is not installed here (extra torch)")
    cpu = 1  # kDLCPU
    whole = torch.zeros(40, 60, 3, dtype=torch.uint8)
    view = whole[3:20:2, 5:50]
    rows = _launches.rows_by_dlpack([whole, view], 3, 0, cpu)
    expected = [
        (one.data_ptr(), one.stride(0), *one.shape[:2], one.stride(1), one.stride(2), 0, 0, 0, 0)
        for one in (whole, view)
    ]
    assert np.frombuffer(rows, cuda.IMAGE).tolist() == expected
    assert np.frombuffer(_launches.rows_by_dlpack([whole[..., 1]], 1, 0, cpu), cuda.IMAGE)["column_stride"] == 3
    for wrong in (whole[..., 0], whole[:0], whole.to(torch.int8), torch.nn.Parameter(whole, requires_grad=False)):
        assert _launches.rows_by_dlpack([whole, wrong], 3, 0, cpu) == 1
    assert _launches.rows_by_dlpack([whole], 3, 0) == 0  # not on a GPU
    with pytest.raises(TypeError, match="list has no __dlpack_c_exchange_api__"):
        _launches.rows_by_dlpack([[1]], 3, 0)


def test_the_extent_of_rows_and_whether_they_are_alike() -> None:
    """All but the address counts."""
    table = np.zeros(3, cuda.IMAGE)
    table["address"] = (1, 2, 3)
    table["height"], table["width"] = (5, 5, 5), (9, 9, 9)
    assert _launches.extent_of(table) == (5, 5, 9, 9, True)
    table["column_stride"][2] = 3
    assert _launches.extent_of(table) == (5, 5, 9, 9, False)
    table["height"], table["width"] = (5, 2, 8), (9, 11, 10)
    assert _launches.extent_of(table) == (2, 8, 9, 11, False)
    assert _launches.extent_of(table[:0]) == (0, 0, 0, 0, False)
    with pytest.raises((BufferError, ValueError)):
        _launches.extent_of(table[::2])


def test_rows_are_written_as_a_launch_wants_them() -> None:
    """Each; one and the addresses of all; one further on; none that is not there."""
    table = np.zeros(4, cuda.IMAGE)
    table["address"], table["height"] = (10, 20, 30, 40), 7
    memory = np.zeros(4, cuda.IMAGE)
    at = memory.ctypes.data
    _launches.write_rows(at, table, 1, 2, False)
    assert memory["address"].tolist() == [20, 30, 0, 0]
    _launches.write_rows(at, table, 0, 4, True)
    assert struct.unpack_from("<4Q", memory.tobytes(), cuda.IMAGE.itemsize) == (10, 20, 30, 40)
    _launches.write_first_row(at, table, -4)
    assert (memory["address"][0], memory["height"][0]) == (6, 7)
    with pytest.raises(IndexError, match="rows: expected 5, got 4"):
        _launches.write_rows(at, table, 3, 2, False)


class FakeDriver:
    """Functions as CUDA's driver has them, which write down what they are called with."""

    def __init__(self, current: int = 77, **results: int) -> None:
        self.current, self.results, self.calls = current, results, []
        pointer, handle, size = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t
        kinds = {
            "get": [ctypes.POINTER(handle)],
            "push": [handle],
            "pop": [ctypes.POINTER(handle)],
            "copy": [handle, handle, size, handle],
            "record": [handle, handle],
            "launch": [ctypes.POINTER(ctypes.c_uint32 * 14), handle, ctypes.POINTER(handle), pointer],
        }
        self.functions = [
            ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(getattr(self, f"_{name}")) for name, arguments in kinds.items()
        ]
        self.addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in self.functions]

    def _note(self, name: str, *what: Any) -> int:
        self.calls.append((name, *what))
        return self.results.get(name, 0)

    def _get(self, context: Any) -> int:
        context[0] = self.current
        return self.results.get("get", 0)

    def _push(self, context: int) -> int:
        return self._note("push", context)

    def _pop(self, context: Any) -> int:
        return self._note("pop")

    def _copy(self, to: int, source: int, size: int, stream: int) -> int:
        return self._note("copy", to, source, size, stream)

    def _record(self, event: int, stream: int) -> int:
        return self._note("record", event, stream)

    def _launch(self, configuration: Any, function: int, arguments: Any, extra: Any) -> int:
        words = list(configuration[0])
        stream, attributes = (words[low] | words[low + 1] << 32 for low in (8, 10))
        kinds = [(ctypes.c_int * 3).from_address(attributes + 72 * number)[::2] for number in range(words[12])]
        return self._note("launch", tuple(words[:7]), stream, kinds, function, arguments[0])

    def launch(self, follows_closely: bool = True, table_bytes: int = 0, event: int = 0) -> int:
        driver = _launches.Driver(self.addresses, 77, follows_closely)
        return driver.launch(5, (2, 3, 4), (32, 8), 1000, 2**40, 9, 11, 12, table_bytes, event)


def test_a_launch_is_one_call_of_the_driver() -> None:
    """With grid, block, shared memory and stream; following closely is an attribute."""
    driver = FakeDriver()
    assert driver.launch() == 0
    assert driver.calls == [("launch", (2, 3, 4, 32, 8, 1, 1000), 9, [[6, 1]], 5, 2**40)]
    driver = FakeDriver()
    assert driver.launch(follows_closely=False) == 0
    assert driver.calls[0][3] == []


def test_a_table_is_copied_before_and_an_event_recorded_behind() -> None:
    """In this order, in the context that is the kernels' own."""
    driver = FakeDriver(current=76)
    assert driver.launch(table_bytes=480, event=13) == 0
    assert [call[0] for call in driver.calls] == ["push", "copy", "launch", "record", "pop"]
    assert driver.calls[0] == ("push", 77)
    assert driver.calls[1] == ("copy", 11, 12, 480, 9)
    assert driver.calls[3] == ("record", 13, 9)


@pytest.mark.parametrize(
    ("fails", "called"),
    [
        ("get", []),
        ("push", ["push"]),
        ("copy", ["push", "copy", "pop"]),
        ("launch", ["push", "copy", "launch", "pop"]),
        ("record", ["push", "copy", "launch", "record", "pop"]),
    ],
)
def test_what_the_driver_refuses_is_returned_and_ends_it(fails: str, called: list[str]) -> None:
    """The caller's context is the current one again."""
    driver = FakeDriver(current=76, **{fails: 700})
    assert driver.launch(table_bytes=480, event=13) == 700
    assert [call[0] for call in driver.calls] == called


def test_a_full_gpu_has_blocks_of_more_bands_and_a_single_image_low_bands() -> None:
    """As many blocks as the GPU runs at once, or bands as low as there are."""
    extent = _cuda_bands.Extent(1080, 1920, 224, 224)
    many = _cuda_bands.pillow_pieces(LIMITS, extent, 64, (224, 224))
    assert (many.band, many.strip, many.threads, many.most_bands, many.fewest_bands) == (16, 32, (32, 4), 4, 2)
    one = _cuda_bands.pillow_pieces(LIMITS, extent, 1, (224, 224))
    assert (one.band, one.most_bands) == (4, 1)
    assert one.grid((224, 224)) == (7, 56)
    huge = _cuda_bands.pillow_pieces(LIMITS, _cuda_bands.Extent(10_000, 30_000, 224, 224), 8, (224, 224))
    assert (huge.strip, huge.shared_bytes <= LIMITS.shared_bytes) == (8, True)
    assert _cuda_bands.opencv_pieces(LIMITS, extent, 64, (224, 224)).fewest_bands == 2
    assert _cuda_bands.opencv_pieces(LIMITS, extent, 1, (224, 224)).most_bands == 1
