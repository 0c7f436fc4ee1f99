"""Files that are made at great cost and found by a key: engines built for one GPU, and what building them taught.

    cache = EngineCache(folder)
    engine = cache.get(key_of({"model": digest, "TensorRT": "11.4", "GPU": "H100"}), build)

A file is a header (magic, key, length and SHA-256 of what follows) and the content. It is written beside its place,
synchronised to the disk and renamed, so a process that is killed at any moment leaves the old file, the new one, or
none. What is read is checked against the header: a file that is torn, damaged or another key's is built anew. Builders
of one key, in this process or others, wait for the first one by a lock on a file, which the system lets go of when its
holder dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from fastpipe.errors import ConfigError

__all__ = ["DEFAULT_LIMIT_BYTES", "EngineCache", "default_folder", "key_of"]

DEFAULT_LIMIT_BYTES = 16 * 2**30

_log = logging.getLogger(__name__)
_SCHEMA = 1  # to be raised when what a key or a file means changes
_MAGIC = b"fpengine"
_HEADER = struct.Struct("<8s32sQ32s")  # magic, key, length of the content, its SHA-256
_ENGINE, _LOCK, _PART = ".engine", ".lock", ".part"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_FILE_SUFFIXES = (".engine", ".plan", ".trt")


def key_of(parts: Mapping[str, object]) -> str:
    """Return the key, 64 hexadecimal digits, of everything that an engine depends on; values as JSON can hold them."""
    text = json.dumps({"schema": _SCHEMA, **parts}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def default_folder() -> Path:
    """Return where engines are kept if nobody says: the user's cache folder, by the rules of the XDG.

    ``platformdirs`` was tried instead: it finds the same folder on the systems that have ``fcntl``, and would be one
    more dependency in place of two lines.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "fastpipe" / "engines"


