"""Kinds of values beside NumPy's own numbers: text, and the narrow floats of the package ml_dtypes.

Text is an array of dtype object whose elements are ``str``, and nothing else: ONNX Runtime writes down ``str(element)``
of whatever it gets, and of a NumPy array of bytes it reads beyond the elements.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpipe.errors import MissingExtra

__all__ = [
    "TEXT",
    "as_float32",
    "as_text",
    "blank",
    "dtype_name",
    "from_torch",
    "is_float",
    "is_narrow",
    "largest_of",
    "may_become",
    "narrow_dtype",
    "random_text",
    "tensor_of",
]

TEXT = np.dtype(np.object_)
"""The dtype of text; there are no other objects."""

_TEXT_KINDS = "OSUT"  # object, bytes, str, StringDType
_NARROW = ("bfloat16", "float8_")

_WORDS = ("", "a", "cat", "The dog", "\u00fc\u6f22", "x1", "yes")
_NUMBERS = ("0", "1", "2", "3.5", "-1", "10")


def narrow_dtype(name: str, who: str) -> np.dtype[Any]:
    """Return a dtype of ml_dtypes.

    Raises:
        MissingExtra: if that is not installed.
    """
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingExtra(who, "dtypes", error) from error
    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def is_narrow(dtype: np.dtype[Any]) -> bool:
    """Say whether it is a float of ml_dtypes: bfloat16, or one of 8 bits."""
    return dtype.isbuiltin == 2 and dtype.name.startswith(_NARROW)  # 2: registered by another package


def is_float(dtype: np.dtype[Any]) -> bool:
    """Say whether it is a float, of NumPy or of ml_dtypes."""
    return dtype.kind == "f" or is_narrow(dtype)


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return what messages call a dtype."""
    return "text" if dtype == TEXT else str(dtype.name)


def largest_of(dtype: np.dtype[Any]) -> float:
    """Return the largest number of a float."""
    # Whoever has such a dtype has imported it.
    finfo: Any = sys.modules["ml_dtypes"].finfo if is_narrow(dtype) else np.finfo
    return float(finfo(dtype).max)


def may_become(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Say whether values may be converted: rounded to a float, but never wrapped around, nor without a fraction."""
    if wanted == TEXT or given == TEXT:
        return given == wanted
    if is_float(wanted):
        return given.kind in "biu" or is_float(given)
    return bool(np.can_cast(given, wanted, "safe"))


def as_text(value: Any) -> npt.NDArray[Any] | None:
    """Return text as an array of ``str`` objects; bytes are read as UTF-8. None: it is no text.

    Args:
        value: a ``str``, ``bytes``, or an array of objects, ``str``, ``bytes`` or NumPy's StringDType. Not modified.

    Raises:
        ValueError: if an element is none, or no Unicode; the message says which.
    """
    if isinstance(value, str | bytes):
        array = np.empty((), np.object_)
        array[()] = value
    elif isinstance(value, np.ndarray) and value.dtype.kind in _TEXT_KINDS:
        array = value if value.dtype == TEXT else value.astype(np.object_)
    else:
        return None
    elements = array.ravel().tolist()
    try:
        "".join(elements).encode()
    except (TypeError, UnicodeEncodeError):
        array = np.empty(array.shape, np.object_)
        array.reshape(-1)[:] = [_decoded(element, number) for number, element in enumerate(elements)]
    return array


def _decoded(element: Any, number: int) -> str:
    if isinstance(element, bytes):
        try:
            return element.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"bytes that are no UTF-8 ({error.reason}) in element {number}") from None
    if not isinstance(element, str):
        raise ValueError(f"a {type(element).__name__} in element {number}, which is neither str nor bytes")
    try:
        element.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text that is no Unicode ({error.reason}) in element {number}") from None
    return str(element)


def blank(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return an array of zeros, or of empty text."""
    return np.full(shape, "", TEXT) if dtype == TEXT else np.zeros(shape, dtype)


def random_text(shape: tuple[int, ...], random: np.random.Generator, *, are_numbers: bool) -> npt.NDArray[Any]:
    """Return pseudo-random words, or numbers written out, for a model that is tried: half of them are in no list."""
    choices = _NUMBERS if are_numbers else _WORDS
    picked = zip(random.integers(0, len(choices), shape).flat, random.integers(0, 2000, shape).flat, strict=True)
    found = np.empty(shape, TEXT)
    found.reshape(-1)[:] = [
        choices[index] if number < 1000 else str(number) if are_numbers else f"{choices[index]}{number}"
        for index, number in picked
    ]
    return found


def as_float32(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array whose numbers NumPy can compare: narrow floats become float32, all else stays."""
    return array.astype(np.float32) if is_narrow(array.dtype) else array


def from_torch(tensor: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
    """Return a torch tensor as an array of the narrow dtype that it has, over the same memory; None: it has another."""
    torch: Any = sys.modules["torch"]
    if tensor.dtype is not getattr(torch, dtype.name, None):
        return None
    bits = tensor.detach().view(torch.int16 if dtype.itemsize == 2 else torch.uint8)
    return np.asarray(bits.numpy()).view(dtype)


def tensor_of(array: npt.NDArray[Any]) -> Any:
    """Return an array as a torch tensor over the same memory; text, and what torch does not have, as it is."""
    torch: Any = sys.modules["torch"]
    if not is_narrow(array.dtype):
        return array if array.dtype == TEXT else torch.from_numpy(array)
    dtype = getattr(torch, array.dtype.name, None)
    if dtype is None:
        return array
    return torch.from_numpy(array.view(np.int16 if array.itemsize == 2 else np.uint8)).view(dtype)
