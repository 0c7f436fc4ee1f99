"""The formats that Pillow decodes for ``DecodeMat``, where it is told to: TIFF, GIF, JPEG 2000, AVIF and HEIC.

Pillow's classes are called themselves: ``Image.open`` would try all formats, and warn, or refuse, by a limit of the
whole process. What is too large, cut, or of a kind that comes out wrong has been refused by the header.
"""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np

from fastpipe.errors import ConfigError, DecodeError, MissingExtra

from .header import ImageHeader
from .requests import Pixels

__all__ = ["PillowFormats"]

ORIENTATION_TAG = 0x0112


class PillowFormats:
    """Decodes some formats by Pillow.

    Args:
        backend: the name of the backend that decodes, for errors.
        formats: which.

    Raises:
        MissingExtra: if Pillow is not installed.
        ConfigError: if it was built without one of them; if HEIC is wanted, and pillow-heif is not installed.

    Thread-safety: any number of threads may decode at once.
    """

    def __init__(self, backend: str, formats: frozenset[str]) -> None:
        try:
            import PIL.features
            import PIL.Image
        except ImportError as error:
            raise MissingExtra(f"{backend} with more_formats", "cpu", error) from error
        self._backend = backend
        self._too_large = (
            PIL.Image.DecompressionBombError,
            PIL.Image.DecompressionBombWarning,
        )  # by a filter, an error
        self._classes: dict[str, Any] = {}
        if "tiff" in formats:
            import PIL.TiffImagePlugin

            if PIL.features.check_codec("libtiff"):
                self._classes["tiff"] = PIL.TiffImagePlugin.TiffImageFile
        if "gif" in formats:
            import PIL.GifImagePlugin

            self._classes["gif"] = PIL.GifImagePlugin.GifImageFile
        if "jpeg2000" in formats and PIL.features.check_codec("jpg_2000"):
            import PIL.Jpeg2KImagePlugin

            self._classes["jpeg2000"] = PIL.Jpeg2KImagePlugin.Jpeg2KImageFile
        if "avif" in formats:
            try:
                from PIL import AvifImagePlugin
            except ImportError:  # Pillow 11.3 was the first to have it
                pass
            else:
                if AvifImagePlugin.SUPPORTED:
                    self._classes["avif"] = AvifImagePlugin.AvifImageFile
        if "heic" in formats:
            self._classes["heic"] = _heic_class(backend)
        if missing := sorted(formats - set(self._classes)):
            raise ConfigError(
                f"{backend}: more_formats has {', '.join(missing)}, which the installed Pillow {PIL.__version__} does "
                "not decode; its wheels do, AVIF from Pillow 11.3 on"
            )

    def decode(self, content: bytes, header: ImageHeader) -> tuple[Pixels, int] | None:
        """Return an image as BGR pixels, and its orientation, by EXIF's number; None: it cannot be decoded.

        Raises:
            MemoryError: if there is not enough.
            DecodeError: if it is larger than Pillow allows in this process.
        """
        try:
            with self._classes[header.kind](io.BytesIO(content)) as image:
                if not _is_expected(image.size, header):
                    return None  # room was reckoned for another image
                image.load()
                # Of AVIF, Pillow makes it of the boxes "irot" and "imir", which are what counts there; a HEIC is
                # upright already.
                orientation = image.getexif().get(ORIENTATION_TAG, 1) if header.kind == "avif" else header.orientation
                pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
        except MemoryError:
            raise
        except self._too_large as error:
            raise DecodeError(
                f"{self._backend}: the image has {header.width} x {header.height} pixels, more than Pillow's own "
                f"limit, PIL.Image.MAX_IMAGE_PIXELS: {error}"
            ) from error
        except Exception:  # damaged files make it raise errors of a dozen kinds, AttributeError and TypeError too
            return None
        return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), orientation


def _is_expected(size: tuple[int, int], header: ImageHeader) -> bool:
    """Say whether an image is as large as its header says; of a HEIC, boxes may turn it and cut something off."""
    if header.kind == "heic":
        return size[0] * size[1] <= header.width * header.height
    return size == (header.width, header.height)


def _heic_class(backend: str) -> Any:
    """Return the class that decodes HEIC, which nobody gets who has not installed it for that."""
    try:
        import pillow_heif
    except ImportError as error:
        raise ConfigError(
            f"{backend}: more_formats has heic, which needs the package pillow-heif; no extra of fastpipe brings it, "
            "since its wheels carry x265 and so are under the GPL: if that suits you, pip install pillow-heif"
        ) from error
    return pillow_heif.HeifImageFile
