"""How resize_pillow cuts up a result: in bands of rows and strips of columns, a block of threads for each."""

from __future__ import annotations

import math
import operator

from ._cuda_device import Device
from ._cuda_images import Images, sizes_of

__all__ = ["pieces_of"]

# resize_pillow: a band repeats the work of one row of its neighbour's, so bands are high where there are enough of them
# to fill the GPU, and low where there are not. So many blocks run at once, as their registers allow.
LEAST_BAND, LARGEST_BAND = 2, 28
LARGEST_STRIP = 224  # THREADS of resize_pillow.cu
BLOCKS_PER_MULTIPROCESSOR = 3
PIXELS_PER_RESULT = 15.0  # see resize_pillow.cu


def pieces_of(
    gpu: Device, images: Images, size: tuple[int, int], least: tuple[int, int]
) -> tuple[int, int, float, int]:
    """Return how resize_pillow cuts up a result.

    Args:
        gpu: where.
        images: which.
        size: of the results.
        least: height and width that any of them becomes.

    Returns:
        The rows of a band and the columns of a strip, for the largest image; its cost; the shared memory of a block.
    """
    heights, widths = sizes_of(images)
    highest, widest = max(heights), max(widths)
    scale_y, scale_x = highest / least[0], widest / least[1]
    strips = -(-size[1] // LARGEST_STRIP)
    strip = -(-size[1] // strips // 32) * 32
    # As if all cost as much as the largest might; all blocks have about as much to do.
    fixed = PIXELS_PER_RESULT * size[0] * size[1]
    cost = highest * widest + fixed
    areas = sum(map(operator.mul, heights, widths)) * (images.number if images.table is None else 1)
    rows = size[0] * strips * (areas + images.number * fixed) / cost
    at_once = BLOCKS_PER_MULTIPROCESSOR * gpu.multiprocessors
    waves = math.ceil(rows / (LARGEST_BAND * at_once))
    # The last band of each image is, as a rule, half empty.
    band = max(math.ceil(rows / max(waves * at_once - images.number * strips / 2, 1)), LEAST_BAND)
    band = min(band, LARGEST_BAND)
    while True:
        needed = _shared_bytes(band, strip, scale_y, scale_x, widest)
        if needed <= gpu.shared_bytes or (strip == 32 and band == 1):
            return band, strip, cost, min(needed, gpu.shared_bytes)
        if strip > 32:
            strip = max(strip // 2 // 32 * 32, 32)
        else:
            band = max(band // 2, 1)


def _shared_bytes(band: int, strip: int, scale_y: float, scale_x: float, widest: int) -> int:
    """Return what ``room_of`` of resize_pillow.cu asks for, or a little more."""
    support_x, support_y = max(scale_x, 1.0), max(scale_y, 1.0)
    pitch = min(widest, strip * scale_x + 2 * support_x + 2) + 24
    # A smaller image has a higher band, of at most as many rows of its own; unless it is wider.
    rows, planes = 16 * ((band + 1) * support_y + 40), 4 * (6 * pitch + 48)
    return int(rows + planes + 24 * strip * ((2 * support_x + 16) / 8)) + 96
