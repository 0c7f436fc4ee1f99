"""JPEG -> decode, resize to 224 x 224, RGB, float32 CHW: through pipes, and in plain OpenCV in different company."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import BusyThread, Numbers, Window, WrongAnswer, closed_loop
from contestants import Trial

__all__ = ["SAMPLES", "Images", "in_executor", "in_fastpipe", "in_omniback", "in_opencv", "jpeg", "names"]

SIDE = 224
# Two versions of libjpeg may round a pixel differently, and resizing carries that on.
LARGEST_DIFFERENCE = 2
# Scaled decoding averages what OpenCV's resizing skips: single pixels differ much, all together little.
LARGEST_MEAN_DIFFERENCE_SCALED = 4

# name -> (file of scikit-image, width, height, quality): sizes and bytes per pixel of everyday photographs.
SAMPLES = {
    "517x606": ("chelsea.png", 517, 606, 90),
    "640x640": ("astronaut.png", 640, 640, 95),
    "1280x720": ("coffee.png", 1280, 720, 95),
    "4000x3000": ("coffee.png", 4000, 3000, 90),
}

Convert = Callable[[bytes], Any]


def names(folder: Path | None) -> list[str]:
    """Return the names of the pictures: the JPEG files in the folder, or the samples.

    Raises:
        FileNotFoundError: if there is no JPEG in the folder.
    """
    if folder is None:
        return list(SAMPLES)
    found = sorted(path.name for path in folder.iterdir() if path.suffix in {".jpg", ".jpeg"})
    if not found:
        raise FileNotFoundError(f"no .jpg or .jpeg in {folder}")
    return found


def jpeg(name: str, folder: Path | None) -> bytes:
    """Return the bytes of a picture.

    Raises:
        ImportError: if scikit-image, which has the samples, is not installed.
    """
    return _sample(*SAMPLES[name]) if folder is None else (folder / name).read_bytes()


def _sample(file: str, width: int, height: int, quality: int) -> bytes:
    import cv2
    import skimage

    image: Any = cv2.imread(os.path.join(skimage.__path__[0], "data", file))
    scale = max(width / image.shape[1], height / image.shape[0])
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    image = image[top : top + height, left : left + width]
    encoded: bytes = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return encoded


def with_opencv(jpeg: bytes) -> Any:
    """Return the tensor, as one would write it without a library like ours."""
    import cv2
    import numpy as np

    image: Any = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    image = cv2.resize(image, (SIDE, SIDE))
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)


class Images(Trial):
    """Clients convert one picture again and again."""

    def __init__(
        self, jpeg: bytes, convert: Convert, *, is_beside_busy_thread: bool = False, is_scaled: bool = False
    ) -> None:
        import cv2

        cv2.setNumThreads(1)  # the clients are the threads; OpenCV's own on top of them would only be in the way
        self._jpeg = jpeg
        self._convert = convert
        self._is_beside_busy_thread = is_beside_busy_thread
        self._is_scaled = is_scaled

    def verify(self) -> None:
        import numpy as np

        tensor, expected = self._convert(self._jpeg), with_opencv(self._jpeg)
        if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            raise WrongAnswer(f"expected {expected.dtype} {expected.shape}, got {tensor.dtype} {tensor.shape}")
        differences = np.abs(tensor - expected)
        if self._is_scaled:
            if (mean := float(differences.mean())) > LARGEST_MEAN_DIFFERENCE_SCALED:
                raise WrongAnswer(f"pixels differ by {mean:.1f} from OpenCV's on average")
        elif (difference := float(differences.max())) > LARGEST_DIFFERENCE:
            raise WrongAnswer(f"a pixel differs by {difference} from OpenCV's")

    def run(self, clients: int, window: Window) -> Numbers:
        """Measure images/s."""
        company = BusyThread() if self._is_beside_busy_thread else contextlib.nullcontext()
        with company:
            numbers = closed_loop(lambda _: functools.partial(self._convert, self._jpeg), clients, window)
        numbers["images_per_s"] = numbers.pop("requests_per_s")
        return numbers


def in_opencv() -> Convert:
    """Return the plain loop's conversion, on the client's thread."""
    return with_opencv


def in_executor() -> Convert:
    """Return the same in the threads of a ThreadPoolExecutor, one for each CPU."""
    executor = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    return lambda jpeg: executor.submit(with_opencv, jpeg).result()


def in_omniback() -> Convert:
    """Return the same in a backend of omniback, one instance for each CPU."""
    import omniback

    class Kept:
        """omniback turns an array into a tensor of its own, wherever it is; an object goes through as it is."""

        def __init__(self, tensor: Any) -> None:
            self.tensor = tensor

    class OpenCV:
        def forward(self, batch: Any) -> None:
            for request in batch:
                request["result"] = Kept(with_opencv(request["data"]))

        def max(self) -> int:
            return 1

    omniback.register("OpenCV", OpenCV)
    count = len(os.sched_getaffinity(0))
    pipe = omniback.pipe({"main": {"backend": "OpenCV", "instance_num": count, "batching_timeout": 0}})

    def convert(jpeg: bytes) -> Any:
        request: dict[str, Any] = {"data": jpeg}
        pipe(request)
        return request["result"].tensor

    return convert


def in_fastpipe(scale: str = "full") -> Convert:
    """Return a pipe of the image backends, one instance for each CPU.

    Args:
        scale: of DecodeMat.
    """
    import fastpipe

    pipe = fastpipe.Pipe(
        backend="S[DecodeMat,ResizeMat,NormalizeMat]",
        resize_h=SIDE,
        resize_w=SIDE,
        color="rgb",
        scale=scale,
        instance_num=len(os.sched_getaffinity(0)),
    )

    def convert(jpeg: bytes) -> Any:
        request: dict[str, Any] = {"data": jpeg}
        pipe(request)
        return request["result"]

    return convert
