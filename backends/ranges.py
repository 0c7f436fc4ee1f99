"""Numbers held against what they are to become: a size against the most pixels, a value against a dtype.

Sizes are what a small request can make a large image of: whoever makes an image asks here first, before anything is
allocated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import Annotated, Any

import numpy as np

from fastpipe.contract import Backend, Between
from fastpipe.errors import ConfigError, KernelError

from .kinds import is_float, largest_of

__all__ = [
    "MOST_PIXELS",
    "MaxPixels",
    "box_of",
    "check_levels",
    "check_pixels",
    "check_results",
    "check_size",
    "fits",
    "may_overflow",
    "numbers_of",
    "overflow",
    "overflow_error",
]

MOST_PIXELS = 178_956_970  # half a gigabyte of three bytes each; Pillow's limit for what it decodes, too
MaxPixels = Annotated[int, Between(1, 1 << 30)]

# A pixel has up to four channels. An array of more is as many images, so that a thin one of a thousand channels cannot
# become a thousand times what a limit on its height and width allows.
CHANNELS_OF_A_PIXEL = 4


def check_pixels(backend: Backend, height: int, width: int, channels: int, max_pixels: int) -> None:
    """Refuse to make an image of more than ``max_pixels`` for a request; more than four channels count as more pixels.

    Raises:
        KernelError: if it would be larger.
    """
    if height * width * -(-channels // CHANNELS_OF_A_PIXEL) > max_pixels:
        raise KernelError(
            f"{type(backend).__name__}: expected a result of at most max_pixels = {max_pixels}, got {height} x {width} "
            f"pixels of {channels} channel{'s' if channels != 1 else ''}; a larger max_pixels allows them"
        )


def check_size(backend: Backend, height: int, width: int, max_pixels: int) -> None:
    """Refuse to build a backend whose results would all have more than ``max_pixels``.

    Raises:
        ConfigError: if they had.
    """
    if height * width > max_pixels:
        raise ConfigError(
            f"{type(backend).__name__}: a result of {height} x {width} pixels has more than max_pixels = {max_pixels}; "
            "a larger max_pixels allows it"
        )


def numbers_of(given: Any, dtype: Any) -> np.ndarray[Any, Any] | None:
    """Return nested lists of numbers, or an array, as an array of a dtype; None: that is not what they are.

    NumPy's own error would repeat a text that is none of a number, whatever its length.
    """
    try:
        with np.errstate(over="ignore"):
            return np.asarray(given, dtype)
    except (TypeError, ValueError, OverflowError):
        return None


def box_of(given: Any) -> tuple[int, int, int, int] | None:
    """Return left, top, right and bottom of a request's box, rounded; None: it is not four numbers in an order.

    The letters of a text and the keys of a dict would be numbers, too.
    """
    if isinstance(given, str | bytes | bytearray | Mapping | Set):
        return None
    try:
        left, top, right, bottom = (round(float(number)) for number in given)
    except (TypeError, ValueError, OverflowError):
        return None
    return left, top, right, bottom


def fits(number: float, lowest: float, highest: float) -> bool:
    """Say whether a number is within a dtype's range, and is one."""
    return math.isfinite(number) and lowest <= number <= highest


def may_overflow(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Say whether a finite number of one type may be infinite in the other."""
    if not is_float(wanted) or not (given.kind in "iu" or is_float(given)):
        return False
    largest = largest_of(given) if is_float(given) else float(np.iinfo(given).max)
    return largest > largest_of(wanted)


def overflow(given: Any, converted: Any) -> float | None:
    """Return a number that was finite and is not any more; None: there is none.

    Args:
        given: an array, or a tensor of torch.
        converted: the same in another type.
    """
    isfinite = np.isfinite if isinstance(given, np.ndarray) else type(given).isfinite
    lost = given[isfinite(given) & ~isfinite(converted)]
    return float(lost[0]) if len(lost) else None


def overflow_error(where: str, number: float, dtype: str, largest: float) -> KernelError:
    """Return the error of a request one of whose numbers would be infinite in the model's type."""
    return KernelError(
        f"{where}: expected values of {-largest:g} to {largest:g}, which is what {dtype} can hold, got {number:g}"
    )


def check_levels(mean: Sequence[float] | None, std: Sequence[float] | None, dtype: Any = np.float32) -> None:
    """Check ``mean`` and ``std`` as numbers of a dtype: finite, and no ``std`` zero, there too.

    Raises:
        ConfigError: with the name and what was given.
    """
    problems = []
    for name, values in (("mean", mean), ("std", std)):
        if values is None:
            continue
        with np.errstate(all="ignore"):
            converted = np.asarray(values, np.float64).astype(dtype)
        if not np.isfinite(converted).all():
            problems.append(f"{name} must have finite numbers of {np.dtype(dtype)}, got {list(values)}")
        elif name == "std" and not converted.all():
            problems.append(f"std must not have a zero in {np.dtype(dtype)}, got {list(values)}")
    if problems:
        raise ConfigError(*problems)


def check_results(mean: Sequence[float], std: Sequence[float], dtype: str) -> None:
    """Check that ``(byte - mean) / std`` is a number of a dtype for every byte; ``mean`` and ``std`` are checked.

    Raises:
        ConfigError: if one would become infinite.
    """
    limit = 65_504.0 if dtype == "float16" else 3.3895e38  # bfloat16 ends there, float32 hardly above
    with np.errstate(all="ignore"):
        ends = np.subtract.outer([0.0, 255.0], np.asarray(mean, np.float64)) / np.asarray(std, np.float64)
    largest = float(np.abs(ends).max())
    if not largest <= limit:
        raise ConfigError(f"mean and std make numbers of up to {largest:.6g}, which {dtype} has not")
