"""nvJPEG through its C interface, as far as decoding a batch needs it.

The interface has been the same for many versions of CUDA. Why no Python binding: those take and release the GIL several
times for each image, and a thread that wants the GIL back from one that computes waits for 5 ms each time. So what is
called for a batch is called in C, by ``fastpipe.kernels._images``, behind one release of the GIL; here is what makes
and destroys.

**One decoder a GPU.** The JPEG engines are hardware of their own. One decoder keeps them busy, unless it waits for a
thread that waits for the GIL: so the instances of a process share it, and take turns in C. On an H200 a second one
changed no rate by more than 3 %; with turns taken in Python, it made JPEG to class slower by up to a quarter.

**Two ways to decode.** With pipelining (nvJPEG's default) a batch takes a seventh less time while the GPU is idle, and
much longer as soon as another stream has kernels queued, whatever its priority. Which of the two is quicker depends on
what else runs, so it is measured (``Chooser`` of nvjpeg.hpp).
"""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from itertools import chain
from pathlib import Path
from typing import Any

from fastpipe.errors import MissingExtra
from fastpipe.kernels._images import Decoder, Jpegs

__all__ = ["REFUSED", "SUCCESS", "BatchDecoder", "Library", "load", "status_name"]

LIBRARY = "libnvjpeg.so.13"
DRIVER = "libcuda.so.1"

# ---- what the library's header says ----------------------------------------------------------------------------------

_ENGINES, _KERNELS = 3, 2  # backends: the JPEG engines; where a GPU has none, its cores
_NO_PIPELINE, _INTERPOLATE = 1 << 0, 1 << 5  # flags
_INTERLEAVED = {"rgb": 5, "bgr": 6}
_NON_BLOCKING_STREAM, _UNTIMED_EVENT = 1, 2  # of the driver

SUCCESS = 0
REFUSED = -1
"""No status of the library's: it reads a header otherwise than we do, or does not take the size of its chroma."""
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
_FUNCTIONS: dict[str, list[Any]] = {
    "nvjpegCreateEx": [_INT, _HANDLE, _HANDLE, ctypes.c_uint, _OUT],
    "nvjpegDestroy": [_HANDLE],
    "nvjpegJpegStateCreate": [_HANDLE, _OUT],
    "nvjpegJpegStateDestroy": [_HANDLE],
}
_DRIVER_FUNCTIONS: dict[str, list[Any]] = {
    "cuCtxGetStreamPriorityRange": [_INTS, _INTS],
    "cuStreamCreateWithPriority": [_OUT, ctypes.c_uint, _INT],
    "cuStreamDestroy_v2": [_HANDLE],
    "cuEventCreate": [_OUT, ctypes.c_uint],
    "cuEventDestroy_v2": [_HANDLE],
}


class Library:
    """nvJPEG's shared library and CUDA's driver, loaded; ``of_batches``: where the functions are that decode a batch.

    Args:
        path: of ``libnvjpeg.so``; also a name that the loader finds.
        driver: of ``libcuda.so``.

    Raises:
        OSError: if one of them cannot be loaded.
    """

    def __init__(self, path: str, driver: str = DRIVER) -> None:
        self.nvjpeg, self.driver = _loaded(path, _FUNCTIONS), _loaded(driver, _DRIVER_FUNCTIONS)
        libraries = [self.driver if name.startswith("cu") else self.nvjpeg for name in Decoder.NAMES]
        functions = [getattr(library, name) for library, name in zip(libraries, Decoder.NAMES, strict=True)]
        self.of_batches = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]


def _loaded(path: str, functions: dict[str, list[Any]]) -> Any:
    library = ctypes.CDLL(path)
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


# ---- what all instances share ----------------------------------------------------------------------------------------


