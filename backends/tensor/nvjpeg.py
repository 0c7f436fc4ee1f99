"""nvJPEG through its C interface, as far as decoding a batch needs it; nothing else knows its structures.

The interface has been the same for many versions of CUDA. Why no Python binding: those take and release the GIL several
times for each image, and a thread that wants the GIL back from one that computes waits for 5 ms each time. Here, the
short calls (a microsecond or two each: no image is decoded in them) keep it, and the one that decodes releases it: one
release for a batch.

**Two decoders a GPU.** The JPEG engines are hardware of their own, and one decoder nearly keeps them busy. A second one
bridges what a thread takes to get the GIL back; more make all of them slower beside a model. So the instances of a
process share what there is for a GPU (``_Pool``), and take turns.

**Two ways to decode.** With pipelining (nvJPEG's default) a batch takes a seventh less time while the GPU is idle, and
twenty times as long as soon as another stream has kernels queued, whatever its priority. Which of the two is quicker
depends on what else runs, so it is measured: ``_Chooser``.
"""

from __future__ import annotations

import ctypes
import importlib.util
import threading
import time
from collections import defaultdict
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from fastpipe.errors import MissingExtra

__all__ = ["SUCCESS", "BatchDecoder", "Library", "Picture", "load", "status_name"]

# On an H200, images/s by 1 / 2 / 4 (one run): 517x606 to tensors by map 21.8k / 28.7k / 27.8k; 1280x720 to
# classes by map, two instances, 9.0k / 8.2k / 6.8k; lists beside a thread that computes, share 0.47 / 0.71 / 1.04.
MOST_DECODERS = 2

LIBRARY = "libnvjpeg.so.13"
DRIVER = "libcuda.so.1"

# ---- what the library's header says ----------------------------------------------------------------------------------

_ENGINES, _KERNELS = 3, 2  # backends: the JPEG engines; where a GPU has none, its cores
_NO_PIPELINE, _INTERPOLATE = 1 << 0, 1 << 5  # flags
_INTERLEAVED = {"rgb": 5, "bgr": 6}
_CSS_444, _CSS_422, _CSS_420, _CSS_440, _CSS_GRAY = 0, 1, 2, 3, 6
_SAMPLINGS = frozenset({_CSS_444, _CSS_422, _CSS_420, _CSS_440, _CSS_GRAY})  # those that the engines take
_HELPERS = 1  # threads of the CPU, which the engines do not need
_NON_BLOCKING_STREAM, _UNTIMED_EVENT = 1, 2  # of the driver

SUCCESS = 0
_BAD_JPEG, _NOT_SUPPORTED, _INTERNAL, _NOT_IMPLEMENTED, _INCOMPLETE = 3, 4, 8, 9, 10
_FAULTS_OF_IMAGES = frozenset({_BAD_JPEG, _NOT_SUPPORTED, _INTERNAL, _NOT_IMPLEMENTED, _INCOMPLETE})
_STATUSES = (
    "success",
    "not initialized",
    "invalid parameter",
    "the image is damaged",
    "its way of encoding is not supported",
    "allocator failure",
    "execution failed",
    "wrong architecture",
    "internal error",
    "not implemented",
    "the image is not complete",
)


class Destination(ctypes.Structure):
    """``nvjpegImage_t``: up to four planes. Interleaved pixels are the first one."""

    _fields_ = (("channel", ctypes.c_void_p * 4), ("pitch", ctypes.c_size_t * 4))


class Picture(NamedTuple):
    """What the library reads in the header of encoded bytes."""

    width: int
    height: int
    is_decodable: bool  # its chroma has a size that the engines take


def status_name(status: int) -> str:
    """Return in words what a function of the library returned, the number where there is no word for it."""
    return _STATUSES[status] if 0 <= status < len(_STATUSES) else f"status {status}"


def check(function: str, returned: int) -> None:
    """Raise RuntimeError if a function of the library, or of the driver, returned an error."""
    if returned:
        by_number = f"error {returned}" if function.startswith("cu") else status_name(returned)
        raise RuntimeError(f"nvJPEG: {function}: {by_number}")


# ---- the library -----------------------------------------------------------------------------------------------------

