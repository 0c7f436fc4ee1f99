"""Where a command writes: what is wrong with it is said before anything is built or measured, by the option's name.

What shows only later, such as a full disk, is said by the file's name.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from fastpipe.errors import PipeError

__all__ = ["check_folder", "check_output", "writing"]


def check_output(option: str, path: Path | None) -> None:
    """Find out whether a file can be written; None: none is to be. What is there already stays as it is.

    Raises:
        PipeError: it cannot; the message has the option and the path, and says what to do.
    """
    if path is None:
        return
    folder = path.absolute().parent
    if path.is_dir():
        raise PipeError(f"{option} {path}: that is a folder; name a file in it")
    if not folder.is_dir():
        what = f"{folder} is no folder" if folder.exists() else f"there is no folder {folder}"
        raise PipeError(f"{option} {path}: {what}; make it first, or name another file")
    is_allowed = os.access(path, os.W_OK) if path.exists() else os.access(folder, os.W_OK | os.X_OK)
    if not is_allowed:
        raise PipeError(f"{option} {path}: this user may not write there; name another file")


def check_folder(option: str, path: Path | None) -> None:
    """The same of a folder, which is made, with those above it, when the first file is written.

    Raises:
        PipeError: it cannot be.
    """
    if path is None:
        return
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if not there.is_dir():
        raise PipeError(f"{option} {path}: {there} is a file, and no folder; name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PipeError(f"{option} {path}: this user may not write to {there}; name another folder")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Write to a file in this block: an error of it says which file, as those of writing do not by themselves.

    Raises:
        OSError: it cannot be written, with the file's name.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        # NumPy's own has no number, and says how many items were written.
        said = error.strerror or f"{error}; the disk may be full"
        raise OSError(error.errno or errno.EIO, said, str(path)) from error
