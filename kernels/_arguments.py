"""What the kernels take: checked here, once, for every module that computes; the messages have expected and got."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from fastpipe.errors import KernelError

__all__ = [
    "CHANNELS",
    "Array",
    "Color",
    "Normalization",
    "check_conversion",
    "check_fill",
    "check_levels",
    "check_normalization",
    "check_resize",
    "documented_as",
]

Array = npt.NDArray[Any]
Color = Literal["bgr", "rgb", "gray"]
"""The order of an image's channels; gray has one."""

CHANNELS = {"bgr": 3, "rgb": 3, "gray": 1}

Function = TypeVar("Function", bound=Callable[..., Any])


def documented_as(other: Callable[..., Any]) -> Callable[[Function], Function]:
    """Decorate a function that does what ``other`` does: ``help`` shows that one's docstring behind its own."""

    def decorate(function: Function) -> Function:
        function.__doc__ = f"{inspect.getdoc(function) or ''}\n\n{inspect.getdoc(other) or ''}"
        return function

    return decorate


class Normalization(NamedTuple):
    """Checked arguments of ``normalize``."""

    images: list[Array]  # uint8, each (h, w, 3) or, gray, (h, w), all of one size; any strides
    mean: Array  # float32, one per output channel
    std: Array  # float32, one per output channel, none zero
    out: Array  # float32 or float16, C-contiguous, (c, h, w) or (n, c, h, w), as the caller is to see it
    batch_nchw: Array  # the same memory, always (n, c, h, w)


def check_conversion(image: Array, source: str, target: str, out: Array | None) -> Array:
    """Check the arguments of ``convert_color``; return ``out``, made here if the caller gave none."""
    _check_color("source", source)
    _check_color("target", target)
    _check_pixels("image", image, source)
    return _check_apart(image, out, image.shape[:2] + ((3,) if CHANNELS[target] == 3 else ()))


def check_resize(image: Array, height: int, width: int, out: Array | None) -> Array:
    """Check the arguments of ``resize``; return ``out``, made here if the caller gave none."""
    _check_pixels("image", image, "bgr")
    for what, side, new_side in (("height", image.shape[0], height), ("width", image.shape[1], width)):
        if not side:
            raise KernelError(f"image: expected a {what} of at least 1, got shape {image.shape}")
        if isinstance(new_side, bool) or not isinstance(new_side, int | np.integer) or new_side < 1:
            raise KernelError(f"{what}: expected a whole number of at least 1, got {new_side!r}")
    return _check_apart(image, out, (int(height), int(width), 3))


def check_normalization(
    images: Array | Sequence[Array],
    mean: float | Sequence[float],
    std: float | Sequence[float],
    source: str,
    target: str,
    dtype: npt.DTypeLike | None,
    out: Array | None,
) -> Normalization:
    """Check the arguments of ``normalize``, and make ``out`` if the caller gave none."""
    mean_per_channel, std_per_channel = check_levels(mean, std, source, target)
    channels = CHANNELS[target]
    if dtype is None:
        dtype = np.float32 if out is None else out.dtype
    if np.dtype(dtype) not in (np.float32, np.float16):
        raise KernelError(f"dtype: expected float32 or float16, got {np.dtype(dtype)}")

    if isinstance(images, np.ndarray):
        is_batch = images.ndim > (3 if CHANNELS[source] == 3 else 2)
        _check_pixels("images", images, source, is_batch=is_batch)
        height, width = images.shape[1:3] if is_batch else images.shape[:2]
        images = list(images) if is_batch else [images]
    else:
        is_batch = True
        images = list(images)
        if not images:
            raise KernelError("images: expected at least one in a list, got none")
        for number, image in enumerate(images):
            _check_pixels(f"images[{number}]", image, source)
            if image.shape != images[0].shape:
                raise KernelError(f"images[{number}]: expected {images[0].shape}, as images[0], got {image.shape}")
        height, width = images[0].shape[:2]

    shape = (len(images), channels, height, width) if is_batch else (channels, height, width)
    is_callers = out is not None
    out = _check_out(out, shape, np.dtype(dtype))
    if is_callers and any(np.may_share_memory(image, out) for image in images):  # see _check_apart
        raise KernelError("out: expected memory of its own, got some that an image shares")
    batch_nchw = out if is_batch else out[np.newaxis]
    return Normalization(images, mean_per_channel, std_per_channel, out, batch_nchw)


