"""The data types of the Open Inference Protocol, as NumPy arrays and back: from JSON, from raw binary, to both.

| datatype | array |
|---|---|
| BOOL, INT8 ... INT64, UINT8 ... UINT64, FP16, FP32, FP64 | of that dtype |
| BF16 | of ``ml_dtypes.bfloat16``, which the package ml-dtypes has |
| BYTES | of dtype object; each element is ``bytes``, whatever it holds: a JPEG, text |

What comes is checked completely: names, shape, length, the type and the range of each number. Arrays that are made of
raw binary are views of it: nothing is copied, unless its place in memory does not fit its type. They are as writable as
the buffer is.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpipe.announcing import DATATYPES
from fastpipe.errors import MissingExtra, in_brief
from fastpipe.serve.statuses import AnswerNotServed, InvalidRequest

__all__ = [
    "Array",
    "Tensor",
    "array_of",
    "as_bytes",
    "checked_shape",
    "datatype_of",
    "dtype_of",
    "from_json",
    "from_raw",
    "to_json_values",
    "to_raw",
]

Array = npt.NDArray[Any]

MOST_AXES = 32
MOST_ELEMENTS_OF_BYTES = 1 << 20
"""Of a tensor of BYTES, whose elements are objects: 4 bytes of a body could otherwise become a hundred."""

_NUMBERS: dict[str, npt.DTypeLike] = {
    "BOOL": np.bool_,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
_DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(kind) for name, kind in _NUMBERS.items()}
_NAME_OF: dict[np.dtype[Any], str] = {dtype: name for name, dtype in _DTYPES.items()}
_NAME_OF_CHAR: dict[str, str] = {dtype.char: name for name, dtype in _DTYPES.items()}
"""For most arrays: NumPy computes the hash of a dtype each time, for thousands of instructions."""
_OF_NUMPY = (np.ndarray, np.generic)
"""Not ``|``, which would make a type of both at each call."""


@dataclass(slots=True)
class Tensor:
    """A tensor of a request or an answer.

    ``array`` has the shape; its dtype is the one of ``datatype``, in the machine's byte order. BYTES: dtype object,
    and each element is ``bytes``. What comes from a request is checked; what goes into an answer is C-contiguous.
    """

    name: str
    datatype: str
    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes; one may be 0."""
        return self.array.shape


def dtype_of(datatype: str) -> np.dtype[Any]:
    """Return the dtype of an array of that datatype; of BYTES, object.

    Raises:
        InvalidRequest: there is no such datatype.
        MissingExtra: it is BF16, and ml-dtypes is not installed.
    """
    found = _DTYPES.get(datatype)
    if found is not None:
        return found
    if datatype == "BYTES":
        return np.dtype(object)
    if datatype == "BF16":
        return _bfloat16()
    raise InvalidRequest(f"datatype must be one of {', '.join(DATATYPES)}, got {in_brief(datatype)}")


def _bfloat16() -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingExtra("the datatype BF16", "serve", error) from error
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


def datatype_of(dtype: np.dtype[Any]) -> str | None:
    """Return the datatype of an array's dtype, in either byte order; None: the protocol has none for it."""
    found = _NAME_OF_CHAR.get(dtype.char) if dtype.isnative else None
    if found is not None:
        return found
    found = _NAME_OF.get(dtype)
    if found is None and not dtype.isnative:
        found = _NAME_OF.get(dtype.newbyteorder("="))
    if found is None and dtype.name == "bfloat16":
        return "BF16"
    if found is None and dtype.kind in "OSU":
        return "BYTES"
    return found


# ---- of requests -----------------------------------------------------------------------------------------------


def checked_shape(name: str, shape: Any) -> tuple[int, ...]:
    """Return a shape that a request has brought.

    Raises:
        InvalidRequest: it is no list of whole numbers from 0 on, or has more axes than arrays may have.
    """
    if not isinstance(shape, list | tuple) or not all(type(size) is int and 0 <= size < 1 << 62 for size in shape):
        raise InvalidRequest(f"tensor {in_brief(name)}: shape must be a list of whole numbers from 0 on")
    if len(shape) > MOST_AXES:
        raise InvalidRequest(f"tensor {in_brief(name)}: shape has {len(shape)} axes; at most {MOST_AXES} are taken")
    return tuple(shape)


