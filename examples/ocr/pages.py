"""Pages to read: two photographs that scikit-image brings along, pages drawn with Pillow, or the user's own files."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from ocr.steps import UnreadablePage

__all__ = ["PageFile", "drawn_page", "pages_of_files", "sample_pages"]

# What DecodeMat reads; any other format that Pillow knows is handed over as PNG.
READABLE_FORMATS = frozenset({"BMP", "JPEG", "PNG", "WEBP"})

SUBJECTS = ["The scheduler", "A worker", "Every request", "The recogniser", "One instance", "A page", "This batch"]
VERBS = ["waits for", "takes", "hands over", "measures", "never blocks", "shares", "reads", "returns"]
OBJECTS = ["the next batch", "12 lines at once", "a free core", "its own result", "two models", "3 ms later", "a queue"]
ENDINGS = ["in order.", "(see Table 4).", "at 95 %.", "and goes on.", "without a copy.", "on both cores.", "in May."]
HEADINGS = ["Pipelines on two cores", "Notes on batching", "Reading a page", "Minutes of a talk", "A report"]
ARTICLES = ["Copper wire", "Paper, A4", "Pencils", "Glue", "Lamps 40 W", "Screws M6", "Tape", "Rulers"]


@dataclass(frozen=True)
class PageFile:
    """An encoded image, and a name to call it by."""

    name: str
    content: bytes


def sample_pages(count: int) -> list[PageFile]:
    """Return ``count`` different pages: first the photographs, if scikit-image is installed, then drawn ones."""
    pages = list(_photographs())[:count]
    return pages + [drawn_page(seed) for seed in range(count - len(pages))]


def _photographs() -> Iterator[PageFile]:
    # They are files inside of the package; importing it would only take time.
    package = importlib.util.find_spec("skimage")
    for folder in (package.submodule_search_locations or []) if package else []:
        for name in ("page", "text"):
            path = Path(folder, "data", f"{name}.png")
            if path.is_file():
                with Image.open(path) as image:
                    # Anew, because of a broken colour profile, about which OpenCV would write to stderr.
                    yield PageFile(name, _encoded(image))


def drawn_page(seed: int) -> PageFile:
    """Return a page of 10 to 20 lines, or of a table; equal seeds give equal pages.

    Of four, the second is scanned slightly askew, the third is a table, and the fourth has two lines that stand on
    their heads.
    """
    random = np.random.default_rng(seed)
    paper = tuple(int(value) for value in random.integers(238, 256, 3))
    ink = tuple(int(value) for value in random.integers(0, 80, 3))
    image = Image.new("RGB", (900, 760), paper)
    draw = ImageDraw.Draw(image)
    kind = seed % 4
    heading = "Invoice No. 20417" if kind == 2 else str(random.choice(HEADINGS))
    draw.text((60, 36), heading, font=ImageFont.load_default(size=40), fill=ink)
    if kind == 2:
        _draw_table(draw, random, ink)
        return PageFile(f"drawn-{seed}", _encoded(image))
    tops = [120.0]
    while tops[-1] < 690:
        size = float(random.integers(17, 30))
        phrases = (SUBJECTS, VERBS, OBJECTS, ENDINGS) if random.random() < 0.6 else (SUBJECTS, VERBS, OBJECTS)
        text = " ".join(str(random.choice(choices)) for choices in phrases)
        x = 60 + 40 * int(random.integers(0, 2))
        draw.text((x, tops[-1]), text, font=ImageFont.load_default(size=size), fill=ink)
        tops.append(tops[-1] + size * 1.9)
    if kind == 1:
        image = image.rotate(random.uniform(-4, 4), resample=Image.Resampling.BICUBIC, expand=True, fillcolor=paper)
    if kind == 3:
        lower = (0, int(tops[-3]) - 4, 900, 760)
        image.paste(image.crop(lower).rotate(180), lower)
    return PageFile(f"drawn-{seed}", _encoded(image))


def _draw_table(draw: ImageDraw.ImageDraw, random: np.random.Generator, ink: tuple[int, ...]) -> None:
    """Draw rows of short texts, which the recogniser can take several at once."""
    font = ImageFont.load_default(size=25)
    rows = [("Count", "Article", "Price", "Total")]
    for _ in range(9):
        count, cents = int(random.integers(2, 40)), int(random.integers(100, 9000))
        total = count * cents
        article = str(random.choice(ARTICLES))
        rows.append((str(count), article, f"{cents // 100}.{cents % 100:02}", f"{total // 100}.{total % 100:02}"))
    for number, row in enumerate(rows):
        for x, text in zip((60, 200, 520, 700), row, strict=True):
            draw.text((x, 130 + 56 * number), text, font=font, fill=ink)


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
                return _encoded(Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB"))
            return content if image.format in READABLE_FORMATS else _encoded(image.convert("RGB"))
    except UnidentifiedImageError:
        raise UnreadablePage(f"{path}: not an image, or in a format that Pillow does not know") from None
    except (OSError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise UnreadablePage(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, icc_profile=None)
    return buffer.getvalue()
