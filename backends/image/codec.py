"""Encoded images <-> pixels on the CPU: see ``requests`` for what an image is.

What the C libraries below say about damaged files goes to the process's stderr. Most of what they would complain about
is refused, or left out, before they see it; OpenCV's own messages end with ``OPENCV_LOG_LEVEL=OFF`` in the environment.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np

from fastpipe.announcing import IMAGE_FILE
from fastpipe.contract import Between, PerRequest, Request
from fastpipe.errors import DecodeError, KernelError
from fastpipe.summaries import summarize

from ..odd_arrays import oddity
from ..ranges import MOST_PIXELS, MaxPixels
from .header import JPEG_END, ImageHeader, MoreFormat, read_header
from .more_headers import read_more
from .pillow_formats import PillowFormats
from .requests import Pixels, ScaledImage, color_of, pixels_of
from .tiff import MOST_PAGES, is_tiff

__all__ = ["DecodeMat", "SaveMat"]

MOST_SCANS = 100  # a progressive JPEG has about 10; a kilobyte can have 100, each with all of its pixels to go over

# The scales of a JPEG that are quicker to decode than the whole, the smallest first. libjpeg-turbo offers every eighth,
# but has fast code for these alone: of bench/images.py's samples, 3/8 took as long as 4/8, and 5/8 longer than 8/8.
SCALES = {
    1: cv2.IMREAD_REDUCED_COLOR_8,
    2: cv2.IMREAD_REDUCED_COLOR_4,
    4: cv2.IMREAD_REDUCED_COLOR_2,
}
WHOLE = 8  # eighths
BITS_OF_RESULT = 8
# Of fewer pixels a side, two scales may give one size, by which simplejpeg is told the scale.
SHORTEST_SCALED_SIDE = 8

FIRST_LYING_ORIENTATION = 5  # of EXIF's numbers; from here on height and width are exchanged
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

    **More formats**, as Pillow decodes them, where ``more_formats`` names them: TIFF (one page; the request's own
    ``page`` counts before the parameter), GIF (the first frame), JPEG 2000 and AVIF (stills of 8 bits). A kind of them
    that is not decoded, or not to the right numbers, fails with DecodeError, which says which kind that is. HEIC needs
    the package pillow-heif, which no extra brings: its wheels carry x265, and so are under the GPL.

    **Cut JPEGs.** With ``truncated = "keep"`` a JPEG without its last bytes is decoded as far as it goes, gray from
    there on (a progressive one is coarser instead), and the request's ``truncated`` is set to True.

    Texts, color profiles and the like are not read. The result of an animation is the still image of a PNG, and the
    first frame of a WebP (no result if that is smaller than the whole).

    **Scaled.** With ``scale = "auto"`` a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, the smallest that is no
    smaller than what the next step makes of it. That step must resize, and stand behind this one in the same
    Sequential, with no filter between: ``ResizeMat``, ``PillowResizeMat``, ``ResizeShorterMat``, ``DynamicResizeMat``,
    ``ResizePadMat``, ``LetterBoxMat``, or one of yours that takes ``ScaledImage``. Nobody else sees the smaller image:
    behind that step ``data`` is the bytes again, and ``inverse_trans`` leads back to the whole image. ``source_size``
    is set to the whole image's (height, width), upright. Pixels differ from those of the whole image resized. Other
    formats, CMYK and 12 bits are decoded whole; a JPEG that is turned is scaled only where that divides its sides.

    Args:
        scale: "full": the whole image. "auto": as much of it as the next step needs.
        more_formats: which formats are decoded beyond the four. Each is one more library that reads what anybody sends.
        page: of a TIFF, from 0; thumbnails in its chain of pages count, too.
        tiff_16_bit: what becomes of a TIFF of 16 bits a channel. "refuse": it fails with DecodeError. "reduce": its
            pixels become uint8, the upper half of each number, as those of a PNG of 16 bits. "keep": they are uint16,
            which no other step of the box takes.
        truncated: what becomes of a JPEG without its last bytes. "refuse": it has no result. "keep": see above.
        max_pixels: larger images fail with DecodeError before anything is allocated for them; the whole image counts.

    Raises:
        ConfigError: while a pipe is built, if scale is "auto" and the next step does not say what it needs; if the
            installed Pillow does not decode one of more_formats; for HEIC, if pillow-heif is not installed.
        MissingExtra: if more_formats has any, and Pillow is not installed.
        DecodeError: if an image has more than ``max_pixels``, or a JPEG more than 100 scans, or a TIFF no such page;
            for kinds of more_formats that are not decoded.
        TypeError: if ``data`` is not bytes, bytearray, memoryview or a uint8 array.
        ValueError: if the request's ``page`` is not a whole number from 0 to 65535, and TIFF is decoded.
    """

    keeps_input = True
    announced_inputs = IMAGE_FILE

    def __init__(
        self,
        *,
        scale: Literal["full", "auto"] = "full",
        more_formats: Sequence[MoreFormat] = (),
        page: Annotated[int, Between(0, MOST_PAGES - 1)] = 0,
        tiff_16_bit: Literal["refuse", "reduce", "keep"] = "refuse",
        truncated: Literal["refuse", "keep"] = "refuse",
        max_pixels: MaxPixels = MOST_PIXELS,
    ) -> None:
        self.max_pixels = max_pixels
        self.page = page
        self.tiff_16_bit = tiff_16_bit
        self.truncated = truncated
        self._formats = frozenset[str](more_formats)
        self._more = PillowFormats("DecodeMat", self._formats) if self._formats else None
        self._least_size: Callable[[Request, int, int], tuple[int, int]] | None = None  # of the next step, if it scales
        if scale == "auto":
            self.offers_forms = (ScaledImage,)
            self.unmet = (
                "DecodeMat: scale = 'auto' needs a step that resizes (ResizeMat, PillowResizeMat, ResizeShorterMat, "
                "DynamicResizeMat, ResizePadMat, LetterBoxMat, or your own that takes the form ScaledImage) right "
                "behind it in the same Sequential, without a filter between; else take scale out"
            )
        self._decode_jpeg: Callable[..., Pixels] | None = None
        try:
            import simplejpeg
        except ImportError:
            pass
        else:
            self._decode_jpeg = simplejpeg.decode_jpeg

    def run(self, request: Request) -> None:
        encoded = _encoded_bytes(request["data"])
        header, is_cut = read_header(encoded), False
        if header is None and self._more is not None:
            page = self._page_of(request) if "tiff" in self._formats and is_tiff(encoded) else 0
            header = read_more(encoded, self._formats, page, most_pixels=self.max_pixels)
        if header is not None:
            self._check(header)
            if is_cut := not header.is_complete and header.is_jpeg and self.truncated == "keep":
                header = header._replace(is_complete=True, pieces=(encoded, JPEG_END))
        decoded, eighths = None, WHOLE
        if header is not None and header.is_complete:
            eighths = WHOLE if self._least_size is None else _eighths(header, request, self._least_size)
            decoded = self._decode(encoded, header, eighths)
        if decoded is None or header is None:
            request.pop("result", None)  # an older one is not the answer
            return
        pixels, orientation = decoded
        upright = _TURNS[orientation](pixels) if orientation != 1 else pixels
        request["color"] = "bgr"
        if is_cut:
            request["truncated"] = True
        elif self.truncated == "keep":
            request.pop("truncated", None)  # of an older picture
        if self._least_size is None:
            request["result"] = upright
        else:
            whole = _upright_size(header._replace(orientation=orientation))
            # A HEIC's boxes turn it, and cut something off, while it is decoded; it is never scaled.
            request["source_size"] = height, width = whole if eighths != WHOLE else upright.shape[:2]
            request["result"] = ScaledImage(upright, height, width, eighths / WHOLE)

    def hand_on(self, form: type, taker: Any) -> None:
        """Decode no more of an image than the next step needs."""
        self._least_size = taker.least_size
        self.unmet = None

    def _page_of(self, request: Request) -> int:
        page = request.get("page", self.page)
        if isinstance(page, bool) or not isinstance(page, int | np.integer) or not 0 <= page < MOST_PAGES:
            raise ValueError(
                f"DecodeMat: page must be a whole number from 0 to {MOST_PAGES - 1}, got {summarize(page)}"
            )
        return int(page)

    def _check(self, header: ImageHeader) -> None:
        if header.width * header.height > self.max_pixels:
            raise DecodeError(
                f"DecodeMat: the image has {header.width} x {header.height} pixels, "
                f"more than max_pixels = {self.max_pixels}"
            )
        if header.scans > MOST_SCANS:
            raise DecodeError(f"DecodeMat: the JPEG has {header.scans} scans, more than {MOST_SCANS}")
        if header.refusal:
            raise DecodeError(f"DecodeMat: {header.refusal}")
        if header.bits > BITS_OF_RESULT and self.tiff_16_bit == "refuse":
            raise DecodeError(
                f"DecodeMat: the TIFF has {header.bits} bits a channel; tiff_16_bit = 'reduce' makes 8 of them, "
                "tiff_16_bit = 'keep' gives uint16 pixels"
            )

    def _decode(self, encoded: memoryview, header: ImageHeader, eighths: int) -> tuple[Pixels, int] | None:
        """Return the pixels as they are stored and their orientation; None: they cannot be decoded."""
        if header.is_plain_jpeg and self._decode_jpeg is not None and not header.pieces:
            least = {} if eighths == WHOLE else _least_sides(header, eighths)
            try:
                return self._decode_jpeg(encoded, "BGR", **least), header.orientation
            except ValueError as error:
                if "Insufficient memory" in str(error):
                    raise MemoryError(str(error)) from error
                # Else it refuses what libjpeg warns about, and some ways of sampling; OpenCV has the last word.
        content = b"".join(header.pieces) if header.pieces else encoded
        if header.bits > BITS_OF_RESULT:
            pixels = _of_16_bits(content)
            if pixels is not None and self.tiff_16_bit == "reduce":
                pixels = (pixels >> BITS_OF_RESULT).astype(np.uint8)
        elif header.kind and self._more is not None:
            return self._more.decode(bytes(content), header)
        else:
            pixels = _by_opencv(content, SCALES.get(eighths, cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION)
        return None if pixels is None else (pixels, header.orientation)


def _by_opencv(content: bytes | memoryview, flags: int) -> Pixels | None:
    try:
        pixels: Pixels | None = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        return pixels
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(str(error)) from error
        return None


def _of_16_bits(content: bytes | memoryview) -> Pixels | None:
    """Return the uint16 pixels of a TIFF, BGR: Pillow has none of more than one channel, and makes them 8 bits."""
    pixels = _by_opencv(content, cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        return None
    return cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR) if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., :3])


