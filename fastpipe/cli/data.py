"""What ``--data`` means, for every command that takes it: one request or many, each read when its turn comes.

    7, text, "'text'"     a Python literal, or else the text itself, as the request's ``data``
    @photo.jpg            the bytes of a file
    @ids.npy, @in.npz     the array of a file of NumPy's; the arrays, by their names
    @photos/              a request for each file in a folder and the folders in it
    @lines.jsonl          a request for each line: a JSON object is the request itself, another value is its data
    @-                    the same, from the standard input
    score=0.5             another key of every request; its value is written in one of the forms above

Several are one list, one behind the other.
"""

from __future__ import annotations

import ast
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fastpipe.contract import Request
from fastpipe.errors import PipeError

__all__ = ["HELP", "Input", "Inputs", "UnreadableData", "data_of", "loaded"]

HELP = (
    "what becomes the request's 'data': a Python literal, text, @FILE for the bytes of a file, @FILE.npy for an array "
    "(@FILE.npz: arrays by name), @FOLDER/ for each file in it, @FILE.jsonl for each line (an object is the whole "
    "request), @- for lines on the standard input; KEY=VALUE sets another key of every request. May be given several "
    "times"
)
STANDARD_INPUT = "-"
LINES_SUFFIXES = (".jsonl", ".ndjson")
ARRAY_SUFFIXES = (".npy", ".npz")
MOST_LOADED_BYTES = 512 << 20
_KEYED = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


class UnreadableData(PipeError, ValueError):
    """What ``--data`` names is there, and is not what its name says."""


@dataclass(frozen=True)
class Input:
    """One request that has not been read yet."""

    name: str
    """What a person calls it: the path of its file, or ``lines.jsonl:12``."""
    place: str
    """A relative path for files that are made of it; no two inputs of one command have the same."""
    read: Callable[[], Request]
    """Return the request, a new dict. Raises OSError, or UnreadableData where a line is no JSON, or a file no array."""


