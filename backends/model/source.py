"""Where a model comes from: a file that must be there, or its content, decrypted if need be; and its fingerprint."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import NamedTuple

from fastpipe.errors import ConfigError, nearest

from .encrypted import KEY_VARIABLE, ModelKey, decrypt, find_key, is_encrypted
from .onnx_runtime.files import weights_beside

__all__ = ["ModelSource", "fingerprint", "name_of", "open_model"]

_LONGEST_MAGIC = 64
# So many entries of a folder are looked at for a file whose name is misspelt.
_MOST_BESIDE = 1000


class ModelSource(NamedTuple):
    """A model to be loaded."""

    model: Path | bytes
    secret: bytes | None  # the key of an encrypted one: what is made of it belongs under the same key

    def __repr__(self) -> str:
        """Say what it is, and nothing of what is in it: others' tools print the variables of a traceback."""
        what = f"{len(self.model)} bytes" if isinstance(self.model, bytes) else repr(str(self.model))
        return f"ModelSource({what}{', encrypted' if self.secret is not None else ''})"


def name_of(model: Path | str | bytes) -> str:
    """Return what messages call a model."""
    return f"model of {len(model)} bytes" if isinstance(model, bytes) else f"model '{model}'"


def open_model(model: Path | str | bytes, key: ModelKey | None) -> ModelSource:
    """Return a file that exists, or a content: as it was given, or of an encrypted file, decrypted.

    Args:
        model: an ONNX file, or the content of one.
        key: where the key is; with it the model must be encrypted. None: in ``KEY_VARIABLE``, if it is.

    Raises:
        ConfigError: if there is no such file, it is not encrypted though a key was given, it is and the key is missing
            or wrong, or its weights lie where they must not.
        MissingExtra: if it is encrypted and the library cryptography is missing.
    """
    source = _opened(model, key)
    weights_beside(source.model)
    return source


def _opened(model: Path | str | bytes, key: ModelKey | None) -> ModelSource:
    if isinstance(model, bytes):
        content, name = model, f"model of {len(model)} bytes"
    else:
        path = Path(model)
        if not path.is_file():
            raise ConfigError(f"there is {_found_at(path)} at {path.absolute()}, not a file{_like(path)}")
        with path.open("rb") as file:
            content, name = file.read(_LONGEST_MAGIC), str(path)
            if is_encrypted(content):
                content += file.read()
            elif key is None:
                return ModelSource(path, None)
    if is_encrypted(content):
        secret = find_key(KEY_VARIABLE if key is None else key)
        return ModelSource(decrypt(content, secret, name), secret)
    if key is not None:
        raise ConfigError("model_key is given, but it is not encrypted: somebody may have put another in its place")
    return ModelSource(content, None)


def _found_at(path: Path) -> str:
    return "a folder" if path.is_dir() else "nothing"


def _like(path: Path) -> str:
    """Return which file beside it may be meant; nothing if none is."""
    try:
        names = [each.name for each in itertools.islice(path.parent.iterdir(), _MOST_BESIDE) if each.is_file()]
    except OSError:  # there is no such folder, or it may not be read
        return ""
    return nearest(path.name, names)


def fingerprint(model: Path | bytes) -> str:
    """Return the SHA-256 of an ONNX model, of its file and of the files beside it that hold its weights.

    Raises:
        ConfigError: if it names files that it must not, see ``weights_beside``.
    """
    if isinstance(model, bytes):
        return hashlib.sha256(model).hexdigest()
    total = hashlib.sha256(model.read_bytes())
    for location, path in weights_beside(model).items():
        with path.open("rb") as file:
            total.update(location.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