class _Way:
    """A handle of nvJPEG with its state: one of the two ways to decode."""

    def __init__(self, library: Library, backend: int, flags: int) -> None:
        self._library = library
        self.handle, self.state = ctypes.c_void_p(), ctypes.c_void_p()
        try:
            check("nvjpegCreateEx", library.nvjpeg.nvjpegCreateEx(backend, None, None, flags, self.handle))
            check("nvjpegJpegStateCreate", library.nvjpeg.nvjpegJpegStateCreate(self.handle, self.state))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for owner, destroy in (
            (self.state, self._library.nvjpeg.nvjpegJpegStateDestroy),
            (self.handle, self._library.nvjpeg.nvjpegDestroy),
        ):
            if owner.value:
                handle, owner.value = owner.value, None
                destroy(handle)


class _Engines:
    """What decodes on one GPU, with one kind of upsampling, for everybody in the process.

    ``users`` is guarded by ``_sharing``.
    """

    def __init__(self, library: Library, interpolates: bool) -> None:
        self._library = library
        self._stream, self._before, self._after = (ctypes.c_void_p() for _ in range(3))
        self._ways: list[_Way] = []
        self.users = 0
        flags = _INTERPOLATE if interpolates else 0
        try:
            try:
                for flag in (0, _NO_PIPELINE):  # in the order of Way of nvjpeg.hpp
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
            ways = [(way.handle.value or 0, way.state.value or 0) for way in self._ways]
            others = [handle.value or 0 for handle in (self._stream, self._before, self._after)]
            self._decoder = Decoder(library.of_batches, ways, *others)
        except BaseException:
            self.close()
            raise

    def decode(self, images: Jpegs, output: int, stream: int, *, tells: bool) -> int:
        """Decode a batch: ``stream`` is waited for, and waits for its pixels. Return the status of all of it.

        ``tells``: what the batch costs says something of those to come.
        """
        failed, status, refused_count = self._decoder.decode(images, output, stream, tells)
        if refused_count:
            return REFUSED
        if failed == "nvjpegDecodeBatched" and status in _FAULTS_OF_IMAGES:
            return status
        check(failed, status)
        return SUCCESS

    def close(self) -> None:
        for way in self._ways:
            way.close()
        self._ways.clear()
        driver = self._library.driver
        for owner, destroy in (
            (self._before, driver.cuEventDestroy_v2),
            (self._after, driver.cuEventDestroy_v2),
            (self._stream, driver.cuStreamDestroy_v2),
        ):
            if owner.value:
                handle, owner.value = owner.value, None
                destroy(handle)


# Reentrant: making a decoder may collect garbage, and with it another decoder, which is closed then.
_sharing = threading.RLock()
_shared: dict[tuple[int, bool], _Engines] = {}


# ---- a decoder -------------------------------------------------------------------------------------------------------


class BatchDecoder:
    """Decodes batches of JPEGs into memory of a GPU: 8 bits, three interleaved channels.

    ``images`` takes the batch, ``decode`` runs it. The GPU has to be the current one of the thread then, and while one
    is made or closed. Not thread-safe; but any number of them may be used at the same time.

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
        self._key = (device, fancy_upsampling)
        self._is_open = False
        self.is_warming_up = False  # such images are not like those to come: their times say nothing
        self._output = _INTERLEAVED[color]
        self.images = Jpegs(max_batch)
        with _sharing:
            if self._key not in _shared:
                _shared[self._key] = _Engines(library, fancy_upsampling)
            self._engines = _shared[self._key]
            self._engines.users += 1
            self._is_open = True

    def decode(self, images: Jpegs, stream: int) -> int:
        """Decode ``images``, or what it has for one ``alone``, placed; return how that ended.

        SUCCESS; a status, that one of them is at fault; or REFUSED, that nothing was decoded. The host's part is done
        then; the device's is queued, and what is queued on ``stream`` from now on is behind it.

        Raises:
            RuntimeError: if that is the GPU's fault.
        """
        return self._engines.decode(images, self._output, stream, tells=not self.is_warming_up)

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
