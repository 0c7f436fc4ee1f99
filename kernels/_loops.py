"""The loops of ``fastpipe.kernels.cpu``: what Numba compiles. Importing this imports Numba; nothing is compiled yet.

An image is seen as four integers, a row of ``images``: its address, and the bytes from one row, column and channel to
the next. So one compiled function serves every layout, and one call, with one release of the GIL, a batch of images
that lie anywhere. Whoever calls a loop keeps the arrays alive and has checked every size.

Each loop exists twice, keeping the GIL and releasing it; ``cpu`` chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numba.extending import intrinsic, overload

__all__ = ["ARE_COMPILED", "convert", "convert_nogil", "normalize", "normalize_nogil", "resize", "resize_nogil"]

_numba: Any = numba  # its annotations are incomplete
_carray = _numba.carray

ARE_COMPILED = not _numba.config.DISABLE_JIT  # False: addresses cannot be read here, and nothing below can be called

Function = TypeVar("Function", bound=Callable[..., Any])

# What is in a row of ``images``.
ADDRESS, ROW_STRIDE, COLUMN_STRIDE, CHANNEL_STRIDE = range(4)

# An index of this type cannot be negative; Numba would test each of the others for it, which halves the speed.
Index = np.uintp


def _compiled(*, nogil: bool = False) -> Callable[[Function], Function]:
    """Decorate a function for Numba; its machine code is kept on disk, where there is a folder to keep it in."""

    def decorate(function: Function) -> Function:
        compiled: Function
        try:
            compiled = _numba.njit(function, nogil=nogil, cache=True)
        except RuntimeError:  # neither this file's folder nor the user's cache folder can be written to
            compiled = _numba.njit(function, nogil=nogil)
        return compiled

    return decorate


def _make_pointer(typing_context: Any, address: Any) -> Any:
    """Tell Numba how to make a pointer to bytes of an integer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return _numba.types.CPointer(_numba.types.uint8)(_numba.types.intp), generate


_pointer: Any = intrinsic(_make_pointer)


@_compiled()
def _row(images: Any, image: int, row: int, width: int, channels: int, scratch: Any) -> Any:
    """Return the bytes of a row, pixel after pixel: in place if they lie so, else gathered in ``scratch``."""
    address = images[image, ADDRESS] + row * images[image, ROW_STRIDE]
    column_stride = images[image, COLUMN_STRIDE]
    channel_stride = images[image, CHANNEL_STRIDE]
    if column_stride == channels and (channel_stride == 1 or channels == 1):
        return _carray(_pointer(address), width * channels)
    for column in range(width):
        for channel in range(channels):
            byte = _carray(_pointer(address + column * column_stride + channel * channel_stride), 1)
            scratch[Index(column * channels + channel)] = byte[0]
    return scratch


@_compiled()
def _gray(row: Any, weights: Any, gray: Any) -> Any:
    """Fill ``gray`` with the weighted sum of each pixel's three channels, rounded, and return it."""
    first, second, third = np.int32(weights[0]), np.int32(weights[1]), np.int32(weights[2])
    for column in range(len(gray)):
        at = Index(3) * Index(column)
        total = first * row[at] + second * row[at + Index(1)] + third * row[at + Index(2)]
        gray[Index(column)] = np.uint8((total + np.int32(2**14)) >> np.int32(15))
    return gray


# ---- bytes to bytes --------------------------------------------------------------------------------------------------


@_compiled()
def convert(images: Any, height: int, width: int, channels: int, weights: Any, out: Any) -> None:
    """Write one image to ``out``, uint8 of shape (height, width * channels of the result).

    Three channels become one if ``weights`` (of gray, in the image's order) are not zero, and else three in the
    opposite order; one becomes three equal ones.
    """
    scratch = np.empty(width * channels, np.uint8)
    for y in range(height):
        row = _row(images, 0, y, width, channels, scratch)
        out_row = out[y]
        if weights[0] != 0:
            _gray(row, weights, out_row)
        elif channels == 1:
            for column in range(width):
                at = Index(3) * Index(column)
                out_row[at] = out_row[at + Index(1)] = out_row[at + Index(2)] = row[Index(column)]
        else:
            for column in range(width):
                at = Index(3) * Index(column)
                first, second, third = row[at], row[at + Index(1)], row[at + Index(2)]
                out_row[at], out_row[at + Index(1)], out_row[at + Index(2)] = third, second, first


@_compiled(nogil=True)
def convert_nogil(images: Any, height: int, width: int, channels: int, weights: Any, out: Any) -> None:
    """``convert``, with the GIL released once."""
    convert(images, height, width, channels, weights, out)


# ---- bytes to normalised planes --------------------------------------------------------------------------------------


def _value(level: Any, byte: Any) -> Any:
    """Return what a byte is in a plane: by the plane's mean and std, or by its table."""
    raise NotImplementedError  # compiled code only


@overload(_value, strict=False)  # the lambdas lack the annotations that a strict comparison would want
def _compile_value(level: Any, byte: Any) -> Any:
    if isinstance(level, _numba.types.BaseTuple):
        return lambda level, byte: (np.float32(byte) - level[0]) / level[1]
    return lambda level, byte: level[byte]