def _upright_size(header: ImageHeader) -> tuple[int, int]:
    """Return height and width of the whole image as it is seen."""
    is_lying = header.orientation >= FIRST_LYING_ORIENTATION
    return (header.width, header.height) if is_lying else (header.height, header.width)


def _eighths(header: ImageHeader, request: Request, least_size: Callable[[Request, int, int], tuple[int, int]]) -> int:
    """Return how many eighths of an image's sides are to be decoded, so that none falls short of what is needed."""
    least_height, least_width = least_size(request, *_upright_size(header))
    if not header.is_plain_jpeg or max(header.height, header.width) < SHORTEST_SCALED_SIDE:
        return WHOLE
    if header.orientation >= FIRST_LYING_ORIENTATION:
        least_height, least_width = least_width, least_height
    for eighths in SCALES:
        height, width = header.height * eighths, header.width * eighths
        # Turning would move the part of a row and column that shows nothing, which ScaledImage has at the other end.
        is_exact = height % WHOLE == width % WHOLE == 0
        is_enough = height >= least_height * WHOLE and width >= least_width * WHOLE
        if is_enough and (is_exact or header.orientation == 1):
            return eighths
    return WHOLE


def _least_sides(header: ImageHeader, eighths: int) -> dict[str, int]:
    """Return the sides of an image so scaled, as libjpeg rounds them, by simplejpeg's names for the least it may have.

    It takes the smallest scale that is no smaller: this one.
    """
    return {"min_height": -(-header.height * eighths // WHOLE), "min_width": -(-header.width * eighths // WHOLE)}


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