_HANDLE, _OUT, _INT = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_int
_INTS = ctypes.POINTER(ctypes.c_int)
_SIZES, _SOURCES = ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_char_p)
_FUNCTIONS: dict[str, list[Any]] = {
    "nvjpegCreateEx": [_INT, _HANDLE, _HANDLE, ctypes.c_uint, _OUT],
    "nvjpegDestroy": [_HANDLE],
    "nvjpegJpegStateCreate": [_HANDLE, _OUT],
    "nvjpegJpegStateDestroy": [_HANDLE],
    "nvjpegGetImageInfo": [_HANDLE, ctypes.c_char_p, ctypes.c_size_t, _INTS, _INTS, _INTS, _INTS],
    "nvjpegDecodeBatchedInitialize": [_HANDLE, _HANDLE, _INT, _INT, _INT],
    "nvjpegDecodeBatched": [_HANDLE, _HANDLE, _SOURCES, _SIZES, ctypes.POINTER(Destination), _HANDLE],
}
_DRIVER_FUNCTIONS: dict[str, list[Any]] = {
    "cuCtxGetStreamPriorityRange": [_INTS, _INTS],
    "cuStreamCreateWithPriority": [_OUT, ctypes.c_uint, _INT],
    "cuStreamQuery": [_HANDLE],
    "cuStreamSynchronize": [_HANDLE],
    "cuStreamDestroy_v2": [_HANDLE],
    "cuEventCreate": [_OUT, ctypes.c_uint],
    "cuEventRecord": [_HANDLE, _HANDLE],
    "cuStreamWaitEvent": [_HANDLE, _HANDLE, ctypes.c_uint],
    "cuEventDestroy_v2": [_HANDLE],
}


class Library:
    """nvJPEG's shared library and CUDA's driver, loaded.

    ``short`` and ``driver`` keep the GIL while they are called, ``long`` and ``waiting`` release it.

    Args:
        path: of ``libnvjpeg.so``; also a name that the loader finds.
        driver: of ``libcuda.so``.

    Raises:
        OSError: if one of them cannot be loaded.
    """

    def __init__(self, path: str, driver: str = DRIVER) -> None:
        self.short, self.long = _loaded(ctypes.PyDLL, path, _FUNCTIONS), _loaded(ctypes.CDLL, path, _FUNCTIONS)
        self.driver = _loaded(ctypes.PyDLL, driver, _DRIVER_FUNCTIONS)
        self.waiting = _loaded(ctypes.CDLL, driver, _DRIVER_FUNCTIONS)


def _loaded(kind: type[ctypes.CDLL], path: str, functions: dict[str, list[Any]]) -> Any:
    library = kind(path)
    for name, arguments in functions.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    return library


def load() -> Library:
    """Return the library of the installed package, or of an installed CUDA.

    Raises:
        MissingExtra: if there is neither, or no driver of CUDA.
    """
    try:
        found = importlib.util.find_spec("nvidia")
    except ImportError:
        found = None
    folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
    beside = chain.from_iterable((folder / "cu13" / "lib", folder / "nvjpeg" / "lib") for folder in folders)
    path = next((str(folder / LIBRARY) for folder in beside if (folder / LIBRARY).is_file()), LIBRARY)
    try:
        return Library(path)
    except OSError as error:
        name = "CUDA's driver" if DRIVER in str(error) else f"nvJPEG ({LIBRARY})"
        raise MissingExtra("DecodeTensor", "cuda", ImportError(str(error), name=name)) from error


# ---- which way -------------------------------------------------------------------------------------------------------

_PIPELINED, _PLAIN = 0, 1


class _Chooser:
    """Which of the two ways is quicker just now, for batches of about one size.

    The other way is tried once in so many batches, four times as rarely after each time that it lost; and at once, if
    the pipelined way takes twice as long as it did at its best: that is how it looks when a model shares the GPU.
    """

    FIRST_GAP, LONGEST_GAP, GROWTH = 4, 4096, 4  # batches
    SLOWED = 2.0
    BETTER = 0.9  # less is noise

    def __init__(self) -> None:
        self.current = _PIPELINED
        self._costs: list[float | None] = [None, None]
        self._best = float("inf")
        self._gap = self._left = self.FIRST_GAP

    def choose(self) -> int:
        """Return the way of the next batch."""
        return self.current if self._left > 0 else 1 - self.current

    def note(self, way: int, cost: float) -> None:
        """Take in what a batch has cost, in nanoseconds a byte."""
        usual = self._costs[self.current]
        if way == self.current:
            self._costs[way] = cost if usual is None else (usual + cost) / 2
            self._best = min(self._best, cost)
            self._left -= 1
            if way == _PIPELINED and cost > self.SLOWED * self._best:
                self._left = 0
            return
        if usual is not None and cost < self.BETTER * usual:
            self.current, self._best, self._gap = way, cost, self.FIRST_GAP
            self._costs[way] = cost
        else:
            self._gap = min(self._gap * self.GROWTH, self.LONGEST_GAP)
        self._left = self._gap


# ---- what all instances share ----------------------------------------------------------------------------------------


