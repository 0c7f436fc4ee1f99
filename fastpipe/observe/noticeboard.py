"""Where the live pages of this user on this machine are: a file each, which only the user can read.

``fastpipe live`` finds a page by it without being told a port or a token. Where no file can be kept, there is none.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["notices", "put_up", "take_down"]

OWNERS_FOLDER, OWNERS_FILE = 0o700, 0o600


def put_up(page: dict[str, Any], port: int) -> Path | None:
    """Say where a page is, until that is taken down; return the file, None: it cannot be kept."""
    try:
        folder = _folder(makes_it=True)
        if folder is None:
            return None
        notice = folder / f"{os.getpid()}-{port}.json"
        notice.unlink(missing_ok=True)  # of a process that had the same number and was killed
        opened = os.open(notice, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, OWNERS_FILE)
        with os.fdopen(opened, "w") as file:
            json.dump({"pid": os.getpid(), **page}, file)
    except OSError:
        return None
    return notice


def take_down(notice: Path | None) -> None:
    """Remove what ``put_up`` returned."""
    if notice is not None:
        with contextlib.suppress(OSError):
            notice.unlink(missing_ok=True)


def notices() -> Iterator[dict[str, Any]]:
    """Yield pid, url, name and token of each page whose process is alive, the youngest first; remove other notices."""
    folder = _folder(makes_it=False)
    if folder is None:
        return
    found = []
    for path in folder.glob("*.json"):
        try:
            notice = json.loads(path.read_text())
            os.kill(notice["pid"], 0)
            found.append((path.stat().st_mtime, str(path), notice))
        except ProcessLookupError:
            take_down(path)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another one's that is half written, or gone by now
    for _, _, notice in sorted(found, key=lambda each: each[:2], reverse=True):
        yield notice


def _folder(*, makes_it: bool) -> Path | None:
    """Return the folder, if it is this user's alone: in one that all may write to, it could be anybody's."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime, "fastpipe") if runtime else Path(tempfile.gettempdir(), f"fastpipe-{os.getuid()}")
    if makes_it:
        folder.mkdir(mode=OWNERS_FOLDER, exist_ok=True)
    try:
        found = folder.lstat()
    except OSError:
        return None
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if is_own else None