class Inputs:
    """The requests that the values of ``--data`` describe, in order. Iterating reads no request and may be repeated.

    Of a folder, the names of its files are kept while it is walked through, and nothing else: contents are read by
    ``Input.read``. The order is that of the names. Hidden files and folders are passed over.

    Args:
        texts: the values, as they were written.

    Raises:
        PipeError: a file or a folder is not there, or two values contradict each other.
        OSError: a file that every request gets cannot be read.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._fixed: Request = {}
        self._sources: list[str] = []
        for text in texts:
            key, value = _key_and_value(text)
            if key not in (None, "data"):
                if _is_many(value):
                    raise PipeError(f"--data {text}: one file is expected; only 'data' may be of many")
                self._fixed[key] = data_of(value)
                continue
            if value.startswith("@") and value[1:] != STANDARD_INPUT and not os.path.exists(value[1:]):
                raise PipeError(f"--data {text}: there is no such file or folder in {os.getcwd()}")
            self._sources.append(value)
        if self._sources.count(f"@{STANDARD_INPUT}") > 1:
            raise PipeError("--data @-: the standard input can be read once")

    @property
    def are_many(self) -> bool:
        """Whether there may be more than one."""
        return len(self._sources) > 1 or any(map(_is_many, self._sources))

    def count(self) -> int | None:
        """Return how many there are, by walking through folders and lines; None: the standard input does not say."""
        counts = [_count_of(source) for source in self._sources]
        return None if None in counts else sum(filter(None, counts)) or int(not self._sources)

    def __iter__(self) -> Iterator[Input]:
        if not self._sources:
            yield Input("request", "request", lambda: dict(self._fixed))
        for number, source in enumerate(self._sources):
            prefix = f"{number}/" if len(self._sources) > 1 else ""
            for name, place, read in _inputs_of(source):
                yield Input(name, prefix + place, _with(self._fixed, read))


def data_of(text: str) -> Any:
    """Return one value: ``@PATH`` is what a file has, a Python literal what it says, all else the text itself.

    Raises:
        OSError: the file cannot be read.
        UnreadableData: it is called as one of NumPy's, and is none.
    """
    if text.startswith("@"):
        return _content_of(text[1:])
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def loaded(inputs: Inputs, most: int) -> tuple[list[Request], bool]:
    """Read the first ``most`` requests, or fewer if their bytes are many, and say whether there are more.

    Raises:
        PipeError: there is none.
        OSError, UnreadableData: one cannot be read.
    """
    requests: list[Request] = []
    size_bytes = 0
    iterator = iter(inputs)
    for item in islice(iterator, most):
        requests.append(item.read())
        size_bytes += sum(map(_size_bytes, requests[-1].values()))
        if size_bytes > MOST_LOADED_BYTES:
            break
    if not requests:
        raise PipeError("--data has no request: the file or folder is empty")
    return requests, next(iterator, None) is not None


def _key_and_value(text: str) -> tuple[str | None, str]:
    """Divide ``KEY=VALUE``; what is a literal, such as ``'a=b'``, or does not begin with a name, is a value alone."""
    keyed = _KEYED.fullmatch(text)
    return (keyed[1], keyed[2]) if keyed else (None, text)


def _is_many(value: str) -> bool:
    if not value.startswith("@"):
        return False
    return value[1:] == STANDARD_INPUT or value.endswith(LINES_SUFFIXES) or os.path.isdir(value[1:])


def _with(fixed: Request, read: Callable[[], Request]) -> Callable[[], Request]:
    return lambda: {**read(), **fixed}


def _inputs_of(source: str) -> Iterator[tuple[str, str, Callable[[], Request]]]:
    """Yield name, place and reader of each request of one source."""
    if not source.startswith("@"):
        yield "data", "data", lambda: {"data": data_of(source)}
        return
    path = source[1:]
    if path == STANDARD_INPUT or path.endswith(LINES_SUFFIXES):
        stem = Path(path).stem if path != STANDARD_INPUT else "line"
        for number, line in _lines(path):
            where = f"{path}:{number}"
            yield where, f"{stem}-{number}", partial(_request_of, line, where)
    elif os.path.isdir(path):
        for file in _files_in(path):
            yield file, os.path.relpath(file, path), partial(_request_of_file, file)
    else:
        yield path, os.path.basename(path), partial(_request_of_file, path)


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    # Not sys.stdin: a thread that waits for a line of it would keep the interpreter from ending.
    with open(0 if path == STANDARD_INPUT else path, "rb", closefd=path != STANDARD_INPUT) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def _request_of(line: bytes, where: str) -> Request:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UnreadableData(f"{where}: the line is no JSON: {error}") from None
    return value if isinstance(value, dict) else {"data": value}


def _request_of_file(path: str) -> Request:
    return {"data": _content_of(path)}


def _content_of(path: str) -> Any:
    """Return the bytes of a file; of one of NumPy's the array, or the arrays by their names."""
    if not path.endswith(ARRAY_SUFFIXES):
        return Path(path).read_bytes()
    try:
        # Files may come from anybody, and a pickle is code.
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            return dict(found)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).partition(". ")[0]  # behind it, NumPy says how to run the code
        raise UnreadableData(f"{path}: expected arrays that NumPy reads without running code, got: {reason}") from None


def _size_bytes(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_size_bytes, value.values()))
    return len(value) if isinstance(value, bytes) else getattr(value, "nbytes", 0)


def _files_in(folder: str) -> Iterator[str]:
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(here, name)
            if not name.startswith(".") and os.path.isfile(path):  # no pipe or socket: reading it could wait for ever
                yield path


def _count_of(source: str) -> int | None:
    path = source[1:]
    if not _is_many(source):
        return 1
    if path == STANDARD_INPUT:
        return None
    if os.path.isdir(path):
        return sum(1 for _ in _files_in(path))
    return sum(1 for _ in _lines(path))