class _Way:
    """A handle of nvJPEG with its state, in which batches of one size and one order of channels can be decoded."""

    def __init__(self, library: Library, backend: int, flags: int) -> None:
        self._library = library
        self.handle, self.state = ctypes.c_void_p(), ctypes.c_void_p()
        self.ready_for = (0, 0)  # how many images, and the format
        try:
            check("nvjpegCreateEx", library.long.nvjpegCreateEx(backend, None, None, flags, self.handle))
            check("nvjpegJpegStateCreate", library.long.nvjpegJpegStateCreate(self.handle, self.state))
        except BaseException:
            self.close()
            raise

    def prepare(self, count: int, output: int) -> None:
        if self.ready_for != (count, output):
            initialize = self._library.short.nvjpegDecodeBatchedInitialize
            self.ready_for = (0, 0)
            check("nvjpegDecodeBatchedInitialize", initialize(self.handle, self.state, count, _HELPERS, output))
            self.ready_for = (count, output)

    def close(self) -> None:
        for owner, destroy in (
            (self.state, self._library.long.nvjpegJpegStateDestroy),
            (self.handle, self._library.long.nvjpegDestroy),
        ):
            if owner.value:
                handle, owner.value = owner.value, None
                destroy(handle)


class _Engines:
    """What decodes on one GPU, with one kind of upsampling, for everybody in the process.

    ``lock`` is held while a batch is decoded, without the GIL; all else here is guarded by it.
    """

    def __init__(self, library: Library, interpolates: bool) -> None:
        self._library = library
        self.lock = threading.Lock()
        self._choosers: defaultdict[int, _Chooser] = defaultdict(_Chooser)
        self._stream, self._before, self._after = (ctypes.c_void_p() for _ in range(3))
        self._ways: list[_Way] = []
        flags = _INTERPOLATE if interpolates else 0
        try:
            try:
                for flag in (0, _NO_PIPELINE):  # in the order of _PIPELINED and _PLAIN
                    self._ways.append(_Way(library, _ENGINES, flags | flag))
            except RuntimeError:
                if self._ways:
                    raise
                self._ways.append(_Way(library, _KERNELS, flags))  # it has no engines; all other trouble shows again
            least, greatest = ctypes.c_int(), ctypes.c_int()
            driver = library.driver
            check("cuCtxGetStreamPriorityRange", driver.cuCtxGetStreamPriorityRange(least, greatest))
            create = driver.cuStreamCreateWithPriority
            check("cuStreamCreateWithPriority", create(self._stream, _NON_BLOCKING_STREAM, greatest))
            for event in (self._before, self._after):
                check("cuEventCreate", driver.cuEventCreate(event, _UNTIMED_EVENT))
        except BaseException:
            self.close()
            raise

    @property
    def reader(self) -> ctypes.c_void_p:
        """The handle by which headers are read, by any thread."""
        return self._ways[0].handle

    def decode(self, batch: BatchDecoder, count: int, stream: int) -> int:
        """Decode a batch: ``stream`` is waited for, and waits for its pixels. Return the status of all of it.

        ``lock`` is held.
        """
        chooser = self._choosers[count.bit_length()] if len(self._ways) > 1 else None
        way = self._ways[number := chooser.choose() if chooser else 0]
        driver, mine = self._library.driver, self._stream
        # The library may hang if a batch begins while it is still at work on the one before, in either way.
        if driver.cuStreamQuery(mine):
            check("cuStreamSynchronize", self._library.waiting.cuStreamSynchronize(mine))
        way.prepare(count, batch.output)
        check("cuEventRecord", driver.cuEventRecord(self._before, stream))
        check("cuStreamWaitEvent", driver.cuStreamWaitEvent(mine, self._before, 0))
        begun_ns = time.perf_counter_ns()
        status: int = self._library.long.nvjpegDecodeBatched(
            way.handle, way.state, batch.sources, batch.lengths, batch.destinations, mine
        )
        elapsed_ns = time.perf_counter_ns() - begun_ns
        if status:
            way.ready_for = (0, 0)
            check("cuStreamSynchronize", self._library.waiting.cuStreamSynchronize(mine))
        elif chooser and not batch.is_warming_up:
            chooser.note(number, elapsed_ns / max(1, sum(batch.lengths[:count])))
        check("cuEventRecord", driver.cuEventRecord(self._after, mine))
        check("cuStreamWaitEvent", driver.cuStreamWaitEvent(stream, self._after, 0))
        return status

    def close(self) -> None:
        for way in self._ways:
            way.close()
        self._ways.clear()
        driver = self._library.waiting
        for owner, destroy in (
            (self._before, driver.cuEventDestroy_v2),
            (self._after, driver.cuEventDestroy_v2),
            (self._stream, driver.cuStreamDestroy_v2),
        ):
            if owner.value:
                handle, owner.value = owner.value, None
                destroy(handle)


