"""The files that belong to an ONNX file: a model may keep its weights beside it, and says where by name.

The names are a part of the model, so whoever wrote it chose them. Here they are read, without the package onnx and
before any library opens one, and only those are let through that lie in the model's own folder.
"""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
import stat
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path

from fastpipe.errors import ConfigError

__all__ = ["identity_of", "is_ort_format", "weights_beside"]

# Of each kind of message in onnx.proto, the fields that lead to an external file: number -> the kind of what is there.
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING, _ENTRY = range(9)
_FIELDS: dict[int, dict[int, int]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _TENSOR: {13: _ENTRY},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
}
_DEEPEST = 200  # protobuf itself goes no deeper than 100
_FIXED_BYTES = {1: 8, 5: 4}  # of the wire types that have a fixed size
_ORT_FORMAT = b"ORTM"  # bytes 4 to 8 of ONNX Runtime's own format, which has everything in one file

Content = bytes | mmap.mmap


def is_ort_format(model: Path | bytes) -> bool:
    """Return whether a model, a file that can be read or its content, is in ONNX Runtime's own format."""
    if isinstance(model, bytes):
        return model[4:8] == _ORT_FORMAT
    if model.suffix != ".ort":
        return False
    with model.open("rb") as file:
        return file.read(8)[4:] == _ORT_FORMAT


def weights_beside(model: Path | bytes) -> dict[str, Path]:
    """Return the files that hold a model's weights, by the names that it has for them; none, if it has all in itself.

    Args:
        model: an ONNX file that exists, or the content of one, which can have no others.

    Raises:
        ConfigError: if it is no ONNX file, or names a file that is not in its folder, or not there as a plain file, or
            shorter than the model says.
    """
    try:
        if isinstance(model, bytes):
            locations = {} if is_ort_format(model) else _locations(model)
        else:
            locations = {} if is_ort_format(model) else _locations_in(model.absolute(), _state(model.stat()))
    except _Unreadable as error:
        raise ConfigError(f"it is no ONNX model: {error}") from None
    if isinstance(model, bytes):
        if locations:
            raise ConfigError(
                f"its weights are in a file of their own, {next(iter(locations))!r}, which a model that is given as "
                f"bytes, or encrypted, cannot have: save it with its weights inside, onnx.save(onnx.load(path), target)"
            )
        return {}
    folder = model.parent
    return {location: _checked(folder, location, size_bytes) for location, size_bytes in sorted(locations.items())}


def identity_of(source: Path | bytes) -> Hashable:
    """Return what is equal for the instances of a node, and for no other model."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).digest()
    files = [source.absolute(), *weights_beside(source).values()]
    return tuple([(path, _state(path.stat())) for path in files])


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _checked(folder: Path, location: str, size_bytes: int) -> Path:
    """Return the file of a name, if it is one in that folder; nothing is opened."""
    where = f"its weights are said to be in {location!r}"
    parts = location.split("/")
    if not location or "\0" in location or "\\" in location or location.startswith("/") or ".." in parts:
        raise ConfigError(f"{where}: expected a name within the model's folder, without '..'")
    path = folder / location
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve(strict=True)):
            raise ConfigError(f"{where}, which leads out of the model's folder: put the file itself beside the model")
        status = path.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ConfigError(f"{where}, which cannot be read: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{where}, which is no plain file")
    if status.st_size < size_bytes:
        raise ConfigError(f"{where}, which has {status.st_size} bytes where the model needs {size_bytes}")
    return path


# ---- reading the file ------------------------------------------------------------------------------------------------


class _Unreadable(Exception):
    """It is no protobuf message."""


# Each instance of a node asks, several times; reading a graph takes Python milliseconds.
@functools.lru_cache(maxsize=64)
def _locations_in(path: Path, state: tuple[int, ...]) -> dict[str, int]:
    """Return what ``_locations`` does for a file, which is in that ``state``; not to be changed."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise _Unreadable("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _locations(content)


def _locations(content: Content) -> dict[str, int]:
    """Return the names of a model's external files, with the number of bytes that each must have."""
    found: dict[str, int] = {}
    waiting = [(_MODEL, 0, len(content), 0)]
    while waiting:
        kind, start, end, depth = waiting.pop()
        if depth > _DEEPEST:
            raise _Unreadable("it is nested too deeply")
        fields = _FIELDS[kind]
        entries: list[tuple[bytes, bytes]] = []
        for number, first, last in _messages(content, start, end):
            inner = fields.get(number)
            if inner == _ENTRY:
                entry = {field: content[a:b] for field, a, b in _messages(content, first, last)}
                entries.append((entry.get(1, b""), entry.get(2, b"")))
            elif inner is not None:
                waiting.append((inner, first, last, depth + 1))
        if entries:
            size_bytes = _largest(entries, b"offset") + _largest(entries, b"length")
            # All that are written, should one be written twice: whoever opens it may take the first or the last.
            for name in [value for key, value in entries if key == b"location"] or [b""]:
                location = name.decode(errors="backslashreplace")
                found[location] = max(found.get(location, 0), size_bytes)
    return found


def _largest(entries: Sequence[tuple[bytes, bytes]], key: bytes) -> int:
    numbers = [value for name, value in entries if name == key]
    if not all(number.isdigit() and len(number) < 20 for number in numbers):
        raise _Unreadable(f"the {key.decode()} of its weights is no number")
    return max(map(int, numbers), default=0)


def _messages(content: Content, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, beginning and end of each field of a message that has a length; the others are passed over."""
    position = start
    while position < end:
        tag, position = _number(content, position, end)
        kind = tag & 7
        if kind == 2:
            length, position = _number(content, position, end)
            if length > end - position:
                raise _Unreadable("it ends too early")
            yield tag >> 3, position, position + length
            position += length
        elif kind == 0:
            _, position = _number(content, position, end)
        elif kind in _FIXED_BYTES:
            position += _FIXED_BYTES[kind]
        else:
            raise _Unreadable("it is no protobuf message")
    if position > end:
        raise _Unreadable("it ends too early")


def _number(content: Content, position: int, end: int) -> tuple[int, int]:
    """Return a number of variable length, and the position behind it."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise _Unreadable("it ends too early")
        byte = content[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise _Unreadable("it is no protobuf message")
