"""The kernels for arrays on an NVIDIA GPU: each makes a whole batch, of images of different sizes too, in one launch.

    workspace = cuda.Workspace(0)
    batch = workspace.resize_normalize(images, 224, 224, filter="pillow", mean=MEAN, std=STD, target="rgb",
                                       dtype="float16")

Images and results are CuPy arrays or torch tensors; whatever else has ``__dlpack__`` or ``__cuda_array_interface__`` is
taken too, and what is returned has ``__dlpack__``. The work is queued on the caller's current stream and not awaited.
``reference`` is the judge: the bytes before mean and std are its bytes, and the floats its floats.

The CUDA sources are the ``.cu`` files beside this one, compiled at first use, or by ``Workspace.prepare``: NVRTC takes
about a second for each, once, as CuPy keeps what it made on disk.

Tables of images are arguments of a launch: 64 images, or 480 that differ in nothing but where they lie. More images
become up to four launches; still more, or the matrices of ``warp_normalize``, are written into pinned memory and queued
as one copy. In the steady state nothing is allocated but the result, and not even that if the caller gives ``out``.
"""

from __future__ import annotations

import ctypes
import functools
import math
import struct
import threading
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from fastpipe.errors import KernelError

from ._arguments import CHANNELS, Array, Color, check_fill, check_levels
from ._cuda_bands import Extent, Limits, Pieces, opencv_pieces, pillow_pieces
from ._cuda_device import OUTPUTS, Device, Slot, device
from ._cuda_images import IMAGE, Images, adopted, checked_images, chosen, table_of, with_places
from ._device_arrays import stream_handle
from ._launches import extent_of, write_first_row, write_rows
from .reference import BLUE, GREEN, RED

__all__ = ["IMAGE", "Color", "Filter", "Workspace", "describe", "workspace"]

Filter = Literal["opencv", "pillow", "pillow13"]
"""Whose bilinear resizing it is: OpenCV's, Pillow's up to 12, or Pillow 13's."""

# The beginning of struct Batch; _look makes what follows, and the table is the end.
_BATCH = struct.Struct("<QQQq9i")
_LOOK = struct.Struct("<9i9f4x")
TABLE_AT = _BATCH.size + _LOOK.size

# Tables of up to so many images are arguments of the launch: a copy before it takes the device 10 us. Images that are
# alike need one row and an address each.
TABLE_ROWS = 64
ALIKE_ROWS = (TABLE_ROWS - 1) * IMAGE.itemsize // 8
# So many launches take less than a copy and one launch.
MOST_LAUNCHES = 4

# Where the images are: enum Source of pixels.cu.
BY_ROW, BY_STRIDE, BY_ADDRESS = range(3)

# Images of one launch, and rows or columns of a result: the second and third coordinate of a grid end at 65,535.
LARGEST_LAUNCH, LARGEST_SIDE = 32_768, 262_140
# A slot that the device still reads from is waited for; so many calls may be queued before that.
SLOTS = 8

# The pieces of normalize and warp, in their sources' words: THREADS x GROUP pixels, or more; COLUMNS x THREAD_ROWS.
THREADS, MOST_GROUPS = 128, 4
TILE_COLUMNS, TILE_ROWS = 32, 8


