"""The steps of PP-OCR that are no model: what goes into each of the three networks, and what comes out of it.

    image --prepare_page--> page --detection_input--> [detector] --boxes_of_map--> quads, in reading order
    page, quad --unwarp--> line --direction_input--> [direction] --is_upside_down--> line, the right way up
    line, width --recognition_input--> [recogniser] --text_of--> text, score

They are plain functions of arrays, so that the pipe's backends (``ocr.py``) and the loop it is compared with
(``plain.py``) run the same code. Images are uint8 of shape (h, w, 3), BGR; a *quad* is float32 of shape (4, 2), the
corners as (x, y): top left, top right, bottom right, bottom left. The numbers are those the models were trained and
published with. All functions are reentrant; none changes its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyclipper
from numpy.typing import NDArray

from fastpipe.errors import DecodeError
from fastpipe.kernels import cpu
from ocr import DemoError

__all__ = [
    "NARROWEST_WIDTH",
    "Image",
    "Line",
    "Page",
    "UnreadablePage",
    "boxes_of_map",
    "decoded",
    "detection_input",
    "direction_input",
    "is_upside_down",
    "prepare_page",
    "recognition_input",
    "recognition_widths",
    "text_of",
    "unwarp",
]

Image = NDArray[Any]
Floats = NDArray[np.float32]

# ---- page ------------------------------------------------------------------------------------------------------
LONGEST_PAGE_SIDE = 2000
SHORTEST_PAGE_SIDE = 30
# Wider than this, or this low, a page is a strip: the detector then gets a border above and below it.
WIDEST_PAGE_RATIO = 8
LOWEST_PAGE = 30
# A strip grows on its way to the detector, and the detector needs some 100 bytes for each pixel.
MOST_PIXELS = 16_000_000

# ---- detector --------------------------------------------------------------------------------------------------
SHORTEST_DETECTOR_SIDE = 736
DETECTOR_STRIDE = 32  # the detector halves its input five times
TEXT_THRESHOLD = 0.3
BOX_THRESHOLD = 0.5
MOST_CONTOURS = 1000
SHORTEST_BOX_SIDE = 3
# The detector finds text shrunk; a box is grown by this times its area over its circumference.
GROWTH = 1.6
# Boxes whose tops differ by less are on one line of the page, and are read from left to right.
SAME_LINE_PIXELS = 10

# ---- direction and recogniser ----------------------------------------------------------------------------------
LINE_HEIGHT = 48
DIRECTION_WIDTH = 192
UPSIDE_DOWN_THRESHOLD = 0.9
UPRIGHT_RATIO = 1.5  # a crop this much higher than wide is a line that stands
NARROWEST_WIDTH = 320
LINES_OF_ONE_WIDTH = 6
LOWEST_SCORE = 0.5  # what is read with less confidence is no text


class UnreadablePage(DemoError, DecodeError):
    """Something is no image, or none that could be a page; the message says why. To a client it is status 400."""


@dataclass(frozen=True)
class Page:
    """An image as the detector's boxes see it, and the way back to the image it was made of."""

    image: Image
    source_width: int
    source_height: int
    scale_x: float
    scale_y: float
    border_top: int

    def to_source(self, quad: Floats) -> Floats:
        """Return the quad in pixels of the source image, inside of it."""
        x = quad[:, 0] * self.scale_x
        y = (quad[:, 1] - self.border_top) * self.scale_y
        return np.stack([x.clip(0, self.source_width), y.clip(0, self.source_height)], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Line:
    """One line of text on a page."""

    text: str
    score: float
    quad: Floats  # in pixels of the source image


def decoded(content: bytes) -> Image:
    """Return the image in a file, given as its bytes.

    Raises:
        UnreadablePage: if it is none that OpenCV reads.
    """
    image: Image | None = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if image is None:
        raise UnreadablePage("not an image that OpenCV reads")
    return image


def prepare_page(image: Image) -> Page:
    """Return the page that boxes are searched on: no side too long or too short, and no strip.

    Raises:
        UnreadablePage: if it is so long and thin that a side would have no pixel left, or the page far too many.
    """
    source_height, source_width = image.shape[:2]
    if max(image.shape[:2]) > LONGEST_PAGE_SIDE:
        image = _resized(image, LONGEST_PAGE_SIDE / max(image.shape[:2]))
    if min(image.shape[:2]) < SHORTEST_PAGE_SIDE:
        image = _resized(image, SHORTEST_PAGE_SIDE / min(image.shape[:2]))
    height, width = image.shape[:2]
    scale_x, scale_y = source_width / width, source_height / height
    border = 0
    if height <= LOWEST_PAGE or width / height > WIDEST_PAGE_RATIO:
        wanted_height = 2 * max(int(width / WIDEST_PAGE_RATIO), LOWEST_PAGE)
        border = abs(wanted_height - height) // 2
        _check_size(image, width, height + 2 * border)
        image = cv2.copyMakeBorder(image, border, border, 0, 0, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    return Page(image, source_width, source_height, scale_x, scale_y, border)


def _resized(image: Image, scale: float) -> Image:
    """Return the image scaled, each side then rounded to a multiple of the detector's stride."""
    height, width = (round(int(side * scale) / DETECTOR_STRIDE) * DETECTOR_STRIDE for side in image.shape[:2])
    _check_size(image, width, height)
    resized: Image = cv2.resize(image, (width, height))
    return resized


def _check_size(image: Image, width: int, height: int) -> None:
    if not 0 < width * height <= MOST_PIXELS:
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise UnreadablePage(f"an image of {size} pixels is too long and thin to be a page")


def detection_input(page: Page) -> Floats:
    """Return the page as the detector takes it: float32 of shape (3, h, w), sides multiples of 32.

    Raises:
        UnreadablePage: as prepare_page.
    """
    scale = max(1.0, SHORTEST_DETECTOR_SIDE / min(page.image.shape[:2]))
    return _normalized(_resized(page.image, scale))


def boxes_of_map(text_map: Floats, page: Page) -> list[Floats]:
    """Return the quads of the lines on a page, in reading order.

    Args:
        text_map: what the detector says, of shape (1, 1, h, w): how likely each pixel is inside of text.
        page: the page it was made of.
    """
    likely = text_map.reshape(text_map.shape[-2:])
    mask = cv2.dilate((likely > TEXT_THRESHOLD).astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    quads = (_quad_of_contour(contour, likely, page.image.shape) for contour in contours[:MOST_CONTOURS])
    return _in_reading_order([quad for quad in quads if quad is not None])


def _quad_of_contour(contour: Any, likely: Floats, page_shape: tuple[int, ...]) -> Floats | None:
    quad, shorter_side = _smallest_box(contour)
    if shorter_side < SHORTEST_BOX_SIDE or _mean_inside(quad, likely) < BOX_THRESHOLD:
        return None
    outline = _grown(quad)
    if len(outline) == 0:
        return None
    quad, shorter_side = _smallest_box(outline)
    if shorter_side < SHORTEST_BOX_SIDE + 2:
        return None
    height, width = page_shape[:2]
    # In float32, like the reference: a box that falls on a half must be rounded to the same side.
    map_size, page_size = np.array([likely.shape[::-1], (width, height)], np.float32)
    quad = np.round(quad / map_size * page_size).clip(0, page_size)
    quad = _corners(quad.astype(np.int32)).clip(0, (width - 1, height - 1)).astype(np.float32)
    across, down = _distance(quad[0], quad[1]), _distance(quad[0], quad[3])
    return quad if min(int(across), int(down)) > SHORTEST_BOX_SIDE else None


def _smallest_box(points: Any) -> tuple[Floats, float]:
    box = cv2.minAreaRect(points)
    return _corners(cv2.boxPoints(box)), min(box[1])


def _corners(points: Any) -> Any:
    """Return four points in the order of a quad: of the two leftmost the upper one first, then clockwise."""
    left_to_right = points[np.argsort(points[:, 0])]
    top_left, bottom_left = sorted(left_to_right[:2], key=lambda point: point[1])
    top_right, bottom_right = sorted(left_to_right[2:], key=lambda point: point[1])
    return np.array([top_left, top_right, bottom_right, bottom_left])


def _mean_inside(quad: Floats, likely: Floats) -> float:
    limits = likely.shape[1] - 1, likely.shape[0] - 1
    x0, y0 = np.floor(quad.min(axis=0)).astype(int).clip(0, limits)
    x1, y1 = np.ceil(quad.max(axis=0)).astype(int).clip(0, limits)
    inside = np.zeros((y1 - y0 + 1, x1 - x0 + 1), np.uint8)
    cv2.fillPoly(inside, [(quad - np.array([x0, y0], np.float32)).astype(np.int32)], 1)
    return float(cv2.mean(likely[y0 : y1 + 1, x0 : x1 + 1], inside)[0])


def _grown(quad: Floats) -> Any:
    """Return the outline of the quad grown on all sides, as integer points of shape (n, 1, 2); n may be 0."""
    x, y = quad.T.astype(np.float64)
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    area = abs(np.sum(x * next_y - next_x * y)) / 2
    circumference = np.sum(np.hypot(next_x - x, next_y - y))
    offset = pyclipper.PyclipperOffset()
    offset.AddPath(quad, pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
    outlines = offset.Execute(area * GROWTH / circumference)
    return np.array(outlines[0] if outlines else [], np.int32).reshape(-1, 1, 2)


def _in_reading_order(quads: list[Floats]) -> list[Floats]:
    """Return the quads from top to bottom, those on one line of the page from left to right."""
    ordered: list[Floats] = []
    for quad in sorted(quads, key=lambda q: (q[0][1], q[0][0])):
        place = len(ordered)
        while place and _is_left_of(quad[0], ordered[place - 1][0]):
            place -= 1
        ordered.insert(place, quad)
    return ordered


def _is_left_of(corner: Floats, other: Floats) -> bool:
    """Say whether a corner is on the same line of the page as the other, and left of it."""
    return bool(abs(corner[1] - other[1]) < SAME_LINE_PIXELS and corner[0] < other[0])


def _distance(a: Floats, b: Floats) -> Any:
    return np.linalg.norm(a - b)


def _size_of(quad: Floats) -> tuple[int, int]:
    """Return width and height of what is inside a quad, laid flat."""
    top_left, top_right, bottom_right, bottom_left = quad
    width = max(_distance(top_left, top_right), _distance(bottom_right, bottom_left))
    height = max(_distance(top_left, bottom_left), _distance(top_right, bottom_right))
    return int(width), int(height)


def recognition_widths(quads: list[Floats]) -> list[int]:
    """Return for each line of a page how wide the recogniser's input for it shall be, in pixels.

    The recogniser looks at its whole input, so the blank to the right of a line has a say in its text: whoever pads a
    batch to its widest line gets answers that depend on who shared it. Here the *page* decides, as in the reference
    this demo is compared with: its lines, sorted by how long they are, form groups of six, and each group is as wide
    as its longest line. Lines of equal width may then share a batch with anybody's.
    """
    ratios = np.array([_ratio_laid_down(*_size_of(quad)) for quad in quads])
    widths = [0] * len(quads)
    order = np.argsort(ratios)
    for start in range(0, len(order), LINES_OF_ONE_WIDTH):
        group = order[start : start + LINES_OF_ONE_WIDTH]
        width = int(LINE_HEIGHT * max(NARROWEST_WIDTH / LINE_HEIGHT, ratios[group[-1]]))
        for index in group:
            widths[index] = width
    return widths


def _ratio_laid_down(width: int, height: int) -> float:
    return height / width if height / width >= UPRIGHT_RATIO else width / height


def unwarp(image: Image, quad: Floats) -> Image:
    """Return what is inside the quad, laid flat; a line that stands is turned a quarter to the left."""
    width, height = _size_of(quad)
    flat = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    matrix = cv2.getPerspectiveTransform(quad, flat)
    crop: Image = cv2.warpPerspective(
        image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return np.ascontiguousarray(np.rot90(crop)) if height / width >= UPRIGHT_RATIO else crop


def direction_input(line: Image) -> Floats:
    """Return the line as the direction model takes it: float32 of shape (3, 48, 192)."""
    return _padded(line, DIRECTION_WIDTH)


def is_upside_down(probabilities: Floats) -> bool:
    """Say whether a line stands on its head, from what the direction model says, of shape (1, 2)."""
    return bool(probabilities[0, 1] > max(probabilities[0, 0], UPSIDE_DOWN_THRESHOLD))


def recognition_input(line: Image, width: int) -> Floats:
    """Return the line as the recogniser takes it: float32 of shape (3, 48, width)."""
    return _padded(line, width)


def _padded(line: Image, width: int) -> Floats:
    """Return the line 48 pixels high, values of -1..1, with zeros on its right up to ``width``."""
    height_now, width_now = line.shape[:2]
    scaled_width = min(width, math.ceil(LINE_HEIGHT * (width_now / height_now)))
    padded = np.zeros((3, LINE_HEIGHT, width), np.float32)
    padded[:, :, :scaled_width] = _normalized(cv2.resize(line, (scaled_width, LINE_HEIGHT)))
    return padded


def text_of(probabilities: Floats, alphabet: Sequence[str]) -> tuple[str, float]:
    """Return the text the recogniser read, and how sure it is of its characters on average (0 if there are none).

    Args:
        probabilities: of shape (1, steps, characters): from left to right, each character's probability.
        alphabet: the characters by index; the first stands for no character.
    """
    steps = probabilities[0]
    best = steps.argmax(axis=1)
    # A character seen in several steps in a row is one; a doubled letter has a step without one in between.
    is_new = np.concatenate([[True], best[1:] != best[:-1]]) & (best != 0)
    if not is_new.any():
        return "", 0.0
    text = "".join(alphabet[index] for index in best[is_new])
    return text, float(steps[is_new, best[is_new]].mean(dtype=np.float64))


def _normalized(image: Image) -> Floats:
    """Return the image as all three networks take it: values of -1..1, of shape (3, h, w)."""
    normalized: Floats = cpu.normalize(image, mean=127.5, std=127.5)
    return normalized