def from_raw(name: str, datatype: str, shape: tuple[int, ...], raw: memoryview) -> Tensor:
    """Return a tensor over raw binary: numbers little-endian and row by row, elements of BYTES behind their lengths.

    Args:
        name: of the tensor, for errors.
        datatype: of the protocol.
        shape: checked.
        raw: all bytes of the tensor, and no more; kept alive by the array.

    Raises:
        InvalidRequest: as many bytes are no tensor of that shape; no such datatype.
    """
    if datatype == "BYTES":
        return Tensor(name, datatype, _reshaped(name, _objects(_elements(name, raw, _count(name, shape))), shape))
    dtype = dtype_of(datatype)
    expected_bytes = math.prod(shape) * dtype.itemsize
    if expected_bytes != raw.nbytes:
        raise InvalidRequest(
            f"tensor {in_brief(name)}: {datatype} of shape {list(shape)} has {expected_bytes} bytes, got {raw.nbytes}"
        )
    array: Array = np.frombuffer(raw, dtype) if expected_bytes else np.empty(0, dtype)
    if not array.flags.aligned:  # behind a tensor of another type; libraries in C may read it as if it were
        array = array.copy()
    return Tensor(name, datatype, _reshaped(name, array, shape))


def _reshaped(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    try:
        return array.reshape(shape)
    except ValueError as error:  # axes so long that their product is too much, beside one of length 0
        raise InvalidRequest(f"tensor {in_brief(name)}: shape {list(shape)}: {error}") from None


def _count(name: str, shape: tuple[int, ...]) -> int:
    """Return how many elements of BYTES that is."""
    count = math.prod(shape)
    if count > MOST_ELEMENTS_OF_BYTES:
        raise InvalidRequest(
            f"tensor {in_brief(name)}: {count} elements of BYTES; at most {MOST_ELEMENTS_OF_BYTES} are taken"
        )
    return count


def _elements(name: str, raw: memoryview, count: int) -> list[bytes]:
    """Return the elements of BYTES, each of which has its length in front, in 4 bytes, little-endian."""
    elements: list[bytes] = []
    position, end = 0, raw.nbytes
    while position < end:
        if len(elements) == count:
            raise InvalidRequest(f"tensor {in_brief(name)}: {end - position} bytes are left behind {count} elements")
        start = position + 4
        position = start + struct.unpack_from("<I", raw, position)[0] if start <= end else end + 1
        if position > end:
            raise InvalidRequest(f"tensor {in_brief(name)}: element {len(elements)} ends behind the tensor's bytes")
        elements.append(bytes(raw[start:position]))
    if len(elements) != count:
        raise InvalidRequest(f"tensor {in_brief(name)}: {count} elements expected, {len(elements)} are there")
    return elements


def _objects(elements: Sequence[object]) -> Array:
    """Return a one-axis array of objects, whatever these are."""
    array: Array = np.empty(len(elements), object)
    for index, element in enumerate(elements):
        array[index] = element
    return array


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> Tensor:
    """Return a tensor of the numbers, texts or truth values of a JSON document, nested or flat, row by row.

    Raises:
        InvalidRequest: too many or too few, of another type, or beyond the datatype's range; no such datatype.
    """
    flat = _flat(name, shape, data)
    is_bytes = datatype == "BYTES"
    expected = _count(name, shape) if is_bytes else math.prod(shape)
    if len(flat) != expected:
        raise InvalidRequest(
            f"tensor {in_brief(name)}: shape {list(shape)} has {expected} elements, data has {len(flat)}"
        )
    array = _objects(_encoded(name, flat)) if is_bytes else _numbers(name, datatype, flat)
    return Tensor(name, datatype, _reshaped(name, array, shape))


def _flat(name: str, shape: tuple[int, ...], data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise InvalidRequest(f"tensor {in_brief(name)}: data must be a list, got {in_brief(data)}")
    flat: list[Any] = data
    for _ in shape[1:]:
        if not flat or type(flat[0]) is not list:
            break
        if set(map(type, flat)) != {list}:
            raise InvalidRequest(f"tensor {in_brief(name)}: data has lists and other values side by side")
        flat = list(chain.from_iterable(flat))
    return flat


def _encoded(name: str, flat: list[Any]) -> list[bytes]:
    _check_types(name, "BYTES", flat, {str}, "texts")
    try:
        return [text.encode() for text in flat]
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write
        raise InvalidRequest(f"tensor {in_brief(name)}: data has text that is no Unicode") from None


def _numbers(name: str, datatype: str, flat: list[Any]) -> Array:
    dtype = dtype_of(datatype)
    if dtype.kind == "b":
        _check_types(name, datatype, flat, {bool}, "true and false")
        return np.array(flat, dtype)
    if dtype.kind in "iu":
        _check_types(name, datatype, flat, {int}, "whole numbers")
        limits = np.iinfo(dtype)
        if flat and not (limits.min <= min(flat) and max(flat) <= limits.max):
            raise InvalidRequest(f"tensor {in_brief(name)}: {datatype} takes {limits.min} to {limits.max}")
        return np.array(flat, dtype)
    _check_types(name, datatype, flat, {int, float}, "numbers")
    try:
        array = np.array(flat, np.float64)
    except OverflowError:
        raise InvalidRequest(f"tensor {in_brief(name)}: a whole number is beyond what {datatype} can hold") from None
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(dtype)


def _check_types(name: str, datatype: str, flat: list[Any], allowed: set[type], words: str) -> None:
    odd = set(map(type, flat)) - allowed
    if odd:
        found = next(value for value in flat if type(value) in odd)
        raise InvalidRequest(f"tensor {in_brief(name)}: data of {datatype} are {words}, got {_json_brief(found)}")


def _json_brief(value: Any) -> str:
    words = {type(None): "null", list: "a list", dict: "an object", bool: str(value).lower()}
    return words.get(type(value)) or in_brief(value)


# ---- of answers ------------------------------------------------------------------------------------------------


def array_of(name: str, value: Any) -> Array | None:
    """Return what a pipe has answered as an array, if it is numbers; None: it is text, bytes, a list, a dict.

    A torch tensor is copied from its GPU; everything else that has ``__array__`` is asked for that.

    Raises:
        AnswerNotServed: the protocol has no datatype for it.
    """
    if type(value) is np.ndarray:
        array: Array = value
    elif isinstance(value, _OF_NUMPY):
        array = np.asarray(value)
    elif isinstance(value, bool | int | float):
        array = _number(name, value)
    elif hasattr(value, "__array__"):
        array = _foreign(name, value)
    else:
        return None
    if datatype_of(array.dtype) is None:
        raise AnswerNotServed(
            f"output {name!r}: an array of {array.dtype} has no datatype in the protocol; the pipe has to answer one "
            "of booleans, integers, floats, bytes or text"
        )
    return array


def _number(name: str, value: float) -> Array:
    kind: type = np.bool_ if isinstance(value, bool) else np.int64 if isinstance(value, int) else np.float64
    try:
        return np.array(value, kind)
    except OverflowError:
        raise AnswerNotServed(f"output {name!r}: {in_brief(value)} does not fit into INT64") from None


def _foreign(name: str, value: Any) -> Array:
    try:
        if callable(getattr(value, "detach", None)):
            value = value.detach().cpu()
            if str(value.dtype) == "torch.bfloat16":
                bits = value.view(sys.modules["torch"].int16)  # NumPy has no such type; torch is there, as its value is
                return np.asarray(bits.numpy()).view(_bfloat16())
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AnswerNotServed(f"output {name!r}: a {type(value).__name__} is no array: {error}") from error


def as_bytes(name: str, value: object) -> bytes:
    """Return text as UTF-8, and bytes-like objects as they are, for an element of BYTES.

    Raises:
        AnswerNotServed: it is something else.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    raise AnswerNotServed(f"output {name!r}: an element is {in_brief(value)}, neither bytes nor text")


def to_raw(tensor: Tensor) -> memoryview | bytes:
    """Return a tensor as raw binary, the inverse of ``from_raw``; of numbers, a view of the array: nothing is copied.

    Args:
        tensor: of an answer: its array is C-contiguous and in the machine's byte order, which is taken to be little.
    """
    array = tensor.array
    if tensor.datatype == "BYTES":
        parts: list[bytes] = []
        for element in array.ravel():
            parts += (struct.pack("<I", len(element)), element)
        return b"".join(parts)
    return array.reshape(-1).view(np.uint8).data if array.size else b""


def to_json_values(tensor: Tensor) -> Array | list[Any]:
    """Return the values of a tensor for a JSON document, flat and row by row.

    Returns:
        a one-axis array of numbers that are finite and of a dtype of NumPy's own; or a list, in which NaN is None, and
        infinity the float, for which JSON has no word that every reader knows.

    Raises:
        InvalidRequest: elements of BYTES are no UTF-8; the message says to ask for binary data.
    """
    array = tensor.array.reshape(-1)
    if tensor.datatype == "BYTES":
        try:
            return [element.decode() for element in array]
        except UnicodeDecodeError:
            raise InvalidRequest(
                f"output {tensor.name!r} has bytes that are no UTF-8, for which JSON has no form: ask for it with the "
                'parameter "binary_data": true'
            ) from None
    if tensor.datatype == "BF16":
        array = array.astype(np.float32)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return [None if math.isnan(value) else value for value in array.tolist()]
    return array
