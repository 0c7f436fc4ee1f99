"""nvJPEG without a GPU, and JPEGs that it takes: for the tests of the layer to it and of DecodeTensor."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from fastpipe.backends.tensor.nvjpeg import Library

__all__ = ["STREAM", "Fake", "compiled_into", "jpeg", "pixels_of"]

STREAM = 77
"""What stands for a stream of the caller's."""


def jpeg(width: int, height: int, *words: bytes, channels: int = 3, orientation: int = 1) -> bytes:
    """Return what has the frame of a JPEG, complete as far as its header goes; no decoder but the fake takes it."""
    exif = b""
    if orientation != 1:
        entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
        tiff = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
        exif = b"\xff\xe1" + struct.pack(">H", len(tiff) + 2) + tiff
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 8 + 3 * channels, 8, height, width, channels)
    frame += b"".join(bytes([number, 0x11, 0]) for number in range(1, channels + 1))
    scan = b"\xff\xda" + struct.pack(">HB", 6 + 2 * channels, channels) + bytes(2 * channels + 3)
    return b"\xff\xd8" + exif + frame + scan + b"pixels " + b" ".join(words) + b"\xff\xd9"


def pixels_of(encoded: bytes, width: int, height: int, color: str = "rgb") -> Any:
    """Return what the fake makes of it."""
    rows, columns, channels = np.ogrid[:height, :width, :3]
    order = channels if color == "rgb" else 2 - channels
    return (sum(encoded) + columns + 5 * rows + 60 * order).astype(np.uint8)


def compiled_into(folder: Path) -> Path:
    """Return the fake, as a shared library; skip the test where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = folder / "libnvjpeg.so.13"
    source = Path(__file__).with_name("fake_nvjpeg.c")
    command = [compiler, "-shared", "-fPIC", "-O1", str(source), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True)
    return library


class Fake:
    """The fake's own numbers."""

    USUAL: ClassVar = {
        **dict.fromkeys(("no_engines", "refuse", "break", "made", "batches", "largest", "with_gil", "without_gil"), 0),
        **dict.fromkeys(("most_inside", "synchronized", "priority", "lingers", "holds", "pipelined_ms"), 0),
        "flags": -1,
    }

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.library = ctypes.CDLL(self.path)

    def __getattr__(self, name: str) -> int:
        return ctypes.c_int.in_dll(self.library, f"fake_{name}").value

    def set(self, **values: int) -> None:
        for name, value in values.items():
            ctypes.c_int.in_dll(self.library, f"fake_{name}").value = value

    @property
    def streams(self) -> tuple[int | None, int | None]:
        """The caller's streams before and behind the batch."""
        names = ("fake_waited", "fake_waits")
        before, behind = (ctypes.c_void_p.in_dll(self.library, name).value for name in names)
        return before, behind

    def load(self) -> Library:
        return Library(self.path, self.path)
