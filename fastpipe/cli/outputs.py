"""What ``fastpipe run`` writes of a request that has ended: a line of JSON, and files for what no line should hold.

    {"index": 0, "input": "photos/a.jpg", "answer": {"result": [0.1, 0.9], "class": 1}}
    {"index": 3, "input": "photos/d.jpg", "node": "decode", "error": "fastpipe.errors.DecodeError", "message": "..."}

Numbers, text, lists and mappings are JSON. An array of few items is a list; a larger one, and bytes, are files of
their own (``{"file": "a.jpg.npy", "dtype": "float32", "shape": [640, 480]}``), if there is a folder for them. Without
one, what they are is all that is written: ``{"left_out": "ndarray float32 (640, 480), 1.2 MB"}``.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import math
import re
import sys
from pathlib import Path, PurePath
from typing import Any

from fastpipe.cli.paths import writing
from fastpipe.contract import Request
from fastpipe.faults import node_of, text_of
from fastpipe.redaction import Secrets
from fastpipe.summaries import summarize, type_name

__all__ = ["Outputs", "failure_line"]

# A line that a person can still look at, and of which a million can be read.
MOST_ITEMS = 1024
MOST_INLINE_BYTES = 1024
MOST_VALUES = 100_000
DEEPEST = 32
_MAGIC = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF8", ".gif"),
    (b"RIFF", ".webp"),
    (b"%PDF", ".pdf"),
)
_NOT_IN_FILE_NAMES = re.compile(r"[^\w.=-]")


class Outputs:
    """Turns answers into lines and, where ``folder`` is given, files in it.

    Thread-safety: any thread; two inputs never share a file.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.left_out_count = 0
        """How many values were only described."""

    @property
    def remedy(self) -> str:
        """What keeps such values, to be put behind a sentence."""
        return "; --out-dir FOLDER keeps arrays and bytes" if self._folder is None else ""

    def line(self, index: int, name: str, place: str, given: Request, answer: Request) -> dict[str, Any]:
        """Return the line of a request that was answered.

        Args:
            index: of the input, from 0.
            name: of the input.
            place: a relative path of the input's own, which the files are named after.
            given: the request as it was sent. What it had already is not written, nor is ``data``.
            answer: the same dict as the pipe left it.

        Raises:
            OSError: a file cannot be written.
        """
        new = {
            key: value
            for key, value in answer.items()
            if isinstance(key, str) and key != "data" and not (key in given and given[key] is value)
        }
        writer = _Writer(self._folder, place)
        line = {"index": index, "input": name, "answer": {key: writer.encode(new[key], (key,)) for key in new}}
        self.left_out_count += writer.left_out_count
        return line


def failure_line(index: int, name: str, error: BaseException, secrets: Secrets) -> dict[str, Any]:
    """Return the line of an input that failed, or could not be read; secrets are left out of what the error says."""
    return {
        "index": index,
        "input": name,
        "node": node_of(error) or None,
        "error": type_name(error),
        "message": secrets.and_of(error).left_out_of(text_of(error)),
    }


class _Writer:
    """The values of one answer."""

    def __init__(self, folder: Path | None, place: str) -> None:
        self._folder = folder
        self._place = place
        self._value_count = 0
        self.left_out_count = 0

    def encode(self, value: Any, path: tuple[str, ...]) -> Any:
        self._value_count += 1
        if value is None or isinstance(value, bool | int | str):
            return value.value if isinstance(value, enum.Enum) else value
        if isinstance(value, float):
            return value if math.isfinite(value) else repr(value)
        if len(path) > DEEPEST or self._value_count > MOST_VALUES:
            return self._left_out(value)
        if isinstance(value, dict):
            return {str(key): self.encode(item, (*path, str(key))) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.encode(item, (*path, str(index))) for index, item in enumerate(value)]
        if isinstance(value, bytes | bytearray | memoryview):
            return self._bytes(bytes(value), path)
        if isinstance(value, enum.Enum | PurePath):
            return value.name if isinstance(value, enum.Enum) else str(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
            return self.encode(fields, path)
        array = _numpy_of(value)
        return self._left_out(value) if array is None else self._array(array, value, path)

    def _bytes(self, value: bytes, path: tuple[str, ...]) -> Any:
        if self._folder is None:
            if len(value) <= MOST_INLINE_BYTES:
                return {"base64": base64.b64encode(value).decode("ascii")}
            return self._left_out(value)
        suffix = next((suffix for magic, suffix in _MAGIC if value.startswith(magic)), ".bin")
        file, written = self._new_file(self._folder, path, suffix)
        with writing(file):
            file.write_bytes(value)
        return {"file": written, "size_bytes": len(value)}

    def _array(self, array: Any, value: Any, path: tuple[str, ...]) -> Any:
        import numpy as np

        if array.ndim == 0 and array.dtype.kind in "biufUS":
            return self.encode(array.item(), path)
        if array.size <= MOST_ITEMS and array.dtype.kind in "biufU":
            return self.encode(array.tolist(), path)
        if self._folder is None or array.dtype.hasobject:
            return self._left_out(value)
        file, written = self._new_file(self._folder, path, ".npy")
        with writing(file):
            np.save(file, array, allow_pickle=False)
        return {"file": written, "dtype": str(array.dtype), "shape": list(array.shape)}

    def _new_file(self, folder: Path, path: tuple[str, ...], suffix: str) -> tuple[Path, str]:
        """Return where a value goes: ``a.jpg.npy`` is the result of ``a.jpg``, ``a.jpg.mask.npy`` another key's."""
        keys = [_NOT_IN_FILE_NAMES.sub("_", key) for key in path if path != ("result",)]
        written = ".".join([self._place, *keys]) + suffix
        file = folder / written
        file.parent.mkdir(parents=True, exist_ok=True)
        return file, written

    def _left_out(self, value: Any) -> dict[str, str]:
        self.left_out_count += 1
        return {"left_out": summarize(value).text}


def _numpy_of(value: Any) -> Any:
    """Return an array or a tensor, of whichever library and device, as NumPy's; None: it is none.

    Whoever has such a value has loaded its library.
    """
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(value, numpy.ndarray | numpy.generic):
        return numpy.asarray(value)
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    cupy: Any = sys.modules.get("cupy")
    if cupy is not None and isinstance(value, cupy.ndarray):
        return cupy.asnumpy(value)
    return None
