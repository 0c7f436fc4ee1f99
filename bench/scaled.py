"""How much do results of scaled decoding differ from those of the whole picture, and which of the two is nearer?

python bench/scaled.py                 the table of docs/backends.md
python bench/scaled.py --images FOLDER of your JPEG files

The pictures are those of ``peers.py``. Nothing is timed here: ``peers.py --case jpeg`` says what scaling gains.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import images
import numpy as np

import fastpipe

STEPS = {
    "ResizeMat": {"resize_h": 224, "resize_w": 224},
    "PillowResizeMat": {"resize_h": 224, "resize_w": 224},
    "LetterBoxMat": {"max_h": 640, "max_w": 640},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="JPEG files to take instead of the samples")
    options = parser.parse_args(arguments)
    steps = [f"{step} to {' x '.join(map(str, keys.values()))}" for step, keys in STEPS.items()]
    print("| picture |", " | ".join(steps), "| from the mean of the area, ResizeMat: full, scaled |")
    print("| --- |", " --- |" * (len(STEPS) + 1))
    for name in images.names(options.images):
        jpeg = images.jpeg(name, options.images)
        cells = [_cell(*_differences(jpeg, step, keys)) for step, keys in STEPS.items()]
        print(f"| {name} |", " | ".join(cells), f"| {_from_area(jpeg)} |")
    return 0


def _differences(jpeg: bytes, step: str, keys: dict[str, int]) -> tuple[float, int]:
    """Return the mean and the greatest difference between scaled and full decoding."""
    difference = np.abs(_result(jpeg, step, keys, "auto") - _result(jpeg, step, keys, "full"))
    return float(difference.mean()), int(difference.max())


def _result(jpeg: bytes, step: str, keys: dict[str, int], scale: str) -> Any:
    with fastpipe.Pipe(backend=f"S[DecodeMat,{step}]", scale=scale, **keys) as pipe:
        return pipe({"data": jpeg})["result"].astype(int)


def _cell(mean: float, greatest: int) -> str:
    return f"{mean:.2f}, {greatest}" if greatest else "none"


def _from_area(jpeg: bytes) -> str:
    """Return how far both are, on average, from each pixel's mean over the area that it stands for."""
    whole: Any = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    keys = STEPS["ResizeMat"]
    area = cv2.resize(whole, (keys["resize_w"], keys["resize_h"]), interpolation=cv2.INTER_AREA).astype(int)
    results = [_result(jpeg, "ResizeMat", keys, scale) for scale in ("full", "auto")]
    return ", ".join(f"{np.abs(result - area).mean():.2f}" for result in results)


if __name__ == "__main__":
    sys.exit(main())
