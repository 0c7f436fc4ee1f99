"""Encrypted model files: a model on disk that nobody can read, or change unseen, without its key.

    key = secrets.token_bytes(32)
    encrypt_model("resnet.onnx", "resnet.onnx.encrypted", key)     # FASTPIPE_MODEL_KEY=<key.hex()> for the service

The format is AES-256-GCM by the library cryptography, over the file as a whole:

    8 bytes   b"fpmodel" and the version of the format, 1
    12 bytes  the nonce, random for each file
    the rest  the ciphertext with its tag of 16 bytes; the 20 bytes in front of it are authenticated with it

A key must not be used for more than 2**32 files, as for every random nonce of this length.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastpipe.errors import ConfigError, MissingExtra

__all__ = ["KEY_VARIABLE", "ModelKey", "decrypt", "encrypt", "encrypt_model", "find_key", "is_encrypted"]

KEY_VARIABLE = "FASTPIPE_MODEL_KEY"
"""The environment variable that holds a key if nothing else is said: 64 hexadecimal digits."""

ModelKey = str | Callable[[], bytes]
"""Where a key comes from: the name of an environment variable, or a callable that returns its 32 bytes."""

_MAGIC = b"fpmodel\x01"
_KEY_BYTES, _NONCE_BYTES, _TAG_BYTES = 32, 12, 16
_LONGEST = 2**31 - 1 - _TAG_BYTES  # of cryptography; an ONNX file is smaller anyway


def encrypt_model(source: Path | str, target: Path | str, key: bytes) -> None:
    """Write an encrypted copy of a model file, whose weights are to be inside: it can be loaded from no other files.

    Args:
        source: the model.
        target: replaced if it exists.
        key: 32 bytes, kept by you: without them the model is lost.

    Raises:
        ConfigError: if the key is not 32 bytes, or the file is larger than 2 GB.
        MissingExtra: if the library cryptography is not installed.
    """
    encrypted = encrypt(Path(source).read_bytes(), key, str(source))
    Path(target).write_bytes(encrypted)


def is_encrypted(content: bytes) -> bool:
    """Say whether a file that begins with (or is) this content is an encrypted one."""
    return content.startswith(_MAGIC)


def find_key(source: ModelKey) -> bytes:
    """Return the key that an environment variable or a callable gives.

    Raises:
        ConfigError: if the variable is not set, or what it holds is no key. The message never has the key, nor the name
            of a variable: who mistakes one for the other has written the key there.
    """
    if callable(source):
        key = source()
        if not isinstance(key, bytes) or len(key) != _KEY_BYTES:
            got = f"{len(key)} bytes" if isinstance(key, bytes) else f"a {type(key).__name__}"
            raise ConfigError(f"model_key must return {_KEY_BYTES} bytes, got {got}")
        return key
    if not isinstance(source, str):
        raise ConfigError(
            f"model_key must be the name of an environment variable, or a callable that returns the key, got a "
            f"{type(source).__name__}"
        )
    variable = "the environment variable " + (KEY_VARIABLE if source == KEY_VARIABLE else "that model_key names")
    text = os.environ.get(source)
    if text is None:
        hint = "" if source == KEY_VARIABLE else "; a key itself belongs into a variable, and its name here"
        raise ConfigError(f"its key is expected in {variable}, which is not set{hint}")
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise ConfigError(f"{variable} must hold {2 * _KEY_BYTES} hexadecimal digits")
    return key


def encrypt(content: bytes, key: bytes, name: str) -> bytes:
    """Return the encrypted form of some bytes; ``name`` is what messages call them."""
    if len(content) > _LONGEST:
        raise ConfigError(f"'{name}' is larger than 2 GB and cannot be encrypted")
    header = _MAGIC + secrets.token_bytes(_NONCE_BYTES)
    ciphertext: bytes = _cipher(key).encrypt(header[len(_MAGIC) :], content, header)
    return header + ciphertext


def decrypt(content: bytes, key: bytes, name: str) -> bytes:
    """Return what was encrypted; ``name`` is what messages call it.

    Raises:
        ConfigError: if the key is another one, or a single bit was changed.
    """
    cipher = _cipher(key)
    from cryptography.exceptions import InvalidTag

    start = len(_MAGIC) + _NONCE_BYTES
    header, ciphertext = content[:start], content[start:]
    try:
        plain: bytes = cipher.decrypt(header[len(_MAGIC) :], ciphertext, header)
    except (InvalidTag, ValueError) as error:  # ValueError: shorter than a nonce
        raise ConfigError(f"'{name}' cannot be decrypted: the key is another one, or the file was changed") from error
    return plain


def _cipher(key: bytes) -> Any:
    if len(key) != _KEY_BYTES:
        raise ConfigError(f"a key has {_KEY_BYTES} bytes, got {len(key)}")
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise MissingExtra("an encrypted model", "encryption", error) from error
    return AESGCM(key)
