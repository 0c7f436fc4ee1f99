"""Several processes behind one port: each answers the others, so that whichever is scraped shows all of them.

    process 17 ── directory/17-….sock ◄── asks ── process 18, which is being scraped
    process 18 ── directory/18-….sock

Nobody writes anything unless somebody asks, and numbers are those of the moment. What is not answered within
ANSWERS_WITHIN_S, by a process that is stopped, say, is left out of that scrape.

Only processes of the same user, and of root, are told anything or believed: the kernel says whose the other end of a
socket is. So it does no harm if others may write to the directory, but that they may remove the sockets.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import struct
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastpipe.errors import PipeError
from fastpipe.observe.pipes import Pipes

__all__ = ["Peers"]

ANSWERS_WITHIN_S = 1.0
MOST_BYTES = 1 << 26
"""Of one answer; a pipe of 50 nodes takes about 200 kB."""
OWNERS_FOLDER = 0o700
# What the kernel takes as the path of such a socket.
LONGEST_PATH_BYTES = 107

Look = tuple[str, str, Any, bool]
"""(process id, name of the pipe, its stats(), whether it is healthy)"""


class Peers:
    """The processes of a service that share a directory.

    Args:
        directory: made if it is not there, its owner's alone. One for each service.
        pipes: of this process, which are shown to the others.

    Thread-safety: any thread. In the child of a fork ``listen`` is to be called again.
    """

    def __init__(self, directory: str | Path, pipes: Pipes) -> None:
        self._directory = Path(directory)
        self._pipes = pipes
        self._listens_in = 0  # the process in which it does
        self._end: Any = None

    def listen(self) -> None:
        """Answer the others from now on; nothing if this process does so already.

        Raises:
            PipeError: the directory cannot be used; the message says why.
        """
        if self._listens_in == os.getpid():
            return
        path = self._directory / f"{os.getpid()}-{secrets.token_hex(4)}.sock"
        if len(os.fsencode(path)) > LONGEST_PATH_BYTES:
            raise PipeError(
                f"the directory {str(self._directory)!r} is too long a name for a socket: use one like /run/ocr"
            )
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._directory.mkdir(OWNERS_FOLDER, parents=True, exist_ok=True)
            listener.bind(str(path))
            listener.listen()
        except OSError as error:
            listener.close()
            raise PipeError(f"metrics cannot be shared in {str(self._directory)!r}: {error}") from error
        _know_forks()
        thread = threading.Thread(target=_answer, args=(listener, self._pipes), name="fastpipe metrics", daemon=True)
        self._listens_in = os.getpid()
        _listeners.add(listener)
        self._end = weakref.finalize(self, _leave, listener, path, os.getpid())
        thread.start()

    def close(self) -> None:
        """Answer no more."""
        if self._end is not None:
            self._end()
        self._listens_in = 0

    def looks(self) -> Iterator[Look]:
        """Yield what the pipes of this process have counted, and those of the others; who is gone is forgotten."""
        for name, stats, is_healthy in self._pipes.looks():
            yield str(os.getpid()), name, stats, is_healthy
        for path in sorted(self._directory.glob("*-*.sock")):
            process = path.name.partition("-")[0]
            if process == str(os.getpid()):
                continue
            try:
                told = _ask(path)
            except (ConnectionRefusedError, FileNotFoundError):  # nobody listens any more: it has been killed
                path.unlink(missing_ok=True)
            except (OSError, ValueError, TypeError, AttributeError, RecursionError):
                continue  # it does not answer in time, has ended in the middle, or is no process of a service
            else:
                for name, stats, is_healthy in told:
                    yield process, name, stats, is_healthy


_listeners: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_knows_forks = False


def _know_forks() -> None:
    """Have the child of a fork close its copies: else its parent would seem to listen when it is long gone."""
    global _knows_forks
    if not _knows_forks:
        os.register_at_fork(after_in_child=_close_copies)
        _knows_forks = True


def _close_copies() -> None:
    for listener in list(_listeners):
        listener.close()
    _listeners.clear()


def _leave(listener: socket.socket, path: Path, process: int) -> None:
    if process != os.getpid():  # the child of a fork: it is the parent's
        return
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closes it


def _answer(listener: socket.socket, pipes: Pipes) -> None:
    """Tell everybody who connects what the pipes have counted. The body of the thread."""
    with listener:
        while True:
            try:
                asker, _ = listener.accept()
            except OSError:  # it is shut
                return
            with asker, contextlib.suppress(OSError):
                if not _is_trusted(asker):
                    continue
                asker.settimeout(ANSWERS_WITHIN_S)
                asker.sendall(json.dumps(list(pipes.looks())).encode())


def _ask(path: Path) -> list[tuple[str, Any, bool]]:
    """Return what a process tells.

    Raises:
        OSError, ValueError, TypeError, AttributeError, RecursionError: it does not, or tells something else.
    """
    deadline = time.monotonic() + ANSWERS_WITHIN_S
    answer = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(ANSWERS_WITHIN_S)
        asking.connect(str(path))
        if not _is_trusted(asking):
            raise PermissionError("it is another user's")
        while part := asking.recv(1 << 16):
            answer += part
            # Of the whole answer, not of each part: one that trickles is not waited for, either.
            left_s = deadline - time.monotonic()
            if left_s <= 0 or len(answer) > MOST_BYTES:
                raise TimeoutError("it does not come to an end")
            asking.settimeout(left_s)
    told = json.loads(answer)
    return [(name, _with_edges(stats), is_healthy) for name, stats, is_healthy in told]


def _is_trusted(connection: socket.socket) -> bool:
    """Whether the other end is a process of this user's, or of root's."""
    credentials = struct.Struct("3i")  # process, user, group
    _, user, _ = credentials.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size))
    return user in (0, os.geteuid())


def _with_edges(value: Any) -> Any:
    """Make edges of buckets numbers again, which JSON has as text, wherever they are."""
    if not isinstance(value, dict):
        return value
    return {
        key: {float(edge): count for edge, count in inner.items()} if key == "buckets" else _with_edges(inner)
        for key, inner in value.items()
    }
