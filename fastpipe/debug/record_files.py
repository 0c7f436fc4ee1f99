"""The file of one recorded request: a zip of ``manifest.json`` and members with the bytes of arrays and the like.

Values in the manifest are JSON where JSON says it all (None, bool, int, finite floats, text), and otherwise an object
with one key that says what it is: ``{"list": [...]}``, ``{"dict": [[key, value], ...]}``, ``{"ndarray": "0.npy"}``.
What cannot be kept is ``{"lost": {"type": ..., "text": ..., "why": ...}}``.

Reading a file runs nothing that is in it: no class is imported, and no pickle loaded unless the reader asks for it. Nor
does it take more memory than goes with the file's size, whatever the file says of itself: members are stored, not
compressed, an array or a tensor is as long as its bytes, and each member becomes one value, under however many keys.

Values under keys that look like those of secrets (``redaction``) are not written; where they were is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import pathlib
import stat
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastpipe.errors import PipeError
from fastpipe.redaction import DEEPEST, LEFT_OUT, is_secret_pair, looks_secret
from fastpipe.summaries import summarize, type_name

__all__ = ["COLLECTIONS", "SUFFIX", "Record", "array_of", "encode", "read", "tensor_of", "write"]

SUFFIX = ".fastpipe.zip"
FORMAT = 1
MANIFEST = "manifest.json"
# JSON is written under the GIL, some 5 million values a second; a request of more is no request for a record.
MOST_VALUES = 100_000
# JSON becomes up to 20 times its size in memory.
MOST_MANIFEST_BYTES = 32 << 20
# Of a manifest that is read: each value is up to three JSON values, and there are a summary and an answer besides.
MOST_NODES = 16 * MOST_VALUES
DEEPEST_NODE = 4 * DEEPEST
MOST_AXES = 64  # as in NumPy and torch
OWNER_ONLY = 0o600


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
        if kind in (list, tuple) and is_secret_pair(value):
            return {kind.__name__: [self.encode(value[0], depth + 1), _left_out(value[1])]}
        if kind in (list, tuple, set, frozenset):
            return {kind.__name__: [self.encode(item, depth + 1) for item in value]}
        if kind is dict:
            items = list(value.items())
            return {"dict": [[self.encode(key, depth + 1), self._under(key, item, depth)] for key, item in items]}
        return None

    def _under(self, key: Any, value: Any, depth: int) -> Any:
        return _left_out(value) if looks_secret(key) else self.encode(value, depth + 1)

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
        fields = [[name, self._under(name, object.__getattribute__(value, name), depth)] for name in names]
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


def _left_out(value: Any) -> dict[str, Any]:
    return {"lost": {"type": type_name(value), "text": "", "why": LEFT_OUT}}


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
    """Write a record, which its owner alone may read, under another name, and give it its own when it is whole.

    Raises:
        OSError: it cannot be written; nothing is left behind.
        PipeError: its manifest is longer than ``read`` takes.
    """
    described = json.dumps({"format": FORMAT, **manifest}, indent=1, allow_nan=False)
    if len(described) > MOST_MANIFEST_BYTES:
        raise PipeError(f"the request's values are {len(described)} bytes of JSON, more than {MOST_MANIFEST_BYTES}")
    part = path.with_name(f".{path.name}.part")
    # With this mode from the first moment, and not through a link that somebody has put there.
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, OWNER_ONLY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, OWNER_ONLY)  # whatever the umask has taken away
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # images are compressed already
                archive.writestr(MANIFEST, described)
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
        """The inputs that cannot be had back, each as ``request['key'] (type: why)``.

        Raises:
            PipeError: the file is damaged.
        """
        found = []
        with self._damage_said():
            for key, node in self.manifest["request"]["dict"]:
                for where, told in _losses(node, self._refused):
                    found.append(f"request[{key!r}]{where} ({told})")
        return found

    def request(self) -> dict[str, Any]:
        """The inputs, made anew; what was lost is left out. What shared memory when it was recorded shares it again.

        Raises:
            PipeError: the file is damaged.
            ImportError: it holds tensors, and torch is not installed.
        """
        made: dict[str, tuple[Any, Any]] = {}
        with self._damage_said():
            pairs = self.manifest["request"]["dict"]
            return {
                self._decode(key, made): self._decode(node, made)
                for key, node in pairs
                if not any(_losses(node, self._refused))
            }

    @contextlib.contextmanager
    def _damage_said(self) -> Iterator[None]:
        try:
            yield
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # whatever Python, NumPy or torch makes of a value that is none
            raise PipeError(f"{self.path} is damaged: {type(error).__name__}: {error}") from error

    @property
    def _refused(self) -> str:
        return "" if self.pickle else "pickle"

    def _decode(self, node: Any, made: dict[str, tuple[Any, Any]]) -> Any:
        if not isinstance(node, dict):
            return node
        ((kind, inner),) = node.items()
        if kind in COLLECTIONS:
            return COLLECTIONS[kind](self._decode(item, made) for item in inner)
        if kind == "dict":
            return {self._decode(key, made): self._decode(item, made) for key, item in inner}
        if kind in _PLAIN:
            return _PLAIN[kind](inner)
        if kind not in _MEMBERS:
            raise ValueError(f"nothing is known of {kind!r}")
        name = inner["member"] if kind == "tensor" else inner
        if name in made:
            other, value = made[name]
            if other != node:  # ten thousand shapes of one array would be ten thousand arrays
                raise ValueError(f"member {name!r} is {other} and {node}")
            return value
        value = self._made(kind, inner, self.members[name])
        made[name] = node, value
        return value

    def _made(self, kind: str, inner: Any, content: bytes) -> Any:
        if kind in ("bytes", "bytearray"):
            return content if kind == "bytes" else bytearray(content)
        if kind in ("ndarray", "scalar"):
            return array_of(content, is_scalar=kind == "scalar")
        if kind == "tensor":
            return tensor_of(inner, content)
        if not self.pickle:
            raise ValueError("a pickle is loaded only if the reader asks for it")
        import pickle

        return pickle.loads(content)


COLLECTIONS: dict[str, Callable[[Iterator[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}
_MEMBERS = frozenset({"bytes", "bytearray", "ndarray", "scalar", "tensor", "pickle"})
_PLAIN: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "float": float,
    "path": Path,
    "complex": lambda parts: complex(float(parts[0]), float(parts[1])),
}


def array_of(content: bytes, *, is_scalar: bool) -> Any:
    """Return the NumPy array, or scalar, of a member. ValueError: it is none, or holds objects."""
    import numpy

    file = io.BytesIO(content)
    read_header = _NPY_HEADERS[numpy.lib.format.read_magic(file)]
    shape, _, dtype = getattr(numpy.lib.format, read_header)(file)
    _check_size(shape, dtype.itemsize, len(content) - file.tell())
    file.seek(0)
    array = numpy.lib.format.read_array(file, allow_pickle=False)
    return array[()] if is_scalar else array


_NPY_HEADERS = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}


def tensor_of(told: dict[str, Any], content: bytes) -> Any:
    """Return the tensor of a member, on its GPU if there is one. ValueError: it is none."""
    import torch

    dtype = vars(torch).get(told["dtype"])  # not getattr(), which would import what some names stand for
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch has no dtype {told['dtype']!r}")
    _check_size(told["shape"], dtype.itemsize, len(content))
    if not content:
        tensor = torch.empty(told["shape"], dtype=dtype)
    else:
        tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(dtype).reshape(told["shape"])
    is_on_gpu = str(told["device"]).startswith("cuda") and torch.cuda.is_available()
    return tensor.to(told["device"]) if is_on_gpu else tensor


def _check_size(shape: Any, item_bytes: int, content_bytes: int) -> None:
    """Refuse a shape that its bytes do not fill: memory would be taken for what is not there.

    Raises:
        ValueError: if so, or if it is no shape.
    """
    if not all(type(side) is int and 0 <= side < 1 << 48 for side in shape) or len(shape) > MOST_AXES:
        raise ValueError(f"the shape {shape} is none")
    if math.prod(shape) * item_bytes != content_bytes or (not item_bytes and math.prod(shape) > MOST_VALUES):
        raise ValueError(f"the shape {shape} of {item_bytes} bytes each does not fit {content_bytes} bytes")


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
            for part in (key, item):
                yield from ((f"[{key!r}]{where}", told) for where, told in _losses(part, refused))


def read(path: Path, *, pickle: bool = False) -> Record:
    """Read a record.

    Args:
        path: of the file.
        pickle: also load what was recorded with ``pickle=True``: this runs whatever the file's writer wanted.

    Raises:
        PipeError: it is none, or of a format of a later fastpipe.
        OSError: it cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise PipeError(f"{path} is no record of fastpipe: it is no file")
    try:
        manifest, members = _unzipped(path)
    except (OSError, MemoryError, PipeError):
        raise
    except Exception as error:  # a damaged zip is told in a dozen ways, and so is JSON that is none
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


