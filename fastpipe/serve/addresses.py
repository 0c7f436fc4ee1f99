"""Where a server listens: addresses as they are written, sockets bound to them, and the files of unix sockets.

A unix socket is a file, which outlives its server, and which the next server, or gRPC, would replace whether or not
somebody listens there. So a server holds its path: it locks ``PATH.lock`` beside it, from before it binds until it has
removed both. The kernel takes the lock from one that is killed; what it has left behind is then replaced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import logging
import os
import socket
import stat
from typing import Any

from fastpipe.errors import ConfigError, PipeError

__all__ = ["UNIX", "UnixPath", "bind", "is_loopback", "reserve"]

UNIX = "unix:"
MOST_PATH_BYTES = 107
"""Of a unix socket's path: Linux keeps it in 108, with a zero at its end."""


def bind(address: str, count: int = 1) -> list[socket.socket]:
    """Return sockets bound to ``host:port``, ``[v6]:port`` or ``unix:PATH``; they do not listen yet.

    Closing the first one removes the file of a unix socket.

    Args:
        address: port 0 is any that is free.
        count: of several, each is for a process of its own, and the kernel deals connections out to them; of a path all
            are the same.

    Raises:
        ConfigError: the address is none.
        PipeError: it is in use, or none of this machine.
    """
    if address.startswith(UNIX):
        first: socket.socket = _UnixListener(address.removeprefix(UNIX))
        return [first, *(socket.socket(fileno=os.dup(first.fileno())) for _ in range(count - 1))]
    host, port = _parsed(address)
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # The first one alone: among those that share a port, that of another server would not be noticed.
        listeners = [_bound(family, kind, where, shares=False)]
        if count > 1:
            with listeners.pop() as first:
                where = first.getsockname()
            listeners = [_bound(family, kind, where, shares=True) for _ in range(count)]
    except (OSError, UnicodeError) as error:
        raise PipeError(f"cannot listen at {address}: {error}") from error
    if not is_loopback(address):
        logging.getLogger("fastpipe.serve").warning(
            "%s can be reached from other machines: whoever reaches it may use the models, and see what they count, "
            "unless a token, or a proxy in front, asks who it is",
            address,
        )
    return listeners


def reserve(address: str) -> UnixPath | None:
    """Find out now, and in plain words, what gRPC would say about an address once all models are built.

    Returns:
        The path of a unix socket, held from now on, for ``GrpcServer``, until it is closed. None: it is a port, which
        was free just now.

    Raises:
        ConfigError: the address is none.
        PipeError: it is in use, or none of this machine.
    """
    if address.startswith(UNIX):
        return UnixPath(address.removeprefix(UNIX))
    for listener in bind(address):
        listener.close()
    return None


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address."""
    if address.startswith(UNIX):
        return True
    host, _ = _parsed(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _parsed(address: str) -> tuple[str, int]:
    """Return host and port of an address.

    Raises:
        ConfigError: it is none.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"an address is host:port, or unix:PATH, got {address!r}")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def _bound(family: int, kind: int, where: Any, *, shares: bool) -> socket.socket:
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shares:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(where)
    except BaseException:
        listener.close()
        raise
    return listener


# ---- files of unix sockets -----------------------------------------------------------------------------------------


class UnixPath:
    """A path that this process holds for a unix socket: no other server of fastpipe takes it meanwhile.

    The socket of a server that is gone is removed. Whoever binds one there says ``note_bound``; ``close`` removes that
    one, and no other.

    Raises:
        ConfigError: it is empty, or too long.
        PipeError: somebody else holds it, or listens there, or something else is there, or it cannot be written.
    """

    def __init__(self, path: str) -> None:
        size_bytes = len(os.fsencode(path))
        if not path:
            raise ConfigError(f"the address {UNIX!r} has no path: write unix:PATH")
        if size_bytes > MOST_PATH_BYTES:
            raise ConfigError(
                f"cannot listen at {UNIX}{path}: the path has {size_bytes} bytes, that of a unix socket has at most "
                f"{MOST_PATH_BYTES}; a shorter one is needed, such as one from the working directory"
            )
        self._path = path
        self._file: tuple[int, int] | None = None
        self._process = os.getpid()
        try:
            self._lock = _locked(f"{path}.lock")
            try:
                _remove_if_dead(path)
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise PipeError(f"cannot listen at {UNIX}{path}: {error.strerror or error}") from error

    def note_bound(self) -> None:
        """The socket that is there now is ours."""
        found = os.lstat(self._path)
        self._file = found.st_dev, found.st_ino

    def close(self) -> None:
        """Remove our socket, and let others have the path. Idempotent; after a fork, the child does not own it."""
        lock, self._lock = self._lock, -1
        if lock < 0 or self._process != os.getpid():
            return
        with contextlib.suppress(OSError):  # somebody has removed it
            found = os.lstat(self._path)
            if self._file == (found.st_dev, found.st_ino):
                os.unlink(self._path)
        with contextlib.suppress(OSError):
            os.unlink(f"{self._path}.lock")
        os.close(lock)


class _UnixListener(socket.socket):
    """A socket bound to a path, which it holds, and whose file goes when it is closed."""

    def __init__(self, path: str) -> None:
        super().__init__(socket.AF_UNIX)
        self._held: UnixPath | None = None
        try:
            self._held = UnixPath(path)
            self.bind(path)
            self._held.note_bound()
        except OSError as error:
            self.close()
            raise PipeError(f"cannot listen at {UNIX}{path}: {error}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._held is not None:  # first: once nobody listens, another server may take it for dead
            self._held.close()
        super().close()


def _locked(path: str) -> int:
    """Return a descriptor of a file that is locked, and is still the one at this path."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(errno.EADDRINUSE, "another server has it") from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), os.lstat(path)):
                    return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # who had it has removed it meanwhile


def _remove_if_dead(path: str) -> None:
    """Remove the socket of a server that is gone.

    Raises:
        OSError: somebody listens there, or something else than a socket is there.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "something is there that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # one that listens, and takes no connections, lives as well
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, "another server listens there")