class _Pool:
    """The ``_Engines`` of one GPU, with one kind of upsampling: another one is made where all are taken, up to a limit.

    ``users`` is guarded by ``_sharing``.
    """

    def __init__(self, library: Library, interpolates: bool) -> None:
        self._library = library
        self._interpolates = interpolates
        self._all = [_Engines(library, interpolates)]
        self._making = threading.Lock()
        self._waits = 0
        self.users = 0

    @property
    def reader(self) -> ctypes.c_void_p:
        """The handle by which headers are read, by any thread."""
        return self._all[0].reader

    def decode(self, batch: BatchDecoder, count: int, stream: int) -> int:
        """Decode a batch by the first that is free: see ``_Engines.decode``."""
        engines = self._taken()
        try:
            return engines.decode(batch, count, stream)
        finally:
            engines.lock.release()

    def _taken(self) -> _Engines:
        for engines in self._all:
            if engines.lock.acquire(blocking=False):
                return engines
        with self._making:
            if len(self._all) < MOST_DECODERS:
                self._all.append(_Engines(self._library, self._interpolates))
        self._waits += 1
        engines = self._all[self._waits % len(self._all)]  # in turns: nobody knows which will be free first
        engines.lock.acquire()
        return engines

    def close(self) -> None:
        for engines in self._all:
            engines.close()
        self._all.clear()


# Reentrant: making a decoder may collect garbage, and with it another decoder, which is closed then.
_sharing = threading.RLock()
_shared: dict[tuple[int, bool], _Pool] = {}


# ---- a decoder -------------------------------------------------------------------------------------------------------


class BatchDecoder:
    """Decodes batches of JPEGs into memory of a GPU: 8 bits, three interleaved channels.

    ``read`` and ``place`` fill in the batch, image by image; ``decode`` runs it. The GPU has to be the current one of
    the thread in all of them, and while one is made or closed. Not thread-safe; but any number of them may be used at
    the same time.

    Args:
        library: the library.
        device: the number of the GPU.
        max_batch: the most images of a batch.
        color: the order of the channels, "rgb" or "bgr".
        fancy_upsampling: smooth chroma, as libjpeg makes it.

    Raises:
        RuntimeError: if there is no such GPU, or it fails.
    """

    def __init__(
        self, library: Library, *, device: int, max_batch: int, color: str, fancy_upsampling: bool = True
    ) -> None:
        self._short = library.short
        self._key = (device, fancy_upsampling)
        self._is_open = False
        self.is_warming_up = False  # such images are not like those to come: their times say nothing
        self.output = _INTERLEAVED[color]
        # Read by the library until the batch is decoded, on the GPU, too: they are kept until the next one.
        self.sources = (ctypes.c_char_p * max_batch)()
        self.lengths = (ctypes.c_size_t * max_batch)()
        self.destinations = (Destination * max_batch)()
        self._channels, self._sampling = ctypes.c_int(), ctypes.c_int()
        self._widths, self._heights = (ctypes.c_int * 4)(), (ctypes.c_int * 4)()
        with _sharing:
            if self._key not in _shared:
                _shared[self._key] = _Pool(library, fancy_upsampling)
            self._engines = _shared[self._key]
            self._engines.users += 1
            self._is_open = True

    def read(self, index: int, encoded: bytes) -> Picture | None:
        """Take the bytes of image ``index`` of the batch, and return what their header says; None: it is damaged."""
        self.sources[index], self.lengths[index] = encoded, len(encoded)
        info = self._short.nvjpegGetImageInfo
        handle, widths, heights = self._engines.reader, self._widths, self._heights
        if info(handle, encoded, len(encoded), self._channels, self._sampling, widths, heights):
            return None
        return Picture(widths[0], heights[0], self._sampling.value in _SAMPLINGS)

    def place(self, index: int, address: int, row_bytes: int) -> None:
        """Say where image ``index``, which was read, is to be written."""
        target = self.destinations[index]
        target.channel[0], target.pitch[0] = address, row_bytes

    def decode(self, count: int, stream: int) -> int:
        """Decode images 0 to ``count`` - 1, and return how that ended: SUCCESS, or that one of them is at fault.

        The host's part is done then; the device's is queued, and what is queued on ``stream`` from now on is behind it.

        Raises:
            RuntimeError: if that is the GPU's fault.
        """
        status = self._engines.decode(self, count, stream)
        if status not in _FAULTS_OF_IMAGES:
            check("nvjpegDecodeBatched", status)
        return status

    def close(self) -> None:
        """Give everything back. May be called twice."""
        with _sharing:
            if not self._is_open:
                return
            self._is_open = False
            self._engines.users -= 1
            if self._engines.users:
                return
            del _shared[self._key]
        self._engines.close()

    def __del__(self) -> None:
        if getattr(self, "_is_open", False):
            self.close()
