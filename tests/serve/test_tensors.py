"""The protocol's data types as arrays, from JSON and from raw binary, and back."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

pytest.importorskip("orjson", reason="the extra serve is not installed here")

from fastpipe.serve.statuses import AnswerNotServed, InvalidRequest
from fastpipe.serve.tensors import (
    Tensor,
    array_of,
    checked_shape,
    datatype_of,
    from_json,
    from_raw,
    to_json_values,
    to_raw,
)

NUMBERS = {
    "BOOL": np.array([[True, False, True]]),
    **{f"{kind.upper()}": np.array([[0, 1, 100]], kind) for kind in ("int8", "int16", "int32", "int64")},
    **{f"{kind.upper()}": np.array([[0, 1, 200]], kind) for kind in ("uint8", "uint16", "uint32", "uint64")},
    "FP16": np.array([[0.5, -1, 65504]], np.float16),
    "FP32": np.array([[0.5, -1, 1e30]], np.float32),
    "FP64": np.array([[0.5, -1, 1e300]], np.float64),
}


@pytest.mark.parametrize("datatype", NUMBERS)
def test_numbers_there_and_back(datatype: str) -> None:
    """Raw binary and JSON, nested and flat, give the array; and the array gives the same bytes and values."""
    array = NUMBERS[datatype]
    raw = from_raw("x", datatype, array.shape, memoryview(array.tobytes()))
    assert raw.array.dtype == array.dtype
    assert np.array_equal(raw.array, array)
    assert bytes(to_raw(raw)) == array.tobytes()
    for data in (array.tolist(), array.ravel().tolist()):
        read = from_json("x", datatype, array.shape, data)
        assert read.array.dtype == array.dtype
        assert np.array_equal(read.array, array)
    assert list(to_json_values(raw)) == array.ravel().tolist()
    assert datatype_of(array.dtype) == datatype
    assert datatype_of(array.dtype.newbyteorder(">")) == datatype


def test_bfloat16() -> None:
    """It is two bytes on the wire, ml_dtypes' type in the request, and numbers in JSON."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.array([0.5, -2, 3], ml_dtypes.bfloat16)
    tensor = from_raw("x", "BF16", (3,), memoryview(array.tobytes()))
    assert tensor.array.dtype == ml_dtypes.bfloat16
    assert bytes(to_raw(tensor)) == array.tobytes()
    assert list(to_json_values(tensor)) == [0.5, -2, 3]
    assert np.array_equal(from_json("x", "BF16", (3,), [0.5, -2, 3]).array, array)


def test_raw_numbers_are_no_copy() -> None:
    """The array is a view of the body, and what is written is a view of the array."""
    body = bytearray(np.arange(4, dtype=np.float32).tobytes())
    tensor = from_raw("x", "FP32", (2, 2), memoryview(body))
    body[:4] = struct.pack("<f", 7.0)
    assert tensor.array[0, 0] == 7.0
    tensor.array[0, 1] = 8.0
    assert bytes(to_raw(tensor))[4:8] == struct.pack("<f", 8.0) == bytes(body[4:8])


def test_raw_numbers_that_lie_askew_are_copied_into_place() -> None:
    """Libraries in C read arrays as if they were aligned."""
    body = memoryview(b"x" + np.arange(4, dtype=np.float64).tobytes())
    tensor = from_raw("x", "FP64", (4,), body[1:])
    assert tensor.array.flags.aligned
    assert tensor.array.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("shape", "elements"), [((2,), [b"\xff\x00", b""]), ((1, 1), [b"abc"]), ((0,), [])])
def test_bytes_there_and_back(shape: tuple[int, ...], elements: list[bytes]) -> None:
    """Each element has its length in front, and may hold anything."""
    raw = b"".join(struct.pack("<I", len(element)) + element for element in elements)
    tensor = from_raw("x", "BYTES", shape, memoryview(raw))
    assert tensor.array.shape == shape
    assert tensor.array.ravel().tolist() == elements
    assert bytes(to_raw(tensor)) == raw


def test_text_in_json_is_utf8() -> None:
    """Of BYTES, JSON has the text."""
    tensor = from_json("x", "BYTES", (2,), ["é", ""])
    assert tensor.array.tolist() == ["é".encode(), b""]
    assert to_json_values(tensor) == ["é", ""]
    with pytest.raises(InvalidRequest, match='ask for it with the parameter "binary_data": true'):
        to_json_values(from_raw("x", "BYTES", (1,), memoryview(b"\x01\0\0\0\xff")))


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), (0, 1 << 61)])
def test_tensors_without_elements(shape: tuple[int, ...]) -> None:
    """They keep their shapes, but those that no array may have."""
    try:
        tensor = from_raw("x", "FP32", shape, memoryview(b""))
    except InvalidRequest:
        assert shape[1:] == (1 << 61,)
    else:
        assert tensor.array.shape == shape
        assert bytes(to_raw(tensor)) == b""
        assert list(to_json_values(tensor)) == []


