"""Where a model comes from: a file that must be there, or its content, decrypted if need be; and its fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastpipe.errors import ConfigError

from .encrypted import ModelKey, decrypt, find_key, is_encrypted

if TYPE_CHECKING:
    import onnx

__all__ = ["ModelSource", "fingerprint", "open_model"]

_LONGEST_MAGIC = 64


class ModelSource(NamedTuple):
    """A model to be loaded."""

    model: Path | bytes
    secret: bytes | None  # the key of an encrypted one: what is made of it belongs under the same key


def open_model(model: Path | str | bytes, key: ModelKey) -> ModelSource:
    """Return a file that exists, or a content: as it was given, or of an encrypted file, decrypted.

    Raises:
        ConfigError: if there is no such file, or it is encrypted and the key is missing or wrong.
        MissingExtra: if it is encrypted and the library cryptography is missing.
    """
    if isinstance(model, bytes):
        if not is_encrypted(model):
            return ModelSource(model, None)
        content, name = model, f"model of {len(model)} bytes"
    else:
        path = Path(model)
        if not path.is_file():
            raise ConfigError(f"there is {'a folder' if path.is_dir() else 'nothing'} at {path.absolute()}, not a file")
        with path.open("rb") as file:
            beginning = file.read(_LONGEST_MAGIC)
            if not is_encrypted(beginning):
                return ModelSource(path, None)
            content, name = beginning + file.read(), str(path)
    secret = find_key(key)
    return ModelSource(decrypt(content, secret, name), secret)


def fingerprint(model: Path | bytes) -> str:
    """Return the SHA-256 of an ONNX model, of its file and of the files beside it that hold its weights.

    Needs the package onnx where the model is a file.
    """
    if isinstance(model, bytes):
        return hashlib.sha256(model).hexdigest()
    import onnx

    total = hashlib.sha256(model.read_bytes())
    loaded = onnx.load(model, load_external_data=False)
    for location in sorted({location for tensor in _tensors(loaded.graph) for location in _locations(tensor)}):
        with (model.parent / location).open("rb") as file:
            total.update(location.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _tensors(graph: onnx.GraphProto) -> Iterator[Any]:
    """Yield every constant of a graph and of those inside it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _locations(tensor: Any) -> list[str]:
    return [entry.value for entry in tensor.external_data if entry.key == "location"]