def check_levels(
    mean: float | Sequence[float], std: float | Sequence[float], source: str, target: str
) -> tuple[Array, Array]:
    """Check colors, mean and std; return the latter as float32, one per channel of ``target``, read-only."""
    _check_color("source", source)
    _check_color("target", target)
    channels = CHANNELS[target]
    return _per_channel("mean", _hashable(mean), channels), _per_channel("std", _hashable(std), channels)


def check_fill(fill: Any, planes: int) -> Array:
    """Check what is to be where no image is: a byte, or one for each of ``planes``; return it as an array."""
    fills = np.asarray(fill)
    is_whole = fills.dtype.kind in "iu" and fills.shape in ((), (planes,))
    if not is_whole or not (fills.min() >= 0 and fills.max() <= 255):
        raise KernelError(f"fill: expected a whole number of 0 to 255, or {planes} of them, got {fill!r}")
    return fills


def _check_color(what: str, color: str) -> None:
    if color not in CHANNELS:
        raise KernelError(f"{what}: expected 'bgr', 'rgb' or 'gray', got {color!r}")


def _check_pixels(what: str, image: Array, color: str, *, is_batch: bool = False) -> None:
    has_channels = CHANNELS[color] == 3
    if (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and image.ndim == 2 + is_batch + has_channels
        and (not has_channels or image.shape[-1] == 3)
    ):
        return
    axes = ["n"] * is_batch + ["height", "width"] + ["3"] * has_channels
    got = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
    raise KernelError(f"{what}: expected a uint8 array of shape ({', '.join(axes)}) for {color}, got {got}")


def _hashable(value: float | Sequence[float]) -> Any:
    return value if isinstance(value, int | float) else tuple(value) if isinstance(value, Iterable) else value


@functools.lru_cache(maxsize=256)  # a pipe uses the same few values again and again; checking them took 16 us
def _per_channel(what: str, value: Any, channels: int) -> Array:
    try:
        numbers = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        raise KernelError(f"{what}: expected a number or {channels} of them, got {value!r}") from None
    if numbers.shape not in ((), (1,), (channels,)):
        raise KernelError(f"{what}: expected a number or {channels} of them, got {value!r}")
    if not np.isfinite(numbers).all():
        raise KernelError(f"{what}: expected finite numbers, got {value!r}")
    if what == "std" and not numbers.all():
        raise KernelError(f"std: expected no zero, got {value!r}")
    per_channel = np.array(np.broadcast_to(numbers, channels))
    per_channel.flags.writeable = False  # shared by all who ask
    return per_channel


def _check_apart(image: Array, out: Array | None, shape: tuple[int, ...]) -> Array:
    is_callers = out is not None
    out = _check_out(out, shape, np.dtype(np.uint8))
    # Not asked of an array made here: NumPy releases the GIL for it, which cpu.GIL_KEPT_BELOW_PIXELS is to avoid.
    if is_callers and np.may_share_memory(image, out):
        raise KernelError("out: expected memory of its own, got some that the image shares")
    return out


def _check_out(out: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if out is None:
        return np.empty(shape, dtype)
    expected = f"a writable, C-contiguous {dtype} array of shape {shape}"
    if not isinstance(out, np.ndarray):
        raise KernelError(f"out: expected {expected}, got a {type(out).__name__}")
    if out.dtype != dtype or out.shape != shape:
        raise KernelError(f"out: expected {expected}, got {out.dtype} of shape {out.shape}")
    if not out.flags.c_contiguous:
        raise KernelError(f"out: expected {expected}, got one with strides {out.strides}")
    if not out.flags.writeable:
        raise KernelError(f"out: expected {expected}, got a read-only one")
    return out