def test_what_is_not_finite() -> None:
    """NaN is null, and infinity itself: it is not lost."""
    tensor = Tensor("x", "FP32", np.array([1, np.nan, np.inf], np.float32))
    assert to_json_values(tensor) == [1.0, None, float("inf")]


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "says"),
    [
        ("INT8", (1,), [128], "takes -128 to 127"),
        ("UINT8", (1,), [-1], "takes 0 to 255"),
        ("INT64", (1,), [1 << 70], "takes"),
        ("INT32", (1,), [1.0], "whole numbers, got 1.0"),
        ("INT32", (1,), [True], "whole numbers, got true"),
        ("BOOL", (1,), [1], "true and false, got 1"),
        ("FP32", (1,), ["1"], "numbers, got '1'"),
        ("FP32", (1,), [None], "numbers, got null"),
        ("FP64", (1,), [10**400], "a whole number is beyond"),
        ("BYTES", (1,), [1], "texts, got 1"),
        ("BYTES", (1,), ["\ud800"], "no Unicode"),
        ("FP32", (2,), [1.0], "has 2 elements, data has 1"),
        ("FP32", (2, 2), [[1.0, 2.0], 3.0, 4.0], "side by side"),
        ("FP32", (1,), [[1.0]], "numbers, got a list"),
        ("FP32", (1,), {"a": 1}, "data must be a list"),
        ("FP31", (1,), [1.0], "datatype must be one of"),
        ("BYTES", (1 << 30,), [], "at most 1048576"),
    ],
)
def test_wrong_json(datatype: str, shape: tuple[int, ...], data: Any, says: str) -> None:
    """Nothing is converted that would not be the same: the error says what is wrong."""
    with pytest.raises(InvalidRequest, match=says):
        from_json("x", datatype, shape, data)


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "says"),
    [
        ("FP32", (2,), b"1234", "has 8 bytes, got 4"),
        ("FP32", (1 << 60, 1 << 60), b"1234", "bytes, got 4"),
        ("BYTES", (1,), b"\x05\0\0\0ab", "ends behind"),
        ("BYTES", (1,), b"\x01\0", "ends behind"),
        ("BYTES", (1,), b"\xff\xff\xff\xff", "ends behind"),
        ("BYTES", (2,), b"\x01\0\0\0a", "2 elements expected, 1"),
        ("BYTES", (1,), b"\x01\0\0\0a\x01\0\0\0b", "5 bytes are left behind 1"),
    ],
)
def test_wrong_raw(datatype: str, shape: tuple[int, ...], raw: bytes, says: str) -> None:
    """Lengths that lie are found, and nothing is allocated for them."""
    with pytest.raises(InvalidRequest, match=says):
        from_raw("x", datatype, shape, memoryview(raw))


@pytest.mark.parametrize("shape", [None, 3, [-1], [1.5], [True], ["1"], [1] * 33, [1 << 63]])
def test_wrong_shapes(shape: Any) -> None:
    """A shape is a short list of whole numbers."""
    with pytest.raises(InvalidRequest, match="shape"):
        checked_shape("x", shape)


def test_answers_as_arrays() -> None:
    """Numbers are arrays; text and lists are not; what the protocol cannot say is refused in words."""
    for value, dtype in ((True, "bool"), (3, "int64"), (0.5, "float64"), (np.float32(1), "float32")):
        array = array_of("y", value)
        assert array is not None
        assert array.dtype == dtype
        assert array.shape == ()
    assert array_of("y", "text") is None
    assert array_of("y", [1]) is None
    for odd in (np.array([1j]), np.array(["2026-11-30"], "datetime64[D]")):
        with pytest.raises(AnswerNotServed, match="no datatype in the protocol"):
            array_of("y", odd)
    with pytest.raises(AnswerNotServed, match="does not fit into INT64"):
        array_of("y", 1 << 70)


def test_tensors_of_torch() -> None:
    """They are answers, too: floats of 16 bits of either kind, and those with a gradient."""
    torch = pytest.importorskip("torch")
    array = array_of("y", torch.ones(2, requires_grad=True))
    assert array is not None
    assert array.tolist() == [1, 1]
    pytest.importorskip("ml_dtypes")
    half = array_of("y", torch.tensor([0.5], dtype=torch.bfloat16))
    assert half is not None
    assert datatype_of(half.dtype) == "BF16"
    assert float(half[0]) == 0.5
