"""How a kernel that resizes cuts up a result: in pieces, a block of threads for each, which need shared memory."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

__all__ = ["Extent", "Limits", "Pieces", "opencv_pieces", "pillow_pieces"]

# A band of resize_opencv.cu, in its words BAND and COLUMNS; and its threads.
OPENCV_BAND, OPENCV_STRIP, OPENCV_THREADS = 8, 32, (32, 4)
# With more pixels for one it reads what it needs and no more; SPARSE there.
SPARSE = 12
BLOCK_BYTES = 1900

# The largest piece of resize_pillow.cu: TILE_ROWS rows, and for each warp WARP_COLUMNS; and more of its words.
LARGEST_BAND, LARGEST_WARPS = 16, 4
TILE_ROWS, WARP_COLUMNS, STEP, WEIGHT_BYTES, BLOCK_TILES = 16, 8, 32, 768, 12
LEAST_BAND = 4
# Blocks that share a multiprocessor, as registers and shared memory allow; and bands that a block makes at most.
OPENCV_BLOCKS, PILLOW_BLOCKS = 8, 4
MOST_BANDS = 4


class Extent(NamedTuple):
    """The largest of a call's images, and the least height and width that any of them becomes."""

    height: int
    width: int
    least_height: int
    least_width: int


class Limits(NamedTuple):
    """What of a GPU decides how a result is cut up."""

    multiprocessors: int
    shared_bytes: int  # of a block


class Pieces(NamedTuple):
    """How a result is cut up."""

    band: int  # rows
    strip: int  # columns
    threads: tuple[int, int]
    shared_bytes: int
    most_bands: int = 1  # of a block
    fewest_bands: int = 1  # of a block, for any image of the call

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the blocks for a result of this size: across, and down."""
        return -(-size[1] // self.strip), -(-size[0] // (self.band * self.fewest_bands))


@functools.lru_cache(maxsize=256)
def opencv_pieces(gpu: Limits, extent: Extent, count: int, size: tuple[int, int]) -> Pieces:
    """Return the pieces of resize_opencv, with room for the rows of all images of which it wants whole rows."""
    scale = min(extent.width / extent.least_width, SPARSE)
    pitch = min(3 * extent.width, 3 * math.ceil((OPENCV_STRIP + 1) * scale) + 6) + 30
    needed = 4 * OPENCV_BAND * pitch + 16
    pieces = Pieces(OPENCV_BAND, OPENCV_STRIP, OPENCV_THREADS, min(needed, gpu.shared_bytes))
    most = _most_bands(pieces, count, size, OPENCV_BLOCKS * gpu.multiprocessors)
    fewest = min(max(BLOCK_BYTES * extent.least_width // (3 * OPENCV_STRIP * extent.width), 1), most)
    return pieces._replace(most_bands=most, fewest_bands=fewest)


@functools.lru_cache(maxsize=256)
def pillow_pieces(gpu: Limits, extent: Extent, count: int, size: tuple[int, int]) -> Pieces:
    """Return the pieces of resize_pillow for so many results of a size: as large as they fit, and fill the GPU."""
    scale_y, scale_x = extent.height / extent.least_height, extent.width / extent.least_width
    band, warps = LARGEST_BAND, LARGEST_WARPS
    while True:
        needed = _shared_bytes(band, warps, scale_y, scale_x, extent.width)
        if needed <= gpu.shared_bytes or (warps == 1 and band == 1):
            break
        # What takes most of the room decides.
        if warps > 1 and (band == 1 or scale_x * warps * 4 > scale_y * band):
            warps //= 2
        else:
            band //= 2
    # A band repeats some of the work of its neighbour: it is low only where there are too few others.
    at_once = PILLOW_BLOCKS * gpu.multiprocessors
    pieces = Pieces(band, WARP_COLUMNS * warps, (32, warps), min(needed, gpu.shared_bytes))
    while pieces.band > LEAST_BAND and 2 * count * math.prod(pieces.grid(size)) <= at_once:
        pieces = pieces._replace(band=pieces.band // 2)
    most = _most_bands(pieces, count, size, at_once)
    rows = (pieces.band + 1) * max(extent.height, extent.least_height)
    fewest = 1 + sum(rows < extent.least_height * (TILE_ROWS * tiles - 3) for tiles in (6, 4, 3))
    return pieces._replace(most_bands=most, fewest_bands=min(fewest, most))


def _most_bands(pieces: Pieces, count: int, size: tuple[int, int], at_once: int) -> int:
    """Return how many bands a block may make: as many as leave enough blocks for the GPU, with some to spare."""
    return min(max(2 * count * math.prod(pieces.grid(size)) // (3 * at_once), 1), MOST_BANDS)


def _shared_bytes(band: int, warps: int, scale_y: float, scale_x: float, widest: int) -> int:
    """Return what ``room_of`` of resize_pillow.cu asks for, or a little more."""
    support_x, support_y = max(scale_x, 1.0), max(scale_y, 1.0)
    strip = warps * WARP_COLUMNS
    row_bytes = 3 * min(widest, math.ceil((strip - 1) * scale_x + 2 * support_x) + 5)
    pitch = row_bytes + 30 + 128
    steps = math.ceil((min(widest, (WARP_COLUMNS - 1) * scale_x + 2 * support_x) + 5) / STEP)
    # Of one band, or of as many as a block makes of an image that is less high.
    tiles = max(int(((band + 1) * support_y + 3) / TILE_ROWS) + 1, BLOCK_TILES)
    return 2 * TILE_ROWS * pitch + WEIGHT_BYTES * (steps * warps + tiles)
