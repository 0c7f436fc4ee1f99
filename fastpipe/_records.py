"""The file of one recorded request: a zip of ``manifest.json`` and members with the bytes of arrays and the like.

Values in the manifest are JSON where JSON says it all (None, bool, int, finite floats, text), and otherwise an object
with one key that says what it is: ``{"list": [...]}``, ``{"dict": [[key, value], ...]}``, ``{"ndarray": "0.npy"}``.
What cannot be kept is ``{"lost": {"type": ..., "text": ..., "why": ...}}``.

Reading a file runs nothing that is in it: no class is imported, and no pickle loaded unless the reader asks for it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import pathlib
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastpipe._describe import summarize, type_name
from fastpipe.errors import PipeError

__all__ = ["COLLECTIONS", "SUFFIX", "Record", "array_of", "encode", "read", "tensor_of", "write"]

SUFFIX = ".fastpipe.zip"
FORMAT = 1
MANIFEST = "manifest.json"
# JSON is written under the GIL, some 5 million values a second; a request of more is no request for a record.
MOST_VALUES = 100_000
DEEPEST = 64


# ---- values to JSON --------------------------------------------------------------------------------------------


class _Encoder:
    """Turns values into JSON and members. Nothing raises; what cannot be kept is marked."""

    def __init__(self, *, pickle: bool) -> None:
        self.members: dict[str, bytes] = {}
        self._pickle = pickle
        self._names: dict[int, str] = {}  # id of a value that has a member -> its name
        self._kept_alive: list[Any] = []
        self._value_count = 0

    def encode(self, value: Any, depth: int = 0) -> Any:
        self._value_count += 1
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            return value if value.bit_length() < 4096 else {"int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if depth > DEEPEST:
            return _lost(value, "nested too deeply")
        try:
            encoded = self._collection(value, kind, depth) or self._leaf(value, kind)
        except Exception as error:  # an array whose memory is gone, a dict that changes meanwhile
            return _lost(value, f"{type_name(error)} when it was read")
        if encoded is not None:
            return encoded
        if self._pickle:
            return self._pickled(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._fields(value, depth)
        return _lost(value, "")

    def _collection(self, value: Any, kind: type, depth: int) -> Any:
        if kind in (list, tuple, set, frozenset, dict) and self._value_count + len(value) > MOST_VALUES:
            return _lost(value, "too many values")
        if kind in (list, tuple, set, frozenset):
            return {kind.__name__: [self.encode(item, depth + 1) for item in value]}
        if kind is dict:
            items = list(value.items())
            return {"dict": [[self.encode(key, depth + 1), self.encode(item, depth + 1)] for key, item in items]}
        return None

    def _leaf(self, value: Any, kind: type) -> Any:
        if kind in (bytes, bytearray):
            return {kind.__name__: self._member(value, "bin", lambda: bytes(value))}
        if kind is complex:
            return {"complex": [repr(value.real), repr(value.imag)]}
        if isinstance(value, pathlib.PurePath):
            return {"path": str(value)}
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.generic) and value.dtype.kind != "O":
            return {"scalar": self._member(value, "npy", lambda: _npy(numpy, numpy.asarray(value)))}
        if numpy is not None and kind in (numpy.ndarray, numpy.memmap) and not value.dtype.hasobject:
            return {"ndarray": self._member(value, "npy", lambda: _npy(numpy, value))}
        torch = sys.modules.get("torch")
        if torch is not None and kind is getattr(torch, "Tensor", None):
            tensor = value.detach()
            member = self._member(value, "bin", lambda: _tensor_bytes(torch, tensor))
            dtype = str(tensor.dtype).removeprefix("torch.")
            told = {"member": member, "dtype": dtype, "shape": list(tensor.shape), "device": str(tensor.device)}
            return {"tensor": told}
        return None

    def _pickled(self, value: Any) -> Any:
        import pickle

        try:
            return {"pickle": self._member(value, "pickle", lambda: pickle.dumps(value))}
        except Exception as error:
            return _lost(value, f"{type_name(error)} when it was pickled")

    def _fields(self, value: Any, depth: int) -> Any:
        """A dataclass: enough to compare answers and to read, but it is not made again from a file."""
        names = [each.name for each in dataclasses.fields(value)]
        fields = [[name, self.encode(object.__getattribute__(value, name), depth + 1)] for name in names]
        return {"fields": {"type": type_name(value), "fields": fields}}

    def _member(self, value: Any, suffix: str, make: Callable[[], bytes]) -> str:
        name = self._names.get(id(value))
        if name is None:
            content = make()
            name = self._names[id(value)] = f"{len(self.members)}.{suffix}"
            self.members[name] = content
            self._kept_alive.append(value)
        return name


def _lost(value: Any, why: str) -> dict[str, Any]:
    return {"lost": {"type": type_name(value), "text": summarize(value).text, "why": why}}


def _npy(numpy: Any, array: Any) -> bytes:
    file = io.BytesIO()
    numpy.lib.format.write_array(file, numpy.asarray(array), allow_pickle=False)
    return file.getvalue()


def _tensor_bytes(torch: Any, tensor: Any) -> bytes:
    flat = tensor.cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def encode(values: dict[str, Any], *, pickle: bool = False) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return ``values``, each encoded, and the members they need."""
    encoder = _Encoder(pickle=pickle)
    return {name: encoder.encode(value) for name, value in values.items()}, encoder.members


