"""Images on a GPU, whatever library's they are, as rows of the table that the kernels read."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from fastpipe.errors import KernelError

from ._arguments import CHANNELS, Array, Color
from ._cuda_device import Device
from ._device_arrays import Arrays, arrays_of

__all__ = [
    "IMAGE",
    "Images",
    "adopted",
    "checked_images",
    "chosen",
    "table_of",
    "with_places",
]

IMAGE = np.dtype(
    [
        ("address", "u8"),
        ("row_stride", "i8"),
        *((name, "i4") for name in ("height", "width", "column_stride", "channel_stride")),
        *((name, "i4") for name in ("top", "left", "new_height", "new_width")),
    ]
)
"""A row of a table of images, ``struct Image`` of pixels.cu; the last four are the workspace's to fill in."""


class Images(NamedTuple):
    """Checked images of one call."""

    arrays: Arrays
    number: int
    rows: Any  # of IMAGE, in any buffer; of one array only the first
    is_array: bool
    stride: int  # of one array, from image to image
    kept: Any  # lives until the launch is queued


def checked_images(images: Any, source: Color, gpu: Device) -> Images:
    """Return the images of a call, whatever form they came in."""
    if source not in CHANNELS:
        raise KernelError(f"source: expected 'bgr', 'rgb' or 'gray', got {source!r}")
    channels = CHANNELS[source]
    if isinstance(images, np.ndarray) and images.dtype == IMAGE:
        rows = images if images.flags.c_contiguous else images.copy()
        return Images(_default_arrays(gpu), len(rows), rows, False, 0, rows)
    if isinstance(images, list | tuple):
        if not images:
            raise KernelError("images: expected at least one in a list, got none")
        arrays, first = arrays_of(images[0], gpu.cupy)
        if arrays is None:
            raise KernelError(f"images[0]: expected an array on GPU {gpu.number}, got a {type(images[0]).__name__}")
        if first is not images[0] or set(map(type, images)) != {type(first)}:
            images = [_of_library(number, image, arrays, gpu) for number, image in enumerate(images)]
        return Images(arrays, len(images), arrays.describe(images, channels, gpu.number), False, 0, images)
    arrays, batch = arrays_of(images, gpu.cupy)
    if arrays is None or batch.ndim != 3 + (channels == 3):
        axes = "(n, height, width, 3)" if channels == 3 else "(n, height, width)"
        got = f"a {type(images).__name__}" if arrays is None else f"shape {tuple(batch.shape)}"
        raise KernelError(f"images: expected a list, or an array of shape {axes} on GPU {gpu.number}, got {got}")
    if not batch.shape[0]:
        raise KernelError("images: expected at least one, got none")
    count, stride, row = arrays.describe_batch(batch, channels, gpu.number)
    return Images(arrays, count, row, True, stride, batch)


def _of_library(number: int, image: Any, wanted: Arrays, gpu: Device) -> Any:
    arrays, image = arrays_of(image, gpu.cupy)
    if arrays is not wanted:
        raise KernelError(f"images[{number}]: expected an array like images[0], on the GPU, got {type(image).__name__}")
    return image


@functools.cache
def _default_arrays(gpu: Device) -> Arrays:
    arrays, _ = adopted(gpu.cupy.empty(0, np.uint8), gpu)
    return arrays


def adopted(out: Any, gpu: Device) -> tuple[Arrays, Any]:
    arrays, adopted = arrays_of(out, gpu.cupy)
    if arrays is None:
        raise KernelError(f"out: expected an array on GPU {gpu.number}, got a {type(out).__name__}")
    return arrays, adopted


def table_of(images: Images) -> Array:
    """Return the rows of all images, as an array of IMAGE of the caller's own."""
    rows = np.frombuffer(images.rows, IMAGE)
    if not images.is_array:
        return rows.copy()
    table = np.repeat(rows, images.number)
    table["address"] += (np.arange(images.number) * images.stride).astype(np.uint64)
    return table


def chosen(images: Images, indices: Any) -> Images:
    """Return images by their numbers, any of them several times."""
    numbers = np.asarray(indices)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise KernelError(f"indices: expected whole numbers, got {numbers.dtype} of shape {numbers.shape}")
    if numbers.size and (numbers.min() < 0 or numbers.max() >= images.number):
        raise KernelError(f"indices: expected numbers of {images.number} images, got {numbers.tolist()}")
    return images._replace(rows=images.rows[numbers], number=len(numbers))


def with_places(images: Images, places: Any, size: tuple[int, int]) -> tuple[Images, Array]:
    """Return the images with their places in the table."""
    wanted = np.asarray(places)
    if wanted.shape != (images.number, 4) or wanted.dtype.kind not in "iu":
        expected = f"whole numbers of shape {(images.number, 4)}"
        raise KernelError(f"places: expected {expected}, got {wanted.dtype} of shape {wanted.shape}")
    starts, sides = wanted[:, :2], wanted[:, 2:]
    wrong = ((starts < 0) | (sides < 1) | (starts + sides > size)).any(axis=1)
    if wrong.any():
        place = wanted[wrong][0].tolist()
        raise KernelError(f"places: expected top, left, height and width inside of {size}, got {place}")
    table = table_of(images)
    for column, name in enumerate(("top", "left", "new_height", "new_width")):
        table[name] = wanted[:, column]
    return images._replace(rows=table, is_array=False, stride=0), wanted