class EngineCache:
    """A folder of such files, or one file for one key.

    Only the user may read what is written here (an engine holds the weights), and the folder should be one that only
    they may write to: who can put an engine there runs it.

    Thread-safety: any thread and any process may use the same place.

    Args:
        place: a folder, made if need be; or, where it ends in ``.trt``, ``.engine`` or ``.plan``, the one file.
        limit_bytes: of all files in the folder; those not used for longest are deleted after one was written. The one
            just written stays.
    """

    def __init__(self, place: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.is_file = place.suffix in _FILE_SUFFIXES
        self._place = place
        self._folder = place.parent if self.is_file else place
        self._limit_bytes = limit_bytes

    def get(self, key: str, build: Callable[[], bytes]) -> bytes:
        """Return what is kept under a key; where nothing is, call ``build`` once and keep what it returns.

        A folder that cannot be written to costs a warning, and the cache its use, but no error.

        Raises:
            ConfigError: if the place is a file that is no cache: it is not overwritten.
            Exception: what ``build`` raises; nothing is kept then.
        """
        path = self._path(key)
        content = self._read(path, key)
        if content is not None:
            return content
        lock = self._open_lock(path)
        if lock is None:
            return build()
        with _held(lock):
            content = self._read(path, key)  # whoever held the lock may have built it
            if content is None:
                content = build()
                self._write(path, key, content)
        return content

    def peek(self, key: str) -> bytes | None:
        """Return what is kept under a key, or None."""
        return self._read(self._path(key), key)

    def put(self, key: str, content: bytes) -> None:
        """Keep something; what was there is replaced."""
        path = self._path(key)
        lock = self._open_lock(path)
        if lock is not None:
            with _held(lock):
                self._write(path, key, content)

    def _path(self, key: str) -> Path:
        return self._place if self.is_file else self._folder / f"{key}{_ENGINE}"

    def _open_lock(self, path: Path) -> int | None:
        """Return the file that stands for the right to write ``path``, open, or None if it cannot be written to."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(path.with_name(path.name + _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            _log.warning("engines cannot be kept in '%s': %s", self._folder, error)
            return None

    def _read(self, path: Path, key: str) -> bytes | None:
        """Return the content of a whole file of this key, or None."""
        try:
            data = _content(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("'%s' cannot be read: %s", path, error)
            return None
        if self.is_file and not data.startswith(_MAGIC):
            raise ConfigError(f"'{path}' is no engine that fastpipe kept: remove it, or give another place")
        problem = _problem(data, key)
        if problem is not None:
            _log.warning("'%s' %s; it is built anew", path, problem)
            return None
        with contextlib.suppress(OSError):  # somebody else's folder, or just deleted: then it is not the last used
            os.utime(path)
        return data[_HEADER.size :]

    def _write(self, path: Path, key: str, content: bytes) -> None:
        """Put a file into its place at once; with the lock held."""
        part = path.with_name(path.name + _PART)  # one name: what a killed writer left is overwritten by the next
        header = _HEADER.pack(_MAGIC, bytes.fromhex(key), len(content), hashlib.sha256(content).digest())
        try:
            # Through no link, and not waiting, should somebody have put something else there.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(part, flags, 0o600)
            with open(descriptor, "wb") as file:
                file.write(header)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            _synchronise(self._folder)
        except OSError as error:  # a full disk, most likely
            _log.warning("'%s' cannot be written: %s", path, error)
            with contextlib.suppress(OSError):
                part.unlink()
            return
        if not self.is_file:
            self._evict(kept=path)

    def _evict(self, kept: Path) -> None:
        """Delete the files not used for longest, until the rest is within the limit."""
        files = []
        for path in self._folder.glob(f"*{_ENGINE}"):
            with contextlib.suppress(OSError):  # another process deleted it
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        total_bytes = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total_bytes <= self._limit_bytes:
                break
            if path != kept:
                # Who reads it now has it open, and keeps it. Its lock stays, as another process may wait for it.
                with contextlib.suppress(OSError):
                    path.unlink()
                total_bytes -= size
        self._sweep(kept)

    def _sweep(self, kept: Path) -> None:
        """Delete what writers that were killed have left."""
        for part in self._folder.glob(f"*{_ENGINE}{_PART}"):
            path = part.with_name(part.name.removesuffix(_PART))
            lock = self._open_lock(path) if path != kept else None
            if lock is not None:
                with _held(lock, may_wait=False) as is_ours, contextlib.suppress(OSError):
                    if is_ours:
                        part.unlink()


def _content(path: Path) -> bytes:
    """Return what is in a file that nobody but its owner, who is this user or root, can have written.

    Raises:
        OSError: if it cannot be read, is no plain file, or others could have put it there: they would run here.
    """
    # Without waiting: of a pipe that somebody has put there, nothing may ever come.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is no plain file")
        is_others = status.st_uid not in (os.geteuid(), 0) and os.stat(path.parent).st_mode & _OTHERS_WRITE
        if is_others or status.st_mode & _OTHERS_WRITE:
            raise OSError("others may have written it: keep engines in a folder that is yours alone")
        return file.read()


def _problem(data: bytes, key: str) -> str | None:
    """Say what is wrong with a file, or return None."""
    if len(data) < _HEADER.size:
        return "ends within its header"
    magic, digest, length, checksum = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        return "does not begin as an engine does"
    if digest != bytes.fromhex(key):
        return "was made for another model, GPU or version"
    content = memoryview(data)[_HEADER.size :]
    if len(content) != length:
        return f"has {len(content)} bytes where {length} were written"
    if hashlib.sha256(content).digest() != checksum:
        return "is damaged: its checksum does not match"
    return None


@contextlib.contextmanager
def _held(descriptor: int, *, may_wait: bool = True) -> Iterator[bool]:
    """Hold the lock of an open file, in this process and all others, and close it; say whether it could be had.

    Waits without the GIL. Each open file has a lock of its own, so threads exclude each other, too.
    """
    is_held = False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if may_wait else fcntl.LOCK_NB))
            is_held = True
        except OSError as error:  # another has it, or the file system has no locks: then several may build
            if may_wait:
                _log.warning("there is no lock among processes: %s", error)
        yield is_held
    finally:
        if is_held:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile has the file open, too
        os.close(descriptor)


def _synchronise(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