@_compiled()
def normalize(
    images: Any, height: int, width: int, channels: int, weights: Any, levels: Any, order: Any, out: Any
) -> None:
    """Write a batch to ``out``, of shape (n, planes, height * width).

    ``levels`` has for each plane, in ``out``'s order, either its mean and std, for float32, or what each of the 256
    bytes becomes, for what Numba cannot compute in (float16, as its bits in uint16). ``order`` says which plane the
    image's first, second and third channel go to; for ``weights`` see ``convert``.
    """
    scratch = np.empty(width * channels, np.uint8)
    gray = np.empty(width, np.uint8)
    first_level, second_level, third_level = levels
    if order[0] == 2:
        first_level, third_level = third_level, first_level
    for image in range(len(images)):
        planes = out[image]
        for y in range(height):
            start, stop = y * width, (y + 1) * width
            row = _row(images, image, y, width, channels, scratch)
            if channels == 3 and weights[0] == 0:
                # One loop for all three: it is vectorised as loads of 3 channels and stores of 3 planes, and took
                # 40 us for 224 x 224, where three loops took 100 us.
                first = planes[order[0]][start:stop]
                second = planes[order[1]][start:stop]
                third = planes[order[2]][start:stop]
                for column in range(width):
                    at = Index(3) * Index(column)
                    first[Index(column)] = _value(first_level, row[at])
                    second[Index(column)] = _value(second_level, row[at + Index(1)])
                    third[Index(column)] = _value(third_level, row[at + Index(2)])
                continue
            if channels == 3:
                row = _gray(row, weights, gray)
            for index in range(len(planes)):
                plane = planes[index][start:stop]
                level = levels[index]
                for column in range(width):
                    plane[Index(column)] = _value(level, row[Index(column)])


@_compiled(nogil=True)
def normalize_nogil(
    images: Any, height: int, width: int, channels: int, weights: Any, levels: Any, order: Any, out: Any
) -> None:
    """``normalize``, with the GIL released once."""
    normalize(images, height, width, channels, weights, levels, order, out)


# ---- bytes of another size -------------------------------------------------------------------------------------------


@_compiled()
def _blend_columns(row: Any, first: Any, second: Any, weights: Any, blended: Any) -> None:
    """Fill ``blended`` with the pixels of a row at its new width, times 2**11."""
    for column in range(len(first)):
        left, right = first[Index(column)], second[Index(column)]
        left_weight, right_weight = weights[0, Index(column)], weights[1, Index(column)]
        at = Index(3) * Index(column)
        for channel in range(3):
            value = np.int32(row[left + Index(channel)] * left_weight)
            blended[at + Index(channel)] = value + np.int32(row[right + Index(channel)] * right_weight)


@_compiled()
def _blend_rows(upper: Any, lower: Any, upper_weight: int, lower_weight: int, out_row: Any) -> None:
    """Write a row of the result; OpenCV drops these bits at these steps."""
    # A product of two int32 is an int64 to Numba; cast back, so that twice as many fit into a vector.
    for byte in range(len(out_row)):
        first = np.int32(np.int32(upper_weight) * (upper[Index(byte)] >> np.int32(4))) >> np.int32(16)
        second = np.int32(np.int32(lower_weight) * (lower[Index(byte)] >> np.int32(4))) >> np.int32(16)
        out_row[Index(byte)] = np.uint8((first + second + np.int32(2)) >> np.int32(2))


@_compiled()
def resize(images: Any, width: int, rows: Any, columns: Any, out: Any) -> None:
    """Write one image to ``out``, uint8 of shape (new height, new width * 3).

    ``rows`` has, for each row of the result, the upper row of the image that it is made of, the lower one, and their
    weights; ``columns`` the same for its columns. See ``reference.taps``.
    """
    scratch = np.empty(width * 3, np.uint8)
    first, second = (columns[0] * 3).astype(Index), (columns[1] * 3).astype(Index)
    weights = columns[2:].astype(np.int32)
    blended = np.empty((2, out.shape[1]), np.int32)
    holds = np.full(2, -1)  # which row of the image each half of ``blended`` is made of
    for y in range(len(out)):
        for part in range(2):
            wanted = rows[part, y]
            if holds[0] == wanted or holds[1] == wanted:
                continue
            half = 0 if holds[0] != rows[1 - part, y] else 1  # the one that this row of the result does not need
            row = _row(images, 0, wanted, width, 3, scratch)
            _blend_columns(row, first, second, weights, blended[half])
            holds[half] = wanted
        upper = blended[0] if holds[0] == rows[0, y] else blended[1]
        lower = blended[0] if holds[0] == rows[1, y] else blended[1]
        _blend_rows(upper, lower, rows[2, y], rows[3, y], out[y])


@_compiled(nogil=True)
def resize_nogil(images: Any, width: int, rows: Any, columns: Any, out: Any) -> None:
    """``resize``, with the GIL released once."""
    resize(images, width, rows, columns, out)
