"""Decodes malformed images in a process of its own, which may crash, hang or grow; test_malformed_images.py starts it.

    python tests/support/image_fuzzer.py CURRENT truncations        every beginning of every image of the corpus
    python tests/support/image_fuzzer.py CURRENT flips COUNT SEED   COUNT of its images, each with some bits flipped
    python tests/support/image_fuzzer.py CURRENT bombs              the small files made to do harm
    python tests/support/image_fuzzer.py CURRENT large              images of two million pixels
    python tests/support/image_fuzzer.py CURRENT files FOLDER       every file of a folder
    python tests/support/image_fuzzer.py CURRENT abort              one image, over which the process ends
    python tests/support/image_fuzzer.py CURRENT more-MODE ...      truncations, flips, large of more_formats

The file CURRENT holds what is being decoded: its length in 8 bytes, and itself. Writes one JSON object to stdout. Where
stderr is a file, it is counted which inputs had libraries write to it. A decoder that does not come back within
LONGEST_S ends the process with SIGALRM.
"""

from __future__ import annotations

import ctypes
import io
import json
import mmap
import os
import signal
import struct
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import image_corpus
import numpy as np
from PIL import Image, ImageOps

from fastpipe.backends.image.codec import DecodeMat
from fastpipe.backends.image.header import ImageHeader, read_header
from fastpipe.backends.image.more_headers import read_more
from fastpipe.errors import DecodeError

LONGEST_S = 60
MAX_PIXELS = 16_000_000
MOST_BYTES = 1 << 28
C_LIBRARY = ctypes.CDLL(None)
COMPARE_EVERY = 10  # of the damaged images; the whole ones are compared by the tests


class Fuzzer:
    """Decodes one input after the other, and counts."""

    def __init__(self, current_path: Path, more_formats: list[Any] | None = None) -> None:
        self.formats = frozenset[str](more_formats or ())
        reduced = {"tiff_16_bit": "reduce"} if more_formats else {}
        self.backend = DecodeMat(more_formats=more_formats or (), max_pixels=MAX_PIXELS, **reduced)
        self.outcomes: Counter[str] = Counter()
        self.compared: Counter[str] = Counter()
        self.noisy: Counter[str] = Counter()
        self.problems: list[str] = []
        self.slowest_s = 0.0
        self.number = 0
        self.checksum = 0  # of all pixels
        with open(current_path, "wb") as file:
            file.truncate(8 + MOST_BYTES)  # sparse
        self._file = open(current_path, "r+b")  # noqa: SIM115 - the mapping is the process's, as long as it lives
        self._current = mmap.mmap(self._file.fileno(), 0)

    def decode(self, name: str, content: bytes, *, compare: bool = True) -> tuple[str, Any, float]:
        """Return the outcome, the pixels if there are any, and the time it took."""
        self._current[:8] = struct.pack("<Q", len(content))
        self._current[8 : 8 + len(content)] = content
        stderr_bytes = os.fstat(2).st_size
        pixels = None
        request: dict[str, Any] = {"data": content}
        signal.alarm(LONGEST_S)
        started_s = time.perf_counter()
        try:
            self.backend.forward([request])
        except DecodeError:
            outcome = "DecodeError"
        except Exception as error:
            outcome = f"unexpected {type(error).__name__}"
            self.problems.append(f"{name}: {error!r}: {content[:4000].hex()}")
        else:
            pixels = request.get("result")
            outcome = "no result" if pixels is None else "image"
        seconds = time.perf_counter() - started_s
        signal.alarm(0)
        self.slowest_s = max(self.slowest_s, seconds)
        form = name.split()[0]
        self.outcomes[f"{form}: {outcome}"] += 1
        if os.fstat(2).st_size != stderr_bytes:
            self.noisy[form] += 1
        if pixels is not None:
            self.checksum = zlib.crc32(pixels, self.checksum)
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or request["color"] != "bgr":
                self.problems.append(f"{name}: {pixels.dtype} {pixels.shape}: {content[:4000].hex()}")
            header = self.header_of(content)
            size = (header.height, header.width) if header is not None else (0, 0)
            if pixels.shape[:2] not in (size, size[::-1]) or size[0] * size[1] > self.backend.max_pixels:
                self.problems.append(f"{name}: {pixels.shape} for {header}: {content[:4000].hex()}")
            if compare and not self.formats:
                if "animated" not in name:  # OpenCV has other ideas of which picture of an animation is meant
                    self.compared[f"{form}: OpenCV {against_opencv(content, pixels)}"] += 1
                self.compared[f"{form}: Pillow {against_pillow(content, pixels)}"] += 1
        self.number += 1
        return outcome, pixels, seconds

    def header_of(self, content: bytes) -> ImageHeader | None:
        header = read_header(memoryview(content))
        return read_more(memoryview(content), self.formats, 0) if header is None else header

    def report(self) -> dict[str, Any]:
        counters = {"outcomes": self.outcomes, "compared": self.compared, "noisy": self.noisy}
        sorted_counters = {name: dict(sorted(counter.items())) for name, counter in counters.items()}
        numbers = {"slowest_s": self.slowest_s, "inputs": self.number, "checksum": self.checksum}
        return {**sorted_counters, **numbers, "problems": self.problems}