class Workspace:
    """What calls on one GPU need from call to call: compiled kernels, pinned memory, memory of the device, events.

    Args:
        device: the number of the GPU.
        slots: how many calls may be queued before one has to wait until the first of them was run.
        max_batch: for how many images there is memory at the start; more are accepted, and allocated for.

    Raises:
        MissingExtra: if CuPy is not installed.
        RuntimeError: if there is no such GPU.

    Thread-safety: one call at a time; others wait. Calls may come on different streams.
    Not to be used while a stream is captured into a CUDA graph: its memory is written to again.
    """

    def __init__(self, device: int | Device = 0, *, slots: int = SLOTS, max_batch: int = 64) -> None:
        self._device = _device(device) if isinstance(device, int) else device
        self._limits = Limits(self._device.multiprocessors, self._device.shared_bytes)
        self._lock = threading.Lock()
        self._slot_bytes = max(max_batch, 1) * (IMAGE.itemsize + 72)
        self._slots = [self._device.slot(self._slot_bytes) for _ in range(max(slots, 2))]
        self._next = 0
        self._batch = ctypes.create_string_buffer(TABLE_AT + TABLE_ROWS * IMAGE.itemsize)
        self._memory = memoryview(self._batch).cast("B")
        self._address = ctypes.addressof(self._batch)

    def __del__(self) -> None:
        for slot in getattr(self, "_slots", ()):
            slot.wait()  # a copy from pinned memory that is freed would read anything

    def prepare(self, dtypes: Sequence[str] = OUTPUTS) -> None:
        """Compile every kernel for these results, or load it from disk, so that no later call has to."""
        for name in ("normalize", "resize_opencv", "resize_pillow", "warp"):
            for dtype in dtypes:
                self._device.function(name, OUTPUTS.index(_dtype_name(dtype)))

    def normalize(
        self,
        images: Any,
        *,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        source: Color = "bgr",
        target: Color = "bgr",
        dtype: Any = None,
        out: Any = None,
        stream: Any = None,
    ) -> Any:
        """Return ``(image - mean) / std`` with the channels converted and moved to the front: ``reference.normalize``.

        Args:
            images: uint8, not modified, any strides: a batch (n, h, w, 3) as one array, or a list of images (h, w, 3)
                of one size, or what ``describe`` made of it. Without the last axis if ``source`` is gray. They are the
                caller's to keep until the stream has passed.
            mean: a number, or one for each channel of ``target``, in its order, on the scale 0-255.
            std: the same, none zero.
            source: what the channels of ``images`` are: "bgr", "rgb" or "gray".
            target: what they are to be.
            dtype: "float32", "float16" or "bfloat16" (torch only); by default that of ``out``, else float32.
            out: where to write; C-contiguous, of the result's shape and dtype, on this GPU.
            stream: CuPy's, torch's or Numba's, or its handle; by default the current one of the images' library.

        Returns:
            ``out``, or a new array (n, c, h, w) of the images' library; c is 1 for gray.

        Raises:
            KernelError: if shape, dtype, layout or device differ; the message has both, expected and got.
            RuntimeError: if the GPU fails.
        """
        checked = self._images(images, source)
        lowest, height, narrowest, width, are_alike = extent_of(checked.rows)
        if (lowest, narrowest) != (height, width):
            table = table_of(checked)
            sizes = sorted(set(zip(table["height"].tolist(), table["width"].tolist(), strict=True)))
            raise KernelError(f"images: expected images of one size, got {sizes}")
        look = _look(_hashable(mean), _hashable(std), source, target, 0)
        output = _output(dtype, out)
        group = 4 if output == 0 else 8
        groups = MOST_GROUPS if height * width % group else 1
        chunk = THREADS * group * groups
        pieces = Pieces(groups, 1, (THREADS, 1), 3 * (chunk + 8 * group) + 48)
        blocks = (-(-height * width // chunk), 1)
        return self._run("normalize", checked, (height, width), look, output, out, stream, blocks, pieces, are_alike)

    def resize_normalize(
        self,
        images: Any,
        height: int,
        width: int,
        *,
        filter: Filter,
        places: Any = None,
        fill: int | Sequence[int] = 0,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        source: Color = "bgr",
        target: Color = "bgr",
        dtype: Any = None,
        out: Any = None,
        stream: Any = None,
    ) -> Any:
        """Resize images of any sizes to one, convert their colors and normalise: ``reference.resize_normalize``.

        A crop is a slice of an image; a letter-box is a place. Both are part of the same launch.

        Args:
            images: as for ``normalize``, but each of its own size, none empty.
            height: of the results.
            width: of the results.
            filter: "opencv": cv2.INTER_LINEAR, the bits of ``reference.resize``. "pillow": Pillow's BILINEAR, which
                smooths what becomes smaller, the bits of Pillow up to 12. "pillow13": those of Pillow 13, which are
                others where the height shrinks by more than twice as many pixels as the width (slower there).
            places: int array (n, 4): top, left, height and width of where each image goes, inside of the result; by
                default all of it.
            fill: 0-255, or one for each channel of ``target``: what is where no image is, before mean and std.
            mean: as for ``normalize``; so are all others.
            std: see there.
            source: see there.
            target: see there.
            dtype: see there.
            out: see there.
            stream: see there.

        Returns:
            ``out``, or a new array (n, c, height, width) of the images' library.

        Raises:
            KernelError: as for ``normalize``, or if a place is not inside.
            RuntimeError: if the GPU fails.
        """
        if filter not in ("opencv", "pillow", "pillow13"):
            raise KernelError(f"filter: expected 'opencv', 'pillow' or 'pillow13', got {filter!r}")
        size = _size(height, width)
        checked = self._images(images, source)
        look = _look(_hashable(mean), _hashable(std), source, target, _hashable(fill))
        output = _output(dtype, out)
        if places is not None:
            checked, places = with_places(checked, places, size)
        _, highest, _, widest, are_alike = extent_of(checked.rows)
        extent = Extent(highest, widest, *(size if places is None else places[:, 2:].min(axis=0).tolist()))
        if filter == "opencv":
            name, pieces = "resize_opencv", opencv_pieces(self._limits, extent, checked.number, size)
        else:
            name, pieces = "resize_pillow", pillow_pieces(self._limits, extent, checked.number, size)
        blocks = pieces.grid(size)
        return self._run(
            name,
            checked,
            size,
            look,
            output,
            out,
            stream,
            blocks,
            pieces,
            are_alike,
            has_places=places is not None,
            variant=filter == "pillow13",
        )

    def warp_normalize(
        self,
        images: Any,
        matrices: Any,
        height: int,
        width: int,
        *,
        indices: Any = None,
        border: Literal["fill", "repeat"] = "fill",
        as_opencv_4: bool = False,
        fill: int | Sequence[int] = 0,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        source: Color = "bgr",
        target: Color = "bgr",
        dtype: Any = None,
        out: Any = None,
        stream: Any = None,
    ) -> Any:
        """Cut boxes out of images through perspective matrices, bilinear: ``reference.warp``, colors, normalise.

        Args:
            images: as for ``resize_normalize``.
            matrices: float64 (n, 3, 3), in host memory: from (x, y, 1) of a result to where that is in its image;
                ``reference.perspective`` makes them from corners. cv2.warpPerspective's with WARP_INVERSE_MAP.
            height: of the results.
            width: of the results.
            indices: for each matrix, the number of its image; by default each image has one matrix.
            border: what lies outside of an image: "fill", or the pixel of its edge that is nearest, "repeat".
            as_opencv_4: round positions to 1/32 of a pixel, as OpenCV up to 4 does; by default they are finer.
            fill: as for ``resize_normalize``; so are all others.
            mean: see there.
            std: see there.
            source: see there.
            target: see there.
            dtype: see there.
            out: see there.
            stream: see there.

        Returns:
            ``out``, or a new array (n, c, height, width) of the images' library.

        Raises:
            KernelError: as for ``normalize``, or if matrices or indices are wrong.
            RuntimeError: if the GPU fails.
        """
        if border not in ("fill", "repeat"):
            raise KernelError(f"border: expected 'fill' or 'repeat', got {border!r}")
        size = _size(height, width)
        checked = self._images(images, source)
        checked = checked._replace(rows=table_of(checked), is_array=False, stride=0)
        if indices is not None:
            checked = chosen(checked, indices)
        wanted = np.ascontiguousarray(matrices, np.float64)
        if wanted.shape != (checked.number, 3, 3):
            raise KernelError(f"matrices: expected shape {(checked.number, 3, 3)}, got {wanted.shape}")
        look = _look(_hashable(mean), _hashable(std), source, target, _hashable(fill))
        pieces = Pieces(TILE_ROWS, TILE_COLUMNS, (TILE_COLUMNS, TILE_ROWS), 0)
        return self._run(
            "warp",
            checked,
            size,
            look,
            _output(dtype, out),
            out,
            stream,
            (math.prod(pieces.grid(size)), 1),
            pieces,
            False,
            matrices=wanted.reshape(-1, 9),
            variant=(border == "repeat") + 2 * as_opencv_4,
        )

    def _images(self, images: Any, source: Color) -> Images:
        return checked_images(images, source, self._device)

    def _run(
        self,
        name: str,
        images: Images,
        size: tuple[int, int],
        look: bytes,
        output: int,
        out: Any,
        stream: Any,
        blocks: tuple[int, int],
        pieces: Pieces,
        are_alike: bool,
        *,
        has_places: bool = False,
        matrices: Array | None = None,
        variant: int = 0,
    ) -> Any:
        """Launch a kernel for all images; ``blocks`` for each."""
        gpu, count = self._device, images.number
        planes = look[0]
        shape = (count, planes, *size)
        adapter = images.arrays
        if out is None:
            out = result = adapter.empty(shape, OUTPUTS[output], gpu.number)
        else:
            adapter, result = adopted(out, gpu)
        address = adapter.address(result, shape, OUTPUTS[output], gpu.number)
        if address % 16:
            raise KernelError(f"out: expected memory that is 16-byte aligned, got address {address:#x}")
        if not count or not size[0] or not size[1]:
            return out
        handle = images.arrays.stream(gpu.number) if stream is None else stream_handle(stream)
        function = gpu.function(name, output)
        image_bytes = planes * size[0] * size[1] * (4 if output == 0 else 2)
        source, part, is_copied = _source(images, are_alike, matrices)
        numbers = (
            source,
            *size,
            has_places,
            pieces.band,
            pieces.strip,
            pieces.most_bands,
            pieces.shared_bytes,
            variant,
        )
        with self._lock:
            for start in range(0, count, part):
                part = min(count - start, part)
                slot, table_bytes, table, matrix_address = None, 0, 0, 0
                if is_copied:
                    slot, table_bytes, matrix_at = self._fill_slot(images.rows, matrices, start, part)
                    table, matrix_address = slot.device_address, slot.device_address + matrix_at
                elif images.is_array:
                    write_first_row(self._address + TABLE_AT, images.rows, start * images.stride)
                else:
                    write_rows(self._address + TABLE_AT, images.rows, start, part, source == BY_ADDRESS)
                result_address = address + start * image_bytes
                _BATCH.pack_into(self._memory, 0, table, matrix_address, result_address, images.stride, *numbers)
                self._memory[_BATCH.size : TABLE_AT] = look
                grid = (*blocks, part)
                gpu.launch(
                    function, grid, pieces.threads, pieces.shared_bytes, self._address, handle, slot, table_bytes
                )
        return out

    def _fill_slot(self, rows: Any, matrices: Array | None, start: int, count: int) -> tuple[Slot, int, int]:
        """Write tables into the next slot; return it, the bytes used, and where in them the matrices begin."""
        matrix_at = count * IMAGE.itemsize
        used = matrix_at + (0 if matrices is None else count * 72)
        number = self._next
        self._next = (number + 1) % len(self._slots)
        slot = self._slots[number]
        slot.wait()
        if used > len(slot.host):
            self._slot_bytes = max(self._slot_bytes, 2 * used)
            slot = self._slots[number] = self._device.slot(self._slot_bytes)
        write_rows(slot.host_address, rows, start, count, False)
        if matrices is not None:
            slot.host[matrix_at:used].view(np.float64)[:] = matrices[start : start + count].reshape(-1)
        return slot, used, matrix_at


def _source(images: Images, are_alike: bool, matrices: Array | None) -> tuple[int, int, bool]:
    """Return how a launch is told of its images, how many one has, and whether their table is copied before."""
    if images.is_array:
        return BY_STRIDE, LARGEST_LAUNCH, False
    source, part = (BY_ADDRESS, ALIKE_ROWS) if are_alike else (BY_ROW, TABLE_ROWS)
    if matrices is not None or images.number > MOST_LAUNCHES * part:
        return BY_ROW, LARGEST_LAUNCH, True
    return source, min(part, LARGEST_LAUNCH), False


def workspace(device: int = 0) -> Workspace:
    """Return this thread's own workspace on a GPU, the same each time."""
    mine: dict[int, Workspace] | None = getattr(_of_thread, "workspaces", None)
    if mine is None:
        mine = _of_thread.workspaces = {}
    if device not in mine:
        mine[device] = Workspace(device)
    return mine[device]


def describe(images: Any, source: Color = "bgr", *, device: int | Device = 0) -> Array:
    """Return the table of images that lie in buffers which are used again and again: an array of ``IMAGE``.

    A call that is given it instead of the images has less to do, by half a microsecond an image. Rows may be chosen,
    and changed (a crop adds to the address), with NumPy. It keeps no image alive.

    Raises:
        KernelError: as ``Workspace.normalize``.
    """
    return table_of(checked_images(images, source, _device(device) if isinstance(device, int) else device))


_of_thread = threading.local()
_device = device  # parameters have this name, too


# Tuples: a union made for each call costs more than all else that is looked at.
_WHOLE, _NUMBER = (int, np.integer), (int, float)


@functools.lru_cache(maxsize=256)
def _look(mean: Any, std: Any, source: Color, target: Color, fill: Any) -> bytes:
    """Return the part of a launch that says how a byte becomes a number: ``struct Batch`` from ``planes`` on."""
    means, stds = check_levels(mean, std, source, target)
    planes = CHANNELS[target]
    fills = check_fill(fill, planes)
    weights = [0, 0, 0]
    if target == "gray" and source != "gray":
        weights = [BLUE, GREEN, RED] if source == "bgr" else [RED, GREEN, BLUE]
    is_reversed = {source, target} == {"bgr", "rgb"}
    three: list[Any] = [np.broadcast_to(values, planes).tolist() * (3 // planes) for values in (fills, means, stds)]
    with np.errstate(all="ignore"):
        reciprocals = np.float32(1) / np.array(three[2], np.float32)
    is_quick = _divides_by_reciprocal(*(np.array(values, np.float32) for values in (three[1], three[2], reciprocals)))
    return _LOOK.pack(planes, is_reversed, *weights, *three[0], is_quick, *three[1], *three[2], *reciprocals.tolist())


def _divides_by_reciprocal(mean: Array, std: Array, reciprocal: Array) -> bool:
    """Say whether ``normalized<true>`` of pixels.cu divides each of the 256 bytes to the last bit.

    Its two fused operations are computed in float64, where each product is exact. What the sums then lose matters only
    where rounding them to float32 is undecided; there the answer is no. So it is where a float is so small that the GPU
    may take it for zero.
    """
    with np.errstate(all="ignore"):
        difference = np.arange(256, dtype=np.float32)[:, np.newaxis] - mean
        quotient = difference * reciprocal
        remainder = (difference - quotient.astype(np.float64) * std).astype(np.float32)
        corrected = quotient + remainder.astype(np.float64) * reciprocal
        below = np.nextafter(corrected, -np.inf).astype(np.float32)
        above = np.nextafter(corrected, np.inf).astype(np.float32)
        is_decided = (below == above).all() and (above == difference / std).all()
        steps = np.stack(np.broadcast_arrays(difference, quotient, remainder, above, std, reciprocal))
        return bool(is_decided and ((steps == 0) | (np.abs(steps) > np.float32(2.0**-120))).all())


def _size(height: int, width: int) -> tuple[int, int]:
    for what, side in (("height", height), ("width", width)):
        if not isinstance(side, _WHOLE) or side < 1:
            raise KernelError(f"{what}: expected a whole number of at least 1, got {side!r}")
        if side > LARGEST_SIDE:
            raise KernelError(f"{what}: expected at most {LARGEST_SIDE}, got {side}")
    return int(height), int(width)


def _hashable(value: Any) -> Any:
    return value if isinstance(value, _NUMBER) else tuple(value)


def _output(dtype: Any, out: Any) -> int:
    """Return the place in OUTPUTS of what the result is made of."""
    if dtype is None:
        if out is None:
            return 0
        dtype = getattr(out, "dtype", None)
    return _output_of(dtype)


@functools.lru_cache(maxsize=64)
def _output_of(dtype: Any) -> int:
    name = _dtype_name(dtype)
    if name not in OUTPUTS:
        raise KernelError(f"dtype: expected float32, float16 or bfloat16, got {name}")
    return OUTPUTS.index(name)


def _dtype_name(dtype: Any) -> str:
    """Return "float16" for NumPy's, CuPy's or torch's float16, and for its name."""
    return dtype.__name__ if isinstance(dtype, type) else str(dtype).rpartition(".")[2]
