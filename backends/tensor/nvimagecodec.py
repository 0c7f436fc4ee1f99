"""nvImageCodec through its C interface, as far as decoding a batch needs it; nothing else knows its structures.

The structures are those of ``nvimgcodec.h`` 0.9.0, and a library of another minor version is refused: they change from
one to the next. Why not its Python binding: that takes and releases the GIL several times for each image, and a thread
that wants the GIL back from one that computes waits for 5 ms each time. Here, the short calls (a microsecond or
two each: no image is decoded in them) keep it, and the two that are long release it: two releases for a batch.
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

from fastpipe.errors import ConfigError, MissingExtra

__all__ = ["CPU_ONLY", "BatchDecoder", "Library", "Picture", "load", "status_name"]

PACKAGE = "nvidia.nvimgcodec"
CPU_ONLY = -99999  # in the place of a GPU's number


# ---- structures ------------------------------------------------------------------------------------------------------

_PROPERTIES, _INSTANCE_CREATE_INFO, _DECODE_PARAMS, _ORIENTATION = 1, 2, 5, 7
_IMAGE_INFO, _IMAGE_PLANE_INFO, _EXTENSION_DESC, _EXECUTION_PARAMS = 11, 12, 27, 30

_UINT8 = 0x0802
_SAMPLING_NONE = 0
_INTERLEAVED = {"rgb": 8, "bgr": 10}
_SRGB, _GRAY, _YCC = 1, 2, 3
_DEVICE_MEMORY, _HOST_MEMORY = 1, 2
_MOST_PLANES = 32

_HEAD: list[Any] = [("struct_type", ctypes.c_int), ("struct_size", ctypes.c_size_t), ("struct_next", ctypes.c_void_p)]


class _Structure(ctypes.Structure):
    """Begins with its own type and size."""

    def __init__(self, struct_type: int, **values: Any) -> None:
        super().__init__(struct_type, ctypes.sizeof(type(self)), **values)


class Properties(_Structure):
    _fields_ = [*_HEAD, ("version", ctypes.c_uint32), ("cudart_version", ctypes.c_uint32)]


class InstanceCreateInfo(_Structure):
    _fields_ = [
        *_HEAD,
        ("load_builtin_modules", ctypes.c_int),
        ("load_extension_modules", ctypes.c_int),
        ("extension_modules_path", ctypes.c_char_p),
        ("create_debug_messenger", ctypes.c_int),
        ("debug_messenger_desc", ctypes.c_void_p),
        ("message_severity", ctypes.c_uint32),
        ("message_category", ctypes.c_uint32),
    ]


class ExtensionDesc(_Structure):
    _fields_ = [
        *_HEAD,
        ("instance", ctypes.c_void_p),
        ("id", ctypes.c_char_p),
        ("version", ctypes.c_uint32),
        ("ext_api_version", ctypes.c_uint32),
        ("create", ctypes.c_void_p),
        ("destroy", ctypes.c_void_p),
    ]


class ExecutionParams(_Structure):
    _fields_ = [
        *_HEAD,
        ("device_allocator", ctypes.c_void_p),
        ("pinned_allocator", ctypes.c_void_p),
        ("max_num_cpu_threads", ctypes.c_int),
        ("executor", ctypes.c_void_p),
        ("device_id", ctypes.c_int),
        ("pre_init", ctypes.c_int),
        ("skip_pre_sync", ctypes.c_int),
        ("num_backends", ctypes.c_int),
        ("backends", ctypes.c_void_p),
    ]


class DecodeParams(_Structure):
    _fields_ = [*_HEAD, ("apply_exif_orientation", ctypes.c_int)]


class Orientation(_Structure):
    _fields_ = [*_HEAD, ("rotated", ctypes.c_int), ("flip_x", ctypes.c_int), ("flip_y", ctypes.c_int)]


class ImagePlaneInfo(_Structure):
    _fields_ = [
        *_HEAD,
        ("width", ctypes.c_uint32),
        ("height", ctypes.c_uint32),
        ("row_stride", ctypes.c_size_t),
        ("num_channels", ctypes.c_uint32),
        ("sample_type", ctypes.c_int),
        ("precision", ctypes.c_uint8),
    ]


class ImageInfo(_Structure):
    _fields_ = [
        *_HEAD,
        ("codec_name", ctypes.c_char * 256),
        ("color_spec", ctypes.c_int),
        ("chroma_subsampling", ctypes.c_int),
        ("sample_format", ctypes.c_int),
        ("orientation", Orientation),
        ("num_planes", ctypes.c_uint32),
        ("plane_info", ImagePlaneInfo * _MOST_PLANES),
        ("buffer", ctypes.c_void_p),
        ("buffer_kind", ctypes.c_int),
        ("cuda_stream", ctypes.c_void_p),
    ]


def _new_image_info() -> ImageInfo:
    info = ImageInfo(_IMAGE_INFO)
    info.orientation = Orientation(_ORIENTATION)
    for plane in info.plane_info:
        plane.struct_type, plane.struct_size = _IMAGE_PLANE_INFO, ctypes.sizeof(ImagePlaneInfo)
    return info


# ---- what it says ----------------------------------------------------------------------------------------------------

_RETURNED = (
    "success",
    "not initialized",
    "invalid parameter",
    "bad code stream",
    "code stream not supported",
    "allocator failure",
    "execution failed",
    "wrong architecture",
    "internal error",
    "not implemented",
    "a dependency is missing",
    "extension not initialized",
    "extension: invalid parameter",
    "extension: bad code stream",
    "extension: code stream not supported",
    "extension: allocator failure",
    "extension: wrong architecture",
    "extension: internal error",
    "extension: not implemented",
    "extension: incomplete code stream",
    "extension: execution failed",
    "extension: a CUDA call failed",
)

SUCCESS = 1  # of one image

# How one image ended: success, and any number of reasons.
_REASONS = {
    0x07: "the image is damaged",
    0x0B: "no such codec",
    0x13: "none of the decoders takes it",
    0x23: "its way of encoding is not supported",
    0x43: "its size is not supported",
    0x83: "something in it is not supported",
    0x05: "its colors are not supported",
    0x09: "its orientation is not supported",
    0x21: "its chroma sampling is not supported",
    0x41: "its sample type is not supported",
    0x81: "its sample format is not supported",
    0x201: "its number of planes is not supported",
    0x401: "its number of channels is not supported",
    0x02: "the decoder is busy",
    0x03: "it failed",
}


def status_name(status: int) -> str:
    """Return in words how an image ended, with the number where there is no word for it."""
    return _REASONS.get(status, f"it ended with status {status:#x}")


class Picture(NamedTuple):
    """What the library reads in the header of encoded bytes."""

    width: int
    height: int
    is_decodable: bool  # 8 bits, gray or YCbCr: what the GPU makes the same of as every other decoder


# ---- the library -----------------------------------------------------------------------------------------------------


class Library:
    """The shared library, loaded and of the right version.

    Args:
        path: of ``libnvimgcodec.so``.
        extensions: the folder with its codecs.

    Raises:
        ConfigError: if it has another version than the structures here.
        OSError: if it cannot be loaded.
    """

    def __init__(self, path: Path, extensions: Path) -> None:
        self.extensions = extensions
        self.short = ctypes.PyDLL(str(path))  # keeps the GIL
        self.long = ctypes.CDLL(str(path))  # releases it
        handle, out, size = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t
        handles = ctypes.POINTER(ctypes.c_void_p)
        for name, arguments in {
            "GetProperties": [ctypes.POINTER(Properties)],
            "InstanceCreate": [out, ctypes.POINTER(InstanceCreateInfo)],
            "InstanceDestroy": [handle],
            "ExtensionCreate": [handle, out, ctypes.POINTER(ExtensionDesc)],
            "ExtensionDestroy": [handle],
            "DecoderCreate": [handle, out, ctypes.POINTER(ExecutionParams), ctypes.c_char_p],
            "DecoderDestroy": [handle],
            "CodeStreamCreateFromHostMem": [handle, handle, ctypes.c_char_p, size, handle],
            "CodeStreamGetImageInfo": [handle, ctypes.POINTER(ImageInfo)],
            "CodeStreamDestroy": [handle],
            "ImageCreate": [handle, handle, ctypes.POINTER(ImageInfo)],
            "ImageDestroy": [handle],
            "DecoderDecode": [handle, handles, handles, ctypes.c_int, ctypes.POINTER(DecodeParams), out],
            "FutureWaitForAll": [handle],
            "FutureGetProcessingStatus": [handle, ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(size)],
            "FutureDestroy": [handle],
        }.items():
            for library in (self.short, self.long):
                function = getattr(library, f"nvimgcodec{name}")
                function.argtypes, function.restype = arguments, ctypes.c_int
        properties = Properties(_PROPERTIES)
        check("GetProperties", self.short.nvimgcodecGetProperties(properties))
        major, rest = divmod(properties.version, 1000)
        if (major, rest // 100) != (0, 9):
            found = f"{major}.{rest // 100}.{rest % 100}"
            raise ConfigError(f"nvImageCodec {found} is installed, and fastpipe knows the structures of 0.9 only")
        self.cuda_major = properties.cudart_version // 1000

    def extension(self, *, on_cpu: bool) -> ExtensionDesc:
        """Return what describes the codec for JPEGs, on the GPU or on the CPU.

        The library would load all of the folder, and say on stderr what each of them misses.
        """
        name = "libjpeg_turbo_ext.so" if on_cpu else "libnvjpeg_ext.so"
        path = next(self.extensions.glob(f"{name}*"), None)
        if path is None:
            raise ConfigError(f"nvImageCodec is not whole: {self.extensions} has no {name}")
        entry = ctypes.CDLL(str(path)).nvimgcodecExtensionModuleEntry
        entry.argtypes, entry.restype = [ctypes.POINTER(ExtensionDesc)], ctypes.c_int
        description = ExtensionDesc(_EXTENSION_DESC)
        check("ExtensionModuleEntry", entry(description))
        return description


def load() -> Library:
    """Return the library of the installed package, with nvJPEG beside it.

    Raises:
        MissingExtra: if either is not installed.
        ConfigError: if the library has another version than the structures here.
    """
    try:
        found = importlib.util.find_spec(PACKAGE)
    except ImportError:
        found = None
    if found is None or not found.submodule_search_locations:
        raise MissingExtra("DecodeTensor", "cuda", ImportError("nvImageCodec", name="nvImageCodec"))
    folder = Path(found.submodule_search_locations[0])
    library = Library(next(iter(sorted(folder.glob("libnvimgcodec.so*")))), folder / "extensions")
    # Loaded here, it is found by its name where the codec looks for it; otherwise every image would end on the CPU.
    name = f"libnvjpeg.so.{library.cuda_major}"
    beside = [folder.parent / f"cu{library.cuda_major}" / "lib" / name, folder.parent / "nvjpeg" / "lib" / name]
    try:
        ctypes.CDLL(str(next((path for path in beside if path.is_file()), name)))
    except OSError as error:
        raise MissingExtra("DecodeTensor", "cuda", ImportError(str(error), name=f"nvJPEG ({name})")) from error
    return library


def check(function: str, returned: int) -> None:
    """Raise RuntimeError if a function of the library returned an error."""
    if returned:
        name = _RETURNED[returned] if 0 <= returned < len(_RETURNED) else f"error {returned}"
        raise RuntimeError(f"nvImageCodec: {function}: {name}")


# ---- a decoder -------------------------------------------------------------------------------------------------------


class BatchDecoder:
    """Decodes batches of images, 8 bits and three channels, into memory of the caller's.

    ``read`` and ``place`` fill in the batch, image by image; ``decode`` runs it. What it needs for each image is kept
    from batch to batch. Not thread-safe.

    **The first batch should be a full one.** The JPEG engines of a GPU (A100, H100 and later have them) get no more
    images of a batch than the first batch had; the library leaves the others to the GPU's cores, which are six times
    slower.

    Args:
        library: the library.
        device: the number of the GPU; CPU_ONLY decodes on the CPU, into host memory.
        max_batch: the most images of a batch.
        color: the order of the channels, "rgb" or "bgr".
        threads: how many threads of the CPU work for it.
        fancy_upsampling: smooth chroma, as libjpeg makes it.

    Raises:
        RuntimeError: if there is no such GPU, or it fails.
    """

    def __init__(
        self,
        library: Library,
        *,
        device: int,
        max_batch: int,
        color: str,
        threads: int,
        fancy_upsampling: bool,
    ) -> None:
        self._short, self._long = library.short, library.long
        self._instance, self._extension, self._decoder = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        self._streams = (ctypes.c_void_p * max_batch)()
        self._images = (ctypes.c_void_p * max_batch)()
        # Where each handle is: one that is set is used again, not made again.
        offsets = range(0, ctypes.sizeof(self._streams), ctypes.sizeof(ctypes.c_void_p))
        self._stream_slots = [ctypes.addressof(self._streams) + offset for offset in offsets]
        self._image_slots = [ctypes.addressof(self._images) + offset for offset in offsets]
        self._sources: list[bytes | None] = [None] * max_batch  # read by the library until they are decoded
        self._statuses = (ctypes.c_uint32 * max_batch)()
        self._header = _new_image_info()  # what was read
        self._first_plane = self._header.plane_info[0]
        self._target = target = _new_image_info()  # what is to be written
        target.color_spec, target.chroma_subsampling = _SRGB, _SAMPLING_NONE
        target.sample_format, target.num_planes = _INTERLEAVED[color], 1
        target.buffer_kind = _HOST_MEMORY if device == CPU_ONLY else _DEVICE_MEMORY
        self._plane = plane = target.plane_info[0]
        plane.num_channels, plane.sample_type = 3, _UINT8
        self._parameters = DecodeParams(_DECODE_PARAMS, apply_exif_orientation=0)
        try:
            info = InstanceCreateInfo(_INSTANCE_CREATE_INFO, load_builtin_modules=1)
            check("InstanceCreate", self._long.nvimgcodecInstanceCreate(self._instance, info))
            description = library.extension(on_cpu=device == CPU_ONLY)
            check("ExtensionCreate", self._long.nvimgcodecExtensionCreate(self._instance, self._extension, description))
            execution = ExecutionParams(_EXECUTION_PARAMS, max_num_cpu_threads=threads, device_id=device, pre_init=1)
            options = f":fancy_upsampling={int(fancy_upsampling)}".encode()
            create = self._long.nvimgcodecDecoderCreate
            check("DecoderCreate", create(self._instance, self._decoder, execution, options))
        except BaseException:
            self.close()
            raise

    def read(self, index: int, encoded: bytes) -> Picture | None:
        """Take the bytes of image ``index`` of the batch, and return what their header says; None: it is damaged."""
        stream = self._stream_slots[index]
        self._sources[index] = encoded
        create = self._short.nvimgcodecCodeStreamCreateFromHostMem
        if create(self._instance, stream, encoded, len(encoded), None):
            return None
        header, plane = self._header, self._first_plane
        if self._short.nvimgcodecCodeStreamGetImageInfo(self._streams[index], header):
            return None
        # A JPEG that holds RGB, without a conversion, is not what the GPU takes it for.
        is_decodable = header.color_spec in (_YCC, _GRAY) and plane.sample_type == _UINT8
        return Picture(plane.width, plane.height, is_decodable)

    def place(self, index: int, picture: Picture, address: int, row_bytes: int, stream: int) -> None:
        """Say where image ``index``, which was read, is to be written; ``stream`` is waited for, and waits then."""
        target, plane = self._target, self._plane
        plane.width, plane.height, plane.row_stride = picture.width, picture.height, row_bytes
        target.buffer, target.cuda_stream = address, stream
        check("ImageCreate", self._short.nvimgcodecImageCreate(self._instance, self._image_slots[index], target))

    def decode(self, count: int) -> list[int]:
        """Decode images 0 to ``count`` - 1, and return how each ended: SUCCESS, or see ``status_name``.

        The host's part is done then, and the bytes are not read any more; the device's is queued on the stream.

        Raises:
            RuntimeError: if nothing could be decoded at all.
        """
        future, returned_count = ctypes.c_void_p(), ctypes.c_size_t(count)
        decode = self._long.nvimgcodecDecoderDecode
        check("DecoderDecode", decode(self._decoder, self._streams, self._images, count, self._parameters, future))
        try:
            check("FutureWaitForAll", self._long.nvimgcodecFutureWaitForAll(future))
            get = self._short.nvimgcodecFutureGetProcessingStatus
            check("FutureGetProcessingStatus", get(future, self._statuses, returned_count))
        finally:
            self._short.nvimgcodecFutureDestroy(future)
            self._sources[:count] = [None] * count
        return self._statuses[:count]

    def close(self) -> None:
        """Give everything back. May be called twice."""
        for handles, destroy in (
            (self._streams, self._long.nvimgcodecCodeStreamDestroy),
            (self._images, self._long.nvimgcodecImageDestroy),
        ):
            for index, handle in enumerate(handles):
                if handle:
                    handles[index] = None
                    destroy(handle)
        for owner, destroy in (
            (self._decoder, self._long.nvimgcodecDecoderDestroy),
            (self._extension, self._long.nvimgcodecExtensionDestroy),
            (self._instance, self._long.nvimgcodecInstanceDestroy),
        ):
            if owner.value:
                handle, owner.value = owner.value, None
                destroy(handle)

    def __del__(self) -> None:
        if getattr(self, "_instance", None):
            self.close()