def against_opencv(content: bytes, pixels: Any) -> str:
    try:
        expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        expected = None
    return "refuses" if expected is None else difference(pixels, expected)


def against_pillow(content: bytes, pixels: Any) -> str:
    try:
        expected = by_pillow(content)
    except Exception:  # whatever: it is the witness, not the accused
        return "refuses"
    return difference(pixels, expected)


def by_pillow(content: bytes) -> Any:
    """Return Pillow's pixels: BGR, turned as EXIF says, alpha dropped, 16 bits cut to 8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(content))
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
        return np.asarray(image.convert("RGB"))[..., ::-1]


def difference(pixels: Any, expected: Any) -> str:
    if pixels.shape != expected.shape:
        return "has another size"
    largest = int(np.abs(pixels.astype(np.int16) - expected).max())
    return "equal" if largest == 0 else "nearly equal" if largest <= 3 else "differs"


def peak_mb() -> float:
    """Return the most memory this process has had since ``forget_peak``."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def forget_peak() -> None:
    if hasattr(C_LIBRARY, "malloc_trim"):
        C_LIBRARY.malloc_trim(0)  # what was freed, and kept for next time, would hide what comes next
    Path("/proc/self/clear_refs").write_text("5")


def truncations(fuzzer: Fuzzer, images: dict[str, bytes], step: int = 1) -> None:
    for name, content in images.items():
        for length in range(0, len(content), step):
            fuzzer.decode(name, content[:length])


def flipped(images: dict[str, bytes], rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Yield images with one to eight bits flipped, in the first bytes or anywhere, for ever."""
    names = list(images)
    while True:
        name = names[rng.integers(len(names))]
        damaged = bytearray(images[name])
        reach = min(len(damaged), 200) if rng.integers(3) == 0 else len(damaged)
        for place in rng.integers(0, reach, 1 << int(rng.integers(4))):
            damaged[place] ^= 1 << int(rng.integers(8))
        # With its checksums wrong, a PNG would never come as far as the decoder.
        yield name, image_corpus.repaired(damaged) if name.startswith("png") and rng.integers(4) else bytes(damaged)


def flips(fuzzer: Fuzzer, images: dict[str, bytes], count: int, seed: int) -> None:
    inputs = flipped(images, np.random.default_rng(seed))
    for number in range(count):
        name, content = next(inputs)
        fuzzer.decode(name, content, compare=number % COMPARE_EVERY == 0)


def measured(fuzzer: Fuzzer, inputs: Iterator[tuple[str, bytes]], *, compare: bool = True) -> Iterator[dict[str, Any]]:
    """Yield what each input came to: outcome, time, the most memory above what there was before, difference."""
    for name, content in inputs:
        forget_peak()
        before_mb = peak_mb()
        outcome, pixels, seconds = fuzzer.decode(name, content, compare=False)
        row = {"name": name, "outcome": outcome, "seconds": seconds, "peak_mb": peak_mb() - before_mb}
        row["bytes"] = len(content)
        if pixels is not None:
            row |= {"shape": pixels.shape, "pillow": against_pillow(content, pixels) if compare else "not asked"}
        yield row


def main(current_path: str, mode: str, *arguments: str) -> None:
    for name, content in image_corpus.decoded_images().items():  # what is allocated once, is
        Fuzzer(Path(current_path)).decode(name, content)
    mode, is_more = mode.removeprefix("more-"), mode.startswith("more-")
    images = dict(image_corpus.more_images()) if is_more else image_corpus.all_images()
    fuzzer = Fuzzer(Path(current_path), sorted({name.split()[0] for name in images}) if is_more else None)
    for name, content in images.items() if is_more else ():
        fuzzer.decode(name, content)
    forget_peak()
    before_mb = peak_mb()
    rows: list[dict[str, Any]] = []
    if mode == "truncations":
        truncations(fuzzer, images, step=7 if is_more else 1)
    elif mode == "flips":
        flips(fuzzer, images, int(arguments[0]), int(arguments[1]))
    elif mode == "bombs":
        rows = list(measured(fuzzer, ((name, content) for name, content, _ in image_corpus.bombs()), compare=False))
    elif mode == "abort":
        fuzzer.backend.run = lambda request: os.abort()  # type: ignore[method-assign]
        fuzzer.decode(*next(image_corpus.jpeg_images()))
    elif mode == "large":
        rows = list(
            measured(
                fuzzer,
                image_corpus.more_large_images() if is_more else image_corpus.large_images(),
                compare=not is_more,
            )
        )
    else:
        paths = sorted(path for path in Path(arguments[0]).iterdir() if path.is_file())
        rows = list(measured(fuzzer, ((path.name, path.read_bytes()) for path in paths)))
    report = {**fuzzer.report(), "grown_mb": peak_mb() - before_mb, "rows": rows}
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