def write(path: Path, manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    """Write a record under another name, and give it its own when it is whole.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:  # images are compressed already
            archive.writestr(MANIFEST, json.dumps({"format": FORMAT, **manifest}, indent=1, allow_nan=False))
            for name, content in members.items():
                archive.writestr(name, content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# ---- back again ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Record:
    """A record that was read; ``manifest`` is what it says, ``values`` are encoded."""

    path: Path
    manifest: dict[str, Any]
    members: dict[str, bytes] = dataclasses.field(repr=False)
    pickle: bool = False

    @property
    def lost(self) -> list[str]:
        """The inputs that cannot be had back, each as ``request['key'] (type: why)``."""
        found = []
        for key, node in self.manifest["request"]["dict"]:
            for where, told in _losses(node, "" if self.pickle else "pickle"):
                found.append(f"request[{key!r}]{where} ({told})")
        return found

    def request(self) -> dict[str, Any]:
        """The inputs, made anew; what was lost is left out.

        Raises:
            PipeError: the file is damaged.
            ImportError: it holds tensors, and torch is not installed.
        """
        try:
            pairs = self.manifest["request"]["dict"]
            return {
                self._decode(key): self._decode(node) for key, node in pairs if not any(_losses(node, self._refused))
            }
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise PipeError(f"{self.path} is damaged: {type(error).__name__}: {error}") from error

    @property
    def _refused(self) -> str:
        return "" if self.pickle else "pickle"

    def _decode(self, node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        ((kind, inner),) = node.items()
        if kind in COLLECTIONS:
            return COLLECTIONS[kind](self._decode(item) for item in inner)
        if kind == "dict":
            return {self._decode(key): self._decode(item) for key, item in inner}
        if kind in ("bytes", "bytearray"):
            return self.members[inner] if kind == "bytes" else bytearray(self.members[inner])
        if kind in ("int", "float", "path", "complex"):
            return _PLAIN[kind](inner)
        if kind in ("ndarray", "scalar"):
            return array_of(self.members[inner], is_scalar=kind == "scalar")
        if kind == "tensor":
            return tensor_of(inner, self.members[inner["member"]])
        if kind == "pickle" and self.pickle:
            import pickle

            return pickle.loads(self.members[inner])
        raise ValueError(f"nothing is known of {kind!r}")


COLLECTIONS: dict[str, Callable[[Iterator[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}
_PLAIN: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "float": float,
    "path": Path,
    "complex": lambda parts: complex(float(parts[0]), float(parts[1])),
}


def array_of(content: bytes, *, is_scalar: bool) -> Any:
    """Return the NumPy array, or scalar, of a member. ValueError: it is none, or holds objects."""
    import numpy

    array = numpy.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return array[()] if is_scalar else array


def tensor_of(told: dict[str, Any], content: bytes) -> Any:
    """Return the tensor of a member, on its device if there is one."""
    import torch

    dtype = getattr(torch, told["dtype"])
    if not content:
        tensor = torch.empty(told["shape"], dtype=dtype)
    else:
        tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(dtype).reshape(told["shape"])
    return tensor.to(told["device"]) if told["device"] == "cpu" or torch.cuda.is_available() else tensor


def _losses(node: Any, refused: str) -> Iterator[tuple[str, str]]:
    """Yield where inside of an encoded value something is missing, and what."""
    if not isinstance(node, dict):
        return
    ((kind, inner),) = node.items()
    if kind == "lost":
        yield "", ": ".join(filter(None, [inner["type"], inner["why"]]))
    elif kind == "fields":
        yield "", inner["type"]
    elif kind == refused:
        yield "", "a pickle, which is loaded with --pickle only"
    elif kind in COLLECTIONS:
        for index, item in enumerate(inner):
            yield from ((f"[{index}]{where}", told) for where, told in _losses(item, refused))
    elif kind == "dict":
        for key, item in inner:
            yield from ((f"[{key!r}]{where}", told) for where, told in _losses(item, refused))


def read(path: Path, *, pickle: bool = False) -> Record:
    """Read a record.

    Args:
        path: of the file.
        pickle: also load what was recorded with ``pickle=True``: this runs whatever the file's writer wanted.

    Raises:
        PipeError: it is none, or of a format of a later fastpipe.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = json.loads(archive.read(MANIFEST))
            members = {name: archive.read(name) for name in archive.namelist() if name != MANIFEST}
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise PipeError(f"{path} is no record of fastpipe: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise PipeError(f"{path} is no record of fastpipe: its {MANIFEST} has no format")
    if manifest["format"] > FORMAT:
        raise PipeError(
            f"{path} has the format {manifest['format']}, of fastpipe {manifest.get('fastpipe')}; this fastpipe reads"
            f" up to {FORMAT}"
        )
    if not isinstance(manifest.get("request"), dict) or "dict" not in manifest["request"]:
        raise PipeError(f"{path} is no record of fastpipe: it has no request")
    return Record(path, manifest, members, pickle)
