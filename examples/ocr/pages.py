"""Pages to read: samples, drawn with Pillow, or the user's own files."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ocr.paper import encoded
from ocr.sheets import KINDS
from ocr.steps import UnreadablePage

__all__ = ["KINDS", "PageFile", "drawn_page", "pages_of_files", "sample_pages"]

# What DecodeMat reads; any other format that Pillow knows is handed over as PNG.
READABLE_FORMATS = frozenset({"BMP", "JPEG", "PNG", "WEBP"})


@dataclass(frozen=True)
class PageFile:
    """An encoded image, and a name to call it by."""

    name: str
    content: bytes


def sample_pages(count: int) -> list[PageFile]:
    """Return so many different pages, the first of them of different kinds."""
    return [drawn_page(seed) for seed in range(count)]


def drawn_page(seed: int) -> PageFile:
    """Return a page, its kind and what is written on it by its number; equal numbers give equal pages."""
    kind, round_number = list(KINDS)[seed % len(KINDS)], seed // len(KINDS) + 1
    name = kind if round_number == 1 else f"{kind}-{round_number}"
    return PageFile(name, encoded(KINDS[kind](np.random.default_rng(seed))))


def pages_of_files(paths: Iterable[Path]) -> list[PageFile]:
    """Return the pages in the files; names that occur twice get a number.

    Raises:
        UnreadablePage: for the first file that is none.
    """
    pages: list[PageFile] = []
    for path in paths:
        taken = {page.name for page in pages}
        candidates = (path.stem if number == 1 else f"{path.stem}-{number}" for number in range(1, len(taken) + 2))
        pages.append(PageFile(next(name for name in candidates if name not in taken), _content(path)))
    return pages


def _content(path: Path) -> bytes:
    """Return the bytes of an image file; what the pipe would not read as a person sees it is encoded anew."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            if image.has_transparency_data:
                paper = Image.new("RGBA", image.size, "white")
                return encoded(Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB"))
            return content if image.format in READABLE_FORMATS else encoded(image.convert("RGB"))
    except UnidentifiedImageError:
        raise UnreadablePage(f"{path}: not an image, or in a format that Pillow does not know") from None
    except (OSError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise UnreadablePage(f"{path}: {getattr(error, 'strerror', None) or error}") from error