def _unzipped(path: Path) -> tuple[Any, dict[str, bytes]]:
    """Return what the manifest says, and the other members; nothing is inflated, and no byte read twice."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise ValueError("a member is compressed or encrypted, which fastpipe does not write")
        if sum(entry.file_size for entry in entries) > os.stat(path).st_size:
            raise ValueError("its members are longer than the file")
        if archive.getinfo(MANIFEST).file_size > MOST_MANIFEST_BYTES:
            raise ValueError(f"its {MANIFEST} has more than {MOST_MANIFEST_BYTES} bytes")
        try:
            manifest = json.loads(archive.read(MANIFEST))
        except RecursionError:
            raise ValueError(f"its {MANIFEST} is nested too deeply") from None
        _check_nodes(manifest)
        return manifest, {entry.filename: archive.read(entry) for entry in entries if entry.filename != MANIFEST}


def _check_nodes(manifest: Any) -> None:
    """Refuse a manifest that nothing could walk through, level by level.

    Raises:
        ValueError: if it has too many values, or too many levels.
    """
    level, count = [manifest], 0
    for _ in range(DEEPEST_NODE):
        level = [
            inner
            for node in level
            if isinstance(node, dict | list)
            for inner in (node.values() if isinstance(node, dict) else node)
        ]
        count += len(level)
        if not level:
            return
        if count > MOST_NODES:
            raise ValueError(f"its {MANIFEST} has more than {MOST_NODES} values")
    raise ValueError(f"its {MANIFEST} is nested too deeply")
