"""Encoded images <-> pixels on the CPU: see ``requests`` for what an image is.

What the C libraries below say about damaged files goes to the process's stderr. Most of what they would complain about
is refused, or left out, before they see it; OpenCV's own messages end with ``OPENCV_LOG_LEVEL=OFF`` in the environment.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastpipe.announcing import IMAGE_FILE
from fastpipe.contract import PerRequest, Request
from fastpipe.errors import DecodeError, KernelError

from ..odd_arrays import oddity
from ..ranges import MOST_PIXELS, MaxPixels
from .header import ImageHeader, read_header
from .requests import Pixels, color_of, pixels_of

__all__ = ["DecodeMat", "SaveMat"]

MOST_SCANS = 100  # a progressive JPEG has about 10; a kilobyte can have 100, each with all of its pixels to go over

# From how a picture is stored to how it is seen, by EXIF's number.
_TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    2: partial(cv2.flip, flipCode=1),
    3: partial(cv2.rotate, rotateCode=cv2.ROTATE_180),
    4: partial(cv2.flip, flipCode=0),
    5: cv2.transpose,
    6: partial(cv2.rotate, rotateCode=cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.flip(cv2.transpose(pixels), -1),
    8: partial(cv2.rotate, rotateCode=cv2.ROTATE_90_COUNTERCLOCKWISE),
}


class DecodeMat(PerRequest):
    """JPEG, PNG, WebP or BMP bytes -> BGR pixels; sets ``color`` to "bgr".

    The pixels are those of ``cv2.imdecode``, bit for bit: 8 bits, three channels, alpha dropped. JPEG, PNG and WebP are
    turned as their EXIF orientation says; one that is no number from 1 to 8 is taken for 1, and of several EXIF blocks
    the first is read. (With simplejpeg installed, it decodes plain JPEGs, to the same bits, up to 1.5 times as fast.)

    A request whose bytes are no such image, or only the beginning of one, gets **no result**: the filter of the next
    step decides what that means. So does a PNG with a wrong checksum. A JPEG is complete if it has its end marker; one
    that is complete, but damaged inside, is what OpenCV makes of it.

    Texts, color profiles and the like are not read. The result of an animation is the still image of a PNG, and the
    first frame of a WebP (no result if that is smaller than the whole).

    Args:
        max_pixels: larger images fail with DecodeError before anything is allocated for them.

    Raises:
        DecodeError: if an image has more than ``max_pixels``, or a JPEG more than 100 scans.
        TypeError: if ``data`` is not bytes, bytearray, memoryview or a uint8 array.
    """

    keeps_input = True
    announced_inputs = IMAGE_FILE

    def __init__(self, *, max_pixels: MaxPixels = MOST_PIXELS) -> None:
        self.max_pixels = max_pixels
        self._decode_jpeg: Callable[[memoryview, str], Pixels] | None = None
        try:
            import simplejpeg
        except ImportError:
            pass
        else:
            self._decode_jpeg = simplejpeg.decode_jpeg

    def run(self, request: Request) -> None:
        encoded = _encoded_bytes(request["data"])
        header = read_header(encoded)
        if header is not None and header.width * header.height > self.max_pixels:
            raise DecodeError(
                f"DecodeMat: the image has {header.width} x {header.height} pixels, "
                f"more than max_pixels = {self.max_pixels}"
            )
        if header is not None and header.scans > MOST_SCANS:
            raise DecodeError(f"DecodeMat: the JPEG has {header.scans} scans, more than {MOST_SCANS}")
        pixels = self._decode(encoded, header) if header is not None and header.is_complete else None
        if pixels is None or header is None:
            request.pop("result", None)  # an older one is not the answer
            return
        request["result"] = _TURNS[header.orientation](pixels) if header.orientation != 1 else pixels
        request["color"] = "bgr"

    def _decode(self, encoded: memoryview, header: ImageHeader) -> Pixels | None:
        if header.is_plain_jpeg and self._decode_jpeg is not None:
            try:
                return self._decode_jpeg(encoded, "BGR")
            except ValueError as error:
                if "Insufficient memory" in str(error):
                    raise MemoryError(str(error)) from error
                # Else it refuses what libjpeg warns about, and some ways of sampling; OpenCV has the last word.
        content = b"".join(header.pieces) if header.pieces else encoded
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            pixels: Pixels | None = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
            return pixels
        except cv2.error as error:
            if error.code == cv2.Error.StsNoMem:
                raise MemoryError(str(error)) from error
            return None


def _encoded_bytes(data: Any) -> memoryview:
    if isinstance(data, np.ndarray):
        if odd := oddity(data):
            raise TypeError(f"DecodeMat: expected bytes or a uint8 array of them, got {odd}")
        if data.dtype != np.uint8:
            raise TypeError(f"DecodeMat: expected an array of uint8, got one of {data.dtype}")
    elif not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"DecodeMat: expected bytes, bytearray, memoryview or a uint8 array, got {type(data).__name__}")
    view = memoryview(data)
    return view.cast("B") if view.c_contiguous and view.nbytes else memoryview(view.tobytes())


class SaveMat(PerRequest):
    """Writes each image to a PNG file of its own in ``save_dir``, under a name nobody else has; the result is the data.

    Args:
        save_dir: a folder; made if it is not there.

    Raises:
        KernelError: if there are not one, three or four channels, or of three ``color`` is neither "rgb" nor "bgr".
        OSError: if the file cannot be written.
    """

    keeps_input = True

    def __init__(self, *, save_dir: Path) -> None:
        self.save_dir = Path(save_dir)
        self.save_dir.mkdir(parents=True, exist_ok=True)

    def run(self, request: Request) -> None:
        pixels = pixels_of(request, self)
        if pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4):
            raise KernelError(f"SaveMat: expected 1, 3 or 4 channels, got shape {pixels.shape}")
        if pixels.shape[2:] == (3,) and color_of(request, pixels, self) == "rgb":
            pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        is_encoded, encoded = cv2.imencode(".png", pixels)
        if not is_encoded:
            raise KernelError(f"SaveMat: expected an image that OpenCV writes as PNG, got shape {pixels.shape}")
        with open(self.save_dir / f"{uuid.uuid4().hex}.png", "xb") as file:
            file.write(encoded.tobytes())
        request["result"] = request["data"]
